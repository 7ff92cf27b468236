//! The token request: a code or a refresh token in, tokens or a verdict out.
//!
//! The verdict matters more than the error text. A refresh token may be single use, so whoever sent it must know
//! whether it can be sent again: certainly, perhaps, or never. [`classify`] decides that from the answer alone, and
//! keeps a refresh token even where the access token beside it is unfit for use. Nothing is stored here.
use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use http::{HeaderValue, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::client_key::ASSERTION_TYPE;
use super::discover::scope_list;
use super::register::{AuthMethod, Registration, error_code};
use crate::outbound::{self, AddressPolicy, Outbound, Request, Response};
use crate::store::record::Tokens;

/// Longest token we carry; a header line must hold it.
const LONGEST_TOKEN: usize = 16 * 1024;
const SHORTEST_LIFE: Duration = Duration::from_secs(1);
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// What is exchanged for tokens.
#[derive(Clone, Copy)]
pub enum Presented<'a> {
    /// RFC 6749 §4.1.3 with RFC 7636 §4.5.
    Code { code: &'a str, verifier: &'a SecretString, redirect_uri: &'a str },
    /// RFC 6749 §6. No scopes are named: the grant keeps those it has.
    Refresh { refresh_token: &'a SecretString },
}

/// What became of a token request.
#[derive(Debug)]
pub enum Outcome {
    Success(TokenResponse),
    /// Not processed, for certain: the same code or refresh token may be sent again, after `retry_after` if given
    /// (at most 300 s).
    CleanTransient {
        retry_after: Option<Duration>,
    },
    /// Perhaps processed: a single-use refresh token may be spent. What to do depends on the server (keep it).
    Ambiguous,
    /// The server said that the grant is no more (`invalid_grant`). Only the user can help.
    Dead,
    /// The server does not know us (any more): nothing is said about the grant, but nobody can use it as who we were.
    UnknownClient,
    /// The server refuses us rather than the grant, or our policy refuses the server. Keep the grant, tell the
    /// operator. One line, no secrets.
    Config(String),
}

/// RFC 6749 §5.1, checked.
#[derive(Debug)]
pub struct TokenResponse {
    /// Fit for an `Authorization: Bearer` header. Empty where `usable` is false.
    pub access_token: SecretString,
    /// Absent on a refresh: the old one stays.
    pub refresh_token: Option<SecretString>,
    /// As it came (OpenID Connect Core §3.1.3.3).
    pub id_token: Option<SecretString>,
    /// One second to 24 hours. `None`: the server did not say.
    pub expires_in: Option<Duration>,
    /// `None`: as requested.
    pub scope: Option<Vec<String>>,
    /// False: the answer had a refresh token worth keeping but no access token that could be sent anywhere.
    pub usable: bool,
}

/// Sends one token request. No retry, no redirect, eight seconds. `resource` goes out byte for byte, where there is one (RFC 8707 §2.2);
/// `now` is for a `Retry-After` that is a date.
pub async fn request(
    outbound: &Outbound,
    policy: &AddressPolicy,
    endpoint: &str,
    registration: &Registration,
    grant: Presented<'_>,
    resource: Option<&str>,
    now: SystemTime,
) -> Outcome {
    let Some(request) = token_request(endpoint, registration, grant, resource, now) else {
        return Outcome::Config("client credentials do not fit into a request".to_string());
    };
    match outbound.send(request, policy).await {
        Ok(response) => classify(&response, now),
        Err(outbound::Error::NotSent { .. }) => Outcome::CleanTransient { retry_after: None },
        Err(error @ (outbound::Error::Refused { .. } | outbound::Error::Invalid { .. })) => {
            Outcome::Config(error.to_string())
        }
        Err(outbound::Error::Unknown { .. } | outbound::Error::TooLarge { .. }) => Outcome::Ambiguous,
    }
}

fn token_request(
    endpoint: &str,
    registration: &Registration,
    grant: Presented<'_>,
    resource: Option<&str>,
    now: SystemTime,
) -> Option<Request> {
    let mut fields: Vec<(&str, &str)> = Vec::with_capacity(7);
    match grant {
        Presented::Code { code, verifier, redirect_uri } => fields.extend([
            ("grant_type", "authorization_code"),
            ("code", code),
            ("code_verifier", verifier.expose_secret()),
            ("redirect_uri", redirect_uri),
        ]),
        Presented::Refresh { refresh_token } => {
            fields.extend([("grant_type", "refresh_token"), ("refresh_token", refresh_token.expose_secret())])
        }
    }
    fields.extend(resource.map(|resource| ("resource", resource)));
    authenticated(endpoint, registration, fields, now)
}

/// A form with the client's authentication added (RFC 6749 §2.3).
pub(super) fn authenticated<'a>(
    endpoint: &str,
    registration: &'a Registration,
    mut fields: Vec<(&'a str, &'a str)>,
    now: SystemTime,
) -> Option<Request> {
    let id = registration.client_id.as_str();
    let secret = registration.client_secret.as_ref().map(|secret| secret.expose_secret());
    match registration.auth_method {
        AuthMethod::None => fields.push(("client_id", id)),
        AuthMethod::ClientSecretPost => fields.extend([("client_id", id), ("client_secret", secret?)]),
        AuthMethod::ClientSecretBasic => {
            let request = Request::post_form(endpoint, &fields);
            return Some(request.header(header::AUTHORIZATION, basic(id, secret?)?));
        }
        AuthMethod::PrivateKeyJwt => {
            let assertion = registration.key.as_ref()?.assertion(id, now)?;
            let proof = [
                ("client_id", id),
                ("client_assertion_type", ASSERTION_TYPE),
                ("client_assertion", assertion.expose_secret()),
            ];
            return Some(Request::post_form(endpoint, &[fields.as_slice(), &proof].concat()));
        }
    }
    Some(Request::post_form(endpoint, &fields))
}

/// Ends tokens that nobody wants any more (RFC 7009), as far as their server has a place for it. Best effort: what it
/// answers changes nothing here.
pub async fn revoke(
    outbound: &Outbound,
    policy: &AddressPolicy,
    registration: &Registration,
    tokens: &Tokens,
    now: SystemTime,
) {
    let Some(endpoint) = &tokens.revocation_endpoint else {
        return;
    };
    let (token, hint) = match &tokens.refresh_token {
        Some(token) => (token, "refresh_token"),
        None => (&tokens.access_token, "access_token"),
    };
    let fields = vec![("token", token.expose_secret()), ("token_type_hint", hint)];
    let Some(request) = authenticated(endpoint, registration, fields, now) else {
        return;
    };
    let revoked = outbound.send(request, policy).await.is_ok_and(|answer| answer.status.is_success());
    tracing::info!(target: "audit", event = "upstream_token_revoked", issuer = %tokens.issuer, revoked);
}

/// RFC 6749 §2.3.1: both halves form-encoded before they are joined.
pub fn basic(client_id: &str, secret: &str) -> Option<HeaderValue> {
    let form = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Zeroizing::new(format!("{}:{}", form(client_id), Zeroizing::new(form(secret)).as_str()));
    let line = Zeroizing::new(format!("Basic {}", BASE64.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&line).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// An answer of any status. Members of a wrong type must not cost us the others, so most are read as any value;
/// `expires_in` not even that, since a number out of range would spoil the whole document.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    access_token: Value,
    #[serde(default)]
    token_type: Value,
    #[serde(default)]
    refresh_token: Value,
    #[serde(default)]
    id_token: Value,
    #[serde(default)]
    expires_in: Option<Box<RawValue>>,
    #[serde(default)]
    scope: Value,
    #[serde(default)]
    error: Value,
}

/// What an answer means for the code or refresh token that was sent.
pub fn classify(response: &Response, now: SystemTime) -> Outcome {
    let status = response.status;
    let wait = retry_after(response, now);
    // Of a request that did not arrive in time nothing was done.
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
        return Outcome::CleanTransient { retry_after: wait };
    }
    // With a date to come back the server says that it did not look at the request; any other 5xx may come from a
    // proxy in front of a server that did.
    if status == StatusCode::SERVICE_UNAVAILABLE && wait.is_some() {
        return Outcome::CleanTransient { retry_after: wait };
    }
    if status.is_server_error() {
        return Outcome::Ambiguous;
    }
    let answer = serde_json::from_slice::<Answer>(&response.body);
    if status.is_success() {
        // Whatever it calls itself: tokens in a body of the wrong type are still tokens.
        return answer.map_or(Outcome::Ambiguous, |answer| granted(answer, wait));
    }
    if status.is_redirection() {
        return Outcome::Config(format!("token endpoint redirects ({})", status.as_u16()));
    }
    match answer {
        Ok(answer) if response.is_json() => match answer.error.as_str() {
            Some(error) => refused(error, wait),
            None => Outcome::Config(format!("token endpoint answered {}", status.as_u16())),
        },
        // A page of something in between, which says nothing about the grant.
        _ => Outcome::Ambiguous,
    }
}

fn granted(answer: Answer, wait: Option<Duration>) -> Outcome {
    let bearer = answer.token_type.as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"));
    let access_token = token(answer.access_token, is_b64token).filter(|_| bearer);
    let refresh_token = token(answer.refresh_token, is_printable);
    if access_token.is_none() && refresh_token.is_none() {
        // Some servers report errors with status 200.
        return match answer.error.as_str() {
            Some(error) => refused(error, wait),
            None => Outcome::Ambiguous,
        };
    }
    Outcome::Success(TokenResponse {
        usable: access_token.is_some(),
        access_token: access_token.unwrap_or_default(),
        refresh_token,
        id_token: token(answer.id_token, is_printable),
        expires_in: answer.expires_in.as_deref().and_then(lifetime),
        scope: scopes(&answer.scope),
    })
}

/// By error code (RFC 6749 §5.2), whatever the status: servers answer `invalid_grant` with 400 and with 401.
fn refused(error: &str, wait: Option<Duration>) -> Outcome {
    match error {
        // The rest are GitHub's and Slack's words for the same.
        "invalid_grant"
        | "bad_refresh_token"
        | "bad_verification_code"
        | "invalid_refresh_token"
        | "invalid_code" => Outcome::Dead,
        "invalid_client" => Outcome::UnknownClient,
        "temporarily_unavailable" | "slow_down" => Outcome::CleanTransient { retry_after: wait },
        "server_error" => Outcome::Ambiguous,
        other => Outcome::Config(format!("token endpoint answered {}", error_code(other))),
    }
}

pub(super) fn token(value: Value, fits: fn(&str) -> bool) -> Option<SecretString> {
    match value {
        Value::String(text) => {
            let text = Zeroizing::new(text);
            (text.len() <= LONGEST_TOKEN && fits(&text)).then(|| SecretString::from(text.as_str()))
        }
        _ => None,
    }
}

/// RFC 6750 §2.1: letters, digits and a few signs, then any number of `=`.
pub(super) fn is_b64token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let sign = |byte| matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/');
    !body.is_empty() && body.bytes().all(|byte| byte.is_ascii_alphanumeric() || sign(byte))
}

/// RFC 6749 appendix A.17.
fn is_printable(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, 0x20..=0x7e))
}

/// Seconds as integer, fraction or string, of any size and sign.
pub(super) fn lifetime(raw: &RawValue) -> Option<Duration> {
    let seconds =
        raw.get().trim_matches('"').trim().parse::<f64>().ok().filter(|seconds| !seconds.is_nan())?;
    // Clamped first, so that the conversion cannot fail.
    let seconds = seconds.clamp(SHORTEST_LIFE.as_secs_f64(), LONGEST_LIFE.as_secs_f64());
    Duration::try_from_secs_f64(seconds).ok()
}

/// A space-separated string, or (seen in the wild) an array.
fn scopes(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(scope_list(Some(text))),
        Value::Array(names) => {
            let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
            Some(scope_list(Some(&names.join(" "))))
        }
        _ => None,
    }
}

/// RFC 9110 §10.2.3: seconds or a date. Capped, a date in the past is now.
pub(super) fn retry_after(response: &Response, now: SystemTime) -> Option<Duration> {
    let text = response.headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number holds is long enough.
        text.parse().map_or(LONGEST_WAIT, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests;
