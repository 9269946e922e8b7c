//! What operators do with a service: start it in other ways, restart it while it is used, look whether an
//! upgrade would work, hand it secrets and certificates.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use taibai::db;
use taibai::model::{NetworkAccess, RuntimeId, RuntimeStatus, Timestamp, runtime};

use crate::service::{Home, Service, eventually, output};
use crate::split::certificates;

const WHO: &str = r#"
import os, time
def main(seconds=0, **kwargs):
    time.sleep(seconds)
    return os.getpid()
"#;

fn taibai() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taibai"));
    command.env("NO_COLOR", "1");
    command
}

fn with_config(home: &Home) -> Command {
    let mut command = taibai();
    command.arg("--config-file").arg(home.config_file());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Says one line to a new file that only its owner may read.
pub fn secret_file(directory: &Path, name: &str, secret: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, format!("{secret}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// What waits for messages of a service to its manager.
fn notify_socket(home: &Home) -> UnixDatagram {
    let socket = UnixDatagram::bind(home.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

fn told(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let read = socket.recv(&mut buffer).expect("the service says something to its manager");
    text(&buffer[..read])
}

#[tokio::test]
async fn a_service_starts_from_the_environment_alone_and_tells_its_manager() {
    let home = Home::new(&[]);
    let manager = notify_socket(&home);
    let mut command = taibai();
    command.arg("serve").env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    for (key, value) in home.settings() {
        let (section, option) = key.split_once('.').unwrap();
        let name = format!("TAIBAI_{}__{}", section.to_uppercase(), option.to_uppercase());
        command.env(name, value);
    }
    command.env("NOTIFY_SOCKET", home.path().join("notify"));
    let service = Service::start_as(home, command).await;
    assert!(told(&manager).contains("READY=1"));
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, WHO, &[]).await;
    assert_eq!(service.execute("demo", &function, "").await["status"], "success");
    assert_eq!(service.log().matches("taibai: warning").count(), 0, "{}", service.log());
    service.stop_clean().await;
    assert!(told(&manager).contains("STOPPING=1"));
}

#[tokio::test]
async fn secrets_come_from_files_and_are_never_shown() {
    let mut home = Home::new(&[]);
    let url = home.settings().into_iter().find(|(key, _)| key == "database.connection").unwrap().1;
    home.sync_database();
    let url_file = secret_file(home.path(), "url", &url);
    let word_file = secret_file(home.path(), "word", "hush-hush");
    home.unset("database.connection");
    home.set("database.connection_file", &url_file);
    home.set("keystone_authtoken.password_file", &word_file);
    let shown = with_config(&home).args(["config", "show"]).output().unwrap();
    let lines = text(&shown.stdout);
    assert!(shown.status.success() && shown.stderr.is_empty(), "{shown:?}");
    assert!(lines.contains("password = (not shown)\n"), "{lines}");
    assert!(!lines.contains("hush-hush") && !lines.contains(":taibai@"), "{lines}");

    let mut command = taibai();
    command.arg("--config-file").arg(home.config_file()).arg("serve");
    let service = Service::start_as(home, command).await;
    assert!(service.get("/v1/functions").await.expect(200)["functions"].as_array().unwrap().is_empty());
    assert!(!service.log().contains("hush-hush"), "{}", service.log());
    let mut home = service.stop().await;

    // The same from systemd's credentials.
    let credentials = tempfile::tempdir().unwrap();
    secret_file(credentials.path(), "database.connection", &url);
    home.unset("database.connection");
    home.unset("database.connection_file");
    let mut command = with_config(&home);
    command.arg("serve").env("CREDENTIALS_DIRECTORY", credentials.path());
    let service = Service::start_as(home, command).await;
    assert!(service.get("/v1/functions").await.expect(200)["functions"].as_array().unwrap().is_empty());
    service.stop_clean().await;
}

/// Sends calls from several clients until it is told to stop, and keeps each answer.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Vec<(u16, Value)>>>,
}

impl Load {
    pub fn start(url: &str, function: &str, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |number: usize| {
            let (stop, url) = (stop.clone(), format!("{url}/v1/executions"));
            let function = function.to_owned();
            tokio::spawn(async move {
                let http = reqwest::Client::new();
                let mut answers = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("load {number} {}", answers.len());
                    let body =
                        json!({"function_id": function, "description": name, "input": "{\"seconds\": 0.02}"});
                    let request = http
                        .post(&url)
                        .header("x-auth-token", "demo:demo")
                        .header("content-type", "application/json")
                        .timeout(Duration::from_secs(60))
                        .body(body.to_string());
                    answers.push(match request.send().await {
                        Ok(answer) => {
                            let status = answer.status().as_u16();
                            let bytes = answer.bytes().await;
                            let body = bytes.map_or_else(
                                |error| json!(format!("{name}: {error:?}")),
                                |bytes| {
                                    serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(text(&bytes)))
                                },
                            );
                            (status, body)
                        }
                        Err(error) => (0, json!(format!("{name}: {error:?}"))),
                    });
                }
                answers
            })
        };
        let clients = (0..clients).map(start).collect();
        Self { stop, clients }
    }

    /// Ends it, and returns what was answered. All of it is a success.
    pub async fn finish(self) -> Vec<Value> {
        self.stop.store(true, Ordering::Relaxed);
        let mut executions = Vec::new();
        let mut lost = Vec::new();
        for client in self.clients {
            for (status, body) in client.await.unwrap() {
                if status == 201 && body["status"] == "success" {
                    executions.push(body);
                } else {
                    lost.push(format!("{status} {body}"));
                }
            }
        }
        let answered = executions.len();
        assert!(lost.is_empty(), "{} of {} were lost: {lost:#?}", lost.len(), answered + lost.len());
        executions
    }
}

/// That every answer is an execution of its own, and that there is none that nobody was answered with.
pub async fn each_ran_once(api: &Service, function: &str, executions: &[Value], others: usize) {
    let ids: HashSet<&str> = executions.iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), executions.len());
    let shown = api.ask("demo", "GET", &format!("/v1/functions/{function}"), None).await.expect(200);
    assert_eq!(shown["count"], executions.len() + others, "each was counted once");
    let listed = api.ask("demo", "GET", "/v1/executions", None).await.expect(200);
    assert_eq!(listed["executions"].as_array().unwrap().len(), executions.len() + others);
}

/// Starts a service with a listening socket that its manager holds, as sd_listen_fds(3) has it.
async fn start_with_socket(home: Home, socket: &TcpListener) -> Service {
    let mut command = Command::new("sh");
    let hand_over = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    command.args(["-c", hand_over, "sh", env!("CARGO_BIN_EXE_taibai"), "--config-file"]);
    command.arg(home.config_file()).arg("serve");
    command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    Service::start_as(home, command).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_behind_a_socket_that_is_held_lose_no_request_and_no_worker() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    let home = Home::new(&[("engine.keep_workers_on_shutdown", "true"), ("api.port", "1")]);
    let mut service = start_with_socket(home, &socket).await;
    assert_eq!(service.url, url, "the port of the configuration is not looked at");
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, WHO, &[("timeout", "30")]).await;
    let first = service.execute("demo", &function, "").await;
    let workers = service.workers(&function).await;

    let load = Load::start(&url, &function, 3);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let home = service.stop().await;
        service = start_with_socket(home, &socket).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    let executions = load.finish().await;
    assert!(executions.len() > 30, "{}", executions.len());
    each_ran_once(&service, &function, &executions, 1).await;
    assert_eq!(service.workers(&function).await, workers, "the same container all the time");
    let pids: HashSet<String> = executions.iter().map(|one| output(one).to_string()).collect();
    assert!(pids.contains(&output(&first).to_string()) && pids.len() <= 3, "{pids:?}");

    let mut home = service.stop().await;
    home.set("engine.keep_workers_on_shutdown", "false");
    home.set("api.port", "0");
    Service::start_in(home).await.stop_clean().await;
}

#[tokio::test]
async fn a_socket_that_is_open_to_all_is_refused_without_callers() {
    let home = Home::new(&[]);
    let socket = TcpListener::bind("0.0.0.0:0").unwrap();
    let hand_over = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    home.sync_database();
    let refused = Command::new("sh")
        .args(["-c", hand_over, "sh", env!("CARGO_BIN_EXE_taibai"), "--config-file"])
        .arg(home.config_file())
        .arg("serve")
        .env("NO_COLOR", "1")
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = text(&refused.stderr);
    assert!(said.contains("open to 0.0.0.0") && said.contains("allow_noauth_from_anywhere"), "{said}");
}

#[tokio::test]
async fn a_service_that_drains_is_unwell_and_still_answers() {
    let mut service = Service::start(&[("api.drain_time", "3s")]).await;
    assert_eq!(service.get("/healthcheck").await.status, 200);
    service.send_sigterm();
    eventually("it says that it stops", async || service.get("/healthcheck").await.status == 503).await;
    let answer = service.get("/v1/runtimes").await;
    answer.expect(200);
    assert_eq!(answer.headers["connection"], "close");
    let answer = service.request("", "GET", "/healthcheck").header("accept", "application/json");
    let answer = crate::service::read(answer).await;
    assert_eq!((answer.status, answer.json()), (503, json!({"status": "stopping"})));
    assert!(service.wait_exit().await.success(), "{}", service.log());
}

/// Clients that believe one authority, and show a certificate where there is one.
fn client(of: &Path, shows: Option<&Path>) -> reqwest::Client {
    let read = |path: &Path, name: &str| std::fs::read(path.join(name)).unwrap();
    let authority = reqwest::Certificate::from_pem(&read(of, "ca.pem")).unwrap();
    let mut builder = reqwest::Client::builder().tls_certs_only([authority]).pool_max_idle_per_host(0);
    if let Some(own) = shows {
        let both = [read(own, "cert.pem"), read(own, "key.pem")].concat();
        builder = builder.identity(reqwest::Identity::from_pem(&both).unwrap());
    }
    builder.build().unwrap()
}

async fn status(client: &reqwest::Client, url: &str) -> Option<u16> {
    client.get(format!("{url}/v1/runtimes")).send().await.ok().map(|answer| answer.status().as_u16())
}

#[tokio::test]
async fn the_api_speaks_https_with_a_certificate_that_may_be_replaced() {
    let (ours, theirs, home) = (certificates(), certificates(), tempfile::tempdir().unwrap());
    let install = |from: &Path| {
        for name in ["cert.pem", "key.pem"] {
            std::fs::copy(from.join(name), home.path().join(name)).unwrap();
        }
    };
    install(ours.path());
    let at = |name: &str| home.path().join(name).display().to_string();
    let (cert, key) = (at("cert.pem"), at("key.pem"));
    let service = Service::start(&[("api.tls_cert", &cert), ("api.tls_key", &key)]).await;
    let address = service.url.strip_prefix("https://").expect("the scheme follows").to_owned();
    let (client_of_ours, client_of_theirs) = (client(ours.path(), None), client(theirs.path(), None));
    assert_eq!(status(&client_of_ours, &service.url).await, Some(200));
    assert_eq!(status(&client_of_theirs, &service.url).await, None, "nobody else vouches for it");
    let versions = client_of_ours.get(&service.url).send().await.unwrap().text().await.unwrap();
    assert!(versions.contains(&format!("https://{address}")), "{versions}");

    // Who speaks plain HTTP is not left waiting, and learns nothing.
    let ended = tokio::task::spawn_blocking(move || {
        let mut plain = std::net::TcpStream::connect(&address).unwrap();
        plain.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        plain.write_all(b"GET /v1/runtimes HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let ended = plain.read_to_end(&mut answer);
        (ended.map_err(|error| error.kind()), answer)
    });
    let (ended, answer) = ended.await.unwrap();
    assert!(
        !matches!(ended, Err(std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)),
        "{ended:?}"
    );
    assert!(!text(&answer).contains("HTTP"), "{answer:?}");

    install(theirs.path());
    eventually("the new certificate is shown", async || {
        status(&client_of_theirs, &service.url).await == Some(200)
    })
    .await;
    // Another client, since one that was here before need not look at it again.
    assert_eq!(status(&client(ours.path(), None), &service.url).await, None);
    // One without its key changes nothing.
    std::fs::write(home.path().join("key.pem"), "no key").unwrap();
    eventually("that is said", async || service.log().contains("the old one stays")).await;
    assert_eq!(status(&client_of_theirs, &service.url).await, Some(200));
    service.stop_clean().await;
}

#[tokio::test]
async fn callers_show_a_certificate_where_they_are_asked_for_one() {
    let (ours, theirs) = (certificates(), certificates());
    let at = |name: &str| ours.path().join(name).display().to_string();
    let (cert, key, ca) = (at("cert.pem"), at("key.pem"), at("ca.pem"));
    let options = [("api.tls_cert", &*cert), ("api.tls_key", &*key), ("api.tls_client_ca", &*ca)];
    let service = Service::start(&options).await;
    assert_eq!(status(&client(ours.path(), Some(ours.path())), &service.url).await, Some(200));
    assert_eq!(status(&client(ours.path(), None), &service.url).await, None);
    assert_eq!(status(&client(ours.path(), Some(theirs.path())), &service.url).await, None);
    service.stop_clean().await;
}

#[test]
fn the_journal_learns_how_important_a_line_is_and_a_file_takes_the_log() {
    let home = Home::new(&[]);
    let journal = home.path().join("journal");
    let stderr = std::fs::File::create(&journal).unwrap();
    let metadata = stderr.metadata().unwrap();
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());
    let sync = |level: &str, mut command: Command| {
        command.env("TAIBAI_LOGGING__LEVEL", level).args(["db", "sync"]);
        assert!(command.stderr(stderr.try_clone().unwrap()).status().unwrap().success());
    };
    let mut command = with_config(&home);
    command.env("JOURNAL_STREAM", &stream);
    sync("info,sea_orm_migration=info", command);
    let log = std::fs::read_to_string(&journal).unwrap();
    assert!(log.lines().count() > 0 && log.lines().all(|line| line.starts_with("<6> INFO ")), "{log}");

    let file = home.path().join("taibai.log");
    let mut command = with_config(&home);
    command.env("JOURNAL_STREAM", &stream).env("TAIBAI_LOGGING__FILE", &file);
    sync("info,sea_orm_migration=info", command);
    assert_eq!(std::fs::read_to_string(&journal).unwrap(), log, "nothing more on stderr");
    let log = std::fs::read_to_string(&file).unwrap();
    assert!(log.contains(" INFO ") && !log.contains("<6>") && !log.contains('\u{1b}'), "{log}");
}

/// Runs the check and gives its status, its table and, by check, result and details.
pub fn upgrade_check(home: &Home) -> (i32, String, Vec<(String, u64, String)>) {
    upgrade_check_as(home, "serve")
}

pub fn upgrade_check_as(home: &Home, role: &str) -> (i32, String, Vec<(String, u64, String)>) {
    let run = |more: &[&str]| -> Output {
        let command = &mut with_config(home);
        command.args(["upgrade", "check", "--role", role]).args(more).output().unwrap()
    };
    let (table, json) = (run(&[]), run(&["--json"]));
    assert_eq!(table.status, json.status);
    assert!(table.stderr.is_empty(), "{table:?}");
    let checks: Value = serde_json::from_slice(&json.stdout).unwrap();
    let checks = checks["checks"].as_array().unwrap().iter().map(|check| {
        let details = check["details"].as_str().unwrap_or_default().to_owned();
        (check["check"].as_str().unwrap().to_owned(), check["result"].as_u64().unwrap(), details)
    });
    (table.status.code().unwrap(), text(&table.stdout), checks.collect())
}

/// Of the checks, those that did not succeed.
pub fn doubtful(checks: &[(String, u64, String)]) -> Vec<(&str, u64)> {
    checks.iter().filter(|(_, result, _)| *result > 0).map(|(check, result, _)| (&**check, *result)).collect()
}

#[tokio::test]
async fn an_upgrade_check_tells_what_is_well_what_is_doubtful_and_what_stands_in_the_way() {
    let mut home = Home::new(&[]);
    let synced = with_config(&home).args(["db", "sync"]).status().unwrap();
    assert!(synced.success());
    let (status, table, checks) = upgrade_check(&home);
    assert_eq!((status, doubtful(&checks)), (0, vec![]), "{table}");
    let names: Vec<&str> = checks.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "Configuration",
            "Policy",
            "Docker",
            "Supervisor",
            "Keystone",
            "Package storage",
            "Database",
            "Database schema",
            "Runtimes",
            "Functions",
            "Engines"
        ]
    );
    assert!(table.contains("| Upgrade Check Results "), "{table}");
    assert!(table.contains("| Check: Database schema ") && table.contains("| Details: current "), "{table}");
    let left: Vec<_> =
        std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["taibai.conf"], "nothing was made");

    // 1: a secret that everybody reads, a rule that is gone, an image that is gone, and one of before.
    let word = secret_file(home.path(), "word", "hush-hush");
    std::fs::set_permissions(&word, std::fs::Permissions::from_mode(0o644)).unwrap();
    home.set("keystone_authtoken.password_file", &word);
    let policy = home.path().join("policy.yaml");
    std::fs::write(&policy, "function:fly: '@'\n").unwrap();
    home.set("oslo_policy.policy_file", &policy.display().to_string());
    let database = home.database().await;
    let runtime = runtime::Model {
        id: RuntimeId::random(),
        project_id: "admin".into(),
        name: None,
        description: None,
        image: "taibai/gone:1".to_owned(),
        active_image: None,
        status: RuntimeStatus::Available,
        status_reason: None,
        is_public: true,
        trusted: true,
        network: NetworkAccess::Default,
        active_network: None,
        created_at: Timestamp::now(),
        updated_at: None,
    };
    db::runtimes::insert(&database.writer(), runtime).await.unwrap();
    let insert = "INSERT INTO functions (id, project_id, cpu, memory_size, timeout, code, count, latest_version, \
                  created_at) VALUES ('f', 'demo', 100, 33554432, 5, '{\"source\": \"image\", \"image\": \"alpine\"}', \
                  0, 0, 1)";
    sea_orm::ConnectionTrait::execute_unprepared(&database.writer(), insert).await.unwrap();
    let (status, table, checks) = upgrade_check(&home);
    let expected = vec![("Configuration", 1), ("Policy", 1), ("Runtimes", 1), ("Functions", 1)];
    assert_eq!((status, doubtful(&checks)), (1, expected), "{table}");
    let details = |name: &str| &checks.iter().find(|(check, ..)| check == name).unwrap().2;
    assert!(details("Configuration").contains("its mode is 0644"), "{table}");
    assert!(details("Policy").contains("function:fly"), "{table}");
    assert!(details("Runtimes").contains("image taibai/gone:1 is not on this machine"), "{table}");
    assert!(details("Functions").contains("No images are allowed here"), "{table}");
    assert!(!table.contains("hush-hush"), "{table}");

    // 2: tables of before, no supervisor, no Docker, a policy that is none, a server that is not there.
    let last = "DELETE FROM seaql_migrations WHERE version LIKE 'm20261121%'";
    sea_orm::ConnectionTrait::execute_unprepared(&database.writer(), last).await.unwrap();
    database.close().await.unwrap();
    home.set("docker.supervisor", "/nonexistent/taibai-supervisor");
    home.set("docker.socket", "/nonexistent/docker.sock");
    home.set("storage.file_system_dir", &policy.display().to_string());
    std::fs::write(&policy, "function:create: [\n").unwrap();
    let (status, table, checks) = upgrade_check(&home);
    assert_eq!(status, 2, "{table}");
    let schema = checks.iter().find(|(check, ..)| check == "Database schema").unwrap();
    assert!(schema.1 > 0 && schema.2.contains("run taibai db sync"), "{table}");
    let failed: Vec<&str> =
        doubtful(&checks).into_iter().filter(|(_, result)| *result == 2).map(|(check, _)| check).collect();
    for name in ["Policy", "Docker", "Supervisor", "Package storage"] {
        assert!(failed.contains(&name), "{name}: {table}");
    }
    let no_database = format!("sqlite://{}", policy.display());
    home.set("database.connection_file", &secret_file(home.path(), "url", &no_database));
    home.unset("database.connection");
    let (status, _, checks) = upgrade_check(&home);
    assert_eq!(
        (status, checks.last().map(|(name, result, _)| (name.as_str(), *result))),
        (2, Some(("Database", 2)))
    );

    home.set("engine.max_worker", "3");
    let (status, table, checks) = upgrade_check(&home);
    assert_eq!((status, doubtful(&checks)), (2, vec![("Configuration", 2)]), "{table}");
    assert!(checks[0].2.contains("did you mean max_workers?"), "{table}");
}

#[tokio::test]
async fn an_upgrade_check_asks_keystone_for_the_catalog() {
    let mut home = Home::new(&[]);
    assert!(with_config(&home).args(["db", "sync"]).status().unwrap().success());
    home.set("api.auth_strategy", "keystone");
    home.set("keystone_authtoken.auth_url", "http://127.0.0.1:1/v3");
    home.set("keystone_authtoken.username", "taibai");
    home.set("keystone_authtoken.password_file", &secret_file(home.path(), "word", "hush-hush"));
    let (status, table, checks) = upgrade_check(&home);
    assert_eq!((status, doubtful(&checks)), (2, vec![("Keystone", 2)]), "{table}");
    assert!(!table.contains("hush-hush"), "{table}");
}
