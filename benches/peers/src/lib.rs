//! What the peers share.
pub mod listening;
pub mod pingora_on;
