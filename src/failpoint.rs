//! Places where a test stops a program in the middle of something, to kill it just there.
//!
//! A debug build stops at the place that `POSTERN_FAILPOINT` names, says so in the log, and goes on with everything
//! else. A release build has none of it.

/// Does not return where this place is named.
#[cfg(debug_assertions)]
pub async fn reached(place: &str) {
    if std::env::var("POSTERN_FAILPOINT").is_ok_and(|named| named == place) {
        tracing::warn!(target: "postern::failpoint", place, "stopped");
        std::future::pending::<()>().await;
    }
}

/// The same where nobody awaits.
#[cfg(debug_assertions)]
#[allow(clippy::disallowed_methods, reason = "it is killed here")]
pub fn halted(place: &str) {
    if std::env::var("POSTERN_FAILPOINT").is_ok_and(|named| named == place) {
        tracing::warn!(target: "postern::failpoint", place, "stopped");
        loop {
            std::thread::park();
        }
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub fn halted(_place: &str) {}

/// Nothing.
#[cfg(not(debug_assertions))]
pub async fn reached(_place: &str) {}
