//! The streams that clients open for themselves (`GET`, `subscriptions/listen`) and that stay open for hours without saying
//! anything. Each holds a connection on either side, so nobody gets all of them, and all together leave room for calls
//! (RS-11).
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntGauge;

use super::tally::{Place, Places};
use crate::config::Limits;
use crate::respond::Failure;

/// Those that are open, by whose they are.
pub struct Streams {
    all: AtomicUsize,
    /// Shows the same.
    gauge: IntGauge,
    by_subject: Arc<Places>,
}

/// Counts as open until dropped.
pub struct Stream {
    streams: Arc<Streams>,
    _own: Place,
}

impl Streams {
    pub fn new(gauge: IntGauge) -> Self {
        Self { all: AtomicUsize::new(0), gauge, by_subject: Arc::default() }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// One more of this subject.
    pub fn open(self: &Arc<Self>, subject: &str, limits: &Limits) -> Result<Stream, Failure> {
        let own = self.by_subject.take(subject, limits.streams_per_user).ok_or(Failure::TooManyStreams)?;
        let stream = Stream { streams: Arc::clone(self), _own: own };
        self.gauge.inc();
        match self.all.fetch_add(1, Ordering::Relaxed) < limits.streams {
            true => Ok(stream),
            false => Err(Failure::NoRoomForStreams),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.all.fetch_sub(1, Ordering::Relaxed);
        self.streams.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn each_has_a_share_and_nothing_is_left_of_what_has_ended() {
        let streams = Arc::new(Streams::new(IntGauge::new("streams", "streams").unwrap()));
        let limits = Limits { streams: 3, streams_per_user: 2, ..Limits::default() };
        let open = |subject: &str| streams.open(subject, &limits);
        let (first, _second) = (open("alice").unwrap(), open("alice").unwrap());
        assert_eq!(open("alice").err(), Some(Failure::TooManyStreams));
        let third = open("bob").unwrap();
        assert_eq!(open("bob").err(), Some(Failure::NoRoomForStreams));
        assert_eq!(streams.gauge.get(), 3);
        drop(third);
        drop(first);
        assert_eq!(
            (streams.gauge.get(), streams.all.load(Ordering::Relaxed), streams.by_subject.holders()),
            (1, 1, 1)
        );
        assert!(open("alice").is_ok());
    }
}
