//! The control groups of workers: one subtree each, which its supervisor divides among the slots.
//!
//! `<mount>/taibai/<deployment>/<worker>`, once per controller with version 1, once with version 2.
//! Blocking, and fast: a control group costs a tenth of a millisecond.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::worker::{CGROUP_DIR, Cgroup};

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// How long the kernel may take to let go of a group whose processes were killed.
const REMOVAL: Duration = Duration::from_secs(5);

/// Where this machine's control groups are, and which part is the deployment's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    version: Cgroup,
    /// One for each of [`CONTROLLERS`] with version 1; the same one may be there twice. One with 2.
    mounts: Vec<PathBuf>,
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
                let mounts = vec![mounted.at.into()];
                return Ok(Self { version: Cgroup::V2, mounts, deployment: deployment.to_owned() });
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
        let mounts = CONTROLLERS.into_iter().map(find).collect::<io::Result<_>>()?;
        Ok(Self { version: Cgroup::V1, mounts, deployment: deployment.to_owned() })
    }

    pub fn version(&self) -> Cgroup {
        self.version
    }

    /// What a worker's container needs mounted to divide its subtree.
    pub fn binds(&self, worker: &str) -> Vec<Bind> {
        let subtrees = self.mounts.iter().map(|mount| self.subtree(mount, worker));
        match self.version {
            Cgroup::V1 => subtrees
                .zip(CONTROLLERS)
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

    /// Kills what is left in a worker's subtrees and removes them. May be called again.
    pub fn remove(&self, worker: &str) -> io::Result<()> {
        let until = Instant::now() + REMOVAL;
        for mount in &self.mounts {
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
    kind: &'a str,
    /// Of the filesystem, where version 1 names its controllers.
    options: &'a str,
}

impl<'a> Mounted<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let at = mount.split(' ').nth(4)?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let options = filesystem.nth(1)?;
        Some(Self { at, kind, options })
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
