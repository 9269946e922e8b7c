//! The bookkeeping under the pool's lock: what there is, and what each event makes of it. Takes the
//! time as an argument and reaches for nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::queue::{Queue, Ticket};
use super::runtimes::Runtimes;
use super::*;
use crate::engine::place::{self, Decision, Need, Room};
use crate::engine::worker::Event;

mod serve;

#[derive(Debug)]
pub(super) struct Book {
    limits: Limits,
    workers: BTreeMap<WorkerId, Entry>,
    functions: HashMap<Arc<FunctionKey>, Function>,
    runtimes: Runtimes,
    queue: Queue,
    refusals: HashMap<Arc<FunctionKey>, (Instant, String)>,
    last_worker: u64,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    worker: Arc<Worker>,
    state: WorkerState,
    last_used: Instant,
    orders: mpsc::UnboundedSender<Order>,
    /// What the call that caused it, or that was bound to it, found.
    start: Start,
    stopping: bool,
    probe: Option<oneshot::Sender<Result<(), String>>>,
}

#[derive(Debug)]
struct Function {
    runtime: RuntimeId,
    /// Those that are not draining.
    workers: Vec<WorkerId>,
    /// Workers in a row that ended while they were loaded.
    deaths: u32,
}

#[derive(Debug)]
pub(super) enum Acquired {
    Now(Granted),
    Wait(u64, oneshot::Receiver<Result<Lease, Error>>),
}

impl Book {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            workers: BTreeMap::new(),
            functions: HashMap::new(),
            runtimes: Runtimes::default(),
            queue: Queue::new(limits.max_queue),
            refusals: HashMap::new(),
            last_worker: 0,
            closed: false,
        }
    }

    pub fn acquire(
        &mut self,
        key: &Arc<FunctionKey>,
        runtime: &RuntimeId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> Result<Acquired, Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        match self.decide(key, runtime, self.queue.count(key), self.unclaimed_room(key), now) {
            Decision::Warm(id) => {
                Ok(Acquired::Now(self.invoke(id, Start::Warm, now).expect("it has a free slot")))
            }
            decision => {
                if let Some((until, why)) = self.refusals.get(key)
                    && now < *until
                {
                    return Err(Error::Preparation(why.clone()));
                }
                let bound = self.functions.get(key).is_some_and(|function| !function.workers.is_empty());
                if let Some(why) = self.runtimes.unusable(runtime).filter(|_| !bound) {
                    return Err(Error::Preparation(why.to_owned()));
                }
                if let Some((latest, ticket)) = self.queue.make_place(key)? {
                    self.forget_if_unused(&latest);
                    effects.push(Effect::Answer(ticket.caller, Err(Error::Full)));
                }
                // Before the decision is carried out, which may drain what `key` is kept for.
                let (ticket, answer) = self.queue.push(key, now);
                self.function(key, runtime);
                if self.carry_out(decision, key, runtime, now, effects) {
                    self.queue.took_turn(&key.project);
                }
                Ok(Acquired::Wait(ticket, answer))
            }
        }
    }

    /// A caller gives up.
    pub fn leave(&mut self, key: &Arc<FunctionKey>, ticket: u64) {
        if self.queue.leave(key, ticket) {
            self.forget_if_unused(key);
        }
    }

    pub fn release(&mut self, id: WorkerId, now: Instant, effects: &mut Vec<Effect>) {
        // A worker that was killed may be gone before the lease on it is.
        if !self.step(id, Event::Finished, now) {
            return;
        }
        let entry = self.workers.get_mut(&id).expect("it took the event");
        entry.last_used = now;
        match &entry.state {
            WorkerState::Draining { in_flight: 0, .. } => self.stop(id),
            WorkerState::Draining { .. } => {}
            state => {
                let became_idle = matches!(state, WorkerState::Idle { .. });
                self.hand_out(id, Start::Warm, now, effects);
                if became_idle && !self.queue.is_empty() {
                    self.pump(now, effects);
                }
            }
        }
    }

    pub fn ready(&mut self, id: WorkerId, now: Instant, effects: &mut Vec<Effect>) {
        if !self.step(id, Event::Ready, now) {
            return;
        }
        let entry = self.workers.get_mut(&id).expect("it took the event");
        entry.last_used = now;
        if let Some(probe) = entry.probe.take() {
            // Nobody waits for it after a shutdown.
            let _ = probe.send(Ok(()));
        }
        self.runtimes.started(&entry.worker.runtime, &entry.worker.image_id);
        if let WorkerState::Specializing { function } = &entry.state {
            let _ = entry.orders.send(Order::Specialize(function.clone()));
        }
        self.pump(now, effects);
        effects.push(Effect::Nudge);
    }

    pub fn loaded(&mut self, id: WorkerId, now: Instant, effects: &mut Vec<Effect>) {
        if self.step(id, Event::Loaded, now) {
            let entry = self.workers.get_mut(&id).expect("it took the event");
            entry.last_used = now;
            let start = entry.start;
            let key = entry.state.function().cloned();
            if let Some(function) = key.and_then(|key| self.functions.get_mut(&key)) {
                function.deaths = 0;
            }
            self.hand_out(id, start, now, effects);
            self.pump(now, effects);
        }
    }

    pub fn failed(&mut self, id: WorkerId, step: Step, why: &str, now: Instant, effects: &mut Vec<Effect>) {
        let Some(entry) = self.workers.get_mut(&id) else { return };
        if let Some(probe) = entry.probe.take() {
            let _ = probe.send(Err(why.to_owned()));
        }
        let worker = entry.worker.clone();
        let function = entry.state.is_preparing().then(|| entry.state.function().cloned()).flatten();
        if matches!(step, Step::Start | Step::Ended) {
            self.runtimes.failed(&worker.runtime, &worker.image_id, now);
        }
        if let Some(key) = function {
            if step == Step::Refused {
                self.refusals.retain(|_, (until, _)| now < *until);
                self.refusals.insert(key.clone(), (now + REFUSAL, why.to_owned()));
            }
            let again = matches!(step, Step::Died | Step::Ended);
            if !again || self.count_death(&key) >= DEATHS {
                let error = match step {
                    Step::Missing => Error::Missing,
                    _ => Error::Preparation(why.to_owned()),
                };
                for ticket in self.joined(&key, id) {
                    effects.push(Effect::Answer(ticket.caller, Err(error.clone())));
                }
            }
        }
        self.drain(id, now);
        self.pump(now, effects);
        effects.push(Effect::Nudge);
    }

    pub fn gone(&mut self, id: WorkerId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(mut entry) = self.workers.remove(&id) else { return };
        if let Some(probe) = entry.probe.take() {
            let _ = probe.send(Err("the worker was removed".to_owned()));
        }
        if let Some(key) = entry.state.function().cloned() {
            self.unlist(&key, id);
        }
        self.pump(now, effects);
        effects.push(Effect::Nudge);
    }

    pub fn kill(&mut self, id: WorkerId, now: Instant, effects: &mut Vec<Effect>) {
        self.drain(id, now);
        self.stop(id);
        self.pump(now, effects);
    }

    pub fn drain_where(
        &mut self,
        which: impl Fn(&Info) -> bool,
        most: usize,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> usize {
        let infos = self.list();
        let chosen = infos.iter().filter(|info| !info.state.is_draining() && which(info)).take(most);
        let chosen: Vec<WorkerId> = chosen.map(|info| info.id).collect();
        for id in &chosen {
            self.drain(*id, now);
        }
        if !chosen.is_empty() {
            self.pump(now, effects);
        }
        chosen.len()
    }

    pub fn set_runtime(&mut self, id: &RuntimeId, base: Base, now: Instant, effects: &mut Vec<Effect>) {
        if self.runtimes.set(id, base) {
            self.pump(now, effects);
        }
    }

    /// Workers that are up go on, and calls may wait for them; those that have none are told `why`.
    pub fn set_unusable(&mut self, id: &RuntimeId, why: &str, effects: &mut Vec<Effect>) {
        self.runtimes.set_unusable(id, why);
        self.dismiss_all(id, |function| function.workers.is_empty(), why, effects);
    }

    pub fn image_is_gone(&mut self, id: &RuntimeId, image_id: &str, effects: &mut Vec<Effect>) {
        if self.runtimes.has_image(id, image_id) {
            self.runtimes.remove(id);
            effects.push(Effect::Nudge);
        }
    }

    pub fn remove_runtime(&mut self, id: &RuntimeId, effects: &mut Vec<Effect>) {
        self.runtimes.remove(id);
        self.dismiss_all(id, |_| true, "The runtime was removed.", effects);
        let now = Instant::now();
        self.drain_where(|info| info.worker.runtime == *id, usize::MAX, now, effects);
    }

    fn dismiss_all(
        &mut self,
        id: &RuntimeId,
        which: impl Fn(&Function) -> bool,
        why: &str,
        effects: &mut Vec<Effect>,
    ) {
        let of: Vec<Arc<FunctionKey>> = self
            .functions
            .iter()
            .filter(|(_, function)| function.runtime == *id && which(function))
            .map(|(key, _)| key.clone())
            .collect();
        for key in of {
            self.dismiss(&key, &Error::Preparation(why.to_owned()), effects);
        }
    }

    pub fn base(&self, id: &RuntimeId) -> Option<Base> {
        self.runtimes.base(id).cloned()
    }

    pub fn prewarm(&mut self, id: &RuntimeId, wanted: usize, now: Instant, effects: &mut Vec<Effect>) {
        // Those that wait for room go first; what is kept ready is for nobody yet.
        let may = !self.closed && self.runtimes.may_start(id, now);
        if !may || self.functions.keys().any(|key| self.is_short(key)) {
            return;
        }
        let Some(base) = self.runtimes.base(id).cloned() else { return };
        let ready = self.workers.values().filter(|entry| {
            entry.state.is_unbound() && entry.worker.runtime == *id && self.is_current(entry)
        });
        for _ in ready.count()..wanted {
            if self.workers.len() >= self.limits.max_workers {
                return;
            }
            self.spawn(id, &base, None, now, effects);
        }
    }

    pub fn probe(
        &mut self,
        id: &RuntimeId,
        base: &Base,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> Option<oneshot::Receiver<Result<(), String>>> {
        if self.closed {
            return None;
        }
        if self.workers.len() >= self.limits.max_workers {
            let idle = self.workers.iter().filter(|(_, entry)| {
                matches!(entry.state, WorkerState::Idle { .. } | WorkerState::Prewarmed)
            });
            let coming = self.workers.values().any(|entry| is_leaving(&entry.state));
            let oldest = idle.min_by_key(|(_, entry)| entry.last_used).map(|(id, _)| *id);
            if let (false, Some(oldest)) = (coming, oldest) {
                self.drain(oldest, now);
            }
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let id = self.spawn(id, base, None, now, effects);
        self.workers.get_mut(&id).expect("just made").probe = Some(sender);
        Some(receiver)
    }

    pub fn adopt(
        &mut self,
        worker: &Arc<Worker>,
        function: Option<FunctionKey>,
        in_flight: u32,
        now: Instant,
    ) -> Option<(WorkerId, mpsc::UnboundedReceiver<Order>)> {
        let taken = self.workers.values().any(|entry| entry.worker.index == worker.index);
        if taken || in_flight > self.limits.slots || (function.is_none() && in_flight > 0) {
            return None;
        }
        let state = match function.map(Arc::new) {
            None => WorkerState::Prewarmed,
            Some(function) if in_flight == 0 => WorkerState::Idle { function, since: now },
            Some(function) => WorkerState::Busy { function, in_flight },
        };
        self.last_worker += 1;
        let id = WorkerId(self.last_worker);
        if let Some(key) = state.function().cloned() {
            self.enlist(&key, &worker.runtime, id);
        }
        let (orders, receiver) = mpsc::unbounded_channel();
        let entry = Entry {
            worker: worker.clone(),
            state,
            last_used: now,
            orders,
            start: Start::Warm,
            stopping: false,
            probe: None,
        };
        self.workers.insert(id, entry);
        Some((id, receiver))
    }

    pub fn scale_up(
        &mut self,
        key: &Arc<FunctionKey>,
        runtime: &RuntimeId,
        count: u32,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if self.closed {
            return;
        }
        for _ in 0..count {
            // As a call that finds every slot taken and spoken for, but nobody makes room for it.
            match self.decide(key, runtime, usize::MAX, 0, now) {
                decision @ (Decision::Bind(_) | Decision::Start { evict: None }) => {
                    self.carry_out(decision, key, runtime, now, effects);
                }
                _ => return,
            }
        }
    }

    pub fn scale_down(
        &mut self,
        function: &FunctionId,
        version: i32,
        count: u32,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let mut of: Vec<Info> = self.list();
        of.retain(|info| is_of(info, function, version) && !info.state.is_draining());
        of.sort_by_key(|info| (info.state.in_flight(), info.last_used, info.id));
        let most = (count as usize).min(of.len().saturating_sub(1));
        let chosen: BTreeSet<WorkerId> = of.iter().take(most).map(|info| info.id).collect();
        self.drain_where(|info| chosen.contains(&info.id), usize::MAX, now, effects);
    }

    pub fn status(&self, id: &RuntimeId) -> Option<PoolStatus> {
        self.runtimes.base(id)?;
        let of = || self.workers.values().filter(|entry| entry.worker.runtime == *id);
        let count = |entries: usize| u32::try_from(entries).unwrap_or(u32::MAX);
        Some(PoolStatus {
            total: count(of().count()),
            available: count(of().filter(|entry| entry.state == WorkerState::Prewarmed).count()),
        })
    }

    pub fn list(&self) -> Vec<Info> {
        self.workers
            .iter()
            .map(|(id, entry)| Info {
                id: *id,
                worker: entry.worker.clone(),
                state: entry.state.clone(),
                last_used: entry.last_used,
                current: self.is_current(entry),
            })
            .collect()
    }

    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.queue.is_empty() {
            return;
        }
        self.pump(now, effects);
        self.relieve(now);
    }

    pub fn close(&mut self, effects: &mut Vec<Effect>) {
        self.closed = true;
        let keys: Vec<Arc<FunctionKey>> = self.functions.keys().cloned().collect();
        for key in keys {
            self.dismiss(&key, &Error::Closed, effects);
        }
    }

    fn count_death(&mut self, key: &Arc<FunctionKey>) -> u32 {
        self.functions.get_mut(key).map_or(0, |function| {
            function.deaths += 1;
            function.deaths
        })
    }

    fn drain(&mut self, id: WorkerId, now: Instant) {
        if !self.step(id, Event::Drain, now) {
            return;
        }
        let state = &self.workers[&id].state;
        let (function, leaving) = (state.function().cloned(), is_leaving(state));
        if let Some(key) = function {
            self.unlist(&key, id);
        }
        if leaving {
            self.stop(id);
        }
    }

    fn stop(&mut self, id: WorkerId) {
        if let Some(entry) = self.workers.get_mut(&id)
            && !std::mem::replace(&mut entry.stopping, true)
        {
            // Its task may have ended for itself.
            let _ = entry.orders.send(Order::Stop);
        }
    }

    fn step(&mut self, id: WorkerId, event: Event, now: Instant) -> bool {
        let Some(entry) = self.workers.get_mut(&id) else { return false };
        match entry.state.on(event, self.limits.slots, now) {
            Some(state) => {
                entry.state = state;
                true
            }
            None => false,
        }
    }

    fn function(&mut self, key: &Arc<FunctionKey>, runtime: &RuntimeId) -> &mut Function {
        self.functions.entry(key.clone()).or_insert_with(|| Function {
            runtime: runtime.clone(),
            workers: Vec::new(),
            deaths: 0,
        })
    }

    fn enlist(&mut self, key: &Arc<FunctionKey>, runtime: &RuntimeId, id: WorkerId) {
        self.function(key, runtime).workers.push(id);
    }

    fn unlist(&mut self, key: &Arc<FunctionKey>, id: WorkerId) {
        if let Some(function) = self.functions.get_mut(key) {
            function.workers.retain(|other| *other != id);
        }
        self.forget_if_unused(key);
    }

    fn forget_if_unused(&mut self, key: &Arc<FunctionKey>) {
        if self.functions.get(key).is_some_and(|function| function.workers.is_empty())
            && self.queue.count(key) == 0
        {
            self.functions.remove(key);
        }
    }

    /// It is as workers of its runtime are now; a bound one may do without their network.
    fn is_current(&self, entry: &Entry) -> bool {
        let worker = &entry.worker;
        self.runtimes.base(&worker.runtime).is_some_and(|base| {
            let offline = entry.state.function().is_some_and(|function| function.offline);
            worker.image_id == base.image.id && worker.network == network_for(base, offline)
        })
    }

    fn view<'a>(&self, id: WorkerId, entry: &'a Entry) -> View<'a> {
        View {
            id,
            state: &entry.state,
            runtime: &entry.worker.runtime,
            current: self.is_current(entry),
            network: entry.worker.network,
            last_used: entry.last_used,
        }
    }

    fn views(&self) -> Vec<View<'_>> {
        self.workers.iter().map(|(id, entry)| self.view(*id, entry)).collect()
    }
}

fn network_for(base: &Base, offline: bool) -> Network {
    if offline { Network::None } else { base.network }
}

fn is_leaving(state: &WorkerState) -> bool {
    matches!(state, WorkerState::Draining { in_flight: 0, .. })
}
