//! JSON Web Tokens (RFC 7519, 7515, 7517): whether a key that we know has signed one, and what it says; and signing our own
//! ([`sign`]).
//!
//! The algorithm is the key's and ours to allow, never the token's to choose; keys that the token brings along are not
//! looked at. What a token says about time is judged by the caller's clock.
pub mod remote;
mod ring;
pub mod sign;

use std::time::{Duration, SystemTime};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::clock::unix_seconds;

/// Clocks differ by so much at most.
pub const SKEW: Duration = Duration::from_secs(60);
/// What we verify, by their registered names (RFC 7518 §3.1, RFC 8037 §3.1).
pub const ALGORITHMS: [&str; 5] = ["ES256", "ES384", "EdDSA", "RS256", "PS256"];
/// Longer tokens are not read, bytes.
const MAX_LEN: usize = 16 * 1024;
const MAX_KEYS: usize = 100;
/// The last second of the year 9999.
pub const END_OF_TIME: u64 = 253_402_300_799;

/// The public keys of an issuer or a client.
pub struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// What a token has to say.
pub struct Expected<'a> {
    /// `iss`, byte for byte (RFC 7519 §4.1.1).
    pub issuer: &'a str,
    /// One of these has to be an `aud` (RFC 7519 §4.1.3). `None`: the caller judges it.
    pub audiences: Option<&'a [&'a str]>,
    /// What `typ` may say, in lower case and without `application/`; an empty text: it may be missing.
    pub types: &'a [&'a str],
}

/// Why a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoseError {
    #[error("not a signed token")]
    Malformed,
    #[error("algorithm is not allowed")]
    Algorithm,
    #[error("signed by a key that is not known")]
    UnknownKey,
    #[error("signature is wrong")]
    Signature,
    #[error("issuer is another one")]
    Issuer,
    #[error("made for somebody else")]
    Audience,
    #[error("another kind of token")]
    Type,
    #[error("expired, or not valid yet")]
    Time,
}

/// Registered claims, as far as they are judged here; the rest is in `rest`.
#[derive(Deserialize)]
pub struct Claims {
    pub iss: String,
    /// Empty where there is none, which some kinds of token allow.
    #[serde(default)]
    pub sub: String,
    aud: Audience,
    pub exp: u64,
    nbf: Option<u64>,
    pub iat: Option<u64>,
    pub jti: Option<String>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

// === impl Keys ===

impl Keys {
    /// Reads a JWK set (RFC 7517 §5). Keys of kinds that we do not know, and keys for encryption, are passed over.
    pub fn parse(set: &[u8]) -> Option<Self> {
        ring::install();
        let set: JwkSet = serde_json::from_slice(set).ok()?;
        let keys = set.keys.iter().take(MAX_KEYS).filter_map(Key::of);
        Some(Self(keys.collect()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the token says, if one of these keys has signed it and it is what is expected.
    pub fn verify(&self, token: &str, expected: &Expected<'_>, now: SystemTime) -> Result<Claims, JoseError> {
        let header = header(token)?;
        let kind = header.typ.as_deref().unwrap_or_default().to_ascii_lowercase();
        if !expected.types.contains(&kind.strip_prefix("application/").unwrap_or(&kind)) {
            return Err(JoseError::Type);
        }
        let named: Vec<&Key> = self.0.iter().filter(|key| key.is_meant_by(&header)).collect();
        if named.is_empty() {
            return Err(JoseError::UnknownKey);
        }
        let mut fitting = named.into_iter().filter(|key| key.algorithms.contains(&header.alg)).peekable();
        if fitting.peek().is_none() {
            return Err(JoseError::Algorithm);
        }
        let claims = fitting.find_map(|key| key.open(token, header.alg)).ok_or(JoseError::Signature)?;
        claims.judge(expected, now)?;
        Ok(claims)
    }
}

fn header(token: &str) -> Result<Header, JoseError> {
    if token.len() > MAX_LEN || token.split('.').count() != 3 {
        return Err(JoseError::Malformed);
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| JoseError::Malformed)?;
    // Of what has to be understood we understand nothing (RFC 7515 §4.1.11).
    if header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
        return Err(JoseError::Malformed);
    }
    Ok(header)
}

/// Who a token says it is from, before anything of it is believed: to know whose keys to look at.
pub fn issuer_of(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issuer {
        iss: String,
    }
    ring::install();
    header(token).ok()?;
    jsonwebtoken::dangerous::insecure_decode_claims::<Issuer>(token).ok().map(|claims| claims.iss)
}

/// What a token says, for who knows that it is genuine without its signature.
pub fn unverified(token: &str) -> Option<Claims> {
    ring::install();
    header(token).ok()?;
    jsonwebtoken::dangerous::insecure_decode_claims(token).ok()
}

/// A list of texts, or one.
pub fn texts(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

// === impl Key ===

impl Key {
    fn of(jwk: &Jwk) -> Option<Self> {
        if jwk.common.public_key_use.as_ref().is_some_and(|used| *used != PublicKeyUse::Signature) {
            return None;
        }
        let fitting: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::EllipticCurve(point) => match point.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            AlgorithmParameters::RSA(_) => &[Algorithm::RS256, Algorithm::PS256],
            _ => return None,
        };
        let named = jwk.common.key_algorithm.as_ref().map(ToString::to_string);
        let fits =
            |algorithm: &&Algorithm| named.as_ref().is_none_or(|name| *name == format!("{algorithm:?}"));
        let algorithms: Vec<Algorithm> = fitting.iter().filter(fits).copied().collect();
        let key = DecodingKey::from_jwk(jwk).ok()?;
        (!algorithms.is_empty()).then(|| Self { id: jwk.common.key_id.clone(), algorithms, key })
    }

    /// Without a name on either side there is nothing to tell them apart by.
    fn is_meant_by(&self, header: &Header) -> bool {
        header.kid.is_none() || self.id.is_none() || self.id == header.kid
    }

    fn open(&self, token: &str, algorithm: Algorithm) -> Option<Claims> {
        let mut validation = Validation::new(algorithm);
        // Those are judged afterwards, by the caller's clock and to the byte.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        jsonwebtoken::decode::<Claims>(token, &self.key, &validation).ok().map(|token| token.claims)
    }
}

// === impl Claims ===

impl Claims {
    fn judge(&self, expected: &Expected<'_>, now: SystemTime) -> Result<(), JoseError> {
        if self.iss != expected.issuer {
            return Err(JoseError::Issuer);
        }
        let fits = |allowed: &[&str]| self.audiences().any(|audience| allowed.contains(&audience));
        if !expected.audiences.is_none_or(fits) {
            return Err(JoseError::Audience);
        }
        // Beyond it there is no moment of which anything could be said.
        if self.exp > END_OF_TIME {
            return Err(JoseError::Time);
        }
        let now = unix_seconds(now);
        let skew = SKEW.as_secs();
        let begun = |from: Option<u64>| from.is_none_or(|from| from <= now.saturating_add(skew));
        if self.exp.saturating_add(skew) <= now || !begun(self.nbf) || !begun(self.iat) {
            return Err(JoseError::Time);
        }
        Ok(())
    }

    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        match &self.aud {
            Audience::One(one) => std::slice::from_ref(one).iter().map(String::as_str),
            Audience::Several(several) => several.iter().map(String::as_str),
        }
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.rest.get(name).and_then(Value::as_str)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::time::UNIX_EPOCH;

    use ::ring::rand::SystemRandom;
    use ::ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
    use data_encoding::BASE64URL_NOPAD;
    use jsonwebtoken::{EncodingKey, encode};
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const EXPECTED: Expected<'_> =
        Expected { issuer: "https://i", audiences: Some(&["https://a"]), types: &["", "jwt", "at+jwt"] };

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn key(id: Option<&str>) -> (EncodingKey, Value) {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let signing = EncodingKey::from_ec_der(pkcs8.as_ref());
        super::ring::install();
        let mut jwk =
            serde_json::to_value(Jwk::from_encoding_key(&signing, Algorithm::ES256).unwrap()).unwrap();
        jwk["kid"] = id.into();
        (signing, jwk)
    }

    fn claims() -> Value {
        json!({"iss": "https://i", "sub": "alice", "aud": "https://a", "exp": NOW + 60, "iat": NOW, "jti": "1"})
    }

    fn keys(set: &[&Value]) -> Keys {
        Keys::parse(json!({"keys": set}).to_string().as_bytes()).unwrap()
    }

    fn sign(header: &Header, claims: &Value, key: &EncodingKey) -> String {
        encode(header, claims, key).unwrap()
    }

    fn named(id: &str) -> Header {
        Header { kid: Some(id.into()), ..Header::new(Algorithm::ES256) }
    }

    #[test]
    fn a_token_of_the_issuer_is_read() {
        let ((one, jwk), (_, other)) = (key(Some("1")), key(Some("2")));
        let set = keys(&[&other, &jwk]);
        for header in [named("1"), Header::new(Algorithm::ES256)] {
            let read = set.verify(&sign(&header, &claims(), &one), &EXPECTED, now()).unwrap();
            assert_eq!((read.sub.as_str(), read.jti.as_deref()), ("alice", Some("1")));
        }
        let mut several = claims();
        several["aud"] = json!(["https://b", "https://a"]);
        assert!(set.verify(&sign(&named("1"), &several, &one), &EXPECTED, now()).is_ok());
        assert_eq!(issuer_of(&sign(&named("1"), &claims(), &one)).as_deref(), Some("https://i"));
    }

    #[test]
    fn ed25519_and_keys_we_do_not_know_live_side_by_side() {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let x = BASE64URL_NOPAD.encode(pair.public_key().as_ref());
        let set = keys(&[
            &json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "ed"}),
            &json!({"kty": "oct", "k": "AAAA", "kid": "secret"}),
            &json!({"kty": "new", "kid": "new"}),
        ]);
        let part = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let message = format!("{}.{}", part(json!({"alg": "EdDSA", "kid": "ed"})), part(claims()));
        let token = format!("{message}.{}", BASE64URL_NOPAD.encode(pair.sign(message.as_bytes()).as_ref()));
        assert_eq!(set.verify(&token, &EXPECTED, now()).unwrap().sub, "alice");
    }

    #[test]
    fn what_is_wrong_with_a_token_is_said() {
        let ((one, jwk), (stranger, _)) = (key(Some("1")), key(None));
        let set = keys(&[&jwk]);
        let judge = |header: &Header, claims: &Value, key| {
            set.verify(&sign(header, claims, key), &EXPECTED, now()).err()
        };
        let with = |name: &str, value: Value| {
            let mut claims = claims();
            claims[name] = value;
            claims
        };
        let refused = |claims: Value| judge(&named("1"), &claims, &one);
        assert_eq!(refused(with("iss", json!("https://i/"))), Some(JoseError::Issuer));
        assert_eq!(refused(with("aud", json!("https://a/"))), Some(JoseError::Audience));
        assert_eq!(refused(with("aud", json!([]))), Some(JoseError::Audience));
        assert_eq!(refused(with("exp", json!(NOW - 60))), Some(JoseError::Time));
        assert_eq!(refused(with("exp", json!(NOW - 59))), None);
        assert_eq!(refused(with("exp", json!(u64::MAX))), Some(JoseError::Time));
        assert_eq!(refused(with("exp", json!(1_u64 << 63))), Some(JoseError::Time));
        assert_eq!(refused(with("nbf", json!(NOW + 61))), Some(JoseError::Time));
        assert_eq!(refused(with("iat", json!(NOW + 61))), Some(JoseError::Time));
        for absent in ["iss", "aud", "exp"] {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(absent);
            assert_eq!(refused(claims), Some(JoseError::Signature), "{absent}");
        }
        assert_eq!(judge(&named("2"), &claims(), &one), Some(JoseError::UnknownKey));
        assert_eq!(judge(&named("1"), &claims(), &stranger), Some(JoseError::Signature));
        let typed = Header { typ: Some("logout+jwt".into()), ..named("1") };
        assert_eq!(judge(&typed, &claims(), &one), Some(JoseError::Type));
        let typed = Header { typ: Some("application/AT+JWT".into()), ..named("1") };
        assert_eq!(judge(&typed, &claims(), &one), None);
        let critical = Header { crit: Some(vec!["exp".into()]), ..named("1") };
        assert_eq!(judge(&critical, &claims(), &one), Some(JoseError::Malformed));
    }

    #[test]
    fn sr_t27_no_trick_with_the_algorithm_or_the_form_passes() {
        let (one, jwk) = key(Some("1"));
        let (set, good) = (keys(&[&jwk]), sign(&named("1"), &claims(), &one));
        let parts: Vec<&str> = good.split('.').collect();
        let head = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let mut forged = vec![
            String::new(),
            "..".into(),
            format!("{}.{}", parts[0], parts[1]),
            format!("{good}.x"),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}=.{}.{}", parts[0], parts[1], parts[2]),
            format!("{}.{}.{}", parts[0], parts[1], "A".repeat(20_000)),
            format!("{}.{}.{}", parts[0], parts[1], BASE64URL_NOPAD.encode(&[0; 64])),
        ];
        let algorithms = ["none", "None", "nOnE", "HS256", "HS512", "RS256", "PS256", "ES384", "EdDSA", ""];
        for algorithm in algorithms {
            let header = head(json!({"alg": algorithm, "kid": "1"}));
            for signature in ["", parts[2]] {
                forged.push(format!("{header}.{}.{signature}", parts[1]));
            }
        }
        // Keys of their own, by value and by address.
        let (stranger, own) = key(Some("1"));
        for (name, value) in
            [("jwk", own), ("jku", json!("https://evil/keys")), ("x5u", json!("https://evil"))]
        {
            let message = format!("{}.{}", head(json!({"alg": "ES256", "kid": "1", name: value})), parts[1]);
            super::ring::install();
            let signature =
                jsonwebtoken::crypto::sign(message.as_bytes(), &stranger, Algorithm::ES256).unwrap();
            forged.push(format!("{message}.{signature}"));
        }
        for token in forged {
            assert!(set.verify(&token, &EXPECTED, now()).is_err(), "{token}");
        }
        assert!(set.verify(&good, &EXPECTED, now()).is_ok());
    }
}
