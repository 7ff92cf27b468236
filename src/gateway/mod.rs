//! The only `impl ProxyHttp`. Each hook calls one stage and carries its outcome to the next; what is decided, and
//! why, is in the stages.
//!
//! ```text
//! request_filter           route, origin, authn, policy, credential   (every ordinary refusal is answered here)
//! upstream_peer            vetted address; after a refused token, the credential again
//! upstream_request_filter  inject
//! upstream_response_filter trap
//! response_filter          what a proxied answer loses and gains, or our answer in its place
//! fail_to_proxy            respond
//! logging                  access log, metrics
//! ```
pub mod context;
pub mod local;
mod screen;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::HttpPeer;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::ProxyWarnLogContext;

use self::context::{ANSWERED, Context, REFRESHED, Replacement, Target};
use crate::authn::{self, Revoked};
use crate::credential::{self, Connections, Source, Unresolved};
use crate::oauth::client::challenged::Challenge;
use crate::oauth::server::Authority;
use crate::respond::{self, Failure, Reply};
use crate::route::canonical_path;
use crate::telemetry::access::{Line, Log};
use crate::telemetry::{InFlight, Metrics};
use crate::trap::{self, Verdict};
use crate::upstream::{peer, resolve::Resolver};
use crate::{inject, mcp, origin, policy, web};

/// Idle client connections are closed after that long.
const KEEPALIVE_SECONDS: u64 = 75;
/// How long an unread request body may take to arrive once it is answered.
const DRAIN: Duration = Duration::from_secs(5);
/// A client that reads nothing for so long is gone.
const WRITE: Duration = Duration::from_secs(60);

pub struct Gateway {
    pub authority: Arc<Authority>,
    pub connections: Arc<Connections>,
    pub revoked: Revoked,
    pub resolver: Arc<Resolver>,
    pub router: Router,
    pub metrics: Arc<Metrics>,
    pub access: Log,
    pub in_flight: InFlight,
    /// Makes request ids unique: a random start for the process and a count.
    pub request_ids: (String, AtomicU64),
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Context;

    #[expect(
        clippy::disallowed_methods,
        reason = "how long a request took is measured, nothing is decided by it"
    )]
    fn new_ctx(&self) -> Context {
        let (process, count) = &self.request_ids;
        let id = format!("{process}-{:x}", count.fetch_add(1, Ordering::Relaxed));
        self.metrics.active.inc();
        Context {
            started: std::time::Instant::now(),
            request_id: HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("-")),
            snapshot: self.authority.snapshot(),
            target: None,
            origin: None,
            attempts: 0,
            failure: None,
            replacement: None,
            header_only: false,
            reason: "ok",
            active: Some(self.in_flight.start()),
        }
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<()> {
        // Overrides what the version says, so HTTP/1.0, which has no keep-alive of its own, is left alone.
        if session.req_header().version != Version::HTTP_10 {
            session.set_keepalive(Some(KEEPALIVE_SECONDS));
        }
        session.set_total_drain_timeout(Some(DRAIN));
        session.set_write_timeout(Some(WRITE));
        if let Some(id) = session
            .get_header(inject::REQUEST_ID)
            .filter(|id| screen::is_request_id(id))
        {
            ctx.request_id = id.clone();
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        match self.admit(session, ctx).await {
            Ok(Admitted::Proxied) => Ok(false),
            Ok(Admitted::Local { path, authority }) => {
                let client = session
                    .client_addr()
                    .and_then(|address| address.as_inet())
                    .map(|address| address.ip());
                let about = web::About {
                    authority,
                    client,
                    request_id: ctx.request_id.clone(),
                };
                local::serve(session, &self.router, &path, about).await?;
                ctx.reason = "local";
                Ok(true)
            }
            Ok(Admitted::Preflight) => {
                let asked = session
                    .get_header(header::ACCESS_CONTROL_REQUEST_HEADERS)
                    .cloned();
                let mut headers = Vec::from(origin::preflight(asked.as_ref()));
                headers.extend(ctx.origin.iter().flat_map(origin::readable));
                ctx.reason = "preflight";
                local::answer(
                    session,
                    &Reply {
                        status: StatusCode::NO_CONTENT,
                        headers,
                        body: Bytes::new(),
                        reason: "preflight",
                    },
                )
                .await?;
                Ok(true)
            }
            Err((failure, route)) => {
                let reply = self.reply(&failure, route.as_deref(), session, ctx);
                local::answer(session, &reply).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Context) -> Result<Box<HttpPeer>> {
        ctx.attempts += 1;
        ctx.header_only = false;
        let Some(target) = &mut ctx.target else {
            return Err(Error::explain(ANSWERED, "no target"));
        };
        if target.refused.is_some() {
            let now = self.authority.clock.now();
            let renewed = match policy::permit(&target.caller, &target.route) {
                Ok(permit) => {
                    credential::resolve(&self.connections, &permit, &target.route, target.refused, now)
                        .await
                        .map_err(failure_of)
                }
                Err(denied) => Err(denied.into()),
            };
            match renewed {
                Ok(credential) => target.credential = credential,
                Err(failure) => {
                    if failure == Failure::NeedsUser {
                        self.remember_challenge(target, Vec::new()).await;
                    }
                    ctx.failure = Some(failure);
                    return Err(Error::explain(ANSWERED, "no newer token"));
                }
            }
        }
        match self.resolver.address(&target.route).await {
            Ok(address) => Ok(peer::peer(&target.route, address)),
            Err(error) => {
                tracing::warn!(target: "postern::upstream", route = %target.route.name, %error, "no address for the upstream");
                ctx.failure = Some(Failure::UpstreamUnreachable);
                Err(Error::explain(ANSWERED, "no address"))
            }
        }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        let Some(target) = &ctx.target else {
            return Err(Error::explain(ANSWERED, "no target"));
        };
        let dropped: Vec<HeaderName> = upstream
            .headers
            .keys()
            .filter(|name| inject::is_dropped(name))
            .cloned()
            .collect();
        for name in &dropped {
            upstream.remove_header(name);
        }
        // Path and query of the matched route, and nothing of an absolute-form target.
        let uri = target
            .path
            .parse()
            .map_err(|error| Error::because(ErrorType::InvalidHTTPHeader, "upstream path", error))?;
        upstream.set_uri(uri);
        let client = session
            .client_addr()
            .and_then(|address| address.as_inet())
            .map(|address| address.ip());
        for (name, value) in inject::additions(&target.route, client, &ctx.request_id, &target.credential) {
            upstream.insert_header(name, value)?;
        }
        Ok(())
    }

    async fn adjust_upstream_modules(
        &self,
        _session: &mut Session,
        _upstream: &ResponseHeader,
        end: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        ctx.header_only = end;
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        upstream: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        let Some(target) = &mut ctx.target else {
            return Ok(());
        };
        if upstream.status.is_informational() {
            return Ok(());
        }
        let replayable = !session.as_ref().retry_buffer_truncated();
        let verdict = trap::judge(
            upstream.status,
            &upstream.headers,
            &target.credential.source,
            ctx.attempts,
            replayable,
        );
        let failure = match verdict {
            Verdict::Pass => {
                if upstream.status.is_success()
                    && self.authority.connector.has_met_challenge(target.caller.grant())
                {
                    self.authority.connector.settled(target.caller.grant()).await;
                }
                return Ok(());
            }
            Verdict::Refresh => {
                if let Source::Connection { generation, .. } = target.credential.source {
                    target.refused = Some(generation);
                }
                let mut again = Error::explain(REFRESHED, "token refused, trying a newer one");
                again.as_up();
                again.set_retry(true);
                return Err(again);
            }
            Verdict::Connect { scopes, refused } => {
                if refused {
                    self.connections.refuse(&target.credential.source).await;
                } else {
                    self.connections
                        .renew_refused(&target.route, &target.credential.source);
                }
                if refused || target.credential.source == Source::Anonymous {
                    self.remember_challenge(target, scopes).await;
                }
                Failure::NeedsUser
            }
            Verdict::StepUp { scopes } => {
                self.remember_challenge(target, scopes.clone()).await;
                let mut needed: Vec<String> = target.caller.scopes().map(str::to_owned).collect();
                needed.extend(scopes.into_iter().filter(|scope| !target.caller.has_scope(scope)));
                Failure::StepUp { scopes: needed }
            }
            Verdict::Misconfigured => {
                tracing::error!(target: "postern::upstream", route = %target.route.name, status = upstream.status.as_u16(), "the upstream refuses what the route's credential says: check its configuration");
                Failure::UpstreamRefused
            }
        };
        let route = Arc::clone(&target.route);
        let reply = self.reply(&failure, Some(&route), session, ctx);
        ctx.replacement = Some(Replacement::new(reply, ctx.header_only));
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        if response.status.is_informational() {
            return Ok(());
        }
        if session.is_process_shutting_down() {
            session.set_keepalive(None);
        }
        if let Some(replacement) = &ctx.replacement {
            let all: Vec<HeaderName> = response.headers.keys().cloned().collect();
            for name in &all {
                response.remove_header(name);
            }
            response.set_status(replacement.status)?;
            for (name, value) in &replacement.headers {
                response.append_header(name.clone(), value.clone())?;
            }
            return response.insert_header(header::CONTENT_LENGTH, replacement.length());
        }
        let dropped: Vec<HeaderName> = response
            .headers
            .keys()
            .filter(|name| respond::is_dropped(name))
            .cloned()
            .collect();
        for name in &dropped {
            response.remove_header(name);
        }
        for (name, value) in respond::isolation() {
            response.insert_header(name, value)?;
        }
        if respond::is_attachment(response.headers.get(header::CONTENT_TYPE)) {
            response.insert_header(header::CONTENT_DISPOSITION, "attachment")?;
        }
        for (name, value) in ctx.origin.iter().flat_map(origin::readable) {
            response.insert_header(name, value)?;
        }
        response.insert_header(inject::REQUEST_ID, ctx.request_id.clone())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<Option<Duration>> {
        if let Some(replacement) = &mut ctx.replacement {
            *body = Some(replacement.exchange(body.as_ref(), end));
        }
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        _ctx: &mut Context,
        reused: bool,
    ) -> Box<Error> {
        let complete = !session.as_ref().retry_buffer_truncated();
        if error.etype() == &REFRESHED {
            // A 401 means that nothing was carried out, so a POST may be sent again, as long as all of it is still here.
            error.set_retry(complete);
        } else if !complete || !session.req_header().method.is_idempotent() {
            error.set_retry(false);
        } else {
            error.retry.decide_reuse(reused);
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Context) -> FailToProxy {
        let failure = match ctx.failure.take() {
            Some(failure) => failure,
            None => match (error.esource(), error.etype()) {
                (ErrorSource::Downstream, ErrorType::HTTPStatus(413)) => Failure::TooLarge,
                (ErrorSource::Downstream, _) => {
                    ctx.reason = "client_gone";
                    return FailToProxy {
                        error_code: 0,
                        can_reuse_downstream: false,
                    };
                }
                (
                    _,
                    ErrorType::ConnectTimedout
                    | ErrorType::TLSHandshakeTimedout
                    | ErrorType::ReadTimedout
                    | ErrorType::WriteTimedout,
                ) => Failure::UpstreamTimeout,
                _ => Failure::UpstreamUnreachable,
            },
        };
        let route = ctx.target.as_ref().map(|target| Arc::clone(&target.route));
        let reply = self.reply(&failure, route.as_deref(), session, ctx);
        let status = reply.status.as_u16();
        if session.response_written().is_none()
            && let Err(error) = write_error(session, reply).await
        {
            tracing::debug!(target: "postern::gateway", etype = error.etype().as_str(), "client left before it was told");
        }
        FailToProxy {
            error_code: status,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Context) {
        self.metrics.active.dec();
        let status = session
            .response_written()
            .map_or(0, |response| response.status.as_u16());
        if ctx.reason == "ok" && error.is_some() {
            ctx.reason = "broken_off";
        }
        let route = ctx.route().map_or("-", |route| route.name.as_str());
        let class = match status {
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "none",
        };
        self.metrics
            .requests
            .with_label_values(&[route, class, ctx.reason])
            .inc();
        self.metrics
            .duration
            .with_label_values(&[route])
            .observe(ctx.elapsed().as_secs_f64());
        if self.access.is_on() {
            self.write_access_line(session, ctx, status);
        }
    }

    /// Pingora's default has the query in it, where codes and states travel.
    fn request_summary(&self, session: &Session, _ctx: &Context) -> String {
        format!(
            "{} {}",
            session.req_header().method,
            session.req_header().uri.path()
        )
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Context, error: &Error) -> bool {
        error.etype() == &ANSWERED || *error.esource() == ErrorSource::Downstream
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Context,
        error: &Error,
        _kind: ProxyWarnLogContext,
    ) -> bool {
        error.etype() == &REFRESHED
    }
}

/// What a request turned out to be.
enum Admitted {
    Proxied,
    Local { path: String, authority: String },
    Preflight,
}

/// A refusal, and where the request was headed if that is known.
type Refused = (Failure, Option<Arc<crate::route::Route>>);

impl Gateway {
    /// The stages before the upstream, in their order.
    async fn admit(&self, session: &Session, ctx: &mut Context) -> Result<Admitted, Refused> {
        let head = session.req_header();
        let nowhere = |failure: Failure| (failure, None);
        screen::request(head).map_err(|what| nowhere(Failure::Malformed(what)))?;
        let snapshot = Arc::clone(&ctx.snapshot);
        let host = screen::host(head).ok_or(nowhere(Failure::Malformed("exactly one host is needed")))?;
        let authority = snapshot
            .routes
            .authority(host)
            .map_err(|error| nowhere(error.into()))?;
        let path = canonical_path(head.uri.path()).map_err(|error| nowhere(error.into()))?;
        let is_metadata = snapshot.routes.metadata(&authority, &path).is_some();
        if is_metadata || (snapshot.routes.is_public(&authority) && web::is_local(&path)) {
            return Ok(Admitted::Local {
                path: path.into_owned(),
                authority: authority.into_owned(),
            });
        }
        let matched = snapshot
            .routes
            .find(&authority, &path)
            .map_err(|error| nowhere(error.into()))?;
        let route = Arc::clone(matched.route);
        let here = |failure: Failure| (failure, Some(Arc::clone(&route)));
        ctx.origin = origin::allowed(&head.headers, &snapshot.config.server)
            .map_err(|error| here(error.into()))?
            .cloned();
        if head.method == Method::OPTIONS {
            return Ok(Admitted::Preflight);
        }
        let now = self.authority.clock.now();
        let caller = authn::authenticate(&head.headers, &snapshot.keys, &self.revoked, now)
            .map_err(|error| here(error.into()))?;
        let permit = policy::permit(&caller, &route).map_err(|denied| here(denied.into()))?;
        let credential = credential::resolve(&self.connections, &permit, &route, None, now)
            .await
            .map_err(|error| here(failure_of(error)))?;
        let path = route.upstream.target(matched.rest, head.uri.query());
        ctx.target = Some(Target {
            route,
            caller,
            credential,
            path,
            refused: None,
        });
        Ok(Admitted::Proxied)
    }

    /// Our answer, readable for the origin that asked, and noted for the log.
    fn reply(
        &self,
        failure: &Failure,
        route: Option<&crate::route::Route>,
        session: &Session,
        ctx: &mut Context,
    ) -> Reply {
        let mut reply = respond::reply(failure, route, &session.req_header().headers);
        reply.headers.extend(ctx.origin.iter().flat_map(origin::readable));
        reply.headers.push((inject::REQUEST_ID, ctx.request_id.clone()));
        ctx.reason = reply.reason;
        reply
    }

    async fn remember_challenge(&self, target: &Target, scopes: Vec<String>) {
        let incarnation = match &target.credential.source {
            Source::Connection { incarnation, .. } => Some(incarnation.to_string()),
            _ => None,
        };
        let caller = &target.caller;
        self.authority
            .connector
            .challenged(
                caller.grant(),
                caller.subject(),
                &target.route.name,
                &Challenge { scopes, incarnation },
            )
            .await;
    }

    fn write_access_line(&self, session: &Session, ctx: &Context, status: u16) {
        let head = session.req_header();
        let call = mcp::Call::from_headers(&head.headers);
        self.access.write(&Line {
            time: humantime::format_rfc3339_millis(self.authority.clock.now()).to_string(),
            request_id: ctx.request_id.to_str().unwrap_or_default(),
            client_ip: session
                .client_addr()
                .and_then(|address| address.as_inet())
                .map(|address| address.ip().to_string()),
            method: head.method.as_str(),
            host: screen::host(head).unwrap_or_default(),
            path: head.uri.path(),
            route: ctx.route().map(|route| route.name.as_str()),
            status,
            reason: ctx.reason,
            user: ctx.target.as_ref().map(|target| target.caller.subject()),
            client_id: ctx.target.as_ref().map(|target| target.caller.client()),
            mcp_method: call.method,
            mcp_name: call.name,
            duration_ms: (ctx.elapsed().as_secs_f64() * 1e6).round() / 1e3,
            bytes_out: session.body_bytes_sent(),
            attempts: ctx.attempts,
        });
    }
}

fn failure_of(unresolved: Unresolved) -> Failure {
    match unresolved {
        Unresolved::NeedsUser => Failure::NeedsUser,
        Unresolved::Unavailable { retry_after } => Failure::Unavailable { retry_after },
    }
}

async fn write_error(session: &mut Session, reply: Reply) -> Result<()> {
    let mut head = ResponseHeader::build(reply.status, Some(reply.headers.len() + 1))?;
    for (name, value) in reply.headers {
        head.append_header(name, value)?;
    }
    head.insert_header(header::CONTENT_LENGTH, reply.body.len())?;
    session.write_error_response(head, reply.body).await
}
