//! The management API behind the pages, the JSON endpoints and the command line: what a user has here and what can be
//! done about it, as plain values. Whoever calls prints them in a way of their own.
pub mod connections;
pub mod managed;
pub mod return_address;
pub mod trail;
