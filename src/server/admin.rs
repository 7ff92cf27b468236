//! The admin listener: is it alive, is it ready, what are the figures. Nothing here needs or shows a secret, and
//! nothing of it is on the public listeners.
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::{Mutex, Notify};

use super::pulse::Pulses;
use crate::oauth::server::Authority;
use crate::telemetry::{InFlight, Metrics};

const STORE_ANSWERS: Duration = Duration::from_secs(1);
/// A worker that has done nothing for so long does nothing any more.
const STUCK: Duration = Duration::from_secs(10);

/// Serves `/healthz`, `/readyz` and `/metrics`.
pub struct Admin {
    socket: Mutex<Option<TcpListener>>,
    /// A successor answers from then on.
    succeeded: Arc<Notify>,
    state: Arc<Endpoints>,
}

struct Endpoints {
    metrics: Arc<Metrics>,
    authority: Arc<Authority>,
    draining: Arc<AtomicBool>,
    in_flight: InFlight,
    pulses: Pulses,
}

impl Admin {
    pub fn new(
        socket: TcpListener,
        metrics: Arc<Metrics>,
        authority: Arc<Authority>,
        draining: Arc<AtomicBool>,
        in_flight: InFlight,
        pulses: Pulses,
        succeeded: Arc<Notify>,
    ) -> Self {
        Self {
            socket: Mutex::new(Some(socket)),
            succeeded,
            state: Arc::new(Endpoints { metrics, authority, draining, in_flight, pulses }),
        }
    }
}

#[async_trait]
impl BackgroundService for Admin {
    /// Does not stop with the rest: while the last requests end, it is still asked whether we are ready.
    async fn start(&self, _shutdown: ShutdownWatch) {
        let Some(socket) = self.socket.lock().await.take() else {
            return;
        };
        let router = Router::new()
            .route("/healthz", get(alive))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(Arc::clone(&self.state));
        let served = match tokio::net::TcpListener::from_std(socket) {
            Ok(listener) => {
                let succeeded = Arc::clone(&self.succeeded);
                let serve = axum::serve(listener, router);
                serve.with_graceful_shutdown(async move { succeeded.notified().await }).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::error!(%error, "the admin listener has ended");
        }
    }
}

/// Whether it makes sense to wait for it. A process that is not may be killed; of the store and others it says nothing.
async fn alive(State(endpoints): State<Arc<Endpoints>>) -> Response {
    match endpoints.pulses.beat(STUCK) {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "a worker is stuck\n").into_response(),
    }
}

/// Whether it can do its work now: it listens, its workers run, its keys are known, its store answers.
async fn ready(State(endpoints): State<Arc<Endpoints>>) -> Response {
    if endpoints.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    if !endpoints.pulses.beat(STUCK) {
        return (StatusCode::SERVICE_UNAVAILABLE, "a worker is stuck\n").into_response();
    }
    match tokio::time::timeout(STORE_ANSWERS, endpoints.authority.records.store().ready()).await {
        Ok(Ok(())) if endpoints.authority.is_ready() => "ready\n".into_response(),
        Ok(Ok(())) => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "store does not answer\n").into_response(),
    }
}

async fn metrics(State(endpoints): State<Arc<Endpoints>>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        endpoints.metrics.text(endpoints.in_flight.count()),
    )
        .into_response()
}
