//! Every route, asked by everybody, about what is theirs and what is not. A route that is not in the table
//! here fails the test, and so does a line without a route.

use actix_web::http::Method;

use super::*;
use crate::db::testing as rows;
use crate::model::{ProjectId, alias, function, job, version, webhook};

/// Who asks: a name, its project and its roles, as Keystone lists them with those that they imply.
const PERSONAS: [(&str, &str, &str); 7] = [
    ("nobody", "", ""),
    ("reader", "demo", "reader"),
    ("member", "demo", "member,reader"),
    ("manager", "demo", "manager,member,reader"),
    ("admin", "demo", "admin,manager,member,reader"),
    ("service", "demo", "service"),
    ("foreign", "third", "member,reader"),
];

/// What they are answered, in that order: about what the project `demo` has, and what `other` has. A route
/// that names nothing has one column. `ID` in a body is the function's, and `NEW` a name that nothing has.
#[rustfmt::skip]
const TABLE_OF_ANSWERS: &[(&str, &str, &str, &str, &str)] = &[
    //                                                                           nobo read memb mana admi serv fore
    ("GET",    "/", "",                                                         "200 200 200 200 200 200 200", ""),
    ("GET",    "/v1", "",                                                       "200 200 200 200 200 200 200", ""),
    ("GET",    "/api", "",                                                      "200 200 200 200 200 200 200", ""),
    ("GET",    "/api/openapi.json", "",                                         "200 200 200 200 200 200 200", ""),
    ("GET",    "/api/swagger.json", "",                                         "200 200 200 200 200 200 200", ""),
    ("GET",    "/healthcheck", "",                                              "200 200 200 200 200 200 200", ""),
    ("HEAD",   "/healthcheck", "",                                              "204 204 204 204 204 204 204", ""),

    ("POST",   "/v1/runtimes", r#"{"image": "x"}"#,                             "401 403 403 403 201 403 403", ""),
    ("GET",    "/v1/runtimes", "",                                              "401 200 200 200 200 403 200", ""),
    ("GET",    "/v1/runtimes/{id}", "",                                         "401 200 200 200 200 403 404", "401 404 404 404 404 403 404"),
    ("PUT",    "/v1/runtimes/{id}", r#"{"name": "x"}"#,                         "401 403 403 403 200 403 403", "401 403 403 403 404 403 403"),
    ("DELETE", "/v1/runtimes/{id}", "",                                         "401 403 403 403 204 403 403", "401 403 403 403 404 403 403"),
    ("GET",    "/v1/runtimes/{id}/pool", "",                                    "401 403 403 403 404 403 403", "401 403 403 403 404 403 403"),

    ("POST",   "/v1/functions", r#"{"code": {"source": "image", "image": "x"}}"#, "401 403 201 201 201 403 201", ""),
    ("GET",    "/v1/functions", "",                                             "401 200 200 200 200 403 200", ""),
    ("GET",    "/v1/functions/{id}", "",                                        "401 200 200 200 200 403 404", "401 404 404 404 200 403 404"),
    ("PUT",    "/v1/functions/{id}", r#"{"name": "x"}"#,                        "401 403 200 200 200 403 404", "401 403 404 404 200 403 404"),
    ("DELETE", "/v1/functions/{id}", "",                                        "401 403 204 204 204 403 404", "401 403 404 404 403 403 404"),
    ("POST",   "/v1/functions/{id}/scale_up", r#"{"count": 1}"#,                "401 403 403 403 202 403 403", "401 403 403 403 202 403 403"),
    ("POST",   "/v1/functions/{id}/scale_down", r#"{"count": 1}"#,              "401 403 403 403 202 403 403", "401 403 403 403 202 403 403"),
    ("POST",   "/v1/functions/{id}/detach", "",                                 "401 403 403 202 202 403 403", "401 403 403 404 202 403 403"),
    // Of a function that is not there no worker is, as in Qinling.
    ("GET",    "/v1/functions/{id}/workers", "",                                "401 403 403 200 200 403 403", "401 403 403 200 200 403 403"),

    ("POST",   "/v1/functions/{id}/versions", "{}",                             "401 403 201 201 201 403 404", "401 403 404 404 404 403 404"),
    ("GET",    "/v1/functions/{id}/versions", "",                               "401 200 200 200 200 403 404", "401 404 404 404 200 403 404"),
    ("GET",    "/v1/functions/{id}/versions/{version}", "",                     "401 200 200 200 200 403 404", "401 404 404 404 200 403 404"),
    ("DELETE", "/v1/functions/{id}/versions/{version}", "",                     "401 403 204 204 204 403 404", "401 403 404 404 404 403 404"),
    ("POST",   "/v1/functions/{id}/versions/{version}/scale_up", r#"{"count": 1}"#,   "401 403 403 403 202 403 403", "401 403 403 403 202 403 403"),
    ("POST",   "/v1/functions/{id}/versions/{version}/scale_down", r#"{"count": 1}"#, "401 403 403 403 202 403 403", "401 403 403 403 202 403 403"),
    ("POST",   "/v1/functions/{id}/versions/{version}/detach", "",              "401 403 403 202 202 403 403", "401 403 403 404 202 403 403"),

    ("POST",   "/v1/aliases", r#"{"name": "NEW", "function_id": "ID"}"#,        "401 403 201 201 201 403 404", "401 403 404 404 404 403 404"),
    ("GET",    "/v1/aliases", "",                                               "401 200 200 200 200 403 200", ""),
    ("GET",    "/v1/aliases/{name}", "",                                        "401 200 200 200 200 403 404", "401 404 404 404 200 403 404"),
    ("PUT",    "/v1/aliases/{name}", r#"{"description": "x"}"#,                 "401 403 200 200 200 403 404", "401 403 404 404 200 403 404"),
    ("DELETE", "/v1/aliases/{name}", "",                                        "401 403 204 204 204 403 404", "401 403 404 404 204 403 404"),
    ("POST",   "/v1/aliases/{name}/rollback", "",                               "401 403 200 200 200 403 404", "401 403 404 404 200 403 404"),

    ("POST",   "/v1/executions", r#"{"function_id": "ID", "sync": false}"#,     "401 403 201 201 201 403 404", "401 403 404 404 201 403 404"),
    ("GET",    "/v1/executions", "",                                            "401 200 200 200 200 403 200", ""),
    ("GET",    "/v1/executions/{id}", "",                                       "401 200 200 200 200 403 404", "401 404 404 404 200 403 404"),
    ("GET",    "/v1/executions/{id}/log", "",                                   "401 200 200 200 200 403 404", "401 404 404 404 200 403 404"),
    ("POST",   "/v1/executions/{id}/cancel", "",                                "401 403 200 200 200 403 404", "401 403 404 404 200 403 404"),
    ("DELETE", "/v1/executions/{id}", "",                                       "401 403 204 204 204 403 404", "401 403 404 404 204 403 404"),

    ("POST",   "/v1/jobs", r#"{"function_id": "ID", "pattern": "0 21 * * *"}"#, "401 403 201 201 201 403 404", "401 403 404 404 201 403 404"),
    ("GET",    "/v1/jobs", "",                                                  "401 200 200 200 200 403 200", ""),
    ("GET",    "/v1/jobs/{id}", "",                                             "401 200 200 200 200 403 404", "401 404 404 404 200 403 404"),
    ("PUT",    "/v1/jobs/{id}", r#"{"name": "x"}"#,                             "401 403 200 200 200 403 404", "401 403 404 404 200 403 404"),
    ("DELETE", "/v1/jobs/{id}", "",                                             "401 403 204 204 204 403 404", "401 403 404 404 204 403 404"),

    ("POST",   "/v1/webhooks", r#"{"function_id": "ID"}"#,                      "401 403 201 201 201 403 404", "401 403 404 404 404 403 404"),
    // Not for readers: who sees a webhook can run its function.
    ("GET",    "/v1/webhooks", "",                                              "401 403 200 200 200 403 200", ""),
    ("GET",    "/v1/webhooks/{id}", "",                                         "401 403 200 200 200 403 404", "401 403 404 404 200 403 404"),
    ("PUT",    "/v1/webhooks/{id}", r#"{"description": "x"}"#,                  "401 403 200 200 200 403 404", "401 403 404 404 404 403 404"),
    ("DELETE", "/v1/webhooks/{id}", "",                                         "401 403 204 204 204 403 404", "401 403 404 404 204 403 404"),
    ("POST",   "/v1/webhooks/{id}/rotate", "",                                  "401 403 200 200 200 403 404", "401 403 404 404 404 403 404"),
    // For whoever knows the URL.
    ("POST",   "/v1/webhooks/{key}/invoke", "{}",                               "202 202 202 202 202 202 202", "202 202 202 202 202 202 202"),

    ("GET",    "/v1/quotas", "",                                                "401 200 200 200 200 403 200", ""),
    ("GET",    "/v1/quotas/{project_id}", "",                                   "401 200 200 200 200 403 404", "401 404 404 404 200 403 404"),
];

/// Something of everything, of one project.
struct Things {
    project: ProjectId,
    runtime: String,
    /// Called by nothing.
    function: String,
    alias: String,
    ended: String,
    pending: String,
    job: String,
    webhook: String,
    key: String,
}

impl Things {
    async fn of(site: &Site, project: &str) -> Self {
        let project = ProjectId::from(project);
        let runtime = runtime::Model {
            project_id: project.clone(),
            is_public: false,
            status: RuntimeStatus::Available,
            ..rows::runtime()
        };
        let function = || function::Model {
            project_id: project.clone(),
            package_digest: Some("d".repeat(64)),
            ..rows::function(&AVAILABLE.into())
        };
        let (alone, called) = (function(), function());
        let version = version::Model { runtime_id: Some(AVAILABLE.into()), ..rows::version(&alone, 1) };
        let alias = alias::Model {
            name: uuid::Uuid::new_v4().to_string(),
            function_version: 0,
            canary_version: None,
            canary_weight: 0,
            previous_version: Some(1),
            ..rows::alias(&called, "", 0)
        };
        let of_called = rows::version(&called, 1);
        let execution = |status| execution::Model {
            project_id: project.clone(),
            function_id: called.id.clone(),
            ..rows::execution(status)
        };
        let (ended, pending) = (execution(ExecutionStatus::Success), execution(ExecutionStatus::Pending));
        let job = job::Model {
            project_id: project.clone(),
            function_alias: None,
            ..rows::job(&called.id, crate::model::JobStatus::Running)
        };
        let webhook = webhook::Model {
            project_id: project.clone(),
            function_version: None,
            function_alias: None,
            mode: crate::model::WebhookMode::Async,
            is_public: true,
            secret: None,
            ..rows::webhook(&called.id)
        };
        let things = Self {
            runtime: runtime.id.to_string(),
            function: alone.id.to_string(),
            alias: alias.name.clone(),
            ended: ended.id.to_string(),
            pending: pending.id.to_string(),
            job: job.id.to_string(),
            webhook: webhook.id.to_string(),
            key: webhook.url_key.clone().unwrap(),
            project,
        };
        let tx = site.app.db.begin().await.unwrap();
        db::runtimes::insert(&tx, runtime).await.unwrap();
        for function in [alone, called] {
            db::functions::insert(&tx, function).await.unwrap();
        }
        for version in [version, of_called] {
            db::versions::insert(&tx, version).await.unwrap();
        }
        db::aliases::insert(&tx, alias).await.unwrap();
        db::executions::insert_many(&tx, vec![ended, pending]).await.unwrap();
        db::jobs::insert(&tx, job).await.unwrap();
        db::webhooks::insert(&tx, webhook).await.unwrap();
        tx.commit().await.unwrap();
        things
    }

    /// The path with these in the places of what it names.
    fn named_in(&self, path: &str) -> String {
        let id = match path.split('/').nth(2) {
            Some("runtimes") => &self.runtime,
            Some("functions") => &self.function,
            Some("executions") if path.ends_with("/cancel") => &self.pending,
            Some("executions") => &self.ended,
            Some("jobs") => &self.job,
            _ => &self.webhook,
        };
        path.replace("{id}", id)
            .replace("{version}", "1")
            .replace("{name}", &self.alias)
            .replace("{key}", &self.key)
            .replace("{project_id}", self.project.as_str())
    }

    fn ids(&self) -> [&str; 7] {
        [&self.runtime, &self.function, &self.alias, &self.ended, &self.pending, &self.job, &self.webhook]
    }
}

async fn site_of_personas() -> (TempDir, Site) {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.api.auth_strategy = AuthStrategy::HttpBasic;
    config.http_basic.user_file = directory.path().join("users");
    let hash = bcrypt::hash("secret", 4).unwrap();
    let users =
        PERSONAS[1..].iter().map(|(name, project, roles)| format!("{name}:{hash}:{project}:{roles}\n"));
    std::fs::write(&config.http_basic.user_file, users.collect::<String>()).unwrap();
    let authenticator = Authenticator::new(&config, None).unwrap();
    (directory, site_of(Policy::default(), authenticator).await)
}

#[actix_web::test]
async fn every_route_answers_everybody_as_the_table_says() {
    let (_directory, site) = site_of_personas().await;
    site.ask("", Method::GET, "/").await;
    let mut routes: Vec<(String, String)> = TABLE
        .with_borrow(|table| table.iter().map(|(method, path)| (method.to_string(), path.clone())).collect());
    let mut listed: Vec<_> = TABLE_OF_ANSWERS
        .iter()
        .map(|(method, path, ..)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    routes.sort();
    listed.sort();
    assert_eq!(routes, listed, "left: the routes that there are; right: those of the table");

    let others = Things::of(&site, "other").await;
    let mut wrong = Vec::new();
    for (method, path, body, own, foreign) in TABLE_OF_ANSWERS {
        assert_eq!(foreign.is_empty(), !path.contains('{') && !body.contains("ID"), "{method} {path}");
        for (project, answers) in [("demo", own), ("other", foreign)] {
            let mut things = Things::of(&site, project).await;
            let answers = answers.split_whitespace().map(|answer| answer.parse::<u16>().unwrap());
            for ((who, ..), expected) in PERSONAS.iter().zip(answers) {
                let mut request =
                    TestRequest::with_uri(&things.named_in(path)).method(method.parse().unwrap());
                if *who != "nobody" {
                    let shown = BASE64_STANDARD.encode(format!("{who}:secret"));
                    request = request.insert_header(("authorization", format!("Basic {shown}")));
                }
                if !body.is_empty() {
                    let new = uuid::Uuid::new_v4().to_string();
                    let body = body.replace("ID", &things.function).replace("NEW", &new);
                    request = request.insert_header(("content-type", "application/json")).set_payload(body);
                }
                let answer = site.send(request).await;
                let text = String::from_utf8_lossy(&answer.body);
                if answer.status != expected {
                    wrong.push(format!("{method} {path} of {project}, {who}: {} {text}", answer.status));
                }
                if answer.status == 404 && *who != "nobody" && expected == 404 {
                    // As if there were none, in the same words.
                    assert!(text.contains("not found"), "{method} {path} of {project}, {who}: {text}");
                }
                if (200..300).contains(&answer.status) && *method != "GET" {
                    // It is not as it was.
                    things = Things::of(&site, project).await;
                }
                let leaks = others.ids().into_iter().find(|id| text.contains(id));
                assert_eq!(leaks, None, "{method} {path} of {project}, {who}");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
