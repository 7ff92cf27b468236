//! The only `impl ProxyHttp`. Each hook calls one stage and carries its outcome to the next; what is decided, and
//! why, is in the stages.
//!
//! ```text
//! request_filter           route, origin, authn, mcp, policy, credential   (every ordinary refusal is answered here)
//! upstream_peer            vetted address; after a refused token, the credential again
//! upstream_request_filter  inject
//! request_body_filter      mcp, policy: of a long body that a rule depends on
//! upstream_response_filter trap
//! response_filter          what a proxied answer loses and gains, or our answer in its place
//! response_body_filter     mcp, policy: of lists, where not everybody may use everything
//! fail_to_proxy            respond
//! logging                  access log, metrics, traces
//! ```
//!
//! What only few requests need is awaited in a box of its own: Pingora moves the future of each hook into a box, and with
//! the rare ways in it a request would copy 12 KiB for nothing.
mod admit;
mod body;
mod bounds;
pub mod context;
mod elicit;
mod filter;
mod forwarded;
mod head;
mod hook;
mod inspect;
pub mod local;
mod place;
mod plain;
pub mod quota;
mod record;
mod rescue;
mod screen;
mod seen;
mod session;
mod sign;
pub mod silence;
pub mod streams;
mod tally;
mod verdict;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::ProxyWarnLogContext;

use self::context::{ANSWERED, Context, REFRESHED};
use self::head::Said;
use self::hook::{Hook, done, failed};
use self::quota::Quotas;
use self::session::Session as McpSession;
use self::streams::Streams;
use crate::authn::foreign::Foreign;
use crate::credential::Credentials;
use crate::inject;
use crate::managed::address::masked;
use crate::oauth::server::Authority;
use crate::outbound::shown;
use crate::policy::Hook as PolicyHook;
use crate::route::Challenges;
use crate::telemetry::access::Log;
use crate::telemetry::traces::errands::Errands;
use crate::telemetry::{InFlight, Metrics, Traces};
use crate::upstream::peer::{self, Attempt};
use crate::upstream::{pool::Pools, resolve::Resolver, spoken::Spoken};

/// All tries of a request together: other addresses, a connection that was just closing, one newer token.
const TRIES: u32 = 5;
/// Of them, how many may be spent on connections that do not come about.
const CONNECTS: u32 = 3;
/// As that, where there are peers: nearly all may be gone at once. The most tries of all.
pub const PLACES: u32 = 16;
/// Idle client connections are closed after that long.
pub const KEEPALIVE_SECONDS: u64 = 75;

/// The proxy: what all requests share.
pub struct Gateway {
    pub authority: Arc<Authority>,
    pub foreign: Arc<Foreign>,
    pub credentials: Credentials,
    /// Somebody else's say in the policy.
    pub hook: Option<Arc<dyn PolicyHook>>,
    pub challenges: Option<Challenges>,
    pub resolver: Arc<Resolver>,
    pub pools: Arc<Pools>,
    pub spoken: Spoken,
    pub router: Router,
    pub metrics: Arc<Metrics>,
    pub access: Log,
    pub traces: Option<Arc<Traces>>,
    pub in_flight: InFlight,
    pub streams: Arc<Streams>,
    pub quotas: Arc<Quotas>,
    /// Makes request ids unique: a random start for the process and a count.
    pub request_ids: (String, AtomicU64),
}

#[async_trait]
impl ProxyHttp for Gateway {
    /// In a box: Pingora moves it from future to future, and holds room for it in each.
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Box<Context> {
        let (snapshot, now) = (self.authority.snapshot(), self.authority.clock.now());
        Box::new(Context::new(snapshot, now, self.in_flight.start()))
    }

    /// None: the one that Pingora brings along compresses answers, which are passed on as they come.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    fn early_request_filter<'g: 'h, 's: 'h, 'c: 'h, 'h>(
        &'g self,
        session: &'s mut Session,
        ctx: &'c mut Box<Context>,
    ) -> Hook<'h> {
        bounds::begin(session, ctx);
        head::of_request(session.req_header_mut(), |_| ());
        ctx.client = forwarded::client(session, &ctx.snapshot.config.server);
        self.name(session, ctx);
        ctx.unended = self.unended(session);
        done()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Box<Context>) -> Result<bool> {
        match ctx.seen.errands.as_ref().map(Errands::watch) {
            None => self.take(session, ctx).await,
            Some(watch) => Box::pin(shown(watch, self.take(session, ctx))).await,
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Box<Context>) -> Result<Box<HttpPeer>> {
        let now = ctx.begin_attempt();
        let Some(target) = &mut ctx.target else {
            return Err(Error::explain(ANSWERED, "no target"));
        };
        target.begin();
        if target.again
            && let renewal = self.renew(target, session.req_header(), (&ctx.request_id, &ctx.snapshot.keys))
            && let Err(failure) = Box::pin(ctx.seen.renewal(ctx.started, renewal)).await
        {
            ctx.failure = Some(failure);
            return Err(Error::explain(ANSWERED, "no newer token"));
        }
        match self.place(target, session.req_header(), now).await {
            Ok(at) => {
                let attempt = Attempt {
                    number: ctx.attempts,
                    upgrades: target.upgrades,
                    is_http_1: self.spoken.is_http_1(&target.route.upstream, at),
                    is_unended: !session.as_downstream_mut().is_body_done(),
                    write_time: ctx.snapshot.config.limits.write_time,
                };
                Ok(peer::peer_of(attempt, &target.route.upstream, at))
            }
            Err(failure) => {
                ctx.failure = Some(failure);
                Err(Error::explain(ANSWERED, "no address"))
            }
        }
    }

    /// Pingora takes a connection for a new one that was not in its own pool.
    fn connected_to_upstream<'g: 'h, 's: 'h, 'p: 'h, 'd: 'h, 'c: 'h, 'h>(
        &'g self,
        _session: &'s mut Session,
        reused: bool,
        _peer: &'p HttpPeer,
        _descriptor: RawFd,
        digest: Option<&'d Digest>,
        ctx: &'c mut Box<Context>,
    ) -> Hook<'h> {
        let lowest = digest.and_then(|digest| digest.timing_digest.first()?.as_ref());
        ctx.connected(reused || lowest.is_some_and(|layer| layer.established_ts < ctx.arrived));
        done()
    }

    fn upstream_request_filter<'g: 'h, 's: 'h, 'u: 'h, 'c: 'h, 'h>(
        &'g self,
        session: &'s mut Session,
        upstream: &'u mut RequestHeader,
        ctx: &'c mut Box<Context>,
    ) -> Hook<'h> {
        let Some(target) = &ctx.target else {
            return failed(Error::explain(ANSWERED, "no target"));
        };
        let session_id = target.session.as_ref().map(McpSession::to_upstream);
        let additions = inject::additions(&target.route, ctx.client, &ctx.request_id, &target.credential);
        let signed = head::of_request(upstream, |parts| {
            inject::narrow(&target.route, &mut parts.headers);
            let (kind, plainly) = (target.route.kind, target.route.rules.filter_lists());
            match kind.is_http() {
                false => inject::prepare(&mut parts.headers, session_id, plainly, additions),
                true => inject::plain::prepare(&mut parts.headers, kind.is_public(), additions),
            }
            ctx.seen.propagate(&mut parts.headers);
            // Path and query of the matched route, and nothing of an absolute-form target.
            parts.uri = target.uri.clone();
            self.sign(session, target, parts)
        });
        match signed {
            Ok(()) => done(),
            Err(failure) => {
                ctx.failure = Some(failure);
                failed(Error::explain(ANSWERED, "cannot be signed"))
            }
        }
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Box<Context>,
    ) -> Result<()> {
        // Over HTTP/2 Pingora goes on waiting for an answer after any other error.
        self.pass_body(session, body, end, ctx).await.map_err(|error| error.into_down())
    }

    fn adjust_upstream_modules<'g: 'h, 's: 'h, 'u: 'h, 'c: 'h, 'h>(
        &'g self,
        _session: &'s mut Session,
        _upstream: &'u ResponseHeader,
        end: bool,
        ctx: &'c mut Box<Context>,
    ) -> Hook<'h> {
        ctx.header_only = end;
        done()
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        upstream: &mut ResponseHeader,
        ctx: &mut Box<Context>,
    ) -> Result<()> {
        self.heard(upstream.version, ctx);
        let said = Said::of(&upstream.headers);
        self.judge(session, (upstream, &said), ctx).await?;
        self.begin_filter(session, (upstream, &said), ctx)
    }

    fn response_filter<'g: 'h, 's: 'h, 'r: 'h, 'c: 'h, 'h>(
        &'g self,
        session: &'s mut Session,
        response: &'r mut ResponseHeader,
        ctx: &'c mut Box<Context>,
    ) -> Hook<'h> {
        let is_informational =
            response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS;
        if !is_informational && session.is_process_shutting_down() {
            session.set_keepalive(None);
        }
        let (session, ctx) = (&*session, &mut **ctx);
        head::of_response(response, |parts| match &ctx.replacement {
            // Early hints would act on our origin.
            _ if is_informational => parts.headers.clear(),
            Some(replacement) => replacement.replace(parts),
            None => self.pass_on(parts, session, ctx),
        });
        done()
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Box<Context>,
    ) -> Result<Option<Duration>> {
        if ctx.target.as_mut().is_some_and(|target| !self.is_still_admitted(target)) {
            return Err(Error::explain(ErrorType::InternalError, "access was taken back"));
        }
        if let Some(replacement) = &mut ctx.replacement {
            *body = Some(replacement.exchange(body.as_ref(), end));
        } else if !ctx.filter.is_off() {
            self.filter(session, body, end, ctx)?;
        }
        silence::go_on(session, body.as_ref(), end, ctx);
        Ok(None)
    }

    /// They end a body as well.
    async fn response_trailer_filter(
        &self,
        session: &mut Session,
        _trailers: &mut HeaderMap,
        ctx: &mut Box<Context>,
    ) -> Result<Option<Bytes>> {
        let mut rest = Some(Bytes::new());
        self.response_body_filter(session, &mut rest, true, ctx)?;
        Ok(rest.filter(|rest| !rest.is_empty()))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Box<Context>,
        mut error: Box<Error>,
    ) -> Box<Error> {
        self.not_connected(ctx, &mut error);
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Box<Context>,
        _reused: bool,
    ) -> Box<Error> {
        self.broken(session, ctx, &error);
        rescue::decide_retry(session, &mut error, ctx);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Box<Context>,
    ) -> FailToProxy {
        self.rescue(session, error, ctx).await
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Box<Context>) {
        self.record(session, error, ctx);
    }

    /// Pingora's default has the query in it, where codes and states travel.
    fn request_summary(&self, session: &Session, _ctx: &Box<Context>) -> String {
        format!("{} {}", session.req_header().method, masked(session.req_header().uri.path()))
    }

    fn suppress_error_log(&self, _session: &Session, ctx: &Box<Context>, error: &Error) -> bool {
        // Pingora's line would quote the answer that could not be read, cookies and all.
        let is_expected = *error.esource() == ErrorSource::Downstream || error.etype() == &ANSWERED;
        let is_unreadable = !is_expected && error.root_etype() == &ErrorType::InvalidHTTPHeader;
        if is_unreadable {
            let route = ctx.route.as_ref().map(|route| route.name.as_str());
            tracing::error!(target: "postern::upstream", route, "the head of the upstream's answer is malformed");
        }
        is_unreadable || is_expected
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Box<Context>,
        error: &Error,
        _kind: ProxyWarnLogContext,
    ) -> bool {
        error.etype() == &REFRESHED
    }
}
