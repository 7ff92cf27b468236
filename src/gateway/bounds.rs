//! Limits that one request meets on its way: room for it, the length of its body and the pace of it, how long its client may
//! take nothing. What a connection meets before is in `server::doors`.
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::context::{ANSWERED, Context};
use super::filter::TOO_LONG;
use super::{Gateway, KEEPALIVE_SECONDS};
use crate::config::Limits;
use crate::respond::Failure;

/// How long an unread request body may take to arrive once it is answered.
const DRAIN: Duration = Duration::from_secs(5);

/// Sets how long the client of this request may keep us waiting.
pub(super) fn begin(session: &mut Session, ctx: &Context) {
    let limits = &ctx.snapshot.config.limits;
    // HTTP/1.0 has no keep-alive of its own, and a connection that is to close stays so.
    let closes = session.as_http1().is_some_and(|session| !session.will_keepalive());
    if session.req_header().version != Version::HTTP_10 && !closes {
        session.set_keepalive(Some(KEEPALIVE_SECONDS));
    }
    session.set_total_drain_timeout(Some(DRAIN));
    session.set_read_timeout(Some(limits.body_time));
    session.set_write_timeout(Some(limits.write_time));
}

/// Whether the body keeps to its length and its pace, now that more of it has come. What is at its `end` holds nobody up any more.
pub(super) fn require_pace(
    session: &Session,
    more: Option<&Bytes>,
    ctx: &mut Context,
    end: bool,
) -> Result<()> {
    if more.is_none() || session.was_upgraded() {
        return Ok(());
    }
    let limits = &ctx.snapshot.config.limits;
    let read = session.body_bytes_read();
    let failure = if read > limits.body {
        Failure::TooLarge { limit: "body" }
    } else if !end && ctx.started.elapsed() > limits.body_time && is_slow(read, ctx, limits) {
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
        if self.in_flight.is_scarce() {
            return Err(Failure::Overloaded { limit: "memory" });
        }
        match self.in_flight.requests() > limits.requests.saturating_add(self.streams.count()) {
            true => Err(Failure::Overloaded { limit: "requests" }),
            false => Ok(()),
        }
    }

    /// Notes the limit that a request has come to, if it has.
    pub(super) fn note_limit(&self, failure: &Failure) {
        self.metrics.hit(match failure {
            Failure::TooLarge { limit } | Failure::Overloaded { limit } => limit,
            Failure::UpstreamUnfilterable(TOO_LONG) => "inspect_answer",
            Failure::TooSlow => "body_time",
            Failure::TooManyFields => "header_fields",
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
