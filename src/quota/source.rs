//! Unified limits: what Keystone says that a project may have.
//!
//! What it said is taken for `cache_time`. While it does not answer, what it said last is taken, and the
//! configuration's limits of a project about which it was never asked. A call waits for it at a project's
//! first alone, and then for [`PATIENCE`] at most.
//!
//! A project's own limit counts, else the registered one; the project alone is looked at. With the model
//! `strict_two_level` Keystone sees to it that no limit of a child is higher than its parent's, and nobody
//! adds up what a whole tree has: oslo.limit does not either.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::future::Cache;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Limits, Resource};
use crate::error::Source;
use crate::model::ProjectId;
use crate::openstack::{self, Keystone};
use crate::telemetry::Chain;

/// Projects about which something is remembered.
const PROJECTS: u64 = 10_000;
/// How long Keystone is left alone that did not answer.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the first call of a project waits for what Keystone says of it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long no call waits for Keystone after it failed or was slow.
const TROUBLE: Duration = Duration::from_secs(60);
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
    /// Projects about which Keystone is being asked for calls.
    asking: Mutex<HashMap<ProjectId, watch::Receiver<Option<Limits>>>>,
    /// When Keystone failed or was slow, and has not answered since.
    trouble: Mutex<Option<Instant>>,
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
            asking: Mutex::default(),
            trouble: Mutex::default(),
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
        let mut answer = self.ask_beside(project);
        if let Some(last) = self.last.get(project).await {
            return last;
        }
        if self.is_in_trouble() {
            return self.defaults;
        }
        match timeout(PATIENCE, answer.wait_for(Option::is_some)).await {
            Ok(Ok(limits)) => limits.unwrap_or(self.defaults),
            Ok(Err(_)) => self.defaults,
            Err(_) => {
                self.note_trouble(true);
                self.defaults
            }
        }
    }

    /// Has Keystone asked about a project, unless that is under way. The answer is for who waits.
    fn ask_beside(self: &Arc<Self>, project: &ProjectId) -> watch::Receiver<Option<Limits>> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = asking.get(project) {
            return answer.clone();
        }
        let (says, answer) = watch::channel(None);
        asking.insert(project.clone(), answer.clone());
        let asked = Asked { unified: self.clone(), project: project.clone() };
        tokio::spawn(async move {
            let limits = asked.unified.limits(&asked.project).await;
            says.send_replace(Some(limits));
        });
        answer
    }

    fn note_trouble(&self, is_trouble: bool) {
        let since = is_trouble.then(Instant::now);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn is_in_trouble(&self) -> bool {
        let since = *self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < TROUBLE)
    }

    async fn look_up(&self, project: &ProjectId) -> Answer {
        let asked = self.ask(project).await;
        self.note_trouble(asked.is_err());
        match asked {
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

/// A question about a project, until this is dropped.
struct Asked {
    unified: Arc<Unified>,
    project: ProjectId,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.unified.asking.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.project);
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
    use crate::telemetry::Metrics;

    /// Limits of a Keystone at this address.
    fn of_keystone(address: std::net::SocketAddr) -> Arc<Unified> {
        let section = config::KeystoneAuthtoken {
            auth_url: format!("http://{address}/v3"),
            username: "taibai".to_owned(),
            ..config::KeystoneAuthtoken::default()
        };
        let keystone = Keystone::new(&section, Metrics::new().keystone_calls).unwrap();
        let defaults = Limits::of(&config::Quotas::default());
        Unified::new(keystone, "function-engine".to_owned(), Duration::from_secs(60), defaults)
    }

    /// Far from what Keystone may take for an answer, and from what a call may wait.
    async fn soon<T>(work: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(15), work).await.expect("it waited for Keystone")
    }

    #[tokio::test]
    async fn no_call_waits_long_for_a_keystone_that_does_not_answer() {
        // It takes connections, and is as silent as one that hangs.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let unified = of_keystone(silent.local_addr().unwrap());
        assert_eq!(soon(unified.limits_of_last(&"first".into())).await, unified.defaults);
        assert!(unified.is_in_trouble());
        soon(async {
            for at in 0..60 {
                let limits = unified.limits_of_last(&format!("{at}").into()).await;
                assert_eq!(limits, unified.defaults);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn keystone_is_asked_about_a_project_once_at_a_time() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let unified = of_keystone(silent.local_addr().unwrap());
        let (project, mut last) = (ProjectId::from("p"), unified.defaults);
        last.set(Resource::Jobs, 3);
        unified.last.insert(project.clone(), last).await;
        for _ in 0..100 {
            assert_eq!(unified.limits_of_last(&project).await, last);
        }
        assert_eq!(Arc::strong_count(&unified), 2, "this, and one question");
        assert!(!unified.is_in_trouble());
    }

    #[tokio::test]
    async fn a_question_that_failed_is_over() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let unified = of_keystone(gone.local_addr().unwrap());
        drop(gone);
        let project = ProjectId::from("p");
        assert_eq!(soon(unified.limits_of_last(&project)).await, unified.defaults);
        soon(async {
            while Arc::strong_count(&unified) > 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(unified.asking.lock().unwrap().is_empty() && unified.is_in_trouble());
        assert!(unified.fresh.get(&project).await.is_some(), "and Keystone is left alone for a while");
    }

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
