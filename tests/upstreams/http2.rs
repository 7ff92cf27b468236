//! An upstream over HTTP/2 that ends streams and connections in every way it can: a call is served or a clear 502, what was not taken
//! is sent again, and nothing that may have been carried out is (RFC 9113 §8.7).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::Duration;

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::h2_server::{Act, Acting, ENHANCE_YOUR_CALM, INTERNAL_ERROR, NO_ERROR, REFUSED_STREAM};
use support::mcp::McpRequest;
use support::raw::{RawConnection, exchange};
use support::{PATIENCE, within};
use tokio::time::timeout;

/// What takes so long ends before anybody gives up.
const SOON: Duration = Duration::from_secs(10);

struct Rig {
    server: Acting,
    gateway: Gateway,
    token: String,
    call: McpRequest,
}

impl Rig {
    async fn start() -> Self {
        Self::with(Acting::start(), |route| route, json!({})).await
    }

    async fn with(server: Acting, shape: impl FnOnce(Route) -> Route, limits: Value) -> Self {
        let files = tempfile::tempdir().unwrap();
        let certificate = files.path().join("ca.pem");
        std::fs::write(&certificate, &server.certificate).unwrap();
        let route = shape(Route::to("demo", &server.url, json!({"kind": "none"})));
        let builder = Gateway::builder().route(route).with("limits", limits);
        let builder = builder.with("outbound.ca_files", json!([certificate]));
        let gateway = builder.start().await;
        let tokens = Client::register(&gateway).await.sign_in(&mut Browser::new(), "demo").await;
        let (call, token) = (gateway.mcp("demo").bearer(&tokens.access_token), tokens.access_token);
        Rig { server, gateway, token, call }
    }

    /// The status of a call that meets with these acts, and how often it was carried out.
    async fn call(&self, acts: &[Act]) -> (u16, usize) {
        let before = self.server.taken();
        self.server.next(acts);
        let answer = within(SOON, self.call.tool("echo", json!({"message": "hi"}))).await;
        assert_eq!(self.server.left(), 0, "{acts:?} did not all happen: {}", answer.body);
        (answer.status, self.server.taken() - before)
    }
}

#[tokio::test]
async fn sr_f18_a_call_over_http_2_is_sent_again_where_it_was_not_taken_and_only_there() {
    let mut rig = Rig::start().await;
    for is_first in [true, false] {
        for (acts, expected) in [
            (&[Act::Answer][..], (200, 1)),
            (&[Act::Reset(REFUSED_STREAM), Act::Answer], (200, 1)),
            (&[Act::Dismiss(NO_ERROR), Act::Answer], (200, 1)),
            (&[Act::Dismiss(NO_ERROR), Act::Reset(REFUSED_STREAM), Act::Answer], (200, 1)),
            (&[Act::Reset(REFUSED_STREAM); 5], (502, 0)),
            (&[Act::Dismiss(NO_ERROR); 5], (502, 0)),
            (&[Act::DismissAndAnswer], (200, 1)),
            (&[Act::DismissAndLeave], (502, 1)),
            (&[Act::Leave], (502, 1)),
            // With an error a good-bye ends all streams alike, and which of them were taken is not to be seen any more.
            (&[Act::Dismiss(ENHANCE_YOUR_CALM)], (502, 0)),
            (&[Act::Reset(INTERNAL_ERROR)], (502, 1)),
            (&[Act::Reset(NO_ERROR)], (502, 1)),
        ] {
            // On a connection of its own, or on one that has served.
            match is_first {
                true => rig = Rig::start().await,
                false => assert_eq!(rig.call(&[]).await, (200, 1)),
            }
            assert_eq!(rig.call(acts).await, expected, "{acts:?} {is_first}");
        }
    }
}

#[tokio::test]
async fn sr_f19_a_connection_over_http_2_that_ends_while_nobody_uses_it_costs_no_call_and_repeats_none() {
    let rig = Rig::start().await;
    for _ in 0..50 {
        assert_eq!(rig.call(&[Act::AnswerAndDismiss]).await, (200, 1));
        assert_eq!(rig.call(&[]).await, (200, 1));
        assert_eq!(rig.call(&[Act::AnswerAndLeave]).await, (200, 1));
        // Without a word it may end in the very moment in which it is used.
        let (status, taken) = rig.call(&[]).await;
        assert!(matches!((status, taken), (200, 1) | (502, 0)), "{status} {taken}");
    }
}

#[tokio::test]
async fn sr_t48_a_head_over_http_2_that_is_too_long_is_502_and_harms_no_other_call() {
    let rig = Rig::start().await;
    for (fields, length, status) in [
        (1, 100_000, 200),
        (90, 100, 200),
        (300, 1, 502),
        (100, 11_000, 502),
        (10_000, 1_000, 502),
        (10, 8_000_000, 502),
        (100_000, 1, 502),
    ] {
        rig.server.next(&[Act::Head(fields, length)]);
        let answer = within(PATIENCE, rig.call.tool("echo", json!({}))).await;
        assert_eq!(answer.status, status, "{fields} of {length} bytes");
        assert_eq!(rig.call(&[]).await, (200, 1), "after {fields} of {length} bytes");
    }
}

#[tokio::test]
async fn sr_t46_an_upstream_over_http_2_that_takes_no_body_holds_no_call_for_ever() {
    let timed = |route: Route| route.with("upstream.read_timeout", json!("3s"));
    for (window, length, silence) in [(Some(0), 10, false), (Some(0), 100_000, true), (None, 100_000, true)] {
        let shape = |route| if silence { timed(route) } else { route };
        let rig = Rig::with(Acting::with_window(window), shape, json!({"write_time": "1s"})).await;
        // Whoever comes first need not know of any window yet. What it has sent by then may stay where it is, and it looks like any
        // call that takes its time: only `read_timeout` ends it.
        let first = rig.call(&[]);
        let _first = match silence {
            true => Some(first.await),
            false => timeout(Duration::from_secs(3), first).await.ok(),
        };
        let taken = rig.server.taken();
        let message = "m".repeat(length);
        let answer = within(SOON, rig.call.tool("echo", json!({"message": message}))).await;
        assert_eq!((answer.status, rig.server.taken()), (504, taken), "{window:?} {length}");
    }
}

#[tokio::test]
async fn a_short_body_that_comes_slowly_goes_on_as_it_comes() {
    let rig = Rig::start().await;
    let host = rig.gateway.public_url.split_once("://").unwrap().1;
    let (call, mut client) =
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, RawConnection::open(rig.gateway.address).await);
    let head = format!(
        "POST /demo HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        rig.token,
        call.len()
    );
    client.send(head).await;
    // Longer than a short body is waited for.
    for byte in call.bytes() {
        client.send([byte]).await;
        tokio::time::sleep(Duration::from_secs(7) / call.len() as u32).await;
    }
    assert_eq!(client.response(SOON).await.unwrap().status, 200);
    assert_eq!((rig.server.taken(), rig.server.bytes()), (1, call.len()));
}

#[tokio::test]
async fn sr_t48_a_long_body_that_is_refused_on_its_way_is_answered_over_http_2() {
    let rules = json!({"default": "allow", "denied_status": 403, "call": [{"name": "no-delete", "deny": "mcp.tool == 'delete'"}]});
    let limits = json!({"inspect_body": 200_000});
    let rig = Rig::with(Acting::start(), |route| route.with("policy", rules), limits).await;
    let host = rig.gateway.public_url.split_once("://").unwrap().1;
    for (tool, length, status) in [("delete", 100_000, 403), ("echo", 300_000, 413), ("echo", 10_000, 200)] {
        let params = json!({"name": tool, "arguments": {"message": "m".repeat(length)}});
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
        // Nobody knows how long it will be.
        let request = format!(
            "POST /demo HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{call}\r\n0\r\n\r\n",
            rig.token,
            call.len()
        );
        let answer = exchange(rig.gateway.address, request, SOON).await.unwrap();
        let taken = usize::from(status == 200);
        assert_eq!((answer.status, rig.server.taken()), (status, taken), "{tool} {length}");
    }
}
