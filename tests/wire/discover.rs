//! From an upstream's address to its authorization server: where documents are looked for and in which order, which of
//! them are believed, and which addresses are never asked whatever a document says. What cannot be used ends as an
//! error at the client, soon, and never with the user's code or token in foreign hands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use serde_json::json;
use support::answers::http_answer;
use support::authorization_server::AuthorizationServer;
use support::browser::Browser;
use support::client::{Callback, Client, Tokens};
use support::gate::Gate;
use support::gateway::{Builder, Gateway, Route};
use support::mcp::McpAnswer;
use support::port::Port;
use support::script::{AuthorizationScript, MetadataLocation, ServerMetadata};
use support::server::Server;
use support::upstream::Upstream;
use support::{PATIENCE, within};

/// A client at a gateway, and the browser of alice.
struct Visit {
    gateway: Gateway,
    client: Client,
    browser: Browser,
}

impl Visit {
    async fn to(builder: Builder) -> Self {
        let gateway = builder.start().await;
        let client = Client::register(&gateway).await;
        Visit { gateway, client, browser: Browser::new() }
    }

    async fn at(upstream: &Upstream) -> Self {
        Self::to(Gateway::builder().route(Route::oauth("demo", upstream))).await
    }

    async fn sign_in(&mut self, route: &str) -> Tokens {
        self.client.sign_in(&mut self.browser, route).await
    }

    /// Signs in and calls a tool.
    async fn connects(&mut self, route: &str) {
        let tokens = self.sign_in(route).await;
        let answer = self.whoami(route, &tokens).await;
        assert_eq!(answer.tool_text(), "upstream-user", "{route}");
    }

    async fn whoami(&self, route: &str, tokens: &Tokens) -> McpAnswer {
        let call = self.gateway.mcp(route).bearer(&tokens.access_token);
        call.tool("whoami", json!({})).await
    }

    /// What the client gets to hear in the end.
    async fn callback(&mut self, route: &str) -> Callback {
        let request = self.client.authorization(route);
        let url = request.url();
        let trip = self.browser.authorize(&self.client.redirect_uri, &url);
        let callback = within(PATIENCE, trip).await;
        assert_eq!(callback.state(), Some(request.state.as_str()), "{route}");
        assert_eq!(callback.iss(), Some(self.gateway.public_url.as_str()), "{route}");
        callback
    }

    /// The trip ends at the client with `server_error`, and quickly.
    async fn is_refused(&mut self, route: &str) {
        let begun = Instant::now();
        let callback = self.callback(route).await;
        assert_eq!(callback.error(), Some("server_error"), "{route}: {}", callback.url);
        assert!(begun.elapsed() < Duration::from_secs(5), "{route}: {:?}", begun.elapsed());
    }
}

/// Notices every connection, and never answers.
struct Tripwire {
    listener: TcpListener,
}

impl Tripwire {
    fn at(address: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Tripwire { listener }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    #[track_caller]
    fn assert_untouched(&self, what: &str) {
        let touched = self.listener.accept();
        assert!(touched.is_err(), "{what}: a connection from {:?}", touched.map(|(_, from)| from));
    }
}

/// Requests for metadata, as paths in their order.
fn documents(list: &support::received::Requests) -> Vec<String> {
    let is_document = |request: &support::received::Received| request.path.contains("/.well-known/");
    list.matching(is_document).into_iter().map(|request| request.path).collect()
}

#[tokio::test]
async fn sr_cl_01_resource_metadata_is_looked_for_in_order() {
    const PATH: &str = "/.well-known/oauth-protected-resource/mcp";
    const ROOT: &str = "/.well-known/oauth-protected-resource";
    let custom = || MetadataLocation::At("/documents/resource.json".into());
    // Where it is, whether the challenge says so, and what is asked for before it is found.
    let cases = [
        (MetadataLocation::PathInserted, true, vec![PATH]),
        (MetadataLocation::PathInserted, false, vec![PATH]),
        (MetadataLocation::Root, true, vec![ROOT]),
        (MetadataLocation::Root, false, vec![PATH, ROOT]),
        (custom(), true, vec![]),
        (MetadataLocation::Nowhere, false, vec![PATH, ROOT]),
    ];
    let mut builder = Gateway::builder();
    let mut upstreams = Vec::new();
    for (number, (location, hinted, _)) in cases.iter().enumerate() {
        let upstream = Upstream::start().await;
        upstream.set(|script| {
            script.resource_metadata.location = location.clone();
            script.challenge.with_metadata = *hinted;
        });
        builder = builder.route(Route::oauth(&format!("r{number}"), &upstream));
        upstreams.push(upstream);
    }
    let mut visit = Visit::to(builder).await;
    for (number, ((location, _, asked), upstream)) in cases.iter().zip(&upstreams).enumerate() {
        visit.connects(&format!("r{number}")).await;
        assert_eq!(&documents(&upstream.requests), asked, "case {number}");
        let custom = usize::from(matches!(location, MetadataLocation::At(_)));
        assert_eq!(upstream.requests.count("/documents/resource.json"), custom, "case {number}");
    }
}

#[tokio::test]
async fn sr_cl_01_server_metadata_is_looked_for_in_order() {
    let inserted = |name: &str| format!("/.well-known/{name}/tenant/one");
    let oauth = inserted("oauth-authorization-server");
    let openid = inserted("openid-configuration");
    let appended = "/tenant/one/.well-known/openid-configuration".to_owned();
    let plain = |name: &str| format!("/.well-known/{name}");
    let cases = [
        ("/tenant/one", ServerMetadata::Rfc8414, vec![oauth.clone()]),
        ("/tenant/one", ServerMetadata::OidcInserted, vec![oauth.clone(), openid.clone()]),
        ("/tenant/one", ServerMetadata::OidcAppended, vec![oauth, openid, appended]),
        ("", ServerMetadata::Rfc8414, vec![plain("oauth-authorization-server")]),
        (
            "",
            ServerMetadata::OidcInserted,
            vec![plain("oauth-authorization-server"), plain("openid-configuration")],
        ),
    ];
    let mut builder = Gateway::builder();
    let mut parties = Vec::new();
    for (number, (path, metadata, _)) in cases.iter().enumerate() {
        let server = AuthorizationServer::start().await;
        server.set(|script| {
            script.issuer_path = (*path).into();
            script.metadata = *metadata;
        });
        let upstream = Upstream::relying_on(&server).await;
        builder = builder.route(Route::oauth(&format!("r{number}"), &upstream));
        parties.push((upstream, server));
    }
    let mut visit = Visit::to(builder).await;
    for (number, ((.., asked), (_, server))) in cases.iter().zip(&parties).enumerate() {
        visit.connects(&format!("r{number}")).await;
        assert_eq!(&documents(&server.requests), asked, "case {number}");
    }
}

#[tokio::test]
async fn a_server_of_the_first_revision_is_its_own_authorization_server() {
    let mut builder = Gateway::builder();
    let mut upstreams = Vec::new();
    for (name, metadata) in [("described", ServerMetadata::Rfc8414), ("bare", ServerMetadata::Nowhere)] {
        let upstream = Upstream::start().await;
        upstream.set(|script| {
            script.resource_metadata.location = MetadataLocation::Nowhere;
            script.challenge.verbatim = Some(String::new());
        });
        upstream.set_authorization(|script| script.metadata = metadata);
        builder = builder.route(Route::oauth(name, &upstream));
        upstreams.push(upstream);
    }
    let mut visit = Visit::to(builder).await;
    visit.connects("described").await;
    visit.connects("bare").await;
    for upstream in upstreams {
        assert_eq!(upstream.authorization.registrations(), 1);
        let resource = upstream.authorization.requests.last_to("/authorize").parameter("resource");
        assert_eq!(resource, Some(upstream.origin.clone()), "without a document the origin is the resource");
    }
}

#[tokio::test]
async fn configured_endpoints_need_no_document() {
    let server = AuthorizationServer::start().await;
    server.set(|script| script.metadata = ServerMetadata::Nowhere);
    server.know_client("by-hand", Some("CANARY_by_hand"));
    let upstream = Upstream::relying_on(&server).await;
    upstream.set(|script| script.resource_metadata.location = MetadataLocation::Nowhere);
    let route = Route::oauth("demo", &upstream)
        .with("credential.authorization_endpoint", json!(format!("{}/authorize", server.origin)))
        .with("credential.token_endpoint", json!(format!("{}/token", server.origin)))
        .with("credential.client_id", json!("by-hand"))
        .with("credential.client_secret", json!({"env": "SECRET"}))
        .with("credential.scopes", json!(["read"]));
    let mut visit = Visit::to(Gateway::builder().route(route).env("SECRET", "CANARY_by_hand")).await;
    visit.connects("demo").await;
    assert_eq!(documents(&upstream.requests).len() + documents(&server.requests).len(), 0);
    visit.gateway.output.assert_no_secret();
}

#[tokio::test]
async fn a_configured_issuer_has_to_be_one_of_those_listed() {
    let (first, second) = (AuthorizationServer::start().await, AuthorizationServer::start().await);
    let upstream = Upstream::relying_on(&first).await;
    upstream.set(|script| {
        script.resource_metadata.authorization_servers = Some(vec![first.issuer(), second.issuer()]);
    });
    let unlisted = Upstream::relying_on(&first).await;
    let silent = Upstream::relying_on(&first).await;
    silent.set(|script| script.resource_metadata.location = MetadataLocation::Nowhere);
    let issuer = json!(second.issuer());
    let builder = Gateway::builder()
        .route(Route::oauth("listed", &upstream).with("credential.issuer", issuer.clone()))
        .route(Route::oauth("unlisted", &unlisted).with("credential.issuer", issuer.clone()))
        .route(Route::oauth("silent", &silent).with("credential.issuer", issuer));
    let mut visit = Visit::to(builder).await;
    for route in ["listed", "silent"] {
        let callback = visit.callback(route).await;
        assert_eq!(callback.error(), None, "{route}");
    }
    assert_eq!((first.codes_redeemed(), second.codes_redeemed()), (0, 2));
    visit.is_refused("unlisted").await;
    assert!(first.requests.all().is_empty());
}

#[tokio::test]
async fn of_several_authorization_servers_the_first_usable_one_is_taken() {
    let (unfit, fit) = (AuthorizationServer::start().await, AuthorizationServer::start().await);
    unfit.set(|script| script.code_challenge_methods = None);
    let upstream = Upstream::relying_on(&fit).await;
    upstream.set(|script| {
        script.resource_metadata.authorization_servers = Some(vec![unfit.issuer(), fit.issuer()]);
    });
    let many = Upstream::relying_on(&fit).await;
    many.set(|script| {
        let list = std::iter::repeat_n(unfit.issuer(), 1000).chain([fit.issuer()]);
        script.resource_metadata.authorization_servers = Some(list.collect());
    });
    let builder =
        Gateway::builder().route(Route::oauth("demo", &upstream)).route(Route::oauth("many", &many));
    let mut visit = Visit::to(builder).await;
    visit.connects("demo").await;
    assert_eq!(fit.codes_redeemed(), 1);
    // sr_t61: a list without end costs a handful of requests.
    unfit.requests.clear();
    visit.is_refused("many").await;
    assert!(unfit.requests.all().len() <= 6, "{:?}", unfit.requests.paths());
}

#[tokio::test]
async fn sr_t20_metadata_for_another_resource_is_not_believed() {
    type Spell = fn(&str) -> String;
    let spellings: [(&str, Spell); 7] = [
        ("otherhost", |_| "https://evil.example/mcp".into()),
        ("otherport", |_| "http://127.0.0.1:1/mcp".into()),
        ("otherpath", |origin| format!("{origin}/other")),
        ("below", |origin| format!("{origin}/mcp/deeper")),
        ("halfsegment", |origin| format!("{origin}/mc")),
        ("https", |origin| format!("{}/mcp", origin.replace("http:", "https:"))),
        ("query", |origin| format!("{origin}/mcp?x=1")),
    ];
    let mut builder = Gateway::builder();
    let mut parties = Vec::new();
    for (name, spell) in spellings {
        let server = AuthorizationServer::start().await;
        let upstream = Upstream::relying_on(&server).await;
        let resource = spell(&upstream.origin);
        upstream.set(|script| script.resource_metadata.resource = Some(resource));
        builder = builder.route(Route::oauth(name, &upstream));
        parties.push((name, upstream, server));
    }
    let mut visit = Visit::to(builder).await;
    for (name, _, server) in &parties {
        visit.is_refused(name).await;
        assert!(server.requests.all().is_empty(), "{name}: {:?}", server.requests.paths());
    }
}

#[tokio::test]
async fn sr_cl_03_04_sr_t15_sr_t19_metadata_that_is_not_fit_ends_at_the_client() {
    type Spoil = fn(&mut AuthorizationScript, &str);
    let spoils: [(&str, Spoil); 18] = [
        ("slash", |script, origin| script.metadata_patch = json!({"issuer": format!("{origin}/")})),
        ("other", |script, _| script.metadata_patch = json!({"issuer": "https://evil.example"})),
        ("case", |script, origin| {
            script.metadata_patch = json!({"issuer": origin.replace("http", "HTTP")});
        }),
        ("noissuer", |script, _| script.metadata_patch = json!({"issuer": null})),
        ("nopkce", |script, _| script.code_challenge_methods = None),
        ("plain", |script, _| script.code_challenge_methods = Some(vec!["plain".into()])),
        ("s256", |script, _| script.code_challenge_methods = Some(vec!["s256".into()])),
        ("noauthorize", |script, _| script.metadata_patch = json!({"authorization_endpoint": null})),
        ("notoken", |script, _| script.metadata_patch = json!({"token_endpoint": null})),
        // sr_t19: an honest server's page with a token endpoint of its own.
        ("elsewhere", |script, _| {
            script.metadata_patch = json!({"authorization_endpoint": "https://honest.example/authorize"});
        }),
        // sr_t15
        ("javascript", |script, _| {
            script.metadata_patch = json!({"authorization_endpoint": "javascript:alert(1)"});
        }),
        ("tabbed", |script, _| {
            script.metadata_patch = json!({"authorization_endpoint": "java\tscript:alert(1)"});
        }),
        ("data", |script, _| script.metadata_patch = json!({"authorization_endpoint": "data:text/html,x"})),
        ("file", |script, _| script.metadata_patch = json!({"token_endpoint": "file:///etc/passwd"})),
        ("userinfo", |script, origin| {
            let endpoint = origin.replace("http://", "http://a:b@");
            script.metadata_patch = json!({"token_endpoint": format!("{endpoint}/token")});
        }),
        ("backslash", |script, origin| {
            script.metadata_patch = json!({"authorization_endpoint": format!("{origin}\\@evil.example/")});
        }),
        ("wrongtype", |script, _| script.metadata_patch = json!({"token_endpoint": ["x"]})),
        ("register", |script, _| {
            script.metadata_patch = json!({"registration_endpoint": "gopher://127.0.0.1/"});
        }),
    ];
    let mut builder = Gateway::builder();
    let mut parties = Vec::new();
    for (name, spoil) in spoils {
        let server = AuthorizationServer::start().await;
        let origin = server.origin.clone();
        server.set(|script| spoil(script, &origin));
        let upstream = Upstream::relying_on(&server).await;
        builder = builder.route(Route::oauth(name, &upstream));
        parties.push((name, upstream, server));
    }
    let mut visit = Visit::to(builder).await;
    for (name, _, server) in &parties {
        visit.is_refused(name).await;
        let asked = server.requests.paths();
        assert!(asked.iter().all(|path| path.contains("/.well-known/")), "{name}: {asked:?}");
    }
}

#[tokio::test]
async fn sr_t24_a_bad_document_leaves_no_trace() {
    let server = AuthorizationServer::start().await;
    let (upstream, other) = (Upstream::relying_on(&server).await, Upstream::start().await);
    let builder =
        Gateway::builder().route(Route::oauth("demo", &upstream)).route(Route::oauth("other", &other));
    let mut visit = Visit::to(builder).await;
    server.set(|script| script.metadata_patch = json!({"issuer": other.authorization.issuer()}));
    visit.is_refused("demo").await;
    upstream.set(|script| script.resource_metadata.resource = Some(other.url()));
    visit.is_refused("demo").await;
    visit.connects("other").await;
    assert_eq!(other.authorization.requests.last_to("/authorize").parameter("resource"), Some(other.url()));
    server.set(|script| script.metadata_patch = json!({}));
    upstream.set(|script| script.resource_metadata.resource = None);
    visit.connects("demo").await;
}

/// An authorization server that only ever answers `answer` for its metadata.
async fn speaking(answer: impl Fn(&str) -> Response + Send + Sync + 'static) -> Server {
    Server::start(move |request, _| {
        let answer = answer(&format!("http://{}", request.header("host").unwrap()));
        async move { answer }
    })
    .await
}

#[tokio::test]
async fn sr_t61_hostile_metadata_is_an_error_and_soon() {
    fn json_text(body: String) -> Response {
        http_answer(200, &[("content-type".into(), "application/json".into())], &body)
    }
    fn good(origin: &str) -> String {
        json!({
            "issuer": origin, "authorization_endpoint": format!("{origin}/authorize"),
            "token_endpoint": format!("{origin}/token"), "registration_endpoint": format!("{origin}/register"),
            "code_challenge_methods_supported": ["S256"],
        })
        .to_string()
    }
    let bomb =
        |origin: &str| json_text(good(origin).replace('}', &format!(",\"x\":\"{}\"}}", "y".repeat(8 << 20))));
    let deep =
        |origin: &str| json_text(good(origin).replace('}', &format!(",\"x\":{}}}", "[".repeat(100_000))));
    let twice = |origin: &str| {
        json_text(good(origin).replace('}', ",\"token_endpoint\":\"https://evil.example/token\"}"))
    };
    let html = |_: &str| http_answer(200, &[("content-type".into(), "text/html".into())], "<h1>hello</h1>");
    let redirect = |_: &str| {
        http_answer(302, &[("location".into(), "http://169.254.169.254/latest/meta-data".into())], "")
    };
    let error = |_: &str| json_text(r#"{"error":"not_here"}"#.into());
    let array = |_: &str| json_text("[]".into());
    let cut = |origin: &str| json_text(good(origin)[..40].to_owned());
    let servers = [
        ("bomb", speaking(bomb).await),
        ("deep", speaking(deep).await),
        ("twice", speaking(twice).await),
        ("html", speaking(html).await),
        ("redirect", speaking(redirect).await),
        ("error", speaking(error).await),
        ("array", speaking(array).await),
        ("cut", speaking(cut).await),
    ];
    let mut builder = Gateway::builder();
    let mut upstreams = Vec::new();
    for (name, server) in &servers {
        let upstream = Upstream::start().await;
        let issuer = format!("http://{}", server.address);
        upstream.set(|script| script.resource_metadata.authorization_servers = Some(vec![issuer]));
        builder = builder.route(Route::oauth(name, &upstream));
        upstreams.push(upstream);
    }
    let mut visit = Visit::to(builder).await;
    for (name, server) in &servers {
        visit.is_refused(name).await;
        assert!(server.connections_opened() <= 3, "{name}");
    }
}

#[tokio::test]
async fn a_silent_authorization_server_is_not_waited_for() {
    let server = AuthorizationServer::start().await;
    let gate = Gate::shut();
    server.set(|script| script.metadata_gate = Some(gate.clone()));
    let upstream = Upstream::relying_on(&server).await;
    let mut visit = Visit::at(&upstream).await;
    let begun = Instant::now();
    let request = visit.client.authorization("demo");
    let callback = visit.browser.authorize(&visit.client.redirect_uri, &request.url()).await;
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    assert_eq!(callback.error(), Some("temporarily_unavailable"));
    gate.open();
    visit.connects("demo").await;
}

#[tokio::test]
async fn an_outage_while_the_user_signs_in_is_no_dead_end() {
    let server = AuthorizationServer::start().await;
    let upstream = Upstream::relying_on(&server).await;
    let broken = Upstream::start().await;
    broken.set(|script| {
        script.unauthorized = Some(support::script::Answer::http(503, &[], ""));
    });
    let builder =
        Gateway::builder().route(Route::oauth("demo", &upstream)).route(Route::oauth("broken", &broken));
    let mut visit = Visit::to(builder).await;
    server.stop();
    // A code now would only lead to a second refusal right after signing in, where some clients give up.
    let request = visit.client.authorization("demo");
    let callback = visit.browser.authorize(&visit.client.redirect_uri, &request.url()).await;
    assert_eq!(callback.error(), Some("temporarily_unavailable"));
    server.resume().await;
    visit.connects("demo").await;

    let tokens = visit.sign_in("broken").await;
    assert_eq!(visit.whoami("broken", &tokens).await.status, 503, "the upstream's own answer");
    broken.set(|script| script.unauthorized = None);
    assert_eq!(visit.whoami("broken", &tokens).await.status, 401);
    visit.connects("broken").await;
}

#[tokio::test]
async fn sr_t57_a_challenge_cannot_send_us_anywhere() {
    let wire = Tripwire::at("127.0.0.2");
    let name = Tripwire::at("127.0.0.1");
    let (port, by_name) = (wire.port(), name.port());
    let hints = [
        format!("http://127.0.0.2:{port}/x"),
        format!("https://127.0.0.2:{port}/x"),
        format!("https://2130706434:{port}/x"),
        format!("https://0x7f000002:{port}/x"),
        format!("https://127.2:{port}/x"),
        format!("https://[::ffff:127.0.0.2]:{port}/x"),
        format!("https://[::ffff:7f00:2]:{port}/x"),
        format!("https://localhost:{by_name}/x"),
        format!("https://localhost.:{by_name}/x"),
        format!("https://a@127.0.0.2:{port}/x"),
        "http://169.254.169.254/latest/meta-data".into(),
        "https://[64:ff9b::a9fe:a9fe]/x".into(),
        "https://100.64.0.1/x".into(),
        "https://0.0.0.0/x".into(),
        "gopher://127.0.0.2/x".into(),
        "file:///etc/passwd".into(),
        "https://evil.example/x".into(),
        "not a url".into(),
    ];
    let upstream = Upstream::start().await;
    let mut visit = Visit::at(&upstream).await;
    for hint in hints {
        upstream.set(|script| script.challenge.metadata_url = Some(hint.clone()));
        let request = visit.client.authorization("demo");
        let begun = Instant::now();
        // The hint counts for nothing: the document is at its well-known place.
        let page = visit.browser.go_to_consent(&visit.client.redirect_uri, &request.url()).await;
        assert!(page.text().contains("One more step"), "{hint}: {}", page.text());
        assert!(begun.elapsed() < Duration::from_secs(2), "{hint}");
        wire.assert_untouched(&hint);
        name.assert_untouched(&hint);
    }
}

/// Where a document may try to lead us: hosts that the configuration does not name.
fn forbidden(wire: &Tripwire, name: &Tripwire) -> Vec<String> {
    let (port, by_name) = (wire.port(), name.port());
    vec![
        format!("http://127.0.0.2:{port}"),
        format!("https://127.0.0.2:{port}"),
        format!("https://2130706434:{port}"),
        format!("https://[::ffff:127.0.0.2]:{port}"),
        format!("https://localhost:{by_name}"),
        "http://169.254.169.254".into(),
        "https://169.254.169.254".into(),
        "https://100.64.0.1".into(),
        "https://[fe80::1]".into(),
        "https://[::]".into(),
    ]
}

#[tokio::test]
async fn sr_s04_resource_metadata_cannot_lead_to_hosts_that_are_not_allowed() {
    let (wire, name) = (Tripwire::at("127.0.0.2"), Tripwire::at("127.0.0.1"));
    let upstream = Upstream::start().await;
    let mut visit = Visit::at(&upstream).await;
    for host in forbidden(&wire, &name) {
        upstream.set(|script| script.resource_metadata.authorization_servers = Some(vec![host.clone()]));
        visit.is_refused("demo").await;
        wire.assert_untouched(&host);
        name.assert_untouched(&host);
    }
}

#[tokio::test]
async fn sr_s04_server_metadata_cannot_lead_to_hosts_that_are_not_allowed() {
    let (wire, name) = (Tripwire::at("127.0.0.2"), Tripwire::at("127.0.0.1"));
    for endpoint in ["token_endpoint", "registration_endpoint"] {
        let mut builder = Gateway::builder();
        let mut upstreams = Vec::new();
        for (number, host) in forbidden(&wire, &name).into_iter().enumerate() {
            let upstream = Upstream::start().await;
            let patch = json!({endpoint: format!("{host}/x")});
            upstream.set_authorization(|script| script.metadata_patch = patch);
            builder = builder.route(Route::oauth(&format!("r{number}"), &upstream));
            upstreams.push((host, upstream));
        }
        let mut visit = Visit::to(builder).await;
        for (number, (host, upstream)) in upstreams.iter().enumerate() {
            visit.is_refused(&format!("r{number}")).await;
            wire.assert_untouched(&format!("{endpoint} {host}"));
            name.assert_untouched(&format!("{endpoint} {host}"));
            assert_eq!(upstream.authorization.requests.count("/token"), 0);
        }
    }
}

#[tokio::test]
async fn pom_42_a_host_is_asked_once_it_is_allowed_and_the_upstreams_own_is() {
    let server = AuthorizationServer::start().await;
    let issuer = server.origin.replace("127.0.0.1", "localhost");
    server.set(|script| {
        script.issuer = Some(issuer.clone());
        script.metadata_patch = json!({
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "registration_endpoint": format!("{issuer}/register"),
        });
    });
    let upstream = Upstream::relying_on(&server).await;
    let allowed = Route::oauth("allowed", &upstream).with("upstream.allow_hosts", json!(["localhost"]));
    let builder = Gateway::builder().route(Route::oauth("demo", &upstream)).route(allowed);
    let mut visit = Visit::to(builder).await;
    visit.is_refused("demo").await;
    assert!(server.requests.all().is_empty(), "{:?}", server.requests.paths());
    visit.connects("allowed").await;
    // What one route allows, no other does.
    let asked = server.requests.all().len();
    visit.is_refused("demo").await;
    assert_eq!(server.requests.all().len(), asked);
}

#[tokio::test]
async fn a_private_upstream_has_to_be_allowed_as_well() {
    let upstream = Upstream::open().await;
    let secure = upstream.url().replace("http:", "https:");
    let route = Route::to("demo", &secure, json!({"kind": "none"})).without("upstream");
    let builder = Gateway::builder().route(route.with("upstream.url", json!(secure)));
    let mut visit = Visit::to(builder).await;
    let tokens = visit.sign_in("demo").await;
    assert_eq!(visit.whoami("demo", &tokens).await.status, 502);
    assert_eq!(upstream.server.connections_opened(), 0);
}

#[tokio::test]
async fn our_own_admin_address_is_never_asked() {
    let upstream = Upstream::start().await;
    let port = Port::take();
    let admin = port.address();
    let to_admin = Route::to("admin", &format!("http://{admin}/metrics"), json!({"kind": "none"}));
    let builder = Gateway::builder()
        .with("server.admin", json!(admin.to_string()))
        .route(Route::oauth("demo", &upstream))
        .route(to_admin);
    let mut visit = Visit::to(builder).await;
    let tokens = visit.sign_in("admin").await;
    let call = visit.gateway.mcp("admin").bearer(&tokens.access_token);
    for answer in [call.get().await, call.post("{}").await] {
        assert_eq!(answer.status, 502, "{}", answer.body);
        assert!(!answer.body.contains("postern_"), "{}", answer.body);
    }
    let issuer = format!("http://{admin}");
    upstream.set(|script| script.resource_metadata.authorization_servers = Some(vec![issuer]));
    visit.is_refused("demo").await;
    // By its address, not for want of a document.
    visit.gateway.output.shows("address not allowed").await;
}

#[tokio::test]
async fn the_proxy_environment_changes_nothing() {
    let proxy = Tripwire::at("127.0.0.1");
    let address = format!("http://127.0.0.1:{}", proxy.port());
    let upstream = Upstream::start().await;
    let mut builder = Gateway::builder().route(Route::oauth("demo", &upstream));
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        builder = builder.env(name, &address);
    }
    let mut visit = Visit::to(builder.env("NO_PROXY", "").env("no_proxy", "")).await;
    visit.connects("demo").await;
    proxy.assert_untouched("the flow");
}

#[tokio::test]
async fn sr_t22_no_redirect_is_followed() {
    let wire = Tripwire::at("127.0.0.1");
    let target = format!("http://127.0.0.1:{}/x", wire.port());
    let away =
        move |status: u16| -> Response { http_answer(status, &[("location".into(), target.clone())], "") };
    let mut builder = Gateway::builder();
    let mut parties = Vec::new();
    for status in [301, 302, 307, 308] {
        for endpoint in ["token", "register"] {
            let away = away.clone();
            let server = Server::start(move |_, _| {
                let answer = away(status).into_response();
                async move { answer }
            })
            .await;
            let upstream = Upstream::start().await;
            let name = format!("{endpoint}_endpoint").replace("register", "registration");
            let patch = json!({name: format!("http://{}/{endpoint}", server.address)});
            upstream.set_authorization(|script| script.metadata_patch = patch);
            let route = format!("{endpoint}{status}");
            builder = builder.route(Route::oauth(&route, &upstream));
            parties.push((route, upstream, server));
        }
    }
    let mut visit = Visit::to(builder).await;
    for (route, _, server) in &parties {
        visit.is_refused(route).await;
        assert_eq!(server.connections_opened(), 1, "{route}");
        wire.assert_untouched(route);
    }
    visit.gateway.output.assert_no_secret();
}

#[tokio::test]
async fn sr_t60_no_proxy_of_the_environment_sees_a_request() {
    let upstream = Upstream::start().await;
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.set_nonblocking(true).unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let mut builder = Gateway::builder().route(Route::oauth("demo", &upstream));
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        builder = builder.env(name, &url);
    }
    let mut visit = Visit::to(builder).await;
    visit.connects("demo").await;
    upstream.refuse_current_tokens();
    visit.connects("demo").await;
    assert_eq!(proxy.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came by");
}
