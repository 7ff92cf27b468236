//! What memory has of one connection: its token, ready to be sent, and until when.
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderValue, header};
use secrecy::{ExposeSecret, SecretString};

use super::window::{spread, window};
use super::{Credential, Put, Source, Unresolved};
use crate::authn::{Caller, Reach};
use crate::config::{self, InjectedToken};
use crate::jose::unverified;
use crate::oauth::client::refresh::Outdated;
use crate::route::Route;
use crate::store::record::Tokens;
use crate::store::{Connection, State};
use crate::telemetry::audit::Act;

const BEARER: &str = "Bearer ";

/// What we know of a connection.
pub(super) enum Known {
    Unknown,
    Absent,
    NeedsUser { incarnation: Option<Arc<str>> },
    Token(Token),
}

#[derive(Clone)]
pub(super) struct Token {
    access: Sendable,
    id: Option<Sendable>,
    /// What it may do.
    scopes: Vec<String>,
    pub(super) incarnation: Arc<str>,
    generation: u64,
    pub(super) refreshable: bool,
    /// The upstream has turned it down, at whichever instance.
    pub(super) refused: bool,
}

/// One of the tokens of a connection.
#[derive(Clone)]
pub(super) struct Sendable {
    value: HeaderValue,
    /// From here on a newer one is fetched in the background.
    refresh_at: Option<SystemTime>,
    /// From here on it is not sent any more.
    dead_at: Option<SystemTime>,
}

// === impl Known ===

impl Known {
    pub(super) fn of(connection: &Connection, tokens: &Tokens) -> Self {
        let needs_user = Self::NeedsUser { incarnation: Some(connection.incarnation.as_str().into()) };
        if connection.state == State::NeedsReauth {
            return needs_user;
        }
        let spread = spread(&connection.incarnation);
        let times = tokens.expires_at.map(|end| window(tokens.obtained_at, end, spread));
        let Some(access) = Sendable::of(&tokens.access_token, times) else {
            return needs_user;
        };
        let id = tokens.id_token.as_ref().and_then(|id| {
            let times = window(id.obtained_at, id.expires_at, spread);
            Sendable::of(&id.token, Some(times)).map(|sendable| match tokens.obtained_at > times.0 {
                // A refresh that should have brought a newer one did not.
                true => Sendable { refresh_at: None, ..sendable },
                false => sendable,
            })
        });
        Self::Token(Token {
            access,
            id,
            scopes: tokens.scopes.clone(),
            incarnation: connection.incarnation.as_str().into(),
            generation: connection.generation,
            refreshable: tokens.refresh_token.is_some(),
            refused: connection.refused >= connection.generation,
        })
    }

    pub(super) fn token(&self) -> Option<&Token> {
        match self {
            Self::Token(token) => Some(token),
            Self::Unknown | Self::Absent | Self::NeedsUser { .. } => None,
        }
    }
}

// === impl Sendable ===

impl Sendable {
    /// `times`: when it is renewed, and when it is sent no more. `None`: no header can carry it.
    fn of(token: &SecretString, times: Option<(SystemTime, SystemTime)>) -> Option<Self> {
        let mut value = HeaderValue::try_from([BEARER, token.expose_secret()].concat()).ok()?;
        value.set_sensitive(true);
        Some(Self { value, refresh_at: times.map(|(at, _)| at), dead_at: times.map(|(_, at)| at) })
    }

    /// In the header that the route wants.
    fn put(&self, route: &Route) -> Put {
        let config::Credential::UserHeader(header) = &route.credential else {
            return Put::Header(header::AUTHORIZATION, self.value.clone());
        };
        let secret = self.value.to_str().ok().and_then(|value| value.strip_prefix(BEARER));
        match secret.and_then(|secret| header.value(secret)) {
            Some(value) => Put::Header(header.name.clone(), value),
            None => Put::Nothing,
        }
    }

    /// As its issuer gave it.
    pub(super) fn secret(&self) -> SecretString {
        let line = self.value.to_str().unwrap_or_default();
        SecretString::from(line.strip_prefix(BEARER).unwrap_or(line))
    }

    pub(super) fn is_dead(&self, now: SystemTime) -> bool {
        self.dead_at.is_some_and(|end| now >= end)
    }

    pub(super) fn is_due(&self, now: SystemTime) -> bool {
        self.refresh_at.is_some_and(|at| now >= at)
    }
}

// === impl Token ===

impl Token {
    /// What this route sends of it. `None`: there is no such token, and no refresh will bring one.
    pub(super) fn sendable(&self, route: &Route, now: SystemTime) -> Option<&Sendable> {
        match route.credential.of_provider() {
            Some((_, InjectedToken::Id)) => {
                self.id.as_ref().filter(|id| id.refresh_at.is_some() || !id.is_dead(now))
            }
            _ => Some(&self.access),
        }
    }

    pub(super) fn outdated(&self) -> Outdated {
        Outdated { incarnation: Arc::clone(&self.incarnation), generation: self.generation }
    }

    /// `tid` of the ID token, which was verified when it came.
    pub(super) fn tenant(&self) -> Option<String> {
        let token = self.id.as_ref()?.secret();
        unverified(token.expose_secret())?.text("tid").map(str::to_owned)
    }

    /// The user has to be there to get another one.
    pub(super) fn needs_user(&self) -> Unresolved {
        Unresolved::NeedsUser { incarnation: Some(Arc::clone(&self.incarnation)) }
    }

    pub(super) fn is_covered_by(&self, outdated: &Outdated) -> bool {
        self.incarnation == outdated.incarnation && self.generation <= outdated.generation
    }

    /// A connection is shared by all clients of its user: one that was let in for less does not get more by way of another.
    pub(super) fn released(
        &self,
        sendable: &Sendable,
        caller: &Caller,
        route: &Route,
        key: &Arc<str>,
        act: Act,
    ) -> Result<Credential, Unresolved> {
        // Whoever shares a connection has said so to the operator.
        let is_asked = caller.reach() == Reach::Authorization
            && route.owner.is_none()
            && matches!(route.credential, config::Credential::Oauth(_));
        let is_missing = |scope: &String| !caller.has_scope(scope) && !route.rules.has_scope(scope);
        match is_asked && self.scopes.iter().any(is_missing) {
            true => Err(Unresolved::NotConsented { scopes: self.scopes.clone() }),
            false => Ok(self.credential(sendable, route, key, act)),
        }
    }

    fn credential(&self, sendable: &Sendable, route: &Route, key: &Arc<str>, act: Act) -> Credential {
        let source = Source::Connection {
            key: Arc::clone(key),
            incarnation: Arc::clone(&self.incarnation),
            generation: self.generation,
            refreshable: self.refreshable,
        };
        Credential { put: sendable.put(route), source, act }
    }
}
