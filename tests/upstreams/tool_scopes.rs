//! Scopes that calls of single tools need: what lacks one is told which, gets it in one step, and keeps it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::collections::HashSet;

use serde_json::{Value, json};
use support::PATIENCE;
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::gateway::{Gateway, Route};
use support::mcp::{McpAnswer, McpRequest};
use support::params::Params;
use support::raw::exchange;
use support::upstream::Upstream;

/// `echo` and `whoami` need a scope each here; nothing else does.
fn demanding(upstream: &Upstream) -> Route {
    Route::oauth("demo", upstream)
        .with("tool_scopes", json!({"echo": ["demo:echo"], "whoami": ["demo:self", "demo:echo"]}))
}

struct Rig {
    upstream: Upstream,
    gateway: Gateway,
    client: Client,
    browser: Browser,
    tokens: Tokens,
}

impl Rig {
    async fn new() -> Self {
        let upstream = Upstream::start().await;
        let gateway = Gateway::builder().route(demanding(&upstream)).start().await;
        let client = Client::register(&gateway).await;
        let mut browser = Browser::new();
        let tokens = client.sign_in(&mut browser, "demo").await;
        Rig { upstream, gateway, client, browser, tokens }
    }

    fn call(&self) -> McpRequest {
        self.gateway.mcp("demo").bearer(&self.tokens.access_token)
    }

    async fn echo(&self, message: &str) -> McpAnswer {
        self.call().tool("echo", json!({"message": message})).await
    }

    /// Authorizes anew for exactly these scopes, as a client does that was told of them.
    async fn step_up(&mut self, scope: &str) {
        let request = self.client.authorization("demo").with("scope", scope);
        let callback = self.browser.authorize(&self.client.redirect_uri, &request.url()).await;
        self.tokens = self.client.redeem(&callback.code(), &request).await.tokens();
    }
}

fn words(scope: &str) -> HashSet<&str> {
    scope.split(' ').collect()
}

/// What a refused call says is needed.
#[track_caller]
fn needed(gateway: &Gateway, answer: &McpAnswer) -> String {
    assert_eq!(answer.status, 403, "{}", answer.body);
    assert_eq!(answer.challenge("error").as_deref(), Some("insufficient_scope"));
    let metadata = gateway.url("/.well-known/oauth-protected-resource/demo");
    assert_eq!(answer.challenge("resource_metadata"), Some(metadata));
    answer.challenge("scope").unwrap()
}

#[tokio::test]
async fn sr_rs_03_a_tool_names_the_scopes_it_needs_and_each_step_keeps_what_there_was() {
    let mut rig = Rig::new().await;
    assert_eq!(words(&rig.tokens.scope), words("mcp:access"));
    assert_eq!(rig.call().call("tools/list", json!({})).await.status, 200);
    assert_eq!(rig.call().tool("add", json!({"a": 1, "b": 2})).await.status, 200, "no rule speaks of it");

    let first = needed(&rig.gateway, &rig.echo("one").await);
    assert_eq!(words(&first), words("mcp:access demo:echo"));
    let trips = rig.upstream.authorization.requests.to("/authorize").len();
    rig.step_up(&first).await;
    assert_eq!(rig.echo("two").await.tool_text(), "two");
    let second = needed(&rig.gateway, &rig.call().tool("whoami", json!({})).await);
    assert_eq!(words(&second), words("mcp:access demo:echo demo:self"), "all it needs and all it has");
    rig.step_up(&second).await;
    assert_eq!(rig.call().tool("whoami", json!({})).await.status, 200);
    assert_eq!(rig.echo("three").await.tool_text(), "three");
    assert_eq!(
        rig.upstream.authorization.requests.to("/authorize").len(),
        trips,
        "no matter of the upstream's"
    );
    let calls = rig.upstream.calls_with_token();
    assert!(calls.iter().all(|call| !call.text().contains("\"one\"")), "what is refused stays here");
}

#[tokio::test]
async fn sr_rs_03_a_client_that_refreshes_first_is_sent_to_the_user_once() {
    let mut rig = Rig::new().await;
    needed(&rig.gateway, &rig.echo("one").await);
    // TypeScript SDK 1.x tries its refresh token before anything else, and only its failure leads to the user.
    let refused = rig.client.refresh(&rig.tokens.refresh_token).await;
    assert_eq!(refused.error().as_deref(), Some("invalid_grant"));
    rig.tokens = rig.client.refresh(&rig.tokens.refresh_token).await.tokens();
    // Another call that goes through meanwhile, such as its event stream, says nothing about this one.
    needed(&rig.gateway, &rig.echo("two").await);
    assert_eq!(rig.call().tool("add", json!({"a": 1, "b": 2})).await.status, 200);
    let refused = rig.client.refresh(&rig.tokens.refresh_token).await;
    assert_eq!(refused.error().as_deref(), Some("invalid_grant"));
    rig.tokens = rig.client.refresh(&rig.tokens.refresh_token).await.tokens();
    assert_eq!(words(&rig.tokens.scope), words("mcp:access"));
}

#[tokio::test]
async fn a_client_that_forgets_what_it_lacked_gets_it_all_the_same() {
    let mut rig = Rig::new().await;
    needed(&rig.gateway, &rig.echo("one").await);
    // The Inspector's command line asks for what it began with, whatever the challenge said.
    let plain = rig.client.authorization("demo").with("scope", "mcp:access");
    let page = rig.browser.go(&plain.url()).await.page();
    assert!(page.text().contains("demo:echo"), "{}", page.text());
    // Of another client, and another user of this one, nothing is known; and a no is a no.
    let redirect = "https://other.example/cb";
    let document = json!({"client_name": "other", "redirect_uris": [redirect]});
    let registered = Client::register_with(&rig.gateway, &document).await.json();
    let another = Client::known_as(&rig.gateway, registered["client_id"].as_str().unwrap(), redirect);
    let another = another.authorization("demo");
    for (mut browser, url) in [(Browser::new(), another.url()), (Browser::of("bob"), plain.url())] {
        let page = browser.go(&url).await.page();
        let page = browser.sign_in(&page).await.page();
        assert!(page.text().contains("mcp:access") && !page.text().contains("demo:echo"), "{}", page.text());
    }
    rig.browser.stop_before(&rig.client.redirect_uri);
    rig.browser.press(&page, "deny").await;
    rig.step_up("mcp:access").await;
    assert_eq!(words(&rig.tokens.scope), words("mcp:access"));
    needed(&rig.gateway, &rig.echo("two").await);
    rig.step_up("mcp:access").await;
    assert_eq!(words(&rig.tokens.scope), words("mcp:access"));
    // Unless the client asks for it itself.
    rig.step_up("mcp:access demo:echo").await;
    assert_eq!(rig.echo("three").await.tool_text(), "three");
    // With a yes it has what it lacked, and the next one is about what is lacking then.
    let mut rig = Rig::new().await;
    needed(&rig.gateway, &rig.echo("one").await);
    rig.step_up("mcp:access").await;
    assert_eq!(words(&rig.tokens.scope), words("mcp:access demo:echo"));
    assert_eq!(rig.echo("two").await.tool_text(), "two");
    needed(&rig.gateway, &rig.call().tool("whoami", json!({})).await);
    rig.step_up("mcp:access").await;
    assert_eq!(words(&rig.tokens.scope), words("mcp:access demo:echo demo:self"));
}

#[tokio::test]
async fn what_tools_need_is_asked_for_when_it_is_needed() {
    let mut rig = Rig::new().await;
    let http = support::http_client(&[]);
    let document = async |path: &str| McpRequest::to(&http, &rig.gateway.url(path)).get().await.json();
    let resource = document("/.well-known/oauth-protected-resource/demo").await;
    assert_eq!(resource["scopes_supported"], json!(["mcp:access"]), "what everybody begins with");
    let server = document("/.well-known/oauth-authorization-server").await;
    assert_eq!(
        server["scopes_supported"],
        json!(["demo:echo", "demo:self", "mcp:access", "profile"]),
        "all that can be had"
    );
    // A consent that is remembered covers what was asked, and no more.
    rig.step_up("mcp:access").await;
    let request = rig.client.authorization("demo").with("scope", "demo:echo nonsense");
    let page = rig.browser.go(&request.url()).await.page();
    assert!(page.text().contains("demo:echo") && !page.text().contains("nonsense"), "{}", page.text());
}

#[tokio::test]
async fn sr_rs_03_a_program_asks_for_what_its_tools_need() {
    let upstream = Upstream::open().await;
    let secret = support::secret("robot");
    let route = Route::open("demo", &upstream).with("tool_scopes", json!({"echo": ["demo:echo"]}));
    let gateway = Gateway::builder()
        .route(route)
        .with(
            "oauth_server.clients.static",
            json!([{
                "client_id": "robot",
                "client_secret": {"env": "ROBOT"},
                "token_endpoint_auth_method": "client_secret_post",
                "client_credentials": {"routes": ["demo"]},
            }]),
        )
        .env("ROBOT", &secret)
        .start()
        .await;
    let robot = Client::known_as(&gateway, "robot", "");
    let token = async |scope: Option<&str>| {
        let form = Params::new()
            .with("grant_type", "client_credentials")
            .with("client_id", "robot")
            .with("client_secret", &secret);
        let form = scope.into_iter().fold(form, |form, scope| form.with("scope", scope));
        robot.token(&form).await.0.json()
    };
    let echo = async |token: &Value| {
        gateway
            .mcp("demo")
            .bearer(token["access_token"].as_str().unwrap())
            .tool("echo", json!({"message": "x"}))
            .await
    };
    let plain = token(None).await;
    assert_eq!(plain["scope"], "mcp:access", "{plain}");
    let scope = needed(&gateway, &echo(&plain).await);
    let more = token(Some(&scope)).await;
    assert_eq!(echo(&more).await.tool_text(), "x", "{more}");
    assert_eq!(token(Some("demo:other")).await["error"], "invalid_scope");
}

#[tokio::test]
async fn long_bodies_are_judged_before_a_byte_of_them_goes_on() {
    let mut rig = Rig::new().await;
    let long = "x".repeat(900_000);
    rig.upstream.requests.clear();
    needed(&rig.gateway, &rig.echo(&long).await);
    assert!(rig.upstream.calls_with_token().iter().all(|call| call.body.is_empty()));
    let too_long = rig.echo(&"x".repeat(1_100_000)).await;
    assert_eq!(too_long.status, 413, "{}", too_long.body);
    rig.step_up("mcp:access demo:echo").await;
    assert_eq!(rig.echo(&long).await.tool_text(), long);
    assert_eq!(rig.echo(&"x".repeat(1_100_000)).await.status, 413, "longer than anything is held back for");
    // A refused connection of the one before costs the next call nothing.
    assert_eq!(rig.echo("short").await.tool_text(), "short");
}

#[tokio::test]
async fn a_long_body_in_pieces_of_one_byte_is_judged_like_any_other() {
    let mut rig = Rig::new().await;
    let message = json!({"message": "x".repeat(900_000)});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": message}});
    let pieces: String = body.to_string().chars().map(|byte| format!("1\r\n{byte}\r\n")).collect();
    let send = async |rig: &Rig| {
        let request = format!(
            "POST /demo HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{pieces}0\r\n\r\n",
            rig.gateway.address, rig.tokens.access_token
        );
        exchange(rig.gateway.address, request, PATIENCE).await.unwrap().status
    };
    assert_eq!(send(&rig).await, 403);
    rig.step_up("mcp:access demo:echo").await;
    assert_eq!(send(&rig).await, 200);
}

#[tokio::test]
async fn a_judged_body_is_sent_again_after_a_refresh() {
    let mut rig = Rig::new().await;
    rig.step_up("mcp:access demo:echo").await;
    for framing in ["content-length: LENGTH", "transfer-encoding: chunked"] {
        rig.upstream.refuse_current_tokens();
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {"message": framing}}}).to_string();
        let framing = framing.replace("LENGTH", &body.len().to_string());
        let sent = match framing.starts_with("transfer") {
            true => format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
            false => body,
        };
        let request = format!(
            "POST /demo HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\n{framing}\r\n\r\n{sent}",
            rig.gateway.address, rig.tokens.access_token
        );
        let answer = exchange(rig.gateway.address, request, PATIENCE).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(rig.upstream.authorization.token_requests("refresh_token").len(), 2);
}

#[tokio::test]
async fn a_client_that_waits_for_100_is_told_to_go_on() {
    let mut rig = Rig::new().await;
    rig.step_up("mcp:access demo:echo").await;
    for (tool, status) in [("echo", 200), ("whoami", 403)] {
        let body =
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}}).to_string();
        let head = format!(
            "POST /demo HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            rig.gateway.address,
            rig.tokens.access_token,
            body.len()
        );
        let mut connection = support::raw::RawConnection::open(rig.gateway.address).await;
        connection.send(head).await;
        let go_on = connection.response(PATIENCE).await.unwrap();
        assert_eq!(go_on.status, 100);
        connection.send(body).await;
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, status);
    }
}

#[tokio::test]
async fn sr_rs_03_what_a_tool_needs_changes_with_a_reload() {
    let rig = Rig::new().await;
    needed(&rig.gateway, &rig.echo("one").await);
    let route = Route::oauth("demo", &rig.upstream).document().clone();
    rig.gateway.reconfigure("routes", json!([route]));
    rig.gateway.hang_up();
    support::eventually(PATIENCE, async || rig.echo("two").await.status == 200).await;
}

#[tokio::test]
async fn over_http_2_it_is_the_same() {
    let upstream = Upstream::open().await;
    let route = Route::open("demo", &upstream).with("tool_scopes", json!({"echo": ["demo:echo"]}));
    let gateway = Gateway::builder().route(route).tls().start().await;
    let tokens =
        Client::register(&gateway).await.sign_in(&mut Browser::new().through(&gateway), "demo").await;
    let call = gateway.mcp("demo").bearer(&tokens.access_token);
    for length in [10, 200_000] {
        let message = json!({"message": "x".repeat(length)});
        needed(&gateway, &call.tool("echo", message.clone()).await);
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami", "arguments": message}});
        let answer = call.send("POST", Some(&body.to_string())).await;
        assert_eq!((answer.version(), answer.status().as_u16()), (reqwest::Version::HTTP_2, 200));
    }
    assert_eq!(call.call("ping", json!({})).await.status, 200);
    let listening = call.send("GET", None).await;
    assert!(listening.status() != 400, "what has no body is not judged by one");
}
