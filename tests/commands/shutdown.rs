//! The end of the process: what is under way is finished, nothing new is begun, and no end takes longer than the
//! configuration allows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::body::Feed;
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::gate::Gate;
use support::gateway::{Gateway, Route};
use support::h2_client::{GOAWAY, There};
use support::mcp::{EventReader, McpAnswer, McpRequest};
use support::raw::RawConnection;
use support::script::Answer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// What "at once" means on a busy machine; every drain timeout here that must not matter is far longer.
const AT_ONCE: Duration = Duration::from_secs(2);

const ECHO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":"late"}}}"#;

/// A gateway with the one route `open`, and a token for it.
async fn open_gateway(upstream: &Upstream, drain_timeout: &str) -> (Gateway, Tokens) {
    let gateway = Gateway::builder()
        .with("server.drain_timeout", json!(drain_timeout))
        .route(Route::open("open", upstream))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "open").await;
    (gateway, tokens)
}

/// A stream on which one event has come, and what feeds it.
async fn begun_stream(gateway: &Gateway, tokens: &Tokens, upstream: &Upstream) -> (Feed, EventReader) {
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let mut events = gateway.mcp("open").bearer(&tokens.access_token).events().await;
    feed.event("before");
    assert_eq!(events.next(PATIENCE).await.unwrap().data, "before");
    (feed, events)
}

/// A call that has reached the upstream and waits there until the gate opens.
async fn held(call: McpRequest, upstream: &Upstream) -> (Gate, JoinHandle<McpAnswer>) {
    let gate = Gate::shut();
    upstream.set(|script| script.gate = Some(gate.clone()));
    let answer = tokio::spawn(async move { call.post(ECHO).await });
    gate.wait_for(1, PATIENCE).await;
    (gate, answer)
}

/// Sends SIGTERM and returns when nobody can connect any more and the admin listener says so.
async fn drain(gateway: &Gateway) {
    gateway.terminate();
    let (address, ready, http) = (gateway.address, gateway.admin("/readyz"), gateway.http.clone());
    eventually(PATIENCE, || async move { TcpStream::connect(address).await.is_err() }).await;
    eventually(PATIENCE, || {
        let asked = http.get(&ready).send();
        async move {
            let Ok(answer) = asked.await else { return false };
            (answer.status().as_u16(), answer.text().await.unwrap_or_default()) == (503, "stopping\n".into())
        }
    })
    .await;
    let alive = http.get(gateway.admin("/healthz")).send().await.unwrap();
    assert_eq!(alive.status(), 200, "alive, only not ready");
}

#[tokio::test]
async fn an_idle_gateway_ends_at_once() {
    let upstream = Upstream::open().await;
    for signal in ["TERM", "QUIT", "INT"] {
        let (mut gateway, tokens) = open_gateway(&upstream, "1h").await;
        // Connections that are kept alive, here and to the upstream, are nothing to wait for.
        let mut idle = RawConnection::open(gateway.address).await;
        idle.send(request(&gateway, &tokens)).await;
        assert_eq!(idle.response(PATIENCE).await.unwrap().status, 200);
        let _never_used = RawConnection::open(gateway.address).await;
        let begun = Instant::now();
        kill(&gateway, signal);
        let status = gateway.wait_exit(PATIENCE).await;
        assert!(begun.elapsed() < AT_ONCE, "{signal}: {:?}", begun.elapsed());
        assert_eq!(status.code(), Some(0), "{signal}: {status:?}");
        idle.closed(AT_ONCE).await;
    }
}

/// A SIGTERM that only has to be let go: starting a program to send it takes longer than what is tested.
struct Armed(std::process::Child);

impl Armed {
    fn at(process_id: u32) -> Self {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "read go; kill -s TERM \"$0\"", &process_id.to_string()]);
        Armed(command.stdin(std::process::Stdio::piped()).spawn().unwrap())
    }

    fn fire(mut self) {
        self.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

#[tokio::test]
async fn a_signal_right_after_the_start_is_a_drain_too() {
    let upstream = Upstream::open().await;
    for start in 0..12 {
        let mut gateway = Gateway::builder().route(Route::open("open", &upstream)).prepare();
        let get = format!("GET /login HTTP/1.1\r\nHost: {}\r\n\r\n", gateway.address);
        // Asked before anybody is there: the connection waits in the socket.
        let mut early = RawConnection::open(gateway.address).await;
        early.send(get).await;
        gateway.spawn();
        let signal = Armed::at(gateway.process_id());
        match start % 2 {
            0 => {
                while !gateway.output.text().contains("listening") {
                    tokio::task::yield_now().await;
                }
            }
            _ => assert_eq!(early.response(PATIENCE).await.unwrap().status, 200),
        }
        signal.fire();
        let status = gateway.wait_exit(PATIENCE).await;
        assert_eq!(status.code(), Some(0), "start {start}: {status:?}");
    }
}

fn request(gateway: &Gateway, tokens: &Tokens) -> String {
    format!(
        "POST /open HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nContent-Length: {}\r\n\r\n{ECHO}",
        gateway.address,
        tokens.access_token,
        ECHO.len()
    )
}

fn kill(gateway: &Gateway, signal: &str) {
    let status = std::process::Command::new("sh")
        .args(["-c", "kill -s \"$0\" \"$1\"", signal, &gateway.process_id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn a_request_under_way_is_finished_and_nothing_new_begins() {
    let upstream = Upstream::open().await;
    let (mut gateway, tokens) = open_gateway(&upstream, "1h").await;
    let call = gateway.mcp("open").bearer(&tokens.access_token);
    let (gate, answer) = held(call, &upstream).await;
    drain(&gateway).await;
    let begun = Instant::now();
    gate.open();
    assert_eq!(answer.await.unwrap().tool_text(), "late");
    assert_eq!(gateway.wait_exit(PATIENCE).await.code(), Some(0));
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let last = gateway.logs().into_iter().rfind(|line| line.contains(r#""path":"/open""#));
    let line: Value = serde_json::from_str(&last.expect("an access line")).unwrap();
    assert_eq!((&line["status"], &line["reason"]), (&json!(200), &json!("ok")), "{line}");
}

#[tokio::test]
async fn the_last_answer_on_a_connection_says_that_it_closes() {
    let upstream = Upstream::open().await;
    let (mut gateway, tokens) = open_gateway(&upstream, "1h").await;
    let gate = Gate::shut();
    upstream.set(|script| script.gate = Some(gate.clone()));
    let mut connection = RawConnection::open(gateway.address).await;
    connection.send(request(&gateway, &tokens)).await;
    gate.wait_for(1, PATIENCE).await;
    drain(&gateway).await;
    gate.open();
    let answer = connection.response(PATIENCE).await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    connection.closed(PATIENCE).await;
    assert_eq!(gateway.wait_exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn a_request_over_http2_is_finished_too() {
    let upstream = Upstream::open().await;
    let mut gateway = Gateway::builder()
        .tls()
        .with("server.drain_timeout", json!("1h"))
        .route(Route::open("open", &upstream))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new().trusting(&gateway.roots);
    let tokens = client.sign_in(&mut browser, "open").await;
    let (gate, answer) = held(gateway.mcp("open").bearer(&tokens.access_token), &upstream).await;
    drain(&gateway).await;
    gate.open();
    assert_eq!(answer.await.unwrap().tool_text(), "late");
    assert_eq!(gateway.wait_exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn a_stream_goes_on_while_draining_and_its_end_is_the_end() {
    let upstream = Upstream::open().await;
    let (mut gateway, tokens) = open_gateway(&upstream, "1h").await;
    let (feed, mut events) = begun_stream(&gateway, &tokens, &upstream).await;
    drain(&gateway).await;
    feed.event("after");
    assert_eq!(events.next(PATIENCE).await.unwrap().data, "after");
    feed.finish();
    assert_eq!(events.next(PATIENCE).await, None);
    assert_eq!(gateway.wait_exit(AT_ONCE).await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_leaves_is_not_waited_for() {
    let upstream = Upstream::open().await;
    let (mut gateway, tokens) = open_gateway(&upstream, "1h").await;
    let (feed, events) = begun_stream(&gateway, &tokens, &upstream).await;
    drain(&gateway).await;
    drop(events);
    assert_eq!(gateway.wait_exit(PATIENCE).await.code(), Some(0));
    support::within(PATIENCE, feed.gone()).await;
}

/// Opens a stream that never ends.
async fn endless(gateway: &Gateway, tokens: &Tokens, upstream: &Upstream) -> EventReader {
    upstream.answer_next(Answer::Endless(Default::default()));
    let mut events = gateway.mcp("open").bearer(&tokens.access_token).events().await;
    assert!(events.next(PATIENCE).await.is_some());
    events
}

#[tokio::test]
async fn at_the_drain_timeout_what_is_left_is_cut() {
    let upstream = Upstream::open().await;
    for (timeout, least, most) in [("1s", 1000, 3500), ("300ms", 300, 1000), ("0s", 0, 2500)] {
        let (mut gateway, tokens) = open_gateway(&upstream, timeout).await;
        let mut events = endless(&gateway, &tokens, &upstream).await;
        let begun = Instant::now();
        gateway.terminate();
        let reading = tokio::spawn(async move { while events.next(PATIENCE).await.is_some() {} });
        let status = gateway.wait_exit(PATIENCE).await;
        let took = begun.elapsed();
        assert_eq!(status.code(), Some(0), "{status:?}");
        assert!((least..most).contains(&took.as_millis()), "{timeout}: {took:?}");
        support::within(AT_ONCE, reading).await.unwrap();
    }
}

#[tokio::test]
async fn sigint_waits_for_nobody() {
    let upstream = Upstream::open().await;
    let (mut gateway, tokens) = open_gateway(&upstream, "1h").await;
    let _events = endless(&gateway, &tokens, &upstream).await;
    let begun = Instant::now();
    kill(&gateway, "INT");
    let status = gateway.wait_exit(PATIENCE).await;
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[tokio::test]
async fn sr_f15_a_refresh_under_way_is_finished_before_the_end() {
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::builder()
        .with("server.drain_timeout", json!("1h"))
        .route(Route::oauth("demo", &upstream))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let call = gateway.mcp("demo").bearer(&tokens.access_token);
    assert_eq!(call.tool("whoami", json!({})).await.tool_text(), "upstream-user");

    // The refresh is sent, its answer is made, and then the caller hangs up.
    let gate = Gate::shut();
    upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
    upstream.refuse_current_tokens();
    let leaving = tokio::spawn({
        let call = call.clone();
        async move { call.post(ECHO).await }
    });
    gate.wait_for(1, PATIENCE).await;
    leaving.abort();
    let _ = leaving.await;
    drain(&gateway).await;
    gate.open();
    assert_eq!(gateway.wait_exit(PATIENCE).await.code(), Some(0));
    assert_eq!(upstream.authorization.refreshes(), 1);

    // The new tokens were stored: nobody is asked again and nothing is refreshed twice.
    gateway.restart().await;
    assert_eq!(call.tool("whoami", json!({})).await.tool_text(), "upstream-user");
    assert_eq!(upstream.authorization.refreshes(), 1);
}

/// Returns when a message with these words has come.
async fn told(socket: &UnixDatagram, words: &str) {
    eventually(PATIENCE, || {
        let mut message = [0; 256];
        let read = socket.recv(&mut message).unwrap_or_default();
        let found = String::from_utf8_lossy(&message[..read]).contains(words);
        async move { found }
    })
    .await;
}

/// The socket on which a service manager listens; its directory and its path.
fn service_manager() -> (tempfile::TempDir, std::path::PathBuf, UnixDatagram) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    (directory, path, socket)
}

#[tokio::test]
async fn the_service_manager_is_told() {
    let (_directory, path, socket) = service_manager();
    let upstream = Upstream::open().await;
    let mut gateway = Gateway::builder()
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .route(Route::open("open", &upstream))
        .start()
        .await;
    told(&socket, "READY=1").await;
    gateway.terminate();
    told(&socket, "STOPPING=1").await;
    assert_eq!(gateway.wait_exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn the_watchdog_is_told_for_as_long_as_it_is_alive() {
    let (_directory, path, socket) = service_manager();
    let upstream = Upstream::open().await;
    let mut gateway = Gateway::builder()
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "2000000")
        .route(Route::open("open", &upstream))
        .start()
        .await;
    for _ in 0..3 {
        told(&socket, "WATCHDOG=1").await;
    }
    gateway.terminate();
    told(&socket, "STOPPING=1").await;
    assert_eq!(gateway.wait_exit(PATIENCE).await.code(), Some(0));
}

/// Every connection that comes holds up the worker that takes it.
#[tokio::test]
async fn a_worker_that_is_stuck_is_seen_and_the_watchdog_is_told_no_more() {
    let (_directory, path, socket) = service_manager();
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder()
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "4000000")
        .env("POSTERN_FAILPOINT", "D1")
        .route(Route::open("open", &upstream))
        .start()
        .await;
    let says = async |path: &str| {
        let answer = gateway.http.get(gateway.admin(path)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    told(&socket, "WATCHDOG=1").await;
    assert_eq!(says("/healthz").await, (200, "ok\n".into()));
    let _connection = RawConnection::open(gateway.address).await;
    gateway.output.shows("a worker is stuck: systemd's watchdog is not told otherwise").await;
    let mut message = [0; 256];
    while socket.recv(&mut message).is_ok() {}
    eventually(2 * PATIENCE, async || says("/healthz").await.0 == 503).await;
    assert_eq!(says("/healthz").await.1, "a worker is stuck\n");
    assert_eq!(says("/readyz").await, (503, "a worker is stuck\n".into()));
    assert!(socket.recv(&mut message).is_err(), "told for all that");
}

#[tokio::test]
async fn the_port_is_free_again_after_the_end() {
    let upstream = Upstream::open().await;
    let (mut gateway, tokens) = open_gateway(&upstream, "30s").await;
    let call = gateway.mcp("open").bearer(&tokens.access_token);
    for _ in 0..2 {
        assert_eq!(call.post(ECHO).await.tool_text(), "late");
        // Access tokens outlive the process that made them.
        gateway.restart().await;
    }
    assert_eq!(call.post(ECHO).await.tool_text(), "late");
}

#[tokio::test]
async fn a_hangup_is_answered_in_the_log_and_ends_nothing() {
    let upstream = Upstream::open().await;
    let (mut gateway, tokens) = open_gateway(&upstream, "30s").await;
    gateway.hang_up();
    gateway.output.shows("SIGHUP").await;
    assert_eq!(gateway.mcp("open").bearer(&tokens.access_token).post(ECHO).await.status, 200);
    assert!(gateway.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_2_a_client_is_told_and_what_is_under_way_is_finished() {
    let upstream = Upstream::open().await;
    let builder = Gateway::builder().tls().with("server.drain_timeout", json!("1h"));
    let mut gateway = builder.route(Route::open("demo", &upstream)).start().await;
    let mut browser = Browser::new().trusting(&gateway.roots);
    let tokens = Client::register(&gateway).await.sign_in(&mut browser, "demo").await;
    let there = There::at(&gateway, &tokens.access_token);
    let gate = Gate::shut();
    upstream.set(|script| script.gate = Some(gate.clone()));
    let asks = tokio::task::spawn_blocking({
        let there = there.clone();
        move || {
            let mut client = there.connect(&[]);
            client.send(&there.ping(1));
            client
        }
    });
    let mut client = asks.await.unwrap();
    gate.wait_for(1, PATIENCE).await;
    gateway.terminate();
    let told = tokio::task::spawn_blocking(move || {
        let told = client.until(PATIENCE, |frame| frame.kind == GOAWAY).expect("a word of it");
        (client, told)
    });
    let (mut client, told) = told.await.unwrap();
    assert_eq!(told.payload[4..8], [0; 4], "no error");
    gate.open();
    let ends = tokio::task::spawn_blocking(move || (client.answer(1, PATIENCE), client.sent_away(PATIENCE)));
    assert_eq!(ends.await.unwrap().0, Ok(200));
    assert!(gateway.wait_exit(PATIENCE).await.success());
}
