//! Tells systemd that we are alive, as often as it wants to hear it (`WatchdogSec=`), for as long as every worker is. A process
//! that hangs is killed by it and started again.
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use sd_notify::NotifyState;
use tokio::sync::{Mutex, watch};

use super::pulse::Pulses;
use super::shutdown::tell;
use super::upgrade::Succeeded;

/// Says it that many times where once would do.
const TIMES: u32 = 4;

pub struct Watchdog {
    pub pulses: Pulses,
    /// Before, systemd listens to the predecessor; afterwards, to the successor.
    pub is_the_one: Mutex<watch::Receiver<bool>>,
    pub succeeded: Succeeded,
}

#[async_trait]
impl BackgroundService for Watchdog {
    /// Goes on while the last requests end.
    async fn start(&self, _shutdown: ShutdownWatch) {
        let Some(patience) = sd_notify::watchdog_enabled() else { return };
        if self.is_the_one.lock().await.wait_for(|is_the_one| *is_the_one).await.is_err() {
            return;
        }
        let mut tick = tokio::time::interval((patience / TIMES).max(Duration::from_millis(1)));
        loop {
            tick.tick().await;
            // It listens to nobody else from then on.
            if self.succeeded.get().is_some() {
                return;
            }
            match self.pulses.beat(patience / 2) {
                true => tell(&[NotifyState::Watchdog]),
                false => tracing::error!("a worker is stuck: systemd's watchdog is not told otherwise"),
            }
        }
    }
}
