//! Several instances on one Redis, and stores that are away.
//!
//! Runs once: it chooses its store.

#[path = "../support/mod.rs"]
mod support;

mod broker_redis;
mod cluster;
mod managed_cluster;
mod server_outage;
mod versions;
