//! How often somebody may do something, each for themselves. No flood of names makes the memory of them grow.
use std::hash::Hash;
use std::num::NonZeroU32;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// So many are told apart.
const KEYS: usize = 10_000;

/// So many at once, and so many each second from then on.
pub const fn per_second(rate: u32, burst: u32) -> Quota {
    Quota::per_second(positive(rate)).allow_burst(positive(burst))
}

const fn positive(number: u32) -> NonZeroU32 {
    match NonZeroU32::new(number) {
        Some(number) => number,
        None => NonZeroU32::MIN,
    }
}

/// One quota for each key.
pub struct Each<K: Clone + Eq + Hash>(DefaultKeyedRateLimiter<K>);

impl<K: Clone + Eq + Hash> Each<K> {
    pub fn of(quota: Quota) -> Self {
        Self(RateLimiter::keyed(quota))
    }

    /// Whether `key` may once more. Who has been quiet is forgotten when there are too many; where nobody has, all of them may.
    pub fn admits(&self, key: &K) -> bool {
        if self.0.len() >= KEYS {
            self.0.retain_recent();
        }
        self.0.len() >= KEYS || self.0.check_key(key).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_share_of_their_own() {
        let each = Each::of(per_second(1, 3));
        assert_eq!((0..9).filter(|_| each.admits(&"alice")).count(), 3);
        assert!(each.admits(&"bob"));
    }

    #[test]
    fn a_flood_of_keys_takes_no_more_room_than_the_bound() {
        // One in an hour: nobody is quiet before this test is over.
        let each = Each::of(Quota::per_hour(NonZeroU32::MIN));
        for key in 0..KEYS + 1_000 {
            each.admits(&key);
        }
        assert_eq!(each.0.len(), KEYS);
    }
}
