//! What is measured: memory, files, allocations, bytes, time. Nothing runs beside it; neither does one of these beside another.
//!
//! Runs once: it measures, or chooses its store.

#[path = "../support/mod.rs"]
mod support;

mod bounds;
mod counted;
mod restart;
mod soak;

/// Held by each test for as long as it takes.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
