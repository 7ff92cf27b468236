//! The one place that reads the wall clock.
//!
//! Everything below the ground floor takes the time as an argument or through a [`Clock`], so that
//! decisions about expiry are tested by moving a hand instead of sleeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970, as claims and records have it (RFC 7519 §2, NumericDate); 0 for what lies before.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Where the time comes from. Cheap to clone; clones of a manual clock share its hand.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual { start: SystemTime, moved_millis: Arc<AtomicU64> },
}

impl Clock {
    /// The time of the machine.
    pub fn system() -> Clock {
        Clock(Source::System)
    }

    /// A clock that stands at `start` until [`Clock::advance`] moves it.
    pub fn manual(start: SystemTime) -> Clock {
        Clock(Source::Manual { start, moved_millis: Arc::new(AtomicU64::new(0)) })
    }

    /// The time now.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
    pub fn now(&self) -> SystemTime {
        match &self.0 {
            Source::System => SystemTime::now(),
            Source::Manual { start, moved_millis } => {
                *start + Duration::from_millis(moved_millis.load(Ordering::SeqCst))
            }
        }
    }

    /// What a manual clock says; `None` for the machine's. For stores whose time is their server's.
    pub fn manual_now(&self) -> Option<SystemTime> {
        matches!(self.0, Source::Manual { .. }).then(|| self.now())
    }

    /// Moves a manual clock forward, in whole milliseconds. A system clock is left alone.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual { moved_millis, .. } = &self.0 {
            let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            moved_millis.fetch_add(millis, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told_and_for_all_its_clones() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let clock = Clock::manual(start);
        let other = clock.clone();
        assert_eq!(clock.now(), start);
        other.advance(Duration::from_millis(1_500));
        assert_eq!(clock.now(), start + Duration::from_millis(1_500));
    }
}
