//! What a runtime's workers are started from, and whether one may be started now.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Base;
use crate::model::RuntimeId;

/// Pause after the first of a row of failed starts, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Runtimes(HashMap<RuntimeId, Runtime>);

#[derive(Debug)]
enum Runtime {
    Usable {
        base: Base,
        failures: u32,
        not_before: Option<Instant>,
    },
    /// A sentence for the user.
    Unusable(String),
}

impl Runtimes {
    /// `false` where that is so already.
    pub fn set(&mut self, id: &RuntimeId, base: Base) -> bool {
        if self.base(id) == Some(&base) {
            return false;
        }
        self.0.insert(id.clone(), Runtime::Usable { base, failures: 0, not_before: None });
        true
    }

    pub fn set_unusable(&mut self, id: &RuntimeId, why: &str) {
        self.0.insert(id.clone(), Runtime::Unusable(why.to_owned()));
    }

    pub fn remove(&mut self, id: &RuntimeId) {
        self.0.remove(id);
    }

    pub fn base(&self, id: &RuntimeId) -> Option<&Base> {
        match self.0.get(id)? {
            Runtime::Usable { base, .. } => Some(base),
            Runtime::Unusable(_) => None,
        }
    }

    /// Why no call can be run. `None` also where nothing is known of the runtime yet.
    pub fn unusable(&self, id: &RuntimeId) -> Option<&str> {
        match self.0.get(id)? {
            Runtime::Usable { .. } => None,
            Runtime::Unusable(why) => Some(why),
        }
    }

    pub fn may_start(&self, id: &RuntimeId, now: Instant) -> bool {
        match self.0.get(id) {
            Some(Runtime::Usable { not_before, .. }) => not_before.is_none_or(|time| time <= now),
            _ => false,
        }
    }

    pub fn has_image(&self, id: &RuntimeId, image_id: &str) -> bool {
        self.base(id).is_some_and(|base| base.image.id == image_id)
    }

    /// A worker came up.
    pub fn started(&mut self, id: &RuntimeId, image_id: &str) {
        if let Some(Runtime::Usable { base, failures, not_before }) = self.0.get_mut(id)
            && base.image.id == image_id
        {
            (*failures, *not_before) = (0, None);
        }
    }

    /// A worker did not come up: the next may fail too, so it waits, longer each time.
    pub fn failed(&mut self, id: &RuntimeId, image_id: &str, now: Instant) {
        if let Some(Runtime::Usable { base, failures, not_before }) = self.0.get_mut(id)
            && base.image.id == image_id
        {
            let pause = FIRST_PAUSE * 2u32.pow((*failures).min(8));
            *failures += 1;
            *not_before = Some(now + pause.min(LONGEST_PAUSE));
        }
    }
}
