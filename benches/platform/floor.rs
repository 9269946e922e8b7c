//! What is there without Taibai's service: a worker that is asked directly, and Docker's own start of one.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::worker::{Attempt, Execute, ExecutionLimits, Load};
use serde_json::json;
use taibai::config;
use taibai::engine::supervisor::Supervisor;
use taibai::model::{RuntimeId, WorkerName};
use taibai::orchestrator::{self, Network, Orchestrator, SlotLimits, WorkerSpec, call_counter};

use crate::service::{CPU_MILLIS, FUNCTION, UID_BASE, package, required, soon, timed};

/// One worker, and what it is asked through.
pub struct Floor {
    docker: Arc<dyn Orchestrator>,
    spec: WorkerSpec,
    pub container: String,
    supervisor: Supervisor,
    calls: usize,
    _dirs: tempfile::TempDir,
}

impl Floor {
    /// A worker that has run its function once.
    pub async fn start() -> Self {
        let dirs = tempfile::Builder::new().prefix("tbb").tempdir_in("/run").unwrap();
        let docker = connect(dirs.path()).await;
        let (spec, started) = start(&docker, "floor").await;
        let supervisor = Supervisor::new(started.socket);
        load(&supervisor).await;
        let container = started.container_id;
        let mut floor = Self { docker, spec, container, supervisor, calls: 0, _dirs: dirs };
        floor.timed(20).await;
        floor
    }

    pub async fn timed(&mut self, calls: usize) -> Vec<Duration> {
        let first = self.calls;
        self.calls += calls;
        timed(calls, |n| call(&self.supervisor, first + n)).await
    }

    pub async fn stop(self) {
        self.docker.stop(&self.spec.name).await.unwrap();
    }
}

/// Starts of a worker until its shim is ready.
pub async fn starts(count: usize) -> Vec<Duration> {
    let dirs = tempfile::Builder::new().prefix("tbb").tempdir_in("/run").unwrap();
    let docker = connect(dirs.path()).await;
    let mut times = Vec::new();
    for n in 0..count {
        let begin = Instant::now();
        let (spec, _) = start(&docker, &format!("start{n}")).await;
        times.push(begin.elapsed());
        docker.stop(&spec.name).await.unwrap();
    }
    times
}

async fn connect(dirs: &Path) -> Arc<dyn Orchestrator> {
    let config = config::Docker {
        deployment: format!("b{}", std::process::id()),
        worker_dir: dirs.to_owned(),
        work_dir: dirs.join("work"),
        supervisor: required("TAIBAI_SUPERVISOR").into(),
        uid_base: UID_BASE,
        ..config::Docker::default()
    };
    orchestrator::connect(&config, call_counter()).await.expect("Docker must run")
}

/// Returns once the shim is ready.
async fn start(docker: &Arc<dyn Orchestrator>, name: &str) -> (WorkerSpec, orchestrator::StartedWorker) {
    let image = docker.inspect_image(&required("TAIBAI_TEST_IMAGE")).await.unwrap();
    let spec = WorkerSpec {
        name: WorkerName::from(name),
        index: 0,
        runtime: RuntimeId::from("bench"),
        image_id: image.id,
        shim: image.shim,
        slots: 3,
        network: Network::None,
        limits: SlotLimits { max_processes: 128, max_executions_per_slot: 1_000_000, memory_mark: 8 << 20 },
    };
    let started = docker.start(&spec).await.unwrap();
    Supervisor::new(&started.socket).wait_ready(soon(30)).await.unwrap();
    (spec, started)
}

async fn load(supervisor: &Supervisor) {
    let load = Load {
        project: "p".to_owned(),
        function: "f".to_owned(),
        version: 0,
        digest: "d".to_owned(),
        limits: protocol::archive::Limits::default(),
        offline: false,
    };
    let package = futures_util::stream::iter([Ok(bytes::Bytes::from(package(FUNCTION, 0)))]);
    supervisor.load(&load, package, soon(30)).await.unwrap();
}

async fn call(supervisor: &Supervisor, number: usize) {
    let attempt = |number: usize| Attempt { execution: format!("e{number}"), epoch: 1 };
    let execute = Execute {
        attempt: attempt(number),
        entry: "main.main".to_owned(),
        input: serde_json::value::to_raw_value(&json!({"name": "bench"})).unwrap(),
        limits: ExecutionLimits {
            cpu_millis: CPU_MILLIS,
            memory_bytes: 128 << 20,
            timeout_ms: 10_000,
            max_result_bytes: 1 << 20,
            max_log_bytes: 1 << 20,
        },
        fresh: false,
        request_id: None,
        openstack: None,
        acknowledge: number.checked_sub(1).map(attempt).into_iter().collect(),
    };
    supervisor.execute(&execute, soon(30)).await.unwrap();
}

/// What Docker alone takes for the same image, with the same network: none.
pub fn docker_run(shim: &[String]) -> Duration {
    // The shim's own first words on its channel are what is waited for. The channel is descriptor 3, which a
    // pair of sockets would begin with: both ends are moved out of the way.
    let script = "import fcntl, os, socket, subprocess, sys\n\
        away = lambda end: socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 10))\n\
        ours, theirs = map(away, socket.socketpair())\n\
        os.dup2(theirs.fileno(), 3)\n\
        theirs.close()\n\
        subprocess.Popen(sys.argv[1:], pass_fds=[3])\n\
        os.close(3)\n\
        words = ours.recv(100)\n\
        assert b'ready' in words, words\n\
        print('ready', flush=True)\n\
        os._exit(0)\n";
    let begin = Instant::now();
    let mut child = Command::new("docker")
        .args(["run", "--rm", "--network", "none", &required("TAIBAI_TEST_IMAGE"), "python3", "-c", script])
        .args(shim)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let took = begin.elapsed();
    child.wait().unwrap();
    took
}

/// The command of the image.
pub async fn shim() -> Vec<String> {
    let dirs = tempfile::Builder::new().prefix("tbb").tempdir_in("/run").unwrap();
    connect(dirs.path()).await.inspect_image(&required("TAIBAI_TEST_IMAGE")).await.unwrap().shim
}
