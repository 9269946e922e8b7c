//! What happens around every request: its id, its span, its path and the last word on errors.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::http::uri::{PathAndQuery, Uri};
use actix_web::http::{Method, header};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, HttpResponse, web};
use tracing::{Instrument, Span, field};
use uuid::Uuid;

use super::error::ApiError;
use super::forwarded::Forwarded;
use super::version::{self, Asked};
use super::{App, etag, openapi};
use crate::error::Error;
use crate::openstack;
use crate::telemetry::Chain;

pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id");

/// The id that goes along with what is done for a request, `req-` and a UUID; in its extensions. That which
/// another service gave to the whole, or else the request's own.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// The id of the request itself, by which its errors are found in the log; in its extensions.
#[derive(Debug, Clone)]
pub struct OwnId(pub String);

/// Wraps every request; mount it with `actix_web::middleware::from_fn`, outermost.
pub async fn edge(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let id = openstack::new_id();
    let span = tracing::info_span!(
        "request",
        request_id = id,
        global_request_id = field::Empty,
        method = %request.method(),
        route = field::Empty,
        client = field::Empty,
        status = field::Empty,
        project.id = field::Empty,
        user.id = field::Empty,
    );
    let along = global_request_id(request.headers()).map(str::to_owned);
    if let Some(global) = &along {
        span.record("global_request_id", global);
    }
    let along = along.unwrap_or_else(|| id.clone());
    request.extensions_mut().insert(RequestId(along.clone()));
    request.extensions_mut().insert(OwnId(id.clone()));
    collapse_slashes(&mut request);
    let app = request.app_data::<web::Data<App>>().expect("the server gives every request the state").clone();
    let is_behind_proxy = app.endpoint.is_behind_proxy();
    let client = is_behind_proxy.then(|| Forwarded::of(request.headers()).client).flatten();
    if let Some(client) = client {
        span.record("client", field::display(client));
    }

    let watch = app.audit.as_ref().map(|audit| audit.watch(&request, &id, client));

    async move {
        let is_api = is_api(request.path());
        let asked = if is_api { version::asked(request.headers()) } else { Ok(None) };
        if let Ok(Some(version)) = asked {
            request.extensions_mut().insert(Asked(version));
        }
        let is_options = request.method() == Method::OPTIONS;
        let mut response = match &asked {
            _ if is_options => request.into_response(HttpResponse::Ok().finish()),
            Err(_) => request.into_response(HttpResponse::NotAcceptable().finish()),
            // Handlers answer even where they fail; an error here would be another middleware's. And
            // no clone of the request for its sake: routing needs to be its only owner.
            Ok(_) => openstack::on_behalf_of(along.into(), next.call(request)).await?.map_into_boxed_body(),
        };
        let span = Span::current();
        span.record("status", response.status().as_u16());
        let route = response.request().match_pattern();
        if let Some(route) = &route {
            span.record("route", route);
        }
        if let (Err(error), false) = (&asked, is_options) {
            log(error);
            response = ServiceResponse::new(response.into_parts().0, error.response(Some(&id)));
        } else if response.status().is_client_error() || response.status().is_server_error() {
            response = settle(response, &id);
        } else if let Some(route) = &route {
            if matches!(asked, Ok(Some(version::FIRST))) {
                response = openapi::without_newer(response, route).await;
            }
            response = etag::tag(response, route);
        }
        if is_api {
            let headers = response.headers_mut();
            if let Ok(asked) = asked {
                headers.insert(version::HEADER.clone(), asked.unwrap_or(version::FIRST).header());
            }
            headers.append(header::VARY, HeaderValue::from_static("OpenStack-API-Version, X-Auth-Token"));
        }
        if let Some(cors) = &app.cors {
            let (request, response) = (response.request().clone(), response.response_mut());
            cors.apply(request.headers(), is_options, response.headers_mut());
        }
        if let Some(watch) = watch {
            response = watch.answered(response);
        }
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID.clone(), id);
        }
        tracing::debug!("answered");
        Ok(response)
    }
    .instrument(span)
    .await
}

/// Logs an error, once, and gives it the body that every error has, also where actix answered.
fn settle(response: ServiceResponse<BoxBody>, id: &str) -> ServiceResponse<BoxBody> {
    let rendered = match response.response().error() {
        Some(error) => match error.as_error::<ApiError>() {
            Some(error) => {
                log(error);
                error.response(Some(id))
            }
            None => ApiError::Framework(response.status()).response(Some(id)),
        },
        // A handler built it, with a body of its own.
        None if response.headers().contains_key(header::CONTENT_TYPE) => return response,
        None => ApiError::Framework(response.status()).response(Some(id)),
    };
    let request = response.into_parts().0;
    ServiceResponse::new(request, rendered)
}

fn log(error: &ApiError) {
    match error {
        ApiError::Domain(Error::Forbidden { rule }) => tracing::info!(rule, "denied by policy"),
        ApiError::Domain(Error::Busy(reason)) => tracing::warn!(reason, "refused, everything is busy"),
        ApiError::NoSuchWebhook { .. } => tracing::debug!("request refused: there is no such webhook"),
        // Its text repeats what was sent, which is the caller's.
        ApiError::Domain(Error::Invalid(_)) => tracing::debug!("request refused: it is not valid"),
        _ if error.status().is_server_error() => tracing::error!(error = %Chain(error), "request failed"),
        _ => tracing::debug!(error = %error, "request refused"),
    }
}

/// Whether a path, with single slashes, is of what has versions.
fn is_api(path: &str) -> bool {
    path.strip_prefix("/v1").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// An id that another service gave to the whole of what it does, if it looks like one.
fn global_request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(&REQUEST_ID)?.to_str().ok()?;
    let uuid = id.strip_prefix("req-")?;
    (uuid.len() == 36 && Uuid::try_parse(uuid).is_ok()).then_some(id)
}

/// Clients concatenate an endpoint and a path, and some end a path with a slash.
fn collapse_slashes(request: &mut ServiceRequest) {
    let Some(path) = collapsed(request.path()) else { return };
    let mut parts = request.uri().clone().into_parts();
    let path_and_query = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let Ok(path_and_query) = PathAndQuery::try_from(path_and_query) else { return };
    parts.path_and_query = Some(path_and_query);
    let Ok(uri) = Uri::from_parts(parts) else { return };
    request.match_info_mut().get_mut().update(&uri);
    request.head_mut().uri = uri;
}

/// The path with single slashes and none at the end, where that differs.
fn collapsed(path: &str) -> Option<String> {
    let differs = path.contains("//") || (path.len() > 1 && path.ends_with('/'));
    differs.then(|| {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        format!("/{}", parts.join("/"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_collapse() {
        for (path, want) in [
            ("//v1//runtimes/", Some("/v1/runtimes")),
            ("/v1/", Some("/v1")),
            ("//", Some("/")),
            ("/", None),
            ("/v1/runtimes", None),
        ] {
            assert_eq!(collapsed(path).as_deref(), want, "{path}");
        }
    }

    #[test]
    fn a_global_id_has_the_form_of_one() {
        let headers = |id: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID.clone(), HeaderValue::from_static(id));
            headers
        };
        let good = "req-11111111-2222-4333-8444-555555555555";
        assert_eq!(global_request_id(&headers(good)), Some(good));
        for bad in ["11111111-2222-4333-8444-555555555555", "req-", "req-1 forged=line", "req-x"] {
            assert_eq!(global_request_id(&headers(bad)), None);
        }
    }
}
