//! What is noted about a finished request.
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use pingora::Error;
use pingora::http::RequestHeader;
use pingora::protocols::tls::SslDigest;
use pingora::proxy::Session;

use super::admit::is_name;
use super::context::Context;
use super::{Gateway, screen};
use crate::authn::Caller;
use crate::clock::Clock;
use crate::managed::address::masked;
use crate::mcp::{self, ItemKind};
use crate::respond::TOO_SLOW;
use crate::telemetry::access::{Line, Log};
use crate::telemetry::traces::Finished;
use crate::telemetry::traces::context::Trace;
use crate::telemetry::{Ended, Metrics, Traces};

/// More of a path is not logged, bytes.
const PATH_MAX: usize = 2048;

/// Where it is noted.
struct Sinks<'a> {
    metrics: &'a Metrics,
    access: &'a Log,
    traces: Option<&'a Traces>,
    clock: &'a Clock,
}

/// What went over the connection.
struct Exchange<'a> {
    head: &'a RequestHeader,
    /// With its whole subject, which `server::doors` puts there.
    certificate: Option<&'a SslDigest>,
    status: u16,
    bytes_in: usize,
    bytes_out: usize,
}

/// All that it takes to note a request which is dropped where it stands: over HTTP/2 a body that does not come on ends it, and Pingora
/// has no say in it.
pub struct Unended {
    metrics: Arc<Metrics>,
    access: Log,
    traces: Option<Arc<Traces>>,
    clock: Clock,
    head: RequestHeader,
    certificate: Option<Arc<SslDigest>>,
    bytes_in: usize,
}

impl Gateway {
    pub(super) fn record(&self, session: &Session, error: Option<&Error>, ctx: &mut Context) {
        ctx.unended = None;
        if ctx.reason == "ok" && error.is_some() {
            ctx.reason = "broken_off";
        }
        error.into_iter().for_each(|error| self.note_end(error));
        let certificate = session.digest().and_then(|digest| digest.ssl_digest.as_deref());
        let exchange = Exchange {
            head: session.req_header(),
            certificate,
            status: match session.response_written() {
                Some(head) if !head.status.is_informational() => head.status.as_u16(),
                _ => 0,
            },
            bytes_in: session.as_ref().body_bytes_read(),
            bytes_out: session.body_bytes_sent(),
        };
        let (access, traces, clock) = (&self.access, self.traces.as_deref(), &self.authority.clock);
        note(&exchange, ctx, &Sinks { metrics: &self.metrics, access, traces, clock });
    }

    /// A request whose body may not come on.
    pub(super) fn unended(&self, session: &mut Session) -> Option<Box<Unended>> {
        if session.req_header().version != Version::HTTP_2 || session.as_downstream_mut().is_body_done() {
            return None;
        }
        Some(Box::new(Unended {
            metrics: Arc::clone(&self.metrics),
            access: self.access.clone(),
            traces: self.traces.clone(),
            clock: self.authority.clock.clone(),
            head: session.req_header().clone(),
            certificate: session.digest().and_then(|digest| digest.ssl_digest.clone()),
            bytes_in: 0,
        }))
    }
}

impl Unended {
    /// Of its body, what has come so far.
    pub fn came(&mut self, session: &Session) {
        self.bytes_in = session.as_ref().body_bytes_read();
    }

    /// As it would be over HTTP/1.1; but with the whole process requests end whose time was not over.
    pub fn note(&self, ctx: &mut Context) {
        let is_late = ctx.elapsed() >= ctx.snapshot.config.limits.body_time;
        let (status, reason) = if is_late { (408, TOO_SLOW) } else { (0, "broken_off") };
        ctx.reason = reason;
        let Self { metrics, access, traces, clock, head, certificate, bytes_in } = self;
        let certificate = certificate.as_deref();
        let exchange = Exchange { head, certificate, status, bytes_in: *bytes_in, bytes_out: 0 };
        note(&exchange, ctx, &Sinks { metrics, access, traces: traces.as_deref(), clock });
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(unended) = self.unended.take() {
            unended.note(self);
        }
    }
}

fn note(exchange: &Exchange<'_>, ctx: &Context, sinks: &Sinks<'_>) {
    let times = &ctx.seen.times;
    let since_attempt = |moment: Option<Duration>| moment.zip(times.attempt).map(|(at, from)| at - from);
    let ended = Ended {
        caller: ctx.seen.caller,
        status: exchange.status,
        reason: ctx.reason,
        took: ctx.elapsed(),
        connect: since_attempt(times.connected),
        first_byte: since_attempt(times.answered),
    };
    sinks.metrics.requests.count(ctx.route.as_ref().map(|route| route.series()), &ended);
    if sinks.access.is_on() {
        write_access_line(exchange, ctx, &ended, sinks);
    }
    if let (Some(traces), Some(trace)) = (sinks.traces, ctx.seen.trace) {
        traces.end(finished(exchange.head, ctx, trace, &ended));
    }
}

fn write_access_line(exchange: &Exchange<'_>, ctx: &Context, ended: &Ended, sinks: &Sinks<'_>) {
    let head = exchange.head;
    let path = masked(head.uri.path());
    let (mcp_method, mcp_name) = asked(head, ctx);
    let caller = ctx.target.as_ref().map(|target| &target.caller).filter(|caller| !caller.is_nobody());
    let credential = ctx.seen.times.credential.map(|(asked, there)| millis(there - asked));
    sinks.access.write(&Line {
        time: humantime::format_rfc3339_millis(sinks.clock.now()).to_string(),
        request_id: ctx.request_id.to_str().unwrap_or_default(),
        client_ip: ctx.client,
        client_certificate: exchange.certificate.and_then(|said| said.organization.as_deref()),
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
        bytes_in: exchange.bytes_in,
        bytes_out: exchange.bytes_out,
        attempts: ctx.attempts,
        upstream: ctx.target.as_ref().and_then(|target| target.peer),
        trace_id: ctx.seen.trace.map(|trace| trace.name()),
    });
}

/// To a thousandth.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Method and name of what is called: as the headers say, else as the body does, where a rule had it read. Of a body only what is
/// a name and nothing else.
fn asked<'a>(head: &'a RequestHeader, ctx: &'a Context) -> (Option<&'a str>, Option<&'a str>) {
    let call = mcp::Call::from_headers(&head.headers);
    if call.method.is_some() {
        return (call.method, call.name);
    }
    let message = ctx.target.as_ref().and_then(|target| target.asked.message());
    let method = message.and_then(|message| message.method.as_deref());
    let item = message.and_then(|message| message.item.as_ref());
    let item = item.filter(|item| item.kind != ItemKind::Resource).map(|item| item.name.as_str());
    (method.filter(|method| is_name(method)), item.filter(|name| is_name(name)))
}

fn finished(head: &RequestHeader, ctx: &Context, trace: Trace, ended: &Ended) -> Finished {
    let (method, name) = asked(head, ctx);
    let kept = |text: &&str| is_name(text);
    let tool = name.filter(|_| method == Some("tools/call"));
    Finished {
        trace,
        arrived: ctx.arrived,
        took: ended.took,
        times: ctx.seen.times,
        method: head.method.clone(),
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
