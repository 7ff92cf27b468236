//! Who we are at upstreams' authorization servers: how our client proves itself there, and what becomes of a registration
//! that nobody needs any more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use serde_json::{Value, json};
use support::authorization_server::AuthorizationServer;
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::key::verified;
use support::ledger::RegisteredClient;
use support::mcp::McpAnswer;
use support::script::{AuthorizationScript, RegistrationScript};
use support::upstream::Upstream;
use support::{PATIENCE, eventually, secret};

/// Takes assertions only, and registers clients for them.
fn by_keys_only(script: &mut AuthorizationScript) {
    script.metadata_patch = json!({"token_endpoint_auth_methods_supported": ["private_key_jwt"]});
}

async fn whoami(gateway: &Gateway, route: &str) -> McpAnswer {
    let client = Client::register(gateway).await;
    let mut browser = Browser::new().through(gateway);
    let tokens = client.sign_in(&mut browser, route).await;
    gateway.mcp(route).bearer(&tokens.access_token).tool("whoami", json!({})).await
}

async fn document(gateway: &Gateway, path: &str) -> Value {
    McpAnswer::of(gateway.http.get(gateway.url(path)).send().await.unwrap()).await.json()
}

fn assertions(server: &AuthorizationServer) -> Vec<String> {
    let requests = server.requests.all();
    requests.iter().filter_map(|request| request.form("client_assertion")).collect()
}

#[tokio::test]
async fn sr_t21_an_assertion_is_for_one_issuer_and_so_is_its_key() {
    let (one, other) = (Upstream::start().await, Upstream::start().await);
    for upstream in [&one, &other] {
        upstream.set_authorization(by_keys_only);
    }
    let routes = Gateway::builder().route(Route::oauth("one", &one)).route(Route::oauth("other", &other));
    let gateway = routes.start().await;
    for (route, upstream) in [("one", &one), ("other", &other)] {
        assert_eq!(whoami(&gateway, route).await.tool_text(), "upstream-user", "{route}");
        // The refresh is proven as well.
        upstream.refuse_current_tokens();
        assert_eq!(whoami(&gateway, route).await.tool_text(), "upstream-user", "{route}");
        assert_eq!(upstream.authorization.refreshes(), 1, "{route}");
    }
    let registered = |upstream: &Upstream| {
        upstream.authorization.ledger(|ledger| ledger.clients.values().next().unwrap().clone())
    };
    let (at_one, at_other) = (registered(&one), registered(&other));
    assert_eq!((&at_one.secret, at_one.method.as_str()), (&None, "private_key_jwt"));
    let mut seen = std::collections::HashSet::new();
    for (own, upstream, set, foreign) in
        [(&at_one, &one, &at_one.jwks, &at_other.jwks), (&at_other, &other, &at_other.jwks, &at_one.jwks)]
    {
        let shown = assertions(&upstream.authorization);
        assert_eq!(shown.len(), 2);
        for assertion in shown {
            let claims = verified(set, &assertion).expect("signed by the key of this issuer");
            assert_eq!(claims["aud"], upstream.authorization.issuer());
            assert_eq!((claims["iss"].as_str(), claims["sub"].as_str()), (Some(&*own.id), Some(&*own.id)));
            assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
            assert!(seen.insert(claims["jti"].to_string()), "used twice");
            assert_eq!(verified(foreign, &assertion), None, "worth nothing at the other one");
        }
    }
    // All of them are published in one place, each without its private half.
    let published = document(&gateway, "/oauth/jwks.json").await;
    let keys = published["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2);
    assert!(keys.iter().all(|key| key.get("d").is_none() && key["use"] == "sig" && key["alg"] == "ES256"));
}

#[tokio::test]
async fn a_key_outlives_a_restart() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(by_keys_only);
    let mut gateway = Gateway::before(&upstream).await;
    whoami(&gateway, "demo").await;
    gateway.kill9().await;
    gateway.restart().await;
    upstream.refuse_current_tokens();
    assert_eq!(whoami(&gateway, "demo").await.tool_text(), "upstream-user");
    assert_eq!((upstream.authorization.registrations(), upstream.authorization.refreshes()), (1, 1));
}

#[tokio::test]
async fn a_client_document_names_the_key_where_no_public_client_is_taken() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::builder().route(Route::oauth("demo", &upstream)).tls().start().await;
    upstream.set_authorization(|script| {
        by_keys_only(script);
        script.cimd = true;
        script.roots = gateway.roots.clone();
    });
    assert_eq!(whoami(&gateway, "demo").await.tool_text(), "upstream-user");
    assert_eq!(upstream.authorization.registrations(), 0);
    let client = upstream.authorization.ledger(|ledger| ledger.clients.values().next().unwrap().clone());
    let path = client.id.strip_prefix(&gateway.public_url).expect("our own document");
    let published = document(&gateway, path).await;
    assert_eq!(published["token_endpoint_auth_method"], "private_key_jwt");
    let keys = published["jwks_uri"].as_str().unwrap().strip_prefix(&gateway.public_url).unwrap();
    assert_eq!(document(&gateway, keys).await, client.jwks);
    // An issuer that nobody has dealt with has no key, and its document is a public client's.
    let stranger = document(&gateway, "/oauth/client/aaaaaaaaaaaaaaaa.json").await;
    assert_eq!(stranger["token_endpoint_auth_method"], "none");
    assert_eq!(document(&gateway, "/oauth/client/aaaaaaaaaaaaaaaa/jwks.json").await, json!({"keys": []}));
}

#[tokio::test]
async fn a_client_that_the_operator_registered_is_proven_by_the_key_that_is_published() {
    let upstream = Upstream::start().await;
    let route = Route::oauth("demo", &upstream)
        .with("credential.client_id", json!("by-hand"))
        .with("credential.token_endpoint_auth_method", json!("private_key_jwt"));
    let gateway = Gateway::builder().route(route).start().await;
    let know = |jwks: Value| {
        let client = RegisteredClient {
            id: "by-hand".into(),
            method: "private_key_jwt".into(),
            jwks,
            ..RegisteredClient::default()
        };
        upstream.authorization.ledger(|ledger| ledger.clients.insert("by-hand".into(), client));
    };
    know(Value::Null);
    let client = Client::register(&gateway).await;
    let request = client.authorization("demo");
    let callback = Browser::new().authorize(&client.redirect_uri, &request.url()).await;
    assert_eq!(callback.error(), Some("server_error"), "the server has no key of ours yet");
    // Which it may read where it is published.
    know(document(&gateway, "/oauth/jwks.json").await);
    assert_eq!(whoami(&gateway, "demo").await.tool_text(), "upstream-user");
}

/// A route with a configured client and this profile.
fn as_at(profile: &str, upstream: &Upstream) -> Route {
    upstream.authorization.know_client("by-hand", None);
    Route::oauth("demo", upstream)
        .with("credential.client_id", json!("by-hand"))
        .with("credential.profile", json!(profile))
}

#[tokio::test]
async fn a_provider_that_refuses_the_resource_and_hides_pkce_is_connected_by_its_profile() {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.challenge.scope = Some("api://files/.default".into()));
    upstream.set_authorization(|script| script.code_challenge_methods = None);
    let gateway = Gateway::builder().route(as_at("entra", &upstream)).start().await;
    assert_eq!(whoami(&gateway, "demo").await.tool_text(), "upstream-user");
    upstream.refuse_current_tokens();
    assert_eq!(whoami(&gateway, "demo").await.tool_text(), "upstream-user");
    let asked = upstream.authorization.requests.last_to("/authorize");
    assert_eq!(asked.parameter("scope").as_deref(), Some("api://files/.default offline_access"));
    assert_eq!(asked.parameter("resource"), None);
    for grant in ["authorization_code", "refresh_token"] {
        let requests = upstream.authorization.token_requests(grant);
        assert_eq!(
            requests.iter().map(|request| request.form("resource")).collect::<Vec<_>>(),
            [None],
            "{grant}"
        );
    }
    // Without the profile that server cannot be used, and the operator hears why.
    let gateway = Gateway::builder().route(Route::oauth("demo", &upstream)).start().await;
    let client = Client::register(&gateway).await;
    let request = client.authorization("demo");
    let callback = Browser::new().authorize(&client.redirect_uri, &request.url()).await;
    assert_eq!(callback.error(), Some("server_error"));
    gateway.output.shows("does not announce pkce").await;
}

#[tokio::test]
async fn what_a_provider_wants_for_a_refresh_token_is_sent_along_unless_the_operator_says_otherwise() {
    for (written, sent) in [(json!({}), "consent"), (json!({"prompt": "select_account"}), "select_account")] {
        let upstream = Upstream::start().await;
        let route = as_at("google", &upstream).with("credential.authorization_params", written);
        let gateway = Gateway::builder().route(route).start().await;
        assert_eq!(whoami(&gateway, "demo").await.tool_text(), "upstream-user");
        let asked = upstream.authorization.requests.last_to("/authorize");
        assert_eq!(asked.parameter("access_type").as_deref(), Some("offline"));
        assert_eq!(asked.parameter("prompt").as_deref(), Some(sent));
    }
}

#[tokio::test]
async fn scopes_between_commas_are_several_and_tokens_without_an_end_serve() {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.challenge.scope = Some("repo gist".into()));
    upstream.set_authorization(|script| {
        script.granted_scopes = Some("gist,repo,user".into());
        script.announces_lifetime = false;
        script.issues_refresh_tokens = false;
    });
    // It publishes metadata here, where the profile's own endpoints are not.
    let issuer = json!(upstream.authorization.issuer());
    let route = as_at("github", &upstream).with("credential.issuer", issuer);
    let gateway = Gateway::builder().route(route).start().await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let asked = upstream.authorization.requests.last_to("/authorize");
    assert_eq!(asked.parameter("scope").as_deref(), Some("repo,gist"));
    let mut granted: Vec<_> = tokens.scope.split(' ').collect();
    granted.sort_unstable();
    assert_eq!(granted, ["gist", "mcp:access", "repo", "user"]);
    let answer = gateway.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await;
    assert_eq!(answer.tool_text(), "upstream-user");
}

#[tokio::test]
async fn a_registration_goes_with_the_last_route_that_leads_there() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(|script| {
        script.registration = Some(RegistrationScript { managed: true, ..RegistrationScript::default() });
    });
    let routes =
        Gateway::builder().route(Route::oauth("one", &upstream)).route(Route::oauth("two", &upstream));
    let mut gateway = routes.with("oauth_client.unused_registration_ttl", json!("0s")).start().await;
    for route in ["one", "two"] {
        assert_eq!(whoami(&gateway, route).await.tool_text(), "upstream-user", "{route}");
    }
    let registered = || upstream.authorization.ledger(|ledger| ledger.clients.len());
    assert_eq!((upstream.authorization.registrations(), registered()), (1, 1));
    // With one of two routes nothing happens but that; what happens at all, happens at start.
    gateway.reconfigure("routes", json!([Route::oauth("two", &upstream).document()]));
    gateway.restart().await;
    assert_eq!(whoami(&gateway, "two").await.tool_text(), "upstream-user");
    assert_eq!(registered(), 1);
    gateway.reconfigure("routes", json!([Route::open("other", &upstream).document()]));
    gateway.restart().await;
    // At the second look, so that an instance that has heard of the route could object.
    eventually(PATIENCE * 3, || async { registered() == 0 }).await;
    // And with the route a registration comes back, as soon as the tokens of the one before are good for nothing any more.
    gateway.reconfigure("routes", json!([Route::oauth("two", &upstream).document()]));
    gateway.restart().await;
    upstream.refuse_current_tokens();
    assert_eq!(whoami(&gateway, "two").await.status, 401);
    assert_eq!(whoami(&gateway, "two").await.tool_text(), "upstream-user");
    assert_eq!(registered(), 1);
}

#[tokio::test]
async fn a_secret_that_was_replaced_costs_nobody_a_connection_where_the_issuer_is_still_the_one() {
    let upstream = Upstream::start().await;
    let know = |secret: &str| upstream.authorization.know_client("by-hand", Some(secret));
    let route = Route::oauth("demo", &upstream)
        .with("credential.client_id", json!("by-hand"))
        .with("credential.client_secret", json!({"env": "UPSTREAM_SECRET"}));
    let (one, other) = (secret("one"), secret("other"));
    know(&one);
    let mut gateway = Gateway::builder().route(route).env("UPSTREAM_SECRET", &one).start().await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let call = |gateway: &Gateway| gateway.mcp("demo").bearer(&tokens.access_token);
    assert_eq!(call(&gateway).tool("whoami", json!({})).await.status, 200);
    know(&other);
    gateway.set_env("UPSTREAM_SECRET", Some(&other));
    gateway.restart().await;
    upstream.refuse_current_tokens();
    // The first refresh finds out, and the next one is proven by the secret of today.
    eventually(PATIENCE, || async { call(&gateway).tool("whoami", json!({})).await.status == 200 }).await;
    assert_eq!(upstream.authorization.requests.count("/authorize"), 1, "nobody was sent anywhere");
    assert_eq!(upstream.authorization.refreshes(), 1);
}
