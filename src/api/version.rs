//! Versions of the API: what a request asks for, and what each of them has.
//!
//! 1.0 is Qinling's API as it was, and everything beyond is newer. Who asks for 1.0 gets that and nothing
//! else. Who asks for nothing is a client of Qinling's, or one that does not mind: what Qinling had
//! is as in 1.0 for it, and what is newer is there as well, since all of that is added at the end.

use std::fmt;

use actix_web::HttpMessage;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

use super::error::ApiError;
use super::wire::shorten;

pub const SERVICE_TYPE: &str = "function-engine";
pub static HEADER: HeaderName = HeaderName::from_static("openstack-api-version");

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u16,
    minor: u16,
}

pub const FIRST: Version = Version { major: 1, minor: 0 };
pub const LATEST: Version = Version { major: 1, minor: 1 };
/// Every version that there is, as the header of an answer names it.
static SHOWN: [(Version, HeaderValue); 2] = [
    (FIRST, HeaderValue::from_static("function-engine 1.0")),
    (LATEST, HeaderValue::from_static("function-engine 1.1")),
];

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let is_plain =
                text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
            text.parse().ok().filter(|_| is_plain)
        };
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: number(major)?, minor: number(minor)? })
    }

    /// What the answer says that it is.
    pub fn header(self) -> HeaderValue {
        let shown = SHOWN.iter().find(|(version, _)| *version == self);
        shown.map_or(const { HeaderValue::from_static(SERVICE_TYPE) }, |(_, header)| header.clone())
    }
}

/// The version that a request asks for by its header; in its extensions where it does.
#[derive(Debug, Clone, Copy)]
pub struct Asked(pub Version);

/// Whether a request is for Qinling's API and nothing newer.
pub fn is_first(request: &impl HttpMessage) -> bool {
    request.extensions().get::<Asked>().is_some_and(|asked| asked.0 == FIRST)
}

/// Reads the header. It may name versions of other services too, and come more than once.
pub fn asked(headers: &HeaderMap) -> Result<Option<Version>, ApiError> {
    let mut asked = None;
    for value in headers.get_all(&HEADER) {
        let text = value.to_str().map_err(|_| malformed("?"))?;
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let words: Vec<&str> = part.split_ascii_whitespace().collect();
            match words[..] {
                [service, version] if service.eq_ignore_ascii_case(SERVICE_TYPE) => {
                    asked = Some(of(version)?)
                }
                [_, _] => {}
                _ => return Err(malformed(part)),
            }
        }
    }
    Ok(asked)
}

fn of(text: &str) -> Result<Version, ApiError> {
    if text.eq_ignore_ascii_case("latest") {
        return Ok(LATEST);
    }
    let version = Version::parse(text).ok_or_else(|| malformed(text))?;
    if SHOWN.iter().any(|(known, _)| *known == version) {
        Ok(version)
    } else {
        Err(ApiError::UnsupportedVersion { asked: version })
    }
}

fn malformed(text: &str) -> ApiError {
    ApiError::invalid(format!(
        "Invalid OpenStack-API-Version: '{}'. Expected {SERVICE_TYPE} and a version, as {SERVICE_TYPE} {LATEST}.",
        shorten(text.trim())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&'static str]) -> Result<Option<String>, u16> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER.clone(), HeaderValue::from_static(value));
        }
        asked(&headers).map(|asked| asked.map(|it| it.to_string())).map_err(|error| error.status().as_u16())
    }

    #[test]
    fn the_header_names_a_version_of_this_service() {
        let version = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["function-engine 1.0"]), version("1.0"));
        assert_eq!(read(&["Function-Engine  LATEST "]), version("1.1"));
        assert_eq!(read(&["compute 2.99"]), Ok(None));
        assert_eq!(read(&[" , "]), Ok(None));
        assert_eq!(read(&["compute 2.99, function-engine 1.1"]), version("1.1"));
        assert_eq!(read(&["compute 2.99", "function-engine 1.1"]), version("1.1"));
    }

    #[test]
    fn what_is_no_version_and_what_is_none_of_ours_are_told_apart() {
        for malformed in [
            "1.1",
            "function-engine",
            "function-engine 1",
            "function-engine 1.",
            "function-engine 1.x",
            "function-engine 1.01",
            "function-engine -1.0",
            "function-engine 1.0 x",
            "function-engine 1.99999999",
            "function-engine +1.1",
        ] {
            assert_eq!(read(&[malformed]), Err(400), "{malformed}");
        }
        for unsupported in ["function-engine 0.9", "function-engine 1.2", "function-engine 2.0"] {
            assert_eq!(read(&[unsupported]), Err(406), "{unsupported}");
        }
    }

    #[test]
    fn every_version_is_named_in_answers() {
        for (version, header) in &SHOWN {
            assert_eq!(header.to_str().unwrap(), format!("{SERVICE_TYPE} {version}"));
            assert_eq!(&version.header(), header);
        }
        assert_eq!((SHOWN[0].0, SHOWN[1].0), (FIRST, LATEST));
    }
}
