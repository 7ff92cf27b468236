//! What others publish is fetched again before it is too old: metadata of upstreams and their authorization servers, of
//! identity providers and trusted issuers, their key sets, and secrets of ours that end. Only what somebody has used since it
//! was fetched, so nobody waits for it and an idle gateway asks nobody.
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use crate::authn::foreign::Foreign;
use crate::oauth::client::identity::Providers;
use crate::oauth::server::Authority;

const TICK: Duration = Duration::from_secs(20);

/// Renews what is about to end.
pub struct Renewal {
    pub authority: Arc<Authority>,
    pub foreign: Arc<Foreign>,
    pub providers: Arc<Providers>,
}

#[async_trait]
impl BackgroundService for Renewal {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.renew().await,
                // Nobody comes for anything new.
                _ = shutdown.changed() => return,
            }
        }
    }
}

impl Renewal {
    async fn renew(&self) {
        let (snapshot, now) = (self.authority.snapshot(), self.authority.clock.now());
        let connector = &self.authority.connector;
        let trusted = snapshot.routes.configured().flat_map(|route| &route.trusted_issuers);
        tokio::join!(
            connector.renew_discovered(&snapshot.routes),
            connector.tidy_registrations(&snapshot.routes),
            self.foreign.renew(trusted, now),
            self.providers.renew(&snapshot.config.login.providers, now),
        );
    }
}
