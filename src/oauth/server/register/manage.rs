//! `/oauth/register/{client_id}` (RFC 7592): a client reads, changes and deletes its own registration, with the token it
//! was given for that and for nothing else.
use std::time::SystemTime;

use subtle::ConstantTimeEq;

use super::{Answer, Asked};
use crate::oauth::server::client::registered::{Registered, TTL};
use crate::oauth::server::grant::REMEMBER_REVOKED;
use crate::oauth::server::refusal::Refusal;
use crate::oauth::server::remembered;
use crate::oauth::server::{Authority, Snapshot};
use crate::seal;
use crate::store::Put;
use crate::store::record::Versioned;

/// Unknown client and wrong token look alike (RFC 7592 §2.1).
const REFUSED: Refusal = Refusal::invalid_token("the registration access token is not valid for this client");

/// What a client shows: its id, from the path, and the bearer token.
pub struct Presented<'a> {
    pub client_id: &'a str,
    pub token: Option<&'a str>,
}

/// RFC 7592 §2.1.
pub async fn read(
    authority: &Authority,
    snapshot: &Snapshot,
    shown: &Presented<'_>,
) -> Result<Answer, Refusal> {
    let (known, token) = proven(authority, shown).await?;
    Ok(Answer::of(shown.client_id.to_owned(), known.value).managed(snapshot, token))
}

/// RFC 7592 §2.2: the metadata are replaced as a whole; id, secret and how the client authenticates stay.
pub async fn change(
    authority: &Authority,
    snapshot: &Snapshot,
    shown: &Presented<'_>,
    body: &[u8],
    now: SystemTime,
) -> Result<Answer, Refusal> {
    let (known, token) = proven(authority, shown).await?;
    let asked = Asked::parse(body)?;
    if asked.client_id.as_deref() != Some(shown.client_id) {
        return Err(Refusal::invalid_client_metadata("client_id must be the client's own"));
    }
    let digest = asked.client_secret.as_deref().map(seal::digest);
    if digest.is_some() && digest != known.value.secret {
        return Err(Refusal::invalid_client_metadata("client_secret can be neither chosen nor changed"));
    }
    let new = asked.into_client(snapshot)?;
    if new.auth_method != known.value.auth_method {
        let what = "token_endpoint_auth_method cannot be changed: register another client";
        return Err(Refusal::invalid_client_metadata(what));
    }
    let client = Registered {
        issued_at: known.value.issued_at,
        secret: known.value.secret,
        management: known.value.management,
        ..new
    };
    let ttl = known.expires_at.duration_since(now).unwrap_or_default().min(TTL);
    match authority.records.put(shown.client_id, known.version, &client, ttl).await? {
        Put::Stored => Ok(Answer::of(shown.client_id.to_owned(), client).managed(snapshot, token)),
        Put::Conflict => Err(Refusal::unavailable("the registration is being changed elsewhere, try again")),
    }
}

/// RFC 7592 §2.3: gone at once, with every token that was issued to it.
pub async fn delete(authority: &Authority, shown: &Presented<'_>) -> Result<(), Refusal> {
    proven(authority, shown).await?;
    authority.records.tombstone::<Registered>(shown.client_id, REMEMBER_REVOKED).await?;
    remembered::end_grants(authority, |granted| granted.client == shown.client_id).await?;
    tracing::info!(target: "audit", event = "client_deleted", client = %shown.client_id);
    Ok(())
}

async fn proven(
    authority: &Authority,
    shown: &Presented<'_>,
) -> Result<(Versioned<Registered>, String), Refusal> {
    let token = shown.token.ok_or(REFUSED)?;
    let known = authority.records.readable::<Registered>(shown.client_id).await?.ok_or(REFUSED)?;
    let expected = known.value.management.as_deref().ok_or(REFUSED)?;
    match bool::from(seal::digest(token).as_bytes().ct_eq(expected.as_bytes())) {
        true => Ok((known, token.to_owned())),
        false => Err(REFUSED),
    }
}
