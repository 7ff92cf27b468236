//! Routes that get the token of the identity provider that the user signed in with: whose it is, that it is kept fresh,
//! and what happens where there is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::browser::{Arrival, Browser, Page};
use support::client::{AuthorizationRequest, Callback, Client, Tokens};
use support::gateway::{Builder, Gateway, Route};
use support::identity::IdentityProvider;
use support::key::verified;
use support::mcp::McpAnswer;
use support::upstream::Upstream;
use support::{eventually, eventually_some};

const SECOND: Duration = Duration::from_secs(1);
const SECRET: &str = "of the identity provider";

/// A provider that gives refresh tokens, and an upstream that takes these access tokens of it.
async fn world(taken: &[&str]) -> (IdentityProvider, Upstream) {
    let (provider, upstream) = (IdentityProvider::start().await, Upstream::start().await);
    provider.set(|script| script.refreshable = true);
    take(&upstream, taken);
    (provider, upstream)
}

fn take(upstream: &Upstream, tokens: &[&str]) {
    upstream.set(|script| script.extra_tokens = tokens.iter().map(ToString::to_string).collect());
}

fn route(name: &str, upstream: &Upstream) -> Route {
    Route::to(name, &upstream.url(), json!({"kind": "upstream_inject", "provider": "corp"}))
}

fn builder(provider: &IdentityProvider, upstream: &Upstream) -> Builder {
    Gateway::builder()
        .route(route("demo", upstream))
        .env("IDP_SECRET", SECRET)
        .with("login", json!({"oidc": [provider.entry()]}))
}

/// Where the client's request ends: at the client, or on a page.
async fn authorize(browser: &mut Browser, client: &Client, request: &AuthorizationRequest) -> Arrival {
    browser.authorize_or_stop(&client.redirect_uri, &request.url()).await
}

async fn sign_in(browser: &mut Browser, client: &Client, route: &str) -> Tokens {
    let request = client.authorization(route);
    let arrival = authorize(browser, client, &request).await;
    let Arrival::Client(url) = arrival else { panic!("{}", arrival.page().text()) };
    client.redeem(&Callback::of(&url).code(), &request).await.tokens()
}

async fn call(gateway: &Gateway, route: &str, tokens: &Tokens) -> McpAnswer {
    gateway.mcp(route).bearer(&tokens.access_token).tool("echo", json!({"message": "heard"})).await
}

/// The tokens that the upstream was shown, in their order.
fn shown(upstream: &Upstream) -> Vec<String> {
    let mut tokens: Vec<String> =
        upstream.requests.all().iter().filter_map(|request| request.bearer()).collect();
    tokens.dedup();
    tokens
}

async fn account(browser: &mut Browser, gateway: &Gateway) -> Page {
    browser.go(&gateway.url("/connections")).await.page()
}

#[tokio::test]
async fn the_token_of_the_sign_in_goes_upstream_and_is_renewed_when_it_is_refused() {
    let (provider, upstream) = world(&["access-1"]).await;
    let gateway = builder(&provider, &upstream).route(route("other", &upstream)).start().await;
    let (mut browser, client) = (Browser::new(), Client::register(&gateway).await);
    let (demo, other) =
        (sign_in(&mut browser, &client, "demo").await, sign_in(&mut browser, &client, "other").await);
    for (route, tokens) in [("demo", &demo), ("other", &other)] {
        assert_eq!(call(&gateway, route, tokens).await.tool_text(), "heard");
    }
    assert_eq!(shown(&upstream), ["access-1"], "one sign-in, one connection, both routes");
    assert!(!upstream.requests.mention(&demo.access_token), "the client's token stays here");
    // Refused by the upstream: renewed at the provider, once, for both, as the client that we are there.
    take(&upstream, &["access-2"]);
    for (route, tokens) in [("demo", &demo), ("other", &other)] {
        let answer = call(&gateway, route, tokens).await;
        assert_eq!(answer.tool_text(), "heard");
    }
    assert_eq!((shown(&upstream), provider.given()), (vec!["access-1".to_owned(), "access-2".to_owned()], 2));
    let renewal = provider.requests.last_to("/token");
    assert_eq!(renewal.form("grant_type").as_deref(), Some("refresh_token"));
    assert_eq!(renewal.form("resource"), None, "a provider is asked for no resource");
    assert!(renewal.header("authorization").is_some_and(|value| value.starts_with("Basic ")));
    // What the provider does not answer costs nothing while the token is good.
    provider.set(|script| script.down = true);
    assert_eq!(call(&gateway, "demo", &demo).await.status, 200);
    let log = gateway.output.text();
    for secret in ["access-1", "access-2", SECRET, &renewal.form("refresh_token").unwrap()] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn many_calls_at_its_end_renew_it_once() {
    let (provider, upstream) = world(&["access-1", "access-2", "access-3"]).await;
    provider.set(|script| script.lifetime = 3);
    let gateway = builder(&provider, &upstream).route(route("other", &upstream)).start().await;
    let (mut browser, client) = (Browser::new(), Client::register(&gateway).await);
    let demo = sign_in(&mut browser, &client, "demo").await;
    let other = sign_in(&mut browser, &client, "other").await;
    provider.set(|script| script.lifetime = 300);
    // Until the access token is of no more use.
    tokio::time::sleep(3 * SECOND).await;
    let calls = (0..40).map(|number| match number % 2 {
        0 => call(&gateway, "demo", &demo),
        _ => call(&gateway, "other", &other),
    });
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.tool_text(), "heard");
    }
    assert_eq!((shown(&upstream), provider.given()), (vec!["access-2".to_owned()], 2));
}

#[tokio::test]
async fn whoever_has_none_signs_in_there_again_and_asking_twice_does_not_go_round_in_circles() {
    let (provider, upstream) = world(&["access-1"]).await;
    let gateway = builder(&provider, &upstream).start().await;
    let (mut browser, client) = (Browser::new(), Client::register(&gateway).await);
    let tokens = sign_in(&mut browser, &client, "demo").await;
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 200);
    // Neither token is good any more: the client hears of it, and its next refresh fails, so that it brings the user.
    provider.revoke();
    take(&upstream, &["access-2"]);
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 401);
    assert_eq!(client.refresh(&tokens.refresh_token).await.error().as_deref(), Some("invalid_grant"));
    let signed_in = provider.requests.count("/authorize");
    let tokens = sign_in(&mut browser, &client, "demo").await;
    assert_eq!(provider.requests.count("/authorize"), signed_in + 1);
    assert_eq!(call(&gateway, "demo", &tokens).await.tool_text(), "heard");
    // A provider that gives nothing that could be sent: the client is told, after one more try.
    provider.revoke();
    provider.set(|script| script.token_type = "mac".into());
    take(&upstream, &[]);
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 401);
    let signed_in = provider.requests.count("/authorize");
    let arrival = authorize(&mut browser, &client, &client.authorization("demo")).await;
    let Arrival::Client(url) = arrival else { panic!("{}", arrival.page().text()) };
    assert_eq!(Callback::of(&url).error(), Some("server_error"));
    assert_eq!(provider.requests.count("/authorize"), signed_in + 1);
    // And nobody is called without a token.
    let calls = upstream.calls().len();
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 401);
    assert_eq!(upstream.calls().len(), calls);
}

#[tokio::test]
async fn a_403_of_the_upstream_asks_nobody_for_more() {
    let (provider, upstream) = world(&["access-1"]).await;
    upstream.set(|script| script.required_scope = Some("admin".into()));
    let gateway = builder(&provider, &upstream).start().await;
    let (mut browser, client) = (Browser::new(), Client::register(&gateway).await);
    let tokens = sign_in(&mut browser, &client, "demo").await;
    let answer = call(&gateway, "demo", &tokens).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (403, None));
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
}

#[tokio::test]
async fn the_page_ends_it_at_the_provider_and_brings_it_back() {
    let (provider, upstream) = world(&["access-1", "access-2"]).await;
    let gateway = builder(&provider, &upstream).start().await;
    let (mut browser, client) = (Browser::new(), Client::register(&gateway).await);
    let tokens = sign_in(&mut browser, &client, "demo").await;
    let page = account(&mut browser, &gateway).await;
    assert!(page.text().contains("Connected with your account there"), "{}", page.text());
    let page = browser.submit(&page, &page.form_to("/connections/demo/disconnect"), &[]).await.page();
    assert!(page.text().contains("Not connected"), "{}", page.text());
    let revoked = provider.requests.last_to("/revoke");
    assert_eq!(revoked.form("token_type_hint").as_deref(), Some("refresh_token"));
    eventually(SECOND, async || call(&gateway, "demo", &tokens).await.status == 401).await;
    let calls = upstream.calls().len();
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 401);
    assert_eq!(upstream.calls().len(), calls, "without a token it is not called");
    let page = browser.submit(&page, &page.form_to("/connections/demo/connect"), &[]).await.page();
    assert!(
        page.url.path() == "/connections" && page.text().contains("Connected with your account there"),
        "{}",
        page.text()
    );
    eventually(SECOND, async || call(&gateway, "demo", &tokens).await.status == 200).await;
    assert_eq!(shown(&upstream), ["access-2"]);
}

#[tokio::test]
async fn a_refresh_token_that_is_given_once_is_kept_beside_newer_access_tokens() {
    let (provider, upstream) = world(&["access-2"]).await;
    let gateway = builder(&provider, &upstream).start().await;
    let (mut browser, client) = (Browser::new(), Client::register(&gateway).await);
    let tokens = sign_in(&mut browser, &client, "demo").await;
    // In another browser, where the provider gives no refresh token: it gave one already.
    provider.set(|script| script.refreshable = false);
    assert_eq!(account(&mut Browser::new(), &gateway).await.status, 200);
    assert_eq!(provider.given(), 2);
    provider.set(|script| script.refreshable = true);
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 200);
    take(&upstream, &["access-3"]);
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 200);
    assert_eq!(shown(&upstream), ["access-2", "access-3"]);
}

#[tokio::test]
async fn a_secret_that_was_replaced_counts_at_the_next_renewal() {
    let (provider, upstream) = world(&["access-1"]).await;
    let gateway = builder(&provider, &upstream).env("NEW_SECRET", "the new one").start().await;
    let (mut browser, client) = (Browser::new(), Client::register(&gateway).await);
    let tokens = sign_in(&mut browser, &client, "demo").await;
    let mut entry = provider.entry();
    entry["client_secret"] = json!({"env": "NEW_SECRET"});
    gateway.reconfigure("login", json!({"oidc": [entry]}));
    gateway.hang_up();
    gateway.output.shows("the configuration is in use").await;
    take(&upstream, &["access-2"]);
    assert_eq!(call(&gateway, "demo", &tokens).await.tool_text(), "heard");
    let basic = provider.requests.last_to("/token").header("authorization").unwrap();
    let pair = data_encoding::BASE64.decode(&basic.as_bytes()["Basic ".len()..]).unwrap();
    assert_eq!(String::from_utf8(pair).unwrap(), "postern:the+new+one");
}

#[tokio::test]
async fn a_sign_out_at_the_provider_ends_it_where_that_ends_grants() {
    let (provider, upstream) = world(&["access-1"]).await;
    let mut entry = provider.entry();
    entry["logout_ends_grants"] = Value::Bool(true);
    let gateway = builder(&provider, &upstream).with("login", json!({"oidc": [entry]})).start().await;
    let (mut browser, client) = (Browser::new(), Client::register(&gateway).await);
    sign_in(&mut browser, &client, "demo").await;
    let body = format!("logout_token={}", provider.logout_token(&json!({"sub": "4711"})));
    let request = gateway.http.post(gateway.url("/login/backchannel-logout")).body(body);
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(provider.requests.count("/revoke"), 1);
}

/// An ID token that ends in so many seconds.
fn id_tokens_live(provider: &IdentityProvider, seconds: u64) {
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds;
    provider.set(|script| script.claims["exp"] = end.into());
}

/// Whom this ID token of the provider is about.
fn subject(provider: &IdentityProvider, token: &str) -> String {
    let mut keys = Value::Null;
    provider.set(|script| keys = script.key.set());
    verified(&keys, token).unwrap()["sub"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_id_token_goes_where_that_is_wanted_and_ends_at_its_own_time() {
    let (provider, upstream) = (IdentityProvider::start().await, Upstream::open().await);
    provider.set(|script| script.refreshable = true);
    let by_id = Route::to(
        "demo",
        &upstream.url(),
        json!({"kind": "upstream_inject", "provider": "corp", "token": "id"}),
    );
    let gateway = Gateway::builder()
        .route(by_id)
        .route(route("other", &upstream))
        .env("IDP_SECRET", SECRET)
        .with("login", json!({"oidc": [provider.entry()]}))
        .start()
        .await;
    let (mut browser, client) = (Browser::new(), Client::register(&gateway).await);
    id_tokens_live(&provider, 4);
    let demo = sign_in(&mut browser, &client, "demo").await;
    let other = sign_in(&mut browser, &client, "other").await;
    let sent = |tokens: &[String]| tokens.last().unwrap().clone();
    assert_eq!(call(&gateway, "demo", &demo).await.tool_text(), "heard");
    let first = sent(&shown(&upstream));
    assert_eq!(subject(&provider, &first), "4711");
    assert_eq!(call(&gateway, "other", &other).await.tool_text(), "heard");
    assert_eq!(sent(&shown(&upstream)), "access-1", "one connection, two tokens");

    // Renewed when it ends, though the access token is good for minutes.
    id_tokens_live(&provider, 300);
    provider.set(|script| script.id_token_on_refresh = true);
    let second = eventually_some(8 * SECOND, || async {
        let status = call(&gateway, "demo", &demo).await.status;
        assert_eq!(status, 200);
        let token = sent(&shown(&upstream));
        (token != first).then_some(token)
    })
    .await;
    assert_eq!(subject(&provider, &second), "4711");
    assert_eq!(provider.given(), 2, "one refresh");

    // One of somebody else is never sent, and without another one the user signs in there again.
    id_tokens_live(&provider, 4);
    let page = account(&mut browser, &gateway).await;
    browser.submit(&page, &page.form_to("/connections/demo/connect"), &[]).await;
    provider.set(|script| script.claims["sub"] = "4712".into());
    eventually(8 * SECOND, || async { call(&gateway, "demo", &demo).await.status == 401 }).await;
    let refreshes = provider.given();
    assert_eq!(call(&gateway, "demo", &demo).await.status, 401);
    assert_eq!(provider.given(), refreshes, "a refresh that brought nothing is not tried again");
    let subjects = shown(&upstream).into_iter().filter(|token| token.contains('.'));
    assert!(subjects.map(|token| subject(&provider, &token)).all(|subject| subject == "4711"));
    provider.set(|script| script.claims["sub"] = "4711".into());
    id_tokens_live(&provider, 300);
    let demo = sign_in(&mut browser, &client, "demo").await;
    assert_eq!(call(&gateway, "demo", &demo).await.tool_text(), "heard");
    assert!(!upstream.requests.mention(&demo.access_token));
}
