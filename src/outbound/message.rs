//! What is sent and what comes back: plain data, no I/O. Bodies and headers may hold codes, tokens and client
//! secrets, so `Debug` shows neither.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::Error;

/// Caps on one exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// TCP and TLS handshake together.
    pub connect: Duration,
    /// Everything from name resolution to the last byte of the body.
    pub total: Duration,
    /// Longest body that is accepted, in bytes.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), total: Duration::from_secs(8), body: 256 * 1024 }
    }
}

/// One request. Fields are open: set headers and limits as needed before it is sent.
pub struct Request {
    pub method: Method,
    /// Absolute; judged when it is sent. The path and query go out as `url::Url` spells them.
    pub url: String,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
    pub limits: Limits,
    /// Return as soon as the head is there and drop the body unread: for answers that may never end.
    pub head_only: bool,
}

impl Request {
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self {
            method,
            url: url.into(),
            headers: HeaderMap::new(),
            body: None,
            limits: Limits::default(),
            head_only: false,
        }
    }

    /// `GET` that asks for JSON.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::GET, url).header(header::ACCEPT, JSON)
    }

    /// `POST` of a form that asks for JSON (RFC 6749 Appendix B). The encoded body is wiped after use.
    pub fn post_form(url: impl Into<String>, fields: &[(&str, &str)]) -> Self {
        // Room for the worst case, so that growing leaves no copies behind.
        let room = fields.iter().map(|(name, value)| 3 * (name.len() + value.len()) + 2).sum();
        let mut form = form_urlencoded::Serializer::new(String::with_capacity(room));
        form.extend_pairs(fields);
        let body = Zeroizing::new(form.finish().into_bytes());
        Self {
            body: Some(Bytes::from_owner(body)),
            ..Self::new(Method::POST, url).header(header::ACCEPT, JSON).header(header::CONTENT_TYPE, FORM)
        }
    }

    /// `POST` of a JSON document that asks for JSON. Fails only for values that JSON cannot express.
    pub fn post_json(url: impl Into<String>, document: &impl Serialize) -> Result<Self, Error> {
        let body = serde_json::to_vec(document)
            .map_err(|_| Error::Invalid { reason: "request cannot be written as json".into() })?;
        Ok(Self {
            body: Some(Bytes::from_owner(Zeroizing::new(body))),
            ..Self::new(Method::POST, url).header(header::ACCEPT, JSON).header(header::CONTENT_TYPE, JSON)
        })
    }

    /// Sets one header, replacing what was there.
    #[must_use]
    pub fn header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Sets the caps.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Asks for the head alone.
    #[must_use]
    pub fn head_only(mut self) -> Self {
        self.head_only = true;
        self
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Request").field("method", &self.method).finish_non_exhaustive()
    }
}

/// One answer, of any status: redirects and errors are answers too.
#[derive(Clone)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Empty when only the head was asked for.
    pub body: Bytes,
}

impl Response {
    /// Whether the answer says it is JSON: `application/json` or any `+json` type (RFC 6839 §3.1).
    pub fn is_json(&self) -> bool {
        let mut values = self.headers.get_all(header::CONTENT_TYPE).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let Ok(text) = value.to_str() else { return false };
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.split_once('/') {
            Some(("application", "json")) => true,
            Some((kind, subtype)) => {
                !kind.is_empty() && subtype.strip_suffix("+json").is_some_and(|prefix| !prefix.is_empty())
            }
            None => false,
        }
    }

    /// Reads the body as JSON, whatever the status. The error never quotes the body.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        if !self.is_json() {
            return Err(Error::Invalid { reason: "answer is not declared as json".into() });
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            let what = if error.is_data() { "has unexpected content" } else { "is not valid json" };
            let reason = format!("answer {what} at line {} column {}", error.line(), error.column());
            Error::Invalid { reason }
        })
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Response");
        shown.field("status", &self.status).field("body_bytes", &self.body.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use serde_json::{Value, json};

    fn answer(types: &[&str], body: &'static str) -> Response {
        let mut headers = HeaderMap::new();
        for value in types {
            headers.append(header::CONTENT_TYPE, value.parse().unwrap());
        }
        Response { status: StatusCode::OK, headers, body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn json_by_content_type() {
        for kind in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/jwk-set+json",
            "text/x+json ;a=b",
        ] {
            assert_eq!(answer(&[kind], "{}").json::<Value>(), Ok(json!({})), "{kind}");
        }
        for kinds in [
            &[][..],
            &["text/html"],
            &["text/json"],
            &["application/jsonp"],
            &["json"],
            &["application/+json"],
            &["/a+json"],
            &["text/html; application/json"],
            &["application/json", "text/html"],
        ] {
            assert!(matches!(answer(kinds, "{}").json::<Value>(), Err(Error::Invalid { .. })), "{kinds:?}");
        }
    }

    #[test]
    fn errors_and_debug_quote_nothing() {
        let answer = answer(&["application/json"], "\"canary\"");
        let error = answer.json::<u8>().unwrap_err().to_string();
        assert_eq!(error, "answer has unexpected content at line 1 column 8");
        assert!(!format!("{answer:?}").contains("canary"));
        let request = Request::post_form("https://a.test/?canary", &[("code", "canary")]);
        assert!(!format!("{request:?}").contains("canary"));
    }

    #[test]
    fn bodies() {
        let form = Request::post_form("https://a.test/", &[("a b", "1&2"), ("c", "ü"), ("d", "")]);
        assert_eq!(form.body.unwrap(), "a+b=1%262&c=%C3%BC&d=");
        assert_eq!(form.headers[header::CONTENT_TYPE], "application/x-www-form-urlencoded");
        let json = Request::post_json("https://a.test/", &json!({"a": 1})).unwrap();
        assert_eq!(json.body.unwrap(), r#"{"a":1}"#);
        assert_eq!(json.headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(json.method, Method::POST);
    }
}
