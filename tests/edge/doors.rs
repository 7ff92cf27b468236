//! What connections may cost: who says little, or much, or takes nothing, is sent away in time, and everybody else is served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::raw::{RawConnection, exchange};
use support::script::Answer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually, within};

const SECOND: Duration = Duration::from_secs(1);
const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

/// A gateway with these limits, and a token of alice.
pub async fn start(upstream: &Upstream, limits: Value) -> (Gateway, String) {
    let builder = Gateway::builder().route(Route::open("demo", upstream)).with("limits", limits);
    let gateway = builder.start().await;
    let token = token(&gateway).await;
    (gateway, token)
}

pub async fn token(gateway: &Gateway) -> String {
    let mut browser = Browser::of("alice").trusting(&gateway.roots);
    Client::register(gateway).await.sign_in(&mut browser, "demo").await.access_token
}

/// The head of a call, without the empty line at its end.
pub fn head(gateway: &Gateway, token: &str) -> String {
    let host = gateway.public_url.split_once("://").unwrap().1;
    format!(
        "POST /demo HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\n"
    )
}

pub fn ping(gateway: &Gateway, token: &str) -> String {
    format!("{}Content-Length: {}\r\n\r\n{PING}", head(gateway, token), PING.len())
}

async fn is_served(gateway: &Gateway, token: &str) -> bool {
    exchange(gateway.address, ping(gateway, token), PATIENCE).await.is_some_and(|answer| answer.status == 200)
}

async fn metric(gateway: &Gateway, series: &str) -> u64 {
    let text = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
    found.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
}

pub async fn limited(gateway: &Gateway, limit: &str) -> u64 {
    metric(gateway, &format!("postern_limited_total{{limit=\"{limit}\"}}")).await
}

/// Processor time the gateway has used.
fn used(gateway: &Gateway) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.process_id())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn memory(gateway: &Gateway) -> usize {
    memory_of(gateway, "VmRSS:")
}

/// The most it ever had.
fn most_memory(gateway: &Gateway) -> usize {
    memory_of(gateway, "VmHWM:")
}

fn memory_of(gateway: &Gateway, kind: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process_id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(kind)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn sr_t47_whoever_sends_a_header_byte_by_byte_is_gone_when_its_time_is_up() {
    let upstream = Upstream::open().await;
    let (gateway, token) = start(&upstream, json!({"header_time": "1s"})).await;
    // Some on connections that have been used before.
    let slow = (0..300).map(|number| {
        let (head, first) = (head(&gateway, &token), ping(&gateway, &token));
        let address = gateway.address;
        async move {
            let mut connection = RawConnection::open(address).await;
            if number % 3 == 0 {
                connection.send(first).await;
                assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
            }
            let begun = Instant::now();
            for byte in head.as_bytes().chunks(1) {
                connection.send(byte).await;
                if tokio::time::timeout(Duration::from_millis(150), connection.closed(PATIENCE)).await.is_ok()
                {
                    return begun.elapsed();
                }
            }
            panic!("a header that takes ever so long");
        }
    });
    let (took, is_served) = tokio::join!(futures_util::future::join_all(slow), is_served(&gateway, &token));
    assert!(is_served, "meanwhile");
    for took in took {
        assert!(took > SECOND / 2 && took < 4 * SECOND, "{took:?}");
    }
    assert_eq!(limited(&gateway, "header_time").await, 300);
    eventually(SECOND, async || metric(&gateway, "postern_connections").await <= 2).await;
}

#[tokio::test]
async fn sr_t47_whoever_says_nothing_on_a_new_connection_is_gone_as_soon() {
    let upstream = Upstream::open().await;
    let limits = json!({"header_time": "500ms"});
    let plain = Gateway::builder().route(Route::open("demo", &upstream)).with("limits", limits.clone());
    let tls = Gateway::builder().tls().route(Route::open("demo", &upstream)).with("limits", limits);
    for gateway in [plain.start().await, tls.start().await] {
        let mut silent = RawConnection::open(gateway.address).await;
        // The beginning of a handshake that says it is long.
        let mut slow = RawConnection::open(gateway.address).await;
        slow.send([0x16, 3, 1, 2, 0, 1]).await;
        silent.closed(3 * SECOND).await;
        slow.closed(3 * SECOND).await;
    }
}

#[tokio::test]
async fn sr_t48_a_header_that_is_too_long_or_has_too_many_fields_is_431() {
    let upstream = Upstream::open().await;
    let (gateway, token) = start(&upstream, json!({})).await;
    let filled = |length: usize| format!("{}X-Filler: {}\r\n", head(&gateway, &token), "f".repeat(length));
    let with = |fields: usize| format!("{}{}", head(&gateway, &token), "X-Field: f\r\n".repeat(fields));
    let body = format!("Content-Length: {}\r\n\r\n{PING}", PING.len());
    for (head, status) in [(filled(60_000), 200), (filled(66_000), 431), (with(90), 200), (with(200), 431)] {
        let answer = exchange(gateway.address, format!("{head}{body}"), PATIENCE).await.unwrap();
        assert_eq!(answer.status, status, "{} bytes", head.len());
    }
    // One that never ends is refused at its limit, whatever else is still sent.
    let answer = exchange(gateway.address, filled(3_000_000), PATIENCE).await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (431, Some("close")));
    assert_eq!(limited(&gateway, "header_size").await, 2);
    assert_eq!(limited(&gateway, "header_fields").await, 1);
    assert_eq!(upstream.calls().len(), 2);
}

#[tokio::test]
async fn sr_t48_a_body_that_is_too_long_is_413_whether_it_says_so_or_not() {
    let upstream = Upstream::open().await;
    let (gateway, token) = start(&upstream, json!({"body": 100_000})).await;
    let said = format!("{}Content-Length: 100001\r\n\r\n", head(&gateway, &token));
    assert_eq!(exchange(gateway.address, said, PATIENCE).await.unwrap().status, 413);
    let chunked = |count: usize| {
        let chunk = format!("2710\r\n{}\r\n", " ".repeat(10_000));
        format!(
            "{}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
            head(&gateway, &token),
            chunk.repeat(count)
        )
    };
    assert_eq!(exchange(gateway.address, chunked(11), PATIENCE).await.unwrap().status, 413);
    assert_ne!(exchange(gateway.address, chunked(10), PATIENCE).await.unwrap().status, 413);
    assert_eq!(limited(&gateway, "body").await, 2);
}

/// As gzip packs it, which is a thousand times smaller.
fn packed(body: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), body).unwrap();
    let packed = std::process::Command::new("gzip").arg("-9c").arg(file.path()).output().unwrap();
    assert!(packed.status.success() && packed.stdout.len() < body.len() / 900);
    packed.stdout
}

/// A body that is small, or that lies in little room, and could cost much.
struct Bomb {
    path: &'static str,
    kind: &'static str,
    lines: &'static str,
    body: Vec<u8>,
    status: u16,
}

/// A million of something, or a depth that no stack has, where messages are read and at our own endpoints.
fn bombs() -> Vec<Bomb> {
    let call = |arguments: &str| {
        let params = format!("{{\"name\":\"echo\",\"arguments\":{arguments}}}");
        format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{params}}}")
    };
    let digits = "9".repeat(1_000_000);
    let keys = (0..1_000_000).map(|key| format!("\"k{key}\":1")).collect::<Vec<_>>().join(",");
    let (deep, pairs) = (100_000, "a=1&".repeat(1_000_000));
    let arrays = format!("{}{}", "[".repeat(deep), "]".repeat(deep));
    let objects = format!("{}1{}", "{\"a\":".repeat(deep), "}".repeat(deep));
    let list = format!("[{}1]", "1,".repeat(1_000_000));
    let (json, form) = ("application/json", "application/x-www-form-urlencoded");
    let message =
        |text: String, status| Bomb { path: "/demo", kind: json, lines: "", body: text.into(), status };
    let mut bombs = vec![
        message(call(&format!("{{\"n\":{digits}}}")), 200),
        message(call(&format!("{{\"n\":-{digits}.{digits}e{digits}}}")), 200),
        message(call("{}").replace(":1,", &format!(":{digits},")), 200),
        message(call(&format!("{{{keys}}}")), 200),
        message(format!("{{{keys}}}"), 200),
        // What no rule looks at may be as deep as it likes.
        message(call(&format!("{{\"n\":{arrays}}}")), 200),
        message(call(&format!("{{\"n\":{objects}}}")), 200),
        message(call(&format!("{{\"path\":{objects}}}")), 400),
        message(arrays.clone(), 400),
        message(list, 400),
    ];
    let mut ours = |path, kind, lines, body: &[u8], status| {
        bombs.push(Bomb { path, kind, lines, body: body.to_vec(), status });
    };
    let (gzip, spaces) = ("content-encoding: gzip\r\n", packed(&vec![b' '; 16_000_000]));
    ours("/demo", json, gzip, &spaces, 400);
    for (path, of_form, of_json) in [
        ("/oauth/token", 400, 400),
        ("/oauth/register", 400, 400),
        ("/oauth/revoke", 400, 400),
        ("/login", 403, 415),
    ] {
        ours(path, form, "", pairs.as_bytes(), 413);
        ours(path, json, "", format!("{{{keys}}}").as_bytes(), 413);
        ours(path, json, "", &arrays.as_bytes()[deep - 30_000..deep + 30_000], of_json);
        ours(path, form, "", &pairs.as_bytes()[..64_000], of_form);
        ours(path, form, gzip, &spaces, of_form);
        ours(path, json, gzip, &spaces, of_json);
    }
    bombs
}

#[tokio::test]
async fn sr_t48_bombs_are_answered_and_cost_little_memory() {
    let upstream = Upstream::open().await;
    upstream.set(|script| script.answer = Answer::http(200, &[("content-type", "application/json")], "{}"));
    let rule = "mcp.tool == 'delete' || has(mcp.arguments.path) && mcp.arguments.path == 'forbidden'";
    let rules = json!({"default": "allow", "call": [{"name": "no-delete", "deny": rule}]});
    let bombs = bombs();
    // As it is, and with as much as can be asked for of what is read ahead: of that it may take some times as much.
    for (limits, inspected, most) in [
        (json!({}), 1 << 20, 32 << 10),
        (json!({"inspect_body": 16 << 20, "body": 16 << 20}), 16 << 20, 128 << 10),
    ] {
        let route = Route::open("demo", &upstream).with("policy", rules.clone());
        let gateway = Gateway::builder().route(route).with("limits", limits).start().await;
        let token = token(&gateway).await;
        let host = gateway.public_url.split_once("://").unwrap().1;
        let (before, had) = (memory(&gateway), used(&gateway));
        for Bomb { path, kind, lines, body, status } in &bombs {
            let length = body.len();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\n{lines}\
                 Content-Length: {length}\r\n\r\n"
            );
            let status = if *path == "/demo" && length > inspected { 413 } else { *status };
            let answer = exchange(gateway.address, [head.as_bytes(), body].concat(), PATIENCE).await;
            let answered = answer.map(|answer| answer.status);
            assert_eq!(answered, Some(status), "{path} {kind} {lines:?} {length}");
        }
        let (grown, used) = (most_memory(&gateway).saturating_sub(before), used(&gateway) - had);
        println!("at most {grown} KiB more, {used:?}");
        assert!(grown < most, "{grown} KiB more");
        assert!(used < 10 * SECOND, "{used:?} of work");
        assert!(is_served(&gateway, &token).await);
    }
}

#[tokio::test]
async fn sr_t47_a_body_that_stands_still_or_only_trickles_is_408() {
    let upstream = Upstream::open().await;
    let (gateway, token) = start(&upstream, json!({"body_time": "1s", "body_rate": 1000})).await;
    let begun = format!("{}Content-Length: 90000\r\n\r\n{{", head(&gateway, &token));
    let mut still = RawConnection::open(gateway.address).await;
    still.send(&begun).await;
    assert_eq!(still.response(5 * SECOND).await.unwrap().status, 408);
    let mut slow = RawConnection::open(gateway.address).await;
    slow.send(&begun).await;
    let trickle = async {
        loop {
            slow.send(" ").await;
            if let Ok(answer) = tokio::time::timeout(SECOND / 4, slow.response(PATIENCE)).await {
                break answer;
            }
        }
    };
    assert_eq!(within(5 * SECOND, trickle).await.unwrap().status, 408);
    assert_eq!(limited(&gateway, "body_time").await, 2);
    // One of its size that comes at once is nobody's trouble.
    let quick = format!("{}Content-Length: 90000\r\n\r\n{}", head(&gateway, &token), " ".repeat(90_000));
    assert_ne!(exchange(gateway.address, quick, PATIENCE).await.unwrap().status, 408);
}

#[tokio::test]
async fn sr_t47_a_form_of_ours_that_trickles_is_408() {
    let upstream = Upstream::open().await;
    let (gateway, _) = start(&upstream, json!({"body_time": "1s"})).await;
    let host = gateway.public_url.split_once("://").unwrap().1;
    let head = format!(
        "POST /oauth/token HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    );
    let mut slow = RawConnection::open(gateway.address).await;
    slow.send(format!("{head}Content-Length: 1000\r\n\r\n")).await;
    let trickle = async {
        loop {
            slow.send("a").await;
            if let Ok(answer) = tokio::time::timeout(SECOND / 4, slow.response(PATIENCE)).await {
                break answer;
            }
        }
    };
    assert_eq!(within(5 * SECOND, trickle).await.unwrap().status, 408);
    assert_eq!(limited(&gateway, "body_time").await, 1);
}

#[tokio::test]
async fn sr_t47_whoever_takes_nothing_of_an_answer_is_cut_off_and_little_is_held_for_them() {
    let upstream = Upstream::open().await;
    let (gateway, token) = start(&upstream, json!({"write_time": "1s"})).await;
    let before = memory(&gateway);
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let mut connection = RawConnection::open(gateway.address).await;
    connection.send(ping(&gateway, &token)).await;
    // As much as the sockets hold, and far more.
    let event = "x".repeat(64 * 1024);
    (0..1_600).for_each(|_| feed.event(&event));
    eventually(10 * SECOND, async || limited(&gateway, "write_time").await == 1).await;
    assert!(memory(&gateway) < before + 16 * 1024, "{} KiB before, {} after", before, memory(&gateway));
    assert!(is_served(&gateway, &token).await);
}

#[tokio::test]
async fn connections_are_counted_in_all_and_by_address_and_leave_room_when_they_close() {
    let upstream = Upstream::open().await;
    for (limits, limit) in [
        (json!({"connections": 20}), "connections"),
        (json!({"connections_per_address": 20}), "connections_per_address"),
    ] {
        let (gateway, token) = start(&upstream, limits).await;
        eventually(PATIENCE, async || metric(&gateway, "postern_connections").await <= 1).await;
        let kept = metric(&gateway, "postern_connections").await as usize;
        let mut open = Vec::new();
        for _ in kept..20 {
            let mut connection = RawConnection::open(gateway.address).await;
            connection.send(ping(&gateway, &token)).await;
            assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
            open.push(connection);
        }
        for _ in 0..3 {
            let answer = exchange(gateway.address, ping(&gateway, &token), PATIENCE).await.unwrap();
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
        }
        assert_eq!(limited(&gateway, limit).await, 3);
        // Who is in is served.
        open[0].send(ping(&gateway, &token)).await;
        assert_eq!(open[0].response(PATIENCE).await.unwrap().status, 200);
        drop(open);
        eventually(PATIENCE, async || is_served(&gateway, &token).await).await;
    }
}

#[tokio::test]
async fn work_that_is_too_much_is_shed_early_and_what_runs_goes_on() {
    let upstream = Upstream::open().await;
    let (gateway, token) = start(&upstream, json!({"requests": 3})).await;
    let mut running = Vec::new();
    for _ in 0..3 {
        let (feed, answer) = Answer::stream();
        upstream.answer_next(answer);
        let call = gateway.mcp("demo").bearer(&token);
        running.push((call.post_events(PING).await, feed));
    }
    let calls = upstream.calls().len();
    for _ in 0..10 {
        let answer = gateway.mcp("demo").bearer(&token).call("ping", json!({})).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.body);
        assert_eq!(answer.json()["error"], "temporarily_unavailable");
    }
    assert_eq!(upstream.calls().len(), calls);
    assert_eq!(limited(&gateway, "requests").await, 10);
    for (events, feed) in &mut running {
        feed.event("still here");
        assert_eq!(events.next(PATIENCE).await.unwrap().data, "still here");
    }
    drop(running);
    eventually(PATIENCE, async || is_served(&gateway, &token).await).await;
}

#[tokio::test]
async fn sr_f30_few_files_are_enough_for_those_who_are_in_and_the_rest_is_turned_away() {
    let upstream = Upstream::open().await;
    let files: Vec<String> = ["prlimit", "--nofile=256:256"].map(str::to_owned).into();
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).under(&files).start().await;
    let token = token(&gateway).await;
    let mut open = Vec::new();
    for _ in 0..400 {
        let mut connection = RawConnection::open(gateway.address).await;
        connection.send("GET /").await;
        open.push(connection);
    }
    let before = (used(&gateway), Instant::now());
    let health = async || gateway.http.get(gateway.admin("/healthz")).send().await.unwrap().status() == 200;
    while before.1.elapsed() < 2 * SECOND {
        assert!(health().await);
        tokio::time::sleep(SECOND / 10).await;
    }
    let busy = (used(&gateway) - before.0).as_secs_f64() / before.1.elapsed().as_secs_f64();
    assert!(busy < 0.5, "{busy} of a processor");
    assert!(limited(&gateway, "connections").await > 200);
    // For a moment of the rush there may be none.
    assert!(gateway.output.text().matches("os error 24").count() < 5, "there is a file for the next one");
    drop(open);
    eventually(2 * SECOND, async || is_served(&gateway, &token).await).await;
    // Signing in writes to the store.
    self::token(&gateway).await;
}

/// There is not one file left, whoever has taken them: what is open goes on, and a moment after there are files again, so does
/// everything else.
#[tokio::test]
async fn sr_f30_without_a_file_what_runs_goes_on_and_the_rest_comes_back_with_the_files() {
    let upstream = Upstream::open().await;
    let (gateway, token) = start(&upstream, json!({})).await;
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let mut events = gateway.mcp("demo").bearer(&token).post_events(PING).await;
    feed.event("begins");
    assert_eq!(events.next(PATIENCE).await.unwrap().data, "begins");
    let mut kept = RawConnection::open(gateway.address).await;
    kept.send(ping(&gateway, &token)).await;
    assert_eq!(kept.response(PATIENCE).await.unwrap().status, 200);
    let files = |most: &str| {
        let (process, limit) = (gateway.process_id().to_string(), format!("--nofile={most}"));
        let set = std::process::Command::new("prlimit").args(["--pid", &process, &limit]).status();
        assert!(set.unwrap().success());
    };
    files("5:20000");
    // At every listener: the public one, the admin's, and the commands'.
    let mut refused = Vec::new();
    for _ in 0..50 {
        let mut connection = RawConnection::open(gateway.address).await;
        connection.send(ping(&gateway, &token)).await;
        refused.push(connection);
    }
    let file = gateway.config_file();
    let words = ["reload", "--config", file.to_str().unwrap()];
    let (begun, before) = (Instant::now(), used(&gateway));
    let asks = async {
        let ready = gateway.http.get(gateway.admin("/readyz")).send();
        let (ready, reload) = tokio::join!(ready, support::process::run(&words, &[]));
        (ready.unwrap().status(), reload.code)
    };
    let lasts = async {
        for _ in 0..20 {
            feed.event("goes on");
            assert_eq!(events.next(PATIENCE).await.unwrap().data, "goes on");
            tokio::time::sleep(SECOND / 10).await;
        }
        gateway.output.shows("os error 24").await;
        let busy = (used(&gateway) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
        assert!(busy < 0.5, "{busy} of a processor");
        files("20000:20000");
        let again = Instant::now();
        assert!(is_served(&gateway, &token).await);
        again.elapsed()
    };
    let ((ready, reload), took) = tokio::join!(asks, lasts);
    assert!(took < 2 * SECOND, "{took:?}");
    assert_eq!((ready.as_u16(), reload), (200, Some(0)));
    for connection in &mut refused {
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200, "they have only waited");
    }
    kept.send(ping(&gateway, &token)).await;
    assert_eq!(kept.response(PATIENCE).await.unwrap().status, 200);
}

/// With a limit a little above what it holds; bodies that a rule waits for fill it.
#[tokio::test]
async fn sr_f31_without_memory_new_work_is_turned_away_and_what_runs_goes_on() {
    const MIB: usize = 1024 * 1024;
    let upstream = Upstream::open().await;
    let rules = json!({"call": [{"name": "secret", "deny": "mcp.tool == 'secret'"}]});
    let route = Route::open("demo", &upstream).with("policy", rules);
    let builder = Gateway::builder().route(route).with("limits", json!({"inspect_body": 16 * MIB}));
    let gateway = builder.start().await;
    let token = token(&gateway).await;
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let mut events = gateway.mcp("demo").bearer(&token).events().await;
    feed.event("begins");
    assert_eq!(events.next(PATIENCE).await.unwrap().data, "begins");
    assert!(is_served(&gateway, &token).await);
    let limit = (memory(&gateway) + 24 * 1024) * 1024;
    gateway.reconfigure("limits.memory", json!(limit));
    gateway.hang_up();
    eventually(PATIENCE, async || metric(&gateway, "postern_memory_limit_bytes").await == limit as u64).await;
    assert!(is_served(&gateway, &token).await, "there is room so far");
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut connection = RawConnection::open(gateway.address).await;
        let begun = format!("{PING}{}", " ".repeat(6 * MIB));
        let head = head(&gateway, &token);
        let begun = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{begun}\r\n", begun.len());
        connection.send(begun).await;
        held.push(connection);
    }
    eventually(PATIENCE, async || !is_served(&gateway, &token).await).await;
    let call = gateway.mcp("demo").bearer(&token);
    for answer in [call.call("ping", json!({})).await, call.get().await] {
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.body);
        assert_eq!(answer.json()["error"], "temporarily_unavailable");
    }
    assert!(limited(&gateway, "memory").await >= 3);
    gateway.output.shows("memory runs out: new requests are refused").await;
    feed.event("still here");
    assert_eq!(events.next(PATIENCE).await.unwrap().data, "still here");
    for connection in &mut held {
        connection.send("0\r\n\r\n").await;
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
    }
    eventually(PATIENCE, async || is_served(&gateway, &token).await).await;
    gateway.output.shows("there is memory again").await;
}
