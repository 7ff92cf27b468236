//! What one instance counts, by whose it is: what they have spent of a rate, and the places they hold. Names that clients
//! choose make neither grow without end.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashmap::{DashMap, Entry};

use crate::store::Quota;

/// So many are told apart. The rest share what one of them has.
const KEYS: usize = 50_000;
/// Between two looks for those of whom nothing needs to be remembered, microseconds.
const PAUSE: u64 = 1_000_000;
/// The key of those who are not told apart; no other is empty.
const REST: &str = "";

/// What was spent of one rate.
pub struct Tally {
    quota: Quota,
    /// When it is forgotten, microseconds since the epoch.
    until: DashMap<Box<str>, u64>,
    looked: AtomicU64,
}

impl Tally {
    pub fn new(quota: Quota) -> Self {
        Self { quota, until: DashMap::new(), looked: AtomicU64::new(0) }
    }

    /// Spends one at `now`, microseconds since the epoch, or says how long to wait.
    pub fn spend(&self, key: &str, now: u64) -> Result<(), Duration> {
        if let Some(mut known) = self.until.get_mut(key) {
            *known = self.quota.spend(*known, now)?;
            return Ok(());
        }
        let key = if self.has_room(now) { key } else { REST };
        let mut until = self.until.entry(key.into()).or_default();
        *until = self.quota.spend(*until, now)?;
        Ok(())
    }

    /// Whether one more is told apart. Who has been quiet is forgotten: they have all they ever had.
    fn has_room(&self, now: u64) -> bool {
        if self.until.len() < KEYS {
            return true;
        }
        let looked = self.looked.load(Ordering::Relaxed);
        let is_turn = now.abs_diff(looked) >= PAUSE
            && self.looked.compare_exchange(looked, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_turn {
            self.until.retain(|_, until| *until > now);
        }
        self.until.len() < KEYS
    }
}

/// How many places are taken, by whom. Who has none is not in it.
#[derive(Default)]
pub struct Places(DashMap<Arc<str>, usize>);

/// Taken until dropped.
pub struct Place {
    places: Arc<Places>,
    key: Arc<str>,
}

impl Places {
    /// One of the `most` that there are for `key`.
    pub fn take(self: &Arc<Self>, key: &str, most: usize) -> Option<Place> {
        let key: Arc<str> = key.into();
        let mut taken = self.0.entry(Arc::clone(&key)).or_default();
        if *taken >= most {
            return None;
        }
        *taken += 1;
        drop(taken);
        Some(Place { places: Arc::clone(self), key })
    }

    #[cfg(test)]
    pub fn holders(&self) -> usize {
        self.0.len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut taken) = self.places.0.entry(Arc::clone(&self.key)) {
            match taken.get() {
                0 | 1 => drop(taken.remove()),
                more => *taken.get_mut() = more - 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    const HOUR: u64 = 3_600_000_000;
    const NOW: u64 = 500_000 * HOUR;

    #[test]
    fn each_has_a_share_of_their_own() {
        let tally = Tally::new(Quota { interval: HOUR, whole: 3 * HOUR });
        assert_eq!((0..9).filter(|_| tally.spend("alice", NOW).is_ok()).count(), 3);
        assert!(tally.spend("bob", NOW).is_ok());
    }

    #[test]
    fn a_flood_of_keys_takes_no_more_room_than_the_bound_and_opens_nothing() {
        let tally = Tally::new(Quota { interval: HOUR, whole: HOUR });
        for key in 0..KEYS {
            assert!(tally.spend(&key.to_string(), NOW).is_ok());
        }
        assert!(tally.spend("one more", NOW).is_ok(), "the rest has what one has");
        assert!(tally.spend("and another", NOW).is_err());
        assert!(tally.spend("7", NOW).is_err(), "who is known is known");
        assert_eq!(tally.until.len(), KEYS + 1);
        // An hour later all of them have been quiet.
        assert!(tally.spend("and another", NOW + HOUR).is_ok());
        assert_eq!(tally.until.len(), 1);
    }

    #[test]
    fn a_place_is_taken_until_it_is_dropped() {
        let places = Arc::new(Places::default());
        let (first, _second) = (places.take("alice", 2).unwrap(), places.take("alice", 2).unwrap());
        assert!(places.take("alice", 2).is_none());
        assert!(places.take("bob", 2).is_some());
        assert_eq!(places.holders(), 1, "bob has gone again");
        drop(first);
        assert!(places.take("alice", 2).is_some());
    }
}
