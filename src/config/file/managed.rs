//! `managed` as written.
use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Managed {
    /// Users who may make organisations and see all of them, named as in the store: a local user by name, a provider's by issuer and subject.
    /// Default: none; then organisations are made on the command line alone.
    pub(in crate::config) administrators: Option<Vec<String>>,
    /// Whether people may add MCP servers for themselves, besides those of organisations. Default: true.
    pub(in crate::config) personal: Option<bool>,
    /// Hosts of added servers that may use `http` and private addresses. Default: none.
    pub(in crate::config) allow_hosts: Option<Vec<String>>,
    /// How long is kept who did what to managed connections. Default: `60d`.
    pub(in crate::config) event_retention: Option<String>,
}
