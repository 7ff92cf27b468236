//! The programs in `examples/`, each as whoever reads it would use it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Builder, Gateway, Route};
use support::mcp::McpRequest;
use support::process::run;
use support::upstream::Upstream;
use support::{PATIENCE, eventually_some, secret};

async fn signed_in(gateway: &Gateway) -> McpRequest {
    let tokens = Client::register(gateway).await.sign_in(&mut Browser::new(), "demo").await;
    gateway.mcp("demo").bearer(&tokens.access_token)
}

#[tokio::test]
async fn a_policy_hook_freezes_tools_for_as_long_as_its_list_says_so() {
    let (upstream, directory) = (Upstream::open().await, tempfile::tempdir().unwrap());
    let list = directory.path().join("frozen.txt");
    std::fs::write(&list, "whoami\n").unwrap();
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .example("policy_hook", &[list.to_str().unwrap()])
        .start()
        .await;
    let demo = signed_in(&gateway).await;
    let frozen = demo.tool("whoami", json!({})).await.json();
    assert_eq!(frozen["error"]["code"], -32099, "{frozen}");
    assert_eq!(demo.tool("echo", json!({"message": "heard"})).await.tool_text(), "heard");
    assert_eq!(demo.call("tools/list", json!({})).await.status, 200);
    std::fs::write(&list, "").unwrap();
    let thawed = demo.tool("whoami", json!({})).await.json();
    assert!(thawed.get("error").is_none(), "{thawed}");
    std::fs::remove_file(&list).unwrap();
    let calls = upstream.calls().len();
    assert_eq!(demo.tool("echo", json!({"message": "x"})).await.json()["error"]["code"], -32099);
    assert_eq!(upstream.calls().len(), calls, "what is denied goes nowhere");
}

#[tokio::test]
async fn a_strategy_puts_a_signed_name_into_requests() {
    let (upstream, key) = (Upstream::open().await, secret("key"));
    let custom = json!({"kind": "custom", "strategy": "signed_caller", "with": {"header": "X-Caller"}});
    let gateway = Gateway::builder()
        .route(Route::to("demo", &upstream.url(), custom.clone()))
        .example("credential_strategy", &[])
        .env("SIGNING_KEY", &key)
        .start()
        .await;
    assert_eq!(signed_in(&gateway).await.call("ping", json!({})).await.status, 200);
    let sent = upstream.calls().pop().unwrap();
    let header = sent.header("x-caller").unwrap();
    let (said, tag) = header.split_once('.').unwrap();
    let verified = BASE64URL_NOPAD.decode(tag.as_bytes()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    hmac::verify(&key, said.as_bytes(), &verified).unwrap();
    let said = BASE64URL_NOPAD.decode(said.as_bytes()).unwrap();
    assert!(said.starts_with(b"alice\n"));
    assert_eq!(sent.header("authorization"), None);
    // The audit log knows what was released, and not what it says.
    let told = eventually_some(PATIENCE, || {
        let records = gateway.output.records();
        let told =
            records.into_iter().find(|line| line["event"] == "credential" && line["strategy"] == "custom");
        async move { told }
    })
    .await;
    assert_eq!((&told["outcome"], &told["reason"]), (&json!("ok"), &json!("custom")));
    assert!(!gateway.output.text().contains(tag));

    // The program as everybody has it says what it lacks.
    let plain = Gateway::builder().route(Route::to("demo", &upstream.url(), custom)).prepare();
    let refused = run(&["validate", "--config", plain.config_file().to_str().unwrap()], &[]).await;
    assert_eq!(refused.code, Some(78));
    assert!(
        refused.stderr.contains("credential.strategy: `signed_caller` is no strategy of this program"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn a_sink_hears_what_the_audit_log_is_told() {
    let (upstream, directory) = (Upstream::open().await, tempfile::tempdir().unwrap());
    let file = directory.path().join("audit.jsonl");
    let builder: Builder = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .with("server.audit_log", json!("changes"))
        .with(
            "policy",
            json!({"call": [{"name": "no-echo", "deny": "mcp.tool == \"echo\""}], "default": "allow"}),
        )
        .example("audit_sink", &[file.to_str().unwrap()]);
    let gateway = builder.start().await;
    let demo = signed_in(&gateway).await;
    demo.tool("whoami", json!({})).await;
    demo.tool("echo", json!({"message": "x"})).await;
    let heard = eventually_some(PATIENCE, || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        async move { (lines.len() >= 3).then_some(lines) }
    })
    .await;
    let decisions: Vec<_> =
        heard.iter().filter_map(|line| line.get("decision")).map(|line| line["by"].clone()).collect();
    assert_eq!(decisions, [json!("default"), json!("rule no-echo")], "{heard:?}");
    let credentials: Vec<_> = heard.iter().filter_map(|line| line.get("credential")).collect();
    assert_eq!(credentials.len(), 1, "{heard:?}");
    assert_eq!(credentials[0]["user"], "alice");
}
