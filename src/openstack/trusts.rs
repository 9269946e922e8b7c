//! Trusts: a user lets this service act in its name, within one project and with some of its roles.

use std::sync::Arc;

use osauth_reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::json;

use super::auth::{Given, versioned};
use super::client::secret_header;
use super::error::{Error, KEYSTONE, Result};
use super::keystone::{Identity, Keystone, send, unauthenticated};
use super::wire::Scope;
use crate::model::{Catalog, Token, TrustId, UserToken};

/// Why no trust was made.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The token was delegated itself: an application credential's, or a trust's.
    #[error("a token of an application credential or of a trust cannot delegate")]
    CannotDelegate,
    /// None of the roles may be delegated.
    #[error("there is no role to delegate")]
    NoRoles,
    /// The token is for no project.
    #[error("a token without a project cannot delegate")]
    NoProject,
    #[error(transparent)]
    Other(#[from] Error),
}

/// A token with which this service is the user who delegated.
#[derive(Debug, Clone)]
pub struct TrustToken(pub UserToken);

impl TrustToken {
    pub fn token(&self) -> &Token {
        &self.0.token
    }

    pub fn expires_at(&self) -> chrono::DateTime<chrono::Utc> {
        self.0.info.expires_at
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.0.info.catalog
    }

    pub fn project_id(&self) -> Option<&str> {
        self.0.info.project_id.as_deref()
    }

    pub fn user_id(&self) -> &str {
        &self.0.info.user_id
    }

    pub fn roles(&self) -> &[String] {
        &self.0.info.roles
    }
}

#[derive(Deserialize)]
struct Made {
    trust: Identified,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

impl Keystone {
    /// Lets this service act as the caller, in the caller's project, with those of `roles` that the
    /// caller has. The role `admin` is never delegated. The trust has no end; `delete_trust` ends it.
    pub async fn create_trust(
        &self,
        caller: &UserToken,
        roles: &[String],
        request_id: Option<&str>,
    ) -> Result<TrustId, TrustError> {
        let info = &caller.info;
        if !info.can_delegate() {
            return Err(TrustError::CannotDelegate);
        }
        let Some(project_id) = &info.project_id else { return Err(TrustError::NoProject) };
        let delegated: Vec<_> = roles
            .iter()
            .filter(|role| !role.eq_ignore_ascii_case("admin") && info.roles.contains(role))
            .map(|role| json!({"name": role}))
            .collect();
        if delegated.is_empty() {
            return Err(TrustError::NoRoles);
        }
        let trustee = self.service().current().await?.info.user_id.clone();
        let body = json!({"trust": {
            "trustor_user_id": info.user_id,
            "trustee_user_id": trustee,
            "project_id": project_id,
            "impersonation": true,
            "roles": delegated,
        }});
        let path = ["OS-TRUST", "trusts"];
        let answer =
            self.as_user("trust_create", caller, Method::POST, &path, Some(body), request_id).await?;
        match answer.status().as_u16() {
            201 => {
                let made: Made = answer.json().await.map_err(|error| Error::unavailable(KEYSTONE, error))?;
                Ok(TrustId(made.trust.id))
            }
            // Of a caller whose roles are its own, that is what this status says.
            403 => Err(TrustError::CannotDelegate),
            status => Err(Error::of_status(KEYSTONE, status).into()),
        }
    }

    /// A token by a trust. `NotFound` where the trust is no more; `Forbidden` where the user who made
    /// it has lost a delegated role, the project, or itself.
    pub async fn trust_token(&self, trust: &TrustId, request_id: Option<&str>) -> Result<TrustToken> {
        let service = self.service();
        let scope = Scope::Trust(trust.0.clone());
        match service.issuer.issue(&service.login, &scope, request_id).await {
            Ok(token) => Ok(TrustToken(token)),
            // The password is asked first, so that its trouble is told from the trust's.
            Err(Error::Rejected) => match service.issuer.issue(&service.login, &service.scope, None).await {
                Ok(_) => Err(Error::NotFound),
                Err(Error::Unavailable { service, source }) => Err(Error::Unavailable { service, source }),
                Err(_) => {
                    Err(Error::unavailable(KEYSTONE, "it refuses this service's own user and password"))
                }
            },
            Err(error) => Err(error),
        }
    }

    /// Ends a trust. One that is gone already is no error. Only a token of the trust itself may do
    /// this for the user, so that it takes two calls.
    pub async fn delete_trust(&self, trust: &TrustId, request_id: Option<&str>) -> Result<()> {
        let token = match self.trust_token(trust, request_id).await {
            Ok(token) => token,
            Err(Error::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        let path = ["OS-TRUST", "trusts", trust.as_str()];
        let answer = self.as_user("trust_delete", &token.0, Method::DELETE, &path, None, request_id).await?;
        match answer.status().as_u16() {
            204 | 404 => Ok(()),
            status => Err(Error::of_status(KEYSTONE, status)),
        }
    }

    /// One request to Keystone with another's token.
    pub(super) async fn as_user(
        &self,
        call: &'static str,
        user: &UserToken,
        method: Method,
        path: &[&str],
        json: Option<serde_json::Value>,
        request_id: Option<&str>,
    ) -> Result<osauth_reqwest::Response> {
        let service = self.service();
        service.issuer.calls.with_label_values(&[call]).inc();
        let given = Given {
            token: secret_header(user.token.expose()).ok_or(Error::Rejected)?,
            catalog: Arc::clone(&user.info.catalog),
            place: service.place.clone(),
            request_id: None,
        };
        // The service's way to Keystone, not the one that the user's catalog shows.
        let found = service.place.find(service.current().await?.catalog(), "identity");
        let url: Url = found.map_or_else(|| service.issuer.auth_url.clone(), versioned);
        let session =
            unauthenticated(self.client()).with_auth_type(given).with_endpoint_override(Identity, url);
        let mut builder = session.request(Identity, method, path);
        if let Some(json) = &json {
            builder = builder.json(json);
        }
        send(builder, self.timeout(), request_id).await
    }
}
