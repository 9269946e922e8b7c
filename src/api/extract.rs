//! The parts of a request that handlers ask for: its body, its query and the id in its path.

use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::App;
use super::error::ApiError;
use super::version::is_first;
use super::wire::{Shape, as_integer, bad_id, integer, invalid, is_uuid, shorten, text_as_boolean};
use crate::error::{Error, Result};

/// How a body is written, from its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Form,
    Multipart,
}

impl Encoding {
    /// JSON is also what comes without a content type, or with one that names no form.
    pub fn of(headers: &HeaderMap) -> Self {
        let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let essence = value.split(';').next().unwrap_or("").trim();
        if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            Self::Form
        } else if essence.eq_ignore_ascii_case("multipart/form-data") {
            Self::Multipart
        } else {
            Self::Json
        }
    }
}

/// The pairs of a form or of a query, decoded, in order.
pub fn pairs(encoded: &str) -> Result<Vec<(String, String)>> {
    web::Query::<Vec<(String, String)>>::from_query(encoded)
        .map(web::Query::into_inner)
        .map_err(|_| Error::invalid("The form or query string can not be decoded."))
}

/// Reads a whole body, up to `limit` bytes.
pub async fn read_whole(payload: &mut Payload, limit: u64) -> Result<Bytes> {
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| Error::invalid("The request body can not be read."))?;
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(too_large(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

pub fn too_large(limit: u64) -> Error {
    Error::TooLarge(format!("The request body is larger than {limit} bytes."))
}

/// The body of a request whose arguments are JSON, read whole and not yet parsed, so that a handler
/// asks the policy first.
#[derive(Debug)]
pub struct Body {
    encoding: Encoding,
    bytes: Bytes,
    /// Whether the request is for version 1.0 and nothing newer.
    is_first: bool,
}

impl Body {
    /// The body as `T`, which has a field for each that `shape` may leave.
    pub fn parse<T: DeserializeOwned>(&self, shape: &Shape) -> Result<T> {
        self.parse_mended(shape, |object| object)
    }

    /// The same, where a client is known to write something else than it means: `mend` writes what it
    /// means.
    pub fn parse_mended<T: DeserializeOwned>(
        &self,
        shape: &Shape,
        mend: impl FnOnce(Map<String, Value>) -> Map<String, Value>,
    ) -> Result<T> {
        let admitted = shape.admit(mend(self.object(shape)?), self.is_first)?;
        serde_json::from_value(Value::Object(admitted)).map_err(Error::internal)
    }

    fn object(&self, shape: &Shape) -> Result<Map<String, Value>> {
        match self.encoding {
            Encoding::Json => {}
            Encoding::Form => {
                let form = std::str::from_utf8(&self.bytes).map_err(|_| not_json())?;
                return Err(match pairs(form)?.first() {
                    Some((name, _)) => unknown_argument(name),
                    None => missing(shape),
                });
            }
            Encoding::Multipart => {
                return Err(Error::invalid("A form is not accepted here; send a JSON object."));
            }
        }
        if self.bytes.trim_ascii().is_empty() {
            return Err(missing(shape));
        }
        match serde_json::from_slice(&self.bytes) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(Value::Null) => Err(missing(shape)),
            Ok(other) => Err(invalid(shape.argument, &other, "A JSON object is required.")),
            Err(_) => Err(not_json()),
        }
    }
}

fn missing(shape: &Shape) -> Error {
    Error::Invalid(format!("Missing argument: \"{}\"", shape.argument))
}

pub fn not_json() -> Error {
    Error::invalid("Request is not in valid JSON format")
}

fn unknown_argument(name: &str) -> Error {
    Error::Invalid(format!("Unknown argument: \"{}\"", shorten(name)))
}

impl FromRequest for Body {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let limit = App::of(request).max_body_bytes;
        let encoding = Encoding::of(request.headers());
        let mut payload = payload.take();
        let is_first = is_first(request);
        Box::pin(
            async move { Ok(Self { encoding, bytes: read_whole(&mut payload, limit).await?, is_first }) },
        )
    }
}

/// The query of a request.
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// The query, if it has no key but these and each of them once.
    pub fn of(request: &HttpRequest, known: &[&str]) -> Result<Self> {
        let query = Self::lenient(request)?;
        for (index, (key, value)) in query.0.iter().enumerate() {
            if !known.contains(&key.as_str()) {
                return Err(unknown_argument(key));
            }
            if query.0[..index].iter().any(|(earlier, _)| earlier == key) {
                return Err(invalid(key, &Value::String(value.clone()), "It may be given only once."));
            }
        }
        Ok(query)
    }

    /// The query, whatever else is in it.
    pub fn lenient(request: &HttpRequest) -> Result<Self> {
        Ok(Self(pairs(request.query_string())?))
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// A boolean; absent and empty are false.
    pub fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None | Some("") => Ok(false),
            Some(text) => text_as_boolean(text).ok_or_else(|| {
                invalid(key, &Value::String(text.to_owned()), "A boolean is required, as true or false.")
            }),
        }
    }

    /// An integer; absent is `None`.
    pub fn integer(&self, key: &'static str, min: i32) -> Result<Option<i32>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let value = integer(key, min).admit_integer(&Value::String(text.to_owned()), min)?;
        Ok(as_integer(&value).and_then(|number| i32::try_from(number).ok()))
    }
}

/// No query at all: any key is refused.
#[derive(Debug)]
pub struct NoQuery;

impl FromRequest for NoQuery {
    type Error = ApiError;
    type Future = std::future::Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        std::future::ready(Query::of(request, &[]).map(|_| Self).map_err(ApiError::from))
    }
}

/// The `{id}` of a path, which must be a UUID, dashed or not. It is looked up as it was written.
#[derive(Debug)]
pub struct PathId(pub String);

impl FromRequest for PathId {
    type Error = ApiError;
    type Future = std::future::Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let id = request.match_info().query("id");
        std::future::ready(if is_uuid(id) { Ok(Self(id.to_owned())) } else { Err(bad_id("id", id).into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::text;

    const SHAPE: Shape = Shape { argument: "thing", fields: &[text("name")] };

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        let parse = |encoding, bytes: &'static str| {
            let body = Body { encoding, bytes: Bytes::from_static(bytes.as_bytes()), is_first: false };
            body.parse::<Value>(&SHAPE).unwrap_err().to_string()
        };
        for empty in ["", "  \n", "null"] {
            assert_eq!(parse(Encoding::Json, empty), "Missing argument: \"thing\"");
        }
        assert_eq!(parse(Encoding::Json, "notjson"), "Request is not in valid JSON format");
        assert_eq!(parse(Encoding::Form, "image=a&b=c"), "Unknown argument: \"image\"");
        assert_eq!(
            parse(Encoding::Json, "[1]"),
            "Invalid input for field/attribute thing. Value: '[1]'. A JSON object is required."
        );
    }

    #[test]
    fn the_query_is_strict_where_it_is_asked_to_be() {
        let request =
            |query: &str| actix_web::test::TestRequest::with_uri(&format!("/x?{query}")).to_http_request();
        let known = ["all_projects", "function_version"];
        let query = Query::of(&request("all_projects=0&function_version=3"), &known).unwrap();
        assert!(!query.flag("all_projects").unwrap());
        assert_eq!(query.integer("function_version", 0).unwrap(), Some(3));
        assert!(!Query::of(&request("all_projects="), &known).unwrap().flag("all_projects").unwrap());
        let refused = Query::of(&request("foo=bar"), &known).unwrap_err();
        assert_eq!(refused.to_string(), "Unknown argument: \"foo\"");
        assert!(Query::of(&request("all_projects=1&all_projects=0"), &known).is_err());
        let bad = Query::of(&request("function_version=x"), &known).unwrap();
        assert!(bad.integer("function_version", 0).unwrap_err().to_string().starts_with("Invalid input"));
    }
}
