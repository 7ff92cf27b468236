//! A client's connection that owns buffers only while something is in them. Those of Pingora's stream are there for as long
//! as the connection is open, idle or not. While a stream of events is sent on which nothing is said, it says that it is alive.
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{ALPN, SslDigest};
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::upstream::held::Held;

/// Bytes that are read at once, however few are asked for; and that are gathered until they are flushed, so that an answer is
/// sent in one piece.
const AT_ONCE: usize = 2048;

/// A comment and the end of no event, as a chunk.
const COMMENT: &[u8] = b"3\r\n:\n\n\r\n";

#[derive(Debug)]
pub struct Lean {
    stream: Stream,
    /// Read, not asked for yet.
    ahead: Bytes,
    /// Written, not flushed yet.
    held: Held,
    /// After how much silence a comment goes into the stream of events that is being sent, milliseconds. Zero: there is none.
    period: AtomicU32,
    /// An event has ended, and the next has not begun.
    is_between: AtomicBool,
    timer: Option<Pin<Box<Sleep>>>,
    /// Something was said since the timer began.
    has_spoken: bool,
}

impl Lean {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            ahead: Bytes::new(),
            held: Held::default(),
            period: AtomicU32::new(0),
            is_between: AtomicBool::new(false),
            timer: None,
            has_spoken: false,
        }
    }

    /// A stream of events begins, in chunks.
    pub fn keep_alive(&self, period: Duration) {
        self.period.store(u32::try_from(period.as_millis()).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.is_between(true);
    }

    /// Whether a comment would be inside of no event.
    pub fn is_between(&self, is_between: bool) {
        self.is_between.store(is_between, Ordering::Relaxed);
    }

    /// The stream of events is at its end.
    pub fn let_be(&self) {
        self.period.store(0, Ordering::Relaxed);
    }

    /// Sends a comment when it is time. Asked while nothing is being written: the client is waited on then.
    fn poll_silence(&mut self, cx: &mut Context<'_>) {
        let period = Duration::from_millis(self.period.load(Ordering::Relaxed).into());
        if period.is_zero() {
            self.timer = None;
            return;
        }
        loop {
            // What fails here fails at the next write as well.
            let _ = self.poll_all_sent(cx);
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(period)));
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            timer.set(sleep(period));
            let has_spoken = std::mem::take(&mut self.has_spoken);
            if !has_spoken && self.is_between.load(Ordering::Relaxed) && self.held.is_empty() {
                self.held.hold(COMMENT);
            }
        }
    }

    /// Sends what is held, to the network.
    fn poll_all_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held.poll_send(&mut self.stream, cx, &[]).map_ok(|_| ())
    }
}

impl AsyncRead for Lean {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.timer.is_some() || *this.period.get_mut() != 0 {
            this.poll_silence(cx);
        }
        if this.ahead.is_empty() {
            if into.remaining() >= AT_ONCE {
                return Pin::new(&mut this.stream).poll_read(cx, into);
            }
            // A read that was given more room than there are bytes shows that there are no more; one that fills its room has
            // to be followed by another.
            let mut space = [MaybeUninit::uninit(); AT_ONCE];
            let mut read = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            let (asked, ahead) = read.filled().split_at(into.remaining().min(read.filled().len()));
            into.put_slice(asked);
            if !ahead.is_empty() {
                this.ahead = Bytes::copy_from_slice(ahead);
            }
        } else {
            let length = into.remaining().min(this.ahead.len());
            into.put_slice(&this.ahead.split_to(length));
            if !this.ahead.has_remaining() {
                this.ahead = Bytes::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Lean {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.has_spoken = true;
        let length = parts.iter().map(|part| part.len()).sum();
        if this.held.len() + length <= AT_ONCE {
            if this.held.is_empty() {
                this.held = Held::with_room(AT_ONCE);
            }
            parts.iter().for_each(|part| this.held.hold(part));
            return Poll::Ready(Ok(length));
        }
        match ready!(this.held.poll_send(&mut this.stream, cx, parts))? {
            0 => Pin::new(&mut this.stream).poll_write_vectored(cx, parts),
            taken => Poll::Ready(Ok(taken)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_all_sent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_sent(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

/// An answer that breaks off is sent as far as it came, if the socket takes it.
impl Drop for Lean {
    fn drop(&mut self) {
        let _ = self.poll_sent(&mut Context::from_waker(Waker::noop()));
    }
}

#[async_trait]
impl Shutdown for Lean {
    async fn shutdown(&mut self) {
        std::future::poll_fn(|cx| self.poll_sent(cx)).await.ok();
        self.stream.shutdown().await;
    }
}

impl UniqueID for Lean {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Lean {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for Lean {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_write_pending_time()
    }
}

impl GetProxyDigest for Lean {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Lean {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}

impl Peek for Lean {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// A connection whose network takes `room` bytes at a time, and its other end.
    fn connection(room: usize) -> (Lean, DuplexStream) {
        let (here, there) = duplex(room);
        (Lean::new(Box::new(here)), there)
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    #[tokio::test]
    async fn an_answer_is_sent_when_it_is_flushed_and_leaves_nothing_behind() {
        let (mut connection, mut client) = connection(65536);
        connection.write_all(b"head, ").await.unwrap();
        connection.write_all(b"body").await.unwrap();
        let mut read = [0; 100];
        let early = tokio::time::timeout(Duration::from_millis(20), client.read(&mut read)).await;
        assert!(early.is_err());
        connection.flush().await.unwrap();
        let length = client.read(&mut read).await.unwrap();
        assert_eq!(&read[..length], b"head, body");
        assert_eq!(connection.held.room(), 0);
        // Nor where what was held goes out together with what is too large to be held.
        connection.write_all(b"head, ").await.unwrap();
        connection.write_all(&bytes(2 * AT_ONCE)).await.unwrap();
        connection.flush().await.unwrap();
        assert_eq!(connection.held.room(), 0);
    }

    #[tokio::test]
    async fn whatever_the_pieces_it_arrives_whole_and_in_order() {
        for room in [1, 7, 1000, 65536] {
            for piece in [1, 3, 500, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE] {
                let sent = bytes(4 * AT_ONCE + 5);
                let (mut connection, mut client) = connection(room);
                let expected = sent.clone();
                let writing = tokio::spawn(async move {
                    for (number, piece) in sent.chunks(piece).enumerate() {
                        let (first, second) = piece.split_at(piece.len() / 2);
                        // As a chunk of a body is written.
                        let mut parts = Bytes::copy_from_slice(first).chain(second).chain(&b""[..]);
                        connection.write_all_buf(&mut parts).await.unwrap();
                        if number % 3 == 0 {
                            connection.flush().await.unwrap();
                        }
                    }
                    Shutdown::shutdown(&mut connection).await;
                });
                let mut arrived = Vec::new();
                client.read_to_end(&mut arrived).await.unwrap();
                assert!(arrived == expected, "{room} {piece}");
                writing.await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_sent_as_far_as_it_came() {
        let (mut connection, mut client) = connection(65536);
        connection.write_all(b"half an ans").await.unwrap();
        drop(connection);
        let mut arrived = String::new();
        client.read_to_string(&mut arrived).await.unwrap();
        assert_eq!(arrived, "half an ans");
    }

    #[tokio::test]
    async fn read_in_whatever_pieces_nothing_is_lost() {
        for piece in [1, 3, 500, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1] {
            let sent = bytes(3 * AT_ONCE + 5);
            let (mut connection, mut client) = connection(65536);
            client.write_all(&sent).await.unwrap();
            drop(client);
            let (mut arrived, mut read) = (Vec::new(), vec![0; piece]);
            while let length @ 1.. = connection.read(&mut read).await.unwrap() {
                arrived.extend_from_slice(&read[..length]);
            }
            assert!(arrived == sent, "{piece}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_says_that_it_is_alive_between_events_alone() {
        let (mut connection, mut client) = connection(65536);
        let period = Duration::from_secs(10);
        let mut heard = async |connection: &mut Lean, time: u32, expected: &str| {
            let waiting = tokio::time::timeout(period * time, connection.read_u8());
            assert!(waiting.await.is_err(), "the client has said something");
            let mut read = vec![0; expected.len() + 1];
            let length = match client.read(&mut read).now_or_never() {
                Some(length) => length.unwrap(),
                None => 0,
            };
            assert_eq!(std::str::from_utf8(&read[..length]).unwrap(), expected);
        };
        heard(&mut connection, 5, "").await;
        connection.write_all(b"head").await.unwrap();
        connection.keep_alive(period);
        // What was begun goes first.
        heard(&mut connection, 1, "head").await;
        heard(&mut connection, 3, &"3\r\n:\n\n\r\n".repeat(3)).await;
        connection.is_between(false);
        connection.write_all(b"5\r\ndata:\r\n").await.unwrap();
        connection.flush().await.unwrap();
        heard(&mut connection, 5, "5\r\ndata:\r\n").await;
        connection.is_between(true);
        heard(&mut connection, 1, "3\r\n:\n\n\r\n").await;
        // Whoever was heard a moment ago need not say more.
        connection.write_all(b"2\r\nab\r\n").await.unwrap();
        connection.flush().await.unwrap();
        heard(&mut connection, 1, "2\r\nab\r\n").await;
        heard(&mut connection, 1, "3\r\n:\n\n\r\n").await;
        connection.let_be();
        heard(&mut connection, 5, "").await;
    }

    #[tokio::test(start_paused = true)]
    async fn to_whom_nothing_gets_through_no_more_than_one_comment_waits() {
        let (mut connection, mut client) = connection(4);
        let period = Duration::from_secs(10);
        connection.keep_alive(period);
        assert!(tokio::time::timeout(period * 20, connection.read_u8()).await.is_err());
        let sending = tokio::spawn(async move {
            connection.let_be();
            connection.write_all(b"3\r\nend\r\n").await.unwrap();
            Shutdown::shutdown(&mut connection).await;
        });
        let mut arrived = String::new();
        client.read_to_string(&mut arrived).await.unwrap();
        assert_eq!(arrived, "3\r\n:\n\n\r\n3\r\nend\r\n");
        sending.await.unwrap();
    }
}
