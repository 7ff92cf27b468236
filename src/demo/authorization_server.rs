//! The demo's authorization server: its metadata (RFC 8414) and registration (RFC 7591), and what its endpoints
//! share. `authorize` and `token` have a file each.
//!
//! Small, but as strict as a good one: it refuses a gateway that forgets `resource`, the challenge or the
//! verifier.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{BadRedirectUris, Client};
use super::{Demo, NoRandomness, SCOPE, authorize, no_store, random_text, token};
use crate::clock::unix_seconds;

pub(super) fn routes() -> Router<Arc<Demo>> {
    Router::new()
        .route("/.well-known/oauth-authorization-server", get(metadata))
        .route("/register", post(register))
        .route("/authorize", get(authorize::ask).post(authorize::answer))
        .route("/token", post(token::endpoint))
        .route("/style.css", get(style))
        .layer(DefaultBodyLimit::max(64 * 1024))
}

async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("style.css")).into_response()
}

async fn metadata(State(demo): State<Arc<Demo>>) -> Json<Value> {
    let issuer = &demo.issuer;
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "registration_endpoint": format!("{issuer}/register"),
        "scopes_supported": [SCOPE],
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "token_endpoint_auth_methods_supported": ["none"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
    }))
}

/// An OAuth error as JSON (RFC 6749 §5.2, RFC 7591 §3.2.2).
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) error: &'static str,
    pub(super) description: &'static str,
}

impl Refusal {
    pub(super) fn new(error: &'static str, description: &'static str) -> Self {
        Refusal { status: StatusCode::BAD_REQUEST, error, description }
    }
}

impl From<NoRandomness> for Refusal {
    fn from(_: NoRandomness) -> Self {
        Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            error: "server_error",
            description: "try again later",
        }
    }
}

impl From<BadRedirectUris> for Refusal {
    fn from(BadRedirectUris(why): BadRedirectUris) -> Self {
        Refusal::new("invalid_redirect_uri", why)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": self.error, "error_description": self.description }));
        let mut response = no_store((self.status, body));
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
        }
        response
    }
}

#[derive(Deserialize)]
struct RegistrationRequest {
    redirect_uris: Vec<String>,
    client_name: Option<String>,
    grant_types: Option<Vec<String>>,
    response_types: Option<Vec<String>>,
}

/// Registration (RFC 7591 §3). Whatever the client asks for, it becomes a public one with both grant types;
/// the answer says so.
async fn register(State(demo): State<Arc<Demo>>, body: Bytes) -> Result<Response, Refusal> {
    let request: RegistrationRequest = serde_json::from_slice(&body)
        .map_err(|_| Refusal::new("invalid_client_metadata", "the body is not client metadata in JSON"))?;
    let lacks =
        |list: &Option<Vec<String>>, item| list.as_ref().is_some_and(|list| !list.iter().any(|i| i == item));
    if lacks(&request.grant_types, "authorization_code") || lacks(&request.response_types, "code") {
        return Err(Refusal::new("invalid_client_metadata", "only the authorization code flow is supported"));
    }
    let client = Client::new(random_text()?, request.client_name.as_deref(), request.redirect_uris)?;
    let issued_at = unix_seconds(demo.clock.now());
    let mut answer = json!({
        "client_id": client.id(),
        "client_id_issued_at": issued_at,
        "redirect_uris": client.redirect_uris,
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
        "scope": SCOPE,
    });
    if let (Some(fields), Some(name)) = (answer.as_object_mut(), &client.name) {
        fields.insert("client_name".to_owned(), json!(name));
    }
    Ok(no_store((StatusCode::CREATED, Json(answer))))
}

/// Parameters by name; `None` when one comes twice (RFC 6749 §3.1). Empty ones count as absent.
pub(super) fn parameters(text: &[u8]) -> Option<HashMap<String, String>> {
    let mut found = HashMap::new();
    for (name, value) in form_urlencoded::parse(text) {
        if !value.is_empty() && found.insert(name.into_owned(), value.into_owned()).is_some() {
            return None;
        }
    }
    Some(found)
}
