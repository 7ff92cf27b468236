//! MCP sessions of revision 2025-11-25: whose they are, and that nothing else follows from them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use serde_json::json;
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::gateway::{Gateway, PASSWORD_HASH, Route};
use support::mcp::{McpAnswer, McpRequest};
use support::redis::Redis;
use support::script::Answer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

async fn with_sessions() -> Upstream {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.sessions = true);
    upstream
}

async fn sign_in(gateway: &Gateway, user: &str, route: &str) -> (Client, Tokens) {
    let client = Client::register(gateway).await;
    let tokens = client.sign_in(&mut Browser::of(user), route).await;
    (client, tokens)
}

fn call(gateway: &Gateway, route: &str, token: &str) -> McpRequest {
    gateway.mcp(route).bearer(token)
}

/// Begins a session; what the client is told it is called.
async fn begin(gateway: &Gateway, route: &str, token: &str) -> String {
    let answer =
        call(gateway, route, token).call("initialize", json!({"protocolVersion": "2025-11-25"})).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.header("mcp-session-id").unwrap().to_owned()
}

async fn echo(request: McpRequest) -> McpAnswer {
    request.tool("echo", json!({"message": "hi"})).await
}

#[tokio::test]
async fn sr_rs_05_a_session_is_its_callers_at_its_route_and_nobody_elses() {
    let (upstream, second) = (with_sessions().await, with_sessions().await);
    let gateway = Gateway::builder()
        .route(Route::oauth("demo", &upstream))
        .route(Route::oauth("second", &second))
        .start()
        .await;
    let (client, alice) = sign_in(&gateway, "alice", "demo").await;
    let session = begin(&gateway, "demo", &alice.access_token).await;
    let own = call(&gateway, "demo", &alice.access_token);
    assert_eq!(echo(own.header("mcp-session-id", &session)).await.tool_text(), "hi");
    // After a refresh, and from another browser, it is the same caller.
    let next = client.refresh(&alice.refresh_token).await.tokens();
    assert_eq!(
        echo(call(&gateway, "demo", &next.access_token).header("mcp-session-id", &session)).await.status,
        200
    );
    let again = client.sign_in(&mut Browser::new(), "demo").await;
    assert_eq!(
        echo(call(&gateway, "demo", &again.access_token).header("mcp-session-id", &session)).await.status,
        200
    );

    // Each differs in one thing only.
    let bob = client.sign_in(&mut Browser::of("bob"), "demo").await;
    let (_, other_client) = sign_in(&gateway, "alice", "demo").await;
    let other_route = client.sign_in(&mut Browser::new(), "second").await;
    begin(&gateway, "second", &other_route.access_token).await;
    let bobs = begin(&gateway, "demo", &bob.access_token).await;
    let tampered = {
        let mut text = session.clone().into_bytes();
        let middle = text.len() / 2;
        text[middle] = if text[middle] == b'A' { b'B' } else { b'A' };
        String::from_utf8(text).unwrap()
    };
    let there = upstream.requests.last_to("/mcp").header("mcp-session-id").unwrap_or_default();
    upstream.requests.clear();
    second.requests.clear();
    for (what, route, token, id) in [
        ("another user", "demo", &bob.access_token, session.as_str()),
        ("another client of the same user", "demo", &other_client.access_token, &session),
        ("another route", "second", &other_route.access_token, &session),
        ("somebody else's", "demo", &next.access_token, &bobs),
        ("another bit", "demo", &next.access_token, &tampered),
        ("the upstream's own id", "demo", &next.access_token, &there),
        ("an access token", "demo", &next.access_token, &next.access_token),
        ("nothing but the beginning", "demo", &next.access_token, "postern_ms_"),
        ("nonsense", "demo", &next.access_token, "x"),
    ] {
        for request in [call(&gateway, route, token).header("mcp-session-id", id)] {
            let answer = echo(request).await;
            assert_eq!(
                (answer.status, answer.header("www-authenticate")),
                (404, None),
                "{what}: {}",
                answer.body
            );
        }
        let end = call(&gateway, route, token).header("mcp-session-id", id).delete().await;
        assert_eq!(end.status, 404, "{what}");
    }
    assert!(upstream.calls().is_empty() && second.calls().is_empty(), "nothing of it arrived");
    // It proves nothing: without a token there is nobody.
    let nobody = echo(gateway.mcp("demo").header("mcp-session-id", &session)).await;
    assert_eq!(nobody.status, 401);
    assert_eq!(echo(call(&gateway, "demo", &session)).await.status, 401);
    // And all of that has cost nobody their session.
    assert_eq!(
        echo(call(&gateway, "demo", &next.access_token).header("mcp-session-id", &session)).await.status,
        200
    );
    gateway.output.assert_no_secret();
    assert!(!gateway.output.text().contains(&session), "a session id in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_at_every_instance_and_over_a_restart() {
    let (redis, upstream) = (Redis::start(&[]), with_sessions().await);
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::oauth("demo", &upstream)]);
    let mut cluster = Cluster::of(2, shared).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let session = begin(&cluster.instances[0], "demo", &tokens.access_token).await;
    for instance in 0..2 {
        let request = cluster.call(instance, &tokens).header("mcp-session-id", &session);
        assert_eq!(echo(request).await.tool_text(), "hi");
    }
    cluster.instances[0].restart().await;
    let request = cluster.call(0, &tokens).header("mcp-session-id", &session);
    assert_eq!(echo(request).await.tool_text(), "hi");
    let there: std::collections::HashSet<_> =
        upstream.calls_with_token().iter().filter_map(|call| call.header("mcp-session-id")).collect();
    assert_eq!(there.len(), 1, "one session at the upstream");
}

#[tokio::test]
async fn a_session_survives_a_refused_token_and_revisions_without_sessions_have_none() {
    let upstream = with_sessions().await;
    let gateway = Gateway::before(&upstream).await;
    let (_, tokens) = sign_in(&gateway, "alice", "demo").await;
    let session = begin(&gateway, "demo", &tokens.access_token).await;
    upstream.refuse_current_tokens();
    let answer = echo(call(&gateway, "demo", &tokens.access_token).header("mcp-session-id", &session)).await;
    assert_eq!(answer.tool_text(), "hi");
    let calls = upstream.calls_with_token();
    let [.., refused, served] = calls.as_slice() else { panic!("{}", calls.len()) };
    assert_ne!(refused.bearer(), served.bearer());
    assert_eq!(refused.header("mcp-session-id"), served.header("mcp-session-id"));
    // In 2026-07-28 the header says nothing, and goes nowhere.
    upstream.set(|script| script.sessions = false);
    let modern = call(&gateway, "demo", &tokens.access_token)
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-session-id", "of nobody");
    assert_eq!(echo(modern).await.status, 200);
    assert_eq!(upstream.requests.last_to("/mcp").header("mcp-session-id"), None);
}

#[tokio::test]
async fn sr_rs_06_a_stream_ends_when_what_its_caller_stands_on_is_taken_back() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).start().await;
    let ((client, alice), (_, bob)) =
        (sign_in(&gateway, "alice", "demo").await, sign_in(&gateway, "bob", "demo").await);
    let mut streams = Vec::new();
    for tokens in [&alice, &bob] {
        let (feed, answer) = Answer::stream();
        upstream.answer_next(answer);
        feed.event("before");
        let mut stream = call(&gateway, "demo", &tokens.access_token).events().await;
        assert_eq!(stream.next(PATIENCE).await.unwrap().data, "before");
        streams.push((feed, stream));
    }
    client.revoke(&alice.refresh_token).await;
    eventually(PATIENCE, async || echo(call(&gateway, "demo", &alice.access_token)).await.status == 401)
        .await;
    let (mut alices, mut bobs) = {
        let mut both = streams.into_iter();
        (both.next().unwrap(), both.next().unwrap())
    };
    for (feed, _) in [&alices, &bobs] {
        feed.event("after");
    }
    assert!(alices.1.next(PATIENCE).await.is_none(), "nothing more for her");
    alices.0.gone().await;
    assert_eq!(bobs.1.next(PATIENCE).await.unwrap().data, "after", "he goes on");
}

#[tokio::test]
async fn a_session_of_a_user_with_a_strange_name_is_as_good() {
    let upstream = with_sessions().await;
    let users = json!([{"username": "CORP\\alice \"x\"", "password_hash": PASSWORD_HASH}]);
    let gateway = Gateway::builder()
        .route(Route::oauth("demo", &upstream))
        .with("login.local.users", users)
        .start()
        .await;
    let (_, tokens) = sign_in(&gateway, "CORP\\alice \"x\"", "demo").await;
    let session = begin(&gateway, "demo", &tokens.access_token).await;
    let answer = echo(call(&gateway, "demo", &tokens.access_token).header("mcp-session-id", &session)).await;
    assert_eq!(answer.tool_text(), "hi");
}
