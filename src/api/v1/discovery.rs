//! Which versions there are, and where.

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use crate::api::endpoint::as_called;
use crate::api::route::at;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/", vec![(Method::GET, web::to(versions))]))
        .service(at("/v1", vec![(Method::GET, web::to(version))]));
}

/// `GET /`
async fn versions(request: HttpRequest) -> HttpResponse {
    let href = format!("{}/v1", as_called(&request));
    HttpResponse::Ok().json(json!({"versions": [
        {"id": "v1.0", "status": "CURRENT", "links": [{"href": href, "target": "v1", "rel": "self"}]}
    ]}))
}

/// `GET /v1`
async fn version(request: HttpRequest) -> HttpResponse {
    HttpResponse::Ok().json(json!({"uri": format!("{}/v1", as_called(&request))}))
}
