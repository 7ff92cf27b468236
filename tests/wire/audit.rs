//! The audit log of credentials: one event for each time that a permitted call asked for one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::mcp::McpAnswer;
use support::script::TokenFault;
use support::upstream::Upstream;
use support::{PATIENCE, eventually_some, secret};

/// The events of the request that was answered so: as many as wanted, and then no more.
async fn resolutions(gateway: &Gateway, answer: &McpAnswer, wanted: usize) -> Vec<Value> {
    let id = answer.header("x-request-id").unwrap().to_owned();
    let of_request = || {
        let records = gateway.output.records().into_iter();
        records
            .filter(|line| {
                line["target"] == "audit" && line["event"] == "credential" && line["request_id"] == *id
            })
            .collect::<Vec<_>>()
    };
    eventually_some(PATIENCE, || {
        let found = of_request();
        async move { (found.len() >= wanted).then_some(()) }
    })
    .await;
    let found = of_request();
    assert_eq!(found.len(), wanted, "{found:?}");
    found
}

fn told(event: &Value) -> [&str; 4] {
    ["act", "outcome", "reason", "strategy"].map(|name| event[name].as_str().unwrap())
}

#[tokio::test]
async fn each_resolution_is_told_once() {
    let (upstream, open) = (Upstream::start().await, Upstream::open().await);
    let key = secret("key");
    let gateway = Gateway::builder()
        .route(Route::oauth("demo", &upstream))
        .route(Route::open("open", &open))
        .route(Route::header("fixed", &open, "x-api-key", json!({"env": "KEY"})))
        .env("KEY", &key)
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    let mut call = Vec::new();
    for route in ["demo", "open", "fixed"] {
        let tokens = client.sign_in(&mut browser, route).await;
        call.push(gateway.mcp(route).bearer(&tokens.access_token));
    }
    let [demo, open, fixed] = <[_; 3]>::try_from(call).ok().unwrap();

    let answer = demo.tool("whoami", json!({})).await;
    let [event] = <[_; 1]>::try_from(resolutions(&gateway, &answer, 1).await).unwrap();
    assert_eq!(told(&event), ["inject", "ok", "connection", "oauth"]);
    assert_eq!((&event["user"], &event["route"]), (&json!("alice"), &json!("demo")));
    assert_eq!((&event["client"], &event["level"]), (&json!(client.id), &json!("INFO")));
    assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));

    let event = &resolutions(&gateway, &open.call("ping", json!({})).await, 1).await[0];
    assert_eq!(told(event), ["inject", "ok", "none", "none"]);
    let event = &resolutions(&gateway, &fixed.call("ping", json!({})).await, 1).await[0];
    assert_eq!(told(event), ["inject", "ok", "fixed", "header"]);

    // A token that is refused is resolved twice, for the same request.
    upstream.refuse_current_tokens();
    let events = resolutions(&gateway, &demo.tool("whoami", json!({})).await, 2).await;
    assert_eq!(told(&events[0]), ["inject", "ok", "connection", "oauth"]);
    assert_eq!(told(&events[1]), ["refresh", "ok", "connection", "oauth"]);

    // A connection that the upstream has ended.
    upstream.set_authorization(|script| script.token_faults.push_back(TokenFault::error("invalid_grant")));
    upstream.refuse_current_tokens();
    let answer = demo.tool("whoami", json!({})).await;
    assert_eq!(answer.status, 401);
    let events = resolutions(&gateway, &answer, 2).await;
    assert_eq!(told(&events[1]), ["connect", "failed", "connection_ended", "oauth"]);

    // Who is not permitted has not asked.
    let stranger = open.clone().bearer("nonsense").call("ping", json!({})).await;
    resolutions(&gateway, &stranger, 0).await;
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn where_only_changes_are_told_a_credential_that_was_there_is_none() {
    for (access_log, audit_log) in [("off", None), ("json", Some("changes"))] {
        let upstream = Upstream::start().await;
        let mut builder = Gateway::builder()
            .with("server.access_log", json!(access_log))
            .route(Route::oauth("demo", &upstream));
        if let Some(audit_log) = audit_log {
            builder = builder.with("server.audit_log", json!(audit_log));
        }
        let gateway = builder.start().await;
        let tokens = Client::register(&gateway).await.sign_in(&mut Browser::new(), "demo").await;
        let demo = gateway.mcp("demo").bearer(&tokens.access_token);
        let usual = demo.tool("whoami", json!({})).await;
        upstream.refuse_current_tokens();
        let renewed = demo.tool("whoami", json!({})).await;
        assert_eq!((usual.status, renewed.status), (200, 200));
        let event = &resolutions(&gateway, &renewed, 1).await[0];
        assert_eq!(told(event), ["refresh", "ok", "connection", "oauth"]);
        resolutions(&gateway, &usual, 0).await;
    }
}
