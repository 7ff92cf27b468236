//! JSON text, passed over value by value: nothing is kept of it but where it stands. Takes what `serde_json` takes, no more
//! and no less, and a third of the time: it is the one look at every byte of every call that a rule depends on.
use std::borrow::Cow;

use memchr::memchr;
use serde::de::IgnoredAny;

use super::Unreadable;

/// What is nested deeper is left to `serde_json`, which needs no stack for it.
const DEEP: usize = 64;

/// A place in a text.
pub(super) struct Scan<'t> {
    text: &'t str,
    at: usize,
}

/// A string as it is written, between its quotes.
#[derive(Clone, Copy)]
pub(super) struct Text<'t> {
    inside: &'t str,
    is_escaped: bool,
}

impl<'t> Scan<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// The byte that comes next, but for white space.
    pub(super) fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.byte() {
            self.at += 1;
        }
        self.byte()
    }

    /// Passes over `byte`, which has to come next.
    pub(super) fn pass(&mut self, byte: u8) -> Result<(), Unreadable> {
        let is_next = self.peek() == Some(byte);
        self.go(is_next, 1)
    }

    /// Passes over a whole value.
    pub(super) fn value(&mut self) -> Result<&'t str, Unreadable> {
        self.peek();
        let start = self.at;
        self.skip(0)?;
        self.text.get(start..self.at).ok_or(Unreadable::Ambiguous)
    }

    /// The name of an object's next member, whose value comes next; `None` behind its end.
    #[inline(always)] // As below: half of what these few instructions take would be handing over what they found.
    pub(super) fn member(&mut self, is_first: bool) -> Result<Option<Text<'t>>, Unreadable> {
        if !self.goes_on(is_first, b'}')? {
            return Ok(None);
        }
        self.peek();
        let name = self.string()?;
        self.pass(b':')?;
        Ok(Some(name))
    }

    /// Whether an array has another item, which comes next; else it has ended.
    pub(super) fn item(&mut self, is_first: bool) -> Result<bool, Unreadable> {
        self.goes_on(is_first, b']')
    }

    /// Nothing may come any more.
    pub(super) fn end(&mut self) -> Result<(), Unreadable> {
        self.peek().map_or(Ok(()), |_| Err(Unreadable::Ambiguous))
    }

    fn rest(&self) -> &'t [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn byte(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    fn go(&mut self, is_right: bool, by: usize) -> Result<(), Unreadable> {
        if !is_right {
            return Err(Unreadable::Ambiguous);
        }
        self.at += by;
        Ok(())
    }

    /// Whether another one comes before the `end` of an object or array.
    fn goes_on(&mut self, is_first: bool, end: u8) -> Result<bool, Unreadable> {
        let next = self.peek();
        if next == Some(end) {
            self.at += 1;
            return Ok(false);
        }
        if !is_first {
            self.pass(b',')?;
        }
        Ok(true)
    }

    fn skip(&mut self, depth: usize) -> Result<(), Unreadable> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'{' | b'[') if depth == DEEP => self.deep(),
            Some(b'{') => {
                self.at += 1;
                let mut is_first = true;
                while self.member(is_first)?.is_some() {
                    self.skip(depth + 1)?;
                    is_first = false;
                }
                Ok(())
            }
            Some(b'[') => {
                self.at += 1;
                let mut is_first = true;
                while self.item(is_first)? {
                    self.skip(depth + 1)?;
                    is_first = false;
                }
                Ok(())
            }
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            _ => self.number(),
        }
    }

    fn deep(&mut self) -> Result<(), Unreadable> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(IgnoredAny)) => self.go(true, values.byte_offset()),
            _ => Err(Unreadable::Ambiguous),
        }
    }

    fn word(&mut self, word: &str) -> Result<(), Unreadable> {
        let is_next = self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word));
        self.go(is_next, word.len())
    }

    fn number(&mut self) -> Result<(), Unreadable> {
        self.at += usize::from(self.byte() == Some(b'-'));
        match self.byte() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            self.at += usize::from(matches!(self.byte(), Some(b'+' | b'-')));
            self.digits()?;
        }
        // A zero that leads on.
        let is_end = !self.byte().is_some_and(|byte| byte.is_ascii_digit());
        self.go(is_end, 0)
    }

    fn digits(&mut self) -> Result<(), Unreadable> {
        let start = self.at;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.go(self.at > start, 0)
    }

    #[inline(always)]
    fn string(&mut self) -> Result<Text<'t>, Unreadable> {
        let Some((b'"', inside)) = self.rest().split_first() else { return Err(Unreadable::Ambiguous) };
        let plain = plain(inside);
        let (length, is_escaped) = match inside.get(plain) {
            Some(b'"') => (plain, false),
            Some(b'\\') => (escaped(inside, plain)?, true),
            _ => return Err(Unreadable::Ambiguous),
        };
        let start = self.at + 1;
        let inside = self.text.get(start..start + length).ok_or(Unreadable::Ambiguous)?;
        self.at = start + length + 1;
        Ok(Text { inside, is_escaped })
    }
}

impl<'t> Text<'t> {
    /// `value`: one that was passed over, as it is written. An error: it is no string.
    pub(super) fn of(value: &'t str) -> Result<Self, Unreadable> {
        let inside = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let inside = inside.ok_or(Unreadable::Ambiguous)?;
        Ok(Self { inside, is_escaped: memchr(b'\\', inside.as_bytes()).is_some() })
    }

    /// What it says. An error: it is no text.
    #[inline(always)]
    pub(super) fn read(self) -> Result<Cow<'t, str>, Unreadable> {
        if !self.is_escaped {
            return Ok(Cow::Borrowed(self.inside));
        }
        let whole = format!("\"{}\"", self.inside);
        serde_json::from_str(&whole).map(Cow::Owned).map_err(|_| Unreadable::Ambiguous)
    }
}

/// Where the closing quote of a text is whose first backslash is `at` there.
fn escaped(inside: &[u8], mut at: usize) -> Result<usize, Unreadable> {
    loop {
        at += match inside.get(at..).unwrap_or_default() {
            [b'"', ..] => return Ok(at),
            [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [b'\\', b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|x| x.is_ascii_hexdigit()) => 6,
            _ => return Err(Unreadable::Ambiguous),
        };
        at += plain(inside.get(at..).unwrap_or_default());
    }
}

/// How many bytes come before the next quote, backslash or control character. Most texts end within sixteen bytes; those that
/// do not go on in blocks of sixty-four.
fn plain(bytes: &[u8]) -> usize {
    const SHORT: usize = 16;
    let short = plain_in_words(bytes.get(..SHORT).unwrap_or(bytes));
    if short < SHORT {
        return short;
    }
    let (blocks, _) = bytes.get(SHORT..).unwrap_or_default().as_chunks::<64>();
    // Without a way out in between: so it becomes a few instructions on vectors.
    let is_plain = |block: &&[u8; 64]| block.iter().fold(u8::MAX, |least, byte| least.min(mark(*byte))) != 0;
    let passed = SHORT + 64 * blocks.iter().take_while(is_plain).count();
    passed + plain_in_words(bytes.get(passed..).unwrap_or_default())
}

/// The same, eight bytes at a time.
fn plain_in_words(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut passed = 0;
    for word in words {
        let found = marked(u64::from_le_bytes(*word));
        if found != 0 {
            return passed + found.trailing_zeros() as usize / 8;
        }
        passed += 8;
    }
    passed + rest.iter().take_while(|byte| mark(**byte) != 0).count()
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
        let value = scan.value().ok()?;
        scan.end().ok().map(|()| value)
    }

    #[track_caller]
    fn is_read_alike(text: &str) {
        let theirs: Option<&RawValue> = serde_json::from_str(text).ok();
        assert_eq!(scanned(text), theirs.map(RawValue::get), "{text}");
        if let Some(value) = scanned(text) {
            let theirs: Option<String> = serde_json::from_str(value).ok();
            assert_eq!(Text::of(value).and_then(Text::read).ok().map(Cow::into_owned), theirs, "{text}");
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
