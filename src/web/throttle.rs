//! Slows down guessing passwords: after ten failures for one user name from one address, that pair waits.
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use dashmap::DashMap;

use crate::seal;

const FAILURES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(300);
/// Pairs remembered at the most; when they are all recent, new ones are not slowed down.
const PAIRS: usize = 10_000;

/// Failures by user name and address, from the first one of a window on.
#[derive(Default)]
pub struct Throttle(DashMap<String, (u32, SystemTime)>);

impl Throttle {
    /// How long this pair has to wait, if it does.
    pub fn left(&self, username: &str, address: Option<IpAddr>, now: SystemTime) -> Option<Duration> {
        let (count, until) = *self.0.get(&pair(username, address))?;
        let left = until.duration_since(now).unwrap_or_default();
        (count >= FAILURES && !left.is_zero()).then_some(left)
    }

    pub fn failed(&self, username: &str, address: Option<IpAddr>, now: SystemTime) {
        if self.0.len() >= PAIRS {
            self.0.retain(|_, (_, until)| *until > now);
            if self.0.len() >= PAIRS {
                return;
            }
        }
        let mut entry = self.0.entry(pair(username, address)).or_insert((0, now + WINDOW));
        if entry.1 <= now {
            *entry = (0, now + WINDOW);
        }
        entry.0 += 1;
    }

    pub fn succeeded(&self, username: &str, address: Option<IpAddr>) {
        self.0.remove(&pair(username, address));
    }
}

/// Of one length whatever was typed.
fn pair(username: &str, address: Option<IpAddr>) -> String {
    seal::digest(&format!("{address:?}\0{username}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn ten_failures_make_one_pair_wait_for_the_rest_of_the_window() {
        let (throttle, here) = (Throttle::default(), Some(IpAddr::from([127, 0, 0, 1])));
        for _ in 0..10 {
            assert_eq!(throttle.left("alice", here, UNIX_EPOCH), None);
            throttle.failed("alice", here, UNIX_EPOCH);
        }
        assert_eq!(
            throttle.left("alice", here, UNIX_EPOCH + Duration::from_secs(100)),
            Some(Duration::from_secs(200))
        );
        assert_eq!(throttle.left("bob", here, UNIX_EPOCH), None);
        assert_eq!(throttle.left("alice", None, UNIX_EPOCH), None);
        assert_eq!(throttle.left("alice", here, UNIX_EPOCH + WINDOW), None);
        throttle.succeeded("alice", here);
        assert_eq!(throttle.left("alice", here, UNIX_EPOCH), None);
    }

    #[test]
    fn no_number_of_names_takes_more_room_than_the_bound() {
        let throttle = Throttle::default();
        for number in 0..PAIRS + 500 {
            throttle.failed(&number.to_string(), None, UNIX_EPOCH);
        }
        assert_eq!(throttle.0.len(), PAIRS);
        throttle.failed("alice", None, UNIX_EPOCH + WINDOW);
        assert_eq!(throttle.0.len(), 1, "those that are over made room");
    }
}
