//! What a route puts into requests to its upstream, as configured. One file per strategy: what is written → what it means.

mod header;
mod inject;
mod oauth;
pub(super) mod postern_token;

use std::sync::Arc;

use http::HeaderName;
use secrecy::SecretString;

use super::checked::Checker;
use super::file::{self, CredentialKind, InjectedToken};
use super::login::Login;
use super::oidc::IdentityProvider;
use super::report::Key;

pub use header::UserHeader;
pub use oauth::OauthCredential;

/// The kinds of credential.
#[derive(Clone)]
pub enum Credential {
    /// Nothing is put in.
    None,
    /// One header, the same for everybody.
    Header {
        name: HeaderName,
        /// The whole value of the header; always a valid one.
        value: SecretString,
    },
    /// One header, with each user's own secret.
    UserHeader(UserHeader),
    /// Each user's own token.
    Oauth(OauthCredential),
    /// A token that this provider gave when the user signed in.
    UpstreamInject(Arc<IdentityProvider>, InjectedToken),
    /// A token of ours for the caller, good for these routes; at least one.
    PosternToken(Vec<String>),
}

/// What the check of a credential looks at beside the credential.
pub(super) struct Around<'a> {
    /// Hosts for which `http` is allowed.
    pub(super) private: &'a [String],
    pub(super) login: &'a Login,
}

impl Credential {
    /// The kind, as it is written.
    #[must_use]
    pub fn word(&self) -> &'static str {
        let kind = match self {
            Self::None => CredentialKind::None,
            Self::Header { .. } | Self::UserHeader(_) => CredentialKind::Header,
            Self::Oauth(_) => CredentialKind::Oauth,
            Self::UpstreamInject(..) => CredentialKind::UpstreamInject,
            Self::PosternToken(_) => CredentialKind::PosternToken,
        };
        kind.word()
    }

    /// Whether each user has one of their own, and has to be there in person to get it.
    #[must_use]
    pub fn is_of_user(&self) -> bool {
        matches!(self, Self::UserHeader(_) | Self::Oauth(_) | Self::UpstreamInject(..))
    }
}

/// Checks the credential at `key`. `None`: a problem was recorded.
pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: Option<&file::Credential>,
    around: &Around<'_>,
) -> Option<Credential> {
    let Some(written) = written else {
        return Some(Credential::Oauth(OauthCredential::default()));
    };
    let kind = written.kind.unwrap_or_default();
    strangers(check, key, written, kind);
    match kind {
        CredentialKind::None => Some(Credential::None),
        CredentialKind::Header => header::check(check, key, written),
        CredentialKind::Oauth => oauth::check(check, key, written, around.private).map(Credential::Oauth),
        CredentialKind::UpstreamInject => inject::check(check, key, written, around.login),
        CredentialKind::PosternToken => postern_token::check(check, key, written),
    }
}

/// Refuses keys that belong to other kinds.
fn strangers(check: &mut Checker<'_>, key: &Key, written: &file::Credential, kind: CredentialKind) {
    use CredentialKind::{Header, Oauth, PosternToken, UpstreamInject};
    let keys: [(&str, bool, &[CredentialKind]); 19] = [
        ("name", written.name.is_some(), &[Header]),
        ("value", written.value.is_some(), &[Header]),
        ("format", written.format.is_some(), &[Header]),
        ("per_user", written.per_user.is_some(), &[Header]),
        ("hint", written.hint.is_some(), &[Header]),
        ("client_id", written.client_id.is_some(), &[Oauth]),
        ("client_secret", written.client_secret.is_some(), &[Oauth]),
        ("scopes", written.scopes.is_some(), &[Oauth]),
        ("issuer", written.issuer.is_some(), &[Oauth]),
        ("authorization_endpoint", written.authorization_endpoint.is_some(), &[Oauth]),
        ("token_endpoint", written.token_endpoint.is_some(), &[Oauth]),
        ("resource", written.resource.is_some(), &[Oauth]),
        ("token_endpoint_auth_method", written.token_endpoint_auth_method.is_some(), &[Oauth]),
        ("authorization_params", written.authorization_params.is_some(), &[Oauth]),
        ("refresh_rotation", written.refresh_rotation.is_some(), &[Oauth]),
        ("profile", written.profile.is_some(), &[Oauth]),
        ("provider", written.provider.is_some(), &[UpstreamInject]),
        ("token", written.token.is_some(), &[UpstreamInject]),
        ("routes", written.routes.is_some(), &[PosternToken]),
    ];
    for (name, _, kinds) in
        keys.into_iter().filter(|(_, is_written, kinds)| *is_written && !kinds.contains(&kind))
    {
        let kinds: Vec<_> = kinds.iter().map(|kind| format!("`kind: {}`", kind.word())).collect();
        let kinds = kinds.join(" or ");
        check.refuse(
            &key.child(name),
            format!("belongs to {kinds}"),
            format!("leave it out, or write {kinds}"),
        );
    }
}

/// The identity provider that a key at `key` names.
fn provider(
    check: &mut Checker<'_>,
    key: &Key,
    written: Option<&str>,
    login: &Login,
) -> Option<Arc<IdentityProvider>> {
    let write = "write the `name` of an entry of `login.oidc`";
    let what = match written {
        None => "is missing".to_owned(),
        // V-06: a name that is empty never means one of them.
        Some("") => "is empty".to_owned(),
        Some(name) => match login.provider(name) {
            Some(provider) => return Some(Arc::new(provider.clone())),
            None if login.providers.is_empty() => {
                format!("`{name}` is no identity provider, and `login.oidc` has none")
            }
            None => format!("`{name}` is no identity provider"),
        },
    };
    check.refuse(key, what, write);
    None
}
