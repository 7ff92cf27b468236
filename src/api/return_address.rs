//! Where a user may be sent when they are done: our own pages, origins that the operator has allowed, and redirect URIs of
//! clients that the operator has listed. Whatever else is asked for is refused, so that no link of ours leads to a stranger.
use url::Url;

use crate::oauth::server::Snapshot;

/// Longer ones are refused.
const LONGEST: usize = 2048;
/// An authorization request of ours, which goes on where somebody had to do something first, may be as long as this.
const LONGEST_REQUEST: usize = 8 * 1024;
const REQUEST: &str = "/oauth/authorize?";

/// The address is none of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "return_to is neither a page of Postern, nor under an origin of server.allowed_origins, nor a redirect URI of a listed client"
)]
pub struct Refused;

/// A path of ours, or an absolute URL, byte for byte as it may be gone to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReturnAddress {
    Page(String),
    Elsewhere(String),
}

impl ReturnAddress {
    /// Decided on the raw text: what parsing would change is refused, since a browser may read it in yet another way.
    pub fn check(snapshot: &Snapshot, asked: &str) -> Result<Self, Refused> {
        let longest = if asked.starts_with(REQUEST) { LONGEST_REQUEST } else { LONGEST };
        if asked.len() > longest || !asked.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'\\') {
            return Err(Refused);
        }
        let own = asked.strip_prefix(snapshot.issuer()).filter(|rest| rest.starts_with('/'));
        if let Some(path) = own.or_else(|| Some(asked).filter(|asked| asked.starts_with('/'))) {
            return match is_page(snapshot, path) {
                true => Ok(Self::Page(path.to_owned())),
                false => Err(Refused),
            };
        }
        let listed = &snapshot.config.oauth_server.listed;
        let is_listed = listed.values().any(|client| client.redirect_uris.iter().any(|uri| uri == asked));
        match is_listed || is_of_origin(&snapshot.config.server.allowed_origins, asked) {
            true => Ok(Self::Elsewhere(asked.to_owned())),
            false => Err(Refused),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Page(address) | Self::Elsewhere(address) => address,
        }
    }
}

/// Exactly one of those, with nothing behind it.
fn is_page(snapshot: &Snapshot, path: &str) -> bool {
    let is_route =
        |name: &str| snapshot.routes.by_name(name).is_some_and(|route| route.credential.is_of_user());
    // The authorization request is checked there as if it came from anywhere.
    matches!(path, "/" | "/connections")
        || path.starts_with(REQUEST)
        || path.strip_prefix("/connections/").is_some_and(is_route)
}

fn is_of_origin(allowed: &[String], asked: &str) -> bool {
    let Ok(url) = Url::parse(asked) else { return false };
    let is_unchanged = url.as_str() == asked || url.as_str().strip_suffix('/') == Some(asked);
    let is_plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    let is_web = matches!(url.scheme(), "http" | "https");
    is_unchanged && is_plain && is_web && allowed.contains(&url.origin().ascii_serialization())
}

/// What was asked for, if anything was.
pub fn asked(snapshot: &Snapshot, return_to: &str) -> Result<Option<ReturnAddress>, Refused> {
    match return_to {
        "" => Ok(None),
        asked => ReturnAddress::check(snapshot, asked).map(Some),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn an_origin_is_one_origin_and_nothing_that_looks_like_it() {
        let allowed = ["https://app.example".to_owned(), "http://127.0.0.1:3000".to_owned()];
        for good in [
            "https://app.example",
            "https://app.example/",
            "https://app.example/back?x=1&y=%2F",
            "http://127.0.0.1:3000/",
        ] {
            assert!(is_of_origin(&allowed, good), "{good}");
        }
        for bad in [
            "https://app.example:8443/",
            "https://app.example:443/",
            "http://app.example/",
            "https://app.example.evil.example/",
            "https://evil.example/https://app.example/",
            "https://app.example@evil.example/",
            "https://app.example:pw@evil.example/",
            "https://user@app.example/",
            "https://APP.example/",
            "https://app.example./",
            "https://app.example/#fragment",
            "https:app.example/",
            "https:///app.example/",
            "https://app.example/a/../b",
            "ftp://app.example/",
            "javascript://app.example/%0aalert(1)",
            "blob:https://app.example/x",
            "filesystem:https://app.example/x",
            "http://127.0.0.1:3001/",
            "http://127.1:3000/",
        ] {
            assert!(!is_of_origin(&allowed, bad), "{bad}");
        }
    }
}
