//! `telemetry` as written.
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Secret;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Telemetry {
    /// Traces for a collector that speaks OpenTelemetry's protocol. Default: none.
    pub(in crate::config) traces: Option<Traces>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Traces {
    /// The collector, like `http://127.0.0.1:4318` (OTLP over HTTP, protobuf). Without a path, spans go to `/v1/traces`.
    pub(in crate::config) endpoint: String,
    /// Which part of the requests is recorded, from 0 to 1. Default: 0.01.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(in crate::config) sample: Option<f64>,
    /// Whether a request that comes with a `traceparent` is recorded as that says, whatever `sample` does. Else a client's trace is
    /// continued where `sample` takes the request. Default: `true`.
    pub(in crate::config) follow_clients: Option<bool>,
    /// What the spans are said to come from (`service.name`). Default: `postern`.
    pub(in crate::config) service_name: Option<String>,
    /// Headers of the requests to the collector, such as a key. Default: none.
    pub(in crate::config) headers: Option<BTreeMap<String, Secret>>,
}
