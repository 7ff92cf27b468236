//! Postern as a protected resource: challenges, metadata, CORS, who gets in with which token, and which host and
//! path mean which route.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use support::authorization_server::AuthorizationServer;
use support::browser::Browser;
use support::client::{ACCESS_SCOPE, Client, Tokens};
use support::gateway::{Gateway, Route};
use support::mcp::{McpAnswer, McpRequest};
use support::params::Params;
use support::raw::{RawConnection, RawResponse, exchange};
use support::upstream::Upstream;
use support::{PATIENCE, eventually, eventually_some};

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";
/// What every access token begins with, for secret scanners.
const PREFIX: &str = "postern_at_";
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

/// An upstream without tokens that has its port for itself, so that `requests` holds whatever arrives there.
async fn lone_upstream() -> Upstream {
    let upstream = Upstream::relying_on(&AuthorizationServer::without_port()).await;
    upstream.set(|script| script.requires_auth = false);
    upstream
}

/// A gateway with one route that asks its upstream for nothing.
async fn open_gateway(upstream: &Upstream) -> Gateway {
    Gateway::builder().route(Route::open("demo", upstream)).start().await
}

/// Signs in for this resource, with this scope.
async fn tokens(gateway: &Gateway, resource: &str, scope: &str) -> Tokens {
    let client = Client::register(gateway).await;
    let request = client.authorization("-").with("resource", resource).with("scope", scope);
    let callback = Browser::new().authorize(&client.redirect_uri, &request.url()).await;
    client.redeem(&callback.code(), &request).await.tokens()
}

async fn token(gateway: &Gateway, path: &str) -> String {
    tokens(gateway, &gateway.url(path), ACCESS_SCOPE).await.access_token
}

fn at(gateway: &Gateway, path: &str) -> McpRequest {
    McpRequest::to(&gateway.http, &gateway.url(path))
}

async fn whoami(call: McpRequest) -> McpAnswer {
    call.tool("whoami", json!({})).await
}

/// One GET by hand: the path as it is, the `Host` as it is, more header lines.
async fn get(gateway: &Gateway, path: &str, host: &str, more: &str) -> RawResponse {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n");
    exchange(gateway.address, request, PATIENCE)
        .await
        .unwrap_or_else(|| panic!("no answer to {path:?} at {host:?}"))
}

fn authority(gateway: &Gateway) -> String {
    gateway.address.to_string()
}

/// Asserts a 401 `invalid_token` with a complete challenge.
#[track_caller]
fn assert_invalid_token(answer: &McpAnswer, metadata_url: &str) {
    assert_eq!(answer.status, 401, "{}", answer.body);
    assert_eq!(answer.challenge("error").as_deref(), Some("invalid_token"));
    assert_eq!(answer.challenge("resource_metadata").as_deref(), Some(metadata_url));
    assert_eq!(answer.challenge("scope").as_deref(), Some(ACCESS_SCOPE));
}

// === challenges ===

#[tokio::test]
async fn sr_rs_02_no_token_is_challenged_without_an_error() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    for answer in [
        whoami(gateway.mcp("demo")).await,
        gateway.mcp("demo").get().await,
        gateway.mcp("demo").delete().await,
    ] {
        assert_eq!(answer.status, 401);
        let header = answer.header("www-authenticate").unwrap();
        let metadata = gateway.url(&format!("{WELL_KNOWN}/demo"));
        assert_eq!(header, format!(r#"Bearer resource_metadata="{metadata}", scope="{ACCESS_SCOPE}""#));
        assert_eq!(answer.challenge("error"), None);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.json()["error"], "unauthorized");
    }
    assert!(upstream.requests.all().is_empty());
}

#[tokio::test]
async fn pom_01_the_body_of_a_challenge_follows_accept() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    for (accept, html) in [
        (Some("application/json, text/event-stream"), false),
        (Some("application/json"), false),
        (Some("text/event-stream"), false),
        (Some("*/*"), false),
        (None, false),
        (Some("text/html"), true),
        (Some(BROWSER), true),
    ] {
        let request = gateway.mcp("demo").without_header("accept");
        let request = match accept {
            Some(accept) => request.header("accept", accept),
            None => request,
        };
        for (request, error) in [(request.clone(), None), (request.bearer("x"), Some("invalid_token"))] {
            let answer = request.get().await;
            assert_eq!(answer.status, 401, "{accept:?}");
            assert_eq!(answer.challenge("error").as_deref(), error, "{accept:?}");
            if html {
                assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
                let text = support::html::text(&answer.body);
                assert!(text.contains(&gateway.url("/demo")), "{text}");
                assert!(text.contains("MCP client"), "a person is told what to do: {text}");
                assert!(!answer.body.contains("<script"), "{}", answer.body);
            } else {
                assert_eq!(answer.header("content-type"), Some("application/json"));
                assert!(answer.json()["error"].is_string(), "{accept:?}");
            }
            let policy = answer.header("content-security-policy").unwrap();
            assert!(policy.contains("default-src 'none'"), "{policy}");
        }
    }
}

#[tokio::test]
async fn sr_rs_03_anything_but_a_token_of_ours_is_invalid() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let metadata = gateway.url(&format!("{WELL_KNOWN}/demo"));
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.";
    let long = format!("{PREFIX}{}", "A".repeat(60_000));
    for wrong in ["x", PREFIX, "postern_at_AAAA", "postern_at_!!!!", "postern_rt_AAAA", unsigned, &long] {
        let answer = whoami(gateway.mcp("demo").bearer(wrong)).await;
        assert_invalid_token(&answer, &metadata);
    }
    assert!(upstream.requests.all().is_empty());
}

#[tokio::test]
async fn sr_rs_02_configured_scopes_are_challenged_published_and_granted() {
    let upstream = lone_upstream().await;
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream).with("scopes", json!(["files:read"])))
        .start()
        .await;
    let answer = whoami(gateway.mcp("demo")).await;
    assert_eq!(answer.challenge("scope").as_deref(), Some("mcp:access files:read"));
    let document = at(&gateway, &format!("{WELL_KNOWN}/demo")).get().await.json();
    assert_eq!(document["scopes_supported"], json!(["mcp:access", "files:read"]));
    let token = token(&gateway, "/demo").await;
    assert_eq!(whoami(gateway.mcp("demo").bearer(&token)).await.status, 200);
}

#[tokio::test]
async fn sr_rs_03_a_missing_scope_is_403_and_the_challenge_names_all_that_is_needed() {
    let upstream = lone_upstream().await;
    let mut gateway = open_gateway(&upstream).await;
    let narrow = token(&gateway, "/demo").await;
    let route = json!({
        "name": "demo", "path": "/demo", "scopes": ["files:read"],
        "upstream": {"url": upstream.url(), "allow_private": true}, "credential": {"kind": "none"},
    });
    gateway.stop().await;
    gateway.reconfigure("routes", json!([route]));
    gateway.restart().await;
    let answer = whoami(gateway.mcp("demo").bearer(&narrow)).await;
    assert_eq!(answer.status, 403, "{}", answer.body);
    assert_eq!(answer.challenge("error").as_deref(), Some("insufficient_scope"));
    assert_eq!(answer.challenge("scope").as_deref(), Some("mcp:access files:read"));
    assert_eq!(answer.challenge("resource_metadata"), Some(gateway.url(&format!("{WELL_KNOWN}/demo"))));
    assert!(upstream.requests.all().is_empty());
    let wide = token(&gateway, "/demo").await;
    assert_eq!(whoami(gateway.mcp("demo").bearer(&wide)).await.status, 200);
}

#[tokio::test]
async fn sr_t39_the_challenge_comes_from_the_configuration_alone() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let metadata = gateway.url(&format!("{WELL_KNOWN}/demo"));
    for more in [
        "x-forwarded-host: evil.test\r\nx-forwarded-proto: https\r\n",
        "forwarded: host=evil.test;proto=https\r\n",
        "x-original-host: evil.test\r\nx-forwarded-server: evil.test\r\n",
    ] {
        for path in ["/demo", "/demo/a%22b", "/demo/x?scope=%22,error=%22y"] {
            let answer = get(&gateway, path, &authority(&gateway), more).await;
            assert_eq!(answer.status, 401, "{path}");
            let expected = format!(r#"Bearer resource_metadata="{metadata}", scope="{ACCESS_SCOPE}""#);
            assert_eq!(answer.header("www-authenticate"), Some(expected.as_str()));
        }
        let document = get(&gateway, &format!("{WELL_KNOWN}/demo"), &authority(&gateway), more).await;
        assert!(!document.text().contains("evil"), "{}", document.text());
    }
}

// === metadata ===

#[tokio::test]
async fn sr_rs_01_spec_rs_1_the_metadata_names_exactly_the_resource_that_was_challenged() {
    let upstream = lone_upstream().await;
    let mut builder = Gateway::builder();
    for (name, path) in [("one", "/one"), ("two", "/two/deep"), ("odd", "/odd//path/"), ("v", "/v~1.0")] {
        builder = builder.route(Route::open(name, &upstream).with("path", json!(path)));
    }
    let gateway = builder.start().await;
    let mut issuer = Value::Null;
    for path in ["/one", "/two/deep", "/odd/path", "/v~1.0"] {
        let challenged = at(&gateway, path).get().await;
        let metadata = challenged.challenge("resource_metadata").unwrap();
        assert_eq!(metadata, gateway.url(&format!("{WELL_KNOWN}{path}")));
        let answer = McpRequest::to(&gateway.http, &metadata).get().await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        let document = answer.json();
        assert_eq!(document["resource"], gateway.url(path));
        assert_eq!(document["bearer_methods_supported"], json!(["header"]));
        assert_eq!(document["authorization_servers"].as_array().unwrap().len(), 1);
        assert_eq!(
            document["scopes_supported"].as_array().unwrap().join_scopes(),
            challenged.challenge("scope").unwrap()
        );
        assert!(!answer.body.contains("offline_access"));
        // Every spelling of the path leads to the same document.
        for same in
            [format!("{WELL_KNOWN}{path}/"), format!("/{WELL_KNOWN}{path}"), format!("{WELL_KNOWN}/{path}")]
        {
            assert_eq!(at(&gateway, &same).get().await.json(), document, "{same}");
        }
        issuer = document["authorization_servers"][0].clone();
    }
    let server = at(&gateway, "/.well-known/oauth-authorization-server").get().await;
    assert_eq!(server.json()["issuer"], issuer);
    for nobody in ["", "/", "/on", "/onee", "/one/more", "/two", "/ONE"] {
        let answer = at(&gateway, &format!("{WELL_KNOWN}{nobody}")).get().await;
        assert_eq!(answer.status, 404, "{nobody}");
    }
}

trait JoinScopes {
    fn join_scopes(&self) -> String;
}

impl JoinScopes for Vec<Value> {
    fn join_scopes(&self) -> String {
        let names: Vec<&str> = self.iter().filter_map(Value::as_str).collect();
        names.join(" ")
    }
}

// === browsers ===

#[tokio::test]
async fn sr_t50_pom_04_a_preflight_is_answered_before_authentication_and_lets_a_browser_do_all_of_mcp() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let origin = "http://localhost:6274";
    let asked = gateway
        .mcp("demo")
        .header("origin", origin)
        .header("access-control-request-method", "DELETE")
        .header("access-control-request-headers", "authorization,mcp-session-id,mcp-param-region,x-evil");
    for request in [asked.clone(), asked.bearer("wrong")] {
        let answer = request.options().await;
        assert_eq!((answer.status, answer.body.as_str()), (204, ""));
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
        assert_eq!(answer.header("access-control-allow-credentials"), None);
        assert!(answer.header("vary").unwrap().eq_ignore_ascii_case("origin"));
        let methods = answer.header("access-control-allow-methods").unwrap();
        for method in ["GET", "POST", "DELETE"] {
            assert!(methods.contains(method), "{methods}");
        }
        let headers = answer.header("access-control-allow-headers").unwrap().to_owned();
        let named: Vec<&str> = headers.split(',').map(str::trim).collect();
        for name in [
            "authorization",
            "content-type",
            "accept",
            "mcp-protocol-version",
            "mcp-session-id",
            "mcp-method",
            "mcp-name",
            "mcp-param-region",
            "last-event-id",
        ] {
            assert!(named.contains(&name), "{name} is missing in {named:?}");
        }
        assert!(!named.contains(&"x-evil") && !named.contains(&"*"), "{named:?}");
    }
    assert_eq!(gateway.mcp("demo").options().await.status, 204, "without an origin");
    assert!(upstream.requests.all().is_empty());
}

#[tokio::test]
async fn sr_t50_a_browser_may_read_challenge_and_session_of_every_answer() {
    let upstream = lone_upstream().await;
    upstream.set(|script| script.sessions = true);
    let gateway = open_gateway(&upstream).await;
    let origin = "http://localhost:6274";
    let token = token(&gateway, "/demo").await;
    let request = gateway.mcp("demo").header("origin", origin);
    let refused = whoami(request.clone()).await;
    let served = request.bearer(&token).call("initialize", json!({})).await;
    assert!(served.header("mcp-session-id").is_some());
    for (answer, status) in [(&refused, 401), (&served, 200)] {
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
        assert_eq!(answer.header("access-control-allow-credentials"), None);
        let exposed = answer.header("access-control-expose-headers").unwrap().to_lowercase();
        for name in ["www-authenticate", "mcp-session-id"] {
            assert!(exposed.contains(name), "{exposed}");
        }
    }
    let plain = whoami(gateway.mcp("demo").bearer(&token)).await;
    assert_eq!(plain.header("access-control-allow-origin"), None, "no origin asked");
}

#[tokio::test]
async fn sr_t51_an_origin_that_is_not_allowed_is_403() {
    let upstream = lone_upstream().await;
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .with("server.allowed_origins", json!(["https://app.example.test"]))
        .start()
        .await;
    let token = token(&gateway, "/demo").await;
    let call = gateway.mcp("demo").bearer(&token);
    let served = whoami(call.clone()).await;
    assert_eq!(served.status, 200, "no origin at all");
    upstream.requests.clear();
    for origin in [
        "https://evil.test",
        "null",
        "",
        "file://",
        "http://app.example.test",
        "https://app.example.test:444",
        "https://app.example.test.evil.test",
        "https://sub.app.example.test",
        "https://app.example.test/",
        "https://APP.example.test.",
        "http://127.0.0.1.evil.test",
        "http://localhost.evil.test",
        "http://evil.test#127.0.0.1",
        "https://app.example.test, https://evil.test",
    ] {
        for request in [call.clone().header("origin", origin), gateway.mcp("demo").header("origin", origin)] {
            let answer = whoami(request.clone()).await;
            assert_eq!(answer.status, 403, "{origin:?}");
            assert_eq!(answer.header("access-control-allow-origin"), None, "{origin:?}");
            assert_eq!(answer.header("www-authenticate"), None, "{origin:?}");
            assert_eq!(request.options().await.status, 403, "{origin:?}");
        }
    }
    let twice = call
        .clone()
        .and_header("origin", "https://app.example.test")
        .and_header("origin", "https://app.example.test");
    assert_eq!(whoami(twice).await.status, 403);
    assert!(upstream.requests.all().is_empty());
    let own = gateway.public_url.as_str();
    for origin in
        [own, "https://app.example.test", "http://localhost:1", "http://127.0.0.1:9", "http://[::1]:5"]
    {
        let answer = whoami(call.clone().header("origin", origin)).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some(origin)));
    }
}

#[tokio::test]
async fn sr_t51_loopback_origins_count_only_where_the_gateway_itself_is_on_loopback() {
    let upstream = lone_upstream().await;
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .with("server.public_url", json!("https://gw.test"))
        .start()
        .await;
    for (origin, status) in [
        ("https://gw.test", 401),
        ("http://localhost:6274", 403),
        ("http://127.0.0.1:6274", 403),
        ("http://gw.test", 403),
        ("https://gw.test:444", 403),
    ] {
        let answer = get(&gateway, "/demo", "gw.test", &format!("origin: {origin}\r\n")).await;
        assert_eq!(answer.status, status, "{origin}");
    }
}

#[tokio::test]
async fn sr_t50_documents_and_oauth_endpoints_are_open_to_every_origin_without_credentials() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let evil = |path: &str| at(&gateway, path).header("origin", "https://evil.test");
    let resource = format!("{WELL_KNOWN}/demo");
    for (path, method, status) in [
        (resource.as_str(), "GET", 200),
        ("/.well-known/oauth-protected-resource/nothing", "GET", 404),
        ("/.well-known/oauth-authorization-server", "GET", 200),
        ("/.well-known/openid-configuration", "GET", 200),
        ("/oauth/jwks.json", "GET", 200),
        ("/oauth/register", "POST", 400),
        ("/oauth/token", "POST", 400),
        ("/oauth/revoke", "POST", 400),
        ("/oauth/token", "GET", 405),
    ] {
        let answer = match method {
            "GET" => evil(path).get().await,
            _ => evil(path).post("{}").await,
        };
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{path}");
        assert_eq!(answer.header("access-control-allow-credentials"), None, "{path}");
        assert_eq!(answer.header("set-cookie"), None, "{path}");
        let preflight = evil(path)
            .header("access-control-request-method", method)
            .header("access-control-request-headers", "content-type, mcp-protocol-version")
            .options()
            .await;
        assert_eq!(preflight.status, 204, "{path}");
        assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
        assert_eq!(preflight.header("access-control-allow-credentials"), None);
        let headers = preflight.header("access-control-allow-headers").unwrap();
        assert!(headers.contains("content-type") && headers.contains("mcp-protocol-version"));
    }
}

#[tokio::test]
async fn sr_t50_pages_and_management_have_no_cors() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let own = gateway.public_url.clone();
    for origin in ["https://evil.test", "null", "http://localhost:6274", &own] {
        for path in [
            "/",
            "/login",
            "/logout",
            "/oauth/authorize",
            "/oauth/consent",
            "/connections",
            "/api/v1/routes",
            "/nothing",
        ] {
            for method in ["GET", "OPTIONS"] {
                let request = at(&gateway, path)
                    .header("origin", origin)
                    .header("access-control-request-method", "POST");
                let answer = request.send(method, None).await;
                let granted =
                    answer.headers().keys().find(|name| name.as_str().starts_with("access-control-"));
                assert_eq!(granted, None, "{method} {path} {origin}");
            }
        }
    }
}

// === tokens ===

#[tokio::test]
async fn sr_t25_pom_b24_a_token_of_another_route_is_invalid() {
    let upstream = lone_upstream().await;
    let gateway = Gateway::builder()
        .route(Route::open("a", &upstream))
        .route(Route::open("b", &upstream))
        .route(Route::open("deep", &upstream).with("path", json!("/a/deep")))
        .start()
        .await;
    let a = token(&gateway, "/a").await;
    let deep = token(&gateway, "/a/deep").await;
    for (token, path) in [(&a, "/b"), (&a, "/a/deep"), (&a, "/a/deep/more"), (&deep, "/a"), (&deep, "/b")] {
        let answer = whoami(at(&gateway, path).bearer(token)).await;
        let route = path.trim_end_matches("/more");
        assert_invalid_token(&answer, &gateway.url(&format!("{WELL_KNOWN}{route}")));
    }
    assert!(upstream.requests.all().is_empty());
    for (token, path) in [(&a, "/a"), (&deep, "/a/deep")] {
        assert_eq!(whoami(at(&gateway, path).bearer(token)).await.status, 200);
    }
}

#[tokio::test]
async fn sr_t25_a_token_sealed_with_another_key_is_invalid() {
    let upstream = lone_upstream().await;
    let mut gateway = open_gateway(&upstream).await;
    let old = token(&gateway, "/demo").await;
    gateway.restart().await;
    assert_eq!(whoami(gateway.mcp("demo").bearer(&old)).await.status, 200, "keys survive a restart");
    // The same gateway by name, address and configuration, but with keys of its own.
    gateway.stop().await;
    std::fs::remove_dir_all(gateway.data_dir()).unwrap();
    gateway.restart().await;
    upstream.requests.clear();
    let answer = whoami(gateway.mcp("demo").bearer(&old)).await;
    assert_invalid_token(&answer, &gateway.url(&format!("{WELL_KNOWN}/demo")));
    assert!(upstream.requests.all().is_empty());
    let new = token(&gateway, "/demo").await;
    assert_eq!(whoami(gateway.mcp("demo").bearer(&new)).await.status, 200);
}

#[tokio::test]
async fn sr_t27_refresh_tokens_and_codes_are_no_access_tokens() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let client = Client::register(&gateway).await;
    let request = client.authorization("demo");
    let callback = Browser::new().authorize(&client.redirect_uri, &request.url()).await;
    let code = callback.code();
    let metadata = gateway.url(&format!("{WELL_KNOWN}/demo"));
    assert_invalid_token(&whoami(gateway.mcp("demo").bearer(&code)).await, &metadata);
    let tokens = client.redeem(&code, &request).await.tokens();
    assert!(tokens.access_token.starts_with(PREFIX));
    let upstreams_own = upstream.authorization.ledger(|ledger| ledger.access.keys().next().cloned().unwrap());
    for other in [&tokens.refresh_token, &code, &client.id, &upstreams_own] {
        // In its own form, and dressed up as an access token.
        let bare = other.rsplit('_').next().unwrap();
        for form in [other.clone(), format!("{PREFIX}{bare}")] {
            let answer = whoami(gateway.mcp("demo").bearer(&form)).await;
            assert_invalid_token(&answer, &metadata);
        }
    }
    assert!(upstream.calls_with_token().is_empty());
    assert_eq!(whoami(gateway.mcp("demo").bearer(&tokens.access_token)).await.status, 200);
}

#[tokio::test]
async fn sr_t27_truncated_lengthened_and_altered_tokens_are_invalid() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let good = token(&gateway, "/demo").await;
    let sealed = good.strip_prefix(PREFIX).unwrap();
    let bytes = BASE64URL_NOPAD.decode(sealed.as_bytes()).unwrap();
    let dressed = |bytes: &[u8]| format!("{PREFIX}{}", BASE64URL_NOPAD.encode(bytes));
    assert_eq!(dressed(&bytes), good);
    let mut wrong = Vec::new();
    for position in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[position] ^= 1 << (position % 8);
        wrong.push(dressed(&altered));
    }
    for cut in (0..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
        wrong.push(dressed(&bytes[..cut]));
    }
    for length in 1..PREFIX.len() {
        wrong.push(good[..length].to_owned());
    }
    wrong.extend([
        dressed(&[bytes.as_slice(), &[0]].concat()),
        format!("{good}A"),
        format!("{good}="),
        good[..good.len() - 1].to_owned(),
        good.to_uppercase(),
        format!("POSTERN_AT_{sealed}"),
        sealed.to_owned(),
        format!("{PREFIX}{PREFIX}{sealed}"),
    ]);
    for wrong in &wrong {
        let answer = gateway.mcp("demo").bearer(wrong).post("{}").await;
        assert_eq!(answer.status, 401, "{wrong}");
        assert_eq!(answer.challenge("error").as_deref(), Some("invalid_token"));
    }
    assert!(upstream.requests.all().is_empty());
    assert_eq!(whoami(gateway.mcp("demo").bearer(&good)).await.status, 200);
}

#[tokio::test]
async fn sr_t27_a_token_with_any_bit_of_its_text_flipped_is_invalid() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let good = token(&gateway, "/demo").await;
    let start = format!("GET /demo HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer ", gateway.address);
    let mut connection = RawConnection::open(gateway.address).await;
    for bit in 0..good.len() * 8 {
        let mut flipped = good.clone().into_bytes();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if flipped[bit / 8].is_ascii_control() {
            // That is no header (RFC 9110 §5.5).
            continue;
        }
        connection.send([start.as_bytes(), &flipped, b"\r\n\r\n"].concat()).await;
        let answer = connection.response(PATIENCE).await.unwrap();
        assert_eq!(answer.status, 401, "bit {bit}: {}", answer.text());
        assert!(answer.header("www-authenticate").unwrap().contains("error=\"invalid_token\""), "bit {bit}");
    }
    assert!(upstream.requests.all().is_empty());
}

#[tokio::test]
async fn sr_rs_03_an_expired_token_is_invalid_and_a_refreshed_one_works() {
    let upstream = lone_upstream().await;
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .with("oauth_server.access_token_ttl", json!("1s"))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    assert_eq!(tokens.expires_in, 1);
    // Expiry is in whole seconds: a token may be almost over when it is made, so several are tried.
    let latest = std::sync::Mutex::new(tokens);
    let worked = eventually_some(PATIENCE, || {
        let old = support::lock(&latest).clone();
        let (client, call, latest) = (client.clone(), gateway.mcp("demo"), &latest);
        async move {
            let fresh = client.refresh(&old.refresh_token).await.tokens();
            *support::lock(latest) = fresh.clone();
            let answer = whoami(call.bearer(&fresh.access_token)).await;
            (answer.status == 200).then_some(fresh.access_token)
        }
    })
    .await;
    let call = gateway.mcp("demo").bearer(&worked);
    eventually(PATIENCE, || async { whoami(call.clone()).await.status == 401 }).await;
    upstream.requests.clear();
    let answer = whoami(call).await;
    assert_invalid_token(&answer, &gateway.url(&format!("{WELL_KNOWN}/demo")));
    assert!(upstream.requests.all().is_empty());
}

#[tokio::test]
async fn sr_t35_sr_rs_04_one_bearer_token_in_the_header_and_nowhere_else() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let good = token(&gateway, "/demo").await;
    let metadata = gateway.url(&format!("{WELL_KNOWN}/demo"));
    let with = |value: &str| gateway.mcp("demo").header("authorization", value);
    for malformed in [
        with(&format!("Bearer {good}")).and_header("authorization", &format!("Bearer {good}")),
        with("Basic YTpi").and_header("authorization", &format!("Bearer {good}")),
        with(&format!("Bearer {good}, Bearer {good}")),
        with(&format!("Bearer {good},{good}")),
        with(&format!("Bearer {good} {good}")),
    ] {
        let answer = whoami(malformed).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert_eq!(answer.challenge("error").as_deref(), Some("invalid_request"));
        assert_eq!(answer.challenge("resource_metadata").as_deref(), Some(metadata.as_str()));
    }
    // Other schemes, query, body and cookies are not looked at: that is a request without a token.
    let query = at(&gateway, &format!("/demo?access_token={good}&token={good}"));
    let form = Params::new().with("access_token", &good).encoded();
    for answer in [
        whoami(with(&format!("Basic {good}"))).await,
        whoami(with(&format!("Bearer\t{good}"))).await,
        whoami(with(&good)).await,
        whoami(query.clone()).await,
        gateway.mcp("demo").header("content-type", "application/x-www-form-urlencoded").post(&form).await,
        whoami(gateway.mcp("demo").header("cookie", &format!("access_token={good}"))).await,
        whoami(gateway.mcp("demo").header("x-authorization", &format!("Bearer {good}"))).await,
        whoami(gateway.mcp("demo").header("proxy-authorization", &format!("Bearer {good}"))).await,
    ] {
        assert_eq!(answer.status, 401);
        assert_eq!(answer.challenge("error"), None);
    }
    for answer in [whoami(query.bearer("wrong")).await, whoami(with("Bearer")).await] {
        assert_invalid_token(&answer, &metadata);
    }
    assert!(upstream.requests.all().is_empty());
    for scheme in ["bearer", "BEARER", "Bearer"] {
        assert_eq!(whoami(with(&format!("{scheme} {good}"))).await.status, 200);
    }
}

#[tokio::test]
async fn sr_rs_05_a_session_is_no_credential() {
    let upstream = lone_upstream().await;
    upstream.set(|script| script.sessions = true);
    let gateway = open_gateway(&upstream).await;
    let good = token(&gateway, "/demo").await;
    let answer = gateway.mcp("demo").bearer(&good).call("initialize", json!({})).await;
    let session = answer.header("mcp-session-id").unwrap();
    let seen = upstream.requests.all().len();
    let call = gateway.mcp("demo").header("mcp-session-id", session);
    assert_eq!(whoami(call.clone()).await.status, 401);
    assert_eq!(call.get().await.status, 401);
    assert_eq!(call.delete().await.status, 401);
    assert_eq!(upstream.requests.all().len(), seen);
    assert_eq!(whoami(call.bearer(&good)).await.status, 200);
}

// === hosts and paths ===

#[tokio::test]
async fn sr_t25_pom_02_spellings_of_one_path_are_one_route_everywhere() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    for resource in ["/demo", "/demo/"] {
        let token = token(&gateway, resource).await;
        for path in ["/demo", "/demo/", "//demo", "//demo//", "/demo///"] {
            upstream.requests.clear();
            let answer = whoami(at(&gateway, path).bearer(&token)).await;
            assert_eq!(answer.status, 200, "{path}");
            assert_eq!(upstream.requests.paths(), ["POST /mcp"], "{path}");
            let challenged = at(&gateway, path).get().await;
            assert_eq!(
                challenged.challenge("resource_metadata"),
                Some(gateway.url(&format!("{WELL_KNOWN}/demo"))),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn sr_t25_a_route_ends_at_a_slash() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let token = token(&gateway, "/demo").await;
    for path in [
        "/demo-evil",
        "/demo.evil",
        "/demoevil",
        "/dem",
        "/DEMO",
        "/demo;x",
        "/demo%20",
        "/x/demo",
        "/demo:1",
    ] {
        let answer = whoami(at(&gateway, path).bearer(&token)).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.header("www-authenticate"), None, "{path}");
    }
    assert!(upstream.requests.all().is_empty());
    at(&gateway, "/demo/below").bearer(&token).post("{}").await;
    assert_eq!(upstream.requests.paths(), ["POST /mcp/below"]);
}

#[tokio::test]
async fn a_route_may_be_the_root_of_the_public_host() {
    for path in ["/", ""] {
        let upstream = lone_upstream().await;
        let gateway =
            Gateway::builder().route(Route::open("root", &upstream).with("path", json!(path))).start().await;
        let challenged = whoami(at(&gateway, "/")).await;
        assert_eq!(challenged.status, 401, "{}", challenged.body);
        let metadata = challenged.challenge("resource_metadata").unwrap();
        assert_eq!(metadata, gateway.url(WELL_KNOWN));
        let document = McpRequest::to(&gateway.http, &metadata).get().await.json();
        assert_eq!(document["resource"], gateway.public_url.as_str());
        for resource in [gateway.public_url.clone(), gateway.url("/")] {
            let token = tokens(&gateway, &resource, ACCESS_SCOPE).await.access_token;
            for path in ["/", "//"] {
                upstream.requests.clear();
                assert_eq!(whoami(at(&gateway, path).bearer(&token)).await.status, 200, "{path}");
                assert_eq!(upstream.requests.paths(), ["POST /mcp"]);
            }
        }
        // Our own endpoints stay ours.
        assert_eq!(at(&gateway, "/oauth/jwks.json").get().await.status, 200);
    }
}

#[tokio::test]
async fn sr_t25_several_hosts_keep_their_ports_and_have_documents_of_their_own() {
    let (public, files, other, root) =
        tokio::join!(lone_upstream(), lone_upstream(), lone_upstream(), lone_upstream());
    let gateway = Gateway::builder()
        .route(Route::open("mcp", &public))
        .route(Route::open("files", &files).with("host", json!("files.test")).with("path", json!("/mcp")))
        .route(
            Route::open("other", &other).with("host", json!("files.test:8443")).with("path", json!("/mcp")),
        )
        .route(Route::open("root", &root).with("host", json!("root.test")).without("path"))
        .start()
        .await;
    let port = gateway.address.port();
    let own = authority(&gateway);
    let (files_host, root_host) = (format!("files.test:{port}"), format!("root.test:{port}"));
    for (host, path, upstream) in [
        (own.as_str(), "/mcp", &public),
        (&files_host, "/mcp", &files),
        ("files.test:8443", "/mcp", &other),
        (&root_host, "", &root),
    ] {
        let (resource, metadata) =
            (format!("http://{host}{path}"), format!("http://{host}{WELL_KNOWN}{path}"));
        let asked = if path.is_empty() { "/" } else { path };
        for spelling in [host.to_owned(), host.to_uppercase()] {
            let challenged = get(&gateway, asked, &spelling, "").await;
            assert_eq!(challenged.status, 401, "{spelling}");
            let challenge = challenged.header("www-authenticate").unwrap();
            assert!(challenge.contains(&format!("resource_metadata=\"{metadata}\"")), "{challenge}");
        }
        let document = get(&gateway, &format!("{WELL_KNOWN}{path}"), host, "").await;
        let document: Value = serde_json::from_slice(&document.body).unwrap();
        assert_eq!(document["resource"], resource);
        assert_eq!(document["authorization_servers"], json!([gateway.public_url]));

        let token = tokens(&gateway, &resource, ACCESS_SCOPE).await.access_token;
        let bearer = format!("authorization: Bearer {token}\r\n");
        let answer = get(&gateway, asked, host, &bearer).await;
        assert_eq!(answer.status, 405, "the upstream's own answer: {}", answer.text());
        assert_eq!(upstream.requests.paths(), ["GET /mcp"], "{host}");
        for (stranger, path) in
            [(own.as_str(), "/mcp"), (&files_host, "/mcp"), ("files.test:8443", "/mcp"), (&root_host, "/")]
        {
            if stranger != host {
                let answer = get(&gateway, path, stranger, &bearer).await;
                assert_eq!(answer.status, 401, "token for {host} at {stranger}");
            }
        }
    }
    for upstream in [&public, &files, &other, &root] {
        assert_eq!(upstream.requests.all().len(), 1);
    }
    // Sign-in and OAuth live on the public host alone.
    for path in ["/login", "/oauth/authorize", "/oauth/register", "/.well-known/oauth-authorization-server"] {
        assert_eq!(get(&gateway, path, &files_host, "").await.status, 404, "{path}");
    }
    let misplaced = get(&gateway, &format!("{WELL_KNOWN}/files"), &own, "").await;
    assert_eq!(misplaced.status, 404);
}

#[tokio::test]
async fn sr_rs_09_an_unknown_host_is_421() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let token = token(&gateway, "/demo").await;
    let (own, port) = (authority(&gateway), gateway.address.port());
    let bearer = format!("authorization: Bearer {token}\r\n");
    for host in [
        "evil.test".to_owned(),
        format!("evil.test:{port}"),
        "127.0.0.1".to_owned(),
        "127.0.0.1:1".to_owned(),
        format!("localhost:{port}"),
        format!("127.0.0.1.:{port}"),
        format!("127.1:{port}"),
        format!("[::1]:{port}"),
        format!("{own}.evil.test"),
    ] {
        for path in ["/demo", "/login", "/oauth/jwks.json", &format!("{WELL_KNOWN}/demo")] {
            let answer = get(&gateway, path, &host, &bearer).await;
            let expected: &[u16] = if path.starts_with(WELL_KNOWN) { &[404, 421] } else { &[421] };
            assert!(expected.contains(&answer.status), "{host} {path}: {}", answer.status);
            assert!(!answer.text().contains(&host), "{}", answer.text());
        }
    }
    assert!(upstream.requests.all().is_empty());
    assert_eq!(get(&gateway, "/demo", &own, &bearer).await.status, 405);
}
