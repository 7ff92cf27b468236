//! The answers of servers that are none of MCP. Their host is their own, so they may set cookies and send people elsewhere; what
//! would reach beyond it, to the host of our pages, they may not.
use http::{HeaderMap, HeaderValue, header};

/// Takes out of an answer what would act on the host of our pages, `pages`, and what is said of connections that are not the client's.
/// `is_public`: nobody was asked for a token, so a challenge is the server's own.
pub fn keep_away(headers: &mut HeaderMap, pages: &str, is_public: bool) {
    // What it clears goes for the whole site (Clear Site Data, §4.2); what it offers is at ports of the upstream.
    for name in ["clear-site-data", "alt-svc"] {
        headers.remove(name);
    }
    if !is_public {
        headers.remove(header::WWW_AUTHENTICATE);
    }
    let reaches_us = |cookie: &HeaderValue| reaches(cookie.as_bytes(), pages);
    if headers.get_all(header::SET_COOKIE).iter().any(reaches_us) {
        let kept: Vec<HeaderValue> = headers
            .get_all(header::SET_COOKIE)
            .iter()
            .filter(|cookie| !reaches_us(cookie))
            .cloned()
            .collect();
        headers.remove(header::SET_COOKIE);
        kept.into_iter().for_each(|cookie| {
            headers.append(header::SET_COOKIE, cookie);
        });
    }
}

/// Whether a cookie would be sent to `host` as well (RFC 6265 §5.1.3): its domain is that, or one above.
fn reaches(cookie: &[u8], host: &str) -> bool {
    let attributes = cookie.split(|byte| *byte == b';').skip(1);
    attributes.filter_map(|attribute| std::str::from_utf8(attribute.trim_ascii()).ok()).any(|attribute| {
        let Some((name, domain)) = attribute.split_once('=') else { return false };
        let domain = domain.trim().trim_start_matches('.').to_ascii_lowercase();
        let above = || host.strip_suffix(&domain).is_some_and(|below| below.ends_with('.'));
        name.trim().eq_ignore_ascii_case("domain") && !domain.is_empty() && (host == domain || above())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn a_cookie_stays_off_the_pages_host() {
        let cookies = [
            ("a=1", true),
            ("a=1; Domain=app.example.com; Path=/", true),
            ("a=1; Domain=example.com.evil.test", true),
            ("a=1; Domain=xample.com", true),
            ("a=domain=mcp.example.com", true),
            ("a=1; Domain=example.com", false),
            ("a=1; domain = .Example.COM", false),
            ("a=1; Secure; DOMAIN=mcp.example.com; HttpOnly", false),
            ("a=1; Domain=com", false),
        ];
        let mut headers = HeaderMap::new();
        for (cookie, _) in cookies {
            headers.append(header::SET_COOKIE, HeaderValue::from_static(cookie));
        }
        keep_away(&mut headers, "mcp.example.com", true);
        let left: Vec<_> =
            headers.get_all(header::SET_COOKIE).iter().map(|left| left.to_str().unwrap()).collect();
        let kept: Vec<_> = cookies.iter().filter(|(_, stays)| *stays).map(|(cookie, _)| *cookie).collect();
        assert_eq!(left, kept);
    }
}
