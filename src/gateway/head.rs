//! Heads as one map of fields.
//!
//! Beside the fields Pingora keeps how each name was spelled, which nobody may depend on (RFC 9110 §5.1): a second map to
//! fill, clone, search and grow with every request. So the spelling goes, and names are sent as HTTP/2 has them.
use std::mem;

use http::request::Parts as RequestParts;
use http::response::Parts as ResponseParts;
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
