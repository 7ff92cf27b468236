//! `kind: oauth`: what is known of an upstream's authorization beforehand → [`OauthCredential`].

use std::collections::BTreeMap;

use secrecy::SecretString;

use super::super::checked::Checker;
use super::super::file::{self, RefreshRotation, Texts, TokenEndpointAuthMethod};
use super::super::profile::Profile;
use super::super::report::Key;
use super::super::secret;
use super::{Around, resource, urls};

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
    /// Whose connection serves everybody. `None`: each user has their own.
    pub shared_by: Option<String>,
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

pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    around: &Around<'_>,
) -> Option<OauthCredential> {
    let private = around.private;
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
    if let Some(user) = written.shared_by.as_ref().filter(|user| !around.login.knows(user)) {
        let what = format!("`{user}` is nobody who can sign in here");
        let write = "write a user of `login.local`, or ISSUER|SUBJECT of somebody of `login.oidc`";
        check.refuse(&key.child("shared_by"), what, write);
    }
    let profile = profile(check, key, written);
    let addresses = [
        ("issuer", &written.issuer),
        ("authorization_endpoint", &written.authorization_endpoint),
        ("token_endpoint", &written.token_endpoint),
    ];
    urls(check, key, private, &addresses);
    let at = key.child("resource");
    let resource = match &written.resource {
        Some(Texts::One(one)) => {
            resource(check, &at, one);
            Some(one.clone())
        }
        Some(Texts::Several(_)) => {
            check.refuse(
                &at,
                "is a list, and `kind: oauth` has one",
                "write the one that the upstream names",
            );
            None
        }
        None => None,
    };
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
        resource,
        token_endpoint_auth_method: written.token_endpoint_auth_method,
        authorization_params: written.authorization_params.clone().unwrap_or_default(),
        refresh_rotation: written.refresh_rotation,
        shared_by: written.shared_by.clone(),
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
