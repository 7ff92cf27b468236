//! A look at the bytes of an answer that says of nearly every one that there is no list in it: much cheaper than to read it.
use memchr::{memchr, memchr2_iter};
use wide::u8x16;

/// So many bytes are looked at together.
const BLOCK: usize = 64;
/// `ſ` in UTF-8.
const LONG_S: [u8; 2] = [0xC5, 0xBF];

/// What is to be seen without reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    pub is_ascii: bool,
    /// No parser could find a member in here that [`list`](super::list) is about, however lenient it is.
    pub is_indifferent: bool,
}

impl Glance {
    pub fn at(bytes: &[u8]) -> Self {
        let (mut all, mut escapes, mut may_list) = (u8x16::ZERO, u8x16::ZERO, false);
        for start in (0..bytes.len()).step_by(BLOCK) {
            let block = Block::first_of(bytes.get(start..).unwrap_or_default());
            all |= block.merged(|part| part);
            escapes |= block.merged(is(b'\\'));
            let mut colons = block.places(is(b':'));
            while colons != 0 && !may_list {
                may_list =
                    is_member(bytes.get(..start + colons.trailing_zeros() as usize).unwrap_or_default());
                colons &= colons - 1;
            }
        }
        let is_ascii = !all.any();
        may_list |= (escapes.any() || !is_ascii) && is_spelled(bytes);
        Self { is_ascii, is_indifferent: !may_list || memchr(b'{', bytes).is_none() }
    }
}

/// Whether a member of ours may have its name at the end of this, before its colon.
#[inline]
fn is_member(before: &[u8]) -> bool {
    /// The last letters of the names below.
    const LAST: [u32; 5] =
        [letters(*b"ols"), letters(*b"pts"), letters(*b"ces"), letters(*b"tes"), letters(*b"ope")];
    match before.last_chunk() {
        Some([a, b, c, b'"']) if !LAST.contains(&letters([*a, *b, *c])) => false,
        _ => is_named(before),
    }
}

/// Three letters, the small as the capital ones.
const fn letters([a, b, c]: [u8; 3]) -> u32 {
    u32::from_le_bytes([a | 0x20, b | 0x20, c | 0x20, 0])
}

#[inline(never)] // Few names come as far as this.
fn is_named(before: &[u8]) -> bool {
    /// How the names of our members end.
    const ENDS: [&[u8]; 5] = [b"tools", b"prompts", b"resources", b"templates", b"cachescope"];
    let before = before.trim_ascii_end();
    let name = before.strip_suffix(b"\"").or(before.strip_suffix(b"'")).unwrap_or(before);
    let ends_with = |end: &[u8]| {
        let found = name.len().checked_sub(end.len()).and_then(|start| name.get(start..));
        found.is_some_and(|found| found.eq_ignore_ascii_case(end))
    };
    // Behind a comment anything may stand.
    before.ends_with(b"/") || ENDS.iter().any(|end| ends_with(end))
}

/// Whether a name may be spelled in escapes, or with a letter that folds to an `s`.
#[inline(never)]
fn is_spelled(bytes: &[u8]) -> bool {
    let [long, s] = LONG_S;
    let is_before = |at: usize, byte: u8| bytes.get(at + 1) == Some(&byte);
    memchr2_iter(b'\\', long, bytes).any(|at| match bytes.get(at) {
        Some(b'\\') => is_before(at, b'u'),
        _ => is_before(at, s),
    })
}

/// Bytes that are compared at once.
struct Block([u8x16; BLOCK / 16]);

impl Block {
    /// The first of a text. Behind its end there are zeros.
    #[inline]
    fn first_of(text: &[u8]) -> Self {
        let whole = text.first_chunk().copied().unwrap_or_else(|| {
            let mut bytes = [0; BLOCK];
            bytes.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
            bytes
        });
        let [a, b, c, d] = whole.as_chunks().0.first_chunk().copied().unwrap_or_default();
        Self([u8x16::new(a), u8x16::new(b), u8x16::new(c), u8x16::new(d)])
    }

    /// Where it is so: a bit for each byte, the lowest for the first.
    #[inline]
    fn places(&self, is_so: impl Fn(u8x16) -> u8x16) -> u64 {
        let [a, b, c, d] = self.0;
        let bits = |part| u64::from(is_so(part).to_bitmask());
        bits(a) | bits(b) << 16 | bits(c) << 32 | bits(d) << 48
    }

    /// Of every sixteenth byte what any of them has.
    #[inline]
    fn merged(&self, of: impl Fn(u8x16) -> u8x16) -> u8x16 {
        let [a, b, c, d] = self.0;
        of(a) | of(b) | of(c) | of(d)
    }
}

/// All bits of a byte that is this one, none of any other.
#[inline]
fn is(byte: u8) -> impl Fn(u8x16) -> u8x16 {
    move |part| part.simd_eq(u8x16::splat(byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn whatever_has_a_list_is_not_indifferent() {
        for text in [
            r#"{"result":{"tools":[]}}"#,
            "{\"result\":{\"TOOLS\" \t\r\n:[]}}",
            r#"{"result":{"resourceTemplates":[]}}"#,
            r#"{"result":{"cachescope":""}}"#,
            r#"{"result":{"\u0074ools":[]}}"#,
            r#"{"result":{"toolſ":[]}}"#,
            r#"{"result":{tools:[]}}"#,
            r#"{"result":{'tools' :[]}}"#,
            r#"{"result":{"tools"/**/:[]}}"#,
        ] {
            assert!(!Glance::at(text.as_bytes()).is_indifferent, "{text}");
        }
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"tools, \"tools\" or https://x"}]}}"#,
            r#"{"result":{"tool":{},"x":"prompt"}}"#,
            "s{",
            r#"["tools","cacheScope"]"#,
        ] {
            assert!(Glance::at(text.as_bytes()).is_indifferent, "{text}");
        }
    }

    #[test]
    fn a_name_is_found_wherever_it_stands() {
        for before in 0..2 * BLOCK {
            for behind in [0, 1, BLOCK - 1, BLOCK] {
                for name in ["\"tools\":", "'Prompts' :", "t\\u006fols", "toolſ", "*/:"] {
                    let text = format!("{{{}{name}{}", " ".repeat(before), "]".repeat(behind));
                    assert!(!Glance::at(text.as_bytes()).is_indifferent, "{text}");
                }
                for other in ["\"type\":", "\"tool\":", ":", "\\n", "é"] {
                    let text = format!("{{{}{other}{}", " ".repeat(before), "]".repeat(behind));
                    let is_ascii = other != "é";
                    assert_eq!(
                        Glance::at(text.as_bytes()),
                        Glance { is_ascii, is_indifferent: true },
                        "{text}"
                    );
                }
            }
        }
    }
}
