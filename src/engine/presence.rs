//! That this engine is there: a lock on its machine, and a lease in the database.
//!
//! The lock is the kernel's and ends with the process, so whoever has it knows that the engine that
//! had it before is dead, at once. On other machines only the lease tells, once it runs out.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{interval, sleep};

use super::{Core, run};
use crate::config;
use crate::crash_points::{self, around};
use crate::db;
use crate::error::Result;
use crate::model::{EngineId, Outcome, Reason, Timestamp, engine};
use crate::telemetry::Chain;

/// The right to run an engine for a deployment on this machine.
#[derive(Debug)]
pub struct NodeLock {
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another engine runs on this machine, {holder}: it holds {}", .path.display())]
    Held { path: PathBuf, holder: String },
    #[error("cannot lock {}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl NodeLock {
    /// Takes the lock, or says who has it. To be held before anything of this deployment is touched.
    pub fn acquire(config: &config::Docker) -> Result<Self, LockError> {
        let path = config.worker_dir.join(format!("lock-{}", config.deployment));
        let failed = |source| LockError::Io { path: path.clone(), source };
        std::fs::create_dir_all(&config.worker_dir).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Only for the message.
                let _ = file.read_to_string(&mut text);
                let holder = match text.trim() {
                    "" => "which has not said its process id".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(LockError::Held { path, holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Enters this engine, with a lease.
pub(super) async fn register(core: &Core) -> Result<()> {
    let row = engine::Model {
        id: core.id.clone(),
        node: core.node.clone(),
        deployment: core.deployment.clone(),
        endpoint: core.endpoint.get().cloned(),
        started_at: Timestamp::now(),
        lease_until: Timestamp::now().after(core.engine.lease),
    };
    Ok(around(crash_points::Write::EngineRegister, db::engines::register(&core.db.writer(), row)).await?)
}

/// Engines that ran this deployment's workers on this machine before: dead, since this one has the
/// lock.
pub(super) async fn predecessors(core: &Core) -> Result<Vec<EngineId>> {
    let engines = db::engines::list(core.db.reader()).await?.into_iter();
    let dead = engines.filter(|engine| {
        engine.node == core.node && engine.deployment == core.deployment && engine.id != core.id
    });
    Ok(dead.map(|engine| engine.id).collect())
}

/// Renews the lease, and ends what engines ran whose lease is over, until this one lets go.
pub(super) async fn keep(core: Arc<Core>) {
    let mut renewal = interval(core.engine.lease / 3);
    loop {
        tokio::select! {
            () = core.letting_go.cancelled() => return,
            _ = renewal.tick() => {}
        }
        if let Err(error) = renew(&core).await {
            tracing::warn!(error = %Chain(&error), "the engine's lease was not renewed");
            sleep(Duration::from_millis(100)).await;
            continue;
        }
        if let Err(error) = bury(&core).await {
            tracing::warn!(error = %Chain(&error), "engines whose lease is over could not be looked after");
        }
    }
}

async fn renew(core: &Core) -> Result<()> {
    let until = Timestamp::now().after(core.engine.lease);
    let writer = core.db.writer();
    if !around(crash_points::Write::EngineRenew, db::engines::renew(&writer, &core.id, until)).await? {
        // What it ran was ended by others under a later epoch; it may go on with what comes.
        tracing::warn!("others took this engine for dead; it is back");
        register(core).await?;
    }
    Ok(())
}

/// Ends what engines on other machines ran whose lease is over. Their workers are out of reach.
async fn bury(core: &Core) -> Result<()> {
    for engine in db::engines::list_expired(core.db.reader(), Timestamp::now()).await? {
        if engine.id == core.id {
            continue;
        }
        tracing::warn!(engine.id = %engine.id, node = engine.node, "an engine's lease is over");
        for row in db::executions::list_running_of(core.db.reader(), std::slice::from_ref(&engine.id)).await?
        {
            let deadline = Timestamp::now().after(run::OVERDUE);
            let writer = core.db.writer();
            let taking = db::executions::take_over(&writer, &row.id, row.epoch, &core.id, deadline);
            if let Some(epoch) = around(crash_points::Write::TakeOver, taking).await? {
                run::finish(core, &row.id, epoch, left_behind(row.sync)).await;
            }
        }
        around(crash_points::Write::EngineRemove, db::engines::remove(&core.db.writer(), &engine.id)).await?;
    }
    Ok(())
}

/// How an execution ends whose engine is dead and whose outcome nobody has.
pub(super) fn left_behind(sync: bool) -> Outcome {
    if sync {
        Outcome::error(Reason::Interrupted, "The engine that ran it ended.")
    } else {
        Outcome::error(Reason::WorkerLost, "The worker that ran it is gone.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_engine_at_a_time_and_the_second_is_told_who() {
        let directory = tempfile::tempdir().unwrap();
        let config =
            config::Docker { worker_dir: directory.path().join("made"), ..config::Docker::default() };
        let first = NodeLock::acquire(&config).unwrap();
        let error = NodeLock::acquire(&config).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains("lock-taibai"), "{error}");
        let other = config::Docker { deployment: "other".to_owned(), ..config.clone() };
        NodeLock::acquire(&other).unwrap();
        drop(first);
        NodeLock::acquire(&config).unwrap();
    }
}
