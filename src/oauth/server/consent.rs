//! `POST /oauth/consent`: the user's decision, and what follows from it.
//!
//! Allowed, and the upstream needs an authorization of its own: the browser goes there first, and [`resume`] goes on
//! when it is back. Otherwise, and after that, the client gets its code. The `state` for the upstream is made here,
//! after consent and not before (MCP Security Best Practices, Confused Deputy).
use std::sync::Arc;

use super::authorize::{Browser, Flow, Request, error_redirect, issue};
use super::refusal::Refusal;
use super::remembered::remember;
use super::{Authority, Snapshot};
use crate::oauth::client::connect::ConnectError;
use crate::oauth::client::prospect::Prospect;
use crate::oauth::client::register::RegisterError;
use crate::route::Route;
use crate::seal;
use crate::store::record::Take;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Allow,
    Deny,
}

/// Why a decision cannot be carried out; shown to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConsentError {
    #[error("this request has been answered already, or has expired")]
    Gone,
    #[error("this request belongs to another browser or user")]
    NotYours,
    #[error("the store cannot be reached")]
    Unavailable,
}

/// Carries the decision out. Returns where the browser goes next.
pub async fn decide(
    authority: &Authority,
    snapshot: &Snapshot,
    browser: &Browser,
    flow: &str,
    decision: Decision,
) -> Result<String, ConsentError> {
    let key = seal::digest(flow);
    let seen = authority
        .records
        .get::<Flow>(&key)
        .await
        .map_err(|_| ConsentError::Unavailable)?
        .ok_or(ConsentError::Gone)?
        .value;
    if seen.user != browser.user || seen.session != browser.session {
        return Err(ConsentError::NotYours);
    }
    let flow = match authority.records.take::<Flow>(&key).await {
        Ok(Take::Fresh(flow)) => flow.value,
        Ok(_) => return Err(ConsentError::Gone),
        Err(_) => return Err(ConsentError::Unavailable),
    };
    let request = flow.request;
    audit("consent", &request, browser, decision == Decision::Allow);
    if let Some(route) = snapshot.routes.by_name(&request.route) {
        let is_allowed = decision == Decision::Allow;
        authority.connector.answered(&browser.user, &request.client_id, route, is_allowed).await;
    }
    if decision == Decision::Deny {
        return Ok(refused(snapshot, &request, Refusal::access_denied("the user said no")));
    }
    remember(authority, &request, &browser.user, &flow.scopes).await;
    let Some(plan) = flow.plan else {
        return Ok(issue(authority, snapshot, request, &browser.user, flow.scopes).await);
    };
    let Some(route) = snapshot.routes.by_name(&request.route) else {
        return Ok(refused(snapshot, &request, Refusal::server_error("the MCP server is gone")));
    };
    let resume = serde_json::to_value((&request, &flow.scopes)).unwrap_or_default();
    match authority.connector.begin(route, plan, &browser.user, &browser.session, resume).await {
        Ok(url) => Ok(url),
        // It may let people in all the same; if not, its operator has been told.
        Err(ConnectError::Unexplained) => {
            Ok(issue(authority, snapshot, request, &browser.user, flow.scopes).await)
        }
        // Another of the user's clients has been there for the same meanwhile.
        Err(ConnectError::TooOften) if is_connected(authority, route, browser, &flow.scopes).await => {
            Ok(issue(authority, snapshot, request, &browser.user, flow.scopes).await)
        }
        Err(error) => {
            tracing::warn!(target: "postern::oauth", route = %route.name, %error, "upstream authorization cannot begin: `postern doctor` with this route says why and what to write");
            Ok(refused(snapshot, &request, connect_refusal(&error)))
        }
    }
}

/// Whether the user has a connection that does no more than these scopes say.
async fn is_connected(
    authority: &Authority,
    route: &Arc<Route>,
    browser: &Browser,
    scopes: &[String],
) -> bool {
    match authority.connector.prospect(route, &browser.user).await {
        Ok(Prospect::Connected { scopes: connected }) => connected.iter().all(|scope| scopes.contains(scope)),
        _ => false,
    }
}

/// Goes on where [`decide`] left for the upstream. `outcome`: how it went there. Returns where the browser goes.
pub async fn resume(
    authority: &Authority,
    snapshot: &Snapshot,
    resume: serde_json::Value,
    user: &str,
    outcome: Result<Vec<String>, ConnectError>,
) -> Result<String, ConsentError> {
    let (request, mut scopes): (Request, Vec<String>) =
        serde_json::from_value(resume).map_err(|_| ConsentError::Gone)?;
    Ok(match outcome {
        Ok(connected) => {
            // What its server has added on the way the user has allowed there, a moment ago.
            let rules = snapshot.routes.by_name(&request.route).map(|route| &route.rules);
            let is_ours = |scope: &String| rules.is_some_and(|rules| rules.has_scope(scope));
            let added = connected.into_iter().filter(|scope| !scopes.contains(scope) && !is_ours(scope));
            let added: Vec<_> = added.collect();
            if !added.is_empty() {
                scopes.extend(added);
                remember(authority, &request, user, &scopes).await;
            }
            issue(authority, snapshot, request, user, scopes).await
        }
        Err(error) => {
            tracing::warn!(target: "postern::oauth", route = %request.route, %error, "upstream authorization failed");
            refused(snapshot, &request, connect_refusal(&error))
        }
    })
}

fn refused(snapshot: &Snapshot, request: &Request, refusal: Refusal) -> String {
    error_redirect(snapshot, &request.redirect_uri, request.state.as_deref(), refusal)
}

/// What a client hears when the upstream's side failed: never the upstream's own words.
fn connect_refusal(error: &ConnectError) -> Refusal {
    match error {
        ConnectError::Denied => {
            Refusal::access_denied("the MCP server's authorization server did not allow it")
        }
        ConnectError::TooOften => Refusal::access_denied(
            "the MCP server's authorization server was asked several times for the same",
        ),
        ConnectError::Unavailable | ConnectError::Register(RegisterError::Unavailable) => {
            Refusal::unavailable("the MCP server's authorization server cannot be reached")
        }
        _ => Refusal::server_error("the authorization at the MCP server failed"),
    }
}

fn audit(event: &'static str, request: &Request, browser: &Browser, allowed: bool) {
    tracing::info!(target: "audit", event, user = %browser.user, client = %request.client_id, route = %request.route, allowed);
}
