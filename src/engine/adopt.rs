//! Takes up what an engine that died on this machine left: its workers, and the executions that it
//! was running.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::worker::{Attempt, State};
use tokio::time::Instant;

use super::ending::outcome_of;
use super::pool::Lease;
use super::reap::{active_network, connect};
use super::run::{OVERDUE, cancel, finish, put_back};
use super::supervisor::Supervisor;
use super::worker::{FunctionKey, Worker};
use super::{Core, images, keeper, presence};
use crate::crash_points::{Write, around};
use crate::db;
use crate::error::Result;
use crate::model::{EngineId, Start, Timestamp, WorkerName, execution, runtime};
use crate::orchestrator::{self, Network, ObservedRun, ObservedWorker};
use crate::telemetry::Chain;

/// How long a supervisor may take over what it answers at once.
const ANSWER: Duration = Duration::from_secs(5);
/// Longer than any function may run.
const LONGEST: Duration = Duration::from_secs(3600);

/// A worker that was adopted, with what it had not been told is stored.
#[derive(Debug)]
pub(super) struct Adopted {
    worker: Arc<Worker>,
    /// Attempts that run, and the slots they hold.
    running: HashMap<Attempt, Lease>,
    ended: Vec<Attempt>,
}

/// Adopts live workers of these runtimes and removes all others.
pub(super) async fn adopt(
    core: &Arc<Core>,
    runtimes: &[runtime::Model],
) -> Result<HashMap<WorkerName, Adopted>, orchestrator::Error> {
    let mut adopted = HashMap::new();
    for observed in core.orchestrator.list().await? {
        let name = observed.name.clone();
        match one(core, observed, runtimes).await {
            Ok(worker) => {
                tracing::info!(worker.id = %name, "a worker was adopted");
                adopted.insert(name, worker);
            }
            Err(why) => {
                tracing::info!(worker.id = %name, why, "a worker cannot be adopted and is removed");
                // The reaper tries again.
                if let Err(error) = core.orchestrator.stop(&name).await {
                    tracing::warn!(worker.id = %name, error = %Chain(&error), "it could not be removed");
                }
            }
        }
    }
    Ok(adopted)
}

async fn one(
    core: &Arc<Core>,
    observed: ObservedWorker,
    runtimes: &[runtime::Model],
) -> Result<Adopted, String> {
    if !observed.running {
        return Err("its container has ended".to_owned());
    }
    let supervisor = Supervisor::new(observed.socket);
    let state = supervisor.state(Instant::now() + ANSWER).await.map_err(|error| Chain(&error).to_string())?;
    let row = runtimes.iter().find(|row| row.id == observed.runtime).ok_or("its runtime was removed")?;
    let offline = state.loaded.as_ref().is_some_and(|loaded| loaded.offline);
    let network = if offline { Network::None } else { connect(core, active_network(row)) };
    if observed.network != Some(network) {
        return Err("it is not connected as workers are now".to_owned());
    }
    let worker = Worker::new(observed.name, observed.index, observed.runtime, observed.image_id, network);
    keeper::check(&worker, &state, core.engine.function_concurrency)?;
    worker.connect(supervisor);
    let worker = Arc::new(worker);
    let State { loaded, running, ended, .. } = state;
    let in_flight = u32::try_from(running.len()).unwrap_or(u32::MAX);
    let function = loaded.as_ref().map(FunctionKey::from);
    let taken = core.pool.adopt(worker.clone(), function, in_flight);
    let taken = taken.ok_or("it does not fit in with the others")?;
    keeper::keep_adopted(core, taken.id, &worker, taken.orders);
    Ok(Adopted { worker, running: running.into_iter().zip(taken.leases).collect(), ended })
}

/// Takes over what dead engines of this machine were running, by what the adopted workers know and by the
/// containers that they `left`. Those that are nobody's by then are the reaper's.
pub(super) async fn take_over(
    core: &Arc<Core>,
    dead: &[EngineId],
    mut adopted: HashMap<WorkerName, Adopted>,
    mut left: Vec<ObservedRun>,
) -> Result<()> {
    if !dead.is_empty() {
        for row in db::executions::list_running_of(core.db.reader(), dead).await? {
            let at = left.iter().position(|run| run.name.execution == row.id);
            let left = at.map(|at| left.swap_remove(at));
            one_execution(core, row, &mut adopted, left).await?;
        }
        for engine in dead {
            around(Write::EngineRemove, db::engines::remove(&core.db.writer(), engine)).await?;
        }
    }
    for Adopted { worker, running, ended } in adopted.into_values() {
        // Stored long ago, or by nobody's wish: the rows that wanted one were served above.
        worker.settle(ended);
        for (attempt, lease) in running {
            core.tasks.spawn(abandon(core.clone(), attempt, lease));
        }
    }
    Ok(())
}

async fn one_execution(
    core: &Arc<Core>,
    row: execution::Model,
    adopted: &mut HashMap<WorkerName, Adopted>,
    left: Option<ObservedRun>,
) -> Result<()> {
    // Its time may have passed while no engine was there; how it ended is still to be asked.
    let deadline = row.deadline_at.unwrap_or(Timestamp(0)).max(Timestamp::now().after(OVERDUE));
    let writer = core.db.writer();
    let taking = db::executions::take_over(&writer, &row.id, row.epoch, &core.id, deadline);
    let taken = around(Write::TakeOver, taking).await?;
    let Some(epoch) = taken else { return Ok(()) };
    if let Some(left) = left
        && !row.sync
    {
        tracing::info!(execution.id = %row.id, "a container that was running is taken over");
        images::collect(core, left, row, epoch);
        return Ok(());
    }
    let worker = row.worker.as_ref().and_then(|name| adopted.get_mut(name));
    let (false, Some(worker)) = (row.sync, worker) else {
        tracing::info!(execution.id = %row.id, sync = row.sync, "an execution was left behind and ends");
        finish(core, &row.id, epoch, presence::left_behind(row.sync)).await;
        return Ok(());
    };
    match attempt_of(worker, &row, epoch).await {
        Ok(Some(attempt)) => {
            tracing::info!(execution.id = %row.id, "an execution that was running is taken over");
            worker.ended.retain(|other| *other != attempt);
            let lease = worker.running.remove(&attempt);
            let collect = collect(core.clone(), worker.worker.clone(), attempt, lease, row, epoch);
            core.tasks.spawn(collect);
        }
        Ok(None) => {
            tracing::info!(execution.id = %row.id, "an execution that never started is pending again");
            put_back(core, &row, epoch).await;
        }
        Err(error) => {
            tracing::warn!(execution.id = %row.id, error = %Chain(&error), "a worker does not say what it ran");
            finish(core, &row.id, epoch, presence::left_behind(false)).await;
        }
    }
    Ok(())
}

/// The attempt to run an execution that its worker knows. The fence comes first, so that no earlier
/// one that is still on its way starts after the answer was no.
async fn attempt_of(
    adopted: &Adopted,
    row: &execution::Model,
    epoch: i64,
) -> Result<Option<Attempt>, super::supervisor::Error> {
    let supervisor = adopted.worker.supervisor().expect("it was connected when it was adopted");
    let fence = Attempt { execution: row.id.to_string(), epoch };
    supervisor.fence(&fence, Instant::now() + ANSWER).await?;
    let state = supervisor.state(Instant::now() + ANSWER).await?;
    // Under any epoch: an engine that took over before may have died before it had the outcome.
    let known = state.running.into_iter().chain(state.ended);
    Ok(known.filter(|attempt| attempt.execution == row.id.as_str()).max())
}

/// Waits for the outcome of an attempt and records it under a later epoch.
async fn collect(
    core: Arc<Core>,
    worker: Arc<Worker>,
    attempt: Attempt,
    lease: Option<Lease>,
    row: execution::Model,
    epoch: i64,
) {
    let supervisor = worker.supervisor().expect("it was connected when it was adopted");
    let in_hand = core.cancels.take(&row.id);
    let outcome = tokio::select! {
        // The worker keeps it for the next engine.
        () = core.letting_go.cancelled() => return,
        outcome = supervisor.outcome(&attempt, Instant::now() + LONGEST) => outcome,
        never = cancel(supervisor, &attempt, &in_hand) => match never {},
    };
    let outcome = match outcome {
        // How long it may have run is not known any more; its worker kept the deadline.
        Ok(outcome) => outcome_of(outcome, Start::Warm, 0),
        Err(error) => {
            tracing::warn!(execution.id = %row.id, error = %Chain(&error), "a worker lost an outcome");
            if let Some(lease) = &lease {
                lease.lost();
            }
            presence::left_behind(false)
        }
    };
    drop(lease);
    if finish(&core, &row.id, epoch, outcome).await {
        worker.settle([attempt]);
    }
}

/// Ends an attempt whose execution has ended already, and frees its slot.
async fn abandon(core: Arc<Core>, attempt: Attempt, lease: Lease) {
    let worker = lease.worker().clone();
    let supervisor = worker.supervisor().expect("it was connected when it was adopted");
    if let Err(error) = supervisor.cancel(&attempt, Instant::now() + ANSWER).await {
        tracing::debug!(error = %Chain(&error), "an attempt ended before it could be cancelled");
    }
    let outcome = tokio::select! {
        () = core.letting_go.cancelled() => return,
        outcome = supervisor.outcome(&attempt, Instant::now() + LONGEST) => outcome,
    };
    match outcome {
        Ok(_) => worker.settle([attempt]),
        Err(error) => {
            tracing::warn!(worker.id = %worker.name, error = %Chain(&error), "a worker is lost");
            lease.lost();
        }
    }
}
