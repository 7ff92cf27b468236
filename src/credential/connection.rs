//! The token of the user's own connection.
//!
//! Memory is a copy of the store: a slot per connection, found by the caller's grant without touching anything else,
//! emptied by the store's events and filled again by the next call. A fresh token costs one map look-up and no lock
//! that outlives it.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use secrecy::SecretString;

use super::known::{Known, Token};
use super::{Ask, Credential, Source, Unresolved};
use crate::authn::Caller;
use crate::map::Shared;
use crate::oauth::client::refresh::{Outdated, Renewed};
use crate::oauth::client::{Connector, connection_key};
use crate::route::Route;
use crate::store::Refusal;
use crate::store::record::RecordError;
use crate::telemetry::audit::Act;

/// More grants or connections than that and the copies are dropped and read again as needed.
const SLOTS_MAX: usize = 100_000;
const RETRY: Duration = Duration::from_secs(1);
/// Tokens that are refused one after the other within that time are all refused.
const INSISTENCE: Duration = Duration::from_secs(60);

/// Connections in memory.
pub struct Connections {
    connector: Arc<Connector>,
    by_grant: Shared<Box<str>, Arc<Slot>>,
    by_key: Shared<Box<str>, Arc<Slot>>,
}

struct Slot {
    key: Arc<str>,
    /// What the key was made of.
    user: Box<str>,
    place: Box<str>,
    known: ArcSwap<Known>,
    /// A refresh ahead of expiry is under way: one is enough.
    renewing: AtomicBool,
    /// What the upstream has refused: not sent again, whatever the store still says about it.
    refused: ArcSwapOption<Outdated>,
    /// The same for a call that could not be sent again, with the time.
    refused_at: ArcSwapOption<(Outdated, SystemTime)>,
    /// No refresh of these tokens before that moment.
    quiet: ArcSwapOption<(Outdated, SystemTime)>,
}

/// A token to be exchanged.
pub(super) struct Subject {
    pub(super) token: SecretString,
    /// Which one it is.
    pub(super) of: Outdated,
    /// The tenant of its user, where the ID token beside it names one (`tid`).
    pub(super) tenant: Option<String>,
}

// === impl Connections ===

impl Connections {
    pub fn new(connector: Arc<Connector>) -> Self {
        Self { connector, by_grant: Shared::default(), by_key: Shared::default() }
    }

    pub(super) async fn resolve(&self, ask: &Ask<'_>) -> Result<Credential, Unresolved> {
        let (caller, route) = (ask.permit.caller(), ask.permit.route());
        // Nobody's connection: the upstream may do without.
        let Some(slot) = self.slot(caller, route) else {
            return Ok(Credential::nothing(Source::Anonymous));
        };
        let (known, act) = self.fresh(&slot, route, ask.refused, ask.now).await?;
        let Some(token) = known.token() else { return Ok(Credential::nothing(Source::Anonymous)) };
        match token.sendable(route, ask.now) {
            Some(sendable) => token.released(sendable, caller, route, &slot.key, act),
            None => Err(token.needs_user()),
        }
    }

    /// Whose tokens are exchanged: key and incarnation of a connection that is there and not known to be dead. Whether its token
    /// is good just now is nobody's business as long as what was exchanged for it is.
    pub(super) async fn standing(
        &self,
        caller: &Caller,
        route: &Route,
    ) -> Result<(Arc<str>, Arc<str>), Unresolved> {
        let slot = self.slot(caller, route).ok_or(Unresolved::NeedsUser { incarnation: None })?;
        let known = self.known(&slot).await?;
        match &*known {
            Known::Token(token) => Ok((Arc::clone(&slot.key), Arc::clone(&token.incarnation))),
            Known::NeedsUser { incarnation } => {
                Err(Unresolved::NeedsUser { incarnation: incarnation.clone() })
            }
            Known::Unknown | Known::Absent => Err(Unresolved::NeedsUser { incarnation: None }),
        }
    }

    /// The token of a connection, to be exchanged. `refused`: the one that its issuer does not take.
    pub(super) async fn subject(
        &self,
        (grant, user): (&str, &str),
        route: &Arc<Route>,
        refused: Option<&Outdated>,
        now: SystemTime,
    ) -> Result<Subject, Unresolved> {
        let slot = self.slot_of(grant, user, route);
        let (known, _) = self.fresh(&slot, route, refused, now).await?;
        let token = known.token().ok_or(Unresolved::NeedsUser { incarnation: None })?;
        let sendable = token.sendable(route, now).ok_or_else(|| token.needs_user())?;
        Ok(Subject { token: sendable.secret(), of: token.outdated(), tenant: token.tenant() })
    }

    /// What there is, its token fit to be sent, and whether it had to be fetched for that. `refused`: the one that is not.
    async fn fresh(
        &self,
        slot: &Arc<Slot>,
        route: &Arc<Route>,
        refused: Option<&Outdated>,
        now: SystemTime,
    ) -> Result<(Arc<Known>, Act), Unresolved> {
        if let Some(refused) = refused {
            Box::pin(self.mark_refused(slot, refused)).await;
        }
        let known = self.known(slot).await?;
        match &*known {
            Known::Absent => {}
            Known::Unknown => return Err(Unresolved::NeedsUser { incarnation: None }),
            Known::NeedsUser { incarnation } => {
                return Err(Unresolved::NeedsUser { incarnation: incarnation.clone() });
            }
            Known::Token(token) => {
                let sendable = token.sendable(route, now).ok_or_else(|| token.needs_user())?;
                if slot.has_refused(token) || sendable.is_dead(now) {
                    return Box::pin(self.renewed(slot, route, &known, token, now)).await;
                }
                if token.refreshable && sendable.is_due(now) {
                    self.renew_ahead(slot, route, token.outdated(), now);
                }
            }
        }
        Ok((known, Act::Inject))
    }

    /// What needs the user is looked at again each time: the user may have been there, and the news be under way.
    async fn known(&self, slot: &Slot) -> Result<Arc<Known>, Unresolved> {
        let known = slot.known.load_full();
        match matches!(*known, Known::Unknown | Known::NeedsUser { .. }) {
            true => Box::pin(self.load(slot)).await,
            false => Ok(known),
        }
    }

    /// Whether the store has tokens that are newer than `sent`: the news of them may still be under way.
    pub async fn has_newer(&self, caller: &Caller, route: &Route, sent: &Source) -> bool {
        let Some(slot) = self.slot(caller, route) else {
            return false;
        };
        match self.load(&slot).await.as_deref() {
            Ok(Known::Token(token)) => sent.outdated().is_none_or(|sent| !token.is_covered_by(&sent)),
            _ => false,
        }
    }

    /// The upstream refused the token of this generation, and there is no newer one: never used again.
    pub async fn refuse(&self, source: &Source) {
        let Source::Connection { key, incarnation, generation, .. } = source else {
            return;
        };
        self.tell_refused(key, incarnation, *generation, Refusal::Final).await;
        // Whether or not the store could be told, this process knows.
        if let Some(slot) = self.by_key.get(&**key) {
            slot.refused.store(source.outdated().map(Arc::new));
        }
    }

    /// The upstream takes what it is sent.
    pub fn accepted(&self, source: &Source) {
        if let Source::Connection { key, .. } = source
            && let Some(slot) = self.by_key.get(&**key)
            // To replace something takes a look at what every thread is reading.
            && slot.refused_at.load().is_some()
        {
            slot.refused_at.store(None);
        }
    }

    /// Fetches a newer token than the one refused, for calls to come; they wait for it. `false`: this one was fetched
    /// because the one before was refused a moment ago, so that a newer one is worth nothing either.
    pub async fn renew_refused(&self, route: &Arc<Route>, source: &Source, now: SystemTime) -> bool {
        let Source::Connection { key, .. } = source else {
            return true;
        };
        let slot = self.by_key.get(&**key).map(|slot| Arc::clone(&slot));
        if let (Some(slot), Some(outdated)) = (slot, source.outdated()) {
            if slot.was_fetched_for_a_refusal(&outdated, now) {
                return false;
            }
            self.mark_refused(&slot, &outdated).await;
            slot.refused_at.store(Some(Arc::new((outdated.clone(), now))));
            self.renew_ahead(&slot, route, outdated, now);
        }
        true
    }

    /// The upstream has turned these tokens down: neither this process nor any other sends them again.
    async fn mark_refused(&self, slot: &Slot, outdated: &Outdated) {
        let before = slot.refused.swap(Some(Arc::new(outdated.clone())));
        if before.as_deref() != Some(outdated) {
            let Outdated { incarnation, generation } = outdated;
            self.tell_refused(&slot.key, incarnation, *generation, Refusal::Renewable).await;
        }
    }

    async fn tell_refused(&self, key: &str, incarnation: &str, generation: u64, refusal: Refusal) {
        let store = self.connector.records.store();
        if let Err(error) = store.refuse(key, incarnation, generation, refusal).await {
            tracing::warn!(target: "postern::credential", %error, "a refused token could not be marked in the store");
        }
    }

    /// The store says this connection may have changed.
    pub fn changed(&self, key: &str) {
        if let Some(slot) = self.by_key.get(key) {
            slot.known.store(Arc::new(Known::Unknown));
        }
    }

    /// Events were missed, or there are too many copies: every one is read again.
    pub fn forget_all(&self) {
        self.by_key.clear();
        self.by_grant.clear();
    }

    /// `None`: a program that acts for no user, where nobody's connection serves all.
    fn slot(&self, caller: &Caller, route: &Route) -> Option<Arc<Slot>> {
        Some(self.slot_of(caller.grant(), route.owner.as_deref().or(caller.user())?, route))
    }

    fn slot_of(&self, grant: &str, user: &str, route: &Route) -> Arc<Slot> {
        if let Some(slot) = self.by_grant.get(grant)
            && slot.is_at(user, route)
        {
            return Arc::clone(&slot);
        }
        if self.by_grant.len().max(self.by_key.len()) >= SLOTS_MAX {
            self.forget_all();
        }
        let key = connection_key(user, route);
        let slot = Arc::clone(
            &self.by_key.entry(key.as_str().into()).or_insert_with(|| Slot::new(&key, user, route)),
        );
        self.by_grant.insert(grant.into(), Arc::clone(&slot));
        // A slot that is found by grant alone would hear of nothing any more.
        if !self.by_key.contains_key(key.as_str()) {
            self.by_grant.remove(grant);
        }
        slot
    }

    async fn load(&self, slot: &Slot) -> Result<Arc<Known>, Unresolved> {
        let before = slot.known.load_full();
        let known = match self.connector.records.connection(&slot.key).await {
            Ok(None) => Known::Absent,
            Ok(Some((connection, tokens))) => Known::of(&connection, &tokens),
            Err(RecordError::Unreadable) => {
                let connection = self.connector.records.store().connection(&slot.key).await;
                let incarnation =
                    connection.ok().flatten().map(|connection| connection.incarnation.as_str().into());
                Known::NeedsUser { incarnation }
            }
            Err(_) => return Err(Unresolved::Unavailable { retry_after: RETRY }),
        };
        Ok(slot.replace(&before, known))
    }

    async fn renewed(
        &self,
        slot: &Arc<Slot>,
        route: &Arc<Route>,
        before: &Arc<Known>,
        token: &Token,
        now: SystemTime,
    ) -> Result<(Arc<Known>, Act), Unresolved> {
        let outdated = token.outdated();
        if let Some(retry_after) = slot.quiet(&outdated, now) {
            return Err(Unresolved::Unavailable { retry_after });
        }
        match self.connector.renew(route, &slot.key, &outdated).await {
            Renewed::Tokens(tokens) => {
                let known = slot.replace(before, Known::of(&tokens.0, &tokens.1));
                match known.token().filter(|newer| !newer.is_covered_by(&outdated)) {
                    Some(newer) => match newer.sendable(route, now) {
                        Some(sendable) if sendable.is_dead(now) => {
                            Err(Unresolved::Unavailable { retry_after: RETRY })
                        }
                        Some(_) => Ok((known, Act::Refresh)),
                        None => Err(token.needs_user()),
                    },
                    None => Err(token.needs_user()),
                }
            }
            Renewed::NeedsUser => {
                slot.replace(before, Known::NeedsUser { incarnation: Some(Arc::clone(&token.incarnation)) });
                Err(token.needs_user())
            }
            Renewed::Later { retry_after } => {
                slot.be_quiet(outdated, now + retry_after);
                Err(Unresolved::Unavailable { retry_after })
            }
        }
    }

    fn renew_ahead(&self, slot: &Arc<Slot>, route: &Arc<Route>, outdated: Outdated, now: SystemTime) {
        if slot.quiet(&outdated, now).is_some() || slot.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (connector, slot, route) = (Arc::clone(&self.connector), Arc::clone(slot), Arc::clone(route));
        tokio::spawn(async move {
            let before = slot.known.load_full();
            match connector.renew(&route, &slot.key, &outdated).await {
                Renewed::Tokens(tokens) => {
                    slot.replace(&before, Known::of(&tokens.0, &tokens.1));
                }
                // What is there serves until it expires.
                Renewed::NeedsUser => {}
                Renewed::Later { retry_after } => slot.be_quiet(outdated, now + retry_after),
            }
            slot.renewing.store(false, Ordering::Release);
        });
    }
}

// === impl Slot ===

impl Slot {
    fn new(key: &str, user: &str, route: &Route) -> Arc<Self> {
        Arc::new(Self {
            key: key.into(),
            user: user.into(),
            place: route.place.as_str().into(),
            known: ArcSwap::from_pointee(Known::Unknown),
            renewing: AtomicBool::new(false),
            refused: ArcSwapOption::empty(),
            refused_at: ArcSwapOption::empty(),
            quiet: ArcSwapOption::empty(),
        })
    }

    /// The grant's route may lead to another server by now, to which these tokens are not shown, and a program may act
    /// for another user.
    fn is_at(&self, user: &str, route: &Route) -> bool {
        *self.user == *user && *self.place == *route.place
    }

    /// Remembers `known`, unless something came in since `before` was read: then it serves its reader alone.
    fn replace(&self, before: &Arc<Known>, known: Known) -> Arc<Known> {
        let known = Arc::new(known);
        self.known.compare_and_swap(before, Arc::clone(&known));
        known
    }

    fn has_refused(&self, token: &Token) -> bool {
        token.refused || self.refused.load().as_deref().is_some_and(|refused| token.is_covered_by(refused))
    }

    fn was_fetched_for_a_refusal(&self, outdated: &Outdated, now: SystemTime) -> bool {
        self.refused_at.load().as_deref().is_some_and(|(before, at)| {
            before.incarnation == outdated.incarnation
                && before.generation < outdated.generation
                && now < *at + INSISTENCE
        })
    }

    /// How long these tokens are not to be refreshed. It says nothing about newer ones.
    fn quiet(&self, outdated: &Outdated, now: SystemTime) -> Option<Duration> {
        let quiet = self.quiet.load();
        let (_, until) = quiet.as_deref().filter(|(tokens, _)| tokens == outdated)?;
        until.duration_since(now).ok().filter(|left| !left.is_zero())
    }

    fn be_quiet(&self, outdated: Outdated, until: SystemTime) {
        self.quiet.store(Some(Arc::new((outdated, until))));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::oauth::client::stub::Bench;

    #[test]
    fn refusals_one_after_the_other_count_together_for_a_minute() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let tokens = |incarnation: &str, generation| Outdated { incarnation: incarnation.into(), generation };
        let slot = Slot {
            key: "k".into(),
            user: "alice".into(),
            place: "p".into(),
            known: ArcSwap::from_pointee(Known::Unknown),
            renewing: AtomicBool::new(false),
            refused: ArcSwapOption::empty(),
            refused_at: ArcSwapOption::from_pointee((tokens("i", 1), at(0))),
            quiet: ArcSwapOption::empty(),
        };
        assert!(slot.was_fetched_for_a_refusal(&tokens("i", 2), at(59)));
        assert!(!slot.was_fetched_for_a_refusal(&tokens("i", 2), at(60)), "it has served since");
        assert!(!slot.was_fetched_for_a_refusal(&tokens("i", 1), at(1)), "the very same");
        assert!(!slot.was_fetched_for_a_refusal(&tokens("other", 2), at(1)), "of another authorization");
    }

    #[test]
    fn no_number_of_grants_or_connections_takes_more_room_than_the_bound() {
        let bench = Bench::new();
        let (connections, route) = (Connections::new(Arc::new(bench.connector())), bench.route());
        let held = || connections.by_grant.len().max(connections.by_key.len());
        let many = if std::env::var_os("POSTERN_SOAK").is_some() { 1_000_000 } else { 2 * SLOTS_MAX + 1 };
        for number in 0..many {
            connections.slot_of(&format!("grant {number}"), "alice", &route);
            assert!(held() <= SLOTS_MAX);
        }
        // One program that acts for everybody.
        for number in 0..many {
            connections.slot_of("grant", &number.to_string(), &route);
            assert!(held() <= SLOTS_MAX);
        }
    }
}
