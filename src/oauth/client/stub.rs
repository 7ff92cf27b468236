//! A scripted HTTP server on loopback for the tests of the client steps. It answers what the test says and remembers
//! what it was asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use bytes::Bytes;
use http::HeaderMap;

use super::Connector;
use super::discover::AuthorizationServer;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::outbound::{AddressPolicy, Outbound, Settings};
use crate::route::{Route, Table};
use crate::seal::{Sealer, SealingKey};
use crate::store::embedded::Embedded;
use crate::store::record::Records;
use crate::telemetry::{InFlight, Metrics};

/// One request as the server met it.
#[derive(Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The decoded form, in its order.
    pub fn form(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(&self.body).into_owned().collect()
    }
}

pub struct Answer(http::Response<String>);

impl Answer {
    pub fn status(status: u16) -> Self {
        Answer(http::Response::builder().status(status).body(String::new()).unwrap())
    }

    pub fn json(status: u16, body: impl ToString) -> Self {
        Self::status(status).header("content-type", "application/json").body(body)
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.0.headers_mut().append(name, value.parse().unwrap());
        self
    }

    pub fn body(mut self, body: impl ToString) -> Self {
        *self.0.body_mut() = body.to_string();
        self
    }
}

pub struct Stub {
    base: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Stub {
    /// `answer` gets the request and the server's own origin.
    pub async fn start(answer: impl Fn(&Seen, &str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, origin, record) = (Arc::new(answer), base.clone(), seen.clone());
        let router = Router::new().fallback(move |request: Request| {
            let (answer, origin, record) = (answer.clone(), origin.clone(), record.clone());
            async move {
                let (head, body) = request.into_parts();
                let seen = Seen {
                    method: head.method.to_string(),
                    path: head.uri.to_string(),
                    headers: head.headers,
                    body: to_bytes(body, 1 << 20).await.unwrap(),
                };
                // A script may wait for another request, which must not wait for this thread.
                let answered = tokio::task::spawn_blocking(move || {
                    let Answer(response) = answer(&seen, &origin);
                    record.lock().unwrap().push(seen);
                    response
                });
                answered.await.unwrap().map(Body::from)
            }
        });
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Stub { base, seen, serving }
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn paths(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.path).collect()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A store, for any number of instances on it.
pub struct Bench {
    pub records: Records,
    pub clock: Clock,
    config: Config,
    _directory: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{"server": {"public_url": "http://127.0.0.1:8080", "listen": ["127.0.0.1:8080"]},
            "login": {"local": {"users": [{"username": "alice", "password_hash": "HASH"}]}},
            "routes": [{"name": "demo", "path": "/demo", "credential": {"kind": "oauth"},
                "upstream": {"url": "http://127.0.0.1:1/mcp", "allow_private": true}}]}"#;
        let hash = "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8";
        let config = config::parse(&text.replace("HASH", hash), "test", &config::Process);
        let config = config.unwrap_or_else(|report| panic!("{report}"));
        let clock = Clock::manual(at(1_800_000_000));
        let store = Embedded::open(directory.path(), clock.clone()).unwrap();
        let sealer = Sealer::new(vec![SealingKey::new("k", [7; 32]).unwrap()]).unwrap();
        let records = Records::new(Arc::new(store), Arc::new(sealer));
        Bench { records, clock, config, _directory: directory }
    }

    /// One more instance.
    pub fn connector(&self) -> Connector {
        Connector::new(
            self.clock.clone(),
            self.records.clone(),
            outbound(),
            &self.config,
            Arc::new(Metrics::new().unwrap()),
            InFlight::default(),
        )
    }

    pub fn route(&self) -> Arc<Route> {
        Arc::clone(self.table().by_name("demo").unwrap())
    }

    pub fn table(&self) -> Table {
        Table::new(&self.config.server.public_url, &self.config.routes)
    }

    /// Its one route leads there.
    pub fn lead_to(mut self, url: &str) -> Self {
        let upstream = &mut self.config.routes[0].upstream;
        (upstream.url, upstream.url_as_written) = (url.parse().unwrap(), url.to_owned());
        self
    }

    /// There is no route at all.
    pub fn without_routes(&self) -> Table {
        Table::new(&self.config.server.public_url, &[])
    }
}

/// A port on which nobody listens as long as this lives.
pub fn nobody() -> tokio::net::TcpSocket {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    socket
}

pub fn outbound() -> Outbound {
    Outbound::new(Settings::default()).unwrap()
}

/// Allows the address the stubs listen on.
pub fn local() -> AddressPolicy {
    AddressPolicy::allowing(["127.0.0.1".to_string()])
}

pub fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// An authorization server with its endpoints on the stub.
pub fn server(stub: &Stub) -> AuthorizationServer {
    server_at(stub.base())
}

pub fn server_at(base: &str) -> AuthorizationServer {
    AuthorizationServer {
        issuer: base.to_string(),
        authorization_endpoint: format!("{base}/authorize"),
        token_endpoint: format!("{base}/token"),
        registration_endpoint: Some(format!("{base}/register")),
        revocation_endpoint: None,
        auth_methods: vec!["none".to_string()],
        cimd: false,
        iss_parameter: false,
        scopes_supported: Vec::new(),
        is_published: true,
    }
}
