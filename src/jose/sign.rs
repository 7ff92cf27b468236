//! Keys of our own, and what we sign with them: ES256 (RFC 7518 §3.4) or EdDSA (RFC 8037).
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::ring;

/// A private key that signs tokens.
#[derive(Clone)]
pub struct SigningKey {
    key: EncodingKey,
    algorithm: Algorithm,
    public: Jwk,
}

impl SigningKey {
    /// A PEM file with a P-256 or Ed25519 key in PKCS#8.
    pub fn from_pem(id: &str, pem: &[u8]) -> Option<Self> {
        let curve = EncodingKey::from_ec_pem(pem).ok().map(|key| (key, Algorithm::ES256));
        let (key, algorithm) =
            curve.or_else(|| EncodingKey::from_ed_pem(pem).ok().map(|key| (key, Algorithm::EdDSA)))?;
        Self::new(key, algorithm, Some(id))
    }

    /// A P-256 key as [`generate`] makes them, named by its thumbprint (RFC 7638).
    pub fn from_pkcs8(der: &[u8]) -> Option<Self> {
        Self::new(EncodingKey::from_ec_der(der), Algorithm::ES256, None)
    }

    fn new(key: EncodingKey, algorithm: Algorithm, id: Option<&str>) -> Option<Self> {
        ring::install();
        let mut public = match algorithm {
            // The crate's own way takes only keys without their public half.
            Algorithm::EdDSA => {
                let x = BASE64URL_NOPAD.encode(&ring::ed25519_public_key(key.as_bytes())?);
                serde_json::from_value(json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": x}))
                    .ok()?
            }
            _ => Jwk::from_encoding_key(&key, algorithm).ok()?,
        };
        let id = match id {
            Some(id) => id.to_owned(),
            None => public.thumbprint(ThumbprintHash::SHA256).ok()?,
        };
        public.common.key_id = Some(id);
        public.common.public_key_use = Some(jsonwebtoken::jwk::PublicKeyUse::Signature);
        Some(Self { key, algorithm, public })
    }

    /// The public half, to be published.
    pub fn public(&self) -> &Jwk {
        &self.public
    }

    /// A token of this kind (`typ`, RFC 7515 §4.1.9) that says `claims`.
    pub fn sign(&self, kind: &str, claims: &impl Serialize) -> Option<String> {
        let header = Header {
            typ: Some(kind.to_owned()),
            kid: self.public.common.key_id.clone(),
            ..Header::new(self.algorithm)
        };
        encode(&header, claims, &self.key).ok()
    }
}

/// A new P-256 key in PKCS#8.
pub fn generate() -> Option<Zeroizing<Vec<u8>>> {
    ring::generate_p256().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::jose::{Expected, Keys};

    #[test]
    fn what_is_signed_is_verified_by_what_is_published() {
        let pem = |algorithm| rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem().into_bytes();
        let ed = SigningKey::from_pem("ed", &pem(&rcgen::PKCS_ED25519));
        for (key, name) in [
            (SigningKey::from_pkcs8(&generate().unwrap()), "ES256"),
            (SigningKey::from_pem("ec", &pem(&rcgen::PKCS_ECDSA_P256_SHA256)), "ES256"),
            (ed, "EdDSA"),
        ] {
            let key = key.unwrap_or_else(|| panic!("{name}"));
            let token =
                key.sign("at+jwt", &json!({"iss": "i", "sub": "s", "aud": "a", "exp": 1_000})).unwrap();
            let published = serde_json::to_value(key.public()).unwrap();
            assert_eq!(published["alg"], name);
            assert!(published.get("d").is_none(), "the private half");
            let keys = Keys::parse(json!({"keys": [published]}).to_string().as_bytes()).unwrap();
            let expected = Expected { issuer: "i", audiences: Some(&["a"]), types: &["at+jwt"] };
            let now = UNIX_EPOCH + Duration::from_secs(900);
            assert_eq!(keys.verify(&token, &expected, now).unwrap().sub, "s");
        }
        assert!(SigningKey::from_pem("p384", &pem(&rcgen::PKCS_ECDSA_P384_SHA384)).is_none());
        assert!(SigningKey::from_pem("none", b"nonsense").is_none());
    }
}
