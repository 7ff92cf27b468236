//! The token request of programs: a token for another one (RFC 8693, RFC 7523 §2.1, Entra's on-behalf-of form), or a
//! client's own (RFC 6749 §4.4). A [`Wish`] in, a token or a [`Failure`] out. Nothing is kept here.
//!
//! Unlike a refresh token, what is shown here may be shown again, so an answer that got lost costs one more request and no
//! more. What matters instead is that the token is the kind that was asked for, and whose fault it is when there is none.
use std::time::{Duration, SystemTime};

use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::Connector;
use super::discover::{AssertionServer, IssuerMetadata, JWT_BEARER, issuer_metadata};
use super::register::{AuthMethod, Registration, error_code};
use super::token::{authenticated, is_b64token, lifetime, retry_after, token};
use crate::config::{Credential, Exchanger, TENANT};
use crate::outbound::{self, AddressPolicy, Limits, Response};
use crate::route::{Route, provider_policy};
use crate::seal;

/// Types of token (RFC 8693 §3).
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
pub const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
/// Identity Assertion JWT Authorization Grant.
pub const ID_JAG: &str = "urn:ietf:params:oauth:token-type:id-jag";
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// More than any configuration names.
pub(super) const ISSUERS: usize = 256;
/// How long all answers together may take: less than the lease of whoever asks.
const TIME: Duration = Duration::from_secs(8);
/// Longest claims challenge that is passed on, bytes.
const LONGEST_CLAIMS: usize = 4096;
/// RFC 8693 §2.1 and §3.
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// Where to ask, as whom, and for what.
#[derive(Clone)]
pub struct Wish {
    at: Exchanger,
    policy: AddressPolicy,
    grant: Grant,
    /// What has to be had first: it is shown as the grant then.
    first: Option<Box<Wish>>,
    /// URL of the upstream that says where to ask, where nobody else does.
    upstream: Option<String>,
}

/// What is shown.
#[derive(Clone)]
pub enum Grant {
    /// Nothing but the client itself.
    ClientCredentials,
    /// RFC 8693. `requested`: the type of token that is wanted, where one is named.
    Exchange { subject: Shown, actor: Option<Shown>, requested: Option<String> },
    /// RFC 7523 §2.1: the subject's token is the grant.
    Assertion { subject: Shown },
    /// Entra's form of it.
    OnBehalfOf { subject: Shown },
}

/// A token with its type (RFC 8693 §3).
#[derive(Clone)]
pub struct Shown {
    pub token: SecretString,
    pub kind: String,
}

/// What came of it.
pub struct Given {
    /// Fit for an `Authorization: Bearer` header.
    pub token: SecretString,
    /// One second to 24 hours. `None`: the server did not say.
    pub expires_in: Option<Duration>,
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// Nothing is known against anybody; the same may be asked again after so long, at most 300 s.
    Later { retry_after: Option<Duration> },
    /// The server does not take the subject's token. `surely`: it is known to be that.
    Subject { surely: bool },
    /// It wants to see the person, with these claims (OpenID Connect Core §5.5), a JSON object.
    Interaction { claims: Option<String> },
    /// It refuses us, or what it gave is not what was asked for: the operator has to look.
    Refused,
}

/// Of an authorization server, as far as it is needed here.
#[derive(Deserialize)]
pub(super) struct Metadata {
    issuer: String,
    token_endpoint: String,
}

impl IssuerMetadata for Metadata {
    fn issuer(&self) -> &str {
        &self.issuer
    }
}

impl Grant {
    fn subject(&self) -> Option<&Shown> {
        match self {
            Self::ClientCredentials => None,
            Self::Exchange { subject, .. } | Self::Assertion { subject } | Self::OnBehalfOf { subject } => {
                Some(subject)
            }
        }
    }
}

impl Wish {
    /// What a route asks for. `None`: its credential is not exchanged for anything.
    pub fn of(route: &Route, grant: Grant) -> Option<Self> {
        let at = route.credential.exchanger()?.clone();
        Some(Self { at, policy: route.upstream.policy.clone(), grant, first: None, upstream: None })
    }

    /// By way of an identity assertion for this ID token.
    pub fn by_assertion(route: &Route, id_token: SecretString) -> Option<Self> {
        let Credential::IdJag(jag) = &route.credential else { return None };
        let subject = Shown { token: id_token, kind: ID_TOKEN.to_owned() };
        let first = Self {
            at: jag.first.clone(),
            policy: provider_policy(&jag.provider),
            grant: Grant::Exchange { subject, actor: None, requested: Some(ID_JAG.to_owned()) },
            first: None,
            upstream: None,
        };
        let upstream = jag.is_discovered().then(|| route.upstream.url.clone());
        Some(Self { first: Some(Box::new(first)), upstream, ..Self::of(route, Grant::ClientCredentials)? })
    }

    /// Whether it is not yet said in whose tenant.
    pub fn wants_tenant(&self) -> bool {
        self.at.token_endpoint.as_ref().is_some_and(|endpoint| endpoint.contains(TENANT))
    }

    /// As that, in this one.
    pub fn in_tenant(mut self, tenant: &str) -> Self {
        self.at.token_endpoint = self.at.token_endpoint.map(|endpoint| endpoint.replace(TENANT, tenant));
        self
    }

    /// Whose tokens they are.
    pub(super) fn server(&self) -> &str {
        self.upstream.as_deref().unwrap_or_else(|| self.at.audience_of_assertions())
    }

    /// As that, at this server. What is written of whom and what the assertion is for stays.
    fn placed(mut self, server: &AssertionServer) -> Self {
        self.at.issuer = Some(server.issuer.clone());
        self.at.token_endpoint = Some(server.token_endpoint.clone());
        self.upstream = None;
        if let Some(first) = &mut self.first {
            for (written, found) in
                [(&mut first.at.audience, &server.issuer), (&mut first.at.resource, &server.resource)]
            {
                if written.is_empty() {
                    written.push(found.clone());
                }
            }
        }
        self
    }

    /// Names the token that is shown.
    pub(super) fn fingerprint(&self) -> String {
        let grant = self.first.as_ref().map_or(&self.grant, |first| &first.grant);
        grant.subject().map(|subject| seal::digest(subject.token.expose_secret())).unwrap_or_default()
    }
}

impl Connector {
    /// Asks once at each server that has to be asked. No redirect, eight seconds together.
    pub(super) async fn exchange(&self, wish: &Wish, now: SystemTime) -> Result<Given, Failure> {
        let Some(first) = &wish.first else { return self.ask(wish, &wish.grant, TIME, now).await };
        if let Some(upstream) = &wish.upstream {
            let known = wish.first.as_ref().and_then(|first| first.at.resource.first());
            let server = self.redeemer(upstream, &wish.policy, known.map(String::as_str), now).await?;
            return Box::pin(self.exchange(&wish.clone().placed(&server), now)).await;
        }
        let assertion = self.ask(first, &first.grant, TIME / 2, now).await?;
        let subject = Shown { token: assertion.token, kind: ID_JAG.to_owned() };
        let given = self.ask(wish, &Grant::Assertion { subject }, TIME / 2, now).await;
        given.map_err(|failure| match failure {
            // Nobody has anything newer to show.
            Failure::Subject { .. } | Failure::Interaction { .. } => {
                refused("the upstream's authorization server takes no assertion of this provider")
            }
            failure => failure,
        })
    }

    async fn ask(
        &self,
        wish: &Wish,
        grant: &Grant,
        time: Duration,
        now: SystemTime,
    ) -> Result<Given, Failure> {
        let later = || Failure::Later { retry_after: None };
        let endpoint = match (&wish.at.token_endpoint, &wish.at.issuer) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(issuer)) => {
                self.token_endpoint_of(issuer, &wish.policy, now).await.ok_or_else(later)?
            }
            (None, None) => return Err(Failure::Refused),
        };
        let client = self.client_of_wish(wish).await?;
        let scope = wish.at.scopes.join(" ");
        let request = authenticated(&endpoint, &client, fields(wish, grant, &scope), now)
            .ok_or_else(|| refused("no request"))?;
        let request = request.limits(Limits { total: time, ..Limits::default() });
        match self.outbound.send(request, &wish.policy).await {
            Ok(response) => judge(&response, grant, now),
            Err(outbound::Error::Refused { .. } | outbound::Error::Invalid { .. }) => {
                Err(refused("an address that may not be asked"))
            }
            Err(_) => Err(later()),
        }
    }

    async fn token_endpoint_of(
        &self,
        issuer: &str,
        policy: &AddressPolicy,
        now: SystemTime,
    ) -> Option<String> {
        let fetched = async {
            let fetched = issuer_metadata::<Metadata>(&self.outbound, policy, issuer, |_| Ok(())).await;
            fetched
                .inspect_err(|error| {
                    tracing::warn!(target: "postern::exchange", issuer, %error, "an issuer's metadata cannot be had");
                })
                .ok()
        };
        Some(self.exchangers.get(issuer, false, now, fetched).await?.token_endpoint.clone())
    }

    async fn client_of_wish(&self, wish: &Wish) -> Result<Registration, Failure> {
        let at = &wish.at;
        let (id, secret) = (at.client_id.clone(), at.client_secret.clone());
        let client = Registration::new(id, secret, AuthMethod::from(at.auth_method), String::new());
        // Without the store there is no key: that is nobody's fault.
        let keyed = self.with_key(wish.server(), client).await;
        keyed.map_err(|_| Failure::Later { retry_after: None })
    }
}

/// `scope`: the wish's, in one text.
fn fields<'w>(wish: &'w Wish, grant: &'w Grant, scope: &'w str) -> Vec<(&'w str, &'w str)> {
    let mut fields: Vec<(&str, &str)> = Vec::with_capacity(12);
    match grant {
        Grant::ClientCredentials => fields.push(("grant_type", "client_credentials")),
        Grant::Exchange { subject, actor, requested } => {
            fields.extend([
                ("grant_type", EXCHANGE),
                ("subject_token", subject.token.expose_secret()),
                ("subject_token_type", &subject.kind),
            ]);
            fields.extend(requested.as_deref().map(|kind| ("requested_token_type", kind)));
            if let Some(actor) = actor {
                let token = actor.token.expose_secret();
                fields.extend([("actor_token", token), ("actor_token_type", &actor.kind)]);
            }
        }
        Grant::Assertion { subject } => {
            fields.extend([("grant_type", JWT_BEARER), ("assertion", subject.token.expose_secret())]);
        }
        Grant::OnBehalfOf { subject } => fields.extend([
            ("grant_type", JWT_BEARER),
            ("assertion", subject.token.expose_secret()),
            ("requested_token_use", "on_behalf_of"),
        ]),
    }
    let at = &wish.at;
    fields.extend(at.audience.iter().map(|audience| ("audience", audience.as_str())));
    fields.extend(at.resource.iter().map(|resource| ("resource", resource.as_str())));
    if !scope.is_empty() {
        fields.push(("scope", scope));
    }
    fields.extend(at.params.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    fields
}

/// An answer of any status; members of a wrong type count as missing.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    access_token: Value,
    #[serde(default)]
    token_type: Value,
    #[serde(default)]
    issued_token_type: Value,
    #[serde(default)]
    expires_in: Option<Box<RawValue>>,
    #[serde(default)]
    error: Value,
    #[serde(default)]
    claims: Value,
}

/// What an answer means.
fn judge(response: &Response, grant: &Grant, now: SystemTime) -> Result<Given, Failure> {
    let status = response.status;
    let wait = retry_after(response, now);
    let later = || Failure::Later { retry_after: wait };
    if status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    {
        return Err(later());
    }
    if status.is_redirection() {
        return Err(refused("a redirect"));
    }
    // A page of something in between says nothing about anybody.
    let answer = serde_json::from_slice::<Answer>(&response.body).map_err(|_| later())?;
    if let Some(error) = answer.error.as_str() {
        return Err(because(error, &answer, grant, wait));
    }
    if !status.is_success() {
        return Err(refused("no error code"));
    }
    // An assertion is no access token, and says so (RFC 8693 §2.2.1).
    let is_assertion =
        matches!(grant, Grant::Exchange { requested: Some(requested), .. } if requested == ID_JAG);
    let kind = if is_assertion { "N_A" } else { "Bearer" };
    if !answer.token_type.as_str().is_some_and(|said| said.eq_ignore_ascii_case(kind)) {
        return Err(refused("a token_type that does not fit"));
    }
    if let Grant::Exchange { requested, .. } = grant
        && !is_wanted(answer.issued_token_type.as_str().unwrap_or_default(), requested.as_deref())
    {
        return Err(refused("an issued_token_type that was not asked for"));
    }
    // What would renew it stays unread: whoever has the subject's token can ask again.
    let token = token(answer.access_token, is_b64token).ok_or_else(|| refused("no access_token"))?;
    Ok(Given { token, expires_in: answer.expires_in.as_deref().and_then(lifetime) })
}

/// RFC 8693 §2.2.1: it is always said. Where no type was asked for, one that a resource server takes.
fn is_wanted(issued: &str, requested: Option<&str>) -> bool {
    match requested {
        Some(requested) => issued == requested,
        None => issued == ACCESS_TOKEN || issued == JWT,
    }
}

fn because(error: &str, answer: &Answer, grant: &Grant, wait: Option<Duration>) -> Failure {
    let shows_somebody = grant.subject().is_some();
    let is_exchange = matches!(grant, Grant::Exchange { .. });
    match error {
        "temporarily_unavailable" | "slow_down" | "server_error" => Failure::Later { retry_after: wait },
        "interaction_required" | "login_required" | "consent_required" if shows_somebody => {
            tracing::info!(target: "postern::exchange", error, "the authorization server wants to see the person");
            Failure::Interaction { claims: answer.claims.as_str().and_then(claims) }
        }
        "invalid_grant" | "invalid_token" if shows_somebody => Failure::Subject { surely: true },
        // RFC 8693 §2.2.2: of a token that is not valid as well.
        "invalid_request" if is_exchange => Failure::Subject { surely: false },
        error => refused(error_code(error)),
    }
}

/// A claims challenge, written anew: a JSON object and nothing else.
fn claims(text: &str) -> Option<String> {
    let object = serde_json::from_str::<serde_json::Map<String, Value>>(text).ok()?;
    let text = Value::Object(object).to_string();
    (text.len() <= LONGEST_CLAIMS).then_some(text)
}

fn refused(why: &str) -> Failure {
    tracing::error!(target: "postern::exchange", why, "the token endpoint gives no token that can be used: check the route's credential");
    Failure::Refused
}

#[cfg(test)]
mod tests;
