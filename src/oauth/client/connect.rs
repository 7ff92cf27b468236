//! Taking a user to an upstream's authorization server and back.
//!
//! [`Connector::begin`], after consent, makes the `state`, bound to user and browser session, single use, ten minutes;
//! [`Connector::complete`] takes the answer, and sends the code nowhere before browser, state and issuer are known to be right (RFC 9207 §2.4).
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::authorize::{Pkce, authorization_url, check_issuer};
use super::exchanged::forget_exchanged;
use super::prospect::Plan;
use super::register::RegisterError;
use super::token::{self, Outcome, Presented, TokenResponse};
use super::{Connector, connection_key, issuer_key};
use crate::config::{Credential, Profile};
use crate::outbound::AddressPolicy;
use crate::route::{Route, Table};
use crate::seal;
use crate::store::Kind;
use crate::store::record::{RecordError, Take, Tokens, Typed};

const PENDING_TTL: Duration = Duration::from_secs(600);
/// How long a disconnection is remembered: longer than anything that was under way.
const DISCONNECTED: Duration = Duration::from_secs(24 * 3600);
/// How long a connection is kept that nobody uses. Every refresh begins it anew.
pub const CONNECTION_TTL: Duration = Duration::from_secs(400 * 24 * 3600);

/// An authorization under way (store record, found by the digest of its `state`).
#[derive(Serialize, Deserialize)]
struct Pending {
    route: String,
    /// Where the route led when it was begun.
    upstream: String,
    user: String,
    session: String,
    plan: Plan,
    #[serde(serialize_with = "crate::store::record::expose")]
    verifier: SecretString,
    redirect_uri: String,
    registration_key: String,
    resume: serde_json::Value,
}

impl Typed for Pending {
    const KIND: Kind = Kind::Pending;
}

/// What came back with the browser.
pub struct Returning<'a> {
    pub state: &'a str,
    pub code: Option<&'a str>,
    pub iss: Option<&'a str>,
    pub error: Option<&'a str>,
}

/// A finished authorization and what it was begun for.
pub struct Completed {
    pub resume: serde_json::Value,
    /// What the connection may do.
    pub outcome: Result<Vec<String>, ConnectError>,
}

/// Why an answer is not taken at all. Nothing was sent anywhere and nothing used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallbackError {
    #[error("this authorization is not known, was finished already, or has expired")]
    Unknown,
    #[error("this authorization was begun by another user or in another browser")]
    NotYours,
    #[error("the store cannot be reached")]
    Unavailable,
}

/// Why an authorization failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the authorization server said no")]
    Denied,
    #[error("the answer is not from the authorization server that was asked")]
    Issuer,
    #[error("registration failed: {0}")]
    Register(#[from] RegisterError),
    #[error("the code could not be redeemed: {0}")]
    Token(String),
    #[error("nobody gives tokens for this upstream")]
    Unexplained,
    #[error("the user was there several times for the same")]
    TooOften,
    #[error("out of reach just now")]
    Unavailable,
}

impl Connector {
    /// Begins an authorization; returns the URL the browser goes to. `resume` comes back from [`Connector::complete`].
    pub async fn begin(
        &self,
        route: &Route,
        plan: Plan,
        user: &str,
        session: &str,
        resume: serde_json::Value,
    ) -> Result<String, ConnectError> {
        if !self.may_visit(&connection_key(user, route), &plan.scopes).await {
            return Err(ConnectError::TooOften);
        }
        let server = &plan.discovered.server;
        let registered = self.registration(route, server).await;
        let (registration_key, registration) = registered.map_err(|error| {
            self.forget_upstream(route);
            match !server.is_published && !error.is_transient() {
                true => {
                    self.nobody_gives_tokens(route);
                    ConnectError::Unexplained
                }
                false => error.into(),
            }
        })?;
        let redirect_uri = self.redirect_uri(&issuer_key(&server.issuer));
        let pkce = Pkce::new(seal::random().map_err(|_| ConnectError::Unavailable)?);
        let state = seal::token().map_err(|_| ConnectError::Unavailable)?;
        let profile = profile_of(route, &server.issuer);
        let none = BTreeMap::new();
        let configured = match &route.credential {
            Credential::Oauth(oauth) => &oauth.authorization_params,
            _ => &none,
        };
        let url = authorization_url(
            server,
            &registration.client_id,
            &redirect_uri,
            state.expose_secret(),
            &pkce.challenge,
            plan.discovered.resource.as_deref(),
            &plan.scopes,
            profile,
            configured,
        );
        let pending = Pending {
            route: route.name.clone(),
            upstream: route.upstream.url.clone(),
            user: user.to_owned(),
            session: session.to_owned(),
            verifier: pkce.verifier,
            redirect_uri,
            registration_key,
            resume,
            plan,
        };
        let key = seal::digest(state.expose_secret());
        self.records.put(&key, 0, &pending, PENDING_TTL).await.map_err(|_| ConnectError::Unavailable)?;
        Ok(url)
    }

    /// Takes the browser back. `key` is the part of the callback URL that names the issuer.
    pub async fn complete(
        &self,
        routes: &Table,
        key: &str,
        returning: &Returning<'_>,
        user: &str,
        session: &str,
    ) -> Result<Completed, CallbackError> {
        let record = seal::digest(returning.state);
        let unavailable = |_| CallbackError::Unavailable;
        let seen = self
            .records
            .get::<Pending>(&record)
            .await
            .map_err(unavailable)?
            .ok_or(CallbackError::Unknown)?
            .value;
        let same_session = bool::from(seen.session.as_bytes().ct_eq(session.as_bytes()));
        if seen.user != user || !same_session {
            return Err(CallbackError::NotYours);
        }
        if issuer_key(&seen.plan.discovered.server.issuer) != key {
            return Err(CallbackError::Unknown);
        }
        let Take::Fresh(pending) = self.records.take::<Pending>(&record).await.map_err(unavailable)? else {
            return Err(CallbackError::Unknown);
        };
        let pending = pending.value;
        // Whoever changed the route meanwhile did not ask this user.
        let route = routes.by_name(&pending.route).filter(|route| route.upstream.url == pending.upstream);
        let route = route.ok_or(CallbackError::Unknown)?;
        let outcome = self.redeem(route, &pending, returning).await;
        if outcome.as_ref().is_err_and(|error| !matches!(error, ConnectError::Denied)) {
            self.forget_upstream(route);
        }
        tracing::info!(target: "audit", event = "connect", user, route = %pending.route, issuer = %pending.plan.discovered.server.issuer, ok = outcome.is_ok());
        Ok(Completed { resume: pending.resume, outcome })
    }

    /// Ends a user's connection for good, here first and then, as far as it can be done, at the authorization server.
    /// Says whether there was one.
    pub async fn disconnect(&self, user: &str, route: &Route) -> Result<bool, RecordError> {
        let (name, policy) = (&route.name, &route.issuer_policy);
        self.end(&connection_key(user, route), user, name, policy, &route.credential).await
    }

    /// As [`Connector::disconnect`], for the connection under this key, wherever its route leads by now.
    pub async fn end(
        &self,
        key: &str,
        user: &str,
        route: &str,
        policy: &AddressPolicy,
        credential: &Credential,
    ) -> Result<bool, RecordError> {
        let found = match self.records.connection(key).await {
            Err(RecordError::Unreadable) => None,
            found => found?,
        };
        // Also where there is none: one may be on its way.
        self.records.disconnect(key, DISCONNECTED).await?;
        forget_exchanged(&self.records, user).await?;
        self.forget_visits(key).await;
        tracing::info!(target: "audit", event = "disconnect", user, route);
        let Some((_, tokens)) = found else {
            return Ok(false);
        };
        let at = (tokens.issuer.as_str(), tokens.token_endpoint.as_str());
        if let Ok(Some(registration)) = self.client_of(credential, &tokens.registration, at).await {
            let now = self.clock.now();
            token::revoke(&self.outbound, policy, &registration, &tokens, now).await;
        }
        Ok(true)
    }

    async fn redeem(
        &self,
        route: &Route,
        pending: &Pending,
        returning: &Returning<'_>,
    ) -> Result<Vec<String>, ConnectError> {
        let discovered = &pending.plan.discovered;
        // First of all, for errors too: an answer from elsewhere says nothing (RFC 9207 §2.4).
        check_issuer(&discovered.server, returning.iss).map_err(|_| ConnectError::Issuer)?;
        if returning.error.is_some() {
            return Err(ConnectError::Denied);
        }
        let code = returning.code.ok_or(ConnectError::Denied)?;
        let grant =
            Presented::Code { code, verifier: &pending.verifier, redirect_uri: &pending.redirect_uri };
        let endpoint = &discovered.server.token_endpoint;
        let at = (discovered.server.issuer.as_str(), endpoint.as_str());
        let client = self.client_of(&route.credential, &pending.registration_key, at).await;
        let Ok(Some(client)) = client else { return Err(ConnectError::Unavailable) };
        let now = self.clock.now();
        let response = match token::request(
            &self.outbound,
            &route.issuer_policy,
            endpoint,
            &client,
            grant,
            discovered.resource.as_deref(),
            now,
        )
        .await
        {
            Outcome::Success(response) if response.usable => response,
            Outcome::Success(_) => {
                return Err(ConnectError::Token("the access token cannot be sent in a header".into()));
            }
            Outcome::CleanTransient { .. } | Outcome::Ambiguous => return Err(ConnectError::Unavailable),
            Outcome::UnknownClient => {
                self.forget_client(&route.credential, &discovered.server.issuer, &client).await;
                return Err(ConnectError::Token("invalid_client".into()));
            }
            Outcome::Dead => return Err(ConnectError::Token("invalid_grant".into())),
            Outcome::Config(error) => return Err(ConnectError::Token(error)),
        };
        let profile = profile_of(route, &discovered.server.issuer);
        let tokens = tokens(response, pending, profile, now);
        let key = connection_key(&pending.user, route);
        let incarnation = seal::name().map_err(|_| ConnectError::Unavailable)?;
        // First: the first call may go through before this one is back.
        self.visited(&key, &incarnation, &pending.plan).await;
        let connected = self.records.connect_as(&key, &incarnation, &tokens, CONNECTION_TTL).await;
        connected.map_err(|_| ConnectError::Unavailable)?;
        Ok(tokens.scopes)
    }
}

/// How the authorization server that this route leads to deviates from the standards.
pub(super) fn profile_of(route: &Route, issuer: &str) -> &'static Profile {
    match &route.credential {
        Credential::Oauth(oauth) => oauth.profile_at(issuer),
        _ => Profile::of_issuer(issuer),
    }
}

fn tokens(response: TokenResponse, pending: &Pending, profile: &Profile, now: SystemTime) -> Tokens {
    let discovered = &pending.plan.discovered;
    Tokens {
        access_token: response.access_token,
        refresh_token: response.refresh_token,
        id_token: None,
        expires_at: response.expires_in.map(|lifetime| now + lifetime),
        obtained_at: now,
        connected_at: Some(now),
        scopes: response.scope.map_or_else(|| pending.plan.scopes.clone(), |scopes| profile.split(scopes)),
        requested_scopes: pending.plan.scopes.clone(),
        issuer: discovered.server.issuer.clone(),
        resource: discovered.resource.clone(),
        token_endpoint: discovered.server.token_endpoint.clone(),
        revocation_endpoint: discovered.server.revocation_endpoint.clone(),
        registration: pending.registration_key.clone(),
        user: pending.user.clone(),
        route: pending.route.clone(),
        account: None,
        rotates: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::oauth::client::discover::Discovered;
    use crate::oauth::client::stub::{at, server_at};

    #[test]
    fn pom_b18_what_was_granted_is_kept_and_not_what_was_asked_for() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let pending = Pending {
            route: "demo".into(),
            upstream: "https://mcp.example.com/mcp".into(),
            user: "alice".into(),
            session: "s".into(),
            plan: Plan {
                discovered: Discovered {
                    server: server_at("https://as.example.com"),
                    resource: Some("https://mcp.example.com/mcp".into()),
                    scopes: words("read write"),
                },
                scopes: words("read write"),
                step_up: None,
            },
            verifier: "v".into(),
            redirect_uri: String::new(),
            registration_key: String::new(),
            resume: serde_json::Value::Null,
        };
        // RFC 6749 §5.1: a server that grants what was asked for need not say so.
        for (said, granted) in
            [(Some("read"), "read"), (Some("read extra"), "read extra"), (None, "read write")]
        {
            let response = TokenResponse {
                access_token: "a".into(),
                refresh_token: None,
                id_token: None,
                expires_in: None,
                scope: said.map(words),
                usable: true,
            };
            let kept = tokens(response, &pending, Profile::of_issuer(""), at(7));
            assert_eq!(kept.scopes, words(granted), "{said:?}");
            assert_eq!(kept.requested_scopes, words("read write"), "{said:?}");
        }
    }
}
