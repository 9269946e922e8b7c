//! Tags of answers, so that who has one already is told just that.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::http::header::{self, EntityTag, Header, IfNoneMatch};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse};
use sha2::{Digest, Sha256};

/// Tags an answer that shows one thing and is there as a whole, and takes its body away where the caller
/// has it. Bodies that are sent while they are read have a tag only where a handler gave them one.
pub fn tag(response: ServiceResponse<BoxBody>, pattern: &str) -> ServiceResponse<BoxBody> {
    if response.status() != StatusCode::OK || response.request().method() != Method::GET {
        return response;
    }
    let (request, response) = response.into_parts();
    let response = if response.headers().contains_key(header::ETAG) {
        response
    } else if pattern.contains('{') || pattern.starts_with("/api/") {
        tagged(response)
    } else {
        response
    };
    let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()?.parse().ok());
    let response = match tag {
        Some(tag) if has(&request, &tag) => unchanged(&tag),
        _ => response,
    };
    ServiceResponse::new(request, response)
}

fn tagged(response: HttpResponse) -> HttpResponse {
    let (mut response, body) = response.into_parts();
    match body.try_into_bytes() {
        Ok(bytes) => {
            // Half of it is plenty to tell one answer from another.
            let tag = EntityTag::new_strong(hex::encode(&Sha256::digest(&bytes)[..16]));
            if let Ok(tag) = header::HeaderValue::from_str(&tag.to_string()) {
                response.headers_mut().insert(header::ETAG, tag);
            }
            response.set_body(BoxBody::new(bytes))
        }
        Err(body) => response.set_body(body),
    }
}

/// Whether the caller says that it has this.
pub fn has(request: &HttpRequest, tag: &EntityTag) -> bool {
    if !request.headers().contains_key(header::IF_NONE_MATCH) {
        return false;
    }
    match IfNoneMatch::parse(request) {
        Ok(IfNoneMatch::Any) => true,
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|known| known.weak_eq(tag)),
        Err(_) => false,
    }
}

/// The answer to who has it.
pub fn unchanged(tag: &EntityTag) -> HttpResponse {
    HttpResponse::NotModified().insert_header((header::ETAG, tag.to_string())).finish()
}
