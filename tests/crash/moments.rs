//! `kill -9` at random moments, while executions are accepted and run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::ledger::{self, Ledger, MARKED, in_step, nothing_left};
use crate::number;
use crate::service::Service;

/// Clients that hand over asynchronous executions, and such that wait for theirs.
const ACCEPTING: u64 = 4;
const CALLING: u64 = 2;

/// As good as random, and the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most
    }
}

/// Loads a service until it is gone, or `wanted` have been accepted by all of them together.
async fn load(service: &Service, function: &str, ledgers: &mut [Ledger], done: &AtomicUsize, wanted: usize) {
    let clients = ledgers.iter_mut().enumerate().map(|(client, ledger)| async move {
        let mut turn = 0_u32;
        loop {
            turn += 1;
            // Most are short; some are sure to be under way when the end comes.
            let seconds = if turn.is_multiple_of(40) { 0.4 } else { 0.0 };
            if (client as u64) < ACCEPTING {
                if done.load(Ordering::Relaxed) >= wanted {
                    return;
                }
                let Some(_) = ledger.accept(service, function, seconds).await else { return };
                done.fetch_add(1, Ordering::Relaxed);
            } else {
                let Some(_) = ledger.call(service, function, seconds).await else { return };
                if done.load(Ordering::Relaxed) >= wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    futures_util::future::join_all(clients).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_accepted_execution_is_lost_or_doubled_by_kill_9_at_random_moments() {
    let kills = usize::try_from(number("TAIBAI_CRASH_KILLS", 50)).unwrap();
    let executions = usize::try_from(number("TAIBAI_CRASH_EXECUTIONS", 10_000)).unwrap();
    let seed = number("TAIBAI_CRASH_SEED", 1);
    println!("{kills} kills, {executions} executions, seed {seed}");
    let mut dice = Dice(seed);
    let options = [
        ("engine.max_workers", "4"),
        ("engine.max_async", "9"),
        ("engine.memory_mark", "268435456"),
        ("engine.max_executions_per_slot", "1000000"),
    ];
    let service = Service::start_in(ledger::home(&options)).await;
    Ledger::watch(&service.home).await;
    let runtime = service.runtime().await;
    let fields = [("timeout", "10"), ("cpu", "2000")];
    let function = service.function("demo", &runtime, MARKED, &fields).await;

    let began = Instant::now();
    let mut all = Ledger::default();
    let done = Arc::new(AtomicUsize::new(0));
    let mut home = service.kill_9();
    for kill in 0..kills {
        let service = Service::start_in(home).await;
        let wanted = executions * (kill + 1) / kills;
        let moment = Duration::from_millis(100 + dice.below(1400));
        let mut ledgers = all.split(ACCEPTING + CALLING);
        // Killed from beside, so that requests are under way.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(service.pid()).unwrap());
        let killer = async {
            tokio::time::sleep(moment).await;
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        };
        tokio::join!(load(&service, &function, &mut ledgers, &done, wanted), killer);
        home = service.ended_by_itself().await.0;
        all.join(ledgers);
        all.harvest(&home);
    }
    let service = Service::start_in(home).await;
    let mut ledgers = all.split(ACCEPTING + CALLING);
    load(&service, &function, &mut ledgers, &done, executions).await;
    all.join(ledgers);
    let killed = began.elapsed();
    let tally = all.check(&service).await;
    in_step(&service).await;
    println!(
        "{kills} kills in {:.0} s, all ended after {:.0} s: {tally}",
        killed.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    assert!(tally.accepted >= executions);
    nothing_left(service).await;
}
