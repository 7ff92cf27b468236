//! The token endpoint and revocation: codes are good once and only for who asked, refresh tokens rotate, and
//! whatever looks like theft ends the grant with everything it brought.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern::clock::Clock;
use postern::config::ClientAuthMethod;
use postern::oauth::client::connect::{CallbackError, ConnectError, Returning};
use postern::oauth::client::discover::{AuthorizationServer, Discovered};
use postern::oauth::client::identity::Providers;
use postern::oauth::client::prospect::Plan;
use postern::oauth::client::{Connector, issuer_key};
use postern::oauth::server::access_token::Keys;
use postern::oauth::server::authenticate::Authenticated;
use postern::oauth::server::authorize::{self, Prepared};
use postern::oauth::server::client::registered::keep;
use postern::oauth::server::client::{Authentication, ClientError};
use postern::oauth::server::code::{self, Code, Redemption};
use postern::oauth::server::consent::{ConsentError, Decision, decide};
use postern::oauth::server::grant::{self, Grant, Renewal};
use postern::oauth::server::register::register;
use postern::oauth::server::{self, Authority, Snapshot};
use postern::outbound::{Outbound, Settings};
use postern::route::Table;
use postern::seal::{self, Sealer, SealingKey};
use postern::store::Put;
use postern::store::embedded::Embedded;
use postern::store::record::Records;
use postern::telemetry::{InFlight, Metrics};
use serde_json::json;
use support::browser::Browser;
use support::client::{ACCESS_SCOPE, AuthorizationRequest, Client, TokenAnswer, Tokens};
use support::eventually;
use support::gateway::{Builder, Gateway, PASSWORD_HASH, Route};
use support::mcp::McpAnswer;
use support::params::{Params, Pkce};
use support::upstream::Upstream;
use tower::ServiceExt;

/// Within this a revoked access token is dead everywhere.
const SOON: Duration = Duration::from_secs(1);

/// A gateway with the routes `demo` and `other`, one client and one browser.
struct Rig {
    gateway: Gateway,
    client: Client,
    browser: Browser,
    /// Ends with this.
    _upstream: Upstream,
}

impl Rig {
    async fn start() -> Self {
        Self::with(|builder| builder).await
    }

    async fn with(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let upstream = Upstream::open().await;
        let builder = Gateway::builder()
            .route(Route::open("demo", &upstream))
            .route(Route::open("other", &upstream).with("scopes", json!(["write"])));
        let gateway = configure(builder).start().await;
        let client = Client::register(&gateway).await;
        Rig { gateway, client, browser: Browser::new(), _upstream: upstream }
    }

    /// A fresh code for `demo` and the request it answers.
    async fn code(&mut self) -> (String, AuthorizationRequest) {
        let request = self.client.authorization("demo");
        let callback = self.browser.authorize(&self.client.redirect_uri, &request.url()).await;
        (callback.code(), request)
    }

    /// Fresh tokens for `demo`.
    async fn tokens(&mut self) -> Tokens {
        self.client.sign_in(&mut self.browser, "demo").await
    }

    async fn status(&self, access_token: &str) -> u16 {
        let call = self.gateway.mcp("demo").bearer(access_token);
        call.tool("echo", json!({"text": "x"})).await.status
    }

    async fn assert_alive(&self, access_token: &str) {
        assert_eq!(self.status(access_token).await, 200);
    }

    /// The access token is refused within a second.
    async fn assert_dies(&self, access_token: &str) {
        eventually(SOON, async || self.status(access_token).await == 401).await;
    }
}

#[track_caller]
fn assert_refused(answer: &TokenAnswer, error: &str) {
    let status = if error == "invalid_client" { 401 } else { 400 };
    assert_eq!((answer.status(), answer.error().as_deref()), (status, Some(error)), "{}", answer.0.body);
    let description = answer.0.json()["error_description"].as_str().unwrap_or_default().to_owned();
    // RFC 6749 §5.2 allows no other characters.
    assert!(
        !description.is_empty()
            && description.bytes().all(|b| matches!(b, 0x20..0x7f) && b != b'"' && b != b'\\'),
        "{description:?}"
    );
    assert_uncached(&answer.0);
}

#[track_caller]
fn assert_uncached(answer: &McpAnswer) {
    assert_eq!(
        (answer.header("cache-control"), answer.header("pragma")),
        (Some("no-store"), Some("no-cache"))
    );
}

// === codes ===

#[tokio::test]
async fn sr_as_35_pom_10_a_code_brings_a_bearer_token_and_a_refresh_token() {
    let mut rig = Rig::start().await;
    let (code, request) = rig.code().await;
    let answer = rig.client.redeem(&code, &request).await;
    assert_uncached(&answer.0);
    let body = answer.0.json();
    assert_eq!((&body["token_type"], &body["expires_in"]), (&json!("Bearer"), &json!(590)));
    assert_eq!(body.as_object().unwrap().len(), 5, "nothing else: {:?}", body.as_object().unwrap().keys());
    let tokens = answer.tokens();
    assert_eq!(tokens.scope, ACCESS_SCOPE);
    assert!(tokens.access_token.starts_with("postern_at_"), "secret scanners know it");
    assert!(tokens.refresh_token.starts_with("postern_rt_"));
    rig.assert_alive(&tokens.access_token).await;
    // Neither is a refresh token a token for calls, nor the other way round.
    assert_eq!(rig.status(&tokens.refresh_token).await, 401);
    assert_refused(&rig.client.refresh(&tokens.access_token).await, "invalid_grant");
}

#[tokio::test]
async fn sr_as_31_sr_t12_a_replayed_code_ends_what_it_brought() {
    let mut rig = Rig::start().await;
    let (code, request) = rig.code().await;
    let first = rig.client.redeem(&code, &request).await.tokens();
    let refreshed = rig.client.refresh(&first.refresh_token).await.tokens();
    let bystander = rig.tokens().await;
    rig.assert_alive(&first.access_token).await;
    assert_refused(&rig.client.redeem(&code, &request).await, "invalid_grant");
    rig.assert_dies(&first.access_token).await;
    rig.assert_dies(&refreshed.access_token).await;
    for refresh_token in [&first.refresh_token, &refreshed.refresh_token] {
        assert_refused(&rig.client.refresh(refresh_token).await, "invalid_grant");
    }
    assert_refused(&rig.client.redeem(&code, &request).await, "invalid_grant");
    // Another grant of the same user and client is not touched.
    rig.assert_alive(&bystander.access_token).await;
    rig.client.refresh(&bystander.refresh_token).await.tokens();
}

#[tokio::test]
async fn sr_t12_who_cannot_use_a_code_cannot_use_its_replay_as_a_weapon() {
    let mut rig = Rig::start().await;
    let (code, request) = rig.code().await;
    let tokens = rig.client.redeem(&code, &request).await.tokens();
    let stranger = Client::register(&rig.gateway).await;
    assert_refused(&stranger.redeem(&code, &request).await, "invalid_grant");
    let verifier = Pkce::new().verifier;
    let guessed = rig.client.redemption(&code, &request).with("code_verifier", &verifier);
    assert_refused(&rig.client.token(&guessed).await, "invalid_grant");
    // Made up, with what a true refresh token gives away.
    let grant = tokens.refresh_token.strip_prefix("postern_rt_").unwrap();
    let (id, secret) = grant.split_once('.').unwrap();
    for forged in [
        format!("postern_ac_{id}"),
        format!("postern_ac_{grant}"),
        format!("postern_ac_{secret}"),
        format!("{code}x"),
        code[..code.len() - 1].to_owned(),
        code.to_uppercase(),
        "postern_ac_".into(),
    ] {
        assert_refused(&rig.client.redeem(&forged, &request).await, "invalid_grant");
    }
    rig.assert_alive(&tokens.access_token).await;
    rig.client.refresh(&tokens.refresh_token).await.tokens();
}

#[tokio::test]
async fn sr_t12_pom_09_a_code_is_for_the_client_that_asked() {
    let mut rig = Rig::start().await;
    let (code, request) = rig.code().await;
    let stranger = Client::register(&rig.gateway).await;
    assert_refused(&stranger.redeem(&code, &request).await, "invalid_grant");
    let mut disguised = stranger.clone();
    disguised.redirect_uri = rig.client.redirect_uri.clone();
    assert_refused(&disguised.redeem(&code, &request).await, "invalid_grant");
    let nobody = rig.client.redemption(&code, &request).without("client_id");
    assert_refused(&rig.client.token(&nobody).await, "invalid_request");
    rig.client.redeem(&code, &request).await.tokens();
}

#[tokio::test]
async fn sr_t11_sr_as_32_pom_08_a_code_needs_its_verifier() {
    let mut rig = Rig::start().await;
    let (code, request) = rig.code().await;
    let redemption = rig.client.redemption(&code, &request);
    for wrong in [
        Pkce::new().verifier,
        request.pkce.challenge.clone(),
        request.pkce.verifier.to_lowercase(),
        format!("{} ", request.pkce.verifier),
        "x".repeat(42),
        "x".repeat(129),
    ] {
        let answer = rig.client.token(&redemption.clone().with("code_verifier", &wrong)).await;
        assert_refused(&answer, "invalid_grant");
    }
    for missing in [redemption.clone().without("code_verifier"), redemption.clone().with("code_verifier", "")]
    {
        assert_refused(&rig.client.token(&missing).await, "invalid_request");
    }
    rig.client.token(&redemption).await.tokens();
}

#[tokio::test]
async fn sr_t29_what_is_wrong_with_a_redemption_is_found_before_the_code_is_spent() {
    let mut rig = Rig::start().await;
    let (code, request) = rig.code().await;
    let redemption = rig.client.redemption(&code, &request);
    let demo = rig.client.resource("demo");
    for (name, value, error) in [
        ("resource", rig.client.resource("other"), "invalid_target"),
        ("resource", "https://elsewhere.example/mcp".into(), "invalid_target"),
        ("resource", demo.replace("demo", "DEMO"), "invalid_target"),
        ("resource", format!("{demo}/x"), "invalid_target"),
        ("redirect_uri", "http://127.0.0.1:1/other".into(), "invalid_grant"),
        ("redirect_uri", format!("{}/", rig.client.redirect_uri), "invalid_grant"),
        ("redirect_uri", "https://evil.test/callback".into(), "invalid_grant"),
        ("client_secret", "guess".into(), "invalid_client"),
        ("client_assertion", "e30.e30.".into(), "invalid_client"),
        ("grant_type", "password".into(), "unsupported_grant_type"),
        ("grant_type", String::new(), "invalid_request"),
    ] {
        let answer = rig.client.token(&redemption.clone().with(name, &value)).await;
        assert_refused(&answer, error);
    }
    let twice = redemption.clone().and("resource", &demo);
    assert_refused(&rig.client.token(&twice).await, "invalid_request");
    // OAuth 2.1 needs no redirect URI here, and RFC 8707 no resource.
    let tokens = rig.client.token(&redemption.without("redirect_uri").without("resource")).await.tokens();
    rig.assert_alive(&tokens.access_token).await;
}

#[tokio::test]
async fn sr_t12_pom_b16_of_many_redemptions_at_once_one_wins() {
    let mut rig = Rig::start().await;
    let (code, request) = rig.code().await;
    let redemption = rig.client.redemption(&code, &request);
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (client, redemption) = (rig.client.clone(), redemption.clone());
        running.spawn(async move { client.token(&redemption).await });
    }
    let answers = running.join_all().await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status() == 200);
    lost.iter().for_each(|answer| assert_refused(answer, "invalid_grant"));
    assert_eq!(won.len(), 1);
    // The others were replays, so what it won does not live.
    let tokens = won[0].tokens();
    rig.assert_dies(&tokens.access_token).await;
    assert_refused(&rig.client.refresh(&tokens.refresh_token).await, "invalid_grant");
}

#[tokio::test]
async fn sr_as_31_a_code_survives_a_crash_and_so_does_its_being_spent() {
    let mut rig = Rig::start().await;
    let (code, request) = rig.code().await;
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    let tokens = rig.client.redeem(&code, &request).await.tokens();
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    rig.assert_alive(&tokens.access_token).await;
    assert_refused(&rig.client.redeem(&code, &request).await, "invalid_grant");
    rig.assert_dies(&tokens.access_token).await;
    rig.gateway.restart().await;
    assert_eq!(rig.status(&tokens.access_token).await, 401, "revoked stays revoked");
}

// === refresh ===

#[tokio::test]
async fn sr_as_38_pom_11_every_use_of_a_refresh_token_brings_the_next_one() {
    let mut rig = Rig::start().await;
    let mut tokens = rig.tokens().await;
    let mut seen = vec![tokens.refresh_token.clone()];
    for _ in 0..12 {
        let answer = rig.client.refresh(&tokens.refresh_token).await;
        assert_uncached(&answer.0);
        let next = answer.tokens();
        assert!(!seen.contains(&next.refresh_token) && next.access_token != tokens.access_token);
        assert_eq!((next.scope.as_str(), next.expires_in), (ACCESS_SCOPE, 590));
        rig.assert_alive(&next.access_token).await;
        rig.assert_alive(&tokens.access_token).await;
        seen.push(next.refresh_token.clone());
        tokens = next;
    }
}

#[tokio::test]
async fn sr_t28_the_last_refresh_token_gets_the_same_answer_again() {
    let mut rig = Rig::start().await;
    let first = rig.tokens().await;
    let answer = rig.client.refresh(&first.refresh_token).await;
    let next = answer.tokens();
    for _ in 0..3 {
        let again = rig.client.refresh(&first.refresh_token).await;
        assert_eq!((again.status(), &again.0.body), (200, &answer.0.body));
        assert_uncached(&again.0);
    }
    rig.assert_alive(&next.access_token).await;
    rig.client.refresh(&next.refresh_token).await.tokens();
}

#[tokio::test]
async fn sr_t28_a_refresh_token_whose_successor_was_used_ends_the_family() {
    let mut rig = Rig::start().await;
    let first = rig.tokens().await;
    let second = rig.client.refresh(&first.refresh_token).await.tokens();
    let third = rig.client.refresh(&second.refresh_token).await.tokens();
    let bystander = rig.tokens().await;
    assert_refused(&rig.client.refresh(&first.refresh_token).await, "invalid_grant");
    for tokens in [&first, &second, &third] {
        rig.assert_dies(&tokens.access_token).await;
        assert_refused(&rig.client.refresh(&tokens.refresh_token).await, "invalid_grant");
    }
    rig.assert_alive(&bystander.access_token).await;
    rig.client.refresh(&bystander.refresh_token).await.tokens();
}

#[tokio::test]
async fn sr_t28_an_old_generation_is_known_for_long() {
    let mut rig = Rig::start().await;
    let first = rig.tokens().await;
    let mut tokens = first.clone();
    for _ in 0..6 {
        tokens = rig.client.refresh(&tokens.refresh_token).await.tokens();
    }
    assert_refused(&rig.client.refresh(&first.refresh_token).await, "invalid_grant");
    rig.assert_dies(&tokens.access_token).await;
}

#[tokio::test]
async fn sr_t28_without_a_window_the_last_refresh_token_ends_the_family_too() {
    let mut rig = Rig::with(|builder| builder.with("oauth_server.refresh_replay_window", json!("0s"))).await;
    let first = rig.tokens().await;
    let next = rig.client.refresh(&first.refresh_token).await.tokens();
    assert_refused(&rig.client.refresh(&first.refresh_token).await, "invalid_grant");
    rig.assert_dies(&next.access_token).await;
    assert_refused(&rig.client.refresh(&next.refresh_token).await, "invalid_grant");
}

#[tokio::test]
async fn sr_t28_a_forged_secret_ends_nothing() {
    let mut rig = Rig::start().await;
    let first = rig.tokens().await;
    let tokens = rig.client.refresh(&first.refresh_token).await.tokens();
    let (family, secret) = tokens.refresh_token.split_once('.').unwrap();
    for forged in [
        format!("{family}.{}", "A".repeat(secret.len())),
        format!("{family}."),
        family.to_owned(),
        format!("{}x", tokens.refresh_token),
        format!("{family}.{secret}.{secret}"),
        tokens.refresh_token.replace("postern_rt_", "postern_at_"),
        "postern_rt_x.y".into(),
        "postern_rt_.".into(),
    ] {
        assert_refused(&rig.client.refresh(&forged).await, "invalid_grant");
    }
    rig.assert_alive(&tokens.access_token).await;
    rig.client.refresh(&tokens.refresh_token).await.tokens();
}

#[tokio::test]
async fn sr_t28_another_client_can_neither_use_nor_burn_a_refresh_token() {
    let mut rig = Rig::start().await;
    let first = rig.tokens().await;
    let second = rig.client.refresh(&first.refresh_token).await.tokens();
    let tokens = rig.client.refresh(&second.refresh_token).await.tokens();
    let stranger = Client::register(&rig.gateway).await;
    // Even one that would end the family in its owner's hands.
    for refresh_token in [&tokens.refresh_token, &second.refresh_token, &first.refresh_token] {
        assert_refused(&stranger.refresh(refresh_token).await, "invalid_grant");
    }
    rig.assert_alive(&tokens.access_token).await;
    rig.client.refresh(&tokens.refresh_token).await.tokens();
}

#[tokio::test]
async fn sr_t29_sr_as_37_what_is_wrong_with_a_refresh_is_found_before_it_rotates() {
    let mut rig = Rig::start().await;
    let tokens = rig.tokens().await;
    let refreshment = rig.client.refreshment(&tokens.refresh_token);
    for (name, value, error) in [
        ("resource", rig.client.resource("other"), "invalid_target"),
        ("scope", format!("{ACCESS_SCOPE} write"), "invalid_scope"),
        ("scope", "admin".into(), "invalid_scope"),
        ("scope", "  ".into(), "invalid_scope"),
        ("client_secret", "guess".into(), "invalid_client"),
        ("client_id", String::new(), "invalid_request"),
    ] {
        assert_refused(&rig.client.token(&refreshment.clone().with(name, &value)).await, error);
    }
    assert_refused(&rig.client.token(&refreshment.clone().without("refresh_token")).await, "invalid_request");
    // The next two would not get the same token twice if any of these had rotated it.
    let good = refreshment.with("resource", &rig.client.resource("demo"));
    let next = rig.client.token(&good).await.tokens();
    let last = rig.client.refresh(&next.refresh_token).await.tokens();
    rig.assert_alive(&last.access_token).await;
}

#[tokio::test]
async fn sr_as_37_a_refresh_may_ask_for_less_and_the_next_for_all_again() {
    let mut rig = Rig::start().await;
    let request = rig.client.authorization("other");
    let callback = rig.browser.authorize(&rig.client.redirect_uri, &request.url()).await;
    let tokens = rig.client.redeem(&callback.code(), &request).await.tokens();
    let all = format!("{ACCESS_SCOPE} write");
    assert_eq!(tokens.scope, all);
    let less = rig.client.refreshment(&tokens.refresh_token).with("scope", ACCESS_SCOPE);
    let less = rig.client.token(&less).await.tokens();
    assert_eq!(less.scope, ACCESS_SCOPE);
    let call = |token: &str| rig.gateway.mcp("other").bearer(token);
    let refused = call(&less.access_token).tool("echo", json!({"text": "x"})).await;
    assert_eq!((refused.status, refused.challenge("error").as_deref()), (403, Some("insufficient_scope")));
    let full = rig.client.refresh(&less.refresh_token).await.tokens();
    assert_eq!(full.scope, all);
    assert_eq!(call(&full.access_token).tool("echo", json!({"text": "x"})).await.status, 200);
}

#[tokio::test]
async fn sr_t28_many_uses_at_once_have_one_answer() {
    let mut rig = Rig::start().await;
    let tokens = rig.tokens().await;
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (client, refresh_token) = (rig.client.clone(), tokens.refresh_token.clone());
        running.spawn(async move { client.refresh(&refresh_token).await });
    }
    let answers = running.join_all().await;
    for answer in &answers {
        assert_eq!((answer.status(), &answer.0.body), (200, &answers[0].0.body));
    }
    let next = answers[0].tokens();
    rig.assert_alive(&next.access_token).await;
    rig.client.refresh(&next.refresh_token).await.tokens();
}

#[tokio::test]
async fn sr_t28_the_rotation_is_remembered_over_a_restart_and_a_crash() {
    let mut rig = Rig::start().await;
    let first = rig.tokens().await;
    let second = rig.client.refresh(&first.refresh_token).await.tokens();
    rig.gateway.restart().await;
    rig.assert_alive(&second.access_token).await;
    let answer = rig.client.refresh(&second.refresh_token).await;
    let third = answer.tokens();
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    rig.assert_alive(&third.access_token).await;
    assert_eq!(
        rig.client.refresh(&second.refresh_token).await.0.body,
        answer.0.body,
        "the same answer again"
    );
    assert_refused(&rig.client.refresh(&first.refresh_token).await, "invalid_grant");
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    assert_eq!(rig.status(&third.access_token).await, 401);
    assert_refused(&rig.client.refresh(&third.refresh_token).await, "invalid_grant");
}

#[tokio::test]
async fn sr_rs_06_a_user_who_was_taken_away_gets_no_more_tokens() {
    let mut rig = Rig::start().await;
    let tokens = rig.tokens().await;
    let users = json!([{"username": "bob", "password_hash": PASSWORD_HASH}]);
    rig.gateway.reconfigure("login.local.users", users);
    rig.gateway.restart().await;
    assert_refused(&rig.client.refresh(&tokens.refresh_token).await, "invalid_grant");
    let page = rig.browser.peek(&rig.client.authorization("demo").url()).await;
    assert!(page.header("location").unwrap().starts_with("/login?"), "the session has ended too");
}

// === revocation ===

#[tokio::test]
async fn sr_as_80_revoking_either_token_ends_the_grant() {
    let mut rig = Rig::start().await;
    for by_access_token in [true, false] {
        let bystander = rig.tokens().await;
        let first = rig.tokens().await;
        let tokens = rig.client.refresh(&first.refresh_token).await.tokens();
        let token = if by_access_token { &tokens.access_token } else { &tokens.refresh_token };
        let answer = rig.client.revoke(token).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_uncached(&answer);
        rig.assert_dies(&tokens.access_token).await;
        rig.assert_dies(&first.access_token).await;
        for refresh_token in [&first.refresh_token, &tokens.refresh_token] {
            assert_refused(&rig.client.refresh(refresh_token).await, "invalid_grant");
        }
        assert_eq!(rig.client.revoke(token).await.status, 200, "once more does no harm");
        rig.assert_alive(&bystander.access_token).await;
        rig.client.refresh(&bystander.refresh_token).await.tokens();
    }
}

#[tokio::test]
async fn sr_as_80_a_revoked_token_stays_dead_after_a_crash() {
    let mut rig = Rig::start().await;
    let tokens = rig.tokens().await;
    assert_eq!(rig.client.revoke(&tokens.refresh_token).await.status, 200);
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    assert_eq!(rig.status(&tokens.access_token).await, 401);
    assert_refused(&rig.client.refresh(&tokens.refresh_token).await, "invalid_grant");
}

#[tokio::test]
async fn sr_t30_a_client_revokes_its_own_tokens_only() {
    let mut rig = Rig::start().await;
    let tokens = rig.tokens().await;
    let stranger = Client::register(&rig.gateway).await;
    for token in [&tokens.access_token, &tokens.refresh_token] {
        assert_eq!(stranger.revoke(token).await.status, 200, "it learns nothing");
    }
    let (family, _) = tokens.refresh_token.split_once('.').unwrap();
    for unknown in ["x", "postern_rt_x.y", "postern_at_AAAA", &format!("{family}.guess"), family] {
        assert_eq!(rig.client.revoke(unknown).await.status, 200, "{unknown}");
    }
    rig.assert_alive(&tokens.access_token).await;
    rig.client.refresh(&tokens.refresh_token).await.tokens();
}

#[tokio::test]
async fn sr_as_80_a_revocation_is_a_form_with_client_and_token() {
    let mut rig = Rig::start().await;
    let tokens = rig.tokens().await;
    let form = Params::new().with("client_id", &rig.client.id).with("token", &tokens.refresh_token);
    for bad in
        [form.clone().without("token"), form.clone().without("client_id"), form.clone().and("token", "x")]
    {
        assert_refused(&TokenAnswer(rig.client.form("/oauth/revoke", &bad).await), "invalid_request");
    }
    let got = rig.gateway.http.get(form.url(&rig.gateway.url("/oauth/revoke"))).send().await.unwrap();
    assert_eq!(got.status(), 405);
    rig.assert_alive(&tokens.access_token).await;
    // A wrong hint is only a hint (RFC 7009 §2.1).
    let hinted = form.with("token_type_hint", "access_token");
    assert_eq!(rig.client.form("/oauth/revoke", &hinted).await.status, 200);
    rig.assert_dies(&tokens.access_token).await;
}

// === the endpoint ===

#[tokio::test]
async fn sr_as_30_the_token_endpoint_takes_forms_by_post_only() {
    let mut rig = Rig::start().await;
    let (code, request) = rig.code().await;
    let redemption = rig.client.redemption(&code, &request);
    let (http, url) = (&rig.gateway.http, rig.gateway.url("/oauth/token"));
    for method in ["GET", "PUT", "DELETE", "HEAD"] {
        let asked = http.request(method.parse().unwrap(), redemption.url(&url));
        assert_eq!(asked.send().await.unwrap().status(), 405, "{method}");
    }
    let post = async |kind: Option<&str>, body: String| {
        let mut request = http.post(&url).body(body);
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        TokenAnswer(McpAnswer::of(request.send().await.unwrap()).await)
    };
    let as_json = json!({"grant_type": "authorization_code", "code": code}).to_string();
    for (kind, body) in [
        (None, redemption.encoded()),
        (Some("text/plain"), redemption.encoded()),
        (Some("application/json"), as_json),
        (Some("multipart/form-data"), redemption.encoded()),
        (Some("application/x-www-form-urlencoded2"), redemption.encoded()),
        (Some("text/plain; application/x-www-form-urlencoded"), redemption.encoded()),
        (Some("application/x-www-form-urlencoded"), String::new()),
        (
            Some("application/x-www-form-urlencoded"),
            format!("{}&x={}", redemption.encoded(), "x".repeat(20_000)),
        ),
        (Some("application/x-www-form-urlencoded"), format!("{}{}", redemption.encoded(), "&y=1".repeat(2))),
    ] {
        assert_refused(&post(kind, body).await, "invalid_request");
    }
    // Parameters in the query are not the client's word (RFC 6749 §3.2).
    let queried = http.post(redemption.url(&url)).header("content-type", "application/x-www-form-urlencoded");
    assert_refused(&TokenAnswer(McpAnswer::of(queried.send().await.unwrap()).await), "invalid_request");
    // None of these has cost the client its code, and the media type is no matter of case.
    let kind = "Application/X-WWW-Form-URLEncoded; charset=UTF-8";
    post(Some(kind), redemption.with("unknown", "ignored").encoded()).await.tokens();
}

#[tokio::test]
async fn sr_as_33_a_public_client_with_a_proof_is_refused() {
    let mut rig = Rig::start().await;
    let (code, request) = rig.code().await;
    let redemption = rig.client.redemption(&code, &request);
    let basic = format!("Basic {}", data_encoding::BASE64.encode(format!("{}:x", rig.client.id).as_bytes()));
    for (path, authorization) in
        [("/oauth/token", basic.as_str()), ("/oauth/token", "Bearer x"), ("/oauth/revoke", basic.as_str())]
    {
        let request = rig.gateway.http.post(rig.gateway.url(path)).header("authorization", authorization);
        let request =
            request.header("content-type", "application/x-www-form-urlencoded").body(redemption.encoded());
        let answer = TokenAnswer(McpAnswer::of(request.send().await.unwrap()).await);
        assert_refused(&answer, "invalid_client");
        // RFC 6749 §5.2, RFC 9110 §15.5.2.
        assert!(answer.0.header("www-authenticate").is_some(), "{path} {authorization}");
    }
    assert_refused(&rig.client.token(&redemption.clone().with("client_secret", "x")).await, "invalid_client");
    rig.client.token(&redemption).await.tokens();
}

#[tokio::test]
async fn sr_rs_03_an_access_token_ends_when_it_was_said_to() {
    let mut rig = Rig::with(|builder| builder.with("oauth_server.access_token_ttl", json!("1s"))).await;
    let tokens = rig.tokens().await;
    assert_eq!(tokens.expires_in, 1);
    eventually(Duration::from_secs(3), async || rig.status(&tokens.access_token).await == 401).await;
    rig.client.refresh(&tokens.refresh_token).await.tokens();
}

#[tokio::test]
async fn sr_t17_tokens_codes_and_verifiers_are_never_logged() {
    let mut rig = Rig::with(|builder| builder.with("server.access_log", json!("json"))).await;
    let (code, request) = rig.code().await;
    let wrong = rig.client.redemption(&code, &request).with("redirect_uri", "https://evil.test/");
    assert_refused(&rig.client.token(&wrong).await, "invalid_grant");
    let tokens = rig.client.redeem(&code, &request).await.tokens();
    let next = rig.client.refresh(&tokens.refresh_token).await.tokens();
    rig.assert_alive(&next.access_token).await;
    assert_refused(&rig.client.redeem(&code, &request).await, "invalid_grant");
    rig.assert_dies(&next.access_token).await;
    assert_eq!(rig.client.revoke(&next.refresh_token).await.status, 200);
    rig.gateway.stop().await;
    rig.gateway.output.assert_no_secret();
    let log = rig.gateway.output.text();
    assert!(log.contains("/oauth/token"), "the access log is on");
    let cookies = rig.browser.jar.all().iter().map(|cookie| cookie.value.as_str());
    let secrets = [&code, &request.state, &tokens.access_token, &tokens.refresh_token, &next.refresh_token];
    for secret in secrets.into_iter().map(String::as_str).chain(cookies) {
        assert!(!log.contains(secret), "{secret}");
    }
}

// === time ===
// The clock of the program cannot be moved from outside, so these drive the same functions with one that can.

struct Later {
    authority: Authority,
    clock: Clock,
    _directory: tempfile::TempDir,
}

/// The public client `c`.
fn c() -> Authenticated {
    Authenticated { id: "c".into(), method: ClientAuthMethod::None, client: None }
}

impl Later {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(configure: impl FnOnce(&mut serde_json::Value)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut text = json!({
            "server": {"public_url": "https://gw.example", "listen": ["127.0.0.1:0"], "data_dir": directory.path()},
            "login": {"local": {"users": [{"username": "alice", "password_hash": PASSWORD_HASH}]}},
            "oauth_server": {"access_token_ttl": "10m", "refresh_token_ttl": "1h", "refresh_replay_window": "30s"},
            "routes": [{"name": "demo", "path": "/demo", "upstream": {"url": "https://up.example/mcp"},
                "credential": {"kind": "none"}}],
        });
        configure(&mut text);
        let config = postern::config::parse(&text.to_string(), "test", &postern::config::Process);
        let config = config.unwrap_or_else(|report| panic!("{report}"));
        let clock = Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let store = Arc::new(Embedded::open(directory.path(), clock.clone()).unwrap());
        let sealer = Sealer::new(vec![SealingKey::new("k", seal::random().unwrap()).unwrap()]).unwrap();
        let records = Records::new(store, Arc::new(sealer));
        let settings = Settings { ca_certificates: Vec::new(), forbidden: Vec::new(), ..Settings::default() };
        let connector = Connector::new(
            clock.clone(),
            records.clone(),
            Outbound::new(settings).unwrap(),
            &config,
            Arc::new(Metrics::new().unwrap()),
            InFlight::default(),
        );
        let snapshot = Snapshot {
            routes: Arc::new(Table::new(&config.server.public_url, &config.routes)),
            keys: Arc::new(Keys::new(&[seal::random().unwrap()]).unwrap()),
            config: Arc::new(config),
        };
        Later {
            authority: Authority::new(clock.clone(), records, Arc::new(connector), snapshot),
            clock,
            _directory: directory,
        }
    }

    async fn code(&self, pkce: &Pkce) -> String {
        let request = authorize::Request {
            client_id: "c".into(),
            client_auth: ClientAuthMethod::None,
            client_name: None,
            client_digest: String::new(),
            ask: false,
            signed_in_again: false,
            redirect_uri: "https://client.example/cb".into(),
            state: None,
            challenge: pkce.challenge.clone(),
            route: "demo".into(),
            resource: "https://gw.example/demo".into(),
            scopes: Vec::new(),
        };
        let scopes = vec![ACCESS_SCOPE.into()];
        let snapshot = self.authority.snapshot();
        code::issue_code(&self.authority, &snapshot, &request, "alice", scopes).await.unwrap()
    }

    /// The answer, or the error's code.
    async fn redeem(&self, code: &str, pkce: &Pkce) -> Result<serde_json::Value, &'static str> {
        let redemption =
            Redemption { client: &c(), code, verifier: &pkce.verifier, redirect_uri: None, resource: None };
        let answer = code::redeem(&self.authority, &self.authority.snapshot(), &redemption).await;
        answer.map(|answer| serde_json::to_value(answer).unwrap()).map_err(|refusal| refusal.code)
    }

    /// What a redemption leaves that is cut off between its two writes: a grant, and a code that is not spent.
    async fn cut_off(&self, code: &str, pkce: &Pkce) {
        let other = self.code(pkce).await;
        self.redeem(&other, pkce).await.unwrap();
        let records = &self.authority.records;
        let id =
            async |code: &str| records.get::<Code>(&seal::digest(code)).await.unwrap().unwrap().value.grant;
        let grant = records.get::<Grant>(&id(&other).await).await.unwrap().unwrap().value;
        let put = records.put(&id(code).await, 0, &grant, Duration::from_secs(3600)).await;
        assert!(put.unwrap() == Put::Stored);
    }

    async fn refresh(&self, tokens: &serde_json::Value) -> Result<serde_json::Value, &'static str> {
        let renewal = Renewal {
            client: &c(),
            refresh_token: tokens["refresh_token"].as_str().unwrap(),
            scope: None,
            resource: None,
        };
        let answer = grant::refresh(&self.authority, &self.authority.snapshot(), &renewal).await;
        answer.map(|answer| serde_json::to_value(answer).unwrap()).map_err(|refusal| refusal.code)
    }

    fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

#[tokio::test]
async fn sr_as_31_a_code_is_good_for_a_minute() {
    let (later, pkce) = (Later::new(), Pkce::new());
    let (in_time, too_late) = (later.code(&pkce).await, later.code(&pkce).await);
    later.pass(59);
    assert!(later.redeem(&in_time, &pkce).await.is_ok());
    later.pass(1);
    assert_eq!(later.redeem(&too_late, &pkce).await, Err("invalid_grant"));
}

#[tokio::test]
async fn sr_as_31_a_redemption_that_was_cut_off_is_no_use_of_the_code() {
    let (later, pkce) = (Later::new(), Pkce::new());
    let code = later.code(&pkce).await;
    later.cut_off(&code, &pkce).await;
    // For all anybody knows it is still under way.
    assert_eq!(later.redeem(&code, &pkce).await, Err("temporarily_unavailable"));
    later.pass(3);
    let tokens = later.redeem(&code, &pkce).await.unwrap();
    let tokens = later.refresh(&tokens).await.unwrap();
    // From here on it is used.
    assert_eq!(later.redeem(&code, &pkce).await, Err("invalid_grant"));
    assert_eq!(later.refresh(&tokens).await, Err("invalid_grant"), "withdrawn");
}

#[tokio::test]
async fn sr_as_31_of_many_who_take_over_a_redemption_that_was_cut_off_one_wins() {
    let (later, pkce) = (Arc::new(Later::new()), Pkce::new());
    let code = later.code(&pkce).await;
    later.cut_off(&code, &pkce).await;
    later.pass(3);
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (later, code, pkce) = (Arc::clone(&later), code.clone(), pkce.clone());
        running.spawn(async move { later.redeem(&code, &pkce).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) = running.join_all().await.into_iter().partition(Result::is_ok);
    assert!(lost.into_iter().all(|lost| lost == Err("invalid_grant")));
    assert_eq!(won.len(), 1);
    assert_eq!(
        later.refresh(won[0].as_ref().unwrap()).await,
        Err("invalid_grant"),
        "the others were replays"
    );
}

#[tokio::test]
async fn sr_t28_the_replay_window_ends() {
    let (later, pkce) = (Later::new(), Pkce::new());
    let first = later.redeem(&later.code(&pkce).await, &pkce).await.unwrap();
    let second = later.refresh(&first).await.unwrap();
    later.pass(29);
    assert_eq!(later.refresh(&first).await, Ok(second.clone()));
    later.pass(1);
    assert_eq!(later.refresh(&first).await, Err("invalid_grant"));
    assert_eq!(later.refresh(&second).await, Err("invalid_grant"), "the family has ended");
}

#[tokio::test]
async fn sr_as_39_a_refresh_token_nobody_uses_ends() {
    let (later, pkce) = (Later::new(), Pkce::new());
    let tokens = later.redeem(&later.code(&pkce).await, &pkce).await.unwrap();
    later.pass(3599);
    let tokens = later.refresh(&tokens).await.unwrap();
    later.pass(3600);
    assert_eq!(later.refresh(&tokens).await, Err("invalid_grant"));
}

#[tokio::test]
async fn sr_as_18_a_consent_page_is_good_for_ten_minutes() {
    let later = Later::new();
    let (authority, snapshot) = (&later.authority, later.authority.snapshot());
    let browser = authorize::Browser { user: "alice".into(), session: "s".into() };
    let question = async || {
        let request = authorize::Request {
            client_id: "c".into(),
            client_auth: ClientAuthMethod::None,
            client_name: None,
            client_digest: String::new(),
            ask: false,
            signed_in_again: false,
            redirect_uri: "https://client.example/cb".into(),
            state: None,
            challenge: Pkce::new().challenge,
            route: "demo".into(),
            resource: "https://gw.example/demo".into(),
            scopes: Vec::new(),
        };
        let client = server::client::Client {
            id: "c".into(),
            name: None,
            redirect_uris: vec![request.redirect_uri.clone()],
            host: None,
            is_listed: false,
            auth: Authentication::None,
        };
        let question = authorize::prepare(authority, &snapshot, request, client, &browser).await;
        let Prepared::Ask(question) = question.unwrap_or_else(|refused| panic!("{refused:?}")) else {
            panic!("not asked")
        };
        question.flow
    };
    let (in_time, too_late) = (question().await, question().await);
    later.pass(599);
    let allowed = decide(authority, &snapshot, &browser, &in_time, Decision::Allow).await;
    assert!(allowed.unwrap().contains("code="));
    later.pass(1);
    let gone = decide(authority, &snapshot, &browser, &too_late, Decision::Allow).await;
    assert_eq!(gone, Err(ConsentError::Gone));
}

#[tokio::test]
async fn pom_32_an_authorization_under_way_at_an_upstream_is_good_for_ten_minutes() {
    const ISSUER: &str = "https://as.example";
    let later = Later::with(|text| {
        text["routes"][0]["credential"] = json!({"kind": "oauth", "client_id": "by-hand"});
    });
    let snapshot = later.authority.snapshot();
    let (connector, routes) = (&later.authority.connector, &snapshot.routes);
    let begin = async || {
        let server = AuthorizationServer {
            issuer: ISSUER.into(),
            authorization_endpoint: format!("{ISSUER}/authorize"),
            token_endpoint: format!("{ISSUER}/token"),
            registration_endpoint: None,
            revocation_endpoint: None,
            auth_methods: vec!["none".into()],
            cimd: false,
            iss_parameter: false,
            scopes_supported: Vec::new(),
            is_published: true,
        };
        let discovered =
            Discovered { server, resource: Some("https://up.example/mcp".into()), scopes: Vec::new() };
        let plan = Plan { discovered, scopes: Vec::new(), step_up: None };
        let route = routes.by_name("demo").unwrap();
        let url = connector.begin(route, plan, "alice", "s", json!(null)).await.unwrap();
        let url = url::Url::parse(&url).unwrap();
        url.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned()
    };
    // An answer without a code, so that nothing has to be fetched to see it taken.
    let complete = async |state: &str| {
        let returning = Returning { state, code: None, iss: None, error: Some("access_denied") };
        let completed = connector.complete(routes, &issuer_key(ISSUER), &returning, "alice", "s").await;
        completed.map(|completed| completed.outcome)
    };
    let (in_time, too_late) = (begin().await, begin().await);
    later.pass(599);
    assert!(matches!(complete(&in_time).await, Ok(Err(ConnectError::Denied))));
    assert!(matches!(complete(&in_time).await, Err(CallbackError::Unknown)), "once");
    later.pass(1);
    assert!(matches!(complete(&too_late).await, Err(CallbackError::Unknown)));
}

// === one snapshot ===

#[tokio::test]
async fn sr_as_05_a_local_request_is_answered_on_the_snapshot_it_came_with() {
    let later = Later::new();
    let taken = Later::with(|text| {
        text["server"]["public_url"] = json!("https://taken.example");
        text["oauth_server"] = json!({"clients": {"dcr": {"enabled": false}}});
    });
    let providers = Arc::new(Providers::new(Outbound::new(Settings::default()).unwrap()));
    let router =
        postern::web::router(Arc::new(later.authority), Arc::new(Metrics::new().unwrap()), providers);
    let about = postern::web::About {
        snapshot: taken.authority.snapshot(),
        authority: "taken.example".into(),
        client: None,
        request_id: "1".into(),
    };
    let ask = async |method: &str, path: &str, kind: &str, body: String| {
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.extension(about.clone()).body(axum::body::Body::from(body)).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&body).unwrap()
    };
    for name in ["oauth-authorization-server", "openid-configuration"] {
        let document = ask("GET", &format!("/.well-known/{name}"), "-", String::new()).await;
        assert_eq!(document["issuer"], "https://taken.example");
    }
    let document = ask("GET", "/.well-known/oauth-protected-resource/demo", "-", String::new()).await;
    assert_eq!(document["resource"], "https://taken.example/demo");
    let refused = ask("POST", "/oauth/register", "application/json", "{}".into()).await;
    assert_eq!(refused["error"], "access_denied");
}

#[tokio::test]
async fn sr_as_62_pom_b10_a_registration_that_nobody_uses_is_forgotten() {
    let later = Later::new();
    let (authority, snapshot) = (&later.authority, later.authority.snapshot());
    let register = async |name: &str| {
        let body = json!({"client_name": name, "redirect_uris": ["https://client.example/cb"]}).to_string();
        let now = later.clock.now();
        register(&authority.records, &snapshot, body.as_bytes(), now, || true).await.unwrap().client_id
    };
    let (unused, used) = (register("unused").await, register("used").await);
    let is_known = async |id: &str| match authority.client(&snapshot, id).await {
        Ok(_) => true,
        Err(ClientError::Unknown) => false,
        Err(error) => panic!("{error}"),
    };
    const DAY: u64 = 24 * 3600;
    // What happens when tokens are issued to it.
    keep(&authority.records, &used, later.clock.now()).await;
    later.pass(DAY - 1);
    assert!(is_known(&unused).await && is_known(&used).await);
    later.pass(1);
    assert!(!is_known(&unused).await && is_known(&used).await);
    later.pass(89 * DAY);
    assert!(!is_known(&used).await, "three months without a token");
}

#[tokio::test]
async fn sr_as_39_pom_b10_a_grant_ends_in_any_case() {
    let later = Later::with(|text| text["oauth_server"]["grant_ttl"] = "3h".into());
    let pkce = Pkce::new();
    let mut tokens = later.redeem(&later.code(&pkce).await, &pkce).await.unwrap();
    // Used every half hour it never idles; still it ends.
    for _ in 0..5 {
        later.pass(1800);
        tokens = later.refresh(&tokens).await.unwrap();
    }
    later.pass(1799);
    tokens = later.refresh(&tokens).await.unwrap();
    later.pass(1);
    assert_eq!(later.refresh(&tokens).await, Err("invalid_grant"));
}
