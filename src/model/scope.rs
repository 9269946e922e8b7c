use super::ProjectId;

/// Who asks: what is left of a token once it has been validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub user_id: String,
    pub project_id: ProjectId,
    pub roles: Vec<String>,
    is_admin: bool,
}

impl Caller {
    /// Somebody whom no rule has yet called an administrator.
    pub fn new(user_id: impl Into<String>, project_id: impl Into<ProjectId>, roles: Vec<String>) -> Self {
        Self { user_id: user_id.into(), project_id: project_id.into(), roles, is_admin: false }
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
