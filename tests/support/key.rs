//! A client's key pair: signs assertions (RFC 7523) and publishes its public half. And the other side, which verifies them.

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};

use super::random_hex;

pub struct Key {
    pair: EcdsaKeyPair,
    pub id: String,
}

impl Key {
    pub fn new(id: &str) -> Self {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random);
        Key { pair: pair.expect("key"), id: id.into() }
    }

    /// The JWK set with the public half.
    pub fn set(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let [x, y] = [&point[1..33], &point[33..]].map(|part| BASE64URL_NOPAD.encode(part));
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id, "x": x, "y": y}]})
    }

    /// Any claims, signed.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as("JWT", claims)
    }

    /// The same for any `typ`.
    pub fn sign_as(&self, kind: &str, claims: &Value) -> String {
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let head = json!({"alg": "ES256", "kid": self.id, "typ": kind});
        let message = format!("{}.{}", part(&head), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).expect("signature");
        format!("{message}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    }

    /// What an assertion of this client for this audience says.
    pub fn claims(client: &str, audience: &str) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("time").as_secs();
        json!({"iss": client, "sub": client, "aud": audience, "iat": now, "exp": now + 60, "jti": random_hex(8)})
    }

    /// An assertion by which a client shows who it is.
    pub fn assertion(&self, client: &str, audience: &str) -> String {
        self.sign(&Self::claims(client, audience))
    }
}

/// What a JWT says, if a P-256 key of this set has signed it.
pub fn verified(set: &Value, token: &str) -> Option<Value> {
    let (message, signature) = token.rsplit_once('.')?;
    let decode = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).ok();
    let signature = decode(signature)?;
    let is_signed = set["keys"].as_array()?.iter().any(|key| {
        let point = |name: &str| key[name].as_str().and_then(decode);
        let Some((x, y)) = point("x").zip(point("y")) else { return false };
        let key =
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, [&[4], x.as_slice(), y.as_slice()].concat());
        key.verify(message.as_bytes(), &signature).is_ok()
    });
    let claims = serde_json::from_slice(&decode(message.split_once('.')?.1)?).ok()?;
    is_signed.then_some(claims)
}
