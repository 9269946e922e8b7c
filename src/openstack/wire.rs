//! Keystone's JSON: what it answers about a token, and what it is asked for one.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::model::{ApplicationCredential, Catalog, TokenInfo};

#[derive(Deserialize)]
struct Body {
    token: Described,
}

#[derive(Deserialize)]
struct Described {
    user: Named,
    #[serde(default)]
    project: Option<Named>,
    #[serde(default)]
    roles: Vec<Role>,
    expires_at: DateTime<Utc>,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default, rename = "OS-TRUST:trust")]
    trust: Option<Identified>,
    #[serde(default)]
    application_credential: Option<ApplicationCredential>,
    #[serde(default)]
    catalog: Option<Catalog>,
}

#[derive(Deserialize)]
struct Named {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    domain: Option<Domain>,
}

#[derive(Deserialize)]
struct Domain {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
struct Role {
    #[serde(default)]
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

/// Reads what Keystone says of a token. A token without a catalog has an empty one.
pub fn token_info(body: &[u8]) -> serde_json::Result<TokenInfo> {
    let Body { token } = serde_json::from_slice(body)?;
    let user_domain = token.user.domain;
    let (project_id, project_name, project_domain) = match token.project {
        Some(project) => (Some(project.id), Some(project.name), project.domain),
        None => (None, None, None),
    };
    let parts = |domain: Option<Domain>| domain.map_or((None, None), |domain| (domain.id, domain.name));
    let (user_domain_id, user_domain_name) = parts(user_domain);
    let (project_domain_id, project_domain_name) = parts(project_domain);
    let (roles, role_ids) = token.roles.into_iter().map(|role| (role.name, role.id)).unzip();
    Ok(TokenInfo {
        user_id: token.user.id,
        user_name: token.user.name,
        user_domain_id,
        user_domain_name,
        project_id,
        project_name,
        project_domain_id,
        project_domain_name,
        roles,
        role_ids,
        expires_at: token.expires_at,
        methods: token.methods,
        trust_id: token.trust.map(|trust| trust.id),
        application_credential: token.application_credential,
        catalog: Arc::new(token.catalog.unwrap_or_default()),
        size: body.len(),
    })
}

/// What a token is got with.
#[derive(Debug, Clone)]
pub enum Login {
    Password { user: UserRef, password: SecretString },
    Token(SecretString),
    ApplicationCredential { id: String, secret: SecretString },
}

/// A user, by id or by a name within a domain.
#[derive(Debug, Clone)]
pub enum UserRef {
    Id(String),
    Name { name: String, domain: DomainRef },
}

#[derive(Debug, Clone)]
pub enum DomainRef {
    Id(String),
    Name(String),
}

impl DomainRef {
    fn json(&self) -> Value {
        match self {
            Self::Id(id) => json!({"id": id}),
            Self::Name(name) => json!({"name": name}),
        }
    }
}

/// What a token is got for.
#[derive(Debug, Clone)]
pub enum Scope {
    /// What the login brings along.
    Own,
    ProjectId(String),
    Project {
        name: String,
        domain: DomainRef,
    },
    Trust(String),
}

/// The body of a request for a token. It holds the secret: it is to be sent, and not kept.
pub fn token_request(login: &Login, scope: &Scope) -> Value {
    let identity = match login {
        Login::Password { user, password } => {
            let mut user = match user {
                UserRef::Id(id) => json!({"id": id}),
                UserRef::Name { name, domain } => json!({"name": name, "domain": domain.json()}),
            };
            user["password"] = password.expose_secret().into();
            json!({"methods": ["password"], "password": {"user": user}})
        }
        Login::Token(token) => json!({"methods": ["token"], "token": {"id": token.expose_secret()}}),
        Login::ApplicationCredential { id, secret } => json!({
            "methods": ["application_credential"],
            "application_credential": {"id": id, "secret": secret.expose_secret()},
        }),
    };
    let mut auth = json!({"identity": identity});
    match scope {
        Scope::Own => {}
        Scope::ProjectId(id) => auth["scope"] = json!({"project": {"id": id}}),
        Scope::Project { name, domain } => {
            auth["scope"] = json!({"project": {"name": name, "domain": domain.json()}});
        }
        Scope::Trust(id) => auth["scope"] = json!({"OS-TRUST:trust": {"id": id}}),
    }
    json!({"auth": auth})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_without_project_and_catalog_is_read() {
        let body = json!({"token": {
            "user": {"id": "u", "name": "demo", "domain": {"id": "default", "name": "Default"}},
            "expires_at": "2026-11-21T12:00:00.000000Z", "methods": ["password"], "audit_ids": ["x"],
        }});
        let info = token_info(body.to_string().as_bytes()).unwrap();
        assert_eq!((info.user_id.as_str(), info.user_domain_id.as_deref()), ("u", Some("default")));
        assert_eq!(info.project_id, None);
        assert!(info.roles.is_empty() && info.catalog.0.is_empty());
        assert!(info.can_delegate());
    }

    #[test]
    fn endpoints_without_a_region_are_read() {
        let body = json!({"token": {
            "user": {"id": "u", "name": "demo", "domain": {"id": "default", "name": "Default"}},
            "project": {"id": "p", "name": "demo", "domain": {"id": "default", "name": "Default"}},
            "roles": [{"id": "1", "name": "member"}], "expires_at": "2026-11-21T12:00:00.000000Z",
            "methods": ["password"], "catalog": [{"type": "identity", "id": "1", "name": "keystone", "endpoints": [
                {"id": "e", "interface": "public", "region": null, "region_id": null, "url": "http://c/v3"}]}],
        }});
        let info = token_info(body.to_string().as_bytes()).unwrap();
        let public = crate::model::Interface::Public;
        assert_eq!(info.catalog.endpoint("identity", public, Some("RegionOne")), Some("http://c/v3"));
        assert_eq!(info.roles, ["member"]);
    }

    #[test]
    fn what_was_delegated_does_not_delegate_further() {
        let with = |extra: Value| {
            let mut token =
                json!({"user": {"id": "u"}, "expires_at": "2026-11-21T12:00:00Z", "methods": ["token"]});
            token.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            token_info(json!({"token": token}).to_string().as_bytes()).unwrap()
        };
        assert!(with(json!({})).can_delegate());
        let trust = with(json!({"OS-TRUST:trust": {"id": "t", "impersonation": true}}));
        assert_eq!(trust.trust_id.as_deref(), Some("t"));
        assert!(!trust.can_delegate());
        let rules = json!([{"id": "r", "service": "function-engine", "method": "GET", "path": "/v1/**"}]);
        let credential = json!({"id": "a", "name": "n", "restricted": true, "access_rules": rules});
        let application = with(json!({"application_credential": credential}));
        assert!(!application.can_delegate());
        assert_eq!(application.application_credential.unwrap().access_rules.unwrap()[0].path, "/v1/**");
    }

    #[test]
    fn a_login_does_not_show_its_secret() {
        let user = UserRef::Name { name: "taibai".to_owned(), domain: DomainRef::Name("Default".to_owned()) };
        let login = Login::Password { user, password: "hidden".into() };
        assert!(!format!("{login:?}").contains("hidden"));
        let body = token_request(&login, &Scope::Trust("t".to_owned()));
        assert_eq!(body["auth"]["scope"]["OS-TRUST:trust"]["id"], "t");
        assert_eq!(body["auth"]["identity"]["password"]["user"]["password"], "hidden");
    }
}
