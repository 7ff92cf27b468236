//! The `Origin` of a browser (MCP transport: an origin that is present and not allowed is answered 403) and the CORS
//! headers that go with it (Fetch standard).
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::config::Server;

/// What a page may send to an MCP route, and read of its answer.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");
const ASKED: &str = "authorization, content-type, accept, mcp-protocol-version, mcp-session-id, mcp-method, mcp-name, last-event-id, x-request-id";
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "www-authenticate, mcp-session-id, mcp-protocol-version, x-request-id, retry-after",
);
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The request comes from a page that may not call MCP routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("origin is not allowed")]
pub struct OriginError;

/// The origin of the request if it has one and it may call MCP routes: our own, a configured one, and on a loopback
/// `public_url` any loopback one.
pub fn allowed<'h>(headers: &'h HeaderMap, server: &Server) -> Result<Option<&'h HeaderValue>, OriginError> {
    let mut values = headers.get_all(header::ORIGIN).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let origin = value.to_str().map_err(|_| OriginError)?;
    let own = origin == server.public_url.origin();
    let configured = server.allowed_origins.iter().any(|allowed| allowed == origin);
    let loopback = server.public_url.is_loopback() && is_loopback(origin);
    if values.next().is_none() && (own || configured || loopback) {
        Ok(Some(value))
    } else {
        Err(OriginError)
    }
}

fn is_loopback(origin: &str) -> bool {
    url::Url::parse(origin).is_ok_and(|url| match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    })
}

/// Headers that let `origin` read an answer.
pub fn readable(origin: &HeaderValue) -> [(HeaderName, HeaderValue); 3] {
    [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED),
        (header::VARY, HeaderValue::from_static("origin")),
    ]
}

/// Headers of the answer to a preflight request, besides those of [`readable`]. Names the page asked for are granted
/// when they are MCP's own (`Mcp-Param-*` of revision 2026-07-28 is an open set).
pub fn preflight(asked: Option<&HeaderValue>) -> [(HeaderName, HeaderValue); 3] {
    let mcp = |name: &str| name.trim().get(..4).is_some_and(|start| start.eq_ignore_ascii_case("mcp-"));
    let params = asked
        .and_then(|asked| asked.to_str().ok())
        .into_iter()
        .flat_map(|asked| asked.split(','))
        .filter(|name| mcp(name));
    let names: Vec<&str> = std::iter::once(ASKED).chain(params.map(str::trim)).collect();
    [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(ASKED)),
        ),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
    ]
}
