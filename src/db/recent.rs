//! Rows that every call reads, kept in memory until something that they may show is changed.
//!
//! Where the database is this process's own, as a file is, each such change goes through this
//! program and is known: see [`Changes`]. A server's tables are other processes' too, and calls
//! read them each time. Counters are not among what is kept: they may be old here.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::future::Cache;
use sea_orm::ConnectionTrait;

use super::{Db, Result, aliases, functions, runtimes, versions};
use crate::model::{FunctionId, ProjectId, RuntimeId, Scope, alias, function, runtime, version};

/// Rows of each table; those that are called least go first.
const MOST: u64 = 10_000;
/// What somebody changes in the file behind our back is seen after this time.
const OLDEST: Duration = Duration::from_secs(2);

/// What can write rows that are kept, and has to say so where it does.
pub trait Changes: ConnectionTrait {
    /// Has what is kept read again, once what was written is committed.
    fn note_change(&self);
}

/// What is kept, and of which state of the database. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Recent {
    is_kept: bool,
    /// Rises with every change. Part of each key, so that what was read before one and arrives after it
    /// is found by nobody.
    state: Arc<AtomicU64>,
    functions: Kept<FunctionId, function::Model>,
    versions: Kept<(FunctionId, i32), version::Model>,
    aliases: Kept<(ProjectId, String), alias::Model>,
    runtimes: Kept<RuntimeId, runtime::Model>,
}

type Kept<K, V> = Cache<(u64, K), Arc<V>>;

impl Recent {
    pub(super) fn new(is_kept: bool) -> Self {
        Self {
            is_kept,
            state: Arc::default(),
            functions: kept(),
            versions: kept(),
            aliases: kept(),
            runtimes: kept(),
        }
    }

    pub(super) fn forget(&self) {
        self.state.fetch_add(1, Ordering::SeqCst);
        self.functions.invalidate_all();
        self.versions.invalidate_all();
        self.aliases.invalidate_all();
        self.runtimes.invalidate_all();
    }

    /// The row, from memory or as `read` finds it. That there is none is not kept.
    async fn get<K: Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static>(
        &self,
        kept: &Kept<K, V>,
        key: K,
        read: impl Future<Output = Result<Option<V>>>,
    ) -> Result<Option<V>> {
        if !self.is_kept {
            return read.await;
        }
        let key = (self.state.load(Ordering::SeqCst), key);
        if let Some(row) = kept.get(&key).await {
            return Ok(Some((*row).clone()));
        }
        let row = read.await?;
        if let Some(row) = &row {
            kept.insert(key, Arc::new(row.clone())).await;
        }
        Ok(row)
    }
}

/// Has what is kept read again when it is dropped.
pub(super) struct Forgets<'a>(pub &'a Recent);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        self.0.forget();
    }
}

fn kept<K: Hash + Eq + Send + Sync + 'static, V: Send + Sync + 'static>() -> Kept<K, V> {
    Cache::builder().max_capacity(MOST).time_to_live(OLDEST).build()
}

/// The function, as a call needs it.
pub async fn function(db: &Db, id: &FunctionId, scope: &Scope) -> Result<Option<function::Model>> {
    let read = functions::find(db.reader(), id, &Scope::All);
    let row = db.recent.get(&db.recent.functions, id.clone(), read).await?;
    Ok(row.filter(|row| match scope {
        Scope::Project(project) => row.project_id == *project,
        Scope::All => true,
    }))
}

/// The version, as a call needs it.
pub async fn version(db: &Db, function: &FunctionId, number: i32) -> Result<Option<version::Model>> {
    let read = versions::find(db.reader(), function, number);
    db.recent.get(&db.recent.versions, (function.clone(), number), read).await
}

/// The project's alias, as a call needs it.
pub async fn alias(db: &Db, project: &ProjectId, name: &str) -> Result<Option<alias::Model>> {
    let read = aliases::find(db.reader(), project, name);
    db.recent.get(&db.recent.aliases, (project.clone(), name.to_owned()), read).await
}

/// The runtime, whoever asks, as a call needs it.
pub async fn runtime(db: &Db, id: &RuntimeId) -> Result<Option<runtime::Model>> {
    let read = runtimes::find_any(db.reader(), id);
    db.recent.get(&db.recent.runtimes, id.clone(), read).await
}

#[cfg(test)]
mod tests {
    use sea_orm::Set;

    use super::*;
    use crate::db::testing;

    #[tokio::test]
    async fn a_row_is_read_once_and_again_after_every_change() {
        let db = testing::database().await;
        let runtime_row = testing::runtime();
        let row = testing::function(&runtime_row.id);
        let id = row.id.clone();
        runtimes::insert(&db.writer(), runtime_row.clone()).await.unwrap();
        assert_eq!(function(&db, &id, &Scope::All).await.unwrap(), None);
        functions::insert(&db.writer(), row.clone()).await.unwrap();
        let see = async |scope: &Scope| function(&db, &id, scope).await.unwrap();
        assert_eq!(see(&Scope::All).await, Some(row.clone()), "that there was none is not kept");
        assert_eq!(see(&testing::own()).await, Some(row.clone()));
        assert_eq!(see(&testing::stranger()).await, None);

        functions::increment_count(&db.writer(), &id, 1).await.unwrap();
        let kept = see(&Scope::All).await.unwrap();
        assert_eq!(kept == row, db.recent.is_kept, "a counter is no change");

        let named = |name: &str| function::ActiveModel {
            id: Set(id.clone()),
            name: Set(Some(name.to_owned())),
            ..Default::default()
        };
        functions::update(&db.writer(), named("second")).await.unwrap();
        assert_eq!(see(&Scope::All).await.unwrap().name.as_deref(), Some("second"));

        let tx = db.begin().await.unwrap();
        functions::update(&tx, named("third")).await.unwrap();
        tx.rollback().await.unwrap();
        assert_eq!(see(&Scope::All).await.unwrap().name.as_deref(), Some("second"));
        let tx = db.begin().await.unwrap();
        functions::update(&tx, named("fourth")).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(see(&Scope::All).await.unwrap().name.as_deref(), Some("fourth"));

        functions::delete(&db.writer(), &id).await.unwrap();
        assert_eq!(see(&Scope::All).await, None);
        runtime(&db, &runtime_row.id).await.unwrap().unwrap();
        runtimes::delete(&db.writer(), &runtime_row.id).await.unwrap();
        assert_eq!(runtime(&db, &runtime_row.id).await.unwrap(), None);
    }

    /// A row that was read before a change, and is kept after it.
    #[tokio::test]
    async fn what_was_read_before_a_change_is_found_by_nobody_after_it() {
        let recent = Recent::new(true);
        let key = || ("p".into(), "prod".to_owned());
        let alias = |version| testing::alias(&testing::function(&RuntimeId::random()), "prod", version);
        let slow = async {
            let before = alias(1);
            recent.forget();
            Ok(Some(before))
        };
        let first = recent.get(&recent.aliases, key(), slow).await.unwrap().unwrap();
        assert_eq!(first.function_version, 1);
        let now = recent.get(&recent.aliases, key(), async { Ok(Some(alias(2))) }).await.unwrap().unwrap();
        assert_eq!(now.function_version, 2);
        let read = async { panic!("it is kept") };
        assert_eq!(recent.get(&recent.aliases, key(), read).await.unwrap(), Some(now));
    }
}
