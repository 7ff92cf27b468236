//! Where a request goes: the address of its upstream, or one of its peers; and what becomes of it there, as far as that says how a peer
//! does.
use std::net::SocketAddr;
use std::time::SystemTime;

use http::Version;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource};

use super::context::{ANSWERED, Context, REFRESHED, Target};
use super::session::Session as McpSession;
use super::{CONNECTS, Gateway, PLACES};
use crate::config::{Balance, BalanceOn};
use crate::mcp::{METHOD, NAME};
use crate::respond::Failure;
use crate::route::Pool;
use crate::upstream::balance::{Fault, hash};
use crate::upstream::pool::{NoPeer, since_1970};

impl Gateway {
    /// The address to which this attempt goes, which begins `now`.
    pub(super) async fn place(
        &self,
        target: &mut Target,
        head: &RequestHeader,
        now: SystemTime,
    ) -> Result<SocketAddr, Failure> {
        let begun_at = target.session.as_ref().and_then(|session| session.peer);
        let address = if target.route.upstream.pool.is_none() {
            self.resolver.address(&target.route, begun_at, now).await.map_err(|error| {
                tracing::warn!(target: "postern::upstream", route = %target.route.name, %error, "no address for the upstream");
                Failure::UpstreamUnreachable
            })?
        } else {
            // The one before is done with.
            target.busy = None;
            let key = |pool: &Pool| key(pool, head, target);
            let busy = match self.pools.place(&target.route, begun_at, key, now).await {
                Ok(busy) => busy,
                Err(NoPeer::OfSession) => return Err(Failure::NoSession),
                Err(NoPeer::AtAll) => {
                    tracing::warn!(target: "postern::upstream", route = %target.route.name, "no peer of the upstream is left");
                    return Err(Failure::UpstreamUnreachable);
                }
            };
            let address = busy.peer().address;
            target.busy = Some(busy);
            address
        };
        target.peer = Some(address);
        Ok(address)
    }

    /// Nothing was sent yet, so whatever the method, another address may be tried. A session is nowhere else: its client begins
    /// another one (MCP, Session Management).
    pub(super) fn not_connected(&self, ctx: &mut Context, error: &mut Error) {
        let Some(target) = &ctx.target else { return };
        if let Some(address) = target.peer {
            self.spoken.forget(&target.route.upstream, address);
        }
        let Some(busy) = &target.busy else {
            self.resolver.failed(&target.route);
            error.set_retry(ctx.attempts < CONNECTS);
            return;
        };
        busy.peer().failed(Fault::Connect, since_1970(self.authority.clock.now()));
        let is_bound = target.session.as_ref().is_some_and(McpSession::is_bound);
        if is_bound {
            ctx.failure = Some(Failure::NoSession);
        }
        error.set_retry(!is_bound && ctx.attempts < PLACES);
    }

    /// An answer has begun.
    pub(super) fn heard(&self, version: Version, ctx: &Context) {
        let Some(target) = &ctx.target else { return };
        // A WebSocket is opened over HTTP/1.1, whatever else is spoken there.
        if let Some(address) = target.peer.filter(|_| !target.upgrades) {
            self.spoken.heard(&target.route.upstream, address, version);
        }
        if let Some(busy) = &target.busy {
            busy.peer().heard();
        }
    }

    /// The connection is gone. An old one says nothing about the peer, nor does one on which there was an answer.
    pub(super) fn broken(&self, session: &Session, ctx: &Context, error: &Error) {
        if let Some(busy) = ctx.target.as_ref().and_then(|target| target.busy.as_ref())
            && *error.esource() == ErrorSource::Upstream
            && ![ANSWERED, REFRESHED].contains(error.etype())
            && !ctx.reused
            && session.response_written().is_none()
        {
            busy.peer().failed(Fault::Broken, since_1970(self.authority.clock.now()));
        }
    }
}

/// What stays together at one peer.
fn key(pool: &Pool, head: &RequestHeader, target: &Target) -> u64 {
    if pool.settings.balance != Balance::Consistent {
        return 0;
    }
    let source = || target.source.map(|source| source.to_canonical().to_string()).unwrap_or_default();
    let named = match pool.settings.balance_on {
        BalanceOn::Source => return hash(source().bytes()),
        BalanceOn::Caller if target.caller.is_nobody() => return hash(source().bytes()),
        BalanceOn::Caller => None,
        BalanceOn::McpName => head.headers.get(NAME),
        BalanceOn::McpMethod => head.headers.get(METHOD),
    };
    match named {
        Some(value) => hash(value.as_bytes().iter().copied()),
        None => hash(target.caller.subject().bytes()),
    }
}
