//! The end. Pingora sleeps its whole grace period whatever happens, and counts it in whole seconds, so this leaves as
//! soon as nothing is under way, and at the drain timeout in any case.
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ExecutionPhase, ShutdownSignal, ShutdownSignalWatch};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, broadcast, oneshot};

use super::upgrade::{LINGER, Succeeded};
use crate::store::Store;
use crate::telemetry::{InFlight, output};

const POLL: Duration = Duration::from_millis(10);
/// An answer over HTTP/2 is written by its connection, a moment after the request that made it has ended.
const QUIET: Duration = Duration::from_millis(100);

/// SIGTERM and SIGQUIT drain, SIGINT ends at once; SIGHUP has what can be read again read again, SIGUSR2 has another process
/// take over.
///
/// Heard from [`Signals::listen`] on: Pingora asks only once everything is up, and a signal that came between the first
/// answer and that moment would end the process as if nobody had caught it.
pub struct Signals(Mutex<Option<oneshot::Receiver<ShutdownSignal>>>);

impl Signals {
    /// From here on no signal ends the process by itself. What comes before Pingora asks is kept for it.
    /// `ends` is called before anything ends, and `leave` ends it as SIGTERM does, once another process has taken over.
    pub fn listen(
        hang_up: impl Fn() + Send + 'static,
        upgrade: impl Fn() + Send + 'static,
        leave: Arc<Notify>,
        ends: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let kinds = [
            SignalKind::terminate(),
            SignalKind::quit(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
            SignalKind::user_defined2(),
        ];
        let [terminate, quit, interrupt, hangup, user2] = kinds.map(signal);
        let streams = [terminate?, quit?, interrupt?, hangup?, user2?];
        drop(inside);
        let (told, asked) = oneshot::channel();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let kind = runtime.block_on(first(streams, hang_up, upgrade, &leave));
            ends();
            told.send(kind).ok();
        })?;
        Ok(Self(Mutex::new(Some(asked))))
    }
}

/// The first signal that ends the process.
async fn first(
    [mut terminate, mut quit, mut interrupt, mut hangup, mut user2]: [Signal; 5],
    hang_up: impl Fn(),
    upgrade: impl Fn(),
    leave: &Notify,
) -> ShutdownSignal {
    let (name, kind) = loop {
        tokio::select! {
            _ = terminate.recv() => break ("SIGTERM", ShutdownSignal::GracefulTerminate),
            _ = quit.recv() => break ("SIGQUIT", ShutdownSignal::GracefulTerminate),
            _ = interrupt.recv() => break ("SIGINT", ShutdownSignal::FastShutdown),
            _ = hangup.recv() => {
                tracing::info!(signal = "SIGHUP", "reading the configuration again");
                hang_up();
            }
            _ = user2.recv() => upgrade(),
            () = leave.notified() => break ("none, another process serves", ShutdownSignal::GracefulTerminate),
        }
    };
    tracing::info!(signal = name, "stopping");
    kind
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match asked {
            Some(asked) => asked.await.unwrap_or(ShutdownSignal::GracefulTerminate),
            None => std::future::pending().await,
        }
    }
}

/// Says when we serve, tells systemd when we stop, and ends the process once everything in flight is done, or after
/// `drain_timeout`. Returns a flag that is true from the moment of stopping on.
pub fn watch(
    mut phases: broadcast::Receiver<ExecutionPhase>,
    serves: impl FnOnce() -> io::Result<()> + Send + 'static,
    succeeded: Succeeded,
    in_flight: InFlight,
    drain_timeout: Duration,
    store: Arc<dyn Store>,
) -> Arc<AtomicBool> {
    let draining = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&draining);
    std::thread::spawn(move || {
        let mut serves = Some(serves);
        loop {
            match phases.blocking_recv() {
                Ok(ExecutionPhase::Running) => {
                    if let Some(Err(error)) = serves.take().map(|serves| serves()) {
                        tracing::error!(%error, "the process that was to be succeeded has gone or goes on");
                        store.close();
                        end(1);
                    }
                }
                Ok(ExecutionPhase::GracefulTerminate | ExecutionPhase::ShutdownStarted) => {
                    flag.store(true, Ordering::Relaxed);
                    // Of a service that goes on in another process, this is not the end.
                    if succeeded.get().is_none() {
                        tell(&[NotifyState::Stopping]);
                    }
                }
                Ok(ExecutionPhase::ShutdownGracePeriod) => {
                    flag.store(true, Ordering::Relaxed);
                    let least = succeeded.get().map_or(Duration::ZERO, |_| LINGER + LINGER / 4);
                    drain(&in_flight, least, drain_timeout);
                    store.close();
                    end(0);
                }
                // Pingora would end its workers one after the other, and one that still accepts while the one that listens has
                // ended spins on the error for ever.
                Ok(ExecutionPhase::ShutdownRuntimes) => {
                    store.close();
                    end(0);
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    draining
}

/// Returns when nothing has been under way for a moment and `least` is over, or when all the time is over.
fn drain(in_flight: &InFlight, mut least: Duration, mut left: Duration) {
    let mut quiet = Duration::ZERO;
    while quiet < QUIET || !least.is_zero() {
        let under_way = in_flight.count();
        if left.is_zero() {
            if under_way > 0 {
                tracing::warn!(under_way, "the drain timeout is over: what is left is cut");
            }
            return;
        }
        let pause = POLL.min(left);
        std::thread::sleep(pause);
        left -= pause;
        least = least.saturating_sub(pause);
        quiet = if under_way == 0 { quiet + pause } else { Duration::ZERO };
    }
}

/// Tells systemd, if it is there.
pub fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "not told to systemd");
    }
}

#[expect(clippy::disallowed_methods, reason = "nothing is in flight and what was to be written is written")]
fn end(code: i32) -> ! {
    tracing::info!("stopped");
    output::flush();
    std::process::exit(code)
}
