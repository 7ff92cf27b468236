//! Clients that registered themselves (RFC 7591): how they are kept.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Authentication, Client, ClientError};
use crate::config::ClientAuthMethod;
use crate::jose::Keys;
use crate::store::Kind;
use crate::store::record::{RecordError, Records, Typed};

/// A registration nobody uses for so long is forgotten.
pub const TTL: Duration = Duration::from_secs(90 * 24 * 3600);

/// A registered client (store record, found by the client id).
#[derive(Clone, Serialize, Deserialize)]
pub struct Registered {
    pub client_name: Option<String>,
    pub redirect_uris: Vec<String>,
    pub issued_at: u64,
    #[serde(default)]
    pub auth_method: ClientAuthMethod,
    /// Digest of the secret.
    #[serde(default)]
    pub secret: Option<String>,
    #[serde(default)]
    pub jwks: Option<serde_json::Value>,
    #[serde(default)]
    pub jwks_uri: Option<String>,
    /// Digest of the token that this registration can be changed with (RFC 7592 §3).
    #[serde(default)]
    pub management: Option<String>,
}

impl Typed for Registered {
    const KIND: Kind = Kind::Client;
}

impl Registered {
    fn authentication(&self, private: bool) -> Option<Authentication> {
        Some(match (self.auth_method, &self.secret, &self.jwks, &self.jwks_uri) {
            (ClientAuthMethod::None, ..) => Authentication::None,
            (ClientAuthMethod::PrivateKeyJwt, _, Some(set), _) => {
                Authentication::Keys(Arc::new(Keys::parse(set.to_string().as_bytes())?))
            }
            (ClientAuthMethod::PrivateKeyJwt, _, _, Some(uri)) => {
                Authentication::KeysAt { uri: uri.clone(), private }
            }
            (ClientAuthMethod::PrivateKeyJwt, ..) => return None,
            (method, Some(digest), ..) => Authentication::Secret { method, digest: digest.clone() },
            (_, None, ..) => return None,
        })
    }
}

/// The client that registered under this id. `private`: its keys may lie at a private address.
pub async fn find(records: &Records, id: &str, private: bool) -> Result<Client, ClientError> {
    let known = match records.get::<Registered>(id).await {
        Ok(known) => known.ok_or(ClientError::Unknown)?.value,
        Err(RecordError::Unreadable) => return Err(ClientError::Unknown),
        Err(_) => return Err(ClientError::Unavailable),
    };
    Ok(Client {
        id: id.to_owned(),
        is_listed: false,
        auth: known.authentication(private).ok_or(ClientError::Unknown)?,
        name: known.client_name,
        redirect_uris: known.redirect_uris,
        host: None,
    })
}

/// A registration that is used is kept: called when tokens are issued to the client.
pub async fn keep(records: &Records, id: &str, now: SystemTime) {
    let stored = match records.get::<Registered>(id).await {
        Ok(Some(stored)) if stored.expires_at < now + TTL / 2 => stored,
        _ => return,
    };
    if let Err(error) = records.put(id, stored.version, &stored.value, TTL).await {
        tracing::warn!(target: "postern::oauth", %error, "a client's registration could not be kept longer");
    }
}
