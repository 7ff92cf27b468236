//! What a gateway that is a peer of Postern does for its users, and what was found wanting there, line by line: each test has
//! the number of its line. Sessions stand in `broker_15.rs`, what is about a store for several in `broker_redis.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::Duration;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use support::aws::{REGION, SERVICE, Sts};
use support::browser::Browser;
use support::cimd::ClientDocuments;
use support::client::{Client, Tokens, unused_redirect_uri};
use support::gate::Gate;
use support::gateway::{Builder, Gateway, Route, restrict};
use support::identity::IdentityProvider;
use support::identity::exchange::{self as exchanges, name};
use support::mcp::McpAnswer;
use support::process::run;
use support::received::Received;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);
const SECRET: &str = "of the identity provider";

async fn call(gateway: &Gateway, route: &str, tokens: &Tokens) -> McpAnswer {
    gateway.mcp(route).bearer(&tokens.access_token).tool("whoami", json!({})).await
}

#[track_caller]
fn generation(answer: &McpAnswer) -> u64 {
    answer.result()["structuredContent"]["generation"].as_u64().unwrap()
}

fn held(tokens: &Tokens) -> [&str; 2] {
    [&tokens.access_token, &tokens.refresh_token]
}

fn names() -> Vec<String> {
    (1..100).map(name).collect()
}

/// Whoever signs in at the provider is somebody, and nobody has a password.
fn people_of(builder: Builder, providers: &[Value]) -> Builder {
    builder.env("IDP_SECRET", SECRET).with("login", json!({"oidc": providers}))
}

/// The person `4711` of this provider, in a browser.
async fn signed_in(gateway: &Gateway, provider: &str) -> Browser {
    let mut browser = Browser::new();
    let url = gateway.url(&format!("/login/start?provider={provider}&next=/connections"));
    assert_eq!(browser.go(&url).await.page().status, 200);
    browser
}

#[tokio::test]
async fn brk35_01_brk35_03_a_route_gets_the_token_of_its_provider_or_its_user_is_asked_for_that_one() {
    let (corp, other) = (IdentityProvider::start().await, IdentityProvider::start().await);
    let (upstream, fixed) = (Upstream::start().await, Upstream::open().await);
    corp.set(|script| script.refreshable = true);
    upstream.take(&["access-1".into()]);
    let mut second = other.entry();
    second["name"] = "other".into();
    let of = |name: &str, provider: &str| {
        Route::to(name, &upstream.url(), json!({"kind": "upstream_inject", "provider": provider}))
    };
    let builder = Gateway::builder()
        .route(of("demo", "corp"))
        .route(of("strange", "other"))
        .route(Route::header("fixed", &fixed, "X-Api-Key", json!({"env": "KEY"})))
        .env("KEY", "CANARY_key");
    let gateway = people_of(builder, &[corp.entry(), second]).start().await;
    let (mut browser, client) = (signed_in(&gateway, "corp").await, Client::register(&gateway).await);
    let demo = client.sign_in(&mut browser, "demo").await;
    let beside = client.sign_in(&mut browser, "fixed").await;
    assert_eq!(call(&gateway, "demo", &demo).await.status, 200);
    // What one provider gave is nothing for the route of the other, and neither is what we gave.
    let url = client.authorization("strange").url();
    let page = browser.go(&url).await.page();
    assert!(page.text().contains("Sign in at") && page.text().contains("as well?"), "{}", page.text());
    assert_eq!(upstream.shown(), ["access-1"]);
    // A token that cannot be renewed: 401 where it is needed, and the rest goes on.
    corp.revoke();
    upstream.take(&["access-2".into()]);
    for _ in 0..2 {
        let answer = call(&gateway, "demo", &demo).await;
        assert_eq!(answer.status, 401, "{}", answer.body);
        assert!(answer.challenge("resource_metadata").unwrap().ends_with("/demo"));
        assert_eq!(call(&gateway, "fixed", &beside).await.status, 200);
    }
    assert_eq!(upstream.shown(), ["access-1"]);
    // The user is led to that provider, and to no other.
    let asked = corp.requests.count("/authorize");
    let demo = client.sign_in(&mut browser, "demo").await;
    assert_eq!((corp.requests.count("/authorize"), other.requests.count("/authorize")), (asked + 1, 0));
    assert_eq!(call(&gateway, "demo", &demo).await.status, 200);
    upstream.assert_never_saw(&[held(&demo), held(&beside)].concat());
}

/// What `validate` says of these routes, with the provider `corp` and whatever else is set.
async fn said(routes: &[Value], settings: &[(&str, Value)]) -> (Option<i32>, String) {
    let provider = json!({"name": "corp", "issuer": "https://idp.example.com", "client_id": "us"});
    let mut builder = Gateway::builder().with("server.public_url", json!("http://127.0.0.1:8080"));
    builder = builder.with("login.oidc", json!([provider]));
    for (number, credential) in routes.iter().enumerate() {
        let route = Route::to(&format!("r{number}"), "https://files.example.com/mcp", credential.clone());
        builder = builder.route(route);
    }
    for (key, value) in settings {
        builder = builder.with(key, value.clone());
    }
    let gateway = builder.prepare();
    let ended =
        run(&["validate", "--config", gateway.config_file().to_str().unwrap()], &[("KEY", "x")]).await;
    (ended.code, ended.stderr)
}

#[tokio::test]
async fn brk35_02_what_cannot_work_is_said_before_the_start_and_all_of_it_at_once() {
    let exchange = |more: Value| {
        let mut credential = json!({"kind": "token_exchange", "issuer": "https://as.example.com", "client_id": "us",
            "client_secret": {"env": "KEY"}});
        support::script::apply(&mut credential, &more);
        credential
    };
    let routes = [
        // V-02, for every kind that names a provider.
        json!({"kind": "upstream_inject", "provider": "other"}),
        exchange(json!({"subject_provider": "other"})),
        json!({"kind": "aws_sigv4", "region": "r", "service": "s", "subject_provider": "other"}),
        json!({"kind": "entra_obo", "tenant": "common", "scopes": ["x"], "subject_provider": "other"}),
        json!({"kind": "id_jag", "audience": "x", "subject_provider": "other"}),
        // V-06.
        json!({"kind": "upstream_inject", "provider": ""}),
        exchange(json!({"subject_provider": ""})),
        // V-07.
        exchange(json!({"audience": "http://127.0.0.1:8080/r0"})),
        // V-13.
        exchange(json!({"audience": []})),
        json!({"kind": "postern_token", "routes": []}),
    ];
    // V-04, V-09.
    let us = json!([{"name": "us", "issuer": "http://127.0.0.1:8080", "allow_private": true}]);
    let (code, words) = said(&routes, &[("trusted_issuers", us)]).await;
    assert_eq!(code, Some(78), "{words}");
    for expected in [
        "trusted_issuers[0].issuer: is Postern itself",
        "routes[0].credential.provider: `other` is no identity provider",
        "routes[1].credential.subject_provider: `other` is no identity provider",
        "routes[2].credential.subject_provider: `other` is no identity provider",
        "routes[3].credential.subject_provider: `other` is no identity provider",
        "routes[4].credential.subject_provider: `other` is no identity provider",
        "routes[5].credential.provider: is empty",
        "routes[6].credential.subject_provider: is empty",
        "routes[7].credential.audience: is Postern itself",
        "routes[8].credential.audience: names nobody",
        "routes[9].credential.routes: is empty",
    ] {
        assert!(words.contains(expected), "{expected}\n{words}");
    }
    // V-01, V-05.
    let inject = json!({"kind": "upstream_inject", "provider": "corp"});
    let (code, words) = said(std::slice::from_ref(&inject), &[("login.oidc", json!([]))]).await;
    assert!(code == Some(78) && words.contains("and `login.oidc` has none"), "{words}");
    let (code, words) = said(std::slice::from_ref(&inject), &[("login", json!({}))]).await;
    assert!(code == Some(78) && words.contains("nobody could sign in"), "{words}");
    // V-03: said, and it starts all the same. V-09: whoever comes in with a password goes on to the provider.
    let (code, words) = said(&[exchange(json!({})), inject], &[]).await;
    assert_eq!(code, Some(0), "{words}");
    assert!(
        words.contains("routes[0].credential: exchanges a JWT about the user that Postern signs"),
        "{words}"
    );
    assert!(!words.contains("routes[1]"), "{words}");
}

/// A credential that is had at this provider.
fn at(provider: &IdentityProvider, kind: &str, more: &Value) -> Value {
    let mut credential = json!({"kind": kind, "issuer": provider.issuer, "client_id": "gateway",
        "client_secret": {"env": "CLIENT_SECRET"}});
    support::script::apply(&mut credential, more);
    credential
}

#[tokio::test]
async fn brk35_04_an_exchange_says_all_that_was_configured_and_takes_only_what_was_asked_for() {
    let (provider, upstream) = (IdentityProvider::start().await, Upstream::start().await);
    upstream.take(&names());
    let more = json!({"subject_provider": "corp", "subject_token": "id", "audience": "files",
        "resource": "https://files.example", "scopes": ["read", "write"], "requested_token_type": exchanges::JWT,
        "actor_token": {"env": "ACTOR"}, "actor_token_type": exchanges::JWT, "params": {"tenant": "t1"}});
    let builder = Gateway::builder()
        .route(Route::to("demo", &upstream.url(), at(&provider, "token_exchange", &more)))
        .env("CLIENT_SECRET", &provider.client_secret())
        .env("ACTOR", &provider.access_token("x", &json!({})));
    let gateway = people_of(builder, &[provider.entry()]).start().await;
    let mut browser = signed_in(&gateway, "corp").await;
    let tokens = Client::register(&gateway).await.sign_in(&mut browser, "demo").await;
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 200);
    let asked = provider.requests.last_to("/token");
    for (field, value) in [
        ("grant_type", exchanges::EXCHANGE),
        ("subject_token_type", exchanges::ID_TOKEN),
        ("requested_token_type", exchanges::JWT),
        ("actor_token_type", exchanges::JWT),
        ("audience", "files"),
        ("resource", "https://files.example"),
        ("scope", "read write"),
        ("tenant", "t1"),
    ] {
        assert_eq!(asked.form_values(field), [value], "{field}");
    }
    assert!(asked.form("actor_token").is_some());
    let shown = asked.form("subject_token").unwrap();
    let claims = BASE64URL_NOPAD.decode(shown.split('.').nth(1).unwrap().as_bytes()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&claims).unwrap()["sub"], "4711", "of the named provider");
    // Something else than was asked for: the token before is of no use any more, and the next one is not sent.
    provider.set(|script| script.exchanges.issued_token_type = Some(exchanges::ACCESS_TOKEN.into()));
    upstream.take(&names()[1..]);
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 502);
    assert_eq!((provider.exchanges(), upstream.shown()), (2, vec![name(1)]));
    upstream.assert_never_saw(&held(&tokens));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk35_05_what_was_exchanged_is_kept_for_each_user_and_target_until_its_end() {
    let (provider, upstream) = (IdentityProvider::start().await, Upstream::start().await);
    upstream.take(&names());
    upstream.set(|script| script.requires_auth = false);
    let mut builder = Gateway::builder().env("CLIENT_SECRET", &provider.client_secret());
    let targets = [
        json!({"audience": "a"}),
        json!({"audience": "b"}),
        json!({"audience": "a", "scopes": ["read"]}),
        json!({"audience": "a", "resource": "urn:a"}),
    ];
    for (number, more) in targets.iter().enumerate() {
        let credential = at(&provider, "token_exchange", more);
        builder = builder.route(Route::to(&format!("r{number}"), &upstream.url(), credential));
    }
    let gateway = builder.start().await;
    provider.set(|script| {
        script.exchanges.jwks_uri = Some(gateway.url("/oauth/jwks.json"));
        script.exchanges.gateway = gateway.public_url.clone();
    });
    for (people, user) in ["alice", "bob"].into_iter().enumerate() {
        let (client, mut browser) = (Client::register(&gateway).await, Browser::of(user));
        for number in 0..targets.len() {
            // The last of them is about to end.
            let is_last = people == 1 && number == targets.len() - 1;
            provider.set(|script| script.exchanges.lifetime = Some(if is_last { 2 } else { 300 }));
            let route = format!("r{number}");
            let tokens = client.sign_in(&mut browser, &route).await;
            let calls = (0..10).map(|_| call(&gateway, &route, &tokens));
            let answers = futures_util::future::join_all(calls).await;
            assert!(answers.iter().all(|answer| answer.status == 200));
            assert_eq!(provider.exchanges(), people * targets.len() + number + 1, "{user} {route}");
            if is_last {
                eventually(3 * SECOND, async || {
                    assert_eq!(call(&gateway, &route, &tokens).await.status, 200);
                    provider.exchanges() == 2 * targets.len() + 1
                })
                .await;
            }
        }
    }
}

#[tokio::test]
async fn brk35_06_each_kind_of_credential_does_what_it_says() {
    let (provider, server) = (IdentityProvider::start().await, IdentityProvider::start().await);
    let (upstream, sts) = (Upstream::open().await, Sts::trusting(&provider).await);
    provider.set(|script| {
        script.claims["tid"] = "7f58a0a4-3b4f-4c51-8f53-7f2d8dd5d2f1".into();
        script.claims["groups"] = json!(["staff"]);
        script.exchanges.client = "postern".into();
        script.exchanges.secret = SECRET.into();
        script.exchanges.method = "client_secret_post";
    });
    let (issuer, keys) = (provider.issuer.clone(), format!("{}/keys", provider.issuer));
    server.set(|script| (script.exchanges.gateway, script.exchanges.jwks_uri) = (issuer, Some(keys)));
    let role = json!({"claim": "groups", "values": ["staff"], "arn": "arn:aws:iam::123456789012:role/staff"});
    let kinds = [
        ("none", json!({"kind": "none"})),
        ("header", json!({"kind": "header", "name": "X-Api-Key", "value": {"env": "KEY"}})),
        (
            "aws",
            json!({"kind": "aws_sigv4", "region": REGION, "service": SERVICE, "subject_provider": "corp",
                "sts_endpoint": sts.endpoint, "roles": [role]}),
        ),
        (
            "obo",
            json!({"kind": "entra_obo", "subject_provider": "corp", "tenant": "organizations", "scopes": ["api://x/.default"],
                "token_endpoint": format!("{}/{{tenant}}/oauth2/v2.0/token", provider.issuer)}),
        ),
        ("jag", at(&server, "id_jag", &json!({"subject_provider": "corp"}))),
    ];
    let mut builder =
        Gateway::builder().env("KEY", "CANARY_key").env("CLIENT_SECRET", &server.client_secret());
    for (name, credential) in &kinds {
        builder = builder.route(Route::to(name, &upstream.url(), credential.clone()));
    }
    let gateway = people_of(builder, &[provider.entry()]).start().await;
    let (mut browser, client) = (signed_in(&gateway, "corp").await, Client::register(&gateway).await);
    for (kind, _) in &kinds {
        // For a route with a provider's token, another of its tokens is shown in another way.
        let method = if *kind == "jag" { "client_secret_basic" } else { "client_secret_post" };
        provider.set(|script| script.exchanges.method = method);
        let tokens = client.sign_in(&mut browser, kind).await;
        let answer = call(&gateway, kind, &tokens).await;
        assert_eq!(answer.status, 200, "{kind}: {}", answer.body);
        let sent = upstream.calls().pop().unwrap();
        assert_eq!(sent.header("x-api-key").is_some(), *kind == "header", "{kind}");
        match *kind {
            "none" | "header" => assert_eq!(sent.header("authorization"), None, "{kind}"),
            "aws" => assert!(sts.signer(&sent).is_ok()),
            _ => assert_eq!(sent.bearer(), Some(name(1)), "{kind}"),
        }
        upstream.assert_never_saw(&held(&tokens));
    }
    let given = [provider.exchanged(), server.exchanged()].concat();
    let grants: Vec<_> = given.iter().map(|given| given.grant.as_str()).collect();
    assert_eq!(grants, [exchanges::JWT_BEARER, exchanges::EXCHANGE, exchanges::JWT_BEARER]);
}

#[tokio::test]
async fn brk35_07_our_own_tokens_are_for_who_proved_it_for_one_route_and_once() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream).with("scopes", json!(["files:read"])))
        .route(Route::open("other", &upstream))
        .start()
        .await;
    let (client, mut browser) = (Client::register(&gateway).await, Browser::new());
    for request in [
        client.authorization("demo").without("code_challenge"),
        client.authorization("demo").with("code_challenge_method", "plain"),
    ] {
        let callback = browser.authorize(&client.redirect_uri, &request.url()).await;
        assert_eq!(callback.error(), Some("invalid_request"), "{}", callback.url);
    }
    let first = client.sign_in(&mut browser, "demo").await;
    assert!(first.scope.split(' ').any(|scope| scope == "files:read"), "{}", first.scope);
    assert_eq!(call(&gateway, "demo", &first).await.status, 200);
    assert_eq!(call(&gateway, "other", &first).await.status, 401, "for one route");
    let second = client.refresh(&first.refresh_token).await.tokens();
    assert_ne!(first.refresh_token, second.refresh_token);
    let third = client.refresh(&second.refresh_token).await.tokens();
    // A replay ends all of it.
    assert_eq!(client.refresh(&first.refresh_token).await.error().as_deref(), Some("invalid_grant"));
    assert_eq!(client.refresh(&third.refresh_token).await.error().as_deref(), Some("invalid_grant"));
    eventually(SECOND, async || call(&gateway, "demo", &third).await.status == 401).await;
}

#[tokio::test]
async fn brk35_10_each_client_is_asked_about_in_the_browser_that_it_came_with() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::before(&upstream).await;
    let (first, second) = (Client::register(&gateway).await, Client::register(&gateway).await);
    let mut browser = Browser::new();
    first.sign_in(&mut browser, "demo").await;
    let page = browser.go_to_consent(&second.redirect_uri, &second.authorization("demo").url()).await;
    assert!(page.text().contains("Rig client"), "{}", page.text());
    // Her answer, given by somebody in another browser.
    let form = page.form_with_button("allow");
    let fields = [("flow", form.value("flow").unwrap()), ("decision", "allow")];
    for user in ["alice", "bob"] {
        let mut elsewhere = Browser::of(user);
        let own = elsewhere.go_to_consent(&second.redirect_uri, &second.authorization("demo").url()).await;
        let refused = elsewhere.submit_once(&own, &own.form_with_button("allow"), &fields).await;
        assert_eq!(refused.status, 403, "{}", refused.text());
    }
    browser.stop_before(&second.redirect_uri);
    browser.consent_allow(&page).await.client();
}

#[tokio::test]
async fn brk35_11_clients_register_within_bounds_or_are_known_by_documents_that_are_read_once() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    // As it comes, a document at a private address is not fetched.
    let gateway = Gateway::before(&upstream).await;
    let client = documents.client(&gateway);
    let page = Browser::new().go(&client.authorization("demo").url()).await.page();
    assert_eq!((page.status, documents.requests.all().len()), (400, 0), "{}", page.text());
    let gateway = Gateway::builder()
        .route(Route::oauth("demo", &upstream))
        .with("oauth_server.clients.cimd", json!({"allow_private": true}))
        .start()
        .await;
    let client = documents.client(&gateway);
    for _ in 0..3 {
        client.sign_in(&mut Browser::new(), "demo").await;
    }
    assert_eq!(documents.reads("/client.json"), 1);
    // A client with a secret has to prove itself, and one that asks for too much is none.
    let register = async |more: Value| {
        let mut document = json!({"redirect_uris": [unused_redirect_uri()], "token_endpoint_auth_method": "client_secret_post"});
        support::script::apply(&mut document, &more);
        Client::register_with(&gateway, &document).await
    };
    let registered = register(json!({})).await;
    assert!(registered.json()["client_secret"].is_string(), "{}", registered.body);
    let many: Vec<_> = (0..1000).map(|number| format!("https://c.example/{number}")).collect();
    for more in [
        json!({"redirect_uris": many}),
        json!({"redirect_uris": []}),
        json!({"grant_types": ["password"]}),
        json!({"client_name": "x".repeat(100_000)}),
    ] {
        let refused = register(more).await;
        assert!(matches!(refused.status, 400 | 413), "{} {}", refused.status, refused.body);
    }
}

#[tokio::test]
async fn brk35_12_any_port_of_a_literal_loopback_and_no_private_scheme() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::before(&upstream).await;
    let mut client = Client::register(&gateway).await;
    // What it listens on when it is started next.
    client.redirect_uri = client.redirect_uri.replacen("127.0.0.1:", "127.0.0.1:6", 1);
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 200);
    client.redirect_uri = client.redirect_uri.replace("/callback", "/other");
    let page = Browser::new().go(&client.authorization("demo").url()).await.page();
    assert_eq!(page.status, 400, "{}", page.text());
    for uri in ["cursor://anysphere/cb", "com.example.app:/cb"] {
        let refused = Client::register_with(&gateway, &json!({"redirect_uris": [uri]})).await;
        assert_eq!(refused.json()["error"], "invalid_redirect_uri", "{uri}");
    }
}

#[tokio::test]
async fn brk35_13_keys_overlap_and_follow_each_other_without_a_restart() {
    let upstream = Upstream::open().await;
    let directory = tempfile::tempdir().unwrap();
    let key = |id: &str| {
        let file = directory.path().join(id);
        std::fs::write(&file, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        restrict(&file);
        json!({"id": id, "file": file})
    };
    let (first, second) = (key("s1"), key("s2"));
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .with("oauth_server", json!({"access_token_format": "jwt", "signing_keys": [first]}))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let old = client.sign_in(&mut Browser::new(), "demo").await;
    gateway.reconfigure("oauth_server.signing_keys", json!([second, first]));
    gateway.hang_up();
    eventually(SECOND, async || {
        let keys = gateway.http.get(gateway.url("/oauth/jwks.json")).send().await.unwrap();
        let keys = McpAnswer::of(keys).await.json()["keys"].take();
        let ids: Vec<_> = keys.as_array().unwrap().iter().map(|key| key["kid"].clone()).collect();
        ids == ["s2", "s1"]
    })
    .await;
    let new = client.refresh(&old.refresh_token).await.tokens();
    let head = BASE64URL_NOPAD.decode(new.access_token.split('.').next().unwrap().as_bytes()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&head).unwrap()["kid"], "s2");
    for tokens in [&old, &new] {
        assert_eq!(call(&gateway, "demo", tokens).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk35_17_tokens_are_renewed_before_their_end_and_beside_each_other() {
    let upstreams = [Upstream::start().await, Upstream::start().await];
    let mut builder = Gateway::builder();
    for (number, upstream) in upstreams.iter().enumerate() {
        upstream.set_authorization(|script| script.access_token_lifetime = 8 * SECOND);
        builder = builder.route(Route::oauth(&format!("r{number}"), upstream));
    }
    let gateway = builder.start().await;
    let (client, mut browser) = (Client::register(&gateway).await, Browser::new());
    let gate = Gate::shut();
    let mut tokens = Vec::new();
    for number in 0..2 {
        tokens.push(client.sign_in(&mut browser, &format!("r{number}")).await);
    }
    for upstream in &upstreams {
        let gate = gate.clone();
        upstream.set_authorization(|script| script.token_gate = Some(gate));
    }
    // Both are asked while neither has answered, and nobody waits for that.
    eventually(8 * SECOND, async || {
        for (number, tokens) in tokens.iter().enumerate() {
            assert_eq!(generation(&call(&gateway, &format!("r{number}"), tokens).await), 1);
        }
        gate.waiting() == 2
    })
    .await;
    gate.open();
    for (number, tokens) in tokens.iter().enumerate() {
        let route = format!("r{number}");
        eventually(PATIENCE, async || generation(&call(&gateway, &route, tokens).await) == 2).await;
    }
}

/// Whether a token request is this client's.
fn is_of(sent: &Received, client: &str) -> bool {
    let basic = sent
        .header("authorization")
        .and_then(|value| BASE64.decode(value.strip_prefix("Basic ")?.as_bytes()).ok());
    basic
        .map_or(sent.form("client_id").as_deref() == Some(client), |pair| pair.starts_with(client.as_bytes()))
}

#[tokio::test]
async fn brk35_20_a_refused_token_is_renewed_once_as_the_client_that_got_it_and_then_its_user_is_asked() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let (client, mut browser) = (Client::register(&gateway).await, Browser::new());
    let tokens = client.sign_in(&mut browser, "demo").await;
    let server = &upstream.authorization;
    let refreshes = || server.token_requests("refresh_token");
    upstream.refuse_current_tokens();
    assert_eq!((generation(&call(&gateway, "demo", &tokens).await), refreshes().len()), (2, 1));
    // Whatever it is given, it refuses.
    upstream.set(|script| script.refused_generation = u32::MAX);
    for _ in 0..3 {
        let answer = call(&gateway, "demo", &tokens).await;
        assert_eq!(answer.status, 401, "{}", answer.body);
        assert!(answer.challenge("resource_metadata").is_some());
    }
    assert_eq!(refreshes().len(), 2);
    upstream.set(|script| script.refused_generation = 0);
    let tokens = client.sign_in(&mut browser, "demo").await;
    // The server has forgotten the client: what that one got is never shown as another.
    let known = server.requests.last_to("/authorize").parameter("client_id").unwrap();
    let theirs = server.ledger(|ledger| ledger.refresh.keys().cloned().collect::<Vec<_>>());
    server.ledger(|ledger| ledger.clients.clear());
    upstream.refuse_current_tokens();
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 401);
    upstream.set(|script| script.refused_generation = 0);
    let tokens = client.sign_in(&mut browser, "demo").await;
    upstream.set(|script| script.refused_generation = 1);
    assert_eq!(generation(&call(&gateway, "demo", &tokens).await), 2);
    let next = server.requests.last_to("/authorize").parameter("client_id").unwrap();
    assert_ne!(known, next);
    let as_next: Vec<_> = refreshes().into_iter().filter(|sent| is_of(sent, &next)).collect();
    assert_eq!(as_next.len(), 1);
    assert!(theirs.iter().all(|token| as_next[0].form("refresh_token").as_ref() != Some(token)));
}
