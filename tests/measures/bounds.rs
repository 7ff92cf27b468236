//! Nothing that clients send makes the gateway's memory grow without end: no name of a route, no host, no token, no session.
//! What bounds each structure is in benches/bounds.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::{ALONE, support};

use std::net::SocketAddr;

use serde_json::json;
use support::PATIENCE;
use support::gateway::{Gateway, Route};
use support::process::run;
use support::raw::RawConnection;
use support::upstream::Upstream;

/// What the second half of a flood may add, KiB: the allocator's own, and no trace of that many requests.
const GROWTH: usize = 4 * 1024;

/// So many of each kind; with `POSTERN_SOAK=1` it is a flood.
const FEW: usize = 5_000;

/// Resident memory of the gateway, KiB.
fn memory(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process_id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The gateway as a client sees it.
struct Door {
    address: SocketAddr,
    host: String,
    /// Of a program that may call.
    token: String,
}

/// Requests that differ in some names, and what each is answered with.
struct Kind {
    name: &'static str,
    status: u16,
    /// So many in a flood.
    many: usize,
    request: fn(&Door, usize) -> String,
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "hosts",
        status: 421,
        many: 100_000,
        request: |_, n| call("/open", &format!("host-{n}.example"), "Authorization: Bearer x\r\n"),
    },
    Kind {
        name: "route names",
        status: 404,
        many: 1_000_000,
        request: |door, n| call(&format!("/route-{n}"), &door.host, "Authorization: Bearer x\r\n"),
    },
    Kind {
        name: "tokens that are garbage, and forged ones",
        status: 401,
        many: 1_000_000,
        request: |door, n| {
            let token = if n % 2 == 0 { format!("garbage-{n}") } else { format!("postern_at_{n:0>200}") };
            call("/demo", &door.host, &format!("Authorization: Bearer {token}\r\n"))
        },
    },
    Kind {
        name: "sessions",
        status: 404,
        many: 1_000_000,
        request: |door, n| {
            let (token, session) = (&door.token, format!("postern_ms_{n:0>100}"));
            let headers = format!("Authorization: Bearer {token}\r\nMcp-Session-Id: {session}\r\n");
            call(&format!("/open/{n}"), &door.host, &headers)
        },
    },
    Kind {
        name: "origins",
        status: 403,
        many: 100_000,
        request: |door, n| call("/open", &door.host, &format!("Origin: https://{n}.example\r\n")),
    },
    Kind {
        name: "clients and codes",
        status: 401,
        many: 100_000,
        request: |door, n| {
            let form = format!("grant_type=authorization_code&code=code-{n}&client_id=client-{n}");
            let headers = "Content-Type: application/x-www-form-urlencoded\r\n";
            request("/oauth/token", &door.host, headers, &form)
        },
    },
];

fn request(target: &str, host: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {target} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
}

/// As [`request`], of an MCP client.
fn call(target: &str, host: &str, headers: &str) -> String {
    let usual = "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n";
    request(target, host, &format!("{usual}{headers}"), r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#)
}

/// Sends half of a kind, one after the other over one connection.
async fn send(door: &Door, kind: &Kind, second: bool) {
    let half = if std::env::var_os("POSTERN_SOAK").is_some() { kind.many } else { FEW } / 2;
    let first = if second { half } else { 0 };
    let mut connection = RawConnection::open(door.address).await;
    for number in first..first + half {
        connection.send((kind.request)(door, number)).await;
        let response = connection.response(PATIENCE).await;
        let response = response.unwrap_or_else(|| panic!("{}: no answer to {number}", kind.name));
        assert_eq!(response.status, kind.status, "{}: {}", kind.name, response.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_names_tokens_and_sessions_leaves_nothing_in_memory() {
    let _alone = ALONE.lock().await;
    let upstream = Upstream::open().await;
    let mut gateway = Gateway::builder()
        .route(Route::open("open", &upstream))
        .route(Route::oauth("demo", &upstream))
        .with("server.access_log", json!("off"))
        .env("RUST_LOG", "warn,postern::server=info")
        .prepare();
    let file = gateway.config_file();
    let create =
        ["service-accounts", "create", "flood", "--route", "open", "--config", file.to_str().unwrap()];
    // Before the first start, too.
    let made = run(&create, &[]).await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    gateway.spawn();
    gateway.ready().await;
    let host = gateway.public_url.strip_prefix("http://").unwrap().to_owned();
    let door = Door { address: gateway.address, host, token: made.stdout.trim().to_owned() };
    let mut after = Vec::new();
    for second in [false, true] {
        let sent = KINDS.iter().map(|kind| send(&door, kind, second));
        futures_util::future::join_all(sent).await;
        after.push(memory(&gateway));
    }
    println!("{} KiB after the first half of the flood, {} KiB after the second", after[0], after[1]);
    assert!(after[1] <= after[0] + GROWTH, "{after:?} KiB");
}
