//! The rules as text for `nft`: pure, so that what is open is read and tested in one place.
//!
//! They are asked before any other rule of the host sees a packet, at the address that the function
//! asked for: a port that Docker publishes is judged as the host's address, not as what lies behind it.
//! They only ever close. Whatever they let through is still up to the host's own firewall.

use std::fmt::Write;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::ranges::{INSIDE4, INSIDE6, NEVER4, NEVER6};

/// Everything that the rules depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub deployment: String,
    pub bridge: String,
    pub subnet: Ipv4Net,
    pub subnet6: Option<Ipv6Net>,
    pub outside: bool,
    pub deny: Vec<IpNet>,
    pub open: Vec<Open>,
}

/// What is open to functions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Open {
    pub to: IpNet,
    pub protocol: Protocol,
    pub port: u16,
    /// Says why, in the listing.
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// The name of a deployment's tables.
pub fn table(deployment: &str) -> String {
    format!("taibai-{deployment}")
}

/// Rules for packets that a container sends to anything but its neighbours, for one transaction that
/// replaces what was there.
pub fn packets(plan: &Plan) -> String {
    let mut out = String::new();
    write_packets(&mut out, plan).expect("a String takes everything");
    out
}

fn write_packets(out: &mut String, plan: &Plan) -> std::fmt::Result {
    let Plan { bridge, subnet, .. } = plan;
    let gateway = gateway4(*subnet);
    begin(out, "inet", &plan.deployment)?;

    let denied = |family: &[&str], is_family: fn(&IpNet) -> bool| {
        let own = plan.deny.iter().filter(|net| is_family(net)).map(ToString::to_string);
        family.iter().map(|&net| net.to_owned()).chain(own).collect::<Vec<_>>().join(", ")
    };
    let is4 = |net: &IpNet| matches!(net, IpNet::V4(_));
    let is6 = |net: &IpNet| matches!(net, IpNet::V6(_));
    set(out, "never4", "ipv4_addr", &NEVER4.join(", "))?;
    set(out, "never6", "ipv6_addr", &NEVER6.join(", "))?;
    if plan.outside {
        set(out, "inside4", "ipv4_addr", &denied(INSIDE4, is4))?;
        set(out, "inside6", "ipv6_addr", &denied(INSIDE6, is6))?;
    }

    // After connections are tracked, before any address is translated.
    writeln!(out, "chain arriving {{\ntype filter hook prerouting priority mangle; policy accept")?;
    writeln!(out, "iifname \"{bridge}\" goto functions\n}}")?;

    // Nobody opens a connection to a function: not the host, nor whoever routes through it.
    writeln!(out, "chain leaving {{\ntype filter hook postrouting priority mangle; policy accept")?;
    writeln!(out, "oifname \"{bridge}\" ct direction original drop\n}}")?;

    // A function is told at once and need not wait for its timeout. The kernel bounds how many errors of
    // ICMP it sends in a second, and none of resets.
    writeln!(out, "chain refused {{\nmeta l4proto tcp reject with tcp reset")?;
    writeln!(out, "reject with icmpx type admin-prohibited\n}}")?;

    writeln!(out, "chain functions {{")?;
    match plan.subnet6 {
        Some(subnet6) => {
            // How a container finds the bridge's address; what it asks of neighbours goes nowhere.
            writeln!(
                out,
                "icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept"
            )?;
            writeln!(out, "ip6 saddr != {subnet6} drop")?;
            writeln!(out, "ip6 daddr {subnet6} ip6 daddr != {} drop", gateway6(subnet6))?;
        }
        None => writeln!(out, "meta nfproto ipv6 drop")?,
    }
    writeln!(out, "ct direction reply drop")?;
    writeln!(out, "ct state invalid drop")?;
    writeln!(out, "ip saddr != {subnet} drop")?;
    writeln!(out, "ip daddr {subnet} ip daddr != {gateway} drop")?;
    writeln!(out, "ip daddr @never4 goto refused")?;
    writeln!(out, "ip6 daddr @never6 goto refused")?;
    let mut open = plan.open.clone();
    open.sort();
    // One rule for each, though several services may be at one address and port.
    open.dedup_by_key(|open| (open.to, open.protocol, open.port));
    for Open { to, protocol, port, why } in &open {
        let family = if is4(to) { "ip" } else { "ip6" };
        let protocol = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        writeln!(out, "{family} daddr {to} {protocol} dport {port} accept comment \"{}\"", plain(why))?;
    }
    if plan.outside {
        // `unicast` leaves out every address of this host, public ones too.
        writeln!(out, "fib daddr type unicast ip daddr != @inside4 accept")?;
        writeln!(out, "fib daddr type unicast ip6 daddr != @inside6 accept")?;
    }
    writeln!(out, "goto refused\n}}\n}}")
}

/// Rules for frames between the ports of the bridge: none passes, whatever it carries. Not every kernel
/// knows them.
pub fn frames(plan: &Plan) -> String {
    let mut out = String::new();
    write_frames(&mut out, plan).expect("a String takes everything");
    out
}

fn write_frames(out: &mut String, plan: &Plan) -> std::fmt::Result {
    begin(out, "bridge", &plan.deployment)?;
    writeln!(out, "chain between {{\ntype filter hook forward priority -300; policy accept")?;
    writeln!(out, "meta ibrname \"{}\" drop\n}}\n}}", plan.bridge)
}

/// The table is declared, so that it can be deleted, so that it is made anew.
fn begin(out: &mut String, family: &str, deployment: &str) -> std::fmt::Result {
    let table = table(deployment);
    writeln!(out, "table {family} {table}\ndelete table {family} {table}\ntable {family} {table} {{")
}

fn set(out: &mut String, name: &str, kind: &str, elements: &str) -> std::fmt::Result {
    writeln!(out, "set {name} {{\ntype {kind}\nflags interval\nauto-merge\nelements = {{ {elements} }}\n}}")
}

/// A comment that cannot end early; the kernel takes 128 bytes.
fn plain(why: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || ":./[]-_ ".contains(c) { c } else { '_' };
    why.chars().map(keep).take(100).collect()
}

/// The bridge's own address: the first that a host can have, as Docker chooses it too.
pub fn gateway4(subnet: Ipv4Net) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(u32::from(subnet.network()) + 1)
}

pub fn gateway6(subnet: Ipv6Net) -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::from(u128::from(subnet.network()) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            deployment: "demo".to_owned(),
            bridge: "taibai0".to_owned(),
            subnet: "172.16.224.0/20".parse().unwrap(),
            subnet6: None,
            outside: false,
            deny: Vec::new(),
            open: Vec::new(),
        }
    }

    fn open(to: &str, protocol: Protocol, port: u16, why: &str) -> Open {
        Open { to: to.parse().unwrap(), protocol, port, why: why.to_owned() }
    }

    fn functions(plan: &Plan) -> Vec<String> {
        let text = packets(plan);
        let lines = text.lines().skip_while(|line| *line != "chain functions {").skip(1);
        lines.take_while(|line| *line != "}").map(str::to_owned).collect()
    }

    #[test]
    fn without_allowances_everything_is_refused() {
        assert_eq!(
            functions(&plan()),
            [
                "meta nfproto ipv6 drop",
                "ct direction reply drop",
                "ct state invalid drop",
                "ip saddr != 172.16.224.0/20 drop",
                "ip daddr 172.16.224.0/20 ip daddr != 172.16.224.1 drop",
                "ip daddr @never4 goto refused",
                "ip6 daddr @never6 goto refused",
                "goto refused",
            ]
        );
    }

    #[test]
    fn what_is_open_comes_after_what_is_never_open_and_says_why() {
        let open = vec![
            open("192.0.2.10/32", Protocol::Tcp, 5000, "identity"),
            open("192.0.2.10/32", Protocol::Tcp, 5000, "identity again"),
            open("192.0.2.53/32", Protocol::Udp, 53, "dns"),
            open("2001:db8::/64", Protocol::Tcp, 443, "x\" drop\n"),
        ];
        let lines = functions(&Plan { open, ..plan() });
        let never = lines.iter().position(|line| line.starts_with("ip6 daddr @never6")).unwrap();
        assert_eq!(
            lines[never + 1..],
            [
                "ip daddr 192.0.2.10/32 tcp dport 5000 accept comment \"identity\"",
                "ip daddr 192.0.2.53/32 udp dport 53 accept comment \"dns\"",
                "ip6 daddr 2001:db8::/64 tcp dport 443 accept comment \"x_ drop_\"",
                "goto refused",
            ]
        );
    }

    #[test]
    fn the_outside_leaves_out_this_host_private_networks_and_what_is_denied() {
        let deny = vec!["203.0.113.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let plan = Plan { outside: true, deny, ..plan() };
        let text = packets(&plan);
        assert!(
            text.contains("172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 203.0.113.0/24 }")
        );
        assert!(text.contains("fc00::/7, 2001:db8::/32 }"), "{text}");
        let lines = functions(&plan);
        assert_eq!(
            lines[lines.len() - 3..],
            [
                "fib daddr type unicast ip daddr != @inside4 accept",
                "fib daddr type unicast ip6 daddr != @inside6 accept",
                "goto refused",
            ]
        );
    }

    #[test]
    fn with_ipv6_a_container_finds_the_bridge_and_no_neighbour() {
        let lines = functions(&Plan { subnet6: Some("fd7a::/64".parse().unwrap()), ..plan() });
        assert_eq!(
            lines[..3],
            [
                "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
                "ip6 saddr != fd7a::/64 drop",
                "ip6 daddr fd7a::/64 ip6 daddr != fd7a::1 drop",
            ]
        );
    }

    #[test]
    fn a_table_is_replaced_in_one_transaction() {
        for (text, family) in [(packets(&plan()), "inet"), (frames(&plan()), "bridge")] {
            let mut lines = text.lines();
            assert_eq!(lines.next().unwrap(), format!("table {family} taibai-demo"));
            assert_eq!(lines.next().unwrap(), format!("delete table {family} taibai-demo"));
            assert_eq!(lines.next().unwrap(), format!("table {family} taibai-demo {{"));
        }
    }
}
