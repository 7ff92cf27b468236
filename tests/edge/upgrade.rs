//! A new process in place of the old one: nobody is refused, nothing fails, streams end in their own time, the service
//! manager knows who it is, and a new program that is broken changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::cluster::{Shared, address_of, store_at};
use support::gate::Gate;
use support::gateway::{Gateway, Route};
use support::mcp::McpRequest;
use support::process::PROGRAM;
use support::raw::RawConnection;
use support::redis::Redis;
use support::script::Answer;
use support::service::Service;
use support::upstream::Upstream;
use support::wrk::{Counted, Wrk};
use support::{PATIENCE, eventually, http_client};

const ECHO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":"late"}}}"#;

fn is_soak() -> bool {
    std::env::var_os("POSTERN_SOAK").is_some()
}

async fn with_a_route(upstream: &Upstream, drain_timeout: &str) -> (Service, Client, Tokens) {
    let builder = Gateway::builder()
        .with("server.drain_timeout", json!(drain_timeout))
        .route(Route::oauth("demo", upstream));
    let service = Service::start(builder).await;
    let client = Client::register(&service).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    (service, client, tokens)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_f27_nobody_notices_cycles_of_upgrades_under_load() {
    let (cycles, streams) = if is_soak() { (50, 200) } else { (4, 24) };
    let (upstream, streaming) = (Upstream::start().await, Upstream::open().await);
    let builder = Gateway::builder()
        .with("server.drain_timeout", json!("10m"))
        .with("server.access_log", json!("off"))
        .route(Route::oauth("demo", &upstream))
        .route(Route::open("streams", &streaming));
    let service = Arc::new(Service::start(builder).await);
    let client = Client::register(&service).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let at_streams = client.sign_in(&mut Browser::new(), "streams").await;
    let (done, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut load = Vec::new();
    // Calls over connections that are kept, over new ones, and grants that are renewed: each writes to the store.
    for number in 0..8 {
        let (service, done, served) = (Arc::clone(&service), Arc::clone(&done), Arc::clone(&served));
        let token = tokens.access_token.clone();
        load.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let http = if number % 2 == 0 { service.http.clone() } else { http_client(&[]) };
                let call = McpRequest::to(&http, &service.url("/demo")).bearer(&token);
                let answer = call.tool("whoami", json!({})).await;
                assert_eq!((answer.status, answer.tool_text()), (200, "upstream-user".into()));
                served.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for _ in 0..2 {
        let client = Client::register(&service).await;
        let mut tokens = client.sign_in(&mut Browser::new(), "demo").await;
        let (done, served) = (Arc::clone(&done), Arc::clone(&served));
        load.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                tokens = client.refresh(&tokens.refresh_token).await.tokens();
                served.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    // And, in the long form, a load that is not of our making.
    let wrk = if is_soak() { Wrk::start(&service.url("/demo"), &tokens.access_token, ECHO) } else { None };
    let mut open = Vec::new();
    let mut last = service.process_id();
    for cycle in 0..cycles {
        for _ in 0..streams / cycles {
            let (feed, answer) = Answer::stream();
            streaming.answer_next(answer);
            let mut events = service.mcp("streams").bearer(&at_streams.access_token).events().await;
            feed.event("begins");
            assert_eq!(events.next(PATIENCE).await.unwrap().data, "begins");
            open.push((feed, events));
        }
        let before = served.load(Ordering::Relaxed);
        service.told();
        let successor = service.hand_over().await;
        assert_ne!(successor, last);
        last = successor;
        let mut told = Vec::new();
        let end = Instant::now() + PATIENCE;
        while !told.iter().any(|line| line == "READY=1") {
            assert!(Instant::now() < end, "{told:?}");
            told.extend(service.told());
            tokio::task::yield_now().await;
        }
        assert!(told.contains(&format!("MAINPID={successor}")), "{told:?}");
        assert!(!told.iter().any(|line| line == "STOPPING=1"), "{told:?}");
        eventually(PATIENCE, || async { served.load(Ordering::Relaxed) > before + 20 }).await;
        assert!(load.iter().all(|task| !task.is_finished()), "cycle {cycle}");
    }
    done.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
    println!("{cycles} upgrades, {} requests, {} streams", served.load(Ordering::Relaxed), open.len());
    if let Some(wrk) = wrk {
        let counted = wrk.end().await;
        println!("{} requests of wrk beside them", counted.requests);
        assert_eq!(counted, Counted { requests: counted.requests, ..Counted::default() });
    }
    // All the while each process has kept its streams.
    for (feed, mut events) in open {
        feed.event("goes on");
        assert_eq!(events.next(PATIENCE).await.unwrap().data, "goes on");
        feed.finish();
        assert_eq!(events.next(PATIENCE).await, None);
    }
    service.is_alone(last).await;
    assert_eq!(upstream.authorization.token_requests("authorization_code").len(), 1);
    assert_eq!(service.upgrades("ok").await, 1, "each process knows of its own");
    service.output.assert_no_secret();
}

#[tokio::test]
async fn sr_f27_a_stream_is_cut_at_the_drain_timeout_and_not_before() {
    let streaming = Upstream::open().await;
    let builder = Gateway::builder()
        .with("server.drain_timeout", json!("4s"))
        .route(Route::open("streams", &streaming));
    let service = Service::start(builder).await;
    let client = Client::register(&service).await;
    let tokens = client.sign_in(&mut Browser::new(), "streams").await;
    let (feed, answer) = Answer::stream();
    streaming.answer_next(answer);
    let mut events = service.mcp("streams").bearer(&tokens.access_token).events().await;
    feed.event("begins");
    events.next(PATIENCE).await.unwrap();
    let begun = Instant::now();
    let successor = service.hand_over().await;
    let reading = tokio::spawn(async move { while events.next(PATIENCE).await.is_some() {} });
    service.is_alone(successor).await;
    let _ = reading.await;
    let took = begun.elapsed();
    assert!((4000..9000).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test]
async fn sr_f28_a_broken_program_leaves_the_old_one_serving() {
    let upstream = Upstream::start().await;
    let builder =
        Gateway::builder().with("server.upgrade_timeout", json!("2s")).route(Route::oauth("demo", &upstream));
    let service = Service::start(builder).await;
    let client = Client::register(&service).await;
    let mut tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let before = service.process_id();
    let real = format!("exec {PROGRAM} \"$@\"");
    let scripts = [
        ("#!/bin/sh\nexit 1\n".to_owned(), "the new process has gone (exit status: 1)"),
        ("#!/bin/sh\nexec sleep 1000\n".to_owned(), "did not serve in time"),
        ("no program at all".to_owned(), "Exec format error"),
        // It has the store, and is never ready.
        (format!("#!/bin/sh\nexport POSTERN_FAILPOINT=U1\n{real}\n"), "did not serve in time"),
        // Nothing that it could be given is left: it is not our child any more.
        (format!("#!/bin/sh\n{PROGRAM} \"$@\"\n"), "the new process has gone"),
    ];
    for (round, (script, reason)) in scripts.iter().enumerate() {
        service.script(script);
        let refused = service.upgrade(&["--always"]).await;
        assert_eq!(refused.code, Some(1), "{script}");
        assert!(refused.stderr.contains(reason), "{script}: {}", refused.stderr);
        assert_eq!(service.upgrades("failed").await, round as u64 + 1);
        service.output.shows("no hand-over: this process goes on as before").await;
        // It still has its store, and takes new connections.
        tokens = client.refresh(&tokens.refresh_token).await.tokens();
        let call = McpRequest::to(&http_client(&[]), &service.url("/demo"));
        let answer = call.bearer(&tokens.access_token).tool("whoami", json!({})).await;
        assert_eq!(answer.tool_text(), "upstream-user");
        service.is_alone(before).await;
    }
    // A configuration that is wrong.
    service.mend();
    let good = std::fs::read_to_string(service.config_file()).unwrap();
    std::fs::write(service.config_file(), good.replace("\"routes\"", "\"rotues\"")).unwrap();
    service.signal("USR2");
    service.output.shows("(exit status: 78)").await;
    assert_eq!(service.upgrades("failed").await, scripts.len() as u64 + 1);
    // A port that somebody else has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    std::fs::write(service.config_file(), &good).unwrap();
    let listen = json!([service.address.to_string(), taken.local_addr().unwrap().to_string()]);
    service.reconfigure("server.listen", listen);
    let refused = service.upgrade(&[]).await;
    assert!(refused.stderr.contains("cannot listen on"), "{}", refused.stderr);
    assert!(!service.told().iter().any(|line| line.starts_with("MAINPID")));
    // Mended, it works.
    std::fs::write(service.config_file(), &good).unwrap();
    let successor = service.hand_over().await;
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
    service.is_alone(successor).await;
}

#[tokio::test]
async fn sr_f27_a_refresh_under_way_is_stored_by_way_of_the_successor() {
    let upstream = Upstream::start().await;
    let (service, client, tokens) = with_a_route(&upstream, "1h").await;
    let call = service.mcp("demo").bearer(&tokens.access_token);
    assert_eq!(call.tool("whoami", json!({})).await.tool_text(), "upstream-user");
    let gate = Gate::shut();
    upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
    upstream.refuse_current_tokens();
    let calling = tokio::spawn({
        let call = call.clone();
        async move { call.post(ECHO).await }
    });
    gate.wait_for(1, PATIENCE).await;
    let successor = service.hand_over().await;
    // Meanwhile the successor does not take the attempt for a dead one's.
    let second = tokio::spawn({
        let call = McpRequest::to(&http_client(&[]), &service.url("/demo"));
        let call = call.bearer(&tokens.access_token);
        async move { call.post(ECHO).await }
    });
    // And has the store itself.
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
    gate.open();
    assert_eq!(calling.await.unwrap().tool_text(), "late");
    assert_eq!(second.await.unwrap().tool_text(), "late");
    service.is_alone(successor).await;
    assert_eq!(call.post(ECHO).await.tool_text(), "late");
    assert_eq!(upstream.authorization.refreshes(), 1);
}

#[tokio::test]
async fn a_request_that_comes_late_on_an_old_connection_is_answered() {
    let upstream = Upstream::open().await;
    let service = Service::start(Gateway::builder().route(Route::open("open", &upstream))).await;
    let get = format!("GET /login HTTP/1.1\r\nHost: {}\r\n\r\n", service.address);
    let mut used = RawConnection::open(service.address).await;
    used.send(&get).await;
    assert_eq!(used.response(PATIENCE).await.unwrap().status, 200);
    let mut unused = RawConnection::open(service.address).await;
    let successor = service.hand_over().await;
    service.output.shows("\"message\":\"stopping\"").await;
    for connection in [&mut used, &mut unused] {
        let mut is_told = false;
        // Its log may be a moment ahead of it.
        for _ in 0..100 {
            connection.send(&get).await;
            let answer = connection.response(PATIENCE).await.unwrap();
            assert_eq!(answer.status, 200);
            is_told = answer.header("connection") == Some("close");
            if is_told {
                break;
            }
        }
        assert!(is_told);
    }
    service.is_alone(successor).await;
    // Who is asked from now on is ready, and takes over in its turn.
    let ready = service.http.get(service.admin("/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), 200);
    let next = service.hand_over().await;
    service.is_alone(next).await;
}

/// A service whose store has just gone: a new process has no keys, and serves nobody.
async fn without_its_store(
    upstream: &Upstream,
    upgrade_timeout: &str,
) -> (Redis, Shared, Service, McpRequest) {
    let redis = Redis::start(&["--appendonly", "yes"]);
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::open("demo", upstream)]);
    let builder = shared.instance(0, None).with("server.upgrade_timeout", json!(upgrade_timeout));
    let service = Service::start(builder).await;
    let mut browser = Browser::new().through(&service);
    let tokens = Client::register(&service).await.sign_in(&mut browser, "demo").await;
    let call = service.mcp("demo").bearer(&tokens.access_token);
    redis.kill();
    (redis, shared, service, call)
}

#[tokio::test]
async fn sr_f28_a_process_that_has_no_store_yet_does_not_take_over() {
    let upstream = Upstream::open().await;
    let (redis, _shared, service, call) = without_its_store(&upstream, "2s").await;
    let refused = service.upgrade(&["--always"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains("did not serve in time"), "{}", refused.stderr);
    service.is_alone(service.process_id()).await;
    assert_eq!(call.post(ECHO).await.status, 200);
    redis.again();
    let successor = service.hand_over().await;
    assert_eq!(call.post(ECHO).await.status, 200);
    service.is_alone(successor).await;
}

#[tokio::test]
async fn a_process_that_waits_to_take_over_ends_with_the_one_it_waits_for() {
    let upstream = Upstream::open().await;
    let (_redis, _shared, service, _call) = without_its_store(&upstream, "1m").await;
    service.signal("USR2");
    // It, and who stands between.
    eventually(PATIENCE, || async { service.processes().len() == 3 }).await;
    service.output.shows("handing over to a new process").await;
    service.signal("KILL");
    eventually(PATIENCE, || async { service.processes().is_empty() }).await;
}

#[tokio::test]
async fn a_process_that_could_take_over_ends_with_the_one_that_has_not_let_it() {
    let upstream = Upstream::open().await;
    let builder = Gateway::builder().route(Route::open("open", &upstream)).env("POSTERN_FAILPOINT", "U2");
    let service = Service::start(builder).await;
    service.signal("USR2");
    // It has heard that the new one serves, and has not answered.
    service.output.shows("\"place\":\"U2\"").await;
    assert_eq!(service.processes().len(), 3);
    service.signal("KILL");
    eventually(PATIENCE, || async { service.processes().is_empty() }).await;
}

#[tokio::test]
async fn an_upgrade_takes_in_what_has_changed_and_nothing_more() {
    let upstream = Upstream::open().await;
    let service = Service::start(Gateway::builder().route(Route::open("open", &upstream))).await;
    let before = service.process_id();
    // The configuration alone: the process stays.
    service.reconfigure("server.allowed_origins", json!(["https://inspector.example.com"]));
    let done = service.upgrade(&[]).await;
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "the configuration is in use"));
    assert_eq!(service.processes(), [before]);
    // What a running process cannot take.
    service.reconfigure("server.drain_timeout", json!("29s"));
    let done = service.upgrade(&[]).await;
    assert!(done.stdout.ends_with(" serves"), "{} {}", done.stdout, done.stderr);
    eventually(PATIENCE, || async { !service.processes().contains(&before) }).await;
    let second = service.processes()[0];
    assert_eq!(service.upgrade(&[]).await.stdout, "the configuration is in use");
    // Another program.
    std::fs::remove_file(service.program()).unwrap();
    std::fs::copy(PROGRAM, service.program()).unwrap();
    assert!(service.upgrade(&[]).await.stdout.ends_with(" serves"));
    eventually(PATIENCE, || async { !service.processes().contains(&second) }).await;
    // A wrong configuration is said, and kept out.
    let good = std::fs::read_to_string(service.config_file()).unwrap();
    service.reconfigure("routes", json!([{"name": "no"}]));
    assert_eq!(service.upgrade(&[]).await.code, Some(78));
    std::fs::write(service.config_file(), good).unwrap();
    assert_eq!(service.upgrade(&[]).await.code, Some(0));
}

#[tokio::test]
async fn a_session_stays_at_its_peer_over_an_upgrade() {
    let peers = [Upstream::open().await, Upstream::open().await, Upstream::open().await];
    peers.iter().for_each(|peer| peer.set(|script| script.sessions = true));
    let addresses: Vec<_> = peers.iter().map(|peer| peer.server.address.to_string()).collect();
    let route = Route::to("demo", "http://mcp.test/mcp", json!({"kind": "none"}));
    let route = route.with("upstream.peers", json!(addresses));
    let service = Service::start(Gateway::builder().route(route)).await;
    let tokens = Client::register(&service).await.sign_in(&mut Browser::new(), "demo").await;
    let begin = async || {
        let call = McpRequest::to(&http_client(&[]), &service.url("/demo")).bearer(&tokens.access_token);
        let answer = call.call("initialize", json!({"protocolVersion": "2025-11-25"})).await;
        call.header("mcp-session-id", answer.header("mcp-session-id").unwrap())
    };
    let calls = || peers.each_ref().map(|peer| peer.calls().len());
    // At some peer, and of two of them at least.
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let session = begin().await;
        let before = calls();
        assert_eq!(session.post(ECHO).await.status, 200);
        let place = calls().iter().zip(before).position(|(after, before)| *after > before).unwrap();
        sessions.push((session, place));
    }
    assert!(sessions.iter().any(|(_, place)| *place != sessions[0].1));
    for _ in 0..2 {
        let successor = service.hand_over().await;
        for (session, place) in &sessions {
            let before = calls();
            for _ in 0..4 {
                // By way of the new process: whoever asked before may still have a connection to the old one.
                let mut again = session.clone();
                again.through(&http_client(&[]));
                assert_eq!(again.post(ECHO).await.status, 200);
            }
            let mut expected = before;
            expected[*place] += 4;
            assert_eq!(calls(), expected);
        }
        service.is_alone(successor).await;
    }
}

#[tokio::test]
async fn the_end_of_the_last_is_the_end_and_the_port_is_free() {
    let upstream = Upstream::start().await;
    let (mut service, client, tokens) = with_a_route(&upstream, "30s").await;
    let first = service.hand_over().await;
    service.is_alone(first).await;
    assert_eq!(service.gateway.wait_code().await, Some(0));
    let second = service.hand_over().await;
    service.is_alone(second).await;
    let _ = std::process::Command::new("kill").args(["-TERM", &second.to_string()]).status();
    eventually(PATIENCE, || async { service.processes().is_empty() }).await;
    service.restart().await;
    service.told();
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
    let closed = Duration::from_secs(5);
    assert!(support::within(closed, async { service.stop().await.success() }).await);
}
