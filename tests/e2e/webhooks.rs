//! Webhooks: functions that are run by who knows a URL.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use taibai::db;
use taibai::model::{Timestamp, alias};

use crate::service::{Answer, Service, eventually, output, read};

const ECHO: &str = r#"
import time
def main(*args, **kwargs):
    kwargs.pop('context', None)
    if 'error' in kwargs:
        raise Exception(kwargs['error'])
    time.sleep(float(kwargs.get('seconds', 0)))
    return args[0] if args else kwargs
"#;

async fn create(service: &Service, body: Value) -> Value {
    service.ask("demo", "POST", "/v1/webhooks", Some(body)).await.expect(201)
}

fn path_of(webhook: &Value) -> String {
    format!("/v1/webhooks/{}", webhook["id"].as_str().unwrap())
}

/// The path in the URL of a webhook.
fn url_of(service: &Service, webhook: &Value) -> String {
    let url = webhook["webhook_url"].as_str().unwrap();
    url.strip_prefix(&service.url).unwrap_or_else(|| panic!("{url} is not at {}", service.url)).to_owned()
}

async fn post(service: &Service, who: &str, path: &str, body: &Value) -> Answer {
    service.ask(who, "POST", path, Some(body.clone())).await
}

#[track_caller]
fn fault(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["faultstring"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn who_knows_the_url_runs_the_function_without_a_token() {
    let service = Service::start(&[("api.max_body_bytes", "10000")]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, ECHO, &[]).await;
    let webhook = create(&service, json!({"function_id": function})).await;
    let url = url_of(&service, &webhook);
    let id = webhook["id"].as_str().unwrap();
    assert_eq!(url, format!("/v1/webhooks/{id}/invoke"));

    let accepted =
        post(&service, "", &format!("{url}?q=1"), &json!({"a": {"b": 1}, "id": "x"})).await.expect(202);
    let execution = accepted["execution_id"].as_str().unwrap();
    assert_eq!(accepted, json!({"execution_id": execution}));
    let ended = service.ended("demo", execution).await;
    assert_eq!(output(&ended), json!({"a": {"b": 1}, "id": "x", "q": "1"}));
    assert_eq!(ended["description"], format!("Created by Webhook {id}"));
    assert_eq!((&ended["sync"], &ended["project_id"]), (&json!(false), &json!("demo")));

    let request = service.request("", "POST", &format!("{url}/")).header("x-auth-token", ":");
    let form = request.header("content-type", "application/x-www-form-urlencoded").body("a=1&a=2");
    let accepted = read(form).await.expect(202);
    let ended = service.ended("demo", accepted["execution_id"].as_str().unwrap()).await;
    assert_eq!(ended["input"], "{\"a\":[\"1\",\"2\"]}");

    for method in ["GET", "PUT", "DELETE", "HEAD"] {
        assert_eq!(service.ask("demo", method, &url, None).await.status, 404, "{method}");
    }
    assert_eq!(post(&service, "", &url, &json!({"a": "x".repeat(20_000)})).await.status, 413);
    let nowhere = "/v1/webhooks/deadbeef-0000-4000-8000-00000000dead/invoke";
    let unknown = fault(&post(&service, "", nowhere, &json!({})).await);
    assert_eq!(unknown, (404, "Webhook not found [id=deadbeef-0000-4000-8000-00000000dead]".to_owned()));
    assert_eq!(post(&service, "", "/v1/webhooks/%00/invoke", &json!({})).await.status, 404);
    assert_eq!(post(&service, "", "/v1/webhooks/nothex/invoke", &json!({})).await.status, 404);
    service.ask("demo", "DELETE", &path_of(&webhook), None).await.expect(204);
    assert_eq!(post(&service, "", &url, &json!({})).await.status, 404);
    service.stop_clean().await;
}

#[tokio::test]
async fn a_caller_may_wait_for_the_output() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, ECHO, &[("timeout", "1")]).await;
    let webhook = create(&service, json!({"function_id": function, "mode": "sync"})).await;
    assert_eq!(webhook["mode"], "sync");
    let url = url_of(&service, &webhook);

    let done = post(&service, "", &url, &json!({"a": 1})).await.expect(200);
    assert_eq!((&done["status"], &done["output"]), (&json!("success"), &json!({"a": 1})));
    let row = service.execution("demo", done["execution_id"].as_str().unwrap()).await;
    assert_eq!((&row["sync"], &row["status"]), (&json!(true), &json!("success")));

    let failed = post(&service, "", &url, &json!({"error": "no"})).await.expect(502);
    assert_eq!((&failed["status"], &failed["output"]), (&json!("failed"), &json!("no")));
    assert_eq!(failed["faultstring"], "The function failed.");
    let late = post(&service, "", &url, &json!({"seconds": 9})).await.expect(504);
    assert_eq!(late["output"], "Function execution timeout.");

    let plain =
        service.ask("demo", "PUT", &path_of(&webhook), Some(json!({"mode": "async"}))).await.expect(200);
    assert_eq!(plain["mode"], "async");
    post(&service, "", &url, &json!({})).await.expect(202);
    let odd = service.ask("demo", "PUT", &path_of(&webhook), Some(json!({"mode": "later"}))).await;
    assert_eq!(fault(&odd), (400, "mode must be async or sync.".to_owned()));
    service.stop_clean().await;
}

#[tokio::test]
async fn one_that_is_not_public_asks_who_calls() {
    let home = crate::service::Home::new(&[("api.auth_strategy", "http_basic")]);
    let file = home.path().join("users");
    let mut home = home;
    home.set("http_basic.user_file", &file.display().to_string());
    home.set("http_basic.admins", "root");
    let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
    let users = ["ann:P", "root:P:ops", "rita:P:ann:reader", "eve:P"];
    let lines: Vec<String> = users.iter().map(|user| user.replace('P', &hash("p"))).collect();
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    let service = Service::start_in(home).await;
    let ask = async |who: &str, method: &str, path: &str, body: Value| {
        let request = service.request("", method, path).header("content-type", "application/json");
        let request = if who.is_empty() { request } else { request.basic_auth(who, Some("p")) };
        read(request.body(body.to_string())).await
    };
    let image = crate::service::required("TAIBAI_TEST_IMAGE");
    let runtime = ask("root", "POST", "/v1/runtimes", json!({"image": image})).await.expect(201);
    let path = format!("/v1/runtimes/{}", runtime["id"].as_str().unwrap());
    eventually("the runtime is available", async || {
        ask("root", "GET", &path, json!({})).await.expect(200)["status"] == "available"
    })
    .await;
    let package = crate::service::package(ECHO);
    let form = reqwest_form(&package, runtime["id"].as_str().unwrap());
    let created = service.request("", "POST", "/v1/functions").basic_auth("ann", Some("p"));
    let created = created.header("content-type", "multipart/form-data; boundary=cut").body(form);
    let function = read(created).await.expect(201)["id"].as_str().unwrap().to_owned();

    let new = json!({"function_id": function, "is_public": false});
    let webhook = ask("ann", "POST", "/v1/webhooks", new).await.expect(201);
    assert_eq!(webhook["is_public"], false);
    let url = url_of(&service, &webhook);
    assert_eq!(ask("", "POST", &url, json!({})).await.status, 401);
    assert_eq!(ask("nobody", "POST", &url, json!({})).await.status, 401);
    assert_eq!(ask("eve", "POST", &url, json!({})).await.status, 404, "of another project");
    assert_eq!(ask("rita", "POST", &url, json!({})).await.status, 403, "a reader");
    for who in ["ann", "root"] {
        let accepted = ask(who, "POST", &url, json!({})).await.expect(202);
        let path = format!("/v1/executions/{}", accepted["execution_id"].as_str().unwrap());
        assert_eq!(ask("ann", "GET", &path, json!({})).await.expect(200)["project_id"], "ann");
    }
    // Readers do not see URLs, and another project nothing.
    assert_eq!(ask("rita", "GET", "/v1/webhooks", json!({})).await.status, 403);
    assert_eq!(ask("eve", "GET", &path_of(&webhook), json!({})).await.status, 404);
    let path = path_of(&webhook);
    ask("ann", "PUT", &path, json!({"is_public": true})).await.expect(200);
    ask("", "POST", &url, json!({})).await.expect(202);
    assert_eq!(ask("root", "PUT", &path, json!({"is_public": true})).await.status, 404, "owners only");
    assert_eq!(ask("root", "POST", &format!("{path}/rotate"), json!({})).await.status, 404);
    assert_eq!(ask("root", "GET", &path, json!({})).await.expect(200)["id"], webhook["id"]);
    assert_eq!(ask("root", "DELETE", &path, json!({})).await.status, 204);
    service.stop_clean().await;
}

fn reqwest_form(package: &[u8], runtime: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in [("runtime_id", runtime), ("code", r#"{"source": "package"}"#)] {
        let head = format!("--cut\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend(head.into_bytes());
    }
    body.extend(b"--cut\r\nContent-Disposition: form-data; name=\"package\"; filename=\"a.zip\"\r\n\r\n");
    body.extend(package);
    body.extend(b"\r\n--cut--\r\n");
    body
}

#[tokio::test]
async fn a_secret_asks_for_a_signature_and_a_rotation_ends_the_old_url() {
    let service = Service::start(&[("logging.level", "debug")]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, ECHO, &[]).await;
    let secret = "a secret between two";
    let webhook = create(&service, json!({"function_id": function, "secret": secret})).await;
    assert_eq!((&webhook["has_secret"], webhook.get("secret")), (&json!(true), None));
    let url = url_of(&service, &webhook);

    let body = r#"{"a": 1}"#;
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    let signature = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
    let call = async |url: &str, header: &str, signature: &str, body: &str| {
        let request = service.request("", "POST", url).header("content-type", "application/json");
        let request = if header.is_empty() { request } else { request.header(header, signature) };
        read(request.body(body.to_owned())).await
    };
    call(&url, "X-Taibai-Signature", &signature, body).await.expect(202);
    call(&url, "X-Hub-Signature-256", &signature, body).await.expect(202);
    assert_eq!(call(&url, "X-Taibai-Signature", &signature, "{\"a\": 2}").await.status, 401);
    let unsigned = call(&url, "", "", body).await;
    assert_eq!(unsigned.status, 401);
    assert!(fault(&unsigned).1.contains("X-Taibai-Signature"), "{}", unsigned.text());

    let path = path_of(&webhook);
    let rotated = service.ask("demo", "POST", &format!("{path}/rotate"), None).await.expect(200);
    let new = url_of(&service, &rotated);
    assert_ne!(new, url);
    assert_eq!((&rotated["id"], &rotated["has_secret"]), (&webhook["id"], &json!(true)));
    assert_eq!(call(&url, "X-Taibai-Signature", &signature, body).await.status, 404);
    let accepted = call(&new, "X-Taibai-Signature", &signature, body).await.expect(202);
    let ended = service.ended("demo", accepted["execution_id"].as_str().unwrap()).await;
    // Users find it by the id, which says nothing of the URL now.
    assert_eq!(ended["description"], format!("Created by Webhook {}", webhook["id"].as_str().unwrap()));
    assert_eq!(
        service.ask("demo", "GET", &path, None).await.expect(200)["webhook_url"],
        rotated["webhook_url"]
    );

    let without = service.ask("demo", "PUT", &path, Some(json!({"secret": ""}))).await.expect(200);
    assert_eq!(without["has_secret"], false);
    call(&new, "", "", body).await.expect(202);
    assert_eq!(service.ask("alt", "POST", &format!("{path}/rotate"), None).await.status, 404);

    let log = service.log();
    assert!(log.contains("/v1/webhooks/{key}/invoke"), "the route is logged");
    let key = new.trim_start_matches("/v1/webhooks/").trim_end_matches("/invoke");
    for hidden in [key, secret, &signature] {
        assert!(!log.contains(hidden), "{hidden} is in the log");
    }
    service.stop_clean().await;
}

/// The answer of a webhook that is going to be refused.
async fn once_refused(service: &Service, url: &str) -> Answer {
    let mut answer = post(service, "", url, &json!({})).await;
    eventually("the webhook is refused", async || {
        answer = post(service, "", url, &json!({})).await;
        answer.status >= 400
    })
    .await;
    answer
}

#[tokio::test]
async fn an_alias_is_looked_for_in_the_webhooks_own_project() {
    let service = Service::start(&[("api.public_endpoint", "https://cloud.example.org/functions/")]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, ECHO, &[]).await;
    let other = service.function("alt", &runtime, "def main(**kwargs):\n    return 'alt'\n", &[]).await;
    let database = service.home.database().await;
    // The same name in another project, and in this one a name for the function of another.
    for (project, name, function) in
        [("demo", "prod", &function), ("alt", "prod", &other), ("demo", "theirs", &other)]
    {
        let row = alias::Model {
            id: format!("{project}-{name}"),
            project_id: project.into(),
            name: name.to_owned(),
            function_id: function.as_str().into(),
            function_version: 0,
            description: None,
            canary_version: None,
            canary_weight: 0,
            previous_version: None,
            created_at: Timestamp::now(),
            updated_at: None,
        };
        db::aliases::insert(&database.writer(), row).await.unwrap();
    }
    let webhook = create(&service, json!({"function_alias": "prod", "mode": "sync"})).await;
    let url = format!("/v1/webhooks/{}/invoke", webhook["id"].as_str().unwrap());
    assert_eq!(webhook["webhook_url"], format!("https://cloud.example.org/functions{url}"));
    let done = post(&service, "", &url, &json!({"a": 1})).await.expect(200);
    assert_eq!(done["output"], json!({"a": 1}));
    let row = service.execution("demo", done["execution_id"].as_str().unwrap()).await;
    assert_eq!((&row["function_alias"], &row["function_id"]), (&json!("prod"), &json!(function)));

    let foreign =
        service.ask("demo", "POST", "/v1/webhooks", Some(json!({"function_alias": "theirs"}))).await;
    assert_eq!(fault(&foreign), (404, format!("Function not found [id={other}]")));
    // One that came to be another's after the webhook was made is not run either.
    let change = alias::ActiveModel {
        id: sea_orm::Set("demo-prod".to_owned()),
        function_id: sea_orm::Set(other.as_str().into()),
        function_version: sea_orm::Set(7),
        ..Default::default()
    };
    sea_orm::ActiveModelTrait::update(change, &database.writer()).await.unwrap();
    // Nobody tells the service, which then takes a moment.
    let refused = once_refused(&service, &url).await;
    assert_eq!(fault(&refused), (404, format!("Function not found [id={other}]")));

    // As only the id stands in the row, a webhook of a runtime that is away waits for nobody.
    let direct = create(&service, json!({"function_id": function})).await;
    taibai::db::runtimes::set_status(
        &database.writer(),
        &runtime.as_str().into(),
        &[taibai::model::RuntimeStatus::Available],
        taibai::model::RuntimeStatus::Error,
        None,
    )
    .await
    .unwrap();
    let url = format!("{}/invoke", path_of(&direct));
    let away = once_refused(&service, &url).await;
    assert_eq!(fault(&away), (409, format!("Runtime {runtime} is not available.")));
    database.close().await.unwrap();
    service.stop_clean().await;
}
