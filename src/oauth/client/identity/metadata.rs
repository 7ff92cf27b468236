//! What an identity provider says of itself (OpenID Connect Discovery §3): asked for when first needed, kept for a while,
//! and good for as long as it does not answer.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::IdentityError;
use crate::config::IdentityProvider;
use crate::oauth::client::register::{AuthMethod, Registration};
use crate::outbound::kept::Kept;
use crate::outbound::{AddressPolicy, Limits, Outbound, Request};

/// More than any configuration lists.
const PROVIDERS: usize = 256;
const TIME: Duration = Duration::from_secs(5);
const MAX_LEN: usize = 256 * 1024;

/// As published by the provider.
#[derive(Deserialize)]
pub(super) struct Metadata {
    issuer: String,
    authorization_endpoint: String,
    pub(super) token_endpoint: String,
    pub(super) jwks_uri: String,
    end_session_endpoint: Option<String>,
    pub(super) revocation_endpoint: Option<String>,
    pub(super) userinfo_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// What is known, by issuer.
pub(super) struct Known(Kept<Metadata>);

impl Default for Known {
    fn default() -> Self {
        Self(Kept::new(PROVIDERS))
    }
}

impl Known {
    pub(super) async fn of(
        &self,
        outbound: &Outbound,
        provider: &IdentityProvider,
        policy: &AddressPolicy,
        now: SystemTime,
    ) -> Result<Arc<Metadata>, IdentityError> {
        let fetched = fetched(outbound, provider, policy);
        self.0.get(&provider.issuer, false, now, fetched).await.ok_or(IdentityError::Unavailable)
    }

    pub(super) async fn renew(
        &self,
        outbound: &Outbound,
        provider: &IdentityProvider,
        policy: &AddressPolicy,
        now: SystemTime,
    ) {
        self.0.renew(&provider.issuer, now, fetched(outbound, provider, policy)).await;
    }
}

async fn fetched(
    outbound: &Outbound,
    provider: &IdentityProvider,
    policy: &AddressPolicy,
) -> Option<Metadata> {
    fetch(outbound, provider, policy)
        .await
        .inspect_err(|why| {
            tracing::warn!(target: "postern::oauth", provider = %provider.name, why, "an identity provider's metadata cannot be had");
        })
        .ok()
}

async fn fetch(
    outbound: &Outbound,
    provider: &IdentityProvider,
    policy: &AddressPolicy,
) -> Result<Metadata, String> {
    // §4.1: a slash at the end of the issuer is not doubled.
    let url = format!("{}/.well-known/openid-configuration", provider.issuer.trim_end_matches('/'));
    let limits = Limits { total: TIME, body: MAX_LEN, ..Limits::default() };
    let response =
        outbound.send(Request::get(url).limits(limits), policy).await.map_err(|error| error.to_string())?;
    if response.status != http::StatusCode::OK {
        return Err(format!("status {}", response.status.as_u16()));
    }
    let metadata = response.json::<Metadata>().map_err(|_| "not a discovery document".to_owned())?;
    // §4.3: byte for byte.
    match metadata.issuer == provider.issuer {
        true => Ok(metadata),
        false => Err("the document names another issuer".to_owned()),
    }
}

impl Metadata {
    pub(super) fn authorization_url(&self, pairs: &[(&str, &str)]) -> String {
        with_query(&self.authorization_endpoint, pairs)
    }

    pub(super) fn end_session_url(&self, pairs: &[(&str, &str)]) -> Option<String> {
        self.end_session_endpoint.as_ref().map(|endpoint| with_query(endpoint, pairs))
    }

    /// RFC 9207 §2.4: who says that it sends `iss` has to, and whoever sends it has to be the one who was asked.
    pub(super) fn is_from(&self, provider: &IdentityProvider, iss: Option<&str>) -> bool {
        match iss {
            Some(iss) => iss == provider.issuer,
            None => !self.authorization_response_iss_parameter_supported,
        }
    }

    /// Us, as the provider knows us.
    pub(super) fn client(&self, provider: &IdentityProvider, redirect_uri: &str) -> Registration {
        let client_secret = provider.client_secret.clone();
        let auth_method = match (&client_secret, self.prefers_basic()) {
            (None, _) => AuthMethod::None,
            (Some(_), true) => AuthMethod::ClientSecretBasic,
            (Some(_), false) => AuthMethod::ClientSecretPost,
        };
        let (client_id, redirect_uri) = (provider.client_id.clone(), redirect_uri.to_owned());
        Registration::new(client_id, client_secret, auth_method, redirect_uri)
    }

    /// The default where nothing is said (OpenID Connect Discovery §3).
    fn prefers_basic(&self) -> bool {
        let methods = self.token_endpoint_auth_methods_supported.as_ref();
        methods.is_none_or(|methods| {
            let has = |method: &str| methods.iter().any(|known| known == method);
            has("client_secret_basic") || !has("client_secret_post")
        })
    }
}

fn with_query(endpoint: &str, pairs: &[(&str, &str)]) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let separator = if endpoint.contains('?') { '&' } else { '?' };
    format!("{endpoint}{separator}{query}")
}
