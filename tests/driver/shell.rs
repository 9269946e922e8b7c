//! Functions that are programs: the smallest shim there is has what the others have.

use std::io::{Cursor, Write};

use protocol::worker::{End, ExecutionLimits};
use serde_json::json;

use crate::outcomes::lines;
use crate::worker::{MIB, SHELL, Worker, ample};

async fn running(slots: u32, files: &[(&str, &str, u32)]) -> Worker {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content, mode) in files {
        let options = zip::write::SimpleFileOptions::default().unix_permissions(*mode);
        zip.start_file(*name, options).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    let worker = Worker::start_of(SHELL, slots).await;
    worker.load_bytes(zip.finish().unwrap().into_inner()).await.unwrap();
    worker
}

#[tokio::test]
async fn a_program_reads_json_writes_json_and_logs_to_its_standard_error() {
    let worker = running(
        1,
        &[
            ("main", "#!/bin/sh\necho log >&2\nls -A >&2\ntouch left\ncat\n", 0o755),
            ("bin/add.sh", "#!/bin/sh\njq '.a + .b'\n", 0o755),
            ("quiet.sh", "#!/bin/sh\n", 0o755),
            ("words.sh", "#!/bin/sh\necho some words\n", 0o755),
            ("two.sh", "#!/bin/sh\necho 1 2\n", 0o755),
            ("large.sh", "#!/bin/sh\nhead -c 7000000 /dev/zero\n", 0o755),
            ("fails.sh", "#!/bin/sh\necho why >&2\nexit 3\n", 0o755),
            ("plain.txt", "no program", 0o644),
        ],
    )
    .await;
    let end = async |entry: &str| worker.run(entry, json!(null), ample()).await.end;
    let raised = |message: &str| End::Raised { message: message.to_owned() };

    for _ in 0..2 {
        let outcome = worker.run("main.main", json!({"text": "ä\n\""}), ample()).await;
        assert_eq!(crate::worker::output(&outcome), json!({"text": "ä\n\""}));
        // The second time, too, the working directory is empty.
        assert_eq!(lines(&outcome), ["log"]);
    }
    assert_eq!(worker.output("main.main", json!(null)).await, json!(null));
    assert_eq!(worker.output("bin/add.sh", json!({"a": 1, "b": 2})).await, 3);
    assert_eq!(worker.output("quiet.sh", json!(null)).await, json!(null));
    for entry in ["words.sh", "two.sh"] {
        assert!(
            matches!(end(entry).await, End::BadResult { reason } if reason.contains("not JSON")),
            "{entry}"
        );
    }
    assert!(matches!(end("large.sh").await, End::BadResult { reason } if reason.contains("7000000 bytes")));
    assert_eq!(end("fails.sh").await, raised("'fails.sh' ended with exit status 3"));
    assert_eq!(end("plain.txt").await, raised("'plain.txt' is not executable"));
    assert_eq!(end("no.such").await, raised("The package has no file 'no.such'"));
    assert_eq!(worker.retired("not_quiet").await + worker.retired("changed_habits").await, 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_program_has_the_limits_the_deadline_and_the_isolation_of_any_function() {
    let worker = running(
        2,
        &[
            (
                "memory.sh",
                "#!/bin/bash\nfor n in {1..60}; do x[n]=$(head -c 1000000 /dev/zero | tr '\\0' x); done\n",
                0o755,
            ),
            ("sleep.sh", "#!/bin/sh\nsetsid sleep 600 &\nsleep 600\n", 0o755),
            ("left.sh", "#!/bin/sh\nsleep 600 >&2 &\n", 0o755),
            ("uid.sh", "#!/bin/sh\necho $(id -u)\n", 0o755),
            ("answers.sh", "#!/bin/sh\nsh -c 'echo forged >&3' 2>/dev/null || echo '\"closed\"'\n", 0o755),
        ],
    )
    .await;
    let small = ExecutionLimits { memory_bytes: 32 * MIB, ..ample() };
    let memory = worker.run("memory.sh", json!(null), small).await;
    assert!(matches!(memory.end, End::Exhausted { .. } | End::OutOfMemory), "{:?}", memory.end);
    let late = worker.run("sleep.sh", json!(null), ExecutionLimits { timeout_ms: 500, ..ample() }).await;
    assert_eq!(late.end, End::TimedOut);
    assert!(late.duration_ms < 1000.0);
    assert_eq!(worker.run("left.sh", json!(null), ample()).await.end, End::Returned);
    assert_eq!(worker.output("answers.sh", json!(null)).await, "closed");
    let (one, other) =
        tokio::join!(worker.output("uid.sh", json!(null)), worker.output("uid.sh", json!(null)));
    let mut uids = [one.as_u64().unwrap(), other.as_u64().unwrap()];
    uids.sort_unstable();
    assert_eq!(uids, [u64::from(worker.uid_base), u64::from(worker.uid_base) + 1]);
    assert_eq!(worker.retired("left_processes").await, 1);
    worker.stop().await;
}
