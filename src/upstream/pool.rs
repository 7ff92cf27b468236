//! The peers of each route that lists some: names → vetted addresses → the one for this request. Addresses are looked up beside
//! the requests ([`health`](super::health)), and a reload keeps what is known of those that stay.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::balance::{Busy, Choice, Member, Peer, millis};
use super::resolve::{FRESH, STALE};
use crate::clock::Clock;
use crate::config::TcpRoute;
use crate::map::Map;
use crate::outbound::{Outbound, Place};
use crate::route::{self, Route, Table, Upstream};

/// What the name service says is good for less is asked for once a second.
const LEAST: Duration = Duration::from_secs(1);
/// When a name is asked for again that was not answered.
const AGAIN: Duration = Duration::from_secs(5);
/// Those that were taken out and are still remembered, at most.
const LEAVING_MOST: usize = 64;

/// The pools of all routes. No request waits for another.
pub struct Pools {
    outbound: Outbound,
    pub(super) clock: Clock,
    by_route: ArcSwap<Map<String, Arc<Pool>>>,
    /// Others are there.
    pub(super) changed: Notify,
}

/// The peers of one route.
pub struct Pool {
    /// Of the route.
    pub(super) name: String,
    pub(super) upstream: Arc<Upstream>,
    pub(super) settings: route::Pool,
    members: ArcSwap<Members>,
    turn: AtomicU64,
    /// What each name stands for, by host and port.
    names: Mutex<HashMap<(String, u16), Known>>,
    looking_up: tokio::sync::Mutex<()>,
    /// Somebody looks after it.
    pub(super) is_watched: AtomicBool,
}

/// What is chosen from.
#[derive(Default)]
pub struct Members {
    pub present: Vec<Member>,
    /// They have the sessions that were begun there, and get nothing new.
    pub leaving: Vec<Leaving>,
}

/// A peer that was taken out.
#[derive(Clone)]
pub struct Leaving {
    pub peer: Arc<Peer>,
    /// Milliseconds since 1970.
    since: u64,
}

#[derive(Clone)]
struct Known {
    addresses: Vec<Place>,
    since: SystemTime,
}

/// Why a request has no peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPeer {
    /// The one that has its session is gone.
    OfSession,
    /// None is left.
    AtAll,
}

// === impl Pools ===

impl Pools {
    pub fn new(outbound: Outbound, clock: Clock) -> Self {
        Self { outbound, clock, by_route: ArcSwap::default(), changed: Notify::new() }
    }

    /// These routes have pools from now on. Peers that stay keep their health and their counts.
    pub fn use_routes(&self, routes: &Table, tcp: &[TcpRoute]) {
        let before = self.by_route.load_full();
        let now = self.clock.now();
        let mut pools = Map::default();
        let tcp = tcp.iter().map(|route| (&route.name, Arc::new(Upstream::new(&route.upstream))));
        let of_requests = routes.configured().map(|route| (&route.name, Arc::clone(&route.upstream)));
        for (name, upstream) in of_requests.chain(tcp) {
            if let Some(pool) = Pool::new(name, &upstream, before.get(name).map(Arc::as_ref), now) {
                pools.insert(name.clone(), Arc::new(pool));
            }
        }
        self.by_route.store(Arc::new(pools));
        self.changed.notify_one();
    }

    pub fn all(&self) -> Vec<Arc<Pool>> {
        self.by_route.load().values().map(Arc::clone).collect()
    }

    /// The peer of a request at this route, which has some. `key` is asked where something stays together; `begun_at`: where the
    /// session was begun.
    pub async fn place(
        &self,
        route: &Arc<Route>,
        begun_at: Option<SocketAddr>,
        key: impl Fn(&route::Pool) -> u64,
        now: SystemTime,
    ) -> Result<Busy, NoPeer> {
        let pools = self.by_route.load();
        if let Some(pool) = pools.get(&route.name).filter(|pool| pool.is_of(&route.upstream))
            && pool.is_looked_up()
        {
            return pool.place(begun_at, key, now);
        }
        drop(pools);
        Box::pin(self.place_first(route, begun_at, key)).await
    }

    /// The peer of a connection at the route of bytes of this name.
    pub async fn place_bytes(&self, name: &str, key: u64) -> Result<Busy, NoPeer> {
        let pool = self.by_route.load().get(name).map(Arc::clone).ok_or(NoPeer::AtAll)?;
        self.place_at(&pool, None, |_| key).await
    }

    /// As that, where nothing is known yet, or the route of this request is another by now.
    async fn place_first(
        &self,
        route: &Arc<Route>,
        begun_at: Option<SocketAddr>,
        key: impl Fn(&route::Pool) -> u64,
    ) -> Result<Busy, NoPeer> {
        let upstream = &route.upstream;
        let known = self.by_route.load().get(&route.name).filter(|pool| pool.is_of(upstream)).map(Arc::clone);
        let made = || Pool::new(&route.name, upstream, None, self.clock.now()).map(Arc::new);
        let pool = known.or_else(made).ok_or(NoPeer::AtAll)?;
        self.place_at(&pool, begun_at, key).await
    }

    async fn place_at(
        &self,
        pool: &Pool,
        begun_at: Option<SocketAddr>,
        key: impl Fn(&route::Pool) -> u64,
    ) -> Result<Busy, NoPeer> {
        if pool.is_looked_up() {
            return pool.place(begun_at, key, self.clock.now());
        }
        let _turn = pool.looking_up.lock().await;
        if !pool.is_looked_up() {
            self.look_up_now(pool).await;
        }
        pool.place(begun_at, key, self.clock.now())
    }

    /// Looks up what the names of its peers stand for. Returns when that is to be done again.
    pub(super) async fn look_up(&self, pool: &Pool) -> Duration {
        let _turn = pool.looking_up.lock().await;
        self.look_up_now(pool).await
    }

    async fn look_up_now(&self, pool: &Pool) -> Duration {
        let mut again = FRESH;
        let mut asked = JoinSet::new();
        for peer in &pool.settings.settings.peers {
            let (outbound, policy) = (self.outbound.clone(), pool.settings.policy.clone());
            let (host, port) = (peer.host.clone(), peer.port);
            asked.spawn(async move {
                let vetted = match port {
                    0 => outbound.vet_service(&host, &policy).await,
                    _ => outbound.vet_for_a_while(&host, port, &policy).await,
                };
                ((host, port), vetted)
            });
        }
        while let Some(answered) = asked.join_next().await {
            let now = self.clock.now();
            match answered {
                Ok((name, Ok(vetted))) => {
                    again = vetted.fresh_for.map_or(again, |fresh| again.min(fresh.max(LEAST)));
                    pool.names().insert(name, Known { addresses: vetted.addresses, since: now });
                }
                Ok((name, Err(error))) => {
                    tracing::warn!(target: "postern::upstream", route = %pool.name, %error, "addresses of a peer not known");
                    again = again.min(AGAIN);
                    let age = |known: &Known| now.duration_since(known.since).unwrap_or_default();
                    pool.names().retain(|known, held| *known != name || age(held) < STALE);
                }
                Err(error) => tracing::error!(%error, "a look-up was cut off"),
            }
        }
        pool.take_in(self.clock.now());
        again
    }
}

// === impl Pool ===

impl Pool {
    /// `None`: the route has no peers. `before`: what the same route had.
    fn new(name: &str, upstream: &Arc<Upstream>, before: Option<&Pool>, now: SystemTime) -> Option<Self> {
        let settings = upstream.pool.as_deref()?.clone();
        let kept =
            before.filter(|before| before.is_of(upstream) && before.settings.policy == settings.policy);
        let configured = |name: &(String, u16)| {
            settings.settings.peers.iter().any(|peer| (&peer.host, peer.port) == (&name.0, name.1))
        };
        let mut names = kept.map(|before| before.names().clone()).unwrap_or_default();
        names.retain(|name, _| configured(name));
        let pool = Self {
            name: name.to_owned(),
            upstream: Arc::clone(upstream),
            settings,
            members: kept.map_or_else(ArcSwap::default, |before| ArcSwap::new(before.members())),
            turn: AtomicU64::new(0),
            names: Mutex::new(names),
            looking_up: tokio::sync::Mutex::default(),
            is_watched: AtomicBool::new(false),
        };
        if kept.is_some() {
            pool.take_in(now);
        }
        Some(pool)
    }

    /// The same upstream: a request may go there with what it carries.
    fn is_of(&self, upstream: &Upstream) -> bool {
        self.upstream.url == upstream.url
    }

    fn is_looked_up(&self) -> bool {
        !self.members.load().present.is_empty()
    }

    pub fn members(&self) -> Arc<Members> {
        self.members.load_full()
    }

    pub fn label(&self) -> &str {
        &self.name
    }

    pub fn slow_start(&self) -> Duration {
        self.settings.settings.slow_start
    }

    fn names(&self) -> std::sync::MutexGuard<'_, HashMap<(String, u16), Known>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the names stand for is chosen from. Those that are no more among them leave.
    fn take_in(&self, now: SystemTime) {
        let (names, before) = (self.names(), self.members());
        let now = since_1970(now);
        // Who comes to others comes slowly.
        let since = if before.present.is_empty() { 0 } else { now };
        let were = || {
            let present = before.present.iter().map(|member| &member.peer);
            present.chain(before.leaving.iter().map(|leaving| &leaving.peer))
        };
        let mut present: Vec<Member> = Vec::new();
        for (entry, configured) in self.settings.settings.peers.iter().enumerate() {
            let known = names.get(&(configured.host.clone(), configured.port));
            for place in known.iter().flat_map(|known| &known.addresses) {
                if present.iter().any(|member| member.peer.address == place.address) {
                    continue;
                }
                let peer = were().find(|peer| peer.address == place.address).map(Arc::clone);
                let peer = peer.unwrap_or_else(|| Arc::new(Peer::new(place.address, since)));
                let weight = configured.weight.saturating_mul(place.share);
                present.push(Member { peer, weight, entry, rank: place.rank });
            }
        }
        drop(names);
        let stays = |peer: &Peer| present.iter().any(|member| member.peer.address == peer.address);
        let left = before.present.iter().map(|member| Leaving { peer: Arc::clone(&member.peer), since: now });
        let drain = millis(self.settings.settings.drain);
        let still = before.leaving.iter().filter(|leaving| now < leaving.since + drain).cloned();
        let leaving = left.filter(|_| drain > 0).chain(still).filter(|leaving| !stays(&leaving.peer));
        let leaving = leaving.take(LEAVING_MOST).collect();
        self.members.store(Arc::new(Members { present, leaving }));
    }

    fn place(
        &self,
        begun_at: Option<SocketAddr>,
        key: impl Fn(&route::Pool) -> u64,
        now: SystemTime,
    ) -> Result<Busy, NoPeer> {
        let (members, now) = (self.members.load(), since_1970(now));
        if let Some(address) = begun_at {
            let peer = members.at(address, now, millis(self.settings.settings.drain));
            return peer.filter(|peer| peer.is_up()).map(Busy::at).ok_or(NoPeer::OfSession);
        }
        let choice = Choice {
            balance: self.settings.settings.balance,
            slow_start: self.slow_start(),
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
            key: key(&self.settings),
            now,
        };
        choice.of(&members.present).map(Busy::at).ok_or(NoPeer::AtAll)
    }
}

impl Members {
    fn at(&self, address: SocketAddr, now: u64, drain: u64) -> Option<&Arc<Peer>> {
        let present = self.present.iter().map(|member| &member.peer);
        let leaving = self.leaving.iter().filter(|leaving| now < leaving.since + drain);
        present.chain(leaving.map(|leaving| &leaving.peer)).find(|peer| peer.address == address)
    }
}

/// In milliseconds.
pub fn since_1970(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
