//! The commands that work on what is kept, beside running instances and on what they left: trying a store, moving one
//! into another, changing keys, ending connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::gate::Gate;
use support::gateway::{Gateway, Route};
use support::process::{Finished, run};
use support::redis::Redis;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// A command with the configuration of this gateway.
async fn on(gateway: &Gateway, command: &[&str]) -> Finished {
    let file = gateway.config_file();
    run(&[command, &["--config", file.to_str().unwrap()]].concat(), &[]).await
}

async fn whoami(gateway: &Gateway, tokens: &Tokens) -> u16 {
    gateway.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validate_online_tries_the_store_and_says_what_is_wrong() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::oauth("demo", &upstream)]);
    let gateway = shared.instance(0, None).prepare();
    let fine = on(&gateway, &["validate", "--online"]).await;
    assert_eq!((fine.code, fine.stderr.as_str()), (Some(0), ""));
    assert!(fine.stdout.ends_with("store is fine: redis, 0 record(s), new"), "{}", fine.stdout);
    assert_eq!(
        on(&gateway, &["validate"]).await.stdout.lines().count(),
        1,
        "nothing is asked without --online"
    );

    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let refused = on(&gateway, &["validate", "--online"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("maxmemory-policy is allkeys-lru, which throws grants away"),
        "{}",
        refused.stderr
    );
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = on(&gateway, &["validate", "--online"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("store unavailable: "), "{}", refused.stderr);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);

    // Another sealing key than the store was written with.
    let instance = shared.instance(1, None).start().await;
    let other = json!([shared.make_key("k2", 2)]);
    instance.reconfigure("sealing_keys", other);
    let refused = on(&instance, &["validate", "--online"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("the sealing key is another one than the store was written with"),
        "{}",
        refused.stderr
    );

    redis.kill();
    let refused = on(&gateway, &["validate", "--online"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("store unavailable: "), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_store_moves_to_redis_and_back_and_nobody_signs_in_again() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::oauth("demo", &upstream)]);
    let mut embedded = shared.instance(0, Some(json!({"kind": "embedded"}))).start().await;
    let client = Client::register(&embedded).await;
    let mut browser = Browser::new().through(&embedded);
    let tokens = client.sign_in(&mut browser, "demo").await;
    let gone = client.sign_in(&mut browser, "demo").await;
    client.revoke(&gone.refresh_token).await;

    let mut on_redis = shared.instance(1, None).prepare();
    let to = on_redis.config_file();
    let moved = on(&embedded, &["store", "migrate", "--to", to.to_str().unwrap()]).await;
    assert_eq!(moved.code, Some(0), "{}{}", moved.stdout, moved.stderr);
    assert!(moved.stdout.contains("grant\t2 in the source, 2 of them in the target"), "{}", moved.stdout);
    assert!(
        moved.stdout.contains("connection\t1 in the source, 1 of them in the target"),
        "{}",
        moved.stdout
    );
    // What came meanwhile comes with the next run.
    let late = client.sign_in(&mut browser, "demo").await;
    embedded.stop().await;
    let rest = on(&embedded, &["store", "migrate", "--to", to.to_str().unwrap()]).await;
    assert!(rest.stdout.contains("grant\t3 in the source, 3 of them in the target"), "{}", rest.stdout);
    let again = on(&embedded, &["store", "migrate", "--to", to.to_str().unwrap()]).await;
    assert!(again.stdout.starts_with("0 record(s) copied\n"), "{}", again.stdout);

    on_redis.spawn();
    on_redis.ready().await;
    assert_eq!(whoami(&on_redis, &tokens).await, 200);
    assert_eq!(whoami(&on_redis, &late).await, 200);
    assert_eq!(whoami(&on_redis, &gone).await, 401, "revoked stays revoked");
    let next = client.through(&on_redis).refresh(&tokens.refresh_token).await.tokens();
    assert_eq!(upstream.authorization.token_requests("authorization_code").len(), 1);

    // Back, while the source is in use.
    let mut back = shared.instance(2, Some(json!({"kind": "embedded"}))).prepare();
    let to = back.config_file();
    let moved = on(&on_redis, &["store", "migrate", "--to", to.to_str().unwrap()]).await;
    assert_eq!(moved.code, Some(0), "{}{}", moved.stdout, moved.stderr);
    back.spawn();
    back.ready().await;
    assert_eq!(whoami(&back, &next).await, 200);
    assert_eq!(whoami(&back, &gone).await, 401);
    let busy = on(&back, &["connections", "list"]).await;
    assert!(busy.code == Some(1) && busy.stderr.contains("in use by a running Postern"), "{}", busy.stderr);
    let fine = on(&back, &["validate", "--online"]).await;
    assert!(fine.stdout.ends_with("in use by a running Postern"), "{}", fine.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_rs_06_a_disconnection_is_known_everywhere_within_a_second() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let (_, bob) = cluster.sign_in_as("bob", 1).await;
    for instance in &cluster.instances {
        assert_eq!(whoami(instance, &tokens).await, 200);
    }
    let first = &cluster.instances[0];
    let listed = on(first, &["connections", "list", "--user", "alice"]).await;
    assert_eq!(listed.stdout, format!("alice\tdemo\tconnected\t{}", upstream.authorization.issuer()));
    assert_eq!(on(first, &["connections", "list"]).await.stdout.lines().count(), 2);

    let arguments = ["connections", "disconnect", "--user", "alice", "--route", "demo"];
    let ended = on(first, &arguments).await;
    let told = Instant::now();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "alice is disconnected from demo"));
    for instance in &cluster.instances {
        eventually(SECOND, || async { whoami(instance, &tokens).await == 401 }).await;
        assert_eq!(whoami(instance, &bob).await, 200);
    }
    assert!(told.elapsed() < SECOND, "{:?}", told.elapsed());
    assert_eq!(upstream.authorization.requests.count("/revoke"), 1, "ended at the authorization server too");
    assert_eq!(on(first, &["connections", "list"]).await.stdout.lines().count(), 1);
    let none = on(first, &arguments).await;
    assert!(none.stdout.starts_with("alice was not connected to demo"), "{}", none.stdout);
    // She may come back.
    let (_, again) = cluster.sign_in(2).await;
    assert_eq!(whoami(&cluster.instances[1], &again).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t68_a_disconnection_during_a_refresh_is_final() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(2, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let gate = Gate::shut();
    upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
    upstream.refuse_current_tokens();
    let call = cluster.call(0, &tokens);
    let call = tokio::spawn(async move { call.tool("whoami", json!({})).await.status });
    gate.wait_for(1, PATIENCE).await;
    // The authorization server has made the next tokens and not answered yet.
    let ended =
        on(&cluster.instances[1], &["connections", "disconnect", "--user", "alice", "--route", "demo"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    gate.open();
    assert_eq!(call.await.unwrap(), 401);
    for instance in &cluster.instances {
        assert_eq!(whoami(instance, &tokens).await, 401);
    }
    let dead = upstream.authorization.ledger(|ledger| ledger.families.iter().all(|family| family.dead));
    assert!(dead, "the late tokens were revoked where they came from");
    cluster.instances[0].output.shows("refresh.tombstone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t32_sealing_keys_change_without_a_restart_and_nothing_is_left_under_the_old_one() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(2, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    let (k1, k2) = (cluster.shared.make_key("k1", 1), cluster.shared.make_key("k2", 2));
    let list = async || on(&cluster.instances[0], &["keys", "list"]).await.stdout;
    let before = list().await;
    assert!(before.starts_with("k1\tseals\t") && before.ends_with("access tokens\t1 key(s)"), "{before}");

    // First everywhere as one that opens, then as the one that seals.
    let give = |keys: Value| {
        for instance in &cluster.instances {
            instance.reconfigure("sealing_keys", keys.clone());
            instance.hang_up();
        }
    };
    for (keys, seals) in [(json!([k1, k2]), "k1"), (json!([k2, k1]), "k2")] {
        give(keys);
        for instance in &cluster.instances {
            instance.output.shows(&format!("\"seals\":\"{seals}\"")).await;
        }
    }
    for instance in &cluster.instances {
        assert_eq!(whoami(instance, &tokens).await, 200);
    }
    let next = cluster.client_at(1, &client).refresh(&tokens.refresh_token).await.tokens();
    let during = list().await;
    let records = |text: &str, id: &str| -> usize {
        let line = text.lines().find(|line| line.starts_with(id)).unwrap();
        line.split('\t').nth(2).unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    assert!(records(&during, "k2") > 0 && records(&during, "k1") > 0, "lazily: {during}");

    let rotated = on(&cluster.instances[0], &["keys", "rotate"]).await;
    assert_eq!(rotated.code, Some(0), "{}", rotated.stderr);
    assert!(rotated.stdout.ends_with(" moved under k2, 0 left"), "{}", rotated.stdout);
    assert_eq!(records(&list().await, "k1"), 0);
    give(json!([k2]));
    for instance in &cluster.instances {
        instance.output.shows("\"seals\":\"k2\",\"opens\":0").await;
        assert_eq!(whoami(instance, &next).await, 200);
    }
    assert_eq!(
        upstream.authorization.token_requests("authorization_code").len(),
        1,
        "nobody signed in again"
    );

    // A configuration that is wrong changes nothing.
    cluster.instances[0].reconfigure("sealing_keys", json!([{"id": "k9", "file": "/nowhere"}]));
    cluster.instances[0].hang_up();
    cluster.instances[0].output.shows("nothing of it is used").await;
    assert_eq!(whoami(&cluster.instances[0], &next).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t32_a_new_key_for_access_tokens_reaches_every_instance_before_it_is_used() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    let rotated = on(&cluster.instances[0], &["keys", "rotate", "--access-tokens"]).await;
    assert_eq!(rotated.code, Some(0), "{}", rotated.stderr);
    let begun = Instant::now();
    let mut refresh_token = tokens.refresh_token.clone();
    // Whichever instance gives a token, every other takes it, at any time.
    while begun.elapsed() < 7 * SECOND {
        for instance in 0..3 {
            let next = cluster.client_at(instance, &client).refresh(&refresh_token).await.tokens();
            for other in &cluster.instances {
                assert_eq!(whoami(other, &next).await, 200);
                assert_eq!(whoami(other, &tokens).await, 200);
            }
            refresh_token = next.refresh_token;
        }
    }
    let listed = on(&cluster.instances[0], &["keys", "list"]).await;
    assert!(listed.stdout.ends_with("access tokens\t2 key(s)"), "{}", listed.stdout);
}

#[tokio::test]
async fn however_often_keys_are_replaced_a_token_is_good_until_it_ends() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let cluster = Cluster::start(1, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    for _ in 0..6 {
        let rotated = on(&cluster.instances[0], &["keys", "rotate", "--access-tokens"]).await;
        assert_eq!(rotated.code, Some(0), "{}", rotated.stderr);
    }
    let listed = on(&cluster.instances[0], &["keys", "list"]).await;
    assert!(listed.stdout.ends_with("access tokens\t7 key(s)"), "{}", listed.stdout);
    // It has heard of them once the newest seals.
    let begun = Instant::now();
    while begun.elapsed() < 7 * SECOND {
        assert_eq!(whoami(&cluster.instances[0], &tokens).await, 200);
        tokio::time::sleep(SECOND / 10).await;
    }
}

#[tokio::test]
async fn a_command_on_a_store_in_use_says_what_to_do() {
    let upstream = Upstream::open().await;
    let shared = Shared::new(json!({"kind": "embedded"}), vec![Route::open("demo", &upstream)]);
    let mut gateway = shared.instance(0, None).start().await;
    for command in [&["users", "block", "alice"][..], &["service-accounts", "list"], &["keys", "list"]] {
        let refused = on(&gateway, command).await;
        assert_eq!(refused.code, Some(1));
        assert!(refused.stderr.contains("stop it for this command"), "{}", refused.stderr);
    }
    gateway.stop().await;
    assert_eq!(on(&gateway, &["users", "list"]).await.stdout, "alice\tactive\nbob\tactive");
}
