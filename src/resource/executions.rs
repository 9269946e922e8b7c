//! Executions: who may run what, and what is known of a run.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{MAX_TEXT, check_length};
use crate::db::executions::Filters;
use crate::db::{self, Db};
use crate::engine::gateway::{Gateway, NewExecution};
use crate::engine::target::Reference;
use crate::error::{Error, Result};
use crate::model::{Caller, ExecutionId, Input, Scope, execution};

/// How long a cancel waits for the end of what it cancelled.
const CANCELLING: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// A call of a function, as somebody asked for it.
#[derive(Debug)]
pub struct Call {
    pub reference: Reference,
    pub description: Option<String>,
    pub sync: bool,
    pub input: Input,
    pub request_id: Option<String>,
}

#[derive(Clone)]
pub struct Executions {
    db: Db,
    engine: Gateway,
}

impl Executions {
    pub fn new(db: Db, engine: Gateway) -> Self {
        Self { db, engine }
    }

    /// Runs a function once, and waits for its end where the call is synchronous. The execution is
    /// the caller's, also where an administrator runs another project's function.
    pub async fn create(&self, caller: &Caller, call: Call) -> Result<execution::Model> {
        check_length("description", call.description.as_deref(), MAX_TEXT)?;
        let target = call.reference.resolve(&self.db, &caller.project_id, &caller.scope()).await?;
        target.check_runnable(&self.db).await?;
        let new = NewExecution {
            id: ExecutionId::random(),
            target,
            project_id: caller.project_id.clone(),
            alias: call.reference.alias,
            description: call.description,
            sync: call.sync,
            input: call.input,
            request_id: call.request_id,
        };
        self.engine.submit(new).await
    }

    pub async fn list(&self, scope: &Scope, filters: &Filters) -> Result<Vec<execution::Model>> {
        Ok(db::executions::list(self.db.reader(), scope, filters).await?)
    }

    pub async fn get(&self, caller: &Caller, id: &ExecutionId) -> Result<execution::Model> {
        let row = db::executions::find(self.db.reader(), id, &caller.scope()).await?;
        row.ok_or_else(|| Error::not_found("Execution", id))
    }

    /// What the function wrote; `None` until the execution has ended.
    pub async fn log(&self, caller: &Caller, id: &ExecutionId) -> Result<Option<String>> {
        self.get(caller, id).await?;
        let log = db::execution_logs::find(self.db.reader(), id).await?;
        Ok(log.map(|log| log.log))
    }

    /// Ends an execution that has not ended, with every process of it, and returns it as it is then. Its end
    /// may come a little later, where an engine that is not there any more has it.
    pub async fn cancel(&self, caller: &Caller, id: &ExecutionId) -> Result<execution::Model> {
        let until = Instant::now() + CANCELLING;
        let mut asked = false;
        loop {
            let row = self.get(caller, id).await?;
            if row.status.has_ended() {
                return match asked {
                    true => Ok(row),
                    false => Err(Error::Conflict(format!("Execution {id} has ended."))),
                };
            }
            // Again where it moved on under the first: from pending into an engine's hands.
            asked |= self.engine.cancel(&row).await?;
            if Instant::now() >= until {
                return Ok(row);
            }
            sleep(LOOK).await;
        }
    }

    /// Removes the record. A run that is under way goes on and leaves none.
    pub async fn delete(&self, caller: &Caller, id: &ExecutionId) -> Result<()> {
        let removed = db::executions::delete(&self.db.writer(), id, &caller.scope()).await?;
        if removed { Ok(()) } else { Err(Error::not_found("Execution", id)) }
    }
}
