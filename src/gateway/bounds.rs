//! Limits that one request meets on its way: room for it, the length of its body and the pace of it, how long its client may
//! take nothing. What a connection meets before is in `server::doors`.
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::Gateway;
use super::context::{ANSWERED, Context};
use crate::config::Limits;
use crate::respond::Failure;

/// Sets how long the client of this request may keep us waiting.
pub(super) fn set_times(session: &mut Session, limits: &Limits) {
    session.set_read_timeout(Some(limits.body_time));
    session.set_write_timeout(Some(limits.write_time));
}

/// Whether the body keeps to its length and its pace, now that more of it has come.
pub(super) fn require_pace(session: &Session, ctx: &mut Context) -> Result<()> {
    let limits = &ctx.snapshot.config.limits;
    let read = session.body_bytes_read();
    let failure = if read > limits.body {
        Failure::TooLarge
    } else if ctx.started.elapsed() > limits.body_time && is_slow(read, ctx, limits) {
        Failure::TooSlow
    } else {
        return Ok(());
    };
    ctx.failure = Some(failure);
    Err(Error::explain(ANSWERED, "a body out of bounds"))
}

fn is_slow(read: usize, ctx: &Context, limits: &Limits) -> bool {
    let due = ctx.started.elapsed().as_secs().saturating_mul(limits.body_rate as u64);
    (read as u64) < due
}

impl Gateway {
    /// What runs goes on; what is new has to wait while there is so much of it. Streams have a limit of their own.
    pub(super) fn require_room(&self, limits: &Limits) -> Result<(), Failure> {
        match self.in_flight.count() > limits.requests.saturating_add(self.streams.count()) {
            true => Err(Failure::Overloaded),
            false => Ok(()),
        }
    }

    /// Notes the limit that a request has come to, if it has.
    pub(super) fn note_limit(&self, failure: &Failure) {
        self.metrics.hit(match failure {
            Failure::TooLarge => "body",
            Failure::TooSlow => "body_time",
            Failure::TooManyFields => "header_fields",
            Failure::Overloaded => "requests",
            Failure::NoRoomForStreams => "streams",
            Failure::TooManyStreams => "streams_per_user",
            _ => return,
        });
    }

    /// The same of one that broke off.
    pub(super) fn note_end(&self, error: &Error) {
        if *error.esource() == ErrorSource::Downstream && *error.etype() == ErrorType::WriteTimedout {
            self.metrics.hit("write_time");
        }
    }
}
