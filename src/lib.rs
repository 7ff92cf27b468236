//! Postern: an MCP gateway on Pingora.
//!
//! MCP clients sign in here once; each user's own token is carried to every MCP server behind. The floor plan, top
//! down; a module may use what stands below it, and `tests/architecture.rs` keeps it that way:
//!
//! ```text
//! main        arguments → exit code
//! cli         run, validate, reload, upgrade, schema, demo, doctor, policy, keys, store, connections, users,
//!             hash-password; and, by HTTP at a running Postern, org, member, config, assign, route, token, events
//! server      sockets, TLS, services, signals                          ┐
//! gateway     the hooks of the proxy · background  events and sweeps   │ Pingora lives here
//! upstream    name → vetted address → peer                             ┘ and nowhere else
//! web         our endpoints and pages as an axum router · api  what they and the commands do about connections
//!
//!             route ─► origin ─► authn ─► policy ─► credential ─► inject ─► upstream ─► trap ─► respond
//!             Route              Caller   Permit    Credential    headers   answer      Verdict Reply
//!
//! oauth       server  we are the authorization server · client  we are the client
//! managed     organisations, what they have added, and who may use it: records → routes
//! route       host and path → Route · mcp  what the protocol's headers and messages say · challenge  WWW-Authenticate
//! demo        an MCP server with an authorization server of its own, for cli alone
//! store       records, one trait · outbound  the only HTTP client · jose  tokens that others signed · seal · telemetry ·
//!             config · expression  conditions in CEL · clock · failpoint · map  hash maps that every request asks
//! ```
//!
//! The client's token never goes upstream, the upstream's never comes down.
pub mod api;
pub mod authn;
pub mod background;
pub mod challenge;
pub mod cli;
pub mod clock;
pub mod config;
pub mod credential;
pub mod demo;
pub mod expression;
pub mod failpoint;
pub mod gateway;
pub mod inject;
pub mod jose;
pub mod managed;
pub mod map;
pub mod mcp;
pub mod oauth;
pub mod origin;
pub mod outbound;
pub mod policy;
pub mod respond;
pub mod route;
pub mod seal;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod trap;
pub mod upstream;
pub mod web;
