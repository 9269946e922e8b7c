//! Callers with real tokens. Needs the test cloud besides: `tests/cloud/up`.

use std::collections::BTreeMap;

use serde_json::json;

use crate::cloud::{Cloud, Way};
use crate::operations::{doubtful, secret_file, upgrade_check};
use crate::service::{Home, Service, eventually, package, required};

/// A service that knows callers by Keystone, which it reaches this way.
async fn service(cloud: &Cloud, way: &Way, cache: &str) -> Service {
    let account = cloud.account("taibai");
    let options = BTreeMap::from([
        ("api.auth_strategy", "keystone".to_owned()),
        ("keystone_authtoken.www_authenticate_uri", "http://controller:5000/v3".to_owned()),
        ("keystone_authtoken.auth_url", way.section(cloud).auth_url),
        ("keystone_authtoken.username", account.auth.username.clone()),
        ("keystone_authtoken.password", account.auth.password.clone()),
        ("keystone_authtoken.project_name", account.auth.project_name.clone()),
        ("keystone_authtoken.region_name", "nowhere".to_owned()),
        ("keystone_authtoken.token_cache_time", cache.to_owned()),
    ]);
    let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
    Service::start(&options).await
}

#[tokio::test]
async fn who_has_no_good_token_is_nobody() {
    let cloud = Cloud::open();
    let mut way = cloud.way().await;
    let service = service(&cloud, &way, "1s").await;
    for (token, words) in [("", "Authentication required"), ("gAAAAA-nonsense", "Auth token is invalid")] {
        for path in ["/v1/functions", "/v1/runtimes", "/v1/executions"] {
            let answer = service.ask(token, "GET", path, None).await;
            let text = format!("Failed to validate access token: {words}");
            assert_eq!(answer.expect(401)["faultstring"], text.as_str());
            assert_eq!(answer.headers["server-error-message"], text.as_str());
            assert_eq!(answer.headers["www-authenticate"], "Keystone uri=\"http://controller:5000/v3\"");
            assert_eq!(answer.headers["content-type"], "application/json");
        }
    }
    for path in ["/", "/v1", "/v1/", "/healthcheck"] {
        assert_eq!(service.ask("gAAAAA-nonsense", "GET", path, None).await.status, 200, "{path}");
    }
    assert_eq!(service.get("/v1/nothing").await.status, 404);

    // What was good may be revoked.
    let token = cloud.token("demo").await;
    let asked = async || service.ask(token.expose(), "GET", "/v1/functions", None).await.status;
    assert_eq!(asked().await, 200);
    cloud.revoke(&token).await;
    eventually("the token stops", async || asked().await == 401).await;

    // While Keystone is away nobody is told that a token is no good.
    way.cut().await;
    let new = cloud.token("demo").await;
    let answer = service.ask(new.expose(), "GET", "/v1/functions", None).await;
    assert_eq!(answer.expect(503)["faultstring"], "The identity service is unavailable");
    assert!(answer.headers.contains_key("retry-after"));
    way.mend().await;
    assert_eq!(service.ask(new.expose(), "GET", "/v1/functions", None).await.status, 200);
    assert!(!service.log().contains(new.expose()) && !service.log().contains(token.expose()));
    service.stop_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_check_asks_keystone_for_the_endpoint_and_swift_for_packages() {
    let cloud = Cloud::open();
    let way = cloud.way().await;
    let account = cloud.account("taibai");
    let mut home = Home::new(&[]);
    for (key, value) in [
        ("api.auth_strategy", "keystone"),
        ("keystone_authtoken.auth_url", &way.section(&cloud).auth_url),
        ("keystone_authtoken.username", &account.auth.username),
        ("keystone_authtoken.password_file", &secret_file(home.path(), "word", &account.auth.password)),
        ("keystone_authtoken.project_name", &account.auth.project_name),
        ("keystone_authtoken.region_name", "nowhere"),
    ] {
        home.set(key, value);
    }
    home.make_tables().await;
    let (status, table, checks) = upgrade_check(&home);
    assert_eq!((status, doubtful(&checks)), (1, vec![("Keystone", 1)]), "{table}");
    assert!(table.contains("the catalog has no endpoint of"), "{table}");

    // A type that the catalog has.
    home.unset("keystone_authtoken.region_name");
    home.set("keystone_authtoken.service_type", "object-store");
    home.set("storage.driver", "swift");
    home.set("storage.container", &format!("check-{}", home.deployment));
    let (status, table, checks) = upgrade_check(&home);
    assert_eq!((status, doubtful(&checks)), (0, vec![]), "{table}");
    let details = |name: &str| checks.iter().find(|(check, ..)| check == name).unwrap().2.clone();
    assert!(details("Keystone").starts_with("object-store is at http"), "{table}");
    assert!(details("Package storage").contains("which the first start makes"), "{table}");

    home.unset("keystone_authtoken.password_file");
    home.set("keystone_authtoken.password", "wrong");
    let (status, table, checks) = upgrade_check(&home);
    assert_eq!((status, doubtful(&checks)), (2, vec![("Keystone", 2), ("Package storage", 2)]), "{table}");
}

#[tokio::test]
async fn two_projects_do_not_see_each_other() {
    let cloud = Cloud::open();
    let mut way = cloud.way().await;
    let service = service(&cloud, &way, "300s").await;
    let (admin, demo, alt) =
        (cloud.token("admin").await, cloud.token("demo").await, cloud.token("alt_demo").await);
    let (admin, demo, alt) = (admin.expose(), demo.expose(), alt.expose());

    let body = json!({"image": required("TAIBAI_TEST_IMAGE"), "name": "python3"});
    assert_eq!(service.ask(demo, "POST", "/v1/runtimes", Some(body.clone())).await.status, 403);
    let runtime = service.ask(admin, "POST", "/v1/runtimes", Some(body)).await.expect(201);
    let runtime = runtime["id"].as_str().unwrap();
    let path = format!("/v1/runtimes/{runtime}");
    eventually("the runtime is available", async || {
        service.ask(demo, "GET", &path, None).await.expect(200)["status"] == "available"
    })
    .await;

    let source = package("def main(name='World', **_): return 'Hello, ' + name\n");
    let created = service.create_function(demo, runtime, &source, &[]).await.expect(201);
    let project = cloud.user("demo").await.info.project_id.clone().unwrap();
    assert_eq!(created["project_id"], project.as_str());
    let function = created["id"].as_str().unwrap();
    let path = format!("/v1/functions/{function}");
    assert_eq!(service.ask(alt, "GET", "/v1/functions", None).await.expect(200), json!({"functions": []}));
    assert_eq!(service.ask(alt, "GET", &path, None).await.status, 404);
    assert_eq!(service.ask(alt, "DELETE", &path, None).await.status, 404);
    let body = json!({"function_id": function});
    assert_eq!(service.ask(alt, "POST", "/v1/executions", Some(body)).await.status, 404);
    assert_eq!(service.ask(alt, "GET", "/v1/functions?all_projects=true", None).await.status, 403);
    let all = service.ask(admin, "GET", "/v1/functions?all_projects=true", None).await.expect(200);
    assert_eq!(all["functions"].as_array().unwrap().len(), 1);

    // A known caller's function runs without a word to Keystone, and so while it is away.
    assert_eq!(service.execute(demo, function, "").await["status"], "success");
    let before = service.metric("taibai_keystone_calls_total").await;
    way.cut().await;
    for _ in 0..10 {
        assert_eq!(service.execute(demo, function, "").await["status"], "success");
    }
    assert_eq!(service.metric("taibai_keystone_calls_total").await, before);
    assert!(before >= 4.0, "three tokens and our own");
    service.ask(demo, "DELETE", &path, None).await.expect(204);
    service.stop_clean().await;
}
