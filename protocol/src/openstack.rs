//! What an execution may do in the cloud, and where the cloud is.
//!
//! Both go from the engine through the supervisor and the shim into the function's session. They are
//! apart because a catalog is large and changes seldom: a [`Cloud`] is given to a worker once, an
//! [`OpenStack`] with each execution.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Where the services are, as one project sees them. Nothing in it is secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cloud {
    /// Keystone, as functions reach it: `https://keystone:5000/v3`.
    pub auth_url: String,
    /// Where a function that names no region is sent first.
    #[serde(default)]
    pub region_name: Option<String>,
    /// `public`, `internal` or `admin`, for a function that names none.
    #[serde(default)]
    pub interface: Option<String>,
    /// `token.catalog` as Keystone gives it.
    pub catalog: Box<RawValue>,
    /// Certificates in PEM of the authorities that sign the cloud's own.
    #[serde(default)]
    pub cacert: Option<String>,
}

/// In whose name an execution may use the cloud, and for how long.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenStack {
    /// The digest under which the [`Cloud`] was given; the shim is told its directory instead.
    pub cloud: String,
    pub token: Token,
    /// As Keystone writes it.
    pub expires_at: String,
    pub user: Named,
    pub project: Named,
    pub roles: Vec<Role>,
}

/// A user or a project with its domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    pub id: String,
    pub name: String,
    pub domain: Domain,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    pub id: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    pub id: String,
    pub name: String,
}

/// A token of Keystone's. It can be sent and compared, and is not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::ToSlot;
    use crate::worker::Execute;

    fn openstack() -> OpenStack {
        let domain = Domain { id: "default".to_owned(), name: "Default".to_owned() };
        let named = |id: &str| Named { id: id.to_owned(), name: id.to_owned(), domain: domain.clone() };
        OpenStack {
            cloud: "d1".to_owned(),
            token: Token::new("gAAAA-marker"),
            expires_at: "2026-01-01T00:00:00.000000Z".to_owned(),
            user: named("u"),
            project: named("p"),
            roles: vec![Role { id: "r".to_owned(), name: "member".to_owned() }],
        }
    }

    #[test]
    fn a_token_is_sent_and_never_shown() {
        let json = r#"{"attempt":{"execution":"e","epoch":1},"entry":"main.main","input":null,
            "limits":{"cpu_millis":1,"memory_bytes":1,"timeout_ms":1,"max_result_bytes":1,"max_log_bytes":1},
            "request_id":null}"#;
        let mut execute: Execute = serde_json::from_str(json).unwrap();
        assert!(execute.openstack.is_none(), "an engine without Keystone leaves it out");
        execute.openstack = Some(openstack());
        let run = ToSlot::Run {
            nonce: 1,
            execution: "e".to_owned(),
            entry: "main.main".to_owned(),
            input: RawValue::NULL.to_owned(),
            max_result_bytes: 1,
            request_id: None,
            openstack: Some(openstack()),
            names_limits: true,
        };

        for shown in [format!("{execute:?}"), format!("{run:#?}")] {
            assert!(!shown.contains("marker"), "{shown}");
        }
        let sent = serde_json::to_string(&execute).unwrap();
        let back: Execute = serde_json::from_str(&sent).unwrap();
        assert_eq!(back.openstack.unwrap().token, Token::new("gAAAA-marker"));
    }
}
