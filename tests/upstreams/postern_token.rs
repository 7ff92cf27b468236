//! Routes whose upstream is an MCP client itself: the token of ours that it gets, where that is good, and how long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::eventually;
use support::gateway::{Builder, Gateway, Route};
use support::mcp::McpAnswer;
use support::params::Params;
use support::upstream::Upstream;

/// An agent that may call two servers; a third one is there as well, and another agent.
fn builder(agent: &Upstream, server: &Upstream) -> Builder {
    let relay = |name: &str, routes: Value| {
        Route::to(name, &agent.url(), json!({"kind": "postern_token", "routes": routes}))
    };
    let listed = json!([
        {"client_id": "watcher", "client_secret": {"env": "SECRET"}, "introspect": true},
        {"client_id": "robot", "client_secret": {"env": "SECRET"}, "client_credentials": {"routes": ["agent"]}},
    ]);
    Gateway::builder()
        .route(relay("agent", json!(["files", "mail", "second"])))
        .route(relay("second", json!(["files"])))
        .route(Route::open("files", server))
        .route(Route::open("mail", server))
        .route(Route::open("other", server))
        .with("oauth_server.clients.static", listed)
        .env("SECRET", "secret-of-two")
}

async fn call(gateway: &Gateway, route: &str, token: &str) -> McpAnswer {
    gateway.mcp(route).bearer(token).call("ping", json!({})).await
}

async fn form(gateway: &Gateway, path: &str, client: &str, params: Params) -> Value {
    let request = gateway.http.post(gateway.url(path)).basic_auth(client, Some("secret-of-two"));
    let request = request.header("content-type", "application/x-www-form-urlencoded").body(params.encoded());
    serde_json::from_slice(&request.send().await.unwrap().bytes().await.unwrap()).unwrap()
}

#[tokio::test]
async fn pom_39_an_agent_gets_a_short_token_for_its_caller_and_for_the_routes_that_are_named() {
    for format in ["sealed", "jwt"] {
        let (agent, server) = (Upstream::open().await, Upstream::open().await);
        let gateway =
            builder(&agent, &server).with("oauth_server.access_token_format", json!(format)).start().await;
        let client = Client::register(&gateway).await;
        let tokens = client.sign_in(&mut Browser::new(), "agent").await;
        assert_eq!(call(&gateway, "agent", &tokens.access_token).await.status, 200);
        let relayed = agent.calls().pop().unwrap().bearer().unwrap();
        assert!(!agent.requests.mention(&tokens.access_token), "the client's own token stays here");

        for (route, status) in [("files", 200), ("mail", 200), ("other", 401), ("agent", 401)] {
            assert_eq!(call(&gateway, route, &relayed).await.status, status, "{format}: {route}");
        }
        let about = Params::new().with("token", &relayed);
        let about = form(&gateway, "/oauth/introspect", "watcher", about).await;
        assert_eq!((&about["sub"], &about["client_id"]), (&json!("alice"), &json!("route:agent")));
        let resources = ["files", "mail", "second"].map(|route| gateway.url(&format!("/{route}")));
        assert_eq!(about["aud"], json!(resources));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let left = about["exp"].as_u64().unwrap() - now;
        // Whole seconds, up at the one and down at the other.
        assert!((290..=301).contains(&left), "{left}");

        // One hop: the agent behind the agent gets nothing to go on with.
        let calls = agent.calls().len();
        assert_eq!(call(&gateway, "second", &relayed).await.status, 403);
        assert_eq!(agent.calls().len(), calls);
        assert!(!server.requests.mention(&relayed), "nor does it go further");

        // What ends the caller's grant ends it.
        client.revoke(&tokens.refresh_token).await;
        eventually(Duration::from_secs(1), async || call(&gateway, "files", &relayed).await.status == 401)
            .await;
        gateway.output.assert_no_secret();
        assert!(!gateway.output.text().contains(&relayed));
    }
}

#[tokio::test]
async fn it_never_outlives_the_token_that_it_stands_for() {
    let (agent, server) = (Upstream::open().await, Upstream::open().await);
    let gateway = builder(&agent, &server).with("oauth_server.access_token_ttl", json!("3s")).start().await;
    let tokens = Client::register(&gateway).await.sign_in(&mut Browser::new(), "agent").await;
    assert_eq!(call(&gateway, "agent", &tokens.access_token).await.status, 200);
    let relayed = agent.calls().pop().unwrap().bearer().unwrap();
    eventually(Duration::from_secs(4), async || call(&gateway, "files", &relayed).await.status == 401).await;
}

#[tokio::test]
async fn a_program_has_nobody_to_call_for() {
    let (agent, server) = (Upstream::open().await, Upstream::open().await);
    let gateway = builder(&agent, &server).start().await;
    let params =
        Params::new().with("grant_type", "client_credentials").with("resource", &gateway.url("/agent"));
    let answer = form(&gateway, "/oauth/token", "robot", params).await;
    let token = answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(call(&gateway, "agent", token).await.status, 403);
    assert!(agent.calls().is_empty());
}
