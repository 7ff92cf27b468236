//! A scripted upstream: an MCP server and its authorization server, on one port or on two.

use std::sync::{Arc, Mutex};

use super::authorization_server::AuthorizationServer;
use super::lock;
use super::mcp_server::McpServer;
use super::received::{Received, Requests};
use super::script::{Answer, AuthorizationScript, McpScript};
use super::server::Server;

/// Ends when it is dropped.
pub struct Upstream {
    /// `http://127.0.0.1:port`, no slash at the end.
    pub origin: String,
    /// What the MCP endpoint and the resource metadata received. The authorization server has its own list.
    pub requests: Requests,
    pub authorization: AuthorizationServer,
    pub server: Server,
    mcp: McpServer,
}

impl Upstream {
    /// An MCP server whose authorization server has the same origin.
    pub async fn start() -> Self {
        Self::launch(None).await
    }

    /// An MCP server that relies on an authorization server somewhere else.
    pub async fn relying_on(authorization: &AuthorizationServer) -> Self {
        Self::launch(Some(authorization.clone())).await
    }

    /// An MCP server that asks for no token.
    pub async fn open() -> Self {
        let upstream = Self::start().await;
        upstream.set(|script| script.requires_auth = false);
        upstream
    }

    async fn launch(elsewhere: Option<AuthorizationServer>) -> Self {
        let embedded = elsewhere.is_none();
        let mcp = McpServer {
            origin: String::new(),
            requests: Requests::default(),
            script: Arc::default(),
            authorization: elsewhere.unwrap_or_else(AuthorizationServer::without_port),
            sessions: Arc::default(),
        };
        // The origin is known once the port is; no request comes before.
        let shared = Arc::new(Mutex::new(mcp));
        let handler = shared.clone();
        let server = Server::start(move |request, connection| {
            let mcp = lock(&handler).clone();
            async move {
                if embedded && !mcp.owns(&request) {
                    mcp.authorization.answer(request, connection).await
                } else {
                    mcp.answer(request, connection).await
                }
            }
        })
        .await;
        let origin = format!("http://{}", server.address);
        let mcp = {
            let mut mcp = lock(&shared);
            mcp.origin = origin.clone();
            if embedded {
                mcp.authorization.origin = origin.clone();
            }
            mcp.clone()
        };
        Upstream {
            origin,
            requests: mcp.requests.clone(),
            authorization: mcp.authorization.clone(),
            server,
            mcp,
        }
    }

    /// URL of the MCP endpoint.
    pub fn url(&self) -> String {
        self.mcp.url()
    }

    /// Changes the MCP server's script.
    pub fn set(&self, change: impl FnOnce(&mut McpScript)) {
        change(&mut lock(&self.mcp.script));
    }

    /// Changes the authorization server's script.
    pub fn set_authorization(&self, change: impl FnOnce(&mut AuthorizationScript)) {
        self.authorization.set(change);
    }

    /// The next call that is let in gets this answer.
    pub fn answer_next(&self, answer: Answer) {
        self.set(|script| script.answers.push_back(answer));
    }

    /// Refuses every token issued so far, though its time is not over.
    pub fn refuse_current_tokens(&self) {
        let newest = self.authorization.ledger(|ledger| {
            ledger.families.iter().map(|family| family.generation).max().unwrap_or_default()
        });
        self.set(|script| script.refused_generation = newest);
    }

    /// Requests to the MCP endpoint.
    pub fn calls(&self) -> Vec<Received> {
        let path = lock(&self.mcp.script).path.clone();
        self.requests.to(&path)
    }

    /// Takes these tokens, whoever gave them, and no others of that kind.
    pub fn take(&self, tokens: &[String]) {
        self.set(|script| script.extra_tokens = tokens.to_vec());
    }

    /// The tokens that it was shown, each once, in their order.
    pub fn shown(&self) -> Vec<String> {
        let mut tokens = Vec::new();
        for token in self.requests.all().iter().filter_map(Received::bearer) {
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        tokens
    }

    /// Whatever happened, what clients hold stays on their side.
    #[track_caller]
    pub fn assert_never_saw(&self, held: &[&str]) {
        for token in held {
            assert!(
                !token.is_empty() && !self.requests.mention(token),
                "a client's token has come to the upstream"
            );
        }
    }

    /// Those that carried a bearer token; probes carry none.
    pub fn calls_with_token(&self) -> Vec<Received> {
        self.calls().into_iter().filter(|call| call.bearer().is_some()).collect()
    }
}
