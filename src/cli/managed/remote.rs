//! A running Postern as its management API shows it: one request, one answer, and what to do about a refusal.
use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::{HeaderName, HeaderValue, Method, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde_json::{Value, json};
use url::{Host, Url};
use zeroize::Zeroizing;

use super::problem::Problem;
use crate::config::Report;
use crate::outbound::{self, AddressPolicy, Limits, Outbound, Request, Response, Settings};
use crate::seal;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Whoever adds a server waits for it to be looked at.
const LIMITS: Limits =
    Limits { connect: Duration::from_secs(5), total: Duration::from_secs(60), body: 8 * 1024 * 1024 };
/// Of one answer to a list, items; as many as there may be.
const PAGE: usize = 200;

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing was sent: what was given to the command is not enough, or not right.
    #[error("{0}")]
    Usage(String),
    #[error("the configuration cannot be read")]
    Config(Report),
    #[error("{0}\nis Postern running, and is --server right?")]
    Unreached(outbound::Error),
    #[error("{0}")]
    Unanswered(outbound::Error),
    #[error("{0}")]
    Refused(Box<Problem>),
}

/// What Postern says.
pub struct Answer {
    /// Null where it has nothing to say but yes.
    pub value: Value,
    /// Of what it is about, where that has one.
    pub version: Option<u64>,
}

/// One thing to ask for.
pub struct Call<'a> {
    method: Method,
    path: Vec<&'a str>,
    query: Vec<(&'static str, String)>,
    body: Option<Bytes>,
    /// The version that is to be changed, and no other.
    expected: Option<u64>,
}

/// How much of a list is wanted.
pub enum Extent<'a> {
    All,
    /// So many, from a place that an earlier answer named.
    Some {
        limit: usize,
        cursor: Option<&'a str>,
    },
}

pub struct Remote {
    base: Url,
    policy: AddressPolicy,
    outbound: Outbound,
    bearer: HeaderValue,
}

// === impl Answer ===

impl Answer {
    /// With the version as one member more, which HTTP says beside the document.
    pub fn document(mut self) -> Value {
        if let (Some(object), Some(version)) = (self.value.as_object_mut(), self.version) {
            object.insert("version".to_owned(), version.into());
        }
        self.value
    }
}

// === impl Call ===

impl<'a> Call<'a> {
    pub fn new(method: Method, path: impl Into<Vec<&'a str>>) -> Self {
        Self { method, path: path.into(), query: Vec::new(), body: None, expected: None }
    }

    pub fn get(path: impl Into<Vec<&'a str>>) -> Self {
        Self::new(Method::GET, path)
    }

    pub fn put(path: impl Into<Vec<&'a str>>) -> Self {
        Self::new(Method::PUT, path)
    }

    pub fn post(path: impl Into<Vec<&'a str>>) -> Self {
        Self::new(Method::POST, path)
    }

    pub fn patch(path: impl Into<Vec<&'a str>>) -> Self {
        Self::new(Method::PATCH, path)
    }

    pub fn delete(path: impl Into<Vec<&'a str>>) -> Self {
        Self::new(Method::DELETE, path)
    }

    pub fn query(mut self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        self.query.extend(value.map(|value| (name, value.into())));
        self
    }

    /// It may hold secrets, and is wiped after use.
    pub fn body(self, document: &impl Serialize) -> Result<Self, Failure> {
        let body = serde_json::to_vec(document).map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(Self { body: Some(Bytes::from_owner(Zeroizing::new(body))), ..self })
    }

    pub fn expecting(self, expected: Option<u64>) -> Self {
        Self { expected, ..self }
    }
}

// === impl Remote ===

impl Remote {
    pub fn new(server: &str, token: &SecretString) -> Result<Self, Failure> {
        let base = origin(server)?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.expose_secret().trim()));
        let bearer = HeaderValue::try_from(bearer.as_str());
        let mut bearer = bearer.map_err(|_| Failure::Usage("the token is none of Postern's".to_owned()))?;
        bearer.set_sensitive(true);
        let outbound = Outbound::new(Settings::default());
        Ok(Self {
            // Whoever names it means it, wherever it is.
            policy: AddressPolicy::allowing(base.host_str().map(str::to_owned)),
            base,
            outbound: outbound.map_err(|error| Failure::Usage(error.to_string()))?,
            bearer,
        })
    }

    /// What people may call it.
    pub fn name(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    pub async fn call(&self, call: Call<'_>) -> Result<Answer, Failure> {
        let response = self.send(&call).await?;
        if !response.status.is_success() {
            return Err(Failure::Refused(Box::new(Problem::of(&response, &self.name()))));
        }
        let value = match response.body.is_empty() {
            true => Value::Null,
            false => response.json().map_err(Failure::Unanswered)?,
        };
        Ok(Answer { value, version: version(&response) })
    }

    /// `{items, next}`, with the items of as many answers as it takes.
    pub async fn list(
        &self,
        path: &[&str],
        query: &[(&'static str, Option<&str>)],
        extent: Extent<'_>,
    ) -> Result<Answer, Failure> {
        let (most, mut cursor) = match extent {
            Extent::All => (usize::MAX, None),
            Extent::Some { limit, cursor } => (limit, cursor.map(str::to_owned)),
        };
        let mut items = Vec::new();
        loop {
            let limit = PAGE.min(most - items.len());
            let call = Call::get(path).query("limit", Some(limit.to_string())).query("cursor", cursor);
            let call = query.iter().fold(call, |call, (name, value)| call.query(name, *value));
            let mut page = self.call(call).await?.value;
            let found = page.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take);
            let found = found.unwrap_or_default();
            cursor = page.get("next").and_then(Value::as_str).map(str::to_owned);
            let is_last = found.is_empty() || cursor.is_none();
            items.extend(found);
            if is_last || items.len() >= most {
                return Ok(Answer { value: json!({"items": items, "next": cursor}), version: None });
            }
        }
    }

    /// What was asked for once is done once: `POST` says so by a key, the others by what they are. So whoever hears nothing
    /// may ask again.
    async fn send(&self, call: &Call<'_>) -> Result<Response, Failure> {
        let key = match call.method == Method::POST {
            true => Some(seal::name().map_err(|error| Failure::Usage(error.to_string()))?),
            false => None,
        };
        let url = self.url(call)?;
        let attempt =
            async || self.outbound.send(self.request(call, &url, key.as_deref()), &self.policy).await;
        let answer = match attempt().await {
            Err(outbound::Error::Unknown { .. }) if key.is_some() || call.method == Method::GET => {
                attempt().await
            }
            answer => answer,
        };
        answer.map_err(|error| match error.is_unsent() {
            true => Failure::Unreached(error),
            false => Failure::Unanswered(error),
        })
    }

    fn url(&self, call: &Call<'_>) -> Result<Url, Failure> {
        let usage = |why: &str| Failure::Usage(why.to_owned());
        // Dots would be taken for a way up, and nothing for the list that a thing is in.
        if call.path.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return Err(usage("an empty name, `.` and `..` name nothing"));
        }
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().extend(["api", "v1"]).extend(&call.path);
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        Ok(url)
    }

    fn request(&self, call: &Call<'_>, url: &Url, key: Option<&str>) -> Request {
        let mut request = Request::new(call.method.clone(), url.as_str())
            .header(header::ACCEPT, JSON)
            .header(header::AUTHORIZATION, self.bearer.clone())
            .limits(LIMITS);
        if let Some(body) = &call.body {
            request = request.header(header::CONTENT_TYPE, JSON);
            request.body = Some(body.clone());
        }
        // Both are quoted (RFC 9110 §8.8.3, RFC 8941 §3.3.3).
        let tag = call.expected.map(|version| format!("\"{version}\""));
        let key = key.map(|key| format!("\"{key}\""));
        for (name, value) in [(header::IF_MATCH, tag), (IDEMPOTENCY_KEY, key)] {
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                request = request.header(name, value);
            }
        }
        request
    }
}

/// A user as they stand in a path: by name or, where other characters are in it than paths have, `~` and its base64url.
pub fn user(name: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@');
    match name.bytes().all(is_plain) && !matches!(name, "." | "..") {
        true => Cow::Borrowed(name),
        false => Cow::Owned(format!("~{}", BASE64URL_NOPAD.encode(name.as_bytes()))),
    }
}

/// Where the API is. A token does not go over a network that anybody can read.
fn origin(server: &str) -> Result<Url, Failure> {
    let refused = |why: &str| Failure::Usage(format!("{server}: {why}"));
    let url =
        Url::parse(server).map_err(|_| refused("is not a URL; write it like https://mcp.example.com"))?;
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => return Err(refused("has no host; write it like https://mcp.example.com")),
    };
    match url.scheme() {
        "https" => {}
        "http" if is_loopback => {}
        _ => return Err(refused("has to begin with https://, but on this very machine")),
    }
    let is_origin = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    match is_origin && url.username().is_empty() && url.password().is_none() {
        true => Ok(url),
        false => Err(refused("has more than scheme, host and port; write it like https://mcp.example.com")),
    }
}

/// An `ETag` is the version.
fn version(response: &Response) -> Option<u64> {
    response.headers.get(header::ETAG)?.to_str().ok()?.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn url(path: &[&str]) -> Result<String, Failure> {
        let remote = Remote::new("http://localhost:1", &"token".into())?;
        remote.url(&Call::get(path)).map(String::from)
    }

    #[test]
    fn no_name_leads_to_another_endpoint() {
        for nothing in ["", ".", ".."] {
            assert!(matches!(url(&["organizations", nothing]), Err(Failure::Usage(_))), "{nothing:?}");
        }
        let path = |name: &str| url(&["organizations", name]).unwrap();
        assert_eq!(path("a/../b?c#d%2e"), "http://localhost:1/api/v1/organizations/a%2F..%2Fb%3Fc%23d%252e");
        assert_eq!(user("alice@example.com"), "alice@example.com");
        for (name, segment) in
            [("https://idp|1", "~aHR0cHM6Ly9pZHB8MQ"), ("..", "~Li4"), ("~a", "~fmE"), ("", "")]
        {
            assert_eq!(user(name), segment);
        }
    }

    #[test]
    fn a_token_goes_nowhere_in_the_clear() {
        let to = |server: &str| Remote::new(server, &"token".into()).err().map(|failure| failure.to_string());
        for fine in [
            "https://mcp.example.com",
            "https://10.0.0.1:8443/",
            "http://127.0.0.1:1",
            "http://[::1]:1",
            "http://localhost",
        ] {
            assert_eq!(to(fine), None);
        }
        for bad in [
            "http://mcp.example.com",
            "http://10.0.0.1",
            "ftp://localhost",
            "localhost:1",
            "mcp.example.com",
            "https://a@b.c",
            "https://a.b/api",
            "https://a.b/?x",
        ] {
            assert!(to(bad).is_some(), "{bad}");
        }
    }
}
