//! A timer on each worker that is always about to run.
//!
//! tokio wakes its own thread, by a write to an eventfd that it reads back at once, for every timer that is to run before all
//! those it knew of when it last slept. The deadlines of requests are minutes away and mostly the only timers there are, so
//! that was three such writes for two requests. With one that runs sooner, there is none.
use std::cell::Cell;
use std::time::Duration;

use tokio::time::interval;

/// Shorter than any deadline of a request.
const BEAT: Duration = Duration::from_millis(500);

thread_local! {
    static BEATS: Cell<bool> = const { Cell::new(false) };
}

/// Starts the pulse of this worker, unless it beats already.
pub fn start() {
    if !BEATS.replace(true) {
        tokio::spawn(async {
            let mut beat = interval(BEAT);
            loop {
                beat.tick().await;
            }
        });
    }
}
