//! One execution, from a lease to its recorded end: the same code for a call that waits and for a
//! claimed row.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use protocol::worker::{Attempt, Execute, ExecutionLimits, RefusalKind};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout_at};

use super::Core;
use super::cancels::{InHand, cancelled};
use super::ending::{outcome_of, ran_for};
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
    Timestamp, TrustId, execution, microseconds,
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
///
/// What few calls do is in boxes, here and below: a task is as large as the most that it may ever do, and is
/// copied when it starts.
pub(super) async fn call(core: &Core, new: NewExecution) -> Result<execution::Model> {
    if new.target.function.source()? == CodeSource::Image {
        return Box::pin(images::call(core, new)).await;
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
            Err(sessions::Error::Invalid) if renewals < TRIES && Box::pin(plan.renew(core)).await? => {
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
            Err(pool::Error::Missing) if Box::pin(plan.renew(core)).await? => continue,
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
    let Some(function) = db::recent::function(&core.db, &row.function_id, &Scope::All).await? else {
        return Ok(None);
    };
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
            Some(session) => Box::pin(supervisor.execute_in(&session.cloud, &execute, deadline)).await,
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
            Box::pin(ask_again(supervisor, &attempt, deadline)).await
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
    while let Err(error) = Box::pin(supervisor.cancel(attempt, Instant::now() + ANSWER)).await {
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
    let session = Box::pin(sessions.get(trust, plan.timeout(), request_id));
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
