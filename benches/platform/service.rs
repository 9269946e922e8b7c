//! The service as a process of its own, and clients of it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use reqwest::Method;
use serde_json::{Value, json};

use crate::usage;

pub const FUNCTION: &str = "def main(name='World', **kwargs):\n    return 'Hello, ' + name\n";
/// So much that the platform is measured and not the limit.
pub const CPU_MILLIS: u32 = 2000;
pub const UID_BASE: u32 = 1_950_000_000;

pub struct Server {
    child: Child,
    pub url: String,
    deployment: String,
    _dirs: tempfile::TempDir,
}

impl Server {
    pub fn start(variables: &[(&str, &str)]) -> Self {
        let dirs = tempfile::Builder::new().prefix("tbb").tempdir_in("/run").unwrap();
        let at = |name: &str| dirs.path().join(name).display().to_string();
        let deployment = format!("bs{}", std::process::id());
        // Another build may be measured beside this one.
        let program = std::env::var("TAIBAI_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_taibai").to_owned());
        let mut child = Command::new(program)
            .arg("serve")
            .env("TAIBAI_API__PORT", "0")
            .env("TAIBAI_DATABASE__CONNECTION", format!("sqlite:///{}", at("db.sqlite")))
            .env("TAIBAI_DOCKER__DEPLOYMENT", &deployment)
            .env("TAIBAI_DOCKER__WORKER_DIR", at("w"))
            .env("TAIBAI_DOCKER__WORK_DIR", at("work"))
            .env("TAIBAI_DOCKER__SUPERVISOR", required("TAIBAI_SUPERVISOR"))
            .env("TAIBAI_DOCKER__UID_BASE", (UID_BASE + 1_000_000).to_string())
            .env("TAIBAI_ENGINE__KEEP_WORKERS_ON_SHUTDOWN", "false")
            .env("TAIBAI_ENGINE__POOL_SIZE", "2")
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
        Self { child, url, deployment, _dirs: dirs }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Processes of its workers.
    pub fn worker_pids(&self) -> Vec<u32> {
        usage::pids_labelled(&format!("org.openstack.taibai.deployment={}", self.deployment))
    }

    pub fn private_mib(&self) -> f64 {
        usage::private_mib(&[self.pid()])
    }

    pub fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

/// What sets the scene; [`Caller`] is what is measured with.
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

impl Client {
    pub fn new(server: &Server, token: Option<&str>) -> Self {
        let mut headers = reqwest::header::HeaderMap::new();
        if let Some(token) = token {
            headers.insert("x-auth-token", token.parse().unwrap());
        }
        let http = reqwest::Client::builder().no_proxy().default_headers(headers).build().unwrap();
        Self { http, url: server.url.clone(), token: token.map(str::to_owned) }
    }

    pub async fn json(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    pub async fn runtime(&self) -> String {
        let body = json!({"image": required("TAIBAI_TEST_IMAGE")});
        let (_, runtime) = self.json(Method::POST, "/v1/runtimes", Some(body)).await;
        let id = runtime["id"].as_str().unwrap().to_owned();
        loop {
            let (_, runtime) = self.json(Method::GET, &format!("/v1/runtimes/{id}"), None).await;
            match runtime["status"].as_str() {
                Some("available") => return id,
                Some("creating") => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => panic!("{runtime}"),
            }
        }
    }

    pub async fn function(&self, runtime: &str) -> String {
        self.function_with(runtime, package(FUNCTION, 0)).await
    }

    pub async fn function_with(&self, runtime: &str, package: Vec<u8>) -> String {
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
        body.extend(package);
        write!(body, "\r\n--{boundary}--\r\n").unwrap();
        let request = self
            .http
            .post(format!("{}/v1/functions", self.url))
            .header("content-type", format!("multipart/form-data; boundary={boundary}"))
            .body(body);
        let function: Value = request.send().await.unwrap().json().await.unwrap();
        function["id"].as_str().unwrap_or_else(|| panic!("{function}")).to_owned()
    }

    pub async fn delete(&self, function: &str) {
        let (status, body) = self.json(Method::DELETE, &format!("/v1/functions/{function}"), None).await;
        assert_eq!(status, 204, "{body}");
    }

    pub async fn pool_is_full(&self, runtime: &str) {
        let path = format!("/v1/runtimes/{runtime}/pool");
        while self.json(Method::GET, &path, None).await.1["capacity"]["available"] != 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Executions that have ended since the service started.
    pub async fn ended(&self) -> usize {
        let text = self.http.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
        let lines = text.lines().filter(|line| line.starts_with("taibai_executions_total{"));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok()).sum()
    }

    /// Somebody who calls a function and waits.
    pub fn caller(&self, function: &str) -> Caller {
        self.caller_with(
            json!({"function_id": function, "input": "{\"name\": \"bench\"}"}),
            "\"status\":\"success\"",
        )
    }

    /// Somebody who calls a function and does not wait for its end.
    pub fn asynchronous(&self, function: &str) -> Caller {
        let body = json!({"function_id": function, "input": "{\"name\": \"bench\"}", "sync": false});
        self.caller_with(body, "\"status\":\"running\"")
    }

    fn caller_with(&self, body: Value, wanted: &'static str) -> Caller {
        let address = self.url.strip_prefix("http://").unwrap();
        Caller::new(address, "/v1/executions", self.token.as_deref(), &body, wanted)
    }
}

pub type Connection = SendRequest<Full<Bytes>>;

/// One client with one connection, which costs as little as a client can: it shares the machine with what
/// it measures.
pub struct Caller {
    address: String,
    path: &'static str,
    token: Option<String>,
    body: Bytes,
    wanted: &'static str,
    connection: Option<Connection>,
}

impl Caller {
    /// `wanted` stands in every good answer.
    pub fn new(
        address: &str,
        path: &'static str,
        token: Option<&str>,
        body: &Value,
        wanted: &'static str,
    ) -> Self {
        let (address, token) = (address.to_owned(), token.map(str::to_owned));
        Self { address, path, token, body: body.to_string().into(), wanted, connection: None }
    }

    pub async fn call(&mut self) {
        let mut kept = self.connection.take();
        if let Some(connection) = &mut kept
            && connection.ready().await.is_err()
        {
            // The service closes what idles; a new one is part of the call.
            kept = None;
        }
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.connect().await,
        };
        let mut request = hyper::Request::post(self.path)
            .header("host", &self.address)
            .header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("x-auth-token", token);
        }
        let request = request.body(Full::new(self.body.clone())).unwrap();
        let answer = connection.send_request(request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains(self.wanted), "{text}");
        self.connection = Some(connection);
    }

    /// Uses a connection that others of the same client use too.
    pub fn connect_through(&mut self, shared: &mut Option<Connection>) {
        self.connection = shared.take();
    }

    pub fn give_back(&mut self, shared: &mut Option<Connection>) {
        *shared = self.connection.take();
    }

    async fn connect(&self) -> Connection {
        let stream = tokio::net::TcpStream::connect(&self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    pub async fn timed(&mut self, count: usize) -> Vec<Duration> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let begin = Instant::now();
            self.call().await;
            times.push(begin.elapsed());
        }
        times
    }
}

/// What `callers` together reach, each with so many calls.
pub struct Together {
    pub times: Vec<Duration>,
    pub elapsed: Duration,
}

impl Together {
    pub async fn run(callers: &mut [Caller], each: usize) -> Self {
        let begin = Instant::now();
        let all = futures_util::future::join_all(callers.iter_mut().map(|caller| caller.timed(each))).await;
        Self { times: all.into_iter().flatten().collect(), elapsed: begin.elapsed() }
    }

    pub fn add(&mut self, other: Self) {
        self.times.extend(other.times);
        self.elapsed += other.elapsed;
    }

    pub fn none() -> Self {
        Self { times: Vec::new(), elapsed: Duration::ZERO }
    }

    pub fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.elapsed.as_secs_f64()
    }
}

pub async fn timed<F: Future>(count: usize, mut call: impl FnMut(usize) -> F) -> Vec<Duration> {
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let begin = Instant::now();
        call(n).await;
        times.push(begin.elapsed());
    }
    times
}

/// A package with this function and so many bytes beside it, which cannot be made smaller.
pub fn package(source: &str, padding: usize) -> Vec<u8> {
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("main.py", stored).unwrap();
    zip.write_all(source.as_bytes()).unwrap();
    if padding > 0 {
        zip.start_file("data.bin", stored).unwrap();
        let bytes: Vec<u8> = (0..padding).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub fn soon(seconds: u64) -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(seconds)
}

pub fn required(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run this with tox-like-scripts/bench"))
}
