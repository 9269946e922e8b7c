//! A worker: its states, and what the engine holds of one. The task that owns its container is in
//! [`super::keeper`].

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use protocol::worker::{Attempt, Load};

use super::supervisor::Supervisor;
use crate::model::{FunctionId, ProjectId, RuntimeId, WorkerName, function};
use crate::orchestrator::Network;

/// What a worker is bound to, once and for all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionKey {
    /// The project of the function, whoever calls it.
    pub project: ProjectId,
    pub function: FunctionId,
    /// 0 is the working copy.
    pub version: i32,
    /// From [`function::Model::digest`].
    pub digest: String,
    /// Without a network, whatever its runtime has.
    pub offline: bool,
}

impl FunctionKey {
    /// Whether the code is an object in Swift.
    pub fn is_object(&self) -> bool {
        self.digest.starts_with(function::OBJECT)
    }

    pub fn load(&self, limits: protocol::archive::Limits) -> Load {
        Load {
            project: self.project.to_string(),
            function: self.function.to_string(),
            version: self.version,
            digest: self.digest.clone(),
            limits,
            offline: self.offline,
        }
    }
}

impl From<&Load> for FunctionKey {
    fn from(load: &Load) -> Self {
        Self {
            project: load.project.as_str().into(),
            function: load.function.as_str().into(),
            version: load.version,
            digest: load.digest.clone(),
            offline: load.offline,
        }
    }
}

/// Where a worker is in its life. A bound one carries its function, which never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerState {
    /// Its container starts, for a function or for the pool.
    Starting {
        function: Option<Arc<FunctionKey>>,
    },
    Prewarmed,
    Specializing {
        function: Arc<FunctionKey>,
    },
    Idle {
        function: Arc<FunctionKey>,
        since: Instant,
    },
    Busy {
        function: Arc<FunctionKey>,
        in_flight: u32,
    },
    /// Takes nothing new; removed once nothing is in flight.
    Draining {
        function: Option<Arc<FunctionKey>>,
        in_flight: u32,
    },
    Stopped,
}

#[derive(Debug, Clone)]
pub enum Event {
    Bind(Arc<FunctionKey>),
    /// The container is up and its supervisor answers.
    Ready,
    /// The package is in.
    Loaded,
    Invoked,
    Finished,
    Drain,
    /// The container is gone.
    Gone,
}

impl WorkerState {
    /// The state after `event`, or `None` where the event makes no sense here.
    pub fn on(&self, event: Event, slots: u32, now: Instant) -> Option<Self> {
        use {Event as E, WorkerState as S};
        Some(match (self.clone(), event) {
            (S::Stopped, _) => return None,
            (_, E::Gone) => S::Stopped,

            (S::Starting { function: None }, E::Bind(function)) => S::Starting { function: Some(function) },
            (S::Starting { function: None }, E::Ready) => S::Prewarmed,
            (S::Starting { function: Some(function) }, E::Ready) => S::Specializing { function },
            (S::Prewarmed, E::Bind(function)) => S::Specializing { function },
            (S::Specializing { function }, E::Loaded) => S::Idle { function, since: now },

            (S::Idle { function, .. }, E::Invoked) if slots > 0 => S::Busy { function, in_flight: 1 },
            (S::Busy { function, in_flight }, E::Invoked) if in_flight < slots => {
                S::Busy { function, in_flight: in_flight + 1 }
            }
            (S::Busy { function, in_flight: 1 }, E::Finished) => S::Idle { function, since: now },
            (S::Busy { function, in_flight }, E::Finished) => S::Busy { function, in_flight: in_flight - 1 },
            (S::Draining { function, in_flight }, E::Finished) if in_flight > 0 => {
                S::Draining { function, in_flight: in_flight - 1 }
            }

            (S::Draining { .. }, E::Drain) => return None,
            (state, E::Drain) => {
                S::Draining { function: state.function().cloned(), in_flight: state.in_flight() }
            }
            _ => return None,
        })
    }

    pub fn function(&self) -> Option<&Arc<FunctionKey>> {
        match self {
            Self::Starting { function } | Self::Draining { function, .. } => function.as_ref(),
            Self::Specializing { function } | Self::Idle { function, .. } | Self::Busy { function, .. } => {
                Some(function)
            }
            Self::Prewarmed | Self::Stopped => None,
        }
    }

    pub fn in_flight(&self) -> u32 {
        match self {
            Self::Busy { in_flight, .. } | Self::Draining { in_flight, .. } => *in_flight,
            _ => 0,
        }
    }

    /// Executions that may be sent now.
    pub fn free(&self, slots: u32) -> u32 {
        match self {
            Self::Idle { .. } => slots,
            Self::Busy { in_flight, .. } => slots.saturating_sub(*in_flight),
            _ => 0,
        }
    }

    /// On its way to hold its function.
    pub fn is_preparing(&self) -> bool {
        matches!(self, Self::Starting { function: Some(_) } | Self::Specializing { .. })
    }

    /// Started or starting, and free to be bound.
    pub fn is_unbound(&self) -> bool {
        matches!(self, Self::Starting { function: None } | Self::Prewarmed)
    }

    pub fn is_draining(&self) -> bool {
        matches!(self, Self::Draining { .. })
    }

    /// One word for a metric's label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Prewarmed => "prewarmed",
            Self::Specializing { .. } => "specializing",
            Self::Idle { .. } => "idle",
            Self::Busy { .. } => "busy",
            Self::Draining { .. } => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// What stays the same about a worker, and its supervisor once there is one.
#[derive(Debug)]
pub struct Worker {
    pub name: WorkerName,
    /// Which user ids are its own.
    pub index: u32,
    pub runtime: RuntimeId,
    pub image_id: String,
    pub network: Network,
    supervisor: OnceLock<Supervisor>,
    /// When it began to be made ready for its function.
    begun: OnceLock<Instant>,
    /// Outcomes that are safely stored and that the supervisor may forget.
    settled: Mutex<Vec<Attempt>>,
}

impl Worker {
    pub fn new(name: WorkerName, index: u32, runtime: RuntimeId, image_id: String, network: Network) -> Self {
        let (supervisor, begun, settled) = Default::default();
        Self { name, index, runtime, image_id, network, supervisor, begun, settled }
    }

    /// Notes that from now on it is made ready for a function: started, or given its package.
    pub fn begin(&self, now: Instant) {
        // It is bound once.
        let _ = self.begun.set(now);
    }

    pub fn begun(&self) -> Option<Instant> {
        self.begun.get().copied()
    }

    /// Set once, by whoever started or adopted the worker, before it becomes ready.
    pub fn connect(&self, supervisor: Supervisor) {
        // A second one would be the same socket.
        let _ = self.supervisor.set(supervisor);
    }

    pub fn supervisor(&self) -> Option<&Supervisor> {
        self.supervisor.get()
    }

    /// Notes that an outcome is stored; the supervisor is told with the next execution, or soon.
    pub fn settle(&self, attempts: impl IntoIterator<Item = Attempt>) {
        self.settled.lock().expect("no panic while it is held").extend(attempts);
    }

    pub fn take_settled(&self) -> Vec<Attempt> {
        std::mem::take(&mut *self.settled.lock().expect("no panic while it is held"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(name: &str) -> Arc<FunctionKey> {
        Arc::new(FunctionKey {
            project: "p".into(),
            function: name.into(),
            version: 0,
            digest: "d".to_owned(),
            offline: false,
        })
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            1 => Just(Event::Bind(key("a"))),
            1 => Just(Event::Bind(key("b"))),
            2 => Just(Event::Ready),
            2 => Just(Event::Loaded),
            6 => Just(Event::Invoked),
            5 => Just(Event::Finished),
            1 => Just(Event::Drain),
            1 => Just(Event::Gone),
        ];
        prop::collection::vec(event, 0..60)
    }

    proptest! {
        #[test]
        fn no_sequence_of_events_breaks_a_rule(events in events(), slots in 1u32..5) {
            let now = Instant::now();
            let mut state = WorkerState::Starting { function: None };
            let mut invoked = 0i64;
            for event in events {
                let Some(next) = state.on(event.clone(), slots, now) else { continue };
                prop_assert!(state != WorkerState::Stopped, "left Stopped by {event:?}");
                match event {
                    Event::Invoked => {
                        prop_assert!(!state.is_draining());
                        prop_assert!(state.free(slots) > 0);
                        invoked += 1;
                    }
                    Event::Finished => invoked -= 1,
                    Event::Gone => invoked = 0,
                    _ => {}
                }
                prop_assert!(next.in_flight() <= slots);
                prop_assert_eq!(i64::from(next.in_flight()), invoked);
                if let (Some(bound), Some(now_bound)) = (state.function(), next.function()) {
                    prop_assert_eq!(bound, now_bound);
                }
                if state.function().is_some() {
                    prop_assert!(next.function().is_some() || next == WorkerState::Stopped);
                }
                prop_assert!(!state.is_draining() || next.is_draining() || next == WorkerState::Stopped);
                state = next;
            }
        }
    }

    #[test]
    fn a_worker_lives_through_its_states() {
        let now = Instant::now();
        let mut state = WorkerState::Starting { function: None };
        let steps = [
            (Event::Ready, "prewarmed"),
            (Event::Bind(key("a")), "specializing"),
            (Event::Loaded, "idle"),
            (Event::Invoked, "busy"),
            (Event::Invoked, "busy"),
            (Event::Finished, "busy"),
            (Event::Drain, "draining"),
            (Event::Finished, "draining"),
            (Event::Gone, "stopped"),
        ];
        for (event, name) in steps {
            state = state.on(event, 3, now).unwrap();
            assert_eq!(state.name(), name);
        }
    }

    #[test]
    fn a_bound_worker_is_not_bound_again() {
        let now = Instant::now();
        let bound = WorkerState::Idle { function: key("a"), since: now };
        assert_eq!(bound.on(Event::Bind(key("b")), 3, now), None);
        let starting = WorkerState::Starting { function: Some(key("a")) };
        assert_eq!(starting.on(Event::Bind(key("b")), 3, now), None);
    }
}
