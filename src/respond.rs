//! The one rescue point: whatever went wrong on the proxied path becomes status, headers, body and a word for the
//! metrics here, and nowhere else. Statuses go by blame: the client's 4xx, the upstream's 502 and 504, ours 503 with
//! `Retry-After`, and where a user has to act the challenge that leads there.
//!
//! Also here, because it is about answers as well: what a proxied answer loses and gains so that it cannot act on
//! our origin ("two worlds").
mod page;
pub mod plain;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::authn::AuthnError;
use crate::challenge::Print;
use crate::mcp::{Elicitable, Unreadable};
use crate::origin::OriginError;
use crate::policy::Denied;
use crate::route::{Route, RouteError};

const JSON: &str = "application/json";
/// Reason of a body that does not come on.
pub const TOO_SLOW: &str = "too_slow";
/// JSON-RPC error code of headers that are not the body's (MCP 2026-07-28).
const HEADER_MISMATCH: i32 = -32020;
/// JSON-RPC error code of a call that no policy allows: one of those that servers define (JSON-RPC 2.0 §5.1) and MCP does not.
const NOT_ALLOWED: i32 = -32099;
/// When a stream that was refused may be tried again, seconds.
const STREAMS_AGAIN: u64 = 5;
const HTML: &str = "text/html; charset=utf-8";

/// Everything that can keep a request from being answered by its upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Authn(AuthnError),
    #[error(transparent)]
    Denied(#[from] Denied),
    /// `Mcp-Method` or `Mcp-Name` says something else than the body; `id`: of the request, as JSON (SEP-2243).
    #[error("Mcp-Method and Mcp-Name have to say what the body says")]
    HeaderMismatch { id: String },
    #[error("{0}")]
    Malformed(&'static str),
    /// The user has to authorize at the upstream; the client gets there by authorizing again.
    #[error("the user has to authorize at the upstream")]
    NeedsUser { page: Option<Page> },
    /// As that, and the client leads them to the page.
    #[error("the user has to connect to this server first")]
    Elicit { call: Elicitable, page: Page },
    /// As that, but a program calls, which nobody can send anywhere.
    #[error("the upstream wants a user, and this program acts for none who is connected")]
    NeedsConnection,
    /// As that, but the user's client has its tokens from another authorization server: they connect on their own page.
    #[error("connect to this server first: open {}", page.plain)]
    NeedsPage { page: Page },
    /// No MCP session of this caller at this route: the client begins another one (MCP, Session Management).
    #[error("session not found")]
    NoSession,
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Route(#[from] RouteError),
    /// An upstream that is never content: nobody is sent there once more.
    #[error("the upstream asks for more than it was given, again and again; ask whoever runs it")]
    AskedTooOften,
    /// It asks for a token that nobody gives.
    #[error("the upstream asks for a token and does not say who gives one; ask whoever runs this gateway")]
    UpstreamUnexplained,
    /// It refuses what its own authorization server has just issued, so that another authorization brings nothing better.
    #[error("the upstream refuses the tokens of its authorization server; ask whoever runs it")]
    UpstreamInsists,
    /// `scopes`: all that is needed, those the token has among them.
    #[error("the user has to allow more at the upstream")]
    StepUp { scopes: Vec<String> },
    /// `limit`: which one.
    #[error("request body is too large")]
    TooLarge { limit: &'static str },
    #[error("the request has too many header fields")]
    TooManyFields,
    #[error("the request body came too slowly")]
    TooSlow,
    /// Of everybody together: ours to say. `limit`: of what there is too much.
    #[error("too much is under way here, try again later")]
    Overloaded { limit: &'static str },
    #[error("too many calls: try again later")]
    TooManyCalls { retry_after: Duration },
    #[error("too many calls are under way: wait for one to end")]
    TooManyUnderWay,
    /// Of everybody together: ours to say.
    #[error("too many streams are open here, try again later")]
    NoRoomForStreams,
    #[error("you have too many streams open: close one first")]
    TooManyStreams,
    /// What a rule depends on cannot be read in one way only.
    #[error(transparent)]
    Unreadable(Unreadable),
    /// Ours: store, or an authorization server we depend on.
    #[error("try again later")]
    Unavailable { retry_after: Duration },
    #[error("the upstream refused what this route is configured to send")]
    UpstreamRefused,
    /// Nor does whoever gives the tokens that it takes.
    #[error("nobody gives this gateway a token for the upstream; ask whoever runs it")]
    NotExchanged,
    #[error("you have no role at the upstream; ask whoever runs this gateway")]
    NoRole,
    #[error("the upstream did not answer in time")]
    UpstreamTimeout,
    /// An answer that may have lists in it, at a route where not everybody sees all of them.
    #[error("the upstream's answer cannot be filtered: {0}")]
    UpstreamUnfilterable(&'static str),
    #[error("the upstream cannot be reached or gave no usable answer")]
    UpstreamUnreachable,
}

/// Where a user connects to one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Theirs as anybody's.
    plain: String,
    /// For one person: names the elicitation as well.
    link: String,
    /// Whose calls need it.
    grant: String,
}

impl Page {
    pub fn new(plain: String, link: Option<String>, grant: &str) -> Self {
        Self { plain, link: link.unwrap_or_default(), grant: grant.to_owned() }
    }

    /// The grant whose calls need the user.
    pub fn grant(&self) -> &str {
        &self.grant
    }
}

impl Failure {
    /// Where the user can do something about it.
    pub fn page(&self) -> Option<&Page> {
        match self {
            Self::NeedsUser { page } => page.as_ref(),
            Self::NeedsPage { page } | Self::Elicit { page, .. } => Some(page),
            _ => None,
        }
    }
}

impl From<AuthnError> for Failure {
    fn from(error: AuthnError) -> Self {
        match error {
            AuthnError::NotReady => Self::Unavailable { retry_after: Duration::from_secs(1) },
            error => Self::Authn(error),
        }
    }
}

/// An answer of our own.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
    /// A bounded word for metrics and log.
    pub reason: &'static str,
}

/// The answer to a failed request. `route`: where it was headed, as far as known; `headers` and `id`: the request's.
pub fn reply(failure: &Failure, route: Option<&Route>, headers: &HeaderMap, id: &HeaderValue) -> Reply {
    let (mut status, code, reason) = classify(failure);
    if matches!(failure, Failure::Denied(Denied::Policy { id: Some(_) })) {
        // Clients read a JSON-RPC error where they expect an answer.
        let denied = route.and_then(|route| route.rules.policy()).map(|policy| policy.denied_status);
        status = denied.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
    }
    let mut reply_headers = vec![(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    if let Some(challenge) = route.and_then(|route| challenge(failure, route)) {
        reply_headers.push((header::WWW_AUTHENTICATE, challenge));
    }
    let retry_after = match failure {
        // Whole seconds (RFC 9110 §10.2.3), and no sooner than it helps.
        Failure::Unavailable { retry_after } => Some(retry_after.as_secs().max(1)),
        Failure::TooManyCalls { retry_after } => Some(retry_after.as_millis().div_ceil(1000).max(1) as u64),
        Failure::TooManyUnderWay | Failure::Overloaded { .. } => Some(1),
        Failure::TooManyStreams | Failure::NoRoomForStreams => Some(STREAMS_AGAIN),
        _ => None,
    };
    reply_headers.extend(retry_after.map(|seconds| (header::RETRY_AFTER, HeaderValue::from(seconds))));
    let (kind, body) = match route.filter(|route| route.kind.is_mcp() && wants_html(headers)) {
        Some(route) => {
            let problem = (*failure != Failure::Authn(AuthnError::Missing)).then(|| failure.to_string());
            (HTML, page::page(route, problem.as_deref()))
        }
        None => (JSON, body(failure, code, id)),
    };
    reply_headers.push((header::CONTENT_TYPE, HeaderValue::from_static(kind)));
    let policy = (kind == HTML).then(page::policy).flatten();
    reply_headers.extend(isolation().map(|(name, value)| match &policy {
        Some(policy) if name == header::CONTENT_SECURITY_POLICY => (name, policy.clone()),
        _ => (name, value),
    }));
    Reply { status, headers: reply_headers, body: body.into(), reason }
}

/// As OAuth says it (RFC 6749 §5.2), and where MCP has an error of its own, as that.
fn body(failure: &Failure, code: &str, request_id: &HeaderValue) -> String {
    let text = failure.to_string();
    match failure {
        Failure::Elicit { call, page } => {
            let Page { plain, link, .. } = page;
            call.answer(&format!("{plain}?for={link}"), link.get(..32).unwrap_or(link), &text)
        }
        Failure::HeaderMismatch { id } => {
            let error = serde_json::json!({"code": HEADER_MISMATCH, "message": text});
            format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
        }
        Failure::Denied(Denied::Policy { id: Some(id) }) => {
            let request_id = request_id.to_str().unwrap_or_default();
            let error =
                serde_json::json!({"code": NOT_ALLOWED, "message": text, "data": {"requestId": request_id}});
            format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
        }
        _ => serde_json::json!({"error": code, "error_description": text}).to_string(),
    }
}

fn classify(failure: &Failure) -> (StatusCode, &'static str, &'static str) {
    match failure {
        Failure::Authn(AuthnError::Missing) => (StatusCode::UNAUTHORIZED, "unauthorized", "no_token"),
        Failure::Authn(AuthnError::Malformed) => {
            (StatusCode::BAD_REQUEST, "invalid_request", "malformed_authorization")
        }
        Failure::Authn(AuthnError::Invalid) => (StatusCode::UNAUTHORIZED, "invalid_token", "invalid_token"),
        Failure::Authn(AuthnError::Expired) => (StatusCode::UNAUTHORIZED, "invalid_token", "expired_token"),
        Failure::Authn(AuthnError::Revoked) => (StatusCode::UNAUTHORIZED, "invalid_token", "revoked_token"),
        Failure::Authn(AuthnError::NotReady) => {
            (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", "unavailable")
        }
        Failure::Denied(Denied::Audience) => (StatusCode::UNAUTHORIZED, "invalid_token", "wrong_audience"),
        Failure::Denied(Denied::Policy { .. }) => (StatusCode::FORBIDDEN, "access_denied", "denied"),
        Failure::Denied(Denied::Scope { .. }) => {
            (StatusCode::FORBIDDEN, "insufficient_scope", "insufficient_scope")
        }
        Failure::HeaderMismatch { .. } | Failure::Malformed(_) | Failure::Unreadable(_) => {
            (StatusCode::BAD_REQUEST, "invalid_request", "malformed")
        }
        Failure::NeedsUser { .. } => (StatusCode::UNAUTHORIZED, "invalid_token", "needs_user"),
        Failure::Elicit { .. } => (StatusCode::OK, "", "elicitation"),
        Failure::NeedsPage { .. } => (StatusCode::FORBIDDEN, "access_denied", "needs_page"),
        Failure::NeedsConnection => (StatusCode::FORBIDDEN, "access_denied", "needs_connection"),
        Failure::NoSession => (StatusCode::NOT_FOUND, "session_not_found", "no_session"),
        Failure::Origin(_) => (StatusCode::FORBIDDEN, "origin_not_allowed", "origin"),
        Failure::Route(RouteError::NotFound) => (StatusCode::NOT_FOUND, "not_found", "no_route"),
        Failure::Route(RouteError::UnknownHost) => {
            (StatusCode::MISDIRECTED_REQUEST, "unknown_host", "unknown_host")
        }
        Failure::Route(RouteError::BadPath | RouteError::BadHost) => {
            (StatusCode::BAD_REQUEST, "invalid_request", "malformed")
        }
        Failure::StepUp { .. } => (StatusCode::FORBIDDEN, "insufficient_scope", "step_up"),
        Failure::AskedTooOften => (StatusCode::FORBIDDEN, "access_denied", "asked_too_often"),
        Failure::UpstreamUnexplained => (StatusCode::BAD_GATEWAY, "bad_gateway", "upstream_unexplained"),
        Failure::UpstreamInsists => (StatusCode::BAD_GATEWAY, "bad_gateway", "upstream_insists"),
        Failure::NoRoomForStreams => {
            (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", "no_room_for_streams")
        }
        Failure::TooManyCalls { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "rate_limited"),
        Failure::TooManyUnderWay => {
            (StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "too_many_under_way")
        }
        Failure::TooManyStreams => (StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "too_many_streams"),
        Failure::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "invalid_request", "too_large"),
        Failure::TooManyFields => {
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "invalid_request", "too_many_fields")
        }
        Failure::TooSlow => (StatusCode::REQUEST_TIMEOUT, "invalid_request", TOO_SLOW),
        Failure::Overloaded { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", "overloaded")
        }
        Failure::Unavailable { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", "unavailable")
        }
        Failure::UpstreamRefused => (StatusCode::BAD_GATEWAY, "bad_gateway", "upstream_refused"),
        Failure::NoRole => (StatusCode::FORBIDDEN, "access_denied", "no_role"),
        Failure::NotExchanged => (StatusCode::BAD_GATEWAY, "bad_gateway", "not_exchanged"),
        Failure::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, "gateway_timeout", "upstream_timeout"),
        Failure::UpstreamUnfilterable(_) => (StatusCode::BAD_GATEWAY, "bad_gateway", "upstream_unfilterable"),
        Failure::UpstreamUnreachable => (StatusCode::BAD_GATEWAY, "bad_gateway", "upstream_unreachable"),
    }
}

/// RFC 6750 §3 and RFC 9728 §5.1. Without a token there is no error to report (RFC 6750 §3.1).
fn challenge(failure: &Failure, route: &Route) -> Option<HeaderValue> {
    let (error, scope) = match failure {
        Failure::Authn(AuthnError::Missing) => (None, route.scope()),
        Failure::Authn(AuthnError::Malformed) => (Some("invalid_request"), route.scope()),
        Failure::Authn(_) | Failure::Denied(Denied::Audience) | Failure::NeedsUser { .. } => {
            (Some("invalid_token"), route.scope())
        }
        Failure::Denied(Denied::Scope { needed }) => (Some("insufficient_scope"), needed.join(" ")),
        Failure::StepUp { scopes } => (Some("insufficient_scope"), scopes.join(" ")),
        _ => return None,
    };
    Some(
        Print { resource_metadata: &route.metadata_url, scope: Some(&scope), error, error_description: None }
            .header_value(),
    )
}

fn wants_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.contains("text/html")
        && !accept.contains("application/json")
        && !accept.contains("text/event-stream")
}

/// Leaves nothing in a proxied answer that would act on the origin our pages live on, and says that it is none of them.
pub fn isolate(headers: &mut HeaderMap) {
    let dropped: Vec<HeaderName> = headers.keys().filter(|name| is_dropped(name)).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    headers.reserve(ADDED);
    for (name, value) in isolation() {
        headers.insert(name, value);
    }
    if is_attachment(headers.get_all(header::CONTENT_TYPE).iter()) {
        headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    }
}

/// What a proxied answer never carries to the client: it would act on the origin our pages live on, or name somebody
/// else's authorization server.
fn is_dropped(name: &HeaderName) -> bool {
    const DROPPED: [&str; 20] = [
        "accept-ch",
        "alt-svc",
        "clear-site-data",
        "content-security-policy",
        "content-security-policy-report-only",
        "critical-ch",
        "link",
        "location",
        "nel",
        "origin-agent-cluster",
        "refresh",
        "report-to",
        "reporting-endpoints",
        "service-worker-allowed",
        "set-cookie",
        "set-login",
        "speculation-rules",
        "strict-transport-security",
        "www-authenticate",
        "x-request-id",
    ];
    DROPPED.contains(&name.as_str()) || name.as_str().starts_with("access-control-")
}

/// No more headers than that are added to a proxied answer: here, for the page that may read it, and its request id.
const ADDED: usize = 7;

/// What every answer on a route carries.
fn isolation() -> [(HeaderName, HeaderValue); 2] {
    [
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'")),
    ]
}

/// Whether a browser must not show an answer of this type: all but JSON and event streams are downloads. Of two types
/// nobody knows which one a browser takes.
pub fn is_attachment<'h>(mut content_types: impl Iterator<Item = &'h HeaderValue>) -> bool {
    let Some(value) = content_types.next() else {
        return false;
    };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is = |known: &str| essence.eq_ignore_ascii_case(known);
    let is_dialect = |essence: String| essence.starts_with("application/") && essence.ends_with("+json");
    let is_shown =
        is("application/json") || is("text/event-stream") || is_dialect(essence.to_ascii_lowercase());
    content_types.next().is_some() || !is_shown
}
