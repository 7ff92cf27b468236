//! Pingora that only forwards, with the settings of the gateway: what is left between the two is the gateway's own work.
use std::net::SocketAddr;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};
use peers::forward::Forward;
use peers::listening::listen;
use peers::pingora_on::{self, On};
use pingora::Result;
use pingora::apps::HttpServerOptions;
use pingora::listeners::tls::TlsSettings;
use pingora::listeners::{L4BufferSettings, ListenerConfig, TcpSocketOptions};
use pingora::protocols::TcpKeepalive;
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::{ALPN, HttpPeer, HttpUpstreamRequestPolicy};
use pingora_proxy::ProxyServiceBuilder;
use tokio::runtime::{Builder, Runtime};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long)]
    upstream: SocketAddr,
    /// HTTP/2 without TLS to the upstream.
    #[arg(long)]
    upstream_h2c: bool,
    #[arg(long, default_value_t = 2048)]
    upstream_pool: usize,
    /// In seconds; above 900 Pingora asks tokio for the timer.
    #[arg(long, default_value_t = 3600)]
    read_timeout: u64,
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<String>,
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<String>,
    #[arg(long)]
    read_buffer: Option<usize>,
    #[arg(long)]
    write_buffer: Option<usize>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long, default_value_t = 1)]
    listener_tasks: usize,
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    work_stealing: bool,
    /// Whose runtime serves; what follows needs one of ours.
    #[arg(long, value_enum, default_value_t = Flavour::Pingora)]
    runtime: Flavour,
    #[arg(long)]
    max_io_events: Option<usize>,
    #[arg(long)]
    event_interval: Option<u32>,
    #[arg(long)]
    global_queue_interval: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Flavour {
    Pingora,
    Multi,
    Current,
}

impl Options {
    fn conf(&self) -> ServerConf {
        ServerConf {
            threads: self.threads,
            listener_tasks_per_fd: self.listener_tasks,
            work_stealing: self.work_stealing,
            upstream_keepalive_pool_size: self.upstream_pool,
            max_retries: 2,
            ..ServerConf::default()
        }
    }

    fn listener(&self, address: SocketAddr) -> Result<ListenerConfig> {
        let mut sockets = TcpSocketOptions::default();
        sockets.tcp_keepalive = Some(keepalive());
        let buffers = L4BufferSettings { read: self.read_buffer, write: self.write_buffer };
        let listener =
            ListenerConfig::tcp(address.to_string()).tcp_socket_options(sockets).l4_buffer(buffers);
        let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(listener) };
        let mut tls = TlsSettings::intermediate(cert, key)?;
        tls.enable_h2();
        Ok(listener.tls(tls))
    }

    /// The two intervals and the number of events are what tokio has a say in.
    fn runtime(&self) -> std::io::Result<Option<Runtime>> {
        let tuned = [self.event_interval, self.global_queue_interval].iter().any(Option::is_some);
        if self.runtime == Flavour::Pingora && !tuned && self.max_io_events.is_none() {
            return Ok(None);
        }
        let mut builder = match self.runtime {
            Flavour::Current => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        if self.runtime != Flavour::Current {
            builder.worker_threads(self.threads);
        }
        self.max_io_events.map(|events| builder.max_io_events_per_tick(events));
        self.event_interval.map(|ticks| builder.event_interval(ticks));
        self.global_queue_interval.map(|ticks| builder.global_queue_interval(ticks));
        builder.enable_all().build().map(Some)
    }
}

fn peer(options: &Options) -> HttpPeer {
    let mut peer = HttpPeer::new(options.upstream, false, options.upstream.ip().to_string());
    peer.options.connection_timeout = Some(Duration::from_secs(5));
    peer.options.total_connection_timeout = Some(Duration::from_secs(10));
    peer.options.idle_timeout = Some(Duration::from_secs(4));
    peer.options.read_timeout = Some(Duration::from_secs(options.read_timeout));
    peer.options.tcp_keepalive = Some(keepalive());
    peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    if options.upstream_h2c {
        peer.options.alpn = ALPN::H2;
        peer.options.max_h2_streams = 100;
    }
    peer
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(15),
        count: 4,
        user_timeout: Duration::ZERO,
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = options.runtime()?;
    let (socket, address) = listen(options.listen)?;
    let mut server = Server::new_with_opt_and_conf(None, options.conf());
    server.bootstrap();
    let mut http = HttpServerOptions::default();
    http.h2_idle_timeout = Some(Duration::from_secs(300));
    let mut service =
        ProxyServiceBuilder::new(&server.configuration, Forward(peer(&options))).server_options(http).build();
    service.add_listener(options.listener(address)?);
    server.add_service(On {
        service: Some(service),
        address: address.to_string(),
        socket: Some(socket),
        runtime,
    });
    pingora_on::run(server);
    Ok(())
}
