//! Redirect URIs: which may be registered, and which registered one a request means.
use std::net::IpAddr;

use url::{Host, Url};

/// Longer ones are refused.
const MAX_LEN: usize = 2048;

/// Whether `uri` may be a redirect URI: https, or http on this computer (`localhost` or a literal loopback address;
/// MCP, Communication Security). Decided on parsed and raw form alike: what parsing would change is refused, so
/// nobody downstream can read it as something else.
pub fn acceptable(uri: &str) -> bool {
    let Ok(url) = Url::parse(uri) else { return false };
    let unchanged = url.as_str() == uri || (url.path() == "/" && url.as_str().trim_end_matches('/') == uri);
    let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    let scheme = match url.scheme() {
        "https" => url.host_str().is_some(),
        "http" => is_this_computer(&url),
        _ => false,
    };
    uri.len() <= MAX_LEN && !uri.contains('*') && unchanged && plain && scheme
}

/// Exact string comparison; on a literal loopback address the port may differ (RFC 8252 §7.3, OAuth 2.1 §8.4.2).
pub fn matches(registered: &str, asked: &str) -> bool {
    registered == asked
        || (acceptable(asked)
            && without_loopback_port(registered)
                .is_some_and(|known| Some(known) == without_loopback_port(asked)))
}

/// Whether answers go to a program on the user's own computer, whichever it is: worth a warning before consent.
pub fn is_loopback(uri: &str) -> bool {
    Url::parse(uri).is_ok_and(|url| is_this_computer(&url))
}

/// The host a person is told, with its port where that is not the scheme's own.
pub fn host(uri: &str) -> String {
    let Ok(url) = Url::parse(uri) else {
        return String::new();
    };
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

fn is_this_computer(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        None => false,
    }
}

/// `http://127.0.0.1:5/cb?x` → `http://127.0.0.1/cb?x`, from the raw text; `None` for every other host.
fn without_loopback_port(uri: &str) -> Option<String> {
    let rest = uri.strip_prefix("http://")?;
    let (host, rest) =
        ["127.0.0.1", "[::1]"].iter().find_map(|host| Some((*host, rest.strip_prefix(*host)?)))?;
    let rest = match rest.strip_prefix(':') {
        Some(rest) => {
            let digits = rest.len() - rest.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
            rest.get(digits..).filter(|_| (1..=5).contains(&digits))?
        }
        None => rest,
    };
    (rest.is_empty() || rest.starts_with(['/', '?'])).then(|| format!("http://{host}{rest}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn what_may_be_registered() {
        for good in [
            "https://client.example/cb",
            "https://client.example/cb?x=1",
            "http://127.0.0.1/cb",
            "http://127.0.0.1:33418/cb",
            "http://localhost:6274/oauth/callback",
            "http://[::1]:4000/cb",
            "https://client.example",
            "http://127.0.0.1:3334",
        ] {
            assert!(acceptable(good), "{good}");
        }
        for bad in [
            "http://client.example/cb",
            "javascript:alert(1)",
            "java\nscript:alert(1)",
            "data:text/html,x",
            "vbscript:x",
            "file:///etc/passwd",
            "https://client.example/cb#frag",
            "https://user@client.example/cb",
            "https://client.example/*",
            "https://*.example/cb",
            "/cb",
            "",
            "https://client.example/a/../cb",
            "https://CLIENT.example/cb",
            "https://client.example:443/cb",
            "https://good.example\\@evil.example/cb",
            "http://2130706433/cb",
            "http://0x7f.1/cb",
            "http://127.1/cb",
            "http://127.0.0.1.evil.example/cb",
            "cursor://anysphere/cb",
        ] {
            assert!(!acceptable(bad), "{bad:?}");
        }
    }

    #[test]
    fn only_the_port_of_a_literal_loopback_may_differ() {
        let registered = "http://127.0.0.1/cb";
        assert!(
            matches(registered, "http://127.0.0.1:51234/cb")
                && matches("http://127.0.0.1:1/cb", "http://127.0.0.1:2/cb")
        );
        assert!(matches("http://[::1]/cb", "http://[::1]:51234/cb"));
        for bad in [
            "http://127.0.0.1:51234/cb2",
            "http://127.0.0.1:51234/cb?x",
            "http://127.1:5/cb",
            "http://0x7f.1:5/cb",
            "http://2130706433:5/cb",
            "http://127.0.0.2:5/cb",
            "http://localhost:5/cb",
            "http://127.0.0.1.evil.test:5/cb",
            "http://[::ffff:127.0.0.1]:5/cb",
            "https://127.0.0.1:5/cb",
            "http://127.0.0.1:5@evil.test/cb",
            "http://127.0.0.1:/cb",
            "http://127.0.0.1:123456/cb",
            "http://127.0.0.1:99999/cb",
        ] {
            assert!(!matches(registered, bad), "{bad}");
        }
        assert!(!matches("http://localhost:1/cb", "http://localhost:2/cb"));
        for (registered, asked) in [
            ("https://c.example/cb", "https://c.example/CB"),
            ("https://c.example/cb", "https://c.example/cb/"),
            ("https://c.example/cb", "https://C.example/cb"),
        ] {
            assert!(!matches(registered, asked));
        }
    }
}
