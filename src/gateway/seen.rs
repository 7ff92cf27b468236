//! What is noted of a request on its way, for metrics, the access log and traces: moments and words, all in place.
use std::time::Duration;

use http::HeaderMap;
use pingora::proxy::Session;

use super::context::Context;
use super::{Gateway, screen};
use crate::authn::Caller;
use crate::credential::Credential;
use crate::telemetry::CallerClass;
use crate::telemetry::audit::Act;
use crate::telemetry::traces::Times;
use crate::telemetry::traces::context::Trace;

#[derive(Default)]
pub struct Seen {
    pub caller: CallerClass,
    pub times: Times,
    /// The trace it is recorded in.
    pub trace: Option<Trace>,
}

// === impl Gateway ===

impl Gateway {
    /// Gives a request its name, and a place in a trace where it is recorded.
    pub(super) fn name(&self, session: &Session, ctx: &mut Context) {
        ctx.request_id = screen::request_id(session.req_header(), &self.request_ids);
        if let Some(traces) = &self.traces {
            ctx.seen.trace = traces.begin(&session.req_header().headers);
        }
    }
}

// === impl Seen ===

impl Seen {
    pub fn caller(&mut self, caller: &Caller) {
        self.caller = if caller.is_machine() { CallerClass::Program } else { CallerClass::User };
    }

    /// The credential that was asked for at `begun` is there at `now`, or is not to be had.
    pub fn credential(&mut self, begun: Duration, now: Duration, resolved: Option<&Credential>) {
        self.times.credential = Some((begun, now));
        self.times.is_fetched = resolved.is_none_or(|credential| credential.act != Act::Inject);
    }

    /// Tells the upstream which trace it is in.
    pub fn propagate(&self, headers: &mut HeaderMap) {
        if let Some(trace) = &self.trace {
            trace.send(headers);
        }
    }
}
