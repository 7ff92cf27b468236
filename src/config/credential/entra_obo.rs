//! `kind: entra_obo`: a token for each user by Entra's on-behalf-of form: what they gave us at sign-in, for what the upstream takes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::checked::Checker;
use super::super::file::{self, TokenEndpointAuthMethod};
use super::super::oidc::IdentityProvider;
use super::super::report::Key;
use super::super::secret;
use super::exchange::Exchanger;
use super::{Around, Credential, header, provider, urls};

/// What is asked for on behalf of whom.
#[derive(Clone)]
pub struct EntraObo {
    /// Its endpoint has `{tenant}` in it where the tenant is the user's own.
    pub at: Exchanger,
    pub provider: Arc<IdentityProvider>,
}

/// Where a token endpoint's path names the tenant.
pub const TENANT: &str = "{tenant}";
/// Tenant of whoever it is.
const OF_USER: &str = "from_user";
const ENDPOINT: &str = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token";

pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    around: &Around<'_>,
) -> Option<Credential> {
    urls(check, key, around.private, &[("token_endpoint", &written.token_endpoint)]);
    let provider =
        provider(check, &key.child("subject_provider"), written.subject_provider.as_deref(), around.login);
    let template = written.token_endpoint.as_deref().unwrap_or(ENDPOINT);
    let tenant = tenant(check, &key.child("tenant"), written.tenant.as_deref(), template.contains(TENANT));
    let scopes = check.scopes(&key.child("scopes"), written.scopes.as_deref().unwrap_or_default());
    if scopes.is_empty() {
        let write = "write the upstream's, like [\"api://files/.default\"]";
        check.refuse(&key.child("scopes"), "names no scope", write);
    }
    if written.client_secret.is_some() && written.client_id.is_none() {
        check.refuse(
            &key.child("client_id"),
            "is missing beside `client_secret`",
            "write whose secret it is",
        );
    }
    let own_secret = match &written.client_secret {
        Some(secret) => Some(secret::resolve(check, &key.child("client_secret"), secret)?),
        None => None,
    };
    let name = match &written.name {
        Some(name) => header::name(check, &key.child("name"), name)?,
        None => http::header::AUTHORIZATION,
    };
    let format = written.format.as_deref().unwrap_or("Bearer {value}");
    let format = header::format(check, &key.child("format"), format)?.to_owned();
    let (provider, tenant) = (provider?, tenant?);
    // The token that is shown was given to the application that signs people in: usually that one asks.
    let (client_id, client_secret) = match &written.client_id {
        Some(id) => (id.clone(), own_secret),
        None => (provider.client_id.clone(), provider.client_secret.clone()),
    };
    let auth_method = written.token_endpoint_auth_method.unwrap_or(TokenEndpointAuthMethod::ClientSecretPost);
    let needs_secret =
        !matches!(auth_method, TokenEndpointAuthMethod::PrivateKeyJwt | TokenEndpointAuthMethod::None);
    if needs_secret != client_secret.is_some() || auth_method == TokenEndpointAuthMethod::None {
        let what = "does not fit the client, which proves itself by its secret or by a key";
        let write = "write `client_secret` and its `client_id`, or `token_endpoint_auth_method: private_key_jwt` without one";
        check.refuse(&key.child("token_endpoint_auth_method"), what, write);
    }
    let at = Exchanger {
        issuer: None,
        token_endpoint: Some(template.replace(TENANT, &tenant)),
        client_id,
        client_secret,
        auth_method,
        scopes,
        audience: Vec::new(),
        resource: Vec::new(),
        params: BTreeMap::new(),
        header: name,
        format,
    };
    Some(Credential::EntraObo(Arc::new(EntraObo { at, provider })))
}

/// What stands in the endpoint's path: a tenant, or the place for the user's own.
fn tenant(check: &mut Checker<'_>, key: &Key, written: Option<&str>, is_wanted: bool) -> Option<String> {
    let write = "write the tenant's id or domain, or `from_user` for that of whoever calls";
    match (written, is_wanted) {
        (Some(OF_USER), true) => Some(TENANT.to_owned()),
        (Some(tenant), true) if is_tenant(tenant) => Some(tenant.to_owned()),
        (Some(_), true) => {
            check.refuse(key, "is not a tenant", write);
            None
        }
        (None, true) => {
            check.refuse(key, "is missing", write);
            None
        }
        (Some(_), false) => {
            check.refuse(key, "has no place in `token_endpoint`", "write {tenant} there, or leave this out");
            None
        }
        (None, false) => Some(String::new()),
    }
}

/// Whether it can stand in a path and means nothing else there.
#[must_use]
pub fn is_tenant(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (1..=128).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('.')
}
