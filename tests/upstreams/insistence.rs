//! Upstreams that are never content, and connections that may do more than a client was let in for. Nobody is sent to an
//! authorization server without end, and nobody's client gets more by way of another one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use serde_json::json;
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::gate::Gate;
use support::gateway::{Gateway, Route};
use support::mcp::{McpAnswer, McpRequest};
use support::script::{Answer, McpScript, MetadataLocation, ServerMetadata};
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

/// Alice and her client at the route `demo`.
struct Rig {
    upstream: Upstream,
    gateway: Gateway,
    client: Client,
    browser: Browser,
}

impl Rig {
    async fn with(script: impl FnOnce(&mut McpScript)) -> Self {
        let upstream = Upstream::start().await;
        upstream.set(script);
        let gateway = Gateway::before(&upstream).await;
        let client = Client::register(&gateway).await;
        Rig { upstream, gateway, client, browser: Browser::new() }
    }

    async fn sign_in(&mut self) -> Tokens {
        self.client.sign_in(&mut self.browser, "demo").await
    }

    /// Another authorization, for these scopes.
    async fn ask_for(&mut self, scope: &str) -> Tokens {
        let request = self.client.authorization("demo").with("scope", scope);
        let callback = self.browser.authorize(&self.client.redirect_uri, &request.url()).await;
        self.client.redeem(&callback.code(), &request).await.tokens()
    }

    fn call(&self, tokens: &Tokens) -> McpRequest {
        self.gateway.mcp("demo").bearer(&tokens.access_token)
    }

    async fn whoami(&self, tokens: &Tokens) -> McpAnswer {
        self.call(tokens).tool("whoami", json!({})).await
    }

    /// How often somebody was sent to the authorization server.
    fn visits(&self) -> usize {
        self.upstream.authorization.requests.count("/authorize")
    }

    fn refreshes(&self) -> usize {
        self.upstream.authorization.token_requests("refresh_token").len()
    }
}

/// The scopes of a challenge, where there is one.
fn asked_for(answer: &McpAnswer) -> Option<String> {
    answer.header("www-authenticate")?;
    answer.challenge("scope")
}

fn scopes(text: &str) -> Vec<&str> {
    let mut scopes: Vec<&str> = text.split(' ').collect();
    scopes.sort_unstable();
    scopes
}

/// A body of which too much is gone once it is refused.
fn long_call() -> String {
    let filling = "x".repeat(100 * 1024);
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {"message": filling}}})
        .to_string()
}

#[tokio::test]
async fn an_upstream_that_always_asks_for_more_is_asked_three_times_in_all() {
    let mut rig = Rig::with(|script| {
        script.challenge.scope = Some("files:read".into());
        script.answer = Answer::InsufficientScope("admin".into());
    })
    .await;
    let mut tokens = rig.sign_in().await;
    let mut challenges = 0;
    let last = loop {
        let answer = rig.whoami(&tokens).await;
        assert_eq!(answer.status, 403, "{}", answer.body);
        let Some(scope) = asked_for(&answer) else { break answer };
        challenges += 1;
        assert!(challenges < 5, "without end");
        tokens = rig.ask_for(&scope).await;
    };
    assert_eq!((rig.visits(), challenges), (3, 2));
    assert_eq!(last.header("www-authenticate"), None);
    assert!(last.body.contains("again and again"), "{}", last.body);
    // The client's refresh is not made to fail for it.
    rig.client.refresh(&tokens.refresh_token).await.tokens();
    // Something new may be asked for once more, and then nothing.
    let answer_with = |rig: &Rig, scope: &str| {
        let scope = scope.to_owned();
        rig.upstream.set(|script| script.answer = Answer::InsufficientScope(scope));
    };
    answer_with(&rig, "billing");
    let asked = asked_for(&rig.whoami(&tokens).await).unwrap();
    tokens = rig.ask_for(&asked).await;
    answer_with(&rig, "payroll");
    assert_eq!(asked_for(&rig.whoami(&tokens).await), None);
    // Who disconnects starts anew.
    let page = rig.browser.go(&rig.gateway.url("/connections")).await.page();
    rig.browser.press(&page, "Disconnect").await;
    answer_with(&rig, "admin");
    tokens = rig.sign_in().await;
    assert!(asked_for(&rig.whoami(&tokens).await).is_some());
}

#[tokio::test]
async fn an_upstream_that_refuses_every_token_gets_one_attempt_and_its_user_one_prompt() {
    let mut rig = Rig::with(|script| script.refused_generation = u32::MAX - 1).await;
    let tokens = rig.sign_in().await;
    for _ in 0..5 {
        let answer = rig.whoami(&tokens).await;
        assert_eq!(answer.status, 502, "{}", answer.body);
        assert_eq!(answer.header("www-authenticate"), None);
        assert!(answer.body.contains("ask whoever runs it"), "{}", answer.body);
    }
    assert_eq!((rig.visits(), rig.refreshes()), (1, 1));
    // Neither does the client's refresh fail for it.
    let tokens = rig.client.refresh(&tokens.refresh_token).await.tokens();
    // The user may go there again, three times in ten minutes, and then is told to wait.
    for _ in 0..2 {
        let tokens = rig.sign_in().await;
        assert_eq!(rig.whoami(&tokens).await.status, 502);
    }
    let request = rig.client.authorization("demo");
    let callback = rig.browser.authorize(&rig.client.redirect_uri, &request.url()).await;
    assert_eq!(callback.error(), Some("access_denied"), "{}", callback.url);
    assert_eq!(rig.visits(), 3);
    let page = rig.browser.go(&rig.gateway.url("/connections")).await.page();
    let page = rig.browser.press(&page, "Connect").await.page();
    assert_eq!(page.status, 429);
    assert!(page.text().contains("Please wait ten minutes"), "{}", page.text());
    // Once the upstream has come to its senses, a new connection is all it takes.
    rig.upstream.set(|script| script.refused_generation = 0);
    let page = rig.browser.go(&rig.gateway.url("/connections")).await.page();
    let page = rig.browser.press(&page, "Disconnect").await.page();
    rig.browser.press(&page, "Connect").await;
    assert_eq!(rig.whoami(&tokens).await.status, 200);
}

#[tokio::test]
async fn a_connection_that_has_served_is_no_longer_on_trial() {
    let mut rig = Rig::with(|_| {}).await;
    let tokens = rig.sign_in().await;
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    rig.upstream.set(|script| script.refused_generation = u32::MAX - 1);
    let answer = rig.whoami(&tokens).await;
    assert_eq!(answer.status, 401, "{}", answer.body);
    // And so it is with the next one.
    rig.upstream.set(|script| script.refused_generation = 0);
    let tokens = rig.sign_in().await;
    rig.upstream.set(|script| script.refused_generation = u32::MAX - 1);
    assert_eq!(rig.whoami(&tokens).await.status, 502);
}

#[tokio::test]
async fn tokens_refused_one_after_the_other_under_long_bodies_are_not_renewed_for_ever() {
    let mut rig = Rig::with(|_| {}).await;
    let tokens = rig.sign_in().await;
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    rig.upstream.set(|script| script.refused_generation = u32::MAX - 1);
    for _ in 0..6 {
        let answer = rig.call(&tokens).post(&long_call()).await;
        assert_eq!(answer.status, 401, "{}", answer.body);
    }
    assert_eq!(rig.refreshes(), 1);
}

#[tokio::test]
async fn a_client_that_was_let_in_for_less_is_asked_about_before_it_gets_more() {
    let mut rig = Rig::with(|script| {
        script.challenge.scope = Some("files:read".into());
        script.tool_scopes.insert("echo".into(), "files:write".into());
    })
    .await;
    let mut modest = rig.sign_in().await;
    assert_eq!(rig.whoami(&modest).await.status, 200);
    assert_eq!(scopes(&modest.scope), ["files:read", "mcp:access"]);
    // Another client of the same user is let in for more.
    let first = std::mem::replace(&mut rig.client, Client::register(&rig.gateway).await);
    let mut other = rig.sign_in().await;
    assert_eq!(rig.visits(), 1, "the connection is shared");
    let asked = rig.call(&other).tool("echo", json!({"message": "x"})).await.challenge("scope").unwrap();
    other = rig.ask_for(&asked).await;
    assert_eq!(rig.call(&other).tool("echo", json!({"message": "x"})).await.tool_text(), "x");
    assert_eq!(rig.visits(), 2);
    // The first one gets nothing of that, and learns what to ask its user for. Once it is at the store's word.
    let calls = rig.upstream.calls_with_token().len();
    eventually(PATIENCE, || async { rig.whoami(&modest).await.status == 403 }).await;
    let refused = rig.whoami(&modest).await;
    assert_eq!(refused.challenge("error").as_deref(), Some("insufficient_scope"));
    let needed = refused.challenge("scope").unwrap();
    assert_eq!(scopes(&needed), ["files:read", "files:write", "mcp:access"]);
    assert!(rig.upstream.calls_with_token().len() <= calls + 1, "no call of it goes there");
    // A refresh brings none of it, and so fails once.
    rig.client = first;
    let refresh = rig.client.refresh(&modest.refresh_token).await;
    assert_eq!(refresh.error().as_deref(), Some("invalid_grant"));
    // The user is asked here, and not sent anywhere.
    let request = rig.client.authorization("demo").with("scope", &needed);
    let page = rig.browser.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    assert!(page.text().contains("You are connected to demo already"), "{}", page.text());
    assert!(page.text().contains("files:write"), "{}", page.text());
    let callback = rig.browser.consent_allow(&page).await.client();
    let callback = support::client::Callback::of(&callback);
    modest = rig.client.redeem(&callback.code(), &request).await.tokens();
    assert_eq!(rig.visits(), 2);
    assert_eq!(rig.whoami(&modest).await.status, 200);
}

#[tokio::test]
async fn what_the_upstream_grants_beyond_what_was_asked_is_granted_to_who_asked() {
    let mut rig = Rig::with(|script| script.challenge.scope = Some("files:read".into())).await;
    rig.upstream.set_authorization(|script| script.granted_scopes = Some("files:read profile".into()));
    let tokens = rig.sign_in().await;
    assert_eq!(scopes(&tokens.scope), ["files:read", "mcp:access", "profile"]);
    assert_eq!(rig.whoami(&tokens).await.status, 200);
}

#[tokio::test]
async fn a_refresh_brings_no_token_that_is_good_for_nothing() {
    let mut rig = Rig::with(|script| {
        script.challenge.scope = Some("files:read".into());
        script.tool_scopes.insert("echo".into(), "files:write".into());
    })
    .await;
    let first = rig.sign_in().await;
    // Asking for less by name does not cost the connection, which a client uses whole.
    let less = rig.client.refreshment(&first.refresh_token).with("scope", "mcp:access");
    let first_client = rig.client.clone();
    let first = rig.client.token(&less).await.tokens();
    assert_eq!(scopes(&first.scope), ["files:read", "mcp:access"]);
    assert_eq!(rig.whoami(&first).await.status, 200);
    // Once the connection has outgrown the grant, every refresh fails until the user has said yes to it.
    rig.client = Client::register(&rig.gateway).await;
    let other = rig.sign_in().await;
    let asked = asked_for(&rig.call(&other).tool("echo", json!({"message": "x"})).await).unwrap();
    rig.ask_for(&asked).await;
    rig.client = first_client;
    for _ in 0..3 {
        let refresh = rig.client.refresh(&first.refresh_token).await;
        assert_eq!(refresh.error().as_deref(), Some("invalid_grant"));
    }
    let tokens = rig.sign_in().await;
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    rig.client.refresh(&tokens.refresh_token).await.tokens();
    // And with the connection it shrinks again.
    let page = rig.browser.go(&rig.gateway.url("/connections")).await.page();
    rig.browser.press(&page, "Disconnect").await;
    rig.client.refresh(&first.refresh_token).await.tokens();
}

#[tokio::test]
async fn an_upstream_cannot_hand_out_what_the_operator_keeps_for_single_tools() {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.challenge.scope = Some("files:read files:delete".into()));
    upstream.set_authorization(|script| script.granted_scopes = Some("files:read files:delete more".into()));
    let route = Route::oauth("demo", &upstream).with("tool_scopes", json!({"echo": ["files:delete"]}));
    let gateway = Gateway::builder().route(route).start().await;
    let client = Client::register(&gateway).await;
    let mut rig = Rig { upstream, gateway, client, browser: Browser::new() };
    let tokens = rig.sign_in().await;
    assert_eq!(scopes(&tokens.scope), ["files:read", "mcp:access", "more"]);
    assert_eq!(rig.whoami(&tokens).await.status, 200, "and the connection serves all the same");
    let refused = rig.call(&tokens).tool("echo", json!({"message": "x"})).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    let tokens = rig.ask_for("mcp:access files:delete").await;
    assert_eq!(rig.call(&tokens).tool("echo", json!({"message": "x"})).await.tool_text(), "x");
}

#[tokio::test]
async fn an_upstream_that_wants_a_token_of_nobody_is_its_operators_matter() {
    let mut rig = Rig::with(|script| {
        script.resource_metadata.location = MetadataLocation::Nowhere;
        script.challenge.with_metadata = false;
    })
    .await;
    rig.upstream.set_authorization(|script| {
        script.metadata = ServerMetadata::Nowhere;
        script.registration = None;
    });
    let tokens = rig.sign_in().await;
    assert_eq!(rig.visits(), 0);
    for _ in 0..2 {
        let answer = rig.whoami(&tokens).await;
        assert_eq!(answer.status, 502, "{}", answer.body);
        assert!(answer.body.contains("does not say who gives one"), "{}", answer.body);
        assert_eq!(answer.header("www-authenticate"), None);
    }
    rig.gateway.output.shows("publishes no authorization server").await;
    let told = |line: &String| line.contains("publishes no authorization server");
    assert_eq!(rig.gateway.logs().iter().filter(|line| told(line)).count(), 1);
    // Whoever comes next is told before, and not sent looking for anybody.
    let looked = rig.upstream.requests.all().len();
    let request = rig.client.authorization("demo");
    let page = rig.browser.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    assert!(page.text().contains("does not say who gives one"), "{}", page.text());
    assert_eq!(rig.upstream.requests.all().len(), looked);
}

#[tokio::test]
async fn a_late_refusal_says_nothing_of_the_token_that_is_there_by_now() {
    let mut rig = Rig::with(|_| {}).await;
    let tokens = rig.sign_in().await;
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    let first = std::mem::replace(&mut rig.client, Client::register(&rig.gateway).await);
    let other = rig.sign_in().await;
    assert_eq!(rig.whoami(&other).await.status, 200);
    // Refused under a long body, so that a newer one is fetched for calls to come.
    rig.upstream.refuse_current_tokens();
    assert_eq!(rig.call(&tokens).post(&long_call()).await.status, 401);
    eventually(PATIENCE, || async { rig.refreshes() == 1 }).await;
    // While the next one is under way with that, it is refused and replaced as well.
    let gate = Gate::shut();
    rig.upstream.set(|script| script.gate = Some(gate.clone()));
    let call = rig.call(&tokens);
    let late = tokio::spawn(async move { call.post(&long_call()).await });
    gate.wait_for(1, PATIENCE).await;
    rig.upstream.set(|script| script.gate = None);
    rig.upstream.refuse_current_tokens();
    assert_eq!(rig.whoami(&other).await.status, 200);
    assert_eq!(rig.refreshes(), 2);
    rig.upstream.answer_next(Answer::InvalidToken);
    gate.open();
    assert_eq!(late.await.unwrap().status, 401);
    // That client's refresh is not made to fail for it, and its next call goes through.
    let tokens = first.refresh(&tokens.refresh_token).await.tokens();
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    assert_eq!(rig.visits(), 1);
}
