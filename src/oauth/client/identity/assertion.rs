//! Identity assertion authorization grants (ID-JAG, draft-ietf-oauth-identity-assertion-authz-grant): an identity provider
//! lets a client act here for one of its people, who are not asked. Such a token comes in; whom it is about, for which client
//! and for what goes out.
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::{IdentityError, Providers, admit, is_subject};
use crate::config::{Attributes, IdentityProvider};
use crate::jose::remote::RemoteError;
use crate::jose::{Claims, Expected, texts};
use crate::route::provider_policy;

/// `typ`, so that no other token of the provider passes for one.
const TYPE: &str = "oauth-id-jag+jwt";
/// Each is made for one request; what is good for longer is refused.
const LIFETIME_MAX: Duration = Duration::from_secs(600);
/// What narrows one down in a way that nothing here understands (RFC 7800 §3.1, RFC 9396 §5).
const NARROWING: [&str; 2] = ["cnf", "authorization_details"];

/// What a provider that is listed for it has signed.
pub struct Assertion {
    /// As [`super::Person::user`].
    pub user: String,
    /// Whom the provider lets act for the user, by the id here.
    pub client: String,
    /// Names it among those of its issuer.
    pub id: String,
    /// Seconds since 1970.
    pub exp: u64,
    /// Resource identifiers (RFC 8707).
    pub resources: Vec<String>,
    /// `None`: the provider says nothing of scopes.
    pub scopes: Option<Vec<String>>,
    said: Map<String, Value>,
}

impl Providers {
    /// Verifies `token` as this provider's. `audience`: our issuer.
    pub async fn assertion(
        &self,
        provider: &IdentityProvider,
        token: &str,
        audience: &str,
        now: SystemTime,
    ) -> Result<Assertion, IdentityError> {
        let metadata = self.metadata(provider, now).await?;
        let audiences = [audience];
        let expected = Expected { issuer: &provider.issuer, audiences: Some(&audiences), types: &[TYPE] };
        let policy = provider_policy(provider);
        let verified = self.keys.verify(&metadata.jwks_uri, &policy, token, &expected, now).await;
        let claims = verified.map_err(|error| match error {
            RemoteError::Unavailable => IdentityError::Unavailable,
            RemoteError::Token(error) => refused(&error.to_string()),
        })?;
        Assertion::of(provider, claims)
    }
}

impl Assertion {
    /// What is not checked with the signature.
    fn of(provider: &IdentityProvider, claims: Claims) -> Result<Self, IdentityError> {
        if claims.audiences().count() != 1 {
            return Err(refused("is for others as well (aud)"));
        }
        let made_at = claims.iat.ok_or_else(|| refused("does not say when it was made (iat)"))?;
        if claims.exp.saturating_sub(made_at) > LIFETIME_MAX.as_secs() {
            return Err(refused("is good for too long (exp)"));
        }
        if !is_subject(&claims.sub) {
            return Err(refused("names nobody (sub)"));
        }
        if NARROWING.iter().any(|name| claims.rest.contains_key(*name)) {
            return Err(refused("is narrowed down in a way that is not understood"));
        }
        let client = claims.text("client_id").ok_or_else(|| refused("names no client (client_id)"))?;
        let scopes = match claims.rest.get("scope") {
            None => None,
            Some(Value::String(scope)) => Some(scope.split_ascii_whitespace().map(str::to_owned).collect()),
            Some(_) => return Err(refused("names scopes in another form (scope)")),
        };
        Ok(Self {
            user: provider.user(&claims.sub),
            client: client.to_owned(),
            exp: claims.exp,
            resources: texts(claims.rest.get("resource")),
            scopes,
            id: claims.jti.filter(|id| !id.is_empty()).ok_or_else(|| refused("has no name (jti)"))?,
            said: claims.rest,
        })
    }

    /// What is known of the user now, if the configuration lets them in. What the assertion leaves out is as the provider said
    /// when they last signed in here (`known`).
    pub fn admitted(
        &self,
        provider: &IdentityProvider,
        known: &Attributes,
    ) -> Result<Attributes, IdentityError> {
        let has = |name: &str| self.said.contains_key(name);
        let said =
            Attributes::of(&self.said, texts(self.said.get(&provider.groups_claim)), &provider.policy_claims);
        // An address alone counts where it is the one that has been verified.
        let is_known = self.said.get("email").is_none_or(|email| *email == known.email);
        let email = match (has("email_verified"), is_known) {
            (false, true) => known.email.clone(),
            _ => said.email,
        };
        let groups = if has(&provider.groups_claim) { said.groups } else { known.groups.clone() };
        let mut claims = known.claims.clone();
        claims.extend(said.claims);
        let attributes = Attributes { email, groups, claims };
        admit(provider, &attributes)?;
        Ok(attributes)
    }
}

fn refused(why: &str) -> IdentityError {
    IdentityError::Refused(format!("assertion: {why}"))
}
