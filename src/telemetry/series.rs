//! What is counted of the requests to one route. Each route looks its series up once and keeps them, so that a request finds
//! them without a lock, a hash or an allocation.
use std::sync::OnceLock;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, Result};

use super::catalogue::Catalogue;

/// From a millisecond to a minute.
const BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Who calls, as far as metrics tell people apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CallerClass {
    /// Nobody has proven who they are.
    #[default]
    Anonymous,
    /// Somebody, by their client.
    User,
    /// A program with nobody before it.
    Program,
}

/// How a request ended, and where its time went.
pub struct Ended {
    pub caller: CallerClass,
    /// 0: there was no answer.
    pub status: u16,
    /// `ok`, or why we have answered ourselves.
    pub reason: &'static str,
    pub took: Duration,
    /// Until a connection to the upstream stood, where there was none before.
    pub connect: Option<Duration>,
    /// Until the head of the upstream's answer came.
    pub first_byte: Option<Duration>,
}

/// Of all routes.
pub struct Requests {
    total: IntCounterVec,
    duration: HistogramVec,
    connect: HistogramVec,
    first_byte: HistogramVec,
    /// Of requests that were headed nowhere.
    unrouted: Series,
}

/// Of one route.
pub struct Series {
    label: Box<str>,
    /// How most requests end, by caller.
    usual: [OnceLock<IntCounter>; 3],
    duration: OnceLock<Histogram>,
    connect: OnceLock<Histogram>,
    first_byte: OnceLock<Histogram>,
}

// === impl CallerClass ===

impl CallerClass {
    pub fn word(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::User => "user",
            Self::Program => "program",
        }
    }
}

// === impl Requests ===

impl Requests {
    pub fn new(catalogue: &Catalogue) -> Result<Self> {
        Ok(Self {
            total: catalogue.counters(
                "postern_requests_total",
                "Requests by route, class of caller, status class and reason.",
                &["route", "caller", "class", "reason"],
            )?,
            duration: catalogue.histograms(
                "postern_request_duration_seconds",
                "Time from arrival to the end of the answer.",
                &BUCKETS,
                &["route"],
            )?,
            connect: catalogue.histograms(
                "postern_upstream_connect_seconds",
                "Time until a new connection to an upstream stood, name, address and TLS included.",
                &BUCKETS,
                &["route"],
            )?,
            first_byte: catalogue.histograms(
                "postern_upstream_first_byte_seconds",
                "Time from the beginning of an attempt to the head of the upstream's answer.",
                &BUCKETS,
                &["route"],
            )?,
            unrouted: Series::new("-"),
        })
    }

    /// `series`: those of the request's route.
    pub fn count(&self, series: Option<&Series>, ended: &Ended) {
        let series = series.unwrap_or(&self.unrouted);
        let label = &*series.label;
        let class = match ended.status {
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "none",
        };
        let total = || self.total.with_label_values(&[label, ended.caller.word(), class, ended.reason]);
        match series.usual.get(ended.caller as usize) {
            Some(usual) if (class, ended.reason) == ("2xx", "ok") => usual.get_or_init(total).inc(),
            _ => total().inc(),
        }
        observe(&series.duration, &self.duration, label, Some(ended.took));
        observe(&series.connect, &self.connect, label, ended.connect);
        observe(&series.first_byte, &self.first_byte, label, ended.first_byte);
    }
}

fn observe(known: &OnceLock<Histogram>, all: &HistogramVec, label: &str, time: Option<Duration>) {
    if let Some(time) = time {
        known.get_or_init(|| all.with_label_values(&[label])).observe(time.as_secs_f64());
    }
}

// === impl Series ===

impl Series {
    /// `label`: what metrics know the route by.
    pub fn new(label: &str) -> Self {
        Self {
            label: label.into(),
            usual: Default::default(),
            duration: OnceLock::new(),
            connect: OnceLock::new(),
            first_byte: OnceLock::new(),
        }
    }
}
