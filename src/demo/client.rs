//! A client of the demo's authorization server. All that is known of it stands in its id, so a restarted demo
//! still knows every client: the gateway keeps its registration for longer than the demo runs.
//!
//! The id is not sealed. Anyone may register, so an id made up by hand gives nothing that asking would not; what
//! it says is checked each time it comes.

use std::net::{Ipv4Addr, Ipv6Addr};

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// Longest id in characters. It travels in URLs.
const LONGEST_ID: usize = 4096;
const MOST_REDIRECT_URIS: usize = 10;
/// Longest name in characters.
const NAME_LENGTH: usize = 80;

/// A registered client. All clients are public ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Client {
    /// Random, so that two registrations are two clients even when they say the same.
    salt: String,
    pub(super) name: Option<String>,
    pub(super) redirect_uris: Vec<String>,
}

/// The redirect URIs of a client are not taken, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct BadRedirectUris(pub(super) &'static str);

impl Client {
    /// `name` is cut to eighty characters.
    pub(super) fn new(
        salt: String,
        name: Option<&str>,
        redirect_uris: Vec<String>,
    ) -> Result<Self, BadRedirectUris> {
        let name = name.map(|name| name.chars().take(NAME_LENGTH).collect());
        let client = Client { salt, name, redirect_uris };
        client.check()?;
        if client.id().len() > LONGEST_ID {
            return Err(BadRedirectUris("they are too long together"));
        }
        Ok(client)
    }

    fn check(&self) -> Result<(), BadRedirectUris> {
        if !(1..=MOST_REDIRECT_URIS).contains(&self.redirect_uris.len()) {
            return Err(BadRedirectUris("give one to ten"));
        }
        if !self.redirect_uris.iter().all(|uri| is_redirect_uri(uri)) {
            return Err(BadRedirectUris("https, or http on loopback, and no fragment"));
        }
        Ok(())
    }

    /// The client's id: itself as JSON, in base64url.
    pub(super) fn id(&self) -> String {
        // Strings and lists of them always turn into JSON; the empty id would be nobody's.
        BASE64URL_NOPAD.encode(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// The client of that id, if it is one that could have been registered.
    pub(super) fn of_id(id: &str) -> Option<Self> {
        if id.len() > LONGEST_ID {
            return None;
        }
        let bytes = BASE64URL_NOPAD.decode(id.as_bytes()).ok()?;
        let client: Client = serde_json::from_slice(&bytes).ok()?;
        client.check().ok()?;
        // One spelling only, so that a grant finds its client by comparing ids.
        (client.id() == id).then_some(client)
    }
}

fn is_redirect_uri(uri: &str) -> bool {
    if uri.len() > 2048 || !uri.is_ascii() || uri.contains('#') || uri.chars().any(|c| c.is_control()) {
        return false;
    }
    let Ok(url) = Url::parse(uri) else { return false };
    match (url.scheme(), url.host()) {
        ("https", Some(_)) => true,
        ("http", Some(Host::Domain(name))) => name == "localhost",
        ("http", Some(Host::Ipv4(ip))) => ip == Ipv4Addr::LOCALHOST,
        ("http", Some(Host::Ipv6(ip))) => ip == Ipv6Addr::LOCALHOST,
        _ => false,
    }
}
