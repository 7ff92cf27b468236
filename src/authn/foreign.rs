//! Access tokens of other authorization servers, at routes that trust them: JWTs by their issuer's keys (RFC 9068), any
//! others by asking their issuer (RFC 7662).
//!
//! A token is judged once and remembered by its digest, so that the requests that follow cost one look-up. What is
//! remembered of it is compared with the route every time: another route may want another audience.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::AuthnError;
use crate::config::{Attributes, Introspection, TrustedIssuer, issuer_of as issuer_of_user};
use crate::jose::remote::{KeySets, RemoteError};
use crate::jose::{self, Expected, issuer_of, texts};
use crate::oauth::client::discover::{IssuerMetadata, issuer_metadata};
use crate::oauth::client::token::basic;
use crate::outbound::kept::Kept;
use crate::outbound::{AddressPolicy, Fetched, Outbound, Request};
use crate::route::Route;
use crate::seal;

/// So many tokens are remembered.
const TOKENS: usize = 50_000;
/// And so many that were refused, for so long.
const REFUSED: usize = 50_000;
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// However long a token lives, it is judged again after that.
const JUDGED_FOR: Duration = Duration::from_secs(3600);
/// More issuers than any configuration lists.
const ISSUERS: usize = 256;
/// So many tokens are judged at a time; who waits longer than that for their turn is told to come again.
const AT_A_TIME: usize = 64;
const TURN: Duration = Duration::from_secs(2);
/// Longer tokens are not looked at, bytes.
const LONGEST: usize = 16 * 1024;

/// Whoever judges tokens of others.
pub struct Foreign {
    outbound: Outbound,
    keys: KeySets,
    metadata: Kept<Metadata>,
    judged: Cache<String, Arc<ForeignToken>>,
    refused: Cache<String, SystemTime>,
    turns: Semaphore,
}

/// What another authorization server says.
#[derive(Debug)]
pub struct ForeignToken {
    issuer: String,
    audiences: Vec<String>,
    /// Issuer and subject, as people are called who sign in here through the same issuer.
    pub subject: String,
    pub client: String,
    /// Separated by blanks.
    pub scope: String,
    /// Whether it is the client's own, and acts for no user (RFC 9068 §2.2).
    pub is_program: bool,
    /// What its issuer says in it of the user.
    pub attributes: Arc<Attributes>,
    /// Names the token, not what is in it.
    pub digest: String,
    expires_at: SystemTime,
    judge_again_at: SystemTime,
}

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: Option<String>,
    introspection_endpoint: Option<String>,
}

impl IssuerMetadata for Metadata {
    fn issuer(&self) -> &str {
        &self.issuer
    }
}

/// RFC 7662 §2.2, as far as it is needed.
#[derive(Deserialize)]
struct Introspected {
    active: bool,
    iss: Option<String>,
    sub: Option<String>,
    client_id: Option<String>,
    aud: Option<Value>,
    scope: Option<String>,
    exp: Option<u64>,
    nbf: Option<u64>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Why a token is not judged, or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// Nothing is known against it.
    Unavailable,
    Refused(&'static str),
}

impl From<RemoteError> for Doubt {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Unavailable => Self::Unavailable,
            RemoteError::Token(_) => Self::Refused("is not what its issuer signs for this route"),
        }
    }
}

impl ForeignToken {
    /// Whether it is this issuer's.
    pub(super) fn is_of(&self, trusted: &TrustedIssuer) -> bool {
        self.issuer == trusted.issuer
    }
}

impl Foreign {
    pub fn new(outbound: Outbound) -> Self {
        Self {
            keys: KeySets::new(outbound.clone()),
            outbound,
            metadata: Kept::new(ISSUERS),
            judged: Cache::new(TOKENS),
            refused: Cache::new(REFUSED),
            turns: Semaphore::new(AT_A_TIME),
        }
    }

    /// Who has this token, if the route takes it.
    pub(super) async fn holder(
        &self,
        token: &str,
        route: &Route,
        now: SystemTime,
    ) -> Result<Arc<ForeignToken>, AuthnError> {
        if token.is_empty() || token.len() > LONGEST {
            return Err(AuthnError::Invalid);
        }
        let digest = seal::digest(token);
        let known = self.judged.get(&digest).filter(|known| now < known.judge_again_at);
        self.outbound.count_lookup(Fetched::ForeignToken, known.is_some());
        let known = match known {
            Some(known) => known,
            None => self.judge(token, digest, route, now).await?,
        };
        if now >= known.expires_at {
            return Err(AuthnError::Expired);
        }
        if !known.is_for(route) {
            return Err(AuthnError::Invalid);
        }
        Ok(known)
    }

    async fn judge(
        &self,
        token: &str,
        digest: String,
        route: &Route,
        now: SystemTime,
    ) -> Result<Arc<ForeignToken>, AuthnError> {
        // By route, since another one may trust whom this one does not.
        let refusal = format!("{} {digest}", route.name);
        let is_refused = || self.refused.get(&refusal).is_some_and(|until| now < until);
        if is_refused() {
            return Err(AuthnError::Invalid);
        }
        // Only what is out of date, and not the place of somebody who is asking just now.
        if self.judged.get(&digest).is_some_and(|known| known.judge_again_at <= now) {
            self.judged.remove(&digest);
        }
        let judged = self.judged.get_or_insert_async(&digest, async {
            let Ok(Ok(_turn)) = timeout(TURN, self.turns.acquire()).await else {
                return Err(Doubt::Unavailable);
            };
            // Whoever was first has asked for those who waited.
            if is_refused() {
                return Err(Doubt::Refused("was refused just now"));
            }
            let asked = self.ask(token, &digest, route, now).await.map(Arc::new);
            if let Err(Doubt::Refused(why)) = asked {
                tracing::info!(target: "postern::authn", route = %route.name, why, "a token of a trusted issuer was refused");
                self.refused.insert(refusal.clone(), now + REFUSED_FOR);
            }
            asked
        });
        judged.await.map_err(|doubt| match doubt {
            Doubt::Unavailable => AuthnError::NotReady,
            Doubt::Refused(_) => AuthnError::Invalid,
        })
    }

    /// Asks whoever may know; the first issuer that it can be of decides.
    async fn ask(
        &self,
        token: &str,
        digest: &str,
        route: &Route,
        now: SystemTime,
    ) -> Result<ForeignToken, Doubt> {
        let says = issuer_of(token);
        let mut doubt = Doubt::Refused("names no issuer that the route trusts");
        for trusted in &route.trusted_issuers {
            let is_its = says.as_ref().map(|issuer| *issuer == trusted.issuer);
            let judged = match (&trusted.introspection, is_its) {
                (_, Some(false)) | (None, None) => continue,
                (Some(introspection), _) => self.introspect(token, trusted, introspection, now).await,
                (None, Some(true)) => self.verify(token, trusted, route, now).await,
            };
            match judged {
                Ok(found) => return Ok(ForeignToken { digest: digest.to_owned(), ..found }),
                // What one cannot say now another may know; but then nobody has refused it.
                Err(Doubt::Refused(_)) if doubt == Doubt::Unavailable => {}
                Err(error) => doubt = error,
            }
        }
        Err(doubt)
    }

    async fn verify(
        &self,
        token: &str,
        trusted: &TrustedIssuer,
        route: &Route,
        now: SystemTime,
    ) -> Result<ForeignToken, Doubt> {
        let jwks_uri = match &trusted.jwks_uri {
            Some(uri) => uri.clone(),
            None => {
                let metadata = self.metadata(trusted, now).await?;
                metadata.jwks_uri.clone().ok_or(Doubt::Refused("has an issuer that publishes no keys"))?
            }
        };
        let audience = trusted.audience.as_ref().unwrap_or(&route.resource);
        let expected =
            Expected { issuer: &trusted.issuer, audiences: Some(&[audience]), types: &["at+jwt", "jwt", ""] };
        let claims = self.keys.verify(&jwks_uri, &policy(trusted), token, &expected, now).await?;
        // Where the audience is a client's id, an ID token fits it as well (RFC 9068 §5).
        if ["nonce", "at_hash", "c_hash"].iter().any(|name| claims.rest.contains_key(*name)) {
            return Err(Doubt::Refused("is an ID token"));
        }
        let client = claims.text("client_id").or_else(|| claims.text("azp"));
        let scope = claims.rest.get("scope").or_else(|| claims.rest.get("scp"));
        let scope = texts(scope).join(" ");
        let audiences = claims.audiences().map(str::to_owned).collect();
        let expires_at = at(claims.exp);
        let until = (expires_at, expires_at.min(now + JUDGED_FOR));
        judged(trusted, &claims.sub, client, scope, audiences, &claims.rest, until)
    }

    async fn introspect(
        &self,
        token: &str,
        trusted: &TrustedIssuer,
        introspection: &Introspection,
        now: SystemTime,
    ) -> Result<ForeignToken, Doubt> {
        let endpoint = match &introspection.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => {
                let metadata = self.metadata(trusted, now).await?;
                metadata.introspection_endpoint.clone().ok_or(Doubt::Unavailable)?
            }
        };
        let secret = introspection.client_secret.expose_secret();
        let header = basic(&introspection.client_id, secret).ok_or(Doubt::Unavailable)?;
        let request = Request::post_form(&endpoint, &[("token", token), ("token_type_hint", "access_token")])
            .header(http::header::AUTHORIZATION, header)
            .header(http::header::ACCEPT, http::HeaderValue::from_static("application/json"));
        let response = self.outbound.send(request, &policy(trusted)).await.map_err(|error| {
            tracing::warn!(target: "postern::authn", issuer = %trusted.name, %error, "an issuer cannot be asked about a token");
            Doubt::Unavailable
        })?;
        if response.status != http::StatusCode::OK {
            // Ours to mend: it does not take our credentials, or is out of order.
            tracing::error!(target: "postern::authn", issuer = %trusted.name, status = response.status.as_u16(), "an issuer does not say what a token is");
            return Err(Doubt::Unavailable);
        }
        let found = response.json::<Introspected>().map_err(|_| Doubt::Unavailable)?;
        let expires_at = found.exp.map_or(now + JUDGED_FOR, at);
        let is_early = found.nbf.is_some_and(|nbf| at(nbf) > now + jose::SKEW);
        let is_other = found.iss.is_some_and(|issuer| issuer != trusted.issuer);
        if !found.active || expires_at <= now || is_early || is_other {
            return Err(Doubt::Refused("is not active at its issuer"));
        }
        let (client, subject) = (found.client_id.as_deref(), found.sub.unwrap_or_default());
        let subject = if subject.is_empty() { client.unwrap_or_default().to_owned() } else { subject };
        let audiences = texts(found.aud.as_ref());
        let scope = found.scope.unwrap_or_default();
        let again = expires_at.min(now + introspection.cache);
        judged(trusted, &subject, client, scope, audiences, &found.rest, (expires_at, again))
    }

    async fn metadata(&self, trusted: &TrustedIssuer, now: SystemTime) -> Result<Arc<Metadata>, Doubt> {
        let fetched = self.fetch(trusted);
        self.metadata.get(&trusted.issuer, false, now, fetched).await.ok_or(Doubt::Unavailable)
    }

    async fn fetch(&self, trusted: &TrustedIssuer) -> Option<Metadata> {
        issuer_metadata::<Metadata>(&self.outbound, &policy(trusted), &trusted.issuer, |_| Ok(()))
            .await
            .inspect_err(|error| {
                tracing::warn!(target: "postern::authn", issuer = %trusted.name, %error, "an issuer's metadata cannot be had");
            })
            .ok()
    }

    /// Fetches again what is used and about to be old.
    pub async fn renew(&self, trusted: impl Iterator<Item = &Arc<TrustedIssuer>>, now: SystemTime) {
        for trusted in trusted {
            self.metadata.renew(&trusted.issuer, now, self.fetch(trusted)).await;
        }
        self.keys.renew(now).await;
    }
}

fn judged(
    trusted: &TrustedIssuer,
    subject: &str,
    client: Option<&str>,
    scope: String,
    audiences: Vec<String>,
    said: &Map<String, Value>,
    (expires_at, judge_again_at): (SystemTime, SystemTime),
) -> Result<ForeignToken, Doubt> {
    let printable = |text: &str| !text.is_empty() && text.len() <= 255 && !text.chars().any(char::is_control);
    if !printable(subject) {
        return Err(Doubt::Refused("names nobody"));
    }
    Ok(ForeignToken {
        issuer: trusted.issuer.clone(),
        audiences,
        subject: trusted.user(subject),
        client: client.unwrap_or(&trusted.name).to_owned(),
        scope,
        // A client that goes by the name of a user is none.
        is_program: client == Some(subject),
        attributes: Arc::new(Attributes::of(
            said,
            texts(said.get(&trusted.groups_claim)),
            &trusted.policy_claims,
        )),
        digest: String::new(),
        expires_at,
        judge_again_at,
    })
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(jose::END_OF_TIME))
}

fn policy(trusted: &TrustedIssuer) -> AddressPolicy {
    AddressPolicy::allowing(trusted.private_hosts.iter().cloned())
}

// === impl ForeignToken ===

impl ForeignToken {
    /// As the issuer of this user, or the first that the route trusts, would say it. `user`: issuer and subject, or the subject
    /// alone; `None`: the client itself. `None` where there is no such issuer.
    pub(super) fn assumed(
        route: &Route,
        user: Option<&str>,
        client: &str,
        scope: &str,
        said: &Map<String, Value>,
        now: SystemTime,
    ) -> Option<Self> {
        let user = user.unwrap_or(client);
        let (trusted, subject) = match issuer_of_user(user) {
            Some(issuer) => {
                let trusted = route.trusted_issuers.iter().find(|trusted| trusted.issuer == issuer)?;
                (trusted, user.get(issuer.len() + 1..)?)
            }
            None => (route.trusted_issuers.first()?, user),
        };
        let audience = trusted.audience.as_ref().unwrap_or(&route.resource).clone();
        let until = (now + JUDGED_FOR, now + JUDGED_FOR);
        judged(trusted, subject, Some(client), scope.to_owned(), vec![audience], said, until).ok()
    }

    /// Whether the route takes it: as it is configured now, not as it was when the token was judged.
    pub(super) fn is_for(&self, route: &Route) -> bool {
        let trusted = route.trusted_issuers.iter().find(|trusted| trusted.issuer == self.issuer);
        trusted.is_some_and(|trusted| {
            let audience = trusted.audience.as_ref().unwrap_or(&route.resource);
            self.audiences.contains(audience)
        })
    }
}
