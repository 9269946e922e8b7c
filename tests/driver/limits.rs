//! `memory_size`, `cpu` and the deadline, as functions of every runtime meet them.

use std::io::{Cursor, Write};
use std::time::Instant;

use protocol::worker::{End, ExecutionLimits, Limit};
use serde_json::json;

use crate::worker::{MIB, NODE, PYTHON, SHELL, Worker, ample, eventually, output};

/// A runtime, and a package for it in which the same functions are written.
struct Runtime {
    image: &'static str,
    files: &'static [(&'static str, &'static str)],
}

const RUNTIMES: [Runtime; 3] = [
    Runtime { image: PYTHON, files: &[("main.py", IN_PYTHON)] },
    Runtime { image: NODE, files: &[("main.js", IN_NODE)] },
    Runtime {
        image: SHELL,
        files: &[
            ("hold", IN_SHELL),
            ("in_files", "#!/bin/sh\nhead -c \"$(jq -r .mib)M\" /dev/zero >/tmp/file || exit\necho 1\n"),
            // Without another program, which at a tenth of a processor takes long to start.
            ("sleep", "#!/bin/sh\nread -r input\ninput=${input#*:}\nexec sleep \"${input%\\}}\"\n"),
            ("busy", "#!/bin/sh\ntimeout \"$(jq -r .seconds)\" sh -c 'while :; do :; done'\nexit 0\n"),
            ("tree", "#!/bin/sh\nsleep 600 &\nsetsid sh -c 'sleep 600 & sleep 600' &\nsleep 600\n"),
            ("fine", "#!/bin/sh\necho 1\n"),
        ],
    },
];

const IN_PYTHON: &str = r#"
import subprocess, time
def hold(context, count=4, seconds=0):
    kept = []
    for number in range(count): kept.append(chr(97 + number) * (20 << 20))
    time.sleep(seconds)
    return len(kept)
def in_files(context, mib):
    with open('/tmp/file', 'wb') as file:
        for _ in range(mib): file.write(b'x' * (1 << 20))
def sleep(context, seconds): time.sleep(seconds)
def busy(context, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end: pass
def tree(context):
    subprocess.Popen(['sh', '-c', 'sleep 600 & setsid sleep 600'], start_new_session=True)
    subprocess.Popen(['sleep', '600'])
    time.sleep(600)
def fine(context): return 1
"#;

const IN_NODE: &str = r#"
const fs = require('fs');
const { spawn } = require('child_process');
const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
exports.hold = async (context, input) => {
  const kept = [];
  for (let n = 0; n < 4; n++) kept.push(Buffer.alloc(20 << 20, 97 + n));
  await pause(input?.seconds ?? 0);
  return kept.length;
};
const piece = Buffer.alloc(1 << 20, 1);
exports.in_files = (context, { mib }) => { for (let n = 0; n < mib; n++) fs.appendFileSync('/tmp/file', piece); };
exports.sleep = (context, { seconds }) => pause(seconds);
exports.busy = (context, { seconds }) => { const end = Date.now() + seconds * 1000; while (Date.now() < end); };
exports.tree = () => {
  spawn('sh', ['-c', 'sleep 600 & setsid sleep 600'], { detached: true, stdio: 'ignore' }).unref();
  spawn('sleep', ['600']);
  return pause(600);
};
exports.fine = () => 1;
"#;

/// Each grows where it is, so that there are never two of one.
const IN_SHELL: &str = r#"#!/bin/sh
seconds=$(jq -r '.seconds // 0')
exec perl -e '
    for my $number (0 .. 3) { my $text = chr(97 + $number); $text x= 20 << 20; push @kept, \$text; }
    select(undef, undef, undef, $ARGV[0]);
    print scalar(@kept);' "$seconds"
"#;

impl Runtime {
    async fn running(&self, slots: u32) -> Worker {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
        for (name, content) in self.files {
            zip.start_file(*name, options).unwrap();
            zip.write_all(content.as_bytes()).unwrap();
        }
        let worker = Worker::start_of(self.image, slots).await;
        worker.load_bytes(zip.finish().unwrap().into_inner()).await.unwrap();
        worker
    }

    /// The entry that names one of the functions.
    fn entry(&self, function: &str) -> String {
        if self.image == SHELL { format!("{function}.main") } else { format!("main.{function}") }
    }
}

fn memory(mib: u64) -> ExecutionLimits {
    ExecutionLimits { memory_bytes: mib * MIB, ..ample() }
}

#[tokio::test]
async fn ninety_six_mebibytes_hold_four_strings_of_twenty_and_thirty_two_do_not() {
    for runtime in RUNTIMES {
        let worker = runtime.running(1).await;
        let hold = runtime.entry("hold");
        for _ in 0..2 {
            let enough = worker.run(&hold, json!({}), memory(96)).await;
            assert_eq!((enough.end.clone(), output(&enough)), (End::Returned, json!(4)), "{}", enough.log);
            let peak = enough.account.peak_memory_bytes;
            if worker.cgroup() == protocol::worker::Cgroup::V1 {
                assert!(peak.is_some_and(|peak| peak >= 80 * MIB), "{}: {peak:?}", runtime.image);
            }
            let short = worker.run(&hold, json!({}), memory(32)).await;
            assert_eq!(short.end, End::OutOfMemory, "{}", runtime.image);
        }
        worker.stop().await;
    }
}

#[tokio::test]
async fn two_executions_side_by_side_have_an_allowance_each() {
    for runtime in RUNTIMES {
        let worker = runtime.running(2).await;
        let (hold, input) = (runtime.entry("hold"), json!({"seconds": 0.2}));
        let (one, other) = tokio::join!(
            worker.run(&hold, input.clone(), memory(96)),
            worker.run(&hold, input.clone(), memory(96)),
        );
        assert_eq!((one.end, other.end), (End::Returned, End::Returned), "{}", runtime.image);
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_second_run_on_a_slot_has_the_whole_allowance_again() {
    for runtime in RUNTIMES {
        let worker = runtime.running(1).await;
        for round in 0..6 {
            let outcome = worker.run(&runtime.entry("hold"), json!({}), memory(96)).await;
            assert_eq!(outcome.end, End::Returned, "{} round {round}", runtime.image);
            let reused = round > 0;
            assert_eq!(
                outcome.reused, reused,
                "{} round {round}: freeing memory costs no slot",
                runtime.image
            );
        }
        worker.stop().await;
    }
}

#[tokio::test]
async fn neither_swap_nor_files_in_memory_get_around_the_limit() {
    for runtime in RUNTIMES {
        let worker = runtime.running(1).await;
        let in_files = runtime.entry("in_files");
        let files = worker.run(&in_files, json!({"mib": 60}), memory(32)).await;
        assert_eq!(files.end, End::OutOfMemory, "{}: {}", runtime.image, files.log);
        let again = worker.run(&in_files, json!({"mib": 20}), memory(32)).await;
        assert_eq!(again.end, End::Returned, "{}: what was left in memory is gone", runtime.image);
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
}

#[tokio::test]
async fn sleeping_four_seconds_on_a_cold_worker_at_a_tenth_of_a_processor_ends_within_five() {
    for runtime in RUNTIMES {
        let worker = runtime.running(3).await;
        let limits = ExecutionLimits { cpu_millis: 100, timeout_ms: 5000, memory_bytes: 32 * MIB, ..ample() };
        let (sleep, input) = (runtime.entry("sleep"), json!({"seconds": 4}));
        let started = Instant::now();

        let (one, two, three) = tokio::join!(
            worker.run(&sleep, input.clone(), limits),
            worker.run(&sleep, input.clone(), limits),
            worker.run(&sleep, input.clone(), limits),
        );

        assert!(started.elapsed().as_secs_f64() < 5.0, "{}: {:?}", runtime.image, started.elapsed());
        assert_eq!((one.end, two.end, three.end), (End::Returned, End::Returned, End::Returned));
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_busy_loop_gets_its_share_of_the_processor_within_a_tenth() {
    for runtime in RUNTIMES {
        let worker = runtime.running(1).await;
        let busy = runtime.entry("busy");
        for (cpu_millis, share) in [(100, 0.1), (200, 0.2), (500, 0.5)] {
            let limits = ExecutionLimits { cpu_millis, ..ample() };
            // Warm, so that the import is not measured.
            worker.run(&busy, json!({"seconds": 0.1}), limits).await;
            let mut shares = Vec::new();
            // It never has more. A machine that is busy with other things may give it less for a while.
            while !shares.iter().any(|found| *found >= share * 0.9) && shares.len() < 3 {
                let outcome = worker.run(&busy, json!({"seconds": 4}), limits).await;
                assert_eq!(outcome.end, End::Returned);
                let used = outcome.account.cpu_us.expect("the kernel counts it") as f64 / 1000.0;
                shares.push(used / outcome.duration_ms);
                assert!(shares.iter().all(|found| *found <= share * 1.1), "{}: {shares:?}", runtime.image);
            }
            assert!(
                shares.iter().any(|found| *found >= share * 0.9),
                "{} {share}: {shares:?}",
                runtime.image
            );
        }
        worker.stop().await;
    }
}

#[tokio::test]
async fn the_whole_tree_is_gone_half_a_second_after_the_deadline_and_the_slot_is_replaced() {
    for runtime in RUNTIMES {
        let worker = runtime.running(1).await;
        let limits = ExecutionLimits { timeout_ms: 1000, ..ample() };
        let idle = worker.processes_of_slot(0);
        let watch = async {
            let mut before = Vec::new();
            eventually("the children run", async || {
                before = worker.processes_of_slot(0);
                before.len() >= 5
            })
            .await;
            before
        };

        let tree = runtime.entry("tree");
        let (outcome, before) = tokio::join!(worker.run(&tree, json!(null), limits), watch);

        assert_eq!(outcome.end, End::TimedOut);
        assert!(outcome.duration_ms < 1500.0, "{}", outcome.duration_ms);
        let after = worker.processes_of_slot(0);
        assert!(!after.iter().any(|pid| before.contains(pid)), "{}: {before:?} {after:?}", runtime.image);
        assert_eq!(worker.output(&runtime.entry("fine"), json!(null)).await, 1);
        assert_eq!(worker.retired("timeout").await, 1);
        assert!(!worker.processes_of_slot(0).iter().any(|pid| idle.contains(pid)), "{}", runtime.image);
        worker.stop().await;
    }
}

const CHILD: &str = r#"
import os
def in_a_child(context, mib):
    if os.fork() == 0:
        bytearray(os.urandom(1 << 20) * mib)
        os._exit(0)
    return os.wait()[1]
"#;

#[tokio::test]
async fn children_do_not_get_around_the_limit() {
    let worker = Worker::running(1, CHILD).await;
    let child = worker.output("main.in_a_child", json!({"mib": 1000})).await;
    assert_eq!(child, 9, "the child was killed, its parent lives to see it");
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
def threads(context):
    import threading, time
    for _ in range(200): threading.Thread(target=time.sleep, args=(10,), daemon=True).start()
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
    assert_eq!(files.account.limit, Some(Limit::OpenFiles));
    assert!(message(files.end).starts_with("[Errno 24] Too many open files"));
    let large = worker.run("main.large", json!(null), ample()).await;
    assert_eq!(large.account.limit, Some(Limit::FileBytes));
    assert_eq!(message(large.end), "[Errno 27] File too large");
    let processes = worker.run("main.processes", json!(null), ample()).await;
    assert_eq!(processes.account.limit, Some(Limit::Processes));
    assert!(matches!(processes.end, End::Exhausted { .. }), "{:?}", processes.end);
    let threads = worker.run("main.threads", json!(null), ample()).await;
    assert_eq!(threads.account.limit, Some(Limit::Processes));
    assert_eq!(message(threads.end), "can't start new thread");
    worker.stop().await;
}
