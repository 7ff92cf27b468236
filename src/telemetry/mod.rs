//! What is seen from outside: counters, the access log, the audit log, traces. Names and values that get here are chosen by
//! us or bounded; no token, code, cookie or query string ever does.
pub mod access;
pub mod audit;
mod catalogue;
mod lookups;
pub mod output;
mod series;
pub mod traces;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Encoder, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::outbound::{Count, Fetched};
use catalogue::Catalogue;
pub use catalogue::Described;
pub use lookups::{Caches, Lookups};
pub use series::{CallerClass, Ended, Requests, Series};
pub use traces::Traces;

/// The metrics of the process, all `postern_…`.
pub struct Metrics {
    registry: Registry,
    described: Mutex<Vec<Described>>,
    /// By route, class of caller, status class and reason (`ok`, or why we answered ourselves); and where their time went.
    pub requests: Requests,
    in_flight: IntGauge,
    /// Streams that clients have opened for themselves.
    pub streams: IntGauge,
    /// Calls whose credential had to be fetched, or of which there was none, by strategy, act and reason.
    pub credentials: IntCounterVec,
    /// By outcome.
    pub refreshes: IntCounterVec,
    /// By outcome.
    pub exchanges: IntCounterVec,
    /// By step and decision.
    pub discovery: IntCounterVec,
    pub caches: Caches,
    /// By operation and result.
    pub store_operations: IntCounterVec,
    /// By operation.
    pub store_duration: HistogramVec,
    /// Our OAuth endpoints, by endpoint and result.
    pub oauth: IntCounterVec,
    /// How often the configuration was read again, by outcome.
    pub reloads: IntCounterVec,
    /// When the configuration in use was taken, in seconds since 1970.
    pub reloaded: IntGauge,
    /// When certificates end, in seconds since 1970, by use and file.
    pub certificates: IntGaugeVec,
    /// How often another process was to take over, by outcome.
    pub upgrades: IntCounterVec,
    /// Whether the last time went wrong.
    pub reload_failed: IntGauge,
    /// Requests that a limit on calls refused, by route, what it counts apart, and whether it was its rate.
    pub limited: IntCounterVec,
    /// How often a limit of the instance kept a client from something, by limit.
    limits: IntCounterVec,
    /// Connections of clients that are open.
    pub connections: IntGauge,
    /// How many there may be.
    pub connections_limit: IntGauge,
    /// Bytes that are held, and that may be.
    pub memory: IntGauge,
    pub memory_limit: IntGauge,
    /// Calls at which a rule could not be decided, by route.
    pub policy_faults: IntCounterVec,
    /// Requests at a shared limit that this instance has counted alone.
    pub counted_alone: IntCounter,
    /// Requests whose spans were recorded, by what became of those.
    pub traced: IntCounterVec,
    log_lines_dropped: IntCounterVec,
}

/// The keys of `limits`; the handshake, which has the time of a header; what `h2` bounds by itself; and balancers that may not
/// speak, or not like that.
const LIMITS: [&str; 20] = [
    "body",
    "body_time",
    "connections",
    "connections_per_address",
    "control_frames",
    "handshake",
    "header_fields",
    "header_size",
    "header_time",
    "http2",
    "inspect_answer",
    "inspect_body",
    "memory",
    "proxy_protocol",
    "requests",
    "resets",
    "streams",
    "streams_per_connection",
    "streams_per_user",
    "write_time",
];

/// Counts what must be finished before the process may end. Cheap to clone.
#[derive(Clone, Default)]
pub struct InFlight {
    all: Arc<AtomicUsize>,
    /// Of those, the ones that are no requests.
    bytes: Arc<AtomicUsize>,
    /// There is no memory for more.
    scarce: Arc<AtomicBool>,
}

/// Lives as long as the thing counted.
pub struct Guard {
    of: InFlight,
    is_bytes: bool,
}

/// Of the store, seconds: a look into memory, a flush to disk, a Redis that is away.
const STORE_BUCKETS: [f64; 10] = [0.0001, 0.00025, 0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0];

// === impl Metrics ===

impl Metrics {
    pub fn new() -> prometheus::Result<Self> {
        let registry = Catalogue::default();
        let counter = |name: &str, help: &str, labels: &[&str]| registry.counters(name, help, labels);
        let requests = Requests::new(&registry)?;
        let credentials = counter(
            "postern_credentials_total",
            "Calls whose credential had to be fetched or renewed, or was lacking, by strategy, act and reason.",
            &["strategy", "act", "reason"],
        )?;
        let refreshes =
            counter("postern_refreshes_total", "Upstream token refreshes by outcome.", &["outcome"])?;
        let exchanges = counter("postern_exchanges_total", "Tokens exchanged by outcome.", &["outcome"])?;
        let discovery = counter(
            "postern_discovery_total",
            "Steps of discovery at upstreams and their authorization servers, by step and decision.",
            &["step", "decision"],
        )?;
        let caches = Caches::new(&registry)?;
        let store_operations = counter(
            "postern_store_operations_total",
            "Operations of the store by operation and result.",
            &["operation", "result"],
        )?;
        let store_duration = registry.histograms(
            "postern_store_duration_seconds",
            "Time that operations of the store took.",
            &STORE_BUCKETS,
            &["operation"],
        )?;
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
        let reloaded = registry.gauge(
            "postern_config_reload_success_timestamp_seconds",
            "When the configuration in use was taken.",
        )?;
        let certificates = registry.gauges(
            "postern_certificate_expiry_timestamp_seconds",
            "When a certificate of the TLS listeners ends, by what it is for and its file.",
            &["use", "file"],
        )?;
        let upgrades =
            counter("postern_upgrades_total", "Hand-overs to a new process by outcome.", &["outcome"])?;
        let reload_failed = registry.gauge(
            "postern_config_reload_failed",
            "1 when the configuration on disk was refused at the last reload, else 0.",
        )?;
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
        let connections = registry.gauge("postern_connections", "Connections of clients that are open.")?;
        let connections_limit =
            registry.gauge("postern_connections_limit", "How many connections of clients may be open.")?;
        let memory = registry.gauge(
            "postern_memory_bytes",
            "Memory that counts towards the limit: of the process, or of its control group.",
        )?;
        let memory_limit =
            registry.gauge("postern_memory_limit_bytes", "How much of it there may be; 0 is any number.")?;
        let policy_faults = counter(
            "postern_policy_faults_total",
            "Calls at which a rule could not be decided, by route.",
            &["route"],
        )?;
        let counted_alone = registry.counter(
            "postern_calls_counted_alone_total",
            "Requests at a shared limit while the store did not answer.",
        )?;
        let traced = counter(
            "postern_traced_requests_total",
            "Recorded requests by what became of their spans: sent, dropped (no room) or failed (not taken).",
            &["result"],
        )?;
        // All are there from the beginning, so that the first time shows as a rise.
        let all: [(&IntCounterVec, &[&str]); 4] = [
            (&limits, &LIMITS),
            (&reloads, &["ok", "failed"]),
            (&upgrades, &["ok", "failed"]),
            (&traced, &["sent", "dropped", "failed"]),
        ];
        for (counters, words) in all {
            words.iter().for_each(|word| drop(counters.with_label_values(&[word])));
        }
        let log_lines_dropped = counter(
            "postern_log_lines_dropped_total",
            "Lines that nobody read in time: of the access log (standard output) or the log (standard error).",
            &["log"],
        )?;
        let build = counter("postern_build_info", "The running version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).inc();
        let in_flight = registry.gauge("postern_in_flight", "Requests, streams and refreshes under way.")?;
        let streams =
            registry.gauge("postern_streams", "Streams that clients have opened for themselves.")?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let (registry, described) = registry.close();
        Ok(Self {
            registry,
            described: Mutex::new(described),
            requests,
            in_flight,
            streams,
            credentials,
            refreshes,
            exchanges,
            discovery,
            caches,
            store_operations,
            store_duration,
            oauth,
            reloads,
            reloaded,
            certificates,
            upgrades,
            reload_failed,
            limited,
            limits,
            connections,
            connections_limit,
            memory,
            memory_limit,
            policy_faults,
            counted_alone,
            traced,
            log_lines_dropped,
        })
    }

    /// All that there are, by name: also those of which nothing was counted yet.
    pub fn described(&self) -> Vec<Described> {
        let mut described = self.described.lock().unwrap_or_else(PoisonError::into_inner).clone();
        described.sort();
        described
    }

    /// Figures of somebody else's, read off when they are asked for.
    pub fn add(&self, figures: impl Collector + 'static) -> prometheus::Result<()> {
        let described = catalogue::described(&figures);
        self.described.lock().unwrap_or_else(PoisonError::into_inner).extend(described);
        self.registry.register(Box::new(figures))
    }

    /// A limit kept a client from something.
    pub fn hit(&self, limit: &'static str) {
        self.limits.with_label_values(&[limit]).inc();
    }

    /// In Prometheus's text format. `in_flight`: what is under way at this moment.
    pub fn text(&self, in_flight: usize) -> Vec<u8> {
        self.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        for (log, output) in [("access", output::access()), ("log", output::log())] {
            let lost = self.log_lines_dropped.with_label_values(&[log]);
            lost.inc_by(output.dropped().saturating_sub(lost.get()));
        }
        let (mut text, families) = (Vec::new(), self.registry.gather());
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        // Of what nothing was counted yet, at least that it is there.
        let is_empty = |metric: &&Described| !families.iter().any(|family| family.name() == metric.name);
        for Described { name, kind, help, .. } in self.described().iter().filter(is_empty) {
            text.extend_from_slice(format!("# HELP {name} {help}\n# TYPE {name} {kind}\n").as_bytes());
        }
        text
    }
}

impl Count for Metrics {
    fn decision(&self, step: &'static str, decision: &'static str) {
        self.discovery.with_label_values(&[step, decision]).inc();
    }

    fn lookup(&self, kept: Fetched, is_there: bool) {
        let cache = match kept {
            Fetched::ForeignToken => &self.caches.foreign_tokens,
            Fetched::ClientDocument => &self.caches.client_documents,
        };
        cache.count(is_there);
    }
}

// === impl InFlight ===

impl InFlight {
    pub fn start(&self) -> Guard {
        self.all.fetch_add(1, Ordering::SeqCst);
        Guard { of: self.clone(), is_bytes: false }
    }

    /// As that, of a connection that is no request and has limits of its own.
    pub fn start_bytes(&self) -> Guard {
        self.bytes.fetch_add(1, Ordering::SeqCst);
        self.all.fetch_add(1, Ordering::SeqCst);
        Guard { of: self.clone(), is_bytes: true }
    }

    /// Whether there is no memory for more. Says whether that was so before.
    pub fn set_scarce(&self, scarce: bool) -> bool {
        self.scarce.swap(scarce, Ordering::Relaxed)
    }

    pub fn is_scarce(&self) -> bool {
        self.scarce.load(Ordering::Relaxed)
    }

    pub fn count(&self) -> usize {
        self.all.load(Ordering::SeqCst)
    }

    /// Without connections that are no requests.
    pub fn requests(&self) -> usize {
        self.count().saturating_sub(self.bytes.load(Ordering::SeqCst))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.of.all.fetch_sub(1, Ordering::SeqCst);
        if self.is_bytes {
            self.of.bytes.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Libraries whose finer lines carry headers, codes and raw bytes.
const TALKATIVE: [&str; 9] =
    ["aws", "h2", "hyper", "pingora", "reqwest", "rustls", "tokio_rustls", "tower", "want"];

/// The one that warns of each wrong frame of a client: whoever floods would fill the log.
const PROVOKED: &str = "h2";

/// What is said without `RUST_LOG`. Pingora's info is about its own start and end, which we announce ourselves.
const USUAL: &str = "info,pingora=warn,pingora_core=warn,pingora_proxy=warn";

/// Starts the log: JSON lines on standard error. `RUST_LOG` chooses levels, but nothing makes a talkative library say
/// more than info, or `h2` more than errors.
pub fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(USUAL));
    let discreet = FilterFn::new(|line| {
        let is_of = |library: &str| line.target().starts_with(library);
        *line.level() <= Level::ERROR
            || !is_of(PROVOKED) && (*line.level() <= Level::INFO || !TALKATIVE.into_iter().any(is_of))
    });
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(output::log());
    if tracing_subscriber::registry().with(filter).with(discreet).with(lines).try_init().is_err() {
        tracing::debug!("a log is set up already");
    }
}
