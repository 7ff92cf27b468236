//! Traces for OpenTelemetry. Which requests are recorded is decided at their arrival; what becomes of them is put together at
//! their end, from the moments that are noted of every request anyway. So a request that is not recorded allocates nothing for
//! it, and none waits for a collector: spans wait in a queue for who sends them, and what finds no room there is dropped and
//! counted.
pub mod context;
pub mod errands;
pub mod message;
mod span;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::Metrics;
use crate::config;
use crate::seal;
use context::Trace;
pub use span::{Finished, Times, request};

/// Requests that may wait to be sent.
const QUEUE: usize = 2048;

/// Says which requests are recorded, and takes what became of them.
pub struct Traces {
    metrics: Arc<Metrics>,
    queue: Sender<Box<Finished>>,
    /// A number below it is drawn for a request that is recorded; of 64 bits.
    threshold: u128,
    follows_clients: bool,
    /// Numbers are drawn from here on.
    seed: u64,
    drawn: AtomicU64,
}

// === impl Traces ===

impl Traces {
    /// Traces, and what is to be sent.
    pub fn new(
        configured: &config::Traces,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Receiver<Box<Finished>>), seal::SealError> {
        let (queue, sent) = mpsc::channel(QUEUE);
        // From 0 to 2^64: at 1 every number is below it.
        let threshold = (configured.sample * 2f64.powi(64)) as u128;
        let traces = Self {
            metrics,
            queue,
            threshold,
            follows_clients: configured.follow_clients,
            seed: u64::from_ne_bytes(seal::random()?),
            drawn: AtomicU64::new(0),
        };
        Ok((traces, sent))
    }

    /// The trace that a request is recorded in. `None`: it is not.
    pub fn begin(&self, headers: &HeaderMap) -> Option<Trace> {
        let given = context::read(headers);
        let is_recorded = match &given {
            Some(given) if self.follows_clients => given.is_sampled,
            _ => self.draw(),
        };
        if !is_recorded {
            return None;
        }
        let [trace, request, call]: [[u8; 8]; 3] =
            [seal::random().ok()?, seal::random().ok()?, seal::random().ok()?];
        let new = || {
            let mut id = [0; 16];
            id.iter_mut().zip(trace.iter().chain(&request)).for_each(|(byte, random)| *byte = *random);
            id
        };
        Some(Trace {
            id: given.map_or_else(new, |given| given.trace),
            parent: given.map(|given| given.parent),
            request,
            call,
        })
    }

    /// Takes what became of a request. It waits for nobody.
    pub fn end(&self, finished: Finished) {
        if self.queue.try_send(Box::new(finished)).is_err() {
            self.metrics.traced.with_label_values(&["dropped"]).inc();
        }
    }

    /// A number of its own for each request, evenly spread (SplitMix64): nothing is guarded by it.
    fn draw(&self) -> bool {
        let count = self.drawn.fetch_add(1, Ordering::Relaxed);
        let mut number = self.seed.wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u128::from(number ^ (number >> 31)) < self.threshold
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn traces(sample: f64, follow_clients: bool) -> (Traces, Receiver<Box<Finished>>) {
        let configured = config::Traces {
            endpoint: String::new(),
            host: String::new(),
            sample,
            follow_clients,
            service_name: String::new(),
            headers: HeaderMap::new(),
        };
        Traces::new(&configured, Arc::new(Metrics::new().unwrap())).unwrap()
    }

    fn with_parent(flags: &str) -> HeaderMap {
        let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
        HeaderMap::from_iter([(context::TRACEPARENT, parent.parse().unwrap())])
    }

    #[test]
    fn as_many_are_recorded_as_is_configured() {
        for (sample, least, most) in [(0.0, 0, 0), (0.1, 900, 1100), (1.0, 10_000, 10_000)] {
            let (traces, _sent) = traces(sample, true);
            let recorded = (0..10_000).filter(|_| traces.begin(&HeaderMap::new()).is_some()).count();
            assert!((least..=most).contains(&recorded), "{recorded} at {sample}");
        }
    }

    #[test]
    fn a_client_says_which_of_its_requests_are_recorded_unless_it_has_no_say() {
        for (sample, follows, flags, is_recorded) in [
            (0.0, true, "01", true),
            (1.0, true, "00", false),
            (0.0, false, "01", false),
            (1.0, false, "00", true),
        ] {
            let trace = traces(sample, follows).0.begin(&with_parent(flags));
            assert_eq!(trace.is_some(), is_recorded, "{sample} {follows} {flags}");
            if let Some(trace) = trace {
                assert_eq!(trace.parent.unwrap(), [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
                assert_eq!(trace.id[0], 0x0a);
                assert_ne!(trace.request, trace.call);
            }
        }
    }

    #[test]
    fn a_trace_of_our_own_has_ids_of_its_own() {
        let (traces, _sent) = traces(1.0, true);
        let (one, other) =
            (traces.begin(&HeaderMap::new()).unwrap(), traces.begin(&HeaderMap::new()).unwrap());
        assert_eq!(one.parent, None);
        assert_ne!(one.id, other.id);
        assert_ne!(one.id, [0; 16]);
    }
}
