//! Routes where each user hands over a key of their own: how it gets there, whose it is, and what becomes of a bad one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::Duration;

use serde_json::{Value, json};
use support::browser::{Arrival, Browser, Page};
use support::client::{AuthorizationRequest, Callback, Client, Tokens};
use support::gateway::{Gateway, Route};
use support::mcp::McpAnswer;
use support::upstream::Upstream;
use support::{eventually, secret};

const SECOND: Duration = Duration::from_secs(1);
const HINT: &str = "Make one at https://files.example.com/keys.";

fn route(name: &str, upstream: &Upstream, more: &[(&str, Value)]) -> Route {
    let mut credential = json!({"kind": "header", "per_user": true, "name": "authorization",
        "format": "Bearer {value}", "hint": HINT});
    for (key, value) in more {
        credential[*key] = value.clone();
    }
    Route::to(name, &upstream.url(), credential)
}

fn take(upstream: &Upstream, keys: &[&String]) {
    upstream.set(|script| script.extra_tokens = keys.iter().map(ToString::to_string).collect());
}

/// Goes where the client sends the user, and hands over the key where that is asked for.
async fn sign_in(browser: &mut Browser, client: &Client, route: &str, key: &str) -> Tokens {
    let request = client.authorization(route);
    let page = browser.authorize_or_stop(&client.redirect_uri, &request.url()).await.page();
    assert!(page.text().contains(HINT), "{}", page.text());
    let arrival = hand_over(browser, &page, route, key).await;
    finish(browser, client, &request, arrival).await
}

async fn hand_over(browser: &mut Browser, page: &Page, route: &str, key: &str) -> Arrival {
    let form = page.form_to(&format!("/connections/{route}/key"));
    browser.submit(page, &form, &[("key", key)]).await
}

async fn finish(
    browser: &mut Browser,
    client: &Client,
    request: &AuthorizationRequest,
    arrival: Arrival,
) -> Tokens {
    let arrival = match arrival {
        Arrival::Page(page) => browser.consent_allow(&page).await,
        client => client,
    };
    let Arrival::Client(url) = arrival else { panic!("{}", arrival.page().text()) };
    client.redeem(&Callback::of(&url).code(), request).await.tokens()
}

async fn call(gateway: &Gateway, route: &str, tokens: &Tokens) -> McpAnswer {
    gateway.mcp(route).bearer(&tokens.access_token).tool("echo", json!({"message": "heard"})).await
}

#[tokio::test]
async fn a_key_is_asked_for_on_the_way_and_goes_upstream_for_its_owner_alone() {
    let (upstream, of_alice, of_bob) = (Upstream::start().await, secret("alice"), secret("bob"));
    take(&upstream, &[&of_alice, &of_bob]);
    let open = Upstream::open().await;
    let gateway = Gateway::builder()
        .route(route("demo", &upstream, &[]))
        .route(route("other", &open, &[("name", json!("X-Api-Key")), ("format", json!("key={value};v=1"))]))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let (mut alice, mut bob) = (Browser::of("alice"), Browser::of("bob"));
    let of_client_a = sign_in(&mut alice, &client, "demo", &format!("  {of_alice}\n")).await;
    let of_client_b = sign_in(&mut bob, &client, "demo", &of_bob).await;
    for (tokens, key) in [(&of_client_a, &of_alice), (&of_client_b, &of_bob)] {
        assert_eq!(call(&gateway, "demo", tokens).await.tool_text(), "heard");
        assert_eq!(upstream.calls().pop().unwrap().bearer().as_ref(), Some(key));
        assert!(!upstream.requests.mention(&tokens.access_token), "the client's token stays here");
    }
    // A key is for one server.
    let other = sign_in(&mut alice, &client, "other", &of_alice).await;
    assert_eq!(call(&gateway, "other", &other).await.status, 200);
    let sent = open.calls().pop().unwrap();
    assert_eq!(sent.header("x-api-key"), Some(format!("key={of_alice};v=1")));
    assert_eq!(sent.header("authorization"), None);
    // It is asked for once.
    let again = client.sign_in(&mut alice, "demo").await;
    assert_eq!(call(&gateway, "demo", &again).await.status, 200);
    let log = gateway.output.text();
    assert!(!log.contains(&of_alice) && !log.contains(&of_bob));
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn a_key_that_is_refused_is_asked_for_again_and_a_new_one_counts_at_once() {
    let (upstream, good) = (Upstream::start().await, secret("good"));
    let bad = secret("bad");
    let gateway = Gateway::builder().route(route("demo", &upstream, &[])).start().await;
    let (client, mut browser) = (Client::register(&gateway).await, Browser::new());
    take(&upstream, &[&good]);
    let tokens = sign_in(&mut browser, &client, "demo", &bad).await;
    let refused = call(&gateway, "demo", &tokens).await;
    assert_eq!(refused.status, 401, "{}", refused.body);
    let calls = upstream.calls().len();
    assert_eq!(call(&gateway, "demo", &tokens).await.status, 401);
    assert_eq!(upstream.calls().len(), calls, "a key that was refused is not sent again");
    let page = browser.go(&gateway.url("/connections")).await.page();
    assert!(page.text().contains("does not take the key"), "{}", page.text());
    // The client's next authorization leads to the page, and on from there.
    assert_eq!(client.refresh(&tokens.refresh_token).await.error().as_deref(), Some("invalid_grant"));
    let tokens = sign_in(&mut browser, &client, "demo", &good).await;
    assert_eq!(call(&gateway, "demo", &tokens).await.tool_text(), "heard");
    // Replaced on the page, without any client.
    let newer = secret("newer");
    take(&upstream, &[&newer]);
    let page = browser.go(&gateway.url("/connections/demo")).await.page();
    assert!(page.text().contains("Your key is kept here"), "{}", page.text());
    assert!(!page.body.contains(&good), "it is never shown");
    hand_over(&mut browser, &page, "demo", &newer).await;
    eventually(SECOND, async || call(&gateway, "demo", &tokens).await.status == 200).await;
    // Taken back.
    let page = browser.go(&gateway.url("/connections")).await.page();
    browser.submit(&page, &page.form_to("/connections/demo/disconnect"), &[]).await;
    eventually(SECOND, async || call(&gateway, "demo", &tokens).await.status == 401).await;
    assert_eq!(upstream.calls().pop().unwrap().bearer(), Some(newer), "nobody's call goes there");
}

#[tokio::test]
async fn what_is_no_key_is_said_to_be_none_and_nobody_hands_one_over_for_somebody_else() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::builder()
        .route(route("demo", &upstream, &[]))
        .route(Route::oauth("plain", &upstream))
        .start()
        .await;
    let mut browser = Browser::new();
    let page = browser.go(&gateway.url("/connections/demo")).await.page();
    let page = browser.sign_in(&page).await.page();
    for bad in ["", "   ", "two words", "line\nbreak", "ü", "a\u{7f}", &"x".repeat(8193)] {
        let answer = hand_over(&mut browser, &page, "demo", bad).await.page();
        assert_eq!(answer.status, 400, "{bad:?}");
        assert!(answer.text().contains("That cannot be a key"), "{}", answer.text());
        assert!(!answer.body.contains("two words"), "not even a bad one is shown");
    }
    // Another form's ticket is not this user's, and other routes have no keys.
    let mut form = page.form_to("/connections/demo/key");
    let key = secret("key");
    let forged = browser.submit(&page, &form, &[("csrf", "forged"), ("key", &key)]).await.page();
    assert_eq!(forged.status, 403);
    form.action = "/connections/plain/key".into();
    assert_eq!(browser.submit(&page, &form, &[("key", &key)]).await.page().status, 404);
    let elsewhere = [("key", key.as_str()), ("return_to", "https://evil.example/")];
    form.action = "/connections/demo/key".into();
    assert_eq!(browser.submit(&page, &form, &elsewhere).await.page().status, 400);
    let page = browser.go(&gateway.url("/connections")).await.page();
    assert!(page.text().contains("Needs a key of yours"), "nothing was kept: {}", page.text());
}

#[tokio::test]
async fn keys_outlive_a_restart_and_are_sealed() {
    let (upstream, key) = (Upstream::start().await, secret("key"));
    take(&upstream, &[&key]);
    let mut gateway = Gateway::builder().route(route("demo", &upstream, &[])).start().await;
    let (client, mut browser) = (Client::register(&gateway).await, Browser::new());
    let tokens = sign_in(&mut browser, &client, "demo", &key).await;
    gateway.restart().await;
    assert_eq!(call(&gateway, "demo", &tokens).await.tool_text(), "heard");
    gateway.stop().await;
    for file in std::fs::read_dir(gateway.data_dir()).unwrap().flatten() {
        let content = std::fs::read(file.path()).unwrap_or_default();
        assert!(!content.windows(key.len()).any(|part| part == key.as_bytes()), "{:?}", file.path());
    }
}
