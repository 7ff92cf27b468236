//! `kind: header`: a header and where its secret is → its name and whole value; or whose secrets the users' own are.

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

/// A header with each user's own secret, which they hand over on their page.
#[derive(Clone)]
pub struct UserHeader {
    pub name: HeaderName,
    before: String,
    after: String,
    /// For the user: where such a secret comes from.
    pub hint: Option<String>,
}

impl UserHeader {
    /// The header's value with this secret, marked sensitive. `None`: no header can carry it.
    #[must_use]
    pub fn value(&self, secret: &str) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from([&self.before, secret, &self.after].concat()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

pub(super) fn check(check: &mut Checker<'_>, key: &Key, written: &file::Credential) -> Option<Credential> {
    let name = match &written.name {
        Some(name) => self::name(check, &key.child("name"), name),
        None => {
            check.refuse(
                &key.child("name"),
                "is missing",
                "write the name of the header, like Authorization",
            );
            None
        }
    };
    if written.per_user.unwrap_or_default() {
        return of_user(check, key, written, name);
    }
    if written.hint.is_some() {
        check.refuse(
            &key.child("hint"),
            "belongs to `per_user: true`",
            "leave it out, or write `per_user: true`",
        );
    }
    let secret = match &written.value {
        Some(value) => secret::resolve(check, &key.child("value"), value),
        None => {
            let write = format!("write {}", shape::SECRET_FORMS);
            check.refuse(&key.child("value"), "is missing", write);
            None
        }
    };
    let format = format(check, &key.child("format"), written.format.as_deref().unwrap_or("{value}"))?;
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

/// A header with each user's own secret.
fn of_user(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    name: Option<HeaderName>,
) -> Option<Credential> {
    if written.value.is_some() {
        check.refuse(&key.child("value"), "stands beside `per_user: true`", "leave one of the two out");
    }
    let format = format(check, &key.child("format"), written.format.as_deref().unwrap_or("{value}"))?;
    let (before, after) = format.split_once("{value}")?;
    Some(Credential::UserHeader(UserHeader {
        name: name?,
        before: before.to_owned(),
        after: after.to_owned(),
        hint: written.hint.clone(),
    }))
}

/// The text around a secret.
pub(super) fn format<'f>(check: &mut Checker<'_>, key: &Key, written: &'f str) -> Option<&'f str> {
    if written.matches("{value}").count() != 1 {
        let write = "write {value} once, where the secret goes, like \"Bearer {value}\"";
        check.refuse(key, "does not say where the secret goes", write);
        return None;
    }
    // Whatever token comes: all of them are printable.
    let with_token = written.replace("{value}", "token");
    if HeaderValue::from_str(&with_token).is_err() || with_token.trim() != with_token {
        let what = "makes a header value with characters that a header cannot have";
        check.refuse(key, what, "write printable ASCII on one line, without spaces around it");
        return None;
    }
    Some(written)
}

/// Whether a credential may set this header.
#[must_use]
pub fn is_settable(name: &HeaderName) -> bool {
    let name = name.as_str();
    !REFUSED.contains(&name)
        && !REFUSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        && name != "last-event-id"
}

/// A header that a credential may set.
pub(super) fn name(check: &mut Checker<'_>, key: &Key, written: &str) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(written.as_bytes()) else {
        check.refuse(key, "is not a header name", "write a name like Authorization or X-Api-Key");
        return None;
    };
    if !is_settable(&name) {
        check.refuse(
            key,
            "is a header that a credential cannot set",
            "write the header the upstream reads the secret from",
        );
        return None;
    }
    Some(name)
}
