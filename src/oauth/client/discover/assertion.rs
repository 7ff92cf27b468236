//! From the URL of an upstream to the authorization server that takes identity assertions for it. The same documents as on the
//! way to an authorization, asked other questions: nobody is sent to an authorization endpoint, and the grant is RFC 7523's.
//!
//! The upstream's word alone leads here, so without resource metadata there is no server to guess at.
use serde::{Deserialize, Serialize};
use url::Url;

use super::check::safe_url;
use super::document::ServerMetadata;
use super::{
    DiscoverError, MOST_SERVERS, Overrides, SERVER, TOTAL_TIME, Target, issuer_metadata, resource_metadata,
};
use crate::challenge::Bearer;
use crate::outbound::{AddressPolicy, Outbound};

/// RFC 7523 §2.1.
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// Where an assertion is redeemed, and what for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssertionServer {
    /// Verbatim; whom assertions are for.
    pub issuer: String,
    pub token_endpoint: String,
    /// Verbatim from the resource metadata.
    pub resource: String,
}

/// Finds the server for the upstream at `url`. `challenge`: as for [`super::discover`]. `resource`: vouched for by the operator,
/// as behind an internal address.
pub async fn assertion_server(
    outbound: &Outbound,
    target: (&str, &AddressPolicy),
    resource: Option<&str>,
    challenge: Option<&Bearer>,
) -> Result<AssertionServer, DiscoverError> {
    let overrides = Overrides { resource: resource.map(str::to_owned), ..Overrides::default() };
    let target = Target { url: target.0, policy: target.1, overrides: &overrides };
    let walk = tokio::time::timeout(TOTAL_TIME, walk(outbound, &target, challenge));
    walk.await.unwrap_or(Err(DiscoverError::Unavailable))
}

async fn walk(
    outbound: &Outbound,
    target: &Target<'_>,
    challenge: Option<&Bearer>,
) -> Result<AssertionServer, DiscoverError> {
    let upstream = Url::parse(target.url).map_err(|_| DiscoverError::Invalid("upstream url"))?;
    let nobody = DiscoverError::Unsupported("the upstream's resource metadata name none");
    let metadata = resource_metadata(outbound, target, &upstream, challenge).await?.ok_or(nobody)?;
    let mut first_error = None;
    for issuer in metadata.authorization_servers.iter().flatten().take(MOST_SERVERS) {
        match published(outbound, target, issuer).await {
            Ok(token_endpoint) => {
                let (issuer, resource) = (issuer.clone(), metadata.resource);
                return Ok(AssertionServer { issuer, token_endpoint, resource });
            }
            // An outage hides whether this is the one.
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    Err(first_error.unwrap_or(nobody))
}

/// The token endpoint of `issuer`.
async fn published(outbound: &Outbound, target: &Target<'_>, issuer: &str) -> Result<String, DiscoverError> {
    let found: Result<String, DiscoverError> = async {
        let metadata =
            issuer_metadata::<ServerMetadata>(outbound, target.policy, issuer, takes_assertions).await?;
        let endpoint =
            metadata.token_endpoint.ok_or(DiscoverError::Unsupported("it has no token endpoint"))?;
        safe_url(&endpoint, target.policy)?;
        Ok(endpoint)
    }
    .await;
    found.inspect_err(|error| {
        let decision = if error.is_transient() { "unavailable" } else { "refused" };
        outbound.remark(SERVER, issuer, decision, || error.to_string());
    })
}

/// RFC 8414 §2: a list that is absent means codes, and no assertions.
fn takes_assertions(metadata: &ServerMetadata) -> Result<(), DiscoverError> {
    let mut grants = metadata.grant_types_supported.iter().flatten();
    match grants.any(|grant| grant == JWT_BEARER) {
        true => Ok(()),
        false => Err(DiscoverError::Unsupported(
            "its metadata do not list the grant urn:ietf:params:oauth:grant-type:jwt-bearer",
        )),
    }
}
