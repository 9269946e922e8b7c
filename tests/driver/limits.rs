//! `memory_size` and `cpu`, as functions meet them.

use std::time::Instant;

use protocol::worker::{End, ExecutionLimits};
use serde_json::json;

use crate::worker::{MIB, Worker, ample, output};

const MEMORY: &str = r#"
import mmap, os, time
def strings(context, count=4, seconds=0):
    kept = []
    for number in range(count):
        kept.append(chr(97 + number) * (20 << 20))
        time.sleep(seconds)
    return len(kept)
def in_files(context, mib):
    with open('/tmp/file', 'wb') as file:
        for _ in range(mib): file.write(b'x' * (1 << 20))
    return mib
def in_a_child(context, mib):
    if os.fork() == 0:
        bytearray(os.urandom(1 << 20) * mib)
        os._exit(0)
    return os.wait()[1]
"#;

fn memory(mib: u64) -> ExecutionLimits {
    ExecutionLimits { memory_bytes: mib * MIB, ..ample() }
}

#[tokio::test]
async fn ninety_six_mebibytes_hold_four_strings_of_twenty_and_thirty_two_do_not() {
    let worker = Worker::running(1, MEMORY).await;
    for _ in 0..2 {
        let enough = worker.run("main.strings", json!(null), memory(96)).await;
        assert_eq!((enough.end.clone(), output(&enough)), (End::Returned, json!(4)), "{}", enough.log);
        let short = worker.run("main.strings", json!(null), memory(32)).await;
        assert_eq!(short.end, End::OutOfMemory);
    }
    worker.stop().await;
}

#[tokio::test]
async fn two_executions_side_by_side_have_an_allowance_each() {
    let worker = Worker::running(2, MEMORY).await;
    let input = json!({"seconds": 0.2});

    let (one, other) = tokio::join!(
        worker.run("main.strings", input.clone(), memory(96)),
        worker.run("main.strings", input, memory(96)),
    );

    assert_eq!((one.end, other.end), (End::Returned, End::Returned));
    worker.stop().await;
}

#[tokio::test]
async fn a_second_run_on_a_slot_has_the_whole_allowance_again() {
    let worker = Worker::running(1, MEMORY).await;
    for round in 0..6 {
        let outcome = worker.run("main.strings", json!(null), memory(96)).await;
        assert_eq!(outcome.end, End::Returned, "round {round}");
        assert_eq!(outcome.reused, round > 0, "round {round}: freeing memory costs no slot");
    }
    worker.stop().await;
}

#[tokio::test]
async fn neither_swap_nor_files_in_memory_nor_children_get_around_the_limit() {
    let worker = Worker::running(1, MEMORY).await;
    let files = worker.run("main.in_files", json!({"mib": 60}), memory(32)).await;
    assert!(matches!(files.end, End::OutOfMemory), "{:?}", files.end);
    let again = worker.run("main.in_files", json!({"mib": 20}), memory(32)).await;
    assert_eq!(again.end, End::Returned, "what the last execution left in memory is gone");
    let child = worker.output("main.in_a_child", json!({"mib": 1000})).await;
    assert_eq!(child, 9, "the child was killed, its parent lives to see it");
    let swap = std::fs::read_to_string("/proc/swaps").unwrap();
    let limit = |file: &str| worker.memory_file(0, file);
    match worker.cgroup() {
        protocol::worker::Cgroup::V1 => {
            // Memory and swap together are no more than memory alone.
            if let Ok(both) = limit("memory.memsw.limit_in_bytes") {
                assert_eq!(both, limit("memory.limit_in_bytes").unwrap());
            } else {
                assert!(swap.lines().count() <= 1, "swap is on and cannot be limited");
            }
            assert_eq!(limit("memory.swappiness").unwrap(), "0");
        }
        protocol::worker::Cgroup::V2 => assert_eq!(limit("memory.swap.max").unwrap(), "0"),
    }
    worker.stop().await;
}

const CPU: &str = r#"
import time
def sleep(context, seconds): time.sleep(seconds)
def busy(context, seconds):
    end = time.monotonic() + seconds
    before = time.process_time()
    while time.monotonic() < end: pass
    return time.process_time() - before
"#;

#[tokio::test]
async fn sleeping_four_seconds_on_a_cold_worker_at_a_tenth_of_a_processor_ends_within_five() {
    let worker = Worker::running(3, CPU).await;
    let limits = ExecutionLimits { cpu_millis: 100, timeout_ms: 5000, memory_bytes: 32 * MIB, ..ample() };
    let input = json!({"seconds": 4});
    let started = Instant::now();

    let (one, two, three) = tokio::join!(
        worker.run("main.sleep", input.clone(), limits),
        worker.run("main.sleep", input.clone(), limits),
        worker.run("main.sleep", input.clone(), limits),
    );

    assert!(started.elapsed().as_secs_f64() < 5.0, "{:?}", started.elapsed());
    assert_eq!((one.end, two.end, three.end), (End::Returned, End::Returned, End::Returned));
    worker.stop().await;
}

#[tokio::test]
async fn a_busy_loop_gets_its_share_of_the_processor_within_a_tenth() {
    let worker = Worker::running(1, CPU).await;
    for (cpu_millis, share) in [(100, 0.1), (200, 0.2), (500, 0.5)] {
        let limits = ExecutionLimits { cpu_millis, ..ample() };
        // Warm, so that the import is not measured.
        worker.run("main.busy", json!({"seconds": 0}), limits).await;
        let used = output(&worker.run("main.busy", json!({"seconds": 4}), limits).await).as_f64().unwrap();
        let wanted = 4.0 * share;
        assert!((used - wanted).abs() <= wanted * 0.1, "{cpu_millis} millicpu: {used} s, wanted {wanted}");
    }
    worker.stop().await;
}

const RLIMITS: &str = r#"
import os, resource
def limits(context):
    return [resource.getrlimit(which)[0] for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE)]
def files(context, number=1024):
    kept = [open('file%d' % n, 'w') for n in range(number)]
def large(context):
    with open('large', 'wb') as file:
        file.seek(524288000)
        file.write(b'x')
def processes(context):
    import subprocess
    resource.setrlimit(resource.RLIMIT_NPROC, (10, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
    running = [subprocess.Popen(['sleep', '10']) for _ in range(11)]
"#;

#[tokio::test]
async fn the_soft_limits_are_qinlings_and_speak_in_its_words() {
    let worker = Worker::running(1, RLIMITS).await;
    assert_eq!(worker.output("main.limits", json!(null)).await, json!([1024, 128, 524_288_000]));
    let message = |end: End| match end {
        End::Raised { message } | End::Exhausted { message } => message,
        other => panic!("{other:?}"),
    };
    let files = worker.run("main.files", json!(null), ample()).await;
    assert!(message(files.end).starts_with("[Errno 24] Too many open files"));
    let large = worker.run("main.large", json!(null), ample()).await;
    assert_eq!(message(large.end), "[Errno 27] File too large");
    let processes = worker.run("main.processes", json!(null), ample()).await;
    assert!(matches!(processes.end, End::Exhausted { .. }), "{:?}", processes.end);
    worker.stop().await;
}
