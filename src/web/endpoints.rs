//! The OAuth endpoints that clients call themselves: register, token, revoke.
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{About, Shared, Web};
use crate::oauth::server::params::Params;
use crate::oauth::server::refusal::Refusal;
use crate::oauth::server::{grant, register, token};

/// No form sent to these endpoints is larger, bytes.
const FORM_MAX: usize = 16 * 1024;

/// CORS for whoever wants to use these endpoints from a page; no cookies are involved.
pub async fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "content-type, authorization, accept, mcp-protocol-version"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// RFC 7591.
pub async fn register(
    State(web): Shared,
    Extension(about): Extension<About>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answer = async {
        if !about.snapshot.config.oauth_server.dcr_enabled {
            return Err(Refusal::access_denied("registration is switched off"));
        }
        if !is_type(&headers, "application/json") {
            return Err(Refusal::invalid_client_metadata("send application/json"));
        }
        register::register(&web.authority.records, &body, web.authority.clock.now()).await
    };
    let answer = answer.await;
    if let Ok(answer) = &answer {
        tracing::info!(target: "audit", event = "client_registered", client = %answer.client_id);
    }
    web.print("register", StatusCode::CREATED, answer)
}

/// RFC 6749 §3.2.
pub async fn token(
    State(web): Shared,
    Extension(about): Extension<About>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answer = async { token::token(&web.authority, &about.snapshot, form(&headers, &body)?).await };
    let answer = answer.await;
    web.print("token", StatusCode::OK, answer)
}

/// RFC 7009.
pub async fn revoke(
    State(web): Shared,
    Extension(about): Extension<About>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answer = async {
        let params = Params::parse(form(&headers, &body)?)?;
        let client_id = params.required("client_id", "client_id is required")?;
        let token = params.required("token", "token is required")?;
        grant::revoke(&web.authority, &about.snapshot, client_id, token).await?;
        Ok(serde_json::json!({}))
    };
    let answer = answer.await;
    web.print("revoke", StatusCode::OK, answer)
}

fn form<'b>(headers: &HeaderMap, body: &'b [u8]) -> Result<&'b str, Refusal> {
    if !is_type(headers, "application/x-www-form-urlencoded") {
        return Err(Refusal::invalid_request("send application/x-www-form-urlencoded"));
    }
    if headers.contains_key(header::AUTHORIZATION) {
        return Err(Refusal::invalid_client(
            "clients are public here: send client_id in the body and no Authorization",
        ));
    }
    std::str::from_utf8(body)
        .ok()
        .filter(|body| body.len() <= FORM_MAX)
        .ok_or(Refusal::invalid_request("the body is not a form, or is too large"))
}

fn is_type(headers: &HeaderMap, wanted: &str) -> bool {
    let sent = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    sent.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted))
}

// === impl Web ===

impl Web {
    /// Success or refusal as JSON, never cached (RFC 6749 §5.1).
    fn print(
        &self,
        endpoint: &str,
        success: StatusCode,
        answer: Result<impl Serialize, Refusal>,
    ) -> Response {
        let result = answer.as_ref().map_or_else(|refusal| refusal.code, |_| "ok");
        self.metrics.oauth.with_label_values(&[endpoint, result]).inc();
        let mut response = match answer {
            Ok(answer) => (success, Json(answer)).into_response(),
            Err(refusal) => {
                tracing::info!(target: "postern::oauth", endpoint, code = refusal.code, reason = refusal.description, "refused");
                let body =
                    serde_json::json!({"error": refusal.code, "error_description": refusal.description});
                let mut response = (refusal.status(), Json(body)).into_response();
                if refusal.status() == StatusCode::UNAUTHORIZED {
                    // RFC 6749 §5.2: whoever tried the Authorization header is answered in kind.
                    let scheme = HeaderValue::from_static("Basic realm=\"clients are public here\"");
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
                }
                if refusal.status() == StatusCode::SERVICE_UNAVAILABLE {
                    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                }
                response
            }
        };
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response.headers_mut().insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
        response
    }
}
