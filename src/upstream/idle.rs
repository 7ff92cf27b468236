//! Upstream connections between two requests. Whoever asks again within a few seconds finds one; nobody watches the others
//! meanwhile, so a connection that the upstream has closed is only found to be closed when it is asked for.
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use futures_util::FutureExt;
use pingora_core::protocols::Stream;
use tokio::io::AsyncReadExt;
use tokio::task;

use super::peer::IDLE;
use crate::clock::Clock;
use crate::map::Shared;

/// Idle connections that are kept: as many as are ever busy at once, or they are only made to be closed.
pub const MOST: usize = 2048;

/// Where a connection leads. The address besides the hash of all that matters, so that no two places are taken for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub peer: u64,
    pub address: Option<SocketAddr>,
}

/// Connections by where they lead. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Idle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    /// The one used last is at the end.
    by_place: Shared<Place, VecDeque<Resting>>,
    count: AtomicUsize,
}

#[derive(Debug)]
struct Resting {
    stream: Stream,
    since: SystemTime,
}

impl Idle {
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, by_place: Shared::default(), count: AtomicUsize::new(0) }))
    }

    pub fn put(&self, place: Place, stream: Stream) {
        if self.0.count.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.0.count.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let resting = Resting { stream, since: self.0.clock.now() };
        self.0.by_place.entry(place).or_default().push_back(resting);
    }

    /// The one that was used last, if it can be used again.
    pub fn take(&self, place: &Place) -> Option<Stream> {
        loop {
            let Resting { mut stream, since } = self.0.by_place.get_mut(place)?.pop_back()?;
            self.0.count.fetch_sub(1, Ordering::Relaxed);
            if self.0.is_fresh(since) && is_quiet(&mut stream) {
                return Some(stream);
            }
        }
    }

    /// Closes what nobody has asked for.
    pub fn sweep(&self) {
        self.0.by_place.retain(|_, resting| {
            let before = resting.len();
            resting.retain(|one| self.0.is_fresh(one.since));
            self.0.count.fetch_sub(before - resting.len(), Ordering::Relaxed);
            !resting.is_empty()
        });
    }
}

impl Inner {
    fn is_fresh(&self, since: SystemTime) -> bool {
        self.clock.now().duration_since(since).unwrap_or_default() < IDLE
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

    fn boxed(stream: tokio::net::TcpStream) -> Stream {
        Box::new(TcpStream::from(stream))
    }

    #[tokio::test]
    async fn the_one_used_last_comes_first_and_only_for_its_place() {
        let idle = Idle::new(Clock::system());
        let ((first, _first), (second, _second)) = (pair().await, pair().await);
        let [one, other] = [&first, &second].map(AsRawFd::as_raw_fd);
        idle.put(place(1), boxed(first));
        idle.put(place(1), boxed(second));
        assert!(idle.take(&place(2)).is_none());
        let taken = [idle.take(&place(1)).unwrap(), idle.take(&place(1)).unwrap()];
        assert_eq!(taken.map(|stream| stream.id()), [other, one]);
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
            idle.put(place(1), boxed(heard));
        }
        assert!(idle.take(&place(1)).is_none());
    }

    #[tokio::test]
    async fn one_that_has_waited_for_long_is_closed() {
        let clock = Clock::manual(UNIX_EPOCH);
        let idle = Idle::new(clock.clone());
        let ((old, mut theirs), (new, _new)) = (pair().await, pair().await);
        idle.put(place(1), boxed(old));
        clock.advance(IDLE);
        assert!(idle.take(&place(1)).is_none(), "before it is swept out, too");
        let (old, mut other) = pair().await;
        idle.put(place(1), boxed(old));
        clock.advance(IDLE);
        idle.put(place(2), boxed(new));
        idle.sweep();
        assert!(idle.take(&place(2)).is_some());
        for theirs in [&mut theirs, &mut other] {
            theirs.set_nonblocking(false).unwrap();
            assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "closed");
        }
        assert_eq!((idle.0.count.load(Ordering::Relaxed), idle.0.by_place.len()), (0, 1));
    }

    #[tokio::test]
    async fn no_more_are_kept_than_may_be() {
        let idle = Idle::new(Clock::system());
        let (one, _theirs) = pair().await;
        idle.0.count.store(MOST, Ordering::Relaxed);
        idle.put(place(1), boxed(one));
        assert!(idle.take(&place(1)).is_none());
        assert_eq!(idle.0.count.load(Ordering::Relaxed), MOST);
    }
}
