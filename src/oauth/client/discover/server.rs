//! An authorization server that is fit for use: as its metadata say, as far as they hold together, and as the configuration
//! says.
use serde::{Deserialize, Serialize};
use url::Url;

use super::check::{self, origin, safe_url, same_site};
use super::document::ServerMetadata;
use super::scope::valid_scopes;
use super::{DiscoverError, IssuerMetadata, Target};
use crate::config::Profile;

/// An authorization server whose metadata was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizationServer {
    /// Verbatim: compared as a string with `iss`, and the key under which our client identity is kept.
    pub issuer: String,
    pub authorization_endpoint: String,
    pub token_endpoint: String,
    pub registration_endpoint: Option<String>,
    pub revocation_endpoint: Option<String>,
    /// Client authentication at the token endpoint, by registered name.
    pub auth_methods: Vec<String>,
    /// Takes client ID metadata documents.
    pub cimd: bool,
    /// Promises `iss` in every authorization response (RFC 9207).
    pub iss_parameter: bool,
    pub scopes_supported: Vec<String>,
    /// Somebody has said all this; otherwise it is what a server of the first revision would have.
    #[serde(default)]
    pub is_published: bool,
}

/// Both endpoints configured: the operator's word instead of any document.
pub(super) fn configured_server(target: &Target<'_>) -> Result<Option<AuthorizationServer>, DiscoverError> {
    let overrides = target.overrides;
    let (Some(authorization), Some(token)) = (&overrides.authorization_endpoint, &overrides.token_endpoint)
    else {
        return Ok(None);
    };
    let url = safe_url(authorization, target.policy)?;
    safe_url(token, target.policy)?;
    Ok(Some(AuthorizationServer {
        issuer: overrides.issuer.clone().unwrap_or_else(|| origin(&url)),
        authorization_endpoint: authorization.clone(),
        token_endpoint: token.clone(),
        registration_endpoint: None,
        revocation_endpoint: None,
        auth_methods: default_auth_methods(),
        cimd: false,
        iss_parameter: false,
        scopes_supported: Vec::new(),
        is_published: true,
    }))
}

impl IssuerMetadata for ServerMetadata {
    fn issuer(&self) -> &str {
        &self.issuer
    }
}

impl ServerMetadata {
    /// Whether it offers what we need. `profile`: of its issuer.
    pub(super) fn check(&self, profile: &Profile) -> Result<(), DiscoverError> {
        let methods = self.code_challenge_methods_supported.as_deref();
        let is_hidden = methods.is_none() && profile.hides_pkce;
        if !is_hidden && !methods.unwrap_or_default().iter().any(|method| method == "S256") {
            return Err(DiscoverError::Unsupported("it does not announce pkce with s256"));
        }
        let grants = |grants: &Vec<String>| grants.iter().any(|grant| grant == "authorization_code");
        if !self.grant_types_supported.as_ref().is_none_or(grants) {
            return Err(DiscoverError::Unsupported("it does not grant codes"));
        }
        Ok(())
    }
}

/// `metadata` is known to be of `issuer`; what it says is fit for use after this.
pub(super) fn checked_server(
    target: &Target<'_>,
    issuer: &Url,
    metadata: ServerMetadata,
) -> Result<AuthorizationServer, DiscoverError> {
    let overrides = target.overrides;
    metadata.check(overrides.profile_at(&metadata.issuer))?;
    let authorization_endpoint = overrides
        .authorization_endpoint
        .clone()
        .or(metadata.authorization_endpoint)
        .ok_or(DiscoverError::Unsupported("it has no authorization endpoint"))?;
    let token_endpoint = overrides
        .token_endpoint
        .clone()
        .or(metadata.token_endpoint)
        .ok_or(DiscoverError::Unsupported("it has no token endpoint"))?;
    let authorization = safe_url(&authorization_endpoint, target.policy)?;
    let token = safe_url(&token_endpoint, target.policy)?;
    belong_together(target, &authorization, &token)?;
    for endpoint in [&metadata.registration_endpoint, &metadata.revocation_endpoint].into_iter().flatten() {
        safe_url(endpoint, target.policy)?;
    }
    if overrides.authorization_endpoint.is_none()
        && !same_site(issuer, &authorization)
        && !target.policy.allows_private(check::bare_host(&authorization))
    {
        return Err(DiscoverError::Invalid("authorization endpoint on another site than the issuer"));
    }
    let mut auth_methods =
        metadata.token_endpoint_auth_methods_supported.unwrap_or_else(default_auth_methods);
    // We sign with ES256 and nothing else.
    let algorithms = metadata.token_endpoint_auth_signing_alg_values_supported;
    if algorithms.is_some_and(|algorithms| !algorithms.iter().any(|algorithm| algorithm == "ES256")) {
        auth_methods.retain(|method| method != "private_key_jwt");
    }
    // A configured token endpoint says whose secrets these are: a server found elsewhere gets to see none of them.
    let is_foreign = overrides.token_endpoint.is_some() && overrides.issuer.is_none();
    let is_shown = |endpoint: &str| {
        !is_foreign || Url::parse(endpoint).is_ok_and(|endpoint| same_site(&token, &endpoint))
    };
    Ok(AuthorizationServer {
        issuer: metadata.issuer,
        authorization_endpoint,
        token_endpoint,
        registration_endpoint: metadata.registration_endpoint.filter(|endpoint| is_shown(endpoint)),
        revocation_endpoint: metadata.revocation_endpoint.filter(|endpoint| is_shown(endpoint)),
        auth_methods,
        cimd: metadata.client_id_metadata_document_supported.unwrap_or(false),
        iss_parameter: metadata.authorization_response_iss_parameter_supported.unwrap_or(false),
        scopes_supported: valid_scopes(metadata.scopes_supported.unwrap_or_default()),
        is_published: true,
    })
}

/// Whether a code that comes from the one may go to the other. A configured authorization endpoint is somebody's whom the
/// operator trusts; without an issuer beside it, a server that was found may not collect what people get there.
pub(super) fn belong_together(
    target: &Target<'_>,
    authorization: &Url,
    token: &Url,
) -> Result<(), DiscoverError> {
    let overrides = target.overrides;
    let is_bare = overrides.authorization_endpoint.is_some()
        && overrides.issuer.is_none()
        && overrides.token_endpoint.is_none();
    let is_known = same_site(authorization, token) || target.policy.allows_private(check::bare_host(token));
    match is_bare && !is_known {
        true => Err(DiscoverError::Invalid(
            "token endpoint on another site than the configured authorization endpoint",
        )),
        false => Ok(()),
    }
}

/// RFC 8414 §2: what an absent list means.
fn default_auth_methods() -> Vec<String> {
    vec!["client_secret_basic".to_string()]
}
