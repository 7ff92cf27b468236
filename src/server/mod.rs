//! From a configuration to a running process: open the store, bind the sockets, put the parts together, serve until
//! told to stop. Everything that can go wrong at start goes wrong here, with a sentence, before anything listens in
//! name only.
mod admin;
mod builder;
mod doors;
pub mod foundation;
mod kept;
mod lean;
mod listeners;
mod parts;
mod pulse;
mod reload;
mod shutdown;
mod tls;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pingora::apps::HttpServerOptions;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::listeners::{ListenerConfig, TcpSocketOptions};
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use pingora_proxy::ProxyServiceBuilder;

use self::admin::Admin;
use self::builder::Extensions;
use self::doors::Doors;
use self::listeners::{Bound, OnSockets};
use self::reload::Reload;
use self::shutdown::Flush;
use crate::background::renewal::Renewal;
use crate::background::{Exporting, Upkeep};
use crate::config::{self, Config, Report};
use crate::upstream::health::Watching;
use crate::upstream::idle::{self, Idle};
use crate::upstream::joined::Joining;
use crate::{gateway, upstream};

pub use builder::{Builder, RunError};

const H2_IDLE: Duration = Duration::from_secs(300);
/// Buffers under TLS, which reads into one of its own and writes record by record, so that those of an answer go out together.
/// A connection has them for as long as it is open; without TLS it needs none (`lean`).
const TLS_BUFFERS: L4BufferSettings = L4BufferSettings { read: Some(0), write: Some(2048) };
const NO_BUFFERS: L4BufferSettings = L4BufferSettings { read: Some(0), write: Some(0) };

/// Why the process cannot start. One line, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: {reason}")]
    Listen { address: String, reason: std::io::Error },
    #[error("LISTEN_FDS holds a socket for {0}, which is neither in server.listen nor server.admin")]
    UnknownSocket(String),
    #[error("sealing key: {0}")]
    Seal(String),
    #[error("store: {0}")]
    Store(String),
    #[error("outbound: {0}")]
    Outbound(String),
    #[error("tls: {0}")]
    Tls(String),
    #[error("data directory: {0}")]
    DataDir(std::io::Error),
    #[error("{0}")]
    Other(String),
}

/// Serves until SIGTERM or SIGINT. Returns when everything has ended; an early end exits the process with 0. `again` reads
/// the configuration once more, for a reload.
pub fn run(
    config: Config,
    again: impl Fn() -> Result<Config, Report> + Send + Sync + 'static,
) -> Result<(), StartError> {
    run_with(config, again, Extensions::default())
}

fn run_with(
    config: Config,
    again: impl Fn() -> Result<Config, Report> + Send + Sync + 'static,
    extensions: Extensions,
) -> Result<(), StartError> {
    for warning in config.warnings.to_string().lines() {
        tracing::warn!("{warning}");
    }
    rustls::crypto::ring::default_provider().install_default().ok();
    let bound = listeners::bind(&config.server)?;
    let tls = tls::certificates(&config.server)?;
    let drain_timeout = config.server.drain_timeout;
    let conf = ServerConf {
        threads: config.server.threads,
        // Each connection stays with one thread. The run queue of a stealing one holds 256 tasks; whatever is ready beyond
        // that waits for long (`benches/experiments.md`).
        work_stealing: false,
        // Whole seconds, so never the first to end.
        grace_period_seconds: Some(drain_timeout.as_secs() + 1),
        graceful_shutdown_timeout_seconds: Some(1),
        upstream_keepalive_pool_size: idle::MOST,
        upgrade_sock: config.server.data_dir.join("upgrade.sock").to_string_lossy().into_owned(),
        ca_file: parts::ca_bundle(&config)?,
        max_retries: gateway::PLACES as usize,
        ..ServerConf::default()
    };
    let admin_address = bound.iter().find(|bound| bound.is_admin).map(|bound| bound.actual);
    let parts = parts::build(config, admin_address, extensions)?;
    let reload = Arc::new(Reload {
        again: Box::new(again),
        authority: Arc::clone(&parts.gateway.authority),
        resolver: Arc::clone(&parts.gateway.resolver),
        pools: Arc::clone(&parts.gateway.pools),
        quotas: Arc::clone(&parts.gateway.quotas),
        tls: tls.clone(),
        metrics: Arc::clone(&parts.gateway.metrics),
        turn: Mutex::new(()),
    });
    let on_signal = Arc::clone(&reload);
    let signals = shutdown::Signals::listen(move || on_signal.now())
        .map_err(|error| StartError::Other(format!("signals: {error}")))?;

    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let conf = Arc::clone(&server.configuration);
    let flush = Flush::new(parts.flush);
    let store = Arc::clone(parts.gateway.authority.records.store());
    let draining = shutdown::watch(
        server.watch_execution_phase(),
        parts.in_flight.clone(),
        drain_timeout,
        Arc::clone(&store),
        flush.clone(),
    );
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(H2_IDLE);
    // Every connection is brought to the doors as it came off its socket.
    options.force_custom = true;
    let gateway = parts.gateway;
    let (authority, metrics) = (Arc::clone(&gateway.authority), Arc::clone(&gateway.metrics));
    let idle = Idle::new(authority.clock.clone());
    let upkeep = Upkeep {
        authority: Arc::clone(&authority),
        connections: Arc::clone(&gateway.credentials.connections),
        exchanged: Arc::clone(&gateway.credentials.exchanged),
        changes: tokio::sync::Mutex::new(parts.changes),
        reload: Arc::new(move || reload.now()),
        heard: tokio::sync::Mutex::new(parts.wish),
        idle: idle.clone(),
        resolver: Arc::clone(&gateway.resolver),
    };
    let renewal = Renewal {
        authority: Arc::clone(&authority),
        foreign: Arc::clone(&gateway.foreign),
        providers: parts.providers,
    };
    let watching = Watching {
        pools: Arc::clone(&gateway.pools),
        connector: Arc::new(Connector::new(Some(ConnectorOptions::from_server_conf(&conf)))),
    };
    let with_tls = bound.iter().filter(|bound| bound.tls).map(|bound| bound.actual).collect();
    let doors = Doors::new(Arc::clone(&authority), &metrics, tls, with_tls);
    let mut service = ProxyServiceBuilder::new(&conf, gateway)
        .name("gateway")
        .custom(
            Joining::new(idle),
            Arc::new(move |proxy, stream, shutdown| {
                doors.enter(proxy, stream, shutdown);
                Box::pin(std::future::ready(None))
            }),
        )
        .server_options(options)
        .build();
    if let Some(proxy) = service.app_logic_mut() {
        proxy.h2_options = Some(doors::http2(&authority.snapshot().config.limits));
    }
    let mut sockets = Vec::new();
    let mut admin = None;
    for Bound { socket, address, actual, tls: with_tls, is_admin } in bound {
        tracing::info!(listener = if is_admin { "admin" } else { "public" }, address = %actual, tls = with_tls, "listening");
        if is_admin {
            admin = Some(socket);
            continue;
        }
        let listener = ListenerConfig::tcp(&address)
            .tcp_socket_options(sockets_options())
            .l4_buffer(if with_tls { TLS_BUFFERS } else { NO_BUFFERS });
        service.add_listener(listener);
        sockets.push((address, socket));
    }
    server.add_service(OnSockets::new(service, sockets));
    server.add_service(background_service("upkeep", upkeep));
    server.add_service(background_service("renewal", renewal));
    server.add_service(background_service("pools", watching));
    let snapshot = authority.snapshot();
    if matches!(snapshot.config.store, config::Store::Embedded) {
        let store = Arc::clone(authority.records.store());
        let exporting = Exporting { store, data_dir: snapshot.config.server.data_dir.clone() };
        server.add_service(background_service("export", exporting));
    }
    if let Some(socket) = admin {
        let endpoints = Admin::new(socket, metrics, Arc::clone(&authority), draining, parts.in_flight);
        server.add_service(background_service("admin", endpoints));
    }
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    store.close();
    flush.now();
    Ok(())
}

fn sockets_options() -> TcpSocketOptions {
    let mut options = TcpSocketOptions::default();
    options.tcp_keepalive = Some(upstream::peer::keepalive());
    options
}
