//! The management API over HTTP: organisations, what they have added, and who may use it, below [`ROOT`]. What is decided
//! stands in `api::managed`; here a request is read, its caller proven, and an answer printed.
//!
//! One table says all that can be asked. The router is made from it, and so is the OpenAPI document, so neither has what the
//! other lacks; and nothing is run before its caller is proven, because that happens here for all of them.
mod assignments;
mod call;
mod caller;
mod condition;
mod configurations;
mod discovery;
mod events;
mod idempotency;
mod openapi;
mod operation;
mod organizations;
mod page;
mod problem;
mod tokens;
mod written;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{Extension, RawPathParams, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};

use self::call::Call;
use self::idempotency::Turn;
use self::operation::{Operation, Reply};
use self::problem::{Kind, Problem};
use super::json::SAME_ORIGIN;
use super::{About, Shared, Web};

/// What all paths begin with.
pub const ROOT: &str = "/api/v1";

/// All that can be asked.
fn operations() -> impl Iterator<Item = &'static Operation> {
    [
        organizations::OPERATIONS,
        configurations::OPERATIONS,
        assignments::OPERATIONS,
        tokens::OPERATIONS,
        discovery::OPERATIONS,
        events::OPERATIONS,
    ]
    .into_iter()
    .flatten()
}

pub fn routes() -> Router<Arc<Web>> {
    let mut by_path: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations() {
        by_path.entry(operation.path).or_default().push(operation);
    }
    let mut router = Router::new().route(&path("/openapi.json"), get(openapi::show));
    for (path, operations) in by_path {
        let operations: Arc<[&Operation]> = operations.into();
        let handler = async move |State(web): Shared,
                                  Extension(about): Extension<About>,
                                  parameters: Result<RawPathParams, RawPathParamsRejection>,
                                  method: Method,
                                  uri: Uri,
                                  headers: HeaderMap,
                                  body: Bytes| {
            let parameters = parameters
                .map(|parameters| parameters.iter().map(|(_, value)| value.to_owned()).collect::<Vec<_>>());
            let asked = Asked { method, uri, headers, body, parameters: parameters.unwrap_or_default() };
            serve(&web, &about, &operations, &asked).await
        };
        router = router.route(&format!("{ROOT}{path}"), any(handler));
    }
    router
}

/// A request as it came.
struct Asked {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    /// What stands in the path for its names, decoded.
    parameters: Vec<String>,
}

async fn serve(web: &Web, about: &About, operations: &[&'static Operation], asked: &Asked) -> Response {
    let mut response = match answer(web, about, operations, asked).await {
        Ok(response) => response,
        Err(problem) => {
            let is_conditional = asked.headers.contains_key(header::IF_MATCH);
            let problem = if is_conditional { problem } else { problem.unconditional() };
            let is_method = problem.kind() == Kind::MethodNotAllowed;
            let mut response = problem.into_response(&about.request_id);
            let allowed = HeaderValue::from_str(&allowed(operations)).ok().filter(|_| is_method);
            response.headers_mut().extend(allowed.map(|allowed| (header::ALLOW, allowed)));
            response
        }
    };
    response.headers_mut().insert(SAME_ORIGIN, HeaderValue::from_static("same-origin"));
    response
}

async fn answer(
    web: &Web,
    about: &About,
    operations: &[&'static Operation],
    asked: &Asked,
) -> Result<Response, Problem> {
    if about.snapshot.config.managed.is_none() {
        return Err(Problem::new(Kind::NotFound, "This gateway lets nobody add MCP servers."));
    }
    let method = if asked.method == Method::HEAD { &Method::GET } else { &asked.method };
    let operation = operations.iter().find(|operation| operation.method == *method);
    let operation = operation.ok_or_else(|| {
        let detail = format!("Here are {}.", allowed(operations));
        Problem::new(Kind::MethodNotAllowed, detail)
    })?;
    let actor = caller::prove(web, about, &asked.headers, operation).await?;
    if operation.query.is_none() && asked.uri.query().is_some_and(|query| !query.is_empty()) {
        return Err(Problem::new(Kind::Malformed, "There is nothing to be asked in a query here."));
    }
    if operation.body.is_none() && operation.is_change() && !asked.body.is_empty() {
        return Err(Problem::new(Kind::Malformed, "Nothing is read from a body here: leave it out."));
    }
    let call = Call {
        web,
        about,
        actor: &actor,
        parameters: &asked.parameters,
        uri: &asked.uri,
        headers: &asked.headers,
        body: &asked.body,
    };
    let reply = run(operation, &call, asked).await?;
    Ok(print(operation, &reply, &asked.headers))
}

/// What is made is made once, however often it is asked for under one key.
async fn run(operation: &Operation, call: &Call<'_>, asked: &Asked) -> Result<Reply, Problem> {
    if operation.method != Method::POST {
        return (operation.run)(call).await;
    }
    let records = &call.web.authority.records;
    let place = asked.uri.path().as_bytes();
    let kind = asked.headers.get(header::IF_MATCH).map(HeaderValue::as_bytes).unwrap_or_default();
    match idempotency::begin(records, &asked.headers, &call.actor.name, [place, kind, &asked.body]).await? {
        Turn::Once => (operation.run)(call).await,
        Turn::Again(reply) => Ok(reply),
        Turn::First(key) => {
            let outcome = (operation.run)(call).await;
            idempotency::settle(records, key, &outcome).await;
            outcome
        }
    }
}

fn print(operation: &Operation, reply: &Reply, headers: &HeaderMap) -> Response {
    let is_known = |version| !operation.is_change() && condition::is_known(headers, version);
    let mut response = match &reply.document {
        Some(_) if reply.version.is_some_and(is_known) => StatusCode::NOT_MODIFIED.into_response(),
        Some(document) => (operation.status, axum::Json(document)).into_response(),
        None => operation.status.into_response(),
    };
    let more = [(header::ETAG, reply.tag()), (header::LOCATION, reply.location.clone())];
    for (name, value) in more {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn allowed(operations: &[&'static Operation]) -> String {
    operations.iter().map(|operation| operation.method.as_str()).collect::<Vec<_>>().join(", ")
}

/// Where something is, from its path below [`ROOT`].
fn path(below: &str) -> String {
    format!("{ROOT}{below}")
}

/// Seconds since the epoch as RFC 3339 has them.
fn time(seconds: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string()
}
