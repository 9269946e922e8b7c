//! Who may do what, and to whose things.

use super::*;

/// Routes that nobody is asked a token for.
const OPEN: [(&str, &str); 8] = [
    ("GET", "/"),
    ("GET", "/v1"),
    ("GET", "/api"),
    ("GET", "/api/openapi.json"),
    ("GET", "/api/swagger.json"),
    ("GET", "/healthcheck"),
    ("HEAD", "/healthcheck"),
    ("POST", "/v1/webhooks/{}/invoke"),
];

/// A path without its query and the names of its parts.
pub(super) fn bare(path: &str) -> String {
    let path = path.split('?').next().unwrap_or(path);
    let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[actix_web::test]
async fn runtimes_are_seen_by_their_project_or_by_all() {
    let site = site().await;
    let ids = |answer: Answer| -> Vec<String> {
        let rows = answer.json()["runtimes"].as_array().unwrap().clone();
        rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(site.ask("demo", Method::GET, "/v1/runtimes").await), [AVAILABLE, BROKEN]);
    assert_eq!(ids(site.ask("ops", Method::GET, "//v1//runtimes/").await), [AVAILABLE, BROKEN, PRIVATE]);
    // No more for an administrator of another project.
    let path = format!("/v1/runtimes/{PRIVATE}");
    assert_eq!(site.ask("admin:other", Method::GET, &path).await.status, 404);
    assert_eq!(site.ask("ops", Method::GET, &path).await.status, 200);
}

#[actix_web::test]
async fn what_only_admins_may_do_is_refused_to_members() {
    let site = site().await;
    let id = site.create(&main_py()).await;
    let body = || Some(json!({"count": 1}));
    for (method, path, body) in [
        (Method::POST, "/v1/runtimes".to_owned(), Some(json!({"image": "x"}))),
        (Method::PUT, format!("/v1/runtimes/{AVAILABLE}"), Some(json!({"name": "x"}))),
        (Method::DELETE, format!("/v1/runtimes/{AVAILABLE}"), None),
        (Method::GET, format!("/v1/runtimes/{AVAILABLE}/pool"), None),
        (Method::GET, "/v1/functions?all_projects=true".to_owned(), None),
        (Method::GET, "/v1/executions?all_projects=yes".to_owned(), None),
        (Method::GET, format!("/v1/functions/{id}/workers"), None),
        (Method::POST, format!("/v1/functions/{id}/scale_up"), body()),
        (Method::POST, format!("/v1/functions/{id}/scale_down"), body()),
        (Method::POST, format!("/v1/functions/{id}/detach"), None),
    ] {
        let answer = match body {
            Some(body) => site.ask_json("demo", method, &path, body).await,
            None => site.ask("demo", method, &path).await,
        };
        assert_eq!(answer.fault(), (403, "Operation not allowed".to_owned()), "{path}");
    }
    let path = format!("/v1/functions/{id}");
    let foreign = site.ask("admin:other", Method::DELETE, &path).await.fault();
    assert_eq!(foreign, (403, "Function can only be deleted by its owner.".to_owned()));
    assert_eq!(site.ask("alt", Method::DELETE, &path).await.status, 404);
}

#[actix_web::test]
async fn an_administrator_may_be_kept_from_the_versions_and_aliases_of_others() {
    let rules = ["function_version:get", "function_version:get_all", "function_version:scale_up"]
        .into_iter()
        .chain(["function_version:scale_down", "function_version:detach"])
        .chain(["function_alias:get", "function_alias:update", "function_alias:delete"]);
    let rules: String = rules.map(|rule| format!("{rule}: 'rule:owner'\n")).collect();
    let site = site_with(Policy::from_text(&rules).unwrap()).await;
    let id = site.create(&main_py()).await;
    site.publish(&id).await;
    site.alias("demo", json!({"name": "prod", "function_id": id})).await;
    let versions = format!("/v1/functions/{id}/versions");
    for (method, path, body) in [
        (Method::GET, versions.clone(), None),
        (Method::GET, format!("{versions}/1"), None),
        (Method::GET, format!("{versions}/1?download=true"), None),
        (Method::POST, format!("{versions}/1/scale_up"), Some(json!({}))),
        (Method::POST, format!("{versions}/1/scale_down"), Some(json!({}))),
        (Method::POST, format!("{versions}/1/detach"), None),
        (Method::GET, "/v1/aliases/prod".to_owned(), None),
        (Method::PUT, "/v1/aliases/prod".to_owned(), Some(json!({}))),
        (Method::POST, "/v1/aliases/prod/rollback".to_owned(), None),
        (Method::DELETE, "/v1/aliases/prod".to_owned(), None),
    ] {
        for (who, denied) in [("admin:ops", 403), ("alt", 404)] {
            let answer = match &body {
                Some(body) => site.ask_json(who, method.clone(), &path, body.clone()).await,
                None => site.ask(who, method.clone(), &path).await,
            };
            assert_eq!(answer.status, denied, "{who}: {method} {path}");
        }
    }
}

#[actix_web::test]
async fn every_route_asks_the_rule_that_is_documented_for_it_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, "").unwrap();
    let site = site_with(Policy::open(&file).unwrap()).await;
    site.ask("demo", Method::GET, "/").await;
    // All rules but some say the one thing, and those the other.
    let set = |all: &str, but: &[&str], other: &str| {
        let check = |name: &str| if but.contains(&name) { other } else { all };
        let rules: Value = RULES.iter().map(|rule| (rule.name.to_owned(), json!(check(rule.name)))).collect();
        std::fs::write(&file, rules.to_string()).unwrap();
        site.app.policy.refresh();
    };
    let mut routes: Vec<_> = TABLE.with_borrow(|table| table.iter().cloned().collect());
    routes.sort_by_key(|(method, path)| (path.clone(), method.to_string()));
    assert!(routes.len() > 20, "{routes:?}");
    for (method, path) in routes {
        let path = bare(&path);
        if OPEN.contains(&(method.as_str(), &path)) {
            continue;
        }
        let operations = RULES.iter().flat_map(|rule| rule.operations.iter().map(move |o| (rule.name, o)));
        let rules: Vec<_> =
            operations.filter(|(_, (verb, at))| *verb == method.as_str() && bare(at) == path).collect();
        assert!(!rules.is_empty(), "no rule in policy::RULES names {method} {path}");
        for (rule, (_, documented)) in rules {
            let mut parts = documented.splitn(2, '?');
            let path = bare(parts.next().unwrap()).replace("{}", NOWHERE);
            let path = parts.next().map_or(path.clone(), |query| format!("{path}?{query}"));
            let ask = async || match method {
                Method::POST | Method::PUT => site.ask_json("demo", method.clone(), &path, json!({})).await,
                _ => site.ask("demo", method.clone(), &path).await,
            };
            set("@", &[rule], "!");
            assert_eq!(
                ask().await.fault(),
                (403, "Operation not allowed".to_owned()),
                "{rule}: {method} {path}"
            );
            // The list itself is asked for as well.
            let list = rule.strip_suffix(":all_projects").unwrap_or(rule);
            set("!", &[rule, list], "@");
            assert!(![401, 403].contains(&ask().await.status), "more than {rule}: {method} {path}");
        }
    }
}

#[actix_web::test]
async fn an_administrator_may_be_kept_from_the_functions_of_others() {
    let rules = "function:get: 'rule:owner'\nfunction:delete: 'rule:owner'\nfunction:detach: 'rule:owner'\n\
                 function:update: 'rule:owner'\nfunction_worker:get_all: 'rule:owner'\n";
    let site = site_with(Policy::from_text(rules).unwrap()).await;
    let id = site.create(&main_py()).await;
    let path = format!("/v1/functions/{id}");
    let denied = (403, "Operation not allowed".to_owned());
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::GET, format!("{path}?download=true")),
        (Method::PUT, path.clone()),
        (Method::DELETE, path.clone()),
        (Method::POST, format!("{path}/detach")),
        (Method::GET, format!("{path}/workers")),
    ] {
        let ask = async |token: &str| match method {
            Method::PUT => site.ask_json(token, Method::PUT, &path, json!({"name": "x"})).await,
            _ => site.ask(token, method.clone(), &path).await,
        };
        assert_eq!(ask("admin:ops").await.fault(), denied, "{method} {path}");
        // To others it does not exist.
        let foreign = ask("alt").await;
        if path.ends_with("/workers") {
            assert_eq!(foreign.json(), json!({"workers": []}));
        } else {
            assert_eq!(foreign.status, 404, "{method} {path}");
        }
    }
    assert_eq!(site.ask("admin:demo", Method::DELETE, &path).await.status, 204);
}

#[actix_web::test]
async fn a_public_runtime_is_changed_by_its_own_project_alone() {
    let rules = "runtime:update: 'rule:project_member'\nruntime:delete: 'rule:project_member'\n";
    let site = site_with(Policy::from_text(rules).unwrap()).await;
    let path = format!("/v1/runtimes/{AVAILABLE}");
    let name = || json!({"name": "x"});
    let denied = (403, "Operation not allowed".to_owned());
    assert_eq!(site.ask_json("demo", Method::PUT, &path, name()).await.fault(), denied);
    assert_eq!(site.ask("demo", Method::DELETE, &path).await.fault(), denied);
    assert_eq!(site.ask_json("someone:ops", Method::PUT, &path, name()).await.status, 200);
}

#[actix_web::test]
async fn a_caller_is_known_by_name_and_password() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.api.auth_strategy = AuthStrategy::HttpBasic;
    config.http_basic.user_file = directory.path().join("users");
    config.http_basic.admins = "root".to_owned();
    let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
    let users = format!("ann:{}\nroot:{}:ops\nrita:{}:ann:reader\n", hash("a"), hash("r"), hash("x"));
    std::fs::write(&config.http_basic.user_file, users).unwrap();
    let site = site_of(Policy::default(), Authenticator::new(&config, None).unwrap()).await;
    let ask = async |method: Method, path: &str, credentials: &str| {
        let request = TestRequest::with_uri(path).method(method).insert_header(("x-auth-token", "root:ops"));
        let request = match credentials {
            "" => request,
            _ => request
                .insert_header(("authorization", format!("Basic {}", BASE64_STANDARD.encode(credentials)))),
        };
        site.send(request.set_json(json!({"code": {"source": "image", "image": "i"}}))).await
    };
    for (credentials, text) in [
        ("", "Failed to validate access token: Authentication required"),
        ("ann:b", "The user name or the password is wrong."),
        ("nobody:a", "The user name or the password is wrong."),
    ] {
        let refused = ask(Method::GET, "/v1/runtimes", credentials).await;
        assert_eq!(refused.fault(), (401, text.to_owned()));
        assert_eq!(refused.header("www-authenticate"), "Basic realm=\"taibai\"");
    }
    assert_eq!(ask(Method::GET, "/", "").await.status, 200);
    let function = ask(Method::POST, "/v1/functions", "ann:a").await.json();
    assert_eq!(function["project_id"], "ann");
    let path = format!("/v1/functions/{}", function["id"].as_str().unwrap());
    // A reader of the same project, and an administrator of another.
    assert_eq!(ask(Method::GET, &path, "rita:x").await.status, 200);
    assert_eq!(ask(Method::POST, "/v1/functions", "rita:x").await.status, 403);
    assert_eq!(ask(Method::GET, &path, "root:r").await.status, 200);
    assert_eq!(
        ask(Method::GET, "/v1/functions?all_projects=1", "root:r").await.json()["functions"][0]["id"],
        function["id"]
    );
}
