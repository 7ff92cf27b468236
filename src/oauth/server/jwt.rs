//! Access tokens as signed JWTs (RFC 9068), for resource servers other than Postern: they verify by our key set. Here a
//! signature is verified once and remembered by the token's digest until it expires; whether the token still counts is
//! asked with every request all the same.
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use quick_cache::sync::Cache;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::access_token::{Claims, OpenError, Opened};
use crate::clock::unix_seconds;
use crate::jose::sign::SigningKey;
use crate::jose::{Expected, JoseError, Keys};
use crate::seal;

/// RFC 9068 §2.1.
const TYPE: &str = "at+jwt";
/// Verified tokens remembered.
const VERIFIED: usize = 50_000;

/// The keys, and what they have verified.
pub struct Jwts {
    issuer: String,
    /// Newest first; one signs from its moment on, all of them verify.
    signing: Vec<(SigningKey, SystemTime)>,
    public: Keys,
    verified: Cache<[u8; 32], Arc<Opened>>,
}

/// RFC 9068 §2.2, and the grant, by which we know what was taken back.
#[derive(Serialize)]
struct Payload<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: Value,
    client_id: &'a str,
    scope: &'a str,
    iat: u64,
    exp: u64,
    jti: String,
    grant: &'a str,
}

#[derive(Deserialize)]
struct Ours {
    client_id: String,
    scope: String,
    grant: String,
}

impl Jwts {
    /// `signing`: newest first, each with the moment from which on it signs.
    pub fn new(issuer: &str, signing: Vec<(SigningKey, SystemTime)>) -> Option<Self> {
        let public = Keys::parse(&serde_json::to_vec(&json!({"keys": published(&signing)})).ok()?)?;
        let is_usable = !signing.is_empty();
        let verified = Cache::new(VERIFIED);
        is_usable.then(|| Self { issuer: issuer.to_owned(), signing, public, verified })
    }

    /// The key set (RFC 7517 §5).
    pub fn published(&self) -> Vec<Jwk> {
        published(&self.signing)
    }

    /// Makes the token string.
    pub fn sign(&self, claims: &Claims<'_>, now: SystemTime) -> Option<String> {
        let begun = self.signing.iter().find(|(_, from)| *from <= now).or(self.signing.last());
        let payload = Payload {
            iss: &self.issuer,
            sub: claims.subject,
            aud: match claims.audience.contains(' ') {
                true => claims.audience.split(' ').collect(),
                false => Value::from(claims.audience),
            },
            client_id: claims.client,
            scope: claims.scope,
            iat: unix_seconds(now),
            exp: unix_seconds(claims.expires_at),
            jti: seal::name().ok()?,
            grant: claims.grant,
        };
        begun?.0.sign(TYPE, &payload)
    }

    /// Verifies `token`, or remembers that it has been.
    pub fn open(&self, token: &str, now: SystemTime) -> Result<Arc<Opened>, OpenError> {
        let key: [u8; 32] =
            digest(&SHA256, token.as_bytes()).as_ref().try_into().map_err(|_| OpenError::Foreign)?;
        let opened = match self.verified.get(&key) {
            Some(opened) => opened,
            None => {
                let opened = Arc::new(self.verify(token, now)?);
                self.verified.insert(key, Arc::clone(&opened));
                opened
            }
        };
        // To the second here, whose clock it was made by; others allow for a skew.
        if opened.expires_at() <= now {
            self.verified.remove(&key);
            return Err(OpenError::Expired);
        }
        Ok(opened)
    }

    fn verify(&self, token: &str, now: SystemTime) -> Result<Opened, OpenError> {
        // Which route it is for is asked where the route is known.
        let expected = Expected { issuer: &self.issuer, audiences: None, types: &[TYPE] };
        let claims = self.public.verify(token, &expected, now).map_err(|error| match error {
            JoseError::Time => OpenError::Expired,
            _ => OpenError::Foreign,
        })?;
        let rest = serde_json::Value::Object(claims.rest.clone());
        let ours: Ours = serde_json::from_value(rest).map_err(|_| OpenError::Foreign)?;
        let audience = claims.audiences().collect::<Vec<_>>().join(" ");
        Some(()).filter(|()| !audience.is_empty()).ok_or(OpenError::Foreign)?;
        let expires_at = UNIX_EPOCH + Duration::from_secs(claims.exp);
        let fields = [audience.as_str(), &ours.grant, &claims.sub, &ours.client_id, &ours.scope];
        Opened::of(expires_at, fields.map(str::as_bytes)).ok_or(OpenError::Foreign)
    }
}

fn published(signing: &[(SigningKey, SystemTime)]) -> Vec<Jwk> {
    signing.iter().map(|(key, _)| key.public().clone()).collect()
}
