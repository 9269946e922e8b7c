//! `X-Auth-Token` to [`Caller`]. No rules: what a caller may do is `policy`'s.

use crate::config::AuthStrategy;
use crate::model::Caller;

/// Why nobody is known by what a request carried. The text never repeats the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("Failed to validate access token: Auth token is invalid")]
    Invalid,
}

/// How callers are known; see `[api] auth_strategy`.
#[derive(Debug, Clone)]
pub enum Authenticator {
    Noauth,
}

impl Authenticator {
    pub fn new(strategy: AuthStrategy) -> Self {
        match strategy {
            AuthStrategy::Noauth => Self::Noauth,
        }
    }

    /// Who asks. A strategy that asks another service waits for it here.
    pub async fn authenticate(&self, token: Option<&str>) -> Result<Caller, Rejected> {
        match self {
            Self::Noauth => noauth(token),
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
    Caller {
        user_id: user.to_owned(),
        project_id: project.into(),
        roles: roles.iter().map(|&role| role.to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_user_and_project() {
        let known = noauth(Some("demo:p1")).unwrap();
        assert_eq!((known.user_id.as_str(), known.project_id.as_str()), ("demo", "p1"));
        assert!(!known.is_admin());
        let both = noauth(Some("demo")).unwrap();
        assert_eq!((both.user_id.as_str(), both.project_id.as_str()), ("demo", "demo"));
        assert!(noauth(Some("admin:p1")).unwrap().is_admin());
        assert!(!noauth(Some("demo:admin")).unwrap().is_admin());
    }

    #[test]
    fn nobody_is_the_operator() {
        let known = noauth(None).unwrap();
        assert!(known.is_admin());
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
