//! Where a call goes, and whom to evict for it. Pure: reads a snapshot, returns a decision.
//!
//! The scaling rule is the v1 contract's: with n executions of a function's version under way, this
//! one included, it has at least ⌈n / slots⌉ workers, as far as there is room. It follows from the
//! order below: a free slot first, then one of a worker that is being prepared, and only then one
//! more worker.

use std::collections::HashMap;
use std::time::Instant;

use super::worker::{FunctionKey, WorkerState};
use crate::model::{ProjectId, RuntimeId};
use crate::orchestrator::Network;

/// A worker, within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u64);

/// A worker as a decision sees it.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub id: WorkerId,
    pub state: &'a WorkerState,
    pub runtime: &'a RuntimeId,
    /// It is as workers of its runtime are now.
    pub current: bool,
    pub network: Network,
    pub last_used: Instant,
}

/// What asks for a worker.
#[derive(Debug, Clone, Copy)]
pub struct Need<'a> {
    pub function: &'a FunctionKey,
    pub runtime: &'a RuntimeId,
    pub network: Network,
    /// Calls of the function that wait already and go first.
    pub ahead: usize,
}

#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub slots: u32,
    pub max_workers: usize,
    /// The runtime's image is known, and its last start did not just fail.
    pub may_start: bool,
    /// Workers about to be gone whose room nobody else waits for.
    pub coming: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Run on this worker, now.
    Warm(WorkerId),
    /// Wait for this worker, which is being prepared for the function and has a slot left.
    Join(WorkerId),
    /// Bind this unbound worker.
    Bind(WorkerId),
    /// Start a worker; where one is named, once it has been evicted.
    Start { evict: Option<WorkerId> },
    /// Nothing can be done until something ends.
    Wait,
}

/// Where a call goes. `mine` are the workers of its function; `everyone`, all of them, is asked only
/// where these do not do, so that a warm call does not grow with what else there is.
pub fn place<'a>(
    need: Need<'_>,
    room: Room,
    mine: impl Iterator<Item = View<'a>>,
    everyone: impl FnOnce() -> Vec<View<'a>>,
) -> Decision {
    let mut free = 0;
    let mut warmest: Option<View<'_>> = None;
    let mut preparing = Vec::new();
    for view in mine {
        let slots = view.state.free(room.slots) as usize;
        free += slots;
        if slots > 0 && warmest.is_none_or(|best| (view.last_used, view.id) > (best.last_used, best.id)) {
            warmest = Some(view);
        }
        if view.state.is_preparing() {
            preparing.push(view.id);
        }
    }
    match warmest {
        Some(view) if free > need.ahead => return Decision::Warm(view.id),
        _ => {}
    }
    preparing.sort_unstable();
    if let Some(id) = preparing.get((need.ahead - free) / room.slots.max(1) as usize) {
        return Decision::Join(*id);
    }
    another(need, room, &everyone())
}

/// One more worker for a function.
fn another(need: Need<'_>, room: Room, everyone: &[View<'_>]) -> Decision {
    let usable = |view: &&View<'_>| {
        view.state.is_unbound()
            && view.current
            && (view.runtime, view.network) == (need.runtime, need.network)
    };
    let unbound = everyone.iter().filter(usable);
    if let Some(view) = unbound.min_by_key(|view| (!matches!(view.state, WorkerState::Prewarmed), view.id)) {
        return Decision::Bind(view.id);
    }
    if !room.may_start {
        return Decision::Wait;
    }
    if everyone.len() < room.max_workers {
        return Decision::Start { evict: None };
    }
    if room.coming > 0 {
        return Decision::Wait;
    }
    match victim(need, everyone) {
        Some(id) => Decision::Start { evict: Some(id) },
        None => Decision::Wait,
    }
}

/// Whom to evict: a worker that holds nothing before one that would have to be loaded again.
fn victim(need: Need<'_>, everyone: &[View<'_>]) -> Option<WorkerId> {
    let prewarmed = everyone.iter().filter(|view| *view.state == WorkerState::Prewarmed);
    let oldest = prewarmed.min_by_key(|view| view.id);
    let idle = everyone.iter().filter(|view| match view.state {
        WorkerState::Idle { function, .. } => **function != *need.function,
        _ => false,
    });
    oldest.or_else(|| idle.min_by_key(|view| (view.last_used, view.id))).map(|view| view.id)
}

/// A busy worker to drain for a call that waited long while others kept every worker busy: of the
/// project that has most, if that is more than the caller's; else of another function of its own.
pub fn relieve(function: &FunctionKey, everyone: &[View<'_>]) -> Option<WorkerId> {
    let mut projects: HashMap<&ProjectId, usize> = HashMap::new();
    let mut functions: HashMap<&FunctionKey, usize> = HashMap::new();
    let bound = || {
        everyone.iter().filter_map(|view| match view.state.function() {
            Some(function) if !view.state.is_draining() => Some((view, function.as_ref())),
            _ => None,
        })
    };
    for (_, function) in bound() {
        *projects.entry(&function.project).or_default() += 1;
        *functions.entry(function).or_default() += 1;
    }
    let own = projects.get(&function.project).copied().unwrap_or(0);
    let mine = functions.get(function).copied().unwrap_or(0);
    let candidates = bound().filter(|(view, other)| {
        let richer = if other.project == function.project {
            functions[other] > mine && *other != function
        } else {
            projects[&other.project] > own
        };
        richer && matches!(view.state, WorkerState::Busy { .. })
    });
    candidates
        .max_by_key(|(view, other)| {
            let foreign = other.project != function.project;
            (foreign, projects[&other.project], functions[other], std::cmp::Reverse(view.last_used), view.id)
        })
        .map(|(view, _)| view.id)
}

#[cfg(test)]
mod tests;
