//! Unified limits: what Keystone says that a project may have.
//!
//! What it said is taken for `cache_time`. While it does not answer, what it said last is taken, and the
//! configuration's limits of a project about which it was never asked.
//!
//! A project's own limit counts, else the registered one; the project alone is looked at. With the model
//! `strict_two_level` Keystone sees to it that no limit of a child is higher than its parent's, and nobody
//! adds up what a whole tree has: oslo.limit does not either.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::future::Cache;

use super::{Limits, Resource};
use crate::error::Source;
use crate::model::ProjectId;
use crate::openstack::{self, Keystone};
use crate::telemetry::Chain;

/// Projects about which something is remembered.
const PROJECTS: u64 = 10_000;
/// How long Keystone is left alone that did not answer.
const AGAIN: Duration = Duration::from_secs(5);
/// The model in which a project stands by itself.
const FLAT: &str = "flat";

#[derive(Debug, Clone, Copy)]
struct Answer {
    limits: Limits,
    /// Whether Keystone said so now.
    is_new: bool,
}

#[derive(Debug, Clone)]
struct Registered {
    service: String,
    region: Option<String>,
    limits: Limits,
}

pub struct Unified {
    keystone: Keystone,
    service_type: String,
    defaults: Limits,
    /// What counts for now.
    fresh: Cache<ProjectId, Answer>,
    /// What Keystone said last.
    last: Cache<ProjectId, Limits>,
    registered: Cache<(), Arc<Registered>>,
    warned: AtomicBool,
}

impl Unified {
    pub fn new(
        keystone: Keystone,
        service_type: String,
        cache_time: Duration,
        defaults: Limits,
    ) -> Arc<Self> {
        Arc::new(Self {
            keystone,
            service_type,
            defaults,
            fresh: Cache::builder().max_capacity(PROJECTS).expire_after(Lifetime(cache_time)).build(),
            last: Cache::new(PROJECTS),
            registered: Cache::builder().max_capacity(1).time_to_live(cache_time).build(),
            warned: AtomicBool::new(false),
        })
    }

    /// Requests about one project ask Keystone once between them.
    pub async fn limits(&self, project: &ProjectId) -> Limits {
        self.fresh.get_with_by_ref(project, self.look_up(project)).await.limits
    }

    pub async fn limits_of_last(self: &Arc<Self>, project: &ProjectId) -> Limits {
        if let Some(answer) = self.fresh.get(project).await {
            return answer.limits;
        }
        let Some(last) = self.last.get(project).await else { return self.limits(project).await };
        let (unified, project) = (self.clone(), project.clone());
        tokio::spawn(async move { unified.limits(&project).await });
        last
    }

    async fn look_up(&self, project: &ProjectId) -> Answer {
        match self.ask(project).await {
            Ok(limits) => {
                self.last.insert(project.clone(), limits).await;
                Answer { limits, is_new: true }
            }
            Err(error) => {
                let last = self.last.get(project).await;
                let taken = if last.is_some() { "what it said last" } else { "those of the configuration" };
                tracing::warn!(project.id = %project, taken, error = %Chain(&*error), "limits cannot be asked of Keystone");
                Answer { limits: last.unwrap_or(self.defaults), is_new: false }
            }
        }
    }

    async fn ask(&self, project: &ProjectId) -> Result<Limits, Source> {
        let registered = self.registered.try_get_with((), self.ask_registered()).await?;
        let region = registered.region.as_deref();
        let own = self.keystone.project_limits(&registered.service, project.as_str(), region).await?;
        Ok(over(registered.limits, &own))
    }

    async fn ask_registered(&self) -> Result<Arc<Registered>, openstack::Error> {
        let (service, region) = self.keystone.service_in_catalog(&self.service_type).await?;
        let found = self.keystone.registered_limits(&service, region.as_deref()).await?;
        let model = self.keystone.limit_model().await?;
        if model != FLAT && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(model, "of a tree of projects each is held to its own limits, and not their sum");
        }
        Ok(Arc::new(Registered { service, region, limits: over(self.defaults, &found) }))
    }
}

/// Limits with those of Keystone in their places, as far as it has any.
fn over(mut limits: Limits, found: &HashMap<String, i64>) -> Limits {
    for resource in Resource::ALL {
        let (name, unit) = resource.registered();
        if let Some(limit) = found.get(name) {
            limits.set(resource, limit.saturating_mul(unit));
        }
    }
    limits
}

/// How long an answer counts.
struct Lifetime(Duration);

impl Expiry<ProjectId, Answer> for Lifetime {
    fn expire_after_create(&self, _: &ProjectId, answer: &Answer, _: Instant) -> Option<Duration> {
        Some(if answer.is_new { self.0 } else { self.0.min(AGAIN) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn keystones_numbers_take_the_place_of_the_configurations() {
        let defaults = Limits::of(&config::Quotas::default());
        let found = HashMap::from([
            ("functions".to_owned(), 3),
            ("jobs".to_owned(), -1),
            ("package_mebibytes".to_owned(), 2),
            ("package_bytes".to_owned(), 1),
            ("servers".to_owned(), 9),
        ]);
        let limits = over(defaults, &found);
        assert_eq!(limits.get(Resource::Functions), Some(3));
        assert_eq!(limits.get(Resource::Jobs), None);
        assert_eq!(limits.get(Resource::PackageBytes), Some(2 << 20));
        assert_eq!(limits.get(Resource::Webhooks), defaults.get(Resource::Webhooks));
        assert_eq!(over(limits, &HashMap::new()), limits);
    }
}
