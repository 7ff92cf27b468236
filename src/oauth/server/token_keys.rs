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
use crate::seal;
use crate::store::record::{RecordError, Records, Typed};
use crate::store::{Kind, Put};

/// The record's key, and the name of the copy.
const NAME: &str = "access-token";
const COPY: &str = "access-token.keys";
/// What the copy is sealed as; no record has this kind.
const COPY_KIND: &str = "key-copy";
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Longer than any instance takes to hear of a change.
const SETTLING: Duration = Duration::from_secs(5);
/// Keys that are kept; the oldest has long sealed nothing that is still valid.
const KEPT: usize = 4;

/// All keys, the newest first (store record).
#[derive(Serialize, Deserialize)]
struct TokenKeys {
    keys: Vec<TokenKey>,
}

impl Typed for TokenKeys {
    const KIND: Kind = Kind::Key;
}

/// 32 bytes in base64url, and from when on they seal, in seconds since the epoch.
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

/// Reads the keys, puts them back into a store that has none, or makes the first. Sealed keys that do not open are
/// never replaced: that would sign everybody out over a mistake in the configuration.
pub async fn load(records: &Records, data_dir: &Path) -> Result<Keys, KeysError> {
    loop {
        match records.get::<TokenKeys>(NAME).await {
            Ok(Some(stored)) => {
                let keys = stored.value;
                save_copy(records, data_dir, &keys)?;
                return keys.parse();
            }
            Ok(None) => {}
            // Under a lost sealing key; a copy that opens is the same keys.
            Err(RecordError::Unreadable) if matches!(read_copy(records, data_dir), Ok(Some(_))) => {
                records.remove::<TokenKeys>(NAME).await?;
            }
            Err(error) => return Err(error.into()),
        }
        let kept = read_copy(records, data_dir)?;
        let restored = kept.is_some();
        let keys = match kept {
            Some(keys) => keys,
            None => TokenKeys { keys: vec![TokenKey::new(UNIX_EPOCH)?] },
        };
        // Another instance may be faster: then its keys count.
        if records.put(NAME, 0, &keys, FOREVER).await? == Put::Stored {
            tracing::info!(target: "audit", event = "access_token_keys", restored);
        }
    }
}

/// Adds a key that takes over soon.
pub async fn rotate(records: &Records, now: SystemTime) -> Result<(), KeysError> {
    loop {
        let stored = records.get::<TokenKeys>(NAME).await?.ok_or(KeysError::Damaged)?;
        let mut keys = stored.value.keys;
        keys.insert(0, TokenKey::new(now + SETTLING)?);
        keys.truncate(KEPT);
        if records.put(NAME, stored.version, &TokenKeys { keys }, FOREVER).await? == Put::Stored {
            return Ok(());
        }
    }
}

/// How many keys there are.
pub async fn count(records: &Records) -> Result<usize, KeysError> {
    Ok(records.get::<TokenKeys>(NAME).await?.map_or(0, |stored| stored.value.keys.len()))
}

impl TokenKey {
    fn new(from: SystemTime) -> Result<Self, KeysError> {
        let key = Zeroizing::new(seal::random::<32>().map_err(RecordError::Seal)?);
        let from = from.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(Self { key: BASE64URL_NOPAD.encode(&*key).into(), from })
    }
}

impl TokenKeys {
    fn parse(&self) -> Result<Keys, KeysError> {
        let keys = self.keys.iter().map(|key| {
            let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(key.key.expose_secret().as_bytes()).ok()?);
            Some((<[u8; 32]>::try_from(bytes.as_slice()).ok()?, UNIX_EPOCH + Duration::from_secs(key.from)))
        });
        let keys: Option<Vec<_>> = keys.collect();
        keys.and_then(|keys| Keys::starting(&keys).ok()).ok_or(KeysError::Damaged)
    }
}

fn read_copy(records: &Records, data_dir: &Path) -> Result<Option<TokenKeys>, KeysError> {
    let path = data_dir.join(COPY);
    let sealed = match fs::read(&path) {
        Ok(sealed) => sealed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(KeysError::Copy(path, error)),
    };
    match records.sealer().open(COPY_KIND, NAME, 0, &sealed) {
        Ok(plain) => serde_json::from_slice(&plain).map(Some).map_err(|_| KeysError::Damaged),
        Err(error) => {
            let reason =
                format!("does not open ({error}); restore its sealing key, or move it away to make new keys");
            Err(KeysError::Copy(path, io::Error::other(reason)))
        }
    }
}

/// Written whole or not at all, and only when something changed.
fn save_copy(records: &Records, data_dir: &Path, keys: &TokenKeys) -> Result<(), KeysError> {
    let path = data_dir.join(COPY);
    let failed = |error: io::Error| KeysError::Copy(path.clone(), error);
    let plain = serde_json::to_vec(keys).map(Zeroizing::new).map_err(|_| KeysError::Damaged)?;
    let sealer = records.sealer();
    let current = fs::read(&path).ok().is_some_and(|sealed| {
        !sealer.is_outdated(&sealed)
            && sealer.open(COPY_KIND, NAME, 0, &sealed).is_ok_and(|known| *known == *plain)
    });
    if current {
        return Ok(());
    }
    let sealed = sealer.seal(COPY_KIND, NAME, 0, &plain).map_err(|error| failed(io::Error::other(error)))?;
    let unique = seal::name().map_err(|error| failed(io::Error::other(error)))?;
    let beside = data_dir.join(format!("{COPY}.{unique}"));
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).and_then(|mut file| {
            file.write_all(&sealed)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(data_dir)?.sync_all()
        });
    written.map_err(failed)
}
