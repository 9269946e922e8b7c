//! Errors to responses: the only place that knows status codes.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;

use crate::auth::Rejected;
use crate::error::Error;

static SERVER_ERROR_MESSAGE: HeaderName = HeaderName::from_static("server-error-message");

/// What a request is refused with.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Domain(#[from] Error),
    #[error("{rejected}")]
    Unauthorized {
        rejected: Rejected,
        /// How one makes oneself known.
        challenge: Option<String>,
    },
    #[error("The resource could not be found.")]
    NoSuchRoute,
    /// The key of a URL is a secret, so that this one is not logged.
    #[error("Webhook not found [id={key}]")]
    NoSuchWebhook { key: String },
    #[error("{0}")]
    BadSignature(&'static str),
    #[error("{text}")]
    MethodNotAllowed { text: String, allow: String },
    /// The server answered for itself: a request that is not HTTP as it should be.
    #[error("{}", .0.canonical_reason().unwrap_or("The request was refused."))]
    Framework(StatusCode),
}

impl ApiError {
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Domain(Error::Invalid(text.into()))
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized { rejected: Rejected::Busy, .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::NoSuchRoute | Self::NoSuchWebhook { .. } => StatusCode::NOT_FOUND,
            Self::BadSignature(_) => StatusCode::UNAUTHORIZED,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Framework(status) => *status,
            Self::Domain(error) => match error {
                Error::NotFound { .. } => StatusCode::NOT_FOUND,
                Error::Invalid(_) | Error::NotSupported(_) => StatusCode::BAD_REQUEST,
                Error::Forbidden { .. } | Error::Guarded(_) | Error::OverQuota { .. } => {
                    StatusCode::FORBIDDEN
                }
                Error::TooFast { .. } => StatusCode::TOO_MANY_REQUESTS,
                Error::Conflict(_) => StatusCode::CONFLICT,
                Error::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
                Error::Busy(_) | Error::InDoubt(_) | Error::Unavailable { .. } => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                Error::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// The response, whose body is a union of what Qinling and the frameworks under it send: clients
    /// read `faultstring`, and crash where an error is not JSON.
    pub fn response(&self, request_id: Option<&str>) -> HttpResponse {
        let status = self.status();
        let body = Body {
            faultcode: if status.is_server_error() { "Server" } else { "Client" },
            faultstring: self.to_string(),
            debuginfo: None,
            code: status.as_u16(),
            title: status.canonical_reason().unwrap_or_default(),
            request_id,
        };
        let mut response = HttpResponse::build(status).json(body);
        let headers = response.headers_mut();
        match self {
            Self::MethodNotAllowed { allow, .. } => {
                if let Ok(allow) = HeaderValue::from_str(allow) {
                    headers.insert(header::ALLOW, allow);
                }
            }
            Self::Domain(Error::Busy(_)) | Self::Unauthorized { rejected: Rejected::Busy, .. } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Domain(Error::TooFast { retry_after, .. }) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after));
            }
            Self::Domain(Error::Unavailable { .. }) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            }
            Self::Unauthorized { rejected, challenge } => {
                if let Ok(text) = HeaderValue::from_str(&rejected.to_string()) {
                    headers.insert(SERVER_ERROR_MESSAGE.clone(), text);
                }
                let challenge =
                    challenge.as_deref().and_then(|challenge| HeaderValue::from_str(challenge).ok());
                if let Some(challenge) = challenge {
                    headers.insert(header::WWW_AUTHENTICATE, challenge);
                }
            }
            _ => {}
        }
        response
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status()
    }

    fn error_response(&self) -> HttpResponse {
        self.response(None)
    }
}

#[derive(Serialize)]
struct Body<'a> {
    faultcode: &'static str,
    faultstring: String,
    debuginfo: Option<&'static str>,
    code: u16,
    title: &'static str,
    request_id: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use actix_web::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;

    async fn body(response: HttpResponse) -> Value {
        serde_json::from_slice(&to_bytes(response.into_body()).await.unwrap()).unwrap()
    }

    #[actix_web::test]
    async fn an_error_is_the_union_of_what_clients_know() {
        let response = ApiError::from(Error::not_found("Function", "f")).response(Some("req-1"));
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers().get("content-type").unwrap(), "application/json");
        assert_eq!(
            body(response).await,
            json!({"faultcode": "Client", "faultstring": "Function not found [id=f]", "debuginfo": null,
                "code": 404, "title": "Not Found", "request_id": "req-1"})
        );
    }

    #[actix_web::test]
    async fn a_fault_of_ours_says_nothing_of_what_lies_beneath() {
        let error = Error::internal("SELECT secret FROM tokens");
        let body = body(ApiError::from(error).response(None)).await;
        assert_eq!(body["faultcode"], "Server");
        assert_eq!(body["faultstring"], "Internal server error.");
    }

    #[test]
    fn statuses_follow_the_kind() {
        let text = || "x".to_owned();
        let statuses = [
            (Error::Invalid(text()), 400),
            (Error::NotSupported(text()), 400),
            (Error::Forbidden { rule: "a:b" }, 403),
            (Error::Guarded(text()), 403),
            (Error::Conflict(text()), 409),
            (Error::TooLarge(text()), 413),
            (Error::Busy(text()), 503),
            (Error::InDoubt(text()), 503),
            (Error::Unavailable { what: "It", source: "x".into() }, 503),
        ];
        for (error, status) in statuses {
            let later = matches!(error, Error::Busy(_) | Error::Unavailable { .. });
            let response = ApiError::from(error).response(None);
            assert_eq!(response.status(), status);
            assert_eq!(response.headers().contains_key("retry-after"), later);
        }
    }
}
