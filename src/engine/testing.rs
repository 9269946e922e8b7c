//! An engine for tests that need no containers.

use std::sync::Arc;

use async_trait::async_trait;

use super::gateway::Gateway;
use super::{Core, Means};
use crate::config::Config;
use crate::db::Db;
use crate::model::WorkerName;
use crate::orchestrator::{
    Error, FoundImage, ObservedRun, ObservedWorker, Orchestrator, RunEnd, RunName, RunSpec, RuntimeImage,
    StartedWorker, WorkerSpec,
};
use crate::quota::Quotas;
use crate::storage::PackageStore;
use crate::telemetry::Metrics;

/// An engine that answers, and has no worker and no loop.
pub(crate) fn without_workers(config: &Config, db: Db, store: Arc<dyn PackageStore>) -> Gateway {
    let orchestrator = Arc::new(NoContainers);
    let quotas = Quotas::new(config, None);
    let means = Means { db, store, orchestrator, sessions: None, quotas, metrics: Metrics::new() };
    let (core, _) = Core::new(config, means);
    Gateway::new(core)
}

/// A machine without images on which nothing can be started.
#[derive(Debug)]
struct NoContainers;

#[async_trait]
impl Orchestrator for NoContainers {
    async fn start(&self, _: &WorkerSpec) -> Result<StartedWorker, Error> {
        Err(Error::Unavailable("there is none".into()))
    }

    async fn ended(&self, _: &WorkerName) {}

    async fn stop(&self, _: &WorkerName) -> Result<(), Error> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ObservedWorker>, Error> {
        Ok(Vec::new())
    }

    async fn inspect_image(&self, reference: &str) -> Result<RuntimeImage, Error> {
        Err(Error::ImageNotFound { reference: reference.to_owned() })
    }

    async fn find_image(&self, _: &str) -> Result<Option<FoundImage>, Error> {
        Ok(None)
    }

    async fn pull_image(&self, reference: &str) -> Result<(), Error> {
        Err(Error::NotPulled { reference: reference.to_owned(), why: "there is no registry".to_owned() })
    }

    async fn start_run(&self, _: &RunSpec) -> Result<(), Error> {
        Err(Error::Unavailable("there is none".into()))
    }

    async fn follow_run(&self, _: &RunName, _: u64) -> Result<RunEnd, Error> {
        Err(Error::Unavailable("there is none".into()))
    }

    async fn kill_run(&self, _: &RunName) -> Result<(), Error> {
        Ok(())
    }

    async fn remove_run(&self, _: &RunName) -> Result<(), Error> {
        Ok(())
    }

    async fn list_runs(&self) -> Result<Vec<ObservedRun>, Error> {
        Ok(Vec::new())
    }

    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }
}
