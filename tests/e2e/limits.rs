//! Every limit, met in every kind of function: the execution says which one it was, in a field.

use serde_json::{Value, json};

use crate::images::{self, Image};
use crate::service::{Service, output, package, required, result, zip_of};

/// Limits that a test meets fast. The filesystem of a worker holds the package as well.
const OPTIONS: [(&str, &str); 5] = [
    ("engine.max_processes", "40"),
    ("engine.max_result_bytes", "100000"),
    ("engine.max_log_bytes", "1000"),
    ("docker.work_bytes", "67108864"),
    ("images.allowed", "docker.io/taibai-test/*"),
];

const TOO_MUCH: &str = "Function execution failed because of too much resource consumption";

/// Does what its input says; the programs of all kinds know the same words.
const PYTHON: &str = r#"
import os, subprocess, time
def processes(): return [subprocess.Popen(['sleep', '60']) for _ in range(100)]
def open_files(): return [open('file%d' % n, 'w') for n in range(1100)]
def large_file():
    with open('large', 'wb') as file:
        file.seek(524288000)
        file.write(b'x')
def scratch():
    with open('full', 'wb', buffering=0) as file:
        for _ in range(100): file.write(b'x' * (1 << 20))
def result(): return 'x' * 200000
def log(): print('x' * 5000)
def memory(): return len(bytearray(200 << 20))
def lasts(): time.sleep(60)
def exits(): os._exit(3)
def killed(): os.kill(os.getpid(), 9)
def fails(): raise ValueError('no')
def fine(): return 'fine'
def main(context, what): return globals()[what]()
"#;

const NODE: &str = r#"
const fs = require('fs');
const { spawn } = require('child_process');
const can = {
  processes: () => new Promise((_, fail) => {
    for (let n = 0; n < 100; n++) spawn('sleep', ['60'], { stdio: 'ignore' }).on('error', fail);
  }),
  open_files: () => { for (let n = 0; n < 1100; n++) fs.openSync(`file${n}`, 'w'); },
  large_file: () => { fs.writeSync(fs.openSync('large', 'w'), 'x', 524288000); },
  scratch: () => { for (let n = 0; n < 100; n++) fs.appendFileSync('full', Buffer.alloc(1 << 20, 1)); },
  result: () => 'x'.repeat(200000),
  log: () => { console.log('x'.repeat(5000)); },
  memory: () => Buffer.alloc(200 << 20, 1).length,
  lasts: () => new Promise((done) => setTimeout(done, 60000)),
  exits: () => process.exit(3),
  killed: () => process.kill(process.pid, 'SIGKILL'),
  fails: () => { throw new Error('no'); },
  fine: () => 'fine',
};
exports.main = (context, input) => can[input.what]();
"#;

const SHELL: &str = r#"#!/bin/bash
what=$(jq -r .what)
case $what in
processes) sh -c 'n=0; while [ $n -lt 100 ]; do sleep 60 & n=$((n + 1)); done' ;;
open_files) for ((n = 0; n < 1100; n++)); do exec {held}>"file$n" || exit 1; done ;;
large_file) dd if=/dev/zero of=large bs=1 count=1 seek=524288000 2>&1 ;;
scratch) head -c 100000000 /dev/zero >full ;;
result) head -c 200000 /dev/zero ;;
log) head -c 5000 /dev/zero | tr '\0' x >&2 ;;
memory) x=$(head -c 200000000 /dev/zero | tr '\0' x) ;;
lasts) sleep 60 ;;
exits) exit 3 ;;
killed) kill -9 $$ ;;
fine) echo '"fine"' ;;
*) exit 1 ;;
esac
"#;

/// What the input is, the reason, and a part of the output for Python, Node.js and the shell. Empty is
/// what has no such end there.
const CASES: [(&str, &str, [&str; 3]); 10] = [
    ("processes", "too_many_processes", [TOO_MUCH, TOO_MUCH, "'main' ended with exit status "]),
    (
        "open_files",
        "too_many_open_files",
        ["[Errno 24] Too many open files", "EMFILE: too many open files", "'main' ended with exit status 1"],
    ),
    (
        "large_file",
        "file_too_large",
        ["[Errno 27] File too large", "EFBIG: file too large", "'main' ended with exit status 153"],
    ),
    (
        "scratch",
        "scratch_full",
        ["[Errno 28] No space left on device", "ENOSPC: no space left", "'main' ended with exit status 1"],
    ),
    ("result", "result_too_large", ["at most 100000 are allowed"; 3]),
    ("memory", "out_of_memory", [TOO_MUCH; 3]),
    ("lasts", "timeout", ["Function execution timeout."; 3]),
    ("exits", "exit", [TOO_MUCH, TOO_MUCH, ""]),
    ("killed", "signal", [TOO_MUCH, TOO_MUCH, ""]),
    ("fails", "raised", ["no", "no", "'main' ended with exit status 1"]),
];

async fn function(service: &Service, runtime: &str, package: &[u8], timeout: &str) -> String {
    let fields = [("timeout", timeout), ("cpu", "1000"), ("memory_size", "100663296")];
    let created = service.create_function("demo", runtime, package, &fields).await.expect(201);
    created["id"].as_str().unwrap().to_owned()
}

/// A package with one program, `main`.
fn program(source: &str) -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
    zip.start_file("main", options).unwrap();
    zip.write_all(source.as_bytes()).unwrap();
    zip.finish().unwrap().into_inner()
}

#[tokio::test]
async fn each_limit_is_told_by_a_reason_of_its_own_in_every_runtime() {
    let service = Service::start(&OPTIONS).await;
    let kinds = [
        ("TAIBAI_TEST_IMAGE", package(PYTHON)),
        ("TAIBAI_TEST_NODE_IMAGE", zip_of(&[("main.js", NODE.as_bytes())])),
        ("TAIBAI_TEST_SHELL_IMAGE", program(SHELL)),
    ];
    for (kind, (image, package)) in kinds.iter().enumerate() {
        let runtime = service.runtime_of(&required(image)).await;
        let patient = function(&service, &runtime, package, "30").await;
        let brief = function(&service, &runtime, package, "3").await;
        let run = async |what: &str| {
            let function = if what == "lasts" { &brief } else { &patient };
            service.execute("demo", function, &json!({"what": what}).to_string()).await
        };
        for (what, reason, texts) in CASES {
            if texts[kind].is_empty() {
                continue;
            }
            let ended = run(what).await;
            assert_eq!(
                (&ended["status"], &ended["reason"]),
                (&json!("failed"), &json!(reason)),
                "{image}: {ended}"
            );
            assert_eq!(result(&ended)["reason"], reason, "{ended}");
            let text = output(&ended);
            assert!(text.as_str().is_some_and(|text| text.contains(texts[kind])), "{image} {what}: {ended}");
            let fine = run("fine").await;
            assert_eq!(
                (output(&fine), &fine["reason"]),
                (json!("fine"), &Value::Null),
                "after {what}: {fine}"
            );
            assert_eq!(fine["log_truncated"], false);
        }
        let loud = run("log").await;
        assert_eq!((&loud["status"], &loud["log_truncated"]), (&json!("success"), &json!(true)), "{loud}");
        let log = service.execution_log("demo", loud["id"].as_str().unwrap()).await;
        assert!(log.contains("more bytes were written]\n") && log.len() < 1300, "{log}");
    }
    service.stop_clean().await;
}

#[tokio::test]
async fn each_limit_is_told_by_a_reason_of_its_own_where_a_function_is_an_image() {
    let image = Image::python(
        "limits",
        "",
        &format!("import sys\n{PYTHON}\nos.chdir('/tmp')\nmain(None, sys.argv[1])"),
    );
    let service = Service::start(&OPTIONS).await;
    let fields = [("timeout", json!(8)), ("cpu", json!(1000)), ("memory_size", json!(64 << 20))];
    let function = images::function(&service, &image, &fields).await;
    for (what, reason) in [
        ("processes", "too_many_processes"),
        ("open_files", "too_many_open_files"),
        ("large_file", "file_too_large"),
        ("memory", "out_of_memory"),
        ("lasts", "timeout"),
        ("exits", "exit"),
        ("fails", "exit"),
    ] {
        let ended = service.execute("demo", &function, what).await;
        assert_eq!(
            (&ended["status"], &ended["reason"]),
            (&json!("failed"), &json!(reason)),
            "{what}: {ended}"
        );
    }
    let loud = service.execute("demo", &function, "log").await;
    assert_eq!((&loud["status"], &loud["log_truncated"]), (&json!("success"), &json!(true)), "{loud}");
    let number = |field: &str| loud[field].as_f64().unwrap_or_else(|| panic!("{field}: {loud}"));
    assert_eq!(loud["start"], "cold");
    assert!(number("run_ms") > 0.0 && number("starting_ms") > 0.0, "{loud}");
    assert!(number("cpu_ms") > 1.0 && number("cpu_ms") < 5000.0, "{loud}");
    assert!(
        number("peak_memory_bytes") > 1e6 && number("peak_memory_bytes") <= f64::from(64 << 20),
        "{loud}"
    );
    service.stop_clean().await;
}

/// What an image gets is its container's as a whole, interpreter and files in memory included.
const USES: &str = r#"
import os, sys, time
def memory(): print(len(bytearray(80 << 20)))
def busy():
    begin, used = time.monotonic(), time.process_time()
    while time.monotonic() < begin + 4: pass
    print((time.process_time() - used) / (time.monotonic() - begin))
def scratch():
    with open('/tmp/full', 'wb', buffering=0) as file:
        for _ in range(100): file.write(b'x' * (1 << 20))
globals()[sys.argv[1]]()
"#;

#[tokio::test]
async fn an_image_has_its_memory_its_share_of_the_processor_and_its_scratch_space_and_no_more() {
    let image = Image::python("uses", "", USES);
    let service =
        Service::start(&[&OPTIONS[..], &[("resource_limits.max_memory", "268435456")]].concat()).await;
    let function = async |memory: u32, cpu: u32| {
        let fields = [("timeout", json!(60)), ("cpu", json!(cpu)), ("memory_size", json!(memory << 20))];
        images::function(&service, &image, &fields).await
    };
    let run = async |function: &str, what: &str| {
        let ended = service.execute("demo", function, what).await;
        let log = service.execution_log("demo", ended["id"].as_str().unwrap()).await;
        (ended, log)
    };
    for (memory, reason) in [(96, Value::Null), (32, json!("out_of_memory"))] {
        let (ended, log) = run(&function(memory, 1000).await, "memory").await;
        assert_eq!(ended["reason"], reason, "{memory} MiB: {ended} {log}");
    }
    // As in a worker: never more, and less only where the machine is busy with other things, as it is with
    // the tests beside this one. Half of a processor may then never be had.
    for (cpu, least) in [(100, 0.09), (200, 0.18), (500, 0.22)] {
        let function = function(64, cpu).await;
        let mut shares: Vec<f64> = Vec::new();
        while !shares.iter().any(|found| *found >= least) && shares.len() < 5 {
            let (ended, log) = run(&function, "busy").await;
            shares.push(log.trim().parse().unwrap_or_else(|_| panic!("{ended} {log}")));
            assert!(shares.iter().all(|found| *found <= f64::from(cpu) / 1000.0 * 1.1), "{cpu}: {shares:?}");
        }
        assert!(shares.iter().any(|found| *found >= least), "{cpu}: {shares:?}");
    }
    // `/tmp` has `[images] tmp_bytes`.
    let (ended, log) = run(&function(256, 1000).await, "scratch").await;
    assert_eq!(ended["reason"], "scratch_full", "{ended}");
    assert!(log.contains("[Errno 28] No space left on device"), "{log}");
    service.stop_clean().await;
}

#[tokio::test]
async fn an_input_that_is_too_large_is_refused_with_the_limit() {
    let service = Service::start(&[("api.max_body_bytes", "20000")]).await;
    let body = json!({"function_id": "11111111-1111-1111-1111-111111111111", "input": "x".repeat(30_000)});
    let refused = service.ask("demo", "POST", "/v1/executions", Some(body)).await.expect(413);
    assert!(refused["faultstring"].as_str().unwrap().contains("20000"), "{refused}");
    service.stop_clean().await;
}

const COUNTED: &str = r#"
import time
def main(context=None, mib=0, seconds=0):
    held = bytearray(mib << 20)
    end = time.process_time() + seconds
    while time.process_time() < end: pass
    return len(held)
"#;

#[tokio::test]
async fn an_execution_says_how_it_started_and_what_it_took() {
    let service = Service::start(&[("engine.pool_size", "0")]).await;
    let runtime = service.runtime().await;
    let fields = [("timeout", "20"), ("cpu", "1000"), ("memory_size", "134217728")];
    let function = service.function("demo", &runtime, COUNTED, &fields).await;
    let number = |row: &Value, field: &str| row[field].as_f64().unwrap_or_else(|| panic!("{field}: {row}"));

    let first = service.execute("demo", &function, "{}").await;
    // The worker that showed that the image works may be there still.
    assert!(first["start"] == "cold" || first["start"] == "prewarmed", "{first}");
    assert!(number(&first, "queued_ms") < number(&first, "starting_ms"), "{first}");

    let large = service.execute("demo", &function, r#"{"mib": 64, "seconds": 0.3}"#).await;
    assert_eq!((&large["start"], &large["reason"]), (&json!("warm"), &Value::Null), "{large}");
    assert!(number(&large, "starting_ms") < number(&first, "starting_ms"), "{large}");
    let (run, cpu) = (number(&large, "run_ms"), number(&large, "cpu_ms"));
    // Beside other work the same instructions take longer.
    assert!((300.0..600.0).contains(&cpu) && run >= 300.0, "{large}");
    assert_eq!(result(&large)["duration"].as_f64().unwrap(), (run.round() / 1000.0), "{large}");
    let peak = number(&large, "peak_memory_bytes");
    assert!(peak >= f64::from(64 << 20), "{large}");

    // What one execution took is not told of the next.
    let small = service.execute("demo", &function, "{}").await;
    assert!(number(&small, "cpu_ms") < 100.0, "{small}");
    assert!(number(&small, "peak_memory_bytes") < peak - f64::from(32 << 20), "{small}");

    let id = service.accept("demo", &function, r#"{"seconds": 0.1}"#).await;
    let waited = service.ended("demo", &id).await;
    assert!(number(&waited, "queued_ms") >= 0.0 && number(&waited, "cpu_ms") >= 100.0, "{waited}");
    assert_eq!(service.execution("demo", &id).await, waited);

    service.execute("demo", &function, r#"{"mib": "no"}"#).await;
    let listed = async |query: &str| {
        let list = service.ask("demo", "GET", &format!("/v1/executions?{query}"), None).await.expect(200);
        list["executions"].as_array().unwrap().len()
    };
    assert_eq!((listed("reason=raised").await, listed("reason=in:raised,timeout").await), (1, 1));
    assert_eq!(listed("reason=timeout").await, 0);

    // Who asks for 1.0 sees nothing of it.
    let old = service.request("demo", "GET", &format!("/v1/executions/{id}"));
    let old =
        crate::service::read(old.header("openstack-api-version", "function-engine 1.0")).await.expect(200);
    let fields: Vec<&String> = old.as_object().unwrap().keys().collect();
    assert!(fields.iter().all(|field| *field != "reason" && !field.ends_with("_ms")), "{old}");
    assert_eq!(fields.len(), 12, "{old}");
    service.stop_clean().await;
}
