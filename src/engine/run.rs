//! One execution, from a lease to its recorded end: the same code for a call that waits and for a
//! claimed row.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use protocol::worker::{Attempt, End, Execute, ExecutionLimits, FILE_BYTES, Limit, OPEN_FILES, RefusalKind};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout_at};

use super::Core;
use super::cancels::{InHand, cancelled};
use super::gateway::NewExecution;
use super::images;
use super::pool::{self, Lease};
use super::recorder::Claim;
use super::sessions::{self, Session};
use super::supervisor::{self, Supervisor};
use super::target::Target;
use super::worker::FunctionKey;
use crate::config;
use crate::crash_points::{Write, around};
use crate::db;
use crate::error::{Error, Result, Source};
use crate::model::function::{self, Source as CodeSource};
use crate::model::{
    ExecutionId, ExecutionStatus, FunctionId, NetworkAccess, Outcome, Reason, RuntimeId, Scope, Start,
    Timestamp, TrustId, Usage, execution, microseconds,
};
use crate::orchestrator::Network;
use crate::telemetry::Chain;

/// What the entry is where a function names none.
const ENTRY: &str = "main.main";
/// How much longer than the function's own time a worker may take before it counts as lost: it
/// keeps the deadline itself, and has a slot to prepare and an answer to write.
const GRACE: Duration = Duration::from_secs(20);
/// How long a supervisor may take over what it answers at once.
const ANSWER: Duration = Duration::from_secs(5);
/// How much longer than the function's own time an execution may count as running: past that, whoever ran
/// it is not going to say how it ended.
pub(super) const OVERDUE: Duration = Duration::from_secs(45);
/// Workers that may turn an execution down before it ends as an error.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(20);

/// What Qinling's clients know of a function that used too much.
pub(super) const TOO_MUCH: &str = "Function execution failed because of too much resource consumption";

/// What it takes to run a function once.
#[derive(Debug)]
struct Plan {
    key: Arc<FunctionKey>,
    runtime: RuntimeId,
    entry: String,
    limits: ExecutionLimits,
    trust: Option<TrustId>,
}

impl Plan {
    fn of(core: &Core, target: &Target) -> Result<Self> {
        let function = &target.function;
        let (Some(digest), Some(runtime)) = (function.digest(), function.runtime_id.clone()) else {
            return Err(Error::NotSupported("Only functions with a package can be run.".to_owned()));
        };
        let positive = |value: i64| u64::try_from(value).unwrap_or(0);
        let entry = function.entry.clone().filter(|entry| !entry.is_empty());
        Ok(Self {
            key: Arc::new(FunctionKey {
                project: function.project_id.clone(),
                function: function.id.clone(),
                version: target.version,
                digest,
                // Where none has a network, all are alike.
                offline: core.network != Network::None && function.network == NetworkAccess::None,
            }),
            runtime,
            entry: entry.unwrap_or_else(|| ENTRY.to_owned()),
            limits: ExecutionLimits {
                cpu_millis: u32::try_from(function.cpu).unwrap_or(0),
                memory_bytes: positive(function.memory_size),
                timeout_ms: positive(function.timeout.into()) * 1000,
                max_result_bytes: core.engine.max_result_bytes,
                max_log_bytes: core.engine.max_log_bytes,
            },
            trust: function.trust_id.clone(),
        })
    }

    /// What the function asks for by now, where that is another package or another trust: what was
    /// uploaded while the call waited takes the place of what it was to run. A version is never another.
    async fn renewed(&self, core: &Core) -> Result<Option<Self>> {
        let Some(function) = function_of(core, &self.key.function).await? else { return Ok(None) };
        let plan = match Target::get(&core.db, function, self.key.version).await {
            Ok(target) => Self::of(core, &target)?,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok((plan.key != self.key || plan.trust != self.trust).then_some(plan))
    }

    /// Becomes that; `false` where there is nothing newer.
    async fn renew(&mut self, core: &Core) -> Result<bool> {
        let Some(newer) = self.renewed(core).await? else { return Ok(false) };
        *self = newer;
        Ok(true)
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.limits.timeout_ms)
    }
}

/// Binds more workers to a function.
pub(super) fn scale_up(core: &Core, target: &Target, count: u32) -> Result<()> {
    let plan = Plan::of(core, target)?;
    core.pool.scale_up(&plan.key, &plan.runtime, count);
    Ok(())
}

/// The row of an execution that nobody has started.
pub(super) fn new_row(new: &NewExecution, config: &config::Engine) -> execution::Model {
    let now = Timestamp::now();
    execution::Model {
        id: new.id.clone(),
        project_id: new.project_id.clone(),
        function_id: new.target.function.id.clone(),
        function_version: new.target.version,
        function_alias: new.alias.clone(),
        description: new.description.clone(),
        status: ExecutionStatus::Pending,
        sync: new.sync,
        input: new.input.to_json(),
        result: None,
        reason: None,
        start: None,
        epoch: 0,
        engine_id: None,
        worker: None,
        request_id: new.request_id.clone(),
        deadline_at: Some(now.after(config.pending_timeout)),
        created_at: now,
        updated_at: None,
        queued_us: None,
        starting_us: None,
        run_us: None,
        cpu_us: None,
        peak_memory_bytes: None,
        log_truncated: None,
    }
}

/// Runs a synchronous call and returns the finished row.
pub(super) async fn call(core: &Core, new: NewExecution) -> Result<execution::Model> {
    if new.target.function.source()? == CodeSource::Image {
        return images::call(core, new).await;
    }
    let mut plan = Plan::of(core, &new.target)?;
    let mut row = new_row(&new, &core.engine);
    row.status = ExecutionStatus::Running;
    row.engine_id = Some(core.id.clone());
    row.epoch = 1;
    let accepted = Instant::now();
    let deadline = accepted + core.engine.queue_timeout;
    let in_hand = core.cancels.take(&row.id);
    let mut attempt = Attempt { execution: row.id.to_string(), epoch: row.epoch };
    let (mut tries, mut renewals) = (0, 0);
    let (outcome, ran_on) = loop {
        let asked = Instant::now();
        let session = tokio::select! {
            session = session_for(core, &plan, row.request_id.as_deref(), deadline) => session,
            () = in_hand.cancelled() => break (cancelled(), None),
        };
        let session = match session {
            Ok(session) => session,
            Err(sessions::Error::Invalid) if renewals < TRIES && plan.renew(core).await? => {
                renewals += 1;
                continue;
            }
            Err(error) => {
                tracing::info!(error = %Chain(&error), "a function gets no session");
                break (Outcome::error(Reason::Preparation, &error.to_string()), None);
            }
        };
        let lease = tokio::select! {
            lease = core.pool.lease(&plan.key, &plan.runtime, deadline) => lease,
            () = in_hand.cancelled() => break (cancelled(), None),
        };
        let lease = match lease {
            Ok(lease) => lease,
            Err(error @ (pool::Error::Full | pool::Error::Closed)) => {
                return Err(Error::Busy(error.to_string()));
            }
            Err(error @ pool::Error::TimedOut) => {
                break (Outcome::error(Reason::NoCapacity, &error.to_string()), None);
            }
            Err(pool::Error::Preparation(why)) => {
                break (Outcome::error(Reason::Preparation, &why), None);
            }
            Err(pool::Error::Missing) if plan.renew(core).await? => continue,
            Err(error @ pool::Error::Missing) => {
                break (Outcome::error(Reason::Preparation, &error.to_string()), None);
            }
        };
        core.observe_lease(lease.start(), asked.elapsed());
        if row.worker.is_none() {
            row.worker = Some(lease.worker().name.clone());
            // Another worker may have to be found for it.
            let longest = core.engine.queue_timeout + plan.timeout() + OVERDUE;
            row.deadline_at = Some(Timestamp::now().after(longest));
            core.recorder.begin(row.clone());
        }
        let worker = lease.worker().clone();
        let waited = Waited::of(&lease, accepted.elapsed(), asked.elapsed());
        match run_on(core, lease, &plan, session, attempt.clone(), &row, &in_hand).await {
            Ran::Ended(outcome) => break (waited.noted_in(outcome), Some(worker)),
            Ran::Lost(why) => break (Outcome::error(Reason::WorkerLost, &why), None),
            Ran::Refused(why) => break (Outcome::error(Reason::Preparation, &why), None),
            Ran::NotStarted(why) => {
                if in_hand.is_cancelled() {
                    break (cancelled(), None);
                }
                attempt.epoch += 1;
                tries += 1;
                if tries == TRIES {
                    break (Outcome::error(Reason::Preparation, &why), None);
                }
                sleep(PAUSE).await;
            }
        }
    };
    core.observe_end(&plan.runtime, &outcome);
    let stored = core.recorder.end(row.clone(), outcome.clone()).await?;
    if let Some(worker) = ran_on {
        worker.settle([attempt]);
    }
    if !stored {
        // It is the row that counts, and others wrote it.
        let found = db::executions::find(core.db.reader(), &row.id, &Scope::All).await?;
        return found.ok_or_else(|| Error::not_found("Execution", &row.id));
    }
    Ok(row.ended(outcome))
}

/// What became of a pending row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// It has ended, or is another engine's.
    Done,
    /// It is pending still. `turned_down`: a worker refused to start it.
    Later { turned_down: bool },
}

/// Runs a pending row, if this engine is the one that gets it. `tries` says how often workers turned
/// it down before.
pub(super) async fn claimed(core: &Core, row: execution::Model, tries: u32) -> Claimed {
    let later = Claimed::Later { turned_down: false };
    let plan = match work_of(core, &row).await {
        Ok(Some(Work::Worker(plan))) => plan,
        Ok(Some(Work::Image(function))) => return images::claimed(core, row, &function).await,
        Ok(None) if row.function_version != 0 => {
            return dismiss(core, &row, not_prepared("The function's version was removed.")).await;
        }
        Ok(None) => return dismiss(core, &row, not_prepared("The function was removed.")).await,
        Err(error) => {
            tracing::warn!(execution.id = %row.id, error = %Chain(&error), "an execution cannot be prepared yet");
            return later;
        }
    };
    let asked = Instant::now();
    let deadline = asked + core.engine.queue_timeout;
    // First, so that no slot waits for Keystone.
    let session = match session_for(core, &plan, row.request_id.as_deref(), deadline).await {
        Ok(session) => session,
        Err(error @ sessions::Error::Invalid) => {
            return match plan.renewed(core).await {
                Ok(None) => dismiss(core, &row, not_prepared(&error.to_string())).await,
                Ok(Some(_)) | Err(_) => later,
            };
        }
        Err(error) => {
            tracing::warn!(execution.id = %row.id, error = %Chain(&error), "a function gets no session yet");
            return later;
        }
    };
    let lease = match core.pool.lease(&plan.key, &plan.runtime, deadline).await {
        Ok(lease) => lease,
        Err(pool::Error::Preparation(why)) => return dismiss(core, &row, not_prepared(&why)).await,
        Err(error @ pool::Error::Missing) => match plan.renewed(core).await {
            Ok(None) => return dismiss(core, &row, not_prepared(&error.to_string())).await,
            Ok(Some(_)) | Err(_) => return later,
        },
        Err(pool::Error::Full | pool::Error::TimedOut | pool::Error::Closed) => return later,
    };
    core.observe_lease(lease.start(), asked.elapsed());
    let claim = Claim {
        id: row.id.clone(),
        epoch_from: row.epoch,
        engine: core.id.clone(),
        worker: lease.worker().name.clone(),
        deadline: Timestamp::now().after(plan.timeout() + OVERDUE),
    };
    // One that is pending is cancelled in the table, and this claim then fails.
    let in_hand = core.cancels.take(&row.id);
    let epoch = match core.recorder.claim(claim).await {
        Ok(Some(epoch)) => epoch,
        Ok(None) => return Claimed::Done,
        Err(error) => {
            tracing::warn!(execution.id = %row.id, error = %Chain(&error), "an execution could not be claimed");
            return later;
        }
    };
    let attempt = Attempt { execution: row.id.to_string(), epoch };
    let worker = lease.worker().clone();
    let waited = Waited::of(&lease, Timestamp::now().since(row.created_at), asked.elapsed());
    let outcome = match run_on(core, lease, &plan, session, attempt.clone(), &row, &in_hand).await {
        Ran::Ended(outcome) => {
            let outcome = waited.noted_in(outcome);
            core.observe_end(&plan.runtime, &outcome);
            if finish(core, &row.id, epoch, outcome).await {
                worker.settle([attempt]);
            }
            return Claimed::Done;
        }
        Ran::Lost(why) => Outcome::error(Reason::WorkerLost, &why),
        Ran::NotStarted(_) if in_hand.is_cancelled() => cancelled(),
        Ran::NotStarted(_) if tries + 1 < TRIES => {
            put_back(core, &row, epoch).await;
            return Claimed::Later { turned_down: true };
        }
        Ran::NotStarted(why) | Ran::Refused(why) => Outcome::error(Reason::Preparation, &why),
    };
    core.observe_end(&plan.runtime, &outcome);
    finish(core, &row.id, epoch, outcome).await;
    Claimed::Done
}

/// How a row is run.
#[derive(Debug)]
enum Work {
    Worker(Plan),
    Image(Box<function::Model>),
}

/// `None` where the function, or its version, is gone.
async fn work_of(core: &Core, row: &execution::Model) -> Result<Option<Work>> {
    let Some(function) = function_of(core, &row.function_id).await? else { return Ok(None) };
    if function.source()? == CodeSource::Image {
        return Ok(Some(Work::Image(Box::new(function))));
    }
    let target = Target::get(&core.db, function, row.function_version).await;
    match target.and_then(|target| Plan::of(core, &target)) {
        Ok(plan) => Ok(Some(Work::Worker(plan))),
        Err(Error::NotFound { .. } | Error::NotSupported(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) async fn function_of(core: &Core, id: &FunctionId) -> Result<Option<function::Model>> {
    Ok(db::functions::find(core.db.reader(), id, &Scope::All).await?)
}

fn not_prepared(why: &str) -> Outcome {
    Outcome::error(Reason::Preparation, why)
}

/// Ends a row that nobody has claimed.
pub(super) async fn dismiss(core: &Core, row: &execution::Model, outcome: Outcome) -> Claimed {
    match core.recorder.dismiss(row.id.clone(), outcome).await {
        Ok(_) => Claimed::Done,
        Err(error) => {
            tracing::warn!(execution.id = %row.id, error = %Chain(&error), "an end could not be written yet");
            Claimed::Later { turned_down: false }
        }
    }
}

/// Writes the end of an asynchronous execution, however long the database is away; `false` where
/// the engine ends first. The worker keeps the outcome until then, for the next engine.
pub(super) async fn finish(core: &Core, id: &ExecutionId, epoch: i64, outcome: Outcome) -> bool {
    surely(core, id, || core.recorder.finish(id.clone(), epoch, outcome.clone())).await
}

/// Makes an execution pending again that no worker has started.
pub(super) async fn put_back(core: &Core, row: &execution::Model, epoch: i64) -> bool {
    let id = &row.id;
    let deadline = row.created_at.after(core.engine.pending_timeout);
    let put_back = || async {
        let writer = core.db.writer();
        Ok(around(Write::PutBack, db::executions::put_back(&writer, id, epoch, deadline)).await?)
    };
    let done = surely(core, id, put_back).await;
    core.queue.notify_one();
    done
}

async fn surely<F: Future<Output = Result<bool>>>(
    core: &Core,
    id: &ExecutionId,
    mut write: impl FnMut() -> F,
) -> bool {
    loop {
        match write().await {
            Ok(true) => return true,
            Ok(false) => {
                tracing::debug!(execution.id = %id, "an execution was taken over, ended or deleted by others");
                return true;
            }
            Err(error) => {
                tracing::error!(execution.id = %id, error = %Chain(&error), "an execution could not be written");
            }
        }
        tokio::select! {
            () = core.letting_go.cancelled() => return false,
            () = sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// What an execution waited for before it was sent to its worker.
struct Waited {
    queued: Duration,
    prepared: Duration,
}

impl Waited {
    /// `since_accepted` and `since_asked` end now, with a lease in hand. What its worker was made ready in,
    /// while this execution waited for it, is no queue.
    fn of(lease: &Lease, since_accepted: Duration, since_asked: Duration) -> Self {
        let made_ready = lease.worker().begun().filter(|_| lease.start() != Start::Warm);
        let prepared = made_ready.map_or(Duration::ZERO, |begun| begun.elapsed().min(since_asked));
        Self { queued: since_accepted.saturating_sub(prepared), prepared }
    }

    fn noted_in(&self, mut outcome: Outcome) -> Outcome {
        // Until its worker had a slot for it.
        let taking = outcome.usage.starting_us.unwrap_or(0);
        outcome.usage.queued_us = microseconds(self.queued);
        outcome.usage.starting_us =
            microseconds(self.prepared).map(|prepared| prepared.saturating_add(taking));
        outcome
    }
}

/// How an attempt went.
#[derive(Debug)]
enum Ran {
    Ended(Outcome),
    /// It may have run, and nobody will know how it ended.
    Lost(String),
    /// It has not run and will not: another worker may.
    NotStarted(String),
    /// It has not run, and no worker would run it.
    Refused(String),
}

/// Runs one attempt on a worker. The slot is free again when this returns.
async fn run_on(
    core: &Core,
    lease: Lease,
    plan: &Plan,
    session: Option<Arc<Session>>,
    attempt: Attempt,
    row: &execution::Model,
    in_hand: &InHand<'_>,
) -> Ran {
    let worker = lease.worker();
    let Some(supervisor) = worker.supervisor() else {
        return Ran::NotStarted("The worker has no supervisor.".to_owned());
    };
    let Ok(input) = RawValue::from_string(row.input.clone().unwrap_or_else(|| "null".to_owned())) else {
        return Ran::Refused("The input is no JSON.".to_owned());
    };
    let settled = worker.take_settled();
    let execute = Execute {
        attempt: attempt.clone(),
        entry: plan.entry.clone(),
        input,
        limits: plan.limits,
        fresh: false,
        request_id: row.request_id.clone(),
        openstack: session.as_ref().map(|session| session.openstack.clone()),
        acknowledge: settled.clone(),
    };
    let deadline = Instant::now() + plan.timeout() + GRACE;
    let executing = async {
        match &session {
            Some(session) => supervisor.execute_in(&session.cloud, &execute, deadline).await,
            None => supervisor.execute(&execute, deadline).await,
        }
    };
    let answer = tokio::select! {
        answer = executing => answer,
        never = cancel(supervisor, &attempt, in_hand) => match never {},
    };
    if answer.is_err() {
        worker.settle(settled);
    }
    let answer = match answer {
        Err(supervisor::Error::Gone(source)) if never_reached(&source) => {
            tracing::warn!(worker.id = %worker.name, error = %source, "a worker is gone");
            lease.lost();
            return Ran::NotStarted("The worker was gone.".to_owned());
        }
        Err(supervisor::Error::Gone(source)) => {
            tracing::warn!(worker.id = %worker.name, error = %source, "the connection to a worker was lost");
            ask_again(supervisor, &attempt, deadline).await
        }
        answer => answer,
    };
    match answer {
        Ok(outcome) => {
            core.observe_run(ran_for(&outcome));
            if outcome.token_refused
                && let (Some(sessions), Some(trust), Some(session)) = (&core.sessions, &plan.trust, &session)
            {
                sessions.refused(trust, session);
            }
            Ran::Ended(outcome_of(outcome, lease.start(), plan.limits.timeout_ms))
        }
        Err(supervisor::Error::Refused(refusal)) => match refusal.kind {
            RefusalKind::Malformed => Ran::Refused(refusal.reason),
            RefusalKind::NoSlot | RefusalKind::Fenced | RefusalKind::Unknown | RefusalKind::UnknownCloud => {
                Ran::NotStarted(refusal.reason)
            }
            RefusalKind::NotLoaded | RefusalKind::Failed | RefusalKind::Loaded | RefusalKind::BadPackage => {
                tracing::warn!(worker.id = %worker.name, why = refusal.reason, "a worker cannot run what it holds");
                lease.drain();
                Ran::NotStarted(refusal.reason)
            }
        },
        Err(error) => {
            tracing::warn!(worker.id = %worker.name, error = %Chain(&error), "a worker is lost");
            lease.lost();
            Ran::Lost(format!("{error}"))
        }
    }
}

/// Kills the attempt once somebody cancels it. How it ended is the answer to its own request.
pub(super) async fn cancel(supervisor: &Supervisor, attempt: &Attempt, in_hand: &InHand<'_>) -> Infallible {
    in_hand.cancelled().await;
    while let Err(error) = supervisor.cancel(attempt, Instant::now() + ANSWER).await {
        // The request to run it may still be on its way; else its answer is.
        tracing::debug!(error = %Chain(&error), "an attempt is not cancelled yet");
        sleep(PAUSE).await;
    }
    std::future::pending().await
}

/// What the function uses the cloud with; `None` where it has no trust.
async fn session_for(
    core: &Core,
    plan: &Plan,
    request_id: Option<&str>,
    deadline: Instant,
) -> Result<Option<Arc<Session>>, sessions::Error> {
    let (Some(sessions), Some(trust)) = (&core.sessions, &plan.trust) else { return Ok(None) };
    let session = sessions.get(trust, plan.timeout(), request_id);
    match timeout_at(deadline, session).await {
        Ok(session) => session.map(Some),
        Err(_) => Err(sessions::Error::TimedOut),
    }
}

/// There was nobody to connect to, so nothing was sent.
fn never_reached(source: &Source) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let error = source.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| matches!(error.kind(), ConnectionRefused | NotFound))
}

/// Asks for an attempt whose answer did not come. The fence comes first: what is still on its way
/// to the worker will not start any more, so what it does not know it never ran.
async fn ask_again(
    supervisor: &Supervisor,
    attempt: &Attempt,
    deadline: Instant,
) -> Result<protocol::worker::Outcome, supervisor::Error> {
    let fence = Attempt { epoch: attempt.epoch + 1, ..attempt.clone() };
    supervisor.fence(&fence, Instant::now() + ANSWER).await?;
    supervisor.outcome(attempt, deadline).await
}

/// How long the user's code ran. A time that is none, as only a supervisor that went mad says it, counts as none.
fn ran_for(outcome: &protocol::worker::Outcome) -> Duration {
    Duration::try_from_secs_f64(outcome.duration_ms / 1000.0).unwrap_or_default()
}

/// How a worker's outcome is stored and shown.
pub(super) fn outcome_of(outcome: protocol::worker::Outcome, start: Start, timeout_ms: u64) -> Outcome {
    let took = outcome.duration_ms;
    let limit = outcome.account.limit;
    let failed = |reason, text: &str, detail: Option<&str>| Outcome::failed(reason, Some(text), detail, took);
    // What Qinling's clients know does not change with the reason.
    let of_limit = |otherwise| limit.map_or(otherwise, reason_of);
    let bound = limit.map(bound_of);
    let or_bound = |said: String| Some(bound.clone().unwrap_or(said));
    let mapped = match &outcome.end {
        End::Returned => Outcome::returned(outcome.output.as_deref(), took),
        End::Raised { message } => failed(of_limit(Reason::Raised), message, bound.as_deref()),
        End::BadResult { reason } => failed(of_limit(Reason::BadResult), reason, None),
        End::TimedOut => {
            // Clients read from it that the function had all of its time.
            let took = took.max(timeout_ms as f64);
            Outcome::failed(Reason::Timeout, Some("Function execution timeout."), None, took)
        }
        End::OutOfMemory => failed(Reason::OutOfMemory, TOO_MUCH, None),
        End::Exhausted { message } => failed(of_limit(Reason::Exhausted), TOO_MUCH, Some(message)),
        End::Exited { code: 0 } => Outcome::failed(Reason::Exit, None, None, took),
        End::Exited { code } => {
            let detail = or_bound(format!("the process ended with code {code}"));
            failed(of_limit(Reason::Exit), TOO_MUCH, detail.as_deref())
        }
        End::Signalled { signal } => {
            let detail = or_bound(format!("the process was ended by signal {signal}"));
            failed(of_limit(Reason::Signal), TOO_MUCH, detail.as_deref())
        }
        End::Misbehaved { reason } => {
            failed(Reason::Misbehaved, "Function interfered with its runtime.", Some(reason))
        }
        End::Cancelled => failed(Reason::Cancelled, "Function execution cancelled.", None),
    };
    let signed = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
    let usage = Usage {
        queued_us: None,
        starting_us: signed(outcome.account.waited_us),
        run_us: microseconds(ran_for(&outcome)),
        cpu_us: signed(outcome.account.cpu_us),
        peak_memory_bytes: signed(outcome.account.peak_memory_bytes),
    };
    Outcome { log: outcome.log, log_truncated: outcome.log_truncated, start: Some(start), usage, ..mapped }
}

/// The word for a limit.
pub(super) fn reason_of(limit: Limit) -> Reason {
    match limit {
        Limit::Memory => Reason::OutOfMemory,
        Limit::Processes => Reason::TooManyProcesses,
        Limit::OpenFiles => Reason::TooManyOpenFiles,
        Limit::FileBytes => Reason::FileTooLarge,
        Limit::ScratchBytes => Reason::ScratchFull,
        Limit::ResultBytes => Reason::ResultTooLarge,
    }
}

/// A sentence for whoever met the limit.
pub(super) fn bound_of(limit: Limit) -> String {
    match limit {
        Limit::Memory => "No more memory is allowed than the function's memory_size.".to_owned(),
        Limit::Processes => {
            "No more processes and threads are allowed; [engine] max_processes run at once.".to_owned()
        }
        Limit::OpenFiles => format!("A process may have {OPEN_FILES} files open."),
        Limit::FileBytes => format!("A file may have {FILE_BYTES} bytes."),
        Limit::ScratchBytes => "No room is left for the function's files.".to_owned(),
        Limit::ResultBytes => "[engine] max_result_bytes are the most that a function may return.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::worker::Account;
    use serde_json::{Value, json};

    use super::*;

    fn shown(end: End, output: Option<&str>) -> (ExecutionStatus, Value) {
        limited(end, output, None)
    }

    fn limited(end: End, output: Option<&str>, limit: Option<Limit>) -> (ExecutionStatus, Value) {
        let outcome = protocol::worker::Outcome {
            attempt: Attempt { execution: "e".to_owned(), epoch: 1 },
            end,
            output: output.map(|json| RawValue::from_string(json.to_owned()).unwrap()),
            duration_ms: 4999.6,
            log: "log".to_owned(),
            log_truncated: true,
            reused: false,
            token_refused: false,
            account: Account { waited_us: Some(20), cpu_us: Some(30), peak_memory_bytes: Some(40), limit },
        };
        let outcome = outcome_of(outcome, Start::Warm, 5000);
        let took = Usage {
            queued_us: None,
            starting_us: Some(20),
            run_us: Some(4_999_600),
            cpu_us: Some(30),
            peak_memory_bytes: Some(40),
        };
        assert_eq!(outcome.usage, took);
        assert_eq!((outcome.log.as_str(), outcome.log_truncated), ("log", true));
        assert_eq!(outcome.start, Some(Start::Warm));
        (outcome.status, serde_json::from_str(&outcome.result).unwrap())
    }

    #[test]
    fn every_end_has_the_text_that_clients_know() {
        use ExecutionStatus::{Cancelled, Failed, Success};
        let message = "no".to_owned();
        let reason = "a set is no JSON".to_owned();
        let cases = [
            (End::Returned, Success, json!({"a": 1})),
            (End::Raised { message: message.clone() }, Failed, json!("no")),
            (End::BadResult { reason: reason.clone() }, Failed, json!(reason)),
            (End::TimedOut, Failed, json!("Function execution timeout.")),
            (End::OutOfMemory, Failed, json!(TOO_MUCH)),
            (End::Exhausted { message }, Failed, json!(TOO_MUCH)),
            (End::Exited { code: 0 }, Failed, Value::Null),
            (End::Exited { code: 3 }, Failed, json!(TOO_MUCH)),
            (End::Signalled { signal: 9 }, Failed, json!(TOO_MUCH)),
            (End::Misbehaved { reason }, Failed, json!("Function interfered with its runtime.")),
            (End::Cancelled, Cancelled, json!("Function execution cancelled.")),
        ];
        for (end, status, output) in cases {
            let (found, result) = shown(end.clone(), Some(r#"{"a":1}"#));
            assert_eq!((found, &result["output"]), (status, &output), "{end:?}");
            assert_eq!(result["duration"], json!(5.0), "{end:?}");
        }
    }

    #[test]
    fn a_limit_gives_an_end_its_reason_and_leaves_it_its_text() {
        use Limit::{FileBytes, Memory, OpenFiles, Processes, ResultBytes, ScratchBytes};
        let raised = || End::Raised { message: "no".to_owned() };
        let exhausted = || End::Exhausted { message: "no".to_owned() };
        let too_large = End::BadResult { reason: "too large".to_owned() };
        let cases = [
            (raised(), OpenFiles, "no", "too_many_open_files", "A process may have 1024 files open."),
            (raised(), FileBytes, "no", "file_too_large", "A file may have 524288000 bytes."),
            (raised(), ScratchBytes, "no", "scratch_full", "No room is left for the function's files."),
            (exhausted(), Memory, TOO_MUCH, "out_of_memory", "no"),
            (exhausted(), Processes, TOO_MUCH, "too_many_processes", "no"),
            (
                End::Signalled { signal: 25 },
                FileBytes,
                TOO_MUCH,
                "file_too_large",
                "A file may have 524288000 bytes.",
            ),
        ];
        for (end, limit, text, reason, detail) in cases {
            let (_, result) = limited(end, None, Some(limit));
            assert_eq!(result, json!({"output": text, "duration": 5.0, "reason": reason, "detail": detail}));
        }
        let (_, result) = limited(too_large, None, Some(ResultBytes));
        assert_eq!((&result["output"], &result["reason"]), (&json!("too large"), &json!("result_too_large")));
        // A success stays one, whatever was refused on the way.
        let (status, result) = limited(End::Returned, None, Some(Processes));
        assert_eq!((status, result.get("reason")), (ExecutionStatus::Success, None));
    }

    #[tokio::test]
    async fn a_worker_that_is_gone_before_anything_was_sent_is_told_from_one_that_may_have_run() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let gone = async || match Supervisor::new(&socket).state(Instant::now() + ANSWER).await {
            Err(supervisor::Error::Gone(source)) => source,
            other => panic!("{other:?}"),
        };
        assert!(never_reached(&gone().await), "no socket");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let closing = async {
            let (stream, _) = listener.accept().await.unwrap();
            stream.readable().await.unwrap();
        };
        let (source, ()) = tokio::join!(gone(), closing);
        assert!(!never_reached(&source), "{source}");
        drop(listener);
        assert!(never_reached(&gone().await), "nobody listens");
    }

    #[test]
    fn a_function_that_returns_nothing_succeeds_with_null() {
        let (status, result) = shown(End::Returned, None);
        assert_eq!((status, result), (ExecutionStatus::Success, json!({"output": null, "duration": 5.0})));
    }
}
