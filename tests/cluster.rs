//! Several instances on one Redis are one Postern, in fair weather and in foul: real servers that are killed and
//! stopped, wires that break, authorization servers of every behaviour. After each run the logs of all instances are held
//! against the rules of the refresh protocol.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::json;
use support::checker::{Faults, assert_kept};
use support::client::Tokens;
use support::cluster::Cluster;
use support::mcp::McpAnswer;
use support::redis::Redis;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);

fn generation(answer: &McpAnswer) -> u64 {
    answer.result()["structuredContent"]["generation"].as_u64().unwrap_or_else(|| panic!("{}", answer.body))
}

impl Cluster {
    async fn whoami(&self, instance: usize, tokens: &Tokens) -> McpAnswer {
        self.call(instance, tokens).tool("whoami", json!({})).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_instance_gave_works_at_once_on_all() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    for instance in 0..3 {
        assert_eq!(generation(&cluster.whoami(instance, &tokens).await), 1);
    }
    // The client refreshes elsewhere, and calls a third.
    let next = cluster.client_at(1, &client).refresh(&tokens.refresh_token).await.tokens();
    assert_eq!(cluster.whoami(2, &next).await.status, 200);
    // Alice is connected; Bob is not Alice, wherever he goes.
    let (_, bob) = cluster.sign_in_as("bob", 2).await;
    assert_eq!(cluster.whoami(0, &bob).await.status, 200);
    assert_eq!(upstream.authorization.token_requests("authorization_code").len(), 2);
    assert_eq!(upstream.authorization.ledger(|ledger| ledger.clients.len()), 1, "one registration for all");
    for instance in &cluster.instances {
        instance.output.assert_no_secret();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_r01_callers_of_three_instances_at_the_end_of_a_token_cause_one_refresh() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    upstream.set_authorization(|script| script.access_token_lifetime = 3 * SECOND);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let begun = Instant::now();
    // No call comes while it could be renewed ahead: all of them find it ended.
    tokio::time::sleep_until((begun + 3 * SECOND).into()).await;
    let calls: Vec<_> = (0..300)
        .map(|number| {
            let call = cluster.call(number % 3, &tokens);
            tokio::spawn(async move { call.tool("whoami", json!({})).await })
        })
        .collect();
    let mut seen = HashSet::new();
    for call in calls {
        seen.insert(generation(&call.await.unwrap()));
    }
    assert_eq!(seen, HashSet::from([2]));
    assert_eq!(upstream.authorization.refreshes(), 1);
    assert_kept(&cluster.logs(), &upstream.authorization, Faults::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_redemptions_over_three_instances_one_succeeds() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    let gateway = &cluster.instances[0];
    let client = support::client::Client::register(gateway).await;
    let request = client.authorization("demo");
    let mut browser = support::browser::Browser::new().through(gateway);
    let code = browser.authorize(&client.redirect_uri, &request.url()).await.code();
    let redemptions: Vec<_> = (0..50)
        .map(|number| {
            let client = cluster.client_at(number % 3, &client);
            let (code, request) = (code.clone(), request.clone());
            tokio::spawn(async move { client.redeem(&code, &request).await })
        })
        .collect();
    let mut answers = Vec::new();
    for redemption in redemptions {
        answers.push(redemption.await.unwrap());
    }
    assert_eq!(answers.iter().filter(|answer| answer.status() == 200).count(), 1);
    let refused = answers.iter().filter(|answer| answer.status() != 200);
    assert!(refused.clone().all(|answer| answer.error().as_deref() == Some("invalid_grant")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_shown_at_all_instances_at_once_gets_one_answer() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    let refreshes: Vec<_> = (0..30)
        .map(|number| {
            let (client, token) = (cluster.client_at(number % 3, &client), tokens.refresh_token.clone());
            tokio::spawn(async move { client.refresh(&token).await.tokens() })
        })
        .collect();
    let mut next = HashSet::new();
    for refresh in refreshes {
        next.insert(refresh.await.unwrap().refresh_token);
    }
    assert_eq!(next.len(), 1, "the very same answer for all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_known_everywhere_within_a_second() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    for round in 0..3 {
        let (client, tokens) = cluster.sign_in(round).await;
        for instance in 0..3 {
            assert_eq!(cluster.whoami(instance, &tokens).await.status, 200);
        }
        cluster.client_at((round + 1) % 3, &client).revoke(&tokens.refresh_token).await;
        let revoked = Instant::now();
        for instance in 0..3 {
            eventually(SECOND, || async { cluster.whoami(instance, &tokens).await.status == 401 }).await;
        }
        assert!(revoked.elapsed() < SECOND, "{:?}", revoked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_token_is_refused_for_all_and_renewed_once() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    for instance in 0..3 {
        assert_eq!(generation(&cluster.whoami(instance, &tokens).await), 1);
    }
    upstream.refuse_current_tokens();
    let calls: Vec<_> = (0..60)
        .map(|number| {
            let call = cluster.call(number % 3, &tokens);
            tokio::spawn(async move { call.tool("whoami", json!({})).await })
        })
        .collect();
    for call in calls {
        assert_eq!(generation(&call.await.unwrap()), 2);
    }
    assert_eq!(upstream.authorization.refreshes(), 1);
    assert_kept(&cluster.logs(), &upstream.authorization, Faults::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_without_the_store_valid_tokens_flow_and_nothing_is_redeemed() {
    let (redis, upstream) = (Redis::start(&["--appendonly", "yes"]), Upstream::start().await);
    upstream.set_authorization(|script| script.access_token_lifetime = 6 * SECOND);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let begun = Instant::now();
    for instance in 0..2 {
        assert_eq!(generation(&cluster.whoami(instance, &tokens).await), 1);
    }
    redis.kill();
    for _ in 0..5 {
        for instance in 0..2 {
            assert_eq!(generation(&cluster.whoami(instance, &tokens).await), 1);
        }
    }
    assert!(begun.elapsed() < 4 * SECOND, "still valid");
    // Who is not in memory, and what has ended, is asked to come back, not to sign in again.
    let unknown = cluster.whoami(2, &tokens).await;
    assert_eq!((unknown.status, unknown.header("retry-after").is_some()), (503, true), "{}", unknown.body);
    tokio::time::sleep_until((begun + 6 * SECOND).into()).await;
    for instance in 0..3 {
        let answer = cluster.whoami(instance, &tokens).await;
        assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.body);
    }
    assert_eq!(upstream.authorization.token_requests("refresh_token").len(), 0, "nothing was redeemed");
    redis.again();
    let back = Instant::now();
    for instance in 0..3 {
        eventually(PATIENCE, || async { cluster.whoami(instance, &tokens).await.status == 200 }).await;
    }
    assert!(back.elapsed() < 3 * SECOND, "{:?}", back.elapsed());
    assert_eq!(upstream.authorization.refreshes(), 1);
    assert_kept(&cluster.logs(), &upstream.authorization, Faults::default());
}
