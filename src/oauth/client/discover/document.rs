//! The two metadata documents as they come over the wire, and their fetching. A document that repeats a key is
//! refused (serde does that for structs), so nobody can show us one value and another reader a different one.
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::DiscoverError;
use crate::outbound::{self, AddressPolicy, Outbound, Request};

/// For one document, connection included.
const FETCH_TIME: Duration = Duration::from_secs(4);

/// RFC 9728 §2, as far as a client needs it.
#[derive(Deserialize)]
pub(super) struct ResourceMetadata {
    pub resource: String,
    #[serde(default)]
    pub authorization_servers: Option<Vec<String>>,
    #[serde(default)]
    pub scopes_supported: Option<Vec<String>>,
}

impl ResourceMetadata {
    pub fn names_servers(&self) -> bool {
        self.authorization_servers.as_ref().is_some_and(|listed| !listed.is_empty())
    }
}

/// RFC 8414 §2 and OpenID Connect Discovery §3, as far as a client needs it.
#[derive(Deserialize)]
pub(super) struct ServerMetadata {
    pub issuer: String,
    #[serde(default)]
    pub authorization_endpoint: Option<String>,
    #[serde(default)]
    pub token_endpoint: Option<String>,
    #[serde(default)]
    pub registration_endpoint: Option<String>,
    #[serde(default)]
    pub revocation_endpoint: Option<String>,
    #[serde(default)]
    pub token_endpoint_auth_methods_supported: Option<Vec<String>>,
    pub token_endpoint_auth_signing_alg_values_supported: Option<Vec<String>>,
    #[serde(default)]
    pub code_challenge_methods_supported: Option<Vec<String>>,
    /// Absent means that codes are granted (RFC 8414 §2); an empty list means that nothing is.
    #[serde(default)]
    pub grant_types_supported: Option<Vec<String>>,
    #[serde(default)]
    pub scopes_supported: Option<Vec<String>>,
    #[serde(default)]
    pub client_id_metadata_document_supported: Option<bool>,
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: Option<bool>,
}

/// The document at `url`, or `None` where the server says in any way that there is none: a 4xx, a redirect (not
/// followed), a page that is not JSON, or not this document. An outage is an error, because the place behind it must not
/// be skipped.
pub(super) async fn fetch<T: DeserializeOwned>(
    outbound: &Outbound,
    policy: &AddressPolicy,
    url: &str,
) -> Result<Option<T>, DiscoverError> {
    let mut request = Request::get(url);
    request.limits.total = FETCH_TIME;
    let response = outbound.send(request, policy).await.map_err(|error| match error {
        outbound::Error::Refused { .. } => DiscoverError::Refused,
        outbound::Error::NotSent { .. } | outbound::Error::Unknown { .. } => DiscoverError::Unavailable,
        outbound::Error::TooLarge { .. } => DiscoverError::Invalid("document too large"),
        outbound::Error::Invalid { .. } => DiscoverError::Invalid("not a usable answer"),
    })?;
    if response.status.is_server_error() || response.status == StatusCode::TOO_MANY_REQUESTS {
        return Err(DiscoverError::Unavailable);
    }
    if response.status != StatusCode::OK || !response.is_json() {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&response.body)
        .inspect_err(
            |_| tracing::info!(target: "postern::oauth", url, "not the expected document, looking further"),
        )
        .ok())
}
