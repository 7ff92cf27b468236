//! Streams of events on which nothing is said: between two events a comment keeps alive what stands between client and gateway,
//! and shows a client that is gone. An upstream may be silent for hours, and no hook is called while it is; so the connection itself
//! does it, and is told here when it may. Over HTTP/2 the connection does not know its streams, and needs no comments: it asks the
//! client by a frame that belongs to none (`server::doors::alive`).
pub mod lean;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderValue, Version, header};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;

use self::lean::Lean;
use super::context::Context;

/// What the last bytes of a stream were.
#[derive(Default)]
pub struct Tail([u8; 4]);

impl Tail {
    /// Whether an event has ended with this piece (HTML, Server-sent events).
    fn is_between(&mut self, piece: &[u8]) -> bool {
        for byte in piece.iter().skip(piece.len().saturating_sub(self.0.len())) {
            self.0.rotate_left(1);
            let [.., last] = &mut self.0;
            *last = *byte;
        }
        matches!(self.0, [.., b'\n', b'\n'] | [.., b'\r', b'\r'] | [b'\r', b'\n', b'\r', b'\n'])
    }
}

/// An answer begins: if it is a stream of events, it may be kept alive from now on.
pub(super) fn begin(session: &Session, head: &Parts, ctx: &mut Context) {
    let is_events = |kind: &HeaderValue| {
        kind.as_bytes().get(..17).is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/event-stream"))
    };
    let period = ctx.snapshot.config.limits.keep_alive;
    if !period.is_zero()
        && session.req_header().version == Version::HTTP_11
        && head.headers.get(header::CONTENT_TYPE).is_some_and(is_events)
        && head.headers.get(header::TRANSFER_ENCODING).is_some_and(|coding| coding == "chunked")
        && !head.headers.contains_key(header::CONTENT_ENCODING)
        && let Some(connection) = connection(session)
    {
        connection.keep_alive(period);
        ctx.tail = Some(Tail::default());
    }
}

/// More of it goes to the client.
pub(super) fn go_on(session: &Session, piece: Option<&Bytes>, end: bool, ctx: &mut Context) {
    let Some(tail) = &mut ctx.tail else { return };
    let Some(connection) = connection(session) else { return };
    if end {
        connection.let_be();
    } else if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
        connection.is_between(tail.is_between(piece));
    }
}

/// The connection has served a request and waits for the next, however the answer to it has ended.
pub fn end(stream: &Stream) {
    stream.as_any().downcast_ref().map(Lean::let_be);
}

fn connection(session: &Session) -> Option<&Lean> {
    match session.as_downstream() {
        ServerSession::H1(connection) => connection.stream().as_any().downcast_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn an_event_has_ended_when_an_empty_line_has_come_in_whatever_pieces() {
        for (stream, between) in [
            ("data: x\n\n", true),
            ("data: x\r\n\r\n", true),
            ("data: x\r\r", true),
            ("data: x\n", false),
            ("data: x\r\n", false),
            ("data: x\n\ndata", false),
            ("data: x\r\n\r", false),
        ] {
            for size in 1..=stream.len() {
                let mut tail = Tail::default();
                let pieces = stream.as_bytes().chunks(size);
                assert_eq!(
                    pieces.map(|piece| tail.is_between(piece)).last(),
                    Some(between),
                    "{stream:?} by {size}"
                );
            }
        }
    }
}
