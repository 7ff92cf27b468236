//! Who is in: the connections of clients that are open, in all and by where they come from, and how many files there may be
//! for them. Pingora's own filter of connections never hears that one has ended, so they are counted here.
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use dashmap::{DashMap, Entry};
use pingora::listeners::ConnectionFilter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::telemetry::Metrics;

/// From one address, where nothing else is written.
const PER_ADDRESS: usize = 1024;
/// Files that connections never get: for listeners, store, logs, connections to those who answer for users, and for whoever is
/// turned away.
const KEPT: usize = 128;
/// So many of those have come without a place.
pub const AWAY: usize = 32;

/// How many there are.
pub struct Room {
    all: AtomicUsize,
    /// Accepted, and not here yet: all that come at once are accepted before any of them is looked at.
    arriving: AtomicUsize,
    by_address: DashMap<IpAddr, usize>,
    /// There is never more room than that, whatever the configuration says.
    most: usize,
    metrics: Arc<Metrics>,
}

/// One connection: counts as open until dropped.
pub struct Place {
    room: Arc<Room>,
    address: Option<IpAddr>,
}

impl Room {
    pub fn new(most: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            all: AtomicUsize::new(0),
            arriving: AtomicUsize::new(0),
            by_address: DashMap::new(),
            most,
            metrics,
        }
    }

    /// One more of `most`, from an address not known yet.
    pub fn enter(self: &Arc<Self>, most: usize) -> Option<Place> {
        // Whoever was accepted before this one has come before it.
        self.arriving.store(0, Ordering::Relaxed);
        let place = Place { room: Arc::clone(self), address: None };
        self.metrics.connections.inc();
        let has_room = self.all.fetch_add(1, Ordering::Relaxed) < most.min(self.most);
        if !has_room {
            place.hit("connections");
        }
        has_room.then_some(place)
    }

    /// Has it known how many there may be.
    pub fn tell(&self, most: usize) {
        let most = most.min(self.most);
        self.metrics.connections_limit.set(i64::try_from(most).unwrap_or(i64::MAX));
    }
}

/// Asked about each connection as it is accepted. Who is refused here hears nothing; for more there are no files.
#[async_trait]
impl ConnectionFilter for Room {
    async fn should_accept(&self, _from: Option<&SocketAddr>) -> bool {
        let arriving = self.arriving.fetch_add(1, Ordering::Relaxed);
        let fits = self.all.load(Ordering::Relaxed) + arriving < self.most.saturating_add(AWAY);
        if !fits {
            self.metrics.hit("connections");
        }
        fits
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("all", &self.all).field("most", &self.most).finish_non_exhaustive()
    }
}

impl Place {
    /// Counts for this address from now on, of which there may be `most`.
    pub fn is_of(&mut self, address: IpAddr, most: Option<usize>) -> bool {
        let address = network(address);
        let most = match most {
            None if address.is_loopback() => return true,
            most => most.unwrap_or(PER_ADDRESS),
        };
        let mut open = self.room.by_address.entry(address).or_default();
        if *open >= most {
            drop(open);
            self.hit("connections_per_address");
            return false;
        }
        *open += 1;
        drop(open);
        self.address = Some(address);
        true
    }

    /// Notes that a limit kept its client from something.
    pub fn hit(&self, limit: &'static str) {
        self.room.metrics.hit(limit);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.all.fetch_sub(1, Ordering::Relaxed);
        self.room.metrics.connections.dec();
        if let Some(address) = self.address
            && let Entry::Occupied(mut open) = self.room.by_address.entry(address)
        {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

/// What one client has: an address of IPv4, a /64 of IPv6 (RFC 6177 §2).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address => address,
    }
}

/// For how many connections there are files, when each has one to an upstream as well. This process may then open as many as
/// its user is allowed to: the lower number is there for programs that cannot count beyond 1024.
pub fn by_files() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let files = if raised { maximum } else { current };
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    (files - KEPT.min(files / 3)) / 2
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn room(most: usize) -> Arc<Room> {
        Arc::new(Room::new(most, Arc::new(Metrics::new().unwrap())))
    }

    #[test]
    fn what_has_ended_leaves_its_place_and_no_trace() {
        let room = room(3);
        let from = |address: &str, most| {
            let mut place = room.enter(100)?;
            place.is_of(address.parse().unwrap(), most).then_some(place)
        };
        let first = from("192.0.2.1", Some(1)).unwrap();
        assert!(from("192.0.2.1", Some(1)).is_none());
        assert!(from("::ffff:192.0.2.1", Some(1)).is_none(), "the same in another form");
        let other = from("2001:db8::1", Some(1)).unwrap();
        assert!(from("2001:db8::ffff:0:0:1", Some(1)).is_none(), "of the same /64");
        let third = from("2001:db8:0:1::1", Some(1)).unwrap();
        assert!(room.enter(100).is_none(), "there are files for three");
        drop((first, other, third));
        assert_eq!((room.all.load(Ordering::Relaxed), room.by_address.len()), (0, 0));
        assert!(room.enter(0).is_none());
        assert!(from("192.0.2.1", Some(1)).is_some());
    }

    #[tokio::test]
    async fn those_who_come_at_once_are_counted_before_they_are_looked_at() {
        let room = room(100);
        let mut let_in = 0;
        while room.should_accept(None).await {
            let_in += 1;
        }
        assert_eq!(let_in, 100 + AWAY);
        let places: Vec<_> = (0..100).map(|_| room.enter(usize::MAX).unwrap()).collect();
        for _ in 0..AWAY {
            assert!(room.should_accept(None).await, "to be turned away");
        }
        assert!(!room.should_accept(None).await);
        assert!(room.enter(usize::MAX).is_none());
        drop(places);
        assert!(room.should_accept(None).await);
    }

    #[test]
    fn this_machine_has_a_share_only_where_one_is_written() {
        let room = room(usize::MAX);
        let mut places = Vec::new();
        for (address, most, fits) in [
            ("127.0.0.1", None, 2000),
            ("::1", None, 2000),
            ("127.0.0.1", Some(2), 2),
            ("192.0.2.1", None, 1024),
        ] {
            let enter = |_: &usize| {
                let mut place = room.enter(usize::MAX).unwrap();
                let fits = place.is_of(address.parse().unwrap(), most);
                places.push(place);
                fits
            };
            assert_eq!((0..2000).filter(enter).count(), fits, "{address} {most:?}");
        }
    }
}
