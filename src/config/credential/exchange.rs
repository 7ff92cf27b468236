//! What all credentials have in common that are got from a token endpoint by exchange: where, as whom, for what, and the
//! header that the token goes into → [`Exchanger`].

use std::collections::BTreeMap;

use http::HeaderName;
use secrecy::SecretString;

use super::super::checked::Checker;
use super::super::file::{self, Texts, TokenEndpointAuthMethod};
use super::super::report::Key;
use super::super::secret;
use super::{Around, header, urls};

/// Parameters of a token request that are Postern's own, or have keys of their own here.
const RESERVED: [&str; 16] = [
    "actor_token",
    "actor_token_type",
    "assertion",
    "audience",
    "client_assertion",
    "client_assertion_type",
    "client_id",
    "client_secret",
    "grant_type",
    "refresh_token",
    "requested_token_type",
    "requested_token_use",
    "resource",
    "scope",
    "subject_token",
    "subject_token_type",
];

/// A token endpoint and what it is asked for.
#[derive(Clone)]
pub struct Exchanger {
    /// Exactly as written. Alone: its metadata say where its token endpoint is.
    pub issuer: Option<String>,
    /// One of the two is there, or an upstream says where.
    pub token_endpoint: Option<String>,
    pub client_id: String,
    /// Where the method wants one.
    pub client_secret: Option<SecretString>,
    pub auth_method: TokenEndpointAuthMethod,
    pub scopes: Vec<String>,
    pub audience: Vec<String>,
    pub resource: Vec<String>,
    /// Never one of the parameters that Postern sets itself.
    pub params: BTreeMap<String, String>,
    /// The header that the token goes into.
    pub header: HeaderName,
    /// With `{value}` once, where the token goes.
    pub format: String,
}

impl Exchanger {
    /// Who hears what we sign: the issuer, or where nobody says who that is, its endpoint (RFC 7523 §3).
    #[must_use]
    pub fn audience_of_assertions(&self) -> &str {
        self.issuer.as_deref().or(self.token_endpoint.as_deref()).unwrap_or_default()
    }

    /// Everything that a token depends on which is got here.
    pub(super) fn facts(&self) -> String {
        let optional = |text: &Option<String>| text.clone().unwrap_or_default();
        let list = |texts: &[String]| texts.join("\u{1}");
        let params = self.params.iter().map(|(name, value)| format!("{name}\u{2}{value}"));
        let params: Vec<String> = params.collect();
        [
            optional(&self.issuer),
            optional(&self.token_endpoint),
            self.client_id.clone(),
            list(&self.scopes),
            list(&self.audience),
            list(&self.resource),
            list(&params),
        ]
        .join("\0")
    }
}

/// Checks the common part of the credential at `key`.
pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    around: &Around<'_>,
) -> Option<Exchanger> {
    urls(
        check,
        key,
        around.private,
        &[("issuer", &written.issuer), ("token_endpoint", &written.token_endpoint)],
    );
    let is_discovered = matches!(written.kind, Some(file::CredentialKind::IdJag));
    if written.issuer.is_none() && written.token_endpoint.is_none() && !is_discovered {
        let write =
            "write where tokens are got, or as `issuer` the authorization server whose metadata say so";
        check.refuse(&key.child("token_endpoint"), "is missing", write);
    }
    let client_id = written.client_id.clone().filter(|id| !id.is_empty());
    if client_id.is_none() {
        let what = if written.client_id.is_some() { "is empty" } else { "is missing" };
        check.refuse(&key.child("client_id"), what, "write Postern's client id at that token endpoint");
    }
    let client_secret = match &written.client_secret {
        Some(secret) => secret::resolve(check, &key.child("client_secret"), secret),
        None => None,
    };
    let auth_method = auth_method(check, key, written);
    let audience = names(check, &key.child("audience"), written.audience.as_ref());
    let resource = resources(check, &key.child("resource"), written.resource.as_ref());
    let places = [("issuer", &written.issuer), ("token_endpoint", &written.token_endpoint)];
    let places = places.into_iter().flat_map(|(name, text)| text.iter().map(move |text| (name, text)));
    let targets = audience.iter().map(|text| ("audience", text));
    let targets = targets.chain(resource.iter().map(|text| ("resource", text)));
    for (name, text) in places.chain(targets) {
        if is_own(text, around.own) {
            let write = "write whom the upstream gets its tokens from, and what it is called there";
            check.refuse(&key.child(name), "is Postern itself, which exchanges no tokens", write);
        }
    }
    let scopes = check.scopes(&key.child("scopes"), written.scopes.as_deref().unwrap_or_default());
    for name in written.params.iter().flat_map(BTreeMap::keys) {
        if name.is_empty() || RESERVED.contains(&name.as_str()) {
            let at = key.child("params").child(name);
            check.refuse(&at, "is a parameter that Postern sets itself", "leave it out");
        }
    }
    let header = match &written.name {
        Some(name) => header::name(check, &key.child("name"), name)?,
        None => http::header::AUTHORIZATION,
    };
    let format = written.format.as_deref().unwrap_or("Bearer {value}");
    let format = header::format(check, &key.child("format"), format)?.to_owned();
    Some(Exchanger {
        issuer: written.issuer.clone(),
        token_endpoint: written.token_endpoint.clone(),
        client_id: client_id?,
        client_secret,
        auth_method,
        scopes,
        audience,
        resource,
        params: written.params.clone().unwrap_or_default(),
        header,
        format,
    })
}

/// V-07: a token for Postern would come back to it as a caller's.
fn is_own(text: &str, own: &[(String, u16)]) -> bool {
    let Ok(url) = url::Url::parse(text) else { return false };
    let at = url.host_str().zip(url.port_or_known_default());
    at.is_some_and(|(host, port)| own.iter().any(|(name, own)| name == host && *own == port))
}

/// By a secret where there is one, and only then.
fn auth_method(check: &mut Checker<'_>, key: &Key, written: &file::Credential) -> TokenEndpointAuthMethod {
    use TokenEndpointAuthMethod::{ClientSecretBasic, None, PrivateKeyJwt};
    let method = written.token_endpoint_auth_method.unwrap_or(ClientSecretBasic);
    match (method, &written.client_secret) {
        (None | PrivateKeyJwt, Some(_)) => {
            let at = key.child("token_endpoint_auth_method");
            check.refuse(&at, "needs no client_secret, but there is one", "leave one of the two out");
        }
        (None | PrivateKeyJwt, Option::None) | (_, Some(_)) => {}
        (_, Option::None) => {
            let write = "write the client's secret, or `token_endpoint_auth_method: private_key_jwt`";
            check.refuse(&key.child("client_secret"), "is missing", write);
        }
    }
    method
}

/// V-13: who names nobody means nobody.
fn names(check: &mut Checker<'_>, key: &Key, written: Option<&Texts>) -> Vec<String> {
    let Some(written) = written else { return Vec::new() };
    let names = written.list();
    if names.is_empty() || names.iter().any(|name| name.trim().is_empty()) {
        check.refuse(key, "names nobody", "write who the token is for, or leave it out");
    }
    names
}

fn resources(check: &mut Checker<'_>, key: &Key, written: Option<&Texts>) -> Vec<String> {
    let resources = names(check, key, written);
    for resource in resources.iter().filter(|resource| !resource.trim().is_empty()) {
        super::resource(check, key, resource);
    }
    resources
}
