//! Dynamic client registration at an upstream authorization server (RFC 7591), and which way of authenticating our
//! client to pick. The result also carries a configured client or a client ID metadata document, so that the token
//! step needs to know only one kind of client.
use std::time::{Duration, SystemTime};

use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use subtle::ConstantTimeEq;

pub use super::auth_method::AuthMethod;
use super::client_key::ClientKey;
use super::discover::AuthorizationServer;
pub use super::manage::Management;
use crate::outbound::{self, AddressPolicy, Outbound, Request};

/// Longest identifier and longest secret we keep.
const LONGEST_CREDENTIAL: usize = 4096;
/// The error codes that may stand in a log: RFC 6749 §4.1.2.1 and §5.2, RFC 7591 §3.2.2, RFC 8693 §2.2.2, RFC 8707 §2, and
/// what GitHub and Slack say about a client in their place.
const ERROR_CODES: [&str; 18] = [
    "access_denied",
    "bad_client_secret",
    "bad_redirect_uri",
    "incorrect_client_credentials",
    "invalid_client",
    "invalid_client_id",
    "invalid_client_metadata",
    "invalid_grant",
    "invalid_redirect_uri",
    "invalid_request",
    "invalid_scope",
    "invalid_software_statement",
    "invalid_target",
    "invalid_token",
    "redirect_uri_mismatch",
    "unapproved_software_statement",
    "unauthorized_client",
    "unsupported_grant_type",
];

/// Our client identity at one authorization server. Serialised with its secret, for the sealed store only.
#[derive(Clone, Serialize, Deserialize)]
pub struct Registration {
    pub client_id: String,
    #[serde(serialize_with = "exposed", default)]
    pub client_secret: Option<SecretString>,
    pub auth_method: AuthMethod,
    /// The one the server knows; an authorization must use exactly this.
    pub redirect_uri: String,
    /// When the secret stops working; `None`: never.
    pub expires_at: Option<SystemTime>,
    /// Since when the server has it, where it has an end.
    #[serde(default)]
    pub registered_at: Option<SystemTime>,
    /// Where and with what the registration is deleted (RFC 7592 §2.3), where the server has that.
    #[serde(default)]
    pub management: Option<Management>,
    /// What proves us, where that is a key. Kept on its own.
    #[serde(skip)]
    pub key: Option<ClientKey>,
}

impl Registration {
    /// One that never expires and that nobody manages.
    pub fn new(
        client_id: String,
        client_secret: Option<SecretString>,
        auth_method: AuthMethod,
        redirect_uri: String,
    ) -> Self {
        Self {
            client_id,
            client_secret,
            auth_method,
            redirect_uri,
            expires_at: None,
            registered_at: None,
            management: None,
            key: None,
        }
    }

    /// Whether both are one client that authenticates in one way.
    pub fn is_same_client(&self, other: &Self) -> bool {
        self.client_id == other.client_id
            && self.auth_method == other.auth_method
            && self.has_secret(other.client_secret.as_ref())
    }

    /// Whether this is its secret, or it has none either.
    pub fn has_secret(&self, other: Option<&SecretString>) -> bool {
        match (&self.client_secret, other) {
            (Some(own), Some(other)) => {
                own.expose_secret().as_bytes().ct_eq(other.expose_secret().as_bytes()).into()
            }
            (own, other) => own.is_none() && other.is_none(),
        }
    }

    /// Whether three quarters of its secret's time have passed, and not all of it.
    pub fn is_ending(&self, now: SystemTime) -> bool {
        let (Some(from), Some(end)) = (self.registered_at, self.expires_at) else { return false };
        now < end && end.duration_since(from).is_ok_and(|lifetime| now >= from + lifetime * 3 / 4)
    }

    /// Whether its secret still works at `now`.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.expires_at.is_none_or(|expiry| now < expiry)
    }
}

/// Why there is no registration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Network, 429 or 5xx: worth another try later.
    #[error("client registration is unavailable at the moment")]
    Unavailable,
    /// No registration endpoint, or no way to authenticate that we know.
    #[error("client registration is not possible: {0}")]
    Unsupported(&'static str),
    /// The server said no; its error code, sanitised.
    #[error("client registration was refused: {0}")]
    Refused(String),
    /// An answer that cannot be used.
    #[error("client registration answer is not usable: {0}")]
    Invalid(&'static str),
    /// Our own address policy.
    #[error("client registration endpoint: address not allowed")]
    Address,
}

impl RegisterError {
    /// Whether waiting may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, RegisterError::Unavailable)
    }
}

/// RFC 7591 §2. No `scope`: some servers take it for the most a client may ever ask for, and a later step-up fails.
#[derive(Serialize)]
pub(super) struct ClientMetadata<'a> {
    /// Of a client that there is already (RFC 7592 §2.2).
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<&'a str>,
    client_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_uri: &'a str,
    redirect_uris: [&'a str; 1],
    grant_types: [&'static str; 2],
    response_types: [&'static str; 1],
    token_endpoint_auth_method: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks: Option<Value>,
    application_type: &'static str,
}

/// RFC 7591 §3.2.1, as far as we hold the server to it.
#[derive(Deserialize)]
pub(super) struct ClientInformation {
    pub(super) client_id: String,
    #[serde(default)]
    client_secret: Option<SecretString>,
    /// Seconds since 1970, 0 for never. Any number, also as a string.
    #[serde(default)]
    client_secret_expires_at: Option<Box<RawValue>>,
    #[serde(default)]
    token_endpoint_auth_method: Option<String>,
    #[serde(default)]
    redirect_uris: Option<Vec<String>>,
    /// RFC 7592 §3. Of any type: what we cannot use costs us nothing but the clearing up.
    #[serde(default)]
    registration_client_uri: Value,
    #[serde(default)]
    registration_access_token: Value,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

/// Who registers.
pub struct Applicant<'a> {
    pub redirect_uri: &'a str,
    pub client_name: &'a str,
    /// May be empty.
    pub client_uri: &'a str,
    /// For servers that want one.
    pub key: Option<&'a ClientKey>,
    /// How to be authenticated, if that is not left to the server.
    pub wanted: Option<AuthMethod>,
}

/// Where a client registers, and the authentication that it asks for.
pub fn place(
    server: &AuthorizationServer,
    wanted: Option<AuthMethod>,
) -> Result<(&str, AuthMethod), RegisterError> {
    let endpoint = server
        .registration_endpoint
        .as_deref()
        .ok_or(RegisterError::Unsupported("the server has no registration endpoint"))?;
    let asked = AuthMethod::for_new_client(server, wanted)
        .ok_or(RegisterError::Unsupported("the server has no client authentication that we know"))?;
    Ok((endpoint, asked))
}

/// Registers a client with one redirect URI. What the server answers counts, not what was asked for.
pub async fn register(
    outbound: &Outbound,
    policy: &AddressPolicy,
    server: &AuthorizationServer,
    applicant: &Applicant<'_>,
    now: SystemTime,
) -> Result<Registration, RegisterError> {
    let (endpoint, asked) = place(server, applicant.wanted)?;
    let metadata = metadata(None, applicant, asked);
    let request =
        Request::post_json(endpoint, &metadata).map_err(|_| RegisterError::Invalid("client metadata"))?;
    accepted(ask(outbound, policy, request).await?, asked, applicant.redirect_uri, endpoint, now)
}

pub(super) fn metadata<'a>(
    client_id: Option<&'a str>,
    applicant: &Applicant<'a>,
    asked: AuthMethod,
) -> ClientMetadata<'a> {
    let &Applicant { redirect_uri, client_name, client_uri, key, .. } = applicant;
    ClientMetadata {
        client_id,
        client_name,
        client_uri,
        redirect_uris: [redirect_uri],
        grant_types: ["authorization_code", "refresh_token"],
        response_types: ["code"],
        token_endpoint_auth_method: asked.as_str(),
        jwks: key.map(|key| serde_json::json!({"keys": [key.public()]})),
        // OpenID Connect Registration §2: http on loopback is what a native application has.
        application_type: if redirect_uri.starts_with("http://") { "native" } else { "web" },
    }
}

pub(super) async fn ask(
    outbound: &Outbound,
    policy: &AddressPolicy,
    request: Request,
) -> Result<ClientInformation, RegisterError> {
    let response = outbound.send(request, policy).await.map_err(|error| match error {
        outbound::Error::Refused { .. } => RegisterError::Address,
        outbound::Error::NotSent { .. } | outbound::Error::Unknown { .. } => RegisterError::Unavailable,
        outbound::Error::TooLarge { .. } => RegisterError::Invalid("too large"),
        outbound::Error::Invalid { .. } => RegisterError::Invalid("not readable"),
    })?;
    match response.status {
        StatusCode::OK | StatusCode::CREATED => serde_json::from_slice(&response.body)
            .map_err(|_| RegisterError::Invalid("not client information in json")),
        StatusCode::TOO_MANY_REQUESTS => Err(RegisterError::Unavailable),
        status if status.is_server_error() => Err(RegisterError::Unavailable),
        status => Err(RegisterError::Refused(match serde_json::from_slice::<ErrorBody>(&response.body) {
            Ok(body) => error_code(&body.error).to_owned(),
            Err(_) => format!("http status {}", status.as_u16()),
        })),
    }
}

pub(super) fn accepted(
    information: ClientInformation,
    asked: AuthMethod,
    redirect_uri: &str,
    endpoint: &str,
    now: SystemTime,
) -> Result<Registration, RegisterError> {
    if !is_visible(&information.client_id) {
        return Err(RegisterError::Invalid("client id"));
    }
    if information.redirect_uris.is_some_and(|uris| !uris.iter().any(|uri| uri == redirect_uri)) {
        return Err(RegisterError::Invalid("another redirect uri"));
    }
    let auth_method = match information.token_endpoint_auth_method.as_deref() {
        Some(name) => AuthMethod::from_name(name)
            .ok_or(RegisterError::Unsupported("client authentication that we lack"))?,
        // An unnamed method is `client_secret_basic` by RFC 7591 §2, which needs a secret to mean anything.
        None if asked == AuthMethod::None && information.client_secret.is_some() => {
            AuthMethod::ClientSecretBasic
        }
        None => asked,
    };
    let needs_secret = matches!(auth_method, AuthMethod::ClientSecretBasic | AuthMethod::ClientSecretPost);
    // Only what we asked for can be proven: nobody but us has the key.
    if auth_method == AuthMethod::PrivateKeyJwt && asked != auth_method {
        return Err(RegisterError::Unsupported("client authentication that was not asked for"));
    }
    let client_secret = information.client_secret.filter(|_| needs_secret);
    match &client_secret {
        Some(secret) if !is_visible(secret.expose_secret()) => {
            return Err(RegisterError::Invalid("client secret"));
        }
        None if needs_secret => return Err(RegisterError::Invalid("no client secret")),
        _ => {}
    }
    let expires_at = client_secret
        .as_ref()
        .and(information.client_secret_expires_at)
        .and_then(|raw| raw.get().trim_matches('"').parse::<f64>().ok())
        .filter(|seconds| *seconds > 0.0)
        // A date nobody lives to see is no expiry.
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
    if expires_at.is_some_and(|expiry| expiry <= now) {
        return Err(RegisterError::Invalid("client secret that has expired already"));
    }
    let management = Management::of(
        &information.registration_client_uri,
        &information.registration_access_token,
        endpoint,
    );
    let registration =
        Registration::new(information.client_id, client_secret, auth_method, redirect_uri.to_string());
    let registered_at = expires_at.map(|_| now);
    Ok(Registration { expires_at, registered_at, management, ..registration })
}

/// RFC 6749 appendix A: identifiers and secrets are printable ASCII.
pub(super) fn is_visible(text: &str) -> bool {
    (1..=LONGEST_CREDENTIAL).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, 0x20..=0x7e))
}

/// An error code as a log line can carry it: a word of the standards, and none of the server's own, which may be what it
/// was sent.
pub(super) fn error_code(code: &str) -> &'static str {
    ERROR_CODES.into_iter().find(|known| *known == code).unwrap_or("another error")
}

/// Only for records that are sealed before they leave the process.
fn exposed<S: Serializer>(secret: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(|secret| secret.expose_secret()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::oauth::client::stub::{Answer, Stub, at, local, outbound, server};

    const REDIRECT: &str = "https://gw.example/oauth/upstream/callback/abc";

    fn applicant(redirect_uri: &str) -> Applicant<'_> {
        Applicant {
            redirect_uri,
            client_name: "Postern",
            client_uri: "https://gw.example",
            key: None,
            wanted: None,
        }
    }

    async fn registered(stub: &Stub, methods: &[&str]) -> Result<Registration, RegisterError> {
        let mut server = server(stub);
        server.auth_methods = methods.iter().map(ToString::to_string).collect();
        register(&outbound(), &local(), &server, &applicant(REDIRECT), at(1_000)).await
    }

    async fn answered(
        methods: &[&str],
        status: u16,
        body: &'static str,
    ) -> Result<Registration, RegisterError> {
        registered(&Stub::start(move |_, _| Answer::json(status, body)).await, methods).await
    }

    fn error(result: Result<Registration, RegisterError>) -> RegisterError {
        match result {
            Ok(_) => panic!("registered"),
            Err(error) => error,
        }
    }

    #[tokio::test]
    async fn a_public_client_is_asked_for_where_possible() {
        for (methods, asked) in [
            (&["client_secret_basic", "none"][..], "none"),
            (&["client_secret_post", "client_secret_basic"], "client_secret_post"),
            (&["tls_client_auth", "client_secret_basic", "client_secret_post"], "client_secret_basic"),
        ] {
            let stub =
                Stub::start(|_, _| Answer::json(201, r#"{"client_id":"a","client_secret":"s"}"#)).await;
            registered(&stub, methods).await.ok().unwrap();
            let seen = stub.seen();
            let sent: serde_json::Value = serde_json::from_slice(&seen[0].body).unwrap();
            assert_eq!(seen[0].path, "/register");
            assert_eq!(sent["token_endpoint_auth_method"], asked);
            assert_eq!(sent["redirect_uris"], serde_json::json!([REDIRECT]));
            assert_eq!(sent["grant_types"], serde_json::json!(["authorization_code", "refresh_token"]));
            assert_eq!(sent["application_type"], "web");
            assert!(sent.get("scope").is_none());
        }
        let stub = Stub::start(|_, _| Answer::status(201)).await;
        let refused = error(registered(&stub, &["tls_client_auth"]).await);
        assert!(matches!(refused, RegisterError::Unsupported(_)));
        assert!(stub.seen().is_empty());
    }

    #[tokio::test]
    async fn a_loopback_callback_is_a_native_application() {
        let stub = Stub::start(|_, _| Answer::json(201, r#"{"client_id":"a"}"#)).await;
        let redirect = "http://127.0.0.1:8080/oauth/upstream/callback/abc";
        let nameless = Applicant { client_uri: "", ..applicant(redirect) };
        register(&outbound(), &local(), &server(&stub), &nameless, at(0)).await.ok().unwrap();
        let sent: serde_json::Value = serde_json::from_slice(&stub.seen()[0].body).unwrap();
        assert_eq!(sent["application_type"], "native");
        assert!(sent.get("client_uri").is_none());
    }

    #[tokio::test]
    async fn the_servers_answer_counts() {
        for (body, method, has_secret) in [
            (r#"{"client_id":"a"}"#, AuthMethod::None, false),
            (r#"{"client_id":"a","client_secret":null}"#, AuthMethod::None, false),
            (r#"{"client_id":"a","client_secret":"s"}"#, AuthMethod::ClientSecretBasic, true),
            (
                r#"{"client_id":"a","client_secret":"s","token_endpoint_auth_method":"client_secret_post"}"#,
                AuthMethod::ClientSecretPost,
                true,
            ),
            (
                r#"{"client_id":"a","client_secret":"s","token_endpoint_auth_method":"none"}"#,
                AuthMethod::None,
                false,
            ),
        ] {
            for status in [200, 201] {
                let registration = answered(&["none"], status, body).await.ok().unwrap();
                assert_eq!(registration.auth_method, method, "{body}");
                assert_eq!(registration.client_secret.is_some(), has_secret, "{body}");
                assert_eq!(registration.redirect_uri, REDIRECT);
            }
        }
    }

    #[tokio::test]
    async fn the_expiry_of_a_secret_is_read_in_any_spelling() {
        for (spelling, expiry) in [
            ("0", None),
            ("5000", Some(at(5_000))),
            ("5000.0", Some(at(5_000))),
            ("\"5000\"", Some(at(5_000))),
            ("-1", None),
            ("null", None),
            ("1e308", None),
        ] {
            let body =
                format!(r#"{{"client_id":"a","client_secret":"s","client_secret_expires_at":{spelling}}}"#);
            let stub = Stub::start(move |_, _| Answer::json(201, &body)).await;
            let registration = registered(&stub, &["client_secret_basic"]).await.ok().unwrap();
            assert_eq!(registration.expires_at, expiry, "{spelling}");
            assert!(registration.is_valid(at(4_999)));
            assert_eq!(registration.is_valid(at(5_000)), expiry.is_none());
        }
    }

    #[tokio::test]
    async fn unusable_answers_are_refused() {
        for body in [
            "",
            "<html>",
            "{}",
            r#"{"client_id":""}"#,
            r#"{"client_id":"a\nb"}"#,
            r#"{"client_id":"a","client_id":"b"}"#,
            r#"{"client_id":"a","redirect_uris":["https://evil.example/cb"]}"#,
            r#"{"client_id":"a","token_endpoint_auth_method":"client_secret_basic"}"#,
            r#"{"client_id":"a","client_secret":"s\r\nX: y"}"#,
            r#"{"client_id":"a","client_secret":"s","client_secret_expires_at":999}"#,
        ] {
            assert!(
                matches!(error(answered(&["none"], 201, body).await), RegisterError::Invalid(_)),
                "{body}"
            );
        }
        let body = r#"{"client_id":"a","token_endpoint_auth_method":"private_key_jwt"}"#;
        assert!(matches!(error(answered(&["none"], 201, body).await), RegisterError::Unsupported(_)));
    }

    #[tokio::test]
    async fn refusals_carry_a_clean_code_and_outages_are_transient() {
        let body = r#"{"error":"invalid_redirect_uri","error_description":"secret"}"#;
        assert_eq!(
            error(answered(&["none"], 400, body).await),
            RegisterError::Refused("invalid_redirect_uri".into())
        );
        for body in [r#"{"error":"evil\nline <script>"}"#, r#"{"error":"a-token.it_was-sent"}"#] {
            assert_eq!(
                error(answered(&["none"], 400, body).await),
                RegisterError::Refused("another error".into())
            );
        }
        assert_eq!(
            error(answered(&["none"], 307, "").await),
            RegisterError::Refused("http status 307".into())
        );
        for status in [429, 500, 503] {
            assert!(error(answered(&["none"], status, "{}").await).is_transient());
        }
        let refused = register(
            &outbound(),
            &AddressPolicy::public(),
            &server(&Stub::start(|_, _| Answer::status(201)).await),
            &applicant(REDIRECT),
            at(0),
        )
        .await;
        assert_eq!(error(refused), RegisterError::Address);
    }

    #[test]
    fn a_configured_client_uses_what_the_server_lists() {
        let mut server = crate::oauth::client::stub::server_at("https://as.example.com");
        for (methods, has_secret, method) in [
            (&["client_secret_post"][..], true, AuthMethod::ClientSecretPost),
            (&["client_secret_post", "client_secret_basic"], true, AuthMethod::ClientSecretBasic),
            (&[], true, AuthMethod::ClientSecretBasic),
            (&["client_secret_basic"], false, AuthMethod::None),
        ] {
            server.auth_methods = methods.iter().map(ToString::to_string).collect();
            assert_eq!(AuthMethod::for_configured_client(&server, has_secret), method);
        }
    }

    #[test]
    fn a_registration_survives_storage_with_its_secret() {
        let (secret, method) = (Some("s".into()), AuthMethod::ClientSecretBasic);
        let registration = Registration {
            expires_at: Some(at(7)),
            ..Registration::new("a".into(), secret, method, REDIRECT.into())
        };
        let stored = serde_json::to_string(&registration).unwrap();
        let read: Registration = serde_json::from_str(&stored).unwrap();
        assert_eq!(read.client_secret.unwrap().expose_secret(), "s");
        assert_eq!(read.auth_method, AuthMethod::ClientSecretBasic);
        assert_eq!(read.expires_at, Some(at(7)));
    }
}
