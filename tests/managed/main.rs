//! What is made at run time, by the management API and on the command line, and what was found wanting at peers of Postern that
//! work this way.
//!
//! Runs on both stores.

#[path = "../support/mod.rs"]
mod support;

mod broker_15;
mod broker_25;
mod broker_25_oauth;
mod broker_35;
mod managed_cli;
mod management;
