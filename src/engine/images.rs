//! Functions that are container images: looked for when they are created, and run in a container for each
//! execution.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::worker::Limit;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::Core;
use super::cancels::{InHand, cancelled};
use super::ending::{TOO_MUCH, bound_of, reason_of};
use super::gateway::NewExecution;
use super::recorder::Claim;
use super::run::{Claimed, OVERDUE, dismiss, finish, function_of, new_row};
use crate::config::{self, Config, Pull};
use crate::crash_points::{Write, around};
use crate::db;
use crate::error::{Error, Result};
use crate::model::{
    ExecutionStatus, FunctionStatus, Input, NetworkAccess, Outcome, Reason, Scope, Start, Timestamp, Usage,
    execution, function, microseconds,
};
use crate::orchestrator::{self, ImageName, Network, ObservedRun, RunEnd, RunName, RunSpec};
use crate::telemetry::Chain;

/// Between two looks at a function whose image is being looked for.
const LOOK: Duration = Duration::from_millis(100);
/// How long a container that was killed may take to end.
const KILLING: Duration = Duration::from_secs(10);

/// Images that are pulled at once.
const PULLS: usize = 2;

/// What such executions have in metrics in the place of a runtime.
const IMAGES: &str = "image";

/// What this engine does with images.
pub(super) struct Images {
    config: config::Images,
    /// One permit for each container.
    room: Semaphore,
    /// Executions that wait for one.
    waiting: AtomicUsize,
    /// Pulls at once: Docker and the network are shared by all.
    pulls: Semaphore,
    /// Which of the containers' user ids are taken.
    indexes: Mutex<HashSet<u32>>,
    /// Attempts whose container is this process's to remove.
    owned: Mutex<HashSet<RunName>>,
    /// Functions whose image is being looked for.
    looking: Mutex<HashSet<String>>,
}

impl Images {
    pub fn new(config: &Config) -> Self {
        Self {
            room: Semaphore::new(config.images.max_containers as usize),
            waiting: AtomicUsize::new(0),
            pulls: Semaphore::new(PULLS),
            indexes: Mutex::default(),
            config: config.images.clone(),
            owned: Mutex::default(),
            looking: Mutex::default(),
        }
    }

    /// The lowest number that no container has.
    fn take_index(&self) -> u32 {
        let mut taken = self.indexes.lock().expect("no panic while it is held");
        let free = (0..).find(|index| !taken.contains(index)).expect("they are not all taken");
        taken.insert(free);
        free
    }

    fn give_back(&self, index: u32) {
        self.indexes.lock().expect("no panic while it is held").remove(&index);
    }

    fn own(&self, name: &RunName) {
        self.owned.lock().expect("no panic while it is held").insert(name.clone());
    }

    fn disown(&self, name: &RunName) {
        self.owned.lock().expect("no panic while it is held").remove(name);
    }

    /// Attempts whose container runs.
    pub fn running(&self) -> Vec<RunName> {
        self.owned.lock().expect("no panic while it is held").iter().cloned().collect()
    }

    fn owns(&self, name: &RunName) -> bool {
        self.owned.lock().expect("no panic while it is held").contains(name)
    }
}

/// Room for a container, and the image that goes into it.
struct Ready<'a> {
    image: String,
    _room: SemaphorePermit<'a>,
}

/// Why an execution has not begun.
enum Unready {
    /// It will not.
    Never(Outcome),
    /// It may, later.
    Later(Outcome),
}

/// Runs a synchronous call and returns the finished row.
pub(super) async fn call(core: &Core, new: NewExecution) -> Result<execution::Model> {
    let function = &new.target.function;
    let name = RunName { execution: new.id.clone(), epoch: 1 };
    let mut row = new_row(&new, &core.engine);
    row.status = ExecutionStatus::Running;
    row.engine_id = Some(core.id.clone());
    row.epoch = name.epoch;
    let in_hand = core.cancels.take(&row.id);
    let accepted = Instant::now();
    let prepared = tokio::select! {
        prepared = prepare(core, function, Instant::now() + core.engine.queue_timeout) => prepared,
        () = in_hand.cancelled() => Err(Unready::Never(cancelled())),
    };
    let outcome = match prepared {
        Ok(ready) => {
            row.worker = Some(name.to_string().into());
            row.deadline_at = Some(Timestamp::now().after(timeout_of(function) + OVERDUE));
            core.recorder.begin(row.clone());
            let queued = accepted.elapsed();
            let ran = run(core, &name, function, row.input.as_deref(), &ready, &in_hand).await;
            // Nobody waits for it by then.
            let outcome = ran.ok_or_else(|| Error::Busy("The service is stopping.".to_owned()))?;
            after_waiting(outcome, queued)
        }
        Err(Unready::Never(outcome) | Unready::Later(outcome)) => outcome,
    };
    core.observe_end(&IMAGES.into(), &outcome);
    if !core.recorder.end(row.clone(), outcome.clone()).await? {
        // It is the row that counts, and others wrote it.
        let found = db::executions::find(core.db.reader(), &row.id, &Scope::All).await?;
        return found.ok_or_else(|| Error::not_found("Execution", &row.id));
    }
    Ok(row.ended(outcome))
}

/// Runs a pending row, if this engine is the one that gets it.
pub(super) async fn claimed(core: &Core, row: execution::Model, function: &function::Model) -> Claimed {
    let ready = match prepare(core, function, Instant::now() + core.engine.queue_timeout).await {
        Ok(ready) => ready,
        Err(Unready::Later(_)) => return Claimed::Later { turned_down: false },
        Err(Unready::Never(outcome)) => return dismiss(core, &row, outcome).await,
    };
    let name = RunName { execution: row.id.clone(), epoch: row.epoch + 1 };
    let claim = Claim {
        id: row.id.clone(),
        epoch_from: row.epoch,
        engine: core.id.clone(),
        worker: name.to_string().into(),
        deadline: Timestamp::now().after(timeout_of(function) + OVERDUE),
    };
    let in_hand = core.cancels.take(&row.id);
    match core.recorder.claim(claim).await {
        Ok(Some(_)) => {}
        Ok(None) => return Claimed::Done,
        Err(error) => {
            tracing::warn!(execution.id = %row.id, error = %Chain(&error), "an execution could not be claimed");
            return Claimed::Later { turned_down: false };
        }
    }
    let queued = Timestamp::now().since(row.created_at);
    let Some(outcome) = run(core, &name, function, row.input.as_deref(), &ready, &in_hand).await else {
        return Claimed::Done;
    };
    let outcome = after_waiting(outcome, queued);
    core.observe_end(&IMAGES.into(), &outcome);
    finish(core, &row.id, name.epoch, outcome).await;
    Claimed::Done
}

/// Waits until the function's image is known and here, and there is room for a container.
async fn prepare<'a>(
    core: &'a Core,
    function: &function::Model,
    deadline: Instant,
) -> Result<Ready<'a>, Unready> {
    let never = |why: &str| Unready::Never(Outcome::error(Reason::Preparation, why));
    let later = |why: &str| Unready::Later(Outcome::error(Reason::Preparation, why));
    let mut function = function.clone();
    while function.status == FunctionStatus::Creating {
        if Instant::now() + LOOK > deadline {
            return Err(later("The image of the function has not been found yet."));
        }
        sleep(LOOK).await;
        function = match function_of(core, &function.id).await {
            Ok(Some(function)) => function,
            Ok(None) => return Err(never("The function was removed.")),
            Err(error) => return Err(later(&error.to_string())),
        };
    }
    // The operator may have thought better of it since.
    check_allowed(core, &function).map_err(|why| never(&why))?;
    let Some(image) = function.image_digest else {
        return Err(never(function.status_reason.as_deref().unwrap_or("The function has no image.")));
    };
    match timeout_at(deadline, ensure_here(core, &image)).await {
        Ok(Ok(())) => {}
        Ok(Err(error @ orchestrator::Error::Unavailable(_))) => {
            return Err(later(&Chain(&error).to_string()));
        }
        Ok(Err(error)) => return Err(never(&Chain(&error).to_string())),
        Err(_) => return Err(later("The image of the function is still being pulled.")),
    }
    let no_room = |why: &str| Unready::Later(Outcome::error(Reason::NoCapacity, why));
    let most = core.engine.max_queue as usize;
    let waiting = Waiting::new(&core.images.waiting);
    if waiting.before >= most {
        return Err(no_room("Too many executions wait for a container already."));
    }
    match timeout_at(deadline, core.images.room.acquire()).await {
        Ok(Ok(room)) => Ok(Ready { image, _room: room }),
        Ok(Err(_)) | Err(_) => {
            Err(no_room("No container became free in time; [images] max_containers run at once."))
        }
    }
}

/// An execution that waits, counted until it is dropped.
struct Waiting<'a> {
    count: &'a AtomicUsize,
    before: usize,
}

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self { count, before: count.fetch_add(1, Ordering::SeqCst) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}

fn check_allowed(core: &Core, function: &function::Model) -> Result<ImageName, String> {
    let image = function.image().ok_or("The function names no image.")?;
    let name = ImageName::parse(&image)?;
    name.check_allowed(&core.images.config.allowed)?;
    Ok(name)
}

/// Another machine of the deployment may have found it, and an operator may have removed it.
async fn ensure_here(core: &Core, image: &str) -> Result<(), orchestrator::Error> {
    if core.orchestrator.find_image(image).await?.is_some() {
        return Ok(());
    }
    if core.images.config.pull == Pull::Never || !image.contains('@') {
        return Err(orchestrator::Error::ImageNotFound { reference: image.to_owned() });
    }
    pull(core, image).await
}

async fn pull(core: &Core, image: &str) -> Result<(), orchestrator::Error> {
    let limit = core.images.config.pull_timeout;
    let _turn = core.images.pulls.acquire().await;
    match tokio::time::timeout(limit, core.orchestrator.pull_image(image)).await {
        Ok(pulled) => pulled,
        Err(_) => Err(orchestrator::Error::NotPulled {
            reference: image.to_owned(),
            why: format!("it took longer than {} seconds", limit.as_secs()),
        }),
    }
}

/// Runs one container to its end, or to the function's, and removes it. `None` where this engine ends first.
async fn run(
    core: &Core,
    name: &RunName,
    function: &function::Model,
    input: Option<&str>,
    ready: &Ready<'_>,
    in_hand: &InHand<'_>,
) -> Option<Outcome> {
    let timeout = timeout_of(function);
    let index = core.images.take_index();
    let spec = RunSpec {
        name: name.clone(),
        index,
        image: ready.image.clone(),
        args: arguments(input),
        cpu_millis: u32::try_from(function.cpu).unwrap_or(0),
        memory_bytes: u64::try_from(function.memory_size).unwrap_or(0),
        max_processes: core.engine.max_processes,
        max_log_bytes: core.engine.max_log_bytes,
        tmp_bytes: core.images.config.tmp_bytes,
        read_only: core.images.config.read_only,
        network: match function.network {
            NetworkAccess::Default => core.network,
            NetworkAccess::None => Network::None,
        },
        deadline: Timestamp::now().after(timeout),
    };
    core.images.own(name);
    let asked = Instant::now();
    let outcome = match core.orchestrator.start_run(&spec).await {
        Ok(()) => tokio::select! {
            outcome = follow(core, name, Instant::now() + timeout, timeout, in_hand, Some(asked.elapsed())) => outcome,
            // It runs on, for the next engine, or is removed by whoever ends this one.
            () = core.letting_go.cancelled() => return None,
        },
        Err(error) => {
            tracing::warn!(execution.id = %name.execution, error = %Chain(&error), "a container did not start");
            Outcome::error(Reason::Preparation, &Chain(&error).to_string())
        }
    };
    remove(core, name, index).await;
    Some(outcome)
}

fn timeout_of(function: &function::Model) -> Duration {
    Duration::from_secs(u64::try_from(function.timeout).unwrap_or(0))
}

fn after_waiting(mut outcome: Outcome, queued: Duration) -> Outcome {
    outcome.usage.queued_us = microseconds(queued);
    outcome
}

/// Waits for the end of a container, which is killed at the deadline and when it is cancelled. `starting` is
/// how long it took to start, where that was here.
async fn follow(
    core: &Core,
    name: &RunName,
    deadline: Instant,
    timeout: Duration,
    in_hand: &InHand<'_>,
    starting: Option<Duration>,
) -> Outcome {
    let following = core.orchestrator.follow_run(name, core.engine.max_log_bytes);
    tokio::pin!(following);
    let why = tokio::select! {
        ended = &mut following => Ended::ByItself(ended),
        () = sleep_until(deadline) => Ended::Killed(Reason::Timeout),
        () = in_hand.cancelled() => Ended::Killed(Reason::Cancelled),
    };
    let (ended, killed) = match why {
        Ended::ByItself(ended) => (ended, None),
        Ended::Killed(why) => {
            if let Err(error) = core.orchestrator.kill_run(name).await {
                tracing::warn!(execution.id = %name.execution, error = %Chain(&error), "a container was not killed");
            }
            let lost = || Err(orchestrator::Error::Unavailable("the container does not end".into()));
            (timeout_at(Instant::now() + KILLING, following).await.unwrap_or_else(|_| lost()), Some(why))
        }
    };
    match ended {
        Ok(end) => {
            let mut outcome = outcome_of(end, killed, timeout);
            outcome.usage.starting_us = starting.and_then(microseconds);
            outcome
        }
        Err(error) => {
            tracing::warn!(execution.id = %name.execution, error = %Chain(&error), "a container is lost");
            Outcome::error(Reason::WorkerLost, &error.to_string())
        }
    }
}

enum Ended {
    ByItself(Result<RunEnd, orchestrator::Error>),
    Killed(Reason),
}

async fn remove(core: &Core, name: &RunName, index: u32) {
    match core.orchestrator.remove_run(name).await {
        Ok(()) => core.images.give_back(index),
        // The reaper does, and until the next start nobody else gets its user id.
        Err(error) => {
            tracing::warn!(execution.id = %name.execution, error = %Chain(&error), "a container was not removed");
        }
    }
    core.images.disown(name);
}

/// What an input is to a program: its words; an object is one word of JSON.
fn arguments(input: Option<&str>) -> Vec<String> {
    match input {
        None => Vec::new(),
        Some(input) => match Input::positional(input) {
            Some(text) => text.split_whitespace().map(str::to_owned).collect(),
            None => vec![input.to_owned()],
        },
    }
}

/// How a container's end is stored and shown. Clients know whole seconds.
fn outcome_of(end: RunEnd, killed: Option<Reason>, timeout: Duration) -> Outcome {
    let failed = |reason, text: &str, detail: Option<&str>, seconds| {
        Outcome::image(ExecutionStatus::Failed, Some((reason, text, detail)), seconds)
    };
    let seconds = end.took.as_secs();
    let outcome = match (killed, end.exit_code) {
        (Some(Reason::Cancelled), _) => cancelled(),
        // Clients read from it that the function had all of its time.
        (Some(_), _) => {
            failed(Reason::Timeout, "Function execution timeout.", None, seconds.max(timeout.as_secs()))
        }
        (None, 0) => Outcome::image(ExecutionStatus::Success, None, seconds),
        (None, _) if end.out_of_memory => failed(Reason::OutOfMemory, TOO_MUCH, None, seconds),
        (None, code) => {
            let limit = limit_of(code, &end);
            let detail = limit.map_or_else(|| format!("the container ended with code {code}"), bound_of);
            let reason = limit.map_or(Reason::Exit, reason_of);
            failed(reason, "Function execution failed.", Some(&detail), seconds)
        }
    };
    let signed = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
    let usage = Usage {
        queued_us: None,
        starting_us: None,
        run_us: microseconds(end.took),
        cpu_us: signed(end.cpu_us),
        peak_memory_bytes: signed(end.peak_memory_bytes),
    };
    Outcome { log: end.log, log_truncated: end.log_truncated, start: Some(Start::Cold), usage, ..outcome }
}

/// The limit that a container met, as far as its end tells: by its signal, or in its last words.
fn limit_of(code: i64, end: &RunEnd) -> Option<Limit> {
    if code == i64::from(128 + libc::SIGXFSZ) {
        return Some(Limit::FileBytes);
    }
    let last = end.log.lines().next_back().filter(|_| !end.log_truncated);
    last.and_then(Limit::said_in)
}

/// Looks for the images of functions that were created since.
pub(super) async fn look(core: &Arc<Core>) -> Result<()> {
    for function in db::functions::list_creating(core.db.reader()).await? {
        let images = &core.images;
        if !images.looking.lock().expect("no panic while it is held").insert(function.id.to_string()) {
            continue;
        }
        let core = core.clone();
        core.clone().tasks.spawn(async move {
            let found = tokio::select! {
                found = find(&core, &function) => found,
                () = core.letting_go.cancelled() => return,
            };
            if let Err(error) = conclude(&core, &function, found).await {
                tracing::warn!(function.id = %function.id, error = %Chain(&error), "a function's status could not be written");
            }
            let mut looking = core.images.looking.lock().expect("no panic while it is held");
            looking.remove(function.id.as_str());
        });
    }
    Ok(())
}

/// What names the image from now on, or a sentence for the user. `Err(None)` where that is not the image's
/// fault and may pass.
async fn find(core: &Core, function: &function::Model) -> Result<String, Option<String>> {
    let whole = check_allowed(core, function).map_err(Some)?.to_string();
    let from_docker = |error: orchestrator::Error| match error {
        orchestrator::Error::Unavailable(_) => {
            tracing::warn!(function.id = %function.id, error = %Chain(&error), "an image cannot be looked for yet");
            None
        }
        error => Some(sentence(&Chain(&error).to_string())),
    };
    let pull_first = core.images.config.pull == Pull::Always;
    let mut found =
        if pull_first { None } else { core.orchestrator.find_image(&whole).await.map_err(from_docker)? };
    if found.is_none() && core.images.config.pull != Pull::Never {
        pull(core, &whole).await.map_err(from_docker)?;
        found = core.orchestrator.find_image(&whole).await.map_err(from_docker)?;
    }
    let Some(found) = found else { return Err(Some(format!("Image {whole} is not on this machine."))) };
    if found.has_volumes {
        // Docker would make each a directory on the host, writable and without a bound.
        return Err(Some(format!("Image {whole} declares volumes, and a function has none.")));
    }
    Ok(found.digest)
}

async fn conclude(
    core: &Core,
    function: &function::Model,
    found: Result<String, Option<String>>,
) -> Result<()> {
    let db = core.db.writer();
    match found {
        Ok(digest) => {
            tracing::info!(function.id = %function.id, digest, "the image of a function was found");
            around(Write::ImageFound, db::functions::set_image(&db, &function.id, Ok(&digest))).await?;
        }
        Err(Some(why)) => {
            tracing::info!(function.id = %function.id, why, "the image of a function cannot be had");
            around(Write::ImageFound, db::functions::set_image(&db, &function.id, Err(&why))).await?;
        }
        Err(None) => sleep(Duration::from_secs(1)).await,
    }
    Ok(())
}

/// An error, as something to read.
fn sentence(error: &str) -> String {
    let mut letters = error.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if error.ends_with('.') { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

/// Follows a container to its end for an execution that was taken over under a later epoch.
pub(super) fn collect(core: &Arc<Core>, left: ObservedRun, row: execution::Model, epoch: i64) {
    core.images.own(&left.name);
    core.images.indexes.lock().expect("no panic while it is held").insert(left.index);
    let core = core.clone();
    core.clone().tasks.spawn(async move {
        let rest = left.deadline.since(Timestamp::now());
        let timeout = left.deadline.since(row.updated_at.unwrap_or(row.created_at));
        let in_hand = core.cancels.take(&row.id);
        let outcome = tokio::select! {
            // It runs on, for the next engine.
            () = core.letting_go.cancelled() => return,
            outcome = follow(&core, &left.name, Instant::now() + rest, timeout, &in_hand, None) => outcome,
        };
        if finish(&core, &row.id, epoch, outcome).await {
            remove(&core, &left.name, left.index).await;
        }
    });
}

/// Removes containers that nobody owns. One that Docker does not let go is tried again.
pub(super) async fn orphans(core: &Core) -> Result<(), orchestrator::Error> {
    for run in core.orchestrator.list_runs().await? {
        if core.images.owns(&run.name) {
            continue;
        }
        tracing::warn!(execution.id = %run.name.execution, "a container that nobody owns is removed");
        if let Err(error) = core.orchestrator.remove_run(&run.name).await {
            tracing::warn!(execution.id = %run.name.execution, error = %Chain(&error), "it could not be removed");
        }
    }
    Ok(())
}
