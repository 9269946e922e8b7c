//! How much a project may have, and how fast it may ask. What is counted is in `db::quotas`; who creates
//! something has it admitted in the transaction that writes it.

mod rate;
mod source;
mod sync;

use std::sync::Arc;
use std::time::Instant;

use crate::config::{self, Config, QuotaDriver};
use crate::db::{self, Db, Transaction};
use crate::error::{Error, Result};
use crate::model::ProjectId;
use crate::openstack::Keystone;
pub use rate::Rate;
use source::Unified;
use sync::{Projects, TakenOn};
pub use sync::{Running, Share};

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Functions,
    FunctionVersions,
    FunctionAliases,
    Jobs,
    Webhooks,
    ConcurrentExecutions,
    PackageBytes,
}

/// The highest number that Keystone takes for a limit.
const MOST_REGISTERED: i64 = i32::MAX as i64;
/// Bytes of the unit in which Keystone keeps a limit of bytes: its numbers end at 2^31 - 1.
const MEBIBYTE: i64 = 1 << 20;

impl Resource {
    pub const ALL: [Self; 7] = [
        Self::Functions,
        Self::FunctionVersions,
        Self::FunctionAliases,
        Self::Jobs,
        Self::Webhooks,
        Self::ConcurrentExecutions,
        Self::PackageBytes,
    ];

    /// As the API and the configuration call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Functions => "functions",
            Self::FunctionVersions => "function_versions",
            Self::FunctionAliases => "function_aliases",
            Self::Jobs => "jobs",
            Self::Webhooks => "webhooks",
            Self::ConcurrentExecutions => "concurrent_executions",
            Self::PackageBytes => "package_bytes",
        }
    }

    /// As Keystone's registered limits call it, and how much of it one of theirs is.
    pub fn registered(self) -> (&'static str, i64) {
        match self {
            Self::PackageBytes => ("package_mebibytes", MEBIBYTE),
            other => (other.name(), 1),
        }
    }
}

/// What one project may have of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits([i64; Resource::ALL.len()]);

impl Limits {
    /// As the configuration says, for every project.
    pub fn of(config: &config::Quotas) -> Self {
        Self(Resource::ALL.map(|resource| match resource {
            Resource::Functions => config.functions,
            Resource::FunctionVersions => config.function_versions,
            Resource::FunctionAliases => config.function_aliases,
            Resource::Jobs => config.jobs,
            Resource::Webhooks => config.webhooks,
            Resource::ConcurrentExecutions => config.concurrent_executions,
            Resource::PackageBytes => config.package_bytes,
        }))
    }

    /// `None` is without a limit.
    pub fn get(&self, resource: Resource) -> Option<u64> {
        u64::try_from(self.0[resource as usize]).ok()
    }

    fn set(&mut self, resource: Resource, limit: i64) {
        self.0[resource as usize] = limit;
    }

    /// As Keystone is to have them registered: by name, in its units and as far as its numbers go.
    pub fn registered(&self) -> Vec<(String, i64)> {
        let registered = Resource::ALL.map(|resource| {
            let (name, unit) = resource.registered();
            let limit = match self.0[resource as usize] {
                limit if limit < 0 => -1,
                limit => (limit / unit).min(MOST_REGISTERED),
            };
            (name.to_owned(), limit)
        });
        registered.to_vec()
    }

    /// Succeeds where the project may have so many more. In a transaction that writes them, and before it
    /// locks anything else: from here on nobody else adds to what the project has, until it ends.
    pub async fn admit(
        &self,
        tx: &Transaction,
        project: &ProjectId,
        resource: Resource,
        requested: u64,
    ) -> Result<()> {
        let Some(limit) = self.get(resource) else { return Ok(()) };
        db::quotas::hold(tx, project).await?;
        let used = db::quotas::used(tx, project, resource).await?;
        Ok(check(resource, limit, used, requested)?)
    }

    /// The same for packages, whose bytes are known once the rows that refer to them are written.
    pub async fn weigh(&self, tx: &Transaction, project: &ProjectId) -> Result<Scale> {
        let Some(limit) = self.get(Resource::PackageBytes) else { return Ok(Scale(None)) };
        db::quotas::hold(tx, project).await?;
        let before = db::quotas::used(tx, project, Resource::PackageBytes).await?;
        Ok(Scale(Some((limit, before))))
    }
}

/// What a project kept before a transaction changed it.
#[derive(Debug)]
#[must_use]
pub struct Scale(Option<(u64, u64)>);

impl Scale {
    /// Succeeds where what the project keeps by now is within its limit, or no more than before.
    pub async fn settle(self, tx: &Transaction, project: &ProjectId) -> Result<()> {
        let Some((limit, before)) = self.0 else { return Ok(()) };
        let after = db::quotas::used(tx, project, Resource::PackageBytes).await?;
        match after.checked_sub(before) {
            None | Some(0) => Ok(()),
            Some(requested) => Ok(check(Resource::PackageBytes, limit, before, requested)?),
        }
    }
}

/// More than a project may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    resource: Resource,
    limit: u64,
    used: u64,
    requested: u64,
}

impl From<Excess> for Error {
    fn from(excess: Excess) -> Self {
        let Excess { resource, limit, used, requested } = excess;
        Self::OverQuota { resource: resource.name(), limit, used, requested }
    }
}

fn check(resource: Resource, limit: u64, used: u64, requested: u64) -> Result<(), Excess> {
    if used.saturating_add(requested) <= limit {
        return Ok(());
    }
    Err(Excess { resource, limit, used, requested })
}

/// What there is of one resource, and what there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub resource: Resource,
    pub limit: Option<u64>,
    pub used: u64,
}

/// The limits of projects. Clones share what is known of them.
#[derive(Clone)]
pub struct Quotas {
    defaults: Limits,
    unified: Option<Arc<Unified>>,
    projects: Arc<Projects>,
}

impl std::fmt::Debug for Quotas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quotas").field("defaults", &self.defaults).finish_non_exhaustive()
    }
}

impl Quotas {
    /// Asks nobody yet. Unified limits need a Keystone.
    pub fn new(config: &Config, keystone: Option<&Keystone>) -> Self {
        let defaults = Limits::of(&config.quotas);
        let unified = match (config.quotas.driver, keystone) {
            (QuotaDriver::UnifiedLimits, Some(keystone)) => {
                let service = config.keystone_authtoken.service_type.clone();
                Some(Unified::new(keystone.clone(), service, config.quotas.cache_time, defaults))
            }
            _ => None,
        };
        Self { defaults, unified, projects: Arc::default() }
    }

    /// What a project may have. Waits for Keystone where that is asked and nothing recent is known.
    pub async fn limits(&self, project: &ProjectId) -> Limits {
        match &self.unified {
            // Boxed, since all that a caller may wait for is part of what it is itself.
            Some(unified) => Box::pin(unified.limits(project)).await,
            None => self.defaults,
        }
    }

    /// The same for a call: what was known last is good enough, and is renewed beside it. Only the first call
    /// of a project waits for Keystone, a second at most, and not after it failed.
    async fn limits_of_last(&self, project: &ProjectId) -> Limits {
        match &self.unified {
            Some(unified) => Box::pin(unified.limits_of_last(project)).await,
            None => self.defaults,
        }
    }

    /// The part of a project's concurrent executions that a synchronous call takes, until it is dropped.
    /// Asks the database where nothing is known of the project, and where the limit is near and what is
    /// known is old.
    pub async fn enter(&self, db: &Db, project: &ProjectId) -> Result<Option<Share>> {
        self.enter_at(db, project, Instant::now()).await
    }

    async fn enter_at(&self, db: &Db, project: &ProjectId, now: Instant) -> Result<Option<Share>> {
        let limits = self.limits_of_last(project).await;
        let Some(limit) = limits.get(Resource::ConcurrentExecutions) else { return Ok(None) };
        let running = self.projects.of(project);
        let taken = match running.take(limit, now) {
            TakenOn::Yes(share) => Ok(share),
            TakenOn::No { used } => Err(used),
            TakenOn::Unknown => {
                let asked = db::quotas::used(db.reader(), project, Resource::ConcurrentExecutions);
                // Boxed, since all that a caller may wait for is part of what it is itself.
                let queued = Box::pin(running.count(now, asked)).await?;
                running.take_beside(queued, limit)
            }
        };
        match taken {
            Ok(share) => Ok(Some(share)),
            Err(used) => {
                Err(Excess { resource: Resource::ConcurrentExecutions, limit, used, requested: 1 }.into())
            }
        }
    }

    /// What is needed to admit an asynchronous execution in the transaction that accepts it; `None` without
    /// a limit.
    pub async fn queue(&self, project: &ProjectId) -> Option<Queue> {
        let limits = self.limits_of_last(project).await;
        let limit = limits.get(Resource::ConcurrentExecutions)?;
        Some(Queue { limit, running: self.projects.of(project) })
    }

    /// What a project has of everything.
    pub async fn usage(&self, db: &Db, project: &ProjectId) -> Result<Vec<Usage>> {
        let limits = self.limits(project).await;
        let mut all = Vec::with_capacity(Resource::ALL.len());
        for resource in Resource::ALL {
            let mut used = db::quotas::used(db.reader(), project, resource).await?;
            if resource == Resource::ConcurrentExecutions {
                used += self.projects.find(project).map_or(0, |running| running.calls());
            }
            all.push(Usage { resource, limit: limits.get(resource), used });
        }
        Ok(all)
    }
}

/// How many executions of a project may be pending or running, for whoever accepts one.
#[derive(Debug, Clone)]
pub struct Queue {
    limit: u64,
    running: Arc<Running>,
}

impl Queue {
    /// Succeeds where one more may be accepted beside so many that were, which the same transaction counted
    /// or is about to write.
    pub fn check(&self, queued: u64) -> Result<(), Excess> {
        let used = queued + self.running.calls();
        check(Resource::ConcurrentExecutions, self.limit, used, 1)
    }

    /// What is said of one that found no room, where how many there were is not known any more.
    pub fn full(&self) -> Excess {
        let (limit, resource) = (self.limit, Resource::ConcurrentExecutions);
        Excess { resource, limit, used: limit, requested: 1 }
    }

    /// Notes how many there are, so that synchronous calls know of them.
    pub fn note(&self, queued: u64) {
        self.running.set_queued(queued, Instant::now());
    }
}

#[cfg(test)]
mod tests;
