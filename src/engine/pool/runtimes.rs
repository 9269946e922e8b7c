//! Which image a runtime's workers are started from, and whether one may be started now.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::model::RuntimeId;
use crate::orchestrator::RuntimeImage;

/// Pause after the first of a row of failed starts, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Runtimes(HashMap<RuntimeId, Runtime>);

#[derive(Debug)]
enum Runtime {
    Usable {
        image: RuntimeImage,
        failures: u32,
        not_before: Option<Instant>,
    },
    /// A sentence for the user.
    Unusable(String),
}

impl Runtimes {
    /// `false` where that is its image already.
    pub fn set(&mut self, id: &RuntimeId, image: RuntimeImage) -> bool {
        if self.image(id) == Some(&image) {
            return false;
        }
        self.0.insert(id.clone(), Runtime::Usable { image, failures: 0, not_before: None });
        true
    }

    pub fn set_unusable(&mut self, id: &RuntimeId, why: &str) {
        self.0.insert(id.clone(), Runtime::Unusable(why.to_owned()));
    }

    pub fn remove(&mut self, id: &RuntimeId) {
        self.0.remove(id);
    }

    pub fn image(&self, id: &RuntimeId) -> Option<&RuntimeImage> {
        match self.0.get(id)? {
            Runtime::Usable { image, .. } => Some(image),
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

    pub fn is_current(&self, id: &RuntimeId, image_id: &str) -> bool {
        self.image(id).is_some_and(|image| image.id == image_id)
    }

    /// A worker came up.
    pub fn started(&mut self, id: &RuntimeId, image_id: &str) {
        if let Some(Runtime::Usable { image, failures, not_before }) = self.0.get_mut(id)
            && image.id == image_id
        {
            (*failures, *not_before) = (0, None);
        }
    }

    /// A worker did not come up: the next may fail too, so it waits, longer each time.
    pub fn failed(&mut self, id: &RuntimeId, image_id: &str, now: Instant) {
        if let Some(Runtime::Usable { image, failures, not_before }) = self.0.get_mut(id)
            && image.id == image_id
        {
            let pause = FIRST_PAUSE * 2u32.pow((*failures).min(8));
            *failures += 1;
            *not_before = Some(now + pause.min(LONGEST_PAUSE));
        }
    }
}
