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
    /// Of version 1, where processor time is counted by a hierarchy of its own.
    cpuacct: Option<PathBuf>,
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
    /// Processor time; none where an engine of before made the subtree.
    cpu: Option<File>,
    /// The most memory so far, where the kernel lets it be counted anew.
    peak: Option<File>,
    /// How often a process or thread was refused.
    refused: Option<File>,
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
        let cpuacct = at("cpuacct");
        let counts_apart = version == Cgroup::V1 && root.join("cpuacct").is_dir();
        if counts_apart
            && let Err(error) = fs::create_dir(&cpuacct)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        let cpuacct = counts_apart.then_some(cpuacct);
        let (used, oom, peak) = match version {
            Cgroup::V1 => ("memory.usage_in_bytes", "memory.oom_control", "memory.max_usage_in_bytes"),
            Cgroup::V2 => ("memory.current", "memory.events", "memory.peak"),
        };
        let time = match version {
            // In the hierarchy of its own, or in that of the limits where they are one.
            Cgroup::V1 => cpuacct.as_ref().unwrap_or(&cpu).join("cpuacct.usage"),
            Cgroup::V2 => cpu.join("cpu.stat"),
        };
        let watched = Watched {
            tasks: File::open(pids.join("pids.current"))?,
            used: File::open(memory.join(used))?,
            oom: File::open(memory.join(oom))?,
            cpu: File::open(time).ok(),
            // Version 2 counts anew for the descriptor that was written to, from Linux 6.12 on.
            peak: fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(memory.join(peak))
                .ok()
                .filter(|file| file.write_at(b"0", 0).is_ok()),
            refused: File::open(pids.join("pids.events")).ok(),
        };
        let group = Self { version, memory, cpu, pids, cpuacct, max_processes, applied: None, watched };
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
        let open = |group: &PathBuf| fs::OpenOptions::new().write(true).open(group.join("cgroup.procs"));
        self.hierarchies().map(open).collect()
    }

    /// The group in each hierarchy that it is in.
    fn hierarchies(&self) -> impl Iterator<Item = &PathBuf> {
        let others = match self.version {
            Cgroup::V1 => [Some(&self.cpu), Some(&self.pids), self.cpuacct.as_ref()],
            Cgroup::V2 => [None; 3],
        };
        [&self.memory].into_iter().chain(others.into_iter().flatten())
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
        self.hierarchies().try_for_each(|group| write(&group.join("cgroup.procs"), pid))
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

    /// Processor time of the group since it was made, in microseconds.
    pub fn cpu_us(&self) -> Option<u64> {
        let file = self.watched.cpu.as_ref()?;
        match self.version {
            Cgroup::V1 => number(file).ok().map(|nanoseconds| nanoseconds / 1000),
            Cgroup::V2 => field(&reread(file).ok()?, "usage_usec"),
        }
    }

    /// The most bytes that were charged to the group since [`Group::count_anew`].
    pub fn peak_bytes(&self) -> Option<u64> {
        number(self.watched.peak.as_ref()?).ok()
    }

    /// Has the kernel forget how much memory the group had at most.
    pub fn count_anew(&self) {
        if let Some(peak) = &self.watched.peak {
            // It did when the group was made.
            let _ = peak.write_at(b"0", 0);
        }
    }

    /// How often the kernel refused the group a process or a thread.
    pub fn refusals(&self) -> u64 {
        let text = self.watched.refused.as_ref().and_then(|file| reread(file).ok());
        text.and_then(|text| field(&text, "max")).unwrap_or(0)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tempfile::TempDir;

    use super::*;

    /// The files that a kernel of version 2 would put into a new group, and nothing around it.
    fn v2() -> TempDir {
        let root = TempDir::new().unwrap();
        let slot = root.path().join("slot0");
        fs::create_dir(&slot).unwrap();
        for (name, text) in [
            ("cgroup.procs", ""),
            ("memory.max", ""),
            ("memory.swap.max", ""),
            ("memory.high", ""),
            ("memory.current", "1048576\n"),
            ("memory.peak", "9437184\n"),
            ("memory.stat", "anon 1\nshmem 4096\n"),
            ("memory.events", "low 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n"),
            ("cpu.max", ""),
            ("cpu.stat", "usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n"),
            ("pids.max", ""),
            ("pids.current", "5\n"),
            ("pids.events", "max 7\n"),
        ] {
            fs::write(slot.join(name), text).unwrap();
        }
        root
    }

    /// What was written into the files since they were last looked at.
    fn written(root: &TempDir) -> BTreeMap<String, String> {
        const WRITTEN: [&str; 6] =
            ["cgroup.procs", "memory.max", "memory.swap.max", "memory.high", "cpu.max", "pids.max"];
        let files = WRITTEN.map(|name| (name.to_owned(), root.path().join("slot0").join(name)));
        let found = files.into_iter().map(|(name, path)| {
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, "").unwrap();
            (name, text)
        });
        found.filter(|(_, text)| !text.is_empty()).collect()
    }

    fn texts<const N: usize>(of: [(&str, &str); N]) -> BTreeMap<String, String> {
        of.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
    }

    fn group(root: &TempDir) -> Group {
        Group::create(Cgroup::V2, root.path(), 0, 128).unwrap()
    }

    #[test]
    fn version_two_takes_every_limit_in_the_slots_own_group() {
        let root = v2();
        let mut group = group(&root);
        assert_eq!(written(&root), texts([("pids.max", "128")]));
        let limits = Limits { memory_bytes: 32 << 20, cpu_millis: 100 };
        group.apply(limits).unwrap();
        let applied = [("memory.max", "34603008"), ("memory.swap.max", "0"), ("cpu.max", "10000 100000")];
        assert_eq!(written(&root), texts(applied));
        group.apply(limits).unwrap();
        assert_eq!(written(&root), texts([]), "a warm execution writes nothing");
        group.apply(Limits { cpu_millis: 8000, ..limits }).unwrap();
        assert_eq!(written(&root), texts([("cpu.max", "800000 100000")]));
        group.lift().unwrap();
        assert_eq!(written(&root), texts([("memory.max", "max"), ("cpu.max", "max 100000")]));
        group.allow_forks(false).unwrap();
        assert_eq!(written(&root), texts([("pids.max", "0")]));
    }

    #[test]
    fn version_two_refuses_a_limit_below_what_is_held_instead_of_killing_for_it() {
        let root = v2();
        let mut group = group(&root);
        fs::write(root.path().join("slot0/memory.current"), "99999999\n").unwrap();
        written(&root);
        let error = group.apply(Limits { memory_bytes: 32 << 20, cpu_millis: 100 }).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        let written = written(&root);
        assert_eq!(written.get("memory.max"), None, "{written:?}");
        // The last word is that of the two that came into one file here.
        assert!(written["memory.high"].starts_with("max"), "{written:?}");
    }

    #[test]
    fn with_version_two_processes_enter_the_slots_group_and_none_above_it() {
        let root = v2();
        let group = group(&root);
        group.admit(77).unwrap();
        assert_eq!(written(&root)["cgroup.procs"], "77");
        for mut entrance in group.entrances().unwrap() {
            entrance.write_all(b"0").unwrap();
        }
        assert_eq!(written(&root), texts([("cgroup.procs", "0")]), "one hierarchy, so one entrance");
        // What hands controllers down may have no process, and here it would even have been a new file.
        let above: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(above, ["slot0"]);
    }

    #[test]
    fn version_two_tells_what_an_execution_took() {
        let root = v2();
        let group = group(&root);
        assert_eq!((group.tasks().unwrap(), group.used_bytes().unwrap()), (5, 1 << 20));
        assert_eq!((group.oom_kills().unwrap(), group.shared_bytes().unwrap()), (2, 4096));
        assert_eq!((group.cpu_us(), group.refusals()), (Some(1234), 7));
        assert!(group.peak_bytes().is_some());
        // Before Linux 6.12 nobody may write to it, and earlier still there is no such file.
        fs::remove_file(root.path().join("slot0/memory.peak")).unwrap();
        fs::create_dir(root.path().join("slot0/memory.peak")).unwrap();
        let group = self::group(&root);
        assert_eq!(group.peak_bytes(), None);
        group.count_anew();
    }
}
