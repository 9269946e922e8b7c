//! Brings workers and runtimes back into step with what is wanted. Woken by a timer or a nudge, it
//! takes no input, reads what is wanted and what is there, and may run twice.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::pool::Base;
use super::worker::{FunctionKey, WorkerState};
use super::{Core, images, retention};
use crate::crash_points::{Write, around};
use crate::db;
use crate::error::{Error, Result};
use crate::model::{NetworkAccess, RuntimeId, RuntimeStatus, Scope, runtime};
use crate::orchestrator::{self, Network};
use crate::telemetry::Chain;

/// Longest time between two looks.
const PERIOD: Duration = Duration::from_secs(5);
/// Shortest: a burst of nudges is one look, and what called for it goes first.
const GAP: Duration = Duration::from_millis(50);
/// Between two looks at what needs Docker or a query for each function.
const FULL: Duration = Duration::from_secs(30);
/// Between two looks at the queue.
const TICK: Duration = Duration::from_millis(200);

/// Looks again at calls that wait; the pool has no clock.
pub(super) async fn tick(core: Arc<Core>) {
    loop {
        tokio::select! {
            () = core.letting_go.cancelled() => return,
            () = sleep(TICK) => {
                core.pool.tick();
                core.observe_queue();
            }
        }
    }
}

/// Reconciles until the engine lets go.
pub(super) async fn run(core: Arc<Core>) {
    let period = PERIOD.min(core.engine.idle_timeout / 2).max(GAP);
    let probing = Arc::new(Mutex::new(HashSet::new()));
    let mut full_at = Instant::now() + FULL;
    loop {
        if let Err(error) = runtimes(&core, &probing).await {
            tracing::warn!(error = %Chain(&error), "runtimes could not be brought into step");
        }
        if let Err(error) = retention::end_overdue(&core).await {
            tracing::warn!(error = %Chain(&error), "executions that are overdue could not be ended");
        }
        if let Err(error) = images::look(&core).await {
            tracing::warn!(error = %Chain(&error), "images of functions could not be looked for");
        }
        idle(&core);
        if Instant::now() >= full_at {
            full_at = Instant::now() + FULL;
            if let Err(error) = orphans(&core).await {
                tracing::warn!(error = %Chain(&error), "containers could not be brought into step");
            }
            if let Err(error) = images::orphans(&core).await {
                tracing::warn!(error = %Chain(&error), "containers of images could not be brought into step");
            }
            if let Err(error) = functions(&core).await {
                tracing::warn!(error = %Chain(&error), "functions could not be looked up");
            }
        }
        core.observe_pool();
        let next = Instant::now() + period;
        tokio::select! {
            () = core.letting_go.cancelled() => return,
            () = core.reaper.notified() => sleep(GAP).await,
            () = sleep_until(next) => {}
        }
    }
}

/// Drains workers that ran nothing for long.
fn idle(core: &Core) {
    let timeout = core.engine.idle_timeout;
    let drained = core.pool.drain_where(|info| match &info.state {
        WorkerState::Idle { .. } => info.last_used.elapsed() >= timeout,
        // Started for an image that its runtime has no more.
        WorkerState::Prewarmed => !info.current && info.last_used.elapsed() >= PERIOD,
        _ => false,
    });
    if drained > 0 {
        tracing::info!(workers = drained, "idle workers are removed");
    }
}

/// Removes containers that nobody owns, and workers whose container has ended.
async fn orphans(core: &Arc<Core>) -> Result<(), orchestrator::Error> {
    let observed = core.orchestrator.list().await?;
    // Listed after the containers: a worker is known here before its container is made, and as
    // long as there may be one.
    let known = core.pool.list();
    for container in &observed {
        match known.iter().find(|info| info.worker.name == container.name) {
            None => {
                tracing::warn!(worker.id = %container.name, "a container that nobody owns is removed");
                if let Err(error) = core.orchestrator.stop(&container.name).await {
                    tracing::warn!(worker.id = %container.name, error = %Chain(&error), "it could not be removed");
                }
            }
            Some(info) if !container.running && !matches!(info.state, WorkerState::Starting { .. }) => {
                tracing::warn!(worker.id = %container.name, "a worker's container has ended");
                core.pool.kill(info.id);
            }
            Some(_) => {}
        }
    }
    let again = core.orchestrator.list().await?;
    for info in known {
        let gone = |list: &[orchestrator::ObservedWorker]| {
            list.iter().all(|container| container.name != info.worker.name)
        };
        // Twice, so that one which started between the two lists is not taken for gone.
        if info.worker.supervisor().is_some() && gone(&observed) && gone(&again) {
            tracing::warn!(worker.id = %info.worker.name, "a worker's container is gone");
            core.pool.kill(info.id);
        }
    }
    Ok(())
}

/// Drains workers of functions that were deleted, or whose package is another by now.
async fn functions(core: &Core) -> Result<()> {
    let bound = core.pool.list().into_iter().filter(|info| matches!(info.state, WorkerState::Idle { .. }));
    let keys: HashSet<Arc<FunctionKey>> = bound.filter_map(|info| info.state.function().cloned()).collect();
    for key in keys {
        let digest = match key.version {
            0 => db::functions::find(core.db.reader(), &key.function, &Scope::All)
                .await?
                .and_then(|function| function.digest()),
            number => db::versions::find(core.db.reader(), &key.function, number)
                .await?
                .and_then(|version| version.package_digest),
        };
        if digest.as_deref() != Some(&key.digest) {
            tracing::info!(function.id = %key.function, "workers of code that is gone are removed");
            core.pool.drain_where(|info| info.state.function() == Some(&key));
        }
    }
    Ok(())
}

type Probing = Arc<Mutex<HashSet<RuntimeId>>>;

async fn runtimes(core: &Arc<Core>, probing: &Probing) -> Result<()> {
    let rows = db::runtimes::list_all(core.db.reader()).await?;
    for row in &rows {
        match row.status {
            RuntimeStatus::Creating => probe_once(core, probing, row),
            RuntimeStatus::Upgrading => {
                if let Some(image) = &row.active_image {
                    ensure_image(core, row, image).await;
                }
                probe_once(core, probing, row);
            }
            RuntimeStatus::Available => {
                ensure_image(core, row, &row.image).await;
                core.pool.prewarm(&row.id, core.engine.pool_size as usize);
            }
            RuntimeStatus::Error => {
                if core.pool.base(&row.id).is_some() {
                    core.pool.remove_runtime(&row.id);
                }
            }
            RuntimeStatus::Deleting => delete(core, row).await?,
        }
    }
    let known: HashSet<&RuntimeId> = rows.iter().map(|row| &row.id).collect();
    for info in core.pool.list() {
        if !known.contains(&info.worker.runtime) && !info.state.is_draining() {
            core.pool.remove_runtime(&info.worker.runtime);
        }
    }
    Ok(())
}

/// The image of a runtime that works already, looked for until it is found, also where another engine tried
/// it out. Where it is not on this machine any more, calls are told so at once, and so is who looks at the
/// runtime.
pub(super) async fn ensure_image(core: &Core, row: &runtime::Model, reference: &str) {
    let network = connect(core, active_network(row));
    let before = core.pool.base(&row.id);
    if before.as_ref().is_some_and(|base| base.reference == reference && base.network == network) {
        return;
    }
    // The reason names the machine: on another the image may be there.
    let mine = format!("{}: ", core.node);
    let known = row.status_reason.as_deref().filter(|reason| reason.starts_with(&mine));
    let reason = match core.orchestrator.inspect_image(reference).await {
        Ok(image) => {
            core.pool.set_runtime(&row.id, Base { reference: reference.to_owned(), image, network });
            if before.is_some() {
                core.pool.drain_where(|info| info.worker.runtime == row.id && !info.current);
            }
            None
        }
        Err(
            error @ (orchestrator::Error::ImageNotFound { .. } | orchestrator::Error::NotARuntime { .. }),
        ) => {
            core.pool.set_unusable(&row.id, &format!("The runtime cannot be used: {error}."));
            Some(format!("{mine}{error}"))
        }
        Err(error) => {
            tracing::error!(runtime.id = %row.id, error = %Chain(&error), "the image of a runtime cannot be looked up");
            return;
        }
    };
    if known == reason.as_deref() {
        return;
    }
    match &reason {
        Some(why) => tracing::error!(runtime.id = %row.id, why, "a runtime cannot be used"),
        None => tracing::info!(runtime.id = %row.id, "a runtime can be used again"),
    }
    let (db, status) = (core.db.writer(), row.status);
    let from = [status];
    let noting = db::runtimes::set_status(&db, &row.id, &from, status, reason.as_deref());
    if let Err(error) = around(Write::RuntimeStatus, noting).await {
        tracing::warn!(runtime.id = %row.id, error = %Chain(&error), "a runtime's reason could not be written");
    }
}

/// What a runtime says of its network, while one that it is to have is tried out.
pub(super) fn active_network(row: &runtime::Model) -> NetworkAccess {
    match row.status {
        RuntimeStatus::Upgrading => row.active_network.unwrap_or(row.network),
        _ => row.network,
    }
}

/// What workers of a runtime that says so are connected to.
pub(super) fn connect(core: &Core, network: NetworkAccess) -> Network {
    match network {
        NetworkAccess::Default => core.network,
        NetworkAccess::None => Network::None,
    }
}

async fn delete(core: &Core, row: &runtime::Model) -> Result<()> {
    core.pool.remove_runtime(&row.id);
    if core.pool.list().iter().any(|info| info.worker.runtime == row.id) {
        // Looked at again when one of them is gone.
        return Ok(());
    }
    match around(Write::RuntimeRemove, db::runtimes::delete(&core.db.writer(), &row.id)).await {
        Ok(_) => {
            tracing::info!(runtime.id = %row.id, "a runtime was deleted");
            Ok(())
        }
        // A function was made for it in the moment of its deletion.
        Err(error @ db::Error::Referenced(_)) => {
            tracing::warn!(runtime.id = %row.id, error = %Chain(&error), "a runtime that is deleted is in use");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Tries out a runtime's image, in a task of its own and one at a time.
fn probe_once(core: &Arc<Core>, probing: &Probing, row: &runtime::Model) {
    if !probing.lock().expect("no panic while it is held").insert(row.id.clone()) {
        return;
    }
    let (core, probing, row) = (core.clone(), probing.clone(), row.clone());
    core.clone().tasks.spawn(async move {
        let probed = tokio::select! {
            probed = probe(&core, &row) => probed,
            () = core.letting_go.cancelled() => return,
        };
        if let Err(error) = conclude(&core, &row, probed).await {
            tracing::warn!(runtime.id = %row.id, error = %Chain(&error), "a runtime's status could not be written");
        }
        probing.lock().expect("no panic while it is held").remove(&row.id);
        core.reaper.notify_one();
    });
}

/// What came of trying an image: a sentence for the administrator where it failed, nothing where
/// that is not the image's fault.
type Probed = Result<Base, Option<String>>;

async fn probe(core: &Arc<Core>, row: &runtime::Model) -> Probed {
    let image = match core.orchestrator.inspect_image(&row.image).await {
        Ok(image) => image,
        Err(
            error @ (orchestrator::Error::ImageNotFound { .. } | orchestrator::Error::NotARuntime { .. }),
        ) => return Err(Some(format!("{error}"))),
        Err(error) => {
            tracing::warn!(runtime.id = %row.id, error = %Chain(&error), "an image cannot be inspected yet");
            sleep(Duration::from_secs(1)).await;
            return Err(None);
        }
    };
    let base = Base { reference: row.image.clone(), image, network: connect(core, row.network) };
    let give_up = Instant::now() + core.start_timeout * 2;
    let outcome = loop {
        match core.pool.probe(&row.id, &base) {
            Some(outcome) => break outcome,
            // It is made where that is possible.
            None if Instant::now() < give_up => sleep(Duration::from_millis(100)).await,
            None => return Err(Some("There is no room for a worker.".to_owned())),
        }
    };
    match outcome.await {
        Ok(Ok(())) => Ok(base),
        Ok(Err(why)) => Err(Some(why)),
        Err(_) => Err(None),
    }
}

async fn conclude(core: &Core, row: &runtime::Model, probed: Probed) -> Result<(), Error> {
    let db = core.db.writer();
    match (probed, &row.active_image) {
        (Ok(base), _) => {
            let taking = db::runtimes::activate(&db, &row.id, row.status, &row.image, row.network, None);
            if around(Write::RuntimeStatus, taking).await? {
                tracing::info!(runtime.id = %row.id, image = row.image, "a runtime is available");
                core.pool.set_runtime(&row.id, base);
                core.pool.drain_where(|info| info.worker.runtime == row.id && !info.current);
            }
        }
        (Err(None), _) => {}
        (Err(Some(why)), Some(previous)) if row.status == RuntimeStatus::Upgrading => {
            tracing::warn!(runtime.id = %row.id, why, "a runtime keeps its image: the new one does not work");
            let what = match (&row.image == previous, active_network(row) == row.network) {
                (true, false) => "The network".to_owned(),
                _ => format!("Image {}", row.image),
            };
            let reason = format!("{what} was not taken: {why}");
            let network = active_network(row);
            let keeping = db::runtimes::activate(&db, &row.id, row.status, previous, network, Some(&reason));
            around(Write::RuntimeStatus, keeping).await?;
            ensure_image(core, row, previous).await;
        }
        (Err(Some(why)), _) => {
            tracing::warn!(runtime.id = %row.id, why, "a runtime does not work");
            let to = RuntimeStatus::Error;
            let from = [row.status];
            let failing = db::runtimes::set_status(&db, &row.id, &from, to, Some(&why));
            around(Write::RuntimeStatus, failing).await?;
        }
    }
    Ok(())
}
