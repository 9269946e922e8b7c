//! Functions that work against their worker. Each of these did harm once.

use std::time::{Duration, Instant};

use protocol::worker::{End, ExecutionLimits};
use serde_json::json;

use crate::worker::{MIB, Worker, ample, eventually, output};

const HOSTILE: &str = r#"
import ctypes, errno, gc, os, signal, socket, struct, sys, threading, time
def good(context): return 'good'
def pid(context): return os.getpid()
def channel():
    return next(o for o in gc.get_objects() if isinstance(o, socket.socket))
def nonce():
    frame = sys._getframe()
    while 'nonce' not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals['nonce']
def send(body):
    channel().sendall(struct.pack('>I', len(body)) + body)

def stops_others(context):
    # Whatever comes under this user id to clear up is stopped at once.
    for _ in range(4):
        if os.fork() == 0:
            while True:
                try: os.kill(-1, signal.SIGSTOP)
                except OSError: pass
    while True:
        try: os.kill(-1, signal.SIGSTOP)
        except OSError: pass

def deep(context, where):
    os.chdir(where)
    for _ in range(30_000):
        try:
            os.mkdir('d')
        except OSError as error:
            # AppArmor knows no longer paths; deep enough.
            if error.errno != errno.ENAMETOOLONG: raise
            break
        os.chdir('d')
    os._exit(1)

def locked(context):
    os.makedirs('a/b/c')
    os.makedirs('/tmp/x/y')
    os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('/tmp/x', 0)
    os._exit(1)

def imports_on(context):
    body = b'{"imported":{"nonce":%d,"resident_bytes":1}}' % nonce()
    many = (struct.pack('>I', len(body)) + body) * 200
    for _ in range(3): os.fork()
    while True: channel().sendall(many)

def answers_and_goes_on(context):
    send(b'{"returned":{"nonce":%d,"output":"early"}}' % nonce())
    end = time.monotonic() + 30
    while time.monotonic() < end: pass

def spoils_home(context):
    home = os.environ['HOME']
    open(os.path.join(os.path.dirname(home), '2'), 'w').write('x')
    os.chdir('/')
    os.rmdir(home)
    open(home, 'w').write('x')

def odd_text(context): raise ValueError('caf\udce9')
def long_integer(context, number): return number

def queues(context):
    libc = ctypes.CDLL(None, use_errno=True)
    made = [libc.msgget(0, 0o1600) for _ in range(4)]
    made += [libc.syscall(240, b'queue', os.O_CREAT | os.O_RDWR, 0o600, None)]
    return made
"#;

fn one_second() -> ExecutionLimits {
    ExecutionLimits { timeout_ms: 1000, ..ample() }
}

#[tokio::test]
async fn what_signals_everyone_of_its_user_is_killed_all_the_same() {
    let worker = Worker::running(2, HOSTILE).await;
    for _ in 0..3 {
        let hostile = worker.run("main.stops_others", json!(null), one_second());
        let neighbour = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                worker.output("main.good", json!(null)).await;
            }
        };
        let (outcome, ()) = tokio::join!(hostile, neighbour);
        assert_eq!(outcome.end, End::TimedOut);
        assert!(outcome.duration_ms < 1500.0, "{}", outcome.duration_ms);
    }
    assert_eq!(worker.output("main.good", json!(null)).await, "good");
    worker.stop().await;
}

#[tokio::test]
async fn directories_that_are_deep_or_locked_are_removed() {
    let worker = Worker::running(1, HOSTILE).await;
    for input in [json!({"where": "."}), json!({"where": "/tmp"})] {
        let outcome = worker.run("main.deep", input.clone(), ample()).await;
        assert_eq!(outcome.end, End::Exited { code: 1 }, "{input} {}", outcome.log);
        assert_eq!(worker.output("main.good", json!(null)).await, "good", "{input}");
    }
    worker.run("main.locked", json!(null), ample()).await;
    let found = "import os\ndef main(context): return [os.listdir('.'), os.listdir('/tmp')]\n";
    assert_eq!(worker.output("main.good", json!(null)).await, "good");
    worker.stop().await;

    let clean = Worker::running(1, found).await;
    assert_eq!(clean.output("main.main", json!(null)).await, json!([[], []]));
    clean.stop().await;
}

#[tokio::test]
async fn messages_without_end_do_not_hold_up_the_deadline() {
    let worker = Worker::running(1, HOSTILE).await;
    worker.output("main.good", json!(null)).await;
    let began = Instant::now();
    let outcome = worker.run("main.imports_on", json!(null), one_second()).await;
    assert!(matches!(outcome.end, End::Misbehaved { .. } | End::TimedOut), "{:?}", outcome.end);
    assert!(began.elapsed() < Duration::from_millis(1700), "{:?}", began.elapsed());
    assert_eq!(worker.output("main.good", json!(null)).await, "good");
    worker.stop().await;
}

#[tokio::test]
async fn what_goes_on_after_its_answer_is_ended() {
    let worker = Worker::running(1, HOSTILE).await;
    let before = worker.output("main.pid", json!(null)).await;
    let outcome = worker.run("main.answers_and_goes_on", json!(null), ample()).await;
    assert_eq!((outcome.end.clone(), output(&outcome)), (End::Returned, json!("early")));
    eventually("the slot is replaced", async || worker.retired("not_quiet").await == 1).await;
    assert_ne!(worker.output("main.pid", json!(null)).await, before);
    worker.stop().await;
}

#[tokio::test]
async fn a_limit_below_what_a_slot_holds_is_met_by_a_fresh_one() {
    let worker = Worker::start(1).await;
    let heavy = "held = b'x' * (80 << 20)\ndef main(context): return len(held)\n";
    worker.load(&[("main.py", heavy)]).await.unwrap();
    let limits = |mib| ExecutionLimits { memory_bytes: mib * MIB, ..ample() };
    for _ in 0..2 {
        assert_eq!(worker.run("main.main", json!(null), limits(128)).await.end, End::Returned);
        // The module needs more than this, every time, and that is the function's own affair.
        assert_eq!(worker.run("main.main", json!(null), limits(32)).await.end, End::OutOfMemory);
    }
    assert!(worker.retired("limits").await >= 1);
    worker.stop().await;
}

#[tokio::test]
async fn what_an_execution_leaves_of_its_directory_harms_no_other() {
    let worker = Worker::running(1, HOSTILE).await;
    for _ in 0..3 {
        worker.run("main.spoils_home", json!(null), ample()).await;
        assert_eq!(worker.output("main.good", json!(null)).await, "good");
    }
    worker.stop().await;
}

#[tokio::test]
async fn odd_texts_and_long_numbers_pass() {
    let worker = Worker::running(1, HOSTILE).await;
    let outcome = worker.run("main.odd_text", json!(null), ample()).await;
    assert_eq!(outcome.end, End::Raised { message: "caf\\udce9".to_owned() });

    let mut execute = crate::worker::execute("main.long_integer", json!(null), ample());
    let number = "7".repeat(5000);
    execute.input = serde_json::value::RawValue::from_string(format!("{{\"number\":{number}}}")).unwrap();
    let outcome = worker.supervisor.execute(&execute, crate::worker::soon(10)).await.unwrap();
    assert_eq!(outcome.end, End::Returned);
    assert_eq!(outcome.output.map(|output| output.get().to_owned()), Some(number));
    worker.stop().await;
}

#[tokio::test]
async fn no_queue_outlives_its_execution_for_none_can_be_made() {
    let worker = Worker::running(1, HOSTILE).await;
    assert_eq!(worker.output("main.queues", json!(null)).await, json!([-1, -1, -1, -1, -1]));
    worker.stop().await;
}
