//! Unified limits, as Keystone keeps them for the services of a cloud.

use std::collections::HashMap;

use osauth_reqwest::Method;
use osauth_reqwest::header::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::{Error, KEYSTONE, Result};
use super::keystone::{Keystone, Request};
use crate::model::Catalog;

#[derive(Deserialize)]
struct Model {
    model: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct RegisteredLimits {
    registered_limits: Vec<Limit>,
}

#[derive(Deserialize)]
struct Limits {
    limits: Vec<Limit>,
}

#[derive(Deserialize)]
struct Limit {
    resource_name: String,
    #[serde(default)]
    region_id: Option<String>,
    #[serde(alias = "default_limit", alias = "resource_limit")]
    limit: i64,
}

impl Keystone {
    /// The id of a service that the catalog of our own token has, and the region in which its limits are
    /// looked up.
    pub async fn service_in_catalog(&self, service_type: &str) -> Result<(String, Option<String>)> {
        let known = self.service().current().await?;
        let found = find(known.catalog(), service_type);
        // It may have been registered later than the token was issued.
        let found = match found {
            Some(found) => Some(found),
            None => find(&*self.catalog().await?, service_type),
        };
        let missing =
            || Error::unavailable(KEYSTONE, format!("its catalog has no service of type {service_type}"));
        let (id, first) = found.ok_or_else(missing)?;
        Ok((id, self.region().map(str::to_owned).or(first)))
    }

    /// How limits of projects that are each other's parents count: `flat`, or another word.
    pub async fn limit_model(&self) -> Result<String> {
        Ok(self.limits_of::<Model>(&["limits", "model"], &[]).await?.model.name)
    }

    /// What every project may have that has no limit of its own, by name.
    pub async fn registered_limits(
        &self,
        service: &str,
        region: Option<&str>,
    ) -> Result<HashMap<String, i64>> {
        let query = [("service_id", service)];
        let answer: RegisteredLimits = self.limits_of(&["registered_limits"], &query).await?;
        Ok(in_region(answer.registered_limits, region))
    }

    /// The limits that a project has of its own, by name.
    pub async fn project_limits(
        &self,
        service: &str,
        project: &str,
        region: Option<&str>,
    ) -> Result<HashMap<String, i64>> {
        let query = [("service_id", service), ("project_id", project)];
        let answer: Limits = self.limits_of(&["limits"], &query).await?;
        Ok(in_region(answer.limits, region))
    }

    async fn limits_of<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T> {
        let headers = HeaderMap::new();
        let request = Request { call: "limits", method: Method::GET, path, headers, query, json: None };
        let answer = self.ask(request, None).await?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(Error::of_status(KEYSTONE, status));
        }
        let body = answer.bytes().await.map_err(|error| Error::unavailable(KEYSTONE, error))?;
        serde_json::from_slice(&body).map_err(|error| Error::unavailable(KEYSTONE, error))
    }
}

/// The id of a service, and the region of its first endpoint that has one.
fn find(catalog: &Catalog, service_type: &str) -> Option<(String, Option<String>)> {
    let service = catalog.0.iter().find(|service| service.service_type == service_type)?;
    let region = service.endpoints.iter().find_map(|endpoint| endpoint.region_id.clone());
    Some((service.id.clone()?, region))
}

/// The limits of a region. One without a region is for all that have none of their own.
fn in_region(limits: Vec<Limit>, region: Option<&str>) -> HashMap<String, i64> {
    let (own, mut all): (Vec<_>, Vec<_>) = limits
        .into_iter()
        .filter(|limit| limit.region_id.is_none() || limit.region_id.as_deref() == region)
        .partition(|limit| limit.region_id.is_some());
    all.extend(own);
    all.into_iter().map(|limit| (limit.resource_name, limit.limit)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_regions_own_limit_comes_before_one_for_all() {
        let answer = json!({"registered_limits": [
            {"id": "1", "service_id": "s", "region_id": "one", "resource_name": "jobs", "default_limit": 1},
            {"id": "2", "service_id": "s", "region_id": null, "resource_name": "jobs", "default_limit": 2},
            {"id": "3", "service_id": "s", "region_id": "two", "resource_name": "jobs", "default_limit": 3},
            {"id": "4", "service_id": "s", "resource_name": "functions", "default_limit": -1, "description": null},
        ], "links": {}});
        let of = |region| {
            let answer: RegisteredLimits = serde_json::from_value(answer.clone()).unwrap();
            let limits = in_region(answer.registered_limits, region);
            (limits["jobs"], limits["functions"])
        };
        assert_eq!(
            [of(Some("one")), of(Some("two")), of(Some("three")), of(None)],
            [(1, -1), (3, -1), (2, -1), (2, -1)]
        );
        let own = json!({"limits": [{"resource_name": "jobs", "region_id": "one", "resource_limit": 7,
            "project_id": "p", "domain_id": null}]});
        let own: Limits = serde_json::from_value(own).unwrap();
        assert_eq!(in_region(own.limits, Some("one"))["jobs"], 7);
    }
}
