//! The end of a listener at which nobody is turned away whom it had taken on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{ConnectionType, header};
use actix_web::middleware::Next;
use actix_web::{HttpResponse, web};
use serde_json::json;

/// How long connections that were accepted last may take to a thread of the server, which drops those
/// that it was not given when it stops.
const SETTLE: Duration = Duration::from_millis(200);

/// Whether the service was told to stop.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Once the service was told to stop, has each answer say that it is the last of its connection, and has
/// health checks fail.
pub async fn last_answers<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let begun = request.app_data::<web::Data<Draining>>().cloned();
    let has_begun = || begun.as_ref().is_some_and(|draining| draining.has_begun());
    let mut response = if has_begun() && request.path() == "/healthcheck" {
        let answer = unwell(&request);
        request.into_response(answer).map_into_right_body()
    } else {
        next.call(request).await?.map_into_left_body()
    };
    // Asked again: a long request began before.
    if has_begun() {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    Ok(response)
}

/// In the form in which a healthy service answers.
fn unwell(request: &ServiceRequest) -> HttpResponse {
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let mut response = HttpResponse::ServiceUnavailable();
    if accept.is_some_and(|accept| accept.contains("application/json")) {
        response.json(json!({"status": "stopping"}))
    } else {
        response.content_type("text/plain").body("stopping")
    }
}

/// Ends a server: takes no more connections, and answers on those that there are, within `grace`. Its threads
/// end last: `calls` may run there for callers that went away.
pub async fn stop(handle: &actix_web::dev::ServerHandle, grace: Duration, calls: impl Future<Output = ()>) {
    handle.pause().await;
    tokio::time::sleep(SETTLE).await;
    let is_quiet = tokio::time::timeout(grace, calls).await.is_ok();
    handle.stop(is_quiet).await;
}
