//! What is seen from outside: counters, the access log, the audit log. Names and values that get here are chosen by
//! us or bounded; no token, code, cookie or query string ever does.
pub mod access;
pub mod audit;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::core::Collector;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The metrics of the process, all `postern_…`.
pub struct Metrics {
    registry: Registry,
    /// By route, status class and reason (`ok`, or why we answered ourselves).
    pub requests: IntCounterVec,
    /// Seconds from the request's arrival to the end of the answer, by route.
    pub duration: HistogramVec,
    in_flight: IntGauge,
    /// Streams that clients have opened for themselves.
    pub streams: IntGauge,
    /// By outcome.
    pub refreshes: IntCounterVec,
    /// By outcome.
    pub exchanges: IntCounterVec,
    /// Our OAuth endpoints, by endpoint and result.
    pub oauth: IntCounterVec,
    /// How often the configuration was read again, by outcome.
    pub reloads: IntCounterVec,
    /// When the configuration in use was taken, in seconds since 1970.
    pub reloaded: IntGauge,
    /// How often another process was to take over, by outcome.
    pub upgrades: IntCounterVec,
    /// Requests that a limit on calls refused, by route, what it counts apart, and whether it was its rate.
    pub limited: IntCounterVec,
    /// How often a limit of the instance kept a client from something, by limit.
    limits: IntCounterVec,
    /// Connections of clients that are open.
    pub connections: IntGauge,
    /// Calls at which a rule could not be decided, by route.
    pub policy_faults: IntCounterVec,
    /// Requests at a shared limit that this instance has counted alone.
    pub counted_alone: IntCounter,
}

/// The keys of `limits`, and the handshake, which has the time of a header.
const LIMITS: [&str; 12] = [
    "body",
    "body_time",
    "connections",
    "connections_per_address",
    "handshake",
    "header_fields",
    "header_size",
    "header_time",
    "requests",
    "streams",
    "streams_per_user",
    "write_time",
];

/// Counts what must be finished before the process may end. Cheap to clone.
#[derive(Clone, Default)]
pub struct InFlight(Arc<AtomicUsize>);

/// Lives as long as the thing counted.
pub struct Guard(InFlight);

// === impl Metrics ===

impl Metrics {
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let requests = counter(
            "postern_requests_total",
            "Requests by route, status class and reason.",
            &["route", "class", "reason"],
        )?;
        let refreshes =
            counter("postern_refreshes_total", "Upstream token refreshes by outcome.", &["outcome"])?;
        let exchanges = counter("postern_exchanges_total", "Tokens exchanged by outcome.", &["outcome"])?;
        let oauth = counter(
            "postern_oauth_requests_total",
            "Requests to the OAuth endpoints by endpoint and result.",
            &["endpoint", "result"],
        )?;
        let reloads = counter(
            "postern_config_reloads_total",
            "Reloads of the configuration by outcome.",
            &["outcome"],
        )?;
        let reloaded = IntGauge::new(
            "postern_config_reload_success_timestamp_seconds",
            "When the configuration in use was taken.",
        )?;
        registry.register(Box::new(reloaded.clone()))?;
        let upgrades =
            counter("postern_upgrades_total", "Hand-overs to a new process by outcome.", &["outcome"])?;
        let limited = counter(
            "postern_calls_limited_total",
            "Requests refused by a limit on calls, by route, what the limit is per, and its kind.",
            &["route", "per", "kind"],
        )?;
        let limits = counter(
            "postern_limited_total",
            "How often a limit of the instance kept a client from something, by limit.",
            &["limit"],
        )?;
        // All are there from the beginning, so that the first time shows as a rise.
        for limit in LIMITS {
            limits.with_label_values(&[limit]);
        }
        let connections = IntGauge::new("postern_connections", "Connections of clients that are open.")?;
        registry.register(Box::new(connections.clone()))?;
        let policy_faults = counter(
            "postern_policy_faults_total",
            "Calls at which a rule could not be decided, by route.",
            &["route"],
        )?;
        let counted_alone = IntCounter::new(
            "postern_calls_counted_alone_total",
            "Requests at a shared limit while the store did not answer.",
        )?;
        registry.register(Box::new(counted_alone.clone()))?;
        let build = counter("postern_build_info", "The running version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).inc();
        let buckets =
            vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let options = HistogramOpts::new(
            "postern_request_duration_seconds",
            "Time from arrival to the end of the answer.",
        )
        .buckets(buckets);
        let duration = HistogramVec::new(options, &["route"])?;
        registry.register(Box::new(duration.clone()))?;
        let in_flight = IntGauge::new("postern_in_flight", "Requests, streams and refreshes under way.")?;
        registry.register(Box::new(in_flight.clone()))?;
        let streams = IntGauge::new("postern_streams", "Streams that clients have opened for themselves.")?;
        registry.register(Box::new(streams.clone()))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            registry,
            requests,
            duration,
            in_flight,
            streams,
            refreshes,
            exchanges,
            oauth,
            reloads,
            reloaded,
            upgrades,
            limited,
            limits,
            connections,
            policy_faults,
            counted_alone,
        })
    }

    /// Figures of somebody else's, read off when they are asked for.
    pub fn add(&self, figures: impl Collector + 'static) -> prometheus::Result<()> {
        self.registry.register(Box::new(figures))
    }

    /// A limit kept a client from something.
    pub fn hit(&self, limit: &'static str) {
        self.limits.with_label_values(&[limit]).inc();
    }

    /// In Prometheus's text format. `in_flight`: what is under way at this moment.
    pub fn text(&self, in_flight: usize) -> Vec<u8> {
        self.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }
}

// === impl InFlight ===

impl InFlight {
    pub fn start(&self) -> Guard {
        self.0.fetch_add(1, Ordering::SeqCst);
        Guard(self.clone())
    }

    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Libraries whose finer lines carry headers, codes and raw bytes.
const TALKATIVE: [&str; 9] =
    ["aws", "h2", "hyper", "pingora", "reqwest", "rustls", "tokio_rustls", "tower", "want"];

/// What is said without `RUST_LOG`. Pingora's info is about its own start and end, which we announce ourselves.
const USUAL: &str = "info,pingora=warn,pingora_core=warn,pingora_proxy=warn";

/// Starts the log: JSON lines on standard error. `RUST_LOG` chooses levels, but nothing makes a talkative library say
/// more than info.
pub fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(USUAL));
    let discreet = FilterFn::new(|line| {
        *line.level() <= Level::INFO || !TALKATIVE.iter().any(|library| line.target().starts_with(library))
    });
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stderr);
    if tracing_subscriber::registry().with(filter).with(discreet).with(lines).try_init().is_err() {
        tracing::debug!("a log is set up already");
    }
}
