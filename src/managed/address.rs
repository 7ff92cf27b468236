//! What is particular about requests to routes that were made at run time.
use std::borrow::Cow;

use crate::config::MANAGED;

/// Of one parameter of a query: its name and its value, bytes.
const LONGEST_NAME: usize = 200;
const LONGEST_VALUE: usize = 4096;

/// Whether a query is one that any server can take.
pub fn is_contained(query: &str) -> bool {
    query.split('&').filter(|pair| !pair.is_empty()).all(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (1..=LONGEST_NAME).contains(&name.len()) && value.len() <= LONGEST_VALUE
    })
}

/// A path as a log may have it: without the key of the route that it leads to, or would lead to.
pub fn masked(path: &str) -> Cow<'_, str> {
    let marked = format!("/{MANAGED}/");
    let Some((before, segments)) = path.split_once(&marked) else { return Cow::Borrowed(path) };
    let mut parts: Vec<&str> = segments.split('/').collect();
    // Context, owner, name, key.
    match parts.get_mut(3) {
        Some(key) => *key = "…",
        None => return Cow::Borrowed(path),
    }
    Cow::Owned(format!("{before}{marked}{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn no_log_has_a_key() {
        for (path, expected) in [
            ("/connect/user/u/mc.x/KEY", "/connect/user/u/mc.x/…"),
            ("/connect/org/o/mc.x/KEY/a/b", "/connect/org/o/mc.x/…/a/b"),
            (
                "/.well-known/oauth-protected-resource/connect/org/o/mc.x/KEY",
                "/.well-known/oauth-protected-resource/connect/org/o/mc.x/…",
            ),
            ("/connect/user/u", "/connect/user/u"),
            ("/files", "/files"),
        ] {
            assert_eq!(masked(path), expected);
        }
    }

    #[test]
    fn a_query_is_bounded() {
        for fits in ["", "a=1&b=2", "a", "a=", "&a=1&"] {
            assert!(is_contained(fits), "{fits}");
        }
        let long = |name: usize, value: usize| format!("{}={}", "n".repeat(name), "v".repeat(value));
        assert!(is_contained(&long(200, 4096)));
        for excess in [long(201, 0), long(1, 4097), "=x".to_owned()] {
            assert!(!is_contained(&excess));
        }
    }
}
