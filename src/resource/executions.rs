//! Executions: who may run what, and what is known of a run.

use super::{MAX_TEXT, check_length, functions, runtimes};
use crate::db::executions::Filters;
use crate::db::{self, Db};
use crate::engine::gateway::{Gateway, NewExecution, Target};
use crate::error::{Error, Result};
use crate::model::{Caller, ExecutionId, FunctionId, Input, RuntimeStatus, Scope, execution, function};

/// A call of a function, as somebody asked for it.
#[derive(Debug)]
pub struct Call {
    pub function_id: Option<FunctionId>,
    /// 0 is the working copy.
    pub version: i32,
    /// Wins over function and version.
    pub alias: Option<String>,
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
        let target = self.resolve(caller, &call).await?;
        self.check_runnable(&target).await?;
        let new = NewExecution {
            id: ExecutionId::random(),
            target,
            project_id: caller.project_id.clone(),
            alias: call.alias,
            description: call.description,
            sync: call.sync,
            input: call.input,
            request_id: call.request_id,
        };
        self.engine.submit(new).await
    }

    async fn resolve(&self, caller: &Caller, call: &Call) -> Result<Target> {
        let (function_id, version) = match (&call.alias, &call.function_id) {
            (Some(name), _) => {
                let alias = db::aliases::find(self.db.reader(), &caller.project_id, name).await?;
                let key = || format!("name={name}");
                let alias = alias.ok_or_else(|| Error::NotFound { what: "FunctionAlias", key: key() })?;
                (alias.function_id, alias.function_version)
            }
            (None, Some(id)) => (id.clone(), call.version),
            (None, None) => {
                return Err(Error::invalid("Either function_alias or function_id must be provided."));
            }
        };
        let function = db::functions::find(self.db.reader(), &function_id, &caller.scope()).await?;
        let function = function.ok_or_else(|| Error::not_found("Function", &function_id))?;
        if version != 0 {
            self.check_version(&function, version).await?;
        }
        Ok(Target { function, version })
    }

    async fn check_version(&self, function: &function::Model, version: i32) -> Result<()> {
        if functions::source_of(function)? != functions::Source::Package {
            return Err(Error::invalid("Can not specify version for package type function."));
        }
        let found = db::versions::find(self.db.reader(), &function.id, version).await?;
        found.map(drop).ok_or_else(|| Error::NotFound {
            what: "FunctionVersion",
            key: format!("function_id={}, version_number={version}", function.id),
        })
    }

    async fn check_runnable(&self, target: &Target) -> Result<()> {
        if functions::source_of(&target.function)? == functions::Source::Image {
            return Err(Error::NotSupported("Image functions are not supported yet.".to_owned()));
        }
        let Some(id) = &target.function.runtime_id else {
            return Err(Error::internal("a function with a package has no runtime"));
        };
        // Not by what the caller sees: the function was given this runtime when it could be seen.
        match db::runtimes::find_any(self.db.reader(), id).await? {
            Some(runtime) if runtime.status == RuntimeStatus::Available => Ok(()),
            _ => Err(runtimes::not_available(id)),
        }
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

    /// Removes the record. A run that is under way goes on and leaves none.
    pub async fn delete(&self, caller: &Caller, id: &ExecutionId) -> Result<()> {
        let removed = db::executions::delete(&self.db.writer(), id, &caller.scope()).await?;
        if removed { Ok(()) } else { Err(Error::not_found("Execution", id)) }
    }
}
