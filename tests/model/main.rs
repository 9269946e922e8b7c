//! The life of one asynchronous execution as a model, explored completely.
//!
//! Two engines share a table and a worker. Each step of the protocol (claim, dispatch, run, collect,
//! settle, take over) is one action, and between any two of them an engine may crash, stall until
//! its lease has run out and wake again, or the worker may die. What the model promises is what
//! `engine` relies on: an accepted execution ends, ends once, and runs once. Taken out, one after
//! the other, the epoch in the settling update and the fence at the worker each break a promise, and
//! the checker says how.

use std::collections::BTreeMap;

use stateright::{Checker, Model, Property};

const ENGINES: usize = 2;

type Epoch = u8;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    row: Row,
    engines: [Engine; ENGINES],
    worker: Worker,
    /// Dispatches on their way to the worker.
    sent: Vec<Epoch>,
    /// Crashes, stalls and deaths that may still happen.
    mishaps: u8,
    /// How often an end was written, and how often the function was started.
    ends: u8,
    runs: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    status: Status,
    epoch: Epoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Status {
    Pending,
    Running { engine: usize },
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Engine {
    alive: bool,
    /// An engine that stalls is alive and does not know that its lease has run out.
    lease: bool,
    at: At,
}

/// What an engine remembers of the execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Nothing,
    /// Owns the row under this epoch; nothing was sent.
    Claimed(Epoch),
    /// Waits for the outcome of `attempt`, to write it under `epoch`.
    Waiting {
        attempt: Epoch,
        epoch: Epoch,
    },
    /// Has an outcome, or knows that there will be none, and is about to write the end.
    Settling(Epoch),
    /// Took the row over and has not asked the worker yet.
    TookOver(Epoch),
    /// The worker knows of no attempt, and is fenced.
    NeverRan(Epoch),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Worker {
    alive: bool,
    /// Whether an attempt has ended.
    attempts: BTreeMap<Epoch, bool>,
    fence: Epoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Claim(usize),
    Dispatch(usize),
    Deliver(usize),
    RunEnds(Epoch),
    Collect(usize),
    LoseWorker(usize),
    Settle(usize),
    TakeOver(usize),
    AskWorker(usize),
    PutBack(usize),
    Crash(usize),
    Stall(usize),
    Restart(usize),
    WorkerDies,
}

/// The protocol, and the parts of it that can be taken out.
struct Protocol {
    epoch_guard: bool,
    fence: bool,
    mishaps: u8,
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            row: Row { status: Status::Pending, epoch: 0 },
            engines: [Engine { alive: true, lease: true, at: At::Nothing }; ENGINES],
            worker: Worker { alive: true, attempts: BTreeMap::new(), fence: 0 },
            sent: Vec::new(),
            mishaps: self.mishaps,
            ends: 0,
            runs: 0,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for number in 0..ENGINES {
            let engine = &world.engines[number];
            if !engine.alive {
                actions.push(Action::Restart(number));
                continue;
            }
            match engine.at {
                // An engine that finds its lease gone starts anew before it takes anything.
                At::Nothing if !engine.lease => actions.push(Action::Restart(number)),
                At::Nothing => match world.row.status {
                    Status::Pending if world.worker.alive => actions.push(Action::Claim(number)),
                    Status::Running { engine: owner } if owner != number && !world.engines[owner].lease => {
                        actions.push(Action::TakeOver(number));
                    }
                    _ => {}
                },
                At::Claimed(_) => actions.push(Action::Dispatch(number)),
                At::Waiting { attempt, .. } => {
                    if world.worker.attempts.get(&attempt) == Some(&true) && world.worker.alive {
                        actions.push(Action::Collect(number));
                    }
                    if !world.worker.alive {
                        actions.push(Action::LoseWorker(number));
                    }
                }
                At::Settling(_) => actions.push(Action::Settle(number)),
                At::TookOver(_) => actions.push(Action::AskWorker(number)),
                At::NeverRan(_) => actions.push(Action::PutBack(number)),
            }
            if world.mishaps > 0 {
                actions.push(Action::Crash(number));
                if engine.lease {
                    actions.push(Action::Stall(number));
                }
            }
        }
        actions.extend((0..world.sent.len()).map(Action::Deliver));
        if world.worker.alive {
            let running = world.worker.attempts.iter().filter(|(_, ended)| !**ended);
            actions.extend(running.map(|(epoch, _)| Action::RunEnds(*epoch)));
            if world.mishaps > 0 && !world.worker.attempts.is_empty() {
                actions.push(Action::WorkerDies);
            }
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Claim(number) => {
                world.row.epoch += 1;
                world.row.status = Status::Running { engine: number };
                world.engines[number].at = At::Claimed(world.row.epoch);
            }
            Action::Dispatch(number) => {
                let At::Claimed(epoch) = world.engines[number].at else { return None };
                world.sent.push(epoch);
                world.engines[number].at = At::Waiting { attempt: epoch, epoch };
            }
            Action::Deliver(index) => {
                let epoch = world.sent.remove(index);
                let worker = &mut world.worker;
                let fenced = self.fence && epoch < worker.fence;
                if worker.alive && !fenced && !worker.attempts.contains_key(&epoch) {
                    worker.attempts.insert(epoch, false);
                    world.runs += 1;
                }
            }
            Action::RunEnds(epoch) => {
                world.worker.attempts.insert(epoch, true);
            }
            Action::Collect(number) | Action::LoseWorker(number) => {
                let At::Waiting { epoch, .. } = world.engines[number].at else { return None };
                world.engines[number].at = At::Settling(epoch);
            }
            Action::Settle(number) => {
                let At::Settling(epoch) = world.engines[number].at else { return None };
                let running = matches!(world.row.status, Status::Running { .. });
                let own = running && world.row.epoch == epoch;
                if own || !self.epoch_guard {
                    world.row.status = Status::Ended;
                    world.ends += 1;
                }
                world.engines[number].at = At::Nothing;
            }
            Action::TakeOver(number) => {
                world.row.epoch += 1;
                world.row.status = Status::Running { engine: number };
                world.engines[number].at = At::TookOver(world.row.epoch);
            }
            Action::AskWorker(number) => {
                let At::TookOver(epoch) = world.engines[number].at else { return None };
                world.engines[number].at = if !world.worker.alive {
                    At::Settling(epoch)
                } else {
                    world.worker.fence = world.worker.fence.max(epoch);
                    match world.worker.attempts.keys().next_back() {
                        Some(&attempt) => At::Waiting { attempt, epoch },
                        None => At::NeverRan(epoch),
                    }
                };
            }
            Action::PutBack(number) => {
                let At::NeverRan(epoch) = world.engines[number].at else { return None };
                if world.row.epoch == epoch && world.row.status != Status::Ended {
                    world.row.status = Status::Pending;
                }
                world.engines[number].at = At::Nothing;
            }
            Action::Crash(number) => {
                world.mishaps -= 1;
                world.engines[number] = Engine { alive: false, lease: false, at: At::Nothing };
            }
            Action::Stall(number) => {
                world.mishaps -= 1;
                world.engines[number].lease = false;
            }
            Action::Restart(number) => {
                // A restart is another engine with a lease of its own; what the dead one owned is
                // owned by nobody until it is taken over, by its successor as well.
                if world.row.status == (Status::Running { engine: number }) {
                    world.row.epoch += 1;
                    world.engines[number] =
                        Engine { alive: true, lease: true, at: At::TookOver(world.row.epoch) };
                } else {
                    world.engines[number] = Engine { alive: true, lease: true, at: At::Nothing };
                }
            }
            Action::WorkerDies => {
                world.mishaps -= 1;
                world.worker.alive = false;
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("an execution ends at most once", |_, world: &World| world.ends <= 1),
            Property::always("an execution runs at most once", |_, world: &World| world.runs <= 1),
            Property::eventually("an accepted execution ends", |_, world: &World| {
                world.row.status == Status::Ended
            }),
            Property::sometimes("it ends after a take-over", |_, world: &World| {
                world.row.status == Status::Ended && world.row.epoch > 1
            }),
        ]
    }
}

fn check(epoch_guard: bool, fence: bool) -> impl Checker<Protocol> {
    let checker = Protocol { epoch_guard, fence, mishaps: 4 }.checker().threads(2).spawn_bfs().join();
    assert!(checker.is_done());
    checker
}

#[test]
fn an_accepted_execution_ends_once_and_runs_once_whatever_crashes() {
    let checker = check(true, true);
    checker.assert_properties();
    // A model in which little can happen proves little.
    assert!(checker.unique_state_count() > 5_000, "{}", checker.unique_state_count());
}

#[test]
fn without_the_epoch_guard_an_execution_ends_twice() {
    check(false, true).assert_any_discovery("an execution ends at most once");
}

#[test]
fn without_the_fence_an_execution_runs_twice() {
    check(true, false).assert_any_discovery("an execution runs at most once");
}
