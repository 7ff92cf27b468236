//! Who is at the browser. The cookie is an opaque random id, its digest names the record in the store.
use std::time::{Duration, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderValue, header};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::clock::unix_seconds;
use crate::config::PublicUrl;
use crate::oauth::server::authorize::Browser;
use crate::oauth::server::{Authority, Snapshot};
use crate::seal;
use crate::store::Kind;
use crate::store::record::{RecordError, Typed, Versioned};

/// So much is kept of what a browser says it is, characters.
const AGENT_MAX: usize = 200;

/// A signed-in browser (store record).
#[derive(Serialize, Deserialize)]
pub struct Session {
    pub user: String,
    /// Proves that a form was made for this session.
    pub csrf: String,
    /// What people read as the user's name.
    #[serde(default)]
    pub name: Option<String>,
    /// Seconds since the epoch.
    #[serde(default)]
    pub begun_at: u64,
    /// What the browser said it is.
    #[serde(default)]
    pub agent: Option<String>,
    #[serde(default)]
    pub provider: Option<AtProvider>,
}

/// The session at the identity provider that this one follows from.
#[derive(Serialize, Deserialize)]
pub struct AtProvider {
    /// Its short name.
    pub name: String,
    pub session: Option<String>,
    #[serde(serialize_with = "crate::store::record::expose")]
    pub id_token: SecretString,
}

impl Typed for Session {
    const KIND: Kind = Kind::Session;
}

/// A session and who it belongs to.
pub struct SignedIn {
    pub browser: Browser,
    pub csrf: String,
    /// For people to read.
    pub name: String,
    pub provider: Option<AtProvider>,
}

/// Who is being signed in.
pub struct Who {
    pub user: String,
    pub name: Option<String>,
    pub provider: Option<AtProvider>,
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

    pub fn set_session(&self, value: &str, age: Duration) -> HeaderValue {
        self.set(&self.session, value, age)
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
    let found = match authority.records.get::<Session>(&key).await {
        Ok(Some(found)) if authority.admits(snapshot, &found.value.user) => found,
        // Unreadable: signing in again makes a new one.
        Ok(_) | Err(RecordError::Unreadable) => return Ok(None),
        Err(error) => return Err(error),
    };
    keep(authority, snapshot, &key, &found).await;
    let Session { user, csrf, name, provider, .. } = found.value;
    let name = name.unwrap_or_else(|| user.clone());
    Ok(Some(SignedIn { browser: Browser { user, session: key }, csrf, name, provider }))
}

/// A session that is used lives on, up to its absolute end. Written anew only when a good part of its time has passed.
async fn keep(authority: &Authority, snapshot: &Snapshot, key: &str, found: &Versioned<Session>) {
    let login = &snapshot.config.login;
    let now = authority.clock.now();
    let end = UNIX_EPOCH + Duration::from_secs(found.value.begun_at) + login.session_ttl;
    let ttl = login.session_idle.min(end.duration_since(now).unwrap_or_default());
    if found.expires_at + login.session_idle / 8 >= now + ttl {
        return;
    }
    // A conflict is another tab that did the same.
    if let Err(error) = authority.records.put(key, found.version, &found.value, ttl).await {
        tracing::debug!(%error, "a session is not prolonged");
    }
}

/// Signs somebody in: always a new id, whatever cookie was sent. Returns the cookie to set.
pub async fn begin(
    authority: &Authority,
    snapshot: &Snapshot,
    cookies: &Cookies,
    who: Who,
    headers: &HeaderMap,
) -> Result<HeaderValue, RecordError> {
    let login = &snapshot.config.login;
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    let id = seal::token()?;
    let now = authority.clock.now();
    let session = Session {
        user: who.user,
        name: who.name,
        csrf: seal::token()?.expose_secret().to_owned(),
        begun_at: unix_seconds(now),
        agent: agent.map(|agent| agent.chars().take(AGENT_MAX).collect()),
        provider: who.provider,
    };
    let ttl = login.session_idle.min(login.session_ttl);
    authority.records.put(&seal::digest(id.expose_secret()), 0, &session, ttl).await?;
    Ok(cookies.set_session(id.expose_secret(), login.session_ttl))
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
