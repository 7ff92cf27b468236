//! What a route puts into requests to its upstream, as configured. One file per strategy: what is written → what it means.

mod aws_sigv4;
mod client_credentials;
mod custom;
mod entra_obo;
mod exchange;
mod header;
mod id_jag;
mod inject;
mod oauth;
pub(super) mod postern_token;
mod token_exchange;

use std::sync::Arc;

use http::HeaderName;
use secrecy::SecretString;

use super::checked::{Checker, bare_host};
use super::file::{self, CredentialKind, ExchangeForm, InjectedToken};
use super::login::Login;
use super::oidc::IdentityProvider;
use super::report::Key;

pub use aws_sigv4::{AwsSigv4, Held as RolesHeld};
pub use custom::Custom;
pub use entra_obo::{EntraObo, TENANT, is_tenant};
pub use exchange::Exchanger;
pub use header::{UserHeader, is_settable};
pub use id_jag::IdJag;
pub use oauth::OauthCredential;
pub use token_exchange::{Actor, Subject, TokenExchange};

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
    /// Whatever a strategy says that this program was built with.
    Custom(Custom),
    /// A token of our own, the same for everybody.
    ClientCredentials(Arc<Exchanger>),
    /// A token for each user, got for another one.
    TokenExchange(Arc<TokenExchange>),
    /// A signature, with the credentials of the user's role at AWS.
    AwsSigv4(Arc<AwsSigv4>),
    /// The same in Entra's form.
    EntraObo(Arc<EntraObo>),
    /// The same by way of an identity assertion.
    IdJag(Arc<IdJag>),
}

/// What the check of a credential looks at beside the credential.
pub(super) struct Around<'a> {
    /// Hosts for which `http` is allowed.
    pub(super) private: &'a [String],
    pub(super) login: &'a Login,
    /// Where Postern itself is found: names and ports.
    pub(super) own: &'a [(String, u16)],
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
            Self::Custom(_) => CredentialKind::Custom,
            Self::ClientCredentials(_) => CredentialKind::ClientCredentials,
            Self::TokenExchange(_) => CredentialKind::TokenExchange,
            Self::AwsSigv4(_) => CredentialKind::AwsSigv4,
            Self::EntraObo(_) => CredentialKind::EntraObo,
            Self::IdJag(_) => CredentialKind::IdJag,
        };
        kind.word()
    }

    /// Whether each user has one of their own, and has to be there in person to get it.
    #[must_use]
    pub fn is_of_user(&self) -> bool {
        matches!(self, Self::UserHeader(_) | Self::Oauth(_)) || self.provider().is_some()
    }

    /// The identity provider whose tokens it is, or is made of.
    #[must_use]
    pub fn provider(&self) -> Option<&Arc<IdentityProvider>> {
        self.of_provider().map(|(provider, _)| provider)
    }

    /// The same, and which of its tokens.
    #[must_use]
    pub fn of_provider(&self) -> Option<(&Arc<IdentityProvider>, InjectedToken)> {
        match self {
            Self::UpstreamInject(provider, token) => Some((provider, *token)),
            Self::TokenExchange(exchange) => match &exchange.subject {
                Subject::Provider(provider, token) => Some((provider, *token)),
                Subject::Caller => None,
            },
            Self::AwsSigv4(aws) => Some((&aws.provider, InjectedToken::Id)),
            Self::EntraObo(obo) => Some((&obo.provider, InjectedToken::Access)),
            Self::IdJag(jag) => Some((&jag.provider, InjectedToken::Id)),
            _ => None,
        }
    }

    /// Where it is exchanged, if it is.
    #[must_use]
    pub fn exchanger(&self) -> Option<&Exchanger> {
        match self {
            Self::ClientCredentials(at) => Some(at),
            Self::TokenExchange(exchange) => Some(&exchange.at),
            Self::EntraObo(obo) => Some(&obo.at),
            Self::IdJag(jag) => Some(&jag.at),
            _ => None,
        }
    }

    /// Whether it takes more of a user than who they are.
    #[must_use]
    pub fn needs_attributes(&self) -> bool {
        matches!(self, Self::AwsSigv4(aws) if aws.needs_attributes())
    }

    /// Whether the token that a caller comes with is shown to somebody else.
    #[must_use]
    pub fn shows_caller(&self) -> bool {
        matches!(self, Self::TokenExchange(exchange) if matches!(exchange.subject, Subject::Caller))
    }

    /// Everything that an exchanged token depends on which is not about its user.
    #[must_use]
    pub fn facts(&self) -> String {
        let at = self.exchanger().map(Exchanger::facts).unwrap_or_default();
        match self {
            Self::TokenExchange(exchange) => {
                let optional = |text: &Option<String>| text.clone().unwrap_or_default();
                let form = match exchange.form {
                    ExchangeForm::Exchange => "exchange",
                    ExchangeForm::Assertion => "assertion",
                };
                let kinds = [&exchange.subject_token_type, &exchange.requested_token_type].map(optional);
                let of = match &exchange.subject {
                    Subject::Provider(_, InjectedToken::Id) => "id",
                    Subject::Provider(_, InjectedToken::Access) => "access",
                    Subject::Caller => "caller",
                };
                [form, of, &kinds.join("\0"), &at].join("\0")
            }
            Self::IdJag(jag) => [at, jag.first.facts()].join("\0"),
            _ => at,
        }
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
        CredentialKind::Oauth => oauth::check(check, key, written, around).map(Credential::Oauth),
        CredentialKind::UpstreamInject => inject::check(check, key, written, around.login),
        CredentialKind::PosternToken => postern_token::check(check, key, written),
        CredentialKind::Custom => custom::check(check, key, written),
        CredentialKind::ClientCredentials => client_credentials::check(check, key, written, around),
        CredentialKind::TokenExchange => token_exchange::check(check, key, written, around),
        CredentialKind::AwsSigv4 => aws_sigv4::check(check, key, written, around),
        CredentialKind::EntraObo => entra_obo::check(check, key, written, around),
        CredentialKind::IdJag => id_jag::check(check, key, written, around),
    }
}

/// Refuses keys that belong to other kinds.
fn strangers(check: &mut Checker<'_>, key: &Key, written: &file::Credential, kind: CredentialKind) {
    use CredentialKind::{
        AwsSigv4, ClientCredentials, Custom, EntraObo, Header, IdJag, Oauth, PosternToken, TokenExchange,
        UpstreamInject,
    };
    let token_request: &[CredentialKind] = &[Oauth, ClientCredentials, TokenExchange, EntraObo, IdJag];
    let issued: &[CredentialKind] = &[Oauth, ClientCredentials, TokenExchange, IdJag];
    let exchange: &[CredentialKind] = &[ClientCredentials, TokenExchange, IdJag];
    let keys: [(&str, bool, &[CredentialKind]); 41] = [
        ("name", written.name.is_some(), &[Header, ClientCredentials, TokenExchange, EntraObo, IdJag]),
        ("value", written.value.is_some(), &[Header]),
        ("format", written.format.is_some(), &[Header, ClientCredentials, TokenExchange, EntraObo, IdJag]),
        ("per_user", written.per_user.is_some(), &[Header]),
        ("hint", written.hint.is_some(), &[Header]),
        ("client_id", written.client_id.is_some(), token_request),
        ("client_secret", written.client_secret.is_some(), token_request),
        ("scopes", written.scopes.is_some(), token_request),
        ("issuer", written.issuer.is_some(), issued),
        ("authorization_endpoint", written.authorization_endpoint.is_some(), &[Oauth]),
        ("token_endpoint", written.token_endpoint.is_some(), token_request),
        ("resource", written.resource.is_some(), issued),
        ("audience", written.audience.is_some(), exchange),
        ("params", written.params.is_some(), exchange),
        ("token_endpoint_auth_method", written.token_endpoint_auth_method.is_some(), token_request),
        ("shared_by", written.shared_by.is_some(), &[Oauth]),
        ("authorization_params", written.authorization_params.is_some(), &[Oauth]),
        ("refresh_rotation", written.refresh_rotation.is_some(), &[Oauth]),
        ("profile", written.profile.is_some(), &[Oauth]),
        ("provider", written.provider.is_some(), &[UpstreamInject]),
        ("token", written.token.is_some(), &[UpstreamInject]),
        ("routes", written.routes.is_some(), &[PosternToken]),
        ("strategy", written.strategy.is_some(), &[Custom]),
        ("with", written.with.is_some(), &[Custom]),
        ("form", written.form.is_some(), &[TokenExchange]),
        ("subject", written.subject.is_some(), &[TokenExchange]),
        ("subject_provider", written.subject_provider.is_some(), &[TokenExchange, EntraObo, IdJag, AwsSigv4]),
        ("tenant", written.tenant.is_some(), &[EntraObo]),
        ("subject_token", written.subject_token.is_some(), &[TokenExchange]),
        ("subject_token_type", written.subject_token_type.is_some(), &[TokenExchange]),
        ("requested_token_type", written.requested_token_type.is_some(), &[TokenExchange]),
        ("actor", written.actor.is_some(), &[TokenExchange]),
        ("actor_token", written.actor_token.is_some(), &[TokenExchange]),
        ("actor_token_type", written.actor_token_type.is_some(), &[TokenExchange]),
        ("region", written.region.is_some(), &[AwsSigv4]),
        ("service", written.service.is_some(), &[AwsSigv4]),
        ("roles", written.roles.is_some(), &[AwsSigv4]),
        ("fallback_role", written.fallback_role.is_some(), &[AwsSigv4]),
        ("session_name_claim", written.session_name_claim.is_some(), &[AwsSigv4]),
        ("duration", written.duration.is_some(), &[AwsSigv4]),
        ("sts_endpoint", written.sts_endpoint.is_some(), &[AwsSigv4]),
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
pub(super) fn provider(
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

/// Addresses of an authorization server. `private`: hosts for which `http` is allowed.
fn urls(check: &mut Checker<'_>, key: &Key, private: &[String], written: &[(&str, &Option<String>)]) {
    for (name, value) in written {
        let Some(text) = value else { continue };
        let at = key.child(name);
        let Some(url) = check.url(&at, text, true) else {
            continue;
        };
        let host = bare_host(&url);
        if url.scheme() == "http" && !private.contains(&host) {
            check.refuse(&at, "is http", format!("write https://, or add {host} to `upstream.allow_hosts`"));
        } else if *name == "issuer" && url.query().is_some() {
            // RFC 8414 §2; an endpoint may have one (RFC 6749 §3.1).
            check.refuse(&at, "contains a query", "write the issuer exactly as its metadata spells it");
        }
    }
}

/// RFC 8707 §2.
fn resource(check: &mut Checker<'_>, key: &Key, written: &str) {
    let bad = |c: char| c.is_control() || c.is_whitespace() || c == '#';
    if url::Url::parse(written).is_err() || written.chars().any(bad) {
        let write = "write an absolute URI without a fragment, as the upstream spells it";
        check.refuse(key, "is not a resource indicator", write);
    }
}
