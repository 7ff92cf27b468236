//! What holds for the answers of the authorization server as a whole: HTTPS and nothing less, no cache, no word of the
//! caller's in an error, and registrations that end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use serde_json::{Value, json};
use support::PATIENCE;
use support::authorization_server::AuthorizationServer;
use support::browser::Browser;
use support::client::{Callback, Client};
use support::gateway::{Gateway, Route};
use support::params::Params;
use support::process::run;
use support::raw::{RawConnection, RawResponse, exchange};
use support::script::Answer;
use support::upstream::Upstream;

const METADATA: &str = "/.well-known/oauth-authorization-server";
const DAY: u64 = 24 * 3600;

/// An upstream without tokens that has its port for itself, so that `requests` holds whatever arrives there.
async fn lone_upstream() -> Upstream {
    let upstream = Upstream::relying_on(&AuthorizationServer::without_port()).await;
    upstream.set(|script| script.requires_auth = false);
    upstream
}

async fn ask(gateway: &Gateway, host: &str, method: &str, path: &str) -> RawResponse {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n");
    exchange(gateway.address, request, PATIENCE).await.unwrap_or_else(|| panic!("no answer to {path}"))
}

/// One of each kind: document, page, error page, form endpoint.
const ENDPOINTS: [(&str, &str); 7] = [
    ("GET", METADATA),
    ("GET", "/.well-known/openid-configuration"),
    ("GET", "/login"),
    ("GET", "/oauth/authorize"),
    ("GET", "/oauth/nothing"),
    ("POST", "/oauth/token"),
    ("POST", "/oauth/register"),
];

#[tokio::test]
async fn sr_as_04_the_host_asks_for_https_for_ever_but_not_on_this_computer() {
    let upstream = Upstream::open().await;
    let public = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .with("server.public_url", json!("https://gw.test"))
        .start()
        .await;
    for (method, path) in ENDPOINTS {
        let answer = ask(&public, "gw.test", method, path).await;
        let policy = answer.header("strict-transport-security").unwrap_or_else(|| panic!("none at {path}"));
        let seconds: u64 = policy.strip_prefix("max-age=").unwrap().parse().unwrap();
        assert!(seconds >= 180 * DAY, "{path}: {policy}");
    }
    let document: Value =
        serde_json::from_slice(&ask(&public, "gw.test", "GET", METADATA).await.body).unwrap();
    for (name, value) in document.as_object().unwrap() {
        if name == "issuer" || name == "jwks_uri" || name.ends_with("_endpoint") {
            assert!(value.as_str().unwrap().starts_with("https://gw.test"), "{name}: {value}");
        }
    }
    // Said of a loopback name, it would shut out every other program on this computer.
    for builder in [Gateway::builder(), Gateway::builder().tls()] {
        let local = builder.route(Route::open("demo", &upstream)).start().await;
        for (_, path) in ENDPOINTS.into_iter().filter(|(method, _)| *method == "GET") {
            let answer = local.http.get(local.url(path)).send().await.unwrap();
            assert_eq!(answer.headers().get("strict-transport-security"), None, "{path}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("postern.yaml");
    let plain =
        std::fs::read_to_string(public.config_file()).unwrap().replace("https://gw.test", "http://gw.test");
    std::fs::write(&file, plain).unwrap();
    let refused = run(&["validate", "--config", file.to_str().unwrap()], &[]).await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    assert!(refused.stderr.contains("is http on a host that is not loopback"), "{}", refused.stderr);
}

/// A complete greeting of TLS that offers this version (3.x) and nothing newer.
fn client_hello(version: u8) -> Vec<u8> {
    let mut hello = vec![3, version];
    hello.extend([7; 32]);
    // No session, one cipher suite (ECDHE, ECDSA, AES-128-GCM), no compression.
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    // Curve P-256, uncompressed points, ECDSA with SHA-256.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let length = hello.len() as u8;
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &hello].concat()
}

#[tokio::test]
async fn sr_as_04_tls_older_than_1_2_is_not_spoken() {
    const ALERT: u8 = 21;
    const HANDSHAKE: u8 = 22;
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).tls().start().await;
    for (version, expected) in [(0, ALERT), (1, ALERT), (2, ALERT), (3, HANDSHAKE)] {
        let mut connection = RawConnection::open(gateway.address).await;
        connection.send(client_hello(version)).await;
        connection.finish_sending().await;
        let answer = connection.until_closed(PATIENCE).await;
        assert_eq!(answer[0], expected, "3.{version}: {answer:?}");
    }
}

#[tokio::test]
async fn sr_as_34_what_carries_codes_tokens_or_their_refusal_is_not_kept() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    let request = client.authorization("demo");
    let code = browser.authorize(&client.redirect_uri, &request.url()).await.code();
    let tokens = client.redeem(&code, &request).await;
    let refreshed = client.refresh(&tokens.tokens().refresh_token).await;
    let answers = [
        Client::register_with(&gateway, &json!({"redirect_uris": ["https://client.example/cb"]})).await,
        Client::register_with(&gateway, &json!({})).await,
        client.redeem(&code, &request).await.0,
        client.refresh("x").await.0,
        client.token(&client.refreshment("x").with("client_secret", "x")).await.0,
        client.token(&Params::new()).await.0,
        client.revoke(&refreshed.tokens().refresh_token).await,
        client.form("/oauth/revoke", &Params::new()).await,
        tokens.0,
        refreshed.0,
    ];
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    for answer in answers {
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{} {}", answer.status, answer.body);
        assert_eq!(answer.header("pragma"), Some("no-cache"), "{} {}", answer.status, answer.body);
    }
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [200, 201, 400, 401]);
    // Every step of the browser, up to the one that carries the code.
    assert!(browser.hops.iter().any(|hop| hop.next.as_ref().is_some_and(|next| next.contains("code="))));
    for hop in &browser.hops {
        assert_eq!(hop.headers["cache-control"], "no-store", "{}", hop.url);
    }
}

#[tokio::test]
async fn sr_rs_12_sr_t56_answers_of_the_upstream_are_kept_for_nobody() {
    let upstream = lone_upstream().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).start().await;
    let client = Client::register(&gateway).await;
    let mut tokens = Vec::new();
    for user in ["alice", "bob"] {
        tokens.push(client.sign_in(&mut Browser::of(user), "demo").await.access_token);
    }
    for (number, token) in tokens.iter().chain(&tokens).enumerate() {
        let body = format!("for call {number}");
        let cached =
            [("cache-control", "public, max-age=3600"), ("etag", "\"1\""), ("content-type", "text/plain")];
        upstream.answer_next(Answer::http(200, &cached, &body));
        let answer = gateway.mcp("demo").bearer(token).get().await;
        assert_eq!((answer.status, answer.body), (200, body), "each caller gets their own");
    }
    assert_eq!(upstream.requests.all().len(), 4);
    for bad in
        [gateway.mcp("demo"), gateway.mcp("demo").bearer("x"), gateway.mcp("demo").header("origin", "null")]
    {
        let answer = bad.get().await;
        assert!(matches!(answer.status, 401 | 403));
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{}", answer.status);
    }
}

/// Says nothing that the caller has said, in the characters that RFC 6749 §5.2 allows.
#[track_caller]
fn assert_own_words(description: &str, about: &str) {
    assert!(!description.is_empty() && description.len() < 200, "{about}: {description:?}");
    let allowed = |byte: u8| matches!(byte, 0x20..0x7f) && byte != b'"' && byte != b'\\';
    assert!(description.bytes().all(allowed), "{about}: {description:?}");
    for mark in ["mark", "evil", "postern.redb", "panicked", "src/", "serde", "line 1"] {
        assert!(!description.to_lowercase().contains(mark), "{about}: {description:?}");
    }
}

#[tokio::test]
async fn sr_as_41_errors_repeat_nothing_of_what_was_sent() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    let request = client.authorization("demo");
    let code = browser.authorize(&client.redirect_uri, &request.url()).await.code();
    let tokens = client.redeem(&code, &request).await.tokens();
    for hostile in
        ["mark\"\\", "mark\r\nevil: 1", "mark<script>", "mark\u{e9}\u{202e}\u{0}", "https://evil.test/mark"]
    {
        for params in [client.redemption(&code, &request), client.refreshment(&tokens.refresh_token)] {
            for name in [
                "grant_type",
                "code",
                "refresh_token",
                "client_id",
                "code_verifier",
                "redirect_uri",
                "resource",
                "scope",
                "client_secret",
                "client_assertion",
            ] {
                let answer = client.token(&params.clone().with(name, hostile)).await;
                if answer.status() != 200 {
                    let description = answer.0.json()["error_description"].as_str().unwrap().to_owned();
                    assert_own_words(&description, &format!("{name}={hostile:?}"));
                }
            }
        }
        for document in [
            json!({"redirect_uris": [hostile]}),
            json!({"redirect_uris": hostile}),
            json!({"redirect_uris": ["https://client.example/cb"], "grant_types": [hostile]}),
            json!({"redirect_uris": ["https://client.example/cb"], "software_statement": hostile}),
            json!({hostile: {hostile: 1}}),
        ] {
            let answer = Client::register_with(&gateway, &document).await;
            if answer.status == 201 {
                continue;
            }
            assert_own_words(answer.json()["error_description"].as_str().unwrap(), &document.to_string());
        }
        for name in [
            "response_type",
            "response_mode",
            "code_challenge",
            "code_challenge_method",
            "resource",
            "request",
            "request_uri",
        ] {
            let bad = client.authorization("demo").with(name, hostile);
            let page = browser.peek(&bad.url()).await;
            let url = url::Url::parse(page.header("location").unwrap_or_else(|| panic!("{name}"))).unwrap();
            let callback = Callback::of(&url);
            assert_own_words(
                callback.params.value("error_description").unwrap(),
                &format!("{name}={hostile:?}"),
            );
        }
    }
}
