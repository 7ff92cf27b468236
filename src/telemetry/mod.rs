//! What is seen from outside: counters, the access log, the audit log. Names and values that get here are chosen by
//! us or bounded; no token, code, cookie or query string ever does.
pub mod access;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// The metrics of the process, all `postern_…`.
pub struct Metrics {
    registry: Registry,
    /// By route, status class and reason (`ok`, or why we answered ourselves).
    pub requests: IntCounterVec,
    /// Seconds from the request's arrival to the end of the answer, by route.
    pub duration: HistogramVec,
    /// Requests and streams under way.
    pub active: IntGauge,
    /// By outcome.
    pub refreshes: IntCounterVec,
    /// Our OAuth endpoints, by endpoint and result.
    pub oauth: IntCounterVec,
}

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
        let refreshes = counter(
            "postern_refreshes_total",
            "Upstream token refreshes by outcome.",
            &["outcome"],
        )?;
        let oauth = counter(
            "postern_oauth_requests_total",
            "Requests to the OAuth endpoints by endpoint and result.",
            &["endpoint", "result"],
        )?;
        let build = counter("postern_build_info", "The running version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).inc();
        let buckets = vec![
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
        ];
        let options = HistogramOpts::new(
            "postern_request_duration_seconds",
            "Time from arrival to the end of the answer.",
        )
        .buckets(buckets);
        let duration = HistogramVec::new(options, &["route"])?;
        registry.register(Box::new(duration.clone()))?;
        let active = IntGauge::new("postern_active_requests", "Requests and streams under way.")?;
        registry.register(Box::new(active.clone()))?;
        registry.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        Ok(Self {
            registry,
            requests,
            duration,
            active,
            refreshes,
            oauth,
        })
    }

    /// In Prometheus's text format.
    pub fn text(&self) -> Vec<u8> {
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

/// Starts the log: JSON lines on standard error. `RUST_LOG` chooses levels, but never below info for libraries whose
/// finer lines carry headers and codes.
pub fn log() {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    for quiet in [
        "hyper=info",
        "hyper_util=info",
        "reqwest=info",
        "h2=info",
        "rustls=info",
        "pingora=info",
        "pingora_core=info",
        "pingora_proxy=info",
        "tungstenite=info",
    ] {
        if let Ok(directive) = quiet.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let started = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_span_events(FmtSpan::NONE)
        .with_current_span(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
    if started.is_err() {
        tracing::debug!("a log is set up already");
    }
}
