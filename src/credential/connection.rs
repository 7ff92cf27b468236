//! The token of the user's own connection.
//!
//! Memory is a copy of the store: a slot per connection, found by the caller's grant without touching anything else,
//! emptied by the store's events and filled again by the next call. A fresh token costs two map look-ups and no lock
//! that outlives them.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use http::{HeaderValue, header};
use secrecy::ExposeSecret;

use super::{Credential, Source, Unresolved};
use crate::authn::Caller;
use crate::oauth::client::refresh::{Outdated, Renewed};
use crate::oauth::client::{Connector, connection_key};
use crate::route::Route;
use crate::store::record::{RecordError, Tokens};
use crate::store::{Connection, State};

/// More grants than that and the copies are dropped and read again as needed.
const SLOTS_MAX: usize = 100_000;
const RETRY: Duration = Duration::from_secs(1);

/// Connections in memory.
pub struct Connections {
    connector: Arc<Connector>,
    by_grant: DashMap<Box<str>, Arc<Slot>>,
    by_key: DashMap<Box<str>, Arc<Slot>>,
}

struct Slot {
    key: Arc<str>,
    state: ArcSwap<Known>,
}

/// What we know of a connection.
enum Known {
    Unknown,
    Absent,
    NeedsUser,
    Token(Token),
}

#[derive(Clone)]
struct Token {
    value: HeaderValue,
    incarnation: Arc<str>,
    generation: u64,
    refreshable: bool,
    /// From here on a newer one is fetched in the background.
    refresh_at: Option<SystemTime>,
    /// From here on it is not sent any more.
    dead_at: Option<SystemTime>,
}

// === impl Connections ===

impl Connections {
    pub fn new(connector: Arc<Connector>) -> Self {
        Self {
            connector,
            by_grant: DashMap::new(),
            by_key: DashMap::new(),
        }
    }

    /// `refused`: tokens that the upstream has just turned down.
    pub(super) async fn resolve(
        &self,
        caller: &Caller,
        route: &Arc<Route>,
        refused: Option<&Outdated>,
        now: SystemTime,
    ) -> Result<Credential, Unresolved> {
        let slot = self.slot(caller, &route.name);
        let mut known = slot.state.load_full();
        // What needs the user is looked at again each time: the user may have been there, and the news be under way.
        if matches!(*known, Known::Unknown | Known::NeedsUser) {
            known = self.load(&slot).await?;
        }
        match &*known {
            Known::Absent => Ok(Credential {
                header: None,
                source: Source::Anonymous,
            }),
            Known::NeedsUser | Known::Unknown => Err(Unresolved::NeedsUser),
            Known::Token(token) if refused.is_some_and(|refused| token.is_covered_by(refused)) => {
                self.renewed(&slot, route, token, false, now).await
            }
            Known::Token(token) if token.dead_at.is_none_or(|end| now < end) => {
                if token.refreshable && token.refresh_at.is_some_and(|at| now >= at) {
                    self.renew_ahead(&slot, route, token.outdated());
                }
                Ok(token.credential(&slot.key))
            }
            Known::Token(token) => self.renewed(&slot, route, token, token.refreshable, now).await,
        }
    }

    /// Whether a user whom we took for not connected is, by now: the news from the store may still be under way.
    pub async fn has_appeared(&self, caller: &Caller, route: &Route) -> bool {
        let slot = self.slot(caller, &route.name);
        matches!(self.load(&slot).await.as_deref(), Ok(Known::Token(_)))
    }

    /// The upstream refused the token of this generation, and there is no newer one: never used again.
    pub async fn refuse(&self, source: &Source) {
        let Source::Connection {
            key,
            incarnation,
            generation,
            ..
        } = source
        else {
            return;
        };
        if let Err(error) = self
            .connector
            .records
            .store()
            .refuse(key, incarnation, *generation)
            .await
        {
            tracing::warn!(target: "postern::credential", %error, "a refused token could not be marked in the store");
        }
        // Whether or not the store could be told, this process knows.
        if let Some(slot) = self.by_key.get(&**key) {
            let current = slot.state.load();
            if matches!(&**current, Known::Token(token) if token.generation == *generation && token.incarnation == *incarnation)
            {
                slot.state.store(Arc::new(Known::NeedsUser));
            }
        }
    }

    /// Fetches a newer token than the one refused, for calls to come.
    pub fn renew_refused(&self, route: &Arc<Route>, source: &Source) {
        let Source::Connection { key, .. } = source else {
            return;
        };
        if let (Some(slot), Some(outdated)) = (
            self.by_key.get(&**key).map(|slot| Arc::clone(&slot)),
            source.outdated(),
        ) {
            self.renew_ahead(&slot, route, outdated);
        }
    }

    /// The store says this connection may have changed.
    pub fn changed(&self, key: &str) {
        if let Some(slot) = self.by_key.get(key) {
            slot.state.store(Arc::new(Known::Unknown));
        }
    }

    /// Events were missed, or there are too many copies: every one is read again.
    pub fn forget_all(&self) {
        // In this order, so that no slot stays findable by grant that no event can reach.
        self.by_key.clear();
        self.by_grant.clear();
    }

    fn slot(&self, caller: &Caller, route: &str) -> Arc<Slot> {
        if let Some(slot) = self.by_grant.get(caller.grant()) {
            return Arc::clone(&slot);
        }
        if self.by_grant.len() > SLOTS_MAX {
            self.forget_all();
        }
        let key = connection_key(caller.subject(), route);
        let fresh = || {
            Arc::new(Slot {
                key: key.as_str().into(),
                state: ArcSwap::from_pointee(Known::Unknown),
            })
        };
        let slot = Arc::clone(&self.by_key.entry(key.as_str().into()).or_insert_with(fresh));
        self.by_grant.insert(caller.grant().into(), Arc::clone(&slot));
        slot
    }

    async fn load(&self, slot: &Slot) -> Result<Arc<Known>, Unresolved> {
        let before = slot.state.load_full();
        let copy = match self.connector.records.connection(&slot.key).await {
            Ok(None) => Known::Absent,
            Ok(Some((connection, tokens))) => Known::of(&connection, &tokens),
            Err(RecordError::Unreadable) => Known::NeedsUser,
            Err(_) => return Err(Unresolved::Unavailable { retry_after: RETRY }),
        };
        let copy = Arc::new(copy);
        // A change that came in between empties the slot again: then this copy serves this call alone.
        slot.state.compare_and_swap(&before, Arc::clone(&copy));
        Ok(copy)
    }

    async fn renewed(
        &self,
        slot: &Arc<Slot>,
        route: &Arc<Route>,
        token: &Token,
        patient: bool,
        now: SystemTime,
    ) -> Result<Credential, Unresolved> {
        let outdated = token.outdated();
        match self.connector.renew(route, &slot.key, &outdated).await {
            Renewed::Tokens(tokens) => {
                let known = Arc::new(Known::of(&tokens.0, &tokens.1));
                slot.state.store(Arc::clone(&known));
                match &*known {
                    Known::Token(token)
                        if !token.is_covered_by(&outdated) && token.dead_at.is_none_or(|end| now < end) =>
                    {
                        Ok(token.credential(&slot.key))
                    }
                    Known::Token(_) if patient => Err(Unresolved::Unavailable { retry_after: RETRY }),
                    _ => Err(Unresolved::NeedsUser),
                }
            }
            Renewed::NeedsUser => {
                slot.state.store(Arc::new(Known::NeedsUser));
                Err(Unresolved::NeedsUser)
            }
            Renewed::Later { retry_after } => Err(Unresolved::Unavailable { retry_after }),
        }
    }

    fn renew_ahead(&self, slot: &Arc<Slot>, route: &Arc<Route>, outdated: Outdated) {
        let (connector, slot, route) = (Arc::clone(&self.connector), Arc::clone(slot), Arc::clone(route));
        tokio::spawn(async move {
            if let Renewed::Tokens(tokens) = connector.renew(&route, &slot.key, &outdated).await {
                slot.state.store(Arc::new(Known::of(&tokens.0, &tokens.1)));
            }
        });
    }
}

// === impl Known ===

impl Known {
    fn of(connection: &Connection, tokens: &Tokens) -> Self {
        if connection.state == State::NeedsReauth {
            return Self::NeedsUser;
        }
        let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", tokens.access_token.expose_secret()))
        else {
            return Self::NeedsUser;
        };
        value.set_sensitive(true);
        let window = tokens.expires_at.map(|end| window(tokens.obtained_at, end));
        Self::Token(Token {
            value,
            incarnation: connection.incarnation.as_str().into(),
            generation: connection.generation,
            refreshable: tokens.refresh_token.is_some(),
            refresh_at: window.map(|(refresh_at, _)| refresh_at),
            dead_at: window.map(|(_, dead_at)| dead_at),
        })
    }
}

/// When to refresh ahead and when to stop sending, for a token valid from `from` to `until`. Both margins shrink with
/// the lifetime, so that tokens of two seconds work as well as those of a day.
fn window(from: SystemTime, until: SystemTime) -> (SystemTime, SystemTime) {
    let lifetime = until.duration_since(from).unwrap_or_default();
    let ahead = (lifetime / 10).max(Duration::from_secs(60)).min(lifetime / 4);
    let margin = Duration::from_secs(5).min(lifetime / 10);
    (until - ahead, until - margin)
}

// === impl Token ===

impl Token {
    fn outdated(&self) -> Outdated {
        Outdated {
            incarnation: Arc::clone(&self.incarnation),
            generation: self.generation,
        }
    }

    fn is_covered_by(&self, outdated: &Outdated) -> bool {
        self.incarnation == outdated.incarnation && self.generation <= outdated.generation
    }

    fn credential(&self, key: &Arc<str>) -> Credential {
        let source = Source::Connection {
            key: Arc::clone(key),
            incarnation: Arc::clone(&self.incarnation),
            generation: self.generation,
            refreshable: self.refreshable,
        };
        Credential {
            header: Some((header::AUTHORIZATION, self.value.clone())),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )]
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn windows_shrink_with_the_lifetime() {
        let at = |seconds: f64| UNIX_EPOCH + Duration::from_secs_f64(seconds);
        assert_eq!(window(at(0.0), at(3600.0)), (at(3240.0), at(3595.0)));
        assert_eq!(window(at(0.0), at(300.0)), (at(240.0), at(295.0)));
        assert_eq!(window(at(0.0), at(2.0)), (at(1.5), at(1.8)));
    }
}
