//! The provider's token endpoint for programs: tokens for other tokens (RFC 8693, RFC 7523, and Entra's on-behalf-of form),
//! and a client's own (RFC 6749 §4.4). It checks who asks and what is shown, and remembers for whom it gave what.

use axum::response::Response;
use serde_json::{Value, json};

use super::super::answers::{error, json_answer};
use super::super::key::verified;
use super::super::received::Received;
use super::super::{CANARY, http_client, random_hex};
use super::token::Tokens;
use super::{CLIENT, Script, now, with};

pub const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
pub const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
pub const ID_JAG: &str = "urn:ietf:params:oauth:token-type:id-jag";
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// How such requests are answered.
pub struct Exchanges {
    /// The client that may ask, its secret and how it has to show it.
    pub client: String,
    pub secret: String,
    pub method: &'static str,
    /// The keys that verify assertions of that client, and JWTs of the gateway about its users.
    pub keys: Value,
    /// Where they are fetched from before each answer.
    pub jwks_uri: Option<String>,
    /// Who those JWTs are from, the gateway or another provider.
    pub gateway: String,
    /// Seconds that what is given lives; `None`: it does not say.
    pub lifetime: Option<u64>,
    /// What the answer calls it, instead of what was asked for; empty: nothing.
    pub issued_token_type: Option<String>,
    pub token_type: String,
    /// Members on top of an answer.
    pub more: Value,
    /// An answer of this status and body instead.
    pub error: Option<(u16, Value)>,
    /// Which audiences are known; empty: any.
    pub audiences: Vec<String>,
}

impl Default for Exchanges {
    fn default() -> Self {
        Exchanges {
            client: "gateway".into(),
            secret: format!("{CANARY}client secret/+"),
            method: "client_secret_basic",
            keys: json!({"keys": []}),
            jwks_uri: None,
            gateway: String::new(),
            lifetime: Some(300),
            issued_token_type: None,
            token_type: "Bearer".into(),
            more: json!({}),
            error: None,
            audiences: Vec::new(),
        }
    }
}

/// What was given to whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchanged {
    pub token: String,
    pub grant: String,
    /// Who the token shown is about; the client itself where none was.
    pub subject: String,
    pub actor: Option<String>,
    pub audience: Vec<String>,
    pub resource: Vec<String>,
    pub scope: Option<String>,
}

/// What the so-many-th token is called; the first is 1.
pub fn name(number: usize) -> String {
    format!("{CANARY}exchanged-{number}")
}

/// Whether this is a request of this kind.
pub fn is_one(request: &Received) -> bool {
    let grant = request.form("grant_type").unwrap_or_default();
    let is_endpoint = request.path == "/token" || request.path.ends_with("/oauth2/v2.0/token");
    is_endpoint && [EXCHANGE, JWT_BEARER, "client_credentials"].contains(&grant.as_str())
}

/// What is published there; nothing, where nobody answers.
pub(super) async fn fetched(jwks_uri: &str) -> Value {
    let fetch = async { http_client(&[]).get(jwks_uri).send().await?.bytes().await };
    fetch.await.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default()
}

pub(super) fn answer(request: &Received, script: &Script, tokens: &mut Tokens, issuer: &str) -> Response {
    let about = &script.exchanges;
    if let Some((status, body)) = &about.error {
        return json_answer(*status, body);
    }
    match grant(request, script, tokens, issuer) {
        Ok(answer) => json_answer(200, &with(answer, &about.more)),
        Err(code) => error(if code == "invalid_client" { 401 } else { 400 }, code),
    }
}

fn grant(
    request: &Received,
    script: &Script,
    tokens: &mut Tokens,
    issuer: &str,
) -> Result<Value, &'static str> {
    let form = |name: &str| request.form(name).unwrap_or_default();
    let about = &script.exchanges;
    authenticate(request, about, issuer)?;
    let shown = Shown { script, tokens, issuer };
    let (grant, actor) = (form("grant_type"), form("actor_token"));
    let actor = match actor.is_empty() {
        true => None,
        false => Some(shown.subject(&actor, &form("actor_token_type"))?),
    };
    let wanted = request.form("requested_token_type").unwrap_or_else(|| ACCESS_TOKEN.into());
    let is_on_behalf = form("requested_token_use") == "on_behalf_of";
    let subject = match grant.as_str() {
        EXCHANGE => shown.subject(&form("subject_token"), &form("subject_token_type"))?,
        // The second version of Entra's endpoint knows no resources.
        JWT_BEARER if is_on_behalf && (form("resource") + &form("audience")).is_empty() => {
            shown.subject(&form("assertion"), ACCESS_TOKEN)?
        }
        JWT_BEARER if is_on_behalf => return Err("invalid_request"),
        JWT_BEARER => shown.subject(&form("assertion"), JWT)?,
        _ => about.client.clone(),
    };
    let audience = request.form_values("audience");
    if audience.iter().any(|name| !about.audiences.is_empty() && !about.audiences.contains(name)) {
        return Err("invalid_target");
    }
    let token = match wanted == ID_JAG {
        true => {
            script.key.sign(&json!({"iss": issuer, "sub": subject, "aud": form("audience"), "iat": now(),
            "exp": now() + 300, "jti": random_hex(8), "client_id": about.client}))
        }
        false => name(tokens.exchanged.len() + 1),
    };
    let token_type = if wanted == ID_JAG { "N_A" } else { about.token_type.as_str() };
    let mut answer = json!({"access_token": token, "token_type": token_type});
    if let Some(lifetime) = about.lifetime {
        answer["expires_in"] = lifetime.into();
    }
    if grant == EXCHANGE && about.issued_token_type.as_deref() != Some("") {
        answer["issued_token_type"] = about.issued_token_type.clone().unwrap_or(wanted).into();
    }
    tokens.exchanged.push(Exchanged {
        token,
        grant,
        subject,
        actor,
        audience,
        resource: request.form_values("resource"),
        scope: request.form("scope"),
    });
    Ok(answer)
}

/// RFC 6749 §2.3: in exactly the way that is scripted.
fn authenticate(request: &Received, about: &Exchanges, issuer: &str) -> Result<(), &'static str> {
    let basic = request.header("authorization").and_then(|value| {
        let pair = data_encoding::BASE64.decode(value.strip_prefix("Basic ")?.as_bytes()).ok()?;
        let decoded = format!("pair={}", String::from_utf8(pair).ok()?.replacen(':', "&secret=", 1));
        let mut parts = form_urlencoded::parse(decoded.as_bytes());
        Some((parts.next()?.1.into_owned(), parts.next()?.1.into_owned()))
    });
    let (id, secret) = (request.form("client_id"), request.form("client_secret"));
    let is_proven = match (basic, request.form("client_assertion"), secret) {
        (Some((id, secret)), None, None) if about.method == "client_secret_basic" => {
            id == about.client && secret == about.secret
        }
        (None, None, Some(secret)) if about.method == "client_secret_post" => {
            id.as_ref() == Some(&about.client) && secret == about.secret
        }
        (None, Some(assertion), None) if about.method == "private_key_jwt" => {
            let claims = verified(&about.keys, &assertion).unwrap_or_default();
            claims["iss"] == about.client && claims["sub"] == about.client && claims["aud"] == issuer
        }
        _ => false,
    };
    is_proven.then_some(()).ok_or("invalid_client")
}

/// What tokens are looked up in.
struct Shown<'a> {
    script: &'a Script,
    tokens: &'a Tokens,
    issuer: &'a str,
}

impl Shown<'_> {
    /// Whom a token is about: one that was given here, or is signed here or by the gateway.
    fn subject(&self, token: &str, kind: &str) -> Result<String, &'static str> {
        let given = |token: &str| {
            let number = token.strip_prefix("access-")?.parse::<usize>().ok()?;
            (1..=self.tokens.given).contains(&number).then(|| self.script.claims["sub"].clone())
        };
        let signed = |keys: &Value, issuer: &str, audience: Option<&str>| {
            let claims = verified(keys, token)?;
            let is_ours = claims["iss"] == issuer && claims["exp"].as_u64()? > now();
            (is_ours && audience.is_none_or(|audience| claims["aud"] == audience))
                .then(|| claims["sub"].clone())
        };
        let own = self.script.key.set();
        let subject = match kind {
            ACCESS_TOKEN => given(token).or_else(|| signed(&own, self.issuer, None)),
            ID_TOKEN => signed(&own, self.issuer, Some(CLIENT)),
            JWT => {
                let about = &self.script.exchanges;
                signed(&about.keys, &about.gateway, Some(self.issuer))
                    .or_else(|| signed(&own, self.issuer, None))
            }
            _ => return Err("invalid_request"),
        };
        subject.and_then(|subject| subject.as_str().map(str::to_owned)).ok_or("invalid_grant")
    }
}
