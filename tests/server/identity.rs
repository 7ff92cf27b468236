//! Signing in through identity providers: who comes in, who does not, and what happens when they sign out there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use support::browser::{Arrival, Browser, Page};
use support::client::{Callback, Client, Tokens};
use support::eventually;
use support::gateway::{Builder, Gateway, Route};
use support::identity::IdentityProvider;
use support::key::Key;
use support::process::run;
use support::upstream::Upstream;

const SECOND: Duration = Duration::from_secs(1);
const SECRET: &str = "of the identity provider";

/// A gateway whose people come from these providers, and from nowhere else.
fn builder(upstream: &Upstream, providers: &[Value]) -> Builder {
    Gateway::builder()
        .route(Route::open("demo", upstream))
        .env("IDP_SECRET", SECRET)
        .with("login", json!({"oidc": providers}))
}

async fn start(provider: &IdentityProvider) -> (Gateway, Upstream) {
    let upstream = Upstream::open().await;
    (builder(&upstream, &[provider.entry()]).start().await, upstream)
}

/// Opens the front page's way in, through the provider, to wherever it ends.
async fn come_in(browser: &mut Browser, gateway: &Gateway) -> Page {
    browser.go(&gateway.url("/login/start?provider=corp&next=/")).await.page()
}

async fn sign_in(browser: &mut Browser, gateway: &Gateway) -> (Client, Tokens) {
    let client = Client::register(gateway).await;
    let request = client.authorization("demo");
    let arrival = browser.authorize_or_stop(&client.redirect_uri, &request.url()).await;
    let Arrival::Client(url) = arrival else { panic!("{}", arrival.page().text()) };
    let tokens = client.redeem(&Callback::of(&url).code(), &request).await.tokens();
    (client, tokens)
}

async fn status(gateway: &Gateway, tokens: &Tokens) -> u16 {
    gateway.mcp("demo").bearer(&tokens.access_token).tool("echo", json!({})).await.status
}

#[tokio::test]
async fn a_person_of_the_provider_signs_in_and_reaches_a_server() {
    let provider = IdentityProvider::start().await;
    let (gateway, _upstream) = start(&provider).await;
    let mut browser = Browser::new();
    let (client, tokens) = sign_in(&mut browser, &gateway).await;
    assert_eq!(status(&gateway, &tokens).await, 200);
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
    // With one way in only there was nothing to choose; the page names the person, the log who it is.
    let home = browser.go(&gateway.url("/")).await.page();
    assert!(home.text().contains("ada@example.com"), "{}", home.text());
    let asked = provider.requests.last_to("/authorize");
    for (name, value) in [
        ("response_type", "code".to_owned()),
        ("client_id", "postern".to_owned()),
        ("scope", "openid profile email".to_owned()),
        ("code_challenge_method", "S256".to_owned()),
        ("redirect_uri", gateway.url("/login/callback")),
    ] {
        assert_eq!(asked.parameter(name), Some(value), "{name}");
    }
    let basic = provider.requests.last_to("/token").header("authorization").unwrap();
    let pair = data_encoding::BASE64.decode(&basic.as_bytes()["Basic ".len()..]).unwrap();
    assert_eq!(String::from_utf8(pair).unwrap(), "postern:of+the+identity+provider");
    let signed_in = |user: String| {
        let is = move |line: &serde_json::Value| line["event"] == "sign_in" && line["user"] == user.as_str();
        gateway.output.has(1, is)
    };
    signed_in(provider.user("4711")).await;
    // The same person again is the same user; another one is another, whatever their address is.
    provider.set(|script| script.claims["sub"] = "4712".into());
    let mut other = Browser::new();
    sign_in(&mut other, &gateway).await;
    signed_in(provider.user("4712")).await;
    assert!(!gateway.output.text().contains(SECRET));
}

#[tokio::test]
async fn two_providers_and_passwords_live_side_by_side() {
    let (one, two) = (IdentityProvider::start().await, IdentityProvider::start().await);
    let upstream = Upstream::open().await;
    let mut second = two.entry();
    (second["name"], second["label"]) = ("other".into(), "Other <b>Corp</b>".into());
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .env("IDP_SECRET", SECRET)
        .with("login.oidc", json!([one.entry(), second]))
        .start()
        .await;
    let mut browser = Browser::new();
    let page = browser.go(&gateway.url("/login")).await.page();
    let text = page.text();
    assert!(
        text.contains("Sign in with Example Corp") && text.contains("Sign in with Other <b>Corp</b>"),
        "{text}"
    );
    assert!(!page.body.contains("<b>Corp</b>"), "a label is no HTML");
    assert_eq!(browser.sign_in(&page).await.page().status, 200, "by password");
    // The same subject at two providers is two people.
    for (provider, name) in [(&one, "corp"), (&two, "other")] {
        let mut browser = Browser::new();
        let home = browser.go(&gateway.url(&format!("/login/start?provider={name}"))).await.page();
        assert!(home.text().contains("You are signed in as"), "{}", home.text());
        let user = provider.user("4711");
        gateway.output.has(1, |line| line["event"] == "sign_in" && line["user"] == user.as_str()).await;
    }
    let lost = browser.go(&gateway.url("/login/start?provider=nobody")).await.page();
    assert_eq!(lost.status, 404);
}

#[tokio::test]
async fn sr_t18_a_provider_with_an_address_of_its_own_is_not_taken_for_another() {
    let (honest, evil) = (IdentityProvider::start().await, IdentityProvider::start().await);
    let upstream = Upstream::open().await;
    let (mut own, mut other) = (honest.entry(), evil.entry());
    own["own_redirect_uri"] = true.into();
    (other["name"], other["own_redirect_uri"]) = ("evil".into(), true.into());
    let gateway = builder(&upstream, &[own, other]).start().await;
    let mut browser = Browser::new();
    let home = browser.go(&gateway.url("/login/start?provider=corp")).await.page();
    assert!(home.text().contains("You are signed in as"), "{}", home.text());
    assert_eq!(
        honest.requests.last_to("/authorize").parameter("redirect_uri"),
        Some(gateway.url("/login/callback/corp"))
    );
    // The evil one hands the question on to the honest one, whose answer then comes as if it were its own.
    let mut victim = Browser::new();
    let begun = victim.peek(&gateway.url("/login/start?provider=evil")).await;
    let asked = begun.header("location").unwrap().replace(&evil.issuer, &honest.issuer);
    let answer = victim.peek(&asked.replace("callback%2Fevil", "callback%2Fcorp")).await;
    let redeemed = (honest.requests.count("/token"), evil.requests.count("/token"));
    for address in ["/login/callback/corp", "/login/callback", "/login/callback/nobody"] {
        let url = answer.header("location").unwrap().replace("/login/callback/corp", address);
        assert_eq!(victim.go(&url).await.page().status, 400, "{address}");
    }
    assert_eq!(
        (honest.requests.count("/token"), evil.requests.count("/token")),
        redeemed,
        "the code goes nowhere"
    );
}

#[tokio::test]
async fn what_does_not_hold_together_signs_nobody_in() {
    let provider = IdentityProvider::start().await;
    let (gateway, _upstream) = start(&provider).await;
    let claims = |name: &'static str, value: Value| {
        move |script: &mut support::identity::Script| script.claims[name] = value
    };
    type Lie = Box<dyn FnOnce(&mut support::identity::Script)>;
    let lies: Vec<(&str, Lie)> = vec![
        ("another issuer", Box::new(claims("iss", json!("https://evil.example")))),
        (
            "an issuer with a slash more",
            Box::new({
                let issuer = format!("{}/", provider.issuer);
                move |script| script.claims["iss"] = issuer.into()
            }),
        ),
        ("another audience", Box::new(claims("aud", json!("another")))),
        ("two audiences and no party", Box::new(claims("aud", json!(["postern", "another"])))),
        ("another party", Box::new(claims("azp", json!("another")))),
        ("another nonce", Box::new(claims("nonce", json!("another")))),
        ("no nonce", Box::new(claims("nonce", json!(null)))),
        ("expired", Box::new(claims("exp", json!(1_700_000_000)))),
        ("not yet", Box::new(claims("nbf", json!(4_000_000_000_u64)))),
        ("no subject", Box::new(claims("sub", json!(null)))),
        ("an empty subject", Box::new(claims("sub", json!("")))),
        ("a subject without end", Box::new(claims("sub", json!("x".repeat(256))))),
        ("a subject with a line break", Box::new(claims("sub", json!("a\nb")))),
        ("another key", Box::new(|script| script.forger = Some(Arc::new(Key::new("idp"))))),
        ("an unknown key", Box::new(|script| script.forger = Some(Arc::new(Key::new("new"))))),
        (
            "another iss in the callback",
            Box::new(|script| {
                script.callback = vec![("iss".into(), "https://evil.example".into())];
            }),
        ),
        ("a code of nobody", Box::new(|script| script.callback = vec![("code".into(), "x".into())])),
    ];
    let refusals = lies.len();
    for (what, lie) in lies {
        let mut clean = None;
        provider.set(|script| {
            clean = Some((script.claims.clone(), script.key.clone()));
            lie(script);
        });
        let mut browser = Browser::new();
        let page = come_in(&mut browser, &gateway).await;
        assert_eq!(page.status, 502, "{what}: {}", page.text());
        let home = browser.go(&gateway.url("/")).await.page();
        assert!(!home.text().contains("You are signed in"), "{what}");
        provider.set(|script| {
            (script.claims, script.key) = clean.unwrap();
            (script.forger, script.callback) = (None, Vec::new());
        });
    }
    gateway.output.has(refusals, |line| line["event"] == "sign_in_failed").await;
    assert!(gateway.output.records().iter().all(|line| line["event"] != "sign_in"));
    // And when it tells the truth again, everybody comes in.
    assert_eq!(come_in(&mut Browser::new(), &gateway).await.status, 200);
}

#[tokio::test]
async fn sr_t05_a_sign_in_belongs_to_the_browser_that_began_it_and_is_good_once() {
    let provider = IdentityProvider::start().await;
    let (gateway, _upstream) = start(&provider).await;
    let mut mallory = Browser::new();
    let begun = mallory.peek(&gateway.url("/login/start?provider=corp")).await;
    assert!(begun.header("set-cookie").unwrap().contains("HttpOnly"), "{:?}", begun.headers);
    let at_provider = mallory.peek(begun.header("location").unwrap()).await;
    let callback = at_provider.header("location").unwrap().to_owned();
    // Alice is led to the end of Mallory's sign-in: she does not become Mallory, and it is not used up.
    let tokens = provider.requests.count("/token");
    for mut alice in [Browser::new(), {
        let mut other = Browser::new();
        other.peek(&gateway.url("/login/start?provider=corp")).await;
        other
    }] {
        let page = alice.go(&callback).await.page();
        assert_eq!(page.status, 400, "{}", page.text());
        assert!(!alice.go(&gateway.url("/")).await.page().text().contains("You are signed in"));
    }
    assert_eq!(provider.requests.count("/token"), tokens, "the code was sent nowhere");
    assert_eq!(mallory.go(&callback).await.page().status, 200);
    assert_eq!(mallory.go(&callback).await.page().status, 400, "good once");
    for wrong in ["/login/callback", "/login/callback?code=x", "/login/callback?state=x&code=y&state=z"] {
        assert_eq!(mallory.go(&gateway.url(wrong)).await.page().status, 400, "{wrong}");
    }
    // Signing in makes a session of its own, and leads nowhere but to our own pages.
    let page = mallory.go(&gateway.url("/login/start?provider=corp&next=https://evil.example/")).await.page();
    assert_eq!(page.url.as_str(), gateway.url("/"));
}

#[tokio::test]
async fn sr_as_40_pom_b17_a_provider_that_is_away_is_an_outage_and_nobody_is_signed_out() {
    let provider = IdentityProvider::start().await;
    let (gateway, _upstream) = start(&provider).await;
    let mut browser = Browser::new();
    let (client, tokens) = sign_in(&mut browser, &gateway).await;
    provider.set(|script| script.token_status = 503);
    let page = come_in(&mut Browser::new(), &gateway).await;
    assert_eq!((page.status, page.header("retry-after")), (503, Some("5")), "{}", page.text());
    provider.set(|script| script.down = true);
    // Who is in stays in, and refreshes.
    assert_eq!(status(&gateway, &tokens).await, 200);
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
    let home = browser.go(&gateway.url("/")).await.page();
    assert!(home.text().contains("ada@example.com"));
    // A gateway that never reached it says so, and tries again by itself.
    let upstream = Upstream::open().await;
    let late = builder(&upstream, &[provider.entry()]).start().await;
    assert_eq!(come_in(&mut Browser::new(), &late).await.status, 503);
    provider.set(|script| (script.down, script.token_status) = (false, 200));
    eventually(Duration::from_secs(12), async || come_in(&mut Browser::new(), &late).await.status == 200)
        .await;
}

#[tokio::test]
async fn keys_that_rotate_are_taken_and_a_document_of_another_issuer_is_not() {
    let provider = IdentityProvider::start().await;
    let (gateway, upstream) = start(&provider).await;
    assert_eq!(come_in(&mut Browser::new(), &gateway).await.status, 200);
    assert_eq!(provider.requests.count("/keys"), 1);
    assert_eq!(come_in(&mut Browser::new(), &gateway).await.status, 200);
    assert_eq!(provider.requests.count("/keys"), 1, "kept");
    let liar = IdentityProvider::start().await;
    liar.set(|script| script.metadata = json!({"issuer": "https://evil.example"}));
    let lied_to = builder(&upstream, &[liar.entry()]).start().await;
    assert_eq!(come_in(&mut Browser::new(), &lied_to).await.status, 503);
    assert_eq!(liar.requests.count("/authorize"), 0);
    // Started after the rotation, it needs no second look.
    provider.set(|script| script.key = Arc::new(Key::new("rotated")));
    let fresh = builder(&upstream, &[provider.entry()]).start().await;
    assert_eq!(come_in(&mut Browser::new(), &fresh).await.status, 200);
}

#[tokio::test]
async fn only_the_domains_and_groups_that_are_listed_come_in() {
    let provider = IdentityProvider::start().await;
    let upstream = Upstream::open().await;
    let mut entry = provider.entry();
    (entry["allowed_domains"], entry["allowed_groups"]) = (json!(["example.com"]), json!(["eng", "ops"]));
    let gateway = builder(&upstream, &[entry]).start().await;
    let good =
        json!({"sub": "1", "email": "ada@Example.com", "email_verified": true, "groups": ["sales", "ops"]});
    for (name, value, status) in [
        ("sub", json!("1"), 200),
        ("groups", json!("eng"), 200),
        ("groups", json!(["sales"]), 403),
        ("groups", json!(null), 403),
        ("groups", json!({"eng": true}), 403),
        ("email", json!("ada@evil.example"), 403),
        ("email", json!("ada@example.com.evil.example"), 403),
        ("email", json!("ada@sub.example.com"), 403),
        ("email", json!("example.com"), 403),
        ("email", json!(null), 403),
        ("email_verified", json!(false), 403),
        ("email_verified", json!("true"), 403),
        ("email_verified", json!(null), 403),
    ] {
        let mut claims = good.clone();
        claims[name] = value.clone();
        provider.set(|script| script.claims = claims);
        let page = come_in(&mut Browser::new(), &gateway).await;
        assert_eq!(page.status, status, "{name}: {value}: {}", page.text());
    }
}

#[tokio::test]
async fn what_the_id_token_leaves_out_is_asked_for() {
    let provider = IdentityProvider::start().await;
    provider.set(|script| {
        script.claims = json!({"sub": "1"});
        script.userinfo = Some(json!({}));
    });
    let upstream = Upstream::open().await;
    let mut entry = provider.entry();
    (entry["allowed_domains"], entry["allowed_groups"]) = (json!(["example.com"]), json!(["ops"]));
    let gateway = builder(&upstream, &[entry]).start().await;
    let good = json!({"sub": "1", "email": "ada@example.com", "email_verified": true, "groups": ["ops"]});
    let said = |name: &str, value: Value| {
        let mut userinfo = good.clone();
        userinfo[name] = value;
        userinfo
    };
    for (what, claims, userinfo, status) in [
        ("all of it", json!({"sub": "1"}), good.clone(), 200),
        ("no proof of the address", json!({"sub": "1"}), said("email_verified", json!(false)), 403),
        ("about somebody else", json!({"sub": "1"}), said("sub", json!("2")), 502),
        ("about nobody", json!({"sub": "1"}), said("sub", json!(null)), 502),
        ("another address", json!({"sub": "1", "email": "ada@evil.example"}), good.clone(), 403),
        (
            "proof of no address",
            json!({"sub": "1", "email_verified": true}),
            said("email_verified", json!(false)),
            403,
        ),
        ("proof of another address", json!({"sub": "1", "email": "eve@example.com"}), good.clone(), 403),
        ("groups that were said already", json!({"sub": "1", "groups": ["sales"]}), good.clone(), 403),
    ] {
        provider.set(|script| (script.claims, script.userinfo) = (claims, Some(userinfo)));
        let page = come_in(&mut Browser::new(), &gateway).await;
        assert_eq!(page.status, status, "{what}: {}", page.text());
    }
    provider.set(|script| {
        (script.claims, script.userinfo) = (json!({"sub": "1"}), Some(good.clone()));
        script.userinfo_status = 503;
    });
    assert_eq!(
        come_in(&mut Browser::new(), &gateway).await.status,
        503,
        "nothing is known against the person"
    );
    // Where it is about a name alone, nobody is turned away.
    let open = builder(&upstream, &[provider.entry()]).start().await;
    assert_eq!(come_in(&mut Browser::new(), &open).await.status, 200);
    provider.set(|script| script.userinfo_status = 200);
    let home = come_in(&mut Browser::new(), &open).await;
    assert!(home.text().contains("ada@example.com"), "{}", home.text());
    // Nothing is asked where nothing is missing.
    let asked = provider.requests.count("/userinfo");
    provider.set(|script| script.claims = good.clone());
    assert_eq!(come_in(&mut Browser::new(), &gateway).await.status, 200);
    assert_eq!(provider.requests.count("/userinfo"), asked);
}

#[tokio::test]
async fn signing_out_here_leads_to_signing_out_there() {
    let provider = IdentityProvider::start().await;
    let (gateway, _upstream) = start(&provider).await;
    let mut browser = Browser::new();
    let home = come_in(&mut browser, &gateway).await;
    let there = browser.press(&home, "Sign out").await.page();
    assert_eq!(there.url.origin().ascii_serialization(), provider.issuer, "{}", there.url);
    let asked = provider.requests.last_to("/end");
    assert_eq!(asked.parameter("post_logout_redirect_uri"), Some(gateway.url("/login/signed-out")));
    assert_eq!(asked.parameter("id_token_hint").unwrap().split('.').count(), 3);
    let page = browser.go(&gateway.url("/login/signed-out")).await.page();
    assert!(page.text().contains("You are signed out"));
    assert!(!browser.go(&gateway.url("/")).await.page().text().contains("You are signed in"));
}

#[tokio::test]
async fn sr_as_39_signing_out_there_ends_the_sessions_here() {
    let provider = IdentityProvider::start().await;
    let upstream = Upstream::open().await;
    let mut entry = provider.entry();
    entry["logout_ends_grants"] = true.into();
    let gateway = builder(&upstream, &[entry]).start().await;
    let notify = async |token: &str| {
        let body =
            form_urlencoded::Serializer::new(String::new()).append_pair("logout_token", token).finish();
        let request = gateway.http.post(gateway.url("/login/backchannel-logout"));
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        request.send().await.unwrap().status().as_u16()
    };
    let is_in = async |browser: &mut Browser| {
        browser.go(&gateway.url("/")).await.page().text().contains("You are signed in")
    };
    let (mut here, mut elsewhere) = (Browser::new(), Browser::new());
    let (_, tokens) = sign_in(&mut here, &gateway).await;
    provider.set(|script| script.claims["sid"] = "s2".into());
    come_in(&mut elsewhere, &gateway).await;
    // Nothing but a logout token of this provider for us, and each once.
    let id_token_like = provider.logout_token(&json!({"sub": "4711", "nonce": "n"}));
    for wrong in [
        String::new(),
        "nonsense".to_owned(),
        id_token_like,
        provider.logout_token(&json!({"sub": "4711", "events": {}})),
        provider.logout_token(&json!({"sub": "4711", "aud": "another"})),
        provider.logout_token(&json!({"sub": "4711", "iss": "https://evil.example"})),
        provider.logout_token(&json!({"sub": "4711", "exp": 1_700_000_000})),
        provider.logout_token(&json!({"sub": "4711", "jti": null})),
        provider.logout_token(&json!({})),
        Key::new("idp").sign(&json!({"iss": provider.issuer, "aud": "postern", "sub": "4711", "jti": "1",
            "exp": 4_000_000_000_u64, "events": {"http://schemas.openid.net/event/backchannel-logout": {}}})),
    ] {
        assert_eq!(notify(&wrong).await, 400, "{wrong}");
    }
    assert!(is_in(&mut here).await && is_in(&mut elsewhere).await);
    // One session of the two.
    assert_eq!(notify(&provider.logout_token(&json!({"sid": "s2"}))).await, 200);
    assert!(is_in(&mut here).await && !is_in(&mut elsewhere).await);
    // What the person had granted ends too, as this configuration says.
    eventually(SECOND, async || status(&gateway, &tokens).await == 401).await;
    // A notice that names a session alone counts for what was granted even when the session here is long over.
    provider.set(|script| script.claims["sid"] = "s0".into());
    let (_, granted) = sign_in(&mut elsewhere, &gateway).await;
    assert_eq!(status(&gateway, &granted).await, 200);
    let home = elsewhere.go(&gateway.url("/")).await.page();
    elsewhere.press(&home, "Sign out").await;
    assert_eq!(notify(&provider.logout_token(&json!({"sid": "s0"}))).await, 200);
    eventually(SECOND, async || status(&gateway, &granted).await == 401).await;
    // A session there that came later is the one that counts.
    provider.set(|script| script.claims["sid"] = "s3".into());
    come_in(&mut here, &gateway).await;
    assert_eq!(notify(&provider.logout_token(&json!({"sid": "s3"}))).await, 200);
    assert!(!is_in(&mut here).await);
    let (_, tokens) = sign_in(&mut here, &gateway).await;
    assert_eq!(status(&gateway, &tokens).await, 200);
    // All of the person's, and what they had granted, as the configuration says.
    let everywhere = provider.logout_token(&json!({"sub": "4711"}));
    assert_eq!(notify(&everywhere).await, 200);
    assert!(!is_in(&mut here).await);
    eventually(SECOND, async || status(&gateway, &tokens).await == 401).await;
    // Shown again it ends nothing that was begun since.
    come_in(&mut here, &gateway).await;
    assert_eq!(notify(&everywhere).await, 200);
    assert!(is_in(&mut here).await);
}

#[tokio::test]
async fn a_person_of_a_provider_is_blocked_like_anybody_and_gone_with_their_provider() {
    let provider = IdentityProvider::start().await;
    let (mut gateway, _upstream) = start(&provider).await;
    let mut browser = Browser::new();
    let (_, tokens) = sign_in(&mut browser, &gateway).await;
    let user = provider.user("4711");
    // The embedded store belongs to the running process.
    gateway.stop().await;
    let file = gateway.config_file();
    let environment = [("IDP_SECRET", SECRET)];
    let users = async |words: &[&str]| {
        let words = [&["users"], words, &["--config", file.to_str().unwrap()]].concat();
        run(&words, &environment).await
    };
    assert_eq!(users(&["block", &user]).await.code, Some(0));
    gateway.restart().await;
    assert_eq!(status(&gateway, &tokens).await, 401);
    let page = come_in(&mut Browser::new(), &gateway).await;
    assert!(page.status == 403 && page.text().contains("This account is blocked"), "{}", page.text());
    gateway.stop().await;
    assert_eq!(users(&["unblock", &user]).await.code, Some(0));
    gateway.restart().await;
    assert_eq!(status(&gateway, &tokens).await, 200);
    // Another provider under the same name is another world.
    let other = IdentityProvider::start().await;
    gateway.reconfigure("login.oidc", json!([other.entry()]));
    gateway.hang_up();
    eventually(SECOND, async || status(&gateway, &tokens).await == 401).await;
}

#[tokio::test]
async fn sr_t07_sr_rs_14_a_flood_of_sign_ins_is_held_up_and_those_under_way_go_on() {
    let provider = IdentityProvider::start().await;
    let (gateway, _upstream) = start(&provider).await;
    let mut browser = Browser::new();
    let (_, tokens) = sign_in(&mut browser, &gateway).await;
    let mut late = Browser::new();
    let begun = late.peek(&gateway.url("/login/start?provider=corp")).await;
    let at_provider = late.peek(begun.header("location").unwrap()).await;
    let (mut let_in, since) = (0, std::time::Instant::now());
    let count = if std::env::var_os("POSTERN_SOAK").is_some() { 100_000 } else { 700 };
    let long = format!("/{}", "x".repeat(20_000));
    for number in 0..count {
        let next = if number == 0 { &long } else { "/" };
        let url = gateway.url(&format!("/login/start?provider=corp&next={next}"));
        match gateway.http.get(url).send().await.unwrap().status().as_u16() {
            303 => let_in += 1,
            status => assert_eq!(status, 429),
        }
    }
    let seconds = since.elapsed().as_secs();
    assert!(let_in >= 500 && let_in <= 601 + 2 * (seconds + 1), "{let_in} in {seconds} s");
    assert_eq!(late.go(at_provider.header("location").unwrap()).await.page().status, 200);
    assert_eq!(status(&gateway, &tokens).await, 200);
}

#[tokio::test]
async fn a_session_ends_when_it_is_not_used_and_in_any_case_after_its_time() {
    let provider = IdentityProvider::start().await;
    let upstream = Upstream::open().await;
    let login = json!({"oidc": [provider.entry()], "session_idle": "2s", "session_ttl": "5s"});
    let gateway = builder(&upstream, &[]).with("login", login).start().await;
    let (mut used, mut unused) = (Browser::new(), Browser::new());
    come_in(&mut unused, &gateway).await;
    come_in(&mut used, &gateway).await;
    let begun = std::time::Instant::now();
    let is_in = async |browser: &mut Browser| {
        browser.go(&gateway.url("/")).await.page().text().contains("You are signed in")
    };
    let mut last = Duration::ZERO;
    while is_in(&mut used).await {
        last = begun.elapsed();
        assert!(last < 7 * SECOND, "for ever");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(last > 3 * SECOND, "ended although it was used: {last:?}");
    assert!(!is_in(&mut unused).await);
}
