//! `/healthcheck`: for load balancers, without a token.

use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use crate::api::App;
use crate::api::route::at;
use crate::db;
use crate::telemetry::Chain;

pub fn routes(config: &mut web::ServiceConfig) {
    config.service(at("/healthcheck", vec![(Method::GET, web::to(check))]));
}

/// Text, as the middleware of other services answers, or JSON where that is asked for.
async fn check(request: HttpRequest, app: web::Data<App>) -> HttpResponse {
    // A query and not a ping, so that a database without our tables is no healthy one.
    let database = db::engines::list(app.db.reader()).await;
    if let Err(error) = &database {
        tracing::warn!(error = %Chain(error), "the database does not answer a health check");
    }
    let healthy = database.is_ok();
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let mut response = HttpResponse::build(status);
    if accept.is_some_and(|accept| accept.contains("application/json")) {
        let word = |good| if good { "ok" } else { "failed" };
        response.json(json!({"status": word(healthy), "checks": {"database": word(healthy)}}))
    } else {
        response.content_type("text/plain").body(if healthy { "OK" } else { "the database does not answer" })
    }
}
