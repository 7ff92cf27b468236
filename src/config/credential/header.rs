//! `kind: header`: a header and where its secret is → its name and whole value.

use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

use super::super::checked::Checker;
use super::super::file;
use super::super::report::Key;
use super::super::{secret, shape};
use super::Credential;

/// Headers that belong to the connection (RFC 9110 §7.6.1), to the message or to the proxy.
const REFUSED: [&str; 12] = [
    "connection",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Families of headers that are refused as a whole.
const REFUSED_PREFIXES: [&str; 3] = ["content-", "mcp-", "x-forwarded-"];

pub(super) fn check(check: &mut Checker<'_>, key: &Key, written: &file::Credential) -> Option<Credential> {
    let name = match &written.name {
        Some(name) => header_name(check, &key.child("name"), name),
        None => {
            check.refuse(
                &key.child("name"),
                "is missing",
                "write the name of the header, like Authorization",
            );
            None
        }
    };
    let secret = match &written.value {
        Some(value) => secret::resolve(check, &key.child("value"), value),
        None => {
            let write = format!("write {}", shape::SECRET_FORMS);
            check.refuse(&key.child("value"), "is missing", write);
            None
        }
    };
    let format = written.format.as_deref().unwrap_or("{value}");
    if format.matches("{value}").count() != 1 {
        let write = "write {value} once, where the secret goes, like \"Bearer {value}\"";
        check.refuse(&key.child("format"), "does not say where the secret goes", write);
        return None;
    }
    let (name, secret) = (name?, secret?);
    let value = SecretString::from(format.replace("{value}", secret.expose_secret()));
    let text = value.expose_secret();
    if HeaderValue::from_str(text).is_err() || text.trim() != text {
        let what = "makes a header value with characters that a header cannot have";
        check.refuse(
            &key.child("value"),
            what,
            "put printable ASCII on one line there, without spaces around it",
        );
        return None;
    }
    Some(Credential::Header { name, value })
}

fn header_name(check: &mut Checker<'_>, key: &Key, written: &str) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(written.as_bytes()) else {
        check.refuse(key, "is not a header name", "write a name like Authorization or X-Api-Key");
        return None;
    };
    let taken = REFUSED.contains(&name.as_str())
        || REFUSED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
        || name == "last-event-id";
    if taken {
        check.refuse(
            key,
            "is a header that a credential cannot set",
            "write the header the upstream reads the secret from",
        );
        return None;
    }
    Some(name)
}
