//! Enterprise-managed authorization: an identity provider lets a client act for one of its people, and nobody is asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::{Client, TokenAnswer};
use support::gateway::{Builder, Gateway, Route};
use support::identity::IdentityProvider;
use support::key::Key;
use support::mcp::McpRequest;
use support::params::Params;
use support::process::run;
use support::upstream::Upstream;
use support::{eventually, secret};

const SECOND: Duration = Duration::from_secs(1);
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const TYPE: &str = "oauth-id-jag+jwt";
const CLIENT: &str = "agent";

/// A gateway at which `corp` lets clients in, and a client without a browser.
struct Rig {
    provider: IdentityProvider,
    upstream: Upstream,
    gateway: Gateway,
    secret: String,
}

fn builder(secret: &str, entry: Value) -> Builder {
    Gateway::builder()
        .env("IDP_SECRET", "of the identity provider")
        .env("AGENT", secret)
        .with("login.oidc", json!([entry]))
        .with("oauth_server.id_jag", json!({"issuers": ["corp"]}))
        .with(
            "oauth_server.clients.static",
            json!([{"client_id": CLIENT, "client_name": "Agent", "client_secret": {"env": "AGENT"}, "token_endpoint_auth_method": "client_secret_post"},
                {"client_id": "other", "client_secret": {"env": "AGENT"}},
                {"client_id": "open", "redirect_uris": ["https://open.example/back"]}]),
        )
}

impl Rig {
    async fn new() -> Self {
        Self::with(|upstream, _, builder| builder.route(Route::open("demo", upstream))).await
    }

    async fn with(change: impl FnOnce(&Upstream, &IdentityProvider, Builder) -> Builder) -> Self {
        let (upstream, provider) = (Upstream::open().await, IdentityProvider::start().await);
        let secret = secret("client");
        let builder = change(&upstream, &provider, builder(&secret, provider.entry()));
        Rig { gateway: builder.start().await, provider, upstream, secret }
    }

    /// A good assertion, but for what `more` changes.
    fn assertion(&self, more: Value) -> String {
        self.assertion_as(TYPE, more)
    }

    fn assertion_as(&self, kind: &str, more: Value) -> String {
        let mut claims = json!({"aud": self.gateway.public_url, "client_id": CLIENT,
            "resource": self.gateway.url("/demo"), "scope": "mcp:access"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.provider.assertion(kind, &claims)
    }

    async fn show(&self, assertion: &str) -> TokenAnswer {
        self.show_with(assertion, Params::new()).await
    }

    async fn show_with(&self, assertion: &str, more: Params) -> TokenAnswer {
        let params = more.with("client_id", CLIENT).with("client_secret", &self.secret);
        self.send(assertion, params).await
    }

    /// As another client, which authenticates by HTTP Basic.
    async fn show_as_other(&self, assertion: &str, more: Params) -> u16 {
        let params = more.with("grant_type", GRANT).with("assertion", assertion);
        let pair = data_encoding::BASE64.encode(format!("other:{}", self.secret).as_bytes());
        let request = self.gateway.http.post(self.gateway.url("/oauth/token"));
        let request = request.header("authorization", format!("Basic {pair}"));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.body(params.encoded()).send().await.unwrap().status().as_u16()
    }

    async fn send(&self, assertion: &str, params: Params) -> TokenAnswer {
        let params = params.with("grant_type", GRANT).with("assertion", assertion);
        Client::known_as(&self.gateway, CLIENT, "").token(&params).await
    }

    /// The access token for a good assertion.
    async fn token(&self, more: Value) -> String {
        self.show(&self.assertion(more)).await.tokens().access_token
    }

    async fn status(&self, token: &str) -> u16 {
        self.gateway.mcp("demo").bearer(token).tool("echo", json!({"message": "heard"})).await.status
    }

    async fn metadata(&self, name: &str) -> Value {
        let url = self.gateway.url(&format!("/.well-known/{name}"));
        McpRequest::to(&self.gateway.http, &url).get().await.json()
    }

    /// The command, while nothing runs: the embedded store has one owner.
    async fn users(&mut self, verb: &str, user: &str) {
        self.gateway.stop().await;
        let config = self.gateway.config_file().display().to_string();
        let environment = [("IDP_SECRET", "x"), ("AGENT", "x")];
        let finished = run(&["users", verb, user, "--config", &config], &environment).await;
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        self.gateway.restart().await;
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[track_caller]
fn assert_refused(what: &str, answer: &TokenAnswer, status: u16, error: &str) {
    let said = (answer.status(), answer.error());
    assert_eq!(said, (status, Some(error.to_owned())), "{what}: {}", answer.0.body);
    assert_eq!(answer.0.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn a_client_that_the_provider_lets_in_gets_a_token_for_one_server_and_nobody_is_asked() {
    let other = Upstream::open().await;
    let rig = Rig::with(|upstream, _, builder| {
        builder.route(Route::open("demo", upstream)).route(Route::open("second", &other))
    })
    .await;
    for name in ["oauth-authorization-server", "openid-configuration"] {
        let metadata = rig.metadata(name).await;
        assert!(metadata["grant_types_supported"].as_array().unwrap().contains(&json!(GRANT)), "{metadata}");
        assert_eq!(
            metadata["authorization_grant_profiles_supported"],
            json!(["urn:ietf:params:oauth:grant-profile:id-jag"])
        );
    }
    let assertion = rig.assertion(json!({}));
    let answer = rig.show(&assertion).await;
    let body = answer.0.json();
    assert_eq!((body["token_type"].as_str(), body["scope"].as_str()), (Some("Bearer"), Some("mcp:access")));
    assert!(body.get("refresh_token").is_none(), "the provider decides each time: {body}");
    let token = answer.tokens().access_token;
    assert_eq!(rig.status(&token).await, 200);
    let elsewhere = rig.gateway.mcp("second").bearer(&token).tool("echo", json!({})).await;
    assert_eq!(elsewhere.status, 401, "a token works on its route alone");
    // By HTTP Basic as well, as any client authenticates; the resource may be said once more.
    let for_other = rig.assertion(json!({"client_id": "other", "scope": null}));
    let resource = Params::new().with("resource", &rig.gateway.url("/demo"));
    assert_eq!(rig.show_as_other(&for_other, resource).await, 200);
    let user = rig.provider.user("4711");
    let is_grant = |line: &Value| {
        line["event"] == "grant"
            && line["user"] == user.as_str()
            && (line["client"] == CLIENT || line["client"] == "other")
            && line["route"] == "demo"
            && line["decided_by"] == "corp"
    };
    rig.gateway.output.has(2, is_grant).await;
    let signature = assertion.rsplit('.').next().unwrap();
    assert!(!rig.gateway.output.text().contains(signature) && !rig.upstream.requests.mention(signature));
    rig.gateway.output.assert_no_secret();
}

#[tokio::test]
async fn an_assertion_counts_as_it_was_meant_or_not_at_all() {
    let (second, unlisted) = (Upstream::open().await, IdentityProvider::start().await);
    let mut entry = unlisted.entry();
    entry["name"] = "unlisted".into();
    let rig = Rig::with(|upstream, provider, builder| {
        let mut corp = provider.entry();
        (corp["allowed_domains"], corp["allowed_groups"]) = (json!(["example.com"]), json!(["eng"]));
        builder
            .route(Route::open("demo", upstream))
            .route(Route::open("foreign", &second).with("trusted_issuers", json!(["elsewhere"])))
            .with("trusted_issuers", json!([{"name": "elsewhere", "issuer": "https://else.example"}]))
            .with("login.oidc", json!([corp, entry]))
    })
    .await;
    let own = rig.gateway.public_url.clone();
    let person = json!({"email": "ada@example.com", "email_verified": true, "groups": ["eng"]});
    let bent = |more: Value| {
        let mut claims = person.clone();
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rig.assertion(claims)
    };
    let typed = |kind: &str| rig.assertion_as(kind, person.clone());
    rig.provider.set(|script| script.forger = Some(Arc::new(Key::new("idp"))));
    let forged = bent(json!({}));
    rig.provider.set(|script| script.forger = Some(Arc::new(Key::new("another"))));
    let unknown = bent(json!({}));
    rig.provider.set(|script| script.forger = None);
    let genuine = bent(json!({}));
    let (start, _) = genuine.rsplit_once('.').unwrap();
    let of_unlisted = unlisted.assertion(
        TYPE,
        &json!({"aud": own, "client_id": CLIENT, "resource": rig.gateway.url("/demo"), "scope": "mcp:access"}),
    );
    let cases = [
        ("another kind of token", typed("JWT")),
        ("an access token", typed("at+jwt")),
        ("an assertion of a client", typed("client-authentication+jwt")),
        ("for another server", bent(json!({"aud": "https://other.example"}))),
        ("for nearly this server", bent(json!({"aud": format!("{own}/")}))),
        ("for the token endpoint", bent(json!({"aud": format!("{own}/oauth/token")}))),
        ("for others as well", bent(json!({"aud": [own, "https://other.example"]}))),
        ("for nobody", bent(json!({"aud": null}))),
        ("of another issuer", bent(json!({"iss": "https://evil.example"}))),
        ("of an issuer that is not listed for it", of_unlisted),
        ("of one provider in the name of another", bent(json!({"iss": unlisted.issuer}))),
        ("for another client", bent(json!({"client_id": "other"}))),
        ("for no client", bent(json!({"client_id": null}))),
        ("expired", bent(json!({"iat": now() - 300, "exp": now() - 61}))),
        ("without an end", bent(json!({"exp": null}))),
        ("good for too long", bent(json!({"exp": now() + 3600}))),
        ("made too long ago", bent(json!({"iat": now() - 3600}))),
        ("not made yet", bent(json!({"iat": now() + 600, "exp": now() + 700}))),
        ("not valid yet", bent(json!({"nbf": now() + 600}))),
        ("made nobody knows when", bent(json!({"iat": null}))),
        ("without a name", bent(json!({"jti": null}))),
        ("with an empty name", bent(json!({"jti": ""}))),
        ("of nobody", bent(json!({"sub": null}))),
        ("of somebody unprintable", bent(json!({"sub": "a\nb"}))),
        ("for a resource elsewhere", bent(json!({"resource": "https://other.example/demo"}))),
        ("for a resource that is not there", bent(json!({"resource": rig.gateway.url("/nothing")}))),
        ("for a resource with another issuer", bent(json!({"resource": rig.gateway.url("/foreign")}))),
        ("for no resource", bent(json!({"resource": null}))),
        ("bound to a key", bent(json!({"cnf": {"jkt": "x"}}))),
        ("narrowed down otherwise", bent(json!({"authorization_details": [{"type": "x"}]}))),
        ("with scopes in another form", bent(json!({"scope": ["mcp:access"]}))),
        ("of another domain", bent(json!({"email": "ada@evil.example"}))),
        ("with an address that nobody has verified", bent(json!({"email_verified": false}))),
        ("with an address alone", bent(json!({"email_verified": null}))),
        ("of nobody's domain", bent(json!({"email": null, "email_verified": null}))),
        ("of another group", bent(json!({"groups": ["sales"]}))),
        ("of no group", bent(json!({"groups": null}))),
        ("forged under a known name", forged),
        ("signed by an unknown key", unknown),
        ("without its signature", format!("{start}.")),
        ("no token", "nonsense".to_owned()),
    ];
    for (what, assertion) in &cases {
        assert_refused(what, &rig.show(assertion).await, 400, "invalid_grant");
    }
    assert_refused("nothing", &rig.show("").await, 400, "invalid_request");
    assert!(!rig.gateway.output.text().contains("\"event\":\"grant\""));
    rig.gateway
        .output
        .has(cases.len(), |line| line["event"] == "assertion_refused" && line["client"] == CLIENT)
        .await;
    // Each of them was refused for what was bent. What is left out afterwards counts as it was said last.
    assert_eq!(rig.show(&bent(json!({}))).await.status(), 200);
    let known = bent(json!({"email_verified": null, "groups": null}));
    assert_eq!(rig.show(&known).await.status(), 200);
    let moved = bent(json!({"email": "eve@example.com", "email_verified": null}));
    assert_refused("an address that is not the known one", &rig.show(&moved).await, 400, "invalid_grant");
    let someone_else = bent(json!({"sub": "4712", "email": null, "email_verified": null}));
    assert_refused("somebody else", &rig.show(&someone_else).await, 400, "invalid_grant");
}

#[tokio::test]
async fn an_assertion_is_good_once_and_for_the_resource_that_it_names() {
    let other = Upstream::open().await;
    let rig = Rig::with(|upstream, _, builder| {
        builder.route(Route::open("demo", upstream)).route(Route::open("second", &other))
    })
    .await;
    let (demo, second) = (rig.gateway.url("/demo"), rig.gateway.url("/second"));
    let asking = |resource: &str| Params::new().with("resource", resource);
    let assertion = rig.assertion(json!({}));
    // A wrong try does not use it up.
    let elsewhere = rig.show_with(&assertion, asking(&second)).await;
    assert_refused("another resource", &elsewhere, 400, "invalid_target");
    let scope = Params::new().with("scope", "mcp:access admin");
    assert_refused("a scope too many", &rig.show_with(&assertion, scope).await, 400, "invalid_scope");
    let (one, two) = tokio::join!(rig.show(&assertion), rig.show(&assertion));
    let mut both = [one.status(), two.status()];
    both.sort_unstable();
    assert_eq!(both, [200, 400], "of two at once one is the first");
    assert_refused("once more", &rig.show(&assertion).await, 400, "invalid_grant");
    // Another one of that name is that one.
    let twin = |client: &str| rig.assertion(json!({"jti": "twin", "client_id": client}));
    assert_eq!(rig.show(&twin(CLIENT)).await.status(), 200);
    assert_refused("its name", &rig.show(&twin(CLIENT)).await, 400, "invalid_grant");
    // Of several resources the request names one.
    let several = rig.assertion(json!({"resource": [demo, second]}));
    assert_refused("no choice", &rig.show(&several).await, 400, "invalid_target");
    let token = rig.show_with(&several, asking(&second)).await.tokens().access_token;
    assert_eq!(rig.status(&token).await, 401);
    assert_eq!(rig.gateway.mcp("second").bearer(&token).tool("echo", json!({})).await.status, 200);
}

#[tokio::test]
async fn only_clients_that_prove_who_they_are_use_assertions() {
    let rig = Rig::new().await;
    let public = rig.assertion(json!({"client_id": "open"}));
    let answer = rig.send(&public, Params::new().with("client_id", "open")).await;
    assert_refused("a public client", &answer, 400, "unauthorized_client");
    let registered = Client::register(&rig.gateway).await;
    let answer = rig
        .send(
            &rig.assertion(json!({"client_id": registered.id})),
            Params::new().with("client_id", &registered.id),
        )
        .await;
    assert_refused("a registered one", &answer, 400, "unauthorized_client");
    let good = rig.assertion(json!({}));
    let wrong = Params::new().with("client_id", CLIENT).with("client_secret", "guessed");
    assert_refused("a wrong secret", &rig.send(&good, wrong).await, 401, "invalid_client");
    let nothing = Params::new().with("client_id", CLIENT);
    assert_refused("no secret", &rig.send(&good, nothing).await, 401, "invalid_client");
    assert_eq!(rig.show_as_other(&good, Params::new()).await, 400, "made for another client");
    assert_eq!(rig.show(&good).await.status(), 200);
}

#[tokio::test]
async fn who_is_blocked_is_blocked_here_too() {
    let mut rig = Rig::new().await;
    let token = rig.token(json!({})).await;
    assert_eq!(rig.status(&token).await, 200);
    let user = rig.provider.user("4711");
    rig.users("block", &user).await;
    assert_eq!(rig.status(&token).await, 401);
    let assertion = rig.assertion(json!({}));
    assert_refused("blocked", &rig.show(&assertion).await, 400, "invalid_grant");
    assert_eq!(rig.show(&rig.assertion(json!({"sub": "4712"}))).await.status(), 200, "nobody else is");
    rig.users("unblock", &user).await;
    assert_eq!(rig.show(&assertion).await.status(), 200);
}

#[tokio::test]
async fn the_user_sees_who_has_let_it_in_and_can_end_it_and_so_can_the_client() {
    let rig = Rig::new().await;
    let token = rig.token(json!({})).await;
    let mut browser = Browser::new();
    let page = browser.go(&rig.gateway.url("/login/start?provider=corp&next=/connections")).await.page();
    let text = page.text();
    assert!(text.contains("Agent") && text.contains("Example Corp has let it in for you"), "{text}");
    assert_eq!(rig.status(&token).await, 200);
    browser.press(&page, "Withdraw").await;
    eventually(SECOND, async || rig.status(&token).await == 401).await;
    let page = browser.go(&rig.gateway.url("/connections")).await.page();
    assert!(!page.text().contains("Agent"), "{}", page.text());
    // The client takes back its own (RFC 7009).
    let token = rig.token(json!({})).await;
    assert_eq!(rig.status(&token).await, 200);
    let mut client = Client::known_as(&rig.gateway, CLIENT, "");
    client.secret = Some(rig.secret.clone());
    assert_eq!(client.revoke(&token).await.status, 200);
    eventually(SECOND, async || rig.status(&token).await == 401).await;
}

#[tokio::test]
async fn scopes_are_those_that_provider_and_server_have_in_common() {
    let rig = Rig::with(|upstream, _, builder| {
        let policy = json!({"call": [
            {"name": "agreed", "require_consent": "Add up your numbers", "if": "mcp.tool == 'add'"},
            {"name": "dev", "allow": "'dev' in caller.groups"},
        ]});
        builder.route(
            Route::open("demo", upstream)
                .with("tool_scopes", json!({"whoami": ["demo:self"]}))
                .with("policy", policy),
        )
    })
    .await;
    let scope = async |said: Value, asked: Option<&str>| {
        let params = asked.map_or(Params::new(), |asked| Params::new().with("scope", asked));
        let answer = rig.show_with(&rig.assertion(json!({"scope": said})), params).await;
        answer.error().unwrap_or_else(|| answer.tokens().scope)
    };
    assert_eq!(scope(json!(null), None).await, "mcp:access");
    assert_eq!(scope(json!("demo:self admin mcp:access"), None).await, "mcp:access demo:self");
    assert_eq!(scope(json!("demo:self mcp:access"), Some("mcp:access")).await, "mcp:access");
    assert_eq!(scope(json!("mcp:access"), Some("mcp:access demo:self")).await, "invalid_scope");
    assert_eq!(scope(json!("admin"), None).await, "invalid_scope");
    assert_eq!(scope(json!(""), None).await, "invalid_scope");
    // What a rule asks the user for, nobody says in their place.
    assert_eq!(scope(json!("mcp:access consent:agreed"), None).await, "mcp:access");
    // Rules look at what the assertion says of the user.
    let call = async |more: Value| {
        let token = rig.token(more).await;
        let answer = rig.gateway.mcp("demo").bearer(&token).tool("echo", json!({"message": "heard"})).await;
        answer.json()["error"].is_null()
    };
    assert!(!call(json!({})).await);
    assert!(call(json!({"groups": ["dev"]})).await);
    assert!(call(json!({})).await, "as it was said last");
    assert!(!call(json!({"groups": []})).await);
}

#[tokio::test]
async fn a_connection_of_the_user_is_used_whole() {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.challenge.scope = Some("files:read".into()));
    let rig = Rig::with(|_, _, builder| builder.route(Route::oauth("demo", &upstream))).await;
    let client = Client::register(&rig.gateway).await;
    let request = client.authorization("demo");
    let mut browser = Browser::new();
    browser.go(&rig.gateway.url("/login/start?provider=corp&next=/")).await;
    let not_connected = rig.token(json!({})).await;
    assert_ne!(rig.status(&not_connected).await, 200);
    let code = browser.authorize(&client.redirect_uri, &request.url()).await.code();
    let theirs = client.redeem(&code, &request).await.tokens();
    assert_eq!(rig.status(&theirs.access_token).await, 200);
    let answer = rig.show(&rig.assertion(json!({}))).await.tokens();
    assert_eq!(answer.scope, theirs.scope);
    assert_eq!(rig.status(&answer.access_token).await, 200);
    let params = Params::new().with("scope", "mcp:access");
    let less = rig.show_with(&rig.assertion(json!({})), params).await.tokens();
    assert_eq!(less.scope, theirs.scope, "whole or not at all");
}

#[tokio::test]
async fn where_it_is_off_there_is_nothing_of_it() {
    let rig = Rig::new().await;
    let people = json!([{"client_id": CLIENT, "client_secret": {"env": "AGENT"}, "redirect_uris": ["https://a.example/b"],
        "token_endpoint_auth_method": "client_secret_post"}]);
    rig.gateway.reconfigure("oauth_server", json!({"clients": {"static": people}}));
    rig.gateway.hang_up();
    eventually(SECOND * 5, async || {
        rig.metadata("oauth-authorization-server")
            .await
            .get("authorization_grant_profiles_supported")
            .is_none()
    })
    .await;
    let metadata = rig.metadata("oauth-authorization-server").await;
    assert_eq!(metadata["grant_types_supported"], json!(["authorization_code", "refresh_token"]));
    let answer = rig.show(&rig.assertion(json!({}))).await;
    assert_refused("off", &answer, 400, "unsupported_grant_type");
}

#[tokio::test]
async fn a_provider_out_of_reach_is_no_reason_to_give_up() {
    let rig = Rig::new().await;
    rig.provider.set(|script| script.down = true);
    let assertion = rig.assertion(json!({}));
    let answer = rig.show(&assertion).await;
    assert_refused("down", &answer, 503, "temporarily_unavailable");
    assert!(answer.0.header("retry-after").is_some());
    rig.provider.set(|script| script.down = false);
    eventually(support::PATIENCE, async || rig.show(&assertion).await.status() == 200).await;
}
