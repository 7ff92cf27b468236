//! The demo upstream from outside: a client walks the whole way by HTTP, then strays from it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::ServiceExt;

use super::*;

const BASE: &str = "http://127.0.0.1:4110";
const RESOURCE: &str = "http://127.0.0.1:4110/mcp";
const CALLBACK: &str = "http://127.0.0.1:8080/oauth/upstream/callback/abc?x=1";
const VERIFIER: &str = "a-verifier-that-is-long-enough-for-the-standard-0123456789";

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {} {}", self.status, self.text))
    }

    fn header(&self, name: &str) -> &str {
        header_text(&self.headers, name).unwrap_or_default()
    }
}

struct Tester {
    router: Router,
    clock: Clock,
}

impl Tester {
    fn new() -> Self {
        let clock = Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        Tester { router: router("127.0.0.1:4110".parse().unwrap(), clock.clone()), clock }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "127.0.0.1:4110");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8(bytes.into()).unwrap(),
        }
    }

    async fn fetch(&self, path: &str) -> Answer {
        self.send("GET", path, &[], String::new()).await
    }

    async fn form(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.send("POST", path, &[("content-type", "application/x-www-form-urlencoded")], body).await
    }

    async fn register(&self) -> String {
        let body = json!({ "redirect_uris": [CALLBACK], "client_name": "Postern <b>" }).to_string();
        let answer = self.send("POST", "/register", &[], body).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        let fields = answer.json();
        assert_eq!(fields["token_endpoint_auth_method"], "none");
        assert_eq!(fields["redirect_uris"], json!([CALLBACK]));
        fields["client_id"].as_str().unwrap().to_owned()
    }

    /// Asks for authorization with `changes` to a good request; an empty value leaves a parameter out.
    async fn ask(&self, client_id: &str, changes: &[(&str, &str)]) -> Answer {
        let challenge = digest_of(VERIFIER);
        let mut fields = vec![
            ("response_type", "code"),
            ("client_id", client_id),
            ("redirect_uri", CALLBACK),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
            ("scope", SCOPE),
            ("state", "s t&a"),
            ("resource", RESOURCE),
        ];
        for (name, value) in changes {
            fields.retain(|(present, _)| present != name);
            fields.push((name, value));
        }
        fields.retain(|(_, value)| !value.is_empty());
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&fields).finish();
        self.fetch(&format!("/authorize?{query}")).await
    }

    async fn ticket(&self, client_id: &str) -> String {
        let page = self.ask(client_id, &[]).await;
        assert_eq!(page.status, 200, "{}", page.text);
        page.text.split("name=\"ticket\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    }

    async fn code(&self, client_id: &str) -> String {
        let ticket = self.ticket(client_id).await;
        let answer =
            self.form("/authorize", &[("ticket", &ticket), ("account", "bea"), ("decision", "allow")]).await;
        let fields = returned(&answer);
        assert_eq!(fields["state"], "s t&a");
        assert_eq!(fields["iss"], BASE);
        fields["code"].clone()
    }

    async fn redeem(&self, client_id: &str, code: &str, changes: &[(&str, &str)]) -> Answer {
        let mut fields = vec![
            ("grant_type", "authorization_code"),
            ("client_id", client_id),
            ("code", code),
            ("redirect_uri", CALLBACK),
            ("code_verifier", VERIFIER),
            ("resource", RESOURCE),
        ];
        for (name, value) in changes {
            fields.retain(|(present, _)| present != name);
            fields.push((name, value));
        }
        self.form("/token", &fields).await
    }

    async fn refresh(&self, client_id: &str, token: &str) -> Answer {
        let fields = [
            ("grant_type", "refresh_token"),
            ("client_id", client_id),
            ("refresh_token", token),
            ("resource", RESOURCE),
        ];
        self.form("/token", &fields).await
    }

    /// A new client's tokens: client id, access token, refresh token.
    async fn tokens(&self) -> (String, String, String) {
        let client_id = self.register().await;
        let code = self.code(&client_id).await;
        let answer = self.redeem(&client_id, &code, &[]).await;
        let (access, refresh) = pair(&answer);
        (client_id, access, refresh)
    }

    async fn call(&self, token: &str, headers: &[(&str, &str)], message: &Value) -> Answer {
        let bearer = format!("Bearer {token}");
        let mut all = vec![
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
        ];
        for (name, value) in headers {
            all.retain(|(present, _)| present != name);
            all.push((name, value));
        }
        self.send("POST", "/mcp", &all, message.to_string()).await
    }

    /// Whether the token opens the MCP server.
    async fn opens(&self, token: &str) -> bool {
        self.call(token, &[], &request("ping", json!({}))).await.status == 200
    }
}

fn pair(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("cache-control"), "no-store");
    let fields = answer.json();
    assert_eq!((&fields["token_type"], &fields["expires_in"]), (&json!("Bearer"), &json!(300)));
    let text = |name: &str| fields[name].as_str().unwrap().to_owned();
    (text("access_token"), text("refresh_token"))
}

fn returned(answer: &Answer) -> HashMap<String, String> {
    assert_eq!(answer.status, 303, "{}", answer.text);
    let query =
        answer.header("location").strip_prefix(CALLBACK).expect("the registered address, byte for byte");
    form_urlencoded::parse(query.strip_prefix('&').unwrap().as_bytes()).into_owned().collect()
}

fn request(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params })
}

fn refused(answer: &Answer, error: &str) {
    assert_eq!(answer.json()["error"], error, "{}", answer.text);
    assert_eq!(answer.header("cache-control"), "no-store");
}

#[tokio::test]
async fn discovery_leads_from_the_challenge_to_the_endpoints() {
    let tester = Tester::new();
    let answer = tester.send("POST", "/mcp", &[], "{}".into()).await;
    assert_eq!(answer.status, 401);
    let metadata = format!("{BASE}/.well-known/oauth-protected-resource/mcp");
    assert_eq!(
        answer.header("www-authenticate"),
        format!("Bearer resource_metadata=\"{metadata}\", scope=\"demo:tools\"")
    );
    let answer = tester.call("wrong", &[], &json!({})).await;
    assert_eq!(answer.status, 401);
    assert!(
        answer.header("www-authenticate").starts_with("Bearer error=\"invalid_token\", resource_metadata=")
    );

    let resource = tester.fetch("/.well-known/oauth-protected-resource/mcp").await.json();
    assert_eq!(
        (&resource["resource"], &resource["authorization_servers"]),
        (&json!(RESOURCE), &json!([BASE]))
    );
    let server = tester.fetch("/.well-known/oauth-authorization-server").await.json();
    assert_eq!(server["issuer"], BASE);
    assert_eq!(server["code_challenge_methods_supported"], json!(["S256"]));
    assert_eq!(server["token_endpoint"], format!("{BASE}/token"));
    assert_eq!(server["authorization_response_iss_parameter_supported"], true);
}

#[tokio::test]
async fn the_whole_way_ends_with_the_users_own_account() {
    let tester = Tester::new();
    let (_, access, _) = tester.tokens().await;
    let answer = tester.call(&access, &[], &request("tools/call", json!({ "name": "whoami" }))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["result"]["content"][0]["text"], "You are bea at Demo tools.");
    tester.clock.advance(ACCESS_LIFETIME - Duration::from_secs(1));
    assert!(tester.opens(&access).await);
    tester.clock.advance(Duration::from_secs(1));
    assert!(!tester.opens(&access).await, "five minutes are over");
}

#[tokio::test]
async fn registration_takes_only_safe_redirect_uris() {
    let tester = Tester::new();
    for uri in [
        "http://example.com/cb",
        "https://a.example/#f",
        "javascript:alert(1)",
        "app:/cb",
        "x",
        "https://é.example/",
    ] {
        let body = json!({ "redirect_uris": [uri] }).to_string();
        refused(&tester.send("POST", "/register", &[], body).await, "invalid_redirect_uri");
    }
    refused(
        &tester.send("POST", "/register", &[], json!({ "redirect_uris": [] }).to_string()).await,
        "invalid_redirect_uri",
    );
    for body in [
        "",
        "[]",
        r#"{"redirect_uris":"x"}"#,
        r#"{"redirect_uris":["https://a.example"],"grant_types":["implicit"]}"#,
    ] {
        refused(&tester.send("POST", "/register", &[], body.into()).await, "invalid_client_metadata");
    }
    let body = format!("{{\"redirect_uris\":[\"https://a.example/{}\"]}}", "x".repeat(70_000));
    assert_eq!(tester.send("POST", "/register", &[], body).await.status, 413);
}

#[tokio::test]
async fn a_client_is_still_known_after_a_restart() {
    let (client_id, access, refresh) = Tester::new().tokens().await;
    let restarted = Tester::new();
    assert!(!restarted.opens(&access).await);
    refused(&restarted.refresh(&client_id, &refresh).await, "invalid_grant");
    let code = restarted.code(&client_id).await;
    let (access, _) = pair(&restarted.redeem(&client_id, &code, &[]).await);
    assert!(restarted.opens(&access).await);
}

#[tokio::test]
async fn each_registration_is_a_client_of_its_own() {
    let tester = Tester::new();
    let (one, other) = (tester.register().await, tester.register().await);
    assert_ne!(one, other);
    let code = tester.code(&one).await;
    refused(&tester.redeem(&other, &code, &[]).await, "invalid_grant");
}

#[tokio::test]
async fn an_id_made_up_by_hand_gives_no_more_than_a_registration() {
    let tester = Tester::new();
    let id = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    let honest = format!(r#"{{"salt":"s","name":null,"redirect_uris":["{CALLBACK}"]}}"#);
    assert_eq!(tester.ask(&id(&honest), &[]).await.status, 200);
    let long = format!("https://a.example/{}", "x".repeat(2000));
    for made_up in [
        honest.replace(CALLBACK, "http://evil.example/cb"),
        honest.replace(CALLBACK, "javascript:alert(1)"),
        honest.replace(&format!("\"{CALLBACK}\""), ""),
        honest.replace(':', ": "),
        honest.replace("null", r#"null,"more":1"#),
        honest.replace(CALLBACK, &format!(r#"{CALLBACK}","{long}","{long}"#)),
    ] {
        let answer = tester.ask(&id(&made_up), &[]).await;
        assert_eq!((answer.status, answer.header("location")), (400, ""), "{made_up}");
    }
    let body = json!({ "redirect_uris": [long, long] }).to_string();
    refused(&tester.send("POST", "/register", &[], body).await, "invalid_redirect_uri");
}

#[tokio::test]
async fn the_page_asks_in_plain_text_and_cannot_be_framed() {
    let tester = Tester::new();
    let client_id = tester.register().await;
    let page = tester.ask(&client_id, &[]).await;
    assert!(page.text.contains("Postern &#60;b&#62;") && page.text.contains("127.0.0.1"), "{}", page.text);
    let policy = page.header("content-security-policy");
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("form-action"));
    assert_eq!(page.header("cache-control"), "no-store");
    assert_eq!(tester.fetch("/style.css").await.header("content-type"), "text/css; charset=utf-8");
}

#[tokio::test]
async fn a_bad_client_or_redirect_uri_is_never_redirected_to() {
    let tester = Tester::new();
    let client_id = tester.register().await;
    for changes in [
        [("client_id", "unknown")],
        [("client_id", "")],
        [("redirect_uri", "")],
        [("redirect_uri", "https://evil.example/")],
        [("redirect_uri", "http://127.0.0.1:8080/oauth/upstream/callback/abc?x=1&y=2")],
        [("redirect_uri", "http://127.0.0.1:9999/oauth/upstream/callback/abc?x=1")],
    ] {
        let answer = tester.ask(&client_id, &changes).await;
        assert_eq!((answer.status, answer.header("location")), (400, ""), "{changes:?}");
    }
    let twice = format!("/authorize?client_id={client_id}&client_id={client_id}");
    assert_eq!(tester.fetch(&twice).await.status, 400);
}

#[tokio::test]
async fn other_mistakes_go_back_to_the_client_with_state_and_issuer() {
    let tester = Tester::new();
    let client_id = tester.register().await;
    for (name, value, error) in [
        ("response_type", "token", "unsupported_response_type"),
        ("code_challenge", "", "invalid_request"),
        ("code_challenge", "short", "invalid_request"),
        ("code_challenge_method", "plain", "invalid_request"),
        ("code_challenge_method", "", "invalid_request"),
        ("scope", "demo:tools admin", "invalid_scope"),
        ("resource", "", "invalid_target"),
        ("resource", "http://127.0.0.1:4110/mcp/", "invalid_target"),
    ] {
        let fields = returned(&tester.ask(&client_id, &[(name, value)]).await);
        assert_eq!((fields["error"].as_str(), fields["iss"].as_str()), (error, BASE), "{name}={value}");
        assert_eq!(fields["state"], "s t&a");
    }
    assert_eq!(tester.ask(&client_id, &[("scope", "")]).await.status, 200, "the scope may be left out");
}

#[tokio::test]
async fn an_answer_counts_once_in_time_and_from_our_own_page() {
    let tester = Tester::new();
    let client_id = tester.register().await;
    let ticket = tester.ticket(&client_id).await;
    let fields = [("ticket", ticket.as_str()), ("decision", "allow")];
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let answer = tester.send("POST", "/authorize", &[("sec-fetch-site", "cross-site")], body).await;
    assert_eq!(answer.status, 403);
    let odd =
        tester.form("/authorize", &[("ticket", &ticket), ("decision", "allow"), ("account", "<b>")]).await;
    assert!(odd.status == 400 && odd.text.contains("&#60;b&#62;") && odd.text.contains(&ticket));
    assert!(returned(&tester.form("/authorize", &fields).await).contains_key("code"));
    assert_eq!(tester.form("/authorize", &fields).await.status, 400);
    assert_eq!(tester.form("/authorize", &[("ticket", "made-up"), ("decision", "allow")]).await.status, 400);

    let ticket = tester.ticket(&client_id).await;
    let denied = returned(&tester.form("/authorize", &[("ticket", &ticket), ("decision", "deny")]).await);
    assert_eq!(denied["error"], "access_denied");
    assert_eq!((denied["state"].as_str(), denied["iss"].as_str()), ("s t&a", BASE));

    let ticket = tester.ticket(&client_id).await;
    tester.clock.advance(Duration::from_secs(600));
    assert_eq!(tester.form("/authorize", &[("ticket", &ticket), ("decision", "allow")]).await.status, 400);
}

#[tokio::test]
async fn a_code_works_once_for_its_own_client_verifier_and_address() {
    let tester = Tester::new();
    let client_id = tester.register().await;
    let other = tester.register().await;
    for change in [
        ("code_verifier", "another-verifier-that-is-long-enough-0123456789"),
        ("redirect_uri", "http://127.0.0.1:8080/"),
        ("client_id", other.as_str()),
    ] {
        let code = tester.code(&client_id).await;
        refused(&tester.redeem(&client_id, &code, &[change]).await, "invalid_grant");
        refused(&tester.redeem(&client_id, &code, &[]).await, "invalid_grant");
    }
    let code = tester.code(&client_id).await;
    tester.clock.advance(Duration::from_secs(60));
    refused(&tester.redeem(&client_id, &code, &[]).await, "invalid_grant");

    let code = tester.code(&client_id).await;
    refused(
        &tester.redeem(&client_id, &code, &[("resource", "http://other.example/mcp")]).await,
        "invalid_target",
    );
    let (access, refresh) = pair(&tester.redeem(&client_id, &code, &[]).await);
    assert!(tester.opens(&access).await);
    refused(&tester.redeem(&client_id, &code, &[]).await, "invalid_grant");
    assert!(!tester.opens(&access).await, "a replayed code ends what grew from it");
    refused(&tester.refresh(&client_id, &refresh).await, "invalid_grant");
}

#[tokio::test]
async fn refresh_tokens_rotate_and_a_replay_ends_the_grant() {
    let tester = Tester::new();
    let (client_id, first_access, first) = tester.tokens().await;
    let other = tester.register().await;
    refused(&tester.refresh(&other, &first).await, "invalid_grant");
    let (access, second) = pair(&tester.refresh(&client_id, &first).await);
    assert!(first != second && first_access != access);
    assert!(tester.opens(&access).await);
    refused(&tester.refresh(&client_id, &first).await, "invalid_grant");
    refused(&tester.refresh(&client_id, &second).await, "invalid_grant");
    assert!(!tester.opens(&access).await && !tester.opens(&first_access).await);
}

#[tokio::test]
async fn the_token_endpoint_refuses_what_it_does_not_know() {
    let tester = Tester::new();
    let client_id = tester.register().await;
    let unknown = tester.refresh("unknown", "x").await;
    assert_eq!(unknown.status, 401);
    refused(&unknown, "invalid_client");
    let basic = tester.send("POST", "/token", &[("authorization", "Basic YTpi")], String::new()).await;
    assert_eq!((basic.status, basic.header("www-authenticate")), (401, "Basic"));
    let plain = tester.send("POST", "/token", &[("content-type", "application/json")], "{}".into()).await;
    refused(&plain, "invalid_request");
    let fields = [("client_id", client_id.as_str()), ("resource", RESOURCE), ("grant_type", "password")];
    refused(&tester.form("/token", &fields).await, "unsupported_grant_type");
    refused(
        &tester.form("/token", &[("client_id", &client_id), ("client_id", &client_id)]).await,
        "invalid_request",
    );
}

#[tokio::test]
async fn the_opened_revision_speaks_without_a_session() {
    let tester = Tester::new();
    let (_, token, _) = tester.tokens().await;
    let answer =
        tester.call(&token, &[], &request("initialize", json!({ "protocolVersion": "2025-11-25" }))).await;
    assert_eq!(answer.json()["result"]["protocolVersion"], "2025-11-25");
    assert_eq!(answer.header("mcp-session-id"), "");
    let answer =
        tester.call(&token, &[], &request("initialize", json!({ "protocolVersion": "1999-01-01" }))).await;
    assert_eq!(answer.json()["result"]["protocolVersion"], "2025-11-25");
    let note = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let answer = tester.call(&token, &[("mcp-protocol-version", "2025-11-25")], &note).await;
    assert_eq!((answer.status, answer.text.as_str()), (202, ""));
    let answer = tester.call(&token, &[], &request("tools/list", json!({}))).await.json();
    assert_eq!(answer["result"]["tools"].as_array().unwrap().len(), 2);
    assert_eq!((&answer["id"], answer["result"].get("resultType")), (&json!(7), None));
    let echo = request("tools/call", json!({ "name": "echo", "arguments": { "text": "hé" } }));
    assert_eq!(tester.call(&token, &[], &echo).await.json()["result"]["content"][0]["text"], "hé");
    let silent = request("tools/call", json!({ "name": "echo" }));
    assert_eq!(tester.call(&token, &[], &silent).await.json()["result"]["isError"], true);
    let unknown = tester.call(&token, &[], &request("tools/call", json!({ "name": "rm" }))).await.json();
    assert_eq!(unknown["error"]["code"], -32602);
    assert_eq!(
        tester.call(&token, &[], &request("no/such", json!({}))).await.json()["error"]["code"],
        -32601
    );
    let odd =
        tester.call(&token, &[("mcp-protocol-version", "1999-01-01")], &request("ping", json!({}))).await;
    assert_eq!(odd.status, 400);
}

#[tokio::test]
async fn the_transport_refuses_what_is_not_a_single_json_message() {
    let tester = Tester::new();
    let (_, token, _) = tester.tokens().await;
    let bearer = format!("Bearer {token}");
    for method in ["GET", "DELETE"] {
        let answer = tester.send(method, "/mcp", &[("authorization", &bearer)], String::new()).await;
        assert_eq!((answer.status, answer.header("allow")), (405, "POST"));
        assert_eq!(tester.send(method, "/mcp", &[], String::new()).await.status, 401);
    }
    let ping = request("ping", json!({}));
    assert_eq!(tester.call(&token, &[("content-type", "text/plain")], &ping).await.status, 415);
    assert_eq!(tester.call(&token, &[("accept", "application/json")], &ping).await.status, 406);
    assert_eq!(tester.call(&token, &[("accept", "*/*")], &ping).await.status, 200);
    assert_eq!(tester.call(&token, &[], &json!([ping])).await.json()["error"]["code"], -32600);
    assert_eq!(
        tester.call(&token, &[], &json!({ "id": 1, "method": "ping" })).await.json()["error"]["code"],
        -32600
    );
    let null = json!({ "jsonrpc": "2.0", "id": null, "method": "ping" });
    assert_eq!(tester.call(&token, &[], &null).await.status, 400);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json; charset=utf-8"),
        ("accept", "application/json, text/event-stream"),
    ];
    assert_eq!(tester.send("POST", "/mcp", &headers, "{".into()).await.json()["error"]["code"], -32700);
    assert_eq!(tester.send("POST", "/mcp", &headers, " ".repeat(1024 * 1024 + 1)).await.status, 413);
}

/// A request of 2026-07-28 with its headers.
fn alone(method: &str, mut params: Value) -> (Vec<(&'static str, String)>, Value) {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let mut headers =
        vec![("mcp-protocol-version", "2026-07-28".to_owned()), ("mcp-method", method.to_owned())];
    if let Some(name) = params["name"].as_str() {
        headers.push(("mcp-name", name.to_owned()));
    }
    (headers, request(method, params))
}

async fn call_alone(tester: &Tester, token: &str, call: &(Vec<(&'static str, String)>, Value)) -> Answer {
    let headers: Vec<(&str, &str)> = call.0.iter().map(|(name, value)| (*name, value.as_str())).collect();
    tester.call(token, &headers, &call.1).await
}

#[tokio::test]
async fn the_standalone_revision_needs_no_opening() {
    let tester = Tester::new();
    let (_, token, _) = tester.tokens().await;
    let answer = call_alone(&tester, &token, &alone("server/discover", json!({}))).await;
    let result = &answer.json()["result"];
    assert_eq!((answer.status, &result["resultType"]), (200, &json!("complete")));
    assert_eq!(result["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "postern-demo");
    assert!(
        result["ttlMs"].is_u64()
            && result["cacheScope"] == "public"
            && result["capabilities"]["tools"].is_object()
    );
    let list = call_alone(&tester, &token, &alone("tools/list", json!({}))).await.json();
    assert!(list["result"]["ttlMs"].is_u64() && list["result"]["tools"].is_array());
    let who = call_alone(&tester, &token, &alone("tools/call", json!({ "name": "whoami" }))).await.json();
    assert_eq!(who["result"]["content"][0]["text"], "You are bea at Demo tools.");
    assert_eq!(who["result"]["resultType"], "complete");
    let mut coded = alone("tools/call", json!({ "name": "whoami" }));
    coded.0[2].1 = "=?base64?d2hvYW1p?=".to_owned();
    assert_eq!(call_alone(&tester, &token, &coded).await.status, 200);
    for gone in ["initialize", "ping", "subscriptions/listen"] {
        let answer = call_alone(&tester, &token, &alone(gone, json!({}))).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!(-32601)), "{gone}");
    }
}

#[tokio::test]
async fn the_standalone_revision_wants_headers_and_body_to_agree() {
    let tester = Tester::new();
    let (_, token, _) = tester.tokens().await;
    let good = alone("tools/call", json!({ "name": "whoami" }));
    let meta = "io.modelcontextprotocol/protocolVersion";
    let capabilities = "io.modelcontextprotocol/clientCapabilities";
    let mut cases = Vec::new();
    for (index, code) in [(0, -32020), (1, -32020), (2, -32020)] {
        let mut missing = good.clone();
        missing.0.remove(index);
        cases.push((missing, code));
        let mut wrong = good.clone();
        wrong.0[index].1 = "2025-11-25".to_owned();
        cases.push((wrong, code));
    }
    for key in [meta, capabilities] {
        let mut missing = good.clone();
        missing.1["params"]["_meta"].as_object_mut().unwrap().remove(key);
        cases.push((missing, -32602));
    }
    let mut future = good.clone();
    future.0[0].1 = "2099-01-01".to_owned();
    future.1["params"]["_meta"][meta] = json!("2099-01-01");
    cases.push((future, -32022));
    for (case, code) in cases {
        let answer = call_alone(&tester, &token, &case).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!(code)), "{case:?}");
        if code == -32022 {
            assert_eq!(answer.json()["error"]["data"]["supported"], json!(["2026-07-28"]));
        }
    }
}

#[tokio::test]
async fn other_sites_and_foreign_names_stay_out() {
    let tester = Tester::new();
    let path = "/.well-known/oauth-authorization-server";
    for (name, value, status) in [
        ("host", "evil.example:4110", 403),
        ("host", "127.0.0.1.evil.example", 403),
        ("host", "localhost:4110", 200),
        ("host", "[::1]:4110", 200),
        ("origin", "https://evil.example", 403),
        ("origin", "null", 403),
        ("origin", "http://127.0.0.1:8080", 200),
    ] {
        assert_eq!(
            tester.send("GET", path, &[(name, value)], String::new()).await.status,
            status,
            "{name}: {value}"
        );
    }
}

#[test]
fn a_full_table_drops_the_oldest() {
    let mut table = Table::default();
    for n in 0..=TABLE_SIZE {
        table.insert(n.to_string(), n);
    }
    assert!(table.find("0").is_none() && table.find("1").is_some());
    assert_eq!(table.entries.len(), TABLE_SIZE);
    table.remove("5");
    table.insert("new".into(), 0);
    assert_eq!(table.order.len(), TABLE_SIZE);
    assert!(table.find("new").is_some());
}

#[tokio::test]
async fn it_serves_until_told_to_stop() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, async {
        let _ = stopped.await;
    }));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /.well-known/oauth-protected-resource/mcp HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(&mcp_url(address)), "{answer}");
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn it_refuses_a_listener_open_to_others() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let error = serve(listener, async {}).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}
