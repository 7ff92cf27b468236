//! What only a real server can show. The promises of the trait are in [`crate::store::suite`]. Each test that kills,
//! stops or reconfigures a server starts one of its own; the suite shares one, under prefixes of their own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use std::sync::{Mutex, OnceLock, Weak};
use std::time::Instant;

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use self::server::{Cluster, Redis as Server, Watched};
use super::*;
use crate::config::{Address, ClientCertificate, Topology};
use crate::seal::{Sealer, SealingKey};
use crate::store::journal::Journal;
use crate::store::record::{RecordError, Records, Tokens, Typed};
use crate::store::suite::{Bed, clock, store_suite};
use crate::store::{Acquired, Put, Store};

#[path = "../../../tests/support/redis.rs"]
mod server;

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

impl Server {
    fn config(&self, prefix: &str) -> config::Redis {
        at(&[self.port], prefix)
    }

    fn open(&self, prefix: &str) -> Result<Redis, OpenError> {
        Redis::open(&self.config(prefix), Clock::system())
    }
}

/// One server without password and TLS.
fn at(ports: &[u16], prefix: &str) -> config::Redis {
    config::Redis {
        topology: Topology::Standalone,
        addresses: ports.iter().map(|port| Address::Tcp("127.0.0.1".into(), *port)).collect(),
        tls: false,
        database: 0,
        prefix: prefix.to_owned(),
        username: None,
        password: None,
        sentinel_username: None,
        sentinel_password: None,
        authorities: None,
        client_certificate: None,
        replicas: 0,
    }
}

/// The server that the suite shares, for as long as a test uses it.
fn shared() -> Arc<Server> {
    static SHARED: OnceLock<Mutex<Weak<Server>>> = OnceLock::new();
    let mut shared = SHARED.get_or_init(Mutex::default).lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Server::start(&[]));
        *shared = Arc::downgrade(&server);
        server
    })
}

fn bed() -> Bed {
    let server = shared();
    let clock = clock();
    let prefix = format!("{}:", crate::seal::name().unwrap());
    let store = Redis::open(&server.config(&prefix), clock.clone()).unwrap();
    Bed { store: Arc::new(store), clock, _keep: Box::new(server) }
}

store_suite!(bed);

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

async fn put(store: &Redis, key: &str) -> Result<Put, StoreError> {
    store.put(Kind::Grant, key, 0, b"value".to_vec(), HOUR).await
}

/// The next changes, however many of them say that something was missed.
async fn heard(changes: &mut broadcast::Receiver<Change>, wanted: &Change) -> Duration {
    let begun = Instant::now();
    let hear = async { while changes.recv().await.unwrap() != *wanted {} };
    tokio::time::timeout(Duration::from_secs(10), hear).await.expect("heard of");
    begun.elapsed()
}

fn of(key: &str) -> Change {
    Change::Of { kind: Kind::Grant, key: key.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_instance_writes_all_others_read_and_hear_of() {
    let server = shared();
    let prefix = format!("{}:", crate::seal::name().unwrap());
    let [one, other, third] = [(); 3].map(|()| server.open(&prefix).unwrap());
    let mut changes = [one.subscribe(), other.subscribe(), third.subscribe()];
    for round in 0..20 {
        let key = format!("g{round}");
        assert_eq!(put(&one, &key).await.unwrap(), Put::Stored);
        assert!(other.get(Kind::Grant, &key).await.unwrap().is_some());
        for changes in &mut changes {
            let took = heard(changes, &of(&key)).await;
            assert!(took < Duration::from_secs(1), "{took:?}");
        }
    }
    third.tombstone(Kind::Grant, "g3", HOUR).await.unwrap();
    assert!(one.get(Kind::Grant, "g3").await.unwrap().is_none());
    assert_eq!(other.tombstones(Kind::Grant).await.unwrap(), ["g3"]);
    // Other prefixes are other stores.
    let stranger = server.open("stranger:").unwrap();
    assert!(stranger.get(Kind::Grant, "g1").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_instances_take_once_and_acquire_once() {
    let server = shared();
    let prefix = format!("{}:", crate::seal::name().unwrap());
    let stores: Vec<_> = (0..3).map(|_| Arc::new(server.open(&prefix).unwrap())).collect();
    put(&stores[0], "code").await.unwrap();
    stores[0].connect("c", "inc", b"sealed".to_vec(), HOUR).await.unwrap();
    let takes = (0..51).map(|n| {
        let store = Arc::clone(&stores[n % 3]);
        tokio::spawn(async move {
            let fresh =
                matches!(store.take(Kind::Grant, "code").await.unwrap(), super::super::Taken::Fresh(_));
            let owner = store.acquire("c", &format!("attempt{n}"), 1, HOUR).await.unwrap();
            (fresh, matches!(owner, Acquired::Owner { .. }))
        })
    });
    let (mut fresh, mut owners) = (0, 0);
    for take in takes.collect::<Vec<_>>() {
        let (taken, owner) = take.await.unwrap();
        fresh += u32::from(taken);
        owners += u32::from(owner);
    }
    assert_eq!((fresh, owners), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_gets_lost_costs_half_a_second() {
    let server = Server::start(&[]);
    let (one, other) = (server.open("p:").unwrap(), server.open("p:").unwrap());
    let mut changes = other.subscribe();
    put(&one, "first").await.unwrap();
    heard(&mut changes, &of("first")).await;
    // Nobody is told anything any more over pub/sub.
    assert_eq!(server.cli(&["ACL", "SETUSER", "default", "resetchannels"]), "OK");
    for key in ["second", "third"] {
        put(&one, key).await.unwrap();
        let took = heard(&mut changes, &of(key)).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_reads_on_or_learns_that_something_was_missed() {
    let server = Server::start(&[]);
    let (one, other) = (server.open("p:").unwrap(), server.open("p:").unwrap());
    let mut changes = other.subscribe();
    put(&one, "before").await.unwrap();
    heard(&mut changes, &of("before")).await;
    // A server that comes back empty has forgotten what was heard: everything is to be looked at again.
    server.kill();
    server.again();
    eventually("back", async || put(&one, "after").await.is_ok()).await;
    heard(&mut changes, &Change::Missed).await;
    eventually("gone", async || matches!(other.get(Kind::Grant, "before").await, Ok(None))).await;
    put(&one, "later").await.unwrap();
    heard(&mut changes, &of("later")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_went_back_and_grew_again_is_told_from_one_that_only_grew() {
    let server = Server::start(&[]);
    let (one, other) = (server.open("p:").unwrap(), server.open("p:").unwrap());
    let mut changes = other.subscribe();
    // Keys of one shard, so that they are in one log.
    let log = Names::new("p:").of(Kind::Grant, "k0").log;
    let numbers = 0..2000;
    let keys: Vec<String> = numbers
        .map(|number| format!("k{number}"))
        .filter(|key| Names::new("p:").of(Kind::Grant, key).log == log)
        .take(9)
        .collect();
    for (round, later) in [1, 2, 3].into_iter().enumerate() {
        let keys = &keys[3 * round..];
        put(&one, &keys[0]).await.unwrap();
        heard(&mut changes, &of(&keys[0])).await;
        server.cli(&["COPY", &log, "kept", "REPLACE"]);
        for key in &keys[1..3] {
            put(&one, key).await.unwrap();
            heard(&mut changes, &of(key)).await;
        }
        // In one step, as a failover is: two entries are lost and as many, fewer or more come after.
        let others =
            (0..later).map(|number| format!("redis.call('LPUSH', KEYS[1], '{} x session y')", 2 + number));
        let script = format!(
            "redis.call('COPY', KEYS[2], KEYS[1], 'REPLACE') {} return 1",
            others.collect::<Vec<_>>().join(" ")
        );
        assert_eq!(server.cli(&["EVAL", &script, "2", &log, "kept"]), "1");
        heard(&mut changes, &Change::Missed).await;
        server.cli(&["DEL", &log]);
        heard(&mut changes, &Change::Missed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_killed_server_is_an_error_and_back_within_two_seconds() {
    let server = Server::start(&["--appendonly", "yes"]);
    let store = server.open("p:").unwrap();
    put(&store, "a").await.unwrap();
    server.kill();
    let begun = Instant::now();
    let failed = store.get(Kind::Grant, "a").await;
    assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
    assert!(store.ready().await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(2), "nobody waits for long");
    server.again();
    let took = eventually("back", async || store.get(Kind::Grant, "a").await.is_ok()).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(store.get(Kind::Grant, "a").await.unwrap().is_some());
    // Over connections of their own, which are back a moment later; and its scripts are known again.
    eventually("written", async || put(&store, "b").await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_a_stopped_server_is_an_unknown_answer() {
    let server = Server::start(&[]);
    let store = server.open("p:").unwrap();
    put(&store, "a").await.unwrap();
    server.signal("STOP");
    let begun = Instant::now();
    let failed = put(&store, "b").await;
    assert!(matches!(&failed, Err(StoreError::Unavailable(why)) if !why.is_empty()), "{failed:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    server.signal("CONT");
    let took = eventually("back", async || store.ready().await.is_ok()).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(store.get(Kind::Grant, "a").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_a_server_that_cannot_write_is_an_error_and_reads_go_on() {
    let server = Server::start(&[]);
    let store = server.open("p:").unwrap();
    put(&store, "a").await.unwrap();
    for (setting, good, bad) in [("maxmemory", "0", "1"), ("min-replicas-to-write", "0", "1")] {
        assert_eq!(server.cli(&["CONFIG", "SET", setting, bad]), "OK");
        assert!(put(&store, setting).await.is_err(), "{setting}");
        assert!(store.ready().await.is_err(), "{setting}");
        assert!(store.get(Kind::Grant, "a").await.unwrap().is_some(), "{setting}");
        assert_eq!(server.cli(&["CONFIG", "SET", setting, good]), "OK");
        assert_eq!(put(&store, setting).await.unwrap(), Put::Stored, "{setting}");
    }
    // A primary that has become a replica is left, and found again once it is a primary.
    assert_eq!(server.cli(&["REPLICAOF", "127.0.0.1", "1"]), "OK");
    assert!(put(&store, "b").await.is_err());
    assert_eq!(server.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    eventually("a primary again", async || put(&store, "b").await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_a_server_that_comes_later_is_found() {
    let server = Server::start(&[]);
    server.kill();
    let store = server.open("p:").unwrap();
    let mut changes = store.subscribe();
    assert!(matches!(store.get(Kind::Grant, "a").await, Err(StoreError::Unavailable(_))));
    server.again();
    let took = eventually("there", async || put(&store, "a").await.is_ok()).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    heard(&mut changes, &Change::Missed).await;
}

#[test]
fn a_server_that_would_lose_records_is_refused() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lru"]);
    let refused = server.open("p:").err().unwrap().to_string();
    assert!(
        refused.starts_with("redis: maxmemory-policy is allkeys-lru, which throws grants away"),
        "{refused}"
    );
    assert_eq!(server.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]), "OK");
    assert!(server.open("p:").is_ok());
}

#[test]
fn user_password_and_rights_are_checked() {
    let server = Server::start(&["--requirepass", "secret"]);
    let refused = server.open("p:").err().unwrap().to_string();
    assert!(refused.contains("refuses the user name or password"), "{refused}");
    let with = |username: Option<&str>, password: &str| {
        let config = config::Redis {
            username: username.map(str::to_owned),
            password: Some(password.into()),
            ..server.config("p:")
        };
        Redis::open(&config, Clock::system()).map_err(|error| error.to_string())
    };
    assert!(with(None, "secret").is_ok());
    assert!(with(None, "wrong").err().unwrap().contains("refuses the user name or password"));
    // The ACL line of the manual is enough, and not more than is needed.
    let manual = include_str!("../../../conf/postern.yaml");
    let line = manual.lines().find_map(|line| line.split_once("ACL SETUSER postern ")).unwrap().1;
    let rules: Vec<&str> =
        line.split(' ').map(|rule| if rule == ">PASSWORD" { ">pw" } else { rule }).collect();
    let acl = [&["-a", "secret", "ACL", "SETUSER", "postern"][..], &rules].concat();
    assert_eq!(server.cli(&acl), "OK");
    let config = config::Redis {
        username: Some("postern".to_owned()),
        password: Some("pw".into()),
        ..server.config("postern:")
    };
    let store = Redis::open(&config, Clock::system()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert_eq!(put(&store, "a").await.unwrap(), Put::Stored);
        assert_eq!(store.scan(Kind::Grant).await.unwrap().len(), 1);
        store.tombstone(Kind::Grant, "a", HOUR).await.unwrap();
        store.ready().await.unwrap();
        store.sweep().await.unwrap();
    });
    let foreign = config::Redis { prefix: "other:".to_owned(), ..config };
    let other = Redis::open(&foreign, Clock::system()).unwrap();
    assert!(runtime.block_on(put(&other, "a")).is_err(), "another prefix");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_replayed_and_flipped_records_are_refused() {
    let server = Server::start(&[]);
    let sealer = Sealer::new(vec![SealingKey::new("k1", [7; 32]).unwrap()]).unwrap();
    let records = Records::new(Arc::new(server.open("p:").unwrap()), Arc::new(sealer));
    let (names, kind) = (Names::new("p:"), Kind::Flow);
    let name = |key: &str| names.of(kind, key).record;
    // Raw bytes are moved inside the server, as whoever can write there would.
    let copy = |from: &str, to: &str| assert_eq!(server.cli(&["COPY", from, to, "REPLACE"]), "1");
    for key in ["alice", "bob"] {
        records.put(key, 0, &Note { text: key.to_owned() }, HOUR).await.unwrap();
    }
    copy(&name("bob"), &name("alice"));
    assert!(matches!(records.get::<Note>("alice").await, Err(RecordError::Unreadable)), "swapped");
    copy(&name("bob"), "kept");
    records.put("bob", 1, &Note { text: "newer".to_owned() }, HOUR).await.unwrap();
    // The old value behind the new version, which is not secret.
    let head = server.cli(&["--no-raw", "GETRANGE", "kept", "0", "12"]);
    assert!(head.starts_with('"'));
    server.cli(&["EVAL", REPLAY, "2", "kept", &name("bob")]);
    assert!(matches!(records.get::<Note>("bob").await, Err(RecordError::Unreadable)), "replayed");
    records.put("carol", 0, &Note { text: "carol".to_owned() }, HOUR).await.unwrap();
    let length: usize = server.cli(&["STRLEN", &name("carol")]).parse().unwrap();
    for position in (0..length).step_by(7) {
        copy(&name("carol"), "whole");
        server.cli(&["EVAL", FLIP, "1", &name("carol"), &position.to_string()]);
        match records.get::<Note>("carol").await {
            Err(_) | Ok(None) => {}
            Ok(Some(found)) => {
                assert_eq!(found.value.text, "carol", "what opens is what was written: {position}")
            }
        }
        copy("whole", &name("carol"));
    }
    assert_eq!(records.get::<Note>("carol").await.unwrap().unwrap().value.text, "carol");
    // Nobody else's record comes of it, and its owner can begin anew.
    records.remove::<Note>("alice").await.unwrap();
    records.put("alice", 0, &Note { text: "again".to_owned() }, HOUR).await.unwrap();
    assert_eq!(records.get::<Note>("alice").await.unwrap().unwrap().value.text, "again");
}

/// Puts the value of the first row behind the version of the second.
const REPLAY: &str = r#"
local old = redis.call('GET', KEYS[1])
local replayed = string.gsub(old, '"version":1', '"version":2', 1)
redis.call('SET', KEYS[2], replayed)
return 1"#;

/// Flips one bit.
const FLIP: &str = r"
local row = redis.call('GET', KEYS[1])
local at = ARGV[1] + 1
local byte = string.char(bit.bxor(string.byte(row, at), 4))
redis.call('SET', KEYS[1], string.sub(row, 1, at - 1) .. byte .. string.sub(row, at + 1))
return 1";

#[derive(Serialize, Deserialize)]
struct Note {
    text: String,
}

impl Typed for Note {
    const KIND: Kind = Kind::Flow;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_f34_records_of_a_newer_version_are_left_alone() {
    let server = Server::start(&[]);
    let store = server.open("p:").unwrap();
    store.connect("c", "inc", b"sealed".to_vec(), HOUR).await.unwrap();
    let name = Names::new("p:").of(Kind::Connection, "c").record;
    let newer = "\u{2}whatever comes later";
    assert_eq!(server.cli(&["SET", &name, newer]), "OK");
    assert!(matches!(store.acquire("c", "a", 1, HOUR).await, Err(StoreError::Newer)));
    assert!(matches!(store.tombstone(Kind::Connection, "c", HOUR).await, Err(StoreError::Newer)));
    assert!(matches!(store.connect("c", "inc", b"sealed".to_vec(), HOUR).await, Err(StoreError::Newer)));
    assert_eq!(server.cli(&["GET", &name]), newer.trim());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_lead_to_whoever_is_in_charge() {
    let watched = Watched::start();
    let ports: Vec<u16> = watched.sentinels.iter().map(|sentinel| sentinel.port).collect();
    let topology = Topology::Sentinel { master: Watched::MASTER.to_owned() };
    let config = config::Redis { topology, replicas: 1, ..at(&ports, "p:") };
    let (store, other) =
        (Redis::open(&config, Clock::system()).unwrap(), Redis::open(&config, Clock::system()).unwrap());
    let mut changes = other.subscribe();
    put(&store, "before").await.unwrap();
    heard(&mut changes, &of("before")).await;
    watched.primary.kill();
    watched.wait_for_failover();
    eventually("the new primary", async || put(&store, "after").await.is_ok()).await;
    // The replica had confirmed it.
    eventually("kept", async || matches!(store.get(Kind::Grant, "before").await, Ok(Some(_)))).await;
    heard(&mut changes, &Change::Missed).await;
    eventually("written", async || put(&store, "later").await.is_ok()).await;
    heard(&mut changes, &of("later")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_one_store_and_outlives_a_primary() {
    let cluster = Cluster::start();
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
    let config = config::Redis { topology: Topology::Cluster, replicas: 1, ..at(&ports[..2], "p:") };
    let (store, other) =
        (Redis::open(&config, Clock::system()).unwrap(), Redis::open(&config, Clock::system()).unwrap());
    let mut changes = other.subscribe();
    let keys: Vec<String> = (0..40).map(|number| format!("g{number}")).collect();
    for key in &keys {
        assert_eq!(put(&store, key).await.unwrap(), Put::Stored);
        heard(&mut changes, &of(key)).await;
    }
    assert_eq!(other.scan(Kind::Grant).await.unwrap().len(), keys.len());
    store.tombstone(Kind::Grant, "g1", HOUR).await.unwrap();
    assert_eq!(other.tombstones(Kind::Grant).await.unwrap(), ["g1"]);
    let spread = cluster.primaries().iter().filter(|node| node.cli(&["DBSIZE"]) != "0").count();
    assert_eq!(spread, 3, "the records spread over all primaries");

    cluster.primaries()[0].kill();
    // A replica had confirmed each of them, and takes over.
    for key in &keys[2..] {
        eventually(key, async || matches!(store.get(Kind::Grant, key).await, Ok(Some(_)))).await;
    }
    eventually("written everywhere", async || {
        for key in &keys[2..] {
            if store.take(Kind::Grant, key).await.is_err() {
                return false;
            }
        }
        true
    })
    .await;
    assert!(store.ready().await.is_ok());
    // A single connection does not do for a cluster, and says so.
    let refused = Redis::open(&at(&ports[5..], "p:"), Clock::system()).err().unwrap().to_string();
    assert!(refused.contains("part of a cluster; write topology: cluster"), "{refused}");
}

#[test]
fn tls_is_spoken_with_the_authority_that_is_configured_and_no_other() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let server = Server::launch(|directory| {
        let (cert, key) = (directory.join("tls.crt"), directory.join("tls.key"));
        std::fs::write(&cert, authority.cert.pem()).unwrap();
        std::fs::write(&key, authority.signing_key.serialize_pem()).unwrap();
        let (cert, key) = (cert.to_str().unwrap().to_owned(), key.to_str().unwrap().to_owned());
        let plain = ["--tls-replication".to_owned(), "no".to_owned()];
        let tls = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &cert];
        let mut arguments: Vec<String> = tls.iter().map(|argument| argument.to_string()).collect();
        arguments.extend(plain);
        // Clients have to show a certificate; the same serves.
        arguments.extend(["--tls-port".to_owned(), "PORT".to_owned()]);
        arguments
    });
    let with = |authorities: &str, own: bool| {
        let client_certificate = own.then(|| ClientCertificate {
            certificate: authority.cert.pem().into_bytes(),
            key: authority.signing_key.serialize_pem().into_bytes().into(),
        });
        let config = config::Redis {
            tls: true,
            authorities: Some(authorities.as_bytes().to_vec()),
            client_certificate,
            ..server.config("p:")
        };
        Redis::open(&config, Clock::system()).unwrap()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert_eq!(put(&with(&authority.cert.pem(), true), "a").await.unwrap(), Put::Stored);
        assert!(put(&with(&authority.cert.pem(), false), "b").await.is_err(), "no client certificate");
        assert!(put(&with(&other.cert.pem(), true), "c").await.is_err(), "another authority");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_confirm_what_must_not_get_lost() {
    let primary = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
    eventually("linked", async || replica.cli(&["INFO", "replication"]).contains("master_link_status:up"))
        .await;
    let store = Redis::open(&config::Redis { replicas: 1, ..primary.config("p:") }, Clock::system()).unwrap();
    for round in 0..20 {
        let key = format!("c{round}");
        store.connect(&key, "inc", b"sealed".to_vec(), HOUR).await.unwrap();
        let name = Names::new("p:").of(Kind::Connection, &key).record;
        assert_eq!(replica.cli(&["EXISTS", &name]), "1");
    }
    let refused = replica.open("p:");
    assert!(refused.is_ok(), "a replica may become a primary");
    assert!(refused.unwrap().get(Kind::Connection, "c1").await.is_err(), "until then it is not used");
}

fn tokens(access: &str) -> Tokens {
    Tokens {
        access_token: access.into(),
        refresh_token: Some(format!("refresh-{access}").into()),
        id_token: None,
        expires_at: None,
        obtained_at: SystemTime::UNIX_EPOCH,
        connected_at: None,
        scopes: Vec::new(),
        requested_scopes: Vec::new(),
        issuer: "https://as.example".to_owned(),
        resource: Some("https://mcp.example".to_owned()),
        token_endpoint: "https://as.example/token".to_owned(),
        revocation_endpoint: None,
        registration: "r".to_owned(),
        user: "alice".to_owned(),
        route: "demo".to_owned(),
        account: None,
        rotates: None,
    }
}

/// What a replica that lags has is put in place of what the primary had acknowledged; the server itself is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_takes_back_is_said_again_from_the_journal() {
    let (server, directory) = (Server::start(&[]), tempfile::tempdir().unwrap());
    let open = || {
        let sealer = Sealer::new(vec![SealingKey::new("k1", [7; 32]).unwrap()]).unwrap();
        let journal = Journal::open(directory.path(), Clock::system()).unwrap();
        Records::new(Arc::new(server.open("p:").unwrap()), Arc::new(sealer)).with_journal(journal)
    };
    let records = open();
    let name = Names::new("p:").of(Kind::Connection, "u").record;
    let keep = |as_name: &str| assert_eq!(server.cli(&["COPY", &name, as_name, "REPLACE"]), "1");
    let roll_back = |to: &str| assert_eq!(server.cli(&["COPY", to, &name, "REPLACE"]), "1");
    let access = async |records: &Records| {
        let found = records.connection("u").await.unwrap();
        found.map(|(connection, tokens)| {
            (connection.generation, tokens.access_token.expose_secret().to_owned())
        })
    };
    let refresh = async |records: &Records, generation: u64, access: &str| {
        let acquired = records.store().acquire("u", access, generation, HOUR).await.unwrap();
        let Acquired::Owner { connection, .. } = acquired else { panic!("{acquired:?}") };
        let attempt = connection.attempt.clone().unwrap();
        assert!(records.store().sent("u", &attempt.id, attempt.fence).await.unwrap());
        records.prepare("u", &connection, &attempt, &tokens(access), HOUR).await.unwrap()
    };

    records.connect("u", &tokens("one"), HOUR).await.unwrap();
    keep("first");
    for (generation, access) in [(1, "two"), (2, "three")] {
        let prepared = refresh(&records, generation, access).await;
        records.commit(&prepared).await.unwrap();
    }
    roll_back("first");
    records.reassert().await.unwrap();
    assert_eq!(access(&records).await, Some((3, "three".to_owned())), "two commits were lost");

    // A crash between the authorization server's answer and the store's.
    refresh(&records, 3, "four").await;
    drop(records);
    let records = open();
    records.reassert().await.unwrap();
    assert_eq!(access(&records).await, Some((4, "four".to_owned())));

    keep("connected");
    records.disconnect("u", HOUR).await.unwrap();
    roll_back("connected");
    assert!(access(&records).await.is_some(), "the failover has undone the disconnection");
    records.reassert().await.unwrap();
    assert_eq!(access(&records).await, None, "and it is final all the same");
    records.connect("u", &tokens("again"), HOUR).await.unwrap();
    records.reassert().await.unwrap();
    assert_eq!(access(&records).await, Some((1, "again".to_owned())), "what came after is left alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_the_machine_does_as_well_and_databases_are_apart() {
    let server = Server::launch(|directory| {
        vec!["--unixsocket".to_owned(), directory.join("redis.sock").to_str().unwrap().to_owned()]
    });
    let socket = server.cli(&["CONFIG", "GET", "unixsocket"]).lines().last().unwrap().to_owned();
    let through = |database: i64| {
        let config = config::Redis {
            addresses: vec![Address::Unix(socket.clone().into())],
            database,
            ..server.config("p:")
        };
        Redis::open(&config, Clock::system()).unwrap()
    };
    let (first, second) = (through(0), through(3));
    assert_eq!(put(&first, "a").await.unwrap(), Put::Stored);
    assert!(server.open("p:").unwrap().get(Kind::Grant, "a").await.unwrap().is_some());
    assert!(second.get(Kind::Grant, "a").await.unwrap().is_none());
}

/// A rate and its moments: the script decides as one instance does by itself.
#[tokio::test]
async fn rates_are_decided_as_by_one_instance() {
    let bed = bed();
    let quota = Quota { interval: 333_333, whole: 5 * 333_333 };
    let (mut until, mut refused) = (0, 0);
    for step in 0_u64..400 {
        bed.clock.advance(Duration::from_millis(step * 7919 % 500));
        let alone = quota.spend(until, crate::store::quota::micros(bed.clock.now()));
        let together = bed.store.spend("alice", quota).await.unwrap();
        assert_eq!(together, alone.err(), "{step}");
        until = alone.unwrap_or(until);
        refused += usize::from(together.is_some());
    }
    assert!((50..350).contains(&refused), "{refused}");
    assert_eq!(bed.store.spend("bob", quota).await.unwrap(), None, "everybody has their own");
    // A clock that went back, as after a failover, makes nobody wait longer than with nothing left.
    for _ in 0..5 {
        bed.store.spend("carol", quota).await.unwrap();
    }
    let before = Clock::manual(bed.clock.now() - HOUR);
    let again = Redis::open(&shared().config("clock:"), before.clone()).unwrap();
    let later = Redis::open(&shared().config("clock:"), bed.clock.clone()).unwrap();
    later.count("carol", quota).await.unwrap();
    assert_eq!(again.count("carol", quota).await.unwrap(), Some(Duration::from_micros(quota.interval)));
}

#[tokio::test]
async fn one_of_many_that_spend_at_once_has_what_is_left() {
    let bed = bed();
    let quota = Quota { interval: 60_000_000, whole: 600_000_000 };
    let spent = (0..50).map(|_| bed.store.spend("alice", quota));
    let spent = futures_util::future::join_all(spent).await;
    assert_eq!(spent.iter().filter(|wait| matches!(wait, Ok(None))).count(), 10);
    assert!(spent.iter().all(Result::is_ok));
}

#[tokio::test]
async fn places_are_held_until_they_are_given_back_or_their_lease_ends() {
    let bed = bed();
    let hold = async |key: &str, id: &str| bed.store.hold(key, id, 2, 30 * SECOND).await.unwrap();
    assert!(hold("alice", "a").await && hold("alice", "b").await);
    assert!(!hold("alice", "c").await);
    assert!(hold("bob", "c").await);
    assert!(hold("alice", "a").await, "who has one keeps it");
    bed.store.let_go("alice", "b").await.unwrap();
    assert!(hold("alice", "c").await);
    // Only one of them is heard of again.
    bed.clock.advance(20 * SECOND);
    assert!(hold("alice", "a").await);
    bed.clock.advance(11 * SECOND);
    assert!(hold("alice", "d").await, "the lease of c has ended");
    assert!(!hold("alice", "e").await, "that of a has not");
}
