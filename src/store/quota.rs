//! How often something may be done, by the generic cell rate algorithm: all that is kept of what was spent is the moment at
//! which it will be forgotten. It is decided here for what one instance counts by itself, and by the same rule in a
//! script ([`super::redis`]) for what instances count together.
//!
//! None of it is a record: it is gone in a moment, nobody is told of it, and a store that lost it is merely generous once.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::Rate;

/// A rate in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// What one use costs.
    pub interval: u64,
    /// What may be spent ahead of time.
    pub whole: u64,
}

impl Quota {
    #[must_use]
    pub fn of(rate: &Rate) -> Self {
        let interval = in_micros(rate.interval);
        Self { interval, whole: interval.saturating_mul(rate.burst.into()) }
    }

    /// Spends one at `now`. `until`: when what was spent before is forgotten; 0 for never anything. Answers when it is from
    /// then on, or how long to wait.
    pub fn spend(self, until: u64, now: u64) -> Result<u64, Duration> {
        let Self { interval, whole } = self;
        // After a clock went back nobody waits longer than with nothing left.
        let after = until.clamp(now, now.saturating_add(whole)).saturating_add(interval);
        match after.saturating_sub(now).saturating_sub(whole) {
            0 => Ok(after),
            wait => Err(Duration::from_micros(wait)),
        }
    }
}

/// Microseconds since the epoch.
pub fn micros(time: SystemTime) -> u64 {
    in_micros(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn in_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    const SECOND: u64 = 1_000_000;
    /// Two each second, three at once.
    const QUOTA: Quota = Quota { interval: SECOND / 2, whole: 3 * SECOND / 2 };
    const NOW: u64 = 1_790_000_000 * SECOND;

    #[test]
    fn after_a_rest_the_burst_is_there_at_once_and_then_one_each_interval() {
        let mut until = 0;
        for _ in 0..3 {
            until = QUOTA.spend(until, NOW).unwrap();
        }
        assert_eq!(QUOTA.spend(until, NOW), Err(Duration::from_millis(500)));
        assert_eq!(QUOTA.spend(until, NOW + SECOND / 2 - 1), Err(Duration::from_micros(1)));
        until = QUOTA.spend(until, NOW + SECOND / 2).unwrap();
        assert_eq!(QUOTA.spend(until, NOW + SECOND / 2), Err(Duration::from_millis(500)));
        for _ in 0..3 {
            until = QUOTA.spend(until, NOW + 10 * SECOND).unwrap();
        }
        assert!(
            QUOTA.spend(until, NOW + 10 * SECOND).is_err(),
            "a long rest saves up no more than the burst"
        );
    }

    #[test]
    fn a_clock_that_went_back_makes_nobody_wait_longer_than_with_nothing_left() {
        let until = QUOTA.spend(0, NOW + 3600 * SECOND).unwrap();
        assert_eq!(QUOTA.spend(until, NOW), Err(Duration::from_millis(500)));
        assert_eq!(QUOTA.spend(NOW + QUOTA.whole, NOW + SECOND / 2), Ok(NOW + 2 * SECOND));
    }

    #[test]
    fn a_rate_is_an_interval_and_a_burst() {
        let rate = Rate { interval: Duration::from_millis(500), burst: 3 };
        assert_eq!(Quota::of(&rate), QUOTA);
    }
}
