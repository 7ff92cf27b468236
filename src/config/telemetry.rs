//! What is told to others about requests → [`Traces`].
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;

use super::checked::{Checker, bare_host};
use super::credential::is_settable;
use super::report::Key;
use super::{file, secret};

/// Where spans go, and of which requests.
#[derive(Clone)]
pub struct Traces {
    /// `http` or `https`, with a path.
    pub endpoint: String,
    /// Host of `endpoint`, which the operator has named: it may be private. Lower case, IPv6 without brackets.
    pub host: String,
    /// From 0 to 1.
    pub sample: f64,
    /// Whether clients say which of their requests are recorded.
    pub follow_clients: bool,
    pub service_name: String,
    pub headers: HeaderMap,
}

/// The path of OTLP over HTTP, where none is written.
const PATH: &str = "/v1/traces";

/// `None`: nothing is traced.
pub(super) fn check(check: &mut Checker<'_>, written: Option<&file::Telemetry>) -> Option<Traces> {
    let written = written?.traces.as_ref()?;
    let key = Key::top("telemetry").child("traces");
    let sample = written.sample.unwrap_or(0.01);
    if !(0.0..=1.0).contains(&sample) {
        check.refuse(&key.child("sample"), "is out of range", "write a number from 0 to 1, like 0.01");
    }
    let mut headers = HeaderMap::new();
    for (name, value) in written.headers.iter().flatten() {
        let key = key.child("headers").child(name);
        let Ok(header) = HeaderName::try_from(name) else {
            check.refuse(&key, "is not the name of a header", "write a name like Authorization");
            continue;
        };
        if !is_settable(&header) {
            check.refuse(&key, "belongs to the message or the connection", "leave it out");
        } else if headers.contains_key(&header) {
            check.refuse(&key, "stands here twice, in other letters", "leave one out");
        }
        let Some(secret) = secret::resolve(check, &key, value) else { continue };
        match HeaderValue::try_from(secret.expose_secret()) {
            Ok(mut value) => {
                value.set_sensitive(true);
                headers.insert(header, value);
            }
            Err(_) => check.refuse(&key, "cannot be sent in a header", "give a value of printable ASCII"),
        }
    }
    let mut endpoint = check.url(&key.child("endpoint"), &written.endpoint, true)?;
    if endpoint.path() == "/" {
        endpoint.set_path(PATH);
    }
    Some(Traces {
        host: bare_host(&endpoint),
        endpoint: endpoint.into(),
        sample,
        follow_clients: written.follow_clients.unwrap_or(true),
        service_name: written.service_name.clone().unwrap_or_else(|| "postern".to_owned()),
        headers,
    })
}
