//! In a load balancer's place: pools, names, TLS, slow and hostile connections, routes that lead to no MCP server, reload, upgrade,
//! and what operators see of it.
//!
//! Runs on both stores.

#[path = "../support/mod.rs"]
mod support;

mod balancers;
mod bytes;
mod doors;
mod floods;
mod handshake;
mod kinds;
mod limits;
mod monitoring;
mod names;
mod pools;
mod reload;
mod sinks;
mod traces;
mod upgrade;
