//! Hooks that wait for nothing.
//!
//! Pingora takes the future of each hook in a box. One that has no size needs no memory there, so what such a hook does is
//! done when it is called, and its future has nothing left to say but how that went.
use std::future::{self, Future};
use std::pin::Pin;
use std::task::{Context, Poll};

use pingora::{Error, Result};

/// What Pingora awaits.
pub type Hook<'h> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'h>>;

struct Done;

impl Future for Done {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }
}

pub fn done<'h>() -> Hook<'h> {
    Box::pin(Done)
}

pub fn failed<'h>(error: Box<Error>) -> Hook<'h> {
    Box::pin(future::ready(Err(error)))
}
