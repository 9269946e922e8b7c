//! TLS of the API's listener: its certificate, which is taken anew when its files change, and the
//! authorities of callers' certificates, if they have to show one.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use crate::config::{self, Watched};
use crate::error::Source;
use crate::telemetry::Chain;

/// Why TLS cannot be used; names the key of the configuration.
#[derive(Debug, thiserror::Error)]
#[error("[api] {key}: {reason}")]
pub struct Error {
    key: &'static str,
    reason: &'static str,
    #[source]
    source: Option<Source>,
}

fn wrong(key: &'static str, reason: &'static str, source: impl Into<Source>) -> Error {
    Error { key, reason, source: Some(source.into()) }
}

/// The certificate that is shown from now on.
#[derive(Debug)]
pub struct Certificate {
    files: [Watched; 2],
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    fn open(cert: &Path, key: &Path) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // Before the first reading, so that a change during that is one.
        let files = [Watched::new(cert), Watched::new(key)];
        let current = RwLock::new(Arc::new(read(cert, key, &provider)?));
        Ok(Self { files, provider, current })
    }

    /// Reads both files again if one has changed. One that cannot be used changes nothing: a new
    /// certificate is there before its key, or the other way round.
    pub fn refresh(&self) {
        let changed = self.files.each_ref().map(Watched::changed);
        if !changed.contains(&true) {
            return;
        }
        match read(self.files[0].path(), self.files[1].path(), &self.provider) {
            Ok(new) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                tracing::info!("the certificate was read again");
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the new certificate cannot be used; the old one stays");
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// What the listener needs; `None` where the configuration names no certificate.
pub fn of_config(api: &config::Api) -> Result<Option<(ServerConfig, Arc<Certificate>)>, Error> {
    if api.tls_cert.as_os_str().is_empty() {
        return Ok(None);
    }
    let certificate = Arc::new(Certificate::open(&api.tls_cert, &api.tls_key)?);
    let provider = certificate.provider.clone();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("tls_cert", "TLS cannot be used", error))?;
    let builder = match api.tls_client_ca.as_os_str().is_empty() {
        true => builder.with_no_client_auth(),
        false => {
            let mut roots = RootCertStore::empty();
            for authority in certificates("tls_client_ca", &api.tls_client_ca)? {
                let added = roots.add(authority);
                added.map_err(|error| wrong("tls_client_ca", "it holds what is no authority", error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier =
                verifier.map_err(|error| wrong("tls_client_ca", "it cannot vouch for anybody", error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    Ok(Some((builder.with_cert_resolver(certificate.clone()), certificate)))
}

fn read(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let chain = certificates("tls_cert", cert)?;
    let key = PrivateKeyDer::from_pem_file(key);
    let key =
        key.map_err(|error| wrong("tls_key", "the file holds no key in PEM that can be read", error))?;
    CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| wrong("tls_cert", "it cannot be used with tls_key", error))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    const REASON: &str = "the file holds no certificate in PEM that can be read";
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Error { key, reason: REASON, source: None }),
        Err(error) => Err(wrong(key, REASON, error)),
    }
}
