//! The grant `jwt-bearer` (RFC 7523 §2.1) with an identity assertion authorization grant
//! (draft-ietf-oauth-identity-assertion-authz-grant; MCP: enterprise-managed authorization): an identity provider of ours has
//! decided that a client acts for one of its people, who are not asked. The client gets an access token for the one resource,
//! and no refresh token: the provider decides each time.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::access_token::Claims;
use super::authenticate::Authenticated;
use super::client::{Client, registered};
use super::grant::{Answer, Grant, fresh_token, narrowed};
use super::refusal::Refusal;
use super::{Authority, Snapshot};
use crate::clock::unix_seconds;
use crate::config::{ClientAuthMethod, IdentityProvider};
use crate::jose::issuer_of;
use crate::oauth::client::identity::assertion::Assertion;
use crate::oauth::client::identity::{IdentityError, Providers};
use crate::route::Route;
use crate::seal;
use crate::store::Put;

/// `grant_type`.
pub const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// As `authorization_grant_profiles_supported` names it.
pub const PROFILE: &str = "urn:ietf:params:oauth:grant-profile:id-jag";

const INVALID: Refusal = Refusal::invalid_grant("the assertion is not valid");

/// What a client presents.
pub struct Presented<'a> {
    pub client: &'a Authenticated,
    pub assertion: &'a str,
    pub scope: Option<&'a str>,
    pub resource: Option<&'a str>,
}

/// Turns an assertion into an access token.
pub async fn id_jag(
    authority: &Authority,
    snapshot: &Snapshot,
    providers: &Providers,
    presented: &Presented<'_>,
) -> Result<Answer, Refusal> {
    // Whoever finds an assertion could be a public client.
    let Some(client) =
        presented.client.client.as_ref().filter(|client| client.auth.method() != ClientAuthMethod::None)
    else {
        return Err(Refusal::unauthorized_client("a client without credentials cannot use an assertion"));
    };
    let refused = |why: &str| {
        tracing::warn!(target: "audit", event = "assertion_refused", client = %client.id, reason = why);
        INVALID
    };
    let now = authority.clock.now();
    let provider = listed(snapshot, presented.assertion)
        .ok_or_else(|| refused("assertion: is from an issuer that is not listed"))?;
    let assertion = providers.assertion(provider, presented.assertion, snapshot.issuer(), now).await;
    let why = |error: IdentityError| match error {
        IdentityError::Unavailable => Refusal::unavailable("the identity provider cannot be reached"),
        error => refused(&error.to_string()),
    };
    let assertion = assertion.map_err(why)?;
    if assertion.client != client.id {
        return Err(refused("assertion: is for another client (client_id)"));
    }
    let route = route(snapshot, &assertion, presented.resource, &refused)?;
    if !authority.admits(snapshot, &assertion.user) {
        return Err(refused("the user is blocked"));
    }
    if !route.admits(&assertion.user) {
        return Err(refused("the MCP server is not open to the user"));
    }
    let known = authority.attributes_of(snapshot, &assertion.user, now).await?;
    let attributes = assertion.admitted(provider, &known).map_err(why)?;
    let scopes = scopes(authority, route, &assertion, presented.scope).await?;
    let id = seal::name().map_err(|_| Refusal::server_error("no randomness"))?;
    let ttl = snapshot.config.oauth_server.access_token_ttl;
    let grant = granted(client, &assertion, route, provider, &scopes, now)?;
    let claims = Claims {
        audience: &route.audience_for(&assertion.user),
        grant: &id,
        subject: &assertion.user,
        client: &client.id,
        scope: &scopes.join(" "),
        expires_at: now + ttl,
    };
    let answer = Answer::bearer(snapshot, &claims, now)?;
    // Used up by what succeeds only, so that a wrong try costs the client nothing.
    let end = UNIX_EPOCH + Duration::from_secs(assertion.exp);
    let name = format!("id-jag\0{}\0{}", provider.issuer, assertion.id);
    if !authority.is_first_use(&client.id, &name, end.duration_since(now).unwrap_or_default()).await? {
        return Err(refused("assertion: was used before"));
    }
    if attributes != *known {
        authority.keep_attributes(snapshot, &assertion.user, &attributes).await?;
    }
    if authority.records.put(&id, 0, &grant, ttl).await? == Put::Conflict {
        return Err(Refusal::server_error("there is such a grant already"));
    }
    registered::keep(&authority.records, &client.id, now).await;
    tracing::info!(target: "audit", event = "grant", user = %assertion.user, client = %client.id, route = %route.name, decided_by = %provider.name);
    Ok(answer)
}

/// The provider that the assertion says it is from, where it is one of those that decide.
fn listed<'a>(snapshot: &'a Snapshot, assertion: &str) -> Option<&'a IdentityProvider> {
    let issuer = issuer_of(assertion)?;
    let config = &snapshot.config;
    let provider = config.login.providers.iter().find(|provider| provider.issuer == issuer)?;
    config.oauth_server.id_jag.contains(&provider.name).then_some(provider)
}

/// The one resource that is meant: what the assertion names, or which of several the request does.
fn route<'a>(
    snapshot: &'a Snapshot,
    assertion: &Assertion,
    asked: Option<&str>,
    refused: &impl Fn(&str) -> Refusal,
) -> Result<&'a Route, Refusal> {
    let found = |resource: &str| snapshot.routes.by_resource(resource).map(|route| &**route);
    match (assertion.resources.as_slice(), asked) {
        ([], _) => Err(refused("assertion: names no resource")),
        ([only], None) => found(only).ok_or_else(|| refused("assertion: is for another resource")),
        (_, None) => Err(Refusal::invalid_target("resource is required: the assertion names several")),
        (named, Some(asked)) => {
            let asked = found(asked);
            let is_named = |route: &&Route| {
                named.iter().filter_map(|name| found(name)).any(|other| other.resource == route.resource)
            };
            asked.filter(is_named).ok_or(Refusal::invalid_target("the assertion is for another resource"))
        }
    }
}

/// Of what the route has, what the provider says, and what everybody begins with where it says nothing; and all that the
/// user's connection may do at the upstream, as for every client: it is used whole or not at all. What a rule asks the user's
/// own consent for nobody else can say.
async fn scopes(
    authority: &Authority,
    route: &Route,
    assertion: &Assertion,
    asked: Option<&str>,
) -> Result<Vec<String>, Refusal> {
    let mut scopes = match &assertion.scopes {
        None => route.scopes.clone(),
        Some(said) => {
            let all = route.scopes.iter().chain(route.rules.scopes());
            let mut own: Vec<String> = Vec::new();
            for scope in all.filter(|scope| said.contains(scope) && route.rules.consent(scope).is_none()) {
                if !own.contains(scope) {
                    own.push(scope.clone());
                }
            }
            own
        }
    };
    if scopes.is_empty() {
        return Err(Refusal::invalid_scope("the assertion names no scope of this resource"));
    }
    let of_connection = authority.connector.connected_scopes(&assertion.user, route).await;
    let theirs: Vec<String> = of_connection
        .into_iter()
        .filter(|scope| !route.scopes.contains(scope) && !route.rules.has_scope(scope))
        .collect();
    scopes.extend(theirs.iter().cloned());
    let mut granted = narrowed(&scopes, asked)?;
    granted.retain(|scope| !theirs.contains(scope));
    granted.extend(theirs);
    Ok(granted)
}

/// What is kept of it while the token lives, so that everybody who may can see and end it.
fn granted(
    client: &Client,
    assertion: &Assertion,
    route: &Route,
    provider: &IdentityProvider,
    scopes: &[String],
    now: SystemTime,
) -> Result<Grant, Refusal> {
    Ok(Grant {
        user: assertion.user.clone(),
        client_id: client.id.clone(),
        route: route.name.clone(),
        resource: route.resource.clone(),
        scopes: scopes.to_vec(),
        created_at: unix_seconds(now),
        client_auth: client.auth.method(),
        client_name: client.name.clone(),
        client_digest: client.digest(),
        binding: route.binding(&assertion.user).map(str::to_owned),
        decided_by: Some(provider.name.clone()),
        // Of a refresh token that nobody has.
        current: seal::digest(&fresh_token()?),
        previous: None,
        retired: Vec::new(),
    })
}
