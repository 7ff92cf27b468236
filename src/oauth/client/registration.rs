//! Who we are at an authorization server: as configured, else by our own client document, else registered there once
//! and remembered per issuer (MCP Client Registration, RFC 7591). Never reused at another issuer.
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::discover::AuthorizationServer;
use super::manage::deregister;
use super::ourselves::{self, NAME};
use super::register::{AuthMethod, RegisterError, Registration, register};
use super::{Connector, issuer_key};
use crate::config::{Credential, OauthCredential, TokenEndpointAuthMethod};
use crate::route::Route;
use crate::seal;
use crate::store::record::{RecordError, Typed};
use crate::store::{Kind, Put};

/// Longer than any connection lives without a new authorization, which writes them anew.
const REMEMBERED: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How often a write is decided anew because somebody else was faster.
const TRIES: usize = 4;
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
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks_uri: Option<String>,
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
        let configured = self.ourselves.configured(&route.credential, server);
        // Which identity is in force here. Each one also stays under its own name, for the tokens issued to it.
        let current = match &configured {
            Some(registration) => by_id(&issuer, &registration.client_id),
            None => issuer.clone(),
        };
        // One at a time: concurrent first calls register once.
        let identity = self.identity(route, server, &issuer, &current, configured);
        let (key, registration) = self.registering.take(&current, identity).await?;
        self.note_use(route, server, &registration).await;
        let registration = self.with_key(&server.issuer, registration).await;
        Ok((key, registration.map_err(|_| RegisterError::Unavailable)?))
    }

    /// The client that was known under `registration` at this issuer and token endpoint, as it authenticates today: a
    /// secret that was replaced in the configuration counts at once, where the configuration means the same issuer.
    /// `None`: we do not know it any more, or cannot read it.
    pub(super) async fn client_of(
        &self,
        credential: &Credential,
        registration: &str,
        (issuer, token_endpoint): (&str, &str),
    ) -> Result<Option<Registration>, RecordError> {
        let Some(stored) = self.records.readable::<Registration>(registration).await? else {
            return Ok(None);
        };
        let stored = stored.value;
        let today = match credential {
            Credential::Oauth(oauth)
                if is_issuer_of(oauth, issuer, token_endpoint)
                    && oauth.client_id.as_ref() == Some(&stored.client_id) =>
            {
                Registration {
                    client_secret: oauth.client_secret.clone(),
                    auth_method: match (&oauth.client_secret, oauth.token_endpoint_auth_method) {
                        (None, Some(TokenEndpointAuthMethod::PrivateKeyJwt)) => AuthMethod::PrivateKeyJwt,
                        (None, _) => AuthMethod::None,
                        (Some(_), Some(method)) => AuthMethod::from(method),
                        (Some(_), None) if stored.auth_method == AuthMethod::None => {
                            AuthMethod::ClientSecretBasic
                        }
                        (Some(_), None) => stored.auth_method,
                    },
                    ..stored
                }
            }
            credential => match credential.provider() {
                Some(provider) if provider.issuer == issuer && provider.client_id == stored.client_id => {
                    Registration {
                        client_secret: provider.client_secret.clone().or(stored.client_secret),
                        ..stored
                    }
                }
                _ => stored,
            },
        };
        self.with_key(issuer, today).await.map(Some)
    }

    /// The identity kept under `current` if it still serves, else one that is made and kept there. Other instances do
    /// the same: whoever is first decides, and the rest use what they find.
    async fn identity(
        &self,
        route: &Route,
        server: &AuthorizationServer,
        issuer: &str,
        current: &str,
        configured: Option<Registration>,
    ) -> Result<(String, Registration), RegisterError> {
        let redirect_uri = self.redirect_uri(issuer);
        let wanted = configured.or_else(|| self.ourselves.by_document(server));
        let mut made = None;
        for _ in 0..TRIES {
            let now = self.clock.now();
            let (stored, version) = self.stored(current).await?;
            if let Some(stored) = stored
                && is_current(&stored, wanted.as_ref(), &redirect_uri, now)
            {
                // Registered for nothing: another instance was faster.
                if let Some(management) = made.and_then(|made: Registration| made.management) {
                    deregister(&self.outbound, &route.upstream.policy, &management).await;
                }
                return Ok((by_id(issuer, &stored.client_id), stored));
            }
            let registration = match made.take().or_else(|| wanted.clone()) {
                Some(registration) => registration,
                None => {
                    let policy = &route.upstream.policy;
                    let wanted = ourselves::wanted(&route.credential);
                    let key = match AuthMethod::for_new_client(server, wanted) {
                        Some(AuthMethod::PrivateKeyJwt) => Some(self.client_key(&server.issuer).await),
                        _ => None,
                    };
                    let key = key.transpose().map_err(|_| RegisterError::Unavailable)?;
                    let applicant = self.ourselves.applicant(&redirect_uri, key.as_ref(), wanted);
                    register(&self.outbound, policy, server, &applicant, now).await?
                }
            };
            let own = by_id(issuer, &registration.client_id);
            if own != current {
                self.keep(&own, &registration).await?;
            }
            if self.put(current, version, &registration).await? == Put::Stored {
                tracing::info!(target: "audit", event = "registered_upstream", issuer = %server.issuer, client_id = %registration.client_id);
                return Ok((own, registration));
            }
            made = Some(registration);
        }
        Err(RegisterError::Unavailable)
    }

    /// What is there, and the version to replace it by. What nobody can read any more is replaced like the rest.
    async fn stored(&self, key: &str) -> Result<(Option<Registration>, u64), RegisterError> {
        match self.records.get::<Registration>(key).await {
            Ok(Some(stored)) => Ok((Some(stored.value), stored.version)),
            Ok(None) => Ok((None, 0)),
            Err(RecordError::Unreadable) => match self.records.store().get(Registration::KIND, key).await {
                Ok(stored) => Ok((None, stored.map_or(0, |stored| stored.version))),
                Err(_) => Err(RegisterError::Unavailable),
            },
            Err(_) => Err(RegisterError::Unavailable),
        }
    }

    /// The issuer does not know this client, or not with that secret. Says whether the next authorization is made as
    /// another one: registered anew, or as the configuration has it by now.
    pub(super) async fn forget_client(
        &self,
        credential: &Credential,
        issuer: &str,
        client: &Registration,
    ) -> bool {
        let of_today = match (credential, credential.provider()) {
            (Credential::Oauth(oauth), _) => {
                oauth.client_id.as_ref().map(|id| (id, oauth.client_secret.as_ref()))
            }
            (_, Some(provider)) => Some((&provider.client_id, provider.client_secret.as_ref())),
            (_, None) => return false,
        };
        if let Some((id, secret)) = of_today {
            return *id != client.client_id || !client.has_secret(secret);
        }
        // An id that is a URL is our own document, which has one address per issuer.
        if client.client_id.starts_with("https://") {
            return client.client_id != self.ourselves.document_url(&issuer_key(issuer));
        }
        let current = issuer_key(issuer);
        match self.stored(&current).await {
            Ok((Some(known), _)) if known.is_same_client(client) => {
                tracing::warn!(target: "audit", event = "registration_lost", issuer, client_id = %client.client_id);
                self.records.remove::<Registration>(&current).await.is_ok()
            }
            // Somebody has seen to it already.
            known => known.is_ok(),
        }
    }

    /// Whether there is another secret for this client by now, or may be in a moment. Where the configuration has one and leaves
    /// the issuer to discovery, the route has to lead to this one still, which then gets to see it.
    pub(super) async fn has_secret_of_today(
        &self,
        route: &Route,
        issuer: &str,
        client: &Registration,
    ) -> bool {
        // Another instance has got another one meanwhile, or is about to.
        if self.is_secret_changing(issuer).await {
            return true;
        }
        let Credential::Oauth(oauth) = &route.credential else { return false };
        let is_same = oauth.client_id.as_ref() == Some(&client.client_id);
        if !is_same || client.has_secret(oauth.client_secret.as_ref()) {
            return false;
        }
        match self.issuer_of_today(route, oauth).await {
            // Nobody can say whose secret it is: nothing is given up over that.
            None => true,
            Some(server) if server.issuer == issuer => {
                let Some(today) = self.ourselves.configured(&route.credential, &server) else { return false };
                self.keep(&by_id(&issuer_key(issuer), &client.client_id), &today).await.is_ok()
            }
            _ => false,
        }
    }

    /// Writes over whatever is there.
    pub(super) async fn keep(&self, key: &str, registration: &Registration) -> Result<(), RegisterError> {
        for _ in 0..TRIES {
            let (_, version) = self.stored(key).await?;
            if self.put(key, version, registration).await? == Put::Stored {
                return Ok(());
            }
        }
        Err(RegisterError::Unavailable)
    }

    async fn put(&self, key: &str, version: u64, registration: &Registration) -> Result<Put, RegisterError> {
        let put = self.records.put(key, version, registration, REMEMBERED).await;
        put.map_err(|_| RegisterError::Unavailable)
    }

    /// The document for one issuer: a public client, unless that issuer takes none.
    pub async fn document(&self, issuer_key: &str) -> Result<Document, RecordError> {
        let own_url = format!("{}/oauth/client/{issuer_key}.json", self.ourselves.origin);
        let document = self.describe(own_url, vec![self.redirect_uri(issuer_key)]);
        let known = self.records.readable::<Registration>(issuer_key).await?;
        Ok(match known.map(|known| known.value.auth_method) {
            Some(method @ AuthMethod::PrivateKeyJwt) => Document {
                token_endpoint_auth_method: method.as_str(),
                jwks_uri: Some(self.ourselves.keys_url(issuer_key)),
                ..document
            },
            _ => document,
        })
    }

    /// The document for all issuers we have dealt with: for who names it as `oauth_client.client_metadata_url`.
    pub async fn common_document(&self) -> Result<Document, RecordError> {
        let known = self.records.scan::<Registration>().await?;
        // Not where people sign in: that is a client of its own, which is registered by hand.
        let upstreams = self.redirect_uri("");
        let redirect_uris = known.into_iter().map(|(_, known)| known.value.redirect_uri);
        let mut redirect_uris: Vec<String> =
            redirect_uris.filter(|uri| uri.starts_with(&upstreams)).collect();
        redirect_uris.sort();
        redirect_uris.dedup();
        Ok(self.describe(format!("{}/oauth/client.json", self.ourselves.origin), redirect_uris))
    }

    fn describe(&self, own_url: String, redirect_uris: Vec<String>) -> Document {
        Document {
            client_id: self.ourselves.client_metadata_url.clone().unwrap_or(own_url),
            client_name: NAME,
            client_uri: self.ourselves.origin.clone(),
            redirect_uris,
            grant_types: ["authorization_code", "refresh_token"],
            response_types: ["code"],
            token_endpoint_auth_method: "none",
            jwks_uri: None,
            application_type: if self.ourselves.is_https { "web" } else { "native" },
        }
    }
}

/// Whether the configuration names this issuer. Where it leaves that to discovery, it says nothing.
fn is_issuer_of(oauth: &OauthCredential, issuer: &str, token_endpoint: &str) -> bool {
    match (&oauth.issuer, &oauth.token_endpoint) {
        (Some(configured), _) => configured == issuer,
        (None, Some(configured)) => configured == token_endpoint,
        (None, None) => false,
    }
}

/// The name of one identity at one issuer.
pub(super) fn by_id(issuer: &str, client_id: &str) -> String {
    format!("{issuer}/{}", seal::digest(client_id))
}

/// Whether a stored registration still says what is wanted. `wanted` is absent where any registered id will do.
fn is_current(
    stored: &Registration,
    wanted: Option<&Registration>,
    redirect_uri: &str,
    now: SystemTime,
) -> bool {
    // An id that is a URL was ours by document; where documents are no longer taken it is of no use.
    let any = || !stored.client_id.starts_with("https://");
    stored.redirect_uri == redirect_uri
        && stored.expires_at.is_none_or(|end| end > now + SECRET_MARGIN)
        && wanted.map_or_else(any, |wanted| stored.is_same_client(wanted))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::oauth::client::stub::{Answer, Bench, Stub, server};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn instances_that_register_at_once_use_one_identity() {
        let (both, count) = (Barrier::new(2), AtomicUsize::new(0));
        let stub = Stub::start(move |_, _| {
            // Nobody has an answer before the other has asked.
            both.wait();
            let id = format!("client-{}", count.fetch_add(1, Ordering::SeqCst));
            Answer::json(201, serde_json::json!({"client_id": id, "token_endpoint_auth_method": "none"}))
        })
        .await;
        let bench = Bench::new();
        let (one, other) = (bench.connector(), bench.connector());
        let (route, server) = (bench.route(), server(&stub));
        let found = tokio::join!(one.registration(&route, &server), other.registration(&route, &server));
        let (one, other) = (found.0.unwrap(), found.1.unwrap());
        assert_eq!(stub.seen().len(), 2);
        assert_eq!((one.0, one.1.client_id), (other.0, other.1.client_id));
        let common = bench.connector().registration(&route, &server).await.unwrap();
        assert_eq!(stub.seen().len(), 2, "and nobody registers again");
        let own = bench.records.get::<Registration>(&common.0).await.unwrap().unwrap().value;
        assert_eq!(own.client_id, common.1.client_id);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_replaced() {
        let stub = Stub::start(|_, _| Answer::json(201, serde_json::json!({"client_id": "new"}))).await;
        let bench = Bench::new();
        let (route, server) = (bench.route(), server(&stub));
        let key = issuer_key(&server.issuer);
        for damage in [&b"x"[..], b"y"] {
            let version = bench.records.store().get(Kind::Registration, &key).await.unwrap();
            let version = version.map_or(0, |stored| stored.version);
            let put = bench.records.store().put(Kind::Registration, &key, version, damage.into(), REMEMBERED);
            assert_eq!(put.await.unwrap(), Put::Stored);
            let (_, found) = bench.connector().registration(&route, &server).await.unwrap();
            assert_eq!(found.client_id, "new");
        }
        assert_eq!(stub.seen().len(), 2);
    }
}
