//! The task that owns a worker's container: starts it, loads its package, stops it.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use protocol::worker::{LAST_WORDS, RefusalKind, State};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::io::ReaderStream;
use tracing::Instrument;

use super::place::WorkerId;
use super::pool::{Order, Spawn, Step};
use super::supervisor::{self, Supervisor};
use super::worker::{FunctionKey, Worker};
use super::{Core, code};

use crate::openstack;
use crate::orchestrator::{self, RuntimeImage, SlotLimits, WorkerSpec};
use crate::telemetry::Chain;

/// How long a package may take to reach the worker and be unpacked there.
const LOADING: Duration = Duration::from_secs(60);
/// How long an outcome that is stored is kept by a worker that gets nothing to do.
const SETTLING: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(5);
/// How long a worker that starts has its turn. Past that it waits for something, and keeps others waiting.
const TURN: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Starts what the pool wants started, until the pool is gone or the engine lets go.
pub(super) async fn keep_all(core: Arc<Core>, mut spawns: mpsc::UnboundedReceiver<Spawn>) {
    loop {
        let spawn = tokio::select! {
            () = core.letting_go.cancelled() => return,
            spawn = spawns.recv() => spawn,
        };
        let Some(spawn) = spawn else { return };
        let span = span(&spawn.worker);
        core.tasks.spawn(create(core.clone(), spawn).instrument(span));
    }
}

/// Takes over the container of a worker that was adopted.
pub(super) fn keep_adopted(
    core: &Arc<Core>,
    id: WorkerId,
    worker: &Arc<Worker>,
    orders: mpsc::UnboundedReceiver<Order>,
) {
    let keeper = Keeper { core: core.clone(), id, worker: worker.clone(), orders };
    core.tasks.spawn(keeper.serve().instrument(span(worker)));
}

fn span(worker: &Worker) -> tracing::Span {
    tracing::info_span!("worker", worker.id = %worker.name, runtime.id = %worker.runtime)
}

async fn create(core: Arc<Core>, spawn: Spawn) {
    let Spawn { id, worker, image, orders } = spawn;
    let mut keeper = Keeper { core: core.clone(), id, worker, orders };
    // Starts that share the processors end together and late, and slow down the calls that run.
    let turn = tokio::select! {
        biased;
        () = core.letting_go.cancelled() => return,
        // Before there is a container there is one order: not to make it.
        _ = keeper.orders.recv() => return keeper.stop().await,
        turn = core.starts.acquire() => turn,
    };
    let began = Instant::now();
    match within_turn(turn, keeper.start(&image)).await {
        Ok(()) => {
            tracing::debug!(milliseconds = began.elapsed().as_millis(), "a worker is ready");
            keeper.core.pool.ready(id);
            keeper.serve().await;
        }
        Err((step, why)) => {
            keeper.core.pool.failed(id, step, &why);
            keeper.stop().await;
        }
    }
}

async fn within_turn<T>(turn: impl Sized, starting: impl Future<Output = T>) -> T {
    let mut starting = pin!(starting);
    if let Ok(started) = timeout(TURN, starting.as_mut()).await {
        return started;
    }
    drop(turn);
    starting.await
}

struct Keeper {
    core: Arc<Core>,
    id: WorkerId,
    worker: Arc<Worker>,
    orders: mpsc::UnboundedReceiver<Order>,
}

impl Keeper {
    /// Starts the container and waits for its supervisor; else a sentence for the user.
    async fn start(&mut self, image: &RuntimeImage) -> Result<(), (Step, String)> {
        let core = &self.core;
        let spec = WorkerSpec {
            name: self.worker.name.clone(),
            index: self.worker.index,
            runtime: self.worker.runtime.clone(),
            image_id: image.id.clone(),
            shim: image.shim.clone(),
            slots: core.engine.function_concurrency,
            network: self.worker.network,
            limits: SlotLimits {
                max_processes: core.engine.max_processes,
                max_executions_per_slot: core.engine.max_executions_per_slot,
                memory_mark: core.engine.memory_mark,
            },
        };
        let started = core.orchestrator.start(&spec).await.map_err(|error| {
            tracing::warn!(error = %Chain(&error), "a worker could not be started");
            if matches!(error, orchestrator::Error::ImageNotFound { .. }) {
                // Looked up by its name again, where it may be another image by now.
                core.pool.image_is_gone(&self.worker.runtime, &image.id);
            }
            (Step::Start, format!("The worker could not be started: {error}."))
        })?;
        let last_words = started.socket.with_file_name(LAST_WORDS);
        let supervisor = Supervisor::new(started.socket);
        let ready = tokio::select! {
            ready = supervisor.wait_ready(Instant::now() + core.start_timeout) => ready,
            () = core.orchestrator.ended(&self.worker.name) => {
                let why = read_last_words(&last_words);
                tracing::warn!(why, "a worker's container ended while it started");
                let why = if why.is_empty() { why } else { format!(": {why}") };
                return Err((Step::Ended, format!("The worker ended while it started{why}.")));
            }
        };
        let state = ready.map_err(|error| {
            tracing::warn!(error = %Chain(&error), "a worker's supervisor does not answer");
            (Step::Start, format!("The worker did not become ready: {error}."))
        })?;
        check(&self.worker, &state, core.engine.function_concurrency).map_err(|why| (Step::Start, why))?;
        self.worker.connect(supervisor);
        Ok(())
    }

    /// Does what it is told until the worker ends. Returns early where the engine lets go, and leaves
    /// the container running.
    async fn serve(mut self) {
        let letting_go = self.core.letting_go.clone();
        let mut settling = interval(SETTLING);
        loop {
            tokio::select! {
                () = letting_go.cancelled() => {
                    self.settle().await;
                    return;
                }
                order = self.orders.recv() => match order {
                    Some(Order::Specialize(function)) => self.specialize(&function).await,
                    Some(Order::Stop) => {
                        self.stop().await;
                        return;
                    }
                    None => return,
                },
                _ = settling.tick() => self.settle().await,
            }
        }
    }

    async fn specialize(&mut self, function: &Arc<FunctionKey>) {
        let loading = async {
            let opened = openstack::on_our_own(code::open(&self.core, function)).await;
            let content = opened.map_err(|error| match error {
                code::Error::Replaced => (Step::Missing, "The package is missing.".to_owned()),
                code::Error::Refused(why) => (Step::Refused, why),
                code::Error::Failed(why) => (Step::Load, why),
            })?;
            let supervisor = self.worker.supervisor().ok_or((Step::Load, String::new()))?;
            let load = function.load(self.core.archive);
            let loaded = supervisor.load(&load, ReaderStream::new(content.reader), Instant::now() + LOADING);
            loaded.await.map_err(|error| match error {
                supervisor::Error::Refused(refusal) if refusal.kind == RefusalKind::BadPackage => {
                    (Step::Refused, format!("The package is not acceptable: {}.", refusal.reason))
                }
                error => {
                    tracing::warn!(error = %Chain(&error), "a package could not be loaded");
                    let died = match &error {
                        supervisor::Error::Gone(_) => true,
                        // Adopted from an engine that ended while it loaded it.
                        supervisor::Error::Refused(refusal) => refusal.kind == RefusalKind::Loaded,
                        _ => false,
                    };
                    let step = if died { Step::Died } else { Step::Load };
                    (step, format!("The package could not be loaded: {error}."))
                }
            })
        };
        let loaded = tokio::select! {
            loaded = loading => loaded,
            // Half of a load leaves a worker that nobody may use, and nobody is to: stop it.
            _ = self.orders.recv() => {
                self.core.pool.failed(self.id, Step::Load, "The worker was removed.");
                self.orders.close();
                return self.stop_later();
            }
        };
        match loaded {
            Ok(()) => self.core.pool.loaded(self.id),
            Err((step, why)) => self.core.pool.failed(self.id, step, &why),
        }
    }

    /// The order to stop came in the middle of another: does it at the next turn.
    fn stop_later(&mut self) {
        let (sender, orders) = mpsc::unbounded_channel();
        self.orders = orders;
        let _ = sender.send(Order::Stop);
    }

    /// Has the supervisor forget what is stored.
    async fn settle(&self) {
        let settled = self.worker.take_settled();
        let Some(supervisor) = self.worker.supervisor() else { return };
        if !settled.is_empty()
            && let Err(error) = supervisor.acknowledge(settled.clone(), Instant::now() + ANSWER).await
        {
            tracing::debug!(error = %Chain(&error), "outcomes could not be acknowledged yet");
            self.worker.settle(settled);
        }
    }

    /// Removes the container, however often that has to be tried: until then its user ids and its
    /// place are taken.
    async fn stop(&self) {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.core.orchestrator.stop(&self.worker.name).await {
            tracing::warn!(error = %Chain(&error), "a worker could not be removed; trying again");
            tokio::select! {
                () = self.core.letting_go.cancelled() => return,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        tracing::debug!("a worker is gone");
        self.core.pool.gone(self.id);
    }
}

/// Why a supervisor ended before it listened, where it could say so.
fn read_last_words(path: &Path) -> String {
    let mut text = Vec::new();
    // The directory is the container's as well: a link in it would lead to a file of the host's.
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    if let Ok(file) = opened {
        // Half a text is better than none.
        let _ = file.take(2000).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// A supervisor that is not what this engine made cannot be used.
pub(super) fn check(worker: &Worker, state: &State, slots: u32) -> Result<(), String> {
    if state.worker != worker.name.as_str() {
        return Err(format!("The worker calls itself {}.", state.worker));
    }
    if state.slots != slots {
        return Err(format!("The worker has {} slots and should have {slots}.", state.slots));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_that_waits_for_something_leaves_its_turn_to_the_next() {
        let turns = Semaphore::new(1);
        let mut slow = pin!(within_turn(turns.acquire().await, sleep(TURN * 3)));
        assert!(timeout(TURN / 2, slow.as_mut()).await.is_err());
        assert_eq!(turns.available_permits(), 0);
        assert!(timeout(TURN, slow.as_mut()).await.is_err());
        assert_eq!(turns.available_permits(), 1);
        slow.await;
        within_turn(turns.acquire().await, sleep(TURN / 2)).await;
        assert_eq!(turns.available_permits(), 1);
    }
}
