//! A connection of which something is known that it does not say of itself: bytes that were read already, whose it really is, and
//! who its client has proven to be; over HTTP/2 its frames are looked at as they pass.
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
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

use super::calm::Calm;

#[derive(Debug)]
pub struct Wire {
    pub(super) stream: Stream,
    /// Read, and to be read again.
    pub(super) ahead: Bytes,
    /// Where it really comes from.
    pub(super) socket: Option<Arc<SocketDigest>>,
    /// What is known of its TLS.
    pub(super) ssl: Option<Arc<SslDigest>>,
    calm: Option<Arc<Calm>>,
    /// A header has gone on, and is looked at before anything else does.
    pauses: bool,
}

impl Wire {
    pub fn new(stream: Stream) -> Self {
        Self { stream, ahead: Bytes::new(), socket: None, ssl: None, calm: None, pauses: false }
    }

    /// A connection over HTTP/2. `ahead`: what was read of it.
    pub fn watched(stream: Stream, ahead: Bytes, calm: Arc<Calm>) -> Self {
        Self { ahead, calm: Some(calm), ..Self::new(stream) }
    }

    fn poll_more(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        self.give(into.remaining().min(self.ahead.len()), into);
        Poll::Ready(Ok(()))
    }

    fn give(&mut self, length: usize, into: &mut ReadBuf<'_>) {
        into.put_slice(&self.ahead.split_to(length));
        if !self.ahead.has_remaining() {
            self.ahead = Bytes::new();
        }
    }

    fn note(&self, parts: &[IoSlice<'_>], mut written: usize) {
        let Some(calm) = &self.calm else { return };
        for part in parts {
            let (sent, _) = part.split_at(written.min(part.len()));
            written -= sent.len();
            calm.sent(sent);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(calm) = this.calm.clone() else { return this.poll_more(cx, into) };
        if calm.is_over() {
            return Poll::Pending;
        }
        if mem::take(&mut this.pauses) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.ahead.is_empty() {
            let before = into.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, into))?;
            let (_, read) = into.filled().split_at(before);
            let (goes_on, header) = calm.received(read);
            this.pauses = header;
            if let Some(rest @ [_, ..]) = read.get(goes_on..) {
                this.ahead = Bytes::copy_from_slice(rest);
                into.set_filled(before + goes_on);
            }
            if calm.is_over() {
                into.set_filled(before);
                return Poll::Pending;
            }
        } else {
            let (room, _) = this.ahead.split_at(into.remaining().min(this.ahead.len()));
            let (goes_on, header) = calm.received(room);
            this.pauses = header;
            if calm.is_over() {
                return Poll::Pending;
            }
            this.give(goes_on, into);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.note(&[IoSlice::new(bytes)], written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, parts))?;
        this.note(parts, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Wire {
    async fn shutdown(&mut self) {
        self.stream.shutdown().await;
    }
}

impl UniqueID for Wire {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Wire {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.ssl.clone().or_else(|| self.stream.get_ssl_digest())
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for Wire {
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

impl GetProxyDigest for Wire {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Wire {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.socket.clone().or_else(|| self.stream.get_socket_digest())
    }
}

impl Peek for Wire {}
