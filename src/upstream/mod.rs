//! Name → vetted address → peer: where a request really goes. Of a route with peers, to which of them, and how they are.
pub mod balance;
pub mod figures;
pub mod health;
pub mod held;
pub mod idle;
pub mod joined;
pub mod patience;
pub mod peer;
pub mod pool;
pub mod resolve;
pub mod spoken;
