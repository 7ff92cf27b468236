//! Credentials that are exchanged for something, in memory: a slot per token, found by the caller's grant, emptied by the
//! store's events. A token that is good costs a look at whose it is and one at the slot; the token endpoint is asked when
//! there is none, and ahead of its end in the background. [`Whose`] says what is shown there.
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::connection::Connections;
use super::whose::Whose;
use super::window::{spread, window};
use super::{Ask, Credential, Put, Source, Unresolved};
use crate::map::Shared;
use crate::oauth::client::Connector;
use crate::oauth::client::exchange::Failure;
use crate::oauth::client::exchanged::{Exchanged, Issued, Worn, exchange_key};
use crate::oauth::client::refresh::Outdated;
use crate::route::Route;
use crate::telemetry::audit::Act;

/// More grants or tokens than that and the copies are dropped and read again as needed.
const SLOTS_MAX: usize = 100_000;
const RETRY: Duration = Duration::from_secs(1);
/// No attempt ahead of the end so soon after one that failed.
const QUIET: Duration = Duration::from_secs(30);
/// A token that came in place of a refused one so short a time ago is not replaced once more.
const INSISTENCE: Duration = Duration::from_secs(30);

/// Exchanged tokens in memory.
pub struct ExchangedTokens {
    exchanges: Exchanges,
    by_grant: Shared<Box<str>, Place>,
    by_key: Shared<Box<str>, Arc<Slot>>,
}

/// What tokens are exchanged with.
#[derive(Clone)]
struct Exchanges {
    connector: Arc<Connector>,
    connections: Arc<Connections>,
}

/// What a grant's slot was found by.
struct Place {
    /// Whatever the configuration says since is another route.
    route: Weak<Route>,
    user: Box<str>,
    of: Box<str>,
    slot: Arc<Slot>,
}

struct Slot {
    key: Arc<str>,
    ready: ArcSwapOption<Ready>,
    /// One attempt ahead of the end is enough.
    renewing: AtomicBool,
    /// None before that moment.
    quiet_until: ArcSwapOption<SystemTime>,
    /// What the upstream has turned down, and when.
    refused: ArcSwapOption<(Arc<str>, SystemTime)>,
}

/// A token, ready to be sent.
struct Ready {
    id: Arc<str>,
    value: HeaderValue,
    /// From here on a newer one is fetched in the background.
    refresh_at: SystemTime,
    /// From here on it is not sent any more.
    good_until: SystemTime,
}

// === impl ExchangedTokens ===

impl ExchangedTokens {
    pub fn new(connector: Arc<Connector>, connections: Arc<Connections>) -> Self {
        let exchanges = Exchanges { connector, connections };
        Self { exchanges, by_grant: Shared::default(), by_key: Shared::default() }
    }

    pub(super) async fn resolve(&self, ask: &Ask<'_>) -> Result<Credential, Unresolved> {
        let (route, now) = (ask.permit.route(), ask.now);
        let whose = Whose::of(ask, &self.exchanges.connections).await?;
        let slot = self.slot(&whose, route);
        if let Some(refused) = ask.refused {
            slot.refuse(&refused.incarnation, now);
        }
        if let Some(ready) = slot.ready(now) {
            if now >= ready.refresh_at {
                self.renew_ahead(&slot, &ready, &whose, route, now);
            }
            return Ok(slot.credential(&ready, &whose, route, (now, Act::Inject)));
        }
        let (worn, act) =
            (slot.worn(), if slot.ready.load().is_some() { Act::Refresh } else { Act::Acquire });
        let ready = Box::pin(self.exchanges.fetch(&slot, &whose, route, worn.as_ref(), now)).await?;
        Ok(slot.credential(&ready, &whose, route, (now, act)))
    }

    /// The upstream refused the token for a call that cannot be sent again: calls to come get another one.
    pub fn refuse(&self, source: &Source, now: SystemTime) {
        if let Source::Exchanged { key, id, .. } = source
            && let Some(slot) = self.by_key.get(&**key)
        {
            slot.refuse(id, now);
        }
    }

    /// Whether there is a copy of this token.
    pub fn has(&self, key: &str) -> bool {
        self.by_key.get(key).is_some_and(|slot| slot.ready.load().is_some())
    }

    /// The store has no such token any more: its user has signed out. Newer ones need no news, since the copy says when it ends.
    pub fn forget(&self, key: &str) {
        if let Some(slot) = self.by_key.get(key) {
            slot.ready.store(None);
        }
    }

    /// Events were missed, or there are too many copies.
    pub fn forget_all(&self) {
        self.by_key.clear();
        self.by_grant.clear();
    }

    fn slot(&self, whose: &Whose<'_>, route: &Arc<Route>) -> Arc<Slot> {
        let grant = &*whose.grant;
        if let Some(place) = self.by_grant.get(grant)
            && place.is(whose, route)
        {
            return Arc::clone(&place.slot);
        }
        if self.by_grant.len().max(self.by_key.len()) >= SLOTS_MAX {
            self.forget_all();
        }
        let (name, upstream, facts) = (&route.name, &route.upstream.url, route.credential.facts());
        let key = exchange_key(&whose.user, &[name, upstream, whose.origin(), &facts]);
        let slot =
            Arc::clone(&self.by_key.entry(key.as_str().into()).or_insert_with(|| Arc::new(Slot::new(&key))));
        let place = Place {
            route: Arc::downgrade(route),
            user: (*whose.user).into(),
            of: whose.origin().into(),
            slot: Arc::clone(&slot),
        };
        self.by_grant.insert(grant.into(), place);
        // A slot that is found by grant alone would hear of nothing any more.
        if !self.by_key.contains_key(key.as_str()) {
            self.by_grant.remove(grant);
        }
        slot
    }

    fn renew_ahead(
        &self,
        slot: &Arc<Slot>,
        ready: &Ready,
        whose: &Whose<'_>,
        route: &Arc<Route>,
        now: SystemTime,
    ) {
        let is_quiet = slot.quiet_until.load().as_deref().is_some_and(|until| now < *until);
        if is_quiet || slot.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (exchanges, slot, route) = (self.exchanges.clone(), Arc::clone(slot), Arc::clone(route));
        let (whose, worn) = (whose.kept(), Worn { id: Arc::clone(&ready.id), refused: false });
        tokio::spawn(async move {
            let fetched = exchanges.fetch(&slot, &whose, &route, Some(&worn), now).await;
            // What is there serves until it ends.
            if let Err(why) = fetched {
                let wait = match why {
                    Unresolved::Unavailable { retry_after } => retry_after,
                    _ => QUIET,
                };
                slot.quiet_until.store(Some(Arc::new(now + wait)));
            }
            slot.renewing.store(false, Ordering::Release);
        });
    }
}

// === impl Exchanges ===

impl Exchanges {
    async fn fetch(
        &self,
        slot: &Slot,
        whose: &Whose<'_>,
        route: &Arc<Route>,
        worn: Option<&Worn>,
        now: SystemTime,
    ) -> Result<Arc<Ready>, Unresolved> {
        let mut refused: Option<Outdated> = None;
        loop {
            let (wish, shown) =
                whose.shown(&self.connector, &self.connections, route, refused.as_ref(), now).await?;
            let failure = match self.connector.exchanged(&slot.key, &wish, worn).await {
                Exchanged::Token(token) => return slot.take(&token, route).ok_or(Unresolved::Refused),
                Exchanged::Failed(failure) => failure,
            };
            match (failure, shown) {
                (Failure::Later { retry_after }, _) => {
                    let retry_after = retry_after.unwrap_or(RETRY);
                    return Err(Unresolved::Unavailable { retry_after });
                }
                // Perhaps a newer one is taken.
                (Failure::Subject { .. }, Some(shown)) if refused.is_none() => refused = Some(shown),
                (Failure::Subject { surely: true }, Some(shown)) => {
                    return Err(Unresolved::NeedsUser { incarnation: Some(shown.incarnation) });
                }
                (Failure::Interaction { claims }, Some(shown)) => {
                    return Err(Unresolved::NeedsProvider { incarnation: shown.incarnation, claims });
                }
                (Failure::Subject { .. } | Failure::Interaction { .. } | Failure::Refused, _) => {
                    return Err(Unresolved::Refused);
                }
            }
        }
    }
}

// === impl Place ===

impl Place {
    fn is(&self, whose: &Whose<'_>, route: &Arc<Route>) -> bool {
        std::ptr::eq(self.route.as_ptr(), Arc::as_ptr(route))
            && *self.user == *whose.user
            && *self.of == *whose.origin()
    }
}

// === impl Slot ===

impl Slot {
    fn new(key: &str) -> Self {
        Self {
            key: key.into(),
            ready: ArcSwapOption::empty(),
            renewing: AtomicBool::new(false),
            quiet_until: ArcSwapOption::empty(),
            refused: ArcSwapOption::empty(),
        }
    }

    fn ready(&self, now: SystemTime) -> Option<Arc<Ready>> {
        let ready = self.ready.load_full().filter(|ready| now < ready.good_until)?;
        let is_refused = self.refused.load().as_deref().is_some_and(|(id, _)| *id == ready.id);
        (!is_refused).then_some(ready)
    }

    fn refuse(&self, id: &Arc<str>, now: SystemTime) {
        let is_known = self.refused.load().as_deref().is_some_and(|(known, _)| known == id);
        if !is_known {
            self.refused.store(Some(Arc::new((Arc::clone(id), now))));
        }
    }

    /// What is not to be had from the store once more.
    fn worn(&self) -> Option<Worn> {
        self.refused.load().as_deref().map(|(id, _)| Worn { id: Arc::clone(id), refused: true })
    }

    /// Remembers a token. `None`: it makes no header.
    fn take(&self, token: &Issued, route: &Route) -> Option<Arc<Ready>> {
        let format = &route.credential.exchanger()?.format;
        let text = Zeroizing::new(format.replace("{value}", token.token.expose_secret()));
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        let (refresh_at, _) = window(token.obtained_at, token.good_until, spread(&token.id));
        let ready = Ready { id: Arc::clone(&token.id), value, refresh_at, good_until: token.good_until };
        let ready = Arc::new(ready);
        self.ready.store(Some(Arc::clone(&ready)));
        Some(ready)
    }

    fn credential(
        &self,
        ready: &Ready,
        whose: &Whose<'_>,
        route: &Route,
        (now, act): (SystemTime, Act),
    ) -> Credential {
        let put = match route.credential.exchanger() {
            Some(at) => Put::Header(at.header.clone(), ready.value.clone()),
            None => Put::Nothing,
        };
        let refused = self.refused.load();
        let source = Source::Exchanged {
            key: Arc::clone(&self.key),
            id: Arc::clone(&ready.id),
            renewable: refused.as_deref().is_none_or(|(_, at)| now >= *at + INSISTENCE),
            of: whose.connection(),
        };
        Credential { put, source, act }
    }
}
