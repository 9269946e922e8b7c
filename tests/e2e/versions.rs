//! Versions and aliases: what was published stays what it was, and calls find it.

use serde_json::{Value, json};

use crate::service::{Service, eventually, output, package};

/// Answers what it is, and by which of two entries it was called.
fn saying(text: &str) -> String {
    format!(
        "import time\n\
         def main(seconds=0, **kwargs):\n    time.sleep(seconds)\n    return 'main {text}'\n\
         def other(seconds=0, **kwargs):\n    time.sleep(seconds)\n    return 'other {text}'\n"
    )
}

impl Service {
    pub async fn update(&self, function: &str, fields: &[(&str, &str)], source: Option<&str>) {
        let package = source.map(package);
        let path = format!("/v1/functions/{function}");
        self.upload("demo", "PUT", &path, fields, package.as_deref()).await.expect(200);
    }

    pub async fn publish(&self, function: &str) -> i64 {
        let path = format!("/v1/functions/{function}/versions");
        let version = self.ask("demo", "POST", &path, Some(json!({}))).await.expect(201);
        version["version_number"].as_i64().unwrap()
    }

    async fn call(&self, fields: Value) -> Value {
        self.ask("demo", "POST", "/v1/executions", Some(fields)).await.expect(201)
    }

    pub async fn run_version(&self, function: &str, version: i64) -> Value {
        self.call(json!({"function_id": function, "function_version": version})).await
    }

    async fn workers_of(&self, function: &str, version: i64) -> Vec<String> {
        let path = format!("/v1/functions/{function}/workers?function_version={version}");
        let answer = self.ask("admin", "GET", &path, None).await.expect(200);
        let workers = answer["workers"].as_array().unwrap();
        assert!(workers.iter().all(|worker| worker["function_version"] == version), "{answer}");
        workers.iter().map(|worker| worker["worker_name"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn what_ran_yesterday_runs_tomorrow() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let fields = [("entry", "main.main"), ("timeout", "9")];
    let function = service.function("demo", &runtime, &saying("old"), &fields).await;
    assert_eq!(service.publish(&function).await, 1);
    let fields = [("entry", "main.other"), ("timeout", "1"), ("memory_size", "67108864")];
    service.update(&function, &fields, Some(&saying("new"))).await;
    assert_eq!(service.publish(&function).await, 2);
    service.update(&function, &[("entry", "main.main"), ("timeout", "2")], None).await;

    let run = async |version: i64, seconds: f64| {
        let input = json!({"seconds": seconds}).to_string();
        let call = json!({"function_id": function, "function_version": version, "input": input});
        let done = service.call(call).await;
        assert_eq!(done["function_version"], version);
        output(&done)
    };
    for _ in 0..2 {
        assert_eq!(run(1, 0.0).await, "main old");
        assert_eq!(run(2, 0.0).await, "other new");
        assert_eq!(run(0, 0.0).await, "main new");
    }
    // Each has the time that it was published with.
    assert_eq!(run(1, 2.5).await, "main old");
    for version in [0, 2] {
        assert_eq!(run(version, 2.5).await, "Function execution timeout.");
    }
    let path = format!("/v1/functions/{function}");
    let shown = service.ask("demo", "GET", &format!("{path}/versions/2"), None).await.expect(200);
    assert_eq!((&shown["timeout"], &shown["memory_size"]), (&json!(1), &json!(67_108_864)));
    assert_eq!((&shown["entry"], &shown["count"]), (&json!("main.other"), &json!(3)));
    let shown = service.ask("demo", "GET", &path, None).await.expect(200);
    assert_eq!((&shown["count"], &shown["latest_version"]), (&json!(3), &json!(2)));

    // Asynchronously as well, and after a restart.
    let call = json!({"function_id": function, "function_version": 1, "sync": false});
    let accepted = service.call(call).await;
    let ended = service.ended("demo", accepted["id"].as_str().unwrap()).await;
    assert_eq!((output(&ended), &ended["function_version"]), (json!("main old"), &json!(1)));
    let service = Service::start_in(service.stop().await).await;
    assert_eq!(output(&service.run_version(&function, 1).await), "main old");
    service.stop_clean().await;
}

#[tokio::test]
async fn a_version_is_scaled_and_detached_by_itself() {
    let service = Service::start(&[("engine.pool_size", "2"), ("engine.max_workers", "6")]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, &saying("it"), &[("timeout", "20")]).await;
    assert_eq!(service.publish(&function).await, 1);
    for version in [0, 1] {
        assert_eq!(service.run_version(&function, version).await["status"], "success");
    }
    let own = service.workers_of(&function, 0).await;
    assert_eq!((own.len(), service.workers_of(&function, 1).await.len()), (1, 1));

    let post = async |version: i64, action: &str, body: Option<Value>| {
        let path = format!("/v1/functions/{function}/versions/{version}/{action}");
        assert_eq!(service.ask("demo", "POST", &path, body.clone()).await.status, 403);
        service.ask("admin", "POST", &path, body).await.expect(202);
    };
    post(1, "scale_up", Some(json!({"count": 2}))).await;
    eventually("there are three", async || service.workers_of(&function, 1).await.len() == 3).await;
    post(1, "scale_down", Some(json!({"count": 9}))).await;
    eventually("one is left", async || service.workers_of(&function, 1).await.len() == 1).await;

    // Who detaches waits for nobody, and cuts off nobody.
    let input = json!({"seconds": 3}).to_string();
    let call = json!({"function_id": function, "function_version": 1, "sync": false, "input": input});
    let accepted = service.call(call).await;
    eventually("it runs", async || {
        let db = service.home.database().await;
        let id = accepted["id"].as_str().unwrap().into();
        let row = taibai::db::executions::find(db.reader(), &id, &taibai::model::Scope::All).await;
        row.unwrap().unwrap().status == taibai::model::ExecutionStatus::Running
    })
    .await;
    post(1, "detach", None).await;
    assert_eq!(service.workers_of(&function, 1).await, Vec::<String>::new());
    assert_eq!(service.workers_of(&function, 0).await, own, "the function's own worker stays");
    assert_eq!(service.ended("demo", accepted["id"].as_str().unwrap()).await["status"], "success");
    assert_eq!(service.run_version(&function, 1).await["status"], "success");

    post(0, "scale_up", Some(json!({"count": 1}))).await;
    eventually("version 0 is the function", async || service.workers_of(&function, 0).await.len() == 2).await;
    post(0, "detach", None).await;
    assert_eq!(service.workers_of(&function, 0).await, Vec::<String>::new());

    // What is deleted takes its workers along.
    assert_eq!(service.workers_of(&function, 1).await.len(), 1);
    let path = format!("/v1/functions/{function}/versions/1");
    service.ask("demo", "DELETE", &path, None).await.expect(204);
    assert_eq!(service.workers_of(&function, 1).await, Vec::<String>::new());
    let gone = json!({"function_id": function, "function_version": 1});
    service.ask("demo", "POST", "/v1/executions", Some(gone)).await.expect(404);
    assert_eq!(service.run_version(&function, 0).await["status"], "success", "the package is the function's");
    service.stop_clean().await;
}

#[tokio::test]
async fn an_alias_shares_calls_out_and_one_call_takes_that_back() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, &saying("1"), &[]).await;
    service.publish(&function).await;
    service.update(&function, &[], Some(&saying("2"))).await;
    service.publish(&function).await;
    let new = json!({"name": "prod", "function_id": function, "function_version": 1});
    service.ask("demo", "POST", "/v1/aliases", Some(new)).await.expect(201);

    // Versions that calls got, as their executions say and as the code does.
    let got = async |calls: usize| {
        let mut versions = Vec::new();
        for _ in 0..calls {
            let done = service.call(json!({"function_alias": "prod"})).await;
            let version = done["function_version"].as_i64().unwrap();
            assert_eq!(output(&done), format!("main {version}"), "{done}");
            assert_eq!((&done["function_alias"], &done["function_id"]), (&json!("prod"), &json!(function)));
            versions.push(version);
        }
        versions.sort_unstable();
        versions.dedup();
        versions
    };
    let put = async |body: Value| {
        service.ask("demo", "PUT", "/v1/aliases/prod", Some(body)).await.expect(200);
    };
    let roll_back = async || service.ask("demo", "POST", "/v1/aliases/prod/rollback", None).await;
    assert_eq!(got(5).await, [1]);
    put(json!({"canary_version": 2})).await;
    assert_eq!(got(5).await, [1], "a weight of 0");
    put(json!({"canary_weight": 100})).await;
    assert_eq!(got(5).await, [2]);
    put(json!({"canary_weight": 50})).await;
    // All of a hundred calls go one way once in 2^99 runs of this test.
    assert_eq!(got(100).await, [1, 2]);
    let accepted = service.call(json!({"function_alias": "prod", "sync": false})).await;
    let ended = service.ended("demo", accepted["id"].as_str().unwrap()).await;
    assert_eq!(output(&ended), format!("main {}", ended["function_version"]));

    roll_back().await.expect(200);
    assert_eq!(got(20).await, [1]);
    put(json!({"function_version": "2"})).await;
    assert_eq!(got(5).await, [2]);
    let row = roll_back().await.expect(200);
    assert_eq!((&row["function_version"], &row["previous_version"]), (&json!(1), &Value::Null));
    assert_eq!(got(5).await, [1]);
    roll_back().await.expect(409);
    service.stop_clean().await;
}

#[tokio::test]
async fn versions_made_at_once_have_each_their_number() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, &saying("0"), &[]).await;
    let path = format!("/v1/functions/{function}/versions");
    // Uploads come between: whichever versions are made have another package each, and another number.
    let publish = (0..24).map(|_| service.ask("demo", "POST", &path, Some(json!({}))));
    let upload = (1..6).map(|number| {
        let (service, function) = (&service, &function);
        async move {
            let path = format!("/v1/functions/{function}");
            let bytes = package(&saying(&number.to_string()));
            service.upload("demo", "PUT", &path, &[], Some(&bytes)).await.status
        }
    });
    let (answers, uploads) =
        tokio::join!(futures_util::future::join_all(publish), futures_util::future::join_all(upload));
    assert!(uploads.iter().all(|status| [200, 409].contains(status)), "{uploads:?}");
    let mut numbers = Vec::new();
    for answer in &answers {
        match answer.status {
            201 => numbers.push(answer.json()["version_number"].as_i64().unwrap()),
            _ => {
                let text = answer.expect(403)["faultstring"].as_str().unwrap().to_owned();
                assert!(text.starts_with("Function package not changed since the latest version"), "{text}");
            }
        }
    }
    numbers.sort_unstable();
    let many = i64::try_from(numbers.len()).unwrap();
    assert!(many >= 1);
    assert_eq!(numbers, (1..=many).collect::<Vec<_>>());
    let shown = service.ask("demo", "GET", &format!("/v1/functions/{function}"), None).await.expect(200);
    assert_eq!(shown["latest_version"], many);
    service.stop_clean().await;
}
