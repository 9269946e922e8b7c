//! What functions may reach: the rules of the packet filter, the names that containers are given, and
//! the loop that asserts both. Knows the bridge by its name and addresses, and nothing of Docker.

mod guard;
mod names;
mod nft;
mod ranges;
mod rules;

use std::io;

use crate::error::Source;

pub use guard::{Guard, Wiring};
pub use nft::remove as remove_rules;

/// One endpoint that functions may reach by TCP, as a service catalog names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// For errors and for the listing of the rules, as `identity` or `object-store`.
    pub service: String,
    /// The host of its URL: a name, or an address without brackets.
    pub host: String,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{what} is at {host}, which in a container is the container itself: register it with a name or an \
         address that other machines reach it by"
    )]
    Loopback { what: String, host: String },
    #[error(
        "{what} is at {host}: link-local, metadata and multicast addresses are never opened to functions"
    )]
    Never { what: String, host: String },
    #[error(
        "containers could reach each other: the kernel needs the module nft_meta_bridge, or br_netfilter with \
         net.bridge.bridge-nf-call-iptables = 1 (and bridge-nf-call-ip6tables = 1 with [network] subnet6)"
    )]
    Neighbours,
    #[error(
        "[network] dns = host: this machine names no name server beyond loopback; name one by its address"
    )]
    NoNameServer,
    #[error(
        "[network] mode = bridge needs the program nft (package nftables) and the right to use it, as root"
    )]
    Nft(#[source] io::Error),
    #[error("{what} failed")]
    Failed {
        what: &'static str,
        #[source]
        source: Source,
    },
}

impl Error {
    fn failed(what: &'static str, source: impl Into<Source>) -> Self {
        Self::Failed { what, source: source.into() }
    }
}
