//! Functions that are created, run, updated and deleted by their users.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::service::{Service, eventually, output, package, required, result};

const HELLO: &str = r#"
def main(name='World', **kwargs):
    print('Hello, %s' % name)
    return 'Hello, %s' % name
"#;

const SLEEP: &str = r#"
import time
def main(seconds=4, **kwargs):
    time.sleep(seconds)
    return seconds
"#;

#[tokio::test]
async fn a_function_runs_synchronously_and_asynchronously_and_its_log_is_kept() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let hello = service.function("demo", &runtime, HELLO, &[]).await;

    let done = service.execute("demo", &hello, r#"{"name": "Qinling"}"#).await;
    assert_eq!((&done["status"], output(&done)), (&json!("success"), json!("Hello, Qinling")));
    let id = done["id"].as_str().unwrap();
    let log = format!("Start execution: {id}\nHello, Qinling\nFinished execution: {id}\n");
    assert_eq!(service.execution_log("demo", id).await, log);
    assert_eq!(service.execution("demo", id).await, done);

    let id = service.accept("demo", &hello, "").await;
    let ended = service.ended("demo", &id).await;
    assert_eq!((&ended["status"], output(&ended)), (&json!("success"), json!("Hello, World")));
    let shown = service.ask("demo", "GET", &format!("/v1/functions/{hello}"), None).await.expect(200);
    assert_eq!(shown["count"], 2);
    service.stop_clean().await;
}

#[tokio::test]
async fn another_project_does_not_see_what_is_not_its_own() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let hello = service.function("demo", &runtime, HELLO, &[]).await;
    let done = service.execute("demo", &hello, "").await;
    let execution = format!("/v1/executions/{}", done["id"].as_str().unwrap());
    let function = format!("/v1/functions/{hello}");

    for path in [&execution, &function, &format!("{execution}/log"), &format!("{function}?download=true")] {
        assert_eq!(service.ask("alt", "GET", path, None).await.status, 404, "{path}");
        assert_eq!(service.ask("admin", "GET", path, None).await.status, 200, "{path}");
    }
    for path in [&execution, &function] {
        assert_eq!(service.ask("alt", "DELETE", path, None).await.status, 404, "{path}");
    }
    let body = json!({"function_id": hello});
    assert_eq!(service.ask("alt", "POST", "/v1/executions", Some(body)).await.status, 404);
    assert_eq!(
        service.ask("alt", "GET", "/v1/executions", None).await.expect(200),
        json!({"executions": []})
    );
    service.stop_clean().await;
}

#[tokio::test]
async fn the_cookbooks_sleep_fails_by_default_and_succeeds_with_a_longer_timeout() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let sleep = service.function("demo", &runtime, SLEEP, &[]).await;

    let failed = service.execute("demo", &sleep, r#"{"seconds": 10}"#).await;
    assert_eq!(
        (&failed["status"], output(&failed)),
        (&json!("failed"), json!("Function execution timeout."))
    );
    let duration = result(&failed)["duration"].as_f64().unwrap();
    assert!((5.0..5.3).contains(&duration), "{duration}");
    let workers = service.workers(&sleep).await;

    let path = format!("/v1/functions/{sleep}");
    service.ask("demo", "PUT", &path, Some(json!({"timeout": 15}))).await.expect(200);
    let done = service.execute("demo", &sleep, r#"{"seconds": 10}"#).await;
    assert_eq!(done["status"], "success", "{done}");
    let duration = result(&done)["duration"].as_f64().unwrap();
    assert!((10.0..10.3).contains(&duration), "{duration}");
    assert_eq!(service.workers(&sleep).await, workers, "a new timeout recreates nothing");
    service.stop_clean().await;
}

#[tokio::test]
async fn three_at_once_take_one_worker_and_six_take_two() {
    let service = Service::start(&[("engine.pool_size", "3")]).await;
    let runtime = service.runtime().await;
    for (count, workers) in [(3, 1), (6, 2)] {
        let sleep = service.function("demo", &runtime, SLEEP, &[]).await;
        let calls = (0..count).map(|_| service.execute("demo", &sleep, r#"{"seconds": 4}"#));
        let done = futures_util::future::join_all(calls).await;
        assert!(done.iter().all(|execution| execution["status"] == "success"), "{done:?}");
        assert_eq!(service.workers(&sleep).await.len(), workers, "{count} at once");
    }
    service.stop_clean().await;
}

#[tokio::test]
async fn calls_that_find_nothing_free_wait_and_no_project_waits_for_ever() {
    let options =
        [("engine.max_workers", "1"), ("engine.pool_size", "1"), ("engine.function_concurrency", "1")];
    let service = Service::start(&options).await;
    let runtime = service.runtime().await;
    let mut functions = Vec::new();
    for who in ["demo", "alt", "third"] {
        functions.push((who, service.function(who, &runtime, SLEEP, &[]).await));
    }
    let calls = functions.iter().flat_map(|(who, function)| {
        let service = &service;
        (0..3).map(move |_| service.execute(who, function, r#"{"seconds": 0.2}"#))
    });
    let done = futures_util::future::join_all(calls).await;
    assert!(done.iter().all(|execution| execution["status"] == "success"), "{done:?}");
    service.stop_clean().await;
}

#[tokio::test]
async fn a_full_queue_refuses_with_503_and_a_wait_that_is_too_long_ends_as_an_error() {
    let options = [
        ("engine.max_workers", "1"),
        ("engine.pool_size", "1"),
        ("engine.function_concurrency", "1"),
        ("engine.max_queue", "1"),
        ("engine.queue_timeout", "1s"),
    ];
    let service = Service::start(&options).await;
    let runtime = service.runtime().await;
    let sleep = service.function("demo", &runtime, SLEEP, &[]).await;
    service.execute("demo", &sleep, r#"{"seconds": 0}"#).await;
    let body = |seconds: f64| json!({"function_id": sleep, "input": json!({"seconds": seconds}).to_string()});
    let first = service.ask("demo", "POST", "/v1/executions", Some(body(3.0)));
    let second = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        service.ask("demo", "POST", "/v1/executions", Some(body(0.0))).await
    };
    let third = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        service.ask("demo", "POST", "/v1/executions", Some(body(0.0))).await
    };
    let (first, second, third) = tokio::join!(first, second, third);
    assert_eq!(first.expect(201)["status"], "success");
    let waited = second.expect(201);
    assert_eq!((&waited["status"], &result(&waited)["reason"]), (&json!("error"), &json!("no_capacity")));
    assert!(third.expect(503)["faultstring"].is_string());
    assert!(third.headers.contains_key("retry-after"));
    service.stop_clean().await;
}

#[tokio::test]
async fn an_update_is_seen_by_the_next_execution() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let hello = service.function("demo", &runtime, "def main(**kwargs): return 1\n", &[]).await;
    let path = format!("/v1/functions/{hello}");
    assert_eq!(output(&service.execute("demo", &hello, "").await), 1);
    for number in 2..6 {
        let source = format!("def main(**kwargs): return {number}\ndef other(**kwargs): return -{number}\n");
        service.upload("demo", "PUT", &path, &[], Some(&package(&source))).await.expect(200);
        assert_eq!(output(&service.execute("demo", &hello, "").await), number);
    }
    service.ask("demo", "PUT", &path, Some(json!({"entry": "main.other"}))).await.expect(200);
    assert_eq!(output(&service.execute("demo", &hello, "").await), -5);
    service.ask("demo", "DELETE", &path, None).await.expect(204);
    eventually("the workers of a deleted function go", async || service.workers(&hello).await.is_empty())
        .await;
    service.stop_clean().await;
}

#[tokio::test]
async fn memory_is_limited_and_the_limit_can_be_raised() {
    let source = r#"
def main(**kwargs):
    kept = []
    for letter in 'abcd':
        kept.append(letter * (20 << 20))
    return len(kept)
"#;
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let memory = service.function("demo", &runtime, source, &[]).await;
    let failed = service.execute("demo", &memory, "").await;
    let text = "Function execution failed because of too much resource consumption";
    assert_eq!((&failed["status"], output(&failed)), (&json!("failed"), json!(text)));
    assert_eq!(result(&failed)["reason"], "out_of_memory");
    let path = format!("/v1/functions/{memory}");
    service.ask("demo", "PUT", &path, Some(json!({"memory_size": 100_663_296}))).await.expect(200);
    assert_eq!(output(&service.execute("demo", &memory, "").await), 4);
    service.stop_clean().await;
}

#[tokio::test]
async fn a_package_that_lies_about_its_size_ends_as_an_error_with_the_reason() {
    let service = Service::start(&[("storage.max_expanded_bytes", "2097152")]).await;
    let runtime = service.runtime().await;
    // The directory says ten bytes, the data are three million.
    let mut zip = crate::service::zip_of(&[("main.py", HELLO.as_bytes()), ("data", &vec![7; 3_000_000])]);
    let lie = |zip: &mut Vec<u8>, needle: &[u8], offset: usize| {
        let at = (0..zip.len() - 46).rev().find(|at| {
            zip[*at..].starts_with(needle) && zip[*at + offset..].starts_with(&3_000_000_u32.to_le_bytes())
        });
        if let Some(at) = at {
            zip[at + offset..at + offset + 4].copy_from_slice(&10_u32.to_le_bytes());
        }
        at.is_some()
    };
    assert!(lie(&mut zip, b"PK\x01\x02", 24));
    lie(&mut zip, b"PK\x03\x04", 22);
    // The upload believes the directory; whoever unpacks believes what comes out.
    let created = service.create_function("demo", &runtime, &zip, &[]).await.expect(201);
    let ended = service.execute("demo", created["id"].as_str().unwrap(), "").await;
    assert_eq!((&ended["status"], output(&ended)), (&json!("error"), json!("Function execution failed.")));
    let result = result(&ended);
    assert_eq!(result["reason"], "preparation");
    assert!(result["detail"].as_str().unwrap().contains("not acceptable"), "{result}");
    service.stop_clean().await;
}

#[tokio::test]
async fn a_runtime_whose_image_does_not_exist_or_is_none_becomes_an_error_and_says_why() {
    let service = Service::start(&[]).await;
    let empty = EmptyImage::import("empty", &[]);
    let qinlings = EmptyImage::import("qinling", &["EXPOSE 9090"]);
    let broken = EmptyImage::import(
        "broken",
        &["LABEL org.openstack.taibai.shim=2", r#"CMD ["--spawn", "/no/such/shim"]"#],
    );
    let cases = [
        ("taibai/no-such-image:1", "not on this machine"),
        (&*empty.0, "not a runtime"),
        (&*qinlings.0, "built for Qinling (it listens on port 9090)"),
        (&*broken.0, "the shim '/no/such/shim': No such file"),
    ];
    for (image, why) in cases {
        let body = json!({"image": image});
        let id = service.ask("admin", "POST", "/v1/runtimes", Some(body)).await.expect(201)["id"].clone();
        let path = format!("/v1/runtimes/{}", id.as_str().unwrap());
        let mut runtime = Value::Null;
        eventually("the runtime has failed", async || {
            runtime = service.get(&path).await.expect(200);
            runtime["status"] == "error"
        })
        .await;
        assert!(runtime["status_reason"].as_str().unwrap().contains(why), "{runtime}");
        let answer = service.create_function("demo", id.as_str().unwrap(), &package(HELLO), &[]).await;
        assert_eq!(
            answer.expect(400)["faultstring"],
            format!("Runtime {} is not available.", id.as_str().unwrap())
        );
        service.ask("admin", "DELETE", &path, None).await.expect(204);
    }
    service.stop_clean().await;
}

#[tokio::test]
async fn a_runtime_whose_image_is_gone_says_so_at_once_and_works_again_when_it_is_back() {
    let service = Service::start(&[("engine.pool_size", "0")]).await;
    let image = DerivedImage::build(&service.home.deployment);
    let runtime = service.runtime_of(&image.0).await;
    let path = format!("/v1/runtimes/{runtime}");
    let hello = service.function("demo", &runtime, HELLO, &[]).await;
    assert_eq!(service.execute("demo", &hello, "").await["status"], "success");

    let detach = format!("/v1/functions/{hello}/detach");
    assert_eq!(service.ask("admin", "POST", &detach, None).await.status, 202);
    eventually("nothing runs on the image", async || service.home.containers().is_empty()).await;
    image.remove();

    let said = "is not on this machine";
    eventually("the runtime says why", async || {
        let ended = service.execute("demo", &hello, "").await;
        assert_eq!((&ended["status"], &result(&ended)["reason"]), (&json!("error"), &json!("preparation")));
        assert!(result(&ended)["detail"].as_str().unwrap().contains(said), "{ended}");
        let shown = service.get(&path).await.expect(200);
        shown["status_reason"].as_str().is_some_and(|why| why.contains(&image.0) && why.contains(said))
    })
    .await;

    image.make();
    eventually("the image is found", async || {
        service.get(&path).await.expect(200)["status_reason"].is_null()
    })
    .await;
    assert_eq!(service.execute("demo", &hello, "").await["status"], "success");
    service.stop_clean().await;
}

#[tokio::test]
async fn calls_that_waited_while_another_package_was_uploaded_run_that_one() {
    let service = Service::start(&[("engine.max_workers", "1")]).await;
    let runtime = service.runtime().await;
    let busy = "import time\ndef main(**kwargs):\n    time.sleep(3)\n";
    let other = service.function("other", &runtime, busy, &[]).await;
    let function = service.function("demo", &runtime, "def main(**kwargs):\n    return 'old'\n", &[]).await;
    let holding = service.accept("other", &other, "").await;
    eventually("the only worker is taken", async || !service.workers(&other).await.is_empty()).await;

    let accepted = service.accept("demo", &function, "").await;
    let upload = async {
        eventually("both calls wait", async || service.metric("taibai_queue_waiting").await == 2.0).await;
        let new = package("def main(**kwargs):\n    return 'new'\n");
        let path = format!("/v1/functions/{function}");
        service.upload("demo", "PUT", &path, &[], Some(&new)).await.expect(200);
    };
    let (called, ()) = tokio::join!(service.execute("demo", &function, ""), upload);
    assert_eq!((&called["status"], output(&called)), (&json!("success"), json!("new")), "{called}");
    let ended = service.ended("demo", &accepted).await;
    assert_eq!((&ended["status"], output(&ended)), (&json!("success"), json!("new")), "{ended}");
    assert_eq!(service.ended("other", &holding).await["status"], "success");
    service.stop_clean().await;
}

/// The runtime of the tests under a name and an id of its own, removed at the end.
struct DerivedImage(String);

impl DerivedImage {
    fn build(name: &str) -> Self {
        let image = Self(format!("taibai-{name}:1"));
        image.make();
        image
    }

    fn make(&self) {
        let mut build = Command::new("docker")
            .args(["build", "-q", "-t", &self.0, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let dockerfile = format!("FROM {}\nLABEL name={}\n", required("TAIBAI_TEST_IMAGE"), self.0);
        build.stdin.take().unwrap().write_all(dockerfile.as_bytes()).unwrap();
        assert!(build.wait().unwrap().success());
    }

    fn remove(&self) {
        let removed = Command::new("docker").args(["rmi", &self.0]).output().unwrap();
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    }
}

impl Drop for DerivedImage {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "-f", &self.0]).output();
    }
}

/// An image without anything in it, removed at the end.
struct EmptyImage(String);

impl EmptyImage {
    fn import(name: &str, changes: &[&str]) -> Self {
        let name = format!("taibai-test-{name}:{}", std::process::id());
        let mut import = Command::new("docker")
            .arg("import")
            .args(changes.iter().flat_map(|change| ["--change", change]))
            .args(["-", &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The end of an archive, and nothing before it.
        import.stdin.take().unwrap().write_all(&[0; 1024]).unwrap();
        assert!(import.wait().unwrap().success());
        Self(name)
    }
}

impl Drop for EmptyImage {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["rmi", "-f", &self.0]).output();
    }
}

#[tokio::test]
async fn a_runtime_moves_to_a_new_image_and_its_functions_follow() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let hello = service.function("demo", &runtime, HELLO, &[]).await;
    let before = service.home.containers();
    let next = NextImage::build();

    let path = format!("/v1/runtimes/{runtime}");
    let answer = service.ask("admin", "PUT", &path, Some(json!({"image": next.0}))).await.expect(200);
    assert_eq!((&answer["status"], &answer["image"]), (&json!("upgrading"), &json!(next.0)));
    eventually("the runtime is available again", async || {
        service.get(&path).await.expect(200)["status"] == "available"
    })
    .await;

    let shown = service.get(&path).await.expect(200);
    assert_eq!((&shown["image"], &shown["status_reason"]), (&json!(next.0), &Value::Null));
    assert_eq!(output(&service.execute("demo", &hello, "").await), "Hello, World");
    eventually("the old image's workers are gone", async || {
        service.home.containers().iter().all(|container| !before.contains(container))
    })
    .await;
    service.stop_clean().await;
}

/// The runtime's image under another id, removed at the end.
struct NextImage(String);

impl NextImage {
    fn build() -> Self {
        let name = format!("taibai-test-next:{}", std::process::id());
        let mut build = Command::new("docker")
            .args(["build", "--quiet", "--tag", &name, "-"])
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let image = crate::service::required("TAIBAI_TEST_IMAGE");
        write!(build.stdin.take().unwrap(), "FROM {image}\nLABEL next=yes\n").unwrap();
        assert!(build.wait().unwrap().success());
        Self(name)
    }
}

impl Drop for NextImage {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["rmi", "-f", &self.0]).output();
    }
}

#[tokio::test]
async fn numbers_reach_a_function_as_they_were_written_by_call_and_by_webhook() {
    const NUMBERS: &str =
        r#"{"long":123456789012345678901234567890,"nested":{"exact":0.10000000000000000001}}"#;
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let source = "def main(long, nested, **kwargs):\n    return f'{long} {nested}'\n";
    let function = service.function("demo", &runtime, source, &[]).await;
    let done = service.execute("demo", &function, NUMBERS).await;
    assert_eq!(output(&done), "123456789012345678901234567890 {'exact': 0.1}", "{done}");
    assert_eq!(done["input"], NUMBERS);

    let new = json!({"function_id": function, "mode": "sync"});
    let webhook = service.ask("demo", "POST", "/v1/webhooks", Some(new)).await.expect(201);
    let url = webhook["webhook_url"].as_str().unwrap();
    let request = service.request("", "POST", &url[url.find("/v1/").unwrap()..]);
    let sent = request.header("content-type", "application/json").body(NUMBERS).send().await.unwrap();
    assert!(sent.text().await.unwrap().contains("123456789012345678901234567890"));
    service.stop_clean().await;
}

#[tokio::test]
async fn the_services_log_has_no_input_no_output_and_nothing_that_a_function_wrote() {
    let service = Service::start(&[("logging.level", "debug")]).await;
    let runtime = service.runtime().await;
    let source = "def main(word, **kwargs):\n    print('printed', word)\n    if word.endswith('raises'):\n        \
                  raise ValueError(word)\n    return {'given': word}\n";
    let function = service.function("demo", &runtime, source, &[]).await;
    for word in ["canary-returns", "canary-raises"] {
        let input = json!({"word": word}).to_string();
        let done = service.execute("demo", &function, &input).await;
        assert!(done["result"].as_str().unwrap().contains(word), "{done}");
        let id = service.accept("demo", &function, &input).await;
        service.ended("demo", &id).await;
        assert!(service.execution_log("demo", &id).await.contains(&format!("printed {word}")));
    }
    let new = json!({"function_id": function, "mode": "sync", "secret": "canary-secret"});
    let webhook = service.ask("demo", "POST", "/v1/webhooks", Some(new)).await.expect(201);
    let url = webhook["webhook_url"].as_str().unwrap();
    let path = format!("{}?word=canary-query", &url[url.find("/v1/").unwrap()..]);
    service.ask("", "POST", &path, Some(json!({"word": "canary-body"}))).await.expect(401);
    let job = json!({"function_id": function, "pattern": "* * * * * *", "count": 1,
                     "function_input": "{\"word\": \"canary-job\"}"});
    let job = service.ask("demo", "POST", "/v1/jobs", Some(job)).await.expect(201);
    let runs = format!("/v1/executions?description=has:{}", job["id"].as_str().unwrap());
    eventually("the job has run", async || {
        let listed = service.ask("demo", "GET", &runs, None).await.expect(200);
        listed["executions"][0]["status"] == "success"
    })
    .await;
    let log = service.log();
    assert!(log.contains("execution") && !log.contains("canary"), "{log}");
    service.stop_clean().await;
}
