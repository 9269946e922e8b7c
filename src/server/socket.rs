//! The sockets that a service manager holds for us, and what it is told of us.
//!
//! A socket that systemd holds is there while the service is not: whoever connects meanwhile waits in
//! its queue, and the next start takes him up.

use std::io;
use std::net::{IpAddr, TcpListener};

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The listening sockets that were handed to this process, with `LISTEN_FDS` as sd_listen_fds(3) has it.
pub fn given() -> io::Result<Vec<TcpListener>> {
    let mut given = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..given.len() {
        sockets.extend(given.take_tcp_listener(index)?);
    }
    Ok(sockets)
}

/// The first address that is none of this machine's own.
pub fn beyond_loopback(sockets: &[TcpListener]) -> Option<IpAddr> {
    let addresses = sockets.iter().filter_map(|socket| socket.local_addr().ok());
    addresses.map(|address| address.ip()).find(|address| !address.is_loopback())
}

/// Tells the service manager, if there is one, that requests are taken.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The same of the end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
