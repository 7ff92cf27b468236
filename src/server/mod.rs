//! From a configuration to a running process: open the store, bind the sockets, put the parts together, serve until
//! told to stop. Everything that can go wrong at start goes wrong here, with a sentence, before anything listens in
//! name only.
mod admin;
mod between;
mod builder;
mod bytes;
pub mod control;
mod doors;
pub mod foundation;
mod handover;
mod kept;
mod listeners;
mod parts;
mod pulse;
mod reload;
mod shutdown;
mod successor;
mod tls;
mod upgrade;
mod watchdog;

use std::sync::{Arc, Mutex};

use pingora::apps::HttpServerOptions;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::listeners::{ListenerConfig, TcpSocketOptions};
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use pingora_proxy::ProxyServiceBuilder;
use sd_notify::NotifyState;
use tokio::sync::{Notify, watch};

use self::admin::Admin;
use self::builder::Extensions;
use self::bytes::{Bytes, Relay};
use self::control::{Control, Hands};
use self::doors::Doors;
use self::foundation::Purpose;
use self::listeners::{Bound, OnSockets, Purpose as Socket};
use self::pulse::Pulses;
use self::reload::Reload;
use self::successor::{Handed, Predecessor};
use self::upgrade::{Program, Succeeded, Upgrade};
use self::watchdog::Watchdog;
use crate::background::files::Watch;
use crate::background::memory::Memory;
use crate::background::renewal::Renewal;
use crate::background::{Exporting, Upkeep};
use crate::config::{self, Config, Source};
use crate::telemetry::output;
use crate::upstream::health::Watching;
use crate::upstream::idle::{self, Idle};
use crate::upstream::joined::Joining;
use crate::{gateway, upstream};

pub use builder::{Builder, RunError};

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
    #[error("hand-over: {0}")]
    HandOver(String),
    #[error("{0}")]
    Other(String),
}

/// Serves until SIGTERM or SIGINT. Returns when everything has ended; an early end exits the process with 0. `source`: where
/// the configuration was read, for a reload.
pub fn run(config: Config, source: Source) -> Result<(), StartError> {
    run_with(config, source, Extensions::default())
}

fn run_with(config: Config, source: Source, extensions: Extensions) -> Result<(), StartError> {
    let (predecessor, handed) = match Predecessor::meet()? {
        Some((predecessor, handed)) => (Some(Arc::new(predecessor)), handed),
        None => (None, Vec::new()),
    };
    let served = serve(config, source, extensions, predecessor.clone(), handed);
    if let (Some(predecessor), Err(error)) = (&predecessor, &served) {
        predecessor.failed(error);
    }
    served
}

fn serve(
    config: Config,
    source: Source,
    extensions: Extensions,
    predecessor: Option<Arc<Predecessor>>,
    handed: Handed,
) -> Result<(), StartError> {
    for warning in config.warnings.to_string().lines() {
        tracing::warn!("{warning}");
    }
    rustls::crypto::ring::default_provider().install_default().ok();
    let other = |error: std::io::Error| StartError::Other(error.to_string());
    let bound = listeners::bind(&config, handed)?;
    let to_hand_over = bound.iter().map(|bound| Ok((bound.configured.clone(), bound.socket.try_clone()?)));
    let to_hand_over = to_hand_over.collect::<std::io::Result<Vec<_>>>().map_err(other)?;
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
    let admin_address = bound.iter().find(|bound| bound.purpose == Socket::Admin).map(|bound| bound.actual);
    let since = predecessor.as_ref().map(|predecessor| predecessor.wait_for_store(&config)).transpose()?;
    let purpose = since.flatten().map_or(Purpose::Server, Purpose::Successor);
    let upgrade_timeout = config.server.upgrade_timeout;
    let parts = parts::build(config, purpose, admin_address, extensions)?;
    let channel = predecessor.as_ref().and_then(|predecessor| predecessor.take_store_channel());
    if let (Some(embedded), Some(channel), Purpose::Successor(_)) = (&parts.embedded, channel, purpose) {
        crate::store::embedded::serve(Arc::clone(embedded), channel).map_err(other)?;
    }
    let source = Arc::new(source);
    let now = crate::clock::unix_seconds(parts.gateway.authority.clock.now());
    parts.gateway.metrics.reloaded.set(i64::try_from(now).unwrap_or(i64::MAX));
    tls::show_expiries(&parts.gateway.metrics, &parts.gateway.authority.snapshot().config.server, None);
    let reload = Arc::new(Reload {
        source: Arc::clone(&source),
        authority: Arc::clone(&parts.gateway.authority),
        resolver: Arc::clone(&parts.gateway.resolver),
        pools: Arc::clone(&parts.gateway.pools),
        quotas: Arc::clone(&parts.gateway.quotas),
        tls: tls.clone(),
        metrics: Arc::clone(&parts.gateway.metrics),
        turn: Mutex::new(()),
    });
    let data_dir = parts.gateway.authority.snapshot().config.server.data_dir.clone();
    let succeeded = Succeeded::default();
    let (leave, admin_leaves) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let upgrade = Arc::new(Upgrade {
        sockets: Mutex::new(to_hand_over),
        embedded: parts.embedded.and_then(|store| Some((std::fs::canonicalize(&data_dir).ok()?, store))),
        within: upgrade_timeout,
        metrics: Arc::clone(&parts.gateway.metrics),
        succeeded: Arc::clone(&succeeded),
        leave: vec![Arc::clone(&leave), Arc::clone(&admin_leaves)],
        turn: Mutex::new(()),
        program: Program::running().map_err(other)?,
    });
    let hands = Arc::new(Hands { reload: Arc::clone(&reload), upgrade: Arc::clone(&upgrade) });
    let signals = hands.listen(leave).map_err(|error| StartError::Other(format!("signals: {error}")))?;

    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let conf = Arc::clone(&server.configuration);
    let store = Arc::clone(parts.gateway.authority.records.store());
    let (is_the_one, from_when_on) = watch::channel(predecessor.is_none());
    let serves = {
        let authority = Arc::clone(&parts.gateway.authority);
        let metrics = Arc::clone(&parts.gateway.metrics);
        move || {
            if let Some(predecessor) = predecessor {
                predecessor.relieve(|| authority.is_ready())?;
                metrics.upgrades.with_label_values(&["ok"]).inc();
                shutdown::tell(&[NotifyState::MainPid(std::process::id())]);
            }
            is_the_one.send_replace(true);
            shutdown::tell(&[NotifyState::Ready]);
            Ok(())
        }
    };
    let draining = shutdown::watch(
        server.watch_execution_phase(),
        serves,
        Arc::clone(&succeeded),
        parts.in_flight.clone(),
        drain_timeout,
        Arc::clone(&store),
    );
    let mut options = HttpServerOptions::default();
    // Every connection is brought to the doors as it came off its socket.
    options.force_custom = true;
    let gateway = parts.gateway;
    let bytes = Arc::new(Bytes {
        tls: tls.clone(),
        metrics: Arc::clone(&gateway.metrics),
        authority: Arc::clone(&gateway.authority),
        pools: Arc::clone(&gateway.pools),
        in_flight: parts.in_flight.clone(),
        access: gateway.access.clone(),
        figures: bytes::Figures::new(&gateway.metrics)
            .map_err(|error| StartError::Other(error.to_string()))?,
    });
    let (authority, metrics) = (Arc::clone(&gateway.authority), Arc::clone(&gateway.metrics));
    let idle = Idle::new(authority.clock.clone());
    let on_change = Arc::clone(&reload);
    let upkeep = Upkeep {
        authority: Arc::clone(&authority),
        connections: Arc::clone(&gateway.credentials.connections),
        exchanged: Arc::clone(&gateway.credentials.exchanged),
        changes: tokio::sync::Mutex::new(parts.changes),
        reload: Arc::new(move || drop(reload.now())),
        heard: tokio::sync::Mutex::new(parts.wish),
        idle: idle.clone(),
        resolver: Arc::clone(&gateway.resolver),
    };
    let renewal = Renewal {
        authority: Arc::clone(&authority),
        foreign: Arc::clone(&gateway.foreign),
        providers: parts.providers,
    };
    let memory = Memory {
        authority: Arc::clone(&authority),
        metrics: Arc::clone(&metrics),
        in_flight: parts.in_flight.clone(),
    };
    let watching = Watching {
        pools: Arc::clone(&gateway.pools),
        connector: Arc::new(Connector::new(Some(ConnectorOptions::from_server_conf(&conf)))),
    };
    let with_tls = bound.iter().filter_map(|bound| match bound.purpose {
        Socket::Requests { proxied } if bound.tls => Some((bound.actual, proxied)),
        _ => None,
    });
    let with_tls = with_tls.collect();
    let (pulses, watched) = (Pulses::default(), Arc::clone(&succeeded));
    let doors = Doors::new(Arc::clone(&authority), &metrics, tls, with_tls, pulses.clone(), succeeded);
    let room = Arc::clone(&doors.room);
    let mut service = ProxyServiceBuilder::new(&conf, gateway)
        .name("gateway")
        .custom(
            Joining::new(idle, Some(ConnectorOptions::from_server_conf(&conf))),
            Arc::new(move |proxy, stream, shutdown| {
                doors.enter(proxy, stream, shutdown);
                Box::pin(std::future::ready(None))
            }),
        )
        .server_options(options)
        .build();
    service.set_connection_filter(room);
    let mut sockets = Vec::new();
    let mut admin = None;
    for Bound { socket, address, actual, tls: with_tls, purpose, .. } in bound {
        let (listener, route) = match &purpose {
            Socket::Requests { .. } => ("public", None),
            Socket::Admin => ("admin", None),
            Socket::Bytes(route) => ("tcp", Some(route)),
        };
        tracing::info!(listener, address = %actual, tls = with_tls, route, "listening");
        match purpose {
            Socket::Requests { .. } => {}
            Socket::Admin => {
                admin = Some(socket);
                continue;
            }
            Socket::Bytes(route) => {
                let relay = Relay::new(Arc::clone(&bytes), route, socket);
                server.add_service(background_service("tcp", relay));
                continue;
            }
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
    server.add_service(background_service("memory", memory));
    server.add_service(background_service("pools", watching));
    if let Some(spans) = parts.spans {
        server.add_service(background_service("spans", spans));
    }
    let snapshot = authority.snapshot();
    if snapshot.config.server.watch {
        let files = move || source.files();
        let watch = Watch::new(files, move || drop(on_change.now()));
        server.add_service(background_service("watch", watch));
    }
    if matches!(snapshot.config.store, config::Store::Embedded) {
        let store = Arc::clone(authority.records.store());
        let is_the_one = tokio::sync::Mutex::new(from_when_on.clone());
        let exporting = Exporting { store, data_dir: data_dir.clone(), is_the_one };
        server.add_service(background_service("export", exporting));
    }
    let is_the_one = tokio::sync::Mutex::new(from_when_on.clone());
    let watchdog = Watchdog { pulses: pulses.clone(), is_the_one, succeeded: watched };
    server.add_service(background_service("watchdog", watchdog));
    let is_the_one = tokio::sync::Mutex::new(from_when_on);
    server.add_service(background_service("control", Control { data_dir, hands, is_the_one }));
    if let Some(socket) = admin {
        let endpoints = Admin::new(
            socket,
            metrics,
            Arc::clone(&authority),
            draining,
            parts.in_flight,
            pulses,
            admin_leaves,
        );
        server.add_service(background_service("admin", endpoints));
    }
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    store.close();
    output::flush();
    Ok(())
}

fn sockets_options() -> TcpSocketOptions {
    let mut options = TcpSocketOptions::default();
    options.tcp_keepalive = Some(upstream::peer::keepalive());
    options
}
