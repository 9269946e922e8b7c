//! Executions that are ended by their users, by their age, or because nobody else ends them.

use std::time::Duration;

use serde_json::{Value, json};
use taibai::db;
use taibai::model::{ExecutionStatus, FunctionId, Timestamp, execution};

use crate::service::{Service, eventually, output, result};

const TREE: &str = r#"
import subprocess, time
def main(**kwargs):
    print('begins', flush=True)
    subprocess.Popen(['/bin/sleep', '4321'], start_new_session=True)
    time.sleep(60)
"#;

fn sleepers() -> usize {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        found += usize::from(command == b"/bin/sleep\x004321\x00");
    }
    found
}

async fn cancel(service: &Service, who: &str, id: &str) -> crate::service::Answer {
    service.ask(who, "POST", &format!("/v1/executions/{id}/cancel"), None).await
}

#[tokio::test]
async fn a_cancelled_execution_ends_with_every_process_and_keeps_its_log() {
    let service = Service::start(&[("engine.max_workers", "2")]).await;
    let runtime = service.runtime().await;
    let fields = [("timeout", "120"), ("cpu", "1000")];
    let function = service.function("demo", &runtime, TREE, &fields).await;

    let id = service.accept("demo", &function, "").await;
    eventually("the function's child runs", async || sleepers() == 1).await;
    assert_eq!(cancel(&service, "alt", &id).await.status, 404);
    let ended = cancel(&service, "demo", &id).await.expect(200);
    assert_eq!(ended["status"], "failed", "the word that clients know: {ended}");
    assert_eq!(
        (output(&ended), &result(&ended)["reason"]),
        (json!("Function execution cancelled."), &json!("cancelled"))
    );
    assert_eq!(sleepers(), 0);
    assert!(service.execution_log("demo", &id).await.contains("\nbegins\n"));
    let refused = cancel(&service, "demo", &id).await.expect(409);
    assert_eq!(refused["faultstring"], format!("Execution {id} has ended."));

    // A call that somebody waits for.
    let body = json!({"function_id": function}).to_string();
    let call = service.request("demo", "POST", "/v1/executions").header("content-type", "application/json");
    let call = tokio::spawn(call.body(body).send());
    let mut id = String::new();
    eventually("the call is listed", async || {
        let running = service.ask("demo", "GET", "/v1/executions?status=running", None).await.expect(200);
        id = running["executions"][0]["id"].as_str().unwrap_or_default().to_owned();
        !id.is_empty()
    })
    .await;
    cancel(&service, "demo", &id).await.expect(200);
    let answer: Value = serde_json::from_slice(&call.await.unwrap().unwrap().bytes().await.unwrap()).unwrap();
    assert_eq!(result(&answer)["reason"], "cancelled", "{answer}");
    eventually("nothing of it is left", async || sleepers() == 0).await;
    service.stop_clean().await;
}

#[tokio::test]
async fn an_execution_that_waits_is_cancelled_and_never_runs() {
    let options = [("engine.max_async", "1"), ("engine.function_concurrency", "1")];
    let service = Service::start(&options).await;
    let runtime = service.runtime().await;
    let fields = [("timeout", "60"), ("cpu", "1000")];
    let source = "import time\ndef main(seconds=0, **kwargs):\n    time.sleep(seconds)\n";
    let function = service.function("demo", &runtime, source, &fields).await;
    let first = service.accept("demo", &function, r#"{"seconds": 3}"#).await;
    let second = service.accept("demo", &function, "").await;
    let ended = cancel(&service, "demo", &second).await.expect(200);
    assert_eq!(result(&ended)["reason"], "cancelled", "{ended}");
    assert_eq!(service.ended("demo", &first).await["status"], "success");
    assert_eq!(service.execution("demo", &second).await, ended);
    service.stop_clean().await;
}

#[tokio::test]
async fn what_nobody_ends_is_ended_and_what_is_old_is_deleted() {
    let options = [("executions.check_interval", "1s"), ("executions.max_age", "1h")];
    let service = Service::start(&options).await;
    let database = service.home.database().await;
    let now = Timestamp::now();
    let row = |status, age: u64, deadline: Option<Timestamp>| execution::Model {
        id: taibai::model::ExecutionId::random(),
        project_id: "demo".into(),
        function_id: FunctionId::random(),
        function_version: 0,
        function_alias: None,
        description: None,
        status,
        sync: false,
        input: None,
        result: None,
        reason: None,
        start: None,
        epoch: 1,
        engine_id: None,
        worker: None,
        request_id: None,
        deadline_at: deadline,
        created_at: now.before(Duration::from_secs(age)),
        updated_at: None,
        queued_us: None,
        starting_us: None,
        run_us: None,
        cpu_us: None,
        peak_memory_bytes: None,
        log_truncated: None,
    };
    let past = Some(now.before(Duration::from_secs(1)));
    let stuck = row(ExecutionStatus::Running, 60, past);
    let old = row(ExecutionStatus::Failed, 7200, None);
    let recent = row(ExecutionStatus::Failed, 1800, None);
    for row in [&stuck, &old, &recent] {
        db::executions::insert(&database.writer(), row.clone()).await.unwrap();
    }
    let ended = service.ended("demo", stuck.id.as_str()).await;
    assert_eq!((&ended["status"], &result(&ended)["reason"]), (&json!("error"), &json!("worker_lost")));
    let path = format!("/v1/executions/{}", old.id);
    eventually("the old one is gone", async || service.ask("demo", "GET", &path, None).await.status == 404)
        .await;
    service.execution("demo", recent.id.as_str()).await;
    service.stop_clean().await;
}
