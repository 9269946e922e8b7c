//! Ends of the service, gentle and not, and what the next one makes of them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::json;
use taibai::db;
use taibai::model::{EngineId, ExecutionId, ExecutionStatus, Timestamp, engine, execution};

use crate::service::{Service, eventually, output, result};

/// The beginning of a call that takes longer is written before its end is, and nobody waits for that.
pub const LINGER: Duration = Duration::from_millis(20);

const COUNT: &str = r#"
import os, time
def main(seconds=0, **kwargs):
    time.sleep(seconds)
    return os.getpid()
"#;

#[tokio::test]
async fn a_warm_call_makes_no_call_to_docker_or_keystone_and_at_most_one_commit() {
    // A lease that is renewed is a commit too, but no call's.
    let service = Service::start(&[("engine.lease", "10m")]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, COUNT, &[]).await;
    for _ in 0..5 {
        service.execute("demo", &function, "").await;
    }
    // Replacing the worker that was bound is no part of a warm call.
    let pool = format!("/v1/runtimes/{runtime}/pool");
    eventually("the pool is full again", async || {
        service.ask("admin", "GET", &pool, None).await.expect(200)["capacity"]["available"] == 1
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;

    let metrics = ["taibai_docker_calls_total", "taibai_keystone_calls_total", "taibai_commits_total"];
    let mut before = Vec::new();
    for name in metrics {
        before.push(service.metric(name).await);
    }
    let mut long = 0;
    for _ in 0..50 {
        let began = Instant::now();
        assert_eq!(service.execute("demo", &function, "").await["status"], "success");
        long += u32::from(began.elapsed() >= LINGER);
    }
    let mut used = Vec::new();
    for (name, before) in metrics.iter().zip(before) {
        used.push(service.metric(name).await - before);
    }
    assert_eq!(used[0], 0.0, "Docker calls");
    assert_eq!(used[1], 0.0, "Keystone calls");
    let most = f64::from(50 + long);
    assert!((1.0..=most).contains(&used[2]), "{} commits for 50 calls, {long} of them long", used[2]);
    service.stop_clean().await;
}

#[tokio::test]
async fn sigterm_lets_what_runs_end_and_refuses_what_comes() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, COUNT, &[]).await;
    service.execute("demo", &function, "").await;
    let body = json!({"function_id": function, "input": "{\"seconds\": 2}"}).to_string();
    let running = tokio::spawn(
        service
            .request("demo", "POST", "/v1/executions")
            .header("content-type", "application/json")
            .body(body)
            .send(),
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    let home = service.stop().await;
    let answer: serde_json::Value =
        serde_json::from_slice(&running.await.unwrap().unwrap().bytes().await.unwrap()).unwrap();
    assert_eq!(answer["status"], "success", "{answer}");
    let again = Service::start_in(home).await;
    again.stop_clean().await;
}

#[tokio::test]
async fn a_restart_adopts_live_workers() {
    let service = Service::start(&[("engine.keep_workers_on_shutdown", "true")]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, COUNT, &[]).await;
    let before = output(&service.execute("demo", &function, "").await);
    let workers = service.workers(&function).await;
    let home = service.stop().await;
    assert!(!home.containers().is_empty());

    let service = Service::start_in(home).await;
    assert_eq!(service.workers(&function).await, workers);
    let done = service.execute("demo", &function, "").await;
    assert_eq!(output(&done), before, "the same process served it");
    let home = service.kill_9();

    let service = Service::start_in(home).await;
    assert_eq!(output(&service.execute("demo", &function, "").await), before, "after kill -9 as well");
    let path = format!("/v1/functions/{function}");
    service.ask("demo", "DELETE", &path, None).await.expect(204);
    service.ask("admin", "DELETE", &format!("/v1/runtimes/{runtime}"), None).await.expect(204);
    eventually("nothing is left", async || service.home.containers().is_empty()).await;
    service.stop_clean().await;
}

#[tokio::test]
async fn after_kill_9_accepted_work_ends_once_and_interrupted_calls_end_as_errors() {
    let service = Service::start(&[("engine.max_async", "4"), ("engine.max_workers", "4")]).await;
    let runtime = service.runtime().await;
    // Each run leaves a trace in the container's shared memory, under its own name, for counting.
    let function = service.function("demo", &runtime, COUNT, &[("timeout", "30")]).await;
    service.execute("demo", &function, "").await;
    let mut accepted = Vec::new();
    for number in 0..30 {
        let input = if number % 3 == 0 { "{\"seconds\": 1.5}" } else { "{\"seconds\": 0.05}" };
        accepted.push(service.accept("demo", &function, input).await);
    }
    let body = json!({"function_id": function, "description": "interrupted", "input": "{\"seconds\": 20}"});
    let request = service
        .request("demo", "POST", "/v1/executions")
        .header("content-type", "application/json")
        .body(body.to_string());
    let interrupted = tokio::spawn(request.send());
    eventually("the synchronous call is recorded as running", async || {
        let path = "/v1/executions?description=interrupted";
        service.ask("demo", "GET", path, None).await.expect(200)["executions"].as_array().unwrap().len() == 1
    })
    .await;
    let home = service.kill_9();
    assert!(interrupted.await.unwrap().is_err(), "the caller saw the connection break");

    let service = Service::start_in(home).await;
    let mut pids = HashSet::new();
    for id in &accepted {
        let ended = service.ended("demo", id).await;
        assert_eq!(ended["status"], "success", "{ended}");
        pids.insert(output(&ended).to_string());
        let log = service.execution_log("demo", id).await;
        assert_eq!(log.matches("Start execution").count(), 1, "{log}");
    }
    let listed = service.ask("demo", "GET", "/v1/executions?description=interrupted", None).await.expect(200);
    let interrupted = &listed["executions"][0];
    assert_eq!(interrupted["status"], "error");
    assert_eq!(result(interrupted)["reason"], "interrupted");
    // Counted once each: thirty, the interrupted one and the first.
    let shown = service.ask("demo", "GET", &format!("/v1/functions/{function}"), None).await.expect(200);
    assert_eq!(shown["count"], 32);
    let running = service.ask("demo", "GET", "/v1/executions?status=running", None).await.expect(200);
    assert_eq!(running, json!({"executions": []}));
    service.stop_clean().await;
}

#[tokio::test]
async fn accepted_work_whose_worker_died_with_the_service_ends_as_worker_lost() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, COUNT, &[("timeout", "60")]).await;
    service.execute("demo", &function, "").await;
    let id = service.accept("demo", &function, "{\"seconds\": 50}").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let home = service.kill_9();
    for container in home.containers() {
        std::process::Command::new("docker").args(["rm", "-f", &container]).output().unwrap();
    }
    let service = Service::start_in(home).await;
    let ended = service.ended("demo", &id).await;
    assert_eq!((&ended["status"], &result(&ended)["reason"]), (&json!("error"), &json!("worker_lost")));
    assert_eq!(service.execute("demo", &function, "").await["status"], "success");
    service.stop_clean().await;
}

#[tokio::test]
async fn a_worker_that_dies_fails_its_execution_and_is_replaced() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, COUNT, &[("timeout", "60")]).await;
    service.execute("demo", &function, "").await;
    let call = service.execute("demo", &function, "{\"seconds\": 50}");
    let killer = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for container in service.home.containers() {
            std::process::Command::new("docker").args(["kill", &container]).output().unwrap();
        }
    };
    let (lost, ()) = tokio::join!(call, killer);
    assert_eq!((&lost["status"], &result(&lost)["reason"]), (&json!("error"), &json!("worker_lost")));
    assert_eq!(service.execute("demo", &function, "").await["status"], "success");
    service.stop_clean().await;
}

#[tokio::test]
async fn idle_workers_are_removed() {
    let service = Service::start(&[("engine.idle_timeout", "1s")]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, COUNT, &[]).await;
    service.execute("demo", &function, "").await;
    assert_eq!(service.workers(&function).await.len(), 1);
    eventually("the idle worker goes", async || service.workers(&function).await.is_empty()).await;
    assert_eq!(service.execute("demo", &function, "").await["status"], "success");
    service.stop_clean().await;
}

#[tokio::test]
async fn what_an_engine_on_another_machine_ran_ends_once_its_lease_is_over() {
    let service = Service::start(&[("engine.lease", "3s")]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, COUNT, &[]).await;
    let home = service.stop().await;

    // Two engines elsewhere: one died a while ago, one is alive and renews its lease.
    let db = home.database().await;
    let now = Timestamp::now();
    let mut rows = Vec::new();
    for (node, lease_until) in
        [("dead", Timestamp(now.0 - 1)), ("alive", now.after(Duration::from_secs(600)))]
    {
        let engine = engine::Model {
            id: EngineId::random(),
            node: node.to_owned(),
            deployment: "elsewhere".to_owned(),
            endpoint: None,
            started_at: now,
            lease_until,
        };
        db::engines::register(&db.writer(), engine.clone()).await.unwrap();
        for sync in [true, false] {
            let row = execution::Model {
                id: ExecutionId::random(),
                project_id: "demo".into(),
                function_id: function.as_str().into(),
                function_version: 0,
                function_alias: None,
                description: None,
                status: ExecutionStatus::Running,
                sync,
                input: None,
                result: None,
                reason: None,
                start: None,
                epoch: 1,
                engine_id: Some(engine.id.clone()),
                worker: Some("elsewhere".into()),
                request_id: None,
                deadline_at: None,
                created_at: now,
                updated_at: None,
                queued_us: None,
                starting_us: None,
                run_us: None,
                cpu_us: None,
                peak_memory_bytes: None,
                log_truncated: None,
            };
            rows.push((node, sync, row.id.clone()));
            db::executions::insert(&db.writer(), row).await.unwrap();
        }
    }
    db.close().await.unwrap();

    let service = Service::start_in(home).await;
    for (node, sync, id) in &rows {
        if *node == "dead" {
            let ended = service.ended("demo", id.as_str()).await;
            let reason = if *sync { "interrupted" } else { "worker_lost" };
            assert_eq!((&ended["status"], &result(&ended)["reason"]), (&json!("error"), &json!(reason)));
        }
    }
    // Renewed at least once more by now, and looked at each time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (_, _, id) in rows.iter().filter(|(node, ..)| *node == "alive") {
        assert_eq!(service.execution("demo", id.as_str()).await["status"], "running");
    }
    let home = service.stop().await;
    let db = home.database().await;
    let left: Vec<_> = db::engines::list(db.reader()).await.unwrap();
    let left: Vec<&str> = left.iter().map(|engine| engine.node.as_str()).collect();
    assert_eq!(left, ["alive"], "the dead one is forgotten");
}
