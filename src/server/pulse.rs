//! A timer on each worker that is always about to run.
//!
//! tokio wakes its own thread, by a write to an eventfd that it reads back at once, for every timer that is to run before all
//! those it knew of when it last slept. The deadlines of requests are minutes away and mostly the only timers there are, so
//! that was three such writes for two requests. With one that runs sooner, there is none.
//!
//! And a worker whose pulse stops is stuck: that is what `/healthz` and systemd's watchdog go by.
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::interval;

/// Shorter than any deadline of a request.
const BEAT: Duration = Duration::from_millis(500);

thread_local! {
    static BEATS: Cell<bool> = const { Cell::new(false) };
}

/// The pulses of all workers. Cheap to clone.
#[derive(Clone)]
pub struct Pulses {
    since: Instant,
    /// When each worker had its last, in milliseconds.
    last: Arc<Mutex<Vec<Arc<AtomicU64>>>>,
}

impl Default for Pulses {
    fn default() -> Self {
        Self { since: super::upgrade::now(), last: Arc::default() }
    }
}

impl Pulses {
    /// Starts the pulse of this worker, unless it beats already.
    pub fn start(&self) {
        if BEATS.replace(true) {
            return;
        }
        let (since, mine) = (self.since, Arc::new(AtomicU64::new(millis(self.since.elapsed()))));
        self.last.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&mine));
        tokio::spawn(async move {
            let mut beat = interval(BEAT);
            loop {
                beat.tick().await;
                mine.store(millis(since.elapsed()), Ordering::Relaxed);
            }
        });
    }

    /// Whether every worker that has ever served a connection has had a pulse of late.
    pub fn beat(&self, within: Duration) -> bool {
        let now = millis(self.since.elapsed());
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().all(|last| now.saturating_sub(last.load(Ordering::Relaxed)) <= millis(within))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn a_worker_that_is_stuck_has_no_pulse() {
        let pulses = Pulses::default();
        assert!(pulses.beat(Duration::ZERO), "nobody has begun");
        let (begun, stuck) = (pulses.clone(), pulses.clone());
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (beats, has_beaten) = std::sync::mpsc::channel::<()>();
        let worker = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                begun.start();
                tokio::time::sleep(BEAT * 2).await;
                beats.send(()).unwrap();
                // What no worker may do.
                released.recv().unwrap();
            });
        });
        has_beaten.recv().unwrap();
        assert!(stuck.beat(BEAT * 2));
        while stuck.beat(BEAT * 2) {
            std::thread::yield_now();
        }
        release.send(()).unwrap();
        worker.join().unwrap();
    }
}
