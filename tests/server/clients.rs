//! Clients that prove who they are, clients that manage their registration, and programs that call without people.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};
use support::browser::Browser;
use support::cimd::ClientDocuments;
use support::client::{Client, TokenAnswer, Tokens};
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::gateway::{Builder, Gateway, Route};
use support::key::Key;
use support::mcp::McpAnswer;
use support::params::Params;
use support::process::run;
use support::redis::Redis;
use support::script::Answer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);
const CALLBACK: &str = "https://client.example/cb";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

fn builder(upstream: &Upstream) -> Builder {
    Gateway::builder().route(Route::open("demo", upstream)).with("server.access_log", json!("off"))
}

/// Posts a form with any headers.
async fn form(gateway: &Gateway, path: &str, params: &Params, authorization: Option<&str>) -> TokenAnswer {
    let mut request = gateway
        .http
        .post(gateway.url(path))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(params.encoded());
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    TokenAnswer(McpAnswer::of(request.send().await.unwrap()).await)
}

fn basic(id: &str, secret: &str) -> String {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    format!("Basic {}", BASE64.encode(format!("{}:{}", encoded(id), encoded(secret)).as_bytes()))
}

#[track_caller]
fn assert_refused(answer: &TokenAnswer, status: u16, error: &str) {
    assert_eq!((answer.status(), answer.error().as_deref()), (status, Some(error)), "{}", answer.0.body);
    assert_eq!(answer.0.header("cache-control"), Some("no-store"));
}

/// A way to show who one is: adds to the form, and says the header.
type Shown = (Params, Option<String>);

/// Of these ways to authenticate as one client, exactly the one named works.
async fn only_works(
    gateway: &Gateway,
    client: &Client,
    ways: &[(&str, &dyn Fn(Params) -> Shown)],
    right: &str,
) {
    let request = client.authorization("demo");
    let code = Browser::new().authorize(&client.redirect_uri, &request.url()).await.code();
    let redemption = client.redemption(&code, &request);
    for (name, wrong) in ways.iter().filter(|(name, _)| *name != right) {
        let (params, header) = wrong(redemption.clone());
        let answer = form(gateway, "/oauth/token", &params, header.as_deref()).await;
        let said = (answer.status(), answer.error().unwrap_or_default());
        assert!(
            matches!((said.0, said.1.as_str()), (401, "invalid_client") | (400, "invalid_request")),
            "{right}, by {name}: {}",
            answer.0.body
        );
        assert_eq!(answer.0.header("www-authenticate").is_some(), said.0 == 401, "{name}");
    }
    let (_, show) = ways.iter().find(|(name, _)| *name == right).unwrap();
    let send = async |path: &str, params: Params| {
        let (params, header) = show(params);
        form(gateway, path, &params, header.as_deref()).await
    };
    // None of it has cost the client its code.
    let tokens = send("/oauth/token", redemption).await.tokens();
    let revocation =
        |tokens: &Tokens| Params::new().with("client_id", &client.id).with("token", &tokens.refresh_token);
    if right != "nothing" {
        let bare = client.refreshment(&tokens.refresh_token);
        assert_refused(&form(gateway, "/oauth/token", &bare, None).await, 401, "invalid_client");
        let answer = form(gateway, "/oauth/revoke", &revocation(&tokens), None).await;
        assert_refused(&answer, 401, "invalid_client");
    }
    let tokens = send("/oauth/token", client.refreshment(&tokens.refresh_token)).await.tokens();
    assert_eq!(status(gateway, &tokens.access_token).await, 200);
    assert_eq!(send("/oauth/revoke", revocation(&tokens)).await.status(), 200);
    eventually(SECOND, async || status(gateway, &tokens.access_token).await == 401).await;
}

async fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.mcp("demo").bearer(token).tool("echo", json!({})).await.status
}

#[tokio::test]
async fn sr_as_33_sr_t30_each_method_proves_the_client_that_registered_it_and_no_other() {
    let upstream = Upstream::open().await;
    let key = Key::new("k1");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.json");
    std::fs::write(&file, key.set().to_string()).unwrap();
    let gateway = builder(&upstream)
        .env("LISTED_SECRET", "s%3A cr+t")
        .with(
            "oauth_server.clients.static",
            json!([
                {"client_id": "listed", "redirect_uris": [CALLBACK], "client_secret": {"env": "LISTED_SECRET"}},
                {"client_id": "keyed", "redirect_uris": [CALLBACK], "jwks_file": file},
            ]),
        )
        .start()
        .await;
    let registered = async |method: &str, more: Value| {
        let mut document = json!({"redirect_uris": [CALLBACK], "token_endpoint_auth_method": method});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = Client::register_with(&gateway, &document).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["token_endpoint_auth_method"], method);
        let secret = answer["client_secret"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer["client_secret_expires_at"].as_u64(), (!secret.is_empty()).then_some(0));
        (answer["client_id"].as_str().unwrap().to_owned(), secret)
    };
    let none = json!({});
    let (by_basic, basic_secret) = registered("client_secret_basic", none.clone()).await;
    let (by_post, post_secret) = registered("client_secret_post", none.clone()).await;
    let (by_key, _) = registered("private_key_jwt", json!({"jwks": key.set()})).await;
    let (public, _) = registered("none", none).await;
    let stranger = Key::new("k1");
    let issuer = gateway.public_url.clone();
    for (id, secret, right) in [
        ("listed", "s%3A cr+t", "basic"),
        ("keyed", "", "assertion"),
        (by_basic.as_str(), basic_secret.as_str(), "basic"),
        (by_post.as_str(), post_secret.as_str(), "post"),
        (by_key.as_str(), "", "assertion"),
        (public.as_str(), "", "nothing"),
    ] {
        let client = Client::known_as(&gateway, id, CALLBACK);
        let asserted = |params: Params, assertion: &str| {
            (params.with("client_assertion_type", ASSERTION_TYPE).with("client_assertion", assertion), None)
        };
        let with = |name: &str, value: Value| {
            let mut claims = Key::claims(id, &issuer);
            claims[name] = value;
            key.sign(&claims)
        };
        let wrong = format!("{secret}x");
        let wrong_basic = |params: Params| (params, Some(basic(id, &wrong)));
        let wrong_post = |params: Params| (params.with("client_secret", &wrong), None);
        let by_basic = |params: Params| (params, Some(basic(id, secret)));
        let by_post = |params: Params| (params.with("client_secret", secret), None);
        let both = |params: Params| (params.with("client_secret", "x"), Some(basic(id, secret)));
        let nothing = |params: Params| (params, None);
        let bearer = |params: Params| (params, Some("Bearer x".to_owned()));
        let somebody = |params: Params| (params.with("client_id", "somebody"), Some(basic(id, secret)));
        let assertion = |params: Params| asserted(params, &key.assertion(id, &issuer));
        let other_key = |params: Params| asserted(params, &stranger.assertion(id, &issuer));
        let for_others = |params: Params| asserted(params, &key.assertion(id, "https://other.example"));
        let for_two =
            |params: Params| asserted(params, &with("aud", json!([issuer, "https://other.example"])));
        let too_long = |params: Params| asserted(params, &with("exp", json!(4_000_000_000_u64)));
        let over = |params: Params| asserted(params, &with("exp", json!(1_700_000_000)));
        let of_another = |params: Params| asserted(params, &with("sub", json!("another")));
        let unnamed = |params: Params| asserted(params, &with("jti", json!(null)));
        let endless = |params: Params| asserted(params, &with("exp", json!(u64::MAX)));
        let untyped = |params: Params| (params.with("client_assertion", &key.assertion(id, &issuer)), None);
        let ways: [(&str, &dyn Fn(Params) -> Shown); 18] = [
            ("basic", &by_basic),
            ("post", &by_post),
            ("assertion", &assertion),
            ("nothing", &nothing),
            ("wrong basic", &wrong_basic),
            ("wrong post", &wrong_post),
            ("two methods", &both),
            ("bearer", &bearer),
            ("two clients", &somebody),
            ("another key", &other_key),
            ("another audience", &for_others),
            ("two audiences", &for_two),
            ("an assertion for ever", &too_long),
            ("an assertion that is over", &over),
            ("an assertion about another", &of_another),
            ("an assertion without a name", &unnamed),
            ("an assertion without a type", &untyped),
            ("an assertion until the end of time", &endless),
        ];
        // What is right for a public client is wrong for all others; an empty secret is none.
        let fitting: Vec<_> = ways
            .into_iter()
            .filter(|(name, _)| !(secret.is_empty() && *name == "post" && right == "nothing"))
            .collect();
        only_works(&gateway, &client, &fitting, right).await;
    }
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn an_assertion_is_good_once_at_all_instances() {
    let (redis, upstream, key) = (Redis::start(&[]), Upstream::open().await, Key::new("k"));
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::open("demo", &upstream)]);
    let cluster = Cluster::of(2, shared).await;
    let document = json!({"redirect_uris": [CALLBACK], "token_endpoint_auth_method": "private_key_jwt",
        "jwks": key.set()});
    let answer = Client::register_with(&cluster.instances[0], &document).await.json();
    let id = answer["client_id"].as_str().unwrap();
    let assertion = key.assertion(id, &cluster.instances[0].public_url);
    let revocation = Params::new()
        .with("token", "whatever")
        .with("client_assertion_type", ASSERTION_TYPE)
        .with("client_assertion", &assertion);
    assert_eq!(form(&cluster.instances[0], "/oauth/revoke", &revocation, None).await.status(), 200);
    for instance in &cluster.instances {
        assert_refused(&form(instance, "/oauth/revoke", &revocation, None).await, 401, "invalid_client");
    }
}

#[tokio::test]
async fn keys_behind_a_url_are_fetched_again_when_they_change() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let (first, second) = (Key::new("1"), Key::new("2"));
    let gateway =
        builder(&upstream).with("oauth_server.clients.cimd.allow_private", json!(true)).start().await;
    let json_type = [("content-type", "application/json")];
    documents.publish_answer("/keys", 200, &json_type, &first.set().to_string());
    // By its document, a client is whoever has these keys.
    let id = format!("{}/client", documents.origin);
    let document = json!({"client_id": id, "client_name": "Keyed", "redirect_uris": [CALLBACK],
        "token_endpoint_auth_method": "private_key_jwt", "jwks_uri": format!("{}/keys", documents.origin)});
    documents.publish_answer("/client", 200, &json_type, &document.to_string());
    let client = Client::known_as(&gateway, &id, CALLBACK);
    let request = client.authorization("demo");
    let code = Browser::new().authorize(CALLBACK, &request.url()).await.code();
    let redemption = client.redemption(&code, &request);
    assert_refused(&form(&gateway, "/oauth/token", &redemption, None).await, 401, "invalid_client");
    let shown = |params: &Params, key: &Key| {
        let assertion = key.assertion(&id, &gateway.url("/oauth/token"));
        params.clone().with("client_assertion_type", ASSERTION_TYPE).with("client_assertion", &assertion)
    };
    let tokens = form(&gateway, "/oauth/token", &shown(&redemption, &first), None).await.tokens();
    let refreshment = client.refreshment(&tokens.refresh_token);
    // One request for all that was signed, one more for a key that is new.
    assert_eq!(documents.reads("/keys"), 1);
    documents.publish_answer("/keys", 200, &json_type, &second.set().to_string());
    let tokens = form(&gateway, "/oauth/token", &shown(&refreshment, &first), None).await.tokens();
    assert_eq!(documents.reads("/keys"), 1);
    let refused = form(&gateway, "/oauth/token", &shown(&refreshment, &Key::new("3")), None).await;
    assert_refused(&refused, 401, "invalid_client");
    let refreshment = client.refreshment(&tokens.refresh_token);
    for _ in 0..20 {
        let refused = form(&gateway, "/oauth/token", &shown(&refreshment, &Key::new("4")), None).await;
        assert_refused(&refused, 401, "invalid_client");
    }
    assert!(documents.reads("/keys") <= 2, "nobody makes us ask again and again");
}

#[tokio::test]
async fn pom_06_client_documents_come_from_hosts_that_are_admitted() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    for (cimd, taken) in [
        (json!({"allow_private": true}), true),
        (json!({"allow_private": true, "allow_hosts": ["127.0.0.1"]}), true),
        (json!({"allow_private": true, "allow_hosts": ["claude.ai"]}), false),
        (json!({"allow_private": true, "deny_hosts": ["127.0.0.1"]}), false),
    ] {
        let gateway = builder(&upstream).with("oauth_server.clients.cimd", cimd.clone()).start().await;
        let id = format!("{}/client", documents.origin);
        let document = json!({"client_id": id, "client_name": "Editor", "redirect_uris": [CALLBACK]});
        let before = documents.reads("/client");
        documents.publish_answer(
            "/client",
            200,
            &[("content-type", "application/json")],
            &document.to_string(),
        );
        let client = Client::known_as(&gateway, &id, CALLBACK);
        let page = Browser::new().go(&client.authorization("demo").url()).await.page();
        assert_eq!(page.status == 200, taken, "{cimd}: {}", page.text());
        assert_eq!(documents.reads("/client") > before, taken, "{cimd}");
    }
}

#[tokio::test]
async fn sr_rs_06_a_changed_registration_counts_at_every_instance_at_once() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let cluster =
        Cluster::of(2, Shared::new(store_at(address_of(&redis)), vec![Route::open("demo", &upstream)])).await;
    let (first, second) = (&cluster.instances[0], &cluster.instances[1]);
    let document = json!({"client_name": "One", "redirect_uris": [CALLBACK],
        "token_endpoint_auth_method": "client_secret_post"});
    let made = Client::register_with(first, &document).await.json();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    let (id, token) = (text("client_id"), text("registration_access_token"));
    let page = async |redirect_uri: &str| {
        let client = Client::known_as(second, &id, redirect_uri);
        Browser::new().through(second).go(&client.authorization("demo").url()).await.page().status
    };
    let new = "https://client.example/new";
    assert_eq!((page(CALLBACK).await, page(new).await), (200, 400), "the second has read it as it was");
    let mut changed = document.clone();
    changed["client_id"] = id.as_str().into();
    changed["redirect_uris"] = json!([new]);
    assert_eq!(manage(first, "PUT", &id, Some(&token), Some(&changed)).await.status, 200);
    assert_eq!((page(CALLBACK).await, page(new).await), (400, 200), "changed");
    assert_eq!(manage(first, "DELETE", &id, Some(&token), None).await.status, 204);
    assert_eq!((page(CALLBACK).await, page(new).await), (400, 400), "deleted");
}

/// RFC 7592, as a client speaks it.
async fn manage(
    gateway: &Gateway,
    method: &str,
    id: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> McpAnswer {
    let method = method.parse().unwrap();
    let mut request = gateway.http.request(method, gateway.url(&format!("/oauth/register/{id}")));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    McpAnswer::of(request.send().await.unwrap()).await
}

#[tokio::test]
async fn sr_as_63_a_client_reads_changes_and_deletes_its_own_registration() {
    let upstream = Upstream::open().await;
    let gateway = builder(&upstream).start().await;
    let document = json!({"client_name": "One", "redirect_uris": [CALLBACK],
        "token_endpoint_auth_method": "client_secret_post"});
    let made = Client::register_with(&gateway, &document).await.json();
    let other = Client::register_with(&gateway, &document).await.json();
    assert_ne!(made["client_id"], other["client_id"], "a client with a secret is one of its own");
    let text = |value: &Value, name: &str| value[name].as_str().unwrap().to_owned();
    let (id, token) = (text(&made, "client_id"), text(&made, "registration_access_token"));
    assert_eq!(made["registration_client_uri"], gateway.url(&format!("/oauth/register/{id}")));

    // Nobody without the token, nor with that of another client, nor at a client that there is not.
    let foreign = text(&other, "registration_access_token");
    for (id, token) in [
        (id.as_str(), None),
        (id.as_str(), Some("x")),
        (id.as_str(), Some(foreign.as_str())),
        (id.as_str(), Some(made["client_secret"].as_str().unwrap())),
        ("client_unknown", Some(token.as_str())),
    ] {
        for (method, body) in [("GET", None), ("PUT", Some(&made)), ("DELETE", None)] {
            let answer = manage(&gateway, method, id, token, body).await;
            assert_eq!(
                (answer.status, answer.json()["error"].as_str()),
                (401, Some("invalid_token")),
                "{method}"
            );
            assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
        }
    }
    let read = manage(&gateway, "GET", &id, Some(&token), None).await;
    assert_eq!((read.status, read.header("cache-control")), (200, Some("no-store")));
    assert_eq!(read.json()["client_name"], "One");
    assert_eq!(read.json()["registration_access_token"], token.as_str());
    assert!(read.json().get("client_secret").is_none(), "it is not kept");

    let mut changed = document.clone();
    changed["client_id"] = id.as_str().into();
    changed["client_name"] = "Two".into();
    changed["redirect_uris"] = json!(["https://client.example/new"]);
    for (name, value, error) in [
        ("client_id", other["client_id"].clone(), "invalid_client_metadata"),
        ("client_secret", json!("mine"), "invalid_client_metadata"),
        ("token_endpoint_auth_method", json!("none"), "invalid_client_metadata"),
        ("redirect_uris", json!(["javascript:alert(1)"]), "invalid_redirect_uri"),
    ] {
        let mut wrong = changed.clone();
        wrong[name] = value;
        let answer = manage(&gateway, "PUT", &id, Some(&token), Some(&wrong)).await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some(error)), "{name}");
    }
    let answer = manage(&gateway, "PUT", &id, Some(&token), Some(&changed)).await;
    assert_eq!((answer.status, answer.json()["client_name"].as_str()), (200, Some("Two")), "{}", answer.body);
    let old = Client::known_as(&gateway, &id, CALLBACK);
    assert_eq!(Browser::new().go(&old.authorization("demo").url()).await.page().status, 400);
    let mut client = Client::known_as(&gateway, &id, "https://client.example/new");
    client.secret = Some(text(&made, "client_secret"));
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    assert_eq!(status(&gateway, &tokens.access_token).await, 200);

    let gone = manage(&gateway, "DELETE", &id, Some(&token), None).await;
    assert_eq!((gone.status, gone.body.as_str()), (204, ""));
    eventually(SECOND, async || status(&gateway, &tokens.access_token).await == 401).await;
    assert_refused(&client.refresh(&tokens.refresh_token).await, 401, "invalid_client");
    assert_eq!(manage(&gateway, "GET", &id, Some(&token), None).await.status, 401);
    // A public client has nothing to manage.
    let public = Client::register_with(&gateway, &json!({"redirect_uris": [CALLBACK]})).await.json();
    assert!(public.get("registration_access_token").is_none() && public.get("client_secret").is_none());
}

// === introspection ===

async fn introspected(gateway: &Gateway, token: &str) -> Value {
    let params = Params::new().with("token", token);
    let answer = form(gateway, "/oauth/introspect", &params, Some(&basic("watcher", "pw"))).await;
    assert_eq!(
        (answer.status(), answer.0.header("cache-control")),
        (200, Some("no-store")),
        "{}",
        answer.0.body
    );
    answer.0.json()
}

#[tokio::test]
async fn sr_as_81_whoever_is_listed_for_it_may_ask_about_tokens() {
    let upstream = Upstream::open().await;
    let listed = json!([
        {"client_id": "watcher", "client_secret": {"env": "WATCHER"}, "introspect": true},
        {"client_id": "other", "client_secret": {"env": "WATCHER"}, "redirect_uris": [CALLBACK]},
    ]);
    let gateway =
        builder(&upstream).env("WATCHER", "pw").with("oauth_server.clients.static", listed).start().await;
    let metadata = gateway.url("/.well-known/oauth-authorization-server");
    let metadata = gateway.http.get(metadata).send().await.unwrap().text().await.unwrap();
    assert!(metadata.contains("\"introspection_endpoint\""), "{metadata}");
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let about = introspected(&gateway, &tokens.access_token).await;
    let exp = about["exp"].as_u64().unwrap();
    let expected = json!({"active": true, "token_type": "Bearer", "iss": gateway.public_url, "sub": "alice",
        "username": "alice", "client_id": client.id, "aud": [client.resource("demo")], "scope": "mcp:access",
        "exp": exp});
    assert_eq!(about, expected);
    let about = introspected(&gateway, &tokens.refresh_token).await;
    assert_eq!((&about["active"], &about["token_type"]), (&json!(true), &json!("refresh_token")));

    // Nobody else, and of nothing that is dead.
    let params = Params::new().with("token", &tokens.access_token);
    for (authorization, status, error) in [
        (basic("watcher", "x"), 401, "invalid_client"),
        (basic("other", "pw"), 400, "unauthorized_client"),
        (format!("Bearer {}", tokens.access_token), 401, "invalid_client"),
    ] {
        let answer = form(&gateway, "/oauth/introspect", &params, Some(&authorization)).await;
        assert_refused(&answer, status, error);
    }
    let public = params.clone().with("client_id", &client.id);
    assert_refused(&form(&gateway, "/oauth/introspect", &public, None).await, 400, "unauthorized_client");
    client.revoke(&tokens.access_token).await;
    let inactive = json!({"active": false});
    eventually(SECOND, async || introspected(&gateway, &tokens.access_token).await == inactive).await;
    for dead in [tokens.refresh_token.as_str(), "nonsense", "postern_st_x", "postern_rt_x.y"] {
        assert_eq!(introspected(&gateway, dead).await, inactive, "{dead}");
    }
    let get = gateway.http.get(gateway.url("/oauth/introspect")).send().await.unwrap();
    assert_eq!(get.status(), 405);
}

// === programs ===

#[tokio::test]
async fn sr_t42_a_program_named_like_a_user_is_not_that_user() {
    let upstream = Upstream::start().await;
    let named = json!([{"client_id": "alice", "client_secret": {"env": "ROBOT"}, "client_credentials": {"routes": ["demo"]}}]);
    let gateway = Gateway::builder()
        .route(Route::oauth("demo", &upstream))
        .env("ROBOT", "pw")
        .with("oauth_server.clients.static", named)
        .start()
        .await;
    // Alice is connected.
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    assert_eq!(status(&gateway, &tokens.access_token).await, 200);
    let used = upstream.calls_with_token().len();
    let params = Params::new().with("grant_type", "client_credentials");
    let answer = form(&gateway, "/oauth/token", &params, Some(&basic("alice", "pw"))).await;
    let token = answer.0.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(status(&gateway, &token).await, 403, "it acts for nobody");
    assert_eq!(upstream.calls_with_token().len(), used, "her token is not used for it");
}

#[tokio::test]
async fn sr_as_36_a_listed_client_gets_tokens_for_itself_at_its_routes() {
    let (upstream, other) = (Upstream::open().await, Upstream::open().await);
    let robot = |routes: Value| json!([{"client_id": "robot", "client_secret": {"env": "ROBOT"}, "client_credentials": {"routes": routes}}]);
    let gateway = builder(&upstream)
        .route(Route::open("other", &other))
        .env("ROBOT", "pw")
        .with("oauth_server.clients.static", robot(json!(["demo"])))
        .start()
        .await;
    let ask = async |params: Params, authorization: &str| {
        let params = params.with("grant_type", "client_credentials");
        form(&gateway, "/oauth/token", &params, Some(authorization)).await
    };
    let robot_is = basic("robot", "pw");
    let answer = ask(Params::new(), &robot_is).await;
    let body = answer.0.json();
    assert_eq!(
        (answer.status(), body["token_type"].as_str(), body["scope"].as_str()),
        (200, Some("Bearer"), Some("mcp:access"))
    );
    assert!(body.get("refresh_token").is_none(), "it can come again");
    let token = body["access_token"].as_str().unwrap().to_owned();
    assert_eq!(status(&gateway, &token).await, 200);
    let elsewhere = gateway.mcp("other").bearer(&token).tool("echo", json!({})).await;
    assert_eq!(elsewhere.status, 401, "a token works on its route alone");
    let resource = |route: &str| Params::new().with("resource", &gateway.url(&format!("/{route}")));
    assert_eq!(ask(resource("demo"), &robot_is).await.status(), 200);
    assert_refused(&ask(resource("other"), &robot_is).await, 400, "invalid_target");
    assert_refused(&ask(Params::new().with("scope", "admin"), &robot_is).await, 400, "invalid_scope");
    assert_refused(&ask(Params::new(), &basic("robot", "x")).await, 401, "invalid_client");
    // Clients of people may not.
    let client = Client::register(&gateway).await;
    let params = Params::new().with("grant_type", "client_credentials").with("client_id", &client.id);
    assert_refused(&client.token(&params).await, 400, "unauthorized_client");
    // What the operator takes away is gone at once.
    gateway.reconfigure("oauth_server.clients.static", robot(json!(["other"])));
    gateway.hang_up();
    eventually(SECOND, async || status(&gateway, &token).await == 401).await;
    gateway.reconfigure("oauth_server.clients.static", json!([]));
    gateway.hang_up();
    eventually(SECOND, async || ask(Params::new(), &robot_is).await.status() == 401).await;
}

async fn service_accounts(gateway: &Gateway, words: &[&str]) -> (Option<i32>, String) {
    let file = gateway.config_file();
    let finished =
        run(&[&["service-accounts"], words, &["--config", file.to_str().unwrap()]].concat(), &[]).await;
    (finished.code, finished.stdout + &finished.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pom_40_a_service_account_calls_without_people_until_it_is_taken_back() {
    let (redis, upstream, open) = (Redis::start(&[]), Upstream::start().await, Upstream::open().await);
    let routes = vec![Route::oauth("demo", &upstream), Route::open("open", &open)];
    let cluster = Cluster::of(2, Shared::new(store_at(address_of(&redis)), routes)).await;
    let gateway = &cluster.instances[0];
    let (_, alice) = cluster.sign_in(0).await;
    assert_eq!(cluster.call(0, &alice).tool("whoami", json!({})).await.status, 200);

    for (words, said) in [
        (&["create", "bot", "--route", "nowhere"][..], "there is no route nowhere"),
        (&["create", "bot", "--route", "demo", "--acts-for", "mallory"], "there is no user mallory"),
        (&["create", "b ot", "--route", "demo"], "letters, digits"),
        (&["create", "bot", "--route", "demo", "--expires", "0s"], "from one second to ten years"),
    ] {
        let (code, text) = service_accounts(gateway, words).await;
        assert!(code != Some(0) && text.contains(said), "{words:?}: {text}");
    }
    let create = async |words: &[&str]| {
        let (code, text) = service_accounts(gateway, &[&["create"], words].concat()).await;
        assert_eq!(code, Some(0), "{text}");
        assert!(text.starts_with("postern_st_") && text.lines().count() == 1, "{text}");
        text
    };
    let bot = create(&["bot", "--route", "demo", "--acts-for", "alice"]).await;
    let alone = create(&["alone", "--route", "demo", "--route", "open"]).await;
    let brief = create(&["brief", "--route", "open", "--expires", "2s"]).await;
    let call = async |instance: usize, route: &str, token: &str| {
        cluster.instances[instance].mcp(route).bearer(token).tool("whoami", json!({})).await
    };
    for instance in 0..2 {
        eventually(SECOND, async || call(instance, "demo", &bot).await.status == 200).await;
        assert_eq!(call(instance, "open", &bot).await.status, 401, "not its route");
        assert_eq!(call(instance, "open", &alone).await.status, 200);
        // Nobody's connections: no challenge that a program would follow for ever.
        let refused = call(instance, "demo", &alone).await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (403, None), "{}", refused.body);
    }
    assert_eq!(upstream.authorization.token_requests("authorization_code").len(), 1, "Alice's connection");
    for bad in [&bot[..bot.len() - 1], &format!("{bot}x"), "postern_st_", &bot.to_uppercase(), &bot[1..]] {
        assert_eq!(call(0, "demo", bad).await.status, 401, "{bad}");
    }
    let (_, list) = service_accounts(gateway, &["list"]).await;
    assert!(list.contains("bot\tdemo\talice\t") && list.contains("alone\tdemo,open\t-\t"), "{list}");
    let (code, text) = service_accounts(gateway, &["create", "bot", "--route", "open"]).await;
    assert!(code == Some(1) && text.contains("there is a service account bot already"), "{text}");
    eventually(3 * SECOND, async || call(0, "open", &brief).await.status == 401).await;

    // A restart forgets nothing; who is blocked is blocked for programs too; what is taken back is gone.
    let file = gateway.config_file();
    let users =
        async |word: &str| run(&["users", word, "alice", "--config", file.to_str().unwrap()], &[]).await.code;
    assert_eq!(users("block").await, Some(0));
    for instance in 0..2 {
        eventually(SECOND, async || call(instance, "demo", &bot).await.status == 401).await;
    }
    assert_eq!(users("unblock").await, Some(0));
    eventually(SECOND, async || call(1, "demo", &bot).await.status == 200).await;
    assert_eq!(service_accounts(gateway, &["revoke", "bot"]).await.0, Some(0));
    for instance in 0..2 {
        eventually(SECOND, async || call(instance, "demo", &bot).await.status == 401).await;
    }
    assert_eq!(service_accounts(gateway, &["revoke", "bot"]).await.0, Some(1));
    let mut cluster = cluster;
    cluster.instances[1].restart().await;
    let again = cluster.instances[1].mcp("open").bearer(&alone).tool("echo", json!({})).await;
    assert_eq!(again.status, 200);
    for instance in &cluster.instances {
        assert!(!instance.output.text().contains(&alone), "a token in the log");
    }
}

#[tokio::test]
async fn a_client_may_act_for_a_user_where_the_configuration_says_so() {
    let upstream = Upstream::start().await;
    let robot = |machine: Value| json!([{"client_id": "robot", "client_secret": {"env": "ROBOT"}, "client_credentials": machine}]);
    let gateway = Gateway::builder()
        .route(Route::oauth("demo", &upstream))
        .env("ROBOT", "pw")
        .with("oauth_server.clients.static", robot(json!({"routes": ["demo"], "acts_for": "alice"})))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let _: Tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let params = Params::new().with("grant_type", "client_credentials");
    let answer = form(&gateway, "/oauth/token", &params, Some(&basic("robot", "pw"))).await;
    let token = answer.0.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(status(&gateway, &token).await, 200);
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    feed.event("before");
    let mut stream = gateway.mcp("demo").bearer(&token).events().await;
    assert_eq!(stream.next(PATIENCE).await.unwrap().data, "before");
    // From then on it acts for nobody: no tokens of Alice's go out for it any more.
    gateway.reconfigure("oauth_server.clients.static", robot(json!({"routes": ["demo"]})));
    gateway.hang_up();
    eventually(SECOND, async || status(&gateway, &token).await == 403).await;
    feed.event("after");
    assert!(stream.next(PATIENCE).await.is_none(), "what began with her token says no more");
}

// === floods ===

/// How many there are: `short` meets the bounds; with `POSTERN_SOAK=1` it is a flood.
fn flood(short: usize) -> usize {
    if std::env::var_os("POSTERN_SOAK").is_some() { 100_000 } else { short }
}

/// Alice's browser, signed in and nothing else.
async fn signed_in(gateway: &Gateway) -> Browser {
    let mut browser = Browser::new();
    let page = browser.go(&gateway.url("/login")).await.page();
    browser.sign_in(&page).await;
    browser
}

/// Resident memory of the gateway, MiB.
fn memory(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process_id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

#[tokio::test]
async fn sr_as_62_a_flood_of_registrations_is_held_up_and_costs_nobody_anything() {
    let upstream = Upstream::open().await;
    let gateway = builder(&upstream).start().await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let (count, begun, before) = (flood(1_300), std::time::Instant::now(), memory(&gateway));
    let (mut made, mut refused) = (0, 0);
    for first in (0..count).step_by(50) {
        let several = (first..first + 50).map(async |number| {
            let document = json!({"client_name": format!("Flood {number}"), "redirect_uris": [CALLBACK]});
            Client::register_with(&gateway, &document).await
        });
        for answer in futures_util::future::join_all(several).await {
            match answer.status {
                201 => made += 1,
                429 => {
                    refused += 1;
                    assert_eq!(answer.header("retry-after"), Some("60"));
                }
                status => panic!("{status}: {}", answer.body),
            }
        }
    }
    // A thousand at once, and one per second then.
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!(made >= 900 && made <= 1_001 + seconds, "{made} made, {refused} refused in {seconds} s");
    assert!(memory(&gateway) < before + 100, "{} MiB, {before} before", memory(&gateway));
    // Who is known is not held up, nor is whoever registers the same once more.
    let again = json!({"client_name": "Flood 1", "redirect_uris": [CALLBACK]});
    assert_eq!(Client::register_with(&gateway, &again).await.status, 201);
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
    assert_eq!(status(&gateway, &tokens.access_token).await, 200);
}

#[tokio::test]
async fn sr_t07_a_flood_of_authorizations_of_one_user_holds_up_only_that_user() {
    let upstream = Upstream::open().await;
    let gateway = builder(&upstream).start().await;
    let client = Client::register(&gateway).await;
    let mut flooded = signed_in(&gateway).await;
    let first = client.authorization("demo");
    let page = flooded.go_to_consent(&client.redirect_uri, &first.url()).await;
    let mut statuses = Vec::new();
    let before = memory(&gateway);
    for _ in 0..flood(130) {
        statuses.push(flooded.go(&client.authorization("demo").url()).await.page().status);
    }
    assert!(statuses.contains(&503), "held up");
    assert!(memory(&gateway) < before + 100, "{} MiB, {before} before", memory(&gateway));
    // What was begun before goes on, and so does everybody else.
    flooded.consent_allow(&page).await.client();
    client.sign_in(&mut Browser::of("bob"), "demo").await;
}

#[tokio::test]
async fn sr_t07_a_flood_of_consents_is_held_up_with_the_questions() {
    let upstream = Upstream::open().await;
    let gateway = builder(&upstream).start().await;
    let client = Client::register(&gateway).await;
    let mut flooded = signed_in(&gateway).await;
    flooded.stop_before(&client.redirect_uri);
    let (begun, before) = (std::time::Instant::now(), memory(&gateway));
    let mut given = 0;
    for _ in 0..flood(150) {
        let page = flooded.go(&client.authorization("demo").with("prompt", "consent").url()).await.page();
        if page.status == 200 {
            flooded.consent_allow(&page).await.client();
            given += 1;
        }
    }
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!(given >= 90 && given <= 101 + seconds, "{given} in {seconds} s");
    assert!(memory(&gateway) < before + 100, "{} MiB, {before} before", memory(&gateway));
    client.sign_in(&mut Browser::of("bob"), "demo").await;
}
