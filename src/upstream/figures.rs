//! How the peers of each pool do, for whoever watches: read off when the figures are asked for, so that no request pays for them. There
//! are as many as there are addresses.
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};

use super::balance::{Fault, Peer};
use super::pool::{Pool, Pools, since_1970};

/// Registered with the metrics of the process.
pub struct Figures {
    pools: Arc<Pools>,
    state: IntGaugeVec,
    under_way: IntGaugeVec,
    requests: IntCounterVec,
    failures: IntCounterVec,
    /// One at a time: they are made anew each time.
    turn: Mutex<()>,
}

impl Figures {
    pub fn new(pools: Arc<Pools>) -> prometheus::Result<Self> {
        let state = Opts::new(
            "postern_upstream_peer_state",
            "1 for how a peer stands: up, slow_start, out, down, leaving.",
        );
        let under_way = Opts::new("postern_upstream_peer_under_way", "Requests under way at a peer.");
        let requests = Opts::new("postern_upstream_peer_requests_total", "Requests that went to a peer.");
        let failures = Opts::new(
            "postern_upstream_peer_failures_total",
            "Connections that did not come about, or broke off, and checks not passed.",
        );
        Ok(Self {
            pools,
            state: IntGaugeVec::new(state, &["route", "peer", "state"])?,
            under_way: IntGaugeVec::new(under_way, &["route", "peer"])?,
            requests: IntCounterVec::new(requests, &["route", "peer"])?,
            failures: IntCounterVec::new(failures, &["route", "peer", "kind"])?,
            turn: Mutex::new(()),
        })
    }

    fn add(&self, pool: &Pool, peer: &Peer, state: &str) {
        let address = peer.address.to_string();
        let labels = [pool.label(), &address];
        let [route, address] = labels;
        self.state.with_label_values(&[route, address, state]).set(1);
        let under_way = i64::try_from(peer.under_way()).unwrap_or(i64::MAX);
        self.under_way.with_label_values(&labels).set(under_way);
        self.requests.with_label_values(&labels).inc_by(peer.requests());
        for fault in Fault::ALL {
            let failures = self.failures.with_label_values(&[route, address, fault.name()]);
            failures.inc_by(peer.failures(fault));
        }
    }
}

impl Collector for Figures {
    fn desc(&self) -> Vec<&Desc> {
        [self.state.desc(), self.under_way.desc(), self.requests.desc(), self.failures.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.reset();
        self.under_way.reset();
        self.requests.reset();
        self.failures.reset();
        let now = since_1970(self.pools.clock.now());
        for pool in self.pools.all() {
            let members = pool.members();
            for member in &members.present {
                self.add(&pool, &member.peer, member.peer.state(pool.slow_start(), now).name());
            }
            for leaving in &members.leaving {
                self.add(&pool, &leaving.peer, "leaving");
            }
        }
        [self.state.collect(), self.under_way.collect(), self.requests.collect(), self.failures.collect()]
            .concat()
    }
}
