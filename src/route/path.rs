//! Path of a request → its one canonical form, or none. What is decided on it goes upstream in the same form.
use std::borrow::Cow;

use super::RouteError;

/// The canonical form of a request path: slashes that repeat become one, one at the end goes, the root is empty.
///
/// Refused: anything not beginning with a slash, dot segments (with parameters too), backslashes, control bytes and
/// bytes above ASCII, every percent escape that hides a separator, a dot, a control byte or another percent sign, and
/// escapes that are not UTF-8.
pub fn canonical_path(raw: &str) -> Result<Cow<'_, str>, RouteError> {
    if is_plain(raw) {
        return Ok(Cow::Borrowed(raw));
    }
    if !raw.starts_with('/')
        || raw.bytes().any(|byte| !(0x21..0x7f).contains(&byte) || matches!(byte, b'\\' | b'#' | b'?'))
    {
        return Err(RouteError::BadPath);
    }
    let mut decoded = Vec::new();
    for piece in raw.split('%').skip(1) {
        let (hex, plain) = piece.split_at_checked(2).ok_or(RouteError::BadPath)?;
        let byte = u8::from_str_radix(hex, 16).map_err(|_| RouteError::BadPath)?;
        if byte < 0x20 || byte == 0x7f || matches!(byte, b'/' | b'\\' | b'.' | b'%') {
            return Err(RouteError::BadPath);
        }
        decoded.push(byte);
        decoded.extend_from_slice(plain.as_bytes());
    }
    // Overlong UTF-8 is one more way to write a dot or a slash.
    if std::str::from_utf8(&decoded).is_err() {
        return Err(RouteError::BadPath);
    }
    // Servlet containers cut off what follows a semicolon before they look for dots.
    let is_dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    if raw.split('/').any(is_dots) {
        return Err(RouteError::BadPath);
    }
    if !raw.contains("//") {
        return Ok(Cow::Borrowed(raw.strip_suffix('/').unwrap_or(raw)));
    }
    let segments = raw.split('/').filter(|segment| !segment.is_empty());
    Ok(Cow::Owned(segments.flat_map(|segment| ["/", segment]).collect()))
}

/// Whether a path is canonical at first sight, as nearly all are: nothing in it has a second meaning.
fn is_plain(raw: &str) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let mut last = None;
    for byte in raw.bytes() {
        match (last, byte) {
            (None, b'/') => {}
            (Some(last), b'/') if last != b'/' => {}
            (Some(_), byte) if is_safe(byte) => {}
            _ => return false,
        }
        last = Some(byte);
    }
    last.is_some_and(|last| last != b'/')
}

/// Whether a path, which has a canonical form, has no other spelling for servers than that and a slash at its end: nothing escaped that
/// need not be, nothing behind a semicolon that some cut off, no slash twice. Where it decides who may ask for what, another
/// spelling would be a way around.
pub fn has_one_spelling(raw: &str) -> bool {
    let is_needless = |escaped: &str| {
        let byte = escaped.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        // RFC 3986 §2.3.
        byte.is_none_or(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b';')
        })
    };
    !raw.contains("//") && !raw.contains(';') && !raw.split('%').skip(1).any(is_needless)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn spellings_of_one_path_are_one_path() {
        for raw in ["/mcp", "/mcp/", "//mcp", "//mcp//", "/mcp///"] {
            assert_eq!(canonical_path(raw).unwrap(), "/mcp", "{raw}");
        }
        for raw in ["/", "//", "///"] {
            assert_eq!(canonical_path(raw).unwrap(), "", "{raw}");
        }
        assert_eq!(canonical_path("/a//b/").unwrap(), "/a/b");
        assert_eq!(canonical_path("/a%20b").unwrap(), "/a%20b");
        assert_eq!(canonical_path("/a%C3%A9").unwrap(), "/a%C3%A9");
        assert_eq!(canonical_path("/...;a/b;..").unwrap(), "/...;a/b;..");
    }

    #[test]
    fn one_path_is_not_spelled_in_two_ways() {
        for raw in ["/", "/a", "/a/", "/a%20b", "/a%C3%A9/", "/a%2Cb", "/a:b@c"] {
            assert!(has_one_spelling(raw), "{raw}");
        }
        for raw in
            ["//", "/a//b", "/%61dmin", "/adm%69n", "/a%7Eb", "/a;b", "/a/;x=1", "/a%3Bb", "/a%2db", "/a%5Fb"]
        {
            assert!(!has_one_spelling(raw), "{raw}");
        }
    }

    #[test]
    fn paths_of_two_meanings_are_refused() {
        for raw in [
            "",
            "mcp",
            "*",
            "/..",
            "/a/../b",
            "/a/./b",
            "/.",
            "/a\\b",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/%2e%2e/b",
            "/a%00",
            "/a%",
            "/a%4",
            "/a%zz",
            "/a%25",
            "/a%+1",
            "/a%ff",
            "/a/%c0%ae%c0%ae/b",
            "/a/..;/b",
            "/a/.;x=1/b",
            "/a#b",
            "/a?b",
            "/a b",
            "/a\u{7f}",
            "/é",
        ] {
            assert_eq!(canonical_path(raw).err(), Some(RouteError::BadPath), "{raw:?}");
        }
    }
}
