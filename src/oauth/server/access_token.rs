//! The access tokens we issue: sealed, unless the configuration wants them signed ([`super::jwt`]).
//!
//! A token is `postern_at_` followed by base64url of `key id ‖ nonce ‖ ciphertext`. Only instances that hold the
//! key can read it, so opening one is a single AEAD call: no signature to verify, and no cache of verified
//! tokens that could be flooded or go stale. The prefix never changes, so secret scanners can know it.
//! Nonces are random, 96 bits: a key is good for 2^32 tokens (NIST SP 800-38D §8.3), which at a thousand tokens a
//! second is seven weeks, and keys are replaced long before.
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::jwk::Jwk;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::jwt::Jwts;
use crate::seal::{self, fields};

/// What every access token begins with.
pub const PREFIX: &str = "postern_at_";
const KEY_ID_LEN: usize = 4;
/// Longer ones are neither made nor decoded: they would not fit into a header everywhere.
const MAX_LEN: usize = 7 * 1024;
/// Keeps these ciphertexts apart from any other use of a key; the key id needs no place here, it selects the key.
const CONTEXT: &[u8] = b"postern access token 1";

/// The keys that seal (the newest that has begun) and open (all) access tokens.
pub struct Keys {
    /// Newest first. Empty: not known yet.
    keys: Vec<Key>,
    /// There where tokens are JWTs.
    jwts: Option<Jwts>,
}

struct Key {
    id: [u8; KEY_ID_LEN],
    cipher: LessSafeKey,
    /// From then on it seals.
    from: SystemTime,
}

/// What a token says when it is made.
pub struct Claims<'a> {
    /// The canonical URL of the route it works on (RFC 8707); of an upstream's token those of several, separated by blanks.
    pub audience: &'a str,
    pub grant: &'a str,
    pub subject: &'a str,
    pub client: &'a str,
    /// Space-separated (RFC 6749 §3.3).
    pub scope: &'a str,
    pub expires_at: SystemTime,
}

/// An opened token. Strings are slices of one buffer, so opening allocates that and the decoded bytes.
#[derive(Clone)]
pub struct Opened {
    text: String,
    fields: [Range<usize>; 5],
    expires_at: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("not an access token of this server")]
    Foreign,
    #[error("access token has expired")]
    Expired,
    /// Our own trouble: nothing can be said about the token.
    #[error("the keys of access tokens are not known yet")]
    NotReady,
}

#[derive(Debug, thiserror::Error)]
#[error("access token could not be sealed")]
pub struct SealError;

/// Base64url as every request brings it: this takes a third of what [`BASE64URL_NOPAD`] takes, and as that it refuses what
/// could be written in another way.
fn decode(encoded: &str) -> Option<Vec<u8>> {
    base64_simd::URL_SAFE_NO_PAD.decode_to_vec(encoded).ok()
}

// === impl Keys ===

impl Keys {
    /// `keys`: 32 random bytes each, the first one seals. Key ids are derived from the keys themselves.
    pub fn new(keys: &[[u8; 32]]) -> Result<Self, SealError> {
        let keys: Vec<_> = keys.iter().map(|key| (*key, UNIX_EPOCH)).collect();
        Self::starting(&keys)
    }

    /// What an instance has that could not read them yet.
    pub fn unknown() -> Self {
        Self { keys: Vec::new(), jwts: None }
    }

    pub fn is_known(&self) -> bool {
        !self.keys.is_empty()
    }

    /// As [`Keys::new`], newest first, each with the moment from which on it seals.
    pub fn starting(keys: &[([u8; 32], SystemTime)]) -> Result<Self, SealError> {
        let keys = keys.iter().map(|(key, from)| {
            let digest = ring::digest::digest(
                &ring::digest::SHA256,
                &[b"postern access token key id", key.as_slice()].concat(),
            );
            let id = digest.as_ref().first_chunk().copied().ok_or(SealError)?;
            let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError)?);
            Ok(Key { id, cipher, from: *from })
        });
        let keys = keys.collect::<Result<Vec<_>, SealError>>()?;
        if keys.is_empty() { Err(SealError) } else { Ok(Self { keys, jwts: None }) }
    }

    /// From here on tokens are JWTs; what the sealing keys have sealed still opens.
    pub fn with_jwts(self, jwts: Jwts) -> Self {
        Self { jwts: Some(jwts), ..self }
    }

    /// The public keys of tokens (RFC 7517 §4): none where they are sealed.
    pub fn published(&self) -> Vec<Jwk> {
        self.jwts.as_ref().map_or_else(Vec::new, Jwts::published)
    }

    /// Makes the token string.
    pub fn seal(&self, claims: &Claims<'_>, now: SystemTime) -> Result<String, SealError> {
        if let Some(jwts) = &self.jwts {
            let token = jwts.sign(claims, now).ok_or(SealError)?;
            return if token.len() > MAX_LEN { Err(SealError) } else { Ok(token) };
        }
        self.seal_opaque(claims, now)
    }

    /// As [`Keys::seal`], sealed whatever the configuration wants: for who has no business to read it.
    pub fn seal_opaque(&self, claims: &Claims<'_>, now: SystemTime) -> Result<String, SealError> {
        let mut plain = Vec::with_capacity(256);
        let expires = claims.expires_at.duration_since(UNIX_EPOCH).map_err(|_| SealError)?;
        // Rather later than was said than earlier: there are clients that send their user through the browser again for it.
        let expires = expires.as_secs() + u64::from(expires.subsec_nanos() > 0);
        plain.extend_from_slice(&expires.to_be_bytes());
        let fields = [claims.audience, claims.grant, claims.subject, claims.client, claims.scope];
        let plain = fields::pack(fields, plain).ok_or(SealError)?;
        let mut token = PREFIX.to_owned();
        BASE64URL_NOPAD.encode_append(&self.encrypt(CONTEXT, plain, now).ok_or(SealError)?, &mut token);
        if token.len() > MAX_LEN { Err(SealError) } else { Ok(token) }
    }

    /// Seals something else that clients keep for us, in base64url. `context` keeps its ciphertexts apart from all others.
    pub fn wrap(&self, context: &[u8], plain: &[u8], now: SystemTime) -> Option<String> {
        let text = BASE64URL_NOPAD.encode(&self.encrypt(context, plain.to_vec(), now)?);
        (text.len() <= MAX_LEN).then_some(text)
    }

    /// Opens what was wrapped in the same context.
    pub fn unwrap(&self, context: &[u8], text: &str) -> Option<Vec<u8>> {
        let mut bytes = Some(text).filter(|text| text.len() <= MAX_LEN).and_then(decode)?;
        self.decrypt(context, &mut bytes).map(|plain| plain.to_vec())
    }

    /// Key id, nonce and ciphertext, by the newest key that has begun.
    fn encrypt(&self, context: &[u8], mut plain: Vec<u8>, now: SystemTime) -> Option<Vec<u8>> {
        let begun = self.keys.iter().find(|key| key.from <= now);
        let Key { id, cipher, .. } = begun.or(self.keys.last())?;
        let nonce: [u8; NONCE_LEN] = seal::random().ok()?;
        let unique = Nonce::assume_unique_for_key(nonce);
        cipher.seal_in_place_append_tag(unique, Aad::from(context), &mut plain).ok()?;
        Some([id.as_slice(), &nonce, &plain].concat())
    }

    fn decrypt<'b>(&self, context: &[u8], bytes: &'b mut [u8]) -> Option<&'b mut [u8]> {
        let (id, rest) = bytes.split_first_chunk_mut::<KEY_ID_LEN>()?;
        let (nonce, sealed) = rest.split_first_chunk_mut::<NONCE_LEN>()?;
        let key = self.keys.iter().find(|key| key.id == *id)?;
        key.cipher.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), sealed).ok()
    }

    /// Opens `token` at `now`. Anything that is not exactly a token of ours is [`OpenError::Foreign`].
    pub fn open(&self, token: &str, now: SystemTime) -> Result<Opened, OpenError> {
        if !self.is_known() {
            return Err(OpenError::NotReady);
        }
        if let (Some(jwts), None) = (&self.jwts, token.strip_prefix(PREFIX)) {
            let short = Some(token).filter(|token| token.len() <= MAX_LEN).ok_or(OpenError::Foreign)?;
            return jwts.open(short, now).map(|opened| Opened::clone(&opened));
        }
        let encoded =
            token.strip_prefix(PREFIX).filter(|rest| rest.len() <= MAX_LEN).ok_or(OpenError::Foreign)?;
        let mut bytes = decode(encoded).ok_or(OpenError::Foreign)?;
        let plain = self.decrypt(CONTEXT, &mut bytes).ok_or(OpenError::Foreign)?;
        let opened = Opened::read(plain).ok_or(OpenError::Foreign)?;
        if opened.expires_at <= now { Err(OpenError::Expired) } else { Ok(opened) }
    }
}

// === impl Opened ===

impl Opened {
    /// `fields`: audience, grant, subject, client, scope.
    pub(super) fn of(expires_at: SystemTime, fields: [&[u8]; 5]) -> Option<Self> {
        let mut text = Vec::with_capacity(fields.iter().map(|field| field.len()).sum());
        let fields = fields.map(|field| {
            let start = text.len();
            text.extend_from_slice(field);
            start..text.len()
        });
        // One look at all of it takes a fifth of five.
        let text = String::from_utf8(text).ok()?;
        let are_text = fields.iter().all(|field| text.is_char_boundary(field.start));
        are_text.then_some(Self { text, fields, expires_at })
    }

    fn read(plain: &[u8]) -> Option<Self> {
        let (expires, packed) = plain.split_first_chunk::<8>()?;
        let expires_at = UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_be_bytes(*expires)))?;
        Self::of(expires_at, fields::unpack_bytes(packed)?)
    }

    fn field(&self, index: usize) -> &str {
        self.fields.get(index).and_then(|range| self.text.get(range.clone())).unwrap_or_default()
    }

    /// Every resource it works on.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        self.field(0).split(' ')
    }
    pub fn is_for(&self, resource: &str) -> bool {
        let audience = self.field(0);
        // Nearly always one.
        audience == resource || audience.contains(' ') && self.audiences().any(|one| one == resource)
    }
    pub fn grant(&self) -> &str {
        self.field(1)
    }
    pub fn subject(&self) -> &str {
        self.field(2)
    }
    pub fn client(&self) -> &str {
        self.field(3)
    }
    /// Space-separated.
    pub fn scope(&self) -> &str {
        self.field(4)
    }
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn sealed(keys: &Keys) -> String {
        let claims = Claims {
            audience: "https://mcp.example.com/files",
            grant: "g1",
            subject: "alice",
            client: "https://client.example/meta.json",
            scope: "mcp:access",
            expires_at: now() + Duration::from_secs(600),
        };
        keys.seal(&claims, now()).unwrap()
    }

    #[test]
    fn a_token_opens_to_what_was_sealed() {
        let keys = Keys::new(&[[7; 32]]).unwrap();
        let token = sealed(&keys);
        assert!(token.starts_with(PREFIX));
        let opened = keys.open(&token, now()).unwrap();
        assert_eq!(
            (opened.audiences().collect::<Vec<_>>().join("+").as_str(), opened.grant(), opened.subject()),
            ("https://mcp.example.com/files", "g1", "alice")
        );
        assert_eq!((opened.client(), opened.scope()), ("https://client.example/meta.json", "mcp:access"));
    }

    #[test]
    fn any_flipped_character_is_refused() {
        let keys = Keys::new(&[[7; 32]]).unwrap();
        let token = sealed(&keys);
        for at in 0..token.len() {
            let mut other = token.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(
                keys.open(std::str::from_utf8(&other).unwrap(), now()).err(),
                Some(OpenError::Foreign),
                "at {at}"
            );
        }
    }

    #[test]
    fn any_flipped_bit_and_any_truncation_is_refused() {
        let keys = Keys::new(&[[7; 32]]).unwrap();
        let raw = BASE64URL_NOPAD.decode(&sealed(&keys).as_bytes()[PREFIX.len()..]).unwrap();
        for bit in 0..raw.len() * 8 {
            let mut other = raw.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(keys.open(&format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&other)), now()).is_err());
        }
        for length in 0..raw.len() {
            assert!(
                keys.open(&format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&raw[..length])), now()).is_err()
            );
        }
    }

    #[test]
    fn expired_and_foreign_keys_are_refused_and_old_keys_still_open() {
        let old = Keys::new(&[[7; 32]]).unwrap();
        let token = sealed(&old);
        assert_eq!(old.open(&token, now() + Duration::from_secs(600)).err(), Some(OpenError::Expired));
        assert_eq!(Keys::new(&[[8; 32]]).unwrap().open(&token, now()).err(), Some(OpenError::Foreign));
        assert!(Keys::new(&[[8; 32], [7; 32]]).unwrap().open(&token, now()).is_ok());
    }

    #[test]
    fn a_new_key_opens_at_once_and_seals_later() {
        let old = Keys::new(&[[7; 32]]).unwrap();
        let both =
            Keys::starting(&[([8; 32], now() + Duration::from_secs(5)), ([7; 32], UNIX_EPOCH)]).unwrap();
        assert!(old.open(&sealed(&both), now()).is_ok(), "an instance that knows the old key alone");
        let earlier = Keys::starting(&[([8; 32], now()), ([7; 32], UNIX_EPOCH)]).unwrap();
        let token = sealed(&earlier);
        assert!(old.open(&token, now()).is_err() && both.open(&token, now()).is_ok());
    }

    #[test]
    fn nothing_is_said_about_a_token_without_keys() {
        let token = sealed(&Keys::new(&[[7; 32]]).unwrap());
        for token in [token.as_str(), "nonsense"] {
            assert_eq!(Keys::unknown().open(token, now()).err(), Some(OpenError::NotReady));
        }
    }
}
