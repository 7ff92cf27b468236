//! What memory has of one connection: its token, ready to be sent, and until when.
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderValue, header};
use secrecy::ExposeSecret;

use super::window::{spread, window};
use super::{Credential, Put, Source, Unresolved};
use crate::authn::{Caller, Reach};
use crate::config;
use crate::oauth::client::refresh::Outdated;
use crate::route::Route;
use crate::store::record::Tokens;
use crate::store::{Connection, State};
use crate::telemetry::audit::Act;

/// What we know of a connection.
pub(super) enum Known {
    Unknown,
    Absent,
    NeedsUser { incarnation: Option<Arc<str>> },
    Token(Token),
}

#[derive(Clone)]
pub(super) struct Token {
    value: HeaderValue,
    /// What it may do.
    scopes: Vec<String>,
    pub(super) incarnation: Arc<str>,
    generation: u64,
    pub(super) refreshable: bool,
    /// The upstream has turned it down, at whichever instance.
    pub(super) refused: bool,
    /// From here on a newer one is fetched in the background.
    pub(super) refresh_at: Option<SystemTime>,
    /// From here on it is not sent any more.
    pub(super) dead_at: Option<SystemTime>,
}

// === impl Known ===

impl Known {
    pub(super) fn of(connection: &Connection, tokens: &Tokens) -> Self {
        let needs_user = Self::NeedsUser { incarnation: Some(connection.incarnation.as_str().into()) };
        if connection.state == State::NeedsReauth {
            return needs_user;
        }
        let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", tokens.access_token.expose_secret()))
        else {
            return needs_user;
        };
        value.set_sensitive(true);
        let spread = spread(&connection.incarnation);
        let window = tokens.expires_at.map(|end| window(tokens.obtained_at, end, spread));
        Self::Token(Token {
            value,
            scopes: tokens.scopes.clone(),
            incarnation: connection.incarnation.as_str().into(),
            generation: connection.generation,
            refreshable: tokens.refresh_token.is_some(),
            refused: connection.refused >= connection.generation,
            refresh_at: window.map(|(refresh_at, _)| refresh_at),
            dead_at: window.map(|(_, dead_at)| dead_at),
        })
    }
}

// === impl Token ===

impl Token {
    pub(super) fn outdated(&self) -> Outdated {
        Outdated { incarnation: Arc::clone(&self.incarnation), generation: self.generation }
    }

    pub(super) fn is_covered_by(&self, outdated: &Outdated) -> bool {
        self.incarnation == outdated.incarnation && self.generation <= outdated.generation
    }

    /// A connection is shared by all clients of its user: one that was let in for less does not get more by way of another.
    pub(super) fn released(
        &self,
        caller: &Caller,
        route: &Route,
        key: &Arc<str>,
        act: Act,
    ) -> Result<Credential, Unresolved> {
        let is_asked = caller.reach() == Reach::Authorization
            && matches!(route.credential, config::Credential::Oauth(_));
        let is_missing = |scope: &String| !caller.has_scope(scope) && !route.rules.has_scope(scope);
        match is_asked && self.scopes.iter().any(is_missing) {
            true => Err(Unresolved::NotConsented { scopes: self.scopes.clone() }),
            false => Ok(self.credential(key, act)),
        }
    }

    fn credential(&self, key: &Arc<str>, act: Act) -> Credential {
        let source = Source::Connection {
            key: Arc::clone(key),
            incarnation: Arc::clone(&self.incarnation),
            generation: self.generation,
            refreshable: self.refreshable,
        };
        Credential { put: Put::Header(header::AUTHORIZATION, self.value.clone()), source, act }
    }
}
