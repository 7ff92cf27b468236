//! Links to a page that are made for one person: whoever else opens one is not let in by it, so that nobody can be talked
//! into connecting for somebody else (MCP, URL mode elicitation, Phishing).
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::clock::unix_seconds;
use crate::oauth::server::access_token::Keys;

/// Keeps these ciphertexts apart from access tokens, which have the same keys.
const CONTEXT: &[u8] = b"postern link 1";
const LIFETIME: Duration = Duration::from_secs(600);

#[derive(Serialize, Deserialize)]
struct Link {
    user: String,
    route: String,
    /// Seconds since the epoch.
    end: u64,
}

/// What stands behind `for=`: good for ten minutes.
pub fn seal(keys: &Keys, user: &str, route: &str, now: SystemTime) -> Option<String> {
    let link = Link { user: user.to_owned(), route: route.to_owned(), end: unix_seconds(now + LIFETIME) };
    keys.wrap(CONTEXT, &serde_json::to_vec(&link).ok()?, now)
}

/// Whether a link was made for this user and route.
pub fn is_for(keys: &Keys, text: &str, user: &str, route: &str, now: SystemTime) -> bool {
    let link = keys.unwrap(CONTEXT, text).and_then(|plain| serde_json::from_slice::<Link>(&plain).ok());
    link.is_some_and(|link| link.user == user && link.route == route && link.end > unix_seconds(now))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_link_is_for_one_user_one_route_and_ten_minutes() {
        let keys = Keys::new(&[[7; 32]]).unwrap();
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
        let link = seal(&keys, "alice", "demo", at(0)).unwrap();
        assert!(is_for(&keys, &link, "alice", "demo", at(599)));
        assert!(!is_for(&keys, &link, "bob", "demo", at(1)));
        assert!(!is_for(&keys, &link, "alice", "other", at(1)));
        assert!(!is_for(&keys, &link, "alice", "demo", at(600)));
    }
}
