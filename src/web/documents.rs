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

/// RFC 7517: the keys of access tokens, where those are signed.
pub async fn keys(Extension(about): Extension<About>) -> Response {
    document(about.snapshot.keys.published())
}

/// Our client document for one issuer: `{key}.json`.
pub async fn client(State(web): Shared, Path(name): Path<String>) -> Response {
    let key = name.strip_suffix(".json").filter(|key| {
        key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(&byte))
    });
    key.map_or_else(missing, |key| document(web.authority.connector.document(key)))
}

/// Our client document for all issuers.
pub async fn common_client(State(web): Shared) -> Response {
    match web.authority.connector.common_document().await {
        Ok(common) => document(common),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")]).into_response(),
    }
}
