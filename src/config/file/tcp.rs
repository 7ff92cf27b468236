//! What belongs to `kind: tcp`, as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

/// Connections at a route of `kind: tcp`.
#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct TcpSettings {
    /// Connections have TLS, with the certificates of `server.tls` and what else is said there; the server gets what is inside. Default: `false`.
    pub(in crate::config) tls: Option<bool>,
    /// Who may connect, by address: networks like `10.0.0.0/8`. Default: everybody.
    pub(in crate::config) allow_from: Option<Vec<String>>,
    /// Connections that may be open at once, at each instance. Default: 1024.
    #[schemars(range(min = 1))]
    pub(in crate::config) connections: Option<usize>,
    /// After so long without a byte in either direction a connection ends. Default: `1h`.
    pub(in crate::config) idle_timeout: Option<String>,
    /// How long a peer may take to be connected to, before the next one is tried. Default: `5s`.
    pub(in crate::config) connect_timeout: Option<String>,
}
