//! The authorization server that we are to clients: how they become known, how people sign in and say yes, what tokens are
//! good for, and what attacks on it get.
//!
//! Runs on both stores.

#[path = "../support/mod.rs"]
mod support;

mod account;
mod authorize;
mod clients;
mod foreign;
mod id_jag;
mod identity;
mod register;
mod server_answers;
mod threats;
mod token;
