//! Which addresses may be connected to. Our own table of the two IANA special-purpose address registries
//! (RFC 6890 and its updates), because no library has all of them and the one in `std` is unstable. A listed
//! range is closed even where its registry row says "globally reachable": nobody serves OAuth from an anycast
//! sink hole.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

/// The hosts that may be private and may speak plain http. Everything else is public and https.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    /// Shared, so that clones compare by one look.
    private_hosts: Arc<HashSet<String>>,
}

impl AddressPolicy {
    /// Public addresses over https, no exception.
    pub fn public() -> Self {
        Self::default()
    }

    /// As [`public`](Self::public), except for these host names or address literals (no port; brackets and
    /// case do not matter): they may use http and addresses of [`Class::Private`].
    pub fn allowing(hosts: impl IntoIterator<Item = String>) -> Self {
        let private_hosts: HashSet<_> = hosts.into_iter().map(|host| canonical(&host)).collect();
        Self { private_hosts: Arc::new(private_hosts) }
    }

    /// The exceptions.
    pub fn private_hosts(&self) -> impl Iterator<Item = &str> {
        self.private_hosts.iter().map(String::as_str)
    }

    /// Whether this host is one of the exceptions. It is the name in the URL that counts, not what it resolves
    /// to, so `localhost` being allowed says nothing about `127.0.0.1`.
    pub fn allows_private(&self, host: &str) -> bool {
        !self.private_hosts.is_empty() && self.private_hosts.contains(&canonical(host))
    }
}

/// One spelling per host: no brackets, lower case, addresses as `std` prints them.
fn canonical(host: &str) -> String {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => bare.to_ascii_lowercase(),
    }
}

/// What an address is, as far as connecting to it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Globally reachable unicast.
    Public,
    /// Loopback, RFC 1918 or unique local: may be allowed for a named host.
    Private,
    /// Never: link-local, metadata services, multicast, documentation, translation and everything else special.
    Forbidden,
}

/// Classifies an address. Unallocated IPv6 space counts as forbidden.
pub fn classify(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => classify_v6(address),
    }
}

fn classify_v4(address: Ipv4Addr) -> Class {
    if PRIVATE_V4.iter().any(|net| net.contains(&address)) {
        Class::Private
    } else if FORBIDDEN_V4.iter().any(|net| net.contains(&address)) {
        Class::Forbidden
    } else {
        Class::Public
    }
}

fn classify_v6(address: Ipv6Addr) -> Class {
    // Forbidden first: metadata services hide inside the unique local range.
    if FORBIDDEN_V6.iter().any(|net| net.contains(&address)) {
        Class::Forbidden
    } else if PRIVATE_V6.iter().any(|net| net.contains(&address)) {
        Class::Private
    } else if NAT64.contains(&address) {
        // An IPv6-only network reaches the IPv4 Internet through this prefix, so it is open, but only as far as
        // the address inside is public (RFC 6052 §3.1).
        let [.., a, b, c, d] = address.octets();
        match classify_v4(Ipv4Addr::new(a, b, c, d)) {
            Class::Public => Class::Public,
            Class::Private | Class::Forbidden => Class::Forbidden,
        }
    } else if GLOBAL_UNICAST.contains(&address) {
        Class::Public
    } else {
        Class::Forbidden
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// The first three groups and the last two; none of the ranges needs more.
const fn v6(a: u16, b: u16, c: u16, last: [u16; 2], prefix: u8) -> Ipv6Net {
    let [g, h] = last;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, g, h), prefix)
}

const PRIVATE_V4: [Ipv4Net; 4] = [
    v4(10, 0, 0, 0, 8),     // RFC 1918
    v4(127, 0, 0, 0, 8),    // loopback, RFC 1122 §3.2.1.3
    v4(172, 16, 0, 0, 12),  // RFC 1918
    v4(192, 168, 0, 0, 16), // RFC 1918
];

const FORBIDDEN_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 0, 8),        // "this network", RFC 791; connecting to 0.0.0.0 reaches loopback
    v4(100, 64, 0, 0, 10),    // shared address space, RFC 6598; also Alibaba's metadata service
    v4(168, 63, 129, 16, 32), // Azure's platform address: public by number, reachable only from inside
    v4(169, 254, 0, 0, 16),   // link-local, RFC 3927; most metadata services
    v4(192, 0, 0, 0, 24),     // protocol assignments, RFC 6890; also Oracle's metadata service
    v4(192, 0, 2, 0, 24),     // documentation, RFC 5737
    v4(192, 31, 196, 0, 24),  // AS112, RFC 7535
    v4(192, 52, 193, 0, 24),  // AMT, RFC 7450
    v4(192, 88, 99, 0, 24),   // 6to4 relay, RFC 7526
    v4(192, 175, 48, 0, 24),  // AS112, RFC 7534
    v4(198, 18, 0, 0, 15),    // benchmarking, RFC 2544
    v4(198, 51, 100, 0, 24),  // documentation, RFC 5737
    v4(203, 0, 113, 0, 24),   // documentation, RFC 5737
    v4(224, 0, 0, 0, 4),      // multicast, RFC 5771
    v4(240, 0, 0, 0, 4),      // reserved, RFC 1112 §4, with limited broadcast
];

const PRIVATE_V6: [Ipv6Net; 2] = [
    v6(0, 0, 0, [0, 1], 128),    // loopback, RFC 4291
    v6(0xfc00, 0, 0, [0, 0], 7), // unique local, RFC 4193
];

/// Only ranges inside global unicast or unique local need a row. What lies outside both, such as the unspecified
/// address, IPv4-mapped, -compatible and -translated forms, discard, link-local and multicast, is forbidden
/// because nothing opens it. 6to4 and Teredo are closed whole, whatever address they carry: a public one has a
/// plain spelling.
const FORBIDDEN_V6: [Ipv6Net; 9] = [
    v6(0x2001, 0, 0, [0, 0], 23), // protocol assignments: Teredo, benchmarking, ORCHID …
    v6(0x2001, 0xdb8, 0, [0, 0], 32), // documentation, RFC 3849
    v6(0x2002, 0, 0, [0, 0], 16), // 6to4, RFC 3056
    v6(0x2620, 0x4f, 0x8000, [0, 0], 48), // AS112, RFC 7534
    v6(0x3fff, 0, 0, [0, 0], 20), // documentation, RFC 9637
    v6(0xfd00, 0x42, 0, [0, 0x42], 128), // Scaleway's metadata service
    v6(0xfd00, 0xc1, 0, [0xa9fe, 0xa9fe], 128), // Oracle's metadata service
    v6(0xfd00, 0xec2, 0, [0, 0], 32), // Amazon's local services
    v6(0xfd20, 0xce, 0, [0, 0x254], 128), // Google's metadata service
];

/// The well-known translation prefix, RFC 6052.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, [0, 0], 96);

/// All that IANA has given out as global unicast so far, RFC 4291 §2.4.
const GLOBAL_UNICAST: Ipv6Net = v6(0x2000, 0, 0, [0, 0], 3);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn class(text: &str) -> Class {
        classify(text.parse().unwrap_or_else(|_| panic!("not an address: {text}")))
    }

    /// First and last address of each range, and the neighbours outside: moving any border by one fails here.
    #[test]
    fn v4_borders() {
        use Class::{Forbidden, Private, Public};
        for (text, expected) in [
            ("0.0.0.0", Forbidden),
            ("0.255.255.255", Forbidden),
            ("1.0.0.0", Public),
            ("9.255.255.255", Public),
            ("10.0.0.0", Private),
            ("10.255.255.255", Private),
            ("11.0.0.0", Public),
            ("100.63.255.255", Public),
            ("100.64.0.0", Forbidden),
            ("100.127.255.255", Forbidden),
            ("100.128.0.0", Public),
            ("126.255.255.255", Public),
            ("127.0.0.0", Private),
            ("127.255.255.255", Private),
            ("128.0.0.0", Public),
            ("168.63.129.15", Public),
            ("168.63.129.16", Forbidden),
            ("168.63.129.17", Public),
            ("169.253.255.255", Public),
            ("169.254.0.0", Forbidden),
            ("169.254.169.254", Forbidden),
            ("169.254.255.255", Forbidden),
            ("169.255.0.0", Public),
            ("172.15.255.255", Public),
            ("172.16.0.0", Private),
            ("172.31.255.255", Private),
            ("172.32.0.0", Public),
            ("191.255.255.255", Public),
            ("192.0.0.0", Forbidden),
            ("192.0.0.255", Forbidden),
            ("192.0.1.0", Public),
            ("192.0.1.255", Public),
            ("192.0.2.0", Forbidden),
            ("192.0.2.255", Forbidden),
            ("192.0.3.0", Public),
            ("192.31.195.255", Public),
            ("192.31.196.0", Forbidden),
            ("192.31.196.255", Forbidden),
            ("192.31.197.0", Public),
            ("192.52.192.255", Public),
            ("192.52.193.0", Forbidden),
            ("192.52.193.255", Forbidden),
            ("192.52.194.0", Public),
            ("192.88.98.255", Public),
            ("192.88.99.0", Forbidden),
            ("192.88.99.255", Forbidden),
            ("192.88.100.0", Public),
            ("192.167.255.255", Public),
            ("192.168.0.0", Private),
            ("192.168.255.255", Private),
            ("192.169.0.0", Public),
            ("192.175.47.255", Public),
            ("192.175.48.0", Forbidden),
            ("192.175.48.255", Forbidden),
            ("192.175.49.0", Public),
            ("198.17.255.255", Public),
            ("198.18.0.0", Forbidden),
            ("198.19.255.255", Forbidden),
            ("198.20.0.0", Public),
            ("198.51.99.255", Public),
            ("198.51.100.0", Forbidden),
            ("198.51.100.255", Forbidden),
            ("198.51.101.0", Public),
            ("203.0.112.255", Public),
            ("203.0.113.0", Forbidden),
            ("203.0.113.255", Forbidden),
            ("203.0.114.0", Public),
            ("223.255.255.255", Public),
            ("224.0.0.0", Forbidden),
            ("239.255.255.255", Forbidden),
            ("240.0.0.0", Forbidden),
            ("255.255.255.255", Forbidden),
            ("8.8.8.8", Public),
            ("93.184.215.14", Public),
        ] {
            assert_eq!(class(text), expected, "{text}");
        }
    }

    #[test]
    fn v6_borders() {
        use Class::{Forbidden, Private, Public};
        for (text, expected) in [
            ("::", Forbidden),
            ("::1", Private),
            ("::2", Forbidden),
            ("::127.0.0.1", Forbidden),
            ("::8.8.8.8", Forbidden),
            ("::ffff:0.0.0.0", Forbidden),
            ("::ffff:127.0.0.1", Forbidden),
            ("::ffff:10.0.0.1", Forbidden),
            ("::ffff:8.8.8.8", Forbidden),
            ("::ffff:0:127.0.0.1", Forbidden),
            ("64:ff9b::8.8.8.8", Public),
            ("64:ff9b::10.0.0.1", Forbidden),
            ("64:ff9b::127.0.0.1", Forbidden),
            ("64:ff9b::169.254.169.254", Forbidden),
            ("64:ff9b::0.0.0.0", Forbidden),
            ("64:ff9b::1:808:808", Forbidden),
            ("64:ff9b:1::8.8.8.8", Forbidden),
            ("64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Forbidden),
            ("64:ff9a::8.8.8.8", Forbidden),
            ("100::1", Forbidden),
            ("100:0:0:1::1", Forbidden),
            ("1fff:ffff::", Forbidden),
            ("2000::", Public),
            ("2000:ffff::", Public),
            ("2001::1", Forbidden),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", Forbidden),
            ("2001:2::1", Forbidden),
            ("2001:10::1", Forbidden),
            ("2001:20::1", Forbidden),
            ("2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Forbidden),
            ("2001:200::", Public),
            ("2001:db7:ffff::", Public),
            ("2001:db8::", Forbidden),
            ("2001:db8:ffff::", Forbidden),
            ("2001:db9::", Public),
            ("2001:4860:4860::8888", Public),
            ("2001:ffff::", Public),
            ("2002::", Forbidden),
            ("2002:808:808::1", Forbidden),
            ("2002:a00:1::", Forbidden),
            ("2002:ffff::", Forbidden),
            ("2003::", Public),
            ("2620:4f:7fff::", Public),
            ("2620:4f:8000::1", Forbidden),
            ("2620:4f:8001::", Public),
            ("3ffe::", Public),
            ("3fff::", Forbidden),
            ("3fff:fff::", Forbidden),
            ("3fff:1000::", Public),
            ("4000::", Forbidden),
            ("5f00::1", Forbidden),
            ("a000::1", Forbidden),
            ("fbff::", Forbidden),
            ("fc00::", Private),
            ("fd12:3456::1", Private),
            ("fdff:ffff::", Private),
            ("fe00::", Forbidden),
            ("fd00:42::42", Forbidden),
            ("fd00:42::43", Private),
            ("fd00:c1::a9fe:a9fe", Forbidden),
            ("fd00:c1::a9fe:a9ff", Private),
            ("fd00:ec1:ffff::", Private),
            ("fd00:ec2::254", Forbidden),
            ("fd00:ec3::", Private),
            ("fd20:ce::254", Forbidden),
            ("fd20:ce::255", Private),
            ("fe80::1", Forbidden),
            ("febf::1", Forbidden),
            ("fec0::1", Forbidden),
            ("ff02::1", Forbidden),
            ("ff0e::1", Forbidden),
        ] {
            assert_eq!(class(text), expected, "{text}");
        }
    }

    #[test]
    fn only_named_hosts_may_be_private() {
        let policy = AddressPolicy::allowing(["Intranet.Example".into(), "[::1]".into(), "127.0.0.1".into()]);
        for host in ["intranet.example", "INTRANET.example", "::1", "[::1]", "0:0:0:0:0:0:0:1", "127.0.0.1"] {
            assert!(policy.allows_private(host), "{host}");
            assert!(!AddressPolicy::public().allows_private(host), "{host}");
        }
        for host in [
            "intranet.example.",
            "a.intranet.example",
            "example",
            "::ffff:7f00:1",
            "127.0.0.2",
            "localhost",
            "",
        ] {
            assert!(!policy.allows_private(host), "{host}");
        }
    }

    proptest! {
        /// No IPv6 spelling of an IPv4 address gets further than the address itself, nor becomes private.
        #[test]
        fn embedding_never_opens(v4: u32, host: u64) {
            let inner = Ipv4Addr::from(v4);
            let [a, b] = [(v4 >> 16) as u16, v4 as u16];
            let [p, q, r, s] = [(host >> 48) as u16, (host >> 32) as u16, (host >> 16) as u16, host as u16];
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b);
            let expected =
                if classify(inner.into()) == Class::Public { Class::Public } else { Class::Forbidden };
            prop_assert_eq!(classify(nat64.into()), expected);
            for closed in [
                inner.to_ipv6_mapped(),
                Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, a, b),
                Ipv6Addr::new(0x64, 0xff9b, 1, p, q, r, a, b),
                Ipv6Addr::new(0x2002, a, b, p, q, r, s, 1),
                Ipv6Addr::new(0x2001, 0, p, q, r, s, !a, !b),
            ] {
                prop_assert_eq!(classify(closed.into()), Class::Forbidden);
            }
            prop_assume!(v4 != 1);
            prop_assert_eq!(classify(Ipv6Addr::new(0, 0, 0, 0, 0, 0, a, b).into()), Class::Forbidden);
        }
    }
}
