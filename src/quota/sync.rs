//! Synchronous calls of a project that this process waits for. They have no row while they are short, so
//! they are counted here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::ProjectId;

/// Projects that are remembered before those are dropped of which nothing runs.
const MANY: usize = 1024;

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
            projects.retain(|_, running| Arc::strong_count(running) > 1 || !running.is_idle());
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
    queued: AtomicU64,
}

/// A synchronous call, counted until this is dropped.
#[derive(Debug)]
pub struct Share(Arc<Running>);

/// Whether a call was taken on.
pub enum TakenOn {
    Yes(Share),
    /// So many are there already.
    No {
        used: u64,
    },
}

impl Running {
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    pub fn set_queued(&self, queued: u64) {
        self.queued.store(queued, Ordering::SeqCst);
    }

    fn is_idle(&self) -> bool {
        self.calls() == 0 && self.queued.load(Ordering::SeqCst) == 0
    }

    /// Counts a call where the limit leaves room for it.
    pub fn take(self: &Arc<Self>, limit: u64) -> TakenOn {
        let queued = self.queued.load(Ordering::SeqCst);
        let more = |calls: u64| (calls + queued < limit).then_some(calls + 1);
        match self.calls.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more) {
            Ok(_) => TakenOn::Yes(Share(self.clone())),
            Err(calls) => TakenOn::No { used: calls + queued },
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}
