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
use super::authorize::Request;
use super::claim::claim;
use super::refusal::Refusal;
use super::{Authority, Snapshot, client};
use crate::config::ACCESS_TOKEN_TTL_MAX;
use crate::seal;
use crate::store::record::{Typed, Versioned};
use crate::store::{Kind, Put};

/// OAuth 2.1 §4.1.2 recommends ten minutes at most; the client is already waiting.
const CODE_TTL: Duration = Duration::from_secs(60);
const CODE_PREFIX: &str = "postern_ac_";
const REFRESH_PREFIX: &str = "postern_rt_";
const NOT_READY: Refusal = Refusal::unavailable("the gateway is not ready yet, try again");
/// Digests of retired tokens kept to recognise theft.
const RETIRED_MAX: usize = 8;

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
    /// The grant it turns into; chosen early, so that a replayed code finds what to revoke.
    pub grant: String,
}

impl Typed for Code {
    const KIND: Kind = Kind::Code;
}

/// A grant (store record, found by its id).
#[derive(Serialize, Deserialize)]
pub struct Grant {
    pub user: String,
    pub client_id: String,
    pub route: String,
    pub resource: String,
    pub scopes: Vec<String>,
    pub created_at: u64,
    /// Digest of the refresh token in force.
    current: String,
    previous: Option<Replay>,
    retired: Vec<String>,
}

impl Typed for Grant {
    const KIND: Kind = Kind::Grant;
}

/// The token before the current one, and what its use was answered.
#[derive(Serialize, Deserialize)]
struct Replay {
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
    refresh_token: String,
    scope: String,
}

/// What a client presents to redeem a code.
pub struct Redemption<'a> {
    pub client_id: &'a str,
    pub code: &'a str,
    pub verifier: &'a str,
    pub redirect_uri: Option<&'a str>,
    pub resource: Option<&'a str>,
}

/// What a client presents to refresh.
pub struct Renewal<'a> {
    pub client_id: &'a str,
    pub refresh_token: &'a str,
    pub scope: Option<&'a str>,
    pub resource: Option<&'a str>,
}

/// Stores a code for what `user` allowed and returns it.
pub async fn issue_code(
    authority: &Authority,
    request: &Request,
    user: &str,
    scopes: Vec<String>,
) -> Result<String, Refusal> {
    let secret = format!("{CODE_PREFIX}{}", fresh_token()?);
    let code = Code {
        client_id: request.client_id.clone(),
        redirect_uri: request.redirect_uri.clone(),
        challenge: request.challenge.clone(),
        route: request.route.clone(),
        resource: request.resource.clone(),
        scopes,
        user: user.to_owned(),
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
    if code.client_id != redemption.client_id
        || redemption.redirect_uri.is_some_and(|uri| uri != code.redirect_uri)
        || !bool::from(verifier_fits)
    {
        return Err(INVALID);
    }
    if !authority.admits(snapshot, &code.user) {
        return Err(INVALID);
    }
    check_resource(snapshot, &code.resource, redemption.resource)?;
    let now = authority.clock.now();
    let secret = fresh_token()?;
    let mut grant = Grant {
        user: code.user,
        client_id: code.client_id,
        route: code.route,
        resource: code.resource,
        scopes: code.scopes,
        created_at: seconds(now),
        current: seal::digest(&secret),
        previous: None,
        retired: Vec::new(),
    };
    let answer = mint(snapshot, &code.grant, &grant, &grant.scopes, &secret, now)?;
    let ttl = snapshot.config.oauth_server.refresh_token_ttl;
    if spent || !claim(authority, &key, &code.grant, &mut grant, ttl).await? {
        // Somebody has the code who should not: what the first use got is withdrawn (RFC 6749 §4.1.2).
        tracing::warn!(target: "audit", event = "code_replayed", user = %grant.user, client = %grant.client_id);
        withdraw(authority, &code.grant).await?;
        return Err(INVALID);
    }
    client::keep(&authority.records, &grant.client_id, now).await;
    tracing::info!(target: "audit", event = "grant", user = %grant.user, client = %grant.client_id, route = %grant.route);
    Ok(answer)
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
        if grant.client_id != renewal.client_id {
            return Err(INVALID);
        }
        check_resource(snapshot, &grant.resource, renewal.resource)?;
        let scopes = narrowed(&grant.scopes, renewal.scope)?;
        let now = authority.clock.now();
        if !same(&grant.current, &presented) {
            if let Some(previous) = grant.previous.filter(|previous| same(&previous.digest, &presented)) {
                if seconds(now) < previous.until && previous.asked_scope.as_deref() == renewal.scope {
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
        // Not for good: a route that was taken away by mistake comes back, and with it what was granted for it.
        let route = snapshot
            .routes
            .by_resource(&grant.resource)
            .ok_or(Refusal::invalid_target("the MCP server is no longer published here"))?;
        // Some clients only ever re-authorize when a refresh fails, so while the upstream wants the user again it does.
        if authority.connector.wants_user(id, &grant.user, route).await? {
            return Err(Refusal::invalid_grant("the MCP server asks the user to authorize again"));
        }
        let next = fresh_token()?;
        let answer = mint(snapshot, id, &grant, &scopes, &next, now)?;
        if let Some(old) = grant.previous.take() {
            grant.retired.insert(0, old.digest);
            grant.retired.truncate(RETIRED_MAX);
        }
        let until = seconds(now + snapshot.config.oauth_server.refresh_replay_window);
        grant.previous = Some(Replay {
            digest: presented.clone(),
            asked_scope: renewal.scope.map(str::to_owned),
            answer: answer.clone(),
            until,
        });
        grant.current = seal::digest(&next);
        match authority
            .records
            .put(id, version, &grant, snapshot.config.oauth_server.refresh_token_ttl)
            .await?
        {
            Put::Stored => {
                client::keep(&authority.records, &grant.client_id, now).await;
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
    client_id: &str,
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
            if !known || grant.client_id != client_id {
                return Ok(());
            }
            id.to_owned()
        }
        None => match snapshot.keys.open(token, authority.clock.now()) {
            Ok(token) if token.client() == client_id => token.grant().to_owned(),
            Err(OpenError::NotReady) => return Err(NOT_READY),
            _ => return Ok(()),
        },
    };
    tracing::info!(target: "audit", event = "grant_revoked", client = %client_id);
    withdraw(authority, &id).await
}

/// How long a revoked grant has to be remembered: until its last access token has expired for certain, also when the
/// configuration has been given a shorter lifetime since.
pub const REMEMBER_REVOKED: Duration = ACCESS_TOKEN_TTL_MAX.saturating_add(Duration::from_secs(60));

/// Ends a grant for good: refresh tokens at once, access tokens as soon as every instance has heard.
async fn withdraw(authority: &Authority, grant: &str) -> Result<(), Refusal> {
    authority.records.tombstone::<Grant>(grant, REMEMBER_REVOKED).await?;
    Ok(())
}

fn mint(
    snapshot: &Snapshot,
    id: &str,
    grant: &Grant,
    scopes: &[String],
    secret: &str,
    now: SystemTime,
) -> Result<Answer, Refusal> {
    let lifetime = snapshot.config.oauth_server.access_token_ttl;
    let scope = scopes.join(" ");
    let claims = Claims {
        audience: &grant.resource,
        grant: id,
        subject: &grant.user,
        client: &grant.client_id,
        scope: &scope,
        expires_at: now + lifetime,
    };
    if !snapshot.keys.is_known() {
        return Err(NOT_READY);
    }
    let access_token =
        snapshot.keys.seal(&claims, now).map_err(|_| Refusal::server_error("the token could not be made"))?;
    let refresh_token = format!("{REFRESH_PREFIX}{id}.{secret}");
    Ok(Answer {
        access_token,
        token_type: "Bearer".to_owned(),
        expires_in: lifetime.as_secs(),
        refresh_token,
        scope,
    })
}

fn check_resource(snapshot: &Snapshot, granted: &str, asked: Option<&str>) -> Result<(), Refusal> {
    let means_granted =
        |asked| snapshot.routes.by_resource(asked).is_some_and(|route| route.resource == granted);
    match asked {
        Some(asked) if !means_granted(asked) => {
            Err(Refusal::invalid_target("the grant is for another resource"))
        }
        _ => Ok(()),
    }
}

/// A refresh may ask for less, never for more (RFC 6749 §6).
fn narrowed(granted: &[String], asked: Option<&str>) -> Result<Vec<String>, Refusal> {
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

fn fresh_token() -> Result<String, Refusal> {
    let token = seal::token().map_err(|_| Refusal::server_error("no randomness"))?;
    Ok(token.expose_secret().to_owned())
}

fn same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
