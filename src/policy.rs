//! `Caller` × `Route` → [`Permit`] or [`Denied`]. The one place that says yes: everything after it asks for a
//! `Permit`, and only [`permit`] makes one.
use std::sync::Arc;

use crate::authn::Caller;
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
    /// Names all scopes the operation needs, so that one step-up is enough (RFC 6750 §3.1).
    #[error("access token lacks a scope")]
    Scope { needed: Vec<String> },
}

/// Decides whether `caller` may use `route`.
pub fn permit<'a>(caller: &'a Caller, route: &'a Arc<Route>) -> Result<Permit<'a>, Denied> {
    if !caller.is_for(route) {
        return Err(Denied::Audience);
    }
    if route.scopes.iter().any(|scope| !caller.has_scope(scope)) {
        return Err(Denied::Scope { needed: route.scopes.clone() });
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
