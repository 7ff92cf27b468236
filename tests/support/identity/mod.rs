//! A scripted identity provider (OpenID Connect): signs in whoever the test says, without asking, and lies where it is told
//! to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answers::{error, json_answer};
use super::gate::{Gate, pass};
use super::key::Key;
use super::received::{Received, Requests};
use super::server::Server;
use super::{lock, random_hex};

pub mod exchange;
mod token;

use exchange::{Exchanged, Exchanges};
use token::{Code, Tokens};

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
    /// Whether refresh tokens are given; each is good once.
    pub refreshable: bool,
    pub token_type: String,
    /// Seconds that an access token lives.
    pub lifetime: u64,
    /// What the UserInfo endpoint says; without it there is none.
    pub userinfo: Option<Value>,
    pub userinfo_status: u16,
    /// What is said about tokens that are asked about (RFC 7662); about any others, that they are not active.
    pub introspected: HashMap<String, Value>,
    /// Everything is answered 503.
    pub down: bool,
    /// Refreshes bring an ID token as well.
    pub id_token_on_refresh: bool,
    /// What is done about requests for exchanged tokens and a client's own.
    pub exchanges: Exchanges,
    /// Where those wait.
    pub exchange_gate: Option<Gate>,
}

pub struct IdentityProvider {
    pub issuer: String,
    pub requests: Requests,
    pub server: Server,
    script: Arc<Mutex<Script>>,
    tokens: Arc<Mutex<Tokens>>,
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
            refreshable: false,
            token_type: "Bearer".into(),
            lifetime: 300,
            userinfo: None,
            userinfo_status: 200,
            introspected: HashMap::new(),
            down: false,
            id_token_on_refresh: false,
            exchanges: Exchanges::default(),
            exchange_gate: None,
        }));
        let requests = Requests::default();
        let codes: Arc<Mutex<HashMap<String, Code>>> = Arc::default();
        let tokens: Arc<Mutex<Tokens>> = Arc::default();
        let (said, seen, given) = (script.clone(), requests.clone(), tokens.clone());
        let server = Server::start(move |request, _| {
            seen.add(request.clone());
            let (said, codes, given) = (said.clone(), codes.clone(), given.clone());
            async move {
                if exchange::is_one(&request) {
                    let (gate, jwks_uri) = {
                        let script = lock(&said);
                        (script.exchange_gate.clone(), script.exchanges.jwks_uri.clone())
                    };
                    pass(&gate).await;
                    if let Some(uri) = jwks_uri {
                        let keys = exchange::fetched(&uri).await;
                        lock(&said).exchanges.keys = keys;
                    }
                }
                answer(&request, &lock(&said), &codes, &mut lock(&given))
            }
        })
        .await;
        IdentityProvider { issuer: format!("http://{}", server.address), requests, server, script, tokens }
    }

    /// How many access tokens were given.
    pub fn given(&self) -> usize {
        lock(&self.tokens).given
    }

    /// What was given for other tokens, and to clients for themselves, in that order.
    pub fn exchanged(&self) -> Vec<Exchanged> {
        lock(&self.tokens).exchanged.clone()
    }

    /// How often the token endpoint was asked for such tokens, whatever it answered.
    pub fn exchanges(&self) -> usize {
        self.requests.matching(exchange::is_one).len()
    }

    /// The secret of whoever exchanges tokens here.
    pub fn client_secret(&self) -> String {
        lock(&self.script).exchanges.secret.clone()
    }

    /// No refresh token is good any more.
    pub fn revoke(&self) {
        lock(&self.tokens).live.clear();
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

    /// An assertion of this `typ` by which a client may act for the person `4711`; `more` as in [`Script::claims`].
    pub fn assertion(&self, kind: &str, more: &Value) -> String {
        let claims = json!({"iss": self.issuer, "sub": "4711", "iat": now(), "exp": now() + 300, "jti": random_hex(8)});
        let script = lock(&self.script);
        script.forger.as_ref().unwrap_or(&script.key).sign_as(kind, &with(claims, more))
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

fn answer(
    request: &Received,
    script: &Script,
    codes: &Mutex<HashMap<String, Code>>,
    tokens: &mut Tokens,
) -> Response {
    let issuer = format!("http://{}", request.header("host").unwrap_or_default());
    if script.down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match request.path.as_str() {
        "/.well-known/openid-configuration" => {
            let metadata = json!({"issuer": issuer, "authorization_endpoint": format!("{issuer}/authorize"),
                "token_endpoint": format!("{issuer}/token"), "jwks_uri": format!("{issuer}/keys"),
                "end_session_endpoint": format!("{issuer}/end"), "revocation_endpoint": format!("{issuer}/revoke"), "introspection_endpoint": format!("{issuer}/introspect"),
                "response_types_supported": ["code"]});
            let userinfo = script.userinfo.as_ref().map(|_| format!("{issuer}/userinfo"));
            json_answer(200, &with(with(metadata, &json!({"userinfo_endpoint": userinfo})), &script.metadata))
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
        "/userinfo" if request.bearer().is_some_and(|token| token.starts_with("access-")) => {
            json_answer(script.userinfo_status, script.userinfo.as_ref().unwrap_or(&json!({})))
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
        _ if exchange::is_one(request) => exchange::answer(request, script, tokens, &issuer),
        "/token" => token::answer(request, script, codes, tokens, &issuer),
        "/revoke" => {
            tokens.live.remove(&request.form("token").unwrap_or_default());
            StatusCode::OK.into_response()
        }
        "/end" => "signed out there".into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
