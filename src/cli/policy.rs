//! `postern policy test`: cases in YAML, each a caller and a call with the decision that is expected.
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{failed, println};
use crate::authn::assumed::{Assumed, assume};
use crate::clock::Clock;
use crate::config::{Attributes, Config};
use crate::mcp::{self, Message};
use crate::policy::{Asked, Question, Request, permit};
use crate::route::{Route, Table};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    route: String,
    caller: WrittenCaller,
    /// `None`: a request without a body, such as that for the event stream.
    call: Option<Call>,
    #[serde(default)]
    request: WrittenRequest,
    expect: Expected,
}

/// A user, or a client for itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCaller {
    user: Option<String>,
    client: Option<String>,
    /// Of the token. Default: the access scopes of the route.
    scopes: Option<Vec<String>>,
    /// In place of what the file says of a local user.
    email: Option<String>,
    groups: Option<Vec<String>>,
    #[serde(default)]
    claims: Map<String, Value>,
}

/// One of the first four.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    tool: Option<String>,
    prompt: Option<String>,
    resource: Option<String>,
    method: Option<String>,
    #[serde(default)]
    arguments: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct WrittenRequest {
    /// Default: `POST`, and `GET` where nothing is called.
    method: Option<String>,
    /// Default: the route's.
    path: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    source: Option<IpAddr>,
    /// As RFC 3339 has it. Default: now.
    time: Option<String>,
    revision: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    /// `allowed`, `denied` or `step_up`.
    decision: String,
    /// As the audit log has it: `rule NAME`, `default`, `protocol` or `token`. Default: whatever it is.
    by: Option<String>,
}

/// Tries all cases and says which are decided otherwise.
pub fn test(config: &Config, cases: &Path) -> ExitCode {
    let text = match std::fs::read_to_string(cases) {
        Ok(text) => text,
        Err(error) => return failed(&format!("{} cannot be read: {error}", cases.display())),
    };
    let file: File = match serde_saphyr::from_str(&text) {
        Ok(file) => file,
        Err(error) => return failed(&format!("{}: {error}", cases.display())),
    };
    let routes = Table::new(&config.server.public_url, &config.routes);
    let now = Clock::system().now();
    let (mut said, mut wrong) = (String::new(), 0);
    for case in &file.cases {
        let Expected { decision, by } = &case.expect;
        let found = decided(case, config, &routes, now);
        let is_right = found
            .as_ref()
            .is_ok_and(|(found, found_by)| found == decision && by.as_ref().is_none_or(|by| by == found_by));
        if !is_right {
            wrong += 1;
            let found = found.map_or_else(|why| why, |(decision, by)| format!("{decision} by {by}"));
            let by = by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
            let _ = writeln!(said, "{}: expected {decision}{by}, and it is {found}", case.name);
        }
    }
    let count = file.cases.len();
    if wrong == 0 {
        return println(&format!("{count} case(s), all as expected"));
    }
    println(&format!("{said}{count} case(s), {wrong} otherwise than expected"));
    ExitCode::FAILURE
}

/// The decision on a case and what decided it; or why there is none.
fn decided(
    case: &Case,
    config: &Config,
    routes: &Table,
    now: SystemTime,
) -> Result<(String, String), String> {
    let route =
        routes.by_name(&case.route).ok_or_else(|| format!("no case: there is no route `{}`", case.route))?;
    let written = &case.caller;
    let said = said(written, route);
    let scope = written.scopes.as_ref().unwrap_or(&route.scopes).join(" ");
    let client = written.client.as_deref().unwrap_or("client");
    let assumed = Assumed { user: written.user.as_deref(), client, scope: &scope, said: &said };
    let caller = assume(&assumed, config, routes, route, now)
        .map_err(|error| format!("no case: such a caller is not let in ({error})"))?;
    let attributes = attributes(written, caller.person(), config, &said);
    let attributes = caller.attributes().map_or(attributes, Arc::clone);
    let headers = headers(&case.request)?;
    let method = case.request.method.as_deref().unwrap_or(if case.call.is_some() { "POST" } else { "GET" });
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| "no case: the method is none".to_owned())?;
    let time = match &case.request.time {
        Some(text) => humantime::parse_rfc3339(text).map_err(|_| "no case: the time is none".to_owned())?,
        None => now,
    };
    let path = case.request.path.as_deref().unwrap_or(&route.path);
    let request = Request { method: &method, path, headers: &headers, source: case.request.source, time };
    let question = Question { caller: &caller, attributes: &attributes, route, request, hook: None };
    let message = case.call.as_ref().map(|call| message(call, route)).transpose()?;
    let (_, decision) = permit(&question, message.as_ref().map_or(Asked::Bodiless, Asked::Message));
    Ok((decision.outcome.to_string(), decision.by.to_string()))
}

/// What an issuer would say of the caller.
fn said(written: &WrittenCaller, route: &Route) -> Map<String, Value> {
    let mut said = written.claims.clone();
    if let Some(email) = &written.email {
        said.insert("email".to_owned(), json!(email));
        said.insert("email_verified".to_owned(), json!(true));
    }
    for trusted in &route.trusted_issuers {
        said.insert(trusted.groups_claim.clone(), json!(written.groups));
    }
    said
}

/// Of a user of ours: as the file has them, where the case says nothing else.
fn attributes(
    written: &WrittenCaller,
    user: Option<&str>,
    config: &Config,
    said: &Map<String, Value>,
) -> Arc<Attributes> {
    let Some(user) = user else { return Arc::default() };
    let local = config.login.users.get(user).map(|local| Attributes::clone(&local.attributes));
    let kept = config.login.provider_of(user).map(|provider| provider.policy_claims.as_slice());
    let groups = written.groups.clone().or(local.as_ref().map(|local| local.groups.clone()));
    let mut attributes = Attributes::of(said, groups.unwrap_or_default(), kept.unwrap_or_default());
    if let Some(local) = local.filter(|_| written.email.is_none()) {
        attributes.email = local.email;
    }
    Arc::new(attributes)
}

fn headers(written: &WrittenRequest) -> Result<HeaderMap, String> {
    let name = mcp::PROTOCOL_VERSION;
    let revision = written.revision.as_deref().map(|revision| (name.as_str(), revision));
    let lines = written.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut headers = HeaderMap::new();
    for (name, value) in lines.chain(revision) {
        let (name, value) = (HeaderName::try_from(name), HeaderValue::try_from(value));
        match (name, value) {
            (Ok(name), Ok(value)) => headers.append(name, value),
            _ => return Err("no case: a header is none".to_owned()),
        };
    }
    Ok(headers)
}

fn message(call: &Call, route: &Route) -> Result<Message, String> {
    let Call { tool, prompt, resource, method, arguments } = call;
    let (method, params) = match (tool, prompt, resource, method) {
        (Some(tool), None, None, None) => ("tools/call", json!({"name": tool, "arguments": arguments})),
        (None, Some(prompt), None, None) => ("prompts/get", json!({"name": prompt, "arguments": arguments})),
        (None, None, Some(uri), None) => ("resources/read", json!({"uri": uri})),
        (None, None, None, Some(method)) => (method.as_str(), json!({})),
        _ => return Err("no case: write one of tool, prompt, resource and method".to_owned()),
    };
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    Message::read(message.to_string().as_bytes(), route.rules.arguments())
        .map_err(|error| format!("refused: {error}"))
}
