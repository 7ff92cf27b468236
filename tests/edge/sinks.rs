//! Logs that nobody reads: no request waits for them, what is lost is counted, and the end of the process does not wait either.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::time::Duration;

use serde_json::json;
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::port::Port;
use support::raw::RawConnection;
use support::upstream::Upstream;
use support::{PATIENCE, eventually, within};

/// Becomes the program with both outputs in pipes that stay open and that nobody reads.
const UNREAD: &str = r#"mkfifo out err; exec 1<>out 2<>err; exec "$0" "$@""#;
/// Nobody ever reads, so an answer that waited for its line would never come; they come as on any other day.
const PROMPT: Duration = Duration::from_secs(3);
/// More requests than lines find room for.
const MANY: usize = 10_000;

#[tokio::test]
async fn sr_f33_logs_that_nobody_reads_hold_no_request_up() {
    let upstream = Upstream::open().await;
    let admin = Port::take();
    let unread = ["sh", "-c", UNREAD].map(str::to_owned);
    let mut gateway = Gateway::builder()
        .with("server.admin", json!(admin.address().to_string()))
        .under(&unread)
        .route(Route::open("open", &upstream))
        .prepare();
    gateway.spawn();
    let get = async |path: &str| {
        let answer = gateway.http.get(format!("http://{}{path}", admin.address())).send().await;
        match answer {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    };
    eventually(PATIENCE, async || get("/readyz").await == "ready\n").await;
    let lost = async |log: &str| {
        let (text, series) =
            (get("/metrics").await, format!(r#"postern_log_lines_dropped_total{{log="{log}"}}"#));
        let found = text.lines().find_map(|line| line.strip_prefix(&series)?.trim().parse::<f64>().ok());
        found.unwrap_or_default()
    };
    // Long paths fill the access log, and where the upstream does not answer the other as well.
    let path = "x".repeat(2000);
    let tokens = Client::register(&gateway).await.sign_in(&mut Browser::new(), "open").await;
    upstream.server.stop();
    let call = gateway.mcp(&format!("open/{path}")).bearer(&tokens.access_token);
    let mut connection = RawConnection::open(gateway.address).await;
    let mut asked = 0;
    while lost("access").await == 0.0 || lost("log").await == 0.0 {
        for _ in 0..250 {
            connection.send(format!("GET /{path} HTTP/1.1\r\nHost: {}\r\n\r\n", gateway.address)).await;
            assert_eq!(connection.response(PROMPT).await.unwrap().status, 404);
            assert_eq!(within(PROMPT, call.call("ping", json!({}))).await.status, 502);
        }
        asked += 250;
        assert!(asked < MANY, "nothing was lost: {} and {}", lost("access").await, lost("log").await);
    }
    assert!(gateway.output.text().is_empty(), "somebody has read it");
    // And it ends when it is told to.
    drop(connection);
    gateway.terminate();
    let status = within(Duration::from_secs(20), gateway.wait_exit(PATIENCE)).await;
    assert!(status.success());
}
