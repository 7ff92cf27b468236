//! Several peers behind one upstream: how requests are shared out, what becomes of them when a peer dies, hangs, comes back or is
//! taken out, and that a session stays where it was begun.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::gate::Gate;
use support::gateway::{Gateway, Route};
use support::mcp::McpRequest;
use support::received::Received;
use support::redis::Redis;
use support::script::Answer;
use support::tls_server::TlsServer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);

async fn peers(count: usize) -> Vec<Upstream> {
    let mut peers = Vec::new();
    for _ in 0..count {
        peers.push(Upstream::open().await);
    }
    peers
}

fn address(peer: &Upstream) -> Value {
    json!(peer.server.address.to_string())
}

fn addresses<'u>(peers: impl IntoIterator<Item = &'u Upstream>) -> Value {
    peers.into_iter().map(address).collect()
}

/// An upstream of a name that leads nowhere, at these peers.
fn route<'u>(peers: impl IntoIterator<Item = &'u Upstream>) -> Route {
    Route::to("demo", "http://mcp.test/mcp", json!({"kind": "none"})).with("upstream.peers", addresses(peers))
}

async fn sign_in(gateway: &Gateway) -> McpRequest {
    let client = Client::register(gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    gateway.mcp("demo").bearer(&tokens.access_token)
}

async fn echo(request: &McpRequest) -> u16 {
    request.tool("echo", json!({"message": "hi"})).await.status
}

/// Calls of clients: checks are none.
fn calls(peer: &Upstream) -> usize {
    calls_of(peer, "tools/call")
}

fn calls_of(peer: &Upstream, method: &str) -> usize {
    peer.calls().iter().filter(|call| String::from_utf8_lossy(&call.body).contains(method)).count()
}

async fn metrics(gateway: &Gateway) -> String {
    gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap()
}

/// Waits until the figures say that the peer stands like this.
async fn stands(gateway: &Gateway, peer: &Upstream, state: &str) {
    let line = standing(peer.server.address, state);
    eventually(PATIENCE, || async { metrics(gateway).await.contains(&line) }).await;
}

fn standing(peer: SocketAddr, state: &str) -> String {
    format!("postern_upstream_peer_state{{peer=\"{peer}\",route=\"demo\",state=\"{state}\"}} 1")
}

/// A server of an older revision, of which it is enough here that it knows `ping` and no other method; what it was asked.
fn only_pings() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let (listener, asked) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::<Mutex<Vec<String>>>::default());
    let (address, seen) = (listener.local_addr().unwrap(), Arc::clone(&asked));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (mut text, mut piece) = (String::new(), [0; 4096]);
            while !text.ends_with('}') {
                match stream.read(&mut piece) {
                    Ok(read @ 1..) => text.push_str(&String::from_utf8_lossy(&piece[..read])),
                    _ => break,
                }
            }
            let status = if text.contains("\"ping\"") { "200 OK" } else { "400 Bad Request" };
            seen.lock().unwrap().push(text);
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
        }
    });
    (address, asked)
}

/// With these peers from now on.
async fn reload(gateway: &Gateway, route: &Route) {
    let count = async || {
        let text = metrics(gateway).await;
        let line = "postern_config_reloads_total{outcome=\"ok\"} ";
        text.lines().find_map(|found| found.strip_prefix(line)).map_or(0, |count| count.parse().unwrap())
    };
    let before: u64 = count().await;
    gateway.reconfigure("routes", json!([route.document()]));
    gateway.hang_up();
    eventually(PATIENCE, || async { count().await > before }).await;
}

async fn begin(request: &McpRequest) -> McpRequest {
    let answer = request.call("initialize", json!({"protocolVersion": "2025-11-25"})).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    request.clone().header("mcp-session-id", answer.header("mcp-session-id").unwrap())
}

#[tokio::test]
async fn requests_are_shared_out_by_weight_under_the_name_of_the_upstream() {
    let peers = peers(3).await;
    let weighted: Value = peers
        .iter()
        .zip(1..)
        .map(|(peer, weight)| json!({"address": address(peer), "weight": weight}))
        .collect();
    let gateway = Gateway::builder().route(route([]).with("upstream.peers", weighted)).start().await;
    let request = sign_in(&gateway).await;
    for _ in 0..60 {
        assert_eq!(echo(&request).await, 200);
    }
    for (peer, share) in peers.iter().zip([10_usize, 20, 30]) {
        assert!(calls(peer).abs_diff(share) <= 2, "{} of {share}", calls(peer));
        let call = peer.requests.last_to("/mcp");
        assert_eq!(call.header("host").as_deref(), Some("mcp.test"));
    }
    let text = metrics(&gateway).await;
    let counted = format!(
        "postern_upstream_peer_requests_total{{peer=\"{}\",route=\"demo\"}} {}",
        peers[0].server.address,
        calls(&peers[0])
    );
    assert!(text.contains(&counted), "{counted}\n{text}");
    // Equal ones take turns exactly.
    reload(&gateway, &route(&peers)).await;
    peers.iter().for_each(|peer| peer.requests.clear());
    for _ in 0..30 {
        assert_eq!(echo(&request).await, 200);
    }
    assert_eq!(peers.iter().map(calls).collect::<Vec<_>>(), [10, 10, 10]);
}

#[tokio::test]
async fn a_slow_peer_gets_no_more_than_it_can_do() {
    let peers = peers(2).await;
    let route = route(&peers).with("upstream.balance", json!("least_connections"));
    let gateway = Gateway::builder().route(route).start().await;
    let request = sign_in(&gateway).await;
    let gate = Gate::shut();
    peers[0].set(|script| script.gate = Some(gate.clone()));
    let mut held = Vec::new();
    while gate.waiting() == 0 {
        let request = request.clone();
        held.push(tokio::spawn(async move { echo(&request).await }));
        eventually(PATIENCE, || async { calls(&peers[0]) + calls(&peers[1]) >= held.len() }).await;
    }
    let before = calls(&peers[1]);
    for _ in 0..20 {
        assert_eq!(echo(&request).await, 200);
    }
    assert_eq!((calls(&peers[0]), calls(&peers[1]) - before), (1, 20));
    gate.open();
    for held in held {
        assert_eq!(held.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn what_belongs_together_goes_to_one_peer() {
    let peers = peers(4).await;
    let consistent = route(&peers).with("upstream.balance", json!("consistent"));
    let gateway = Gateway::builder().route(consistent.clone()).start().await;
    let request = sign_in(&gateway).await;
    for _ in 0..12 {
        assert_eq!(echo(&request).await, 200);
    }
    let mut counts: Vec<usize> = peers.iter().map(calls).collect();
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 0, 12], "one caller, one peer");
    for header in ["mcp-name", "mcp-method"] {
        reload(&gateway, &consistent.clone().with("upstream.balance_on", json!(header))).await;
        peers.iter().for_each(|peer| peer.requests.clear());
        for value in 0..16 {
            let request = request.clone().header(header, &format!("value-{value}"));
            for _ in 0..2 {
                assert_eq!(echo(&request).await, 200);
            }
        }
        let counts: Vec<usize> = peers.iter().map(calls).collect();
        assert!(counts.iter().all(|count| count % 2 == 0), "each {header} has its peer: {counts:?}");
        assert!(counts.iter().filter(|count| **count > 0).count() > 1, "and not all the same: {counts:?}");
    }
}

#[tokio::test]
async fn a_call_whose_connection_fails_goes_to_the_next_peer() {
    let peers = peers(6).await;
    let gateway = Gateway::builder().route(route(&peers)).start().await;
    let request = sign_in(&gateway).await;
    // All but one at once.
    peers[1..].iter().for_each(|peer| peer.server.stop());
    let before = Instant::now();
    for _ in 0..20 {
        assert_eq!(echo(&request).await, 200);
    }
    assert_eq!(calls(&peers[0]), 20);
    // Nobody asks a peer again at once at which no connection came about.
    let text = metrics(&gateway).await;
    let is_one = |line: &&str| {
        line.starts_with("postern_upstream_peer_failures_total") && line.contains("kind=\"connect\"")
    };
    let tries = text.lines().filter(is_one).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    let (tries, seconds) = (tries.sum::<u64>(), before.elapsed().as_secs());
    assert!(tries >= 5 && tries <= 5 * (1 + seconds), "{tries} connections tried within {seconds} s");
    peers[0].server.stop();
    // Nobody is left: said at once, and without end of tries.
    assert_eq!(echo(&request).await, 502);
    let before = Instant::now();
    assert_eq!(echo(&request).await, 502);
    assert!(before.elapsed() < SECOND);
    peers[3].server.resume().await;
    eventually(PATIENCE, || async { echo(&request).await == 200 }).await;
    assert!(metrics(&gateway).await.contains("kind=\"connect\""));
}

/// That many calls at once, which the peer breaks off.
async fn break_off(peer: &Upstream, request: &McpRequest, count: usize) {
    let gate = Gate::shut();
    peer.set(|script| script.gate = Some(gate.clone()));
    let calls: Vec<_> = (0..count)
        .map(|_| {
            let request = request.clone();
            tokio::spawn(async move { echo(&request).await })
        })
        .collect();
    gate.wait_for(count, PATIENCE).await;
    peer.server.cut_all();
    for call in calls {
        assert_eq!(call.await.unwrap(), 502);
    }
    peer.set(|script| script.gate = None);
    gate.open();
}

#[tokio::test]
async fn a_peer_that_breaks_off_is_left_alone_when_it_does_so_again_and_again_and_from_the_first() {
    let peers = peers(1).await;
    let gateway = Gateway::builder().route(route(&peers)).start().await;
    let request = sign_in(&gateway).await;
    // On a connection that nobody uses again.
    let answers = async || {
        let head = [("content-type", "application/json"), ("connection", "close")];
        peers[0].answer_next(Answer::http(200, &head, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#));
        assert_eq!(echo(&request).await, 200);
    };
    for _ in 0..3 {
        break_off(&peers[0], &request, 2).await;
        answers().await;
    }
    // Connections that have served may end.
    let gate = Gate::shut();
    peers[0].set(|script| script.gate = Some(gate.clone()));
    let calls = (0..4).map(|_| echo(&request));
    let (served, ()) = tokio::join!(futures_util::future::join_all(calls), async {
        gate.wait_for(4, PATIENCE).await;
        gate.open();
    });
    assert_eq!(served, [200; 4]);
    break_off(&peers[0], &request, 4).await;
    answers().await;
    break_off(&peers[0], &request, 3).await;
    stands(&gateway, &peers[0], "out").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_killed_under_load_costs_only_what_was_under_way_there() {
    const WORKERS: usize = 8;
    let peers = Arc::new(peers(3).await);
    let gateway = Gateway::builder().route(route(&*peers)).start().await;
    let request = sign_in(&gateway).await;
    let (done, sent, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let (request, done, sent, failed) = (request.clone(), done.clone(), sent.clone(), failed.clone());
        workers.push(tokio::spawn(async move {
            while !done.load(Ordering::SeqCst) {
                match echo(&request).await {
                    200 => {}
                    502 => drop(failed.fetch_add(1, Ordering::SeqCst)),
                    other => panic!("{other}"),
                }
                sent.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    let more = async |count: usize| {
        let end = sent.load(Ordering::SeqCst) + count;
        eventually(PATIENCE, || async { sent.load(Ordering::SeqCst) >= end }).await;
    };
    more(100).await;
    peers[1].server.stop();
    more(200).await;
    let lost = failed.load(Ordering::SeqCst);
    assert!(lost <= WORKERS, "{lost} failed, and no more than {WORKERS} were under way");
    let before = calls(&peers[1]);
    peers[1].server.resume().await;
    eventually(PATIENCE, || async { calls(&peers[1]) > before }).await;
    more(100).await;
    assert_eq!(failed.load(Ordering::SeqCst), lost, "none failed afterwards");
    done.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
}

/// Two hundred new calls a second, whatever becomes of those before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_hangs_under_load_costs_what_went_there_until_it_is_found() {
    let peers = peers(3).await;
    let health =
        json!({"kind": "mcp", "interval": "100ms", "timeout": "300ms", "healthy": 1, "unhealthy": 2});
    let gateway = Gateway::builder().route(route(&peers).with("upstream.health", health)).start().await;
    let request = sign_in(&gateway).await;
    let done = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (request, done) = (request.clone(), done.clone());
        async move {
            let (mut calls, mut beat) = (tokio::task::JoinSet::new(), tokio::time::interval(SECOND / 200));
            while !done.load(Ordering::SeqCst) {
                beat.tick().await;
                let (request, begun) = (request.clone(), Instant::now());
                // Nobody waits for longer.
                calls.spawn(async move {
                    (begun, tokio::time::timeout(5 * SECOND, echo(&request)).await.unwrap_or_default())
                });
            }
            calls.join_all().await
        }
    });
    let some = async |peer: &Upstream| {
        let before = calls(peer);
        eventually(PATIENCE, || async { calls(peer) >= before + 30 }).await;
    };
    some(&peers[1]).await;
    let (gate, hung) = (Gate::shut(), Instant::now());
    peers[1].set(|script| script.gate = Some(gate.clone()));
    stands(&gateway, &peers[1], "down").await;
    let found = Instant::now();
    // All others get on, and what hangs is their business alone.
    some(&peers[0]).await;
    some(&peers[2]).await;
    done.store(true, Ordering::SeqCst);
    let answers = load.await.unwrap();
    let failed: Vec<_> = answers.iter().filter(|(_, status)| *status != 200).collect();
    let meanwhile = answers.iter().filter(|(begun, _)| (hung..found).contains(begun)).count();
    assert!(!failed.is_empty() && failed.len() <= meanwhile / 3 + 3, "{} of {meanwhile}", failed.len());
    for (begun, _) in &failed {
        assert!(*begun < found, "one that began {:?} after it was found", *begun - found);
    }
    // It comes back, and nobody notices.
    gate.open();
    stands(&gateway, &peers[1], "up").await;
    let before = calls(&peers[1]);
    for _ in 0..9 {
        assert_eq!(echo(&request).await, 200);
    }
    assert_eq!(calls(&peers[1]) - before, 3);
}

#[tokio::test]
async fn checks_find_a_peer_that_hangs_and_let_it_come_back_slowly() {
    let peers = peers(2).await;
    let health =
        json!({"kind": "mcp", "interval": "100ms", "timeout": "300ms", "healthy": 2, "unhealthy": 2});
    let route = route(&peers).with("upstream.health", health).with("upstream.slow_start", json!("1h"));
    let gateway = Gateway::builder().route(route).start().await;
    let request = sign_in(&gateway).await;
    let gate = Gate::shut();
    peers[0].set(|script| script.gate = Some(gate.clone()));
    stands(&gateway, &peers[0], "down").await;
    peers[0].requests.clear();
    for _ in 0..20 {
        assert_eq!(echo(&request).await, 200);
    }
    assert_eq!(calls(&peers[0]), 0);
    let check = peers[1]
        .requests
        .all()
        .into_iter()
        .find(|asked| asked.header("mcp-method").as_deref() == Some("server/discover"));
    let check = check.expect("a check");
    assert_eq!((check.header("host").as_deref(), check.bearer()), (Some("mcp.test"), None));
    gate.open();
    stands(&gateway, &peers[0], "slow_start").await;
    for _ in 0..64 {
        assert_eq!(echo(&request).await, 200);
    }
    let few = calls(&peers[0]);
    assert!((1..=8).contains(&few), "a sixteenth of a share at first: {few} of 64");
    gateway.output.shows("peer is down").await;
    gateway.output.shows("peer is back").await;
}

#[tokio::test]
async fn checks_ask_what_the_revision_of_a_server_understands_and_a_refusal_is_no_absence() {
    let peers = peers(6).await;
    let refusing = Upstream::start().await;
    peers[1].set(|script| script.sessions = true);
    for (peer, status) in peers[2..].iter().zip([404, 405, 503, 307]) {
        peer.set(|script| script.answer = Answer::http(status, &[("location", "/mcp")], ""));
    }
    let (older, asked_of_older) = only_pings();
    let mut all: Vec<SocketAddr> = peers.iter().chain([&refusing]).map(|peer| peer.server.address).collect();
    all.push(older);
    let health = json!({"kind": "mcp", "interval": "100ms", "healthy": 1, "unhealthy": 1});
    let route = route([]).with("upstream.peers", json!(all)).with("upstream.health", health);
    let gateway = Gateway::builder().route(route).start().await;
    for peer in &peers[2..] {
        stands(&gateway, peer, "down").await;
    }
    // Three questions: the answer to the first has been judged.
    let asked = |peer: &Upstream, method: &str| {
        let of_method = |asked: &&Received| asked.json()["method"] == method;
        peer.requests.to("/mcp").iter().filter(of_method).count()
    };
    for peer in [&peers[0], &peers[1], &refusing] {
        eventually(PATIENCE, || async { asked(peer, "server/discover") >= 3 }).await;
    }
    let pings = || asked_of_older.lock().unwrap().iter().filter(|text| text.contains("\"ping\"")).count();
    eventually(PATIENCE, || async { pings() >= 3 }).await;
    let text = metrics(&gateway).await;
    for address in [peers[0].server.address, peers[1].server.address, refusing.server.address, older] {
        assert!(text.contains(&standing(address, "up")), "{address}\n{text}");
    }
    assert_eq!(
        (asked(&peers[0], "ping"), asked(&refusing, "ping")),
        (0, 0),
        "who has answered is not asked again"
    );
    assert!(asked(&peers[1], "ping") >= 2, "whoever wants a session may be of either revision");
    // In this order: it is asked on and on.
    let all = asked_of_older.lock().unwrap().len();
    let pings = pings();
    assert!(all <= pings + 1, "it is remembered what a server knows: {all}, {pings}");
    assert!(refusing.calls().iter().all(|call| call.bearer().is_none()));
}

#[tokio::test]
async fn checks_by_http_and_tcp_say_what_they_are_asked() {
    let peers = peers(2).await;
    let health = json!({"kind": "http", "path": "/health?x=1", "interval": "100ms", "unhealthy": 1});
    // The scripted server has no such page: every answer is 404.
    let by_http = route(&peers[..1]).with("upstream.health", health);
    let gateway = Gateway::builder().route(by_http).start().await;
    let request = sign_in(&gateway).await;
    stands(&gateway, &peers[0], "down").await;
    assert_eq!(echo(&request).await, 502, "by the checks nobody is there");
    assert!(!peers[0].authorization.requests.to("/health").is_empty());
    let by_tcp = json!({"kind": "tcp", "interval": "100ms", "healthy": 1, "unhealthy": 1});
    reload(&gateway, &route(&peers).with("upstream.health", by_tcp)).await;
    stands(&gateway, &peers[0], "up").await;
    peers[1].server.stop();
    stands(&gateway, &peers[1], "down").await;
    peers[1].server.resume().await;
    stands(&gateway, &peers[1], "up").await;
}

#[tokio::test]
async fn a_reload_keeps_what_is_known_of_peers_that_stay() {
    let peers = peers(3).await;
    let health =
        json!({"kind": "mcp", "interval": "100ms", "timeout": "200ms", "healthy": 100, "unhealthy": 1});
    let with = |peers: &[Upstream]| route(peers).with("upstream.health", health.clone());
    let gateway = Gateway::builder().route(with(&peers[..2])).start().await;
    let request = sign_in(&gateway).await;
    for _ in 0..10 {
        assert_eq!(echo(&request).await, 200);
    }
    let gate = Gate::shut();
    peers[0].set(|script| script.gate = Some(gate.clone()));
    stands(&gateway, &peers[0], "down").await;
    gate.open();
    reload(&gateway, &with(&peers)).await;
    // It takes a hundred checks to come back: whoever forgot it would use it at once.
    peers[0].requests.clear();
    for _ in 0..10 {
        assert_eq!(echo(&request).await, 200);
    }
    assert_eq!(calls(&peers[0]), 0);
    let text = metrics(&gateway).await;
    let prefix = format!(
        "postern_upstream_peer_requests_total{{peer=\"{}\",route=\"demo\"}} ",
        peers[1].server.address
    );
    let count: usize = text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap().parse().unwrap();
    assert_eq!(count, calls(&peers[1]), "counted on");
}

#[tokio::test]
async fn a_session_stays_where_it_was_begun_until_that_peer_is_gone() {
    let peers = peers(3).await;
    peers.iter().for_each(|peer| peer.set(|script| script.sessions = true));
    let gateway = Gateway::builder().route(route(&peers[..1])).start().await;
    let request = sign_in(&gateway).await;
    let session = begin(&request).await;
    // Others join: the session stays, and whoever is new goes anywhere.
    reload(&gateway, &route(&peers)).await;
    for _ in 0..9 {
        assert_eq!(echo(&session).await, 200);
    }
    assert_eq!([calls(&peers[0]), calls(&peers[1]), calls(&peers[2])], [9, 0, 0]);
    // Its own is taken out: it has the session as long as it answers, and nothing new.
    reload(&gateway, &route(&peers[1..])).await;
    stands(&gateway, &peers[0], "leaving").await;
    for _ in 0..6 {
        assert_eq!(echo(&session).await, 200);
        begin(&request).await;
    }
    assert_eq!([calls(&peers[0]), calls(&peers[1]), calls(&peers[2])], [15, 0, 0]);
    let begun = |peer: &Upstream| calls_of(peer, "initialize");
    assert_eq!([begun(&peers[0]), begun(&peers[1]), begun(&peers[2])], [1, 3, 3]);
    peers[0].server.stop();
    // A call that meets the end of a connection may have been carried out: 502. From the next on nothing is there to ask.
    eventually(PATIENCE, async || {
        let status = echo(&session).await;
        assert!([404, 502].contains(&status), "{status}");
        status == 404
    })
    .await;
    assert_eq!(session.get().await.status, 404);
    let again = begin(&request).await;
    assert_eq!(echo(&again).await, 200);
    // Not even for a moment, where that is configured.
    reload(&gateway, &route(&peers[1..2]).with("upstream.drain", json!("0s"))).await;
    let third = begin(&request).await;
    reload(&gateway, &route(&peers[2..]).with("upstream.drain", json!("0s"))).await;
    let before = calls(&peers[1]);
    assert_eq!(echo(&third).await, 404);
    assert_eq!(calls(&peers[1]), before);
}

#[tokio::test]
async fn a_session_is_none_while_the_checks_say_that_its_peer_is_down() {
    let peers = peers(2).await;
    peers.iter().for_each(|peer| peer.set(|script| script.sessions = true));
    let health =
        json!({"kind": "mcp", "interval": "100ms", "timeout": "300ms", "healthy": 100, "unhealthy": 2});
    let gateway = Gateway::builder().route(route(&peers).with("upstream.health", health)).start().await;
    let request = sign_in(&gateway).await;
    let session = begin(&request).await;
    let of_session = usize::from(calls_of(&peers[0], "initialize") == 0);
    let gate = Gate::shut();
    peers[of_session].set(|script| script.gate = Some(gate.clone()));
    stands(&gateway, &peers[of_session], "down").await;
    // Not a word to one that hangs: its client begins another.
    let before = calls(&peers[of_session]);
    assert_eq!(echo(&session).await, 404);
    assert_eq!(echo(&begin(&request).await).await, 200);
    assert_eq!(calls(&peers[of_session]), before);
    gate.open();
}

#[tokio::test]
async fn a_peer_that_comes_back_before_it_has_left_is_one_of_all_again() {
    let peers = peers(2).await;
    let gateway = Gateway::builder().route(route(&peers)).start().await;
    let request = sign_in(&gateway).await;
    assert_eq!(echo(&request).await, 200);
    reload(&gateway, &route(&peers[1..])).await;
    stands(&gateway, &peers[0], "leaving").await;
    reload(&gateway, &route(&peers)).await;
    stands(&gateway, &peers[0], "up").await;
    assert!(!metrics(&gateway).await.contains("state=\"leaving\""));
    let before = calls(&peers[0]);
    for _ in 0..10 {
        assert_eq!(echo(&request).await, 200);
    }
    assert_eq!(calls(&peers[0]) - before, 5);
}

#[tokio::test]
async fn a_session_is_of_its_upstream_whoever_has_the_route_since() {
    let peers = peers(2).await;
    peers.iter().for_each(|peer| peer.set(|script| script.sessions = true));
    let gateway = Gateway::builder().route(route(&peers[..1])).start().await;
    let session = begin(&sign_in(&gateway).await).await;
    assert_eq!(echo(&session).await, 200);
    let next = Route::to("demo", "http://next.test/mcp", json!({"kind": "none"}));
    reload(&gateway, &next.with("upstream.peers", addresses(&peers[1..]))).await;
    // The peer is still there, for those that come to it by the name it had.
    assert_eq!(echo(&session).await, 404);
    assert_eq!([calls(&peers[0]), calls(&peers[1])], [1, 0]);
}

#[tokio::test]
async fn what_was_begun_for_one_upstream_never_goes_to_the_peers_of_the_next() {
    let (before, after) = (Upstream::start().await, Upstream::start().await);
    let at = |upstream: &Upstream| {
        Route::oauth("demo", upstream).with("upstream.peers", json!([address(upstream)]))
    };
    let gateway = Gateway::builder().route(at(&before)).start().await;
    let request = sign_in(&gateway).await;
    assert_eq!(echo(&request).await, 200);
    // A call that waits for a fresh token while the route becomes another.
    let gate = Gate::shut();
    before.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
    before.refuse_current_tokens();
    let waits = tokio::spawn({
        let request = request.clone();
        async move { echo(&request).await }
    });
    gate.wait_for(1, PATIENCE).await;
    reload(&gateway, &at(&after)).await;
    gate.open();
    let status = waits.await.unwrap();
    assert!(after.calls().is_empty(), "{status}: with a token of the upstream before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_at_the_same_peer_for_every_instance() {
    let (redis, peers) = (Redis::start(&[]), peers(4).await);
    peers.iter().for_each(|peer| peer.set(|script| script.sessions = true));
    let cluster = Cluster::of(2, Shared::new(store_at(address_of(&redis)), vec![route(&peers)])).await;
    let (_, tokens) = cluster.sign_in(0).await;
    for begun_at in 0..2 {
        peers.iter().for_each(|peer| peer.requests.clear());
        let begun = cluster
            .call(begun_at, &tokens)
            .call("initialize", json!({"protocolVersion": "2025-11-25"}))
            .await;
        let id = begun.header("mcp-session-id").unwrap();
        let where_begun = peers.iter().position(|peer| !peer.calls().is_empty()).unwrap();
        for instance in [0, 1, 0, 1] {
            assert_eq!(echo(&cluster.call(instance, &tokens).header("mcp-session-id", id)).await, 200);
        }
        assert_eq!(calls(&peers[where_begun]), 4);
        assert_eq!(peers.iter().map(calls).sum::<usize>(), 4);
    }
}

#[tokio::test]
async fn a_peer_at_a_private_address_is_reached_only_where_that_is_allowed() {
    let peer = Upstream::open().await;
    let name = format!("localhost:{}", peer.server.address.port());
    let refused = Route::to("demo", "https://mcp.test/mcp", json!({"kind": "none"}))
        .with("upstream.allow_private", json!(false))
        .with("upstream.peers", json!([name]));
    let gateway = Gateway::builder().route(refused).start().await;
    let request = sign_in(&gateway).await;
    assert_eq!(echo(&request).await, 502);
    assert_eq!(peer.server.connections_opened(), 0);
    gateway.output.shows("private address").await;
    let allowed = route([]).with("upstream.peers", json!([name]));
    reload(&gateway, &allowed).await;
    assert_eq!(echo(&request).await, 200);
}

#[tokio::test]
async fn what_a_name_stood_for_under_another_policy_is_not_used_any_more() {
    let server = TlsServer::start("mcp.test");
    let files = tempfile::tempdir().unwrap();
    let certificate = files.path().join("ca.pem");
    std::fs::write(&certificate, &server.certificate).unwrap();
    let peer = server.url.trim_start_matches("https://").trim_end_matches("/mcp");
    let of = |is_allowed: bool| {
        Route::to("demo", "https://mcp.test/mcp", json!({"kind": "none"}))
            .with("upstream.allow_private", json!(is_allowed))
            .with("upstream.peers", json!([peer]))
    };
    let gateway =
        Gateway::builder().route(of(true)).with("outbound.ca_files", json!([certificate])).start().await;
    let request = sign_in(&gateway).await;
    assert_eq!(echo(&request).await, 200);
    reload(&gateway, &of(false)).await;
    let connections = server.connections();
    let begun = server.received().matches("tools/call").count();
    assert_eq!(echo(&request).await, 502);
    assert_eq!((server.connections(), server.received().matches("tools/call").count()), (connections, begun));
    gateway.output.shows("private address").await;
}
