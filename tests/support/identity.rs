//! A scripted identity provider (OpenID Connect): signs in whoever the test says, without asking, and lies where it is told
//! to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answers::{error, json_answer};
use super::key::Key;
use super::received::{Received, Requests};
use super::server::Server;
use super::{lock, random_hex};

pub const CLIENT: &str = "postern";

/// What it says.
pub struct Script {
    /// Claims on top of those that every ID token has; `null` removes one.
    pub claims: Value,
    /// Signs; its public half is what the key set has.
    pub key: Arc<Key>,
    /// Signs instead, unknown to the key set.
    pub forger: Option<Arc<Key>>,
    /// Members on top of the discovery document.
    pub metadata: Value,
    /// Added to the answer that the browser carries; a name that is there already is replaced.
    pub callback: Vec<(String, String)>,
    /// Answers of the token endpoint.
    pub token_status: u16,
    /// What is said about tokens that are asked about (RFC 7662); about any others, that they are not active.
    pub introspected: HashMap<String, Value>,
    /// Everything is answered 503.
    pub down: bool,
}

pub struct IdentityProvider {
    pub issuer: String,
    pub requests: Requests,
    pub server: Server,
    script: Arc<Mutex<Script>>,
}

#[derive(Clone)]
struct Code {
    nonce: String,
    challenge: String,
    redirect_uri: String,
}

impl IdentityProvider {
    pub async fn start() -> Self {
        let script = Arc::new(Mutex::new(Script {
            claims: json!({"sub": "4711", "email": "ada@example.com", "email_verified": true, "sid": "s1"}),
            key: Arc::new(Key::new("idp")),
            forger: None,
            metadata: json!({}),
            callback: Vec::new(),
            token_status: 200,
            introspected: HashMap::new(),
            down: false,
        }));
        let requests = Requests::default();
        let codes: Arc<Mutex<HashMap<String, Code>>> = Arc::default();
        let (said, seen) = (script.clone(), requests.clone());
        let server = Server::start(move |request, _| {
            seen.add(request.clone());
            let answer = answer(&request, &lock(&said), &codes);
            async move { answer }
        })
        .await;
        IdentityProvider { issuer: format!("http://{}", server.address), requests, server, script }
    }

    pub fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut lock(&self.script));
    }

    /// The entry of `login.oidc`.
    pub fn entry(&self) -> Value {
        json!({"name": "corp", "label": "Example Corp", "issuer": self.issuer, "client_id": CLIENT,
            "client_secret": {"env": "IDP_SECRET"}, "allow_private": true})
    }

    /// What somebody of this provider is called at the gateway.
    pub fn user(&self, subject: &str) -> String {
        format!("{}|{subject}", self.issuer)
    }

    /// An access token (RFC 9068) of the person `4711` for this audience; `more` as in [`Script::claims`].
    pub fn access_token(&self, audience: &str, more: &Value) -> String {
        let claims = json!({"iss": self.issuer, "aud": audience, "sub": "4711", "client_id": "editor",
            "iat": now(), "exp": now() + 300, "jti": random_hex(8)});
        let script = lock(&self.script);
        script.forger.as_ref().unwrap_or(&script.key).sign(&with(claims, more))
    }

    /// A logout token.
    pub fn logout_token(&self, more: &Value) -> String {
        let event = json!({"http://schemas.openid.net/event/backchannel-logout": {}});
        let claims = json!({"iss": self.issuer, "aud": CLIENT, "iat": now(), "exp": now() + 120,
            "jti": random_hex(8), "events": event});
        lock(&self.script).key.sign(&with(claims, more))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("time").as_secs()
}

fn with(mut document: Value, more: &Value) -> Value {
    let members = document.as_object_mut().expect("object");
    for (name, value) in more.as_object().expect("object") {
        match value.is_null() {
            true => members.remove(name),
            false => members.insert(name.clone(), value.clone()),
        };
    }
    document
}

fn answer(request: &Received, script: &Script, codes: &Mutex<HashMap<String, Code>>) -> Response {
    let issuer = format!("http://{}", request.header("host").unwrap_or_default());
    if script.down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match request.path.as_str() {
        "/.well-known/openid-configuration" => {
            let metadata = json!({"issuer": issuer, "authorization_endpoint": format!("{issuer}/authorize"),
                "token_endpoint": format!("{issuer}/token"), "jwks_uri": format!("{issuer}/keys"),
                "end_session_endpoint": format!("{issuer}/end"), "introspection_endpoint": format!("{issuer}/introspect"),
                "response_types_supported": ["code"]});
            json_answer(200, &with(metadata, &script.metadata))
        }
        "/introspect" => {
            let asks = request.header("authorization").is_some_and(|value| value.starts_with("Basic "));
            let about = request.form("token").unwrap_or_default();
            match asks {
                true => {
                    json_answer(200, script.introspected.get(&about).unwrap_or(&json!({"active": false})))
                }
                false => error(401, "invalid_client"),
            }
        }
        "/keys" => json_answer(200, &script.key.set()),
        "/authorize" => {
            let parameter = |name: &str| request.parameter(name).unwrap_or_default();
            let code = random_hex(16);
            let redirect_uri = parameter("redirect_uri");
            let (nonce, challenge) = (parameter("nonce"), parameter("code_challenge"));
            lock(codes).insert(code.clone(), Code { nonce, challenge, redirect_uri: redirect_uri.clone() });
            let mut pairs = vec![("code".to_owned(), code), ("state".to_owned(), parameter("state"))];
            for (name, value) in &script.callback {
                pairs.retain(|(known, _)| known != name);
                pairs.push((name.clone(), value.clone()));
            }
            let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
            (StatusCode::FOUND, [("location", format!("{redirect_uri}?{query}"))]).into_response()
        }
        "/token" if script.token_status != 200 => error(script.token_status, "scripted"),
        "/token" => {
            let form = |name: &str| request.form(name).unwrap_or_default();
            let digest = ring::digest::digest(&ring::digest::SHA256, form("code_verifier").as_bytes());
            let challenge = data_encoding::BASE64URL_NOPAD.encode(digest.as_ref());
            let authenticated =
                request.header("authorization").is_some_and(|value| value.starts_with("Basic "));
            match lock(codes).remove(&form("code")) {
                Some(code)
                    if authenticated
                        && code.challenge == challenge
                        && code.redirect_uri == form("redirect_uri") =>
                {
                    let claims = json!({"iss": issuer, "aud": CLIENT, "iat": now(), "exp": now() + 300,
                        "nonce": code.nonce});
                    let signer = script.forger.as_ref().unwrap_or(&script.key);
                    let id_token = signer.sign(&with(claims, &script.claims));
                    json_answer(
                        200,
                        &json!({"access_token": "opaque", "token_type": "Bearer", "id_token": id_token}),
                    )
                }
                _ => error(400, "invalid_grant"),
            }
        }
        "/end" => "signed out there".into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
