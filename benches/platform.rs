//! How fast Taibai is on this machine: `tox-like-scripts/bench`.
//!
//! Every figure is taken against the release build with real containers. What is ours is told apart
//! by a floor: the same container, shim and function, asked over the worker's own socket. The CPU
//! limit of the function is raised so that the platform is measured and not the limit.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::worker::{Attempt, Execute, ExecutionLimits, Load};
use serde_json::{Map, Value, json};
use taibai::config;
use taibai::engine::supervisor::Supervisor;
use taibai::model::{RuntimeId, WorkerName};
use taibai::orchestrator::{self, Network, Orchestrator, SlotLimits, WorkerSpec, call_counter};

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/openstack/cloud.rs"]
mod cloud;

use cloud::Cloud;

const FUNCTION: &str = "def main(name='World', **kwargs):\n    return 'Hello, ' + name\n";
const USES_SESSION: &str = "
import swiftclient
swift = None
def main(context, name='World', **kwargs):
    global swift
    swift = swift or swiftclient.Connection(session=context['os_session'], os_options={'region_name': 'RegionOne'})
    try:
        swift.head_object('no-such-container', 'object')
    except swiftclient.ClientException:
        pass
";
const CPU_MILLIS: u32 = 2000;
const UID_BASE: u32 = 1_950_000_000;

#[tokio::main]
async fn main() {
    // cargo passes --bench to every benchmark.
    let quick = std::env::var_os("TAIBAI_BENCH_QUICK").is_some();
    let calls = if quick { 300 } else { 3000 };
    let starts = if quick { 3 } else { 15 };
    rustls::crypto::ring::default_provider().install_default().expect("this is the first line");
    let mut report = Report::default();

    worker(&mut report, calls, starts).await;
    docker_run(&mut report, starts).await;
    service(&mut report, calls, starts).await;
    cloud(&mut report, calls).await;

    report.write(&std::env::var("TAIBAI_BENCH_OUTPUT").unwrap_or_else(|_| "bench.json".to_owned()));
}

/// The floor: one worker, asked directly.
async fn worker(report: &mut Report, calls: usize, starts: usize) {
    let dirs = tempfile::Builder::new().prefix("tbb").tempdir_in("/run").unwrap();
    let docker = connect(dirs.path()).await;
    let (spec, started) = start(&docker, "floor").await;
    report.figure("memory per idle worker, whole container", "MiB", container_memory(&started.container_id));
    let supervisor = Arc::new(Supervisor::new(started.socket));
    load(&supervisor).await;
    call(&supervisor, 0).await;
    let times = timed(calls, |n| call(&supervisor, n + 1)).await;
    report.times("worker floor, 1 client", &times);
    docker.stop(&spec.name).await.unwrap();

    let mut times = Vec::new();
    for n in 0..starts {
        let begin = Instant::now();
        let (spec, started) = start(&docker, &format!("start{n}")).await;
        let supervisor = Supervisor::new(started.socket);
        supervisor.wait_ready(soon(30)).await.unwrap();
        times.push(begin.elapsed());
        docker.stop(&spec.name).await.unwrap();
    }
    report.times("start of a worker until its shim is ready", &times);
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
    let package = futures_util::stream::iter([Ok(bytes::Bytes::from(package(FUNCTION)))]);
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
async fn docker_run(report: &mut Report, starts: usize) {
    let dirs = tempfile::Builder::new().prefix("tbb").tempdir_in("/run").unwrap();
    let image = connect(dirs.path()).await.inspect_image(&required("TAIBAI_TEST_IMAGE")).await;
    let shim = image.unwrap().shim;
    let mut times = Vec::new();
    for _ in 0..starts {
        let begin = Instant::now();
        // The shim's own first words on its channel are what is waited for.
        let script = "import os, socket, subprocess, sys\n\
            ours, theirs = socket.socketpair()\n\
            os.dup2(theirs.fileno(), 3)\n\
            subprocess.Popen(sys.argv[1:], pass_fds=[3])\n\
            ours.recv(100)\n\
            print('ready', flush=True)\n\
            os._exit(0)\n";
        let mut child = Command::new("docker")
            .args([
                "run",
                "--rm",
                "--network",
                "none",
                &required("TAIBAI_TEST_IMAGE"),
                "python3",
                "-c",
                script,
            ])
            .args(&shim)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        times.push(begin.elapsed());
        child.wait().unwrap();
    }
    report.times("docker run of the same image until the shim is ready", &times);
}

/// The whole service, over HTTP.
async fn service(report: &mut Report, calls: usize, starts: usize) {
    let dirs = tempfile::Builder::new().prefix("tbb").tempdir_in("/run").unwrap();
    let server = Server::start(dirs.path());
    let client = Client::new(&server, None);
    let runtime = client.runtime().await;
    report.figure("memory of the service, idle", "MiB", resident_mib(server.child.id()));
    let function = client.function(&runtime).await;
    for _ in 0..50 {
        client.execute(&function).await;
    }
    let times = timed(calls, |_| client.execute(&function)).await;
    report.times("warm synchronous call, 1 client", &times);

    let begin = Instant::now();
    let each = calls / 4;
    let clients = (0..8).map(|_| timed(each, |_| client.execute(&function)));
    let times: Vec<_> = futures_util::future::join_all(clients).await.into_iter().flatten().collect();
    let elapsed = begin.elapsed();
    report.times("warm synchronous call, 8 clients", &times);
    report.figure("executions per second, 8 clients", "1/s", times.len() as f64 / elapsed.as_secs_f64());

    let mut hits = Vec::new();
    for _ in 0..starts {
        client.pool_is_full(&runtime).await;
        let function = client.function(&runtime).await;
        hits.extend(timed(1, |_| client.execute(&function)).await);
        client.delete(&function).await;
    }
    report.times("cold call, a started worker in the pool", &hits);
    report.figure("memory of the service, after", "MiB", resident_mib(server.child.id()));
    server.stop();

    let dirs = tempfile::Builder::new().prefix("tbb").tempdir_in("/run").unwrap();
    let server = Server::start_with(dirs.path(), &[("TAIBAI_ENGINE__POOL_SIZE", "0")]);
    let client = Client::new(&server, None);
    let runtime = client.runtime().await;
    let mut misses = Vec::new();
    for _ in 0..starts {
        let function = client.function(&runtime).await;
        misses.extend(timed(1, |_| client.execute(&function)).await);
        client.delete(&function).await;
        client.workers_are_gone(&function).await;
    }
    report.times("cold call, empty pool", &misses);
    server.stop();
}

/// The same with Keystone: a token that is known already, and a function that uses its session.
async fn cloud(report: &mut Report, calls: usize) {
    let cloud = Cloud::open();
    let dirs = tempfile::Builder::new().prefix("tbb").tempdir_in("/run").unwrap();
    let account = cloud.account("taibai");
    let server = Server::start_with(
        dirs.path(),
        &[
            ("TAIBAI_API__AUTH_STRATEGY", "keystone"),
            ("TAIBAI_ENGINE__POOL_SIZE", "2"),
            ("TAIBAI_KEYSTONE_AUTHTOKEN__AUTH_URL", cloud.auth_url()),
            ("TAIBAI_KEYSTONE_AUTHTOKEN__USERNAME", &account.auth.username),
            ("TAIBAI_KEYSTONE_AUTHTOKEN__PASSWORD", &account.auth.password),
            ("TAIBAI_KEYSTONE_AUTHTOKEN__PROJECT_NAME", &account.auth.project_name),
            ("TAIBAI_KEYSTONE_AUTHTOKEN__REGION_NAME", &account.region_name),
            ("TAIBAI_NETWORK__MODE", "bridge"),
            ("TAIBAI_NETWORK__BRIDGE_NAME", "tbbench"),
            ("TAIBAI_NETWORK__SUBNET", "10.234.0.0/24"),
        ],
    );
    let admin = Client::new(&server, Some(cloud.token("admin").await.expose()));
    let demo = Client::new(&server, Some(cloud.token("demo").await.expose()));
    let runtime = admin.runtime().await;
    let plain = demo.function(&runtime).await;
    for _ in 0..50 {
        demo.execute(&plain).await;
    }
    let times = timed(calls, |_| demo.execute(&plain)).await;
    report.times("warm synchronous call with a cached token, 1 client", &times);

    let using = demo.function_of(&runtime, USES_SESSION).await;
    for _ in 0..10 {
        demo.execute(&using).await;
    }
    let times = timed(calls / 10, |_| demo.execute(&using)).await;
    report.times("warm call that asks Swift once with os_session", &times);
    let direct = cloud.user("demo").await;
    let swift = cloud.ours().keystone.session(&direct, None).unwrap().swift();
    let times = timed(calls / 10, |_| swift.head_object("no-such-container", "object")).await;
    report.times("the same question to Swift from this machine", &times);
    for function in [&plain, &using] {
        demo.delete(function).await;
    }
    server.stop();
}

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(dirs: &Path) -> Self {
        Self::start_with(dirs, &[("TAIBAI_ENGINE__POOL_SIZE", "2")])
    }

    fn start_with(dirs: &Path, variables: &[(&str, &str)]) -> Self {
        let at = |name: &str| dirs.join(name).display().to_string();
        let mut child = Command::new(env!("CARGO_BIN_EXE_taibai"))
            .arg("serve")
            .env("TAIBAI_API__PORT", "0")
            .env("TAIBAI_DATABASE__CONNECTION", format!("sqlite:///{}", at("db.sqlite")))
            .env("TAIBAI_DOCKER__DEPLOYMENT", format!("bs{}", std::process::id()))
            .env("TAIBAI_DOCKER__WORKER_DIR", at("w"))
            .env("TAIBAI_DOCKER__WORK_DIR", at("work"))
            .env("TAIBAI_DOCKER__SUPERVISOR", required("TAIBAI_SUPERVISOR"))
            .env("TAIBAI_DOCKER__UID_BASE", (UID_BASE + 1_000_000).to_string())
            .env("TAIBAI_ENGINE__KEEP_WORKERS_ON_SHUTDOWN", "false")
            .env("TAIBAI_STORAGE__FILE_SYSTEM_DIR", at("packages"))
            .env("TAIBAI_LOGGING__LEVEL", "warn")
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url =
            line.trim().strip_prefix("listening on ").expect("the service says where it listens").to_owned();
        Self { child, url }
    }

    fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    fn new(server: &Server, token: Option<&str>) -> Self {
        let mut headers = reqwest::header::HeaderMap::new();
        if let Some(token) = token {
            headers.insert("x-auth-token", token.parse().unwrap());
        }
        let http = reqwest::Client::builder().no_proxy().default_headers(headers).build().unwrap();
        Self { http, url: server.url.clone() }
    }

    async fn json(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    async fn runtime(&self) -> String {
        let body = json!({"image": required("TAIBAI_TEST_IMAGE")});
        let (_, runtime) = self.json(reqwest::Method::POST, "/v1/runtimes", Some(body)).await;
        let id = runtime["id"].as_str().unwrap().to_owned();
        loop {
            let (_, runtime) = self.json(reqwest::Method::GET, &format!("/v1/runtimes/{id}"), None).await;
            match runtime["status"].as_str() {
                Some("available") => return id,
                Some("creating") => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => panic!("{runtime}"),
            }
        }
    }

    async fn function(&self, runtime: &str) -> String {
        self.function_of(runtime, FUNCTION).await
    }

    async fn function_of(&self, runtime: &str, source: &str) -> String {
        let boundary = "boundary-0123456789abcdef";
        let mut body = Vec::new();
        let cpu = CPU_MILLIS.to_string();
        for (name, value) in [("runtime_id", runtime), ("code", r#"{"source":"package"}"#), ("cpu", &cpu)] {
            write!(
                body,
                "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            )
            .unwrap();
        }
        let head = "Content-Disposition: form-data; name=\"package\"; filename=\"main.zip\"";
        write!(body, "--{boundary}\r\n{head}\r\n\r\n").unwrap();
        body.extend(package(source));
        write!(body, "\r\n--{boundary}--\r\n").unwrap();
        let request = self
            .http
            .post(format!("{}/v1/functions", self.url))
            .header("content-type", format!("multipart/form-data; boundary={boundary}"))
            .body(body);
        let function: Value = request.send().await.unwrap().json().await.unwrap();
        function["id"].as_str().unwrap_or_else(|| panic!("{function}")).to_owned()
    }

    async fn execute(&self, function: &str) {
        let body = json!({"function_id": function, "input": "{\"name\": \"bench\"}"});
        let (_, execution) = self.json(reqwest::Method::POST, "/v1/executions", Some(body)).await;
        assert_eq!(execution["status"], "success", "{execution}");
    }

    async fn delete(&self, function: &str) {
        self.json(reqwest::Method::DELETE, &format!("/v1/functions/{function}"), None).await;
    }

    async fn pool_is_full(&self, runtime: &str) {
        let path = format!("/v1/runtimes/{runtime}/pool");
        while self.json(reqwest::Method::GET, &path, None).await.1["capacity"]["available"] != 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn workers_are_gone(&self, function: &str) {
        let path = format!("/v1/functions/{function}/workers");
        while self.json(reqwest::Method::GET, &path, None).await.1["workers"] != json!([]) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Its container is still being removed.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn timed<F: Future>(count: usize, mut call: impl FnMut(usize) -> F) -> Vec<Duration> {
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let begin = Instant::now();
        call(n).await;
        times.push(begin.elapsed());
    }
    times
}

/// The table on the screen and the numbers in the file.
#[derive(Default)]
struct Report {
    figures: Map<String, Value>,
}

impl Report {
    fn times(&mut self, name: &str, times: &[Duration]) {
        let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        let (p50, p99) = (at(0.5), at(0.99));
        println!("{name:<58} p50 {p50:>9.3} ms   p99 {p99:>9.3} ms   n {:>5}", sorted.len());
        self.figures
            .insert(name.to_owned(), json!({"unit": "ms", "p50": p50, "p99": p99, "n": sorted.len()}));
    }

    fn figure(&mut self, name: &str, unit: &str, value: f64) {
        println!("{name:<58}     {value:>9.1} {unit}");
        self.figures.insert(name.to_owned(), json!({"unit": unit, "value": value}));
    }

    fn write(&self, path: &str) {
        let text = serde_json::to_string_pretty(&self.figures).expect("figures are JSON");
        std::fs::write(path, text + "\n").unwrap_or_else(|error| panic!("{path}: {error}"));
        println!("written to {path}");
    }
}

fn container_memory(id: &str) -> f64 {
    let listed = Command::new("docker").args(["top", id, "-o", "pid"]).output().unwrap();
    let pids = String::from_utf8(listed.stdout).unwrap();
    let private = |pid: &str| {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok());
        line.unwrap_or(0.0) / 1024.0
    };
    pids.lines().skip(1).map(|pid| private(pid.trim())).sum()
}

fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    line.unwrap_or(0.0) / 1024.0
}

fn package(source: &str) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("main.py", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(source.as_bytes()).unwrap();
    zip.finish().unwrap().into_inner()
}

fn soon(seconds: u64) -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(seconds)
}

fn required(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run this with tox-like-scripts/bench"))
}
