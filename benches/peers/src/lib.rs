//! What the peers share.
pub mod joined;
pub mod listening;
pub mod pingora_on;
