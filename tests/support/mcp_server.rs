//! The MCP half of a scripted upstream: bearer check, challenges, resource metadata, JSON-RPC and SSE.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answers::{half_answer, http_answer, json_answer};
use super::authorization_server::AuthorizationServer;
use super::body::endless;
use super::gate::pass;
use super::ledger::Identity;
use super::received::{Received, Requests};
use super::script::{Answer, McpScript, MetadataLocation, apply};
use super::server::Connection;
use super::{lock, random_hex};

/// A handle; clones are the same server.
#[derive(Clone)]
pub struct McpServer {
    /// `http://host:port`, no slash at the end.
    pub origin: String,
    pub requests: Requests,
    pub script: Arc<Mutex<McpScript>>,
    pub authorization: AuthorizationServer,
    pub sessions: Arc<Mutex<HashSet<String>>>,
}

impl McpServer {
    /// Whether this request is for the MCP server rather than for an authorization server on the same port.
    pub fn owns(&self, request: &Received) -> bool {
        let script = lock(&self.script);
        request.path == script.path
            || request.path.starts_with("/.well-known/oauth-protected-resource")
            || script.resource_metadata.location == MetadataLocation::At(request.path.clone())
    }

    /// Answers one request and records it.
    pub async fn answer(&self, request: Received, connection: Connection) -> Response {
        self.requests.add(request.clone());
        let script = lock(&self.script).clone();
        if self.metadata_path(&script).as_deref() == Some(request.path.as_str()) {
            return json_answer(200, &self.metadata(&script));
        }
        if request.path != script.path {
            return StatusCode::NOT_FOUND.into_response();
        }
        let identity = self.identity(&script, &request);
        if script.requires_auth && identity.is_none() {
            return match &script.unauthorized {
                Some(answer) => self.give(answer, &script, &request, None, connection),
                None => {
                    let error = request.bearer().map(|_| "invalid_token");
                    self.challenge(&script, 401, error, script.challenge.scope.as_deref())
                }
            };
        }
        if let Some(missing) = missing_scope(&script, &request, identity.as_ref()) {
            return self.challenge(&script, 403, Some("insufficient_scope"), Some(&missing));
        }
        pass(&script.gate).await;
        let answer = lock(&self.script).answers.pop_front().unwrap_or_else(|| script.answer.clone());
        self.give(&answer, &script, &request, identity, connection)
    }

    /// URL of the MCP endpoint, and so the resource it is.
    pub fn url(&self) -> String {
        format!("{}{}", self.origin, lock(&self.script).path)
    }

    fn metadata_path(&self, script: &McpScript) -> Option<String> {
        const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";
        match &script.resource_metadata.location {
            MetadataLocation::PathInserted => {
                Some(format!("{WELL_KNOWN}{}", script.path.trim_end_matches('/')))
            }
            MetadataLocation::Root => Some(WELL_KNOWN.into()),
            MetadataLocation::At(path) => Some(path.clone()),
            MetadataLocation::Nowhere => None,
        }
    }

    fn metadata(&self, script: &McpScript) -> Value {
        let scripted = &script.resource_metadata;
        let resource = scripted.resource.clone().unwrap_or_else(|| format!("{}{}", self.origin, script.path));
        let issuers =
            scripted.authorization_servers.clone().unwrap_or_else(|| vec![self.authorization.issuer()]);
        let mut document = json!({"resource": resource, "authorization_servers": issuers});
        if let Some(scopes) = &scripted.scopes_supported {
            document["scopes_supported"] = json!(scopes);
        }
        apply(&mut document, &scripted.patch);
        document
    }

    fn identity(&self, script: &McpScript, request: &Received) -> Option<Identity> {
        let token = request.bearer()?;
        if script.extra_tokens.contains(&token) {
            return Some(Identity { user: "static".into(), scope: String::new(), generation: u32::MAX });
        }
        let identity = self.authorization.identify(&token)?;
        (identity.generation > script.refused_generation).then_some(identity)
    }

    fn challenge(
        &self,
        script: &McpScript,
        status: u16,
        error: Option<&str>,
        scope: Option<&str>,
    ) -> Response {
        let scripted = &script.challenge;
        let metadata = scripted.metadata_url.clone().or_else(|| {
            let path = self.metadata_path(script).filter(|_| scripted.with_metadata)?;
            Some(format!("{}{path}", self.origin))
        });
        let parameters: Vec<String> =
            [("error", error), ("resource_metadata", metadata.as_deref()), ("scope", scope)]
                .into_iter()
                .filter_map(|(name, value)| value.map(|value| format!("{name}=\"{value}\"")))
                .collect();
        let value = match &scripted.verbatim {
            Some(verbatim) => verbatim.clone(),
            None => format!("Bearer {}", parameters.join(", ")).trim_end().to_owned(),
        };
        let mut headers = vec![("content-type".to_owned(), "text/plain".to_owned())];
        if !value.is_empty() {
            headers.push(("www-authenticate".into(), value));
        }
        http_answer(status, &headers, "upstream refuses")
    }

    fn give(
        &self,
        answer: &Answer,
        script: &McpScript,
        request: &Received,
        identity: Option<Identity>,
        connection: Connection,
    ) -> Response {
        match answer {
            Answer::Mcp => self.serve(script, request, identity),
            Answer::Http { status, headers, body } => http_answer(*status, headers, body),
            Answer::InvalidToken => {
                self.challenge(script, 401, Some("invalid_token"), script.challenge.scope.as_deref())
            }
            Answer::InsufficientScope(scope) => {
                self.challenge(script, 403, Some("insufficient_scope"), Some(scope))
            }
            Answer::Stream(fed) => events(fed.body()),
            Answer::Json(fed) => ([("content-type", "application/json")], fed.body()).into_response(),
            Answer::Events(list) => {
                events(Body::from(list.iter().map(|data| format!("data: {data}\n\n")).collect::<String>()))
            }
            Answer::Endless(given) => events(endless(given.clone())),
            Answer::Half => half_answer(r#"{"jsonrpc":"2.0","id":1,"result":{"this":"is never finished"}}"#),
            Answer::Hangup => {
                connection.cut();
                StatusCode::OK.into_response()
            }
        }
    }

    /// Well-behaved MCP, for 2025-11-25 with or without sessions and for 2026-07-28.
    fn serve(&self, script: &McpScript, request: &Received, identity: Option<Identity>) -> Response {
        let call = request.json();
        let method = call["method"].as_str().unwrap_or_default();
        if script.sessions && method != "initialize" {
            match request.header("mcp-session-id") {
                None => return StatusCode::BAD_REQUEST.into_response(),
                Some(id) if !lock(&self.sessions).contains(&id) => {
                    return StatusCode::NOT_FOUND.into_response();
                }
                Some(id) if request.method == "DELETE" => {
                    lock(&self.sessions).remove(&id);
                    return StatusCode::NO_CONTENT.into_response();
                }
                Some(_) => {}
            }
        }
        if request.method != "POST" {
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
        if call["id"].is_null() && !method.is_empty() {
            return StatusCode::ACCEPTED.into_response();
        }
        let answer = json!({"jsonrpc": "2.0", "id": call["id"], "result": result(request, &call, identity)});
        let mut response = json_answer(200, &answer);
        if script.sessions && method == "initialize" {
            let id = random_hex(16);
            response.headers_mut().insert("mcp-session-id", id.parse().expect("header value"));
            lock(&self.sessions).insert(id);
        }
        response
    }
}

fn events(body: Body) -> Response {
    ([("content-type", "text/event-stream"), ("cache-control", "no-cache")], body).into_response()
}

/// The scope a call lacks.
fn missing_scope(script: &McpScript, request: &Received, identity: Option<&Identity>) -> Option<String> {
    let call = request.json();
    let of_tool = call["params"]["name"].as_str().and_then(|tool| script.tool_scopes.get(tool));
    let held: Vec<&str> = identity.map(|identity| identity.scope.split(' ').collect()).unwrap_or_default();
    let mut wanted = of_tool.into_iter().chain(&script.required_scope);
    wanted.find(|scope| !scope.split(' ').all(|one| held.contains(&one))).cloned()
}

/// The result of one JSON-RPC call. Tool results tell what has arrived here.
fn result(request: &Received, call: &Value, identity: Option<Identity>) -> Value {
    let version = request.header("mcp-protocol-version").unwrap_or_else(|| "2025-11-25".into());
    let about = json!({"name": "scripted-upstream", "version": "1"});
    match call["method"].as_str().unwrap_or_default() {
        "initialize" => {
            let asked = call["params"]["protocolVersion"].as_str().unwrap_or(&version);
            json!({"protocolVersion": asked, "capabilities": {"tools": {}}, "serverInfo": about})
        }
        "server/discover" => json!({
            "resultType": "complete", "supportedVersions": [version], "capabilities": {"tools": {}},
            "serverInfo": about,
        }),
        "tools/list" => json!({"tools": [
            {"name": "echo", "description": "says what it was told", "inputSchema": {"type": "object"}},
            {"name": "whoami", "description": "says who called", "inputSchema": {"type": "object"}},
        ]}),
        "tools/call" => {
            let user = identity.as_ref().map(|identity| identity.user.clone());
            let text = match call["params"]["name"].as_str() {
                Some("whoami") => user.clone().unwrap_or_else(|| "nobody".into()),
                _ => call["params"]["arguments"]["message"].as_str().unwrap_or("ok").to_owned(),
            };
            let headers: BTreeMap<String, String> = request
                .headers
                .iter()
                .filter(|(name, _)| *name != "authorization")
                .map(|(name, value)| {
                    (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                })
                .collect();
            json!({
                "content": [{"type": "text", "text": text}],
                "structuredContent": {
                    "user": user,
                    "generation": identity.map(|identity| identity.generation),
                    "target": request.target(),
                    "headers": headers,
                    "body": request.text(),
                },
            })
        }
        _ => json!({}),
    }
}
