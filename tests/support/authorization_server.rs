//! The scripted OAuth authorization server: metadata, registration, authorize, token, revoke.
//! It checks what a strict server checks, so that a sloppy client fails here and not only in the field.

use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answers::{error, json_answer, page, refuse};
use super::gate::pass;
use super::html::escape;
use super::ledger::{Identity, IssuedCode, Ledger, RegisteredClient};
use super::params::Params;
use super::received::{Received, Requests};
use super::script::{AuthorizationScript, Consent, IssParameter, ServerMetadata, apply};
use super::server::{Connection, Server};
use super::{http_client, lock, secret};

/// A handle; clones are the same server. It may stand on a port of its own or share one with the MCP server.
#[derive(Clone)]
pub struct AuthorizationServer {
    /// `http://host:port`, no slash at the end.
    pub origin: String,
    pub requests: Requests,
    pub(super) script: Arc<Mutex<AuthorizationScript>>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    server: Option<Arc<Server>>,
}

impl AuthorizationServer {
    /// Starts one on a port of its own.
    pub async fn start() -> Self {
        // The handler's copy does not own the server, or neither would ever be dropped.
        let shared = Arc::new(Mutex::new(Self::without_port()));
        let handler = shared.clone();
        let server = Server::start(move |request, connection| {
            let this = lock(&handler).clone();
            async move { this.answer(request, connection).await }
        })
        .await;
        let mut this = lock(&shared);
        this.origin = format!("http://{}", server.address);
        AuthorizationServer { server: Some(Arc::new(server)), ..this.clone() }
    }

    /// One that answers only through somebody else's port; `origin` is still to be filled in.
    pub fn without_port() -> Self {
        AuthorizationServer {
            origin: String::new(),
            requests: Requests::default(),
            script: Arc::default(),
            ledger: Arc::default(),
            server: None,
        }
    }

    /// Changes the script.
    pub fn set(&self, change: impl FnOnce(&mut AuthorizationScript)) {
        change(&mut lock(&self.script));
    }

    /// Looks into the books, or cooks them.
    pub fn ledger<T>(&self, look: impl FnOnce(&mut Ledger) -> T) -> T {
        look(&mut lock(&self.ledger))
    }

    /// The issuer as the metadata names it.
    pub fn issuer(&self) -> String {
        let script = lock(&self.script);
        script.issuer.clone().unwrap_or_else(|| format!("{}{}", self.origin, script.issuer_path))
    }

    /// A client that need not register: for configured credentials.
    pub fn know_client(&self, id: &str, client_secret: Option<&str>) {
        let method = if client_secret.is_some() { "client_secret_basic" } else { "none" };
        let client = RegisteredClient {
            id: id.into(),
            secret: client_secret.map(str::to_owned),
            method: method.into(),
            ..RegisteredClient::default()
        };
        lock(&self.ledger).clients.insert(id.into(), client);
    }

    pub fn registrations(&self) -> usize {
        self.requests.count("/register")
    }

    pub fn codes_redeemed(&self) -> u32 {
        lock(&self.ledger).codes_redeemed
    }

    /// Successful refreshes.
    pub fn refreshes(&self) -> u32 {
        lock(&self.ledger).refreshes
    }

    /// All token requests with this grant type, good or not.
    pub fn token_requests(&self, grant_type: &str) -> Vec<Received> {
        let wanted = |request: &Received| {
            request.path == "/token" && request.form("grant_type").as_deref() == Some(grant_type)
        };
        self.requests.matching(wanted)
    }

    /// How often this refresh token was presented.
    pub fn uses_of(&self, refresh_token: &str) -> u32 {
        lock(&self.ledger).refresh.get(refresh_token).map_or(0, |refresh| refresh.uses)
    }

    /// Ends every access token now; refresh tokens stay good.
    pub fn expire_access_tokens(&self) {
        lock(&self.ledger).access.values_mut().for_each(|access| access.expires = std::time::Instant::now());
    }

    /// Ends everything that was granted so far.
    pub fn revoke_everything(&self) {
        lock(&self.ledger).families.iter_mut().for_each(|family| family.dead = true);
    }

    pub fn identify(&self, access_token: &str) -> Option<Identity> {
        lock(&self.ledger).identify(access_token)
    }

    /// Cuts all connections and refuses new ones (only one with a port of its own).
    pub fn stop(&self) {
        self.server.as_ref().expect("a port of its own").stop();
    }

    /// Listens again after `stop`.
    pub async fn resume(&self) {
        self.server.as_ref().expect("a port of its own").resume().await;
    }

    fn metadata_path(&self, script: &AuthorizationScript) -> Option<String> {
        let path = &script.issuer_path;
        match script.metadata {
            ServerMetadata::Rfc8414 => Some(format!("/.well-known/oauth-authorization-server{path}")),
            ServerMetadata::OidcInserted => Some(format!("/.well-known/openid-configuration{path}")),
            ServerMetadata::OidcAppended => Some(format!("{path}/.well-known/openid-configuration")),
            ServerMetadata::Nowhere => None,
        }
    }

    /// Answers one request and records it.
    pub async fn answer(&self, request: Received, connection: Connection) -> Response {
        self.requests.add(request.clone());
        let script = lock(&self.script).clone();
        if self.metadata_path(&script).as_deref() == Some(request.path.as_str()) {
            pass(&script.metadata_gate).await;
            return json_answer(200, &self.metadata(&script));
        }
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/register") => self.register(&script, &request).await,
            ("DELETE", path) => self.deregister(path.trim_start_matches("/register/"), &request),
            ("GET", "/authorize") => self.authorize(&script, &request).await,
            ("POST", "/authorize") => self.decide(&script, &request),
            ("POST", "/token") => self.token(&script, &request, connection).await,
            ("POST", "/revoke") => {
                lock(&self.ledger).revoke(&request.form("token").unwrap_or_default());
                StatusCode::OK.into_response()
            }
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    }

    fn metadata(&self, script: &AuthorizationScript) -> Value {
        let mut document = json!({
            "issuer": self.issuer(),
            "authorization_endpoint": format!("{}/authorize", self.origin),
            "token_endpoint": format!("{}/token", self.origin),
            "revocation_endpoint": format!("{}/revoke", self.origin),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
        });
        if let Some(methods) = &script.code_challenge_methods {
            document["code_challenge_methods_supported"] = json!(methods);
        }
        if script.registration.is_some() {
            document["registration_endpoint"] = format!("{}/register", self.origin).into();
        }
        if script.cimd {
            document["client_id_metadata_document_supported"] = true.into();
        }
        if script.iss_announced {
            document["authorization_response_iss_parameter_supported"] = true.into();
        }
        apply(&mut document, &script.metadata_patch);
        document
    }

    async fn register(&self, script: &AuthorizationScript, request: &Received) -> Response {
        let Some(registration) = &script.registration else {
            return StatusCode::NOT_FOUND.into_response();
        };
        pass(&script.registration_gate).await;
        if let Some((status, body)) = &registration.refusal {
            return json_answer(*status, body);
        }
        let mut document = request.json();
        let redirect_uris: Vec<String> = document["redirect_uris"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|uri| uri.as_str().map(str::to_owned))
            .collect();
        if redirect_uris.is_empty() {
            return error(400, "invalid_redirect_uri");
        }
        let asked = document["token_endpoint_auth_method"].as_str().unwrap_or("client_secret_basic");
        let method = registration.method.clone().unwrap_or_else(|| asked.to_owned());
        let id = format!("client-{}", super::random_hex(6));
        let has_secret = method.starts_with("client_secret");
        let client_secret = has_secret.then(|| secret("upstream_client_secret"));
        document["client_id"] = id.clone().into();
        document["token_endpoint_auth_method"] = method.clone().into();
        if let Some(client_secret) = &client_secret {
            document["client_secret"] = client_secret.clone().into();
            document["client_secret_expires_at"] = 0.into();
        }
        let management = registration.managed.then(|| secret("upstream_registration_token"));
        if let Some(token) = &management {
            document["registration_client_uri"] = format!("{}/register/{id}", self.origin).into();
            document["registration_access_token"] = token.clone().into();
        }
        let jwks = document["jwks"].clone();
        let client = RegisteredClient {
            id: id.clone(),
            secret: client_secret,
            method,
            jwks,
            management,
            redirect_uris,
        };
        lock(&self.ledger).clients.insert(id, client);
        json_answer(201, &document)
    }

    /// RFC 7592 §2.3.
    fn deregister(&self, id: &str, request: &Received) -> Response {
        let mut ledger = lock(&self.ledger);
        let token = ledger.clients.get(id).and_then(|client| client.management.clone());
        let shown = request.header("authorization");
        if token.is_none() || shown != token.map(|token| format!("Bearer {token}")) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        ledger.clients.remove(id);
        StatusCode::NO_CONTENT.into_response()
    }

    /// The client named in a request; a client document is fetched and checked as the draft demands.
    async fn client(&self, script: &AuthorizationScript, id: &str) -> Option<RegisteredClient> {
        let known = lock(&self.ledger).clients.get(id).cloned();
        if known.is_some() || !script.cimd || !id.starts_with("http") {
            return known;
        }
        let answer = http_client(&script.roots).get(id).send().await.ok()?;
        let document: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        if document["client_id"].as_str() != Some(id) {
            return None;
        }
        let uris = document["redirect_uris"].as_array()?;
        let method = document["token_endpoint_auth_method"].as_str().unwrap_or("none");
        let jwks = match document["jwks_uri"].as_str() {
            Some(uri) => {
                let answer = http_client(&script.roots).get(uri).send().await.ok()?;
                serde_json::from_slice(&answer.bytes().await.ok()?).ok()?
            }
            None => Value::Null,
        };
        let client = RegisteredClient {
            id: id.into(),
            secret: None,
            method: method.into(),
            jwks,
            management: None,
            redirect_uris: uris.iter().filter_map(|uri| uri.as_str().map(str::to_owned)).collect(),
        };
        lock(&self.ledger).clients.insert(id.into(), client.clone());
        Some(client)
    }

    async fn authorize(&self, script: &AuthorizationScript, request: &Received) -> Response {
        let asked = |name: &str| request.parameter(name).unwrap_or_default();
        let Some(client) = self.client(script, &asked("client_id")).await else {
            return refuse("unknown client");
        };
        if !client.redirect_uris.is_empty() && !client.redirect_uris.contains(&asked("redirect_uri")) {
            return refuse("redirect_uri is not registered");
        }
        if asked("response_type") != "code" {
            return refuse("response_type must be code");
        }
        if asked("code_challenge_method") != "S256" || asked("code_challenge").len() != 43 {
            return refuse("S256 code challenge missing");
        }
        match &script.consent {
            Consent::Approve => self.approve(script, request),
            Consent::Deny(code) => self.back(script, request, ("error", code)),
            Consent::Page => page(&format!(
                "<h1>Upstream consent</h1><form method=post action=/authorize>\
                 <input type=hidden name=request value=\"{}\">\
                 <button name=decision value=allow>Allow</button><button name=decision value=deny>Deny</button></form>",
                escape(request.query.as_deref().unwrap_or_default())
            )),
        }
    }

    /// The answer to the consent page.
    fn decide(&self, script: &AuthorizationScript, request: &Received) -> Response {
        let asked = Received { query: request.form("request"), ..request.clone() };
        match request.form("decision").as_deref() {
            Some("allow") => self.approve(script, &asked),
            _ => self.back(script, &asked, ("error", "access_denied")),
        }
    }

    fn approve(&self, script: &AuthorizationScript, request: &Received) -> Response {
        let asked = |name: &str| request.parameter(name).unwrap_or_default();
        let code = secret("upstream_code");
        let issued = IssuedCode {
            client_id: asked("client_id"),
            redirect_uri: asked("redirect_uri"),
            challenge: asked("code_challenge"),
            resource: request.parameter("resource"),
            scope: script.granted_scopes.clone().unwrap_or_else(|| asked("scope")),
            user: script.user.clone(),
            family: None,
        };
        lock(&self.ledger).codes.insert(code.clone(), issued);
        self.back(script, request, ("code", &code))
    }

    /// 302 to the redirect URI with the result, the state and perhaps the issuer.
    fn back(&self, script: &AuthorizationScript, request: &Received, result: (&str, &str)) -> Response {
        let mut answer = Params::new().with(result.0, result.1);
        if let Some(state) = request.parameter("state") {
            answer = answer.with("state", &state);
        }
        match &script.iss {
            IssParameter::Correct => answer = answer.with("iss", &self.issuer()),
            IssParameter::Wrong(issuer) => answer = answer.with("iss", issuer),
            IssParameter::Absent => {}
        }
        let target = answer.url(&request.parameter("redirect_uri").unwrap_or_default());
        (StatusCode::FOUND, [("location", target)]).into_response()
    }
}
