//! Which versions there are, and where.

use actix_web::http::{Method, header};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use crate::api::route::at;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/", vec![(Method::GET, web::to(versions))]))
        .service(at("/v1", vec![(Method::GET, web::to(version))]));
}

/// `GET /`
async fn versions(request: HttpRequest) -> HttpResponse {
    let href = format!("{}/v1", base(&request));
    HttpResponse::Ok().json(json!({"versions": [
        {"id": "v1.0", "status": "CURRENT", "links": [{"href": href, "target": "v1", "rel": "self"}]}
    ]}))
}

/// `GET /v1`
async fn version(request: HttpRequest) -> HttpResponse {
    HttpResponse::Ok().json(json!({"uri": format!("{}/v1", base(&request))}))
}

/// Scheme and host as the caller wrote them.
fn base(request: &HttpRequest) -> String {
    let scheme = if request.app_config().secure() { "https" } else { "http" };
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = named.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    format!("{scheme}://{}", host.unwrap_or_else(|| request.app_config().host()))
}
