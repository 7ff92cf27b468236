//! `entra_obo`: what Entra gave at sign-in, shown as its on-behalf-of form wants it, in the tenant that the user is of.
use secrecy::SecretString;

use super::Unresolved;
use crate::config::is_tenant;
use crate::oauth::client::exchange::{ACCESS_TOKEN, Grant, Shown};

/// The grant that shows this token.
pub(super) fn grant(token: SecretString) -> Grant {
    Grant::OnBehalfOf { subject: Shown { token, kind: ACCESS_TOKEN.to_owned() } }
}

/// The user's tenant, fit for a path. Without one nobody knows whom to ask.
pub(super) fn tenant(of_user: Option<String>) -> Result<String, Unresolved> {
    of_user.filter(|tenant| is_tenant(tenant)).ok_or_else(|| {
        tracing::error!(target: "postern::exchange", "the user's ID token names no tenant (tid): write one as `credential.tenant`");
        Unresolved::Refused
    })
}
