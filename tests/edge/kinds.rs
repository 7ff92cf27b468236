//! Routes that lead to no MCP server: whatever speaks HTTP, on a host of its own, with the same identity and the same rules; and what it
//! may not have of its neighbours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::sync::{Arc, Mutex};

use axum::response::Response;
use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Builder, Gateway, Route};
use support::process::run;
use support::raw::{RawConnection, RawResponse, exchange};
use support::received::Received;
use support::server::Server;
use support::upstream::Upstream;
use support::{PATIENCE, eventually, http_client, lock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A web server that remembers what it was asked and says more than it may.
struct Site {
    server: Server,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Site {
    async fn start() -> Self {
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let kept = Arc::clone(&received);
        let server = Server::start(move |request, _| {
            let status = if request.path == "/challenged" { 401 } else { 200 };
            lock(&kept).push(request);
            async move {
                Response::builder()
                    .status(status)
                    .header("content-type", "text/html")
                    .header("set-cookie", "own=1; Path=/")
                    .header("set-cookie", "far=1; Domain=localhost")
                    .header("set-cookie", "pages=1; Domain=127.0.0.1")
                    .header("location", "/elsewhere")
                    .header("clear-site-data", "\"cookies\"")
                    .header("alt-svc", "h3=\":443\"")
                    .header("access-control-allow-origin", "https://app.test")
                    .header("www-authenticate", "Basic realm=site")
                    .header("etag", "\"7\"")
                    .body("<h1>hello</h1>".into())
                    .unwrap()
            }
        })
        .await;
        Self { server, received }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address)
    }

    fn last(&self) -> Received {
        lock(&self.received).last().cloned().expect("a request")
    }

    fn count(&self) -> usize {
        lock(&self.received).len()
    }

    /// The whole of `localhost`, beside `127.0.0.1` of the pages.
    fn route(&self) -> Route {
        Route::to("site", &self.url(""), json!({"kind": "none"}))
            .without("path")
            .without("credential")
            .with("kind", json!("http"))
            .with("host", json!("localhost"))
    }
}

/// The gateway with a route, a client of it, and its token for the site.
async fn signed_in(builder: Builder, route: Route) -> (Gateway, String) {
    let gateway = builder.route(route).start().await;
    let token = token_for(&gateway, "").await;
    (gateway, token)
}

async fn token_for(gateway: &Gateway, path: &str) -> String {
    let client = Client::register(gateway).await;
    let resource = format!("http://localhost:{}{path}", gateway.address.port());
    let request = client.authorization("site");
    let request = request.without("resource").with("resource", &resource);
    let callback = Browser::new().authorize(&client.redirect_uri, &request.url()).await;
    let redemption = client.redemption(&callback.code(), &request);
    let redemption = redemption.without("resource").with("resource", &resource);
    client.token(&redemption).await.tokens().access_token
}

/// A request to the site's host, written as it is.
async fn ask(gateway: &Gateway, line: &str, more: &str) -> RawResponse {
    let host = format!("localhost:{}", gateway.address.port());
    let request = format!("{line} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n");
    exchange(gateway.address, request, PATIENCE).await.expect("an answer")
}

#[tokio::test]
async fn whatever_speaks_http_has_the_same_identity() {
    let site = Site::start().await;
    let (gateway, token) = signed_in(Gateway::builder(), site.route()).await;
    let refused = ask(&gateway, "GET /", "accept: text/html\r\n").await;
    assert_eq!((refused.status, site.count()), (401, 0));
    assert!(!refused.text().contains("mcpServers"), "{}", refused.text());
    let challenge = refused.header("www-authenticate").unwrap();
    let document =
        format!("http://localhost:{}/.well-known/oauth-protected-resource", gateway.address.port());
    assert!(challenge.contains(&document), "{challenge}");
    let metadata = gateway.http.get(&document).send().await.unwrap();
    assert_eq!(metadata.status(), 200);

    let bearer = format!("authorization: Bearer {token}\r\n");
    for (line, path) in [
        ("GET /a/b?c=d", "/a/b"),
        ("PUT /a/", "/a/"),
        ("DELETE /a", "/a"),
        ("PATCH /", "/"),
        ("OPTIONS /x", "/x"),
        ("REPORT /dav/x%20y", "/dav/x%20y"),
    ] {
        let answer = ask(&gateway, line, &format!("{bearer}content-length: 0\r\n")).await;
        assert_eq!(answer.status, 200, "{line}");
        let seen = site.last();
        assert_eq!((seen.path.as_str(), seen.method.as_str()), (path, line.split(' ').next().unwrap()));
        assert_eq!(seen.header("authorization"), None);
    }
    // A token for this route is none for another.
    let other = Site::start().await;
    gateway.reconfigure(
        "routes",
        json!([
            site.route().document(),
            other.route().with("name", json!("other")).with("path", json!("/other")).document()
        ]),
    );
    gateway.hang_up();
    eventually(PATIENCE, || async { ask(&gateway, "GET /other", &bearer).await.status == 401 }).await;
    assert_eq!(other.count(), 0);
    assert_eq!(ask(&gateway, "GET /others", &bearer).await.status, 200, "the longest route that it lies in");
}

#[tokio::test]
async fn a_public_route_asks_nobody_and_no_token_goes_on() {
    let site = Site::start().await;
    let upstream = Upstream::open().await;
    let public = site.route().with("public", json!(true));
    let gateway = Gateway::builder().route(public).route(Route::open("demo", &upstream)).start().await;
    assert_eq!(ask(&gateway, "GET /", "").await.status, 200);
    let tokens = Client::register(&gateway).await.sign_in(&mut Browser::new(), "demo").await;
    for (sent, arrives) in [
        (format!("Bearer {}", tokens.access_token), None),
        ("Bearer another".to_owned(), None),
        ("Basic YTpi".to_owned(), Some("Basic YTpi")),
    ] {
        assert_eq!(ask(&gateway, "GET /x", &format!("authorization: {sent}\r\n")).await.status, 200);
        assert_eq!(site.last().header("authorization").as_deref(), arrives, "{sent}");
    }
    // No protected resource, so nothing that tokens could be made for.
    let document = ask(&gateway, "GET /.well-known/oauth-protected-resource", "").await;
    assert_eq!(document.status, 404);
    let answered = |line: &Value| {
        line["route"] == "site"
            && line["status"] == 200
            && line["user"].is_null()
            && line["caller"] == "anonymous"
    };
    eventually(PATIENCE, || async { gateway.output.records().iter().any(answered) }).await;
}

#[tokio::test]
async fn an_answer_acts_on_its_own_host_and_on_no_other() {
    let site = Site::start().await;
    let gateway = Gateway::builder().route(site.route().with("public", json!(true))).start().await;
    let answer =
        ask(&gateway, "GET /", "cookie: a=1\r\norigin: https://app.test\r\nif-none-match: \"7\"\r\n").await;
    let seen = site.last();
    for (name, value) in [("cookie", "a=1"), ("origin", "https://app.test"), ("if-none-match", "\"7\"")] {
        assert_eq!(seen.header(name).as_deref(), Some(value));
    }
    assert_eq!(seen.header("x-forwarded-host"), Some(format!("localhost:{}", gateway.address.port())));
    let cookies: Vec<_> = answer
        .headers
        .iter()
        .filter(|(name, _)| name == "set-cookie")
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(cookies, ["own=1; Path=/", "far=1; Domain=localhost"]);
    for (name, value) in [
        ("location", Some("/elsewhere")),
        ("content-type", Some("text/html")),
        ("access-control-allow-origin", Some("https://app.test")),
        ("www-authenticate", Some("Basic realm=site")),
        ("content-security-policy", None),
        ("content-disposition", None),
        ("clear-site-data", None),
        ("alt-svc", None),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    // Nobody's word but ours says who calls.
    ask(&gateway, "GET /", "x-forwarded-for: 10.0.0.1\r\nx-forwarded-user: root\r\nx_real_ip: 1\r\n").await;
    let seen = site.last();
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!((seen.header("x-forwarded-user"), seen.header("x_real_ip")), (None, None));
}

#[tokio::test]
async fn a_credential_goes_to_the_server_and_its_challenge_stays_here() {
    let site = Site::start().await;
    let credential = json!({"kind": "header", "name": "Authorization", "value": "Key 7"});
    let (gateway, token) = signed_in(Gateway::builder(), site.route().with("credential", credential)).await;
    let bearer = format!("authorization: Bearer {token}\r\n");
    let answer = ask(&gateway, "GET /", &bearer).await;
    assert_eq!(site.last().header("authorization").as_deref(), Some("Key 7"));
    assert_eq!((answer.status, answer.header("www-authenticate")), (200, None));
    // What it is configured with was refused: that is no challenge to the caller.
    let answer = ask(&gateway, "GET /challenged", &bearer).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (502, None));
}

#[tokio::test]
async fn no_other_spelling_of_a_path_is_a_way_around_a_route_or_a_rule() {
    let (open, shut) = (Site::start().await, Site::start().await);
    let gateway = Gateway::builder()
        .route(open.route().with("public", json!(true)).with(
            "policy",
            json!({"call": [{"name": "no-secrets", "deny": "request.path.startsWith('/secret')"}]}),
        ))
        .route(shut.route().with("name", json!("shut")).with("path", json!("/admin")))
        .start()
        .await;
    assert_eq!(ask(&gateway, "GET /admin", "").await.status, 401);
    assert_eq!(ask(&gateway, "GET /admin/", "").await.status, 401);
    assert_eq!(ask(&gateway, "GET /secret/x", "").await.status, 403);
    let before = open.count();
    for path in [
        "/%61dmin",
        "/adm%69n/x",
        "//admin",
        "/x/..//admin",
        "/admin;x",
        "/admin%3Bx",
        "/./admin",
        "/a/../admin",
        "/%2e/admin",
        "/admin%2fx",
        "//secret",
        "/%73ecret",
        "/secret%2f",
        "/;/secret",
        "/a\\..\\admin",
    ] {
        let status = ask(&gateway, &format!("GET {path}"), "").await.status;
        assert!(matches!(status, 400 | 401 | 403), "{path}: {status}");
    }
    assert_eq!((open.count() - before, shut.count()), (0, 0));
}

#[tokio::test]
async fn a_preflight_goes_on_where_that_is_written_with_nobodys_identity_and_nothing_else_does() {
    let site = Site::start().await;
    let policy = json!({"default": "deny", "call": [
        {"name": "no-secrets", "deny": "request.path.startsWith('/secret')"},
        {"name": "only-alice", "deny": "caller.subject != 'alice'"},
        {"name": "alice", "allow": "caller.subject == 'alice'"},
    ]});
    let route = site
        .route()
        .with("credential", json!({"kind": "header", "name": "X-Key", "value": "7"}))
        .with("scopes", json!(["site:read"]))
        .with("policy", policy);
    let open = route.clone().with("cors_allow_preflight", json!(true));
    let (gateway, token) = signed_in(Gateway::builder(), open).await;
    let asks = "origin: https://app.test\r\naccess-control-request-method: PUT\r\n";
    let answer = ask(&gateway, "OPTIONS /x?y=z", asks).await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, Some("https://app.test"))
    );
    let seen = site.last();
    assert_eq!((seen.method.as_str(), seen.target().as_str()), ("OPTIONS", "/x?y=z"));
    assert_eq!(seen.header("access-control-request-method").as_deref(), Some("PUT"));
    assert_eq!((seen.header("x-key"), seen.header("authorization")), (None, None));
    let noted = |line: &Value| {
        line["method"] == "OPTIONS" && line["route"] == "site" && line["caller"] == "anonymous"
    };
    eventually(PATIENCE, || async { gateway.output.records().iter().any(noted) }).await;
    let before = site.count();
    for (line, more) in [
        ("GET /", asks),
        ("PUT /", asks),
        ("OPTIONS /", "origin: https://app.test\r\n"),
        ("OPTIONS /", "access-control-request-method: PUT\r\n"),
        ("OPTIONS /", &*format!("{asks}origin: https://app.test\r\n")),
        ("OPTIONS /", &*format!("{asks}access-control-request-method: GET\r\n")),
        ("OPTIONS /", &*format!("{asks}cookie: a=1\r\n")),
        ("OPTIONS /", &*format!("{asks}authorization: Basic YTpi\r\n")),
        ("OPTIONS /", &*format!("{asks}authorization: Bearer x\r\n")),
        ("OPTIONS /", &*format!("{asks}x-http-method-override: PUT\r\n")),
        ("OPTIONS /", &*format!("{asks}x-http-method: PUT\r\n")),
        ("OPTIONS /", &*format!("{asks}x-method-override: PUT\r\n")),
        ("OPTIONS /", &*format!("{asks}content-length: 1\r\n\r\nx")),
        ("OPTIONS /", &*format!("{asks}transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")),
    ] {
        assert_eq!(ask(&gateway, line, more).await.status, 401, "{line} {more}");
    }
    assert_eq!(ask(&gateway, "OPTIONS /secret", asks).await.status, 403);
    assert_eq!(site.count(), before);
    // Somebody is who they are, also then.
    let bearer = format!("{asks}authorization: Bearer {token}\r\n");
    assert_eq!(ask(&gateway, "OPTIONS /", &bearer).await.status, 200);
    assert_eq!(site.last().header("x-key").as_deref(), Some("7"));
    gateway.reconfigure("routes", json!([route.document()]));
    gateway.hang_up();
    eventually(PATIENCE, || async { ask(&gateway, "OPTIONS /", asks).await.status == 401 }).await;
}

#[tokio::test]
async fn rules_are_about_callers_and_requests() {
    let site = Site::start().await;
    let policy = json!({"default": "deny", "call": [
        {"name": "alice-reads", "allow": "caller.subject == 'alice' && request.method in ['GET', 'HEAD']"},
        {"name": "tool", "allow": "mcp.method == '' || mcp.tool == ''"},
    ]});
    let builder = Gateway::builder().with("policy", policy);
    let (gateway, token) = signed_in(builder, site.route()).await;
    let bearer = format!("authorization: Bearer {token}\r\n");
    assert_eq!(ask(&gateway, "GET /", &bearer).await.status, 200);
    // Nothing is let through for the sake of a protocol that it is not, and what is not there is not empty.
    let denied = ask(&gateway, "DELETE /", &bearer).await;
    assert_eq!((denied.status, site.count()), (403, 1));
    let body: Value = serde_json::from_slice(&denied.body).unwrap();
    assert_eq!(body["error"], "access_denied");
}

#[tokio::test]
async fn a_rule_on_what_mcp_says_denies_where_nothing_is_said() {
    let site = Site::start().await;
    let policy = json!({"default": "allow", "call": [{"name": "no-delete", "deny": "mcp.tool == 'delete'"}]});
    let (gateway, token) = signed_in(Gateway::builder().with("policy", policy), site.route()).await;
    let bearer = format!("authorization: Bearer {token}\r\n");
    assert_eq!(ask(&gateway, "GET /", &bearer).await.status, 403);
    let checked = run(&["validate", "--config", gateway.config_file().to_str().unwrap()], &[]).await;
    assert!(
        (checked.stdout + &checked.stderr).contains("the rule `no-delete` of `policy` cannot be decided")
    );
    // Whoever says where it is meant has it undone.
    let policy = json!({"default": "allow", "call": [
        {"name": "no-delete", "deny": "route.name != 'site' && mcp.tool == 'delete'"}]});
    gateway.reconfigure("policy", policy);
    gateway.hang_up();
    eventually(PATIENCE, || async { ask(&gateway, "GET /", &bearer).await.status == 200 }).await;
}

/// What `validate` says of this route.
async fn complaint(route: Route) -> String {
    let gateway = Gateway::builder().route(route).prepare();
    let checked = run(&["validate", "--config", gateway.config_file().to_str().unwrap()], &[]).await;
    assert_ne!(checked.code, Some(0), "{}", checked.stdout);
    checked.stdout + &checked.stderr
}

#[tokio::test]
async fn what_does_not_go_together_is_refused_before_it_serves() {
    let site = Site::start().await;
    let route = || site.route();
    for host in ["127.0.0.1", "127.0.0.1:9999", "127.0.0.1:80"] {
        let said = complaint(route().with("host", json!(host))).await;
        assert!(said.contains("routes[0].host: is the host of `server.public_url`"), "{said}");
    }
    for (broken, said) in [
        (route().without("host").with("path", json!("/x")), "is `kind: http` and has no host"),
        (
            route().with("kind", json!("mcp")).with("public", json!(true)),
            "routes[0].public: belongs to `kind: http`",
        ),
        (
            route().with("kind", json!("mcp")).with("cors_allow_preflight", json!(true)),
            "routes[0].cors_allow_preflight: belongs to `kind: http`",
        ),
        (
            route().with("public", json!(true)).with("cors_allow_preflight", json!(true)),
            "routes[0].cors_allow_preflight: is about tokens, and a public route takes none",
        ),
        (route().with("tool_scopes", json!({"x": ["y"]})), "routes[0].tool_scopes: belongs to MCP servers"),
        (route().with("limits", json!([{"per": ["tool"], "rate": "1/s"}])), "counts by tool"),
        (
            route().with("upstream.health", json!({"kind": "mcp"})),
            "routes[0].upstream.health.kind: is a question for MCP",
        ),
        (route().with("upstream.balance_on", json!("mcp-name")), "is a header of MCP"),
        (
            route().with("public", json!(true)).with("credential", json!({"kind": "oauth"})),
            "depends on who calls",
        ),
        (
            route().with("public", json!(true)).with("scopes", json!(["x"])),
            "is about tokens, and a public route takes none",
        ),
        (
            route().with("policy", json!({"call": [{"name": "x", "allow": "mcp.tool == 'x'"}]})),
            "speaks of `mcp`, and there is none at a route of `kind: http`",
        ),
        (
            route().with(
                "policy",
                json!({"call": [{"name": "x", "deny": "caller.email == '' && mcp.arguments.x == 'x'"}]}),
            ),
            "speaks of `mcp`",
        ),
        (
            route()
                .with("public", json!(true))
                .with("policy", json!({"call": [{"name": "x", "require_scope": ["y"], "if": "true"}]})),
            "asks for a scope, and a public route takes no tokens",
        ),
    ] {
        let complaint = complaint(broken).await;
        assert!(complaint.contains(said), "{said}\n{complaint}");
    }
}

#[tokio::test]
async fn a_web_socket_goes_both_ways_and_no_other_protocol_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let kept = Arc::clone(&heads);
    // Says yes to whatever is asked of it, and then everything twice.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                lock(&kept).push(String::from_utf8_lossy(&head).to_lowercase());
                let switch = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: yes\r\n\r\n";
                stream.write_all(switch).await?;
                let mut bytes = [0; 4096];
                while let length @ 1.. = stream.read(&mut bytes).await? {
                    stream.write_all(&bytes[..length]).await?;
                    stream.write_all(&bytes[..length]).await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    let route = Route::to("site", &format!("http://{address}"), json!({"kind": "none"}))
        .without("path")
        .with("kind", json!("http"))
        .with("host", json!("localhost"));
    // The limits of a request's body are none of a socket's.
    let limits = json!({"body_time": "100ms", "body": 65536, "streams_per_user": 1});
    let (gateway, token) = signed_in(Gateway::builder().with("limits", limits), route).await;
    let handshake = |upgrade: &str, authorization: &str| {
        format!(
            "GET /ws HTTP/1.1\r\nhost: localhost:{}\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\norigin: https://app.test\r\n{authorization}\r\n",
            gateway.address.port()
        )
    };
    let bearer = format!("authorization: Bearer {token}\r\n");
    let mut stranger = RawConnection::open(gateway.address).await;
    stranger.send(handshake("websocket", "")).await;
    assert_eq!(stranger.response(PATIENCE).await.unwrap().status, 401);

    let mut socket = RawConnection::open(gateway.address).await;
    socket.send(handshake("websocket", &bearer)).await;
    let switched = socket.response(PATIENCE).await.unwrap();
    assert_eq!((switched.status, switched.header("sec-websocket-accept")), (101, Some("yes")));
    let mut sent = 0;
    while sent < 200_000 {
        socket.send([b'x'; 1000]).await;
        assert_eq!(socket.exactly(2000, PATIENCE).await.unwrap().len(), 2000);
        sent += 1000;
    }
    let head = lock(&heads).last().cloned().unwrap();
    assert!(head.contains("sec-websocket-key") && !head.contains(&token.to_lowercase()), "{head}");
    // It is one of the streams of its caller.
    let mut second = RawConnection::open(gateway.address).await;
    second.send(handshake("websocket", &bearer)).await;
    assert_eq!(second.response(PATIENCE).await.unwrap().status, 429);
    socket.finish_sending().await;
    socket.closed(PATIENCE).await;

    for other in ["h2c", "tls/1.0", "websocket2"] {
        let mut connection = RawConnection::open(gateway.address).await;
        connection.send(handshake(other, &bearer)).await;
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 502, "{other}");
        assert!(!lock(&heads).last().unwrap().contains("upgrade"), "{other}");
    }
}

#[tokio::test]
async fn streams_are_nothing_particular_and_bodies_keep_to_their_bounds() {
    let site = Site::start().await;
    let limits = json!({"streams_per_user": 1, "body": 65536});
    let public = site.route().with("public", json!(true));
    let gateway = Gateway::builder().with("limits", limits).route(public).start().await;
    let client = http_client(&[]);
    let url = format!("http://localhost:{}/", gateway.address.port());
    let both = futures_util::future::join_all((0..20).map(|_| client.get(&url).send())).await;
    assert!(both.into_iter().all(|answer| answer.unwrap().status() == 200), "a GET is no stream here");
    assert_eq!(client.post(&url).body(vec![b'x'; 65_536]).send().await.unwrap().status(), 200);
    let chunked = format!(
        "transfer-encoding: chunked\r\n\r\n{}0\r\n",
        format!("2000\r\n{}\r\n", "x".repeat(8192)).repeat(20)
    );
    assert_eq!(ask(&gateway, "POST /", &chunked).await.status, 413);
}

#[tokio::test]
async fn peers_and_checks_are_as_for_any_other() {
    let sites = [Site::start().await, Site::start().await, Site::start().await];
    let peers: Vec<_> = sites.iter().map(|site| site.server.address.to_string()).collect();
    let health = json!({"kind": "http", "path": "/healthz", "interval": "100ms", "unhealthy": 1});
    let route = Route::to("site", "http://site.test", json!({"kind": "none"}))
        .without("path")
        .with("kind", json!("http"))
        .with("public", json!(true))
        .with("host", json!("localhost"))
        .with("upstream.peers", json!(peers))
        .with("upstream.health", health);
    let gateway = Gateway::builder().route(route.clone()).start().await;
    let asked = |site: &Site| lock(&site.received).iter().filter(|request| request.path == "/x").count();
    for _ in 0..30 {
        assert_eq!(ask(&gateway, "GET /x", "").await.status, 200);
    }
    assert_eq!(sites.iter().map(asked).collect::<Vec<_>>(), [10, 10, 10]);
    assert_eq!(sites[0].last().header("host").as_deref(), Some("site.test"));
    sites[0].server.stop();
    for _ in 0..10 {
        assert_eq!(ask(&gateway, "GET /x", "").await.status, 200);
    }
    // Whoever comes from one address goes to one.
    let consistent =
        route.with("upstream.balance", json!("consistent")).with("upstream.balance_on", json!("source"));
    gateway.reconfigure("routes", json!([consistent.document()]));
    gateway.hang_up();
    let reloaded = "postern_config_reloads_total{outcome=\"ok\"} 1";
    let metrics =
        async || gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
    eventually(PATIENCE, || async { metrics().await.contains(reloaded) }).await;
    let before: Vec<_> = sites.iter().map(asked).collect();
    for _ in 0..10 {
        assert_eq!(ask(&gateway, "GET /x", "").await.status, 200);
    }
    let mut moved: Vec<_> = sites.iter().map(asked).zip(before).map(|(now, before)| now - before).collect();
    moved.sort_unstable();
    assert_eq!(moved, [0, 0, 10]);
}

#[tokio::test]
async fn challenges_of_a_certificate_authority_are_asked_for_under_any_host() {
    let site = Site::start().await;
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder()
        .with("server.acme_challenge", json!(site.url("")))
        .route(Route::open("demo", &upstream))
        .start()
        .await;
    let host = gateway.address.to_string();
    let ask = |method: &'static str, path: &'static str, host: &str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\ncookie: sid=1\r\nauthorization: Bearer x\r\ncontent-length: 0\r\n\r\n"
        );
        let address = gateway.address;
        async move { exchange(address, request, PATIENCE).await.expect("an answer") }
    };
    for host in [host.as_str(), "files.example.com", "never.heard.of", "localhost:81"] {
        let answer = ask("GET", "/.well-known/acme-challenge/aB3_-x", host).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "<h1>hello</h1>"), "{host}");
        // It is under the pages' host as well, and so it can do nothing there.
        for name in ["set-cookie", "location", "clear-site-data", "access-control-allow-origin"] {
            assert_eq!(answer.header(name), None, "{name}");
        }
        assert_eq!(answer.header("content-disposition"), Some("attachment"));
        let seen = site.last();
        assert_eq!(
            (seen.path.as_str(), seen.header("host").as_deref()),
            ("/.well-known/acme-challenge/aB3_-x", Some(host))
        );
        assert_eq!((seen.header("cookie"), seen.header("authorization")), (None, None));
    }
    let before = site.count();
    for (method, path, status) in [
        ("POST", "/.well-known/acme-challenge/aB3", 404),
        ("DELETE", "/.well-known/acme-challenge/aB3", 404),
        ("OPTIONS", "/.well-known/acme-challenge/aB3", 404),
        ("GET", "/.well-known/acme-challenge/", 404),
        ("GET", "/.well-known/acme-challenge", 404),
        ("GET", "/.well-known/acme-challenge/a/b", 404),
        ("GET", "/.well-known/acme-challenge/a.txt", 404),
        ("GET", "/.well-known/acme-challenge/%61", 404),
        ("GET", "/.well-known/acme-challenge/../x", 400),
    ] {
        assert_eq!(ask(method, path, &host).await.status, status, "{method} {path}");
    }
    assert_eq!(site.count(), before);
    // What is no challenge is answered as ever.
    assert_eq!(ask("GET", "/", "never.heard.of").await.status, 421);
    assert_eq!(ask("GET", "/.well-known/oauth-authorization-server", &host).await.status, 200);
}

/// Without that key, whoever answers for one host alone is a route like any other.
#[tokio::test]
async fn a_public_route_answers_challenges_of_its_own_host() {
    let site = Site::start().await;
    let gateway = Gateway::builder().route(site.route().with("public", json!(true))).start().await;
    let answer = ask(&gateway, "GET /.well-known/acme-challenge/x", "").await;
    assert_eq!((answer.status, site.last().path.as_str()), (200, "/.well-known/acme-challenge/x"));
}
