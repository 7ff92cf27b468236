//! The challenges of a certificate authority (ACME, RFC 8555 §8.3): whoever answers them for us is asked under any host, and for nothing
//! but a token.
use std::sync::Arc;
use std::time::Duration;

use super::{Matched, Route, Upstream};
use crate::config::{self, Credential, Kind, PublicUrl};

/// No configured route has such a name.
const NAME: &str = ".acme-challenge";
const PATH: &str = "/.well-known/acme-challenge";
/// They are 22 characters and more; nobody has long ones.
const TOKEN_MAX: usize = 256;
/// Whoever answers them does so at once, and nobody has to say who they are.
const SILENCE: Duration = Duration::from_secs(60);

/// Where challenges lead.
pub struct Challenges(Arc<Route>);

impl Challenges {
    pub fn new(public: &PublicUrl, url: &url::Url) -> Self {
        let mut at = url.clone();
        at.set_path(PATH);
        let configured = config::Route {
            name: NAME.to_owned(),
            kind: Kind::Challenge,
            host: None,
            path: PATH.to_owned(),
            upstream: config::Upstream {
                url_as_written: at.to_string(),
                url: at,
                allow_private: true,
                allow_hosts: Vec::new(),
                read_timeout: SILENCE,
                pool: None,
            },
            credential: Credential::None,
            scopes: Vec::new(),
            tool_scopes: std::collections::BTreeMap::new(),
            policy: None,
            trusted_issuers: Vec::new(),
            limits: Vec::new(),
            preflights: false,
        };
        let mut route = Route::new(public, &configured);
        // Some of those who answer look whether the host is one that they have asked a certificate for.
        let mut upstream = Upstream::new(&configured.upstream);
        (upstream.host_header, route.forwarded_host) = (None, None);
        route.upstream = Arc::new(upstream);
        Self(Arc::new(route))
    }

    /// `None`: the path is none of theirs. Below theirs there is nothing but tokens (RFC 8555 §8.3: base64url).
    pub fn find<'a>(&'a self, raw: &'a str) -> Option<Option<Matched<'a>>> {
        let rest = raw.strip_prefix(PATH).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
        let token = rest.get(1..).unwrap_or_default();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_token = !token.is_empty() && token.len() <= TOKEN_MAX && token.bytes().all(is_plain);
        Some(is_token.then_some(Matched { route: &self.0, rest }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn tokens_are_found_and_nothing_else_below_their_place() {
        let config = config::parse(
            r#"{"server": {"public_url": "http://127.0.0.1:8080", "listen": ["127.0.0.1:8080"]}, "routes": []}"#,
            "test",
            &config::Process,
        );
        let config = config.unwrap_or_else(|report| panic!("{report}"));
        let challenges =
            Challenges::new(&config.server.public_url, &"http://127.0.0.1:8402".parse().unwrap());
        let found = |path: &str| {
            challenges
                .find(path)
                .map(|found| found.map(|matched| matched.route.upstream.target(matched.rest, None).unwrap()))
        };
        let target = found("/.well-known/acme-challenge/a-Z_09").unwrap().unwrap();
        assert_eq!(target, "/.well-known/acme-challenge/a-Z_09");
        for path in ["", "/", "/a/b", "/a/", "/a.b", "/%61", "/a?", "/..", "//a", "/a;b"] {
            assert!(found(&format!("/.well-known/acme-challenge{path}")).unwrap().is_none(), "{path}");
        }
        for path in [
            "/",
            "/.well-known/acme-challenges/a",
            "//.well-known/acme-challenge/a",
            "/x/.well-known/acme-challenge/a",
        ] {
            assert!(found(path).is_none(), "{path}");
        }
    }
}
