//! What the edge sees of the engine.

use crate::error::Result;
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
    pub total: u32,
    /// Bound to no function yet.
    pub available: u32,
}

/// The engine, as the API and the loops hold it.
#[derive(Debug, Clone)]
pub struct Gateway {}

impl Gateway {
    /// Runs a function. Synchronous: returns the finished row, whether the function succeeded or
    /// not. Asynchronous: returns the row once it is committed.
    pub async fn submit(&self, _new: NewExecution) -> Result<execution::Model> {
        unimplemented!()
    }

    /// The workers bound to a function, in a stable order.
    pub async fn workers(&self, _function: &FunctionId, _version: i32) -> Result<Vec<WorkerName>> {
        unimplemented!()
    }

    /// `None` where the runtime has no pool.
    pub async fn pool(&self, _runtime: &RuntimeId) -> Result<Option<PoolStatus>> {
        unimplemented!()
    }

    /// Binds `count` more workers, as far as there is room; they count as workers at once.
    pub async fn scale_up(&self, _target: &Target, _count: u32) -> Result<()> {
        unimplemented!()
    }

    /// Drains up to `count` workers but always leaves one.
    pub async fn scale_down(&self, _target: &Target, _count: u32) -> Result<()> {
        unimplemented!()
    }

    /// Drains every worker of a function's version; executions under way end first.
    pub async fn release(&self, _function: &FunctionId, _version: i32) -> Result<()> {
        unimplemented!()
    }

    /// Says that a runtime row was written, so that pools are brought into step now and not at the next tick.
    pub fn runtimes_changed(&self) {
        unimplemented!()
    }
}
