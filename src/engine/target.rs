//! What a call means: a function, one of its versions, or what an alias stands for at this moment.
//! The same for a caller, a job and a webhook.

use sea_orm::ConnectionTrait;

use crate::db::{self, Db};
use crate::error::{Error, Result};
use crate::model::function::{self, Source};
use crate::model::{FunctionId, FunctionStatus, ProjectId, RuntimeId, RuntimeStatus, Scope, alias, version};

/// Code to run and how: a function's working copy, or one of its versions. Made by the functions below
/// alone, so that no version is run with what its function has become.
#[derive(Debug, Clone)]
#[expect(clippy::manual_non_exhaustive, reason = "the crate itself is not to make one")]
pub struct Target {
    /// For a version, with the package, entry, limits, runtime and trust that the version keeps.
    pub function: function::Model,
    /// 0 is the working copy.
    pub version: i32,
    _made_here: (),
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
        let function = db::recent::function(db, &function_id, scope).await?;
        let function = function.ok_or_else(|| Error::not_found("Function", &function_id))?;
        Target::get(db, function, version).await
    }
}

impl Target {
    pub fn working_copy(function: function::Model) -> Self {
        Self { function, version: 0, _made_here: () }
    }

    /// The working copy, or a version that there must be. One read, and none for the working copy.
    pub async fn get(db: &Db, function: function::Model, version: i32) -> Result<Self> {
        if version == 0 {
            return Ok(Self::working_copy(function));
        }
        check_has_versions(&function)?;
        let kept = db::recent::version(db, &function.id, version).await?;
        let kept = kept.ok_or_else(|| no_version(&function.id, version))?;
        Ok(Self { function: as_published(function, kept), version, _made_here: () })
    }

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
        match db::recent::runtime(db, id).await? {
            Some(runtime) if runtime.status == RuntimeStatus::Available => Ok(()),
            _ => Err(not_available(id)),
        }
    }
}

/// The project's alias of that name.
pub async fn get_alias(db: &Db, project: &ProjectId, name: &str) -> Result<alias::Model> {
    let alias = db::recent::alias(db, project, name).await?;
    alias.ok_or_else(|| Error::NotFound { what: "FunctionAlias", key: format!("name={name}") })
}

/// Refuses a version that there is not. The working copy is always there.
pub async fn check_version(
    db: &impl ConnectionTrait,
    function: &function::Model,
    version: i32,
) -> Result<()> {
    if version == 0 {
        return Ok(());
    }
    check_has_versions(function)?;
    let found = db::versions::find(db, &function.id, version).await?;
    found.map(drop).ok_or_else(|| no_version(&function.id, version))
}

fn check_has_versions(function: &function::Model) -> Result<()> {
    match function.source()? {
        Source::Package => Ok(()),
        _ => Err(Error::invalid("Can not specify version for package type function.")),
    }
}

/// The function as it was when the version was made, in all that counts when it runs.
fn as_published(function: function::Model, version: version::Model) -> function::Model {
    function::Model {
        runtime_id: version.runtime_id,
        cpu: version.cpu,
        memory_size: version.memory_size,
        timeout: version.timeout,
        package_digest: version.package_digest,
        package_bytes: version.package_bytes,
        object_etag: None,
        entry: version.entry,
        network: version.network,
        trust_id: version.trust_id,
        trust_reason: version.trust_reason,
        ..function
    }
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

    #[test]
    fn a_version_runs_with_what_it_keeps() {
        let function = testing::function(&RuntimeId::random());
        let version =
            version::Model { runtime_id: Some(RuntimeId::random()), ..testing::version(&function, 2) };
        let run = as_published(function.clone(), version.clone());
        assert_eq!((&run.id, &run.project_id), (&function.id, &function.project_id));
        assert_eq!(run.digest(), version.package_digest);
        assert_eq!((run.cpu, run.memory_size, run.timeout), (200, 32 << 20, 6));
        assert_eq!((run.entry.as_deref(), run.runtime_id), (Some("hello.old"), version.runtime_id));
        assert_eq!((run.trust_id, run.trust_reason), (version.trust_id, version.trust_reason));
    }

    #[tokio::test]
    async fn a_target_is_the_working_copy_or_a_version_that_there_is() {
        let db = testing::database().await;
        let runtime = testing::runtime();
        let function = testing::function(&runtime.id);
        db::runtimes::insert(&db.writer(), runtime).await.unwrap();
        db::functions::insert(&db.writer(), function.clone()).await.unwrap();
        let version = testing::version(&function, 2);
        db::versions::insert(&db.writer(), version.clone()).await.unwrap();

        let current = Target::get(&db, function.clone(), 0).await.unwrap();
        assert_eq!((current.function, current.version), (function.clone(), 0));
        let published = Target::get(&db, function.clone(), 2).await.unwrap();
        assert_eq!((published.function.entry, published.version), (version.entry, 2));
        let missing = Target::get(&db, function.clone(), 1).await.unwrap_err().to_string();
        let text = format!("FunctionVersion not found [function_id={}, version_number=1]", function.id);
        assert_eq!(missing, text);
        let image = function::Model { code: r#"{"source": "image"}"#.to_owned(), ..function };
        assert!(check_version(db.reader(), &image, 0).await.is_ok());
        assert!(matches!(check_version(db.reader(), &image, 2).await, Err(Error::Invalid(_))));
    }
}
