//! Signing people in through identity providers (OpenID Connect Core 1.0, code flow with PKCE): here we are the client.
//!
//! Who somebody is, is issuer and subject of an ID token that the provider has signed for us and for this very sign-in
//! (`nonce`). Everything else in it is for people to read, or narrows down who may come in.
pub mod assertion;
mod metadata;
mod sign_out;

use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::metadata::Metadata;
pub use self::sign_out::SignedOut;
use super::authorize::Pkce;
use super::provider::ProviderTokens;
use super::token::{self, Outcome};
use crate::config::{Attributes, IdentityProvider};
use crate::jose::remote::{KeySets, RemoteError};
use crate::jose::{Claims, Expected, texts};
use crate::outbound::{self, Outbound, Request};
use crate::route::provider_policy;
use crate::seal;

/// OpenID Connect Core §2.
const SUBJECT_MAX: usize = 255;

/// The providers, and what is known of them.
pub struct Providers {
    outbound: Outbound,
    keys: KeySets,
    known: metadata::Known,
}

/// A sign-in that has begun: what the answer has to fit. Stored, never shown.
#[derive(Serialize, Deserialize)]
pub struct Begun {
    pub provider: String,
    nonce: String,
    #[serde(serialize_with = "crate::store::record::expose")]
    verifier: SecretString,
}

/// Who has signed in.
pub struct Person {
    /// Issuer and subject.
    pub user: String,
    /// For people to read.
    pub name: Option<String>,
    /// What the provider says besides.
    pub attributes: Attributes,
    /// The provider's session, for signing out.
    pub session: Option<String>,
    /// Shown to the provider when this person signs out here.
    pub id_token: SecretString,
    /// What else came with it, where it can be used.
    pub tokens: Option<ProviderTokens>,
}

/// What the browser brings back.
pub struct Returning<'a> {
    pub code: Option<&'a str>,
    pub iss: Option<&'a str>,
    pub error: Option<&'a str>,
}

/// Why nobody is signed in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The provider does not answer: nothing is known against the person.
    #[error("the identity provider cannot be reached")]
    Unavailable,
    /// It said no, or the person did.
    #[error("the identity provider did not sign the person in")]
    Denied,
    /// What it says does not hold together. For the log; the person cannot do anything about it.
    #[error("{0}")]
    Refused(String),
    /// Somebody, but nobody who may come in.
    #[error("the person is in no domain or group that is allowed")]
    NotAdmitted,
    /// The user has been there as somebody else before.
    #[error("the person has another account there")]
    SomebodyElse,
}

impl From<RemoteError> for IdentityError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Unavailable => Self::Unavailable,
            RemoteError::Token(error) => Self::Refused(format!("ID token: {error}")),
        }
    }
}

/// The answer of a token endpoint, as far as we need it.
#[derive(Deserialize)]
struct TokenAnswer {
    id_token: SecretString,
}

impl Providers {
    pub fn new(outbound: Outbound) -> Self {
        let (keys, known) = (KeySets::new(outbound.clone()), metadata::Known::default());
        Self { outbound, keys, known }
    }

    /// The URL to send the browser to. `state` comes back with it. `claims`: what the provider wants to see the person about.
    pub async fn begin(
        &self,
        provider: &IdentityProvider,
        redirect_uri: &str,
        state: &str,
        claims: Option<&str>,
        now: SystemTime,
    ) -> Result<(String, Begun), IdentityError> {
        let metadata = self.metadata(provider, now).await?;
        let no_randomness = |_| IdentityError::Refused("no randomness".to_owned());
        let pkce = Pkce::new(seal::random().map_err(no_randomness)?);
        let nonce = seal::token().map_err(no_randomness)?.expose_secret().to_owned();
        let scope = ["openid"].into_iter().chain(provider.scopes.iter().map(String::as_str));
        let scope = scope.collect::<Vec<_>>().join(" ");
        let mut pairs = vec![
            ("response_type", "code"),
            ("client_id", &provider.client_id),
            ("redirect_uri", redirect_uri),
            ("scope", &scope),
            ("state", state),
            ("nonce", &nonce),
            ("code_challenge", &pkce.challenge),
            ("code_challenge_method", "S256"),
        ];
        pairs.extend(claims.map(|claims| ("claims", claims)));
        let url = metadata.authorization_url(&pairs);
        Ok((url, Begun { provider: provider.name.clone(), nonce, verifier: pkce.verifier }))
    }

    /// Takes the browser back. The code goes nowhere before the answer is known to be this provider's.
    pub async fn complete(
        &self,
        provider: &IdentityProvider,
        begun: &Begun,
        returning: &Returning<'_>,
        redirect_uri: &str,
        now: SystemTime,
    ) -> Result<Person, IdentityError> {
        let metadata = self.metadata(provider, now).await?;
        if !metadata.is_from(provider, returning.iss) {
            return Err(IdentityError::Refused("the answer is from another issuer (iss)".to_owned()));
        }
        let code = returning.code.filter(|_| returning.error.is_none()).ok_or(IdentityError::Denied)?;
        let (id_token, tokens) = self.redeem(provider, &metadata, code, begun, redirect_uri, now).await?;
        let expected = Expected {
            issuer: &provider.issuer,
            audiences: Some(&[&provider.client_id]),
            types: &["", "jwt"],
        };
        let (jwks_uri, policy) = (&metadata.jwks_uri, provider_policy(provider));
        let mut claims =
            self.keys.verify(jwks_uri, &policy, id_token.expose_secret(), &expected, now).await?;
        check(provider, &claims, begun)?;
        let tokens = tokens.map(|tokens| tokens.with_id_token(&id_token, claims.exp, now));
        let lacks_proof = lacks_proof(provider, &claims);
        let lacks = |name: &String| !claims.rest.contains_key(name);
        if lacks_proof || lacks(&provider.name_claim) || provider.policy_claims.iter().any(lacks) {
            let asked = self.ask_for_more(provider, &metadata, tokens.as_ref(), &mut claims).await;
            // A name for people to read is not worth turning anybody away.
            if lacks_proof {
                asked?;
            }
        }
        let groups = texts(claims.rest.get(&provider.groups_claim));
        let attributes = Attributes::of(&claims.rest, groups, &provider.policy_claims);
        admit(provider, &attributes)?;
        Ok(Person {
            user: provider.user(&claims.sub),
            name: claims.text(&provider.name_claim).map(str::to_owned),
            session: claims.text("sid").map(str::to_owned),
            attributes,
            id_token,
            tokens,
        })
    }

    /// Where the browser goes to sign out at the provider as well (OpenID Connect RP-Initiated Logout); `None` where it
    /// has no place for that.
    pub async fn sign_out_url(
        &self,
        provider: &IdentityProvider,
        id_token: Option<&SecretString>,
        back: &str,
        now: SystemTime,
    ) -> Option<String> {
        let metadata = self.metadata(provider, now).await.ok()?;
        let mut pairs = vec![("client_id", provider.client_id.as_str()), ("post_logout_redirect_uri", back)];
        pairs.extend(id_token.map(|token| ("id_token_hint", token.expose_secret())));
        metadata.end_session_url(&pairs)
    }

    /// Fetches again what is used and about to be old.
    pub async fn renew(&self, providers: &[IdentityProvider], now: SystemTime) {
        for provider in providers {
            self.known.renew(&self.outbound, provider, &provider_policy(provider), now).await;
        }
        self.keys.renew(now).await;
    }

    async fn metadata(
        &self,
        provider: &IdentityProvider,
        now: SystemTime,
    ) -> Result<std::sync::Arc<Metadata>, IdentityError> {
        self.known.of(&self.outbound, provider, &provider_policy(provider), now).await
    }

    /// What the ID token leaves out, the UserInfo endpoint may say (OpenID Connect Core §5.4): it adds, and changes nothing.
    async fn ask_for_more(
        &self,
        provider: &IdentityProvider,
        metadata: &Metadata,
        tokens: Option<&ProviderTokens>,
        claims: &mut Claims,
    ) -> Result<(), IdentityError> {
        let (Some(endpoint), Some(tokens)) = (&metadata.userinfo_endpoint, tokens) else {
            return Ok(());
        };
        let line = format!("Bearer {}", tokens.response.access_token.expose_secret());
        let mut bearer = http::HeaderValue::from_str(&line)
            .map_err(|_| IdentityError::Refused("access token".to_owned()))?;
        bearer.set_sensitive(true);
        let request = Request::get(endpoint.clone()).header(http::header::AUTHORIZATION, bearer);
        let response = self.outbound.send(request, &provider_policy(provider)).await;
        let response = response.map_err(|_| IdentityError::Unavailable)?;
        if response.status != http::StatusCode::OK {
            return Err(match response.status.is_server_error() {
                true => IdentityError::Unavailable,
                false => IdentityError::Refused(format!("UserInfo: status {}", response.status.as_u16())),
            });
        }
        // A signed answer is a JWT, which nobody here has asked for.
        let more = response.json::<serde_json::Map<String, Value>>();
        let more = more.map_err(|_| IdentityError::Refused("UserInfo: no JSON object".to_owned()))?;
        // §5.3.2: of the same person, or it says nothing.
        if more.get("sub").and_then(Value::as_str) != Some(&claims.sub) {
            return Err(IdentityError::Refused("UserInfo: is about somebody else (sub)".to_owned()));
        }
        // What is said to be verified is the address that is beside it.
        if !claims.rest.contains_key("email") {
            claims.rest.remove("email_verified");
        }
        let same_address = claims.rest.get("email").is_none_or(|email| more.get("email") == Some(email));
        for (name, value) in more.into_iter().filter(|(name, _)| same_address || name != "email_verified") {
            claims.rest.entry(name).or_insert(value);
        }
        Ok(())
    }

    async fn redeem(
        &self,
        provider: &IdentityProvider,
        metadata: &Metadata,
        code: &str,
        begun: &Begun,
        redirect_uri: &str,
        now: SystemTime,
    ) -> Result<(SecretString, Option<ProviderTokens>), IdentityError> {
        let fields = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri),
            ("code_verifier", begun.verifier.expose_secret()),
        ];
        let client = metadata.client(provider, redirect_uri);
        let request = token::authenticated(&metadata.token_endpoint, &client, fields, now);
        let request = request.ok_or_else(|| IdentityError::Refused("client secret".to_owned()))?;
        let response = match self.outbound.send(request, &provider_policy(provider)).await {
            Ok(response) => response,
            Err(error @ (outbound::Error::Refused { .. } | outbound::Error::Invalid { .. })) => {
                return Err(IdentityError::Refused(error.to_string()));
            }
            Err(_) => return Err(IdentityError::Unavailable),
        };
        if response.status.is_server_error() || response.status == http::StatusCode::TOO_MANY_REQUESTS {
            return Err(IdentityError::Unavailable);
        }
        if response.status != http::StatusCode::OK {
            return Err(IdentityError::Refused(format!(
                "token endpoint: status {}",
                response.status.as_u16()
            )));
        }
        let answer = response.json::<TokenAnswer>();
        let answer = answer.map_err(|_| IdentityError::Refused("no ID token".to_owned()))?;
        let tokens = match token::classify(&response, now) {
            Outcome::Success(response) if response.usable => Some(ProviderTokens {
                response,
                scopes: provider.scopes.clone(),
                id_token: None,
                client,
                token_endpoint: metadata.token_endpoint.clone(),
                revocation_endpoint: metadata.revocation_endpoint.clone(),
            }),
            _ => None,
        };
        Ok((answer.id_token, tokens))
    }
}

/// OpenID Connect Core §3.1.3.7, what is not checked with the signature.
fn check(provider: &IdentityProvider, claims: &Claims, begun: &Begun) -> Result<(), IdentityError> {
    let refused = |why: &str| Err(IdentityError::Refused(format!("ID token: {why}")));
    if claims.text("nonce") != Some(&begun.nonce) {
        return refused("is not for this sign-in (nonce)");
    }
    let party = claims.text("azp");
    if party.is_some_and(|party| party != provider.client_id)
        || (claims.audiences().count() > 1 && party.is_none())
    {
        return refused("was made for another client (azp)");
    }
    if !is_subject(&claims.sub) {
        return refused("names nobody (sub)");
    }
    Ok(())
}

/// Whether somebody can be called so.
fn is_subject(sub: &str) -> bool {
    !sub.is_empty() && sub.len() <= SUBJECT_MAX && !sub.chars().any(char::is_control)
}

/// Whether the configuration wants to know more before it lets anybody in.
fn lacks_proof(provider: &IdentityProvider, claims: &Claims) -> bool {
    let has = |name: &str| claims.rest.contains_key(name);
    let address = provider.allowed_domains.is_empty() || (has("email") && has("email_verified"));
    let groups = provider.allowed_groups.is_empty() || has(&provider.groups_claim);
    !(address && groups)
}

/// Whether this person is among those whom the configuration lets in.
fn admit(provider: &IdentityProvider, person: &Attributes) -> Result<(), IdentityError> {
    let domain = person.email.rsplit_once('@').map(|(_, domain)| domain.to_ascii_lowercase());
    let in_domain = provider.allowed_domains.is_empty()
        || domain.is_some_and(|domain| provider.allowed_domains.contains(&domain));
    let in_group = provider.allowed_groups.is_empty()
        || person.groups.iter().any(|group| provider.allowed_groups.contains(group));
    if in_domain && in_group { Ok(()) } else { Err(IdentityError::NotAdmitted) }
}
