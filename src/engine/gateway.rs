//! What the edge sees of the engine.

use std::sync::Arc;

use tracing::Instrument;

use super::{Calling, Core, pool, run};
use crate::error::{Error, Result};
use crate::model::{FunctionId, Input, ProjectId, RuntimeId, WorkerName, execution, function};

/// Code to run and how: a function's working copy, or one of its versions.
#[derive(Debug, Clone)]
pub struct Target {
    pub function: function::Model,
    /// 0 is the working copy.
    pub version: i32,
}

/// An execution that was asked for and may be run: policy and existence are checked.
#[derive(Debug, Clone)]
pub struct NewExecution {
    pub target: Target,
    /// Whose execution it is; an administrator may run another project's function.
    pub project_id: ProjectId,
    pub alias: Option<String>,
    pub description: Option<String>,
    /// Wait for the end.
    pub sync: bool,
    pub input: Input,
    pub request_id: Option<String>,
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
pub struct Gateway {
    core: Arc<Core>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("engine", &self.core.id).finish_non_exhaustive()
    }
}

impl Gateway {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Runs a function. Synchronous: returns the finished row, whether the function succeeded or
    /// not. Asynchronous: returns the row once it is committed.
    ///
    /// A dropped future changes nothing about the execution.
    pub async fn submit(&self, new: NewExecution) -> Result<execution::Model> {
        if self.core.closing.is_cancelled() {
            return Err(Error::Busy(pool::Error::Closed.to_string()));
        }
        if !new.sync {
            let row = run::new_row(&new);
            self.core.recorder.accept(row.clone()).await?;
            self.core.queue.notify_one();
            return Ok(row);
        }
        let core = self.core.clone();
        let span = tracing::info_span!(
            "execution",
            function.id = %new.target.function.id,
            function.version = new.target.version,
            request_id = new.request_id,
        );
        let running = Calling::new(core.clone());
        let call = async move {
            let row = run::call(&core, new).await;
            drop(running);
            row
        };
        let task = self.core.tasks.spawn_on(call.instrument(span), &self.core.runtime);
        task.await.unwrap_or_else(|error| Err(Error::internal(error)))
    }

    /// The workers bound to a function, in a stable order.
    pub async fn workers(&self, function: &FunctionId, version: i32) -> Result<Vec<WorkerName>> {
        Ok(self.core.pool.workers_of(function, version))
    }

    /// `None` where the runtime has no pool.
    pub async fn pool(&self, runtime: &RuntimeId) -> Result<Option<PoolStatus>> {
        Ok(self.core.pool.status(runtime))
    }

    /// Binds `count` more workers, as far as there is room; they count as workers at once.
    pub async fn scale_up(&self, target: &Target, count: u32) -> Result<()> {
        run::scale_up(&self.core, target, count).await
    }

    /// Drains up to `count` workers but always leaves one.
    pub async fn scale_down(&self, target: &Target, count: u32) -> Result<()> {
        self.core.pool.scale_down(&target.function.id, target.version, count);
        Ok(())
    }

    /// Drains every worker of a function's version; executions under way end first.
    pub async fn release(&self, function: &FunctionId, version: i32) -> Result<()> {
        self.core.pool.release_function(function, version);
        Ok(())
    }

    /// Says that a runtime row was written, so that pools are brought into step now and not at the next tick.
    pub fn runtimes_changed(&self) {
        self.core.reaper.notify_one();
    }
}
