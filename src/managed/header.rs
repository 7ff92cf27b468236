//! Which headers go upstream at a route that was made at run time: those of the protocol, and what its configuration says.
//! Nobody who writes a configuration may set what says who is calling, or how a message is framed.
use http::{HeaderName, HeaderValue};

use crate::config::is_settable;

/// Of the client's, besides `mcp-*`.
const FORWARDED: [&str; 9] = [
    "accept",
    "accept-language",
    "content-type",
    "content-length",
    "expect",
    "last-event-id",
    "transfer-encoding",
    "traceparent",
    "tracestate",
];

/// What is wrong with a header that somebody wants sent along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    #[error("is not the name of a header")]
    Name,
    #[error("may not be set: it frames the message, says where it comes from, or is of the protocol")]
    Reserved,
    #[error("carries a credential: write it among the static headers")]
    Credential,
    #[error("has a value that is empty or cannot be sent")]
    Value,
}

/// Whether a header of the client goes on.
pub fn is_forwarded(name: &HeaderName) -> bool {
    let name = name.as_str();
    FORWARDED.contains(&name) || name.starts_with("mcp-")
}

/// Checks a header that every call gets. `is_secret`: it is kept as a secret, and may be a credential.
pub fn check(name: &str, value: &str, is_secret: bool) -> Result<HeaderName, BadHeader> {
    let name = HeaderName::try_from(name).map_err(|_| BadHeader::Name)?;
    if is_reserved(&name) {
        return Err(BadHeader::Reserved);
    }
    if !is_secret && is_credential(&name) {
        return Err(BadHeader::Credential);
    }
    match HeaderValue::from_str(value) {
        Ok(_) if !value.trim().is_empty() => Ok(name),
        _ => Err(BadHeader::Value),
    }
}

fn is_reserved(name: &HeaderName) -> bool {
    const FAMILIES: [&str; 6] = ["x-forwarded-", "cf-", "mcp-", "proxy-", "sec-", "x-postern-"];
    let known = name.as_str();
    // An API key by cookie is all some servers know, but a cookie is a session.
    known == "cookie"
        || known.contains('_')
        || !is_settable(name)
        || FAMILIES.iter().any(|family| known.starts_with(family))
}

/// Whether a header of this name is one that says who is calling.
fn is_credential(name: &HeaderName) -> bool {
    const MARKS: [&str; 7] = ["authorization", "auth-", "-auth", "api-key", "apikey", "token", "secret"];
    let name = name.as_str();
    MARKS.iter().any(|mark| name.contains(mark))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn only_what_is_a_credential_may_be_one() {
        for name in ["Authorization", "X-API-Key", "X-Auth-Token", "X-Secret", "Api-Token"] {
            assert_eq!(check(name, "v", false), Err(BadHeader::Credential), "{name}");
            assert!(check(name, "v", true).is_ok(), "{name}");
        }
        assert!(check("X-Tenant", "v", false).is_ok());
    }

    #[test]
    fn what_frames_or_names_is_nobodys_to_set() {
        for name in [
            "Host",
            "Content-Length",
            "Transfer-Encoding",
            "Connection",
            "Upgrade",
            "TE",
            "Forwarded",
            "X-Forwarded-Host",
            "CF-Connecting-IP",
            "Cookie",
            "Proxy-Authorization",
            "Mcp-Session-Id",
            "X_Real_IP",
        ] {
            for is_secret in [true, false] {
                assert_eq!(check(name, "v", is_secret), Err(BadHeader::Reserved), "{name}");
            }
        }
    }

    #[test]
    fn a_header_has_a_name_and_a_value() {
        for (name, value, expected) in [
            ("X Y", "v", BadHeader::Name),
            ("", "v", BadHeader::Name),
            ("X", "", BadHeader::Value),
            ("X", " ", BadHeader::Value),
            ("X", "a\r\nb", BadHeader::Value),
            ("X", "a\0b", BadHeader::Value),
        ] {
            assert_eq!(check(name, value, true), Err(expected), "{name}: {value}");
        }
    }

    #[test]
    fn of_the_clients_headers_the_protocols_go_on() {
        let name = |name: &'static str| HeaderName::from_static(name);
        for forwarded in ["accept", "content-type", "mcp-session-id", "mcp-param-x", "last-event-id"] {
            assert!(is_forwarded(&name(forwarded)), "{forwarded}");
        }
        for dropped in ["authorization", "cookie", "x-api-key", "user-agent", "x-anything"] {
            assert!(!is_forwarded(&name(dropped)), "{dropped}");
        }
    }
}
