//! What is noted of a request on its way, for metrics, the access log and traces: moments and words, all in place.
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::HeaderMap;
use pingora::proxy::Session;

use super::context::Context;
use super::{Gateway, screen};
use crate::authn::Caller;
use crate::outbound::shown;
use crate::telemetry::CallerClass;
use crate::telemetry::traces::Times;
use crate::telemetry::traces::context::Trace;
use crate::telemetry::traces::errands::Errands;

#[derive(Default)]
pub struct Seen {
    pub caller: CallerClass,
    pub times: Times,
    /// The trace it is recorded in.
    pub trace: Option<Trace>,
    /// What is asked of others for it, where it is recorded.
    pub errands: Option<Arc<Errands>>,
    /// Heads of the upstream that came before its answer.
    pub interim: usize,
}

/// What `work` comes to, and from when to when it was waited for, counted from `started`. What is there at once is not asked for the
/// time: most of what a request needs is in memory, and its clock costs as much as finding it.
pub(super) async fn timed<T>(
    started: Instant,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> (T, Option<(Duration, Duration)>) {
    if let Poll::Ready(done) = poll_fn(|task| Poll::Ready(work.as_mut().poll(task))).await {
        return (done, None);
    }
    let begun = started.elapsed();
    let done = work.await;
    (done, Some((begun, started.elapsed())))
}

// === impl Gateway ===

impl Gateway {
    /// Gives a request its name, and a place in a trace where it is recorded.
    pub(super) fn name(&self, session: &Session, ctx: &mut Context) {
        ctx.request_id = screen::request_id(session.req_header(), &self.request_ids);
        if let Some(traces) = &self.traces {
            ctx.seen.trace = traces.begin(&session.req_header().headers);
            ctx.seen.errands = ctx.seen.trace.map(|_| Errands::new(ctx.started));
        }
    }
}

// === impl Seen ===

impl Seen {
    pub fn caller(&mut self, caller: &Caller) {
        self.caller = match () {
            () if caller.is_nobody() => CallerClass::Anonymous,
            () if caller.is_machine() => CallerClass::Program,
            () => CallerClass::User,
        };
    }

    /// Awaits a newer credential than the refused one.
    pub async fn renewal<T>(&mut self, started: Instant, work: impl Future<Output = T>) -> T {
        let (done, waited) = match &self.errands {
            None => timed(started, pin!(work)).await,
            Some(errands) => timed(started, pin!(shown(errands.watch(), work))).await,
        };
        self.times.renewal = waited;
        done
    }

    /// Tells the upstream which trace it is in.
    pub fn propagate(&self, headers: &mut HeaderMap) {
        if let Some(trace) = &self.trace {
            trace.send(headers);
        }
    }
}
