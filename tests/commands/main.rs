//! The program in its operator's hands: its command line, its start and its end, and the guide.
//!
//! Runs once: it is about files, or chooses its store.

#[path = "../support/mod.rs"]
mod support;

mod convert;
mod doctor;
mod examples;
mod kept;
mod operations;
mod shutdown;
mod startup;
mod systemd;
