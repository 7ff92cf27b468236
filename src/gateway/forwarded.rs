//! Whose request it is. A connection says that, unless a balancer that is trusted has made it: then the last one in its list that
//! is no such balancer (`X-Forwarded-For`, or `Forwarded`, RFC 7239 §5.2). Whatever stands before is the client's own word.
use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header};
use pingora::proxy::Session;

use crate::config::{ForwardedHeader, Server};

const LIST: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address a request came from. `None`: whoever could say it does not.
pub fn client(session: &Session, server: &Server) -> Option<IpAddr> {
    let peer = session.client_addr()?.as_inet()?.ip().to_canonical();
    match server.is_trusted_proxy(peer) {
        true => behind(peer, &session.req_header().headers, server),
        false => Some(peer),
    }
}

/// What a trusted `peer` says. It may speak for itself, and then says nothing.
fn behind(peer: IpAddr, headers: &HeaderMap, server: &Server) -> Option<IpAddr> {
    let name = match server.forwarded_header {
        ForwardedHeader::XForwardedFor => LIST,
        ForwardedHeader::Forwarded => header::FORWARDED,
    };
    let mut nearest = peer;
    for line in headers.get_all(&name).iter().rev() {
        let hops: Vec<&str> = parts(line.to_str().ok()?, ',').collect();
        for hop in hops.into_iter().rev() {
            nearest = match server.forwarded_header {
                ForwardedHeader::XForwardedFor => address(hop.trim())?,
                ForwardedHeader::Forwarded => address(node(hop)?)?,
            };
            if !server.is_trusted_proxy(nearest) {
                return Some(nearest);
            }
        }
    }
    Some(nearest)
}

/// What stands between these marks, of which those in quotes are none.
fn parts(text: &str, mark: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character| {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        character == mark && !quoted
    })
}

/// What `for` says of one hop.
fn node(hop: &str) -> Option<&str> {
    let mut pairs = parts(hop, ';').filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// An address, with or without a port and brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let read = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    read.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use serde_json::json;

    use crate::config::{self, Process};

    /// What a balancer at 10.0.0.1 says with these values, one after the other; "-" where it does not say.
    fn said(header: &str, values: &[&str]) -> String {
        let hash = "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8";
        let written = json!({
            "server": {"public_url": "http://127.0.0.1:8080", "listen": ["127.0.0.1:8080"],
                "trusted_proxies": ["10.0.0.0/8", "2001:db8::/32"], "forwarded_header": header},
            "login": {"local": {"users": [{"username": "alice", "password_hash": hash}]}},
            "routes": [{"name": "a", "path": "/a", "upstream": {"url": "https://a.test"}, "credential": {"kind": "none"}}],
        });
        let config = config::parse(&written.to_string(), "test", &Process);
        let server = config.unwrap_or_else(|report| panic!("{report}")).server;
        let name = if header == "forwarded" { header::FORWARDED } else { LIST };
        let headers = values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect();
        let client = behind([10, 0, 0, 1].into(), &headers, &server);
        client.map_or("-".to_owned(), |client| client.to_string())
    }

    #[test]
    fn the_last_hop_that_is_no_balancer_is_the_client() {
        for (values, client) in [
            (&[][..], "10.0.0.1"),
            (&["192.0.2.7"], "192.0.2.7"),
            (&[" 192.0.2.7 "], "192.0.2.7"),
            (&["192.0.2.7:4711"], "192.0.2.7"),
            (&["2001:db9::7"], "2001:db9::7"),
            (&["[2001:db9::7]:4711"], "2001:db9::7"),
            (&["::ffff:192.0.2.7"], "192.0.2.7"),
            (&["198.51.100.1, 192.0.2.7"], "192.0.2.7"),
            (&["198.51.100.1, 192.0.2.7, 10.1.2.3,2001:db8::1"], "192.0.2.7"),
            (&["198.51.100.1", "192.0.2.7", "10.1.2.3"], "192.0.2.7"),
            // From within their networks.
            (&["10.1.2.3, 10.1.2.4"], "10.1.2.3"),
            // Whoever stands before what cannot be read is not known, and is not taken for a balancer.
            (&["192.0.2.7, unknown, 10.1.2.3"], "-"),
            (&["192.0.2.7, 10.1.2.3, "], "-"),
            (&[""], "-"),
            (&["192.0.2.7, \"10.1.2.3"], "-"),
        ] {
            assert_eq!(said("x_forwarded_for", values), client, "{values:?}");
        }
    }

    #[test]
    fn so_it_is_in_the_header_of_the_standard() {
        for (values, client) in [
            (&[][..], "10.0.0.1"),
            (&["for=192.0.2.7"], "192.0.2.7"),
            (&["For=\"192.0.2.7:80\";proto=https;by=10.0.0.1"], "192.0.2.7"),
            (&["proto=https; for=\"[2001:db9::7]:4711\""], "2001:db9::7"),
            (&["for=198.51.100.1, for=192.0.2.7;proto=http, for=10.1.2.3"], "192.0.2.7"),
            (&["for=198.51.100.1", "for=192.0.2.7"], "192.0.2.7"),
            (&["for=192.0.2.7;host=\"x, for=198.51.100.1\""], "192.0.2.7"),
            (&["for=192.0.2.7;host=\"x;for=198.51.100.1\\\",for=198.51.100.2\""], "192.0.2.7"),
            (&["host=\"x;for=198.51.100.1\";for=192.0.2.7"], "192.0.2.7"),
            (&["for=_hidden"], "-"),
            (&["for=unknown, for=10.1.2.3"], "-"),
            (&["proto=https"], "-"),
            (&["for=\"192.0.2.7, for=192.0.2.8"], "-"),
        ] {
            assert_eq!(said("forwarded", values), client, "{values:?}");
        }
    }
}
