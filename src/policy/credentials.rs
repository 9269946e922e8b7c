//! What a rule can say of a caller and of what is acted on.

use crate::model::Caller;

/// From the one that implies all the others down, as Keystone sets them up.
const PERSONAS: [&str; 4] = ["admin", "manager", "member", "reader"];
/// The role of OpenStack's services among each other. It implies nothing and nothing implies it.
const SERVICE: &str = "service";

/// The attributes of a caller, besides roles, that a rule may name.
pub const ATTRIBUTES: [&str; 5] = ["user_id", "project_id", "roles", "is_admin", "custom_roles"];
/// The keys of a target.
pub const KEYS: [&str; 2] = ["project_id", "user_id"];

/// One attribute of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Text(&'a str),
    Flag(bool),
    /// Each of `Credentials::roles`.
    Roles,
}

/// A caller, as rules see one.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    user_id: &'a str,
    project_id: &'a str,
    roles: &'a [String],
    is_admin: bool,
}

impl<'a> Credentials<'a> {
    pub fn of(caller: &'a Caller) -> Self {
        Self {
            user_id: &caller.user_id,
            project_id: caller.project_id.as_str(),
            roles: &caller.roles,
            is_admin: caller.is_admin(),
        }
    }

    /// The token's roles and what they imply: a token may list only the highest.
    pub fn roles(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let highest = PERSONAS.iter().position(|&persona| self.names(persona));
        let implied = highest.map_or(&[][..], |highest| &PERSONAS[highest + 1..]);
        self.roles.iter().map(String::as_str).chain(implied.iter().copied())
    }

    pub fn has_role(&self, wanted: &str) -> bool {
        self.roles().any(|role| same(role, wanted))
    }

    /// Whether there are roles and none is one of OpenStack's own: the roles of a cloud that has its
    /// own names, where everybody with a role may use the service.
    fn custom_roles(&self) -> bool {
        !self.roles.is_empty() && !PERSONAS.iter().chain([&SERVICE]).any(|known| self.names(known))
    }

    fn names(&self, role: &str) -> bool {
        self.roles.iter().any(|own| same(own, role))
    }

    pub fn get(&self, attribute: &str) -> Option<Value<'a>> {
        Some(match attribute {
            "user_id" => Value::Text(self.user_id),
            "project_id" => Value::Text(self.project_id),
            "roles" => Value::Roles,
            "is_admin" => Value::Flag(self.is_admin),
            "custom_roles" => Value::Flag(self.custom_roles()),
            _ => return None,
        })
    }
}

/// Roles are compared as Keystone and oslo.policy do, in whatever case.
fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other) || one.to_lowercase() == other.to_lowercase()
}

/// What is acted on. Where it does not exist yet, or is a list, it is the caller's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    pub project_id: &'a str,
    /// None where the row says nothing of a user.
    pub user_id: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub fn own(caller: &'a Caller) -> Self {
        Self { project_id: caller.project_id.as_str(), user_id: Some(&caller.user_id) }
    }

    /// Something of a project, whoever made it.
    pub fn of_project(project_id: &'a str) -> Self {
        Self { project_id, user_id: None }
    }

    pub fn get(&self, key: &str) -> Option<&'a str> {
        match key {
            "project_id" => Some(self.project_id),
            "user_id" => self.user_id,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(roles: &[&str]) -> Caller {
        Caller::new("u", "p", roles.iter().map(|&role| role.to_owned()).collect())
    }

    #[test]
    fn a_role_implies_those_below_it() {
        for (token, has, lacks) in [
            (&["admin"][..], &["admin", "manager", "member", "reader"][..], &["service"][..]),
            (&["Manager"], &["manager", "member", "reader"], &["admin"]),
            (&["reader", "member"], &["member", "reader"], &["manager"]),
            (&["reader"], &["READER"], &["member"]),
            (&["service"], &["service"], &["reader"]),
            (&["creator"], &["creator"], &["reader", "member"]),
        ] {
            let caller = caller(token);
            let credentials = Credentials::of(&caller);
            assert!(has.iter().all(|role| credentials.has_role(role)), "{token:?}");
            assert!(!lacks.iter().any(|role| credentials.has_role(role)), "{token:?}");
        }
    }

    #[test]
    fn custom_roles_are_those_beside_which_there_is_none_of_openstacks() {
        for (token, custom) in [
            (&["creator"][..], true),
            (&["creator", "auditor"], true),
            (&["creator", "reader"], false),
            (&["creator", "Service"], false),
            (&[], false),
        ] {
            let caller = caller(token);
            assert_eq!(Credentials::of(&caller).get("custom_roles"), Some(Value::Flag(custom)), "{token:?}");
        }
    }

    #[test]
    fn every_attribute_and_key_that_is_documented_exists() {
        let caller = caller(&[]);
        assert!(ATTRIBUTES.iter().all(|name| Credentials::of(&caller).get(name).is_some()));
        assert!(KEYS.iter().all(|key| Target::own(&caller).get(key).is_some()));
        assert_eq!(Target::of_project("p").get("user_id"), None);
    }
}
