use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::Catalog;

/// A token, which neither a log nor `Debug` shows.
#[derive(Clone)]
pub struct Token(SecretString);

impl Token {
    pub fn new(token: impl Into<String>) -> Self {
        Self(SecretString::from(token.into()))
    }

    /// The token itself, for the one header that carries it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What Keystone says of a token.
#[derive(Debug, Clone)]
pub struct TokenInfo {
    pub user_id: String,
    pub user_name: String,
    pub user_domain_id: Option<String>,
    pub user_domain_name: Option<String>,
    /// None of the project's fields where the token is for a domain, the system, or nothing.
    pub project_id: Option<String>,
    pub project_name: Option<String>,
    pub project_domain_id: Option<String>,
    pub project_domain_name: Option<String>,
    pub roles: Vec<String>,
    /// Ids of `roles`, in the same order.
    pub role_ids: Vec<String>,
    pub expires_at: DateTime<Utc>,
    pub methods: Vec<String>,
    /// The trust that the token is scoped to.
    pub trust_id: Option<String>,
    pub application_credential: Option<ApplicationCredential>,
    pub catalog: Arc<Catalog>,
    /// Bytes of Keystone's answer, as a measure of what it costs to keep this.
    pub size: usize,
}

impl TokenInfo {
    pub fn is_expired(&self, now: DateTime<Utc>) -> bool {
        self.expires_at <= now
    }

    /// Whether Keystone lets this token make a trust: one that was delegated itself cannot.
    pub fn can_delegate(&self) -> bool {
        self.trust_id.is_none()
            && self.application_credential.is_none()
            && !self.methods.iter().any(|method| method == "application_credential" || method == "oauth1")
    }
}

/// The application credential that a token was got with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ApplicationCredential {
    pub id: String,
    /// The only requests that it may make; none restricts nothing, an empty list allows nothing.
    #[serde(default)]
    pub access_rules: Option<Vec<AccessRule>>,
}

/// One kind of request that an application credential may make.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AccessRule {
    pub service: String,
    pub method: String,
    pub path: String,
}

/// A token with what is known of it: enough to act for its user without asking Keystone again.
#[derive(Debug, Clone)]
pub struct UserToken {
    pub token: Token,
    pub info: Arc<TokenInfo>,
}

impl UserToken {
    pub fn catalog(&self) -> &Catalog {
        &self.info.catalog
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_does_not_show_itself() {
        assert_eq!(format!("{:?}", Token::new("gAAAA")), "Token(..)");
    }
}
