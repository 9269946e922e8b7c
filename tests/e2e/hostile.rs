//! Strangers' functions through the API, beside a neighbour of another project that is called all the while.
//! What single attempts do to a worker is in `tests/driver`; here the platform stays well throughout.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::images::{self, Image};
use crate::service::{Answer, Service, eventually, output, required, zip_of};

const PYTHON: &str = include_str!("hostile/main.py");
const PROBE: &str = include_str!("hostile/probe.sh");

const WORK_BYTES: u64 = 64 << 20;
const MAX_LOG: usize = 100_000;
/// Seconds that a hostile function has, and that an answer may take beyond: a cold start, on a machine
/// that is busy with its neighbours.
const TIMEOUT: u64 = 5;
const SLACK: Duration = Duration::from_secs(12);

const TIMED_OUT: &str = "Function execution timeout.";
const TOO_MUCH: &str = "Function execution failed because of too much resource consumption";
const INTERFERED: &str = "Function interfered with its runtime.";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How an execution is to end.
enum End {
    /// Failed, with this output.
    Failed(&'static str),
    /// Failed, with an output that has these words.
    Says(&'static str),
    /// Succeeded, with an output that is right.
    Returned(fn(&Value) -> bool),
    /// Either of these: what comes first is up to the kernel.
    Either(&'static str, &'static str),
}

impl End {
    fn admits(&self, done: &Value) -> bool {
        let (status, output) = (done["status"].as_str().unwrap_or_default(), seen(done)["output"].take());
        let text = output.as_str().unwrap_or_default();
        match self {
            Self::Failed(wanted) => status == "failed" && text == *wanted,
            Self::Says(words) => status == "failed" && text.contains(words),
            Self::Returned(is_right) => status == "success" && is_right(&output),
            Self::Either(one, other) => status == "failed" && (text == *one || text == *other),
        }
    }
}

/// A service that listens beyond loopback, so that not being reached is the rules' doing.
async fn service() -> Service {
    let log = MAX_LOG.to_string();
    let work = WORK_BYTES.to_string();
    let subnet6 =
        format!("fd7a:1ba5:{:x}::/64", NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() % 60_000);
    crate::network::start(&[
        images::ANY[0],
        ("api.host", "0.0.0.0"),
        ("api.allow_noauth_from_anywhere", "true"),
        ("docker.work_bytes", &work),
        ("engine.max_log_bytes", &log),
        ("network.subnet6", &subnet6),
    ])
    .await
}

/// Somebody else's function, called without a pause until the flag is set. Each call succeeds.
async fn neighbour(service: &Service, runtime: &str, stop: &Cell<bool>) -> u32 {
    let source = "def main(word, **kwargs):\n    print(word)\n    return word * 2\n";
    let function = service.function("other", runtime, source, &[("timeout", "60"), ("cpu", "1000")]).await;
    let mut calls = 0;
    while !stop.get() {
        let done = service.execute("other", &function, r#"{"word": "ab"}"#).await;
        assert_eq!((&done["status"], output(&done)), (&json!("success"), json!("abab")), "{done}");
        calls += 1;
    }
    calls
}

/// What the service holds: resident bytes and open descriptors.
fn held(service: &Service) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count();
    (resident << 10, descriptors)
}

/// Processes of this machine whose command line has the marker.
fn processes(marker: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.split('\0').next() == Some(marker))
        .collect()
}

/// Files of workers and packages in unfinished uploads; what the service keeps for its next start is none.
fn files(home: &Path, deployment: &str) -> Vec<String> {
    let names = |directory: std::path::PathBuf| {
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    let workers = names(home.join("w/w").join(deployment)).filter(|path| path.is_dir());
    // An empty disk, of which those of workers are copies, is kept.
    let disks = names(home.join("work").join(deployment)).filter(|path| !path.ends_with("template.image"));
    let uploads = names(home.join("packages")).filter(|path| path.display().to_string().contains(".upload-"));
    workers.chain(disks).chain(uploads).map(|path| path.display().to_string()).collect()
}

/// Ends the service, and has nothing left of anything.
async fn stop(service: Service) {
    let home = service.stop().await;
    assert_eq!(home.leftovers(), Vec::<String>::new());
    assert_eq!(files(home.path(), &home.deployment), Vec::<String>::new());
}

/// The result of an execution; nothing where it is deeper than we read.
fn seen(done: &Value) -> Value {
    serde_json::from_str(done["result"].as_str().unwrap_or_default()).unwrap_or_else(|_| json!({}))
}

/// One call of a hostile function: it ends as it must, in time, or is noted as wrong.
async fn attack(
    service: &Service,
    function: &str,
    name: &str,
    input: &str,
    timeout: u64,
    end: &End,
    wrong: &mut Vec<String>,
) -> Value {
    let began = Instant::now();
    let done = service.execute("demo", function, input).await;
    let took = began.elapsed();
    let shown = &done.to_string()[..done.to_string().floor_char_boundary(600)];
    let ran = seen(&done)["duration"].as_f64();
    let in_time =
        took < Duration::from_secs(timeout) + SLACK && ran.is_none_or(|ran| ran < timeout as f64 + 1.0);
    if !end.admits(&done) || !in_time {
        wrong.push(format!("{name}, after {took:?}: {shown}"));
    }
    done
}

const fn millions(value: u64) -> u64 {
    value * 1_000_000
}

/// What Python functions do, and how it ends.
const PYTHON_ATTACKS: &[(&str, &str, End)] = &[
    ("fork_bomb", "{}", End::Either(TIMED_OUT, TOO_MUCH)),
    (
        "fill",
        r#"{"path": "."}"#,
        End::Returned(|done| {
            let written = done["written"].as_u64().unwrap_or(0);
            done["error"] == libc::ENOSPC && written > millions(30) && written <= WORK_BYTES
        }),
    ),
    (
        "fill",
        r#"{"path": "/tmp"}"#,
        End::Returned(|done| {
            done["error"] == libc::ENOSPC && done["written"].as_u64().is_some_and(|bytes| bytes <= 64 << 20)
        }),
    ),
    (
        "fill",
        r#"{"path": "/dev/shm"}"#,
        End::Returned(|done| {
            done["error"] == libc::ENOSPC && done["written"].as_u64().is_some_and(|bytes| bytes <= 16 << 20)
        }),
    ),
    ("fill_names", "{}", End::Returned(|done| done["made"].as_u64().is_some_and(|made| made > 100))),
    ("fill_memory", "{}", End::Either(TOO_MUCH, TIMED_OUT)),
    ("fill_log", "{}", End::Says("")),
    ("hold_descriptors", "{}", End::Says("")),
    ("daemon", "{}", End::Returned(|done| done == "away")),
    ("daemon_at_the_deadline", "{}", End::Failed(TIMED_OUT)),
    ("deaf", "{}", End::Failed(TIMED_OUT)),
    ("stops_everyone", "{}", End::Failed(TIMED_OUT)),
    ("garbage", "{}", End::Failed(INTERFERED)),
    ("forge", "{}", End::Failed(INTERFERED)),
    ("stream_a_gigabyte", "{}", End::Failed(INTERFERED)),
    ("deep_answer", r#"{"depth": 1000000}"#, End::Returned(|_| true)),
    ("deep_result", r#"{"depth": 100000}"#, End::Says("JSON")),
    ("crash", "{}", End::Failed(TOO_MUCH)),
    ("close_everything", "{}", End::Failed(INTERFERED)),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_function_ends_in_time_and_its_worker_its_neighbour_and_the_service_stay_well() {
    let service = service().await;
    let runtime = service.runtime().await;
    let limits = [("timeout", "5"), ("cpu", "1000"), ("memory_size", "268435456")];
    let function = service.function("demo", &runtime, PYTHON, &limits).await;
    let marker = format!("hostile-{}", service.home.deployment);
    let stop_calls = Cell::new(false);

    let attacks = async {
        let good = async |after: &str| {
            let done = service.execute("demo", &function, r#"{"do": "good"}"#).await;
            assert_eq!(
                (&done["status"], output(&done)),
                (&json!("success"), json!("good")),
                "{after}: {done}"
            );
        };
        good("nothing").await;
        let workers = service.workers(&function).await;
        let before = held(&service);
        let mut wrong = Vec::new();
        for (name, given, end) in PYTHON_ATTACKS {
            let mut input: Value = serde_json::from_str(given).unwrap();
            input["do"] = json!(name);
            if name.starts_with("daemon") {
                input["marker"] = json!(marker);
            }
            let label = format!("{name} {given}");
            let done =
                attack(&service, &function, &label, &input.to_string(), TIMEOUT, end, &mut wrong).await;
            let log = service.execution_log("demo", done["id"].as_str().unwrap()).await;
            assert!(log.len() < MAX_LOG + 200, "{label}: a log of {} bytes", log.len());
            if name.starts_with("daemon") {
                eventually("no daemon is left", async || processes(&marker).is_empty()).await;
            }
            good(&label).await;
            // Slots are replaced; a worker that has to be is none that can be trusted to hold strangers.
            assert_eq!(service.workers(&function).await, workers, "{label}");
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        // What no limit stops is told by what is left: bytes come back, descriptors do.
        eventually("descriptors are returned", async || held(&service).1 <= before.1 + 8).await;
        let after = held(&service);
        assert!(after.0 < before.0 + (64 << 20), "resident: {} bytes, then {}", before.0, after.0);
        stop_calls.set(true);
    };
    let (calls, ()) = tokio::join!(neighbour(&service, &runtime, &stop_calls), attacks);
    assert!(calls > 50, "{calls} calls of the neighbour");
    stop(service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_of_a_gigabyte_is_refused_and_deep_json_is_data_like_any_other() {
    let service = service().await;
    let runtime = service.runtime().await;
    let stop_calls = Cell::new(false);
    let attacks = async {
        let limits = [("timeout", "90"), ("cpu", "2000"), ("memory_size", "4294967296")];
        let large = service.function("demo", &runtime, PYTHON, &limits).await;
        let before = held(&service).0;
        // Which of the two is up to how much the interpreter needs to write it down.
        let end = End::Says("1073741826 bytes");
        let mut wrong = Vec::new();
        attack(&service, &large, "gigabyte", r#"{"do": "gigabyte"}"#, 90, &end, &mut wrong).await;
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(held(&service).0 < before + (64 << 20), "the service held it");
        let done = service.execute("demo", &large, r#"{"do": "good"}"#).await;
        assert_eq!(output(&done), "good");

        let source = "def main(*args, **kwargs):\n    kwargs.pop('context', None)\n    return [len(args), len(kwargs)]\n";
        let function = service.function("demo", &runtime, source, &[]).await;
        let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        // As the text of the input, which is text to the function where it is no object that can be read.
        let object = format!("{{\"a\": {}}}", deep(100_000));
        let done = service.execute("demo", &function, &object).await;
        assert_eq!((&done["status"], output(&done)), (&json!("success"), json!([1, 0])), "as text");
        // As the body itself, of a call, of a function and of a webhook.
        let send = async |path: &str, body: String| -> Answer {
            let request = service.request("demo", "POST", path).header("content-type", "application/json");
            crate::service::read(request.body(body)).await
        };
        let body = format!("{{\"function_id\": \"{function}\", \"input\": {}}}", deep(100_000));
        assert_eq!(send("/v1/executions", body).await.status, 400);
        assert_eq!(send("/v1/functions", format!("{{\"code\": {}}}", deep(100_000))).await.status, 400);
        let new = json!({"function_id": function, "mode": "sync"});
        let webhook = service.ask("demo", "POST", "/v1/webhooks", Some(new)).await.expect(201);
        let url = webhook["webhook_url"].as_str().unwrap();
        let called = send(&url[url.find("/v1/").unwrap()..], object).await.expect(200);
        assert_eq!(called["output"], json!([0, 0]), "what cannot be read has no fields");

        // A result that is deep reaches whoever asked for it to the letter, through a webhook too.
        let answers = service.function("demo", &runtime, PYTHON, &[("timeout", "20"), ("cpu", "1000")]).await;
        let done = service.execute("demo", &answers, r#"{"do": "deep_answer", "depth": 100000}"#).await;
        let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(done["status"], "success");
        assert!(done["result"].as_str().unwrap().starts_with(&format!("{{\"output\":{open}{close},")));
        let new = json!({"function_id": answers, "mode": "sync"});
        let webhook = service.ask("demo", "POST", "/v1/webhooks", Some(new)).await.expect(201);
        let url = webhook["webhook_url"].as_str().unwrap();
        let body = json!({"do": "deep_answer", "depth": 100_000}).to_string();
        let called = send(&url[url.find("/v1/").unwrap()..], body).await;
        assert_eq!(called.status, 200);
        assert!(called.text().contains(&format!("\"output\":{open}{close}")), "it is cut");
        stop_calls.set(true);
    };
    let (calls, ()) = tokio::join!(neighbour(&service, &runtime, &stop_calls), attacks);
    assert!(calls > 10, "{calls} calls of the neighbour");
    stop(service).await;
}

/// Everything that answers this machine and must not answer a function.
struct Surroundings {
    targets: Vec<(String, u16)>,
    /// Sockets and files of this machine: of Docker, of workers.
    paths: Vec<String>,
    neighbour: String,
    _database: TcpListener,
}

impl Surroundings {
    async fn of(service: &Service) -> Self {
        let setting =
            |key: &str| service.home.settings().into_iter().find(|(name, _)| name == key).unwrap().1;
        let subnet: ipnet::Ipv4Net = setting("network.subnet").parse().unwrap();
        let gateway: IpAddr = subnet.hosts().next().unwrap().into();
        let api: u16 = service.url.rsplit(':').next().unwrap().parse().unwrap();
        let database = TcpListener::bind((gateway, 0)).unwrap();
        let own = [SocketAddr::new(gateway, api), database.local_addr().unwrap()];
        for at in own {
            TcpStream::connect_timeout(&at, Duration::from_secs(5))
                .unwrap_or_else(|error| panic!("{at} does not answer this machine: {error}"));
        }
        let docker = |arguments: &[&str]| {
            let ran = Command::new("docker").args(arguments).output().unwrap();
            assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
            String::from_utf8(ran.stdout).unwrap().trim().to_owned()
        };
        // A container that somebody put on the same bridge, and that listens.
        let network = format!("taibai-{}", service.home.deployment);
        let image = required("TAIBAI_TEST_IMAGE");
        let listens = ["python3", "-m", "http.server", "8000"];
        let neighbour = docker(&[&["run", "-d", "--network", &network, &*image], &listens[..]].concat());
        let ask = "import socket; socket.create_connection(('127.0.0.1', 8000))";
        eventually("the neighbour listens", async || {
            let ran = Command::new("docker").args(["exec", &neighbour, "python3", "-c", ask]).output();
            ran.unwrap().status.success()
        })
        .await;
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}";
        let addresses = docker(&["inspect", "--format", format, &neighbour]);
        let mut targets: Vec<_> = addresses.split_whitespace().map(|at| (at.to_owned(), 8000)).collect();
        assert_eq!(targets.len(), 2, "{addresses}");
        targets.extend(own.map(|at| (at.ip().to_string(), at.port())));
        targets.push(("127.0.0.1".to_owned(), api));
        for metadata in ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "fe80::a9fe:a9fe"] {
            targets.push((metadata.to_owned(), 80));
        }
        let workers = service.home.path().join("w").display().to_string();
        let mut paths: Vec<String> = [
            "/var/run/docker.sock",
            "/run/docker.sock",
            "/run/containerd/containerd.sock",
            "/var/lib/docker",
        ]
        .map(str::to_owned)
        .into();
        paths.push(service.home.path().display().to_string());
        let found = Command::new("find").args([&workers, "-type", "s"]).output().unwrap();
        let sockets = String::from_utf8(found.stdout).unwrap();
        assert!(sockets.lines().count() >= 1, "no worker listens below {workers}");
        paths.extend(sockets.lines().map(str::to_owned));
        let abstract_ones = std::fs::read_to_string("/proc/net/unix").unwrap();
        let names = abstract_ones.lines().filter_map(|line| line.split_whitespace().nth(7));
        let names: BTreeSet<_> = names.filter(|name| name.starts_with('@')).map(str::to_owned).collect();
        paths.extend(names);
        Self { targets, paths, neighbour, _database: database }
    }

    /// The probe for a shell, with these written into it.
    fn probe(&self) -> String {
        let targets: Vec<_> = self.targets.iter().map(|(host, port)| format!("{host}/{port}")).collect();
        let paths = self.paths.iter().filter(|path| path.starts_with('/')).cloned().collect::<Vec<_>>();
        PROBE.replace("@TARGETS@", &targets.join(" ")).replace("@PATHS@", &paths.join(" "))
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "-f", &self.neighbour]).output();
    }
}

/// What worked for the shell's probe, which has to have come to its end.
#[track_caller]
fn found(text: &str) -> Vec<&str> {
    let tried = text.lines().find_map(|line| line.strip_prefix("TRIED ")).unwrap_or_else(|| panic!("{text}"));
    assert!(tried.parse::<u32>().unwrap() > 50, "{text}");
    text.lines().filter(|line| !line.starts_with("TRIED ")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_of_any_kind_reaches_nothing_that_is_not_its_own() {
    let service = service().await;
    let python = service.runtime().await;
    let node = service.runtime_of(&required("TAIBAI_TEST_NODE_IMAGE")).await;
    let shell = service.runtime_of(&required("TAIBAI_TEST_SHELL_IMAGE")).await;
    let limits = [("timeout", "60"), ("cpu", "1000"), ("memory_size", "134217728")];
    let stop_calls = Cell::new(false);

    let probes = async {
        let function = service.function("demo", &python, PYTHON, &limits).await;
        service.execute("demo", &function, r#"{"do": "good"}"#).await;
        let around = Surroundings::of(&service).await;
        let input = json!({"do": "probe", "targets": around.targets, "sockets": around.paths}).to_string();
        let done = service.execute("demo", &function, &input).await;
        let seen = output(&done);
        assert_eq!(seen["worked"], json!([]), "{done}");
        assert!(seen["tried"].as_u64().unwrap() > 200, "{seen}");

        let script = around.probe();
        let with = [("entry", "main.main"), limits[0], limits[1], limits[2]];
        let source = format!("{script}\n");
        let run = "const { spawnSync } = require('child_process');\n\
                   exports.main = () => spawnSync('bash', ['-c', require('fs').readFileSync(__dirname + '/probe.sh', 'utf8')], \
                   { encoding: 'utf8' }).stdout;\n";
        let package = zip_of(&[("main.js", run.as_bytes()), ("probe.sh", source.as_bytes())]);
        let created = service.create_function("demo", &node, &package, &with).await.expect(201);
        let done = service.execute("demo", created["id"].as_str().unwrap(), "").await;
        assert_eq!(found(output(&done).as_str().unwrap()), Vec::<&str>::new(), "Node.js");

        // A program's output is its result, and has to be JSON.
        let program =
            "#!/bin/bash\nset -o pipefail\nbash \"$(dirname \"$0\")/probe.sh\" | jq --raw-input --slurp .\n";
        let package = program_zip(&[("main", program), ("probe.sh", &source)]);
        let created = service.create_function("demo", &shell, &package, &with).await.expect(201);
        let done = service.execute("demo", created["id"].as_str().unwrap(), "").await;
        let text = output(&done);
        assert_eq!(found(text.as_str().unwrap_or_else(|| panic!("{done}"))), Vec::<&str>::new(), "a program");

        let image = Image::of("probe", "", &json!(["/bin/bash", "-c", script]));
        let fields = [("timeout", json!(60)), ("cpu", json!(1000)), ("memory_size", json!(134_217_728))];
        let function = images::function(&service, &image, &fields).await;
        let done = service.execute("demo", &function, "").await;
        assert_eq!(done["status"], "success", "{done}");
        let log = service.execution_log("demo", done["id"].as_str().unwrap()).await;
        assert_eq!(found(&log), Vec::<&str>::new(), "an image");
        stop_calls.set(true);
    };
    let (calls, ()) = tokio::join!(neighbour(&service, &python, &stop_calls), probes);
    assert!(calls > 10, "{calls} calls of the neighbour");
    stop(service).await;
}

/// A package of programs.
fn program_zip(files: &[(&str, &str)]) -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in files {
        let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
        zip.start_file(*name, options).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_neither_loads_a_second_package_nor_speaks_for_another_execution() {
    let service = service().await;
    let runtime = service.runtime().await;
    let limits = [("timeout", "20"), ("cpu", "1000"), ("memory_size", "134217728")];
    let function = service.function("demo", &runtime, PYTHON, &limits).await;
    let source = async || output(&service.execute("demo", &function, r#"{"do": "source"}"#).await);
    assert_eq!(source().await, PYTHON);
    let listed = output(&service.execute("demo", &function, r#"{"do": "second_package"}"#).await);
    assert_eq!(listed, json!(["main.py"]));
    assert_eq!(source().await, PYTHON, "it runs what was uploaded");

    // Both on one worker, at the same time; what the one writes is in no answer and no log of the other.
    let victim = service.accept("demo", &function, r#"{"do": "victim", "seconds": 5}"#).await;
    let mut forgers = Vec::new();
    while service.execution("demo", &victim).await["status"] == "running" {
        forgers.push(output(&service.execute("demo", &function, r#"{"do": "forge_for_others"}"#).await));
    }
    let ended = service.execution("demo", &victim).await;
    let of_victim = output(&ended);
    assert_eq!((&ended["status"], &of_victim["said"]), (&json!("success"), &json!("mine")), "{ended}");
    let log = format!("Start execution: {victim}\nmine\nstill mine\nFinished execution: {victim}\n");
    assert_eq!(service.execution_log("demo", &victim).await, log);
    let at = |execution: &Value, key: &str| execution[key].as_f64().unwrap();
    let met = forgers.iter().filter(|forger| {
        at(forger, "began") > at(&of_victim, "began") && at(forger, "ended") < at(&of_victim, "ended")
    });
    let tried = met.map(|forger| forger["tried"].as_u64().unwrap()).sum::<u64>();
    assert!(tried > 100, "{forgers:?} {of_victim}");
    assert_eq!(service.workers(&function).await.len(), 1, "they met on one worker");
    stop(service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_in_node_and_shell_and_images_are_held_as_python_is() {
    let service = service().await;
    let node = service.runtime_of(&required("TAIBAI_TEST_NODE_IMAGE")).await;
    let shell = service.runtime_of(&required("TAIBAI_TEST_SHELL_IMAGE")).await;
    let python = service.runtime().await;
    let marker = format!("hostile-{}", service.home.deployment);
    let daemon = format!("(setsid bash -c 'exec -a {marker} sleep 600' &) </dev/null >/dev/null 2>&1");
    let limits = [("timeout", "5"), ("cpu", "1000"), ("memory_size", "268435456"), ("entry", "main.main")];
    let stop_calls = Cell::new(false);

    let attacks = async {
        let scripts = NODE.replace("@DAEMON@", &daemon.replace('\\', "\\\\").replace('\'', "\\'"));
        let package = zip_of(&[("main.js", scripts.as_bytes())]);
        let created = service.create_function("demo", &node, &package, &limits).await.expect(201);
        let function = created["id"].as_str().unwrap();
        let good = async |after: &str| {
            let done = service.execute("demo", function, r#"{"do": "good"}"#).await;
            assert_eq!(output(&done), "good", "after {after}: {done}");
        };
        good("nothing").await;
        let mut wrong = Vec::new();
        for (name, end) in NODE_ATTACKS {
            let input = json!({"do": name}).to_string();
            attack(&service, function, &format!("Node.js: {name}"), &input, TIMEOUT, end, &mut wrong).await;
            eventually("no daemon is left", async || processes(&marker).is_empty()).await;
            good(name).await;
        }

        let program = SHELL.replace("@DAEMON@", &daemon);
        let package = program_zip(&[("main", &program)]);
        let created = service.create_function("demo", &shell, &package, &limits).await.expect(201);
        let function = created["id"].as_str().unwrap();
        for (name, end) in SHELL_ATTACKS {
            let input = json!({"do": name}).to_string();
            attack(&service, function, &format!("a program: {name}"), &input, TIMEOUT, end, &mut wrong).await;
            eventually("no daemon is left", async || processes(&marker).is_empty()).await;
            let done = service.execute("demo", function, r#"{"do": "good"}"#).await;
            assert_eq!(output(&done), "good", "after {name}: {done}");
        }

        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let program = IMAGE.replace("@DAEMON@", &daemon);
        let image = Image::of("attacks", "", &json!(["/bin/bash", "-c", program, "attacks"]));
        let fields = [("timeout", json!(5)), ("cpu", json!(1000)), ("memory_size", json!(134_217_728))];
        let function = images::function(&service, &image, &fields).await;
        for (name, status) in [
            ("good", "success"),
            ("fork_bomb", "failed"),
            ("fill_memory", "failed"),
            ("fill_disk", "success"),
            ("fill_log", "failed"),
            ("daemon", "success"),
            ("deaf", "failed"),
        ] {
            let began = Instant::now();
            let done = service.execute("demo", &function, name).await;
            assert_eq!(done["status"], status, "an image: {name}: {done}");
            assert!(began.elapsed() < Duration::from_secs(TIMEOUT) + SLACK, "an image: {name}");
            let log = service.execution_log("demo", done["id"].as_str().unwrap()).await;
            assert!(log.len() < MAX_LOG + 200, "an image: {name}: a log of {} bytes", log.len());
            eventually("no daemon is left", async || processes(&marker).is_empty()).await;
        }
        stop_calls.set(true);
    };
    let (calls, ()) = tokio::join!(neighbour(&service, &python, &stop_calls), attacks);
    assert!(calls > 50, "{calls} calls of the neighbour");
    stop(service).await;
}

const NODE: &str = r#"
const fs = require('fs');
const { spawn, spawnSync } = require('child_process');
const attacks = {
  good: () => 'good',
  fork_bomb: () => { spawnSync('bash', ['-c', 'bomb() { bomb | bomb & }; while true; do bomb; done']); for (;;); },
  fill_memory: () => { const kept = []; for (;;) kept.push(Buffer.alloc(1 << 24, 1)); },
  fill_log: () => { const line = 'y'.repeat(8191) + '\n'; for (;;) { try { fs.writeSync(1, line); } catch { } } },
  daemon: () => { spawnSync('bash', ['-c', '@DAEMON@']); return 'away'; },
  garbage: () => {
    const garbage = Buffer.alloc(1 << 16, 0xff);
    for (let fd = 3; fd < 64; fd++) { try { if (fs.fstatSync(fd).isSocket()) fs.writeSync(fd, garbage); } catch { } }
    for (;;);
  },
  gigabyte: () => ['x', 'x', 'x', 'x'].map((one) => one.repeat(1 << 28)),
  deep_result: () => { let value = []; for (let depth = 0; depth < 100000; depth++) value = [value]; return value; },
  deaf: () => { process.on('SIGTERM', () => { }); for (;;); },
};
exports.main = (context, { do: name }) => attacks[name]();
"#;

const NODE_ATTACKS: &[(&str, End)] = &[
    ("fork_bomb", End::Either(TIMED_OUT, TOO_MUCH)),
    ("fill_memory", End::Either(TOO_MUCH, TIMED_OUT)),
    ("fill_log", End::Says("")),
    ("daemon", End::Returned(|done| done == "away")),
    ("garbage", End::Either(INTERFERED, TIMED_OUT)),
    ("gigabyte", End::Says("")),
    ("deep_result", End::Says("")),
    ("deaf", End::Failed(TIMED_OUT)),
];

const SHELL: &str = r#"#!/bin/bash
case $(jq --raw-output .do) in
good) echo '"good"' ;;
fork_bomb) bomb() { bomb | bomb & }; while true; do bomb; done ;;
fill_memory) x=x; while true; do x=$x$x; done ;;
fill_log) yes "$(printf 'y%.0s' {1..1000})" >&2 ;;
daemon) @DAEMON@; echo '"away"' ;;
garbage) for fd in 3 4 5 6 7 8 9; do head -c 100000 /dev/urandom >&"$fd"; done 2>/dev/null; echo '"tried"' ;;
gigabyte) head -c 1G /dev/zero | tr '\0' 1 ;;
deep_result) printf '[%.0s' {1..100000}; printf ']%.0s' {1..100000} ;;
deaf) trap '' TERM HUP INT; while true; do :; done ;;
esac
"#;

const SHELL_ATTACKS: &[(&str, End)] = &[
    ("fork_bomb", End::Says("")),
    ("fill_memory", End::Says("")),
    ("fill_log", End::Says("")),
    ("daemon", End::Returned(|done| done == "away")),
    ("garbage", End::Returned(|done| done == "tried")),
    ("gigabyte", End::Says("")),
    ("deaf", End::Failed(TIMED_OUT)),
];

const IMAGE: &str = r#"
case $1 in
good) ;;
fork_bomb) bomb() { bomb | bomb & }; while true; do bomb; done ;;
fill_memory) exec python3 -c 'kept = [b"x" * (1 << 20) * n for n in range(1, 1000)]' ;;
fill_disk) head -c 1G /dev/zero >/tmp/fill; test "$(stat --format %s /tmp/fill)" -le 67108864 ;;
fill_log) yes "$(printf 'y%.0s' {1..1000})" ;;
daemon) @DAEMON@ ;;
deaf) trap '' TERM HUP INT; while true; do :; done ;;
esac
"#;
