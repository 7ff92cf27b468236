//! A user's connections: how they stand, on the page, as JSON and on the command line; connecting one or several,
//! reconnecting, disconnecting; and where people go afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::browser::{Arrival, Browser, Page};
use support::client::{Client, Tokens};
use support::cookies::Site;
use support::gate::Gate;
use support::gateway::{Builder, Gateway, Route};
use support::identity::IdentityProvider;
use support::process::run;
use support::script::{Answer, Consent, TokenFault};
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);
const APP: &str = "https://app.example";
const LISTED: &str = "https://dashboard.example/back?from=postern";

/// A gateway with places to return to.
fn builder() -> Builder {
    let dashboard = json!({"client_id": "dashboard", "redirect_uris": [LISTED]});
    Gateway::builder()
        .with("server.allowed_origins", json!([APP]))
        .with("oauth_server.clients.static", json!([dashboard]))
}

/// The user's page, after signing in where that is asked for.
async fn account(browser: &mut Browser, gateway: &Gateway) -> Page {
    open(browser, gateway, "/connections").await
}

async fn open(browser: &mut Browser, gateway: &Gateway, path: &str) -> Page {
    let page = browser.go(&gateway.url(path)).await.page();
    match page.forms().iter().any(|form| form.has_field("password")) {
        true => browser.sign_in(&page).await.page(),
        false => page,
    }
}

/// What a reader sees, with the punctuation where it belongs.
fn read(page: &Page) -> String {
    page.text().replace(" ,", ",").replace(" .", ".")
}

/// The part of the page about one server.
fn part_of(page: &Page, route: &str) -> String {
    let about = page.body.split("<section").find(|part| part.contains(&format!("<bdi>{route}</bdi></h3>")));
    about.unwrap_or_else(|| panic!("{route} is not on the page: {}", page.text())).to_owned()
}

/// What a script on this origin sends, to be bent.
struct Call<'a> {
    gateway: &'a Gateway,
    method: &'static str,
    path: String,
    cookie: Option<String>,
    csrf: Option<String>,
    site: Option<&'static str>,
    origin: Option<String>,
    kind: Option<&'static str>,
    body: String,
}

struct Answered {
    status: u16,
    json: Value,
    headers: reqwest::header::HeaderMap,
}

impl<'a> Call<'a> {
    fn new(gateway: &'a Gateway, browser: &Browser, method: &'static str, path: &str) -> Self {
        let url = gateway.url("/").parse().unwrap();
        let cookie = browser.jar.header(&url, method, Site::Origin, SystemTime::now());
        let path = format!("/api/v1/connections{path}");
        let (site, kind) = (Some("same-origin"), Some("application/json"));
        Call { gateway, method, path, cookie, csrf: None, site, origin: None, kind, body: String::new() }
    }

    /// With the token that the list shows.
    async fn signed(gateway: &'a Gateway, browser: &Browser, method: &'static str, path: &str) -> Self {
        let csrf = list(gateway, browser).await["csrf"].as_str().unwrap().to_owned();
        Call { csrf: Some(csrf), ..Self::new(gateway, browser, method, path) }
    }

    fn body(self, body: &Value) -> Self {
        Call { body: body.to_string(), ..self }
    }

    async fn send(self) -> Answered {
        let url = self.gateway.url(&self.path);
        let mut request = self.gateway.http.request(self.method.parse().unwrap(), url).body(self.body);
        for (name, value) in [
            ("cookie", self.cookie.as_deref()),
            ("x-csrf-token", self.csrf.as_deref()),
            ("sec-fetch-site", self.site),
            ("origin", self.origin.as_deref()),
            ("content-type", self.kind),
        ] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let json = serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default();
        Answered { status, json, headers }
    }
}

impl Answered {
    #[track_caller]
    fn url(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.json);
        self.json["authorization_url"].as_str().unwrap_or_else(|| panic!("{}", self.json)).to_owned()
    }

    /// Refused in words.
    #[track_caller]
    fn refused(&self, status: u16, error: &str) -> String {
        assert_eq!((self.status, self.json["error"].as_str()), (status, Some(error)), "{}", self.json);
        let words = self.json["error_description"].as_str().unwrap().to_owned();
        assert!(words.len() > 10, "{words}");
        words
    }
}

async fn list(gateway: &Gateway, browser: &Browser) -> Value {
    let answer = Call::new(gateway, browser, "GET", "").send().await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    answer.json
}

async fn entry(gateway: &Gateway, browser: &Browser, route: &str) -> Value {
    let list = list(gateway, browser).await;
    let entries = list["connections"].as_array().unwrap();
    entries.iter().find(|entry| entry["route"] == route).unwrap_or_else(|| panic!("{list}")).clone()
}

async fn state(gateway: &Gateway, browser: &Browser, route: &str) -> String {
    entry(gateway, browser, route).await["state"].as_str().unwrap().to_owned()
}

async fn connect(gateway: &Gateway, browser: &mut Browser, route: &str) -> Page {
    let url = Call::signed(gateway, browser, "POST", &format!("/{route}/connect")).await.send().await.url();
    browser.go(&url).await.page()
}

async fn status(gateway: &Gateway, route: &str, tokens: &Tokens) -> u16 {
    gateway.mcp(route).bearer(&tokens.access_token).tool("whoami", json!({})).await.status
}

#[tokio::test]
async fn pom_38_routes_connect_and_disconnect_as_json() {
    let (upstream, open) = (Upstream::start().await, Upstream::open().await);
    upstream.set(|script| script.challenge.scope = Some("files:read files:list".into()));
    let gateway =
        builder().route(Route::oauth("demo", &upstream)).route(Route::open("open", &open)).start().await;
    let mut browser = Browser::new();
    account(&mut browser, &gateway).await;

    let answer = Call::new(&gateway, &browser, "GET", "").send().await;
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert_eq!(answer.headers["cross-origin-resource-policy"], "same-origin");
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    assert_eq!(answer.json["user"], "alice");
    assert_eq!(answer.json["connections"].as_array().unwrap().len(), 2);
    assert_eq!(state(&gateway, &browser, "open").await, "not_needed");
    let before = entry(&gateway, &browser, "demo").await;
    assert_eq!(before["state"], "not_connected");
    assert_eq!(before["resource"], gateway.url("/demo"));
    assert_eq!(before["page"], gateway.url("/connections/demo"));
    assert_eq!(
        (&before["scopes"], &before["issuer"], &before["since"]),
        (&json!([]), &json!(null), &json!(null))
    );

    let page = connect(&gateway, &mut browser, "demo").await;
    assert_eq!(page.url.path(), "/connections/demo");
    assert!(page.text().contains("go back to your application"), "{}", page.text());
    let after = entry(&gateway, &browser, "demo").await;
    assert_eq!(after["state"], "connected");
    assert_eq!(after["scopes"], json!(["files:read", "files:list"]));
    assert_eq!(after["issuer"], upstream.authorization.issuer());
    assert_eq!(after["expires_at"], json!(null), "it is renewed");
    assert!(after["since"].as_str().unwrap().ends_with('Z'), "{after}");
    let one = Call::new(&gateway, &browser, "GET", "/demo").send().await;
    assert_eq!(one.json, after);

    // Connected is connected; who wants to go there all the same says so.
    let again = Call::signed(&gateway, &browser, "POST", "/demo/connect").await.send().await;
    assert_eq!((again.status, &again.json["state"]), (200, &json!("connected")));
    let anew = Call::signed(&gateway, &browser, "POST", "/demo/connect").await;
    let url = anew.body(&json!({"reconnect": true})).send().await.url();
    assert_eq!(browser.go(&url).await.page().status, 200);
    assert_eq!(upstream.authorization.codes_redeemed(), 2);
    let free = Call::signed(&gateway, &browser, "POST", "/open/connect").await.send().await;
    assert_eq!((free.status, &free.json["state"]), (200, &json!("connected")));

    for (method, path) in [("POST", "/demo/disconnect"), ("DELETE", "/demo")] {
        let ended = Call::signed(&gateway, &browser, method, path).await.send().await;
        assert_eq!((ended.status, &ended.json["state"]), (200, &json!("not_connected")), "{method}");
        assert_eq!(state(&gateway, &browser, "demo").await, "not_connected");
        connect(&gateway, &mut browser, "demo").await;
        assert_eq!(state(&gateway, &browser, "demo").await, "connected");
    }
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn the_api_refuses_in_words_and_changes_nothing() {
    let upstream = Upstream::start().await;
    let gateway = builder().route(Route::oauth("demo", &upstream)).start().await;
    let (mut alice, mut bob) = (Browser::new(), Browser::of("bob"));
    account(&mut alice, &gateway).await;
    account(&mut bob, &gateway).await;
    connect(&gateway, &mut alice, "demo").await;
    assert_eq!(state(&gateway, &bob, "demo").await, "not_connected", "of his own he has none");
    let theirs = list(&gateway, &bob).await["csrf"].as_str().unwrap().to_owned();

    let nobody = Browser::new();
    for (method, path) in [
        ("GET", ""),
        ("GET", "/demo"),
        ("POST", "/demo/connect"),
        ("POST", "/connect"),
        ("POST", "/demo/disconnect"),
        ("DELETE", "/demo"),
    ] {
        let answer = Call::new(&gateway, &nobody, method, path).send().await;
        answer.refused(401, "login_required");
        assert!(!answer.headers.contains_key("location"));
        let mut stolen = Call::new(&gateway, &alice, method, path);
        stolen.cookie = stolen.cookie.map(|cookie| format!("{cookie}x"));
        stolen.send().await.refused(401, "login_required");
    }
    for (method, path) in [
        ("POST", "/demo/connect"),
        ("POST", "/connect"),
        ("POST", "/demo/disconnect"),
        ("DELETE", "/demo/disconnect"),
        ("DELETE", "/demo"),
    ] {
        let signed = async || Call::signed(&gateway, &alice, method, path).await;
        let origin = gateway.public_url.clone();
        for bent in [
            Call { csrf: None, ..signed().await },
            Call { csrf: Some(String::new()), ..signed().await },
            Call { csrf: Some(theirs.clone()), ..signed().await },
            Call { site: Some("cross-site"), ..signed().await },
            Call { site: Some("cross-site"), origin: Some(origin.clone()), ..signed().await },
            Call { site: Some("same-site"), ..signed().await },
            Call { site: Some("none"), ..signed().await },
            Call { site: None, ..signed().await },
            Call { site: None, origin: Some("https://evil.example".into()), ..signed().await },
            Call { site: None, origin: Some(APP.into()), ..signed().await },
            Call { site: None, origin: Some("null".into()), ..signed().await },
        ] {
            bent.send().await.refused(403, "forbidden");
        }
    }
    // Older browsers say `Origin` alone.
    let old = Call {
        site: None,
        origin: Some(gateway.public_url.clone()),
        ..Call::signed(&gateway, &alice, "POST", "/demo/connect").await
    };
    assert_eq!(old.send().await.status, 200);
    Call { site: Some("cross-site"), ..Call::new(&gateway, &alice, "GET", "") }
        .send()
        .await
        .refused(403, "forbidden");
    for (method, path) in
        [("POST", "/none/connect"), ("POST", "/none/disconnect"), ("DELETE", "/none"), ("POST", "/demo")]
    {
        Call::signed(&gateway, &alice, method, path).await.send().await.refused(404, "not_found");
    }
    Call::new(&gateway, &alice, "GET", "/none").send().await.refused(404, "not_found");
    let several = async || Call::signed(&gateway, &alice, "POST", "/connect").await;
    several().await.send().await.refused(400, "invalid_request");
    several().await.body(&json!({"routes": []})).send().await.refused(400, "invalid_request");
    several().await.body(&json!({"routes": ["demo", "none"]})).send().await.refused(404, "not_found");
    several().await.body(&json!({"routes": "demo"})).send().await.refused(400, "invalid_request");
    let one = async || Call::signed(&gateway, &alice, "POST", "/demo/connect").await;
    one().await.body(&json!({"return": "/"})).send().await.refused(400, "invalid_request");
    Call { body: "{".into(), ..one().await }.send().await.refused(400, "invalid_request");
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        Call { kind, body: "{}".into(), ..one().await }.send().await.refused(415, "invalid_request");
    }
    // No other origin is promised anything.
    let preflight =
        Call { origin: Some(APP.into()), ..Call::new(&gateway, &alice, "OPTIONS", "/demo/connect") };
    let preflight = preflight.send().await;
    assert!(preflight.status >= 400 && !preflight.headers.contains_key("access-control-allow-origin"));
    let elsewhere = gateway.http.get(gateway.url("/api/v2")).send().await.unwrap();
    assert_eq!(elsewhere.status(), 404);
    assert_eq!(elsewhere.headers()["content-type"], "application/json");
    assert_eq!(state(&gateway, &alice, "demo").await, "connected");
    assert_eq!(upstream.authorization.codes_redeemed(), 1);
    gateway.output.shows("forged_form").await;
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn the_api_is_bounded_for_each_user_as_the_page_is() {
    let upstream = Upstream::start().await;
    let gateway = builder().route(Route::oauth("demo", &upstream)).start().await;
    let (mut alice, mut bob) = (Browser::new(), Browser::of("bob"));
    account(&mut alice, &gateway).await;
    account(&mut bob, &gateway).await;
    let mut refused = None;
    for _ in 0..300 {
        let answer = Call::new(&gateway, &alice, "GET", "").send().await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a bound");
    refused.refused(429, "too_many_requests");
    assert_eq!(refused.headers["retry-after"], "60");
    assert_eq!(Call::new(&gateway, &bob, "GET", "").send().await.status, 200);
    assert_eq!(
        alice.go(&gateway.url("/connections/demo")).await.page().status,
        429,
        "one bound for all of it"
    );
}

/// Brings a connection into a state, and says how it is to be read everywhere.
#[tokio::test]
async fn every_state_is_told_alike_on_the_page_as_json_and_on_the_command_line() {
    let mut upstreams = Vec::new();
    let mut building = builder();
    let names = ["absent", "asked", "connected", "ended", "expires", "renewal", "silent"];
    for name in names {
        let upstream = Upstream::start().await;
        building = building.route(Route::oauth(name, &upstream));
        upstreams.push(upstream);
    }
    let of = |name: &str| &upstreams[names.iter().position(|known| *known == name).unwrap()];
    of("expires").set_authorization(|script| script.issues_refresh_tokens = false);
    let mut gateway = building.start().await;
    let mut browser = Browser::new();
    let client = Client::register(&gateway).await;
    for name in ["asked", "ended", "renewal"] {
        let tokens = client.sign_in(&mut browser, name).await;
        assert_eq!(status(&gateway, name, &tokens).await, 200);
        let upstream = of(name);
        let expected = match name {
            "asked" => {
                upstream.set(|script| script.answer = Answer::InsufficientScope("admin".into()));
                403
            }
            "ended" => {
                upstream.refuse_current_tokens();
                upstream.set_authorization(|script| {
                    script.token_fault = Some(TokenFault::error("invalid_grant"))
                });
                401
            }
            _ => {
                upstream.refuse_current_tokens();
                let away = TokenFault::answer(503, &[("retry-after", "120")], "");
                upstream.set_authorization(|script| script.token_fault = Some(away));
                503
            }
        };
        assert_eq!(status(&gateway, name, &tokens).await, expected, "{name}");
    }
    connect(&gateway, &mut browser, "connected").await;
    connect(&gateway, &mut browser, "expires").await;
    of("silent").set(|script| script.unauthorized = Some(Answer::http(503, &[], "")));
    let failed = Call::signed(&gateway, &browser, "POST", "/silent/connect").await.send().await;
    failed.refused(503, "temporarily_unavailable");
    assert_eq!(failed.json["failed"][0]["route"], "silent");

    let page = account(&mut browser, &gateway).await;
    let expected = [
        ("absent", "not_connected", "Not connected.", &["connect"][..]),
        ("asked", "needs_sign_in", "asks for you", &["connect", "disconnect"]),
        ("connected", "connected", "Connected with your account there.", &["reconnect", "disconnect"]),
        ("ended", "needs_sign_in", "The connection is over", &["connect", "disconnect"]),
        (
            "expires",
            "expires",
            "Connected with your account there. That ends at 20",
            &["reconnect", "disconnect"],
        ),
        ("renewal", "unavailable", "not usable just now", &["reconnect", "disconnect"]),
        ("silent", "unavailable", "did not answer", &["connect"]),
    ];
    for (name, state, words, buttons) in expected {
        let entry = entry(&gateway, &browser, name).await;
        assert_eq!(entry["state"], state, "{name}: {entry}");
        assert_eq!(entry["expires_at"].is_string(), state == "expires", "{entry}");
        assert_eq!(entry["issuer"].is_string(), !["absent", "silent"].contains(&name), "{entry}");
        let part = part_of(&page, name);
        let text = support::html::text(&part);
        assert!(text.contains(words), "{name}: {text}");
        assert!(text.contains(entry["description"].as_str().unwrap()), "{name}: {text}");
        let offered: Vec<String> = support::html::forms(&part)
            .iter()
            .flat_map(|form| form.buttons.iter().map(|button| button.label.to_lowercase()))
            .collect();
        assert_eq!(offered, buttons, "{name}");
        // And alone, where others send people to: with one button at the most.
        let alone = open(&mut browser, &gateway, &format!("/connections/{name}")).await;
        assert!(alone.text().contains(words), "{name}: {}", alone.text());
        assert_eq!(alone.forms().len(), 1, "{name}");
        let is_ready = ["connected", "expires"].contains(&state);
        assert_eq!(alone.text().contains("go back to your application"), is_ready, "{name}");
    }
    assert!(page.form_to("/connections/connect").buttons[0].label.contains("Connect all 4"));

    if std::env::var_os("POSTERN_TEST_STORE").is_none() {
        // One process at a time has the embedded store.
        gateway.stop().await;
    }
    let file = gateway.config_file();
    let listed = run(&["connections", "list", "--config", file.to_str().unwrap()], &[]).await.stdout;
    for (name, state, ..) in expected {
        let line = listed.lines().find(|line| line.starts_with(&format!("alice\t{name}\t")));
        match name {
            "absent" | "silent" => assert_eq!(line, None),
            "expires" => {
                assert!(line.unwrap().contains("\texpires\thttp://") && line.unwrap().ends_with('Z'))
            }
            _ => assert!(line.unwrap().starts_with(&format!("alice\t{name}\t{state}\thttp://")), "{listed}"),
        }
    }
}

#[tokio::test]
async fn a_connection_without_refresh_token_ends_when_it_was_said_to() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(|script| {
        script.issues_refresh_tokens = false;
        script.access_token_lifetime = 3 * SECOND;
    });
    let gateway = builder().route(Route::oauth("demo", &upstream)).start().await;
    let mut browser = Browser::new();
    account(&mut browser, &gateway).await;
    connect(&gateway, &mut browser, "demo").await;
    assert_eq!(state(&gateway, &browser, "demo").await, "expires");
    let ended = || async { state(&gateway, &browser, "demo").await == "needs_sign_in" };
    eventually(PATIENCE, || async {
        tokio::time::sleep(SECOND / 4).await;
        ended().await
    })
    .await;
    upstream.set_authorization(|script| script.issues_refresh_tokens = true);
    let page = account(&mut browser, &gateway).await;
    let page = browser.submit(&page, &page.form_to("/connections/demo/connect"), &[]).await.page();
    assert!(page.text().contains("Connected with your account there."), "{}", page.text());
    assert_eq!(state(&gateway, &browser, "demo").await, "connected");
}

#[tokio::test]
async fn several_are_connected_one_after_the_other_and_what_fails_stops_none_of_the_others() {
    let mut upstreams = Vec::new();
    let mut building = builder();
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        let upstream = Upstream::start().await;
        building = building.route(Route::oauth(name, &upstream));
        upstreams.push(upstream);
    }
    // The second says no, the third cannot be registered at, the fourth does not answer.
    upstreams[1].set_authorization(|script| script.consent = Consent::Deny("access_denied".into()));
    upstreams[2].set_authorization(|script| script.token_fault = Some(TokenFault::error("invalid_grant")));
    upstreams[3].set(|script| script.unauthorized = Some(Answer::http(503, &[], "")));
    let gateway = building.start().await;
    let mut browser = Browser::new();
    account(&mut browser, &gateway).await;
    let wish = json!({"routes": ["a", "b", "c", "d", "a", "e"]});
    let call = Call::signed(&gateway, &browser, "POST", "/connect").await.body(&wish);
    let url = call.send().await.url();
    let page = browser.go(&url).await.page();
    assert_eq!(page.status, 503, "what failed first: {}", page.text());
    for words in [
        "Not everything is connected",
        "did not allow it",
        "cannot be used",
        "cannot be reached",
        "Connected: a, e.",
    ] {
        assert!(read(&page).contains(words), "{words}: {}", page.text());
    }
    for (name, connected) in names.into_iter().zip([true, false, false, false, true]) {
        assert_eq!(state(&gateway, &browser, name).await == "connected", connected, "{name}");
    }
    // Each had its own state, and every one of them counts once.
    let states: Vec<String> = upstreams
        .iter()
        .flat_map(|upstream| upstream.authorization.requests.to("/authorize"))
        .map(|asked| asked.parameter("state").unwrap())
        .collect();
    assert_eq!(states.len(), 4);
    assert!(states.iter().all(|state| states.iter().filter(|other| *other == state).count() == 1));
    let callback = browser.hops.iter().find(|hop| hop.url.path().starts_with("/oauth/upstream/callback/"));
    let callback = callback.unwrap().url.clone();
    assert_eq!(browser.go(callback.as_str()).await.page().status, 400, "it is over");

    // The rest by the one button on the page; and with a place to go to, what failed is told there.
    upstreams[1].set_authorization(|script| script.consent = Consent::Approve);
    upstreams[3].set(|script| script.unauthorized = None);
    let page = account(&mut browser, &gateway).await;
    let page = browser.submit(&page, &page.form_to("/connections/connect"), &[]).await.page();
    assert_eq!(page.status, 502);
    assert!(
        read(&page).contains("Connected: b, d.") && !page.text().contains("did not allow"),
        "{}",
        page.text()
    );
    let wish = json!({"routes": ["c", "a"], "return_to": format!("{APP}/done?x=1")});
    let call = Call::signed(&gateway, &browser, "POST", "/connect").await.body(&wish);
    let url = call.send().await.url();
    browser.stop_before(APP);
    let Arrival::Client(back) = browser.go(&url).await else { panic!("{:?}", browser.trail()) };
    let query: Vec<(String, String)> = back.query_pairs().into_owned().collect();
    assert_eq!(query[0], ("x".into(), "1".into()));
    assert_eq!(query[1], ("error".into(), "server_error".into()));
    assert!(
        query[2].0 == "error_description" && query[2].1.starts_with("c: The server's authorization server")
    );
    upstreams[2].set_authorization(|script| script.token_fault = None);
    // Three times in a few minutes would be too often.
    let ended = Call::signed(&gateway, &browser, "POST", "/c/disconnect").await.send().await;
    assert_eq!(ended.status, 200);
    let call = Call::signed(&gateway, &browser, "POST", "/connect").await.body(&wish);
    let url = call.send().await.url();
    let back = browser.go(&url).await.client();
    assert_eq!(back.as_str(), format!("{APP}/done?x=1"), "all is well: as it was given");
    let page = account(&mut browser, &gateway).await;
    assert!(!page.forms().iter().any(|form| form.action == "/connections/connect"), "nothing is missing");
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn a_way_through_several_is_of_one_user_in_one_browser() {
    let (one, two) = (Upstream::start().await, Upstream::start().await);
    let gateway = builder().route(Route::oauth("one", &one)).route(Route::oauth("two", &two)).start().await;
    let (mut alice, mut bob) = (Browser::new(), Browser::of("bob"));
    let page = account(&mut alice, &gateway).await;
    account(&mut bob, &gateway).await;
    let mut second = Browser::new();
    account(&mut second, &gateway).await;
    alice.stop_before(&gateway.url("/oauth/upstream/callback"));
    let answer = alice.submit(&page, &page.form_to("/connections/connect"), &[]).await.client();
    for other in [&mut bob, &mut second, &mut Browser::new()] {
        assert_eq!(other.go(answer.as_str()).await.page().status, 403);
    }
    assert_eq!((one.authorization.codes_redeemed(), two.authorization.codes_redeemed()), (0, 0));
    alice.stop_before("https://nowhere.example");
    let page = alice.go(answer.as_str()).await.page();
    assert_eq!((page.status, page.url.path()), (200, "/connections"));
    for route in ["one", "two"] {
        assert_eq!(state(&gateway, &alice, route).await, "connected");
        assert_eq!(state(&gateway, &bob, route).await, "not_connected");
    }
}

#[tokio::test]
async fn the_page_of_one_server_signs_in_connects_and_says_that_it_is_done() {
    let (upstream, open_one) = (Upstream::start().await, Upstream::open().await);
    let gateway = builder()
        .route(Route::oauth("demo", &upstream))
        .route(Route::oauth("withdraw", &open_one))
        .start()
        .await;
    let mut browser = Browser::new();
    let at = browser.go(&gateway.url("/connections/demo")).await.page();
    assert_eq!(at.url.path(), "/login");
    let page = browser.sign_in(&at).await.page();
    assert_eq!(page.url.path(), "/connections/demo");
    assert!(page.text().contains("Not connected.") && !page.text().contains("go back"), "{}", page.text());
    let page = browser.press(&page, "Connect").await.page();
    assert_eq!((page.status, page.url.path()), (200, "/connections/demo"));
    assert!(page.text().contains("It is done. You can go back to your application now."), "{}", page.text());
    let page = browser.press(&page, "Reconnect").await.page();
    assert_eq!((page.status, page.url.path()), (200, "/connections/demo"));
    assert_eq!(upstream.authorization.codes_redeemed(), 2);
    let missing = browser.go(&gateway.url("/connections/none")).await.page();
    assert_eq!(missing.status, 404);
    // A server may be called what an address of ours is called; and one that asks for nobody needs nothing.
    let page = browser.go(&gateway.url("/connections/withdraw")).await.page();
    assert!(page.text().contains("Your connection to withdraw"), "{}", page.text());
    let page = browser.press(&page, "Connect").await.page();
    assert!(page.text().contains("Needs no connection of your own"), "{}", page.text());
    assert!(page.forms().is_empty());

    // With somewhere to go: a link while it is not connected, and afterwards the browser is taken there.
    let mut bob = Browser::of("bob");
    let path = format!("/connections/demo?return_to={}", encoded(&format!("{APP}/chat/7?a=b&c=d")));
    let page = open(&mut bob, &gateway, &path).await;
    assert_eq!(page.url.path(), "/connections/demo", "after signing in");
    assert_eq!(page.way_back().as_deref(), None, "the way back is the quiet button until it is connected");
    assert!(page.text().contains("Go back to app.example"), "{}", page.text());
    bob.stop_before(APP);
    let back = bob.press(&page, "Connect").await.client();
    assert_eq!(back.as_str(), format!("{APP}/chat/7?a=b&c=d"));
    let page = bob.go(&gateway.url(&path)).await.page();
    assert_eq!(page.way_back().as_deref(), Some(&*format!("{APP}/chat/7?a=b&c=d")));
    // A listed client's address, to the letter; and a page of ours.
    bob.stop_before("https://dashboard.example");
    let path = format!("/connections/demo?return_to={}", encoded(LISTED));
    let page = bob.go(&gateway.url(&path)).await.page();
    assert_eq!(bob.press(&page, "Reconnect").await.client().as_str(), LISTED);
    bob.stop_before("https://nowhere.example");
    Call::signed(&gateway, &bob, "POST", "/demo/disconnect").await.send().await;
    let page = bob.go(&gateway.url("/connections/demo?return_to=/")).await.page();
    assert_eq!(bob.press(&page, "Connect").await.page().url.path(), "/");
    // What fails is said here in words, with the way on below it.
    upstream.set_authorization(|script| script.consent = Consent::Deny("access_denied".into()));
    let page = bob.go(&gateway.url("/connections/demo?return_to=/")).await.page();
    let page = bob.press(&page, "Reconnect").await.page();
    assert!(page.status == 403 && page.text().contains("You are not connected"), "{}", page.text());
    assert_eq!(page.way_back().as_deref(), Some("/"));
    assert_eq!(state(&gateway, &bob, "demo").await, "connected", "what there was goes on");
    gateway.output.assert_no_secret();
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test]
async fn nobody_is_sent_anywhere_but_to_registered_places() {
    let (upstream, open_one) = (Upstream::start().await, Upstream::open().await);
    let gateway =
        builder().route(Route::oauth("demo", &upstream)).route(Route::open("open", &open_one)).start().await;
    let mut browser = Browser::new();
    let page = account(&mut browser, &gateway).await;
    let form = page.form_to("/connections/demo/connect");
    let (own, port) = (gateway.public_url.clone(), gateway.address.port());
    let other_port = format!("http://127.0.0.1:{}/connections", port.wrapping_add(1).max(1));
    let csrf = list(&gateway, &browser).await["csrf"].as_str().unwrap().to_owned();
    let own_variants = [
        format!("{own}@evil.example/connections"),
        format!("{own}.evil.example/connections"),
        format!("{own}//evil.example"),
        format!("{own}/\\evil.example"),
        format!("{own}/oauth/authorize"),
        format!("{own}/logout"),
        format!("{own}/demo"),
        format!("http://user@127.0.0.1:{port}/connections"),
        format!("http://127.1:{port}/connections"),
        format!("http://localhost:{port}/connections"),
        other_port,
    ];
    let corpus = [
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "\\/evil.example",
        "/\t/evil.example",
        "\t//evil.example",
        " https://app.example",
        "https://app.example ",
        "/connections\r\nLocation: https://evil.example",
        "/connections/../logout",
        "/connections/demo/../../logout",
        "/connections/%2e%2e/logout",
        "/connections/none",
        "/connections/open",
        "/connections/demo?return_to=https://evil.example",
        "/connections?x",
        "/connections#x",
        "/login?next=//evil.example",
        "/demo",
        "/api/v1/connections",
        "connections",
        "?x",
        "#x",
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "java\nscript:alert(1)",
        "javascript://app.example/%0aalert(1)",
        "data:text/html,x",
        "vbscript:x",
        "file:///etc/passwd",
        "blob:https://app.example/x",
        "https://evil.example",
        "http://app.example/",
        "https://app.example:8443/",
        "https://app.example:443/",
        "https://app.example.evil.example/",
        "https://app.example@evil.example/",
        "https://app.example%40evil.example/",
        "https://app.example:443@evil.example/",
        "https://user:pw@app.example/",
        "https://evil.example/@app.example",
        "https://evil.example\\@app.example/",
        "https://app.example\\.evil.example/",
        "https://app.example/\\evil",
        "https://app.example/a/../b",
        "https://app.example/#x",
        "https:app.example",
        "https:/app.example",
        "https:///app.example",
        "https://APP.EXAMPLE/",
        "https://app.example./",
        "https://xn--pp-yia.example/",
        "https://ａpp.example/",
        "https://dashboard.example/",
        "https://dashboard.example/back",
        "https://dashboard.example/back?from=postern&more=1",
        "https://dashboard.example/back?from=postern#x",
        "https://DASHBOARD.example/back?from=postern",
        "https://dashboard.example:443/back?from=postern",
    ];
    for (number, bad) in corpus.into_iter().map(str::to_owned).chain(own_variants).enumerate() {
        // In the link, before and after signing in; in the form; and in the API. Shared out, as they are rate-limited.
        let link = gateway.url(&format!("/connections/demo?return_to={}", encoded(&bad)));
        let shown = Browser::new().go(&link).await.page();
        assert_eq!(shown.status, 400, "{bad:?}: {}", shown.text());
        assert!(
            shown.text().contains("no way back to that address") && !shown.body.contains("evil"),
            "{bad:?}"
        );
        if number % 2 == 0 {
            let sent = browser.submit(&page, &form, &[("return_to", &bad)]).await.page();
            assert_eq!((sent.status, sent.url.path()), (400, "/connections/demo/connect"), "{bad:?}");
        } else {
            let call = Call::new(&gateway, &browser, "POST", "/demo/connect");
            let call = Call { csrf: Some(csrf.clone()), ..call }.body(&json!({"return_to": bad}));
            call.send().await.refused(400, "invalid_request");
        }
    }
    let long = format!("{APP}/{}", "a".repeat(3000));
    let call = Call::new(&gateway, &browser, "POST", "/connect");
    let wish = json!({"routes": ["demo"], "return_to": long});
    Call { csrf: Some(csrf.clone()), ..call }.body(&wish).send().await.refused(400, "invalid_request");
    assert_eq!(upstream.authorization.requests.count("/authorize"), 0);
    for good in [
        "/",
        "/connections",
        "/connections/demo",
        &format!("{own}/connections"),
        APP,
        &format!("{APP}/"),
        LISTED,
    ] {
        let link = gateway.url(&format!("/connections/demo?return_to={}", encoded(good)));
        assert_eq!(browser.go(&link).await.page().status, 200, "{good}");
    }
    // What was allowed when it began and is not any more is not gone to.
    browser.stop_before(&gateway.url("/oauth/upstream/callback"));
    let call = Call::new(&gateway, &browser, "POST", "/demo/connect");
    let call = Call { csrf: Some(csrf), ..call }.body(&json!({"return_to": APP}));
    let answer = browser.go(&call.send().await.url()).await.client();
    gateway.reconfigure("server.allowed_origins", json!([]));
    gateway.hang_up();
    gateway.output.shows("the configuration is in use").await;
    browser.stop_before(APP);
    assert_eq!(browser.go(answer.as_str()).await.page().url.path(), "/connections/demo");
}

/// The present connection serves until the new one is there, and no call is lost in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnecting_loses_no_call() {
    let upstream = Upstream::start().await;
    let gateway = Arc::new(builder().route(Route::oauth("demo", &upstream)).start().await);
    let mut browser = Browser::new();
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut browser, "demo").await;
    assert_eq!(status(&gateway, "demo", &tokens).await, 200);
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (gateway, tokens, stop) = (Arc::clone(&gateway), tokens.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut calls = 0;
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(status(&gateway, "demo", &tokens).await, 200);
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    // The answer of the token endpoint is held back for a while.
    let gate = Gate::shut();
    upstream.set_authorization(|script| script.token_answer_gate = Some(gate.clone()));
    let page = account(&mut browser, &gateway).await;
    let form = page.form_to("/connections/demo/connect");
    assert_eq!(form.value("anew"), Some("1"));
    let reconnecting = tokio::spawn(async move {
        let page = browser.submit(&page, &form, &[]).await.page();
        (browser, page)
    });
    gate.wait_for(1, PATIENCE).await;
    let before = upstream.calls_with_token().len();
    eventually(PATIENCE, || async { upstream.calls_with_token().len() > before + 100 }).await;
    gate.open();
    let (browser, page) = reconnecting.await.unwrap();
    assert!(page.text().contains("Connected with your account there."), "{}", page.text());
    let after = upstream.calls_with_token().len();
    eventually(PATIENCE, || async { upstream.calls_with_token().len() > after + 100 }).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    let shown: Vec<_> = upstream.calls_with_token().iter().map(|call| call.bearer().unwrap()).collect();
    assert_ne!(shown.first(), shown.last(), "the new one is used");
    assert_eq!(state(&gateway, &browser, "demo").await, "connected");
    assert_eq!(upstream.authorization.token_requests("refresh_token").len(), 0);
}

#[tokio::test]
async fn a_connection_of_the_sign_in_is_made_by_signing_in_again_after_all_others() {
    let (provider, inject) = (IdentityProvider::start().await, Upstream::start().await);
    provider.set(|script| script.refreshable = true);
    inject.set(|script| script.extra_tokens = vec!["access-1".into(), "access-2".into()]);
    let (oauth, denying) = (Upstream::start().await, Upstream::start().await);
    denying.set_authorization(|script| script.consent = Consent::Deny("access_denied".into()));
    let gateway = builder()
        .route(Route::to("a", &inject.url(), json!({"kind": "upstream_inject", "provider": "corp"})))
        .route(Route::oauth("b", &oauth))
        .route(Route::oauth("c", &denying))
        .env("IDP_SECRET", "of the identity provider")
        .with("login", json!({"oidc": [provider.entry()]}))
        .start()
        .await;
    let mut browser = Browser::new();
    account(&mut browser, &gateway).await;
    assert_eq!(state(&gateway, &browser, "a").await, "connected", "signing in was enough");
    let ended = Call::signed(&gateway, &browser, "POST", "/a/disconnect").await.send().await;
    assert_eq!(ended.json["state"], "not_connected");
    let alone = Call::signed(&gateway, &browser, "POST", "/a/connect").await;
    let url = alone.body(&json!({"return_to": APP})).send().await.url();
    assert!(url.starts_with(&gateway.url("/login/start?provider=corp&")), "{url}");
    let page = browser.go(&url).await.page();
    assert_eq!(page.way_back().as_deref(), Some(APP), "{}", page.text());
    assert!(page.text().contains("It is done."));

    Call::signed(&gateway, &browser, "DELETE", "/a").await.send().await;
    let several = Call::signed(&gateway, &browser, "POST", "/connect").await;
    let url = several.body(&json!({"routes": ["a", "c", "b"]})).send().await.url();
    assert!(url.starts_with(&denying.origin), "{url}");
    let page = browser.go(&url).await.page();
    assert!(
        read(&page).contains("Connected: b.") && page.text().contains("did not allow it"),
        "{}",
        page.text()
    );
    let sign_in = gateway.url(&page.way_back().unwrap());
    assert_eq!(browser.go(&sign_in).await.page().url.path(), "/connections");
    for (route, expected) in [("a", "connected"), ("b", "connected"), ("c", "not_connected")] {
        assert_eq!(state(&gateway, &browser, route).await, expected, "{route}");
    }
    gateway.output.assert_no_secret();
}
