//! Addresses of upstreams, looked up ahead of need. Every answer passes the address policy, and a request is sent to
//! the very address that passed, so a name that changes its mind in between changes nothing.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::clock::Clock;
use crate::map::Shared;
use crate::outbound::{self, AddressPolicy, Outbound};
use crate::route::{Route, Table, Upstream};

/// After that long an address is looked up again, while the old one still serves.
pub(super) const FRESH: Duration = Duration::from_secs(30);
/// How long an old address serves when the name service does not answer.
pub(super) const STALE: Duration = Duration::from_secs(600);

/// Remembers vetted addresses by route.
pub struct Resolver {
    outbound: Outbound,
    clock: Clock,
    known: Shared<String, Arc<Entry>>,
}

struct Entry {
    /// Whose addresses these are, and under which policy they passed: a route may lead elsewhere by now.
    host: String,
    port: u16,
    policy: AddressPolicy,
    addresses: Vec<SocketAddr>,
    since: SystemTime,
    next: AtomicUsize,
    renewing: AtomicBool,
}

impl Resolver {
    pub fn new(outbound: Outbound, clock: Clock) -> Self {
        Self { outbound, clock, known: Shared::default() }
    }

    /// The address of the route's upstream: of several the first, in the order of the name service (RFC 6724), until
    /// it does not answer. `begun_at`: where the session was begun, which is kept to while it is one of them.
    pub async fn address(
        self: &Arc<Self>,
        route: &Arc<Route>,
        begun_at: Option<SocketAddr>,
        now: SystemTime,
    ) -> Result<SocketAddr, outbound::Error> {
        let known = self.known.get(&route.name).map(|entry| Arc::clone(&entry));
        if let Some(entry) = known.filter(|entry| entry.is_for(&route.upstream)) {
            let age = now.duration_since(entry.since).unwrap_or_default();
            if age >= FRESH && !entry.renewing.swap(true, Ordering::Relaxed) {
                let (this, route, entry) = (Arc::clone(self), Arc::clone(route), Arc::clone(&entry));
                tokio::spawn(async move {
                    if let Err(error) = this.look_up(&route, None).await {
                        tracing::warn!(target: "postern::upstream", route = %route.name, %error, "upstream address not renewed");
                        entry.renewing.store(false, Ordering::Relaxed);
                    }
                });
            }
            if age < STALE {
                return entry.one(begun_at).ok_or_else(|| no_address(route));
            }
        }
        Box::pin(self.look_up(route, begun_at)).await
    }

    /// No connection to the address came about: from now on the next one is used.
    pub fn failed(&self, route: &Route) {
        if let Some(entry) = self.known.get(&route.name) {
            entry.next.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets the routes that there are no more.
    pub fn keep_only(&self, routes: &Table) {
        self.known.retain(|name, _| routes.by_name(name).is_some());
    }

    async fn look_up(
        &self,
        route: &Route,
        begun_at: Option<SocketAddr>,
    ) -> Result<SocketAddr, outbound::Error> {
        let upstream = &route.upstream;
        let addresses = self.outbound.vet(&upstream.host, upstream.port, &upstream.policy).await?;
        let entry = Entry {
            host: upstream.host.clone(),
            port: upstream.port,
            policy: upstream.policy.clone(),
            addresses,
            since: self.clock.now(),
            next: AtomicUsize::new(0),
            renewing: AtomicBool::new(false),
        };
        let first = entry.one(begun_at).ok_or_else(|| no_address(route))?;
        self.known.insert(route.name.clone(), Arc::new(entry));
        Ok(first)
    }
}

impl Entry {
    fn is_for(&self, upstream: &Upstream) -> bool {
        self.host == upstream.host && self.port == upstream.port && self.policy == upstream.policy
    }

    fn one(&self, begun_at: Option<SocketAddr>) -> Option<SocketAddr> {
        // Where it has failed since, the session has to begin anew wherever it goes.
        let kept = begun_at.filter(|address| self.addresses.contains(address));
        if kept.is_some() && self.next.load(Ordering::Relaxed) == 0 {
            return kept;
        }
        let turn = self.next.load(Ordering::Relaxed);
        self.addresses.get(turn % self.addresses.len().max(1)).copied()
    }
}

fn no_address(route: &Route) -> outbound::Error {
    outbound::Error::NotSent {
        target: route.upstream.authority.clone(),
        reason: "the name has no address".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_keeps_to_where_it_was_begun_while_that_answers() {
        let at = |last: u8| SocketAddr::from(([192, 0, 2, last], 80));
        let entry = Entry {
            host: String::new(),
            port: 80,
            policy: AddressPolicy::public(),
            addresses: vec![at(1), at(2)],
            since: SystemTime::UNIX_EPOCH,
            next: AtomicUsize::new(0),
            renewing: AtomicBool::new(false),
        };
        assert_eq!(entry.one(None), Some(at(1)));
        assert_eq!(entry.one(Some(at(2))), Some(at(2)));
        assert_eq!(entry.one(Some(at(3))), Some(at(1)), "gone from the name service");
        entry.next.fetch_add(1, Ordering::Relaxed);
        assert_eq!(entry.one(Some(at(1))), Some(at(2)), "one of them does not answer");
    }
}
