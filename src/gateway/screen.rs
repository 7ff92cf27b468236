//! What Pingora lets through and we do not: requests that two servers could read in two ways.
use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderValue, Method, Version, header};
use pingora::http::RequestHeader;

use crate::config::Limits;
use crate::inject;
use crate::respond::Failure;

/// More unwanted body than that is not read to its end, bytes.
pub const SHORT: usize = 64 * 1024;

/// Says what is wrong with the request, if anything is.
pub fn request(head: &RequestHeader, limits: &Limits) -> Result<(), Failure> {
    if matches!(head.method, Method::TRACE | Method::CONNECT) {
        return Err(Failure::Malformed("method is not supported"));
    }
    if head.headers.len() > limits.header_fields {
        return Err(Failure::TooManyFields);
    }
    let lengths = head.headers.get_all(header::CONTENT_LENGTH);
    if lengths.iter().any(|length| !length.as_bytes().iter().all(u8::is_ascii_digit)) {
        return Err(Failure::Malformed("content-length is not one number"));
    }
    let is_too_long = |length: &str| length.parse::<usize>().is_ok_and(|length| length > limits.body);
    if lengths.iter().filter_map(|length| length.to_str().ok()).any(is_too_long) {
        return Err(Failure::TooLarge { limit: "body" });
    }
    let codings = head.headers.get_all(header::TRANSFER_ENCODING);
    if codings.iter().any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")) {
        return Err(Failure::Malformed("transfer-encoding other than chunked"));
    }
    // Over HTTP/1 they are no part of a value, and whoever is behind us would not see them (RFC 9113 §8.2.1).
    if head.version == Version::HTTP_2 && head.headers.values().any(is_padded) {
        return Err(Failure::Malformed("a header begins or ends with a blank"));
    }
    // What is named here would be removed on the way, and these are not the client's to remove.
    let nominated = head
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    if nominated
        .map(str::trim)
        .any(|name| name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("mcp-")))
    {
        return Err(Failure::Malformed("connection names a header of the protocol"));
    }
    Ok(())
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

/// Whether an answer's body is short and says so.
pub fn is_short(headers: &HeaderMap) -> bool {
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    length.is_some_and(|length| length <= SHORT)
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
