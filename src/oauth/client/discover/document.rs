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
///
/// Who looks on is told of what is none; what is one is for the caller to judge.
pub(super) async fn fetch<T: DeserializeOwned>(
    outbound: &Outbound,
    policy: &AddressPolicy,
    step: &'static str,
    url: &str,
) -> Result<Option<T>, DiscoverError> {
    let mut request = Request::get(url);
    request.limits.total = FETCH_TIME;
    let response = outbound.send(request, policy).await;
    let response = response.inspect_err(|error| outbound.remark_failure(step, url, error));
    let response = response.map_err(|error| match error {
        outbound::Error::Refused { .. } => DiscoverError::Refused,
        outbound::Error::NotSent { .. } | outbound::Error::Unknown { .. } => DiscoverError::Unavailable,
        outbound::Error::TooLarge { .. } => DiscoverError::Invalid("document too large"),
        outbound::Error::Invalid { .. } => DiscoverError::Invalid("not a usable answer"),
    })?;
    let status = response.status;
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        outbound.remark(step, url, "unavailable", || {
            format!("status {} is an outage, and nobody knows what is behind it", status.as_u16())
        });
        return Err(DiscoverError::Unavailable);
    }
    if status != StatusCode::OK || !response.is_json() {
        outbound.remark(step, url, "absent", || match status {
            StatusCode::OK => "the answer does not say that it is json".to_owned(),
            _ if status.is_redirection() => {
                format!("status {}, and redirects are not followed", status.as_u16())
            }
            _ => format!("status {}: there is no document", status.as_u16()),
        });
        return Ok(None);
    }
    Ok(serde_json::from_slice(&response.body)
        .inspect_err(|error| {
            tracing::info!(target: "postern::oauth", url, "not the expected document, looking further");
            outbound.remark(step, url, "absent", || format!("not the expected document: {error}"));
        })
        .ok())
}
