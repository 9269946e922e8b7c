//! The control groups of workers: one subtree each, which its supervisor divides among the slots.
//!
//! `<mount>/taibai/<deployment>/<worker>`, once per controller with version 1, once with version 2.
//! Blocking, and fast: a control group costs a tenth of a millisecond.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::worker::{CGROUP_DIR, Cgroup};

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// Where version 1 counts processor time; often the hierarchy of `cpu`.
const COUNTER: &str = "cpuacct";

/// How long the kernel may take to let go of a group whose processes were killed.
const REMOVAL: Duration = Duration::from_secs(5);

/// Where this machine's control groups are, and which part is the deployment's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    version: Cgroup,
    /// One for each of [`CONTROLLERS`] with version 1, where the same one may be there twice, and one for
    /// [`COUNTER`] where that is a hierarchy of its own. One with 2.
    mounts: Vec<PathBuf>,
    /// Every hierarchy of this machine: Docker makes groups in all of them.
    all: Vec<PathBuf>,
    /// Whether the mounts show the hierarchies from their roots, as Docker names groups.
    whole: bool,
    deployment: String,
}

/// A directory of the host and where it goes in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub source: PathBuf,
    pub target: String,
}

impl Cgroups {
    pub fn detect(deployment: &str) -> io::Result<Self> {
        Self::from_mounts(&fs::read_to_string("/proc/self/mountinfo")?, deployment)
    }

    /// Version 2 counts only where it holds the controllers; systems with both keep them in version 1.
    fn from_mounts(mountinfo: &str, deployment: &str) -> io::Result<Self> {
        let mounts: Vec<Mounted<'_>> = mountinfo.lines().filter_map(Mounted::parse).collect();

        for mounted in mounts.iter().filter(|mounted| mounted.kind == "cgroup2") {
            let held = fs::read_to_string(Path::new(mounted.at).join("cgroup.controllers"))?;
            if CONTROLLERS.iter().all(|wanted| held.split_whitespace().any(|one| one == *wanted)) {
                let mounts = vec![PathBuf::from(mounted.at)];
                let (all, whole) = (mounts.clone(), mounted.root == "/");
                let deployment = deployment.to_owned();
                return Ok(Self { version: Cgroup::V2, mounts, all, whole, deployment });
            }
        }

        let find = |wanted: &str| {
            mounts
                .iter()
                .filter(|mounted| mounted.kind == "cgroup")
                .find(|mounted| mounted.options.split(',').any(|option| option == wanted))
                .map(|mounted| PathBuf::from(mounted.at))
                .ok_or_else(|| {
                    io::Error::new(io::ErrorKind::NotFound, format!("no control groups for {wanted}"))
                })
        };
        let mut held = CONTROLLERS.into_iter().map(find).collect::<io::Result<Vec<_>>>()?;
        held.extend(find(COUNTER).ok().filter(|counter| !held.contains(counter)));
        // The second version as well, which is there beside the first on many machines.
        let hierarchies = || mounts.iter().filter(|mounted| matches!(mounted.kind, "cgroup" | "cgroup2"));
        Ok(Self {
            version: Cgroup::V1,
            mounts: held,
            all: hierarchies().map(|mounted| mounted.at.into()).collect(),
            whole: hierarchies().all(|mounted| mounted.root == "/"),
            deployment: deployment.to_owned(),
        })
    }

    pub fn version(&self) -> Cgroup {
        self.version
    }

    /// What a worker's container needs mounted to divide its subtree.
    pub fn binds(&self, worker: &str) -> Vec<Bind> {
        let subtrees = self.mounts.iter().map(|mount| self.subtree(mount, worker));
        match self.version {
            Cgroup::V1 => subtrees
                .zip(CONTROLLERS.into_iter().chain([COUNTER]))
                .map(|(source, controller)| Bind { source, target: format!("{CGROUP_DIR}/{controller}") })
                .collect(),
            Cgroup::V2 => subtrees.map(|source| Bind { source, target: CGROUP_DIR.to_owned() }).collect(),
        }
    }

    /// Creates a worker's subtrees; those that are there already stay.
    pub fn create(&self, worker: &str) -> io::Result<()> {
        for mount in &self.mounts {
            let subtree = self.subtree(mount, worker);
            fs::create_dir_all(&subtree)?;
            if self.version == Cgroup::V2 {
                // A group's children have the controllers that the group itself hands down.
                let inner = subtree.ancestors().take_while(|group| group.starts_with(mount));
                for group in inner.collect::<Vec<_>>().into_iter().rev() {
                    fs::write(group.join("cgroup.subtree_control"), "+memory +cpu +pids")?;
                }
            }
        }
        Ok(())
    }

    /// The group in which Docker is to make that of a container, so that what the container took can be
    /// read when it and its group are gone. `None` where Docker and this process name groups differently.
    pub fn create_around(&self, run: &str) -> io::Result<Option<String>> {
        if !self.whole {
            return Ok(None);
        }
        self.create(run)?;
        Ok(Some(format!("/taibai/{}/{run}", self.deployment)))
    }

    /// What the processes of a container took: microseconds of processor time and the most bytes of memory
    /// at once, where there is such a group and the kernel counts it.
    pub fn taken_by(&self, run: &str) -> (Option<u64>, Option<u64>) {
        let read = |mount: &Path, file: &str| fs::read_to_string(self.subtree(mount, run).join(file)).ok();
        let number = |text: String| text.trim().parse::<u64>().ok().filter(|number| *number > 0);
        match self.version {
            Cgroup::V1 => {
                // The counter, or the processor's hierarchy where they are one.
                let counter = self.mounts.get(3).unwrap_or(&self.mounts[1]);
                let nanoseconds = read(counter, "cpuacct.usage").and_then(number);
                let peak = read(&self.mounts[0], "memory.max_usage_in_bytes").and_then(number);
                (nanoseconds.map(|time| time / 1000), peak)
            }
            Cgroup::V2 => {
                let stat = read(&self.mounts[0], "cpu.stat").unwrap_or_default();
                let time = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
                (time, read(&self.mounts[0], "memory.peak").and_then(number))
            }
        }
    }

    /// Removes the groups around containers that are not among these: a crash came between.
    pub fn sweep_around(&self, runs: &HashSet<String>) -> io::Result<()> {
        let left = match fs::read_dir(self.mounts[0].join("taibai").join(&self.deployment)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            left => left?,
        };
        for entry in left {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("run-") && !runs.contains(&name) {
                self.remove_around(&name)?;
            }
        }
        Ok(())
    }

    /// Removes the group around a container that is gone, wherever Docker made one. May be called again.
    pub fn remove_around(&self, run: &str) -> io::Result<()> {
        self.remove_from(&self.all, run)
    }

    /// Kills what is left in a worker's subtrees and removes them. May be called again.
    pub fn remove(&self, worker: &str) -> io::Result<()> {
        self.remove_from(&self.mounts, worker)
    }

    fn remove_from(&self, mounts: &[PathBuf], worker: &str) -> io::Result<()> {
        let until = Instant::now() + REMOVAL;
        for mount in mounts {
            let subtree = self.subtree(mount, worker);
            while let Err(error) = remove_tree(&subtree) {
                if Instant::now() >= until {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    fn subtree(&self, mount: &Path, worker: &str) -> PathBuf {
        mount.join("taibai").join(&self.deployment).join(worker)
    }
}

/// Removes the group and those below it, once. `Ok` where there is none.
fn remove_tree(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    // By number, one after another: nothing is expected here once the container is gone, since its
    // processes end with its first one.
    for pid in processes(group)? {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn processes(group: &Path) -> io::Result<Vec<i32>> {
    match fs::read_to_string(group.join("cgroup.procs")) {
        // 0 stands for a process of another namespace, and to `kill` for ourselves.
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        // A group that is being removed.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// One line of /proc/self/mountinfo.
struct Mounted<'a> {
    at: &'a str,
    /// What of the filesystem is there.
    root: &'a str,
    kind: &'a str,
    /// Of the filesystem, where version 1 names its controllers.
    options: &'a str,
}

impl<'a> Mounted<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut places = mount.split(' ').skip(3);
        let (root, at) = (places.next()?, places.next()?);
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let options = filesystem.nth(1)?;
        Some(Self { at, root, kind, options })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;

    fn line(at: &Path, kind: &str, options: &str) -> String {
        format!("32 31 0:29 / {} rw,relatime shared:9 - {kind} {kind} rw,{options}\n", at.display())
    }

    /// A machine of today: one hierarchy that holds every controller.
    fn v2(dir: &Path) -> Cgroups {
        fs::write(dir.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        Cgroups::from_mounts(&line(dir, "cgroup2", "nsdelegate"), "demo").unwrap()
    }

    /// A machine of yesterday, with an empty second version beside the first.
    fn v1(dir: &Path) -> Cgroups {
        let at = |name: &str| {
            let path = dir.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        fs::write(at("unified").join("cgroup.controllers"), "\n").unwrap();
        let mountinfo = [
            "22 27 0:21 / /proc rw,relatime - proc proc rw\n".to_owned(),
            line(&at("unified"), "cgroup2", "nsdelegate"),
            line(&at("cpu,cpuacct"), "cgroup", "cpu,cpuacct"),
            line(&at("cpuset"), "cgroup", "cpuset"),
            line(&at("memory"), "cgroup", "memory"),
            line(&at("pids"), "cgroup", "pids"),
        ];
        Cgroups::from_mounts(&mountinfo.concat(), "demo").unwrap()
    }

    #[test]
    fn version_one_is_found_where_its_controllers_are_mounted() {
        let dir = TempDir::new().unwrap();
        let cgroups = v1(dir.path());

        assert_eq!(cgroups.version(), Cgroup::V1);
        let at = |controller: &str| dir.path().join(controller).join("taibai/demo/w1");
        let target = |controller: &str| format!("{CGROUP_DIR}/{controller}");
        assert_eq!(
            cgroups.binds("w1"),
            [
                Bind { source: at("memory"), target: target("memory") },
                Bind { source: at("cpu,cpuacct"), target: target("cpu") },
                Bind { source: at("pids"), target: target("pids") },
            ]
        );
    }

    #[test]
    fn version_two_is_found_by_the_controllers_that_it_holds() {
        let dir = TempDir::new().unwrap();
        let cgroups = v2(dir.path());

        assert_eq!(cgroups.version(), Cgroup::V2);
        let source = dir.path().join("taibai/demo/w1");
        assert_eq!(cgroups.binds("w1"), [Bind { source, target: CGROUP_DIR.to_owned() }]);
    }

    #[test]
    fn a_machine_without_a_controller_is_refused_by_its_name() {
        let dir = TempDir::new().unwrap();
        let mountinfo = line(dir.path(), "cgroup", "memory") + &line(dir.path(), "cgroup", "cpu");

        let error = Cgroups::from_mounts(&mountinfo, "demo").unwrap_err();

        assert!(error.to_string().contains("pids"), "{error}");
    }

    #[test]
    fn version_two_hands_its_controllers_down_to_the_worker() {
        let dir = TempDir::new().unwrap();
        v2(dir.path()).create("w1").unwrap();

        for group in ["", "taibai", "taibai/demo", "taibai/demo/w1"] {
            let control = fs::read_to_string(dir.path().join(group).join("cgroup.subtree_control"));
            assert_eq!(control.unwrap(), "+memory +cpu +pids", "{group}");
        }
    }

    #[test]
    fn with_version_two_no_process_is_put_into_a_group_that_hands_controllers_down() {
        let dir = TempDir::new().unwrap();
        let cgroups = v2(dir.path());
        cgroups.create("w1").unwrap();
        assert_eq!(cgroups.create_around("run-e-1").unwrap().unwrap(), "/taibai/demo/run-e-1");
        for group in ["", "taibai", "taibai/demo", "taibai/demo/w1", "taibai/demo/run-e-1"] {
            assert!(!dir.path().join(group).join("cgroup.procs").exists(), "{group}");
            assert!(dir.path().join(group).join("cgroup.subtree_control").exists(), "{group}");
        }
    }

    #[test]
    fn what_a_container_took_is_read_from_the_group_around_it() {
        let dir = TempDir::new().unwrap();
        let cgroups = v2(dir.path());
        cgroups.create_around("run").unwrap();
        assert_eq!(cgroups.taken_by("run"), (None, None));
        let group = dir.path().join("taibai/demo/run");
        fs::write(group.join("cpu.stat"), "usage_usec 12\nuser_usec 7\n").unwrap();
        fs::write(group.join("memory.peak"), "4096\n").unwrap();
        assert_eq!(cgroups.taken_by("run"), (Some(12), Some(4096)));

        let dir = TempDir::new().unwrap();
        let cgroups = v1(dir.path());
        cgroups.create_around("run").unwrap();
        let group = |hierarchy: &str| dir.path().join(hierarchy).join("taibai/demo/run");
        fs::write(group("cpu,cpuacct").join("cpuacct.usage"), "12999\n").unwrap();
        fs::write(group("memory").join("memory.max_usage_in_bytes"), "4096\n").unwrap();
        assert_eq!(cgroups.taken_by("run"), (Some(12), Some(4096)));
    }

    #[test]
    fn processor_time_is_counted_by_a_hierarchy_of_its_own_where_there_is_one() {
        let dir = TempDir::new().unwrap();
        let mountinfo: String = ["memory", "cpu", "pids", "cpuacct"]
            .map(|name| line(&dir.path().join(name), "cgroup", name))
            .concat();
        let cgroups = Cgroups::from_mounts(&mountinfo, "demo").unwrap();
        let targets: Vec<String> = cgroups.binds("w1").into_iter().map(|bind| bind.target).collect();
        assert_eq!(targets, ["memory", "cpu", "pids", "cpuacct"].map(|name| format!("{CGROUP_DIR}/{name}")));
        // Docker makes groups in every hierarchy, and all of them are removed.
        cgroups.create_around("run").unwrap();
        cgroups.remove_around("run").unwrap();
        assert!(!dir.path().join("cpuacct/taibai/demo/run").exists());
        for run in ["run-a-1", "run-b-1", "w1"] {
            cgroups.create_around(run).unwrap();
        }
        cgroups.sweep_around(&HashSet::from(["run-b-1".to_owned()])).unwrap();
        let group = |name: &str| dir.path().join("memory/taibai/demo").join(name);
        assert!(!group("run-a-1").exists() && group("run-b-1").exists() && group("w1").exists());
    }

    #[test]
    fn where_this_process_sees_a_part_of_the_hierarchies_docker_is_told_of_none() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let mountinfo = line(dir.path(), "cgroup2", "nsdelegate").replacen(" / ", " /docker/x ", 1);
        let cgroups = Cgroups::from_mounts(&mountinfo, "demo").unwrap();
        assert_eq!(cgroups.create_around("run").unwrap(), None);
    }

    #[test]
    fn version_one_needs_directories_only() {
        let dir = TempDir::new().unwrap();
        let cgroups = v1(dir.path());
        cgroups.create("w1").unwrap();
        cgroups.create("w1").unwrap();

        for bind in cgroups.binds("w1") {
            assert_eq!(fs::read_dir(bind.source).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_subtree_is_removed_from_the_bottom_and_its_neighbours_stay() {
        let dir = TempDir::new().unwrap();
        let cgroups = v1(dir.path());
        cgroups.create("w1").unwrap();
        cgroups.create("w2").unwrap();
        for bind in cgroups.binds("w1") {
            fs::create_dir_all(bind.source.join("slot-0/inner")).unwrap();
        }

        cgroups.remove("w1").unwrap();
        cgroups.remove("w1").unwrap();

        assert!(cgroups.binds("w1").iter().all(|bind| !bind.source.exists()));
        assert!(cgroups.binds("w2").iter().all(|bind| bind.source.exists()));
    }

    #[test]
    fn what_still_runs_in_a_subtree_is_killed() {
        let dir = TempDir::new().unwrap();
        let group = dir.path().join("group");
        fs::create_dir(&group).unwrap();
        let mut left = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(group.join("cgroup.procs"), format!("0\n{}\n", left.id())).unwrap();

        // An ordinary directory with a file in it cannot be removed as a control group can.
        remove_tree(&group).unwrap_err();

        assert!(!left.wait().unwrap().success());
    }
}
