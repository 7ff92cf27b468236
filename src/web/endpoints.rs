//! The OAuth endpoints that clients call themselves: register, token, revoke.
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{About, Shared, Web};
use crate::oauth::server::authenticate::{Authenticated, authenticate};
use crate::oauth::server::params::Params;
use crate::oauth::server::refusal::Refusal;
use crate::oauth::server::register::manage::{self, Presented};
use crate::oauth::server::userinfo::{self, NoUserInfo};
use crate::oauth::server::{grant, introspect, register, token};

/// No form sent to these endpoints is larger, bytes.
const FORM_MAX: usize = 16 * 1024;

/// CORS for whoever wants to use these endpoints from a page; no cookies are involved.
pub async fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE"),
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
        let authority = &web.authority;
        let may_store = || web.limits.registration(about.client);
        register::register(&authority.records, &about.snapshot, &body, authority.clock.now(), may_store).await
    };
    let answer = answer.await;
    if let Ok(answer) = &answer {
        tracing::info!(target: "audit", event = "client_registered", client = %answer.client_id);
    }
    web.print("register", StatusCode::CREATED, answer)
}

/// RFC 7592 §2.1.
pub async fn read_client(
    State(web): Shared,
    Extension(about): Extension<About>,
    Path(client_id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let shown = Presented { client_id: &client_id, token: bearer(&headers) };
    web.print("register", StatusCode::OK, manage::read(&web.authority, &about.snapshot, &shown).await)
}

/// RFC 7592 §2.2.
pub async fn change_client(
    State(web): Shared,
    Extension(about): Extension<About>,
    Path(client_id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answer = async {
        if !is_type(&headers, "application/json") {
            return Err(Refusal::invalid_client_metadata("send application/json"));
        }
        let shown = Presented { client_id: &client_id, token: bearer(&headers) };
        let now = web.authority.clock.now();
        manage::change(&web.authority, &about.snapshot, &shown, &body, now).await
    };
    let answer = answer.await;
    web.print("register", StatusCode::OK, answer)
}

/// RFC 7592 §2.3.
pub async fn delete_client(
    State(web): Shared,
    Path(client_id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let shown = Presented { client_id: &client_id, token: bearer(&headers) };
    match manage::delete(&web.authority, &shown).await {
        Ok(()) => (StatusCode::NO_CONTENT, [(header::CACHE_CONTROL, "no-store")]).into_response(),
        refused => web.print("register", StatusCode::OK, refused.map(|()| serde_json::json!({}))),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = authorization(headers).ok()??.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// RFC 6749 §3.2.
pub async fn token(
    State(web): Shared,
    Extension(about): Extension<About>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answer = async {
        let (authorization, form) = (authorization(&headers)?, form(&headers, &body)?);
        token::token(&web.authority, &about.snapshot, &web.providers, authorization, form).await
    };
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
        let (client, token) = web.about_token(&about, &headers, &body).await?;
        grant::revoke(&web.authority, &about.snapshot, &client, &token).await?;
        Ok(serde_json::json!({}))
    };
    let answer = answer.await;
    web.print("revoke", StatusCode::OK, answer)
}

/// RFC 7662.
pub async fn introspect(
    State(web): Shared,
    Extension(about): Extension<About>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !about.snapshot.config.oauth_server.has_watchers() {
        return (StatusCode::NOT_FOUND, Json(serde_json::json!({"error": "not_found"}))).into_response();
    }
    let answer = async {
        let (client, token) = web.about_token(&about, &headers, &body).await?;
        introspect::introspect(&web.authority, &about.snapshot, &client, &token).await
    };
    let answer = answer.await;
    web.print("introspect", StatusCode::OK, answer)
}

/// `GET` and `POST /oauth/userinfo` (OpenID Connect Core §5.3.1), the token in the header alone.
pub async fn userinfo(
    State(web): Shared,
    Extension(about): Extension<About>,
    headers: HeaderMap,
) -> Response {
    let token = authorization(&headers).ok().flatten().and_then(|value| value.split_once(' '));
    let token =
        token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    let said = token
        .map(|token| userinfo::userinfo(&web.authority, &about.snapshot, token, web.authority.clock.now()));
    let (status, challenge) = match said {
        Some(Ok(info)) => return ([(header::CACHE_CONTROL, "no-store")], Json(info)).into_response(),
        None => (StatusCode::UNAUTHORIZED, "Bearer"),
        Some(Err(NoUserInfo::Token)) => (StatusCode::UNAUTHORIZED, "Bearer error=\"invalid_token\""),
        Some(Err(NoUserInfo::Scope)) => {
            (StatusCode::FORBIDDEN, "Bearer error=\"insufficient_scope\", scope=\"profile\"")
        }
        Some(Err(NoUserInfo::NotReady)) => {
            return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")]).into_response();
        }
    };
    (status, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
}

fn form<'b>(headers: &HeaderMap, body: &'b [u8]) -> Result<&'b str, Refusal> {
    if !is_type(headers, "application/x-www-form-urlencoded") {
        return Err(Refusal::invalid_request("send application/x-www-form-urlencoded"));
    }
    std::str::from_utf8(body)
        .ok()
        .filter(|body| body.len() <= FORM_MAX)
        .ok_or(Refusal::invalid_request("the body is not a form, or is too large"))
}

/// The one header of that name, if there is one.
fn authorization(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let only = values.next().map(|value| value.to_str()).transpose();
    match (only, values.next()) {
        (Ok(only), None) => Ok(only),
        _ => Err(Refusal::invalid_request("send one Authorization header, in plain text")),
    }
}

/// Whether the body says that it is of this type.
pub(super) fn is_type(headers: &HeaderMap, wanted: &str) -> bool {
    let sent = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    sent.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted))
}

// === impl Web ===

impl Web {
    /// A form about a token (RFC 7009 §2.1, RFC 7662 §2.1): the client that sends it, and the token.
    async fn about_token(
        &self,
        about: &About,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(Authenticated, String), Refusal> {
        let params = Params::parse(form(headers, body)?)?;
        let authorization = authorization(headers)?;
        let client = authenticate(&self.authority, &about.snapshot, authorization, &params).await?;
        let token = params.required("token", "token is required")?;
        Ok((client, token.to_owned()))
    }

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
                    let scheme = match refusal.code {
                        "invalid_token" => "Bearer error=\"invalid_token\"",
                        _ => "Basic realm=\"postern\"",
                    };
                    let scheme = HeaderValue::from_static(scheme);
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
                }
                if refusal.status() == StatusCode::TOO_MANY_REQUESTS {
                    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
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
