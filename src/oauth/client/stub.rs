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

use super::discover::AuthorizationServer;
use crate::outbound::{AddressPolicy, Outbound, Settings};

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
                let Answer(response) = answer(&seen, &origin);
                record.lock().unwrap().push(seen);
                response.map(Body::from)
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
    }
}
