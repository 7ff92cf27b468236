//! Fields in a row, each behind its length: what is sealed into the strings that clients keep for us. They come with every
//! request, so there is nothing to parse but lengths.

/// `fields` one after the other, each behind two bytes of length. `None`: one of them is longer than those can say.
pub fn pack<'f>(fields: impl IntoIterator<Item = &'f str>, mut into: Vec<u8>) -> Option<Vec<u8>> {
    for field in fields {
        into.extend_from_slice(&u16::try_from(field.len()).ok()?.to_be_bytes());
        into.extend_from_slice(field.as_bytes());
    }
    Some(into)
}

/// The `N` fields that were packed. `None`: it is something else.
pub fn unpack<const N: usize>(packed: &[u8]) -> Option<[&str; N]> {
    let mut fields = [""; N];
    for (field, bytes) in fields.iter_mut().zip(unpack_bytes::<N>(packed)?) {
        *field = std::str::from_utf8(bytes).ok()?;
    }
    Some(fields)
}

/// The same for whoever looks himself whether they are text.
pub fn unpack_bytes<const N: usize>(mut packed: &[u8]) -> Option<[&[u8]; N]> {
    let mut fields = [&[][..]; N];
    for field in &mut fields {
        let (length, rest) = packed.split_first_chunk::<2>()?;
        (*field, packed) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    }
    packed.is_empty().then_some(fields)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn what_was_packed_comes_out_and_nothing_else_does() {
        let packed = pack(["alice", "", "é"], Vec::new()).unwrap();
        assert_eq!(unpack::<3>(&packed), Some(["alice", "", "é"]));
        assert_eq!(unpack::<2>(&packed), None, "something is left");
        assert_eq!(unpack::<4>(&packed), None, "something is missing");
        for length in 0..packed.len() {
            assert_eq!(unpack::<3>(&packed[..length]), None, "{length}");
        }
        let not_text = [&packed[..packed.len() - 1], &[0xff]].concat();
        assert_eq!(unpack::<3>(&not_text), None);
        let long = "x".repeat(1 << 16);
        assert_eq!(pack([long.as_str()], Vec::new()), None);
    }
}
