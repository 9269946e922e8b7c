//! Every rule and its default.
//!
//! What Qinling lets every user of a project do is for members here, reading for readers, and what it
//! keeps for administrators stays theirs. What Qinling leaves unchecked has a rule as well.

/// A rule that exists without a file.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub name: &'static str,
    /// In oslo.policy's language.
    pub check: &'static str,
    pub about: &'static str,
    /// Methods and paths that ask it. None for a rule that others refer to.
    pub operations: &'static [(&'static str, &'static str)],
}

/// Asked where no rule of a name exists.
pub const DEFAULT: &str = "default";
/// Who passes sees every project.
pub const CONTEXT_IS_ADMIN: &str = "context_is_admin";

const ADMIN: &str = "rule:context_is_admin";
const MANAGER: &str = "rule:admin_or_project_manager";
const MEMBER: &str = "rule:admin_or_project_member";
const READER: &str = "rule:admin_or_project_reader";

macro_rules! rules {
    ($($name:literal $check:expr, $about:literal $(, $method:literal $path:literal)*;)+) => {
        &[$(Rule { name: $name, check: $check, about: $about, operations: &[$(($method, $path)),*] }),+]
    };
}

#[rustfmt::skip]
pub const RULES: &[Rule] = rules! {
    "context_is_admin" "role:admin", "An administrator of the service, who sees every project.";
    "owner" "project_id:%(project_id)s", "A user of the project that something belongs to.";
    "admin_or_owner" "rule:context_is_admin or rule:owner", "An administrator, or a user of the project. For rules of your own.";
    "project_manager" "rule:owner and role:manager", "A manager of the project.";
    "project_member" "rule:owner and (role:member or custom_roles:True)",
        "A member of the project. custom_roles is True where a token has roles but none of admin, manager, member, reader and service: such a token may do what a member may.";
    "project_reader" "rule:owner and (role:reader or custom_roles:True)", "A user who may read what the project has.";
    "admin_or_project_manager" "rule:context_is_admin or rule:project_manager", "An administrator, or a manager of the project.";
    "admin_or_project_member" "rule:context_is_admin or rule:project_member", "An administrator, or a member of the project.";
    "admin_or_project_reader" "rule:context_is_admin or rule:project_reader", "An administrator, or a reader of the project.";
    "service" "role:service", "Another service of the cloud. For rules of your own: no default lets it do anything, since no service needs to.";
    "default" "!", "Asked instead of a rule that does not exist.";

    "runtime:create" ADMIN, "Register a runtime.", "POST" "/v1/runtimes";
    "runtime:get" READER, "Show a runtime of the project or a public one.", "GET" "/v1/runtimes/{id}";
    "runtime:get_all" READER, "List the runtimes of the project and the public ones.", "GET" "/v1/runtimes";
    "runtime:update" ADMIN, "Change a runtime.", "PUT" "/v1/runtimes/{id}";
    "runtime:delete" ADMIN, "Delete a runtime.", "DELETE" "/v1/runtimes/{id}";
    "runtime_pool:get_all" ADMIN, "Show how many workers of a runtime there are.", "GET" "/v1/runtimes/{id}/pool";

    "function:create" MEMBER, "Create a function.", "POST" "/v1/functions";
    "function:get" READER, "Show a function, or download its package.", "GET" "/v1/functions/{id}";
    "function:get_all" READER, "List the project's functions.", "GET" "/v1/functions";
    "function:get_all:all_projects" ADMIN, "List the functions of other projects.", "GET" "/v1/functions?all_projects=true";
    "function:update" MEMBER, "Change a function.", "PUT" "/v1/functions/{id}";
    "function:delete" MEMBER, "Delete a function.", "DELETE" "/v1/functions/{id}";
    "function:scale_up" ADMIN, "Start workers for a function.", "POST" "/v1/functions/{id}/scale_up";
    "function:scale_down" ADMIN, "End workers of a function.", "POST" "/v1/functions/{id}/scale_down";
    "function:detach" MANAGER, "Take the workers of a function away from it.", "POST" "/v1/functions/{id}/detach";
    "function_worker:get_all" MANAGER, "List the workers of a function.", "GET" "/v1/functions/{id}/workers";

    "function_version:create" MEMBER, "Publish a version of a function.", "POST" "/v1/functions/{id}/versions";
    "function_version:get" READER, "Show a version, or download its package.", "GET" "/v1/functions/{id}/versions/{version}";
    "function_version:get_all" READER, "List the versions of a function.", "GET" "/v1/functions/{id}/versions";
    "function_version:delete" MEMBER, "Delete a version.", "DELETE" "/v1/functions/{id}/versions/{version}";
    "function_version:scale_up" ADMIN, "Start workers for a version.", "POST" "/v1/functions/{id}/versions/{version}/scale_up";
    "function_version:scale_down" ADMIN, "End workers of a version.", "POST" "/v1/functions/{id}/versions/{version}/scale_down";
    "function_version:detach" MANAGER, "Take the workers of a version away from it.", "POST" "/v1/functions/{id}/versions/{version}/detach";

    "function_alias:create" MEMBER, "Create an alias.", "POST" "/v1/aliases";
    "function_alias:get" READER, "Show an alias.", "GET" "/v1/aliases/{name}";
    "function_alias:get_all" READER, "List the project's aliases.", "GET" "/v1/aliases";
    "function_alias:get_all:all_projects" ADMIN, "List the aliases of other projects.", "GET" "/v1/aliases?all_projects=true";
    "function_alias:update" MEMBER, "Change an alias, or take its last change back.", "PUT" "/v1/aliases/{name}", "POST" "/v1/aliases/{name}/rollback";
    "function_alias:delete" MEMBER, "Delete an alias.", "DELETE" "/v1/aliases/{name}";

    "execution:create" MEMBER, "Run a function. The target is the caller's own project, to which the execution belongs.", "POST" "/v1/executions";
    "execution:get" READER, "Show an execution.", "GET" "/v1/executions/{id}";
    "execution:get_all" READER, "List the project's executions.", "GET" "/v1/executions";
    "execution:get_all:all_projects" ADMIN, "List the executions of other projects.", "GET" "/v1/executions?all_projects=true";
    "execution:get_log" READER, "Show what a function wrote.", "GET" "/v1/executions/{id}/log";
    "execution:cancel" MEMBER, "End an execution.", "POST" "/v1/executions/{id}/cancel";
    "execution:delete" MEMBER, "Delete the record of an execution.", "DELETE" "/v1/executions/{id}";

    "job:create" MEMBER, "Create a job.", "POST" "/v1/jobs";
    "job:get" READER, "Show a job.", "GET" "/v1/jobs/{id}";
    "job:get_all" READER, "List the project's jobs.", "GET" "/v1/jobs";
    "job:get_all:all_projects" ADMIN, "List the jobs of other projects.", "GET" "/v1/jobs?all_projects=true";
    "job:update" MEMBER, "Change a job.", "PUT" "/v1/jobs/{id}";
    "job:delete" MEMBER, "Delete a job.", "DELETE" "/v1/jobs/{id}";

    "webhook:create" MEMBER, "Create a webhook.", "POST" "/v1/webhooks";
    "webhook:get" MEMBER, "Show a webhook. Not for readers, since who knows its URL can run the function.", "GET" "/v1/webhooks/{id}";
    "webhook:get_all" MEMBER, "List the project's webhooks, with their URLs.", "GET" "/v1/webhooks";
    "webhook:get_all:all_projects" ADMIN, "List the webhooks of other projects.", "GET" "/v1/webhooks?all_projects=true";
    "webhook:update" MEMBER, "Change a webhook, or give it another URL.", "PUT" "/v1/webhooks/{id}", "POST" "/v1/webhooks/{id}/rotate";
    "webhook:delete" MEMBER, "Delete a webhook.", "DELETE" "/v1/webhooks/{id}";

    "quota:get" READER, "Show what the project may have and what it has. Of another project, for administrators.",
        "GET" "/v1/quotas", "GET" "/v1/quotas/{project_id}";
};
