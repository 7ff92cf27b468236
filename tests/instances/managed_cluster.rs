//! Managed connections on Redis, at several instances: what is taken away is taken away at all of them within a second,
//! whoever hears of it late catches up, and a call asks the store nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::client::{Client, Tokens};
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::gateway::Gateway;
use support::managed::{Person, address, id, ping};
use support::process::run;
use support::redis::Redis;
use support::relay::{Relay, Weather};
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

/// How soon a change counts everywhere.
const SECOND: Duration = Duration::from_secs(1);

fn managed() -> Value {
    json!({"administrators": ["alice"], "allow_hosts": ["127.0.0.1"]})
}

/// Three instances, each behind a relay of its own.
async fn three(redis: &Redis) -> (Cluster, Vec<Relay>) {
    let shared = Shared::new(store_at(address_of(redis)), Vec::new()).with("managed", managed());
    let (mut instances, mut relays) = (Vec::new(), Vec::new());
    for number in 0..3 {
        let relay = Relay::to(address_of(redis)).await;
        instances.push(shared.instance(number, Some(store_at(relay.address))).start().await);
        relays.push(relay);
    }
    (Cluster { instances, shared }, relays)
}

/// Bob may use a server of Alice's organisation, and does.
struct Story<'c> {
    alice: Person<'c>,
    organization: String,
    added: Value,
    client: Client,
    tokens: Tokens,
}

async fn begin<'c>(cluster: &'c Cluster, upstream: &Upstream) -> Story<'c> {
    let gateway = &cluster.instances[0];
    let alice = Person::sign_in(gateway, "alice").await;
    let mut bob = Person::sign_in(gateway, "bob").await;
    let client = Client::register(gateway).await;
    let members = [("alice", "administrator"), ("bob", "member")];
    let organization = alice.organization("Acme", &members).await;
    let added = alice.add(Some(&organization), upstream, json!({"auth": {"mode": "none"}})).await;
    alice.assign(&added, "bob").await;
    let tokens = bob.let_in(&client, address(&added)).await;
    Story { alice, organization, added, client, tokens }
}

/// Until every one of these instances answers so; how long that took.
async fn all(instances: &[Gateway], url: &str, token: &str, status: u16) -> Duration {
    let begun = Instant::now();
    for instance in instances {
        eventually(PATIENCE, async || ping(instance, url, token).await.status == status).await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk25_04_what_is_taken_away_is_taken_away_everywhere_within_a_second() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let (cluster, _relays) = three(&redis).await;
    let Story { alice, organization, added, client, tokens } = begin(&cluster, &upstream).await;
    let url = address(&added).to_owned();
    let token = tokens.access_token.as_str();
    all(&cluster.instances, &url, token, 200).await;
    let of = format!("/configurations/{}", id(&added));
    let member = format!("/organizations/{organization}/members/bob");
    let mut bob = Person::sign_in(&cluster.instances[0], "bob").await;

    for (what, status) in [("disable", 404), ("unassign", 401), ("member", 401), ("rotate", 404)] {
        let tokens = bob.let_in(&client, &url).await;
        all(&cluster.instances, &url, &tokens.access_token, 200).await;
        match what {
            "disable" => drop(alice.ask("PATCH", &of).with(json!({"enabled": false})).done(200).await),
            "unassign" => alice.unassign(&added, "bob").await,
            "member" => drop(alice.ask("DELETE", &member).done(204).await),
            _ => drop(alice.ask("POST", &format!("{of}/rotate")).done(200).await),
        }
        let took = all(&cluster.instances, &url, &tokens.access_token, status).await;
        println!("{what}: {took:?} until all three instances knew");
        assert!(took < SECOND, "{what} took {took:?}");
        match what {
            "disable" => drop(alice.ask("PATCH", &of).with(json!({"enabled": true})).done(200).await),
            "unassign" => alice.assign(&added, "bob").await,
            "member" => {
                alice.ask("PUT", &member).with(json!({"role": "member"})).done(200).await;
                alice.assign(&added, "bob").await;
            }
            _ => {}
        }
        // Known everywhere again before the next one begins.
        let now = alice.get(&of).await;
        all(&cluster.instances, address(&now), "nobody's", 401).await;
    }
    let now = alice.get(&of).await;
    let url = address(&now).to_owned();
    let tokens = bob.let_in(&client, &url).await;
    all(&cluster.instances, &url, &tokens.access_token, 200).await;
    let config = cluster.instances[0].config_file();
    let blocked = run(&["users", "block", "bob", "--config", config.to_str().unwrap()], &[]).await;
    assert_eq!(blocked.code, Some(0), "{}", blocked.stderr);
    let took = all(&cluster.instances, &url, &tokens.access_token, 401).await;
    println!("block: {took:?} until all three instances knew");
    assert!(took < SECOND, "the block took {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_not_hear_of_a_change_catches_up() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let (cluster, relays) = three(&redis).await;
    let Story { alice, added, tokens, .. } = begin(&cluster, &upstream).await;
    let (url, token) = (address(&added).to_owned(), tokens.access_token.as_str());
    all(&cluster.instances, &url, token, 200).await;
    relays[2].set(Weather::Blackhole);
    alice.unassign(&added, "bob").await;
    all(&cluster.instances[..2], &url, token, 401).await;
    relays[2].set(Weather::Fair);
    let took = all(&cluster.instances[2..], &url, token, 401).await;
    assert!(took < 2 * SECOND, "{took:?}");
    // And so does whoever starts.
    let mut cluster = cluster;
    cluster.instances[1].restart().await;
    assert_eq!(ping(&cluster.instances[1], &url, token).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_asks_the_store_nothing() {
    const CALLS: u64 = 500;
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let shared = Shared::new(store_at(address_of(&redis)), Vec::new()).with("managed", managed());
    let cluster = Cluster::of(1, shared).await;
    let gateway = &cluster.instances[0];
    let mut alice = Person::sign_in(gateway, "alice").await;
    let client = Client::register(gateway).await;
    let added = alice.add(None, &upstream, json!({})).await;
    let tokens = alice.let_in(&client, address(&added)).await;
    let processed = || {
        let stats = redis.cli(&["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    assert_eq!(ping(gateway, address(&added), &tokens.access_token).await.status, 200);
    // What the program does by itself, its sweeps above all, comes at any time; calls that asked would ask in every round.
    eventually(PATIENCE, async || {
        let before = processed();
        for _ in 0..CALLS {
            assert_eq!(ping(gateway, address(&added), &tokens.access_token).await.status, 200);
        }
        let asked = processed() - before;
        println!("{asked} commands for {CALLS} calls");
        asked < CALLS
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_end_when_they_have_been_kept_for_as_long_as_is_written() {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    for (retention, lasts) in [("1d", DAY), ("30d", 30 * DAY)] {
        let redis = Redis::start(&[]);
        let mut settings = managed();
        settings["event_retention"] = json!(retention);
        let shared = Shared::new(store_at(address_of(&redis)), Vec::new()).with("managed", settings);
        let cluster = Cluster::of(1, shared).await;
        Person::sign_in(&cluster.instances[0], "alice").await.organization("Acme", &[]).await;
        let events = redis.cli(&["--scan", "--pattern", "*:event:*"]);
        assert!(!events.is_empty(), "{}", redis.cli(&["--scan"]));
        for event in events.lines() {
            let left: u64 = redis.cli(&["PTTL", event]).parse().unwrap();
            assert!(left <= lasts && left > lasts - DAY / 24, "{event}: {left} ms of {lasts}");
        }
    }
}
