//! Who is at the browser. The cookie is an opaque random id, its digest names the record in the store.
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::config::PublicUrl;
use crate::oauth::server::authorize::Browser;
use crate::oauth::server::{Authority, Snapshot};
use crate::seal;
use crate::store::Kind;
use crate::store::record::{RecordError, Records, Typed};

pub const SESSION_TTL: Duration = Duration::from_secs(12 * 3600);

/// A signed-in browser (store record).
#[derive(Serialize, Deserialize)]
pub struct Session {
    pub user: String,
    /// Proves that a form was made for this session.
    pub csrf: String,
}

impl Typed for Session {
    const KIND: Kind = Kind::Session;
}

/// A session and who it belongs to.
pub struct SignedIn {
    pub browser: Browser,
    pub csrf: String,
}

/// Names and attributes of our cookies. With https they are `__Host-` cookies; on a loopback http address, where that
/// prefix is not allowed, their names carry the port, because cookies do not keep ports apart.
pub struct Cookies {
    session: String,
    sign_in: String,
    secure: bool,
}

// === impl Cookies ===

impl Cookies {
    pub fn new(public: &PublicUrl) -> Self {
        let name = |what: &str| match public.is_https() {
            true => format!("__Host-postern-{what}"),
            false => format!("postern-{what}-{}", public.port()),
        };
        Self { session: name("session"), sign_in: name("sign-in"), secure: public.is_https() }
    }

    /// The value of our session cookie.
    pub fn session<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        value(headers, &self.session)
    }

    /// The value of the cookie that ties the sign-in form to the browser.
    pub fn sign_in<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        value(headers, &self.sign_in)
    }

    pub fn set_session(&self, value: &str) -> HeaderValue {
        self.set(&self.session, value, SESSION_TTL)
    }

    pub fn set_sign_in(&self, value: &str) -> HeaderValue {
        self.set(&self.sign_in, value, Duration::from_secs(3600))
    }

    pub fn clear_session(&self) -> HeaderValue {
        self.set(&self.session, "", Duration::ZERO)
    }

    fn set(&self, name: &str, value: &str, age: Duration) -> HeaderValue {
        let cookie = cookie::Cookie::build((name, value))
            .path("/")
            .secure(self.secure)
            .http_only(true)
            .same_site(cookie::SameSite::Lax)
            .max_age(cookie::time::Duration::seconds(i64::try_from(age.as_secs()).unwrap_or(0)))
            .build();
        HeaderValue::from_str(&cookie.to_string()).unwrap_or(HeaderValue::from_static(""))
    }
}

/// The one cookie of that name. Two of them mean that somebody planted one, and then neither counts.
fn value<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let pairs = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'));
    let mut values = pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value);
    let only = values.next()?;
    values.next().is_none().then_some(only).filter(|value| !value.is_empty())
}

/// The session of the request, if it has a live one of a user that there still is.
pub async fn current(
    authority: &Authority,
    snapshot: &Snapshot,
    cookies: &Cookies,
    headers: &HeaderMap,
) -> Result<Option<SignedIn>, RecordError> {
    let Some(cookie) = cookies.session(headers) else {
        return Ok(None);
    };
    let key = seal::digest(cookie);
    match authority.records.get::<Session>(&key).await {
        Ok(Some(session)) if authority.admits(snapshot, &session.value.user) => {
            let browser = Browser { user: session.value.user, session: key };
            Ok(Some(SignedIn { browser, csrf: session.value.csrf }))
        }
        // Unreadable: signing in again makes a new one.
        Ok(_) | Err(RecordError::Unreadable) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Signs `user` in: always a new id, whatever cookie was sent. Returns the cookie to set.
pub async fn begin(records: &Records, cookies: &Cookies, user: &str) -> Result<HeaderValue, RecordError> {
    let id = seal::token()?;
    let session = Session { user: user.to_owned(), csrf: seal::token()?.expose_secret().to_owned() };
    records.put(&seal::digest(id.expose_secret()), 0, &session, SESSION_TTL).await?;
    Ok(cookies.set_session(id.expose_secret()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn a_cookie_counts_only_when_it_is_the_only_one() {
        let headers = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::COOKIE, HeaderValue::from_str(line).unwrap());
            }
            headers
        };
        assert_eq!(value(&headers(&["a=1; s=x; b=2"]), "s"), Some("x"));
        assert_eq!(value(&headers(&["a=1", "s=x"]), "s"), Some("x"));
        for two in [&["s=x; s=y"][..], &["s=x", "s=x"], &["s="], &["S=x"], &["ss=x"]] {
            assert_eq!(value(&headers(two), "s"), None, "{two:?}");
        }
    }
}
