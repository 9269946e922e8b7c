//! The parent interpreter: a shim that forks, with its libraries loaded.
//!
//! It has a user id of its own, which no slot shares, and keeps just the rights to change ids, so that
//! a fork of it can become a slot's user. No code of a user's runs in it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use caps::{CapSet, Capability};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use protocol::shim::{CONTROL_FD, FromParent, MAX_FRAME, ToParent};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

use crate::frame;
use crate::process::{Exited, Reaper, exit};

/// How long a shim may take to load its libraries.
const START_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Parent {
    control: tokio::net::unix::OwnedWriteHalf,
    /// Ends when the parent does; without it no slot can be made.
    pub exited: Exited,
    pub private_bytes: u64,
    /// For whoever follows what it says from now on.
    pub messages: Option<Messages>,
}

/// What the parent says after its start.
pub type Messages = OwnedReadHalf;

impl Parent {
    pub async fn start(reaper: &Reaper, shim: &[String], uid: u32) -> Result<Self, String> {
        let (ours, theirs) = pair().map_err(|error| format!("no socket pair: {error}"))?;
        let pid =
            spawn(shim, uid, theirs).map_err(|error| format!("the shim '{}': {error}", shim.join(" ")))?;
        let mut exited = reaper.watch(pid);
        let control = stream(ours).map_err(|error| format!("the shim's channel: {error}"))?;
        let (mut messages, control) = control.into_split();
        let ready = tokio::select! {
            message = frame::read::<FromParent>(&mut messages, MAX_FRAME) => {
                message.map_err(|error| format!("the shim's first message: {error}"))?
            }
            ended = exit(&mut exited) => return Err(format!("the shim ended at its start: {ended:?}")),
            () = tokio::time::sleep(START_TIMEOUT) => {
                return Err(format!("the shim was not ready within {} seconds", START_TIMEOUT.as_secs()));
            }
        };
        match ready {
            FromParent::Ready { version: protocol::VERSION, private_bytes } => {
                Ok(Self { control, exited, private_bytes, messages: Some(messages) })
            }
            FromParent::Ready { version, .. } => Err(format!(
                "the shim speaks version {version} of the protocol, this supervisor {}",
                protocol::VERSION
            )),
            FromParent::ForkFailed { reason, .. } => Err(format!("the shim failed at its start: {reason}")),
        }
    }

    /// Asks for a slot that gets `descriptors`: its channel, and the pipe for its output.
    pub async fn fork(&self, fork: &ToParent, descriptors: [OwnedFd; 2]) -> io::Result<()> {
        let message = frame::encode(fork);
        let raw = descriptors.each_ref().map(AsRawFd::as_raw_fd);
        let socket: &UnixStream = self.control.as_ref();
        socket
            .async_io(Interest::WRITABLE, || {
                let sent = sendmsg::<()>(
                    socket.as_raw_fd(),
                    &[io::IoSlice::new(&message)],
                    &[ControlMessage::ScmRights(&raw)],
                    MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                    None,
                )?;
                // A frame of some hundred bytes goes into an empty buffer whole.
                if sent == message.len() { Ok(()) } else { Err(io::Error::other("a frame was cut")) }
            })
            .await
    }
}

/// A pair of connected sockets that no program started from here inherits.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?)
}

pub fn stream(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

fn spawn(shim: &[String], uid: u32, control: OwnedFd) -> io::Result<i32> {
    let (program, arguments) = shim.split_first().expect("checked at the start");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null());
    let raw = control.as_raw_fd();
    // SAFETY: runs between fork and exec in a process with one thread; it calls the system and
    // allocates nothing that another thread could hold.
    unsafe {
        command.pre_exec(move || {
            become_user(uid)?;
            keep_as_control(raw)
        });
    }
    let child = command.spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// Lets a descriptor survive exec, under the agreed number.
pub fn keep_as_control(raw: RawFd) -> io::Result<()> {
    // SAFETY: both calls take numbers.
    unsafe {
        if libc::dup2(raw, CONTROL_FD) < 0 {
            return Err(io::Error::last_os_error());
        }
        if raw == CONTROL_FD {
            let flags = libc::fcntl(raw, libc::F_GETFD);
            libc::fcntl(raw, libc::F_SETFD, flags & !libc::FD_CLOEXEC);
        }
    }
    Ok(())
}

/// Becomes `uid`, keeping the rights to change ids across exec.
fn become_user(uid: u32) -> io::Result<()> {
    // Within a session everyone may send SIGCONT to everyone.
    nix::unistd::setsid()?;
    let keep = caps::CapsHashSet::from([Capability::CAP_SETUID, Capability::CAP_SETGID]);
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(uid.into(), uid.into(), uid.into())?;
    nix::sys::prctl::set_keepcaps(true)?;
    nix::unistd::setresuid(uid.into(), uid.into(), uid.into())?;
    for set in [CapSet::Permitted, CapSet::Effective, CapSet::Inheritable, CapSet::Ambient] {
        caps::set(None, set, &keep).map_err(io::Error::other)?;
    }
    Ok(())
}
