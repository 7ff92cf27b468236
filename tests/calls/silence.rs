//! Streams of events on which nothing is said for long: then a comment is, between two events and nowhere else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use reqwest::Response;
use serde_json::{Value, json};
use support::PATIENCE;
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Builder, Gateway, Route};
use support::h2_server::H2Server;
use support::raw::RawConnection;
use support::script::Answer;
use support::upstream::Upstream;
use support::within;

const PERIOD: Duration = Duration::from_millis(200);
const COMMENT: &str = ":\n\n";
const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

/// A gateway where this much silence is too much, and a token of alice.
async fn start(builder: Builder, keep_alive: &str) -> (Gateway, String) {
    let gateway = builder.with("limits.keep_alive", json!(keep_alive)).start().await;
    let mut browser = Browser::of("alice").trusting(&gateway.roots);
    let token = Client::register(&gateway).await.sign_in(&mut browser, "demo").await.access_token;
    (gateway, token)
}

fn demo(upstream: &Upstream) -> Builder {
    Gateway::builder().route(Route::open("demo", upstream))
}

/// Sends a call over HTTP/1.1; what comes of the answer after its head.
async fn call(gateway: &Gateway, token: &str) -> Body {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().http1_only().tls_certs_only(gateway.roots.clone());
    let request = client.build().unwrap().post(gateway.url("/demo")).bearer_auth(token);
    let request = request.header("content-type", "application/json");
    let request = request.header("accept", "application/json, text/event-stream");
    let answer = request.body(PING).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    Body { answer, text: String::new() }
}

/// An answer, as far as it has come.
struct Body {
    answer: Response,
    text: String,
}

impl Body {
    /// Reads until this has come.
    async fn until(&mut self, wanted: impl Fn(&str) -> bool) {
        let reading = async {
            while !wanted(&self.text) {
                let piece = self.answer.chunk().await.unwrap().expect("more");
                self.text.push_str(std::str::from_utf8(&piece).unwrap());
            }
        };
        within(PATIENCE, reading).await;
    }

    /// Whether nothing comes although there was time for it.
    async fn stays(&mut self) -> bool {
        tokio::time::timeout(5 * PERIOD, self.answer.chunk()).await.is_err()
    }

    async fn rest(mut self) -> String {
        while let Some(piece) = within(PATIENCE, self.answer.chunk()).await.unwrap() {
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
        self.text
    }
}

/// An upstream that begins every answer so, in chunks, and says no more; its URL.
fn only_heads(head: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(stream, "{head}Transfer-Encoding: chunked\r\n\r\n");
            open.push(stream);
        }
    });
    url
}

#[tokio::test]
async fn a_silent_stream_gets_comments_between_its_events_and_never_inside_of_one() {
    let upstream = Upstream::open().await;
    for builder in [demo(&upstream), demo(&upstream).tls()] {
        let (gateway, token) = start(builder, "200ms").await;
        let (feed, answer) = Answer::stream();
        upstream.answer_next(answer);
        let mut body = call(&gateway, &token).await;
        body.until(|text| text == COMMENT.repeat(2)).await;
        // An event in pieces, of which each could be taken for its end.
        for piece in ["event: message\n", "data: {\"half\":\n", "data: ", "true}", "\n"] {
            feed.bytes(piece);
            body.until(|text| text.ends_with(piece)).await;
            assert!(body.stays().await, "{:?}", body.text);
        }
        let event = "event: message\ndata: {\"half\":\ndata: true}\n\n";
        feed.bytes("\n");
        body.until(|text| text.ends_with(&[event, COMMENT, COMMENT].concat())).await;
        feed.event("1");
        body.until(|text| text.ends_with("data: 1\n\n")).await;
        drop(feed);
        let text = body.rest().await;
        let events: Vec<&str> = text.split(COMMENT).filter(|text| !text.is_empty()).collect();
        assert_eq!(events, [event, "event: message\ndata: 1\n\n"], "{text:?}");
    }
}

#[tokio::test]
async fn what_is_no_stream_of_events_is_nobodys_to_write_into() {
    let upstream = Upstream::open().await;
    let (gateway, token) = start(demo(&upstream), "200ms").await;
    let (feed, answer) = Answer::json_in_pieces();
    upstream.answer_next(answer);
    feed.bytes("{\"jsonrpc\":\"2.0\",\n\n");
    let mut body = call(&gateway, &token).await;
    body.until(|text| text.ends_with("\n\n")).await;
    assert!(body.stays().await, "{:?}", body.text);
    feed.bytes("\"id\":1,\"result\":{}}");
    drop(feed);
    assert_eq!(body.rest().await, "{\"jsonrpc\":\"2.0\",\n\n\"id\":1,\"result\":{}}");
    // Nor one that is coded: what would be read of it then?
    let url = only_heads("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n");
    let route = Route::to("demo", &url, json!({"kind": "none"}));
    let (gateway, token) = start(Gateway::builder().route(route), "200ms").await;
    let mut body = call(&gateway, &token).await;
    assert_eq!(body.answer.headers()["content-encoding"], "gzip");
    assert!(body.stays().await, "{:?}", body.text);
}

#[tokio::test]
async fn where_it_is_switched_off_silence_is_silence() {
    let upstream = Upstream::open().await;
    let (gateway, token) = start(demo(&upstream), "0s").await;
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let mut body = call(&gateway, &token).await;
    feed.event("1");
    body.until(|text| text.ends_with("data: 1\n\n")).await;
    assert!(body.stays().await, "{:?}", body.text);
}

#[tokio::test]
async fn a_stream_that_is_over_leaves_its_connection_as_it_was() {
    let event = "event: message\ndata: 1\n\n".to_owned();
    // Over HTTP/2, where trailers end it.
    let other = H2Server::start("text/event-stream", vec![event.clone()]);
    let files = tempfile::tempdir().unwrap();
    let trusted = files.path().join("upstream.pem");
    std::fs::write(&trusted, &other.certificate).unwrap();
    let upstream = Upstream::open().await;
    let elsewhere = Gateway::builder()
        .route(Route::to("demo", &other.url, json!({"kind": "none"})))
        .with("outbound.ca_files", json!([trusted]));
    for (builder, is_ours) in [(demo(&upstream), true), (elsewhere, false)] {
        let (gateway, token) = start(builder, "200ms").await;
        let host = gateway.public_url.split_once("://").unwrap().1;
        let request = format!(
            "POST /demo HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\nContent-Length: {}\r\n\r\n{PING}",
            PING.len()
        );
        let mut connection = RawConnection::open(gateway.address).await;
        for _ in 0..2 {
            if is_ours {
                let (feed, answer) = Answer::stream();
                upstream.answer_next(answer);
                feed.bytes(event.clone());
            }
            assert!(connection.send(&request).await);
            let answer = connection.response(PATIENCE).await.unwrap();
            assert_eq!((answer.status, answer.text()), (200, event.clone()));
            let stays = tokio::time::timeout(5 * PERIOD, connection.closed(PATIENCE)).await.is_err();
            assert!(stays, "it is kept");
        }
        // And what comes next is read from its first byte on.
        if is_ours {
            assert!(connection.send(&request).await);
            let answer = connection.response(PATIENCE).await.unwrap();
            let said: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(said["result"], json!({}));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_only_a_head_is_over_with_it() {
    let url = only_heads("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n");
    let builder = Gateway::builder().route(Route::to("demo", &url, json!({"kind": "none"})));
    let (gateway, token) = start(builder, "200ms").await;
    let host = gateway.public_url.split_once("://").unwrap().1;
    let mut connection = TcpStream::connect(gateway.address).unwrap();
    write!(connection, "HEAD /demo HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n")
        .unwrap();
    connection.set_read_timeout(Some(5 * PERIOD)).unwrap();
    let (mut answer, mut read) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = connection.read(&mut read) {
        answer.extend_from_slice(&read[..length]);
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("text/event-stream"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n") && answer.matches("\r\n\r\n").count() == 1, "{answer}");
}
