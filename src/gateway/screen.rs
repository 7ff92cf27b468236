//! What Pingora lets through and we do not: requests that two servers could read in two ways.
use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::HEXLOWER;
use http::{HeaderValue, Method, Version, header};
use memchr::memchr;
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::head::Said;
use crate::config::Limits;
use crate::inject;
use crate::respond::Failure;

/// More unwanted body than that is not read to its end, bytes.
pub const SHORT: usize = 64 * 1024;

/// What the request says about its body, or what is wrong with it. After that the connection ends: where the next one begins is not
/// certain.
pub fn request(session: &mut Session, limits: &Limits) -> Result<Said, Failure> {
    let screened = lines(session).and_then(|()| head(session.req_header(), limits));
    screened.inspect_err(|_| session.set_keepalive(None))
}

/// What is no longer to be seen when Pingora has read a head over HTTP/1. Where a line ends otherwise than it has to, whoever is in
/// front of us may have read another head, with another end (RFC 9112 §2.2); and of a target that is no path, or has a fragment,
/// Pingora makes something that is one.
fn lines(session: &Session) -> Result<(), Failure> {
    let Some(raw) = session.as_http1().map(|session| session.get_headers_raw_bytes()) else { return Ok(()) };
    // Without a way out in between: so it becomes a few instructions on vectors.
    let pairs = raw.iter().zip(raw.iter().skip(1));
    let bare = pairs.fold(0, |bare, (before, byte)| bare | u8::from(*before != b'\r' && *byte == b'\n'));
    if bare != 0 || raw.first() == Some(&b'\n') {
        return Err(Failure::Malformed("a line of the head does not end with CR LF"));
    }
    let mut words = raw.trim_ascii_start().split(|byte| matches!(byte, b' ' | b'\r'));
    match words.nth(1).is_some_and(is_target) {
        true => Ok(()),
        false => Err(Failure::Malformed("the request target is not a path or a URL without a fragment")),
    }
}

/// In origin-form or absolute-form (RFC 9112 §3.2).
fn is_target(target: &[u8]) -> bool {
    let begins = |with: &[u8]| target.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    let is_whole = target.first() == Some(&b'/') || begins(b"http://") || begins(b"https://");
    is_whole && memchr(b'#', target).is_none()
}

fn head(head: &RequestHeader, limits: &Limits) -> Result<Said, Failure> {
    if matches!(head.method, Method::TRACE | Method::CONNECT) {
        return Err(Failure::Malformed("method is not supported"));
    }
    if head.headers.len() > limits.header_fields {
        return Err(Failure::TooManyFields);
    }
    let said = Said::of(&head.headers);
    if said.is_of_no_length {
        return Err(Failure::Malformed("content-length is not one number"));
    }
    if said.length.is_some_and(|length| length > limits.body) {
        return Err(Failure::TooLarge { limit: "body" });
    }
    if said.is_recoded {
        return Err(Failure::Malformed("transfer-encoding is not chunked, once"));
    }
    // Over HTTP/1 they are no part of a value, and whoever is behind us would not see them (RFC 9113 §8.2.1).
    if head.version == Version::HTTP_2 && head.headers.values().any(is_padded) {
        return Err(Failure::Malformed("a header begins or ends with a blank"));
    }
    // What is named there would be removed on the way, and these are not the client's to remove.
    if said.takes_ours {
        return Err(Failure::Malformed("connection names a header of the protocol"));
    }
    Ok(said)
}

/// Whether where an answer ends can be read in one way alone. HTTP/1.0 knows no transfer codings.
pub fn is_framed(said: &Said, version: Version) -> bool {
    let is_coded_in_1_0 = said.is_coded && version == Version::HTTP_10;
    !(said.is_of_no_length || said.is_recoded || is_coded_in_1_0)
}

fn is_padded(value: &HeaderValue) -> bool {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let value = value.as_bytes();
    value.first().is_some_and(is_blank) || value.last().is_some_and(is_blank)
}

/// The host: of the URI on HTTP/2, of the one `Host` header on HTTP/1.
pub fn host(head: &RequestHeader) -> Option<&str> {
    if let Some(authority) = head.uri.authority() {
        return Some(authority.as_str());
    }
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = hosts.next()?.to_str().ok()?;
    hosts.next().is_none().then_some(host)
}

/// The id of a request: the client's, where that is short and harmless in any log, or one of ours. `ids`: as
/// [`Gateway::request_ids`](super::Gateway::request_ids).
pub fn request_id(head: &RequestHeader, (process, count): &(String, AtomicU64)) -> HeaderValue {
    let is_harmless = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let sent = head.headers.get(inject::REQUEST_ID);
    if let Some(sent) =
        sent.filter(|id| (8..=64).contains(&id.len()) && id.as_bytes().iter().all(is_harmless))
    {
        return sent.clone();
    }
    // A trillion of them differ.
    let [_, _, _, counted @ ..] = count.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut digits = [0; 10];
    HEXLOWER.encode_mut(&counted, &mut digits);
    let id = [process.as_bytes(), b"-", &digits].concat();
    HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"))
}
