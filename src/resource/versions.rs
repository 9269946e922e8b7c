//! Versions: what a function was when each was published. They never change.

use sea_orm::Set;

use super::packages::Packages;
use super::trusts::Trusts;
use super::{MAX_TEXT, check_length, release};
use crate::crash_points::{Write, around};
use crate::db::{self, Db, Page};
use crate::engine::gateway::Gateway;
use crate::engine::target::{Target, no_version};
use crate::error::{Error, Result};
use crate::model::function::Source;
use crate::model::{Caller, FunctionId, Timestamp, function, version};
use crate::quota::Resource;
use crate::storage::Content;

/// Versions of one function that exist at the same time.
const MOST: usize = 10;

#[derive(Clone)]
pub struct Versions {
    db: Db,
    engine: Gateway,
    packages: Packages,
    trusts: Trusts,
}

impl Versions {
    pub(super) fn new(db: Db, engine: Gateway, packages: Packages, trusts: Trusts) -> Self {
        Self { db, engine, packages, trusts }
    }

    /// By number, from the oldest, unless the page says otherwise.
    pub async fn list(
        &self,
        function: &FunctionId,
        page: &Page<version::Entity>,
    ) -> Result<Vec<version::Model>> {
        Ok(db::versions::list_page(self.db.reader(), function, page).await?)
    }

    /// Version 0 is the function itself and no version that could be looked at.
    pub async fn get(&self, caller: &Caller, id: &FunctionId, number: i32) -> Result<version::Model> {
        let function = db::functions::find(self.db.reader(), id, &caller.scope()).await?;
        let found = match function {
            Some(function) => db::versions::find(self.db.reader(), &function.id, number).await?,
            None => None,
        };
        found.ok_or_else(|| no_version(id, number))
    }

    /// The package of a version.
    pub async fn open(&self, version: &version::Model) -> Result<Content> {
        let content = match &version.package_digest {
            Some(digest) => self.packages.open(digest).await?,
            None => None,
        };
        content.ok_or_else(|| Error::NotFound {
            what: "Package of version",
            key: format!(
                "function_id={}, version_number={}, project_id={}",
                version.function_id, version.version_number, version.project_id
            ),
        })
    }

    /// A version, or with 0 the working copy, to be scaled or released.
    pub async fn target(&self, caller: &Caller, id: &FunctionId, number: i32) -> Result<Target> {
        let function = db::functions::find(self.db.reader(), id, &caller.scope()).await?;
        let function = function.ok_or_else(|| Error::not_found("Function", id))?;
        // Also of functions that can have none.
        if number != 0 && function.source()? != Source::Package {
            return Err(no_version(id, number));
        }
        Target::get(&self.db, function, number).await
    }

    /// Publishes what the function is now. Its row is held meanwhile, so that of several at once each
    /// sees what the one before it made.
    pub async fn create(
        &self,
        caller: &Caller,
        id: &FunctionId,
        description: Option<String>,
    ) -> Result<version::Model> {
        check_length("description", description.as_deref(), MAX_TEXT)?;
        let limits = self.engine.quotas().limits(&caller.project_id).await;
        let tx = self.db.begin().await?;
        // Held first, and asked behind what there is to say of the function.
        let room = limits.admit(&tx, &caller.project_id, Resource::FunctionVersions, 1).await;
        let function = db::functions::find_for_update(&tx, id, &caller.own()).await?;
        let function = function.ok_or_else(|| Error::not_found("Function", id))?;
        if function.source()? != Source::Package {
            return Err(guarded("Function versioning only allowed for package type function."));
        }
        let versions = db::versions::list(&tx, id).await?;
        if versions.len() >= MOST {
            return Err(Error::Guarded(format!("Can not exceed maximum number({MOST}) of versions")));
        }
        if let Some(latest) = versions.last()
            && latest.package_digest == function.package_digest
        {
            let number = latest.version_number;
            return Err(Error::Guarded(format!(
                "Function package not changed since the latest version {number}."
            )));
        }
        room?;
        let number = function.version_counter + 1;
        let version = published(&function, number, description);
        db::versions::insert(&tx, version.clone()).await?;
        let change = function::ActiveModel {
            id: Set(id.clone()),
            latest_version: Set(number),
            version_counter: Set(number),
            ..Default::default()
        };
        db::functions::update(&tx, change).await?;
        around(Write::VersionCreate, tx.commit()).await?;
        Ok(version)
    }

    /// Removes a version of the caller's project that nothing needs, then its workers and its package.
    pub async fn delete(&self, caller: &Caller, id: &FunctionId, number: i32) -> Result<()> {
        let tx = self.db.begin().await?;
        // In the order in which an alias is changed; one may lose its way back.
        db::aliases::hold_of(&tx, id).await?;
        let function = db::functions::find_for_update(&tx, id, &caller.own()).await?;
        let function = function.ok_or_else(|| no_version(id, number))?;
        let (mut versions, others): (Vec<_>, Vec<_>) =
            db::versions::list(&tx, id).await?.into_iter().partition(|row| row.version_number == number);
        let version = versions.pop().ok_or_else(|| no_version(id, number))?;
        if db::versions::has_live_jobs(&tx, id, number).await? {
            return Err(guarded("The function version is still associated with running job(s)."));
        }
        if db::versions::has_webhooks(&tx, id, number).await? {
            return Err(guarded("The function version is still associated with webhook."));
        }
        if db::versions::has_aliases(&tx, id, number).await? {
            return Err(guarded("The function version is still associated with alias."));
        }
        db::versions::delete(&tx, id, number).await?;
        let latest = others.last().map_or(0, |row| row.version_number);
        if latest != function.latest_version {
            let change = function::ActiveModel {
                id: Set(id.clone()),
                latest_version: Set(latest),
                ..Default::default()
            };
            db::functions::update(&tx, change).await?;
        }
        let mut dropped = version.trust_id;
        if let Some(trust) = &dropped
            && !db::trusts::drop_unless_held(&tx, id, trust).await?
        {
            dropped = None;
        }
        around(Write::VersionDelete, tx.commit()).await?;

        release(&self.engine, id, number).await;
        if let Some(digest) = &version.package_digest {
            self.packages.forget(&self.db, digest).await;
        }
        if let Some(trust) = &dropped {
            self.trusts.end_soon(id, trust);
        }
        Ok(())
    }
}

/// What a version keeps of its function.
fn published(function: &function::Model, number: i32, description: Option<String>) -> version::Model {
    version::Model {
        id: uuid::Uuid::new_v4().to_string(),
        project_id: function.project_id.clone(),
        function_id: function.id.clone(),
        description,
        version_number: number,
        count: 0,
        runtime_id: function.runtime_id.clone(),
        cpu: function.cpu,
        memory_size: function.memory_size,
        timeout: function.timeout,
        package_digest: function.package_digest.clone(),
        package_bytes: function.package_bytes,
        entry: function.entry.clone(),
        network: function.network,
        // Of whoever uploaded this code.
        trust_id: function.trust_id.clone(),
        trust_reason: function.trust_reason.clone(),
        created_at: Timestamp::now(),
        updated_at: None,
    }
}

fn guarded(text: &str) -> Error {
    Error::Guarded(text.to_owned())
}
