//! Which upstreams with TLS speak HTTP/1.1. What is spoken comes out in the handshake, and to know before it takes an answer. Of those that
//! speak HTTP/1.1 the next connections are our own ([`super::joined`]), so that how long they may rest is learned as of upstreams
//! without TLS; of all others they are Pingora's.
use std::net::SocketAddr;

use http::Version;

use crate::map::Shared;
use crate::route::Upstream;

/// Beyond that all is forgotten: addresses come and go.
const MOST: usize = 4096;

#[derive(Debug, Default)]
pub struct Spoken(Shared<(u64, SocketAddr), ()>);

impl Spoken {
    pub fn is_http_1(&self, upstream: &Upstream, address: SocketAddr) -> bool {
        upstream.tls && self.0.contains_key(&(upstream.group, address))
    }

    /// There was an answer from there.
    pub fn heard(&self, upstream: &Upstream, address: SocketAddr, version: Version) {
        if upstream.tls && version != Version::HTTP_2 && !self.is_http_1(upstream, address) {
            if self.0.len() >= MOST {
                self.0.clear();
            }
            self.0.insert((upstream.group, address), ());
        }
    }

    /// No connection came about there: it may speak something else by now.
    pub fn forget(&self, upstream: &Upstream, address: SocketAddr) {
        if self.is_http_1(upstream, address) {
            self.0.remove(&(upstream.group, address));
        }
    }
}
