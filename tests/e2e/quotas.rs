//! What a project of a cloud may have, who is asked about it, and what is written of who did what. Needs the
//! test cloud besides: `tests/cloud/up`.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};

use crate::cloud::{Cloud, Way};
use crate::service::{Answer, Home, Service, eventually, package, read, required};

/// A service that is registered in the cloud under a name of its own, and so has limits of its own there.
struct Registered {
    cloud: Cloud,
    name: String,
    service: Service,
}

const PASSWORD: &str = "of-the-service";

impl Registered {
    async fn start(way: &Way, cloud: Cloud, more: &[(&str, &str)]) -> Self {
        let name = format!("t-{}", uuid::Uuid::new_v4());
        let mut options = BTreeMap::from([
            ("api.auth_strategy", "keystone".to_owned()),
            ("keystone_authtoken.auth_url", way.section(&cloud).auth_url),
            ("keystone_authtoken.username", name.clone()),
            ("keystone_authtoken.password", PASSWORD.to_owned()),
            ("keystone_authtoken.project_name", name.clone()),
            ("keystone_authtoken.region_name", name.clone()),
            ("keystone_authtoken.service_type", name.clone()),
        ]);
        options.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
        let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let home = Home::new(&options);
        command(&home, &["register", "--public-url", "http://controller:7070", "--limits"]);
        Self { cloud, name, service: Service::start_in(home).await }
    }

    async fn runtime(&self, admin: &str) -> String {
        let body = json!({"image": required("TAIBAI_TEST_IMAGE"), "name": "python3"});
        let created = self.service.ask(admin, "POST", "/v1/runtimes", Some(body)).await.expect(201);
        let runtime = created["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/runtimes/{runtime}");
        eventually("the runtime is available", async || {
            self.service.ask(admin, "GET", &path, None).await.expect(200)["status"] == "available"
        })
        .await;
        runtime
    }

    /// Takes what was registered away, with the service.
    async fn stop(self) {
        let home = self.service.stop().await;
        assert_eq!(home.leftovers(), Vec::<String>::new());
        command(&home, &["unregister"]);
    }
}

/// Runs one of taibai's commands as the cloud's administrator.
fn command(home: &Home, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taibai"));
    let clouds = format!("{}/clouds.yaml", required("TAIBAI_TEST_CLOUD"));
    command.arg("--config-file").arg(home.config_file()).args(arguments);
    command.env("OS_CLOUD", "admin").env("OS_CLIENT_CONFIG_FILE", clouds);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const ECHO: &str = "def main(name='World', **_):\n    return name\n";

#[tokio::test]
async fn keystones_limits_hold_a_project_and_a_warm_call_asks_nobody() {
    let cloud = Cloud::open();
    let mut way = cloud.way().await;
    let file = tempfile::tempdir().unwrap();
    let audit = file.path().join("audit.log");
    let site = Registered::start(
        &way,
        cloud,
        &[
            ("quotas.driver", "unified_limits"),
            ("quotas.cache_time", "1s"),
            ("audit.enabled", "true"),
            ("audit.file", audit.to_str().unwrap()),
        ],
    )
    .await;
    let (service, cloud) = (&site.service, &site.cloud);
    let (admin, demo) = (cloud.token("admin").await, cloud.token("demo").await);
    let project = cloud.user("demo").await.info.project_id.clone().unwrap();
    let (admin, demo) = (admin.expose(), demo.expose());
    let runtime = site.runtime(admin).await;
    let section = taibai::config::KeystoneAuthtoken { service_type: site.name.clone(), ..cloud.section() };
    let keystone = crate::cloud::ours(&section).keystone;
    let (service_id, _) = keystone.service_in_catalog(&site.name).await.unwrap();

    let created = service.create_function(demo, &runtime, &package(ECHO), &[]).await.expect(201);
    let function = created["id"].as_str().unwrap();
    cloud.set_limit(&service_id, &site.name, &project, "webhooks", 0).await;
    cloud.set_limit(&service_id, &site.name, &project, "functions", 1).await;
    let shown = async || service.ask(demo, "GET", "/v1/quotas", None).await.expect(200);
    eventually("the limit counts", async || {
        shown().await["quotas"]["functions"] == json!({"limit": 1, "used": 1})
    })
    .await;
    let refused = service.create_function(demo, &runtime, &package("def main(): pass\n"), &[]).await;
    assert_eq!(
        refused.expect(403)["faultstring"],
        "Quota exceeded for functions: limit 1, used 1, requested 1."
    );
    let of_demo = format!("/v1/quotas/{project}");
    assert_eq!(service.ask(admin, "GET", &of_demo, None).await.expect(200)["project_id"], project);
    let alt = cloud.token("alt_demo").await;
    service.ask(alt.expose(), "GET", &of_demo, None).await.expect(404);

    // A call that waits asks neither Keystone nor the database for it; what is known is renewed beside it.
    service.execute(demo, function, r#"{"name": "warm"}"#).await;
    way.cut().await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    for _ in 0..20 {
        assert_eq!(service.execute(demo, function, "").await["status"], "success");
    }
    // And what it said last still holds while it is away.
    let hook = json!({"function_id": function});
    let refused = service.ask(demo, "POST", "/v1/webhooks", Some(hook)).await.expect(403);
    assert_eq!(refused["faultstring"], "Quota exceeded for webhooks: limit 0, used 0, requested 1.");
    way.mend().await;

    service.ask(demo, "DELETE", &format!("/v1/functions/{function}"), None).await.expect(204);
    let events = std::fs::read_to_string(&audit).unwrap();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |action: &str, kind: &str, outcome: &str| {
        let kind = format!("service/{}/{kind}", site.name);
        let matches = |event: &&Value| {
            event["action"] == action
                && event["target"]["typeURI"] == kind.as_str()
                && event["outcome"] == outcome
        };
        events.iter().filter(matches).collect::<Vec<_>>()
    };
    assert_eq!(of("create", "executions", "success").len(), 21);
    let refused = of("create", "functions", "failure");
    assert_eq!(refused.len(), 1);
    assert_eq!(of("create", "webhooks", "failure").len(), 1);
    let user = cloud.user("demo").await;
    assert_eq!(refused[0]["initiator"]["id"], user.info.user_id.as_str());
    assert_eq!(refused[0]["initiator"]["name"], "demo");
    assert_eq!(refused[0]["initiator"]["project_id"], project);
    assert_eq!(refused[0]["reason"]["reasonCode"], "403");
    assert_eq!(of("delete", "functions", "success")[0]["target"]["id"], function);
    let text = serde_json::to_string(&events).unwrap();
    for secret in [demo, admin, PASSWORD, "warm"] {
        assert!(!text.contains(secret));
    }
    site.stop().await;
}

#[tokio::test]
async fn roles_of_keystone_may_what_their_names_say() {
    let cloud = Cloud::open();
    let way = cloud.way().await;
    let site = Registered::start(&way, cloud, &[("quotas.requests_per_second", "1000")]).await;
    let (service, cloud) = (&site.service, &site.cloud);
    let (admin, demo) = (cloud.token("admin").await, cloud.token("demo").await);
    let runtime = site.runtime(admin.expose()).await;
    let created = service.create_function(demo.expose(), &runtime, &package(ECHO), &[]).await.expect(201);
    let function = created["id"].as_str().unwrap();
    let hook = json!({"function_id": function});
    let hook = service.ask(demo.expose(), "POST", "/v1/webhooks", Some(hook)).await.expect(201);
    let (path, hook) = (format!("/v1/functions/{function}"), hook["id"].as_str().unwrap());

    let reader = cloud.user_with_roles("demo", &["reader"]).await;
    let manager = cloud.user_with_roles("demo", &["manager"]).await;
    let another = cloud.user_with_roles("demo", &["service"]).await;
    let alt = cloud.token("alt_demo").await;
    let requests = [
        ("GET", path.clone(), None),
        ("GET", "/v1/quotas".to_owned(), None),
        ("PUT", path.clone(), Some(json!({"name": "x"}))),
        ("GET", format!("/v1/webhooks/{hook}"), None),
        ("GET", format!("{path}/workers"), None),
        ("POST", format!("{path}/detach"), None),
        ("POST", format!("{path}/scale_up"), Some(json!({"count": 1}))),
        ("GET", "/v1/functions?all_projects=true".to_owned(), None),
        ("DELETE", path.clone(), None),
    ];
    // The last is refused to all: the function has a webhook.
    for (who, token, expected) in [
        ("reader", reader.token.expose(), [200, 200, 403, 403, 403, 403, 403, 403, 403]),
        ("manager", manager.token.expose(), [200, 200, 200, 200, 200, 202, 403, 403, 403]),
        ("member", demo.expose(), [200, 200, 200, 200, 403, 403, 403, 403, 403]),
        ("service", another.token.expose(), [403, 403, 403, 403, 403, 403, 403, 403, 403]),
        ("foreign", alt.expose(), [404, 200, 404, 404, 403, 403, 403, 403, 404]),
        ("admin", admin.expose(), [200, 200, 200, 200, 200, 202, 202, 200, 403]),
        ("nobody", "", [401; 9]),
    ] {
        for ((method, path, body), expected) in requests.iter().zip(expected) {
            let answer = service.ask(token, method, path, body.clone()).await;
            assert_eq!(answer.status, expected, "{who}: {method} {path}: {}", answer.text());
        }
    }
    for guest in [reader, manager, another] {
        cloud.forget(guest).await;
    }
    service.ask(demo.expose(), "DELETE", &format!("/v1/webhooks/{hook}"), None).await.expect(204);
    service.ask(demo.expose(), "DELETE", &path, None).await.expect(204);
    site.stop().await;
}

#[tokio::test]
async fn services_vouch_for_users_and_application_credentials_keep_to_their_rules() {
    let cloud = Cloud::open();
    let way = cloud.way().await;
    // Takes its time, while no connection is kept.
    let expired = cloud.expired_token().await;
    let site = Registered::start(&way, cloud, &[]).await;
    let (service, cloud) = (&site.service, &site.cloud);
    let (admin, demo) = (cloud.token("admin").await, cloud.token("demo").await);
    let runtime = site.runtime(admin.expose()).await;
    let created = service.create_function(demo.expose(), &runtime, &package(ECHO), &[]).await.expect(201);
    let function = created["id"].as_str().unwrap();
    let rule = |method: &str, path: &str| json!({"service": &site.name, "method": method, "path": path});
    let rules = json!([
        rule("GET", "/v1/functions/{function_id}"),
        rule("POST", "/v1/executions"),
        rule("GET", "/v1/executions/**"),
        // Another service's says nothing here.
        {"service": "compute", "method": "DELETE", "path": "/**"},
    ]);
    let restricted = cloud.application_credential(Some(rules)).await;
    let restricted = restricted.expose();
    let path = format!("/v1/functions/{function}");
    service.ask(restricted, "GET", &path, None).await.expect(200);
    service.ask(restricted, "GET", &format!("{path}/"), None).await.expect(200);
    let ran = service.execute(restricted, function, "").await;
    assert_eq!(ran["status"], "success");
    let log = format!("/v1/executions/{}/log", ran["id"].as_str().unwrap());
    assert_eq!(service.ask(restricted, "GET", &log, None).await.status, 200);
    for (method, path) in [
        ("GET", "/v1/functions".to_owned()),
        ("GET", format!("{path}/versions")),
        ("GET", "/v1/executions".to_owned()),
        ("DELETE", path.clone()),
        ("PUT", path.clone()),
        ("GET", "/v1/quotas".to_owned()),
        // What is meant counts, however it is written.
        ("GET", format!("//v1//functions//{function}/versions/")),
        ("GET", format!("{path}/../../jobs")),
        ("GET", format!("{path}%2Fversions")),
    ] {
        let answer = service.ask(restricted, method, &path, None).await;
        let refused = [401, 404].contains(&answer.status);
        assert!(refused, "{method} {path}: {} {}", answer.status, answer.text());
    }
    let text = service.ask(restricted, "GET", "/v1/functions", None).await.expect(401);
    let rules =
        "Failed to validate access token: The access rules of the application credential do not allow this";
    assert_eq!(text["faultstring"], rules);

    // With the token of a service beside it: the rules were asked where the way began.
    let vouching = cloud.token("taibai").await;
    let with = async |token: &str, vouching: &str, method: &str, path: &str| -> Answer {
        read(service.request(token, method, path).header("x-service-token", vouching)).await
    };
    with(restricted, vouching.expose(), "GET", "/v1/functions").await.expect(200);
    let refused = service.ask(expired.expose(), "GET", &path, None).await.expect(401);
    assert_eq!(refused["faultstring"], "Failed to validate access token: Auth token is invalid");
    with(expired.expose(), vouching.expose(), "GET", &path).await.expect(200);
    assert_eq!(
        service.ask(expired.expose(), "GET", &path, None).await.status,
        401,
        "it holds for one request"
    );
    // A user vouches for nobody, and so does an old token.
    for other in [demo.expose(), expired.expose(), "gAAAA"] {
        let refused = with(expired.expose(), other, "GET", &path).await.expect(401);
        assert_eq!(refused["faultstring"], "Failed to validate access token: Service token is invalid");
    }
    let refused = with("gAAAA", vouching.expose(), "GET", &path).await;
    assert_eq!(refused.status, 401);
    let log = service.log();
    assert!(!log.contains(restricted) && !log.contains(vouching.expose()) && !log.contains(expired.expose()));
    service.ask(demo.expose(), "DELETE", &path, None).await.expect(204);
    site.stop().await;
}
