//! Starts of synchronous executions, put aside for the moment that most of them take to end.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::LINGER;
use crate::model::{ExecutionId, execution};

/// Starts that were not written, and that may never be. Not a message each, since the writer would be
/// woken for every one of them: it looks here now and then, as long as there is something.
#[derive(Debug, Default)]
pub(super) struct Starts {
    lingering: Mutex<Lingering>,
    /// There is something again, here or in the journal.
    pub begun: Notify,
}

#[derive(Debug, Default)]
struct Lingering {
    rows: HashMap<ExecutionId, execution::Model>,
    /// In the order in which they came, also those that have ended meanwhile.
    since: VecDeque<(Instant, ExecutionId)>,
    is_watched: bool,
}

impl Starts {
    fn lock(&self) -> MutexGuard<'_, Lingering> {
        self.lingering.lock().expect("no panic while it is held")
    }

    pub fn add(&self, row: execution::Model) {
        let mut lingering = self.lock();
        lingering.since.push_back((Instant::now(), row.id.clone()));
        lingering.rows.insert(row.id.clone(), row);
        if !std::mem::replace(&mut lingering.is_watched, true) {
            self.begun.notify_one();
        }
    }

    /// The execution has ended: its end says that it started. Whether nobody has written or writes that.
    pub fn forget(&self, id: &ExecutionId) -> bool {
        self.lock().rows.remove(id).is_some()
    }

    /// Whether to look again.
    pub fn is_watched(&self) -> bool {
        self.lock().is_watched
    }

    /// Those that waited long enough.
    pub fn take_due(&self, now: Instant) -> Vec<execution::Model> {
        let mut lingering = self.lock();
        let mut due = Vec::new();
        while lingering.since.front().is_some_and(|(since, _)| now - *since >= LINGER) {
            let (_, id) = lingering.since.pop_front().expect("there is a first");
            due.extend(lingering.rows.remove(&id));
        }
        lingering.is_watched = !lingering.since.is_empty();
        due
    }
}
