//! The section `limits`.
use schemars::JsonSchema;
use serde::Deserialize;

use super::CallLimit;

#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Limits {
    /// Streams that clients open for themselves (`GET`, `subscriptions/listen`) and that stay open; further ones are refused with 503. Default: 10000.
    #[schemars(range(min = 1))]
    pub(in crate::config) streams: Option<usize>,
    /// Of them, those of one user or program, in all their clients and at all routes; further ones are refused with 429. Default: 256.
    #[schemars(range(min = 1))]
    pub(in crate::config) streams_per_user: Option<usize>,
    /// The longest body of a request that a rule depends on, in bytes; longer ones are refused with 413. At least 64 KiB. Default: 1048576.
    #[schemars(range(min = 65536))]
    pub(in crate::config) inspect_body: Option<usize>,
    /// The longest JSON answer, or event of a stream, at a route whose rules decide who sees what, in bytes; longer ones are refused
    /// with 502, or end their stream. Default: 4194304.
    #[schemars(range(min = 1))]
    pub(in crate::config) inspect_answer: Option<usize>,
    /// How often somebody may call, and how many calls at once, over all routes. Default: no limits.
    pub(in crate::config) calls: Option<Vec<CallLimit>>,
    /// Connections of clients open at once; further ones get 503 and are closed. Never more than the open files allow, of which a part is
    /// kept for the store and the upstreams. Default: 20000.
    #[schemars(range(min = 1))]
    pub(in crate::config) connections: Option<usize>,
    /// Of them, those from one address, for IPv6 one /64; further ones are closed. Default: 1024, and none for this machine itself.
    #[schemars(range(min = 1))]
    pub(in crate::config) connections_per_address: Option<usize>,
    /// Requests under way at once, streams that clients have opened aside; further ones are refused with 503. Default: 10000.
    #[schemars(range(min = 1))]
    pub(in crate::config) requests: Option<usize>,
    /// Memory that Postern may hold, in bytes: with more, new requests are refused with 503, and what runs goes on. 0: any number.
    /// Default: 90 % of `memory.max` of its control group, where that has one.
    pub(in crate::config) memory: Option<usize>,
    /// In what time a request's header has to be here, from its first byte; on a new connection from the beginning, and once more for
    /// its handshake. Default: `10s`.
    pub(in crate::config) header_time: Option<String>,
    /// The longest header of a request, in bytes; longer ones are refused with 431. Default: 65536.
    #[schemars(range(min = 4096))]
    pub(in crate::config) header_size: Option<usize>,
    /// How many fields a header may have; with more it is refused with 431. Default: 100.
    #[schemars(range(min = 16, max = 256))]
    pub(in crate::config) header_fields: Option<usize>,
    /// The longest body of a request, in bytes; longer ones are refused with 413. Default: 33554432.
    #[schemars(range(min = 65536))]
    pub(in crate::config) body: Option<usize>,
    /// How long a client may send nothing of a body that is to come, and how long it may be slower than `body_rate`. Default: `30s`.
    pub(in crate::config) body_time: Option<String>,
    /// Bytes a second that a body has to come with, on average, once it has taken `body_time`. Default: 256.
    pub(in crate::config) body_rate: Option<usize>,
    /// How long a client may take nothing of its answer, and over HTTP/2 leave a `PING` unanswered; and an upstream with TLS nothing of a
    /// request. Default: `60s`.
    pub(in crate::config) write_time: Option<String>,
    /// After how much silence a stream of events over HTTP/1.1 gets a comment, so that nobody on the way takes it for dead; it may be
    /// twice as much. Over HTTP/2 a client that waits for an answer is asked by a `PING`, and its connection ends if nothing comes of
    /// it within `write_time`. `0s` leaves both out. Default: `15s`.
    pub(in crate::config) keep_alive: Option<String>,
    /// Requests at once on one connection over HTTP/2. Default: 100.
    #[schemars(range(min = 1, max = 1000))]
    pub(in crate::config) streams_per_connection: Option<usize>,
    /// Frames that carry nothing (`PING`, `SETTINGS`, `RST_STREAM`, empty ones, `WINDOW_UPDATE` beyond ten for each frame of an answer),
    /// on one connection over HTTP/2 within ten seconds; with more it is ended. Default: 1000.
    #[schemars(range(min = 50))]
    pub(in crate::config) control_frames: Option<usize>,
    /// Calls on one connection over HTTP/2 that are broken off before their answer, reset by the client or, each for five, for what it
    /// sent, within ten seconds and beyond as many as are answered; with more it is ended. At least `streams_per_connection`. Default: 100.
    #[schemars(range(min = 50))]
    pub(in crate::config) resets: Option<usize>,
}
