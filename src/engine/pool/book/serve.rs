//! Who gets a worker next, and what is done for those who wait.

use super::*;

impl Book {
    /// Serves whoever waits for a worker, in turns by project and in order within one, until nothing
    /// more can be done.
    pub(super) fn pump(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.queue.is_empty() || self.closed {
            return;
        }
        let mut coming = self.workers.values().filter(|entry| is_leaving(&entry.state)).count();
        let mut projects = self.queue.in_turn(|key| self.is_short(key));
        while let Some(mut functions) = projects.pop_front() {
            while let Some(key) = functions.front().cloned() {
                let runtime = self.functions[&key].runtime.clone();
                if self.functions[&key].workers.is_empty()
                    && let Some(why) = self.runtimes.unusable(&runtime)
                {
                    let error = Error::Preparation(why.to_owned());
                    self.dismiss(&key, &error, effects);
                    functions.pop_front();
                    continue;
                }
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
                    self.queue.took_turn(&key.project);
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

    /// Where one call waited long and nothing is on its way, drains a busy worker for it.
    pub(super) fn relieve(&mut self, now: Instant) {
        let draining = self.workers.values().any(|entry| entry.state.is_draining());
        if draining || self.workers.len() < self.limits.max_workers || self.closed {
            return;
        }
        let waiting = self.queue.in_turn(|key| self.is_short(key));
        let longest = waiting
            .into_iter()
            .flatten()
            .find(|key| self.queue.since(key).is_some_and(|since| now.duration_since(since) > PATIENCE));
        let Some(key) = longest else { return };
        if let Some(id) = place::relieve(&key, &self.views()) {
            self.drain(id, now);
        }
    }

    pub(super) fn decide(
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
            may_start: self.runtimes.may_start(runtime, now),
            coming,
        };
        let mine = self.functions.get(key).into_iter().flat_map(|function| &function.workers);
        let mine = mine.map(|id| self.view(*id, &self.workers[id]));
        // Of a runtime that is not known nothing is current, whatever its network.
        let network =
            self.runtimes.base(runtime).map_or(Network::None, |base| network_for(base, key.offline));
        place::place(Need { function: key, runtime, network, ahead }, room, mine, || self.views())
    }

    /// Does what was decided, apart from giving out slots; `false` where room has to come first.
    pub(super) fn carry_out(
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
                entry.worker.begin(now);
                if let WorkerState::Specializing { function } = &entry.state {
                    entry.start = Start::Prewarmed;
                    let _ = entry.orders.send(Order::Specialize(function.clone()));
                }
                effects.push(Effect::Nudge);
                true
            }
            Decision::Start { evict: None } => {
                let Some(base) = self.runtimes.base(runtime).cloned() else { return false };
                let id = self.spawn(runtime, &base, Some(key.clone()), now, effects);
                self.enlist(key, runtime, id);
                self.workers[&id].worker.begin(now);
                true
            }
            Decision::Start { evict: Some(id) } => {
                self.drain(id, now);
                false
            }
            Decision::Warm(_) | Decision::Join(_) | Decision::Wait => false,
        }
    }

    pub(super) fn spawn(
        &mut self,
        runtime: &RuntimeId,
        base: &Base,
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
        let offline = function.as_ref().is_some_and(|function| function.offline);
        let (image, network) = (base.image.clone(), network_for(base, offline));
        let worker = Arc::new(Worker::new(name, index, runtime.clone(), image.id.clone(), network));
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
    pub(super) fn hand_out(&mut self, id: WorkerId, start: Start, now: Instant, effects: &mut Vec<Effect>) {
        let Some(key) = self.workers.get(&id).and_then(|entry| entry.state.function().cloned()) else {
            return;
        };
        while self.workers[&id].state.free(self.limits.slots) > 0 {
            let Some(ticket) = self.queue.pop(&key) else { return };
            if ticket.caller.is_closed() {
                continue;
            }
            let granted = self.invoke(id, start, now).expect("it has a free slot");
            effects.push(Effect::Answer(ticket.caller, Ok(granted)));
        }
    }

    pub(super) fn invoke(&mut self, id: WorkerId, start: Start, now: Instant) -> Option<Granted> {
        if !self.step(id, Event::Invoked, now) {
            return None;
        }
        let entry = self.workers.get_mut(&id)?;
        entry.last_used = now;
        Some(Granted { id, worker: entry.worker.clone(), start })
    }

    /// The calls that count on a worker which is being prepared, taken out of the queue.
    pub(super) fn joined(&mut self, key: &FunctionKey, id: WorkerId) -> Vec<Ticket> {
        let preparing = self.preparing(key);
        let Some(at) = preparing.iter().position(|other| *other == id) else { return Vec::new() };
        let slots = self.limits.slots as usize;
        self.queue.take(key, at * slots..(at + 1) * slots)
    }

    pub(super) fn dismiss(&mut self, key: &Arc<FunctionKey>, why: &Error, effects: &mut Vec<Effect>) {
        let tickets = self.queue.take(key, 0..usize::MAX);
        effects.extend(tickets.into_iter().map(|ticket| Effect::Answer(ticket.caller, Err(why.clone()))));
        self.forget_if_unused(key);
    }

    fn preparing(&self, key: &FunctionKey) -> Vec<WorkerId> {
        let Some(function) = self.functions.get(key) else { return Vec::new() };
        let mut ids = function.workers.clone();
        ids.retain(|id| self.workers[id].state.is_preparing());
        ids.sort_unstable();
        ids
    }

    /// Calls of a function for which a worker is being prepared.
    fn placed(&self, key: &FunctionKey) -> usize {
        self.preparing(key).len() * self.limits.slots as usize
    }

    /// More calls wait than workers are being prepared for.
    pub(super) fn is_short(&self, key: &FunctionKey) -> bool {
        self.queue.count(key) > self.placed(key)
    }

    /// Workers about to be gone that no other function waits for.
    pub(super) fn unclaimed_room(&self, key: &Arc<FunctionKey>) -> usize {
        if self.queue.is_empty() {
            return 0;
        }
        let coming = self.workers.values().filter(|entry| is_leaving(&entry.state)).count();
        let others = self.functions.keys().filter(|other| *other != key && self.is_short(other)).count();
        coming.saturating_sub(others)
    }
}
