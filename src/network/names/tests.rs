use std::collections::HashMap;

use super::*;

/// A machine with a few names.
#[derive(Default)]
struct Known {
    names: HashMap<&'static str, Vec<&'static str>>,
    in_hosts_file: Vec<&'static str>,
    own: Vec<&'static str>,
}

impl Machine for Known {
    fn look_up(&self, name: &str) -> Vec<IpAddr> {
        self.names.get(name).into_iter().flatten().map(|address| address.parse().unwrap()).collect()
    }

    fn is_in_hosts_file(&self, name: &str) -> bool {
        self.in_hosts_file.contains(&name)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.own.iter().any(|own| own.parse() == Ok(address))
    }
}

fn machine() -> Known {
    Known {
        names: HashMap::from([
            ("keystone.example", vec!["192.0.2.10", "2001:db8::10"]),
            ("two.example", vec!["192.0.2.11", "192.0.2.12"]),
            ("controller", vec!["127.0.1.1"]),
            ("metadata.example", vec!["169.254.169.254"]),
            ("in-hosts", vec!["192.0.2.13"]),
            ("own", vec!["192.0.2.2"]),
        ]),
        in_hosts_file: vec!["in-hosts", "controller"],
        own: vec!["192.0.2.2"],
    }
}

fn endpoint(host: &str) -> Endpoint {
    Endpoint { service: "identity".to_owned(), host: host.to_owned(), port: 5000 }
}

fn config(change: impl FnOnce(&mut Network)) -> Network {
    let mut config = Network::default();
    change(&mut config);
    config
}

fn opened(resolved: &Resolved) -> Vec<String> {
    resolved.open.iter().map(|open| format!("{} {} ({})", open.to, open.port, open.why)).collect()
}

fn hosts(resolved: &Resolved) -> Vec<String> {
    resolved.hosts.iter().map(|(name, address)| format!("{name}={address}")).collect()
}

#[test]
fn a_name_opens_all_of_its_addresses_and_is_given_to_containers_that_cannot_look_it_up() {
    let catalog = [endpoint("two.example"), endpoint("keystone.example")];
    let resolved = resolve(&Network::default(), &catalog, &machine()).unwrap();
    assert_eq!(
        opened(&resolved),
        [
            "192.0.2.11/32 5000 (identity: two.example)",
            "192.0.2.12/32 5000 (identity: two.example)",
            "192.0.2.10/32 5000 (identity: keystone.example)",
        ]
    );
    assert_eq!(
        hosts(&resolved),
        ["keystone.example=192.0.2.10", "two.example=192.0.2.11", "two.example=192.0.2.12"]
    );
}

#[test]
fn with_name_servers_only_names_that_this_machine_alone_knows_are_given() {
    let config = config(|config| config.dns = vec!["192.0.2.53".parse().unwrap()]);
    let catalog = ["keystone.example", "in-hosts", "own", "controller"].map(endpoint);
    let resolved = resolve(&config, &catalog, &machine()).unwrap();
    assert_eq!(hosts(&resolved), ["controller=172.16.224.1", "in-hosts=192.0.2.13", "own=192.0.2.2"]);
    assert!(opened(&resolved).contains(&"192.0.2.53/32 53 (dns)".to_owned()));
}

#[test]
fn with_ipv6_addresses_of_both_families_are_open() {
    let config = config(|config| config.subnet6 = Some("fd7a::/64".parse().unwrap()));
    let resolved =
        resolve(&config, &[endpoint("keystone.example"), endpoint("controller")], &machine()).unwrap();
    assert_eq!(
        hosts(&resolved),
        [
            "controller=172.16.224.1",
            "controller=fd7a::1",
            "keystone.example=192.0.2.10",
            "keystone.example=2001:db8::10",
        ]
    );
}

#[test]
fn loopback_in_the_catalog_is_an_error_that_names_the_service() {
    for host in ["127.0.0.1", "localhost", "keystone.localhost", "::1", "127.0.1.1"] {
        let error = resolve(&Network::default(), &[endpoint(host)], &machine()).unwrap_err();
        assert!(matches!(error, Error::Loopback { .. }), "{host}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("the catalog's endpoint of identity is at {host}, ")), "{text}");
        assert!(text.contains("register it with a name or an address"), "{text}");
    }
}

#[test]
fn metadata_and_link_local_addresses_are_never_opened() {
    for host in ["169.254.169.254", "fe80::1", "fd00:ec2::254", "0.0.0.0", "224.0.0.1", "metadata.example"] {
        let error = resolve(&Network::default(), &[endpoint(host)], &machine()).unwrap_err();
        assert!(matches!(error, Error::Never { .. }), "{host}: {error}");
    }
    let config = config(|config| config.allow = vec!["169.254.169.254:80".parse().unwrap()]);
    let error = resolve(&config, &[], &machine()).unwrap_err().to_string();
    assert!(error.starts_with("[network] allow = 169.254.169.254:80 is at 169.254.169.254/32: "), "{error}");
}

#[test]
fn allowances_open_networks_and_names() {
    let config = config(|config| {
        config.allow = vec!["10.20.0.0/16:443".parse().unwrap(), "in-hosts:8080".parse().unwrap()];
    });
    let resolved = resolve(&config, &[], &machine()).unwrap();
    assert_eq!(opened(&resolved), ["10.20.0.0/16 443 (allow)", "192.0.2.13/32 8080 (allow: in-hosts)"]);
}

#[test]
fn an_extra_host_is_given_opens_nothing_and_goes_before_the_resolver() {
    let config = config(|config| {
        config.extra_hosts =
            vec!["keystone.example:192.0.2.99".parse().unwrap(), "gateway:host-gateway".parse().unwrap()];
    });
    let resolved = resolve(&config, &[endpoint("Keystone.Example.")], &machine()).unwrap();
    assert_eq!(opened(&resolved), ["192.0.2.99/32 5000 (identity: Keystone.Example.)"]);
    assert_eq!(hosts(&resolved), ["gateway=172.16.224.1", "keystone.example=192.0.2.99"]);
}

#[test]
fn a_name_without_an_address_is_tried_again_later() {
    let resolved = resolve(&Network::default(), &[endpoint("nowhere.example")], &machine()).unwrap();
    assert_eq!(resolved.unknown, ["nowhere.example"]);
    assert_eq!(resolved.open, []);
}

#[test]
fn the_hosts_own_name_servers_are_found_behind_a_local_cache() {
    let config = config(|config| config.dns = vec!["host".parse().unwrap(), "192.0.2.53".parse().unwrap()]);
    let read = |path: &str| match path {
        "/etc/resolv.conf" => "# stub\nnameserver 127.0.0.53\nsearch x\n".to_owned(),
        _ => "nameserver 192.0.2.54\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n".to_owned(),
    };
    let servers = name_servers(&config, &read).unwrap();
    assert_eq!(servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.54", "192.0.2.53"]);

    let error = name_servers(&config, &|_| "nameserver ::1\n".to_owned()).unwrap_err();
    assert!(matches!(error, Error::NoNameServer));
}

#[test]
fn names_are_read_from_a_hosts_file() {
    let text = "127.0.0.1 localhost\n192.0.2.1\tkeystone keystone.example # old\n# 192.0.2.2 not\n";
    assert_eq!(names_of(text).collect::<Vec<_>>(), ["localhost", "keystone", "keystone.example"]);
}
