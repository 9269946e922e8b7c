//! What a request shows to [`Caller`]. No rules: what a caller may do is `policy`'s.

mod access_rules;
pub mod basic;
mod keystone;

use std::sync::Arc;

use crate::config::{AuthStrategy, Config};
use crate::error::Source;
use crate::model::Caller;
use crate::openstack::Keystone;
use keystone::KeystoneTokens;

/// Why nobody is known by what a request carried. The text never repeats that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("Failed to validate access token: Authentication required")]
    Missing,
    #[error("Failed to validate access token: Auth token is invalid")]
    Invalid,
    #[error("Failed to validate access token: Service token is invalid")]
    Service,
    #[error(
        "Failed to validate access token: The access rules of the application credential do not allow this"
    )]
    AccessRules,
    #[error("The user name or the password is wrong.")]
    Password,
    /// Nobody has looked at it, since too many wait for the same.
    #[error("Too many passwords are being checked. Try again.")]
    Busy,
}

/// Why a request goes no further.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Everything here belongs to a project.
    #[error("The token is not scoped to a project.")]
    NoProject,
    /// Who would know does not answer. That says nothing against the token.
    #[error("the identity service is unavailable")]
    Unavailable(#[source] Source),
}

/// What a request shows of who makes it. No `Debug`: it holds secrets.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// `X-Auth-Token`.
    pub token: Option<&'a str>,
    /// A service's own token, beside that of the user for whom it asks.
    pub service_token: Option<&'a str>,
    /// `Authorization`.
    pub authorization: Option<&'a str>,
    pub method: &'a str,
    pub path: &'a str,
    pub request_id: Option<&'a str>,
}

/// What stops a start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the users of [http_basic] cannot be read")]
    Users(#[from] basic::file::FileError),
    #[error("auth_strategy = keystone, and no Keystone to ask")]
    Keystone,
}

/// How callers are known; see `[api] auth_strategy`.
#[derive(Clone)]
pub enum Authenticator {
    Noauth,
    Basic(Arc<basic::Basic>),
    Keystone(Box<KeystoneTokens>),
}

impl Authenticator {
    /// `keystone` is needed where `auth_strategy` says so.
    pub fn new(config: &Config, keystone: Option<Keystone>) -> Result<Self, StartError> {
        Ok(match config.api.auth_strategy {
            AuthStrategy::Noauth => Self::Noauth,
            AuthStrategy::HttpBasic => Self::Basic(Arc::new(basic::Basic::open(&config.http_basic)?)),
            AuthStrategy::Keystone => {
                let keystone = keystone.ok_or(StartError::Keystone)?;
                Self::Keystone(Box::new(KeystoneTokens::new(&config.keystone_authtoken, keystone)))
            }
        })
    }

    /// Who asks. A strategy that asks another service waits for it here.
    pub async fn authenticate(&self, shown: &Shown<'_>) -> Result<Caller, Failure> {
        match self {
            Self::Noauth => Ok(noauth(shown.token)?),
            Self::Basic(basic) => Ok(basic.authenticate(shown.authorization).await?),
            Self::Keystone(tokens) => tokens.authenticate(shown).await,
        }
    }

    /// How one makes oneself known here, for `WWW-Authenticate`.
    pub fn challenge(&self) -> Option<String> {
        match self {
            Self::Noauth => None,
            Self::Basic(_) => Some(r#"Basic realm="taibai""#.to_owned()),
            Self::Keystone(tokens) => Some(format!("Keystone uri=\"{}\"", tokens.uri)),
        }
    }

    /// Reads again what is in files, where they have changed. Blocks on them.
    pub fn refresh(&self) {
        if let Self::Basic(basic) = self {
            basic.refresh();
        }
    }
}

/// Takes `user:project`, or one name for both, at its word. The user `admin` has the role `admin`,
/// and so has who sends no token at all: where nobody is asked, the caller is the operator.
fn noauth(token: Option<&str>) -> Result<Caller, Rejected> {
    let Some(token) = token else {
        return Ok(caller("default", "default", &["admin", "member"]));
    };
    let (user, project) = token.split_once(':').unwrap_or((token, token));
    // A project is stored in 80 characters and a user is logged, so neither may be just anything.
    let usable = |name: &str| !name.is_empty() && name.len() <= 80 && !name.contains(char::is_control);
    if !usable(user) || !usable(project) {
        return Err(Rejected::Invalid);
    }
    Ok(caller(user, project, if user == "admin" { &["admin", "member"] } else { &["member"] }))
}

fn caller(user: &str, project: &str, roles: &[&str]) -> Caller {
    Caller::new(user, project, roles.iter().map(|&role| role.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_user_and_project() {
        let known = noauth(Some("demo:p1")).unwrap();
        assert_eq!((known.user_id.as_str(), known.project_id.as_str()), ("demo", "p1"));
        assert_eq!(known.roles, ["member"]);
        let both = noauth(Some("demo")).unwrap();
        assert_eq!((both.user_id.as_str(), both.project_id.as_str()), ("demo", "demo"));
        assert_eq!(noauth(Some("admin:p1")).unwrap().roles, ["admin", "member"]);
        assert_eq!(noauth(Some("demo:admin")).unwrap().roles, ["member"]);
    }

    #[test]
    fn nobody_is_the_operator() {
        let known = noauth(None).unwrap();
        assert_eq!(known.roles, ["admin", "member"]);
        assert_eq!(known.project_id.as_str(), "default");
    }

    #[test]
    fn an_unusable_token_is_rejected_and_not_repeated() {
        let long = format!("u:{}", "p".repeat(81));
        for token in ["", ":", "u:", ":p", "u:a\nb", &long] {
            let rejected = noauth(Some(token)).unwrap_err();
            assert_eq!(rejected.to_string(), "Failed to validate access token: Auth token is invalid");
        }
    }
}
