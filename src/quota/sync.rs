//! Synchronous calls of a project that this process waits for. They have no row while they are short, so
//! they are counted here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::ProjectId;

/// Projects that are remembered before those are dropped of which nothing runs.
const MANY: usize = 1024;
/// How long it counts near the limit what was queued.
const RECENT: Duration = Duration::from_secs(3);
/// How long a project that is at its limit is refused before what is queued is counted again: this bounds
/// the queries of one that asks on and on.
const AGAIN: Duration = Duration::from_millis(100);

/// What is known of projects that called lately.
#[derive(Debug, Default)]
pub struct Projects(Mutex<HashMap<ProjectId, Arc<Running>>>);

impl Projects {
    pub fn of(&self, project: &ProjectId) -> Arc<Running> {
        let mut projects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = projects.get(project) {
            return running.clone();
        }
        if projects.len() >= MANY {
            projects.retain(|_, running| Arc::strong_count(running) > 1 || running.calls() > 0);
        }
        projects.entry(project.clone()).or_default().clone()
    }

    pub fn find(&self, project: &ProjectId) -> Option<Arc<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(project).cloned()
    }
}

/// What of a project runs here, and what was queued when somebody last looked.
#[derive(Debug, Default)]
pub struct Running {
    calls: AtomicU64,
    queued: Mutex<Queued>,
    counting: tokio::sync::Mutex<()>,
}

/// What is known of executions that are queued: nothing at first.
#[derive(Debug, Default, Clone, Copy)]
struct Queued {
    /// How many there were, and when.
    noted: Option<(u64, Instant)>,
    /// When they were counted last.
    counted: Option<Instant>,
}

/// A synchronous call, counted until this is dropped.
#[derive(Debug)]
pub struct Share(Arc<Running>);

/// Whether a call was taken on.
#[derive(Debug)]
pub enum TakenOn {
    Yes(Share),
    /// So many are there already.
    No {
        used: u64,
    },
    /// That depends on what is queued, which nobody looked at lately.
    Unknown,
}

impl Running {
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn queued(&self) -> Queued {
        *self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What somebody who accepts executions knows of them.
    pub fn set_queued(&self, queued: u64, now: Instant) {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner).noted = Some((queued, now));
    }

    /// Counts a call where the limit leaves room for it, as far as what is known tells.
    pub fn take(self: &Arc<Self>, limit: u64, now: Instant) -> TakenOn {
        let Queued { noted, counted } = self.queued();
        let Some((queued, at)) = noted else { return TakenOn::Unknown };
        // What is old is good enough as long as most of the limit is left.
        let most = if is_within(at, RECENT, now) { limit } else { limit / 2 };
        match self.take_beside(queued, most) {
            Ok(share) => TakenOn::Yes(share),
            Err(used) if used >= limit && counted.is_some_and(|at| is_within(at, AGAIN, now)) => {
                TakenOn::No { used }
            }
            Err(_) => TakenOn::Unknown,
        }
    }

    /// Counts a call where the limit leaves room for it beside so many that are queued, or says how many
    /// there are.
    pub fn take_beside(self: &Arc<Self>, queued: u64, limit: u64) -> Result<Share, u64> {
        let more = |calls: u64| (calls + queued < limit).then_some(calls + 1);
        match self.calls.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more) {
            Ok(_) => Ok(Share(self.clone())),
            Err(calls) => Err(calls + queued),
        }
    }

    /// How many are queued, as `ask` says. Those who want to know at once ask once between them.
    pub async fn count<E>(&self, now: Instant, ask: impl Future<Output = Result<u64, E>>) -> Result<u64, E> {
        let asks = match self.counting.try_lock() {
            Ok(asks) => Some(asks),
            Err(_) => {
                let before = self.queued().counted;
                let _asked = self.counting.lock().await;
                let Queued { noted, counted } = self.queued();
                if let Some((queued, _)) = noted
                    && counted != before
                {
                    return Ok(queued);
                }
                // That one failed. Those who waited for it do not wait for each other as well.
                None
            }
        };
        let queued = ask.await?;
        let mut known = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        // What was noted meanwhile is newer.
        if known.noted.is_none_or(|(_, at)| at <= now) {
            known.noted = Some((queued, now));
        }
        known.counted = Some(now);
        drop(asks);
        Ok(queued)
    }
}

fn is_within(at: Instant, age: Duration, now: Instant) -> bool {
    now.saturating_duration_since(at) < age
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(queued: u64, now: Instant) -> Arc<Running> {
        let running = Arc::new(Running::default());
        running.set_queued(queued, now);
        running
    }

    #[test]
    fn what_was_noted_counts_for_a_while_and_longer_where_the_limit_is_far() {
        let now = Instant::now();
        assert!(matches!(Arc::new(Running::default()).take(9, now), TakenOn::Unknown), "nobody looked");
        let running = noted(3, now);
        let calls: Vec<_> = (0..7).map(|_| running.take(10, now)).collect();
        assert!(calls.iter().all(|call| matches!(call, TakenOn::Yes(_))), "{calls:?}");
        assert!(matches!(running.take(10, now), TakenOn::Unknown), "noted, and not counted");
        drop(calls);
        let later = now + RECENT;
        let first = running.take(10, later);
        let second = running.take(10, later);
        assert!(matches!((&first, &second), (TakenOn::Yes(_), TakenOn::Yes(_))), "far");
        assert!(matches!(running.take(10, later), TakenOn::Unknown), "near");
        assert!(matches!(noted(0, now).take(1, later), TakenOn::Unknown), "the next reaches the limit");
    }

    #[tokio::test]
    async fn those_who_want_to_know_at_once_ask_once_between_them() {
        let (running, now, asked) = (Arc::new(Running::default()), Instant::now(), AtomicU64::new(0));
        let ask = |answer: Result<u64, ()>| {
            let asked = &asked;
            async move {
                asked.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                answer
            }
        };
        let (one, two) = tokio::join!(running.count(now, ask(Err(()))), running.count(now, ask(Ok(1))));
        assert_eq!((one, two, asked.load(Ordering::SeqCst)), (Err(()), Ok(1), 2), "a failure tells nobody");
        let (one, two, three) = tokio::join!(
            running.count(now + AGAIN, ask(Ok(7))),
            running.count(now + AGAIN, ask(Ok(8))),
            running.count(now + AGAIN, ask(Ok(9)))
        );
        assert_eq!((one, two, three), (Ok(7), Ok(7), Ok(7)));
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn projects_of_which_nothing_runs_are_forgotten() {
        let (projects, now) = (Projects::default(), Instant::now());
        let busy = projects.of(&"busy".into());
        busy.set_queued(0, now);
        let TakenOn::Yes(share) = busy.take(2, now) else { panic!() };
        drop(busy);
        for at in 0..2 * MANY {
            projects.of(&format!("{at}").into()).set_queued(5, now);
        }
        assert!(projects.0.lock().unwrap().len() <= MANY);
        assert_eq!(projects.find(&"busy".into()).unwrap().calls(), 1);
        drop(share);
    }
}
