//! Encryption of everything secret that leaves the process, and the randomness and digests beside it.
//!
//! One sealed record is encrypted under a key of its own, derived from a named sealing key and a random
//! salt, so no number of records wears a key out. The first key seals, all keys open: that is how a key
//! is rotated. A sealed record is bound to its kind, key and version, and does not open anywhere else.
//!
//! Layout: format byte `1`, length of the key id, key id, salt (16), nonce (12), ciphertext and tag
//! (AES-256-GCM). Associated data: the format byte, then key id, kind and key, each behind its length
//! as 32 bits, then the version as 64 bits, all big-endian. Derivation: HKDF-SHA256 (RFC 5869).

use std::sync::Arc;

use arc_swap::ArcSwap;
use data_encoding::BASE64URL_NOPAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hkdf};
use secrecy::SecretString;
use zeroize::Zeroizing;

pub mod fields;
mod keys;

pub use keys::{KeyError, SealingKey, generate, load_or_generate};

const FORMAT: u8 = 1;
const SALT_LEN: usize = 16;
const RECORD_PURPOSE: &[u8] = b"postern/seal/record/1";
const DERIVE_SALT: &[u8] = b"postern/seal/derive/1";

/// Why a sealing key set or a sealing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is nothing to seal with.
    #[error("no sealing key")]
    NoKey,
    /// Two keys have the same id.
    #[error("two sealing keys have the same id")]
    DuplicateId,
    /// The machine gave no random bytes.
    #[error("no randomness available")]
    Random,
    /// The cipher refused, which only absurd sizes do.
    #[error("value cannot be sealed")]
    Cipher,
}

/// Why sealed bytes do not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Sealed with a key that is not among ours: the key was lost or not configured.
    #[error("sealed with an unknown key")]
    UnknownKey,
    /// Not what was sealed for this kind, key and version.
    #[error("sealed data does not belong here or was changed")]
    Tampered,
}

/// Seals and opens with a set of named keys, which may be replaced while it is in use.
pub struct Sealer {
    keys: ArcSwap<KeySet>,
    random: SystemRandom,
}

struct KeySet {
    first: SealingKey,
    others: Vec<SealingKey>,
}

impl KeySet {
    fn new(keys: Vec<SealingKey>) -> Result<KeySet, SealError> {
        for (position, key) in keys.iter().enumerate() {
            if keys.iter().skip(position + 1).any(|other| other.id() == key.id()) {
                return Err(SealError::DuplicateId);
            }
        }
        let mut keys = keys.into_iter();
        let first = keys.next().ok_or(SealError::NoKey)?;
        Ok(KeySet { first, others: keys.collect() })
    }

    fn all(&self) -> impl Iterator<Item = &SealingKey> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl Sealer {
    /// The first key seals, all of them open. Ids must differ.
    pub fn new(keys: Vec<SealingKey>) -> Result<Sealer, SealError> {
        Ok(Sealer { keys: ArcSwap::from_pointee(KeySet::new(keys)?), random: SystemRandom::new() })
    }

    /// From now on these keys count.
    pub fn replace(&self, keys: Vec<SealingKey>) -> Result<(), SealError> {
        self.keys.store(Arc::new(KeySet::new(keys)?));
        Ok(())
    }

    /// The ids of the keys, the sealing one first.
    pub fn key_ids(&self) -> Vec<String> {
        self.keys.load().all().map(|key| key.id().to_owned()).collect()
    }

    /// Encrypts `plain` for exactly this kind, key and version.
    pub fn seal(&self, kind: &str, key: &str, version: u64, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let keys = self.keys.load();
        let id = keys.first.id();
        let id_len = u8::try_from(id.len()).map_err(|_| SealError::Cipher)?;
        let mut salt = [0; SALT_LEN];
        self.random.fill(&mut salt).map_err(|_| SealError::Random)?;
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError::Random)?;

        let mut body = Zeroizing::new(Vec::with_capacity(plain.len() + AES_256_GCM.tag_len()));
        body.extend_from_slice(plain);
        record_key(&keys.first, &salt)
            .and_then(|cipher| {
                cipher.seal_in_place_append_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::from(associated_data(id, kind, key, version)),
                    &mut *body,
                )
            })
            .map_err(|_| SealError::Cipher)?;

        let mut sealed = Vec::with_capacity(2 + id.len() + SALT_LEN + NONCE_LEN + body.len());
        sealed.push(FORMAT);
        sealed.push(id_len);
        sealed.extend_from_slice(id.as_bytes());
        sealed.extend_from_slice(&salt);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&body);
        Ok(sealed)
    }

    /// Decrypts what [`Sealer::seal`] made for the same kind, key and version.
    pub fn open(
        &self,
        kind: &str,
        key: &str,
        version: u64,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let Parts { id, salt, nonce, ciphertext } = parse(sealed).ok_or(OpenError::Tampered)?;
        let keys = self.keys.load();
        let sealing_key = keys.all().find(|key| key.id() == id).ok_or(OpenError::UnknownKey)?;
        let mut body = Zeroizing::new(ciphertext.to_vec());
        let plain_len = record_key(sealing_key, salt)
            .and_then(|cipher| {
                cipher.open_in_place(
                    Nonce::assume_unique_for_key(*nonce),
                    Aad::from(associated_data(id, kind, key, version)),
                    &mut body,
                )
            })
            .map_err(|_| OpenError::Tampered)?
            .len();
        body.truncate(plain_len);
        Ok(body)
    }

    /// Whether these bytes were sealed with a key that is not the first any more.
    pub fn is_outdated(&self, sealed: &[u8]) -> bool {
        key_id(sealed).is_none_or(|id| id != self.keys.load().first.id())
    }
}

/// The id of the key that these bytes were sealed with; `None` where they are no sealed record.
pub fn key_id(sealed: &[u8]) -> Option<&str> {
    parse(sealed).map(|parts| parts.id)
}

/// `N` random bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SealError::Random)?;
    Ok(bytes)
}

/// A random token of 256 bits: 43 characters of base64url.
pub fn token() -> Result<SecretString, SealError> {
    let bytes = Zeroizing::new(random::<32>()?);
    Ok(SecretString::from(BASE64URL_NOPAD.encode(&*bytes)))
}

/// A random name that is not a secret, 128 bits: 22 characters of base64url.
pub fn name() -> Result<String, SealError> {
    Ok(BASE64URL_NOPAD.encode(&random::<16>()?))
}

/// SHA-256 in base64url, 43 characters: how tokens and codes that we issue are stored and looked up.
pub fn digest(text: &str) -> String {
    BASE64URL_NOPAD.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn record_key(key: &SealingKey, salt: &[u8]) -> Result<LessSafeKey, ring::error::Unspecified> {
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(key.bytes());
    let unbound = UnboundKey::from(extracted.expand(&[RECORD_PURPOSE], &AES_256_GCM)?);
    Ok(LessSafeKey::new(unbound))
}

/// HKDF with a fixed salt. The length asked for is a constant within HKDF's limit, so expansion cannot
/// fail; were it to, the zeros would be caught by `debug_assert` in every test that derives.
fn expand(key: &[u8; 32], purpose: &str) -> Zeroizing<[u8; 32]> {
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, DERIVE_SALT).extract(key);
    let mut bytes = Zeroizing::new([0; 32]);
    let filled =
        extracted.expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut *bytes));
    debug_assert!(filled.is_ok());
    bytes
}

fn associated_data(id: &str, kind: &str, key: &str, version: u64) -> Vec<u8> {
    let mut data = Vec::with_capacity(1 + 12 + id.len() + kind.len() + key.len() + 8);
    data.push(FORMAT);
    for part in [id, kind, key] {
        data.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        data.extend_from_slice(part.as_bytes());
    }
    data.extend_from_slice(&version.to_be_bytes());
    data
}

struct Parts<'a> {
    id: &'a str,
    salt: &'a [u8],
    nonce: &'a [u8; NONCE_LEN],
    ciphertext: &'a [u8],
}

fn parse(sealed: &[u8]) -> Option<Parts<'_>> {
    let (&format, rest) = sealed.split_first()?;
    if format != FORMAT {
        return None;
    }
    let (&id_len, rest) = rest.split_first()?;
    let (id, rest) = rest.split_at_checked(usize::from(id_len))?;
    let (salt, rest) = rest.split_at_checked(SALT_LEN)?;
    let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>()?;
    Some(Parts { id: std::str::from_utf8(id).ok()?, salt, nonce, ciphertext })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::collections::HashSet;

    use secrecy::ExposeSecret;

    use super::*;

    fn key(id: &str, fill: u8) -> SealingKey {
        SealingKey::new(id, [fill; 32]).unwrap()
    }

    fn sealer(keys: &[(&str, u8)]) -> Sealer {
        Sealer::new(keys.iter().map(|(id, fill)| key(id, *fill)).collect()).unwrap()
    }

    #[test]
    fn sr_t33_opens_only_where_it_was_sealed_for() {
        let sealer = sealer(&[("k1", 1)]);
        let sealed = sealer.seal("session", "alice", 3, b"plain").unwrap();
        assert_eq!(&**sealer.open("session", "alice", 3, &sealed).unwrap(), b"plain");
        for (kind, key, version) in [
            ("flow", "alice", 3),
            ("session", "bob", 3),
            ("session", "alice", 2),
            ("session", "alice", 4),
            // The lengths keep neighbouring fields apart.
            ("sessiona", "lice", 3),
            ("", "sessionalice", 3),
        ] {
            assert_eq!(sealer.open(kind, key, version, &sealed).unwrap_err(), OpenError::Tampered);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let sealer = sealer(&[("k1", 1)]);
        let sealed = sealer.seal("session", "alice", 1, b"plain text").unwrap();
        for position in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[position] ^= 1 << bit;
                assert!(sealer.open("session", "alice", 1, &changed).is_err(), "{position}.{bit}");
            }
            assert!(sealer.open("session", "alice", 1, &sealed[..position]).is_err());
        }
        let mut longer = sealed.clone();
        longer.push(0);
        assert!(sealer.open("session", "alice", 1, &longer).is_err());
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let before = sealer(&[("k1", 1)]);
        let after = sealer(&[("k2", 2), ("k1", 1)]);
        let old = before.seal("session", "a", 1, b"old").unwrap();
        let new = after.seal("session", "a", 1, b"new").unwrap();
        assert_eq!(&**after.open("session", "a", 1, &old).unwrap(), b"old");
        assert!(after.is_outdated(&old) && !after.is_outdated(&new));
        assert_eq!(before.open("session", "a", 1, &new).unwrap_err(), OpenError::UnknownKey);
    }

    #[test]
    fn another_key_of_the_same_id_is_not_enough() {
        let sealed = sealer(&[("k1", 1)]).seal("session", "a", 1, b"x").unwrap();
        assert_eq!(sealer(&[("k1", 9)]).open("session", "a", 1, &sealed).unwrap_err(), OpenError::Tampered);
    }

    #[test]
    fn key_sets_need_a_key_and_different_ids() {
        assert_eq!(Sealer::new(Vec::new()).err(), Some(SealError::NoKey));
        assert_eq!(Sealer::new(vec![key("a", 1), key("a", 2)]).err(), Some(SealError::DuplicateId));
    }

    #[test]
    fn sr_t33_salts_and_nonces_do_not_repeat() {
        let sealer = sealer(&[("k1", 1)]);
        let mut seen = HashSet::new();
        let many = if std::env::var_os("POSTERN_SOAK").is_some() { 1_000_000 } else { 20_000 };
        for _ in 0..many {
            let sealed = sealer.seal("s", "k", 1, b"").unwrap();
            assert!(seen.insert(sealed[4..4 + SALT_LEN + NONCE_LEN].to_vec()));
        }
    }

    #[test]
    fn tokens_are_long_and_differ_and_digests_are_sha256() {
        let token = token().unwrap();
        assert_eq!(token.expose_secret().len(), 43);
        assert_ne!(token.expose_secret(), super::token().unwrap().expose_secret());
        assert_eq!(name().unwrap().len(), 22);
        // RFC 7636 appendix B.
        assert_eq!(
            digest("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }
}
