//! The typed layer over the store: records go in as values and come out as values, sealed in between.
//!
//! Each record type belongs to the stage that makes it and says its [`Kind`]; here they are turned
//! into JSON, sealed for exactly their kind, key and version, and back. What does not open is never
//! treated as absent: that would let a damaged or swapped record start a new life.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::journal::{Entry, Journal, Prepared};
use super::{Attempt, Claim, Committed, Connection, Kind, Put, Store, StoreError, Stored, Taken};
use crate::seal::{self, SealError, Sealer};

/// A type that is stored under one kind.
pub trait Typed: Serialize + DeserializeOwned + Send + Sync {
    /// The kind its records have.
    const KIND: Kind;
}

/// Why a typed operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RecordError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record is there but does not open: lost key, damage or a swap. Already logged.
    #[error("stored record cannot be read")]
    Unreadable,
    /// The value could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// A value with what the store knows about it.
#[derive(Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// Its version, to be given to [`Records::put`] as the expected one.
    pub version: u64,
    /// Whether it has been taken.
    pub spent: bool,
    /// From this moment on it does not exist.
    pub expires_at: SystemTime,
}

/// How a [`Records::take`] ended.
#[derive(Clone)]
pub enum Take<T> {
    /// The one time it is handed out.
    Fresh(Versioned<T>),
    /// It was taken before: a replay.
    Spent(Versioned<T>),
    /// Never there, expired, removed or a tombstone.
    Absent,
}

/// What an upstream authorization server gave for one user. Never printed.
#[derive(Clone, Serialize, Deserialize)]
pub struct Tokens {
    /// Injected into requests.
    #[serde(serialize_with = "expose")]
    pub access_token: SecretString,
    /// Redeemed for the next access token, where there is one.
    #[serde(serialize_with = "expose_option")]
    pub refresh_token: Option<SecretString>,
    /// What an identity provider says of the user besides (OpenID Connect Core §2).
    #[serde(default)]
    pub id_token: Option<IdToken>,
    /// When the access token ends, as far as we were told.
    pub expires_at: Option<SystemTime>,
    /// When the tokens were received.
    pub obtained_at: SystemTime,
    /// When the user connected; a refresh changes nothing about it. `None`: before it was written down.
    #[serde(default)]
    pub connected_at: Option<SystemTime>,
    /// What the upstream granted.
    pub scopes: Vec<String>,
    /// What we asked for.
    pub requested_scopes: Vec<String>,
    /// The authorization server, byte for byte.
    pub issuer: String,
    /// The upstream's resource identifier, byte for byte as it spelled it. An identity provider's tokens have none.
    pub resource: Option<String>,
    /// Where the refresh token goes.
    pub token_endpoint: String,
    /// Where tokens are ended (RFC 7009).
    #[serde(default)]
    pub revocation_endpoint: Option<String>,
    /// Key of the [`Kind::Registration`] record that the tokens were issued to.
    pub registration: String,
    /// Whose they are, and at which route: the record's key is a digest of both.
    pub user: String,
    pub route: String,
    /// Who the user is at the identity provider that gave them: issuer and subject. A user may have signed in elsewhere.
    #[serde(default)]
    pub account: Option<String>,
    /// Whether the last refresh brought another refresh token; `None` before the first.
    #[serde(default)]
    pub rotates: Option<bool>,
}

/// An ID token, which ends at a time of its own. Never printed.
#[derive(Clone, Serialize, Deserialize)]
pub struct IdToken {
    #[serde(serialize_with = "expose")]
    pub token: SecretString,
    pub obtained_at: SystemTime,
    pub expires_at: SystemTime,
}

impl IdToken {
    /// `exp` as in the token: in seconds since 1970.
    pub fn new(token: SecretString, exp: u64, obtained_at: SystemTime) -> Self {
        let expires_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp)).unwrap_or(obtained_at);
        Self { token, obtained_at, expires_at }
    }
}

/// Typed access to a store. Cheap to clone.
#[derive(Clone)]
pub struct Records {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    journal: Journal,
}

impl Records {
    /// Records in `store`, sealed by `sealer`.
    pub fn new(store: Arc<dyn Store>, sealer: Arc<Sealer>) -> Records {
        Records { store, sealer, journal: Journal::default() }
    }

    /// With a journal beside, for a store that others share.
    pub fn with_journal(self, journal: Journal) -> Records {
        Records { journal, ..self }
    }

    /// The store beneath, for the operations that need no type.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What seals and opens the values.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The record, spent or not.
    pub async fn get<T: Typed>(&self, key: &str) -> Result<Option<Versioned<T>>, RecordError> {
        let Some(stored) = self.store.get(T::KIND, key).await? else {
            return Ok(None);
        };
        self.reseal_outdated(T::KIND, key, key, stored.version, &stored.value).await;
        self.open(key, stored).map(Some)
    }

    /// As [`Records::get`], for what is worth nothing to anybody who cannot read it: a lost key makes its owner sign in
    /// again, and never looks like an outage that passes.
    pub async fn readable<T: Typed>(&self, key: &str) -> Result<Option<Versioned<T>>, RecordError> {
        match self.get(key).await {
            Err(RecordError::Unreadable) => Ok(None),
            found => found,
        }
    }

    /// Writes `value` when the present version is `expected`; 0 means that the key must be absent.
    pub async fn put<T: Typed>(
        &self,
        key: &str,
        expected: u64,
        value: &T,
        ttl: Duration,
    ) -> Result<Put, RecordError> {
        let plain = encode(value)?;
        let sealed = self.sealer.seal(T::KIND.name(), key, expected.saturating_add(1), &plain)?;
        Ok(self.store.put(T::KIND, key, expected, sealed, ttl).await?)
    }

    /// Hands the record out once and leaves it marked as spent.
    pub async fn take<T: Typed>(&self, key: &str) -> Result<Take<T>, RecordError> {
        Ok(match self.store.take(T::KIND, key).await? {
            Taken::Fresh(stored) => Take::Fresh(self.open(key, stored)?),
            Taken::Spent(stored) => Take::Spent(self.open(key, stored)?),
            Taken::Absent => Take::Absent,
        })
    }

    /// Deletes the record.
    pub async fn remove<T: Typed>(&self, key: &str) -> Result<(), RecordError> {
        Ok(self.store.remove(T::KIND, key).await?)
    }

    /// Deletes the record and refuses the key for `ttl`.
    pub async fn tombstone<T: Typed>(&self, key: &str, ttl: Duration) -> Result<(), RecordError> {
        self.bury(T::KIND, key, ttl).await
    }

    /// Ends a connection for good: nothing that is still under way brings it back.
    pub async fn disconnect(&self, key: &str, ttl: Duration) -> Result<(), RecordError> {
        self.bury(Kind::Connection, key, ttl).await
    }

    async fn bury(&self, kind: Kind, key: &str, ttl: Duration) -> Result<(), RecordError> {
        let tombstone = self.store.tombstone(kind, key, ttl).await?;
        self.journal
            .note(Entry::Tombstone { kind: kind.name().to_owned(), key: key.to_owned(), tombstone, ttl })
            .await;
        Ok(())
    }

    /// All records of the type. What cannot be read is logged and left out.
    pub async fn scan<T: Typed>(&self) -> Result<Vec<(String, Versioned<T>)>, RecordError> {
        let rows = self.store.scan(T::KIND).await?;
        Ok(rows
            .into_iter()
            .filter_map(|(key, stored)| {
                let record = self.open(&key, stored).ok()?;
                Some((key, record))
            })
            .collect())
    }

    /// The connection and its tokens.
    pub async fn connection(&self, key: &str) -> Result<Option<(Connection, Tokens)>, RecordError> {
        match self.store.connection(key).await? {
            Some(connection) => {
                let tokens = self.tokens(key, &connection)?;
                let (bound, generation) = (bound_key(key, &connection.incarnation), connection.generation);
                self.reseal_outdated(Kind::Connection, key, &bound, generation, &connection.sealed).await;
                Ok(Some((connection, tokens)))
            }
            None => Ok(None),
        }
    }

    /// The tokens inside a connection, such as one that an acquisition returned.
    pub fn tokens(&self, key: &str, connection: &Connection) -> Result<Tokens, RecordError> {
        let bound = bound_key(key, &connection.incarnation);
        self.open_value(Kind::Connection, &bound, connection.generation, &connection.sealed)
    }

    /// Stores what a user has just authorized, under a new incarnation, which is returned.
    pub async fn connect(&self, key: &str, tokens: &Tokens, ttl: Duration) -> Result<String, RecordError> {
        let incarnation = seal::name()?;
        self.connect_as(key, &incarnation, tokens, ttl).await?;
        Ok(incarnation)
    }

    /// As [`Records::connect`], under a name that was made for it.
    pub async fn connect_as(
        &self,
        key: &str,
        incarnation: &str,
        tokens: &Tokens,
        ttl: Duration,
    ) -> Result<(), RecordError> {
        let sealed = self.seal_tokens(key, incarnation, 1, tokens)?;
        Ok(self.store.connect(key, incarnation, sealed, ttl).await?)
    }

    /// Seals refreshed tokens for a commit and writes them into the journal of this instance, so that not even a crash
    /// loses them. `acquired` is the connection that made the caller the owner.
    pub async fn prepare(
        &self,
        key: &str,
        acquired: &Connection,
        attempt: &Attempt,
        tokens: &Tokens,
        ttl: Duration,
    ) -> Result<Prepared, RecordError> {
        let incarnation = acquired.incarnation.clone();
        let sealed = self.seal_tokens(key, &incarnation, acquired.generation.saturating_add(1), tokens)?;
        let claim = Claim {
            incarnation,
            generation: acquired.generation,
            attempt_id: attempt.id.clone(),
            fence: attempt.fence,
        };
        let prepared = Prepared { key: key.to_owned(), claim, sealed, ttl };
        self.journal.note(Entry::Commit(prepared.clone())).await;
        Ok(prepared)
    }

    /// Stores what was prepared. May be repeated after an error.
    pub async fn commit(&self, prepared: &Prepared) -> Result<Committed, RecordError> {
        let Prepared { key, claim, sealed, ttl } = prepared;
        Ok(self.store.commit(key, claim, sealed.clone(), *ttl).await?)
    }

    /// Whether a failover has taken newer tokens back, which this instance has in its journal.
    pub fn is_rolled_back(&self, key: &str, connection: &Connection) -> bool {
        let newest = self.journal.newest(key, &connection.incarnation);
        newest.is_some_and(|newest| newest > connection.generation)
    }

    /// Says again what this instance has written of late, in case that a crash or a failover has lost it.
    pub async fn reassert(&self) -> Result<(), RecordError> {
        for entry in self.journal.entries() {
            match entry {
                Entry::Commit(prepared) => {
                    let committed = self.commit(&prepared).await?;
                    tracing::debug!(target: "postern::refresh", ?committed, "commit asserted again");
                }
                Entry::Tombstone { kind, key, tombstone, ttl } => {
                    if let Some(kind) = Kind::ALL.into_iter().find(|known| known.name() == kind) {
                        self.store.bury(kind, &key, &tombstone, ttl).await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn seal_tokens(
        &self,
        key: &str,
        incarnation: &str,
        generation: u64,
        tokens: &Tokens,
    ) -> Result<Vec<u8>, RecordError> {
        let plain = encode(tokens)?;
        let bound = bound_key(key, incarnation);
        Ok(self.sealer.seal(Kind::Connection.name(), &bound, generation, &plain)?)
    }

    fn open<T: Typed>(&self, key: &str, stored: Stored) -> Result<Versioned<T>, RecordError> {
        let value = self.open_value(T::KIND, key, stored.version, &stored.value)?;
        Ok(Versioned { value, version: stored.version, spent: stored.spent, expires_at: stored.expires_at })
    }

    fn open_value<T: DeserializeOwned>(
        &self,
        kind: Kind,
        key: &str,
        version: u64,
        sealed: &[u8],
    ) -> Result<T, RecordError> {
        let unreadable = |reason: &str| {
            let key = seal::digest(key);
            tracing::error!(kind = kind.name(), key_sha256 = %key, version, reason, "stored record cannot be read");
            RecordError::Unreadable
        };
        let plain = self
            .sealer
            .open(kind.name(), key, version, sealed)
            .map_err(|error| unreadable(&error.to_string()))?;
        // Looked at once for whether it is text, not at each string of it. What a JSON error says may quote the value, so it is not kept.
        let read = str::from_utf8(&plain).ok().and_then(|text| serde_json::from_str(text).ok());
        read.ok_or_else(|| unreadable("not the fields expected of this kind"))
    }
}

/// What a connection's tokens are sealed for: the key and who authorized when.
pub(super) fn bound_key(key: &str, incarnation: &str) -> String {
    format!("{key}/{incarnation}")
}

fn encode<T: Serialize>(value: &T) -> Result<Zeroizing<Vec<u8>>, RecordError> {
    serde_json::to_vec(value).map(Zeroizing::new).map_err(|_| RecordError::Seal(SealError::Cipher))
}

pub(crate) fn expose<S: serde::Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

pub(crate) fn expose_option<S: serde::Serializer>(
    secret: &Option<SecretString>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => serializer.serialize_some(secret.expose_secret()),
        None => serializer.serialize_none(),
    }
}
