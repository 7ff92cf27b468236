//! Grants: what a user allowed a client, from the code to the last refresh token of the family.
//!
//! One record per grant carries the whole rotation state, so that every step is one conditional write and survives a
//! restart. A refresh token names its grant, so finding it is one read; what proves it is the digest of its secret.
//!
//! Rotation (OAuth 2.1 §4.3.1, RFC 9700 §4.14): every use retires the token. Clients race with themselves and lose
//! answers, so the immediately previous token gets the very same answer again for a short while; anything older ends
//! the family.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::access_token::{Claims, OpenError};
use super::authenticate::Authenticated;
use super::client::{Client, registered};
use super::refusal::Refusal;
use super::{Authority, Snapshot};
use crate::clock::unix_seconds;
use crate::config::{ACCESS_TOKEN_TTL_MAX, ClientAuthMethod};
use crate::route::{PROFILE_SCOPE, Route, audience};
use crate::seal;
use crate::store::record::{Typed, Versioned};
use crate::store::{Kind, Put};

const REFRESH_PREFIX: &str = "postern_rt_";
const LATER: Refusal = Refusal::unavailable("the client cannot be looked up just now, try again");
const NOT_READY: Refusal = Refusal::unavailable("the gateway is not ready yet, try again");
/// Digests of retired tokens kept to recognise theft.
const RETIRED_MAX: usize = 8;

/// A grant (store record, found by its id).
#[derive(Serialize, Deserialize)]
pub struct Grant {
    pub user: String,
    pub client_id: String,
    pub route: String,
    pub resource: String,
    pub scopes: Vec<String>,
    pub created_at: u64,
    /// How the client authenticates.
    #[serde(default)]
    pub client_auth: ClientAuthMethod,
    /// What the client called itself when the user allowed it, and the digest of what it was then.
    #[serde(default)]
    pub client_name: Option<String>,
    #[serde(default)]
    pub client_digest: String,
    /// What its tokens are bound to besides the resource ([`Route::binding`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<String>,
    /// The identity provider that has decided it, where the user was not asked.
    #[serde(default)]
    pub decided_by: Option<String>,
    /// Digest of the refresh token in force.
    pub(super) current: String,
    pub(super) previous: Option<Replay>,
    pub(super) retired: Vec<String>,
}

impl Typed for Grant {
    const KIND: Kind = Kind::Grant;
}

/// The token before the current one, and what its use was answered.
#[derive(Serialize, Deserialize)]
pub(super) struct Replay {
    digest: String,
    asked_scope: Option<String>,
    answer: Answer,
    until: u64,
}

/// A token response (RFC 6749 §5.1).
#[derive(Clone, Serialize, Deserialize)]
pub struct Answer {
    access_token: String,
    token_type: String,
    expires_in: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    scope: String,
}

/// What a client presents to refresh.
pub struct Renewal<'a> {
    pub client: &'a Authenticated,
    pub refresh_token: &'a str,
    pub scope: Option<&'a str>,
    pub resource: Option<&'a str>,
}

/// Rotates a refresh token (RFC 6749 §6).
pub async fn refresh(
    authority: &Authority,
    snapshot: &Snapshot,
    renewal: &Renewal<'_>,
) -> Result<Answer, Refusal> {
    const INVALID: Refusal = Refusal::invalid_grant("the refresh token is not valid");
    let (id, secret) = renewal
        .refresh_token
        .strip_prefix(REFRESH_PREFIX)
        .and_then(|rest| rest.split_once('.'))
        .ok_or(INVALID)?;
    let presented = seal::digest(secret);
    // A conditional write that loses is decided anew on what the winner wrote.
    for _ in 0..4 {
        let Versioned { value: mut grant, version, .. } =
            authority.records.readable::<Grant>(id).await?.ok_or(INVALID)?;
        if !renewal.client.may_use(&grant.client_id, grant.client_auth) {
            return Err(INVALID);
        }
        check_resource(snapshot, &grant.resource, renewal.resource)?;
        let scopes = narrowed(&grant.scopes, renewal.scope)?;
        let now = authority.clock.now();
        if !same(&grant.current, &presented) {
            if let Some(previous) = grant.previous.filter(|previous| same(&previous.digest, &presented)) {
                if unix_seconds(now) < previous.until && previous.asked_scope.as_deref() == renewal.scope {
                    return Ok(previous.answer);
                }
            } else if !grant.retired.iter().any(|retired| same(retired, &presented)) {
                return Err(INVALID);
            }
            tracing::warn!(target: "audit", event = "refresh_token_reused", user = %grant.user, client = %grant.client_id);
            withdraw(authority, id).await?;
            return Err(INVALID);
        }
        if !authority.admits(snapshot, &grant.user) {
            return Err(Refusal::invalid_grant("the user is no longer known here"));
        }
        if left(snapshot, &grant, now).is_zero() {
            return Err(Refusal::invalid_grant("what the user allowed is over, ask again"));
        }
        // Not for good: a route that was taken away by mistake comes back, and with it what was granted for it.
        let route = snapshot
            .routes
            .by_resource(&grant.resource)
            .ok_or(Refusal::invalid_target("the MCP server is no longer published here"))?;
        let is_another = |client: &Client| client.digest() != grant.client_digest;
        if !route.admits(&grant.user) || route.binding(&grant.user) != grant.binding.as_deref() {
            return Err(Refusal::invalid_grant("what this was granted for has changed, ask the user again"));
        }
        if renewal.client.client.as_ref().is_some_and(is_another) && !grant.client_digest.is_empty() {
            // Allowed for the client as it was; consent is asked anew with the next authorization.
            tracing::info!(target: "audit", event = "client_changed", user = %grant.user, client = %grant.client_id);
        }
        // Some clients only ever re-authorize when a refresh fails, so while the upstream wants the user again it does.
        let scopes = whole(scopes, &grant, route);
        if authority.connector.wants_user(id, &grant.user, route, &scopes).await? {
            return Err(Refusal::invalid_grant("the MCP server asks the user to authorize again"));
        }
        // Of a connection that has outgrown the grant nothing can be used until the user says so.
        if authority.connector.has_outgrown(&grant.user, route, &grant.scopes).await {
            return Err(Refusal::invalid_grant(
                "the user has to let the client use the connection as it is now",
            ));
        }
        let next = fresh_token()?;
        let answer = mint(snapshot, id, &grant, &scopes, &next, now)?;
        if let Some(old) = grant.previous.take() {
            grant.retired.insert(0, old.digest);
            grant.retired.truncate(RETIRED_MAX);
        }
        let until = unix_seconds(now + snapshot.config.oauth_server.refresh_replay_window);
        grant.previous = Some(Replay {
            digest: presented.clone(),
            asked_scope: renewal.scope.map(str::to_owned),
            answer: answer.clone(),
            until,
        });
        grant.current = seal::digest(&next);
        match authority.records.put(id, version, &grant, left(snapshot, &grant, now)).await? {
            Put::Stored => {
                registered::keep(&authority.records, &grant.client_id, now).await;
                return Ok(answer);
            }
            Put::Conflict => {}
        }
    }
    Err(Refusal::unavailable("the grant is being refreshed elsewhere, try again"))
}

/// Revokes the grant a token belongs to (RFC 7009). Unknown tokens and other clients' are left alone, silently (§2.2).
pub async fn revoke(
    authority: &Authority,
    snapshot: &Snapshot,
    client: &Authenticated,
    token: &str,
) -> Result<(), Refusal> {
    let id = match token.strip_prefix(REFRESH_PREFIX).and_then(|rest| rest.split_once('.')) {
        Some((id, secret)) => {
            let Some(Versioned { value: grant, .. }) = authority.records.readable::<Grant>(id).await? else {
                return Ok(());
            };
            let presented = seal::digest(secret);
            let known = same(&grant.current, &presented)
                || grant.previous.as_ref().is_some_and(|previous| same(&previous.digest, &presented));
            if !known || !client.may_use(&grant.client_id, grant.client_auth) {
                return Ok(());
            }
            id.to_owned()
        }
        None => match snapshot.keys.open(token, authority.clock.now()) {
            // Of a client whose document is out of reach nobody knows whether it has to prove anything.
            Ok(token) if token.client() == client.id && client.client.is_none() => return Err(LATER),
            Ok(token) if token.client() == client.id => token.grant().to_owned(),
            Err(OpenError::NotReady) => return Err(NOT_READY),
            _ => return Ok(()),
        },
    };
    tracing::info!(target: "audit", event = "grant_revoked", client = %client.id);
    withdraw(authority, &id).await
}

/// The grant of a refresh token that is good now.
pub(super) async fn of_refresh_token(
    authority: &Authority,
    snapshot: &Snapshot,
    token: &str,
) -> Result<Option<Versioned<Grant>>, Refusal> {
    let Some((id, secret)) = token.strip_prefix(REFRESH_PREFIX).and_then(|rest| rest.split_once('.')) else {
        return Ok(None);
    };
    let found = authority.records.readable::<Grant>(id).await?;
    let presented = seal::digest(secret);
    Ok(found.filter(|found| {
        same(&found.value.current, &presented) && authority.admits(snapshot, &found.value.user)
    }))
}

/// How long a revoked grant has to be remembered: until its last access token has expired for certain, also when the
/// configuration has been given a shorter lifetime since.
pub const REMEMBER_REVOKED: Duration = ACCESS_TOKEN_TTL_MAX.saturating_add(Duration::from_secs(60));

/// Ends a grant for good: refresh tokens at once, access tokens as soon as every instance has heard.
pub(super) async fn withdraw(authority: &Authority, grant: &str) -> Result<(), Refusal> {
    authority.records.tombstone::<Grant>(grant, REMEMBER_REVOKED).await?;
    Ok(())
}

pub(super) fn mint(
    snapshot: &Snapshot,
    id: &str,
    grant: &Grant,
    scopes: &[String],
    secret: &str,
    now: SystemTime,
) -> Result<Answer, Refusal> {
    let claims = Claims {
        audience: &audience(&grant.resource, grant.binding.as_deref()),
        grant: id,
        subject: &grant.user,
        client: &grant.client_id,
        scope: &scopes.join(" "),
        expires_at: now + snapshot.config.oauth_server.access_token_ttl,
    };
    let answer = Answer::bearer(snapshot, &claims, now)?;
    Ok(Answer { refresh_token: Some(format!("{REFRESH_PREFIX}{id}.{secret}")), ..answer })
}

impl Answer {
    /// An access token with these claims.
    pub(super) fn bearer(snapshot: &Snapshot, claims: &Claims<'_>, now: SystemTime) -> Result<Self, Refusal> {
        if !snapshot.keys.is_known() {
            return Err(NOT_READY);
        }
        let sealed = snapshot.keys.seal(claims, now);
        Ok(Self {
            access_token: sealed.map_err(|_| Refusal::server_error("the token could not be made"))?,
            token_type: "Bearer".to_owned(),
            expires_in: announced(claims.expires_at.duration_since(now).unwrap_or_default()),
            refresh_token: None,
            scope: claims.scope.to_owned(),
        })
    }
}

/// Seconds of its life that a client is told of: a little less than there are. Clients count from when the answer arrives,
/// and some send their user through the browser again when a token has ended on the way (Python SDK).
fn announced(lifetime: Duration) -> u64 {
    let margin = (lifetime / 10).clamp(Duration::from_secs(1), Duration::from_secs(10));
    lifetime.saturating_sub(margin).as_secs().max(1)
}

pub(super) fn check_resource(snapshot: &Snapshot, granted: &str, asked: Option<&str>) -> Result<(), Refusal> {
    let means_granted =
        |asked| snapshot.routes.by_resource(asked).is_some_and(|route| route.resource == granted);
    match asked {
        Some(asked) if !means_granted(asked) => {
            Err(Refusal::invalid_target("the grant is for another resource"))
        }
        _ => Ok(()),
    }
}

/// How long the grant lives when it is used now: for one refresh token's time, and in any case until its own end.
pub(super) fn left(snapshot: &Snapshot, grant: &Grant, now: SystemTime) -> Duration {
    let settings = &snapshot.config.oauth_server;
    let end = UNIX_EPOCH + Duration::from_secs(grant.created_at) + settings.grant_ttl;
    settings.refresh_token_ttl.min(end.duration_since(now).unwrap_or_default())
}

/// What a client does without is its own; what it may do at the upstream it has whole or not at all, and none asks for by name.
fn whole(mut scopes: Vec<String>, grant: &Grant, route: &Route) -> Vec<String> {
    let is_ours = |scope: &String| {
        scope == PROFILE_SCOPE || route.scopes.contains(scope) || route.rules.has_scope(scope)
    };
    let theirs = grant.scopes.iter().filter(|scope| !is_ours(scope));
    let missing: Vec<String> = theirs.filter(|scope| !scopes.contains(scope)).cloned().collect();
    scopes.extend(missing);
    scopes
}

/// A refresh may ask for less, never for more (RFC 6749 §6).
pub(super) fn narrowed(granted: &[String], asked: Option<&str>) -> Result<Vec<String>, Refusal> {
    let Some(asked) = asked else {
        return Ok(granted.to_vec());
    };
    let asked: Vec<String> = asked.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect();
    // Blanks alone name nothing: that is no scope (§3.3), and a token without any works nowhere.
    if !asked.is_empty() && asked.iter().all(|scope| granted.contains(scope)) {
        Ok(asked)
    } else {
        Err(Refusal::invalid_scope("scope names nothing, or more than what was granted"))
    }
}

pub(super) fn fresh_token() -> Result<String, Refusal> {
    let token = seal::token().map_err(|_| Refusal::server_error("no randomness"))?;
    Ok(token.expose_secret().to_owned())
}

fn same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}
