//! May this caller do this: rules and their defaults. No database and no HTTP.
//!
//! Whether a caller sees a row at all is not asked here but by the `Scope` of the query.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::model::Caller;

/// Who passes a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Everyone with a token.
    Any,
    /// Who has the role `admin`.
    Admin,
}

use Check::{Admin, Any};

/// Every rule and its default. What Qinling leaves unchecked has a rule here as well, with a
/// default that lets everybody pass.
pub const RULES: &[(&str, Check)] = &[
    ("runtime:create", Admin),
    ("runtime:get", Any),
    ("runtime:get_all", Any),
    ("runtime:update", Admin),
    ("runtime:delete", Admin),
    ("runtime_pool:get_all", Admin),
    ("function:create", Any),
    ("function:get", Any),
    ("function:get_all", Any),
    ("function:get_all:all_projects", Admin),
    ("function:update", Any),
    ("function:delete", Any),
    ("function:scale_up", Admin),
    ("function:scale_down", Admin),
    ("function:detach", Admin),
    ("function_worker:get_all", Admin),
    ("function_version:create", Any),
    ("function_version:get", Any),
    ("function_version:get_all", Any),
    ("function_version:delete", Any),
    ("function_version:scale_up", Admin),
    ("function_version:scale_down", Admin),
    ("function_version:detach", Admin),
    ("function_alias:create", Any),
    ("function_alias:get", Any),
    ("function_alias:get_all", Any),
    // Qinling asks a rule of versions here that nobody defined, and so shows everything to everyone.
    ("function_alias:get_all:all_projects", Admin),
    ("function_alias:update", Any),
    ("function_alias:delete", Any),
    ("execution:create", Any),
    ("execution:get", Any),
    ("execution:get_all", Any),
    ("execution:get_all:all_projects", Admin),
    ("execution:get_log", Any),
    ("execution:delete", Any),
    ("job:create", Any),
    ("job:get", Any),
    ("job:get_all", Any),
    ("job:get_all:all_projects", Admin),
    ("job:update", Any),
    ("job:delete", Any),
    ("webhook:create", Any),
    ("webhook:get", Any),
    ("webhook:get_all", Any),
    ("webhook:get_all:all_projects", Admin),
    ("webhook:update", Any),
    ("webhook:delete", Any),
];

/// The rules in force.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: HashMap<&'static str, Check>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { rules: RULES.iter().copied().collect() }
    }
}

impl Policy {
    /// Succeeds where the caller passes the rule. A rule that does not exist lets nobody pass.
    pub fn enforce(&self, caller: &Caller, rule: &'static str) -> Result<()> {
        let passes = match self.rules.get(rule) {
            Some(Check::Any) => true,
            Some(Check::Admin) => caller.is_admin(),
            None => false,
        };
        if passes { Ok(()) } else { Err(Error::Forbidden { rule }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: &str) -> Caller {
        Caller::new("u", "p", vec![role.to_owned()])
    }

    #[test]
    fn every_rule_is_there_once() {
        assert_eq!(Policy::default().rules.len(), RULES.len());
    }

    #[test]
    fn an_admin_passes_every_rule() {
        for (rule, _) in RULES {
            assert!(Policy::default().enforce(&caller("admin"), rule).is_ok(), "{rule}");
        }
    }

    #[test]
    fn what_reaches_other_projects_or_the_machines_is_for_admins() {
        let policy = Policy::default();
        for (rule, _) in RULES {
            let resource = rule.split(':').next().unwrap();
            let reaches = rule.ends_with(":all_projects")
                || ["scale_up", "scale_down", "detach"].iter().any(|verb| rule.ends_with(verb))
                || ["runtime_pool", "function_worker"].contains(&resource)
                || ["runtime:create", "runtime:update", "runtime:delete"].contains(rule);
            let denied = matches!(policy.enforce(&caller("member"), rule), Err(Error::Forbidden { rule: r }) if r == *rule);
            assert_eq!(denied, reaches, "{rule}");
        }
    }

    #[test]
    fn a_rule_that_does_not_exist_lets_nobody_pass() {
        assert!(Policy::default().enforce(&caller("admin"), "runtime:paint").is_err());
    }
}
