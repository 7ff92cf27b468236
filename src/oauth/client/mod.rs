//! We are the client: upstream MCP servers have authorization servers of their own, and each user authorizes us
//! there once. One step, one file: `prospect` says whether that is needed, `probe` asks the upstream, `discover` finds out
//! where, `register` who we are there (`ourselves`: as far as the configuration says it), `authorize` and `connect` send the
//! user and take them back, `token` talks to the token endpoint,
//! `refresh` keeps what we got fresh, `exchange` gets tokens for other tokens and `exchanged` keeps those, `redeemer` finds out who takes assertions, `flight` does what many want once, `challenged` remembers what an upstream asked for meanwhile, `visits` how often;
//! `client_key` proves us where no secret is shared, `identity` signs people in at identity providers and takes what these say of them otherwise, `provider` keeps the tokens that came with it;
//! `standing` says how a connection is doing.
mod auth_method;
pub mod authorize;
pub mod challenged;
pub mod client_key;
pub mod connect;
pub mod discover;
pub mod exchange;
pub mod exchanged;
pub mod flight;
pub mod identity;
pub mod manage;
pub mod ourselves;
pub mod probe;
pub mod prospect;
pub mod provider;
mod redeemer;
pub mod refresh;
pub mod register;
pub mod registration;
pub mod standing;
#[cfg(test)]
pub(crate) mod stub;
mod tidy;
pub mod token;
mod turn;
pub mod user_key;
mod visits;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use data_encoding::BASE32_NOPAD;
use tokio::sync::{Mutex, Semaphore};

use self::ourselves::Ourselves;
use crate::clock::Clock;
use crate::config::Config;
use crate::map::Shared;
use crate::outbound::Outbound;
use crate::outbound::kept::Kept;
use crate::route::Route;
use crate::seal;
use crate::store::record::Records;
use crate::telemetry::{InFlight, Metrics};

/// Connects users to upstreams and keeps them connected. What the steps share.
pub struct Connector {
    pub clock: Clock,
    pub records: Records,
    pub outbound: Outbound,
    metrics: Arc<Metrics>,
    in_flight: InFlight,
    ourselves: Ourselves,
    /// How long a registration is kept that no route needs.
    unused_registration_ttl: Duration,
    /// What upstreams have said to people who came for the first time.
    upstreams: prospect::Upstreams,
    /// Upstreams that ask for tokens nobody gives, by place, and since when that is known.
    unexplained: DashMap<String, SystemTime>,
    /// Our public keys as they were last published.
    published_keys: Mutex<client_key::Published>,
    /// One registration at a time per identity wanted at an issuer.
    registering: turn::Turns,
    /// Grants of which this process knows that no upstream challenge is open, with the connection that serves them.
    settled: Shared<Box<str>, Option<Arc<str>>>,
    /// Refreshes under way in this process, by connection.
    refreshing: flight::Flights<refresh::Renewed>,
    /// Exchanges under way in this process, by key.
    exchanging: flight::Flights<exchanged::Exchanged>,
    /// Where issuers exchange tokens.
    exchangers: Kept<exchange::Metadata>,
    /// Where upstreams have assertions redeemed, by upstream; or why nowhere.
    redeemers: Kept<redeemer::Redeemer>,
    /// Who may refresh at an issuer.
    turns: DashMap<String, Arc<Semaphore>>,
}

// === impl Connector ===

impl Connector {
    pub fn new(
        clock: Clock,
        records: Records,
        outbound: Outbound,
        config: &Config,
        metrics: Arc<Metrics>,
        in_flight: InFlight,
    ) -> Self {
        Self {
            clock,
            records,
            outbound,
            metrics,
            in_flight,
            ourselves: Ourselves::new(config),
            unused_registration_ttl: config.oauth_client.unused_registration_ttl,
            upstreams: prospect::Upstreams::default(),
            unexplained: DashMap::new(),
            published_keys: Mutex::default(),
            registering: turn::Turns::default(),
            settled: Shared::default(),
            refreshing: flight::Flights::default(),
            exchanging: flight::Flights::default(),
            exchangers: Kept::new(exchange::ISSUERS),
            redeemers: Kept::new(exchange::ISSUERS),
            turns: DashMap::new(),
        }
    }

    /// Counts what must not be cut off.
    pub fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// What is counted of us, and of those who work with us.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Where we are found; what we sign is from there.
    pub fn origin(&self) -> &str {
        &self.ourselves.origin
    }

    /// As [`Ourselves::has_documents`].
    pub fn has_documents(&self) -> bool {
        self.ourselves.has_documents()
    }

    /// As [`Ourselves::redirect_uri`].
    pub fn redirect_uri(&self, issuer_key: &str) -> String {
        self.ourselves.redirect_uri(issuer_key)
    }
}

/// The short name of an issuer in our URLs: the first 16 base32 characters of its SHA-256.
pub fn issuer_key(issuer: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, issuer.as_bytes());
    BASE32_NOPAD.encode(digest.as_ref()).chars().take(16).collect::<String>().to_ascii_lowercase()
}

/// The key of a user's connection at a route.
pub fn connection_key(user: &str, route: &Route) -> String {
    key_at(&route.place, user)
}

/// The key of a user's connection at a [`Route::place`].
fn key_at(place: &str, user: &str) -> String {
    seal::digest(&format!("{place}\0{user}"))
}
