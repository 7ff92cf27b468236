//! Several instances on one Redis are one Postern, in fair weather and in foul: real servers that are killed and
//! stopped, wires that break, authorization servers of every behaviour. After each run the logs of all instances are held
//! against the rules of the refresh protocol.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::browser::Browser;
use support::checker::{Faults, assert_kept};
use support::client::Tokens;
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::gate::Gate;
use support::gateway::Route;
use support::mcp::McpAnswer;
use support::process::run;
use support::redis::{Redis, Watched};
use support::relay::Weather;
use support::script::{Reuse, TokenFault};
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

    /// So many calls at once over three instances; which of the upstream's tokens they arrived with.
    async fn storm(&self, count: usize, tokens: &Tokens) -> HashSet<u64> {
        let calls: Vec<_> = (0..count)
            .map(|number| {
                let call = self.call(number % 3, tokens);
                tokio::spawn(async move { generation(&call.tool("whoami", json!({})).await) })
            })
            .collect();
        let mut seen = HashSet::new();
        for call in calls {
            seen.insert(call.await.unwrap());
        }
        seen
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pom_13_what_one_instance_gave_works_at_once_on_all() {
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
    assert_eq!(cluster.storm(300, &tokens).await, HashSet::from([2]));
    assert_eq!(upstream.authorization.refreshes(), 1);
    assert_kept(&cluster.logs(), &upstream.authorization, Faults::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t12_of_fifty_redemptions_over_three_instances_one_succeeds() {
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
async fn sr_t28_a_refresh_token_shown_at_all_instances_at_once_gets_one_answer() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    let refreshes: Vec<_> = (0..100)
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
async fn sr_rs_06_a_revocation_is_known_everywhere_within_a_second() {
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
async fn sr_rs_06_a_block_is_known_everywhere_within_a_second_and_costs_no_connection() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let (cluster, relays) = Cluster::behind_relays(3, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in_as("bob", 0).await;
    let (_, other) = cluster.sign_in(1).await;
    for instance in 0..3 {
        assert_eq!(cluster.whoami(instance, &tokens).await.status, 200);
    }
    // One instance does not hear of it: its connections are cut.
    relays[2].set(Weather::Blackhole);
    let file = cluster.instances[0].config_file();
    let users = async |word: &str| {
        let finished = run(&["users", word, "bob", "--config", file.to_str().unwrap()], &[]).await;
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        finished.stdout
    };
    assert_eq!(users("block").await, "bob is blocked: nothing of theirs works from now on");
    let blocked = Instant::now();
    for instance in 0..2 {
        eventually(SECOND, || async { cluster.whoami(instance, &tokens).await.status == 401 }).await;
    }
    assert!(blocked.elapsed() < SECOND, "{:?}", blocked.elapsed());
    relays[2].set(Weather::Fair);
    eventually(2 * SECOND, || async { cluster.whoami(2, &tokens).await.status == 401 }).await;
    let refused = cluster.client_at(1, &client).refresh(&tokens.refresh_token).await;
    assert_eq!((refused.status(), refused.error().as_deref()), (400, Some("invalid_grant")));
    let mut browser = Browser::of("bob").through(&cluster.instances[1]);
    let page = browser.go(&cluster.instances[1].url("/login")).await.page();
    let page = browser.sign_in(&page).await.page();
    assert!(page.status == 403 && page.text().contains("This account is blocked"), "{}", page.text());
    assert_eq!(cluster.whoami(0, &other).await.status, 200, "nobody else");
    // A restart forgets nothing.
    let mut cluster = cluster;
    cluster.instances[1].restart().await;
    assert_eq!(cluster.whoami(1, &tokens).await.status, 401);
    assert_eq!(users("block").await, "bob was blocked already");
    let list = run(&["users", "list", "--config", file.to_str().unwrap()], &[]).await;
    assert_eq!(list.stdout, "alice\tactive\nbob\tblocked");
    assert_eq!(users("unblock").await, "bob is not blocked any more");
    for instance in 0..3 {
        eventually(SECOND, || async { cluster.whoami(instance, &tokens).await.status == 200 }).await;
    }
    assert_eq!(cluster.client_at(1, &client).refresh(&tokens.refresh_token).await.status(), 200);
    assert_eq!(upstream.authorization.token_requests("authorization_code").len(), 2);
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
    assert_eq!(cluster.storm(60, &tokens).await, HashSet::from([2]));
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

/// A cluster whose instances stop at a place in the middle of a refresh, when told to.
async fn refresh_at(place: &str, cluster: &mut Cluster, instance: usize) {
    let gateway = &mut cluster.instances[instance];
    gateway.set_env("POSTERN_FAILPOINT", Some(place));
    gateway.restart().await;
}

/// What a crash at a place in a refresh may cost, by what the authorization server does about old refresh tokens:
/// nothing, or this one connection.
struct Crash {
    place: &'static str,
    /// For a server that takes a refresh token once, whatever it does about the second time.
    may_lose: bool,
}

const CRASHES: [Crash; 9] = [
    Crash { place: "P1", may_lose: false },
    Crash { place: "P2", may_lose: false },
    Crash { place: "P3", may_lose: false },
    Crash { place: "P4", may_lose: false },
    // P5, the answer is under way: the rig's gate.
    Crash { place: "P5", may_lose: true },
    Crash { place: "P6", may_lose: true },
    Crash { place: "P7", may_lose: false },
    Crash { place: "P8", may_lose: false },
    Crash { place: "P9", may_lose: false },
];

/// Kills an instance at this place of a refresh and says whether the user has to sign in again.
async fn is_lost_after(crash: &Crash, rotates: bool, reuse: Reuse) -> bool {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    upstream.set_authorization(|script| (script.rotates, script.reuse) = (rotates, reuse));
    let store = store_at(address_of(&redis));
    let route = Route::oauth("demo", &upstream);
    let strict = reuse == Reuse::EndsFamily && rotates;
    let route = if strict { route.with("credential.refresh_rotation", json!("strict")) } else { route };
    let mut cluster = Cluster::of(2, Shared::new(store, vec![route])).await;
    let (_, tokens) = cluster.sign_in(1).await;
    assert_eq!(generation(&cluster.whoami(1, &tokens).await), 1);
    let gate = Gate::shut();
    match crash.place {
        "P5" => upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone())),
        // A release ends an attempt that came to nothing.
        "P9" => upstream.set_authorization(|script| {
            script.token_faults.push_back(TokenFault::answer(503, &[("retry-after", "1")], ""));
        }),
        _ => {}
    }
    refresh_at(crash.place, &mut cluster, 0).await;
    // Ahead of its end in earnest; here the upstream has turned it down, and takes it again for the time after.
    upstream.refuse_current_tokens();
    let call = cluster.call(0, &tokens);
    let call = tokio::spawn(async move { call.tool("whoami", json!({})).await.status });
    match crash.place {
        "P5" => gate.wait_for(1, PATIENCE).await,
        _ => cluster.instances[0].output.shows("\"message\":\"stopped\"").await,
    }
    cluster.instances[0].kill9().await;
    gate.open();
    call.abort();
    // The one that was killed comes back at once, and says what it knows.
    refresh_at("", &mut cluster, 0).await;
    eventually(Duration::from_secs(20), || async {
        let status = cluster.whoami(1, &tokens).await.status;
        assert!(matches!(status, 200 | 401 | 503), "{status}");
        status != 503
    })
    .await;
    let lost = cluster.whoami(1, &tokens).await.status == 401;
    assert_kept(&cluster.logs(), &upstream.authorization, Faults { owners: 1, rollbacks: 0 });
    lost
}

/// Every place of a crash at one kind of authorization server, side by side.
async fn crashes(rotates: bool, reuse: Reuse, single_use: bool) {
    let runs: Vec<_> = CRASHES
        .iter()
        .map(|crash| tokio::spawn(async move { (crash, is_lost_after(crash, rotates, reuse).await) }))
        .collect();
    for run in runs {
        let (crash, lost) = run.await.unwrap();
        assert!(!lost || (crash.may_lose && single_use), "lost at {}", crash.place);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_crashes_cost_nothing_where_refresh_tokens_stay_good() {
    crashes(false, Reuse::EndsFamily, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_crashes_cost_nothing_where_the_token_before_is_good_for_a_while() {
    crashes(true, Reuse::SameAnswer, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_crashes_cost_nothing_where_each_replay_gets_a_successor() {
    crashes(true, Reuse::NewSuccessor, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_crashes_cost_only_what_cannot_be_saved_where_old_tokens_are_dead() {
    crashes(true, Reuse::Dead, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_crashes_cost_only_what_cannot_be_saved_where_replays_end_the_family() {
    crashes(true, Reuse::EndsFamily, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_an_instance_that_starts_before_its_store_judges_nobody_until_it_is_there() {
    let (redis, upstream) = (Redis::start(&["--appendonly", "yes"]), Upstream::start().await);
    let mut cluster = Cluster::start(2, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    let (_, revoked) = cluster.sign_in(0).await;
    cluster.client_at(0, &client).revoke(&tokens.refresh_token).await;
    redis.kill();
    let instance = &mut cluster.instances[1];
    instance.restart_unready().await;
    let status = |path: &str| {
        let request = instance.http.get(instance.admin(path));
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!((status("/healthz").await, status("/readyz").await), (200, 503));
    let why = instance.http.get(instance.admin("/readyz")).send().await.unwrap().text().await.unwrap();
    assert_eq!(why, "store does not answer\n");
    // Neither a good token nor a revoked one nor nonsense is judged.
    for token in [&tokens.access_token, &revoked.access_token, &"nonsense".to_owned()] {
        let answer = instance.mcp("demo").bearer(token).tool("whoami", json!({})).await;
        assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.body);
    }
    let refused = client.through(instance).refresh(&revoked.refresh_token).await;
    assert_eq!(refused.status(), 503, "never invalid_grant");
    redis.again();
    let there = Instant::now();
    eventually(PATIENCE, || async { status("/readyz").await == 200 }).await;
    assert!(there.elapsed() < 3 * SECOND, "{:?}", there.elapsed());
    assert_eq!(cluster.whoami(1, &tokens).await.status, 401, "revoked before");
    assert_eq!(cluster.whoami(1, &revoked).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f03_a_store_that_comes_back_empty_costs_one_sign_in_and_no_loop() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(2, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    redis.kill();
    redis.again();
    // The keys of access tokens are back, from either instance; the grant is not.
    eventually(PATIENCE, || async {
        let statuses = [cluster.whoami(0, &tokens).await.status, cluster.whoami(1, &tokens).await.status];
        statuses.iter().all(|status| *status != 503)
    })
    .await;
    let refused = client.refresh(&tokens.refresh_token).await;
    assert!(
        matches!(refused.error().as_deref(), Some("invalid_grant" | "invalid_client")),
        "{:?}",
        refused.error()
    );
    let (_, again) = cluster.sign_in(1).await;
    for instance in 0..2 {
        let instance_answers = || async { cluster.whoami(instance, &again).await.status == 200 };
        eventually(PATIENCE, instance_answers).await;
    }
    assert_eq!(upstream.authorization.token_requests("authorization_code").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f07_an_instance_cut_off_from_the_store_serves_what_it_knows_and_catches_up() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    upstream.set_authorization(|script| script.access_token_lifetime = 8 * SECOND);
    let (cluster, relays) = Cluster::behind_relays(3, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    let (_, other) = cluster.sign_in_as("bob", 1).await;
    for instance in 0..3 {
        assert_eq!(cluster.whoami(instance, &tokens).await.status, 200);
        assert_eq!(cluster.whoami(instance, &other).await.status, 200);
    }
    relays[1].set(Weather::Blackhole);
    cluster.client_at(0, &client).revoke(&tokens.refresh_token).await;
    eventually(SECOND, || async { cluster.whoami(2, &tokens).await.status == 401 }).await;
    // Valid tokens flow at the instance that is cut off; the others renew, it does not.
    assert_eq!(generation(&cluster.whoami(1, &other).await), 1);
    eventually(PATIENCE, || async { generation(&cluster.whoami(0, &other).await) > 1 }).await;
    eventually(PATIENCE, || async { cluster.whoami(1, &other).await.status == 503 }).await;
    relays[1].set(Weather::Fair);
    let healed = Instant::now();
    // It adopts what the others have, and no stale yes is left.
    eventually(PATIENCE, || async { cluster.whoami(1, &other).await.status == 200 }).await;
    eventually(PATIENCE, || async {
        let status = cluster.whoami(1, &tokens).await.status;
        assert_ne!(status, 200, "a client that was signed out is served");
        status == 401
    })
    .await;
    assert!(healed.elapsed() < 4 * SECOND, "{:?}", healed.elapsed());
    assert_kept(&cluster.logs(), &upstream.authorization, Faults::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_rs_13_a_step_up_fetched_at_one_instance_counts_at_another_before_it_has_heard_of_it() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    upstream.set(|script| drop(script.tool_scopes.insert("echo".into(), "files:write".into())));
    let (cluster, relays) = Cluster::behind_relays(2, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    for instance in 0..2 {
        assert_eq!(cluster.call(instance, &tokens).tool("echo", json!({})).await.status, 403);
    }
    // Whatever the second one hears, it hears long after the call.
    relays[1].set(Weather::Slow(Duration::from_millis(200)));
    let alice = &mut Browser::of("alice").through(&cluster.instances[0]);
    // Its user has let the client do more by that, so it is the new token that shows it.
    let tokens = client.sign_in(alice, "demo").await;
    let echoed = cluster.call(1, &tokens).tool("echo", json!({"message": "written"})).await;
    assert_eq!(echoed.tool_text(), "written");
    assert_eq!(upstream.authorization.codes_redeemed(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_a_store_that_answers_late_is_not_taken_for_one_that_refuses() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let (cluster, relays) = Cluster::behind_relays(2, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    for instance in 0..2 {
        assert_eq!(cluster.whoami(instance, &tokens).await.status, 200);
    }
    // Commands arrive and are carried out, answers do not: nobody may act on what they did not hear.
    relays[0].set(Weather::HalfOpen);
    upstream.refuse_current_tokens();
    let answer = cluster.whoami(0, &tokens).await;
    assert!(matches!(answer.status, 503 | 401), "{}", answer.body);
    assert_eq!(upstream.authorization.token_requests("refresh_token").len(), 0, "no answer, no redemption");
    relays[0].set(Weather::Slow(Duration::from_millis(200)));
    for instance in [1, 0] {
        eventually(Duration::from_secs(20), || async {
            cluster.whoami(instance, &tokens).await.status == 200
        })
        .await;
    }
    assert_eq!(upstream.authorization.refreshes(), 1);
    assert_kept(&cluster.logs(), &upstream.authorization, Faults::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f14_an_owner_that_is_stopped_and_comes_back_harms_nobody() {
    for (reuse, may_lose) in [(Reuse::SameAnswer, false), (Reuse::NewSuccessor, false), (Reuse::Dead, false)]
    {
        let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
        upstream.set_authorization(|script| script.reuse = reuse);
        let cluster = Cluster::start(2, &redis, &upstream).await;
        let (_, tokens) = cluster.sign_in(0).await;
        let gate = Gate::shut();
        upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
        upstream.refuse_current_tokens();
        let call = cluster.call(0, &tokens);
        let call = tokio::spawn(async move { call.tool("whoami", json!({})).await.status });
        gate.wait_for(1, PATIENCE).await;
        // The answer waits at the stopped owner's door until its lease is over and somebody else has tried.
        cluster.instances[0].signal("STOP");
        gate.open();
        let heir = cluster.whoami(1, &tokens).await;
        assert!(heir.status == 200 || reuse == Reuse::Dead, "{}", heir.body);
        cluster.instances[0].signal("CONT");
        let owner = call.await.unwrap();
        assert!(matches!(owner, 200 | 401 | 503), "{owner}");
        // What came late has saved the connection where the heir could not.
        eventually(PATIENCE, || async { cluster.whoami(1, &tokens).await.status == 200 }).await;
        eventually(PATIENCE, || async { cluster.whoami(0, &tokens).await.status == 200 }).await;
        assert!(!may_lose);
        assert_kept(&cluster.logs(), &upstream.authorization, Faults { owners: 1, rollbacks: 0 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f15_an_instance_that_is_told_to_stop_finishes_its_refresh() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let mut cluster = Cluster::start(2, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let gate = Gate::shut();
    upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
    upstream.refuse_current_tokens();
    let call = cluster.call(0, &tokens);
    let call = tokio::spawn(async move { call.tool("whoami", json!({})).await });
    gate.wait_for(1, PATIENCE).await;
    cluster.instances[0].terminate();
    gate.open();
    assert_eq!(generation(&call.await.unwrap()), 2);
    assert!(cluster.instances[0].wait_exit(PATIENCE).await.success());
    assert_eq!(generation(&cluster.whoami(1, &tokens).await), 2, "what it got is there");
    assert_kept(&cluster.logs(), &upstream.authorization, Faults::default());
}

/// A store behind Sentinel; how many replicas a write waits for.
fn under_sentinel(watched: &Watched, replicas: u8) -> Value {
    json!({
        "kind": "redis", "topology": "sentinel", "master": Watched::MASTER, "urls": watched.urls(),
        "prefix": "test:", "replicas": replicas,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f04_a_failover_in_the_middle_of_refreshes_loses_no_connection() {
    let (watched, upstream) = (Watched::start(), Upstream::start().await);
    upstream.set_authorization(|script| script.access_token_lifetime = 4 * SECOND);
    let cluster =
        Cluster::of(2, Shared::new(under_sentinel(&watched, 1), vec![Route::oauth("demo", &upstream)])).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let (_, bob) = cluster.sign_in_as("bob", 1).await;
    let begun = Instant::now();
    let mut killed = false;
    // Calls go on through several renewals, and the primary goes down in the middle of them.
    while begun.elapsed() < 14 * SECOND {
        for (instance, tokens) in [(0, &tokens), (1, &bob), (1, &tokens), (0, &bob)] {
            let status = cluster.whoami(instance, tokens).await.status;
            assert!(matches!(status, 200 | 503), "{status}");
        }
        if !killed && begun.elapsed() > 5 * SECOND {
            watched.primary.kill();
            killed = true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    watched.wait_for_failover();
    for (instance, tokens) in [(0, &tokens), (1, &bob)] {
        eventually(PATIENCE, || async { cluster.whoami(instance, tokens).await.status == 200 }).await;
    }
    assert_eq!(
        upstream.authorization.token_requests("authorization_code").len(),
        2,
        "nobody signed in again"
    );
    assert_kept(&cluster.logs(), &upstream.authorization, Faults { owners: 1, rollbacks: 1 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t33_an_older_record_is_not_believed_by_who_has_written_a_newer_one() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(1, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    assert_eq!(generation(&cluster.whoami(0, &tokens).await), 1);
    let key = redis.cli(&["KEYS", "test:*:connection:*"]);
    let (key, kept) = (key.trim(), "kept by a thief");
    assert_eq!(redis.cli(&["COPY", key, kept]).trim(), "1", "{key}");
    upstream.refuse_current_tokens();
    assert_eq!(generation(&cluster.whoami(0, &tokens).await), 2);
    // Its refresh token is spent: to send it once more would end the connection.
    assert_eq!(redis.cli(&["COPY", kept, key, "REPLACE"]).trim(), "1");
    upstream.refuse_current_tokens();
    eventually(PATIENCE, || async { cluster.whoami(0, &tokens).await.status == 200 }).await;
    assert_eq!(generation(&cluster.whoami(0, &tokens).await), 3);
    let sent = upstream.authorization.token_requests("refresh_token");
    let different: HashSet<_> = sent.iter().map(|request| request.form("refresh_token")).collect();
    assert_eq!((sent.len(), different.len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_instance_gave_works_at_once_on_all_while_the_replica_lags() {
    let (watched, upstream) = (Watched::start(), Upstream::start().await);
    let cluster =
        Cluster::of(2, Shared::new(under_sentinel(&watched, 0), vec![Route::oauth("demo", &upstream)])).await;
    eventually(PATIENCE, async || watched.replica_has_caught_up()).await;
    // From here on the replica gets nothing and answers nobody.
    watched.replica.signal("STOP");
    let (client, tokens) = cluster.sign_in(0).await;
    assert_eq!(generation(&cluster.whoami(1, &tokens).await), 1, "who is connected, and how");
    let mut refresh_token = tokens.refresh_token;
    for turn in 1..=20 {
        let next = cluster.client_at(turn % 2, &client).refresh(&refresh_token).await.tokens();
        assert_eq!(cluster.whoami((turn + 1) % 2, &next).await.status, 200, "turn {turn}");
        refresh_token = next.refresh_token;
    }
    assert!(!watched.replica_has_caught_up(), "it was behind all the while");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_instances_share_a_redis_cluster() {
    let (servers, upstream) = (support::redis::Cluster::start(), Upstream::start().await);
    let store = json!({"kind": "redis", "topology": "cluster", "urls": servers.urls(), "prefix": "test:"});
    let cluster = Cluster::of(3, Shared::new(store, vec![Route::oauth("demo", &upstream)])).await;
    let (client, tokens) = cluster.sign_in(0).await;
    for instance in 0..3 {
        assert_eq!(generation(&cluster.whoami(instance, &tokens).await), 1);
    }
    upstream.refuse_current_tokens();
    assert_eq!(cluster.storm(30, &tokens).await, HashSet::from([2]));
    assert_eq!(upstream.authorization.refreshes(), 1);
    cluster.client_at(1, &client).revoke(&tokens.refresh_token).await;
    for instance in 0..3 {
        eventually(SECOND, || async { cluster.whoami(instance, &tokens).await.status == 401 }).await;
    }
    assert_kept(&cluster.logs(), &upstream.authorization, Faults::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_a_store_that_cannot_write_starts_no_refresh() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(2, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let (_, bob) = cluster.sign_in_as("bob", 0).await;
    for (setting, good, bad) in [("min-replicas-to-write", "0", "1"), ("maxmemory", "0", "1")] {
        assert_eq!(cluster.whoami(1, &tokens).await.status, 200);
        let tried = upstream.authorization.token_requests("refresh_token").len();
        redis.cli(&["CONFIG", "SET", setting, bad]);
        upstream.refuse_current_tokens();
        let answer = cluster.whoami(1, &tokens).await;
        assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.body);
        assert_eq!(upstream.authorization.token_requests("refresh_token").len(), tried, "{setting}");
        redis.cli(&["CONFIG", "SET", setting, good]);
        eventually(PATIENCE, || async { cluster.whoami(1, &tokens).await.status == 200 }).await;
        eventually(PATIENCE, || async { cluster.whoami(0, &bob).await.status == 200 }).await;
    }
    assert_kept(&cluster.logs(), &upstream.authorization, Faults::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_call_asks_the_store_nothing() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let cluster = Cluster::start(2, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    for instance in [0, 1, 0, 1] {
        assert_eq!(cluster.whoami(instance, &tokens).await.status, 200);
    }
    // Records are read with GET; the logs of changes, which are polled, are not.
    let reads = || redis.calls("get") + redis.calls("mget");
    let asked = || (reads(), redis.calls("set"));
    // News of the sign-in may still be under way and has each instance look once more; then nothing is asked at all.
    eventually(PATIENCE, || async {
        let before = asked();
        for number in 0..200 {
            assert_eq!(cluster.whoami(number % 2, &tokens).await.status, 200);
        }
        asked() == before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t32_a_lost_sealing_key_is_loud_and_costs_a_sign_in() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let mut cluster = Cluster::start(1, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    let instance = &mut cluster.instances[0];
    // The keys of access tokens are under the new key already; everything else is not, and the old one is gone.
    let (k1, k2) = (cluster.shared.make_key("k1", 1), cluster.shared.make_key("k2", 2));
    instance.reconfigure("sealing_keys", json!([k2, k1]));
    instance.restart().await;
    instance.reconfigure("sealing_keys", json!([k2]));
    instance.restart().await;
    let answer = instance.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await;
    assert_eq!(answer.status, 401, "{}", answer.body);
    instance.output.shows("stored record cannot be read").await;
    let refused = client.refresh(&tokens.refresh_token).await;
    assert!(
        matches!(refused.error().as_deref(), Some("invalid_grant" | "invalid_client")),
        "{:?}",
        refused.error()
    );
    let (_, again) = cluster.sign_in(0).await;
    assert_eq!(cluster.whoami(0, &again).await.status, 200);
}

/// The library that gives a program another clock.
fn other_clocks() -> String {
    let directories = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let library = directories.map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    let library =
        library.into_iter().find(|path| path.exists()).expect("libfaketime, which `make test` installs");
    library.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_instances_whose_clocks_are_ten_minutes_apart_agree_all_the_same() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::oauth("demo", &upstream)])
        .with("oauth_server.access_token_ttl", json!("15m"));
    let mut instances = Vec::new();
    for (number, shift) in ["+0", "+10m", "-10m"].into_iter().enumerate() {
        let instance = shared.instance(number, None).env("LD_PRELOAD", &other_clocks());
        let instance = instance.env("FAKETIME", shift).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        instances.push(instance.start().await);
    }
    let mut cluster = Cluster { instances, shared };
    let (_, tokens) = cluster.sign_in(0).await;
    for instance in 0..3 {
        assert_eq!(generation(&cluster.whoami(instance, &tokens).await), 1);
    }
    // No storm: one refresh for all.
    upstream.refuse_current_tokens();
    assert_eq!(cluster.storm(30, &tokens).await, HashSet::from([2]));
    assert_eq!(upstream.authorization.refreshes(), 1);
    // No hold that lasts: the lease of one whose clock is ahead ends by the store's time, as any other's.
    let gate = Gate::shut();
    upstream.set_authorization(|script| script.token_gate = Some(gate.clone()));
    upstream.refuse_current_tokens();
    let call = cluster.call(1, &tokens);
    let call = tokio::spawn(async move { call.tool("whoami", json!({})).await.status });
    gate.wait_for(1, PATIENCE).await;
    cluster.instances[1].kill9().await;
    call.abort();
    gate.open();
    let killed = Instant::now();
    eventually(Duration::from_secs(20), || async { cluster.whoami(2, &tokens).await.status == 200 }).await;
    assert!(killed.elapsed() < 15 * SECOND, "{:?}", killed.elapsed());
    assert_eq!(generation(&cluster.whoami(0, &tokens).await), 3);
}

/// Sizes of a run: small by default, large for `make soak`.
fn sized(short: usize, long: usize) -> usize {
    if std::env::var_os("POSTERN_SOAK").is_some() { long } else { short }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_r01_ten_thousand_callers_at_the_instant_of_expiry() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    upstream.set_authorization(|script| script.access_token_lifetime = 4 * SECOND);
    let cluster = Cluster::start(3, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let begun = Instant::now();
    for instance in 0..3 {
        assert_eq!(generation(&cluster.whoami(instance, &tokens).await), 1);
    }
    // The next one lasts.
    upstream.set_authorization(|script| script.access_token_lifetime = Duration::from_secs(3600));
    let count = sized(1_500, 10_000);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(300));
    let calls: Vec<_> = (0..count)
        .map(|number| {
            let (call, gate) = (cluster.call(number % 3, &tokens), gate.clone());
            tokio::spawn(async move {
                tokio::time::sleep_until((begun + 4 * SECOND).into()).await;
                let _turn = gate.acquire_owned().await.unwrap();
                call.tool("whoami", json!({})).await.status
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    assert_eq!(upstream.authorization.refreshes(), 1);
    println!("{count} callers, one refresh, no error");
    assert_kept(&cluster.logs(), &upstream.authorization, Faults::default());
}
