//! The cryptography of JSON Web Signatures on `ring`, for the `jsonwebtoken` crate, which has no such back end.
//! Asymmetric algorithms only: with no secret-key algorithm there is nothing to confuse a public key with.
use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::jwk::{EllipticCurve, ThumbprintHash};
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED, ED25519,
    EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};

/// Makes it the one that the crate uses. May be called any number of times.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only where somebody else was faster, and nobody else does it.
        PROVIDER.install_default().ok();
    });
}

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |_| Err(unsupported()),
        rsa_pub_components_from_public_key: |_| Err(unsupported()),
        ec_pub_components_from_private_key: p256_public_key,
        ed_pub_components_from_private_key: |_, _| Err(unsupported()),
        compute_digest: digest,
    },
};

fn unsupported() -> Error {
    ErrorKind::InvalidAlgorithm.into()
}

// === what others signed ===

struct Public {
    algorithm: Algorithm,
    key: DecodingKey,
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    let family = match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => AlgorithmFamily::Ec,
        Algorithm::EdDSA => AlgorithmFamily::Ed,
        Algorithm::RS256 | Algorithm::PS256 => AlgorithmFamily::Rsa,
        _ => return Err(unsupported()),
    };
    match key.family() == family {
        true => Ok(Box::new(Public { algorithm: *algorithm, key: key.clone() })),
        false => Err(ErrorKind::InvalidKeyFormat.into()),
    }
}

impl Verifier<Vec<u8>> for Public {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), SignatureError> {
        match self.algorithm {
            Algorithm::ES256 => self.point(&ECDSA_P256_SHA256_FIXED, message, signature),
            Algorithm::ES384 => self.point(&ECDSA_P384_SHA384_FIXED, message, signature),
            Algorithm::EdDSA => self.point(&ED25519, message, signature),
            Algorithm::RS256 => self.rsa(&RSA_PKCS1_2048_8192_SHA256, message, signature),
            Algorithm::PS256 => self.rsa(&RSA_PSS_2048_8192_SHA256, message, signature),
            _ => Err(ring::error::Unspecified),
        }
        .map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for Public {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

type Verified = std::result::Result<(), ring::error::Unspecified>;

impl Public {
    fn point(&self, how: &'static dyn VerificationAlgorithm, message: &[u8], signature: &[u8]) -> Verified {
        match self.key.kind() {
            DecodingKeyKind::SecretOrDer(point) => {
                UnparsedPublicKey::new(how, point).verify(message, signature)
            }
            DecodingKeyKind::RsaModulusExponent { .. } => Err(ring::error::Unspecified),
        }
    }

    fn rsa(&self, how: &'static RsaParameters, message: &[u8], signature: &[u8]) -> Verified {
        match self.key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(how, message, signature)
            }
            DecodingKeyKind::SecretOrDer(der) => UnparsedPublicKey::new(how, der).verify(message, signature),
        }
    }
}

// === what we sign ===

enum Private {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    match algorithm {
        Algorithm::ES256 => Ok(Box::new(Private::P256(p256(key.as_bytes())?))),
        Algorithm::EdDSA => Ok(Box::new(Private::Ed25519(ed25519(key.as_bytes())?))),
        _ => Err(unsupported()),
    }
}

impl Signer<Vec<u8>> for Private {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, SignatureError> {
        match self {
            Self::P256(key) => {
                let signature = key.sign(&SystemRandom::new(), message);
                signature.map(|signature| signature.as_ref().to_vec()).map_err(|_| SignatureError::new())
            }
            Self::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
        }
    }
}

impl JwtSigner for Private {
    fn algorithm(&self) -> Algorithm {
        match self {
            Self::P256(_) => Algorithm::ES256,
            Self::Ed25519(_) => Algorithm::EdDSA,
        }
    }
}

/// OpenSSL writes such keys without their public half, which the strict reader misses.
fn ed25519(pkcs8: &[u8]) -> Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|_| ErrorKind::InvalidEddsaKey.into())
}

pub fn ed25519_public_key(pkcs8: &[u8]) -> Option<Vec<u8>> {
    ed25519(pkcs8).ok().map(|key| key.public_key().as_ref().to_vec())
}

/// A new key in PKCS#8.
pub fn generate_p256() -> Option<Vec<u8>> {
    let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    made.ok().map(|made| made.as_ref().to_vec())
}

fn p256(pkcs8: &[u8]) -> Result<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new())
        .map_err(|_| ErrorKind::InvalidEcdsaKey.into())
}

/// The two coordinates of the public key.
fn p256_public_key(pkcs8: &[u8], algorithm: Algorithm) -> Result<(EllipticCurve, Vec<u8>, Vec<u8>)> {
    if algorithm != Algorithm::ES256 {
        return Err(unsupported());
    }
    let key = p256(pkcs8)?;
    let point: &<EcdsaKeyPair as signature::KeyPair>::PublicKey = key.public_key();
    // One byte says that both coordinates follow.
    match point.as_ref().get(1..).and_then(|both| both.split_at_checked(32)) {
        Some((x, y)) => Ok((EllipticCurve::P256, x.to_vec(), y.to_vec())),
        None => Err(ErrorKind::InvalidEcdsaKey.into()),
    }
}

fn digest(data: &[u8], hash: ThumbprintHash) -> Result<Vec<u8>> {
    match hash {
        ThumbprintHash::SHA256 => Ok(ring::digest::digest(&ring::digest::SHA256, data).as_ref().to_vec()),
        _ => Err(unsupported()),
    }
}
