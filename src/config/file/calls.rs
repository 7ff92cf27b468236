//! Limits on calls, as they are written.

use schemars::JsonSchema;
use serde::Deserialize;

/// How often somebody may call, and how many calls at once. What goes beyond is refused with 429 and `Retry-After`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct CallLimit {
    /// What is counted apart: `caller` (user or program), `client`, `route`, `tool`, any of them together. For `tool` the calls of
    /// tools are read and count, and nothing else does. Default: nothing, all count as one.
    pub(in crate::config) per: Option<Vec<Per>>,
    /// How many requests in which time, like `10/s`, `600/m`, `5000/h` or `20000/d`. Default: any.
    pub(in crate::config) rate: Option<String>,
    /// How many of them at once, after a rest. Default: the number in `rate`.
    #[schemars(range(min = 1))]
    pub(in crate::config) burst: Option<u32>,
    /// Calls under way at once, each until the end of its answer. Streams that clients open for themselves are not among them, see
    /// `streams`. Default: any.
    #[schemars(range(min = 1))]
    pub(in crate::config) concurrent: Option<u32>,
    /// All instances count together, through the store. While it is away each counts for itself. Default: `false`.
    pub(in crate::config) shared: Option<bool>,
}

/// What a call is counted by.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// The user, or the program that has none.
    Caller,
    /// The MCP client application.
    Client,
    /// The MCP server that is called.
    Route,
    /// The tool that is called.
    Tool,
}

impl Per {
    /// In the order of declaration.
    pub(in crate::config) const ALL: [Per; 4] = [Per::Caller, Per::Client, Per::Route, Per::Tool];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Per::Caller => "caller",
            Per::Client => "client",
            Per::Route => "route",
            Per::Tool => "tool",
        }
    }
}
