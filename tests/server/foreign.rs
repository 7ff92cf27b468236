//! Routes whose access tokens come from somebody else's authorization server: which tokens count, and who has them here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Builder, Gateway, Route};
use support::identity::IdentityProvider;
use support::key::Key;
use support::mcp::{McpAnswer, McpRequest};
use support::process::run;
use support::script::Answer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The entry of `trusted_issuers`.
fn trusted(provider: &IdentityProvider) -> Value {
    json!({"name": "corp", "issuer": provider.issuer, "allow_private": true})
}

fn asked_about(provider: &IdentityProvider, cache: &str) -> Value {
    let mut entry = trusted(provider);
    entry["introspection"] =
        json!({"client_id": "postern", "client_secret": {"env": "IDP_SECRET"}, "cache": cache});
    entry
}

fn builder(route: Route, issuer: Value) -> Builder {
    Gateway::builder()
        .route(route.with("trusted_issuers", json!(["corp"])))
        .env("IDP_SECRET", "of Postern at the issuer")
        .with("trusted_issuers", json!([issuer]))
}

async fn call(gateway: &Gateway, token: &str) -> McpAnswer {
    gateway.mcp("demo").bearer(token).tool("echo", json!({"message": "heard"})).await
}

async fn document(gateway: &Gateway, path: &str) -> Value {
    McpRequest::to(&gateway.http, &gateway.url(path)).get().await.json()
}

#[tokio::test]
async fn sr_t27_sr_t25_a_route_takes_what_its_issuer_signs_for_it_and_nothing_else() {
    let (upstream, other, provider) =
        (Upstream::open().await, Upstream::open().await, IdentityProvider::start().await);
    let gateway = builder(Route::open("demo", &upstream), trusted(&provider))
        .route(Route::open("own", &other))
        .start()
        .await;
    let resource = gateway.url("/demo");
    let refused = gateway.mcp("demo").tool("echo", json!({})).await;
    assert_eq!((refused.status, refused.challenge("scope")), (401, None));
    let metadata = document(&gateway, "/.well-known/oauth-protected-resource/demo").await;
    assert_eq!(metadata["authorization_servers"], json!([provider.issuer]));
    assert_eq!(metadata["resource"], json!(resource));
    let own = document(&gateway, "/.well-known/oauth-protected-resource/own").await;
    assert_eq!(own["authorization_servers"], json!([gateway.public_url]));

    let token = provider.access_token(&resource, &json!({}));
    for _ in 0..20 {
        assert_eq!(call(&gateway, &token).await.tool_text(), "heard");
    }
    let several = provider.access_token(
        "",
        &json!({"aud": ["https://other.example", resource], "client_id": null, "azp": "editor"}),
    );
    assert_eq!(call(&gateway, &several).await.status, 200);
    assert_eq!(provider.requests.count("/keys"), 1);
    assert!(!upstream.requests.mention(&token), "it stays here");

    let bent = |more: Value| provider.access_token(&resource, &more);
    let genuine = bent(json!({}));
    let (start, signature) = genuine.rsplit_once('.').unwrap();
    let unsigned = {
        let part = |value: Value| data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let claims = json!({"iss": provider.issuer, "aud": resource, "sub": "4711", "exp": now() + 60});
        format!("{}.{}.", part(json!({"alg": "none", "typ": "at+jwt"})), part(claims))
    };
    provider.set(|script| script.forger = Some(Arc::new(Key::new("idp"))));
    let forged = bent(json!({}));
    provider.set(|script| script.forger = Some(Arc::new(Key::new("another"))));
    let unknown = bent(json!({}));
    provider.set(|script| script.forger = None);
    let client = Client::register(&gateway).await;
    let ours = client.sign_in(&mut Browser::new(), "own").await;
    for (what, token) in [
        ("for another route", provider.access_token(&gateway.url("/own"), &json!({}))),
        ("for a route whose name goes on", provider.access_token(&format!("{resource}-evil"), &json!({}))),
        ("for the gateway", provider.access_token(&gateway.public_url, &json!({}))),
        ("of another issuer", bent(json!({"iss": "https://evil.example"}))),
        ("of nearly the same issuer", bent(json!({"iss": format!("{}/", provider.issuer)}))),
        ("expired", bent(json!({"exp": now() - 120}))),
        ("not valid yet", bent(json!({"nbf": now() + 600}))),
        ("without an end", bent(json!({"exp": null}))),
        ("of nobody", bent(json!({"sub": null}))),
        ("of somebody unprintable", bent(json!({"sub": "a\u{0}b"}))),
        ("an ID token", bent(json!({"nonce": "n"}))),
        ("forged under a known name", forged),
        ("signed by an unknown key", unknown),
        ("unsigned", unsigned),
        ("without its signature", start.to_owned()),
        ("with half a signature", format!("{start}.{}", &signature[..40])),
        ("of the gateway itself", ours.access_token.clone()),
        ("no token", "nonsense".to_owned()),
        ("too long", "x".repeat(20_000)),
    ] {
        let answer = call(&gateway, &token).await;
        assert_eq!(
            (answer.status, answer.challenge("error").as_deref()),
            (401, Some("invalid_token")),
            "{what}"
        );
    }
    assert_eq!(
        gateway.mcp("own").bearer(&token).tool("echo", json!({})).await.status,
        401,
        "nor the other way round"
    );
    let page = Browser::new().through(&gateway).peek(&client.authorization("demo").url()).await;
    assert!(
        page.header("location").unwrap().contains("error=invalid_target"),
        "no codes for that route here"
    );
    assert!(provider.requests.count("/keys") <= 2, "strangers do not make us ask");
}

#[tokio::test]
async fn sr_rs_03_scopes_of_others_are_told_and_needed_as_ours_are() {
    let (upstream, provider) = (Upstream::open().await, IdentityProvider::start().await);
    let route = Route::open("demo", &upstream)
        .with("scopes", json!(["files.read"]))
        .with("tool_scopes", json!({"whoami": ["files.self"]}));
    let gateway = builder(route, trusted(&provider)).start().await;
    let resource = gateway.url("/demo");
    assert_eq!(
        gateway.mcp("demo").tool("echo", json!({})).await.challenge("scope").as_deref(),
        Some("files.read")
    );
    let refused = call(&gateway, &provider.access_token(&resource, &json!({}))).await;
    assert_eq!((refused.status, refused.challenge("scope").as_deref()), (403, Some("files.read")));
    for claim in
        [json!({"scope": "files.read"}), json!({"scp": ["x", "files.read"]}), json!({"scp": "files.read"})]
    {
        let token = provider.access_token(&resource, &claim);
        assert_eq!(call(&gateway, &token).await.status, 200, "{claim}");
        assert_eq!(gateway.mcp("demo").bearer(&token).tool("whoami", json!({})).await.status, 403);
    }
}

#[tokio::test]
async fn an_issuer_that_is_away_is_no_fault_of_the_token() {
    let (upstream, provider) = (Upstream::open().await, IdentityProvider::start().await);
    let gateway = builder(Route::open("demo", &upstream), trusted(&provider)).start().await;
    let token = || provider.access_token(&gateway.url("/demo"), &json!({}));
    provider.set(|script| script.down = true);
    let first = token();
    let answer = call(&gateway, &first).await;
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.body);
    provider.set(|script| script.down = false);
    eventually(3 * PATIENCE, async || call(&gateway, &first).await.status == 200).await;
    provider.set(|script| script.down = true);
    assert_eq!(call(&gateway, &first).await.status, 200, "what is known goes on");
    assert_eq!(call(&gateway, &token()).await.status, 200, "and its keys are");
}

#[tokio::test]
async fn a_token_that_says_nothing_is_asked_about_and_the_answer_kept_for_a_while() {
    let (upstream, provider) = (Upstream::open().await, IdentityProvider::start().await);
    let gateway = builder(Route::open("demo", &upstream), asked_about(&provider, "1s")).start().await;
    let active = json!({"active": true, "iss": provider.issuer, "sub": "4711", "client_id": "editor",
        "aud": gateway.url("/demo"), "exp": now() + 300});
    let say = |token: &str, more: Value| {
        let mut answer = active.clone();
        for (name, value) in more.as_object().unwrap() {
            answer[name] = value.clone();
        }
        provider.set(|script| drop(script.introspected.insert(token.to_owned(), answer)));
    };
    say("opaque", json!({}));
    let calls = futures_util::future::join_all((0..50).map(|_| call(&gateway, "opaque"))).await;
    assert!(calls.iter().all(|answer| answer.status == 200));
    assert_eq!(provider.requests.count("/introspect"), 1, "once, however many ask at the same time");
    assert!(provider.requests.last_to("/introspect").header("authorization").is_some());
    say("opaque", json!({"active": false}));
    eventually(PATIENCE, async || call(&gateway, "opaque").await.status == 401).await;
    for (token, bent) in [
        ("for another", json!({"aud": "https://other.example"})),
        ("for nobody", json!({"aud": null})),
        ("for one with a blank", json!({"aud": format!("https://other.example {}", gateway.url("/demo"))})),
        ("of another", json!({"iss": "https://evil.example"})),
        ("expired", json!({"exp": now() - 5})),
        ("early", json!({"nbf": now() + 600})),
    ] {
        say(&token.replace(' ', "-"), bent);
        assert_eq!(call(&gateway, &token.replace(' ', "-")).await.status, 401, "{token}");
    }
    // A token that was refused is not asked about again at once.
    let asked = provider.requests.count("/introspect");
    let calls = futures_util::future::join_all((0..20).map(|_| call(&gateway, "made-up"))).await;
    assert!(calls.iter().all(|answer| answer.status == 401));
    assert_eq!(call(&gateway, "made-up").await.status, 401);
    assert_eq!(provider.requests.count("/introspect"), asked + 1);
    provider.set(|script| script.down = true);
    assert_eq!(call(&gateway, "another").await.status, 503);
}

#[tokio::test]
async fn somebody_of_another_issuer_connects_on_their_own_page_and_nobody_by_an_address() {
    let (upstream, provider) = (Upstream::start().await, IdentityProvider::start().await);
    let gateway = builder(Route::oauth("demo", &upstream), trusted(&provider))
        .with("login", json!({"oidc": [provider.entry()]}))
        .start()
        .await;
    let token = |more: &Value| provider.access_token(&gateway.url("/demo"), more);
    let whoami = async |token: &str| gateway.mcp("demo").bearer(token).tool("whoami", json!({})).await;
    let ada = token(&json!({"email": "ada@example.com"}));
    let answer = whoami(&ada).await;
    assert_eq!(answer.status, 403, "a new authorization would not help: {}", answer.body);
    assert!(answer.body.contains(&gateway.url("/connections")), "{}", answer.body);
    let mut browser = Browser::new();
    let page = browser.go(&gateway.url("/login/start?provider=corp&next=/connections")).await.page();
    let page = browser.submit(&page, &page.form_to("/connections/demo/connect"), &[]).await.page();
    assert_eq!(page.url.path(), "/connections", "{}", page.text());
    assert_eq!(whoami(&ada).await.status, 200);
    assert!(!upstream.requests.mention(&ada));
    // Another subject with the same address is another person, and a client under its own name is none.
    let eve = token(&json!({"sub": "666", "email": "ada@example.com"}));
    assert_eq!(whoami(&eve).await.status, 403);
    let program = token(&json!({"client_id": "4711"}));
    let answer = whoami(&program).await;
    assert_eq!((answer.status, answer.body.contains("/connections")), (403, false), "{}", answer.body);
    // The upstream wants more: that too is a matter of their page.
    upstream.set(|script| drop(script.tool_scopes.insert("echo".into(), "files:write".into())));
    assert_eq!(call(&gateway, &ada).await.status, 403);
    let page = browser.go(&gateway.url("/connections")).await.page();
    browser.submit(&page, &page.form_to("/connections/demo/connect"), &[]).await.page();
    assert_eq!(call(&gateway, &ada).await.status, 200);
}

#[tokio::test]
async fn sr_rs_06_a_blocked_user_of_another_issuer_is_kept_out() {
    let (upstream, provider) = (Upstream::open().await, IdentityProvider::start().await);
    let mut gateway = builder(Route::open("demo", &upstream), trusted(&provider))
        .with("login", json!({"oidc": [provider.entry()]}))
        .start()
        .await;
    let token = provider.access_token(&gateway.url("/demo"), &json!({}));
    assert_eq!(call(&gateway, &token).await.status, 200);
    let file = gateway.config_file();
    gateway.stop().await;
    let user = provider.user("4711");
    let blocked = run(
        &["users", "block", &user, "--config", file.to_str().unwrap()],
        &[("IDP_SECRET", "of Postern at the issuer")],
    )
    .await;
    assert_eq!(blocked.code, Some(0), "{}", blocked.stderr);
    gateway.restart().await;
    assert_eq!(call(&gateway, &token).await.status, 401);
    assert_eq!(
        call(&gateway, &provider.access_token(&gateway.url("/demo"), &json!({"sub": "42"}))).await.status,
        200
    );
}

#[tokio::test]
async fn all_routes_may_trust_another_issuer_and_then_nobody_signs_in_here() {
    let (upstream, provider) = (Upstream::open().await, IdentityProvider::start().await);
    let mut issuer = trusted(&provider);
    issuer["for_all_routes"] = json!(true);
    let all =
        || Gateway::builder().route(Route::open("demo", &upstream)).with("trusted_issuers", json!([issuer]));
    let gateway = all().with("login", json!(null)).start().await;
    let token = provider.access_token(&gateway.url("/demo"), &json!({}));
    assert_eq!(call(&gateway, &token).await.status, 200);
    // Which routes take whose tokens changes with a reload, for tokens that are known as well.
    let mut own = Route::open("demo", &upstream).document().clone();
    own["trusted_issuers"] = json!([]);
    gateway.reconfigure("routes", json!([own]));
    gateway.reconfigure("login", json!({"local": {"users": [{"username": "alice", "password_hash": support::gateway::PASSWORD_HASH}]}}));
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let mut stream = gateway.mcp("demo").bearer(&token).send("GET", None).await;
    feed.event("one");
    assert!(stream.chunk().await.unwrap().is_some());
    gateway.hang_up();
    eventually(PATIENCE, async || call(&gateway, &token).await.status == 401).await;
    // Nor does anybody who is listening hear more.
    feed.event("two");
    assert!(stream.chunk().await.is_err());
}

#[tokio::test]
async fn what_cannot_work_with_other_issuers_is_said_before_anything_starts() {
    let (upstream, provider) = (Upstream::open().await, IdentityProvider::start().await);
    for (route, sections, says) in [
        (
            Route::oauth("demo", &upstream),
            json!({}),
            format!("add a provider with the issuer {} to `login.oidc`", provider.issuer),
        ),
        (
            Route::open("demo", &upstream).with("trusted_issuers", json!(["nobody"])),
            json!({}),
            "there is no issuer `nobody`".to_owned(),
        ),
        (
            Route::open("demo", &upstream),
            json!({"oauth_server": {"clients": {"static": [{"client_id": "robot", "client_secret": {"env": "IDP_SECRET"},
                "client_credentials": {"routes": ["demo"]}}]}}}),
            "there is no route `demo` for tokens of Postern's own".to_owned(),
        ),
    ] {
        let named = route.document().get("trusted_issuers").cloned().unwrap_or(json!(["corp"]));
        let mut builder = builder(route, trusted(&provider));
        for (name, value) in sections.as_object().unwrap() {
            builder = builder.with(name, value.clone());
        }
        let gateway = builder.prepare();
        let mut written: Value =
            serde_json::from_str(&std::fs::read_to_string(gateway.config_file()).unwrap()).unwrap();
        written["routes"][0]["trusted_issuers"] = named;
        std::fs::write(gateway.config_file(), written.to_string()).unwrap();
        let file = gateway.config_file();
        let checked = run(&["validate", "--config", file.to_str().unwrap()], &[("IDP_SECRET", "x")]).await;
        assert_eq!(checked.code, Some(78), "{}", checked.stdout);
        assert!(checked.stderr.contains(&says), "{}", checked.stderr);
    }
}
