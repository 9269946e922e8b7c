//! A slot: one process, forked from the parent or started for it, that runs one execution after
//! another under a user id and a control group of its own. After each it is looked over, and replaced
//! if anything of the execution is left in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::OFlag;
use protocol::shim::{FromSlot, MAX_FRAME, Rlimits, SPAWN, ToParent};
use protocol::worker::{Account, FILE_BYTES, OPEN_FILES, PACKAGE_DIR, SCRATCH_DIR};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::cgroup::{Group, reread};
use crate::frame;
use crate::helper;
use crate::log;
use crate::parent::{self, Parent};
use crate::process::{Exit, Exited, Reaper, exit};
use crate::spawn;

/// Limits of a slot, as Qinling's runtime sets them.
const RLIMITS: Rlimits = Rlimits { open_files: OPEN_FILES, processes: 128, file_bytes: FILE_BYTES };
/// How long a new process may take to report.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a process that has closed its channel may take to end.
const LAST_MOMENT: Duration = Duration::from_millis(250);
/// Processor time in microseconds that a slot may use while it is set aside: its process still has to get
/// from its answer to its wait.
const QUIET_US: u64 = 30_000;
/// How long killed processes may take to disappear.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How this worker's image makes the processes of slots.
pub enum Source {
    /// The parent interpreter forks them.
    Fork(Parent),
    /// Each is the image's shim, started anew.
    Spawn(Vec<String>),
}

impl Source {
    /// `arguments` is the command of the image.
    pub async fn start(reaper: &Reaper, arguments: &[String], parent_uid: u32) -> Result<Self, String> {
        Ok(match arguments {
            [first, shim @ ..] if first == SPAWN => Self::Spawn(shim.to_vec()),
            shim => Self::Fork(Parent::start(reaper, shim, parent_uid).await?),
        })
    }

    /// Whether slots can be made no more.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Fork(parent) if parent.exited.borrow().is_some())
    }
}

/// A process that waits for, or runs, an execution.
pub struct Process {
    pub channel: UnixStream,
    pub output: pipe::Receiver,
    pub exited: Exited,
    pub runs: u32,
    pub rest: Rest,
    /// What the interpreter needs by itself: bytes of the parent's that this process may copy, or what
    /// it held before anything of the user's was in it.
    pub own_bytes: u64,
    view: View,
}

/// The kernel's account of a process; read after every execution, and therefore kept open.
struct View {
    status: File,
    limits: File,
}

/// What the process was like before anything of the user's ran in it, and what it holds on to since.
#[derive(Debug, Default)]
pub struct Rest {
    habits: Habits,
    /// Its threads.
    tasks: u64,
    /// Resident bytes of its own right after the user's module was imported.
    imported_bytes: Option<u64>,
    /// What the group was charged, caches of files included, when it was last looked at closely.
    charged_bytes: u64,
    /// Resident bytes that executions left behind since the import.
    pub retained_bytes: u64,
}

/// What an execution might change for the next.
#[derive(Debug, Default, PartialEq, Eq)]
struct Habits {
    status: Vec<String>,
    limits: String,
}

/// The place of a slot: its number decides its ids and directories.
pub struct Place {
    pub number: u32,
    pub uid: u32,
    pub group: Group,
    counted: Counted,
}

/// Where the kernel's counts stood when the slot was set aside.
#[derive(Debug, Default)]
struct Counted {
    cpu_us: Option<u64>,
    refusals: u64,
}

impl Place {
    pub fn new(number: u32, uid: u32, group: Group) -> Self {
        Self { number, uid, group, counted: Counted::default() }
    }

    /// Notes where the next execution begins to count. Nobody waits for it, so that an execution reads
    /// two files for all that is told of what it took.
    pub fn begin_count(&mut self) {
        self.group.count_anew();
        self.counted = Counted { cpu_us: self.group.cpu_us(), refusals: self.group.refusals() };
    }

    /// Processor time since the slot was set aside, in microseconds.
    fn used_us(&self) -> Option<u64> {
        let used = self.group.cpu_us().zip(self.counted.cpu_us);
        used.map(|(now, then)| now.saturating_sub(then))
    }

    /// What the execution took that ends now.
    pub fn account(&self) -> Account {
        Account { cpu_us: self.used_us(), peak_memory_bytes: self.group.peak_bytes(), ..Account::default() }
    }

    /// Whether the kernel refused the execution a process or a thread.
    pub fn was_refused(&self) -> bool {
        self.group.refusals() > self.counted.refusals
    }

    pub fn scratch(&self) -> PathBuf {
        PathBuf::from(format!("{SCRATCH_DIR}/{}", self.number))
    }

    /// Makes a process for this place, in its group.
    pub async fn start(&mut self, reaper: &Reaper, source: &Source) -> Result<Process, String> {
        let text = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let (ours, theirs) = parent::pair().map_err(text("a slot's channel"))?;
        let (output, output_end) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("a slot's output: {error}"))?;
        // So that the function may open /dev/stdout: only its own user gets there.
        nix::sys::stat::fchmod(&output_end, nix::sys::stat::Mode::from_bits_truncate(0o622))
            .map_err(|error| format!("a slot's output: {error}"))?;
        let mut channel = parent::stream(ours).map_err(text("a slot's channel"))?;
        let output = pipe::Receiver::from_owned_fd(output).map_err(text("a slot's output"))?;
        let (pid, exited) = match source {
            Source::Fork(parent) => {
                let fork = ToParent::Fork {
                    slot: self.number,
                    uid: self.uid,
                    gid: self.uid,
                    package: PACKAGE_DIR.to_owned(),
                    scratch: self.scratch().display().to_string(),
                    rlimits: RLIMITS,
                };
                parent.fork(&fork, [theirs, output_end]).await.map_err(text("the parent interpreter"))?;
                let (Some(pid), _) = ready(&mut channel).await? else {
                    return Err("a new slot did not tell its process id".to_owned());
                };
                let exited = reaper.watch(pid);
                self.group.admit(pid).map_err(text("a slot's control group"))?;
                (pid, exited)
            }
            Source::Spawn(shim) => {
                // Its start is not the function's, so what the last execution was allowed is no matter.
                self.group.lift().map_err(text("a slot's control group"))?;
                let pid = spawn::spawn(shim, self, RLIMITS, theirs, output_end)
                    .map_err(|error| format!("the shim '{}': {error}", shim.join(" ")))?;
                let mut exited = reaper.watch(pid);
                match ready(&mut channel).await {
                    Ok((_, Some(protocol::VERSION))) => (pid, exited),
                    Ok((_, version)) => {
                        return Err(format!(
                            "the shim speaks version {version:?} of the protocol, this supervisor {}",
                            protocol::VERSION
                        ));
                    }
                    // Its channel closes just before it has ended.
                    Err(error) => {
                        let said = log::peek(&output);
                        return Err(match tokio::time::timeout(LAST_MOMENT, exit(&mut exited)).await {
                            Ok(ended) => format!("the shim ended at its start: {ended:?} {said}"),
                            Err(_) => format!("{error} {said}"),
                        });
                    }
                }
            }
        };
        let view = View::open(pid).map_err(text("a new slot"))?;
        let (habits, resident) = view.look().map_err(text("a new slot"))?;
        let (own_bytes, tasks) = match source {
            Source::Fork(parent) => (parent.private_bytes, 1),
            Source::Spawn(_) => (resident, self.group.tasks().map_err(text("a slot's control group"))?),
        };
        let rest = Rest { habits, tasks, ..Rest::default() };
        Ok(Process { channel, output, exited, runs: 0, rest, own_bytes, view })
    }

    /// Ends every process of the slot, and returns once none is left: its own, its children,
    /// daemons that left their session. Its files go later, with [`Place::clean`].
    pub async fn kill(&mut self) -> Result<(), String> {
        let text = |error: io::Error| format!("slot {}: {error}", self.number);
        self.group.unthrottle();
        // So that the list of processes only gets shorter.
        self.group.allow_forks(false).map_err(text)?;
        let deadline = tokio::time::Instant::now() + KILL_TIMEOUT;
        let mut pause = Duration::from_millis(1);
        loop {
            for pid in self.group.processes().map_err(text)? {
                kill_if_of(pid, self.uid);
            }
            if self.group.tasks().map_err(text)? == 0 {
                return self.group.allow_forks(true).map_err(text);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("slot {} has processes that cannot be killed", self.number));
            }
            // Meanwhile the reaper waits for those that have ended.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes the files of a slot that has no process.
    pub async fn clean(&self, reaper: &Reaper) -> Result<(), String> {
        helper::clean_user(reaper, self.uid, &self.scratch()).await.map_err(|error| error.to_string())
    }
}

impl Process {
    /// Notes what the process holds right after the import of the user's module, which every later
    /// execution needs as well. The process says so itself: by the time that it could be measured
    /// from here the function would be running.
    pub fn note_import(&mut self, resident_bytes: u64) {
        self.rest.imported_bytes.get_or_insert(resident_bytes);
    }

    /// Looks the process over after an execution: `Err` names what stands in the way of another.
    pub fn inspect(&mut self, group: &Group, mark: u64, max_runs: u32) -> Result<(), &'static str> {
        if self.exited.borrow().is_some() {
            return Err("ended");
        }
        if self.runs >= max_runs {
            return Err("runs");
        }
        if group.tasks().ok() != Some(self.rest.tasks) {
            return Err("left_processes");
        }
        if frame::has_unsolicited(&self.channel) {
            return Err("channel");
        }
        let Ok((habits, resident)) = self.view.look() else { return Err("ended") };
        if habits != self.rest.habits {
            return Err("changed_habits");
        }
        self.measure(resident, group, mark)
    }

    fn measure(&mut self, resident: u64, group: &Group, mark: u64) -> Result<(), &'static str> {
        let imported = *self.rest.imported_bytes.get_or_insert(resident);
        self.rest.retained_bytes = resident.saturating_sub(imported);
        if self.rest.retained_bytes > mark {
            return Err("memory");
        }
        // Files in memory (/tmp, /dev/shm) count against the next execution too. The sum is cheap to
        // read, and only where it has grown is it worth asking what it is made of.
        let charged = group.used_bytes().map_err(|_| "memory")?;
        if charged > self.rest.charged_bytes + mark / 2 {
            self.rest.charged_bytes = charged;
            if group.shared_bytes().map_err(|_| "memory")? > mark {
                return Err("memory");
            }
        }
        Ok(())
    }

    /// Whether a process that was set aside does nothing: one that gave an answer may have gone on.
    pub fn is_quiet(&self, place: &Place) -> bool {
        self.exited.borrow().is_none()
            && place.group.tasks().ok() == Some(self.rest.tasks)
            && !frame::has_unsolicited(&self.channel)
            && place.used_us().is_some_and(|used| used <= QUIET_US)
    }

    /// Waits a moment for the end of a process that seems to be ending.
    pub async fn end_within(&mut self, wait: Duration) -> Option<Exit> {
        tokio::time::timeout(wait, exit(&mut self.exited)).await.ok()
    }
}

/// What a new process says of itself: its id and its version of the protocol.
async fn ready(channel: &mut UnixStream) -> Result<(Option<i32>, Option<u32>), String> {
    match tokio::time::timeout(READY_TIMEOUT, frame::read::<FromSlot>(channel, MAX_FRAME)).await {
        Ok(Ok(FromSlot::Ready { pid, version })) => Ok((pid, version)),
        Ok(Ok(other)) => Err(format!("a new slot answered before it was asked: {other:?}")),
        Ok(Err(error)) => Err(format!("a new slot: {error}")),
        Err(_) => Err(format!("a new slot did not report within {} seconds", READY_TIMEOUT.as_secs())),
    }
}

/// Kills a process, if it is still one of the user `uid`.
fn kill_if_of(pid: i32, uid: u32) {
    // SAFETY: both calls take numbers, and a descriptor that was just opened.
    unsafe {
        // Held by a descriptor, so that the number cannot come to mean another process.
        let held = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        let Ok(held) = i32::try_from(held) else { return };
        if held < 0 {
            return;
        }
        let held = OwnedFd::from_raw_fd(held);
        if owner(pid) == Some(uid) {
            // A process that has ended meanwhile needs no signal.
            libc::syscall(libc::SYS_pidfd_send_signal, held.as_raw_fd(), libc::SIGKILL, 0, 0);
        }
    }
}

fn owner(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
}

impl View {
    fn open(pid: i32) -> io::Result<Self> {
        let open = |name: &str| File::open(format!("/proc/{pid}/{name}"));
        Ok(Self { status: open("status")?, limits: open("limits")? })
    }

    /// What an execution might change for the next, and the bytes of memory that are the process's
    /// and not a file's.
    fn look(&self) -> io::Result<(Habits, u64)> {
        const KEPT: [&str; 10] =
            ["Umask", "Uid", "Gid", "Groups", "Threads", "SigBlk", "SigIgn", "SigCgt", "CapPrm", "Seccomp"];
        let text = reread(&self.status)?;
        let (mut status, mut resident) = (Vec::with_capacity(KEPT.len()), 0);
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            if KEPT.contains(&key) {
                status.push(line.to_owned());
            } else if matches!(key, "RssAnon" | "RssShmem") {
                let kib = value.trim().strip_suffix(" kB").and_then(|kib| kib.trim().parse::<u64>().ok());
                resident += kib.unwrap_or(0) << 10;
            }
        }
        Ok((Habits { status, limits: reread(&self.limits)? }, resident))
    }
}
