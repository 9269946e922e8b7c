use std::convert::Infallible;
use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::server;
use hyper::service::service_fn;
use protocol::worker::{End, ExecutionLimits, RefusalKind};
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

const LONG: Duration = Duration::from_secs(10);

fn soon() -> Instant {
    Instant::now() + LONG
}

/// What a request was, as a stand-in for a supervisor sees it.
struct Seen {
    line: String,
    load: Option<String>,
    body: Bytes,
}

/// A socket that answers by a function, and counts.
struct Fake {
    dir: TempDir,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Fake {
    fn start<F, Fut>(answer: F) -> (Self, Supervisor)
    where
        F: Fn(Seen) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Response<Full<Bytes>>> + Send,
    {
        let (fake, supervisor) = Self::silent();
        fake.listen(answer);
        (fake, supervisor)
    }

    fn silent() -> (Self, Supervisor) {
        let dir = TempDir::new().unwrap();
        let supervisor = Supervisor::new(dir.path().join("s"));
        (Self { dir, connections: Arc::default(), requests: Arc::default() }, supervisor)
    }

    fn socket(&self) -> &Path {
        self.dir.path()
    }

    fn listen<F, Fut>(&self, answer: F)
    where
        F: Fn(Seen) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Response<Full<Bytes>>> + Send,
    {
        let listener = UnixListener::bind(self.socket().join("s")).unwrap();
        let (connections, requests) = (self.connections.clone(), self.requests.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (answer, requests) = (answer.clone(), requests.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, requests) = (answer.clone(), requests.clone());
                    async move {
                        requests.fetch_add(1, Ordering::SeqCst);
                        let line = format!("{} {}", request.method(), request.uri());
                        let load = request.headers().get(LOAD_HEADER);
                        let load = load.map(|load| load.to_str().unwrap().to_owned());
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        Ok::<_, Infallible>(answer(Seen { line, load, body }).await)
                    }
                });
                tokio::spawn(
                    server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn answer(status: u16, body: impl Serialize) -> Response<Full<Bytes>> {
    let body = if status == 204 { Bytes::new() } else { json(&body).unwrap() };
    Response::builder().status(status).body(Full::new(body)).unwrap()
}

fn refusal(status: u16, kind: RefusalKind) -> Response<Full<Bytes>> {
    answer(status, Refusal { kind, reason: "because".to_owned() })
}

fn state(protocol: u32) -> State {
    State {
        protocol,
        worker: "w1".to_owned(),
        slots: 3,
        loaded: None,
        running: vec![],
        ended: vec![],
        parent_private_bytes: 0,
        retired: Default::default(),
    }
}

fn attempt() -> Attempt {
    Attempt { execution: "e-1".to_owned(), epoch: 2 }
}

fn execute() -> Execute {
    Execute {
        attempt: attempt(),
        entry: "main.main".to_owned(),
        input: RawValue::from_string("{}".to_owned()).unwrap(),
        limits: ExecutionLimits {
            cpu_millis: 100,
            memory_bytes: 1 << 25,
            timeout_ms: 5000,
            max_result_bytes: 1000,
            max_log_bytes: 1000,
        },
        fresh: false,
        request_id: None,
        openstack: None,
        acknowledge: vec![],
    }
}

fn outcome(attempt: Attempt, log: &str) -> Outcome {
    Outcome {
        attempt,
        end: End::Returned,
        output: Some(RawValue::from_string("42".to_owned()).unwrap()),
        duration_ms: 1.5,
        log: log.to_owned(),
        log_truncated: false,
        reused: false,
        token_refused: false,
        account: Account::default(),
    }
}

#[tokio::test]
async fn what_an_execution_took_comes_beside_its_outcome_where_the_supervisor_says_so() {
    for (header, account) in [
        (None, Account::default()),
        (Some(r#"{"cpu_us":7}"#), Account { cpu_us: Some(7), ..Account::default() }),
        // Of a later version, or of nobody's.
        (Some(r#"{"cpu_us":7,"joules":1}"#), Account { cpu_us: Some(7), ..Account::default() }),
        (Some("garbage"), Account::default()),
    ] {
        let (_fake, supervisor) = Fake::start(move |_| async move {
            let mut answer = answer(200, outcome(attempt(), ""));
            if let Some(header) = header {
                answer.headers_mut().insert(ACCOUNT_HEADER, HeaderValue::from_static(header));
            }
            answer
        });
        let outcome = supervisor.execute(&execute(), soon()).await.unwrap();
        assert_eq!(outcome.account, account, "{header:?}");
    }
}

#[tokio::test]
async fn one_connection_serves_one_request_after_another() {
    let (fake, supervisor) = Fake::start(|_| async { answer(200, outcome(attempt(), "")) });

    for _ in 0..20 {
        let outcome = supervisor.execute(&execute(), soon()).await.unwrap();
        assert_eq!(outcome.output.unwrap().get(), "42");
    }

    assert_eq!((fake.connections(), fake.requests()), (1, 20));
}

#[tokio::test]
async fn requests_that_overlap_have_a_connection_each_and_leave_them_for_the_next() {
    let barrier = Arc::new(tokio::sync::Barrier::new(3));
    let (fake, supervisor) = Fake::start(move |_| {
        let barrier = barrier.clone();
        async move {
            barrier.wait().await;
            answer(200, state(protocol::VERSION))
        }
    });

    for _ in 0..4 {
        let asked = futures_util::future::join_all((0..3).map(|_| supervisor.state(soon()))).await;
        assert!(asked.iter().all(Result::is_ok));
    }

    assert_eq!((fake.connections(), fake.requests()), (3, 12));
}

/// Of two threads with a runtime each, the second ends before the first asks again.
#[tokio::test]
async fn each_thread_has_connections_of_its_own_and_leaves_none_that_others_cannot_use() {
    let (fake, supervisor) = Fake::start(|_| async { answer(200, state(protocol::VERSION)) });
    let supervisor = Arc::new(supervisor);
    supervisor.state(soon()).await.unwrap();
    let other = supervisor.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { (other.state(soon()).await.unwrap(), other.state(soon()).await.unwrap()) })
    });
    asked.await.unwrap();
    assert_eq!((fake.connections(), fake.requests()), (2, 3));
    supervisor.state(soon()).await.unwrap();
    assert_eq!((fake.connections(), fake.requests()), (2, 4));
}

#[tokio::test]
async fn each_request_goes_to_its_route() {
    let (heard, mut hear) = tokio::sync::mpsc::unbounded_channel();
    let (_fake, supervisor) = Fake::start(move |seen: Seen| {
        let status = if seen.line.starts_with("GET") { 200 } else { 204 };
        heard.send(seen).unwrap();
        async move { answer(status, outcome(attempt(), "")) }
    });

    supervisor.outcome(&attempt(), soon()).await.unwrap();
    supervisor.fence(&attempt(), soon()).await.unwrap();
    supervisor.acknowledge(vec![attempt()], soon()).await.unwrap();
    supervisor.cancel(&attempt(), soon()).await.unwrap();

    let mut next = || hear.try_recv().unwrap();
    assert_eq!(next().line, "GET /v1/executions/e-1/2");
    let fence = next();
    assert_eq!(fence.line, "POST /v1/fence");
    assert_eq!(serde_json::from_slice::<Attempt>(&fence.body).unwrap(), attempt());
    let acknowledge = next();
    assert_eq!(acknowledge.line, "POST /v1/acknowledge");
    assert_eq!(serde_json::from_slice::<Acknowledge>(&acknowledge.body).unwrap().attempts, [attempt()]);
    assert_eq!(next().line, "DELETE /v1/executions/e-1/2");
}

#[tokio::test]
async fn a_package_is_streamed_with_its_function_in_the_header() {
    let (heard, mut hear) = tokio::sync::mpsc::unbounded_channel();
    let (_fake, supervisor) = Fake::start(move |seen: Seen| {
        heard.send(seen).unwrap();
        async { answer(204, ()) }
    });
    let load = Load {
        project: "p".to_owned(),
        function: "f".to_owned(),
        version: 0,
        digest: "d".to_owned(),
        limits: Default::default(),
        offline: false,
    };
    let chunk = Bytes::from(vec![7; 100_000]);
    let package = futures_util::stream::iter(vec![Ok(chunk.clone()), Ok(chunk)]);

    supervisor.load(&load, package, soon()).await.unwrap();

    let seen = hear.try_recv().unwrap();
    assert_eq!(seen.line, "PUT /v1/package");
    assert_eq!(serde_json::from_str::<Load>(&seen.load.unwrap()).unwrap(), load);
    assert_eq!(seen.body, vec![7; 200_000]);
}

#[tokio::test]
async fn a_package_that_cannot_be_read_is_never_taken_for_a_whole_one() {
    let (_fake, supervisor) = Fake::silent();
    let listener = UnixListener::bind(_fake.socket().join("s")).unwrap();
    let reader = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        all
    });
    let broken = vec![Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("the disk"))];
    let load = Load {
        project: "p".to_owned(),
        function: "f".to_owned(),
        version: 0,
        digest: "d".to_owned(),
        limits: Default::default(),
        offline: false,
    };

    let error = supervisor.load(&load, futures_util::stream::iter(broken), soon()).await.unwrap_err();

    assert!(matches!(error, Error::Gone(_)), "{error:?}");
    let sent = reader.await.unwrap();
    assert!(!sent.ends_with(b"0\r\n\r\n"), "the end of the body was written");
}

#[tokio::test]
async fn a_refusal_is_told_from_an_answer() {
    let (_fake, supervisor) = Fake::start(|_| async { refusal(409, RefusalKind::NoSlot) });

    match supervisor.execute(&execute(), soon()).await {
        Err(Error::Refused(refusal)) => assert_eq!(refusal.kind, RefusalKind::NoSlot),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_failure_without_a_refusal_breaks_the_protocol() {
    let (_fake, supervisor) = Fake::start(|_| async { answer(500, "oops") });

    let error = supervisor.fence(&attempt(), soon()).await.unwrap_err();

    assert!(matches!(&error, Error::Protocol(why) if why.contains("500")), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_read() {
    let (_fake, supervisor) =
        Fake::start(|_| async { answer(200, outcome(attempt(), &"x".repeat(200_000))) });

    let error = supervisor.execute(&execute(), soon()).await.unwrap_err();

    assert!(matches!(&error, Error::Protocol(why) if why.contains("larger than 72536")), "{error:?}");
    supervisor.outcome(&attempt(), soon()).await.unwrap();
}

#[tokio::test]
async fn an_answer_for_another_attempt_is_not_taken() {
    let (_fake, supervisor) =
        Fake::start(|_| async { answer(200, outcome(Attempt { epoch: 1, ..attempt() }, "")) });

    let error = supervisor.execute(&execute(), soon()).await.unwrap_err();

    assert!(matches!(error, Error::Protocol(_)), "{error:?}");
}

/// Answers the first request of each connection with `first`, reads a second one, and hangs up.
async fn hang_up(listener: UnixListener, first: &'static [u8], reads: Arc<AtomicUsize>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 65536];
        for reply in [first, b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"att"] {
            if stream.read(&mut buffer).await.unwrap() == 0 {
                break;
            }
            reads.fetch_add(1, Ordering::SeqCst);
            stream.write_all(reply).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_connection_lost_in_the_middle_of_an_answer_means_gone_and_nothing_is_sent_again() {
    let (fake, supervisor) = Fake::silent();
    let reads = Arc::new(AtomicUsize::new(0));
    let listener = UnixListener::bind(fake.socket().join("s")).unwrap();
    tokio::spawn(hang_up(listener, b"HTTP/1.1 204 No Content\r\n\r\n", reads.clone()));
    supervisor.fence(&attempt(), soon()).await.unwrap();

    // On the connection that was kept, so that a second try would be possible.
    let error = supervisor.execute(&execute(), soon()).await.unwrap_err();

    assert!(matches!(error, Error::Gone(_)), "{error:?}");
    assert_eq!(reads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_connection_lost_before_the_answer_means_gone_and_nothing_is_sent_again() {
    let (fake, supervisor) = Fake::silent();
    let listener = UnixListener::bind(fake.socket().join("s")).unwrap();
    let reads = Arc::new(AtomicUsize::new(0));
    let counter = reads.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 65536];
            assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });

    let error = supervisor.execute(&execute(), soon()).await.unwrap_err();

    assert!(matches!(error, Error::Gone(_)), "{error:?}");
    assert_eq!(reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_replaced_unnoticed() {
    let (fake, supervisor) = Fake::silent();
    let listener = UnixListener::bind(fake.socket().join("s")).unwrap();
    let reads = Arc::new(AtomicUsize::new(0));
    let counter = reads.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 65536];
            assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
            counter.fetch_add(1, Ordering::SeqCst);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        }
    });

    // Often enough to meet the close at different moments; each request arrives exactly once.
    for round in 1..=50 {
        supervisor.fence(&attempt(), soon()).await.unwrap();
        assert_eq!(reads.load(Ordering::SeqCst), round);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn the_deadline_ends_the_wait_and_the_connection() {
    let (fake, supervisor) = Fake::start(|seen: Seen| async move {
        if seen.line.starts_with("POST") {
            pending::<()>().await;
        }
        answer(200, state(protocol::VERSION))
    });

    let deadline = Instant::now() + Duration::from_millis(50);
    let error = supervisor.execute(&execute(), deadline).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error:?}");

    supervisor.state(soon()).await.unwrap();
    assert_eq!(fake.connections(), 2);
}

#[tokio::test]
async fn a_supervisor_that_starts_late_is_waited_for() {
    let (fake, supervisor) = Fake::silent();
    let start = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        fake.listen(|_| async { answer(200, state(protocol::VERSION)) });
    };

    let (ready, ()) = tokio::join!(supervisor.wait_ready(soon()), start);

    assert_eq!(ready.unwrap().worker, "w1");
}

#[tokio::test]
async fn a_supervisor_that_never_starts_is_gone_at_the_deadline() {
    let (_fake, supervisor) = Fake::silent();
    let deadline = Instant::now() + Duration::from_millis(60);

    let error = supervisor.wait_ready(deadline).await.unwrap_err();

    assert!(matches!(error, Error::Gone(_)), "{error:?}");
    assert!(Instant::now() <= deadline + Duration::from_millis(500));
}

#[tokio::test]
async fn a_supervisor_of_another_version_is_not_spoken_to() {
    let (_fake, supervisor) = Fake::start(|_| async { answer(200, state(protocol::VERSION + 1)) });

    let error = supervisor.wait_ready(soon()).await.unwrap_err();

    let theirs = format!("version {}", protocol::VERSION + 1);
    assert!(matches!(&error, Error::Protocol(why) if why.contains(&theirs)), "{error:?}");
}

#[tokio::test]
async fn an_id_that_would_be_another_route_is_refused() {
    let (fake, supervisor) = Fake::start(|_| async { answer(204, ()) });
    let sly = Attempt { execution: "../fence".to_owned(), epoch: 1 };

    assert!(matches!(supervisor.cancel(&sly, soon()).await, Err(Error::Protocol(_))));
    assert_eq!(fake.requests(), 0);
}

#[tokio::test]
async fn a_cloud_is_sent_before_it_is_named_and_again_once_where_it_was_forgotten() {
    let seen: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let (lines, forgetful) = (seen.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let forgets = forgetful.clone();
    let (_fake, supervisor) = Fake::start(move |request| {
        let (lines, forgets) = (lines.clone(), forgets.load(Ordering::SeqCst));
        async move {
            let is_cloud = request.line.starts_with("PUT /v1/clouds/");
            lines.lock().unwrap().push(request.line);
            match (is_cloud, forgets) {
                (true, _) => answer(204, ()),
                (false, true) => refusal(409, RefusalKind::UnknownCloud),
                (false, false) => answer(200, outcome(attempt(), "")),
            }
        }
    });
    let cloud = Cloud::new(&protocol::openstack::Cloud {
        auth_url: "http://keystone/v3".to_owned(),
        region_name: None,
        interface: None,
        catalog: RawValue::from_string("[]".to_owned()).unwrap(),
        cacert: None,
    })
    .unwrap();
    let (put, post) = (format!("PUT /v1/clouds/{}", cloud.digest()), "POST /v1/executions".to_owned());

    supervisor.execute_in(&cloud, &execute(), soon()).await.unwrap();
    supervisor.execute_in(&cloud, &execute(), soon()).await.unwrap();
    assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), [&put, &post, &post].map(String::clone));

    forgetful.store(true, Ordering::SeqCst);
    let error = supervisor.execute_in(&cloud, &execute(), soon()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused(refusal) if refusal.kind == RefusalKind::UnknownCloud),
        "{error:?}"
    );
    assert_eq!(*seen.lock().unwrap(), [&post, &put, &post].map(String::clone));
}
