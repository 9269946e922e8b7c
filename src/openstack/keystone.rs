//! Keystone, asked with the service's own identity: whose a token is, and what sessions are made of.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use osauth::services::ServiceType;
use osauth::{NoAuth, ServiceRequestBuilder};
use osauth_reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use osauth_reqwest::{Client, Method, Response, Url};
use prometheus::IntCounterVec;
use serde_json::Value;
use tokio::sync::Mutex;

use super::auth::{Issuer, Place, Service, Shared, State, read, versioned};
use super::client::{build, secret_header};
use super::error::{Error, KEYSTONE, Result};
use super::request;
use super::session::Session;
use super::wire::{DomainRef, Login, Scope, UserRef};
use super::{REQUEST_ID, SUBJECT_TOKEN, TrustToken};
use crate::config::KeystoneAuthtoken;
use crate::error::Source;
use crate::model::{Catalog, Token, TokenInfo, UserToken};

/// Says that access rules of application credentials are respected here. Keystone refuses to tell
/// of a token that has some to who does not say so.
static ACCESS_RULES: HeaderName = HeaderName::from_static("openstack-identity-access-rules");

/// Keystone, in the one version that there is. Its URL is known, so that none is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity;

impl ServiceType for Identity {
    fn catalog_type(&self) -> &'static str {
        "identity"
    }

    fn version_discovery_supported(&self) -> bool {
        false
    }
}

/// Clones share connections and the service's token.
#[derive(Clone)]
pub struct Keystone {
    client: Client,
    session: osauth::Session,
    service: Arc<Service>,
}

impl fmt::Debug for Keystone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keystone")
            .field("auth_url", &self.service.issuer.auth_url.as_str())
            .finish_non_exhaustive()
    }
}

/// Whether a token that ran out is good enough, since a service vouches for what it began earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    Refused,
    Allowed,
}

impl Keystone {
    /// Asks nobody yet. `calls` counts the requests to Keystone by `call`.
    pub fn new(config: &KeystoneAuthtoken, calls: IntCounterVec) -> Result<Self, Source> {
        let domain = |name: &str| DomainRef::Name(name.to_owned());
        let login = Login::Password {
            user: UserRef::Name { name: config.username.clone(), domain: domain(&config.user_domain_name) },
            password: config.password.clone(),
        };
        let scope =
            Scope::Project { name: config.project_name.clone(), domain: domain(&config.project_domain_name) };
        Self::with_login(config, login, scope, calls)
    }

    /// The same with another's login.
    pub(super) fn with_login(
        config: &KeystoneAuthtoken,
        login: Login,
        scope: Scope,
        calls: IntCounterVec,
    ) -> Result<Self, Source> {
        let client = build(config)?;
        let auth_url = versioned(Url::parse(&config.auth_url)?);
        if !auth_url.has_host() {
            return Err(
                "[keystone_authtoken] auth_url: expected a URL such as http://controller:5000/v3".into()
            );
        }
        let place = Place {
            interface: config.interface,
            region: Some(config.region_name.clone()).filter(|region| !region.is_empty()),
        };
        let issuer = Issuer { client: client.clone(), auth_url, timeout: config.timeout, calls };
        let service = Arc::new(Service { issuer, login, scope, place, state: Mutex::new(State::default()) });
        let session = unauthenticated(&client).with_auth_type(Shared(Arc::clone(&service)));
        Ok(Self { client, session, service })
    }

    /// Whose token this is. `Rejected` where Keystone knows none such or it has ended; the trouble
    /// of getting there, of the service's own identity too, is `Unavailable`.
    pub async fn validate(&self, token: &Token, request_id: Option<&str>) -> Result<TokenInfo> {
        self.validate_with(token, Expired::Refused, request_id).await
    }

    pub async fn validate_with(
        &self,
        token: &Token,
        expired: Expired,
        request_id: Option<&str>,
    ) -> Result<TokenInfo> {
        // What is no header's value is no token either.
        let Some(subject) = secret_header(token.expose()) else { return Err(Error::Rejected) };
        let request = Request {
            call: "validate",
            method: Method::GET,
            path: &["auth", "tokens"],
            headers: [
                (SUBJECT_TOKEN.clone(), subject),
                (ACCESS_RULES.clone(), HeaderValue::from_static("1.0")),
            ]
            .into_iter()
            .collect(),
            query: if expired == Expired::Allowed { &[("allow_expired", "1")] } else { &[] },
            json: None,
        };
        let answer = self.ask(request, request_id).await?;
        match answer.status().as_u16() {
            200 => read(answer).await,
            404 => Err(Error::Rejected),
            403 => Err(Error::unavailable(KEYSTONE, "this service's user may not validate tokens")),
            status => Err(match Error::of_status(KEYSTONE, status) {
                error @ Error::Unavailable { .. } => error,
                _ => Error::unavailable(KEYSTONE, format!("it answered a validation with status {status}")),
            }),
        }
    }

    /// The catalog as this service sees it, read anew.
    pub async fn catalog(&self) -> Result<Arc<Catalog>> {
        let service = &self.service;
        let token = service.issuer.issue(&service.login, &service.scope, None).await?;
        Ok(Arc::clone(&token.info.catalog))
    }

    /// The region in which services are looked up.
    pub fn region(&self) -> Option<&str> {
        self.service.place.region.as_deref()
    }

    /// A session that acts as whose token this is, with the catalog that came with it. Asks nobody.
    pub fn session(&self, token: &UserToken, request_id: Option<&str>) -> Result<Session> {
        Session::new(&self.client, token, self.service.place.clone(), request_id)
    }

    /// Does something in this service's own name, once more with a new token where the first is refused.
    pub async fn as_service<T, F>(&self, work: impl Fn(Session) -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let token = self.service.current().await?;
        match work(self.session(&token, None)?).await {
            Err(Error::Rejected) => {}
            done => return done,
        }
        self.service.forget(&token).await;
        let token = self.service.current().await?;
        work(self.session(&token, None)?).await
    }

    /// A session of this service as the user who delegated.
    pub fn trust_session(&self, trust: &TrustToken, request_id: Option<&str>) -> Result<Session> {
        self.session(&trust.0, request_id)
    }

    /// Asks Keystone with the service's token, once more where that token is refused: it may have
    /// been revoked long before its clock runs out.
    pub(super) async fn ask(&self, request: Request<'_>, request_id: Option<&str>) -> Result<Response> {
        let token = self.service.current().await?;
        let answer = self.send(&request, request_id).await?;
        if answer.status().as_u16() != 401 {
            return Ok(answer);
        }
        self.service.forget(&token).await;
        self.service.current().await?;
        let answer = self.send(&request, request_id).await?;
        if answer.status().as_u16() == 401 {
            return Err(Error::unavailable(KEYSTONE, "it refuses a token that it issued just now"));
        }
        Ok(answer)
    }

    async fn send(&self, request: &Request<'_>, request_id: Option<&str>) -> Result<Response> {
        self.service.issuer.calls.with_label_values(&[request.call]).inc();
        let mut builder = self.session.request(Identity, request.method.clone(), request.path);
        if !request.query.is_empty() {
            builder = builder.query(request.query);
        }
        if let Some(json) = &request.json {
            builder = builder.json(json);
        }
        send(builder.headers(request.headers.clone()), self.timeout(), request_id).await
    }

    pub(super) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    pub(super) fn timeout(&self) -> Duration {
        self.service.issuer.timeout
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }
}

/// One request to Keystone, which may have to be sent twice.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub call: &'static str,
    pub method: Method,
    pub path: &'a [&'a str],
    pub headers: HeaderMap,
    pub query: &'a [(&'a str, &'a str)],
    pub json: Option<Value>,
}

pub(super) async fn send(
    builder: ServiceRequestBuilder<Identity>,
    timeout: Duration,
    request_id: Option<&str>,
) -> Result<Response> {
    let current = request::current();
    let builder = match request_id.or(current.as_deref()) {
        Some(id) => builder.header(REQUEST_ID.clone(), id),
        None => builder,
    };
    let sent = builder.timeout(timeout).send_unchecked().await;
    sent.map_err(|error| Error::of_session(KEYSTONE, error))
}

/// A session that is yet to be told what it authenticates with. Made with the real one, it would ask
/// Keystone at once and fail where Keystone does not answer.
pub(super) fn unauthenticated(client: &Client) -> osauth::Session {
    osauth::Session::new_with_client(client.clone(), NoAuth::new_without_endpoint())
        .now_or_never()
        .expect("nothing waits in it")
        .expect("nothing fails in it")
}
