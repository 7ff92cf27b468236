//! Load and faults at once: whoever a fault does not touch notices nothing of it, and when it is over nothing of it is left. Short
//! forms here; with `POSTERN_SOAK=1` the long ones, whose figures are in `benches/soak.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::{ALONE, support};

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use support::browser::{Arrival, Browser};
use support::client::{Client, Tokens};
use support::cluster::{Shared, address_of, store_at};
use support::gate::Gate;
use support::gateway::{Builder, Gateway, Route};
use support::identity::IdentityProvider;
use support::mcp::McpRequest;
use support::process::run;
use support::raw::RawConnection;
use support::redis::Redis;
use support::script::Answer;
use support::service::Service;
use support::tls_server::identity;
use support::upstream::Upstream;
use support::{PATIENCE, eventually, http_client_to, lock};

const SECOND: Duration = Duration::from_secs(1);
const ECHO: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":"hi"}}}"#;

fn sized<T>(short: T, long: T) -> T {
    if std::env::var_os("POSTERN_SOAK").is_some() { long } else { short }
}

fn memory(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn files(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// How many files this process may open from now on.
fn limit_files(process: u32, most: &str) -> bool {
    let (process, limit) = (process.to_string(), format!("--nofile={most}"));
    let set = std::process::Command::new("prlimit").args(["--pid", &process, &limit]).status();
    set.unwrap().success()
}

fn signal(process: u32, name: &str) -> bool {
    std::process::Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap().success()
}

/// A call by hand at `/demo`.
fn by_hand(gateway: &Gateway, token: &str, body: &str) -> String {
    format!(
        "POST /demo HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nContent-Length: {}\r\n\r\n{body}",
        gateway.address,
        body.len()
    )
}

async fn token(gateway: &Gateway) -> String {
    Client::register(gateway).await.sign_in(&mut Browser::new(), "demo").await.access_token
}

// === what a fault every 30 seconds does ===

/// What callers have seen.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    served: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

/// How a route is called at the moment, and with what token.
type Access = Arc<Mutex<(McpRequest, String)>>;

/// Calls again and again until it is over; on a new connection each time, if `at` says where.
async fn calls(access: Access, at: Option<(std::net::SocketAddr, String)>, seen: Arc<Seen>) {
    while !seen.over.load(Ordering::Relaxed) {
        let (call, token) = lock(&access).clone();
        let call = match &at {
            None => call,
            Some((address, url)) => McpRequest::to(&http_client_to(*address), url).bearer(&token),
        };
        let seen_as = match call.try_send("POST", Some(ECHO)).await {
            Ok(answer) => {
                let status = answer.status();
                answer.bytes().await.map(|_| status.as_u16())
            }
            Err(error) => Err(error),
        };
        match seen_as {
            Ok(200) => drop(seen.served.fetch_add(1, Ordering::Relaxed)),
            other => lock(&seen.failed).push(format!("{other:?}")),
        }
        tokio::time::sleep(SECOND / 50).await;
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    StoreDies,
    UpstreamDies,
    UpstreamHangs,
    AuthorizationServerDies,
    AuthorizationServerIsSlow,
    TokensAreRefused,
    IdentityProviderDies,
    KeysRotate,
    Reload,
    WrongReload,
    Upgrade,
    BrokenUpgrade,
    NoFiles,
    SlowClients,
    Reconnects,
}

/// The keys rotate early enough for a token of before to come to its end in the long form.
const FAULTS: [Fault; 15] = [
    Fault::StoreDies,
    Fault::KeysRotate,
    Fault::IdentityProviderDies,
    Fault::UpstreamDies,
    Fault::UpstreamHangs,
    Fault::AuthorizationServerDies,
    Fault::AuthorizationServerIsSlow,
    Fault::TokensAreRefused,
    Fault::Reload,
    Fault::WrongReload,
    Fault::Upgrade,
    Fault::BrokenUpgrade,
    Fault::NoFiles,
    Fault::SlowClients,
    Fault::Reconnects,
];

/// What access tokens live here, which is as long as they may.
const TOKEN_TTL: Duration = Duration::from_secs(15 * 60);

struct World {
    redis: Redis,
    /// Everybody comes from it.
    provider: IdentityProvider,
    /// What was given before the keys rotated.
    given: Vec<(Instant, McpRequest)>,
    /// What no fault touches.
    steady: Upstream,
    shaky: Upstream,
    /// With an authorization server of its own.
    own: Upstream,
    service: Service,
    process: u32,
    /// Has its keys.
    _shared: Shared,
}

impl World {
    async fn begin() -> Self {
        let redis = Redis::start(&["--appendonly", "yes"]);
        let (steady, shaky, own) = (Upstream::open().await, Upstream::open().await, Upstream::start().await);
        let routes =
            vec![Route::open("demo", &steady), Route::open("shaky", &shaky), Route::oauth("own", &own)];
        let shared = Shared::new(store_at(address_of(&redis)), routes);
        let provider = IdentityProvider::start().await;
        let mut entry = provider.entry();
        entry["client_secret"] = json!({"file": shared.make_key("provider", 9)["file"]});
        let builder = shared.instance(0, None);
        let builder = builder
            .with("login", json!({"oidc": [entry]}))
            .with("server.drain_timeout", json!("1h"))
            .with("server.upgrade_timeout", json!("10s"))
            .with("oauth_server.access_token_ttl", json!("15m"));
        let service = Service::start(builder).await;
        let process = service.process_id();
        World { redis, provider, given: Vec::new(), steady, shaky, own, service, process, _shared: shared }
    }

    async fn sign_in(&self, route: &str) -> (Client, Tokens) {
        let client = Client::register(&self.service).await;
        let tokens = client.sign_in(&mut self.browser(), route).await;
        (client, tokens)
    }

    fn access(&self, route: &str, tokens: &Tokens) -> (McpRequest, String) {
        let token = tokens.access_token.clone();
        (self.service.mcp(route).bearer(&token), token)
    }

    fn browser(&self) -> Browser {
        Browser::new().through(&self.service)
    }

    /// Whether somebody comes in through the provider.
    async fn comes_in(&self, browser: &mut Browser) -> bool {
        let page = browser.go(&self.service.url("/login/start?provider=corp&next=/")).await.page();
        page.status == 200 && page.text().contains("ada@example.com")
    }

    /// Whoever is in stays in, who comes is told that it is not now, and afterwards comes in.
    async fn without_provider(&self, lasts: Duration) {
        let (client, tokens) = self.sign_in("demo").await;
        let mut inside = self.browser();
        assert!(self.comes_in(&mut inside).await);
        // On the way back from it, with a code that nobody can redeem now.
        let mut between = self.browser();
        between.stop_before(&self.service.url("/login/callback"));
        let way_back = between.go(&self.service.url("/login/start?provider=corp&next=/")).await;
        let Arrival::Client(way_back) = way_back else { panic!("{}", way_back.page().text()) };
        self.provider.server.stop();
        let page = between.peek(way_back.as_str()).await;
        assert_eq!((page.status, page.header("retry-after")), (503, Some("5")), "{}", page.text());
        tokio::time::sleep(lasts).await;
        let home = inside.go(&self.service.url("/")).await.page();
        assert!(home.text().contains("ada@example.com"), "{}", home.text());
        let tokens = client.refresh(&tokens.refresh_token).await.tokens();
        assert_eq!(self.access("demo", &tokens).0.post(ECHO).await.status, 200);
        self.provider.server.resume().await;
        eventually(2 * PATIENCE, async || self.comes_in(&mut self.browser()).await).await;
    }

    /// Tokens of before are good until they end, and those of after at once.
    async fn rotate_keys(&mut self) {
        let (client, tokens) = self.sign_in("demo").await;
        self.given.push((Instant::now(), self.access("demo", &tokens).0));
        let file = self.service.config_file();
        let rotated =
            run(&["keys", "rotate", "--access-tokens", "--config", file.to_str().unwrap()], &[]).await;
        assert_eq!(rotated.code, Some(0), "{}", rotated.stderr);
        let key = |tokens: &Tokens| tokens.access_token["postern_at_".len()..][..5].to_owned();
        let (end, mut next) = (Instant::now() + 20 * SECOND, tokens.clone());
        while key(&next) == key(&tokens) {
            assert!(Instant::now() < end, "the new key seals nothing");
            tokio::time::sleep(SECOND / 4).await;
            next = client.refresh(&next.refresh_token).await.tokens();
            assert_eq!(self.access("demo", &next).0.post(ECHO).await.status, 200);
        }
        self.judge_given().await;
    }

    async fn judge_given(&self) {
        for (at, call) in &self.given {
            let (age, status) = (at.elapsed(), call.post(ECHO).await.status);
            if age < TOKEN_TTL - 10 * SECOND {
                assert_eq!(status, 200, "a token given {age:?} ago");
            } else if age > TOKEN_TTL + 10 * SECOND {
                assert_eq!(status, 401, "a token given {age:?} ago");
            }
        }
    }

    async fn carry_out(&mut self, fault: Fault, own: &McpRequest, lasts: Duration) {
        let file = self.service.config_file();
        let reload = ["reload", "--config", file.to_str().unwrap()];
        match fault {
            Fault::StoreDies => {
                self.redis.kill();
                tokio::time::sleep(lasts).await;
                self.redis.again();
            }
            Fault::UpstreamDies => {
                self.shaky.server.stop();
                tokio::time::sleep(lasts).await;
                self.shaky.server.resume().await;
            }
            Fault::UpstreamHangs => {
                let gate = Gate::shut();
                self.shaky.set(|script| script.gate = Some(gate.clone()));
                tokio::time::sleep(lasts).await;
                self.shaky.set(|script| script.gate = None);
                gate.open();
            }
            Fault::AuthorizationServerDies => {
                self.own.refuse_current_tokens();
                self.own.server.stop();
                let _ = own.try_send("POST", Some(ECHO)).await;
                tokio::time::sleep(lasts).await;
                self.own.server.resume().await;
            }
            Fault::AuthorizationServerIsSlow => {
                let gate = Gate::shut();
                self.own.set_authorization(|script| script.token_gate = Some(gate.clone()));
                self.own.refuse_current_tokens();
                let waits = own.try_send("POST", Some(ECHO));
                let opens = async {
                    tokio::time::sleep(lasts).await;
                    self.own.set_authorization(|script| script.token_gate = None);
                    gate.open();
                };
                tokio::join!(waits, opens).0.unwrap();
            }
            Fault::TokensAreRefused => self.own.refuse_current_tokens(),
            Fault::IdentityProviderDies => self.without_provider(lasts).await,
            Fault::KeysRotate => self.rotate_keys().await,
            Fault::Reload => assert_eq!(run(&reload, &[]).await.code, Some(0)),
            Fault::WrongReload => {
                let good = std::fs::read_to_string(&file).unwrap();
                std::fs::write(&file, "nonsense: [").unwrap();
                assert!(signal(self.process, "HUP"));
                self.service.output.shows("not reloaded: the configuration is wrong").await;
                assert_ne!(run(&reload, &[]).await.code, Some(0));
                std::fs::write(&file, good).unwrap();
            }
            Fault::Upgrade => self.process = self.service.hand_over().await,
            Fault::BrokenUpgrade => {
                self.service.script("#!/bin/sh\nexit 1\n");
                assert_ne!(self.service.upgrade(&["--always"]).await.code, Some(0));
                self.service.mend();
            }
            Fault::NoFiles => {
                assert!(limit_files(self.process, "5:20000"));
                tokio::time::sleep(lasts).await;
                assert!(limit_files(self.process, "20000:20000"));
            }
            Fault::SlowClients => {
                let begun = (0..300).map(|_| async {
                    let mut connection = RawConnection::open(self.service.address).await;
                    connection.send("POST /demo HTTP/1.1\r\nHo").await;
                    connection
                });
                let held = join_all(begun).await;
                tokio::time::sleep(lasts).await;
                drop(held);
            }
            Fault::Reconnects => {
                for _ in 0..3 {
                    let connections = (0..200).map(|_| RawConnection::open(self.service.address));
                    drop(join_all(connections).await);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_r22_a_fault_every_30_seconds_is_not_felt_by_whom_it_does_not_touch() {
    let _alone = ALONE.lock().await;
    let (count, every, lasts) = sized((FAULTS.len(), SECOND / 2, SECOND), (40, 30 * SECOND, 5 * SECOND));
    let chosen = std::env::var("POSTERN_SOAK_FAULTS").ok().and_then(|count| count.parse().ok());
    let count = chosen.unwrap_or(count);
    let mut world = World::begin().await;
    let routes = ["demo", "shaky", "own"];
    let (mut users, mut accesses) = (Vec::new(), Vec::<Access>::new());
    for route in routes {
        let (client, tokens) = world.sign_in(route).await;
        accesses.push(Arc::new(Mutex::new(world.access(route, &tokens))));
        users.push((client, tokens));
    }
    let steady = lock(&accesses[0]).0.clone();
    let mut renewed = Instant::now();
    let works = async |call: &McpRequest| {
        let answer = tokio::time::timeout(5 * SECOND, call.try_send("POST", Some(ECHO))).await;
        answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status() == 200))
    };
    // Streams, each of which outlives all faults.
    let mut streams = Vec::new();
    for _ in 0..20 {
        let (feed, answer) = Answer::stream();
        world.steady.answer_next(answer);
        let mut events = steady.events().await;
        feed.event("begins");
        assert_eq!(events.next(PATIENCE).await.unwrap().data, "begins");
        streams.push((feed, events));
    }
    let seen = Arc::new(Seen::default());
    let at = (world.service.address, world.service.url("/demo"));
    let callers = (0..6).map(|number| {
        let at = (number == 0).then(|| at.clone());
        tokio::spawn(calls(Arc::clone(&accesses[0]), at, Arc::clone(&seen)))
    });
    let callers: Vec<_> = callers.collect();
    eventually(PATIENCE, async || seen.served.load(Ordering::Relaxed) > 200).await;
    let before = (memory(world.process), files(world.process));
    for fault in FAULTS.iter().cycle().take(count) {
        let next = tokio::time::Instant::now() + every;
        let (served, failed) = (seen.served.load(Ordering::Relaxed), lock(&seen.failed).len());
        let own = lock(&accesses[2]).0.clone();
        world.carry_out(*fault, &own, lasts).await;
        for (route, access) in routes.iter().zip(&accesses) {
            let (end, call) = (Instant::now() + 20 * SECOND, lock(access).0.clone());
            while !works(&call).await {
                assert!(Instant::now() < end, "{route} after {fault:?}");
            }
        }
        if renewed.elapsed() > 240 * SECOND {
            renewed = Instant::now();
            for ((route, access), (client, tokens)) in routes.iter().zip(&accesses).zip(&mut users) {
                *tokens = client.refresh(&tokens.refresh_token).await.tokens();
                *lock(access) = world.access(route, tokens);
            }
        }
        tokio::time::sleep_until(next).await;
        let (served, failed) =
            (seen.served.load(Ordering::Relaxed) - served, lock(&seen.failed).len() - failed);
        println!("{fault:?}: {served} served, {failed} failed");
    }
    seen.over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    for (feed, mut events) in streams {
        feed.event("goes on");
        assert_eq!(events.next(PATIENCE).await.unwrap().data, "goes on");
        feed.finish();
        assert_eq!(events.next(PATIENCE).await, None);
    }
    world.judge_given().await;
    world.service.is_alone(world.process).await;
    let (served, failed) = (seen.served.load(Ordering::Relaxed), lock(&seen.failed).clone());
    let after = (memory(world.process), files(world.process));
    println!("{count} faults, {served} calls served, {} failed: {failed:?}", failed.len());
    println!("{} KiB and {} files before, {} KiB and {} after", before.0, before.1, after.0, after.1);
    assert!(failed.len() * 1000 <= served, "{failed:?}");
    assert!(after.0 < before.0 + 32 * 1024 && after.1 < before.1 + 20, "{before:?} {after:?}");
    world.service.output.assert_no_secret();
}

// === an upstream that closes idle connections at the worst moment ===

/// How long a call may be on its way to a connection that is about to be closed.
const LINGERS: Duration = Duration::from_millis(20);

struct Ledger {
    begun: Instant,
    accepted: AtomicUsize,
    /// How often each call was carried out.
    done: Mutex<HashMap<u64, u32>>,
    closed: AtomicUsize,
    /// Whether it closes as late as it can: when the call has come that was on its way.
    lingers: AtomicBool,
    /// How often it was about to close one while calls were made.
    missed: AtomicUsize,
    /// Calls that were there when their connection was closed: nobody but the upstream can know that they were not carried out. With
    /// when that was, and how long the connection had rested.
    crossed: Mutex<HashMap<u64, (Duration, Duration)>>,
}

/// A connection at its upstream.
trait Line: Read + Write {
    fn socket(&self) -> &TcpStream;

    /// What is said before TCP's own.
    fn say_good_bye(&mut self) {}
}

impl Line for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Line for StreamOwned<ServerConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }

    fn say_good_bye(&mut self) {
        self.conn.send_close_notify();
        let _ = self.flush();
    }
}

/// `tls`: who it is.
fn hasty_upstream(idle: Duration, tls: Option<Arc<ServerConfig>>) -> (String, Arc<Ledger>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://localhost:{}/mcp", listener.local_addr().unwrap().port());
    let ledger = Arc::new(Ledger {
        begun: Instant::now(),
        accepted: AtomicUsize::default(),
        done: Mutex::default(),
        closed: AtomicUsize::default(),
        lingers: AtomicBool::default(),
        missed: AtomicUsize::default(),
        crossed: Mutex::default(),
    });
    let shared = Arc::clone(&ledger);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, ledger) = (stream.unwrap(), Arc::clone(&shared));
            let number = ledger.accepted.fetch_add(1, Ordering::Relaxed);
            stream.set_nodelay(true).unwrap();
            let tls = tls.clone().map(|config| ServerConnection::new(config).unwrap());
            std::thread::spawn(move || match tls {
                None => serve_hastily(stream, idle, &ledger, false),
                // Not all servers say it.
                Some(tls) => serve_hastily(StreamOwned::new(tls, stream), idle, &ledger, number % 2 == 0),
            });
        }
    });
    (url, ledger)
}

/// Of a call that is all there.
fn id_of(call: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(call);
    let body: Value = serde_json::from_str(&text[text.find("\r\n\r\n").unwrap()..]).unwrap();
    body["id"].as_u64().unwrap()
}

fn serve_hastily(mut stream: impl Line, idle: Duration, ledger: &Ledger, says_good_bye: bool) {
    let is_over =
        |error: &std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let (mut request, mut piece) = (Vec::new(), [0; 16384]);
    let mut answered = Instant::now();
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return,
            Ok(length) => request.extend_from_slice(&piece[..length]),
            Err(error) if request.is_empty() && is_over(&error) => {
                if ledger.lingers.load(Ordering::Relaxed) {
                    let before = lock(&ledger.done).len();
                    stream.socket().set_read_timeout(Some(LINGERS)).unwrap();
                    let _ = stream.socket().peek(&mut piece[..1]);
                    ledger.missed.fetch_add((lock(&ledger.done).len() > before).into(), Ordering::Relaxed);
                }
                stream.socket().set_nonblocking(true).unwrap();
                if says_good_bye {
                    stream.say_good_bye();
                }
                // What comes while one half of it is open is taken; after that nothing is.
                for half in [Shutdown::Write, Shutdown::Read] {
                    let _ = stream.socket().shutdown(half);
                    if let Ok(length @ 1..) = stream.read(&mut piece) {
                        let moments = (ledger.begun.elapsed(), answered.elapsed());
                        lock(&ledger.crossed).insert(id_of(&piece[..length]), moments);
                    }
                }
                ledger.closed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(_) => return,
        }
        if request.ends_with(b"}") {
            *lock(&ledger.done).entry(id_of(&request)).or_default() += 1;
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
            request.clear();
            answered = Instant::now();
            // As servers do: a first request may take its time.
            stream.socket().set_read_timeout(Some(idle)).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_f19_an_upstream_that_closes_idle_connections_costs_hardly_a_call_and_repeats_none() {
    try_at_the_worst_moment(None, Gateway::builder()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_f19_an_upstream_with_tls_that_closes_idle_connections_costs_hardly_a_call_and_repeats_none() {
    let (config, certificate) = identity(&["localhost"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), certificate).unwrap();
    try_at_the_worst_moment(Some(config), Gateway::builder().with("outbound.ca_files", json!([file.path()])))
        .await;
}

async fn try_at_the_worst_moment(tls: Option<Arc<ServerConfig>>, builder: Builder) {
    let _alone = ALONE.lock().await;
    const IDLE: Duration = Duration::from_millis(100);
    let (callers, each) = sized((32, 60), (100, 1000));
    let (url, ledger) = hasty_upstream(IDLE, tls);
    let gateway = builder.with("server.access_log", json!("off"));
    let gateway = Arc::new(gateway.route(Route::to("demo", &url, json!({"kind": "none"}))).start().await);
    let token = token(&gateway).await;
    let ping = |id: u64| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
    // Nobody knows how old is too old before a call has found a connection closed. The first was not kept for it where what the
    // upstream speaks was not known yet.
    const FIRST: u64 = 3;
    for number in 0..FIRST {
        let closed = || ledger.closed.load(Ordering::Relaxed) as u64;
        eventually(PATIENCE, async || closed() == number).await;
        let mut connection = RawConnection::open(gateway.address).await;
        connection.send(by_hand(&gateway, &token, &ping(callers * each + number))).await;
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
    }
    ledger.lingers.store(true, Ordering::Relaxed);
    let load = (0..callers).map(|caller| {
        let (gateway, token) = (Arc::clone(&gateway), token.clone());
        tokio::spawn(async move {
            let mut connection = RawConnection::open(gateway.address).await;
            let mut failed = Vec::new();
            for number in 0..each {
                let id: u64 = caller * each + number;
                connection.send(by_hand(&gateway, &token, &ping(id))).await;
                let status = connection.response(PATIENCE).await.map_or(0, |answer| answer.status);
                if status != 200 {
                    failed.push((id, status));
                    connection = RawConnection::open(gateway.address).await;
                }
                // Just before the upstream closes, just then, and just after.
                tokio::time::sleep(IDLE + Duration::from_micros(id * 7919 % 5000) - Duration::from_millis(3))
                    .await;
            }
            failed
        })
    });
    let failed: Vec<_> = join_all(load).await.into_iter().flat_map(Result::unwrap).collect();
    let done = lock(&ledger.done).clone();
    let (closed, crossed) = (ledger.closed.load(Ordering::Relaxed), lock(&ledger.crossed).clone());
    let missed = ledger.missed.load(Ordering::Relaxed);
    println!(
        "{} calls on {} connections, {closed} of them closed by the upstream, {missed} of these while others served calls, {} with a call \
         that had come; {} failed",
        callers * each,
        ledger.accepted.load(Ordering::Relaxed),
        crossed.len(),
        failed.len()
    );
    for (id, (at, rested)) in &crossed {
        let status = failed.iter().find(|(failed, _)| failed == id).map_or(200, |(_, status)| *status);
        println!("call {id}: {status}; closed {at:?} after the start, when it had rested for {rested:?}");
    }
    assert!(done.values().all(|times| *times == 1), "carried out twice");
    let excused = |(id, status): &(u64, u16)| *status == 502 && crossed.contains_key(id);
    assert!(failed.iter().all(excused), "{failed:?} {crossed:?}");
    // Nobody comes near it, unless a busy machine holds a call up between its last look at the clock and the wire.
    assert!(failed.len() <= 1, "{failed:?}");
    assert_eq!(done.len() + failed.len(), usize::try_from(FIRST + callers * each).unwrap());
    assert!(missed > 0, "nothing was tried");
}

// === idle streams, storms, slow clients ===

/// One that holds every stream open and answers every call at once.
async fn patient_upstream() -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut piece = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut piece).await {
                    let answer = match piece[..length].starts_with(b"GET") {
                        true => {
                            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\n: hi\n\r\n"
                        }
                        false if !piece[..length].ends_with(b"}") => continue,
                        false => {
                            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
                        }
                    };
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

async fn with_patience(limits: Value) -> (Arc<Gateway>, String) {
    let url = patient_upstream().await;
    let builder = Gateway::builder().with("server.access_log", json!("off")).with("limits", limits);
    let gateway = builder.route(Route::to("demo", &url, json!({"kind": "none"}))).start().await;
    let token = token(&gateway).await;
    (Arc::new(gateway), token)
}

/// So many calls a second for so long: how long they took, sorted.
async fn paced(gateway: &Arc<Gateway>, token: &str, rate: u32, lasts: Duration) -> Vec<Duration> {
    const CALLERS: u32 = 20;
    let callers = (0..CALLERS).map(|caller| {
        let (gateway, call) =
            (Arc::clone(gateway), by_hand(gateway, token, r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#));
        tokio::spawn(async move {
            let mut connection = RawConnection::open(gateway.address).await;
            let begun = tokio::time::Instant::now() + SECOND * caller / rate;
            let mut took = Vec::new();
            for number in 0.. {
                let due = begun + SECOND * CALLERS * number / rate;
                if due > begun + lasts {
                    break;
                }
                tokio::time::sleep_until(due).await;
                let sent = Instant::now();
                connection.send(&call).await;
                assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
                took.push(sent.elapsed());
            }
            took
        })
    });
    let mut took: Vec<Duration> = join_all(callers).await.into_iter().flat_map(Result::unwrap).collect();
    took.sort();
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_r21_calls_go_on_beside_thousands_of_idle_streams() {
    let _alone = ALONE.lock().await;
    // An upstream, its clients and the program itself, unoptimised, on what the machine has.
    let (count, rate, lasts) = sized((300, 100, 2 * SECOND), (9_000, 300, 30 * SECOND));
    let limits = json!({"streams": 20_000, "streams_per_user": 20_000});
    let (gateway, token) = with_patience(limits).await;
    let get = by_hand(&gateway, &token, "").replace("POST", "GET").replace("Content-Length: 0\r\n", "");
    let alone = paced(&gateway, &token, rate, lasts).await;
    let before = memory(gateway.process_id());
    let mut streams = Vec::new();
    while streams.len() < count {
        let opened = (0..100).map(|_| async {
            let mut connection = RawConnection::open(gateway.address).await;
            connection.send(&get).await;
            assert!(connection.begins_with(b"HTTP/1.1 200", PATIENCE).await);
            connection
        });
        streams.extend(join_all(opened).await);
    }
    let beside = paced(&gateway, &token, rate, lasts).await;
    let p99 = |took: &[Duration]| took[took.len() * 99 / 100];
    println!(
        "{count} streams, {rate} calls/s: p99 {:?} alone, {:?} beside them, {} bytes each",
        p99(&alone),
        p99(&beside),
        // What the machine took back in the meantime is not counted below nothing.
        memory(gateway.process_id()).saturating_sub(before) * 1024 / count
    );
    // Whoever else works on this machine shows in milliseconds: the short form asks that all are served.
    let bound = sized(PATIENCE, 2 * p99(&alone) + SECOND / 50);
    assert!(p99(&beside) < bound, "{:?} {:?}", p99(&alone), p99(&beside));
    drop(streams);
    eventually(PATIENCE, async || files(gateway.process_id()) < 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_f29_all_come_back_at_once_and_are_served_within_seconds() {
    let _alone = ALONE.lock().await;
    let (count, within) = sized((300, 3 * SECOND), (5_000, 15 * SECOND));
    let (gateway, token) = with_patience(json!({})).await;
    let call = by_hand(&gateway, &token, r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    let comes = async || {
        let mut connection = RawConnection::open(gateway.address).await;
        connection.send(&call).await;
        assert_eq!(connection.response(2 * PATIENCE).await.unwrap().status, 200);
        connection
    };
    let mut connections = join_all((0..count).map(|_| comes())).await;
    let before = memory(gateway.process_id());
    for storm in 0..3 {
        drop(connections);
        let begun = Instant::now();
        connections = join_all((0..count).map(|_| comes())).await;
        let took = begun.elapsed();
        drop(comes().await);
        println!("{count} came back at once, time {storm}: all served after {took:?}");
        assert!(took < within, "{took:?}");
    }
    let after = memory(gateway.process_id());
    assert!(after < before + 16 * 1024, "{before} KiB before, {after} after");
    drop(connections);
    // Those to the upstream are kept for a while.
    eventually(PATIENCE, async || files(gateway.process_id()) < 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t47_thousands_of_slow_clients_are_gone_in_time_and_all_others_are_served() {
    let _alone = ALONE.lock().await;
    let count = sized(500, 5_000);
    let (gateway, token) = with_patience(json!({"header_time": "3s"})).await;
    let before = (memory(gateway.process_id()), files(gateway.process_id()));
    let call = by_hand(&gateway, &token, r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    let slow = (0..count).map(|_| {
        let (gateway, call) = (Arc::clone(&gateway), call.clone());
        tokio::spawn(async move {
            let mut connection = RawConnection::open(gateway.address).await;
            let begun = Instant::now();
            for byte in call.as_bytes().chunks(1) {
                connection.send(byte).await;
                let closes = connection.closed(2 * PATIENCE);
                if tokio::time::timeout(SECOND, closes).await.is_ok() {
                    break;
                }
            }
            begun.elapsed()
        })
    });
    let slow: Vec<_> = slow.collect();
    let served = paced(&gateway, &token, 50, 3 * SECOND).await;
    let took: Vec<Duration> = join_all(slow).await.into_iter().map(Result::unwrap).collect();
    let longest = took.iter().max().unwrap();
    println!(
        "{count} slow clients, the last gone after {longest:?}; others' calls took {:?} at most",
        served.last().unwrap()
    );
    assert!(*longest < 8 * SECOND, "{longest:?}");
    eventually(3 * SECOND, async || files(gateway.process_id()) < before.1 + 50).await;
    assert!(memory(gateway.process_id()) < before.0 + 32 * 1024);
}
