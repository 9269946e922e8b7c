//! How fast the requests of a project, and calls of its webhooks, may come.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::config;
use crate::error::{Error, Result};
use crate::model::ProjectId;

/// Between two times that projects are forgotten which have not asked for a while.
const REQUESTS: u32 = 4096;

/// The requests of each project, in this process.
pub struct Rate {
    limiter: DefaultKeyedRateLimiter<ProjectId>,
    clock: DefaultClock,
    requests: AtomicU32,
}

impl Rate {
    /// `None` where projects may ask as fast as they like.
    pub fn new(config: &config::Quotas) -> Option<Self> {
        let rate = NonZeroU32::new(config.requests_per_second)?;
        let burst = NonZeroU32::new(config.burst).unwrap_or(rate);
        let limiter = RateLimiter::keyed(Quota::per_second(rate).allow_burst(burst));
        Some(Self { limiter, clock: DefaultClock::default(), requests: AtomicU32::new(0) })
    }

    /// Counts a request, or says when another may come.
    pub fn check(&self, project: &ProjectId) -> Result<()> {
        // A project that may ask again is as one that never asked, so that memory is bounded by those that
        // asked lately.
        if self.requests.fetch_add(1, Ordering::Relaxed) % REQUESTS == REQUESTS - 1 {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        self.limiter.check_key(project).map_err(|refused| {
            let wait = refused.wait_time_from(self.clock.now());
            Error::TooFast { project: project.to_string(), retry_after: whole_seconds(wait) }
        })
    }
}

/// At least one, and never too early.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(requests_per_second: u32, burst: u32) -> Option<Rate> {
        Rate::new(&config::Quotas { requests_per_second, burst, ..config::Quotas::default() })
    }

    #[test]
    fn a_project_is_held_to_its_rate_and_others_are_not() {
        let rate = rate(1, 3).unwrap();
        let (one, other) = (ProjectId::from("one"), ProjectId::from("other"));
        for _ in 0..3 {
            rate.check(&one).unwrap();
        }
        let refused = rate.check(&one).unwrap_err();
        assert!(matches!(refused, Error::TooFast { retry_after: 1, .. }), "{refused:?}");
        rate.check(&other).unwrap();
    }

    #[test]
    fn nothing_is_held_unless_it_is_asked_for() {
        assert!(rate(0, 0).is_none());
        assert!(rate(0, 5).is_none());
        let same = rate(2, 0).unwrap();
        let project = ProjectId::from("p");
        assert_eq!((0..3).filter(|_| same.check(&project).is_ok()).count(), 2);
    }

    #[test]
    fn projects_that_do_not_ask_are_forgotten() {
        let rate = rate(1_000_000, 0).unwrap();
        for number in 0..3 * REQUESTS {
            rate.check(&ProjectId(format!("p{number}"))).unwrap();
        }
        assert!(rate.limiter.len() <= REQUESTS as usize, "{}", rate.limiter.len());
    }

    #[test]
    fn a_wait_is_told_in_seconds_and_not_too_short() {
        for (wait, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_999, 60)] {
            assert_eq!(whole_seconds(Duration::from_millis(wait)), seconds);
        }
    }
}
