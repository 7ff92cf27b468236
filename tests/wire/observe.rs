//! What is seen from outside: health, metrics, access log, audit log. And what never is: a secret.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::browser::{Arrival, Browser};
use support::client::{Client, Tokens};
use support::gate::Gate;
use support::gateway::{Gateway, Route};
use support::process::Output;
use support::raw::{RawConnection, exchange};
use support::script::{Answer, TokenFault};
use support::upstream::Upstream;
use support::{PATIENCE, eventually, eventually_some, secret};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One reading of `/metrics`.
struct Metrics(String);

impl Metrics {
    async fn of(gateway: &Gateway) -> Self {
        let answer = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(kind, "text/plain; version=0.0.4");
        Metrics(answer.text().await.unwrap())
    }

    /// The value of one series, written as in the text; 0 when it is not there.
    fn value(&self, series: &str) -> f64 {
        let found = self.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().unwrap())
    }

    fn series(&self) -> usize {
        self.0.lines().filter(|line| !line.starts_with('#')).count()
    }
}

/// The series that counts these requests.
fn requests(route: &str, caller: &str, class: &str, reason: &str) -> String {
    format!(
        r#"postern_requests_total{{caller="{caller}",class="{class}",reason="{reason}",route="{route}"}}"#
    )
}

/// A reading in which `series` has this value: a request is counted a moment after its answer.
async fn settled(gateway: &Gateway, series: &str, value: f64) -> Metrics {
    eventually_some(PATIENCE, || async {
        let read = Metrics::of(gateway).await;
        (read.value(series) == value).then_some(read)
    })
    .await
}

/// The access line that is as wanted; it is written a moment after the answer.
async fn access_line(output: &Output, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually_some(PATIENCE, || {
        let found = output.records().into_iter().find(|line| line["status"].is_u64() && wanted(line));
        async move { found }
    })
    .await
}

/// The audit events of this name, oldest first.
fn audit(gateway: &Gateway, event: &str) -> Vec<Value> {
    let records = gateway.output.records().into_iter();
    records.filter(|line| line["target"] == "audit" && line["event"] == event).collect()
}

/// The newest audit event of this name.
async fn audited(gateway: &Gateway, event: &str) -> Value {
    eventually_some(PATIENCE, || {
        let found = audit(gateway, event).pop();
        async move { found }
    })
    .await
}

async fn signed_in(gateway: &Gateway, route: &str) -> (Client, Browser, Tokens) {
    let client = Client::register(gateway).await;
    let mut browser = Browser::new().trusting(&gateway.roots);
    let tokens = client.sign_in(&mut browser, route).await;
    (client, browser, tokens)
}

#[tokio::test]
async fn health_and_readiness_are_plain_words() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::before(&upstream).await;
    for (path, words) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let answer = gateway.http.get(gateway.admin(path)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.text().await.unwrap(), words);
    }
    // An upstream that is down is not our readiness.
    upstream.server.stop();
    let answer = gateway.http.get(gateway.admin("/readyz")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn requests_are_counted_by_route_class_and_reason() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let (_, _, tokens) = signed_in(&gateway, "demo").await;
    let call = gateway.mcp("demo");
    let good = call.clone().bearer(&tokens.access_token);
    assert_eq!(good.tool("whoami", json!({})).await.status, 200);
    assert_eq!(good.tool("whoami", json!({})).await.status, 200);
    assert_eq!(call.call("ping", json!({})).await.status, 401);
    assert_eq!(call.clone().bearer("nonsense").call("ping", json!({})).await.status, 401);
    assert_eq!(call.header("origin", "https://evil.test").call("ping", json!({})).await.status, 403);
    assert_eq!(gateway.mcp("nowhere").call("ping", json!({})).await.status, 404);
    upstream.answer_next(Answer::http(500, &[("content-type", "application/json")], "{}"));
    assert_eq!(good.tool("whoami", json!({})).await.status, 500);
    upstream.server.stop();
    assert_eq!(good.tool("whoami", json!({})).await.status, 502);

    let expected = [
        ("demo", "user", "2xx", "ok", 2.0),
        ("demo", "anonymous", "4xx", "no_token", 1.0),
        ("demo", "anonymous", "4xx", "invalid_token", 1.0),
        ("demo", "anonymous", "4xx", "origin", 1.0),
        ("demo", "user", "5xx", "ok", 1.0),
        ("demo", "user", "5xx", "upstream_unreachable", 1.0),
        ("-", "anonymous", "4xx", "no_route", 1.0),
    ];
    for (route, caller, class, reason, count) in expected {
        settled(&gateway, &requests(route, caller, class, reason), count).await;
    }
    settled(&gateway, r#"postern_request_duration_seconds_count{route="demo"}"#, 7.0).await;
    eventually(PATIENCE, || async {
        Metrics::of(&gateway).await.value(&requests("-", "anonymous", "2xx", "local")) >= 2.0
    })
    .await;
    // And none of them twice.
    let metrics = Metrics::of(&gateway).await;
    for (route, caller, class, reason, count) in expected {
        assert_eq!(metrics.value(&requests(route, caller, class, reason)), count, "{}", metrics.0);
    }
}

#[tokio::test]
async fn refreshes_and_oauth_requests_are_counted_by_outcome() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let (client, _, tokens) = signed_in(&gateway, "demo").await;
    let call = gateway.mcp("demo").bearer(&tokens.access_token);
    upstream.refuse_current_tokens();
    assert_eq!(call.tool("whoami", json!({})).await.status, 200);
    let metrics = settled(&gateway, r#"postern_refreshes_total{outcome="success"}"#, 1.0).await;
    assert_eq!(metrics.0.matches("postern_refreshes_total{").count(), 1, "{}", metrics.0);
    upstream.refuse_current_tokens();
    upstream.set_authorization(|script| script.token_fault = Some(TokenFault::error("invalid_grant")));
    assert_eq!(call.tool("whoami", json!({})).await.status, 401);
    settled(&gateway, r#"postern_refreshes_total{outcome="dead"}"#, 1.0).await;

    assert_eq!(client.refresh("nonsense").await.error().as_deref(), Some("invalid_grant"));
    let metrics = Metrics::of(&gateway).await;
    for (endpoint, result) in [("register", "ok"), ("token", "ok"), ("token", "invalid_grant")] {
        let series = format!(r#"postern_oauth_requests_total{{endpoint="{endpoint}",result="{result}"}}"#);
        assert_eq!(metrics.value(&series), 1.0, "{series}\n{}", metrics.0);
    }
}

#[tokio::test]
async fn the_process_and_what_is_under_way_are_measured() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("open", &upstream)).start().await;
    let (_, _, tokens) = signed_in(&gateway, "open").await;
    let active = "postern_in_flight";
    let metrics = settled(&gateway, active, 0.0).await;
    let version = format!(r#"postern_build_info{{version="{}"}}"#, env!("CARGO_PKG_VERSION"));
    assert_eq!(metrics.value(&version), 1.0);
    for series in
        ["process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds", "process_threads"]
    {
        assert!(metrics.value(series) > 0.0, "{series}\n{}", metrics.0);
    }
    assert!(metrics.0.contains("process_cpu_seconds_total "));
    for line in metrics.0.lines().filter(|line| line.starts_with("# TYPE")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(metrics.0.contains(&format!("# HELP {name} ")), "{name}");
        assert!(name.starts_with("postern_") || name.starts_with("process_"), "{name}");
    }

    let gate = Gate::shut();
    upstream.set(|script| script.gate = Some(gate.clone()));
    let call = gateway.mcp("open").bearer(&tokens.access_token);
    let answer = tokio::spawn(async move { call.call("ping", json!({})).await });
    gate.wait_for(1, PATIENCE).await;
    settled(&gateway, active, 1.0).await;
    gate.open();
    assert_eq!(answer.await.unwrap().status, 200);
    settled(&gateway, active, 0.0).await;
}

#[tokio::test]
async fn strangers_cannot_make_new_series() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::before(&upstream).await;
    let ask = async |number: usize| {
        for (method, host) in [("GET", gateway.address.to_string()), ("XYZZY", format!("h{number}.test"))] {
            let bytes = format!(
                "{method} /p{number}/x HTTP/1.1\r\nHost: {host}\r\nUser-Agent: u{number}\r\nMcp-Method: m{number}\r\nConnection: close\r\n\r\n"
            );
            exchange(gateway.address, bytes, PATIENCE).await.unwrap();
        }
        let body = [("grant_type", format!("g{number}")), ("client_id", format!("c{number}"))];
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(body).finish();
        let request = gateway.http.post(gateway.url("/oauth/token")).body(body);
        request.header("content-type", "application/x-www-form-urlencoded").send().await.unwrap();
    };
    let counted = async |number: f64| {
        for reason in ["no_route", "unknown_host"] {
            settled(&gateway, &requests("-", "anonymous", "4xx", reason), number).await;
        }
        settled(&gateway, &requests("-", "anonymous", "4xx", "local"), number).await
    };
    ask(0).await;
    let before = counted(1.0).await.series();
    for number in 1..30 {
        ask(number).await;
    }
    let after = counted(30.0).await;
    assert_eq!(after.series(), before, "{}", after.0);
}

/// What scanners ask for.
const COMMON: &str = "admin actuator actuator/env actuator/heapdump api api/v1 api/v1/routes api/swagger.json \
    apis backup clusters config config.json config.yaml config_dump console connections/nothing \
    dashboard db debug debug/pprof debug/pprof/heap debug/vars docs dump env favicon.ico.bak flush graphql health healthz \
    heapdump help info internal jmx keys live livez login.php logs manage management mcp metrics metrics/prometheus \
    monitoring openapi.json phpinfo.php ping postern.redb postern.yaml postern-data postern-data/sealing.key \
    private proc/self/environ profile quitquitquit readyz ready reload reset robots.txt.bak root routes rpc \
    sealing.key secret secrets server-info server-status sessions shutdown sitemap.xml.bak sse static stats status \
    stop store swagger swagger-ui.html sys system test token tokens trace users v1 v1/metrics vars version web \
    wp-admin wp-login.php xmlrpc.php .env .git/config .git/HEAD .htaccess .ssh/id_rsa .aws/credentials .well-known \
    .well-known/jwks.json .well-known/security.txt .well-known/oauth-protected-resource/nowhere \
    .well-known/oauth-authorization-server/demo oauth oauth/admin oauth/clients oauth/consents oauth/debug oauth/keys \
    oauth/upstream oauth/client oauth/client/nothing.json login/nothing demo2 demox login2";

#[tokio::test]
async fn sr_t65_public_and_admin_listeners_serve_only_their_own() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::before(&upstream).await;
    let spelled = [
        "//metrics",
        "/metrics/",
        "/%6detrics",
        "/./metrics",
        "/demo/../metrics",
        "/demo/%2e%2e/metrics",
        "/;/metrics",
    ];
    let paths = COMMON.split_whitespace().map(|path| format!("/{path}"));
    let paths: Vec<String> = paths.chain(spelled.map(str::to_owned)).collect();
    let admin = gateway.admin("").trim_start_matches("http://").to_owned();
    let ask = async |connection: &mut RawConnection, method: &str, path: &str, host: &str| {
        connection
            .send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"))
            .await;
        connection.response(PATIENCE).await.unwrap().status
    };
    let public_host = gateway.address.to_string();
    let mut public = RawConnection::open(gateway.address).await;
    for path in &paths {
        for method in ["GET", "POST"] {
            let status = ask(&mut public, method, path, &public_host).await;
            let odd = path.contains("/.") || path.contains('%');
            assert!(
                status == 404 || (odd && status == 400) || (method == "POST" && matches!(status, 405 | 415)),
                "{method} {path}: {status}"
            );
        }
    }
    for (path, host) in
        [("/metrics", admin.as_str()), ("/metrics", "localhost"), ("/healthz", "127.0.0.1:9090")]
    {
        assert_eq!(ask(&mut public, "GET", path, host).await, 421, "{host}");
    }

    let mut private = RawConnection::open(admin.parse().unwrap()).await;
    let own = [
        "/",
        "/login",
        "/demo",
        "/oauth/authorize",
        "/oauth/token",
        "/.well-known/oauth-authorization-server",
    ];
    for path in paths.iter().map(String::as_str).chain(own) {
        let mine = matches!(path, "/healthz" | "/readyz" | "/metrics");
        let status = ask(&mut private, "GET", path, &admin).await;
        assert_eq!(status, if mine { 200 } else { 404 }, "{path}");
        // Nothing there changes anything.
        let status = ask(&mut private, "POST", path, &admin).await;
        assert_eq!(status, if mine { 405 } else { 404 }, "{path}");
    }
}

#[tokio::test]
async fn pom_44_the_access_log_has_the_same_keys_on_every_line_and_no_query() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let (client, _, tokens) = signed_in(&gateway, "demo").await;
    let call = gateway.mcp("demo?access_token=CANARY_query").bearer(&tokens.access_token);
    let call = call.header("mcp-method", "tools/call").header("mcp-name", "whoami");
    let answer = call.tool("whoami", json!({})).await;
    assert_eq!(answer.status, 200);
    let id = answer.header("x-request-id").unwrap().to_owned();
    assert_eq!(upstream.calls().pop().unwrap().header("x-request-id").as_deref(), Some(id.as_str()));

    let line = access_line(&gateway.output, |line| line["request_id"] == id.as_str()).await;
    let expected = [
        ("client_ip", json!("127.0.0.1")),
        ("method", json!("POST")),
        ("host", json!(gateway.address.to_string())),
        ("path", json!("/demo")),
        ("route", json!("demo")),
        ("status", json!(200)),
        ("reason", json!("ok")),
        ("user", json!("alice")),
        ("client_id", json!(client.id)),
        ("mcp_method", json!("tools/call")),
        ("mcp_name", json!("whoami")),
        ("bytes_out", json!(answer.body.len())),
        ("attempts", json!(1)),
        ("caller", json!("user")),
        ("upstream", json!(upstream.server.address.to_string())),
        ("trace_id", Value::Null),
    ];
    for (name, value) in expected {
        assert_eq!(line[name], value, "{name}");
    }
    let duration = line["duration_ms"].as_f64().unwrap();
    assert!(duration > 0.0 && duration < 10_000.0, "{duration}");
    assert!(line["bytes_in"].as_u64().unwrap() > 20);
    for part in ["connect_ms", "first_byte_ms"] {
        assert!((0.0..=duration).contains(&line[part].as_f64().unwrap()), "{part}: {line}");
    }
    // Where it was in memory, no time is said.
    assert!(line["credential_ms"].as_f64().is_none_or(|part| (0.0..=duration).contains(&part)), "{line}");
    assert!(line["time"].as_str().unwrap().ends_with('Z'));

    // Refused, local and unknown requests have the same keys.
    gateway.mcp("demo").call("ping", json!({})).await;
    gateway.mcp("nowhere").call("ping", json!({})).await;
    access_line(&gateway.output, |line| line["path"] == "/nowhere").await;
    let refused = access_line(&gateway.output, |line| line["reason"] == "no_token").await;
    let keys = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let lines: Vec<Value> =
        gateway.output.records().into_iter().filter(|line| line["status"].is_u64()).collect();
    assert!(lines.len() > 6);
    assert!(lines.iter().all(|other| keys(other) == keys(&line)));
    assert_eq!((&refused["route"], &refused["user"]), (&json!("demo"), &Value::Null));
    gateway.output.assert_no_secret();
    assert!(!gateway.output.text().contains("code_challenge"));
}

#[tokio::test]
async fn a_request_keeps_a_harmless_id_of_its_client_and_loses_any_other() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("open", &upstream)).start().await;
    let (_, _, tokens) = signed_in(&gateway, "open").await;
    let call = gateway.mcp("open").bearer(&tokens.access_token);
    let mut seen = BTreeSet::new();
    for (given, kept) in [
        ("trace_me-0123456789", true),
        ("short", false),
        ("with space in it", false),
        ("\"},{\"status\":200", false),
        (&"x".repeat(65), false),
    ] {
        let answer = call.clone().header("x-request-id", given).call("ping", json!({})).await;
        let id = answer.header("x-request-id").unwrap().to_owned();
        assert_eq!(id == given, kept, "{given}");
        assert_eq!(upstream.calls().pop().unwrap().header("x-request-id").as_deref(), Some(id.as_str()));
        access_line(&gateway.output, |line| line["request_id"] == id.as_str()).await;
        assert!(seen.insert(id), "ids are unique");
    }
    // A refusal has one too, so that a user can name it.
    let refused = gateway.mcp("open").call("ping", json!({})).await;
    let id = refused.header("x-request-id").unwrap().to_owned();
    access_line(&gateway.output, |line| line["request_id"] == id.as_str()).await;
}

#[tokio::test]
async fn the_access_log_can_be_text_or_off() {
    let upstream = Upstream::open().await;
    for kind in ["text", "off"] {
        let mut gateway = Gateway::builder()
            .with("server.access_log", json!(kind))
            .route(Route::open("open", &upstream))
            .start()
            .await;
        let (_, _, tokens) = signed_in(&gateway, "open").await;
        let call = gateway.mcp("open?q=CANARY_query").bearer(&tokens.access_token);
        assert_eq!(call.call("ping", json!({})).await.status, 200);
        settled(&gateway, &requests("open", "user", "2xx", "ok"), 1.0).await;
        let wanted = format!(" 200 POST {}/open ", gateway.address);
        let is_line = |line: &&String| line.contains(" 200 POST ");
        if kind == "text" {
            let output = gateway.output.clone();
            let line = eventually_some(PATIENCE, || {
                let found =
                    output.lines().iter().filter(is_line).find(|line| line.contains(&wanted)).cloned();
                async move { found }
            })
            .await;
            assert!(line.ends_with(" ok \"alice\""), "{line}");
        }
        // The last line is there when the program has ended.
        gateway.stop().await;
        let records = gateway.output.records();
        assert!(!records.iter().any(|record| record["status"].is_u64()), "JSON lines");
        if kind == "off" {
            let lines = gateway.logs();
            assert_eq!(records.len(), lines.len(), "only the log: {lines:?}");
        }
        gateway.output.assert_no_secret();
    }
}

#[tokio::test]
async fn what_people_and_clients_do_is_audited() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::builder()
        .with("oauth_server.refresh_replay_window", json!("0s"))
        .route(Route::oauth("demo", &upstream))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    assert_eq!(audited(&gateway, "client_registered").await["client"], client.id);

    // A wrong password, then the right one.
    let mut stranger = Browser::of("mallory");
    let arrival = stranger.authorize_or_stop(&client.redirect_uri, &client.authorization("demo").url()).await;
    assert!(matches!(arrival, Arrival::Page(page) if page.status == 401));
    let failed = audited(&gateway, "sign_in_failed").await;
    assert_eq!((&failed["user"], &failed["client_ip"]), (&json!("mallory"), &json!("127.0.0.1")));
    assert_eq!(failed["level"], "WARN");
    let mut browser = Browser::new();
    let request = client.authorization("demo");
    let page = browser.go_to_consent(&client.redirect_uri, &request.url()).await;
    let signed = audited(&gateway, "sign_in").await;
    assert_eq!((&signed["user"], &signed["client_ip"]), (&json!("alice"), &json!("127.0.0.1")));

    // A form that was not made for this browser, a refusal, and then consent.
    let form = page.form_with_button("allow");
    let forged = browser.submit_once(&page, &form, &[("csrf", "guessed"), ("decision", "allow")]).await;
    assert_eq!(forged.status, 403);
    assert_eq!(audited(&gateway, "forged_form").await["user"], "alice");
    browser.press(&page, "deny").await;
    let consent = audited(&gateway, "consent").await;
    assert_eq!(
        (&consent["allowed"], &consent["route"], &consent["client"]),
        (&json!(false), &json!("demo"), &json!(client.id))
    );
    let request = client.authorization("demo");
    let callback = browser.authorize(&client.redirect_uri, &request.url()).await;
    eventually(PATIENCE, || async {
        audit(&gateway, "consent").pop().is_some_and(|consent| consent["allowed"] == true)
    })
    .await;
    let registered = audited(&gateway, "registered_upstream").await;
    assert_eq!(registered["issuer"], upstream.authorization.issuer());
    let connect = audited(&gateway, "connect").await;
    assert_eq!(
        (&connect["user"], &connect["route"], &connect["ok"]),
        (&json!("alice"), &json!("demo"), &json!(true))
    );

    let tokens = client.redeem(&callback.code(), &request).await.tokens();
    let grant = audited(&gateway, "grant").await;
    assert_eq!(
        (&grant["user"], &grant["client"], &grant["route"]),
        (&json!("alice"), &json!(client.id), &json!("demo"))
    );

    // An old refresh token, shown again.
    let newer = client.refresh(&tokens.refresh_token).await.tokens();
    client.refresh(&newer.refresh_token).await.tokens();
    assert_eq!(client.refresh(&tokens.refresh_token).await.error().as_deref(), Some("invalid_grant"));
    let reused = audited(&gateway, "refresh_token_reused").await;
    assert_eq!(
        (&reused["user"], &reused["client"], &reused["level"]),
        (&json!("alice"), &json!(client.id), &json!("WARN"))
    );

    // A code, redeemed twice.
    let request = client.authorization("demo");
    let code = browser.authorize(&client.redirect_uri, &request.url()).await.code();
    client.redeem(&code, &request).await.tokens();
    assert_eq!(client.redeem(&code, &request).await.error().as_deref(), Some("invalid_grant"));
    assert_eq!(audited(&gateway, "code_replayed").await["user"], "alice");

    let tokens = client.sign_in(&mut browser, "demo").await;
    assert_eq!(client.revoke(&tokens.refresh_token).await.status, 200);
    assert_eq!(audited(&gateway, "grant_revoked").await["client"], client.id);

    // The way back from an upstream, invented.
    let back = gateway.url("/oauth/upstream/callback/aaaaaaaaaaaaaaaa?state=CANARY_state&code=CANARY_code");
    let refused = browser.go(&back).await.page();
    assert!(refused.status >= 400);
    assert_eq!(audited(&gateway, "callback_refused").await["user"], "alice");

    let home = browser.go(&gateway.url("/")).await.page();
    browser.press(&home, "sign out").await;
    assert_eq!(audited(&gateway, "sign_out").await["user"], "alice");
    gateway.output.assert_no_secret();
}

/// Names, paths and headers as somebody sends them who wants to write our log.
const HOSTILE: [&str; 6] = [
    "x\r\n{\"target\":\"audit\",\"event\":\"sign_in\",\"user\":\"alice\"}",
    "x\u{1b}[2J\u{1b}]0;owned\u{7}",
    "x\"},{\"status\":200",
    "x\\\"\u{0}\u{8}\u{7f}",
    "x\u{9b}31m\u{85}\u{2028}\u{202e}",
    "%n%s%0d%0a${jndi:ldap://evil.test}",
];

#[tokio::test]
async fn sr_t66_what_a_stranger_writes_stays_inside_one_line() {
    let upstream = Upstream::open().await;
    for kind in ["json", "text"] {
        let mut gateway = Gateway::builder()
            .with("server.access_log", json!(kind))
            .route(Route::open("open", &upstream))
            .start()
            .await;
        let client = Client::register(&gateway).await;
        let mut requests = 1;
        for hostile in HOSTILE {
            let mut browser = Browser::of(hostile);
            let login = browser.go(&gateway.url("/login")).await.page();
            assert_eq!(browser.sign_in(&login).await.page().status, 401);
            client.clone().refresh(hostile).await;
            let mut invented = client.clone();
            invented.id = hostile.into();
            invented.refresh("x").await;
            let page = browser.peek(&invented.authorization(hostile).url()).await;
            assert_ne!(page.status, 200);
            requests += 5;
            // In the places where HTTP lets it through: as it is, and percent-encoded.
            let encoded: String = form_urlencoded::byte_serialize(hostile.as_bytes()).collect();
            for (path, name) in
                [(format!("/{hostile}"), "x"), (format!("/{encoded}"), "x"), ("/open".into(), hostile)]
            {
                let path: String = path.chars().filter(|c| !matches!(c, '\r' | '\n' | '\0' | ' ')).collect();
                let bytes = format!(
                    "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {name}\r\nX-Request-Id: {name}\r\nMcp-Method: {name}\r\n\
                     Mcp-Name: {name}\r\nAuthorization: Bearer {name}\r\nConnection: close\r\n\r\n",
                    gateway.address
                );
                // A request that is none is answered by the parser, and then there is no line.
                if let Some(answer) = exchange(gateway.address, bytes, PATIENCE).await {
                    assert!((400..500).contains(&answer.status), "{path} {}", answer.status);
                    requests += usize::from(answer.header("x-request-id").is_some());
                }
            }
            let host = format!(
                "GET /open HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                hostile.replace(['\r', '\n'], "")
            );
            exchange(gateway.address, host, PATIENCE).await;
        }
        let long = format!(
            "GET /{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            "x".repeat(60_000),
            gateway.address
        );
        assert_eq!(exchange(gateway.address, long, PATIENCE).await.unwrap().status, 404);
        let is_access = |line: &&String| match kind {
            "json" => serde_json::from_str::<Value>(line).is_ok_and(|line| line["status"].is_u64()),
            _ => !line.starts_with('{'),
        };
        let output = gateway.output.clone();
        eventually(PATIENCE, || {
            let enough = output.lines().iter().filter(is_access).count() >= requests;
            async move { enough }
        })
        .await;
        // The last line is there when the program has ended.
        gateway.stop().await;
        for line in gateway.logs() {
            let control =
                line.chars().find(|c| c.is_control() && !matches!(c, '\u{7f}'..='\u{9f}' if kind == "json"));
            assert_eq!(control, None, "{line:?}");
            if kind == "json" || !is_access(&&line) {
                assert!(serde_json::from_str::<Value>(&line).is_ok_and(|line| line.is_object()), "{line}");
            } else {
                // Time, status, method: what we wrote ourselves comes first on every line.
                let words: Vec<&str> = line.split(' ').collect();
                assert!(words[0].ends_with('Z') && words[1].parse::<u16>().is_ok(), "{line}");
            }
        }
        assert!(audit(&gateway, "sign_in").is_empty(), "an event was forged");
        assert_eq!(audit(&gateway, "sign_in_failed").len(), HOSTILE.len());
    }
}

/// A server that answers every request with these bytes.
async fn garbage(bytes: String) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let bytes = bytes.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(bytes.as_bytes()).await;
            });
        }
    });
    url
}

#[tokio::test]
async fn sr_t66_no_secret_is_ever_printed() {
    // The second one asks the libraries for their finest lines by name.
    for log in [
        "trace",
        "trace,hyper=trace,hyper_util=trace,h2=trace,reqwest=trace,rustls=trace,pingora=trace,pingora_core=trace,\
         pingora_proxy=trace,pingora_core::protocols::http::v1=trace,pingora_proxy::proxy_h1=trace,\
         pingora_core::protocols::http::v1::server=trace,hyper::proto::h1=trace,hyper_util::client::legacy=trace",
    ] {
        no_secret_is_printed(log).await;
    }
}

async fn no_secret_is_printed(log: &str) {
    let (upstream, open) = (Upstream::start().await, Upstream::open().await);
    let broken = garbage(format!("HTTP/1.1 200 OK\r\nbad header {}\r\n\r\n", secret("answer"))).await;
    let half =
        garbage(format!("HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-Key: {}\r\n\r\n{{", secret("answer")))
            .await;
    let fixed = secret("fixed");
    let none = json!({"kind": "none"});
    let gateway = Gateway::builder()
        .env("RUST_LOG", log)
        .env("FIXED", &fixed)
        .route(Route::oauth("demo", &upstream))
        .route(Route::header("fixed", &open, "x-api-key", json!({"env": "FIXED"})))
        .route(Route::to("broken", &broken, none.clone()))
        .route(Route::to("half", &half, none))
        .start()
        .await;

    // The whole way, with a wrong password first.
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    let login = browser.go(&gateway.url("/login")).await.page();
    let form = login.forms().into_iter().find(|form| form.has_field("password")).unwrap();
    let wrong = [("username", "alice"), ("password", &*secret("password"))];
    browser.submit_once(&login, &form, &wrong).await;
    let request = client.authorization("demo");
    let callback = browser.authorize(&client.redirect_uri, &request.url()).await;
    let code = callback.code();
    let tokens = client.redeem(&code, &request).await.tokens();
    let newer = client.refresh(&tokens.refresh_token).await.tokens();
    client.redeem(&code, &request).await;
    let mut hidden =
        vec![code, request.pkce.verifier.clone(), tokens.access_token.clone(), tokens.refresh_token.clone()];
    hidden.extend([newer.access_token.clone(), newer.refresh_token]);
    let tokens = client.sign_in(&mut browser, "demo").await;
    let call = gateway
        .mcp("demo")
        .bearer(&tokens.access_token)
        .header("cookie", &format!("sid={}", secret("cookie")));
    assert_eq!(call.tool("whoami", json!({"token": secret("argument")})).await.status, 200);
    upstream.refuse_current_tokens();
    assert_eq!(call.tool("whoami", json!({})).await.status, 200);
    for route in ["fixed", "broken", "half"] {
        let tokens = client.sign_in(&mut browser, route).await;
        let call = gateway.mcp(&format!("{route}?key={}", secret("query"))).bearer(&tokens.access_token);
        let _ = call.try_send("POST", Some("{}")).await.unwrap().bytes().await;
        hidden.push(tokens.access_token);
    }
    assert_eq!(open.requests.last_to("/mcp").header("x-api-key"), Some(fixed));

    // Everything that can go wrong on the way.
    for fault in [
        TokenFault::answer(
            500,
            &[("content-type", "application/json")],
            &json!({"error": secret("error")}).to_string(),
        ),
        TokenFault::answer(
            200,
            &[("content-type", "application/json")],
            &format!("{{\"access_token\": \"{}\"", secret("body")),
        ),
        TokenFault::answer(200, &[("content-type", "text/html")], &secret("page")),
        TokenFault::LoseAnswer,
        TokenFault::HalfAnswer,
        TokenFault::error("invalid_grant"),
    ] {
        // As often as this nobody is sent anywhere, unless they have disconnected.
        let page = browser.go(&gateway.url("/connections")).await.page();
        let form = page.form_to("/connections/demo/disconnect");
        browser.submit(&page, &form, &[]).await;
        hidden.push(client.sign_in(&mut browser, "demo").await.access_token);
        assert_eq!(call.tool("whoami", json!({})).await.status, 200);
        // While the token is good, so that the user can be sent there again afterwards.
        upstream.answer_next(Answer::InsufficientScope(String::new()));
        assert_eq!(call.tool("whoami", json!({})).await.status, 403);
        upstream.refuse_current_tokens();
        upstream.set_authorization(|script| script.token_faults.push_back(fault.clone()));
        assert_ne!(call.tool("whoami", json!({})).await.status, 200);
        upstream.set_authorization(|script| script.token_faults.push_back(fault));
        browser.authorize_or_stop(&client.redirect_uri, &client.authorization("demo").url()).await;
        upstream.set_authorization(|script| script.token_faults.clear());
        upstream.set(|script| script.refused_generation = 0);
        hidden.push(client.sign_in(&mut browser, "demo").await.access_token);
        assert_eq!(call.tool("whoami", json!({})).await.status, 200);
    }
    let answers = format!(
        "/oauth/upstream/callback/aaaaaaaaaaaaaaaa?code={}&state={}",
        secret("code"),
        secret("state")
    );
    browser.go(&gateway.url(&answers)).await;
    let refused = client
        .authorization("demo")
        .with("code_challenge", &secret("challenge"))
        .with("redirect_uri", &secret("uri"));
    browser.peek(&refused.url()).await;
    client.refresh(&secret("refresh")).await;
    client.revoke(&secret("token")).await;
    let basic = data_encoding::BASE64.encode(format!("id:{}", secret("basic")).as_bytes());
    for value in [
        format!("Bearer {}", secret("bearer")),
        format!("Basic {basic}"),
        secret("odd"),
        format!("Bearer a b {}", secret("two")),
    ] {
        gateway.mcp("demo").header("authorization", &value).call("ping", json!({})).await;
    }
    let bearer = secret("malformed");
    for request in [
        format!(
            "GET /demo?code={bearer} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {bearer}\r\nbad header\r\n\r\n",
            gateway.address
        ),
        format!("GET /demo?code={bearer} HTTP/1.1\r\nAuthorization: Bearer {bearer}\r\nHost\u{1}: x\r\n\r\n"),
        format!("GET /demo?code={bearer} HTTP/9.9\r\nCookie: {bearer}\r\n\r\n"),
        format!("{bearer}\r\n\r\n"),
        format!(
            "POST /demo HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {bearer}\r\nTransfer-Encoding: chunked\r\n\r\n{bearer}\r\n",
            gateway.address
        ),
        format!(
            "POST /oauth/token HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n{bearer}\r\n",
            gateway.address
        ),
        format!("CONNECT {bearer}:1 HTTP/1.1\r\nHost: x\r\n\r\n"),
    ] {
        let mut connection = RawConnection::open(gateway.address).await;
        connection.send(request).await;
        connection.finish_sending().await;
        connection.closed(PATIENCE).await;
    }
    // Nobody at the other end, and a caller who hangs up.
    open.server.stop();
    let lost = client.sign_in(&mut browser, "fixed").await;
    let call = gateway.mcp(&format!("fixed?key={}", secret("query"))).bearer(&lost.access_token);
    assert_eq!(call.call("ping", json!({})).await.status, 502);
    upstream.set_authorization(|script| script.token_fault = None);
    let gate = Gate::shut();
    upstream.set(|script| {
        script.gate = Some(gate.clone());
        script.refused_generation = 0;
    });
    let tokens = client.sign_in(&mut browser, "demo").await;
    let call = gateway.mcp(&format!("demo?key={}", secret("query"))).bearer(&tokens.access_token);
    let leaving = tokio::spawn(async move { call.call("ping", json!({})).await });
    gate.wait_for(1, PATIENCE).await;
    leaving.abort();
    settled(&gateway, "postern_in_flight", 0.0).await;

    hidden.extend([tokens.access_token, tokens.refresh_token, lost.access_token]);
    hidden.extend(browser.jar.all().iter().map(|cookie| cookie.value.clone()));
    let key = std::fs::read_to_string(gateway.data_dir().join("sealing.key")).unwrap();
    hidden.push(key.trim().to_owned());
    hidden.push(basic);
    let metrics = Metrics::of(&gateway).await;
    let mut gateway = gateway;
    gateway.stop().await;
    gateway.output.assert_no_secret();
    let printed = gateway.output.text() + &metrics.0;
    for secret in hidden {
        assert!(secret.len() > 15, "too short to be searched: {secret}");
        if let Some(line) = printed.lines().find(|line| line.contains(&secret)) {
            panic!("printed: {secret}\n{line}");
        }
    }
    assert!(!metrics.0.contains(support::CANARY));
}
