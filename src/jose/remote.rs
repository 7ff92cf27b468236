//! Key sets that lie at a URL: fetched when first needed, kept for a while, fetched again when a token names a key that
//! is not among them, and good for as long as their owner cannot be reached.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dashmap::DashMap;

use super::{Claims, Expected, JoseError, Keys};
use crate::outbound::kept::Kept;
use crate::outbound::{AddressPolicy, Limits, Outbound, Request};

const TIME: Duration = Duration::from_secs(5);
const MAX_LEN: usize = 256 * 1024;
const SETS: usize = 512;

/// Fetches and remembers key sets.
pub struct KeySets {
    outbound: Outbound,
    sets: Kept<Keys>,
    /// Where they lie and by which policy, by name.
    places: DashMap<String, (String, AddressPolicy)>,
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    #[error(transparent)]
    Token(#[from] JoseError),
    /// Nothing is known against the token.
    #[error("the keys cannot be fetched now")]
    Unavailable,
}

impl KeySets {
    pub fn new(outbound: Outbound) -> Self {
        Self { outbound, sets: Kept::new(SETS), places: DashMap::new() }
    }

    /// As [`Keys::verify`], with the keys at `url`.
    pub async fn verify(
        &self,
        url: &str,
        policy: &AddressPolicy,
        token: &str,
        expected: &Expected<'_>,
        now: SystemTime,
    ) -> Result<Claims, RemoteError> {
        let keys = self.keys(url, policy, false, now).await.ok_or(RemoteError::Unavailable)?;
        match keys.verify(token, expected, now) {
            // They may have been changed since.
            Err(JoseError::UnknownKey) => {
                let keys = self.keys(url, policy, true, now).await.ok_or(RemoteError::Unavailable)?;
                Ok(keys.verify(token, expected, now)?)
            }
            verified => Ok(verified?),
        }
    }

    async fn keys(
        &self,
        url: &str,
        policy: &AddressPolicy,
        newer: bool,
        now: SystemTime,
    ) -> Option<Arc<Keys>> {
        // Whoever may not look there must not stand in the way of whoever may.
        let name = format!("{} {url}", *policy == AddressPolicy::public());
        if self.places.len() < SETS && !self.places.contains_key(&name) {
            self.places.insert(name.clone(), (url.to_owned(), policy.clone()));
        }
        self.sets.get(&name, newer, now, self.fetch(url, policy)).await
    }

    /// Fetches again what is used and about to be old.
    pub async fn renew(&self, now: SystemTime) {
        let places: Vec<_> =
            self.places.iter().map(|place| (place.key().clone(), place.value().clone())).collect();
        for (name, (url, policy)) in places {
            self.sets.renew(&name, now, self.fetch(&url, &policy)).await;
        }
    }

    async fn fetch(&self, url: &str, policy: &AddressPolicy) -> Option<Keys> {
        let limits = Limits { total: TIME, body: MAX_LEN, ..Limits::default() };
        let fetched = match self.outbound.send(Request::get(url).limits(limits), policy).await {
            Ok(response) if response.status == http::StatusCode::OK => Keys::parse(&response.body),
            Ok(response) => {
                tracing::warn!(target: "postern::oauth", status = response.status.as_u16(), "a key set is not there");
                return None;
            }
            Err(error) => {
                tracing::warn!(target: "postern::oauth", %error, "a key set cannot be fetched");
                return None;
            }
        };
        if fetched.is_none() {
            tracing::warn!(target: "postern::oauth", "a key set is not a JWK set");
        }
        fetched
    }
}
