//! Brings spans to their collector, some at a time. Whatever becomes of them there, no request hears of it: a collector that
//! does not take them, or not in time, is written down once, and what it missed is counted.
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, header};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::Mutex;
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;

use crate::config;
use crate::outbound::{AddressPolicy, Limits, Outbound, Request};
use crate::telemetry::Metrics;
use crate::telemetry::traces::{self, Finished};

/// So many requests are told of at once.
const AT_ONCE: usize = 512;
/// How long is waited for more of them.
const GATHER: Duration = Duration::from_secs(1);
/// The same while the process ends.
const LAST: Duration = Duration::from_millis(20);
const LIMITS: Limits =
    Limits { connect: Duration::from_secs(3), total: Duration::from_secs(10), body: 64 * 1024 };

/// Sends what is in the queue.
pub struct Spans {
    pub queue: Mutex<Receiver<Box<Finished>>>,
    pub configured: config::Traces,
    pub outbound: Outbound,
    pub metrics: Arc<Metrics>,
    /// This process, among all instances.
    pub instance: String,
}

#[async_trait]
impl BackgroundService for Spans {
    /// Goes on while the last requests end.
    async fn start(&self, shutdown: ShutdownWatch) {
        let policy = AddressPolicy::allowing([self.configured.host.clone()]);
        let mut queue = self.queue.lock().await;
        let (mut batch, mut is_well) = (Vec::new(), true);
        while queue.recv_many(&mut batch, AT_ONCE).await > 0 {
            let mut shutdown = shutdown.clone();
            if batch.len() < AT_ONCE && !*shutdown.borrow() {
                tokio::select! {
                    () = sleep(GATHER) => {}
                    _ = shutdown.changed() => sleep(LAST).await,
                }
                while batch.len() < AT_ONCE
                    && let Ok(more) = queue.try_recv()
                {
                    batch.push(more);
                }
            }
            let sent = self.send(&batch, &policy).await;
            let (result, count) = (if sent.is_ok() { "sent" } else { "failed" }, batch.len());
            self.metrics.traced.with_label_values(&[result]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
            batch.clear();
            match sent {
                Ok(()) if !is_well => {
                    tracing::info!(target: "postern::traces", "the trace collector takes spans again")
                }
                Err(reason) if is_well => {
                    tracing::warn!(target: "postern::traces", reason, "the trace collector takes no spans");
                }
                _ => {}
            }
            is_well = result == "sent";
        }
    }
}

impl Spans {
    async fn send(&self, batch: &[Box<Finished>], policy: &AddressPolicy) -> Result<(), String> {
        let mut request = Request::new(Method::POST, self.configured.endpoint.clone())
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"))
            .limits(LIMITS);
        request.headers.extend(self.configured.headers.clone());
        request.body =
            Some(Bytes::from(traces::request(batch, &self.configured.service_name, &self.instance)));
        let answer = self.outbound.send(request, policy).await.map_err(|error| error.to_string())?;
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(format!("status {}", answer.status.as_u16())),
        }
    }
}
