//! The events of real requests.

use actix_web::HttpResponse;
use tokio::sync::Notify;

use super::*;
use crate::model::Caller;

async fn audited() -> (TempDir, Site) {
    audited_with(|_| ()).await
}

async fn audited_with(change: impl FnOnce(&mut Config)) -> (TempDir, Site) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.log");
    let site = site_configured(Policy::default(), Authenticator::Noauth, |config| {
        config.audit.enabled = true;
        config.audit.file = file;
        change(config);
    })
    .await;
    site.app.audit.as_ref().unwrap().refresh().unwrap();
    (directory, site)
}

fn events(directory: &TempDir) -> Vec<Value> {
    let text = std::fs::read_to_string(directory.path().join("audit.log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[actix_web::test]
async fn what_changes_something_leaves_one_event_each_and_what_only_looks_leaves_none() {
    let (directory, site) = audited().await;
    let made = site.create(&main_py()).await;
    for path in ["/v1/functions", "/v1/runtimes", "/", "/healthcheck", "/v1/quotas"] {
        assert_eq!(site.ask("demo", Method::GET, path).await.status, 200);
    }
    let path = format!("/v1/functions/{made}?with=query");
    let answer = site.ask_json("demo", Method::PUT, &path, json!({"name": "PRIVATE"})).await;
    let call = json!({"function_id": made, "sync": false, "input": "{\"password\": \"PRIVATE\"}"});
    let called = site.ask_json("demo", Method::POST, "/v1/executions", call).await.json();
    let hook = json!({"function_id": made, "secret": "PRIVATE"});
    let hook = site.ask_json("demo", Method::POST, "/v1/webhooks", hook).await.json();
    let url = hook["webhook_url"].as_str().unwrap();
    let key = url.split('/').nth_back(1).unwrap().to_owned();
    // Its key is another than its id from here on.
    let path = format!("/v1/webhooks/{}/rotate", hook["id"].as_str().unwrap());
    let rotated = site.ask("demo", Method::POST, &path).await.json();
    let url = rotated["webhook_url"].as_str().unwrap();
    let other = url.split('/').nth_back(1).unwrap().to_owned();
    assert_ne!(key, other);
    let path = format!("/v1/webhooks/{other}/invoke?k=PRIVATE");
    let invoked =
        site.send(TestRequest::with_uri(&path).method(Method::POST).set_json(json!({"a": "PRIVATE"}))).await;
    assert_eq!(invoked.status, 401, "it is not signed");
    let denied = site.ask("demo", Method::GET, "/v1/functions?all_projects=1").await;
    assert_eq!(denied.status, 403);
    assert_eq!(site.ask(":", Method::GET, "/v1/functions").await.status, 401);
    let missing = format!("/v1/jobs/{NOWHERE}");
    assert_eq!(site.ask("alt", Method::DELETE, &missing).await.status, 404);

    let events = events(&directory);
    let seen: Vec<_> = events
        .iter()
        .map(|event| {
            let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or("-");
            [
                text("/action"),
                text("/target/typeURI").strip_prefix("service/function-engine/").unwrap(),
                text("/target/id"),
                text("/outcome"),
                text("/reason/reasonCode"),
                text("/initiator/id"),
                text("/initiator/project_id"),
            ]
        })
        .collect();
    let (called, hook) = (called["id"].as_str().unwrap(), hook["id"].as_str().unwrap());
    let expected = [
        ["create", "functions", &made, "success", "201", "demo", "demo"],
        ["update", "functions", &made, "success", "200", "demo", "demo"],
        ["create", "executions", called, "success", "201", "demo", "demo"],
        ["create", "webhooks", hook, "success", "201", "demo", "demo"],
        ["update/rotate", "webhooks", hook, "success", "200", "demo", "demo"],
        ["start", "webhooks", hook, "failure", "401", "unknown", "-"],
        ["read/list", "functions", "unknown", "failure", "403", "demo", "demo"],
        ["read/list", "functions", "unknown", "failure", "401", "unknown", "-"],
        ["delete", "jobs", NOWHERE, "failure", "404", "alt", "alt"],
    ];
    assert_eq!(seen, expected);

    let update = &events[1];
    assert_eq!(update["typeURI"], "http://schemas.dmtf.org/cloud/audit/1.0/event");
    assert_eq!(update["eventType"], "activity");
    assert_eq!(update["requestPath"], format!("/v1/functions/{made}"));
    assert_eq!(update["initiator"]["request_id"], answer.header("x-openstack-request-id"));
    assert_eq!(update["initiator"]["typeURI"], "service/security/account/user");
    assert_eq!(update["observer"]["typeURI"], "service/function-engine");
    assert_eq!(update["reason"]["reasonType"], "HTTP");
    let time = update["eventTime"].as_str().unwrap();
    assert!(chrono::DateTime::parse_from_str(time, "%Y-%m-%dT%H:%M:%S%.f%z").is_ok(), "{time}");
    assert_eq!(events[5]["requestPath"], "/v1/webhooks/{key}/invoke");
    assert_eq!(events[5]["target"]["project_id"], "demo");
    let ids: std::collections::BTreeSet<_> = events.iter().map(|event| event["id"].to_string()).collect();
    assert_eq!(ids.len(), events.len());
    let all = serde_json::to_string(&events).unwrap();
    assert!(!all.contains("PRIVATE") && !all.contains(&other), "{all}");
}

#[actix_web::test]
async fn what_was_asked_by_a_caller_who_went_away_is_told_all_the_same() {
    let (directory, site) = audited().await;
    let started = Arc::new(Notify::new());
    let handler = {
        let started = Arc::clone(&started);
        move |_: Caller| {
            let started = Arc::clone(&started);
            async move {
                started.notify_one();
                std::future::pending::<HttpResponse>().await
            }
        }
    };
    let app = actix_web::App::new().app_data(site.app.clone()).wrap(from_fn(middleware::edge));
    let app = app.route("/v1/executions/{id}/cancel", web::to(handler));
    let service = init_service(app).await;
    let path = format!("/v1/executions/{NOWHERE}/cancel?k=PRIVATE");
    for method in [Method::POST, Method::GET] {
        let asked = request("demo", method, &path).peer_addr("192.0.2.7:4711".parse().unwrap());
        tokio::select! {
            biased;
            answer = call_service(&service, asked.to_request()) => panic!("{}", answer.status()),
            () = started.notified() => {}
        }
    }
    let events = events(&directory);
    assert_eq!(events.len(), 1, "{events:?}");
    let event = &events[0];
    assert_eq!((&event["outcome"], &event["action"]), (&json!("unknown"), &json!("stop")));
    assert_eq!(event.get("reason"), None);
    assert_eq!(event["initiator"]["id"], "demo");
    assert_eq!(event["initiator"]["project_id"], "demo");
    assert_eq!(event["initiator"]["host"]["address"], "192.0.2.7");
    assert_eq!(event["target"]["id"], NOWHERE);
    assert_eq!(event["target"]["project_id"], "demo");
    assert_eq!(event["requestPath"], path.trim_end_matches("?k=PRIVATE"));
}

#[actix_web::test]
async fn behind_a_proxy_the_client_is_named_beside_the_peer() {
    for is_behind_proxy in [true, false] {
        let (directory, site) =
            audited_with(|config| config.oslo_middleware.enable_proxy_headers_parsing = is_behind_proxy)
                .await;
        let missing = || {
            request("demo", Method::DELETE, &format!("/v1/jobs/{NOWHERE}"))
                .peer_addr("192.0.2.7:4711".parse().unwrap())
        };
        let forwarded = ("x-forwarded-for", "198.51.100.9, 203.0.113.7");
        assert_eq!(site.send(missing().insert_header(forwarded)).await.status, 404);
        assert_eq!(site.send(missing()).await.status, 404);
        let events = events(&directory);
        assert_eq!(events.len(), 2);
        assert!(
            events.iter().all(|event| event["initiator"]["host"]["address"] == "192.0.2.7"),
            "{events:?}"
        );
        let addresses = json!([{"name": "forwarded", "url": "203.0.113.7"}]);
        let expected = [is_behind_proxy.then_some(&addresses), None];
        assert_eq!([0, 1].map(|at: usize| events[at]["initiator"].get("addresses")), expected);
    }
}

#[actix_web::test]
async fn nobody_is_watched_unless_it_is_asked_for() {
    assert!(site().await.app.audit.is_none());
}
