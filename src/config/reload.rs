//! What a running process takes of a configuration that was read again, and what of it waits for a restart.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::checked::Config;
use super::server::Server;
use crate::seal;

/// Sections that are used once, at the start: sockets, store, data directory, our own name towards others, traces. Of `server`
/// each key counts for itself.
const FIXED: [&str; 5] = ["server", "store", "oauth_client", "outbound", "telemetry"];
/// Of `server`, what is used with every request and every handshake.
const TAKEN: [&str; 4] = ["allowed_origins", "forwarded_header", "tls", "trusted_proxies"];

/// What was written where a change waits for a restart: a digest of each value, by its key.
pub struct Fixed(BTreeMap<String, String>);

impl Fixed {
    /// `file`: the whole file.
    pub(super) fn of(file: &Value) -> Self {
        let mut written = BTreeMap::new();
        for (section, value) in file.as_object().into_iter().flatten() {
            let within = value.as_object().into_iter().flatten();
            for (key, value) in
                within.filter(|(key, _)| FIXED.contains(&section.as_str()) && !TAKEN.contains(&key.as_str()))
            {
                written.insert(format!("{section}.{key}"), seal::digest(&value.to_string()));
            }
        }
        Self(written)
    }

    /// The keys in which the two differ.
    fn differences(&self, other: &Self) -> Vec<String> {
        let keys: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        keys.into_iter().filter(|key| self.0.get(*key) != other.0.get(*key)).cloned().collect()
    }
}

impl Config {
    /// This configuration where a running process takes a change, and the one it was started with where a change waits
    /// for a restart; with the keys of which that is so.
    pub fn over(self, running: &Config) -> (Config, Vec<String>) {
        let mut waiting = running.fixed.differences(&self.fixed);
        // Whether there is TLS at all is the listeners' matter, which stay as they are.
        let same_kind = running.server.tls.is_empty() == self.server.tls.is_empty();
        if !same_kind {
            waiting.push("server.tls".to_owned());
        }
        let listen = |config: &Config| -> Vec<_> {
            config.tcp.iter().map(|route| (route.name.clone(), route.listen.clone())).collect()
        };
        if listen(&self) != listen(running) {
            waiting.push("routes[].listen".to_owned());
        }
        let server = Server {
            allowed_origins: self.server.allowed_origins,
            trusted_proxies: self.server.trusted_proxies,
            forwarded_header: self.server.forwarded_header,
            tls: if same_kind { self.server.tls } else { running.server.tls.clone() },
            handshake: if same_kind { self.server.handshake } else { running.server.handshake.clone() },
            ..running.server.clone()
        };
        let config = Config {
            server,
            store: running.store.clone(),
            oauth_client: running.oauth_client.clone(),
            outbound: running.outbound.clone(),
            traces: running.traces.clone(),
            fixed: Fixed(running.fixed.0.clone()),
            ..self
        };
        (config, waiting)
    }
}
