//! Staying connected: tokens are renewed once for all callers, ahead of their end or when the upstream refuses one;
//! an outage costs nobody a connection, a dead grant brings the user back, and only the user's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::json;
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::gate::Gate;
use support::gateway::{Gateway, PASSWORD_HASH, Route};
use support::ledger::IssuedRefresh;
use support::mcp::{McpAnswer, McpRequest};
use support::script::{Answer, AuthorizationScript, TokenFault};
use support::server::Server;
use support::upstream::Upstream;
use support::{PATIENCE, eventually, secret};

/// Alice is connected at the route `demo`.
struct Connected {
    upstream: Upstream,
    gateway: Gateway,
    client: Client,
    browser: Browser,
    tokens: Tokens,
}

impl Connected {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(script: impl FnOnce(&mut AuthorizationScript)) -> Self {
        let upstream = Upstream::start().await;
        upstream.set_authorization(script);
        Self::at(upstream).await
    }

    async fn at(upstream: Upstream) -> Self {
        let gateway = Gateway::before(&upstream).await;
        let client = Client::register(&gateway).await;
        let mut browser = Browser::new();
        let tokens = client.sign_in(&mut browser, "demo").await;
        Connected { upstream, gateway, client, browser, tokens }
    }

    fn call(&self) -> McpRequest {
        self.gateway.mcp("demo").bearer(&self.tokens.access_token)
    }

    async fn whoami(&self) -> McpAnswer {
        self.call().tool("whoami", json!({})).await
    }

    /// Which of the upstream's tokens a call arrives with: 1 is the first.
    async fn generation(&self) -> u64 {
        generation(&self.whoami().await)
    }

    fn fault(&self, fault: TokenFault) {
        self.upstream.set_authorization(|script| script.token_faults.push_back(fault));
    }

    fn refreshes_tried(&self) -> usize {
        self.upstream.authorization.token_requests("refresh_token").len()
    }

    async fn connect_again(&mut self) -> Tokens {
        self.client.sign_in(&mut self.browser, "demo").await
    }
}

#[track_caller]
fn generation(answer: &McpAnswer) -> u64 {
    answer.result()["structuredContent"]["generation"].as_u64().unwrap_or_else(|| panic!("{}", answer.body))
}

/// Asserts the challenge that leads the client back to Postern.
#[track_caller]
fn assert_asks_for_the_user(gateway: &Gateway, answer: &McpAnswer) {
    assert_eq!(answer.status, 401, "{}", answer.body);
    assert_eq!(answer.challenge("error").as_deref(), Some("invalid_token"));
    let metadata = answer.challenge("resource_metadata").unwrap();
    assert!(metadata.starts_with(&gateway.public_url), "{metadata}");
}

/// A long body that a server can tell from any other.
fn body_of(length: usize) -> String {
    let head =
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":""#;
    let tail = r#""}}}"#;
    let filling: String = ('a'..='z').cycle().take(length - head.len() - tail.len()).collect();
    format!("{head}{filling}{tail}")
}

#[tokio::test]
async fn sr_r01_a_thousand_callers_at_the_end_of_a_token_cause_one_refresh_and_no_error() {
    let rig = Connected::with(|script| script.access_token_lifetime = Duration::from_secs(2)).await;
    // Not the first any more, where it took long to come here.
    let current = rig.generation().await;
    let refreshes = || (rig.upstream.authorization.refreshes(), rig.refreshes_tried());
    let (done, tried) = refreshes();
    // No call comes while it could be renewed ahead: all of them find it ended.
    let end = Instant::now() + Duration::from_secs(2);
    tokio::time::sleep_until(end.into()).await;
    // The next one outlives the lot of them.
    rig.upstream.set_authorization(|script| script.access_token_lifetime = Duration::from_secs(3600));
    let calls: Vec<_> = (0..1000)
        .map(|_| {
            let call = rig.call();
            tokio::spawn(async move { call.tool("whoami", json!({})).await })
        })
        .collect();
    let mut seen = HashSet::new();
    for call in calls {
        seen.insert(generation(&call.await.unwrap()));
    }
    assert_eq!(refreshes(), (done + 1, tried + 1));
    assert_eq!(seen, HashSet::from([current + 1]));
}

#[tokio::test]
async fn sr_f20_fifty_callers_whose_token_is_refused_cause_one_refresh() {
    let rig = Connected::new().await;
    rig.upstream.refuse_current_tokens();
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let call = rig.call();
            tokio::spawn(async move { call.tool("whoami", json!({})).await })
        })
        .collect();
    for call in calls {
        assert_eq!(generation(&call.await.unwrap()), 2);
    }
    assert_eq!(rig.refreshes_tried(), 1);
}

#[tokio::test]
async fn sr_r02_a_token_is_renewed_ahead_of_its_end_and_nobody_waits() {
    let rig = Connected::with(|script| script.access_token_lifetime = Duration::from_secs(3)).await;
    let gate = Gate::shut();
    rig.upstream.set_authorization(|script| script.token_gate = Some(gate.clone()));
    let begun = Instant::now();
    // The authorization server holds the refresh; calls go on with the token they have.
    eventually(PATIENCE, || async {
        assert_eq!(rig.generation().await, 1);
        gate.waiting() == 1
    })
    .await;
    for _ in 0..3 {
        assert_eq!(rig.generation().await, 1);
    }
    assert_eq!(gate.waiting(), 1, "one refresh for all of them");
    assert!(begun.elapsed() < Duration::from_secs(3), "before its end");
    gate.open();
    eventually(PATIENCE, || async { rig.generation().await == 2 }).await;
    assert_eq!(rig.refreshes_tried(), 1);
}

#[tokio::test]
async fn tokens_of_two_seconds_are_used_without_a_gap() {
    let rig = Connected::with(|script| script.access_token_lifetime = Duration::from_secs(2)).await;
    let begun = Instant::now();
    let mut newest = 0;
    while newest < 3 {
        let answer = rig.whoami().await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        newest = generation(&answer);
        assert!(begun.elapsed() < PATIENCE);
    }
    assert!(rig.upstream.calls_with_token().len() > 10);
    assert_eq!(rig.upstream.authorization.refreshes(), 2);
}

#[tokio::test]
async fn a_refused_token_is_renewed_once_and_the_request_replayed_byte_for_byte() {
    for length in [200, 64 * 1024] {
        let rig = Connected::new().await;
        rig.upstream.refuse_current_tokens();
        let body = body_of(length);
        assert_eq!(body.len(), length);
        let answer = rig.call().post(&body).await;
        assert_eq!(generation(&answer), 2);
        assert_eq!(answer.result()["structuredContent"]["body"], body);
        let calls = rig.upstream.calls_with_token();
        assert_eq!(calls.len(), 2, "{length}");
        assert_ne!(calls[0].bearer(), calls[1].bearer());
        for call in &calls {
            assert_eq!(call.body, body.as_bytes());
        }
        assert_eq!(rig.refreshes_tried(), 1);
        assert_eq!(rig.generation().await, 2, "and kept");
    }
}

#[tokio::test]
async fn what_is_sent_again_goes_on_a_connection_of_its_own() {
    let (rig, gate) = (Connected::new().await, Gate::shut());
    rig.upstream.set(|script| script.gate = Some(gate.clone()));
    let opening = async {
        gate.wait_for(2, PATIENCE).await;
        gate.open();
    };
    tokio::join!(rig.whoami(), rig.whoami(), opening);
    let on = || rig.upstream.calls_with_token().iter().map(|call| call.connection).collect::<Vec<u64>>();
    let resting = on();
    assert_ne!(resting[0], resting[1]);
    rig.upstream.refuse_current_tokens();
    assert_eq!(rig.generation().await, 2);
    let [.., refused, again] = on()[..] else { panic!("nothing was sent again") };
    assert!(resting.contains(&refused));
    assert!(!resting.contains(&again), "{again} may be at its end as well");
}

#[tokio::test]
async fn a_request_too_long_to_replay_is_challenged_and_works_when_repeated() {
    let mut rig = Connected::new().await;
    for length in [64 * 1024 + 1, 200 * 1024] {
        let before = rig.generation().await;
        rig.upstream.refuse_current_tokens();
        let answer = rig.call().post(&body_of(length)).await;
        assert_asks_for_the_user(&rig.gateway, &answer);
        // The client refreshes at Postern, as the SDKs do after a 401, and tries again.
        rig.tokens = rig.client.refresh(&rig.tokens.refresh_token).await.tokens();
        let body = body_of(length);
        let answer = rig.call().post(&body).await;
        assert_eq!(generation(&answer), before + 1);
        assert_eq!(answer.result()["structuredContent"]["body"], body);
    }
    assert_eq!(rig.refreshes_tried(), 2);
}

#[tokio::test]
async fn a_get_and_a_delete_are_replayed_as_well() {
    let rig = Connected::new().await;
    for method in ["GET", "DELETE"] {
        rig.upstream.refuse_current_tokens();
        let ok = Answer::http(200, &[("content-type", "application/json")], "{}");
        rig.upstream.answer_next(ok);
        assert_eq!(rig.call().send(method, None).await.status().as_u16(), 200, "{method}");
    }
    assert_eq!(rig.refreshes_tried(), 2);
}

#[tokio::test]
async fn pom_b1_a_token_refused_right_after_its_refresh_is_never_used_again() {
    let mut rig = Connected::new().await;
    assert_eq!(rig.generation().await, 1);
    let before = rig.upstream.calls_with_token().len();
    rig.upstream.set(|script| script.refused_generation = u32::MAX - 1);
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    let used = rig.upstream.calls_with_token().len();
    assert_eq!((used - before, rig.refreshes_tried()), (2, 1));
    // Not even when the upstream would take it again, and not after a restart.
    rig.upstream.set(|script| script.refused_generation = 0);
    for _ in 0..3 {
        assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    }
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    assert_eq!(rig.upstream.calls_with_token().len(), used);
    assert_eq!(rig.refreshes_tried(), 1);
    rig.tokens = rig.connect_again().await;
    assert_eq!(rig.generation().await, 1, "a new authorization at the upstream");
}

#[tokio::test]
async fn without_a_refresh_token_the_end_of_the_token_brings_the_user_back() {
    let mut rig = Connected::with(|script| {
        script.issues_refresh_tokens = false;
        script.access_token_lifetime = Duration::from_secs(1);
    })
    .await;
    eventually(PATIENCE, || async { rig.whoami().await.status == 401 }).await;
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    assert_eq!(rig.refreshes_tried(), 0);
    rig.upstream.set_authorization(|script| script.access_token_lifetime = Duration::from_secs(60));
    rig.tokens = rig.connect_again().await;
    assert_eq!(rig.whoami().await.status, 200);
}

#[tokio::test]
async fn without_a_lifetime_a_token_is_used_until_it_is_refused() {
    let rig = Connected::with(|script| script.announces_lifetime = false).await;
    assert_eq!(rig.generation().await, 1);
    rig.upstream.authorization.expire_access_tokens();
    assert_eq!(rig.generation().await, 2);
    assert_eq!(rig.refreshes_tried(), 1);
}

#[tokio::test]
async fn a_refresh_token_stays_where_the_server_does_not_rotate() {
    let mut rig = Connected::with(|script| script.rotates = false).await;
    for generation in 2..5 {
        rig.upstream.refuse_current_tokens();
        assert_eq!(rig.generation().await, generation);
    }
    rig.gateway.restart().await;
    rig.upstream.refuse_current_tokens();
    assert_eq!(rig.generation().await, 5);
    let used: HashSet<_> = rig
        .upstream
        .authorization
        .token_requests("refresh_token")
        .iter()
        .map(|request| request.form("refresh_token").unwrap())
        .collect();
    assert_eq!(used.len(), 1);
}

#[tokio::test]
async fn a_dead_grant_brings_the_user_back_and_only_this_one() {
    let mut rig = Connected::new().await;
    let bob = rig.client.sign_in(&mut Browser::of("bob"), "demo").await;
    rig.upstream.authorization.ledger(|ledger| ledger.families[0].dead = true);
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    assert_eq!(rig.refreshes_tried(), 1, "a dead refresh token is not tried again");
    let call = rig.gateway.mcp("demo").bearer(&bob.access_token);
    assert_eq!(generation(&call.tool("whoami", json!({})).await), 1);
    rig.tokens = rig.connect_again().await;
    assert_eq!(rig.generation().await, 1);
}

/// What an authorization server in trouble answers, and whether that may have used the refresh token up.
fn outages() -> Vec<(&'static str, TokenFault)> {
    let answer = TokenFault::answer;
    let json = [("content-type", "application/json")];
    let html = [("content-type", "text/html")];
    vec![
        ("r429", answer(429, &[("retry-after", "1")], "slow down")),
        ("r500", answer(500, &html, "<h1>oops</h1>")),
        ("r502", answer(502, &json, r#"{"error":"invalid_grant"}"#)),
        ("r503", answer(503, &[("retry-after", "1")], "")),
        ("blocked", answer(403, &html, "<h1>blocked by firewall</h1>")),
        ("page", answer(400, &html, "<h1>invalid_grant</h1>")),
        ("empty", answer(200, &json, "{}")),
        ("garbage", answer(200, &json, r#"{"access_token":"CANARY_x"#)),
        ("busy", answer(400, &json, r#"{"error":"temporarily_unavailable"}"#)),
        ("servererror", answer(400, &json, r#"{"error":"server_error"}"#)),
        ("hangup", TokenFault::Hangup),
        ("half", TokenFault::HalfAnswer),
        ("lost", TokenFault::LoseAnswer),
    ]
}

#[tokio::test]
async fn sr_r07_an_outage_of_the_authorization_server_costs_no_connection() {
    let mut gateway = Gateway::builder();
    let mut upstreams = Vec::new();
    for (name, _) in outages() {
        let upstream = Upstream::start().await;
        upstream.set_authorization(|script| {
            script.access_token_lifetime = Duration::from_secs(1);
            // An answer that is lost may have used a rotating token up; that is not for this test.
            script.rotates = false;
        });
        gateway = gateway.route(Route::oauth(name, &upstream));
        upstreams.push(upstream);
    }
    let gateway = gateway.start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    let mut cases = Vec::new();
    for ((name, fault), upstream) in outages().into_iter().zip(&upstreams) {
        // From the first refresh on.
        let tokens = client.sign_in(&mut browser, name).await;
        upstream.set_authorization(|script| script.token_fault = Some(fault));
        cases.push((name, upstream, tokens));
    }
    let walks: Vec<_> = cases
        .into_iter()
        .map(|(name, upstream, tokens)| outage(&gateway, &client, name, upstream, tokens))
        .collect();
    for walk in futures(walks).await {
        walk.unwrap_or_else(|error| panic!("{error}"));
    }
    gateway.output.assert_no_secret();
}

/// Polls all of them on this task until each is done.
async fn futures<T>(walks: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut walks: Vec<_> = walks.into_iter().map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|context| {
        walks.retain_mut(|walk| match walk.as_mut().poll(context) {
            std::task::Poll::Ready(value) => {
                done.push(value);
                false
            }
            std::task::Poll::Pending => true,
        });
        if walks.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done
}

async fn outage(
    gateway: &Gateway,
    client: &Client,
    name: &str,
    upstream: &Upstream,
    tokens: Tokens,
) -> Result<(), String> {
    let call = async || {
        let call = gateway.mcp(name).bearer(&tokens.access_token);
        call.tool("whoami", json!({})).await
    };
    // While the token lives it is used; after its end we say when to come back. Nothing else happens.
    let begun = Instant::now();
    let later = loop {
        let answer = call().await;
        match answer.status {
            200 => {}
            503 => break answer,
            status => return Err(format!("{name}: {status} {}", answer.body)),
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{name}: never ended"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let wait: u64 = later
        .header("retry-after")
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| format!("{name}: no Retry-After"))?;
    if !(1..=300).contains(&wait) || later.header("www-authenticate").is_some() {
        return Err(format!("{name}: {:?}", later.headers));
    }
    // The client's own refresh is not made to fail by it.
    let renewed = client.refresh(&tokens.refresh_token).await;
    if renewed.status() != 200 {
        return Err(format!("{name}: {}", renewed.0.body));
    }
    let tried = upstream.authorization.token_requests("refresh_token").len();
    upstream.set_authorization(|script| script.token_fault = None);
    let tokens = renewed.tokens();
    eventually(PATIENCE, || async {
        let call = gateway.mcp(name).bearer(&tokens.access_token);
        let answer = call.tool("whoami", json!({})).await;
        assert!(matches!(answer.status, 200 | 503), "{name}: {} {}", answer.status, answer.body);
        answer.status == 200
    })
    .await;
    if tried > 3 {
        return Err(format!("{name}: {tried} tries while it was down"));
    }
    match upstream.authorization.codes_redeemed() {
        1 => Ok(()),
        codes => Err(format!("{name}: {codes} authorizations")),
    }
}

#[tokio::test]
async fn an_authorization_server_that_is_gone_or_silent_costs_no_connection() {
    let server = support::authorization_server::AuthorizationServer::start().await;
    server.set(|script| script.access_token_lifetime = Duration::from_secs(1));
    let rig = Connected::at(Upstream::relying_on(&server).await).await;
    server.stop();
    eventually(PATIENCE, || async {
        let answer = rig.whoami().await;
        assert!(matches!(answer.status, 200 | 503), "{} {}", answer.status, answer.body);
        answer.status == 503
    })
    .await;
    let answer = rig.whoami().await;
    assert!(answer.header("retry-after").is_some() && answer.header("www-authenticate").is_none());
    server.resume().await;
    eventually(PATIENCE, || async {
        let answer = rig.whoami().await;
        assert!(matches!(answer.status, 200 | 503), "{} {}", answer.status, answer.body);
        answer.status == 200
    })
    .await;
}

#[tokio::test]
async fn an_outage_met_through_a_refused_token_is_503_too() {
    let rig = Connected::new().await;
    rig.fault(TokenFault::answer(503, &[("retry-after", "1")], ""));
    rig.upstream.refuse_current_tokens();
    let before = rig.upstream.calls_with_token().len();
    for _ in 0..5 {
        let answer = rig.whoami().await;
        assert_eq!(answer.status, 503, "{}", answer.body);
        assert!(answer.header("retry-after").is_some());
    }
    // What was refused once is not tried again, nor is the server asked again before its time.
    assert_eq!(rig.upstream.calls_with_token().len(), before + 1);
    assert_eq!(rig.refreshes_tried(), 1);
    eventually(PATIENCE, || async { rig.whoami().await.status == 200 }).await;
    assert_eq!(rig.upstream.authorization.codes_redeemed(), 1);
}

#[tokio::test]
async fn a_refused_token_is_not_sent_again_after_a_restart_that_found_no_newer_one() {
    let mut rig = Connected::new().await;
    rig.upstream.set_authorization(|script| {
        script.token_fault = Some(TokenFault::answer(503, &[("retry-after", "1")], ""));
    });
    rig.upstream.refuse_current_tokens();
    assert_eq!(rig.whoami().await.status, 503);
    let used = rig.upstream.calls_with_token().len();
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    // The upstream would take it by now; nobody asks.
    rig.upstream.set(|script| script.refused_generation = 0);
    for _ in 0..3 {
        assert_eq!(rig.whoami().await.status, 503);
    }
    assert_eq!(rig.upstream.calls_with_token().len(), used);
    rig.upstream.set_authorization(|script| script.token_fault = None);
    eventually(PATIENCE, || async { rig.whoami().await.status == 200 }).await;
    assert_eq!(rig.generation().await, 2);
}

#[tokio::test]
async fn pom_b9_a_client_that_the_server_has_forgotten_registers_again_with_its_user() {
    let mut rig = Connected::new().await;
    rig.upstream.authorization.ledger(|ledger| ledger.clients.clear());
    rig.upstream.refuse_current_tokens();
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    assert_eq!(rig.refreshes_tried(), 1);
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    assert_eq!(rig.refreshes_tried(), 1, "not asked again and again");
    // The next authorization is one as a client that the server knows.
    assert_eq!(rig.upstream.authorization.registrations(), 1);
    let tokens = rig.connect_again().await;
    assert_eq!(rig.upstream.authorization.registrations(), 2);
    rig.tokens = tokens;
    assert_eq!(rig.whoami().await.status, 200);
    // One that has forgotten it between question and code costs one more try.
    let client = Client::register(&rig.gateway).await;
    rig.upstream
        .set_authorization(|script| script.token_faults.push_back(TokenFault::error("invalid_client")));
    let mut bob = Browser::of("bob");
    let request = client.authorization("demo");
    let told = bob.authorize(&client.redirect_uri, &request.url()).await;
    assert_eq!(told.error(), Some("server_error"));
    let tokens = client.sign_in(&mut bob, "demo").await;
    assert_eq!(rig.upstream.authorization.registrations(), 3);
    let answer = rig.gateway.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_configured_client_that_the_server_refuses_keeps_its_users() {
    let upstream = Upstream::start().await;
    let known = support::ledger::RegisteredClient {
        id: "our id".into(),
        method: "none".into(),
        ..Default::default()
    };
    upstream.authorization.ledger(|ledger| ledger.clients.insert("our id".into(), known));
    let route = Route::oauth("demo", &upstream).with("credential.client_id", json!("our id"));
    let gateway = Gateway::builder().route(route).start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    let tokens = client.sign_in(&mut browser, "demo").await;
    let rig = Connected { upstream, gateway, client, browser, tokens };
    rig.fault(TokenFault::error("invalid_client"));
    rig.upstream.refuse_current_tokens();
    let answer = rig.whoami().await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    let tried = rig.refreshes_tried();
    rig.whoami().await;
    assert_eq!(rig.refreshes_tried(), tried, "not asked again and again");
}

#[tokio::test]
async fn sr_t22_the_token_endpoint_cannot_send_credentials_elsewhere() {
    let elsewhere = Server::start(|_, _| async { axum::response::Response::default() }).await;
    let target = format!("http://{}/token", elsewhere.address);
    for status in [301, 302, 303, 307, 308] {
        let rig = Connected::new().await;
        rig.fault(TokenFault::answer(status, &[("location", target.as_str())], ""));
        rig.upstream.refuse_current_tokens();
        let answer = rig.whoami().await;
        assert_eq!(answer.status, 503, "{status}: {}", answer.body);
        assert_eq!(rig.refreshes_tried(), 1);
    }
    assert_eq!(elsewhere.connections_opened(), 0);
}

#[tokio::test]
async fn sr_t40_an_access_token_that_no_header_can_carry_costs_not_the_refresh_token() {
    let unfit = [
        "CANARY_a\r\nx-injected: 1".to_owned(),
        "CANARY_a b".into(),
        "CANARY_\u{0}".into(),
        "CANARY_ü".into(),
        "C".repeat(20 * 1024),
        String::new(),
    ];
    let rig = Connected::new().await;
    let answers = unfit
        .iter()
        .map(|token| json!({"access_token": token, "token_type": "Bearer"}))
        .chain([json!({"access_token": "CANARY_mac", "token_type": "mac"})]);
    for mut answer in answers {
        let next = secret("upstream_rt");
        answer["refresh_token"] = next.clone().into();
        let issued = IssuedRefresh { family: 0, spent: false, uses: 0, answer: None };
        rig.upstream.authorization.ledger(|ledger| ledger.refresh.insert(next.clone(), issued));
        let json = [("content-type", "application/json")];
        rig.fault(TokenFault::answer(200, &json, &answer.to_string()));
        rig.upstream.refuse_current_tokens();
        rig.upstream.requests.clear();
        let first = rig.whoami().await;
        assert!(matches!(first.status, 200 | 503), "{} {}", first.status, first.body);
        eventually(PATIENCE, || async { rig.whoami().await.status == 200 }).await;
        assert_eq!(rig.upstream.authorization.uses_of(&next), 1, "{answer}");
        for call in rig.upstream.calls() {
            assert_eq!(call.header("x-injected"), None);
            let token = call.bearer().unwrap();
            assert!(token.starts_with("CANARY_upstream_at"), "{token}");
        }
    }
    assert_eq!(rig.upstream.authorization.codes_redeemed(), 1);
}

#[tokio::test]
async fn sr_t70_strange_lifetimes_neither_lock_out_nor_last_for_ever() {
    let rig = Connected::new().await;
    for lifetime in [json!(0), json!(-1), json!("3600"), json!(1e300), json!("soon"), json!(null), json!({})]
    {
        let token = secret("upstream_at");
        let next = secret("upstream_rt");
        rig.upstream.set(|script| script.extra_tokens = vec![token.clone()]);
        let issued = IssuedRefresh { family: 0, spent: false, uses: 0, answer: None };
        rig.upstream.authorization.ledger(|ledger| ledger.refresh.insert(next.clone(), issued));
        let answer = json!({
            "access_token": token, "refresh_token": next, "token_type": "bearer", "expires_in": lifetime,
        });
        let json = [("content-type", "application/json")];
        rig.fault(TokenFault::answer(200, &json, &answer.to_string()));
        rig.upstream.refuse_current_tokens();
        let answer = rig.whoami().await;
        assert_eq!(answer.status, 200, "{lifetime}: {}", answer.body);
        // Back to a token of the ledger, so that the next one can be refused.
        rig.upstream.set(|script| script.extra_tokens.clear());
        eventually(PATIENCE, || async { rig.whoami().await.status == 200 }).await;
    }
}

#[tokio::test]
async fn sr_as_40_while_the_user_is_wanted_the_clients_refresh_fails_once_and_uses_nothing_up() {
    let mut rig = Connected::new().await;
    rig.upstream.authorization.revoke_everything();
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    let refresh_token = rig.tokens.refresh_token.clone();
    let refused = rig.client.refresh(&refresh_token).await;
    assert_eq!((refused.status(), refused.error().as_deref()), (400, Some("invalid_grant")));
    // Once per challenge: a client that does not take the hint is not locked out.
    rig.tokens = rig.client.refresh(&refresh_token).await.tokens();
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);

    rig.connect_again().await;
    assert_eq!(rig.generation().await, 1);
    // A new challenge, and now the client does bring the user.
    rig.upstream.authorization.revoke_everything();
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    let refresh_token = rig.tokens.refresh_token.clone();
    let refused = rig.client.refresh(&refresh_token).await;
    assert_eq!(refused.error().as_deref(), Some("invalid_grant"));
    let fresh = rig.connect_again().await;
    // Both the new grant and the old one go on; the refresh token that failed is as good as before.
    rig.tokens = rig.client.refresh(&refresh_token).await.tokens();
    assert_eq!(rig.generation().await, 1);
    rig.tokens = fresh;
    assert_eq!(rig.generation().await, 1);
}

#[tokio::test]
async fn a_grant_that_dies_unseen_still_fails_the_clients_next_refresh() {
    // The refresh ahead of the end finds out; no call meets a challenge of the upstream.
    let rig = Connected::with(|script| script.access_token_lifetime = Duration::from_secs(2)).await;
    rig.upstream.set_authorization(|script| script.token_fault = Some(TokenFault::error("invalid_grant")));
    eventually(PATIENCE, || async { rig.whoami().await.status == 401 }).await;
    let refused = rig.client.refresh(&rig.tokens.refresh_token).await;
    assert_eq!(refused.error().as_deref(), Some("invalid_grant"));
    rig.client.refresh(&rig.tokens.refresh_token).await.tokens();
}

#[tokio::test]
async fn every_client_of_the_user_is_told_that_the_user_is_wanted() {
    let mut rig = Connected::new().await;
    let (idle, other) = (Client::register(&rig.gateway).await, Client::register(&rig.gateway).await);
    let idle_tokens = idle.sign_in(&mut rig.browser, "demo").await;
    let tokens = other.sign_in(&mut rig.browser, "demo").await;
    rig.upstream.authorization.revoke_everything();
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    // Met by a call of its own, after the connection was found dead by somebody else's.
    let call = rig.gateway.mcp("demo").bearer(&tokens.access_token);
    assert_asks_for_the_user(&rig.gateway, &call.tool("whoami", json!({})).await);
    let refused = other.refresh(&tokens.refresh_token).await;
    assert_eq!(refused.error().as_deref(), Some("invalid_grant"));
    // One that has not called is left alone.
    idle.refresh(&idle_tokens.refresh_token).await.tokens();
}

#[tokio::test]
async fn a_challenge_that_was_answered_meanwhile_no_longer_fails_the_refresh() {
    let mut rig = Connected::new().await;
    rig.upstream.authorization.revoke_everything();
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    let other = Client::register(&rig.gateway).await;
    other.sign_in(&mut rig.browser, "demo").await;
    rig.tokens = rig.client.refresh(&rig.tokens.refresh_token).await.tokens();
    assert_eq!(rig.generation().await, 1);
}

#[tokio::test]
async fn the_challenge_of_one_grant_does_not_fail_the_refresh_of_another() {
    let rig = Connected::new().await;
    let bob = rig.client.sign_in(&mut Browser::of("bob"), "demo").await;
    rig.upstream.authorization.ledger(|ledger| ledger.families[0].dead = true);
    assert_asks_for_the_user(&rig.gateway, &rig.whoami().await);
    rig.client.refresh(&bob.refresh_token).await.tokens();
}

#[tokio::test]
async fn sr_rs_13_a_step_up_is_asked_for_here_and_fetched_there() {
    let upstream = Upstream::start().await;
    upstream.set(|script| {
        script.challenge.scope = Some("files:read".into());
        script.tool_scopes.insert("echo".into(), "files:write".into());
    });
    let mut rig = Connected::at(upstream).await;
    assert_eq!(rig.whoami().await.status, 200);
    let refused = rig.call().tool("echo", json!({})).await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.challenge("error").as_deref(), Some("insufficient_scope"));
    let metadata = refused.challenge("resource_metadata").unwrap();
    assert!(metadata.starts_with(&rig.gateway.public_url), "{metadata}");
    let scope = refused.challenge("scope").unwrap();
    let named: HashSet<_> = scope.split(' ').collect();
    assert_eq!(
        named,
        HashSet::from(["mcp:access", "files:read", "files:write"]),
        "what it has and what it lacks"
    );
    assert_eq!(rig.refreshes_tried(), 0, "a refresh would not help");
    assert_eq!(rig.whoami().await.status, 200, "what was allowed still is");

    let request = rig.client.authorization("demo").with("scope", &scope);
    let callback = rig.browser.authorize(&rig.client.redirect_uri, &request.url()).await;
    let asked = rig.upstream.authorization.requests.last_to("/authorize").parameter("scope");
    assert_eq!(asked.as_deref(), Some("files:read files:write"), "the union");
    rig.tokens = rig.client.redeem(&callback.code(), &request).await.tokens();
    assert!(rig.tokens.scope.split(' ').any(|scope| scope == "files:write"), "{}", rig.tokens.scope);
    assert_eq!(rig.call().tool("echo", json!({"message": "written"})).await.tool_text(), "written");
    assert_eq!(rig.whoami().await.status, 200);
    // Somebody who signs in for less later does not lose what the connection has.
    rig.tokens = rig.connect_again().await;
    assert_eq!(rig.call().tool("echo", json!({"message": "still"})).await.tool_text(), "still");
}

#[tokio::test]
async fn a_call_that_goes_through_after_a_restart_settles_the_challenge() {
    let upstream = Upstream::start().await;
    upstream.set(|script| drop(script.tool_scopes.insert("echo".into(), "files:write".into())));
    let mut rig = Connected::at(upstream).await;
    assert_eq!(rig.call().tool("echo", json!({})).await.status, 403);
    rig.gateway.restart().await;
    assert_eq!(rig.whoami().await.status, 200);
    rig.tokens = rig.client.refresh(&rig.tokens.refresh_token).await.tokens();
    assert_eq!(rig.whoami().await.status, 200);
}

#[tokio::test]
async fn sr_cl_14_a_step_up_is_not_lost_in_a_refresh() {
    let upstream = Upstream::start().await;
    upstream.set(|script| {
        script.challenge.scope = Some("files:read".into());
        script.tool_scopes.insert("echo".into(), "files:write".into());
    });
    let mut rig = Connected::at(upstream).await;
    assert_eq!(rig.call().tool("echo", json!({})).await.status, 403);
    // TypeScript SDK 1.x refreshes first.
    let refused = rig.client.refresh(&rig.tokens.refresh_token).await;
    assert_eq!(refused.error().as_deref(), Some("invalid_grant"));
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    rig.connect_again().await;
    let asked = rig.upstream.authorization.requests.last_to("/authorize").parameter("scope");
    assert_eq!(asked.as_deref(), Some("files:read files:write"));
}

#[tokio::test]
async fn sr_t68_a_refresh_in_flight_does_not_undo_a_new_authorization() {
    let mut rig = Connected::new().await;
    // The connection counts as good, so a challenge is needed for the user to be sent there again.
    rig.upstream.answer_next(Answer::InsufficientScope(String::new()));
    assert_eq!(rig.whoami().await.status, 403);
    let gate = Gate::shut();
    rig.upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
    rig.upstream.refuse_current_tokens();
    let call = rig.call();
    let late = tokio::spawn(async move { call.tool("whoami", json!({})).await });
    gate.wait_for(1, PATIENCE).await;
    // Meanwhile the user connects anew, as somebody else, for another client.
    rig.upstream.set_authorization(|script| {
        script.token_answer_gate = None;
        script.user = "new-user".into();
    });
    rig.upstream.set(|script| script.refused_generation = 0);
    let stored = rig.upstream.authorization.codes_redeemed();
    rig.tokens = rig.connect_again().await;
    assert_eq!(rig.upstream.authorization.codes_redeemed(), stored + 1);
    assert_eq!(rig.whoami().await.tool_text(), "new-user");
    gate.open();
    let late = late.await.unwrap();
    assert_eq!(late.tool_text(), "new-user", "the late caller gets what counts now");
    assert_eq!(rig.whoami().await.tool_text(), "new-user");
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    assert_eq!(rig.whoami().await.tool_text(), "new-user");
}

#[tokio::test]
async fn pom_b15_a_caller_who_leaves_does_not_lose_the_answer() {
    let rig = Connected::new().await;
    let gate = Gate::shut();
    rig.upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
    rig.upstream.refuse_current_tokens();
    let call = rig.call();
    let leaving = tokio::spawn(async move { call.tool("whoami", json!({})).await });
    gate.wait_for(1, PATIENCE).await;
    leaving.abort();
    assert!(leaving.await.unwrap_err().is_cancelled());
    gate.open();
    eventually(PATIENCE, || async { rig.whoami().await.status == 200 }).await;
    assert_eq!(rig.generation().await, 2);
    assert_eq!(rig.refreshes_tried(), 1, "the rotated token was kept");
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_refresh_waits_for_its_answer() {
    let mut rig = Connected::new().await;
    let gate = Gate::shut();
    rig.upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
    rig.upstream.refuse_current_tokens();
    let call = rig.call();
    let caller = tokio::spawn(async move { call.try_post().await });
    gate.wait_for(1, PATIENCE).await;
    rig.gateway.terminate();
    gate.open();
    assert!(rig.gateway.wait_exit(PATIENCE).await.success());
    let _ = caller.await;
    rig.gateway.restart().await;
    assert_eq!(rig.generation().await, 2);
    assert_eq!(rig.refreshes_tried(), 1, "nothing was redeemed twice");
}

#[tokio::test]
async fn sr_r04_a_crash_in_the_middle_of_a_refresh_costs_no_connection() {
    // A server that does not rotate forgives a lost answer.
    let mut rig = Connected::with(|script| {
        script.rotates = false;
        script.access_token_lifetime = Duration::from_secs(3);
    })
    .await;
    let gate = Gate::shut();
    rig.upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
    eventually(PATIENCE, || async {
        assert_eq!(rig.whoami().await.status, 200);
        gate.waiting() == 1
    })
    .await;
    rig.gateway.kill9().await;
    gate.open();
    rig.gateway.restart().await;
    // Nobody waits for the lease of a process that is gone.
    eventually(Duration::from_secs(5), || async {
        let answer = rig.whoami().await;
        assert!(matches!(answer.status, 200 | 503), "{} {}", answer.status, answer.body);
        answer.status == 200 && generation(&answer) > 1
    })
    .await;
    assert_eq!(rig.upstream.authorization.codes_redeemed(), 1);
}

trait TryPost {
    async fn try_post(&self) -> Option<u16>;
}

impl TryPost for McpRequest {
    async fn try_post(&self) -> Option<u16> {
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        let answer = self.try_send("POST", Some(body)).await.ok()?;
        Some(answer.status().as_u16())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_f17_an_authorization_server_gets_no_more_than_it_can_bear_and_nobody_is_lost() {
    const USERS: usize = 40;
    let upstream = Upstream::start().await;
    let users: Vec<_> = (0..USERS)
        .map(|number| json!({"username": format!("user{number}"), "password_hash": PASSWORD_HASH}))
        .collect();
    let gateway = Gateway::builder()
        .route(Route::oauth("demo", &upstream))
        .with("login.local.users", json!(users))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let mut all = Vec::new();
    for number in 0..USERS {
        all.push(client.sign_in(&mut Browser::of(&format!("user{number}")), "demo").await);
    }
    let gate = Gate::shut();
    upstream.set_authorization(|script| script.token_gate = Some(gate.clone()));
    upstream.refuse_current_tokens();
    let calls: Vec<_> = all
        .iter()
        .map(|tokens| {
            let call = gateway.mcp("demo").bearer(&tokens.access_token);
            tokio::spawn(async move { generation(&call.tool("whoami", json!({})).await) })
        })
        .collect();
    gate.wait_for(32, PATIENCE).await;
    assert_eq!(gate.waiting(), 32, "the others wait in line");
    // One at a time leaves, and one more comes.
    gate.let_pass(1);
    eventually(PATIENCE, || async { upstream.authorization.refreshes() == 1 && gate.waiting() == 32 }).await;
    gate.open();
    for call in calls {
        assert_eq!(call.await.unwrap(), 2);
    }
    assert_eq!(upstream.authorization.refreshes() as usize, USERS);
}
