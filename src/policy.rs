//! `Caller` × `Route` × `Message` → [`Permit`] or [`Denied`]. The one place that says yes: everything after it asks for a
//! `Permit`, and only [`permit`] makes one.
use std::sync::Arc;

use crate::authn::Caller;
use crate::mcp::Message;
use crate::route::Route;

/// A caller who may use a route. Proof by type: the fields are private, so this module alone can say so.
pub struct Permit<'a> {
    caller: &'a Caller,
    route: &'a Arc<Route>,
}

/// Why a proven caller may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The token was issued for another route (RFC 8707 §2, MCP Access Token Privilege Restriction).
    #[error("access token is for another resource")]
    Audience,
    /// Names all scopes the operation needs and those the token has, so that one step-up is enough and takes nothing away
    /// (RFC 6750 §3.1; MCP, Step-Up Authorization Flow).
    #[error("access token lacks a scope")]
    Scope { needed: Vec<String> },
}

/// Decides whether `caller` may use `route` for what `message` asks. `None`: there is none, no rule needs it, or it has yet
/// to arrive; then no byte of it goes on before this was asked again.
pub fn permit<'a>(
    caller: &'a Caller,
    route: &'a Arc<Route>,
    message: Option<&Message>,
) -> Result<Permit<'a>, Denied> {
    if !caller.is_for(route) {
        return Err(Denied::Audience);
    }
    let of_call = message.map(|message| route.rules.scopes_for(message)).unwrap_or_default();
    if route.scopes.iter().chain(of_call).any(|scope| !caller.has_scope(scope)) {
        return Err(Denied::Scope { needed: caller.scopes_and(route.scopes.iter().chain(of_call)) });
    }
    Ok(Permit { caller, route })
}

// === impl Permit ===

impl<'a> Permit<'a> {
    /// Who may.
    pub fn caller(&self) -> &'a Caller {
        self.caller
    }
    /// What for.
    pub fn route(&self) -> &'a Arc<Route> {
        self.route
    }
}
