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

const JSON: &str = "application/json";

/// What a head says about the body behind it. Gathered in one pass: each look-up by name would cost a hash.
#[derive(Default)]
pub struct Said<'h> {
    kind: Option<&'h HeaderValue>,
    kinds: usize,
    /// It has to be decoded before it can be read.
    pub is_encoded: bool,
    /// It comes in another transfer coding than `chunked`.
    pub is_recoded: bool,
    /// Bytes.
    pub length: Option<usize>,
    /// Whoever sends it waits to be asked for it.
    pub is_awaited: bool,
}

impl<'h> Said<'h> {
    pub fn of(headers: &'h HeaderMap) -> Self {
        let mut said = Self::default();
        for (name, value) in headers {
            if *name == header::CONTENT_TYPE {
                said.kind = Some(value);
                said.kinds += 1;
            } else if *name == header::CONTENT_LENGTH {
                let length = value.to_str().ok().and_then(|length| length.parse().ok());
                said.length = said.length.or(length);
            } else if *name == header::CONTENT_ENCODING {
                said.is_encoded |= !value.as_bytes().eq_ignore_ascii_case(b"identity");
            } else if *name == header::TRANSFER_ENCODING {
                said.is_recoded |= !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
            } else if *name == header::EXPECT {
                said.is_awaited |= value.as_bytes().eq_ignore_ascii_case(b"100-continue");
            }
        }
        said
    }

    pub fn has_type(&self) -> bool {
        self.kinds > 0
    }

    /// Its one type, without parameters. `None`: nobody says, several things are said, or it is in other characters than
    /// UTF-8.
    pub fn media_type(&self) -> Option<&'h str> {
        let value = self.kind.filter(|_| self.kinds == 1)?;
        // As nearly all of them are.
        if value == JSON {
            return Some(JSON);
        }
        let value = value.to_str().ok()?;
        let Some((essence, parameters)) = value.split_once(';') else { return Some(value.trim()) };
        let mut parameters = parameters.split(';').map(|parameter| parameter.trim().to_ascii_lowercase());
        let is_utf8 = parameters.all(|parameter| {
            parameter.strip_prefix("charset=").is_none_or(|charset| charset.trim_matches('"') == "utf-8")
        });
        is_utf8.then(|| essence.trim())
    }
}
