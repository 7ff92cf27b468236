//! Which of several peers takes a request. Everything here is a few atomics: nobody waits, and a choice looks at each peer once or
//! twice. (Pingora's own selection allocates for every choice, and knows neither connections under way nor a slow start.)
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::{Balance, Health};

/// After that many requests in a row to which it said nothing, a peer is left alone for a while.
const BROKEN_MOST: u32 = 3;
/// How long at first; twice as long each time that nothing came of it in between.
const OUT: u64 = 1_000;
const DOUBLED_MOST: u32 = 3;
/// While nobody is left, how often one of those left alone is tried all the same.
const TRIED: u64 = 1_000;
/// A whole share, so that a part of one is a number.
const WHOLE: u64 = 256;

/// An address of an upstream, and how it has done. Times are milliseconds since 1970.
#[derive(Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// The same at every instance.
    spot: u64,
    under_way: AtomicUsize,
    requests: AtomicU64,
    /// What the checks say, and how many in a row have said otherwise.
    is_up: AtomicBool,
    otherwise: AtomicU32,
    /// Whether `ping` is what it answered to a check of MCP, so that it is asked that first.
    pub pings: AtomicBool,
    /// Requests in a row to which it said nothing.
    broken: AtomicU32,
    /// How often in a row it was left alone, since when, and until when.
    out: AtomicU32,
    failed_at: AtomicU64,
    out_until: AtomicU64,
    /// Since when it is back. Zero: it has always been there.
    back_since: AtomicU64,
    failures: [AtomicU64; 3],
}

/// What went wrong at a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No connection came about: nothing was sent.
    Connect,
    /// The connection ended before a word was said.
    Broken,
    /// It has not passed a check.
    Check,
}

/// How a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Up,
    /// Back, and not with its whole share yet.
    SlowStart,
    /// Left alone for a while.
    Out,
    /// By the checks.
    Down,
}

/// A peer, and its share beside the others.
#[derive(Debug, Clone)]
pub struct Member {
    pub peer: Arc<Peer>,
    pub weight: u32,
    /// Which of the configured names it comes from. Those of one stand together, by rank.
    pub entry: usize,
    /// It serves while none of a lower rank does that comes from the same.
    pub rank: u32,
}

/// What a choice goes by.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    pub balance: Balance,
    pub slow_start: Duration,
    /// Another one with each request.
    pub turn: u64,
    /// For [`Balance::Consistent`]: what stays together.
    pub key: u64,
    pub now: u64,
}

/// A request at its peer, until it is dropped.
#[derive(Debug)]
pub struct Busy(Arc<Peer>);

impl Fault {
    pub const ALL: [Fault; 3] = [Fault::Connect, Fault::Broken, Fault::Check];

    pub fn name(self) -> &'static str {
        match self {
            Fault::Connect => "connect",
            Fault::Broken => "broken",
            Fault::Check => "check",
        }
    }
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Up => "up",
            State::SlowStart => "slow_start",
            State::Out => "out",
            State::Down => "down",
        }
    }
}

// === impl Peer ===

impl Peer {
    /// `since`: when it came to others that were there already; zero: it came with them.
    pub fn new(address: SocketAddr, since: u64) -> Self {
        let octets = match address.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        Self {
            address,
            spot: hash(octets.into_iter().chain(address.port().to_be_bytes())),
            under_way: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            is_up: AtomicBool::new(true),
            otherwise: AtomicU32::new(0),
            pings: AtomicBool::new(false),
            broken: AtomicU32::new(0),
            out: AtomicU32::new(0),
            failed_at: AtomicU64::new(0),
            out_until: AtomicU64::new(0),
            back_since: AtomicU64::new(since),
            failures: Default::default(),
        }
    }

    pub fn state(&self, slow_start: Duration, now: u64) -> State {
        if !self.is_up() {
            State::Down
        } else if self.is_out(now) {
            State::Out
        } else if self.share(slow_start, now) < WHOLE {
            State::SlowStart
        } else {
            State::Up
        }
    }

    /// What the checks say.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    fn is_out(&self, now: u64) -> bool {
        now < self.out_until.load(Ordering::Relaxed)
    }

    fn is_in(&self, now: u64) -> bool {
        self.is_up() && !self.is_out(now)
    }

    /// Of [`WHOLE`].
    fn share(&self, slow_start: Duration, now: u64) -> u64 {
        let (since, whole) = (self.back_since.load(Ordering::Relaxed), millis(slow_start));
        let there = now.saturating_sub(since);
        if since == 0 || there >= whole { WHOLE } else { (WHOLE * there / whole).max(WHOLE / 16) }
    }

    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn failures(&self, fault: Fault) -> u64 {
        self.of(fault).load(Ordering::Relaxed)
    }

    fn of(&self, fault: Fault) -> &AtomicU64 {
        let [connect, broken, check] = &self.failures;
        match fault {
            Fault::Connect => connect,
            Fault::Broken => broken,
            Fault::Check => check,
        }
    }

    /// It has begun to answer a request.
    pub fn heard(&self) {
        if self.out.load(Ordering::Relaxed) != 0 || self.broken.load(Ordering::Relaxed) != 0 {
            self.out.store(0, Ordering::Relaxed);
            self.broken.store(0, Ordering::Relaxed);
        }
    }

    /// A request has failed at it.
    pub fn failed(&self, fault: Fault, now: u64) {
        self.of(fault).fetch_add(1, Ordering::Relaxed);
        let is_enough = match fault {
            Fault::Connect => true,
            Fault::Broken => self.broken.fetch_add(1, Ordering::Relaxed) + 1 >= BROKEN_MOST,
            Fault::Check => false,
        };
        // Those that were on their way to it at the same moment say nothing new.
        if is_enough && !self.is_out(now) {
            let times = self.out.fetch_add(1, Ordering::Relaxed).min(DOUBLED_MOST);
            let until = now + (OUT << times);
            self.failed_at.store(now, Ordering::Relaxed);
            self.back_since.store(until, Ordering::Relaxed);
            self.out_until.store(until, Ordering::Relaxed);
        }
    }

    /// The outcome of a check. Says whether it is up from now on, where that has changed.
    pub fn checked(&self, is_well: bool, health: &Health, now: u64) -> Option<bool> {
        if !is_well {
            self.of(Fault::Check).fetch_add(1, Ordering::Relaxed);
        }
        if is_well == self.is_up() {
            self.otherwise.store(0, Ordering::Relaxed);
            return None;
        }
        let needed = if is_well { health.healthy } else { health.unhealthy };
        if self.otherwise.fetch_add(1, Ordering::Relaxed) + 1 < needed {
            return None;
        }
        self.otherwise.store(0, Ordering::Relaxed);
        if is_well {
            self.back_since.store(now, Ordering::Relaxed);
        }
        self.is_up.store(is_well, Ordering::Relaxed);
        Some(is_well)
    }
}

// === impl Busy ===

impl Busy {
    pub fn at(peer: &Arc<Peer>) -> Self {
        peer.under_way.fetch_add(1, Ordering::Relaxed);
        peer.requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(peer))
    }

    pub fn peer(&self) -> &Peer {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Choice ===

impl Choice {
    /// One of those that are in; where none is, one of those left alone whose turn it is to be tried.
    pub fn of<'m>(&self, members: &'m [Member]) -> Option<&'m Arc<Peer>> {
        let chosen = match self.balance {
            Balance::RoundRobin => self.in_turn(members),
            Balance::LeastConnections => self.least(members),
            Balance::Consistent => self.nearest(members),
        };
        chosen.or_else(|| self.tried(members))
    }

    /// Those that are in, of each name the lowest rank of them.
    fn present<'m>(&self, members: &'m [Member]) -> impl Iterator<Item = &'m Member> {
        let (now, mut serves) = (self.now, None);
        members.iter().filter(move |member| {
            if !member.peer.is_in(now) {
                return false;
            }
            match serves {
                Some((entry, rank)) if entry == member.entry => rank == member.rank,
                _ => {
                    serves = Some((member.entry, member.rank));
                    true
                }
            }
        })
    }

    fn weight(&self, member: &Member) -> u64 {
        u64::from(member.weight) * member.peer.share(self.slow_start, self.now)
    }

    fn in_turn<'m>(&self, members: &'m [Member]) -> Option<&'m Arc<Peer>> {
        let (mut count, mut total, mut first, mut are_equal) = (0, 0, None, true);
        for member in self.present(members) {
            let weight = self.weight(member);
            (count, total) = (count + 1, total + weight);
            are_equal &= *first.get_or_insert(weight) == weight;
        }
        if are_equal {
            let place = usize::try_from(self.turn % count.max(1)).unwrap_or_default();
            return self.present(members).nth(place).map(|member| &member.peer);
        }
        // Steps of the golden section: over any run of turns each has its share, and no two in a row more often than must be.
        let step = u128::from(self.turn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut place = u64::try_from((step * u128::from(total)) >> 64).unwrap_or_default();
        let mut last = None;
        for member in self.present(members) {
            last = Some(&member.peer);
            match place.checked_sub(self.weight(member)) {
                Some(rest) => place = rest,
                None => break,
            }
        }
        last
    }

    /// Of equals, another one each turn.
    fn least<'m>(&self, members: &'m [Member]) -> Option<&'m Arc<Peer>> {
        let count = self.present(members).count().max(1);
        let start = usize::try_from(self.turn).unwrap_or_default() % count;
        let (before, after) = (self.present(members).take(start), self.present(members).skip(start));
        let load = |member: &Member| member.peer.under_way() as u64 + 1;
        let chosen = after.chain(before).reduce(|best, other| {
            match load(other) * self.weight(best) < load(best) * self.weight(other) {
                true => other,
                false => best,
            }
        });
        chosen.map(|member| &member.peer)
    }

    /// Rendezvous hashing: a peer that goes takes along only what was its own. A slow start would move what is together, so there
    /// is none.
    fn nearest<'m>(&self, members: &'m [Member]) -> Option<&'m Arc<Peer>> {
        let score = |member: &Member| {
            let unit = ((mixed(self.key ^ member.peer.spot) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
            -f64::from(member.weight) / unit.ln()
        };
        let scored = self.present(members).map(|member| (score(member), &member.peer));
        let best = scored.reduce(|best, other| if other.0 > best.0 { other } else { best });
        best.map(|(_, peer)| peer)
    }

    fn tried<'m>(&self, members: &'m [Member]) -> Option<&'m Arc<Peer>> {
        let left_alone = members.iter().map(|member| &member.peer).filter(|peer| peer.is_up());
        let peer = left_alone.min_by_key(|peer| peer.failed_at.load(Ordering::Relaxed))?;
        let failed_at = peer.failed_at.load(Ordering::Relaxed);
        if self.now < failed_at + TRIED {
            return None;
        }
        let taken =
            peer.failed_at.compare_exchange(failed_at, self.now, Ordering::Relaxed, Ordering::Relaxed);
        taken.is_ok().then_some(peer)
    }
}

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// FNV-1a: the same at every instance and in every version.
pub fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let seed = 0xcbf2_9ce4_8422_2325;
    mixed(bytes.into_iter().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

fn mixed(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::collections::HashMap;

    use super::*;
    use crate::config::Probe;

    fn members(weights: &[u32]) -> Vec<Member> {
        let at = |last: usize| SocketAddr::from(([192, 0, 2, u8::try_from(last).unwrap()], 80));
        let of = |(index, weight): (usize, &u32)| Member {
            peer: Arc::new(Peer::new(at(index), 0)),
            weight: *weight,
            entry: index,
            rank: 0,
        };
        weights.iter().enumerate().map(of).collect()
    }

    fn choice(balance: Balance) -> Choice {
        Choice { balance, slow_start: Duration::ZERO, turn: 0, key: 0, now: 1_000_000 }
    }

    /// How often each is chosen in `turns`.
    fn counts(members: &[Member], choice: Choice, turns: u64) -> Vec<u64> {
        let mut counts = vec![0; members.len()];
        for turn in 0..turns {
            let chosen = Choice { turn, key: mixed(turn), ..choice }.of(members).unwrap();
            counts[members.iter().position(|member| Arc::ptr_eq(&member.peer, chosen)).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn each_has_its_share_and_no_two_in_a_row() {
        let equal = members(&[1, 1, 1]);
        assert_eq!(counts(&equal, choice(Balance::RoundRobin), 300), [100, 100, 100]);
        let unequal = members(&[1, 2, 3]);
        for turns in [60, 600] {
            let counts = counts(&unequal, choice(Balance::RoundRobin), turns);
            for (count, share) in counts.iter().zip([1, 2, 3]) {
                assert!(count.abs_diff(turns * share / 6) <= 3, "{counts:?}");
            }
        }
    }

    #[test]
    fn one_with_little_to_do_comes_first() {
        let two = members(&[1, 1]);
        let busy = [Busy::at(&two[0].peer), Busy::at(&two[0].peer)];
        assert_eq!(counts(&two, choice(Balance::LeastConnections), 10), [0, 10]);
        drop(busy);
        assert_eq!(counts(&two, choice(Balance::LeastConnections), 10), [5, 5]);
        // Three times the share: three times the requests.
        let unequal = members(&[1, 3]);
        let _busy = [Busy::at(&unequal[1].peer), Busy::at(&unequal[0].peer)];
        assert_eq!(counts(&unequal, choice(Balance::LeastConnections), 10), [0, 10]);
    }

    #[test]
    fn what_belongs_together_stays_together_when_another_peer_goes() {
        let mut four = members(&[1, 1, 1, 1]);
        let of = |members: &[Member], key: u64| {
            Choice { key: mixed(key), ..choice(Balance::Consistent) }.of(members).unwrap().address
        };
        let before: HashMap<u64, SocketAddr> = (0..1000).map(|key| (key, of(&four, key))).collect();
        let gone = four.remove(2).peer.address;
        for (key, address) in before.iter().filter(|(_, address)| **address != gone) {
            assert_eq!(of(&four, *key), *address);
        }
        let shares = counts(&members(&[1, 3]), choice(Balance::Consistent), 4000);
        assert!(shares[1].abs_diff(3000) < 150, "{shares:?}");
    }

    #[test]
    fn whoever_fails_is_left_alone_for_longer_each_time_until_it_is_heard_of() {
        let two = members(&[1, 1]);
        let at = |now: u64| Choice { now, ..choice(Balance::RoundRobin) };
        let peer = &two[0].peer;
        peer.failed(Fault::Connect, 10_000);
        // Those on their way at the same time.
        peer.failed(Fault::Connect, 10_000);
        assert_eq!(counts(&two, at(10_999), 10), [0, 10]);
        assert_eq!(counts(&two, at(11_000), 10), [5, 5]);
        peer.failed(Fault::Connect, 11_000);
        assert_eq!(counts(&two, at(12_999), 10), [0, 10]);
        peer.heard();
        peer.failed(Fault::Broken, 20_000);
        peer.failed(Fault::Broken, 20_000);
        assert_eq!(counts(&two, at(20_001), 10), [5, 5]);
        peer.failed(Fault::Broken, 20_000);
        assert_eq!(counts(&two, at(20_999), 10), [0, 10]);
        assert_eq!(counts(&two, at(21_000), 10), [5, 5]);
    }

    #[test]
    fn the_second_choice_serves_while_none_of_the_first_does() {
        let ranked = |ranks: [(usize, u32); 5]| {
            let with = |(member, (entry, rank)): (Member, (usize, u32))| Member { entry, rank, ..member };
            members(&[1; 5]).into_iter().zip(ranks).map(with).collect::<Vec<_>>()
        };
        for balance in [Balance::RoundRobin, Balance::LeastConnections, Balance::Consistent] {
            let at = |now: u64| Choice { now, ..choice(balance) };
            let who = |members: &[Member], now: u64| {
                counts(members, at(now), 200).into_iter().map(|count| count > 0).collect::<Vec<_>>()
            };
            // A service of three ranks, and another peer beside it.
            let all = ranked([(0, 0), (0, 0), (0, 1), (0, 2), (1, 0)]);
            assert_eq!(who(&all, 1_000), [true, true, false, false, true], "{balance:?}");
            all[0].peer.failed(Fault::Connect, 1_000);
            assert_eq!(who(&all, 1_500), [false, true, false, false, true]);
            all[1].peer.failed(Fault::Connect, 1_200);
            assert_eq!(who(&all, 1_500), [false, false, true, false, true]);
            all[2].peer.is_up.store(false, Ordering::Relaxed);
            assert_eq!(who(&all, 1_500), [false, false, false, true, true]);
            // One is back, and then the other.
            assert_eq!(who(&all, 2_100), [true, false, false, false, true]);
            assert_eq!(who(&all, 2_300), [true, true, false, false, true]);
        }
    }

    #[test]
    fn where_nobody_is_left_one_is_tried_once_a_second() {
        let one = members(&[1]);
        let peer = &one[0].peer;
        for now in [10_000, 11_000, 13_000] {
            peer.failed(Fault::Connect, now);
        }
        let at = |now: u64| Choice { now, ..choice(Balance::RoundRobin) }.of(&one).is_some();
        assert!(!at(13_999));
        assert!(at(14_000), "though it is out for longer");
        assert!(!at(14_001), "somebody is trying it");
        assert!(at(15_000));
    }

    #[test]
    fn checks_in_a_row_take_a_peer_out_and_it_comes_back_slowly() {
        let two = members(&[1, 1]);
        let health = Health {
            probe: Probe::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 3,
        };
        let (peer, slow_start) = (&two[0].peer, Duration::from_secs(10));
        let check = |is_well| peer.checked(is_well, &health, 50_000);
        assert_eq!([false, false, true, false, false].map(check), [None; 5], "not in a row");
        assert_eq!(check(false), Some(false));
        assert_eq!(peer.state(slow_start, 50_000), State::Down);
        assert_eq!(counts(&two, choice(Balance::RoundRobin), 10), [0, 10]);
        assert_eq!([check(true), check(true)], [None, Some(true)]);
        assert_eq!(peer.state(slow_start, 52_000), State::SlowStart);
        let at = |now| Choice { now, slow_start, ..choice(Balance::RoundRobin) };
        let early = counts(&two, at(52_000), 600);
        assert!(early[0].abs_diff(100) < 10, "a fifth of a share: {early:?}");
        for (later, share) in [(53_000, 138), (55_000, 200), (58_000, 267)] {
            let [back, _] = counts(&two, at(later), 600)[..] else { panic!("two peers") };
            assert!(back.abs_diff(share) < 10, "{back} of 600 at {later}");
        }
        assert_eq!(counts(&two, at(60_000), 600), [300, 300]);
        assert_eq!(peer.state(slow_start, 60_000), State::Up);
        assert_eq!(peer.failures(Fault::Check), 5);
    }
}
