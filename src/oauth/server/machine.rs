//! The grant `client_credentials` (RFC 6749 §4.4): a listed client gets a token for itself, at the routes it is listed
//! for. No refresh token (§4.4.3): it can come again.
use super::access_token::Claims;
use super::authenticate::Authenticated;
use super::grant::{Answer, narrowed};
use super::refusal::Refusal;
use super::{Authority, Snapshot};
use crate::route::Route;
use crate::seal;

/// What the subject of such a token begins with; no user's name does.
pub const SUBJECT: &str = "client:";

/// What a client presents.
pub struct Wish<'a> {
    pub client: &'a Authenticated,
    pub scope: Option<&'a str>,
    pub resource: Option<&'a str>,
}

pub fn client_credentials(
    authority: &Authority,
    snapshot: &Snapshot,
    wish: &Wish<'_>,
) -> Result<Answer, Refusal> {
    const NOT_LISTED: Refusal =
        Refusal::unauthorized_client("this client is not listed for client_credentials");
    let id = &wish.client.id;
    let machine = snapshot.config.oauth_server.listed.get(id).and_then(|client| client.machine.as_ref());
    let machine = machine.ok_or(NOT_LISTED)?;
    let route = match (wish.resource, machine.routes.as_slice()) {
        (Some(resource), _) => snapshot.routes.by_resource(resource),
        (None, [only]) => snapshot.routes.by_name(only).filter(|route| route.is_ours()),
        (None, _) => return Err(Refusal::invalid_target("resource is required: there are several")),
    };
    let listed = |route: &&std::sync::Arc<Route>| machine.routes.contains(&route.name);
    let route =
        route.filter(listed).ok_or(Refusal::invalid_target("this client is not listed for that resource"))?;
    // Unless it asks for more, it gets what everybody begins with.
    let all: Vec<String> = route.scopes.iter().chain(route.rules.scopes()).cloned().collect();
    let scopes = narrowed(wish.scope.map_or(&route.scopes, |_| &all), wish.scope)?;
    // Of its own, so that it can be revoked without the others.
    let grant = seal::name().map_err(|_| Refusal::server_error("no randomness"))?;
    let (now, lifetime) = (authority.clock.now(), snapshot.config.oauth_server.access_token_ttl);
    let claims = Claims {
        audience: &route.resource,
        grant: &grant,
        subject: &format!("{SUBJECT}{id}"),
        client: id,
        scope: &scopes.join(" "),
        expires_at: now + lifetime,
    };
    let answer = Answer::bearer(snapshot, &claims, now)?;
    tracing::info!(target: "audit", event = "client_credentials", client = %id, route = %route.name);
    Ok(answer)
}
