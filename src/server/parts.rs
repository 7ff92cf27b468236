//! Puts the parts together, and reads from the store what must be known before the first request.
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use data_encoding::{BASE64, HEXLOWER};

use super::StartError;
use super::builder::Extensions;
use super::foundation::{Foundation, Purpose};
use crate::authn::foreign::Foreign;
use crate::background::changes::Changes;
use crate::background::spans::Spans;
use crate::background::{read_revoked, reload};
use crate::config::{self, Config};
use crate::credential::Credentials;
use crate::gateway::Gateway;
use crate::gateway::quota::Quotas;
use crate::gateway::streams::Streams;
use crate::oauth::client::identity::Providers;
use crate::oauth::server::access_token::Keys;
use crate::oauth::server::token_keys::{self, KeysError};
use crate::oauth::server::{Authority, Snapshot};
use crate::outbound::{Outbound, Settings};
use crate::route::{Challenges, Table};
use crate::seal;
use crate::store::embedded::Embedded;
use crate::telemetry::access::Log;
use crate::telemetry::audit::{self, Lines};
use crate::telemetry::{InFlight, Traces};
use crate::upstream::figures::Figures;
use crate::upstream::pool::Pools;
use crate::upstream::resolve::Resolver;
use crate::upstream::spoken::Spoken;
use crate::web;

/// Everything a server is made of.
pub struct Parts {
    pub gateway: Gateway,
    pub providers: Arc<Providers>,
    pub in_flight: InFlight,
    /// The store, where it is a file.
    pub embedded: Option<Arc<Embedded>>,
    /// What the store says from before anything was read on.
    pub changes: Changes,
    /// Sends what is traced, where anything is.
    pub spans: Option<Spans>,
    /// Which wish to read the configuration again was there already.
    pub wish: Option<u64>,
}

/// Opens the store and builds everything on it. `admin`: a socket that outgoing requests never reach.
pub fn build(
    config: Config,
    purpose: Purpose,
    admin: Option<SocketAddr>,
    extensions: Extensions,
) -> Result<Parts, StartError> {
    let other = |error: &dyn std::fmt::Display| StartError::Other(error.to_string());
    let Foundation { clock, metrics, in_flight, records, embedded, outbound, connector } =
        Foundation::lay(&config, purpose, admin)?;
    let store = Arc::clone(records.store());
    let changes = Changes::of(&*store);
    let access = Log::new(config.server.access_log);
    let audit = audit::all(Lines::new(config.server.audit_log), extensions.sinks);
    if outbound.roots().is_empty() {
        tracing::warn!(
            "no certificate authorities are installed: https upstreams cannot be reached; install ca-certificates"
        );
    }

    let routes = Table::new(&config.server.public_url, &config.routes);
    let config = Arc::new(config);
    // Until its keys are known nobody is judged.
    let snapshot =
        Snapshot { routes: Arc::new(routes), keys: Arc::new(Keys::unknown()), config: Arc::clone(&config) };
    let authority = Arc::new(Authority::new(clock.clone(), records, Arc::clone(&connector), snapshot));
    let reading =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| other(&error))?;
    let mut wish = None;
    let keys = reading.block_on(async {
        wish = Some(reload::version(&authority.records).await.map_err(KeysError::from)?);
        read_revoked(&authority).await.map_err(KeysError::from)?;
        authority.read_managed().await.map_err(KeysError::from)?;
        token_keys::load(&authority.records, &config).await
    });
    match keys {
        Ok(keys) => authority.use_keys(keys),
        // The shared store may be away for a while.
        Err(error) if error.is_passing() && matches!(config.store, config::Store::Redis(_)) => {
            tracing::error!(%error, "starting without the store");
        }
        Err(error) => return Err(StartError::Store(error.to_string())),
    }
    drop(reading);

    let process: [u8; 6] = seal::random().map_err(|error| other(&error))?;
    let (traces, spans) = match &config.traces {
        None => (None, None),
        Some(configured) => {
            let (traces, queue) =
                Traces::new(configured, Arc::clone(&metrics)).map_err(|error| other(&error))?;
            let spans = Spans {
                queue: tokio::sync::Mutex::new(queue),
                configured: configured.clone(),
                outbound: outbound.clone(),
                metrics: Arc::clone(&metrics),
                instance: HEXLOWER.encode(&process),
            };
            (Some(Arc::new(traces)), Some(spans))
        }
    };
    let streams = Streams::new(metrics.streams.clone());
    let quotas = Quotas::new(clock.clone(), store, Arc::clone(&metrics));
    let providers = Arc::new(Providers::new(outbound.clone()));
    let pools = Arc::new(Pools::new(outbound.clone(), clock.clone()));
    pools.use_routes(&authority.snapshot().routes, &config.tcp);
    metrics
        .add(Figures::new(Arc::clone(&pools)).map_err(|error| other(&error))?)
        .map_err(|error| other(&error))?;
    let challenges = config.server.acme_challenge.as_ref();
    let gateway = Gateway {
        challenges: challenges.map(|at| Challenges::new(&config.server.public_url, at)),
        router: web::router(Arc::clone(&authority), Arc::clone(&metrics), Arc::clone(&providers)),
        credentials: Credentials::new(connector, audit, extensions.strategies),
        hook: extensions.hook,
        authority,
        foreign: Arc::new(Foreign::new(outbound.clone())),
        resolver: Arc::new(Resolver::new(outbound, clock)),
        pools,
        spoken: Spoken::default(),
        metrics,
        access,
        traces,
        in_flight: in_flight.clone(),
        streams: Arc::new(streams),
        quotas: Arc::new(quotas),
        request_ids: (HEXLOWER.encode(&process), AtomicU64::new(1)),
    };
    Ok(Parts { gateway, providers, in_flight, embedded, changes, spans, wish })
}

/// The trusted certificates of upstreams as one file, where the configuration adds some. Pingora reads it once and
/// keeps its TLS sessions, which it would not for certificates given with each connection.
pub fn ca_bundle(config: &Config) -> Result<Option<String>, StartError> {
    if config.outbound.ca_certificates.is_empty() {
        return Ok(None);
    }
    let settings = Settings {
        ca_certificates: config.outbound.ca_certificates.clone(),
        forbidden: Vec::new(),
        ..Settings::default()
    };
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
    let private = DirBuilder::new().recursive(true).mode(0o700).create(&config.server.data_dir);
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
