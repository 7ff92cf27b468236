//! A cookie jar with the rules that matter here: per host and not per port, `Secure`, `SameSite`, `Path`,
//! prefixes, deletion (RFC 6265bis).

use std::time::{SystemTime, UNIX_EPOCH};

use cookie::{Cookie, SameSite};
use url::Url;

/// How the page that caused a request relates to its target.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Site {
    /// Typed by the user or opened from outside.
    None,
    /// The same origin.
    Origin,
    /// The same site, but another origin.
    Same,
    /// Another site.
    Cross,
}

impl Site {
    /// `SameSite` is a matter of hosts: two ports of one host are one site.
    pub fn between(from: &Url, to: &Url) -> Site {
        if from.origin() == to.origin() {
            Site::Origin
        } else if from.scheme() == to.scheme() && from.host_str() == to.host_str() {
            Site::Same
        } else {
            Site::Cross
        }
    }

    /// Value of `Sec-Fetch-Site`.
    pub fn header(self) -> &'static str {
        match self {
            Site::None => "none",
            Site::Origin => "same-origin",
            Site::Same => "same-site",
            Site::Cross => "cross-site",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Stored {
    pub host: String,
    pub path: String,
    pub name: String,
    pub value: String,
    pub secure: bool,
    pub http_only: bool,
    pub same_site: Option<SameSite>,
    /// Seconds since 1970; `None`: until the browser closes.
    pub expires: Option<i64>,
}

#[derive(Clone, Debug, Default)]
pub struct Jar(Vec<Stored>);

impl Jar {
    /// Takes a `Set-Cookie` of an answer from `url`. What breaks the rules is dropped, as a browser does.
    pub fn take(&mut self, url: &Url, set_cookie: &str, now: SystemTime) {
        let Ok(cookie) = Cookie::parse(set_cookie.to_owned()) else {
            return;
        };
        let secure = cookie.secure().unwrap_or(false);
        let host = url.host_str().unwrap_or_default().to_owned();
        let path = match cookie.path() {
            Some(path) if path.starts_with('/') => path.to_owned(),
            _ => default_path(url.path()),
        };
        let prefixed = cookie.name().to_lowercase();
        let bad_prefix = (prefixed.starts_with("__secure-") && !secure)
            || (prefixed.starts_with("__host-") && !(secure && path == "/" && cookie.domain().is_none()));
        let foreign = cookie.domain().is_some_and(|domain| domain.trim_start_matches('.') != host);
        if bad_prefix || foreign || (secure && url.scheme() != "https") {
            return;
        }
        let now = seconds(now);
        let until_date = cookie.expires_datetime().map(|date| date.unix_timestamp());
        let expires = cookie.max_age().map(|age| now.saturating_add(age.whole_seconds())).or(until_date);
        self.0.retain(|old| !(old.host == host && old.path == path && old.name == cookie.name()));
        if expires.is_some_and(|expires| expires <= now) {
            return;
        }
        self.0.push(Stored {
            host,
            path,
            name: cookie.name().into(),
            value: cookie.value().into(),
            secure,
            http_only: cookie.http_only().unwrap_or(false),
            same_site: cookie.same_site(),
            expires,
        });
    }

    /// The `Cookie` header for a navigation to `url`; `None` when there is nothing to send.
    pub fn header(&self, url: &Url, method: &str, site: Site, now: SystemTime) -> Option<String> {
        let sent = |cookie: &&Stored| {
            let same_site = match cookie.same_site {
                _ if site != Site::Cross => true,
                Some(SameSite::Strict) => false,
                Some(SameSite::None) => true,
                // Lax is also what a cookie without the attribute gets.
                Some(SameSite::Lax) | None => method == "GET",
            };
            same_site
                && url.host_str() == Some(cookie.host.as_str())
                && (!cookie.secure || url.scheme() == "https")
                && path_matches(&cookie.path, url.path())
                && cookie.expires.is_none_or(|expires| expires > seconds(now))
        };
        let pairs: Vec<String> =
            self.0.iter().filter(sent).map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }

    pub fn all(&self) -> &[Stored] {
        &self.0
    }

    pub fn find(&self, name: &str) -> Option<&Stored> {
        self.0.iter().find(|cookie| cookie.name == name)
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Puts a cookie in by hand, as an attacker or a second browser might.
    pub fn plant(&mut self, cookie: Stored) {
        self.0.push(cookie);
    }
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// RFC 6265 §5.1.4.
fn default_path(path: &str) -> String {
    match path.rfind('/') {
        None | Some(0) => "/".into(),
        Some(at) => path[..at].into(),
    }
}

fn path_matches(cookie: &str, request: &str) -> bool {
    request
        .strip_prefix(cookie)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || cookie.ends_with('/'))
}
