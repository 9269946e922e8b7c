use proptest::prelude::*;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;

const SLOTS: u32 = 3;
/// No pause is longer.
const LONGEST: Duration = Duration::from_secs(60);

fn key(project: &str, function: &str) -> Arc<FunctionKey> {
    Arc::new(FunctionKey {
        project: project.into(),
        function: function.into(),
        version: 0,
        digest: "d".to_owned(),
        offline: false,
    })
}

fn base(image: &str) -> Base {
    Base {
        reference: "taibai/test".to_owned(),
        image: RuntimeImage { id: image.to_owned(), shim: Vec::new() },
        network: Network::Bridge,
    }
}

fn runtime() -> RuntimeId {
    "r".into()
}

/// A pool whose workers are started, loaded and removed by the test.
struct Bench {
    pool: Arc<Pool>,
    spawns: mpsc::UnboundedReceiver<Spawn>,
    live: Vec<Spawn>,
    calls: Vec<Call>,
}

struct Call {
    key: Arc<FunctionKey>,
    answer: oneshot::Receiver<Result<Lease, Error>>,
}

impl Bench {
    fn new(max_workers: usize, max_queue: usize) -> Self {
        let (sender, spawns) = mpsc::unbounded_channel();
        let limits = Limits { slots: SLOTS, max_workers, max_queue };
        let pool = Pool::new(limits, sender, Arc::default());
        pool.set_runtime(&runtime(), base("i"));
        Self { pool, spawns, live: Vec::new(), calls: Vec::new() }
    }

    /// The lease where it came at once; else the call waits.
    fn call(&mut self, key: &Arc<FunctionKey>) -> Result<Option<Lease>, Error> {
        let acquired =
            self.pool.change(|book, effects| book.acquire(key, &runtime(), Instant::now(), effects));
        self.collect();
        match acquired? {
            Acquired::Now(granted) => Ok(Some(self.pool.granted(granted))),
            Acquired::Wait(_, answer) => {
                self.calls.push(Call { key: key.clone(), answer });
                Ok(None)
            }
        }
    }

    fn collect(&mut self) {
        while let Ok(spawn) = self.spawns.try_recv() {
            self.live.push(spawn);
        }
    }

    /// Answers that came since.
    fn answers(&mut self) -> Vec<(Arc<FunctionKey>, Result<Lease, Error>)> {
        let mut answers = Vec::new();
        let mut waiting = Vec::new();
        for mut call in std::mem::take(&mut self.calls) {
            match call.answer.try_recv() {
                Ok(answer) => answers.push((call.key, answer)),
                Err(TryRecvError::Empty) => waiting.push(call),
                Err(TryRecvError::Closed) => panic!("a call was forgotten"),
            }
        }
        self.calls = waiting;
        answers
    }

    fn leases(&mut self) -> Vec<Lease> {
        self.answers().into_iter().map(|(_, answer)| answer.unwrap()).collect()
    }

    fn state(&self, id: WorkerId) -> Option<WorkerState> {
        self.pool.list().into_iter().find(|info| info.id == id).map(|info| info.state)
    }

    /// Does what a worker's task would do next; `false` where it has nothing to do.
    fn advance(&mut self, at: usize) -> bool {
        let id = self.live[at].id;
        match self.state(id) {
            Some(WorkerState::Starting { .. }) => self.pool.ready(id),
            Some(WorkerState::Specializing { .. }) => {
                let Ok(Order::Specialize(_)) = self.live[at].orders.try_recv() else {
                    panic!("a worker was not told what to load")
                };
                self.pool.loaded(id);
            }
            _ => {
                let mut stop = false;
                while let Ok(order) = self.live[at].orders.try_recv() {
                    stop |= order == Order::Stop;
                }
                if !stop {
                    return false;
                }
                self.live.remove(at);
                self.pool.gone(id);
            }
        }
        self.collect();
        true
    }

    fn settle(&mut self) {
        while (0..self.live.len()).any(|at| self.advance(at)) {}
    }

    fn bound(&self, key: &FunctionKey) -> usize {
        let bound = |info: &&Info| info.state.function().is_some_and(|bound| **bound == *key);
        self.pool.list().iter().filter(bound).count()
    }
}

#[test]
fn three_calls_at_once_have_one_worker_and_six_have_two() {
    for (calls, workers) in [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)] {
        let mut bench = Bench::new(9, 100);
        bench.pool.prewarm(&runtime(), 3);
        bench.collect();
        bench.settle();
        let a = key("p", "a");
        let mut held: Vec<Lease> = (0..calls).filter_map(|_| bench.call(&a).unwrap()).collect();
        bench.settle();
        held.extend(bench.leases());
        assert_eq!((held.len(), bench.bound(&a)), (calls, workers));
    }
}

#[test]
fn a_second_call_finds_the_worker_warm() {
    let mut bench = Bench::new(9, 100);
    let a = key("p", "a");
    assert!(bench.call(&a).unwrap().is_none());
    bench.settle();
    let first = bench.leases().pop().unwrap();
    assert_eq!(first.start(), Start::Cold);
    let worker = first.worker().name.clone();
    drop(first);
    let second = bench.call(&a).unwrap().unwrap();
    assert_eq!((second.start(), &second.worker().name), (Start::Warm, &worker));
    assert_eq!(bench.live.len(), 1);
}

#[test]
fn a_call_that_is_given_up_leaves_the_slot_to_the_next() {
    let mut bench = Bench::new(1, 100);
    let a = key("p", "a");
    for _ in 0..4 {
        bench.call(&a).unwrap();
    }
    bench.calls.remove(0);
    bench.settle();
    assert_eq!(bench.leases().len(), 3);
    assert_eq!(bench.pool.waiting(), 0);
}

#[test]
fn a_failed_load_fails_those_who_waited_for_that_worker_only() {
    let mut bench = Bench::new(9, 100);
    let a = key("p", "a");
    for _ in 0..4 {
        bench.call(&a).unwrap();
    }
    assert_eq!(bench.live.len(), 2);
    let first = bench.live[0].id;
    bench.advance(0);
    bench.pool.failed(first, Step::Load, "no package");
    let answers = bench.answers();
    assert_eq!(answers.len(), 3);
    for (_, answer) in answers {
        assert_eq!(answer.unwrap_err(), Error::Preparation("no package".to_owned()));
    }
    bench.settle();
    assert_eq!(bench.leases().len(), 1);
}

#[test]
fn calls_on_a_worker_that_died_get_another_but_not_for_ever() {
    let mut bench = Bench::new(9, 100);
    let a = key("p", "a");
    bench.call(&a).unwrap();
    for death in 1..=DEATHS {
        let last = bench.live.len() - 1;
        let id = bench.live[last].id;
        bench.advance(last);
        bench.pool.failed(id, Step::Died, "gone");
        bench.collect();
        assert_eq!(bench.answers().len(), usize::from(death == DEATHS), "death {death}");
    }
    assert_eq!(bench.live.len(), DEATHS as usize);
}

#[test]
fn calls_on_a_worker_whose_container_ended_early_get_another_after_a_pause() {
    let mut bench = Bench::new(9, 100);
    let a = key("p", "a");
    bench.call(&a).unwrap();
    bench.pool.failed(bench.live[0].id, Step::Ended, "ended");
    bench.collect();
    assert_eq!((bench.answers().len(), bench.live.len()), (0, 1));
    let later = Instant::now() + Duration::from_secs(1);
    bench.pool.change(|book, effects| book.tick(later, effects));
    bench.collect();
    bench.settle();
    assert_eq!(bench.leases().len(), 1);
}

#[test]
fn a_package_that_was_refused_does_not_use_up_worker_after_worker() {
    let mut bench = Bench::new(9, 100);
    let a = key("p", "a");
    bench.call(&a).unwrap();
    bench.pool.failed(bench.live[0].id, Step::Refused, "it holds a link");
    bench.answers();
    assert_eq!(bench.call(&a).unwrap_err(), Error::Preparation("it holds a link".to_owned()));
    let changed = Arc::new(FunctionKey { digest: "e".to_owned(), ..(*a).clone() });
    assert!(bench.call(&changed).unwrap().is_none());
}

#[test]
fn a_runtime_that_fails_to_start_pauses() {
    let mut bench = Bench::new(9, 100);
    let (a, b) = (key("p", "a"), key("p", "b"));
    bench.call(&a).unwrap();
    bench.pool.failed(bench.live[0].id, Step::Start, "no such image");
    bench.call(&b).unwrap();
    bench.pool.prewarm(&runtime(), 3);
    bench.collect();
    assert_eq!(bench.live.len(), 1, "nothing more was started");

    let later = Instant::now() + Duration::from_secs(1);
    bench.pool.change(|book, effects| book.tick(later, effects));
    bench.collect();
    assert_eq!(bench.live.len(), 2);
    assert_eq!(bench.answers().len(), 1, "the first was told, the second still waits");
}

#[test]
fn calls_for_a_package_that_is_gone_are_told_so_and_may_come_back_with_another() {
    let mut bench = Bench::new(9, 100);
    let a = key("p", "a");
    bench.call(&a).unwrap();
    let id = bench.live[0].id;
    bench.advance(0);
    bench.pool.failed(id, Step::Missing, "The package is missing.");
    assert_eq!(bench.answers().pop().unwrap().1.unwrap_err(), Error::Missing);
    let changed = Arc::new(FunctionKey { digest: "e".to_owned(), ..(*a).clone() });
    bench.call(&changed).unwrap();
    bench.settle();
    assert_eq!(bench.leases().len(), 1);
}

#[test]
fn without_an_image_calls_are_told_at_once_but_workers_that_are_up_go_on() {
    let mut bench = Bench::new(9, 100);
    let (a, b) = (key("p", "a"), key("p", "b"));
    for _ in 0..SLOTS {
        bench.call(&a).unwrap();
    }
    bench.settle();
    let mut held = bench.leases();
    bench.call(&b).unwrap();
    bench.pool.image_is_gone(&runtime(), "another");
    assert!(bench.pool.base(&runtime()).is_some());
    bench.pool.image_is_gone(&runtime(), "i");
    assert_eq!(bench.pool.base(&runtime()), None);
    bench.pool.failed(bench.live[1].id, Step::Died, "gone");
    assert_eq!(bench.answers().len(), 0, "it is not known yet what became of the image");

    let why = "The runtime cannot be used: image i is not on this machine.";
    bench.pool.set_unusable(&runtime(), why);
    let told = Error::Preparation(why.to_owned());
    assert_eq!(bench.answers().pop().unwrap().1.unwrap_err(), told);
    assert_eq!(bench.call(&b).unwrap_err(), told);
    assert!(bench.call(&a).unwrap().is_none(), "it waits for a slot");
    held.pop();
    assert_eq!(bench.leases().len(), 1);

    bench.pool.set_runtime(&runtime(), base("i"));
    assert!(bench.call(&b).unwrap().is_none());
    bench.settle();
    assert_eq!(bench.leases().len(), 1);
}

#[test]
fn a_full_queue_refuses_all_but_a_project_that_has_little_in_it() {
    let mut bench = Bench::new(1, 3);
    let (a, b) = (key("p", "a"), key("q", "b"));
    for _ in 0..3 {
        bench.call(&a).unwrap();
    }
    assert_eq!(bench.call(&a).unwrap_err(), Error::Full);
    assert!(bench.call(&b).unwrap().is_none());
    let answers = bench.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].1.as_ref().unwrap_err(), &Error::Full);
    assert_eq!(bench.pool.waiting(), 3);
}

#[test]
fn projects_take_turns_for_workers() {
    let mut bench = Bench::new(2, 100);
    let many: Vec<_> = ["a", "b", "c", "d", "e", "f"].map(|name| key("p", name)).to_vec();
    for key in &many {
        bench.call(key).unwrap();
    }
    bench.call(&key("q", "z")).unwrap();
    bench.settle();
    let mut held = bench.leases();
    assert_eq!(held.len(), 2);
    drop(held.remove(0));
    bench.settle();
    let next: Vec<_> = bench.answers().into_iter().map(|(key, _)| key.project.to_string()).collect();
    assert_eq!(next.first().map(String::as_str), Some("q"), "{next:?}");
}

#[test]
fn who_waited_long_gets_a_worker_though_another_project_never_idles() {
    let mut bench = Bench::new(1, 100);
    let (a, b) = (key("p", "a"), key("q", "b"));
    bench.call(&a).unwrap();
    bench.settle();
    let held = bench.leases();
    bench.call(&b).unwrap();
    bench.pool.tick();
    assert!(bench.call(&a).unwrap().is_some(), "not yet");
    let later = Instant::now() + PATIENCE * 2;
    bench.pool.change(|book, effects| book.tick(later, effects));
    assert!(bench.call(&a).unwrap().is_none(), "the worker is draining");
    drop(held);
    bench.settle();
    let served: Vec<_> = bench.answers().into_iter().map(|(key, _)| key).collect();
    assert!(served.contains(&b));
}

#[test]
fn scaling_keeps_within_the_room_and_leaves_one() {
    let mut bench = Bench::new(3, 100);
    let a = key("p", "a");
    bench.pool.scale_up(&a, &runtime(), 9);
    bench.collect();
    assert_eq!(bench.pool.workers_of(&a.function, 0).len(), 3);
    bench.settle();
    bench.pool.scale_down(&a.function, 0, 9);
    assert_eq!(bench.pool.workers_of(&a.function, 0).len(), 1);
    bench.settle();
    assert_eq!(bench.live.len(), 1);
    bench.pool.release_function(&a.function, 0);
    bench.settle();
    assert_eq!(bench.pool.status(&runtime()), Some(PoolStatus { total: 0, available: 0 }));
    assert_eq!(bench.pool.status(&"other".into()), None);
}

#[test]
fn a_new_image_is_used_once_it_is_the_runtimes() {
    let mut bench = Bench::new(3, 100);
    bench.pool.prewarm(&runtime(), 1);
    bench.collect();
    bench.settle();
    let mut probe = bench.pool.probe(&runtime(), &base("new")).unwrap();
    bench.collect();
    bench.settle();
    assert_eq!(probe.try_recv(), Ok(Ok(())));
    bench.pool.set_runtime(&runtime(), base("new"));
    bench.call(&key("p", "a")).unwrap();
    bench.settle();
    let lease = bench.leases().pop().unwrap();
    assert_eq!((lease.worker().image_id.as_str(), lease.start()), ("new", Start::Prewarmed));
}

#[test]
fn a_function_without_a_network_gets_workers_of_its_own_making() {
    let mut bench = Bench::new(3, 100);
    bench.pool.prewarm(&runtime(), 1);
    bench.collect();
    bench.settle();
    let offline = Arc::new(FunctionKey { offline: true, ..(*key("p", "a")).clone() });
    bench.call(&offline).unwrap();
    bench.settle();
    let first = bench.leases().pop().unwrap();
    assert_eq!((first.worker().network, first.start()), (Network::None, Start::Cold));
    bench.call(&key("p", "b")).unwrap();
    bench.settle();
    let second = bench.leases().pop().unwrap();
    assert_eq!((second.worker().network, second.start()), (Network::Bridge, Start::Prewarmed));
    assert!(bench.pool.list().iter().all(|info| info.current));

    // Its runtime does without by now: workers that are prepared do, those that have a network are of before.
    bench.pool.set_runtime(&runtime(), Base { network: Network::None, ..base("i") });
    bench.pool.prewarm(&runtime(), 1);
    bench.collect();
    bench.settle();
    let of = |network| bench.pool.list().into_iter().find(|info| info.worker.network == network).unwrap();
    assert!(!of(Network::Bridge).current);
    assert!(bench.pool.list().iter().all(|info| info.current == (info.worker.network == Network::None)));
    bench.call(&Arc::new(FunctionKey { offline: true, ..(*key("p", "c")).clone() })).unwrap();
    bench.settle();
    assert_eq!(bench.leases().pop().unwrap().start(), Start::Prewarmed);
}

#[test]
fn a_closed_pool_answers_everyone() {
    let mut bench = Bench::new(3, 100);
    bench.call(&key("p", "a")).unwrap();
    bench.pool.close();
    assert_eq!(bench.answers().pop().unwrap().1.unwrap_err(), Error::Closed);
    assert_eq!(bench.call(&key("p", "a")).unwrap_err(), Error::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_its_deadline() {
    let bench = Bench::new(3, 100);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let answer = bench.pool.lease(&key("p", "a"), &"unknown".into(), deadline).await;
    assert_eq!(answer.unwrap_err(), Error::TimedOut);
    assert_eq!(bench.pool.waiting(), 0);
}

#[derive(Debug, Clone)]
enum Op {
    Call(usize),
    Finish(usize),
    Advance(usize),
    Fail(usize),
    Die(usize),
    GiveUp(usize),
    Prewarm,
    Tick,
    LoseImage,
    FindImage,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (0usize..4).prop_map(Op::Call),
        6 => (0usize..64).prop_map(Op::Finish),
        8 => (0usize..64).prop_map(Op::Advance),
        1 => (0usize..64).prop_map(Op::Fail),
        1 => (0usize..64).prop_map(Op::Die),
        1 => (0usize..64).prop_map(Op::GiveUp),
        1 => Just(Op::Prewarm),
        1 => Just(Op::Tick),
        1 => Just(Op::LoseImage),
        2 => Just(Op::FindImage),
    ];
    prop::collection::vec(op, 0..120)
}

proptest! {
    #[test]
    fn calls_at_once_have_as_many_workers_as_their_slots_take(
        calls in prop::collection::vec((0usize..3, any::<bool>()), 1..40),
        prewarmed in 0usize..4,
    ) {
        let keys = [key("p", "a"), key("p", "b"), key("q", "c")];
        let mut bench = Bench::new(40, 100);
        bench.pool.prewarm(&runtime(), prewarmed);
        bench.collect();
        let mut held: Vec<Lease> = Vec::new();
        for (which, settles) in &calls {
            held.extend(bench.call(&keys[*which]).unwrap());
            if *settles {
                bench.settle();
            }
        }
        bench.settle();
        held.extend(bench.leases());
        prop_assert_eq!(held.len(), calls.len());
        for (which, key) in keys.iter().enumerate() {
            let running = calls.iter().filter(|(of, _)| *of == which).count();
            prop_assert_eq!(bench.bound(key), running.div_ceil(SLOTS as usize), "{} running", running);
        }
    }

    #[test]
    fn no_sequence_of_calls_and_failures_breaks_a_rule(ops in ops(), max_workers in 1usize..6) {
        let keys = [key("p", "a"), key("p", "b"), key("q", "c"), key("r", "d")];
        let mut bench = Bench::new(max_workers, 12);
        let mut held: Vec<(Arc<FunctionKey>, Lease)> = Vec::new();
        let mut bound: HashMap<WorkerName, Arc<FunctionKey>> = HashMap::new();
        for op in ops {
            match op {
                Op::Call(which) => {
                    let key = &keys[which];
                    if let Ok(Some(lease)) = bench.call(key) {
                        held.push((key.clone(), lease));
                    }
                }
                Op::Finish(at) if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                Op::Advance(at) if !bench.live.is_empty() => {
                    let at = at % bench.live.len();
                    bench.advance(at);
                }
                Op::Fail(at) if !bench.live.is_empty() => {
                    let id = bench.live[at % bench.live.len()].id;
                    let preparing = bench.state(id).is_some_and(|s| s.is_preparing() || s.is_unbound());
                    if preparing {
                        let step = [Step::Load, Step::Died, Step::Ended][at % 3];
                        bench.pool.failed(id, step, "failed");
                    }
                }
                Op::Die(at) if !bench.live.is_empty() => {
                    let spawn = bench.live.remove(at % bench.live.len());
                    bench.pool.gone(spawn.id);
                }
                Op::GiveUp(at) if !bench.calls.is_empty() => {
                    let at = at % bench.calls.len();
                    drop(bench.calls.swap_remove(at));
                }
                Op::Prewarm => bench.pool.prewarm(&runtime(), 2),
                Op::Tick => bench.pool.tick(),
                Op::LoseImage => {
                    bench.pool.image_is_gone(&runtime(), "i");
                    bench.pool.set_unusable(&runtime(), "no image");
                }
                Op::FindImage => bench.pool.set_runtime(&runtime(), base("i")),
                _ => {}
            }
            bench.collect();
            for (key, answer) in bench.answers() {
                if let Ok(lease) = answer {
                    held.push((key, lease));
                }
            }
            let list = bench.pool.list();
            prop_assert!(list.len() <= max_workers);
            let mut indexes: Vec<u32> = list.iter().map(|info| info.worker.index).collect();
            indexes.sort_unstable();
            indexes.dedup();
            prop_assert_eq!(indexes.len(), list.len(), "two workers share user ids");
            for info in &list {
                prop_assert!(info.state.in_flight() <= SLOTS);
                let leases = held.iter().filter(|(_, lease)| lease.id == info.id);
                prop_assert_eq!(leases.clone().count(), info.state.in_flight() as usize);
                for (key, _) in leases {
                    prop_assert_eq!(Some(key), info.state.function());
                }
                if let Some(function) = info.state.function() {
                    let first = bound.entry(info.worker.name.clone()).or_insert_with(|| function.clone());
                    prop_assert_eq!(&*first, function, "a worker was bound twice");
                }
            }
            prop_assert!(bench.pool.waiting() <= 12);
        }
        // Whatever happened, once executions end and nothing fails any more, nobody waits for ever.
        let late = Instant::now() + LONGEST;
        for _ in 0..200 {
            held.clear();
            bench.pool.change(|book, effects| book.tick(late, effects));
            bench.collect();
            bench.settle();
            for (key, answer) in bench.answers() {
                if let Ok(lease) = answer {
                    held.push((key, lease));
                }
            }
        }
        prop_assert_eq!(bench.calls.len(), 0);
        held.clear();
        prop_assert!(bench.pool.list().iter().all(|info| info.state.in_flight() == 0));
    }
}
