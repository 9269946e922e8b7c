//! Packages of functions: checked, kept, and deleted when nothing refers to them any more.

use std::sync::Arc;

use tokio::sync::{RwLock, RwLockReadGuard};

use crate::crash_points::{Write, around};
use crate::db::{self, Db};
use crate::error::{Error, Result};
use crate::openstack;
use crate::storage::{self, Content, PackageStore};
use crate::telemetry::Chain;

/// A package is shared by everything with the same bytes. Between keeping one and committing the row
/// that refers to it nobody may delete it, and between looking for references and deleting nobody
/// may keep it again: the gate is shared by the first and exclusive for the second.
#[derive(Clone)]
pub(super) struct Packages {
    store: Arc<dyn PackageStore>,
    gate: Arc<RwLock<()>>,
}

impl Packages {
    pub fn new(store: Arc<dyn PackageStore>) -> Self {
        Self { store, gate: Arc::default() }
    }

    /// Holds off deletions until the row that refers to a package is committed.
    pub async fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    pub async fn keep(&self, package: storage::Received) -> Result<()> {
        Ok(around(Write::PackageKeep, self.store.keep(package)).await?)
    }

    /// `None` where the bytes are missing.
    pub async fn open(&self, digest: &str) -> Result<Option<Content>> {
        match self.store.open(digest).await {
            Ok(content) => Ok(Some(content)),
            Err(storage::Error::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a package that nothing refers to. What was asked for is done by now, so a failure is
    /// logged and leaves a file behind, no more.
    pub async fn forget(&self, db: &Db, digest: &str) {
        let _alone = self.gate.write().await;
        let deleted = match db::functions::digest_in_use(db.reader(), digest).await {
            Ok(true) => return,
            Ok(false) => around(Write::PackageForget, self.store.delete(digest)).await.map_err(Error::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = deleted {
            tracing::warn!(digest, error = %Chain(&error), "a package that nothing needs was left behind");
        }
    }
}

/// What the store says, in the words of the v1 API.
impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        match error {
            storage::Error::TooLarge { limit } => {
                Self::TooLarge(format!("Package is larger than the allowed {limit} bytes."))
            }
            storage::Error::NotZip => Self::invalid("Package is not a valid ZIP package."),
            storage::Error::Refused(rule) => Self::Invalid(format!("Package is not acceptable: {rule}.")),
            storage::Error::NotFound => Self::internal(error),
            // The service's user has no role there: whoever asks the operator should be able to say so.
            storage::Error::Unavailable(openstack::Error::Forbidden { .. }) => Self::Unavailable {
                what: "The package store, which does not admit this service,",
                source: Box::new(error),
            },
            storage::Error::Io(_) | storage::Error::Unavailable(_) => {
                Self::Unavailable { what: "The package store", source: Box::new(error) }
            }
        }
    }
}
