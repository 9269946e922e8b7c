//! The edge over a real database and a real store, as far as no engine is needed.

use std::io::{Cursor, Write};
use std::sync::Arc;

use actix_web::body::to_bytes;
use actix_web::http::Method;
use actix_web::middleware::from_fn;
use actix_web::test::{TestRequest, call_service, init_service};
use actix_web::web;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::route::TABLE;
use super::{App, middleware, routes};
use crate::auth::Authenticator;
use crate::config::{AuthStrategy, Config};
use crate::db;
use crate::db::testing::{TestDb, database};
use crate::engine::testing;
use crate::model::{ExecutionStatus, RuntimeId, RuntimeStatus, Timestamp, execution, runtime};
use crate::policy::{Policy, RULES};
use crate::storage::LocalStore;

const AVAILABLE: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const BROKEN: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const PRIVATE: &str = "aaaaaaaa-0000-4000-8000-000000000003";
const NOWHERE: &str = "deadbeef-0000-4000-8000-00000000dead";

struct Site {
    directory: TempDir,
    _database: TestDb,
    app: web::Data<App>,
}

/// A database with three runtimes of the project `ops`, and an empty store.
async fn site() -> Site {
    site_with(Policy::default()).await
}

async fn site_with(policy: Policy) -> Site {
    site_of(policy, Authenticator::Noauth).await
}

async fn site_of(policy: Policy, authenticator: Authenticator) -> Site {
    site_as(policy, authenticator, |_| {}).await
}

async fn site_as(policy: Policy, authenticator: Authenticator, change: impl FnOnce(&mut Config)) -> Site {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.storage.max_package_bytes = 100_000;
    config.api.max_body_bytes = 10_000;
    config.images.allowed = vec!["*".to_owned()];
    change(&mut config);
    let database = database().await;
    let db = database.db.clone();
    for (id, status, is_public) in [
        (AVAILABLE, RuntimeStatus::Available, true),
        (BROKEN, RuntimeStatus::Error, true),
        (PRIVATE, RuntimeStatus::Available, false),
    ] {
        let row = runtime::Model {
            id: RuntimeId::from(id),
            project_id: "ops".into(),
            name: None,
            description: None,
            image: "image".to_owned(),
            active_image: None,
            status,
            status_reason: None,
            is_public,
            trusted: true,
            created_at: Timestamp::now(),
            updated_at: None,
        };
        db::runtimes::insert(&db.writer(), row).await.unwrap();
    }
    let packages = directory.path().join("packages");
    let store = LocalStore::open(packages, config.storage.max_package_bytes).await.unwrap();
    let store = Arc::new(store);
    let gateway = testing::without_workers(&config, db.clone(), store.clone());
    let app = web::Data::new(App::new(&config, policy, authenticator, None, db, store, gateway));
    Site { directory, _database: database, app }
}

struct Answer {
    status: u16,
    headers: actix_web::http::header::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The text of an error, which has every field that an error has.
    fn fault(&self) -> (u16, String) {
        let json = self.json();
        assert_eq!(json["code"], self.status);
        assert_eq!(json["request_id"], self.header("x-openstack-request-id"));
        assert!(json.as_object().unwrap().contains_key("debuginfo"));
        let entry = &json["errors"][0];
        assert_eq!((&entry["status"], &entry["title"]), (&json["code"], &json["title"]));
        assert_eq!((&entry["detail"], &entry["request_id"]), (&json["faultstring"], &json["request_id"]));
        assert!(entry["code"].as_str().unwrap().starts_with("function-engine."), "{entry}");
        (self.status, json["faultstring"].as_str().unwrap().to_owned())
    }
}

impl Site {
    async fn send(&self, request: TestRequest) -> Answer {
        let app = actix_web::App::new().app_data(self.app.clone());
        let app = app.wrap(from_fn(middleware::edge)).configure(routes);
        let response = call_service(&init_service(app).await, request.to_request()).await.into_parts().1;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = to_bytes(response.into_body()).await.expect("a body can be read");
        Answer { status, headers, body }
    }

    async fn ask(&self, token: &str, method: Method, path: &str) -> Answer {
        self.send(request(token, method, path)).await
    }

    async fn ask_json(&self, token: &str, method: Method, path: &str, body: Value) -> Answer {
        self.send(request(token, method, path).set_json(body)).await
    }

    async fn form(
        &self,
        method: Method,
        path: &str,
        fields: &[(&str, &str)],
        package: Option<&[u8]>,
    ) -> Answer {
        let mut body = Vec::new();
        for (name, value) in fields {
            write!(body, "--cut\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
                .unwrap();
        }
        if let Some(package) = package {
            body.extend(
                b"--cut\r\nContent-Disposition: form-data; name=\"package\"; filename=\"a.zip\"\r\n\r\n",
            );
            body.extend(package);
            body.extend(b"\r\n");
        }
        body.extend(b"--cut--\r\n");
        let content_type = ("content-type", "multipart/form-data; boundary=cut");
        self.send(request("demo", method, path).insert_header(content_type).set_payload(body)).await
    }

    async fn create(&self, package: &[u8]) -> String {
        let fields = [("runtime_id", AVAILABLE), ("code", r#"{"source": "package"}"#), ("name", "f")];
        let answer = self.form(Method::POST, "/v1/functions", &fields, Some(package)).await;
        assert_eq!(answer.status, 201, "{:?}", answer.body);
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// Files in the store, temporary ones included.
    fn files(&self) -> usize {
        fn count(directory: &std::path::Path) -> usize {
            std::fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| if path.is_dir() { count(&path) } else { 1 })
                .sum()
        }
        count(&self.directory.path().join("packages"))
    }
}

fn request(token: &str, method: Method, path: &str) -> TestRequest {
    TestRequest::with_uri(path).method(method).insert_header(("x-auth-token", token))
}

fn zip_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap().into_inner()
}

fn main_py() -> Vec<u8> {
    zip_of("main.py", b"def main(): pass")
}

#[actix_web::test]
async fn a_package_comes_back_byte_for_byte() {
    let site = site().await;
    let package = main_py();
    let id = site.create(&package).await;

    let shown = site.ask("demo", Method::GET, &format!("/v1/functions/{id}")).await.json();
    assert_eq!(shown["code"]["source"], "package");
    assert_eq!(
        (&shown["entry"], &shown["cpu"], &shown["count"]),
        (&json!("main.main"), &json!(100), &json!(0))
    );
    let listed = site.ask("demo", Method::GET, "/v1/functions").await.json();
    let code: Value = serde_json::from_str(listed["functions"][0]["code"].as_str().unwrap()).unwrap();
    assert_eq!(code, shown["code"]);

    let path = format!("/v1/functions/{id}?download=true");
    let zip =
        site.send(request("demo", Method::GET, &path).insert_header(("accept", "application/json"))).await;
    assert_eq!((zip.status, zip.header("content-type")), (200, "application/zip"));
    assert_eq!(zip.header("content-disposition"), format!("attachment; filename=\"{id}\""));
    assert_eq!(zip.body, package);
    assert_eq!(site.ask("alt", Method::GET, &path).await.status, 404);
    assert_eq!(site.ask("admin", Method::GET, &path).await.body, package);
}

#[actix_web::test]
async fn a_refused_package_leaves_nothing() {
    let site = site().await;
    let refuse = async |code: &str, package: &[u8]| {
        let fields = [("runtime_id", AVAILABLE), ("code", code)];
        site.form(Method::POST, "/v1/functions", &fields, Some(package)).await.fault()
    };
    let package = r#"{"source": "package"}"#;
    let wrong_md5 = r#"{"source": "package", "md5sum": "00000000000000000000000000000000"}"#;
    for (code, bytes, status, text) in [
        (package, b"no zip".to_vec(), 400, "Package is not a valid ZIP package."),
        (wrong_md5, main_py(), 400, "Package md5 mismatch."),
        (
            package,
            zip_of("../main.py", b""),
            400,
            "Package is not acceptable: '../main.py' leads out of the package.",
        ),
        (package, vec![0; 100_001], 413, "Package is larger than the allowed 100000 bytes."),
        (package, vec![0; 200_000], 413, "Package is larger than the allowed 100000 bytes."),
        (
            r#"{"source": "tape"}"#,
            main_py(),
            400,
            "Invalid code source specified, available sources: package, swift, image",
        ),
    ] {
        assert_eq!(refuse(code, &bytes).await, (status, text.to_owned()));
        assert_eq!(site.files(), 0, "{text}");
    }
}

#[actix_web::test]
async fn a_function_that_cannot_be_is_refused_by_name() {
    let site = site().await;
    let refuse = async |body: Value| site.ask_json("demo", Method::POST, "/v1/functions", body).await.fault();
    let package = json!({"source": "package"});
    let image = json!({"source": "image", "image": "x"});
    for (body, status, text) in [
        (json!({}), 400, "Required param is missing. Required: {'code'}"),
        (json!({"code": package}), 400, "\"runtime_id\" must be specified."),
        (json!({"code": package, "runtime_id": NOWHERE}), 404, "Runtime not found [id=deadbeef"),
        (json!({"code": package, "runtime_id": PRIVATE}), 404, "Runtime not found [id=aaaaaaaa"),
        (json!({"code": package, "runtime_id": BROKEN}), 400, "is not available."),
        (json!({"code": package, "runtime_id": AVAILABLE}), 400, "A package is missing"),
        (json!({"code": {"source": "swift"}, "runtime_id": AVAILABLE}), 400, "Both container and object"),
        (
            json!({"code": package, "entry": "main"}),
            400,
            "entry 'main' is not of the form <module>.<method>.",
        ),
        (json!({"code": image, "name": "x".repeat(256)}), 400, "name may have at most 255 characters."),
        (json!({"code": image, "cpu": 1}), 400, "cpu resource limitation not within the allowable range"),
        (json!({"code": image, "timeout": 0}), 400, "timeout resource limitation not within"),
        (json!({"code": image, "runtime_id": "zzz"}), 404, "Runtime not found [id=zzz]"),
        (json!([1]), 400, "A JSON object is required."),
    ] {
        let (got, fault) = refuse(body.clone()).await;
        assert_eq!(got, status, "{body}: {fault}");
        assert!(fault.contains(text), "{body}: {fault}");
    }
}

#[actix_web::test]
async fn an_image_function_keeps_its_code() {
    let site = site().await;
    let new = json!({"code": {"source": "image", "image": "x"}, "name": "i", "entry": "a.b", "cpu": "200"});
    let function = site.ask_json("demo", Method::POST, "/v1/functions", new).await.json();
    assert_eq!((&function["entry"], &function["cpu"]), (&Value::Null, &json!(200)));
    let path = format!("/v1/functions/{}", function["id"].as_str().unwrap());

    let timeout =
        site.ask_json("demo", Method::PUT, &path, json!({"timeout": 20, "name": null})).await.json();
    assert_eq!((&timeout["timeout"], &timeout["name"]), (&json!(20), &json!("i")));
    assert!(timeout["updated_at"].is_string());
    let empty = site.form(Method::PUT, &path, &[("description", ""), ("entry", "")], None).await.json();
    assert_eq!(empty["description"], "");

    let refused = site.ask_json("demo", Method::PUT, &path, json!({"cpu": 100})).await.fault();
    assert_eq!(refused, (400, "The image type function code can not be changed.".to_owned()));
    let download = site.ask("demo", Method::GET, &format!("{path}?download=1")).await;
    assert_eq!(download.fault(), (405, "Download image function is not allowed.".to_owned()));
}

#[actix_web::test]
async fn a_call_that_cannot_be_made_is_refused_before_the_engine() {
    let site = site().await;
    let id = site.create(&main_py()).await;
    let refuse =
        async |body: Value| site.ask_json("demo", Method::POST, "/v1/executions", body).await.fault();
    for (body, status, text) in [
        (json!({}), 400, "Either function_alias or function_id must be provided.".to_owned()),
        (json!({"function_id": "x"}), 400, "Expected a uuid but received x.".to_owned()),
        (json!({"function_id": NOWHERE}), 404, format!("Function not found [id={NOWHERE}]")),
        (json!({"function_alias": "no"}), 404, "FunctionAlias not found [name=no]".to_owned()),
        (
            json!({"function_id": id, "function_version": 3}),
            404,
            format!("FunctionVersion not found [function_id={id}, version_number=3]"),
        ),
        (
            json!({"function_id": id, "bogus": 1}),
            400,
            "Unknown attribute for argument body: bogus".to_owned(),
        ),
    ] {
        assert_eq!(refuse(body).await, (status, text));
    }
    let writer = site.app.db.writer();
    let (from, to) = ([RuntimeStatus::Available], RuntimeStatus::Upgrading);
    db::runtimes::set_status(&writer, &AVAILABLE.into(), &from, to, None).await.unwrap();
    let refused = refuse(json!({"function_id": id})).await;
    assert_eq!(refused, (409, format!("Runtime {AVAILABLE} is not available.")));
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
async fn every_answer_is_json_and_has_an_id() {
    let site = site().await;
    for (method, path, status, allow) in [
        (Method::GET, "/v1/nosuch", 404, ""),
        (Method::HEAD, "/v1/runtimes", 405, "GET, POST"),
        (Method::PATCH, "/v1/functions", 405, "GET, POST"),
        (Method::GET, "/v1/runtimes?foo=bar", 400, ""),
        (Method::GET, "/v1/runtimes/notuuid", 400, ""),
        (Method::GET, "/v1/executions?bogus=1", 400, ""),
    ] {
        let answer = site.ask("demo", method, path).await;
        assert_eq!((answer.fault().0, answer.header("allow")), (status, allow), "{path}");
    }
    let large = json!({"image": "x".repeat(20_000)});
    let large = site.ask_json("admin", Method::POST, "/v1/runtimes", large).await.fault();
    assert_eq!(large, (413, "The request body is larger than 10000 bytes.".to_owned()));
    let rejected = site.ask(":", Method::GET, "/v1/runtimes").await.fault();
    assert_eq!(rejected, (401, "Failed to validate access token: Auth token is invalid".to_owned()));
}

#[actix_web::test]
async fn what_needs_no_token_answers_without() {
    let site = site().await;
    let root = site.send(TestRequest::with_uri("/").insert_header(("host", "cloud:7070"))).await.json();
    assert_eq!(root["versions"][0]["links"][0]["href"], "http://cloud:7070/v1");
    for path in ["/v1", "/v1/"] {
        let document = site.send(TestRequest::with_uri(path).insert_header(("host", "c"))).await.json();
        assert_eq!(document["uri"], "http://c/v1");
    }
    let options = site.send(TestRequest::with_uri("/any/where").method(Method::OPTIONS)).await;
    assert_eq!((options.status, options.header("content-type"), options.body.len()), (200, "", 0));

    let healthy = site.send(TestRequest::with_uri("/healthcheck")).await;
    assert_eq!((healthy.status, healthy.body.as_ref()), (200, b"OK".as_slice()));
    let as_json = || TestRequest::with_uri("/healthcheck").insert_header(("accept", "application/json"));
    assert_eq!(site.send(as_json()).await.json()["checks"]["database"], "ok");
    site.app.db.close().await.unwrap();
    let ill = site.send(as_json()).await;
    assert_eq!((ill.status, &ill.json()["status"]), (503, &json!("failed")));
}

impl Site {
    async fn upload(&self, id: &str, package: &[u8]) {
        let path = format!("/v1/functions/{id}");
        let answer = self.form(Method::PUT, &path, &[], Some(package)).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
    }

    async fn publish(&self, id: &str) -> Answer {
        self.ask_json("demo", Method::POST, &format!("/v1/functions/{id}/versions"), json!({})).await
    }

    async fn alias(&self, token: &str, body: Value) -> Answer {
        self.ask_json(token, Method::POST, "/v1/aliases", body).await
    }
}

/// A package that no other number gives.
fn numbered(number: usize) -> Vec<u8> {
    zip_of("main.py", format!("def main(): return {number}").as_bytes())
}

#[actix_web::test]
async fn a_version_keeps_its_number_and_its_package() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    let path = format!("/v1/functions/{id}/versions");
    assert_eq!(site.ask("demo", Method::GET, &path).await.json(), json!({"function_versions": []}));

    let described = site.ask_json("demo", Method::POST, &path, json!({"description": "first"})).await;
    assert_eq!(described.status, 201);
    let first = described.json();
    assert_eq!((&first["version_number"], &first["description"]), (&json!(1), &json!("first")));
    assert_eq!(
        (&first["entry"], &first["cpu"], &first["os_session"]),
        (&json!("main.main"), &json!(100), &json!(false))
    );
    let unchanged = (403, "Function package not changed since the latest version 1.".to_owned());
    assert_eq!(site.publish(&id).await.fault(), unchanged);
    site.upload(&id, &numbered(1)).await;
    assert_eq!(site.publish(&id).await.json()["version_number"], 2);
    assert_eq!(site.files(), 2);

    let latest = async || {
        site.ask("demo", Method::GET, &format!("/v1/functions/{id}")).await.json()["latest_version"].clone()
    };
    let download = async |who: &str, number: usize| {
        site.ask(who, Method::GET, &format!("{path}/{number}?download=1&other=x")).await
    };
    for who in ["demo", "admin"] {
        let zip = download(who, 1).await;
        assert_eq!((zip.status, zip.header("content-type")), (200, "application/zip"));
        assert_eq!(zip.header("content-disposition"), format!("attachment; filename=\"{id}_1\""));
        assert_eq!(zip.body, numbered(0));
    }
    assert_eq!(download("alt", 1).await.status, 404);

    // The highest goes, and its number with it.
    assert_eq!(latest().await, 2);
    assert_eq!(site.ask("demo", Method::DELETE, &format!("{path}/2")).await.status, 204);
    assert_eq!(latest().await, 1);
    assert_eq!(site.publish(&id).await.json()["version_number"], 3);
    assert_eq!(latest().await, 3);
    assert_eq!(site.ask("demo", Method::DELETE, &format!("{path}/1")).await.status, 204);
    assert_eq!((latest().await, site.files()), (json!(3), 1));
    let listed = site.ask("demo", Method::GET, &path).await.json();
    let numbers: Vec<_> = listed["function_versions"].as_array().unwrap().iter().collect();
    assert_eq!(numbers.len(), 1);
    assert_eq!(numbers[0]["version_number"], 3);

    site.upload(&id, &numbered(2)).await;
    assert_eq!(site.files(), 2, "a version has it still");
    assert_eq!(site.ask("demo", Method::DELETE, &format!("/v1/functions/{id}")).await.status, 204);
    assert_eq!(site.files(), 0);
}

#[actix_web::test]
async fn ten_versions_exist_at_once_however_many_are_made() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    for number in 1..=10 {
        site.upload(&id, &numbered(number)).await;
        assert_eq!(site.publish(&id).await.json()["version_number"], number);
    }
    site.upload(&id, &numbered(11)).await;
    let full = (403, "Can not exceed maximum number(10) of versions".to_owned());
    assert_eq!(site.publish(&id).await.fault(), full);
    // Version 1 is not taken for version 10.
    let path = format!("/v1/functions/{id}/versions");
    assert_eq!(site.ask("demo", Method::DELETE, &format!("{path}/1")).await.status, 204);
    let tenth = site.ask("demo", Method::GET, &format!("{path}/10?download=true")).await;
    assert_eq!(tenth.body, numbered(10));
    assert_eq!(site.publish(&id).await.json()["version_number"], 11);
}

#[actix_web::test]
async fn of_versions_that_are_made_at_once_one_is_made() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    let answers = futures_util::future::join_all((0..8).map(|_| site.publish(&id))).await;
    let made = answers.iter().filter(|answer| answer.status == 201).count();
    let refused = answers.iter().filter(|answer| answer.status == 403).count();
    assert_eq!((made, refused), (1, 7));
    site.upload(&id, &numbered(1)).await;
    assert_eq!(site.publish(&id).await.json()["version_number"], 2);
}

#[actix_web::test]
async fn a_version_that_cannot_be_is_refused_by_name() {
    let site = site().await;
    let id = site.create(&main_py()).await;
    site.publish(&id).await;
    let path = format!("/v1/functions/{id}/versions");
    let no_version =
        |number: i32| (404, format!("FunctionVersion not found [function_id={id}, version_number={number}]"));
    let no_function = (404, format!("Function not found [id={id}]"));
    let invalid = |text: &str| (400, text.to_owned());
    // For the project alone, whoever asks.
    for who in ["alt", "admin:other"] {
        assert_eq!(site.ask_json(who, Method::POST, &path, json!({})).await.fault(), no_function, "{who}");
        assert_eq!(site.ask(who, Method::DELETE, &format!("{path}/1")).await.fault(), no_version(1), "{who}");
    }
    assert_eq!(site.ask("alt", Method::GET, &path).await.fault(), no_function);
    assert_eq!(site.ask("alt", Method::GET, &format!("{path}/1")).await.fault(), no_version(1));
    assert_eq!(site.ask("admin:other", Method::GET, &format!("{path}/1")).await.status, 200);
    for number in [0, 2] {
        for method in [Method::GET, Method::DELETE] {
            let answer = site.ask("demo", method, &format!("{path}/{number}")).await;
            assert_eq!(answer.fault(), no_version(number));
        }
    }
    let start = "Invalid input for field/attribute version. Value:";
    assert_eq!(
        site.ask("demo", Method::GET, &format!("{path}/one")).await.fault(),
        invalid(&format!("{start} 'one'. An integer is required."))
    );
    for (method, path) in [
        (Method::GET, "/v1/functions/x/versions/1".to_owned()),
        (Method::DELETE, format!("{path}/-1")),
        (Method::GET, format!("{path}?bogus=1")),
    ] {
        assert_eq!(site.ask("demo", method, &path).await.status, 400, "{path}");
    }
    for (body, text) in [
        (json!({"bogus": 1}), "Unknown attribute for argument body: bogus"),
        (json!({"description": "x".repeat(256)}), "description may have at most 255 characters."),
    ] {
        assert_eq!(site.ask_json("demo", Method::POST, &path, body).await.fault(), invalid(text));
    }
    let bare = site.ask("demo", Method::POST, &path).await;
    assert_eq!(bare.fault(), invalid("Missing argument: \"body\""));

    let image = json!({"code": {"source": "image", "image": "x"}});
    let image = site.ask_json("demo", Method::POST, "/v1/functions", image).await.json();
    let path = format!("/v1/functions/{}/versions", image["id"].as_str().unwrap());
    let refused = (403, "Function versioning only allowed for package type function.".to_owned());
    assert_eq!(site.ask_json("demo", Method::POST, &path, json!({})).await.fault(), refused);

    for (action, body) in [("scale_up", true), ("scale_down", true), ("detach", false)] {
        let path = |number: i32| format!("/v1/functions/{id}/versions/{number}/{action}");
        let ask = async |who: &str, number: i32| match body {
            true => site.ask_json(who, Method::POST, &path(number), json!({"count": 1})).await,
            false => site.ask(who, Method::POST, &path(number)).await,
        };
        assert_eq!(ask("demo", 1).await.fault(), (403, "Operation not allowed".to_owned()));
        assert_eq!(ask("admin", 2).await.fault(), no_version(2));
    }
    let detached = site.ask("admin", Method::POST, &format!("/v1/functions/{id}/versions/1/detach")).await;
    assert_eq!((detached.status, detached.body.len()), (202, 0));
}

#[actix_web::test]
async fn an_alias_means_what_its_owner_says() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    site.publish(&id).await;
    site.upload(&id, &numbered(1)).await;
    site.publish(&id).await;
    let new = json!({"name": "prod", "function_id": id, "function_version": "1", "description": ""});
    let made = site.alias("demo", new).await;
    assert_eq!(made.status, 201);
    let made = made.json();
    assert_eq!((&made["function_version"], &made["canary_version"]), (&json!(1), &Value::Null));

    let put = async |body: Value| {
        let answer = site.ask_json("demo", Method::PUT, "/v1/aliases/prod", body).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        let row = answer.json();
        ["function_version", "canary_version", "canary_weight", "previous_version"]
            .map(|key| row[key].clone())
    };
    let none = || Value::Null;
    let nulls = json!({"function_id": null, "function_version": null, "description": "d", "name": "other"});
    assert_eq!(put(nulls).await, [json!(1), none(), json!(0), none()]);
    let shown = site.ask("demo", Method::GET, "/v1/aliases/prod/").await.json();
    assert_eq!((&shown["description"], &shown["id"]), (&json!("d"), &made["id"]));
    let canary = json!({"canary_version": "2", "canary_weight": 20});
    assert_eq!(put(canary).await, [json!(1), json!(2), json!(20), none()]);
    assert_eq!(put(json!({"canary_weight": 0})).await, [json!(1), json!(2), json!(0), none()]);
    assert_eq!(put(json!({"remove_canary": true})).await, [json!(1), none(), json!(0), none()]);
    assert_eq!(put(json!({"function_version": 2})).await, [json!(2), none(), json!(0), json!(1)]);
    put(json!({"canary_version": 0, "canary_weight": 100})).await;

    // A version that calls may get stays, and what an alias would return to does not.
    let version = |number: usize| format!("/v1/functions/{id}/versions/{number}");
    let needed = (403, "The function version is still associated with alias.".to_owned());
    assert_eq!(site.ask("demo", Method::DELETE, &version(2)).await.fault(), needed);
    let roll_back = async || site.ask("demo", Method::POST, "/v1/aliases/prod/rollback").await;
    let row = roll_back().await.json();
    assert_eq!((&row["function_version"], &row["canary_version"]), (&json!(2), &none()));
    let row = roll_back().await.json();
    assert_eq!((&row["function_version"], &row["previous_version"]), (&json!(1), &none()));
    let nothing = (409, "The alias prod has no version to return to.".to_owned());
    assert_eq!(roll_back().await.fault(), nothing);
    put(json!({"canary_version": 2, "canary_weight": 1})).await;
    assert_eq!(site.ask("demo", Method::DELETE, &version(2)).await.fault(), needed);
    put(json!({"function_version": 2})).await;
    assert_eq!(site.ask("demo", Method::DELETE, &version(1)).await.status, 204);
    assert_eq!(roll_back().await.fault(), nothing);

    let function = format!("/v1/functions/{id}");
    let held = (403, "The function is still associated with function alias(es).".to_owned());
    assert_eq!(site.ask("demo", Method::DELETE, &function).await.fault(), held);
    assert_eq!(site.ask("demo", Method::DELETE, "/v1/aliases/prod").await.status, 204);
    let gone = (404, "FunctionAlias not found [name=prod]".to_owned());
    assert_eq!(site.ask("demo", Method::DELETE, "/v1/aliases/prod").await.fault(), gone);
    assert_eq!(site.ask("demo", Method::DELETE, &function).await.status, 204);
}

#[actix_web::test]
async fn an_alias_never_means_a_version_that_is_gone() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    for number in 1..=6 {
        site.upload(&id, &numbered(number)).await;
        site.publish(&id).await;
    }
    let new = json!({"name": "prod", "function_id": id, "function_version": 1});
    assert_eq!(site.alias("demo", new).await.status, 201);
    for _ in 0..5 {
        let changes = (1..=6).map(|number| {
            let (canary, weight) = (7 - number, number * 10);
            json!({"function_version": number, "canary_version": canary, "canary_weight": weight})
        });
        let change = |body| site.ask_json("demo", Method::PUT, "/v1/aliases/prod", body);
        let roll_back = |_| site.ask("demo", Method::POST, "/v1/aliases/prod/rollback");
        let (site, id) = (&site, &id);
        let delete = |number| async move {
            site.ask("demo", Method::DELETE, &format!("/v1/functions/{id}/versions/{number}")).await
        };
        let (changed, back, deleted) = tokio::join!(
            futures_util::future::join_all(changes.map(change)),
            futures_util::future::join_all((0..4).map(roll_back)),
            futures_util::future::join_all((2..=5).map(delete)),
        );
        for answer in changed.into_iter().chain(back).chain(deleted) {
            assert!([200, 204, 403, 404, 409].contains(&answer.status), "{:?}", answer.body);
        }
        let listed = site.ask("demo", Method::GET, &format!("/v1/functions/{id}/versions")).await.json();
        let listed = listed["function_versions"].as_array().unwrap().clone();
        let there: Vec<_> = listed.iter().map(|row| &row["version_number"]).collect();
        let alias = site.ask("demo", Method::GET, "/v1/aliases/prod").await.json();
        for key in ["function_version", "canary_version", "previous_version"] {
            assert!(alias[key].is_null() || there.contains(&&alias[key]), "{key}: {alias} {there:?}");
        }
    }
}

#[actix_web::test]
async fn an_alias_that_cannot_be_is_refused_by_name() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    site.publish(&id).await;
    assert_eq!(site.alias("demo", json!({"name": "a", "function_id": id})).await.status, 201);
    let required = "Required param is missing. Required: {'function_id', 'name'}";
    let duplicate = "Duplicate entry for function_aliases:";
    let with = |more: Value| {
        let mut body = json!({"name": "b", "function_id": id, "function_version": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (body, status, text) in [
        (json!({}), 400, required.to_owned()),
        (json!({"name": "b"}), 400, required.to_owned()),
        (with(json!({"name": ""})), 400, "name may not be empty.".to_owned()),
        (with(json!({"name": "a/b"})), 400, "name may not contain '/'.".to_owned()),
        (
            with(json!({"name": "a", "function_version": 9})),
            400,
            format!("{duplicate} ['project_id', 'name']"),
        ),
        (
            with(json!({"function_version": 0})),
            400,
            format!("{duplicate} ['project_id', 'function_id', 'function_version']"),
        ),
        (with(json!({"function_id": NOWHERE})), 404, format!("Function not found [id={NOWHERE}]")),
        (
            with(json!({"function_version": 9})),
            404,
            format!("FunctionVersion not found [function_id={id}, version_number=9]"),
        ),
        (
            with(json!({"canary_version": 9})),
            404,
            format!("FunctionVersion not found [function_id={id}, version_number=9]"),
        ),
        (
            with(json!({"canary_version": 1})),
            400,
            "canary_version has to be another version than function_version.".to_owned(),
        ),
        (
            with(json!({"canary_version": 0, "canary_weight": 101})),
            400,
            "canary_weight is a percentage, from 0 to 100.".to_owned(),
        ),
        (
            with(json!({"previous_version": 1})),
            400,
            "Invalid input for field/attribute previous_version. Value: '1'. Cannot set read only field."
                .to_owned(),
        ),
        (
            with(json!({"remove_canary": true})),
            400,
            "Unknown attribute for argument body: remove_canary".to_owned(),
        ),
    ] {
        assert_eq!(site.alias("demo", body.clone()).await.fault(), (status, text), "{body}");
    }
    let listed = site.ask("demo", Method::GET, "/v1/aliases").await.json();
    assert_eq!(listed["function_aliases"].as_array().unwrap().len(), 1, "{listed}");

    // Another project's function cannot be named, by an administrator neither.
    for who in ["alt", "admin:other"] {
        let foreign = site.alias(who, json!({"name": "x", "function_id": id})).await.fault();
        assert_eq!(foreign, (404, format!("Function not found [id={id}]")), "{who}");
    }
    let repoint = site.ask_json("demo", Method::PUT, "/v1/aliases/a", json!({"function_version": 3})).await;
    assert_eq!(repoint.status, 404);
    assert_eq!(site.ask("demo", Method::GET, "/v1/aliases/a%00").await.status, 404);
    assert_eq!(site.ask("demo", Method::GET, "/v1/aliases?name=a").await.status, 400);
}

#[actix_web::test]
async fn an_administrator_means_the_own_alias_before_anothers() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    for name in ["prod", "a b%2F?ü"] {
        let body = json!({"name": name, "function_id": id, "description": "theirs"});
        let answer = site.alias("demo", body).await;
        assert_eq!(answer.status, if name == "prod" { 201 } else { 400 });
    }
    let odd = json!({"function_version": 1, "name": "a b%2F?ü", "function_id": id});
    site.publish(&id).await;
    assert_eq!(site.alias("demo", odd).await.status, 201);
    let odd = site.ask("demo", Method::GET, "/v1/aliases/a%20b%252F%3F%C3%BC").await.json();
    assert_eq!(odd["name"], "a b%2F?ü");

    let described = async |who: &str| {
        let answer = site.ask(who, Method::GET, "/v1/aliases/prod").await;
        (answer.status == 200).then(|| answer.json()["description"].clone())
    };
    assert_eq!(described("admin:ops").await, Some(json!("theirs")));
    assert_eq!(described("alt").await, None);
    let new = json!({"runtime_id": AVAILABLE, "code": {"source": "image", "image": "i"}});
    let mine = site.ask_json("admin:ops", Method::POST, "/v1/functions", new).await.json();
    let body = json!({"name": "prod", "function_id": mine["id"], "description": "mine"});
    assert_eq!(site.alias("admin:ops", body).await.status, 201);
    assert_eq!(described("admin:ops").await, Some(json!("mine")));
    let ids = |answer: Answer| answer.json()["function_aliases"].as_array().unwrap().len();
    assert_eq!(ids(site.ask("admin:ops", Method::GET, "/v1/aliases").await), 1);
    assert_eq!(ids(site.ask("admin:ops", Method::GET, "/v1/aliases?all_projects=true").await), 3);
    let all = site.ask("demo", Method::GET, "/v1/aliases?all_projects=true").await;
    assert_eq!(all.fault(), (403, "Operation not allowed".to_owned()));

    assert_eq!(site.ask("admin:ops", Method::DELETE, "/v1/aliases/prod").await.status, 204);
    assert_eq!(described("demo").await, Some(json!("theirs")));
    assert_eq!(site.ask("admin:ops", Method::DELETE, "/v1/aliases/prod").await.status, 204);
    assert_eq!(described("demo").await, None);
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
fn bare(path: &str) -> String {
    let path = path.split('?').next().unwrap_or(path);
    let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
    parts.collect::<Vec<_>>().join("/")
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

#[actix_web::test]
async fn a_long_list_of_executions_is_whole_and_its_parts_are_too() {
    let site = site().await;
    let rows: Vec<execution::Model> = (0..2500)
        .map(|at| execution::Model {
            project_id: "demo".into(),
            created_at: Timestamp(at / 3),
            // Some are large, so that the parts that are read differ.
            result: Some(json!({"output": "x".repeat(if at % 500 == 0 { 300_000 } else { 9 })}).to_string()),
            ..db::testing::execution(if at % 2 == 0 {
                ExecutionStatus::Success
            } else {
                ExecutionStatus::Failed
            })
        })
        .collect();
    let transaction = site.app.db.begin().await.unwrap();
    db::executions::insert_many(&transaction, rows.clone()).await.unwrap();
    transaction.commit().await.unwrap();
    let listed = async |query: &str| -> Vec<String> {
        let answer = site.ask("demo", Method::GET, &format!("/v1/executions{query}")).await;
        assert_eq!(answer.status, 200, "{query}");
        let ids = answer.json()["executions"].as_array().unwrap().clone();
        ids.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    let mut expected: Vec<_> =
        rows.iter().map(|row| (row.created_at, row.id.to_string(), row.status)).collect();
    expected.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let all: Vec<String> = expected.iter().map(|(_, id, _)| id.clone()).collect();
    assert!(listed("").await == all, "the whole list, in order");
    let reversed: Vec<String> = all.iter().rev().cloned().collect();
    assert!(listed("?sort=created_at:desc").await == reversed, "from the latest");
    let failed = expected.iter().filter(|(.., status)| *status == ExecutionStatus::Failed);
    let failed: Vec<String> = failed.map(|(_, id, _)| id.clone()).collect();
    assert!(listed("?status=failed").await == failed, "those that failed");

    let path = format!("?limit=700&marker={}", all[99]);
    assert!(listed(&path).await == all[100..800], "a part");
    assert_eq!(listed(&format!("?limit=5&marker={}", all[2497])).await, all[2498..]);
    assert_eq!(listed(&format!("?marker={}", all[2499])).await, Vec::<String>::new());

    let refuse =
        async |query: &str| site.ask("demo", Method::GET, &format!("/v1/executions?{query}")).await.fault();
    let marker = (400, format!("marker: nothing in this list has the id {NOWHERE:?}."));
    assert_eq!(refuse(&format!("marker={NOWHERE}")).await, marker);
    assert_eq!(listed("?sort=status:desc&limit=1000").await.len(), 1000);
    for (query, end) in [
        ("limit=0", "Value should be greater or equal to 1"),
        ("sort=status", "by status, executions are listed with a limit of 1000 at most."),
        ("sort=status&limit=1001", "by status, executions are listed with a limit of 1000 at most."),
        ("sort=input", "One of created_at, updated_at, status is required, and :asc or :desc behind it."),
        ("sort=status:up", "One of created_at, updated_at, status is required, and :asc or :desc behind it."),
    ] {
        let (status, text) = refuse(query).await;
        assert!(status == 400 && text.ends_with(end), "{query}: {text}");
    }
}

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
    let site = site_as(Policy::default(), Authenticator::Noauth, open).await;
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
    let proxied = site_as(Policy::default(), Authenticator::Noauth, behind).await;
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
