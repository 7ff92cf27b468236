//! Who we are towards authorization servers, as far as the configuration alone says it. Asks neither them nor the store.
use super::client_key::ClientKey;
use super::discover::AuthorizationServer;
use super::issuer_key;
use super::register::{Applicant, AuthMethod, Registration};
use crate::config::{Config, Credential};

/// Our name in registrations and documents.
pub(super) const NAME: &str = "Postern";

/// Where we are found, and what our client documents say of that.
pub struct Ourselves {
    /// Where upstream authorization servers send users back to.
    pub(super) origin: String,
    pub(super) is_https: bool,
    pub(super) client_metadata_url: Option<String>,
}

impl Ourselves {
    pub fn new(config: &Config) -> Self {
        Self {
            origin: config.server.public_url.origin().to_owned(),
            is_https: config.server.public_url.is_https(),
            client_metadata_url: config.oauth_client.client_metadata_url.clone(),
        }
    }

    /// Where the authorization server of this key sends users back to: one address per issuer, so that no issuer can
    /// pass for another (RFC 9700 §4.4).
    pub fn redirect_uri(&self, issuer_key: &str) -> String {
        format!("{}/oauth/upstream/callback/{issuer_key}", self.origin)
    }

    /// Where our own document for this issuer lies.
    pub fn document_url(&self, issuer_key: &str) -> String {
        let own = || format!("{}/oauth/client/{issuer_key}.json", self.origin);
        self.client_metadata_url.clone().unwrap_or_else(own)
    }

    /// Where this issuer finds the key that proves us there.
    pub fn keys_url(&self, issuer_key: &str) -> String {
        format!("{}/oauth/client/{issuer_key}/jwks.json", self.origin)
    }

    /// Whether our documents can be fetched from outside.
    pub fn has_documents(&self) -> bool {
        self.client_metadata_url.is_some() || self.is_https
    }

    /// As the operator has registered us by hand, if so.
    pub fn configured(&self, credential: &Credential, server: &AuthorizationServer) -> Option<Registration> {
        let Credential::Oauth(oauth) = credential else { return None };
        let client_id = oauth.client_id.clone()?;
        let auth_method = match oauth.token_endpoint_auth_method {
            Some(method) => AuthMethod::from(method),
            None => AuthMethod::for_configured_client(server, oauth.client_secret.is_some()),
        };
        let redirect_uri = self.redirect_uri(&issuer_key(&server.issuer));
        Some(Registration::new(client_id, oauth.client_secret.clone(), auth_method, redirect_uri))
    }

    /// By Client ID Metadata Document, where the server takes them and ours can be fetched from outside.
    pub fn by_document(&self, server: &AuthorizationServer) -> Option<Registration> {
        if !server.cimd || !self.has_documents() {
            return None;
        }
        // A document that is not ours is a public client's.
        let auth_method = match self.client_metadata_url {
            Some(_) => AuthMethod::None,
            None => AuthMethod::for_document(server),
        };
        let issuer = issuer_key(&server.issuer);
        Some(Registration::new(self.document_url(&issuer), None, auth_method, self.redirect_uri(&issuer)))
    }

    /// Who registers, where neither of the two is known. `key`: for servers that want one; `wanted`: see [`wanted`].
    pub fn applicant<'a>(
        &'a self,
        redirect_uri: &'a str,
        key: Option<&'a ClientKey>,
        wanted: Option<AuthMethod>,
    ) -> Applicant<'a> {
        Applicant { redirect_uri, client_name: NAME, client_uri: &self.origin, key, wanted }
    }
}

/// How the operator wants us to be authenticated, where that is not left to the server.
pub fn wanted(credential: &Credential) -> Option<AuthMethod> {
    match credential {
        Credential::Oauth(oauth) => oauth.token_endpoint_auth_method.map(AuthMethod::from),
        _ => None,
    }
}
