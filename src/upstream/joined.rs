//! A connector whose connections send the header of a POST together with the first of its body: one segment and one
//! wake-up of the upstream instead of two. Pingora flushes the header at once; here it waits until the body comes, or
//! until an answer has been asked for twice, which says that no body is at hand.
//!
//! Pingora goes on to use, pool and check these connections as its own. It asks this connector for peers whose ALPN is
//! `ALPN::Custom`, and only for new connections; TLS would need another, since that name is offered in the handshake.
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora::Result;
use pingora_core::connectors::TransportConnector;
use pingora_core::connectors::http::custom::{Connection, Connector};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::{ALPN, CustomALPN};
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use pingora_core::upstreams::peer::Peer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a peer must ask for to be connected here.
pub fn alpn() -> ALPN {
    ALPN::Custom(CustomALPN::new(b"joined".to_vec()))
}

/// Makes such connections.
pub struct Joining(TransportConnector);

impl Default for Joining {
    fn default() -> Self {
        Self(TransportConnector::new(None))
    }
}

#[async_trait]
impl Connector for Joining {
    type Session = ();

    async fn get_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        peer: &P,
    ) -> Result<(Connection<()>, bool)> {
        let stream = self.0.new_stream(peer).await?;
        let joined = Joined { stream, held: Vec::new(), sent: 0, asked: false };
        Ok((Connection::Stream(Box::new(joined)), false))
    }

    /// Pingora's pool comes next.
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
    stream: Stream,
    /// A header that waits for its body; `sent` bytes of it are on their way.
    held: Vec<u8>,
    sent: usize,
    /// Whether an answer was asked for meanwhile.
    asked: bool,
}

impl Joined {
    /// Sends what is held and `more`; says how much of `more` was taken.
    fn poll_send(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        while self.sent < self.held.len() {
            let held = self.held.get(self.sent..).unwrap_or_default();
            let parts = [IoSlice::new(held), IoSlice::new(more)];
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &parts))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if let Some(of_more) = written.checked_sub(held.len()) {
                self.held.clear();
                self.sent = 0;
                return Poll::Ready(Ok(of_more));
            }
            self.sent += written;
        }
        Poll::Ready(Ok(0))
    }
}

fn is_header_of_post(bytes: &[u8]) -> bool {
    bytes.starts_with(b"POST ") && bytes.ends_with(b"\r\n\r\n")
}

impl AsyncWrite for Joined {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.held.is_empty() && is_header_of_post(bytes) {
            this.held.extend_from_slice(bytes);
            this.asked = false;
            return Poll::Ready(Ok(bytes.len()));
        }
        let taken = ready!(this.poll_send(cx, bytes))?;
        if taken > 0 {
            return Poll::Ready(Ok(taken));
        }
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.held.is_empty() {
            true => Pin::new(&mut this.stream).poll_flush(cx),
            false => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx, &[]))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
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
            ready!(this.poll_send(cx, &[]))?;
        }
        Pin::new(&mut this.stream).poll_read(cx, into)
    }
}

#[async_trait]
impl Shutdown for Joined {
    async fn shutdown(&mut self) {
        self.stream.shutdown().await;
    }
}

/// The descriptor of the socket, by which Pingora's pool tells whether a connection is what it should be.
impl UniqueID for Joined {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl GetTimingDigest for Joined {
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

impl GetProxyDigest for Joined {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Joined {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}

impl Ssl for Joined {}
impl Peek for Joined {}
