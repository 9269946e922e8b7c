//! Where this service is, as its callers know it.

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::forwarded::Forwarded;
use crate::config::Config;
use crate::model::Interface;
use crate::openstack::Keystone;
use crate::telemetry::Chain;

/// Between two looks at the catalog, and where Keystone did not answer.
const PERIOD: Duration = Duration::from_secs(300);
const AGAIN: Duration = Duration::from_secs(30);

/// The URL under which the service is called from outside.
pub struct PublicEndpoint {
    /// As the configuration says, without a slash at the end; empty where it does not.
    configured: String,
    catalog: Option<Looked>,
    /// Whether a proxy passes requests on, and says what their callers wrote.
    is_behind_proxy: bool,
}

/// What the catalog of the service's own token says, and until when that is believed.
struct Looked {
    keystone: Keystone,
    service_type: String,
    found: Mutex<Option<(Option<String>, Instant)>>,
}

impl PublicEndpoint {
    pub fn new(config: &Config, keystone: Option<Keystone>) -> Self {
        let service_type = config.keystone_authtoken.service_type.clone();
        Self {
            configured: without_slash(&config.api.public_endpoint),
            catalog: keystone.map(|keystone| Looked { keystone, service_type, found: Mutex::default() }),
            is_behind_proxy: config.oslo_middleware.enable_proxy_headers_parsing,
        }
    }

    /// From the configuration, else from the catalog, else what the request calls the service.
    pub async fn url(&self, request: &HttpRequest) -> String {
        if !self.configured.is_empty() {
            return self.configured.clone();
        }
        let registered = match &self.catalog {
            Some(catalog) => catalog.url().await,
            None => None,
        };
        registered.unwrap_or_else(|| self.as_called(request))
    }

    pub fn is_behind_proxy(&self) -> bool {
        self.is_behind_proxy
    }

    /// Scheme, host and what stands before our paths, as the caller wrote them.
    pub fn as_called(&self, request: &HttpRequest) -> String {
        let forwarded = match self.is_behind_proxy {
            true => Forwarded::of(request.headers()),
            false => Forwarded::default(),
        };
        let own = if request.app_config().secure() { "https" } else { "http" };
        let named = || request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = || request.uri().authority().map(|authority| authority.as_str());
        let host = forwarded.host.as_deref().or_else(named).or_else(authority);
        format!(
            "{}://{}{}",
            forwarded.scheme.as_deref().unwrap_or(own),
            host.unwrap_or_else(|| request.app_config().host()),
            forwarded.prefix.as_deref().unwrap_or_default()
        )
    }
}

impl Looked {
    async fn url(&self) -> Option<String> {
        let mut found = self.found.lock().await;
        if let Some((url, until)) = found.as_ref()
            && Instant::now() < *until
        {
            return url.clone();
        }
        let (url, pause) = match self.keystone.catalog().await {
            Ok(catalog) => {
                let url = catalog.endpoint(&self.service_type, Interface::Public, self.keystone.region());
                (url.map(without_slash), PERIOD)
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the public URL of this service cannot be looked up");
                (found.take().and_then(|(url, _)| url), AGAIN)
            }
        };
        *found = Some((url.clone(), Instant::now() + pause));
        url
    }
}

fn without_slash(url: &str) -> String {
    url.trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[actix_web::test]
    async fn the_configuration_wins_over_what_a_request_says() {
        let request = TestRequest::with_uri("/v1/webhooks").insert_header(("host", "h:1")).to_http_request();
        let mut config = Config::default();
        assert_eq!(PublicEndpoint::new(&config, None).url(&request).await, "http://h:1");
        config.api.public_endpoint = "https://cloud.example.org/function-engine/".to_owned();
        let url = PublicEndpoint::new(&config, None).url(&request).await;
        assert_eq!(url, "https://cloud.example.org/function-engine");
    }

    #[actix_web::test]
    async fn a_proxy_is_believed_where_there_is_one() {
        let request = TestRequest::with_uri("/v1")
            .insert_header(("host", "inner:7070"))
            .insert_header(("x-forwarded-proto", "https"))
            .insert_header(("x-forwarded-host", "cloud.example.org"))
            .insert_header(("x-forwarded-prefix", "/function-engine"))
            .to_http_request();
        let mut config = Config::default();
        assert_eq!(PublicEndpoint::new(&config, None).url(&request).await, "http://inner:7070");
        config.oslo_middleware.enable_proxy_headers_parsing = true;
        let url = PublicEndpoint::new(&config, None).url(&request).await;
        assert_eq!(url, "https://cloud.example.org/function-engine");
    }
}
