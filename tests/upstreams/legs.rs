//! Several identity providers for one person: they come in at one, or with a password, and go on to the others when a
//! route wants their tokens. Who they are stays; what one leg brought is kept whatever becomes of the next.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::Duration;

use serde_json::{Value, json};
use support::aws::{REGION, SERVICE, Sts};
use support::browser::{Arrival, Browser, Page};
use support::client::{Callback, Client, Tokens};
use support::eventually;
use support::gateway::{Gateway, Route};
use support::html::meta_refresh;
use support::identity::IdentityProvider;
use support::identity::exchange::{self as exchanges, name};
use support::upstream::Upstream;

const SECOND: Duration = Duration::from_secs(1);

/// People come in at `corp` or as alice; `demo` wants tokens of `partner`, `other` those of `third`.
struct World {
    corp: IdentityProvider,
    partner: IdentityProvider,
    third: IdentityProvider,
    demo: Upstream,
    other: Upstream,
    gateway: Gateway,
    client: Client,
}

impl World {
    async fn start() -> Self {
        Self::wanting(IdentityProvider::start().await, None).await
    }

    /// `wanted`: what `demo` wants instead of the access token of `partner`.
    async fn wanting(partner: IdentityProvider, wanted: Option<Value>) -> Self {
        let (corp, third) = (IdentityProvider::start().await, IdentityProvider::start().await);
        let (demo, other) = (Upstream::start().await, Upstream::start().await);
        for (provider, upstream) in [(&partner, &demo), (&third, &other)] {
            provider.set(|script| script.refreshable = true);
            take(upstream, &["access-1"]);
        }
        let entry = |provider: &IdentityProvider, name: &str| {
            let mut entry = provider.entry();
            (entry["name"], entry["label"]) = (name.into(), format!("The {name}").into());
            entry["logout_ends_grants"] = Value::Bool(true);
            entry
        };
        let wants = |name: &str| json!({"kind": "upstream_inject", "provider": name});
        let wanted = wanted.unwrap_or_else(|| wants("partner"));
        let gateway = Gateway::builder()
            .route(Route::to("demo", &demo.url(), wanted))
            .route(Route::to("other", &other.url(), wants("third")))
            .env("IDP_SECRET", "of the identity provider")
            .env("CLIENT_SECRET", &partner.client_secret())
            .with(
                "login.oidc",
                json!([entry(&corp, "corp"), entry(&partner, "partner"), entry(&third, "third")]),
            )
            .start()
            .await;
        let client = Client::register(&gateway).await;
        World { corp, partner, third, demo, other, gateway, client }
    }

    /// A browser that came in at `corp`.
    async fn of_corp(&self) -> Browser {
        let mut browser = Browser::new();
        self.come_in(&mut browser).await;
        browser
    }

    async fn come_in(&self, browser: &mut Browser) {
        let home = browser.go(&self.gateway.url("/login/start?provider=corp&next=/")).await.page();
        assert!(home.text().contains("You are signed in as"), "{}", home.text());
    }

    async fn sign_in(&self, browser: &mut Browser, route: &str) -> Tokens {
        let request = self.client.authorization(route);
        let arrival = browser.authorize_or_stop(&self.client.redirect_uri, &request.url()).await;
        let Arrival::Client(url) = arrival else { panic!("{}", arrival.page().text()) };
        self.client.redeem(&Callback::of(&url).code(), &request).await.tokens()
    }

    async fn call(&self, route: &str, tokens: &Tokens) -> u16 {
        self.gateway
            .mcp(route)
            .bearer(&tokens.access_token)
            .tool("echo", json!({"message": "heard"}))
            .await
            .status
    }

    async fn account(&self, browser: &mut Browser) -> Page {
        browser.go(&self.gateway.url("/connections")).await.page()
    }

    /// Presses a button of the account page.
    async fn act(&self, browser: &mut Browser, action: &str) -> Page {
        let page = self.account(browser).await;
        browser.submit(&page, &page.form_to(action), &[]).await.page()
    }

    /// The page that asks whether to go on to this provider.
    async fn asked(&self, browser: &mut Browser, provider: &str) -> Page {
        let page =
            browser.go(&self.gateway.url(&format!("/login/start?provider={provider}&next=/"))).await.page();
        assert!(page.text().contains("as well?"), "{}", page.text());
        page
    }

    /// Sets out to `partner`, and returns the address that it sends the browser back to.
    async fn set_out(&self, browser: &mut Browser) -> String {
        let page = self.asked(browser, "partner").await;
        let moved = browser.submit_once(&page, &page.form_to("/login/leg"), &[]).await;
        let away = meta_refresh(&moved.body).unwrap();
        assert!(away.starts_with(&self.partner.issuer), "{away}");
        browser.peek(&away).await.header("location").unwrap().to_owned()
    }

    async fn notify(&self, provider: &IdentityProvider, about: &Value) {
        let body = format!("logout_token={}", provider.logout_token(about));
        let request = self.gateway.http.post(self.gateway.url("/login/backchannel-logout")).body(body);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        assert_eq!(request.send().await.unwrap().status(), 200);
    }

    /// So many legs of this user have come to this account.
    async fn legs(&self, count: usize, user: &str, account: &str) {
        let is = |line: &Value| line["event"] == "leg" && line["user"] == user && line["account"] == account;
        self.gateway.output.has(count, is).await;
    }
}

fn take(upstream: &Upstream, tokens: &[&str]) {
    upstream.set(|script| script.extra_tokens = tokens.iter().map(ToString::to_string).collect());
}

async fn is_in(browser: &mut Browser, world: &World) -> bool {
    browser.go(&world.gateway.url("/")).await.page().text().contains("You are signed in")
}

#[tokio::test]
async fn brk35_08_brk35_09_whoever_came_in_elsewhere_goes_on_to_the_provider_that_a_route_wants() {
    let world = World::start().await;
    let (mut alice, mut ada) = (Browser::new(), world.of_corp().await);
    // One with a password, one of another provider; each asked on demand, on the way of an application.
    let of_alice = world.sign_in(&mut alice, "demo").await;
    assert_eq!(world.call("demo", &of_alice).await, 200);
    take(&world.demo, &["access-2"]);
    let of_ada = world.sign_in(&mut ada, "demo").await;
    assert_eq!(world.call("demo", &of_ada).await, 200);
    let (there, here) = (world.partner.user("4711"), world.corp.user("4711"));
    world.legs(1, "alice", &there).await;
    world.legs(1, &here, &there).await;
    let log = world.gateway.output.text();
    let signed_in = |line: &&str| line.contains(r#""event":"sign_in""#) && line.contains(&there);
    assert_eq!(log.lines().find(signed_in), None, "an account of a leg signs nobody in");
    assert!(!world.demo.requests.mention(&of_ada.access_token), "the client's token stays here");
    // Each leg with a state, a nonce and a challenge of its own.
    let asked = [world.corp.requests.last_to("/authorize"), world.partner.requests.last_to("/authorize")];
    for name in ["state", "nonce", "code_challenge"] {
        let [one, other] = asked.each_ref().map(|request| request.parameter(name).unwrap());
        assert!(one.len() >= 20 && one != other, "{name}");
    }
    // Renewed like any connection, and what another route wants is another leg.
    take(&world.demo, &["access-3"]);
    assert_eq!(world.call("demo", &of_ada).await, 200);
    assert_eq!(world.partner.requests.last_to("/token").form("grant_type").as_deref(), Some("refresh_token"));
    assert_eq!(world.third.requests.count("/authorize"), 0);
    let other = world.sign_in(&mut ada, "other").await;
    assert_eq!(world.call("other", &other).await, 200);
    // Once it is ended the client hears of it, and the next sign-in leads there again, and back.
    world.act(&mut ada, "/connections/demo/disconnect").await;
    eventually(SECOND, async || world.call("demo", &of_ada).await == 401).await;
    assert_eq!(world.call("other", &other).await, 200);
    take(&world.demo, &["access-4"]);
    let again = world.sign_in(&mut ada, "demo").await;
    assert_eq!(world.call("demo", &again).await, 200);
    world.legs(2, &here, &there).await;
}

#[tokio::test]
async fn brk35_09_what_one_leg_brought_is_kept_when_the_next_one_fails() {
    let world = World::start().await;
    let mut ada = world.of_corp().await;
    world.third.set(|script| script.callback = vec![("error".to_owned(), "access_denied".to_owned())]);
    let mut page = world.act(&mut ada, "/connections/connect").await;
    for _ in 0..2 {
        assert!(page.text().contains("as well?"), "{}", page.text());
        page = ada.press(&page, "allow").await.page();
    }
    let first = world.partner.requests.count("/authorize");
    assert_eq!((page.status, first, world.partner.given(), world.third.given()), (403, 1, 1, 0));
    assert!(page.text().contains("The third") && page.body.contains("/connections"), "{}", page.text());
    let page = world.account(&mut ada).await.text();
    assert_eq!(page.matches("Connected with your account there").count(), 1, "{page}");
    let tokens = world.sign_in(&mut ada, "demo").await;
    assert_eq!((world.call("demo", &tokens).await, world.partner.given()), (200, 1));
    // A provider that is away takes nothing from anybody either, and the leg that is missing is all that is asked for.
    world.third.set(|script| (script.callback, script.token_status) = (Vec::new(), 503));
    let page = world.act(&mut ada, "/connections/other/connect").await;
    assert_eq!(ada.press(&page, "allow").await.page().status, 503);
    assert_eq!(world.call("demo", &tokens).await, 200);
    world.third.set(|script| script.token_status = 200);
    let page = world.act(&mut ada, "/connections/other/connect").await;
    let page = ada.press(&page, "allow").await.page();
    assert_eq!(page.text().matches("Connected with your account there").count(), 2, "{}", page.text());
    assert_eq!((world.partner.given(), world.third.given()), (1, 1));
}

#[tokio::test]
async fn the_account_there_stays_the_same_until_the_user_ends_it() {
    let world = World::start().await;
    let mut ada = world.of_corp().await;
    let tokens = world.sign_in(&mut ada, "demo").await;
    world.partner.set(|script| script.claims["sub"] = "4712".into());
    let page = world.asked(&mut ada, "partner").await;
    let page = ada.press(&page, "allow").await.page();
    assert!(page.status == 403 && page.text().contains("another account"), "{}", page.text());
    assert_eq!(world.call("demo", &tokens).await, 200, "what was there serves");
    assert!(is_in(&mut ada, &world).await);
    // Somebody else is asked about their own.
    let mut alice = Browser::new();
    take(&world.demo, &["access-1", "access-3"]);
    let of_alice = world.sign_in(&mut alice, "demo").await;
    assert_eq!(world.call("demo", &of_alice).await, 200);
    world.legs(1, "alice", &world.partner.user("4712")).await;
    world.act(&mut ada, "/connections/demo/disconnect").await;
    let page = world.asked(&mut ada, "partner").await;
    assert_eq!(ada.press(&page, "allow").await.page().status, 200);
    world.legs(1, &world.corp.user("4711"), &world.partner.user("4712")).await;
    // What they were there before has no more to do with it.
    let revoked = world.partner.requests.count("/revoke");
    world.notify(&world.partner, &json!({"sub": "4711"})).await;
    assert_eq!(world.partner.requests.count("/revoke"), revoked);
}

#[tokio::test]
async fn brk35_08_a_leg_is_finished_by_the_session_that_began_it_and_by_no_other() {
    let world = World::start().await;
    let mut mallory = world.of_corp().await;
    let back = world.set_out(&mut mallory).await;
    // In a victim's browser the attacker's leg does not end, signed in or not, nor with a sign-in of their own under way.
    world.corp.set(|script| script.claims["sub"] = "4712".into());
    let mut victim = world.of_corp().await;
    let theirs = world.set_out(&mut victim).await;
    for browser in [&mut victim, &mut Browser::new()] {
        assert_eq!(browser.follow_from("https://evil.test/", &back).await.page().status, 400);
    }
    assert_eq!(world.partner.given(), 0, "the code goes nowhere");
    // The own one does, once.
    assert_eq!(victim.go(&theirs).await.page().status, 200);
    assert_eq!(victim.go(&theirs).await.page().status, 400);
    assert_eq!(world.partner.given(), 1);
    // In the browser that began it, but signed out meanwhile, or in again.
    let home = mallory.go(&world.gateway.url("/")).await.page();
    mallory.press(&home, "Sign out").await;
    assert_eq!(mallory.go(&back).await.page().status, 400);
    assert!(!is_in(&mut mallory, &world).await, "nobody is signed in by a leg");
    world.corp.set(|script| script.claims["sub"] = "4711".into());
    world.come_in(&mut mallory).await;
    let back = world.set_out(&mut mallory).await;
    let home = mallory.go(&world.gateway.url("/")).await.page();
    mallory.press(&home, "Sign out").await;
    world.come_in(&mut mallory).await;
    assert_eq!(mallory.go(&back).await.page().status, 400);
    assert_eq!(world.partner.given(), 1);
}

#[tokio::test]
async fn nobody_is_sent_on_a_leg_unasked_and_nobody_comes_in_by_one() {
    let world = World::start().await;
    let mut ada = world.of_corp().await;
    let start = world.gateway.url("/login/start?provider=partner&next=/");
    let page = ada.follow_from("https://evil.test/", &start).await.page();
    assert!(page.text().contains("as well?") && page.text().contains("The partner"), "{}", page.text());
    let form = page.form_to("/login/leg");
    let forged = ada.submit_once(&page, &form, &[("csrf", "forged")]).await;
    assert_eq!((forged.status, world.partner.requests.count("/authorize")), (403, 0));
    let elsewhere = ada.submit_once(&page, &form, &[("next", "https://evil.test/")]).await;
    let answer = ada.peek(&meta_refresh(&elsewhere.body).unwrap()).await;
    let ended = ada.peek(answer.header("location").unwrap()).await;
    assert_eq!(ended.header("location"), Some("/"));
    // The session is over by the time that somebody follows the way of a leg: they say who they are first.
    let mut nobody = Browser::new();
    let page = nobody.go(&world.gateway.url("/login/start?provider=partner&further=1&next=/")).await.page();
    assert!(page.url.path() == "/login" && !is_in(&mut nobody, &world).await, "{}", page.url);
    let page = nobody.sign_in(&page).await.page();
    assert!(page.text().contains("alice") && page.text().contains("as well?"), "{}", page.text());
    assert_eq!(world.partner.given(), 1);
}

#[tokio::test]
async fn a_sign_out_there_ends_the_connection_and_not_the_session() {
    let world = World::start().await;
    let mut ada = world.of_corp().await;
    world.partner.set(|script| script.claims["sid"] = "s1".into());
    let tokens = world.sign_in(&mut ada, "demo").await;
    world.notify(&world.partner, &json!({"sub": "4712"})).await;
    assert_eq!((world.call("demo", &tokens).await, world.partner.requests.count("/revoke")), (200, 0));
    // Whoever the notice names, or the session there alone.
    for (number, about) in [json!({"sub": "4711"}), json!({"sid": "s1"})].iter().enumerate() {
        world.notify(&world.partner, about).await;
        eventually(SECOND, async || world.call("demo", &tokens).await == 401).await;
        assert_eq!(world.partner.requests.count("/revoke"), number + 1);
        assert!(is_in(&mut ada, &world).await);
        take(&world.demo, &[&format!("access-{}", number + 2)]);
        let page = world.asked(&mut ada, "partner").await;
        assert_eq!(ada.press(&page, "allow").await.page().status, 200);
        eventually(SECOND, async || world.call("demo", &tokens).await == 200).await;
    }
    // Signing out at the own provider ends the session, as ever.
    world.notify(&world.corp, &json!({"sub": "4711"})).await;
    assert!(!is_in(&mut ada, &world).await);
    assert!(world.other.calls().is_empty());
}

#[tokio::test]
async fn the_token_of_a_leg_is_exchanged_for_the_person_who_went_on_it() {
    let partner = IdentityProvider::start().await;
    let wanted = json!({"kind": "token_exchange", "issuer": partner.issuer, "client_id": "gateway",
        "client_secret": {"env": "CLIENT_SECRET"}, "subject_provider": "partner", "audience": "files"});
    let world = World::wanting(partner, Some(wanted)).await;
    take(&world.demo, &[&name(1)]);
    let mut alice = Browser::new();
    let tokens = world.sign_in(&mut alice, "demo").await;
    world.legs(1, "alice", &world.partner.user("4711")).await;
    assert_eq!((world.call("demo", &tokens).await, world.partner.exchanges()), (200, 1));
    let asked = world.partner.requests.last_to("/token");
    assert_eq!(asked.form("subject_token").as_deref(), Some("access-1"), "what the leg brought");
    assert_eq!(asked.form("subject_token_type").as_deref(), Some(exchanges::ACCESS_TOKEN));
    world.demo.assert_never_saw(&[&tokens.access_token, &tokens.refresh_token, "access-1"]);
    // Without the leg there is nothing to exchange: the person is sent there again.
    world.act(&mut alice, "/connections/demo/disconnect").await;
    eventually(SECOND, async || world.call("demo", &tokens).await == 401).await;
    assert_eq!(world.partner.exchanges(), 1);
    take(&world.demo, &[&name(2)]);
    let again = world.sign_in(&mut alice, "demo").await;
    assert_eq!((world.call("demo", &again).await, world.partner.exchanges()), (200, 2));
    world.legs(2, "alice", &world.partner.user("4711")).await;
    world.gateway.output.assert_no_secret();
}

#[tokio::test]
async fn the_role_at_aws_is_that_of_the_account_of_the_leg() {
    let partner = IdentityProvider::start().await;
    partner.set(|script| script.claims["groups"] = json!(["staff"]));
    let sts = Sts::trusting(&partner).await;
    let arn = |name: &str| format!("arn:aws:iam::123456789012:role/{name}");
    let wanted = json!({"kind": "aws_sigv4", "region": REGION, "service": SERVICE, "subject_provider": "partner",
        "sts_endpoint": sts.endpoint, "roles": [{"claim": "groups", "values": ["staff"], "arn": arn("staff")}]});
    let world = World::wanting(partner, Some(wanted)).await;
    world.demo.set(|script| script.requires_auth = false);
    // At `corp` she is an admin, which is nothing to the other provider.
    world.corp.set(|script| script.claims["groups"] = json!(["admins"]));
    let mut ada = world.of_corp().await;
    let tokens = world.sign_in(&mut ada, "demo").await;
    world.legs(1, &world.corp.user("4711"), &world.partner.user("4711")).await;
    assert_eq!(world.call("demo", &tokens).await, 200);
    let given = sts.given();
    assert_eq!((given.len(), given[0].role.as_str()), (1, arn("staff").as_str()));
    let signed = world.demo.calls().pop().unwrap();
    assert_eq!(sts.signer(&signed).unwrap().access_key, given[0].access_key);
    let shown = sts.requests.all()[0].form("WebIdentityToken").unwrap();
    assert!(!world.demo.requests.mention(&shown) && !world.corp.requests.mention(&shown));
    // What comes of the leg goes with it.
    world.act(&mut ada, "/connections/demo/disconnect").await;
    eventually(SECOND, async || world.call("demo", &tokens).await == 401).await;
    assert_eq!(sts.given().len(), 1);
    world.demo.assert_never_saw(&[&tokens.access_token, &tokens.refresh_token]);
    world.gateway.output.assert_no_secret();
}
