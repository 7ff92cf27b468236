//! What changes in a request on its way to the upstream: out goes everything the client could use to be somebody
//! else, in goes what the credential says and what we ourselves know about the client.
//!
//! Works on names and values; the gateway applies it to Pingora's header after Pingora's own hop-by-hop rules, so a
//! client cannot have a header of ours removed by naming it in `Connection`.
pub mod plain;

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::credential::{Credential, Put};
use crate::managed::header::is_forwarded;
use crate::mcp::SESSION_ID;
use crate::route::Route;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// No more headers than that are added.
const ADDED: usize = 7;

/// Whole families of such names: every identity-aware proxy has one of its own.
const DROPPED_PREFIXES: [&str; 17] = [
    "cf-access-",
    "sec-fetch-",
    "ssl-client-",
    "tailscale-user-",
    "x-amzn-oidc-",
    "x-auth-request-",
    "x-authenticated-",
    "x-envoy-",
    "x-forwarded-",
    "x-goog-authenticated-",
    "x-goog-iap-",
    "x-ms-client-principal",
    "x-pomerium-",
    "x-postern-",
    "x-ssl-client-",
    "x-user",
    "x-webauth-",
];

/// Whether a header of the client stays here. Names with an underscore go as well: some servers read `X_Real_IP` as
/// `X-Real-IP`.
pub fn is_dropped(name: &HeaderName) -> bool {
    let name = name.as_str();
    is_claim(name)
        // Most names begin like none of them.
        || name.starts_with(['c', 's', 't', 'x']) && DROPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || name.contains('_')
}

/// Identity, address and routing claims that proxies are known to believe.
fn is_claim(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "cookie"
            | "cf-connecting-ip"
            | "fastly-client-ip"
            | "proxy-authorization"
            | "forwarded"
            | "origin"
            | "referer"
            | "via"
            | "remote-user"
            | "true-client-ip"
            | "x-client-ip"
            | "x-cluster-client-ip"
            | "x-original-uri"
            | "x-original-url"
            | "x-real-ip"
            | "x-remote-user"
            | "x-rewrite-url"
            | "x-request-id"
    )
}

/// Whether a header asks for less than all of an answer.
fn is_condition(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "if-match" | "if-modified-since" | "if-none-match" | "if-range" | "if-unmodified-since" | "range"
    )
}

/// Takes out what the client may not say and puts in what we say. `session`: the upstream's id of the session it is in.
/// `plainly`: the answer is going to be read, so all of it is asked for, and not encoded.
pub fn prepare(
    headers: &mut HeaderMap,
    session: Option<HeaderValue>,
    plainly: bool,
    additions: impl Iterator<Item = (HeaderName, HeaderValue)>,
) {
    let is_out = |name: &&HeaderName| is_dropped(name) || plainly && is_condition(name);
    let dropped: Vec<HeaderName> = headers.keys().filter(is_out).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    match session {
        Some(session) => headers.insert(SESSION_ID, session),
        // A header of a revision without sessions, which nobody has looked at.
        None => headers.remove(SESSION_ID),
    };
    headers.reserve(ADDED);
    if plainly {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    for (name, value) in additions {
        headers.insert(name, value);
    }
}

/// The headers we add: first those of a route that was made at run time. The credential comes last, so that nothing else can
/// own its name.
pub fn additions(
    route: &Route,
    client: Option<IpAddr>,
    request_id: &HeaderValue,
    credential: &Credential,
) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let proto = HeaderValue::from_static(if route.resource.starts_with("https:") { "https" } else { "http" });
    let own = route.managed.iter().flat_map(|managed| managed.headers.iter().cloned());
    let known = [
        route.upstream.host_header.clone().map(|host| (header::HOST, host)),
        client.and_then(written).map(|client| (FORWARDED_FOR, client)),
        route.forwarded_host.clone().map(|host| (FORWARDED_HOST, host)),
        Some((FORWARDED_PROTO, proto)),
        Some((REQUEST_ID, request_id.clone())),
        match &credential.put {
            Put::Nothing | Put::Sign(_) => None,
            Put::Header(name, value) => Some((name.clone(), value.clone())),
        },
    ];
    own.chain(known.into_iter().flatten())
}

/// Takes out what is not of the protocol, at routes that were made at run time: all that a client may say to a server that
/// its own users have added.
pub fn narrow(route: &Route, headers: &mut HeaderMap) {
    if route.managed.is_none() {
        return;
    }
    let strangers: Vec<HeaderName> =
        headers.keys().filter(|name| !is_forwarded(name) && *name != header::HOST).cloned().collect();
    for name in strangers {
        headers.remove(name);
    }
}

/// An address as text. The formatter of the standard library takes six times as long for it as what is done here for
/// nearly all of them.
fn written(address: IpAddr) -> Option<HeaderValue> {
    let IpAddr::V4(address) = address else {
        return HeaderValue::try_from(address.to_string()).ok();
    };
    let mut text = Vec::with_capacity(16);
    for octet in address.octets() {
        text.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
        text.push(b'.');
    }
    text.pop();
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn addresses_are_written_as_everywhere() {
        for text in ["0.0.0.0", "127.0.0.1", "255.255.255.255", "10.20.30.40", "::1", "2001:db8::7"] {
            assert_eq!(written(text.parse().unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn what_could_impersonate_is_dropped_and_mcp_stays() {
        for name in [
            "authorization",
            "cookie",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-user",
            "x_forwarded_user",
            "x-real-ip",
            "x-postern-user",
            "origin",
            "proxy-authorization",
            "x-original-url",
            "x-user-id",
            "x-goog-iap-jwt-assertion",
        ] {
            assert!(is_dropped(&HeaderName::from_static(name)), "{name}");
        }
        for prefix in DROPPED_PREFIXES {
            let name = format!("{prefix}-of-somebody");
            assert!(is_dropped(&HeaderName::try_from(&name).unwrap()), "{name}");
        }
        for name in [
            "accept",
            "content-type",
            "mcp-session-id",
            "mcp-protocol-version",
            "mcp-method",
            "mcp-name",
            "mcp-param-region",
            "last-event-id",
            "traceparent",
            "user-agent",
            "x-accel-buffering",
            "x-goog-api-key",
        ] {
            assert!(!is_dropped(&HeaderName::from_static(name)), "{name}");
        }
    }
}
