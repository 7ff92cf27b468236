//! What a running process takes from its configuration anew, on SIGHUP, when all instances are asked to, or when its files
//! have changed: all of it or, where anything is wrong, nothing.
use std::sync::{Arc, Mutex, PoisonError};

use super::foundation;
use super::tls::{self, Tls};
use crate::config::{Config, Report, Source, Store};
use crate::gateway::quota::Quotas;
use crate::oauth::server::Authority;
use crate::seal::SealingKey;
use crate::telemetry::Metrics;
use crate::upstream::pool::Pools;
use crate::upstream::resolve::Resolver;

/// What is changed while it runs.
pub struct Reload {
    pub source: Arc<Source>,
    pub authority: Arc<Authority>,
    pub resolver: Arc<Resolver>,
    pub pools: Arc<Pools>,
    pub quotas: Arc<Quotas>,
    pub tls: Option<Tls>,
    pub metrics: Arc<Metrics>,
    /// One at a time: a signal and a wish of all instances may come together.
    pub turn: Mutex<()>,
}

impl Reload {
    /// Uses the configuration from the next request on. Requests under way end as they began. Returns the keys whose change
    /// waits for a restart, or why nothing has changed.
    pub fn now(&self) -> Result<Vec<String>, String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let replaced = self.replace(self.source.read());
        match &replaced {
            Ok(waiting) => {
                let mut ids = self.authority.records.sealer().key_ids();
                let others = ids.split_off(1.min(ids.len()));
                let snapshot = self.authority.snapshot();
                let routes = snapshot.config.routes.len();
                tracing::info!(target: "audit", event = "configuration", routes, seals = ids.concat(), opens = others.len(), "reloaded: the configuration is in use");
                for warning in snapshot.config.warnings.to_string().lines() {
                    tracing::warn!("{warning}");
                }
                if !waiting.is_empty() {
                    tracing::warn!(keys = waiting.join(", "), "these changes wait for a restart");
                }
                self.metrics.reloads.with_label_values(&["ok"]).inc();
                let now = crate::clock::unix_seconds(self.authority.clock.now());
                self.metrics.reloaded.set(i64::try_from(now).unwrap_or(i64::MAX));
                self.metrics.reload_failed.set(0);
            }
            Err(reason) => {
                tracing::error!(%reason, "not reloaded: the configuration is wrong, so nothing of it is used");
                self.metrics.reloads.with_label_values(&["failed"]).inc();
                self.metrics.reload_failed.set(1);
            }
        }
        replaced
    }

    /// The keys of the configuration whose change waits for a restart.
    fn replace(&self, again: Result<Config, Report>) -> Result<Vec<String>, String> {
        let config = again.map_err(|report| report.to_string())?;
        // From here on what waits for a restart is as it was: the keys belong to the store that is open.
        let before = self.authority.snapshot();
        let (config, waiting) = config.over(&before.config);
        if config.sealing_keys.is_empty() && matches!(config.store, Store::Redis(_)) {
            return Err(
                "sealing_keys is empty, and the store that is open is shared: write its keys".to_owned()
            );
        }
        let keys: Vec<SealingKey> = foundation::sealing_keys(&config).map_err(|error| error.to_string())?;
        // Checked before it is used, so it comes first: everything after it succeeds.
        self.authority.records.sealer().replace(keys).map_err(|error| error.to_string())?;
        if let Some(tls) = &self.tls {
            tls.replace(&config.server).map_err(|error| error.to_string())?;
        }
        self.authority.use_config(config);
        let snapshot = self.authority.snapshot();
        tls::show_expiries(&self.metrics, &snapshot.config.server, Some(&before.config.server));
        let routes = &snapshot.routes;
        self.resolver.keep_only(routes);
        self.pools.use_routes(routes, &snapshot.config.tcp);
        self.quotas.keep_only(routes);
        Ok(waiting)
    }
}
