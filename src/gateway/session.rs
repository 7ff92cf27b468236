//! MCP sessions (revision 2025-11-25 and before). The client never sees the upstream's session id but one of ours, in which
//! it is sealed together with whose it is: so a session belongs to one caller at one route, at every instance and without
//! a table anywhere. It proves nothing: whoever calls is proven by their token, with every request (MCP, Session
//! Hijacking).
use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;

use super::Gateway;
use super::context::Context;
use crate::authn::Caller;
use crate::mcp::{self, Capabilities, SESSION_ID};
use crate::oauth::server::access_token::Keys;
use crate::route::Route;
use crate::seal::fields;

/// Keeps these ciphertexts apart from access tokens, which have the same keys.
const CONTEXT: &[u8] = b"postern mcp session 2";
/// What every session id of ours begins with.
const PREFIX: &str = "postern_ms_";
/// Longer ids of upstreams fit into no header once they are sealed, bytes.
const UPSTREAM_MAX: usize = 2048;

/// A session under way, as the client's header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// As the client sent it.
    ours: HeaderValue,
    /// As the upstream knows it.
    upstream: HeaderValue,
    /// Where it was begun: the same server process has it, if any.
    pub peer: Option<SocketAddr>,
    /// Whether the client opens URLs for servers (MCP, Elicitation, capabilities).
    pub elicitation: bool,
}

/// Why a session id is not taken: it is none of this caller's at this route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSession;

/// What is sealed besides the upstream's id, subject, client, route and address: that the client opens URLs for servers.
const ELICITATION: &str = "u";

impl Session {
    /// The session that the request is in. In revisions that have none the header says nothing.
    pub fn of_request(
        headers: &HeaderMap,
        keys: &Keys,
        caller: &Caller,
        route: &Route,
    ) -> Result<Option<Self>, NoSession> {
        if !headers.contains_key(SESSION_ID) || mcp::is_mirrored(headers) {
            return Ok(None);
        }
        let mut values = headers.get_all(SESSION_ID).iter();
        let Some(ours) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(NoSession);
        }
        let sealed = ours.to_str().ok().and_then(|text| text.strip_prefix(PREFIX)).ok_or(NoSession)?;
        let plain = keys.unwrap(CONTEXT, sealed).ok_or(NoSession)?;
        let [id, subject, client, of_route, peer, more] = fields::unpack(&plain).ok_or(NoSession)?;
        if subject != caller.subject() || client != caller.client() || of_route != route.name {
            return Err(NoSession);
        }
        let mut upstream = HeaderValue::from_str(id).map_err(|_| NoSession)?;
        upstream.set_sensitive(true);
        let (peer, elicitation) = (peer.parse().ok(), more == ELICITATION);
        Ok(Some(Self { ours: ours.clone(), upstream, peer, elicitation }))
    }

    /// Whether it is at one peer alone.
    pub fn is_bound(&self) -> bool {
        self.peer.is_some()
    }

    /// What the upstream gets as its session id.
    pub fn to_upstream(&self) -> HeaderValue {
        self.upstream.clone()
    }

    /// What the client gets for the session id in an upstream's answer. `None`: it cannot be sealed.
    pub fn to_client(
        known: Option<&Self>,
        upstream: &HeaderValue,
        begun: &Begun<'_>,
        now: SystemTime,
    ) -> Option<HeaderValue> {
        // Many servers repeat it with every answer.
        if let Some(known) = known.filter(|known| known.upstream == *upstream) {
            return Some(known.ours.clone());
        }
        let id = upstream.to_str().ok().filter(|id| id.len() <= UPSTREAM_MAX)?;
        let Begun { keys, caller, route, peer, elicitation } = begun;
        let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
        let more = if *elicitation { ELICITATION } else { "" };
        let plain = fields::pack(
            [id, caller.subject(), caller.client(), route.name.as_str(), &peer, more],
            Vec::new(),
        )?;
        let text = keys.wrap(CONTEXT, &plain, now)?;
        let mut ours = HeaderValue::try_from(format!("{PREFIX}{text}")).ok()?;
        ours.set_sensitive(true);
        Some(ours)
    }
}

/// What a new session is bound to.
pub struct Begun<'a> {
    pub keys: &'a Keys,
    pub caller: &'a Caller,
    pub route: &'a Route,
    pub peer: Option<SocketAddr>,
    pub elicitation: bool,
}

/// The beginning of a request that may be an `initialize`: shared with what goes upstream, and read only when a session
/// comes of it.
#[derive(Default)]
pub struct Opening {
    pieces: Vec<Bytes>,
    length: usize,
}

/// No `initialize` is longer, bytes.
const OPENING_MAX: usize = 64 * 1024;

impl Opening {
    /// The request is sent from its beginning, for the first time or again.
    pub fn begin(&mut self) {
        *self = Self::default();
    }

    pub fn add(&mut self, piece: &Bytes) {
        let piece = piece.slice(..piece.len().min(OPENING_MAX - self.length));
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push(piece);
        }
    }

    /// Whether the client says that it opens URLs for servers.
    pub fn takes_elicitations(&self) -> bool {
        #[derive(Deserialize)]
        struct Initialize {
            params: Params,
        }
        #[derive(Deserialize)]
        struct Params {
            capabilities: Capabilities,
        }
        serde_json::from_slice::<Initialize>(&self.pieces.concat())
            .is_ok_and(|initialize| initialize.params.capabilities.take_urls())
    }
}

impl Gateway {
    /// The upstream's session id becomes one of ours.
    pub(super) fn seal_session(&self, headers: &mut HeaderMap, ctx: &Context) {
        let (Some(target), Some(id)) = (&ctx.target, headers.get(SESSION_ID)) else {
            return;
        };
        let known = target.session.as_ref();
        let begun = Begun {
            keys: &ctx.snapshot.keys,
            caller: &target.caller,
            route: &target.route,
            peer: target.peer,
            elicitation: match (known, &target.opening) {
                (Some(known), _) => known.elicitation,
                (None, opening) => opening.as_ref().is_some_and(Opening::takes_elicitations),
            },
        };
        match Session::to_client(known, id, &begun, self.authority.clock.now()) {
            Some(ours) => headers.insert(SESSION_ID, ours),
            None => {
                tracing::warn!(target: "postern::upstream", route = %target.route.name, "the upstream's session id is too long or no text");
                headers.remove(SESSION_ID)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initialize_says_whether_elicitations_are_taken() {
        let says = |text: &str| {
            let mut opening = Opening::default();
            // An attempt that came to nothing, and the one that counts.
            opening.add(&Bytes::copy_from_slice(text.as_bytes()));
            opening.begin();
            text.as_bytes().chunks(7).for_each(|piece| opening.add(&Bytes::copy_from_slice(piece)));
            opening.takes_elicitations()
        };
        assert!(says(r#"{"method":"initialize","params":{"capabilities":{"elicitation":{"url":{}}}}}"#));
        assert!(!says(r#"{"method":"initialize","params":{"capabilities":{"elicitation":{}}}}"#));
        assert!(!says(r#"{"method":"initialize","params":{"capabilities":{"sampling":{}}}}"#));
        assert!(!says(r#"{"method":"tools/call","params":{}}"#));
        assert!(!says("nonsense"));
    }
}
