//! The cloud around us: Keystone's tokens and trusts, its catalog, objects in Swift. Knows neither
//! callers nor functions, no HTTP of ours and no SQL.
//!
//! Built on `osauth` sessions, with types of our own for what they authenticate with: the shipped
//! ones keep a revoked token until its clock runs out, know no trusts, and fail on a catalog that
//! lacks a region. Object storage beyond single objects is the `openstack` crate's.

mod auth;
mod client;
mod environment;
mod error;
mod keystone;
mod limits;
mod registry;
mod request;
mod session;
mod swift;
mod trusts;
mod wire;

pub use environment::Administrator;
pub use error::{Error, Result};
pub use keystone::{Expired, Keystone};
pub use registry::{Change, Done, Registration, Registry};
pub use request::{new_id, on_behalf_of, on_our_own};
pub use session::Session;
pub use swift::{Object, ObjectInfo, Swift};
pub use trusts::{TrustError, TrustToken};

use osauth_reqwest::Url;
use osauth_reqwest::header::HeaderName;

/// The header that carries the id of the request that a call serves.
static REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id");
static AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
static SUBJECT_TOKEN: HeaderName = HeaderName::from_static("x-subject-token");

/// Whether a URL leads back to the machine that resolves it: in a container, to the container.
pub fn is_loopback(url: &str) -> bool {
    use std::net::IpAddr;

    let Ok(url) = Url::parse(url) else { return false };
    let Some(host) = url.host_str() else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    match host.parse::<IpAddr>() {
        Ok(address) => {
            let address = address.to_canonical();
            address.is_loopback() || address.is_unspecified()
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_url_is_recognized() {
        for url in [
            "http://localhost:5000/v3",
            "http://LOCALHOST/",
            "http://a.localhost./",
            "http://127.0.0.1:8080/v1",
            "http://127.1.2.3",
            "https://[::1]:5000",
            "http://[::ffff:127.0.0.1]/",
            "http://0.0.0.0:5000",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        for url in
            ["http://controller:5000", "http://10.0.0.1", "http://[fe80::1]/", "localhost", "", "unix:/x"]
        {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
