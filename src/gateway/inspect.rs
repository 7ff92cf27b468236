//! The body of a request at a route whose rules depend on it.
//!
//! A body that says how short it is gets read ahead, so that the upstream hears nothing of a call that is not permitted. Of
//! any other the head goes on and the body is held back until all of it was judged; if it is not permitted, the upstream
//! has a request whose body never came. Where no rule needs it, nothing is read and nothing held.
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType};
use tokio::time::timeout;

use super::context::Target;
use super::head::{Kind, Said};
use super::{Gateway, local};
use crate::mcp::Message;
use crate::policy;
use crate::respond::Failure;
use crate::route::Route;

/// How long a body that is read ahead may take.
pub(super) const ARRIVAL: Duration = Duration::from_secs(30);
const TOO_LONG: Failure = Failure::TooLarge { limit: "inspect_body" };

/// What is known of what a request asks for.
pub enum Asked {
    /// Nothing, or no rule needs to know.
    Anything,
    /// Read ahead.
    Known(Message),
    /// Still to come, and held back until then.
    Held(Held),
}

/// What has come so far. However small the pieces are, each is looked at once.
#[derive(Default)]
pub struct Held(Vec<u8>);

impl Asked {
    pub fn message(&self) -> Option<&Message> {
        match self {
            Self::Known(message) => Some(message),
            Self::Anything | Self::Held(_) => None,
        }
    }

    /// As the policy asks for it.
    pub fn of_policy(&self) -> policy::Asked<'_> {
        match self {
            Self::Anything => policy::Asked::Bodiless,
            Self::Known(message) => policy::Asked::Message(message),
            Self::Held(_) => policy::Asked::ToCome,
        }
    }
}

impl Held {
    /// The request is sent from its beginning, for the first time or again.
    pub fn begin(&mut self) {
        self.0.clear();
    }

    /// The whole body once it has ended; nothing before. `most`: so many bytes of it are held.
    pub(super) fn take(
        &mut self,
        piece: Option<Bytes>,
        end: bool,
        most: usize,
    ) -> Result<Option<Bytes>, Failure> {
        let piece = piece.unwrap_or_default();
        if self.0.len() + piece.len() > most {
            return Err(TOO_LONG);
        }
        // Nearly all come in one piece.
        if end && self.0.is_empty() {
            return Ok(Some(piece));
        }
        self.0.extend_from_slice(&piece);
        Ok(end.then(|| Bytes::from(std::mem::take(&mut self.0))))
    }
}

impl Gateway {
    /// Reads the body of a request at a route whose rules need it.
    pub(super) async fn inspect(
        &self,
        (session, said): (&mut Session, &Said),
        route: &Route,
        most: usize,
    ) -> Result<Asked, Failure> {
        if session.as_downstream_mut().is_body_empty() {
            return Ok(Asked::Anything);
        }
        require_json(said)?;
        if said.length.is_some_and(|length| length > most) {
            return Err(TOO_LONG);
        }
        if !local::is_small(said) {
            return Ok(Asked::Held(Held::default()));
        }
        // What was read is sent on from there, and again.
        session.as_downstream_mut().enable_retry_buffering();
        let body = read_ahead(session, ARRIVAL).await?;
        read(&body, &session.req_header().headers, route).map(Asked::Known)
    }

    /// Lets a body that was held back go on once all of it is here and permitted.
    pub(super) async fn release(
        &self,
        target: &mut Target,
        head: &RequestHeader,
        request_id: &HeaderValue,
        most: usize,
        body: &mut Option<Bytes>,
        end: bool,
    ) -> Result<(), Failure> {
        let Asked::Held(held) = &mut target.asked else {
            return Ok(());
        };
        let Some(whole) = held.take(body.take(), end, most)? else {
            // Not `None`, which would end the body.
            *body = Some(Bytes::new());
            return Ok(());
        };
        let message = read(&whole, &head.headers, &target.route)?;
        self.permitted(
            &target.question(head, self.hook.as_deref()),
            policy::Asked::Message(&message),
            Some(request_id),
        )
        .await?;
        self.count_tool(target, &message).await?;
        *body = Some(whole);
        Ok(())
    }
}

/// The rest of a request's body.
pub(super) async fn read_ahead(session: &mut Session, within: Duration) -> Result<Bytes, Failure> {
    let mut all = pin!(read_all(session));
    // Nearly all are here already, and need no clock.
    let read = match poll_fn(|context| Poll::Ready(all.as_mut().poll(context))).await {
        Poll::Ready(body) => body,
        Poll::Pending => timeout(within, all).await.map_err(|_| Failure::TooSlow)?,
    };
    read.map_err(|error| match error.etype() {
        ErrorType::ReadTimedout => Failure::TooSlow,
        _ => Failure::Malformed("the request body did not arrive"),
    })
}

/// Copies nothing of a body in one piece, as nearly all are.
async fn read_all(session: &mut Session) -> Result<Bytes, Box<Error>> {
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    while !session.as_downstream_mut().is_body_done() {
        let Some(piece) = session.read_request_body().await? else { break };
        if first.is_empty() {
            first = piece;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&first);
        }
        all.extend_from_slice(&piece);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

fn read(body: &[u8], headers: &HeaderMap, route: &Route) -> Result<Message, Failure> {
    let message = Message::read(body, route.rules.arguments()).map_err(Failure::Unreadable)?;
    if !message.is_mirrored_in(headers) {
        return Err(Failure::HeaderMismatch { id: message.id.into() });
    }
    Ok(message)
}

/// What is said to be something else may be read as something else.
fn require_json(said: &Said) -> Result<(), Failure> {
    if said.kind != Kind::Json {
        return Err(Failure::Malformed("the body has to be application/json in UTF-8"));
    }
    if said.is_encoded {
        return Err(Failure::Malformed("the body has to be sent without content-encoding"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    const MOST: usize = 1024;

    #[test]
    fn a_body_that_begins_anew_is_held_from_its_beginning() {
        let mut held = Held::default();
        assert_eq!(held.take(Some(Bytes::from_static(b"{\"a\"")), false, MOST), Ok(None));
        held.begin();
        assert_eq!(held.take(Some(Bytes::from_static(b"{\"a\":")), false, MOST), Ok(None));
        assert_eq!(held.take(Some(Bytes::from_static(b"1}")), false, MOST), Ok(None));
        assert_eq!(held.take(None, true, MOST), Ok(Some(Bytes::from_static(b"{\"a\":1}"))));
    }

    #[test]
    fn no_more_is_held_than_there_is_room_for() {
        let mut held = Held::default();
        let half = Bytes::from(vec![b' '; MOST / 2]);
        assert_eq!(held.take(Some(half.clone()), false, MOST), Ok(None));
        assert_eq!(held.take(Some(half), false, MOST), Ok(None));
        assert_eq!(held.take(Some(Bytes::from_static(b" ")), false, MOST), Err(TOO_LONG));
    }
}
