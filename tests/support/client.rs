//! An OAuth client of the gateway with every parameter in the test's hands.

use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};
use url::Url;

use super::browser::Browser;
use super::gateway::Gateway;
use super::mcp::McpAnswer;
use super::params::{Params, Pkce};
use super::random_hex;

/// The access scope of every route.
pub const ACCESS_SCOPE: &str = "mcp:access";

/// A registered client (or one that says it is).
#[derive(Clone)]
pub struct Client {
    pub id: String,
    pub secret: Option<String>,
    pub redirect_uri: String,
    pub public_url: String,
    http: reqwest::Client,
}

/// What the client sends to the authorization endpoint, and what it remembers of it.
#[derive(Clone, Debug)]
pub struct AuthorizationRequest {
    pub params: Params,
    pub pkce: Pkce,
    pub state: String,
    endpoint: String,
}

impl AuthorizationRequest {
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.params = self.params.with(name, value);
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.params = self.params.without(name);
        self
    }

    pub fn url(&self) -> String {
        self.params.url(&self.endpoint)
    }
}

/// What came back to the client's redirect URI.
#[derive(Clone, Debug)]
pub struct Callback {
    pub url: Url,
    pub params: Params,
}

impl Callback {
    pub fn of(url: &Url) -> Self {
        Callback { url: url.clone(), params: Params(url.query_pairs().into_owned().collect()) }
    }

    /// The code; panics when it is an error.
    #[track_caller]
    pub fn code(&self) -> String {
        self.params.value("code").unwrap_or_else(|| panic!("no code in {}", self.url)).to_owned()
    }

    pub fn error(&self) -> Option<&str> {
        self.params.value("error")
    }

    pub fn state(&self) -> Option<&str> {
        self.params.value("state")
    }

    pub fn iss(&self) -> Option<&str> {
        self.params.value("iss")
    }
}

/// The tokens of a successful answer.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub access_token: String,
    pub refresh_token: String,
    pub expires_in: u64,
    pub scope: String,
}

/// Any answer of the token endpoint.
#[derive(Clone, Debug)]
pub struct TokenAnswer(pub McpAnswer);

impl TokenAnswer {
    pub fn status(&self) -> u16 {
        self.0.status
    }

    /// The `error` member, or nothing.
    pub fn error(&self) -> Option<String> {
        self.0.json()["error"].as_str().map(str::to_owned)
    }

    /// The tokens; panics with the answer when it is an error.
    #[track_caller]
    pub fn tokens(&self) -> Tokens {
        let body = self.0.json();
        assert_eq!(self.status(), 200, "{body}");
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let expires_in = body["expires_in"].as_u64().expect("expires_in");
        Tokens {
            access_token: text("access_token"),
            refresh_token: text("refresh_token"),
            expires_in,
            scope: text("scope"),
        }
    }
}

impl Client {
    /// Registers a public client by RFC 7591.
    pub async fn register(gateway: &Gateway) -> Self {
        let redirect_uri = unused_redirect_uri();
        let document = json!({
            "client_name": "Rig client",
            "redirect_uris": [redirect_uri],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
        });
        let answer = Self::register_with(gateway, &document).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        let registered = answer.json();
        let mut client =
            Self::known_as(gateway, registered["client_id"].as_str().expect("client_id"), &redirect_uri);
        client.secret = registered["client_secret"].as_str().map(str::to_owned);
        client
    }

    /// Sends any registration document.
    pub async fn register_with(gateway: &Gateway, document: &Value) -> McpAnswer {
        let request =
            gateway.http.post(gateway.url("/oauth/register")).header("content-type", "application/json");
        McpAnswer::of(request.body(document.to_string()).send().await.expect("registration")).await
    }

    /// A client that need not register: by CIMD, its id is the URL of its document.
    pub fn known_as(gateway: &Gateway, id: &str, redirect_uri: &str) -> Self {
        Client {
            id: id.into(),
            secret: None,
            redirect_uri: redirect_uri.into(),
            public_url: gateway.public_url.clone(),
            http: gateway.http.clone(),
        }
    }

    /// The same client, reaching the gateway as this one is reached.
    pub fn through(&self, gateway: &Gateway) -> Self {
        Client { http: gateway.http.clone(), ..self.clone() }
    }

    /// The resource of a route, as its metadata names it.
    pub fn resource(&self, route: &str) -> String {
        format!("{}/{route}", self.public_url)
    }

    /// A complete authorization request for a route.
    pub fn authorization(&self, route: &str) -> AuthorizationRequest {
        let (pkce, state) = (Pkce::new(), random_hex(8));
        let params = Params::new()
            .with("response_type", "code")
            .with("client_id", &self.id)
            .with("redirect_uri", &self.redirect_uri)
            .with("scope", ACCESS_SCOPE)
            .with("state", &state)
            .with("code_challenge", &pkce.challenge)
            .with("code_challenge_method", "S256")
            .with("resource", &self.resource(route));
        AuthorizationRequest { params, pkce, state, endpoint: format!("{}/oauth/authorize", self.public_url) }
    }

    /// The whole flow: authorize in the browser, redeem the code.
    pub async fn sign_in(&self, browser: &mut Browser, route: &str) -> Tokens {
        let request = self.authorization(route);
        let callback = browser.authorize(&self.redirect_uri, &request.url()).await;
        assert_eq!(callback.state(), Some(request.state.as_str()), "{}", callback.url);
        self.redeem(&callback.code(), &request).await.tokens()
    }

    /// Redeems a code as the request demands.
    pub async fn redeem(&self, code: &str, request: &AuthorizationRequest) -> TokenAnswer {
        self.token(&self.redemption(code, request)).await
    }

    /// The parameters of a redemption, to be bent.
    pub fn redemption(&self, code: &str, request: &AuthorizationRequest) -> Params {
        let params = Params::new()
            .with("grant_type", "authorization_code")
            .with("code", code)
            .with("redirect_uri", &self.redirect_uri)
            .with("code_verifier", &request.pkce.verifier);
        let params = match request.params.value("resource") {
            Some(resource) => params.with("resource", resource),
            None => params,
        };
        self.identified(params)
    }

    pub async fn refresh(&self, refresh_token: &str) -> TokenAnswer {
        self.token(&self.refreshment(refresh_token)).await
    }

    /// The parameters of a refresh, to be bent.
    pub fn refreshment(&self, refresh_token: &str) -> Params {
        self.identified(
            Params::new().with("grant_type", "refresh_token").with("refresh_token", refresh_token),
        )
    }

    fn identified(&self, params: Params) -> Params {
        let params = params.with("client_id", &self.id);
        match &self.secret {
            Some(secret) => params.with("client_secret", secret),
            None => params,
        }
    }

    /// Any request to the token endpoint.
    pub async fn token(&self, params: &Params) -> TokenAnswer {
        TokenAnswer(self.form("/oauth/token", params).await)
    }

    /// RFC 7009.
    pub async fn revoke(&self, token: &str) -> McpAnswer {
        self.form("/oauth/revoke", &self.identified(Params::new().with("token", token))).await
    }

    /// Posts a form to any path of the gateway.
    pub async fn form(&self, path: &str, params: &Params) -> McpAnswer {
        let request = self
            .http
            .post(format!("{}{path}", self.public_url))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(params.encoded());
        McpAnswer::of(request.send().await.unwrap_or_else(|error| panic!("{path}: {error:?}"))).await
    }
}

/// A loopback redirect URI of its own for each client. Nobody listens there: the browser stops before it.
pub fn unused_redirect_uri() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Above 80, which is not written.
    format!("http://127.0.0.1:{}/callback", 81 + NEXT.fetch_add(1, Ordering::Relaxed) % 900)
}
