//! A connector whose connections send the header of a POST together with the first of its body: one segment and one
//! wake-up of the upstream instead of two. Pingora flushes the header at once; here it waits until the body comes, or
//! until an answer has been asked for twice, which says that no body is at hand.
//!
//! Nor does the request go out at once, but when all else that is ready has had its turn: many that come together leave one right behind
//! the other. An upstream on the same machine need not be woken for each, a tenth of what a call costs. One that is alone does not wait.
//!
//! Pingora asks this connector for peers whose ALPN is `ALPN::Custom` and uses what it gets as a connection of its own. With TLS
//! these are upstreams of which it is known that they speak HTTP/1.1 ([`super::spoken`]); in the handshake that is what is offered.
//!
//! Between two requests these connections are with us. Pingora's own pool has a task watch each, and asks the kernel where
//! it leads before it is used again, which together is a tenth of what a call costs. When Pingora is done with a connection and
//! would keep it, it asks it for a byte without waiting: a connection with nothing to say goes to [`Idle`] then, and Pingora, who
//! hears that it has ended, forgets it. Were the question ever asked in another way, Pingora would keep it.
//!
//! A connection may be closed in the very moment in which a request is put on it. Whether that came too late is what TCP says: a
//! good-bye (FIN) acknowledges all that was there before it. Where it acknowledges no byte of the request, the upstream's program
//! cannot have had any, and whatever the request asks for, it may be sent again ([`is_untouched`]). A reset after the good-bye hides
//! nothing of that: reads end as before, and writes find a broken pipe. A reset alone proves nothing.
//!
//! With TLS the same counts are taken of TCP, and its good-bye alone counts: that of TLS (`close_notify`) comes before it and acknowledges
//! nothing, so what ends by it has to wait for the other. A reset in between proves nothing either.
//!
//! Nor can it be told from outside whether a program that had a request and closed has read it. So none is put on a connection that
//! may be about to be closed: that is asked when the connection is chosen and again when the first byte is to go out, which may be
//! much later. A request that is too late for its connection goes to a new one (`peer::afresh`).
use std::any::Any;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora::{Error, Result};
use pingora_core::connectors::http::custom::{Connection, Connector};
use pingora_core::connectors::{ConnectorOptions, TransportConnector};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::{ALPN, CustomALPN, SslDigest};
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::held::Held;
use super::idle::{Idle, Line, Place};
use super::{held, patience, peer};

const NO_SOCKET: UniqueIDType = -1;
/// How often, and how long each time, TCP's good-bye is waited for after that of TLS. They are sent one after the other.
const LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(1);

/// What a peer must ask for to be connected here.
pub fn alpn() -> ALPN {
    ALPN::Custom(CustomALPN::new(b"joined".to_vec()))
}

/// The upstream had said good-bye before any of the request was there, or would soon, and nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("closed before the request came")]
struct Untouched;

/// Whether the upstream provably had no byte of the request that ended so.
pub fn is_untouched(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.and_then(io::Error::get_ref).is_some_and(|cause| cause.is::<Untouched>())
}

/// Makes such connections.
pub struct Joining {
    connector: TransportConnector,
    idle: Idle,
}

impl Joining {
    /// `options`: which certificates are trusted.
    pub fn new(idle: Idle, options: Option<ConnectorOptions>) -> Self {
        Self { connector: TransportConnector::new(options), idle }
    }

    async fn connect<P: Peer + Send + Sync + 'static>(&self, peer: &P) -> Result<Line> {
        let sealed = (peer as &dyn Any).downcast_ref::<HttpPeer>().filter(|_| peer.tls());
        let stream = match sealed.cloned() {
            None => self.connector.new_stream(peer).await?,
            Some(mut peer) => {
                peer.options.alpn = ALPN::H1;
                self.connector.new_stream(&peer).await?
            }
        };
        let mut line = Line::new(stream, self.idle.now());
        line.is_sealed = sealed.is_some();
        if line.is_sealed {
            line.sent = patience::acknowledged(&line.stream).unwrap_or_default();
        }
        Ok(line)
    }
}

#[async_trait]
impl Connector for Joining {
    type Session = ();

    async fn get_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        peer: &P,
    ) -> Result<(Connection<()>, bool)> {
        let place = Place::of(peer);
        let rested = if peer::is_afresh(peer) { None } else { self.idle.take(&place) };
        let line = match rested {
            Some(line) => line,
            None => Box::pin(self.connect(peer)).await?,
        };
        let (idle, line, held) = (self.idle.clone(), Some(line), Held::default());
        let joined = Joined {
            line,
            idle,
            place,
            held,
            asked: false,
            gave_way: false,
            unflushed: false,
            written: 0,
            answered: false,
            looks: 0,
            look: None,
        };
        Ok((Connection::Stream(Box::new(joined)), false))
    }

    /// There are only streams here.
    async fn reused_http_session<P: Peer + Send + Sync + 'static>(&self, _peer: &P) -> Option<()> {
        None
    }

    async fn release_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        _session: (),
        _peer: &P,
        _idle_timeout: Option<Duration>,
    ) {
    }
}

#[derive(Debug)]
struct Joined {
    /// Gone when it is with `idle` again.
    line: Option<Line>,
    idle: Idle,
    place: Place,
    /// A header that waits for its body.
    held: Held,
    /// Whether an answer was asked for meanwhile.
    asked: bool,
    /// Whether all else that was ready has had its turn since.
    gave_way: bool,
    /// What was held has gone out, perhaps not all the way.
    unflushed: bool,
    /// Bytes of the request that were taken, held ones too.
    written: u64,
    /// Whether any of an answer has come.
    answered: bool,
    /// For TCP's good-bye, after that of TLS.
    looks: u32,
    look: Option<Pin<Box<Sleep>>>,
}

impl Joined {
    /// Whether the upstream, which has closed the connection, had no byte of the request when it did.
    fn is_untouched(&self) -> bool {
        if self.answered {
            return false;
        }
        if self.written == self.held.waiting() as u64 {
            return true;
        }
        self.line
            .as_ref()
            .is_some_and(|line| patience::acknowledged(&line.stream).is_some_and(|bytes| bytes <= line.sent))
    }

    /// Whether the first byte of a request may go out now.
    fn in_time(&mut self) -> io::Result<()> {
        let is_first = self.written == self.held.waiting() as u64;
        let Some(line) = self.line.as_mut().filter(|_| is_first) else { return Ok(()) };
        let now = self.idle.now();
        let is_late = line.until.is_some_and(|until| now >= until);
        if is_late || line.is_sealed && line.until.is_some() && !patience::is_open(&line.stream) {
            return Err(io::Error::other(Untouched));
        }
        line.asked = now;
        Ok(())
    }

    /// How a request ends that came too late. That it did shows how long the upstream keeps a connection.
    fn untouched(&mut self) -> io::Error {
        if let Some(rested) = self.line.as_mut().and_then(|line| line.rested.take()) {
            self.idle.closed(self.place, rested);
        }
        io::Error::other(Untouched)
    }

    /// A broken pipe is what is left of a good-bye when the reset for what was sent after it has come.
    fn judged(&mut self, error: io::Error) -> io::Error {
        match error.kind() == io::ErrorKind::BrokenPipe && self.is_untouched() {
            true => self.untouched(),
            false => error,
        }
    }

    /// Between two requests it is with `idle`.
    fn rest(&mut self) -> bool {
        let Some(mut line) = self.line.take() else { return false };
        match line.is_sealed {
            true => line.sent = patience::acknowledged(&line.stream).unwrap_or_default(),
            false => line.sent += self.written - self.held.waiting() as u64,
        }
        self.idle.put(self.place, line);
        true
    }

    /// Whether TCP has said good-bye too, where TLS has.
    fn poll_good_bye(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            let is_any_sent = self.written > self.held.waiting() as u64;
            let line = self.line.as_ref().filter(|line| line.is_sealed && is_any_sent);
            let Some(line) = line else { return Poll::Ready(true) };
            if !patience::is_open(&line.stream) || self.looks == LOOKS {
                return Poll::Ready(patience::is_closed(&line.stream));
            }
            ready!(self.look.get_or_insert_with(|| Box::pin(sleep(LOOK))).as_mut().poll(cx));
            (self.look, self.looks) = (None, self.looks + 1);
        }
    }

    fn poll_stream<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.line {
            Some(line) => poll(Pin::new(&mut line.stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Sends what is held and `more`; says how much of `more` was taken.
    fn poll_send(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.line {
            Some(line) => self.held.poll_send(&mut line.stream, cx, &[IoSlice::new(more)]),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

/// Whether a read is the question that decides if a connection is kept: of one byte, by somebody who does not wait, whose
/// waker therefore stands for no task.
fn is_last_question(cx: &Context<'_>, into: &ReadBuf<'_>) -> bool {
    into.capacity() == 1 && cx.waker().data().is_null()
}

impl AsyncWrite for Joined {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.held.is_empty() && held::is_header_of_post(bytes) {
            this.held.hold(bytes);
            (this.asked, this.gave_way) = (false, false);
            this.written += bytes.len() as u64;
            return Poll::Ready(Ok(bytes.len()));
        }
        if !this.held.is_empty() && !std::mem::replace(&mut this.gave_way, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.in_time()?;
        let mut taken = ready!(this.poll_send(cx, bytes)).map_err(|error| this.judged(error))?;
        if taken == 0 {
            let written = ready!(this.poll_stream(|stream| stream.poll_write(cx, bytes)));
            taken = written.map_err(|error| this.judged(error))?;
        }
        this.written += taken as u64;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.held.is_empty() {
            true => this.poll_stream(|stream| stream.poll_flush(cx)),
            false => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx, &[]))?;
        this.poll_stream(|stream| stream.poll_shutdown(cx))
    }
}

impl AsyncRead for Joined {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.held.is_empty() {
            if !this.asked {
                this.asked = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            this.in_time()?;
            ready!(this.poll_send(cx, &[])).map_err(|error| this.judged(error))?;
            this.unflushed = this.line.as_ref().is_some_and(|line| line.is_sealed);
        }
        if this.unflushed {
            ready!(this.poll_stream(|stream| stream.poll_flush(cx))).map_err(|error| this.judged(error))?;
            this.unflushed = false;
        }
        let (before, room) = (into.filled().len(), into.remaining());
        let read = this.poll_stream(|stream| stream.poll_read(cx, into));
        // TCP has said good-bye, and TLS has not.
        let is_cut = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
        if matches!(&read, Poll::Ready(Err(error)) if is_cut(error))
            && this.written > 0
            && this.is_untouched()
        {
            return Poll::Ready(Err(this.untouched()));
        }
        if matches!(read, Poll::Ready(Ok(()))) {
            let heard = into.filled().get(before..).unwrap_or_default();
            let is_end = heard.is_empty() && room > 0;
            let is_early = is_end && this.written > 0 && !this.answered;
            if is_early && ready!(this.poll_good_bye(cx)) && this.is_untouched() {
                return Poll::Ready(Err(this.untouched()));
            }
            if !this.answered
                && let Some(line) = &mut this.line
            {
                line.said = patience::said(heard);
            }
            this.answered |= !is_end;
        }
        if read.is_pending() && is_last_question(cx, into) && this.rest() {
            return Poll::Ready(Ok(()));
        }
        read
    }
}

#[async_trait]
impl Shutdown for Joined {
    async fn shutdown(&mut self) {
        if let Some(line) = &mut self.line {
            line.stream.shutdown().await;
        }
    }
}

/// The descriptor of the socket, by which Pingora's pool tells whether a connection is what it should be.
impl UniqueID for Joined {
    fn id(&self) -> UniqueIDType {
        self.line.as_ref().map_or(NO_SOCKET, |line| line.stream.id())
    }
}

impl GetTimingDigest for Joined {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.line.as_ref().map(|line| line.stream.get_timing_digest()).unwrap_or_default()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.line.as_ref().map(|line| line.stream.get_read_pending_time()).unwrap_or_default()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.line.as_ref().map(|line| line.stream.get_write_pending_time()).unwrap_or_default()
    }
}

impl GetProxyDigest for Joined {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.line.as_ref()?.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Joined {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.line.as_ref()?.stream.get_socket_digest()
    }
}

impl Ssl for Joined {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.line.as_ref()?.stream.get_ssl_digest()
    }
}

impl Peek for Joined {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::cell::Cell;
    use std::time::UNIX_EPOCH;

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use pingora_core::upstreams::peer::HttpPeer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task;

    use super::*;
    use crate::clock::Clock;

    #[expect(clippy::disallowed_methods, reason = "given a socket address it neither resolves nor unwraps")]
    fn peer(listener: &TcpListener) -> HttpPeer {
        let mut peer = HttpPeer::new(listener.local_addr().unwrap(), false, "host".to_owned());
        peer.options.alpn = alpn();
        peer
    }

    async fn stream(joining: &Joining, listener: &TcpListener) -> Stream {
        match joining.get_http_session(&peer(listener)).await.unwrap().0 {
            Connection::Stream(stream) => stream,
            Connection::Session(()) => panic!("a session"),
        }
    }

    /// What Pingora asks before it puts a connection into its pool, and what it hears.
    fn last_question(stream: &mut Stream) -> Option<usize> {
        task::unconstrained(stream.read(&mut [0; 1])).now_or_never().map(Result::unwrap)
    }

    #[tokio::test]
    async fn a_connection_that_pingora_would_keep_comes_back_to_us() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let joining = Joining::new(Idle::new(Clock::system()), None);
        let mut first = stream(&joining, &listener).await;
        let id = first.id();
        assert_eq!(last_question(&mut first), Some(0), "for Pingora it has ended");
        drop(first);
        assert_eq!(stream(&joining, &listener).await.id(), id);
    }

    /// What is read of the answer on a connection that is used again, after what both sides do in `course`.
    async fn answer(course: impl AsyncFnOnce(&mut Stream, tokio::net::TcpStream)) -> io::Result<usize> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let joining = Joining::new(Idle::new(Clock::system()), None);
        let mut first = stream(&joining, &listener).await;
        let mut theirs = listener.accept().await.unwrap().0;
        first.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        theirs.read_exact(&mut [0; 18]).await.unwrap();
        theirs.write_all(b"x").await.unwrap();
        first.read_exact(&mut [0]).await.unwrap();
        assert_eq!(last_question(&mut first), Some(0));
        drop(first);
        let mut again = stream(&joining, &listener).await;
        course(&mut again, theirs).await;
        again.read(&mut [0; 64]).await
    }

    const SECOND: Duration = Duration::from_secs(1);
    const POST: &[u8] = b"POST /mcp HTTP/1.1\r\n\r\n";

    fn proves_it(read: io::Result<usize>) -> bool {
        read.is_err_and(|error| error.get_ref().is_some_and(|cause| cause.is::<Untouched>()))
    }

    #[tokio::test]
    async fn sr_f19_a_good_bye_before_the_request_proves_that_it_was_not_carried_out() {
        let closed_before = answer(async |ours, theirs| {
            drop(theirs);
            ours.write_all(POST).await.unwrap();
            ours.write_all(b"body").await.unwrap();
        });
        assert!(proves_it(closed_before.await));
        let closed_before_more_than_goes_out_at_once = answer(async |ours, theirs| {
            drop(theirs);
            ours.write_all(POST).await.unwrap();
            let _reset = ours.write_all(&vec![0; 1 << 20]).await;
        });
        assert!(proves_it(closed_before_more_than_goes_out_at_once.await));
        let closed_after_it_was_read = answer(async |ours, mut theirs| {
            ours.write_all(POST).await.unwrap();
            ours.write_all(b"body").await.unwrap();
            theirs.read_exact(&mut [0; POST.len() + 4]).await.unwrap();
        });
        assert!(matches!(closed_after_it_was_read.await, Ok(0)));
        let closed_with_some_of_it_unread = answer(async |ours, mut theirs| {
            ours.write_all(POST).await.unwrap();
            ours.write_all(b"body").await.unwrap();
            theirs.read_exact(&mut [0; 4]).await.unwrap();
        });
        assert!(!proves_it(closed_with_some_of_it_unread.await));
        let begun_to_answer = answer(async |ours, mut theirs| {
            theirs.write_all(b"y").await.unwrap();
            drop(theirs);
            ours.read_exact(&mut [0]).await.unwrap();
            ours.write_all(POST).await.unwrap();
            ours.write_all(b"body").await.unwrap();
        });
        assert!(!proves_it(begun_to_answer.await));
    }

    /// A call on a new connection, which then rests.
    async fn call(joining: &Joining, listener: &TcpListener, answer: &[u8]) -> tokio::net::TcpStream {
        let mut ours = stream(joining, listener).await;
        let mut theirs = listener.accept().await.unwrap().0;
        ours.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        theirs.read_exact(&mut [0; 18]).await.unwrap();
        theirs.write_all(answer).await.unwrap();
        ours.read_exact(&mut vec![0; answer.len()]).await.unwrap();
        assert_eq!(last_question(&mut ours), Some(0));
        theirs
    }

    /// Whether it is the one whose other end this is.
    async fn is_used_again(
        joining: &Joining,
        listener: &TcpListener,
        mut theirs: tokio::net::TcpStream,
    ) -> bool {
        let (mut ours, mut byte) = (stream(joining, listener).await, [0]);
        ours.write_all(b"x").await.unwrap();
        tokio::select! {
            read = theirs.read(&mut byte) => read.unwrap() == 1,
            accepted = listener.accept() => accepted.is_err(),
        }
    }

    #[tokio::test]
    async fn how_long_a_connection_rests_is_learned_from_what_is_said_and_from_requests_that_came_too_late() {
        let clock = Clock::manual(UNIX_EPOCH);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rest = Duration::from_millis(1_600);
        const LONG: &[u8] = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=9\r\n\r\n";

        let joining = Joining::new(Idle::new(clock.clone()), None);
        let theirs = call(&joining, &listener, b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=2\r\n\r\n").await;
        clock.advance(rest);
        assert!(!is_used_again(&joining, &listener, theirs).await, "said");

        let joining = Joining::new(Idle::new(clock.clone()), None);
        let theirs = call(&joining, &listener, LONG).await;
        clock.advance(rest);
        assert!(is_used_again(&joining, &listener, theirs).await);

        let theirs = call(&joining, &listener, LONG).await;
        clock.advance(2 * SECOND);
        let mut late = stream(&joining, &listener).await;
        drop(theirs);
        late.write_all(POST).await.unwrap();
        late.write_all(b"body").await.unwrap();
        assert!(proves_it(late.read(&mut [0; 64]).await));
        let theirs = call(&joining, &listener, LONG).await;
        clock.advance(rest);
        assert!(!is_used_again(&joining, &listener, theirs).await, "closed after two seconds");
    }

    #[tokio::test]
    async fn sr_f19_a_request_that_is_late_for_its_connection_is_not_sent_on_it() {
        let clock = Clock::manual(UNIX_EPOCH);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (waits, is_late) in [(SECOND, false), (4 * SECOND, true)] {
            for request in [&b"GET / HTTP/1.1\r\n\r\n"[..], POST] {
                let joining = Joining::new(Idle::new(clock.clone()), None);
                let mut theirs = call(&joining, &listener, b"HTTP/1.1 200 OK\r\n\r\n").await;
                let mut ours = stream(&joining, &listener).await;
                clock.advance(waits);
                let written = async {
                    ours.write_all(request).await?;
                    match request == POST {
                        true => ours.write_all(b"body").await.map(|()| 0),
                        false => Ok(0),
                    }
                };
                assert_eq!(proves_it(written.await), is_late);
                drop(ours);
                let mut sent = Vec::new();
                theirs.read_to_end(&mut sent).await.unwrap();
                assert_eq!(sent.is_empty(), is_late);
            }
        }
    }

    #[tokio::test]
    async fn requests_that_come_together_are_all_made_ready_before_the_first_leaves() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let joining = Joining::new(Idle::new(Clock::system()), None);
        let (made_ready, sent) = (Cell::new(0), Cell::new(0));
        let mut streams = Vec::new();
        for _ in 0..5 {
            streams.push(stream(&joining, &listener).await);
        }
        let requests = streams.iter_mut().map(async |ours| {
            ours.write_all(POST).await.unwrap();
            assert_eq!(sent.get(), 0);
            made_ready.set(made_ready.get() + 1);
            ours.write_all(b"body").await.unwrap();
            assert_eq!(made_ready.get(), 5);
            sent.set(sent.get() + 1);
        });
        join_all(requests).await;
        assert_eq!(sent.get(), 5);
        // What comes later of a body does not wait again.
        assert_eq!(streams[0].write(b"more").now_or_never().unwrap().unwrap(), 4);
        let mut theirs = listener.accept().await.unwrap().0;
        let mut all = [0; POST.len() + 8];
        theirs.read_exact(&mut all).await.unwrap();
        assert_eq!(all[..], [POST, b"bodymore"].concat());
    }

    #[tokio::test]
    async fn a_request_that_is_sent_again_has_a_connection_of_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let joining = Joining::new(Idle::new(Clock::system()), None);
        let _theirs = call(&joining, &listener, b"HTTP/1.1 200 OK\r\n\r\n").await;
        let mut peer = peer(&listener);
        peer::afresh(&mut peer);
        let _again = joining.get_http_session(&peer).await.unwrap();
        assert!(joining.idle.take(&Place::of(&peer)).is_some(), "what rested still does");
    }

    #[tokio::test]
    async fn sr_f19_a_connection_rests_while_its_answer_waits_for_us_and_not_while_its_upstream_is_at_work() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for answer_waits in [true, false] {
            let joining = Joining::new(Idle::new(Clock::system()), None);
            let mut ours = stream(&joining, &listener).await;
            let mut theirs = listener.accept().await.unwrap().0;
            joining.idle.closed(Place::of(&peer(&listener)), Duration::from_millis(400));
            ours.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            theirs.read_exact(&mut [0; 18]).await.unwrap();
            if answer_waits {
                theirs.write_all(b"x").await.unwrap();
            }
            // Nobody has said anything since the connection was made, or since the answer.
            while patience::heard(&ours).unwrap() < Duration::from_millis(350) {
                task::yield_now().await;
            }
            if !answer_waits {
                theirs.write_all(b"x").await.unwrap();
            }
            ours.read_exact(&mut [0]).await.unwrap();
            assert_eq!(last_question(&mut ours), Some(0));
            assert_eq!(is_used_again(&joining, &listener, theirs).await, !answer_waits);
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_a_byte_gets_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = stream(&Joining::new(Idle::new(Clock::system()), None), &listener).await;
        let mut theirs = listener.accept().await.unwrap().0;
        let mut byte = [0; 1];
        let (read, written) = tokio::join!(stream.read(&mut byte), theirs.write_all(b"x"));
        written.unwrap();
        assert_eq!((read.unwrap(), byte), (1, *b"x"));
    }
}
