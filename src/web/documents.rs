//! The documents: metadata, keys, and what we are as a client.
use axum::Json;
use axum::extract::{Extension, OriginalUri, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{About, Shared};
use crate::oauth::server::metadata;

/// Metadata change with the configuration only; a client that asks again after a minute is served well.
fn document(body: impl Serialize) -> Response {
    ([(header::CACHE_CONTROL, "max-age=60")], Json(body)).into_response()
}

fn later() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")]).into_response()
}

fn missing() -> Response {
    (StatusCode::NOT_FOUND, Json(serde_json::json!({"error": "not_found"}))).into_response()
}

/// RFC 9728 §3: by the route's own host and path.
pub async fn resource(Extension(about): Extension<About>, OriginalUri(uri): OriginalUri) -> Response {
    match about.snapshot.routes.metadata(&about.authority, uri.path()) {
        Some(Ok(route)) => document(metadata::resource(&about.snapshot, route)),
        _ => missing(),
    }
}

/// RFC 8414 §3.
pub async fn server(Extension(about): Extension<About>) -> Response {
    document(metadata::server(&about.snapshot, false))
}

/// The same under OpenID Connect's name.
pub async fn openid(Extension(about): Extension<About>) -> Response {
    document(metadata::server(&about.snapshot, true))
}

/// RFC 7517: the keys of access tokens, where those are signed, and those that prove us to upstreams' authorization servers.
pub async fn keys(State(web): Shared, Extension(about): Extension<About>) -> Response {
    let mut keys = about.snapshot.keys.published();
    match web.authority.connector.all_client_keys().await {
        Some(ours) => keys.extend(ours),
        // Those of access tokens are known without the store.
        None if !keys.is_empty() => {}
        None => return later(),
    }
    document(serde_json::json!({"keys": keys}))
}

/// The same for one issuer alone.
pub async fn client_keys(State(web): Shared, Path(key): Path<String>) -> Response {
    if !is_issuer_key(&key) {
        return missing();
    }
    match web.authority.connector.client_keys(Some(&key)).await {
        Ok(keys) => document(serde_json::json!({"keys": keys})),
        Err(_) => later(),
    }
}

/// Our client document for one issuer: `{key}.json`.
pub async fn client(State(web): Shared, Path(name): Path<String>) -> Response {
    let Some(key) = name.strip_suffix(".json").filter(|key| is_issuer_key(key)) else { return missing() };
    match web.authority.connector.document(key).await {
        Ok(ours) => document(ours),
        Err(_) => later(),
    }
}

fn is_issuer_key(key: &str) -> bool {
    key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(&byte))
}

/// Our client document for all issuers.
pub async fn common_client(State(web): Shared) -> Response {
    match web.authority.connector.common_document().await {
        Ok(common) => document(common),
        Err(_) => later(),
    }
}
