//! What somebody wants to be otherwise about a configuration, and what follows from it.
use std::collections::BTreeSet;

use secrecy::{ExposeSecret as _, SecretString};

use super::Refused;
use crate::managed::record::{Auth, Configuration, Header, SecretHeader, Sharing};

/// What somebody wants to be otherwise; `None`: as it is.
#[derive(Default, Clone)]
pub struct Wish {
    pub name: Option<String>,
    pub url: Option<String>,
    pub auth: Option<Auth>,
    pub sharing: Option<Sharing>,
    pub passthrough: Option<bool>,
    /// `Some(None)`: what the server wants.
    pub scopes: Option<Option<Vec<String>>>,
    pub headers: Option<Vec<Header>>,
    pub enabled: Option<bool>,
}

/// Whether tokens and connections that were good before are so no more. The order of scopes is no matter, nor is what is
/// sent along.
pub(super) fn is_material(before: &Configuration, after: &Configuration) -> bool {
    let set = |scopes: &Option<Vec<String>>| {
        scopes.as_ref().map(|scopes| scopes.iter().cloned().collect::<BTreeSet<_>>())
    };
    let client = |auth: &Auth| match auth {
        Auth::OauthStatic { client_id, client_secret } => {
            let secret = client_secret.as_ref().map(|secret| secret.expose_secret().to_owned());
            Some((client_id.clone(), secret))
        }
        Auth::None | Auth::StaticHeaders(_) | Auth::OauthDynamic => None,
    };
    before.url != after.url
        || before.auth.word() != after.auth.word()
        || client(&before.auth) != client(&after.auth)
        || set(&before.scopes) != set(&after.scopes)
}

pub(super) fn wished(configuration: Configuration, wish: &Wish) -> Configuration {
    let wish = wish.clone();
    Configuration {
        name: wish.name.unwrap_or(configuration.name),
        url: wish.url.unwrap_or(configuration.url),
        auth: wish.auth.map_or(configuration.auth.clone(), |auth| kept(auth, configuration.auth)),
        sharing: wish.sharing.unwrap_or(configuration.sharing),
        passthrough: wish.passthrough.unwrap_or(configuration.passthrough),
        scopes: wish.scopes.unwrap_or(configuration.scopes),
        headers: wish.headers.unwrap_or(configuration.headers),
        enabled: wish.enabled.unwrap_or(configuration.enabled),
        ..configuration
    }
}

/// Nobody gets to see a secret by having it sent to a server of their own: whoever writes another address writes the secrets
/// for it as well.
pub(super) fn require_secrets(there: &Auth, wish: Option<&Auth>) -> Result<(), Refused> {
    let is_empty = |secret: &SecretString| secret.expose_secret().is_empty();
    let is_kept = match (there, wish) {
        (Auth::StaticHeaders(_), None) => true,
        (Auth::StaticHeaders(_), Some(Auth::StaticHeaders(headers))) => {
            headers.iter().any(|header| is_empty(&header.value))
        }
        (Auth::OauthStatic { client_secret: Some(_), .. }, None) => true,
        (
            Auth::OauthStatic { client_secret: Some(_), client_id: known },
            Some(Auth::OauthStatic { client_secret: None, client_id }),
        ) => known == client_id,
        _ => false,
    };
    match is_kept {
        true => Err(Refused::Invalid(
            "auth",
            "has to be given again, with its secrets, for another url".to_owned(),
        )),
        false => Ok(()),
    }
}

/// Secrets are written and never read: one that is left empty is the one that is there.
fn kept(wish: Auth, there: Auth) -> Auth {
    let is_empty = |secret: &SecretString| secret.expose_secret().is_empty();
    match (wish, there) {
        (Auth::StaticHeaders(headers), Auth::StaticHeaders(known)) => {
            let keep = |header: SecretHeader| {
                let same = known.iter().find(|known| known.name.eq_ignore_ascii_case(&header.name));
                match same.filter(|_| is_empty(&header.value)) {
                    Some(known) => SecretHeader { value: known.value.clone(), ..header },
                    None => header,
                }
            };
            Auth::StaticHeaders(headers.into_iter().map(keep).collect())
        }
        (
            Auth::OauthStatic { client_id, client_secret: None },
            Auth::OauthStatic { client_id: known, client_secret },
        ) if client_id == known => Auth::OauthStatic { client_id, client_secret },
        (wish, _) => wish,
    }
}
