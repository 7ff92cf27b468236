//! Who asks: the clients we know. Three ways to be known: listed in the configuration, registered (RFC 7591), or by the
//! document that the id points to.
pub mod document;
pub mod registered;

use std::sync::Arc;

use secrecy::ExposeSecret;

use super::{Authority, Snapshot, redirect};
use crate::config::{ClientAuthMethod, ListedAuthentication, ListedClient};
use crate::jose::Keys;
use crate::seal;

/// Longer ids are refused.
const ID_MAX: usize = 2048;

/// A client, however it is known.
#[derive(Clone)]
pub struct Client {
    pub id: String,
    /// What it calls itself: unverified.
    pub name: Option<String>,
    pub redirect_uris: Vec<String>,
    /// The host that vouches for it: that of its document. Registered clients have none.
    pub host: Option<String>,
    /// Whoever runs this gateway has listed it.
    pub is_listed: bool,
    pub auth: Authentication,
}

/// How a client proves who it is (RFC 6749 §2.3).
#[derive(Clone)]
pub enum Authentication {
    /// A public client: by nothing.
    None,
    /// `digest`: of its secret.
    Secret {
        method: ClientAuthMethod,
        digest: String,
    },
    Keys(Arc<Keys>),
    /// Keys at a URL, which may be a private one.
    KeysAt {
        uri: String,
        private: bool,
    },
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("client is not known")]
    Unknown,
    #[error("client document is not usable: {0}")]
    Document(&'static str),
    /// Theirs or ours is out of reach: worth another try, and no reason to forget anything.
    #[error("client cannot be looked up now")]
    Unavailable,
}

impl Authority {
    /// The client of that id.
    pub async fn client(&self, snapshot: &Snapshot, id: &str) -> Result<Client, ClientError> {
        if id.len() > ID_MAX {
            return Err(ClientError::Unknown);
        }
        let settings = &snapshot.config.oauth_server;
        if let Some(listed) = settings.listed.get(id) {
            return Ok(Client::listed(id, listed));
        }
        if id.starts_with("https://") || id.starts_with("http://") {
            let outbound = &self.connector.outbound;
            return self.documents.find(outbound, &settings.cimd, id, self.clock.now()).await;
        }
        registered::find(&self.records, id, settings.cimd.allow_private).await
    }
}

impl Client {
    fn listed(id: &str, listed: &ListedClient) -> Self {
        let auth = match &listed.authentication {
            ListedAuthentication::None => Authentication::None,
            ListedAuthentication::Secret { method, secret } => {
                Authentication::Secret { method: *method, digest: seal::digest(secret.expose_secret()) }
            }
            ListedAuthentication::Keys(keys) => Authentication::Keys(Arc::clone(keys)),
            // The operator wrote the address.
            ListedAuthentication::KeysAt(uri) => Authentication::KeysAt { uri: uri.clone(), private: true },
        };
        Self {
            id: id.to_owned(),
            name: listed.name.clone(),
            redirect_uris: listed.redirect_uris.clone(),
            host: None,
            is_listed: true,
            auth,
        }
    }

    /// What the user looks at when asked about it: another digest is another question.
    pub fn digest(&self) -> String {
        let parts = serde_json::json!([self.name, self.redirect_uris, self.host, self.auth.method()]);
        seal::digest(&parts.to_string())
    }

    pub fn allows(&self, redirect_uri: &str) -> bool {
        self.redirect_uris.iter().any(|registered| redirect::matches(registered, redirect_uri))
    }
}

impl Authentication {
    pub fn method(&self) -> ClientAuthMethod {
        match self {
            Self::None => ClientAuthMethod::None,
            Self::Secret { method, .. } => *method,
            Self::Keys(_) | Self::KeysAt { .. } => ClientAuthMethod::PrivateKeyJwt,
        }
    }
}
