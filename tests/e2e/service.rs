//! A service of a test's own: the real binary with its own database, directories, labels and user
//! ids, on a port that was free.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::own::OwnDatabase;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What a service keeps across restarts.
pub struct Home {
    dirs: tempfile::TempDir,
    database: Arc<OwnDatabase>,
    pub deployment: String,
    uid_base: u32,
    /// Lines of the configuration beside the usual ones: section and option.
    options: Vec<(String, String)>,
    /// Options that are usual and yet left out.
    left_out: Vec<String>,
    /// The socket of another Docker engine than the machine's.
    engine: Option<PathBuf>,
}

pub struct Service {
    pub home: Home,
    child: Child,
    pub url: String,
    http: reqwest::Client,
    log: Arc<Mutex<String>>,
    reading: Option<std::thread::JoinHandle<()>>,
}

/// One answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The body, if the status is the one wanted.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        if self.bytes.is_empty() { Value::Null } else { self.json() }
    }
}

impl Home {
    pub fn new(options: &[(&str, &str)]) -> Self {
        Self::on(Arc::new(OwnDatabase::create()), options)
    }

    /// With a database that others use too.
    pub fn on(database: Arc<OwnDatabase>, options: &[(&str, &str)]) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            dirs: tempfile::Builder::new().prefix("tbe").tempdir_in("/run").unwrap(),
            database,
            deployment: format!("e{}-{number}", std::process::id()),
            // Apart from services of this machine, from the driver's tests and from each other.
            uid_base: 2_000_000_000 + std::process::id() % 1000 * 100_000 + number * 2048,
            options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            left_out: Vec::new(),
            engine: None,
        }
    }

    /// Runs its workers on another Docker engine.
    pub fn use_engine(&mut self, socket: &Path) {
        self.set("docker.socket", &socket.display().to_string());
        self.engine = Some(socket.to_owned());
    }

    /// The client of its Docker engine.
    pub fn docker(&self) -> Command {
        let mut docker = Command::new("docker");
        if let Some(socket) = &self.engine {
            docker.arg("--host").arg(format!("unix://{}", socket.display()));
        }
        docker
    }

    /// Changes an option; a later start reads it.
    pub fn set(&mut self, key: &str, value: &str) {
        self.options.retain(|(other, _)| other != key);
        self.options.push((key.to_owned(), value.to_owned()));
    }

    /// Leaves an option out, also one of the usual ones.
    pub fn unset(&mut self, key: &str) {
        self.options.retain(|(other, _)| other != key);
        self.left_out.push(key.to_owned());
    }

    pub fn path(&self) -> &Path {
        self.dirs.path()
    }

    /// Every option that is not a default: section and option, and the value.
    pub fn settings(&self) -> Vec<(String, String)> {
        let at = |name: &str| self.path().join(name).display().to_string();
        let mut options: Vec<(String, String)> = [
            ("api.port", "0".to_owned()),
            ("database.connection", self.database.url().to_owned()),
            ("docker.deployment", self.deployment.clone()),
            ("docker.worker_dir", at("w")),
            ("docker.work_dir", at("work")),
            ("docker.supervisor", required("TAIBAI_SUPERVISOR")),
            ("docker.uid_base", self.uid_base.to_string()),
            ("engine.keep_workers_on_shutdown", "false".to_owned()),
            ("engine.pool_size", "1".to_owned()),
            ("storage.file_system_dir", at("packages")),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        for (key, value) in &self.options {
            options.retain(|(other, _)| other != key);
            options.push((key.clone(), value.clone()));
        }
        options.retain(|(key, _)| !self.left_out.contains(key));
        options.sort();
        options
    }

    pub fn config_file(&self) -> PathBuf {
        let options = self.settings();
        let mut text = String::new();
        let mut section = "";
        for (key, value) in &options {
            let (group, name) = key.split_once('.').unwrap();
            if group != section {
                text.push_str(&format!("[{group}]\n"));
                section = group;
            }
            text.push_str(&format!("{name} = {value}\n"));
        }
        let path = self.path().join("taibai.conf");
        std::fs::write(&path, text).unwrap();
        // The database's URL has a password where it is a server's.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The database, for a test that looks behind the service or plays another engine.
    pub async fn database(&self) -> taibai::db::Db {
        let connection = self.database.url().to_owned();
        let config = taibai::config::Database { connection, ..Default::default() };
        taibai::db::Db::connect(&config).await.unwrap()
    }

    /// Makes the tables wherever they are to be.
    pub async fn make_tables(&self) {
        let database = self.database().await;
        database.migrate().await.unwrap();
        database.close().await.unwrap();
    }

    /// Makes the tables, as an operator does before the first start. A file has its service do that.
    pub fn sync_database(&self) {
        if self.database.is_file() {
            return;
        }
        let synced = Command::new(env!("CARGO_BIN_EXE_taibai"))
            .args(["--config-file", &self.config_file().display().to_string(), "db", "sync"])
            .output()
            .unwrap();
        assert!(synced.status.success(), "{}", String::from_utf8_lossy(&synced.stderr));
    }

    /// Names of this deployment's containers that run.
    pub fn container_names(&self) -> String {
        let filter = format!("label=org.openstack.taibai.deployment={}", self.deployment);
        let arguments = ["ps", "--format", "{{.Names}}", "--filter", &filter];
        let listed = self.docker().args(arguments).output().unwrap();
        String::from_utf8(listed.stdout).unwrap()
    }

    /// Ids of this deployment's containers, in any state.
    pub fn containers(&self) -> Vec<String> {
        let filter = format!("label=org.openstack.taibai.deployment={}", self.deployment);
        let arguments = ["ps", "-aq", "--no-trunc", "--filter", &filter];
        let listed = self.docker().args(arguments).output().unwrap();
        let mut ids: Vec<_> = String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
        ids.sort();
        ids
    }

    /// Where the deployment's control groups are, on either version.
    fn groups(&self) -> Vec<PathBuf> {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let all = hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]);
        all.map(|hierarchy| hierarchy.join("taibai").join(&self.deployment)).collect()
    }

    /// What a service left on this machine beside its database and packages.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> =
            self.containers().into_iter().map(|id| format!("container {id}")).collect();
        let name = format!("name=^taibai-{}$", self.deployment);
        let networks = self.docker().args(["network", "ls", "-q", "--filter", &name]).output();
        let networks = String::from_utf8(networks.unwrap().stdout).unwrap();
        found.extend(networks.lines().map(|id| format!("network {id}")));
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let here = self.path().display().to_string();
        found.extend(mounts.lines().filter(|line| line.contains(&here)).map(|line| format!("mount {line}")));
        for group in self.groups() {
            if let Ok(entries) = std::fs::read_dir(group) {
                found.extend(
                    entries
                        .flatten()
                        .filter(|entry| entry.path().is_dir())
                        .map(|entry| format!("cgroup {}", entry.path().display())),
                );
            }
        }
        let sockets = walk(&self.path().join("w")).into_iter().filter(|path| {
            use std::os::unix::fs::FileTypeExt;
            path.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
        });
        found.extend(sockets.map(|path| format!("socket {}", path.display())));
        found
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // What a failed test left; a test that passed asserted that there is nothing.
        for id in self.containers() {
            let _ = self.docker().args(["rm", "-f", &id]).output();
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let here = self.path().display().to_string();
        for target in
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| path.starts_with(&here))
        {
            let _ = Command::new("umount").args(["-l", target]).output();
        }
        let network = format!("taibai-{}", self.deployment);
        let _ = self.docker().args(["network", "rm", &network]).output();
        let _ = taibai::network::remove_rules(&self.deployment);
        // The empty group of a deployment stays for its next start; this one has none.
        for group in self.groups() {
            let _ = std::fs::remove_dir(group);
        }
    }
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() { walk(&path) } else { vec![path] }
        })
        .collect()
}

impl Service {
    pub async fn start(options: &[(&str, &str)]) -> Self {
        Self::start_in(Home::new(options)).await
    }

    /// Starts on what an earlier service left.
    pub async fn start_in(home: Home) -> Self {
        Self::start_role(home, "serve").await
    }

    /// Starts `taibai serve`, `taibai api` or `taibai engine`.
    pub async fn start_role(home: Home, role: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taibai"));
        command.args(["--config-file", &home.config_file().display().to_string(), role]);
        Self::start_as(home, command).await
    }

    /// Starts a service that reads its configuration in another way than from the usual file.
    pub async fn start_as(home: Home, command: Command) -> Self {
        match Self::try_start(home, command).await {
            Ok(service) => service,
            Err((_, log)) => panic!("the service did not start\n{log}"),
        }
    }

    /// Starts a service that may end before it listens; then its home, and what it said.
    pub async fn try_start(home: Home, mut command: Command) -> Result<Self, (Home, String)> {
        home.sync_database();
        let mut child =
            command.env("NO_COLOR", "1").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let mut stderr = child.stderr.take().unwrap();
        let sink = log.clone();
        let reading = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut buffer) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        });
        let stdout = child.stdout.take().unwrap();
        let url = tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let url = lines.find_map(|line| line.strip_prefix("listening on ").map(str::to_owned));
            // Read on, so that the service never writes into a closed pipe.
            std::thread::spawn(move || lines.for_each(drop));
            url
        })
        .await
        .unwrap();
        let Some(url) = url else {
            let status = child.wait();
            // Its last words may be on their way still.
            reading.join().unwrap();
            let log = format!("{status:?}\n{}", log.lock().unwrap());
            return Err((home, log));
        };
        // A client needs one. All but the first call fail, and that is as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // The service ends connections that were idle for five seconds; none is to be used in that moment.
        let http = reqwest::Client::builder().pool_idle_timeout(Duration::from_secs(2)).build().unwrap();
        Ok(Self { home, child, url, http, log, reading: Some(reading) })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn kill_9(mut self) -> Home {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.take_home()
    }

    pub fn send_sigterm(&self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// What is left of a service that ends by itself.
    pub async fn ended_by_itself(mut self) -> (Home, String) {
        let status = self.wait_exit().await;
        if let Some(reading) = self.reading.take() {
            reading.join().unwrap();
        }
        let log = format!("{status:?}\n{}", self.log());
        (self.take_home(), log)
    }

    /// Ends the service in good order.
    pub async fn stop(mut self) -> Home {
        self.send_sigterm();
        let status = self.wait_exit().await;
        assert!(status.success(), "{status:?} (signal {:?})\n{}", status.signal(), self.log());
        self.take_home()
    }

    /// Ends the service and asserts that nothing is left of it.
    pub async fn stop_clean(self) {
        let home = self.stop().await;
        assert_eq!(home.leftovers(), Vec::<String>::new());
    }

    pub async fn wait_exit(&mut self) -> ExitStatus {
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < limit, "the service does not end\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn take_home(self) -> Home {
        // SAFETY-free way out of a type with a destructor: the child has ended already.
        let mut this = self;
        let database = this.home.database.clone();
        std::mem::replace(&mut this.home, Home::on(database, &[]))
    }

    pub async fn ask(&self, who: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.request(who, method, path);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        read(request).await
    }

    pub fn request(&self, who: &str, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.http.request(method, format!("{}{path}", self.url));
        match who {
            "" => request,
            // One of Keystone's.
            token if token.starts_with("gAAAA") => request.header("x-auth-token", token),
            name => request.header("x-auth-token", format!("{name}:{name}")),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("", "GET", path, None).await
    }

    /// Registers the runtime of the tests and waits until it can be used.
    pub async fn runtime(&self) -> String {
        self.runtime_of(&required("TAIBAI_TEST_IMAGE")).await
    }

    pub async fn runtime_of(&self, image: &str) -> String {
        let body = json!({"image": image, "name": "python3"});
        let created = self.ask("admin", "POST", "/v1/runtimes", Some(body)).await.expect(201);
        let id = created["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/runtimes/{id}");
        eventually("the runtime is available", async || {
            let runtime = self.ask("admin", "GET", &path, None).await.expect(200);
            assert_ne!(runtime["status"], "error", "{runtime}");
            runtime["status"] == "available"
        })
        .await;
        id
    }

    /// Creates a function of one module, as `demo` unless `who` says otherwise.
    pub async fn function(&self, who: &str, runtime: &str, source: &str, fields: &[(&str, &str)]) -> String {
        let created = self.create_function(who, runtime, &package(source), fields).await.expect(201);
        created["id"].as_str().unwrap().to_owned()
    }

    pub async fn create_function(
        &self,
        who: &str,
        runtime: &str,
        package: &[u8],
        fields: &[(&str, &str)],
    ) -> Answer {
        let mut all = vec![("runtime_id", runtime), ("code", r#"{"source": "package"}"#)];
        all.extend_from_slice(fields);
        self.upload(who, "POST", "/v1/functions", &all, Some(package)).await
    }

    /// A multipart form, as python-qinlingclient sends it.
    pub async fn upload(
        &self,
        who: &str,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        package: Option<&[u8]>,
    ) -> Answer {
        read(self.form(who, method, path, fields, package)).await
    }

    pub fn form(
        &self,
        who: &str,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        package: Option<&[u8]>,
    ) -> reqwest::RequestBuilder {
        let boundary = "boundary-0123456789abcdef";
        let mut body = Vec::new();
        for (name, value) in fields {
            write!(
                body,
                "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            )
            .unwrap();
        }
        if let Some(package) = package {
            let head = "Content-Disposition: form-data; name=\"package\"; filename=\"main.zip\"";
            write!(body, "--{boundary}\r\n{head}\r\n\r\n").unwrap();
            body.extend_from_slice(package);
            body.extend_from_slice(b"\r\n");
        }
        write!(body, "--{boundary}--\r\n").unwrap();
        let content_type = format!("multipart/form-data; boundary={boundary}");
        self.request(who, method, path).header("content-type", content_type).body(body)
    }

    pub async fn execute(&self, who: &str, function: &str, input: &str) -> Value {
        let body = json!({"function_id": function, "input": input});
        self.ask(who, "POST", "/v1/executions", Some(body)).await.expect(201)
    }

    /// Accepts an asynchronous execution and gives its id.
    pub async fn accept(&self, who: &str, function: &str, input: &str) -> String {
        let body = json!({"function_id": function, "input": input, "sync": false});
        let accepted = self.ask(who, "POST", "/v1/executions", Some(body)).await.expect(201);
        assert_eq!((&accepted["status"], &accepted["result"]), (&json!("running"), &Value::Null));
        accepted["id"].as_str().unwrap().to_owned()
    }

    pub async fn execution(&self, who: &str, id: &str) -> Value {
        self.ask(who, "GET", &format!("/v1/executions/{id}"), None).await.expect(200)
    }

    pub async fn ended(&self, who: &str, id: &str) -> Value {
        let mut last = Value::Null;
        eventually("the execution has ended", async || {
            last = self.execution(who, id).await;
            last["status"] != "running"
        })
        .await;
        last
    }

    pub async fn execution_log(&self, who: &str, id: &str) -> String {
        self.ask(who, "GET", &format!("/v1/executions/{id}/log"), None).await.text()
    }

    pub async fn workers(&self, function: &str) -> Vec<String> {
        let answer =
            self.ask("admin", "GET", &format!("/v1/functions/{function}/workers"), None).await.expect(200);
        let workers = answer["workers"].as_array().unwrap();
        workers.iter().map(|worker| worker["worker_name"].as_str().unwrap().to_owned()).collect()
    }

    /// The sum of a metric over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let lines: Vec<_> = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name)).collect();
        lines.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the service's log ---\n{}", self.log());
        }
    }
}

pub async fn read(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, bytes: response.bytes().await.unwrap().to_vec() }
}

/// A zip with one module, `main`.
pub fn package(source: &str) -> Vec<u8> {
    zip_of(&[("main.py", source.as_bytes())])
}

pub fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The `result` of an execution, which the API gives as text.
pub fn result(execution: &Value) -> Value {
    serde_json::from_str(execution["result"].as_str().unwrap_or_else(|| panic!("no result: {execution}")))
        .unwrap()
}

pub fn output(execution: &Value) -> Value {
    result(execution)["output"].clone()
}

pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < limit, "not within thirty seconds: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

pub fn required(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run these tests with tox-like-scripts/functional"))
}
