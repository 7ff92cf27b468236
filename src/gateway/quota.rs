//! How many calls somebody makes: how often, and how many at once ([`CallLimit`]).
//!
//! Each instance counts for itself. Where a limit is shared, the store is asked as well, once the instance's own count has said
//! yes: so a flood ends here, and while the store is away the instance's count is what holds. The store is never waited for
//! long.
//!
//! A request counts once its caller is proven, before it is permitted, so that guessing is bounded as well. It is under way
//! until the end of its answer, all events of a stream included. Only streams that clients open for themselves count towards
//! rates alone: they last for hours, and [`super::streams`] bounds them. A limit by tool is for calls of tools; of a body
//! that is held back the tool is known later than the rest, and then it is counted later.
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::Gateway;
use super::context::Target;
use super::inspect::Asked;
use super::tally::{Place, Places, Tally};
use crate::authn::Caller;
use crate::clock::Clock;
use crate::config::{CallLimit, Per};
use crate::mcp::{ItemKind, Message, SUBSCRIPTION};
use crate::respond::Failure;
use crate::route::{Route, Table};
use crate::seal;
use crate::store::quota::micros;
use crate::store::{Quota, Store, StoreError};
use crate::telemetry::Metrics;

/// How long the store may take to answer.
const ANSWER: Duration = Duration::from_millis(250);
/// For how long it is not asked again when it has not, microseconds.
const AWAY: u64 = 1_000_000;
/// A shared place is free so long after its instance was last heard of.
const LEASE: Duration = Duration::from_secs(30);
/// How often an instance says that a place is still taken.
const STILL: Duration = Duration::from_secs(10);
/// Before a place is given back once more when that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// Longer names are counted under their digest, bytes.
const NAME_MAX: usize = 128;

/// The counts of one instance.
pub struct Quotas {
    clock: Clock,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    counts: DashMap<Arc<CallLimit>, Arc<Counts>>,
    /// Until then the store is not asked, microseconds since the epoch.
    away_until: AtomicU64,
}

/// What is counted for one limit.
struct Counts {
    rate: Option<Tally>,
    under_way: Arc<Places>,
}

/// A request, as far as it is counted.
#[derive(Clone, Copy)]
pub struct Counting<'a> {
    pub caller: &'a Caller,
    pub route: &'a Route,
    /// Whose it is.
    pub holder: &'a str,
    pub message: Option<&'a Message>,
    /// It opens a stream, which takes none of the places.
    pub is_stream: bool,
}

/// What was counted of a request, and the places that it has taken.
#[derive(Default)]
pub struct Counted {
    places: Vec<(Place, Option<Lease>)>,
    /// Whether the tool of a body that was held back is among it: the body may be sent again.
    tool: bool,
}

/// A place among all instances; dropped, it is given back.
struct Lease {
    _end: oneshot::Sender<()>,
}

// === impl Quotas ===

impl Quotas {
    pub fn new(clock: Clock, store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { clock, store, metrics, counts: DashMap::new(), away_until: AtomicU64::new(0) }
    }

    /// Forgets the limits that no route has any more. What was counted for the others goes on.
    pub fn keep_only(&self, routes: &Table) {
        let known: HashSet<_> = routes.iter().flat_map(|route| &route.limits).collect();
        self.counts.retain(|limit, _| known.contains(limit));
    }

    /// Counts a request towards `limits`. What it takes is in `counted`, also when it is refused.
    pub async fn count(
        &self,
        counting: Counting<'_>,
        limits: impl Iterator<Item = &Arc<CallLimit>>,
        counted: &mut Counted,
    ) -> Result<(), Failure> {
        for limit in limits {
            let Some(key) = counting.key(limit) else { continue };
            let outcome = self.count_one(limit, &key, counting.is_stream, counted).await;
            if let Err(failure) = outcome {
                let kind = if failure == Failure::TooManyUnderWay { "concurrent" } else { "rate" };
                let labels = [counting.route.label(), &per(limit), kind];
                self.metrics.limited.with_label_values(&labels).inc();
                return Err(failure);
            }
        }
        Ok(())
    }

    async fn count_one(
        &self,
        limit: &Arc<CallLimit>,
        key: &str,
        is_stream: bool,
        counted: &mut Counted,
    ) -> Result<(), Failure> {
        let counts = self.counts_of(limit);
        if let Some(most) = limit.concurrent.filter(|_| !is_stream) {
            let place = counts.under_way.take(key, usize::try_from(most).unwrap_or(usize::MAX));
            let place = place.ok_or(Failure::TooManyUnderWay)?;
            let lease = if limit.shared { self.lease(limit, key, most).await? } else { None };
            counted.places.push((place, lease));
        }
        if let (Some(rate), Some(tally)) = (&limit.rate, &counts.rate) {
            let now = micros(self.clock.now());
            tally.spend(key, now).map_err(|retry_after| Failure::TooManyCalls { retry_after })?;
            if limit.shared
                && let Some(Some(retry_after)) =
                    self.ask(self.store.spend(&shared_key(limit, key), Quota::of(rate))).await
            {
                return Err(Failure::TooManyCalls { retry_after });
            }
        }
        Ok(())
    }

    fn counts_of(&self, limit: &Arc<CallLimit>) -> Arc<Counts> {
        if let Some(known) = self.counts.get(limit) {
            return Arc::clone(&known);
        }
        let counts = self.counts.entry(Arc::clone(limit)).or_insert_with(|| {
            let rate = limit.rate.as_ref().map(|rate| Tally::new(Quota::of(rate)));
            Arc::new(Counts { rate, under_way: Arc::default() })
        });
        Arc::clone(&counts)
    }

    /// A place among all instances. `None`: the store did not say.
    async fn lease(&self, limit: &CallLimit, key: &str, most: u32) -> Result<Option<Lease>, Failure> {
        let (key, Ok(id)) = (shared_key(limit, key), seal::name()) else {
            return Ok(None);
        };
        match self.ask(self.store.hold(&key, &id, most, LEASE)).await {
            Some(true) => {
                let (end, ended) = oneshot::channel();
                tokio::spawn(hold(Arc::clone(&self.store), key, id, most, ended));
                Ok(Some(Lease { _end: end }))
            }
            Some(false) => Err(Failure::TooManyUnderWay),
            None => Ok(None),
        }
    }

    /// What the store says. `None`: it is away, and what this instance counts is all there is.
    async fn ask<T>(&self, question: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
        let now = micros(self.clock.now());
        let away_until = self.away_until.load(Ordering::Relaxed);
        // A time far off is a clock's that went back.
        if now < away_until && away_until - now <= AWAY {
            self.metrics.counted_alone.inc();
            return None;
        }
        match timeout(ANSWER, question).await {
            Ok(Ok(answer)) => Some(answer),
            failed => {
                let reason = failed.ok().and_then(Result::err).map(|error| error.to_string());
                tracing::warn!(
                    target: "postern::limits",
                    reason = reason.as_deref().unwrap_or("no answer in time"),
                    "limits are counted by this instance alone until the store answers"
                );
                self.away_until.store(now.saturating_add(AWAY), Ordering::Relaxed);
                self.metrics.counted_alone.inc();
                None
            }
        }
    }
}

/// Keeps a place among all instances until `ended`, and gives it back.
async fn hold(store: Arc<dyn Store>, key: String, id: String, most: u32, mut ended: oneshot::Receiver<()>) {
    while timeout(STILL, &mut ended).await.is_err() {
        if let Err(error) = store.hold(&key, &id, most, LEASE).await {
            tracing::debug!(target: "postern::limits", %error, "a place could not be kept");
        }
    }
    // A place that is not given back now ends with its lease.
    for _ in 0..3 {
        if store.let_go(&key, &id).await.is_ok() {
            return;
        }
        sleep(AGAIN).await;
    }
}

// === impl Gateway ===

impl Gateway {
    /// Counts a request of this caller, as far as is known what it asks for.
    pub(super) async fn count(
        &self,
        (caller, holder): (&Caller, &str),
        route: &Route,
        asked: &Asked,
        is_stream: bool,
    ) -> Result<Counted, Failure> {
        let mut counted = Counted::default();
        let counting = Counting { caller, route, holder, message: asked.message(), is_stream };
        self.quotas.count(counting, route.limits.iter(), &mut counted).await?;
        Ok(counted)
    }

    /// Counts the call of a tool in a body that was held back.
    pub(super) async fn count_tool(&self, target: &mut Target, message: &Message) -> Result<(), Failure> {
        if std::mem::replace(&mut target.counted.tool, true) {
            return Ok(());
        }
        let (caller, route) = (&target.caller, &target.route);
        let holder = caller.subject();
        let counting = Counting { caller, route, holder, message: Some(message), is_stream: false };
        let limits = route.limits.iter().filter(|limit| limit.is_per(Per::Tool));
        self.quotas.count(counting, limits, &mut target.counted).await
    }
}

/// Whether the message has to be read to count a request: for its tool, or because it says that it opens a stream, which
/// would take no place.
pub fn need_message(limits: &[Arc<CallLimit>], listens: bool) -> bool {
    limits.iter().any(|limit| limit.is_per(Per::Tool) || listens && limit.concurrent.is_some())
}

/// Whether a message asks for a stream.
pub fn is_subscription(message: &Message) -> bool {
    message.method.as_deref() == Some(SUBSCRIPTION)
}

// === impl Counting ===

impl Counting<'_> {
    /// What this request is counted under. `None`: the limit is not about it. Each name says how long it is, so no two keys
    /// meet whatever is in them.
    fn key(&self, limit: &CallLimit) -> Option<String> {
        let mut key = String::from("all");
        for what in &limit.per {
            let name = match what {
                Per::Caller => self.holder,
                Per::Client => self.caller.client(),
                Per::Route => &self.route.name,
                Per::Tool => self.message.and_then(tool)?,
            };
            let name = if name.len() > NAME_MAX { &seal::digest(name) } else { name };
            key.extend([itoa::Buffer::new().format(name.len()), ":", name]);
        }
        Some(key)
    }
}

/// The tool that a message calls.
fn tool(message: &Message) -> Option<&str> {
    message.item.as_ref().filter(|item| item.kind == ItemKind::Tool).map(|item| item.name.as_str())
}

/// What a limit counts apart, as it is written.
fn per(limit: &CallLimit) -> String {
    let names: Vec<&str> = limit.per.iter().map(|what| what.name()).collect();
    names.join(",")
}

/// What instances with the same limit count under, whatever names are in it.
fn shared_key(limit: &CallLimit, key: &str) -> String {
    let rate = limit.rate.map(|rate| (rate.interval.as_micros(), rate.burst));
    let route = limit.route.as_deref().unwrap_or_default();
    seal::digest(&format!("{route}\0{}\0{rate:?}\0{:?}\0{key}", per(limit), limit.concurrent))
}
