//! What a call means: a function, one of its versions, or what an alias stands for at this moment.
//! The same for a caller, a job and a webhook.

use crate::db::{self, Db};
use crate::error::{Error, Result};
use crate::model::function::{self, Source};
use crate::model::{FunctionId, FunctionStatus, ProjectId, RuntimeId, RuntimeStatus, Scope, alias};

/// Code to run and how: a function's working copy, or one of its versions.
#[derive(Debug, Clone)]
pub struct Target {
    pub function: function::Model,
    /// 0 is the working copy.
    pub version: i32,
}

/// How a call says what it means.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    pub function_id: Option<FunctionId>,
    /// 0 is the working copy.
    pub version: i32,
    /// Wins over function and version. It means something in one project only.
    pub alias: Option<String>,
}

impl Reference {
    /// What is meant. An alias is looked for in `project`, and functions in what `scope` shows; an alias
    /// with a second version gives either, by weight.
    pub async fn resolve(&self, db: &Db, project: &ProjectId, scope: &Scope) -> Result<Target> {
        let (function_id, version) = match (&self.alias, &self.function_id) {
            (Some(name), _) => {
                let alias = get_alias(db, project, name).await?;
                let version = version_of(&alias, rand::random_range(0..100));
                (alias.function_id, version)
            }
            (None, Some(id)) => (id.clone(), self.version),
            (None, None) => {
                return Err(Error::invalid("Either function_alias or function_id must be provided."));
            }
        };
        let function = db::functions::find(db.reader(), &function_id, scope).await?;
        let function = function.ok_or_else(|| Error::not_found("Function", &function_id))?;
        if version != 0 {
            check_version(db, &function, version).await?;
        }
        Ok(Target { function, version })
    }
}

impl Target {
    /// Refuses what cannot be run now.
    pub async fn check_runnable(&self, db: &Db) -> Result<()> {
        if self.function.source()? == Source::Image {
            // One whose image is still looked for waits for that.
            return match self.function.status {
                FunctionStatus::Available | FunctionStatus::Creating => Ok(()),
                FunctionStatus::Error => {
                    let why = self.function.status_reason.as_deref().unwrap_or_default();
                    Err(Error::Conflict(format!("Function {} is not available. {why}", self.function.id)))
                }
            };
        }
        let Some(id) = &self.function.runtime_id else {
            return Err(Error::internal("a function with a package has no runtime"));
        };
        // Not by what the caller sees: the function was given this runtime when it could be seen.
        match db::runtimes::find_any(db.reader(), id).await? {
            Some(runtime) if runtime.status == RuntimeStatus::Available => Ok(()),
            _ => Err(not_available(id)),
        }
    }
}

/// The project's alias of that name.
pub async fn get_alias(db: &Db, project: &ProjectId, name: &str) -> Result<alias::Model> {
    let alias = db::aliases::find(db.reader(), project, name).await?;
    alias.ok_or_else(|| Error::NotFound { what: "FunctionAlias", key: format!("name={name}") })
}

/// Refuses a version that there is not.
pub async fn check_version(db: &Db, function: &function::Model, version: i32) -> Result<()> {
    if function.source()? != Source::Package {
        return Err(Error::invalid("Can not specify version for package type function."));
    }
    let found = db::versions::find(db.reader(), &function.id, version).await?;
    found.map(drop).ok_or_else(|| no_version(&function.id, version))
}

pub fn no_version(function: &FunctionId, version: i32) -> Error {
    let key = format!("function_id={function}, version_number={version}");
    Error::NotFound { what: "FunctionVersion", key }
}

pub fn not_available(runtime: &RuntimeId) -> Error {
    Error::Conflict(not_available_text(runtime))
}

pub fn not_available_text(runtime: &RuntimeId) -> String {
    format!("Runtime {runtime} is not available.")
}

/// The version that a call gets whose roll, from 0 to 99, is this one.
fn version_of(alias: &alias::Model, roll: i32) -> i32 {
    match alias.canary_version {
        Some(canary) if roll < alias.canary_weight => canary,
        _ => alias.function_version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing;

    #[test]
    fn a_second_version_gets_its_share() {
        let runtime = RuntimeId::random();
        let alias = testing::alias(&testing::function(&runtime), "prod", 1);
        let share = |weight, canary| {
            let alias = alias::Model { canary_weight: weight, canary_version: canary, ..alias.clone() };
            (0..100).filter(|roll| version_of(&alias, *roll) == 2).count()
        };
        assert_eq!((share(0, Some(2)), share(10, Some(2)), share(100, Some(2))), (0, 10, 100));
        assert_eq!(share(100, None), 0);
    }
}
