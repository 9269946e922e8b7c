//! The v1 API, as Qinling's clients know it.

mod aliases;
mod discovery;
mod executions;
mod function_form;
mod functions;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod health;
mod jobs;
mod quotas;
mod runtimes;
mod versions;
mod webhook_input;
mod webhooks;

use std::borrow::Cow;

use actix_web::web;
use actix_web::{HttpRequest, HttpResponse, http::StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::extract::Query;
use super::openapi::Operation;
use super::version::is_first;
use super::wire::invalid;
use crate::db::{Filter, Listed, Page};
use crate::error::Result;
use crate::model::{Caller, NetworkAccess, Scope, Timestamp};
use crate::policy::Policy;

pub fn routes(config: &mut web::ServiceConfig) {
    // Those first that are asked most: a path is compared with one after the other.
    config
        .configure(executions::routes)
        .configure(webhooks::routes)
        .configure(discovery::routes)
        .configure(health::routes)
        .configure(runtimes::routes)
        .configure(functions::routes)
        .configure(versions::routes)
        .configure(aliases::routes)
        .configure(jobs::routes)
        .configure(quotas::routes);
}

/// What the routes are, for the description of the API.
pub fn operations() -> Vec<Operation> {
    [
        discovery::operations(),
        health::operations(),
        runtimes::operations(),
        functions::operations(),
        versions::operations(),
        aliases::operations(),
        executions::operations(),
        jobs::operations(),
        webhooks::operations(),
        quotas::operations(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A response without a body and without a content type.
fn empty(status: StatusCode) -> HttpResponse {
    HttpResponse::build(status).finish()
}

/// A time, as the API writes it.
#[derive(Debug, Clone, Copy)]
struct Time(Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time"})
    }
}

/// The conditions that `Listing` reads.
const PROJECTS: [&str; 2] = ["all_projects", "project_id"];
/// The keys that `page` reads.
const PARTS: [&str; 3] = ["limit", "marker", "sort"];

/// Which rows a list shows, as the query asks for.
#[derive(Debug)]
struct Listing {
    scope: Scope,
    /// The condition on the project, where it counts.
    project_id: Option<Filter>,
}

impl Listing {
    /// Reads `all_projects` and `project_id`. `rule` is asked where other projects come in view.
    fn of(policy: &Policy, caller: &Caller, query: &Query, rule: &'static str) -> Result<Self> {
        let all = query.flag("all_projects")?;
        // Who may not see other projects has only the own one to ask for, so the key says nothing.
        let project_id = filter(query, "project_id").filter(|_| all || caller.is_admin());
        let scope = if all || project_id.is_some() {
            policy.enforce(caller, rule)?;
            Scope::All
        } else {
            caller.own()
        };
        Ok(Self { scope, project_id })
    }
}

/// The query of a list: its own keys, and those that say which part of it is wanted.
fn list_query(request: &HttpRequest, keys: &[&str]) -> Result<Query> {
    if is_first(request) {
        return Query::of(request, keys);
    }
    Query::of(request, &[keys, &PARTS].concat())
}

/// Reads `limit`, `marker` and `sort`; without any of them a list is whole.
fn page<E: Listed>(query: &Query) -> Result<Page<E>> {
    let mut page = Page { marker: query.get("marker").map(str::to_owned), ..Page::default() };
    if let Some(limit) = query.integer("limit", 1)? {
        page.limit = u64::try_from(limit).ok();
    }
    if let Some(sort) = query.get("sort") {
        let (name, order) = sort.split_once(':').unwrap_or((sort, "asc"));
        let key = E::KEYS.iter().find(|key| key.name == name);
        let (Some(key), "asc" | "desc") = (key, order) else {
            let names: Vec<&str> = E::KEYS.iter().map(|key| key.name).collect();
            let right = format!("One of {} is required, and :asc or :desc behind it.", names.join(", "));
            return Err(invalid("sort", &Value::String(sort.to_owned()), &right));
        };
        (page.key, page.descending) = (key, order == "desc");
    }
    Ok(page)
}

/// The field `network` of a runtime or a function.
fn connection(given: Option<String>) -> Result<Option<NetworkAccess>> {
    given.map_or(Ok(None), |text| match text.as_str() {
        "default" => Ok(Some(NetworkAccess::Default)),
        "none" => Ok(Some(NetworkAccess::None)),
        _ => Err(invalid("network", &Value::String(text), "It has to be default or none.")),
    })
}

/// The condition that a query key holds; none where it is absent or empty.
fn filter(query: &Query, key: &str) -> Option<Filter> {
    query.get(key).filter(|text| !text.is_empty()).map(Filter::parse)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn listing(role: &str, query: &str) -> Result<Listing> {
        let policy = Policy::default();
        let caller = policy.admit(Caller::new("u", "own", vec![role.to_owned()]));
        let request = TestRequest::with_uri(&format!("/x?{query}")).to_http_request();
        let query = Query::lenient(&request).unwrap();
        Listing::of(&policy, &caller, &query, "function:get_all:all_projects")
    }

    #[test]
    fn a_list_is_of_the_own_project_unless_more_is_asked_for() {
        for query in ["", "all_projects=", "all_projects=false", "all_projects=0", "project_id="] {
            for role in ["member", "admin"] {
                assert_eq!(listing(role, query).unwrap().scope, Scope::Project("own".into()), "{query}");
            }
        }
    }

    #[test]
    fn other_projects_are_for_admins() {
        assert_eq!(listing("admin", "all_projects=true").unwrap().scope, Scope::All);
        assert!(listing("member", "all_projects=true").is_err());
        let one = listing("admin", "project_id=in:a,b").unwrap();
        assert_eq!(one.scope, Scope::All);
        assert_eq!(one.project_id, Some(Filter::In(vec!["a".to_owned(), "b".to_owned()])));
    }

    #[test]
    fn a_member_who_names_a_project_sees_the_own_one() {
        let own = listing("member", "project_id=other").unwrap();
        assert_eq!(own.scope, Scope::Project("own".into()));
        assert_eq!(own.project_id, None);
    }
}
