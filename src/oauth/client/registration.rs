//! Who we are at an authorization server: as configured, else by our own client document, else registered there once
//! and remembered per issuer (MCP Client Registration, RFC 7591). Never reused at another issuer.
use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;
use serde::Serialize;

use super::discover::AuthorizationServer;
use super::register::{AuthMethod, RegisterError, Registration, register};
use super::{Connector, issuer_key};
use crate::config::{Credential, OauthCredential, TokenEndpointAuthMethod};
use crate::route::Route;
use crate::seal;
use crate::store::Kind;
use crate::store::record::{RecordError, Typed};

const NAME: &str = "Postern";
/// Longer than any connection lives without a new authorization, which writes them anew.
const REMEMBERED: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A secret this close to its end is replaced.
const SECRET_MARGIN: Duration = Duration::from_secs(60);

impl Typed for Registration {
    const KIND: Kind = Kind::Registration;
}

/// The client document we publish about ourselves.
#[derive(Serialize)]
pub struct Document {
    client_id: String,
    client_name: &'static str,
    client_uri: String,
    redirect_uris: Vec<String>,
    grant_types: [&'static str; 2],
    response_types: [&'static str; 1],
    token_endpoint_auth_method: &'static str,
    application_type: &'static str,
}

impl Connector {
    /// Our identity at `server` for `route`, and the key it is stored under.
    pub(super) async fn registration(
        &self,
        route: &Route,
        server: &AuthorizationServer,
    ) -> Result<(String, Registration), RegisterError> {
        let issuer = issuer_key(&server.issuer);
        let redirect_uri = self.redirect_uri(&issuer);
        let configured = match &route.credential {
            Credential::Oauth(oauth) => {
                oauth.client_id.as_ref().map(|id| configured(oauth, id, server, &redirect_uri))
            }
            _ => None,
        };
        // Which identity is in force here. Each one also stays under its own name, for the tokens issued to it.
        let current = match &configured {
            Some(registration) => by_id(&issuer, &registration.client_id),
            None => issuer.clone(),
        };
        // One at a time: concurrent first calls register once.
        let turn = self.registering.entry(current.clone()).or_default().clone();
        let _turn = turn.lock().await;
        let now = self.clock.now();
        let stored = match self.records.get::<Registration>(&current).await {
            Ok(stored) => stored,
            Err(RecordError::Unreadable) => None,
            Err(_) => return Err(RegisterError::Unavailable),
        };
        let wanted = configured.or_else(|| self.by_document(server, &issuer, &redirect_uri));
        if let Some(stored) = &stored
            && is_current(&stored.value, wanted.as_ref(), &redirect_uri, now)
        {
            return Ok((by_id(&issuer, &stored.value.client_id), stored.value.clone()));
        }
        let registration = match wanted {
            Some(registration) => registration,
            None => {
                register(
                    &self.outbound,
                    &route.upstream.policy,
                    server,
                    &redirect_uri,
                    NAME,
                    &self.origin,
                    now,
                )
                .await?
            }
        };
        let own = by_id(&issuer, &registration.client_id);
        self.replace(&own, &registration).await.map_err(|_| RegisterError::Unavailable)?;
        if own != current {
            self.replace(&current, &registration).await.map_err(|_| RegisterError::Unavailable)?;
        }
        tracing::info!(target: "audit", event = "registered_upstream", issuer = %server.issuer, client_id = %registration.client_id);
        Ok((own, registration))
    }

    /// Writes over whatever is there, readable or not.
    async fn replace(&self, key: &str, registration: &Registration) -> Result<(), RecordError> {
        let version = match self.records.get::<Registration>(key).await {
            Ok(stored) => stored.map_or(0, |stored| stored.version),
            Err(RecordError::Unreadable) => {
                self.records.remove::<Registration>(key).await?;
                0
            }
            Err(error) => return Err(error),
        };
        self.records.put(key, version, registration, REMEMBERED).await?;
        Ok(())
    }

    /// By Client ID Metadata Document, where the server takes them and ours can be fetched from outside.
    fn by_document(
        &self,
        server: &AuthorizationServer,
        issuer: &str,
        redirect_uri: &str,
    ) -> Option<Registration> {
        let client_id = match &self.client_metadata_url {
            Some(url) => url.clone(),
            None if self.is_https => format!("{}/oauth/client/{issuer}.json", self.origin),
            None => return None,
        };
        server.cimd.then(|| Registration {
            client_id,
            client_secret: None,
            auth_method: AuthMethod::None,
            redirect_uri: redirect_uri.to_owned(),
            expires_at: None,
        })
    }

    /// The document for one issuer.
    pub fn document(&self, issuer_key: &str) -> Document {
        self.describe(
            format!("{}/oauth/client/{issuer_key}.json", self.origin),
            vec![self.redirect_uri(issuer_key)],
        )
    }

    /// The document for all issuers we have dealt with: for who names it as `oauth_client.client_metadata_url`.
    pub async fn common_document(&self) -> Result<Document, RecordError> {
        let known = self.records.scan::<Registration>().await?;
        let mut redirect_uris: Vec<String> =
            known.into_iter().map(|(_, known)| known.value.redirect_uri).collect();
        redirect_uris.sort();
        redirect_uris.dedup();
        Ok(self.describe(format!("{}/oauth/client.json", self.origin), redirect_uris))
    }

    fn describe(&self, own_url: String, redirect_uris: Vec<String>) -> Document {
        Document {
            client_id: self.client_metadata_url.clone().unwrap_or(own_url),
            client_name: NAME,
            client_uri: self.origin.clone(),
            redirect_uris,
            grant_types: ["authorization_code", "refresh_token"],
            response_types: ["code"],
            token_endpoint_auth_method: "none",
            application_type: if self.is_https { "web" } else { "native" },
        }
    }
}

fn configured(
    oauth: &OauthCredential,
    client_id: &str,
    server: &AuthorizationServer,
    redirect_uri: &str,
) -> Registration {
    let auth_method = match oauth.token_endpoint_auth_method {
        Some(TokenEndpointAuthMethod::None) => AuthMethod::None,
        Some(TokenEndpointAuthMethod::ClientSecretPost) => AuthMethod::ClientSecretPost,
        Some(TokenEndpointAuthMethod::ClientSecretBasic) => AuthMethod::ClientSecretBasic,
        None => AuthMethod::for_configured_client(server, oauth.client_secret.is_some()),
    };
    let (client_id, client_secret) = (client_id.to_owned(), oauth.client_secret.clone());
    Registration {
        client_id,
        client_secret,
        auth_method,
        redirect_uri: redirect_uri.to_owned(),
        expires_at: None,
    }
}

/// The name of one identity at one issuer.
fn by_id(issuer: &str, client_id: &str) -> String {
    format!("{issuer}/{}", seal::digest(client_id))
}

/// Whether a stored registration still says what is wanted. `wanted` is absent where any registered id will do.
fn is_current(
    stored: &Registration,
    wanted: Option<&Registration>,
    redirect_uri: &str,
    now: SystemTime,
) -> bool {
    let secret = |registration: &Registration| {
        registration.client_secret.as_ref().map(|secret| secret.expose_secret().to_owned())
    };
    let same = |wanted: &Registration| {
        stored.client_id == wanted.client_id
            && stored.auth_method == wanted.auth_method
            && secret(stored) == secret(wanted)
    };
    // An id that is a URL was ours by document; where documents are no longer taken it is of no use.
    let any = || !stored.client_id.starts_with("https://");
    stored.redirect_uri == redirect_uri
        && stored.expires_at.is_none_or(|end| end > now + SECRET_MARGIN)
        && wanted.map_or_else(any, same)
}
