//! The only HTTP client for OAuth requests, and the one address policy for everything that leaves.
//!
//! URLs come from strangers: metadata, challenges, client documents. Each is judged by [`AddressPolicy`], its
//! name is resolved once, every answer must be allowed, and the connection goes to exactly the addresses that
//! were judged. No redirect, no proxy, no decompression, no retry; time and size are capped. Proxied upstreams
//! do not travel through this client but have their addresses judged by the same [`Outbound::vet`]. Somebody may look on
//! ([`Outbound::watched`], [`shown`]); who asks says with [`Outbound::remark`] what was made of an answer.
//!
//! It sits at the bottom: it knows HTTP and addresses, nothing of OAuth.

mod address;
mod client;
pub mod kept;
mod message;
mod names;
#[cfg(test)]
mod tests;
mod watch;

pub use address::{AddressPolicy, Class, classify};
pub use client::{Outbound, Settings, SetupError, printable};
pub use message::{Limits, Request, Response};
pub use names::{Place, Vetted};
pub use watch::{Answer, Count, Exchange, Fetched, Remark, Sight, Watch, carried, shown};

/// Why there is no answer. `target` is `scheme://host:port` (or `host:port`), never a path or a query: those
/// may carry codes and tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Our own rules forbid it. Nothing was sent, and trying again changes nothing.
    #[error("{target}: refused, {reason}")]
    Refused { target: String, reason: &'static str },
    /// Name resolution, connecting or the TLS handshake failed: the request provably never left, so even a
    /// single-use token in it is still good.
    #[error("{target}: not sent, {reason}")]
    NotSent { target: String, reason: String },
    /// The request may have been processed; no complete answer came back.
    #[error("{target}: no complete answer, {reason}")]
    Unknown { target: String, reason: String },
    /// The answer is longer than [`Limits::body`]. It was sent, and processed as far as anyone can tell.
    #[error("{target}: answer is longer than {limit} bytes")]
    TooLarge { target: String, limit: usize },
    /// A body is not the JSON it should be: the answer's, or (from [`Request::post_json`]) our own.
    #[error("{reason}")]
    Invalid { reason: String },
}

impl Error {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::NotSent { .. } | Error::Unknown { .. })
    }

    /// Whether the other side provably never saw the request.
    pub fn is_unsent(&self) -> bool {
        matches!(self, Error::Refused { .. } | Error::NotSent { .. })
    }
}
