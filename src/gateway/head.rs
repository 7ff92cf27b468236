//! Heads as one map of fields.
//!
//! Beside the fields Pingora keeps how each name was spelled, which nobody may depend on (RFC 9110 §5.1): a second map to
//! fill, clone, search and grow with every request. So the spelling goes, and names are sent as HTTP/2 has them.
use std::mem;

use http::request::Parts as RequestParts;
use http::response::Parts as ResponseParts;
use http::{HeaderMap, header};
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

/// What a body is said to be: its one type, without parameters. `None`: nobody says, several things are said, or it is in
/// other characters than UTF-8.
pub fn media_type(headers: &HeaderMap) -> Option<&str> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (types.next(), types.next()) else { return None };
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

/// Whether a body has to be decoded before it can be read.
pub fn is_encoded(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    encodings.iter().any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}
