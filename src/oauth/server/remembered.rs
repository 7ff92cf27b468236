//! Consents that are remembered, so that a user is not asked the same thing twice: for exactly this client as it was then,
//! this redirect URI, this resource, and no scope more.
//!
//! Only where nobody else can receive the answer. A program on the user's own computer can pass for any other there
//! (RFC 8252 §8.6, OAuth 2.1 §7.3.1), so for loopback redirect URIs the user is asked each time.
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::authorize::Request;
use super::code::Code;
use super::grant::{Grant, REMEMBER_REVOKED};
use super::{Authority, redirect};
use crate::clock::unix_seconds;
use crate::seal;
use crate::store::Kind;
use crate::store::record::{RecordError, Typed, Versioned};

/// A consent that nobody comes back to is forgotten.
const TTL: Duration = Duration::from_secs(400 * 24 * 3600);

/// What a user said yes to (store record).
#[derive(Serialize, Deserialize)]
pub struct Consent {
    pub user: String,
    pub client_id: String,
    /// As it called itself then; unverified.
    pub client_name: Option<String>,
    /// Digest of what the client was then.
    client_digest: String,
    pub redirect_uri: String,
    pub route: String,
    pub resource: String,
    pub scopes: Vec<String>,
    /// Seconds since the epoch.
    pub given_at: u64,
}

impl Typed for Consent {
    const KIND: Kind = Kind::Consent;
}

fn key(user: &str, request: &Request) -> String {
    let parts = [user, &request.client_id, &request.redirect_uri, &request.resource];
    seal::digest(&serde_json::json!(parts).to_string())
}

/// Whether this very question has been answered with yes before.
pub async fn is_remembered(
    authority: &Authority,
    request: &Request,
    user: &str,
    scopes: &[String],
) -> Result<bool, RecordError> {
    if request.ask || redirect::is_loopback(&request.redirect_uri) {
        return Ok(false);
    }
    let known = authority.records.readable::<Consent>(&key(user, request)).await?;
    Ok(known.is_some_and(|known| {
        known.value.client_digest == request.client_digest
            && scopes.iter().all(|scope| known.value.scopes.contains(scope))
    }))
}

/// Remembers a yes. That it cannot be remembered costs one more question.
pub async fn remember(authority: &Authority, request: &Request, user: &str, scopes: &[String]) {
    if redirect::is_loopback(&request.redirect_uri) {
        return;
    }
    let (key, now) = (key(user, request), authority.clock.now());
    let consent = Consent {
        user: user.to_owned(),
        client_id: request.client_id.clone(),
        client_name: request.client_name.clone(),
        client_digest: request.client_digest.clone(),
        redirect_uri: request.redirect_uri.clone(),
        route: request.route.clone(),
        resource: request.resource.clone(),
        scopes: scopes.to_vec(),
        given_at: unix_seconds(now),
    };
    let written = async {
        let version = authority.records.readable::<Consent>(&key).await?.map_or(0, |known| known.version);
        authority.records.put(&key, version, &consent, TTL).await
    };
    if let Err(error) = written.await {
        tracing::warn!(target: "postern::oauth", %error, "a consent is not remembered");
    }
}

/// What a user allowed one application at one server.
pub struct Allowed {
    pub client_id: String,
    pub client_name: Option<String>,
    pub route: String,
    pub scopes: Vec<String>,
    pub since: SystemTime,
    /// The identity provider that has decided it, where the user was not asked.
    pub decided_by: Option<String>,
}

/// Everything that this user has allowed, latest first: remembered consents and grants that live, one entry per
/// application and server.
pub async fn of_user(authority: &Authority, user: &str) -> Result<Vec<Allowed>, RecordError> {
    let mut allowed: Vec<Allowed> = Vec::new();
    let mut add = |found: Allowed| {
        let is_same = |known: &&mut Allowed| known.client_id == found.client_id && known.route == found.route;
        match allowed.iter_mut().find(is_same) {
            Some(known) => {
                known.since = known.since.max(found.since);
                known.client_name = known.client_name.take().or(found.client_name);
                known.decided_by = known.decided_by.take().or(found.decided_by);
                let new: Vec<String> =
                    found.scopes.into_iter().filter(|scope| !known.scopes.contains(scope)).collect();
                known.scopes.extend(new);
            }
            None => allowed.push(found),
        }
    };
    let since = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    for (_, found) in authority.records.scan::<Consent>().await? {
        let consent = found.value;
        if consent.user == user {
            add(Allowed {
                client_id: consent.client_id,
                client_name: consent.client_name,
                route: consent.route,
                scopes: consent.scopes,
                since: since(consent.given_at),
                decided_by: None,
            });
        }
    }
    for (_, found) in authority.records.scan::<Grant>().await? {
        let grant = found.value;
        if grant.user == user {
            add(Allowed {
                client_id: grant.client_id,
                client_name: grant.client_name,
                route: grant.route,
                scopes: grant.scopes,
                since: since(grant.created_at),
                decided_by: grant.decided_by,
            });
        }
    }
    allowed.sort_by_key(|entry| std::cmp::Reverse(entry.since));
    Ok(allowed)
}

/// Takes back what a user allowed this application at this server: what it got ends at once everywhere, and it has to ask
/// again.
pub async fn withdraw(
    authority: &Authority,
    user: &str,
    client_id: &str,
    route: &str,
) -> Result<(), RecordError> {
    // The grants last: while they are ended nobody gets a new one by a consent that still stands.
    for (key, found) in authority.records.scan::<Consent>().await? {
        let consent = &found.value;
        if consent.user == user && consent.client_id == client_id && consent.route == route {
            authority.records.remove::<Consent>(&key).await?;
        }
    }
    let is_meant = |what: &Granted<'_>| what.user == user && what.client == client_id && what.route == route;
    end_grants(authority, is_meant).await?;
    tracing::info!(target: "audit", event = "consent_withdrawn", user, client = client_id, route);
    Ok(())
}

/// What a grant, or a code that becomes one, is about.
pub struct Granted<'a> {
    pub user: &'a str,
    pub client: &'a str,
    pub route: &'a str,
}

/// Ends every grant that is such, and those that codes under way would become.
pub async fn end_grants(
    authority: &Authority,
    is_meant: impl Fn(&Granted<'_>) -> bool,
) -> Result<(), RecordError> {
    let mut ended = Vec::new();
    for (_, Versioned { value: code, .. }) in authority.records.scan::<Code>().await? {
        if is_meant(&Granted { user: &code.user, client: &code.client_id, route: &code.route }) {
            ended.push(code.grant);
        }
    }
    for (id, Versioned { value: grant, .. }) in authority.records.scan::<Grant>().await? {
        if is_meant(&Granted { user: &grant.user, client: &grant.client_id, route: &grant.route }) {
            tracing::info!(target: "audit", event = "grant_revoked", user = %grant.user, client = %grant.client_id);
            ended.push(id);
        }
    }
    for id in ended {
        authority.records.tombstone::<Grant>(&id, REMEMBER_REVOKED).await?;
    }
    Ok(())
}
