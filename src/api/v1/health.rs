//! `/healthcheck`: for load balancers, without a token.

use std::collections::BTreeMap;

use actix_web::http::header::{Accept, Header, HeaderValue};
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::api::App;
use crate::api::openapi::Operation;
use crate::api::route::at;
use crate::db;
use crate::telemetry::Chain;

pub fn routes(config: &mut web::ServiceConfig) {
    config.service(at("/healthcheck", vec![(Method::GET, web::to(check)), (Method::HEAD, web::to(check))]));
}

pub fn operations() -> Vec<Operation> {
    const PATH: &str = "/healthcheck";
    let text = || ("text/plain", json!({"type": "string"}));
    let page = || ("text/html", json!({"type": "string"}));
    let described = |operation: Operation, status, about| {
        operation.shows::<Health>(status, about).or_sends(text()).or_sends(page())
    };
    let get = Operation::get(PATH, "check_health", "Ask whether the service can work");
    let get = described(get, StatusCode::OK, "It can.");
    vec![
        described(get, StatusCode::SERVICE_UNAVAILABLE, "It cannot."),
        Operation::head(
            PATH,
            "check_health_shortly",
            "Ask whether the service can work, for the status alone",
        )
        .nothing(StatusCode::NO_CONTENT, "It can.")
        .nothing(StatusCode::SERVICE_UNAVAILABLE, "It cannot."),
    ]
}

#[derive(Debug, Serialize, JsonSchema)]
struct Health {
    /// `ok` or `failed`.
    status: &'static str,
    /// The same for each part.
    checks: BTreeMap<&'static str, &'static str>,
    /// As the middleware of other services says it: whether there is more behind, and a text for each part.
    detailed: bool,
    reasons: Vec<&'static str>,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    Html,
}

/// `GET /healthcheck`: text, or what `Accept` asks for, as the middleware of other services answers. Never
/// refused for what it asks for. `HEAD` is answered with the status alone.
async fn check(request: HttpRequest, app: web::Data<App>) -> HttpResponse {
    // A query and not a ping, so that a database without our tables is no healthy one.
    let database = db::engines::list(app.db.reader()).await;
    if let Err(error) = &database {
        tracing::warn!(error = %Chain(error), "the database does not answer a health check");
    }
    let healthy = database.is_ok();
    let reason = if healthy { "OK" } else { "the database does not answer" };
    let mut response = HttpResponse::build(match (healthy, request.method() == Method::HEAD) {
        (true, true) => StatusCode::NO_CONTENT,
        (true, false) => StatusCode::OK,
        (false, _) => StatusCode::SERVICE_UNAVAILABLE,
    });
    response.insert_header((header::VARY, HeaderValue::from_static("Accept")));
    if request.method() == Method::HEAD {
        return response.content_type("text/plain").finish();
    }
    match form(&request) {
        Form::Text => response.content_type("text/plain").body(reason),
        Form::Json => {
            let word = |good| if good { "ok" } else { "failed" };
            response.json(Health {
                status: word(healthy),
                checks: BTreeMap::from([("database", word(healthy))]),
                detailed: false,
                reasons: vec![reason],
            })
        }
        Form::Html => response.content_type("text/html; charset=utf-8").body(format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Health</title></head>\
             <body><p>{reason}</p></body></html>\n"
        )),
    }
}

/// The form that the caller likes best of those that there are; text where there is no telling.
fn form(request: &HttpRequest) -> Form {
    if !request.headers().contains_key(header::ACCEPT) {
        return Form::Text;
    }
    let Ok(accept) = Accept::parse(request) else { return Form::Text };
    let known = accept.ranked().into_iter().find_map(|kind| match kind.essence_str() {
        "*/*" | "text/plain" | "text/*" => Some(Form::Text),
        "application/json" | "application/*" => Some(Form::Json),
        "text/html" => Some(Form::Html),
        _ => None,
    });
    known.unwrap_or(Form::Text)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn the_form_is_what_is_accepted_most() {
        let form = |accept: &'static str| {
            form(&TestRequest::default().insert_header((header::ACCEPT, accept)).to_http_request())
        };
        for (accept, want) in [
            ("*/*", Form::Text),
            ("text/plain", Form::Text),
            ("application/json", Form::Json),
            ("application/json;q=0.5, text/plain;q=0.9", Form::Text),
            ("text/plain;q=0.1, application/json", Form::Json),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Form::Html),
            ("image/png", Form::Text),
            ("what is this", Form::Text),
        ] {
            assert_eq!(form(accept), want, "{accept}");
        }
        assert_eq!(super::form(&TestRequest::default().to_http_request()), Form::Text);
    }
}
