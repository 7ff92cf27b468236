//! What a route puts into requests to its upstream, as configured.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

use super::checked::{Checker, bare_host};
use super::file::{self, CredentialKind, RefreshRotation, TokenEndpointAuthMethod};
use super::login::Login;
use super::oidc::IdentityProvider;
use super::profile::Profile;
use super::report::Key;
use super::secret;

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
    /// Each user's own token.
    Oauth(OauthCredential),
    /// The access token that this provider gave when the user signed in.
    UpstreamInject(Arc<IdentityProvider>),
}

impl Credential {
    /// Whether each user has one of their own, and has to be there in person to get it.
    #[must_use]
    pub fn is_of_user(&self) -> bool {
        matches!(self, Self::Oauth(_) | Self::UpstreamInject(_))
    }
}

/// What is configured about the upstream's authorization; everything else is discovered.
#[derive(Clone, Default)]
pub struct OauthCredential {
    pub client_id: Option<String>,
    /// Only together with `client_id`.
    pub client_secret: Option<SecretString>,
    /// `None`: what the upstream asks for.
    pub scopes: Option<Vec<String>>,
    /// Exactly as written: issuers are compared as strings.
    pub issuer: Option<String>,
    /// Both: nothing is discovered. One alone stands in for the one that is.
    pub authorization_endpoint: Option<String>,
    pub token_endpoint: Option<String>,
    /// Exactly as written (RFC 8707).
    pub resource: Option<String>,
    pub token_endpoint_auth_method: Option<TokenEndpointAuthMethod>,
    /// Never one of the parameters that Postern sets itself.
    pub authorization_params: BTreeMap<String, String>,
    /// `None`: unknown.
    pub refresh_rotation: Option<RefreshRotation>,
    /// `None`: by the issuer.
    pub profile: Option<&'static Profile>,
}

impl OauthCredential {
    /// How the authorization server of this issuer deviates from the standards.
    #[must_use]
    pub fn profile_at(&self, issuer: &str) -> &'static Profile {
        self.profile.unwrap_or_else(|| Profile::of_issuer(issuer))
    }
}

/// Parameters of the authorization request that are Postern's own, or would change where its answer goes.
const RESERVED: [&str; 11] = [
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "redirect_uri",
    "request",
    "request_uri",
    "resource",
    "response_mode",
    "response_type",
    "scope",
    "state",
];

/// Headers that belong to the connection (RFC 9110 §7.6.1), to the message or to the proxy.
const REFUSED: [&str; 12] = [
    "connection",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Families of headers that are refused as a whole.
const REFUSED_PREFIXES: [&str; 3] = ["content-", "mcp-", "x-forwarded-"];

/// Checks the credential at `key`. `private` are the hosts for which `http` is allowed. `None`: a problem was recorded.
pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: Option<&file::Credential>,
    private: &[String],
    login: &Login,
) -> Option<Credential> {
    let Some(written) = written else {
        return Some(Credential::Oauth(OauthCredential::default()));
    };
    let kind = written.kind.unwrap_or_default();
    strangers(check, key, written, kind);
    match kind {
        CredentialKind::None => Some(Credential::None),
        CredentialKind::Header => header(check, key, written),
        CredentialKind::UpstreamInject => inject(check, &key.child("provider"), written, login),
        CredentialKind::Oauth => oauth(check, key, written, private).map(Credential::Oauth),
    }
}

/// Refuses keys that belong to another kind.
fn strangers(check: &mut Checker<'_>, key: &Key, written: &file::Credential, kind: CredentialKind) {
    let header = [
        ("name", written.name.is_some()),
        ("value", written.value.is_some()),
        ("format", written.format.is_some()),
    ];
    let oauth = [
        ("client_id", written.client_id.is_some()),
        ("client_secret", written.client_secret.is_some()),
        ("scopes", written.scopes.is_some()),
        ("issuer", written.issuer.is_some()),
        ("authorization_endpoint", written.authorization_endpoint.is_some()),
        ("token_endpoint", written.token_endpoint.is_some()),
        ("resource", written.resource.is_some()),
        ("token_endpoint_auth_method", written.token_endpoint_auth_method.is_some()),
        ("authorization_params", written.authorization_params.is_some()),
        ("refresh_rotation", written.refresh_rotation.is_some()),
        ("profile", written.profile.is_some()),
    ];
    let inject = [("provider", written.provider.is_some())];
    let inject = inject
        .into_iter()
        .map(|(name, present)| (name, present, CredentialKind::UpstreamInject, "upstream_inject"));
    let header = header.into_iter().map(|(name, present)| (name, present, CredentialKind::Header, "header"));
    let oauth = oauth.into_iter().map(|(name, present)| (name, present, CredentialKind::Oauth, "oauth"));
    for (name, present, of, word) in header.chain(oauth).chain(inject) {
        if present && of != kind {
            let what = format!("belongs to `kind: {word}`");
            check.refuse(&key.child(name), what, format!("leave it out, or write `kind: {word}`"));
        }
    }
}

fn inject(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    login: &Login,
) -> Option<Credential> {
    let write = "write the `name` of an entry of `login.oidc`";
    let Some(name) = &written.provider else {
        check.refuse(key, "is missing", write);
        return None;
    };
    let Some(provider) = login.provider(name) else {
        check.refuse(key, format!("`{name}` is no identity provider"), write);
        return None;
    };
    Some(Credential::UpstreamInject(Arc::new(provider.clone())))
}

fn header(check: &mut Checker<'_>, key: &Key, written: &file::Credential) -> Option<Credential> {
    let name = match &written.name {
        Some(name) => header_name(check, &key.child("name"), name),
        None => {
            check.refuse(
                &key.child("name"),
                "is missing",
                "write the name of the header, like Authorization",
            );
            None
        }
    };
    let secret = match &written.value {
        Some(value) => secret::resolve(check, &key.child("value"), value),
        None => {
            let write = format!("write {}", super::shape::SECRET_FORMS);
            check.refuse(&key.child("value"), "is missing", write);
            None
        }
    };
    let format = written.format.as_deref().unwrap_or("{value}");
    if format.matches("{value}").count() != 1 {
        let write = "write {value} once, where the secret goes, like \"Bearer {value}\"";
        check.refuse(&key.child("format"), "does not say where the secret goes", write);
        return None;
    }
    let (name, secret) = (name?, secret?);
    let value = SecretString::from(format.replace("{value}", secret.expose_secret()));
    let text = value.expose_secret();
    if HeaderValue::from_str(text).is_err() || text.trim() != text {
        let what = "makes a header value with characters that a header cannot have";
        check.refuse(
            &key.child("value"),
            what,
            "put printable ASCII on one line there, without spaces around it",
        );
        return None;
    }
    Some(Credential::Header { name, value })
}

fn header_name(check: &mut Checker<'_>, key: &Key, written: &str) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(written.as_bytes()) else {
        check.refuse(key, "is not a header name", "write a name like Authorization or X-Api-Key");
        return None;
    };
    let taken = REFUSED.contains(&name.as_str())
        || REFUSED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
        || name == "last-event-id";
    if taken {
        check.refuse(
            key,
            "is a header that a credential cannot set",
            "write the header the upstream reads the secret from",
        );
        return None;
    }
    Some(name)
}

fn oauth(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    private: &[String],
) -> Option<OauthCredential> {
    let client_secret = written
        .client_secret
        .as_ref()
        .map(|secret| secret::resolve(check, &key.child("client_secret"), secret));
    if written.client_id.as_ref().is_some_and(String::is_empty) {
        check.refuse(&key.child("client_id"), "is empty", "write the client id, or leave it out");
    }
    if client_secret.is_some() && written.client_id.is_none() {
        check.refuse(
            &key.child("client_id"),
            "is missing beside `client_secret`",
            "write whose secret it is",
        );
    }
    auth_method(check, key, written);
    let profile = profile(check, key, written);
    for (name, value) in [
        ("issuer", &written.issuer),
        ("authorization_endpoint", &written.authorization_endpoint),
        ("token_endpoint", &written.token_endpoint),
    ] {
        let Some(text) = value else { continue };
        let at = key.child(name);
        let Some(url) = check.url(&at, text, true) else {
            continue;
        };
        let host = bare_host(&url);
        if url.scheme() == "http" && !private.contains(&host) {
            check.refuse(&at, "is http", format!("write https://, or add {host} to `upstream.allow_hosts`"));
        } else if name == "issuer" && url.query().is_some() {
            // RFC 8414 §2; an endpoint may have one (RFC 6749 §3.1).
            check.refuse(&at, "contains a query", "write the issuer exactly as its metadata spells it");
        }
    }
    if let Some(resource) = &written.resource {
        let bad = |c: char| c.is_control() || c.is_whitespace() || c == '#';
        if url::Url::parse(resource).is_err() || resource.chars().any(bad) {
            let write = "write an absolute URI without a fragment, as the upstream spells it";
            check.refuse(&key.child("resource"), "is not a resource indicator", write);
        }
    }
    for name in written.authorization_params.iter().flat_map(BTreeMap::keys) {
        if name.is_empty() || RESERVED.contains(&name.as_str()) {
            let at = key.child("authorization_params").child(name);
            check.refuse(&at, "is a parameter that Postern sets itself", "leave it out");
        }
    }
    let scopes = written.scopes.as_ref().map(|scopes| check.scopes(&key.child("scopes"), scopes));
    let client_secret = match client_secret {
        Some(secret) => Some(secret?),
        None => None,
    };
    // Where a provider publishes nothing, all three are known, unless one of them is written.
    let is_elsewhere = written.issuer.is_some() || written.authorization_endpoint.is_some();
    let is_elsewhere = is_elsewhere || written.token_endpoint.is_some();
    let known = profile.and_then(|profile| profile.endpoints).filter(|_| !is_elsewhere);
    let or_known = |written: &Option<String>, index: usize| {
        written.clone().or(known.and_then(|known| known.get(index).map(ToString::to_string)))
    };
    Some(OauthCredential {
        client_id: written.client_id.clone(),
        client_secret,
        scopes,
        issuer: or_known(&written.issuer, 0),
        authorization_endpoint: or_known(&written.authorization_endpoint, 1),
        token_endpoint: or_known(&written.token_endpoint, 2),
        resource: written.resource.clone(),
        token_endpoint_auth_method: written.token_endpoint_auth_method,
        authorization_params: written.authorization_params.clone().unwrap_or_default(),
        refresh_rotation: written.refresh_rotation,
        profile,
    })
}

/// The provider that is named, if it can be used as the rest is written.
fn profile(check: &mut Checker<'_>, key: &Key, written: &file::Credential) -> Option<&'static Profile> {
    let name = written.profile.as_deref()?;
    let Some(profile) = Profile::named(name) else {
        let names: Vec<_> = Profile::names().collect();
        let write = format!("write one of {}, or leave it out", names.join(", "));
        check.refuse(&key.child("profile"), format!("`{name}` is no provider that is known"), write);
        return None;
    };
    if profile.registered_by_hand && written.client_id.is_none() {
        let what = format!("is missing: at {name} every application is registered by hand");
        check.refuse(&key.child("client_id"), what, "register Postern there and write the client id it gets");
    }
    Some(profile)
}

/// The method must fit what there is to authenticate with.
fn auth_method(check: &mut Checker<'_>, key: &Key, written: &file::Credential) {
    let at = key.child("token_endpoint_auth_method");
    match (written.token_endpoint_auth_method, &written.client_id, &written.client_secret) {
        (Some(TokenEndpointAuthMethod::None | TokenEndpointAuthMethod::PrivateKeyJwt), _, Some(_)) => {
            check.refuse(&at, "needs no client_secret, but there is one", "leave one of the two out");
        }
        (
            Some(TokenEndpointAuthMethod::ClientSecretBasic | TokenEndpointAuthMethod::ClientSecretPost),
            Some(_),
            None,
        ) => check.refuse(&at, "needs a client_secret", "add `client_secret`, or write `none`"),
        _ => {}
    }
}
