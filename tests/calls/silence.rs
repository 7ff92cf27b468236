//! Streams of events on which nothing is said for long: then a comment is, between two events and nowhere else; over HTTP/2 the
//! client is asked whether it is still there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use reqwest::Response;
use serde_json::{Value, json};
use support::PATIENCE;
use support::body::Feed;
use support::browser::Browser;
use support::client::Client;
use support::gate::Gate;
use support::gateway::{Builder, Gateway, Route};
use support::h2_client::{self, DATA, END_STREAM, Frame, H2Client, There, frame};
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
async fn pom_43_an_upstream_may_be_silent_for_as_long_as_it_likes_unless_a_time_is_written() {
    let (patient, brief) = (Upstream::open().await, Upstream::open().await);
    let timed = Route::open("brief", &brief).with("upstream.read_timeout", json!("500ms"));
    // What we say into the silence is nothing that the upstream has said.
    let gateway = demo(&patient).route(timed).with("limits.keep_alive", json!("100ms")).start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::of("alice");
    let mut sides = Vec::new();
    for (name, upstream) in [("demo", &patient), ("brief", &brief)] {
        let token = client.sign_in(&mut browser, name).await.access_token;
        let request = gateway.mcp(name).bearer(&token);
        let (feed, answer) = Answer::stream();
        upstream.answer_next(answer);
        let mut stream = request.events().await;
        feed.event("begins");
        assert_eq!(stream.next(PATIENCE).await.unwrap().data, "begins");
        let gate = Gate::shut();
        upstream.set(|script| script.gate = Some(gate.clone()));
        sides.push((request, feed, stream, gate));
    }
    let (mut timed, mut untimed) = (sides.pop().unwrap(), sides.pop().unwrap());
    let waits = tokio::spawn({
        let request = untimed.0.clone();
        async move { request.tool("echo", json!({})).await.status }
    });
    untimed.3.wait_for(1, PATIENCE).await;
    let late = tokio::time::timeout(PATIENCE, timed.0.tool("echo", json!({}))).await.unwrap();
    assert_eq!((late.status, &late.json()["error"]), (504, &json!("gateway_timeout")), "{}", late.body);
    let sent = brief.calls().iter().filter(|call| call.json()["method"] == "tools/call").count();
    assert_eq!(sent, 1, "nothing is sent twice");
    assert_eq!(timed.2.next(PATIENCE).await, None);
    // All that time, and more, the other one has waited.
    untimed.1.event("goes on");
    assert_eq!(untimed.2.next(PATIENCE).await.unwrap().data, "goes on");
    untimed.3.open();
    assert_eq!(waits.await.unwrap(), 200);
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

/// A client over HTTP/2 that has called, and whose answer is a stream of events.
struct Call {
    gateway: Gateway,
    _upstream: Upstream,
    feed: Feed,
    there: There,
    client: H2Client,
}

impl Call {
    async fn begin(keep_alive: &str, limits: Value) -> Self {
        let upstream = Upstream::open().await;
        let (gateway, token) = start(demo(&upstream).tls().with("limits", limits), keep_alive).await;
        let (feed, answer) = Answer::stream();
        upstream.answer_next(answer);
        let there = There::at(&gateway, &token);
        let to = there.clone();
        let calls = by_hand(move || {
            let mut client = to.connect(&[]);
            assert!(client.send(&to.ping(1)));
            assert_eq!(client.answer(1, PATIENCE), Ok(200));
            client
        });
        let client = calls.await;
        Call { gateway, _upstream: upstream, feed, there, client }
    }
}

async fn by_hand<T: Send + 'static>(client: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(client).await.unwrap()
}

fn is_question(frame: &Frame) -> bool {
    frame.kind == h2_client::PING && frame.flags == 0
}

/// Answers the next question, if one comes.
fn answers(client: &mut H2Client, within: Duration) -> bool {
    let asked = client.until(within, is_question);
    asked.is_some_and(|asked| client.send(&frame(h2_client::PING, 1, 0, &asked.payload)))
}

/// What is said next on the stream.
fn hears(client: &mut H2Client) -> String {
    let said = client.until(PATIENCE, |frame| frame.kind == DATA && frame.stream == 1).expect("an event");
    String::from_utf8(said.payload).unwrap()
}

const GOES_ON: &str = "event: message\ndata: goes on\n\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_2_a_silent_client_is_asked_until_its_streams_end_and_its_answers_count_for_nothing() {
    let limits = json!({"control_frames": 50, "write_time": "5s"});
    let Call { gateway: _gateway, _upstream, feed, there, mut client } = Call::begin("20ms", limits).await;
    by_hand(move || {
        for number in 0..100 {
            assert!(answers(&mut client, PATIENCE), "{number} times");
        }
        // The stream goes on as if nothing had been.
        feed.event("goes on");
        assert_eq!(hears(&mut client), GOES_ON);
        drop(feed);
        let is_end = |frame: &Frame| frame.stream == 1 && frame.flags & END_STREAM != 0;
        assert!(client.until(PATIENCE, is_end).is_some());
        // One may have been on its way.
        let more = (0..3).take_while(|_| answers(&mut client, 5 * PERIOD)).count();
        assert!(more <= 1, "{more} times more");
        client.send(&there.ping(3));
        assert_eq!(client.answer(3, PATIENCE), Ok(200));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_2_a_client_that_does_not_answer_is_gone_and_its_streams_with_it() {
    let mut call = Call::begin("200ms", json!({"write_time": "1s"})).await;
    let begun = Instant::now();
    // It is connected and takes what it is sent.
    let listens = by_hand(move || call.client.sent_away(PATIENCE));
    let (reason, ()) = tokio::join!(listens, within(PATIENCE, call.feed.gone()));
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(reason, None);
    call.gateway.output.shows("a client over HTTP/2 does not answer any more").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_2_whoever_says_anything_is_there() {
    let mut call = Call::begin("200ms", json!({"write_time": "1s"})).await;
    by_hand(move || {
        assert!(call.client.until(PATIENCE, is_question).is_some());
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            assert!(call.client.send(&frame(h2_client::PING, 0, 0, b"CANARY__")));
            call.client.until(PERIOD / 2, is_question);
        }
        call.feed.event("goes on");
        assert_eq!(hears(&mut call.client), GOES_ON);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_2_nobody_is_asked_where_it_is_switched_off_or_something_is_said() {
    let mut call = Call::begin("0s", json!({})).await;
    by_hand(move || {
        assert!(call.client.until(5 * PERIOD, is_question).is_none());
        call.feed.event("goes on");
        assert_eq!(hears(&mut call.client), GOES_ON);
    })
    .await;
    let mut call = Call::begin("2s", json!({})).await;
    by_hand(move || {
        for _ in 0..10 {
            call.feed.event("goes on");
            assert!(call.client.until(Duration::from_millis(500), is_question).is_none());
        }
    })
    .await;
}
