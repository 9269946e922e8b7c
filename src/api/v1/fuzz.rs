//! What the API reads of strangers, for `crate::fuzz`.

use actix_web::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use actix_web::test::TestRequest;
use bytes::Bytes;
use serde_json::Value;

use super::{PARTS, PROJECTS, filter, function_form, list_query, page, webhook_input};
use crate::db::Filter;
use crate::error::Error;
use crate::model::{FUNCTION_INPUT, execution};
use crate::storage::PackageStore;

/// A form whose first line is its content type and whose second says how it is cut: by bytes.
pub async fn form(data: &[u8], store: &dyn PackageStore) {
    let Some((headers, piece, body)) = request(data) else { return };
    let body = body.chunks(piece).map(Bytes::copy_from_slice).collect();
    match function_form::read_form(&headers, body, store).await {
        Ok(_) | Err(Error::TooLarge(_)) => {}
        Err(Error::Invalid(reason)) => assert!(reason.len() < 4096, "a reason of {} bytes", reason.len()),
        Err(other) => panic!("{other:?}"),
    }
}

/// The call of a webhook, written in the same way, with its query before the content type and a `|`. What a
/// stranger chooses is arguments by name and never the words of a command line.
pub async fn webhook(data: &[u8]) {
    let Some(end) = data.iter().position(|byte| *byte == b'|') else { return };
    let Ok(query) = std::str::from_utf8(&data[..end]) else { return };
    let Ok(uri) = format!("/x?{query}").parse::<actix_web::http::Uri>() else { return };
    let Some((headers, _, body)) = request(&data[end + 1..]) else { return };
    for is_signed in [false, true] {
        let mut request = TestRequest::with_uri(&uri.to_string());
        if let Some(kind) = headers.get(CONTENT_TYPE) {
            request = request.insert_header((CONTENT_TYPE, kind.clone()));
        }
        let body = Bytes::copy_from_slice(body);
        let input = webhook_input::read(&request.to_http_request(), body, is_signed).await;
        let written = input.to_json().expect("a webhook has an input always");
        let Ok(Value::Object(read)) = serde_json::from_str(&written) else { panic!("{written}") };
        assert!(!read.contains_key(FUNCTION_INPUT), "{written}");
    }
}

/// The query of a list: refused in a sentence, or what it says. Gives its filters.
pub fn query(text: &str) -> Vec<Filter> {
    const KEYS: [&str; 4] = ["status", "function_id", "description", "limit"];
    let Ok(uri) = format!("/x?{text}").parse::<actix_web::http::Uri>() else { return Vec::new() };
    let request = TestRequest::with_uri(&uri.to_string()).to_http_request();
    let keys = [&KEYS[..3], &PROJECTS].concat();
    match list_query(&request, &keys) {
        Ok(query) => {
            let refused = page::<execution::Entity>(&query).err().map(|error| error.to_string());
            assert!(refused.is_none_or(|reason| reason.len() < 4096));
            keys.iter().chain(&PARTS).filter_map(|key| filter(&query, key)).collect()
        }
        Err(Error::Invalid(reason)) => {
            assert!(reason.len() < 4096, "a reason of {} bytes", reason.len());
            Vec::new()
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// Content type, size of pieces and body.
fn request(data: &[u8]) -> Option<(HeaderMap, usize, &[u8])> {
    let end = data.iter().position(|byte| *byte == b'\n')?;
    let (piece, body) = data[end + 1..].split_first()?;
    let mut headers = HeaderMap::new();
    if end > 0 {
        headers.insert(CONTENT_TYPE, HeaderValue::from_bytes(&data[..end]).ok()?);
    }
    Some((headers, usize::from(*piece).max(1), body))
}
