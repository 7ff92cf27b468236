//! Calls on their way through: what callers may do and how often, what they are shown, what belongs to a session or a stream, and
//! what hostile input gets.
//!
//! Runs on both stores.

#[path = "../support/mod.rs"]
mod support;

mod corpora;
mod joined;
mod limits;
mod lists;
mod policy;
mod session;
mod silence;
mod streams;
