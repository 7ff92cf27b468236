//! Name → vetted address → peer: where a request really goes.
pub mod held;
pub mod idle;
pub mod joined;
pub mod peer;
pub mod resolve;
