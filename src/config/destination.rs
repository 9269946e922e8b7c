//! How the values of `[network]` are written: where functions may go, names, name servers.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// Where functions may go: one TCP port of a name, an address or a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub to: To,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    Name(String),
    Net(IpNet),
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "{text} is no destination; expected name:port, address:port, network/bits:port or [IPv6]:port"
            )
        };
        let (to, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let port = port.parse().ok().filter(|&port| port > 0).ok_or_else(expected)?;
        let bracketed = to.strip_prefix('[').and_then(|to| to.strip_suffix(']'));
        let to = match (bracketed.unwrap_or(to).parse::<IpNet>(), bracketed.unwrap_or(to).parse::<IpAddr>()) {
            (Ok(net), _) if net.trunc() != net => {
                return Err(format!("{text} has bits beyond its prefix; expected {}", net.trunc()));
            }
            (Ok(net), _) => To::Net(net),
            (_, Ok(address)) => To::Net(address.into()),
            _ if bracketed.is_none() && is_name(to) => To::Name(to.to_ascii_lowercase()),
            _ => return Err(expected()),
        };
        // Without brackets the last part of an IPv6 address would be taken for a port.
        if matches!(&to, To::Net(IpNet::V6(_))) && bracketed.is_none() {
            return Err(expected());
        }
        Ok(Self { to, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            To::Name(name) => write!(f, "{name}:{}", self.port),
            To::Net(IpNet::V6(net)) if net.prefix_len() == 128 => write!(f, "[{}]:{}", net.addr(), self.port),
            To::Net(IpNet::V6(net)) => write!(f, "[{net}]:{}", self.port),
            To::Net(IpNet::V4(net)) if net.prefix_len() == 32 => write!(f, "{}:{}", net.addr(), self.port),
            To::Net(net) => write!(f, "{net}:{}", self.port),
        }
    }
}

/// A name that containers are given with its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    pub name: String,
    /// `None` for this host, at the bridge's own address.
    pub address: Option<IpAddr>,
}

/// How an entry says "this host".
const GATEWAY: &str = "host-gateway";

impl FromStr for HostEntry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text} is no entry; expected name:address or name:{GATEWAY}");
        let (name, address) = text.split_once(':').ok_or_else(expected)?;
        let address = match address {
            GATEWAY => None,
            address => Some(address.parse().map_err(|_| expected())?),
        };
        if !is_name(name) {
            return Err(expected());
        }
        Ok(Self { name: name.to_ascii_lowercase(), address })
    }
}

impl fmt::Display for HostEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}:{address}", self.name),
            None => write!(f, "{}:{GATEWAY}", self.name),
        }
    }
}

/// A name server for containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameServer {
    /// Those of this machine.
    Host,
    At(IpAddr),
}

impl FromStr for NameServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::Host),
            text => text.parse().map(Self::At).map_err(|_| {
                format!("{text} is no name server; expected an address, or host for those of this machine")
            }),
        }
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// What can be looked up and stand in a hosts file.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= 253 && text.split('.').all(is_label) && !text.rsplit('.').next().is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_as_they_are_written() {
        for text in [
            "keystone.example.org:5000",
            "controller:443",
            "192.0.2.10:5000",
            "10.20.0.0/16:443",
            "[2001:db8::5]:5000",
            "[2001:db8::/32]:443",
        ] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_destination_is_told_so() {
        for text in [
            "",
            "5000",
            "host",
            "host:",
            "host:0",
            "host:70000",
            "a b:1",
            "-:x",
            "2001:db8::5:5000",
            "300.1.2.3:80",
            "[host]:80",
            "http://host:80",
            "10.0.0.0/40:80",
        ] {
            let error = text.parse::<Destination>().unwrap_err();
            assert!(error.contains("expected name:port"), "{text}: {error}");
        }
        let error = "10.0.0.1/8:80".parse::<Destination>().unwrap_err();
        assert_eq!(error, "10.0.0.1/8:80 has bits beyond its prefix; expected 10.0.0.0/8");
    }

    #[test]
    fn entries_and_name_servers_are_read_as_they_are_written() {
        for text in ["keystone:192.0.2.1", "a.b.example:fd00::1", "controller:host-gateway"] {
            assert_eq!(text.parse::<HostEntry>().unwrap().to_string(), text);
        }
        for text in ["keystone", "keystone:", "a b:192.0.2.1", "keystone:else"] {
            assert!(text.parse::<HostEntry>().unwrap_err().contains("expected name:address"), "{text}");
        }
        for text in ["host", "192.0.2.53", "fd00::53"] {
            assert_eq!(text.parse::<NameServer>().unwrap().to_string(), text);
        }
        assert!("resolver".parse::<NameServer>().unwrap_err().contains("expected an address, or host"));
    }
}
