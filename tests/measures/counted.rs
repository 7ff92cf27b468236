//! What a warm call asks for, counted and not timed: callgrind watches the program and says how often which function was
//! called. Locks that are held over an await are found by clippy (`await_holding_lock`, and `clippy.toml`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::{ALONE, support};

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::upstream::Upstream;

const CALLS: u64 = 200;
/// Recorded in `benches/results.md`, for this build. A change that needs more says why there.
const ALLOCATIONS: u64 = 91;
/// By everybody in the process: what is measured of a call must not cost it more.
const CLOCK_READS: u64 = 17;

#[tokio::test]
async fn a_warm_call_asks_no_store_parses_no_json_and_allocates_as_recorded() {
    let _alone = ALONE.lock().await;
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("callgrind.out");
    let watched = ["valgrind", "--tool=callgrind", "--instr-atstart=no"].map(str::to_owned);
    let watched = [&watched[..], &[format!("--callgrind-out-file={}", file.display())]].concat();
    let upstream = Upstream::start().await;
    let route = Route::oauth("demo", &upstream);
    let mut gateway = Gateway::builder()
        .route(route)
        .with("server.threads", json!(1))
        .with("server.access_log", json!("off"))
        .under(&watched)
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let session = gateway.mcp("demo").bearer(&tokens.access_token);
    let call = || async { assert_eq!(session.tool("whoami", json!({})).await.status, 200) };
    for _ in 0..20 {
        call().await;
    }
    watch(&gateway, "on");
    for _ in 0..CALLS {
        call().await;
    }
    watch(&gateway, "off");
    gateway.stop().await;

    let called = calls(&file);
    let per_call = |is_meant: &dyn Fn(&str) -> bool| {
        called.iter().filter(|(name, _)| is_meant(name)).map(|(_, times)| times).sum::<u64>() / CALLS
    };
    let among = |parts: &[&str]| per_call(&|name| parts.iter().any(|part| name.contains(part)));
    // The way a call takes is seen at all.
    assert!(among(&["policy::permit"]) >= 1);
    assert_eq!(among(&["serde_json::de::"]), 0);
    assert_eq!(among(&["redb::", "redis::", "postern::store::"]), 0);
    let allocators = ["alloc", "alloc_zeroed", "realloc"].map(|function| format!("GlobalAlloc>::{function}"));
    let allocations = per_call(&|name| allocators.iter().any(|allocator| name.ends_with(allocator)));
    assert!(allocations > 0);
    println!("{allocations} allocations per warm call");
    assert!(allocations <= ALLOCATIONS, "{allocations}");
    let clock_reads = among(&["<std::time::Instant>::now", "<std::time::SystemTime>::now"]);
    assert!(clock_reads > 0);
    println!("{clock_reads} looks at the clock per warm call");
    assert!(clock_reads <= CLOCK_READS, "{clock_reads}");
}

/// Has callgrind count, or no more.
fn watch(gateway: &Gateway, state: &str) {
    let process = gateway.process_id().to_string();
    let told = Command::new("callgrind_control").args(["-i", state, &process]).output().unwrap();
    assert!(told.status.success(), "{told:?}");
}

/// How often each function was called: lines `cfn=(number) name`, with the name once, each followed by `calls=times …`.
fn calls(file: &Path) -> HashMap<String, u64> {
    let text = std::fs::read_to_string(file).unwrap();
    let (mut names, mut called, mut callee) = (HashMap::new(), HashMap::new(), "");
    for line in text.lines() {
        if let Some(function) = line.strip_prefix("cfn=").or(line.strip_prefix("fn=")) {
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(number, name);
            }
            callee = number;
        } else if let Some(times) = line.strip_prefix("calls=") {
            let times: u64 = times.split(' ').next().unwrap().parse().unwrap();
            *called.entry(callee).or_default() += times;
        }
    }
    called.into_iter().map(|(number, times)| (names[number].to_owned(), times)).collect()
}
