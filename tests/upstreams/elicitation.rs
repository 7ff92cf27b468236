//! Clients that open URLs for servers (MCP, URL mode elicitation): where a call needs its user, they are led to a page of
//! ours, connect there, and the very call goes through when it is repeated; nobody signs in at the client anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::gateway::Gateway;
use support::mcp::{McpAnswer, McpRequest};
use support::script::Answer;
use support::upstream::Upstream;

/// Alice is connected at the route `demo`, and her client is signed in.
struct Rig {
    upstream: Upstream,
    gateway: Gateway,
    client: Client,
    browser: Browser,
    tokens: Tokens,
}

/// What a client says that opens URLs.
fn urls() -> Value {
    json!({"elicitation": {"url": {}}})
}

impl Rig {
    async fn new() -> Self {
        let upstream = Upstream::start().await;
        upstream.set(|script| script.sessions = true);
        let gateway = Gateway::before(&upstream).await;
        let client = Client::register(&gateway).await;
        let mut browser = Browser::new();
        let tokens = client.sign_in(&mut browser, "demo").await;
        Rig { upstream, gateway, client, browser, tokens }
    }

    fn request(&self) -> McpRequest {
        self.gateway.mcp("demo").bearer(&self.tokens.access_token)
    }

    /// In a session of 2025-11-25 that began with these capabilities.
    async fn in_session(&self, capabilities: Value) -> McpRequest {
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": {"name": "t", "version": "1"}});
        let begun = self.request().call("initialize", params).await;
        assert_eq!(begun.status, 200, "{}", begun.body);
        self.request().header("mcp-session-id", begun.header("mcp-session-id").unwrap())
    }

    /// A call of 2026-07-28, whose client has these capabilities.
    async fn call_of_2026(&self, capabilities: Value, more: Value) -> McpAnswer {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": capabilities,
            "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        });
        let mut params = json!({"name": "whoami", "arguments": {}, "_meta": meta});
        support::script::apply(&mut params, &more);
        let request = self.request().header("mcp-protocol-version", "2026-07-28");
        request
            .header("mcp-method", "tools/call")
            .header("mcp-name", "whoami")
            .call("tools/call", params)
            .await
    }

    fn lose_connection(&self) {
        self.upstream.authorization.revoke_everything();
        self.upstream.refuse_current_tokens();
    }
}

/// The URL of the one elicitation.
#[track_caller]
fn elicitation_of_2025(answer: &McpAnswer) -> String {
    let said = answer.json();
    assert_eq!((answer.status, said["error"]["code"].as_i64()), (200, Some(-32042)), "{}", answer.body);
    assert_eq!(said["id"], 1);
    let elicitation = &said["error"]["data"]["elicitations"][0];
    assert_eq!(elicitation["mode"], "url");
    assert!(elicitation["elicitationId"].as_str().is_some_and(|id| id.len() >= 16), "{elicitation}");
    elicitation["url"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_call_that_needs_its_user_is_answered_by_an_elicitation() {
    let rig = Rig::new().await;
    let request = rig.in_session(urls()).await;
    let whoami = async |request: &McpRequest| request.tool("whoami", json!({})).await;
    assert_eq!(whoami(&request).await.status, 200);
    rig.lose_connection();
    // The call that finds out, and the next one, which goes nowhere.
    for _ in 0..2 {
        let url = elicitation_of_2025(&whoami(&request).await);
        assert!(url.starts_with(&format!("{}/connections/demo?for=", rig.gateway.public_url)), "{url}");
        assert!(!url.contains("alice"), "{url}");
    }
    // What is no call is challenged as ever, and so is a client that did not say that it opens URLs.
    assert_eq!(request.call("tools/list", json!({})).await.status, 401);
    let plain = rig.gateway.mcp("demo").bearer(&rig.tokens.access_token);
    assert_eq!(whoami(&plain).await.status, 401, "outside of a session nobody knows what it opens");
}

#[tokio::test]
async fn a_client_that_opens_no_urls_is_challenged() {
    for capabilities in [json!({}), json!({"elicitation": {}}), json!({"elicitation": {"form": {}}})] {
        let rig = Rig::new().await;
        let request = rig.in_session(capabilities.clone()).await;
        assert_eq!(request.tool("whoami", json!({})).await.status, 200);
        rig.lose_connection();
        assert_eq!(request.tool("whoami", json!({})).await.status, 401, "{capabilities}");
    }
}

#[tokio::test]
async fn an_answer_without_a_body_and_a_long_call_are_answered_as_well_as_they_can_be() {
    let rig = Rig::new().await;
    let request = rig.in_session(urls()).await;
    assert_eq!(request.tool("whoami", json!({})).await.status, 200);
    rig.upstream.authorization.revoke_everything();
    // A 401 with nothing in it leaves no place for an answer.
    rig.upstream.answer_next(Answer::http(401, &[("content-length", "0")], ""));
    rig.upstream.answer_next(Answer::http(401, &[("content-length", "0")], ""));
    elicitation_of_2025(&request.tool("whoami", json!({})).await);
    // Of a call that is too long to be kept nobody knows the id.
    let long = request.tool("echo", json!({"message": "x".repeat(200 * 1024)})).await;
    assert_eq!(long.status, 401, "{}", long.body);
}

#[tokio::test]
async fn in_2026_input_is_required_until_the_user_says_no() {
    let rig = Rig::new().await;
    rig.upstream.set(|script| script.sessions = false);
    assert_eq!(rig.call_of_2026(urls(), json!({})).await.status, 200);
    rig.lose_connection();
    for _ in 0..2 {
        let answer = rig.call_of_2026(urls(), json!({})).await;
        let result = answer.result();
        assert_eq!(result["resultType"], "input_required", "{}", answer.body);
        let asked = &result["inputRequests"]["postern/connect"];
        assert_eq!(
            (&asked["method"], &asked["params"]["mode"]),
            (&json!("elicitation/create"), &json!("url"))
        );
        assert!(asked["params"]["url"].as_str().unwrap().contains("/connections/demo?for="));
    }
    let no = json!({"inputResponses": {"postern/connect": {"action": "decline"}}});
    let declined = rig.call_of_2026(urls(), no).await;
    assert_eq!(declined.status, 403, "{}", declined.body);
    assert!(declined.body.contains("/connections/demo"), "{}", declined.body);
    assert_eq!(rig.call_of_2026(json!({}), json!({})).await.status, 401, "a client that opens no URLs");
}

#[tokio::test]
async fn the_page_lets_its_own_user_connect_and_the_call_goes_through() {
    let mut rig = Rig::new().await;
    let request = rig.in_session(urls()).await;
    let whoami = async |request: &McpRequest| request.tool("whoami", json!({})).await;
    assert_eq!(whoami(&request).await.status, 200);
    rig.lose_connection();
    let url = elicitation_of_2025(&whoami(&request).await);
    // Nobody has to sign in at the client for it, however long it takes.
    rig.client.refresh(&rig.tokens.refresh_token).await.tokens();
    // Somebody else is told that it is none of their business, and so is whoever changes it.
    let mut bob = Browser::of("bob");
    let login = bob.go(&url).await.page();
    let refused = bob.sign_in(&login).await.page();
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(refused.text().contains("This link is not for you"), "{}", refused.text());
    let bent = url.replace("for=", "for=A");
    assert_eq!(rig.browser.go(&bent).await.page().status, 403);
    let other = url.replace("/connections/demo?", "/connections/other?");
    assert_eq!(rig.browser.go(&other).await.page().status, 404);
    // Hers: one button, and she is told that it is done. Signed out, she signs in first and comes back to it.
    rig.browser = Browser::new();
    let login = rig.browser.go(&url).await.page();
    let page = rig.browser.sign_in(&login).await.page();
    assert_eq!(page.status, 200, "{}", page.text());
    let trips = rig.upstream.authorization.requests.count("/authorize");
    let page = rig.browser.press(&page, "Connect").await.page();
    assert!(page.text().contains("You can go back to your application now"), "{}", page.text());
    assert_eq!(rig.upstream.authorization.requests.count("/authorize"), trips + 1);
    let answer = whoami(&request).await;
    assert_eq!(answer.tool_text(), "upstream-user", "the same session and the same token");
}

#[tokio::test]
async fn whoever_was_never_there_goes_by_way_of_their_client() {
    // It would have to be let in for the connection all the same.
    let upstream = Upstream::open().await;
    upstream.set(|script| script.sessions = true);
    let gateway = Gateway::before(&upstream).await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    let tokens = client.sign_in(&mut browser, "demo").await;
    let rig = Rig { upstream, gateway, client, browser, tokens };
    let request = rig.in_session(urls()).await;
    rig.upstream.set(|script| script.requires_auth = true);
    assert_eq!(request.tool("whoami", json!({})).await.status, 401);
}
