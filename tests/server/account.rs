//! The user's own page: connections, applications that were let in, browsers; and consents that are remembered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::Duration;

use serde_json::json;
use support::browser::{Arrival, Browser, Page};
use support::cimd::ClientDocuments;
use support::client::{Callback, Client, Tokens};
use support::eventually;
use support::gateway::{Gateway, Route};
use support::upstream::Upstream;

const SECOND: Duration = Duration::from_secs(1);
const REDIRECT: &str = "https://client.example/cb";

async fn account(browser: &mut Browser, gateway: &Gateway) -> Page {
    let page = browser.go(&gateway.url("/connections")).await.page();
    match page.forms().iter().any(|form| form.has_field("password")) {
        true => browser.sign_in(&page).await.page(),
        false => page,
    }
}

async fn status(gateway: &Gateway, tokens: &Tokens) -> u16 {
    gateway.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await.status
}

/// A client of this name whose answers go to a web site.
async fn client(gateway: &Gateway, name: &str) -> Client {
    let document = json!({"client_name": name, "redirect_uris": [REDIRECT]});
    let answer = Client::register_with(gateway, &document).await.json();
    Client::known_as(gateway, answer["client_id"].as_str().unwrap(), REDIRECT)
}

/// Opens the authorization and says whether the user was asked anything; ends with the code.
async fn was_asked(
    browser: &mut Browser,
    request: &support::client::AuthorizationRequest,
) -> (bool, Callback) {
    browser.stop_before(REDIRECT);
    let hops = browser.hops.len();
    let arrival = browser.authorize_or_stop(REDIRECT, &request.url()).await;
    let Arrival::Client(url) = arrival else { panic!("{}", arrival.page().text()) };
    let asked = browser.hops[hops..].iter().any(|hop| hop.url.path() == "/oauth/consent");
    (asked, Callback::of(&url))
}

#[tokio::test]
async fn the_page_shows_what_there_is_and_each_button_ends_one_thing() {
    let (upstream, open) = (Upstream::start().await, Upstream::open().await);
    let gateway = Gateway::builder()
        .route(Route::oauth("demo", &upstream))
        .route(Route::open("open", &open))
        .start()
        .await;
    let mut browser = Browser::new();
    let page = account(&mut browser, &gateway).await;
    assert_eq!((page.status, page.url.path()), (200, "/connections"));
    for text in ["Not connected", "Needs no connection of your own", "None.", "This browser"] {
        assert!(page.text().contains(text), "{text}: {}", page.text());
    }
    // Connected from the page itself, through the upstream's authorization server and back.
    let page = browser.submit(&page, &page.form_to("/connections/demo/connect"), &[]).await.page();
    let page = match page.url.path() {
        "/connections" => page,
        _ => browser.consent_allow(&page).await.page(),
    };
    assert_eq!(page.url.path(), "/connections", "{}", page.text());
    assert!(page.text().contains("Connected with your account there"), "{}", page.text());
    let app = client(&gateway, "Editor <b>of</b> texts").await;
    let request = app.authorization("demo");
    let (asked, callback) = was_asked(&mut browser, &request).await;
    assert!(asked);
    let tokens = app.redeem(&callback.code(), &request).await.tokens();
    assert_eq!(status(&gateway, &tokens).await, 200);
    assert_eq!(upstream.authorization.token_requests("authorization_code").len(), 1);

    // Somebody else sees nothing of it.
    let mut bob = Browser::of("bob");
    let others = account(&mut bob, &gateway).await;
    assert!(
        others.text().contains("Not connected") && !others.text().contains("Editor"),
        "{}",
        others.text()
    );

    let page = account(&mut browser, &gateway).await;
    assert!(page.text().contains("Editor <b>of</b> texts") && !page.body.contains("<b>of</b>"));
    // No button works from elsewhere, without its token, or with somebody else's.
    let csrf = page.form_to("/connections/demo/disconnect").value("csrf").unwrap().to_owned();
    let theirs = others.form_to("/connections/end-session").value("csrf").unwrap().to_owned();
    for path in ["demo/connect", "demo/disconnect", "withdraw", "end-session"] {
        for (token, site) in
            [("", "same-origin"), (theirs.as_str(), "same-origin"), (csrf.as_str(), "cross-site")]
        {
            let cookie = browser.jar.header(
                &page.url,
                "POST",
                support::cookies::Site::Origin,
                std::time::SystemTime::now(),
            );
            let request = gateway.http.post(gateway.url(&format!("/connections/{path}")));
            let request = request
                .header("content-type", "application/x-www-form-urlencoded")
                .header("cookie", cookie.unwrap())
                .header("sec-fetch-site", site)
                .body(format!("csrf={token}&client={}&route=demo", app.id));
            assert_eq!(request.send().await.unwrap().status(), 403, "{path} {site}");
        }
    }
    assert_eq!(status(&gateway, &tokens).await, 200);

    let page = browser.submit(&page, &page.form_to("/connections/demo/disconnect"), &[]).await.page();
    assert!(page.text().contains("Not connected"), "{}", page.text());
    assert_eq!(status(&gateway, &tokens).await, 401, "the user is led to connect again");
    let dead = upstream.authorization.ledger(|ledger| ledger.families.iter().all(|family| family.dead));
    assert!(dead, "ended where it came from as well");
    let gone =
        browser.submit(&page, &page.form_to("/connections/demo/connect"), &[("csrf", "x")]).await.page();
    assert_eq!(gone.status, 403);
    // Bob's one browser is not Alice's to end.
    let bobs = others.form_to("/connections/end-session").value("session").unwrap().to_owned();
    let form = page.form_to("/connections/end-session");
    browser.submit(&page, &form, &[("session", &bobs)]).await;
    assert_eq!(account(&mut bob, &gateway).await.url.path(), "/connections");
    let mut second = Browser::new();
    account(&mut second, &gateway).await;
    let page = account(&mut browser, &gateway).await;
    assert!(page.text().contains("Another browser"));
    let other = page.forms().into_iter().filter(|form| form.action.ends_with("/end-session")).find(|form| {
        let id = form.value("session").unwrap();
        page.body.split("<section").any(|part| part.contains("Another browser") && part.contains(id))
    });
    browser.submit(&page, &other.unwrap(), &[]).await;
    let at = second.go(&gateway.url("/connections")).await.page();
    assert_eq!(at.url.path(), "/login", "signed out by the other browser");
    assert_eq!(account(&mut browser, &gateway).await.url.path(), "/connections");
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn sr_t08_a_consent_is_remembered_for_exactly_what_was_asked() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .route(Route::open("other", &upstream))
        .start()
        .await;
    let mut browser = Browser::new();
    let one = client(&gateway, "One").await;
    let ask = async |browser: &mut Browser, client: &Client, route: &str| {
        was_asked(browser, &client.authorization(route)).await.0
    };
    assert!(ask(&mut browser, &one, "demo").await, "the first time");
    assert!(!ask(&mut browser, &one, "demo").await, "the same again");
    assert!(ask(&mut browser, &one, "other").await, "another resource");
    assert!(ask(&mut browser, &client(&gateway, "Two").await, "demo").await, "another client");
    assert!(ask(&mut Browser::of("bob"), &one, "demo").await, "another user");
    let insisting = one.authorization("demo").with("prompt", "consent");
    assert!(was_asked(&mut browser, &insisting).await.0, "the client insists");
    // A yes to one redirect URI is none to another.
    let two_places =
        json!({"client_name": "Places", "redirect_uris": [REDIRECT, "https://client.example/cb/2"]});
    let answer = Client::register_with(&gateway, &two_places).await.json();
    let id = answer["client_id"].as_str().unwrap();
    assert!(ask(&mut browser, &Client::known_as(&gateway, id, REDIRECT), "demo").await);
    assert!(ask(&mut browser, &Client::known_as(&gateway, id, "https://client.example/cb/2"), "demo").await);
    // Who said no is asked again.
    let three = client(&gateway, "Three").await;
    let request = three.authorization("demo");
    browser.stop_before(REDIRECT);
    let page = browser.go(&request.url()).await.page();
    let refused = Callback::of(&browser.press(&page, "Deny").await.client());
    assert_eq!(refused.error(), Some("access_denied"));
    assert!(ask(&mut browser, &three, "demo").await);
    // Any program on the user's computer may pass for one with a loopback redirect URI: asked each time.
    let local = Client::register(&gateway).await;
    for _ in 0..2 {
        let request = local.authorization("demo");
        browser.stop_before(&local.redirect_uri);
        let page = browser.go(&request.url()).await.page();
        browser.consent_allow(&page).await.client();
    }
}

#[tokio::test]
async fn sr_t08_a_client_whose_document_has_changed_is_asked_about_again() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let mut gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .with("oauth_server.clients.cimd.allow_private", json!(true))
        .start()
        .await;
    let id = format!("{}/client", documents.origin);
    let publish = |name: &str| {
        let document = json!({"client_id": id, "client_name": name, "redirect_uris": [REDIRECT]});
        documents.publish_answer(
            "/client",
            200,
            &[("content-type", "application/json")],
            &document.to_string(),
        );
    };
    publish("Editor");
    let app = Client::known_as(&gateway, &id, REDIRECT);
    let mut browser = Browser::new();
    let request = app.authorization("demo");
    let (asked, callback) = was_asked(&mut browser, &request).await;
    assert!(asked);
    let tokens = app.redeem(&callback.code(), &request).await.tokens();
    // Read anew after a restart: unchanged first, then another.
    gateway.restart().await;
    assert!(!was_asked(&mut browser, &app.authorization("demo")).await.0);
    publish("Editor and more");
    gateway.restart().await;
    assert!(was_asked(&mut browser, &app.authorization("demo")).await.0);
    // What was granted before goes on, and the audit log says that the client is another.
    assert_eq!(app.refresh(&tokens.refresh_token).await.status(), 200);
    gateway.output.shows("client_changed").await;
}

#[tokio::test]
async fn sr_rs_06_a_withdrawn_consent_ends_what_it_gave_within_a_second_and_asks_again() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let mut browser = Browser::new();
    let (one, two) = (client(&gateway, "One").await, client(&gateway, "Two").await);
    let mut signed_in = Vec::new();
    for client in [&one, &two] {
        let request = client.authorization("demo");
        let (_, callback) = was_asked(&mut browser, &request).await;
        signed_in.push(client.redeem(&callback.code(), &request).await.tokens());
    }
    let page = account(&mut browser, &gateway).await;
    let form = page
        .forms()
        .into_iter()
        .find(|form| form.action.ends_with("/withdraw") && form.value("client") == Some(&one.id))
        .unwrap();
    let page = browser.submit(&page, &form, &[]).await.page();
    assert_eq!(page.url.path(), "/connections");
    eventually(SECOND, async || status(&gateway, &signed_in[0]).await == 401).await;
    assert_eq!(one.refresh(&signed_in[0].refresh_token).await.error().as_deref(), Some("invalid_grant"));
    assert!(!page.text().contains("One") && page.text().contains("Two"), "{}", page.text());
    assert_eq!(status(&gateway, &signed_in[1]).await, 200, "the other application stays");
    assert!(was_asked(&mut browser, &one.authorization("demo")).await.0);
    assert!(!was_asked(&mut browser, &two.authorization("demo")).await.0);
    // A code under way becomes nothing once the consent is withdrawn.
    let request = one.authorization("demo");
    let (_, callback) = was_asked(&mut browser, &request).await;
    let page = account(&mut browser, &gateway).await;
    let form = page
        .forms()
        .into_iter()
        .find(|form| form.action.ends_with("/withdraw") && form.value("client") == Some(&one.id))
        .unwrap();
    browser.submit(&page, &form, &[]).await;
    assert_eq!(one.redeem(&callback.code(), &request).await.error().as_deref(), Some("invalid_grant"));
    // Somebody else's consent cannot be withdrawn.
    let mut bob = Browser::of("bob");
    let page = account(&mut bob, &gateway).await;
    let form = page.form_to("/connections/end-session");
    let mut withdraw = form.clone();
    withdraw.action = "/connections/withdraw".into();
    bob.submit(&page, &withdraw, &[("client", two.id.as_str()), ("route", "demo")]).await;
    assert_eq!(status(&gateway, &signed_in[1]).await, 200);
}
