//! `postern doctor`: what it finds at upstreams that are well and at upstreams that are not, and what it says to do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use serde_json::{Value, json};
use support::authorization_server::AuthorizationServer;
use support::gateway::{Gateway, Route};
use support::process::{Finished, run};
use support::script::{Answer, MetadataLocation, RegistrationScript, ServerMetadata};
use support::upstream::Upstream;
use support::{port, secret};

/// What the doctor says about the only route `demo`, for people and as JSON.
struct Said {
    code: Option<i32>,
    text: String,
    json: Value,
}

impl Said {
    fn ok(&self) -> bool {
        self.json["verdict"]["ok"].as_bool().unwrap()
    }

    fn summary(&self) -> &str {
        self.json["verdict"]["summary"].as_str().unwrap()
    }

    fn fixes(&self) -> Vec<&str> {
        self.json["verdict"]["fixes"].as_array().unwrap().iter().map(|fix| fix.as_str().unwrap()).collect()
    }

    /// The decisions at one step, in order.
    fn decisions(&self, step: &str) -> Vec<&str> {
        self.steps(step).into_iter().map(|step| step["decision"].as_str().unwrap()).collect()
    }

    fn steps(&self, name: &str) -> Vec<&Value> {
        self.json["steps"].as_array().unwrap().iter().filter(|step| step["step"] == name).collect()
    }

    fn fact(&self, step: &str, name: &str) -> &Value {
        let steps = self.steps(step);
        let facts = steps.last().unwrap_or_else(|| panic!("no step {step}: {}", self.text));
        &facts["facts"][name]
    }

    #[track_caller]
    fn is_not_fine(&self, why: &str, fix: &str) {
        assert_eq!(self.code, Some(1), "{}", self.text);
        assert!(!self.ok() && self.summary().contains(why), "{}", self.text);
        assert!(self.fixes().iter().any(|said| said.contains(fix)), "{}", self.text);
    }
}

async fn doctor(gateway: &Gateway, more: &[&str], environment: &[(&str, &str)]) -> Finished {
    let file = gateway.config_file();
    run(&[&["doctor", "demo", "--config", file.to_str().unwrap()], more].concat(), environment).await
}

/// Asks twice, so that both forms are held against each other.
async fn examined(gateway: &Gateway, environment: &[(&str, &str)]) -> Said {
    let text = doctor(gateway, &[], environment).await;
    let json = doctor(gateway, &["--json"], environment).await;
    assert_eq!(text.stderr, "");
    assert_eq!(json.stderr, "");
    assert_eq!(text.code, json.code);
    assert!(text.files.is_empty() && json.files.is_empty(), "it leaves nothing behind");
    let said = Said {
        code: text.code,
        text: text.stdout,
        json: serde_json::from_str(&json.stdout).unwrap_or_else(|error| panic!("{error}: {}", json.stdout)),
    };
    assert_eq!(said.json["route"], "demo");
    assert_eq!(said.code, Some(i32::from(!said.ok())), "{}", said.text);
    let verdict = format!("\n{}: {}", if said.ok() { "fine" } else { "not fine" }, said.summary());
    assert!(said.text.contains(&verdict), "{}", said.text);
    for fix in said.fixes() {
        assert!(said.text.contains(&format!("\nfix: {fix}")), "{fix}: {}", said.text);
    }
    for step in said.json["steps"].as_array().unwrap() {
        assert!(!step["decision"].as_str().unwrap().is_empty() && !step["why"].as_str().unwrap().is_empty());
    }
    assert!(said.text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
    said
}

/// What it says about this route, without a gateway and without a store.
async fn about(route: Route) -> Said {
    let gateway = Gateway::builder().route(route).prepare();
    let said = examined(&gateway, &[]).await;
    assert!(!gateway.data_dir().exists(), "it needs no store");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_upstream_is_fine_and_every_step_is_shown() {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.challenge.scope = Some("files:read".into()));
    let said = about(Route::oauth("demo", &upstream)).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    let issuer = upstream.authorization.issuer();
    assert!(said.summary().starts_with(&format!("an authorization can begin at {issuer}")), "{}", said.text);
    assert!(said.fixes().is_empty(), "{}", said.text);
    assert_eq!(said.decisions("route"), ["oauth"]);
    assert_eq!(said.decisions("address"), ["allowed"]);
    assert_eq!(said.decisions("probe"), ["challenged"]);
    assert_eq!(said.decisions("resource_metadata"), ["taken"]);
    assert_eq!(said.decisions("server_metadata"), ["taken"]);
    assert_eq!(said.decisions("authorization_server"), ["chosen"]);
    assert_eq!(said.decisions("token_endpoint"), ["allowed"]);
    assert_eq!(said.decisions("identity"), ["registration"]);
    assert_eq!(said.decisions("registration_endpoint"), ["allowed"]);

    let probe = said.steps("probe")[0];
    assert_eq!(probe["request"], json!({"method": "POST", "url": upstream.url()}));
    assert_eq!(probe["response"]["status"], 401);
    let challenge = &probe["response"]["www_authenticate"];
    assert_eq!((&challenge["schemes"], &challenge["scope"]), (&json!(["Bearer"]), &json!("files:read")));
    assert!(challenge["resource_metadata"].as_str().unwrap().starts_with(&upstream.origin));
    let metadata = said.steps("server_metadata")[0];
    assert_eq!(
        metadata["request"]["url"],
        format!("{}/.well-known/oauth-authorization-server", upstream.origin)
    );
    assert!(metadata["response"]["length"].as_u64().unwrap() > 0);
    assert_eq!(said.fact("server_metadata", "issuer"), &json!(issuer));
    for (name, value) in [
        ("issuer", json!(issuer)),
        ("pkce", json!("S256, announced")),
        ("iss_promised", json!(true)),
        ("takes_client_documents", json!(false)),
        ("scope", json!("files:read")),
        ("resource", json!(upstream.url())),
        ("token_endpoint", json!(format!("{issuer}/token"))),
    ] {
        assert_eq!(said.fact("authorization_server", name), &value, "{name}");
    }
    let redirect_uri = said.fact("identity", "redirect_uri").as_str().unwrap();
    let key = redirect_uri.rsplit('/').next().unwrap();
    assert!(redirect_uri.contains("/oauth/upstream/callback/") && key.len() == 16, "{redirect_uri}");
    assert_eq!(upstream.authorization.registrations(), 0, "nothing is registered unless it is asked for");
}

#[tokio::test]
async fn the_redirect_uri_is_the_one_that_the_gateway_uses() {
    use support::browser::Browser;
    use support::client::Client;
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let client = Client::register(&gateway).await;
    client.sign_in(&mut Browser::new(), "demo").await;
    let used = upstream.authorization.requests.to("/authorize");
    let used = used[0].parameter("redirect_uri").unwrap();
    // Beside the running gateway, which has the store.
    let said = examined(&gateway, &[]).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert_eq!(said.fact("identity", "redirect_uri"), &json!(used));
    assert!(said.text.contains("store, which was not looked at"), "{}", said.text);
    assert_eq!(upstream.authorization.registrations(), 1, "the gateway's own");
}

#[tokio::test]
async fn an_open_upstream_needs_nothing() {
    let upstream = Upstream::open().await;
    let said = about(Route::oauth("demo", &upstream)).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert!(said.summary().starts_with("the upstream asks for no token"), "{}", said.text);
    assert_eq!(said.decisions("probe"), ["open"]);
    let said = about(Route::open("demo", &upstream)).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
}

#[tokio::test]
async fn a_route_without_credential_at_an_upstream_that_wants_one_is_told_so() {
    let upstream = Upstream::start().await;
    about(Route::open("demo", &upstream)).await.is_not_fine("asks for a token", "`credential.kind: oauth`");
}

#[tokio::test]
async fn a_fixed_header_is_neither_sent_nor_shown() {
    let upstream = Upstream::start().await;
    let token = secret("fixed");
    let value = json!({"env": "UPSTREAM_TOKEN"});
    let route = Route::header("demo", &upstream, "x-api-key", value);
    let gateway = Gateway::builder().route(route).prepare();
    let said = examined(&gateway, &[("UPSTREAM_TOKEN", &token)]).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert!(said.summary().contains("was not sent"), "{}", said.text);
    assert!(!said.text.contains(&token) && !said.json.to_string().contains(&token));
    assert!(upstream.calls().iter().all(|call| call.header("x-api-key").is_none()));
}

#[tokio::test]
async fn a_route_with_the_providers_token_is_only_probed() {
    let upstream = Upstream::start().await;
    let inject = json!({"kind": "upstream_inject", "provider": "corp"});
    let secret = secret("idp");
    let provider = json!([{
        "name": "corp", "issuer": "https://idp.example.com", "client_id": "postern", "client_secret": {"env": "IDP_SECRET"},
    }]);
    let route = Route::to("demo", &upstream.url(), inject);
    let gateway = Gateway::builder().route(route).with("login.oidc", provider).prepare();
    let said = examined(&gateway, &[("IDP_SECRET", &secret)]).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert!(said.summary().contains("provider corp"), "{}", said.text);
    assert!(!said.text.contains(&secret) && !said.json.to_string().contains(&secret));
    assert!(upstream.authorization.requests.all().is_empty());
}

#[tokio::test]
async fn a_401_without_any_metadata_is_not_fine_and_every_place_is_named() {
    let upstream = Upstream::start().await;
    upstream.set(|script| {
        script.challenge.verbatim = Some(String::new());
        script.resource_metadata.location = MetadataLocation::Nowhere;
    });
    upstream.set_authorization(|script| {
        script.metadata = ServerMetadata::Nowhere;
        script.registration = None;
    });
    let gateway = Gateway::builder().route(Route::oauth("demo", &upstream)).prepare();
    let said = examined(&gateway, &[]).await;
    said.is_not_fine("nobody publishes which authorization server", "`credential.issuer`");
    assert_eq!(said.decisions("resource_metadata"), ["absent", "absent"]);
    assert_eq!(said.decisions("server_metadata"), ["absent", "absent"]);
    assert!(said.text.contains("status 404: there is no document"), "{}", said.text);
    let tried = doctor(&gateway, &["--register"], &[]).await;
    assert_eq!(tried.code, Some(1));
    assert!(tried.stdout.contains("http status 404"), "{}", tried.stdout);

    // One of revision 2025-03-26 has a place to register, and trying tells.
    upstream.set_authorization(|script| script.registration = Some(RegistrationScript::default()));
    let tried = doctor(&gateway, &["--register"], &[]).await;
    assert_eq!(tried.code, Some(0), "{}", tried.stdout);
}

#[tokio::test]
async fn metadata_for_another_resource_are_refused_with_the_key_that_vouches_for_them() {
    let upstream = Upstream::start().await;
    upstream.set(|script| script.resource_metadata.resource = Some("https://files.example.com/mcp".into()));
    let said = about(Route::oauth("demo", &upstream)).await;
    said.is_not_fine(
        "the resource metadata speaks for another server",
        "`credential.resource: \"https://files.example.com/mcp\"`",
    );
    assert_eq!(said.decisions("resource_metadata"), ["refused"]);
    // And that is the fix.
    let resource = json!("https://files.example.com/mcp");
    let said = about(Route::oauth("demo", &upstream).with("credential.resource", resource)).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
}

#[tokio::test]
async fn another_issuer_than_the_one_asked_for_is_refused() {
    let upstream = Upstream::start().await;
    let listed = upstream.authorization.issuer();
    upstream.set(|script| script.resource_metadata.authorization_servers = Some(vec![listed.clone()]));
    upstream.set_authorization(|script| script.issuer = Some("https://login.example.com".into()));
    let said = about(Route::oauth("demo", &upstream)).await;
    said.is_not_fine("names another issuer", "https://login.example.com");
    assert!(said.text.contains(&format!("and {listed} was asked for")), "{}", said.text);

    // A configured issuer that is not listed.
    let route = Route::oauth("demo", &upstream).with("credential.issuer", json!("https://other.example.com"));
    let said = about(route).await;
    said.is_not_fine("not among the authorization servers", &format!("`credential.issuer: \"{listed}\"`"));
    assert!(said.fact("identity", "redirect_uri").is_string(), "known all the same: {}", said.text);
}

#[tokio::test]
async fn a_server_that_does_not_announce_pkce_is_refused_unless_its_endpoints_are_written() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(|script| script.code_challenge_methods = None);
    let said = about(Route::oauth("demo", &upstream)).await;
    said.is_not_fine("does not announce pkce", "`credential.authorization_endpoint`");
    let (origin, route) = (&upstream.origin, Route::oauth("demo", &upstream));
    let route = route
        .with("credential.authorization_endpoint", json!(format!("{origin}/authorize")))
        .with("credential.token_endpoint", json!(format!("{origin}/token")))
        .with("credential.client_id", json!("postern"));
    let said = about(route).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert_eq!(said.decisions("authorization_server"), ["configured"]);
    assert!(said.steps("server_metadata").is_empty());
    assert_eq!(said.fact("authorization_server", "pkce"), "S256, not checked");
}

#[tokio::test]
async fn without_registration_a_client_id_is_needed() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(|script| script.registration = None);
    let said = about(Route::oauth("demo", &upstream)).await;
    said.is_not_fine("the server has no registration endpoint", "`credential.client_id`");
    let uri = said.fact("identity", "redirect_uri").as_str().unwrap();
    assert!(said.fixes()[0].contains(uri), "what to register there: {}", said.text);
    let secret = secret("client");
    let route = Route::oauth("demo", &upstream)
        .with("credential.client_id", json!("postern"))
        .with("credential.client_secret", json!({"env": "CLIENT_SECRET"}));
    let gateway = Gateway::builder().route(route).prepare();
    let said = examined(&gateway, &[("CLIENT_SECRET", &secret)]).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert_eq!(said.decisions("identity"), ["configured"]);
    assert_eq!(said.fact("identity", "auth_method"), "client_secret_basic");
    assert_eq!(said.fact("route", "has_client_secret"), &json!(true));
    assert!(!said.text.contains(&secret) && !said.json.to_string().contains(&secret));
}

#[tokio::test]
async fn a_client_document_is_used_where_the_server_takes_it_and_ours_is_https() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(|script| {
        script.cimd = true;
        script.metadata_patch =
            json!({"token_endpoint_auth_methods_supported": ["private_key_jwt"], "registration_endpoint": null});
    });
    let said = about(Route::oauth("demo", &upstream)).await;
    said.is_not_fine("`server.public_url` is not https", "`credential.client_id`");
    let gateway = Gateway::builder().route(Route::oauth("demo", &upstream)).tls().prepare();
    let said = examined(&gateway, &[]).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert_eq!(said.decisions("identity"), ["document"]);
    assert_eq!(said.fact("identity", "auth_method"), "private_key_jwt");
    let id = said.fact("identity", "client_id").as_str().unwrap();
    assert_eq!(said.fact("identity", "jwks_uri"), &json!(id.replace(".json", "/jwks.json")));
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_refused_with_the_key_that_allows_it() {
    let upstream = Upstream::start().await;
    let private = |url: &str| {
        Route::to("demo", url, json!({"kind": "oauth"})).with("upstream.allow_private", json!(false))
    };
    let secure = upstream.url().replace("http://", "https://");
    let said = about(private(&secure)).await;
    said.is_not_fine("it has a private address", "`upstream.allow_private: true`");
    assert!(upstream.calls().is_empty());
    // What no key allows.
    let said = about(private("https://169.254.169.254/mcp")).await;
    said.is_not_fine("special-use address", "needs another one");

    // The endpoints that nobody has asked yet are looked at as well.
    for endpoint in ["token_endpoint", "registration_endpoint"] {
        let patch = json!({endpoint: "https://10.1.2.3/there"});
        upstream.set_authorization(|script| script.metadata_patch = patch);
        let said = about(Route::oauth("demo", &upstream)).await;
        said.is_not_fine("it has a private address", "`upstream.allow_hosts: [\"10.1.2.3\"]`");
        assert_eq!(said.decisions(endpoint), ["refused"]);
    }

    // The server is allowed, and its authorization server is somewhere else.
    let elsewhere = AuthorizationServer::start().await;
    let upstream = Upstream::relying_on(&elsewhere).await;
    let url = upstream.url().replace("127.0.0.1", "localhost");
    upstream.set(|script| {
        script.challenge.with_metadata = false;
        script.resource_metadata.resource = Some(url.clone());
    });
    let said = about(Route::to("demo", &url, json!({"kind": "oauth"}))).await;
    said.is_not_fine("address not allowed", "`upstream.allow_hosts: [\"127.0.0.1\"]`");
    let route =
        Route::to("demo", &url, json!({"kind": "oauth"})).with("upstream.allow_hosts", json!(["127.0.0.1"]));
    let said = about(route).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
}

#[tokio::test]
async fn an_upstream_that_is_down_is_named() {
    let free = port::Port::take();
    let url = format!("http://{}/mcp", free.address());
    let said = about(Route::to("demo", &url, json!({"kind": "oauth"}))).await;
    said.is_not_fine("not sent", &url);
    assert_eq!(said.decisions("probe"), ["unavailable"]);
    assert!(said.steps("probe")[0]["response"]["error"].is_string());
    // Its authorization server.
    let elsewhere = AuthorizationServer::start().await;
    let upstream = Upstream::relying_on(&elsewhere).await;
    elsewhere.stop();
    let said = about(Route::oauth("demo", &upstream)).await;
    let place = format!("{}/.well-known/oauth-authorization-server", elsewhere.origin);
    said.is_not_fine("unavailable at the moment", &place);
}

#[tokio::test]
async fn an_unknown_route_is_an_error_that_lists_those_there_are() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder()
        .route(Route::open("files", &upstream))
        .route(Route::open("mail", &upstream))
        .prepare();
    let said = doctor(&gateway, &["--json"], &[]).await;
    assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""));
    assert!(said.stderr.ends_with("there is no route demo in the configuration; there are: files, mail"));
    assert!(upstream.calls().is_empty());
}

#[tokio::test]
async fn a_bad_configuration_and_bad_usage_end_as_with_every_command() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).prepare();
    gateway.reconfigure("no_such_key", json!(1));
    assert_eq!(doctor(&gateway, &[], &[]).await.code, Some(78));
    assert_eq!(run(&["doctor"], &[]).await.code, Some(2));
    let help = run(&["doctor", "--help"], &[]).await;
    assert!(help.stdout.contains("verdict  {ok, summary, fixes}"), "{}", help.stdout);
}

#[tokio::test]
async fn a_profile_is_named_with_the_reason_it_was_chosen_for() {
    let upstream = Upstream::start().await;
    upstream.set_authorization(|script| {
        script.code_challenge_methods = None;
        script.registration = None;
    });
    let route = Route::oauth("demo", &upstream)
        .with("credential.profile", json!("entra"))
        .with("credential.client_id", json!("postern"));
    let said = about(route).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert_eq!(said.fact("route", "profile"), "entra, by its name");
    let server = |name: &str| said.fact("authorization_server", name).as_str().unwrap().to_owned();
    assert_eq!(server("profile"), "entra, by its name in the configuration");
    assert_eq!(server("resource"), "not sent, since profile entra refuses it");
    assert_eq!(server("pkce"), "S256, whether it is announced or not");
    // Another one, whose endpoints are built in: known whatever the upstream says.
    let free = port::Port::take();
    let url = format!("http://{}/mcp", free.address());
    let github = json!({"kind": "oauth", "profile": "github", "client_id": "postern"});
    let said = about(Route::to("demo", &url, github)).await;
    assert_eq!(said.code, Some(1));
    assert!(said.fact("identity", "redirect_uri").as_str().unwrap().contains("/oauth/upstream/callback/"));
}

#[tokio::test]
async fn registering_is_tried_when_asked_for_and_tidied_up() {
    let upstream = Upstream::start().await;
    let managed = RegistrationScript {
        managed: true,
        method: Some("client_secret_basic".into()),
        ..RegistrationScript::default()
    };
    upstream.set_authorization(|script| script.registration = Some(managed));
    let gateway = Gateway::builder().route(Route::oauth("demo", &upstream)).prepare();
    let said = doctor(&gateway, &["--register", "--json"], &[]).await;
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    assert!(!said.stdout.contains(support::CANARY), "no secret of the registration: {}", said.stdout);
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    let steps: Vec<&Value> =
        said["steps"].as_array().unwrap().iter().filter(|step| step["step"] == "registration").collect();
    assert_eq!(steps[0]["decision"], "registered");
    assert_eq!(steps[1]["decision"], "deleted");
    assert_eq!(steps[1]["request"]["method"], "DELETE");
    assert_eq!(upstream.authorization.registrations(), 1);
    assert!(upstream.authorization.ledger(|ledger| ledger.clients.is_empty()), "nothing stays");

    // Where it cannot be deleted, it says so.
    upstream.set_authorization(|script| script.registration = Some(RegistrationScript::default()));
    let kept = doctor(&gateway, &["--register"], &[]).await;
    assert!(kept.code == Some(0) && kept.stdout.contains("stays there"), "{}", kept.stdout);
    // Where it is refused, there is another way.
    let refusal = RegistrationScript {
        refusal: Some((403, json!({"error": "access_denied"}))),
        ..RegistrationScript::default()
    };
    upstream.set_authorization(|script| script.registration = Some(refusal));
    let refused = doctor(&gateway, &["--register"], &[]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stdout.contains("client registration was refused: access_denied"), "{}", refused.stdout);
    assert!(refused.stdout.contains("fix: register postern at"), "{}", refused.stdout);
}

#[tokio::test]
async fn strangers_words_reach_the_terminal_as_one_short_line() {
    let upstream = Upstream::start().await;
    let long = "x".repeat(5000);
    let challenge = format!(
        "Bearer realm=\"\u{9b}2J\", scope=\"{long}\", resource_metadata=\"https://evil.example/{long}\""
    );
    let answer = Answer::http(401, &[("www-authenticate", "Basic realm=\"a\"")], "");
    upstream.set(|script| script.unauthorized = Some(answer));
    let said = about(Route::oauth("demo", &upstream)).await;
    assert_eq!(said.steps("probe")[0]["response"]["www_authenticate"]["schemes"], json!(["Basic"]));
    upstream.set(|script| {
        script.unauthorized = None;
        script.challenge.verbatim = Some(challenge);
        script.resource_metadata.patch = json!({"resource": "https://a.example/\u{1b}[31mred\n\u{202e}"});
    });
    let said = about(Route::oauth("demo", &upstream)).await;
    assert_eq!(said.code, Some(1));
    assert!(said.text.lines().all(|line| line.len() < 1500), "{}", said.text);
    // A challenge that leads to another host is not followed, and that is told.
    let elsewhere = "https://evil.example/metadata".to_owned();
    upstream.set(|script| {
        script.challenge.verbatim = None;
        script.challenge.metadata_url = Some(elsewhere.clone());
        script.resource_metadata.patch = json!({});
    });
    let said = about(Route::oauth("demo", &upstream)).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert_eq!(said.decisions("resource_metadata"), ["not_followed", "taken"]);
    assert!(!said.json["steps"].to_string().contains(&format!("\"url\":\"{elsewhere}\"")));
}
