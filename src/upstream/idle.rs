//! Upstream connections between two requests. Whoever asks again within a few seconds finds one; nobody watches the others
//! meanwhile, so a connection that the upstream has closed is found to be closed when it is asked for, or at the next sweep. Both
//! tell how long the upstream keeps one ([`Patience`]), and none that is nearly as old is used again.
//!
//! For its upstream a connection rests from the moment in which the answer has left, for us from when we are done with it. With more to do
//! than the cores can, these are tens of milliseconds apart, and as many go by before the next request is really sent. So what counts is
//! how long it may have rested at most, and by when the request has to be on its way ([`Line::until`]).
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use pingora_core::protocols::Stream;
use pingora_core::upstreams::peer::Peer;
use tokio::io::AsyncReadExt;
use tokio::task;

use super::patience::{self, Patience};
use super::peer::IDLE;
use crate::clock::Clock;
use crate::map::Shared;

/// Idle connections that are kept: as many as are ever busy at once, or they are only made to be closed.
pub const MOST: usize = 2048;
/// Upstreams without a connection of which is known how long they keep one.
const KNOWN: usize = 1024;

/// Where a connection leads. The address besides the hash of all that matters, so that no two places are taken for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub peer: u64,
    pub address: Option<SocketAddr>,
}

impl Place {
    pub fn of(peer: &impl Peer) -> Self {
        Self { peer: peer.reuse_hash(), address: peer.address().as_inet().copied() }
    }
}

/// A connection, and what is known of it from one request to the next.
#[derive(Debug)]
pub struct Line {
    pub stream: Stream,
    /// Bytes that went up on it; with TLS those that were acknowledged, as TCP counts them.
    pub sent: u64,
    /// With TLS.
    pub is_sealed: bool,
    /// How long the upstream keeps it, if it has said so.
    pub said: Option<Duration>,
    /// When the last request went out on it: it has not rested since before.
    pub asked: SystemTime,
    /// How long it had rested before this request, at least.
    pub rested: Option<Duration>,
    /// Until when this request may go out on it; `None`: it is new.
    pub until: Option<SystemTime>,
}

impl Line {
    pub fn new(stream: Stream, now: SystemTime) -> Self {
        Self { stream, sent: 0, is_sealed: false, said: None, asked: now, rested: None, until: None }
    }
}

/// Connections by where they lead. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Idle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    by_place: Shared<Place, Row>,
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Row {
    /// The one used last is at the end.
    resting: VecDeque<Resting>,
    patience: Patience,
}

#[derive(Debug)]
struct Resting {
    line: Line,
    since: SystemTime,
}

impl Idle {
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, by_place: Shared::default(), count: AtomicUsize::new(0) }))
    }

    pub fn now(&self) -> SystemTime {
        self.0.clock.now()
    }

    pub fn put(&self, place: Place, line: Line) {
        if self.0.count.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.0.count.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let resting = Resting { line, since: self.0.clock.now() };
        self.0.by_place.entry(place).or_default().resting.push_back(resting);
    }

    /// The one that was used last, if it can be used again.
    pub fn take(&self, place: &Place) -> Option<Line> {
        let now = self.0.clock.now();
        let mut row = self.0.by_place.get_mut(place)?;
        let Row { resting, patience } = &mut *row;
        while let Some(mut last) = resting.pop_back() {
            let allowed = patience.allows(last.line.said, now);
            let at_most = last.rested_at_most(allowed, now);
            if at_most >= allowed {
                // So have the others, for longer. The oldest stays, and shows whether that was right.
                resting.push_back(last);
                self.0.count.fetch_sub(resting.len() - 1, Ordering::Relaxed);
                resting.truncate(1);
                return None;
            }
            self.0.count.fetch_sub(1, Ordering::Relaxed);
            let rested = last.rested(now);
            if is_quiet(&mut last.line.stream) {
                let left = patience.bears(last.line.said, now).saturating_sub(at_most);
                (last.line.rested, last.line.until) = (Some(rested), Some(now + left));
                return Some(last.line);
            }
            if let Some(after) = patience::closed_after(&last.line.stream, rested) {
                patience.closed(after, now);
            }
        }
        None
    }

    /// One that had rested for so long was closed in the moment in which it was used again. So may be the others: who had that one
    /// is to have a new one next.
    pub fn closed(&self, place: Place, after: Duration) {
        let mut row = self.0.by_place.entry(place).or_default();
        row.patience.closed(after, self.0.clock.now());
        self.0.count.fetch_sub(row.resting.len(), Ordering::Relaxed);
        row.resting.clear();
    }

    /// Closes what nobody has asked for, and what the other side has closed.
    pub fn sweep(&self) {
        let (now, mut known) = (self.0.clock.now(), 0);
        self.0.by_place.retain(|_, row| {
            let freed = row.sweep(now);
            self.0.count.fetch_sub(freed, Ordering::Relaxed);
            if row.resting.is_empty() && row.patience.is_known(now) {
                known += 1;
                return known <= KNOWN;
            }
            !row.resting.is_empty()
        });
    }
}

impl Row {
    /// How many it has closed.
    fn sweep(&mut self, now: SystemTime) -> usize {
        let before = self.resting.len();
        let (mut closed, mut open) = (None::<Duration>, Duration::ZERO);
        self.resting.retain_mut(|one| {
            let rested = one.rested(now);
            if is_quiet(&mut one.line.stream) {
                open = open.max(rested);
                return rested < IDLE;
            }
            let after = patience::closed_after(&one.line.stream, rested);
            closed = closed.into_iter().chain(after).min();
            false
        });
        match closed {
            Some(after) => self.patience.closed(after, now),
            None => self.patience.open(open),
        }
        before - self.resting.len()
    }
}

impl Resting {
    fn rested(&self, now: SystemTime) -> Duration {
        now.duration_since(self.since).unwrap_or_default()
    }

    /// How long it may have rested for its upstream. The kernel, which knows, is asked only where it matters whether that is `enough`.
    fn rested_at_most(&self, enough: Duration, now: SystemTime) -> Duration {
        let least = self.rested(now);
        let most = now.duration_since(self.line.asked).unwrap_or_default().max(least);
        if most < enough || least >= enough {
            return most;
        }
        patience::heard(&self.line.stream).map_or(most, |heard| heard.min(most).max(least))
    }
}

/// Whether the upstream has neither closed it nor said something unasked: then whatever comes next would be taken for the
/// answer to somebody else's request.
fn is_quiet(stream: &mut Stream) -> bool {
    task::unconstrained(stream.read(&mut [0])).now_or_never().is_none()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::time::UNIX_EPOCH;

    use pingora_core::protocols::l4::stream::Stream as TcpStream;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    fn place(peer: u64) -> Place {
        Place { peer, address: None }
    }

    /// A connection, and its other end.
    async fn pair() -> (tokio::net::TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let theirs = listener.accept().await.unwrap().0.into_std().unwrap();
        (ours, theirs)
    }

    fn line(stream: tokio::net::TcpStream, now: SystemTime) -> Line {
        Line::new(Box::new(TcpStream::from(stream)), now)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Puts one that is closed when it has rested for so long, and waits until that is seen.
    async fn put_and_close(idle: &Idle, clock: &Clock, after: Duration) {
        let (ours, theirs) = pair().await;
        let watched = ours.into_std().unwrap();
        let seen = tokio::net::TcpStream::from_std(watched.try_clone().unwrap()).unwrap();
        idle.put(place(1), line(tokio::net::TcpStream::from_std(watched).unwrap(), idle.now()));
        clock.advance(after);
        drop(theirs);
        seen.readable().await.unwrap();
    }

    /// Shows that one is open for as long as any rests.
    async fn outlive(idle: &Idle, clock: &Clock) {
        let (ours, _theirs) = pair().await;
        idle.put(place(1), line(ours, idle.now()));
        clock.advance(IDLE);
        let (ours, theirs) = pair().await;
        idle.put(place(1), line(ours, idle.now()));
        idle.sweep();
        assert!(idle.take(&place(1)).is_some());
        drop(theirs);
    }

    /// Whether one that has rested for so long is used again.
    async fn is_used(idle: &Idle, clock: &Clock, rested: Duration) -> bool {
        let (ours, _theirs) = pair().await;
        idle.put(place(1), line(ours, idle.now()));
        clock.advance(rested);
        idle.take(&place(1)).is_some()
    }

    #[tokio::test]
    async fn the_one_used_last_comes_first_and_only_for_its_place() {
        let idle = Idle::new(Clock::system());
        let ((first, _first), (second, _second)) = (pair().await, pair().await);
        let [one, other] = [&first, &second].map(AsRawFd::as_raw_fd);
        idle.put(place(1), line(first, idle.now()));
        idle.put(place(1), line(second, idle.now()));
        assert!(idle.take(&place(2)).is_none());
        let taken = [idle.take(&place(1)).unwrap(), idle.take(&place(1)).unwrap()];
        assert_eq!(taken.map(|line| line.stream.id()), [other, one]);
        assert!(idle.take(&place(1)).is_none());
        assert_eq!(idle.0.count.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn one_that_was_closed_or_has_something_to_say_is_not_used_again() {
        let idle = Idle::new(Clock::system());
        let (closed, theirs) = pair().await;
        drop(theirs);
        let (said, mut theirs) = pair().await;
        theirs.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
        for heard in [closed, said] {
            heard.readable().await.unwrap();
            idle.put(place(1), line(heard, idle.now()));
        }
        assert!(idle.take(&place(1)).is_none());
    }

    #[tokio::test]
    async fn one_that_has_waited_for_long_is_closed() {
        let clock = Clock::manual(UNIX_EPOCH);
        let idle = Idle::new(clock.clone());
        let ((old, mut theirs), (new, _new)) = (pair().await, pair().await);
        idle.put(place(1), line(old, idle.now()));
        clock.advance(IDLE);
        assert!(idle.take(&place(1)).is_none(), "before it is swept out, too");
        let (old, mut other) = pair().await;
        idle.put(place(1), line(old, idle.now()));
        clock.advance(IDLE);
        idle.put(place(2), line(new, idle.now()));
        idle.sweep();
        assert!(idle.take(&place(2)).is_some());
        for theirs in [&mut theirs, &mut other] {
            theirs.set_nonblocking(false).unwrap();
            assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "closed");
        }
        assert_eq!((idle.0.count.load(Ordering::Relaxed), idle.0.by_place.len()), (0, 1));
    }

    #[tokio::test]
    async fn sr_f19_none_rests_for_nearly_as_long_as_the_upstream_was_seen_to_keep_one() {
        for found_by in [|idle: &Idle| drop(idle.take(&place(1))), Idle::sweep] {
            let clock = Clock::manual(UNIX_EPOCH);
            let idle = Idle::new(clock.clone());
            assert!(!is_used(&idle, &clock, seconds(2)).await, "nobody knows yet");
            outlive(&idle, &clock).await;
            assert!(is_used(&idle, &clock, seconds(2)).await);
            put_and_close(&idle, &clock, seconds(2)).await;
            found_by(&idle);
            assert_eq!(idle.0.count.load(Ordering::Relaxed), 0, "freed");
            assert!(is_used(&idle, &clock, Duration::from_millis(1_300)).await);
            assert!(!is_used(&idle, &clock, Duration::from_millis(1_500)).await);
            idle.sweep();
            clock.advance(seconds(600));
            idle.sweep();
            assert_eq!(idle.0.by_place.len(), 0, "forgotten");
            outlive(&idle, &clock).await;
            assert!(is_used(&idle, &clock, seconds(2)).await);
        }
    }

    #[tokio::test]
    async fn none_rests_for_nearly_as_long_as_the_upstream_says_that_it_keeps_it() {
        let clock = Clock::manual(UNIX_EPOCH);
        let idle = Idle::new(clock.clone());
        for (rested, is_used) in [(1_400, true), (1_500, false)] {
            let (ours, _theirs) = pair().await;
            idle.put(place(1), Line { said: Some(seconds(2)), ..line(ours, idle.now()) });
            clock.advance(Duration::from_millis(rested));
            assert_eq!(idle.take(&place(1)).is_some(), is_used, "{rested}");
        }
    }

    #[tokio::test]
    async fn a_restart_says_for_a_moment_only_how_long_the_upstream_keeps_one() {
        let clock = Clock::manual(UNIX_EPOCH);
        let idle = Idle::new(clock.clone());
        put_and_close(&idle, &clock, Duration::from_millis(30)).await;
        idle.sweep();
        let mut theirs = Vec::new();
        for _ in 0..10 {
            let (ours, other) = pair().await;
            theirs.push(other);
            idle.put(place(1), line(ours, idle.now()));
            clock.advance(Duration::from_millis(110));
            assert!(idle.take(&place(1)).is_none(), "too short a rest to be used again");
            assert_eq!(idle.0.count.load(Ordering::Relaxed), 1, "only the oldest is kept");
        }
        idle.sweep();
        assert!(
            is_used(&idle, &clock, Duration::from_millis(800)).await,
            "that one has outlived what was learned"
        );
    }

    #[tokio::test]
    async fn a_reset_does_not_say_how_long_the_upstream_keeps_one() {
        let clock = Clock::manual(UNIX_EPOCH);
        let idle = Idle::new(clock.clone());
        outlive(&idle, &clock).await;
        let (mut ours, mut theirs) = pair().await;
        ours.write_all(b"unread").await.unwrap();
        theirs.set_nonblocking(false).unwrap();
        theirs.read_exact(&mut [0; 3]).unwrap();
        let watched = ours.into_std().unwrap();
        let seen = tokio::net::TcpStream::from_std(watched.try_clone().unwrap()).unwrap();
        idle.put(place(1), line(tokio::net::TcpStream::from_std(watched).unwrap(), idle.now()));
        clock.advance(seconds(1));
        drop(theirs);
        seen.readable().await.unwrap();
        assert!(idle.take(&place(1)).is_none());
        assert!(is_used(&idle, &clock, seconds(2)).await);
    }

    #[tokio::test]
    async fn one_rested_also_while_its_answer_waited_for_us() {
        let (ours, mut theirs) = pair().await;
        let mut line = line(ours, UNIX_EPOCH);
        theirs.write_all(b"x").unwrap();
        line.stream.read_exact(&mut [0]).await.unwrap();
        while patience::heard(&line.stream).unwrap() < Duration::from_millis(150) {
            task::yield_now().await;
        }
        drop(theirs);
        assert_eq!(line.stream.read(&mut [0]).await.unwrap(), 0);
        let after = patience::closed_after(&line.stream, Duration::ZERO).unwrap();
        assert!(after > Duration::from_millis(100), "{after:?}");
    }

    #[tokio::test]
    async fn after_one_that_was_closed_as_it_was_used_comes_a_new_one() {
        let idle = Idle::new(Clock::manual(UNIX_EPOCH));
        let (ours, _theirs) = pair().await;
        idle.put(place(1), line(ours, idle.now()));
        idle.closed(place(1), Duration::ZERO);
        assert!(idle.take(&place(1)).is_none());
        assert_eq!(idle.0.count.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_is_known_of_places_without_a_connection_is_bounded() {
        let idle = Idle::new(Clock::manual(UNIX_EPOCH));
        for peer in 0..2 * KNOWN as u64 {
            idle.closed(place(peer), seconds(2));
        }
        idle.sweep();
        assert_eq!(idle.0.by_place.len(), KNOWN);
    }

    #[tokio::test]
    async fn no_more_are_kept_than_may_be() {
        let idle = Idle::new(Clock::system());
        let (one, _theirs) = pair().await;
        idle.0.count.store(MOST, Ordering::Relaxed);
        idle.put(place(1), line(one, idle.now()));
        assert!(idle.take(&place(1)).is_none());
        assert_eq!(idle.0.count.load(Ordering::Relaxed), MOST);
    }
}
