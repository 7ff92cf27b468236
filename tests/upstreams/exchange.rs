//! Routes whose upstream gets a token that was exchanged for something: how often the token endpoint is asked, for whom, by
//! what proof, and what happens when it does not answer or says no.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::eventually;
use support::gate::Gate;
use support::gateway::{Builder, Gateway, Route, restrict};
use support::identity::IdentityProvider;
use support::identity::exchange::{self as exchanges, name};
use support::mcp::{McpAnswer, McpRequest};
use support::params::Params;
use support::redis::Redis;
use support::script::Answer;
use support::upstream::Upstream;

const SECOND: Duration = Duration::from_secs(1);

/// A provider, and an upstream that takes what it exchanges.
async fn world() -> (IdentityProvider, Upstream) {
    let (provider, upstream) = (IdentityProvider::start().await, Upstream::start().await);
    upstream.take(&(1..100).map(name).collect::<Vec<_>>());
    (provider, upstream)
}

/// The credential of this kind at that provider, by secret.
fn credential(provider: &IdentityProvider, kind: &str, more: &Value) -> Value {
    let mut credential = json!({"kind": kind, "issuer": provider.issuer, "client_id": "gateway"});
    if more["token_endpoint_auth_method"] != "private_key_jwt" {
        credential["client_secret"] = json!({"env": "CLIENT_SECRET"});
    }
    for (name, value) in more.as_object().unwrap() {
        credential[name] = value.clone();
    }
    credential
}

fn builder(provider: &IdentityProvider, upstream: &Upstream, kind: &str, more: Value) -> Builder {
    Gateway::builder()
        .route(Route::to("demo", &upstream.url(), credential(provider, kind, &more)))
        .env("CLIENT_SECRET", &provider.client_secret())
}

async fn own_token(provider: &IdentityProvider, upstream: &Upstream) -> Gateway {
    builder(provider, upstream, "client_credentials", json!({})).start().await
}

async fn sign_in(gateway: &Gateway, user: &str) -> Tokens {
    Client::register(gateway).await.sign_in(&mut Browser::of(user).through(gateway), "demo").await
}

async fn call(gateway: &Gateway, tokens: &Tokens) -> McpAnswer {
    gateway.mcp("demo").bearer(&tokens.access_token).tool("echo", json!({"message": "heard"})).await
}

fn held(tokens: &Tokens) -> [&str; 2] {
    [&tokens.access_token, &tokens.refresh_token]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_callers_get_one_token_of_the_gateways_own() {
    let (provider, upstream) = world().await;
    let more = json!({"audience": ["files", "mail"], "resource": "https://files.example", "scopes": ["read", "write"],
        "params": {"tenant": "t1"}});
    let gateway = builder(&provider, &upstream, "client_credentials", more).start().await;
    let (alice, bob) = (sign_in(&gateway, "alice").await, sign_in(&gateway, "bob").await);
    let gate = Gate::shut();
    provider.set(|script| script.exchange_gate = Some(gate.clone()));
    let calls = (0..40).map(|number| call(&gateway, if number % 2 == 0 { &alice } else { &bob }));
    let opened = async {
        gate.wait_for(1, SECOND).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(calls), opened);
    assert!(answers.iter().all(|answer| answer.tool_text() == "heard"));
    assert_eq!((provider.exchanges(), upstream.shown()), (1, vec![name(1)]));
    let asked = provider.exchanged().remove(0);
    assert_eq!((asked.grant.as_str(), asked.subject.as_str()), ("client_credentials", "gateway"));
    assert_eq!(
        (asked.audience, asked.resource),
        (vec!["files".into(), "mail".into()], vec!["https://files.example".to_owned()])
    );
    assert_eq!(asked.scope.as_deref(), Some("read write"));
    assert_eq!(provider.requests.last_to("/token").form("tenant").as_deref(), Some("t1"));
    for tokens in [&alice, &bob] {
        upstream.assert_never_saw(&held(tokens));
        assert!(held(tokens).iter().all(|token| !provider.requests.mention(token)));
    }
    gateway.output.assert_no_secret();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_instances_ask_once_for_all_their_callers() {
    let (provider, upstream, redis) =
        (IdentityProvider::start().await, Upstream::start().await, Redis::start(&[]));
    upstream.take(&[name(1)]);
    let (cluster, _secret) = cluster(3, &provider, &upstream, &redis, json!({})).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let gate = Gate::shut();
    provider.set(|script| script.exchange_gate = Some(gate.clone()));
    let calls: Vec<_> = (0..120)
        .map(|number| {
            let call = cluster.call(number % 3, &tokens);
            tokio::spawn(async move { call.tool("echo", json!({"message": "heard"})).await.tool_text() })
        })
        .collect();
    gate.wait_for(1, SECOND).await;
    gate.open();
    for call in calls {
        assert_eq!(call.await.unwrap(), "heard");
    }
    assert_eq!((provider.exchanges(), upstream.shown()), (1, vec![name(1)]));
    upstream.assert_never_saw(&held(&tokens));
    for instance in &cluster.instances {
        instance.output.assert_no_secret();
    }
}

/// Instances with a `client_credentials` route `demo`, and the file with their secret.
async fn cluster(
    count: usize,
    provider: &IdentityProvider,
    upstream: &Upstream,
    redis: &Redis,
    more: Value,
) -> (Cluster, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), provider.client_secret()).unwrap();
    restrict(file.path());
    let mut credential = credential(provider, "client_credentials", &more);
    credential["client_secret"] = json!({"file": file.path()});
    let route = Route::to("demo", &upstream.url(), credential);
    (Cluster::of(count, Shared::new(store_at(address_of(redis)), vec![route])).await, file)
}

#[tokio::test]
async fn a_caller_who_goes_away_takes_nothing_along() {
    let (provider, upstream) = world().await;
    let gateway = own_token(&provider, &upstream).await;
    let tokens = sign_in(&gateway, "alice").await;
    let gate = Gate::shut();
    provider.set(|script| script.exchange_gate = Some(gate.clone()));
    {
        let first = call(&gateway, &tokens);
        tokio::select! {
            _ = first => panic!("nobody has answered"),
            () = gate.wait_for(1, SECOND) => {}
        }
    }
    gate.open();
    assert_eq!(call(&gateway, &tokens).await.tool_text(), "heard");
    assert_eq!(provider.exchanges(), 1);
}

#[tokio::test]
async fn while_the_provider_is_down_a_token_serves_until_its_end() {
    let (provider, upstream) = world().await;
    provider.set(|script| script.exchanges.lifetime = Some(6));
    let gateway = own_token(&provider, &upstream).await;
    let tokens = sign_in(&gateway, "alice").await;
    assert_eq!(call(&gateway, &tokens).await.status, 200);
    provider.set(|script| script.down = true);
    // It is asked ahead of the end, and its answer costs nobody anything.
    eventually(6 * SECOND, async || {
        assert_eq!(call(&gateway, &tokens).await.status, 200);
        provider.exchanges() == 2
    })
    .await;
    assert_eq!(call(&gateway, &tokens).await.status, 200);
    // Then there is none, and that is nobody's fault.
    eventually(3 * SECOND, async || call(&gateway, &tokens).await.status != 200).await;
    let answer = call(&gateway, &tokens).await;
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.body);
    assert_eq!(upstream.shown(), [name(1)], "without a token it is not called");
    provider.set(|script| script.down = false);
    eventually(5 * SECOND, async || call(&gateway, &tokens).await.status == 200).await;
    assert_eq!(upstream.shown(), [name(1), name(2)]);
    upstream.assert_never_saw(&held(&tokens));
}

#[tokio::test]
async fn tokens_of_two_seconds_follow_each_other_without_a_gap() {
    let (provider, upstream) = world().await;
    provider.set(|script| script.exchanges.lifetime = Some(2));
    let gateway = own_token(&provider, &upstream).await;
    let tokens = sign_in(&gateway, "alice").await;
    let begun = Instant::now();
    while begun.elapsed() < 5 * SECOND {
        assert_eq!(call(&gateway, &tokens).await.tool_text(), "heard");
    }
    assert!((3..=6).contains(&provider.exchanges()), "{}", provider.exchanges());
}

#[tokio::test]
async fn a_server_that_names_no_end_is_asked_again_in_its_time() {
    let (provider, upstream) = world().await;
    provider.set(|script| script.exchanges.lifetime = None);
    let gateway = own_token(&provider, &upstream).await;
    let tokens = sign_in(&gateway, "alice").await;
    for _ in 0..3 {
        assert_eq!(call(&gateway, &tokens).await.status, 200);
    }
    assert_eq!(provider.exchanges(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_its_owner_dies_another_instance_asks() {
    let (provider, upstream, redis) =
        (IdentityProvider::start().await, Upstream::start().await, Redis::start(&[]));
    upstream.take(&[name(1)]);
    let (mut cluster, _secret) = cluster(2, &provider, &upstream, &redis, json!({})).await;
    let (_, tokens) = cluster.sign_in(1).await;
    let owner = &mut cluster.instances[0];
    owner.set_env("POSTERN_FAILPOINT", Some("X1"));
    owner.restart().await;
    let call = cluster.call(0, &tokens);
    let lost = tokio::spawn(async move { call.try_send("POST", Some("{}")).await.is_ok() });
    cluster.instances[0].output.shows("\"place\":\"X1\"").await;
    cluster.instances[0].kill9().await;
    assert!(!lost.await.unwrap());
    // It has claimed it for no longer than that.
    let begun = Instant::now();
    assert_eq!(cluster.call(1, &tokens).tool("echo", json!({"message": "heard"})).await.tool_text(), "heard");
    assert!(begun.elapsed() < 13 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(provider.exchanges(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_store_what_is_known_flows_and_nothing_is_exchanged() {
    let (provider, upstream) = world().await;
    let redis = Redis::start(&["--appendonly", "yes"]);
    let (cluster, _secret) = cluster(2, &provider, &upstream, &redis, json!({})).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let call =
        async |instance| cluster.call(instance, &tokens).tool("echo", json!({"message": "heard"})).await;
    assert_eq!(call(0).await.status, 200);
    redis.kill();
    assert_eq!(call(0).await.status, 200);
    let answer = call(1).await;
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.body);
    assert_eq!(provider.exchanges(), 1);
    redis.again();
    eventually(5 * SECOND, async || call(1).await.status == 200).await;
    assert_eq!((provider.exchanges(), upstream.shown()), (1, vec![name(1)]));
    upstream.assert_never_saw(&held(&tokens));
}

#[tokio::test]
async fn a_token_that_the_upstream_refuses_is_exchanged_anew_once() {
    let (provider, upstream) = world().await;
    let gateway = own_token(&provider, &upstream).await;
    let tokens = sign_in(&gateway, "alice").await;
    assert_eq!(call(&gateway, &tokens).await.status, 200);
    upstream.take(&[name(2)]);
    assert_eq!(call(&gateway, &tokens).await.tool_text(), "heard");
    assert_eq!((provider.exchanges(), upstream.shown()), (2, vec![name(1), name(2)]));
    // Then it is what the route says that is wrong: no call asks once more, and no user is sent anywhere.
    upstream.take(&[]);
    for _ in 0..5 {
        let answer = call(&gateway, &tokens).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (502, None), "{}", answer.body);
    }
    assert_eq!(provider.exchanges(), 2);
    gateway.output.shows("check its configuration").await;
    upstream.assert_never_saw(&held(&tokens));
}

#[tokio::test]
async fn a_call_that_cannot_be_sent_again_leaves_a_newer_token_to_the_next() {
    let (provider, upstream) = world().await;
    let gateway = own_token(&provider, &upstream).await;
    let tokens = sign_in(&gateway, "alice").await;
    assert_eq!(call(&gateway, &tokens).await.status, 200);
    upstream.take(&[name(2)]);
    let long = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "echo", "arguments": {"message": "x".repeat(100_000)}}});
    let long = async || gateway.mcp("demo").bearer(&tokens.access_token).post(&long.to_string()).await;
    let answer = long().await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.body);
    assert_eq!(long().await.status, 200);
    assert_eq!(upstream.shown(), [name(1), name(2)]);
}

#[tokio::test]
async fn what_the_upstream_forbids_is_passed_on() {
    let (provider, upstream) = world().await;
    let gateway = own_token(&provider, &upstream).await;
    let tokens = sign_in(&gateway, "alice").await;
    upstream.answer_next(Answer::InsufficientScope("admin".into()));
    let answer = call(&gateway, &tokens).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (403, None), "{}", answer.body);
    assert_eq!((call(&gateway, &tokens).await.status, provider.exchanges()), (200, 1));
}

#[tokio::test]
async fn brk15_16_a_refusal_is_remembered_and_its_text_stays_out_of_everything() {
    let (provider, upstream) = world().await;
    let body = json!({"error": "CANARY_code", "error_description": "CANARY_description"});
    provider.set(|script| script.exchanges.error = Some((400, body)));
    let gateway = own_token(&provider, &upstream).await;
    let tokens = sign_in(&gateway, "alice").await;
    for _ in 0..10 {
        let answer = call(&gateway, &tokens).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (502, None), "{}", answer.body);
        assert!(!answer.body.contains("CANARY"), "{}", answer.body);
    }
    assert_eq!((provider.exchanges(), upstream.calls().len()), (1, 0));
    gateway.output.assert_no_secret();
    // A restart makes no difference to how often it is asked.
    let mut gateway = gateway;
    gateway.restart().await;
    assert_eq!((call(&gateway, &tokens).await.status, provider.exchanges()), (502, 1));
    upstream.assert_never_saw(&held(&tokens));
}

#[tokio::test]
async fn what_is_no_bearer_token_goes_nowhere() {
    let (provider, upstream) = world().await;
    provider.set(|script| script.exchanges.token_type = "DPoP".into());
    let gateway = own_token(&provider, &upstream).await;
    let tokens = sign_in(&gateway, "alice").await;
    assert_eq!(call(&gateway, &tokens).await.status, 502);
    assert_eq!(upstream.calls().len(), 0);
}

#[tokio::test]
async fn the_client_proves_itself_in_each_way_and_the_token_goes_where_the_route_says() {
    for method in ["client_secret_basic", "client_secret_post", "private_key_jwt"] {
        let (provider, upstream) = world().await;
        upstream.set(|script| script.requires_auth = false);
        let more =
            json!({"token_endpoint_auth_method": method, "name": "X-Api-Key", "format": "token={value}"});
        let gateway = builder(&provider, &upstream, "client_credentials", more).start().await;
        provider.set(|script| {
            script.exchanges.method = method;
            script.exchanges.jwks_uri = Some(gateway.url("/oauth/jwks.json"));
        });
        let tokens = sign_in(&gateway, "alice").await;
        assert_eq!(call(&gateway, &tokens).await.status, 200, "{method}");
        let sent = upstream.calls().pop().unwrap();
        assert_eq!(sent.header("x-api-key"), Some(format!("token={}", name(1))));
        assert_eq!(sent.header("authorization"), None);
        gateway.output.assert_no_secret();
    }
}

#[tokio::test]
async fn one_route_whose_provider_is_down_leaves_the_others_alone() {
    let (provider, upstream) = world().await;
    provider.set(|script| script.down = true);
    let gateway = builder(&provider, &upstream, "client_credentials", json!({}))
        .route(Route::header("other", &upstream, "Authorization", json!({"env": "FIXED"})))
        .env("FIXED", &format!("Bearer {}", name(1)))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    assert_eq!(call(&gateway, &tokens).await.status, 503);
    let other = client.sign_in(&mut Browser::new(), "other").await;
    let answer =
        gateway.mcp("other").bearer(&other.access_token).tool("echo", json!({"message": "heard"})).await;
    assert_eq!(answer.tool_text(), "heard");
}

/// Everybody who may sign in at the provider, as of `tests/upstreams/inject.rs`.
fn with_login(builder: Builder, provider: &IdentityProvider) -> Builder {
    builder.env("IDP_SECRET", "of the identity provider").with("login.oidc", json!([provider.entry()]))
}

/// The person `4711` of the provider lets a client in.
async fn sign_in_at(provider: &IdentityProvider, gateway: &Gateway) -> (Browser, Client, Tokens) {
    let (mut browser, client) = (Browser::new(), Client::register(gateway).await);
    let url = gateway.url("/login/start?provider=corp&next=/connections");
    assert_eq!(browser.go(&url).await.page().status, 200);
    let tokens = client.sign_in(&mut browser, "demo").await;
    assert!(provider.given() > 0);
    (browser, client, tokens)
}

fn trusts_our_keys(provider: &IdentityProvider, gateway: &Gateway) {
    provider.set(|script| {
        script.exchanges.jwks_uri = Some(gateway.url("/oauth/jwks.json"));
        script.exchanges.gateway = gateway.public_url.clone();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk15_05_brk15_08_each_user_gets_a_token_of_their_own_and_nobody_anothers() {
    let (provider, upstream) = world().await;
    let more = json!({"audience": "files", "resource": ["https://files.example"], "scopes": ["read"], "actor": "self",
        "requested_token_type": exchanges::ACCESS_TOKEN});
    let gateway = builder(&provider, &upstream, "token_exchange", more)
        .env("ROBOT", "CANARY_robot")
        .with(
            "oauth_server.clients.static",
            json!([
                {"client_id": "robot", "client_secret": {"env": "ROBOT"}, "client_credentials": {"routes": ["demo"]}},
                {"client_id": "helper", "client_secret": {"env": "ROBOT"},
                    "client_credentials": {"routes": ["demo"], "acts_for": "bob"}},
            ]),
        )
        .start()
        .await;
    trusts_our_keys(&provider, &gateway);
    let (alice, bob) = (sign_in(&gateway, "alice").await, sign_in(&gateway, "bob").await);
    let calls = (0..40).map(|number| call(&gateway, if number % 2 == 0 { &alice } else { &bob }));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.tool_text(), "heard");
    }
    assert_eq!(provider.exchanges(), 2);
    for (tokens, user) in [(&alice, "alice"), (&bob, "bob")] {
        assert_eq!(call(&gateway, tokens).await.status, 200);
        let token = upstream.calls().pop().unwrap().bearer().unwrap();
        let given = provider.exchanged().into_iter().find(|given| given.token == token).unwrap();
        assert_eq!((given.grant.as_str(), given.subject.as_str()), (exchanges::EXCHANGE, user));
        assert_eq!(given.actor.as_ref(), Some(&gateway.public_url));
        assert_eq!(
            (given.audience, given.resource),
            (vec!["files".into()], vec!["https://files.example".to_owned()])
        );
        assert_eq!(given.scope.as_deref(), Some("read"));
    }
    let asked = provider.requests.last_to("/token");
    assert_eq!(asked.form("subject_token_type").as_deref(), Some(exchanges::JWT));
    assert_eq!(asked.form("requested_token_type").as_deref(), Some(exchanges::ACCESS_TOKEN));
    // A program that acts for Bob is Bob there; one that acts for nobody has no token, and nobody's in its place.
    let program = async |id: &str| {
        let params =
            Params::new().with("grant_type", "client_credentials").with("resource", &gateway.url("/demo"));
        let basic = data_encoding::BASE64.encode(format!("{id}:CANARY_robot").as_bytes());
        let answer = McpRequest::to(&gateway.http, &gateway.url("/oauth/token"))
            .header("authorization", &format!("Basic {basic}"))
            .header("content-type", "application/x-www-form-urlencoded")
            .post(&params.encoded())
            .await;
        answer.json()["access_token"].as_str().unwrap_or_else(|| panic!("{}", answer.body)).to_owned()
    };
    let helper = program("helper").await;
    let answer = gateway.mcp("demo").bearer(&helper).tool("echo", json!({"message": "heard"})).await;
    assert_eq!(answer.tool_text(), "heard");
    assert_eq!(provider.exchanged().pop().unwrap().subject, "bob");
    let calls = upstream.calls().len();
    let robot = program("robot").await;
    let answer = gateway.mcp("demo").bearer(&robot).tool("echo", json!({})).await;
    assert_eq!((answer.status, upstream.calls().len()), (403, calls), "{}", answer.body);
    for token in [&held(&alice)[..], &held(&bob), &[helper.as_str(), robot.as_str()]].concat() {
        upstream.assert_never_saw(&[token]);
        assert!(!provider.requests.mention(token), "what clients hold is shown to nobody");
    }
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn brk15_05_another_type_of_token_than_was_asked_for_goes_nowhere() {
    for (requested, issued, status) in [
        (None, exchanges::JWT, 200),
        (None, exchanges::ID_TOKEN, 502),
        (None, "", 502),
        (Some(exchanges::JWT), exchanges::JWT, 200),
        (Some(exchanges::JWT), exchanges::ACCESS_TOKEN, 502),
    ] {
        let (provider, upstream) = world().await;
        provider.set(|script| script.exchanges.issued_token_type = Some(issued.into()));
        let more = requested.map_or(json!({}), |kind| json!({"requested_token_type": kind}));
        let gateway = builder(&provider, &upstream, "token_exchange", more).start().await;
        trusts_our_keys(&provider, &gateway);
        let tokens = sign_in(&gateway, "alice").await;
        let answer = call(&gateway, &tokens).await;
        assert_eq!(answer.status, status, "{issued} for {requested:?}: {}", answer.body);
        assert_eq!(upstream.calls().len(), usize::from(status == 200));
        upstream.assert_never_saw(&held(&tokens));
    }
}

#[tokio::test]
async fn the_subject_may_be_shown_as_a_grant_of_its_own() {
    let (provider, upstream) = world().await;
    let more = json!({"form": "assertion", "token_endpoint_auth_method": "client_secret_post"});
    let gateway = builder(&provider, &upstream, "token_exchange", more).start().await;
    trusts_our_keys(&provider, &gateway);
    provider.set(|script| script.exchanges.method = "client_secret_post");
    let tokens = sign_in(&gateway, "alice").await;
    assert_eq!(call(&gateway, &tokens).await.tool_text(), "heard");
    let given = provider.exchanged().remove(0);
    assert_eq!((given.grant.as_str(), given.subject.as_str()), (exchanges::JWT_BEARER, "alice"));
    let asked = provider.requests.last_to("/token");
    assert!(asked.form("assertion").is_some() && asked.form("subject_token").is_none());
    upstream.assert_never_saw(&held(&tokens));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk15_07_the_token_of_a_provider_is_renewed_before_it_is_exchanged() {
    let (provider, upstream) = world().await;
    provider.set(|script| {
        script.refreshable = true;
        script.lifetime = 2;
    });
    let more = json!({"subject_provider": "corp", "audience": "files"});
    let gateway = with_login(builder(&provider, &upstream, "token_exchange", more), &provider).start().await;
    let (_, client, tokens) = sign_in_at(&provider, &gateway).await;
    assert_eq!((provider.given(), provider.exchanges()), (1, 0));
    // Until what the provider gave is of no more use.
    tokio::time::sleep(2 * SECOND).await;
    let calls = (0..40).map(|_| call(&gateway, &tokens));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.tool_text(), "heard");
    }
    let asked = provider.requests.last_to("/token");
    assert_eq!((asked.form("subject_token").as_deref(), provider.given()), (Some("access-2"), 2));
    assert_eq!(asked.form("subject_token_type").as_deref(), Some(exchanges::ACCESS_TOKEN));
    assert_eq!((provider.exchanges(), provider.exchanged().remove(0).subject.as_str()), (1, "4711"));
    // What was exchanged outlives what it was exchanged for, and its provider's silence.
    provider.set(|script| script.down = true);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(call(&gateway, &tokens).await.tool_text(), "heard");
    provider.set(|script| script.down = false);
    // The provider does not take it any more, and renews nothing: the user has to sign in there again.
    provider.revoke();
    provider.set(|script| script.exchanges.error = Some((400, json!({"error": "invalid_grant"}))));
    upstream.take(&[]);
    let answer = call(&gateway, &tokens).await;
    assert_eq!(answer.status, 401, "{}", answer.body);
    assert!(answer.challenge("resource_metadata").is_some());
    assert_eq!(client.refresh(&tokens.refresh_token).await.error().as_deref(), Some("invalid_grant"));
    upstream.assert_never_saw(&[&held(&tokens)[..], &["access-1", "access-2"]].concat());
    let log = gateway.output.text();
    assert!(["access-1", "access-2"].iter().all(|secret| !log.contains(secret)));
    // Once they have, it goes on.
    provider.set(|script| script.exchanges.error = None);
    upstream.take(&(1..10).map(name).collect::<Vec<_>>());
    let (mut browser, signed_in) = (Browser::new(), provider.requests.count("/authorize"));
    let url = gateway.url("/login/start?provider=corp&next=/connections");
    browser.go(&url).await.page();
    let tokens = client.sign_in(&mut browser, "demo").await;
    assert!(provider.requests.count("/authorize") > signed_in);
    assert_eq!(call(&gateway, &tokens).await.tool_text(), "heard");
}

#[tokio::test]
async fn a_subject_that_is_not_taken_is_renewed_once() {
    for (code, status) in [("invalid_grant", 401), ("invalid_request", 502), ("invalid_target", 502)] {
        let (provider, upstream) = world().await;
        provider.set(|script| {
            script.refreshable = true;
            script.exchanges.error = Some((400, json!({"error": code})));
        });
        let more = json!({"subject_provider": "corp"});
        let gateway =
            with_login(builder(&provider, &upstream, "token_exchange", more), &provider).start().await;
        let (_, _, tokens) = sign_in_at(&provider, &gateway).await;
        let answer = call(&gateway, &tokens).await;
        assert_eq!((answer.status, upstream.calls().len()), (status, 0), "{code}: {}", answer.body);
        // Our own fault is nothing that another token would mend.
        let renewals = usize::from(code != "invalid_target");
        assert_eq!((provider.given(), provider.exchanges()), (1 + renewals, 1 + renewals), "{code}");
        upstream.assert_never_saw(&held(&tokens));
    }
}

#[tokio::test]
async fn callers_of_another_issuer_show_their_own_token() {
    let (provider, upstream) = world().await;
    let route = Route::to("demo", &upstream.url(), credential(&provider, "token_exchange", &json!({})));
    let gateway = Gateway::builder()
        .route(route.with("trusted_issuers", json!(["corp"])))
        .env("CLIENT_SECRET", &provider.client_secret())
        .with("trusted_issuers", json!([{"name": "corp", "issuer": provider.issuer, "allow_private": true}]))
        .start()
        .await;
    let call =
        async |token: &str| gateway.mcp("demo").bearer(token).tool("echo", json!({"message": "heard"})).await;
    let token = |sub: &str| provider.access_token(&gateway.url("/demo"), &json!({"sub": sub}));
    let (ada, eve) = (token("ada"), token("eve"));
    for token in [&ada, &eve, &ada] {
        assert_eq!(call(token).await.tool_text(), "heard");
    }
    let shown: Vec<_> = provider.exchanged().into_iter().map(|given| given.subject).collect();
    assert_eq!(shown, ["ada", "eve"]);
    let asked = provider.requests.last_to("/token");
    assert_eq!(asked.form("subject_token"), Some(eve.clone()), "byte for byte");
    assert_eq!(asked.form("subject_token_type").as_deref(), Some(exchanges::ACCESS_TOKEN));
    upstream.assert_never_saw(&[&ada, &eve]);
    assert_eq!(upstream.shown(), [name(1), name(2)]);
    // A token that is refused for what it is brings no one else's.
    provider.set(|script| script.exchanges.error = Some((400, json!({"error": "invalid_grant"}))));
    let other = token("ada");
    let answer = call(&other).await;
    assert_eq!((answer.status, upstream.shown().len()), (502, 2), "{}", answer.body);
    upstream.assert_never_saw(&[&other]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_exchanged_ends_when_its_user_signs_out() {
    let (provider, upstream) = world().await;
    provider.set(|script| script.refreshable = true);
    let more = json!({"subject_provider": "corp"});
    let mut entry = provider.entry();
    entry["logout_ends_grants"] = json!(false);
    let own = Route::to("own", &upstream.url(), credential(&provider, "token_exchange", &json!({})));
    let gateway = with_login(builder(&provider, &upstream, "token_exchange", more), &provider)
        .route(own)
        .with("login.oidc", json!([entry]))
        .start()
        .await;
    trusts_our_keys(&provider, &gateway);
    let (mut browser, client, demo) = sign_in_at(&provider, &gateway).await;
    let own = client.sign_in(&mut browser, "own").await;
    let call = async |route: &str, tokens: &Tokens| {
        gateway.mcp(route).bearer(&tokens.access_token).tool("echo", json!({"message": "heard"})).await
    };
    let both = async || {
        for (route, tokens) in [("demo", &demo), ("own", &own)] {
            assert_eq!(call(route, tokens).await.tool_text(), "heard");
        }
        provider.exchanges()
    };
    assert_eq!((both().await, both().await), (2, 2));
    // Signed out here: the client's grants stand, and what they need is exchanged anew.
    let home = browser.go(&gateway.url("/")).await.page();
    browser.submit_once(&home, &home.form_to("/logout"), &[]).await;
    eventually(SECOND, async || both().await == 4).await;
    // Signed out there.
    let mut browser = Browser::new();
    browser.go(&gateway.url("/login/start?provider=corp&next=/connections")).await.page();
    let count = both().await;
    let notice = format!("logout_token={}", provider.logout_token(&json!({"sub": "4711"})));
    let notice = McpRequest::to(&gateway.http, &gateway.url("/login/backchannel-logout"))
        .header("content-type", "application/x-www-form-urlencoded")
        .post(&notice)
        .await;
    assert_eq!(notice.status, 200);
    eventually(SECOND, async || both().await == count + 2).await;
    // Disconnected: without a connection there is nothing to exchange, whatever was exchanged before.
    let mut browser = Browser::new();
    browser.go(&gateway.url("/login/start?provider=corp&next=/connections")).await.page();
    assert_eq!(call("demo", &demo).await.status, 200);
    let page = browser.go(&gateway.url("/connections")).await.page();
    browser.submit(&page, &page.form_to("/connections/demo/disconnect"), &[]).await.page();
    eventually(SECOND, async || call("demo", &demo).await.status == 401).await;
    assert_eq!(call("own", &own).await.status, 200);
    upstream.assert_never_saw(&[held(&demo), held(&own)].concat());
}

#[tokio::test]
async fn another_sign_in_meets_nothing_of_the_one_before() {
    let (provider, upstream) = world().await;
    provider.set(|script| script.refreshable = true);
    let more = json!({"subject_provider": "corp"});
    let gateway = with_login(builder(&provider, &upstream, "token_exchange", more), &provider).start().await;
    let (_, _, tokens) = sign_in_at(&provider, &gateway).await;
    assert_eq!((call(&gateway, &tokens).await.status, provider.exchanges()), (200, 1));
    let (_, _, other) = sign_in_at(&provider, &gateway).await;
    assert_eq!((call(&gateway, &other).await.status, provider.exchanges()), (200, 2));
    eventually(SECOND, async || {
        assert_eq!(call(&gateway, &tokens).await.status, 200);
        upstream.calls().pop().unwrap().bearer() == Some(name(2))
    })
    .await;
    assert_eq!(provider.exchanges(), 2);
}

#[tokio::test]
async fn what_a_reload_changes_counts_for_the_next_call() {
    let (provider, upstream) = world().await;
    let gateway = builder(&provider, &upstream, "token_exchange", json!({"audience": "files"})).start().await;
    trusts_our_keys(&provider, &gateway);
    let tokens = sign_in(&gateway, "alice").await;
    assert_eq!(call(&gateway, &tokens).await.status, 200);
    let other = credential(&provider, "token_exchange", &json!({"audience": "mail"}));
    gateway.reconfigure("routes", json!([Route::to("demo", &upstream.url(), other).document()]));
    gateway.hang_up();
    gateway.output.shows("the configuration is in use").await;
    assert_eq!(call(&gateway, &tokens).await.status, 200);
    let audiences: Vec<_> = provider.exchanged().into_iter().flat_map(|given| given.audience).collect();
    assert_eq!(audiences, ["files", "mail"]);
}

/// The credential of a route whose tokens Entra gives on behalf of the user, with the rig in its place.
fn on_behalf(provider: &IdentityProvider, tenant: &str) -> Value {
    json!({"kind": "entra_obo", "subject_provider": "corp", "tenant": tenant, "scopes": ["api://files/.default"],
        "token_endpoint": format!("{}/{{tenant}}/oauth2/v2.0/token", provider.issuer)})
}

/// The application that signs people in is the one that asks.
async fn entra() -> (IdentityProvider, Upstream) {
    let (provider, upstream) = world().await;
    provider.set(|script| {
        script.refreshable = true;
        script.claims["tid"] = json!("7f58a0a4-3b4f-4c51-8f53-7f2d8dd5d2f1");
        script.exchanges.client = "postern".into();
        script.exchanges.secret = "of the identity provider".into();
        script.exchanges.method = "client_secret_post";
    });
    (provider, upstream)
}

#[tokio::test]
async fn brk15_06_entra_gets_exactly_its_own_form_in_the_tenant_of_the_user() {
    for (tenant, path) in [
        ("from_user", "/7f58a0a4-3b4f-4c51-8f53-7f2d8dd5d2f1/oauth2/v2.0/token"),
        ("organizations", "/organizations/oauth2/v2.0/token"),
    ] {
        let (provider, upstream) = entra().await;
        let route = Route::to("demo", &upstream.url(), on_behalf(&provider, tenant));
        let gateway = with_login(Gateway::builder().route(route), &provider).start().await;
        let (_, _, tokens) = sign_in_at(&provider, &gateway).await;
        let calls = (0..20).map(|_| call(&gateway, &tokens));
        for answer in futures_util::future::join_all(calls).await {
            assert_eq!(answer.tool_text(), "heard");
        }
        assert_eq!((provider.exchanges(), provider.requests.count(path)), (1, 1));
        let asked = provider.requests.last_to(path);
        let body = asked.text();
        let mut fields: Vec<_> = form_urlencoded::parse(body.as_bytes()).collect();
        fields.sort();
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            fields,
            [
                "assertion=access-1",
                "client_id=postern",
                "client_secret=of the identity provider",
                "grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer",
                "requested_token_use=on_behalf_of",
                "scope=api://files/.default",
            ]
        );
        assert_eq!(asked.header("authorization"), None);
        upstream.assert_never_saw(&[&held(&tokens)[..], &["access-1"]].concat());
        gateway.output.assert_no_secret();
    }
}

#[tokio::test]
async fn brk15_06_conditional_access_is_a_sign_in_at_that_provider_with_its_claims() {
    let (provider, upstream) = entra().await;
    let route = Route::to("demo", &upstream.url(), on_behalf(&provider, "from_user"));
    let gateway = with_login(Gateway::builder().route(route), &provider).start().await;
    let (mut browser, client, tokens) = sign_in_at(&provider, &gateway).await;
    let claims = r#"{"access_token":{"acrs":{"essential":true,"value":"c1"}}}"#;
    let wanted = json!({"error": "interaction_required", "error_description": "AADSTS50076: CANARY", "claims": claims});
    provider.set(|script| script.exchanges.error = Some((400, wanted)));
    for _ in 0..3 {
        let answer = call(&gateway, &tokens).await;
        assert_eq!(answer.status, 401, "{}", answer.body);
        assert!(answer.challenge("resource_metadata").is_some() && !answer.body.contains("AADSTS"));
    }
    assert_eq!((provider.exchanges(), upstream.calls().len()), (1, 0));
    // The client's next refresh fails, so that it brings the user, who is seen there about just that.
    assert_eq!(client.refresh(&tokens.refresh_token).await.error().as_deref(), Some("invalid_grant"));
    let signed_in = provider.requests.count("/authorize");
    provider.set(|script| script.exchanges.error = None);
    let tokens = client.sign_in(&mut browser, "demo").await;
    assert_eq!(provider.requests.count("/authorize"), signed_in + 1);
    assert_eq!(provider.requests.last_to("/authorize").parameter("claims").as_deref(), Some(claims));
    assert_eq!(call(&gateway, &tokens).await.tool_text(), "heard");
    // Once they were, nobody asks again.
    browser.go(&gateway.url("/login/start?provider=corp&next=/connections")).await.page();
    assert_eq!(provider.requests.last_to("/authorize").parameter("claims"), None);
    upstream.assert_never_saw(&held(&tokens));
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn a_user_whose_tenant_nobody_knows_or_trusts_is_asked_for_nowhere() {
    for tid in [json!(null), json!("../admin"), json!("a/b"), json!(7), json!("")] {
        let (provider, upstream) = entra().await;
        provider.set(|script| script.claims["tid"] = tid.clone());
        let route = Route::to("demo", &upstream.url(), on_behalf(&provider, "from_user"));
        let gateway = with_login(Gateway::builder().route(route), &provider).start().await;
        let (_, _, tokens) = sign_in_at(&provider, &gateway).await;
        let answer = call(&gateway, &tokens).await;
        assert_eq!((answer.status, provider.exchanges()), (502, 0), "{tid}: {}", answer.body);
        upstream.assert_never_saw(&held(&tokens));
    }
}

/// A provider that exchanges ID tokens for assertions, the authorization server that takes them, and an upstream behind it.
async fn enterprise() -> (IdentityProvider, IdentityProvider, Upstream) {
    let (provider, (server, upstream)) = (IdentityProvider::start().await, world().await);
    provider.set(|script| {
        script.refreshable = true;
        script.exchanges.client = "postern".into();
        script.exchanges.secret = "of the identity provider".into();
    });
    let (issuer, keys) = (provider.issuer.clone(), format!("{}/keys", provider.issuer));
    server.set(|script| {
        script.exchanges.gateway = issuer;
        script.exchanges.jwks_uri = Some(keys);
    });
    (provider, server, upstream)
}

#[tokio::test]
async fn an_id_token_becomes_an_assertion_and_that_a_token_of_the_upstreams_server() {
    let (provider, server, upstream) = enterprise().await;
    let more = json!({"subject_provider": "corp", "resource": upstream.url(), "scopes": ["files.read"]});
    let gateway = with_login(builder(&server, &upstream, "id_jag", more), &provider).start().await;
    let (_, client, tokens) = sign_in_at(&provider, &gateway).await;
    let calls = (0..40).map(|_| call(&gateway, &tokens));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.tool_text(), "heard");
    }
    assert_eq!((provider.exchanges(), server.exchanges(), upstream.shown()), (1, 1, vec![name(1)]));
    let asked = provider.requests.last_to("/token");
    assert_eq!(asked.form("requested_token_type").as_deref(), Some(exchanges::ID_JAG));
    assert_eq!(asked.form("subject_token_type").as_deref(), Some(exchanges::ID_TOKEN));
    let first = provider.exchanged().remove(0);
    assert_eq!((first.subject.as_str(), first.scope.as_deref()), ("4711", Some("files.read")));
    assert_eq!((first.audience, first.resource), (vec![server.issuer.clone()], vec![upstream.url()]));
    let second = server.exchanged().remove(0);
    assert_eq!((second.grant.as_str(), second.subject.as_str()), (exchanges::JWT_BEARER, "4711"));
    assert_eq!((second.audience.len(), second.resource.len()), (0, 0));
    let shown = server.requests.last_to("/token").form("assertion").unwrap();
    assert_eq!(shown, first.token, "the assertion, and nothing else of the user's");
    upstream.assert_never_saw(&[&held(&tokens)[..], &["access-1", shown.as_str()]].concat());
    let id_token = asked.form("subject_token").unwrap();
    assert!(!upstream.requests.mention(&id_token) && !server.requests.mention(&id_token));
    gateway.output.assert_no_secret();
    // The upstream's server takes no assertions of this provider any more: that is nobody's to mend by signing in.
    server.set(|script| script.exchanges.error = Some((400, json!({"error": "invalid_grant"}))));
    upstream.take(&[]);
    let answer = call(&gateway, &tokens).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (502, None), "{}", answer.body);
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
    upstream.assert_never_saw(&held(&tokens));
}

#[tokio::test]
async fn without_an_assertion_nobody_is_asked_for_a_token() {
    let (provider, server, upstream) = enterprise().await;
    let more = json!({"subject_provider": "corp"});
    let gateway = with_login(builder(&server, &upstream, "id_jag", more), &provider).start().await;
    let (_, _, tokens) = sign_in_at(&provider, &gateway).await;
    // An access token in place of an assertion.
    provider.set(|script| script.exchanges.more = json!({"token_type": "Bearer"}));
    assert_eq!(call(&gateway, &tokens).await.status, 502);
    assert_eq!((provider.exchanges(), server.exchanges(), upstream.calls().len()), (1, 0, 0));
    upstream.assert_never_saw(&held(&tokens));
}

/// As [`enterprise`], with an upstream whose metadata name that authorization server.
async fn enterprise_that_says_so() -> (IdentityProvider, IdentityProvider, Upstream) {
    let (provider, server, upstream) = enterprise().await;
    let issuers = vec![server.issuer.clone()];
    upstream.set(|script| script.resource_metadata.authorization_servers = Some(issuers));
    server.set(|script| script.metadata = json!({"grant_types_supported": [exchanges::JWT_BEARER]}));
    (provider, server, upstream)
}

/// A gateway that is not told who takes assertions for the upstream, and a user's tokens.
async fn untold(
    provider: &IdentityProvider,
    server: &IdentityProvider,
    upstream: &Upstream,
) -> (Gateway, Tokens) {
    untold_in(Gateway::builder(), provider, server, upstream).await
}

async fn untold_in(
    builder: Builder,
    provider: &IdentityProvider,
    server: &IdentityProvider,
    upstream: &Upstream,
) -> (Gateway, Tokens) {
    let credential = json!({"kind": "id_jag", "subject_provider": "corp", "client_id": "gateway",
        "client_secret": {"env": "CLIENT_SECRET"}, "scopes": ["files.read"]});
    let route = Route::to("demo", &upstream.url(), credential);
    let builder = builder.route(route).env("CLIENT_SECRET", &server.client_secret());
    let gateway = with_login(builder, provider).start().await;
    let (_, _, tokens) = sign_in_at(provider, &gateway).await;
    (gateway, tokens)
}

#[tokio::test]
async fn who_takes_assertions_is_what_the_upstream_says_where_nobody_writes_it() {
    let (provider, server, upstream) = enterprise_that_says_so().await;
    let (gateway, tokens) = untold(&provider, &server, &upstream).await;
    for _ in 0..3 {
        assert_eq!(call(&gateway, &tokens).await.tool_text(), "heard");
    }
    assert_eq!((provider.exchanges(), server.exchanges(), upstream.shown()), (1, 1, vec![name(1)]));
    // The assertion is for that server, and for that resource of it.
    let first = provider.exchanged().remove(0);
    assert_eq!((first.audience, first.resource), (vec![server.issuer.clone()], vec![upstream.url()]));
    let second = server.exchanged().remove(0);
    assert_eq!((second.grant.as_str(), second.subject.as_str()), (exchanges::JWT_BEARER, "4711"));
    upstream.assert_never_saw(&held(&tokens));
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn an_upstream_whose_server_takes_no_assertions_is_the_operators_to_mend() {
    for grants in [json!(["authorization_code", "refresh_token"]), json!(null)] {
        let (provider, server, upstream) = enterprise_that_says_so().await;
        server.set(|script| script.metadata = json!({"grant_types_supported": grants}));
        let (gateway, tokens) = untold(&provider, &server, &upstream).await;
        for _ in 0..2 {
            let answer = call(&gateway, &tokens).await;
            assert_eq!((answer.status, answer.header("www-authenticate")), (502, None), "{}", answer.body);
        }
        gateway.output.shows("do not list the grant urn:ietf:params:oauth:grant-type:jwt-bearer").await;
        gateway.output.shows("write credential.issuer").await;
        // No assertion was made for nobody, and nobody was shown the client's secret.
        assert_eq!(
            (provider.exchanges(), server.requests.count("/token"), upstream.shown().len()),
            (0, 0, 0)
        );
    }
}

#[tokio::test]
async fn who_takes_assertions_may_be_found_a_moment_later() {
    let (provider, server, upstream) = enterprise_that_says_so().await;
    server.set(|script| script.down = true);
    let (gateway, tokens) = untold(&provider, &server, &upstream).await;
    let answer = call(&gateway, &tokens).await;
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.body);
    assert_eq!(provider.exchanges(), 0);
    server.set(|script| script.down = false);
    eventually(15 * SECOND, async || call(&gateway, &tokens).await.status == 200).await;
    upstream.assert_never_saw(&held(&tokens));
}

#[tokio::test]
async fn an_upstream_that_sends_assertions_to_postern_itself_gets_none() {
    let (provider, server, upstream) = enterprise_that_says_so().await;
    let takes = Gateway::builder().with(
        "oauth_server",
        json!({"id_jag": {"issuers": ["corp"]}, "clients": {"static": [
        {"client_id": "gateway", "client_secret": {"env": "CLIENT_SECRET"}}]}}),
    );
    let (gateway, tokens) = untold_in(takes, &provider, &server, &upstream).await;
    let ours = vec![gateway.url("").trim_end_matches('/').to_owned()];
    upstream.set(|script| script.resource_metadata.authorization_servers = Some(ours));
    assert_eq!(call(&gateway, &tokens).await.status, 502);
    gateway.output.shows("it is Postern itself").await;
    assert_eq!((provider.exchanges(), upstream.shown().len()), (0, 0));
}
