//! Authorization codes (RFC 6749 §4.1.2): good once, for a minute, for the client, the redirect URI and the PKCE verifier
//! they were made for. Redeemed, a code becomes a grant.
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::authenticate::Authenticated;
use super::authorize::Request;
use super::claim::claim;
use super::client::registered;
use super::grant::{Answer, Grant, check_resource, fresh_token, left, mint, withdraw};
use super::refusal::Refusal;
use super::{Authority, Snapshot};
use crate::clock::unix_seconds;
use crate::config::ClientAuthMethod;
use crate::route::Route;
use crate::seal;
use crate::store::Kind;
use crate::store::record::{Typed, Versioned};

/// OAuth 2.1 §4.1.2 recommends ten minutes at most; the client is already waiting.
const CODE_TTL: Duration = Duration::from_secs(60);
const CODE_PREFIX: &str = "postern_ac_";

/// An authorization code (store record, found by the digest of the code).
#[derive(Serialize, Deserialize)]
pub struct Code {
    pub client_id: String,
    pub redirect_uri: String,
    pub challenge: String,
    pub route: String,
    pub resource: String,
    pub scopes: Vec<String>,
    pub user: String,
    /// How the client authenticates.
    #[serde(default)]
    pub client_auth: ClientAuthMethod,
    /// What the client called itself, and the digest of what it was.
    #[serde(default)]
    pub client_name: Option<String>,
    #[serde(default)]
    pub client_digest: String,
    /// As of the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<String>,
    /// The grant it turns into; chosen early, so that a replayed code finds what to revoke.
    pub grant: String,
}

impl Typed for Code {
    const KIND: Kind = Kind::Code;
}

/// What a client presents to redeem a code.
pub struct Redemption<'a> {
    pub client: &'a Authenticated,
    pub code: &'a str,
    pub verifier: &'a str,
    pub redirect_uri: Option<&'a str>,
    pub resource: Option<&'a str>,
}

/// Stores a code for what `user` allowed and returns it.
pub async fn issue_code(
    authority: &Authority,
    snapshot: &Snapshot,
    request: &Request,
    user: &str,
    scopes: Vec<String>,
) -> Result<String, Refusal> {
    let secret = format!("{CODE_PREFIX}{}", fresh_token()?);
    let route = snapshot.routes.by_resource(&request.resource);
    // While the user was asked, the route may have been taken from them.
    let route = route.filter(|route| route.admits(user));
    let route = route.ok_or(Refusal::access_denied("this MCP server is not open to the user any more"))?;
    let code = Code {
        client_id: request.client_id.clone(),
        redirect_uri: request.redirect_uri.clone(),
        challenge: request.challenge.clone(),
        route: request.route.clone(),
        resource: request.resource.clone(),
        scopes,
        user: user.to_owned(),
        client_auth: request.client_auth,
        client_name: request.client_name.clone(),
        client_digest: request.client_digest.clone(),
        binding: route.binding(user).map(str::to_owned),
        grant: seal::name().map_err(|_| Refusal::server_error("no randomness"))?,
    };
    authority.records.put(&seal::digest(&secret), 0, &code, CODE_TTL).await?;
    Ok(secret)
}

/// Turns a code into a grant (RFC 6749 §4.1.3). Everything is checked before the code is spent, so that a wrong try
/// cannot burn somebody's code.
pub async fn redeem(
    authority: &Authority,
    snapshot: &Snapshot,
    redemption: &Redemption<'_>,
) -> Result<Answer, Refusal> {
    const INVALID: Refusal = Refusal::invalid_grant("the code is not valid");
    let key = seal::digest(redemption.code);
    let Versioned { value: code, spent, .. } =
        authority.records.readable::<Code>(&key).await?.ok_or(INVALID)?;
    let verifier_fits = code.challenge.as_bytes().ct_eq(seal::digest(redemption.verifier).as_bytes());
    if !redemption.client.may_use(&code.client_id, code.client_auth)
        || redemption.redirect_uri.is_some_and(|uri| uri != code.redirect_uri)
        || !bool::from(verifier_fits)
    {
        return Err(INVALID);
    }
    if !authority.admits(snapshot, &code.user) {
        return Err(INVALID);
    }
    check_resource(snapshot, &code.resource, redemption.resource)?;
    let route = snapshot.routes.by_resource(&code.resource);
    let is_same = |route: &&Arc<Route>| {
        route.admits(&code.user) && route.binding(&code.user) == code.binding.as_deref()
    };
    route.filter(is_same).ok_or(INVALID)?;
    let now = authority.clock.now();
    let secret = fresh_token()?;
    let mut grant = Grant {
        user: code.user,
        client_id: code.client_id,
        route: code.route,
        resource: code.resource,
        scopes: code.scopes,
        created_at: unix_seconds(now),
        client_auth: code.client_auth,
        client_name: code.client_name,
        client_digest: code.client_digest,
        binding: code.binding,
        decided_by: None,
        current: seal::digest(&secret),
        previous: None,
        retired: Vec::new(),
    };
    let answer = mint(snapshot, &code.grant, &grant, &grant.scopes, &secret, now)?;
    let ttl = left(snapshot, &grant, now);
    if spent || !claim(authority, &key, &code.grant, &mut grant, ttl).await? {
        // Somebody has the code who should not: what the first use got is withdrawn (RFC 6749 §4.1.2).
        tracing::warn!(target: "audit", event = "code_replayed", user = %grant.user, client = %grant.client_id);
        withdraw(authority, &code.grant).await?;
        return Err(INVALID);
    }
    registered::keep(&authority.records, &grant.client_id, now).await;
    tracing::info!(target: "audit", event = "grant", user = %grant.user, client = %grant.client_id, route = %grant.route);
    Ok(answer)
}
