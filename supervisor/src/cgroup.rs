//! The limits of slots: control groups below the subtree that the engine made for this worker.
//!
//! The files are root's, below a directory that only root can enter. Limits are written only when
//! they change: a warm execution writes none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use protocol::worker::Cgroup;

/// Period of the processor quota, in microseconds.
const PERIOD_US: u64 = 100_000;
/// What the kernel keeps for a process beside its pages: page tables, stacks, file tables.
const KERNEL_SLACK: u64 = 1 << 20;

#[derive(Debug)]
pub struct Group {
    version: Cgroup,
    memory: PathBuf,
    cpu: PathBuf,
    pids: PathBuf,
    max_processes: u32,
    applied: Option<Limits>,
    watched: Watched,
}

/// Files that are read for every execution, and therefore stay open.
#[derive(Debug)]
struct Watched {
    tasks: File,
    used: File,
    oom: File,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: u64,
    pub cpu_millis: u32,
}

impl Group {
    /// The group of one slot, made anew where it is missing.
    pub fn create(version: Cgroup, root: &Path, slot: u32, max_processes: u32) -> io::Result<Self> {
        let name = format!("slot{slot}");
        let at = |controller: &str| match version {
            Cgroup::V1 => root.join(controller).join(&name),
            Cgroup::V2 => root.join(&name),
        };
        let (memory, cpu, pids) = (at("memory"), at("cpu"), at("pids"));
        for directory in [&memory, &cpu, &pids] {
            match fs::create_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let (used, oom) = match version {
            Cgroup::V1 => ("memory.usage_in_bytes", "memory.oom_control"),
            Cgroup::V2 => ("memory.current", "memory.events"),
        };
        let watched = Watched {
            tasks: File::open(pids.join("pids.current"))?,
            used: File::open(memory.join(used))?,
            oom: File::open(memory.join(oom))?,
        };
        let group = Self { version, memory, cpu, pids, max_processes, applied: None, watched };
        write(&group.pids.join("pids.max"), max_processes)?;
        if version == Cgroup::V1 {
            // Without this the kernel would rather swap than kill, where there is swap.
            write(&group.memory.join("memory.swappiness"), 0)?;
        }
        Ok(group)
    }

    /// Sets the limits, where they differ from those in force.
    pub fn apply(&mut self, limits: Limits) -> io::Result<()> {
        let before = self.applied;
        if before == Some(limits) {
            return Ok(());
        }
        // Unknown until both are written.
        self.applied = None;
        if before.map(|before| before.memory_bytes) != Some(limits.memory_bytes) {
            self.limit_memory(limits.memory_bytes + KERNEL_SLACK)?;
        }
        if before.map(|before| before.cpu_millis) != Some(limits.cpu_millis) {
            self.limit_cpu(Some(limits.cpu_millis))?;
        }
        self.applied = Some(limits);
        Ok(())
    }

    /// Takes every limit on memory and processor away, for a program that starts in an empty group.
    pub fn lift(&mut self) -> io::Result<()> {
        self.applied = None;
        match self.version {
            Cgroup::V1 => {
                write_if_there(&self.memory.join("memory.memsw.limit_in_bytes"), -1)?;
                write(&self.memory.join("memory.limit_in_bytes"), -1)?;
            }
            Cgroup::V2 => write(&self.memory.join("memory.max"), "max")?,
        }
        self.limit_cpu(None)
    }

    /// Files through which a process enters the group by itself: it writes a 0 into each.
    pub fn entrances(&self) -> io::Result<Vec<File>> {
        let controllers: &[&PathBuf] = match self.version {
            Cgroup::V1 => &[&self.memory, &self.cpu, &self.pids],
            Cgroup::V2 => &[&self.memory],
        };
        let open = |group: &&PathBuf| fs::OpenOptions::new().write(true).open(group.join("cgroup.procs"));
        controllers.iter().map(open).collect()
    }

    /// Lets processes run freely, so that those that were killed can end.
    pub fn unthrottle(&mut self) {
        self.applied = None;
        // If it fails they end more slowly.
        let _ = self.limit_cpu(None);
    }

    fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        match self.version {
            Cgroup::V1 => {
                let memory = self.memory.join("memory.limit_in_bytes");
                let with_swap = self.memory.join("memory.memsw.limit_in_bytes");
                // The limit with swap may never be below the one without: raised first, lowered last.
                // A kernel without swap accounting has no such file, and then swappiness must do.
                if write_if_there(&with_swap, bytes).is_ok() {
                    write(&memory, bytes)
                } else {
                    write(&memory, bytes)?;
                    write_if_there(&with_swap, bytes)
                }
            }
            Cgroup::V2 => {
                write_if_there(&self.memory.join("memory.swap.max"), 0)?;
                self.make_room(bytes)?;
                write(&self.memory.join("memory.max"), bytes)
            }
        }
    }

    /// Fails where the group holds more than this and cannot let go of it, as version 1 does by itself:
    /// version 2 takes any limit and kills for it at once.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        if self.used_bytes()? <= bytes {
            return Ok(());
        }
        let high = self.memory.join("memory.high");
        // Takes back what can be taken back, such as caches of files, and kills nobody.
        write(&high, bytes)?;
        let left = self.used_bytes();
        write(&high, "max")?;
        if left? > bytes {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        Ok(())
    }

    fn limit_cpu(&self, millis: Option<u32>) -> io::Result<()> {
        let quota = millis.map(|millis| u64::from(millis) * PERIOD_US / 1000);
        match self.version {
            Cgroup::V1 => {
                write(&self.cpu.join("cpu.cfs_period_us"), PERIOD_US)?;
                let quota = quota.map_or("-1".to_owned(), |quota| quota.to_string());
                write(&self.cpu.join("cpu.cfs_quota_us"), quota)
            }
            Cgroup::V2 => {
                let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                write(&self.cpu.join("cpu.max"), format!("{quota} {PERIOD_US}"))
            }
        }
    }

    /// Moves a process, which has no thread or child yet, into the group.
    pub fn admit(&self, pid: i32) -> io::Result<()> {
        write(&self.memory.join("cgroup.procs"), pid)?;
        if self.version == Cgroup::V1 {
            write(&self.cpu.join("cgroup.procs"), pid)?;
            write(&self.pids.join("cgroup.procs"), pid)?;
        }
        Ok(())
    }

    /// Allows no more processes than there are, or as many as an execution may have again.
    pub fn allow_forks(&self, allowed: bool) -> io::Result<()> {
        write(&self.pids.join("pids.max"), if allowed { self.max_processes } else { 0 })
    }

    /// Processes in the group, as this container numbers them.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let text = fs::read_to_string(self.pids.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Processes and threads in the group, zombies included.
    pub fn tasks(&self) -> io::Result<u64> {
        number(&self.watched.tasks)
    }

    /// Bytes charged to the group, caches of files included.
    pub fn used_bytes(&self) -> io::Result<u64> {
        number(&self.watched.used)
    }

    /// Bytes of files in memory that are charged to the group.
    pub fn shared_bytes(&self) -> io::Result<u64> {
        let stat = fs::read_to_string(self.memory.join("memory.stat"))?;
        Ok(field(&stat, "shmem").unwrap_or(0))
    }

    /// How often the kernel killed a process of the group for want of memory.
    pub fn oom_kills(&self) -> io::Result<u64> {
        Ok(field(&reread(&self.watched.oom)?, "oom_kill").unwrap_or(0))
    }
}

/// Reads a small file of the kernel's anew: at its beginning it is written afresh.
pub fn reread(file: &File) -> io::Result<String> {
    let mut buffer = [0; 4096];
    let read = file.read_at(&mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

fn number(file: &File) -> io::Result<u64> {
    let text = reread(file)?;
    text.trim().parse().map_err(|_| io::Error::other(format!("'{}' is no number", text.trim())))
}

fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn write(path: &Path, value: impl ToString) -> io::Result<()> {
    // Never created: a file that is missing is a controller that is missing.
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.to_string().as_bytes()))
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn write_if_there(path: &Path, value: impl ToString) -> io::Result<()> {
    match write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
