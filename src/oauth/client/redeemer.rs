//! Which authorization server takes identity assertions for an upstream: as the upstream says, remembered for a while.
//!
//! An upstream whose word cannot be used is asked again by whoever comes next, since somebody may have mended it.
use std::time::{Duration, SystemTime};

use super::Connector;
use super::discover::{AssertionServer, DiscoverError, assertion_server};
use super::exchange::Failure;
use super::probe::{Probe, probe};
use crate::outbound::AddressPolicy;
use crate::seal;

/// How long a caller waits for it: half of what the requests behind it have.
const TIME: Duration = Duration::from_secs(4);

/// Where an upstream has assertions redeemed, or why nowhere.
pub(super) type Redeemer = Result<AssertionServer, DiscoverError>;

impl Connector {
    /// Where the upstream has assertions redeemed. `written`: its resource, where the operator says what that is.
    pub(super) async fn redeemer(
        &self,
        upstream: &str,
        policy: &AddressPolicy,
        written: Option<&str>,
        now: SystemTime,
    ) -> Result<AssertionServer, Failure> {
        let fetch = async || {
            let bearer = match probe(&self.outbound, upstream, policy).await {
                Probe::Challenged { bearer, .. } => bearer,
                Probe::Open => None,
                Probe::Unreachable(reason) => {
                    tracing::warn!(target: "postern::exchange", upstream, %reason, "the upstream does not answer the probe");
                    return None;
                }
            };
            let target = (upstream, policy);
            let found = assertion_server(&self.outbound, target, written, bearer.as_ref()).await;
            let found = found.and_then(|server| match server.issuer == self.origin() {
                true => Err(DiscoverError::Unsupported("it is Postern itself")),
                false => Ok(server),
            });
            let found = found.inspect_err(|error| {
                tracing::error!(target: "postern::exchange", upstream, %error, "no authorization server is found that takes assertions for this upstream: write credential.issuer or credential.token_endpoint if it has one");
            });
            (!matches!(found, Err(error) if error.is_transient())).then_some(found)
        };
        let name = seal::digest(&[upstream, written.unwrap_or_default()].join("\0"));
        let looked = async {
            let known = self.redeemers.get(&name, false, now, fetch()).await;
            match known.as_deref() {
                // Somebody may have mended it since.
                Some(Err(_)) => self.redeemers.get(&name, true, now, fetch()).await.or(known),
                _ => known,
            }
        };
        let found = tokio::time::timeout(TIME, looked).await.ok().flatten();
        match found.as_deref() {
            Some(Ok(server)) => Ok(server.clone()),
            Some(Err(_)) => Err(Failure::Refused),
            None => Err(Failure::Later { retry_after: None }),
        }
    }
}
