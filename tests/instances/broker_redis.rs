//! What was found wanting at peers of Postern, as far as it is about a store for several: one refresh for all, what is kept and
//! how, whose it is, and what its loss costs. Each test has the numbers of its lines in `broker_15.rs` and `broker_35.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use serde_json::json;
use support::PATIENCE;
use support::browser::Browser;
use support::cimd::ClientDocuments;
use support::client::{Client, Tokens, unused_redirect_uri};
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::gate::Gate;
use support::gateway::{Gateway, Route, restrict};
use support::mcp::McpAnswer;
use support::process::run;
use support::redis::Redis;
use support::upstream::Upstream;

async fn call(gateway: &Gateway, tokens: &Tokens) -> McpAnswer {
    gateway.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await
}

/// Which of the upstream's tokens a call arrived with: 1 is the first.
#[track_caller]
fn generation(answer: &McpAnswer) -> u64 {
    answer.result()["structuredContent"]["generation"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk15_09_brk35_16_one_refresh_for_all_instances_is_kept_before_anybody_is_served() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let mut cluster = Cluster::start(2, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    for instance in 0..2 {
        assert_eq!(generation(&call(&cluster.instances[instance], &tokens).await), 1);
    }
    let gate = Gate::shut();
    upstream.set_authorization(|script| script.token_gate = Some(gate.clone()));
    upstream.refuse_current_tokens();
    {
        // Whose call began it goes away.
        let call = cluster.call(0, &tokens);
        tokio::select! {
            _ = call.tool("whoami", json!({})) => panic!("nobody has answered"),
            () = gate.wait_for(1, PATIENCE) => {}
        }
    }
    let calls: Vec<_> = (0..20)
        .map(|number| {
            let call = cluster.call(number % 2, &tokens);
            tokio::spawn(async move { generation(&call.tool("whoami", json!({})).await) })
        })
        .collect();
    gate.open();
    for call in calls {
        assert_eq!(call.await.unwrap(), 2);
    }
    let refreshes = || upstream.authorization.token_requests("refresh_token");
    assert_eq!(refreshes().len(), 1);
    // What was used was kept: the token, and the refresh token that came with it.
    cluster.instances[0].kill9().await;
    assert_eq!((generation(&call(&cluster.instances[1], &tokens).await), refreshes().len()), (2, 1));
    upstream.refuse_current_tokens();
    assert_eq!(generation(&call(&cluster.instances[1], &tokens).await), 3);
    let used: Vec<_> = refreshes().iter().map(|sent| sent.form("refresh_token").unwrap()).collect();
    assert_ne!(used[0], used[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk15_13_brk35_15_what_is_kept_is_sealed_in_its_place_and_keys_follow_each_other() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let mut cluster = Cluster::start(1, &redis, &upstream).await;
    let (_, alice) = cluster.sign_in_as("alice", 0).await;
    let (_, bob) = cluster.sign_in_as("bob", 0).await;
    let connections = || -> Vec<String> {
        redis.cli(&["--scan", "--pattern", "test:*:connection:*"]).lines().map(str::to_owned).collect()
    };
    let secrets = upstream
        .authorization
        .ledger(|ledger| ledger.access.keys().chain(ledger.refresh.keys()).cloned().collect::<Vec<_>>());
    let values = || connections().iter().map(|key| redis.cli(&["GET", key])).collect::<String>();
    assert!(connections().len() == 2 && values().len() > 100, "{:?}", connections());
    assert!(secrets.len() >= 4 && secrets.iter().all(|secret| !values().contains(secret)));
    // A new key, while it runs: all are moved under it, and the old one is not needed any more.
    let gateway = &mut cluster.instances[0];
    let (k1, k2) = (cluster.shared.make_key("k1", 1), cluster.shared.make_key("k2", 2));
    gateway.reconfigure("sealing_keys", json!([k2, k1]));
    gateway.hang_up();
    gateway.output.shows("the configuration is in use").await;
    assert_eq!(call(gateway, &alice).await.status, 200);
    let file = gateway.config_file();
    let moved = run(&["keys", "rotate", "--config", file.to_str().unwrap()], &[]).await;
    assert_eq!(moved.code, Some(0), "{}", moved.stderr);
    gateway.reconfigure("sealing_keys", json!([k2]));
    gateway.restart().await;
    assert_eq!(call(gateway, &alice).await.status, 200);
    // One record in the place of the other is nobody's.
    let keys = connections();
    for (from, to) in [(keys[0].as_str(), "aside"), (&keys[1], &keys[0]), ("aside", &keys[1])] {
        assert_eq!(redis.cli(&["RENAME", from, to]).trim(), "OK");
    }
    gateway.restart().await;
    let sent = upstream.calls_with_token().len();
    for tokens in [&alice, &bob] {
        let answer = call(gateway, tokens).await;
        assert_eq!(answer.status, 401, "not connected: {}", answer.body);
    }
    assert_eq!(upstream.calls_with_token().len(), sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk35_14_tenants_of_one_redis_have_a_prefix_and_a_user_of_their_own() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let manual = include_str!("../../conf/postern.yaml");
    let line = manual.lines().find_map(|line| line.split_once("ACL SETUSER postern ")).unwrap().1;
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "pw").unwrap();
    restrict(password.path());
    let mut tenants = Vec::new();
    for tenant in ["one", "two"] {
        let prefix = format!("{tenant}:");
        let rules = line.replace("PASSWORD", "pw").replace("postern:", &prefix);
        let rules: Vec<&str> = rules.split(' ').collect();
        assert_eq!(redis.cli(&[&["ACL", "SETUSER", tenant][..], &rules].concat()).trim(), "OK");
        let mut store = store_at(address_of(&redis));
        (store["prefix"], store["username"]) = (json!(prefix), json!(tenant));
        store["password"] = json!({"file": password.path()});
        let cluster = Cluster::of(1, Shared::new(store, vec![Route::oauth("demo", &upstream)])).await;
        let (client, tokens) = cluster.sign_in(0).await;
        assert_eq!(call(&cluster.instances[0], &tokens).await.status, 200);
        tenants.push((cluster, client, tokens));
    }
    let keys = redis.cli(&["--scan"]);
    assert!(keys.lines().all(|key| key.starts_with("one:") || key.starts_with("two:")), "{keys}");
    let (one, two) = (&tenants[0], &tenants[1]);
    assert_eq!(call(&one.0.instances[0], &two.2).await.status, 401, "the other's token");
    // What one of them loses is nothing to the other.
    for key in keys.lines().filter(|key| key.starts_with("one:")) {
        redis.cli(&["DEL", key]);
    }
    assert_eq!(two.1.refresh(&two.2.refresh_token).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk35_19_a_store_that_was_lost_costs_a_sign_in_and_clients_go_on_as_who_they_were() {
    let (redis, upstream, documents) =
        (Redis::start(&[]), Upstream::start().await, ClientDocuments::start().await);
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::oauth("demo", &upstream)])
        .with("oauth_server.clients.cimd", json!({"allow_private": true}));
    let mut cluster = Cluster::of(1, shared).await;
    let gateway = &mut cluster.instances[0];
    let (by_document, document) =
        (documents.client(gateway), json!({"redirect_uris": [unused_redirect_uri()]}));
    let registered = Client::register_with(gateway, &document).await.json();
    let mut browser = Browser::new().through(gateway);
    let tokens = by_document.sign_in(&mut browser, "demo").await;
    redis.cli(&["FLUSHALL"]);
    gateway.restart().await;
    let refused = by_document.refresh(&tokens.refresh_token).await;
    assert_eq!(refused.error().as_deref(), Some("invalid_grant"), "{}", refused.0.body);
    let tokens = by_document.sign_in(&mut Browser::new().through(gateway), "demo").await;
    assert_eq!(call(gateway, &tokens).await.status, 200);
    // One that has registered is what it says of itself: it does so once more, and has the name that it had.
    let again = Client::register_with(gateway, &document).await.json();
    assert_eq!((again["client_id"].is_string(), &again["client_id"]), (true, &registered["client_id"]));
}
