//! The collections of hostile input under `tests/data`, each case with the answer that it has to get: redirect URIs,
//! PKCE, bearer tokens, cookies, header lines and messages. A case that is answered otherwise is named; all of a file are tried.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::path::Path;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use support::PATIENCE;
use support::authorization_server::AuthorizationServer;
use support::browser::{Browser, Page};
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::html::meta_refresh;
use support::mcp::McpAnswer;
use support::raw::{RawResponse, exchange};
use support::server::Server;
use support::upstream::Upstream;

const REDIRECT: &str = "https://client.example/cb";
const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"whoami"}}"#;

fn corpus(name: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    serde_json::from_str(&std::fs::read_to_string(&file).unwrap())
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn cases(corpus: &Value) -> &[Value] {
    let cases = corpus.as_array().unwrap();
    assert!(!cases.is_empty());
    cases
}

fn text<'c>(case: &'c Value, member: &str) -> &'c str {
    case[member].as_str().unwrap_or_else(|| panic!("{member} is missing: {case}"))
}

/// Says at the end which cases were answered otherwise than they should have been.
#[derive(Default)]
struct Judge(Vec<String>);

impl Judge {
    fn case(&mut self, case: &Value, holds: bool, answer: impl std::fmt::Debug) {
        if !holds {
            self.0.push(format!("{case}\n    got {answer:?}"));
        }
    }

    #[track_caller]
    fn ends(self) {
        assert!(self.0.is_empty(), "{} case(s):\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// An upstream without tokens that has its port for itself, so that `requests` holds whatever arrives there.
async fn lone_upstream() -> Upstream {
    let upstream = Upstream::relying_on(&AuthorizationServer::without_port()).await;
    upstream.set(|script| script.requires_auth = false);
    upstream
}

async fn open_gateway(upstream: &Upstream) -> Gateway {
    Gateway::builder().route(Route::open("demo", upstream)).start().await
}

async fn registration(gateway: &Gateway, uri: &str) -> McpAnswer {
    Client::register_with(gateway, &json!({"redirect_uris": [uri]})).await
}

async fn registered(gateway: &Gateway, uri: &str) -> Client {
    let answer = registration(gateway, uri).await;
    assert_eq!(answer.status, 201, "{uri}: {}", answer.body);
    Client::known_as(gateway, answer.json()["client_id"].as_str().unwrap(), uri)
}

fn leads_to_sign_in(page: &Page) -> bool {
    page.status == 303 && page.header("location").is_some_and(|location| location.starts_with("/login?next="))
}

/// Told to the user alone: the browser is sent nowhere by any means.
fn stays_here(page: &Page) -> bool {
    page.status == 400
        && page.header("location").is_none()
        && page.header("refresh").is_none()
        && meta_refresh(&page.body).is_none()
        && page.forms().is_empty()
}

#[tokio::test]
async fn sr_t10_sr_t13_sr_t14_sr_t15_redirect_uris() {
    let upstream = Upstream::open().await;
    let gateway = open_gateway(&upstream).await;
    let (corpus, mut judge) = (corpus("redirect_uris.json"), Judge::default());
    for case in cases(&corpus["register"]) {
        let (uri, accepted) = (text(case, "uri"), case["accepted"].as_bool().unwrap());
        let answer = registration(&gateway, uri).await;
        let refused = answer.status == 400 && answer.json()["error"] == "invalid_redirect_uri";
        judge.case(
            case,
            if accepted { answer.status == 201 } else { refused },
            (answer.status, &answer.body),
        );
        if accepted {
            let client = registered(&gateway, uri).await;
            let page = Browser::new().peek(&client.authorization("demo").url()).await;
            judge.case(case, leads_to_sign_in(&page), (page.status, page.text()));
        }
    }
    // One who has allowed the client before gets no other answer than one whom nobody knows.
    let mut regular = Browser::new();
    registered(&gateway, REDIRECT).await.sign_in(&mut regular, "demo").await;
    for case in cases(&corpus["authorize"]) {
        let client = registered(&gateway, text(case, "registered")).await;
        let request = client.authorization("demo").with("redirect_uri", text(case, "asked"));
        let accepted = case["accepted"].as_bool().unwrap();
        let page = Browser::new().peek(&request.url()).await;
        judge.case(
            case,
            if accepted { leads_to_sign_in(&page) } else { stays_here(&page) },
            (page.status, page.text()),
        );
        if !accepted {
            let mut twice = client.authorization("demo");
            twice.params = twice.params.and("redirect_uri", text(case, "asked"));
            // Whatever else is wrong: that too is not told to a stranger.
            for request in [request.clone(), request.clone().without("response_type"), twice] {
                let page = regular.peek(&request.url()).await;
                judge.case(case, stays_here(&page), (page.status, page.text()));
            }
        }
    }
    for case in cases(&corpus["next"]) {
        let mut browser = Browser::new();
        let query = support::params::Params::new().with("next", text(case, "next")).encoded();
        let page = browser.go(&gateway.url(&format!("/login?{query}"))).await.page();
        let form = page.form_to("/login");
        judge.case(case, form.value("next") == Some(text(case, "leads_to")), form.value("next"));
    }
    judge.ends();
}

#[tokio::test]
async fn sr_t11_pkce() {
    let upstream = Upstream::open().await;
    let gateway = open_gateway(&upstream).await;
    let (corpus, mut judge) = (corpus("pkce.json"), Judge::default());
    let client = registered(&gateway, REDIRECT).await;
    let mut browser = Browser::new();
    for case in cases(&corpus["authorize"]) {
        let mut request = client.authorization("demo");
        let pkce = request.pkce.clone();
        for (name, member) in [("code_challenge", "challenge"), ("code_challenge_method", "method")] {
            request = match case[member].as_str() {
                Some(value) => {
                    let value =
                        value.replace("CHALLENGE", &pkce.challenge).replace("VERIFIER", &pkce.verifier);
                    request.with(name, &value)
                }
                None => request.without(name),
            };
        }
        let page = browser.peek(&request.url()).await;
        let location = page.way_back().unwrap_or_default();
        let refused = location.starts_with(&format!("{REDIRECT}?error=invalid_request&"));
        let accepted = case["accepted"].as_bool().unwrap();
        judge.case(case, if accepted { leads_to_sign_in(&page) } else { refused }, (page.status, location));
    }
    let request = client.authorization("demo");
    let code = browser.authorize(REDIRECT, &request.url()).await.code();
    for case in cases(&corpus["token"]) {
        let redemption = client.redemption(&code, &request);
        let redemption = match case["verifier"].as_str() {
            Some("lower VERIFIER") => redemption.with("code_verifier", &request.pkce.verifier.to_lowercase()),
            Some(value) => {
                let value = value.replace("CHALLENGE", &request.pkce.challenge);
                redemption.with("code_verifier", &value.replace("VERIFIER", &request.pkce.verifier))
            }
            None => redemption.without("code_verifier"),
        };
        let answer = client.token(&redemption).await;
        judge.case(
            case,
            answer.status() == 400 && answer.error().as_deref() == case["error"].as_str(),
            &answer.0.body,
        );
    }
    judge.ends();
    // The code was worth something all along, so none of them failed for another reason.
    client.redeem(&code, &request).await.tokens();
}

/// A bearer token as its case describes it: `token`, or a JWT made of header, payload and signature.
fn token(case: &Value, fill: impl Fn(&str) -> String) -> String {
    let times = |member: &str| case[member].as_u64().unwrap_or(1) as usize;
    if let Some(token) = case["token"].as_str() {
        return format!("{}{}", case["prefix"].as_str().unwrap_or_default(), token.repeat(times("repeat")));
    }
    let part = |member: &str| match &case[member] {
        Value::String(text) => fill(text),
        value => fill(&value.to_string()),
    };
    let payload = part("payload").repeat(times("repeat_payload"));
    let signed = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(part("header").as_bytes()),
        BASE64URL_NOPAD.encode(payload.as_bytes())
    );
    let signature = match case["hmac"].as_str() {
        Some(secret) => {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, fill(secret).as_bytes());
            BASE64URL_NOPAD.encode(ring::hmac::sign(&key, signed.as_bytes()).as_ref())
        }
        None => text(case, "signature").repeat(times("repeat_signature")),
    };
    format!("{signed}.{signature}")
}

async fn post(gateway: &Gateway, target: &str, lines: &[String], body: &str) -> Option<RawResponse> {
    let typed = lines.iter().any(|line| line.to_lowercase().starts_with("content-type:"));
    let mut head =
        format!("POST {target} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n", gateway.address, body.len());
    if !typed {
        head.push_str("content-type: application/json\r\n");
    }
    for line in lines {
        head.push_str(&format!("{line}\r\n"));
    }
    exchange(gateway.address, format!("{head}\r\n{body}"), PATIENCE).await
}

/// The `error` of the one challenge; the challenge has to be one of ours.
fn challenge(gateway: &Gateway, answer: &RawResponse) -> Option<String> {
    let values: Vec<_> = answer.headers.iter().filter(|(name, _)| name == "www-authenticate").collect();
    let [(_, value)] = values.as_slice() else { return Some(format!("{} challenges", values.len())) };
    let challenges = http_auth::parse_challenges(value).unwrap_or_default();
    let [challenge] = challenges.as_slice() else { return Some(format!("no single challenge: {value}")) };
    let find = |wanted: &str| {
        let found = challenge.params.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, value)| value.to_unescaped())
    };
    let metadata = gateway.url("/.well-known/oauth-protected-resource/demo");
    match find("resource_metadata") {
        Some(named) if named == metadata => find("error"),
        other => Some(format!("metadata at {other:?}")),
    }
}

#[tokio::test]
async fn sr_t27_bearer_tokens() {
    let upstream = lone_upstream().await;
    let gateway = open_gateway(&upstream).await;
    let evil = Server::start(|_, _| async { axum::http::Response::new(axum::body::Body::empty()) }).await;
    let keys = gateway.http.get(gateway.url("/oauth/jwks.json")).send().await.unwrap().text().await.unwrap();
    let client = registered(&gateway, REDIRECT).await;
    let good = client.sign_in(&mut Browser::new(), "demo").await.access_token;
    let fill = |text: &str| {
        text.replace("ISSUER", &gateway.public_url)
            .replace("RESOURCE", &client.resource("demo"))
            .replace("CLIENT", &client.id)
            .replace("KEYS", &keys)
            .replace("EVIL", &format!("http://{}", evil.address))
    };
    let (corpus, mut judge) = (corpus("tokens.json"), Judge::default());
    assert!(cases(&corpus).len() >= 60);
    for case in cases(&corpus) {
        let line = format!("authorization: Bearer {}", token(case, fill));
        let answer = post(&gateway, "/demo", &[line], CALL).await;
        let error = if case["status"] == 400 { "invalid_request" } else { "invalid_token" };
        let holds = answer.as_ref().is_some_and(|answer| {
            case["status"] == answer.status && challenge(&gateway, answer).as_deref() == Some(error)
        });
        judge.case(
            case,
            holds,
            answer.map(|answer| (answer.status, challenge(&gateway, &answer), answer.text())),
        );
    }
    judge.ends();
    assert_eq!(upstream.requests.paths(), Vec::<String>::new(), "something reached the upstream");
    assert_eq!(evil.connections_opened(), 0, "a token made the gateway ask somebody");
    let answer = post(&gateway, "/demo", &[format!("authorization: Bearer {good}")], CALL).await.unwrap();
    assert_eq!(answer.status, 200, "a good token is served all the same");
}

#[tokio::test]
async fn sr_t06_cookies() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).tls().start().await;
    let client = registered(&gateway, REDIRECT).await;
    let mut browser = Browser::new().trusting(&gateway.roots);
    client.sign_in(&mut browser, "demo").await;
    let session = browser.jar.find("__Host-postern-session").unwrap().value.clone();
    assert_ne!(session, session.to_lowercase(), "its case can be changed");
    let (corpus, mut judge) = (corpus("cookies.json"), Judge::default());
    for case in cases(&corpus) {
        // Whatever is remembered, the page is shown to whoever is signed in.
        let request = client.authorization("demo").with("prompt", "consent");
        let mut request = gateway.http.get(request.url());
        for line in lines_of(case) {
            let line = line
                .replace("lower SESSION", &session.to_lowercase())
                .replace("shorter SESSION", &session[..session.len() - 1])
                .replace("SESSION", &session)
                .replace("PORT", &gateway.address.port().to_string());
            request = request.header("cookie", line);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let expected = if case["signed_in"].as_bool().unwrap() { 200 } else { 303 };
        judge.case(case, status == expected, status);
    }
    judge.ends();
}

/// Header lines, or values, of a case.
fn lines_of(case: &Value) -> Vec<String> {
    case["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn sr_t35_sr_t37_sr_t38_sr_rs_04_sr_rs_08_headers() {
    let upstream = lone_upstream().await;
    let key = support::secret("configured");
    let route = Route::header("demo", &upstream, "X-Api-Key", json!({"env": "KEY"}));
    let gateway = Gateway::builder().route(route).env("KEY", &key).start().await;
    let client = registered(&gateway, REDIRECT).await;
    let good = client.sign_in(&mut Browser::new(), "demo").await.access_token;
    let host = gateway.address.to_string();
    let fill = |text: &str| text.replace("TOKEN", &good).replace("KEY", &key).replace("HOST", &host);
    let (corpus, mut judge) = (corpus("headers.json"), Judge::default());
    for case in cases(&corpus) {
        upstream.requests.clear();
        let lines: Vec<String> = lines_of(case).iter().map(|line| fill(line)).collect();
        let target = fill(case["target"].as_str().unwrap_or("/demo"));
        let answer = post(&gateway, &target, &lines, &fill(case["body"].as_str().unwrap_or(CALL))).await;
        let Some(answer) = answer else {
            judge.case(case, false, "no answer");
            continue;
        };
        let allowed = match &case["status"] {
            Value::Array(several) => several.iter().any(|status| *status == answer.status),
            one => *one == answer.status,
        };
        judge.case(case, allowed, (answer.status, answer.text()));
        let calls = upstream.requests.all();
        judge.case(case, calls.len() == usize::from(answer.status == 200), calls.len());
        if !case["status"].is_array() && matches!(answer.status, 400 | 401) && case["error"] != "" {
            let error = challenge(&gateway, &answer);
            judge.case(case, error.as_deref() == case["error"].as_str(), error);
        }
        let Some(call) = calls.first() else { continue };
        let all = call.everything();
        judge.case(case, !all.contains("forged") && !all.contains(&good), &all);
        judge.case(
            case,
            call.path == "/mcp" && !call.headers.keys().any(|name| name.as_str().contains('_')),
            &all,
        );
        for (name, value) in case["seen"].as_object().into_iter().flatten() {
            let seen: Vec<_> =
                call.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
            let wanted: Vec<String> = value.as_str().map(fill).into_iter().collect();
            judge.case(case, seen == wanted, (name, seen));
        }
    }
    judge.ends();
    // Nothing a client sends is laid at the upstream's door.
    let log = gateway.output.text();
    assert!(!log.contains("the upstream's answer"), "{log}");
}

/// The request of a case, framed in one of three ways: its length said, in pieces of one byte, or too long to be read
/// ahead.
fn framed(case: &Value, gateway: &Gateway, token: &str, framing: &str) -> (Vec<u8>, Vec<u8>) {
    let mut body = Vec::new();
    let mut rest = text(case, "body");
    // `<ff>` is that byte.
    while let Some((before, (hex, after))) =
        rest.split_once('<').and_then(|(before, tail)| Some((before, tail.split_once('>')?)))
    {
        body.extend_from_slice(before.as_bytes());
        body.push(u8::from_str_radix(hex, 16).unwrap());
        rest = after;
    }
    body.extend_from_slice(rest.as_bytes());
    let method = case["method"].as_str().unwrap_or("POST");
    let target = case["target"].as_str().unwrap_or("/demo");
    let mut head = format!(
        "{method} {target} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\n",
        gateway.address
    );
    match case["type"].as_str().unwrap_or("application/json") {
        "" => {}
        kind => head.push_str(&format!("content-type: {kind}\r\n")),
    }
    for line in case["lines"].as_array().into_iter().flatten() {
        head.push_str(&format!("{}\r\n", line.as_str().unwrap()));
    }
    let mut request = Vec::new();
    if framing == "in pieces" {
        request.extend_from_slice(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes());
        for byte in &body {
            request.extend_from_slice(&[b"1\r\n", &[*byte][..], b"\r\n"].concat());
        }
        request.extend_from_slice(b"0\r\n\r\n");
    } else {
        if framing == "long" {
            body.resize(body.len() + 100_000, b' ');
        }
        request.extend_from_slice(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes());
        request.extend_from_slice(&body);
    }
    (request, body)
}

#[tokio::test]
async fn sr_t52_sr_rs_10_messages() {
    let scopes = |route: Route| route.with("tool_scopes", json!({"delete": ["demo:delete"]}));
    messages(scopes, |answer, error| answer.status == 403 && *error == "insufficient_scope").await;
}

/// The same under a rule that looks at arguments, so that more of each message is read.
#[tokio::test]
async fn sr_t52_sr_rs_10_messages_under_a_rule_on_arguments() {
    let rule = "mcp.tool == 'delete' || has(mcp.arguments.path) && mcp.arguments.path == 'forbidden'";
    let rules = json!({"default": "allow", "call": [{"name": "no-delete", "deny": rule}]});
    messages(
        |route| route.with("policy", rules),
        |answer, error| match &error["code"] {
            // Nobody waits for an answer to a notification.
            Value::Null => answer.status == 403 && *error == "access_denied",
            code => answer.status == 200 && *code == -32099,
        },
    )
    .await;
}

/// `demand`: what makes a call of `delete` one that is denied; `is_denied`: how.
async fn messages(demand: impl FnOnce(Route) -> Route, is_denied: impl Fn(&RawResponse, &Value) -> bool) {
    let upstream = lone_upstream().await;
    let gateway = Gateway::builder().route(demand(Route::open("demo", &upstream))).start().await;
    let client = registered(&gateway, REDIRECT).await;
    let token = client.sign_in(&mut Browser::new(), "demo").await.access_token;
    let (corpus, mut judge) = (corpus("messages.json"), Judge::default());
    for case in cases(&corpus) {
        for framing in ["short", "in pieces", "long"] {
            upstream.requests.clear();
            let (request, body) = framed(case, &gateway, &token, framing);
            let Some(answer) = exchange(gateway.address, request, PATIENCE).await else {
                judge.case(case, false, (framing, "no answer"));
                continue;
            };
            let error = || serde_json::from_slice::<Value>(&answer.body).unwrap_or_default()["error"].clone();
            // Where the body is held back, its head is there already.
            let mut arrived = upstream.requests.all();
            arrived.retain(|request| !request.body.is_empty());
            let holds = match text(case, "answer") {
                "passes" => matches!(arrived.as_slice(), [one] if one.body == body),
                "denied" => arrived.is_empty() && is_denied(&answer, &error()),
                "refused" => arrived.is_empty() && answer.status == 400 && error() == "invalid_request",
                "mismatch" => arrived.is_empty() && answer.status == 400 && error()["code"] == -32020,
                other => panic!("{other}"),
            };
            judge.case(case, holds, (framing, answer.status, answer.text(), arrived.len()));
        }
    }
    judge.ends();
}
