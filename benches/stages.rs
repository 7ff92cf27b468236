//! What each stage of a warm call costs by itself, in the order of the call, and all of them together.
//!
//! A call of a signed-in user whose connection is in memory, with the head of an MCP client. Nothing here waits: a stage that
//! would have to is an error. The session id is opened as the gateway does it; making a request id is private to it and is
//! not here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use criterion::{BatchSize, Criterion};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use postern::authn::foreign::Foreign;
use postern::authn::{Caller, authenticate, authenticate_foreign};
use postern::config::{self, Attributes, AuditLog, Config, Process};
use postern::credential::{Ask, Credential, Credentials};
use postern::expression::Wanted;
use postern::jose::sign::{self, SigningKey};
use postern::map::Map;
use postern::mcp::{self, Message, list};
use postern::oauth::client::connection_key;
use postern::oauth::server::access_token::{Claims, Keys};
use postern::oauth::server::{Authority, Snapshot};
use postern::policy::{Asked, Permit, Question, Request};
use postern::route::{Route, Table, canonical_path};
use postern::seal::fields;
use postern::server::foundation::{Foundation, Purpose};
use postern::store::record::Tokens;
use postern::telemetry::audit::Lines;
use postern::telemetry::{CallerClass, Ended, Metrics};
use postern::upstream::peer::peer;
use postern::upstream::resolve::Resolver;
use postern::{inject, origin, policy, respond, trap};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ORIGIN: &str = "http://127.0.0.1:8080";
const HOST: &str = "127.0.0.1:8080";
const USER: &str = "alice@example.com";
const CLIENT: &str = "https://client.example.com/oauth/client.json";
const HOUR: Duration = Duration::from_secs(3600);
const SESSION: &[u8] = b"a session of the benchmark";

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let runtime = Runtime::new().unwrap();
    // What is to be renewed behind a stage's back runs there.
    let _inside = runtime.enter();
    let gateway = Gateway::new(&runtime);
    route(&mut criterion);
    before_the_upstream(&mut criterion, &gateway);
    foreign(&mut criterion, &gateway, &runtime);
    after_the_upstream(&mut criterion, &gateway);
    criterion.bench_function("together, routing to answer", |bench| {
        bench.iter_batched(
            || (head(&gateway.token), answer()),
            |(head, answer)| gateway.call(head, answer),
            BatchSize::SmallInput,
        );
    });
    criterion.final_summary();
}

fn route(criterion: &mut Criterion) {
    criterion.bench_function("route, canonical path", |bench| {
        bench.iter(|| canonical_path(black_box("/r7/mcp")).unwrap().len());
    });
    for count in [10, 10_000] {
        let config = configured(&[], count, "/tmp");
        let routes = Table::new(&config.server.public_url, &config.routes);
        criterion.bench_function(&format!("route, found among {count}"), |bench| {
            bench.iter(|| {
                let authority = routes.authority(black_box(HOST)).unwrap();
                Arc::clone(routes.find(&authority, black_box("/r7/mcp")).ok().unwrap().route)
            });
        });
    }
}

fn before_the_upstream(criterion: &mut Criterion, gateway: &Gateway) {
    let head = head(&gateway.token);
    criterion.bench_function("origin", |bench| {
        bench.iter(|| origin::allowed(black_box(&head), &gateway.snapshot.config.server).is_ok());
    });
    criterion.bench_function("authn, a sealed token", |bench| {
        bench.iter(|| gateway.caller(black_box(&head)));
    });
    criterion.bench_function("session id", |bench| {
        bench.iter(|| gateway.session(black_box(&head)));
    });
    let body = body();
    criterion.bench_function("message, where a rule needs it", |bench| {
        bench.iter(|| Message::read(black_box(&body), &Wanted::default()).unwrap());
    });
    let caller = gateway.caller(&head);
    criterion.bench_function("policy", |bench| {
        bench.iter(|| {
            policy::permit(black_box(&question(&caller, &gateway.route, &head)), Asked::Bodiless).0.is_ok()
        });
    });
    let permit = permit(&caller, &gateway.route, &head);
    criterion.bench_function("credential, a connection", |bench| {
        bench.iter(|| gateway.credential(black_box(&permit)));
    });
    let credential = gateway.credential(&permit);
    criterion.bench_function("upstream, address and peer", |bench| {
        bench.iter(|| peer(black_box(&gateway.route.upstream), gateway.address(), false));
    });
    criterion.bench_function("inject", |bench| {
        let fresh = || (head.clone(), gateway.session(&head));
        bench.iter_batched(
            fresh,
            |(head, session)| gateway.injected(head, session, &credential),
            BatchSize::SmallInput,
        );
    });
    let packed = fields::pack(["alice@example.com", CLIENT, "files", "mcp:access", ""], Vec::new()).unwrap();
    criterion.bench_function("seal, fields unpacked", |bench| {
        bench.iter(|| fields::unpack::<5>(black_box(&packed)).unwrap());
    });
}

/// A token of another authorization server, whose keys are fetched once.
fn foreign(criterion: &mut Criterion, gateway: &Gateway, runtime: &Runtime) {
    let head = head(&gateway.foreign_token);
    let standing = gateway.authority.standing(&gateway.snapshot);
    let call =
        || authenticate_foreign(&head, &gateway.foreign, &standing, &gateway.foreign_route, gateway.now);
    runtime.block_on(call()).unwrap();
    criterion.bench_function("authn, a JWT known by its digest", |bench| {
        bench.iter(|| at_once(call()).unwrap());
    });
}

fn after_the_upstream(criterion: &mut Criterion, gateway: &Gateway) {
    let head = head(&gateway.token);
    let caller = gateway.caller(&head);
    let permit = permit(&caller, &gateway.route, &head);
    let source = gateway.credential(&permit).source;
    let answer = answer();
    criterion.bench_function("trap", |bench| {
        bench.iter(|| trap::judge(black_box(StatusCode::OK), &answer, &source, false, true));
    });
    criterion.bench_function("respond, isolated", |bench| {
        bench.iter_batched_ref(|| answer.clone(), respond::isolate, BatchSize::SmallInput);
    });
    let called = json!({"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": "x".repeat(200)}]}});
    let tool = |number: usize| json!({"name": format!("tool-{number}"), "inputSchema": {"type": "object"}});
    let tools: Vec<Value> = (0..30).map(tool).collect();
    let listed = json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}});
    for (name, answer) in [("an answer that is none", called), ("a list of 30", listed)] {
        let answer = answer.to_string();
        criterion.bench_function(&format!("lists, {name}, where rules hide some"), |bench| {
            bench.iter(|| list::filter(black_box(&answer), &mut |_, name| name != "tool-7").unwrap());
        });
    }
    criterion.bench_function("metrics", |bench| {
        bench.iter(|| gateway.measured());
    });
}

/// What the stages stand on: a user who is connected, and everything in memory.
struct Gateway {
    now: SystemTime,
    snapshot: Arc<Snapshot>,
    authority: Authority,
    credentials: Credentials,
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
    route: Arc<Route>,
    /// The user's, and the head of their calls with it.
    token: String,
    session: String,
    foreign: Foreign,
    foreign_route: Arc<Route>,
    foreign_token: String,
    request_id: HeaderValue,
    _data: tempfile::TempDir,
}

impl Gateway {
    fn new(runtime: &Runtime) -> Self {
        let data = tempfile::tempdir().unwrap();
        let key = SigningKey::from_pkcs8(&sign::generate().unwrap()).unwrap();
        let issuer = serving(&json!({"keys": [key.public()]}));
        let trusted = [json!({
            "name": "corp", "issuer": issuer, "jwks_uri": format!("{issuer}/keys"), "allow_private": true,
        })];
        let config = configured(&trusted, 10, data.path().to_str().unwrap());
        let Foundation { clock, metrics, records, outbound, connector, .. } =
            Foundation::lay(&config, Purpose::Command, None).unwrap();
        let now = clock.now();
        let routes = Arc::new(Table::new(&config.server.public_url, &config.routes));
        let (route, foreign_route) =
            ["files", "foreign"].map(|name| Arc::clone(routes.by_name(name).unwrap())).into();
        let keys = Arc::new(Keys::new(&[[7; 32]]).unwrap());
        let claims = Claims {
            audience: &route.resource,
            grant: "GrAnTgRaNtGrAnTgRaNtGr",
            subject: USER,
            client: CLIENT,
            scope: "mcp:access files:read",
            expires_at: now + HOUR,
        };
        let token = keys.seal(&claims, now).unwrap();
        let session = ["0123456789abcdef0123456789abcdef", USER, CLIENT, "files", "127.0.0.1:9000", ""];
        let session = keys.wrap(SESSION, &fields::pack(session, Vec::new()).unwrap(), now).unwrap();
        runtime.block_on(records.connect(&connection_key(USER, &route), &tokens(now), HOUR)).unwrap();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "iss": issuer, "sub": "alice", "aud": foreign_route.resource, "client_id": "client",
            "scope": "files:read", "iat": seconds, "exp": seconds + 3600, "jti": "0123456789abcdef",
        });
        let foreign_token = key.sign("at+jwt", &claims).unwrap();
        let snapshot = Snapshot { config: Arc::new(config), routes, keys };
        let gateway = Self {
            now,
            snapshot: Arc::new(snapshot.clone()),
            authority: Authority::new(clock.clone(), records, Arc::clone(&connector), snapshot),
            credentials: Credentials::new(connector, Arc::new(Lines::new(AuditLog::Changes)), Map::default()),
            resolver: Arc::new(Resolver::new(outbound.clone(), clock)),
            metrics,
            route,
            token,
            session,
            foreign: Foreign::new(outbound),
            foreign_route,
            foreign_token,
            request_id: HeaderValue::from_static("0123456789ab-0000000001"),
            _data: data,
        };
        runtime.block_on(gateway.resolver.address(&gateway.route, None, now)).unwrap();
        let head = head(&gateway.token);
        let caller = gateway.caller(&head);
        let permit = permit(&caller, &gateway.route, &head);
        let ask = Ask {
            permit: &permit,
            attributes: &Attributes::default(),
            refused: None,
            request_id: &gateway.request_id,
            keys: &gateway.snapshot.keys,
            now,
        };
        assert!(runtime.block_on(gateway.credentials.resolve(&ask)).unwrap().source.connection().is_some());
        gateway
    }

    fn caller(&self, head: &HeaderMap) -> Caller {
        authenticate(head, &self.authority.standing(&self.snapshot), self.now).unwrap()
    }

    fn session(&self, head: &HeaderMap) -> HeaderValue {
        assert!(!mcp::is_mirrored(head));
        let plain = self.snapshot.keys.unwrap(SESSION, black_box(&self.session)).unwrap();
        let [id, ..] = fields::unpack::<6>(&plain).unwrap();
        HeaderValue::from_str(id).unwrap()
    }

    fn credential(&self, permit: &Permit<'_>) -> Credential {
        let ask = Ask {
            permit,
            attributes: &Attributes::default(),
            refused: None,
            request_id: &self.request_id,
            keys: &self.snapshot.keys,
            now: self.now,
        };
        at_once(self.credentials.resolve(&ask)).unwrap()
    }

    fn address(&self) -> std::net::SocketAddr {
        at_once(self.resolver.address(&self.route, None, self.now)).unwrap()
    }

    fn injected(&self, mut head: HeaderMap, session: HeaderValue, credential: &Credential) -> HeaderMap {
        let client = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 17)));
        let additions = inject::additions(&self.route, client, &self.request_id, credential);
        inject::prepare(&mut head, Some(session), false, additions);
        head
    }

    fn measured(&self) {
        let ended = Ended {
            caller: CallerClass::User,
            status: 200,
            reason: "ok",
            took: Duration::from_millis(1),
            connect: None,
            first_byte: Some(Duration::from_millis(1)),
        };
        self.metrics.requests.count(Some(self.route.series()), &ended);
    }

    /// All of it, for one call.
    fn call(&self, head: HeaderMap, mut answer: HeaderMap) -> (HeaderMap, HeaderMap) {
        let routes = &self.snapshot.routes;
        let authority = routes.authority(HOST).unwrap();
        let path = canonical_path("/files/mcp").unwrap();
        let route = Arc::clone(routes.find(&authority, &path).ok().unwrap().route);
        origin::allowed(&head, &self.snapshot.config.server).unwrap();
        let caller = self.caller(&head);
        let session = self.session(&head);
        let permit = permit(&caller, &route, &head);
        let credential = self.credential(&permit);
        black_box(peer(&route.upstream, self.address(), false));
        let head = self.injected(head, session, &credential);
        black_box(trap::judge(StatusCode::OK, &answer, &credential.source, false, true));
        respond::isolate(&mut answer);
        self.measured();
        (head, answer)
    }
}

/// Of a future that has nothing to wait for.
fn at_once<F: Future>(future: F) -> F::Output {
    future.now_or_never().expect("waits for something")
}

fn configured(trusted: &[Value], more_routes: usize, data: &str) -> Config {
    let upstream = json!({"url": "http://127.0.0.1:9000/mcp", "allow_private": true});
    let route = |name: &str, credential: Value| json!({"name": name, "path": format!("/{name}/mcp"), "upstream": upstream, "credential": credential});
    let oauth = json!({
        "kind": "oauth", "client_id": "bench", "token_endpoint_auth_method": "none",
        "authorization_endpoint": "http://127.0.0.1:9000/authorize", "token_endpoint": "http://127.0.0.1:9000/token",
    });
    let mut routes = vec![route("files", oauth), route("foreign", json!({"kind": "none"}))];
    if !trusted.is_empty() {
        routes[1]["trusted_issuers"] = json!(["corp"]);
    }
    routes.extend((0..more_routes).map(|number| route(&format!("r{number}"), json!({"kind": "none"}))));
    let hash =
        "$argon2id$v=19$m=8,t=1,p=1$YmVuY2htYXJrLW9ubHkhIQ$bve6VApxlB7nemOTMaCrObzW5oaZtGsC+L8UE+Db9iA";
    let written = json!({
        "server": {"public_url": ORIGIN, "listen": [HOST], "data_dir": data},
        "login": {"local": {"users": [{"username": USER, "password_hash": hash}]}},
        "trusted_issuers": trusted,
        "routes": routes,
    });
    config::parse(&written.to_string(), "benchmark", &Process).unwrap_or_else(|report| panic!("{report}"))
}

/// Answers every request on loopback with `document`; its origin.
fn serving(document: &Value) -> String {
    let (listener, body) = (TcpListener::bind("127.0.0.1:0").unwrap(), document.to_string());
    let origin = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
            let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    origin
}

fn tokens(now: SystemTime) -> Tokens {
    Tokens {
        access_token: "u".repeat(48).into(),
        id_token: None,
        refresh_token: Some("r".repeat(48).into()),
        expires_at: Some(now + HOUR),
        obtained_at: now,
        connected_at: Some(now),
        scopes: vec!["files:read".to_owned()],
        requested_scopes: vec!["files:read".to_owned()],
        issuer: "http://127.0.0.1:9000".to_owned(),
        resource: None,
        token_endpoint: "http://127.0.0.1:9000/token".to_owned(),
        revocation_endpoint: None,
        registration: "bench".to_owned(),
        user: USER.to_owned(),
        route: "files".to_owned(),
        account: None,
        rotates: Some(true),
    }
}

/// As a call asks it.
fn question<'q>(caller: &'q Caller, route: &'q Arc<Route>, headers: &'q HeaderMap) -> Question<'q> {
    static NOTHING: LazyLock<Attributes> = LazyLock::new(Attributes::default);
    let (method, source, time) = (&Method::POST, None, SystemTime::UNIX_EPOCH);
    let request = Request { method, path: "/files/mcp", headers, source, time };
    Question { caller, attributes: &NOTHING, route, request, hook: None }
}

fn permit<'q>(caller: &'q Caller, route: &'q Arc<Route>, headers: &'q HeaderMap) -> Permit<'q> {
    policy::permit(&question(caller, route, headers), Asked::Bodiless).0.unwrap()
}

fn head(token: &str) -> HeaderMap {
    let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
    authorization.set_sensitive(true);
    let lines = [
        (header::HOST, HOST),
        (header::USER_AGENT, "client/1.0 (linux; x64)"),
        (header::ACCEPT, "application/json, text/event-stream"),
        (header::ACCEPT_LANGUAGE, "*"),
        (header::ACCEPT_ENCODING, "gzip, deflate"),
        (header::CONTENT_TYPE, "application/json"),
        (header::CONTENT_LENGTH, "280"),
        (mcp::PROTOCOL_VERSION, "2025-11-25"),
        (HeaderName::from_static("sec-fetch-mode"), "cors"),
    ];
    let mut head = map(&lines);
    head.insert(header::AUTHORIZATION, authorization);
    head
}

fn answer() -> HeaderMap {
    map(&[
        (header::SERVER, "uvicorn"),
        (header::DATE, "Fri, 27 Nov 2026 12:00:00 GMT"),
        (header::CONTENT_TYPE, "application/json"),
        (header::CONTENT_LENGTH, "280"),
        (header::CACHE_CONTROL, "no-store"),
        (mcp::SESSION_ID, "0123456789abcdef0123456789abcdef"),
    ])
}

fn map(lines: &[(HeaderName, &'static str)]) -> HeaderMap {
    lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
}

/// A call of 280 bytes.
fn body() -> Vec<u8> {
    let call = |text: &str| {
        let params = json!({"name": "echo", "arguments": {"text": text}, "_meta": {"progressToken": 1}});
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string().into_bytes()
    };
    call(&"m".repeat(280 - call("").len()))
}
