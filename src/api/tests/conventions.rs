//! What callers of OpenStack's APIs know from others: versions, tags, other origins, forwarded headers, health.

use super::*;

const VERSION: &str = "openstack-api-version";

impl Site {
    /// Asks for a version of the API.
    async fn ask_in(&self, version: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        let version = format!("function-engine {version}");
        let request = request("demo", method, path).insert_header((VERSION, version));
        self.send(match body {
            Some(body) => request.set_json(body),
            None => request,
        })
        .await
    }
}

#[actix_web::test]
async fn a_version_is_what_was_asked_for() {
    let site = site().await;
    let path = format!("/v1/runtimes/{AVAILABLE}");
    let plain = site.ask("demo", Method::GET, &path).await;
    assert_eq!(plain.header(VERSION), "function-engine 1.0");
    assert_eq!(plain.header("vary"), "OpenStack-API-Version, X-Auth-Token");
    for (asked, given) in [("1.0", "1.0"), ("1.1", "1.1"), ("latest", "1.1")] {
        let answer = site.ask_in(asked, Method::GET, &path, None).await;
        assert_eq!(answer.header(VERSION), format!("function-engine {given}"));
        let has_newer = answer.json().as_object().unwrap().contains_key("status_reason");
        assert_eq!(has_newer, given == "1.1", "{asked}");
    }
    // Who does not ask sees what was added too, behind all that Qinling has.
    assert!(plain.json().as_object().unwrap().contains_key("status_reason"));
    let listed = site.ask_in("1.0", Method::GET, "/v1/runtimes", None).await.json();
    let listed = listed["runtimes"].as_array().unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|row| row["status"].is_string() && row.get("status_reason").is_none()));

    let refused = site.ask_in("1.2", Method::GET, &path, None).await;
    let text = "Version 1.2 is not supported by the API. Minimum is 1.0 and maximum is 1.1.";
    assert_eq!(refused.fault(), (406, text.to_owned()));
    let malformed = site.ask_in("newest", Method::GET, &path, None).await;
    assert_eq!(malformed.fault().0, 400);
    // Discovery is for who does not know the versions yet.
    assert_eq!(site.ask_in("1.2", Method::GET, "/", None).await.status, 200);
}

#[actix_web::test]
async fn the_first_version_knows_nothing_newer() {
    let site = site().await;
    let id = site.create(&main_py()).await;
    let alias = json!({"name": "a", "function_id": id, "canary_weight": 5});
    let refused = site.ask_in("1.0", Method::POST, "/v1/aliases", Some(alias.clone())).await;
    assert_eq!(refused.fault(), (400, "Unknown attribute for argument body: canary_weight".to_owned()));
    let refused = site.ask_in("1.0", Method::GET, "/v1/functions?limit=1", None).await;
    assert_eq!(refused.fault(), (400, "Unknown argument: \"limit\"".to_owned()));
    assert_eq!(site.ask_in("1.1", Method::GET, "/v1/functions?limit=1", None).await.status, 200);

    let alias = json!({"name": "a", "function_id": id});
    let made = site.ask_in("1.0", Method::POST, "/v1/aliases", Some(alias)).await;
    assert_eq!((made.status, made.json().get("canary_weight")), (201, None));
    for (path, newer) in [
        ("/v1/aliases/a/rollback".to_owned(), 409),
        (format!("/v1/executions/{NOWHERE}/cancel"), 404),
        (format!("/v1/webhooks/{NOWHERE}/rotate"), 404),
    ] {
        let (status, text) = site.ask_in("1.0", Method::POST, &path, None).await.fault();
        assert_eq!((status, text.as_str()), (404, "The resource could not be found."), "{path}");
        let (status, text) = site.ask_in("1.1", Method::POST, &path, None).await.fault();
        assert!(status == newer || status == 400, "{path}: {status}");
        assert_ne!(text, "The resource could not be found.", "{path}");
    }
}

#[actix_web::test]
async fn who_has_an_answer_is_not_sent_it_again() {
    let site = site().await;
    let package = main_py();
    let id = site.create(&package).await;
    let path = format!("/v1/functions/{id}");
    let known = async |path: &str, tag: &str| {
        let request = request("demo", Method::GET, path).insert_header(("if-none-match", tag));
        site.send(request).await
    };
    for path in [path.clone(), format!("{path}?download=true")] {
        let first = site.ask("demo", Method::GET, &path).await;
        let tag = first.header("etag").to_owned();
        assert!(tag.starts_with('"') && tag.len() > 30, "{tag}");
        for header in [tag.clone(), format!("\"other\", W/{tag}"), "*".to_owned()] {
            let same = known(&path, &header).await;
            assert_eq!(
                (same.status, same.header("etag"), same.body.len()),
                (304, tag.as_str(), 0),
                "{header}"
            );
            assert!(same.header("vary").contains("OpenStack-API-Version"));
        }
        assert_eq!(known(&path, "\"other\"").await.body, first.body);
        // Whoever may not see it is not told that it is unchanged.
        let foreign = request("alt", Method::GET, &path).insert_header(("if-none-match", "*"));
        assert_eq!(site.send(foreign).await.status, 404);
    }
    let tag = site.ask("demo", Method::GET, &path).await.header("etag").to_owned();
    site.ask_json("demo", Method::PUT, &path, json!({"name": "other"})).await.json();
    assert_eq!(known(&path, &tag).await.json()["name"], "other");
    assert_eq!(site.ask("demo", Method::GET, "/v1/functions").await.header("etag"), "", "a list has none");
}

#[actix_web::test]
async fn pages_of_other_origins_call_it_where_they_may() {
    const PAGE: &str = "https://dashboard.example";
    let preflight = |origin| {
        TestRequest::with_uri("/v1/jobs")
            .method(Method::OPTIONS)
            .insert_header(("origin", origin))
            .insert_header(("access-control-request-method", "POST"))
    };
    let allow = "access-control-allow-origin";
    let closed = site().await;
    let answer = closed.send(preflight(PAGE)).await;
    assert_eq!((answer.status, answer.header(allow), answer.body.len()), (200, "", 0));

    let open = |config: &mut Config| config.cors.allowed_origin = vec![PAGE.to_owned()];
    let site = site_configured(Policy::default(), Authenticator::Noauth, open).await;
    let answer = site.send(preflight(PAGE)).await;
    assert_eq!((answer.status, answer.header(allow), answer.body.len()), (200, PAGE, 0));
    assert_eq!(answer.header("access-control-allow-methods"), "POST");
    let answer = site.send(preflight("https://evil.example")).await;
    assert_eq!((answer.status, answer.header(allow)), (200, ""));
    // Errors can be read as well.
    let wrong = request("demo", Method::GET, "/v1/nosuch").insert_header(("origin", PAGE));
    let answer = site.send(wrong).await;
    assert_eq!((answer.status, answer.header(allow)), (404, PAGE));
    let vary: Vec<_> = answer.headers.get_all("vary").map(|value| value.to_str().unwrap()).collect();
    assert!(vary.contains(&"Origin"), "{vary:?}");
}

#[actix_web::test]
async fn links_lead_where_the_caller_came_from() {
    let behind = |config: &mut Config| config.oslo_middleware.enable_proxy_headers_parsing = true;
    let proxied = site_configured(Policy::default(), Authenticator::Noauth, behind).await;
    let direct = site().await;
    for (site, base) in [(&proxied, "https://cloud.example/function-engine"), (&direct, "http://inner:7070")]
    {
        let ask = async |path: &str| {
            let request = request("demo", Method::GET, path)
                .insert_header(("host", "inner:7070"))
                .insert_header(("forwarded", "for=192.0.2.7;proto=https;host=cloud.example"))
                .insert_header(("x-forwarded-prefix", "/function-engine"));
            site.send(request).await.json()
        };
        assert_eq!(ask("/").await["versions"][0]["links"][0]["href"], format!("{base}/v1"));
        let version = ask("/v1").await;
        assert_eq!(version["uri"], format!("{base}/v1"));
        assert_eq!(version["version"]["links"][0]["href"], version["uri"]);
        assert_eq!(version["version"]["version"], "1.1");
        assert_eq!(ask("/api/openapi.json").await["servers"][0]["url"], base);
        let id = site.create(&main_py()).await;
        let made =
            site.ask_json("demo", Method::POST, "/v1/webhooks", json!({"function_id": id})).await.json();
        let shown = ask(&format!("/v1/webhooks/{}", made["id"].as_str().unwrap())).await;
        assert!(
            shown["webhook_url"].as_str().unwrap().starts_with(&format!("{base}/v1/webhooks/")),
            "{shown}"
        );
    }
}

#[actix_web::test]
async fn health_is_told_in_the_form_that_is_asked_for() {
    let site = site().await;
    let ask = async |method: Method, accept: &str| {
        let request = TestRequest::with_uri("/healthcheck").method(method).insert_header(("accept", accept));
        site.send(request).await
    };
    let text = ask(Method::GET, "*/*").await;
    assert_eq!((text.header("content-type"), &text.body[..]), ("text/plain", &b"OK"[..]));
    assert_eq!(text.header("vary"), "Accept");
    let json = ask(Method::GET, "application/json").await.json();
    assert_eq!(json["checks"]["database"], "ok");
    assert_eq!((&json["detailed"], &json["reasons"]), (&json!(false), &json!(["OK"])));
    let html = ask(Method::GET, "text/html,*/*;q=0.8").await;
    assert!(
        html.header("content-type").starts_with("text/html") && html.body.starts_with(b"<!DOCTYPE html>")
    );
    let head = ask(Method::HEAD, "*/*").await;
    assert_eq!((head.status, head.body.len()), (204, 0));
}

#[actix_web::test]
async fn the_api_describes_itself_to_anybody() {
    let site = site().await;
    let ask = async |path: &str| site.send(TestRequest::with_uri(path)).await;
    let document = ask("/api/openapi.json").await;
    assert_eq!(document.json()["openapi"], "3.1.0");
    assert_eq!(ask("/api/swagger.json").await.body, document.body);
    let again =
        TestRequest::with_uri("/api/openapi.json").insert_header(("if-none-match", document.header("etag")));
    assert_eq!(site.send(again).await.status, 304);
    for path in ["/api", "/api/"] {
        let page = ask(path).await;
        let policy = page.header("content-security-policy").to_owned();
        assert_eq!(page.status, 200);
        assert!(page.header("content-type").starts_with("text/html"));
        // What runs is the one script in the page.
        let text = std::str::from_utf8(&page.body).unwrap();
        let script = text.split("<script>").nth(1).unwrap().split("</script>").next().unwrap();
        let digest = BASE64_STANDARD.encode(<sha2::Sha256 as sha2::Digest>::digest(script));
        assert!(policy.contains(&format!("script-src 'sha256-{digest}'")), "{policy}");
        assert!(policy.starts_with("default-src 'none'"));
    }
}
