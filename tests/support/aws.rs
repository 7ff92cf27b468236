//! AWS, as far as it is needed: a token service (STS) that gives credentials of roles for ID tokens which it verifies, and a
//! check of signatures (Signature Version 4) written from its description.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};
use ring::hmac;
use serde_json::Value;

use super::gate::{Gate, pass};
use super::identity::{CLIENT, IdentityProvider};
use super::key::verified;
use super::received::{Received, Requests};
use super::server::Server;
use super::{http_client, lock, random_hex, secret};

pub const REGION: &str = "eu-central-1";
pub const SERVICE: &str = "agentcore";

/// What it says.
pub struct Script {
    /// Status and code of a refusal of everything.
    pub refusal: Option<(u16, &'static str)>,
    /// How long credentials live, whatever was asked for.
    pub lifetime: Option<Duration>,
    /// Where requests wait.
    pub gate: Option<Gate>,
}

/// Credentials that were given.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    pub role: String,
    pub session_name: String,
    pub duration: u64,
    pub access_key: String,
    secret_key: String,
    session_token: String,
}

/// The token service. It trusts one identity provider.
pub struct Sts {
    pub endpoint: String,
    pub requests: Requests,
    script: Arc<Mutex<Script>>,
    given: Arc<Mutex<Vec<Given>>>,
    _server: Server,
}

impl Sts {
    pub async fn trusting(provider: &IdentityProvider) -> Self {
        let keys = http_client(&[]).get(format!("{}/keys", provider.issuer)).send().await.expect("keys");
        let keys: Value = serde_json::from_str(&keys.text().await.expect("keys")).expect("keys");
        let script = Arc::new(Mutex::new(Script { refusal: None, lifetime: None, gate: None }));
        let (requests, given): (Requests, Arc<Mutex<Vec<Given>>>) = Default::default();
        let (said, seen, log) = (script.clone(), requests.clone(), given.clone());
        let server = Server::start(move |request, _| {
            seen.add(request.clone());
            let (said, log, keys) = (said.clone(), log.clone(), keys.clone());
            async move {
                let gate = lock(&said).gate.clone();
                pass(&gate).await;
                answer(&request, &lock(&said), &keys, &mut lock(&log))
            }
        })
        .await;
        let endpoint = format!("http://{}", server.address);
        Sts { endpoint, requests, script, given, _server: server }
    }

    pub fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut lock(&self.script));
    }

    /// In their order.
    pub fn given(&self) -> Vec<Given> {
        lock(&self.given).clone()
    }

    /// Whose credentials have signed this request, all of it that matters, a moment ago.
    pub fn signer(&self, request: &Received) -> Result<Given, String> {
        let line = request.header("authorization").ok_or("not signed")?;
        let fields = line.strip_prefix("AWS4-HMAC-SHA256 ").ok_or("another scheme")?;
        let field = |name: &str| {
            let mut fields = fields.split(',').map(str::trim);
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).ok_or(name.to_owned())
        };
        let (credential, signature) = (field("Credential")?, field("Signature")?);
        let (access_key, scope) = credential.split_once('/').ok_or("no scope")?;
        let time = request.header("x-amz-date").ok_or("no date")?;
        let day = time.get(..8).ok_or("no day")?;
        if scope != format!("{day}/{REGION}/{SERVICE}/aws4_request") {
            return Err(format!("scope {scope}"));
        }
        let given = self.given().into_iter().find(|given| given.access_key == access_key);
        let given = given.ok_or("an unknown key")?;
        if request.header("x-amz-security-token").as_ref() != Some(&given.session_token) {
            return Err("another session".to_owned());
        }
        let age = seconds().abs_diff(seconds_of(&time).ok_or("no time")?);
        if age > 300 {
            return Err(format!("signed {age} s ago"));
        }
        let names: Vec<&str> = field("SignedHeaders")?.split(';').collect();
        let must = |name: &str| {
            ["content-type", "host", "x-amz-date", "x-amz-security-token"].contains(&name)
                || name.starts_with("mcp-")
        };
        if let Some(left_out) =
            request.headers.keys().find(|name| must(name.as_str()) && !names.contains(&name.as_str()))
        {
            return Err(format!("{left_out} is not signed"));
        }
        let mut canonical = format!("{}\n{}\n{}\n", request.method, path(&request.path), query(request));
        for name in &names {
            let values: Vec<String> = request
                .headers
                .get_all(*name)
                .iter()
                .map(|value| {
                    value.to_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
                })
                .collect();
            canonical.push_str(&format!("{name}:{}\n", values.join(",")));
        }
        canonical.push_str(&format!("\n{}\n{}", names.join(";"), hash(&request.body)));
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hash(canonical.as_bytes()));
        let mut key = format!("AWS4{}", given.secret_key).into_bytes();
        for part in scope.split('/') {
            key = mac(&key, part);
        }
        match HEXLOWER.encode(&mac(&key, &text)) == signature {
            true => Ok(given),
            false => Err(format!("a wrong signature of\n{canonical}")),
        }
    }
}

fn answer(request: &Received, script: &Script, keys: &Value, given: &mut Vec<Given>) -> Response {
    let field = |name: &str| request.form(name).unwrap_or_default();
    if let Some((status, code)) = script.refusal {
        return refusal(status, code);
    }
    let is_call = request.method == "POST" && field("Action") == "AssumeRoleWithWebIdentity";
    if !is_call || field("Version") != "2011-06-15" || request.header("authorization").is_some() {
        return refusal(400, "InvalidAction");
    }
    let Some(claims) = verified(keys, &field("WebIdentityToken")).filter(|claims| claims["aud"] == CLIENT)
    else {
        return refusal(400, "InvalidIdentityToken");
    };
    if claims["exp"].as_u64().unwrap_or_default() <= seconds() {
        return refusal(400, "ExpiredTokenException");
    }
    let duration: u64 = field("DurationSeconds").parse().unwrap_or_default();
    let ends_at = SystemTime::now() + script.lifetime.unwrap_or(Duration::from_secs(duration));
    let new = Given {
        role: field("RoleArn"),
        session_name: field("RoleSessionName"),
        duration,
        access_key: format!("ASIA{}", random_hex(8).to_uppercase()),
        secret_key: secret("aws"),
        session_token: secret("aws_session"),
    };
    let Given { role, session_name, access_key, secret_key, session_token, .. } = &new;
    let body = format!(
        r#"<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>
        <SubjectFromWebIdentityToken>{}</SubjectFromWebIdentityToken>
        <AssumedRoleUser><Arn>{role}</Arn><AssumedRoleId>AROA:{session_name}</AssumedRoleId></AssumedRoleUser>
        <Credentials><SessionToken>{session_token}</SessionToken><SecretAccessKey>{secret_key}</SecretAccessKey>
        <Expiration>{}</Expiration><AccessKeyId>{access_key}</AccessKeyId></Credentials>
        </AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>"#,
        claims["sub"].as_str().unwrap_or_default(),
        humantime::format_rfc3339_millis(ends_at),
    );
    given.push(new);
    ([("content-type", "text/xml")], body).into_response()
}

fn refusal(status: u16, code: &str) -> Response {
    let body = format!(
        r#"<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>{code}</Code>
        <Message>no</Message></Error><RequestId>r</RequestId></ErrorResponse>"#
    );
    (StatusCode::from_u16(status).expect("status"), [("content-type", "text/xml")], body).into_response()
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("time").as_secs()
}

/// `20261127T210104Z` in seconds since 1970.
fn seconds_of(time: &str) -> Option<u64> {
    let part = |from: usize, to: usize| time.get(from..to);
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4)?,
        part(4, 6)?,
        part(6, 8)?,
        part(9, 11)?,
        part(11, 13)?,
        part(13, 15)?
    );
    humantime::parse_rfc3339(&text).ok()?.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

fn hash(bytes: &[u8]) -> String {
    HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// The path as sent, encoded once more.
fn path(sent: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    sent.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The parameters as sent, in order.
fn query(request: &Received) -> String {
    let mut pairs: Vec<&str> =
        request.query.as_deref().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).collect();
    pairs.sort_unstable();
    pairs.join("&")
}
