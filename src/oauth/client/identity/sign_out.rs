//! What an identity provider says when somebody has signed out there: a logout token comes in, whom it names goes out.
use std::time::SystemTime;

use super::{IdentityError, Providers};
use crate::config::IdentityProvider;
use crate::jose::{Expected, issuer_of};
use crate::route::provider_policy;

/// `events` of a logout token (OpenID Connect Back-Channel Logout §2.4).
const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// Who has signed out at the provider.
pub struct SignedOut {
    pub provider: String,
    /// As [`super::Person::user`].
    pub user: Option<String>,
    /// As [`super::Person::session`].
    pub session: Option<String>,
    /// Names this notice, so that it counts once.
    pub id: String,
}

impl Providers {
    /// Reads a logout token (OpenID Connect Back-Channel Logout §2.6).
    pub async fn signed_out(
        &self,
        providers: &[IdentityProvider],
        token: &str,
        now: SystemTime,
    ) -> Result<SignedOut, IdentityError> {
        let refused = |why: &str| IdentityError::Refused(format!("logout token: {why}"));
        let issuer = issuer_of(token).ok_or_else(|| refused("is none"))?;
        let provider = providers.iter().find(|provider| provider.issuer == issuer);
        let provider = provider.ok_or_else(|| refused("is from an unknown issuer"))?;
        let metadata = self.metadata(provider, now).await?;
        let audiences = [provider.client_id.as_str()];
        let expected =
            Expected { issuer: &issuer, audiences: Some(&audiences), types: &["logout+jwt", "jwt", ""] };
        let claims =
            self.keys.verify(&metadata.jwks_uri, &provider_policy(provider), token, &expected, now).await?;
        let is_event = claims.rest.get("events").is_some_and(|events| events.get(LOGOUT_EVENT).is_some());
        // A nonce would make it an ID token.
        if !is_event || claims.rest.contains_key("nonce") {
            return Err(refused("is another kind of token"));
        }
        let session = claims.text("sid").map(str::to_owned);
        let user = (!claims.sub.is_empty()).then(|| provider.user(&claims.sub));
        let id = claims.jti.filter(|id| !id.is_empty()).ok_or_else(|| refused("has no jti"))?;
        if session.is_none() && user.is_none() {
            return Err(refused("names nobody"));
        }
        Ok(SignedOut { provider: provider.name.clone(), user, session, id })
    }
}
