use super::{ProjectId, UserToken};

/// Who asks: what is left of a token once it has been validated.
#[derive(Debug, Clone)]
pub struct Caller {
    pub user_id: String,
    pub user_name: Option<String>,
    pub user_domain_id: Option<String>,
    pub project_id: ProjectId,
    pub project_name: Option<String>,
    pub project_domain_id: Option<String>,
    pub roles: Vec<String>,
    /// What the caller showed, where there is a Keystone: to ask other services in its name.
    pub identity: Option<UserToken>,
    /// The request in which it asks.
    pub request_id: Option<String>,
    is_admin: bool,
}

impl Caller {
    /// A caller of whom no more is known than this, and whom no rule has yet called an administrator.
    pub fn new(user_id: impl Into<String>, project_id: impl Into<ProjectId>, roles: Vec<String>) -> Self {
        Self {
            user_id: user_id.into(),
            user_name: None,
            user_domain_id: None,
            project_id: project_id.into(),
            project_name: None,
            project_domain_id: None,
            roles,
            identity: None,
            request_id: None,
            is_admin: false,
        }
    }

    /// Whether the caller's token can make a trust; without Keystone there is nothing to delegate.
    pub fn can_delegate(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.info.can_delegate())
    }

    /// Whether this is an administrator by the rule `context_is_admin`; `Policy::admit` says so.
    pub fn is_admin(&self) -> bool {
        self.is_admin
    }

    pub fn set_admin(&mut self, is_admin: bool) {
        self.is_admin = is_admin;
    }

    /// What this caller sees of single resources: its project's, or all as an administrator.
    pub fn scope(&self) -> Scope {
        if self.is_admin() { Scope::All } else { Scope::Project(self.project_id.clone()) }
    }

    /// The caller's own project, even for an administrator.
    pub fn own(&self) -> Scope {
        Scope::Project(self.project_id.clone())
    }
}

/// Which rows a query may see. Queries that users cause take one, so that the project filter cannot
/// be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Project(ProjectId),
    All,
}
