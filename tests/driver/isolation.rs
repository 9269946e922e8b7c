//! What code in one slot can do to another, to the parent interpreter and to the supervisor: nothing.

use std::time::Duration;

use protocol::worker::End;
use serde_json::{Value, json};

use crate::worker::{Worker, ample, eventually};

/// Tries everything on the processes and files that are not its own, and says what worked.
const INTRUDER: &str = r#"
import ctypes, os, signal, socket, time

def sleeper(context, seconds):
    with open('secret.txt', 'w') as file:
        file.write('mine')
    os.makedirs('/tmp/of-the-sleeper', exist_ok=True)
    with open('/tmp/of-the-sleeper/file', 'w') as file:
        file.write('mine')
    print('directory', os.getcwd())
    time.sleep(seconds)
    with open('secret.txt') as file:
        return file.read()

def attempt(done, name, action):
    try:
        action()
    except OSError:
        return
    done.append(name)

def intrude(context):
    libc = ctypes.CDLL(None, use_errno=True)
    done, seen = [], 0
    own = os.getpid()
    for pid in [int(name) for name in os.listdir('/proc') if name.isdigit()]:
        if pid == own:
            continue
        seen += 1
        for file in ('mem', 'environ', 'maps', 'auxv', 'stack', 'syscall', 'fd/0', 'fd/1', 'fd/3', 'cwd/secret.txt', 'root/etc/hostname'):
            attempt(done, 'read %d/%s' % (pid, file), lambda: open('/proc/%d/%s' % (pid, file), 'rb').read(1))
        for file in ('mem', 'fd/1', 'fd/3', 'oom_score_adj', 'comm', 'clear_refs'):
            attempt(done, 'write %d/%s' % (pid, file), lambda: open('/proc/%d/%s' % (pid, file), 'r+b', 0).write(b'0'))
        attempt(done, 'list fd of %d' % pid, lambda: os.listdir('/proc/%d/fd' % pid))
        for number in (0, signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            attempt(done, 'signal %d to %d' % (number, pid), lambda: os.kill(pid, number))
        # PTRACE_ATTACH and PTRACE_SEIZE
        for request in (16, 0x4206):
            if libc.ptrace(request, pid, 0, 0) == 0:
                done.append('ptrace %d' % pid)
        # process_vm_readv, pidfd_getfd
        try:
            fd = os.pidfd_open(pid)
            for number in range(8):
                if libc.syscall(438, fd, number, 0) >= 0:
                    done.append('pidfd_getfd %d of %d' % (number, pid))
            os.close(fd)
        except OSError:
            pass
    def connect():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect('/taibai/private/run/s')
    attempt(done, 'socket', connect)
    for path in ('/taibai/private', '/taibai/private/run', '/taibai/private/cgroup/memory'):
        attempt(done, 'list ' + path, lambda: os.listdir(path))
    for path in ('/taibai/x', '/taibai/work/x', '/taibai/work/package/x', '/taibai/work/package/main.py', '/taibai/supervisor', '/etc/x', '/opt/taibai/shim.py'):
        attempt(done, 'write ' + path, lambda: open(path, 'a').write('x'))
    own_scratch = os.path.dirname(os.getcwd())
    for name in os.listdir('/taibai/work/scratch'):
        path = '/taibai/work/scratch/' + name
        if path != own_scratch:
            attempt(done, 'list ' + path, lambda: os.listdir(path))
            attempt(done, 'write ' + path, lambda: open(path + '/x', 'w'))
    attempt(done, 'read in /tmp', lambda: open('/tmp/of-the-sleeper/file').read())
    attempt(done, 'remove in /tmp', lambda: os.rename('/tmp/of-the-sleeper', '/tmp/moved'))
    attempt(done, 'setuid', lambda: os.setuid(0))
    attempt(done, 'setgid', lambda: os.setgid(0))
    attempt(done, 'setgroups', lambda: os.setgroups([0]))
    attempt(done, 'chroot', lambda: os.chroot('/tmp'))
    attempt(done, 'nice', lambda: os.nice(-5))
    attempt(done, 'mknod', lambda: os.mknod('/tmp/device', 0o20666, os.makedev(1, 1)))
    if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0:
        done.append('mount')
    if libc.unshare(0x10000000) == 0:
        done.append('new user namespace')
    return {'done': done, 'seen': seen}
"#;

#[tokio::test]
async fn one_slot_cannot_touch_another_nor_the_parent_nor_the_supervisor() {
    let worker = Worker::running(3, INTRUDER).await;
    let victim = worker.run("main.sleeper", json!({"seconds": 3}), ample());
    let intruder = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let first = worker.output("main.intrude", json!(null)).await;
        (first, worker.output("main.intrude", json!(null)).await)
    };

    let (victim, (first, second)) = tokio::join!(victim, intruder);

    assert_eq!(first["done"], json!([]));
    assert_eq!(second["done"], json!([]));
    // The supervisor, the parent, the sleeper and the slot that was free.
    assert!(first["seen"].as_u64().unwrap() >= 4, "{first}");
    assert_eq!(victim.end, End::Returned);
    assert_eq!(crate::worker::output(&victim), "mine");
    assert_eq!(worker.retired("ended").await, 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_slot_has_no_rights_and_no_groups() {
    let source = "def main(context): return open('/proc/self/status').read()";
    let worker = Worker::running(1, source).await;

    let status = worker.output("main.main", json!(null)).await;

    let status = status.as_str().unwrap();
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(line(set), "0000000000000000", "{set}");
    }
    assert_eq!(line("NoNewPrivs:"), "1");
    assert_eq!(line("Seccomp:"), "2");
    assert_eq!(line("Groups:"), "");
    let uid = worker.uid_base.to_string();
    assert_eq!(line("Uid:").split_whitespace().collect::<Vec<_>>(), [uid.as_str(); 4]);
    worker.stop().await;
}

const FORKER: &str = r#"
import os, time
def hold(context, count, seconds):
    made = 0
    try:
        for _ in range(count):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            made += 1
    except OSError as error:
        return made, str(error)
    time.sleep(seconds)
    return made, None
"#;

#[tokio::test]
async fn two_containers_do_not_share_an_allowance_of_processes() {
    let one = Worker::running(1, FORKER).await;
    let other = Worker::running(1, FORKER).await;
    assert_ne!(one.uid_base, other.uid_base);
    let input = json!({"count": 100, "seconds": 2});

    let (first, second) =
        tokio::join!(one.output("main.hold", input.clone()), other.output("main.hold", input.clone()));

    assert_eq!((first, second), (json!([100, null]), json!([100, null])));
    let over = one.output("main.hold", json!({"count": 1000, "seconds": 0})).await;
    assert!(over[0].as_u64().unwrap() < 128, "{over}");
    assert!(over[1].as_str().unwrap().contains("Resource temporarily unavailable"), "{over}");
    one.stop().await;
    other.stop().await;
}

const LASTING: &str = r#"
import os, subprocess, time
def daemon(context):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for _ in range(600):
                print('still here', flush=True)
                time.sleep(0.1)
        os._exit(0)
    subprocess.Popen(['sleep', '600'], start_new_session=True)
    time.sleep(60)
def bomb(context):
    while True:
        try:
            os.fork()
        except OSError:
            pass
def pid(context):
    return os.getpid()
"#;

#[tokio::test]
async fn the_whole_tree_is_gone_half_a_second_after_the_deadline() {
    let worker = Worker::running(1, LASTING).await;
    for entry in ["main.daemon", "main.bomb"] {
        let limits = protocol::worker::ExecutionLimits { timeout_ms: 1000, cpu_millis: 200, ..ample() };
        let watch = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let before = worker.processes_of_slot(0);
            tokio::time::sleep(Duration::from_millis(800)).await;
            (before, worker.processes_of_slot(0))
        };

        let (outcome, (before, after)) = tokio::join!(worker.run(entry, json!(null), limits), watch);

        assert_eq!(outcome.end, End::TimedOut, "{entry}");
        assert!(before.len() > 1, "{entry}: {before:?}");
        // A process that was there before is gone; the new slot may be there.
        assert!(!after.iter().any(|pid| before.contains(pid)), "{entry}: {before:?} {after:?}");
        assert!(outcome.duration_ms < 1500.0, "{entry}: {}", outcome.duration_ms);
    }
    worker.output("main.pid", json!(null)).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_module_that_loops_forks_or_eats_memory_at_import_hurts_only_its_own_execution() {
    let worker = Worker::start(2).await;
    worker
        .load(&[
            ("loop.py", "while True: pass\n"),
            ("fork.py", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"),
            ("memory.py", "x = [b'x' * (1 << 20) for _ in range(1000)]\n"),
            ("leave.py", "import os\nos._exit(7)\n"),
            ("good.py", "import os\ndef main(context): return os.getpid()\n"),
        ])
        .await
        .unwrap();
    let limits = protocol::worker::ExecutionLimits { timeout_ms: 1500, memory_bytes: 64 << 20, ..ample() };
    type Check = fn(&End) -> bool;
    let expected: [(&str, Check); 4] = [
        ("loop.main", |end| *end == End::TimedOut),
        ("fork.main", |end| matches!(end, End::TimedOut | End::OutOfMemory)),
        ("memory.main", |end| *end == End::OutOfMemory),
        ("leave.main", |end| *end == End::Exited { code: 7 }),
    ];
    for (entry, is_expected) in expected {
        let bad = worker.run(entry, json!(null), limits);
        let neighbour = async {
            for _ in 0..5 {
                worker.output("good.main", json!(null)).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let (bad, ()) = tokio::join!(bad, neighbour);
        assert!(is_expected(&bad.end), "{entry}: {:?} {}", bad.end, bad.log);
        worker.output("good.main", json!(null)).await;
    }
    worker.stop().await;
}

const RETIRING: &str = r#"
import os, resource, signal, subprocess, sys, threading, time, ctypes
kept = []
def pid(context): return os.getpid()
def ok(context): return os.getpid()
def raises(context): raise ValueError('no')
def exits(context): sys.exit(0)
def exits_hard(context): os._exit(3)
def segfault(context): ctypes.string_at(0)
def timeout(context): time.sleep(60)
def memory(context): kept.append([b'x' * (1 << 20) for _ in range(1000)])
def thread(context): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
def child(context): subprocess.Popen(['sleep', '60'])
def zombie(context):
    if os.fork() == 0: os._exit(0)
    time.sleep(0.1)
def rlimit(context): resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
def handler(context): signal.signal(signal.SIGUSR1, lambda *_: None)
def umask(context): os.umask(0)
def keeps(context): kept.append(bytearray(os.urandom(1 << 20) * 12))
def shared_memory(context):
    with open('/dev/shm/kept', 'wb') as file: file.write(b'x' * (12 << 20))
"#;

#[tokio::test]
async fn a_slot_is_replaced_when_an_execution_left_something_and_only_then() {
    let cases: [(&str, Option<&str>); 15] = [
        ("ok", None),
        ("raises", None),
        ("exits", Some("exit")),
        ("exits_hard", Some("exit")),
        ("segfault", Some("signal")),
        ("timeout", Some("timeout")),
        ("memory", Some("out_of_memory")),
        ("thread", Some("left_processes")),
        ("child", Some("left_processes")),
        ("zombie", Some("left_processes")),
        ("rlimit", Some("changed_habits")),
        ("handler", Some("changed_habits")),
        ("umask", Some("changed_habits")),
        ("keeps", Some("memory")),
        ("shared_memory", Some("memory")),
    ];
    let worker = Worker::running(1, RETIRING).await;
    let limits = protocol::worker::ExecutionLimits { timeout_ms: 1000, ..ample() };
    for (function, reason) in cases {
        let before: Value = worker.output("main.pid", json!(null)).await;
        let counted = match reason {
            Some(reason) => worker.retired(reason).await,
            None => 0,
        };
        worker.run(&format!("main.{function}"), json!(null), limits).await;
        let after = worker.output("main.pid", json!(null)).await;
        match reason {
            None => assert_eq!(before, after, "{function}"),
            Some(reason) => {
                assert_ne!(before, after, "{function}");
                assert_eq!(worker.retired(reason).await, counted + 1, "{function}");
            }
        }
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_slot_is_replaced_after_its_number_of_runs_and_where_a_fresh_one_is_asked_for() {
    let limits = taibai::orchestrator::SlotLimits {
        max_processes: 128,
        max_executions_per_slot: 3,
        memory_mark: 8 << 20,
    };
    let worker = Worker::start_with(1, limits).await;
    worker.load(&[("main.py", "import os\ndef main(context): return os.getpid()\n")]).await.unwrap();
    let mut pids = Vec::new();
    for _ in 0..6 {
        pids.push(worker.output("main.main", json!(null)).await);
    }
    assert!(pids[0] == pids[1] && pids[1] == pids[2] && pids[2] != pids[3] && pids[3] == pids[5], "{pids:?}");

    let mut fresh = crate::worker::execute("main.main", json!(null), ample());
    let warm = worker.output("main.main", json!(null)).await;
    fresh.fresh = true;
    let outcome = worker.supervisor.execute(&fresh, crate::worker::soon(10)).await.unwrap();
    assert_ne!(crate::worker::output(&outcome), warm);
    assert!(!outcome.reused);
    worker.stop().await;
}

#[tokio::test]
async fn every_execution_works_in_an_empty_directory_of_its_own() {
    let source = r#"
import os
def main(context):
    found = os.listdir('.')
    os.makedirs('a/b'); open('a/b/file', 'w').write('x'); os.chmod('a', 0)
    return found
"#;
    let worker = Worker::running(1, source).await;
    for _ in 0..4 {
        assert_eq!(worker.output("main.main", json!(null)).await, json!([]));
    }
    eventually("the slot is idle", async || worker.processes_of_slot(0).len() == 1).await;
    worker.stop().await;
}
