//! Where a function's code comes from when a worker is bound to it: the package store, or an object
//! in Swift that is read in the name of who uploaded the function.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::sleep;

use super::worker::{FunctionKey, WorkerState};
use super::{Core, sessions};
use crate::crash_points::{Write, around};
use crate::db;
use crate::error::Result;
use crate::model::{Scope, function, object_digest};
use crate::openstack::{self, Swift};
use crate::storage::{self, Content};
use crate::telemetry::Chain;

/// How long a session for reading an object has to last.
const READING: Duration = Duration::from_secs(60);

/// Why there is no code. The text is for the user.
#[derive(Debug)]
pub(super) enum Error {
    /// The function has other code by now.
    Replaced,
    /// Another try now would end the same.
    Refused(String),
    Failed(String),
}

/// Opens the code that a worker is to be bound to.
pub(super) async fn open(core: &Core, key: &FunctionKey) -> Result<Content, Error> {
    if key.is_object() {
        return fetch(core, key).await;
    }
    core.store.open(&key.digest).await.map_err(|error| match error {
        storage::Error::NotFound => Error::Replaced,
        error => {
            tracing::error!(function.id = %key.function, error = %Chain(&error), "a package cannot be read");
            Error::Failed("The package cannot be read.".to_owned())
        }
    })
}

async fn fetch(core: &Core, key: &FunctionKey) -> Result<Content, Error> {
    let failed = |why: &str| Error::Failed(why.to_owned());
    let row = db::functions::find(core.db.reader(), &key.function, &Scope::All).await;
    let row = row.map_err(|error| {
        tracing::warn!(function.id = %key.function, error = %Chain(&error), "a function cannot be read");
        failed("The function cannot be read.")
    })?;
    let row = row.filter(|row| row.digest().as_ref() == Some(&key.digest)).ok_or(Error::Replaced)?;
    let (swift, place) = reach(core, &row).await?;
    let object = swift.get_object(&place.container, &place.object).await;
    let mut object = object.map_err(|error| unreadable(&place, error))?;
    if object.info.etag.as_deref().map(object_digest).as_ref() != Some(&key.digest) {
        note(core, &row, &object.info).await;
        return Err(Error::Replaced);
    }

    let broken = |error: storage::Error| match error {
        storage::Error::TooLarge { .. } | storage::Error::NotZip | storage::Error::Refused(_) => {
            Error::Refused(format!("The object {place} cannot be run: {error}."))
        }
        error => {
            tracing::error!(error = %Chain(&error), "an object cannot be stored");
            failed("The object cannot be stored.")
        }
    };
    let mut upload = core.store.begin().await.map_err(broken)?;
    while let Some(piece) = object.content.next().await {
        upload = upload.write(&piece.map_err(|error| unreadable(&place, error))?).await.map_err(broken)?;
    }
    let received = upload.finish().await.map_err(broken)?;
    if received.bytes != object.info.bytes || object_digest(&received.md5) != key.digest {
        return Err(Error::Failed(format!("The object {place} did not arrive as Swift describes it.")));
    }
    received.check(core.archive).await.map_err(broken)?.into_content().await.map_err(broken)
}

/// The function's object, in the name of who uploaded the function.
async fn reach(core: &Core, row: &function::Model) -> Result<(Swift, function::Place), Error> {
    let place = row.place().ok_or_else(|| Error::Refused("The function names no object.".to_owned()))?;
    let (Some(sessions), Some(trust)) = (&core.sessions, &row.trust_id) else {
        return Err(Error::Refused(format!("The object {place} can be read with a trust only.")));
    };
    let session = sessions.get(trust, READING, None).await.map_err(|error| match error {
        sessions::Error::Invalid => Error::Refused(error.to_string()),
        error => Error::Failed(error.to_string()),
    })?;
    let reached = sessions.keystone().trust_session(&session.token, None);
    let reached = reached.map_err(|error| Error::Failed(error.to_string()))?;
    Ok((reached.swift(), place))
}

fn unreadable(place: &function::Place, error: openstack::Error) -> Error {
    match error {
        openstack::Error::NotFound => Error::Refused(format!("The object {place} is not there.")),
        openstack::Error::Forbidden { .. } | openstack::Error::Rejected => {
            Error::Refused(format!("Whoever uploaded the function may not read the object {place}."))
        }
        error => {
            tracing::warn!(error = %Chain(&error), "an object cannot be read");
            Error::Failed(format!("The object {place} cannot be read now."))
        }
    }
}

/// Writes down what an object is by now. Workers that hold what it was are drained by the reaper.
async fn note(core: &Core, row: &function::Model, info: &openstack::ObjectInfo) {
    let Some(etag) = &info.etag else { return };
    let bytes = i64::try_from(info.bytes).unwrap_or(i64::MAX);
    let from = row.object_etag.as_deref();
    let writer = core.db.writer();
    let noting = db::functions::set_object(&writer, &row.id, from, etag, bytes);
    match around(Write::ObjectChanged, noting).await {
        Ok(true) => {
            tracing::info!(function.id = %row.id, "the object of a function has changed");
            // One that is being bound is told what it needs by whoever binds it.
            core.pool.drain_where(|info| match &info.state {
                WorkerState::Idle { function, .. } | WorkerState::Busy { function, .. } => {
                    function.function == row.id && function.version == 0
                }
                _ => false,
            });
        }
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(function.id = %row.id, error = %Chain(&error), "a changed object was not noted");
        }
    }
}

/// Looks whether objects that workers hold are still what they were, until the engine lets go. A
/// call never does: it would have to wait for Swift.
pub(super) async fn watch(core: Arc<Core>) {
    if core.sessions.is_none() {
        return;
    }
    loop {
        tokio::select! {
            () = core.letting_go.cancelled() => return,
            () = sleep(core.engine.object_check_interval) => {}
        }
        let held = core
            .pool
            .list()
            .into_iter()
            .filter(|info| matches!(info.state, WorkerState::Idle { .. } | WorkerState::Busy { .. }));
        let keys: HashSet<Arc<FunctionKey>> =
            held.filter_map(|info| info.state.function().cloned()).filter(|key| key.is_object()).collect();
        for key in keys {
            openstack::on_our_own(look(&core, &key)).await;
        }
    }
}

async fn look(core: &Core, key: &Arc<FunctionKey>) {
    let row = match db::functions::find(core.db.reader(), &key.function, &Scope::All).await {
        Ok(Some(row)) => row,
        // The reaper sees to workers of functions that are gone.
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(function.id = %key.function, error = %Chain(&error), "a function cannot be read");
            return;
        }
    };
    let looked = match reach(core, &row).await {
        Ok((swift, place)) => {
            let found = swift.head_object(&place.container, &place.object).await;
            found.map_err(|error| unreadable(&place, error))
        }
        Err(error) => Err(error),
    };
    match looked {
        Ok(info) if info.etag != row.object_etag => note(core, &row, &info).await,
        Ok(_) | Err(Error::Replaced | Error::Failed(_)) => {}
        // The next call starts anew, and is told.
        Err(Error::Refused(why)) => {
            tracing::info!(function.id = %key.function, why, "a function's object cannot be had any more");
            core.pool.drain_where(|info| info.state.function() == Some(key));
        }
    }
}
