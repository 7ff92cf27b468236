//! The body of a request at a route whose rules depend on it.
//!
//! A body that says how short it is gets read ahead, so that the upstream hears nothing of a call that is not permitted. Of
//! any other the head goes on and the body is held back until all of it was judged; if it is not permitted, the upstream
//! has a request whose body never came. Where no rule needs it, nothing is read and nothing held.
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use pingora::Error;
use pingora::proxy::Session;
use tokio::time::timeout;

use super::context::Target;
use super::{Gateway, local};
use crate::mcp::Message;
use crate::policy;
use crate::respond::Failure;

/// The longest body that is held back, bytes.
const HELD_MAX: usize = 1024 * 1024;
/// How long a body that is read ahead may take.
const ARRIVAL: Duration = Duration::from_secs(30);

/// What is known of what a request asks for.
pub enum Asked {
    /// No rule needs to know.
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
}

impl Held {
    /// The request is sent from its beginning, for the first time or again.
    pub fn begin(&mut self) {
        self.0.clear();
    }

    /// The whole body once it has ended; nothing before.
    fn take(&mut self, piece: Option<Bytes>, end: bool) -> Result<Option<Bytes>, Failure> {
        let piece = piece.unwrap_or_default();
        if self.0.len() + piece.len() > HELD_MAX {
            return Err(Failure::TooLarge);
        }
        self.0.extend_from_slice(&piece);
        Ok(end.then(|| Bytes::from(std::mem::take(&mut self.0))))
    }
}

impl Gateway {
    /// Reads the body of a request at a route whose rules need it.
    pub(super) async fn inspect(&self, session: &mut Session) -> Result<Asked, Failure> {
        if session.as_downstream_mut().is_body_empty() {
            return Ok(Asked::Anything);
        }
        require_json(&session.req_header().headers)?;
        if !local::is_small(session) {
            return Ok(Asked::Held(Held::default()));
        }
        // What was read is sent on from there, and again.
        session.as_downstream_mut().enable_retry_buffering();
        let body = read_ahead(session, ARRIVAL).await;
        let body = body.ok_or(Failure::Malformed("the request body did not arrive"))?;
        read(&body, &session.req_header().headers).map(Asked::Known)
    }

    /// Lets a body that was held back go on once all of it is here and permitted.
    pub(super) async fn release(
        &self,
        target: &mut Target,
        headers: &HeaderMap,
        body: &mut Option<Bytes>,
        end: bool,
    ) -> Result<(), Failure> {
        let Asked::Held(held) = &mut target.asked else {
            return Ok(());
        };
        let Some(whole) = held.take(body.take(), end)? else {
            // Not `None`, which would end the body.
            *body = Some(Bytes::new());
            return Ok(());
        };
        let message = read(&whole, headers)?;
        if let Err(denied) = policy::permit(&target.caller, &target.route, Some(&message)) {
            return Err(self.denied(&target.caller, &target.route, denied).await);
        }
        *body = Some(whole);
        Ok(())
    }
}

/// The rest of a request's body. `None`: it did not arrive in time.
pub(super) async fn read_ahead(session: &mut Session, within: Duration) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    let all = async {
        while let Some(piece) = session.read_request_body().await? {
            body.extend_from_slice(&piece);
        }
        Ok::<_, Box<Error>>(())
    };
    matches!(timeout(within, all).await, Ok(Ok(()))).then_some(body)
}

fn read(body: &[u8], headers: &HeaderMap) -> Result<Message, Failure> {
    let message = Message::read(body).map_err(Failure::Unreadable)?;
    if !message.is_mirrored_in(headers) {
        return Err(Failure::HeaderMismatch { id: message.id });
    }
    Ok(message)
}

/// What is said to be something else may be read as something else.
fn require_json(headers: &HeaderMap) -> Result<(), Failure> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (essence, parameters) = match (types.next().and_then(|value| value.to_str().ok()), types.next()) {
        (Some(value), None) => value.split_once(';').unwrap_or((value, "")),
        _ => ("", ""),
    };
    let is_utf8 =
        parameters.split(';').map(|parameter| parameter.trim().to_ascii_lowercase()).all(|parameter| {
            parameter.strip_prefix("charset=").is_none_or(|charset| charset.trim_matches('"') == "utf-8")
        });
    if !essence.trim().eq_ignore_ascii_case("application/json") || !is_utf8 {
        return Err(Failure::Malformed("the body has to be application/json in UTF-8"));
    }
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    if encodings.iter().any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Failure::Malformed("the body has to be sent without content-encoding"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn a_body_that_begins_anew_is_held_from_its_beginning() {
        let mut held = Held::default();
        assert_eq!(held.take(Some(Bytes::from_static(b"{\"a\"")), false), Ok(None));
        held.begin();
        assert_eq!(held.take(Some(Bytes::from_static(b"{\"a\":")), false), Ok(None));
        assert_eq!(held.take(Some(Bytes::from_static(b"1}")), false), Ok(None));
        assert_eq!(held.take(None, true), Ok(Some(Bytes::from_static(b"{\"a\":1}"))));
    }

    #[test]
    fn no_more_is_held_than_there_is_room_for() {
        let mut held = Held::default();
        let half = Bytes::from(vec![b' '; HELD_MAX / 2]);
        assert_eq!(held.take(Some(half.clone()), false), Ok(None));
        assert_eq!(held.take(Some(half), false), Ok(None));
        assert_eq!(held.take(Some(Bytes::from_static(b" ")), false), Err(Failure::TooLarge));
    }
}
