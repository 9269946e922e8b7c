//! The worker: its package, its slots, the executions that run and the outcomes nobody has
//! acknowledged yet.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use protocol::openstack::Cloud;
use protocol::shim::{FromParent, FromSlot, MAX_FRAME, ToSlot};
use protocol::worker::{
    Account, Attempt, CGROUP_DIR, CLOUDS_DIR, End, Execute, ExecutionLimits, Limit, Load, Outcome,
    PACKAGE_DIR, PARENT_UID, Refusal, RefusalKind, Settings, State, UNPACK_UID,
};
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::cgroup::{Group, Limits};
use crate::clouds::{Clouds, Kept};
use crate::frame::{self, Reader};
use crate::helper;
use crate::limit::{self, Evidence};
use crate::log::{self, Log, Taken};
use crate::parent::Messages;
use crate::process::{Exit, Exited, Reaper, exit};
use crate::slot::{Place, Process, Source};

/// How long an execution waits for its slot to be made.
const SLOT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a process whose channel has closed may take to end.
const END_TIMEOUT: Duration = Duration::from_millis(250);
/// Bytes of outcomes that are kept for an engine that does not acknowledge them.
const MAX_KEPT_BYTES: usize = 128 << 20;
/// How often slots without an execution are looked at.
const WATCH_PERIOD: Duration = Duration::from_millis(500);
/// Tries to make a slot again before the worker gives up, and the engine makes another.
const MAX_TRIES: u32 = 20;
/// Pause before a slot is made again that could not be made.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

pub struct Worker {
    settings: Settings,
    reaper: Reaper,
    source: Source,
    /// Memory that an idle interpreter has to itself, beside what executions are allowed.
    interpreter_bytes: Cell<u64>,
    loaded: RefCell<Loading>,
    /// Slots that wait for an execution; the last one used is on top.
    free: RefCell<Vec<Slot>>,
    /// Slots that have given their answer and were not looked over yet.
    unseen: Cell<u32>,
    freed: Notify,
    /// Executions that were let in and have not ended.
    taken: Cell<u32>,
    attempts: RefCell<HashMap<Attempt, Entry>>,
    /// The lowest epoch that may run, of executions that were taken over.
    fences: RefCell<HashMap<String, i64>>,
    kept_bytes: Cell<usize>,
    clouds: RefCell<Clouds>,
    retired: RefCell<BTreeMap<String, u64>>,
    nonce: Cell<u64>,
}

enum Loading {
    Empty,
    Underway,
    Loaded(Load),
}

struct Slot {
    place: Place,
    process: Process,
}

impl Slot {
    /// Puts the slot under the limits of an execution.
    fn limit(&mut self, limits: ExecutionLimits) -> std::io::Result<()> {
        self.place.group.apply(Limits {
            // A slot has its interpreter's pages, or copies its parent's when it writes to them, and may keep
            // some from one execution to the next: neither is what this execution asked for.
            memory_bytes: limits.memory_bytes
                + self.process.own_bytes
                + self.process.rest.retained_bytes.next_multiple_of(1 << 20),
            cpu_millis: limits.cpu_millis,
        })
    }
}

/// One attempt that this worker has heard of.
struct Entry {
    ended: watch::Receiver<Option<Rc<Outcome>>>,
    cancel: Rc<Notify>,
}

pub type Result<T> = std::result::Result<T, Refusal>;

fn refuse<T>(kind: RefusalKind, reason: impl Into<String>) -> Result<T> {
    Err(Refusal { kind, reason: reason.into() })
}

impl Worker {
    /// Starts a process for each slot, and before them the parent interpreter where the shim forks.
    pub async fn start(settings: Settings, shim: &[String]) -> std::result::Result<Rc<Self>, String> {
        if settings.slots == 0 || settings.slots > PARENT_UID {
            return Err(format!("a worker has 1 to {PARENT_UID} slots, not {}", settings.slots));
        }
        let reaper = Reaper::start()?;
        let mut source = Source::start(&reaper, shim, settings.uid_base + PARENT_UID).await?;
        if let Source::Fork(parent) = &mut source
            && let Some(messages) = parent.messages.take()
        {
            tokio::task::spawn_local(follow_parent(messages));
        }
        let worker = Rc::new(Self {
            reaper,
            source,
            interpreter_bytes: Cell::default(),
            loaded: RefCell::new(Loading::Empty),
            free: RefCell::default(),
            unseen: Cell::new(0),
            freed: Notify::new(),
            taken: Cell::new(0),
            attempts: RefCell::default(),
            fences: RefCell::default(),
            kept_bytes: Cell::new(0),
            clouds: RefCell::default(),
            retired: RefCell::default(),
            nonce: Cell::new(seed()),
            settings,
        });
        for number in 0..worker.settings.slots {
            let group = Group::create(
                worker.settings.cgroup,
                Path::new(CGROUP_DIR),
                number,
                worker.settings.max_processes,
            )
            .map_err(|error| format!("the control group of slot {number}: {error}"))?;
            let mut place = Place::new(number, worker.settings.uid_base + number, group);
            let process = place.start(&worker.reaper, &worker.source).await?;
            worker.interpreter_bytes.set(process.own_bytes);
            worker.set_free(Slot { place, process });
        }
        tokio::task::spawn_local(worker.clone().watch_free());
        Ok(worker)
    }

    /// Ends with the parent interpreter, without which no slot can be made, where there is one.
    pub fn parent_exited(&self) -> Option<Exited> {
        match &self.source {
            Source::Fork(parent) => Some(parent.exited.clone()),
            Source::Spawn(_) => None,
        }
    }

    pub async fn state(&self) -> State {
        // Whoever had an answer finds what came of it.
        while self.unseen.get() > 0 {
            tokio::task::yield_now().await;
        }
        let attempts = self.attempts.borrow();
        let (ended, running): (Vec<_>, Vec<_>) =
            attempts.iter().partition(|(_, entry)| entry.ended.borrow().is_some());
        let names =
            |entries: Vec<(&Attempt, &Entry)>| entries.into_iter().map(|(name, _)| name.clone()).collect();
        State {
            protocol: protocol::VERSION,
            worker: self.settings.worker.clone(),
            slots: self.settings.slots,
            loaded: match &*self.loaded.borrow() {
                Loading::Loaded(load) => Some(load.clone()),
                Loading::Empty | Loading::Underway => None,
            },
            running: names(running),
            ended: names(ended),
            parent_private_bytes: self.interpreter_bytes.get(),
            retired: self.retired.borrow().clone(),
        }
    }

    /// Claims the right to load, once.
    pub fn begin_load(&self) -> Result<()> {
        let mut loaded = self.loaded.borrow_mut();
        match *loaded {
            Loading::Empty => {
                *loaded = Loading::Underway;
                Ok(())
            }
            Loading::Underway | Loading::Loaded(_) => {
                refuse(RefusalKind::Loaded, "this worker has a package, and keeps it for its whole life")
            }
        }
    }

    /// Unpacks the package. A worker whose package is unusable stays without one for good: something
    /// of it may have been written.
    pub async fn finish_load(&self, load: Load, package: fs::File) -> Result<()> {
        let uid = self.settings.uid_base + UNPACK_UID;
        match helper::unpack_as(&self.reaper, uid, package, load.limits).await {
            Ok(Ok(())) => {
                *self.loaded.borrow_mut() = Loading::Loaded(load);
                Ok(())
            }
            Ok(Err(reason)) => refuse(RefusalKind::BadPackage, reason),
            Err(error) => refuse(RefusalKind::Failed, format!("the package was not unpacked: {error}")),
        }
    }

    /// Keeps a cloud, so that executions may name it by its digest.
    pub fn keep_cloud(&self, digest: &str, cloud: &Cloud) -> Result<()> {
        let kept = self.clouds.borrow_mut().put(Path::new(CLOUDS_DIR), digest, cloud);
        kept.or_else(|error| refuse(RefusalKind::Failed, format!("the cloud: {error}")))
    }

    pub fn fence(&self, attempt: Attempt) {
        let mut fences = self.fences.borrow_mut();
        let lowest = fences.entry(attempt.execution).or_insert(attempt.epoch);
        *lowest = (*lowest).max(attempt.epoch);
    }

    pub fn acknowledge(&self, attempts: &[Attempt]) {
        let mut entries = self.attempts.borrow_mut();
        for attempt in attempts {
            let kept = entries.get(attempt).and_then(|entry| entry.ended.borrow().as_ref().map(size));
            // One that still runs cannot have been stored by anyone.
            if let Some(size) = kept {
                entries.remove(attempt);
                self.kept_bytes.set(self.kept_bytes.get().saturating_sub(size));
            }
        }
    }

    /// The outcome of an attempt, once it has ended.
    pub async fn outcome(&self, attempt: &Attempt) -> Result<Rc<Outcome>> {
        let Some(mut ended) = self.attempts.borrow().get(attempt).map(|entry| entry.ended.clone()) else {
            return refuse(RefusalKind::Unknown, "this worker knows no such attempt");
        };
        let outcome = ended.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        outcome.ok_or_else(|| Refusal {
            kind: RefusalKind::Failed,
            reason: "the attempt was given up before it started".to_owned(),
        })
    }

    /// Kills a running execution.
    pub fn cancel(&self, attempt: &Attempt) -> Result<()> {
        match self.attempts.borrow().get(attempt) {
            Some(entry) if entry.ended.borrow().is_none() => {
                entry.cancel.notify_one();
                Ok(())
            }
            _ => refuse(RefusalKind::Unknown, "no such execution runs here"),
        }
    }

    /// Runs an execution to its end, also when whoever asked has gone.
    pub async fn execute(self: &Rc<Self>, request: Execute) -> Result<Rc<Outcome>> {
        self.acknowledge(&request.acknowledge);
        if !matches!(*self.loaded.borrow(), Loading::Loaded(_)) {
            return refuse(RefusalKind::NotLoaded, "this worker has no package yet");
        }
        self.check_attempt(&request.attempt)?;
        let cloud = self.find_cloud(&request)?;
        if self.kept_bytes.get() > MAX_KEPT_BYTES {
            return refuse(RefusalKind::Failed, "too many outcomes wait for their acknowledgement");
        }
        if self.taken.get() == self.settings.slots {
            return refuse(RefusalKind::NoSlot, format!("all {} slots are taken", self.settings.slots));
        }
        self.taken.set(self.taken.get() + 1);
        let attempt = request.attempt.clone();
        let (report, ended) = watch::channel(None);
        let cancel = Rc::new(Notify::new());
        let entry = Entry { ended, cancel: cancel.clone() };
        self.attempts.borrow_mut().insert(attempt.clone(), entry);
        let worker = self.clone();
        let task = tokio::task::spawn_local(async move { worker.run(request, cloud, &cancel, report).await });
        match task.await {
            Ok(Ok(())) => self.outcome(&attempt).await,
            Ok(Err(refusal)) => Err(refusal),
            Err(error) => refuse(RefusalKind::Failed, format!("the execution's task ended: {error}")),
        }
    }

    /// The cloud that an execution names, held until it has ended.
    fn find_cloud(&self, request: &Execute) -> Result<Option<Rc<Kept>>> {
        let Some(openstack) = &request.openstack else { return Ok(None) };
        match self.clouds.borrow().find(&openstack.cloud) {
            Some(cloud) => Ok(Some(cloud)),
            None => refuse(RefusalKind::UnknownCloud, "this worker was not given the cloud, or not lately"),
        }
    }

    fn check_attempt(&self, attempt: &Attempt) -> Result<()> {
        if self.fences.borrow().get(&attempt.execution).is_some_and(|lowest| attempt.epoch < *lowest) {
            return refuse(RefusalKind::Fenced, "a later attempt has taken this execution over");
        }
        if self.attempts.borrow().contains_key(attempt) {
            return refuse(RefusalKind::Fenced, "this attempt is known already");
        }
        Ok(())
    }

    /// Takes a slot, runs, reports, and only then sees to the slot.
    async fn run(
        self: &Rc<Self>,
        mut request: Execute,
        cloud: Option<Rc<Kept>>,
        cancel: &Notify,
        report: watch::Sender<Option<Rc<Outcome>>>,
    ) -> Result<()> {
        let asked = Instant::now();
        let slot = match self.take_slot(request.fresh, request.limits).await {
            Ok(slot) => slot,
            Err(refusal) => {
                self.attempts.borrow_mut().remove(&request.attempt);
                self.taken.set(self.taken.get() - 1);
                return Err(refusal);
            }
        };
        let Slot { mut place, mut process } = slot;
        if let (Some(openstack), Some(cloud)) = (&mut request.openstack, &cloud) {
            openstack.cloud = cloud.directory();
        }
        let ran = self.run_in(&mut place, &mut process, &mut request, cancel, asked).await;
        let outcome = Rc::new(ran.outcome);
        self.kept_bytes.set(self.kept_bytes.get() + size(&outcome));
        // Whoever hears of the end may ask for another, which then waits until the slot is ready.
        self.taken.set(self.taken.get() - 1);
        report.send_replace(Some(outcome));
        // From here on it is about the next execution, and the answer goes first.
        let worker = self.clone();
        self.unseen.set(self.unseen.get() + 1);
        tokio::task::spawn_local(async move {
            tokio::task::yield_now().await;
            let fate = match ran.retire {
                Some(reason) => Err(reason),
                None => process.inspect(
                    &place.group,
                    worker.settings.memory_mark,
                    worker.settings.max_executions_per_slot,
                ),
            };
            worker.unseen.set(worker.unseen.get() - 1);
            let process = match fate {
                Ok(()) => process,
                Err(reason) => worker.replace(&mut place, process, reason).await,
            };
            worker.set_free(Slot { place, process });
        });
        Ok(())
    }

    /// A slot under the limits of this execution.
    async fn take_slot(&self, fresh: bool, limits: ExecutionLimits) -> Result<Slot> {
        let deadline = Instant::now() + SLOT_TIMEOUT;
        let mut slot = loop {
            if let Some(slot) = self.free.borrow_mut().pop() {
                break slot;
            }
            // One is being made: no more executions were let in than there are slots.
            if tokio::time::timeout_at(deadline, self.freed.notified()).await.is_err() {
                return refuse(RefusalKind::Failed, "no slot could be made in time");
            }
        };
        let stale = fresh && slot.process.runs > 0;
        if stale || !slot.process.is_quiet(&slot.place) {
            let reason = if stale { "fresh" } else { "not_quiet" };
            slot.process = self.replace(&mut slot.place, slot.process, reason).await;
        }
        if slot.limit(limits).is_err() {
            // The kernel does not limit a process to less than it holds already.
            slot.process = self.replace(&mut slot.place, slot.process, "limits").await;
            if let Err(error) = slot.limit(limits) {
                // Never without limits.
                self.set_free(slot);
                return refuse(RefusalKind::Failed, format!("the limits could not be set: {error}"));
            }
        }
        Ok(slot)
    }

    fn set_free(&self, mut slot: Slot) {
        slot.place.begin_count();
        self.free.borrow_mut().push(slot);
        self.freed.notify_one();
    }

    /// Replaces slots that work although no execution runs in them, again and again.
    async fn watch_free(self: Rc<Self>) {
        loop {
            tokio::time::sleep(WATCH_PERIOD).await;
            let restless: Vec<Slot> = {
                let mut free = self.free.borrow_mut();
                let all = std::mem::take(&mut *free);
                let (quiet, restless) = all.into_iter().partition(|slot| slot.process.is_quiet(&slot.place));
                *free = quiet;
                restless
            };
            for Slot { mut place, process } in restless {
                let process = self.replace(&mut place, process, "not_quiet").await;
                self.set_free(Slot { place, process });
            }
        }
    }

    /// Kills what is left of a slot and makes it again, however long that takes.
    async fn replace(&self, place: &mut Place, process: Process, reason: &'static str) -> Process {
        *self.retired.borrow_mut().entry(reason.to_owned()).or_default() += 1;
        drop(process);
        let mut tries = 0;
        loop {
            let made = async {
                place.kill().await?;
                place.clean(&self.reaper).await?;
                place.start(&self.reaper, &self.source).await
            };
            match made.await {
                Ok(process) => return process,
                Err(error) => eprintln!("slot {}: {error}", place.number),
            }
            tries += 1;
            if self.source.is_gone() || tries == MAX_TRIES {
                // The worker cannot go on; the engine sees it end.
                std::process::exit(1);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn run_in(
        &self,
        place: &mut Place,
        process: &mut Process,
        request: &mut Execute,
        cancel: &Notify,
        asked: Instant,
    ) -> Ran {
        log::discard(&process.output);
        let nonce = self.next_nonce();
        let kills = place.group.oom_kills().unwrap_or(0);
        let reused = process.runs > 0;
        process.runs += 1;
        let mut log = Log::new(request.limits.max_log_bytes);
        let started = Instant::now();
        let mut asides = Asides::default();
        let answer = converse(process, request, cancel, nonce, &mut log, &mut asides, started).await;
        let duration = started.elapsed();
        let (mut named, mut program) = (None, None);
        let (end, output, retire) = match answer {
            Answer::Said(FromSlot::Returned { output, .. }) => (End::Returned, Some(output), None),
            Answer::Said(FromSlot::Raised { message, limit, status, .. }) => {
                (named, program) = (limit, status);
                // What it has open the next would have as well.
                let retire = (limit == Some(Limit::OpenFiles)).then_some("open_files");
                (End::Raised { message }, None, retire)
            }
            Answer::Said(FromSlot::BadResult { reason, limit, .. }) => {
                named = limit;
                (End::BadResult { reason }, None, None)
            }
            Answer::Said(FromSlot::Exhausted { message, limit, .. }) => {
                named = limit;
                let starved = place.group.oom_kills().is_ok_and(|now| now > kills);
                let end = if starved { End::OutOfMemory } else { End::Exhausted { message } };
                (end, None, Some(if starved { "out_of_memory" } else { "exhausted" }))
            }
            Answer::Said(FromSlot::Exited { code, .. }) => (End::Exited { code }, None, Some("exit")),
            Answer::Said(
                FromSlot::Ready { .. }
                | FromSlot::Imported { .. }
                | FromSlot::TokenRefused { .. }
                | FromSlot::Spent { .. },
            ) => {
                let reason = "it sent a message that answers nothing".to_owned();
                (End::Misbehaved { reason }, None, Some("misbehaved"))
            }
            Answer::Misbehaved(reason) => (End::Misbehaved { reason }, None, Some("misbehaved")),
            Answer::TimedOut => (End::TimedOut, None, Some("timeout")),
            Answer::Cancelled => (End::Cancelled, None, Some("cancelled")),
            Answer::Ended(Exit::Code(code)) => (End::Exited { code }, None, Some("exit")),
            Answer::Ended(Exit::Signal(signal)) => {
                let starved = signal == libc::SIGKILL && place.group.oom_kills().is_ok_and(|now| now > kills);
                let end = if starved { End::OutOfMemory } else { End::Signalled { signal } };
                (end, None, Some(if starved { "out_of_memory" } else { "signal" }))
            }
        };
        let retire = retire.or(asides.spent.then_some("spent"));
        if retire.is_some() {
            // Before anyone hears of the end, so that nothing of the execution outlives it.
            if let Err(error) = place.kill().await {
                eprintln!("{error}");
            }
        }
        log.drain(&process.output);
        let finished =
            matches!(end, End::Returned | End::Raised { .. } | End::BadResult { .. } | End::Exhausted { .. })
                || matches!(end, End::Exited { .. });
        let evidence = Evidence { named, program, log: &log, place };
        let account = Account {
            waited_us: u64::try_from((started - asked).as_micros()).ok(),
            limit: limit::met(&end, &evidence),
            ..place.account()
        };
        let outcome = Outcome {
            attempt: request.attempt.clone(),
            output,
            account,
            duration_ms: duration.as_secs_f64() * 1000.0,
            log_truncated: log.is_truncated(),
            log: log.into_text(&request.attempt.execution, finished),
            reused,
            token_refused: asides.token_refused,
            end,
        };
        Ran { outcome, retire }
    }

    fn next_nonce(&self) -> u64 {
        // Not a secret: it tells a late answer from the one that is waited for.
        self.nonce.set(self.nonce.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        // 53 bits: some shims have no larger numbers.
        self.nonce.get() >> 11
    }
}

struct Ran {
    outcome: Outcome,
    /// Why the slot cannot run another, where that is clear from the end.
    retire: Option<&'static str>,
}

/// What a slot has said of a run beside its end.
#[derive(Default)]
struct Asides {
    token_refused: bool,
    spent: bool,
}

enum Answer {
    Said(FromSlot),
    Ended(Exit),
    Misbehaved(String),
    TimedOut,
    Cancelled,
}

/// Sends the execution into the slot and follows it to its end, the deadline or a cancellation.
async fn converse(
    process: &mut Process,
    request: &mut Execute,
    cancel: &Notify,
    nonce: u64,
    log: &mut Log,
    asides: &mut Asides,
    started: Instant,
) -> Answer {
    let mut run = frame::encode(&ToSlot::Run {
        nonce,
        execution: request.attempt.execution.clone(),
        entry: request.entry.clone(),
        // Inputs are large; one copy is enough, and none once it is sent.
        input: std::mem::replace(&mut request.input, RawValue::NULL.to_owned()),
        max_result_bytes: request.limits.max_result_bytes,
        request_id: request.request_id.clone(),
        // The token is kept no longer than it takes to hand it on.
        openstack: request.openstack.take(),
        names_limits: true,
    });
    let deadline = started + Duration::from_millis(request.limits.timeout_ms);
    let most =
        usize::try_from(request.limits.max_result_bytes).unwrap_or(usize::MAX).saturating_add(MAX_FRAME);
    let mut reader = Reader::new(most);
    let (mut sent, mut imported) = (0, false);
    let mut listening = true;
    loop {
        let Process { channel, output, exited, .. } = &mut *process;
        let (mut receive, mut send) = channel.split();
        // Asked here too: a timer is not looked at while a loud execution keeps this task busy.
        if Instant::now() >= deadline {
            return Answer::TimedOut;
        }
        let step = tokio::select! {
            biased;
            () = cancel.notified() => return Answer::Cancelled,
            () = tokio::time::sleep_until(deadline) => return Answer::TimedOut,
            ended = exit(exited) => Step::Ended(ended),
            written = send.write(&run[sent..]), if sent < run.len() => Step::Written(written),
            message = reader.step::<FromSlot>(&mut receive) => Step::Message(message),
            _ = output.readable(), if listening => Step::Output,
        };
        match step {
            Step::Written(Ok(written)) => {
                sent += written;
                if sent == run.len() {
                    (run, sent) = (Vec::new(), 0);
                }
            }
            Step::Written(Err(_)) | Step::Message(Err(frame::Error::Closed)) => {
                // Closed by its end, or by the function while it runs on.
                return match process.end_within(END_TIMEOUT).await {
                    Some(ended) => Answer::Ended(ended),
                    None => Answer::Misbehaved("it closed the channel that its answer takes".to_owned()),
                };
            }
            Step::Message(Err(error)) => return Answer::Misbehaved(format!("it sent {error}")),
            Step::Message(Ok(None)) => {}
            Step::Message(Ok(Some(FromSlot::Imported { nonce: of, resident_bytes })))
                if of == nonce && !std::mem::replace(&mut imported, true) =>
            {
                process.note_import(resident_bytes);
            }
            Step::Message(Ok(Some(FromSlot::TokenRefused { nonce: of })))
                if of == nonce && !std::mem::replace(&mut asides.token_refused, true) => {}
            Step::Message(Ok(Some(FromSlot::Spent { nonce: of })))
                if of == nonce && !std::mem::replace(&mut asides.spent, true) => {}
            Step::Message(Ok(Some(message))) => {
                return if message_nonce(&message) == Some(nonce) && reader.is_empty() {
                    Answer::Said(message)
                } else {
                    Answer::Misbehaved("it sent an answer that is not this execution's".to_owned())
                };
            }
            // A pipe that nobody holds the other end of stays readable for ever.
            Step::Output => listening = log.take(output) != Taken::End,
            Step::Ended(ended) => {
                // Its last words may still be in the channel.
                let last =
                    tokio::time::timeout(END_TIMEOUT, last_message(&mut reader, channel, asides)).await;
                return match last {
                    Ok(Some(message)) if message_nonce(&message) == Some(nonce) => Answer::Said(message),
                    _ => Answer::Ended(ended),
                };
            }
        }
    }
}

enum Step {
    Written(std::io::Result<usize>),
    Message(std::result::Result<Option<FromSlot>, frame::Error>),
    Output,
    Ended(Exit),
}

async fn last_message(
    reader: &mut Reader,
    channel: &mut tokio::net::UnixStream,
    asides: &mut Asides,
) -> Option<FromSlot> {
    loop {
        match reader.step::<FromSlot>(channel).await {
            Ok(Some(FromSlot::Imported { .. })) | Ok(None) => {}
            Ok(Some(FromSlot::TokenRefused { .. })) => asides.token_refused = true,
            Ok(Some(FromSlot::Spent { .. })) => asides.spent = true,
            Ok(Some(message)) => return Some(message),
            Err(_) => return None,
        }
    }
}

fn message_nonce(message: &FromSlot) -> Option<u64> {
    match message {
        FromSlot::Ready { .. } => None,
        FromSlot::Imported { nonce, .. }
        | FromSlot::TokenRefused { nonce }
        | FromSlot::Spent { nonce }
        | FromSlot::Returned { nonce, .. }
        | FromSlot::Raised { nonce, .. }
        | FromSlot::BadResult { nonce, .. }
        | FromSlot::Exhausted { nonce, .. }
        | FromSlot::Exited { nonce, .. } => Some(*nonce),
    }
}

/// Bytes that keeping an outcome costs.
fn size(outcome: &Rc<Outcome>) -> usize {
    outcome.log.len() + outcome.output.as_ref().map_or(0, |output| output.get().len()) + 256
}

fn seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64)
}

/// Reports forks that failed; the slot that waits for one gives up by itself.
async fn follow_parent(mut messages: Messages) {
    while let Ok(message) = frame::read::<FromParent>(&mut messages, MAX_FRAME).await {
        if let FromParent::ForkFailed { slot, reason } = message {
            eprintln!("slot {slot}: {reason}");
        }
    }
}

/// Where a package waits for being unpacked: on the worker's disk, readable by the supervisor alone.
pub fn package_file() -> std::io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = Path::new(PACKAGE_DIR).with_file_name(".package");
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}
