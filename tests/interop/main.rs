//! What nobody here wrote, driven by the scripts beside: clients, upstreams, the official conformance suite, a browser.
//!
//! Runs once: the scripts choose their store.

#[path = "../support/mod.rs"]
mod support;

mod interop;
mod pages;
