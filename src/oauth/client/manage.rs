//! Managing a registration at an upstream's authorization server (RFC 7592): another secret before the present one ends, and
//! the end of it all.
use http::{HeaderValue, Method, header};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::SystemTime;
use url::Url;

use super::register::{Applicant, RegisterError, Registration, accepted, ask, is_visible, metadata};
use crate::outbound::{AddressPolicy, Outbound, Request};

/// RFC 7592 §3.
#[derive(Clone, Serialize, Deserialize)]
pub struct Management {
    pub uri: String,
    #[serde(serialize_with = "crate::store::record::expose")]
    pub token: SecretString,
}

impl Management {
    /// As the server says it, beside the endpoint that was asked: the token is shown to nobody else.
    pub(super) fn of(uri: &Value, token: &Value, endpoint: &str) -> Option<Self> {
        let (uri, token) = (uri.as_str()?, token.as_str()?);
        let is_there = Url::parse(uri).ok()?.origin() == Url::parse(endpoint).ok()?.origin();
        (is_there && is_visible(token)).then(|| Self { uri: uri.to_owned(), token: token.into() })
    }

    fn bearer(&self) -> Result<HeaderValue, RegisterError> {
        let value = HeaderValue::from_str(&format!("Bearer {}", self.token.expose_secret()));
        let mut value = value.map_err(|_| RegisterError::Invalid("registration access token"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Asks for another secret before the present one ends (RFC 7592 §2.2).
pub async fn renew_secret(
    outbound: &Outbound,
    policy: &AddressPolicy,
    registration: &Registration,
    applicant: &Applicant<'_>,
    now: SystemTime,
) -> Result<Registration, RegisterError> {
    let management = registration.management.as_ref();
    let management = management.ok_or(RegisterError::Unsupported("it cannot be managed"))?;
    let asked = registration.auth_method;
    let metadata = metadata(Some(&registration.client_id), applicant, asked);
    let request = Request::post_json(&management.uri, &metadata);
    let mut request = request.map_err(|_| RegisterError::Invalid("client metadata"))?;
    request.method = Method::PUT;
    let request = request.header(header::AUTHORIZATION, management.bearer()?);
    let information = ask(outbound, policy, request).await?;
    if information.client_id != registration.client_id {
        return Err(RegisterError::Invalid("another client id"));
    }
    let renewed = accepted(information, asked, &registration.redirect_uri, &management.uri, now)?;
    // What is not said again stays.
    let management = renewed.management.clone().or_else(|| registration.management.clone());
    Ok(Registration { management, ..renewed })
}

/// Ends a registration (RFC 7592 §2.3). Says whether it is gone.
pub async fn deregister(outbound: &Outbound, policy: &AddressPolicy, management: &Management) -> bool {
    let Ok(bearer) = management.bearer() else { return false };
    let request = Request::new(Method::DELETE, &management.uri).header(header::AUTHORIZATION, bearer);
    match outbound.send(request, policy).await {
        // Who says no will say so again: the registration is gone already, or is not to be deleted. A 429 is no such answer.
        Ok(response) => {
            let status = response.status;
            status.is_success() || status.is_client_error() && !matches!(status.as_u16(), 408 | 429)
        }
        Err(_) => false,
    }
}
