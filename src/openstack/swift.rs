//! Objects in Swift.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use osauth_reqwest::header::{
    CONTENT_LENGTH, CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED,
};
use osauth_reqwest::{Body, Method, Response, Url};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::error::{Error, Result, SWIFT};
use super::session::Session;

/// How long Swift may take to begin an answer, or to send the next piece of one.
const PATIENCE: Duration = Duration::from_secs(60);
/// Slower than this, an upload is given up.
const LEAST_BYTES_PER_SECOND: u64 = 64 << 10;
/// What a name is written with as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same within an object's name, where a slash is no more than a character.
const PLAIN_AND_SLASH: &AsciiSet = &PLAIN.remove(b'/');

/// The containers and objects of the project that a session is for.
#[derive(Debug, Clone)]
pub struct Swift {
    session: Session,
}

/// What Swift says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// MD5 of the content in hexadecimal, for an object that is in one piece.
    pub etag: Option<String>,
    pub bytes: u64,
    pub content_type: Option<String>,
}

/// An object under way.
pub struct Object {
    pub info: ObjectInfo,
    pub content: Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>,
}

impl Swift {
    pub(super) fn new(session: Session) -> Self {
        Self { session }
    }

    pub async fn head_object(&self, container: &str, object: &str) -> Result<ObjectInfo> {
        let answer = self.send(Method::HEAD, container, object, PATIENCE, |request| request).await?;
        info(answer.headers())
    }

    /// How long ago an object was written, by the clock of whoever answers.
    pub async fn object_age(&self, container: &str, object: &str) -> Result<Duration> {
        let answer = self.send(Method::HEAD, container, object, PATIENCE, |request| request).await?;
        let time = |name: HeaderName| {
            let value = answer.headers().get(name)?.to_str().ok()?;
            httpdate::parse_http_date(value).ok()
        };
        let Some((now, written)) = time(DATE).zip(time(LAST_MODIFIED)) else {
            return Err(Error::unavailable(SWIFT, "it does not say when the object was written"));
        };
        // Swift rounds the second up.
        Ok(now.duration_since(written).unwrap_or_default())
    }

    /// The names of a container's objects. One that was written just now may be missing.
    pub async fn list_objects(&self, container: &str) -> Result<BTreeSet<String>> {
        if !named(container) || container.contains('/') {
            return Err(Error::NotFound);
        }
        let cloud = openstack::Cloud::from(self.session.inner().clone());
        let listing = async {
            let objects = cloud.find_objects(container).into_stream().await?;
            objects.map_ok(|object| object.name().clone()).try_collect().await
        };
        within(listing).await?.map_err(|error| Error::of_session(SWIFT, error))
    }

    /// The object's content as it arrives. `info` is known before the first byte.
    pub async fn get_object(&self, container: &str, object: &str) -> Result<Object> {
        // A limit for the request would be one for the whole content.
        let asked = self.send(Method::GET, container, object, Duration::MAX, |request| request);
        let answer = within(asked).await??;
        let info = info(answer.headers())?;
        let pieces = Box::pin(answer.bytes_stream());
        let content = futures_util::stream::unfold(Some(pieces), |pieces| async {
            let mut pieces = pieces?;
            let piece = match within(pieces.next()).await {
                Ok(None) => return None,
                Ok(Some(piece)) => piece.map_err(|error| Error::unavailable(SWIFT, error)),
                Err(error) => Err(error),
            };
            // Nothing follows an error.
            let rest = piece.is_ok().then_some(pieces);
            Some((piece, rest))
        });
        Ok(Object { info, content: Box::pin(content) })
    }

    /// Writes an object of `bytes` bytes, in one piece, over one that is there. Swift compares the
    /// content with `md5`, where it is given, before it takes it. Answers with the etag.
    pub async fn put_object<S, E>(
        &self,
        container: &str,
        object: &str,
        content: S,
        bytes: u64,
        md5: Option<&str>,
    ) -> Result<Option<String>>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let limit = PATIENCE + Duration::from_secs(bytes / LEAST_BYTES_PER_SECOND);
        let answer = self
            .send(Method::PUT, container, object, limit, |request| {
                let request = request
                    .header(CONTENT_LENGTH, bytes)
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .body(Body::wrap_stream(content));
                match md5 {
                    Some(md5) => request.header(ETAG, md5),
                    None => request,
                }
            })
            .await?;
        Ok(etag(answer.headers()))
    }

    /// Removes an object. One that is gone already is no error.
    pub async fn delete_object(&self, container: &str, object: &str) -> Result<()> {
        match self.send(Method::DELETE, container, object, PATIENCE, |request| request).await {
            Ok(_) | Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether there is such a container.
    pub async fn has_container(&self, container: &str) -> Result<bool> {
        if !named(container) || container.contains('/') {
            return Err(Error::NotFound);
        }
        let cloud = openstack::Cloud::from(self.session.inner().clone());
        match within(cloud.get_container(container)).await? {
            Ok(_) => Ok(true),
            Err(error) => match Error::of_session(SWIFT, error) {
                Error::NotFound => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Makes a container unless it is there.
    pub async fn ensure_container(&self, container: &str) -> Result<()> {
        // The crate leaves such a name out of the path, which then names the whole account.
        if !named(container) || container.contains('/') {
            return Err(Error::NotFound);
        }
        let cloud = openstack::Cloud::from(self.session.inner().clone());
        let made = within(cloud.create_container(container)).await?;
        made.map(drop).map_err(|error| Error::of_session(SWIFT, error))
    }

    async fn send(
        &self,
        method: Method,
        container: &str,
        object: &str,
        limit: Duration,
        with: impl FnOnce(osauth::client::RequestBuilder) -> osauth::client::RequestBuilder,
    ) -> Result<Response> {
        let Some(account) = self.session.endpoint("object-store") else {
            return Err(Error::unavailable(SWIFT, "the catalog has no endpoint of object-store"));
        };
        let url = url(&account, container, object).ok_or(Error::NotFound)?;
        let mut request = with(self.session.inner().client().request(method, url));
        if limit != Duration::MAX {
            request = request.timeout(limit);
        }
        let answer = request.send_unchecked().await.map_err(|error| Error::of_session(SWIFT, error))?;
        let status = answer.status();
        if status.is_success() { Ok(answer) } else { Err(Error::of_status(SWIFT, status.as_u16())) }
    }
}

/// The object's URL. None for names that no URL can carry, or that Swift does not take: sent all the
/// same, they would be another object's, or the container's.
fn url(account: &Url, container: &str, object: &str) -> Option<Url> {
    if !named(container) || container.contains('/') || !named(object) {
        return None;
    }
    // Between slashes, dots would lead up the path.
    let dotted = object.split('/').any(|part| part == "." || part == "..");
    let object = utf8_percent_encode(object, if dotted { PLAIN } else { PLAIN_AND_SLASH });
    let account = account.as_str().trim_end_matches('/');
    Url::parse(&format!("{account}/{}/{object}", utf8_percent_encode(container, PLAIN))).ok()
}

fn named(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains('\0')
}

fn info(headers: &HeaderMap) -> Result<ObjectInfo> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let bytes = text(CONTENT_LENGTH).and_then(|bytes| bytes.parse().ok());
    Ok(ObjectInfo {
        etag: etag(headers),
        bytes: bytes.ok_or_else(|| Error::unavailable(SWIFT, "it does not say how long the object is"))?,
        content_type: text(CONTENT_TYPE).map(str::to_owned),
    })
}

fn etag(headers: &HeaderMap) -> Option<String> {
    // Of an object in segments it is that of their list.
    if ["x-static-large-object", "x-object-manifest"].iter().any(|name| headers.contains_key(*name)) {
        return None;
    }
    let etag = headers.get(ETAG)?.to_str().ok()?;
    Some(etag.trim_matches('"').to_owned())
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, future).await.map_err(|elapsed| Error::unavailable(SWIFT, elapsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_meaning_in_a_url() {
        let account = Url::parse("http://swift:8080/v1/AUTH_p").unwrap();
        for (container, object, path) in [
            ("c", "a.zip", "/v1/AUTH_p/c/a.zip"),
            ("c", "a/b//c", "/v1/AUTH_p/c/a/b//c"),
            ("c d", "ü?#%&+ ;=", "/v1/AUTH_p/c%20d/%C3%BC%3F%23%25%26%2B%20%3B%3D"),
            ("c", "a\tb\n", "/v1/AUTH_p/c/a%09b%0A"),
            ("c", "a/../b", "/v1/AUTH_p/c/a%2F..%2Fb"),
            ("c", "..a/.b", "/v1/AUTH_p/c/..a/.b"),
            ("c", "%2e%2e", "/v1/AUTH_p/c/%252e%252e"),
        ] {
            assert_eq!(url(&account, container, object).unwrap().path(), path, "{container} {object}");
        }
        let slash = Url::parse("http://swift:8080/swift/v1/").unwrap();
        assert_eq!(url(&slash, "c", "o").unwrap().path(), "/swift/v1/c/o");
    }

    #[test]
    fn a_name_that_would_be_another_object_has_no_url() {
        let account = Url::parse("http://swift:8080/v1/AUTH_p").unwrap();
        for (container, object) in
            [("c", ""), ("c", "."), ("c", ".."), ("", "o"), ("..", "o"), ("a/b", "o"), ("c", "a\0b")]
        {
            assert_eq!(url(&account, container, object), None, "{container} {object}");
        }
    }
}
