//! We are the authorization server: MCP clients register, send their user, and get tokens of ours. One endpoint, one
//! file. Everything here works on plain types; `web` puts HTTP, cookies and pages around it.
pub mod access_token;
pub mod attributes;
pub mod authenticate;
pub mod authorize;
pub mod block;
mod claim;
pub mod client;
pub mod code;
pub mod consent;
pub mod grant;
pub mod introspect;
pub mod jag;
pub mod jwt;
pub mod machine;
pub mod metadata;
pub mod params;
pub mod quota;
pub mod redirect;
pub mod refusal;
pub mod register;
pub mod remembered;
pub mod revoked;
pub mod service;
pub mod standing;
pub mod token;
pub mod token_keys;
pub mod userinfo;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::config::Config;
use crate::jose::remote::KeySets;
use crate::managed::{self, Directory};
use crate::oauth::client::Connector;
use crate::route::Table;
use crate::store::Kind;
use crate::store::record::{RecordError, Records};

/// What one request sees of configuration, routes and keys: taken once, never changing under it.
#[derive(Clone)]
pub struct Snapshot {
    pub config: Arc<Config>,
    pub routes: Arc<Table>,
    pub keys: Arc<access_token::Keys>,
}

/// The authorization server: everything its endpoints share.
pub struct Authority {
    pub clock: Clock,
    pub records: Records,
    pub connector: Arc<Connector>,
    pub documents: client::document::Documents,
    pub key_sets: KeySets,
    assertions: quota::Each<String>,
    pub revoked: revoked::Revoked,
    pub services: service::Services,
    /// What identity providers say of users, in memory.
    pub attributes: attributes::Remembered,
    /// Managed connections, in memory.
    pub directory: Directory,
    /// Another configuration may want other keys of tokens: somebody who can read the store is to look.
    pub rekey: Notify,
    snapshot: ArcSwap<Snapshot>,
}

// === impl Snapshot ===

impl Snapshot {
    /// The issuer identifier, as in metadata and every `iss` (RFC 8414 §2, RFC 9207).
    pub fn issuer(&self) -> &str {
        self.config.server.public_url.origin()
    }
}

// === impl Authority ===

impl Authority {
    pub fn new(clock: Clock, records: Records, connector: Arc<Connector>, snapshot: Snapshot) -> Self {
        Self {
            clock,
            records,
            documents: client::document::Documents::default(),
            assertions: authenticate::assertions(),
            key_sets: KeySets::new(connector.outbound.clone()),
            revoked: revoked::Revoked::default(),
            services: service::Services::default(),
            attributes: attributes::Remembered::default(),
            directory: Directory::default(),
            rekey: Notify::new(),
            snapshot: ArcSwap::from_pointee(snapshot),
            connector,
        }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Whether tokens can be judged: not before their keys are known.
    pub fn is_ready(&self) -> bool {
        self.snapshot.load().keys.is_known()
    }

    /// Whether this is a user of ours who is not kept out.
    pub fn admits(&self, snapshot: &Snapshot, user: &str) -> bool {
        self.standing(snapshot).admits(user)
    }

    /// From the next request on this configuration and its routes count.
    pub fn use_config(&self, config: Config) {
        let configured = Table::new(&config.server.public_url, &config.routes);
        let config = Arc::new(config);
        self.snapshot.rcu(|snapshot| {
            // Inside, so that what changes meanwhile is in it: then this is done again.
            let routes = match managed::Around::of(&config) {
                Some(around) => configured.clone().with_managed(self.directory.routes(around)),
                None => configured.clone(),
            };
            Snapshot {
                config: Arc::clone(&config),
                routes: Arc::new(routes),
                keys: Arc::clone(&snapshot.keys),
            }
        });
        self.revoked.taken_back();
        self.rekey.notify_one();
    }

    /// Managed connections, all of them, as the store has them now.
    pub async fn read_managed(&self) -> Result<(), RecordError> {
        self.directory.read(&self.records).await?;
        self.snapshot.rcu(|snapshot| {
            let around = managed::Around::of(&snapshot.config);
            let routes = around.map(|around| {
                Arc::new(Table::clone(&snapshot.routes).with_managed(self.directory.routes(around)))
            });
            Snapshot {
                routes: routes.unwrap_or_else(|| Arc::clone(&snapshot.routes)),
                ..Snapshot::clone(snapshot)
            }
        });
        self.revoked.taken_back();
        Ok(())
    }

    /// The same for one record, from the next request on.
    pub async fn managed_changed(&self, kind: Kind, key: &str) -> Result<(), RecordError> {
        let affected = self.directory.changed(&self.records, kind, key).await?;
        if affected.is_empty() {
            return Ok(());
        }
        self.snapshot.rcu(|snapshot| {
            let Some(around) = managed::Around::of(&snapshot.config) else {
                return Snapshot::clone(snapshot);
            };
            let changed = affected.iter().map(|id| (id.clone(), self.directory.route(id, around)));
            Snapshot { routes: Arc::new(snapshot.routes.with(changed)), ..Snapshot::clone(snapshot) }
        });
        self.revoked.taken_back();
        Ok(())
    }

    /// From the next request on these keys count.
    pub fn use_keys(&self, keys: access_token::Keys) {
        let keys = Arc::new(keys);
        self.snapshot.rcu(|snapshot| Snapshot { keys: Arc::clone(&keys), ..Snapshot::clone(snapshot) });
    }
}
