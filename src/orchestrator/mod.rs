//! Containers: what the engine asks of whatever runs them. Knows nothing of functions or executions.

mod bridge;
mod cgroup;
mod container;
mod docker;
mod files;
mod image;
mod look;
mod run;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use prometheus::IntCounterVec;
use protocol::worker::{Settings, UIDS};

use crate::config;
use crate::error::Source;
use crate::model::{RuntimeId, WorkerName};
use crate::network::Guard;

pub use container::SHIM_LABEL;
pub use docker::{Docker, call_counter};
pub use image::ImageName;
pub use look::{Look, supervisor_version};
pub use run::{ObservedRun, RunEnd, RunName, RunSpec};

/// Runs containers for the engine.
#[async_trait]
pub trait Orchestrator: Send + Sync + 'static {
    /// Creates and starts a container and returns where its supervisor will listen. The start goes on
    /// where the future is dropped early, and may leave a container behind; `list` shows it.
    async fn start(&self, spec: &WorkerSpec) -> Result<StartedWorker, Error>;

    /// Waits until a container no longer runs. Returns too where that cannot be known any more.
    async fn ended(&self, name: &WorkerName);

    /// Removes a container and whatever else there is of the worker on this machine. Removing one that
    /// is gone already succeeds, and so do two removals at once.
    async fn stop(&self, name: &WorkerName) -> Result<(), Error>;

    /// Every container that carries this deployment's label, in any state.
    async fn list(&self) -> Result<Vec<ObservedWorker>, Error>;

    /// Looks at an image that is on this machine; none is pulled.
    async fn inspect_image(&self, reference: &str) -> Result<RuntimeImage, Error>;

    /// Looks for an image on this machine, by a name or by what [`FoundImage::digest`] was.
    async fn find_image(&self, reference: &str) -> Result<Option<FoundImage>, Error>;

    /// Gets an image from its registry, with the operator's credentials for it. Goes on, as Docker does,
    /// where the future is dropped early.
    async fn pull_image(&self, reference: &str) -> Result<(), Error>;

    /// Creates and starts a container that runs to its end by itself.
    async fn start_run(&self, spec: &RunSpec) -> Result<(), Error>;

    /// Waits until such a container has ended, and says how. May be called again.
    async fn follow_run(&self, name: &RunName, max_log_bytes: u64) -> Result<RunEnd, Error>;

    /// Kills what runs in it. One that has ended, or is gone, is killed already.
    async fn kill_run(&self, name: &RunName) -> Result<(), Error>;

    /// Removes it, in any state. Removing one that is gone already succeeds.
    async fn remove_run(&self, name: &RunName) -> Result<(), Error>;

    /// Every such container of this deployment, in any state.
    async fn list_runs(&self) -> Result<Vec<ObservedRun>, Error>;

    /// Asks whether containers can be run now.
    async fn ping(&self) -> Result<(), Error>;

    /// Removes the network of this deployment where no worker is on it any more. `false` where one is.
    async fn release_network(&self) -> Result<bool, Error> {
        Ok(true)
    }
}

/// Connects to what the configuration names; fails where workers could not be started.
pub async fn connect(config: &config::Docker, calls: IntCounterVec) -> Result<Arc<dyn Orchestrator>, Error> {
    connect_with(config, None, calls).await
}

/// The same for workers that have a network: it is made here, and its rules are in force already.
pub async fn connect_with(
    config: &config::Docker,
    network: Option<Guard>,
    calls: IntCounterVec,
) -> Result<Arc<dyn Orchestrator>, Error> {
    Ok(Arc::new(Docker::connect_with(config, network, calls).await?))
}

/// A worker to be started.
#[derive(Debug, Clone)]
pub struct WorkerSpec {
    pub name: WorkerName,
    /// Which [`UIDS`] user ids are the worker's. No two workers on a machine have the same at once.
    pub index: u32,
    pub runtime: RuntimeId,
    /// From [`RuntimeImage::id`], so that a tag that moves changes no running pool.
    pub image_id: String,
    /// From [`RuntimeImage::shim`].
    pub shim: Vec<String>,
    /// Executions at once.
    pub slots: u32,
    pub network: Network,
    pub limits: SlotLimits,
}

/// What a supervisor is told of its slots, beside what the driver knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotLimits {
    pub max_processes: u32,
    pub max_executions_per_slot: u32,
    pub memory_mark: u64,
}

/// How a worker is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Not at all: it starts in half the time.
    None,
    /// By the deployment's bridge, to what its rules leave open.
    Bridge,
}

impl From<config::NetworkMode> for Network {
    fn from(mode: config::NetworkMode) -> Self {
        match mode {
            config::NetworkMode::None => Self::None,
            config::NetworkMode::Bridge => Self::Bridge,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedWorker {
    pub container_id: String,
    /// Where the supervisor listens soon.
    pub socket: PathBuf,
}

/// A container as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedWorker {
    pub name: WorkerName,
    pub runtime: RuntimeId,
    pub index: u32,
    pub container_id: String,
    pub image_id: String,
    pub socket: PathBuf,
    /// `None` where it is connected in a way that no new worker is.
    pub network: Option<Network>,
    pub running: bool,
}

/// An image that can be a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeImage {
    pub id: String,
    /// Command line that starts the language's interpreter.
    pub shim: Vec<String>,
}

/// An image that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundImage {
    /// What names these very bytes: as the registry does, or as only this machine does where the image came
    /// from no registry.
    pub digest: String,
    /// Directories that the image wants kept outside of it.
    pub has_volumes: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the registry, or Docker in its place, says.
    #[error("image {reference} could not be pulled: {why}")]
    NotPulled { reference: String, why: String },
    #[error("image {reference} is not on this machine")]
    ImageNotFound { reference: String },
    #[error("image {reference} is not a runtime: {why}")]
    NotARuntime { reference: String, why: String },
    /// Worth another try later.
    #[error("Docker is unavailable")]
    Unavailable(#[source] Source),
    #[error("{what} failed")]
    Failed {
        what: &'static str,
        #[source]
        source: Source,
    },
}

impl Error {
    fn failed(what: &'static str, source: impl Into<Source>) -> Self {
        Self::Failed { what, source: source.into() }
    }
}

/// First user id of the worker with `index`, if all of them are user ids.
fn first_uid(uid_base: u32, index: u32) -> Option<u32> {
    let first = index.checked_mul(UIDS)?.checked_add(uid_base)?;
    // The highest 32-bit number means "no user" to the kernel.
    (first > 0 && first.checked_add(UIDS)? < u32::MAX).then_some(first)
}

/// A name that may become part of a path, a container's name and a label.
fn is_plain(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn settings(spec: &WorkerSpec, uid_base: u32, cgroup: protocol::worker::Cgroup) -> Settings {
    Settings {
        worker: spec.name.to_string(),
        slots: spec.slots,
        uid_base,
        cgroup,
        max_processes: spec.limits.max_processes,
        max_executions_per_slot: spec.limits.max_executions_per_slot,
        memory_mark: spec.limits.memory_mark,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_has_user_ids_of_its_own() {
        assert_eq!(first_uid(1_879_048_192, 0), Some(1_879_048_192));
        assert_eq!(first_uid(1_879_048_192, 3), Some(1_879_048_240));
        assert_eq!(first_uid(0, 0), None, "0 is root");
        assert_eq!(first_uid(u32::MAX - 16, 0), None);
        assert_eq!(first_uid(u32::MAX - 17, 0), Some(u32::MAX - 17));
        assert_eq!(first_uid(1, u32::MAX), None);
    }

    #[test]
    fn names_that_would_leave_their_directory_are_refused() {
        for good in ["a", "taibai", "0fe2-11", "my_cloud", "D"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "a.b", "a b", "ä", &"a".repeat(65)] {
            assert!(!is_plain(bad), "{bad}");
        }
    }
}
