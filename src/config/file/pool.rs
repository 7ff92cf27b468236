//! The addresses behind an upstream, as they are written.

use schemars::JsonSchema;
use serde::Deserialize;

/// An address behind the upstream: `HOST:PORT`, or `srv:` and the name of a service; or that with a weight.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Peer {
    Plain(String),
    Weighted(WeightedPeer),
}

/// An address behind the upstream, with what it is to bear.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct WeightedPeer {
    /// `HOST:PORT`, like `10.0.0.11:8080`, `[fd00::11]:8080` or `files-1.internal:8080`; `srv:_mcp._tcp.example.com` stands for the hosts
    /// that the name service has for it (SRV), with their ports, priorities and weights.
    pub(in crate::config) address: String,
    /// Its share beside the others, up to 100. Each address of a name has it. Default: 1.
    #[schemars(range(min = 1, max = 100))]
    pub(in crate::config) weight: Option<u32>,
}

/// How the peer of a request is chosen.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// One after the other.
    RoundRobin,
    /// The one with the fewest requests under way.
    LeastConnections,
    /// The same for the same caller, tool or method, see `balance_on`.
    Consistent,
}

/// What `consistent` goes by.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceOn {
    /// The user, or the program that has none.
    Caller,
    /// The address that the request comes from.
    Source,
    /// The header `Mcp-Name`; where there is none, the caller.
    McpName,
    /// The header `Mcp-Method`; where there is none, the caller.
    McpMethod,
}

/// How peers are asked whether they are well.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Health {
    /// `http`: a GET is answered with 2xx or 3xx. `tcp`: a connection comes about. `mcp`: `server/discover` is answered, or `ping`
    /// by a server of an older revision; that it asks for a token, or for a session, is an answer, and 404, 405 and 5xx are none.
    pub(in crate::config) kind: HealthKind,
    /// `http`: what is asked for, like `/healthz`. Needs no credential.
    pub(in crate::config) path: Option<String>,
    /// Time between two questions. Default: `5s`.
    pub(in crate::config) interval: Option<String>,
    /// How long an answer may take. Default: `2s`.
    pub(in crate::config) timeout: Option<String>,
    /// Good answers in a row that bring a peer back. Default: 2.
    #[schemars(range(min = 1, max = 100))]
    pub(in crate::config) healthy: Option<u32>,
    /// Bad ones in a row that take it out. Default: 3.
    #[schemars(range(min = 1, max = 100))]
    pub(in crate::config) unhealthy: Option<u32>,
}

/// What a peer is asked.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum HealthKind {
    Http,
    Tcp,
    Mcp,
}
