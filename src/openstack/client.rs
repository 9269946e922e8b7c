//! The HTTP client that every session shares.

use std::time::Duration;

use osauth_reqwest::header::HeaderValue;
use osauth_reqwest::redirect::Policy;
use osauth_reqwest::{Certificate, Client};

use crate::config::KeystoneAuthtoken;
use crate::error::Source;

/// Below the time for which the servers behind keep a connection that says nothing.
const IDLE: Duration = Duration::from_secs(50);

/// No time limit for a whole request: packages are long, so that each call sets its own.
pub fn build(config: &KeystoneAuthtoken) -> Result<Client, Source> {
    let mut builder = Client::builder()
        .user_agent(concat!("taibai/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(config.http_connect_timeout)
        .pool_idle_timeout(IDLE)
        .danger_accept_invalid_certs(config.insecure)
        // Redirected, a token would go to whom the answer names.
        .redirect(Policy::none())
        // Packages are wanted byte for byte.
        .no_gzip();
    if !config.cafile.as_os_str().is_empty() {
        let file = config.cafile.display();
        let text = std::fs::read(&config.cafile)
            .map_err(|error| format!("[keystone_authtoken] cafile = {file}: cannot be read: {error}"))?;
        let certificates = Certificate::from_pem_bundle(&text)
            .map_err(|_| format!("[keystone_authtoken] cafile = {file}: expected certificates in PEM"))?;
        if certificates.is_empty() {
            return Err(format!("[keystone_authtoken] cafile = {file}: expected certificates in PEM").into());
        }
        for certificate in certificates {
            builder = builder.add_root_certificate(certificate);
        }
    }
    Ok(builder.build()?)
}

/// A header's value that no log shows; none where it could be no header.
pub fn secret_header(value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(value).ok()?;
    header.set_sensitive(true);
    Some(header)
}
