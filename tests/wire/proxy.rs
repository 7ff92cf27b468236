//! The proxy: what passes untouched, what is taken away and added on both ways, and which requests are not passed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use serde_json::json;
use support::authorization_server::AuthorizationServer;
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::mcp::McpRequest;
use support::params::Params;
use support::raw::{RawConnection, RawResponse, exchange};
use support::received::{Received, Requests};
use support::script::Answer;
use support::server::Server;
use support::tls_server::TlsServer;
use support::upstream::Upstream;
use support::{CANARY, PATIENCE, secret, within};

/// How long either end may take to notice that the other one has gone.
const SOON: Duration = Duration::from_secs(1);
const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"whoami"}}"#;

/// A gateway with the route `demo`, and a token for it.
struct Bench {
    gateway: Gateway,
    token: String,
}

impl Bench {
    async fn of(route: Route) -> Self {
        Self::start(Gateway::builder().route(route)).await
    }

    async fn start(builder: support::gateway::Builder) -> Self {
        let gateway = builder.start().await;
        let mut browser = Browser::new().trusting(&gateway.roots);
        let client = Client::register(&gateway).await;
        let token = client.sign_in(&mut browser, "demo").await.access_token;
        Bench { gateway, token }
    }

    /// Before an upstream that asks for no token.
    async fn before(upstream: &Upstream) -> Self {
        Self::of(Route::open("demo", upstream)).await
    }

    fn call(&self) -> McpRequest {
        self.gateway.mcp("demo").bearer(&self.token)
    }

    fn at(&self, path: &str) -> McpRequest {
        McpRequest::to(&self.gateway.http, &self.gateway.url(path)).bearer(&self.token)
    }

    /// Host and authorization, for requests written by hand.
    fn lines(&self) -> String {
        format!("host: {}\r\nauthorization: Bearer {}\r\n", self.gateway.address, self.token)
    }

    /// A POST to the route by hand: these header lines and this body, nothing else.
    fn post(&self, more: &str, body: &str) -> String {
        format!("POST /demo HTTP/1.1\r\n{}{more}\r\n{body}", self.lines())
    }

    async fn raw(&self, request: impl Into<Vec<u8>>) -> Option<RawResponse> {
        exchange(self.gateway.address, request, PATIENCE).await
    }
}

/// An upstream without tokens whose `requests` hold everything that arrives on its port.
async fn lone_upstream() -> Upstream {
    let upstream = Upstream::relying_on(&AuthorizationServer::without_port()).await;
    upstream.set(|script| script.requires_auth = false);
    upstream
}

/// A server that sends every body back as it came, and remembers the requests.
async fn echo() -> (Server, Requests, Route) {
    let requests = Requests::default();
    let seen = requests.clone();
    let server = Server::start(move |request: Received, _| {
        seen.add(request.clone());
        async move {
            let kind = request.header("content-type").unwrap_or_default();
            Response::builder().header("content-type", kind).body(Body::from(request.body)).unwrap()
        }
    })
    .await;
    let route = Route::to("demo", &format!("http://{}/mcp", server.address), json!({"kind": "none"}));
    (server, requests, route)
}

/// Bytes without any pattern that a compressor or a chunk size could hide in.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..length).map(|_| next()).collect()
}

// === what passes ===

#[tokio::test]
async fn a_2025_session_lasts_from_initialize_to_delete() {
    let upstream = lone_upstream().await;
    upstream.set(|script| script.sessions = true);
    let bench = Bench::before(&upstream).await;
    let first = bench.call().call("initialize", json!({"protocolVersion": "2025-11-25"})).await;
    assert_eq!(first.result()["protocolVersion"], "2025-11-25");
    let session = first.header("mcp-session-id").unwrap().to_owned();
    let call = bench.call().header("Mcp-Session-Id", &session);
    assert_eq!(call.post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await.status, 202);
    assert_eq!(call.tool("echo", json!({"message": "hi"})).await.tool_text(), "hi");
    upstream.answer_next(Answer::Events(vec!["one".into()]));
    let mut stream = call.header("last-event-id", "ev/41=").events().await;
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    assert_eq!(stream.next(PATIENCE).await.unwrap().data, "one");
    let call = bench.call().header("mcp-session-id", &session);
    assert_eq!(call.delete().await.status, 204);
    assert_eq!(call.tool("echo", json!({})).await.status, 404, "the session is over");
    assert_eq!(bench.call().tool("echo", json!({})).await.status, 400, "without one");

    let seen = upstream.requests.all();
    let methods: Vec<&str> = seen.iter().map(|request| request.method.as_str()).collect();
    assert_eq!(methods, ["POST", "POST", "POST", "GET", "DELETE", "POST", "POST"]);
    for request in &seen {
        assert_eq!(request.target(), "/mcp");
        assert_eq!(request.header("mcp-protocol-version").as_deref(), Some("2025-11-25"));
    }
    // One session there, under another name than here.
    let there = seen[1].header("mcp-session-id").unwrap();
    assert!(session.starts_with("postern_ms_") && !session.contains(&there));
    for request in &seen[1..6] {
        assert_eq!(request.header("mcp-session-id").as_ref(), Some(&there));
    }
    assert_eq!(seen[3].header("last-event-id").as_deref(), Some("ev/41="));
}

#[tokio::test]
async fn sr_rs_10_the_headers_of_2026_arrive_as_they_were_sent() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let sent = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "=?base64?w7xiZXI=?="),
        ("mcp-param-region", "eu west, 1"),
        ("mcp-param-unknown", "kept"),
        ("accept", "application/json, text/event-stream"),
        ("accept-language", "de, en;q=0.5"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("user-agent", "rig/1"),
    ];
    let mut call = bench.call();
    for (name, value) in sent {
        call = call.header(name, value);
    }
    assert_eq!(call.post(CALL).await.status, 200);
    let seen = upstream.requests.last_to("/mcp");
    for (name, value) in sent {
        let values: Vec<_> = seen.headers.get_all(name).iter().collect();
        assert_eq!(values, [value], "{name}");
    }
    assert_eq!(seen.text(), CALL);
}

#[tokio::test]
async fn answers_keep_status_headers_and_body() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let error = r#"{ "jsonrpc":"2.0", "id":null,"error":{"code":-32020,"message":"x"} }"#;
    for status in [200, 202, 204, 302, 400, 403, 404, 405, 406, 409, 410, 415, 422, 429, 500, 501, 502, 503] {
        let body = match status {
            202 | 204 => "",
            _ => error,
        };
        let headers = [
            ("content-type", "application/json; charset=utf-8"),
            ("mcp-protocol-version", "2025-11-25"),
            ("allow", "POST"),
            ("retry-after", "7"),
            ("cache-control", "private, max-age=3"),
            ("x-accel-buffering", "no"),
            ("x-of-the-upstream", "kept"),
            ("etag", "\"1\""),
        ];
        upstream.answer_next(Answer::http(status, &headers, body));
        let answer = bench.call().post(CALL).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, body));
        for (name, value) in headers {
            assert_eq!(answer.header(name), Some(value), "{status} {name}");
        }
    }
}

#[tokio::test]
async fn path_below_the_route_and_query_go_along() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    for (asked, forwarded) in [
        ("/demo", "/mcp"),
        ("/demo?a=1&b=%20&a=2", "/mcp?a=1&b=%20&a=2"),
        ("/demo?", "/mcp?"),
        ("/demo/sse/x", "/mcp/sse/x"),
        ("/demo/x?y=/../z", "/mcp/x?y=/../z"),
    ] {
        upstream.requests.clear();
        bench.at(asked).post("{}").await;
        let line = upstream.requests.paths().pop().unwrap();
        assert_eq!(line, format!("POST {forwarded}"), "{asked}");
    }
}

#[tokio::test]
async fn sr_t52_bodies_pass_byte_for_byte() {
    let (_server, requests, route) = echo().await;
    let bench = Bench::of(route).await;
    let big = noise(1024 * 1024);
    let odd = "\u{feff}{ \"id\" :1,\"id\":2,\t\"\\u006dethod\":\"x\",\"n\":1.0e+2,\"u\":\"\\ud83d\\ude00ü\" }\r\n\r\n";
    let bodies: [&[u8]; 5] = [odd.as_bytes(), b"[{},{}]", b"\0\x01\xff\xfe", b" ", &big];
    for body in bodies {
        for chunked in [false, true] {
            let mut connection = RawConnection::open(bench.gateway.address).await;
            let framing = match chunked {
                true => "transfer-encoding: chunked\r\n".to_owned(),
                false => format!("content-length: {}\r\n", body.len()),
            };
            let mut request =
                bench.post(&format!("content-type: application/json\r\n{framing}"), "").into_bytes();
            if chunked {
                for piece in body.chunks(10_007) {
                    request.extend(format!("{:x}\r\n", piece.len()).into_bytes());
                    request.extend(piece);
                    request.extend(b"\r\n");
                }
                request.extend(b"0\r\n\r\n");
            } else {
                request.extend(body);
            }
            connection.send(request).await;
            let answer = connection.response(PATIENCE).await.unwrap();
            assert_eq!(answer.status, 200);
            let seen = requests.last_to("/mcp");
            assert!(seen.body == body, "{} bytes arrived otherwise", body.len());
            assert!(answer.body == body, "{} bytes came back otherwise", body.len());
        }
    }
}

#[tokio::test]
async fn an_encoded_answer_stays_encoded() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let headers =
        [("content-type", "application/json"), ("content-encoding", "gzip"), ("vary", "accept-encoding")];
    upstream.answer_next(Answer::http(200, &headers, "not really gzip"));
    let answer = bench.call().header("accept-encoding", "gzip, br;q=0.5").post(CALL).await;
    assert_eq!(answer.body, "not really gzip");
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(
        upstream.requests.last_to("/mcp").header("accept-encoding").as_deref(),
        Some("gzip, br;q=0.5")
    );
}

#[tokio::test]
async fn http_2_over_tls_reaches_the_same_route() {
    let upstream = lone_upstream().await;
    let bench = Bench::start(Gateway::builder().tls().route(Route::open("demo", &upstream))).await;
    let answer = bench.call().send("POST", Some(CALL)).await;
    assert_eq!((answer.version(), answer.status().as_u16()), (reqwest::Version::HTTP_2, 200));
    let seen = upstream.requests.last_to("/mcp");
    let port = bench.gateway.address.port();
    assert_eq!(seen.header("x-forwarded-host"), Some(format!("localhost:{port}")));
    assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(seen.text(), CALL);
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let mut stream = bench.call().events().await;
    feed.event("over h2");
    assert_eq!(stream.next(PATIENCE).await.unwrap().data, "over h2");
    drop(stream);
    within(SOON, feed.gone()).await;
}

// === streams ===

#[tokio::test]
async fn sr_rs_11_events_are_flushed_one_by_one_and_not_touched() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    for method in ["GET", "POST"] {
        let (feed, answer) = Answer::stream();
        upstream.answer_next(answer);
        let body = (method == "POST").then_some(CALL);
        let mut stream = bench.call().send(method, body).await;
        assert_eq!(stream.headers()["content-type"], "text/event-stream");
        assert_eq!(stream.headers()["cache-control"], "no-cache");
        let pieces = [
            "id: 0\ndata:\n\n",
            "retry: 10\n\n",
            ": comment\n\n",
            "event: message\r\nid: a/1\r\ndata: {\"x\":\r\ndata: 1}\r\n\r\n",
            "data: half of ",
            "an event\n\n",
            "unknown: field\n\n",
        ];
        // Each piece arrives before the next one is even sent.
        for piece in pieces {
            feed.bytes(piece);
            let mut arrived = Vec::new();
            while arrived.len() < piece.len() {
                let chunk = within(PATIENCE, stream.chunk()).await.unwrap().unwrap();
                arrived.extend_from_slice(&chunk);
            }
            assert_eq!(String::from_utf8(arrived).unwrap(), piece);
        }
        feed.finish();
        let end = within(PATIENCE, stream.chunk()).await;
        assert!(matches!(end, Ok(None)), "a proper end arrives as one: {end:?}");
    }
}

#[tokio::test]
async fn sr_rs_11_sr_t53_a_client_that_leaves_ends_the_upstream_stream_within_a_second() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    for (method, talks) in [("GET", true), ("GET", false), ("POST", true), ("POST", false)] {
        let (feed, answer) = Answer::stream();
        upstream.answer_next(answer);
        let body = (method == "POST").then_some(CALL);
        let mut stream = bench.call().send(method, body).await;
        if talks {
            feed.event("one");
            within(PATIENCE, stream.chunk()).await.unwrap().unwrap();
        }
        drop(stream);
        within(SOON, feed.gone()).await;
    }
    // Before the upstream has answered at all.
    let gate = support::gate::Gate::shut();
    upstream.set(|script| script.gate = Some(gate.clone()));
    let body = format!("content-length: {}\r\n", CALL.len());
    let mut connection = RawConnection::open(bench.gateway.address).await;
    connection.send(bench.post(&body, CALL)).await;
    gate.wait_for(1, PATIENCE).await;
    drop(connection);
    support::eventually(SOON, || async { gate.waiting() == 0 }).await;
}

#[tokio::test]
async fn sr_rs_11_sr_t53_a_slow_reader_is_not_buffered_for_without_end() {
    let upstream = lone_upstream().await;
    let given = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    upstream.answer_next(Answer::Endless(std::sync::Arc::clone(&given)));
    let bench = Bench::before(&upstream).await;
    let mut connection = RawConnection::open(bench.gateway.address).await;
    connection.send(format!("GET /demo HTTP/1.1\r\n{}\r\n", bench.lines())).await;
    let so_far = || given.load(std::sync::atomic::Ordering::Relaxed);
    // The socket buffers fill up, then the upstream has to wait: nothing more, however often one looks.
    let (mut last, mut looks) = (0, 0);
    support::eventually(PATIENCE, || {
        let now = so_far();
        looks = if now > 0 && now == last { looks + 1 } else { 0 };
        last = now;
        let calm = looks > 40;
        async move { calm }
    })
    .await;
    assert!(so_far() < 32 * 1024 * 1024, "{} bytes are held somewhere", so_far());
}

#[tokio::test]
async fn sr_f18_an_upstream_that_dies_ends_the_clients_stream_within_a_second() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let mut stream = bench.call().send("GET", None).await;
    feed.event("one");
    within(PATIENCE, stream.chunk()).await.unwrap().unwrap();
    upstream.server.cut_all();
    let end = within(SOON, stream.chunk()).await;
    assert!(end.is_err(), "a broken stream does not look complete: {end:?}");
    upstream.answer_next(Answer::Half);
    let mut half = bench.call().send("POST", Some(CALL)).await;
    let mut broken = false;
    while !broken {
        match within(SOON, half.chunk()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("half an answer looked complete"),
            Err(_) => broken = true,
        }
    }
    assert_eq!(bench.call().tool("whoami", json!({})).await.status, 200, "the next call works");
}

// === two worlds ===

#[tokio::test]
async fn sr_t49_an_answer_cannot_act_on_our_origin() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let hostile = [
        ("set-cookie", "__Host-postern=evil; Path=/; Secure"),
        ("set-cookie", "b=2"),
        ("clear-site-data", "\"*\""),
        ("service-worker-allowed", "/"),
        ("access-control-allow-origin", "*"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "*"),
        ("access-control-allow-private-network", "true"),
        ("alt-svc", "h3=\":443\""),
        ("strict-transport-security", "max-age=99999999; includeSubDomains"),
        ("refresh", "0; url=https://evil.test/"),
        ("link", "<https://evil.test/x.js>; rel=preload; as=script"),
        ("www-authenticate", "Bearer resource_metadata=\"https://evil.test/\""),
        ("content-security-policy", "default-src *"),
        ("content-security-policy-report-only", "default-src 'none'; report-uri https://evil.test/"),
        ("nel", "{\"report_to\":\"x\",\"max_age\":9999}"),
        ("report-to", "{\"group\":\"x\",\"endpoints\":[]}"),
        ("reporting-endpoints", "x=\"https://evil.test/\""),
        ("x-content-type-options", "sniff"),
        ("content-disposition", "inline"),
    ];
    for status in [200, 404, 500] {
        for (kind, attached) in [
            ("text/html", true),
            ("TEXT/HTML; charset=utf-8", true),
            ("image/svg+xml", true),
            ("application/xhtml+xml", true),
            ("text/javascript", true),
            ("application/jsonx", true),
            ("text/plain", true),
            ("application/json", false),
            ("application/json; charset=utf-8", false),
            ("Application/JSON", false),
            ("application/problem+json", false),
            ("text/event-stream", false),
        ] {
            let mut headers = hostile.to_vec();
            headers.push(("content-type", kind));
            upstream.answer_next(Answer::http(status, &headers, "<script>alert(1)</script>"));
            let answer = bench.call().post(CALL).await;
            assert_eq!(answer.status, status);
            for (name, value) in hostile {
                let kept = answer.headers.get_all(name).iter().any(|kept| kept == value);
                let allowed = name == "content-disposition" && !attached;
                assert!(!kept || allowed, "{name}: {value} came through as {kind}");
            }
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(answer.header("content-security-policy"), Some("sandbox; default-src 'none'"));
            let policies = answer.headers.get_all("content-security-policy");
            assert_eq!(policies.iter().count(), 1);
            let attachment = answer.header("content-disposition") == Some("attachment");
            assert_eq!(attachment, attached, "{kind}");
            assert_eq!(answer.header("content-type"), Some(kind));
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
    }
    let headers = [("access-control-allow-origin", "*"), ("content-type", "application/json")];
    upstream.answer_next(Answer::http(200, &headers, "{}"));
    let origin = "http://localhost:6274";
    let answer = bench.call().header("origin", origin).post(CALL).await;
    let allowed: Vec<_> = answer.headers.get_all("access-control-allow-origin").iter().collect();
    assert_eq!(allowed, [origin], "ours alone");
}

#[tokio::test]
async fn sr_t37_nothing_the_client_says_about_itself_reaches_the_upstream() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let claims = [
        "Cookie",
        "Proxy-Authorization",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-User",
        "X-Forwarded-Email",
        "X-Forwarded-Uri",
        "X-Forwarded-Prefix",
        "X-Forwarded-Client-Cert",
        "X_Forwarded_User",
        "X_Forwarded_For",
        "x_real_ip",
        "X-Real-IP",
        "X-Client-IP",
        "True-Client-IP",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Original-Uri",
        "X-Remote-User",
        "Remote-User",
        "Remote_User",
        "X-Auth-Request-User",
        "X-Postern-User",
        "X-Postern-Grant",
        "Referer",
        "Via",
    ];
    let mut call = bench.call().header("origin", "http://localhost:6274");
    for name in claims {
        call = call.header(name, "127.6.6.6-forged");
    }
    call = call.and_header("x-forwarded-for", "127.6.6.7-forged");
    call = call.header("sec-fetch-site", "none");
    assert_eq!(call.post(CALL).await.status, 200);
    let seen = upstream.requests.last_to("/mcp");
    assert!(!seen.everything().contains("forged"), "{}", seen.everything());
    let names: Vec<&str> = seen.headers.keys().map(|name| name.as_str()).collect();
    for name in ["authorization", "cookie", "origin", "sec-fetch-site", "forwarded"] {
        assert!(!names.contains(&name), "{name} in {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains('_')), "{names:?}");
    // What we say ourselves, once each.
    let authority = bench.gateway.address.to_string();
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", authority.as_str()),
        ("x-forwarded-proto", "http"),
        ("host", &upstream.server.address.to_string()),
    ] {
        let values: Vec<_> = seen.headers.get_all(name).iter().collect();
        assert_eq!(values, [value], "{name}");
    }
}

#[tokio::test]
async fn sr_t38_hop_by_hop_headers_stay_here_and_cannot_remove_ours() {
    let upstream = Upstream::start().await;
    let key = secret("static_key");
    let route = Route::header("demo", &upstream, "X-Api-Key", json!({"env": "KEY"}));
    upstream.set(|script| script.requires_auth = false);
    let bench = Bench::start(Gateway::builder().route(route).env("KEY", &key)).await;
    let length = format!("content-length: {}\r\n", CALL.len());
    for connection in [
        "authorization",
        "x-api-key",
        "x-forwarded-for",
        "authorization, x-api-key",
        "close, x-api-key",
        "keep-alive, x-custom",
    ] {
        upstream.requests.clear();
        let more = format!("{length}connection: {connection}\r\nx-custom: 1\r\nx-api-key: forged\r\n");
        let answer = bench.raw(bench.post(&more, CALL)).await.unwrap();
        if answer.status == 400 {
            assert!(upstream.calls().is_empty(), "{connection}");
            continue;
        }
        assert_eq!(answer.status, 200, "{connection}");
        let seen = upstream.requests.last_to("/mcp");
        let keys: Vec<_> = seen.headers.get_all("x-api-key").iter().collect();
        assert_eq!(keys, [key.as_str()], "{connection}");
        assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        assert_eq!(seen.header("authorization"), None);
        assert_eq!(seen.header("x-custom").is_none(), connection.contains("x-custom"));
    }
    upstream.requests.clear();
    let hops = "keep-alive: timeout=9\r\nproxy-connection: keep-alive\r\nte: trailers\r\ntrailer: x-t\r\n\
                upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nconnection: te, upgrade, http2-settings\r\n";
    let answer = bench.raw(bench.post(&format!("{length}{hops}"), CALL)).await.unwrap();
    assert_eq!(answer.status, 200);
    let seen = upstream.requests.last_to("/mcp");
    for name in [
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "proxy-authorization",
    ] {
        assert_eq!(seen.header(name), None, "{name}");
    }
    upstream.requests.clear();
    for nominated in ["mcp-session-id", "Mcp-Protocol-Version", "close, mcp-name", "host", "x,mcp-param-a"] {
        let more = format!("{length}connection: {nominated}\r\n");
        let answer = bench.raw(bench.post(&more, CALL)).await.unwrap();
        assert_eq!(answer.status, 400, "{nominated}");
    }
    assert!(upstream.calls().is_empty());
}

#[tokio::test]
async fn sr_t26_pom_12_no_token_crosses_the_gateway() {
    let upstream = Upstream::start().await;
    let bench = Bench::of(Route::oauth("demo", &upstream)).await;
    let answer = bench.call().tool("whoami", json!({})).await;
    assert_eq!(answer.tool_text(), "upstream-user");
    let seen = upstream.calls_with_token();
    assert_eq!(seen.len(), 1);
    let upstream_token = seen[0].bearer().unwrap();
    assert!(upstream_token.starts_with(CANARY) && upstream_token != bench.token);
    assert_eq!(seen[0].headers.get_all("authorization").iter().count(), 1);
    // Every answer the client can provoke, good or bad.
    let mut answers = vec![answer];
    for status in [400, 403, 500] {
        upstream.answer_next(Answer::http(status, &[("content-type", "text/plain")], "no"));
        answers.push(bench.call().post(CALL).await);
    }
    upstream.answer_next(Answer::InsufficientScope("admin".into()));
    answers.push(bench.call().post(CALL).await);
    upstream.answer_next(Answer::Hangup);
    answers.push(bench.call().post(CALL).await);
    for answer in &answers {
        let all = format!("{:?}{}", answer.headers, answer.body);
        assert!(!all.contains(CANARY), "{all}");
        assert!(!all.contains("upstream refuses"), "{all}");
    }
    for requests in [&upstream.requests, &upstream.authorization.requests] {
        assert!(!requests.mention(&bench.token));
        assert!(!requests.mention("postern_at_"));
    }
    bench.gateway.output.assert_no_secret();
    assert!(!bench.gateway.output.text().contains(&bench.token));
}

// === credentials ===

#[tokio::test]
async fn sr_rs_07_a_route_without_credential_sends_none() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    assert_eq!(bench.call().tool("whoami", json!({})).await.tool_text(), "nobody");
    let seen = upstream.requests.last_to("/mcp");
    assert_eq!(seen.header("authorization"), None);
    assert!(!seen.everything().contains(&bench.token));
}

#[tokio::test]
async fn sr_rs_07_a_configured_header_is_sent_for_everybody_and_owns_its_name() {
    let key = secret("configured");
    for (name, format, expected) in [
        ("Authorization", Some("Bearer {value}"), format!("Bearer {key}")),
        ("X-Api-Key", None, key.clone()),
        ("X-Api-Key", Some("Token token=\"{value}\""), format!("Token token=\"{key}\"")),
    ] {
        for from_file in [false, true] {
            let upstream = lone_upstream().await;
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("key");
            std::fs::write(&file, format!("{key}\n")).unwrap();
            let value = match from_file {
                true => json!({"file": file}),
                false => json!({"env": "UPSTREAM_KEY"}),
            };
            let mut route = Route::header("demo", &upstream, name, value);
            if let Some(format) = format {
                route = route.with("credential.format", json!(format));
            }
            let bench = Bench::start(Gateway::builder().route(route).env("UPSTREAM_KEY", &key)).await;
            let call = bench.call().and_header("x-api-key", "forged");
            assert_eq!(call.post(CALL).await.status, 200);
            let seen = upstream.requests.last_to("/mcp");
            let values: Vec<_> = seen.headers.get_all(name).iter().collect();
            assert_eq!(values, [expected.as_str()], "{name}");
            assert!(!seen.everything().contains(&bench.token));
            bench.gateway.output.assert_no_secret();
            if format.is_none() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn sr_rs_13_an_upstream_that_refuses_what_is_configured_is_a_bad_gateway() {
    let upstream = lone_upstream().await;
    let key = secret("configured");
    let route = Route::header("demo", &upstream, "Authorization", json!({"env": "KEY"}));
    {
        let bench = Bench::start(Gateway::builder().route(route).env("KEY", &key)).await;
        let refusals = [
            Answer::InvalidToken,
            Answer::InsufficientScope("admin".into()),
            Answer::http(401, &[("www-authenticate", "Basic realm=\"upstream\"")], "who?"),
            Answer::http(401, &[], &"upstream words ".repeat(20_000)),
        ];
        for refusal in refusals {
            upstream.answer_next(refusal);
            let answer = bench.call().post(CALL).await;
            assert_eq!(answer.status, 502, "{}", answer.body);
            assert_eq!(answer.header("www-authenticate"), None, "nothing a client could do");
            assert_eq!(answer.json()["error"], "bad_gateway");
            assert!(!answer.body.contains("upstream words"));
            assert!(!answer.body.contains(CANARY));
        }
        assert_eq!(bench.call().tool("whoami", json!({})).await.status, 200);
        bench.gateway.output.assert_no_secret();
    }
}

#[tokio::test]
async fn pom_20_a_refusal_of_an_upstream_that_gets_nothing_passes_on_without_its_challenge() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    for status in [401, 403] {
        let headers = [
            ("www-authenticate", "Bearer error=\"insufficient_scope\""),
            ("content-type", "application/json"),
        ];
        upstream.answer_next(Answer::http(status, &headers, "{\"why\":\"not you\"}"));
        let answer = bench.call().post(CALL).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, "{\"why\":\"not you\"}"));
        assert_eq!(answer.header("www-authenticate"), None, "it names none of the client's business");
    }
    assert_eq!(bench.call().tool("whoami", json!({})).await.status, 200);
}

// === upstream trouble ===

#[tokio::test]
async fn sr_rs_07_an_https_upstream_is_trusted_by_its_certificate_or_told_nothing() {
    let key = secret("key");
    let files = tempfile::tempdir().unwrap();
    let before = async |upstream: &TlsServer, trusted: &[&TlsServer]| {
        let ca_files = trusted.iter().enumerate().map(|(index, server)| {
            let path = files.path().join(format!("{}-{index}.pem", server.url.replace('/', "_")));
            std::fs::write(&path, &server.certificate).unwrap();
            path
        });
        let credential = json!({"kind": "header", "name": "x-key", "value": {"env": "UPSTREAM_KEY"}});
        let builder = Gateway::builder()
            .route(Route::to("demo", &upstream.url, credential))
            .env("UPSTREAM_KEY", &key)
            .with("outbound.ca_files", json!(ca_files.collect::<Vec<_>>()));
        Bench::start(builder).await.call().post(CALL).await
    };
    let (good, other) = (TlsServer::start("localhost"), TlsServer::start("localhost"));
    let misnamed = TlsServer::start("other.test");
    let answer = before(&good, &[&other, &good]).await;
    assert_eq!((answer.status, answer.json()["result"].is_object()), (200, true), "{}", answer.body);
    assert!(good.received().contains(&key) && good.received().contains(CALL));

    for (upstream, trusted) in [(&other, &[][..]), (&other, &[&good]), (&misnamed, &[&misnamed])] {
        let connections = upstream.connections();
        let answer = before(upstream, trusted).await;
        assert_eq!(answer.status, 502, "{}", answer.body);
        assert!(upstream.connections() > connections, "it was tried");
        assert_eq!(upstream.received(), "");
    }
}

#[tokio::test]
async fn an_upstream_that_is_down_is_502_and_comes_back() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    assert_eq!(bench.call().post(CALL).await.status, 200);
    upstream.server.stop();
    let down = support::eventually_some(PATIENCE, || async {
        let answer = bench.call().post(CALL).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(down.status, 502);
    assert_eq!(down.json()["error"], "bad_gateway");
    assert_eq!(down.header("www-authenticate"), None);
    assert_eq!(down.header("content-security-policy"), Some("sandbox; default-src 'none'"));
    assert_eq!(bench.call().get().await.status, 502);
    upstream.server.resume().await;
    assert_eq!(bench.call().post(CALL).await.status, 200);
}

#[tokio::test]
async fn sr_f18_a_post_that_was_lost_is_502_and_was_sent_once() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    for _ in 0..3 {
        // The first call leaves a connection behind that the second one reuses.
        assert_eq!(bench.call().post(CALL).await.status, 200);
        upstream.requests.clear();
        upstream.answer_next(Answer::Hangup);
        assert_eq!(bench.call().post(CALL).await.status, 502);
        assert_eq!(upstream.requests.count("/mcp"), 1, "it may have been carried out");
    }
}

// === connections ===

#[tokio::test]
async fn a_401_keeps_the_connection_when_the_body_is_small() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let mut connection = RawConnection::open(bench.gateway.address).await;
    for size in [0, 250, 64 * 1024] {
        let body = "x".repeat(size);
        let host = format!("host: {}\r\ncontent-length: {size}\r\n", bench.gateway.address);
        connection.send(format!("POST /demo HTTP/1.1\r\n{host}\r\n{body}")).await;
        let answer = connection.response(PATIENCE).await.unwrap();
        assert_eq!(answer.status, 401);
        assert_ne!(answer.header("connection"), Some("close"), "{size}");
        let length = format!("content-length: {}\r\n", CALL.len());
        connection.send(bench.post(&length, CALL)).await;
        let answer = connection.response(PATIENCE).await.expect("the connection is kept");
        assert_eq!(answer.status, 200, "after {size}");
    }
    // A body that was announced but held back is not waited for.
    let mut connection = RawConnection::open(bench.gateway.address).await;
    let head = format!(
        "POST /demo HTTP/1.1\r\nhost: {}\r\ncontent-length: 1000\r\nexpect: 100-continue\r\n\r\n",
        bench.gateway.address
    );
    connection.send(head).await;
    let answer = connection.response(PATIENCE).await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (401, Some("close")));
    connection.closed(PATIENCE).await;
}

#[tokio::test]
async fn expect_100_continue_is_answered_and_local_endpoints_keep_the_connection() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let form = Params::new().with("grant_type", "refresh_token").encoded();
    let mut connection = RawConnection::open(bench.gateway.address).await;
    for _ in 0..2 {
        let head = format!(
            "POST /oauth/token HTTP/1.1\r\nhost: {}\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             content-length: {}\r\nexpect: 100-continue\r\n\r\n",
            bench.gateway.address,
            form.len()
        );
        connection.send(head).await;
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 100);
        connection.send(&form).await;
        let answer = connection.response(PATIENCE).await.unwrap();
        assert_eq!(answer.status, 400);
        assert_ne!(answer.header("connection"), Some("close"));
    }
    // To the route: the body arrives, whoever says "continue".
    let more = format!("content-length: {}\r\nexpect: 100-continue\r\n", CALL.len());
    let mut connection = RawConnection::open(bench.gateway.address).await;
    connection.send(bench.post(&more, "")).await;
    assert_eq!(connection.response(PATIENCE).await.unwrap().status, 100);
    connection.send(CALL).await;
    assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
    assert_eq!(upstream.requests.last_to("/mcp").text(), CALL);
}

#[tokio::test]
async fn http_1_0_is_answered_and_closed() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let length = format!("content-length: {}\r\n", CALL.len());
    for (line, body, status) in [
        ("POST /demo HTTP/1.0", CALL, 200),
        ("GET /demo HTTP/1.0", "", 405),
        ("GET /oauth/jwks.json HTTP/1.0", "", 200),
    ] {
        let framing = if body.is_empty() { "" } else { length.as_str() };
        let mut connection = RawConnection::open(bench.gateway.address).await;
        connection.send(format!("{line}\r\n{}{framing}\r\n{body}", bench.lines())).await;
        let answer = connection.response(PATIENCE).await.unwrap();
        assert_eq!(answer.status, status, "{line}");
        assert_ne!(answer.header("connection"), Some("keep-alive"), "{line}");
        assert_eq!(answer.header("transfer-encoding"), None, "{line}");
        connection.closed(PATIENCE).await;
    }
    let both = bench
        .raw(format!("POST /demo HTTP/1.0\r\n{}transfer-encoding: chunked\r\n\r\n0\r\n\r\n", bench.lines()))
        .await;
    assert_eq!(both.unwrap().status, 400, "HTTP/1.0 has no chunks");
}

#[tokio::test]
async fn h2c_is_off_and_short_requests_are_answered_at_once() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let mut connection = RawConnection::open(bench.gateway.address).await;
    connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let all = connection.until_closed(PATIENCE).await;
    let text = String::from_utf8_lossy(&all);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.1 5"), "{text:?}");
    // Shorter than the preface of HTTP/2: such a listener would wait for the rest of it.
    for (short, status) in [("GET / HTTP/1.0\r\n\r\n", 400), ("GET /x HTTP/1.1\r\n\r\n", 400)] {
        assert!(short.len() < 24);
        let answer = exchange(bench.gateway.address, short, PATIENCE).await.unwrap();
        assert_eq!(answer.status, status, "{short:?}");
    }
}

#[tokio::test]
async fn many_calls_share_a_connection_on_both_sides() {
    let upstream = lone_upstream().await;
    let bench = Bench::before(&upstream).await;
    let before = upstream.server.connections_opened();
    let mut connection = RawConnection::open(bench.gateway.address).await;
    let length = format!("content-length: {}\r\n", CALL.len());
    for _ in 0..20 {
        connection.send(bench.post(&length, CALL)).await;
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
    }
    assert!(upstream.server.connections_opened() - before <= 2);
}

// === request id ===

#[tokio::test]
async fn a_request_id_is_made_or_kept_and_is_the_same_everywhere() {
    let upstream = lone_upstream().await;
    let bench = Bench::start(
        Gateway::builder().route(Route::open("demo", &upstream)).with("server.access_log", json!("json")),
    )
    .await;
    let mut ids = std::collections::HashSet::new();
    for (sent, kept) in [
        (None, false),
        (Some("client-id_12345"), true),
        (Some("short"), false),
        (Some("with space and more"), false),
        (Some("injected\"quote{}"), false),
        (Some(&"x".repeat(65)[..]), false),
    ] {
        let call = match sent {
            Some(id) => bench.call().header("x-request-id", id),
            None => bench.call(),
        };
        upstream.answer_next(Answer::http(
            200,
            &[("x-request-id", "of-the-upstream"), ("content-type", "application/json")],
            "{}",
        ));
        let answer = call.post(CALL).await;
        let id = answer.header("x-request-id").unwrap().to_owned();
        assert_eq!(answer.headers.get_all("x-request-id").iter().count(), 1, "{sent:?}");
        assert_eq!(sent == Some(id.as_str()), kept, "{sent:?} became {id}");
        assert!(ids.insert(id.clone()), "{id} came twice");
        let seen = upstream.requests.last_to("/mcp");
        let forwarded: Vec<_> = seen.headers.get_all("x-request-id").iter().collect();
        assert_eq!(forwarded, [id.as_str()], "{sent:?}");
        support::eventually(PATIENCE, || async {
            let records = bench.gateway.output.records();
            records.iter().any(|record| record["request_id"] == id.as_str())
        })
        .await;
    }
    let refused = bench.gateway.mcp("demo").get().await;
    assert!(refused.header("x-request-id").is_some(), "refusals have one too");
}
