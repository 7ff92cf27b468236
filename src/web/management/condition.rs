//! Entity tags (RFC 9110 §8.8.3): the version of a record, so that whoever changes it can say which one they have seen.
use axum::http::{HeaderMap, HeaderValue, header};

/// The tag of a version.
pub fn tag(version: u64) -> String {
    format!("\"{version}\"")
}

/// The version that `If-Match` wants; `None`: any.
///
/// Versions only grow, so of several the highest is the only one that can still be there. What is no tag of ours matches
/// nothing, as no version is 0.
pub fn expected(headers: &HeaderMap) -> Option<u64> {
    let tags = tags(headers, &header::IF_MATCH)?;
    if tags == ["*"] {
        return None;
    }
    let versions = tags.iter().filter_map(|written| version(written));
    Some(versions.max().unwrap_or_default())
}

/// Whether `If-None-Match` says that this version is known.
pub fn is_known(headers: &HeaderMap, current: u64) -> bool {
    let is_it = |written: &&str| {
        *written == "*" || version(written.strip_prefix("W/").unwrap_or(written)) == Some(current)
    };
    tags(headers, &header::IF_NONE_MATCH).is_some_and(|tags| tags.iter().any(is_it))
}

fn tags<'h>(headers: &'h HeaderMap, name: &axum::http::HeaderName) -> Option<Vec<&'h str>> {
    let lines: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
    let text = |line: &&'h HeaderValue| line.to_str().unwrap_or_default();
    (!lines.is_empty()).then(|| lines.iter().flat_map(|line| text(line).split(',')).map(str::trim).collect())
}

fn version(tag: &str) -> Option<u64> {
    let digits = tag.strip_prefix('"')?.strip_suffix('"')?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn headers(name: header::HeaderName, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), HeaderValue::from_str(line).unwrap())).collect()
    }

    #[test]
    fn what_is_to_be_changed_is_one_version_or_any() {
        for (lines, wanted) in [
            (&[][..], None),
            (&["*"], None),
            (&["\"3\""], Some(3)),
            (&["\"3\", \"12\""], Some(12)),
            (&["\"3\"", "\"4\""], Some(4)),
            // A weak tag never matches (RFC 9110 §13.1.1), nor does what is none.
            (&["W/\"3\""], Some(0)),
            (&["3"], Some(0)),
            (&["\"+3\""], Some(0)),
            (&[""], Some(0)),
        ] {
            let mut all = HeaderMap::new();
            lines.iter().for_each(|line| {
                all.append(header::IF_MATCH, HeaderValue::from_str(line).unwrap());
            });
            assert_eq!(expected(&all), wanted, "{lines:?}");
        }
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        for known in ["\"3\"", "W/\"3\"", "\"1\", \"3\"", "*"] {
            assert!(is_known(&headers(header::IF_NONE_MATCH, &[known]), 3), "{known}");
        }
        for other in ["\"4\"", "3", ""] {
            assert!(!is_known(&headers(header::IF_NONE_MATCH, &[other]), 3), "{other}");
        }
        assert!(!is_known(&HeaderMap::new(), 3));
    }
}
