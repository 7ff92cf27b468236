//! What was found wanting at an auth broker that is a peer of Postern, line by line: each test has the number of its line. What
//! is about tokens that are exchanged stands in `exchange.rs`, what is about a store for several in `broker_redis.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::{Duration, SystemTime};

use reqwest::Url;
use serde_json::{Value, json};
use support::browser::{Browser, Page};
use support::client::{Callback, Client, Tokens};
use support::cluster::Cluster;
use support::cookies::Site;
use support::gateway::{Gateway, Route};
use support::identity::IdentityProvider;
use support::identity::exchange::name;
use support::mcp::{McpAnswer, McpRequest};
use support::params::pkce_challenge;
use support::process::run;
use support::raw::exchange;
use support::redis::Redis;
use support::script::{Consent, TokenFault};
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// Somebody who has let a client in at the route `demo`, and is connected there as `there-…`.
struct Person {
    client: Client,
    browser: Browser,
    tokens: Tokens,
}

impl Person {
    async fn of(user: &str, gateway: &Gateway, upstream: &Upstream) -> Self {
        upstream.set_authorization(|script| script.user = format!("there-{user}"));
        let (client, mut browser) = (Client::register(gateway).await, Browser::of(user).through(gateway));
        let tokens = client.sign_in(&mut browser, "demo").await;
        Person { client, browser, tokens }
    }

    fn call(&self, gateway: &Gateway) -> McpRequest {
        gateway.mcp("demo").bearer(&self.tokens.access_token)
    }

    fn held(&self) -> [&str; 2] {
        [&self.tokens.access_token, &self.tokens.refresh_token]
    }

    async fn disconnect(&mut self, gateway: &Gateway) {
        let page = self.browser.go(&gateway.url("/connections")).await.page();
        self.browser.submit(&page, &page.form_to("/connections/demo/disconnect"), &[]).await.page();
    }
}

async fn whoami(call: &McpRequest) -> McpAnswer {
    call.tool("whoami", json!({})).await
}

/// Which of the upstream's tokens a call arrived with: 1 is the first.
#[track_caller]
fn generation(answer: &McpAnswer) -> u64 {
    answer.result()["structuredContent"]["generation"].as_u64().unwrap()
}

/// In a session whose client has these capabilities.
async fn in_session(call: McpRequest, capabilities: Value) -> McpRequest {
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": capabilities,
        "clientInfo": {"name": "t", "version": "1"}});
    let begun = call.call("initialize", params).await;
    let session = begun.header("mcp-session-id").unwrap_or_else(|| panic!("{}", begun.body)).to_owned();
    call.header("mcp-session-id", &session)
}

/// What sends the browser back from the upstream, before it gets here.
async fn answer_of(gateway: &Gateway, client: &Client, browser: &mut Browser) -> Url {
    let callback = gateway.url("/oauth/upstream/callback");
    browser.authorize_or_stop(&callback, &client.authorization("demo").url()).await.client()
}

async fn come_back(browser: &mut Browser, client: &Client, answer: &Url) -> Page {
    browser.stop_before(&client.redirect_uri);
    browser.go(answer.as_str()).await.page()
}

fn with_state(answer: &Url, state: &str) -> Url {
    let mut url = answer.clone();
    url.set_query(Some(&Callback::of(answer).params.with("state", state).encoded()));
    url
}

#[tokio::test]
async fn brk15_01_a_call_names_the_page_where_its_user_connects_and_then_goes_through_as_them() {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.sessions = true);
    let gateway = Gateway::before(&upstream).await;
    let mut people = Vec::new();
    for user in ["alice", "bob"] {
        let mut person = Person::of(user, &gateway, &upstream).await;
        person.disconnect(&gateway).await;
        eventually(SECOND, async || whoami(&person.call(&gateway)).await.status == 401).await;
        let failed = whoami(&person.call(&gateway)).await;
        let metadata = failed.challenge("resource_metadata").unwrap();
        assert!(metadata.starts_with(&gateway.public_url), "{metadata}");
        person.tokens = person.client.sign_in(&mut person.browser, "demo").await;
        let call = in_session(person.call(&gateway), json!({"elicitation": {"url": {}}})).await;
        assert_eq!(whoami(&call).await.tool_text(), format!("there-{user}"));
        people.push((user, person, call));
    }
    // Clients that open URLs are given one, and nobody signs in there anew.
    upstream.authorization.revoke_everything();
    upstream.refuse_current_tokens();
    for (user, person, call) in &mut people {
        upstream.set_authorization(|script| script.user = format!("there-{user}"));
        let failed = whoami(call).await.json()["error"].take();
        assert_eq!(failed["code"], -32042, "{failed}");
        let url = failed["data"]["elicitations"][0]["url"].as_str().unwrap();
        assert!(url.starts_with(&gateway.url("/connections/demo?")), "{url}");
        let page = person.browser.go(url).await.page();
        let page = person.browser.press(&page, "Connect").await.page();
        assert!(page.text().contains("go back to your application"), "{}", page.text());
    }
    for (user, person, call) in &people {
        assert_eq!(whoami(call).await.tool_text(), format!("there-{user}"));
        upstream.assert_never_saw(&person.held());
    }
}

#[tokio::test]
async fn brk15_02_an_answer_of_the_upstream_counts_for_who_asked_in_the_browser_that_asked() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let client = Client::register(&gateway).await;
    let mut mallory = Browser::of("bob");
    let answer = answer_of(&gateway, &client, &mut mallory).await;
    // Lured there: somebody else who is signed in, somebody who is not, and the one who asked, in another browser.
    for (mut browser, is_signed_in) in
        [(Browser::of("alice"), true), (Browser::new(), false), (Browser::of("bob"), true)]
    {
        if is_signed_in {
            browser.go_to_consent(&client.redirect_uri, &client.authorization("demo").url()).await;
        }
        let page = come_back(&mut browser, &client, &answer).await;
        assert_eq!(page.status, 403, "{}", page.text());
        if is_signed_in {
            let page = browser.go(&gateway.url("/connections")).await.page();
            assert!(page.text().contains("Not connected"), "nothing was kept: {}", page.text());
        }
    }
    assert_eq!(upstream.authorization.requests.count("/token"), 0);
    mallory.stop_before(&client.redirect_uri);
    assert!(Callback::of(&mallory.go(answer.as_str()).await.client()).error().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk15_03_a_way_there_has_its_own_proof_counts_once_and_ends_at_any_instance() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let mut cluster = Cluster::start(2, &redis, &upstream).await;
    let client = Client::register(&cluster.instances[0]).await;
    let mut browser = Browser::new().through(&cluster.instances[0]);
    let answer = answer_of(&cluster.instances[0], &client, &mut browser).await;
    let asked = upstream.authorization.requests.last_to("/authorize");
    assert_eq!(asked.parameter("code_challenge_method").as_deref(), Some("S256"));
    // It outlives the one that began it.
    cluster.instances[0].restart().await;
    browser = browser.through(&cluster.instances[1]);
    let state = Callback::of(&answer).state().unwrap().to_owned();
    for unknown in ["never-issued", "", &state.to_uppercase()] {
        let page = come_back(&mut browser, &client, &with_state(&answer, unknown)).await;
        assert_eq!(page.status, 400, "{}", page.text());
    }
    assert_eq!(upstream.authorization.requests.count("/token"), 0);
    let arrival = browser.go(answer.as_str()).await.client();
    assert!(Callback::of(&arrival).error().is_none(), "{arrival}");
    let redeemed = upstream.authorization.token_requests("authorization_code").pop().unwrap();
    let verifier = redeemed.form("code_verifier").unwrap();
    assert_eq!(asked.parameter("code_challenge"), Some(pkce_challenge(&verifier)));
    for instance in &cluster.instances {
        browser = browser.through(instance);
        assert_eq!(come_back(&mut browser, &client, &answer).await.status, 400, "it has been used");
    }
    assert_eq!(upstream.authorization.requests.count("/token"), 1);
}

#[tokio::test]
async fn brk15_04_the_resource_is_named_in_authorization_redemption_and_refresh() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let alice = Person::of("alice", &gateway, &upstream).await;
    upstream.refuse_current_tokens();
    assert_eq!(generation(&whoami(&alice.call(&gateway)).await), 2);
    let server = &upstream.authorization;
    assert_eq!(server.requests.last_to("/authorize").parameter("resource"), Some(upstream.url()));
    for grant in ["authorization_code", "refresh_token"] {
        let sent = server.token_requests(grant);
        assert_eq!((sent.len(), sent[0].form_values("resource")), (1, vec![upstream.url()]), "{grant}");
    }
}

#[tokio::test]
async fn brk15_08_a_failed_renewal_serves_what_is_still_good_and_nobody_borrows() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let mut bob = Person::of("bob", &gateway, &upstream).await;
    upstream.set_authorization(|script| script.access_token_lifetime = 6 * SECOND);
    let alice = Person::of("alice", &gateway, &upstream).await;
    bob.disconnect(&gateway).await;
    eventually(SECOND, async || whoami(&bob.call(&gateway)).await.status == 401).await;
    upstream.set_authorization(|script| script.token_fault = Some(TokenFault::answer(503, &[], "")));
    let tried = || upstream.authorization.token_requests("refresh_token").len();
    eventually(6 * SECOND, async || {
        assert_eq!(generation(&whoami(&alice.call(&gateway)).await), 1);
        tried() > 0
    })
    .await;
    let answer = whoami(&alice.call(&gateway)).await;
    assert_eq!((answer.tool_text(), generation(&answer)), ("there-alice".into(), 1));
    assert_eq!(whoami(&bob.call(&gateway)).await.status, 401, "what she has is nothing to him");
    // An outage is no end: the connection is there when the server is.
    eventually(8 * SECOND, async || whoami(&alice.call(&gateway)).await.status == 503).await;
    upstream.set_authorization(|script| script.token_fault = None);
    eventually(PATIENCE, async || whoami(&alice.call(&gateway)).await.status == 200).await;
}

/// The events of the request that was answered so, once there is one.
async fn events(gateway: &Gateway, answer: &McpAnswer, event: &str) -> Vec<Value> {
    let id = answer.header("x-request-id").unwrap();
    let mut found = gateway.output.records();
    found.retain(|line| line["event"] == event && line["request_id"] == id);
    found
}

async fn told(gateway: &Gateway, answer: &McpAnswer, event: &str) -> Vec<Value> {
    eventually(PATIENCE, async || !events(gateway, answer, event).await.is_empty()).await;
    events(gateway, answer, event).await
}

#[tokio::test]
async fn brk15_10_rules_decide_before_a_credential_is_released() {
    let upstream = Upstream::start().await;
    let rules = json!({"default": "allow", "call": [{"name": "no-echo", "deny": "mcp.tool == 'echo'"}]});
    let gateway =
        Gateway::builder().route(Route::oauth("demo", &upstream).with("policy", rules)).start().await;
    let alice = Person::of("alice", &gateway, &upstream).await;
    let sent = upstream.calls_with_token().len();
    let denied = alice.call(&gateway).tool("echo", json!({"message": "x"})).await;
    let decided = told(&gateway, &denied, "policy_decided").await.remove(0);
    assert_eq!((&decided["outcome"], &decided["by"]), (&json!("denied"), &json!("rule no-echo")));
    let allowed = whoami(&alice.call(&gateway)).await;
    assert_eq!(told(&gateway, &allowed, "credential").await.len(), 1);
    assert_eq!(events(&gateway, &denied, "credential").await, [] as [Value; 0], "nobody asked for one");
    assert_eq!(upstream.calls_with_token().len(), sent + 1);
}

#[tokio::test]
async fn brk15_11_the_credential_takes_the_place_of_what_came_in_under_its_name() {
    let upstream = Upstream::open().await;
    let credential =
        json!({"kind": "header", "name": "X-Api-Key", "format": "key={value};v=1", "value": {"env": "KEY"}});
    let gateway = Gateway::builder()
        .route(Route::to("demo", &upstream.url(), credential))
        .env("KEY", "CANARY_ours")
        .start()
        .await;
    let alice = Person::of("alice", &gateway, &upstream).await;
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let request = format!(
        "POST /demo HTTP/1.1\r\nhost: {}\r\nAUTHORIZATION: bEARER {}\r\nX-API-KEY: CANARY_theirs\r\nx-api-key: CANARY_second\r\n\
         X-aPi-KeY: CANARY_third\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\n\
         content-length: {}\r\n\r\n{body}",
        gateway.address,
        alice.tokens.access_token,
        body.len()
    );
    assert_eq!(exchange(gateway.address, request, PATIENCE).await.unwrap().status, 200);
    let sent = upstream.calls().pop().unwrap();
    let values: Vec<_> = sent.headers.get_all("x-api-key").iter().collect();
    assert_eq!(values, ["key=CANARY_ours;v=1"]);
    assert_eq!(sent.header("authorization"), None);
    upstream.assert_never_saw(&alice.held());
    gateway.output.assert_no_secret();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk15_12_brk35_18_a_session_is_its_users_under_load_and_over_new_tokens() {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.sessions = true);
    let gateway = Gateway::before(&upstream).await;
    let (alice, bob) =
        (Person::of("alice", &gateway, &upstream).await, Person::of("bob", &gateway, &upstream).await);
    let hers = in_session(alice.call(&gateway), json!({})).await;
    let his = in_session(bob.call(&gateway), json!({})).await;
    let calls = (0..80).map(async |number| {
        let (call, user) = if number % 2 == 0 { (&hers, "there-alice") } else { (&his, "there-bob") };
        assert_eq!(whoami(call).await.tool_text(), user);
    });
    futures_util::future::join_all(calls).await;
    // Her session is nothing to him, and the upstream hears nothing of it.
    let sent = upstream.calls().len();
    let stolen = hers.clone().bearer(&bob.tokens.access_token);
    assert_eq!((whoami(&stolen).await.status, stolen.delete().await.status), (404, 404));
    assert_eq!(upstream.calls().len(), sent);
    // It is hers with the next of her tokens, and with the next of the upstream's.
    let next = alice.client.refresh(&alice.tokens.refresh_token).await.tokens();
    upstream.refuse_current_tokens();
    let answer = whoami(&hers.clone().bearer(&next.access_token)).await;
    assert_eq!((answer.tool_text(), generation(&answer)), ("there-alice".into(), 2));
}

/// What a script on our own origin does.
async fn api(gateway: &Gateway, browser: &Browser, method: &str, path: &str) -> (u16, Value) {
    let url = gateway.url("/").parse().unwrap();
    let cookie = browser.jar.header(&url, method, Site::Origin, SystemTime::now()).unwrap();
    let call = async |method: &str, path: &str, csrf: &str| {
        let url = gateway.url(&format!("/api/v1/connections{path}"));
        let call = gateway.http.request(method.parse().unwrap(), url).header("cookie", &cookie);
        let call = call.header("sec-fetch-site", "same-origin").header("content-type", "application/json");
        let answer = McpAnswer::of(call.header("x-csrf-token", csrf).send().await.unwrap()).await;
        assert!(!answer.body.contains("CANARY"), "no secret: {}", answer.body);
        (answer.status, answer.json())
    };
    let (_, list) = call("GET", "", "").await;
    call(method, path, list["csrf"].as_str().unwrap_or_default()).await
}

#[tokio::test]
async fn brk15_14_connections_are_listed_made_and_ended_as_json_and_on_the_command_line() {
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::before(&upstream).await;
    let alice = Person::of("alice", &gateway, &upstream).await;
    let state = async |gateway: &Gateway| {
        let (status, list) = api(gateway, &alice.browser, "GET", "").await;
        assert_eq!(status, 200, "{list}");
        list["connections"][0]["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state(&gateway).await, "connected");
    upstream.refuse_current_tokens();
    upstream.set_authorization(|script| script.token_fault = Some(TokenFault::answer(503, &[], "")));
    assert_eq!(whoami(&alice.call(&gateway)).await.status, 503);
    assert_eq!(state(&gateway).await, "unavailable");
    upstream.set_authorization(|script| script.token_fault = Some(TokenFault::error("invalid_grant")));
    eventually(PATIENCE, async || whoami(&alice.call(&gateway)).await.status == 401).await;
    assert_eq!(state(&gateway).await, "needs_sign_in");
    upstream.set_authorization(|script| script.token_fault = None);
    let (status, _) = api(&gateway, &alice.browser, "DELETE", "/demo").await;
    assert!((200..300).contains(&status), "{status}");
    assert_eq!(state(&gateway).await, "not_connected");
    let (_, way) = api(&gateway, &alice.browser, "POST", "/demo/connect").await;
    let mut browser = alice.browser;
    let page = browser.go(way["authorization_url"].as_str().unwrap()).await.page();
    assert!(page.text().contains("go back to your application"), "{}", page.text());

    if std::env::var_os("POSTERN_TEST_STORE").is_none() {
        // One process at a time has the embedded store.
        gateway.stop().await;
    }
    let file = gateway.config_file();
    let connections = async |more: &[&str]| {
        let arguments = [&["connections"], more, &["--config", file.to_str().unwrap()]].concat();
        let ended = run(&arguments, &[]).await;
        assert_eq!(ended.code, Some(0), "{more:?}: {}", ended.stderr);
        assert!(!ended.stdout.contains("CANARY"), "{}", ended.stdout);
        ended.stdout
    };
    let listed = connections(&["list"]).await;
    assert!(listed.lines().any(|line| line.starts_with("alice\tdemo\tconnected")), "{listed}");
    connections(&["disconnect", "--user", "alice", "--route", "demo"]).await;
    let listed = connections(&["list"]).await;
    assert!(!listed.contains("alice\tdemo\tconnected"), "{listed}");
}

#[tokio::test]
async fn brk15_15_who_disconnects_is_disconnected_there_too_where_that_can_be_said() {
    for says_where in [true, false] {
        let upstream = Upstream::start().await;
        if !says_where {
            upstream.set_authorization(|script| script.metadata_patch = json!({"revocation_endpoint": null}));
        }
        let gateway = Gateway::before(&upstream).await;
        let mut alice = Person::of("alice", &gateway, &upstream).await;
        alice.disconnect(&gateway).await;
        let told = upstream.authorization.requests.to("/revoke");
        let kept = upstream.authorization.ledger(|ledger| ledger.refresh.keys().cloned().collect::<Vec<_>>());
        let tokens: Vec<_> = told.iter().filter_map(|sent| sent.form("token")).collect();
        assert_eq!(tokens, if says_where { kept } else { vec![] });
        eventually(SECOND, async || whoami(&alice.call(&gateway)).await.status == 401).await;
    }
}

#[tokio::test]
async fn brk15_16_words_of_the_upstreams_server_reach_neither_the_client_nor_the_log() {
    let said = json!({"error": "CANARY_code", "error_description": "CANARY_words", "error_uri": "https://CANARY.example"});
    let fault = TokenFault::answer(400, &[("content-type", "application/json")], &said.to_string());
    for (consent, fault) in [(Consent::Deny("CANARY_denied".into()), None), (Consent::Approve, Some(fault))] {
        let upstream = Upstream::start().await;
        let gateway = Gateway::before(&upstream).await;
        upstream.set_authorization(|script| (script.consent, script.token_fault) = (consent, fault));
        let (client, mut browser) = (Client::register(&gateway).await, Browser::new());
        let url = client.authorization("demo").url();
        let callback = browser.authorize(&client.redirect_uri, &url).await;
        let known = ["access_denied", "server_error", "temporarily_unavailable"];
        assert!(callback.error().is_some_and(|error| known.contains(&error)), "{}", callback.url);
        assert!(!callback.url.as_str().contains("CANARY"), "{}", callback.url);
        gateway.output.assert_no_secret();
    }
}

#[tokio::test]
async fn brk15_17_each_way_to_a_credential_is_told_with_the_request_and_without_a_secret() {
    let (provider, upstream, own) =
        (IdentityProvider::start().await, Upstream::start().await, Upstream::start().await);
    own.take(&[name(1)]);
    let credential = json!({"kind": "client_credentials", "issuer": provider.issuer, "client_id": "gateway",
        "client_secret": {"env": "CLIENT_SECRET"}});
    let gateway = Gateway::builder()
        .route(Route::oauth("demo", &upstream))
        .route(Route::to("own", &own.url(), credential))
        .env("CLIENT_SECRET", &provider.client_secret())
        .start()
        .await;
    let mut alice = Person::of("alice", &gateway, &upstream).await;
    let tokens = alice.client.sign_in(&mut alice.browser, "own").await;
    let fields = [
        "timestamp",
        "level",
        "target",
        "message",
        "event",
        "act",
        "outcome",
        "reason",
        "strategy",
        "user",
        "client",
        "route",
        "request_id",
    ];
    let expect = async |answer: McpAnswer, act: &str, outcome: &str| {
        let event = told(&gateway, &answer, "credential").await.pop().unwrap();
        assert_eq!((&event["act"], &event["outcome"]), (&json!(act), &json!(outcome)), "{event}");
        for (name, value) in event.as_object().unwrap() {
            assert!(fields.contains(&name.as_str()), "{name}");
            assert!(value.as_str().is_none_or(|value| !value.contains("CANARY")), "{name}");
        }
    };
    let acquired =
        gateway.mcp("own").bearer(&tokens.access_token).tool("echo", json!({"message": "x"})).await;
    expect(acquired, "acquire", "ok").await;
    expect(whoami(&alice.call(&gateway)).await, "inject", "ok").await;
    upstream.refuse_current_tokens();
    let renewed = whoami(&alice.call(&gateway)).await;
    eventually(PATIENCE, async || events(&gateway, &renewed, "credential").await.len() == 2).await;
    expect(renewed, "refresh", "ok").await;
    upstream.authorization.revoke_everything();
    upstream.refuse_current_tokens();
    let ended = whoami(&alice.call(&gateway)).await;
    eventually(PATIENCE, async || events(&gateway, &ended, "credential").await.len() == 2).await;
    expect(ended, "connect", "failed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brk15_18_what_speaks_no_http_is_refused_and_without_the_store_nothing_is_sent() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    for (key, value) in [("upstream.url", json!("stdio:server")), ("upstream.command", json!(["server"]))] {
        let gateway = Gateway::builder().route(Route::oauth("demo", &upstream).with(key, value)).prepare();
        let file = gateway.config_file();
        let ended = run(&["run", "--config", file.to_str().unwrap()], &[]).await;
        assert_eq!(ended.code, Some(78), "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("routes[0].{key}: ")), "{}", ended.stderr);
    }
    let mut cluster = Cluster::start(1, &redis, &upstream).await;
    let alice = Person::of("alice", &cluster.instances[0], &upstream).await;
    redis.kill();
    cluster.instances[0].restart_unready().await;
    let sent = upstream.requests.all().len();
    assert_eq!(whoami(&alice.call(&cluster.instances[0])).await.status, 503);
    assert_eq!(upstream.requests.all().len(), sent);
}

#[tokio::test]
async fn brk15_19_each_wrong_key_is_named_and_all_of_them_at_once() {
    let upstream = Upstream::open().await;
    let exchange = json!({"kind": "token_exchange", "client_id": "us", "client_secret": {"env": "KEY"}});
    let refused = async |wrong: &[(Value, &str)]| {
        let routes = wrong.iter().enumerate().map(|(number, (credential, _))| {
            Route::to(&format!("r{number}"), &upstream.url(), credential.clone())
        });
        let gateway = routes.fold(Gateway::builder(), support::gateway::Builder::route).prepare();
        let file = gateway.config_file();
        let ended = run(&["validate", "--config", file.to_str().unwrap()], &[("KEY", "x")]).await;
        assert_eq!(ended.code, Some(78), "{}", ended.stderr);
        for (number, (_, key)) in wrong.iter().enumerate() {
            let expected = format!(": routes[{number}].credential.{key}: ");
            assert!(ended.stderr.contains(&expected), "{expected}: {}", ended.stderr);
        }
    };
    refused(&[
        (exchange, "token_endpoint"),
        (json!({"kind": "header", "value": {"env": "KEY"}}), "name"),
        (json!({"kind": "oauth", "client_id": ""}), "client_id"),
        (json!({"kind": "upstream_inject"}), "provider"),
    ])
    .await;
    refused(&[(json!({"kind": "magic"}), "kind")]).await;
    refused(&[(json!({"kind": "oauth", "clientid": "us"}), "clientid")]).await;
}

#[tokio::test]
async fn brk15_20_our_address_is_the_configured_one_whatever_a_request_says() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let forged = gateway
        .mcp("demo")
        .header("x-forwarded-host", "evil.example")
        .header("x-forwarded-proto", "https")
        .header("forwarded", "host=evil.example;proto=https");
    let challenged = whoami(&forged).await;
    let metadata = challenged.challenge("resource_metadata").unwrap();
    assert!(metadata.starts_with(&gateway.public_url), "{metadata}");
    // The first request of all says where we are, and is not believed.
    let (client, mut browser) = (Client::register(&gateway).await, Browser::new());
    for host in ["evil.example", "evil.example:443"] {
        let request = format!("GET /connections HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = exchange(gateway.address, request, PATIENCE).await.unwrap();
        assert_eq!(answer.status, 421);
        assert!(answer.headers.iter().all(|(_, value)| !value.contains("evil.example")));
    }
    client.sign_in(&mut browser, "demo").await;
    let sent = upstream.authorization.requests.last_to("/authorize").parameter("redirect_uri").unwrap();
    assert!(sent.starts_with(&gateway.url("/oauth/upstream/callback")), "{sent}");
    assert!(!upstream.requests.mention("evil.example"));
}
