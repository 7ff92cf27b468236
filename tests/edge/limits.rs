//! Every limit of the instance in one table: the default that is written down is the one that counts, whoever comes to it is told by a
//! clear status, and it is counted under its own name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use support::body::Feed;
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Builder, Gateway, Route};
use support::h2_client::{PING, RST_STREAM, There, frame};
use support::mcp::EventReader;
use support::raw::{RawConnection, exchange};
use support::script::Answer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

use super::doors::{head, limited, ping, token};

const MESSAGE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
const JSON: (&str, &str) = ("content-type", "application/json");
/// Requests and connections at once. Not one or two: who has an answer may begin the next before the last is let go of.
const FEW: usize = 4;

/// How a client hears of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Told {
    Status(u16),
    /// Its stream is refused, over HTTP/2: the code (RFC 9113 §7).
    Reset(u32),
    /// Its connection ends.
    Closed,
}
use Told::{Closed, Reset, Status};

/// Key, default, and where there is something to be told: a value that is soon reached, how it is told, and the label.
type Row = (&'static str, Value, Option<(Value, Told, &'static str)>);

fn table() -> Vec<Row> {
    let row = |key, default: Value, small: Value, told, label| (key, default, Some((small, told, label)));
    vec![
        row("body", json!(33_554_432), json!(70_000), Status(413), "body"),
        row("body_rate", json!(256), json!(1_000_000), Status(408), "body_time"),
        row("body_time", json!("30s"), json!("500ms"), Status(408), "body_time"),
        row("connections", json!(20_000), json!(FEW), Status(503), "connections"),
        // This machine has none, unless one is written.
        row("connections_per_address", Value::Null, json!(FEW), Status(503), "connections_per_address"),
        row("control_frames", json!(1000), json!(50), Closed, "control_frames"),
        row("header_fields", json!(100), json!(16), Status(431), "header_fields"),
        row("header_size", json!(65_536), json!(4096), Status(431), "header_size"),
        row("header_time", json!("10s"), json!("500ms"), Closed, "header_time"),
        row("inspect_answer", json!(4_194_304), json!(1000), Status(502), "inspect_answer"),
        row("inspect_body", json!(1_048_576), json!(70_000), Status(413), "inspect_body"),
        row("requests", json!(10_000), json!(FEW), Status(503), "requests"),
        row("resets", json!(100), json!(50), Closed, "resets"),
        row("streams", json!(10_000), json!(1), Status(503), "streams"),
        row("streams_per_connection", json!(100), json!(1), Reset(7), "streams_per_connection"),
        row("streams_per_user", json!(256), json!(1), Status(429), "streams_per_user"),
        row("write_time", json!("60s"), json!("500ms"), Closed, "write_time"),
        // Whoever is silent is told nothing: they get a comment, or are asked.
        ("keep_alive", json!("15s"), None),
        // Counted as `postern_calls_limited_total` (`tests/calls/limits.rs`).
        ("calls", json!([]), None),
        // A part of the control group's, where that has one; `sr_f31_…` in `doors` comes to it.
        ("memory", Value::Null, None),
    ]
}

/// Those of another test; and those that are no key: a handshake has the time of a header, and the others have no number.
const BESIDE: [&str; 4] = ["handshake", "http2", "memory", "proxy_protocol"];

/// A route at which a rule depends on what is said.
fn builder(upstream: &Upstream) -> Builder {
    let rules = json!({"call": [{"name": "secret", "deny": "mcp.tool == 'secret'"}]});
    Gateway::builder().route(Route::open("demo", upstream).with("policy", rules))
}

async fn stream(upstream: &Upstream, gateway: &Gateway, token: &str) -> (Feed, EventReader) {
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let events = gateway.mcp("demo").bearer(token).events().await;
    assert_eq!(events.status, 200);
    (feed, events)
}

/// Comes to a limit: what the client is told.
async fn meet(key: &str, upstream: &Upstream, gateway: &Gateway, token: &str) -> Told {
    let call = gateway.mcp("demo").bearer(token);
    let sent = async |request: String| {
        let answer = exchange(gateway.address, request, PATIENCE).await;
        answer.map_or(Closed, |answer| Status(answer.status))
    };
    let post = |more: &str, body: &str| format!("{}{more}\r\n{body}", head(gateway, token));
    match key {
        "body" => sent(post("Content-Length: 70001\r\n", "")).await,
        "inspect_body" => sent(post("Content-Length: 70001\r\n", &" ".repeat(70_001))).await,
        "body_time" => sent(post("Content-Length: 100\r\n", "{")).await,
        "body_rate" => {
            let mut slow = RawConnection::open(gateway.address).await;
            slow.send(post("Content-Length: 90000\r\n", "{")).await;
            loop {
                slow.send(" ").await;
                let answer = tokio::time::timeout(Duration::from_millis(100), slow.response(PATIENCE));
                if let Ok(answer) = answer.await {
                    break answer.map_or(Closed, |answer| Status(answer.status));
                }
            }
        }
        "connections" | "connections_per_address" => {
            let mut open = Vec::new();
            for _ in 0..=FEW {
                let mut connection = RawConnection::open(gateway.address).await;
                connection.send(ping(gateway, token)).await;
                let answer = connection.response(PATIENCE).await;
                open.push((connection, answer.map_or(Closed, |answer| Status(answer.status))));
            }
            open.last().unwrap().1
        }
        "header_fields" => sent(post(&"X-Field: f\r\n".repeat(16), "")).await,
        "header_size" => sent(post(&format!("X-Filler: {}\r\n", "f".repeat(5000)), "")).await,
        "header_time" => {
            let mut slow = RawConnection::open(gateway.address).await;
            slow.send("POST /demo HTTP/1.1\r\n").await;
            slow.closed(PATIENCE).await;
            Closed
        }
        "inspect_answer" => {
            upstream.answer_next(Answer::http(200, &[JSON], &format!("[\"{}\"]", "x".repeat(1000))));
            Status(call.post(MESSAGE).await.status)
        }
        "requests" => {
            let mut running = Vec::new();
            for _ in 0..FEW {
                let (feed, answer) = Answer::stream();
                upstream.answer_next(answer);
                running.push((feed, call.post_events(MESSAGE).await));
            }
            Status(call.post(MESSAGE).await.status)
        }
        "streams" | "streams_per_user" => {
            let _open = stream(upstream, gateway, token).await;
            Status(call.get().await.status)
        }
        "streams_per_connection" | "control_frames" | "resets" => {
            let (there, key) = (There::at(gateway, token), key.to_owned());
            let (_feed, answer) = Answer::stream();
            upstream.answer_next(answer);
            let by_hand = move || {
                let mut client = there.connect(&[]);
                if key == "control_frames" {
                    client.send(&frame(PING, 0, 0, b"CANARY__").repeat(100));
                    client.sent_away(PATIENCE);
                    return Closed;
                }
                if key == "resets" {
                    let broken_off =
                        |stream| [there.call(stream), frame(RST_STREAM, 0, stream, &[0; 4])].concat();
                    client.send(&(1..190).step_by(2).flat_map(broken_off).collect::<Vec<_>>());
                    client.sent_away(PATIENCE);
                    return Closed;
                }
                client.send(&there.ping(1));
                assert_eq!(client.answer(1, PATIENCE), Ok(200));
                client.send(&there.ping(3));
                client.answer(3, PATIENCE).map_or_else(Reset, Status)
            };
            tokio::task::spawn_blocking(by_hand).await.unwrap()
        }
        "write_time" => {
            let (feed, answer) = Answer::stream();
            upstream.answer_next(answer);
            let mut connection = RawConnection::open(gateway.address).await;
            connection.send(ping(gateway, token)).await;
            let event = "x".repeat(64 * 1024);
            (0..800).for_each(|_| feed.event(&event));
            eventually(PATIENCE, async || limited(gateway, key).await > 0).await;
            connection.until_closed(PATIENCE).await;
            Closed
        }
        key => panic!("{key} is not in the table"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_limit_has_a_default_a_clear_answer_and_a_metric() {
    let shipped: Value = serde_saphyr::from_str(include_str!("../../conf/postern.yaml")).unwrap();
    let schema: Value = serde_json::from_str(include_str!("../../conf/postern.schema.json")).unwrap();
    let described = schema["$defs"]["Limits"]["properties"].as_object().unwrap();
    let table = table();
    let keys: BTreeSet<&str> = table.iter().map(|(key, ..)| *key).collect();
    assert_eq!(keys, described.keys().map(String::as_str).collect(), "the table and the schema");
    for (key, default, _) in &table {
        assert_eq!(shipped["limits"][*key], *default, "{key} in conf/postern.yaml");
        let said = described[*key]["description"].as_str().unwrap();
        let written = match default {
            Value::String(text) => format!("Default: `{text}`."),
            Value::Number(number) => format!("Default: {number}."),
            _ => "Default: ".to_owned(),
        };
        assert!(said.contains(&written), "{key} in the schema: {said}");
    }
    let upstream = Upstream::open().await;
    // All are there from the beginning, and no others.
    let gateway = builder(&upstream).start().await;
    let text = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
    let counted = text.lines().filter_map(|line| line.strip_prefix("postern_limited_total{limit=\""));
    let counted: BTreeSet<&str> = counted.filter_map(|rest| rest.split('"').next()).collect();
    let labels = table.iter().filter_map(|(.., met)| met.as_ref().map(|(.., label)| *label));
    assert_eq!(counted, labels.chain(BESIDE).collect());

    for (key, _, met) in &table {
        let Some((small, told, label)) = met else { continue };
        let upstream = Upstream::open().await;
        let builder = builder(&upstream).with(&format!("limits.{key}"), small.clone());
        // Together they are what a body has to keep to.
        let builder = match *key {
            "body_rate" => builder.with("limits.body_time", json!("500ms")),
            // There are never fewer than may be under way.
            "resets" => builder.with("limits.streams_per_connection", json!(50)),
            _ => builder,
        };
        let is_http_2 = matches!(*key, "streams_per_connection" | "control_frames" | "resets");
        let gateway = if is_http_2 { builder.tls() } else { builder }.start().await;
        let token = match is_http_2 {
            true => {
                let mut browser = Browser::of("alice").trusting(&gateway.roots);
                Client::register(&gateway).await.sign_in(&mut browser, "demo").await.access_token
            }
            false => token(&gateway).await,
        };
        assert_eq!(meet(key, &upstream, &gateway, &token).await, *told, "{key}");
        eventually(PATIENCE, async || limited(&gateway, label).await > 0).await;
    }
}
