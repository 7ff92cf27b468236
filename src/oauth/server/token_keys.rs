//! The keys of access tokens as they are kept: sealed in the store, which all instances read, and sealed once more in
//! each `data_dir`, so that a store that has lost everything gets them back and nobody has to sign in again for it.
//!
//! A new key opens tokens at once and seals them only after [`SETTLING`], when every instance has heard of it.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::access_token::Keys;
use super::jwt::Jwts;
use crate::clock::unix_seconds;
use crate::config::{ACCESS_TOKEN_TTL_MAX, AccessTokenFormat, Config};
use crate::jose::sign::{self, SigningKey};
use crate::seal::{self, SealError};
use crate::store::record::{RecordError, Records, Typed};
use crate::store::{FOREVER, Kind, Put};

/// A set of keys: the record's key, the name of the copy, and how one is made.
struct Set {
    name: &'static str,
    copy: &'static str,
    make: fn() -> Option<Zeroizing<Vec<u8>>>,
}

/// What seals tokens: 32 random bytes.
const SEALING: Set = Set {
    name: "access-token",
    copy: "access-token.keys",
    make: || seal::random::<32>().ok().map(|key| Zeroizing::new(key.to_vec())),
};
/// What signs tokens that are JWTs: a P-256 key in PKCS#8.
const SIGNING: Set = Set { name: "signing", copy: "signing.keys", make: sign::generate };
/// What the copy is sealed as; no record has this kind.
const COPY_KIND: &str = "key-copy";
/// Longer than any instance takes to hear of a change.
const SETTLING: Duration = Duration::from_secs(5);
/// Keys that are kept, however long they have sealed nothing.
const KEPT: usize = 4;
/// And while what they have sealed may be valid, but never more than that.
const KEPT_MOST: usize = 64;

/// All keys, the newest first (store record).
#[derive(Serialize, Deserialize)]
struct TokenKeys {
    keys: Vec<TokenKey>,
}

impl Typed for TokenKeys {
    const KIND: Kind = Kind::Key;
}

/// The key in base64url, and from when on it seals or signs, in seconds since the epoch.
#[derive(Clone, Serialize, Deserialize)]
struct TokenKey {
    #[serde(serialize_with = "crate::store::record::expose")]
    key: SecretString,
    from: u64,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The store does not answer; later it may.
    #[error(transparent)]
    Store(RecordError),
    #[error(
        "{0}; the sealing key is another one than the store was written with: restore it, or start with an empty store"
    )]
    Unreadable(RecordError),
    #[error("the keys of access tokens are damaged")]
    Damaged,
    #[error("{path}: {reason}", path = .0.display(), reason = .1)]
    Copy(PathBuf, io::Error),
}

impl KeysError {
    /// Whether waiting helps.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Store(_))
    }
}

impl From<RecordError> for KeysError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Store(_) => Self::Store(error),
            _ => Self::Unreadable(error),
        }
    }
}

/// The keys of access tokens, as the configuration wants them.
pub async fn load(records: &Records, config: &Config) -> Result<Keys, KeysError> {
    let data_dir = &config.server.data_dir;
    let sealing = load_set(records, data_dir, &SEALING).await?.parse()?;
    let exact = sealing.iter().map(|(key, from)| Some((<[u8; 32]>::try_from(key.as_slice()).ok()?, *from)));
    let exact: Option<Vec<_>> = exact.collect();
    let keys = exact.and_then(|keys| Keys::starting(&keys).ok()).ok_or(KeysError::Damaged)?;
    if config.oauth_server.access_token_format != AccessTokenFormat::Jwt {
        return Ok(keys);
    }
    let signing = match config.oauth_server.signing_keys.as_slice() {
        [] => {
            let made = load_set(records, data_dir, &SIGNING).await?.parse()?;
            let read = made.iter().map(|(key, from)| Some((SigningKey::from_pkcs8(key)?, *from)));
            read.collect::<Option<Vec<_>>>().ok_or(KeysError::Damaged)?
        }
        // The first signs.
        configured => configured.iter().map(|key| (key.clone(), UNIX_EPOCH)).collect(),
    };
    let jwts = Jwts::new(config.server.public_url.origin(), signing).ok_or(KeysError::Damaged)?;
    Ok(keys.with_jwts(jwts))
}

/// Reads a set, puts it back into a store that has none, or makes its first key. Sealed keys that do not open are never
/// replaced: that would sign everybody out over a mistake in the configuration.
async fn load_set(records: &Records, data_dir: &Path, set: &Set) -> Result<TokenKeys, KeysError> {
    loop {
        match records.get::<TokenKeys>(set.name).await {
            Ok(Some(stored)) => {
                let keys = stored.value;
                save_copy(records, data_dir, set, &keys)?;
                return Ok(keys);
            }
            Ok(None) => {}
            // Under a lost sealing key; a copy that opens is the same keys.
            Err(RecordError::Unreadable) if matches!(read_copy(records, data_dir, set), Ok(Some(_))) => {
                records.remove::<TokenKeys>(set.name).await?;
            }
            Err(error) => return Err(error.into()),
        }
        let kept = read_copy(records, data_dir, set)?;
        let restored = kept.is_some();
        let keys = match kept {
            Some(keys) => keys,
            None => TokenKeys { keys: vec![TokenKey::new(set, UNIX_EPOCH)?] },
        };
        // Another instance may be faster: then its keys count.
        if records.put(set.name, 0, &keys, FOREVER).await? == Put::Stored {
            tracing::info!(target: "audit", event = "access_token_keys", set = set.name, restored);
        }
    }
}

/// Adds a key that takes over soon, to each set that there is.
pub async fn rotate(records: &Records, now: SystemTime) -> Result<(), KeysError> {
    add_key(records, &SEALING, now).await?;
    match records.store().get(Kind::Key, SIGNING.name).await.map_err(RecordError::from)? {
        Some(_) => add_key(records, &SIGNING, now).await,
        None => Ok(()),
    }
}

async fn add_key(records: &Records, set: &Set, now: SystemTime) -> Result<(), KeysError> {
    loop {
        let stored = records.get::<TokenKeys>(set.name).await?.ok_or(KeysError::Damaged)?;
        let mut keys = stored.value.keys;
        keys.insert(0, TokenKey::new(set, now + SETTLING)?);
        keys.truncate(kept(&keys, now));
        if records.put(set.name, stored.version, &TokenKeys { keys }, FOREVER).await? == Put::Stored {
            return Ok(());
        }
    }
}

/// How many of these, the newest first, are kept: a key seals until the next one takes over, and what it has sealed last is valid for a
/// while after that.
fn kept(keys: &[TokenKey], now: SystemTime) -> usize {
    let ended = unix_seconds(now).saturating_sub(ACCESS_TOKEN_TTL_MAX.as_secs());
    let needed = 1 + keys.iter().take_while(|next| next.from > ended).count();
    needed.clamp(KEPT, KEPT_MOST)
}

/// How many sealing keys there are.
pub async fn count(records: &Records) -> Result<usize, KeysError> {
    Ok(records.get::<TokenKeys>(SEALING.name).await?.map_or(0, |stored| stored.value.keys.len()))
}

impl TokenKey {
    fn new(set: &Set, from: SystemTime) -> Result<Self, KeysError> {
        let key = (set.make)().ok_or(RecordError::Seal(SealError::Cipher))?;
        let from = unix_seconds(from);
        Ok(Self { key: BASE64URL_NOPAD.encode(&key).into(), from })
    }
}

type Dated = (Zeroizing<Vec<u8>>, SystemTime);

impl TokenKeys {
    fn parse(&self) -> Result<Vec<Dated>, KeysError> {
        let keys = self.keys.iter().map(|key| {
            let bytes = BASE64URL_NOPAD.decode(key.key.expose_secret().as_bytes()).ok()?;
            Some((Zeroizing::new(bytes), UNIX_EPOCH + Duration::from_secs(key.from)))
        });
        keys.collect::<Option<Vec<_>>>().ok_or(KeysError::Damaged)
    }
}

fn read_copy(records: &Records, data_dir: &Path, set: &Set) -> Result<Option<TokenKeys>, KeysError> {
    let path = data_dir.join(set.copy);
    let sealed = match fs::read(&path) {
        Ok(sealed) => sealed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(KeysError::Copy(path, error)),
    };
    match records.sealer().open(COPY_KIND, set.name, 0, &sealed) {
        Ok(plain) => serde_json::from_slice(&plain).map(Some).map_err(|_| KeysError::Damaged),
        Err(error) => {
            let reason =
                format!("does not open ({error}); restore its sealing key, or move it away to make new keys");
            Err(KeysError::Copy(path, io::Error::other(reason)))
        }
    }
}

/// Written whole or not at all, and only when something changed.
fn save_copy(records: &Records, data_dir: &Path, set: &Set, keys: &TokenKeys) -> Result<(), KeysError> {
    let path = data_dir.join(set.copy);
    let failed = |error: io::Error| KeysError::Copy(path.clone(), error);
    let plain = serde_json::to_vec(keys).map(Zeroizing::new).map_err(|_| KeysError::Damaged)?;
    let sealer = records.sealer();
    let current = fs::read(&path).ok().is_some_and(|sealed| {
        !sealer.is_outdated(&sealed)
            && sealer.open(COPY_KIND, set.name, 0, &sealed).is_ok_and(|known| *known == *plain)
    });
    if current {
        return Ok(());
    }
    let sealed =
        sealer.seal(COPY_KIND, set.name, 0, &plain).map_err(|error| failed(io::Error::other(error)))?;
    let unique = seal::name().map_err(|error| failed(io::Error::other(error)))?;
    let beside = data_dir.join(format!("{}.{unique}", set.copy));
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).and_then(|mut file| {
            file.write_all(&sealed)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(data_dir)?.sync_all()
        });
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn a_key_is_kept_for_as_long_as_what_it_sealed_is_valid() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let of = |begun: &[u64]| {
            let from = |ago: &u64| TokenKey { key: String::new().into(), from: 1_000_000 - ago };
            kept(&begun.iter().map(from).collect::<Vec<_>>(), now)
        };
        assert_eq!(
            of(&[0, 1_000, 2_000, 3_000, 4_000]),
            KEPT,
            "they have sealed nothing for a quarter of an hour"
        );
        assert_eq!(
            of(&[0, 100, 200, 300, 400, 500, 900, 1_000]),
            7,
            "the seventh sealed until 500 seconds ago"
        );
        assert_eq!(of(&[1; 100]), KEPT_MOST);
    }
}
