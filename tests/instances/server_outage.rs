//! The authorization server when its store is away, full or tampered with, and what strangers can put into it: trouble
//! of ours is told as ours and costs nobody anything, and nothing in the store works for somebody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use serde_json::json;
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::gateway::{Gateway, Route};
use support::html::meta_refresh;
use support::mcp::McpAnswer;
use support::redis::Redis;
use support::relay::{Relay, Weather};
use support::upstream::Upstream;
use support::{PATIENCE, eventually, eventually_some};

/// One instance, its store, and the wire between them.
struct Rig {
    cluster: Cluster,
    relay: Relay,
    redis: Redis,
    upstream: Upstream,
}

impl Rig {
    async fn start() -> Self {
        let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
        let (cluster, mut relays) = Cluster::behind_relays(1, &redis, &upstream).await;
        Rig { cluster, relay: relays.remove(0), redis, upstream }
    }

    fn gateway(&self) -> &Gateway {
        &self.cluster.instances[0]
    }

    async fn whoami(&self, tokens: &Tokens) -> McpAnswer {
        self.cluster.call(0, tokens).tool("whoami", json!({})).await
    }

    /// Waits until a call asks the store nothing: no news of the sign-in is under way any more.
    async fn warm(&self, tokens: &Tokens) {
        eventually(PATIENCE, async || {
            let before = self.redis.calls("get");
            assert_eq!(self.whoami(tokens).await.status, 200);
            self.redis.calls("get") == before
        })
        .await;
    }

    /// A code for this client that nobody has redeemed yet, and the request it answers.
    async fn code(&self, client: &Client) -> (String, support::client::AuthorizationRequest) {
        let mut browser = Browser::new().through(self.gateway());
        let request = client.authorization("demo");
        (browser.authorize(&client.redirect_uri, &request.url()).await.code(), request)
    }

    /// Keys of records of this kind.
    fn keys(&self, kind: &str) -> Vec<String> {
        let all = self.redis.cli(&["KEYS", &format!("*:{kind}:*")]);
        all.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

/// Ours to mend, and worth another try.
#[track_caller]
fn assert_later(answer: &McpAnswer, about: &str) {
    assert_eq!(answer.status, 503, "{about}: {}", answer.body);
    assert!(answer.header("retry-after").is_some(), "{about}");
    assert_eq!(answer.json()["error"], "temporarily_unavailable", "{about}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{about}");
}

#[tokio::test]
async fn sr_as_40_sr_as_80_without_the_store_nothing_is_judged_and_nothing_promised() {
    let rig = Rig::start().await;
    let (client, tokens) = rig.cluster.sign_in(0).await;
    let (_, leaving) = rig.cluster.sign_in_as("bob", 0).await;
    let (code, request) = rig.code(&client).await;
    rig.warm(&tokens).await;
    rig.relay.set(Weather::Down);
    assert_later(&client.refresh(&tokens.refresh_token).await.0, "a good refresh token");
    assert_later(&client.redeem(&code, &request).await.0, "a good code");
    // A made-up one might be somebody's: without the store nobody can tell, so nobody is told to forget it.
    assert_later(&client.refresh("postern_rt_x.y").await.0, "an unknown refresh token");
    assert_later(&client.redeem("postern_ac_x", &request).await.0, "an unknown code");
    // Revocation is promised when it is done, and not before.
    assert_later(&client.revoke(&tokens.refresh_token).await, "a revocation");
    assert_later(&client.revoke(&tokens.access_token).await, "a revocation by access token");
    let document = json!({"redirect_uris": ["https://client.example/cb"]});
    assert_later(&Client::register_with(rig.gateway(), &document).await, "a registration");
    let page = Browser::new().through(rig.gateway()).peek(&client.authorization("demo").url()).await;
    assert_eq!((page.status, page.header("location")), (503, None), "{}", page.text());
    assert!(page.header("retry-after").is_some() && meta_refresh(&page.body).is_none());
    // Who has what is needed in memory notices nothing.
    assert_eq!(rig.whoami(&tokens).await.status, 200);

    rig.relay.set(Weather::Fair);
    eventually(PATIENCE, async || client.refresh(&leaving.refresh_token).await.status() != 503).await;
    client.redeem(&code, &request).await.tokens();
    let next = client.refresh(&tokens.refresh_token).await.tokens();
    assert_eq!(rig.whoami(&next).await.status, 200, "the revocation was refused, so it has not happened");
}

#[tokio::test]
async fn f01_what_could_not_be_read_anew_costs_nothing_that_is_known() {
    let rig = Rig::start().await;
    let (_, tokens) = rig.cluster.sign_in(0).await;
    rig.warm(&tokens).await;
    rig.relay.set(Weather::Down);
    // A reload has things read from the store, which are then tried again and again.
    rig.gateway().hang_up();
    let tries = || rig.gateway().output.text().matches("what is revoked cannot be read").count();
    eventually(PATIENCE, async || tries() >= 2).await;
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    rig.relay.set(Weather::Fair);
    rig.upstream.refuse_current_tokens();
    eventually(PATIENCE, async || rig.whoami(&tokens).await.status == 200).await;
}

#[tokio::test]
async fn f01_readyz_says_what_a_start_waits_for() {
    let mut rig = Rig::start().await;
    let (_, tokens) = rig.cluster.sign_in(0).await;
    rig.cluster.instances[0].stop().await;
    let kept = rig.keys("key");
    let [keys] = kept.as_slice() else { panic!("{kept:?}") };
    // As a version to come might have written them: there, and of no use yet.
    let write_as = |format: &str| rig.redis.cli(&["SETRANGE", keys, "0", format]);
    write_as("\u{2}");
    rig.relay.set(Weather::Blackhole);
    rig.cluster.instances[0].restart_unready().await;
    let gateway = rig.gateway();
    let says = async |path: &str| {
        let answer = gateway.http.get(gateway.admin(path)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let no_store = (503, "store does not answer\n".to_owned());
    assert_eq!(says("/readyz").await, no_store);
    assert_eq!(says("/healthz").await.0, 200);

    rig.relay.set(Weather::Fair);
    let next = async || Some(says("/readyz").await).filter(|said| *said != no_store);
    let starting = (503, "starting\n".to_owned());
    assert_eq!(eventually_some(PATIENCE, next).await, starting);
    assert_eq!(says("/healthz").await.0, 200);
    let unjudged = rig.whoami(&tokens).await;
    assert_eq!((unjudged.status, unjudged.header("retry-after").is_some()), (503, true), "{}", unjudged.body);
    let tries = || gateway.output.text().matches("the keys of access tokens cannot be read").count();
    eventually(PATIENCE, async || tries() >= 2).await;
    assert_eq!(says("/readyz").await, starting);

    write_as("\u{1}");
    let next = async || Some(says("/readyz").await).filter(|said| *said != starting);
    assert_eq!(eventually_some(PATIENCE, next).await, (200, "ready\n".to_owned()));
    assert_eq!(rig.whoami(&tokens).await.status, 200);
}

#[tokio::test]
async fn sr_t28_sr_as_37_what_could_not_be_written_was_not_used() {
    let rig = Rig::start().await;
    let (client, tokens) = rig.cluster.sign_in(0).await;
    let (code, request) = rig.code(&client).await;
    // It can be read, but takes no more.
    rig.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_later(&client.refresh(&tokens.refresh_token).await.0, "a refresh");
    assert_later(&client.redeem(&code, &request).await.0, "a redemption");
    rig.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let first = client.redeem(&code, &request).await.tokens();
    assert_eq!(rig.whoami(&first).await.status, 200);
    // The token of before the trouble starts the rotation, and the family lives on over several of them.
    let mut next = client.refresh(&tokens.refresh_token).await.tokens();
    for _ in 0..2 {
        next = client.refresh(&next.refresh_token).await.tokens();
    }
    assert_eq!(rig.whoami(&next).await.status, 200);
}

#[tokio::test]
async fn sr_t33_a_record_in_another_ones_place_is_nobodys() {
    let mut rig = Rig::start().await;
    rig.upstream.set_authorization(|script| script.user = "up-alice".into());
    let (alices_client, alice) = rig.cluster.sign_in(0).await;
    rig.upstream.set_authorization(|script| script.user = "up-bob".into());
    let (bobs_client, bob) = rig.cluster.sign_in_as("bob", 0).await;
    // In their own places they outlive a restart.
    rig.cluster.instances[0].restart().await;
    assert_eq!(rig.whoami(&alice).await.tool_text(), "up-alice");
    assert_eq!(rig.whoami(&bob).await.tool_text(), "up-bob");
    for kind in ["connection", "grant"] {
        let keys = rig.keys(kind);
        let [one, other] = keys.as_slice() else { panic!("{kind}: {keys:?}") };
        for (from, to) in [(one.as_str(), "aside"), (other, one), ("aside", other)] {
            assert_eq!(rig.redis.cli(&["RENAME", from, to]), "OK");
        }
    }
    // What is in memory was read before; a new process has only what the store says.
    rig.cluster.instances[0].restart().await;
    let sent = rig.upstream.calls_with_token().len();
    for (name, tokens) in [("alice", &alice), ("bob", &bob)] {
        let answer = rig.whoami(tokens).await;
        assert_eq!(answer.status, 401, "{name}: {}", answer.body);
        assert!(answer.challenge("resource_metadata").is_some(), "{name} is told where to begin anew");
    }
    for (client, mine, others) in [(&alices_client, &alice, &bob), (&bobs_client, &bob, &alice)] {
        for refresh_token in [&mine.refresh_token, &others.refresh_token] {
            let answer = client.refresh(refresh_token).await;
            assert_eq!(answer.error().as_deref(), Some("invalid_grant"), "{}", answer.0.body);
        }
    }
    assert_eq!(rig.upstream.calls_with_token().len(), sent, "nobody's token was sent for anybody");
    // Both begin anew, and are who they were.
    rig.upstream.set_authorization(|script| script.user = "up-alice".into());
    let (_, again) = rig.cluster.sign_in(0).await;
    assert_eq!(rig.whoami(&again).await.tool_text(), "up-alice");
}

#[tokio::test]
async fn sr_rs_14_sr_t07_strangers_leave_nothing_behind() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::oauth("demo", &upstream)]);
    let cluster = Cluster::of(1, shared).await;
    let gateway = &cluster.instances[0];
    let client = Client::register(gateway).await;
    // Somebody who is in the middle of it.
    let mut victim = Browser::new().through(gateway);
    let request = client.authorization("demo");
    let empty = redis.cli(&["DBSIZE"]);
    let page = victim.go_to_consent(&client.redirect_uri, &request.url()).await;
    assert_ne!(redis.cli(&["DBSIZE"]), empty, "a session and a flow are seen in the store");
    let (before, asked) = (redis.cli(&["DBSIZE"]), upstream.requests.all().len());
    for number in 0..300 {
        let token = format!("postern_at_{number}");
        for call in [gateway.mcp("demo"), gateway.mcp("demo").bearer(&token)] {
            assert_eq!(call.tool("whoami", json!({})).await.status, 401);
        }
        let page = Browser::new().through(gateway).peek(&client.authorization("demo").url()).await;
        assert_eq!(page.status, 303, "to sign in: {}", page.text());
        client.refresh(&format!("postern_rt_{number}.x")).await;
        client.revoke(&token).await;
    }
    assert_eq!(redis.cli(&["DBSIZE"]), before, "the store has grown");
    assert_eq!(upstream.requests.all().len(), asked, "the upstream was asked for a stranger");
    assert_eq!(upstream.authorization.requests.count("/authorize"), 0);
    // Nor has the flood washed away what was begun.
    let code = support::client::Callback::of(&victim.consent_allow(&page).await.client()).code();
    client.redeem(&code, &request).await.tokens();
}
