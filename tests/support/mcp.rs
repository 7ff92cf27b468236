//! MCP calls with raw control over headers and body, and a reader for event streams.

use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::within;

/// A call being put together. Defaults are those of a client for MCP 2025-11-25.
#[derive(Clone)]
pub struct McpRequest {
    http: reqwest::Client,
    url: String,
    headers: Vec<(String, String)>,
}

impl McpRequest {
    pub fn to(http: &reqwest::Client, url: &str) -> Self {
        McpRequest { http: http.clone(), url: url.into(), headers: Vec::new() }
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2025-11-25")
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// Sets a header; replaces what had this name.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.without_header(name).and_header(name, value)
    }

    /// Adds one more header of this name.
    pub fn and_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_lowercase(), value.into()));
        self
    }

    pub fn without_header(mut self, name: &str) -> Self {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self
    }

    /// Goes out by another client, with connections of its own.
    pub fn through(&mut self, http: &reqwest::Client) {
        self.http = http.clone();
    }

    /// Calls a JSON-RPC method.
    pub async fn call(&self, method: &str, params: Value) -> McpAnswer {
        self.post(&json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()).await
    }

    /// Calls a tool.
    pub async fn tool(&self, name: &str, arguments: Value) -> McpAnswer {
        self.call("tools/call", json!({"name": name, "arguments": arguments})).await
    }

    /// Sends this body as it is.
    pub async fn post(&self, body: &str) -> McpAnswer {
        McpAnswer::of(self.send("POST", Some(body)).await).await
    }

    pub async fn get(&self) -> McpAnswer {
        McpAnswer::of(self.send("GET", None).await).await
    }

    pub async fn delete(&self) -> McpAnswer {
        McpAnswer::of(self.send("DELETE", None).await).await
    }

    pub async fn options(&self) -> McpAnswer {
        McpAnswer::of(self.send("OPTIONS", None).await).await
    }

    /// GET, read event by event.
    pub async fn events(&self) -> EventReader {
        EventReader::of(self.send("GET", None).await)
    }

    /// POST, read event by event.
    pub async fn post_events(&self, body: &str) -> EventReader {
        EventReader::of(self.send("POST", Some(body)).await)
    }

    /// Sends and returns as soon as the head of the answer is there.
    pub async fn send(&self, method: &str, body: Option<&str>) -> reqwest::Response {
        match self.try_send(method, body).await {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {}: {error:?}", self.url),
        }
    }

    pub async fn try_send(&self, method: &str, body: Option<&str>) -> reqwest::Result<reqwest::Response> {
        let mut request = self.http.request(method.parse().expect("method"), &self.url);
        if method == "GET" {
            // A stream lives for as long as it likes.
            request = request.timeout(Duration::MAX);
        }
        if let Some(body) = body {
            let typed = self.headers.iter().any(|(name, _)| name == "content-type");
            request = if typed { request } else { request.header("content-type", "application/json") };
            request = request.body(body.to_owned());
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.send().await
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct McpAnswer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl McpAnswer {
    pub async fn of(answer: reqwest::Response) -> Self {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        McpAnswer { status, headers, body: answer.text().await.expect("body") }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The JSON-RPC result; panics with the answer when there is none.
    #[track_caller]
    pub fn result(&self) -> Value {
        let result = self.json()["result"].take();
        assert!(self.status == 200 && !result.is_null(), "{} {:?} {}", self.status, self.headers, self.body);
        result
    }

    /// The text a tool has answered.
    #[track_caller]
    pub fn tool_text(&self) -> String {
        self.result()["content"][0]["text"].as_str().expect("text content").to_owned()
    }

    /// A parameter of the one Bearer challenge; panics when there is not exactly one.
    #[track_caller]
    pub fn challenge(&self, parameter: &str) -> Option<String> {
        let values: Vec<_> = self.headers.get_all("www-authenticate").iter().collect();
        assert_eq!(values.len(), 1, "{} {:?}", self.status, self.headers);
        let challenges = http_auth::parse_challenges(values[0].to_str().expect("text")).expect("challenge");
        assert_eq!(challenges.len(), 1, "{values:?}");
        assert!(challenges[0].scheme.eq_ignore_ascii_case("bearer"), "{values:?}");
        let found = challenges[0].params.iter().find(|(name, _)| name.eq_ignore_ascii_case(parameter));
        found.map(|(_, value)| value.to_unescaped())
    }
}

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    pub event: Option<String>,
    pub id: Option<String>,
    pub data: String,
}

/// Yields events as they arrive.
pub struct EventReader {
    pub status: u16,
    pub headers: HeaderMap,
    answer: reqwest::Response,
    buffer: Vec<u8>,
}

impl EventReader {
    pub fn of(answer: reqwest::Response) -> Self {
        EventReader {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            answer,
            buffer: Vec::new(),
        }
    }

    /// The next event; `None` at the end of the stream, whether it ended well or broke off.
    #[track_caller]
    pub fn next(&mut self, deadline: Duration) -> impl Future<Output = Option<Event>> + '_ {
        within(deadline, async move {
            loop {
                if let Some(event) = self.buffered() {
                    return Some(event);
                }
                match self.answer.chunk().await {
                    Ok(Some(bytes)) => self.buffer.extend_from_slice(&bytes),
                    Ok(None) | Err(_) => return None,
                }
            }
        })
    }

    /// Takes one complete event from the buffer; comments alone are none.
    fn buffered(&mut self) -> Option<Event> {
        loop {
            let text = String::from_utf8_lossy(&self.buffer).into_owned();
            let end = text.find("\n\n")?;
            self.buffer.drain(..end + 2);
            let mut event = Event::default();
            let mut data = Vec::new();
            for line in text[..end].lines() {
                match line.split_once(':').map(|(name, value)| (name, value.trim_start())) {
                    Some(("event", value)) => event.event = Some(value.into()),
                    Some(("id", value)) => event.id = Some(value.into()),
                    Some(("data", value)) => data.push(value.to_owned()),
                    _ => {}
                }
            }
            event.data = data.join("\n");
            if event != Event::default() {
                return Some(event);
            }
        }
    }
}
