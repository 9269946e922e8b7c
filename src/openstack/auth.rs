//! What sessions authenticate with: a token that was given, or one that is got with the service's
//! password and renewed when it has to be.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::Utc;
use osauth::{AuthType, EndpointFilters};
use osauth_reqwest::header::HeaderValue;
use osauth_reqwest::{Client, RequestBuilder, Url};
use prometheus::IntCounterVec;
use tokio::sync::Mutex;

use super::client::secret_header;
use super::error::{Error, KEYSTONE, Result};
use super::request;
use super::wire::{self, Login, Scope};
use super::{AUTH_TOKEN, REQUEST_ID, SUBJECT_TOKEN};
use crate::model::{Catalog, Interface, Token, TokenInfo, UserToken};

/// A token of ours is renewed this long before it ends, so that a call in flight outlives it.
const MARGIN: chrono::TimeDelta = chrono::TimeDelta::seconds(60);

/// Where in a catalog to look.
#[derive(Debug, Clone)]
pub struct Place {
    pub interface: Interface,
    pub region: Option<String>,
}

impl Place {
    pub fn find(&self, catalog: &Catalog, service_type: &str) -> Option<Url> {
        catalog
            .endpoint(service_type, self.interface, self.region.as_deref())
            .and_then(|url| Url::parse(url).ok())
            .filter(Url::has_host)
    }

    fn endpoint(&self, catalog: &Catalog, service_type: &str) -> Result<Url, osauth::Error> {
        self.find(catalog, service_type).ok_or_else(|| {
            let region = self.region.as_deref().unwrap_or("any region");
            let interface = self.interface.as_str();
            osauth::Error::new(
                osauth::ErrorKind::EndpointNotFound,
                format!("the catalog has no {interface} endpoint of {service_type} in {region}"),
            )
        })
    }
}

/// A token that somebody brought, with its catalog. Nothing is asked and nothing is renewed.
pub struct Given {
    pub token: HeaderValue,
    pub catalog: Arc<Catalog>,
    pub place: Place,
    pub request_id: Option<HeaderValue>,
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given").field("place", &self.place).finish_non_exhaustive()
    }
}

#[async_trait]
impl AuthType for Given {
    async fn authenticate(
        &self,
        _: &Client,
        request: RequestBuilder,
    ) -> Result<RequestBuilder, osauth::Error> {
        let request = request.header(AUTH_TOKEN.clone(), self.token.clone());
        Ok(match &self.request_id {
            Some(id) => request.header(REQUEST_ID.clone(), id.clone()),
            None => request,
        })
    }

    async fn get_endpoint(
        &self,
        _: &Client,
        service_type: &str,
        _: &EndpointFilters,
    ) -> Result<Url, osauth::Error> {
        self.place.endpoint(&self.catalog, service_type)
    }

    async fn refresh(&self, _: &Client) -> Result<(), osauth::Error> {
        Ok(())
    }
}

/// Gets tokens from Keystone.
#[derive(Debug, Clone)]
pub struct Issuer {
    pub client: Client,
    /// With `/v3` at its end and no slash after it.
    pub auth_url: Url,
    pub timeout: Duration,
    pub calls: IntCounterVec,
}

impl Issuer {
    pub async fn issue(&self, login: &Login, scope: &Scope, request_id: Option<&str>) -> Result<UserToken> {
        let call = if matches!(scope, Scope::Trust(_)) { "issue_trust" } else { "issue" };
        self.calls.with_label_values(&[call]).inc();
        let mut url = self.auth_url.clone();
        url.path_segments_mut().expect("it has a host").extend(["auth", "tokens"]);
        let mut request =
            self.client.post(url).json(&wire::token_request(login, scope)).timeout(self.timeout);
        let current = request::current();
        if let Some(id) = request_id.or(current.as_deref()) {
            request = request.header(REQUEST_ID.clone(), id);
        }
        let answer = request.send().await.map_err(|error| Error::unavailable(KEYSTONE, error))?;
        let status = answer.status().as_u16();
        if status != 201 {
            return Err(Error::of_status(KEYSTONE, status));
        }
        let token = answer.headers().get(&SUBJECT_TOKEN).and_then(|token| token.to_str().ok());
        let Some(token) = token.map(Token::new) else {
            return Err(Error::unavailable(KEYSTONE, "it issued a token and did not say which"));
        };
        Ok(UserToken { token, info: Arc::new(read(answer).await?) })
    }
}

/// Reads an answer about a token.
pub async fn read(answer: osauth_reqwest::Response) -> Result<TokenInfo> {
    let body = answer.bytes().await.map_err(|error| Error::unavailable(KEYSTONE, error))?;
    wire::token_info(&body).map_err(|error| Error::unavailable(KEYSTONE, error))
}

/// The service's own identity. Its token is got when it is first needed, so that a service starts
/// while Keystone does not answer.
#[derive(Debug)]
pub struct Service {
    pub issuer: Issuer,
    pub login: Login,
    pub scope: Scope,
    pub place: Place,
    pub state: Mutex<State>,
}

#[derive(Debug, Default)]
pub struct State {
    token: Option<UserToken>,
    /// The last time that none was to be had, and why.
    failed: Option<(Instant, String)>,
}

impl Service {
    /// A token with some life in it. One call at a time asks Keystone; those that waited meanwhile
    /// share its failure instead of repeating it one after another.
    pub async fn current(&self) -> Result<UserToken> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(token) = &state.token
            && !token.info.is_expired(Utc::now() + MARGIN)
        {
            return Ok(token.clone());
        }
        if let Some((at, why)) = &state.failed
            && *at > asked
        {
            return Err(Error::unavailable(KEYSTONE, why.clone()));
        }
        match self.issuer.issue(&self.login, &self.scope, None).await {
            Ok(token) => {
                *state = State { token: Some(token.clone()), failed: None };
                Ok(token)
            }
            Err(error) => {
                let error = match error {
                    // That is not the trouble of whoever caused this call.
                    Error::Rejected | Error::Forbidden { .. } | Error::NotFound | Error::Refused { .. } => {
                        Error::unavailable(KEYSTONE, "it refuses this service's own user and password")
                    }
                    other => other,
                };
                *state = State { token: None, failed: Some((Instant::now(), chain(&error))) };
                Err(error)
            }
        }
    }

    /// Drops a token that was refused, unless another has taken its place.
    pub async fn forget(&self, refused: &UserToken) {
        let mut state = self.state.lock().await;
        if state.token.as_ref().is_some_and(|token| Arc::ptr_eq(&token.info, &refused.info)) {
            state.token = None;
        }
    }
}

fn chain(error: &Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), |source| crate::telemetry::Chain(source).to_string())
}

/// The service's identity as a session holds it.
#[derive(Debug, Clone)]
pub struct Shared(pub Arc<Service>);

#[async_trait]
impl AuthType for Shared {
    async fn authenticate(
        &self,
        _: &Client,
        request: RequestBuilder,
    ) -> Result<RequestBuilder, osauth::Error> {
        let token = self.0.current().await.map_err(Error::into_session)?;
        let header = secret_header(token.token.expose()).expect("it came in a header");
        Ok(request.header(AUTH_TOKEN.clone(), header))
    }

    /// Keystone where the catalog says, or else where the token came from.
    async fn get_endpoint(
        &self,
        _: &Client,
        service_type: &str,
        _: &EndpointFilters,
    ) -> Result<Url, osauth::Error> {
        let token = self.0.current().await.map_err(Error::into_session)?;
        let place = &self.0.place;
        if service_type == "identity" {
            let found = place.find(token.catalog(), service_type);
            return Ok(found.map_or_else(|| self.0.issuer.auth_url.clone(), versioned));
        }
        place.endpoint(token.catalog(), service_type)
    }

    async fn refresh(&self, _: &Client) -> Result<(), osauth::Error> {
        let token = self.0.current().await.map_err(Error::into_session)?;
        self.0.forget(&token).await;
        self.0.current().await.map(drop).map_err(Error::into_session)
    }
}

/// Keystone's URL with its version, as `auth_url` and the catalog leave it out or put another.
pub fn versioned(mut url: Url) -> Url {
    let segments: Vec<String> = url.path_segments().into_iter().flatten().map(str::to_owned).collect();
    let kept = segments.iter().filter(|part| !part.is_empty() && *part != "v3" && *part != "v2.0");
    let path = kept.map(String::as_str).chain(["v3"]).collect::<Vec<_>>().join("/");
    url.set_path(&path);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keystone_is_asked_in_version_3() {
        for (given, asked) in [
            ("http://c:5000", "http://c:5000/v3"),
            ("http://c:5000/v3", "http://c:5000/v3"),
            ("http://c:5000/v3/", "http://c:5000/v3"),
            ("https://c/identity", "https://c/identity/v3"),
            ("https://c/identity/v2.0", "https://c/identity/v3"),
        ] {
            assert_eq!(versioned(Url::parse(given).unwrap()).as_str(), asked, "{given}");
        }
    }
}
