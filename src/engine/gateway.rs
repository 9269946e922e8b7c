//! What the edge sees of the engine, which runs in this process or, behind [`super::remote`], in
//! others.

use std::sync::Arc;

use tracing::Instrument;

use super::cancels::cancelled;
use super::remote::Remote;
pub use super::target::Target;
use super::{Calling, Core, pool, run};
use crate::error::{Error, Result};
use crate::model::{
    ExecutionId, ExecutionStatus, FunctionId, Input, ProjectId, RuntimeId, WorkerName, execution,
};
use crate::quota::{Queue, Quotas, Share};

/// An execution that was asked for and may be run: policy and existence are checked.
#[derive(Debug, Clone)]
pub struct NewExecution {
    pub id: ExecutionId,
    pub target: Target,
    /// Whose execution it is; an administrator may run another project's function.
    pub project_id: ProjectId,
    pub alias: Option<String>,
    pub description: Option<String>,
    /// Wait for the end.
    pub sync: bool,
    pub input: Input,
    pub request_id: Option<String>,
    /// What it counts as in its project's quota.
    pub quota: Quota,
}

/// How an execution is counted among those of its project.
#[derive(Debug, Clone, Default)]
pub enum Quota {
    /// Not at all, or by whoever hands it over.
    #[default]
    Uncounted,
    /// As a call that somebody waits for, until it has ended.
    Call(Arc<Share>),
    /// In the transaction that accepts it.
    Queued(Queue),
}

impl Quota {
    pub(super) fn queue(&self) -> Option<Queue> {
        match self {
            Self::Queued(queue) => Some(queue.clone()),
            Self::Uncounted | Self::Call(_) => None,
        }
    }
}

/// The workers of one runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// Those that are starting included.
    pub total: u32,
    /// Started, and bound to no function yet.
    pub available: u32,
}

/// The engine, as the API and the loops hold it.
#[derive(Clone)]
pub struct Gateway(Side);

#[derive(Clone)]
enum Side {
    Local(Arc<Core>),
    Remote(Arc<Remote>),
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Side::Local(core) => f.debug_tuple("Local").field(&core.id).finish(),
            Side::Remote(remote) => f.debug_tuple("Remote").field(remote).finish(),
        }
    }
}

impl Gateway {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self(Side::Local(core))
    }

    /// To the engines that are registered in the database, each in a process of its own.
    pub fn remote(remote: Remote) -> Self {
        Self(Side::Remote(Arc::new(remote)))
    }

    /// What projects may have, and what of it runs.
    pub fn quotas(&self) -> &Quotas {
        match &self.0 {
            Side::Local(core) => &core.quotas,
            Side::Remote(remote) => remote.quotas(),
        }
    }

    /// Runs a function. Synchronous: returns the finished row, whether the function succeeded or
    /// not. Asynchronous: returns the row once it is committed.
    ///
    /// A dropped future changes nothing about the execution.
    pub async fn submit(&self, new: NewExecution) -> Result<execution::Model> {
        let core = match &self.0 {
            Side::Local(core) => core.clone(),
            // As here, the call goes on where the caller went away, and counts.
            Side::Remote(remote) => {
                let remote = remote.clone();
                let runtime = remote.runtime();
                let call = async move { remote.submit(new).await };
                let task = runtime.spawn(call.in_current_span());
                return task.await.unwrap_or_else(|error| Err(Error::internal(error)));
            }
        };
        if core.closing.is_cancelled() {
            return Err(Error::Busy(pool::Error::Closed.to_string()));
        }
        if !new.sync {
            let row = run::new_row(&new, &core.engine);
            core.recorder.accept(row.clone(), new.quota.queue()).await?;
            core.queue.notify_one();
            return Ok(row);
        }
        let span = tracing::info_span!(
            "execution",
            function.id = %new.target.function.id,
            function.version = new.target.version,
            request_id = new.request_id,
        );
        let running = Calling::new(core.clone());
        let tasks = core.tasks.clone();
        let call = async move {
            let row = run::call(&core, new).await;
            drop(running);
            row
        };
        // On the caller's thread, which would else have to wake another, and be woken by it. Who ends that
        // thread waits until it is [quiet](Self::quiet).
        let task = tasks.spawn(call.instrument(span));
        task.await.unwrap_or_else(|error| Err(Error::internal(error)))
    }

    /// Waits until no synchronous call runs on a thread of callers, also none whose caller went away.
    pub async fn quiet(&self) {
        if let Side::Local(core) = &self.0 {
            core.quiet().await;
        }
    }

    /// Cancels an execution as this row shows it. `false` where it is not as the row shows it any more, or
    /// in the hands of an engine that is not there.
    pub async fn cancel(&self, row: &execution::Model) -> Result<bool> {
        match (&self.0, row.status) {
            (Side::Local(core), ExecutionStatus::Pending) => {
                core.recorder.dismiss(row.id.clone(), cancelled()).await
            }
            (Side::Local(core), _) => Ok(core.cancels.cancel(&row.id)),
            (Side::Remote(remote), _) => remote.cancel(row).await,
        }
    }

    /// Cancels what runs in this process; `false` where it does not.
    pub fn cancel_here(&self, id: &ExecutionId) -> bool {
        match &self.0 {
            Side::Local(core) => core.cancels.cancel(id),
            Side::Remote(_) => false,
        }
    }

    /// The workers bound to a function, in a stable order.
    pub async fn workers(&self, function: &FunctionId, version: i32) -> Result<Vec<WorkerName>> {
        match &self.0 {
            Side::Local(core) => Ok(core.pool.workers_of(function, version)),
            Side::Remote(remote) => remote.workers(function, version).await,
        }
    }

    /// `None` where the runtime has no pool.
    pub async fn pool(&self, runtime: &RuntimeId) -> Result<Option<PoolStatus>> {
        match &self.0 {
            Side::Local(core) => Ok(core.pool.status(runtime)),
            Side::Remote(remote) => remote.pool(runtime).await,
        }
    }

    /// Binds `count` more workers, as far as there is room; they count as workers at once.
    pub async fn scale_up(&self, target: &Target, count: u32) -> Result<()> {
        match &self.0 {
            Side::Local(core) => run::scale_up(core, target, count),
            Side::Remote(remote) => remote.scale_up(target, count).await,
        }
    }

    /// Drains up to `count` workers but always leaves one, on each engine that has any.
    pub async fn scale_down(&self, target: &Target, count: u32) -> Result<()> {
        match &self.0 {
            Side::Local(core) => {
                core.pool.scale_down(&target.function.id, target.version, count);
                Ok(())
            }
            Side::Remote(remote) => remote.scale_down(target, count).await,
        }
    }

    /// Drains every worker of a function's version; executions under way end first.
    pub async fn release(&self, function: &FunctionId, version: i32) -> Result<()> {
        match &self.0 {
            Side::Local(core) => {
                core.pool.release_function(function, version);
                Ok(())
            }
            Side::Remote(remote) => remote.release(function, version).await,
        }
    }

    /// Says that a runtime row was written, so that pools are brought into step now and not at the next tick.
    pub fn runtimes_changed(&self) {
        match &self.0 {
            Side::Local(core) => core.reaper.notify_one(),
            Side::Remote(remote) => remote.tell("v1/runtimes"),
        }
    }

    /// Says that there is a function whose image is to be looked for.
    pub fn images_changed(&self) {
        // What looks at runtimes looks for images.
        self.runtimes_changed();
    }

    /// Says that a job was made or changed, so that it need not wait for the next look. Engines of other
    /// processes look soon enough.
    pub fn jobs_changed(&self) {
        if let Side::Local(core) = &self.0 {
            core.cron.notify_one();
        }
    }

    /// Says that an execution was accepted elsewhere.
    pub fn accepted(&self) {
        match &self.0 {
            Side::Local(core) => core.queue.notify_one(),
            Side::Remote(remote) => remote.tell("v1/accepted"),
        }
    }

    /// Whether calls wait for a worker of this process.
    pub fn is_crowded(&self) -> bool {
        match &self.0 {
            Side::Local(core) => core.pool.waiting() > 0,
            Side::Remote(_) => false,
        }
    }
}
