//! The demo's MCP server: Streamable HTTP without sessions, for the revisions that open with `initialize` and
//! for 2026-07-28, where every request stands alone. Two tools: `whoami` and `echo`. At `/open/mcp` it takes anybody.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use bytes::Bytes;
use data_encoding::BASE64;
use serde_json::{Map, Value, json};

use super::{Demo, Grant, SCOPE, digest_of, header_text};

/// Revisions that open with `initialize`, newest first. For what is done here they are alike.
const OPENED: [&str; 2] = ["2025-11-25", "2025-06-18"];
/// The revision without an opening.
const STANDALONE: &str = "2026-07-28";

const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const META_SERVER: &str = "io.modelcontextprotocol/serverInfo";

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;
const HEADER_MISMATCH: i32 = -32020;
const UNSUPPORTED_VERSION: i32 = -32022;

pub(super) fn routes() -> Router<Arc<Demo>> {
    Router::new()
        .route("/.well-known/oauth-protected-resource/mcp", get(resource_metadata))
        .route("/mcp", any(endpoint).layer(DefaultBodyLimit::max(1024 * 1024)))
        .route("/open/mcp", any(open_endpoint).layer(DefaultBodyLimit::max(1024 * 1024)))
}

/// RFC 9728.
async fn resource_metadata(State(demo): State<Arc<Demo>>) -> Json<Value> {
    Json(json!({
        "resource": demo.resource,
        "resource_name": "Demo tools",
        "authorization_servers": [demo.issuer],
        "scopes_supported": [SCOPE],
        "bearer_methods_supported": ["header"],
    }))
}

async fn endpoint(
    State(demo): State<Arc<Demo>>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let grant = match bearer(&headers) {
        None => return challenge(&demo, false),
        Some(token) => match grant_of(&demo, token) {
            None => return challenge(&demo, true),
            Some(grant) => grant,
        },
    };
    answer(&method, &headers, &body, &grant)
}

/// The same server for whoever comes.
async fn open_endpoint(method: Method, headers: HeaderMap, body: Bytes) -> Response {
    let guest = Grant { client_id: String::new(), account: "a guest".to_owned() };
    answer(&method, &headers, &body, &guest)
}

fn answer(method: &Method, headers: &HeaderMap, body: &[u8], grant: &Grant) -> Response {
    if *method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")]).into_response();
    }
    if !is_json(headers) {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    if !accepts_both(headers) {
        return StatusCode::NOT_ACCEPTABLE.into_response();
    }
    let message = match serde_json::from_slice::<Value>(body) {
        Err(_) => return Fault::bad(PARSE_ERROR, "this is not JSON").answer(&Value::Null),
        Ok(Value::Object(message)) => message,
        Ok(_) => return Fault::bad(INVALID_REQUEST, "send one JSON-RPC message").answer(&Value::Null),
    };
    let id = match message.get("id") {
        // A notification, or a response to a request that was never made: taken and forgotten.
        None => return StatusCode::ACCEPTED.into_response(),
        Some(_) if !message.contains_key("method") => return StatusCode::ACCEPTED.into_response(),
        Some(id @ (Value::String(_) | Value::Number(_))) => id.clone(),
        Some(_) => return Fault::bad(INVALID_REQUEST, "the id is a string or a number").answer(&Value::Null),
    };
    match reply(headers, &message, grant) {
        Ok(result) => Json(json!({ "jsonrpc": "2.0", "id": id, "result": result })).into_response(),
        Err(fault) => fault.answer(&id),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = header_text(headers, "authorization")?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn grant_of(demo: &Demo, token: &str) -> Option<Grant> {
    let now = demo.clock.now();
    let tables = demo.tables();
    let token = tables.access.find(&digest_of(token)).filter(|token| now < token.expires)?;
    tables.grants.find(&token.grant).cloned()
}

/// 401 (RFC 6750 §3, RFC 9728 §5.1). The error is named only when there was a token.
fn challenge(demo: &Demo, had_token: bool) -> Response {
    let error = if had_token { "error=\"invalid_token\", " } else { "" };
    let metadata = format!("{}/.well-known/oauth-protected-resource/mcp", demo.issuer);
    let value = format!("Bearer {error}resource_metadata=\"{metadata}\", scope=\"{SCOPE}\"");
    let mut response = StatusCode::UNAUTHORIZED.into_response();
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

fn is_json(headers: &HeaderMap) -> bool {
    header_text(headers, "content-type")
        .and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn accepts_both(headers: &HeaderMap) -> bool {
    let ranges: Vec<String> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .map(|range| range.trim().to_ascii_lowercase())
        .collect();
    let has = |kind: &str, group: &str| {
        ranges.iter().any(|range| range == kind || range == group || range == "*/*")
    };
    has("application/json", "application/*") && has("text/event-stream", "text/*")
}

/// A JSON-RPC error and the HTTP status it travels with.
struct Fault {
    status: StatusCode,
    code: i32,
    message: &'static str,
    data: Option<Value>,
}

impl Fault {
    fn new(status: StatusCode, code: i32, message: &'static str) -> Self {
        Fault { status, code, message, data: None }
    }

    fn bad(code: i32, message: &'static str) -> Self {
        Fault::new(StatusCode::BAD_REQUEST, code, message)
    }

    fn answer(self, id: &Value) -> Response {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let (Some(fields), Some(data)) = (error.as_object_mut(), self.data) {
            fields.insert("data".to_owned(), data);
        }
        (self.status, Json(json!({ "jsonrpc": "2.0", "id": id, "error": error }))).into_response()
    }
}

/// The result of one request. How the client opens decides the revision: `_meta` or the header names the newer
/// one, all else is the older kind.
fn reply(headers: &HeaderMap, message: &Map<String, Value>, grant: &Grant) -> Result<Value, Fault> {
    if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(Fault::bad(INVALID_REQUEST, "this is not JSON-RPC 2.0"));
    }
    let Some(method) = message.get("method").and_then(Value::as_str) else {
        return Err(Fault::bad(INVALID_REQUEST, "the method is a string"));
    };
    let params = message.get("params").unwrap_or(&Value::Null);
    let version = header_text(headers, "mcp-protocol-version");
    let in_body = params.get("_meta").and_then(|meta| meta.get(META_VERSION));
    if in_body.is_some() || version == Some(STANDALONE) {
        check_standalone(headers, method, params)?;
        return standalone(method, params, grant);
    }
    if method != "initialize" && version.is_some_and(|version| !OPENED.contains(&version)) {
        return Err(unsupported(version.unwrap_or_default()));
    }
    match method {
        "initialize" => {
            let asked = params.get("protocolVersion").and_then(Value::as_str);
            let [newest, ..] = OPENED;
            let agreed = asked.filter(|asked| OPENED.contains(asked)).unwrap_or(newest);
            Ok(json!({
                "protocolVersion": agreed,
                "capabilities": { "tools": {} },
                "serverInfo": server_info(),
            }))
        }
        "ping" => Ok(json!({})),
        "tools/list" => Ok(json!({ "tools": tools() })),
        "tools/call" => call(params, grant),
        _ => Err(Fault::new(StatusCode::OK, METHOD_NOT_FOUND, "there is no such method")),
    }
}

fn unsupported(requested: &str) -> Fault {
    Fault {
        data: Some(json!({ "supported": [STANDALONE], "requested": requested })),
        ..Fault::bad(UNSUPPORTED_VERSION, "this protocol version is not supported")
    }
}

/// What 2026-07-28 demands of every request: the headers say what the body says, and `_meta` is complete.
fn check_standalone(headers: &HeaderMap, method: &str, params: &Value) -> Result<(), Fault> {
    let mismatch = |message| Err(Fault::bad(HEADER_MISMATCH, message));
    let meta = params.get("_meta").unwrap_or(&Value::Null);
    let Some(version) = meta.get(META_VERSION).and_then(Value::as_str) else {
        return Err(Fault::bad(INVALID_PARAMS, "_meta must name the protocol version"));
    };
    if header_text(headers, "mcp-protocol-version") != Some(version) {
        return mismatch("MCP-Protocol-Version does not match the body");
    }
    if version != STANDALONE {
        return Err(unsupported(version));
    }
    if !meta.get(META_CAPABILITIES).is_some_and(Value::is_object) {
        return Err(Fault::bad(INVALID_PARAMS, "_meta must name the client capabilities"));
    }
    if header_text(headers, "mcp-method") != Some(method) {
        return mismatch("Mcp-Method does not match the body");
    }
    if method == "tools/call" {
        let name = params.get("name").and_then(Value::as_str);
        let header = header_text(headers, "mcp-name").and_then(decoded);
        if header.is_none() || header.as_deref() != name {
            return mismatch("Mcp-Name does not match the body");
        }
    }
    Ok(())
}

/// A header value as it was meant: text that headers cannot carry comes as `=?base64?…?=`.
fn decoded(value: &str) -> Option<String> {
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        None => Some(value.to_owned()),
        Some(coded) => String::from_utf8(BASE64.decode(coded.as_bytes()).ok()?).ok(),
    }
}

fn standalone(method: &str, params: &Value, grant: &Grant) -> Result<Value, Fault> {
    // The same for everyone, so anybody may keep it for a while.
    let keep = |mut result: Value| {
        if let Some(fields) = result.as_object_mut() {
            fields.insert("ttlMs".to_owned(), json!(300_000));
            fields.insert("cacheScope".to_owned(), json!("public"));
        }
        result
    };
    let mut result = match method {
        "server/discover" => {
            keep(json!({ "supportedVersions": [STANDALONE], "capabilities": { "tools": {} } }))
        }
        "tools/list" => keep(json!({ "tools": tools() })),
        "tools/call" => call(params, grant)?,
        _ => {
            return Err(Fault::new(StatusCode::NOT_FOUND, METHOD_NOT_FOUND, "there is no such method"));
        }
    };
    if let Some(fields) = result.as_object_mut() {
        fields.insert("resultType".to_owned(), json!("complete"));
        fields.insert("_meta".to_owned(), json!({ META_SERVER: server_info() }));
    }
    Ok(result)
}

fn server_info() -> Value {
    json!({ "name": "postern-demo", "title": "Demo tools", "version": env!("CARGO_PKG_VERSION") })
}

fn tools() -> Value {
    json!([
        {
            "name": "whoami",
            "title": "Who am I",
            "description": "Says which account of the demo service the call is made with.",
            "inputSchema": { "type": "object", "properties": {}, "additionalProperties": false },
            "annotations": { "readOnlyHint": true },
        },
        {
            "name": "echo",
            "title": "Echo",
            "description": "Answers with the text it was given.",
            "inputSchema": {
                "type": "object",
                "properties": { "text": { "type": "string", "description": "What to answer." } },
                "required": ["text"],
                "additionalProperties": false,
            },
            "annotations": { "readOnlyHint": true },
        },
    ])
}

fn call(params: &Value, grant: &Grant) -> Result<Value, Fault> {
    let (text, is_error) = match params.get("name").and_then(Value::as_str) {
        Some("whoami") => (format!("You are {} at Demo tools.", grant.account), false),
        Some("echo") => {
            match params.get("arguments").and_then(|given| given.get("text")).and_then(Value::as_str) {
                Some(text) => (text.to_owned(), false),
                None => ("echo needs a text".to_owned(), true),
            }
        }
        _ => {
            return Err(Fault::new(StatusCode::OK, INVALID_PARAMS, "there is no such tool"));
        }
    };
    Ok(json!({ "content": [{ "type": "text", "text": text }], "isError": is_error }))
}
