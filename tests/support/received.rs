//! What a scripted server has received, kept for the assertions.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderMap, Method};

use super::{eventually, lock};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: Method,
    /// Path as sent, not decoded.
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Number of the TCP connection it came on.
    pub connection: u64,
    pub at: Instant,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    /// The token of `Authorization: Bearer …`.
    pub fn bearer(&self) -> Option<String> {
        let value = self.header("authorization")?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// First value of a form field of the body.
    pub fn form(&self, name: &str) -> Option<String> {
        self.form_values(name).into_iter().next()
    }

    pub fn form_values(&self, name: &str) -> Vec<String> {
        values(&self.body, name)
    }

    /// First value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<String> {
        values(self.query.as_deref().unwrap_or_default().as_bytes(), name).into_iter().next()
    }

    /// Path and query as they stood in the request line.
    pub fn target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }

    /// Everything in one text, to search for a string that must or must not be there.
    pub fn everything(&self) -> String {
        let mut all = format!("{} {}\n", self.method, self.target());
        for (name, value) in &self.headers {
            all.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        }
        all + "\n" + &self.text()
    }
}

fn values(encoded: &[u8], name: &str) -> Vec<String> {
    form_urlencoded::parse(encoded)
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
        .collect()
}

/// All requests of one party, oldest first. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<Mutex<Vec<Received>>>);

impl Requests {
    pub fn add(&self, request: Received) {
        lock(&self.0).push(request);
    }

    pub fn all(&self) -> Vec<Received> {
        lock(&self.0).clone()
    }

    pub fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Those to exactly this path.
    pub fn to(&self, path: &str) -> Vec<Received> {
        self.matching(|request| request.path == path)
    }

    pub fn matching(&self, wanted: impl Fn(&Received) -> bool) -> Vec<Received> {
        lock(&self.0).iter().filter(|request| wanted(request)).cloned().collect()
    }

    pub fn count(&self, path: &str) -> usize {
        self.to(path).len()
    }

    /// The newest to this path; panics when there is none.
    #[track_caller]
    pub fn last_to(&self, path: &str) -> Received {
        match self.to(path).pop() {
            Some(request) => request,
            None => panic!("no request to {path}; there were {:?}", self.paths()),
        }
    }

    /// Method and target of each, for orders and messages.
    pub fn paths(&self) -> Vec<String> {
        lock(&self.0).iter().map(|request| format!("{} {}", request.method, request.target())).collect()
    }

    /// Whether any of them carries this text anywhere.
    pub fn mention(&self, text: &str) -> bool {
        lock(&self.0).iter().any(|request| request.everything().contains(text))
    }

    /// Returns when at least `count` requests have come to `path`.
    #[track_caller]
    pub fn wait_for(&self, path: &str, count: usize, deadline: Duration) -> impl Future<Output = ()> {
        let (requests, path) = (self.clone(), path.to_owned());
        eventually(deadline, move || {
            let enough = requests.count(&path) >= count;
            async move { enough }
        })
    }
}
