//! The answer of an upstream at a route where not everybody may use everything: its lists are cut down to what the caller
//! may use, in JSON and in events. Anywhere else a body goes on as it comes.
//!
//! What cannot be read cannot be filtered, and is refused: a body that is encoded, or a part, or of another type, or too long.
use bytes::Bytes;
use http::response::Parts;
use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, Result};

use super::Gateway;
use super::context::{ANSWERED, Context};
use super::head::{Kind, Said};
use super::inspect::{Asked, Held};
use crate::mcp::{Glance, ItemKind, Unreadable, events, list};
use crate::policy;
use crate::respond::Failure;

/// What becomes of the body of an answer.
#[derive(Default)]
pub enum Filter {
    /// It goes on as it comes.
    #[default]
    Off,
    /// It is held until all of it is here.
    Whole(Whole),
    Events(events::Events),
}

/// JSON on its way.
pub struct Whole {
    held: Held,
    longest: usize,
    /// What the head that goes to the client says about its length.
    announced: Option<usize>,
}

/// May this caller use the item of this name?
type Keep<'k> = dyn FnMut(ItemKind, &str) -> bool + 'k;

impl Gateway {
    /// Looks at the head of an answer that goes to the client, and makes ready for its body.
    pub(super) fn begin_filter(
        &self,
        session: &mut Session,
        (upstream, said): (&ResponseHeader, &Said),
        ctx: &mut Context,
    ) -> Result<()> {
        let Some(target) = ctx.target.as_ref().filter(|target| target.route.rules.filter_lists()) else {
            return Ok(());
        };
        if upstream.status.is_informational() || ctx.header_only || ctx.replacement.is_some() {
            return Ok(());
        }
        let longest = ctx.snapshot.config.limits.inspect_answer;
        let is_call =
            matches!(&target.asked, Asked::Known(message) if message.method.as_deref() == Some("tools/call"));
        match Filter::new(upstream.status, said, is_call, longest) {
            Ok(filter) => ctx.filter = filter,
            Err(why) => return Err(unfilterable(why, ctx)),
        }
        // Without a length, only its end says where an answer to such a client ends.
        if session.req_header().version == Version::HTTP_10 && ctx.filter.changes_length() {
            session.set_keepalive(None);
        }
        Ok(())
    }

    /// Lets go on what may go on of a body that is filtered.
    pub(super) fn filter(
        &self,
        session: &Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        let Some(target) = &ctx.target else { return Ok(()) };
        let question = target.question(session.req_header(), None);
        let mut keep = |kind: ItemKind, name: &str| policy::visible(&question, kind, name);
        match ctx.filter.pass(body.take().unwrap_or_default(), end, &mut keep) {
            Ok(passed) => {
                // Not `None`, which would end the body.
                *body = Some(passed);
                Ok(())
            }
            Err(why) => Err(unfilterable(why, ctx)),
        }
    }
}

/// Ends the answer: with another one, as long as nothing of it has been sent.
fn unfilterable(why: &'static str, ctx: &mut Context) -> Box<Error> {
    let route = ctx.route.as_ref().map(|route| route.name.as_str());
    tracing::warn!(target: "postern::upstream", route, why, "an answer of the upstream cannot be filtered");
    ctx.failure = Some(Failure::UpstreamUnfilterable(why));
    Error::explain(ANSWERED, "an answer of ours instead")
}

impl Filter {
    /// For an answer whose head says this of its body. `is_call`: nobody asked for a list. `longest`: how much is held,
    /// bytes. An error says why nothing can be made of it.
    fn new(status: StatusCode, said: &Said, is_call: bool, longest: usize) -> Result<Self, &'static str> {
        if status == StatusCode::PARTIAL_CONTENT {
            return Err("it is a part of a whole");
        }
        // Some servers accept a message with an answer that has no type, and nothing in it.
        if said.kind == Kind::Other {
            // The page of some proxy that says what went wrong.
            return if status.is_success() { Err("it is neither JSON nor events") } else { Ok(Self::Off) };
        }
        if said.is_encoded || said.is_recoded {
            return Err("it is encoded, although that was not asked for");
        }
        if said.kind == Kind::Events {
            return Ok(Self::Events(events::Events::new(longest)));
        }
        if said.length.is_some_and(|length| length > longest) {
            return Err(TOO_LONG);
        }
        let announced = said.length.filter(|_| is_call);
        Ok(Self::Whole(Whole { held: Held::default(), longest, announced }))
    }

    pub fn is_off(&self) -> bool {
        matches!(self, Self::Off)
    }

    fn changes_length(&self) -> bool {
        !matches!(self, Self::Off | Self::Whole(Whole { announced: Some(_), .. }))
    }

    /// Takes out of the head what may not be true of the body that follows. `client`: the version it speaks.
    pub fn reframe(&self, head: &mut Parts, client: Version) {
        if self.is_off() {
            return;
        }
        while let Some(untrue) = head.headers.keys().find(|name| is_of_bytes(name)).cloned() {
            head.headers.remove(untrue);
        }
        if !self.changes_length() {
            return;
        }
        head.headers.remove(header::CONTENT_LENGTH);
        if client == Version::HTTP_10 {
            head.headers.remove(header::TRANSFER_ENCODING);
        } else {
            head.version = Version::HTTP_11;
            head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }

    /// What goes on now that this has come.
    fn pass(&mut self, piece: Bytes, end: bool, keep: &mut Keep<'_>) -> Result<Bytes, &'static str> {
        match self {
            Self::Off => Ok(piece),
            Self::Whole(whole) => whole.pass(piece, end, keep),
            Self::Events(events) => {
                let passed = events.push(&piece, &mut |data| list::filter(data, keep));
                passed.map(Bytes::from).map_err(|broken| match broken {
                    events::Broken::TooLong => TOO_LONG,
                    events::Broken::Unreadable(Unreadable::Ambiguous | Unreadable::Batch) => UNREADABLE,
                })
            }
        }
    }
}

/// Whether a header speaks of the bytes of a body, which may be others when they leave.
fn is_of_bytes(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "accept-ranges" | "content-digest" | "content-md5" | "digest" | "etag" | "repr-digest"
    )
}

pub(super) const TOO_LONG: &str = "it is longer than limits.inspect_answer";
const UNREADABLE: &str = "it can be read in more than one way";

impl Whole {
    fn pass(&mut self, piece: Bytes, end: bool, keep: &mut Keep<'_>) -> Result<Bytes, &'static str> {
        let whole = self.held.take(Some(piece), end, self.longest).map_err(|_| TOO_LONG)?;
        let Some(whole) = whole else { return Ok(Bytes::new()) };
        // As nearly all are; the rest has to be text first.
        if let Glance { is_ascii: true, is_indifferent: true } = Glance::at(&whole) {
            return Ok(whole);
        }
        let text = match std::str::from_utf8(&whole) {
            Ok(text) => text,
            Err(_) if whole.contains(&b'{') => return Err(UNREADABLE),
            Err(_) => return Ok(whole),
        };
        let Some(mut filtered) = list::filter(text, keep).map_err(|_| UNREADABLE)? else {
            return Ok(whole);
        };
        if let Some(announced) = self.announced {
            // A list that nobody asked for. Spaces make up for what it has lost (RFC 8259 §2).
            let lost =
                announced.checked_sub(filtered.len()).ok_or("it is a list, and no list was asked for")?;
            filtered.extend(std::iter::repeat_n(' ', lost));
        }
        Ok(filtered.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use http::HeaderMap;

    use super::*;

    const LIST: &[u8] = br#"{"result":{"tools":[{"name":"a"},{"name":"secret"}]}}"#;
    const SEEN: &[u8] = br#"{"result":{"tools":[{"name":"a"}]}}"#;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let lines = lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut map = HeaderMap::new();
        lines.for_each(|(name, value)| {
            map.append(name, value);
        });
        map
    }

    fn filter(lines: &[(&'static str, &'static str)], is_call: bool) -> Result<Filter, &'static str> {
        Filter::new(StatusCode::OK, &Said::of(&headers(lines)), is_call, 100)
    }

    fn pass(filter: &mut Filter, piece: &[u8], end: bool) -> Result<Bytes, &'static str> {
        filter.pass(Bytes::copy_from_slice(piece), end, &mut |_, name| name != "secret")
    }

    #[test]
    fn nothing_of_a_whole_leaves_before_its_end() {
        for cut in 0..LIST.len() {
            let mut filter = filter(&[("content-type", "application/json")], false).unwrap();
            assert_eq!(pass(&mut filter, &LIST[..cut], false), Ok(Bytes::new()));
            assert_eq!(pass(&mut filter, &LIST[cut..], true).unwrap(), SEEN);
        }
    }

    #[test]
    fn what_was_announced_comes() {
        let call = |length| {
            filter(&[("content-type", "application/json"), ("content-length", length)], true).unwrap()
        };
        let passed = pass(&mut call("53"), LIST, true).unwrap();
        assert_eq!((passed.len(), passed.trim_ascii_end()), (LIST.len(), SEEN));
        assert_eq!(pass(&mut call("2"), b"{}", true).unwrap(), &b"{}"[..]);
        // It would become longer.
        let public = br#"{"result":{"tools":[],"cacheScope":"public"}}"#;
        assert!(pass(&mut call("45"), public, true).is_err());
        assert!(!call("2").changes_length());
        assert!(filter(&[("content-length", "2")], false).unwrap().changes_length());
    }

    #[test]
    fn a_length_that_is_too_long_is_refused_at_sight() {
        for (length, fits) in [("100", true), ("101", false)] {
            for is_call in [true, false] {
                assert_eq!(filter(&[("content-length", length)], is_call).is_ok(), fits);
            }
        }
        let mut untold = filter(&[], false).unwrap();
        assert_eq!(pass(&mut untold, &[b' '; 100], false), Ok(Bytes::new()));
        assert_eq!(pass(&mut untold, b" ", false), Err(TOO_LONG));
    }

    #[test]
    fn only_what_is_not_text_may_be_no_text() {
        let whole = |body: &[u8]| pass(&mut filter(&[], false).unwrap(), body, true);
        assert_eq!(whole(b"\xFF").unwrap(), &b"\xFF"[..]);
        assert_eq!(whole(b"{\"x\":\"\xFF\"}"), Err(UNREADABLE));
    }

    #[test]
    fn codings_on_the_way_are_codings() {
        for (coding, is_read) in
            [("chunked", true), ("Chunked", true), ("gzip, chunked", false), ("gzip", false)]
        {
            assert_eq!(filter(&[("transfer-encoding", coding)], false).is_ok(), is_read, "{coding}");
        }
    }
}
