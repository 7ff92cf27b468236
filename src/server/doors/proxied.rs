//! What a balancer in front says of a connection before the first of its bytes: whose it is (PROXY protocol 1 and 2, as HAProxy
//! specifies it). It is read to its last byte and no further, or there is no connection.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest line of version 1, its end included.
const LINE_MOST: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What comes before the addresses in version 2.
const HEAD: usize = 16;
/// The longest header of version 2. What it has room for beside addresses is not used.
const MOST: usize = 2048;

#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// More has to come.
    Partial,
    /// So many bytes are the header.
    Whole(usize, Whose),
    Malformed,
}

/// Whose a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Client(SocketAddr),
    /// The balancer's own, to see how we are.
    Balancer,
    /// Somebody's who came to the balancer in a way of which nothing is said.
    Unknown,
}

/// Reads the header at the beginning of `bytes`.
pub fn read(bytes: &[u8]) -> Read {
    let begins = |mark: &[u8]| bytes.iter().zip(mark).all(|(byte, marked)| byte == marked);
    if begins(SIGNATURE) {
        second(bytes)
    } else if begins(b"PROXY ") {
        first(bytes)
    } else {
        Read::Malformed
    }
}

/// A line of text.
fn first(bytes: &[u8]) -> Read {
    let begun = bytes.get(..LINE_MOST).unwrap_or(bytes);
    let Some(end) = memchr::memchr(b'\n', begun) else {
        return if bytes.len() < LINE_MOST { Read::Partial } else { Read::Malformed };
    };
    let whole = |whose| Read::Whole(end + 1, whose);
    let client = |address: IpAddr, port| whole(Whose::Client((address, port).into()));
    let line = begun.get(..end).and_then(|line| line.strip_suffix(b"\r"));
    let line = line.and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let parts: Vec<&str> = line.split(' ').collect();
    match parts.as_slice() {
        ["PROXY", "UNKNOWN", ..] => whole(Whose::Unknown),
        ["PROXY", "TCP4", from, to, from_port, to_port] => {
            match (from.parse::<Ipv4Addr>(), to.parse::<Ipv4Addr>(), port(from_port), port(to_port)) {
                (Ok(from), Ok(_), Some(port), Some(_)) => client(from.into(), port),
                _ => Read::Malformed,
            }
        }
        ["PROXY", "TCP6", from, to, from_port, to_port] => {
            match (from.parse::<Ipv6Addr>(), to.parse::<Ipv6Addr>(), port(from_port), port(to_port)) {
                (Ok(from), Ok(_), Some(port), Some(_)) => client(from.into(), port),
                _ => Read::Malformed,
            }
        }
        _ => Read::Malformed,
    }
}

/// Digits without a sign and without zeros in front.
fn port(text: &str) -> Option<u16> {
    let is_plain = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| is_plain)
}

/// Binary.
fn second(bytes: &[u8]) -> Read {
    let Some([command, family, high, low]) =
        bytes.get(SIGNATURE.len()..HEAD).and_then(|rest| <[u8; 4]>::try_from(rest).ok())
    else {
        return Read::Partial;
    };
    let length = HEAD + usize::from(u16::from_be_bytes([high, low]));
    if length > MOST || command >> 4 != 2 || command & 0xF > 1 {
        return Read::Malformed;
    }
    let Some(said) = bytes.get(HEAD..length) else {
        return Read::Partial;
    };
    match (command & 0xF, family) {
        (0, _) => Read::Whole(length, Whose::Balancer),
        (1, 0) => Read::Whole(length, Whose::Unknown),
        (1, 0x11) => address::<4>(said).map_or(Read::Malformed, |client| Read::Whole(length, client)),
        (1, 0x21) => address::<16>(said).map_or(Read::Malformed, |client| Read::Whole(length, client)),
        // A datagram, or a socket of a file: none of these comes here.
        _ => Read::Malformed,
    }
}

/// Both addresses and then both ports, of which we want what comes first.
fn address<const LENGTH: usize>(said: &[u8]) -> Option<Whose>
where
    IpAddr: From<[u8; LENGTH]>,
{
    let from: [u8; LENGTH] = said.get(..LENGTH)?.try_into().ok()?;
    let ports = said.get(2 * LENGTH..2 * LENGTH + 4)?;
    let port = ports.first_chunk().copied().map(u16::from_be_bytes)?;
    Some(Whose::Client((IpAddr::from(from), port).into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    /// Good and bad headers, and whose the connections are to which they belong.
    const CORPUS: &str = include_str!("../../../tests/data/proxy_protocol.json");

    #[derive(serde::Deserialize)]
    struct Case {
        header: String,
        #[serde(default)]
        hex: bool,
        client: serde_json::Value,
    }

    #[test]
    fn headers_are_read_to_their_last_byte_or_not_at_all() {
        let cases: Vec<Case> = serde_json::from_str(CORPUS).unwrap();
        for case in cases {
            let header = match case.hex {
                true => data_encoding::HEXLOWER.decode(case.header.as_bytes()).unwrap(),
                false => case.header.clone().into_bytes(),
            };
            let length = header.len();
            let expected = match &case.client {
                serde_json::Value::Bool(false) => Read::Malformed,
                client => Read::Whole(
                    length,
                    match client.as_str().unwrap() {
                        "balancer" => Whose::Balancer,
                        "unknown" => Whose::Unknown,
                        client => Whose::Client(client.parse().unwrap()),
                    },
                ),
            };
            assert_eq!(read(&[&header[..], b"\x16\x03\x01"].concat()), expected, "{}", case.header);
            for end in 0..length {
                let found = read(&header[..end]);
                let is_early =
                    found == Read::Partial || (found == Read::Malformed && expected == Read::Malformed);
                assert!(is_early, "{} at {end}: {found:?}", case.header);
            }
        }
    }
}
