//! The bookkeeping under the pool's lock. Takes the time as an argument and reaches for nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::*;
use crate::engine::place::{self, Decision, Need, Room};
use crate::engine::worker::Event;

#[derive(Debug)]
pub(super) struct Book {
    limits: Limits,
    workers: BTreeMap<WorkerId, Entry>,
    functions: HashMap<Arc<FunctionKey>, Function>,
    runtimes: HashMap<RuntimeId, Runtime>,
    /// Calls that wait, by project; none is 0.
    waiting: HashMap<crate::model::ProjectId, usize>,
    /// When a project last got a worker, counted in such turns; only of projects that wait.
    turns: HashMap<crate::model::ProjectId, u64>,
    turn: u64,
    refusals: HashMap<Arc<FunctionKey>, (Instant, String)>,
    last_worker: u64,
    last_ticket: u64,
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
    waiting: VecDeque<Ticket>,
    /// Workers in a row that ended while they were loaded.
    deaths: u32,
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    since: Instant,
    caller: oneshot::Sender<Result<Lease, Error>>,
}

#[derive(Debug)]
struct Runtime {
    image: RuntimeImage,
    failures: u32,
    not_before: Option<Instant>,
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
            runtimes: HashMap::new(),
            waiting: HashMap::new(),
            turns: HashMap::new(),
            turn: 0,
            refusals: HashMap::new(),
            last_worker: 0,
            last_ticket: 0,
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
        let function = self.functions.get(key);
        let ahead = function.map_or(0, |function| function.waiting.len());
        match self.decide(key, runtime, ahead, self.unclaimed_room(key), now) {
            Decision::Warm(id) => {
                Ok(Acquired::Now(self.invoke(id, Start::Warm, now).expect("it has a free slot")))
            }
            decision => {
                if let Some((until, why)) = self.refusals.get(key)
                    && now < *until
                {
                    return Err(Error::Preparation(why.clone()));
                }
                self.make_place(key, effects)?;
                // Before the decision is carried out, which may drain what `key` is kept for.
                let acquired = self.enqueue(key, runtime, now);
                if self.carry_out(decision, key, runtime, now, effects) {
                    self.took_turn(key);
                }
                Ok(acquired)
            }
        }
    }

    /// A caller gives up.
    pub fn leave(&mut self, key: &Arc<FunctionKey>, ticket: u64) {
        let Some(function) = self.functions.get_mut(key) else { return };
        if let Some(at) = function.waiting.iter().position(|waiting| waiting.number == ticket) {
            function.waiting.remove(at);
            self.unwait(key, 1);
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
                if became_idle && !self.waiting.is_empty() {
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
        if let Some(runtime) = self.runtimes.get_mut(&entry.worker.runtime)
            && runtime.image.id == entry.worker.image_id
        {
            (runtime.failures, runtime.not_before) = (0, None);
        }
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
        let (runtime, image) = (entry.worker.runtime.clone(), entry.worker.image_id.clone());
        let function = entry.state.is_preparing().then(|| entry.state.function().cloned()).flatten();
        if step == Step::Start
            && let Some(runtime) = self.runtimes.get_mut(&runtime)
            && runtime.image.id == image
        {
            let pause = FIRST_PAUSE * 2u32.pow(runtime.failures.min(8));
            runtime.failures += 1;
            runtime.not_before = Some(now + pause.min(LONGEST_PAUSE));
        }
        if let Some(key) = function {
            if step == Step::Refused {
                self.refusals.retain(|_, (until, _)| now < *until);
                self.refusals.insert(key.clone(), (now + REFUSAL, why.to_owned()));
            }
            if step != Step::Died || self.count_death(&key) >= DEATHS {
                for ticket in self.joined(&key, id) {
                    effects.push(Effect::Answer(ticket.caller, Err(Error::Preparation(why.to_owned()))));
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

    pub fn set_runtime(
        &mut self,
        id: &RuntimeId,
        image: RuntimeImage,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        match self.runtimes.get_mut(id) {
            Some(runtime) if runtime.image == image => return,
            Some(runtime) => *runtime = Runtime { image, failures: 0, not_before: None },
            None => {
                let runtime = Runtime { image, failures: 0, not_before: None };
                self.runtimes.insert(id.clone(), runtime);
            }
        }
        self.pump(now, effects);
    }

    pub fn remove_runtime(&mut self, id: &RuntimeId, effects: &mut Vec<Effect>) {
        self.runtimes.remove(id);
        let of: Vec<Arc<FunctionKey>> = self
            .functions
            .iter()
            .filter(|(_, function)| function.runtime == *id)
            .map(|(key, _)| key.clone())
            .collect();
        for key in of {
            self.dismiss(&key, &Error::Preparation("The runtime was removed.".to_owned()), effects);
        }
        let now = Instant::now();
        self.drain_where(|info| info.worker.runtime == *id, usize::MAX, now, effects);
    }

    pub fn image(&self, id: &RuntimeId) -> Option<RuntimeImage> {
        self.runtimes.get(id).map(|runtime| runtime.image.clone())
    }

    pub fn prewarm(&mut self, id: &RuntimeId, wanted: usize, now: Instant, effects: &mut Vec<Effect>) {
        // Those that wait for room go first; what is kept ready is for nobody yet.
        if self.closed || !self.may_start(id, now) || self.functions.keys().any(|key| self.is_short(key)) {
            return;
        }
        let image = self.runtimes[id].image.clone();
        let ready = self.workers.values().filter(|entry| {
            entry.state.is_unbound() && entry.worker.runtime == *id && entry.worker.image_id == image.id
        });
        for _ in ready.count()..wanted {
            if self.workers.len() >= self.limits.max_workers {
                return;
            }
            self.spawn(id, image.clone(), None, now, effects);
        }
    }

    pub fn probe(
        &mut self,
        id: &RuntimeId,
        image: RuntimeImage,
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
        let id = self.spawn(id, image, None, now, effects);
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
        self.runtimes.get(id)?;
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
        self.waiting.values().sum()
    }

    pub fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.waiting.is_empty() {
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

    /// Serves whoever waits for a worker, in turns by project and in order within one, until nothing
    /// more can be done.
    fn pump(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.waiting.is_empty() || self.closed {
            return;
        }
        let mut coming = self.workers.values().filter(|entry| is_leaving(&entry.state)).count();
        let mut projects = self.in_turn();
        while let Some(mut functions) = projects.pop_front() {
            while let Some(key) = functions.front().cloned() {
                let runtime = self.functions[&key].runtime.clone();
                let ahead = self.placed(&key);
                let decision = self.decide(&key, &runtime, ahead, coming, now);
                let served = match decision {
                    Decision::Warm(id) => {
                        self.hand_out(id, Start::Warm, now, effects);
                        true
                    }
                    Decision::Bind(_) | Decision::Start { .. } => {
                        self.carry_out(decision, &key, &runtime, now, effects)
                    }
                    Decision::Join(_) => true,
                    Decision::Wait => {
                        coming = coming.saturating_sub(1);
                        false
                    }
                };
                if served {
                    self.took_turn(&key);
                }
                if !served || !self.is_short(&key) {
                    functions.pop_front();
                }
                if served {
                    break;
                }
            }
            if !functions.is_empty() {
                projects.push_back(functions);
            }
        }
    }

    fn took_turn(&mut self, key: &FunctionKey) {
        if self.waiting.contains_key(&key.project) {
            self.turn += 1;
            self.turns.insert(key.project.clone(), self.turn);
        }
    }

    /// Functions with calls that wait for a worker nobody prepares, by project, in the order in
    /// which they are served.
    fn in_turn(&self) -> VecDeque<VecDeque<Arc<FunctionKey>>> {
        let mut projects: HashMap<_, Vec<(u64, &Arc<FunctionKey>)>> = HashMap::new();
        for (key, function) in &self.functions {
            if let Some(first) = function.waiting.front()
                && self.is_short(key)
            {
                projects.entry(&key.project).or_default().push((first.number, key));
            }
        }
        let mut order: Vec<_> = projects
            .into_iter()
            .map(|(project, mut functions)| {
                functions.sort_unstable_by_key(|(number, _)| *number);
                let turn = self.turns.get(project).copied().unwrap_or(0);
                ((turn, functions[0].0), functions)
            })
            .collect();
        order.sort_unstable_by_key(|(turn, _)| *turn);
        let keys = |functions: Vec<(u64, &Arc<FunctionKey>)>| {
            functions.into_iter().map(|(_, key)| key.clone()).collect()
        };
        order.into_iter().map(|(_, functions)| keys(functions)).collect()
    }

    /// Where one call waited long and nothing is on its way, drains a busy worker for it.
    fn relieve(&mut self, now: Instant) {
        let draining = self.workers.values().any(|entry| entry.state.is_draining());
        if draining || self.workers.len() < self.limits.max_workers || self.closed {
            return;
        }
        let longest = self.in_turn().into_iter().flatten().find(|key| {
            let first = self.functions[key].waiting.front().expect("it has calls that wait");
            now.duration_since(first.since) > PATIENCE
        });
        let Some(key) = longest else { return };
        if let Some(id) = place::relieve(&key, &self.views()) {
            self.drain(id, now);
        }
    }

    fn decide(
        &self,
        key: &Arc<FunctionKey>,
        runtime: &RuntimeId,
        ahead: usize,
        coming: usize,
        now: Instant,
    ) -> Decision {
        let room = Room {
            slots: self.limits.slots,
            max_workers: self.limits.max_workers,
            may_start: self.may_start(runtime, now),
            coming,
        };
        let mine = self.functions.get(key).into_iter().flat_map(|function| &function.workers);
        let mine = mine.map(|id| self.view(*id, &self.workers[id]));
        place::place(Need { function: key, runtime, ahead }, room, mine, || self.views())
    }

    /// Does what was decided, apart from giving out slots; `false` where room has to come first.
    fn carry_out(
        &mut self,
        decision: Decision,
        key: &Arc<FunctionKey>,
        runtime: &RuntimeId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> bool {
        match decision {
            Decision::Bind(id) => {
                let bound = self.step(id, Event::Bind(key.clone()), now);
                debug_assert!(bound, "place binds unbound workers only");
                self.enlist(key, runtime, id);
                let entry = self.workers.get_mut(&id).expect("it took the event");
                if let WorkerState::Specializing { function } = &entry.state {
                    entry.start = Start::Prewarmed;
                    let _ = entry.orders.send(Order::Specialize(function.clone()));
                }
                effects.push(Effect::Nudge);
                true
            }
            Decision::Start { evict: None } => {
                let image = self.runtimes[runtime].image.clone();
                let id = self.spawn(runtime, image, Some(key.clone()), now, effects);
                self.enlist(key, runtime, id);
                true
            }
            Decision::Start { evict: Some(id) } => {
                self.drain(id, now);
                false
            }
            Decision::Warm(_) | Decision::Join(_) | Decision::Wait => false,
        }
    }

    fn spawn(
        &mut self,
        runtime: &RuntimeId,
        image: RuntimeImage,
        function: Option<Arc<FunctionKey>>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> WorkerId {
        self.last_worker += 1;
        let id = WorkerId(self.last_worker);
        let taken: BTreeSet<u32> = self.workers.values().map(|entry| entry.worker.index).collect();
        let index = (0..).find(|index| !taken.contains(index)).expect("there are fewer workers");
        let name = uuid::Uuid::new_v4().simple().to_string();
        let name = WorkerName::from(format!("w{}", &name[..15]));
        let worker = Arc::new(Worker::new(name, index, runtime.clone(), image.id.clone()));
        let (orders, receiver) = mpsc::unbounded_channel();
        let entry = Entry {
            worker: worker.clone(),
            state: WorkerState::Starting { function },
            last_used: now,
            orders,
            start: Start::Cold,
            stopping: false,
            probe: None,
        };
        self.workers.insert(id, entry);
        effects.push(Effect::Spawn(Spawn { id, worker, image, orders: receiver }));
        id
    }

    /// Gives a worker's free slots to the calls that wait longest for its function.
    fn hand_out(&mut self, id: WorkerId, start: Start, now: Instant, effects: &mut Vec<Effect>) {
        let Some(key) = self.workers.get(&id).and_then(|entry| entry.state.function().cloned()) else {
            return;
        };
        while self.workers[&id].state.free(self.limits.slots) > 0 {
            let Some(function) = self.functions.get_mut(&key) else { return };
            let Some(ticket) = function.waiting.pop_front() else { return };
            self.unwait(&key, 1);
            if ticket.caller.is_closed() {
                continue;
            }
            let granted = self.invoke(id, start, now).expect("it has a free slot");
            effects.push(Effect::Answer(ticket.caller, Ok(granted)));
        }
    }

    fn invoke(&mut self, id: WorkerId, start: Start, now: Instant) -> Option<Granted> {
        if !self.step(id, Event::Invoked, now) {
            return None;
        }
        let entry = self.workers.get_mut(&id)?;
        entry.last_used = now;
        Some(Granted { id, worker: entry.worker.clone(), start })
    }

    fn enqueue(&mut self, key: &Arc<FunctionKey>, runtime: &RuntimeId, now: Instant) -> Acquired {
        let (caller, answer) = oneshot::channel();
        self.last_ticket += 1;
        let ticket = Ticket { number: self.last_ticket, since: now, caller };
        *self.waiting.entry(key.project.clone()).or_default() += 1;
        self.function(key, runtime).waiting.push_back(ticket);
        Acquired::Wait(self.last_ticket, answer)
    }

    /// Keeps the queue within its bound. One that is full takes another call only in place of the
    /// latest of a project that has more in it.
    fn make_place(&mut self, key: &Arc<FunctionKey>, effects: &mut Vec<Effect>) -> Result<(), Error> {
        if self.waiting() < self.limits.max_queue {
            return Ok(());
        }
        let own = self.waiting.get(&key.project).copied().unwrap_or(0);
        let most = self.waiting.iter().max_by_key(|(project, count)| (**count, *project));
        let Some((project, _)) = most.filter(|(_, count)| **count > own + 1) else {
            return Err(Error::Full);
        };
        let project = project.clone();
        let latest = self
            .functions
            .iter()
            .filter(|(other, _)| other.project == project)
            .filter_map(|(other, function)| Some((function.waiting.back()?.number, other.clone())))
            .max_by_key(|(number, _)| *number);
        let Some((_, latest)) = latest else { return Err(Error::Full) };
        if let Some(ticket) = self.functions.get_mut(&latest).and_then(|function| function.waiting.pop_back())
        {
            self.unwait(&latest, 1);
            self.forget_if_unused(&latest);
            effects.push(Effect::Answer(ticket.caller, Err(Error::Full)));
        }
        Ok(())
    }

    /// The calls that count on a worker which is being prepared, taken out of the queue.
    fn joined(&mut self, key: &Arc<FunctionKey>, id: WorkerId) -> Vec<Ticket> {
        let preparing = self.preparing(key);
        let Some(at) = preparing.iter().position(|other| *other == id) else { return Vec::new() };
        let slots = self.limits.slots as usize;
        let Some(function) = self.functions.get_mut(key) else { return Vec::new() };
        let waiting = function.waiting.len();
        let range = (at * slots).min(waiting)..((at + 1) * slots).min(waiting);
        let joined: Vec<Ticket> = function.waiting.drain(range).collect();
        self.unwait(key, joined.len());
        joined
    }

    fn count_death(&mut self, key: &Arc<FunctionKey>) -> u32 {
        self.functions.get_mut(key).map_or(0, |function| {
            function.deaths += 1;
            function.deaths
        })
    }

    fn dismiss(&mut self, key: &Arc<FunctionKey>, why: &Error, effects: &mut Vec<Effect>) {
        let Some(function) = self.functions.get_mut(key) else { return };
        let tickets = std::mem::take(&mut function.waiting);
        self.unwait(key, tickets.len());
        effects.extend(tickets.into_iter().map(|ticket| Effect::Answer(ticket.caller, Err(why.clone()))));
        self.forget_if_unused(key);
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
            waiting: VecDeque::new(),
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
        if self.functions.get(key).is_some_and(|f| f.workers.is_empty() && f.waiting.is_empty()) {
            self.functions.remove(key);
        }
    }

    fn unwait(&mut self, key: &FunctionKey, count: usize) {
        if let Some(waiting) = self.waiting.get_mut(&key.project) {
            *waiting = waiting.saturating_sub(count);
            if *waiting == 0 {
                self.waiting.remove(&key.project);
                self.turns.remove(&key.project);
            }
        }
    }

    fn preparing(&self, key: &Arc<FunctionKey>) -> Vec<WorkerId> {
        let Some(function) = self.functions.get(key) else { return Vec::new() };
        let mut ids = function.workers.clone();
        ids.retain(|id| self.workers[id].state.is_preparing());
        ids.sort_unstable();
        ids
    }

    /// Calls of a function for which a worker is being prepared.
    fn placed(&self, key: &Arc<FunctionKey>) -> usize {
        self.preparing(key).len() * self.limits.slots as usize
    }

    /// More calls wait than workers are being prepared for.
    fn is_short(&self, key: &Arc<FunctionKey>) -> bool {
        self.functions.get(key).is_some_and(|function| function.waiting.len() > self.placed(key))
    }

    /// Workers about to be gone that no other function waits for.
    fn unclaimed_room(&self, key: &Arc<FunctionKey>) -> usize {
        if self.waiting.is_empty() {
            return 0;
        }
        let coming = self.workers.values().filter(|entry| is_leaving(&entry.state)).count();
        let others = self.functions.keys().filter(|other| *other != key && self.is_short(other)).count();
        coming.saturating_sub(others)
    }

    fn may_start(&self, id: &RuntimeId, now: Instant) -> bool {
        let runtime = self.runtimes.get(id);
        runtime.is_some_and(|runtime| runtime.not_before.is_none_or(|not_before| not_before <= now))
    }

    fn is_current(&self, entry: &Entry) -> bool {
        let runtime = self.runtimes.get(&entry.worker.runtime);
        runtime.is_some_and(|runtime| runtime.image.id == entry.worker.image_id)
    }

    fn view<'a>(&self, id: WorkerId, entry: &'a Entry) -> View<'a> {
        View {
            id,
            state: &entry.state,
            runtime: &entry.worker.runtime,
            current: self.is_current(entry),
            last_used: entry.last_used,
        }
    }

    fn views(&self) -> Vec<View<'_>> {
        self.workers.iter().map(|(id, entry)| self.view(*id, entry)).collect()
    }
}

fn is_leaving(state: &WorkerState) -> bool {
    matches!(state, WorkerState::Draining { in_flight: 0, .. })
}
