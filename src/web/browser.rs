//! What makes a POST from a page trustworthy: it comes from a page of ours, and it carries what only that page knew.
use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

/// Whether a form was sent by a page of this origin. Browsers say so in `Sec-Fetch-Site`, or in `Origin` where they
/// do not (our pages send no referrer, which makes Chromium's `Origin` the word `null`, so the former counts first).
pub fn is_same_origin(headers: &HeaderMap, origin: &str) -> bool {
    match headers.get("sec-fetch-site") {
        Some(site) => site == "same-origin",
        None => headers.get(header::ORIGIN).is_some_and(|sent| sent == origin),
    }
}

/// Whether two tokens are the same one, compared in constant time.
pub fn is_same(one: &str, other: &str) -> bool {
    !one.is_empty() && bool::from(one.as_bytes().ct_eq(other.as_bytes()))
}

/// Longer than any authorization request that is taken.
const NEXT_MAX: usize = 16 * 1024;

/// `next` if it leads nowhere but to a path of ours, else the front page. Decided on the raw text: browsers read
/// backslashes as slashes and drop tabs and line breaks.
pub fn local_path(next: &str) -> &str {
    let plain = next.len() <= NEXT_MAX
        && next.starts_with('/')
        && !next.starts_with("//")
        && !next.contains('\\')
        && next.bytes().all(|byte| (0x21..0x7f).contains(&byte));
    if plain { next } else { "/" }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_paths_of_ours_are_followed() {
        assert_eq!(local_path("/oauth/authorize?a=b%2F%2Fc"), "/oauth/authorize?a=b%2F%2Fc");
        for bad in [
            "//evil",
            "/\\evil",
            "https:evil",
            "https://evil",
            "/a\r\nLocation: x",
            "\t//evil",
            "javascript:alert(1)",
            "",
            "evil",
            "/\t/evil",
        ] {
            assert_eq!(local_path(bad), "/", "{bad:?}");
        }
    }

    #[test]
    fn forms_come_from_this_origin() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
                .collect::<HeaderMap>()
        };
        let own = "https://gw.example";
        assert!(is_same_origin(&headers(&[("sec-fetch-site", "same-origin"), ("origin", "null")]), own));
        assert!(is_same_origin(&headers(&[("origin", "https://gw.example")]), own));
        for bad in [
            &[][..],
            &[("sec-fetch-site", "cross-site"), ("origin", "https://gw.example")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("origin", "null")],
            &[("origin", "https://evil.example")],
        ] {
            assert!(!is_same_origin(&headers(bad), own), "{bad:?}");
        }
    }
}
