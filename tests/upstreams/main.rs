//! The way to upstreams: who we are at their authorization servers, how users are connected and stay so, and which token, key
//! or signature a call goes on with.
//!
//! Runs on both stores.

#[path = "../support/mod.rs"]
mod support;

mod aws;
mod connect;
mod connections;
mod elicitation;
mod exchange;
mod http2;
mod inject;
mod insistence;
mod legs;
mod pomerium;
mod postern_token;
mod refresh;
mod shared;
mod tool_scopes;
mod upstream_clients;
mod user_keys;
