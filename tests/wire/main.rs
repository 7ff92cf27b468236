//! What needs no store, or has it behind everything else: what passes the proxy and what is challenged, which addresses are asked,
//! what is seen from outside; and the rig itself.
//!
//! Runs once: it is the same on every store.

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod discover;
mod http2;
mod hygiene;
mod jwt;
mod observe;
mod proxy;
mod resource;
mod rig;
mod ssrf;
