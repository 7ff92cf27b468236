//! What the peers share.
pub mod forward;
pub mod listening;
pub mod pingora_on;
