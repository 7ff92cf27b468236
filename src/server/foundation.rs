//! The lower half of a server, without anything that listens: store, sealing keys, outgoing requests and the OAuth
//! client on them. What the command line works with as well.
use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::SystemTime;

use secrecy::ExposeSecret;

use super::StartError;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::oauth::client::Connector;
use crate::outbound::{Outbound, Settings};
use crate::seal::{self, Sealer, SealingKey};
use crate::store::Store;
use crate::store::embedded::Embedded;
use crate::store::journal::Journal;
use crate::store::measured::Measured;
use crate::store::record::Records;
use crate::store::redis::Redis;
use crate::telemetry::{InFlight, Metrics};

/// What the store is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A command beside a server, or instead of one.
    Command,
    Server,
    /// A server that takes over from one that still works with the embedded store, which was opened then.
    Successor(SystemTime),
}

/// What everything else stands on.
pub struct Foundation {
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub in_flight: InFlight,
    pub records: Records,
    /// The store, where it is a file.
    pub embedded: Option<Arc<Embedded>>,
    pub outbound: Outbound,
    pub connector: Arc<Connector>,
}

impl Foundation {
    /// Opens the store. `admin`: a socket that outgoing requests never reach.
    pub fn lay(config: &Config, purpose: Purpose, admin: Option<SocketAddr>) -> Result<Self, StartError> {
        let clock = Clock::system();
        let metrics = Metrics::new().map(Arc::new).map_err(|error| StartError::Other(error.to_string()))?;
        let in_flight = InFlight::default();
        let sealer = Arc::new(sealer(config)?);
        let (mut store, embedded) = store(config, purpose, &clock)?;
        if purpose != Purpose::Command {
            store = Arc::new(Measured::new(store, Arc::clone(&metrics)));
        }
        // The journal belongs to the one running server of a data directory.
        let journal = match &config.store {
            config::Store::Redis(_) if purpose != Purpose::Command => {
                Journal::open(&config.server.data_dir, clock.clone())
            }
            _ => Ok(Journal::default()),
        };
        let journal = journal.map_err(StartError::DataDir)?;
        let records = Records::new(store, sealer).with_journal(journal);
        let settings = Settings {
            ca_certificates: config.outbound.ca_certificates.clone(),
            forbidden: admin.into_iter().collect(),
            name_servers: config.outbound.name_servers.clone(),
        };
        let outbound = Outbound::new(settings).map_err(|error| StartError::Outbound(error.to_string()))?;
        let outbound = outbound.counted(Arc::<Metrics>::clone(&metrics));
        let connector = Arc::new(Connector::new(
            clock.clone(),
            records.clone(),
            outbound.clone(),
            config,
            Arc::clone(&metrics),
            in_flight.clone(),
        ));
        Ok(Self { clock, metrics, in_flight, records, embedded, outbound, connector })
    }
}

type Opened = (Arc<dyn Store>, Option<Arc<Embedded>>);

fn store(config: &Config, purpose: Purpose, clock: &Clock) -> Result<Opened, StartError> {
    let failed = |error: &dyn std::fmt::Display| StartError::Store(error.to_string());
    Ok(match &config.store {
        config::Store::Embedded => {
            let (data_dir, clock) = (&config.server.data_dir, clock.clone());
            let opened = match purpose {
                Purpose::Successor(since) => Embedded::open_after(data_dir, clock, since),
                Purpose::Server | Purpose::Command => Embedded::open(data_dir, clock),
            };
            let embedded = Arc::new(opened.map_err(|error| failed(&error))?);
            (Arc::clone(&embedded) as Arc<dyn Store>, Some(embedded))
        }
        config::Store::Redis(redis) => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&config.server.data_dir)
                .map_err(StartError::DataDir)?;
            (Arc::new(Redis::open(redis, clock.clone()).map_err(|error| failed(&error))?), None)
        }
    })
}

fn sealer(config: &Config) -> Result<Sealer, StartError> {
    Sealer::new(sealing_keys(config)?).map_err(|error| StartError::Seal(error.to_string()))
}

/// The configured sealing keys, or the one in the data directory.
pub fn sealing_keys(config: &Config) -> Result<Vec<SealingKey>, StartError> {
    let seal = |error: &dyn std::fmt::Display| StartError::Seal(error.to_string());
    match config.sealing_keys.as_slice() {
        [] => Ok(vec![seal::load_or_generate(&config.server.data_dir).map_err(StartError::DataDir)?]),
        configured => {
            let keys = configured.iter().map(|key| SealingKey::new(&key.id, *key.key.expose_secret()));
            keys.collect::<Result<Vec<_>, _>>().map_err(|error| seal(&error))
        }
    }
}
