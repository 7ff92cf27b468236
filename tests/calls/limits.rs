//! How often somebody may call, and how many calls of theirs may be under way at once: counted apart by caller, client, route
//! and tool, at one instance or over all of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::gate::Gate;
use support::gateway::{Gateway, Route};
use support::mcp::{McpAnswer, McpRequest};
use support::raw::exchange;
use support::redis::Redis;
use support::script::Answer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// A gateway with one route under these limits, and another one, `free`, without.
async fn start(upstream: &Upstream, limits: Value) -> Gateway {
    let limited = Route::open("demo", upstream).with("limits", limits);
    Gateway::builder().route(limited).route(Route::open("free", upstream)).start().await
}

/// A way to call `route` for this user, in a client of their own.
async fn caller(gateway: &Gateway, user: &str, route: &str) -> McpRequest {
    let client = Client::register(gateway).await;
    let tokens = client.sign_in(&mut Browser::of(user), route).await;
    gateway.mcp(route).bearer(&tokens.access_token)
}

async fn echo(call: &McpRequest) -> McpAnswer {
    call.tool("echo", json!({"message": "x"})).await
}

/// How many of so many calls, one after the other, are let through; the others are refused as they should be.
async fn let_through(call: &McpRequest, tool: &str, count: usize) -> usize {
    let mut passed = 0;
    for _ in 0..count {
        let answer = call.tool(tool, json!({})).await;
        match answer.status {
            200 => passed += 1,
            _ => refused(&answer),
        }
    }
    passed
}

/// 429 with the seconds after which to come again.
#[track_caller]
fn refused(answer: &McpAnswer) {
    assert_eq!(answer.status, 429, "{}", answer.body);
    assert!(retry_after(answer) >= 1);
    assert_eq!(answer.json()["error"], "too_many_requests", "{}", answer.body);
    assert!(answer.header("x-request-id").is_some());
}

#[track_caller]
fn retry_after(answer: &McpAnswer) -> u64 {
    answer.header("retry-after").expect("retry-after").parse().expect("whole seconds")
}

async fn metric(gateway: &Gateway, series: &str) -> String {
    let text = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
    found.unwrap_or("none").to_owned()
}

#[tokio::test]
async fn a_caller_has_a_rate_and_the_upstream_hears_nothing_of_what_goes_beyond() {
    let upstream = Upstream::open().await;
    let gateway = start(&upstream, json!([{"per": ["caller"], "rate": "3/h"}])).await;
    let (alice, bob) = (caller(&gateway, "alice", "demo").await, caller(&gateway, "bob", "demo").await);
    assert_eq!(let_through(&alice, "echo", 3).await, 3);
    let heard = upstream.calls().len();
    let answer = echo(&alice).await;
    refused(&answer);
    assert!((1190..=1200).contains(&retry_after(&answer)), "a third of an hour: {}", retry_after(&answer));
    for (method, body) in [("GET", None), ("DELETE", None), ("POST", Some("no JSON at all"))] {
        refused(&McpAnswer::of(alice.send(method, body).await).await);
    }
    assert_eq!(upstream.calls().len(), heard);
    // In all clients of theirs; nobody else, and nowhere else.
    refused(&echo(&caller(&gateway, "alice", "demo").await).await);
    assert_eq!(let_through(&bob, "echo", 4).await, 3);
    assert_eq!(let_through(&caller(&gateway, "alice", "free").await, "echo", 5).await, 5);
    let limited = r#"postern_calls_limited_total{kind="rate",per="caller",route="demo"}"#;
    assert_eq!(metric(&gateway, limited).await, "6");
    let requests = r#"postern_requests_total{caller="user",class="4xx",reason="rate_limited",route="demo"}"#;
    eventually(SECOND, async || metric(&gateway, requests).await == "6").await;
}

#[tokio::test]
async fn who_waits_as_told_is_served() {
    let upstream = Upstream::open().await;
    let gateway = start(&upstream, json!([{"per": ["caller"], "rate": "1/s", "burst": 2}])).await;
    let alice = caller(&gateway, "alice", "demo").await;
    let begun = Instant::now();
    let answer = loop {
        let answer = echo(&alice).await;
        if answer.status != 200 {
            break answer;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing is ever refused");
    };
    refused(&answer);
    assert_eq!(retry_after(&answer), 1);
    tokio::time::sleep(SECOND).await;
    assert_eq!(echo(&alice).await.status, 200);
}

#[tokio::test]
async fn clients_and_routes_count_apart_where_the_limit_says_so() {
    let upstream = Upstream::open().await;
    let calls = json!([
        {"per": ["client"], "rate": "4/h"},
        {"per": ["route", "caller"], "rate": "6/h"},
        {"rate": "15/h"},
    ]);
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .route(Route::open("free", &upstream))
        .with("limits.calls", calls)
        .start()
        .await;
    let (first, second) = (caller(&gateway, "alice", "demo").await, caller(&gateway, "alice", "demo").await);
    assert_eq!(let_through(&first, "echo", 6).await, 4, "of one client");
    assert_eq!(let_through(&second, "echo", 3).await, 2, "of alice at this route");
    let elsewhere = caller(&gateway, "alice", "free").await;
    assert_eq!(let_through(&elsewhere, "echo", 6).await, 4, "at the other route she has a share of her own");
    // What one limit refuses counts towards those before it: ten were let through, and one more came as far as the last.
    let bob = caller(&gateway, "bob", "free").await;
    assert_eq!(let_through(&bob, "echo", 4).await, 4);
    let other = caller(&gateway, "bob", "demo").await;
    assert_eq!(let_through(&other, "echo", 3).await, 1, "of everybody at all routes");
}

#[tokio::test]
async fn a_tool_has_a_rate_and_its_name_is_read_from_what_is_sent() {
    let upstream = Upstream::open().await;
    let gateway = start(&upstream, json!([{"per": ["caller", "tool"], "rate": "2/h"}])).await;
    let (alice, bob) = (caller(&gateway, "alice", "demo").await, caller(&gateway, "bob", "demo").await);
    assert_eq!(let_through(&alice, "echo", 4).await, 2);
    assert_eq!(let_through(&alice, "whoami", 3).await, 2);
    assert_eq!(let_through(&bob, "echo", 1).await, 1);
    for _ in 0..5 {
        assert_eq!(alice.call("tools/list", json!({})).await.status, 200, "no call of a tool");
        assert_eq!(alice.call("prompts/get", json!({"name": "echo"})).await.status, 200);
    }
    // A body that is held back counts as well, once, and none of it arrives when it goes beyond.
    let long = "x".repeat(100_000);
    assert_eq!(bob.tool("echo", json!({"message": &long})).await.status, 200);
    let heard = upstream.calls().len();
    refused(&bob.tool("echo", json!({"message": &long})).await);
    assert!(upstream.calls().iter().skip(heard).all(|call| !call.text().contains("xxx")));
    // What cannot be read in one way is not counted as nothing.
    let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{}}}]"#;
    assert_eq!(alice.post(batch).await.status, 400);
    let twice = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping","params":{"name":"echo"}}"#;
    assert_eq!(alice.post(twice).await.status, 400);
    let modern =
        alice.clone().header("mcp-protocol-version", "2026-07-28").header("mcp-method", "tools/call");
    let lying = modern.header("mcp-name", "whatever");
    assert_eq!(echo(&lying).await.status, 400, "another name in the header");
    let endless = "n".repeat(60_000);
    assert_eq!(let_through(&alice, &endless, 3).await, 2, "names of any length");
}

#[tokio::test]
async fn a_call_that_is_sent_again_with_another_token_counts_once() {
    let upstream = Upstream::start().await;
    let limits = json!([{"per": ["caller", "tool"], "rate": "4/h", "concurrent": 1}]);
    let gateway =
        Gateway::builder().route(Route::oauth("demo", &upstream).with("limits", limits)).start().await;
    let client = Client::register(&gateway).await;
    let token = client.sign_in(&mut Browser::new(), "demo").await.access_token;
    let body = echo_body();
    for framing in ["content-length: LENGTH", "transfer-encoding: chunked"] {
        for _ in 0..2 {
            upstream.refuse_current_tokens();
            let sent = match framing.starts_with("transfer") {
                true => format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
                false => body.clone(),
            };
            let framing = framing.replace("LENGTH", &body.len().to_string());
            let request = format!(
                "POST /demo HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\nconnection: close\r\n{framing}\r\n\r\n{sent}",
                gateway.address
            );
            eventually(PATIENCE, async || {
                let answer = exchange(gateway.address, request.clone(), PATIENCE).await.unwrap();
                assert!(answer.status == 200 || answer.header("retry-after") == Some("1"));
                answer.status == 200
            })
            .await;
        }
    }
    refused(&gateway.mcp("demo").bearer(&token).tool("echo", json!({})).await);
}

#[tokio::test]
async fn calls_under_way_are_counted_until_their_answers_end() {
    let upstream = Upstream::open().await;
    let gateway = start(&upstream, json!([{"per": ["caller"], "concurrent": 2}])).await;
    let (alice, bob) = (caller(&gateway, "alice", "demo").await, caller(&gateway, "bob", "demo").await);
    let gate = Gate::shut();
    upstream.set(|script| script.gate = Some(gate.clone()));
    let under_way: Vec<_> = (0..2)
        .map(|_| {
            let alice = alice.clone();
            tokio::spawn(async move { echo(&alice).await.status })
        })
        .collect();
    gate.wait_for(2, PATIENCE).await;
    let answer = echo(&alice).await;
    refused(&answer);
    assert_eq!(retry_after(&answer), 1);
    let of_bob = tokio::spawn(async move { echo(&bob).await.status });
    gate.wait_for(3, PATIENCE).await;
    gate.open();
    for call in under_way {
        assert_eq!(call.await.unwrap(), 200);
    }
    assert_eq!(of_bob.await.unwrap(), 200);
    upstream.set(|script| script.gate = None);
    assert_eq!(let_through(&alice, "echo", 5).await, 5, "one after the other");
    let limited = r#"postern_calls_limited_total{kind="concurrent",per="caller",route="demo"}"#;
    assert_eq!(metric(&gateway, limited).await, "1");
}

/// The two places of a caller are free again, both.
async fn are_free(upstream: &Upstream, call: &McpRequest) {
    let gate = Gate::shut();
    upstream.set(|script| script.gate = Some(gate.clone()));
    let both: Vec<_> = (0..2)
        .map(|_| {
            let call = call.clone();
            tokio::spawn(async move {
                // A place is given back a moment after its answer has ended.
                eventually(PATIENCE, async || echo(&call).await.status == 200).await;
            })
        })
        .collect();
    gate.wait_for(2, PATIENCE).await;
    refused(&echo(call).await);
    gate.open();
    for call in both {
        call.await.unwrap();
    }
    upstream.set(|script| script.gate = None);
}

#[tokio::test]
async fn a_place_is_given_back_however_a_call_ends() {
    let upstream = Upstream::open().await;
    let gateway = start(&upstream, json!([{"per": ["caller", "tool"], "concurrent": 2}])).await;
    let alice = caller(&gateway, "alice", "demo").await;
    are_free(&upstream, &alice).await;
    for _ in 0..2 {
        for answer in [Answer::http(500, &[], ""), Answer::Hangup, Answer::Half] {
            upstream.answer_next(answer);
            // The client may see a broken answer.
            if let Ok(answer) = alice.try_send("POST", Some(&echo_body())).await {
                let _ = answer.bytes().await;
            }
        }
        assert_eq!(alice.post("{").await.status, 400);
        // The client goes before there is an answer, and in the middle of one.
        let gate = Gate::shut();
        upstream.set(|script| script.gate = Some(gate.clone()));
        let gone = {
            let alice = alice.clone();
            tokio::spawn(async move { echo(&alice).await })
        };
        gate.wait_for(1, PATIENCE).await;
        gone.abort();
        eventually(PATIENCE, async || gate.waiting() == 0).await;
        gate.open();
        upstream.set(|script| script.gate = None);
        let (feed, answer) = Answer::stream();
        upstream.answer_next(answer);
        let stream = alice.send("POST", Some(&echo_body())).await;
        assert_eq!(stream.status(), 200);
        drop(stream);
        support::within(PATIENCE, feed.gone()).await;
        are_free(&upstream, &alice).await;
    }
}

fn echo_body() -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {}}})
        .to_string()
}

#[tokio::test]
async fn an_answer_of_events_is_under_way_until_its_end_and_a_stream_of_the_client_is_not() {
    let upstream = Upstream::open().await;
    let gateway = start(&upstream, json!([{"per": ["caller"], "concurrent": 1}])).await;
    let alice = caller(&gateway, "alice", "demo").await;
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let events = alice.send("POST", Some(&echo_body())).await;
    refused(&echo(&alice).await);
    feed.finish();
    events.bytes().await.unwrap();
    eventually(PATIENCE, async || echo(&alice).await.status == 200).await;

    let (_get, answer) = Answer::stream();
    upstream.answer_next(answer);
    let _listening = alice.send("GET", None).await;
    let modern = alice.clone().header("mcp-protocol-version", "2026-07-28");
    let listen = modern.clone().header("mcp-method", "subscriptions/listen");
    let (_post, answer) = Answer::stream();
    upstream.answer_next(answer);
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": {}}).to_string();
    let _subscribed = listen.send("POST", Some(&body)).await;
    assert_eq!(_subscribed.status(), 200);
    eventually(PATIENCE, async || echo(&alice).await.status == 200).await;
    // Nobody gets a place for nothing by a header: the body is what counts.
    let answer = echo(&listen.header("mcp-name", "echo")).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!(-32020)), "{}", answer.body);
}

#[tokio::test]
async fn what_was_counted_outlives_a_reload_that_leaves_the_limit_as_it_is() {
    let upstream = Upstream::open().await;
    let gateway = start(&upstream, json!([{"per": ["caller"], "rate": "3/h"}])).await;
    let alice = caller(&gateway, "alice", "demo").await;
    assert_eq!(let_through(&alice, "echo", 3).await, 3);
    gateway.reconfigure("limits", json!({"streams": 77}));
    gateway.hang_up();
    gateway.output.shows("the configuration is in use").await;
    refused(&echo(&alice).await);
    // Another limit counts from its beginning.
    gateway.reconfigure("limits", json!({"calls": [{"per": ["caller"], "rate": "2/h"}]}));
    let text = std::fs::read_to_string(gateway.config_file()).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["routes"][0]["limits"] = json!([{"per": ["caller"], "rate": "9/h"}]);
    std::fs::write(gateway.config_file(), config.to_string()).unwrap();
    gateway.hang_up();
    eventually(PATIENCE, async || echo(&alice).await.status == 200).await;
    assert_eq!(let_through(&alice, "echo", 3).await, 1);
}

/// Three instances on one Redis, with these limits at `demo`.
async fn cluster(redis: &Redis, upstream: &Upstream, limits: Value) -> (Cluster, Vec<McpRequest>) {
    let route = Route::open("demo", upstream).with("limits", limits);
    let cluster = Cluster::of(3, Shared::new(store_at(address_of(redis)), vec![route])).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let calls = (0..3).map(|instance| cluster.call(instance, &tokens)).collect();
    (cluster, calls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_rate_is_one_for_all_instances_and_goes_on_without_the_store() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let limits = json!([{"per": ["caller"], "rate": "10/h", "shared": true}]);
    let (cluster, calls) = cluster(&redis, &upstream, limits).await;
    let storm: Vec<_> = (0..30)
        .map(|number| {
            let call = calls[number % 3].clone();
            tokio::spawn(async move { echo(&call).await })
        })
        .collect();
    let mut passed = 0;
    for call in storm {
        let answer = call.await.unwrap();
        match answer.status {
            200 => passed += 1,
            _ => refused(&answer),
        }
    }
    assert_eq!(passed, 10);
    let answer = echo(&calls[0]).await;
    refused(&answer);
    assert!((300..=360).contains(&retry_after(&answer)), "{}", retry_after(&answer));
    // Bob has a share of his own. While the store is away each instance counts for itself, and nothing else goes wrong.
    let (_, bob) = cluster.sign_in_as("bob", 1).await;
    redis.kill();
    for instance in 0..3 {
        assert_eq!(let_through(&cluster.call(instance, &bob), "echo", 12).await, 10, "{instance}");
    }
    let alone = metric(&cluster.instances[0], "postern_calls_counted_alone_total").await;
    assert_eq!(alone, "10", "what the instance itself refuses is not asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_that_is_not_shared_is_each_instances_own() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let (_cluster, calls) = cluster(&redis, &upstream, json!([{"per": ["caller"], "rate": "4/h"}])).await;
    for call in &calls {
        assert_eq!(let_through(call, "echo", 5).await, 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_places_are_taken_and_given_back_over_all_instances() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let limits = json!([{"per": ["caller"], "concurrent": 2, "shared": true}]);
    let (_cluster, calls) = cluster(&redis, &upstream, limits).await;
    for _ in 0..2 {
        let gate = Gate::shut();
        upstream.set(|script| script.gate = Some(gate.clone()));
        let under_way: Vec<_> = (0..2)
            .map(|instance| {
                let call = calls[instance].clone();
                tokio::spawn(async move {
                    // A place is given back a moment after its answer has ended.
                    eventually(PATIENCE, async || echo(&call).await.status == 200).await;
                })
            })
            .collect();
        gate.wait_for(2, PATIENCE).await;
        refused(&echo(&calls[2]).await);
        gate.open();
        for call in under_way {
            call.await.unwrap();
        }
        upstream.set(|script| script.gate = None);
        eventually(PATIENCE, async || echo(&calls[2]).await.status == 200).await;
    }
    // Without the store the places are each instance's own.
    redis.kill();
    for call in &calls {
        assert_eq!(let_through(call, "echo", 3).await, 3);
    }
}
