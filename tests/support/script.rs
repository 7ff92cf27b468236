//! What a scripted upstream does. Tests change it at run time; every field has a well-behaved default.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde_json::{Value, json};

use super::body::{Fed, Feed};
use super::gate::Gate;

/// The MCP server's part.
#[derive(Clone)]
pub struct McpScript {
    /// Path of the MCP endpoint.
    pub path: String,
    /// Without: every call is served, whatever token it carries.
    pub requires_auth: bool,
    /// What a call must hold; else 403 `insufficient_scope` naming it.
    pub required_scope: Option<String>,
    /// The same for single tools, by tool name.
    pub tool_scopes: HashMap<String, String>,
    /// Tokens of this generation and older are refused with 401 (the first token of a family is 1).
    pub refused_generation: u32,
    /// Tokens accepted although the authorization server never issued them.
    pub extra_tokens: Vec<String>,
    pub challenge: Challenge,
    /// Replaces the 401 to calls without a good token.
    pub unauthorized: Option<Answer>,
    pub resource_metadata: ResourceMetadata,
    /// Hands out `Mcp-Session-Id` on `initialize` and insists on it afterwards.
    pub sessions: bool,
    /// Answers to the next calls that are let in, first in, first out; then `answer`.
    pub answers: VecDeque<Answer>,
    pub answer: Answer,
    /// Calls that were let in wait here.
    pub gate: Option<Gate>,
}

impl Default for McpScript {
    fn default() -> Self {
        McpScript {
            path: "/mcp".into(),
            requires_auth: true,
            required_scope: None,
            tool_scopes: HashMap::new(),
            refused_generation: 0,
            extra_tokens: Vec::new(),
            challenge: Challenge::default(),
            unauthorized: None,
            resource_metadata: ResourceMetadata::default(),
            sessions: false,
            answers: VecDeque::new(),
            answer: Answer::Mcp,
            gate: None,
        }
    }
}

/// How the 401 and 403 of the MCP server are worded.
#[derive(Clone)]
pub struct Challenge {
    /// Names the resource metadata.
    pub with_metadata: bool,
    /// Named instead of the true address of the metadata.
    pub metadata_url: Option<String>,
    pub scope: Option<String>,
    /// The whole header value instead; an empty text leaves the header out.
    pub verbatim: Option<String>,
}

impl Default for Challenge {
    fn default() -> Self {
        Challenge { with_metadata: true, metadata_url: None, scope: None, verbatim: None }
    }
}

/// RFC 9728 document of the MCP server.
#[derive(Clone, Default)]
pub struct ResourceMetadata {
    pub location: MetadataLocation,
    /// Instead of the true URL of the MCP endpoint.
    pub resource: Option<String>,
    /// Instead of the true issuer.
    pub authorization_servers: Option<Vec<String>>,
    pub scopes_supported: Option<Vec<String>>,
    /// Members set on top; `null` removes one.
    pub patch: Value,
}

#[derive(Clone, Default, PartialEq)]
pub enum MetadataLocation {
    /// `/.well-known/oauth-protected-resource/mcp`
    #[default]
    PathInserted,
    /// `/.well-known/oauth-protected-resource`
    Root,
    /// Any other path, only to be found through the challenge.
    At(String),
    Nowhere,
}

/// What the MCP server answers to a call that was let in.
#[derive(Clone)]
pub enum Answer {
    /// As an MCP server does; the tools `echo` and `whoami` tell what has arrived.
    Mcp,
    Http {
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// 401 with the scripted challenge and `error="invalid_token"`.
    InvalidToken,
    /// 403 `insufficient_scope` naming this scope.
    InsufficientScope(String),
    /// SSE, fed by the test.
    Stream(Fed),
    /// As that, but JSON.
    Json(Fed),
    /// SSE with these events at once, then the end.
    Events(Vec<String>),
    /// SSE without end, as fast as it is read; counts the bytes.
    Endless(Arc<AtomicU64>),
    /// Half of a JSON answer, then a broken connection.
    Half,
    /// Closes the connection without a byte.
    Hangup,
}

impl Answer {
    /// An answer with a status, headers and a body of any kind.
    pub fn http(status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Answer::Http { status, headers, body: body.into() }
    }

    /// A JSON answer of unknown length and the feed that paces it.
    pub fn json_in_pieces() -> (Feed, Self) {
        let (feed, fed) = Fed::pair();
        (feed, Answer::Json(fed))
    }

    /// An SSE answer and the feed that paces it.
    pub fn stream() -> (Feed, Self) {
        let (feed, fed) = Fed::pair();
        (feed, Answer::Stream(fed))
    }
}

/// The authorization server's part.
#[derive(Clone)]
pub struct AuthorizationScript {
    /// Path of the issuer, such as `/tenant1`; empty for the origin itself.
    pub issuer_path: String,
    /// Named in metadata, codes and `iss` instead of the true issuer.
    pub issuer: Option<String>,
    pub metadata: ServerMetadata,
    /// Names of `code_challenge_methods_supported`; `None` leaves the member out.
    pub code_challenge_methods: Option<Vec<String>>,
    /// Dynamic client registration; `None`: there is no such endpoint.
    pub registration: Option<RegistrationScript>,
    /// Accepts client ID metadata documents as client ids (and fetches them).
    pub cimd: bool,
    /// Authorities whose certificates those documents may come with.
    pub roots: Vec<reqwest::Certificate>,
    /// Announces `authorization_response_iss_parameter_supported`.
    pub iss_announced: bool,
    pub iss: IssParameter,
    /// Members of the metadata set on top; `null` removes one.
    pub metadata_patch: Value,
    pub consent: Consent,
    /// Who consents at the upstream.
    pub user: String,
    /// Scopes granted instead of those asked for.
    pub granted_scopes: Option<String>,
    pub access_token_lifetime: Duration,
    /// Whether answers carry `expires_in`.
    pub announces_lifetime: bool,
    pub issues_refresh_tokens: bool,
    /// New refresh token with each use.
    pub rotates: bool,
    /// What an old refresh token gets that is used again.
    pub reuse: Reuse,
    /// Faults of the next token requests, first in, first out.
    pub token_faults: VecDeque<TokenFault>,
    /// A fault of every token request after those.
    pub token_fault: Option<TokenFault>,
    /// Token requests wait here before anything is consumed.
    pub token_gate: Option<Gate>,
    /// Token requests wait here when everything is consumed and the answer is ready.
    pub token_answer_gate: Option<Gate>,
    /// Registrations wait here.
    pub registration_gate: Option<Gate>,
    /// Requests for metadata wait here.
    pub metadata_gate: Option<Gate>,
}

impl Default for AuthorizationScript {
    fn default() -> Self {
        AuthorizationScript {
            issuer_path: String::new(),
            issuer: None,
            metadata: ServerMetadata::Rfc8414,
            code_challenge_methods: Some(vec!["S256".into()]),
            registration: Some(RegistrationScript::default()),
            cimd: false,
            roots: Vec::new(),
            iss_announced: true,
            iss: IssParameter::Correct,
            metadata_patch: json!({}),
            consent: Consent::Approve,
            user: "upstream-user".into(),
            granted_scopes: None,
            access_token_lifetime: Duration::from_secs(3600),
            announces_lifetime: true,
            issues_refresh_tokens: true,
            rotates: true,
            reuse: Reuse::EndsFamily,
            token_faults: VecDeque::new(),
            token_fault: None,
            token_gate: None,
            token_answer_gate: None,
            registration_gate: None,
            metadata_gate: None,
        }
    }
}

/// Where the metadata document lies (for an issuer with a path the three differ).
#[derive(Clone, Copy, PartialEq)]
pub enum ServerMetadata {
    Rfc8414,
    OidcInserted,
    OidcAppended,
    /// None at all: only the default endpoints of MCP 2025-03-26 are there.
    Nowhere,
}

/// How dynamic registration answers.
#[derive(Clone, Default)]
pub struct RegistrationScript {
    /// Authentication method given to every client; `None`: the one it asked for.
    pub method: Option<String>,
    /// An error answer instead: status and JSON body.
    pub refusal: Option<(u16, Value)>,
    /// Clients can delete their registration (RFC 7592).
    pub managed: bool,
}

/// The `iss` parameter of authorization responses (RFC 9207).
#[derive(Clone)]
pub enum IssParameter {
    Correct,
    Absent,
    Wrong(String),
}

/// What a spent refresh token gets; the behaviours are found among real servers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reuse {
    /// It is dead, and the others live on.
    Dead,
    /// Taken for theft: the whole family dies.
    EndsFamily,
    /// The one used last gets the same answer again.
    SameAnswer,
    /// The one used last gets another successor, which kills the one before.
    NewSuccessor,
}

/// What happens at the authorization endpoint.
#[derive(Clone)]
pub enum Consent {
    /// Straight back with a code, as an authorization server does that remembers the user's consent.
    Approve,
    /// Back with this error.
    Deny(String),
    /// A page with the buttons Allow and Deny.
    Page,
}

/// A token endpoint that misbehaves.
#[derive(Clone)]
pub enum TokenFault {
    /// Answers this; nothing is consumed.
    Answer { status: u16, headers: Vec<(String, String)>, body: String },
    /// Closes the connection; nothing is consumed.
    Hangup,
    /// Does its work, then closes the connection without a byte.
    LoseAnswer,
    /// Does its work, then sends half of the answer and breaks off.
    HalfAnswer,
}

impl TokenFault {
    pub fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        TokenFault::Answer { status, headers, body: body.into() }
    }

    /// An RFC 6749 §5.2 error with status 400.
    pub fn error(code: &str) -> Self {
        let json = [("content-type", "application/json")];
        Self::answer(400, &json, &json!({"error": code}).to_string())
    }
}

/// Sets the members of `patch` in `document`; `null` removes.
pub fn apply(document: &mut Value, patch: &Value) {
    let (Some(document), Some(patch)) = (document.as_object_mut(), patch.as_object()) else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            document.remove(name);
        } else {
            document.insert(name.clone(), value.clone());
        }
    }
}
