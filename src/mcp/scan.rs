//! JSON text, passed over value by value: nothing is kept of it but where it stands. Takes what `serde_json` takes, no more
//! and no less, and a third of the time: it is the one look at every byte of every call that a rule depends on.
use std::borrow::Cow;

use serde::de::IgnoredAny;

/// What is nested deeper is left to `serde_json`, which needs no stack for it.
const DEEP: usize = 64;

/// A place in a text. `None` of whatever it is asked for: this is no JSON.
pub(super) struct Scan<'t> {
    text: &'t str,
    at: usize,
}

/// A string as it is written, between its quotes.
#[derive(Clone, Copy)]
pub(super) struct Written<'t> {
    inside: &'t str,
    is_escaped: bool,
}

impl<'t> Scan<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, at: space(text.as_bytes(), 0) }
    }

    /// The byte that comes next.
    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Passes over a whole value, and the white space behind it.
    #[inline]
    pub(super) fn value(&mut self) -> Option<&'t str> {
        let (text, start) = (self.text.as_bytes(), self.at);
        let end = value(text, start, 0)?;
        self.at = space(text, end);
        self.text.get(start..end)
    }

    /// Begins an object or array. Whether something is in it, which comes next.
    #[inline]
    pub(super) fn enter(&mut self, open: u8) -> Option<bool> {
        let text = self.text.as_bytes();
        self.at = next(text, self.at, open)?;
        let is_empty = self.peek()? == close(open);
        if is_empty {
            self.at = space(text, self.at + 1);
        }
        Some(!is_empty)
    }

    /// Whether something more is in it, which comes next; else its end has passed.
    #[inline]
    pub(super) fn goes_on(&mut self, open: u8) -> Option<bool> {
        let byte = self.peek()?;
        self.at = space(self.text.as_bytes(), self.at + 1);
        (byte == b',' || byte == close(open)).then_some(byte == b',')
    }

    /// The name of a member. Its value comes next.
    #[inline]
    pub(super) fn name(&mut self) -> Option<Written<'t>> {
        let (text, start) = (self.text.as_bytes(), self.at + 1);
        let (end, is_escaped) = string(text, self.at)?;
        self.at = next(text, space(text, end), b':')?;
        Some(Written { inside: self.text.get(start..end - 1)?, is_escaped })
    }

    /// Nothing may come any more.
    pub(super) fn end(&self) -> Option<()> {
        (self.at == self.text.len()).then_some(())
    }
}

impl<'t> Written<'t> {
    /// What it says. `None`: it is no text.
    #[inline]
    pub(super) fn text(self) -> Option<Cow<'t, str>> {
        match self.is_escaped {
            false => Some(Cow::Borrowed(self.inside)),
            true => unescaped(self.inside).map(Cow::Owned),
        }
    }
}

#[cold]
fn unescaped(inside: &str) -> Option<String> {
    serde_json::from_str(&format!("\"{inside}\"")).ok()
}

/// Where what begins at `at` ends.
fn value(text: &[u8], at: usize, depth: usize) -> Option<usize> {
    match *text.get(at)? {
        b'"' => string(text, at).map(|(end, _)| end),
        b'{' | b'[' if depth == DEEP => deep(text, at),
        open @ (b'{' | b'[') => {
            let mut at = space(text, at + 1);
            if *text.get(at)? == close(open) {
                return Some(at + 1);
            }
            loop {
                if open == b'{' {
                    at = next(text, space(text, string(text, at)?.0), b':')?;
                }
                at = space(text, value(text, at, depth + 1)?);
                match *text.get(at)? {
                    b',' => at = space(text, at + 1),
                    byte => return (byte == close(open)).then_some(at + 1),
                }
            }
        }
        b't' => word(text, at, b"true"),
        b'f' => word(text, at, b"false"),
        b'n' => word(text, at, b"null"),
        _ => number(text, at),
    }
}

/// What closes what this opens: in ASCII they stand two places apart.
#[inline]
fn close(open: u8) -> u8 {
    open + 2
}

/// The place of the next byte that is no white space.
#[inline]
fn space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

/// The place behind `byte`, which has to come here, and behind the white space that follows it.
#[inline]
fn next(text: &[u8], at: usize, byte: u8) -> Option<usize> {
    (*text.get(at)? == byte).then(|| space(text, at + 1))
}

fn deep(text: &[u8], at: usize) -> Option<usize> {
    let mut values = serde_json::Deserializer::from_slice(text.get(at..)?).into_iter::<IgnoredAny>();
    matches!(values.next(), Some(Ok(IgnoredAny))).then(|| at + values.byte_offset())
}

fn word(text: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    text.get(at..)?.starts_with(word).then_some(at + word.len())
}

fn number(text: &[u8], mut at: usize) -> Option<usize> {
    let byte = |at: usize| text.get(at).copied().unwrap_or_default();
    at += usize::from(byte(at) == b'-');
    at = if byte(at) == b'0' { at + 1 } else { digits(text, at)? };
    if byte(at) == b'.' {
        at = digits(text, at + 1)?;
    }
    if let b'e' | b'E' = byte(at) {
        at += 1;
        at = digits(text, at + usize::from(matches!(byte(at), b'+' | b'-')))?;
    }
    // Not a zero that leads on.
    (!byte(at).is_ascii_digit()).then_some(at)
}

#[inline]
fn digits(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    while text.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    (at > start).then_some(at)
}

/// Where the string ends that begins at `at`, behind its quote, and whether something in it is escaped.
#[inline]
fn string(text: &[u8], at: usize) -> Option<(usize, bool)> {
    (*text.get(at)? == b'"').then_some(())?;
    let inside = text.get(at + 1..)?;
    let mut length = plain(inside);
    let is_escaped = inside.get(length) == Some(&b'\\');
    if is_escaped {
        length = escaped(inside, length)?;
    }
    (*inside.get(length)? == b'"').then_some((at + length + 2, is_escaped))
}

/// What a value says that was passed over. `None`: it is no string, or no text.
pub(super) fn text_of(value: &str) -> Option<Cow<'_, str>> {
    let inside = value.strip_prefix('"')?.strip_suffix('"')?;
    // Most are names, for which a search by blocks is long to begin.
    Written { inside, is_escaped: inside.as_bytes().contains(&b'\\') }.text()
}

/// Where the closing quote of a text is whose first backslash is `at` there.
#[cold]
fn escaped(inside: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += match inside.get(at..).unwrap_or_default() {
            [b'"', ..] => return Some(at),
            [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [b'\\', b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|x| x.is_ascii_hexdigit()) => 6,
            _ => return None,
        };
        at += plain(inside.get(at..).unwrap_or_default());
    }
}

/// How many bytes come before the next quote, backslash or control character. Most texts are names, and end within eight bytes.
#[inline(always)]
fn plain(bytes: &[u8]) -> usize {
    match bytes.first_chunk().map_or(0, |word| marked(u64::from_le_bytes(*word))) {
        0 => plain_beyond(bytes),
        found => found.trailing_zeros() as usize / 8,
    }
}

/// The same of longer ones: what does not end with the next word goes on in blocks of sixty-four bytes.
#[inline(never)] // It would only make longer what ends before.
fn plain_beyond(bytes: &[u8]) -> usize {
    let word = |at: usize| {
        let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
        word.map(|word| marked(u64::from_le_bytes(*word)))
    };
    let found = |at: usize, marked: u64| at + marked.trailing_zeros() as usize / 8;
    if let Some(marked @ 1..) = word(8) {
        return found(8, marked);
    }
    let mut passed = 0;
    // Without a way out in between: so it becomes a few instructions on vectors.
    let is_plain = |block: &[u8; 64]| block.iter().fold(u8::MAX, |least, byte| least.min(mark(*byte))) != 0;
    while bytes.get(passed..).and_then(<[u8]>::first_chunk).is_some_and(is_plain) {
        passed += 64;
    }
    while let Some(marked) = word(passed) {
        if marked != 0 {
            return found(passed, marked);
        }
        passed += 8;
    }
    passed + bytes.iter().skip(passed).take_while(|byte| mark(**byte) != 0).count()
}

/// 0 for a quote, a backslash and a control character.
fn mark(byte: u8) -> u8 {
    (byte ^ b'"').min(byte ^ b'\\').min(byte & 0xE0)
}

/// Has the highest bit of the first byte whose [`mark`] is 0, and perhaps of some behind it.
fn marked(word: u64) -> u64 {
    const fn all(byte: u8) -> u64 {
        u64::from_le_bytes([byte; 8])
    }
    let below = |word: u64, least: u8| word.wrapping_sub(all(least)) & !word;
    let (quote, backslash) = (word ^ all(b'"'), word ^ all(b'\\'));
    (below(word, 0x20) | below(quote, 1) | below(backslash, 1)) & all(0x80)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    /// The value that is all there is of a text.
    fn scanned(text: &str) -> Option<&str> {
        let mut scan = Scan::new(text);
        let value = scan.value()?;
        scan.end().map(|()| value)
    }

    #[track_caller]
    fn is_read_alike(text: &str) {
        let theirs: Option<&RawValue> = serde_json::from_str(text).ok();
        assert_eq!(scanned(text), theirs.map(RawValue::get), "{text}");
        if let Some(value) = scanned(text) {
            let theirs: Option<String> = serde_json::from_str(value).ok();
            assert_eq!(text_of(value).map(Cow::into_owned), theirs, "{text}");
        }
    }

    #[test]
    fn all_of_the_grammar_is_read_as_serde_json_reads_it() {
        for text in [
            "",
            " ",
            "null",
            "nul",
            "nulll",
            "true",
            "false",
            "tru",
            "\u{feff}1",
            "\u{c}1",
            "\u{a0}1",
            "1 1",
            "1,",
            "0",
            "-0",
            "-",
            "+1",
            "01",
            "-01",
            "1.",
            ".1",
            "1.0",
            "1.e1",
            "1e",
            "1e+",
            "1E-07",
            "1e400",
            "0x1",
            "NaN",
            "\"\"",
            "\"",
            "\"\\\"",
            "\"a\\",
            "\"\\u00e\"",
            "\"\\u00eg\"",
            "\"\\ud800\"",
            "\"\\ud83d\\ude00\"",
            "\"\\x\"",
            "\"\\/\\b\\f\\n\\r\\t\\\\\"",
            "\"\n\"",
            "\"\u{1f}\"",
            "\"\u{7f}\"",
            "\"\0\"",
            "\"ü€😀\"",
            "'a'",
            "\"1234567",
            "\"12345678\"",
            "[]",
            "[ ]",
            "[,]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1,2]",
            "[[],[[]]]",
            "[",
            "]",
            "[}",
            "[1",
            "[1,",
            "{}",
            "{ }",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,\"a\":1}",
            "{\"a\":1 \"b\":2}",
            "{a:1}",
            "{1:1}",
            "{\"a\" : {\"b\":[{}]} , \"\\u0061\":1}",
            "{\"\\ud800\":1}",
            "{\"a\":1",
            "{\"a\":1]",
            "/**/1",
            "1//",
        ] {
            is_read_alike(text);
        }
    }

    #[test]
    fn no_depth_is_too_deep() {
        for depth in [1, DEEP - 1, DEEP, DEEP + 1, DEEP + 2, 100_000] {
            for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
                let nested = |inside: &str| format!("{}{inside}{} ", open.repeat(depth), close.repeat(depth));
                assert_eq!(scanned(&nested("1")).map(str::len), Some(nested("1").len() - 1), "{depth}");
                assert_eq!(scanned(&nested("x")), None, "{depth}");
                assert_eq!(scanned(&format!("{}{close}", nested("1"))), None, "{depth}");
            }
        }
    }

    #[test]
    fn every_byte_is_found_at_every_place() {
        for byte in 0..=u8::MAX {
            for place in [0..9, 55..73, 125..140].into_iter().flatten() {
                for around in [b'a', 0x20, 0x21, 0x23, 0x5b, 0x5d, 0x7f, 0x80, 0xff] {
                    let mut bytes = [around; 140];
                    bytes[place] = byte;
                    let is_marked = byte < 0x20 || byte == b'"' || byte == b'\\';
                    let found = if is_marked { place } else { 140 };
                    assert_eq!(plain(&bytes), found, "{byte} among {around}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn any_text_is_read_as_serde_json_reads_it(text in "([\\[\\]{}:,\"\\\\/ua-f0-9eE.+\\- \t\n\u{1}é]|\"a\":|\"b\"|\\\\u00|true|null|1e5|-0){0,24}") {
            is_read_alike(&text);
        }

        #[test]
        fn a_value_with_a_slip_is_read_as_serde_json_reads_it(
            text in prop::sample::select(vec![
                "{\"a\":[1,-2.5e+3,true,{\"b\\u0061\":\"c\\n\"}],\"d\":{}}",
                "{\"jsonrpc\": \"2.0\", \"id\": 1, \"params\": {\"x\": [[], null], \"y\": \"über\"}} ",
            ]),
            at in 0..80_usize,
            slip in "[\\[\\]{}:,\"\\\\/ua0e.\\- \u{1}]{0,2}",
            lost in 0..3_usize,
        ) {
            let mut chars: Vec<char> = text.chars().collect();
            let at = at.min(chars.len());
            let end = (at + lost).min(chars.len());
            chars.splice(at..end, slip.chars());
            is_read_alike(&chars.into_iter().collect::<String>());
        }
    }
}
