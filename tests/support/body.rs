//! Response bodies under the test's control: fed one by one, endless, or broken off half-way.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::Frame;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::lock;

/// The sending end of a body that the test feeds. Dropping it ends the body.
pub struct Feed(UnboundedSender<Bytes>);

impl Feed {
    /// One SSE event with this data.
    pub fn event(&self, data: &str) {
        self.bytes(format!("event: message\ndata: {data}\n\n"));
    }

    pub fn bytes(&self, bytes: impl Into<Bytes>) {
        // Nobody may be listening any more; `gone` tells.
        let _ = self.0.send(bytes.into());
    }

    /// Ends the body properly.
    pub fn finish(self) {}

    /// Returns when whoever read the body has gone.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}

/// The other end, to be put into a script; the first answer takes it, later ones are empty.
#[derive(Clone)]
pub struct Fed(Arc<Mutex<Option<UnboundedReceiver<Bytes>>>>);

impl Fed {
    pub fn pair() -> (Feed, Fed) {
        let (sender, receiver) = unbounded_channel();
        (Feed(sender), Fed(Arc::new(Mutex::new(Some(receiver)))))
    }

    pub fn body(&self) -> Body {
        match lock(&self.0).take() {
            Some(receiver) => Body::new(FedBody(receiver)),
            None => Body::empty(),
        }
    }
}

struct FedBody(UnboundedReceiver<Bytes>);

impl http_body::Body for FedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A body that never ends and always has another event ready; counts the bytes it gave away.
pub fn endless(given: Arc<AtomicU64>) -> Body {
    Body::new(EndlessBody(given))
}

struct EndlessBody(Arc<AtomicU64>);

impl http_body::Body for EndlessBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // One runtime thread may carry the whole test: let the others have their turn.
        match std::pin::pin!(tokio::task::coop::consume_budget()).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let event = Bytes::from(format!("data: {}\n\n", "x".repeat(1000)));
                self.0.fetch_add(event.len() as u64, Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(event))))
            }
        }
    }
}

/// The first half of `content`, really sent, and then a broken connection.
pub fn half(content: &str) -> Body {
    let half = Bytes::copy_from_slice(&content.as_bytes()[..content.len() / 2]);
    Body::new(BrokenBody(VecDeque::from([Step::Data(half), Step::Flush, Step::Break])))
}

enum Step {
    Data(Bytes),
    /// Being pending once makes the server flush what it has.
    Flush,
    Break,
}

struct BrokenBody(VecDeque<Step>);

impl http_body::Body for BrokenBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.0.pop_front() {
            Some(Step::Data(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Step::Flush) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Break) | None => Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into()))),
        }
    }
}
