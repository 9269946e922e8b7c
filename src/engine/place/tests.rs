use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SLOTS: u32 = 3;

fn key(project: &str, function: &str) -> Arc<FunctionKey> {
    Arc::new(FunctionKey {
        project: project.into(),
        function: function.into(),
        version: 0,
        digest: "d".to_owned(),
        offline: false,
    })
}

fn functions() -> Vec<Arc<FunctionKey>> {
    vec![key("p", "a"), key("p", "b"), key("q", "c")]
}

#[derive(Debug, Clone)]
struct Fake {
    state: WorkerState,
    runtime: RuntimeId,
    current: bool,
    network: Network,
    last_used: Instant,
}

fn views(workers: &[Fake]) -> Vec<View<'_>> {
    workers
        .iter()
        .enumerate()
        .map(|(id, fake)| View {
            id: WorkerId(id as u64),
            state: &fake.state,
            runtime: &fake.runtime,
            current: fake.current,
            network: fake.network,
            last_used: fake.last_used,
        })
        .collect()
}

fn decide(workers: &[Fake], function: &FunctionKey, ahead: usize, room: Room) -> Decision {
    let runtime = RuntimeId::from("r0");
    let everyone = views(workers);
    let mine: Vec<View<'_>> = everyone
        .iter()
        .filter(|view| view.state.function().is_some_and(|bound| **bound == *function))
        .copied()
        .collect();
    let network = if function.offline { Network::None } else { Network::Bridge };
    place(Need { function, runtime: &runtime, network, ahead }, room, mine.into_iter(), || everyone)
}

fn room(max_workers: usize) -> Room {
    Room { slots: SLOTS, max_workers, may_start: true, coming: 0 }
}

fn fake(state: WorkerState, age: u64) -> Fake {
    Fake {
        state,
        runtime: "r0".into(),
        current: true,
        network: Network::Bridge,
        // Instants only grow, so an age is counted from a point in the future.
        last_used: start() + Duration::from_secs(1000 - age),
    }
}

fn start() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}

fn idle(function: &Arc<FunctionKey>, age: u64) -> Fake {
    fake(WorkerState::Idle { function: function.clone(), since: start() }, age)
}

fn busy(function: &Arc<FunctionKey>, in_flight: u32, age: u64) -> Fake {
    fake(WorkerState::Busy { function: function.clone(), in_flight }, age)
}

#[test]
fn the_most_recently_used_free_worker_is_taken() {
    let a = key("p", "a");
    let workers = [idle(&a, 9), busy(&a, 2, 1), busy(&a, 3, 0)];
    assert_eq!(decide(&workers, &a, 0, room(9)), Decision::Warm(WorkerId(1)));
}

#[test]
fn a_prewarmed_worker_goes_before_one_that_starts_and_before_a_new_one() {
    let a = key("p", "a");
    let starting = fake(WorkerState::Starting { function: None }, 0);
    let prewarmed = fake(WorkerState::Prewarmed, 0);
    assert_eq!(decide(&[starting.clone(), prewarmed], &a, 0, room(9)), Decision::Bind(WorkerId(1)));
    assert_eq!(decide(&[starting], &a, 0, room(9)), Decision::Bind(WorkerId(0)));
    assert_eq!(decide(&[], &a, 0, room(9)), Decision::Start { evict: None });
}

#[test]
fn the_least_recently_used_idle_worker_of_another_function_makes_room() {
    let (a, b, c) = (key("p", "a"), key("p", "b"), key("q", "c"));
    let workers = [idle(&b, 1), idle(&c, 8), busy(&a, 3, 9)];
    assert_eq!(decide(&workers, &a, 0, room(3)), Decision::Start { evict: Some(WorkerId(1)) });
    assert_eq!(decide(&workers[2..], &a, 0, room(1)), Decision::Wait);
}

#[test]
fn an_unbound_worker_of_another_runtime_goes_before_a_bound_one() {
    let (a, b) = (key("p", "a"), key("p", "b"));
    let other = Fake { runtime: "r1".into(), ..fake(WorkerState::Prewarmed, 0) };
    let workers = [idle(&b, 1), other];
    assert_eq!(decide(&workers, &a, 0, room(2)), Decision::Start { evict: Some(WorkerId(1)) });
}

#[test]
fn a_worker_is_bound_to_what_wants_its_network() {
    let a = key("p", "a");
    let offline = Arc::new(FunctionKey { offline: true, ..(*a).clone() });
    let connected = fake(WorkerState::Prewarmed, 2);
    let unconnected = Fake { network: Network::None, ..fake(WorkerState::Prewarmed, 1) };
    let workers = [connected, unconnected];
    assert_eq!(decide(&workers, &a, 0, room(2)), Decision::Bind(WorkerId(0)));
    assert_eq!(decide(&workers, &offline, 0, room(2)), Decision::Bind(WorkerId(1)));
    assert_eq!(decide(&workers[..1], &offline, 0, room(2)), Decision::Start { evict: None });
    assert_eq!(decide(&workers[1..], &a, 0, room(2)), Decision::Start { evict: None });
}

#[test]
fn nobody_is_evicted_while_room_is_coming_or_the_runtime_fails() {
    let (a, b) = (key("p", "a"), key("p", "b"));
    let workers = [idle(&b, 1)];
    assert_eq!(decide(&workers, &a, 0, Room { coming: 1, ..room(1) }), Decision::Wait);
    assert_eq!(decide(&workers, &a, 0, Room { may_start: false, ..room(1) }), Decision::Wait);
}

#[test]
fn calls_join_a_worker_that_is_being_prepared_until_its_slots_are_spoken_for() {
    let a = key("p", "a");
    let workers =
        [fake(WorkerState::Specializing { function: a.clone() }, 0), fake(WorkerState::Prewarmed, 0)];
    for ahead in 0..3 {
        assert_eq!(decide(&workers, &a, ahead, room(9)), Decision::Join(WorkerId(0)));
    }
    assert_eq!(decide(&workers, &a, 3, room(9)), Decision::Bind(WorkerId(1)));
}

#[test]
fn a_long_wait_is_relieved_by_the_project_that_has_most() {
    let (a, b, c) = (key("p", "a"), key("p", "b"), key("q", "c"));
    let workers = [busy(&a, 3, 0), busy(&a, 1, 5), busy(&b, 1, 1)];
    assert_eq!(relieve(&c, &views(&workers)), Some(WorkerId(1)));
    assert_eq!(relieve(&a, &views(&workers)), None, "it has most itself");
    let own = [busy(&a, 3, 0), busy(&a, 3, 1)];
    assert_eq!(relieve(&b, &views(&own)), Some(WorkerId(1)), "FIFO within a project");
    assert_eq!(relieve(&c, &views(&[idle(&a, 1)])), None);
}

fn states() -> impl Strategy<Value = Vec<Fake>> {
    let fake = (0usize..3, 0u8..8, 1..=SLOTS, 0u64..50, 0usize..2, any::<bool>()).prop_map(
        |(function, kind, in_flight, age, runtime, current)| {
            let function = functions()[function].clone();
            let state = match kind {
                0 => WorkerState::Starting { function: None },
                1 => WorkerState::Starting { function: Some(function) },
                2 => WorkerState::Prewarmed,
                3 => WorkerState::Specializing { function },
                4 => WorkerState::Idle { function, since: start() },
                5 | 6 => WorkerState::Busy { function, in_flight },
                _ => WorkerState::Draining { function: Some(function), in_flight },
            };
            let runtime = if runtime == 0 { "r0" } else { "r1" };
            Fake { runtime: runtime.into(), current, ..fake(state, age) }
        },
    );
    prop::collection::vec(fake, 0..9)
}

proptest! {
    #[test]
    fn every_decision_keeps_the_rules(
        workers in states(),
        which in 0usize..3,
        ahead in 0usize..8,
        max_workers in 1usize..9,
        may_start in any::<bool>(),
        coming in 0usize..2,
    ) {
        let function = functions()[which].clone();
        let room = Room { slots: SLOTS, max_workers, may_start, coming };
        let mine = || workers.iter().filter(|w| w.state.function() == Some(&function));
        let free: usize = mine().map(|w| w.state.free(SLOTS) as usize).sum();
        // The callers of `place` hand out free slots before they let anyone wait.
        prop_assume!(ahead == 0 || free <= ahead);
        let preparing = mine().filter(|w| w.state.is_preparing()).count();
        let at = |id: WorkerId| &workers[id.0 as usize];
        let bindable =
            |w: &Fake| w.state.is_unbound() && w.current && w.runtime == RuntimeId::from("r0");

        match decide(&workers, &function, ahead, room) {
            Decision::Warm(id) => {
                prop_assert_eq!(at(id).state.function(), Some(&function));
                prop_assert!(at(id).state.free(SLOTS) > 0);
            }
            Decision::Join(id) => {
                prop_assert_eq!(at(id).state.function(), Some(&function));
                prop_assert!(at(id).state.is_preparing());
                prop_assert!(free <= ahead && ahead < free + preparing * SLOTS as usize);
            }
            Decision::Bind(id) => {
                prop_assert!(bindable(at(id)));
                prop_assert!(ahead >= free + preparing * SLOTS as usize, "a slot is spoken for by nobody");
            }
            Decision::Start { evict } => {
                prop_assert!(may_start);
                prop_assert!(!workers.iter().any(bindable));
                prop_assert!(ahead >= free + preparing * SLOTS as usize);
                match evict {
                    None => prop_assert!(workers.len() < max_workers),
                    Some(id) => {
                        prop_assert!(workers.len() >= max_workers);
                        prop_assert!(at(id).state.function() != Some(&function));
                        prop_assert_eq!(at(id).state.in_flight(), 0);
                        let held = matches!(at(id).state, WorkerState::Idle { .. } | WorkerState::Prewarmed);
                        prop_assert!(held);
                    }
                }
            }
            Decision::Wait => {
                prop_assert!(free <= ahead && !workers.iter().any(bindable));
                prop_assert!(ahead >= free + preparing * SLOTS as usize);
                if may_start && coming == 0 {
                    prop_assert!(workers.len() >= max_workers);
                    let evictable = workers.iter().any(|w| match &w.state {
                        WorkerState::Idle { function: other, .. } => *other != function,
                        state => *state == WorkerState::Prewarmed,
                    });
                    prop_assert!(!evictable);
                }
            }
        }
    }
}
