//! What Pomerium's MCP gateway pins of its way to upstreams, and what was found to be wrong with it: each item that no
//! test elsewhere speaks of has one here, under its number (`tests/conformance.md` has the whole list).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::collections::HashSet;

use reqwest::Url;
use serde_json::json;
use support::authorization_server::AuthorizationServer;
use support::browser::{Arrival, Browser, Page};
use support::cimd::ClientDocuments;
use support::client::{AuthorizationRequest, Callback, Client, Tokens};
use support::cluster::Cluster;
use support::gateway::{Builder, Gateway, Route};
use support::ledger::RegisteredClient;
use support::mcp::{McpAnswer, McpRequest};
use support::redis::Redis;
use support::relay::Weather;
use support::script::{Answer, Consent, MetadataLocation, RegistrationScript, ServerMetadata, TokenFault};
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"whoami"}}"#;

/// A gateway, a client of it and the browser of alice.
struct Rig {
    gateway: Gateway,
    client: Client,
    browser: Browser,
}

impl Rig {
    async fn of(builder: Builder) -> Self {
        let gateway = builder.start().await;
        let client = Client::register(&gateway).await;
        let browser = Browser::new().trusting(&gateway.roots);
        Rig { gateway, client, browser }
    }

    /// One OAuth route `demo`.
    async fn before(upstream: &Upstream) -> Self {
        Self::of(Gateway::builder().route(Route::oauth("demo", upstream))).await
    }

    async fn sign_in(&mut self, route: &str) -> Tokens {
        self.client.sign_in(&mut self.browser, route).await
    }

    fn call(&self, route: &str, tokens: &Tokens) -> McpRequest {
        self.gateway.mcp(route).bearer(&tokens.access_token)
    }

    async fn whoami(&self, route: &str, tokens: &Tokens) -> McpAnswer {
        self.call(route, tokens).tool("whoami", json!({})).await
    }

    /// What the client gets to hear of an authorization.
    async fn callback(&mut self, route: &str) -> Callback {
        let request = self.client.authorization(route);
        let callback = self.browser.authorize(&self.client.redirect_uri, &request.url()).await;
        assert_eq!(callback.state(), Some(request.state.as_str()), "{route}");
        assert_eq!(callback.iss(), Some(self.gateway.public_url.as_str()), "{route}");
        callback
    }

    /// Walks until the upstream's authorization server sends the browser back, and stops before the callback.
    async fn answer(&mut self, client: &Client) -> (AuthorizationRequest, Url) {
        let request = client.authorization("demo");
        let callback = self.gateway.url("/oauth/upstream/callback");
        let answer = self.browser.authorize_or_stop(&callback, &request.url()).await;
        (request, answer.client())
    }

    /// Gets `url` as the redirect of the authorization server.
    async fn come_back(&mut self, url: &Url) -> Arrival {
        self.browser.stop_before(&self.client.redirect_uri);
        self.browser.go(url.as_str()).await
    }

    /// The user's own page.
    async fn connections(&mut self) -> Page {
        let page = self.browser.go(&self.gateway.url("/connections")).await.page();
        match page.forms().iter().any(|form| form.has_field("password")) {
            true => self.browser.sign_in(&page).await.page(),
            false => page,
        }
    }
}

/// Requests for metadata, as paths in their order.
fn documents(upstream: &Upstream) -> Vec<String> {
    let is_document = |request: &support::received::Received| request.path.contains("/.well-known/");
    let asked = [&upstream.requests, &upstream.authorization.requests];
    asked.iter().flat_map(|list| list.matching(is_document)).map(|request| request.path).collect()
}

fn trips(upstream: &Upstream) -> usize {
    upstream.authorization.requests.count("/authorize")
}

/// A client that the operator registered by hand.
fn know(server: &AuthorizationServer, id: &str, secret: Option<&str>) {
    let method = if secret.is_some() { "client_secret_post" } else { "none" };
    let client = RegisteredClient {
        id: id.into(),
        secret: secret.map(str::to_owned),
        method: method.into(),
        redirect_uris: Vec::new(),
        ..RegisteredClient::default()
    };
    server.ledger(|ledger| ledger.clients.insert(id.into(), client));
}

/// The challenge is ours, and names nothing of the upstream's.
#[track_caller]
fn assert_own_challenge(gateway: &Gateway, answer: &McpAnswer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.body);
    let metadata = gateway.url("/.well-known/oauth-protected-resource/demo");
    assert_eq!(answer.challenge("resource_metadata"), Some(metadata));
    let all = format!("{:?}{}", answer.headers, answer.body);
    assert!(!all.contains("of-the-upstream"), "{all}");
}

// === the request ===

#[tokio::test]
async fn pom_16_a_token_is_injected_where_there_is_one_and_no_header_where_there_is_none() {
    let (upstream, open) = (Upstream::start().await, Upstream::open().await);
    let builder =
        Gateway::builder().route(Route::oauth("demo", &upstream)).route(Route::oauth("open", &open));
    let mut rig = Rig::of(builder).await;
    let tokens = rig.sign_in("demo").await;
    assert_eq!(rig.whoami("demo", &tokens).await.tool_text(), "upstream-user");
    let injected = upstream.calls().pop().unwrap();
    assert_eq!(injected.headers.get_all("authorization").iter().count(), 1);
    let token = injected.bearer().unwrap();
    assert!(upstream.authorization.identify(&token).is_some(), "{token}");
    let tokens = rig.sign_in("open").await;
    open.requests.clear();
    assert_eq!(rig.whoami("open", &tokens).await.tool_text(), "nobody");
    assert_eq!(open.calls()[0].header("authorization"), None, "ours stays here, and there is no other");
}

#[tokio::test]
async fn pom_16_a_lookup_that_fails_sends_the_token_that_is_known_or_nothing_at_all() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let (cluster, relays) = Cluster::behind_relays(2, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let whoami = async |instance: usize| cluster.call(instance, &tokens).tool("whoami", json!({})).await;
    // One instance has the token in memory, the other has never seen this user.
    eventually(PATIENCE, async || {
        let before = redis.calls("get");
        assert_eq!(whoami(0).await.status, 200);
        redis.calls("get") == before
    })
    .await;
    relays.iter().for_each(|relay| relay.set(Weather::Down));
    assert_eq!(whoami(0).await.tool_text(), "upstream-user");
    let calls = upstream.calls().len();
    for _ in 0..3 {
        let later = whoami(1).await;
        assert_eq!(later.status, 503, "{}", later.body);
        assert!(later.header("retry-after").is_some() && later.header("www-authenticate").is_none());
    }
    assert_eq!(upstream.calls().len(), calls, "not without a token either");
    relays.iter().for_each(|relay| relay.set(Weather::Fair));
    eventually(PATIENCE, async || whoami(1).await.status == 200).await;
}

#[tokio::test]
async fn pom_17_each_user_has_a_token_of_their_own_at_each_route() {
    let upstream = Upstream::start().await;
    let builder =
        Gateway::builder().route(Route::oauth("one", &upstream)).route(Route::oauth("two", &upstream));
    let mut rig = Rig::of(builder).await;
    let mut everybody = Vec::new();
    for (name, mut browser) in [("alice", Browser::new()), ("bob", Browser::of("bob"))] {
        for route in ["one", "two"] {
            let user = format!("{name} at {route}");
            upstream.set_authorization(|script| script.user = user.clone());
            let tokens = rig.client.sign_in(&mut browser, route).await;
            everybody.push((user, route, tokens));
        }
    }
    assert_eq!(trips(&upstream), 4);
    rig.gateway.restart().await;
    for _ in 0..2 {
        for (user, route, tokens) in &everybody {
            assert_eq!(&rig.whoami(route, tokens).await.tool_text(), user);
        }
    }
    let sent: HashSet<_> = upstream.calls_with_token().iter().map(|call| call.bearer().unwrap()).collect();
    assert_eq!(sent.len(), 4);
}

// === the answer ===

#[tokio::test]
async fn pom_18_a_401_becomes_our_challenge_and_the_authorization_waits_for_the_user() {
    let upstream = Upstream::start().await;
    let mut rig = Rig::before(&upstream).await;
    let tokens = rig.sign_in("demo").await;
    assert_eq!(rig.whoami("demo", &tokens).await.status, 200);
    upstream.authorization.revoke_everything();
    upstream.refuse_current_tokens();
    let challenge = r#"Bearer realm="of-the-upstream", resource_metadata="https://of-the-upstream.test/""#;
    let headers =
        [("www-authenticate", challenge), ("x-of-the-upstream", "1"), ("content-type", "text/plain")];
    upstream.set(|script| script.unauthorized = Some(Answer::http(401, &headers, "words of-the-upstream")));
    upstream.authorization.requests.clear();
    upstream.requests.clear();
    for _ in 0..2 {
        let answer = rig.whoami("demo", &tokens).await;
        assert_own_challenge(&rig.gateway, &answer, 401);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let asked = &upstream.authorization.requests;
    assert_eq!((asked.count("/register"), asked.count("/authorize")), (0, 0), "nobody has consented to that");
    assert_eq!(documents(&upstream), Vec::<String>::new(), "nor is anything looked up for a mere 401");
    upstream.set(|script| script.unauthorized = None);
    let tokens = rig.sign_in("demo").await;
    assert_eq!(trips(&upstream), 1);
    assert!(!documents(&upstream).is_empty(), "what was known before counts no longer");
    assert_eq!(rig.whoami("demo", &tokens).await.status, 200);
}

#[tokio::test]
async fn pom_19_insufficient_scope_becomes_our_challenge_and_no_other_403_does() {
    let upstream = Upstream::start().await;
    let mut rig = Rig::before(&upstream).await;
    let tokens = rig.sign_in("demo").await;
    for challenge in [
        r#"Bearer error="insufficient_scope", scope="files:write", realm="of-the-upstream""#,
        r#"bearer scope=files:write, error=insufficient_scope, resource_metadata="https://of-the-upstream.test/""#,
        r#"Basic realm="of-the-upstream", Bearer scope="files:write", error="insufficient_scope""#,
    ] {
        let headers = [("www-authenticate", challenge), ("x-of-the-upstream", "1")];
        upstream.answer_next(Answer::http(403, &headers, "words of-the-upstream"));
        let answer = rig.call("demo", &tokens).post(CALL).await;
        assert_own_challenge(&rig.gateway, &answer, 403);
        assert_eq!(answer.challenge("error").as_deref(), Some("insufficient_scope"), "{challenge}");
        let scope = answer.challenge("scope").unwrap();
        assert!(scope.split(' ').any(|name| name == "files:write"), "{challenge}: {scope}");
    }
    for challenge in [
        None,
        Some(r#"Basic realm="x""#),
        Some("Bearer"),
        Some(r#"Bearer scope="files:write""#),
        Some(r#"Bearer error="access_denied""#),
        Some(r#"Digest error="insufficient_scope""#),
    ] {
        let mut headers = vec![("content-type", "application/json"), ("x-of-the-upstream", "kept")];
        headers.extend(challenge.map(|challenge| ("www-authenticate", challenge)));
        let body = r#"{ "why":"not you" }"#;
        upstream.answer_next(Answer::http(403, &headers, body));
        let answer = rig.call("demo", &tokens).post(CALL).await;
        assert_eq!((answer.status, answer.body.as_str()), (403, body), "{challenge:?}");
        assert_eq!(answer.header("x-of-the-upstream"), Some("kept"), "{challenge:?}");
        assert_eq!(
            answer.header("www-authenticate"),
            None,
            "{challenge:?}: whose, the client could not tell"
        );
    }
    assert_eq!(upstream.authorization.token_requests("refresh_token").len(), 0);
    assert_eq!(rig.whoami("demo", &tokens).await.status, 200);
}

#[tokio::test]
async fn pom_20_any_other_answer_passes_untouched() {
    let upstream = Upstream::start().await;
    let mut rig = Rig::before(&upstream).await;
    let tokens = rig.sign_in("demo").await;
    for status in [200, 202, 302, 400, 402, 404, 405, 407, 409, 410, 418, 429, 500, 501, 502, 503, 504] {
        let headers = [
            ("content-type", "application/json"),
            ("x-of-the-upstream", "kept"),
            ("retry-after", "7"),
            ("www-authenticate", r#"Bearer error="invalid_token", scope="more""#),
        ];
        let body = r#"{ "jsonrpc":"2.0", "id":1,"error":{"code":-32001,"message":"Unauthorized"} }"#;
        upstream.answer_next(Answer::http(status, &headers, body));
        let answer = rig.call("demo", &tokens).post(CALL).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, body));
        for (name, value) in &headers[..3] {
            assert_eq!(answer.header(name), Some(*value), "{status} {name}");
        }
    }
    // None of them was taken for a refusal of the token.
    assert_eq!(upstream.authorization.token_requests("refresh_token").len(), 0);
    assert_eq!(rig.whoami("demo", &tokens).await.status, 200);
    assert_eq!(rig.client.refresh(&tokens.refresh_token).await.status(), 200);
}

// === discovery and who we are ===

#[tokio::test]
async fn pom_25_a_401_leads_to_the_documents_of_the_whole_upstream_path() {
    const DOCUMENT: &str = "/.well-known/oauth-protected-resource/team/v1/mcp";
    let upstream = Upstream::open().await;
    upstream.set(|script| {
        script.path = "/team/v1/mcp".into();
        script.challenge.with_metadata = false;
    });
    let mut rig = Rig::before(&upstream).await;
    let tokens = rig.sign_in("demo").await;
    assert_eq!(rig.whoami("demo", &tokens).await.tool_text(), "nobody");
    upstream.set(|script| script.requires_auth = true);
    assert_eq!(rig.gateway.mcp("demo?a=b").bearer(&tokens.access_token).post(CALL).await.status, 401);
    let tokens = rig.sign_in("demo").await;
    assert_eq!(rig.whoami("demo", &tokens).await.tool_text(), "upstream-user");
    assert_eq!(documents(&upstream), [DOCUMENT, "/.well-known/oauth-authorization-server"]);
    let asked = upstream.authorization.requests.last_to("/authorize");
    assert_eq!(asked.parameter("resource"), Some(format!("{}/team/v1/mcp", upstream.origin)));
}

#[tokio::test]
async fn pom_26_a_configured_client_comes_before_a_document_and_a_document_before_registration() {
    const DOCUMENT: &str = "https://mcp.example.com/oauth/client.json";
    let mut builder = Gateway::builder().with("oauth_client.client_metadata_url", json!(DOCUMENT));
    let mut upstreams = Vec::new();
    // What the server takes, what is configured, and who we are then.
    for (name, cimd, configured, expected) in [
        ("configured", true, Some("our id"), Some("our id")),
        ("document", true, None, Some(DOCUMENT)),
        ("registered", false, None, None),
    ] {
        let upstream = Upstream::start().await;
        upstream.set_authorization(|script| script.cimd = cimd);
        know(&upstream.authorization, "our id", None);
        know(&upstream.authorization, DOCUMENT, None);
        let route = Route::oauth(name, &upstream);
        builder = builder.route(match configured {
            Some(id) => route.with("credential.client_id", json!(id)),
            None => route,
        });
        upstreams.push((name, upstream, expected));
    }
    let mut rig = Rig::of(builder).await;
    for (name, upstream, expected) in &upstreams {
        let tokens = rig.sign_in(name).await;
        assert_eq!(rig.whoami(name, &tokens).await.tool_text(), "upstream-user", "{name}");
        let id = upstream.authorization.requests.last_to("/authorize").parameter("client_id").unwrap();
        let registered = upstream.authorization.registrations();
        match expected {
            Some(expected) => assert_eq!((id.as_str(), registered), (*expected, 0), "{name}"),
            None => assert_eq!((id.starts_with("client-"), registered), (true, 1), "{id}"),
        }
    }
}

#[tokio::test]
async fn pom_26_without_a_usable_identity_nobody_is_sent_to_the_authorization_server() {
    let mut builder = Gateway::builder();
    let mut upstreams = Vec::new();
    let answered = |status, body| {
        Some(RegistrationScript { refusal: Some((status, body)), ..RegistrationScript::default() })
    };
    for (name, registration) in [
        ("none", None),
        ("off", answered(403, json!({"error": "access_denied"}))),
        ("empty", answered(201, json!({"client_id": ""}))),
        ("missing", answered(201, json!({"client_name": "x"}))),
    ] {
        let upstream = Upstream::start().await;
        upstream.set_authorization(|script| script.registration = registration);
        builder = builder.route(Route::oauth(name, &upstream));
        upstreams.push((name, upstream));
    }
    let mut rig = Rig::of(builder).await;
    for (name, upstream) in &upstreams {
        let callback = rig.callback(name).await;
        assert_eq!(callback.error(), Some("server_error"), "{name}: {}", callback.url);
        assert_eq!(trips(upstream), 0, "{name}");
    }
}

#[tokio::test]
async fn pom_27_our_client_documents_are_there_for_everybody_and_may_be_kept() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(|script| script.cimd = true);
    let mut rig = Rig::of(Gateway::builder().tls().route(Route::oauth("demo", &upstream))).await;
    // The scripted server does not trust our certificate, so the trip ends there; the document is read here.
    let request = rig.client.authorization("demo");
    let page = rig.browser.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    rig.browser.consent_allow(&page).await.page();
    let asked = upstream.authorization.requests.last_to("/authorize");
    let id = asked.parameter("client_id").unwrap();
    // Without a cookie or any other proof.
    let answer = McpAnswer::of(rig.gateway.http.get(&id).send().await.unwrap()).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let kept = answer.header("cache-control").unwrap();
    let seconds =
        kept.split("max-age=").nth(1).and_then(|rest| rest.split(',').next()?.trim().parse::<u32>().ok());
    assert!(seconds.is_some_and(|seconds| seconds > 0), "{kept}");
    assert!(!kept.contains("no-") && !kept.contains("private"), "{kept}");
    let document = answer.json();
    assert_eq!(document["client_id"], json!(id));
    assert_eq!(document["redirect_uris"], json!([asked.parameter("redirect_uri").unwrap()]));
    assert_eq!(document["grant_types"], json!(["authorization_code", "refresh_token"]));
    assert_eq!(document["response_types"], json!(["code"]));
    assert_eq!(document["token_endpoint_auth_method"], "none");
    assert!(document["client_name"].as_str().is_some_and(|name| !name.is_empty()));
    for name in ["", "demo.json", "short.json", "ABCDEFGHIJKLMNOP.json", "abcdefghijklmnop", "../client.json"]
    {
        let url = rig.gateway.url(&format!("/oauth/client/{name}"));
        let answer = rig.gateway.http.get(&url).send().await.unwrap();
        // The last one is what it says after all.
        let expected = if name.starts_with("..") { 200 } else { 404 };
        assert_eq!(answer.status().as_u16(), expected, "{name}");
    }
}

#[tokio::test]
async fn pom_30_endpoints_need_both_to_save_discovery_and_the_secret_stays_in_the_configuration() {
    let mut builder = Gateway::builder().env("SECRET", "CANARY_first");
    let mut upstreams = Vec::new();
    for (name, endpoints, looks) in [
        ("both", &["authorization", "token"][..], false),
        ("token", &["token"], true),
        ("authorization", &["authorization"], true),
        ("neither", &[], true),
    ] {
        let upstream = Upstream::start().await;
        know(&upstream.authorization, "by-hand", Some("CANARY_first"));
        let mut route = Route::oauth(name, &upstream)
            .with("credential.client_id", json!("by-hand"))
            .with("credential.client_secret", json!({"env": "SECRET"}))
            .with("credential.token_endpoint_auth_method", json!("client_secret_post"));
        for endpoint in endpoints {
            let path = if *endpoint == "token" { "token" } else { "authorize" };
            let url = format!("{}/{path}", upstream.origin);
            route = route.with(&format!("credential.{endpoint}_endpoint"), json!(url));
        }
        builder = builder.route(route);
        upstreams.push((name, upstream, looks));
    }
    let mut rig = Rig::of(builder).await;
    let mut connected = Vec::new();
    for (name, upstream, looks) in &upstreams {
        let tokens = rig.sign_in(name).await;
        assert_eq!(!documents(upstream).is_empty(), *looks, "{name}: {:?}", documents(upstream));
        assert_eq!(upstream.authorization.registrations(), 0, "{name}");
        let exchange = upstream.authorization.requests.last_to("/token");
        assert_eq!(exchange.form("client_secret").as_deref(), Some("CANARY_first"), "{name}");
        upstream.refuse_current_tokens();
        assert_eq!(rig.whoami(name, &tokens).await.status, 200, "{name}");
        let refresh = upstream.authorization.requests.last_to("/token");
        assert_eq!(refresh.form("client_secret").as_deref(), Some("CANARY_first"), "{name}");
        connected.push(tokens);
    }
    // Whoever was connected under the old secret is renewed with the new one, where the configuration says whose it is.
    rig.gateway.set_env("SECRET", Some("CANARY_second"));
    rig.gateway.restart().await;
    let named = upstreams.iter().zip(&connected).filter(|((name, ..), _)| ["both", "token"].contains(name));
    for ((name, upstream, _), tokens) in named {
        know(&upstream.authorization, "by-hand", Some("CANARY_second"));
        upstream.refuse_current_tokens();
        assert_eq!(rig.whoami(name, tokens).await.status, 200, "{name}");
        let refresh = upstream.authorization.requests.last_to("/token");
        assert_eq!(refresh.form("client_secret").as_deref(), Some("CANARY_second"), "{name}");
    }
    rig.gateway.output.assert_no_secret();
}

// === the trip ===

#[tokio::test]
async fn pom_32_an_authorization_under_way_begins_after_consent_and_every_end_is_the_end() {
    let upstream = Upstream::start().await;
    let mut rig = Rig::before(&upstream).await;
    let client = rig.client.clone();
    let request = client.authorization("demo");
    rig.browser.go_to_consent(&client.redirect_uri, &request.url()).await;
    assert_eq!(trips(&upstream), 0, "before consent");
    // How it ends, and what the client hears then.
    for (how, error) in [
        ("the code is not taken", Some("server_error")),
        ("the token endpoint is down", Some("temporarily_unavailable")),
        ("another issuer", Some("server_error")),
        ("no issuer", Some("server_error")),
        ("success", None),
    ] {
        let (_, right) = rig.answer(&client).await;
        let mut answer = right.clone();
        let without = Callback::of(&right).params.without("iss");
        let fault = |fault| upstream.set_authorization(|script| script.token_faults.push_back(fault));
        match how {
            "the code is not taken" => fault(TokenFault::error("invalid_grant")),
            "the token endpoint is down" => fault(TokenFault::answer(500, &[], "oops")),
            "another issuer" => {
                answer.set_query(Some(&without.with("iss", "https://evil.example").encoded()));
            }
            "no issuer" => answer.set_query(Some(&without.encoded())),
            _ => {}
        }
        let callback = Callback::of(&rig.come_back(&answer).await.client());
        assert_eq!(callback.error(), error, "{how}: {}", callback.url);
        let sent = upstream.authorization.requests.count("/token");
        let again = rig.come_back(&right).await.page();
        assert_eq!(again.status, 400, "{how}: {}", again.text());
        assert_eq!(upstream.authorization.requests.count("/token"), sent, "{how}: its code went nowhere");
    }
    assert_eq!(upstream.authorization.codes_redeemed(), 1);
}

#[tokio::test]
async fn pom_36_one_browser_trip_serves_both_sign_ins() {
    let upstream = Upstream::start().await;
    let mut rig = Rig::before(&upstream).await;
    let request = rig.client.authorization("demo");
    let callback = rig.browser.authorize(&rig.client.redirect_uri, &request.url()).await;
    assert_eq!(callback.state(), Some(request.state.as_str()));
    assert_eq!(callback.iss(), Some(rig.gateway.public_url.as_str()));
    let passed = |prefix: &str| {
        let hops = &rig.browser.hops;
        hops.iter().filter(|hop| hop.url.as_str().starts_with(prefix)).count()
    };
    assert_eq!(passed(&rig.gateway.url("/oauth/upstream/callback/")), 1);
    assert_eq!(passed(&format!("{}/authorize", upstream.origin)), 1);
    assert_eq!(passed(&upstream.url()), 0, "nobody has any business there");
    let tokens = rig.client.redeem(&callback.code(), &request).await.tokens();
    assert_eq!(rig.whoami("demo", &tokens).await.tool_text(), "upstream-user");
    assert_eq!((trips(&upstream), upstream.authorization.codes_redeemed()), (1, 1));
}

#[tokio::test]
async fn pom_37_an_upstream_without_documents_may_be_open_and_one_with_bad_ones_is_not() {
    let nothing = |upstream: &Upstream| {
        upstream.set(|script| script.resource_metadata.location = MetadataLocation::Nowhere);
        upstream.set_authorization(|script| script.metadata = ServerMetadata::Nowhere);
    };
    let (open, first, silent) = (Upstream::open().await, Upstream::start().await, Upstream::start().await);
    nothing(&open);
    nothing(&first);
    silent.set(|script| script.unauthorized = Some(Answer::Hangup));
    let mut builder = Gateway::builder()
        .route(Route::oauth("open", &open))
        .route(Route::oauth("first", &first))
        .route(Route::oauth("silent", &silent));
    type Spoil = fn(&Upstream);
    let spoils: [(&str, Spoil); 3] = [
        ("issuer", |upstream| {
            upstream.set_authorization(|script| {
                script.metadata_patch = json!({"issuer": "https://evil.example"})
            });
        }),
        ("resource", |upstream| {
            upstream
                .set(|script| script.resource_metadata.resource = Some("https://evil.example/mcp".into()));
        }),
        ("address", |upstream| {
            let hosts = vec!["https://169.254.169.254".into()];
            upstream.set(|script| script.resource_metadata.authorization_servers = Some(hosts));
        }),
    ];
    let mut refused = Vec::new();
    for (name, spoil) in spoils {
        let upstream = Upstream::start().await;
        spoil(&upstream);
        builder = builder.route(Route::oauth(name, &upstream));
        refused.push((name, upstream));
    }
    let mut rig = Rig::of(builder).await;
    for (route, user) in [("open", "nobody"), ("first", "upstream-user")] {
        let tokens = rig.sign_in(route).await;
        assert_eq!(rig.whoami(route, &tokens).await.tool_text(), user, "{route}");
    }
    // Who does not answer has said nothing either; the call that follows finds out.
    rig.sign_in("silent").await;
    for (name, upstream) in &refused {
        let callback = rig.callback(name).await;
        assert_eq!(callback.error(), Some("server_error"), "{name}: {}", callback.url);
        assert_eq!(trips(upstream), 0, "{name}");
    }
}

// === what was found to be wrong ===

#[tokio::test]
async fn pom_b2_who_has_to_register_is_registered_before_anybody_is_sent_there() {
    let upstream = Upstream::open().await;
    let mut rig = Rig::before(&upstream).await;
    let tokens = rig.sign_in("demo").await;
    upstream.set(|script| script.requires_auth = true);
    assert_eq!(rig.whoami("demo", &tokens).await.status, 401);
    assert_eq!(upstream.authorization.registrations(), 0);
    let tokens = rig.sign_in("demo").await;
    let asked = upstream.authorization.requests.to("/authorize");
    let ids: Vec<_> = asked.iter().map(|asked| asked.parameter("client_id").unwrap_or_default()).collect();
    assert_eq!((ids.len(), upstream.authorization.registrations()), (1, 1));
    assert!(ids[0].starts_with("client-"), "{ids:?}");
    assert_eq!(rig.whoami("demo", &tokens).await.tool_text(), "upstream-user");
}

#[tokio::test]
async fn pom_b3_a_port_in_our_address_hides_no_record() {
    let upstream = Upstream::start().await;
    let mut rig = Rig::before(&upstream).await;
    assert!(Url::parse(&rig.gateway.public_url).unwrap().port().is_some());
    let tokens = rig.sign_in("demo").await;
    let asked = upstream.authorization.requests.last_to("/authorize");
    assert!(asked.parameter("redirect_uri").unwrap().starts_with(&rig.gateway.public_url));
    // The connection is found by the next client, by the page, and by its button.
    Client::register(&rig.gateway).await.sign_in(&mut rig.browser, "demo").await;
    assert_eq!(trips(&upstream), 1);
    let page = rig.connections().await;
    assert!(page.text().contains("Connected with your account there"), "{}", page.text());
    rig.browser.submit(&page, &page.form_to("/connections/demo/disconnect"), &[]).await;
    assert_eq!(rig.whoami("demo", &tokens).await.status, 401);
    let tokens = rig.sign_in("demo").await;
    assert_eq!(trips(&upstream), 2);
    assert_eq!(rig.whoami("demo", &tokens).await.status, 200);
}

#[tokio::test]
async fn pom_b4_of_two_clients_at_once_each_gets_its_own_answer() {
    let upstream = Upstream::start().await;
    let mut rig = Rig::before(&upstream).await;
    let (one, two) = (rig.client.clone(), Client::register(&rig.gateway).await);
    let (first_request, first) = rig.answer(&one).await;
    let (second_request, second) = rig.answer(&two).await;
    assert_ne!(Callback::of(&first).state(), Callback::of(&second).state());
    // In the order in which the tabs were opened, which is where the mix-up was.
    for (client, other, request, answer) in
        [(&one, &two, &first_request, &first), (&two, &one, &second_request, &second)]
    {
        rig.browser.stop_before(&client.redirect_uri);
        let callback = Callback::of(&rig.browser.go(answer.as_str()).await.client());
        assert_eq!(callback.state(), Some(request.state.as_str()));
        let stolen = other.redeem(&callback.code(), request).await;
        assert_eq!(stolen.error().as_deref(), Some("invalid_grant"));
        let tokens = client.redeem(&callback.code(), request).await.tokens();
        assert_eq!(rig.whoami("demo", &tokens).await.tool_text(), "upstream-user");
    }
}

#[tokio::test]
async fn pom_b5_an_upstream_account_is_linked_to_nobody_but_who_signed_in_there() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(|script| script.consent = Consent::Page);
    let mut rig = Rig::before(&upstream).await;
    // The attacker begins, and leaves the sign-in at the upstream to somebody else.
    let mut attacker = Browser::of("bob");
    let request = rig.client.authorization("demo");
    let page = attacker.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    let link = attacker.consent_allow(&page).await.page().url;
    upstream.set_authorization(|script| script.user = "the victim".into());
    for is_signed_in in [false, true] {
        if is_signed_in {
            rig.connections().await;
        }
        rig.browser.stop_before(&rig.client.redirect_uri);
        let at_upstream = rig.browser.go(link.as_str()).await.page();
        let refused = rig.browser.press(&at_upstream, "allow").await.page();
        assert_eq!(refused.status, 403, "{}", refused.text());
        assert!(refused.url.as_str().starts_with(&rig.gateway.url("/oauth/upstream/callback/")));
    }
    assert_eq!(upstream.authorization.requests.count("/token"), 0, "no code was taken");
    // The attacker has nothing but an authorization of their own to finish.
    upstream.set_authorization(|script| script.user = "the attacker".into());
    attacker.stop_before(&rig.client.redirect_uri);
    let at_upstream = attacker.go(link.as_str()).await.page();
    let callback = Callback::of(&attacker.press(&at_upstream, "allow").await.client());
    let tokens = rig.client.redeem(&callback.code(), &request).await.tokens();
    assert_eq!(rig.whoami("demo", &tokens).await.tool_text(), "the attacker");
}

#[tokio::test]
async fn pom_b6_the_secret_of_a_registration_is_good_for_refreshes_too() {
    for method in ["client_secret_post", "client_secret_basic"] {
        let upstream = Upstream::start().await;
        upstream.set_authorization(|script| {
            script.registration =
                Some(RegistrationScript { method: Some(method.into()), ..RegistrationScript::default() });
        });
        let mut rig = Rig::before(&upstream).await;
        let tokens = rig.sign_in("demo").await;
        for restarts in [false, true] {
            if restarts {
                rig.gateway.restart().await;
            }
            upstream.refuse_current_tokens();
            assert_eq!(rig.whoami("demo", &tokens).await.status, 200, "{method}");
        }
        // The scripted server takes no other proof than the registered one.
        assert_eq!((upstream.authorization.refreshes(), upstream.authorization.registrations()), (2, 1));
        assert_eq!(trips(&upstream), 1, "{method}: nobody was asked again");
    }
}

#[tokio::test]
async fn pom_b8_scheme_and_port_of_the_upstream_are_the_upstreams_own() {
    let upstream = Upstream::open().await;
    let mut rig = Rig::of(Gateway::builder().tls().route(Route::oauth("demo", &upstream))).await;
    let tokens = rig.sign_in("demo").await;
    upstream.set(|script| script.requires_auth = true);
    // Here it is https, there it is http, and what is in front of us may say anything.
    let call =
        rig.call("demo", &tokens).header("x-forwarded-proto", "https").header("x-forwarded-port", "443");
    assert_own_challenge(&rig.gateway, &call.header("forwarded", "proto=https").post(CALL).await, 401);
    let tokens = rig.sign_in("demo").await;
    let resource = upstream.authorization.requests.last_to("/authorize").parameter("resource").unwrap();
    assert_eq!(resource, upstream.url());
    assert!(resource.starts_with("http://127.0.0.1:"), "{resource}");
    assert_eq!(rig.whoami("demo", &tokens).await.tool_text(), "upstream-user");
}

#[tokio::test]
async fn pom_b10_every_record_of_a_sign_in_ends_some_day() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(1, &redis, &upstream).await;
    let gateway = &cluster.instances[0];
    // Finished, abandoned at the consent page, and abandoned at the upstream.
    let (client, tokens) = cluster.sign_in(0).await;
    upstream.refuse_current_tokens();
    assert_eq!(cluster.call(0, &tokens).tool("whoami", json!({})).await.status, 200);
    client.refresh(&tokens.refresh_token).await.tokens();
    let mut bob = Browser::of("bob").through(gateway);
    bob.go_to_consent(&client.redirect_uri, &client.authorization("demo").url()).await;
    let callback = gateway.url("/oauth/upstream/callback");
    bob.authorize_or_stop(&callback, &client.authorization("demo").url()).await.client();
    let keys = redis.cli(&["KEYS", "*"]);
    let records: Vec<&str> = keys.lines().filter(|key| key.matches(':').count() >= 2).collect();
    let kinds: HashSet<&str> = records.iter().filter_map(|key| key.rsplit(':').nth(1)).collect();
    for kind in ["client", "session", "flow", "grant", "connection", "pending"] {
        assert!(kinds.contains(kind), "{kind}: {records:?}");
    }
    // Beside them are indexes, which are swept, and logs, which are cut.
    let records = records.into_iter().filter(|key| !key.contains(":living-") && !key.ends_with(":log"));
    let records: Vec<&str> = records.collect();
    let endless: Vec<_> = records.iter().filter(|key| redis.cli(&["PTTL", key]).trim() == "-1").collect();
    assert!(endless.is_empty(), "{endless:?} of {records:?}");
}

#[tokio::test]
async fn pom_b11_redirect_uris_and_pkce_are_taken_at_their_word() {
    let upstream = Upstream::open().await;
    let mut rig = Rig::of(Gateway::builder().route(Route::open("demo", &upstream))).await;
    let client = rig.client.clone();
    // Left out, it is the registered one, absolute as it was registered.
    let request = client.authorization("demo").without("redirect_uri");
    let callback = rig.browser.authorize(&client.redirect_uri, &request.url()).await;
    assert!(callback.url.as_str().starts_with(&format!("{}?", client.redirect_uri)), "{}", callback.url);
    // At the token endpoint it is compared.
    let moved =
        client.redemption(&callback.code(), &request).with("redirect_uri", "http://127.0.0.1:9/other");
    assert_eq!(client.token(&moved).await.error().as_deref(), Some("invalid_grant"));
    client.redeem(&callback.code(), &request).await.tokens();
    // PKCE with S256 and nothing else, for clients with a secret as well.
    let document = json!({"redirect_uris": ["https://client.example/cb"], "token_endpoint_auth_method": "client_secret_post"});
    let registered = Client::register_with(&rig.gateway, &document).await.json();
    let mut confidential = Client::known_as(
        &rig.gateway,
        registered["client_id"].as_str().unwrap(),
        "https://client.example/cb",
    );
    confidential.secret = registered["client_secret"].as_str().map(str::to_owned);
    assert!(confidential.secret.is_some());
    for client in [&client, &confidential] {
        let good = client.authorization("demo");
        for bad in [
            good.clone().with("code_challenge_method", "plain"),
            good.clone().without("code_challenge_method"),
            good.clone().without("code_challenge").without("code_challenge_method"),
        ] {
            // A client that only a stranger vouches for is told on a page that leads back to it.
            match rig.browser.authorize_or_stop(&client.redirect_uri, &bad.url()).await {
                Arrival::Client(url) => {
                    assert_eq!(Callback::of(&url).error(), Some("invalid_request"), "{url}")
                }
                Arrival::Page(page) => {
                    assert_eq!(page.status, 400, "{}", page.text());
                    let back = Callback::of(&Url::parse(&page.way_back().unwrap()).unwrap());
                    assert_eq!(back.error(), Some("invalid_request"), "{}", back.url);
                }
            }
        }
        let callback = rig.browser.authorize(&client.redirect_uri, &good.url()).await;
        let guessed = client.redemption(&callback.code(), &good);
        let guessed = guessed.without("code_verifier");
        assert_ne!(client.token(&guessed).await.status(), 200, "without the verifier");
        client.redeem(&callback.code(), &good).await.tokens();
    }
    // The other loopback address is one too.
    let document = json!({"redirect_uris": ["http://[::1]/cb"], "token_endpoint_auth_method": "none"});
    let registered = Client::register_with(&rig.gateway, &document).await.json();
    let id = registered["client_id"].as_str().unwrap_or_else(|| panic!("{registered}"));
    let native = Client::known_as(&rig.gateway, id, "http://[::1]:50123/cb");
    native.sign_in(&mut rig.browser, "demo").await;
}

#[tokio::test]
async fn pom_b14_what_cannot_be_judged_is_refused_where_a_tool_has_a_rule() {
    let upstream = Upstream::open().await;
    let route = Route::open("demo", &upstream).with("tool_scopes", json!({"echo": ["demo:echo"]}));
    let mut rig = Rig::of(Gateway::builder().route(route)).await;
    let tokens = rig.sign_in("demo").await;
    let call = |name: &str| json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": name, "arguments": {}}});
    let allowed = call("whoami").to_string();
    let long = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call",
        "params": {"arguments": {"message": "x".repeat(200_000)}, "name": "echo"}});
    let ruled = call("echo").to_string();
    for (what, content_type, body) in [
        ("plain", "application/json", ruled.clone()),
        ("longer than any buffer", "application/json", long.to_string()),
        ("in a batch", "application/json", json!([call("whoami"), call("echo")]).to_string()),
        ("alone in a batch", "application/json", json!([call("echo")]).to_string()),
        (
            "named twice",
            "application/json",
            ruled.replace(r#""name":"echo""#, r#""name":"whoami","name":"echo""#),
        ),
        ("in other letters", "application/json", ruled.replace(r#""name":"#, r#""Name":"#)),
        ("escaped", "application/json", ruled.replace("echo", "ec\\u0068o")),
        ("behind something else", "application/json", format!("{allowed}{ruled}")),
        ("of another type", "text/plain", ruled.clone()),
        ("of a type with parameters", "application/json; charset=utf-16", ruled.clone()),
        ("cut off", "application/json", ruled[..ruled.len() - 1].to_owned()),
        ("no JSON", "application/json", "echo".into()),
    ] {
        upstream.requests.clear();
        let answer = rig.call("demo", &tokens).header("content-type", content_type).post(&body).await;
        assert!(matches!(answer.status, 400 | 403 | 415), "{what}: {} {}", answer.status, answer.body);
        let arrived = upstream.calls();
        assert!(arrived.iter().all(|call| call.body.is_empty()), "{what}: {:?}", arrived[0].text());
    }
    assert_eq!(rig.call("demo", &tokens).post(&allowed).await.status, 200, "what has no rule goes through");
}

#[tokio::test]
async fn pom_b19_a_client_whose_site_is_down_goes_on_refreshing() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let builder = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .with("oauth_server.clients.cimd.allow_private", json!(true));
    let mut rig = Rig::of(builder).await;
    let client = documents.client(&rig.gateway);
    let mut tokens = client.sign_in(&mut rig.browser, "demo").await;
    let request = client.authorization("demo");
    let code = rig.browser.authorize(&client.redirect_uri, &request.url()).await.code();
    documents.server.stop();
    client.redeem(&code, &request).await.tokens();
    for _ in 0..3 {
        tokens = client.refresh(&tokens.refresh_token).await.tokens();
    }
    assert_eq!(rig.whoami("demo", &tokens).await.status, 200);
    // An instance that has never read the document goes by the grant all the same.
    rig.gateway.restart().await;
    let tokens = client.refresh(&tokens.refresh_token).await.tokens();
    assert_eq!(rig.whoami("demo", &tokens).await.status, 200);
}

#[tokio::test]
async fn pom_b20_a_no_at_the_upstream_reaches_the_client_and_uses_the_state_up() {
    let upstream = Upstream::start().await;
    let mut rig = Rig::before(&upstream).await;
    let client = rig.client.clone();
    upstream.set_authorization(|script| script.consent = Consent::Deny("access_denied".into()));
    let (request, no) = rig.answer(&client).await;
    let callback = Callback::of(&rig.come_back(&no).await.client());
    assert_eq!(callback.error(), Some("access_denied"));
    assert_eq!(callback.state(), Some(request.state.as_str()));
    assert_eq!(callback.iss(), Some(rig.gateway.public_url.as_str()));
    // The same state with a code, such as one of another account.
    let mut late = no.clone();
    let params = Callback::of(&no).params.without("error").with("code", "CANARY_late");
    late.set_query(Some(&params.encoded()));
    for answer in [&no, &late] {
        let page = rig.come_back(answer).await.page();
        assert_eq!(page.status, 400, "{}", page.text());
    }
    assert_eq!(upstream.authorization.requests.count("/token"), 0);
}

#[tokio::test]
async fn pom_b21_who_connects_without_a_client_comes_back_to_a_page_of_ours() {
    let upstream = Upstream::start().await;
    let mut rig = Rig::before(&upstream).await;
    let page = rig.connections().await;
    let page = rig.browser.submit(&page, &page.form_to("/connections/demo/connect"), &[]).await.page();
    assert_eq!((page.status, page.url.as_str()), (200, rig.gateway.url("/connections").as_str()));
    assert!(page.text().contains("Connected with your account there"), "{}", page.text());
    assert_eq!(trips(&upstream), 1);
    assert!(!rig.browser.visited(&upstream.url()), "{:?}", rig.browser.trail());
    // And with a no as well.
    rig.browser.submit(&page, &page.form_to("/connections/demo/disconnect"), &[]).await;
    upstream.set_authorization(|script| script.consent = Consent::Deny("access_denied".into()));
    let page = rig.connections().await;
    let page = rig.browser.submit(&page, &page.form_to("/connections/demo/connect"), &[]).await.page();
    assert!(page.url.as_str().starts_with(&rig.gateway.public_url), "{}", page.url);
    assert!(!rig.browser.visited(&upstream.url()), "{:?}", rig.browser.trail());
}

#[tokio::test]
async fn pom_b22_a_browser_may_read_each_of_our_refusals() {
    const ORIGIN: &str = "http://localhost:6274";
    let upstream = Upstream::start().await;
    let gone = Upstream::open().await;
    let builder = Gateway::builder().route(Route::oauth("demo", &upstream)).route(Route::open("gone", &gone));
    let mut rig = Rig::of(builder).await;
    let tokens = rig.sign_in("demo").await;
    let to_gone = rig.sign_in("gone").await;
    let readable = |answer: &McpAnswer, status: u16, what: &str| {
        assert_eq!(answer.status, status, "{what}: {}", answer.body);
        assert_eq!(answer.header("access-control-allow-origin"), Some(ORIGIN), "{what}");
        let exposed = answer.header("access-control-expose-headers").unwrap_or_default().to_lowercase();
        assert!(exposed.contains("www-authenticate"), "{what}: {exposed}");
    };
    let call = rig.call("demo", &tokens).header("origin", ORIGIN);
    upstream.answer_next(Answer::InsufficientScope("more".into()));
    readable(&call.post(CALL).await, 403, "more scope wanted");
    upstream.set_authorization(|script| {
        script.token_faults.push_back(TokenFault::answer(503, &[("retry-after", "1")], ""));
    });
    upstream.refuse_current_tokens();
    readable(&call.post(CALL).await, 503, "no renewal now");
    upstream.authorization.revoke_everything();
    eventually(PATIENCE, async || call.post(CALL).await.status == 401).await;
    readable(&call.post(CALL).await, 401, "the user is wanted");
    readable(&rig.gateway.mcp("demo").header("origin", ORIGIN).post(CALL).await, 401, "no token");
    gone.server.stop();
    readable(&rig.call("gone", &to_gone).header("origin", ORIGIN).post(CALL).await, 502, "nobody there");
}
