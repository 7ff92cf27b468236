//! The sealing keys: from configuration, or one generated into the data directory.
//!
//! A lost key means that nothing in the store opens any more. So a key is never made beside an
//! existing store, and nothing here overwrites a file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// The generated key, inside the data directory: 32 bytes in base64.
const KEY_FILE: &str = "sealing.key";
/// The embedded store, inside the data directory. Named again here because the store builds on this
/// module; a test of the store holds the two together.
const STORE_FILE: &str = "postern.redb";
/// Longer than any key in base64 with white space around it.
const MAX_KEY_FILE_LEN: u64 = 256;

/// Why bytes are not a sealing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Key ids are stored beside every record.
    #[error("a sealing key id has 1 to 64 characters of a-z, A-Z, 0-9, `-`, `_` and `.`")]
    Id,
    /// Not 32 bytes in base64.
    #[error("a sealing key is 32 random bytes in base64")]
    Bytes,
}

/// One named key of 32 bytes. Wiped on drop.
pub struct SealingKey {
    id: String,
    key: Zeroizing<[u8; 32]>,
}

impl SealingKey {
    /// A key from its bytes.
    pub fn new(id: &str, key: [u8; 32]) -> Result<SealingKey, KeyError> {
        let key = Zeroizing::new(key);
        let well_formed = (1..=64).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !well_formed {
            return Err(KeyError::Id);
        }
        Ok(SealingKey { id: id.to_owned(), key })
    }

    /// A key from base64 as `postern keys generate` prints it; white space around it is ignored.
    pub fn parse(id: &str, text: &SecretString) -> Result<SealingKey, KeyError> {
        SealingKey::new(id, decode(text.expose_secret().as_bytes())?)
    }

    /// The id that sealed records carry.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.key
    }
}

/// A new key in base64, for a file or a secret store.
pub fn generate() -> Result<SecretString, super::SealError> {
    let bytes = Zeroizing::new(super::random::<32>()?);
    Ok(SecretString::from(BASE64.encode(&*bytes)))
}

/// The key in `data_dir`, made on the first start.
///
/// The directory is made with mode 0700 and the file with 0600. The key's id is derived from the key,
/// so that a record sealed with another key is told from one that was changed.
///
/// Errors, with a message for the operator: the file is missing although a store exists, others may
/// read it, it is no key, or the file system refused.
pub fn load_or_generate(data_dir: &Path) -> io::Result<SealingKey> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", data_dir.display())))?;
    let path = data_dir.join(KEY_FILE);
    match load(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        loaded => return loaded,
    }
    if fs::exists(data_dir.join(STORE_FILE))? {
        return Err(io::Error::other(format!(
            "{} is missing but {STORE_FILE} is there: restore the key, or move the store away to start anew",
            path.display()
        )));
    }
    write_new(data_dir, &path)?;
    load(&path)
}

fn load(path: &Path) -> io::Result<SealingKey> {
    let file = File::open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other(format!("{} is not a file", path.display())));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::new(
            ErrorKind::PermissionDenied,
            format!("{} may be used by others than its owner: set its mode to 0600", path.display()),
        ));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE_LEN as usize + 1));
    file.take(MAX_KEY_FILE_LEN).read_to_end(&mut text)?;
    let invalid =
        |error: KeyError| io::Error::new(ErrorKind::InvalidData, format!("{}: {error}", path.display()));
    let key = Zeroizing::new(decode(&text).map_err(invalid)?);
    let derived = super::expand(&key, "key id");
    let short = derived.split_at_checked(6).map(|(head, _)| head).unwrap_or_default();
    SealingKey::new(&format!("local-{}", BASE64URL_NOPAD.encode(short)), *key).map_err(invalid)
}

/// Writes beside and links into place: a key file is whole or absent, and an existing one, made by
/// another process meanwhile, is kept.
fn write_new(data_dir: &Path, path: &Path) -> io::Result<()> {
    let unique = super::name().map_err(io::Error::other)?;
    let beside = data_dir.join(format!("{KEY_FILE}.{unique}"));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        let key = generate().map_err(io::Error::other)?;
        file.write_all(key.expose_secret().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        match fs::hard_link(&beside, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => File::open(data_dir)?.sync_all(),
        }
    })();
    let removed = fs::remove_file(&beside);
    written.and(removed)
}

fn decode(text: &[u8]) -> Result<[u8; 32], KeyError> {
    let bytes = Zeroizing::new(BASE64.decode(text.trim_ascii()).map_err(|_| KeyError::Bytes)?);
    <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyError::Bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_is_made_once_and_private() {
        let parent = tempfile::tempdir().unwrap();
        let data_dir = parent.path().join("data");
        let made = load_or_generate(&data_dir).unwrap();
        let again = load_or_generate(&data_dir).unwrap();
        assert_eq!((made.id(), made.bytes()), (again.id(), again.bytes()));
        assert_eq!(mode(&data_dir), 0o700);
        assert_eq!(mode(&data_dir.join(KEY_FILE)), 0o600);
        assert_eq!(fs::read_dir(&data_dir).unwrap().count(), 1);
    }

    #[test]
    fn a_lost_key_is_not_replaced_beside_a_store() {
        let data_dir = tempfile::tempdir().unwrap();
        fs::write(data_dir.path().join(STORE_FILE), b"data").unwrap();
        let error = load_or_generate(data_dir.path()).err().unwrap();
        assert!(error.to_string().contains("restore the key"), "{error}");
        assert!(!data_dir.path().join(KEY_FILE).exists());
        assert_eq!(fs::read(data_dir.path().join(STORE_FILE)).unwrap(), b"data");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        for wrong in [0o640, 0o604, 0o660] {
            let data_dir = tempfile::tempdir().unwrap();
            load_or_generate(data_dir.path()).unwrap();
            let path = data_dir.path().join(KEY_FILE);
            fs::set_permissions(&path, fs::Permissions::from_mode(wrong)).unwrap();
            let error = load_or_generate(data_dir.path()).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn a_damaged_key_is_refused_and_kept() {
        for damaged in ["", "AAAA", "not base64!", &"A".repeat(10_000)] {
            let data_dir = tempfile::tempdir().unwrap();
            let path = data_dir.path().join(KEY_FILE);
            fs::write(&path, damaged).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = load_or_generate(data_dir.path()).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn two_starts_at_once_agree_on_one_key() {
        let data_dir = tempfile::tempdir().unwrap();
        let ids: Vec<String> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| load_or_generate(data_dir.path()).unwrap().id().to_owned()))
                .collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]));
        assert_eq!(fs::read_dir(data_dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn configured_keys_are_checked() {
        let text = generate().unwrap();
        assert_eq!(SealingKey::parse("k1", &text).unwrap().id(), "k1");
        assert_eq!(SealingKey::parse("", &text).err(), Some(KeyError::Id));
        assert_eq!(SealingKey::parse("a b", &text).err(), Some(KeyError::Id));
        assert_eq!(SealingKey::parse("k1", &SecretString::from("short")).err(), Some(KeyError::Bytes));
        let spaced = SecretString::from(format!("{}\n", text.expose_secret()));
        assert!(SealingKey::parse("k1", &spaced).is_ok());
    }
}
