//! Bytes that were written and wait to be sent together with what comes next, in one system call.
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pingora_core::protocols::Stream;
use tokio::io::AsyncWrite;

/// What is sent at once with what is held: a chunk is three.
const PARTS: usize = 4;

/// What is worth holding of a request: a body comes after it.
pub fn is_header_of_post(bytes: &[u8]) -> bool {
    bytes.starts_with(b"POST ") && bytes.ends_with(b"\r\n\r\n")
}

/// `sent` of the bytes are on their way. What has been sent takes no memory.
#[derive(Debug, Default)]
pub struct Held {
    bytes: Vec<u8>,
    sent: usize,
}

impl Held {
    /// With room for `room` bytes, before there are more.
    pub fn with_room(room: usize) -> Self {
        Self { bytes: Vec::with_capacity(room), sent: 0 }
    }

    /// How many bytes it holds memory for.
    #[cfg(test)]
    pub fn room(&self) -> usize {
        self.bytes.capacity()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub fn hold(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Sends what is held and `more`; says how much of `more` was taken.
    pub fn poll_send(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        more: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        while self.sent < self.bytes.len() {
            let held = self.bytes.get(self.sent..).unwrap_or_default();
            let mut parts = [IoSlice::new(held); PARTS];
            let (_, after) = parts.split_at_mut(1);
            let count = after.iter_mut().zip(more).map(|(part, more)| *part = *more).count();
            let parts = parts.get(..=count).unwrap_or_default();
            let stream = Pin::new(&mut *stream);
            let written = ready!(match more {
                [] => stream.poll_write(cx, held),
                _ => stream.poll_write_vectored(cx, parts),
            })?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if let Some(of_more) = written.checked_sub(held.len()) {
                *self = Self::default();
                return Poll::Ready(Ok(of_more));
            }
            self.sent += written;
        }
        Poll::Ready(Ok(0))
    }
}
