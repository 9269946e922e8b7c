//! `taibai api` and `taibai engine` as processes of their own, which share a database on a server. Run
//! by `tox-like-scripts/databases`.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taibai::model::{EngineId, Timestamp, engine};

use crate::operations::{Load, doubtful, each_ran_once, upgrade_check_as};
use crate::own::OwnDatabase;
use crate::service::{Home, Service, eventually, output, result};
use crate::waiting;

const COUNT: &str = r#"
import os, time
def main(seconds=0, **kwargs):
    time.sleep(seconds)
    return os.getpid()
"#;

/// What the processes of one deployment have in common.
struct Site {
    database: Arc<OwnDatabase>,
    packages: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let database = OwnDatabase::create();
        assert!(!database.is_file(), "TAIBAI_TEST_DATABASE names no server: run tox-like-scripts/databases");
        Self { database: Arc::new(database), packages: tempfile::tempdir().unwrap() }
    }

    fn home(&self, options: &[(&str, &str)]) -> Home {
        let mut home = Home::on(self.database.clone(), options);
        home.set("storage.file_system_dir", &self.packages.path().display().to_string());
        home
    }

    /// An engine on a node of its own, as far as one can tell.
    async fn engine(&self, node: &str, options: &[(&str, &str)]) -> Service {
        let mut home = self.home(&[("engine.node", node), ("engine.health_port", "0")]);
        home.set("engine.listen", &format!("unix://{}", home.path().join("e.sock").display()));
        for (key, value) in options {
            home.set(key, value);
        }
        Service::start_role(home, "engine").await
    }

    async fn api(&self, options: &[(&str, &str)]) -> Service {
        Service::start_role(self.home(options), "api").await
    }
}

/// Sends a synchronous call and gives its status and body.
fn call(api: &Service, function: &str, fields: Value) -> tokio::task::JoinHandle<(u16, Value)> {
    let mut body = json!({"function_id": function});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let request = api.request("demo", "POST", "/v1/executions").header("content-type", "application/json");
    let sent = request.body(body.to_string()).send();
    tokio::spawn(async move {
        let answer = sent.await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
    })
}

#[tokio::test]
async fn an_api_and_an_engine_run_functions_and_end_in_good_order() {
    let site = Site::new();
    let engine = site.engine("one", &[]).await;
    let api = site.api(&[]).await;
    let runtime = api.runtime().await;
    let function = api.function("demo", &runtime, COUNT, &[]).await;

    let done = api.execute("demo", &function, "").await;
    assert_eq!(done["status"], "success", "{done}");
    let id = done["id"].as_str().unwrap();
    assert!(api.execution_log("demo", id).await.contains("Start execution"));
    assert_eq!(api.execution("demo", id).await, done);
    let id = api.accept("demo", &function, "").await;
    assert_eq!(output(&api.ended("demo", &id).await), output(&done), "the same warm process");

    let workers = api.workers(&function).await;
    assert_eq!(workers.len(), 1);
    assert!(engine.home.container_names().contains(&workers[0]));
    assert_eq!(api.home.containers(), Vec::<String>::new(), "the API has no Docker");
    let path = format!("/v1/functions/{function}/scale_up");
    api.ask("admin", "POST", &path, Some(json!({"count": 1}))).await.expect(202);
    eventually("a second worker", async || api.workers(&function).await.len() == 2).await;
    let path = format!("/v1/functions/{function}/scale_down");
    api.ask("admin", "POST", &path, Some(json!({"count": 5}))).await.expect(202);
    eventually("one is left", async || api.workers(&function).await.len() == 1).await;
    let pool = api.ask("admin", "GET", &format!("/v1/runtimes/{runtime}/pool"), None).await.expect(200);
    assert!(pool["capacity"]["total"].as_u64().unwrap() >= 1, "{pool}");

    let log = engine.log();
    let health = log.split("health on ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let answer = reqwest::get(format!("{health}/healthcheck")).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap()), (200, "OK".to_owned()));
    let metrics = reqwest::get(format!("{health}/metrics")).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("taibai_executions_total{"), "{metrics}");

    // A call under way outlives the word to stop, on both sides.
    let running = call(&api, &function, json!({"input": "{\"seconds\": 2}"}));
    tokio::time::sleep(Duration::from_millis(500)).await;
    engine.send_sigterm();
    let (status, ended) = running.await.unwrap();
    assert_eq!((status, &ended["status"]), (201, &json!("success")), "{ended}");
    engine.stop_clean().await;

    // Without an engine a call is refused, and what may wait waits for the next one.
    let (status, refused) = call(&api, &function, json!({})).await.unwrap();
    assert_eq!((status, &refused["faultstring"]), (503, &json!("No engine is there to run functions.")));
    let waiting = api.accept("demo", &function, "").await;
    let engine = site.engine("two", &[]).await;
    assert_eq!(api.ended("demo", &waiting).await["status"], "success");
    api.stop_clean().await;
    engine.stop_clean().await;
}

#[tokio::test]
async fn a_call_of_more_than_a_minute_is_answered_by_an_engine_elsewhere() {
    let site = Site::new();
    let engine = site.engine("one", &[]).await;
    let api = site.api(&[]).await;
    let runtime = api.runtime().await;
    let function = api.function("demo", &runtime, waiting::SLEEPS, &[("timeout", "300")]).await;
    waiting::is_answered(&api, &function, waiting::long()).await;
    api.stop_clean().await;
    engine.stop_clean().await;
}

#[tokio::test]
async fn a_version_and_an_alias_mean_the_same_on_both_sides() {
    let site = Site::new();
    let engine = site.engine("one", &[]).await;
    let api = site.api(&[]).await;
    let runtime = api.runtime().await;
    let function = api.function("demo", &runtime, COUNT, &[("timeout", "9")]).await;
    assert_eq!(api.publish(&function).await, 1);
    let other = "def main(**kwargs):\n    return 'other'\ndef second(**kwargs):\n    return 'second'\n";
    api.update(&function, &[("timeout", "1"), ("entry", "main.second")], Some(other)).await;

    let (status, done) =
        call(&api, &function, json!({"function_version": 1, "input": "{\"seconds\": 2}"})).await.unwrap();
    assert_eq!((status, &done["status"], &done["function_version"]), (201, &json!("success"), &json!(1)));
    assert!(output(&done).is_number(), "{done}");
    assert_eq!(output(&api.execute("demo", &function, "").await), "second");
    let new = json!({
        "name": "prod", "function_id": function, "canary_version": 1, "canary_weight": 100
    });
    api.ask("demo", "POST", "/v1/aliases", Some(new)).await.expect(201);
    let by_alias = async || {
        let body = json!({"function_alias": "prod"});
        api.ask("demo", "POST", "/v1/executions", Some(body)).await.expect(201)
    };
    assert_eq!(output(&by_alias().await), output(&done), "the version's own worker");
    api.ask("demo", "POST", "/v1/aliases/prod/rollback", None).await.expect(200);
    assert_eq!(output(&by_alias().await), "second");
    api.ask("demo", "DELETE", "/v1/aliases/prod", None).await.expect(204);

    let workers = async || {
        let path = format!("/v1/functions/{function}/workers?function_version=1");
        api.ask("admin", "GET", &path, None).await.expect(200)["workers"].as_array().unwrap().len()
    };
    let version = format!("/v1/functions/{function}/versions/1");
    let scale = format!("{version}/scale_up");
    api.ask("admin", "POST", &scale, Some(json!({"count": 1}))).await.expect(202);
    eventually("a second worker", async || workers().await == 2).await;
    api.ask("demo", "DELETE", &version, None).await.expect(204);
    eventually("none is left", async || workers().await == 0).await;
    let (status, refused) = call(&api, &function, json!({"function_version": 1})).await.unwrap();
    assert_eq!(status, 404, "{refused}");
    api.stop_clean().await;
    engine.stop_clean().await;
}

#[tokio::test]
async fn what_an_engine_ran_that_was_killed_ends_once_on_another_node() {
    let site = Site::new();
    let options = [("engine.lease", "4s"), ("engine.max_async", "4"), ("engine.max_workers", "4")];
    let mut engines = vec![site.engine("a", &options).await, site.engine("b", &options).await];
    let api = site.api(&[]).await;
    let runtime = api.runtime().await;
    let function = api.function("demo", &runtime, COUNT, &[("timeout", "60")]).await;
    api.execute("demo", &function, "").await;
    // The function's own engine is the one to die.
    let worker = api.workers(&function).await.remove(0);
    let own = engines.iter().position(|engine| engine.home.container_names().contains(&worker)).unwrap();
    let dying = engines.remove(own);

    let interrupted =
        call(&api, &function, json!({"description": "interrupted", "input": "{\"seconds\": 50}"}));
    eventually("the synchronous call is recorded as running", async || {
        let path = "/v1/executions?description=interrupted";
        api.ask("demo", "GET", path, None).await.expect(200)["executions"].as_array().unwrap().len() == 1
    })
    .await;
    let mut accepted = Vec::new();
    for number in 0..20 {
        let input = if number < 10 { "{\"seconds\": 3}" } else { "{\"seconds\": 0.1}" };
        accepted.push(api.accept("demo", &function, input).await);
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    let killed = Instant::now();
    let home = dying.kill_9();

    let (status, answer) = interrupted.await.unwrap();
    assert_eq!(status, 503, "{answer}");
    assert!(answer["faultstring"].as_str().unwrap().contains("may still run"), "{answer}");
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    let done = api.execute("demo", &function, "").await;
    assert_eq!(done["status"], "success", "the next call goes to the other engine: {done}");

    let mut lost = 0;
    for id in &accepted {
        let ended = api.ended("demo", id).await;
        let log = api.execution_log("demo", id).await;
        match ended["status"].as_str().unwrap() {
            "success" => assert_eq!(log.matches("Start execution").count(), 1, "{log}"),
            status => {
                assert_eq!((status, &result(&ended)["reason"]), ("error", &json!("worker_lost")), "{ended}");
                lost += 1;
            }
        }
    }
    assert!((1..=8).contains(&lost), "{lost} were running on the engine that died");
    let path = "/v1/executions?description=interrupted";
    eventually("the call that was interrupted has ended", async || {
        api.ask("demo", "GET", path, None).await.expect(200)["executions"][0]["status"] != "running"
    })
    .await;
    let listed = api.ask("demo", "GET", path, None).await.expect(200);
    let row = &listed["executions"][0];
    assert_eq!((&row["status"], &result(row)["reason"]), (&json!("error"), &json!("interrupted")));
    let shown = api.ask("demo", "GET", &format!("/v1/functions/{function}"), None).await.expect(200);
    assert_eq!(shown["count"], 23, "each was counted once");

    // The node comes back, and finds nothing to end twice.
    let before: Vec<Value> = all(&api).await;
    let back = Service::start_role(home, "engine").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(all(&api).await, before);
    api.stop_clean().await;
    back.stop_clean().await;
    engines.remove(0).stop_clean().await;
}

async fn all(api: &Service) -> Vec<Value> {
    api.ask("demo", "GET", "/v1/executions", None).await.expect(200)["executions"].as_array().unwrap().clone()
}

fn openssl(directory: &Path, arguments: &str) {
    let made = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output();
    let made = made.expect("openssl is installed: apt-get install openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// An authority and a certificate of it for 127.0.0.1.
pub fn certificates() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(at, &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"));
    let name = "-subj /CN=taibai -addext subjectAltName=IP:127.0.0.1";
    openssl(at, &format!("req {key} -keyout key.pem -out request.pem {name}"));
    let sign = "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy";
    openssl(at, &format!("{sign} -days 2 -out cert.pem"));
    directory
}

#[tokio::test]
async fn between_machines_both_sides_show_a_certificate() {
    let site = Site::new();
    let (ours, theirs) = (certificates(), certificates());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("https://127.0.0.1:{port}");
    let files =
        |of: &Path| ["cert", "key", "ca"].map(|name| of.join(format!("{name}.pem")).display().to_string());
    let [cert, key, ca] = files(ours.path());
    let options = |cert, key, ca| {
        [
            ("engine.listen", listen.as_str()),
            ("engine.tls_cert", cert),
            ("engine.tls_key", key),
            ("engine.tls_ca", ca),
        ]
    };
    let engine = site.engine("one", &options(&cert, &key, &ca)).await;
    let api = site.api(&options(&cert, &key, &ca)).await;
    let runtime = api.runtime().await;
    let function = api.function("demo", &runtime, COUNT, &[]).await;
    assert_eq!(api.execute("demo", &function, "").await["status"], "success");

    // One whose authority is another is not spoken to, whichever side it is that knows.
    let [other_cert, other_key, other_ca] = files(theirs.path());
    for options in [options(&other_cert, &other_key, &ca), options(&cert, &key, &other_ca)] {
        let stranger = site.api(&options).await;
        let (status, answer) = call(&stranger, &function, json!({})).await.unwrap();
        assert_eq!(status, 503, "{answer}");
        stranger.stop_clean().await;
    }
    let listed = all(&api).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    api.stop_clean().await;
    engine.stop_clean().await;
}

#[tokio::test]
async fn an_upgrade_check_tells_of_engines_of_another_release() {
    let site = Site::new();
    let engine = site.engine("one", &[]).await;
    let home = site.home(&[]);
    for role in ["api", "engine"] {
        let (status, table, checks) = upgrade_check_as(&home, role);
        assert_eq!((status, doubtful(&checks)), (0, vec![]), "{table}");
        assert!(table.contains("1 of this release"), "{table}");
        assert_eq!(table.contains("Check: Docker"), role == "engine", "{table}");
    }

    // One of a release that speaks otherwise, and one that is not there.
    let strange = home.path().join("strange.sock");
    let listener = std::os::unix::net::UnixListener::bind(&strange).unwrap();
    let answering = std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            let body = r#"{"release":"9.0.0","protocol":99}"#;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
            write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    let db = home.database().await;
    for (node, path) in
        [("strange", strange.display().to_string()), ("away", "/nonexistent/e.sock".to_owned())]
    {
        let now = Timestamp::now();
        let row = engine::Model {
            id: EngineId::random(),
            node: node.to_owned(),
            deployment: node.to_owned(),
            endpoint: Some(format!("unix://{path}")),
            started_at: now,
            lease_until: now.after(Duration::from_secs(600)),
        };
        taibai::db::engines::register(&db.writer(), row).await.unwrap();
    }
    let (status, table, checks) = upgrade_check_as(&home, "api");
    assert_eq!((status, doubtful(&checks)), (1, vec![("Engines", 1)]), "{table}");
    let details = &checks.last().unwrap().2;
    assert!(details.contains("strange runs release 9.0.0 with protocol 99"), "{details}");
    assert!(details.contains("away: it is not reached"), "{details}");
    answering.join().unwrap();
    engine.stop_clean().await;
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// HAProxy with the configuration in the tree, in front of two APIs.
struct Proxy {
    child: Child,
    directory: tempfile::TempDir,
    url: String,
}

impl Proxy {
    fn start(apis: [u16; 2]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/haproxy/taibai.cfg");
        let mut text = std::fs::read_to_string(example).unwrap();
        let port = free_port();
        for (example, ours) in [
            ("bind :7070", format!("bind 127.0.0.1:{port}")),
            ("192.0.2.11:7070", format!("127.0.0.1:{}", apis[0])),
            ("192.0.2.12:7070", format!("127.0.0.1:{}", apis[1])),
        ] {
            assert!(text.contains(example), "{example}");
            text = text.replace(example, &ours);
        }
        let asked = directory.path().join("asked");
        text.push_str(&format!("\nglobal\n    stats socket {}\n", asked.display()));
        let config = directory.path().join("haproxy.cfg");
        std::fs::write(&config, text).unwrap();
        let child = Command::new("haproxy").arg("-db").arg("-f").arg(&config).stderr(Stdio::null()).spawn();
        let child = child.expect("haproxy is installed: apt-get install haproxy");
        Self { child, directory, url: format!("http://127.0.0.1:{port}") }
    }

    /// Waits until it takes every API for well.
    async fn ready(&self) {
        let socket: PathBuf = self.directory.path().join("asked");
        eventually("the proxy sees both APIs", async || {
            let Ok(mut asked) = UnixStream::connect(&socket) else { return false };
            let mut table = String::new();
            let read = asked.write_all(b"show stat\n").and_then(|()| asked.read_to_string(&mut table));
            let up = |line: &&str| line.starts_with("taibai,api") && line.contains(",UP,");
            read.is_ok() && table.lines().filter(up).count() == 2
        })
        .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_every_process_loses_no_request_and_runs_none_twice() {
    let site = Site::new();
    let keep = [("engine.keep_workers_on_shutdown", "true")];
    let mut engines = vec![site.engine("one", &keep).await, site.engine("two", &keep).await];
    let ports = [free_port(), free_port()];
    let mut apis = Vec::new();
    for port in ports {
        apis.push(site.api(&[("api.port", &port.to_string()), ("api.drain_time", "3s")]).await);
    }
    let runtime = apis[0].runtime().await;
    let function = apis[0].function("demo", &runtime, COUNT, &[("timeout", "30")]).await;
    apis[0].execute("demo", &function, "").await;
    let worker = apis[0].workers(&function).await.remove(0);
    let proxy = Proxy::start(ports);
    proxy.ready().await;

    let load = Load::start(&proxy.url, &function, 3);
    for _ in 0..2 {
        let mut home = engines.remove(0).stop().await;
        // The next end takes the workers away; this start takes them over.
        home.set("engine.keep_workers_on_shutdown", "false");
        engines.push(Service::start_role(home, "engine").await);
    }
    for _ in 0..2 {
        let home = apis.remove(0).stop().await;
        apis.push(Service::start_role(home, "api").await);
        proxy.ready().await;
    }
    let executions = load.finish().await;
    assert!(executions.len() > 50, "{}", executions.len());
    each_ran_once(&apis[0], &function, &executions, 1).await;
    assert!(apis[0].workers(&function).await.contains(&worker), "the worker lived through it");
    let pids: HashSet<String> = executions.iter().map(|one| output(one).to_string()).collect();
    assert!(pids.len() <= 6, "three slots on each node, all the time: {pids:?}");

    drop(proxy);
    for api in apis {
        api.stop_clean().await;
    }
    for engine in engines {
        engine.stop_clean().await;
    }
}

#[tokio::test]
async fn two_engines_start_each_instant_of_a_job_once() {
    let site = Site::new();
    let engines = [site.engine("one", &[]).await, site.engine("two", &[]).await];
    let api = site.api(&[]).await;
    let runtime = api.runtime().await;
    let function = api.function("demo", &runtime, COUNT, &[]).await;
    let mut jobs = Vec::new();
    for _ in 0..6 {
        let new = json!({"function_id": function, "pattern": "* * * * * *", "count": 5});
        let job = api.ask("demo", "POST", "/v1/jobs", Some(new)).await.expect(201);
        jobs.push(job["id"].as_str().unwrap().to_owned());
    }
    for id in &jobs {
        eventually("the job is done", async || {
            let job = api.ask("demo", "GET", &format!("/v1/jobs/{id}"), None).await.expect(200);
            job["status"] == "done"
        })
        .await;
        let path = format!("/v1/executions?description=has:{id}");
        let listed = api.ask("demo", "GET", &path, None).await.expect(200);
        let rows = listed["executions"].as_array().unwrap();
        assert_eq!(rows.len(), 5, "{listed}");
        for row in rows {
            assert_eq!(api.ended("demo", row["id"].as_str().unwrap()).await["status"], "success");
        }
    }
    api.stop_clean().await;
    for engine in engines {
        engine.stop_clean().await;
    }
}
