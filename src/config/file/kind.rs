//! What a route leads to, as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

/// What a route leads to.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RouteKind {
    /// An MCP server.
    #[default]
    Mcp,
    /// Anything else that speaks HTTP, on a host of its own.
    Http,
    /// Bytes, on a listener of its own.
    Tcp,
}
