//! The Docker driver: what it promises, seen through Docker's own client and /proc.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use prometheus::IntCounterVec;
use taibai::config;
use taibai::model::WorkerName;
use taibai::orchestrator::{
    Docker, Error, Network, Orchestrator, SHIM_LABEL, SlotLimits, WorkerSpec, call_counter,
};
use tempfile::TempDir;

const WORK_BYTES: u64 = 48 << 20;

/// A deployment of a test's own, with an image that it made itself.
struct Machine {
    dir: TempDir,
    deployment: String,
    calls: IntCounterVec,
    docker: Docker,
    /// Tags to be removed.
    images: std::sync::Mutex<Vec<String>>,
}

impl Machine {
    async fn start() -> Self {
        let dir = TempDir::new().expect("a directory");
        let deployment = format!("test{}", &WorkerName::random().as_str()[..8]);
        let calls = call_counter();
        let docker = connect(&dir, &deployment, &calls).await;
        Self { dir, deployment, calls, docker, images: Default::default() }
    }

    /// What another process of the same deployment would have.
    async fn restart(&self) -> Docker {
        connect(&self.dir, &self.deployment, &self.calls).await
    }

    /// Makes an image of the stand-in program alone.
    fn image(&self, changes: &[&str]) -> String {
        let mut images = self.images.lock().unwrap();
        let tag = format!("taibai-{}:{}", self.deployment, images.len());
        let tar = self.dir.path().join("image.tar");
        let program = stand_in();
        let at = [program.parent(), program.file_name().map(Path::new)].map(Option::unwrap);
        run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").args(at));
        let changes = changes.iter().flat_map(|change| ["--change", change]);
        run(Command::new("docker").arg("import").args(changes).arg(&tar).arg(&tag));
        images.push(tag.clone());
        tag
    }

    async fn spec(&self, index: u32) -> WorkerSpec {
        let label = format!("LABEL {SHIM_LABEL}={}", protocol::VERSION);
        let tag = self.image(&[&label, r#"CMD ["the-shim"]"#]);
        let image = self.docker.inspect_image(&tag).await.unwrap();
        WorkerSpec {
            name: WorkerName::random(),
            index,
            runtime: "runtime-1".into(),
            image_id: image.id,
            shim: image.shim,
            slots: 2,
            network: Network::None,
            limits: SlotLimits { max_processes: 32, max_executions_per_slot: 10, memory_mark: 1 << 20 },
        }
    }

    fn calls(&self, call: &str) -> u64 {
        self.calls.with_label_values(&[call]).get()
    }

    /// Everything on this machine that bears a worker's name.
    fn remains(&self, name: &WorkerName) -> Vec<String> {
        let name = name.as_str();
        let filter = format!("name={name}");
        let mut left = Vec::new();
        let containers = run(Command::new("docker").args(["ps", "-aq", "--filter", &filter]));
        left.extend(containers.lines().map(|id| format!("container {id}")));
        for (what, table) in [("mount", "/proc/self/mountinfo".into()), ("loop device", loops())] {
            let table: String = if what == "mount" { read(Path::new(&table)) } else { table };
            left.extend(
                table.lines().filter(|line| line.contains(name)).map(|line| format!("{what} {line}")),
            );
        }
        let groups = find(Path::new("/sys/fs/cgroup"), name);
        let files = find(self.dir.path(), name);
        left.extend(groups.into_iter().chain(files));
        left
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let filter = format!("label=org.openstack.taibai.deployment={}", self.deployment);
        let ids = run(Command::new("docker").args(["ps", "-aq", "--filter", &filter]));
        if !ids.is_empty() {
            run(Command::new("docker").args(["rm", "-f"]).args(ids.lines()));
        }
        for line in read(Path::new("/proc/self/mountinfo")).lines() {
            let at = line.split(' ').nth(4).unwrap();
            if Path::new(at).starts_with(self.dir.path()) {
                run(Command::new("umount").args(["-l", at]));
            }
        }
        for group in find(Path::new("/sys/fs/cgroup"), &self.deployment) {
            // Deepest first; control groups have no files to be removed.
            run(Command::new("find").args([&group, "-depth", "-type", "d", "-delete"]));
        }
        for tag in self.images.get_mut().unwrap() {
            run(Command::new("docker").args(["rmi", tag]));
        }
    }
}

async fn connect(dir: &TempDir, deployment: &str, calls: &IntCounterVec) -> Docker {
    let config = config::Docker {
        deployment: deployment.to_owned(),
        worker_dir: dir.path().join("run"),
        work_dir: dir.path().join("work"),
        work_bytes: WORK_BYTES,
        supervisor: stand_in().to_owned(),
        ..Default::default()
    };
    let connected = Docker::connect(&config, calls.clone()).await;
    connected
        .unwrap_or_else(|error| panic!("run `systemctl start docker` (apt install docker.io): {error:?}"))
}

fn stand_in() -> &'static Path {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = BUILT.get_or_init(|| {
        let dir = TempDir::new().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = dir.path().join("stand-in");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/driver/stand_in.c");
        run(Command::new("gcc").args(["-static", "-O1", "-o"]).arg(&program).arg(source));
        (dir, program)
    });
    program
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output =
        output.unwrap_or_else(|error| panic!("apt install docker.io gcc libc6-dev: {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn loops() -> String {
    run(Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]))
}

fn find(root: &Path, name: &str) -> Vec<String> {
    // A directory that goes away meanwhile makes `find` fail, and is no find of ours.
    let found = Command::new("find").arg(root).args(["-name", name]).output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}

fn inspect(container: &str, format: &str) -> String {
    run(Command::new("docker").args(["inspect", "--format", format, container]))
}

async fn eventually<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the stand-in wrote beside its socket, as words.
async fn report(socket: &Path, file: &str, lines: usize) -> Vec<(String, String)> {
    let path = socket.with_file_name(file);
    eventually(&format!("no {file}"), || {
        let text = fs::read_to_string(&path).ok()?;
        let read: Vec<_> = text
            .lines()
            .map(|line| line.split_once(' ').unwrap_or((line, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        (read.len() >= lines).then_some(read)
    })
    .await
}

fn value<'a>(report: &'a [(String, String)], key: &str) -> &'a str {
    let found = report.iter().find(|(one, _)| one == key);
    found.map(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("no {key} in {report:?}"))
}

#[tokio::test]
async fn what_holds_a_worker_in_is_in_force() {
    let machine = Machine::start().await;
    let spec = machine.spec(3).await;
    let started = machine.docker.start(&spec).await.unwrap();
    let report = report(&started.socket, "report", 7).await;
    let id = started.container_id.as_str();

    assert_eq!(value(&report, "shim"), "the-shim");
    assert_eq!(value(&report, "pid"), "1");
    assert_eq!(value(&report, "root"), libc::EROFS.to_string());
    assert_eq!(value(&report, "supervisor"), libc::EROFS.to_string());
    assert_eq!(value(&report, "tmp"), "0");
    assert_eq!(value(&report, "raw_socket"), libc::EPERM.to_string());

    let pid = inspect(id, "{{.State.Pid}}");
    let status = read(Path::new(&format!("/proc/{pid}/status")));
    let field = |name: &str| {
        let line = status.lines().find(|line| line.split(':').next() == Some(name));
        line.unwrap().split_once(':').unwrap().1.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    // KILL, SETGID and SETUID are numbers 5, 6 and 7.
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(field(set), "00000000000000e0", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("Uid"), "0 0 0 0");
    let limits = read(Path::new(&format!("/proc/{pid}/limits")));
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
    let network = read(Path::new(&format!("/proc/{pid}/net/dev")));
    assert!(network.lines().skip(2).all(|line| line.trim_start().starts_with("lo:")), "{network}");

    let mounts = read(Path::new(&format!("/proc/{pid}/mountinfo")));
    let options = |at: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(at));
        line.unwrap_or_else(|| panic!("{at} is not mounted: {mounts}")).to_owned()
    };
    assert!(options("/").split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"));
    for at in ["/tmp", "/taibai/private", "/taibai/work"] {
        let line = options(at);
        assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    }
    assert!(options("/taibai/private").contains("size=1024k,mode=700"), "{}", options("/taibai/private"));
    assert!(!mounts.contains("docker.sock"));

    for (format, wanted) in [
        ("{{.HostConfig.PidsLimit}}", "128"),
        ("{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}}", "268435456 268435456"),
        ("{{.HostConfig.LogConfig.Type}} {{.HostConfig.RestartPolicy.Name}}", "none no"),
        ("{{.HostConfig.IpcMode}} {{.HostConfig.NetworkMode}}", "private none"),
        ("{{.Config.NetworkDisabled}} {{.Config.Hostname}}", "true worker"),
        ("{{len .Config.Env}}", "1"),
    ] {
        assert_eq!(inspect(id, format), wanted, "{format}");
    }
    let env = inspect(id, "{{index .Config.Env 0}}");
    assert!(env.starts_with("TAIBAI_SETTINGS={"), "{env}");
    machine.docker.stop(&spec.name).await.unwrap();
}

#[tokio::test]
async fn the_supervisor_divides_its_control_groups_and_slots_are_kept_apart() {
    let machine = Machine::start().await;
    let spec = machine.spec(5).await;
    let started = machine.docker.start(&spec).await.unwrap();
    let report1 = report(&started.socket, "report", 7).await;
    let moves = &report1[6..];
    assert!(!moves.is_empty() && moves.iter().all(|(_, result)| result == "0"), "{report1:?}");

    let filled = report(&started.socket, "fill", 5).await;

    assert_eq!(value(&filled, "own_scratch"), "0");
    let written: u64 = value(&filled, "written").parse().unwrap();
    assert!((WORK_BYTES / 2..WORK_BYTES).contains(&written), "{written} bytes fit");
    for closed in ["other_scratch", "package", "private"] {
        assert_eq!(value(&filled, closed), libc::EACCES.to_string(), "{closed}");
    }
    let groups = find(Path::new("/sys/fs/cgroup"), spec.name.as_str());
    let slot = Path::new(&groups[0]).join("slot-0/cgroup.procs");
    let pid = read(&slot).trim().to_owned();
    let owner = fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    assert_eq!(owner, config::Docker::default().uid_base + 5 * protocol::worker::UIDS);
    machine.docker.stop(&spec.name).await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the slot's process outlived its container");
}

#[tokio::test]
async fn nothing_is_left_of_a_stopped_worker_however_often_it_is_stopped() {
    let machine = Machine::start().await;
    let spec = machine.spec(0).await;
    let started = machine.docker.start(&spec).await.unwrap();
    report(&started.socket, "fill", 5).await;
    let before = machine.remains(&spec.name);
    for kind in ["container ", "mount ", "loop device ", "/sys/fs/cgroup/"] {
        assert!(before.iter().any(|left| left.starts_with(kind)), "no {kind}in {before:?}");
    }

    let stop = || machine.docker.stop(&spec.name);
    let (first, second, third) = tokio::join!(stop(), stop(), stop());
    first.and(second).and(third).unwrap();
    machine.docker.stop(&spec.name).await.unwrap();

    let left = eventually("a loop device is let go", || {
        let left = machine.remains(&spec.name);
        (!left.iter().any(|left| left.starts_with("loop"))).then_some(left)
    })
    .await;
    assert_eq!(left, Vec::<String>::new());
    assert!(machine.docker.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_list_has_workers_that_run_and_workers_that_ended_but_no_neighbours() {
    let (machine, neighbour) = (Machine::start().await, Machine::start().await);
    let (running, ended) = (machine.spec(1).await, machine.spec(2).await);
    let other = neighbour.spec(3).await;
    neighbour.docker.start(&other).await.unwrap();
    let started = machine.docker.start(&running).await.unwrap();
    let dead = machine.docker.start(&ended).await.unwrap();
    run(Command::new("docker").args(["kill", &dead.container_id]));

    let mut listed = machine.docker.list().await.unwrap();

    listed.sort_by_key(|worker| worker.index);
    let seen: Vec<_> = listed.iter().map(|worker| (&worker.name, worker.index, worker.running)).collect();
    assert_eq!(seen, [(&running.name, 1, true), (&ended.name, 2, false)]);
    assert_eq!(listed[0].socket, started.socket);
    assert_eq!(listed[0].container_id, started.container_id);
    assert_eq!(listed[0].image_id, running.image_id);
    assert_eq!(listed[0].runtime, running.runtime);

    for worker in &listed {
        machine.docker.stop(&worker.name).await.unwrap();
    }
    assert!(machine.docker.list().await.unwrap().is_empty());
    assert_eq!(neighbour.docker.list().await.unwrap().len(), 1);
    neighbour.docker.stop(&other.name).await.unwrap();
}

#[tokio::test]
async fn an_image_is_a_runtime_or_it_is_told_why_not() {
    let machine = Machine::start().await;
    let label = |version: &str| format!("LABEL {SHIM_LABEL}={version}");
    let cmd = r#"CMD ["python3", "/shim.py"]"#;
    let good = machine.image(&[&label(&protocol::VERSION.to_string()), cmd]);
    let docker = &machine.docker;

    let found = docker.inspect_image(&good).await.unwrap();
    assert!(found.id.starts_with("sha256:"), "{}", found.id);
    assert_eq!(found.shim, ["python3", "/shim.py"]);
    assert_eq!(docker.inspect_image(&found.id).await.unwrap(), found);

    for (changes, why) in [
        (vec![cmd], "no label"),
        (vec![&label("0"), cmd], "\"0\""),
        (vec![&label(&protocol::VERSION.to_string())], "CMD"),
        (vec![&label(&protocol::VERSION.to_string()), cmd, "VOLUME /data"], "volumes"),
    ] {
        let tag = machine.image(&changes);
        match docker.inspect_image(&tag).await {
            Err(Error::NotARuntime { why: told, .. }) => assert!(told.contains(why), "{told}"),
            other => panic!("{changes:?}: {other:?}"),
        }
    }
    for reference in ["taibai-nowhere:9", "Not A Name"] {
        let answer = docker.inspect_image(reference).await;
        assert!(matches!(answer, Err(Error::ImageNotFound { .. })), "{reference}: {answer:?}");
    }
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing() {
    let machine = Machine::start().await;
    let spec = machine.spec(0).await;
    let no_image = WorkerSpec { image_id: format!("sha256:{}", "0".repeat(64)), ..spec.clone() };
    let no_network = WorkerSpec { network: Network::Bridge, ..spec.clone() };
    let no_slots = WorkerSpec { slots: 0, ..spec.clone() };
    let no_name = WorkerSpec { name: "../x".into(), ..spec.clone() };

    let answer = machine.docker.start(&no_image).await;
    assert!(matches!(answer, Err(Error::ImageNotFound { .. })), "{answer:?}");
    for bad in [no_network, no_slots, no_name] {
        let answer = machine.docker.start(&bad).await;
        assert!(matches!(answer, Err(Error::Failed { .. })), "{answer:?}");
    }

    assert_eq!(machine.remains(&spec.name), Vec::<String>::new());
}

#[tokio::test]
async fn a_second_worker_of_the_same_name_is_refused_and_the_first_stays() {
    let machine = Machine::start().await;
    let spec = machine.spec(0).await;
    let started = machine.docker.start(&spec).await.unwrap();

    let answer = machine.docker.start(&spec).await;

    assert!(matches!(answer, Err(Error::Failed { .. })), "{answer:?}");
    report(&started.socket, "report", 7).await;
    assert!(machine.docker.list().await.unwrap()[0].running);
    machine.docker.stop(&spec.name).await.unwrap();
}

#[tokio::test]
async fn a_start_whose_caller_went_away_ends_in_the_list() {
    let machine = Machine::start().await;
    let spec = machine.spec(0).await;

    let early = tokio::time::timeout(Duration::from_millis(2), machine.docker.start(&spec)).await;

    assert!(early.is_err(), "the container started within the time");
    let socket = machine.dir.path().join(format!("run/w/{}/{}/run/s", machine.deployment, spec.name));
    report(&socket, "report", 7).await;
    assert_eq!(machine.docker.list().await.unwrap()[0].socket, socket);
    machine.docker.stop(&spec.name).await.unwrap();
}

#[tokio::test]
async fn a_restart_keeps_workers_and_clears_what_has_no_container() {
    let machine = Machine::start().await;
    let (kept, lost) = (machine.spec(0).await, machine.spec(1).await);
    let started = machine.docker.start(&kept).await.unwrap();
    let container = machine.docker.start(&lost).await.unwrap().container_id;
    run(Command::new("docker").args(["rm", "-f", &container]));
    assert!(!machine.remains(&lost.name).is_empty());

    let docker = machine.restart().await;

    assert_eq!(machine.remains(&lost.name), Vec::<String>::new());
    let listed = docker.list().await.unwrap();
    assert_eq!((listed.len(), &listed[0].name, listed[0].running), (1, &kept.name, true));
    report(&started.socket, "report", 7).await;
    docker.stop(&kept.name).await.unwrap();
}

#[tokio::test]
async fn every_request_to_docker_is_counted() {
    let machine = Machine::start().await;
    let spec = machine.spec(0).await;

    machine.docker.ping().await.unwrap();
    machine.docker.start(&spec).await.unwrap();
    machine.docker.stop(&spec.name).await.unwrap();

    for call in ["ping", "create", "start", "inspect", "remove", "inspect_image", "version"] {
        assert_eq!(machine.calls(call), 1, "{call}");
    }
    // At the start: the containers of workers, and those of images.
    assert_eq!(machine.calls("list"), 2);
}

#[tokio::test]
async fn a_docker_that_is_not_there_is_unavailable() {
    let dir = TempDir::new().unwrap();
    let config = config::Docker {
        socket: dir.path().join("docker.sock"),
        supervisor: stand_in().to_owned(),
        ..Default::default()
    };

    let answer = Docker::connect(&config, call_counter()).await.map(drop);

    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
}

#[tokio::test]
async fn a_process_that_is_left_in_a_workers_control_groups_is_killed() {
    let machine = Machine::start().await;
    let spec = machine.spec(0).await;
    machine.docker.start(&spec).await.unwrap();
    let mut stray = Command::new("sleep").arg("600").spawn().unwrap();
    for group in find(Path::new("/sys/fs/cgroup"), spec.name.as_str()) {
        let inner = Path::new(&group).join("stray");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("cgroup.procs"), stray.id().to_string()).unwrap();
    }

    machine.docker.stop(&spec.name).await.unwrap();

    assert!(!stray.wait().unwrap().success());
    assert_eq!(find(Path::new("/sys/fs/cgroup"), spec.name.as_str()), Vec::<String>::new());
}
