//! Heads as one map of fields.
//!
//! Beside the fields Pingora keeps how each name was spelled, which nobody may depend on (RFC 9110 §5.1): a second map to
//! fill, clone, search and grow with every request. So the spelling goes, and names are sent as HTTP/2 has them.
use std::mem;

use http::request::Parts as RequestParts;
use http::response::Parts as ResponseParts;
use http::{HeaderMap, HeaderValue, header};
use pingora::http::{RequestHeader, ResponseHeader};

/// Changes a request's head. Its target is that of `uri` from here on.
pub fn of_request<T>(head: &mut RequestHeader, change: impl FnOnce(&mut RequestParts) -> T) -> T {
    let empty = http::Request::new(()).into_parts().0;
    let mut parts = RequestParts::from(mem::replace(head, empty.into()));
    let changed = change(&mut parts);
    *head = parts.into();
    changed
}

/// Changes an answer's head.
pub fn of_response<T>(head: &mut ResponseHeader, change: impl FnOnce(&mut ResponseParts) -> T) -> T {
    let empty = http::Response::new(()).into_parts().0;
    let mut parts = ResponseParts::from(mem::replace(head, empty.into()));
    let changed = change(&mut parts);
    *head = parts.into();
    changed
}

/// What a body is, by `Content-Type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Unsaid,
    /// `application/json`.
    Json,
    /// `text/event-stream`.
    Events,
    /// Something else, or several things, or in other characters than UTF-8.
    Other,
}

/// What a head says about the body behind it. Gathered in one pass: each look-up by name would cost a hash.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said {
    pub kind: Kind,
    /// It has to be decoded before it can be read.
    pub is_encoded: bool,
    /// It comes in a transfer coding.
    pub is_coded: bool,
    /// It comes in another one than `chunked`, once: not everybody would read that alike.
    pub is_recoded: bool,
    /// Bytes.
    pub length: Option<usize>,
    /// Its length is not one number.
    pub is_of_no_length: bool,
    /// Whoever sends it waits to be asked for it.
    pub is_awaited: bool,
    /// `Connection` names a header of the protocol.
    pub takes_ours: bool,
}

impl Said {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut said = Self::default();
        for (name, value) in headers {
            if *name == header::CONTENT_TYPE {
                said.kind = if said.kind == Kind::Unsaid { Kind::of(value) } else { Kind::Other };
            } else if *name == header::CONTENT_LENGTH {
                let length = number(value);
                said.is_of_no_length |= said.length.is_some() || length.is_none();
                said.length = said.length.or(length);
            } else if *name == header::CONTENT_ENCODING {
                said.is_encoded |= !value.as_bytes().eq_ignore_ascii_case(b"identity");
            } else if *name == header::TRANSFER_ENCODING {
                said.is_recoded |=
                    said.is_coded || !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
                said.is_coded = true;
            } else if *name == header::EXPECT {
                said.is_awaited |= value.as_bytes().eq_ignore_ascii_case(b"100-continue");
            } else if *name == header::CONNECTION {
                said.takes_ours |= value.to_str().is_ok_and(names_ours);
            }
        }
        said
    }
}

impl Kind {
    fn of(value: &HeaderValue) -> Self {
        // As nearly all of them are.
        if value == "application/json" {
            return Self::Json;
        }
        let Ok(value) = value.to_str() else { return Self::Other };
        let (essence, parameters) = value.split_once(';').unwrap_or((value, ""));
        let is_known = |parameter: &str| {
            let charset = parameter.trim().split_at_checked("charset=".len());
            let charset = charset.filter(|(name, _)| name.eq_ignore_ascii_case("charset="));
            charset.is_none_or(|(_, charset)| charset.trim_matches('"').eq_ignore_ascii_case("utf-8"))
        };
        match essence.trim() {
            _ if !parameters.split(';').all(is_known) => Self::Other,
            json if json.eq_ignore_ascii_case("application/json") => Self::Json,
            events if events.eq_ignore_ascii_case("text/event-stream") => Self::Events,
            _ => Self::Other,
        }
    }
}

/// `usize::MAX` for any that is larger.
fn number(value: &HeaderValue) -> Option<usize> {
    let add = |number: usize, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| usize::from(digit - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    };
    let digits = value.as_bytes();
    (!digits.is_empty()).then(|| digits.iter().try_fold(0, add))?
}

fn names_ours(connection: &str) -> bool {
    let is_ours = |name: &str| name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("mcp-"));
    connection.split(',').map(str::trim).any(is_ours)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn said(lines: &[(&'static str, &'static str)]) -> Said {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        Said::of(&headers)
    }

    #[test]
    fn a_body_is_what_its_one_type_says() {
        for (value, kind) in [
            ("application/json", Kind::Json),
            (" Application/JSON ; charset=UTF-8", Kind::Json),
            ("application/json; x=1; charset=\"utf-8\"", Kind::Json),
            ("application/json; charset=utf-16", Kind::Other),
            ("application/json; x=1;CHARSET=latin1", Kind::Other),
            ("text/event-stream", Kind::Events),
            ("text/event-stream;charset=utf-8", Kind::Events),
            ("application/jsonl", Kind::Other),
            ("", Kind::Other),
        ] {
            assert_eq!(said(&[("content-type", value)]).kind, kind, "{value}");
        }
        assert_eq!(said(&[]).kind, Kind::Unsaid);
        assert_eq!(said(&[("content-type", "application/json"); 2]).kind, Kind::Other);
        assert_eq!(said(&[("content-type", ""), ("content-type", "application/json")]).kind, Kind::Other);
    }

    #[test]
    fn a_length_is_one_number() {
        let length = |values: &[&'static str]| {
            let lines: Vec<_> = values.iter().map(|value| ("content-length", *value)).collect();
            let said = said(&lines);
            (!said.is_of_no_length).then_some(said.length)
        };
        for (values, expected) in [
            (&[][..], Some(None)),
            (&["0"], Some(Some(0))),
            (&["0042"], Some(Some(42))),
            (&["99999999999999999999999"], Some(Some(usize::MAX))),
            (&[""], None),
            (&["-1"], None),
            (&["1, 1"], None),
            (&["1", "1"], None),
            (&["x", "1"], None),
        ] {
            assert_eq!(length(values), expected, "{values:?}");
        }
    }

    #[test]
    fn chunked_comes_once() {
        let codings = |values: &[&'static str]| {
            let lines: Vec<_> = values.iter().map(|value| ("transfer-encoding", *value)).collect();
            let said = said(&lines);
            (said.is_coded, said.is_recoded)
        };
        assert_eq!(codings(&[]), (false, false));
        assert_eq!(codings(&[" Chunked "]), (true, false));
        assert_eq!(codings(&["gzip, chunked"]), (true, true));
        assert_eq!(codings(&["chunked", "chunked"]), (true, true));
    }
}
