//! The way of a connection to the proxy: is there room for it, is it still in time with its handshake and its first bytes, what
//! does it speak. Pingora accepts it and brings it here as it came off the socket.
mod alive;
mod allowance;
mod calm;
mod frames;
pub mod header;
mod http2;
mod proxied;
mod room;
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pingora::apps::HttpServerApp;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::tls::{ALPN, SslDigest, TlsStream};
use pingora::protocols::{SocketDigest, Ssl, Stream};
use pingora::server::ShutdownWatch;
use pingora::time::timeout;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::header::Bounds;
use self::proxied::{Read, Whose};
use self::wire::Wire;
use super::kept;
use super::pulse::Pulses;
use super::tls::{self, Tls};
use super::upgrade::Succeeded;
use crate::config::Limits;
use crate::failpoint;
use crate::oauth::server::Authority;
use crate::telemetry::Metrics;

use self::room::AWAY;
pub use self::room::{Place, Room, by_files};

/// Who is turned away hears of it for so long.
const FAREWELL: Duration = Duration::from_secs(1);
const NO_ROOM: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What all connections pass.
pub struct Doors {
    pub authority: Arc<Authority>,
    pub room: Arc<Room>,
    /// Those who hear that there is no room. While there are many, the rest hears nothing.
    pub away: Arc<Room>,
    /// Where those with TLS listen, and whether a balancer speaks first there.
    pub with_tls: Vec<(SocketAddr, bool)>,
    pub tls: Option<Tls>,
    pub pulses: Pulses,
    pub succeeded: Succeeded,
}

impl Doors {
    pub fn new(
        authority: Arc<Authority>,
        metrics: &Arc<Metrics>,
        tls: Option<Tls>,
        with_tls: Vec<(SocketAddr, bool)>,
        pulses: Pulses,
        succeeded: Succeeded,
    ) -> Self {
        let room = Arc::new(Room::new(by_files(), Arc::clone(metrics)));
        room.tell(authority.snapshot().config.limits.connections);
        let away = Arc::new(Room::new(AWAY, Arc::clone(metrics)));
        Self { authority, room, away, with_tls, tls, pulses, succeeded }
    }

    /// Serves a connection, in a task of its own.
    pub fn enter<A>(&self, app: Arc<A>, stream: Stream, shutdown: &ShutdownWatch)
    where
        A: HttpServerApp + Send + Sync + 'static,
    {
        self.pulses.start();
        failpoint::halted("D1");
        let snapshot = self.authority.snapshot();
        let limits = snapshot.config.limits;
        let server = &snapshot.config.server;
        let with_tls = self.tls.as_ref().zip(self.with_tls_at(&stream));
        self.room.tell(limits.connections);
        let Some(mut place) = self.room.enter(limits.connections) else {
            return self.turn_away(stream, with_tls.is_some());
        };
        let from = address(&stream);
        let is_trusted = from.is_some_and(|from| server.is_trusted_proxy(from));
        let is_proxied = with_tls.is_some_and(|(_, proxied)| proxied);
        if is_proxied && !is_trusted {
            return place.hit("proxy_protocol");
        }
        // Those who speak for many are not counted as one.
        if let Some(from) = from.filter(|_| !is_trusted)
            && !place.is_of(from, limits.connections_per_address)
        {
            return self.turn_away(stream, with_tls.is_some());
        }
        let (shutdown, succeeded) = (shutdown.clone(), Arc::clone(&self.succeeded));
        match with_tls {
            // Its future has no room for handshakes and HTTP/2.
            None => {
                tokio::spawn(kept::serve(app, stream, shutdown, place, Bounds::from(&limits), succeeded));
            }
            Some((tls, _)) => {
                let stream = (Wire::new(stream), is_proxied);
                tokio::spawn(greet(app, stream, shutdown, place, tls.acceptor(), limits, succeeded));
            }
        }
    }

    /// Where a connection with TLS has come in: whether a balancer speaks first there.
    fn with_tls_at(&self, stream: &Stream) -> Option<bool> {
        let socket = stream.get_socket_digest()?;
        let here = socket.local_addr()?.as_inet()?;
        let is_here = |listens: &SocketAddr| {
            listens.port() == here.port()
                && (listens.ip().to_canonical() == here.ip().to_canonical() || listens.ip().is_unspecified())
        };
        self.with_tls.iter().find(|(listens, _)| is_here(listens)).map(|(_, proxied)| *proxied)
    }

    /// With TLS nothing could be said yet.
    fn turn_away(&self, stream: Stream, with_tls: bool) {
        if !with_tls && let Some(place) = self.away.enter(usize::MAX) {
            tokio::spawn(async move {
                farewell(stream, NO_ROOM).await;
                drop(place);
            });
        }
    }
}

fn address(stream: &Stream) -> Option<IpAddr> {
    stream.get_socket_digest()?.peer_addr()?.as_inet().map(SocketAddr::ip)
}

/// Hears whose the connection is, shakes hands, and serves what comes of it.
async fn greet<A>(
    app: Arc<A>,
    (mut stream, is_proxied): (Wire, bool),
    shutdown: ShutdownWatch,
    mut place: Place,
    acceptor: Arc<Acceptor>,
    limits: Limits,
    succeeded: Succeeded,
) where
    A: HttpServerApp + Send + Sync + 'static,
{
    if is_proxied {
        match timeout(limits.header_time, introduced(&mut stream)).await {
            Ok(Some(Whose::Client(client))) if !place.is_of(client.ip(), limits.connections_per_address) => {
                return;
            }
            Ok(Some(_)) => {}
            Ok(None) => return place.hit("proxy_protocol"),
            Err(_) => return place.hit("handshake"),
        }
    }
    let stream = match timeout(limits.header_time, acceptor.tls_handshake(stream)).await {
        Ok(Ok(stream)) => known(stream),
        Ok(Err(error)) => {
            tracing::debug!(target: "postern::server", %error, "no handshake");
            return;
        }
        Err(_) => return place.hit("handshake"),
    };
    if !matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
        tokio::spawn(kept::serve(app, stream, shutdown, place, Bounds::from(&limits), succeeded));
        return;
    }
    http2::serve(app, stream, shutdown, place, limits).await;
}

/// Reads what the balancer says, and nothing of what follows. `None`: it says nothing of the kind.
async fn introduced(wire: &mut Wire) -> Option<Whose> {
    let mut begun = BytesMut::with_capacity(256);
    loop {
        begun.reserve(64);
        if wire.stream.read_buf(&mut begun).await.ok()? == 0 {
            return None;
        }
        match proxied::read(&begun) {
            Read::Partial => {}
            Read::Malformed => return None,
            Read::Whole(length, whose) => {
                wire.ahead = begun.split_off(length).freeze();
                wire.socket = match whose {
                    Whose::Client(client) => Some(from(wire, Some(client))),
                    Whose::Unknown => Some(from(wire, None)),
                    Whose::Balancer => None,
                };
                return Some(whose);
            }
        }
    }
}

/// The connection's socket, as if it led there.
fn from(wire: &Wire, client: Option<SocketAddr>) -> Arc<SocketDigest> {
    let socket = SocketDigest::from_raw_fd(wire.stream.id());
    // It was made a moment ago and holds nothing.
    let _ = socket.peer_addr.set(client.map(Into::into));
    Arc::new(socket)
}

/// A connection that says who its client has proven to be, if it has, where Pingora says of what organisation.
fn known(stream: TlsStream<Wire>) -> Stream {
    let proven = stream.get_ssl().and_then(|said| said.peer_certificate_der().map(tls::subject));
    let stream: Stream = Box::new(stream);
    match (proven, stream.get_ssl_digest()) {
        (Some(subject), Some(said)) => {
            let said = SslDigest { organization: Some(subject), ..SslDigest::clone(&said) };
            let mut wire = Wire::new(stream);
            wire.ssl = Some(Arc::new(said));
            Box::new(wire)
        }
        _ => stream,
    }
}

/// Sends an answer of which nothing more will come. What the client still sends is read for a moment: closed upon, it would
/// be reset before it has read why.
pub async fn farewell(mut stream: Stream, answer: &[u8]) {
    let said = async {
        stream.write_all(answer).await?;
        stream.flush().await?;
        AsyncWriteExt::shutdown(&mut stream).await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    if !matches!(timeout(FAREWELL, said).await, Ok(Ok(()))) {
        tracing::trace!(target: "postern::server", "closed on a client that was turned away");
    }
}
