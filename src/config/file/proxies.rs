//! What `server` says of balancers in front.
use schemars::JsonSchema;
use serde::Deserialize;

/// Where a balancer says whose a request is.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ForwardedHeader {
    #[default]
    XForwardedFor,
    Forwarded,
}
