//! What a function may do to its answer and its log, and what becomes of it.

use std::time::Duration;

use protocol::worker::{End, ExecutionLimits, Outcome};
use serde_json::json;

use crate::worker::{MIB, Worker, ample, output};

/// The output between the lines that the supervisor adds.
pub fn lines(outcome: &Outcome) -> Vec<&str> {
    outcome.log.lines().filter(|line| !line.contains(" execution: ")).collect()
}

const CALLS: &str = r#"
import sys
def keywords(context, a, b=2): return [a, b, sorted(context)]
def positional(text, context=None, **rest): return [text, rest]
def nothing(context): pass
def types(context): return {'tuple': (1, 2), 'text': 'ä\u2028', 'number': 1.5, 'none': None, 1: True}
class Odd(Exception):
    def __str__(self): raise RuntimeError('no text')
def odd(context): raise Odd()
def leaves(context, code): print('before'); sys.exit(code)
def resource_gone(context): raise BlockingIOError(11, 'Resource temporarily unavailable')
"#;

#[tokio::test]
async fn functions_are_called_as_qinlings_are() {
    let worker = Worker::start(1).await;
    worker
        .load(&[
            ("main.py", CALLS),
            ("pkg/__init__.py", ""),
            ("pkg/mod.py", "def fn(context): return 'deep'\n"),
        ])
        .await
        .unwrap();
    assert_eq!(worker.output("main.keywords", json!({"a": 1})).await, json!([1, 2, ["os_session"]]));
    assert_eq!(
        worker.output("main.positional", json!({"__function_input": "a b", "k": 1})).await,
        json!(["a b", {"k": 1}])
    );
    assert_eq!(worker.output("main.nothing", json!(null)).await, json!(null));
    assert_eq!(
        worker.output("main.types", json!(null)).await,
        json!({"tuple": [1, 2], "text": "ä\u{2028}", "number": 1.5, "none": null, "1": true})
    );
    assert_eq!(worker.output("pkg.mod.fn", json!(null)).await, "deep");
    worker.stop().await;
}

#[tokio::test]
async fn exceptions_and_exits_are_told_apart() {
    let worker = Worker::running(1, CALLS).await;
    let end = async |entry: &str, input| worker.run(entry, input, ample()).await.end;
    let raised = |message: &str| End::Raised { message: message.to_owned() };

    assert_eq!(end("nosuch.main", json!(null)).await, raised("No module named 'nosuch'"));
    assert_eq!(end("main.nosuch", json!(null)).await, raised("module 'main' has no attribute 'nosuch'"));
    assert_eq!(
        end("main.keywords", json!(null)).await,
        raised("keywords() missing 1 required positional argument: 'a'")
    );
    assert_eq!(end("main.odd", json!(null)).await, raised("<Odd>"));
    assert_eq!(end("main.leaves", json!({"code": 0})).await, End::Exited { code: 0 });
    assert_eq!(end("main.leaves", json!({"code": 3})).await, End::Exited { code: 3 });
    assert_eq!(end("main.leaves", json!({"code": "words"})).await, End::Exited { code: 1 });
    assert!(matches!(end("main.resource_gone", json!(null)).await, End::Exhausted { .. }));
    worker.stop().await;
}

const BAD: &str = r#"
import ctypes, gc, json, os, socket, struct, sys, threading, time
def good(context): return 'good'
def channel():
    return next(o for o in gc.get_objects() if isinstance(o, socket.socket))
def garbage(context): channel().sendall(os.urandom(1 << 16)); time.sleep(5)
def half(context): channel().sendall(struct.pack('>I', 100) + b'{'); time.sleep(5)
def huge(context): channel().sendall(struct.pack('>I', 0xffffffff)); time.sleep(5)
def not_a_message(context): channel().sendall(struct.pack('>I', 2) + b'[]'); time.sleep(5)
def forged(context):
    body = b'{"returned":{"nonce":1,"output":"forged"}}'
    channel().sendall(struct.pack('>I', len(body)) + body)
    time.sleep(5)
def ahead(context):
    body = b'{"returned":{"nonce":1,"output":"forged"}}'
    frame = struct.pack('>I', len(body)) + body
    held = channel()
    threading.Timer(0.2, lambda: held.sendall(frame)).start()
    return 'real'
def closes(context): os.closerange(0, 4096); time.sleep(5)
def closes_output(context): os.closerange(0, 3); return 'quiet'
def exits(context): os._exit(0)
def aborts(context): os.abort()
def segfaults(context): ctypes.string_at(0)
def kills_itself(context): os.kill(os.getpid(), 9)
def large(context): return 'x' * (100 << 20)
def a_set(context): return {1}
def nan(context): return float('nan')
def deep(context):
    value = []
    for _ in range(100_000): value = [value]
    return value
def deep_but_fine(context):
    value = []
    for _ in range(500): value = [value]
    return value
def bad_output(context): sys.stdout = None; sys.stderr = 7; return 'fine'
def no_reader(context): time.sleep(60)
"#;

#[tokio::test]
async fn whatever_a_function_does_to_its_answer_it_gets_a_clear_end_and_the_next_one_works() {
    let misbehaved = |end: &End| matches!(end, End::Misbehaved { reason } if !reason.is_empty());
    let bad_result = |end: &End| matches!(end, End::BadResult { reason } if reason.contains("JSON"));
    type Check<'a> = &'a dyn Fn(&End) -> bool;
    let cases: [(&str, Check<'_>); 18] = [
        ("garbage", &misbehaved),
        ("half", &|end| *end == End::TimedOut),
        ("huge", &misbehaved),
        ("not_a_message", &misbehaved),
        ("forged", &misbehaved),
        ("ahead", &|end| *end == End::Returned),
        ("closes", &misbehaved),
        ("closes_output", &|end| *end == End::Returned),
        ("exits", &|end| *end == End::Exited { code: 0 }),
        ("aborts", &|end| *end == End::Signalled { signal: 6 }),
        ("segfaults", &|end| *end == End::Signalled { signal: 11 }),
        ("kills_itself", &|end| *end == End::Signalled { signal: 9 }),
        ("large", &|end| matches!(end, End::BadResult { reason } if reason.contains("104857602 bytes"))),
        ("a_set", &bad_result),
        ("nan", &bad_result),
        ("deep", &bad_result),
        ("deep_but_fine", &|end| *end == End::Returned),
        ("bad_output", &|end| *end == End::Returned),
    ];
    let worker = Worker::running(1, BAD).await;
    let limits = ExecutionLimits { timeout_ms: 3000, memory_bytes: 512 * MIB, ..ample() };
    for (function, is_expected) in cases {
        let outcome = worker.run(&format!("main.{function}"), json!(null), limits).await;
        assert!(is_expected(&outcome.end), "{function}: {:?}", outcome.end);
        assert_eq!(worker.output("main.good", json!(null)).await, "good", "after {function}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_large_input_and_a_large_output_pass() {
    let worker = Worker::running(1, "def main(context, text): return text\n").await;
    let text = "x".repeat(5 << 20);
    assert_eq!(worker.output("main.main", json!({"text": text})).await, text);
    worker.stop().await;
}

const LOUD: &str = r#"
import ctypes, os, subprocess, sys, time
libc = ctypes.CDLL(None)
def order(context):
    print('one')
    libc.write(1, b'two\n', 4)
    sys.stderr.write('three\n')
    subprocess.run(['sh', '-c', 'echo four; echo five >&2'])
    os.system('echo six > /dev/stdout')
    libc.printf(b'seven\n'); libc.fflush(None)
    print('eight', end='')
def killed(context):
    print('written before')
    time.sleep(60)
def loud(context, bytes):
    line = b'x' * 999 + b'\n'
    for _ in range(bytes // 1000): os.write(1, line)
    return 'done'
def late(context):
    if os.fork() == 0:
        for _ in range(50):
            time.sleep(0.02); print('late')
        os._exit(0)
    print('in time')
def quiet(context): pass
def binary(context): os.write(1, b'\xff\xfe ok\n')
def raises(context):
    print('before')
    raise ValueError('why')
"#;

#[tokio::test]
async fn everything_an_execution_writes_is_in_its_log_in_order() {
    let worker = Worker::running(1, LOUD).await;
    let outcome = worker.run("main.order", json!(null), ample()).await;
    assert_eq!(lines(&outcome), ["one", "two", "three", "four", "five", "six", "seven", "eight"]);
    let id = &outcome.attempt.execution;
    assert!(outcome.log.starts_with(&format!("Start execution: {id}\n")));
    assert!(outcome.log.ends_with(&format!("\nFinished execution: {id}\n")));
    let binary = worker.run("main.binary", json!(null), ample()).await;
    assert_eq!(lines(&binary), ["\u{fffd}\u{fffd} ok"]);
    let raises = worker.run("main.raises", json!(null), ample()).await;
    let log = lines(&raises);
    assert_eq!((log[0], log[1]), ("before", "Traceback (most recent call last):"));
    assert_eq!(*log.last().unwrap(), "ValueError: why");
    assert!(log.iter().all(|line| !line.contains("shim.py")), "{log:?}");
    worker.stop().await;
}

#[tokio::test]
async fn a_log_is_kept_when_the_run_is_killed_and_cut_with_a_marker_at_the_limit() {
    let worker = Worker::running(1, LOUD).await;
    let killed =
        worker.run("main.killed", json!(null), ExecutionLimits { timeout_ms: 1000, ..ample() }).await;
    assert_eq!((killed.end.clone(), lines(&killed)), (End::TimedOut, vec!["written before"]));

    let limits = ExecutionLimits { max_log_bytes: 10_000, ..ample() };
    let loud = worker.run("main.loud", json!({"bytes": 20_000_000}), limits).await;
    assert_eq!(output(&loud), "done");
    assert!(loud.log_truncated);
    assert!(loud.log.len() < 10_500, "{}", loud.log.len());
    assert!(
        loud.log.contains("[log cut here: 19990000 more bytes were written]\n"),
        "{}",
        &loud.log[9_900..]
    );
    worker.stop().await;
}

#[tokio::test]
async fn what_is_written_late_or_beside_is_in_no_other_log() {
    let worker = Worker::running(2, LOUD).await;
    let late = worker.run("main.late", json!(null), ample()).await;
    assert_eq!(lines(&late), ["in time"]);
    for _ in 0..10 {
        let quiet = worker.run("main.quiet", json!(null), ample()).await;
        assert_eq!(lines(&quiet), [""; 0]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (loud, quiet) = tokio::join!(
        worker.run("main.loud", json!({"bytes": 500_000}), ample()),
        worker.run("main.quiet", json!(null), ample()),
    );
    assert_eq!((lines(&loud).len(), lines(&quiet).len()), (500, 0));
    worker.stop().await;
}
