//! The one constructor of Pingora peers, so that none is without a vetted address, a server name and time-outs.
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

/// The same for an attempt at a request; the first is 1.
pub fn peer_of(attempt: u32, upstream: &Upstream, address: SocketAddr, upgrades: bool) -> Box<HttpPeer> {
    let mut peer = peer(upstream, address, upgrades);
    if attempt > 1 {
        afresh(&mut peer);
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
