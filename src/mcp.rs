//! What Postern knows of the Model Context Protocol itself: header names, what the mirrored `Mcp-*` headers say, and
//! two requests of its own that ask an upstream "do you want a token?".
//!
//! It stands apart from the OAuth code because the proxied path reads the same headers for logs and policy. Nothing
//! here touches a body on its way through.
mod arguments;
mod elicitation;
mod envelope;
pub mod events;
mod glance;
pub mod list;
mod message;
mod scan;

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{self, AsHeaderName, HeaderMap, HeaderName};
use serde_json::json;

pub use elicitation::{Capabilities, Elicitable};
pub use glance::Glance;
pub use message::{Item, ItemKind, Message, Unreadable};

/// `MCP-Protocol-Version`: the revision a request is written in.
pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// `Mcp-Session-Id`: the session of revision 2025-11-25 and before.
pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
/// `Mcp-Method`: the JSON-RPC method, mirrored (2026-07-28).
pub const METHOD: HeaderName = HeaderName::from_static("mcp-method");
/// `Mcp-Name`: the tool, prompt or resource, mirrored (2026-07-28).
pub const NAME: HeaderName = HeaderName::from_static("mcp-name");
/// The request whose answer goes on for as long as the client listens (2026-07-28). It comes by POST.
pub const SUBSCRIPTION: &str = "subscriptions/listen";
/// `Last-Event-ID`: where an interrupted event stream goes on.
pub const LAST_EVENT_ID: &str = "last-event-id";

/// The first revision whose servers must compare the `Mcp-*` headers with the body, so that they can be believed.
pub const MIRRORED_SINCE: &str = "2026-07-28";
/// The newest revision that still has sessions.
pub const SESSIONS_UNTIL: &str = "2025-11-25";

/// A longer value is no method and no tool name.
const LONGEST_VALUE: usize = 1024;

/// What the `Mcp-*` headers of one request say. Borrowed from the request; a header that is missing, repeated, too long
/// or not visible ASCII is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call<'a> {
    /// `MCP-Protocol-Version`, as sent.
    pub revision: Option<&'a str>,
    /// `Mcp-Session-Id`, as sent.
    pub session: Option<&'a str>,
    /// `Mcp-Method`, as sent: good for a log line. A decision takes [`Call::mirrored_method`].
    pub method: Option<&'a str>,
    /// `Mcp-Name`, as sent: good for a log line. A decision takes [`Call::mirrored_name`].
    pub name: Option<&'a str>,
}

impl<'a> Call<'a> {
    pub fn from_headers(headers: &'a HeaderMap) -> Self {
        Call {
            revision: single(headers, PROTOCOL_VERSION),
            session: single(headers, SESSION_ID),
            method: single(headers, METHOD),
            name: single(headers, NAME),
        }
    }

    /// Whether the revision obliges the server to refuse a request whose headers and body differ. Without that promise
    /// the headers say nothing a policy may rest on (SEP-2243).
    pub fn is_mirrored(&self) -> bool {
        self.revision.is_some_and(mirrors)
    }

    /// The JSON-RPC method, where it can be trusted.
    pub fn mirrored_method(&self) -> Option<&'a str> {
        self.method.filter(|_| self.is_mirrored())
    }

    /// The name of the tool, prompt or resource, where it can be trusted; the base64 form is decoded.
    /// A value that is neither plain nor correctly encoded is `None`.
    pub fn mirrored_name(&self) -> Option<Cow<'a, str>> {
        self.name.filter(|_| self.is_mirrored()).and_then(decoded)
    }
}

/// As [`Call::is_mirrored`], for who wants to know nothing else.
pub fn is_mirrored(headers: &HeaderMap) -> bool {
    single(headers, PROTOCOL_VERSION).is_some_and(mirrors)
}

fn mirrors(revision: &str) -> bool {
    is_revision(revision) && revision >= MIRRORED_SINCE
}

/// One request of our own: header lines (lower-case names) and body, to be sent by POST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnRequest {
    pub headers: Vec<(HeaderName, &'static str)>,
    pub body: Bytes,
}

/// A complete `server/discover` of revision 2026-07-28, without a credential. Every server of that revision has the
/// method, and servers that let `initialize` through without a token do ask for one here.
pub fn probe_request() -> OwnRequest {
    let body = json!({
        "jsonrpc": "2.0",
        "id": 1,
        "method": "server/discover",
        "params": {"_meta": meta(MIRRORED_SINCE)},
    });
    OwnRequest {
        headers: vec![
            (header::CONTENT_TYPE, "application/json"),
            (header::ACCEPT, "application/json, text/event-stream"),
            (PROTOCOL_VERSION, MIRRORED_SINCE),
            (METHOD, "server/discover"),
        ],
        body: Bytes::from(body.to_string()),
    }
}

/// What a request of revision 2026-07-28 says about who sends it.
fn meta(revision: &str) -> serde_json::Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": revision,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "postern", "version": env!("CARGO_PKG_VERSION")},
    })
}

/// The same question for a server of an older revision: `tools/list` outside a session. The server may well refuse it
/// for the missing session; what counts is whether it asks for a token first.
pub fn session_era_probe_request() -> OwnRequest {
    // What a server of a later revision would want to see, which has refused the first question for another reason.
    let params = json!({"_meta": meta(SESSIONS_UNTIL)});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params});
    OwnRequest {
        headers: vec![
            (header::CONTENT_TYPE, "application/json"),
            (header::ACCEPT, "application/json, text/event-stream"),
            (PROTOCOL_VERSION, SESSIONS_UNTIL),
        ],
        body: Bytes::from(body.to_string()),
    }
}

/// A `ping` of revision 2025-11-25 outside a session: asks nothing but whether somebody is there.
pub fn ping_request() -> OwnRequest {
    OwnRequest {
        body: Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#),
        ..session_era_probe_request()
    }
}

/// The value of a header that is there exactly once.
/// The revision of the protocol that a request is in, as it says. `None`: it does not.
pub fn revision(headers: &HeaderMap) -> Option<&str> {
    single(headers, PROTOCOL_VERSION)
}

fn single(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?.trim();
    (values.next().is_none() && !value.is_empty() && value.len() <= LONGEST_VALUE).then_some(value)
}

/// Revisions are dates, so that they can be compared as strings.
fn is_revision(value: &str) -> bool {
    value.len() == 10
        && value.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// Values that cannot stand in a header are sent as `=?base64?…?=` over UTF-8 (SEP-2243).
fn decoded(value: &str) -> Option<Cow<'_, str>> {
    let Some(encoded) = value.strip_prefix("=?base64?") else {
        return Some(Cow::Borrowed(value));
    };
    let bytes = data_encoding::BASE64.decode(encoded.strip_suffix("?=")?.as_bytes()).ok()?;
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use http::HeaderValue;

    use super::*;

    fn headers(lines: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn mirrored_headers_count_from_their_revision_on() {
        for (revision, trusted) in [
            ("2026-07-28", true),
            ("2027-01-01", true),
            ("2026-07-27", false),
            ("2025-11-25", false),
            ("9999", false),
            ("zzzz-zz-zz", false),
        ] {
            let map = headers(&[(PROTOCOL_VERSION, revision), (METHOD, "tools/call"), (NAME, "add")]);
            let call = Call::from_headers(&map);
            assert_eq!(call.mirrored_method().is_some(), trusted, "{revision}");
            assert_eq!(call.mirrored_name().is_some(), trusted, "{revision}");
        }
        let map = headers(&[(METHOD, "tools/call")]);
        let call = Call::from_headers(&map);
        assert_eq!((call.method, call.mirrored_method()), (Some("tools/call"), None));
    }

    #[test]
    fn a_repeated_or_overlong_header_says_nothing() {
        let map = headers(&[(PROTOCOL_VERSION, "2026-07-28"), (METHOD, "a"), (METHOD, "b")]);
        assert_eq!(Call::from_headers(&map).method, None);
        let mut map = headers(&[(PROTOCOL_VERSION, "2026-07-28")]);
        map.insert(METHOD, HeaderValue::from_str(&"x".repeat(1025)).unwrap());
        assert_eq!(Call::from_headers(&map).method, None);
    }

    #[test]
    fn encoded_names_are_decoded_and_broken_ones_dropped() {
        for (sent, read) in [
            ("add", Some("add")),
            ("=?base64?w7xiZXI=?=", Some("über")),
            ("=?base64?w7xiZXI=", None),
            ("=?base64?***?=", None),
            ("=?base64?/w==?=", None),
        ] {
            let map = headers(&[(PROTOCOL_VERSION, "2026-07-28"), (NAME, sent)]);
            assert_eq!(Call::from_headers(&map).mirrored_name().as_deref(), read, "{sent}");
        }
    }

    #[test]
    fn the_probe_is_a_complete_request_of_its_revision() {
        let request = probe_request();
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let value =
            |name: HeaderName| request.headers.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
        assert_eq!(value(METHOD), body["method"].as_str());
        let meta = &body["params"]["_meta"];
        assert_eq!(value(PROTOCOL_VERSION), meta["io.modelcontextprotocol/protocolVersion"].as_str());
        assert!(meta["io.modelcontextprotocol/clientCapabilities"].is_object());
        assert!(meta["io.modelcontextprotocol/clientInfo"]["name"].is_string());
        assert!(value(header::ACCEPT).unwrap().contains("text/event-stream"));
        assert_eq!(value(header::AUTHORIZATION), None);
    }

    #[test]
    fn the_older_probe_is_not_initialize_and_has_no_session() {
        let request = session_era_probe_request();
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body["method"], "tools/list");
        assert!(request.headers.iter().all(|(name, _)| *name != SESSION_ID && *name != METHOD));
    }
}
