//! What became of a request → its spans: the whole of it, its credential where that was waited for, what was asked of others for
//! it, and the call to the upstream. Attributes are words of ours, names, and numbers; their keys are OpenTelemetry's, where it has some.
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;

use super::context::Trace;
use super::errands::Errand;
use super::message::{
    Event, ExportTraceServiceRequest, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span, Status,
};
use crate::telemetry::CallerClass;

/// Kinds of spans.
const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const ERROR: i32 = 2;
/// Of a trace: it is recorded; it is known whether the parent is elsewhere; it is.
const RECORDED: u32 = 1;
const KNOWN: u32 = 0x100;
const ELSEWHERE: u32 = 0x200;

/// Where the time of a request went: moments, counted from its arrival.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// From when to when its credential was waited for; `None`: it was there.
    pub credential: Option<(Duration, Duration)>,
    /// The same of another one, after the upstream had refused it.
    pub renewal: Option<(Duration, Duration)>,
    /// The first attempt at the upstream began.
    pub called: Option<Duration>,
    /// The last one began.
    pub attempt: Option<Duration>,
    /// For it a connection was made, and stood.
    pub connected: Option<Duration>,
    /// The head of the upstream's answer came.
    pub answered: Option<Duration>,
}

/// A recorded request that has ended.
#[derive(Debug)]
pub struct Finished {
    pub trace: Trace,
    pub arrived: SystemTime,
    pub took: Duration,
    pub times: Times,
    pub method: http::Method,
    pub route: Option<String>,
    /// 0: there was no answer.
    pub status: u16,
    pub reason: &'static str,
    pub caller: CallerClass,
    pub request_id: String,
    pub mcp_method: Option<String>,
    pub tool: Option<String>,
    pub upstream: Option<SocketAddr>,
    pub attempts: u32,
    pub errands: Vec<Errand>,
}

/// The request to the collector that brings it these. `service`: what they come from; `instance`: of several of it, which.
pub fn request(finished: &[Box<Finished>], service: &str, instance: &str) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let resource = Resource {
        attributes: vec![
            KeyValue::text("service.name", service),
            KeyValue::text("service.version", version),
            KeyValue::text("service.instance.id", instance),
        ],
    };
    let scope = Scope { name: "postern".to_owned(), version: version.to_owned() };
    let spans = finished.iter().flat_map(|finished| finished.spans()).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// `status` 0: there was no answer. `wrong`: why it is an error.
fn ended(span: &mut Span, status: u16, wrong: Option<&str>) {
    if status != 0 {
        span.attributes.push(KeyValue::number("http.response.status_code", status));
    }
    if let Some(wrong) = wrong {
        span.attributes.push(KeyValue::text("error.type", wrong));
        span.status = Some(Status { message: String::new(), code: ERROR });
    }
}

// === impl Finished ===

impl Finished {
    fn spans(&self) -> impl Iterator<Item = Span> {
        let called = self.times.called.map(|called| self.call(called));
        // Other ids than those of the call and of the request.
        let inner = |name: &str, like: [u8; 8], times: Option<(Duration, Duration)>| {
            let id = like.map(|byte| !byte);
            times.map(|times| self.span(name, (id, Some(self.trace.request)), INTERNAL, times))
        };
        let credential = inner("credential", self.trace.call, self.times.credential);
        let renewal = inner("renewal", self.trace.request, self.times.renewal);
        let errands = self.errands.iter().filter_map(|errand| self.errand(errand));
        [Some(self.whole()), credential, renewal, called].into_iter().flatten().chain(errands)
    }

    fn whole(&self) -> Span {
        let method = self.method.as_str();
        let name = self.route.as_ref().map_or_else(|| method.to_owned(), |route| format!("{method} {route}"));
        let times = (Duration::ZERO, self.took);
        let mut span = self.span(&name, (self.trace.request, self.trace.parent), SERVER, times);
        if self.trace.parent.is_some() {
            span.flags |= ELSEWHERE;
        }
        span.attributes = vec![
            KeyValue::text("http.request.method", method),
            KeyValue::text("postern.request_id", &self.request_id),
            KeyValue::text("postern.reason", self.reason),
            KeyValue::text("postern.caller", self.caller.word()),
        ];
        let known = [
            ("http.route", &self.route),
            ("mcp.method.name", &self.mcp_method),
            ("gen_ai.tool.name", &self.tool),
        ];
        let known = known.into_iter().filter_map(|(key, value)| Some(KeyValue::text(key, value.as_deref()?)));
        span.attributes.extend(known);
        span.events = self.errands.iter().filter_map(|errand| self.decision(errand)).collect();
        self.answered(&mut span, 500);
        span
    }

    /// What was asked of others.
    fn errand(&self, errand: &Errand) -> Option<Span> {
        let Errand::Exchange { id, method, host, port, times, outcome } = errand else { return None };
        let mut span = self.span(method.as_str(), (*id, Some(self.trace.request)), CLIENT, *times);
        span.attributes = vec![
            KeyValue::text("http.request.method", method.as_str()),
            KeyValue::text("server.address", host),
            KeyValue::number("server.port", *port),
        ];
        match outcome {
            Ok(status) => ended(&mut span, *status, (*status >= 400).then_some("status")),
            Err(word) => ended(&mut span, 0, Some(word)),
        }
        Some(span)
    }

    /// What was made of an answer.
    fn decision(&self, errand: &Errand) -> Option<Event> {
        let Errand::Decision { at, step, decision } = errand else { return None };
        let attributes =
            vec![KeyValue::text("postern.step", step), KeyValue::text("postern.decision", decision)];
        Some(Event { time_unix_nano: self.nanos(*at), name: "discovery".to_owned(), attributes })
    }

    fn call(&self, called: Duration) -> Span {
        let ids = (self.trace.call, Some(self.trace.request));
        let mut span = self.span("upstream", ids, CLIENT, (called, self.took));
        span.attributes.push(KeyValue::text("http.request.method", self.method.as_str()));
        if let Some(upstream) = self.upstream {
            span.attributes.push(KeyValue::text("server.address", &upstream.ip().to_string()));
            span.attributes.push(KeyValue::number("server.port", upstream.port()));
        }
        if self.attempts > 1 {
            span.attributes.push(KeyValue::number("http.request.resend_count", self.attempts - 1));
        }
        self.answered(&mut span, 400);
        span
    }

    /// How it ended: from `wrong` on it was an error, as a server's spans and a client's are read.
    fn answered(&self, span: &mut Span, wrong: u16) {
        let is_wrong = self.status == 0 || self.status >= wrong;
        ended(span, self.status, is_wrong.then_some(self.reason));
    }

    /// Since the epoch.
    fn nanos(&self, moment: Duration) -> u64 {
        let since = (self.arrived + moment).duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn span(
        &self,
        name: &str,
        (id, parent): ([u8; 8], Option<[u8; 8]>),
        kind: i32,
        (start, end): (Duration, Duration),
    ) -> Span {
        Span {
            trace_id: self.trace.id.to_vec(),
            span_id: id.to_vec(),
            parent_span_id: parent.map(Vec::from).unwrap_or_default(),
            name: name.to_owned(),
            kind,
            start_time_unix_nano: self.nanos(start),
            end_time_unix_nano: self.nanos(end),
            attributes: Vec::new(),
            events: Vec::new(),
            status: None,
            flags: RECORDED | KNOWN,
        }
    }
}
