//! The token endpoint of the demo's authorization server: codes and refresh tokens are used once, and one that
//! comes again ends everything that grew from it (RFC 9700 §4.14.2).

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde_json::json;

use super::authorization_server::{Refusal, parameters};
use super::client::Client;
use super::{
    ACCESS_LIFETIME, AccessToken, Demo, RefreshToken, SCOPE, Tables, digest_of, header_text, no_store,
    random_text,
};

const DEAD: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    error: "invalid_grant",
    description: "expired, used, revoked, or not given to this client",
};

/// The token endpoint (RFC 6749 §4.1.3 and §6).
pub(super) async fn endpoint(
    State(demo): State<Arc<Demo>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    if headers.contains_key(header::AUTHORIZATION) {
        return Err(Refusal {
            status: StatusCode::UNAUTHORIZED,
            ..Refusal::new("invalid_client", "clients here are public and send client_id in the body")
        });
    }
    let is_form = header_text(&headers, "content-type")
        .and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"));
    let given = parameters(&body).filter(|_| is_form);
    let given = given.ok_or(Refusal::new("invalid_request", "send a form, each parameter once"))?;
    let value = |name: &str| given.get(name).map(String::as_str);
    let needed = |name: &str| value(name).ok_or(Refusal::new("invalid_request", "a parameter is missing"));
    let client_id = needed("client_id")?;
    // Made first, so that nothing is used up when there is no randomness.
    let (access, refresh) = (random_text()?, random_text()?);
    let now = demo.clock.now();
    let mut tables = demo.tables();
    if Client::of_id(client_id).is_none() {
        return Err(Refusal {
            status: StatusCode::UNAUTHORIZED,
            ..Refusal::new("invalid_client", "the client is not registered")
        });
    }
    if value("resource") != Some(demo.resource.as_str()) {
        return Err(Refusal::new("invalid_target", "resource must name the MCP server"));
    }
    let grant = match needed("grant_type")? {
        "authorization_code" => {
            let (code, uri, verifier) = (needed("code")?, needed("redirect_uri")?, needed("code_verifier")?);
            redeem_code(&mut tables, now, client_id, code, uri, verifier)?
        }
        "refresh_token" => {
            if value("scope").is_some_and(|scope| scope.split(' ').any(|name| name != SCOPE)) {
                return Err(Refusal::new("invalid_scope", "the only scope is demo:tools"));
            }
            redeem_refresh_token(&mut tables, client_id, needed("refresh_token")?)?
        }
        _ => {
            return Err(Refusal::new("unsupported_grant_type", "authorization_code or refresh_token"));
        }
    };
    let expires = now + ACCESS_LIFETIME;
    tables.access.insert(digest_of(&access), AccessToken { grant: grant.clone(), expires });
    tables.refresh.insert(digest_of(&refresh), RefreshToken { grant, used: false });
    Ok(no_store(Json(json!({
        "access_token": access,
        "token_type": "Bearer",
        "expires_in": ACCESS_LIFETIME.as_secs(),
        "refresh_token": refresh,
        "scope": SCOPE,
    }))))
}

/// Uses the code up and gives the name of its grant. A code that comes a second time ends the grant with all its
/// tokens; so does one with a wrong verifier or redirect URI, for it is in the wrong hands.
fn redeem_code(
    tables: &mut Tables,
    now: SystemTime,
    client_id: &str,
    code: &str,
    redirect_uri: &str,
    verifier: &str,
) -> Result<String, Refusal> {
    let code = tables.codes.find_mut(&digest_of(code)).ok_or(DEAD)?;
    let sound = !std::mem::replace(&mut code.used, true)
        && now < code.expires
        && code.redirect_uri == redirect_uri
        && digest_of(verifier) == code.code_challenge;
    let grant = code.grant.clone();
    if sound && tables.grants.find(&grant).is_some_and(|grant| grant.client_id == client_id) {
        return Ok(grant);
    }
    tables.grants.remove(&grant);
    Err(DEAD)
}

/// Uses the refresh token up and gives the name of its grant. One that comes a second time ends the grant.
fn redeem_refresh_token(tables: &mut Tables, client_id: &str, token: &str) -> Result<String, Refusal> {
    let token = tables.refresh.find_mut(&digest_of(token)).ok_or(DEAD)?;
    if tables.grants.find(&token.grant).is_none_or(|grant| grant.client_id != client_id) {
        return Err(DEAD);
    }
    let grant = token.grant.clone();
    if std::mem::replace(&mut token.used, true) {
        tables.grants.remove(&grant);
        return Err(DEAD);
    }
    Ok(grant)
}
