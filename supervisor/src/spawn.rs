//! Slots of a shim that does not fork: for each, the shim is started anew.
//!
//! Between fork and exec the process enters the slot's control group, takes its limits and becomes its
//! user, who has no rights. So the whole of the interpreter is charged to the slot, and nothing of the
//! image's runs as anybody else.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use protocol::shim::{PACKAGE_VARIABLE, Rlimits, SCRATCH_VARIABLE};
use protocol::worker::PACKAGE_DIR;

use crate::parent::keep_as_control;
use crate::slot::Place;

/// Starts a shim for a place and gives its process id.
pub fn spawn(
    shim: &[String],
    place: &Place,
    rlimits: Rlimits,
    channel: OwnedFd,
    output: OwnedFd,
) -> io::Result<i32> {
    let (program, arguments) =
        shim.split_first().ok_or_else(|| io::Error::other("the image names no command for its shim"))?;
    let scratch = place.scratch();
    // As a forked slot has it: a directory that each execution finds anew.
    let work = scratch.join("work");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .env("USER", "function")
        .env("HOME", &work)
        .env("TMPDIR", &work)
        .env(PACKAGE_VARIABLE, PACKAGE_DIR)
        .env(SCRATCH_VARIABLE, &scratch)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let (uid, raw) = (place.uid, channel.as_raw_fd());
    let mut entrances = place.group.entrances()?;
    // SAFETY: runs between fork and exec in a process with one thread; it calls the system and
    // allocates nothing that another thread could hold.
    unsafe {
        command.pre_exec(move || {
            for entrance in &mut entrances {
                entrance.write_all(b"0")?;
            }
            limit(Resource::RLIMIT_NOFILE, rlimits.open_files)?;
            limit(Resource::RLIMIT_NPROC, rlimits.processes)?;
            limit(Resource::RLIMIT_FSIZE, rlimits.file_bytes)?;
            become_user(uid)?;
            keep_as_control(raw)
        });
    }
    let child = command.spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// Limits a resource for good.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let (_, hard) = getrlimit(resource)?;
    let most = most.min(hard);
    Ok(setrlimit(resource, most, most)?)
}

/// Becomes `uid` for good: with root's id every capability goes, and exec finds none to give back.
fn become_user(uid: u32) -> io::Result<()> {
    // Within a session everyone may send SIGCONT to everyone.
    nix::unistd::setsid()?;
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(uid.into(), uid.into(), uid.into())?;
    nix::unistd::setresuid(uid.into(), uid.into(), uid.into())?;
    for set in [caps::CapSet::Ambient, caps::CapSet::Inheritable] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    Ok(())
}
