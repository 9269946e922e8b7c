//! Which workers exist and who holds them. Gives out leases; does no I/O.
//!
//! Everything is under one lock, so that two calls never see the same slot free. What follows from a
//! change (a container to start, a caller to wake) is collected under the lock and done after it:
//! a lease that nobody takes any more gives its slot back, which needs the lock again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};

use super::gateway::PoolStatus;
use super::place::{View, WorkerId};
use super::worker::{FunctionKey, Worker, WorkerState};
use crate::model::{FunctionId, RuntimeId, Start, WorkerName};
use crate::orchestrator::{Network, RuntimeImage};

mod book;
mod queue;
mod runtimes;
#[cfg(test)]
mod tests;

use book::{Acquired, Book};

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Executions that one worker runs at once.
    pub slots: u32,
    pub max_workers: usize,
    /// Most calls that wait.
    pub max_queue: usize,
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("Too many executions wait for a worker.")]
    Full,
    #[error("no worker became free in time")]
    TimedOut,
    /// The worker that was to run the call could not be made; the sentence is for the user.
    #[error("{0}")]
    Preparation(String),
    /// The package that the call was to run is gone: the function has another by now, or is gone.
    #[error("The package is missing.")]
    Missing,
    #[error("The engine is shutting down.")]
    Closed,
}

/// What the workers of a runtime are started from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// How the administrator names the image.
    pub reference: String,
    /// What that was when it was looked up.
    pub image: RuntimeImage,
    /// Of workers whose function does not do without.
    pub network: Network,
}

/// A worker to be started by whoever owns the tasks.
#[derive(Debug)]
pub struct Spawn {
    pub id: WorkerId,
    pub worker: Arc<Worker>,
    pub image: RuntimeImage,
    pub orders: mpsc::UnboundedReceiver<Order>,
}

/// What the task of a worker is told; at most one of each in its life.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    Specialize(Arc<FunctionKey>),
    Stop,
}

/// Which step of making a worker failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The container or its supervisor: the next start of this runtime may fail too.
    Start,
    /// The container ended while it started, be it that somebody ended it: those who wait get another,
    /// after the same pause and not for ever.
    Ended,
    /// The package could not be fetched or unpacked.
    Load,
    /// There is no such package.
    Missing,
    /// The worker ended before it had the package, or an engine that ended had begun to give it one. It
    /// may have been so for a while, so those who wait get another; but not for ever.
    Died,
    /// The supervisor refused the package: it will do so again.
    Refused,
}

/// A worker as others may see it.
#[derive(Debug, Clone)]
pub struct Info {
    pub id: WorkerId,
    pub worker: Arc<Worker>,
    pub state: WorkerState,
    pub last_used: Instant,
    pub current: bool,
}

/// What follows from a change, done once the lock is free.
#[derive(Debug)]
enum Effect {
    Spawn(Spawn),
    Answer(oneshot::Sender<Result<Lease, Error>>, Result<Granted, Error>),
    Nudge,
}

/// A slot that was taken.
#[derive(Debug)]
struct Granted {
    id: WorkerId,
    worker: Arc<Worker>,
    start: Start,
}

#[derive(Debug)]
pub struct Pool {
    book: Mutex<Book>,
    /// Unbounded, and holds no more than there may be workers.
    spawns: mpsc::UnboundedSender<Spawn>,
    reaper: Arc<Notify>,
}

/// The right to run one execution on one worker. Dropped, it gives the slot back.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    id: WorkerId,
    worker: Arc<Worker>,
    start: Start,
}

impl Lease {
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    pub fn start(&self) -> Start {
        self.start
    }

    /// Says that the worker does not answer as it should: it gets nothing new and is removed now.
    pub fn lost(&self) {
        self.pool.kill(self.id);
    }

    /// Says that the worker should take nothing new, and end what it runs.
    pub fn drain(&self) {
        self.pool.drain(self.id);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.release(self.id);
    }
}

impl Pool {
    /// What it wants started goes to `spawns`; `reaper` is told when pools may want refilling.
    pub fn new(limits: Limits, spawns: mpsc::UnboundedSender<Spawn>, reaper: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { book: Mutex::new(Book::new(limits)), spawns, reaper })
    }

    /// A slot of a worker that holds the function: at once where there is one, else after a wait
    /// until `deadline`. Dropped early it leaves the queue.
    pub async fn lease(
        self: &Arc<Self>,
        function: &Arc<FunctionKey>,
        runtime: &RuntimeId,
        deadline: tokio::time::Instant,
    ) -> Result<Lease, Error> {
        let acquired = self.change(|book, effects| book.acquire(function, runtime, now(), effects))?;
        let (ticket, mut answer) = match acquired {
            Acquired::Now(granted) => return Ok(self.granted(granted)),
            Acquired::Wait(ticket, answer) => (ticket, answer),
        };
        let waiting = Waiting { pool: self, function, ticket };
        let answered = tokio::time::timeout_at(deadline, &mut answer).await;
        match answered {
            Ok(Ok(lease)) => lease,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => {
                drop(waiting);
                // It may have come in the very moment.
                answer.try_recv().unwrap_or(Err(Error::TimedOut))
            }
        }
    }

    /// Says what the workers of a runtime are started from, from now on.
    pub fn set_runtime(self: &Arc<Self>, runtime: &RuntimeId, base: Base) {
        self.change(|book, effects| book.set_runtime(runtime, base, now(), effects));
    }

    /// Says that no worker of a runtime can be started: calls that need one are told `why`, until
    /// there is an image again.
    pub fn set_unusable(self: &Arc<Self>, runtime: &RuntimeId, why: &str) {
        self.change(|book, effects| book.set_unusable(runtime, why, effects));
    }

    /// Forgets the image of a runtime if it is this one, so that the reaper looks for it anew.
    pub fn image_is_gone(self: &Arc<Self>, runtime: &RuntimeId, image_id: &str) {
        self.change(|book, effects| book.image_is_gone(runtime, image_id, effects));
    }

    /// Drains a runtime's workers and refuses calls for it.
    pub fn remove_runtime(self: &Arc<Self>, runtime: &RuntimeId) {
        self.change(|book, effects| book.remove_runtime(runtime, effects));
    }

    pub fn base(&self, runtime: &RuntimeId) -> Option<Base> {
        self.lock().base(runtime)
    }

    /// Starts unbound workers until the runtime has `wanted`, as far as there is room.
    pub fn prewarm(self: &Arc<Self>, runtime: &RuntimeId, wanted: usize) {
        self.change(|book, effects| book.prewarm(runtime, wanted, now(), effects));
    }

    /// Starts a worker from what may not be its runtime's yet and tells how that went. `None`
    /// where there is no room; some is then made.
    pub fn probe(
        self: &Arc<Self>,
        runtime: &RuntimeId,
        base: &Base,
    ) -> Option<oneshot::Receiver<Result<(), String>>> {
        self.change(|book, effects| book.probe(runtime, base, now(), effects))
    }

    /// Takes a worker that lives already; one lease for each execution that it runs.
    ///
    /// `None` where its state or its index does not fit what is known.
    pub fn adopt(
        self: &Arc<Self>,
        worker: Arc<Worker>,
        function: Option<FunctionKey>,
        in_flight: u32,
    ) -> Option<Adopted> {
        let (id, orders) = self.change(|book, _| book.adopt(&worker, function, in_flight, now()))?;
        let lease = || Lease { pool: self.clone(), id, worker: worker.clone(), start: Start::Warm };
        let leases = (0..in_flight).map(|_| lease()).collect();
        Some(Adopted { id, leases, orders })
    }

    /// The container is up and its supervisor answers.
    pub fn ready(self: &Arc<Self>, id: WorkerId) {
        self.change(|book, effects| book.ready(id, now(), effects));
    }

    /// The package is in.
    pub fn loaded(self: &Arc<Self>, id: WorkerId) {
        self.change(|book, effects| book.loaded(id, now(), effects));
    }

    /// The worker could not be made: the calls that waited for it are told `why`.
    pub fn failed(self: &Arc<Self>, id: WorkerId, step: Step, why: &str) {
        self.change(|book, effects| book.failed(id, step, why, now(), effects));
    }

    /// The container is gone.
    pub fn gone(self: &Arc<Self>, id: WorkerId) {
        self.change(|book, effects| book.gone(id, now(), effects));
    }

    pub fn drain(self: &Arc<Self>, id: WorkerId) {
        self.change(|book, effects| book.drain_where(|info| info.id == id, usize::MAX, now(), effects));
    }

    /// Removes a worker now, whatever runs on it.
    pub fn kill(self: &Arc<Self>, id: WorkerId) {
        self.change(|book, effects| book.kill(id, now(), effects));
    }

    /// Drains the workers for which `which` holds and returns how many.
    pub fn drain_where(self: &Arc<Self>, which: impl Fn(&Info) -> bool) -> usize {
        self.change(|book, effects| book.drain_where(which, usize::MAX, now(), effects))
    }

    /// Binds `count` more workers, as far as there is room.
    pub fn scale_up(self: &Arc<Self>, function: &Arc<FunctionKey>, runtime: &RuntimeId, count: u32) {
        self.change(|book, effects| book.scale_up(function, runtime, count, now(), effects));
    }

    /// Drains up to `count` workers of a function's version, idle ones first, and leaves one.
    pub fn scale_down(self: &Arc<Self>, function: &FunctionId, version: i32, count: u32) {
        self.change(|book, effects| book.scale_down(function, version, count, now(), effects));
    }

    /// Drains every worker of a function's version.
    pub fn release_function(self: &Arc<Self>, function: &FunctionId, version: i32) -> usize {
        self.drain_where(|info| is_of(info, function, version))
    }

    /// The workers bound to a function's version, by name.
    pub fn workers_of(&self, function: &FunctionId, version: i32) -> Vec<WorkerName> {
        let bound = self.list().into_iter();
        let bound = bound.filter(|info| is_of(info, function, version) && !info.state.is_draining());
        let mut names: Vec<WorkerName> = bound.map(|info| info.worker.name.clone()).collect();
        names.sort();
        names
    }

    pub fn status(&self, runtime: &RuntimeId) -> Option<PoolStatus> {
        self.lock().status(runtime)
    }

    pub fn list(&self) -> Vec<Info> {
        self.lock().list()
    }

    /// Workers by runtime and state, for metrics.
    pub fn count(&self) -> HashMap<(RuntimeId, &'static str), usize> {
        let mut counts = HashMap::new();
        for info in self.list() {
            *counts.entry((info.worker.runtime.clone(), info.state.name())).or_default() += 1;
        }
        counts
    }

    /// Calls that wait for a worker.
    pub fn waiting(&self) -> usize {
        self.lock().waiting()
    }

    /// Looks again at who waits: a pause after a failure may be over, a wait have become long.
    pub fn tick(self: &Arc<Self>) {
        self.change(|book, effects| book.tick(now(), effects));
    }

    /// Refuses new calls and those that wait. What holds a lease goes on.
    pub fn close(self: &Arc<Self>) {
        self.change(|book, effects| book.close(effects));
    }

    fn release(self: &Arc<Self>, id: WorkerId) {
        self.change(|book, effects| book.release(id, now(), effects));
    }

    fn granted(self: &Arc<Self>, granted: Granted) -> Lease {
        let Granted { id, worker, start } = granted;
        Lease { pool: self.clone(), id, worker, start }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no panic while it is held")
    }

    fn change<R>(self: &Arc<Self>, change: impl FnOnce(&mut Book, &mut Vec<Effect>) -> R) -> R {
        let mut effects = Vec::new();
        let result = change(&mut self.lock(), &mut effects);
        for effect in effects {
            match effect {
                Effect::Spawn(spawn) => {
                    let id = spawn.id;
                    if self.spawns.send(spawn).is_err() {
                        // Whoever starts workers has ended: nothing of it exists.
                        self.gone(id);
                    }
                }
                // Refused where the caller went away; a lease then gives its slot back.
                Effect::Answer(caller, answer) => {
                    drop(caller.send(answer.map(|granted| self.granted(granted))));
                }
                Effect::Nudge => self.reaper.notify_one(),
            }
        }
        result
    }
}

/// A worker that was adopted.
#[derive(Debug)]
pub struct Adopted {
    pub id: WorkerId,
    pub leases: Vec<Lease>,
    pub orders: mpsc::UnboundedReceiver<Order>,
}

/// A place in the queue; given up when dropped.
struct Waiting<'a> {
    pool: &'a Arc<Pool>,
    function: &'a Arc<FunctionKey>,
    ticket: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.change(|book, _| book.leave(self.function, self.ticket));
    }
}

fn is_of(info: &Info, function: &FunctionId, version: i32) -> bool {
    info.state.function().is_some_and(|key| key.function == *function && key.version == version)
}

fn now() -> Instant {
    Instant::now()
}

/// Workers that may die under one function before its calls are told.
const DEATHS: u32 = 3;
/// How long a package that was refused is refused without another try.
const REFUSAL: Duration = Duration::from_secs(10);
/// A wait longer than this is relieved by draining a busy worker of whoever has most.
const PATIENCE: Duration = Duration::from_secs(1);
