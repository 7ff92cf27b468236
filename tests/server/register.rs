//! What the authorization server says about itself, and how clients become known to it: metadata, dynamic
//! registration (RFC 7591) and client ID metadata documents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern::config::Cimd;
use postern::oauth::server::client::ClientError;
use postern::oauth::server::client::document::Documents;
use postern::outbound::{Outbound, Settings};
use serde_json::{Value, json};
use support::body::endless;
use support::browser::{Arrival, Browser, Page};
use support::cimd::ClientDocuments;
use support::client::{ACCESS_SCOPE, Client};
use support::gate::Gate;
use support::gateway::{Builder, Gateway, Route};
use support::html::meta_refresh;
use support::mcp::McpAnswer;
use support::params::Params;
use support::raw::{RawConnection, exchange};
use support::server::Server;
use support::upstream::Upstream;
use support::{PATIENCE, eventually, within};

const METADATA: &str = "/.well-known/oauth-authorization-server";
const OPENID: &str = "/.well-known/openid-configuration";

/// What may never become a redirect URI, however it is offered (T15).
const BAD_REDIRECT_URIS: [&str; 25] = [
    "",
    "/callback",
    "callback",
    "http://client.example/cb",
    "http://10.0.0.1/cb",
    "https://client.example/cb#fragment",
    "https://client.example/cb#",
    "https://user@client.example/cb",
    "https://user:password@client.example/cb",
    "https://client.example/*",
    "https://*.example/cb",
    "https://client.example/a/../cb",
    "https://client.example/%2e%2e/cb",
    "https://good.example\\@evil.example/cb",
    "https:client.example/cb",
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "java\nscript:alert(1)",
    "\tjavascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:x",
    "file:///etc/passwd",
    "http://2130706433/cb",
    "http://127.0.0.1.evil.example/cb",
    "http://[::ffff:127.0.0.1]/cb",
];

async fn get(gateway: &Gateway, path: &str) -> McpAnswer {
    McpAnswer::of(gateway.http.get(gateway.url(path)).send().await.unwrap()).await
}

/// A gateway with one route `demo` that needs no authorization upstream.
fn open(upstream: &Upstream) -> Builder {
    Gateway::builder().route(Route::open("demo", upstream))
}

/// The same, and client documents may lie on loopback.
async fn reading_documents(upstream: &Upstream) -> Gateway {
    let allowed = json!({"enabled": true, "allow_private": true});
    open(upstream).with("oauth_server.clients.cimd", allowed).start().await
}

/// What a fresh browser sees at the authorization endpoint when it follows nothing.
async fn ask(client: &Client) -> Page {
    Browser::new().peek(&client.authorization("demo").url()).await
}

/// Said to the user and nobody else.
#[track_caller]
fn assert_local(page: &Page, status: u16, about: &str) {
    assert_eq!(page.status, status, "{about}: {}", page.text());
    assert_eq!(page.header("location"), None, "{about}");
    assert_eq!(meta_refresh(&page.body), None, "{about}");
}

/// Known well enough to be asked to sign in.
#[track_caller]
fn assert_known(page: &Page) {
    let next = page.header("location").unwrap_or_default();
    assert!(page.status == 303 && next.starts_with("/login?"), "{} {}", page.status, page.text());
}

// === metadata ===

const METHODS: [&str; 4] = ["none", "client_secret_basic", "client_secret_post", "private_key_jwt"];

#[tokio::test]
async fn sr_as_01_sr_as_02_the_metadata_lists_exactly_what_there_is() {
    let upstream = Upstream::open().await;
    let second = Route::open("second", &upstream).with("scopes", json!(["second:read"]));
    let gateway = open(&upstream).route(second).start().await;
    let answer = get(&gateway, METADATA).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let expected = json!({
        "issuer": gateway.public_url,
        "authorization_endpoint": gateway.url("/oauth/authorize"),
        "token_endpoint": gateway.url("/oauth/token"),
        "registration_endpoint": gateway.url("/oauth/register"),
        "revocation_endpoint": gateway.url("/oauth/revoke"),
        "jwks_uri": gateway.url("/oauth/jwks.json"),
        "scopes_supported": [ACCESS_SCOPE, "profile", "second:read"],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "token_endpoint_auth_methods_supported": METHODS,
        "token_endpoint_auth_signing_alg_values_supported": ["ES256", "ES384", "EdDSA", "RS256", "PS256"],
        "revocation_endpoint_auth_methods_supported": METHODS,
        "revocation_endpoint_auth_signing_alg_values_supported": ["ES256", "ES384", "EdDSA", "RS256", "PS256"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
        "client_id_metadata_document_supported": true,
    });
    assert_eq!(answer.json(), expected);
    let mut openid = get(&gateway, OPENID).await.json();
    let extra = openid.as_object_mut().unwrap();
    assert_eq!(extra.remove("userinfo_endpoint"), Some(json!(gateway.url("/oauth/userinfo"))));
    assert_eq!(extra.remove("subject_types_supported"), Some(json!(["public"])));
    // Clients insist on the member, but no ID token is ever issued.
    assert_eq!(extra.remove("id_token_signing_alg_values_supported"), Some(json!([])));
    assert_eq!(openid, expected);
}

#[tokio::test]
async fn sr_as_03_what_is_listed_works_and_what_is_not_listed_is_refused() {
    let upstream = Upstream::open().await;
    let gateway = open(&upstream).start().await;
    let metadata = get(&gateway, METADATA).await.json();
    let at = |name: &str| metadata[name].as_str().unwrap().strip_prefix(&gateway.public_url).unwrap();
    assert_eq!(get(&gateway, at("jwks_uri")).await.json(), json!({"keys": []}));
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let tokens = client.refresh(&tokens.refresh_token).await.tokens();
    assert_eq!(client.revoke(&tokens.refresh_token).await.status, 200);
    assert_eq!(at("authorization_endpoint"), "/oauth/authorize");
    assert_eq!((at("token_endpoint"), at("revocation_endpoint")), ("/oauth/token", "/oauth/revoke"));

    for grant in [
        "password",
        "client_credentials",
        "implicit",
        "urn:ietf:params:oauth:grant-type:device_code",
        "urn:ietf:params:oauth:grant-type:token-exchange",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "Authorization_Code",
    ] {
        let params = client.refreshment("x").with("grant_type", grant);
        let answer = client.token(&params).await;
        assert_eq!(
            (answer.status(), answer.error().as_deref()),
            (400, Some("unsupported_grant_type")),
            "{grant}"
        );
    }
    for path in ["/oauth/introspect", "/oauth/device", "/oauth/par"] {
        let answer = client.form(path, &Params::new().with("token", &tokens.access_token)).await;
        assert_eq!(answer.status, 404, "{path}");
    }
    for document in ["/.well-known/oauth-authorization-server/demo", "/.well-known/webfinger"] {
        assert_eq!(get(&gateway, document).await.status, 404, "{document}");
    }
}

#[tokio::test]
async fn sr_as_02_pom_03_what_is_switched_off_is_neither_listed_nor_done() {
    let upstream = Upstream::open().await;
    let documents = ClientDocuments::start().await;
    let clients = json!({"cimd": {"enabled": false, "allow_private": true}, "dcr": {"enabled": false}});
    let gateway = open(&upstream).with("oauth_server.clients", clients).start().await;
    for path in [METADATA, OPENID] {
        let metadata = get(&gateway, path).await.json();
        assert_eq!(metadata.get("registration_endpoint"), None, "{path}");
        assert_eq!(metadata["client_id_metadata_document_supported"], false, "{path}");
    }
    let refused =
        Client::register_with(&gateway, &json!({"redirect_uris": ["https://client.example/cb"]})).await;
    assert_eq!((refused.status, &refused.json()["error"]), (400, &json!("access_denied")));
    assert_local(&ask(&documents.client(&gateway)).await, 400, "a document");
    assert_eq!(documents.server.connections_opened(), 0);
}

#[tokio::test]
async fn sr_as_05_the_metadata_do_not_repeat_what_a_request_says_about_us() {
    let upstream = Upstream::open().await;
    let gateway = open(&upstream).start().await;
    let (plain, address) = (get(&gateway, METADATA).await.body, gateway.address);
    let forwarded = format!(
        "GET {METADATA} HTTP/1.1\r\nhost: {address}\r\nx-forwarded-host: evil.test\r\nx-forwarded-proto: https\r\n\
         x-forwarded-port: 1\r\nforwarded: host=evil.test;proto=https\r\nx-original-host: evil.test\r\n\r\n"
    );
    let answer = exchange(address, forwarded, PATIENCE).await.unwrap();
    assert_eq!((answer.status, answer.text()), (200, plain.clone()));
    let hosted = format!("GET {METADATA} HTTP/1.1\r\nhost: evil.test\r\n\r\n");
    let answer = exchange(address, hosted, PATIENCE).await.unwrap();
    assert!(!answer.text().contains("evil.test"), "{}", answer.text());
    assert!(answer.status >= 400 || answer.text() == plain);
}

// === dynamic registration ===

#[tokio::test]
async fn sr_as_60_pom_05_a_registration_says_what_is_in_force() {
    let upstream = Upstream::open().await;
    let gateway = open(&upstream).start().await;
    let asked = json!({
        "client_name": "Editor",
        "redirect_uris": ["https://client.example/cb", "http://127.0.0.1:3334/callback"],
        "grant_types": ["authorization_code", "refresh_token", "implicit"],
        "response_types": ["code"],
        "scope": "everything",
        "application_type": "native",
        "unknown": {"member": true},
    });
    let answer = Client::register_with(&gateway, &asked).await;
    assert_eq!((answer.status, answer.header("cache-control")), (201, Some("no-store")));
    assert_eq!(answer.header("pragma"), Some("no-cache"));
    let mut registered = answer.json();
    let members = registered.as_object_mut().unwrap();
    let id = members.remove("client_id").unwrap();
    assert!(id.as_str().unwrap().len() >= 20, "{id}");
    assert!(members.remove("client_id_issued_at").unwrap().as_u64().unwrap() > 1_700_000_000);
    // Nothing about what we do not keep, and no secret: without a wish a client is public.
    let in_force = json!({
        "client_name": "Editor",
        "redirect_uris": ["https://client.example/cb", "http://127.0.0.1:3334/callback"],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
    });
    assert_eq!(registered, in_force);
    let again = Client::register_with(&gateway, &asked).await.json();
    assert_eq!(again["client_id"], id, "a public client is its metadata");
    let mut other = asked.clone();
    other["client_name"] = "Another editor".into();
    assert_ne!(Client::register_with(&gateway, &other).await.json()["client_id"], id);
    let client = Client::known_as(&gateway, id.as_str().unwrap(), "https://client.example/cb");
    client.sign_in(&mut Browser::new(), "demo").await;
}

#[tokio::test]
async fn sr_as_61_acceptable_redirect_uris_are_registered() {
    let upstream = Upstream::open().await;
    let gateway = open(&upstream).start().await;
    for uri in [
        "https://client.example/cb",
        "https://client.example:8443/cb?tenant=1",
        "https://client.example",
        "http://127.0.0.1/cb",
        "http://127.0.0.1:33418",
        "http://[::1]:4000/cb",
        "http://localhost:6274/oauth/callback",
    ] {
        let answer = Client::register_with(&gateway, &json!({"redirect_uris": [uri]})).await;
        assert_eq!(answer.status, 201, "{uri}: {}", answer.body);
        let client = Client::known_as(&gateway, answer.json()["client_id"].as_str().unwrap(), uri);
        assert_known(&ask(&client).await);
    }
}

#[tokio::test]
async fn sr_t15_dangerous_redirect_uris_are_not_registered() {
    let upstream = Upstream::open().await;
    let gateway = open(&upstream).start().await;
    let long = format!("https://client.example/{}", "x".repeat(2048));
    for uri in BAD_REDIRECT_URIS.into_iter().chain([long.as_str()]) {
        // One bad one among good ones is enough.
        for uris in [json!([uri]), json!(["https://client.example/cb", uri])] {
            let answer = Client::register_with(&gateway, &json!({"redirect_uris": uris})).await;
            assert_eq!(
                (answer.status, &answer.json()["error"]),
                (400, &json!("invalid_redirect_uri")),
                "{uri:?}"
            );
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
    }
}

#[tokio::test]
async fn sr_as_61_unusable_metadata_are_refused() {
    let upstream = Upstream::open().await;
    let gateway = open(&upstream).start().await;
    let uris = json!(["https://client.example/cb"]);
    let many: Vec<String> = (0..33).map(|n| format!("https://client.example/{n}")).collect();
    for (document, error) in [
        (json!({}), "invalid_redirect_uri"),
        (json!({"redirect_uris": []}), "invalid_redirect_uri"),
        (json!({"redirect_uris": many}), "invalid_redirect_uri"),
        (json!({"redirect_uris": "https://client.example/cb"}), "invalid_client_metadata"),
        (json!({"redirect_uris": [1]}), "invalid_client_metadata"),
        (json!({"redirect_uris": uris, "client_name": ["x"]}), "invalid_client_metadata"),
        (json!({"redirect_uris": uris, "client_name": "x".repeat(20_000)}), "invalid_client_metadata"),
        (json!({"redirect_uris": uris, "grant_types": ["client_credentials"]}), "invalid_client_metadata"),
        (json!({"redirect_uris": uris, "grant_types": []}), "invalid_client_metadata"),
        (json!({"redirect_uris": uris, "response_types": ["token"]}), "invalid_client_metadata"),
        (json!({"redirect_uris": uris, "software_statement": "e30.e30."}), "invalid_client_metadata"),
        (json!([]), "invalid_client_metadata"),
        (json!("client"), "invalid_client_metadata"),
    ] {
        let answer = Client::register_with(&gateway, &document).await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!(error)), "{document}");
    }
    let post = async |kind: &str, body: String| {
        let request = gateway.http.post(gateway.url("/oauth/register"));
        McpAnswer::of(request.header("content-type", kind).body(body).send().await.unwrap()).await
    };
    let good = json!({"redirect_uris": uris}).to_string();
    assert_eq!(post("Application/JSON; charset=utf-8", good.clone()).await.status, 201);
    for (kind, body) in [
        ("application/json", "{\"redirect_uris\": ["),
        ("application/json", ""),
        ("text/plain", good.as_str()),
        ("application/x-www-form-urlencoded", "redirect_uris=https://client.example/cb"),
    ] {
        let answer = post(kind, body.into()).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (400, &json!("invalid_client_metadata")),
            "{kind} {body}"
        );
    }
    assert_eq!(post("application/json", " ".repeat(100_000)).await.status, 413);
    assert_eq!(get(&gateway, "/oauth/register").await.status, 405);
}

#[tokio::test]
async fn sr_t09_what_a_client_says_about_itself_stays_text() {
    let (upstream, site) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = open(&upstream).start().await;
    for name in [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "</title></bdi><meta http-equiv=refresh content='0;url=https://evil.test'>",
        "Good\u{202e}live\u{200b} client\u{0}\u{7}",
        "{{ csrf }}",
    ] {
        let document = json!({
            "client_name": name,
            "redirect_uris": ["https://client.example/cb?a=%3Cscript%3E"],
            "logo_uri": format!("{}/logo.png", site.origin),
            "client_uri": "javascript:alert(1)",
            "policy_uri": "https://evil.test/policy",
            "jwks_uri": format!("{}/keys.json", site.origin),
        });
        let answer = Client::register_with(&gateway, &document).await;
        assert_eq!(answer.status, 201, "{name}: {}", answer.body);
        assert_eq!((answer.json().get("logo_uri"), answer.json().get("client_uri")), (None, None));
        let id = answer.json()["client_id"].as_str().unwrap().to_owned();
        let client = Client::known_as(&gateway, &id, "https://client.example/cb?a=%3Cscript%3E");
        let url = client.authorization("demo").url();
        let page = Browser::new().go_to_consent(&client.redirect_uri, &url).await;
        let body = page.body.to_lowercase();
        for bad in [
            "<script",
            "<img",
            "onerror=alert(1)>",
            "javascript:",
            "evil.test\"",
            "logo.png",
            "\u{202e}",
            "\u{200b}",
        ] {
            assert!(!body.contains(bad), "{name}: {bad}: {}", page.body);
        }
        assert_eq!(meta_refresh(&page.body), None, "{name}");
        assert_eq!(page.forms().len(), 1);
        let loaded: Vec<&str> = body
            .split(['"', '\''])
            .zip(body.split(['"', '\'']).skip(1))
            .filter(|(before, _)| before.ends_with("src=") || before.ends_with("href="))
            .map(|(_, value)| value)
            .collect();
        assert_eq!(loaded, ["/oauth/style.css"]);
        assert!(page.text().contains("Identity not verified"), "{}", page.text());
    }
    assert_eq!(site.server.connections_opened(), 0, "nothing of it is fetched");
}

#[tokio::test]
async fn a_registration_survives_a_crash() {
    let upstream = Upstream::open().await;
    let mut gateway = open(&upstream).start().await;
    let client = Client::register(&gateway).await;
    gateway.kill9().await;
    gateway.restart().await;
    client.sign_in(&mut Browser::new(), "demo").await;
}

// === client documents ===

#[tokio::test]
async fn sr_as_70_a_client_is_known_by_its_document_which_is_read_once() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    let client = documents.client(&gateway);
    let mut browser = Browser::new();
    let page = browser.go_to_consent(&client.redirect_uri, &client.authorization("demo").url()).await;
    let text = page.text();
    assert!(text.contains("Who is asking 127.0.0.1"), "{text}");
    assert!(text.contains("It calls itself “ Rig document client ”"), "{text}");
    let tokens = client.sign_in(&mut browser, "demo").await;
    let call = gateway.mcp("demo").bearer(&tokens.access_token);
    assert_eq!(call.tool("echo", json!({"text": "x"})).await.status, 200);
    client.refresh(&tokens.refresh_token).await.tokens();
    assert_eq!(documents.reads("/client.json"), 1);
    let read = documents.requests.last_to("/client.json");
    for name in ["cookie", "authorization", "referer"] {
        assert_eq!(read.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn sr_as_70_a_document_without_what_it_needs_is_refused() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    let uri = "https://client.example/cb";
    let good = |id: &str| json!({"client_id": id, "client_name": "x", "redirect_uris": [uri], "token_endpoint_auth_method": "none"});
    let id = |path: &str| format!("{}{path}", documents.origin);
    let refused = async |id: String| {
        assert_local(&ask(&Client::known_as(&gateway, &id, uri)).await, 400, &id);
    };
    documents.publish_document("/good", &good(&id("/good")));
    assert_known(&ask(&Client::known_as(&gateway, &id("/good"), uri)).await);

    // The id is compared as a string.
    for (path, written) in [
        ("/other", id("/good")),
        ("/slash", id("/slash/")),
        ("/case", id("/CASE")),
        ("/localhost", id("/localhost").replace("127.0.0.1", "localhost")),
        ("/query", id("/query?")),
        ("/empty", String::new()),
    ] {
        refused(documents.publish_document(path, &good(&written))).await;
    }
    for (path, member, value) in [
        ("/no-id", "client_id", Value::Null),
        ("/no-name", "client_name", Value::Null),
        ("/no-uris", "redirect_uris", Value::Null),
        ("/empty-uris", "redirect_uris", json!([])),
        ("/uri-text", "redirect_uris", json!(uri)),
        ("/post", "token_endpoint_auth_method", json!("client_secret_post")),
        ("/basic", "token_endpoint_auth_method", json!("client_secret_basic")),
        ("/jwt", "token_endpoint_auth_method", json!("client_secret_jwt")),
        ("/secret", "client_secret", json!("hush")),
        ("/secret-end", "client_secret_expires_at", json!(0)),
    ] {
        let mut document = good(&id(path));
        document[member] = value.clone();
        if value.is_null() {
            document.as_object_mut().unwrap().remove(member);
        }
        refused(documents.publish_document(path, &document)).await;
    }
    let json_type = ("content-type", "application/json");
    let body = |path: &str| good(&id(path)).to_string();
    refused(documents.publish_answer("/html", 200, &[("content-type", "text/html")], &body("/html"))).await;
    refused(documents.publish_answer("/untyped", 200, &[], &body("/untyped"))).await;
    refused(documents.publish_answer("/broken", 200, &[json_type], "{\"client_id\":")).await;
    refused(documents.publish_answer("/array", 200, &[json_type], "[]")).await;
    refused(documents.publish_answer("/created", 201, &[json_type], &body("/created"))).await;
    refused(documents.publish_answer("/gone", 410, &[json_type], &body("/gone"))).await;
    refused(id("/nowhere")).await;
}

#[tokio::test]
async fn sr_t15_a_document_cannot_bring_dangerous_redirect_uris() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    for (number, uri) in BAD_REDIRECT_URIS.into_iter().enumerate() {
        let id = documents.publish(&format!("/{number}"), uri);
        assert_local(&ask(&Client::known_as(&gateway, &id, uri)).await, 400, uri);
        assert_eq!(documents.reads(&format!("/{number}")), 1);
    }
}

#[tokio::test]
async fn sr_as_70_a_redirect_to_a_document_is_not_followed() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    let uri = "https://client.example/cb";
    let target = documents.publish("/target", uri);
    for status in [301, 302, 303, 307, 308] {
        let path = format!("/moved-{status}");
        let id = documents.publish_answer(&path, status, &[("location", target.as_str())], "");
        assert_local(&ask(&Client::known_as(&gateway, &id, uri)).await, 400, &path);
        assert_eq!(documents.reads(&path), 1);
    }
    assert_eq!(documents.reads("/target"), 0);
}

#[tokio::test]
async fn sr_as_70_a_client_id_url_has_one_reading() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    let port = documents.server.address.port();
    for id in [
        format!("http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}/"),
        format!("http://127.0.0.1:{port}/a#b"),
        format!("http://user@127.0.0.1:{port}/a"),
        format!("http://127.0.0.1:{port}/a/../b"),
        format!("http://127.0.0.1:{port}/%2e%2e/b"),
        format!("http://127.0.0.1:{port}/a b"),
        format!("http://127.1:{port}/a"),
        format!("http://2130706433:{port}/a"),
        format!("http://127.0.0.1:{port}\\a"),
        format!("http://client.example:{port}/a"),
        "https://".into(),
        "https://client.example".into(),
    ] {
        let client = Client::known_as(&gateway, &id, "https://client.example/cb");
        assert_local(&ask(&client).await, 400, &id);
    }
    assert_eq!(documents.server.connections_opened(), 0);
}

#[tokio::test]
async fn sr_as_70_private_addresses_are_not_asked_for_documents() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = open(&upstream).start().await;
    let port = documents.server.address.port();
    for id in [
        format!("http://127.0.0.1:{port}/client.json"),
        format!("https://127.0.0.1:{port}/client.json"),
        format!("https://127.8.8.8:{port}/client.json"),
        format!("https://localhost:{port}/client.json"),
        format!("https://[::1]:{port}/client.json"),
        format!("https://[::ffff:7f00:1]:{port}/client.json"),
        format!("https://[64:ff9b::7f00:1]:{port}/client.json"),
        format!("https://0.0.0.0:{port}/client.json"),
        "https://10.0.0.1/client.json".into(),
        "https://192.168.0.1/client.json".into(),
        "https://169.254.169.254/latest/meta-data".into(),
        "https://[fd00::1]/client.json".into(),
        "https://[fe80::1]/client.json".into(),
        "https://100.64.0.1/client.json".into(),
    ] {
        let client = Client::known_as(&gateway, &id, "https://client.example/cb");
        assert_local(&ask(&client).await, 400, &id);
    }
    assert_eq!(documents.server.connections_opened(), 0);
}

#[tokio::test]
async fn sr_as_71_a_document_out_of_reach_is_not_a_client_unknown() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    let uri = "https://client.example/cb";
    let known = Client::known_as(&gateway, &documents.publish("/known", uri), uri);
    assert_known(&ask(&known).await);
    let later = async |path: &str| {
        let page = ask(&Client::known_as(&gateway, &format!("{}{path}", documents.origin), uri)).await;
        assert_local(&page, 503, path);
        assert!(page.header("retry-after").is_some(), "{path}");
    };
    for status in [500, 502, 503, 504, 429] {
        let path = format!("/{status}");
        documents.publish_answer(&path, status, &[("content-type", "application/json")], "{}");
        later(&path).await;
    }
    documents.server.stop();
    later("/nobody-listens").await;
    // Once read it is remembered, whatever becomes of it.
    assert_known(&ask(&known).await);
}

/// The clock of the program cannot be moved from outside, so this drives the same function with one that can.
#[tokio::test]
async fn sr_as_71_what_is_remembered_of_a_document_ends_in_time() {
    let documents = ClientDocuments::start().await;
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let settings = Settings { ca_certificates: Vec::new(), forbidden: Vec::new(), ..Settings::default() };
    let outbound = Outbound::new(settings).unwrap();
    let cimd = Cimd { enabled: true, allow_private: true, allow_hosts: Vec::new(), deny_hosts: Vec::new() };
    let known = Documents::default();
    let find = async |path: &str, seconds: u64| {
        let (id, now) = (format!("{}{path}", documents.origin), start + Duration::from_secs(seconds));
        known.find(&outbound, &cimd, &id, now).await
    };
    let publish = |path: &str, cache: &[(&str, &str)]| {
        let id = format!("{}{path}", documents.origin);
        let body =
            json!({"client_id": id, "client_name": "x", "redirect_uris": ["https://client.example/cb"]});
        let headers = [&[("content-type", "application/json")], cache].concat();
        documents.publish_answer(path, 200, &headers, &body.to_string());
    };
    // How long, in seconds: at least a minute, at most a day.
    for (path, cache, remembered) in [
        ("/silent", &[][..], 300),
        ("/short", &[("cache-control", "max-age=5")], 60),
        ("/never", &[("cache-control", "no-store")], 60),
        ("/hour", &[("cache-control", "public, max-age=3600")], 3600),
        ("/year", &[("cache-control", "max-age=31536000")], 86_400),
    ] {
        publish(path, cache);
        for (at, reads) in [(0, 1), (remembered - 1, 1), (remembered, 2)] {
            assert!(find(path, at).await.is_ok(), "{path}");
            assert_eq!(documents.reads(path), reads, "{path} after {at} seconds");
        }
    }
    // What failed gets a new chance within a minute.
    documents.publish_answer("/down", 503, &[], "");
    assert!(matches!(find("/down", 0).await, Err(ClientError::Unavailable)));
    assert!(matches!(find("/absent", 0).await, Err(ClientError::Document(_))));
    for path in ["/down", "/absent"] {
        publish(path, &[]);
        assert!(find(path, 60).await.is_ok(), "{path}");
    }
    // A host that does not answer costs a client nothing for a week; one that says no does.
    const DAY: u64 = 86_400;
    documents.publish_answer("/down", 503, &[], "");
    assert!(find("/down", DAY).await.is_ok());
    assert!(find("/down", 6 * DAY).await.is_ok());
    assert!(matches!(find("/down", 8 * DAY).await, Err(ClientError::Unavailable)));
    documents.publish_answer("/absent", 404, &[], "");
    assert!(matches!(find("/absent", DAY).await, Err(ClientError::Document(_))));
}

#[tokio::test]
async fn sr_as_70_a_document_is_remembered_within_our_own_bounds() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    let uri = "https://client.example/cb";
    for (path, cache) in
        [("/a", "no-store"), ("/b", "max-age=0"), ("/c", "max-age=99999999999"), ("/d", "max-age=x")]
    {
        let id = format!("{}{path}", documents.origin);
        let body = json!({"client_id": id, "client_name": "x", "redirect_uris": [uri]}).to_string();
        documents.publish_answer(
            path,
            200,
            &[("content-type", "application/json"), ("cache-control", cache)],
            &body,
        );
        for _ in 0..3 {
            assert_known(&ask(&Client::known_as(&gateway, &id, uri)).await);
        }
        assert_eq!(documents.reads(path), 1, "{cache}");
    }
    // A wrong one as well, if briefly: nobody makes us fetch at will.
    let wrong = documents.publish_document("/wrong", &json!({"client_id": "x"}));
    for _ in 0..3 {
        assert_local(&ask(&Client::known_as(&gateway, &wrong, uri)).await, 400, "wrong");
    }
    assert_eq!(documents.reads("/wrong"), 1);
}

#[tokio::test]
async fn sr_as_70_many_who_ask_at_once_cause_one_fetch() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    let client = documents.client(&gateway);
    let gate = Gate::shut();
    documents.hold(&gate);
    let opening = async {
        gate.wait_for(1, PATIENCE).await;
        gate.open();
    };
    let asking = async { tokio::join!(ask(&client), ask(&client), ask(&client), ask(&client)) };
    let ((a, b, c, d), ()) = tokio::join!(asking, opening);
    [a, b, c, d].iter().for_each(assert_known);
    assert_eq!(documents.reads("/client.json"), 1);
}

#[tokio::test]
async fn sr_as_70_a_document_that_is_too_large_is_refused() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    let uri = "https://client.example/cb";
    let publish = |path: &str, padding: usize| {
        let id = format!("{}{path}", documents.origin);
        let document =
            json!({"client_id": id, "client_name": "x", "redirect_uris": [uri], "x": "x".repeat(padding)});
        documents.publish_document(path, &document)
    };
    assert_known(&ask(&Client::known_as(&gateway, &publish("/fits", 60_000), uri)).await);
    assert_local(&ask(&Client::known_as(&gateway, &publish("/large", 70_000), uri)).await, 400, "large");
}

#[tokio::test]
async fn sr_as_70_a_document_without_end_is_refused() {
    let upstream = Upstream::open().await;
    let endless = Server::start(|_, _| async {
        let body = endless(Arc::default());
        let answer = axum::response::Response::builder().header("content-type", "application/json");
        answer.body(body).unwrap()
    })
    .await;
    let gateway = reading_documents(&upstream).await;
    let id = format!("http://{}/client.json", endless.address);
    let client = Client::known_as(&gateway, &id, "https://client.example/cb");
    assert_local(&within(PATIENCE, ask(&client)).await, 400, "endless");
    eventually(PATIENCE, || async { endless.connections_open() == 0 }).await;
}

/// Takes the five seconds that a document may take.
#[tokio::test]
async fn sr_as_70_a_document_that_does_not_come_is_given_up() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    let (client, gate) = (documents.client(&gateway), Gate::shut());
    documents.hold(&gate);
    let page = within(Duration::from_secs(8), ask(&client)).await;
    assert_local(&page, 503, "silent");
}

#[tokio::test]
async fn sr_t14_a_document_client_may_use_another_loopback_port_only() {
    let (upstream, documents) = (Upstream::open().await, ClientDocuments::start().await);
    let gateway = reading_documents(&upstream).await;
    let id = documents.publish("/native.json", "http://127.0.0.1/callback");
    let client = Client::known_as(&gateway, &id, "http://127.0.0.1:51234/callback");
    client.sign_in(&mut Browser::new(), "demo").await;
    for uri in
        ["http://127.0.0.1:51234/other", "http://localhost:51234/callback", "https://evil.test/callback"]
    {
        let page = ask(&Client::known_as(&gateway, &id, uri)).await;
        assert_local(&page, 400, uri);
    }
}

#[tokio::test]
async fn sr_as_10_unknown_clients_are_told_on_a_page() {
    let upstream = Upstream::open().await;
    let gateway = open(&upstream).start().await;
    for id in ["client_unknown", "", " ", "javascript:alert(1)", "urn:x", "\u{0}", "client_%00", "../x"] {
        let client = Client::known_as(&gateway, id, "https://client.example/cb");
        assert_local(&ask(&client).await, 400, id);
    }
    let client = Client::register(&gateway).await;
    let page = Browser::new().peek(&client.authorization("demo").without("client_id").url()).await;
    assert_local(&page, 400, "none");
    let arrival = Browser::new().go(&client.authorization("demo").url()).await;
    assert!(matches!(arrival, Arrival::Page(page) if page.url.path() == "/login"));
}

#[tokio::test]
async fn a_program_that_looks_first_learns_that_it_has_to_register_again() {
    let upstream = Upstream::open().await;
    let gateway = open(&upstream).start().await;
    let stranger = Client::known_as(&gateway, "client_unknown", "https://client.example/cb");
    let look = async |accept: &str| {
        let request = gateway.http.get(stranger.authorization("demo").url()).header("accept", accept);
        request.send().await.unwrap()
    };
    let answer = look("application/json").await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["cache-control"]),
        (400, &"no-store".parse().unwrap())
    );
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&answer.text().await.unwrap()).unwrap()["error"],
        "invalid_client"
    );
    for people in ["text/html,application/json;q=0.9", "*/*"] {
        assert!(look(people).await.text().await.unwrap().contains("Remove this server from it"), "{people}");
    }
}

#[tokio::test]
async fn a_client_that_asks_again_at_once_keeps_its_connection() {
    let upstream = Upstream::open().await;
    let gateway = open(&upstream).start().await;
    let client = Client::register(&gateway).await;
    let (url, address) = (client.authorization("demo").url(), gateway.address);
    let target = url.strip_prefix(&gateway.public_url).unwrap();
    let mut connection = RawConnection::open(address).await;
    // The answer has no body, so the next request leaves while the gateway still finishes this one.
    for number in 0..300 {
        connection.send(format!("GET {target} HTTP/1.1\r\nhost: {address}\r\n\r\n")).await;
        let answer = connection.response(PATIENCE).await;
        assert_eq!(answer.map(|answer| answer.status), Some(303), "request {number}");
    }
}
