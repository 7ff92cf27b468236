//! How a user's connection at a route stands, in one place for the page, the API and the command line.
//!
//! Looked at and not tried: nothing is sent and nothing renewed, so that a page with many servers costs none of them a
//! request. What only this process knows, that an upstream was silent a moment ago, is said as far as it goes.
use std::time::{Duration, SystemTime};

use super::prospect::is_alive;
use super::{Connector, connection_key};
use crate::route::Route;
use crate::store::record::{RecordError, Tokens};
use crate::store::{self, Connection};

/// For so long it counts that an upstream did not answer.
const SILENCE: Duration = Duration::from_secs(60);

/// Sealed with a key that is gone, a connection is good for nothing.
pub const UNREADABLE: State = State::NeedsSignIn(Wanted::Ended);

/// A connection, or that there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub state: State,
    /// What there is of a connection, as far as it can be read.
    pub held: Option<Held>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody needs a connection of their own there.
    NotNeeded,
    NotConnected,
    Connected,
    /// It works, and ends then: there is nothing to renew it with.
    Expires(SystemTime),
    /// Only the user can help.
    NeedsSignIn(Wanted),
    /// Nothing is lost, but it does not work for the moment.
    Unavailable(Outage),
}

/// Why the user is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// What there was is good for nothing any more.
    Ended,
    /// The upstream has asked for the user, or for more than it was given.
    Asked,
}

/// What it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Its tokens have run out, and the authorization server has just failed to give others.
    Renewal,
    /// The upstream did not answer when this process asked it last.
    Silence,
}

/// What a user has at an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What the upstream granted.
    pub scopes: Vec<String>,
    pub issuer: String,
    /// When the user connected.
    pub since: SystemTime,
}

/// What an upstream has said to this process of late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LastSaid {
    /// It asked for nothing.
    pub is_open: bool,
    pub silent_at: Option<SystemTime>,
}

impl State {
    /// As the API and the command line spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotNeeded => "not_needed",
            Self::NotConnected => "not_connected",
            Self::Connected => "connected",
            Self::Expires(_) => "expires",
            Self::NeedsSignIn(_) => "needs_sign_in",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl Standing {
    /// Whether the user has to go there before anything works.
    pub fn is_missing(&self) -> bool {
        match self.state {
            State::NotConnected | State::NeedsSignIn(_) => true,
            State::Unavailable(_) => self.held.is_none(),
            State::NotNeeded | State::Connected | State::Expires(_) => false,
        }
    }
}

impl Connector {
    /// How this user's connection at the route stands.
    pub async fn standing(&self, route: &Route, user: &str) -> Result<Standing, RecordError> {
        if !route.credential.is_of_user() || route.is_of_another(Some(user)) {
            return Ok(Standing { state: State::NotNeeded, held: None });
        }
        let (key, said) = (connection_key(user, route), self.last_said(route));
        let is_silent = said.silent_at.is_some_and(|at| self.clock.now() < at + SILENCE);
        Ok(match self.records.connection(&key).await {
            Ok(Some((connection, tokens))) => {
                let mut standing = self.judge(&key, &connection, &tokens).await;
                if is_silent && matches!(standing.state, State::Connected | State::Expires(_)) {
                    standing.state = State::Unavailable(Outage::Silence);
                }
                standing
            }
            Ok(None) => {
                let state = match (is_silent, said.is_open) {
                    (true, _) => State::Unavailable(Outage::Silence),
                    (false, true) => State::NotNeeded,
                    (false, false) => State::NotConnected,
                };
                Standing { state, held: None }
            }
            Err(RecordError::Unreadable) => Standing { state: UNREADABLE, held: None },
            Err(error) => return Err(error),
        })
    }

    /// How the connection under this key stands, wherever its route leads.
    pub async fn judge(&self, key: &str, connection: &Connection, tokens: &Tokens) -> Standing {
        let challenge = self.open_challenge(key, Some(&connection.incarnation)).await;
        let state = state(connection, tokens, challenge.is_some(), self.clock.now());
        let held = Held {
            scopes: tokens.scopes.clone(),
            issuer: tokens.issuer.clone(),
            since: tokens.connected_at.unwrap_or(tokens.obtained_at),
        };
        Standing { state, held: Some(held) }
    }
}

fn state(connection: &Connection, tokens: &Tokens, is_challenged: bool, now: SystemTime) -> State {
    let is_refused = connection.refused >= connection.generation;
    let has_run_out = is_refused || tokens.expires_at.is_some_and(|end| end <= now);
    let is_renewable = tokens.refresh_token.is_some();
    if connection.state == store::State::NeedsReauth
        || !is_alive(tokens, now)
        || (is_refused && !is_renewable)
    {
        return State::NeedsSignIn(Wanted::Ended);
    }
    if is_challenged {
        return State::NeedsSignIn(Wanted::Asked);
    }
    match tokens.expires_at {
        _ if has_run_out && connection.not_before.is_some_and(|until| until > now) => {
            State::Unavailable(Outage::Renewal)
        }
        Some(end) if !is_renewable => State::Expires(end),
        _ => State::Connected,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use secrecy::SecretString;

    use super::*;
    use crate::oauth::client::stub::at;

    fn tokens(refresh_token: Option<&str>, expires_at: Option<u64>) -> Tokens {
        Tokens {
            access_token: SecretString::from("a"),
            refresh_token: refresh_token.map(SecretString::from),
            id_token: None,
            expires_at: expires_at.map(at),
            obtained_at: at(1),
            connected_at: Some(at(1)),
            scopes: Vec::new(),
            requested_scopes: Vec::new(),
            issuer: "https://as.example.com".into(),
            resource: None,
            token_endpoint: "https://as.example.com/token".into(),
            revocation_endpoint: None,
            registration: "r".into(),
            user: "alice".into(),
            route: "demo".into(),
            account: None,
            rotates: None,
        }
    }

    #[test]
    fn every_state_has_its_reason() {
        let (now, fine) = (at(100), Connection::begin("i", 1, Vec::new()));
        let with = |change: fn(&mut Connection)| {
            let mut connection = fine.clone();
            change(&mut connection);
            connection
        };
        let dead = with(|connection| connection.state = store::State::NeedsReauth);
        let backing_off = with(|connection| connection.not_before = Some(at(101)));
        let tried = with(|connection| connection.not_before = Some(at(100)));
        let refused = with(|connection| connection.refused = 1);
        let refused_and_backing_off = with(|connection| {
            connection.refused = 1;
            connection.not_before = Some(at(101));
        });
        let (ended, asked) = (State::NeedsSignIn(Wanted::Ended), State::NeedsSignIn(Wanted::Asked));
        let renewal = State::Unavailable(Outage::Renewal);
        for (connection, refresh_token, end, is_challenged, expected) in [
            (&fine, Some("r"), Some(200), false, State::Connected),
            (&fine, Some("r"), None, false, State::Connected),
            (&fine, None, None, false, State::Connected),
            (&fine, None, Some(200), false, State::Expires(at(200))),
            (&fine, None, Some(100), false, ended),
            (&fine, Some("r"), Some(100), false, State::Connected),
            (&fine, Some("r"), Some(200), true, asked),
            (&dead, Some("r"), Some(200), true, ended),
            (&backing_off, Some("r"), Some(200), false, State::Connected),
            (&backing_off, Some("r"), Some(100), false, renewal),
            (&tried, Some("r"), Some(100), false, State::Connected),
            (&refused, Some("r"), Some(200), false, State::Connected),
            (&refused, None, Some(200), false, ended),
            (&refused_and_backing_off, Some("r"), Some(200), false, renewal),
        ] {
            let found = state(connection, &tokens(refresh_token, end), is_challenged, now);
            assert_eq!(found, expected, "{connection:?} {refresh_token:?} {end:?} {is_challenged}");
        }
    }

    #[test]
    fn what_is_missing_is_what_the_user_has_to_do() {
        let held = Held { scopes: Vec::new(), issuer: String::new(), since: at(1) };
        let missing = |state, held: Option<&Held>| Standing { state, held: held.cloned() }.is_missing();
        assert!(missing(State::NotConnected, None));
        assert!(missing(State::NeedsSignIn(Wanted::Asked), Some(&held)));
        assert!(missing(State::Unavailable(Outage::Silence), None));
        assert!(!missing(State::Unavailable(Outage::Renewal), Some(&held)));
        assert!(!missing(State::Expires(at(1)), Some(&held)) && !missing(State::NotNeeded, None));
    }
}
