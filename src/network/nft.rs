//! Runs `nft`: one transaction, or one listing. Blocking; each takes a few milliseconds.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::Error;
use super::rules::{Plan, frames, packets, table};

/// How containers on the bridge are kept from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbours {
    /// No frame passes between ports of the bridge.
    Frames,
    /// Packets between ports pass the same rules as all others, which br_netfilter sees to.
    Packets,
}

impl Neighbours {
    /// Finds out what this kernel can do.
    pub fn detect(plan: &Plan) -> Result<Self, Error> {
        // A check goes through the kernel and changes nothing.
        match nft(&["--check", "--file", "-"], &packets(plan)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Nft(error)),
            Err(error) => return Err(Error::failed("checking the rules of the network", error)),
        }
        if nft(&["--check", "--file", "-"], &frames(plan)).is_ok() {
            return Ok(Self::Frames);
        }
        if bridges_ask_the_filter(plan.subnet6.is_some()) {
            Ok(Self::Packets)
        } else {
            Err(Error::Neighbours)
        }
    }

    /// Whether it still holds, for what is not part of the rules.
    pub fn hold(self, plan: &Plan) -> Result<(), Error> {
        match self {
            Self::Packets if !bridges_ask_the_filter(plan.subnet6.is_some()) => Err(Error::Neighbours),
            _ => Ok(()),
        }
    }
}

/// Puts the rules into force, all at once, in place of any before them; returns their listing.
pub fn apply(plan: &Plan, neighbours: Neighbours) -> Result<String, Error> {
    let mut script = packets(plan);
    if neighbours == Neighbours::Frames {
        script += &frames(plan);
    }
    nft(&["--file", "-"], &script)
        .map_err(|error| Error::failed("writing the rules of the network", error))?;
    list(&plan.deployment, neighbours)
        .map_err(|error| Error::failed("reading the rules of the network", error))
}

/// The rules as they are now; an error too where there are none.
pub fn list(deployment: &str, neighbours: Neighbours) -> io::Result<String> {
    let table = table(deployment);
    let mut listing = nft(&["--stateless", "list", "table", "inet", &table], "")?;
    if neighbours == Neighbours::Frames {
        listing += &nft(&["--stateless", "list", "table", "bridge", &table], "")?;
    }
    Ok(listing)
}

/// Removes the rules of a deployment that has no containers any more. Where there are none, and where
/// there is no `nft`, nothing is left to be removed.
pub fn remove(deployment: &str) -> io::Result<()> {
    let table = table(deployment);
    for family in ["inet", "bridge"] {
        let present = match nft(&["list", "tables", family], "") {
            Ok(tables) => tables.lines().any(|line| line == format!("table {family} {table}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            // A kernel without the family has no such table either; without the right to ask, none is ours.
            Err(_) => false,
        };
        if present {
            nft(&["delete", "table", family, &table], "")?;
        }
    }
    Ok(())
}

fn nft(arguments: &[&str], script: &str) -> io::Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It reads all of it before it says anything.
    let written = child.stdin.take().expect("it was asked for").write_all(script.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().take(3).map(str::trim).collect::<Vec<_>>().join(" ");
        return Err(io::Error::other(format!("nft: {said}")));
    }
    written?;
    String::from_utf8(output.stdout).map_err(io::Error::other)
}

fn bridges_ask_the_filter(ipv6: bool) -> bool {
    let is_on = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/net/bridge/{name}")).is_ok_and(|text| text.trim() == "1")
    };
    is_on("bridge-nf-call-iptables") && (!ipv6 || is_on("bridge-nf-call-ip6tables"))
}
