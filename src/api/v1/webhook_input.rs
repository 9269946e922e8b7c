//! What a webhook's caller sent, as the input of a function: whatever it is, and never refused for how
//! it looks.

use std::collections::BTreeMap;

use actix_multipart::Multipart;
use actix_web::HttpRequest;
use actix_web::http::header;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::api::extract::{Encoding, pairs};
use crate::model::input::raw;
use crate::model::{Arguments, FUNCTION_INPUT, Input};

/// The keys of the query and, over them, those of the body: a JSON object or a form. Any other body has
/// none. The query counts for nothing where the body is signed: the signature does not cover it.
pub async fn read(request: &HttpRequest, body: Bytes, is_signed: bool) -> Input {
    let query = if is_signed { "" } else { request.query_string() };
    let mut input = fields(pairs(query).unwrap_or_default());
    let mut from_body = match Encoding::of(request.headers()) {
        Encoding::Form => match std::str::from_utf8(&body) {
            Ok(form) => fields(pairs(form).unwrap_or_default()),
            Err(_) => Arguments::new(),
        },
        Encoding::Multipart => fields(multipart(request, body).await),
        Encoding::Json => match is_json(request) {
            true => Input::arguments(&body).unwrap_or_default(),
            false => Arguments::new(),
        },
    };
    input.append(&mut from_body);
    // What callers choose is arguments by name. As words they would be the command line of an image.
    input.remove(FUNCTION_INPUT);
    Input::from_arguments(input)
}

/// Whether the body is said to be JSON, or nothing is said of it.
fn is_json(request: &HttpRequest) -> bool {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else { return true };
    let essence = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    essence.is_empty() || essence == "application/json" || essence.ends_with("+json")
}

/// One text for a key that comes once, and a list for one that comes again.
fn fields(pairs: Vec<(String, String)>) -> Arguments {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in pairs {
        values.entry(key).or_default().push(value);
    }
    let of = |values: Vec<String>| match &values[..] {
        [value] => raw(value),
        values => raw(values),
    };
    values.into_iter().map(|(key, values)| (key, of(values))).collect()
}

/// The texts of a form with parts; files are left out, and so is what follows where it breaks off.
async fn multipart(request: &HttpRequest, body: Bytes) -> Vec<(String, String)> {
    let mut parts =
        Multipart::new(request.headers(), stream::iter([Ok::<_, actix_web::error::PayloadError>(body)]));
    let mut pairs = Vec::new();
    while let Some(Ok(mut part)) = parts.next().await {
        let is_file = part.content_disposition().is_some_and(|named| named.get_filename().is_some());
        let name = part.name().unwrap_or_default().to_owned();
        let mut text = Vec::new();
        while let Some(Ok(chunk)) = part.next().await {
            text.extend_from_slice(&chunk);
        }
        if let (false, false, Ok(text)) = (is_file, name.is_empty(), String::from_utf8(text)) {
            pairs.push((name, text));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use serde_json::{Value, json};

    use super::*;

    async fn input(uri: &str, content_type: Option<&str>, body: &'static str) -> Value {
        let mut request = TestRequest::with_uri(uri);
        if let Some(content_type) = content_type {
            request = request.insert_header((header::CONTENT_TYPE, content_type));
        }
        let input = read(&request.to_http_request(), Bytes::from_static(body.as_bytes()), false).await;
        serde_json::from_str(&input.to_json().unwrap()).unwrap()
    }

    #[actix_web::test]
    async fn query_and_body_become_one_object() {
        let json = Some("application/json");
        let form = Some("application/x-www-form-urlencoded");
        let parts = "--cut\r\nContent-Disposition: form-data; name=\"m\"\r\n\r\n1\r\n\
                     --cut\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x\"\r\n\r\nfile\r\n--cut--\r\n";
        for (uri, content_type, body, want) in [
            ("/x?q=1", json, r#"{"a": {"b": 1}}"#, json!({"q": "1", "a": {"b": 1}})),
            ("/x?a=1&a=2&b=%C3%A9+", None, "", json!({"a": ["1", "2"], "b": "é "})),
            ("/x?a=1", json, r#"{"a": 2, "id": "x"}"#, json!({"a": 2, "id": "x"})),
            ("/x", form, "a=1&a=2&b=3", json!({"a": ["1", "2"], "b": "3"})),
            ("/x", Some("application/json; charset=utf-8"), "{\"a\": 1}", json!({"a": 1})),
            ("/x", Some("application/cloudevents+json"), "{\"a\": 1}", json!({"a": 1})),
            ("/x", None, "{\"a\": 1}", json!({"a": 1})),
            ("/x", Some("text/plain"), "{\"a\": 1}", json!({})),
            ("/x", json, "[1, 2]", json!({})),
            ("/x", json, "bad json", json!({})),
            ("/x", json, "", json!({})),
            ("/x", Some("multipart/form-data; boundary=cut"), parts, json!({"m": "1"})),
            ("/x?q=1", Some("multipart/form-data"), "no parts", json!({"q": "1"})),
            ("/x?q=1", Some("multipart/form-data; boundary=cut"), "--cut\r\nbroken", json!({"q": "1"})),
        ] {
            assert_eq!(input(uri, content_type, body).await, want, "{uri} {content_type:?} {body}");
        }
    }
}
