//! How many streams clients may keep open: each their share, all of them together no more than there is room for, and calls
//! go on beside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::Duration;

use serde_json::json;
use support::body::Feed;
use support::browser::Browser;
use support::client::Client;
use support::eventually;
use support::gateway::{Builder, Gateway, Route};
use support::mcp::McpRequest;
use support::script::Answer;
use support::upstream::Upstream;
use support::within;

const SECOND: Duration = Duration::from_secs(1);

/// A gateway with these limits, and a way to call it for each of these users.
async fn start<const N: usize>(
    upstream: &Upstream,
    limits: serde_json::Value,
    users: [&str; N],
) -> (Gateway, [McpRequest; N]) {
    let builder: Builder = Gateway::builder().route(Route::open("demo", upstream)).with("limits", limits);
    let gateway = builder.start().await;
    let client = Client::register(&gateway).await;
    let mut calls = Vec::new();
    for user in users {
        let tokens = client.sign_in(&mut Browser::of(user), "demo").await;
        calls.push(gateway.mcp("demo").bearer(&tokens.access_token));
    }
    (gateway, calls.try_into().ok().unwrap())
}

/// A stream that says nothing, held open at both ends.
async fn idle(upstream: &Upstream, call: &McpRequest) -> (Feed, reqwest::Response) {
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let stream = call.send("GET", None).await;
    assert_eq!(stream.status(), 200);
    (feed, stream)
}

async fn works(call: &McpRequest) -> bool {
    call.tool("echo", json!({"message": "x"})).await.status == 200
}

async fn metric(gateway: &Gateway, series: &str) -> String {
    let text = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.unwrap().to_owned()
}

async fn open(gateway: &Gateway) -> String {
    metric(gateway, "postern_streams").await
}

/// How often this limit has kept somebody from a stream.
async fn limited(gateway: &Gateway, limit: &str) -> String {
    metric(gateway, &format!("postern_limited_total{{limit=\"{limit}\"}}")).await
}

#[tokio::test]
async fn sr_rs_11_sr_t53_a_user_has_a_share_of_the_streams_and_calls_go_on() {
    let upstream = Upstream::open().await;
    let (gateway, [alice, bob]) = start(&upstream, json!({"streams_per_user": 20}), ["alice", "bob"]).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(idle(&upstream, &alice).await);
    }
    let calls = upstream.calls().len();
    for _ in 0..100 {
        let refused = alice.get().await;
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("5")), "{}", refused.body);
    }
    assert_eq!(upstream.calls().len(), calls, "the upstream hears nothing of it");
    assert!(works(&alice).await && works(&bob).await);
    // As of 2026-07-28 a client listens by POST.
    let listening = alice.clone().header("mcp-method", "subscriptions/listen");
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{}}"#;
    assert_eq!(listening.post(body).await.status, 429);
    assert_eq!(limited(&gateway, "streams_per_user").await, "101");
    let of_bob = idle(&upstream, &bob).await;
    // Whoever closes one may open another.
    let (feed, stream) = streams.pop().unwrap();
    drop(stream);
    within(SECOND, feed.gone()).await;
    eventually(SECOND, async || open(&gateway).await == "20").await;
    streams.push(idle(&upstream, &alice).await);
    assert_eq!(alice.get().await.status, 429);
    drop((streams, of_bob));
    eventually(SECOND, async || open(&gateway).await == "0").await;
}

#[tokio::test]
async fn sr_rs_11_sr_t53_all_streams_together_leave_room_for_calls() {
    let upstream = Upstream::open().await;
    let limits = json!({"streams": 30, "streams_per_user": 20});
    let (gateway, [alice, bob]) = start(&upstream, limits, ["alice", "bob"]).await;
    let mut streams = Vec::new();
    for number in 0..30 {
        streams.push(idle(&upstream, if number < 20 { &alice } else { &bob }).await);
    }
    let refused = bob.get().await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "{}", refused.body);
    assert_eq!(
        (limited(&gateway, "streams").await, limited(&gateway, "streams_per_user").await),
        ("1".into(), "0".into())
    );
    for call in [&alice, &bob] {
        assert!(works(call).await);
    }
    // More room counts from the next configuration on.
    gateway.reconfigure("limits.streams", json!(31));
    gateway.hang_up();
    gateway.output.shows("the configuration is in use").await;
    streams.push(idle(&upstream, &bob).await);
    assert_eq!(bob.get().await.status, 503);
    drop(streams);
    eventually(SECOND, async || open(&gateway).await == "0").await;
}

#[tokio::test]
async fn sr_t53_nothing_is_left_of_streams_that_were_opened_and_closed() {
    let upstream = Upstream::open().await;
    let (gateway, [alice]) = start(&upstream, json!({"streams_per_user": 4}), ["alice"]).await;
    let rounds = if std::env::var_os("POSTERN_SOAK").is_some() { 10_000 } else { 300 };
    for _ in 0..rounds {
        let (feed, stream) = idle(&upstream, &alice).await;
        drop(stream);
        within(SECOND, feed.gone()).await;
        eventually(SECOND, async || open(&gateway).await == "0").await;
    }
    // Nor of those that the upstream refuses, or ends.
    for status in [405, 500] {
        for _ in 0..5 {
            upstream.answer_next(Answer::http(status, &[], ""));
            assert_eq!(alice.get().await.status, status);
        }
    }
    for _ in 0..5 {
        let (feed, stream) = idle(&upstream, &alice).await;
        feed.finish();
        within(SECOND, stream.bytes()).await.unwrap();
    }
    eventually(SECOND, async || open(&gateway).await == "0").await;
}
