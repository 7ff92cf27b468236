//! What a request keeps on its way to a server that is none of MCP. Its host is its own, so cookies and what browsers say about the
//! page that asks are its own as well; who the client claims to be is not.
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Of what would be dropped anywhere else.
fn is_kept(name: &HeaderName) -> bool {
    matches!(name.as_str(), "cookie" | "origin" | "referer") || name.as_str().starts_with("sec-fetch-")
}

/// Takes out what the client may not say, and puts in what we say. `is_public`: nobody was asked for a token.
pub fn prepare(
    headers: &mut HeaderMap,
    is_public: bool,
    additions: impl Iterator<Item = (HeaderName, HeaderValue)>,
) {
    // A token is never passed on, whoever it was meant for; what is none belongs to the server.
    let is_its_own =
        is_public && headers.get_all(header::AUTHORIZATION).iter().all(|value| !is_bearer(value));
    let is_out = |name: &&HeaderName| {
        super::is_dropped(name) && !is_kept(name) && !(is_its_own && **name == header::AUTHORIZATION)
    };
    let dropped: Vec<HeaderName> = headers.keys().filter(is_out).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    join_cookies(headers);
    for (name, value) in additions {
        headers.insert(name, value);
    }
}

/// Whether it could be a token: anything but the schemes that carry none.
fn is_bearer(value: &HeaderValue) -> bool {
    let scheme = value.as_bytes().split(|byte| *byte == b' ').next().unwrap_or_default();
    ![&b"basic"[..], b"digest", b"negotiate", b"ntlm"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

/// HTTP/2 may split cookies over several fields (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let pieces: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pieces.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn prepared(lines: &[(&'static str, &'static str)], is_public: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        prepare(&mut headers, is_public, std::iter::empty());
        headers
    }

    #[test]
    fn no_token_is_passed_on_whoever_it_was_meant_for() {
        for value in ["Bearer x", "bearer x", "BEARER\tx", "DPoP x", "x"] {
            for is_public in [true, false] {
                assert!(prepared(&[("authorization", value)], is_public).is_empty(), "{value}");
            }
        }
        let two = [("authorization", "Basic YTpi"), ("authorization", "Bearer x")];
        assert!(prepared(&two, true).is_empty());
        let basic = [("authorization", "Basic YTpi")];
        assert_eq!((prepared(&basic, true).len(), prepared(&basic, false).len()), (1, 0));
    }

    #[test]
    fn what_is_the_hosts_own_stays_and_claims_go() {
        let headers = prepared(
            &[
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("origin", "https://app.test"),
                ("sec-fetch-site", "same-origin"),
                ("x-forwarded-user", "root"),
                ("x-real-ip", "10.0.0.1"),
                ("x_real_ip", "10.0.0.1"),
                ("forwarded", "for=10.0.0.1"),
            ],
            true,
        );
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cookie", "origin", "sec-fetch-site"]);
        assert_eq!(headers["cookie"], "a=1; b=2");
    }
}
