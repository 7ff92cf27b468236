//! One browser trip connects a user to Postern and to the upstream behind it: what happens before consent and after,
//! who Postern is at the upstream's authorization server, whose answer counts at the callback, and that a trip
//! survives a restart in its middle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::Duration;

use reqwest::Url;
use serde_json::{Value, json};
use support::authorization_server::AuthorizationServer;
use support::browser::{Arrival, Browser, Page};
use support::client::{AuthorizationRequest, Callback, Client, Tokens};
use support::gate::Gate;
use support::gateway::{Gateway, Route};
use support::html::Form;
use support::ledger::RegisteredClient;
use support::mcp::McpAnswer;
use support::params::Params;
use support::script::{Consent, IssParameter, RegistrationScript};
use support::upstream::Upstream;
use support::{PATIENCE, eventually, within};

/// One route `demo`, one client, the browser of alice.
struct Rig {
    upstream: Upstream,
    gateway: Gateway,
    client: Client,
    browser: Browser,
}

impl Rig {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(script: impl FnOnce(&Upstream)) -> Self {
        let upstream = Upstream::start().await;
        script(&upstream);
        let gateway = Gateway::before(&upstream).await;
        Self::around(upstream, gateway).await
    }

    async fn around(upstream: Upstream, gateway: Gateway) -> Self {
        let client = Client::register(&gateway).await;
        let browser = Browser::new().trusting(&gateway.roots);
        Rig { upstream, gateway, client, browser }
    }

    async fn sign_in(&mut self) -> Tokens {
        self.client.sign_in(&mut self.browser, "demo").await
    }

    async fn whoami(&self, tokens: &Tokens) -> McpAnswer {
        whoami(&self.gateway, "demo", tokens).await
    }

    /// Walks until the upstream's authorization server sends the browser back, and stops before the callback.
    async fn answer(&mut self) -> (AuthorizationRequest, Url) {
        answer_for(&self.gateway, &self.client, &mut self.browser, "demo").await
    }

    /// Gets `url` as the redirect of the authorization server, in the browser that began it.
    async fn come_back(&mut self, url: &Url) -> Arrival {
        self.browser.stop_before(&self.client.redirect_uri);
        self.browser.go(url.as_str()).await
    }

    /// The right answer still leads to a token that works.
    async fn completes(&mut self, request: &AuthorizationRequest, answer: &Url) {
        let callback = Callback::of(&self.come_back(answer).await.client());
        assert_eq!(callback.state(), Some(request.state.as_str()));
        let tokens = self.client.redeem(&callback.code(), request).await.tokens();
        assert_eq!(self.whoami(&tokens).await.tool_text(), "upstream-user");
    }

    fn requests_to_token_endpoint(&self) -> usize {
        self.upstream.authorization.requests.count("/token")
    }
}

async fn whoami(gateway: &Gateway, route: &str, tokens: &Tokens) -> McpAnswer {
    let call = gateway.mcp(route).bearer(&tokens.access_token);
    call.tool("whoami", json!({})).await
}

async fn answer_for(
    gateway: &Gateway,
    client: &Client,
    browser: &mut Browser,
    route: &str,
) -> (AuthorizationRequest, Url) {
    let request = client.authorization(route);
    let callback = gateway.url("/oauth/upstream/callback");
    let answer = browser.authorize_or_stop(&callback, &request.url()).await;
    (request, answer.client())
}

/// The answer with its parameters bent.
fn bent(answer: &Url, bend: impl FnOnce(Params) -> Params) -> Url {
    let mut url = answer.clone();
    url.set_query(Some(&bend(Callback::of(answer).params).encoded()));
    url
}

fn consent_form(page: &Page) -> Form {
    page.form_with_button("allow")
}

/// What the browser was last sent to authorize with.
fn authorization(server: &AuthorizationServer) -> support::received::Received {
    server.requests.last_to("/authorize")
}

/// A client that the operator registered by hand.
fn know(server: &AuthorizationServer, id: &str, secret: Option<&str>, method: &str) {
    let client = RegisteredClient {
        id: id.into(),
        secret: secret.map(str::to_owned),
        method: method.into(),
        ..RegisteredClient::default()
    };
    server.ledger(|ledger| ledger.clients.insert(id.into(), client));
}

#[tokio::test]
async fn sr_t01_one_trip_does_it_all_and_nothing_leaves_before_consent() {
    let server = AuthorizationServer::start().await;
    let upstream = Upstream::relying_on(&server).await;
    // Its authorization server under another name, so that the page can be seen to name it.
    let issuer = server.origin.replace("127.0.0.1", "localhost");
    server.set(|script| {
        script.issuer = Some(issuer.clone());
        script.metadata_patch = json!({
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "registration_endpoint": format!("{issuer}/register"),
        });
    });
    upstream.set(|script| {
        script.challenge.scope = Some("files:read files:list".into());
        script.resource_metadata.authorization_servers = Some(vec![issuer.clone()]);
    });
    let route = Route::oauth("demo", &upstream).with("upstream.allow_hosts", json!(["localhost"]));
    let gateway = Gateway::builder().route(route).start().await;
    let mut rig = Rig::around(upstream, gateway).await;

    let request = rig.client.authorization("demo");
    let page = rig.browser.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    let text = page.text();
    for named in ["localhost", "files:read", "files:list", "mcp:access", "127.0.0.1"] {
        assert!(text.contains(named), "{named}: {text}");
    }
    let probes = rig.upstream.calls();
    assert_eq!(probes.len(), 1);
    assert_eq!(probes[0].header("authorization"), None);
    assert_eq!(
        server.requests.paths(),
        ["GET /.well-known/oauth-authorization-server"],
        "the authorization server hears nothing of the user before consent"
    );
    assert!(!page.body.contains(&issuer), "no way to the upstream before consent");

    let callback = Callback::of(&rig.browser.consent_allow(&page).await.client());
    assert_eq!(callback.iss(), Some(rig.gateway.public_url.as_str()));
    let tokens = rig.client.redeem(&callback.code(), &request).await.tokens();
    assert_eq!(rig.whoami(&tokens).await.tool_text(), "upstream-user");
    assert_eq!(server.codes_redeemed(), 1);
    assert_eq!(authorization(&server).parameter("scope").unwrap(), "files:read files:list");
}

#[tokio::test]
async fn sr_t01_a_user_who_says_no_is_sent_nowhere() {
    let mut rig = Rig::new().await;
    let request = rig.client.authorization("demo");
    let page = rig.browser.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    let callback = Callback::of(&rig.browser.press(&page, "deny").await.client());
    assert_eq!(callback.error(), Some("access_denied"));
    let asked = &rig.upstream.authorization.requests;
    assert_eq!(asked.count("/authorize") + asked.count("/register") + asked.count("/token"), 0);
    // Nor does a second answer to the same page change anything.
    let again = rig.browser.submit_once(&page, &consent_form(&page), &[("decision", "allow")]).await;
    assert_eq!(again.status, 400);
    assert_eq!(asked.count("/authorize") + asked.count("/register"), 0);
}

#[tokio::test]
async fn sr_cl_09_every_trip_has_its_own_state_and_verifier() {
    let mut rig = Rig::new().await;
    let (_, first) = rig.answer().await;
    let (request, second) = rig.answer().await;
    let seen = rig.upstream.authorization.requests.to("/authorize");
    for parameter in ["state", "code_challenge"] {
        let values: Vec<_> = seen.iter().map(|seen| seen.parameter(parameter).unwrap()).collect();
        assert_ne!(values[0], values[1], "{parameter}");
        assert!(values.iter().all(|value| value.len() >= 22), "{parameter}: {values:?}");
    }
    // Two tabs: the later one first, then the earlier one, each with its own code only.
    let crossed = bent(&first, |params| {
        let code = Callback::of(&second).code();
        params.with("code", &code)
    });
    rig.completes(&request, &second).await;
    assert_eq!(rig.upstream.authorization.codes_redeemed(), 1);
    let refused = Callback::of(&rig.come_back(&crossed).await.client());
    assert!(refused.error().is_some(), "{}", refused.url);
    assert_eq!(rig.upstream.authorization.codes_redeemed(), 1);
}

#[tokio::test]
async fn sr_t07_two_tabs_of_one_user_both_finish() {
    let mut rig = Rig::new().await;
    let (first_request, first) = rig.answer().await;
    let (second_request, second) = rig.answer().await;
    rig.completes(&second_request, &second).await;
    rig.completes(&first_request, &first).await;
}

#[tokio::test]
async fn sr_cl_10_pom_29_resource_goes_out_byte_for_byte() {
    let spellings: [fn(&str) -> String; 3] = [
        |origin| origin.to_owned(),
        |origin| format!("{origin}/mcp/"),
        |origin| format!("{}/mcp", origin.replace("http://", "HTTP://")),
    ];
    let mut gateway = Gateway::builder();
    let mut upstreams = Vec::new();
    for (number, spell) in spellings.iter().enumerate() {
        let upstream = Upstream::start().await;
        let resource = spell(&upstream.origin);
        upstream.set(|script| script.resource_metadata.resource = Some(resource.clone()));
        gateway = gateway.route(Route::oauth(&format!("r{number}"), &upstream));
        upstreams.push((upstream, resource));
    }
    let configured = Upstream::start().await;
    let route = Route::oauth("configured", &configured).with("credential.resource", json!("urn:files:One"));
    let gateway = gateway.route(route).start().await;
    upstreams.push((configured, "urn:files:One".into()));
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    for (route, (upstream, resource)) in ["r0", "r1", "r2", "configured"].into_iter().zip(&upstreams) {
        let tokens = client.sign_in(&mut browser, route).await;
        upstream.refuse_current_tokens();
        assert_eq!(whoami(&gateway, route, &tokens).await.status, 200);
        let server = &upstream.authorization;
        assert_eq!(authorization(server).parameter("resource").as_ref(), Some(resource));
        for grant in ["authorization_code", "refresh_token"] {
            let sent = server.token_requests(grant);
            assert_eq!(sent.len(), 1, "{route} {grant}");
            assert_eq!(sent[0].form_values("resource"), std::slice::from_ref(resource), "{route} {grant}");
        }
    }
}

#[tokio::test]
async fn sr_cl_13_pom_28_scopes_are_of_configuration_challenge_or_metadata_in_this_order() {
    struct Case {
        configured: Option<Value>,
        challenge: Option<&'static str>,
        published: Option<&'static [&'static str]>,
        server: Option<&'static [&'static str]>,
        asked: Option<&'static str>,
    }
    let case = |configured: Option<Value>, challenge, published, server, asked| Case {
        configured,
        challenge,
        published,
        server,
        asked,
    };
    let published: Option<&[&str]> = Some(&["p1", "p2"]);
    let cases = [
        case(Some(json!(["conf"])), Some("chal"), published, None, Some("conf")),
        case(None, Some("chal chal2"), published, None, Some("chal chal2")),
        case(None, None, published, None, Some("p1 p2")),
        case(None, None, None, Some(&["of-the-server"]), None),
        case(None, Some("chal"), None, Some(&["chal", "offline_access"]), Some("chal offline_access")),
        case(None, None, Some(&["p1", "offline_access"]), Some(&["p1"]), Some("p1")),
    ];
    let mut gateway = Gateway::builder();
    let mut upstreams = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let upstream = Upstream::start().await;
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        upstream.set(|script| {
            script.challenge.scope = case.challenge.map(str::to_owned);
            script.resource_metadata.scopes_supported = case.published.map(list);
        });
        if let Some(server) = case.server {
            upstream.set_authorization(|script| script.metadata_patch = json!({"scopes_supported": server}));
        }
        let mut route = Route::oauth(&format!("r{number}"), &upstream);
        if let Some(scopes) = &case.configured {
            route = route.with("credential.scopes", scopes.clone());
        }
        gateway = gateway.route(route);
        upstreams.push(upstream);
    }
    let gateway = gateway.start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    for (number, (case, upstream)) in cases.iter().zip(&upstreams).enumerate() {
        client.sign_in(&mut browser, &format!("r{number}")).await;
        let asked = authorization(&upstream.authorization).parameter("scope");
        assert_eq!(asked.as_deref(), case.asked, "case {number}");
    }
}

#[tokio::test]
async fn sr_cl_06_a_configured_client_authenticates_as_configured() {
    let cases = [
        ("r0", Some("CANARY_configured_secret_1 +/%"), "client_secret_basic", None),
        ("r1", Some("CANARY_configured_secret_2"), "client_secret_post", Some("client_secret_post")),
        ("r2", None, "none", None),
        ("r3", Some("CANARY_configured_secret_3"), "client_secret_post", None),
    ];
    let mut gateway = Gateway::builder();
    let mut upstreams = Vec::new();
    for (name, secret, method, written) in cases {
        let upstream = Upstream::start().await;
        know(&upstream.authorization, "our id", secret, method);
        upstream.set_authorization(|script| {
            script.metadata_patch = json!({"token_endpoint_auth_methods_supported": [method]});
        });
        let mut route = Route::oauth(name, &upstream).with("credential.client_id", json!("our id"));
        if let Some(secret) = secret {
            let variable = format!("SECRET_{name}");
            route = route.with("credential.client_secret", json!({"env": variable}));
            gateway = gateway.env(&variable, secret);
        }
        if let Some(written) = written {
            route = route.with("credential.token_endpoint_auth_method", json!(written));
        }
        gateway = gateway.route(route);
        upstreams.push(upstream);
    }
    let gateway = gateway.start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    for ((name, ..), upstream) in cases.into_iter().zip(&upstreams) {
        let tokens = client.sign_in(&mut browser, name).await;
        upstream.refuse_current_tokens();
        assert_eq!(whoami(&gateway, name, &tokens).await.tool_text(), "upstream-user", "{name}");
        assert_eq!(upstream.authorization.registrations(), 0, "{name}");
        assert_eq!(authorization(&upstream.authorization).parameter("client_id").as_deref(), Some("our id"));
    }
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn dynamic_registration_does_as_the_server_says() {
    // What the server offers, and what it gives to the client in the end.
    let cases: [(&[&str], Option<&str>, &str); 5] = [
        (&["none", "client_secret_basic"], None, "none"),
        (&["client_secret_post", "client_secret_basic"], None, "client_secret_basic"),
        (&["client_secret_post"], None, "client_secret_post"),
        (&["none"], Some("client_secret_basic"), "client_secret_basic"),
        (&["none"], Some("client_secret_post"), "client_secret_post"),
    ];
    let mut gateway = Gateway::builder();
    let mut upstreams = Vec::new();
    for (number, (offered, given, _)) in cases.iter().enumerate() {
        let upstream = Upstream::start().await;
        upstream.set_authorization(|script| {
            script.metadata_patch = json!({"token_endpoint_auth_methods_supported": offered});
            script.registration = Some(RegistrationScript {
                method: given.map(str::to_owned),
                ..RegistrationScript::default()
            });
        });
        gateway = gateway.route(Route::oauth(&format!("r{number}"), &upstream));
        upstreams.push(upstream);
    }
    let gateway = gateway.env("RUST_LOG", "trace").start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    for (number, ((offered, _, method), upstream)) in cases.iter().zip(&upstreams).enumerate() {
        let route = format!("r{number}");
        let tokens = client.sign_in(&mut browser, &route).await;
        upstream.refuse_current_tokens();
        assert_eq!(whoami(&gateway, &route, &tokens).await.status, 200, "{offered:?} {method}");
        let server = &upstream.authorization;
        let registered = server.requests.last_to("/register").json();
        let callback = authorization(server).parameter("redirect_uri").unwrap();
        assert_eq!(registered["redirect_uris"], json!([callback]));
        assert_eq!(registered["application_type"], "native", "http on loopback");
        assert_eq!(registered["grant_types"], json!(["authorization_code", "refresh_token"]));
        assert_eq!(server.registrations(), 1);
    }
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn a_registration_that_is_refused_or_impossible_ends_at_the_client() {
    let refused = Upstream::start().await;
    refused.set_authorization(|script| {
        script.registration = Some(RegistrationScript {
            method: None,
            managed: false,
            refusal: Some((403, json!({"error": "access_denied", "error_description": "CANARY_words"}))),
        });
    });
    let without = Upstream::start().await;
    without.set_authorization(|script| script.registration = None);
    let broken = Upstream::start().await;
    broken.set_authorization(|script| {
        script.registration = Some(RegistrationScript {
            refusal: Some((201, json!({"client_id": 7}))),
            ..RegistrationScript::default()
        });
    });
    let down = Upstream::start().await;
    down.set_authorization(|script| {
        script.registration =
            Some(RegistrationScript { refusal: Some((503, json!({}))), ..RegistrationScript::default() });
    });
    let gateway = Gateway::builder()
        .route(Route::oauth("refused", &refused))
        .route(Route::oauth("without", &without))
        .route(Route::oauth("broken", &broken))
        .route(Route::oauth("down", &down))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    for (route, error) in [
        ("refused", "server_error"),
        ("without", "server_error"),
        ("broken", "server_error"),
        ("down", "temporarily_unavailable"),
    ] {
        let request = client.authorization(route);
        let callback = browser.authorize(&client.redirect_uri, &request.url()).await;
        assert_eq!(callback.error(), Some(error), "{route}");
        assert_eq!(callback.state(), Some(request.state.as_str()));
        assert_eq!(callback.iss(), Some(gateway.public_url.as_str()));
        assert!(!callback.url.as_str().contains("CANARY"));
    }
    // Nothing of the failure is remembered.
    refused.set_authorization(|script| script.registration = Some(RegistrationScript::default()));
    client.sign_in(&mut browser, "refused").await;
}

#[tokio::test]
async fn pom_26_a_registration_is_kept_per_issuer_over_routes_users_and_restarts() {
    let server = AuthorizationServer::start().await;
    let (one, two) = (Upstream::relying_on(&server).await, Upstream::relying_on(&server).await);
    let other = Upstream::start().await;
    let mut gateway = Gateway::builder()
        .route(Route::oauth("one", &one))
        .route(Route::oauth("two", &two))
        .route(Route::oauth("other", &other))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let mut alice = Browser::new();
    client.sign_in(&mut alice, "one").await;
    client.sign_in(&mut alice, "two").await;
    client.sign_in(&mut alice, "other").await;
    gateway.restart().await;
    client.sign_in(&mut Browser::of("bob"), "two").await;
    assert_eq!(server.registrations(), 1);
    let of = |server: &AuthorizationServer, parameter: &str| {
        let seen = server.requests.to("/authorize");
        let mut values: Vec<_> = seen.iter().map(|seen| seen.parameter(parameter).unwrap()).collect();
        values.dedup();
        assert_eq!(values.len(), 1, "{parameter}: {values:?}");
        values.remove(0)
    };
    assert_eq!(server.requests.count("/authorize"), 3);
    of(&server, "client_id");
    // sr_cl_12: no two issuers share a redirect URI.
    let (ours, theirs) = (of(&server, "redirect_uri"), of(&other.authorization, "redirect_uri"));
    assert_ne!(ours, theirs);
    for uri in [&ours, &theirs] {
        let key =
            uri.strip_prefix(&gateway.url("/oauth/upstream/callback/")).unwrap_or_else(|| panic!("{uri}"));
        assert!(key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{uri}");
    }
}

#[tokio::test]
async fn pom_26_concurrent_first_users_register_once() {
    let rig = Rig::new().await;
    let gate = Gate::shut();
    let server = &rig.upstream.authorization;
    server.set(|script| script.registration_gate = Some(gate.clone()));
    let trip = async |name: &str| {
        let mut browser = Browser::of(name);
        rig.client.sign_in(&mut browser, "demo").await
    };
    let opening = async {
        gate.wait_for(1, PATIENCE).await;
        // The other user has pressed Allow as well, as the audit log says, before the first registration ends.
        let both = || async { rig.gateway.output.text().matches(r#""event":"consent""#).count() == 2 };
        support::eventually(PATIENCE, both).await;
        assert_eq!(gate.waiting(), 1);
        gate.open();
    };
    let (alice, bob, ()) = tokio::join!(trip("alice"), trip("bob"), opening);
    assert_eq!(server.registrations(), 1);
    assert_eq!(rig.whoami(&alice).await.status, 200);
    assert_eq!(rig.whoami(&bob).await.status, 200);
}

#[tokio::test]
async fn our_client_document_is_used_where_it_is_taken() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(|script| script.cimd = true);
    let gateway = Gateway::builder().tls().route(Route::oauth("demo", &upstream)).start().await;
    let mut rig = Rig::around(upstream, gateway).await;
    // The scripted server does not trust our certificate; what it would have read is checked below.
    let request = rig.client.authorization("demo");
    let page = rig.browser.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    let stopped = rig.browser.consent_allow(&page).await.page();
    assert_eq!((stopped.status, stopped.body.as_str()), (400, "unknown client"));
    let asked = authorization(&rig.upstream.authorization);
    let (id, callback) = (asked.parameter("client_id").unwrap(), asked.parameter("redirect_uri").unwrap());
    let key = callback.rsplit_once('/').unwrap().1;
    assert_eq!(id, rig.gateway.url(&format!("/oauth/client/{key}.json")));
    let document: Value =
        serde_json::from_str(&rig.gateway.http.get(&id).send().await.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(document["client_id"], json!(id), "spec: the document names its own address");
    assert_eq!(document["redirect_uris"], json!([callback]));
    assert_eq!(document["token_endpoint_auth_method"], "none");
    assert_eq!(document["application_type"], "web");

    know(&rig.upstream.authorization, &id, None, "none");
    let tokens = rig.sign_in().await;
    assert_eq!(rig.whoami(&tokens).await.tool_text(), "upstream-user");
    assert_eq!(rig.upstream.authorization.registrations(), 0);
}

#[tokio::test]
async fn a_client_document_elsewhere_replaces_ours_where_documents_are_taken() {
    const ID: &str = "https://mcp.example.com/oauth/client.json";
    let (taking, other) = (Upstream::start().await, Upstream::start().await);
    taking.set_authorization(|script| script.cimd = true);
    know(&taking.authorization, ID, None, "none");
    let gateway = Gateway::builder()
        .with("oauth_client.client_metadata_url", json!(ID))
        .route(Route::oauth("taking", &taking))
        .route(Route::oauth("other", &other))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    let tokens = client.sign_in(&mut browser, "taking").await;
    assert_eq!(whoami(&gateway, "taking", &tokens).await.status, 200);
    let asked = authorization(&taking.authorization);
    assert_eq!(asked.parameter("client_id").as_deref(), Some(ID));
    assert_eq!(taking.authorization.registrations(), 0);
    // The document that the operator publishes there is the one we print.
    let printed = gateway.http.get(gateway.url("/oauth/client.json")).send().await.unwrap();
    let printed: Value = serde_json::from_str(&printed.text().await.unwrap()).unwrap();
    assert_eq!(printed["client_id"], ID);
    let callback = asked.parameter("redirect_uri").unwrap();
    assert!(printed["redirect_uris"].as_array().unwrap().contains(&json!(callback)), "{printed}");

    client.sign_in(&mut browser, "other").await;
    assert_eq!(other.authorization.registrations(), 1, "where they are not taken, it registers");
}

#[tokio::test]
async fn over_plain_http_our_document_cannot_be_fetched_so_it_registers() {
    let mut rig = Rig::with(|upstream| upstream.set_authorization(|script| script.cimd = true)).await;
    rig.sign_in().await;
    assert_eq!(rig.upstream.authorization.registrations(), 1);
}

#[tokio::test]
async fn sr_t23_a_new_authorization_server_gets_nothing_of_the_old_one() {
    let (old, new) = (AuthorizationServer::start().await, AuthorizationServer::start().await);
    let secret = Some(RegistrationScript {
        method: Some("client_secret_post".into()),
        ..RegistrationScript::default()
    });
    old.set(|script| script.registration = secret.clone());
    let upstream = Upstream::relying_on(&old).await;
    let gateway = Gateway::before(&upstream).await;
    let mut rig = Rig::around(upstream, gateway).await;
    let tokens = rig.sign_in().await;
    assert_eq!(rig.whoami(&tokens).await.status, 200);

    // The upstream moves: other issuer, and what the old one issued is good no longer.
    rig.upstream.set(|script| {
        script.resource_metadata.authorization_servers = Some(vec![new.issuer()]);
        script.refused_generation = u32::MAX - 1;
    });
    assert_eq!(rig.whoami(&tokens).await.status, 401, "the user is asked again");
    let (_, answer) = rig.answer().await;
    assert_eq!(new.registrations(), 1, "registered anew");
    let callback = Callback::of(&rig.come_back(&answer).await.client());
    callback.code();
    assert_eq!(new.codes_redeemed(), 1);
    let issued = old.ledger(|ledger| {
        let secrets = ledger.clients.values().filter_map(|client| client.secret.clone());
        let ids = ledger.clients.keys().cloned();
        let refresh = ledger.refresh.keys().cloned();
        let access = ledger.access.keys().cloned();
        secrets.chain(ids).chain(refresh).chain(access).collect::<Vec<_>>()
    });
    assert!(issued.len() >= 4);
    for secret in issued {
        assert!(!new.requests.mention(&secret), "{secret} went to the new server");
    }
    let uris =
        [authorization(&old), authorization(&new)].map(|asked| asked.parameter("redirect_uri").unwrap());
    assert_ne!(uris[0], uris[1]);
}

/// The credential of `demo`: our client at this server, with its secret from this variable.
fn known_there(server: &AuthorizationServer, variable: &str) -> serde_json::Value {
    json!({"kind": "oauth", "issuer": server.issuer(), "client_id": "our id", "client_secret": {"env": variable},
        "token_endpoint_auth_method": "client_secret_post"})
}

#[tokio::test]
async fn sr_t23_a_secret_that_was_replaced_counts_at_once_and_at_its_own_issuer_only() {
    let (old, new) = (AuthorizationServer::start().await, AuthorizationServer::start().await);
    know(&old, "our id", Some("CANARY_first"), "client_secret_post");
    let upstream = Upstream::relying_on(&old).await;
    let route = |credential| [Route::to("demo", &upstream.url(), credential).document().clone()];
    let gateway = Gateway::builder()
        .route(Route::to("demo", &upstream.url(), known_there(&old, "FIRST")))
        .env("FIRST", "CANARY_first")
        .env("SECOND", "CANARY_second")
        .env("ELSEWHERE", "CANARY_elsewhere")
        .start()
        .await;
    let reload = async |credential: serde_json::Value, count: usize| {
        gateway.reconfigure("routes", json!(route(credential)));
        gateway.hang_up();
        let is_done = |line: &serde_json::Value| line["event"] == "configuration";
        eventually(PATIENCE, async || {
            gateway.output.records().iter().filter(|line| is_done(line)).count() == count
        })
        .await;
    };
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    reload(known_there(&old, "SECOND"), 1).await;
    know(&old, "our id", Some("CANARY_second"), "client_secret_post");
    upstream.refuse_current_tokens();
    assert_eq!(whoami(&gateway, "demo", &tokens).await.tool_text(), "upstream-user");
    assert_eq!(old.requests.last_to("/token").form("client_secret").as_deref(), Some("CANARY_second"));
    // The same name at another issuer is somebody else.
    reload(known_there(&new, "ELSEWHERE"), 2).await;
    upstream.refuse_current_tokens();
    whoami(&gateway, "demo", &tokens).await;
    assert_eq!(old.token_requests("refresh_token").len(), 2);
    assert!(!old.requests.mention("CANARY_elsewhere") && !new.requests.mention("CANARY_second"));
    reload(known_there(&old, "SECOND"), 3).await;
    // And with the secret of today the connection is ended there.
    let mut browser = Browser::new();
    let page = browser.go(&gateway.url("/login?next=/connections")).await.page();
    let page = browser.sign_in(&page).await.page();
    browser.submit(&page, &page.form_to("/connections/demo/disconnect"), &[]).await;
    let ended = old.requests.last_to("/revoke");
    assert_eq!(ended.form("client_secret").as_deref(), Some("CANARY_second"));
}

#[tokio::test]
async fn many_who_come_for_the_first_time_ask_the_upstream_once() {
    let mut rig = Rig::new().await;
    let page = rig.browser.go(&rig.gateway.url("/login")).await.page();
    rig.browser.sign_in(&page).await;
    let here = Url::parse(&rig.gateway.public_url).unwrap();
    let site = support::cookies::Site::between(&here, &here);
    let cookie = rig.browser.jar.header(&here, "GET", site, std::time::SystemTime::now()).unwrap();
    let visits = (0..80).map(|_| {
        let request = rig.gateway.http.get(rig.client.authorization("demo").url()).header("cookie", &cookie);
        async move { request.send().await.unwrap().status().as_u16() }
    });
    assert!(futures_util::future::join_all(visits).await.into_iter().all(|status| status == 200));
    let asked = |rig: &Rig| {
        let path = "/.well-known/oauth-authorization-server";
        rig.upstream.requests.count(path) + rig.upstream.authorization.requests.count(path)
    };
    assert_eq!(asked(&rig), 1);
    assert_eq!(rig.upstream.calls().len(), 1, "and one probe");
    // Whoever was sent by the upstream has it asked anew.
    let tokens = rig.sign_in().await;
    assert_eq!(asked(&rig), 1);
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    rig.upstream.authorization.revoke_everything();
    rig.upstream.refuse_current_tokens();
    assert_eq!(rig.whoami(&tokens).await.status, 401);
    rig.sign_in().await;
    assert_eq!(asked(&rig), 2);
}

#[tokio::test]
async fn an_upstream_that_asks_one_user_stays_open_for_the_others() {
    let mut rig = Rig::with(|upstream| upstream.set(|script| script.requires_auth = false)).await;
    let trips = |rig: &Rig| rig.upstream.authorization.requests.count("/authorize");
    let tokens = rig.sign_in().await;
    assert_eq!(trips(&rig), 0, "it lets everybody in");
    rig.upstream.answer_next(support::script::Answer::InvalidToken);
    assert_eq!(rig.whoami(&tokens).await.status, 401);
    rig.sign_in().await;
    assert_eq!(trips(&rig), 1, "it has asked for her");
    rig.client.sign_in(&mut Browser::of("bob"), "demo").await;
    assert_eq!(trips(&rig), 1);
}

#[tokio::test]
async fn pom_35_what_has_run_out_is_renewed_before_the_user_is_asked() {
    let mut rig = Rig::with(|upstream| {
        upstream.set_authorization(|script| script.access_token_lifetime = Duration::from_secs(1));
    })
    .await;
    rig.sign_in().await;
    let trips = |rig: &Rig| rig.upstream.authorization.requests.count("/authorize");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let tokens = rig.sign_in().await;
    assert_eq!((trips(&rig), rig.upstream.authorization.refreshes()), (1, 1), "renewed, nobody was asked");
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    // A grant that is dead is found on this very trip, and not by the call that follows it.
    rig.upstream.authorization.revoke_everything();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let tokens = rig.sign_in().await;
    assert_eq!(trips(&rig), 2);
    assert_eq!(rig.whoami(&tokens).await.status, 200);
}

#[tokio::test]
async fn sr_t02_an_answer_counts_only_in_the_browser_that_asked() {
    let mut rig = Rig::new().await;
    let (request, answer) = rig.answer().await;
    // The victim of a forwarded authorization link: signed in as herself, as somebody else, or not at all.
    let mut elsewhere = Vec::new();
    for name in ["alice", "bob"] {
        let mut browser = Browser::of(name);
        let own = rig.client.authorization("demo");
        browser.go_to_consent(&rig.client.redirect_uri, &own.url()).await;
        elsewhere.push(browser);
    }
    elsewhere.push(Browser::new());
    for browser in &mut elsewhere {
        browser.stop_before(&rig.client.redirect_uri);
        let page = browser.go(answer.as_str()).await.page();
        assert_eq!(page.status, 403, "{}", page.text());
    }
    // Two cookies of the right name are none (somebody planted one).
    let cookie = rig.browser.jar.all().iter().find(|cookie| cookie.name.contains("session")).cloned();
    let cookie = cookie.map(|cookie| format!("{}={}", cookie.name, cookie.value)).unwrap();
    let doubled = rig.gateway.http.get(answer.as_str()).header("cookie", format!("{cookie}; {cookie}"));
    assert_eq!(doubled.send().await.unwrap().status().as_u16(), 403);
    assert_eq!(rig.requests_to_token_endpoint(), 0, "no code was redeemed");
    rig.completes(&request, &answer).await;
    // sr_t03: nobody else got connected by it.
    assert_eq!(rig.upstream.authorization.codes_redeemed(), 1);
}

#[tokio::test]
async fn sr_t02_the_way_to_the_upstream_is_of_no_use_to_others() {
    let mut rig = Rig::new().await;
    rig.upstream.set_authorization(|script| script.consent = Consent::Page);
    let request = rig.client.authorization("demo");
    let page = rig.browser.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    let at_upstream = rig.browser.consent_allow(&page).await.page();
    rig.upstream.set_authorization(|script| script.consent = Consent::Approve);
    let mut bob = Browser::of("bob");
    let own = rig.client.authorization("demo");
    bob.go_to_consent(&rig.client.redirect_uri, &own.url()).await;
    let page = bob.go(at_upstream.url.as_str()).await.page();
    assert_eq!(page.status, 403, "{}", page.text());
    assert_eq!(rig.requests_to_token_endpoint(), 0);
}

#[tokio::test]
async fn sr_t02_a_consent_page_counts_only_in_the_browser_that_asked() {
    let mut rig = Rig::new().await;
    let mut pages = Vec::new();
    let mut browsers = [Browser::new(), Browser::of("bob")];
    for browser in &mut browsers {
        let own = rig.client.authorization("demo");
        pages.push(browser.go_to_consent(&rig.client.redirect_uri, &own.url()).await);
    }
    let request = rig.client.authorization("demo");
    let mine = rig.browser.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    let flow = consent_form(&mine).value("flow").unwrap().to_owned();
    for (browser, page) in browsers.iter_mut().zip(&pages) {
        let fields = [("flow", flow.as_str()), ("decision", "allow")];
        let answer = browser.submit_once(page, &consent_form(page), &fields).await;
        assert_eq!(answer.status, 403, "{}", answer.text());
    }
    assert_eq!(rig.upstream.authorization.requests.count("/register"), 0);
    rig.browser.consent_allow(&mine).await.client();
}

#[tokio::test]
async fn sr_t17_an_answer_counts_once_at_its_own_address_and_undoubled() {
    let mut rig = Rig::new().await;
    let (request, answer) = rig.answer().await;
    let callback = Callback::of(&answer);
    let (state, code) = (callback.state().unwrap().to_owned(), callback.code());
    let elsewhere = |from: &str, to: &str| Url::parse(&answer.as_str().replacen(from, to, 1)).unwrap();
    let key = answer.path().rsplit_once('/').unwrap().1.to_owned();
    let wrong_key: String = key.chars().map(|char| if char == 'a' { 'b' } else { 'a' }).collect();
    let refused = [
        bent(&answer, |params| params.with("state", "never-issued")),
        bent(&answer, |params| params.with("state", "")),
        bent(&answer, |params| params.without("state")),
        bent(&answer, |params| params.and("state", &state)),
        bent(&answer, |params| params.and("state", "another")),
        bent(&answer, |params| params.and("code", &code)),
        bent(&answer, |params| params.and("code", "another")),
        bent(&answer, |params| params.and("iss", "https://evil.example")),
        elsewhere(&key, &wrong_key),
        elsewhere(&key, &key.to_uppercase()),
    ];
    for url in refused {
        let page = rig.come_back(&url).await.page();
        assert_eq!(page.status, 400, "{url}: {}", page.text());
        assert!(!page.body.contains(&code) && !page.body.contains(&state), "{url}");
        assert_eq!(page.header("cache-control"), Some("no-store"), "{url}");
        assert_eq!(page.header("referrer-policy"), Some("no-referrer"), "{url}");
    }
    assert_eq!(rig.requests_to_token_endpoint(), 0, "no code went anywhere");
    rig.completes(&request, &answer).await;
    let again = rig.come_back(&answer).await.page();
    assert_eq!(again.status, 400, "{}", again.text());
    assert_eq!(rig.requests_to_token_endpoint(), 1, "a replay redeems nothing");
    rig.gateway.output.assert_no_secret();
}

#[tokio::test]
async fn sr_t18_pom_33_pom_b13_an_answer_of_another_issuer_is_dropped_before_its_code_is_sent() {
    // Announced, sent, taken.
    let absent = IssParameter::Absent;
    let wrong = |issuer: &str| IssParameter::Wrong(issuer.into());
    let cases = [
        (true, IssParameter::Correct, true),
        (true, absent.clone(), false),
        (false, IssParameter::Correct, true),
        (false, absent, true),
        (true, wrong("https://evil.example"), false),
        (false, wrong("https://evil.example"), false),
        // A parameter without a value counts as left out (RFC 6749 §3.1).
        (false, wrong(""), true),
        (true, wrong(""), false),
        (true, wrong("SLASH"), false),
    ];
    let mut gateway = Gateway::builder();
    let mut upstreams = Vec::new();
    for (number, (announced, iss, _)) in cases.iter().enumerate() {
        let upstream = Upstream::start().await;
        let iss = match iss {
            IssParameter::Wrong(word) if word == "SLASH" => wrong(&format!("{}/", upstream.origin)),
            iss => iss.clone(),
        };
        upstream.set_authorization(|script| {
            script.iss_announced = *announced;
            script.iss = iss;
        });
        gateway = gateway.route(Route::oauth(&format!("r{number}"), &upstream));
        upstreams.push(upstream);
    }
    let gateway = gateway.start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    for (number, ((_, _, taken), upstream)) in cases.iter().zip(&upstreams).enumerate() {
        // First an error, whose words are not to be believed if they come from elsewhere.
        upstream.set_authorization(|script| script.consent = Consent::Deny("access_denied".into()));
        let request = client.authorization(&format!("r{number}"));
        let callback = browser.authorize(&client.redirect_uri, &request.url()).await;
        let error = if *taken { "access_denied" } else { "server_error" };
        assert_eq!(callback.error(), Some(error), "case {number}");

        upstream.set_authorization(|script| script.consent = Consent::Approve);
        let request = client.authorization(&format!("r{number}"));
        let callback = browser.authorize(&client.redirect_uri, &request.url()).await;
        assert_eq!(callback.error().is_none(), *taken, "case {number}: {}", callback.url);
        let sent = upstream.authorization.requests.count("/token");
        assert_eq!(sent, usize::from(*taken), "case {number}");
    }
}

#[tokio::test]
async fn a_denial_at_the_upstream_reaches_the_client_without_the_upstreams_words() {
    let mut rig = Rig::new().await;
    for word in ["access_denied", "consent_required", "CANARY_<script>"] {
        rig.upstream.set_authorization(|script| script.consent = Consent::Deny(word.into()));
        let (request, answer) = rig.answer().await;
        let answer = bent(&answer, |params| params.with("error_description", "CANARY_description"));
        let callback = Callback::of(&rig.come_back(&answer).await.client());
        assert_eq!(callback.error(), Some("access_denied"), "{word}");
        assert_eq!(callback.state(), Some(request.state.as_str()));
        assert_eq!(callback.iss(), Some(rig.gateway.public_url.as_str()));
        assert!(!callback.url.as_str().contains("CANARY"), "{}", callback.url);
    }
    assert_eq!(rig.requests_to_token_endpoint(), 0);
    rig.gateway.output.assert_no_secret();
}

#[tokio::test]
async fn sr_t17_a_code_that_the_upstream_does_not_take_ends_at_the_client() {
    use support::script::TokenFault;
    let mut rig = Rig::new().await;
    let json = [("content-type", "application/json")];
    let unusable = json!({"access_token": "CANARY_a b", "token_type": "Bearer"}).to_string();
    let mac = json!({"access_token": "CANARY_a", "token_type": "mac"}).to_string();
    for (fault, error) in [
        (TokenFault::error("invalid_grant"), "server_error"),
        (TokenFault::error("invalid_client"), "server_error"),
        (TokenFault::answer(200, &json, &unusable), "temporarily_unavailable"),
        (TokenFault::answer(200, &json, &mac), "temporarily_unavailable"),
        (TokenFault::answer(200, &json, "{}"), "temporarily_unavailable"),
        (TokenFault::answer(500, &[], "<h1>CANARY"), "temporarily_unavailable"),
        (TokenFault::answer(429, &[("retry-after", "1")], ""), "temporarily_unavailable"),
        (TokenFault::Hangup, "temporarily_unavailable"),
        (TokenFault::HalfAnswer, "temporarily_unavailable"),
    ] {
        rig.upstream.set_authorization(|script| script.token_faults.push_back(fault));
        let request = rig.client.authorization("demo");
        let callback = rig.browser.authorize(&rig.client.redirect_uri, &request.url()).await;
        assert_eq!(callback.error(), Some(error), "{}", callback.url);
        assert!(!callback.url.as_str().contains("CANARY"), "{}", callback.url);
    }
    let tokens = rig.sign_in().await;
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    rig.gateway.output.assert_no_secret();
}

#[tokio::test]
async fn a_trip_survives_a_crash_and_a_restart_in_its_middle() {
    let mut rig =
        Rig::with(|upstream| upstream.set_authorization(|script| script.consent = Consent::Page)).await;
    let request = rig.client.authorization("demo");
    let consent = rig.browser.go_to_consent(&rig.client.redirect_uri, &request.url()).await;
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    let at_upstream = rig.browser.consent_allow(&consent).await.page();
    assert!(at_upstream.text().contains("Upstream consent"), "{}", at_upstream.text());
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    let callback = Callback::of(&rig.browser.press(&at_upstream, "allow").await.client());
    assert_eq!(callback.state(), Some(request.state.as_str()));
    rig.gateway.kill9().await;
    rig.gateway.restart().await;
    let tokens = rig.client.redeem(&callback.code(), &request).await.tokens();
    assert_eq!(rig.whoami(&tokens).await.tool_text(), "upstream-user");
    assert_eq!(rig.upstream.authorization.registrations(), 1);
    assert!(rig.gateway.stop().await.success());
}

#[tokio::test]
async fn users_stay_connected_over_a_crash_and_a_restart() {
    let mut rig = Rig::new().await;
    let tokens = rig.sign_in().await;
    for crash in [true, false] {
        if crash {
            rig.gateway.kill9().await;
        }
        rig.gateway.restart().await;
        assert_eq!(rig.whoami(&tokens).await.tool_text(), "upstream-user");
    }
    let tokens = rig.client.refresh(&tokens.refresh_token).await.tokens();
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    assert_eq!(rig.upstream.authorization.codes_redeemed(), 1);
    assert_eq!(rig.upstream.authorization.refreshes(), 0);
    // The next client of this user goes without the upstream.
    let trips = rig.upstream.authorization.requests.count("/authorize");
    let second = Client::register(&rig.gateway).await;
    let tokens = second.sign_in(&mut rig.browser, "demo").await;
    assert_eq!(rig.whoami(&tokens).await.status, 200);
    assert_eq!(rig.upstream.authorization.requests.count("/authorize"), trips);
}

#[tokio::test]
async fn sr_t26_pom_b23_each_world_keeps_its_tokens_and_the_log_keeps_none() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::builder()
        .route(Route::oauth("demo", &upstream))
        .with("server.access_log", json!("json"))
        .env("RUST_LOG", "trace")
        .start()
        .await;
    let mut rig = Rig::around(upstream, gateway).await;
    let tokens = rig.sign_in().await;
    let call = rig.gateway.mcp("demo").bearer(&tokens.access_token);
    let answer = call.tool("echo", json!({"message": "hello"})).await;
    rig.upstream.refuse_current_tokens();
    let replayed = rig.whoami(&tokens).await;
    rig.client.refresh(&tokens.refresh_token).await.tokens();
    assert_eq!((answer.status, replayed.status), (200, 200));
    let answers = format!("{:?}{}{:?}{}", answer.headers, answer.body, replayed.headers, replayed.body);
    assert!(!answers.contains("CANARY_upstream"), "{answers}");
    let injected: Vec<_> =
        rig.upstream.calls_with_token().iter().map(|call| call.bearer().unwrap()).collect();
    assert!(injected.len() == 3 && injected.iter().all(|token| token.contains("CANARY_upstream_at")));
    let session = rig.browser.jar.all().iter().map(|cookie| cookie.value.clone());
    let mut ours: Vec<String> = session.collect();
    ours.extend([tokens.access_token, tokens.refresh_token]);
    for secret in &ours {
        assert!(secret.len() >= 20, "{secret}");
        assert!(!rig.upstream.requests.mention(secret), "sent upstream");
    }
    let server = &rig.upstream.authorization;
    let from_us = server.requests.matching(|request| request.path != "/authorize");
    assert!(from_us.len() >= 4);
    for request in from_us {
        assert!(
            !ours.iter().any(|secret| request.everything().contains(secret.as_str())),
            "{}",
            request.path
        );
    }
    rig.gateway.stop().await;
    rig.gateway.output.assert_no_secret();
    let log = rig.gateway.output.text();
    let state = authorization(&rig.upstream.authorization).parameter("state").unwrap();
    for secret in ours.iter().chain([&state]) {
        assert!(!log.contains(secret.as_str()), "a secret of ours in the log");
    }
    for file in walk(&rig.gateway.data_dir()) {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes.windows(support::CANARY.len()).any(|window| window == support::CANARY.as_bytes());
        assert!(!found, "a secret in the clear in {}", file.display());
    }
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else if path.is_file() {
            files.push(path);
        }
    }
    files
}

#[tokio::test]
async fn sr_t36_each_user_is_somebody_of_their_own_at_the_upstream() {
    let mut rig = Rig::new().await;
    rig.upstream.set_authorization(|script| script.user = "up-alice".into());
    let alice = rig.sign_in().await;
    rig.upstream.set_authorization(|script| script.user = "up-bob".into());
    let bob = rig.client.sign_in(&mut Browser::of("bob"), "demo").await;
    // Twenty at a time, over the same few connections.
    let rounds = if std::env::var_os("POSTERN_SOAK").is_some() { 5_000 } else { 50 };
    for _ in 0..rounds {
        let calls = (0..20).map(async |number| {
            let (tokens, name) = if number % 2 == 0 { (&alice, "up-alice") } else { (&bob, "up-bob") };
            let call = rig.gateway.mcp("demo").bearer(&tokens.access_token);
            assert_eq!(call.tool("whoami", json!({})).await.tool_text(), name);
        });
        futures_util::future::join_all(calls).await;
    }
}

#[tokio::test]
async fn an_upstream_that_asks_for_no_token_needs_no_trip() {
    let upstream = Upstream::open().await;
    let fixed = Upstream::start().await;
    fixed.set(|script| script.extra_tokens = vec!["CANARY_fixed".into()]);
    let value = json!({"env": "FIXED"});
    let gateway = Gateway::builder()
        .route(Route::oauth("unasked", &upstream))
        .route(Route::open("open", &upstream))
        .route(
            Route::header("header", &fixed, "Authorization", value)
                .with("credential.format", json!("Bearer {value}")),
        )
        .env("FIXED", "CANARY_fixed")
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    for (route, user) in [("unasked", "nobody"), ("open", "nobody"), ("header", "static")] {
        let tokens = client.sign_in(&mut browser, route).await;
        assert_eq!(whoami(&gateway, route, &tokens).await.tool_text(), user, "{route}");
    }
    assert!(upstream.calls_with_token().is_empty());
    assert_eq!(upstream.authorization.requests.all().len() + fixed.authorization.requests.all().len(), 0);
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn an_upstream_that_asks_only_later_gets_its_trip_then() {
    let mut rig = Rig::with(|upstream| upstream.set(|script| script.requires_auth = false)).await;
    let tokens = rig.sign_in().await;
    assert_eq!(rig.whoami(&tokens).await.tool_text(), "nobody");
    // The probe is let in, the tool is not.
    rig.upstream.answer_next(support::script::Answer::InvalidToken);
    let refused = rig.whoami(&tokens).await;
    assert_eq!(refused.status, 401);
    let metadata = refused.challenge("resource_metadata").unwrap();
    assert!(metadata.starts_with(&rig.gateway.public_url), "{metadata}");
    assert!(!refused.body.contains(&rig.upstream.origin));
    let tokens = rig.sign_in().await;
    rig.upstream.set(|script| script.requires_auth = true);
    assert_eq!(rig.whoami(&tokens).await.tool_text(), "upstream-user");
}

#[tokio::test]
async fn pom_31_the_authorize_parameters_of_the_operator_are_added() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(|script| {
        script.metadata_patch =
            json!({"authorization_endpoint": format!("{}/authorize?tenant=a%2Fb&state=evil", upstream.origin)});
    });
    let route = Route::oauth("demo", &upstream)
        .with("credential.authorization_params", json!({"audience": "api", "prompt": "login"}));
    let gateway = Gateway::builder().route(route).start().await;
    let mut rig = Rig::around(upstream, gateway).await;
    rig.sign_in().await;
    let asked = authorization(&rig.upstream.authorization);
    for (name, value) in [("audience", "api"), ("prompt", "login"), ("tenant", "a/b")] {
        assert_eq!(asked.parameter(name).as_deref(), Some(value));
    }
    let query = asked.query.unwrap();
    assert_eq!(query.matches("state=").count(), 1, "{query}");
}

#[tokio::test]
async fn sr_t03_a_session_that_ended_meanwhile_cannot_take_the_answer() {
    let mut rig = Rig::new().await;
    let (_, answer) = rig.answer().await;
    let home = rig.browser.go(&rig.gateway.url("/")).await.page();
    let form = home.form_to("/logout");
    within(PATIENCE, rig.browser.submit(&home, &form, &[])).await;
    let page = rig.come_back(&answer).await.page();
    assert_eq!(page.status, 403, "{}", page.text());
    assert_eq!(rig.requests_to_token_endpoint(), 0);
}

#[tokio::test]
async fn a_thousand_first_calls_of_one_user_lead_to_one_discovery_one_registration_and_one_prompt() {
    let mut rig = Rig::with(|upstream| upstream.set(|script| script.requires_auth = false)).await;
    let tokens = rig.sign_in().await;
    rig.upstream.set(|script| script.requires_auth = true);
    let calls = futures_util::future::join_all((0..1000).map(|_| rig.whoami(&tokens))).await;
    assert!(calls.iter().all(|answer| answer.status == 401), "all of them are led to the user");
    let count = |rig: &Rig, path: &str| {
        rig.upstream.requests.count(path) + rig.upstream.authorization.requests.count(path)
    };
    assert_eq!(count(&rig, "/register"), 0, "nothing is begun before the user is there");
    let tokens = rig.sign_in().await;
    for path in ["/.well-known/oauth-authorization-server", "/register", "/authorize"] {
        assert_eq!(count(&rig, path), 1, "{path}");
    }
    let calls = futures_util::future::join_all((0..1000).map(|_| rig.whoami(&tokens))).await;
    assert!(calls.iter().all(|answer| answer.status == 200));
    assert_eq!(count(&rig, "/authorize"), 1);
}
