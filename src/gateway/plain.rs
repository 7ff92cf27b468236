//! What is particular about routes that lead to no MCP server: they are on a host of their own, and so whatever they answer goes to
//! the client as it is, as far as it cannot act on the pages' host all the same.
//!
//! A WebSocket is passed on where the client opens one over HTTP/1.1: the handshake as Pingora writes it anew, then bytes in both
//! directions. It has a place among the streams, since it may stay open for hours. No other protocol can be switched to.
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::response::Parts;
use http::{Method, Uri, Version, header};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::context::Context;
use super::{Gateway, silence};
use crate::authn::Caller;
use crate::respond::Failure;
use crate::route::{Challenges, Matched, Route, RouteError, has_one_spelling};
use crate::{inject, origin, respond};

/// Path and query of the request at the upstream.
pub(super) fn target(matched: &Matched<'_>, uri: &Uri) -> Result<Uri, Failure> {
    let rest = match matched.route.kind.is_mcp() {
        true => Cow::Borrowed(matched.rest),
        false => below(matched.rest, uri.path())?,
    };
    let target = matched.route.upstream.target(&rest, uri.query());
    target.map_err(|_| Failure::Malformed("the request target cannot be sent on"))
}

/// A slash at the end is part of an address on the web.
fn below<'r>(rest: &'r str, raw: &str) -> Result<Cow<'r, str>, Failure> {
    if !has_one_spelling(raw) {
        return Err(Failure::Malformed("the path can be spelled in another way: write it plainly"));
    }
    Ok(match raw.ends_with('/') {
        true => Cow::Owned(format!("{rest}/")),
        false => Cow::Borrowed(rest),
    })
}

/// The challenge of a certificate authority that is asked for, whatever the host.
pub(super) fn challenge<'a>(
    challenges: Option<&'a Challenges>,
    head: &'a RequestHeader,
) -> Result<Option<Matched<'a>>, Failure> {
    match challenges.and_then(|challenges| challenges.find(head.uri.path())) {
        None => Ok(None),
        Some(Some(matched)) if matches!(head.method, Method::GET | Method::HEAD) => Ok(Some(matched)),
        Some(_) => Err(Failure::Route(RouteError::NotFound)),
    }
}

/// Whether a request at this route opens a WebSocket (RFC 6455 §4.1).
pub(super) fn is_websocket(route: &Route, head: &RequestHeader) -> bool {
    let asks = |upgrade: &http::HeaderValue| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket");
    route.kind.is_http()
        && head.method == Method::GET
        && head.version == Version::HTTP_11
        && head.headers.get(header::UPGRADE).is_some_and(asks)
}

/// By them some servers take a request for one of another method.
const OVERRIDES: [&str; 3] = ["x-http-method", "x-http-method-override", "x-method-override"];

/// Whether it is how a browser asks before it sends what a page wants sent (Fetch, §4.8.3), and nothing else to any server: it has no
/// body, and says nothing of who somebody is.
pub(super) fn is_preflight(session: &mut Session) -> bool {
    let head = session.req_header();
    if head.method != Method::OPTIONS {
        return false;
    }
    let count = |name| head.headers.get_all(name).iter().count();
    let asks = count(header::ORIGIN) == 1 && count(header::ACCESS_CONTROL_REQUEST_METHOD) == 1;
    let is_nobodys = [header::AUTHORIZATION, header::COOKIE].into_iter().all(|name| count(name) == 0);
    let is_plain = OVERRIDES.into_iter().all(|name| !head.headers.contains_key(name));
    asks && is_nobodys && is_plain && session.as_downstream_mut().is_body_empty()
}

/// Where a request of the matched route goes.
pub(super) fn route(matched: &Matched<'_>, is_preflight: bool) -> Arc<Route> {
    let preflights = matched.route.preflights.as_ref().filter(|_| is_preflight);
    Arc::clone(preflights.unwrap_or(matched.route))
}

/// Whose a request is when things are shared out: the caller's, or where nobody was asked, that of where it came from.
pub(super) fn holder(caller: &Caller, source: Option<IpAddr>) -> Cow<'_, str> {
    match caller.is_nobody() {
        false => Cow::Borrowed(caller.subject()),
        true => Cow::Owned(source.map(|source| format!("from:{source}")).unwrap_or_default()),
    }
}

impl Gateway {
    /// What the upstream's answer loses and gains on its way to the client.
    pub(super) fn pass_on(&self, head: &mut Parts, session: &Session, ctx: &mut Context) {
        if let Some(kind) = ctx.route.as_ref().map(|route| route.kind).filter(|kind| kind.is_http()) {
            let pages = &ctx.snapshot.config.server.public_url;
            respond::plain::keep_away(&mut head.headers, pages.host(), kind.is_public());
        } else {
            respond::isolate(&mut head.headers);
            self.seal_session(&mut head.headers, ctx);
            ctx.filter.reframe(head, session.req_header().version);
            silence::begin(session, head, ctx);
            for (name, value) in ctx.origin.iter().flat_map(origin::readable) {
                head.headers.insert(name, value);
            }
        }
        head.headers.insert(inject::REQUEST_ID, ctx.request_id.clone());
    }
}
