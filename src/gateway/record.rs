//! What is noted about a finished request.
use std::time::Duration;

use pingora::Error;
use pingora::proxy::Session;

use super::admit::is_name;
use super::context::Context;
use super::{Gateway, screen};
use crate::authn::Caller;
use crate::managed::address::masked;
use crate::mcp::{self, ItemKind};
use crate::telemetry::Ended;
use crate::telemetry::access::Line;
use crate::telemetry::traces::Finished;
use crate::telemetry::traces::context::Trace;

/// More of a path is not logged, bytes.
const PATH_MAX: usize = 2048;

impl Gateway {
    pub(super) fn record(&self, session: &Session, error: Option<&Error>, ctx: &mut Context) {
        let status = match session.response_written() {
            Some(head) if !head.status.is_informational() => head.status.as_u16(),
            _ => 0,
        };
        if ctx.reason == "ok" && error.is_some() {
            ctx.reason = "broken_off";
        }
        error.into_iter().for_each(|error| self.note_end(error));
        let times = &ctx.seen.times;
        let since_attempt = |moment: Option<Duration>| moment.zip(times.attempt).map(|(at, from)| at - from);
        let ended = Ended {
            caller: ctx.seen.caller,
            status,
            reason: ctx.reason,
            took: ctx.elapsed(),
            connect: since_attempt(times.connected),
            first_byte: since_attempt(times.answered),
        };
        self.metrics.requests.count(ctx.route.as_ref().map(|route| route.series()), &ended);
        if self.access.is_on() {
            self.write_access_line(session, ctx, &ended);
        }
        if let (Some(traces), Some(trace)) = (&self.traces, ctx.seen.trace) {
            traces.end(finished(session, ctx, trace, &ended));
        }
    }

    fn write_access_line(&self, session: &Session, ctx: &Context, ended: &Ended) {
        let head = session.req_header();
        let path = masked(head.uri.path());
        let (mcp_method, mcp_name) = asked(session, ctx);
        let caller = ctx.target.as_ref().map(|target| &target.caller).filter(|caller| !caller.is_nobody());
        let credential = ctx.seen.times.credential.map(|(asked, there)| millis(there - asked));
        // With its whole subject, which `server::doors` puts there.
        let certificate = session.digest().and_then(|digest| digest.ssl_digest.clone());
        self.access.write(&Line {
            time: humantime::format_rfc3339_millis(self.authority.clock.now()).to_string(),
            request_id: ctx.request_id.to_str().unwrap_or_default(),
            client_ip: ctx.client,
            client_certificate: certificate.as_ref().and_then(|said| said.organization.as_deref()),
            method: head.method.as_str(),
            host: screen::host(head).unwrap_or_default(),
            path: path.get(..PATH_MAX).unwrap_or(&path),
            route: ctx.route.as_ref().map(|route| route.name.as_str()),
            status: ended.status,
            reason: ended.reason,
            user: caller.map(Caller::subject),
            client_id: caller.map(Caller::client),
            mcp_method,
            mcp_name,
            caller: ended.caller.word(),
            duration_ms: millis(ended.took),
            credential_ms: credential,
            connect_ms: ended.connect.map(millis),
            first_byte_ms: ended.first_byte.map(millis),
            bytes_in: session.as_ref().body_bytes_read(),
            bytes_out: session.body_bytes_sent(),
            attempts: ctx.attempts,
            upstream: ctx.target.as_ref().and_then(|target| target.peer),
            trace_id: ctx.seen.trace.map(|trace| trace.name()),
        });
    }
}

/// To a thousandth.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Method and name of what is called: as the headers say, else as the body does, where a rule had it read. Of a body only what is
/// a name and nothing else.
fn asked<'a>(session: &'a Session, ctx: &'a Context) -> (Option<&'a str>, Option<&'a str>) {
    let call = mcp::Call::from_headers(&session.req_header().headers);
    if call.method.is_some() {
        return (call.method, call.name);
    }
    let message = ctx.target.as_ref().and_then(|target| target.asked.message());
    let method = message.and_then(|message| message.method.as_deref());
    let item = message.and_then(|message| message.item.as_ref());
    let item = item.filter(|item| item.kind != ItemKind::Resource).map(|item| item.name.as_str());
    (method.filter(|method| is_name(method)), item.filter(|name| is_name(name)))
}

fn finished(session: &Session, ctx: &Context, trace: Trace, ended: &Ended) -> Finished {
    let (method, name) = asked(session, ctx);
    let kept = |text: &&str| is_name(text);
    let tool = name.filter(|_| method == Some("tools/call"));
    Finished {
        trace,
        arrived: ctx.arrived,
        took: ended.took,
        times: ctx.seen.times,
        method: session.req_header().method.clone(),
        route: ctx.route.as_ref().map(|route| route.label().to_owned()),
        status: ended.status,
        reason: ended.reason,
        caller: ended.caller,
        request_id: ctx.request_id.to_str().unwrap_or_default().to_owned(),
        mcp_method: method.filter(kept).map(str::to_owned),
        tool: tool.filter(kept).map(str::to_owned),
        upstream: ctx.target.as_ref().and_then(|target| target.peer),
        attempts: ctx.attempts,
        errands: ctx.seen.errands.as_ref().map(|errands| errands.take()).unwrap_or_default(),
    }
}
