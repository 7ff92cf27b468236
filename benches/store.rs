//! What the store costs off the hot path: both stores and a bare Redis GET side by side, in one run.
//!
//! Five rounds, interleaved, so that a busy moment of the machine hits all of them; the table shows medians. Only ratios
//! travel to another machine. The hot path itself asks no store: `tests/instances/cluster.rs` counts that, and `benches/run.py`
//! measures it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern::clock::Clock;
use postern::config::{self, Address, Topology};
use postern::oauth::server::access_token::{Claims, Keys};
use postern::store::embedded::Embedded;
use postern::store::redis::Redis;
use postern::store::{Acquired, Change, Claim, Kind, Store};

#[path = "../tests/support/redis.rs"]
mod server;

const ROUNDS: usize = 5;
const STEPS: usize = 200;
const HOUR: Duration = Duration::from_secs(3600);
/// As long as a sealed connection with two tokens.
const VALUE: [u8; 1500] = [7; 1500];

/// One thing that is measured, in microseconds per step.
struct Row {
    name: &'static str,
    samples: Vec<f64>,
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

async fn timed<F: Future<Output = ()>>(mut step: impl FnMut(usize) -> F) -> f64 {
    let mut samples = Vec::with_capacity(STEPS);
    for number in 0..STEPS {
        let begun = Instant::now();
        step(number).await;
        samples.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    median(&samples)
}

async fn cold_look_up(store: &dyn Store, round: usize) -> f64 {
    let key = format!("c{round}");
    store.connect(&key, "inc", VALUE.to_vec(), HOUR).await.unwrap();
    let key = &key;
    timed(|_| async move { assert!(store.connection(key).await.unwrap().is_some()) }).await
}

/// Acquire, note that it leaves, commit: what a refresh asks of the store.
async fn refresh(store: &dyn Store, round: usize) -> f64 {
    let key = format!("r{round}");
    store.connect(&key, "inc", VALUE.to_vec(), HOUR).await.unwrap();
    let key = &key;
    timed(|number| async move {
        let (attempt_id, generation) = (number.to_string(), number as u64 + 1);
        let acquired = store.acquire(key, &attempt_id, generation, HOUR).await.unwrap();
        let Acquired::Owner { connection, .. } = acquired else { panic!("not the owner") };
        assert!(store.sent(key, &attempt_id, connection.fence).await.unwrap());
        let claim = Claim { incarnation: "inc".into(), generation, attempt_id, fence: connection.fence };
        store.commit(key, &claim, VALUE.to_vec(), HOUR).await.unwrap();
    })
    .await
}

/// From the beginning of a revocation at one instance until another has heard of it.
async fn push(one: &dyn Store, other: &dyn Store, round: usize) -> f64 {
    let mut changes = other.subscribe();
    let mut samples = Vec::with_capacity(STEPS);
    for number in 0..STEPS {
        let key = format!("g{round}-{number}");
        let begun = Instant::now();
        one.tombstone(Kind::Grant, &key, HOUR).await.unwrap();
        let told = Change::Of { kind: Kind::Grant, key };
        while changes.recv().await.unwrap() != told {}
        samples.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    median(&samples)
}

/// What every call pays: opening an access token of ours, in nanoseconds.
fn token_opened() -> f64 {
    let (keys, now) = (Keys::new(&[[7; 32]]).unwrap(), Clock::system().now());
    let claims = Claims {
        audience: "https://mcp.example.com/files",
        grant: "GrAnTgRaNtGrAnTgRaNtGr",
        subject: "alice@example.com",
        client: "https://client.example/oauth/client.json",
        scope: "mcp:access",
        expires_at: now + HOUR,
    };
    let token = keys.seal(&claims, now).unwrap();
    let samples = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        for _ in 0..20_000 {
            assert!(keys.open(std::hint::black_box(&token), now).is_ok());
        }
        begun.elapsed().as_secs_f64() * 1e9 / 20_000.0
    });
    median(&samples.collect::<Vec<_>>())
}

fn redis_at(port: u16) -> config::Redis {
    config::Redis {
        topology: Topology::Standalone,
        addresses: vec![Address::Tcp("127.0.0.1".into(), port)],
        tls: false,
        database: 0,
        prefix: "bench:".to_owned(),
        username: None,
        password: None,
        sentinel_username: None,
        sentinel_password: None,
        authorities: None,
        client_certificate: None,
        replicas: 0,
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let server = server::Redis::start(&[]);
    let embedded: Arc<dyn Store> = Arc::new(Embedded::open(directory.path(), Clock::system()).unwrap());
    let open = || -> Arc<dyn Store> {
        Arc::new(Redis::open(&redis_at(server.port), Clock::system()).expect("redis"))
    };
    let (shared, other) = (open(), open());
    let client = redis::Client::open(server.url()).unwrap();
    let names = [
        "bare Redis GET",
        "cold look-up, Redis",
        "cold look-up, embedded",
        "refresh, Redis",
        "refresh, embedded (three flushes)",
        "revocation heard elsewhere, Redis",
    ];
    let mut rows = names.map(|name| Row { name, samples: Vec::new() });
    runtime.block_on(async {
        let config = redis::AsyncConnectionConfig::new();
        let bare = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
        let set = redis::cmd("SET").arg("bare").arg(&VALUE[..]).to_owned();
        set.query_async::<()>(&mut bare.clone()).await.unwrap();
        for round in 0..ROUNDS {
            let get = timed(|_| {
                let mut bare = bare.clone();
                async move {
                    let value: Vec<u8> = redis::cmd("GET").arg("bare").query_async(&mut bare).await.unwrap();
                    assert_eq!(value.len(), VALUE.len());
                }
            });
            rows[0].samples.push(get.await);
            rows[1].samples.push(cold_look_up(shared.as_ref(), round).await);
            rows[2].samples.push(cold_look_up(embedded.as_ref(), round).await);
            rows[3].samples.push(refresh(shared.as_ref(), round).await);
            rows[4].samples.push(refresh(embedded.as_ref(), round).await);
            rows[5].samples.push(push(shared.as_ref(), other.as_ref(), round).await);
        }
    });
    let yardstick = median(&rows[0].samples);
    println!("{ROUNDS} rounds of {STEPS} steps, one at a time");
    println!("| {:<34} | {:>10} | {:>14} |", "step", "median µs", "÷ bare GET");
    println!("| {:-<34} | {:->10} | {:->14} |", "", "", "");
    for Row { name, samples } in &rows {
        let median = median(samples);
        println!("| {name:<34} | {median:>10.0} | {:>14.1} |", median / yardstick);
    }
    println!("access token opened: {:.0} ns", token_opened());
}
