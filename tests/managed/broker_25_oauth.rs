//! The rest of what is demanded of routes that are made at run time: the OAuth half, towards clients and towards the servers
//! that were added. One test for each line, by its number, as in `broker_25.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::client::Client;
use support::eventually;
use support::managed::{Person, address, builder, id, path, ping};
use support::mcp::McpAnswer;
use support::script::{Consent, TokenFault};
use support::upstream::Upstream;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn brk25_08_clients_register_manage_themselves_and_prove_themselves_as_they_said() {
    let upstream = Upstream::open().await;
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let added = alice.add(None, &upstream, json!({"auth": {"mode": "none"}})).await;
    let redirect_uri = support::client::unused_redirect_uri();
    let document =
        json!({"redirect_uris": [redirect_uri], "token_endpoint_auth_method": "client_secret_basic"});
    let registered = Client::register_with(&gateway, &document).await.json();
    let [client_id, secret, management, access] =
        ["client_id", "client_secret", "registration_client_uri", "registration_access_token"]
            .map(|name| registered[name].as_str().unwrap().to_owned());
    let client = Client::known_as(&gateway, &client_id, &redirect_uri);
    let request = client.authorization(path(address(&added)));
    let callback = alice.browser.authorize(&redirect_uri, &request.url()).await;
    let redemption = client.redemption(&callback.code(), &request);
    // By post, although it said by basic.
    let mixed = client.token(&redemption.clone().with("client_secret", &secret)).await;
    assert_eq!((mixed.status(), mixed.error().as_deref()), (401, Some("invalid_client")));
    let form = gateway.http.post(gateway.url("/oauth/token")).basic_auth(&client_id, Some(&secret));
    let form = form.header("content-type", "application/x-www-form-urlencoded").body(redemption.encoded());
    let tokens = McpAnswer::of(form.send().await.unwrap()).await;
    assert_eq!(tokens.status, 200, "{}", tokens.body);
    let token = tokens.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(ping(&gateway, address(&added), &token).await.status, 200);

    let manage = async |method: &str, token: &str| {
        let request = gateway.http.request(method.parse().unwrap(), &management);
        McpAnswer::of(request.bearer_auth(token).send().await.unwrap()).await.status
    };
    assert_eq!(manage("GET", "x").await, 401);
    assert_eq!(manage("GET", &access).await, 200);
    assert_eq!(manage("DELETE", &access).await, 204);
    // With the client goes its access.
    eventually(SECOND, async || ping(&gateway, address(&added), &token).await.status == 401).await;
}

#[tokio::test]
async fn brk25_10_a_code_counts_once_and_a_refresh_token_that_comes_twice_ends_its_family() {
    let upstream = Upstream::open().await;
    let gateway = builder().with("oauth_server.refresh_replay_window", json!("0s")).start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let added = alice.add(None, &upstream, json!({"auth": {"mode": "none"}})).await;
    let request = client.authorization(path(address(&added)));
    let callback = alice.browser.authorize(&client.redirect_uri, &request.url()).await;
    let code = callback.code();
    let many = join_all((0..8).map(|_| client.redeem(&code, &request))).await;
    assert_eq!(many.iter().filter(|answer| answer.status() == 200).count(), 1);

    let tokens = alice.let_in(&client, address(&added)).await;
    let next = client.refresh(&tokens.refresh_token).await.tokens();
    let again = client.refresh(&tokens.refresh_token).await;
    assert_eq!(again.error().as_deref(), Some("invalid_grant"));
    assert_eq!(client.refresh(&next.refresh_token).await.error().as_deref(), Some("invalid_grant"));
    eventually(SECOND, async || ping(&gateway, address(&added), &next.access_token).await.status == 401)
        .await;
    // Not the address of another route.
    let tokens = alice.let_in(&client, address(&added)).await;
    let other = alice.add(None, &upstream, json!({"auth": {"mode": "none"}})).await;
    let elsewhere = client.refreshment(&tokens.refresh_token).with("resource", address(&other));
    assert_eq!(client.token(&elsewhere).await.error().as_deref(), Some("invalid_target"));
}

#[tokio::test]
async fn brk25_11_the_way_to_a_server_is_found_registered_proven_and_counts_once() {
    let upstream = Upstream::start().await;
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let found = alice.ask("POST", "/discover").with(json!({"url": upstream.url()})).done(200).await;
    assert_eq!(found["mode"], "oauth_dynamic", "{found}");
    let added = alice.add(None, &upstream, json!({})).await;
    assert_eq!(added["discovered"]["issuer"], upstream.origin);
    let registrations = upstream.authorization.requests.count("/register");
    // No at the server: the client hears it, and what was under way is over.
    upstream.set_authorization(|script| script.consent = Consent::Deny("access_denied".into()));
    let request = client.authorization(path(address(&added)));
    let callback = alice.browser.authorize(&client.redirect_uri, &request.url()).await;
    assert_eq!(callback.error(), Some("access_denied"));
    let is_back = |hop: &&support::page::Hop| hop.url.path().starts_with("/oauth/upstream/callback/");
    let back = alice.browser.hops.iter().find(is_back).unwrap().url.to_string();
    let again = alice.browser.peek(&back).await;
    assert!(again.status >= 400, "a state counts once: {}", again.status);

    upstream.set_authorization(|script| script.consent = Consent::Approve);
    let tokens = alice.let_in(&client, address(&added)).await;
    assert_eq!(ping(&gateway, address(&added), &tokens.access_token).await.status, 200);
    assert_eq!(upstream.authorization.requests.count("/register"), registrations + 1, "registered once");
    let asked = upstream.authorization.requests.last_to("/authorize");
    assert_eq!(asked.parameter("code_challenge_method").as_deref(), Some("S256"));
    assert!(asked.parameter("state").is_some());
}

#[tokio::test]
async fn brk25_12_scopes_are_of_the_configuration_or_the_challenge_and_their_order_is_no_matter() {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.challenge.scope = Some("issues:read".into()));
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let added = alice.add(None, &upstream, json!({})).await;
    let url = address(&added).to_owned();
    let asked = || upstream.authorization.requests.last_to("/authorize");
    alice.let_in(&client, &url).await;
    assert_eq!(asked().parameter("scope").as_deref(), Some("issues:read"));
    let resource = asked().parameter("resource").unwrap();
    assert_eq!(upstream.authorization.requests.last_to("/token").form("resource"), Some(resource));

    let of = format!("/configurations/{}", id(&added));
    let change = async |person: &Person<'_>, body: Value| person.ask("PATCH", &of).with(body).done(200).await;
    // Material: the connection is over, and so are all tokens.
    change(&alice, json!({"scopes": ["issues:write", "issues:read"]})).await;
    let tokens = alice.let_in(&client, &url).await;
    let scopes = asked().parameter("scope").unwrap();
    assert_eq!(scopes, "issues:write issues:read");
    let visits = upstream.authorization.requests.count("/authorize");
    // Not material: the same in another order, and what goes along.
    change(&alice, json!({"scopes": ["issues:read", "issues:write"]})).await;
    change(&alice, json!({"headers": [{"name": "X-Tenant", "value": "a"}], "name": "Other"})).await;
    assert_eq!(ping(&gateway, &url, &tokens.access_token).await.status, 200);
    assert_eq!(upstream.calls().pop().unwrap().header("x-tenant").as_deref(), Some("a"));
    assert_eq!(upstream.authorization.requests.count("/authorize"), visits);
}

#[tokio::test]
async fn brk25_13_only_bearer_tokens_are_kept_and_answers_have_a_size() {
    let upstream = Upstream::start().await;
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let added = alice.add(None, &upstream, json!({})).await;
    let request = client.authorization(path(address(&added)));
    let token = |kind: Value| json!({"access_token": support::secret("x"), "token_type": kind}).to_string();
    let huge = format!("{{\"access_token\":\"{}\",\"token_type\":\"Bearer\"}}", "x".repeat(2 * 1024 * 1024));
    for body in [token(json!("mac")), token(Value::Null), huge] {
        let fault = TokenFault::answer(200, &[("content-type", "application/json")], &body);
        upstream.set_authorization(|script| script.token_faults.push_back(fault));
        let callback = alice.browser.authorize(&client.redirect_uri, &request.url()).await;
        assert!(callback.error().is_some(), "{}", callback.url);
    }
    let tokens = alice.let_in(&client, address(&added)).await;
    assert_eq!(ping(&gateway, address(&added), &tokens.access_token).await.status, 200);
    assert!(upstream.calls_with_token().iter().all(|call| call.bearer().unwrap().len() < 4096));
}

#[tokio::test]
async fn brk25_15_one_renewal_serves_all_and_an_outage_sends_nobody_back() {
    let upstream = Upstream::start().await;
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let added = alice.add(None, &upstream, json!({})).await;
    let url = address(&added).to_owned();
    let tokens = alice.let_in(&client, &url).await;
    assert_eq!(ping(&gateway, &url, &tokens.access_token).await.status, 200);
    let renewals = |upstream: &Upstream| {
        let refresh = |request: &support::received::Received| {
            request.path == "/token" && request.form("grant_type").as_deref() == Some("refresh_token")
        };
        upstream.authorization.requests.matching(refresh).len()
    };
    upstream.refuse_current_tokens();
    let all = join_all((0..50).map(|_| ping(&gateway, &url, &tokens.access_token))).await;
    assert!(all.iter().all(|answer| answer.status == 200));
    assert_eq!(renewals(&upstream), 1);

    upstream.refuse_current_tokens();
    let outage = TokenFault::answer(503, &[], "");
    upstream.set_authorization(|script| script.token_fault = Some(outage));
    assert_eq!(ping(&gateway, &url, &tokens.access_token).await.status, 503, "not the user's to repair");
    upstream.set_authorization(|script| script.token_fault = None);
    let again = async || ping(&gateway, &url, &tokens.access_token).await.status == 200;
    eventually(10 * SECOND, again).await;
    assert_eq!(upstream.authorization.requests.count("/authorize"), 1);
}
