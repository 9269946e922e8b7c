//! Errors to responses: the only place that knows status codes.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use schemars::JsonSchema;
use serde::Serialize;

use super::version::{FIRST, LATEST, SERVICE_TYPE, Version};
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
    #[error("Version {asked} is not supported by the API. Minimum is {FIRST} and maximum is {LATEST}.")]
    UnsupportedVersion { asked: Version },
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
            Self::UnsupportedVersion { .. } => StatusCode::NOT_ACCEPTABLE,
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

    /// A word for programs, as OpenStack's guideline for errors asks for: the service and what is wrong.
    fn code(&self) -> String {
        let what = match self {
            Self::Unauthorized { rejected: Rejected::Busy, .. } => "busy",
            Self::Unauthorized { .. } => "unauthorized",
            Self::NoSuchRoute => "no-such-route",
            Self::NoSuchWebhook { .. } => "webhook-not-found",
            Self::BadSignature(_) => "bad-signature",
            Self::MethodNotAllowed { .. } => "method-not-allowed",
            Self::UnsupportedVersion { .. } => "microversion-unsupported",
            Self::Framework(status) => return code(status.canonical_reason().unwrap_or("error")),
            Self::Domain(error) => match error {
                Error::NotFound { what, .. } => return code(&format!("{what} not found")),
                Error::Invalid(_) => "invalid-request",
                Error::NotSupported(_) => "not-supported",
                Error::Forbidden { .. } => "forbidden",
                Error::Guarded(_) => "refused",
                Error::OverQuota { .. } => "quota-exceeded",
                Error::TooFast { .. } => "too-many-requests",
                Error::Conflict(_) => "conflict",
                Error::TooLarge(_) => "too-large",
                Error::Busy(_) => "busy",
                Error::InDoubt(_) => "in-doubt",
                Error::Unavailable { .. } => "unavailable",
                Error::Internal(_) => "internal",
            },
        };
        code(what)
    }

    /// The response, whose body is a union of what Qinling and the frameworks under it send, and of what
    /// OpenStack's guideline asks for: clients read `faultstring`, and crash where an error is not JSON.
    pub fn response(&self, request_id: Option<&str>) -> HttpResponse {
        let status = self.status();
        let text = self.to_string();
        let is_version = matches!(self, Self::UnsupportedVersion { .. });
        let mut entry = Entry::new(request_id, self.code(), status, &text);
        if is_version {
            (entry.min_version, entry.max_version) = (Some(FIRST.to_string()), Some(LATEST.to_string()));
        }
        let body = Body {
            faultcode: if status.is_server_error() { "Server" } else { "Client" },
            faultstring: &text,
            debuginfo: None,
            code: status.as_u16(),
            title: status.canonical_reason().unwrap_or_default(),
            request_id,
            errors: [entry],
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

/// `function-engine.` and the words of a text, as a guideline of OpenStack's has it.
pub fn code(text: &str) -> String {
    let mut code = format!("{SERVICE_TYPE}.");
    let mut before = '.';
    for character in text.chars() {
        let is_next = character.is_ascii_uppercase() && before.is_ascii_lowercase();
        if character == ' ' || is_next {
            code.push('-');
        }
        if character.is_ascii_alphanumeric() || character == '-' {
            code.push(character.to_ascii_lowercase());
        }
        before = character;
    }
    code
}

/// The body of an error.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct Body<'a> {
    /// `Client` or `Server`, as Qinling says whose fault it is.
    faultcode: &'static str,
    /// What is wrong, for people.
    faultstring: &'a str,
    debuginfo: Option<&'static str>,
    /// The status.
    code: u16,
    title: &'static str,
    request_id: Option<&'a str>,
    /// The same in the form of OpenStack's guideline.
    errors: [Entry<'a>; 1],
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ErrorEntry")]
pub struct Entry<'a> {
    pub request_id: Option<&'a str>,
    /// What is wrong, for programs.
    pub code: String,
    pub status: u16,
    pub title: &'static str,
    pub detail: &'a str,
    /// Of the versions that there are, where the one asked for is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_version: Option<String>,
}

impl<'a> Entry<'a> {
    pub fn new(request_id: Option<&'a str>, code: String, status: StatusCode, detail: &'a str) -> Self {
        Self {
            request_id,
            code,
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or_default(),
            detail,
            min_version: None,
            max_version: None,
        }
    }
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
                "code": 404, "title": "Not Found", "request_id": "req-1", "errors": [{
                    "request_id": "req-1", "code": "function-engine.function-not-found", "status": 404,
                    "title": "Not Found", "detail": "Function not found [id=f]"}]})
        );
    }

    #[actix_web::test]
    async fn who_asks_for_an_unknown_version_is_told_which_there_are() {
        let headers = actix_web::http::header::HeaderMap::from_iter([(
            crate::api::version::HEADER.clone(),
            HeaderValue::from_static("function-engine 7.5"),
        )]);
        let error = crate::api::version::asked(&headers).unwrap_err();
        let response = error.response(Some("req-1"));
        assert_eq!(response.status(), 406);
        let body = body(response).await;
        let text = "Version 7.5 is not supported by the API. Minimum is 1.0 and maximum is 1.1.";
        assert_eq!(body["faultstring"], text);
        assert_eq!(
            body["errors"],
            json!([{"request_id": "req-1", "code": "function-engine.microversion-unsupported", "status": 406,
                "title": "Not Acceptable", "detail": text, "min_version": "1.0", "max_version": "1.1"}])
        );
    }

    #[test]
    fn codes_are_words_with_hyphens() {
        for (text, want) in [
            ("FunctionAlias not found", "function-engine.function-alias-not-found"),
            ("Package of function not found", "function-engine.package-of-function-not-found"),
            ("I'm a teapot", "function-engine.im-a-teapot"),
        ] {
            assert_eq!(code(text), want);
        }
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
