//! A registry that remembers what was registered, so that the table in `docs/metrics.md` can be held against it: metrics with
//! labels are in no scrape until something was counted.
use std::cell::RefCell;

use prometheus::core::Collector;
use prometheus::proto::MetricType;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result,
};

/// One metric, as it is described to people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Described {
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    pub labels: Vec<String>,
    pub help: String,
}

/// Registers, and remembers.
#[derive(Default)]
pub struct Catalogue {
    registry: Registry,
    described: RefCell<Vec<Described>>,
}

/// What there is in it.
pub fn described(collector: &dyn Collector) -> Vec<Described> {
    let families = collector.collect();
    let described = collector.desc().into_iter().map(|description| {
        let kind = families.iter().find(|family| family.name() == description.fq_name);
        Described {
            name: description.fq_name.clone(),
            kind: kind.map_or("gauge", |family| match family.get_field_type() {
                MetricType::COUNTER => "counter",
                MetricType::HISTOGRAM => "histogram",
                _ => "gauge",
            }),
            labels: description.variable_labels.clone(),
            help: description.help.clone(),
        }
    });
    described.collect()
}

// === impl Catalogue ===

impl Catalogue {
    pub fn register(&self, collector: Box<dyn Collector>) -> Result<()> {
        self.described.borrow_mut().extend(described(&*collector));
        self.registry.register(collector)
    }

    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        let counter = IntCounter::new(name, help)?;
        self.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        let gauge = IntGauge::new(name, help)?;
        self.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    /// `buckets`: seconds.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
        let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
        self.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }

    /// `buckets`: seconds.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histograms = HistogramVec::new(options, labels)?;
        self.register(Box::new(histograms.clone()))?;
        Ok(histograms)
    }

    /// The registry, and what is in it.
    pub fn close(self) -> (Registry, Vec<Described>) {
        (self.registry, self.described.into_inner())
    }
}
