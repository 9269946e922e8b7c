//! Jobs: functions that run at times, each instant once.

use std::time::Duration;

use chrono::{Datelike, Utc};
use sea_orm::{EntityTrait, IntoActiveModel};
use serde_json::{Value, json};
use taibai::db;
use taibai::model::{Timestamp, alias, job};

use crate::service::{Home, Service, eventually, output, result};

const ECHO: &str =
    "def main(*args, **kwargs):\n    kwargs.pop('context', None)\n    return args[0] if args else kwargs\n";

/// Every second.
const OFTEN: &str = "* * * * * *";

async fn create(service: &Service, body: Value) -> String {
    let job = service.ask("demo", "POST", "/v1/jobs", Some(body)).await.expect(201);
    job["id"].as_str().unwrap().to_owned()
}

async fn show(service: &Service, id: &str) -> Value {
    service.ask("demo", "GET", &format!("/v1/jobs/{id}"), None).await.expect(200)
}

async fn change(service: &Service, id: &str, body: Value) -> Value {
    service.ask("demo", "PUT", &format!("/v1/jobs/{id}"), Some(body)).await.expect(200)
}

/// The executions of a job, as users and Qinling's tests find them.
async fn executions(service: &Service, job: &str) -> Vec<Value> {
    let path = format!("/v1/executions?description=has:{job}");
    let listed = service.ask("demo", "GET", &path, None).await.expect(200);
    listed["executions"].as_array().unwrap().clone()
}

async fn status_becomes(service: &Service, id: &str, status: &str) -> Value {
    let mut last = Value::Null;
    eventually(&format!("the job is {status}"), async || {
        last = show(service, id).await;
        last["status"] == status
    })
    .await;
    last
}

/// Sets the instant of a job, behind the service.
async fn set_next(home: &Home, id: &str, next: Timestamp) {
    let db = home.database().await;
    let change = job::ActiveModel {
        id: sea_orm::Set(id.into()),
        next_execution_time: sea_orm::Set(next),
        ..Default::default()
    };
    db::jobs::update(&db.writer(), change).await.unwrap();
    db.close().await.unwrap();
}

fn in_an_hour() -> String {
    Timestamp::now().after(Duration::from_secs(3600)).to_string()
}

#[tokio::test]
async fn a_pattern_with_a_count_runs_that_often_and_is_done() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, ECHO, &[]).await;
    let new = json!({"function_id": function, "pattern": OFTEN, "count": 3, "function_input": "{\"a\": 1}"});
    let id = create(&service, new).await;
    let done = status_becomes(&service, &id, "done").await;
    assert_eq!((&done["count"], &done["status_reason"]), (&json!(0), &Value::Null));
    // As soon as it is done, the last one is there.
    let rows = executions(&service, &id).await;
    assert_eq!(rows.len(), 3, "{rows:?}");
    for row in &rows {
        assert_eq!(row["description"], format!("Created by Job {id}"));
        assert_eq!((&row["sync"], &row["input"]), (&json!(false), &json!("{\"a\":1}")));
        let ended = service.ended("demo", row["id"].as_str().unwrap()).await;
        assert_eq!((&ended["status"], output(&ended)), (&json!("success"), json!({"a": 1})));
    }
    let refused = service.ask("demo", "PUT", &format!("/v1/jobs/{id}"), Some(json!({"name": "x"}))).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["faultstring"], "Can not update a finished job.");
    // What is over stands in nobody's way.
    service.ask("demo", "DELETE", &format!("/v1/functions/{function}"), None).await.expect(204);
    assert_eq!(show(&service, &id).await["function_id"], Value::Null);
    service.stop_clean().await;
}

#[tokio::test]
async fn a_job_is_paused_taken_up_again_changed_and_cancelled() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, ECHO, &[]).await;
    let id = create(&service, json!({"function_id": function, "pattern": OFTEN})).await;
    eventually("it runs", async || !executions(&service, &id).await.is_empty()).await;

    let paused = change(&service, &id, json!({"status": "paused"})).await;
    assert_eq!(paused["status"], "paused");
    let count = executions(&service, &id).await.len();
    // Two instants pass that mean nothing to it.
    tokio::time::sleep(Duration::from_millis(2200)).await;
    assert_eq!(executions(&service, &id).await.len(), count);
    let delete = format!("/v1/functions/{function}");
    let refused = service.ask("demo", "DELETE", &delete, None).await;
    assert_eq!(refused.status, 403, "{}", refused.text());

    let resumed = change(&service, &id, json!({"status": "running"})).await;
    assert!(resumed["next_execution_time"].as_str() >= paused["next_execution_time"].as_str());
    eventually("it runs again", async || executions(&service, &id).await.len() > count).await;

    // Once a year, and months away whenever this runs.
    let month = (Utc::now() + chrono::Duration::days(182)).month();
    let yearly = format!("0 21 1 {month} *");
    let rare = change(&service, &id, json!({"pattern": yearly, "name": "yearly"})).await;
    assert_eq!((&rare["pattern"], &rare["name"]), (&json!(yearly), &json!("yearly")));
    let instant = format!("-{month:02}-01T21:00:00Z");
    assert!(rare["next_execution_time"].as_str().unwrap().ends_with(&instant), "{rare}");
    let soon = change(&service, &id, json!({"pattern": yearly, "next_execution_time": in_an_hour()})).await;
    assert_eq!(soon["next_execution_time"], rare["next_execution_time"], "the pattern has none sooner");
    assert_eq!(change(&service, &id, json!({"status": "cancelled"})).await["status"], "cancelled");
    service.ask("demo", "DELETE", &delete, None).await.expect(204);
    service.stop_clean().await;
}

#[tokio::test]
async fn a_job_that_runs_once_honours_the_zone_of_its_time() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, ECHO, &[]).await;
    let utc = Timestamp::now().after(Duration::from_secs(7200)).whole_second();
    let east = Timestamp(utc.0 + 2 * 3_600_000_000).to_string().replace('Z', "+02:00");
    let new = json!({"function_id": function, "first_execution_time": east, "function_input": "now"});
    let id = create(&service, new).await;
    let shown = show(&service, &id).await;
    assert_eq!(shown["first_execution_time"], utc.to_string());
    assert_eq!((&shown["count"], &shown["status"]), (&json!(1), &json!("running")));

    set_next(&service.home, &id, Timestamp::now()).await;
    let done = status_becomes(&service, &id, "done").await;
    assert_eq!(done["count"], 0);
    let rows = executions(&service, &id).await;
    assert_eq!(rows.len(), 1);
    let ended = service.ended("demo", rows[0]["id"].as_str().unwrap()).await;
    assert_eq!((output(&ended), &ended["input"]), (json!("now"), &json!("now")));
    service.stop_clean().await;
}

#[tokio::test]
async fn a_broken_job_says_why_and_stalls_no_other() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, ECHO, &[]).await;
    let row = alias::Model {
        id: "aaaaaaaa-0000-4000-8000-00000000a11a".to_owned(),
        project_id: "demo".into(),
        name: "prod".to_owned(),
        function_id: function.as_str().into(),
        function_version: 0,
        description: None,
        canary_version: None,
        canary_weight: 0,
        previous_version: None,
        created_at: Timestamp::now(),
        updated_at: None,
    };
    let database = service.home.database().await;
    db::aliases::insert(&database.writer(), row.clone()).await.unwrap();
    let by_alias = json!({"function_alias": "prod", "pattern": OFTEN});
    let broken = create(&service, by_alias.clone()).await;
    let once = json!({"function_alias": "prod", "first_execution_time": in_an_hour()});
    let once = create(&service, once).await;
    assert_eq!(show(&service, &broken).await["function_id"], Value::Null);
    eventually("the alias is run", async || !executions(&service, &broken).await.is_empty()).await;
    assert_eq!(executions(&service, &broken).await[0]["function_alias"], "prod");

    // As nothing in the API lets it happen.
    alias::Entity::delete_by_id(row.id.clone()).exec(&database.writer()).await.unwrap();
    eventually("the broken job says why", async || {
        let shown = show(&service, &broken).await;
        assert_eq!(shown["status"], "running");
        shown["status_reason"].as_str().is_some_and(|why| why.contains("FunctionAlias not found [name=prod]"))
    })
    .await;
    // Which also tells that nothing is remembered of the alias.
    set_next(&service.home, &once, Timestamp::now()).await;
    let cancelled = status_becomes(&service, &once, "cancelled").await;
    assert!(cancelled["status_reason"].as_str().unwrap().contains("FunctionAlias not found"), "{cancelled}");
    assert_eq!(executions(&service, &once).await, Vec::<Value>::new());

    let good = create(&service, json!({"function_id": function, "pattern": OFTEN, "count": 2})).await;
    status_becomes(&service, &good, "done").await;
    assert_eq!(executions(&service, &good).await.len(), 2);

    // Once it is back, so is the job, and it has nothing to complain about.
    alias::Entity::insert(row.into_active_model()).exec_without_returning(&database.writer()).await.unwrap();
    eventually("the job runs again", async || show(&service, &broken).await["status_reason"].is_null()).await;
    database.close().await.unwrap();
    service.ask("demo", "DELETE", &format!("/v1/jobs/{broken}"), None).await.expect(204);
    service.stop_clean().await;
}

#[tokio::test]
async fn kill_9_across_instants_neither_loses_nor_doubles_one() {
    let service = Service::start(&[("jobs.missed", "all")]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, ECHO, &[]).await;
    const COUNT: usize = 15;
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(create(&service, json!({"function_id": function, "pattern": OFTEN, "count": COUNT})).await);
    }
    eventually("they run", async || !executions(&service, &jobs[0]).await.is_empty()).await;
    let mut home = service.kill_9();
    for _ in 0..2 {
        let service = Service::start_in(home).await;
        let before = executions(&service, &jobs[3]).await.len();
        eventually("they run on", async || {
            let now = executions(&service, &jobs[3]).await.len();
            now > before || now == COUNT
        })
        .await;
        home = service.kill_9();
    }
    let service = Service::start_in(home).await;
    for id in &jobs {
        let done = status_becomes(&service, id, "done").await;
        assert_eq!(done["count"], 0);
        // The count says how often it was to run, and the last instant that none was skipped.
        assert_eq!(executions(&service, id).await.len(), COUNT);
        let seconds = |time: &Value| Timestamp::read(time.as_str().unwrap()).unwrap().0 / 1_000_000;
        let span = seconds(&done["next_execution_time"]) - seconds(&done["first_execution_time"]);
        assert_eq!(span, COUNT as i64 - 1, "{done}");
    }
    let (mut ended, mut lost) = (0, Vec::new());
    for id in &jobs {
        for row in executions(&service, id).await {
            let row = service.ended("demo", row["id"].as_str().unwrap()).await;
            ended += 1;
            if row["status"] != "success" {
                lost.push(result(&row));
            }
        }
    }
    assert_eq!(ended, 4 * COUNT);
    assert_eq!(lost, Vec::<Value>::new());
    service.stop_clean().await;
}

#[tokio::test]
async fn a_backlog_is_one_run_or_none_as_the_configuration_says() {
    let mut home = Home::new(&[("jobs.enabled", "false")]);
    let mut ids = Vec::new();
    // Once a day, and half a day away whenever this runs.
    let last = Utc::now() - chrono::Duration::hours(12);
    let daily = last.format("%-M %-H * * *").to_string();
    {
        let service = Service::start_in(home).await;
        let runtime = service.runtime().await;
        let function = service.function("demo", &runtime, ECHO, &[]).await;
        for new in [
            json!({"function_id": function, "pattern": daily, "count": 9}),
            json!({"function_id": function, "first_execution_time": in_an_hour()}),
        ] {
            ids.push(create(&service, new).await);
        }
        home = service.stop().await;
    }
    let minute = 60_000_000;
    let long_ago = (last - chrono::Duration::days(9)).timestamp_micros();
    let dawn = Timestamp(long_ago - long_ago.rem_euclid(minute));
    let ahead = |job: &Value| Timestamp::read(job["next_execution_time"].as_str().unwrap()).unwrap() > dawn;
    for id in &ids {
        set_next(&home, id, dawn).await;
    }
    home.set("jobs.enabled", "true");
    home.set("jobs.missed", "skip");
    let service = Service::start_in(home).await;
    eventually("the instants are let go", async || ahead(&show(&service, &ids[0]).await)).await;
    let skipped = show(&service, &ids[0]).await;
    assert_eq!((&skipped["count"], &skipped["status"]), (&json!(9), &json!("running")));
    assert!(skipped["status_reason"].as_str().unwrap().ends_with("was missed."), "{skipped}");
    let cancelled = status_becomes(&service, &ids[1], "cancelled").await;
    assert!(cancelled["status_reason"].as_str().unwrap().ends_with("was missed."), "{cancelled}");
    for id in &ids {
        assert_eq!(executions(&service, id).await, Vec::<Value>::new());
    }

    let mut home = service.stop().await;
    set_next(&home, &ids[0], dawn).await;
    home.set("jobs.missed", "once");
    let service = Service::start_in(home).await;
    eventually("one is run for all", async || executions(&service, &ids[0]).await.len() == 1).await;
    let once = show(&service, &ids[0]).await;
    assert_eq!((&once["count"], &once["status_reason"]), (&json!(8), &Value::Null));
    assert!(Timestamp::read(once["next_execution_time"].as_str().unwrap()).unwrap() >= Timestamp::now());
    service.stop_clean().await;
}

#[tokio::test]
async fn jobs_of_others_are_not_there() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, ECHO, &[]).await;
    let id = create(&service, json!({"function_id": function, "pattern": "0 21 * * *"})).await;
    let path = format!("/v1/jobs/{id}");
    for (method, body) in [("GET", None), ("PUT", Some(json!({"name": "x"}))), ("DELETE", None)] {
        let answer = service.ask("alt", method, &path, body).await;
        assert_eq!(answer.status, 404, "{method}");
        assert_eq!(answer.json()["faultstring"], format!("Job not found [id={id}]"));
    }
    let new = json!({"function_id": function, "pattern": "* * * * * *", "count": 1});
    assert_eq!(service.ask("alt", "POST", "/v1/jobs", Some(new.clone())).await.status, 404);
    // An administrator's runs the function, and the execution is the administrator's.
    let theirs = service.ask("admin", "POST", "/v1/jobs", Some(new)).await.expect(201);
    assert_eq!(theirs["project_id"], "admin");
    let path = format!("/v1/executions?description=has:{}", theirs["id"].as_str().unwrap());
    eventually("it runs", async || {
        let listed = service.ask("admin", "GET", &path, None).await.expect(200);
        listed["executions"][0]["project_id"] == "admin"
    })
    .await;
    assert_eq!(service.ask("demo", "GET", &path, None).await.expect(200)["executions"], json!([]));
    service.stop_clean().await;
}
