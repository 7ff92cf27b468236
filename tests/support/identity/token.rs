//! The provider's token endpoint for people: codes and refresh tokens.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use axum::response::Response;
use serde_json::{Value, json};

use super::super::answers::{error, json_answer};
use super::super::params::pkce_challenge;
use super::super::received::Received;
use super::super::{lock, random_hex};
use super::exchange::Exchanged;
use super::{CLIENT, Script, now, with};

/// What was given: access tokens `access-1`, `access-2`, …, and which refresh tokens are good.
#[derive(Default)]
pub(super) struct Tokens {
    pub(super) given: usize,
    pub(super) live: HashSet<String>,
    pub(super) exchanged: Vec<Exchanged>,
}

#[derive(Clone)]
pub(super) struct Code {
    pub(super) nonce: String,
    pub(super) challenge: String,
    pub(super) redirect_uri: String,
}

impl Tokens {
    /// The next ones, as members of an answer.
    fn give(&mut self, script: &Script) -> Value {
        self.given += 1;
        let mut answer = json!({"access_token": format!("access-{}", self.given), "token_type": script.token_type,
            "expires_in": script.lifetime});
        if script.refreshable {
            let refresh = random_hex(16);
            self.live.insert(refresh.clone());
            answer["refresh_token"] = refresh.into();
        }
        answer
    }
}

pub(super) fn answer(
    request: &Received,
    script: &Script,
    codes: &Mutex<HashMap<String, Code>>,
    tokens: &mut Tokens,
    issuer: &str,
) -> Response {
    let form = |name: &str| request.form(name).unwrap_or_default();
    let authenticated = request.header("authorization").is_some_and(|value| value.starts_with("Basic "));
    if form("grant_type") == "refresh_token" {
        if !authenticated || !tokens.live.remove(&form("refresh_token")) {
            return error(400, "invalid_grant");
        }
        let mut answer = tokens.give(script);
        if script.id_token_on_refresh {
            answer["id_token"] = id_token(script, issuer, &json!({})).into();
        }
        return json_answer(200, &answer);
    }
    match lock(codes).remove(&form("code")) {
        Some(code)
            if authenticated
                && code.challenge == pkce_challenge(&form("code_verifier"))
                && code.redirect_uri == form("redirect_uri") =>
        {
            let mut answer = tokens.give(script);
            answer["id_token"] = id_token(script, issuer, &json!({"nonce": code.nonce})).into();
            json_answer(200, &answer)
        }
        _ => error(400, "invalid_grant"),
    }
}

fn id_token(script: &Script, issuer: &str, more: &Value) -> String {
    let claims = json!({"iss": issuer, "aud": CLIENT, "iat": now(), "exp": now() + 300});
    script.forger.as_ref().unwrap_or(&script.key).sign(&with(with(claims, more), &script.claims))
}
