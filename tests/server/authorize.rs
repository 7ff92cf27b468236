//! The authorization endpoint, sign-in and consent: who may ask, what is told to whom, and that only the user in
//! their own browser can say yes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use serde_json::json;
use support::browser::{Browser, Page};
use support::client::{ACCESS_SCOPE, AuthorizationRequest, Callback, Client};
use support::cookies::Stored;
use support::gateway::{Gateway, Route};
use support::html::{Form, meta_refresh};
use support::mcp::McpAnswer;
use support::params::{Params, Pkce};
use support::upstream::Upstream;
use url::Url;

const REDIRECT: &str = "https://client.example/cb";

/// A gateway with one route `demo` that needs no authorization upstream.
struct Rig {
    gateway: Gateway,
    upstream: Upstream,
}

impl Rig {
    async fn start() -> Self {
        let upstream = Upstream::open().await;
        let gateway = Gateway::builder().route(Route::open("demo", &upstream)).start().await;
        Rig { gateway, upstream }
    }

    /// A registered client with these redirect URIs that uses the first.
    async fn client(&self, redirect_uris: &[&str]) -> Client {
        let answer = Client::register_with(&self.gateway, &json!({"redirect_uris": redirect_uris})).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        Client::known_as(&self.gateway, answer.json()["client_id"].as_str().unwrap(), redirect_uris[0])
    }

    /// Somebody who is signed in already.
    async fn signed_in(&self, username: &str) -> Browser {
        let mut browser = Browser::of(username);
        let page = browser.go(&self.gateway.url("/login")).await.page();
        assert_eq!(browser.sign_in(&page).await.page().status, 200);
        browser
    }

    /// A consent page that waits for its answer.
    async fn consent(&self, browser: &mut Browser) -> (Client, AuthorizationRequest, Page) {
        let client = self.client(&[REDIRECT]).await;
        // Whatever is remembered of earlier answers.
        let request = client.authorization("demo").with("prompt", "consent");
        let page = browser.go_to_consent(REDIRECT, &request.url()).await;
        (client, request, page)
    }

    /// Posts a form as some program would, with the browser's cookies and any headers.
    async fn post(
        &self,
        path: &str,
        browser: &Browser,
        headers: &[(&str, &str)],
        fields: &[(&str, &str)],
    ) -> McpAnswer {
        let cookies: Vec<String> =
            browser.jar.all().iter().map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect();
        let mut request = self.gateway.http.post(self.gateway.url(path));
        if !cookies.is_empty() {
            request = request.header("cookie", cookies.join("; "));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let form = fields.iter().fold(Params::new(), |form, (name, value)| form.and(name, value));
        let request =
            request.header("content-type", "application/x-www-form-urlencoded").body(form.encoded());
        McpAnswer::of(request.send().await.unwrap()).await
    }

    fn cookie(&self, what: &str) -> String {
        format!("postern-{what}-{}", self.gateway.address.port())
    }
}

/// Said to the user and to nobody else.
#[track_caller]
fn assert_local(page: &Page, status: u16, about: &str) {
    assert_eq!(page.status, status, "{about}: {}", page.text());
    assert_eq!(page.header("location"), None, "{about}");
    assert_eq!(meta_refresh(&page.body), None, "{about}");
    assert!(page.forms().is_empty(), "{about}: nothing to press");
}

#[track_caller]
fn assert_asked_to_sign_in(page: &Page) {
    let location = page.header("location").unwrap_or_default();
    assert!(
        page.status == 303 && location.starts_with("/login?next="),
        "{} {location} {}",
        page.status,
        page.text()
    );
}

/// What a client hears at its redirect URI: once each, and never a code beside an error. Where nobody is signed in and only
/// the client itself has named the address, its user goes there or does not.
#[track_caller]
fn assert_error(page: &Page, request: &AuthorizationRequest, issuer: &str, error: &str) {
    let location = page.way_back().unwrap_or_else(|| panic!("{error}: {} {}", page.status, page.text()));
    assert_local(page, 400, error);
    assert_error_at(&Url::parse(&location).unwrap(), request, issuer, error);
}

#[track_caller]
fn assert_error_at(url: &Url, request: &AuthorizationRequest, issuer: &str, error: &str) {
    let redirect_uri = request.params.value("redirect_uri").unwrap();
    assert!(url.as_str().starts_with(&format!("{redirect_uri}?")), "{url}");
    let names: Vec<&str> = ["error", "error_description", "state", "iss"].into();
    let callback = Callback::of(url);
    let told: Vec<&str> = callback.params.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(told, names, "{url}");
    assert_eq!(callback.error(), Some(error), "{url}");
    assert_eq!((callback.state(), callback.iss()), (Some(request.state.as_str()), Some(issuer)));
}

fn consent_form(page: &Page) -> Form {
    page.form_to("/oauth/consent")
}

// === who asks, and where the answer goes ===

#[tokio::test]
async fn sr_t10_sr_as_10_a_foreign_redirect_uri_is_told_on_a_page_and_sent_nowhere() {
    let rig = Rig::start().await;
    let client = rig.client(&[REDIRECT]).await;
    let mut regular = rig.signed_in("alice").await;
    // The user has allowed this very client before.
    client.sign_in(&mut regular, "demo").await;
    for uri in [
        "https://evil.test/cb",
        "https://client.example/CB",
        "https://CLIENT.example/cb",
        "HTTPS://client.example/cb",
        "https://client.example/cb/",
        "https://client.example/cb?x=1",
        "https://client.example/cb?",
        "https://client.example/cb#fragment",
        "https://user@client.example/cb",
        "https://client.example@evil.test/cb",
        "https://client.example.evil.test/cb",
        "https://client.example./cb",
        "https://client.example\\@evil.test/cb",
        "https://client.example/x/../cb",
        "https://client.example/%63b",
        "https://client.example/cb/%2e%2e/cb",
        "https://client.example//cb",
        "https://client.example:443/cb",
        "https://client.example:8443/cb",
        "https://xn--clent-q4a.example/cb",
        "https://clıent.example/cb",
        "http://client.example/cb",
        "//client.example/cb",
        "/cb",
        " https://client.example/cb",
        "https://client.example/cb\n",
        "https://client.example/cb\u{0}",
        "https://client.example/cb https://evil.test/",
        "javascript:alert(1)//https://client.example/cb",
        "data:text/html,x",
    ] {
        let url = client.authorization("demo").with("redirect_uri", uri).url();
        for browser in [&mut Browser::new(), &mut regular] {
            assert_local(&browser.peek(&url).await, 400, uri);
        }
    }
    let mut doubled = client.authorization("demo");
    doubled.params = doubled.params.and("redirect_uri", "https://evil.test/cb");
    for browser in [&mut Browser::new(), &mut regular] {
        assert_local(&browser.peek(&doubled.url()).await, 400, "twice");
        // Nor is anything else that is wrong told to a stranger.
        let bad = client.authorization("demo").with("redirect_uri", "https://evil.test/cb");
        assert_local(&browser.peek(&bad.without("response_type").url()).await, 400, "both wrong");
    }
}

#[tokio::test]
async fn sr_as_11_sr_t14_on_literal_loopback_the_port_may_differ_and_nothing_else() {
    let rig = Rig::start().await;
    let client = rig.client(&["http://127.0.0.1/cb", "http://[::1]:7/cb", "http://localhost:7/cb"]).await;
    let at = |uri: &str| client.authorization("demo").with("redirect_uri", uri).url();
    let mut browser = Browser::new();
    for uri in
        ["http://127.0.0.1/cb", "http://127.0.0.1:51234/cb", "http://[::1]:51234/cb", "http://localhost:7/cb"]
    {
        assert_asked_to_sign_in(&browser.peek(&at(uri)).await);
    }
    for uri in [
        "http://127.0.0.1:51234/cb2",
        "http://127.0.0.1:51234/cb?x",
        "http://127.0.0.1:51234/",
        "http://127.1:51234/cb",
        "http://0x7f.1:51234/cb",
        "http://2130706433:51234/cb",
        "http://127.0.0.2:51234/cb",
        "http://localhost:51234/cb",
        "http://127.0.0.1.evil.test:51234/cb",
        "http://127.0.0.1:51234@evil.test/cb",
        "http://127.0.0.1:@evil.test/cb",
        "http://[::ffff:127.0.0.1]:51234/cb",
        "https://127.0.0.1:51234/cb",
        "http://127.0.0.1:999999/cb",
        "http://127.0.0.1:/cb",
    ] {
        assert_local(&browser.peek(&at(uri)).await, 400, uri);
    }
    // The code goes to the port that was asked for, and is redeemed with it.
    let mut moved = client.clone();
    moved.redirect_uri = "http://127.0.0.1:51234/cb".into();
    moved.sign_in(&mut browser, "demo").await;
}

#[tokio::test]
async fn sr_as_10_one_registered_redirect_uri_needs_no_repeating() {
    let rig = Rig::start().await;
    let (one, two) =
        (rig.client(&[REDIRECT]).await, rig.client(&[REDIRECT, "https://client.example/2"]).await);
    let mut browser = Browser::new();
    let request = one.authorization("demo").without("redirect_uri");
    let callback = browser.authorize(REDIRECT, &request.url()).await;
    one.redeem(&callback.code(), &request).await.tokens();
    let unsaid = two.authorization("demo").without("redirect_uri");
    assert_local(&browser.peek(&unsaid.url()).await, 400, "which of the two?");
}

#[tokio::test]
async fn sr_as_11_a_redirect_uri_keeps_the_query_it_was_registered_with() {
    let rig = Rig::start().await;
    let client = rig.client(&["https://client.example/cb?tenant=a%20b&x"]).await;
    let request = client.authorization("demo");
    let callback = Browser::new().authorize(&client.redirect_uri, &request.url()).await;
    assert!(
        callback.url.as_str().starts_with("https://client.example/cb?tenant=a%20b&x&code="),
        "{}",
        callback.url
    );
    client.redeem(&callback.code(), &request).await.tokens();
}

// === what is asked ===

#[tokio::test]
async fn sr_t11_sr_as_14_without_s256_there_is_no_code() {
    let rig = Rig::start().await;
    let client = rig.client(&[REDIRECT]).await;
    let request = client.authorization("demo");
    let issuer = &rig.gateway.public_url;
    let plain = Pkce::new().verifier;
    let mut browser = Browser::new();
    for method in ["plain", "s256", "S512", "", "S256 "] {
        let bad = request.clone().with("code_challenge_method", method);
        assert_error(&browser.peek(&bad.url()).await, &bad, issuer, "invalid_request");
        let bad = bad.with("code_challenge", &plain);
        assert_error(&browser.peek(&bad.url()).await, &bad, issuer, "invalid_request");
    }
    let bad = request.clone().without("code_challenge_method");
    assert_error(&browser.peek(&bad.url()).await, &bad, issuer, "invalid_request");
    let bad = bad.without("code_challenge");
    assert_error(&browser.peek(&bad.url()).await, &bad, issuer, "invalid_request");
    for challenge in [
        "",
        &"x".repeat(42),
        &"x".repeat(44),
        &"x".repeat(128),
        &"x".repeat(129),
        &"+".repeat(43),
        &"é".repeat(43),
    ] {
        let bad = request.clone().with("code_challenge", challenge);
        assert_error(&browser.peek(&bad.url()).await, &bad, issuer, "invalid_request");
    }
    assert_asked_to_sign_in(&browser.peek(&request.url()).await);
}

#[tokio::test]
async fn sr_as_13_sr_as_21_only_the_code_flow_by_query_is_spoken() {
    let rig = Rig::start().await;
    let client = rig.client(&[REDIRECT]).await;
    let request = client.authorization("demo");
    let issuer = &rig.gateway.public_url;
    for (name, value, error) in [
        ("response_type", "", "invalid_request"),
        ("response_type", "token", "unsupported_response_type"),
        ("response_type", "id_token", "unsupported_response_type"),
        ("response_type", "code token", "unsupported_response_type"),
        ("response_type", "code id_token", "unsupported_response_type"),
        ("response_type", "CODE", "unsupported_response_type"),
        ("response_type", "none", "unsupported_response_type"),
        ("response_mode", "fragment", "invalid_request"),
        ("response_mode", "form_post", "invalid_request"),
        ("response_mode", "query.jwt", "invalid_request"),
        ("request", "e30.e30.", "request_not_supported"),
        ("request_uri", "https://evil.test/request", "request_not_supported"),
        ("request_uri", "urn:ietf:params:oauth:request_uri:x", "request_not_supported"),
    ] {
        let bad = request.clone().with(name, value);
        assert_error(&Browser::new().peek(&bad.url()).await, &bad, issuer, error);
    }
    let bad = request.clone().without("response_type");
    assert_error(&Browser::new().peek(&bad.url()).await, &bad, issuer, "invalid_request");
    // Unknown is ignored and empty is absent (RFC 6749 §3.1).
    let fine =
        request.with("response_mode", "query").with("request", "").with("prompt", "none").with("x", "y");
    assert_asked_to_sign_in(&Browser::new().peek(&fine.url()).await);
}

#[tokio::test]
async fn sr_as_12_a_parameter_sent_twice_is_refused() {
    let rig = Rig::start().await;
    let client = rig.client(&[REDIRECT]).await;
    for (name, value) in client.authorization("demo").params.0 {
        let mut doubled = client.authorization("demo");
        doubled.params = doubled.params.with(&name, &value).and(&name, &value);
        let page = Browser::new().peek(&doubled.url()).await;
        assert_local(&page, 400, &name);
        // Once it is certain which client it is and where it waits, it is told; a state that came twice is none.
        match page.way_back().map(|url| Callback::of(&Url::parse(&url).unwrap())) {
            None => assert!(["client_id", "redirect_uri"].contains(&name.as_str()), "{name}"),
            Some(told) => {
                let state = (name != "state").then_some(doubled.state.as_str());
                assert_eq!((told.error(), told.state()), (Some("invalid_request"), state), "{name}");
            }
        }
    }
    let many = (0..100).fold(client.authorization("demo"), |request, n| request.with(&format!("p{n}"), "1"));
    assert_local(&Browser::new().peek(&many.url()).await, 400, "too many");
}

#[tokio::test]
async fn sr_as_15_the_resource_is_one_of_ours() {
    let rig = Rig::start().await;
    let client = rig.client(&[REDIRECT]).await;
    let (demo, issuer) = (client.resource("demo"), &rig.gateway.public_url);
    for resource in [
        "https://elsewhere.example/mcp".to_owned(),
        demo.replace("demo", "other"),
        demo.replace("demo", "DEMO"),
        format!("{demo}/sub"),
        format!("{demo}?x=1"),
        format!("{demo}#fragment"),
        demo.replace("http:", "https:"),
        demo.replace("127.0.0.1", "localhost"),
        format!("{}@evil.test/demo", rig.gateway.public_url),
        "demo".into(),
        "/demo".into(),
        rig.upstream.url(),
    ] {
        let bad = client.authorization("demo").with("resource", &resource);
        assert_error(&Browser::new().peek(&bad.url()).await, &bad, issuer, "invalid_target");
    }
    // Spellings of the one address are one resource, from the question to the last refresh.
    let spelled = [demo.replace("http:", "HTTP:"), format!("{demo}/"), demo.replace("/demo", "//demo")];
    for resource in &spelled {
        let request = client.authorization("demo").with("resource", resource);
        let callback = Browser::new().authorize(REDIRECT, &request.url()).await;
        let redemption = client.redemption(&callback.code(), &request).with("resource", &spelled[1]);
        let tokens = client.token(&redemption).await.tokens();
        let call = rig.gateway.mcp("demo").bearer(&tokens.access_token);
        assert_eq!(call.tool("echo", json!({"text": "x"})).await.status, 200, "{resource}");
        let refreshment = client.refreshment(&tokens.refresh_token).with("resource", &spelled[2]);
        assert_eq!(client.token(&refreshment).await.status(), 200, "{resource}");
    }
    // With a single route there is no doubt which one is meant.
    let request = client.authorization("demo").without("resource");
    let callback = Browser::new().authorize(REDIRECT, &request.url()).await;
    let tokens = client.redeem(&callback.code(), &request).await.tokens();
    let call = rig.gateway.mcp("demo").bearer(&tokens.access_token);
    assert_eq!(call.tool("echo", json!({"text": "x"})).await.status, 200);
}

#[tokio::test]
async fn sr_as_15_with_several_routes_the_resource_has_to_be_named() {
    let upstream = Upstream::open().await;
    let builder = Gateway::builder().route(Route::open("demo", &upstream));
    let gateway = builder.route(Route::open("other", &upstream)).start().await;
    let rig = Rig { gateway, upstream };
    let client = rig.client(&[REDIRECT]).await;
    let bad = client.authorization("demo").without("resource");
    assert_error(&Browser::new().peek(&bad.url()).await, &bad, &rig.gateway.public_url, "invalid_target");
    client.sign_in(&mut Browser::new(), "other").await;
}

#[tokio::test]
async fn sr_as_16_sr_t18_pom_07_state_and_issuer_come_back_as_they_are() {
    let rig = Rig::start().await;
    let client = rig.client(&[REDIRECT]).await;
    let mut browser = rig.signed_in("alice").await;
    for state in
        ["x", "a b+c%20d", "&iss=https://evil.test&code=x", "#\"'<>\\é\u{1f600}\u{0}\r\n", &"s".repeat(2000)]
    {
        let request = client.authorization("demo").with("state", state);
        let callback = browser.authorize(REDIRECT, &request.url()).await;
        let names: Vec<&str> = callback.params.0.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["code", "state", "iss"]);
        assert_eq!((callback.state(), callback.iss()), (Some(state), Some(rig.gateway.public_url.as_str())));
        assert_eq!(callback.url.fragment(), None);
    }
    let callback = browser.authorize(REDIRECT, &client.authorization("demo").without("state").url()).await;
    assert_eq!((callback.state(), callback.iss()), (None, Some(rig.gateway.public_url.as_str())));
}

#[tokio::test]
async fn scopes_are_the_routes_own_whatever_is_asked() {
    let rig = Rig::start().await;
    let client = rig.client(&[REDIRECT]).await;
    let mut browser = rig.signed_in("alice").await;
    let request = client.authorization("demo").with("prompt", "consent");
    for request in [
        request.clone().without("scope"),
        request.clone().with("scope", ""),
        request.clone().with("scope", "openid admin unknown"),
        request.clone().with("scope", &format!("{ACCESS_SCOPE}  {ACCESS_SCOPE} ")),
    ] {
        let page = browser.go_to_consent(REDIRECT, &request.url()).await;
        assert!(!page.text().contains("admin"), "{}", page.text());
        let callback = Callback::of(&browser.consent_allow(&page).await.client());
        assert_eq!(client.redeem(&callback.code(), &request).await.tokens().scope, ACCESS_SCOPE);
    }
}

// === consent ===

#[tokio::test]
async fn sr_as_17_the_consent_page_says_who_asks_for_what_and_where_it_leads() {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.challenge.scope = Some("files:read files:write".into()));
    let route = Route::oauth("demo", &upstream).with("scopes", json!(["demo:use"]));
    let gateway = Gateway::builder().route(route).start().await;
    let rig = Rig { gateway, upstream };
    let mut browser = Browser::new();
    let (_, request, page) = rig.consent(&mut browser).await;
    let text = page.text();
    for said in [
        "client.example",
        REDIRECT,
        "Identity not verified",
        "signed in as alice",
        "demo",
        &rig.gateway.url("/demo"),
        ACCESS_SCOPE,
        "demo:use",
        "files:read",
        "files:write",
        "127.0.0.1",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("A program on this computer"), "{text}");
    // Until the user has said yes nothing goes to the upstream's authorization server in this browser's name.
    assert_eq!(rig.upstream.authorization.requests.count("/authorize"), 0);
    let url = browser.press(&page, "deny").await.client();
    assert_error_at(&url, &request, &rig.gateway.public_url, "access_denied");
    assert_eq!(rig.upstream.authorization.requests.count("/authorize"), 0);
}

#[tokio::test]
async fn sr_as_22_nobody_is_sent_to_an_address_that_only_a_stranger_has_named() {
    let rig = Rig::start().await;
    let wrong = |client: &Client| {
        client.authorization("demo").with("resource", "https://elsewhere.example/mcp").url()
    };
    let stranger = rig.client(&[REDIRECT]).await;
    let page = Browser::new().peek(&wrong(&stranger)).await;
    assert_local(&page, 400, "a stranger's address");
    assert!(page.text().contains("client.example") && page.way_back().is_some(), "{}", page.text());
    // Whoever is signed in is sent nowhere either; on this computer there is nobody to be sent to.
    let page = rig.signed_in("alice").await.peek(&wrong(&stranger)).await;
    assert_local(&page, 400, "a stranger's address");
    let here = rig.client(&["http://127.0.0.1:7/cb"]).await;
    assert_eq!(Browser::new().peek(&wrong(&here)).await.status, 303);
}

#[tokio::test]
async fn sr_as_22_a_loopback_client_is_warned_about() {
    let rig = Rig::start().await;
    for uri in ["http://127.0.0.1:7/cb", "http://localhost:7/cb", "http://[::1]:7/cb"] {
        let client = rig.client(&[uri]).await;
        let url = client.authorization("demo").url();
        let page = rig.signed_in("alice").await.go_to_consent(uri, &url).await;
        assert!(page.text().contains("A program on this computer gets the access"), "{}", page.text());
    }
}

#[tokio::test]
async fn sr_as_17_saying_no_tells_the_client_and_ends_the_flow() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    let (_, request, page) = rig.consent(&mut browser).await;
    let url = browser.press(&page, "deny").await.client();
    assert_error_at(&url, &request, &rig.gateway.public_url, "access_denied");
    let late = browser.press(&page, "allow").await.page();
    assert_local(&late, 400, "yes after no");
}

#[tokio::test]
async fn sr_as_18_an_answer_counts_once() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    let (client, request, page) = rig.consent(&mut browser).await;
    let callback = Callback::of(&browser.press(&page, "allow").await.client());
    for label in ["allow", "deny"] {
        assert_local(&browser.press(&page, label).await.page(), 400, label);
    }
    client.redeem(&callback.code(), &request).await.tokens();
    // Also when both come at once.
    let (_, _, page) = rig.consent(&mut browser).await;
    let form = consent_form(&page);
    let fields =
        [("csrf", form.value("csrf").unwrap()), ("flow", form.value("flow").unwrap()), ("decision", "allow")];
    let own = [("sec-fetch-site", "same-origin")];
    let post = || rig.post("/oauth/consent", &browser, &own, &fields);
    let (a, b, c) = tokio::join!(post(), post(), post());
    let mut answers = [a.status, b.status, c.status];
    answers.sort_unstable();
    assert_eq!(answers, [200, 400, 400]);
}

#[tokio::test]
async fn sr_t04_consent_takes_our_own_page_in_this_very_session() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    let (client, request, page) = rig.consent(&mut browser).await;
    let form = consent_form(&page);
    let (csrf, flow) = (form.value("csrf").unwrap(), form.value("flow").unwrap());
    let origin = rig.gateway.public_url.as_str();
    let own = [("sec-fetch-site", "same-origin"), ("origin", origin)];
    let good = [("csrf", csrf), ("flow", flow), ("decision", "allow")];

    let mut other = rig.signed_in("alice").await;
    let (_, _, elsewhere) = rig.consent(&mut other).await;
    let theirs = consent_form(&elsewhere).value("csrf").unwrap().to_owned();
    let sign_in = Browser::new().go(&rig.gateway.url("/login")).await.page();
    let anonymous = sign_in.form_to("/login").value("csrf").unwrap().to_owned();
    for forged in ["", "x", theirs.as_str(), anonymous.as_str(), flow] {
        let fields = [("csrf", forged), ("flow", flow), ("decision", "allow")];
        let answer = rig.post("/oauth/consent", &browser, &own, &fields).await;
        assert_eq!((answer.status, meta_refresh(&answer.body)), (403, None), "{forged}");
    }
    assert_eq!(rig.post("/oauth/consent", &browser, &own, &good[1..]).await.status, 403);
    for headers in [
        &[][..],
        &[("sec-fetch-site", "cross-site"), ("origin", origin)],
        &[("sec-fetch-site", "same-site"), ("origin", origin)],
        &[("sec-fetch-site", "none")],
        &[("origin", "https://evil.test")],
        &[("origin", "null")],
        &[("origin", "http://127.0.0.1")],
    ] {
        let answer = rig.post("/oauth/consent", &browser, headers, &good).await;
        assert_eq!((answer.status, meta_refresh(&answer.body)), (403, None), "{headers:?}");
    }
    assert_eq!(rig.post("/oauth/consent", &Browser::new(), &own, &good).await.status, 403, "no session");
    for neither in ["", "yes", "ALLOW"] {
        let fields = [("csrf", csrf), ("flow", flow), ("decision", neither)];
        assert_eq!(rig.post("/oauth/consent", &browser, &own, &fields).await.status, 400, "{neither}");
    }
    let got = browser
        .peek(&rig.gateway.url(&format!("/oauth/consent?csrf={csrf}&flow={flow}&decision=allow")))
        .await;
    assert_eq!(got.status, 405);
    // None of it has used the flow up.
    let callback = Callback::of(&browser.consent_allow(&page).await.client());
    client.redeem(&callback.code(), &request).await.tokens();
}

#[tokio::test]
async fn sr_t02_sr_t03_nobody_else_can_answer_a_consent_page() {
    let rig = Rig::start().await;
    let mut browser = rig.signed_in("alice").await;
    let (client, request, page) = rig.consent(&mut browser).await;
    let flow = consent_form(&page).value("flow").unwrap().to_owned();
    // Another user, and the same user in another browser, each with a good form of their own.
    for username in ["bob", "alice"] {
        let mut other = rig.signed_in(username).await;
        let (_, _, own_page) = rig.consent(&mut other).await;
        let form = consent_form(&own_page);
        let answer =
            other.submit_once(&own_page, &form, &[("flow", flow.as_str()), ("decision", "allow")]).await;
        assert_local(&answer, 403, username);
    }
    let callback = Callback::of(&browser.consent_allow(&page).await.client());
    client.redeem(&callback.code(), &request).await.tokens();
    // Nor the next user of the same browser.
    let (_, _, page) = rig.consent(&mut browser).await;
    let mut next = Browser::of("bob");
    next.jar = browser.jar.clone();
    let login = next.go(&rig.gateway.url("/login")).await.page();
    next.sign_in(&login).await;
    let (_, _, own_page) = rig.consent(&mut next).await;
    let csrf = consent_form(&own_page).value("csrf").unwrap().to_owned();
    let form = consent_form(&page);
    let answer = next.submit_once(&page, &form, &[("csrf", csrf.as_str()), ("decision", "allow")]).await;
    assert_local(&answer, 403, "bob at alice's page");
}

#[tokio::test]
async fn sr_t07_two_tabs_from_sign_in_to_token() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    browser.stop_before(REDIRECT);
    let (one, two) =
        (rig.client(&[REDIRECT]).await, rig.client(&[REDIRECT, "https://client.example/other"]).await);
    let (first, second) = (one.authorization("demo"), two.authorization("demo"));
    // Nobody is signed in, so both tabs show the form; the user fills in both before answering anything.
    let sign_in_one = browser.go(&first.url()).await.page();
    let sign_in_two = browser.go(&second.url()).await.page();
    let consent_one = browser.sign_in(&sign_in_one).await.page();
    let consent_two = browser.sign_in(&sign_in_two).await.page();
    let second_code = Callback::of(&browser.consent_allow(&consent_two).await.client());
    let first_code = Callback::of(&browser.consent_allow(&consent_one).await.client());
    assert_eq!((first_code.state(), second_code.state()), (Some(&*first.state), Some(&*second.state)));
    assert_eq!(two.redeem(&first_code.code(), &first).await.error().as_deref(), Some("invalid_grant"));
    one.redeem(&first_code.code(), &first).await.tokens();
    two.redeem(&second_code.code(), &second).await.tokens();
}

// === sign-in ===

#[tokio::test]
async fn sr_t34_a_wrong_password_is_refused_as_an_unknown_user_is() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    let page = browser.go(&rig.gateway.url("/login")).await.page();
    let form = page.form_to("/login");
    let mut said = Vec::new();
    for (username, password) in
        [("alice", "wrong"), ("mallory", "pw"), ("", ""), ("alice", ""), ("ALICE", "pw")]
    {
        let answer =
            browser.submit_once(&page, &form, &[("username", username), ("password", password)]).await;
        assert_eq!((answer.status, answer.header("set-cookie")), (401, None), "{username}");
        assert_eq!(answer.form_to("/login").value("password"), Some(""));
        said.push(answer.text());
    }
    said.dedup();
    assert_eq!(said.len(), 1, "the same words: {said:?}");
    let shown = browser
        .submit_once(&page, &form, &[("username", "\"><script>alert(1)</script>"), ("password", "x")])
        .await;
    assert!(!shown.body.contains("<script"), "{}", shown.body);
    assert_eq!(shown.form_to("/login").value("username"), Some("\"><script>alert(1)</script>"));
    // The right one still works.
    browser.sign_in(&page).await;
    assert!(browser.jar.find(&rig.cookie("session")).is_some());
}

#[tokio::test]
async fn guessing_a_password_is_slowed_down() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    let page = browser.go(&rig.gateway.url("/login")).await.page();
    let form = page.form_to("/login");
    let mut try_once = async |username: &str, password: &str| {
        let fields = [("username", username), ("password", password)];
        browser.submit_once(&page, &form, &fields).await.status
    };
    for _ in 0..10 {
        assert_eq!(try_once("alice", "wrong").await, 401);
    }
    assert_eq!(try_once("alice", "pw").await, 429, "not even the right one counts now");
    assert_eq!(try_once("bob", "pw").await, 200, "others are not kept out");
}

#[tokio::test]
async fn sr_t05_sign_in_takes_our_own_form_in_this_very_browser() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    let page = browser.go(&rig.gateway.url("/login")).await.page();
    let csrf = page.form_to("/login").value("csrf").unwrap().to_owned();
    let elsewhere = Browser::new().go(&rig.gateway.url("/login")).await.page();
    let theirs = elsewhere.form_to("/login").value("csrf").unwrap().to_owned();
    let who = [("username", "alice"), ("password", "pw"), ("next", "/")];
    let with = |csrf: &str| -> Vec<(String, String)> {
        let fields = who.iter().chain([&("csrf", "")]);
        fields
            .map(|(name, value)| {
                ((*name).into(), if *name == "csrf" { csrf.into() } else { (*value).into() })
            })
            .collect()
    };
    let own = [("sec-fetch-site", "same-origin")];
    let evil = [("origin", "https://evil.test")];
    let cross = [("sec-fetch-site", "cross-site"), ("origin", rig.gateway.public_url.as_str())];
    let nobody = Browser::new();
    for (headers, csrf, browser) in [
        (&own[..], "", &browser),
        (&own, "x", &browser),
        (&own, &theirs, &browser),
        (&own, &csrf, &nobody),
        (&[], &csrf, &browser),
        (&evil, &csrf, &browser),
        (&cross, &csrf, &browser),
    ] {
        let fields = with(csrf);
        let fields: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = rig.post("/login", browser, headers, &fields).await;
        assert_eq!(answer.status, 403, "{headers:?} {csrf}");
        let cookies = answer.headers.get_all("set-cookie").iter();
        let session = rig.cookie("session");
        assert!(!cookies.into_iter().any(|cookie| cookie.to_str().unwrap().starts_with(&session)));
    }
    let fields = with(&csrf);
    let fields: Vec<(&str, &str)> =
        fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(rig.post("/login", &browser, &own, &fields).await.status, 200);
    // Older browsers send no Sec-Fetch-Site.
    let origin = [("origin", rig.gateway.public_url.as_str())];
    assert_eq!(rig.post("/login", &browser, &origin, &fields).await.status, 200);
}

#[tokio::test]
async fn sr_t05_signing_in_makes_a_new_session_whatever_was_there() {
    let rig = Rig::start().await;
    let client = rig.client(&[REDIRECT]).await;
    let planted = Stored {
        host: "127.0.0.1".into(),
        path: "/".into(),
        name: rig.cookie("session"),
        value: "chosen-by-somebody-else".into(),
        secure: false,
        http_only: true,
        same_site: None,
        expires: None,
    };
    let mut victim = Browser::new();
    victim.jar.plant(planted.clone());
    client.sign_in(&mut victim, "demo").await;
    let first = victim.jar.find(&planted.name).unwrap().value.clone();
    assert_ne!(first, planted.value);
    assert!(first.len() >= 32, "{first}");
    let mut attacker = Browser::new();
    attacker.jar.plant(planted.clone());
    assert_asked_to_sign_in(
        &attacker.peek(&client.authorization("demo").with("prompt", "consent").url()).await,
    );
    // Also when somebody else's good session was there before.
    let mut bob = rig.signed_in("bob").await;
    let bobs = bob.jar.find(&planted.name).unwrap().clone();
    let mut victim = Browser::new();
    victim.jar.plant(bobs.clone());
    let page = victim.go(&rig.gateway.url("/login")).await.page();
    victim.sign_in(&page).await;
    assert_ne!(victim.jar.find(&planted.name).unwrap().value, bobs.value);
    let shown = async |browser: &mut Browser| {
        let page = browser
            .go_to_consent(REDIRECT, &client.authorization("demo").with("prompt", "consent").url())
            .await;
        page.text()
    };
    assert!(shown(&mut victim).await.contains("signed in as alice"));
    assert!(shown(&mut bob).await.contains("signed in as bob"));
}

#[tokio::test]
async fn sr_t06_a_session_cookie_that_comes_twice_counts_for_nothing() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    let (client, _, page) = rig.consent(&mut browser).await;
    let url = client.authorization("demo").url();
    assert_eq!(browser.peek(&url).await.status, 200, "signed in");
    let session = browser.jar.find(&rig.cookie("session")).unwrap().clone();
    let mut planted = session.clone();
    planted.path = "/oauth".into();
    for value in ["planted", session.value.as_str()] {
        let mut tossed = Browser::new();
        tossed.jar = browser.jar.clone();
        planted.value = value.into();
        tossed.jar.plant(planted.clone());
        assert_asked_to_sign_in(&tossed.peek(&url).await);
        let form = consent_form(&page);
        assert_local(&tossed.submit_once(&page, &form, &[("decision", "allow")]).await, 403, value);
    }
    // A name that only looks like ours is somebody else's.
    let port = rig.gateway.address.port();
    for name in [
        "postern-session".to_owned(),
        format!("postern-session-{}", port - 1),
        format!("POSTERN-SESSION-{port}"),
        "__Host-postern-session".into(),
    ] {
        let mut other = Browser::new();
        other.jar.plant(Stored { name, ..session.clone() });
        assert_asked_to_sign_in(&other.peek(&url).await);
    }
    // The cookie that binds the sign-in form is read as strictly.
    let mut tossed = Browser::new();
    let page = tossed.go(&rig.gateway.url("/login")).await.page();
    let mut second = tossed.jar.find(&rig.cookie("sign-in")).unwrap().clone();
    second.path = "/login".into();
    tossed.jar.plant(second);
    let form = page.form_to("/login");
    let answer = tossed.submit_once(&page, &form, &[("username", "alice"), ("password", "pw")]).await;
    assert_eq!(answer.status, 403);
}

#[tokio::test]
async fn sr_t13_sign_in_leads_to_our_own_pages_only() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    let home = browser.go(&rig.gateway.url("/login")).await.page();
    let form = home.form_to("/login");
    let who = [("username", "alice"), ("password", "pw")];
    for next in [
        "//evil.test",
        "///evil.test",
        "/\\evil.test",
        "\\\\evil.test",
        "/\t/evil.test",
        "\t//evil.test",
        " //evil.test",
        "/\n/evil.test",
        "https:evil.test",
        "https://evil.test/",
        "//evil.test@127.0.0.1/",
        "evil.test",
        "@evil.test",
        ".evil.test",
        "javascript:alert(1)",
        "data:text/html,x",
        "/%0d%0aLocation:https://evil.test\r\nLocation: https://evil.test",
        "/é",
        "",
    ] {
        let query = Params::new().with("next", next).encoded();
        let page = browser.go(&rig.gateway.url(&format!("/login?{query}"))).await.page();
        assert_eq!(page.form_to("/login").value("next"), Some("/"), "{next:?}");
        let fields: Vec<(&str, &str)> = who.into_iter().chain([("next", next)]).collect();
        let answer = browser.submit_once(&home, &form, &fields).await;
        assert_eq!((answer.status, answer.header("location")), (200, None), "{next:?}");
        assert_eq!(meta_refresh(&answer.body).as_deref(), Some("/"), "{next:?}");
    }
    // What looks odd but stays here is kept as it is.
    for next in
        ["/oauth/authorize?a=b%2F%2Fc&x=https://elsewhere.test", "/%0d%0aLocation:x", "/?next=//evil.test"]
    {
        let fields: Vec<(&str, &str)> = who.into_iter().chain([("next", next)]).collect();
        let answer = browser.submit_once(&home, &form, &fields).await;
        let target = meta_refresh(&answer.body).unwrap();
        assert_eq!(target, next);
        let url = answer.url.join(&target).unwrap();
        assert!(url.as_str().starts_with(&rig.gateway.public_url), "{url}");
    }
}

#[tokio::test]
async fn signing_out_ends_the_session_itself() {
    let rig = Rig::start().await;
    let mut browser = rig.signed_in("alice").await;
    let stolen = browser.jar.find(&rig.cookie("session")).unwrap().clone();
    let home = browser.go(&rig.gateway.url("/")).await.page();
    let form = home.form_to("/logout");
    let forged = rig
        .post(
            "/logout",
            &browser,
            &[("sec-fetch-site", "cross-site")],
            &[("csrf", form.value("csrf").unwrap())],
        )
        .await;
    assert_eq!(forged.status, 403);
    let out = browser.submit_once(&home, &form, &[]).await;
    assert_eq!(out.status, 200);
    assert!(browser.jar.find(&stolen.name).is_none(), "the cookie is taken away");
    let client = rig.client(&[REDIRECT]).await;
    browser.jar.plant(stolen);
    assert_asked_to_sign_in(&browser.peek(&client.authorization("demo").url()).await);
}

// === cookies and pages ===

#[tokio::test]
async fn sr_t06_cookies_over_https_are_host_cookies() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).tls().start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new().trusting(&gateway.roots);
    client.sign_in(&mut browser, "demo").await;
    let mut names: Vec<&str> = browser.jar.all().iter().map(|cookie| cookie.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["__Host-postern-session", "__Host-postern-sign-in"]);
    let mut set = 0;
    for cookie in browser.hops.iter().flat_map(|hop| hop.headers.get_all("set-cookie")) {
        let attributes: Vec<String> =
            cookie.to_str().unwrap().split(';').map(|part| part.trim().to_lowercase()).collect();
        for wanted in ["secure", "httponly", "samesite=lax", "path=/"] {
            assert!(attributes.iter().any(|attribute| attribute == wanted), "{wanted}: {cookie:?}");
        }
        assert!(!attributes.iter().any(|attribute| attribute.starts_with("domain")), "{cookie:?}");
        set += 1;
    }
    assert_eq!(set, 2);
}

#[tokio::test]
async fn sr_t06_cookies_on_a_loopback_address_keep_ports_apart() {
    let (one, two) = tokio::join!(Rig::start(), Rig::start());
    let mut browser = Browser::new();
    for rig in [&one, &two, &one] {
        let client = rig.client(&[REDIRECT]).await;
        client.sign_in(&mut browser, "demo").await;
    }
    let sign_ins = browser.hops.iter().filter(|hop| hop.method == "POST" && hop.url.path() == "/login");
    assert_eq!(sign_ins.count(), 2, "each gateway has kept its own session: {:?}", browser.trail());
    for rig in [&one, &two] {
        let session = browser.jar.find(&rig.cookie("session")).unwrap();
        assert!(session.http_only && !session.secure && session.path == "/");
        assert_eq!(session.same_site, Some(cookie::SameSite::Lax));
    }
    assert_eq!(browser.jar.all().len(), 4);
}

#[tokio::test]
async fn sr_t16_sr_as_20_forms_are_answered_with_pages_that_move_on() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    client.sign_in(&mut browser, "demo").await;
    let mut posts = Vec::new();
    for hop in browser.hops.iter().filter(|hop| hop.url.as_str().starts_with(&gateway.public_url)) {
        if hop.method == "POST" {
            assert_eq!((hop.status, hop.headers.get("location")), (200, None), "{}", hop.url);
            assert_eq!(hop.headers["cache-control"], "no-store");
            assert!(hop.next.is_some(), "{}", hop.url);
            posts.push(hop.url.path());
        } else if hop.headers.contains_key("location") {
            assert_eq!(hop.status, 303, "{}", hop.url);
        }
    }
    assert_eq!(posts, ["/login", "/oauth/consent"]);
}

#[tokio::test]
async fn sr_as_19_every_page_is_guarded() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    let url = |path: &str| rig.gateway.url(path);
    let (client, request, consent) = rig.consent(&mut browser).await;
    let mut pages = vec![consent.clone()];
    let form = consent_form(&consent);
    pages.push(browser.submit_once(&consent, &form, &[("csrf", "x")]).await);
    pages.push(browser.submit_once(&consent, &form, &[("decision", "allow")]).await);
    pages.push(browser.submit_once(&consent, &form, &[("decision", "allow")]).await);
    for path in [
        "/",
        "/login",
        "/login?next=//evil.test",
        "/oauth/authorize",
        "/oauth/nothing",
        "/oauth/upstream/callback/x?code=c&state=s",
    ] {
        pages.push(browser.peek(&url(path)).await);
    }
    pages.push(browser.peek(&request.clone().without("response_type").url()).await);
    pages.push(Browser::new().peek(&client.authorization("demo").url()).await);
    let login = browser.go(&url("/login")).await.page();
    let form = login.form_to("/login");
    pages.push(browser.submit_once(&login, &form, &[("username", "x"), ("password", "x")]).await);
    pages.push(browser.submit_once(&login, &form, &[("username", "alice"), ("password", "pw")]).await);
    let mut seen: Vec<u16> = pages.iter().map(|page| page.status).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [200, 303, 400, 401, 403, 404]);
    for page in &pages {
        let about = format!("{} {}", page.url, page.status);
        let policy = page.header("content-security-policy").unwrap_or_default();
        for part in ["default-src 'none'", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"]
        {
            assert!(policy.contains(part), "{about}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{about}: {policy}");
        for (name, value) in [
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(page.header(name), Some(value), "{about}: {name}");
        }
        assert_eq!(page.header("access-control-allow-origin"), None, "{about}");
        assert!(!page.body.contains("<script") && !page.body.contains("style="), "{about}");
    }
}

#[tokio::test]
async fn sr_t04_a_link_from_another_site_leads_to_the_question_and_not_to_a_code() {
    let rig = Rig::start().await;
    let mut browser = Browser::new();
    let (_, request, _) = rig.consent(&mut browser).await;
    let page = browser.follow_from("https://evil.test/", &request.url()).await.page();
    assert_eq!(page.status, 200);
    page.form_with_button("allow");
}
