//! What runs: from an accepted execution to its recorded end. Does not know the API.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{self, Config};
use crate::crash_points::{Write, around};
use crate::db::{self, Db};

use crate::model::{EngineId, Outcome, RuntimeId, RuntimeStatus, Start};
use crate::orchestrator::{self, Network, Orchestrator};
use crate::quota::Quotas;
use crate::storage::PackageStore;
use crate::telemetry::{Chain, Metrics};

mod adopt;
mod cancels;
mod code;
mod cron;
mod ending;
pub mod endpoint;
pub mod gateway;
mod images;
mod keeper;
pub mod place;
pub mod pool;
pub mod presence;
mod queue;
mod reap;
pub mod recorder;
pub mod remote;
mod retention;
mod run;
pub mod sessions;
pub mod supervisor;
pub mod target;
#[cfg(test)]
pub(crate) mod testing;
pub mod trusts;
pub mod worker;

pub use presence::{LockError, NodeLock};

use cancels::Cancels;
use gateway::Gateway;
use images::Images;
use pool::{Limits, Pool};
use recorder::Recorder;
pub use sessions::Sessions;

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("what an earlier engine left could not be taken up")]
    Database(#[from] crate::error::Error),
    #[error("workers could not be listed or removed")]
    Containers(#[from] orchestrator::Error),
}

impl From<db::Error> for StartError {
    fn from(error: db::Error) -> Self {
        Self::Database(error.into())
    }
}

/// What an engine is given to work with.
pub struct Means {
    pub db: Db,
    pub store: Arc<dyn PackageStore>,
    pub orchestrator: Arc<dyn Orchestrator>,
    /// None without Keystone.
    pub sessions: Option<Sessions>,
    pub quotas: Quotas,
    pub metrics: Metrics,
}

/// What the parts of the engine share.
struct Core {
    id: EngineId,
    node: String,
    deployment: String,
    /// Where APIs in other processes reach it, if they do.
    endpoint: OnceLock<String>,
    engine: config::Engine,
    jobs: config::Jobs,
    archive: protocol::archive::Limits,
    network: Network,
    start_timeout: Duration,
    db: Db,
    store: Arc<dyn PackageStore>,
    orchestrator: Arc<dyn Orchestrator>,
    /// Sessions of functions in the cloud; none without Keystone.
    sessions: Option<Sessions>,
    quotas: Quotas,
    metrics: Metrics,
    pool: Arc<Pool>,
    images: Images,
    recorder: Recorder,
    cancels: Cancels,
    /// Synchronous calls that have no answer yet.
    calls: AtomicUsize,
    /// Workers that may start at a time.
    starts: Semaphore,
    /// Everything that runs on behalf of an execution or a worker.
    tasks: TaskTracker,
    /// Something about runtimes or workers changed.
    reaper: Arc<Notify>,
    /// Something may be pending.
    queue: Notify,
    /// A job was made or changed.
    cron: Notify,
    /// Nothing new is taken up.
    closing: CancellationToken,
    /// Workers are left to themselves, and loops end.
    letting_go: CancellationToken,
}

/// A start has more than one processor to do: Docker's, and that of the worker's own programs.
fn starts_at_once() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

impl Core {
    /// Starts nothing but the recorder.
    fn new(config: &Config, means: Means) -> (Arc<Self>, mpsc::UnboundedReceiver<pool::Spawn>) {
        let Means { db, store, orchestrator, sessions, quotas, metrics } = means;
        let engine = config.engine.clone();
        let limits = Limits {
            slots: engine.function_concurrency,
            max_workers: engine.max_workers as usize,
            max_queue: engine.max_queue as usize,
        };
        let (spawns, receiver) = mpsc::unbounded_channel();
        let reaper = Arc::new(Notify::new());
        let (recorder, writer) = Recorder::start(db.clone());
        tokio::spawn(writer);
        let core = Self {
            id: EngineId::random(),
            node: node_name(&engine),
            deployment: config.docker.deployment.clone(),
            endpoint: OnceLock::new(),
            archive: config.storage.archive_limits(),
            network: config.network.mode.into(),
            start_timeout: config.docker.start_timeout,
            engine,
            jobs: config.jobs.clone(),
            db,
            store,
            orchestrator,
            sessions,
            quotas,
            metrics,
            images: Images::new(config),
            pool: Pool::new(limits, spawns, reaper.clone()),
            recorder,
            cancels: Cancels::default(),
            calls: AtomicUsize::new(0),
            starts: Semaphore::new(starts_at_once()),
            tasks: TaskTracker::new(),
            reaper,
            queue: Notify::new(),
            cron: Notify::new(),
            closing: CancellationToken::new(),
            letting_go: CancellationToken::new(),
        };
        (Arc::new(core), receiver)
    }

    /// Waits until no synchronous call runs.
    async fn quiet(&self) {
        while self.calls.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn observe_lease(&self, start: Start, took: Duration) {
        if start == Start::Cold {
            self.metrics.cold_start_seconds.observe(took.as_secs_f64());
        }
    }

    fn observe_run(&self, took: Duration) {
        self.metrics.execution_seconds.observe(took.as_secs_f64());
    }

    fn observe_end(&self, runtime: &RuntimeId, outcome: &Outcome) {
        let start = match outcome.start {
            Some(Start::Cold) => "cold",
            Some(Start::Prewarmed) => "prewarmed",
            Some(Start::Warm) => "warm",
            None => "none",
        };
        let ended = outcome.reason.map_or("success", |reason| reason.as_str());
        self.metrics.executions.with_label_values(&[runtime.as_str(), start, ended]).inc();
        tracing::debug!(start, outcome = ended, "an execution ended");
    }

    fn observe_pool(&self) {
        self.metrics.pool_workers.reset();
        for ((runtime, state), count) in self.pool.count() {
            let gauge = self.metrics.pool_workers.with_label_values(&[runtime.as_str(), state]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    fn observe_queue(&self) {
        self.metrics.queue_waiting.set(i64::try_from(self.pool.waiting()).unwrap_or(i64::MAX));
    }
}

/// A synchronous call, counted until it is dropped.
struct Calling {
    core: Arc<Core>,
}

impl Calling {
    fn new(core: Arc<Core>) -> Self {
        core.calls.fetch_add(1, Ordering::SeqCst);
        Self { core }
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        self.core.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A running engine, as the process that started it holds it.
pub struct Engine {
    core: Arc<Core>,
    _lock: NodeLock,
}

impl Engine {
    /// Takes up what an engine left that ran here before, and starts. Workers that live are adopted
    /// before this returns, so that the first call finds them. `endpoint` is where APIs of other
    /// processes reach it.
    pub async fn start(
        config: &Config,
        endpoint: Option<String>,
        lock: NodeLock,
        means: Means,
    ) -> Result<(Gateway, Self), StartError> {
        let (core, spawns) = Core::new(config, means);
        if let Some(endpoint) = endpoint {
            core.endpoint.set(endpoint).expect("it is set once");
        }
        tracing::info!(engine.id = %core.id, node = core.node, "the engine starts");
        presence::register(&core).await?;
        let runtimes = db::runtimes::list_all(core.db.reader()).await?;
        for row in &runtimes {
            match (row.status, &row.active_image) {
                (RuntimeStatus::Available, _) => reap::ensure_image(&core, row, &row.image).await,
                (RuntimeStatus::Upgrading, Some(image)) => reap::ensure_image(&core, row, image).await,
                _ => {}
            }
        }
        let dead = presence::predecessors(&core).await?;
        let adopted = adopt::adopt(&core, &runtimes).await?;
        let left = core.orchestrator.list_runs().await?;
        adopt::take_over(&core, &dead, adopted, left).await?;
        images::orphans(&core).await?;

        core.tasks.spawn(keeper::keep_all(core.clone(), spawns));
        core.tasks.spawn(presence::keep(core.clone()));
        core.tasks.spawn(queue::run(core.clone()));
        core.tasks.spawn(cron::run(core.clone()));
        core.tasks.spawn(code::watch(core.clone()));
        let longest_run = Duration::from_secs(u64::try_from(config.resource_limits.max_timeout).unwrap_or(0));
        core.tasks.spawn(trusts::keep(core.clone(), longest_run));
        if let Some(sessions) = &core.sessions {
            core.tasks.spawn(sessions.clone().keep(core.letting_go.clone()));
        }
        core.tasks.spawn(retention::keep(core.clone(), config.executions.clone()));
        core.tasks.spawn(reap::tick(core.clone()));
        core.tasks.spawn(reap::run(core.clone()));
        Ok((Gateway::new(core.clone()), Self { core, _lock: lock }))
    }

    /// Has APIs of other processes ask other engines, and returns once they do. What they ask before is
    /// still done.
    pub async fn withdraw(&self) {
        let core = &self.core;
        let writer = core.db.writer();
        if let Err(error) = around(Write::EngineWithdraw, db::engines::withdraw(&writer, &core.id)).await {
            // They find out when they do not reach it.
            tracing::warn!(error = %Chain(&error), "the engine is still offered to APIs");
            return;
        }
        tokio::time::sleep(remote::FORGOTTEN).await;
    }

    /// Ends in good order: takes nothing new, waits for what runs as long as `grace`, and removes the
    /// workers or, where `[engine] keep_workers_on_shutdown` says so, leaves them to the next start.
    /// Asynchronous executions that still run then are collected by it from the workers that stay.
    pub async fn shutdown(self, grace: Duration) {
        let core = &self.core;
        core.closing.cancel();
        core.pool.close();
        if timeout(grace, self.quiet()).await.is_err() {
            tracing::warn!("executions still run at the end of the time for a shutdown");
        }
        if !core.engine.keep_workers_on_shutdown {
            for info in core.pool.list() {
                core.pool.kill(info.id);
            }
            let removed = async {
                while !core.pool.list().is_empty() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            if timeout(REMOVAL, removed).await.is_err() {
                tracing::warn!("workers are left behind; the next start removes or adopts them");
            }
        }
        core.letting_go.cancel();
        if !core.engine.keep_workers_on_shutdown {
            for run in core.images.running() {
                if let Err(error) = core.orchestrator.remove_run(&run).await {
                    tracing::warn!(execution.id = %run.execution, error = %Chain(&error), "a container is left behind");
                }
            }
        }
        core.tasks.close();
        if timeout(ENDING, core.tasks.wait()).await.is_err() {
            tracing::warn!("tasks of the engine did not end");
        }
        if let Err(error) = self.leave().await {
            tracing::warn!(error = %Chain(&error), "the engine's lease is left to run out");
        }
    }

    /// Waits until no execution holds a slot and none is written.
    async fn quiet(&self) {
        self.core.quiet().await;
        while self.core.pool.list().iter().any(|info| info.state.in_flight() > 0)
            || !self.core.images.running().is_empty()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Gives up the lease where nothing depends on it. Rows that still run are found by it.
    async fn leave(&self) -> Result<(), db::Error> {
        let core = &self.core;
        let running = db::executions::list_running_of(core.db.reader(), std::slice::from_ref(&core.id));
        if running.await?.is_empty() {
            around(Write::EngineRemove, db::engines::remove(&core.db.writer(), &core.id)).await?;
        }
        Ok(())
    }
}

/// How long the removal of all workers may take at the end.
const REMOVAL: Duration = Duration::from_secs(20);
/// How long tasks may take to end once they are told to.
const ENDING: Duration = Duration::from_secs(10);

/// The name of this machine among a deployment's.
fn node_name(config: &config::Engine) -> String {
    if config.node.is_empty() { host_name() } else { config.node.clone() }
}

fn host_name() -> String {
    // The kernel's own: an environment variable need not be there for a service.
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}
