//! One user's connection for everybody at a route: who makes it, whom it serves, and who is asked when it is over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::Duration;

use serde_json::json;
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::eventually;
use support::gateway::{Gateway, Route};
use support::mcp::McpAnswer;
use support::script::TokenFault;
use support::upstream::Upstream;

async fn world() -> (Gateway, Upstream, Client) {
    let upstream = Upstream::start().await;
    let shared =
        Route::oauth("demo", &upstream).with("credential", json!({"kind": "oauth", "shared_by": "alice"}));
    let gateway = Gateway::builder().route(shared).start().await;
    let client = Client::register(&gateway).await;
    (gateway, upstream, client)
}

async fn call(gateway: &Gateway, tokens: &Tokens) -> McpAnswer {
    gateway.mcp("demo").bearer(&tokens.access_token).tool("echo", json!({"message": "heard"})).await
}

#[tokio::test]
async fn what_one_user_has_connected_serves_everybody_under_their_own_names() {
    let (gateway, upstream, client) = world().await;
    // Somebody else is sent nowhere: it is not theirs to connect.
    let mut bob = Browser::of("bob");
    let of_bob = client.sign_in(&mut bob, "demo").await;
    assert!(!bob.visited(&upstream.authorization.issuer()), "{:?}", bob.trail());
    assert_eq!(call(&gateway, &of_bob).await.status, 403);
    let page = bob.go(&gateway.url("/connections")).await.page();
    assert!(page.text().contains("Needs no connection of your own"), "{}", page.text());

    let mut alice = Browser::of("alice");
    let of_alice = client.sign_in(&mut alice, "demo").await;
    assert!(alice.visited(&upstream.authorization.issuer()));
    for tokens in [&of_alice, &of_bob] {
        eventually(Duration::from_secs(1), async || call(&gateway, tokens).await.status == 200).await;
        assert!(!upstream.requests.mention(&tokens.access_token), "the client's token stays here");
    }
    let mut sent: Vec<_> = upstream.calls_with_token().iter().filter_map(|call| call.bearer()).collect();
    sent.dedup();
    assert_eq!(sent.len(), 1, "one connection for both");

    // Renewed for whoever comes, and ended by its owner alone.
    upstream.refuse_current_tokens();
    assert_eq!(call(&gateway, &of_bob).await.status, 200);
    assert_eq!(upstream.authorization.refreshes(), 1);
    upstream.set_authorization(|script| script.token_faults.push_back(TokenFault::error("invalid_grant")));
    upstream.refuse_current_tokens();
    assert_eq!(call(&gateway, &of_bob).await.status, 403, "nobody but its owner can do anything about it");
    assert_eq!(
        client.refresh(&of_bob.refresh_token).await.status(),
        200,
        "nor is another one signed out for it"
    );
    assert_eq!(call(&gateway, &of_alice).await.status, 401);
    upstream.set(|script| script.refused_generation = 0);
    let of_alice = client.sign_in(&mut alice, "demo").await;
    for tokens in [&of_alice, &of_bob] {
        eventually(Duration::from_secs(1), async || call(&gateway, tokens).await.status == 200).await;
    }
    gateway.output.assert_no_secret();
}
