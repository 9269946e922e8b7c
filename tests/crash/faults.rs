//! What others do to a service: workers die, Docker, the database and the disk are away, the clock jumps.
//!
//! Keystone and Swift that are away are in the end-to-end tests: `identity` and `packages`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cloud::Way;
use crate::ledger::{self, Ledger, MARKED, in_step, nothing_left};
use crate::number;
use crate::own::OwnDatabase;
use crate::service::{Home, Service, eventually, output, package, required, result};

const WHO: &str = r#"
import faulthandler, os, time
def main(seconds=0, crash=False, **kwargs):
    if crash:
        faulthandler._sigsegv()
    time.sleep(seconds)
    return os.getpid()
"#;

fn run(command: &mut Command) -> String {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// The supervisor of a function's only worker: the first process of its container.
async fn supervisor(service: &Service, function: &str) -> i32 {
    let workers = service.workers(function).await;
    let [worker] = &workers[..] else { panic!("{workers:?}") };
    let names = service.home.container_names();
    let container = names.lines().find(|name| name.ends_with(worker.as_str())).unwrap();
    let pid = run(service.home.docker().args(["inspect", "--format", "{{.State.Pid}}", container]));
    pid.trim().parse().unwrap()
}

fn children(parent: i32) -> Vec<i32> {
    let mut found: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
            fields.split_whitespace().nth(1) == Some(&parent.to_string())
        })
        .collect();
    found.sort_unstable();
    found
}

#[tokio::test]
async fn calls_go_on_when_an_interpreter_a_supervisor_or_a_worker_dies() {
    let service = Service::start_in(ledger::home(&[])).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, WHO, &[("timeout", "60"), ("cpu", "1000")]).await;
    let call = async |input: &str| service.execute("demo", &function, input).await;
    let first = call("").await;
    let worker = service.workers(&function).await;

    // A segfault is the function's own end, and its worker serves on.
    let ended = call(r#"{"crash": true}"#).await;
    assert_eq!(ended["status"], "failed", "{ended}");
    assert!(ended["result"].as_str().unwrap().contains("signal 11"), "{ended}");
    let second = call("").await;
    assert_eq!(second["status"], "success");
    assert_ne!(output(&second), output(&first), "a new process");
    assert_eq!(service.workers(&function).await, worker, "in the same worker");

    // A worker without the interpreter that forks ends, and another takes its place.
    let shim = children(supervisor(&service, &function).await)[0];
    kill(shim);
    eventually("calls succeed without the first interpreter", async || {
        for _ in 0..5 {
            let done = call("").await;
            if done["status"] != "success" {
                return false;
            }
        }
        service.workers(&function).await != worker
    })
    .await;

    for how in ["supervisor", "worker"] {
        assert_eq!(call("").await["status"], "success");
        let waiting = call(r#"{"seconds": 50}"#);
        let killing = async {
            let running = async || {
                let path = "/v1/executions?status=running";
                let listed = service.ask("demo", "GET", path, None).await.expect(200);
                !listed["executions"].as_array().unwrap().is_empty()
            };
            eventually("the call runs", running).await;
            let before = service.workers(&function).await;
            if how == "supervisor" {
                kill(supervisor(&service, &function).await);
            } else {
                let names = service.home.container_names();
                let container = names.lines().find(|name| name.ends_with(before[0].as_str())).unwrap();
                run(service.home.docker().args(["rm", "--force", container]));
            }
            Instant::now()
        };
        let (lost, killed) = tokio::join!(waiting, killing);
        assert_eq!((&lost["status"], &result(&lost)["reason"]), (&json!("error"), &json!("worker_lost")));
        assert!(killed.elapsed() < Duration::from_secs(5), "{how}: told after {:?}", killed.elapsed());
        assert_eq!(call("").await["status"], "success", "after the {how} died");
    }
    in_step(&service).await;
    nothing_left(service).await;
}

/// A Docker engine of a test's own, set up as ours is: containers outlive the daemon.
struct Engine {
    files: tempfile::TempDir,
    sockets: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Engine {
    async fn start() -> Self {
        let files = tempfile::Builder::new().prefix("taibai-crash").tempdir_in("/var/tmp").unwrap();
        let sockets = tempfile::Builder::new().prefix("tbd").tempdir_in("/run").unwrap();
        let mut engine = Self { files, sockets, daemon: None };
        engine.up().await;
        engine
    }

    fn socket(&self) -> PathBuf {
        self.sockets.path().join("s")
    }

    fn docker(&self) -> Command {
        let mut docker = Command::new("docker");
        docker.arg("--host").arg(format!("unix://{}", self.socket().display()));
        docker
    }

    async fn up(&mut self) {
        let at = |name: &str| self.sockets.path().join(name).display().to_string();
        let log = std::fs::File::options().create(true).append(true).open(at("log")).unwrap();
        let own = format!("taibai-crash-{}", std::process::id());
        std::fs::write(at("daemon.json"), "{}").unwrap();
        // In a network of its own: an engine without a bridge takes away the one that the machine's engine made.
        let mut daemon = Command::new("unshare")
            .args(["--net", "dockerd"])
            .args(["--config-file", &at("daemon.json"), "--pidfile", &at("pid"), "--exec-root", &at("x")])
            .args(["--data-root", &self.files.path().join("data").display().to_string()])
            .args(["--host", &format!("unix://{}", self.socket().display())])
            // Beside the machine's own engine: nothing of its network, and no containers of its containerd.
            .args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"])
            .args(["--containerd-namespace", &own, "--containerd-plugins-namespace", &format!("{own}-p")])
            .arg("--live-restore")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        eventually("the Docker engine answers", async || {
            let exited = daemon.try_wait().unwrap();
            assert!(exited.is_none(), "{exited:?}\n{}", std::fs::read_to_string(at("log")).unwrap());
            self.docker().arg("version").output().unwrap().status.success()
        })
        .await;
        self.daemon = Some(daemon);
    }

    fn down(&mut self, signal: nix::sys::signal::Signal) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        daemon.wait().unwrap();
    }

    /// Takes an image over from the machine's engine.
    fn load(&self, image: &str) {
        let mut save = Command::new("docker").args(["save", image]).stdout(Stdio::piped()).spawn().unwrap();
        run(self.docker().arg("load").stdin(save.stdout.take().unwrap()));
        assert!(save.wait().unwrap().success());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            let ids = self.docker().args(["ps", "-aq"]).output().map(|listed| listed.stdout);
            for id in String::from_utf8_lossy(&ids.unwrap_or_default()).lines() {
                let _ = self.docker().args(["rm", "--force", id]).output();
            }
            self.down(nix::sys::signal::Signal::SIGTERM);
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for target in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(target).starts_with(self.files.path())
                || Path::new(target).starts_with(self.sockets.path())
            {
                let _ = Command::new("umount").args(["-l", target]).output();
            }
        }
    }
}

/// Calls for that long; each call is to be a warm one of the same process.
async fn calls_go_on(service: &Service, function: &str, who: &Value, time: Duration) -> usize {
    let (end, mut calls) = (Instant::now() + time, 0);
    while Instant::now() < end {
        let began = Instant::now();
        let done = service.execute("demo", function, "").await;
        assert_eq!((&done["status"], &output(&done)), (&json!("success"), who), "{done}\n{}", service.log());
        assert!(began.elapsed() < Duration::from_secs(2), "a warm call took {:?}", began.elapsed());
        let id = service.accept("demo", function, "").await;
        assert_eq!(output(&service.ended("demo", &id).await), *who);
        calls += 2;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_calls_go_on_while_docker_is_away_and_the_rest_once_it_is_back() {
    use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
    let away = Duration::from_secs(number("TAIBAI_CRASH_DOCKER_DOWN", 10));
    let mut engine = Engine::start().await;
    let image = required("TAIBAI_TEST_IMAGE");
    engine.load(&image);
    let mut home = ledger::home(&[("engine.function_concurrency", "1"), ("engine.queue_timeout", "5s")]);
    home.use_engine(&engine.socket());
    let service = Service::start_in(home).await;
    let runtime = service.runtime().await;
    let function = async |name: &str| {
        service.function("demo", &runtime, &format!("{WHO}\n# {name}"), &[("cpu", "1000")]).await
    };
    let warm = function("warm").await;
    let who = output(&service.execute("demo", &warm, "").await);
    let pool = format!("/v1/runtimes/{runtime}/pool");
    eventually("a worker is prepared", async || {
        service.ask("admin", "GET", &pool, None).await.expect(200)["capacity"]["available"] == 1
    })
    .await;

    for (how, signal) in [("stopped", SIGTERM), ("killed", SIGKILL)] {
        engine.down(signal);
        let began = Instant::now();
        // Without Docker a new worker cannot be; who waits for one is told.
        let (prepared, cold) = (function("prepared").await, function("cold").await);
        let _ = service.execute("demo", &prepared, "").await;
        let told = service.execute("demo", &cold, "").await;
        assert_eq!(told["status"], "error", "{told}");
        let reason = result(&told)["reason"].clone();
        assert!(["preparation", "no_capacity"].iter().any(|known| reason == *known), "{told}");
        let left = if how == "stopped" { away } else { away / 5 };
        let calls = calls_go_on(&service, &warm, &who, left.saturating_sub(began.elapsed())).await;
        let down = began.elapsed();
        engine.up().await;
        eventually("new workers are made again", async || {
            service.execute("demo", &cold, "").await["status"] == "success"
        })
        .await;
        assert_eq!(output(&service.execute("demo", &warm, "").await), who, "the worker lived on");
        in_step(&service).await;
        println!("dockerd {how} for {:.0} s: {calls} warm calls went on", down.as_secs_f64());
        for function in [prepared, cold] {
            let path = format!("/v1/functions/{function}");
            service.ask("demo", "DELETE", &path, None).await.expect(204);
        }
    }

    // A service that starts without Docker says so, and one that starts later adopts what lives.
    engine.down(SIGTERM);
    let home = service.kill_9();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taibai"));
    command.arg("--config-file").arg(home.config_file()).arg("serve");
    let Err((home, log)) = Service::try_start(home, command).await else { panic!("it started") };
    assert!(log.contains("Docker"), "{log}");
    engine.up().await;
    let service = Service::start_in(home).await;
    assert_eq!(output(&service.execute("demo", &warm, "").await), who, "adopted");
    in_step(&service).await;
    nothing_left(service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_said_and_missed_no_longer_than_it_is_away() {
    let database = Arc::new(OwnDatabase::create());
    assert!(!database.is_file(), "TAIBAI_TEST_DATABASE names no server: run tox-like-scripts/crash");
    let url = database.url().to_owned();
    let server = url.split_once('@').unwrap().1.split('/').next().unwrap().to_owned();
    let mut way = Way::open(server.clone()).await;
    let mut home = Home::on(database, &[]);
    home.sync_database();
    home.set("database.connection", &url.replace(&server, &way.address.to_string()));
    let service = Service::start_in(home).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, WHO, &[("timeout", "30"), ("cpu", "1000")]).await;
    let who = output(&service.execute("demo", &function, "").await);
    // Accepted before, ends meanwhile.
    let id = service.accept("demo", &function, r#"{"seconds": 1}"#).await;

    way.cut().await;
    let body = |sync: bool| json!({"function_id": function, "sync": sync});
    let (sync, accept, list) = tokio::join!(
        service.ask("demo", "POST", "/v1/executions", Some(body(true))),
        service.ask("demo", "POST", "/v1/executions", Some(body(false))),
        service.ask("demo", "GET", "/v1/executions", None),
    );
    for answer in [&sync, &accept, &list] {
        let told = answer.expect(503);
        assert_eq!(told["faultstring"], "The database is unavailable", "{told}");
        assert!(answer.headers.contains_key("retry-after"));
    }
    assert_eq!(service.get("/healthcheck").await.status, 503);

    way.mend().await;
    let ended = service.ended("demo", &id).await;
    assert_eq!(ended["status"], "success", "{ended}");
    let began = Instant::now();
    assert_eq!(output(&service.execute("demo", &function, "").await), who, "by the same worker");
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(service.get("/healthcheck").await.status, 200);
    in_step(&service).await;
    nothing_left(service).await;
}

/// A small disk that goes with its value.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(mebibytes: u32) -> Self {
        let directory = tempfile::Builder::new().prefix("tbdisk").tempdir_in("/run").unwrap();
        let size = format!("size={mebibytes}m,mode=755");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()));
        Self(directory)
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.at("filler")).unwrap();
        let block = [0_u8; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.at("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

async fn answers(service: &Service, function: &str, sync: bool) -> (u16, Value) {
    // Some bytes, so that the log of the database has no room from before for many.
    let input = json!({"pad": "x".repeat(100_000)}).to_string();
    let body = json!({"function_id": function, "sync": sync, "input": input});
    let answer = service.ask("demo", "POST", "/v1/executions", Some(body)).await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_database_whose_disk_is_full_refuses_and_goes_on_once_there_is_room() {
    let disk = Disk::new(16);
    let mut home = Home::new(&[]);
    home.set("database.connection", &format!("sqlite://{}", disk.at("taibai.sqlite")));
    let service = Service::start_in(home).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, WHO, &[("cpu", "1000")]).await;
    service.execute("demo", &function, "").await;
    disk.fill();
    let (mut accepted, mut refused) = (Vec::new(), 0);
    let limit = Instant::now() + Duration::from_secs(60);
    while refused < 2 {
        assert!(Instant::now() < limit, "it never was full");
        match answers(&service, &function, false).await {
            (201, told) => accepted.push(told["id"].as_str().unwrap().to_owned()),
            (503, told) => {
                assert_eq!(told["faultstring"], "The database is unavailable", "{told}");
                refused += 1;
            }
            other => panic!("{other:?}\n{}", service.log()),
        }
    }
    let (status, told) = answers(&service, &function, true).await;
    assert!(matches!(status, 201 | 503), "{told}");
    disk.free();
    for id in &accepted {
        assert_eq!(service.ended("demo", id).await["status"], "success");
    }
    assert_eq!(service.execute("demo", &function, "").await["status"], "success");
    let listed = service.ask("demo", "GET", "/v1/executions", None).await.expect(200);
    let open: Vec<_> = listed["executions"].as_array().unwrap().iter().map(|row| &row["status"]).collect();
    assert!(open.iter().all(|status| **status != "running"), "{open:?}");
    in_step(&service).await;
    service.stop_clean().await;
}

#[tokio::test]
async fn a_full_disk_of_packages_refuses_uploads_and_nothing_else() {
    let disk = Disk::new(2);
    let mut home = ledger::home(&[]);
    home.set("storage.file_system_dir", &disk.at("packages"));
    let service = Service::start_in(home).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, WHO, &[("cpu", "1000")]).await;
    disk.fill();
    let refused = service.create_function("demo", &runtime, &package(MARKED), &[]).await;
    assert_eq!(refused.expect(503)["faultstring"], "The package store is unavailable");
    assert_eq!(service.execute("demo", &function, "").await["status"], "success", "what is there is read");
    disk.free();
    let other = service.function("demo", &runtime, MARKED, &[("cpu", "1000")]).await;
    assert_eq!(service.execute("demo", &other, "").await["status"], "success");
    let left = std::fs::read_dir(disk.at("packages")).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name.len() != 2).collect();
    assert!(left.is_empty(), "{left:?}");
    in_step(&service).await;
    service.stop_clean().await;
}

#[tokio::test]
async fn a_full_disk_of_workers_starts_none_and_those_that_are_there_serve_on() {
    let disk = Disk::new(64);
    let mut home = ledger::home(&[("engine.queue_timeout", "5s"), ("docker.work_bytes", "16777216")]);
    home.set("docker.work_dir", &disk.at("work"));
    let service = Service::start_in(home).await;
    let runtime = service.runtime().await;
    let warm = service.function("demo", &runtime, WHO, &[("cpu", "1000")]).await;
    let who = output(&service.execute("demo", &warm, "").await);
    let pool = format!("/v1/runtimes/{runtime}/pool");
    eventually("a worker is prepared", async || {
        service.ask("admin", "GET", &pool, None).await.expect(200)["capacity"]["available"] == 1
    })
    .await;
    disk.fill();
    let mut others = Vec::new();
    for number in 0..2 {
        let source = format!("{WHO}\n# {number}");
        others.push(service.function("demo", &runtime, &source, &[("cpu", "1000")]).await);
    }
    let mut told = Vec::new();
    for other in &others {
        let done = service.execute("demo", other, "").await;
        told.push(done["status"].clone());
        let done = service.execute("demo", &warm, "").await;
        assert_eq!(output(&done), who, "{done}");
    }
    assert!(told.contains(&json!("error")), "{told:?}");
    disk.free();
    for other in &others {
        eventually("workers are made again", async || {
            service.execute("demo", other, "").await["status"] == "success"
        })
        .await;
    }
    assert_eq!(output(&service.execute("demo", &warm, "").await), who);
    in_step(&service).await;
    nothing_left(service).await;
}

/// The library that tells a process another time.
fn faketime() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let mut found = found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.exists()).expect("libfaketime is there: run tox-like-scripts/crash")
}

#[tokio::test]
async fn a_clock_that_jumps_ends_nothing_and_runs_nothing_twice() {
    let home = ledger::home(&[("engine.memory_mark", "268435456")]);
    let clock = home.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    std::fs::set_permissions(&clock, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taibai"));
    command
        .arg("--config-file")
        .arg(home.config_file())
        .arg("serve")
        .env("LD_PRELOAD", faketime())
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let service = Service::start_as(home, command).await;
    Ledger::watch(&service.home).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, MARKED, &[("timeout", "60"), ("cpu", "1000")]).await;
    let mut ledger = Ledger::default();
    ledger.call(&service, &function, 0.0).await.unwrap();
    let made = |row: &Value| row["created_at"].as_str().unwrap()[..13].to_owned();
    let mut hours = Vec::new();
    for shift in ["+7200", "-7200", "+0"] {
        let id = ledger.accept(&service, &function, 9.0).await.unwrap();
        eventually("it runs", async || service.metric("taibai_pool_workers").await > 0.0).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        std::fs::write(&clock, shift).unwrap();
        // Meanwhile whoever looks for what is overdue has looked: every five seconds.
        let done = ledger.call(&service, &function, 0.0).await.unwrap();
        assert_eq!(done["status"], "success", "{done}");
        hours.push(made(&done));
        ledger.accept(&service, &function, 0.0).await.unwrap();
        let ended = service.ended("demo", &id).await;
        assert_eq!(ended["status"], "success", "{shift}: {ended}\n{}", service.log());
    }
    assert!(hours[0] > hours[2] && hours[1] < hours[2], "the clock has jumped: {hours:?}");
    let tally = ledger.check(&service).await;
    assert_eq!(tally.ends.len(), 1, "{tally:?}");
    in_step(&service).await;
    nothing_left(service).await;
}
