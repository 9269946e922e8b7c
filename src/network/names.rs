//! From names to addresses: what an endpoint opens, and which names containers are given.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, UdpSocket};

use ipnet::IpNet;

use super::ranges::{never, never_address};
use super::rules::{Open, Protocol, gateway4, gateway6};
use super::{Endpoint, Error};
use crate::config::{Destination, NameServer, Network, To};

/// What comes out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub open: Vec<Open>,
    /// Names with an address each, for the containers' hosts files.
    pub hosts: BTreeSet<(String, IpAddr)>,
    /// Names that have no address now; tried again later.
    pub unknown: Vec<String>,
}

/// What this machine is asked; apart, so that the rules above it are tested without it.
pub trait Machine: Send + Sync {
    fn look_up(&self, name: &str) -> Vec<IpAddr>;
    fn is_in_hosts_file(&self, name: &str) -> bool;
    fn is_own(&self, address: IpAddr) -> bool;
}

/// The machine that this runs on. Blocks as long as its resolver does.
pub struct ThisMachine;

impl Machine for ThisMachine {
    fn look_up(&self, name: &str) -> Vec<IpAddr> {
        use std::net::ToSocketAddrs;
        (name, 0)
            .to_socket_addrs()
            .map(|found| found.map(|address| address.ip()).collect())
            .unwrap_or_default()
    }

    fn is_in_hosts_file(&self, name: &str) -> bool {
        names_of(&fs::read_to_string("/etc/hosts").unwrap_or_default())
            .any(|other| other.eq_ignore_ascii_case(name))
    }

    fn is_own(&self, address: IpAddr) -> bool {
        // Only an address of this machine can be bound to.
        UdpSocket::bind((address, 0)).is_ok()
    }
}

fn names_of(hosts: &str) -> impl Iterator<Item = &str> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.flat_map(|line| line.split_whitespace().skip(1))
}

/// Resolves everything that functions may reach. A name without an address is no error: it may have one
/// later. What can never be right is.
pub fn resolve(config: &Network, catalog: &[Endpoint], machine: &dyn Machine) -> Result<Resolved, Error> {
    let mut resolved = Resolved::default();
    for Endpoint { service, host, port } in catalog {
        let what = format!("the catalog's endpoint of {service}");
        let open = |to, why| Open { to, protocol: Protocol::Tcp, port: *port, why };
        match host.parse::<IpAddr>() {
            Ok(address) => {
                check(address.into(), &what, host)?;
                resolved.open.push(open(address.into(), service.clone()));
            }
            Err(_) => {
                for address in name(config, &mut resolved, &what, host, machine)? {
                    resolved.open.push(open(address.into(), format!("{service}: {host}")));
                }
            }
        }
    }
    for destination @ Destination { to, port } in &config.allow {
        let what = format!("[network] allow = {destination}");
        let open = |to, why| Open { to, protocol: Protocol::Tcp, port: *port, why };
        match to {
            To::Net(net) => {
                check(*net, &what, &net.to_string())?;
                resolved.open.push(open(*net, "allow".to_owned()));
            }
            To::Name(host) => {
                for address in name(config, &mut resolved, &what, host, machine)? {
                    resolved.open.push(open(address.into(), format!("allow: {host}")));
                }
            }
        }
    }
    for server in name_servers(config, &fs_text)? {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            resolved.open.push(Open { to: server.into(), protocol, port: 53, why: "dns".to_owned() });
        }
    }
    for entry in &config.extra_hosts {
        for address in entry.address.map_or_else(|| gateways(config), |address| vec![address]) {
            resolved.hosts.insert((entry.name.clone(), address));
        }
    }
    // What a container cannot send, it need not be allowed to.
    if config.subnet6.is_none() {
        resolved.open.retain(|open| matches!(open.to, IpNet::V4(_)));
        resolved.hosts.retain(|(_, address)| address.is_ipv4());
    }
    Ok(resolved)
}

/// The addresses of a name, and whether containers must be told.
fn name(
    config: &Network,
    resolved: &mut Resolved,
    what: &str,
    host: &str,
    machine: &dyn Machine,
) -> Result<Vec<IpAddr>, Error> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if host == "localhost" || host.ends_with(".localhost") {
        return Err(Error::Loopback { what: what.to_owned(), host });
    }
    let given: Vec<_> = config.extra_hosts.iter().filter(|entry| entry.name == host).collect();
    if !given.is_empty() {
        let addresses =
            given.iter().map(|entry| entry.address.map_or_else(|| gateways(config), |one| vec![one]));
        let addresses: Vec<_> = addresses.flatten().collect();
        for address in &addresses {
            check((*address).into(), what, &host)?;
        }
        return Ok(addresses);
    }

    let found = machine.look_up(&host);
    if found.is_empty() {
        resolved.unknown.push(host);
        return Ok(Vec::new());
    }
    let (loopback, mut addresses): (Vec<_>, Vec<_>) = found.into_iter().partition(IpAddr::is_loopback);
    // Many systems give their own name an address of loopback. A container reaches the same service at
    // the bridge, as long as it listens on all addresses.
    let own_name = addresses.is_empty() && !loopback.is_empty();
    if own_name {
        addresses = gateways(config);
    }
    if addresses.iter().all(|&address| never_address(address)) {
        return Err(Error::Never { what: what.to_owned(), host });
    }
    addresses.retain(|&address| !never_address(address));
    addresses.sort();
    addresses.dedup();
    let tell = own_name
        || config.dns.is_empty()
        || machine.is_in_hosts_file(&host)
        || addresses.iter().any(|&address| machine.is_own(address));
    if tell {
        resolved.hosts.extend(addresses.iter().map(|&address| (host.clone(), address)));
    }
    Ok(addresses)
}

fn check(net: IpNet, what: &str, host: &str) -> Result<(), Error> {
    let (what, host) = (what.to_owned(), host.to_owned());
    if net.addr().is_loopback() {
        return Err(Error::Loopback { what, host });
    }
    if never(net) { Err(Error::Never { what, host }) } else { Ok(()) }
}

/// The bridge's own addresses.
fn gateways(config: &Network) -> Vec<IpAddr> {
    let gateway6 = config.subnet6.map(|subnet| gateway6(subnet).into());
    [IpAddr::from(gateway4(config.subnet))].into_iter().chain(gateway6).collect()
}

/// The name servers that containers are given, with `host` put in its place.
pub fn name_servers(config: &Network, read: &dyn Fn(&str) -> String) -> Result<Vec<IpAddr>, Error> {
    let mut servers = Vec::new();
    for server in &config.dns {
        match server {
            NameServer::At(address) => {
                let what = format!("[network] dns = {address}");
                check((*address).into(), &what, &address.to_string())?;
                servers.push(*address);
            }
            NameServer::Host => {
                // Where the first names only a local cache, the second has what the cache asks.
                let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
                let found = files.iter().map(|file| servers_of(&read(file))).find(|found| !found.is_empty());
                servers.extend(found.ok_or(Error::NoNameServer)?);
            }
        }
    }
    if config.subnet6.is_none() {
        servers.retain(IpAddr::is_ipv4);
    }
    let mut seen = BTreeSet::new();
    servers.retain(|&server| seen.insert(server));
    Ok(servers)
}

pub fn fs_text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn servers_of(resolv_conf: &str) -> Vec<IpAddr> {
    let servers =
        resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    servers.filter(|&address| !never_address(address)).collect()
}

#[cfg(test)]
mod tests;
