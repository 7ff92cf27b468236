//! A web site that publishes client ID metadata documents, and counts who reads them.
//! Plain http on loopback: the gateway under test needs `oauth_server.clients.cimd.allow_private`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::answers::http_answer;
use super::client::{Client, unused_redirect_uri};
use super::gate::{Gate, pass};
use super::gateway::Gateway;
use super::lock;
use super::received::Requests;
use super::server::Server;

/// What lies at one path.
#[derive(Clone)]
struct Published {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

/// Ends when it is dropped.
pub struct ClientDocuments {
    /// `http://127.0.0.1:port`, no slash at the end.
    pub origin: String,
    pub requests: Requests,
    pub server: Server,
    published: Arc<Mutex<HashMap<String, Published>>>,
    gate: Arc<Mutex<Option<Gate>>>,
}

impl ClientDocuments {
    pub async fn start() -> Self {
        let published: Arc<Mutex<HashMap<String, Published>>> = Arc::default();
        let gate: Arc<Mutex<Option<Gate>>> = Arc::default();
        let requests = Requests::default();
        let (list, held, seen) = (published.clone(), gate.clone(), requests.clone());
        let server = Server::start(move |request, _| {
            seen.add(request.clone());
            let (found, held) = (lock(&list).get(&request.path).cloned(), lock(&held).clone());
            async move {
                pass(&held).await;
                match found {
                    Some(found) => http_answer(found.status, &found.headers, &found.body),
                    None => StatusCode::NOT_FOUND.into_response(),
                }
            }
        })
        .await;
        ClientDocuments { origin: format!("http://{}", server.address), requests, server, published, gate }
    }

    /// Publishes a good document at `path`; returns its URL, which is the client's id.
    pub fn publish(&self, path: &str, redirect_uri: &str) -> String {
        let id = format!("{}{path}", self.origin);
        let document = json!({
            "client_id": id,
            "client_name": "Rig document client",
            "redirect_uris": [redirect_uri],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
        });
        self.publish_document(path, &document)
    }

    /// Publishes any JSON document at `path`; returns its URL.
    pub fn publish_document(&self, path: &str, document: &Value) -> String {
        self.publish_answer(path, 200, &[("content-type", "application/json")], &document.to_string())
    }

    /// Answers at `path` whatever the test likes; returns its URL.
    pub fn publish_answer(&self, path: &str, status: u16, headers: &[(&str, &str)], body: &str) -> String {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        lock(&self.published).insert(path.into(), Published { status, headers, body: body.into() });
        format!("{}{path}", self.origin)
    }

    /// A client of the gateway that is known by a document published here.
    pub fn client(&self, gateway: &Gateway) -> Client {
        let redirect_uri = unused_redirect_uri();
        let id = self.publish("/client.json", &redirect_uri);
        Client::known_as(gateway, &id, &redirect_uri)
    }

    /// Requests wait at this gate from now on.
    pub fn hold(&self, gate: &Gate) {
        *lock(&self.gate) = Some(gate.clone());
    }

    /// How often the document at `path` was read.
    pub fn reads(&self, path: &str) -> usize {
        self.requests.count(path)
    }
}
