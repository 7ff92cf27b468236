//! `kind: id_jag`: enterprise-managed authorization. The ID token of the user's sign-in is exchanged at its provider for an identity
//! assertion (ID-JAG) for the upstream's authorization server, which gives a token for it. Where nobody writes which one that is,
//! the upstream's metadata say so.

use std::sync::Arc;

use super::super::checked::Checker;
use super::super::file::{self, TokenEndpointAuthMethod};
use super::super::oidc::IdentityProvider;
use super::super::report::Key;
use super::exchange::{self, Exchanger};
use super::{Around, Credential, provider};

/// Two exchanges in a row.
#[derive(Clone)]
pub struct IdJag {
    /// At the upstream's authorization server: the assertion for a token.
    pub at: Exchanger,
    /// At the provider: the ID token for an assertion.
    pub first: Exchanger,
    pub provider: Arc<IdentityProvider>,
}

impl IdJag {
    /// Whether the upstream is asked for its authorization server.
    #[must_use]
    pub fn is_discovered(&self) -> bool {
        self.at.issuer.is_none() && self.at.token_endpoint.is_none()
    }
}

pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    around: &Around<'_>,
) -> Option<Credential> {
    let provider =
        provider(check, &key.child("subject_provider"), written.subject_provider.as_deref(), around.login);
    if written.issuer.is_none() && written.audience.is_none() && written.token_endpoint.is_some() {
        let write = "write the issuer of the upstream's authorization server here or as `issuer`";
        check.refuse(&key.child("audience"), "is missing", write);
    }
    let mut at = exchange::check(check, key, written, around)?;
    let provider = provider?;
    let mut audience = std::mem::take(&mut at.audience);
    if audience.is_empty() {
        audience.extend(at.issuer.clone());
    }
    let auth_method = match provider.client_secret {
        Some(_) => TokenEndpointAuthMethod::ClientSecretBasic,
        None => TokenEndpointAuthMethod::None,
    };
    let first = Exchanger {
        issuer: Some(provider.issuer.clone()),
        token_endpoint: None,
        client_id: provider.client_id.clone(),
        client_secret: provider.client_secret.clone(),
        auth_method,
        audience,
        resource: std::mem::take(&mut at.resource),
        params: std::collections::BTreeMap::new(),
        ..at.clone()
    };
    Some(Credential::IdJag(Arc::new(IdJag { at, first, provider })))
}
