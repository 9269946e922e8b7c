//! What a project may have, and how fast it may ask.

use futures_util::future::join_all;

use super::*;
use crate::config::Quotas;

async fn site_within(quotas: Quotas) -> Site {
    site_configured(Policy::default(), Authenticator::Noauth, |config| config.quotas = quotas).await
}

fn over(resource: &str, limit: u64, used: u64, requested: u64) -> (u16, String) {
    (403, format!("Quota exceeded for {resource}: limit {limit}, used {used}, requested {requested}."))
}

impl Site {
    async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask_json("demo", Method::POST, path, body).await
    }
}

#[actix_web::test]
async fn who_has_as_much_as_it_may_gets_no_more_until_something_goes() {
    let site = site_within(Quotas {
        functions: 2,
        function_versions: 1,
        function_aliases: 1,
        jobs: 1,
        webhooks: 1,
        concurrent_executions: 2,
        ..Quotas::default()
    })
    .await;
    let (id, other) = (site.create(&numbered(0)).await, site.create(&numbered(1)).await);
    let files = site.files();
    let fields = [("runtime_id", AVAILABLE), ("code", r#"{"source": "package"}"#)];
    let refused = site.form(Method::POST, "/v1/functions", &fields, Some(&numbered(2))).await;
    assert_eq!(refused.fault(), over("functions", 2, 2, 1));
    assert_eq!(site.files(), files, "the package of what was refused is gone");

    assert_eq!(site.publish(&id).await.status, 201);
    assert_eq!(site.publish(&other).await.fault(), over("function_versions", 1, 1, 1));
    // What else stands in the way is said first.
    assert_eq!(site.publish(&id).await.status, 403);
    let unchanged = site.publish(&id).await.fault().1;
    assert!(unchanged.contains("not changed since"), "{unchanged}");

    let alias = |name: &str| json!({"name": name, "function_id": id, "function_version": 1});
    assert_eq!(site.post("/v1/aliases", alias("a")).await.status, 201);
    assert_eq!(site.post("/v1/aliases", alias("b")).await.fault(), over("function_aliases", 1, 1, 1));

    let job = || json!({"function_id": id, "pattern": "0 21 * * *"});
    let made = site.post("/v1/jobs", job()).await.json();
    assert_eq!(site.post("/v1/jobs", job()).await.fault(), over("jobs", 1, 1, 1));
    // One that is over counts no more.
    let path = format!("/v1/jobs/{}", made["id"].as_str().unwrap());
    let cancelled = site.ask_json("demo", Method::PUT, &path, json!({"status": "cancelled"})).await;
    assert_eq!(cancelled.status, 200);
    assert_eq!(site.post("/v1/jobs", job()).await.status, 201);

    let webhook = || json!({"function_id": id});
    let made = site.post("/v1/webhooks", webhook()).await.json();
    assert_eq!(site.post("/v1/webhooks", webhook()).await.fault(), over("webhooks", 1, 1, 1));

    let call = || json!({"function_id": id, "sync": false});
    assert_eq!(site.post("/v1/executions", call()).await.status, 201);
    let url = made["webhook_url"].as_str().unwrap();
    let url = &url[url.find("/v1").unwrap()..];
    let invoke = || TestRequest::with_uri(url).method(Method::POST).set_json(json!({}));
    assert_eq!(site.send(invoke()).await.status, 202, "it counts for the webhook's project");
    let full = over("concurrent_executions", 2, 2, 1);
    assert_eq!(site.send(invoke()).await.fault(), full);
    assert_eq!(site.post("/v1/executions", call()).await.fault(), full);
    let waiting = json!({"function_id": id, "sync": true});
    assert_eq!(site.post("/v1/executions", waiting).await.fault(), full, "also for who waits");
    let listed = site.ask("demo", Method::GET, "/v1/executions").await.json();
    let first = listed["executions"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed["executions"].as_array().unwrap().len(), 2);
    let cancel = site.ask("demo", Method::POST, &format!("/v1/executions/{first}/cancel")).await;
    assert_eq!(cancel.status, 200);
    assert_eq!(site.post("/v1/executions", call()).await.status, 201);

    let shown = site.ask("demo", Method::GET, "/v1/quotas").await.json();
    let usage = |limit: i64, used: u64| json!({"limit": limit, "used": used});
    let bytes = (numbered(0).len() + numbered(1).len()) as u64;
    assert_eq!(
        shown,
        json!({"project_id": "demo", "quotas": {
            "functions": usage(2, 2), "function_versions": usage(1, 1), "function_aliases": usage(1, 1),
            "jobs": usage(1, 1), "webhooks": usage(1, 1), "concurrent_executions": usage(2, 2),
            "package_bytes": usage(50 << 30, bytes),
        }})
    );
    assert_eq!(site.ask("admin:ops", Method::GET, "/v1/quotas/demo").await.json(), shown);
    let others = site.ask("alt", Method::GET, "/v1/quotas").await.json();
    assert_eq!(others["quotas"]["functions"], usage(2, 0));
    let hidden = site.ask("alt", Method::GET, "/v1/quotas/demo").await.fault();
    assert_eq!(hidden, (404, "Project not found [id=demo]".to_owned()));

    // Another project has its own.
    let image = json!({"code": {"source": "image", "image": "x"}});
    assert_eq!(site.ask_json("alt", Method::POST, "/v1/functions", image).await.status, 201);
    assert_eq!(site.ask("demo", Method::DELETE, &format!("/v1/functions/{other}")).await.status, 204);
    site.create(&numbered(3)).await;
}

#[actix_web::test]
async fn of_functions_that_are_created_at_once_as_many_are_as_there_is_room_for() {
    let site = site_within(Quotas { functions: 5, ..Quotas::default() }).await;
    let image = || json!({"code": {"source": "image", "image": "x"}});
    let answers = join_all((0..20).map(|_| site.post("/v1/functions", image()))).await;
    let made = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(made, 5);
    for refused in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!(refused.fault(), over("functions", 5, 5, 1));
    }
}

#[actix_web::test]
async fn packages_have_room_as_long_as_they_fit() {
    let size = numbered(0).len() as u64;
    let limit = i64::try_from(2 * size + 1).unwrap();
    let site = site_within(Quotas { package_bytes: limit, ..Quotas::default() }).await;
    let id = site.create(&numbered(0)).await;
    site.create(&numbered(0)).await;
    site.upload(&id, &numbered(1)).await;
    assert_eq!(site.files(), 2);
    // The first is another function's still.
    let path = format!("/v1/functions/{id}");
    assert_eq!(site.publish(&id).await.status, 201);
    let refused = site.form(Method::PUT, &path, &[], Some(&numbered(2))).await.fault();
    assert_eq!(refused, over("package_bytes", 2 * size + 1, 2 * size, size));
    let fields = [("runtime_id", AVAILABLE), ("code", r#"{"source": "package"}"#)];
    let refused = site.form(Method::POST, "/v1/functions", &fields, Some(&numbered(3))).await.fault();
    assert_eq!(refused, over("package_bytes", 2 * size + 1, 2 * size, size));
    assert_eq!(site.files(), 2, "nothing of what was refused is left");
    let zip = site.ask("demo", Method::GET, &format!("{path}?download=true")).await;
    assert_eq!(zip.body, numbered(1), "it is as it was");

    assert_eq!(site.ask("demo", Method::DELETE, &format!("{path}/versions/1")).await.status, 204);
    site.upload(&id, &numbered(2)).await;
    assert_eq!(site.files(), 2);
}

impl Site {
    /// The path at which a new webhook is called.
    async fn webhook(&self, body: Value) -> String {
        let made = self.post("/v1/webhooks", body).await.json();
        let url = made["webhook_url"].as_str().unwrap();
        url[url.find("/v1").unwrap()..].to_owned()
    }
}

/// Asks until it is refused; also how often it was not.
async fn until_refused(ask: impl AsyncFn() -> Answer) -> (usize, Answer) {
    for passed in 0..200 {
        let answer = ask().await;
        if ![200, 202].contains(&answer.status) {
            return (passed, answer);
        }
    }
    panic!("nothing was refused");
}

fn invoke(path: &str) -> TestRequest {
    TestRequest::with_uri(path).method(Method::POST).set_json(json!({}))
}

#[actix_web::test]
async fn a_project_that_asks_too_fast_is_told_when_to_come_again() {
    let site = site_within(Quotas { requests_per_second: 1, burst: 20, ..Quotas::default() }).await;
    let id = site.create(&numbered(0)).await;
    let webhook = site.webhook(json!({"function_id": id})).await;
    let private = site.webhook(json!({"function_id": id, "is_public": false})).await;
    let look = async || site.ask("demo", Method::GET, "/v1/jobs").await;
    let (passed, refused) = until_refused(look).await;
    assert!(passed >= 17, "{passed}");
    let (status, text) = refused.fault();
    assert_eq!((status, text.as_str()), (429, "Too many requests of project demo. Try again in 1 s."));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(site.ask("alt", Method::GET, "/v1/jobs").await.status, 200);
    assert_eq!(site.send(TestRequest::with_uri("/healthcheck")).await.status, 200);
    // Who shows a token asks for its project, also where a webhook is called.
    let call = async || site.send(invoke(&private).insert_header(("x-auth-token", "demo"))).await;
    assert_eq!(until_refused(call).await.1.status, 429);
    // Others that call its webhooks may go on.
    assert_eq!(site.send(invoke(&webhook)).await.status, 202);
}

#[actix_web::test]
async fn who_knows_the_url_of_a_webhook_does_not_keep_its_owner_out() {
    let site = site_within(Quotas { requests_per_second: 1, burst: 20, ..Quotas::default() }).await;
    let id = site.create(&numbered(0)).await;
    let webhook = site.webhook(json!({"function_id": id})).await;
    let signed = site.webhook(json!({"function_id": id, "secret": "hidden"})).await;
    // As often as this nobody may ask, had it counted.
    let started = std::time::Instant::now();
    let unsigned = join_all((0..60).map(|_| site.send(invoke(&signed)))).await;
    assert!(unsigned.iter().all(|answer| answer.status == 401), "none of them counts");
    assert!(started.elapsed().as_secs() < 40, "it was too slow to tell");

    let (passed, refused) = until_refused(async || site.send(invoke(&webhook)).await).await;
    assert!(passed >= 20, "{passed}");
    assert_eq!((refused.status, refused.header("retry-after")), (429, "1"));
    assert_eq!(site.ask("demo", Method::GET, "/v1/jobs").await.status, 200);
}
