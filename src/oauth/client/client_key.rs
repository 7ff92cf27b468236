//! How we prove ourselves without a shared secret (`private_key_jwt`, RFC 7523 §2.2): with a key of our own for each issuer,
//! made when first needed and kept in the store, so that all instances have the same one. What is signed for one issuer
//! proves nothing at another: neither audience nor key fit (RFC 9700 §4.8, audience injection).
use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::jwk::Jwk;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::register::{AuthMethod, Registration};
use super::{Connector, issuer_key};
use crate::clock::unix_seconds;
use crate::jose::sign::{self, SigningKey};
use crate::seal;
use crate::store::record::{RecordError, Typed};
use crate::store::{FOREVER, Kind, Put};

/// An assertion is for the request that it is made for.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long what was published counts.
const PUBLISHED: Duration = Duration::from_secs(5);
/// What their names in the store begin with.
const CLIENT: &str = "client/";
/// RFC 7523 §2.2.
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Our key at one issuer.
#[derive(Clone)]
pub struct ClientKey {
    key: SigningKey,
    /// The issuer, byte for byte.
    audience: String,
}

/// Our public keys as they were last looked up.
#[derive(Default)]
pub(super) struct Published {
    keys: Option<Vec<Jwk>>,
    asked: Option<SystemTime>,
}

/// As kept: PKCS#8 in base64url (store record).
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(serialize_with = "crate::store::record::expose")]
    client_key: SecretString,
}

impl Typed for Kept {
    const KIND: Kind = Kind::Key;
}

/// RFC 7523 §3.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    jti: &'a str,
}

impl ClientKey {
    /// A proof that the client of this id asks, good for a minute. `None`: no randomness.
    pub fn assertion(&self, client_id: &str, now: SystemTime) -> Option<SecretString> {
        self.sign(client_id, client_id, now)
    }

    /// That a call is made for this user of `us`, our own origin, good for a minute (RFC 7523 §3). `None`: no randomness.
    pub fn vouch(&self, us: &str, user: &str, now: SystemTime) -> Option<SecretString> {
        self.sign(us, user, now)
    }

    fn sign(&self, issuer: &str, subject: &str, now: SystemTime) -> Option<SecretString> {
        let iat = unix_seconds(now);
        let jti = seal::name().ok()?;
        let claims = Claims {
            iss: issuer,
            sub: subject,
            aud: &self.audience,
            iat,
            exp: iat + LIFETIME.as_secs(),
            jti: &jti,
        };
        self.key.sign("JWT", &claims).map(SecretString::from)
    }

    /// One that nobody keeps, to try a registration with. `None`: no randomness.
    pub fn fleeting(issuer: &str) -> Option<Self> {
        let key = SigningKey::from_pkcs8(&sign::generate()?)?;
        Some(Self { key, audience: issuer.to_owned() })
    }

    /// The public half.
    pub fn public(&self) -> &Jwk {
        self.key.public()
    }
}

impl Connector {
    /// The registration with our key beside it, where it is proven by one.
    pub(super) async fn with_key(
        &self,
        issuer: &str,
        registration: Registration,
    ) -> Result<Registration, RecordError> {
        let key = match registration.auth_method {
            AuthMethod::PrivateKeyJwt => Some(self.client_key(issuer).await?),
            _ => None,
        };
        Ok(Registration { key, ..registration })
    }

    /// Our key at this issuer; the first time it is made.
    pub async fn client_key(&self, issuer: &str) -> Result<ClientKey, RecordError> {
        let name = name_of(&issuer_key(issuer));
        loop {
            let version = match self.records.get::<Kept>(&name).await {
                Ok(Some(kept)) => match read(&kept.value) {
                    Some(key) => return Ok(ClientKey { key, audience: issuer.to_owned() }),
                    None => kept.version,
                },
                Ok(None) => 0,
                // What nobody can read any more is replaced, and with it the registration that has its public half.
                Err(RecordError::Unreadable) => {
                    self.forget_keyed_registration(&issuer_key(issuer)).await?;
                    self.records.store().get(Kept::KIND, &name).await?.map_or(0, |kept| kept.version)
                }
                Err(error) => return Err(error),
            };
            let made = sign::generate().ok_or(RecordError::Unreadable)?;
            let kept = Kept { client_key: BASE64URL_NOPAD.encode(&made).into() };
            // Another instance may be faster: then its key counts.
            if self.records.put(&name, version, &kept, FOREVER).await? == Put::Stored {
                tracing::info!(target: "audit", event = "client_key", issuer, replaced = version > 0);
                // Whoever is shown something signed by it asks for it at once.
                self.published_keys.lock().await.asked = None;
            }
        }
    }

    /// One that was registered there by itself; who is a document or was registered by hand only publishes another key.
    async fn forget_keyed_registration(&self, current: &str) -> Result<(), RecordError> {
        let known = self.records.readable::<Registration>(current).await?.map(|known| known.value);
        match known.is_some_and(|known| {
            known.auth_method == AuthMethod::PrivateKeyJwt && !known.client_id.starts_with("https://")
        }) {
            true => self.records.remove::<Registration>(current).await,
            false => Ok(()),
        }
    }

    /// Those of all issuers. Anybody may ask, so the store is asked now and then only; while it does not answer, what was
    /// known is said, if anything was.
    pub async fn all_client_keys(&self) -> Option<Vec<Jwk>> {
        let now = self.clock.now();
        let mut published = self.published_keys.lock().await;
        if published.asked.is_none_or(|at| now >= at + PUBLISHED) {
            published.asked = Some(now);
            if let Ok(keys) = self.client_keys(None).await {
                published.keys = Some(keys);
            }
        }
        published.keys.clone()
    }

    /// The public keys that one issuer, or all of them, verify our assertions with (RFC 7517 §5).
    pub async fn client_keys(&self, of: Option<&str>) -> Result<Vec<Jwk>, RecordError> {
        let mut names: Vec<String> = match of {
            Some(issuer_key) => vec![issuer_key.to_owned()],
            // Also those that no registration has: they sign what is said about our users.
            None => {
                let kept = self.records.store().scan(Kept::KIND).await?.into_iter();
                kept.filter_map(|(name, _)| name.strip_prefix(CLIENT).map(str::to_owned)).collect()
            }
        };
        names.sort();
        names.dedup();
        let mut keys = Vec::new();
        for name in names {
            let kept = self.records.readable::<Kept>(&name_of(&name)).await?;
            keys.extend(kept.and_then(|kept| read(&kept.value)).map(|key| key.public().clone()));
        }
        Ok(keys)
    }
}

fn name_of(issuer_key: &str) -> String {
    format!("{CLIENT}{issuer_key}")
}

fn read(kept: &Kept) -> Option<SigningKey> {
    let der = BASE64URL_NOPAD.decode(kept.client_key.expose_secret().as_bytes()).ok()?;
    SigningKey::from_pkcs8(&der)
}
