//! A worker of a test's own: a real container with the real supervisor and the shim of an image.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use protocol::archive;
use protocol::worker::{Attempt, Cgroup, End, Execute, ExecutionLimits, Load, Outcome};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use taibai::config;
use taibai::engine::supervisor::{self, Supervisor};
use taibai::model::{RuntimeId, WorkerName};
use taibai::network::Guard;
use taibai::orchestrator::{self, Network, Orchestrator, SlotLimits, WorkerSpec, call_counter};

pub const MIB: u64 = 1 << 20;

/// Tests run side by side and each worker needs user ids that no other has.
static NEXT_INDEX: AtomicU32 = AtomicU32::new(0);
static NEXT_DEPLOYMENT: AtomicU32 = AtomicU32::new(0);

pub struct Worker {
    pub docker: std::sync::Arc<dyn Orchestrator>,
    pub spec: WorkerSpec,
    pub container: String,
    pub supervisor: Supervisor,
    pub uid_base: u32,
    deployment: String,
    _dirs: tempfile::TempDir,
    stopped: bool,
}

/// Variables that name the images of runtimes.
pub const PYTHON: &str = "TAIBAI_TEST_IMAGE";
pub const NODE: &str = "TAIBAI_TEST_NODE_IMAGE";
pub const SHELL: &str = "TAIBAI_TEST_SHELL_IMAGE";

/// Limits under which nothing is in a function's way.
pub fn ample() -> ExecutionLimits {
    ExecutionLimits {
        cpu_millis: 2000,
        memory_bytes: 256 * MIB,
        timeout_ms: 20_000,
        max_result_bytes: 6 * MIB,
        max_log_bytes: MIB,
    }
}

impl Worker {
    pub async fn start(slots: u32) -> Self {
        Self::start_of(PYTHON, slots).await
    }

    pub async fn start_with(slots: u32, limits: SlotLimits) -> Self {
        Self::start_in(PYTHON, deployment(), None, slots, limits).await
    }

    /// Starts one of the runtime whose image the variable `image` names.
    pub async fn start_of(image: &str, slots: u32) -> Self {
        let limits = SlotLimits { max_processes: 128, max_executions_per_slot: 1000, memory_mark: 8 * MIB };
        Self::start_in(image, deployment(), None, slots, limits).await
    }

    /// Starts one that is connected as its deployment's guard says.
    pub async fn start_in(
        image: &str,
        deployment: String,
        guard: Option<Guard>,
        slots: u32,
        limits: SlotLimits,
    ) -> Self {
        let network = if guard.is_some() { Network::Bridge } else { Network::None };
        let dirs = tempfile::Builder::new().prefix("tbt").tempdir_in("/run").unwrap();
        let index = NEXT_INDEX.fetch_add(1, Ordering::Relaxed);
        // Far from the range of a service on this machine, and from that of another run of the tests.
        let uid_base = 1_900_000_000 + std::process::id() % 10_000 * 8192;
        let config = config::Docker {
            deployment: deployment.clone(),
            worker_dir: dirs.path().to_owned(),
            work_dir: dirs.path().join("work"),
            supervisor: required("TAIBAI_SUPERVISOR").into(),
            uid_base,
            ..config::Docker::default()
        };
        let docker = orchestrator::connect_with(&config, guard, call_counter())
            .await
            .expect("Docker must run for these tests");
        let image = docker.inspect_image(&required(image)).await.unwrap();
        let spec = WorkerSpec {
            name: WorkerName(format!("w{index}")),
            index,
            runtime: RuntimeId::from("runtime"),
            image_id: image.id,
            shim: image.shim,
            slots,
            network,
            limits,
        };
        let started = docker.start(&spec).await.unwrap();
        let supervisor = Supervisor::new(started.socket);
        let ready = supervisor.wait_ready(soon(30)).await;
        if let Err(error) = ready {
            let words = std::fs::read_to_string(
                dirs.path().join(format!("w/{}/{}/run/error", config.deployment, spec.name)),
            );
            panic!("the worker did not start: {error}; its last words: {words:?}");
        }
        Self {
            docker,
            container: started.container_id,
            supervisor,
            uid_base: uid_base + index * protocol::worker::UIDS,
            spec,
            deployment,
            _dirs: dirs,
            stopped: false,
        }
    }

    /// A started worker with a package of one module, `main`.
    pub async fn running(slots: u32, source: &str) -> Self {
        let worker = Self::start(slots).await;
        worker.load(&[("main.py", source)]).await.unwrap();
        worker
    }

    pub async fn load(&self, files: &[(&str, &str)]) -> Result<(), supervisor::Error> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in files {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(content.as_bytes()).unwrap();
        }
        self.load_bytes(zip.finish().unwrap().into_inner()).await
    }

    pub async fn load_bytes(&self, package: Vec<u8>) -> Result<(), supervisor::Error> {
        let load = Load {
            project: "project".to_owned(),
            function: "function".to_owned(),
            version: 0,
            digest: "digest".to_owned(),
            limits: archive::Limits { max_entries: 100, max_expanded_bytes: 64 * MIB, max_ratio: 100 },
            offline: false,
        };
        // In pieces, as it comes from a file.
        let pieces: Vec<_> =
            package.chunks(64 << 10).map(|piece| Ok(bytes::Bytes::copy_from_slice(piece))).collect();
        self.supervisor.load(&load, futures_util::stream::iter(pieces), soon(60)).await
    }

    pub async fn run(&self, entry: &str, input: Value, limits: ExecutionLimits) -> Outcome {
        self.attempt(entry, input, limits).await.unwrap()
    }

    pub async fn attempt(
        &self,
        entry: &str,
        input: Value,
        limits: ExecutionLimits,
    ) -> Result<Outcome, supervisor::Error> {
        self.supervisor.execute(&execute(entry, input, limits), soon(120)).await
    }

    /// Runs with ample limits and gives what the function returned.
    pub async fn output(&self, entry: &str, input: Value) -> Value {
        let outcome = self.run(entry, input, ample()).await;
        assert_eq!(outcome.end, End::Returned, "{}", outcome.log);
        output(&outcome)
    }

    pub async fn retired(&self, reason: &str) -> u64 {
        self.supervisor.state(soon(5)).await.unwrap().retired.get(reason).copied().unwrap_or(0)
    }

    /// Processes of a slot as the host sees them.
    pub fn processes_of_slot(&self, slot: u32) -> Vec<u32> {
        let uid = (self.uid_base + slot).to_string();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let is_zombie = status.lines().any(|line| line.starts_with("State:") && line.contains('Z'));
                let own = status.lines().any(|line| {
                    line.strip_prefix("Uid:").is_some_and(|ids| ids.split_whitespace().any(|id| id == uid))
                });
                own && !is_zombie
            })
            .collect()
    }

    pub fn cgroup(&self) -> Cgroup {
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { Cgroup::V2 } else { Cgroup::V1 }
    }

    /// The control groups of the deployment, one for each controller.
    fn deployment_groups(&self) -> Vec<PathBuf> {
        let controllers: &[&str] = match self.cgroup() {
            Cgroup::V1 => &["memory", "cpu", "pids", "cpuacct"],
            Cgroup::V2 => &["."],
        };
        let groups = controllers.iter().map(|name| Path::new("/sys/fs/cgroup").join(name).join("taibai"));
        groups.map(|group| group.join(&self.deployment)).collect()
    }

    /// A file of the memory controller of a slot's group, as the host sees it.
    pub fn memory_file(&self, slot: u32, file: &str) -> std::io::Result<String> {
        let group = self.deployment_groups()[0].join(self.spec.name.as_str()).join(format!("slot{slot}"));
        Ok(std::fs::read_to_string(group.join(file))?.trim().to_owned())
    }

    /// Removes the container. Every test ends with this: what is left over would disturb the next.
    pub async fn stop(mut self) {
        self.docker.stop(&self.spec.name).await.unwrap();
        for group in self.deployment_groups() {
            match std::fs::remove_dir(&group) {
                // Processor time may be counted in the hierarchy of `cpu`, or not at all.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.unwrap_or_else(|error| panic!("{}: {error}", group.display())),
            }
        }
        self.stopped = true;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.stopped {
            // A test that failed: nothing can be awaited here, and a leftover would hold its directory.
            let _ = std::process::Command::new("docker").args(["rm", "-f", &self.container]).output();
        }
    }
}

/// A name of a test's own: who connects to a deployment tidies up what has no container yet.
fn deployment() -> String {
    format!("t{}-{}", std::process::id(), NEXT_DEPLOYMENT.fetch_add(1, Ordering::Relaxed))
}

pub fn execute(entry: &str, input: Value, limits: ExecutionLimits) -> Execute {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    Execute {
        attempt: Attempt { execution: format!("e{}", NEXT.fetch_add(1, Ordering::Relaxed)), epoch: 1 },
        entry: entry.to_owned(),
        input: to_raw_value(&input).unwrap(),
        limits,
        fresh: false,
        request_id: None,
        openstack: None,
        acknowledge: Vec::new(),
    }
}

pub fn output(outcome: &Outcome) -> Value {
    outcome.output.as_deref().map_or(json!(null), |raw: &RawValue| serde_json::from_str(raw.get()).unwrap())
}

pub fn soon(seconds: u64) -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(seconds)
}

/// Waits for a condition, for a few seconds at most.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(Instant::now() < limit, "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn required(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run these tests with tox-like-scripts/driver"))
}
