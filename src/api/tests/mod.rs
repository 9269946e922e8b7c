//! The edge over a real database and a real store, as far as no engine is needed.

mod aliases;
mod audit;
mod callers;
mod conventions;
mod edge;
mod executions;
mod functions;
mod personas;
mod quotas;
mod reference;
mod versions;

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
use crate::model::{ExecutionStatus, NetworkAccess, RuntimeId, RuntimeStatus, Timestamp, execution, runtime};
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
    // Boxed: what a test waits for is part of its own type, and types are only so deep.
    Box::pin(site_configured(policy, authenticator, |_| ())).await
}

async fn site_configured(
    policy: Policy,
    authenticator: Authenticator,
    change: impl FnOnce(&mut Config),
) -> Site {
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
            network: NetworkAccess::Default,
            active_network: None,
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
