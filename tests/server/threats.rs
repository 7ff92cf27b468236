//! Attacks that take more than one bad value: consent that was given for somebody else, upstreams whose answers try to
//! be ours, and what one user can reach of another's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use serde_json::json;
use support::browser::Browser;
use support::client::{ACCESS_SCOPE, Callback, Client, Tokens};
use support::gateway::{Gateway, Route};
use support::html::meta_refresh;
use support::mcp::{McpAnswer, McpRequest};
use support::script::Answer;
use support::upstream::Upstream;

const EVIL: &str = "https://evil.test/cb?x=1";
const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"whoami"}}"#;

/// A route `demo` whose upstream hands out a token per user, and alice connected to it.
struct Rig {
    upstream: Upstream,
    gateway: Gateway,
    client: Client,
    browser: Browser,
    tokens: Tokens,
}

impl Rig {
    async fn start() -> Self {
        let upstream = Upstream::start().await;
        let gateway = Gateway::before(&upstream).await;
        let client = Client::register(&gateway).await;
        let mut browser = Browser::new();
        let tokens = client.sign_in(&mut browser, "demo").await;
        Rig { upstream, gateway, client, browser, tokens }
    }

    fn call(&self) -> McpRequest {
        self.gateway.mcp("demo").bearer(&self.tokens.access_token)
    }
}

/// The challenge is one, and ours: our metadata, our errors, nothing else.
#[track_caller]
fn assert_own_challenge(gateway: &Gateway, answer: &McpAnswer, error: &str) {
    let metadata = gateway.url("/.well-known/oauth-protected-resource/demo");
    // Panics when there is not exactly one challenge in exactly one header.
    assert_eq!(answer.challenge("resource_metadata"), Some(metadata), "{:?}", answer.headers);
    assert_eq!(answer.challenge("error").as_deref(), Some(error));
    let scope = answer.challenge("scope").unwrap();
    for name in scope.split(' ') {
        // RFC 6749 §3.3.
        let is_scope = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        assert!(!name.is_empty() && name.bytes().all(is_scope), "{scope:?}");
    }
    assert!(scope.split(' ').any(|name| name == ACCESS_SCOPE), "{scope:?}");
    let header = answer.header("www-authenticate").unwrap();
    let known = ["resource_metadata", "scope", "error", "error_description"];
    let challenges = http_auth::parse_challenges(header).unwrap();
    for (name, _) in &challenges[0].params {
        assert!(known.contains(name), "{name} in {header}");
    }
}

#[tokio::test]
async fn sr_t01_what_was_allowed_to_one_client_is_of_no_use_to_another() {
    let mut rig = Rig::start().await;
    let asked = &rig.upstream.authorization.requests;
    // Signed in here, connected there, and the upstream asks nobody any more: only our own question is left.
    let document = json!({"client_name": "Rig client", "redirect_uris": [EVIL]});
    let answer = Client::register_with(&rig.gateway, &document).await;
    let evil = Client::known_as(&rig.gateway, answer.json()["client_id"].as_str().unwrap(), EVIL);
    let (calls, trips) = (rig.upstream.calls_with_token().len(), asked.count("/authorize"));
    let url = evil.authorization("demo").url();
    for more in ["", "&prompt=none", "&prompt=login", "&approval_prompt=auto", "&max_age=0"] {
        let page = rig.browser.follow_from("https://evil.test/", &format!("{url}{more}")).await.page();
        assert_eq!((page.status, meta_refresh(&page.body)), (200, None), "{more}");
        let text = page.text();
        for said in ["evil.test", EVIL, "Identity not verified", ACCESS_SCOPE, &rig.gateway.url("/demo")] {
            assert!(text.contains(said), "{said}: {text}");
        }
        page.form_with_button("allow");
    }
    assert_eq!(asked.count("/authorize"), trips, "sent to the upstream before the user has answered");
    assert_eq!(rig.upstream.calls_with_token().len(), calls);
    // The answer of the user makes the difference, and nothing else does.
    let request = evil.authorization("demo");
    let page = rig.browser.go_to_consent(EVIL, &request.url()).await;
    let callback = Callback::of(&rig.browser.press(&page, "deny").await.client());
    assert_eq!(callback.error(), Some("access_denied"));
    assert!(!callback.url.as_str().contains("code="), "{}", callback.url);
    let page = rig.browser.go_to_consent(EVIL, &request.url()).await;
    let callback = Callback::of(&rig.browser.consent_allow(&page).await.client());
    evil.redeem(&callback.code(), &request).await.tokens();
}

#[tokio::test]
async fn sr_t39_words_of_the_upstream_cannot_end_our_challenge() {
    let rig = Rig::start().await;
    let mut challenged = 0;
    for scope in [
        r#"a\" , error=\"x"#,
        r#"a\", Basic realm=\"x"#,
        r#"a\\\", resource_metadata=\"https://evil.test/"#,
        r#"files:read a\"b c\\d e"#,
        "a\tb",
        "f\u{fc}r",
        ", , ,",
        r#"\"\""#,
    ] {
        let challenge = format!(r#"Bearer error="insufficient_scope", scope="{scope}""#);
        let challenges = [
            challenge.clone(),
            format!(
                r#"{challenge}, resource_metadata="https://evil.test/", realm="x", error_uri="https://evil.test/""#
            ),
            format!(r#"Negotiate, {challenge}, Basic realm="x""#),
        ];
        for challenge in challenges {
            let headers = [("www-authenticate", challenge.as_str()), ("content-type", "text/plain")];
            rig.upstream.answer_next(Answer::http(403, &headers, "evil words"));
            let answer = rig.call().post(CALL).await;
            assert_eq!(answer.status, 403, "{challenge}: {}", answer.body);
            // A challenge that cannot be read is none, and then there is none of ours either.
            if answer.header("www-authenticate").is_some() {
                challenged += 1;
                assert_own_challenge(&rig.gateway, &answer, "insufficient_scope");
                assert!(!answer.body.contains("evil"), "{challenge}: {}", answer.body);
            }
            let all = format!("{:?}", answer.headers);
            assert!(!all.contains("evil.test") && !all.contains("realm"), "{challenge}: {all}");
        }
    }
    assert!(challenged >= 8, "hardly any was taken up, so hardly any was tested: {challenged}");
    // The plain form is understood, or none of this would prove anything.
    rig.upstream.answer_next(Answer::InsufficientScope("files:write".into()));
    let answer = rig.call().post(CALL).await;
    assert_own_challenge(&rig.gateway, &answer, "insufficient_scope");
    assert!(answer.challenge("scope").unwrap().split(' ').any(|scope| scope == "files:write"));
}

#[tokio::test]
async fn sr_rs_13_the_client_hears_our_refusal_and_never_the_upstreams() {
    let challenges = [
        r#"Bearer resource_metadata="https://evil.test/meta", error="invalid_token", realm="upstream""#,
        r#"Basic realm="upstream""#,
        "Negotiate",
        "",
    ];
    for challenge in challenges {
        let rig = Rig::start().await;
        assert_eq!(rig.call().post(CALL).await.status, 200);
        // Refused as it is, and refused when it has been renewed.
        let mut headers =
            vec![("content-type", "text/html"), ("set-cookie", "a=b"), ("x-of-the-upstream", "1")];
        if !challenge.is_empty() {
            headers.push(("www-authenticate", challenge));
        }
        for _ in 0..2 {
            rig.upstream.answer_next(Answer::http(401, &headers, "<h1>words of the upstream</h1>"));
        }
        let before = rig.upstream.calls_with_token().len();
        let answer = rig.call().post(CALL).await;
        assert_eq!(rig.upstream.calls_with_token().len(), before + 2, "{challenge}");
        assert_eq!(answer.status, 401, "{challenge}: {}", answer.body);
        assert_own_challenge(&rig.gateway, &answer, "invalid_token");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{challenge}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{challenge}");
        for name in ["set-cookie", "x-of-the-upstream"] {
            assert_eq!(answer.header(name), None, "{challenge}: {name}");
        }
        let all = format!("{:?}{}", answer.headers, answer.body);
        assert!(!all.contains("evil") && !all.contains("words of the upstream"), "{challenge}: {all}");
    }
}

#[tokio::test]
async fn sr_t36_what_names_something_of_anothers_opens_nothing() {
    let mut rig = Rig::start().await;
    let mut bob = Browser::of("bob");
    let bobs = rig.client.sign_in(&mut bob, "demo").await;
    // Of alice's there is a grant, a flow in the middle, and a trip to the upstream in the middle.
    let request = rig.client.authorization("demo");
    let page = rig.browser.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    let flow = page.form_to("/oauth/consent").value("flow").unwrap().to_owned();
    let (family, _) = rig.tokens.refresh_token.split_once('.').unwrap();
    let (_, secret) = bobs.refresh_token.split_once('.').unwrap();
    // Bob's own secret under the name of alice's grant.
    let mixed = format!("{family}.{secret}");
    assert_eq!(rig.client.refresh(&mixed).await.error().as_deref(), Some("invalid_grant"));
    assert_eq!(rig.client.revoke(&mixed).await.status, 200, "nobody learns whether there is such a grant");
    // Bob's own form with alice's flow.
    let own = rig.client.authorization("demo");
    let own_page = bob.go_to_consent(&rig.client.redirect_uri, &own.url()).await;
    for decision in ["allow", "deny"] {
        let form = own_page.form_to("/oauth/consent");
        let answer = bob.submit_once(&own_page, &form, &[("flow", &flow), ("decision", decision)]).await;
        assert_eq!((answer.status, meta_refresh(&answer.body)), (403, None), "{decision}");
    }
    // Whatever bob does to himself, alice keeps hers.
    assert_eq!(rig.client.revoke(&bobs.refresh_token).await.status, 200);
    let home = bob.go(&rig.gateway.url("/")).await.page();
    bob.submit_once(&home, &home.form_to("/logout"), &[]).await;
    assert_eq!(rig.call().tool("whoami", json!({})).await.status, 200);
    rig.client.refresh(&rig.tokens.refresh_token).await.tokens();
    let answer = rig.browser.consent_allow(&page).await.client();
    rig.client.redeem(&Callback::of(&answer).code(), &request).await.tokens();
}

#[tokio::test]
async fn sr_t52_no_reading_of_a_body_changes_what_arrives() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).start().await;
    let token = Client::register(&gateway).await.sign_in(&mut Browser::new(), "demo").await.access_token;
    for body in [
        r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#,
        r#"{"jsonrpc":"2.0","id":1,"Method":"a","METHOD":"b","method":"c"}"#,
        r#"{"jsonrpc":"2.0","id":1,"\u006dethod":"a","params":{"Name":"x","name":"y"}}"#,
        r#"[{"jsonrpc":"2.0","id":1,"method":"a"},{"jsonrpc":"2.0","id":2,"method":"b"}]"#,
        "\u{feff}{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\"} trailing",
        r#"{"id":1e400,"n":0.10000000000000000000000001,"jsonrpc":"2.0","method":"a"}"#,
        r#"{ "jsonrpc" : "2.0" , "id" : null , "method" : "a\u0000b" }"#,
        &"[".repeat(20_000),
    ] {
        upstream.requests.clear();
        let call = gateway.mcp("demo").bearer(&token);
        // The headers say something else than the body: whoever compares them has to see both as they were sent.
        let call = call.header("mcp-method", "tools/call").header("mcp-name", "=?base64?YQ==?=");
        call.header("mcp-protocol-version", "2026-07-28").post(body).await;
        let seen = upstream.requests.last_to("/mcp");
        assert!(seen.text() == body, "{} bytes became {}", body.len(), seen.text().len());
        assert_eq!(seen.header("mcp-name").as_deref(), Some("=?base64?YQ==?="));
        assert_eq!(seen.header("mcp-method").as_deref(), Some("tools/call"));
    }
}
