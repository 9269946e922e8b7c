//! Which versions there are, and where.

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::App;
use crate::api::openapi::Operation;
use crate::api::route::at;
use crate::api::version::{FIRST, LATEST};

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/", vec![(Method::GET, web::to(versions))]))
        .service(at("/v1", vec![(Method::GET, web::to(version))]));
}

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::get("/", "list_api_versions", "List the versions of the API")
            .shows::<Versions>(StatusCode::OK, "The versions."),
        Operation::get("/v1", "show_api_version", "Show this version of the API")
            .shows::<Shown>(StatusCode::OK, "The version."),
    ]
}

#[derive(Serialize, JsonSchema)]
struct Versions {
    versions: [Version; 1],
}

/// A version as the guideline for discovery has it. A microversion is asked for by a header.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ApiVersion")]
struct Version {
    id: &'static str,
    status: &'static str,
    links: [Link; 1],
    min_version: String,
    version: String,
}

#[derive(Serialize, JsonSchema)]
struct Link {
    href: String,
    target: &'static str,
    rel: &'static str,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ApiVersionShown")]
struct Shown {
    uri: String,
    #[schemars(extend("x-since" = "1.1"))]
    version: Version,
}

impl Version {
    fn at(href: String) -> Self {
        Self {
            id: "v1.0",
            status: "CURRENT",
            links: [Link { href, target: "v1", rel: "self" }],
            min_version: FIRST.to_string(),
            version: LATEST.to_string(),
        }
    }
}

/// `GET /`
async fn versions(app: web::Data<App>, request: HttpRequest) -> HttpResponse {
    let href = format!("{}/v1", app.endpoint.as_called(&request));
    HttpResponse::Ok().json(Versions { versions: [Version::at(href)] })
}

/// `GET /v1`
async fn version(app: web::Data<App>, request: HttpRequest) -> HttpResponse {
    let uri = format!("{}/v1", app.endpoint.as_called(&request));
    HttpResponse::Ok().json(Shown { version: Version::at(uri.clone()), uri })
}
