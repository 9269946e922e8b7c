//! The body of `POST` and `PUT /v1/functions`, in its three encodings.
//!
//! Fields that are not a function's are ignored here, unlike in every other body: clients send the
//! columns they print. A package is streamed to the store and never held in memory.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::HttpRequest;
use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::http::header;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde_json::{Map, Value, json};

use super::connection;
use crate::api::App;
use crate::api::extract::{Encoding, not_json, pairs, read_whole, too_large};
use crate::api::openapi::SINCE;
use crate::api::version::{LATEST, is_first};
use crate::api::wire::{as_integer, invalid};
use crate::error::{Error, Result};
use crate::resource::functions::Input;
use crate::storage::{self, PackageStore, Received};

const TEXTS: [&str; 5] = ["runtime_id", "name", "description", "entry", "network"];
/// Of these, what version 1.0 ignores as it does all that it does not know.
const NEWER: [&str; 1] = ["network"];
const NUMBERS: [(&str, &str); 3] = [("cpu", "cpu"), ("memory_size", "memory"), ("timeout", "timeout")];
/// The client's way of naming a Swift object in an update, which cannot be read.
const LOOSE: [&str; 2] = ["source", "swift"];
const PACKAGE: &str = "package";

/// Most parts of a form, and how long the rest of a refused one is read for.
const MAX_PARTS: usize = 100;
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// The schema of the body in each of its encodings, for the description of the API.
pub fn schemas(required: &[&str]) -> Vec<(&'static str, Value)> {
    let schema = |is_json: bool, is_multipart: bool| {
        let or_null = |kind: &str| if is_json { json!([kind, "null"]) } else { json!(kind) };
        let mut properties = Map::new();
        for name in TEXTS {
            let mut schema = json!({"type": or_null("string")});
            if NEWER.contains(&name) {
                schema[SINCE] = LATEST.to_string().into();
            }
            properties.insert(name.to_owned(), schema);
        }
        for (name, _) in NUMBERS {
            properties.insert(name.to_owned(), json!({"type": or_null("integer")}));
        }
        let code = "Where the code comes from: a JSON object, or text that holds one.";
        let kinds = if is_json { json!(["object", "string"]) } else { json!("string") };
        properties.insert("code".to_owned(), json!({"type": kinds, "description": code}));
        if is_multipart {
            let package =
                json!({"type": "string", "contentMediaType": "application/zip", "format": "binary"});
            properties.insert(PACKAGE.to_owned(), package);
        }
        json!({"type": "object", "properties": properties, "required": required})
    };
    vec![
        ("multipart/form-data", schema(false, true)),
        ("application/json", schema(true, false)),
        ("application/x-www-form-urlencoded", schema(false, false)),
    ]
}

/// Reads the body, whatever its encoding.
pub async fn read(request: &HttpRequest, payload: &mut Payload, app: &App) -> Result<Input> {
    let (mut fields, package) = match Encoding::of(request.headers()) {
        Encoding::Json => (json(&read_whole(payload, app.max_body_bytes).await?)?, None),
        Encoding::Form => {
            let body = read_whole(payload, app.max_body_bytes).await?;
            let text = std::str::from_utf8(&body).map_err(|_| Error::invalid("The form is not UTF-8."))?;
            let mut fields = Fields::default();
            for (name, value) in pairs(text)? {
                fields.add(&name, value)?;
            }
            (fields.0, None)
        }
        Encoding::Multipart => multipart(request, payload, app).await?,
    };
    if is_first(request) {
        NEWER.iter().for_each(|name| drop(fields.remove(*name)));
    }
    let mut input = interpret(fields)?;
    input.package = package;
    Ok(input)
}

fn json(body: &[u8]) -> Result<Map<String, Value>> {
    if body.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::invalid("A JSON object is required.")),
        Err(_) => Err(not_json()),
    }
}

/// The fields of a form, each given once.
#[derive(Debug, Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn add(&mut self, name: &str, value: String) -> Result<()> {
        if LOOSE.contains(&name) {
            self.0.insert(name.to_owned(), Value::String(value));
        } else if is_known(name) && self.0.insert(name.to_owned(), Value::String(value)).is_some() {
            return Err(Error::Invalid(format!("The field '{name}' may be given only once.")));
        }
        Ok(())
    }
}

fn is_known(name: &str) -> bool {
    name == "code" || TEXTS.contains(&name) || NUMBERS.iter().any(|(number, _)| *number == name)
}

/// What the fields mean. Absent and null are the same.
fn interpret(mut fields: Map<String, Value>) -> Result<Input> {
    let mut given = |name: &str| fields.remove(name).filter(|value| !value.is_null());
    let mut text = |name: &str| match given(name) {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(invalid(name, &other, "A string is required.")),
        None => Ok(None),
    };
    let [runtime_id, name, description, entry, network] = TEXTS.map(&mut text);
    let [cpu, memory_size, timeout] = NUMBERS.map(|(name, called)| match given(name) {
        Some(value) => as_integer(&value).map(Some).ok_or_else(|| {
            Error::Invalid(format!("Invalid {called} resource specified. An integer is required."))
        }),
        None => Ok(None),
    });
    let code = given("code").map(code).transpose()?;
    let [source, swift] = LOOSE.map(&mut given);
    if code.is_none() && (swift.is_some() || source.is_some_and(|source| source == "swift")) {
        return Err(Error::invalid(
            "A Swift object can not be given as the fields 'source' and 'swift'; send 'code' as JSON, \
             like {\"source\": \"swift\", \"swift\": {\"container\": \"c\", \"object\": \"o\"}}.",
        ));
    }
    Ok(Input {
        code,
        runtime_id: runtime_id?,
        name: name?,
        description: description?,
        // The dashboard sends an empty entry for one that is not set.
        entry: entry?.filter(|entry| !entry.is_empty()),
        cpu: cpu?,
        memory_size: memory_size?,
        timeout: timeout?,
        network: connection(network?)?,
        package: None,
    })
}

/// `code` is an object, or text that holds one.
fn code(value: Value) -> Result<Map<String, Value>> {
    let value = match value {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| Error::Invalid(format!("Invalid input, code is not JSON: {error}")))?,
        other => other,
    };
    match value {
        Value::Object(code) => Ok(code),
        other => Err(invalid("code", &other, "A JSON object is required.")),
    }
}

async fn multipart(
    request: &HttpRequest,
    payload: &mut Payload,
    app: &App,
) -> Result<(Map<String, Value>, Option<Received>)> {
    let most = app.max_package_bytes + app.max_body_bytes;
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let body = Shared(Rc::new(RefCell::new(payload.take())));
    let parts = Multipart::new(request.headers(), body.clone());
    let read = if announced.is_some_and(|length| length > most) {
        Err(package_too_large(app))
    } else {
        read_parts(parts, app.store.as_ref(), app.max_body_bytes).await
    };
    if read.is_err() {
        // A client that is still sending would see a broken connection and not the reason.
        body.drain(most).await;
    }
    read
}

async fn read_parts(
    mut parts: Multipart,
    store: &dyn PackageStore,
    max_text: u64,
) -> Result<(Map<String, Value>, Option<Received>)> {
    let mut fields = Fields::default();
    let mut package = None;
    let mut budget = max_text;
    let mut count = 0;
    while let Some(part) = parts.next().await {
        let mut part = part.map_err(|error| bad_form(&error))?;
        count += 1;
        if count > MAX_PARTS {
            return Err(Error::Invalid(format!("A form may have at most {MAX_PARTS} parts.")));
        }
        let name = part.name().unwrap_or_default().to_owned();
        if name == PACKAGE {
            if package.is_some() {
                return Err(Error::Invalid(format!("The field '{PACKAGE}' may be given only once.")));
            }
            package = Some(receive(&mut part, store).await?);
        } else {
            let text = read_text(&mut part, &mut budget, max_text).await?;
            if is_known(&name) || LOOSE.contains(&name.as_str()) {
                let text = String::from_utf8(text)
                    .map_err(|_| Error::Invalid(format!("The field '{name}' is not UTF-8.")))?;
                fields.add(&name, text)?;
            }
        }
    }
    Ok((fields.0, package))
}

async fn receive(part: &mut Field, store: &dyn PackageStore) -> Result<Received> {
    let mut upload = store.begin().await?;
    while let Some(chunk) = part.next().await {
        upload = upload.write(&chunk.map_err(|error| bad_form(&error))?).await?;
    }
    Ok(upload.finish().await?)
}

async fn read_text(part: &mut Field, budget: &mut u64, limit: u64) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    while let Some(chunk) = part.next().await {
        let chunk = chunk.map_err(|error| bad_form(&error))?;
        *budget = budget.checked_sub(chunk.len() as u64).ok_or_else(|| too_large(limit))?;
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

fn bad_form(error: &MultipartError) -> Error {
    Error::Invalid(format!("The form can not be read: {error}"))
}

fn package_too_large(app: &App) -> Error {
    storage::Error::TooLarge { limit: app.max_package_bytes }.into()
}

/// A body that can still be read when the form parser has given up on it.
#[derive(Clone)]
struct Shared(Rc<RefCell<Payload>>);

impl Stream for Shared {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(context)
    }
}

impl Shared {
    /// Reads on for a while, and throws away what comes.
    async fn drain(mut self, most: u64) {
        let reading = async {
            let mut left = most;
            while let Some(Ok(chunk)) = self.next().await {
                match left.checked_sub(chunk.len() as u64) {
                    Some(rest) => left = rest,
                    None => break,
                }
            }
        };
        // Whether it ended or not, the answer is sent next.
        let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
    }
}

/// Reads a form as a request brings it, and what its fields mean.
#[cfg(any(test, feature = "fuzz"))]
pub async fn read_form(
    headers: &header::HeaderMap,
    body: Vec<Bytes>,
    store: &dyn PackageStore,
) -> Result<Input> {
    const MAX_TEXT: u64 = 64 << 10;
    let pieces = futures_util::stream::iter(body.into_iter().map(Ok::<_, PayloadError>));
    let (fields, package) = read_parts(Multipart::new(headers, pieces), store, MAX_TEXT).await?;
    let texts = fields.values().map(|value| value.as_str().map_or(0, str::len) as u64);
    assert!(texts.sum::<u64>() <= MAX_TEXT, "the texts of a form are bounded");
    let mut input = interpret(fields)?;
    input.package = package;
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpret_json(value: Value) -> Result<Input, String> {
        let Value::Object(object) = value else { panic!("an object is needed") };
        interpret(object).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_may_be_text_and_nulls_are_nothing() {
        let input =
            interpret_json(json!({"cpu": "200", "timeout": 7, "memory_size": null, "name": ""})).unwrap();
        assert_eq!((input.cpu, input.timeout, input.memory_size), (Some(200), Some(7), None));
        assert_eq!(input.name.as_deref(), Some(""));
    }

    #[test]
    fn code_is_text_or_an_object() {
        let want = json!({"source": "image", "image": "x"});
        for code in [want.clone(), json!(want.to_string())] {
            let input = interpret_json(json!({"code": code})).unwrap();
            assert_eq!(input.code.map(Value::Object), Some(want.clone()));
        }
        assert!(interpret_json(json!({"code": "nojson"})).unwrap_err().starts_with("Invalid input, "));
        assert!(interpret_json(json!({"code": "[]"})).unwrap_err().contains("code"));
    }

    #[test]
    fn wrong_types_are_named() {
        let refused = interpret_json(json!({"memory_size": "lots"})).unwrap_err();
        assert_eq!(refused, "Invalid memory resource specified. An integer is required.");
        assert!(interpret_json(json!({"cpu": ""})).is_err());
        assert!(interpret_json(json!({"cpu": 1.5})).is_err());
        assert!(interpret_json(json!({"name": 5})).unwrap_err().contains("attribute name. Value: '5'"));
    }

    #[test]
    fn a_known_field_comes_once_and_an_unknown_one_is_ignored() {
        let mut fields = Fields::default();
        fields.add("name", "a".to_owned()).unwrap();
        for _ in 0..2 {
            fields.add("md5sum", "x".to_owned()).unwrap();
            fields.add("source", "package".to_owned()).unwrap();
        }
        assert_eq!(interpret(fields.0.clone()).unwrap().name.as_deref(), Some("a"));
        assert!(fields.add("name", "b".to_owned()).unwrap_err().to_string().contains("'name'"));
    }

    #[test]
    fn the_clients_update_of_a_swift_function_is_refused_with_the_reason() {
        let mut fields = Fields::default();
        fields.add("source", "swift".to_owned()).unwrap();
        fields.add("swift", "container".to_owned()).unwrap();
        fields.add("swift", "object".to_owned()).unwrap();
        assert!(interpret(fields.0).unwrap_err().to_string().contains("'source' and 'swift'"));
    }
}
