//! AWS's token service (STS): an ID token and the name of a role → the role's credentials, for a while.
//!
//! The maintained client speaks; what it says goes over our own client for outgoing requests, with its address policy and its
//! limits. It is asked once: whoever wants it more often knows why.
use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::timeout::TimeoutConfig;
use aws_sdk_sts::config::{BehaviorVersion, IdentityCache, Region, StalledStreamProtectionConfig};
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_sdk_sts::{Client, Config};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use secrecy::{ExposeSecret, SecretString};

use crate::outbound::{AddressPolicy, Outbound, Request, printable};

/// Who wants to be which role.
pub struct Asked<'a> {
    pub region: &'a str,
    /// `None`: that of the region.
    pub endpoint: Option<&'a str>,
    pub role: &'a str,
    pub session_name: &'a str,
    pub token: &'a SecretString,
    pub duration: Duration,
}

/// Why there are no credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAssumed {
    /// The token has ended.
    Expired,
    /// The token is not taken.
    Invalid,
    /// The role is not given: a matter of AWS's configuration.
    Refused,
    /// Nobody is to blame yet.
    Later,
}

/// The credentials of the role, and when they end.
pub async fn assume(
    outbound: &Outbound,
    policy: &AddressPolicy,
    asked: &Asked<'_>,
) -> Result<(Credentials, SystemTime), NotAssumed> {
    let answer = client(outbound, policy, asked)
        .assume_role_with_web_identity()
        .role_arn(asked.role)
        .role_session_name(asked.session_name)
        .web_identity_token(asked.token.expose_secret())
        .duration_seconds(i32::try_from(asked.duration.as_secs()).unwrap_or(i32::MAX))
        .send()
        .await
        .map_err(|error| judged(&error, asked.role))?;
    let given = answer.credentials.ok_or(NotAssumed::Later)?;
    let ends_at = SystemTime::try_from(given.expiration).map_err(|_| NotAssumed::Later)?;
    let token = Some(given.session_token);
    let credentials =
        Credentials::new(given.access_key_id, given.secret_access_key, token, Some(ends_at), "sts");
    Ok((credentials, ends_at))
}

fn client(outbound: &Outbound, policy: &AddressPolicy, asked: &Asked<'_>) -> Client {
    let wire = SharedHttpConnector::new(Wire { outbound: outbound.clone(), policy: policy.clone() });
    let mut config = Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(asked.region.to_owned()))
        .http_client(http_client_fn(move |_, _| wire.clone()))
        .identity_cache(IdentityCache::no_cache())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    config.set_endpoint_url(asked.endpoint.map(str::to_owned));
    Client::from_conf(config.build())
}

/// Whose fault it is. What the service says about it may hold anything, so its code alone is logged.
fn judged(error: &SdkError<AssumeRoleWithWebIdentityError, HttpResponse>, role: &str) -> NotAssumed {
    use AssumeRoleWithWebIdentityError as Said;
    let SdkError::ServiceError(refusal) = error else {
        tracing::warn!(target: "postern::credential", role, "the token service of AWS gave no usable answer");
        return NotAssumed::Later;
    };
    let code = refusal.err().code().unwrap_or_default();
    let status = refusal.raw().status().as_u16();
    let code_shown = printable(code, 64);
    tracing::warn!(target: "postern::credential", role, status, code = %code_shown, "the token service of AWS refuses");
    match refusal.err() {
        Said::ExpiredTokenException(_) => NotAssumed::Expired,
        Said::InvalidIdentityTokenException(_) | Said::IdpRejectedClaimException(_) => NotAssumed::Invalid,
        Said::IdpCommunicationErrorException(_) => NotAssumed::Later,
        _ if status >= 500 || status == 429 || code.starts_with("Throttl") => NotAssumed::Later,
        _ => NotAssumed::Refused,
    }
}

/// Our client for outgoing requests, as AWS's wants one.
#[derive(Clone)]
struct Wire {
    outbound: Outbound,
    policy: AddressPolicy,
}

impl fmt::Debug for Wire {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Wire")
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let wire = self.clone();
        HttpConnectorFuture::new(async move { wire.send(&request).await })
    }
}

impl Wire {
    async fn send(&self, request: &HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let unsendable = |what: &'static str| ConnectorError::user(what.into());
        let method = Method::from_bytes(request.method().as_bytes()).map_err(|_| unsendable("method"))?;
        let mut ours = Request::new(method, request.uri());
        for (name, value) in request.headers() {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unsendable("header"))?;
            ours.headers.insert(name, HeaderValue::from_str(value).map_err(|_| unsendable("header"))?);
        }
        ours.body = request.body().bytes().map(Bytes::copy_from_slice);
        let answer = self.outbound.send(ours, &self.policy).await;
        let answer = answer.map_err(|error| ConnectorError::io(error.into()))?;
        let status = answer.status.as_u16().try_into();
        let status = status.map_err(|_| ConnectorError::other("status".into(), None))?;
        Ok(HttpResponse::new(status, answer.body.to_vec().into()))
    }
}
