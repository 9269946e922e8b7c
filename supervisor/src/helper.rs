//! This program again, for one task under another user id.
//!
//! The supervisor is root without the rights that make root all-powerful: it cannot enter a slot's
//! directories or remove its files. A helper that has *become* the slot's user can. None runs beside
//! a process of that user, which could stop it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::archive::Limits;
use protocol::worker::{PACKAGE_DIR, SUPERVISOR};

use crate::process::{Exit, Exited, Reaper, exit};
use crate::unpack;

const CLEAN: &str = "--clean";
const UNPACK: &str = "--unpack";

/// How long a helper may take over a slot's files.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of a reason: less than a pipe holds, so that nobody waits for it to be read.
const MAX_REASON: usize = 4096;
/// Processor seconds that unpacking may take.
const UNPACK_CPU_SECONDS: u64 = 120;
/// Directories that every slot may write to.
const SHARED: [&str; 3] = ["/tmp", "/dev/shm", "/dev/mqueue"];

/// Exit code of an unpacking that found the package unusable; the reason is on its output.
const UNUSABLE: u8 = 3;

/// Does a helper's task, if the arguments name one.
pub fn run(arguments: &[String]) -> Option<ExitCode> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Some(match arguments.as_slice() {
        [CLEAN, scratch] => clean(Path::new(scratch)),
        [UNPACK, limits] => unpack_stdin(limits),
        _ => return None,
    })
}

/// Removes what the user `uid` left in `scratch` and in the directories all slots share.
pub async fn clean_user(reaper: &Reaper, uid: u32, scratch: &Path) -> io::Result<()> {
    let mut command = Command::new(SUPERVISOR);
    command.arg(CLEAN).arg(scratch);
    wait(reaper, spawn(command, uid)?).await
}

/// Unpacks `package` as the user `uid`. The inner error says why the package is unusable.
pub async fn unpack_as(
    reaper: &Reaper,
    uid: u32,
    package: fs::File,
    limits: Limits,
) -> io::Result<Result<(), String>> {
    let limits = serde_json::to_string(&limits).expect("limits are numbers");
    let (mut reasons, reasons_end) = io::pipe()?;
    let mut command = Command::new(SUPERVISOR);
    command.arg(UNPACK).arg(limits).stdin(package).stdout(reasons_end);
    let ended = spawn(command, uid)?.await_exit(reaper).await;
    let mut reason = String::new();
    // A pipe holds more than the one sentence that is written, so nobody waits on nobody here.
    reasons.read_to_string(&mut reason)?;
    Ok(match ended {
        Exit::Code(0) => Ok(()),
        Exit::Code(code) if code == i32::from(UNUSABLE) => Err(reason),
        other => return Err(io::Error::other(format!("unpacking ended with {other:?} {reason}"))),
    })
}

struct Spawned {
    pid: i32,
}

impl Spawned {
    async fn await_exit(self, reaper: &Reaper) -> Exit {
        let mut exited: Exited = reaper.watch(self.pid);
        exit(&mut exited).await
    }
}

fn spawn(mut command: Command, uid: u32) -> io::Result<Spawned> {
    // `uid` on a command of root's also gives up root's groups; capabilities go with the id.
    let child = command.env_clear().uid(uid).gid(uid).stderr(Stdio::null()).spawn()?;
    Ok(Spawned { pid: i32::try_from(child.id()).map_err(io::Error::other)? })
}

async fn wait(reaper: &Reaper, spawned: Spawned) -> io::Result<()> {
    let pid = Pid::from_raw(spawned.pid);
    match tokio::time::timeout(PATIENCE, spawned.await_exit(reaper)).await {
        Ok(Exit::Code(0)) => Ok(()),
        Err(_) => {
            // It has become a slot's user, and this process may signal all of them.
            let _ = kill(pid, Signal::SIGKILL);
            Err(io::Error::other("a helper took too long"))
        }
        Ok(other) => Err(io::Error::other(format!("a helper ended with {other:?}"))),
    }
}

fn clean(scratch: &Path) -> ExitCode {
    let own = nix::unistd::getuid().as_raw();
    let emptied = empty(scratch);
    for shared in SHARED {
        let Ok(entries) = fs::read_dir(shared) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.uid() == own {
                let path = entry.path();
                if metadata.is_dir() {
                    open_up(&path);
                    empty(&path);
                    let _ = fs::remove_dir(&path);
                } else {
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }
    if emptied { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Removes what is in a directory, however deep or unreadable it was made.
///
/// No path is longer than two names and no more than two directories are open: one that lies deeper
/// is moved up first. A hostile tree costs time in proportion to its size and nothing else.
fn empty(top: &Path) -> bool {
    let mut moved = 0u64;
    loop {
        let Ok(entries) = fs::read_dir(top) else { return false };
        let (mut found, mut removed) = (false, false);
        for path in entries.flatten().map(|entry| entry.path()) {
            found = true;
            removed |= remove(&path, top, &mut moved);
        }
        if !found || !removed {
            return !found;
        }
    }
}

/// Removes a file, or a directory whose subdirectories go up to `top`; true where that was progress.
fn remove(path: &Path, top: &Path, moved: &mut u64) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    if !metadata.is_dir() {
        return fs::remove_file(path).is_ok();
    }
    open_up(path);
    let Ok(children) = fs::read_dir(path) else { return false };
    let mut progress = false;
    for child in children.flatten() {
        let child_path = child.path();
        if !child.file_type().is_ok_and(|kind| kind.is_dir()) {
            progress |= fs::remove_file(&child_path).is_ok();
            continue;
        }
        // A directory changes its parent only where it may be written to.
        open_up(&child_path);
        *moved += 1;
        progress |= fs::rename(&child_path, top.join(format!(".moved-{moved}"))).is_ok();
    }
    fs::remove_dir(path).is_ok() || progress
}

fn open_up(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
}

fn unpack_stdin(limits: &str) -> ExitCode {
    let Ok(limits) = serde_json::from_str::<Limits>(limits) else { return ExitCode::FAILURE };
    let bounded = setrlimit(Resource::RLIMIT_CPU, UNPACK_CPU_SECONDS, UNPACK_CPU_SECONDS)
        .and_then(|()| {
            setrlimit(Resource::RLIMIT_FSIZE, limits.max_expanded_bytes, limits.max_expanded_bytes)
        })
        .and_then(|()| setrlimit(Resource::RLIMIT_NPROC, 1, 1));
    if bounded.is_err() {
        return ExitCode::FAILURE;
    }
    match extract(limits) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let most = reason.floor_char_boundary(MAX_REASON);
            let _ = io::stdout().write_all(&reason.as_bytes()[..most]);
            ExitCode::from(UNUSABLE)
        }
    }
}

fn extract(limits: Limits) -> Result<(), String> {
    let package = stdin_file().map_err(|error| error.to_string())?;
    unpack::into(Path::new(PACKAGE_DIR), io::BufReader::new(package), limits)
}

/// The package: it was opened for this process, which could not open it itself.
fn stdin_file() -> io::Result<fs::File> {
    use std::os::fd::AsFd;
    Ok(fs::File::from(io::stdin().as_fd().try_clone_to_owned()?))
}
