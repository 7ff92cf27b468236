//! The one constructor of Pingora peers, so that none is without a vetted address, a server name and time-outs.
//!
//! An upstream that takes nothing of a body (over HTTP/2 one whose window stays shut, RFC 9113 §5.2) would hold a request for as long as
//! it likes. Pingora applies `write_timeout` to both protocols, but it ends a request only where the body was here before the
//! connection; of any other the rest is given up, and the answer waited for as before. So at TLS, where it may be HTTP/2, short bodies are read first,
//! and the answer to one that is still to come has a time.
use std::net::SocketAddr;
use std::time::Duration;

use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::{ALPN, HttpPeer, HttpUpstreamRequestPolicy, Peer};

use super::joined;
use crate::route::Upstream;

const CONNECT: Duration = Duration::from_secs(5);
const CONNECT_TLS: Duration = Duration::from_secs(10);
/// Below what servers keep idle connections for (Node and uvicorn: 5 s): a POST on a connection that is just being
/// closed may be lost. Of those that keep them for less it is learned ([`super::patience`]).
pub(super) const IDLE: Duration = Duration::from_secs(4);
const STREAMS_PER_CONNECTION: usize = 100;
/// Streams on a connection that has none: so none that Pingora has pooled is taken for one of ours.
const APART: usize = 2;
/// How long an upstream may say nothing that has perhaps not taken all of a body, and may else be silent for as long as it likes.
const UNSURE: Duration = Duration::from_secs(60 * 60);

/// An attempt at a request.
#[derive(Clone, Copy)]
pub struct Attempt {
    /// The first is 1.
    pub number: u32,
    /// It opens a WebSocket.
    pub upgrades: bool,
    /// It goes where HTTP/1.1 is spoken.
    pub is_http_1: bool,
    /// Some of its body is still to come.
    pub is_unended: bool,
    /// How long the upstream may take nothing of it.
    pub write_time: Duration,
}

/// A peer for `upstream` at `address`, which has been vetted. `upgrades`: for a request that opens a WebSocket.
#[expect(clippy::disallowed_methods, reason = "given a socket address it neither resolves nor unwraps")]
pub fn peer(upstream: &Upstream, address: SocketAddr, upgrades: bool) -> Box<HttpPeer> {
    // An empty server name would switch certificate verification off; an upstream's host is never empty.
    let mut peer = HttpPeer::new(address, upstream.tls, upstream.host.clone());
    peer.group_key = upstream.group;
    peer.options.connection_timeout = Some(CONNECT);
    peer.options.total_connection_timeout = Some(CONNECT_TLS);
    peer.options.idle_timeout = Some(IDLE);
    peer.options.read_timeout = upstream.read_timeout;
    peer.options.tcp_keepalive = Some(keepalive());
    peer.options.http_upstream_request_policy = match upgrades {
        true => HttpUpstreamRequestPolicy::standard(),
        false => HttpUpstreamRequestPolicy::deny_upgrades(),
    };
    if !upstream.tls {
        peer.options.alpn = joined::alpn();
    } else if upgrades {
        peer.options.alpn = ALPN::H1;
    } else {
        peer.options.alpn = ALPN::H2H1;
        peer.options.max_h2_streams = STREAMS_PER_CONNECTION;
        peer.options.h2_ping_interval = Some(Duration::from_secs(30));
    }
    Box::new(peer)
}

/// The same for a request.
pub fn peer_of(attempt: Attempt, upstream: &Upstream, address: SocketAddr) -> Box<HttpPeer> {
    let mut peer = peer(upstream, address, attempt.upgrades);
    if attempt.is_http_1 && !attempt.upgrades {
        peer.options.alpn = joined::alpn();
        peer.options.max_h2_streams = APART;
    }
    if attempt.number > 1 {
        afresh(&mut peer);
    }
    if upstream.tls && !attempt.upgrades {
        peer.options.write_timeout = Some(attempt.write_time);
        if attempt.is_unended {
            peer.options.read_timeout = upstream.read_timeout.or(Some(UNSURE));
        }
    }
    peer
}

/// A request that is sent again goes on a connection of its own: one that has rested may be at its end as well.
pub(super) fn afresh(peer: &mut HttpPeer) {
    // Of no use otherwise to a peer whose connections are not in Pingora's pool.
    if peer.options.alpn == joined::alpn() {
        peer.options.idle_timeout = Some(Duration::ZERO);
    }
}

pub(super) fn is_afresh<P: Peer>(peer: &P) -> bool {
    peer.idle_timeout() == Some(Duration::ZERO)
}

/// Finds out within two minutes that the other side is gone without a word. For both sides of the proxy.
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(15),
        count: 4,
        user_timeout: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config;

    fn upstream(url: &str, read_timeout: u64) -> Upstream {
        Upstream::new(&config::Upstream {
            url: url.parse().unwrap(),
            url_as_written: url.into(),
            allow_private: false,
            allow_hosts: Vec::new(),
            read_timeout: Duration::from_secs(read_timeout),
            pool: None,
        })
    }

    #[test]
    fn only_what_may_not_have_been_taken_has_a_time_to_be_answered_in() {
        let (write_time, address) = (Duration::from_secs(60), SocketAddr::from(([192, 0, 2, 1], 443)));
        let times = |url, read_timeout, (is_unended, upgrades)| {
            let attempt = Attempt { number: 1, upgrades, is_http_1: false, is_unended, write_time };
            let peer = peer_of(attempt, &upstream(url, read_timeout), address);
            let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
            (seconds(peer.options.write_timeout), seconds(peer.options.read_timeout))
        };
        let (tls, plain) = ("https://mcp.example.com/", "http://mcp.example.com/");
        assert_eq!(times(tls, 0, (false, false)), (Some(60), None), "its body is here");
        assert_eq!(times(tls, 0, (true, false)), (Some(60), Some(3600)));
        assert_eq!(times(tls, 5, (true, false)), (Some(60), Some(5)));
        assert_eq!(times(tls, 0, (true, true)), (None, None), "a WebSocket");
        assert_eq!(
            times(plain, 0, (true, false)),
            (None, None),
            "HTTP/1.1, whose client is watched meanwhile"
        );
    }
}
