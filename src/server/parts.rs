//! Puts the parts together, and reads from the store what must be known before the first request.
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tracing_appender::non_blocking::WorkerGuard;

use super::StartError;
use crate::authn::Revoked;
use crate::clock::Clock;
use crate::config::Config;
use crate::credential::Connections;
use crate::gateway::Gateway;
use crate::oauth::client::Connector;
use crate::oauth::server::access_token::Keys;
use crate::oauth::server::grant::remember_revoked;
use crate::oauth::server::{Authority, Snapshot};
use crate::outbound::{Outbound, Settings};
use crate::route::Table;
use crate::seal::{self, Sealer, SealingKey};
use crate::store::embedded::Embedded;
use crate::store::record::{Records, Typed};
use crate::store::{Change, Kind, Put, Store};
use crate::telemetry::access::Log;
use crate::telemetry::{InFlight, Metrics};
use crate::upstream::resolve::Resolver;
use crate::web;

/// Everything a server is made of.
pub struct Parts {
    pub gateway: Gateway,
    pub in_flight: InFlight,
    /// What the store says from before anything was read on.
    pub changes: broadcast::Receiver<Change>,
    /// Writes out the rest of the access log when dropped.
    pub flush: Option<WorkerGuard>,
}

/// The keys of access tokens (store record), made on first start.
#[derive(Serialize, Deserialize)]
struct TokenKeys {
    keys: Vec<String>,
}

impl Typed for TokenKeys {
    const KIND: Kind = Kind::Key;
}

const TOKEN_KEYS: &str = "access-token";
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Opens the store and builds everything on it. `admin`: a socket that outgoing requests never reach.
pub fn build(config: Config, admin: Option<SocketAddr>) -> Result<Parts, StartError> {
    let clock = Clock::system();
    let other = |error: &dyn std::fmt::Display| StartError::Other(error.to_string());
    let metrics = Arc::new(Metrics::new().map_err(|error| other(&error))?);
    let in_flight = InFlight::default();
    let (access, flush) = Log::new(config.server.access_log);
    let sealer = Arc::new(sealer(&config)?);
    let store: Arc<dyn Store> = Arc::new(
        Embedded::open(&config.server.data_dir, clock.clone())
            .map_err(|error| StartError::Store(error.to_string()))?,
    );
    let changes = store.subscribe();
    let records = Records::new(Arc::clone(&store), sealer);
    let settings = Settings {
        ca_certificates: config.outbound.ca_certificates.clone(),
        forbidden: admin.into_iter().collect(),
    };
    let outbound = Outbound::new(settings).map_err(|error| StartError::Outbound(error.to_string()))?;
    if outbound.roots().is_empty() {
        tracing::warn!(
            "no certificate authorities are installed: https upstreams cannot be reached; install ca-certificates"
        );
    }

    let revoked = Revoked::default();
    let reading =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| other(&error))?;
    let keys = reading.block_on(async {
        for grant in
            store.tombstones(Kind::Grant).await.map_err(|error| StartError::Store(error.to_string()))?
        {
            revoked.insert(grant, clock.now() + remember_revoked(config.oauth_server.access_token_ttl));
        }
        token_keys(&records).await
    })?;
    drop(reading);

    let connector = Arc::new(Connector::new(
        clock.clone(),
        records.clone(),
        outbound.clone(),
        &config,
        Arc::clone(&metrics),
        in_flight.clone(),
    ));
    let snapshot = Snapshot { routes: Table::new(&config.server.public_url, &config.routes), keys, config };
    let authority = Arc::new(Authority::new(clock.clone(), records, Arc::clone(&connector), snapshot));
    let process: [u8; 6] = seal::random().map_err(|error| other(&error))?;
    let gateway = Gateway {
        router: web::router(Arc::clone(&authority), Arc::clone(&metrics)),
        connections: Arc::new(Connections::new(connector)),
        authority,
        revoked,
        resolver: Arc::new(Resolver::new(outbound, clock)),
        metrics,
        access,
        in_flight: in_flight.clone(),
        request_ids: (HEXLOWER.encode(&process), AtomicU64::new(1)),
    };
    Ok(Parts { gateway, in_flight, changes, flush })
}

fn sealer(config: &Config) -> Result<Sealer, StartError> {
    let seal = |error: &dyn std::fmt::Display| StartError::Seal(error.to_string());
    let keys = match config.sealing_keys.as_slice() {
        [] => vec![seal::load_or_generate(&config.server.data_dir).map_err(StartError::DataDir)?],
        configured => {
            let keys = configured.iter().map(|key| SealingKey::new(&key.id, *key.key.expose_secret()));
            keys.collect::<Result<Vec<_>, _>>().map_err(|error| seal(&error))?
        }
    };
    Sealer::new(keys).map_err(|error| seal(&error))
}

/// Reads the keys of access tokens, or makes them. Sealed keys that do not open are never replaced: that would sign
/// everybody out over a mistake in the configuration.
async fn token_keys(records: &Records) -> Result<Keys, StartError> {
    for _ in 0..2 {
        let stored = records.get::<TokenKeys>(TOKEN_KEYS).await;
        let stored = stored.map_err(|error| {
            StartError::Store(format!(
                "{error}; the sealing key is another one than the store was written with"
            ))
        })?;
        if let Some(stored) = stored {
            let keys = stored
                .value
                .keys
                .iter()
                .map(|key| BASE64URL_NOPAD.decode(key.as_bytes()).ok()?.try_into().ok());
            let keys: Option<Vec<[u8; 32]>> = keys.collect();
            return keys
                .and_then(|keys| Keys::new(&keys).ok())
                .ok_or_else(|| StartError::Store("the keys of access tokens are damaged".into()));
        }
        let fresh: [u8; 32] = seal::random().map_err(|error| StartError::Seal(error.to_string()))?;
        let made = TokenKeys { keys: vec![BASE64URL_NOPAD.encode(&fresh)] };
        // Another instance may be faster: then its keys count.
        let put: Put = records
            .put(TOKEN_KEYS, 0, &made, FOREVER)
            .await
            .map_err(|error| StartError::Store(error.to_string()))?;
        tracing::info!(made = put == Put::Stored, "keys of access tokens");
    }
    Err(StartError::Store("the keys of access tokens could not be stored".into()))
}

/// The trusted certificates of upstreams as one file, where the configuration adds some. Pingora reads it once and
/// keeps its TLS sessions, which it would not for certificates given with each connection.
pub fn ca_bundle(config: &Config) -> Result<Option<String>, StartError> {
    if config.outbound.ca_certificates.is_empty() {
        return Ok(None);
    }
    let settings =
        Settings { ca_certificates: config.outbound.ca_certificates.clone(), forbidden: Vec::new() };
    let outbound = Outbound::new(settings).map_err(|error| StartError::Outbound(error.to_string()))?;
    let mut bundle = String::new();
    for root in outbound.roots() {
        bundle.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in BASE64.encode(root).as_bytes().chunks(64) {
            bundle.push_str(&String::from_utf8_lossy(line));
            bundle.push('\n');
        }
        bundle.push_str("-----END CERTIFICATE-----\n");
    }
    let private = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.server.data_dir);
    private.map_err(StartError::DataDir)?;
    let path = config.server.data_dir.join("ca-bundle.pem");
    replace(&path, bundle.as_bytes()).map_err(StartError::DataDir)?;
    Ok(Some(path.to_string_lossy().into_owned()))
}

/// Writes a whole file that is the owner's alone. Whoever reads it meanwhile finds the old one or the new one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let unique: [u8; 6] = seal::random().map_err(io::Error::other)?;
    let temporary = path.with_extension(HEXLOWER.encode(&unique));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let replaced = file.write_all(content).and_then(|()| std::fs::rename(&temporary, path));
    if replaced.is_err() {
        std::fs::remove_file(&temporary).ok();
    }
    replaced
}
