//! A slot: one process, forked from the parent, that runs one execution after another under a user
//! id and a control group of its own. After each it is looked over, and replaced if anything of the
//! execution is left in it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::OFlag;
use protocol::shim::{FromSlot, MAX_FRAME, Rlimits, ToParent};
use protocol::worker::{PACKAGE_DIR, SCRATCH_DIR};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::cgroup::Group;
use crate::frame;
use crate::helper;
use crate::parent::{self, Parent};
use crate::process::{Exit, Exited, Reaper, exit};

/// Soft limits of a slot, as Qinling's runtime sets them.
const RLIMITS: Rlimits = Rlimits { open_files: 1024, processes: 128, file_bytes: 524_288_000 };
/// How long a fork may take to report.
const FORK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long killed processes may take to disappear.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A process that waits for, or runs, an execution.
pub struct Process {
    pub pid: i32,
    pub channel: UnixStream,
    pub output: pipe::Receiver,
    pub exited: Exited,
    pub runs: u32,
    pub rest: Rest,
}

/// What the process was like before anything of the user's ran in it, and what it holds on to since.
#[derive(Debug, Default)]
pub struct Rest {
    habits: Habits,
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
}

impl Place {
    pub fn scratch(&self) -> PathBuf {
        PathBuf::from(format!("{SCRATCH_DIR}/{}", self.number))
    }

    /// Forks a process for this place and puts it under its limits.
    pub async fn start(&self, reaper: &Reaper, parent: &Parent) -> Result<Process, String> {
        let text = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let (ours, theirs) = parent::pair().map_err(text("a slot's channel"))?;
        let (output, output_end) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("a slot's output: {error}"))?;
        // So that the function may open /dev/stdout: only its own user gets there.
        nix::sys::stat::fchmod(&output_end, nix::sys::stat::Mode::from_bits_truncate(0o622))
            .map_err(|error| format!("a slot's output: {error}"))?;
        let mut channel = parent::stream(ours).map_err(text("a slot's channel"))?;
        let output = pipe::Receiver::from_owned_fd(output).map_err(text("a slot's output"))?;
        let fork = ToParent::Fork {
            slot: self.number,
            uid: self.uid,
            gid: self.uid,
            package: PACKAGE_DIR.to_owned(),
            scratch: self.scratch().display().to_string(),
            rlimits: RLIMITS,
        };
        parent.fork(&fork, [theirs, output_end]).await.map_err(text("the parent interpreter"))?;
        let ready = tokio::time::timeout(FORK_TIMEOUT, frame::read::<FromSlot>(&mut channel, MAX_FRAME))
            .await
            .map_err(|_| "a new slot did not report".to_owned())?
            .map_err(|error| format!("a new slot: {error}"))?;
        let FromSlot::Ready { pid } = ready else {
            return Err(format!("a new slot answered before it was asked: {ready:?}"));
        };
        let exited = reaper.watch(pid);
        self.group.admit(pid).map_err(text("a slot's control group"))?;
        let habits = habits(pid).map_err(text("a new slot"))?;
        let rest = Rest { habits, ..Rest::default() };
        Ok(Process { pid, channel, output, exited, runs: 0, rest })
    }

    /// Ends every process of the slot, and returns once none is left: its own, its children,
    /// daemons that left their session. Its files go later, with [`Place::clean`].
    pub async fn kill(&mut self, reaper: &Reaper) -> Result<(), String> {
        self.group.unthrottle();
        let deadline = tokio::time::Instant::now() + KILL_TIMEOUT;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Err(error) = helper::kill_user(reaper, self.uid).await {
                eprintln!("slot {}: {error}", self.number);
            }
            if self.group.tasks().map_err(|error| error.to_string())? == 0 {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("slot {} has processes that cannot be killed", self.number));
            }
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
        if group.tasks().ok() != Some(1) {
            return Err("left_processes");
        }
        if frame::has_unsolicited(&self.channel) {
            return Err("channel");
        }
        let Ok(habits) = habits(self.pid) else { return Err("ended") };
        if habits != self.rest.habits {
            return Err("changed_habits");
        }
        self.measure(group, mark)
    }

    fn measure(&mut self, group: &Group, mark: u64) -> Result<(), &'static str> {
        let resident = resident_bytes(self.pid).map_err(|_| "ended")?;
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

    /// Waits a moment for the end of a process that seems to be ending.
    pub async fn end_within(&mut self, wait: Duration) -> Option<Exit> {
        tokio::time::timeout(wait, exit(&mut self.exited)).await.ok()
    }
}

/// The lines of /proc that tell whether an execution changed what the next one finds.
fn habits(pid: i32) -> io::Result<Habits> {
    const KEPT: [&str; 10] =
        ["Umask", "Uid", "Gid", "Groups", "Threads", "SigBlk", "SigIgn", "SigCgt", "CapPrm", "Seccomp"];
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kept = |line: &&str| line.split(':').next().is_some_and(|key| KEPT.contains(&key));
    Ok(Habits {
        status: status.lines().filter(kept).map(str::to_owned).collect(),
        limits: fs::read_to_string(format!("/proc/{pid}/limits"))?,
    })
}

/// Bytes of memory that are the process's and not a file's.
fn resident_bytes(pid: i32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    Ok((kib("RssAnon:") + kib("RssShmem:")) << 10)
}
