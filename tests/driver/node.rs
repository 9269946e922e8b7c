//! Functions in Node.js: what they are given, what they may give, and what holds them in.

use protocol::worker::{End, ExecutionLimits};
use serde_json::{Value, json};

use crate::outcomes::lines;
use crate::worker::{MIB, NODE, Worker, ample, eventually, output};

/// A started worker with a package of one module, `main`.
async fn running(slots: u32, source: &str) -> Worker {
    let worker = Worker::start_of(NODE, slots).await;
    worker.load(&[("main.js", source)]).await.unwrap();
    worker
}

const CALLS: &str = r#"
exports.main = (context, input) => ({ context, input });
exports.nothing = () => {};
exports.later = async (context, input) => { await new Promise((done) => setTimeout(done, 50)); return input.a; };
exports.text = () => 'ä\u2028';
exports.throws = () => { throw new TypeError('why'); };
exports.rejects = async () => { await null; throw new Error('later'); };
exports.throwsText = () => { throw 'words'; };
exports.throwsLone = () => { throw new Error('\ud800'); };
exports.hostile = () => { throw { get message() { throw 1; } }; };
exports.inCallback = () => new Promise(() => setTimeout(() => { throw new Error('out of reach'); }, 10));
exports.unhandled = () => new Promise((done) => { setTimeout(done, 50, 'fine'); Promise.reject(new Error('unhandled')); });
exports.never = () => new Promise(() => {});
exports.leaves = (context, input) => process.exit(input.code);
exports.leavesLater = async () => { setTimeout(() => process.exit(4), 10); await new Promise((done) => setTimeout(done, 5000)); };
exports.aborts = () => process.abort();
exports.killed = () => process.kill(process.pid, 'SIGKILL');
exports.segfault = () => process.kill(process.pid, 'SIGSEGV');
exports.big = () => 10n;
exports.cycle = () => { const a = {}; a.a = a; return a; };
exports.nan = () => NaN;
exports.fn = () => () => 1;
exports.large = () => 'x'.repeat(7 << 20);
exports.number = 7;
"#;

#[tokio::test]
async fn handlers_are_called_with_context_and_input_and_may_answer_later() {
    let worker = Worker::start_of(NODE, 1).await;
    worker
        .load(&[
            ("main.js", CALLS),
            ("lib/deep.js", "exports.run = () => require('../data.json');"),
            ("data.json", "[1]"),
            (
                "esm.mjs",
                "import { a } from './other.mjs'; export const main = async () => a; export default main;",
            ),
            ("other.mjs", "export const a = 'of a module';"),
            ("typed/package.json", r#"{"type": "module"}"#),
            ("typed/index.js", "export function main(context, input) { return import.meta.url.length > 0; }"),
            ("common.cjs", "module.exports = { main: () => 'common' };"),
        ])
        .await
        .unwrap();

    assert_eq!(
        worker.output("main.main", json!({"a": 1})).await,
        json!({"context": {"openstack": null}, "input": {"a": 1}})
    );
    assert_eq!(worker.output("main.main", json!(null)).await["input"], json!(null));
    let text = json!({"__function_input": "a b"});
    assert_eq!(worker.output("main.main", text.clone()).await["input"], text);
    assert_eq!(worker.output("main.nothing", json!(null)).await, json!(null));
    assert_eq!(worker.output("main.later", json!({"a": [2]})).await, json!([2]));
    assert_eq!(worker.output("main.text", json!(null)).await, "ä\u{2028}");
    assert_eq!(worker.output("lib/deep.run", json!(null)).await, json!([1]));
    assert_eq!(worker.output("esm.main", json!(null)).await, "of a module");
    assert_eq!(worker.output("esm.default", json!(null)).await, "of a module");
    assert_eq!(worker.output("typed.main", json!(null)).await, true);
    assert_eq!(worker.output("common.main", json!(null)).await, "common");
    worker.stop().await;
}

#[tokio::test]
async fn every_way_to_fail_has_its_end_and_the_next_execution_works() {
    let raised = |message: &str| End::Raised { message: message.to_owned() };
    let bad = |what: &str| End::BadResult {
        reason: format!("The function returned something that is not JSON: {what}"),
    };
    let cases = [
        ("throws", raised("why")),
        ("rejects", raised("later")),
        ("throwsText", raised("words")),
        ("throwsLone", raised("\u{fffd}")),
        ("hostile", raised("<an error that has no text>")),
        ("inCallback", raised("out of reach")),
        ("unhandled", raised("unhandled")),
        ("never", raised("The function's promise is never settled: nothing is left that it could wait for")),
        ("leavesLater", End::Exited { code: 4 }),
        ("aborts", End::Signalled { signal: 6 }),
        ("killed", End::Signalled { signal: 9 }),
        ("segfault", End::Signalled { signal: 11 }),
        ("big", bad("Do not know how to serialize a BigInt")),
        ("nan", bad("NaN has no JSON")),
        ("fn", bad("a function has no JSON")),
        (
            "large",
            End::BadResult {
                reason: format!(
                    "The function returned {} bytes of JSON; at most {} are allowed",
                    (7 << 20) + 2,
                    6 << 20
                ),
            },
        ),
        ("nosuch", raised("module 'main' has no export 'nosuch'")),
        ("number", raised("'number' of module 'main' is not a function")),
    ];
    let worker = running(1, CALLS).await;
    for (export, end) in cases {
        let outcome = worker.run(&format!("main.{export}"), json!(null), ample()).await;
        assert_eq!(outcome.end, end, "{export}: {}", outcome.log);
        assert_eq!(worker.output("main.text", json!(null)).await, "ä\u{2028}", "after {export}");
    }
    for code in [0, 3] {
        let left = worker.run("main.leaves", json!({"code": code}), ample()).await;
        assert_eq!(left.end, End::Exited { code });
    }
    let missing = worker.run("nosuch.main", json!(null), ample()).await;
    assert_eq!(missing.end, raised("No module named 'nosuch'"));
    let cycle = worker.run("main.cycle", json!(null), ample()).await;
    assert!(matches!(&cycle.end, End::BadResult { reason } if reason.contains("circular structure")));
    worker.stop().await;
}

#[tokio::test]
async fn a_large_input_and_a_large_output_pass() {
    let worker = running(1, "exports.main = (context, input) => input.text;").await;
    let text = "x".repeat(5 << 20);
    assert_eq!(worker.output("main.main", json!({"text": text})).await, text);
    worker.stop().await;
}

const LOUD: &str = r#"
const { execFileSync, execSync, spawn } = require('child_process');
const fs = require('fs');
exports.order = async () => {
  console.log('one');
  console.error('two');
  process.stdout.write('three\n');
  execSync('echo four; echo five >&2', { stdio: 'inherit' });
  fs.writeSync(1, 'six\n');
  await new Promise((done) => spawn('sh', ['-c', 'echo seven > /dev/stdout'], { stdio: 'inherit' }).on('close', done));
  execFileSync(process.execPath, ['-e', 'console.log("eight")'], { stdio: 'inherit' });
  process.stdout.write('nine');
};
exports.loud = () => { for (let n = 0; n < 20000; n++) console.log('x'.repeat(999)); return 'done'; };
exports.loudAndGone = () => { for (let n = 0; n < 200; n++) console.log('x'.repeat(999)); process.exit(0); };
exports.raises = () => { console.log('before'); throw new Error('why'); };
exports.killed = () => { console.log('written before'); for (;;); };
exports.quiet = () => {};
exports.late = () => { setInterval(() => console.log('late'), 5); console.log('in time'); };
"#;

#[tokio::test]
async fn what_a_function_its_streams_and_its_children_write_is_in_its_log() {
    let worker = running(1, LOUD).await;
    let outcome = worker.run("main.order", json!(null), ample()).await;
    assert_eq!(
        lines(&outcome),
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
        "{:?}",
        outcome.end
    );
    let id = &outcome.attempt.execution;
    assert!(outcome.log.starts_with(&format!("Start execution: {id}\n")));
    assert!(outcome.log.ends_with(&format!("\nFinished execution: {id}\n")));

    let raises = worker.run("main.raises", json!(null), ample()).await;
    let log = lines(&raises);
    assert_eq!((log[0], log[1]), ("before", "Error: why"));
    assert!(log[2].contains("/taibai/work/package/main.js:"), "{log:?}");
    assert!(log.iter().all(|line| !line.contains("shim.js")), "{log:?}");

    let gone = worker.run("main.loudAndGone", json!(null), ample()).await;
    assert_eq!((gone.end.clone(), lines(&gone).len()), (End::Exited { code: 0 }, 200));
    let cut =
        worker.run("main.loud", json!(null), ExecutionLimits { max_log_bytes: 10_000, ..ample() }).await;
    assert_eq!(output(&cut), "done");
    assert!(cut.log.contains("[log cut here: 19990000 more bytes were written]\n"), "{}", &cut.log[9_900..]);
    let killed = worker.run("main.killed", json!(null), ExecutionLimits { timeout_ms: 500, ..ample() }).await;
    assert_eq!((killed.end.clone(), lines(&killed)), (End::TimedOut, vec!["written before"]));
    worker.stop().await;
}

#[tokio::test]
async fn what_goes_on_after_the_result_ends_with_it_and_is_in_no_other_log() {
    let worker = running(1, LOUD).await;
    let late = worker.run("main.late", json!(null), ample()).await;
    // It may run once more while the shim waits for what is being closed.
    assert_eq!((late.end.clone(), lines(&late)[0]), (End::Returned, "in time"));
    assert_eq!(worker.retired("spent").await, 1);
    for _ in 0..5 {
        let quiet = worker.run("main.quiet", json!(null), ample()).await;
        assert_eq!(lines(&quiet), [""; 0]);
    }
    worker.stop().await;
}

const MEMORY: &str = r#"
exports.onHeap = (context, input) => {
  const held = [];
  for (let n = 0; n < input.mib; n++) held.push(new Array(1 << 17).fill(n + 0.5));
  return held.length;
};
exports.garbage = () => {
  let sum = 0;
  for (let n = 0; n < 2_000_000; n++) sum += JSON.parse(`{"number": ${n}, "list": [1, 2, 3]}`).list.length;
  for (let n = 0; n < 200; n++) sum += Buffer.alloc(1 << 20, 1).length;
  return sum > 0;
};
"#;

fn memory(mib: u64) -> ExecutionLimits {
    ExecutionLimits { memory_bytes: mib * MIB, ..ample() }
}

#[tokio::test]
async fn ninety_six_mebibytes_hold_a_heap_of_eighty_and_thirty_two_do_not() {
    let worker = running(1, MEMORY).await;
    let heap = worker.run("main.onHeap", json!({"mib": 80}), memory(96)).await;
    assert_eq!(heap.end, End::Returned, "{}", heap.log);
    let heap = worker.run("main.onHeap", json!({"mib": 80}), memory(32)).await;
    assert_eq!(heap.end, End::OutOfMemory);
    worker.stop().await;
}

#[tokio::test]
async fn garbage_is_collected_before_it_is_too_much() {
    let worker = running(1, MEMORY).await;
    for round in 0..2 {
        let outcome = worker.run("main.garbage", json!(null), memory(96)).await;
        assert_eq!(outcome.end, End::Returned, "round {round}: {}", outcome.log);
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_module_that_misbehaves_at_import_hurts_only_its_own_execution() {
    let worker = Worker::start_of(NODE, 2).await;
    worker
        .load(&[
            ("loop.js", "for (;;);"),
            ("memory.js", "const kept = []; for (;;) kept.push(Buffer.alloc(1 << 20, 1));"),
            ("leave.js", "process.exit(7);"),
            ("throw.js", "throw new Error('at import');"),
            ("syntax.js", "const = 1;"),
            ("needs.js", "require('nosuch');"),
            ("good.js", "exports.main = () => process.pid;"),
        ])
        .await
        .unwrap();
    let limits = ExecutionLimits { timeout_ms: 1500, memory_bytes: 64 << 20, ..ample() };
    type Check = fn(&End) -> bool;
    let expected: [(&str, Check); 6] = [
        ("loop.main", |end| *end == End::TimedOut),
        ("memory.main", |end| *end == End::OutOfMemory),
        ("leave.main", |end| *end == End::Exited { code: 7 }),
        ("throw.main", |end| *end == End::Raised { message: "at import".to_owned() }),
        ("syntax.main", |end| matches!(end, End::Raised { message } if message.contains("Unexpected token"))),
        ("needs.main", |end| {
            matches!(end, End::Raised { message }
                if message.starts_with("Cannot find module 'nosuch'") && !message.contains("shim"))
        }),
    ];
    for (entry, is_expected) in expected {
        let neighbour = async {
            for _ in 0..5 {
                worker.output("good.main", json!(null)).await;
            }
        };
        let (bad, ()) = tokio::join!(worker.run(entry, json!(null), limits), neighbour);
        assert!(is_expected(&bad.end), "{entry}: {:?} {}", bad.end, bad.log);
        worker.output("good.main", json!(null)).await;
    }
    worker.stop().await;
}

const RETIRING: &str = r#"
const fs = require('fs');
const { spawn, spawnSync } = require('child_process');
const { Worker } = require('worker_threads');
const http = require('http');
let count = 0;
const kept = [];
exports.count = () => [process.pid, ++count];
exports.ok = () => 1;
exports.throws = () => { throw new Error('no'); };
exports.child = () => spawnSync('true').status;
exports.files = async () => { await fs.promises.writeFile('file', 'x'.repeat(1 << 20)); return (await fs.promises.readFile('file')).length; };
exports.quickly = () => { setTimeout(() => {}, 2); };
exports.allocates = () => Buffer.alloc(60 << 20, 1).length;
exports.served = () => new Promise((done) => {
  const server = http.createServer((request, response) => response.end('x')).listen(0, '127.0.0.1', () =>
    http.get({ port: server.address().port, host: '127.0.0.1' }, (response) => response.resume().on('end', () => { server.close(); done(); })));
});
exports.exits = () => process.exit(0);
exports.timer = () => { setInterval(() => {}, 1000); };
exports.server = () => new Promise((done) => http.createServer().listen(0, '127.0.0.1', done));
exports.left = () => { spawn('sleep', ['60'], { stdio: 'ignore' }).unref(); };
exports.thread = () => new Promise((done) => { const w = new Worker('setInterval(() => {}, 1000)', { eval: true }); w.unref(); w.on('online', done); });
exports.handler = () => { process.on('SIGUSR2', () => {}); };
exports.umask = () => { process.umask(0); };
exports.keeps = () => { kept.push(Buffer.alloc(12 << 20, 1)); };
"#;

#[tokio::test]
async fn a_slot_keeps_its_modules_between_executions_and_is_replaced_when_something_is_left() {
    let cases: [(&str, Option<&str>); 16] = [
        ("ok", None),
        ("throws", None),
        ("child", None),
        ("files", None),
        ("quickly", None),
        ("allocates", None),
        ("served", None),
        ("exits", Some("exit")),
        ("timer", Some("spent")),
        ("server", Some("spent")),
        ("left", Some("left_processes")),
        ("thread", Some("left_processes")),
        ("handler", Some("changed_habits")),
        ("umask", Some("changed_habits")),
        ("keeps", Some("memory")),
        ("ok", None),
    ];
    let worker = running(1, RETIRING).await;
    let mut count = 0;
    let mut process = Value::Null;
    for (export, reason) in cases {
        let before = worker.output("main.count", json!(null)).await;
        if before[0] == process {
            count += 1;
            assert_eq!(before[1], count, "{export}: what a module keeps is there in the next execution");
        }
        let counted = match reason {
            Some(reason) => worker.retired(reason).await,
            None => 0,
        };
        worker.run(&format!("main.{export}"), json!(null), ample()).await;
        let after = worker.output("main.count", json!(null)).await;
        match reason {
            None => assert_eq!(before[0], after[0], "{export}"),
            Some(reason) => {
                assert_eq!(after[1], 1, "{export}");
                assert_eq!(worker.retired(reason).await, counted + 1, "{export}");
            }
        }
        (process, count) = (after[0].clone(), after[1].as_i64().unwrap());
    }
    worker.stop().await;
}

#[tokio::test]
async fn every_execution_works_in_an_empty_directory_of_its_own() {
    let source = r#"
const fs = require('fs');
exports.main = () => {
  const found = fs.readdirSync('.');
  fs.mkdirSync('a/b', { recursive: true }); fs.writeFileSync('a/b/file', 'x'); fs.symlinkSync('/', 'a/link'); fs.chmodSync('a', 0);
  return [found, process.cwd() === process.env.HOME, process.cwd() === require('os').tmpdir()];
};"#;
    let worker = running(1, source).await;
    for _ in 0..4 {
        assert_eq!(worker.output("main.main", json!(null)).await, json!([[], true, true]));
    }
    worker.stop().await;
}

/// Tries the processes and files that are not its own, and says what worked.
const INTRUDER: &str = r#"
const fs = require('fs');
const path = require('path');
const { spawnSync } = require('child_process');
exports.sleeper = async () => {
  fs.writeFileSync('secret.txt', 'mine');
  await new Promise((done) => setTimeout(done, 2000));
  return fs.readFileSync('secret.txt', 'utf8');
};
exports.intrude = () => {
  const done = [];
  const attempt = (name, action) => { try { action(); done.push(name); } catch {} };
  let seen = 0;
  for (const pid of fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(Number)) {
    if (pid === process.pid) continue;
    seen++;
    for (const file of ['mem', 'environ', 'maps', 'fd/1', 'fd/3', 'cwd/secret.txt'])
      attempt(`read ${pid}/${file}`, () => fs.readFileSync(`/proc/${pid}/${file}`));
    for (const file of ['mem', 'fd/1', 'fd/3', 'oom_score_adj'])
      attempt(`write ${pid}/${file}`, () => fs.closeSync(fs.openSync(`/proc/${pid}/${file}`, 'r+')));
    for (const signal of [0, 'SIGCONT', 'SIGTERM', 'SIGKILL', 'SIGUSR1']) attempt(`${signal} to ${pid}`, () => process.kill(pid, signal));
  }
  for (const directory of ['/taibai/private', '/taibai/private/run']) attempt(`list ${directory}`, () => fs.readdirSync(directory));
  for (const file of ['/taibai/work/x', '/taibai/work/package/main.js', '/opt/taibai/shim.js', '/etc/x'])
    attempt(`write ${file}`, () => fs.appendFileSync(file, 'x'));
  const own = path.dirname(process.cwd());
  for (const name of fs.readdirSync('/taibai/work/scratch')) {
    const other = `/taibai/work/scratch/${name}`;
    if (other !== own) attempt(`list ${other}`, () => fs.readdirSync(other));
  }
  attempt('setuid', () => process.setuid(0));
  attempt('setgid', () => process.setgid(0));
  const status = Object.fromEntries(fs.readFileSync('/proc/self/status', 'utf8').split('\n').map((line) => line.split(':\t')));
  const inherited = spawnSync('sh', ['-c', 'ls /proc/self/fd'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).stdout;
  const limits = fs.readFileSync('/proc/self/limits', 'utf8').match(/^Max (open files|processes|file size) .*$/gm).map((line) => line.split(/\s{2,}/).slice(1, 3));
  return { done, seen, status, limits, inherited: inherited.trim().split('\n') };
};
"#;

#[tokio::test]
async fn a_slot_has_no_rights_and_reaches_no_other() {
    let worker = running(3, INTRUDER).await;
    let intruder = async {
        eventually("the other runs", async || {
            !worker.supervisor.state(crate::worker::soon(5)).await.unwrap().running.is_empty()
        })
        .await;
        worker.output("main.intrude", json!(null)).await
    };

    let (victim, found) = tokio::join!(worker.run("main.sleeper", json!(null), ample()), intruder);

    assert_eq!(found["done"], json!([]));
    // The supervisor, the sleeper and the slot that was free.
    assert!(found["seen"].as_u64().unwrap() >= 3, "{found}");
    assert_eq!((victim.end.clone(), output(&victim)), (End::Returned, json!("mine")));
    let status = |key: &str| found["status"][key].as_str().unwrap().trim().to_owned();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (status("NoNewPrivs"), status("Seccomp"), status("Groups")),
        ("1".into(), "2".into(), "".into())
    );
    let uid: u32 = status("Uid").split_whitespace().next().unwrap().parse().unwrap();
    assert!((worker.uid_base..worker.uid_base + 3).contains(&uid), "{uid}");
    assert_eq!(found["limits"], json!([["524288000", "524288000"], ["128", "128"], ["1024", "1024"]]));
    // Nothing of the shim's: 3 is the directory that was listed.
    assert_eq!(found["inherited"], json!(["0", "1", "2", "3"]));
    worker.stop().await;
}
