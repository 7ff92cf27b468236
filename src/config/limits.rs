//! How much of what everybody shares one caller, and all of them together, may hold.

use super::checked::Checker;
use super::file;
use super::report::Key;

/// Streams that clients open for themselves (`GET`, `subscriptions/listen`), which may stay open for hours. At least one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At this instance.
    pub streams: usize,
    /// Of one user or program, at this instance.
    pub streams_per_user: usize,
    /// The longest body that a rule may need, bytes.
    pub inspect_body: usize,
    /// The longest answer, or event of one, that can be filtered, bytes.
    pub inspect_answer: usize,
}

/// A body that is read ahead is never too long.
const INSPECT_LEAST: usize = 64 * 1024;

pub(super) fn check(check: &mut Checker<'_>, written: &file::Limits) -> Limits {
    let key = Key::top("limits");
    let mut positive = |name: &str, written: Option<usize>, default: usize| {
        if written == Some(0) {
            check.refuse(&key.child(name), "is 0", "write 1 or more, or leave it out");
        }
        written.unwrap_or(default)
    };
    Limits {
        streams: positive("streams", written.streams, 10_000),
        streams_per_user: positive("streams_per_user", written.streams_per_user, 256),
        inspect_answer: positive("inspect_answer", written.inspect_answer, 4 * 1024 * 1024),
        inspect_body: {
            let inspect_body = written.inspect_body.unwrap_or(1024 * 1024);
            if inspect_body < INSPECT_LEAST {
                let write = format!("write {INSPECT_LEAST} or more, or leave it out");
                check.refuse(&key.child("inspect_body"), "is too small", write);
            }
            inspect_body
        },
    }
}
