//! Runtimes: language images and their pools of workers.

use sea_orm::{Iterable, Set};

use super::{MAX_TEXT, check_length};
use crate::crash_points::{Write, around};
use crate::db::{self, Db, Page};
use crate::engine::gateway::Gateway;
use crate::engine::target::not_available;
use crate::error::{Error, Result};
use crate::model::{Caller, NetworkAccess, RuntimeId, RuntimeStatus, Timestamp, runtime};

#[derive(Debug)]
pub struct NewRuntime {
    pub name: Option<String>,
    pub image: String,
    pub description: Option<String>,
    pub is_public: bool,
    pub trusted: bool,
    pub network: NetworkAccess,
}

/// What is `None` stays.
#[derive(Debug)]
pub struct RuntimeUpdate {
    pub name: Option<String>,
    pub image: Option<String>,
    pub description: Option<String>,
    pub network: Option<NetworkAccess>,
}

#[derive(Clone)]
pub struct Runtimes {
    db: Db,
    engine: Gateway,
}

impl Runtimes {
    pub fn new(db: Db, engine: Gateway) -> Self {
        Self { db, engine }
    }

    /// The runtimes of the caller's project and the public ones, for an administrator too.
    pub async fn list(&self, caller: &Caller, page: &Page<runtime::Entity>) -> Result<Vec<runtime::Model>> {
        Ok(db::runtimes::list_visible(self.db.reader(), &caller.project_id, page).await?)
    }

    pub async fn get(&self, caller: &Caller, id: &RuntimeId) -> Result<runtime::Model> {
        let row = db::runtimes::find(self.db.reader(), id, &caller.project_id).await?;
        row.ok_or_else(|| Error::not_found("Runtime", id))
    }

    /// Stores a runtime as `creating`; the engine makes its workers and the status that follows.
    pub async fn create(&self, caller: &Caller, new: NewRuntime) -> Result<runtime::Model> {
        check_texts(new.name.as_deref(), new.description.as_deref(), Some(&new.image))?;
        let row = runtime::Model {
            id: RuntimeId::random(),
            project_id: caller.project_id.clone(),
            name: new.name,
            description: new.description,
            image: new.image,
            active_image: None,
            status: RuntimeStatus::Creating,
            status_reason: None,
            is_public: new.is_public,
            trusted: new.trusted,
            network: new.network,
            active_network: None,
            created_at: Timestamp::now(),
            updated_at: None,
        };
        around(Write::RuntimeCreate, db::runtimes::insert(&self.db.writer(), row.clone())).await?;
        self.engine.runtimes_changed();
        Ok(row)
    }

    /// Changes name and description in any status, and the image and the network of an available runtime
    /// that no worker uses: its pool is then replaced.
    pub async fn update(
        &self,
        caller: &Caller,
        id: &RuntimeId,
        update: RuntimeUpdate,
    ) -> Result<runtime::Model> {
        check_texts(update.name.as_deref(), update.description.as_deref(), update.image.as_deref())?;
        // Asked first: a transaction holds nothing but SQL.
        let may_upgrade = update.image.is_some() || update.network.is_some();
        let in_use =
            may_upgrade && self.engine.pool(id).await?.is_some_and(|pool| pool.total > pool.available);
        let tx = self.db.begin().await?;
        let row = db::runtimes::find(&tx, id, &caller.project_id).await?;
        let row = row.ok_or_else(|| Error::not_found("Runtime", id))?;
        let mut change = runtime::ActiveModel { id: Set(id.clone()), ..Default::default() };
        let mut upgrades = false;
        if may_upgrade {
            if row.status != RuntimeStatus::Available {
                return Err(not_available(id));
            }
            let image = update.image.unwrap_or_else(|| row.image.clone());
            let network = update.network.unwrap_or(row.network);
            if (&image, network) != (&row.image, row.network) {
                if in_use {
                    return Err(Error::Guarded(format!("Runtime {id} is still in use by functions.")));
                }
                let from = [RuntimeStatus::Available];
                if !db::runtimes::set_status(&tx, id, &from, RuntimeStatus::Upgrading, None).await? {
                    return Err(not_available(id));
                }
                upgrades = true;
                change.image = Set(image);
                change.network = Set(network);
                change.active_network = Set(Some(row.network));
            }
        }
        if update.name.is_some() {
            change.name = Set(update.name);
        }
        if update.description.is_some() {
            change.description = Set(update.description);
        }
        let row = db::runtimes::update(&tx, change).await?;
        let row = row.ok_or_else(|| Error::not_found("Runtime", id))?;
        around(Write::RuntimeUpdate, tx.commit()).await?;
        if upgrades {
            self.engine.runtimes_changed();
        }
        Ok(row)
    }

    /// Marks a runtime that no function refers to; the engine removes its workers and then the row.
    pub async fn delete(&self, caller: &Caller, id: &RuntimeId) -> Result<()> {
        let tx = self.db.begin().await?;
        let row = db::runtimes::find(&tx, id, &caller.project_id).await?;
        row.ok_or_else(|| Error::not_found("Runtime", id))?;
        if db::functions::runtime_in_use(&tx, id).await? {
            return Err(Error::Guarded(format!("Runtime {id} is still in use.")));
        }
        // From every status: one that the engine moves on meanwhile is deleted all the same.
        let from: Vec<_> = RuntimeStatus::iter().collect();
        db::runtimes::set_status(&tx, id, &from, RuntimeStatus::Deleting, None).await?;
        around(Write::RuntimeDelete, tx.commit()).await?;
        self.engine.runtimes_changed();
        Ok(())
    }
}

fn check_texts(name: Option<&str>, description: Option<&str>, image: Option<&str>) -> Result<()> {
    check_length("name", name, MAX_TEXT)?;
    check_length("description", description, MAX_TEXT)?;
    check_length("image", image, MAX_TEXT)?;
    match image {
        Some(image) if image.trim().is_empty() => Err(Error::invalid("image may not be empty.")),
        _ => Ok(()),
    }
}
