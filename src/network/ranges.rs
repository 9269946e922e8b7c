//! Addresses that are closed to functions whatever opens the rest.

use std::net::IpAddr;

use ipnet::IpNet;

/// Never reachable, whatever the configuration or the catalog says: this host's loopback, the local link,
/// the metadata services of clouds, and what is nobody's address.
pub const NEVER4: &[&str] =
    &["0.0.0.0/8", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"];
pub const NEVER6: &[&str] = &[
    "::/127",
    "::ffff:0:0/96",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// Not part of the outside: private networks, and prefixes that carry IPv4 addresses inside.
pub const INSIDE4: &[&str] =
    &["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15"];
pub const INSIDE6: &[&str] =
    &["64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2002::/16", "fc00::/7"];

/// Whether every address of a network is never reachable: to open it would do nothing.
pub fn never(net: IpNet) -> bool {
    NEVER4.iter().chain(NEVER6).any(|range| {
        let range: IpNet = range.parse().expect("the ranges above are networks");
        range.contains(&net)
    })
}

pub fn never_address(address: IpAddr) -> bool {
    never(address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_is_a_network_without_stray_bits() {
        for range in NEVER4.iter().chain(NEVER6).chain(INSIDE4).chain(INSIDE6) {
            let net: IpNet = range.parse().unwrap();
            assert_eq!(net.trunc(), net, "{range}");
        }
    }

    #[test]
    fn metadata_services_loopback_and_the_local_link_are_never_opened() {
        for address in [
            "169.254.169.254",
            "127.0.0.1",
            "127.0.1.1",
            "0.0.0.0",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::a9fe:a9fe",
            "fd00:ec2::254",
            "fd20:ce::254",
            "ff02::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(never_address(address.parse().unwrap()), "{address}");
        }
        for address in ["10.0.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1", "fd00::1"] {
            assert!(!never_address(address.parse().unwrap()), "{address}");
        }
        assert!(never("169.254.0.0/24".parse().unwrap()));
        assert!(!never("0.0.0.0/0".parse().unwrap()), "it opens more than what stays closed");
    }
}
