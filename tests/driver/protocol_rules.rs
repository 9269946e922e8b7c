//! What a supervisor refuses, and what it keeps.

use protocol::worker::{Attempt, Execute, LOAD_HEADER, MAX_MESSAGE, RefusalKind};
use serde_json::json;
use taibai::engine::supervisor::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::worker::{Worker, ample, execute, output, soon};

const ECHO: &str = r#"
import time
def main(context, seconds=0, **kwargs):
    time.sleep(seconds)
    return kwargs
"#;

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> (RefusalKind, String) {
    match result {
        Err(Error::Refused(refusal)) => (refusal.kind, refusal.reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_worker_takes_one_package_and_runs_nothing_before() {
    let worker = Worker::start(1).await;
    assert_eq!(refused(worker.attempt("main.main", json!(null), ample()).await).0, RefusalKind::NotLoaded);
    worker.load(&[("main.py", ECHO)]).await.unwrap();
    assert_eq!(refused(worker.load(&[("main.py", "other = 1")]).await).0, RefusalKind::Loaded);
    assert_eq!(worker.output("main.main", json!({"a": 1})).await, json!({"a": 1}));
    worker.stop().await;
}

#[tokio::test]
async fn unusable_packages_are_refused_with_the_rule_they_break() {
    let zip_of = |entries: &[(&str, &[u8], u32)]| {
        use std::io::Write;
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, content, mode) in entries {
            let options = zip::write::SimpleFileOptions::default().unix_permissions(*mode);
            zip.start_file(*name, options).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap().into_inner()
    };
    let bomb = vec![0; 80 << 20];
    let mut link = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    link.add_symlink("link", "/etc/passwd", zip::write::SimpleFileOptions::default()).unwrap();
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("no zip", b"no zip at all".to_vec(), "it is no zip"),
        ("slip", zip_of(&[("../../private/x", b"x", 0o644)]), "leads out of the package"),
        ("absolute", zip_of(&[("/etc/x", b"x", 0o644)]), "leads out of the package"),
        ("bomb", zip_of(&[("bomb", &bomb, 0o644)]), "expands to more than"),
        ("link", link.finish().unwrap().into_inner(), "is a link or a device"),
        ("cut", zip_of(&[("main.py", ECHO.as_bytes(), 0o644)])[..60].to_vec(), "it is no zip"),
    ];
    for (name, package, rule) in cases {
        let worker = Worker::start(1).await;
        let (kind, reason) = refused(worker.load_bytes(package).await);
        assert_eq!(kind, RefusalKind::BadPackage, "{name}");
        assert!(reason.contains(rule), "{name}: {reason}");
        // Something of it may have been written, so the worker is not given another.
        assert_eq!(refused(worker.load(&[("main.py", ECHO)]).await).0, RefusalKind::Loaded, "{name}");
        worker.stop().await;
    }
}

#[tokio::test]
async fn an_outcome_is_kept_until_it_is_acknowledged() {
    let worker = Worker::running(1, ECHO).await;
    let request = execute("main.main", json!({"a": 1}), ample());
    let first = worker.supervisor.execute(&request, soon(10)).await.unwrap();
    let kept = worker.supervisor.outcome(&request.attempt, soon(5)).await.unwrap();
    assert_eq!((output(&kept), kept.log), (output(&first), first.log));
    assert_eq!(worker.supervisor.state(soon(5)).await.unwrap().ended, std::slice::from_ref(&request.attempt));

    // By itself, or along with the next execution.
    worker.supervisor.acknowledge(vec![request.attempt.clone()], soon(5)).await.unwrap();
    assert_eq!(refused(worker.supervisor.outcome(&request.attempt, soon(5)).await).0, RefusalKind::Unknown);
    let second = execute("main.main", json!({}), ample());
    worker.supervisor.execute(&second, soon(10)).await.unwrap();
    let third =
        Execute { acknowledge: vec![second.attempt.clone()], ..execute("main.main", json!({}), ample()) };
    worker.supervisor.execute(&third, soon(10)).await.unwrap();
    assert_eq!(worker.supervisor.state(soon(5)).await.unwrap().ended, [third.attempt]);
    worker.stop().await;
}

#[tokio::test]
async fn an_execution_runs_on_when_whoever_asked_has_gone() {
    let worker = Worker::running(1, ECHO).await;
    let request = execute("main.main", json!({"seconds": 1, "a": 1}), ample());
    let given_up = worker
        .supervisor
        .execute(&request, tokio::time::Instant::now() + std::time::Duration::from_millis(200));
    assert!(given_up.await.is_err());
    assert_eq!(
        worker.supervisor.state(soon(5)).await.unwrap().running,
        std::slice::from_ref(&request.attempt)
    );
    let outcome = worker.supervisor.outcome(&request.attempt, soon(5)).await.unwrap();
    assert_eq!(output(&outcome), json!({"a": 1}));
    worker.stop().await;
}

#[tokio::test]
async fn an_attempt_is_run_once_and_not_below_its_fence() {
    let worker = Worker::running(1, ECHO).await;
    let mut request = execute("main.main", json!({}), ample());
    worker.supervisor.execute(&request, soon(10)).await.unwrap();
    assert_eq!(refused(worker.supervisor.execute(&request, soon(10)).await).0, RefusalKind::Fenced);
    let fence = Attempt { epoch: 5, ..request.attempt.clone() };
    worker.supervisor.fence(&fence, soon(5)).await.unwrap();
    request.attempt.epoch = 4;
    assert_eq!(refused(worker.supervisor.execute(&request, soon(10)).await).0, RefusalKind::Fenced);
    request.attempt.epoch = 5;
    worker.supervisor.execute(&request, soon(10)).await.unwrap();
    worker.stop().await;
}

#[tokio::test]
async fn one_execution_more_than_there_are_slots_is_refused_and_a_running_one_can_be_cancelled() {
    let worker = Worker::running(1, ECHO).await;
    let long = execute("main.main", json!({"seconds": 30}), ample());
    let cancel = async {
        crate::worker::eventually("it runs", async || {
            worker.supervisor.state(soon(5)).await.unwrap().running == [long.attempt.clone()]
        })
        .await;
        let more = worker.attempt("main.main", json!({}), ample()).await;
        assert_eq!(refused(more).0, RefusalKind::NoSlot);
        worker.supervisor.cancel(&long.attempt, soon(5)).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(worker.supervisor.execute(&long, soon(40)), cancel);
    assert_eq!(outcome.unwrap().end, protocol::worker::End::Cancelled);
    assert_eq!(refused(worker.supervisor.cancel(&long.attempt, soon(5)).await).0, RefusalKind::Unknown);
    assert_eq!(worker.output("main.main", json!({"a": 2})).await, json!({"a": 2}));
    worker.stop().await;
}

/// Sends bytes to the supervisor's socket and gives the status of the answer.
async fn raw(worker: &Worker, request: Vec<u8>) -> String {
    let mut stream = UnixStream::connect(worker.supervisor.socket()).await.unwrap();
    // The supervisor may answer, and close, before it has read all of a body that it refuses.
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    let (_, _) = tokio::join!(
        async {
            let _ = write.write_all(&request).await;
        },
        async {
            let mut buffer = [0; 4096];
            while let Ok(1..) =
                read.read(&mut buffer).await.inspect(|n| answer.extend_from_slice(&buffer[..*n]))
            {
                if answer.windows(2).any(|two| two == b"\r\n") {
                    break;
                }
            }
        }
    );
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

fn post(path: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn unknown_malformed_and_oversized_messages_are_refused() {
    let worker = Worker::running(1, ECHO).await;
    let mut unknown = serde_json::to_value(execute("main.main", json!({}), ample())).unwrap();
    unknown["surprise"] = json!(1);
    let unknown = unknown.to_string();
    let large = vec![b' '; MAX_MESSAGE + 1];
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("an unknown field", post("/v1/executions", unknown.len(), unknown.as_bytes()), "400"),
        ("no JSON", post("/v1/executions", 3, b"{x}"), "400"),
        ("too large", post("/v1/executions", large.len(), &large), "413"),
        ("an unknown path", post("/v1/nosuch", 0, b""), "404"),
        ("no HTTP", b"\x16\x03\x01 hello\r\n\r\n".to_vec(), "400"),
        (
            "a load without its header",
            format!("PUT /v1/package HTTP/1.1\r\nhost: x\r\nx-{LOAD_HEADER}: 1\r\ncontent-length: 0\r\n\r\n")
                .into(),
            "400",
        ),
    ];
    for (name, request, status) in cases {
        let line = raw(&worker, request).await;
        assert!(line.contains(status), "{name}: {line}");
    }
    assert_eq!(worker.output("main.main", json!({"a": 1})).await, json!({"a": 1}));
    worker.stop().await;
}
