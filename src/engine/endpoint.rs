//! Where an engine in a process of its own is reached, and how both sides know each other there: by
//! the rights on a socket of this machine, or by certificates of an authority of their own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config;
use crate::error::Source;

/// Why an endpoint cannot be used; names the key of the configuration.
#[derive(Debug, thiserror::Error)]
#[error("[engine] {key}: {reason}")]
pub struct Error {
    key: &'static str,
    reason: &'static str,
    #[source]
    source: Option<Source>,
}

impl Error {
    pub(super) fn client(source: reqwest::Error) -> Self {
        wrong("tls_cert", "no client can be made with it", source)
    }
}

fn wrong(key: &'static str, reason: &'static str, source: impl Into<Source>) -> Error {
    Error { key, reason, source: Some(source.into()) }
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Unix(PathBuf),
    Tls(SocketAddr),
}

impl Listen {
    pub fn from_config(config: &config::Engine) -> Result<Self, Error> {
        if let Some(path) = config.listen.strip_prefix("unix://") {
            return Ok(Self::Unix(path.into()));
        }
        let address = config.listen.strip_prefix("https://").unwrap_or_default();
        let address = address.trim_end_matches('/').parse();
        Ok(Self::Tls(address.map_err(|error| wrong("listen", "expected https://ADDRESS:PORT", error))?))
    }
}

/// What an engine tells APIs of itself.
pub fn advertised(config: &config::Engine) -> Result<String, Error> {
    if !config.advertise.is_empty() {
        return Ok(config.advertise.clone());
    }
    Ok(match Listen::from_config(config)? {
        Listen::Unix(_) => config.listen.clone(),
        Listen::Tls(address) if address.ip().is_unspecified() => {
            format!("https://{}:{}", super::node_name(config), address.port())
        }
        Listen::Tls(address) => format!("https://{address}"),
    })
}

/// The engine's side: whoever calls shows a certificate of the authority.
pub fn server_tls(config: &config::Engine) -> Result<ServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(authority(config)?), provider.clone())
            .build()
            .map_err(|error| wrong("tls_ca", "it cannot vouch for anybody", error))?;
    let (chain, key) = identity(config)?;
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_client_cert_verifier(verifier))
        .and_then(|builder| builder.with_single_cert(chain, key))
        .map_err(|error| wrong("tls_cert", "it cannot be used with tls_key", error))
}

/// The API's side: it trusts the authority alone, and shows a certificate of it.
pub fn client_tls(config: &config::Engine) -> Result<ClientConfig, Error> {
    let (chain, key) = identity(config)?;
    client_builder(authority(config)?)?
        .with_client_auth_cert(chain, key)
        .map_err(|error| wrong("tls_cert", "it cannot be used with tls_key", error))
}

/// For a connection that needs none: it trusts nobody.
pub fn no_tls() -> Result<ClientConfig, Error> {
    Ok(client_builder(RootCertStore::empty())?.with_no_client_auth())
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn client_builder(roots: RootCertStore) -> Result<Builder, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong("tls_cert", "TLS cannot be used", error))?;
    Ok(builder.with_root_certificates(roots))
}

fn authority(config: &config::Engine) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls_ca", &config.tls_ca)? {
        roots.add(certificate).map_err(|error| wrong("tls_ca", "it holds what is no authority", error))?;
    }
    Ok(roots)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(config: &config::Engine) -> Result<Identity, Error> {
    let key = PrivateKeyDer::from_pem_file(&config.tls_key);
    let key =
        key.map_err(|error| wrong("tls_key", "the file holds no key in PEM that can be read", error))?;
    Ok((certificates("tls_cert", &config.tls_cert)?, key))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    const REASON: &str = "the file holds no certificate in PEM that can be read";
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Error { key, reason: REASON, source: None }),
        Err(error) => Err(wrong(key, REASON, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str, advertise: &str) -> config::Engine {
        config::Engine {
            listen: listen.to_owned(),
            advertise: advertise.to_owned(),
            node: "node-1".to_owned(),
            ..config::Engine::default()
        }
    }

    #[test]
    fn an_engine_says_where_others_reach_it() {
        for (listen, advertise, expected) in [
            ("unix:///run/e.sock", "", "unix:///run/e.sock"),
            ("https://0.0.0.0:7071", "", "https://node-1:7071"),
            ("https://[::]:7071", "", "https://node-1:7071"),
            ("https://192.0.2.1:7071", "", "https://192.0.2.1:7071"),
            ("https://0.0.0.0:7071", "https://one.example:443", "https://one.example:443"),
        ] {
            assert_eq!(advertised(&config(listen, advertise)).unwrap(), expected);
        }
        let error = advertised(&config("https://name:7071", "")).unwrap_err().to_string();
        assert!(error.starts_with("[engine] listen: "), "{error}");
    }

    #[test]
    fn a_file_without_a_certificate_is_named_by_its_key() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = config::Engine { tls_ca: file.path().into(), ..config::Engine::default() };
        let error = server_tls(&config).unwrap_err().to_string();
        assert!(error.starts_with("[engine] tls_ca: the file holds no certificate"), "{error}");
    }
}
