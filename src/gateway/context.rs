//! What one request carries from hook to hook.
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use pingora::ErrorType;
use pingora::http::RequestHeader;

use super::filter::Filter;
use super::inspect::Asked;
use super::quota::Counted;
use super::record::Unended;
use super::screen::SHORT;
use super::seen::Seen;
use super::session::{Opening, Session as McpSession};
use super::silence::Tail;
use super::streams::Stream;
use crate::authn::Caller;
use crate::config::Attributes;
use crate::credential::Credential;
use crate::oauth::client::refresh::Outdated;
use crate::oauth::server::Snapshot;
use crate::policy::{Hook, Question, Request};
use crate::respond::{Failure, Reply};
use crate::route::Route;
use crate::telemetry::Guard;
use crate::upstream::balance::Busy;

/// The upstream refused the token; a newer one is fetched and the request sent again.
pub const REFRESHED: ErrorType = ErrorType::Custom("UpstreamTokenRefused");
/// The request ends with an answer of ours, which is in the context.
pub const ANSWERED: ErrorType = ErrorType::Custom("AnsweredByGateway");

/// One request, from its arrival to its line in the log.
pub struct Context {
    pub started: Instant,
    /// The same by the clock on the wall.
    pub arrived: SystemTime,
    pub request_id: HeaderValue,
    /// Where it came from, as far as that is known.
    pub client: Option<IpAddr>,
    /// Taken once; everything about this request is decided on it.
    pub snapshot: Arc<Snapshot>,
    /// Where the request is headed, as soon as that is known.
    pub route: Option<Arc<Route>>,
    pub target: Option<Target>,
    /// The origin that may read the answer.
    pub origin: Option<HeaderValue>,
    pub attempts: u32,
    /// The upstream's connection is older than the request. Belongs to one attempt.
    pub reused: bool,
    /// Why there will be no upstream answer.
    pub failure: Option<Failure>,
    /// What the client gets in place of the upstream's answer.
    pub replacement: Option<Replacement>,
    /// The upstream's answer has no body. Belongs to one attempt.
    pub header_only: bool,
    /// What becomes of the body of the upstream's answer. Belongs to one attempt.
    pub filter: Filter,
    /// How far a stream of events has come that is kept alive.
    pub tail: Option<Tail>,
    /// The session began with a client that opens URLs for servers.
    pub elicitation: bool,
    pub reason: &'static str,
    pub seen: Seen,
    /// Until it is noted, where it may come to be dropped instead.
    pub unended: Option<Box<Unended>>,
    /// Counts as under way until dropped.
    pub _under_way: Guard,
}

/// A permitted request: who, where to, with what.
pub struct Target {
    pub route: Arc<Route>,
    pub caller: Caller,
    pub credential: Credential,
    /// What rules may look at, of the caller and of where the request came from.
    pub attributes: Arc<Attributes>,
    pub source: Option<IpAddr>,
    pub arrived: SystemTime,
    /// What is known of what the request asks for.
    pub asked: Asked,
    /// Path and query at the upstream.
    pub uri: Uri,
    /// It opens a WebSocket.
    pub upgrades: bool,
    /// The MCP session it is in.
    pub session: Option<McpSession>,
    /// Its place among the streams, if it opens one.
    pub _stream: Option<Stream>,
    /// Its places among the calls under way.
    pub counted: Counted,
    /// The beginning of a request outside of any session, which may begin one.
    pub opening: Option<Opening>,
    /// What had been taken back when the caller was last asked about.
    pub revoked: u64,
    /// Where the request went.
    pub peer: Option<SocketAddr>,
    /// Counts there, where the upstream has peers.
    pub busy: Option<Busy>,
    /// The tokens that were refused, once some were.
    pub refused: Option<Outdated>,
    /// The credential is looked up again before the next attempt.
    pub again: bool,
}

/// An answer of ours, sent in place of an upstream's.
pub struct Replacement {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    discarded: usize,
}

// === impl Target ===

impl Target {
    /// All that rules may look at besides the message.
    pub fn question<'t>(&'t self, head: &'t RequestHeader, hook: Option<&'t dyn Hook>) -> Question<'t> {
        let (source, time) = (self.source, self.arrived);
        let request =
            Request { method: &head.method, path: head.uri.path(), headers: &head.headers, source, time };
        let Self { caller, attributes, route, .. } = self;
        Question { caller, attributes, route, request, hook }
    }

    /// The request is sent from its beginning, for the first time or again.
    pub fn begin(&mut self) {
        self.opening.iter_mut().for_each(Opening::begin);
        if let Asked::Held(held) = &mut self.asked {
            held.begin();
        }
    }
}

// === impl Context ===

impl Context {
    /// Of a request that begins to arrive `now`.
    #[expect(
        clippy::disallowed_methods,
        reason = "how long a request took is measured, nothing is decided by it"
    )]
    pub fn new(snapshot: Arc<Snapshot>, now: SystemTime, under_way: Guard) -> Self {
        Self {
            started: Instant::now(),
            arrived: now,
            request_id: HeaderValue::from_static("-"),
            client: None,
            snapshot,
            route: None,
            target: None,
            origin: None,
            attempts: 0,
            reused: false,
            failure: None,
            replacement: None,
            header_only: false,
            filter: Filter::Off,
            tail: None,
            elicitation: false,
            reason: "ok",
            seen: Seen::default(),
            unended: None,
            _under_way: under_way,
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The request is about to be sent, for the first time or again: at the moment that this says.
    pub fn begin_attempt(&mut self) -> SystemTime {
        (self.attempts, self.header_only, self.filter) = (self.attempts + 1, false, Filter::Off);
        let now = self.elapsed();
        let times = &mut self.seen.times;
        times.called.get_or_insert(now);
        (times.attempt, times.connected, times.answered) = (Some(now), None, None);
        self.arrived + now
    }

    /// The upstream's connection stands.
    pub fn connected(&mut self, reused: bool) {
        self.reused = reused;
        self.seen.times.connected = (!reused).then(|| self.elapsed());
    }
}

// === impl Replacement ===

impl Replacement {
    /// `header_only`: the upstream's answer has no body, and then there is no place for ours.
    pub fn new(reply: Reply, header_only: bool) -> Self {
        let body = if header_only { Bytes::new() } else { reply.body };
        Self { status: reply.status, headers: reply.headers, body, discarded: 0 }
    }

    /// Puts its head in the place of an upstream's.
    pub fn replace(&self, head: &mut Parts) {
        head.status = self.status;
        head.headers.clear();
        for (name, value) in &self.headers {
            head.headers.append(name.clone(), value.clone());
        }
        head.headers.insert(header::CONTENT_LENGTH, self.body.len().into());
    }

    /// What goes to the client for a piece of the upstream's body: nothing until its end, so that the upstream's
    /// connection stays usable, then ours. A body that does not end soon is not waited for.
    pub fn exchange(&mut self, piece: Option<&Bytes>, end: bool) -> Bytes {
        self.discarded += piece.map_or(0, Bytes::len);
        if end || self.discarded > SHORT { std::mem::take(&mut self.body) } else { Bytes::new() }
    }
}
