//! This service in Keystone: its user, and its entry in the catalog. Done with an administrator's
//! login, and made so that it may be done again.

use std::fmt;

use osauth_reqwest::Method;
use osauth_reqwest::header::HeaderMap;
use prometheus::{IntCounterVec, Opts};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::environment::Administrator;
use super::error::{Error, KEYSTONE, Result};
use super::keystone::{Keystone, Request};
use super::wire::{DomainRef, Login, Scope, UserRef};
use crate::config::KeystoneAuthtoken;
use crate::error::Source;
use crate::model::Interface;

/// Stands in the description of what was made here, and so may be removed again.
const MARK: &str = "Made by taibai register";
const NAME: &str = "taibai";
/// Of the service's user in the service's project: enough to validate tokens and to be trusted.
const ROLE: &str = "service";

/// What there is to be in Keystone.
#[derive(Debug, Clone)]
pub struct Registration {
    pub user: String,
    pub password: SecretString,
    pub user_domain: String,
    pub project: String,
    pub project_domain: String,
    pub service_type: String,
    pub region: String,
    /// Without a slash at their ends: clients append paths that begin with one.
    pub urls: Vec<(Interface, String)>,
    /// What the user gets in the project beside `service`. These are not made: who has one may do what
    /// other services say.
    pub roles: Vec<String>,
    /// What every project may have that has no limit of its own, by name; empty where Keystone is not to
    /// know.
    pub limits: Vec<(String, i64)>,
}

/// What was done about one thing, or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub done: Done,
    pub what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Made,
    Changed,
    Removed,
    /// It was as it should be.
    Found,
    /// Not made here, or used by others.
    Kept,
    /// There was none to remove.
    Missing,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = match self.done {
            Done::Made => "made",
            Done::Changed => "changed",
            Done::Removed => "removed",
            Done::Found => "found",
            Done::Kept => "kept",
            Done::Missing => "missing",
        };
        write!(f, "{done:<8} {}", self.what)
    }
}

/// Changes Keystone, and remembers what was done.
pub struct Registry {
    keystone: Keystone,
    changes: Vec<Change>,
}

impl Registry {
    pub fn new(administrator: &Administrator) -> Result<Self, Source> {
        // A command that ends soon has no metrics to show.
        let calls = IntCounterVec::new(Opts::new("calls", "Calls."), &["call"])?;
        let Administrator { connection, login, scope } = administrator;
        let keystone = Keystone::with_login(connection, login.clone(), scope.clone(), calls)?;
        Ok(Self { keystone, changes: Vec::new() })
    }

    /// Makes or changes what is not yet as it should be.
    pub async fn register(mut self, wanted: &Registration) -> Result<Vec<Change>> {
        let domain = self.domain(&wanted.project_domain).await?;
        let project =
            self.ensure("project", &[("name", &wanted.project), ("domain_id", &domain)], json!({})).await?;
        let mut roles = vec![(ROLE, self.ensure("role", &[("name", ROLE)], json!({})).await?)];
        for name in &wanted.roles {
            let found = self.find("role", &[("name", name)]).await?;
            let missing = || Error::unavailable(KEYSTONE, format!("it has no role {name}"));
            roles.push((name, id_of(&found.ok_or_else(missing)?)));
        }
        let domain = self.domain(&wanted.user_domain).await?;
        let password = wanted.password.expose_secret();
        let with = json!({"password": password, "default_project_id": project});
        let before = self.changes.len();
        let user = self.ensure("user", &[("name", &wanted.user), ("domain_id", &domain)], with).await?;
        let was_there = self.changes[before..].iter().all(|change| change.done == Done::Found);

        for (name, role) in &roles {
            let what = format!("role {name} of user {} in project {}", wanted.user, wanted.project);
            let path = ["projects", &project, "users", &user, "roles", role];
            let done = if self.ask(Method::HEAD, &path, &[], None).await?.0 == 204 {
                Done::Found
            } else {
                self.expect(Method::PUT, &path, None).await?;
                Done::Made
            };
            self.changes.push(Change { done, what });
        }
        if was_there && !self.logs_in(wanted).await? {
            self.expect(Method::PATCH, &["users", &user], Some(json!({"user": {"password": password}})))
                .await?;
            self.note(Done::Changed, format!("password of user {}", wanted.user));
        }

        let service =
            self.ensure("service", &[("name", NAME), ("type", &wanted.service_type)], json!({})).await?;
        self.region(&wanted.region).await?;
        for (interface, url) in &wanted.urls {
            self.endpoint(&service, *interface, &wanted.region, url).await?;
        }
        for (name, default) in &wanted.limits {
            self.limit(&service, &wanted.region, name, *default).await?;
        }
        Ok(self.changes)
    }

    /// Removes what `register` made: endpoints of the region and, with the last of them, the service
    /// and its user; project, role and region where they were made here and nobody else uses them.
    pub async fn unregister(mut self, wanted: &Registration) -> Result<Vec<Change>> {
        let service = self.find("service", &[("name", NAME), ("type", &wanted.service_type)]).await?;
        let mut elsewhere = false;
        match &service {
            None => self.note(Done::Missing, format!("service {NAME}")),
            Some(service) => {
                let id = id_of(service);
                self.remove_limits(&id, &wanted.region).await?;
                for endpoint in self.list("endpoint", &[("service_id", &id)]).await? {
                    let what = described(&endpoint);
                    if endpoint["region_id"] == wanted.region.as_str() {
                        self.remove("endpoint", &id_of(&endpoint), what).await?;
                    } else {
                        elsewhere = true;
                        self.note(Done::Kept, what);
                    }
                }
                if elsewhere {
                    self.note(Done::Kept, format!("service {NAME}, which is in other regions too"));
                } else {
                    self.remove("service", &id, format!("service {NAME}")).await?;
                }
            }
        }
        if self.list("endpoint", &[("region_id", &wanted.region)]).await?.is_empty() {
            let (status, answer) = self.ask(Method::GET, &["regions", &wanted.region], &[], None).await?;
            if status == 200 {
                self.remove_if_ours("region", &answer["region"], &wanted.region).await?;
            }
        }
        if elsewhere {
            return Ok(self.changes);
        }
        let domain = self.domain(&wanted.user_domain).await?;
        match self.find("user", &[("name", &wanted.user), ("domain_id", &domain)]).await? {
            Some(user) => self.remove_if_ours("user", &user, &wanted.user).await?,
            None => self.note(Done::Missing, format!("user {}", wanted.user)),
        }
        let domain = self.domain(&wanted.project_domain).await?;
        if let Some(project) =
            self.find("project", &[("name", &wanted.project), ("domain_id", &domain)]).await?
        {
            self.remove_if_unused("project", "scope.project.id", &project, &wanted.project).await?;
        }
        if let Some(role) = self.find("role", &[("name", ROLE)]).await? {
            self.remove_if_unused("role", "role.id", &role, ROLE).await?;
        }
        Ok(self.changes)
    }

    async fn logs_in(&self, wanted: &Registration) -> Result<bool> {
        let name = |name: &str| DomainRef::Name(name.to_owned());
        let user = UserRef::Name { name: wanted.user.clone(), domain: name(&wanted.user_domain) };
        let login = Login::Password { user, password: wanted.password.clone() };
        let scope = Scope::Project { name: wanted.project.clone(), domain: name(&wanted.project_domain) };
        match self.keystone.service().issuer.issue(&login, &scope, None).await {
            Ok(_) => Ok(true),
            Err(Error::Rejected) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn domain(&self, name: &str) -> Result<String> {
        let found = self.find("domain", &[("name", name)]).await?;
        let missing = || Error::unavailable(KEYSTONE, format!("it has no domain {name}"));
        found.map(|domain| id_of(&domain)).ok_or_else(missing)
    }

    async fn region(&mut self, region: &str) -> Result<()> {
        let what = format!("region {region}");
        let (status, _) = self.ask(Method::GET, &["regions", region], &[], None).await?;
        if status == 200 {
            self.note(Done::Found, what);
            return Ok(());
        }
        let body = json!({"region": {"id": region, "description": MARK}});
        self.expect(Method::POST, &["regions"], Some(body)).await?;
        self.note(Done::Made, what);
        Ok(())
    }

    async fn endpoint(&mut self, service: &str, interface: Interface, region: &str, url: &str) -> Result<()> {
        let interface = interface.as_str();
        let what = format!("endpoint {interface} {url} in {region}");
        let query = [("service_id", service), ("interface", interface), ("region_id", region)];
        let found = self.list("endpoint", &query).await?;
        let done = match found.first() {
            Some(endpoint) if endpoint["url"] == url && endpoint["enabled"] != json!(false) => Done::Found,
            Some(endpoint) => {
                let body = json!({"endpoint": {"url": url, "enabled": true}});
                self.expect(Method::PATCH, &["endpoints", &id_of(endpoint)], Some(body)).await?;
                Done::Changed
            }
            None => {
                let body = json!({"endpoint": {"service_id": service, "interface": interface,
                    "region_id": region, "url": url}});
                self.expect(Method::POST, &["endpoints"], Some(body)).await?;
                Done::Made
            }
        };
        self.note(done, what);
        Ok(())
    }

    /// A registered limit. One that is there stays as it is: it is for administrators to change.
    async fn limit(&mut self, service: &str, region: &str, name: &str, default: i64) -> Result<()> {
        let so = [("service_id", service), ("region_id", region), ("resource_name", name)];
        if let Some(found) = self.find("registered_limit", &so).await? {
            self.note(Done::Found, format!("registered limit {name} = {}", found["default_limit"]));
            return Ok(());
        }
        let body = json!({"registered_limits": [{"service_id": service, "region_id": region,
            "resource_name": name, "default_limit": default, "description": MARK}]});
        self.expect(Method::POST, &["registered_limits"], Some(body)).await?;
        self.note(Done::Made, format!("registered limit {name} = {default}"));
        Ok(())
    }

    /// Removes the registered limits of a service in a region that were made here, with what projects have
    /// of their own in their places: no other service reads those.
    async fn remove_limits(&mut self, service: &str, region: &str) -> Result<()> {
        let place = [("service_id", service), ("region_id", region)];
        let own = self.list("limit", &place).await?;
        for registered in self.list("registered_limit", &place).await? {
            let name = registered["resource_name"].as_str().unwrap_or_default().to_owned();
            if registered["description"] != MARK {
                self.note(
                    Done::Kept,
                    format!("registered limit {name}, which was not made by taibai register"),
                );
                continue;
            }
            for limit in own.iter().filter(|limit| limit["resource_name"] == name.as_str()) {
                let project = limit["project_id"].as_str().unwrap_or("?");
                self.remove("limit", &id_of(limit), format!("limit {name} of project {project}")).await?;
            }
            self.remove("registered_limit", &id_of(&registered), format!("registered limit {name}")).await?;
        }
        Ok(())
    }

    /// The id of the one that is so, made where there is none.
    async fn ensure(&mut self, kind: &str, so: &[(&str, &str)], with: Value) -> Result<String> {
        let what = format!("{kind} {}", so[0].1);
        if let Some(found) = self.find(kind, so).await? {
            self.note(Done::Found, what);
            return Ok(id_of(&found));
        }
        let mut body = with;
        body["description"] = MARK.into();
        for (key, value) in so {
            body[*key] = (*value).into();
        }
        let made = self.expect(Method::POST, &[&plural(kind)], Some(json!({kind: body}))).await?;
        self.note(Done::Made, what);
        Ok(id_of(&made[kind]))
    }

    async fn remove_if_unused(&mut self, kind: &str, key: &str, found: &Value, name: &str) -> Result<()> {
        if self.list("role_assignment", &[(key, &id_of(found))]).await?.is_empty() {
            self.remove_if_ours(kind, found, name).await
        } else {
            self.note(Done::Kept, format!("{kind} {name}, which others use"));
            Ok(())
        }
    }

    async fn remove_if_ours(&mut self, kind: &str, found: &Value, name: &str) -> Result<()> {
        if found["description"] == MARK {
            self.remove(kind, &id_of(found), format!("{kind} {name}")).await
        } else {
            self.note(Done::Kept, format!("{kind} {name}, which was not made by taibai register"));
            Ok(())
        }
    }

    async fn remove(&mut self, kind: &str, id: &str, what: String) -> Result<()> {
        self.expect(Method::DELETE, &[&plural(kind), id], None).await?;
        self.note(Done::Removed, what);
        Ok(())
    }

    async fn find(&self, kind: &str, so: &[(&str, &str)]) -> Result<Option<Value>> {
        let all = self.list(kind, so).await?;
        // Not every filter is one for every kind.
        Ok(all.into_iter().find(|one| so.iter().all(|(key, value)| one[*key] == *value)))
    }

    async fn list(&self, kind: &str, query: &[(&str, &str)]) -> Result<Vec<Value>> {
        let (status, mut answer) = self.ask(Method::GET, &[&plural(kind)], query, None).await?;
        if status != 200 {
            return Err(Error::of_status(KEYSTONE, status));
        }
        match answer[plural(kind)].take() {
            Value::Array(all) => Ok(all),
            _ => Err(Error::unavailable(KEYSTONE, format!("it does not list {}", plural(kind)))),
        }
    }

    async fn expect(&self, method: Method, path: &[&str], json: Option<Value>) -> Result<Value> {
        let (status, answer) = self.ask(method, path, &[], json).await?;
        if (200..300).contains(&status) { Ok(answer) } else { Err(Error::of_status(KEYSTONE, status)) }
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        json: Option<Value>,
    ) -> Result<(u16, Value)> {
        let request = Request { call: "registry", method, path, headers: HeaderMap::new(), query, json };
        let answer = self.keystone.ask(request, None).await?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(|error| Error::unavailable(KEYSTONE, error))?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    fn note(&mut self, done: Done, what: String) {
        self.changes.push(Change { done, what });
    }
}

fn plural(kind: &str) -> String {
    format!("{kind}s")
}

fn id_of(one: &Value) -> String {
    one["id"].as_str().unwrap_or_default().to_owned()
}

fn described(endpoint: &Value) -> String {
    let text = |key: &str| endpoint[key].as_str().unwrap_or("?").to_owned();
    format!("endpoint {} {} in {}", text("interface"), text("url"), text("region_id"))
}

impl Registration {
    /// With the user that the configuration names.
    pub fn new(
        config: &KeystoneAuthtoken,
        region: String,
        urls: Vec<(Interface, String)>,
        roles: Vec<String>,
        limits: Vec<(String, i64)>,
    ) -> Self {
        Self {
            user: config.username.clone(),
            password: config.password.clone(),
            user_domain: config.user_domain_name.clone(),
            project: config.project_name.clone(),
            project_domain: config.project_domain_name.clone(),
            service_type: config.service_type.clone(),
            region,
            urls,
            roles,
            limits,
        }
    }
}
