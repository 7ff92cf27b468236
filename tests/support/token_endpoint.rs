//! The token endpoint of the scripted authorization server, with its faults and gates.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::answers::{error, half_answer, http_answer, json_answer};
use super::authorization_server::AuthorizationServer;
use super::gate::pass;
use super::key::verified;
use super::lock;
use super::params::pkce_challenge;
use super::received::Received;
use super::script::{AuthorizationScript, TokenFault};
use super::server::Connection;

impl AuthorizationServer {
    pub(super) async fn token(
        &self,
        script: &AuthorizationScript,
        request: &Received,
        connection: Connection,
    ) -> Response {
        let fault = {
            let mut script = lock(&self.script);
            script.token_faults.pop_front().or_else(|| script.token_fault.clone())
        };
        pass(&script.token_gate).await;
        match &fault {
            Some(TokenFault::Answer { status, headers, body }) => return http_answer(*status, headers, body),
            Some(TokenFault::Hangup) => {
                connection.cut();
                return StatusCode::OK.into_response();
            }
            Some(TokenFault::LoseAnswer | TokenFault::HalfAnswer) | None => {}
        }
        let answer = match self.grant(script, request) {
            Ok(answer) => answer,
            Err(code) => return error(if code == "invalid_client" { 401 } else { 400 }, code),
        };
        pass(&script.token_answer_gate).await;
        match fault {
            Some(TokenFault::LoseAnswer) => connection.cut(),
            Some(TokenFault::HalfAnswer) => return half_answer(&answer.to_string()),
            _ => {}
        }
        json_answer(200, &answer)
    }

    fn grant(&self, script: &AuthorizationScript, request: &Received) -> Result<Value, &'static str> {
        let field = |name: &str| request.form(name).unwrap_or_default();
        let client_id = self.authenticate(request)?;
        let mut ledger = lock(&self.ledger);
        match field("grant_type").as_str() {
            "authorization_code" => {
                let challenge = pkce_challenge(&field("code_verifier"));
                let issued = ledger.codes.get(&field("code"));
                // RFC 8707: the resource of the code and of its redemption are the same.
                if issued.is_some_and(|issued| issued.resource != request.form("resource")) {
                    return Err("invalid_target");
                }
                ledger.redeem(script, &client_id, &field("code"), &field("redirect_uri"), &challenge)
            }
            "refresh_token" => ledger.refresh(script, &client_id, &field("refresh_token")),
            _ => Err("unsupported_grant_type"),
        }
    }

    /// RFC 6749 §2.3: exactly the method the client is registered with.
    fn authenticate(&self, request: &Received) -> Result<String, &'static str> {
        let basic = request.header("authorization").map(|value| basic_credentials(&value));
        if let Some(assertion) = request.form("client_assertion") {
            return self.prove(&request.form("client_id").unwrap_or_default(), &assertion);
        }
        let (method, id, given) = match (basic, request.form("client_secret")) {
            (Some(_), Some(_)) => return Err("invalid_request"),
            (Some(credentials), None) => {
                let (id, given) = credentials.ok_or("invalid_client")?;
                ("client_secret_basic", id, Some(given))
            }
            (None, Some(given)) => {
                ("client_secret_post", request.form("client_id").unwrap_or_default(), Some(given))
            }
            (None, None) => ("none", request.form("client_id").unwrap_or_default(), None),
        };
        let ledger = lock(&self.ledger);
        let client = ledger.clients.get(&id).ok_or("invalid_client")?;
        if client.method != method || client.secret != given {
            return Err("invalid_client");
        }
        Ok(id)
    }

    /// RFC 7523 §3: signed by the client's key, by and about the client, for this issuer and nobody else.
    fn prove(&self, id: &str, assertion: &str) -> Result<String, &'static str> {
        let ledger = lock(&self.ledger);
        let client = ledger.clients.get(id).filter(|client| client.method == "private_key_jwt");
        let claims = client.and_then(|client| verified(&client.jwks, assertion)).ok_or("invalid_client")?;
        let says = |name: &str, value: &str| claims[name] == value;
        match says("iss", id) && says("sub", id) && says("aud", &self.issuer()) && claims["jti"].is_string() {
            true => Ok(id.to_owned()),
            false => Err("invalid_client"),
        }
    }
}

/// Client id and secret of an `Authorization: Basic …`; both are form-encoded inside (RFC 6749 §2.3.1).
fn basic_credentials(value: &str) -> Option<(String, String)> {
    let encoded = value.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(data_encoding::BASE64.decode(encoded.as_bytes()).ok()?).ok()?;
    let (id, given) = decoded.split_once(':')?;
    let plain = |part: &str| {
        let pair = format!("x={part}");
        let decoded = form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned());
        decoded.unwrap_or_default()
    };
    Some((plain(id), plain(given)))
}
