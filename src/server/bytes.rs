//! Routes of bytes (`kind: tcp`): a listener of their own, with TLS or without, a peer of the pool, and whatever is said in either
//! direction until both have said all, or nobody has said anything for too long. What the configuration says is asked at every connection; those that are open
//! stay as they began.
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::protocols::Ssl;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::tls::TlsStream;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::tls::{self, Tls};
use crate::config::TcpRoute;
use crate::oauth::server::Authority;
use crate::telemetry::access::{Connection, Log};
use crate::telemetry::{InFlight, Metrics};
use crate::upstream::balance::{Busy, Fault, hash};
use crate::upstream::pool::{Pools, since_1970};

/// Peers that are tried, one after the other.
const TRIES: u32 = 5;
/// Of each direction, bytes on their way.
const ROOM: usize = 16 * 1024;
/// After an error of accept(2), which is mostly that there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// What all routes of bytes share.
pub struct Bytes {
    pub authority: Arc<Authority>,
    pub pools: Arc<Pools>,
    pub in_flight: InFlight,
    pub access: Log,
    pub figures: Figures,
    pub metrics: Arc<Metrics>,
    /// `None`: there were no certificates at the start.
    pub tls: Option<Tls>,
}

/// How they do, for whoever watches.
pub struct Figures {
    open: IntGaugeVec,
    ended: IntCounterVec,
    bytes: IntCounterVec,
}

/// One of them.
pub struct Relay {
    bytes: Arc<Bytes>,
    /// Of the route.
    name: String,
    socket: Mutex<Option<TcpListener>>,
    open: Arc<AtomicUsize>,
}

/// Open until dropped.
struct Open(Arc<AtomicUsize>);

/// Who has connected.
enum Client {
    Plain(TcpStream),
    Secured(Box<TlsStream<Socket>>),
}

/// How a connection ended, or why it never began.
#[derive(Clone, Copy)]
enum End {
    Both,
    Broken,
    Idle,
    Unreachable,
    NotAllowed,
    TooMany,
    NoRoute,
    NoHandshake,
}

impl End {
    fn reason(self) -> &'static str {
        match self {
            Self::Both => "ok",
            Self::Broken => "broken_off",
            Self::Idle => "idle",
            Self::Unreachable => "upstream_unreachable",
            Self::NotAllowed => "not_allowed",
            Self::TooMany => "too_many_connections",
            Self::NoRoute => "no_route",
            Self::NoHandshake => "no_handshake",
        }
    }
}

// === impl Figures ===

impl Figures {
    pub fn new(metrics: &Metrics) -> prometheus::Result<Self> {
        let open =
            Opts::new("postern_tcp_connections", "Connections that are open at routes of bytes, by route.");
        let ended = Opts::new(
            "postern_tcp_connections_total",
            "Connections at routes of bytes that have ended, by route and reason.",
        );
        let bytes = Opts::new(
            "postern_tcp_bytes_total",
            "Bytes by route and direction: in, from clients; out, to them.",
        );
        let figures = Self {
            open: IntGaugeVec::new(open, &["route"])?,
            ended: IntCounterVec::new(ended, &["route", "reason"])?,
            bytes: IntCounterVec::new(bytes, &["route", "direction"])?,
        };
        metrics.add(figures.open.clone())?;
        metrics.add(figures.ended.clone())?;
        metrics.add(figures.bytes.clone())?;
        Ok(figures)
    }
}

// === impl Relay ===

impl Relay {
    pub fn new(bytes: Arc<Bytes>, name: String, socket: TcpListener) -> Self {
        Self { bytes, name, socket: Mutex::new(Some(socket)), open: Arc::default() }
    }

    /// Takes what comes in, in a task of its own.
    fn take(&self, stream: TcpStream, from: SocketAddr) {
        let bytes = Arc::clone(&self.bytes);
        let config = Arc::clone(&bytes.authority.snapshot().config);
        let Some(route) = config.tcp.iter().find(|route| route.name == self.name) else {
            return bytes.refused(&self.name, from, End::NoRoute);
        };
        if !route.admits(from.ip()) {
            return bytes.refused(&self.name, from, End::NotAllowed);
        }
        let open = Open(Arc::clone(&self.open));
        if open.0.fetch_add(1, Ordering::Relaxed) >= route.connections {
            return bytes.refused(&self.name, from, End::TooMany);
        }
        let route = route.clone();
        tokio::spawn(async move {
            bytes.serve(&route, stream, from).await;
            drop(open);
        });
    }
}

#[async_trait]
impl BackgroundService for Relay {
    /// Ends with the process's listening; what is open goes on until it ends, or the drain timeout is over.
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(socket) = self.socket.lock().await.take() else { return };
        let listener = match tokio::net::TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(route = %self.name, %error, "the listener cannot be used");
                return;
            }
        };
        loop {
            let accepted = tokio::select! {
                biased;
                () = stops(&mut shutdown) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => self.take(stream, from),
                Err(error) => {
                    tracing::warn!(route = %self.name, %error, "a connection could not be taken");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn stops(shutdown: &mut ShutdownWatch) {
    let _ = shutdown.wait_for(|stops| *stops).await;
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Bytes ===

/// What has gone through one connection.
struct Meter {
    /// From the client, and to it.
    passed: [AtomicU64; 2],
    counters: [IntCounter; 2],
}

impl Bytes {
    fn refused(&self, name: &str, from: SocketAddr, end: End) {
        self.note(name, (from, None), None, end, Duration::ZERO, [0, 0]);
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "how long a connection lasted is measured, nothing is decided by it"
    )]
    async fn serve(&self, route: &TcpRoute, client: TcpStream, from: SocketAddr) {
        let _under_way = self.in_flight.start_bytes();
        let started = Instant::now();
        let open = self.figures.open.with_label_values(&[&*route.name]);
        open.inc();
        let counter = |direction| self.figures.bytes.with_label_values(&[&*route.name, direction]);
        let meter = Meter { passed: Default::default(), counters: [counter("in"), counter("out")] };
        let (mut certificate, mut reached) = (None, None);
        let served = async {
            let client = self.greet(route, client).await?;
            certificate = client.certificate();
            let (upstream, busy) = self.connect(route, from).await.ok_or(End::Unreachable)?;
            reached = Some(busy.peer().address);
            let idle = route.idle_timeout;
            match client {
                Client::Plain(mut client) => relay(client.split(), upstream, &meter, idle).await,
                Client::Secured(client) => relay(split(client), upstream, &meter, idle).await,
            }
        };
        let end = served.await.map_or_else(|end| end, |()| End::Both);
        open.dec();
        let passed = meter.passed.each_ref().map(|passed| passed.load(Ordering::Relaxed));
        let from = (from, certificate.as_deref());
        self.note(&route.name, from, reached, end, started.elapsed(), passed);
    }

    /// Shakes hands, where the route has TLS: who does not get through that reaches nobody. Where there are no certificates yet, nothing
    /// is said in the clear instead.
    async fn greet(&self, route: &TcpRoute, client: TcpStream) -> Result<Client, End> {
        settle(&client)?;
        if !route.tls {
            return Ok(Client::Plain(client));
        }
        let tls = self.tls.as_ref().ok_or(End::NoHandshake)?.acceptor_of_bytes();
        let within = self.authority.snapshot().config.limits.header_time;
        match timeout(within, tls.tls_handshake(Socket::from(client))).await {
            Ok(Ok(client)) => Ok(Client::Secured(Box::new(client))),
            Ok(Err(error)) => {
                tracing::debug!(target: "postern::server", route = %route.name, %error, "no handshake");
                Err(End::NoHandshake)
            }
            Err(_) => {
                self.metrics.hit("handshake");
                Err(End::NoHandshake)
            }
        }
    }

    /// A connection to a peer that takes one.
    async fn connect(&self, route: &TcpRoute, from: SocketAddr) -> Option<(TcpStream, Busy)> {
        let key = hash(from.ip().to_canonical().to_string().bytes());
        for _ in 0..TRIES {
            let busy = self.pools.place_bytes(&route.name, key).await.ok()?;
            let address = busy.peer().address;
            match timeout(route.connect_timeout, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    busy.peer().heard();
                    return Some((stream, busy));
                }
                failed => {
                    let error = failed.err().map_or("refused", |_| "no answer in time");
                    tracing::warn!(target: "postern::upstream", route = %route.name, peer = %address, error, "no connection to a peer");
                    busy.peer().failed(Fault::Connect, since_1970(self.authority.clock.now()));
                }
            }
        }
        None
    }

    fn note(
        &self,
        name: &str,
        (from, certificate): (SocketAddr, Option<&str>),
        upstream: Option<SocketAddr>,
        end: End,
        lasted: Duration,
        [bytes_in, bytes_out]: [u64; 2],
    ) {
        self.figures.ended.with_label_values(&[name, end.reason()]).inc();
        self.access.write_connection(&Connection {
            time: humantime::format_rfc3339_millis(self.authority.clock.now()).to_string(),
            kind: "tcp",
            client_ip: from.ip(),
            client_certificate: certificate,
            route: name,
            upstream,
            reason: end.reason(),
            duration_ms: (lasted.as_secs_f64() * 1e6).round() / 1e3,
            bytes_in,
            bytes_out,
        });
    }
}

impl Client {
    /// Who they have proven to be.
    fn certificate(&self) -> Option<String> {
        let Self::Secured(stream) = self else { return None };
        stream.get_ssl().and_then(|said| said.peer_certificate_der().map(tls::subject))
    }
}

/// Bytes go on as they come, and whoever is gone is found out.
fn settle(stream: &TcpStream) -> Result<(), End> {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    let is_set = stream.set_nodelay(true).and_then(|()| SockRef::from(stream).set_tcp_keepalive(&keepalive));
    is_set.map_err(|_| End::Broken)
}

/// Both directions, each until its end: who has said all may still listen.
async fn relay(
    (from_client, to_client): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    mut upstream: TcpStream,
    meter: &Meter,
    idle: Duration,
) -> Result<(), End> {
    settle(&upstream)?;
    let (from_upstream, to_upstream) = upstream.split();
    let [inward, outward] = &meter.passed;
    let [counted_in, counted_out] = &meter.counters;
    let both = async {
        tokio::try_join!(
            pass(from_client, to_upstream, inward, counted_in),
            pass(from_upstream, to_client, outward, counted_out),
        )
    };
    tokio::select! {
        ended = both => ended.map(|_| ()).map_err(|_| End::Broken),
        () = silence(&meter.passed, idle) => Err(End::Idle),
    }
}

/// One direction, to its end.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    passed: &AtomicU64,
    counted: &IntCounter,
) -> io::Result<()> {
    let mut room = BytesMut::with_capacity(ROOM);
    while from.read_buf(&mut room).await? > 0 {
        to.write_all(&room).await?;
        // TLS may have kept some of it.
        to.flush().await?;
        let length = u64::try_from(room.len()).unwrap_or_default();
        passed.fetch_add(length, Ordering::Relaxed);
        counted.inc_by(length);
        room.clear();
    }
    to.shutdown().await
}

/// Returns when for so long, or a quarter more, nothing has passed.
async fn silence(passed: &[AtomicU64; 2], idle: Duration) {
    let all = || passed.each_ref().map(|passed| passed.load(Ordering::Relaxed));
    let (mut before, mut quiet) = (all(), 0);
    while quiet < 4 {
        sleep(idle / 4).await;
        let now = all();
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::clock::Clock;
    use crate::outbound::{Outbound, Settings};
    use crate::upstream::figures;

    /// The table in `docs/metrics.md` is what is registered, with this: no metric without a row, no row without a metric.
    #[test]
    fn every_metric_is_in_the_documentation_and_nothing_else() {
        let outbound = Outbound::new(Settings::default()).unwrap();
        let metrics = Metrics::new().unwrap();
        let pools = Arc::new(Pools::new(outbound, Clock::system()));
        metrics.add(figures::Figures::new(pools).unwrap()).unwrap();
        Figures::new(&metrics).unwrap();
        let documented = include_str!("../../docs/metrics.md").lines();
        let documented: Vec<&str> = documented.filter(|line| line.starts_with("| `")).collect();
        let metrics = metrics.described().into_iter().filter(|metric| metric.name.starts_with("postern_"));
        let rows: Vec<String> = metrics
            .map(|metric| {
                let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
                format!("| `{}` | {} | {} | {} |", metric.name, metric.kind, labels.join(", "), metric.help)
            })
            .collect();
        assert_eq!(documented, rows, "\nthe table should be:\n{}\n", rows.join("\n"));
    }
}
