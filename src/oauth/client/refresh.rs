//! Keeping a connection's tokens fresh.
//!
//! A refresh token that rotates can be redeemed once, so: one redeemer at a time, its intent on disk before the token
//! leaves, the answer on disk before anybody uses it, losers harmless, and a passing failure never costs the
//! connection. The order is that of `Store::acquire`, `sent`, `commit`; this file walks it and classifies what the
//! authorization server says. The work runs in a task of its own: a client that hangs up cannot lose an answer.
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Connector;
use super::connect::CONNECTION_TTL;
use super::register::Registration;
use super::token::{self, Outcome, Presented, TokenResponse};
use crate::route::Route;
use crate::seal;
use crate::store::record::{RecordError, Tokens};
use crate::store::{Acquired, Committed, Connection, Release};

/// Longer than the call it covers (8 s), shorter than the grace that authorization servers give (30 s).
const LEASE: Duration = Duration::from_secs(12);
/// How long a caller waits for another instance.
const PATIENCE: Duration = Duration::from_secs(13);
const POLL: Duration = Duration::from_millis(50);
const BACKOFF: Duration = Duration::from_secs(2);
/// When the configuration is at fault, asking often does not help.
const BACKOFF_CONFIG: Duration = Duration::from_secs(30);

/// What came of a refresh.
#[derive(Clone)]
pub enum Renewed {
    Tokens(Arc<(Connection, Tokens)>),
    /// Only the user can help.
    NeedsUser,
    /// Nothing is lost, but there is no newer token now.
    Later {
        retry_after: Duration,
    },
}

/// The tokens that a caller cannot use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outdated {
    pub incarnation: Arc<str>,
    pub generation: u64,
}

impl Outdated {
    /// Whether a connection has still nothing better. Generations count anew with every authorization by the user, so
    /// they compare within one incarnation only.
    fn covers(&self, connection: &Connection) -> bool {
        connection.incarnation == *self.incarnation && connection.generation <= self.generation
    }
}

impl Connector {
    /// Tokens newer than the outdated ones. Concurrent callers share one attempt.
    pub async fn renew(self: &Arc<Self>, route: &Arc<Route>, key: &str, outdated: &Outdated) -> Renewed {
        // A shared attempt may have begun for older tokens than ours; then there is one more.
        for _ in 0..2 {
            let mut outcome = self.flight(route, key, outdated);
            let renewed = match outcome.wait_for(Option::is_some).await {
                Ok(renewed) => renewed.clone(),
                Err(_) => None,
            };
            match renewed {
                Some(Renewed::Tokens(tokens)) if outdated.covers(&tokens.0) => {}
                Some(renewed) => return renewed,
                None => break,
            }
        }
        Renewed::Later { retry_after: BACKOFF }
    }

    fn flight(
        self: &Arc<Self>,
        route: &Arc<Route>,
        key: &str,
        outdated: &Outdated,
    ) -> watch::Receiver<Option<Renewed>> {
        match self.refreshing.entry(key.to_owned()) {
            dashmap::Entry::Occupied(flight) => flight.get().clone(),
            dashmap::Entry::Vacant(vacant) => {
                let (sender, receiver) = watch::channel(None);
                vacant.insert(receiver.clone());
                let (this, route, key, outdated) =
                    (Arc::clone(self), Arc::clone(route), key.to_owned(), outdated.clone());
                tokio::spawn(async move {
                    let _under_way = this.in_flight.start();
                    let landing = Landing { connector: &this, key: &key };
                    let renewed = this.attempt(&route, &key, &outdated).await;
                    drop(landing);
                    let _ = sender.send(Some(renewed));
                });
                receiver
            }
        }
    }

    async fn attempt(&self, route: &Route, key: &str, outdated: &Outdated) -> Renewed {
        let Ok(id) = seal::name() else {
            return Renewed::Later { retry_after: BACKOFF };
        };
        let give_up = self.clock.now() + PATIENCE;
        loop {
            match self.records.store().acquire(key, &id, outdated.generation, LEASE).await {
                Ok(Acquired::Owner { connection, .. }) if !outdated.covers(&connection) => {
                    // The user has authorized anew meanwhile: what is there has not been tried yet.
                    let now = Release::Transient { not_before: self.clock.now() };
                    self.release(key, &id, connection.fence, now).await;
                    return self.read(key, connection);
                }
                Ok(Acquired::Owner { connection, .. }) => {
                    return self.redeem_refresh_token(route, key, connection).await;
                }
                Ok(Acquired::Fresh(connection)) => return self.read(key, connection),
                Ok(Acquired::Wait { .. }) if self.clock.now() < give_up => tokio::time::sleep(POLL).await,
                Ok(Acquired::Wait { .. }) => return Renewed::Later { retry_after: BACKOFF },
                Ok(Acquired::Backoff { until }) => {
                    return Renewed::Later {
                        retry_after: until.duration_since(self.clock.now()).unwrap_or_default(),
                    };
                }
                Ok(Acquired::NeedsReauth | Acquired::Absent) => return Renewed::NeedsUser,
                // No store, no redemption.
                Err(error) => {
                    tracing::warn!(target: "postern::refresh", %error, "store unavailable, not refreshing");
                    return Renewed::Later { retry_after: BACKOFF };
                }
            }
        }
    }

    async fn redeem_refresh_token(&self, route: &Route, key: &str, acquired: Connection) -> Renewed {
        let Some(attempt) = acquired.attempt.clone() else {
            return Renewed::Later { retry_after: BACKOFF };
        };
        let release = async |outcome: Release| self.release(key, &attempt.id, attempt.fence, outcome).await;
        let later = |wait: Duration| Release::Transient { not_before: self.clock.now() + wait };
        let tokens = match self.records.tokens(key, &acquired) {
            Ok(tokens) => tokens,
            Err(_) => {
                release(Release::NeedsReauth).await;
                return self.outcome("unreadable", Renewed::NeedsUser);
            }
        };
        let Some(refresh_token) = &tokens.refresh_token else {
            release(Release::NeedsReauth).await;
            return self.outcome("no_refresh_token", Renewed::NeedsUser);
        };
        let registration = match self.records.get::<Registration>(&tokens.registration).await {
            Ok(Some(registration)) => registration.value,
            // Ours to lose, not the user's: nothing is given up over it.
            Ok(None) | Err(RecordError::Unreadable) => {
                tracing::error!(target: "postern::refresh", issuer = %tokens.issuer, "our registration at this issuer is missing or unreadable");
                release(later(BACKOFF_CONFIG)).await;
                return self.outcome("no_registration", Renewed::Later { retry_after: BACKOFF_CONFIG });
            }
            Err(_) => {
                release(later(BACKOFF)).await;
                return self.outcome("store", Renewed::Later { retry_after: BACKOFF });
            }
        };
        if !matches!(self.records.store().sent(key, &attempt.id, attempt.fence).await, Ok(true)) {
            return self.outcome("store", Renewed::Later { retry_after: BACKOFF });
        }
        let grant = Presented::Refresh { refresh_token };
        let now = self.clock.now();
        let answer = token::request(
            &self.outbound,
            &route.upstream.policy,
            &tokens.token_endpoint,
            &registration,
            grant,
            &tokens.resource,
            now,
        )
        .await;
        match answer {
            Outcome::Success(response) => self.persist(key, &acquired, merged(tokens, response, now)).await,
            Outcome::CleanTransient { retry_after } => {
                let wait = retry_after.unwrap_or(BACKOFF).max(BACKOFF);
                release(later(wait)).await;
                self.outcome("transient", Renewed::Later { retry_after: wait })
            }
            Outcome::Ambiguous => {
                release(Release::Ambiguous { not_before: self.clock.now() + BACKOFF }).await;
                self.outcome("ambiguous", Renewed::Later { retry_after: BACKOFF })
            }
            Outcome::Dead => {
                release(Release::NeedsReauth).await;
                self.outcome("dead", Renewed::NeedsUser)
            }
            Outcome::Config(error) => {
                tracing::error!(target: "postern::refresh", route = %route.name, issuer = %tokens.issuer, %error, "the authorization server refuses this client: check its registration");
                release(later(BACKOFF_CONFIG)).await;
                self.outcome("config", Renewed::Later { retry_after: BACKOFF_CONFIG })
            }
        }
    }

    /// Ends an attempt; what the store cannot be told ends with its lease.
    async fn release(&self, key: &str, id: &str, fence: u64, outcome: Release) {
        if let Err(error) = self.records.store().release(key, id, fence, outcome).await {
            tracing::warn!(target: "postern::refresh", %error, "attempt not released, its lease will end");
        }
    }

    /// Nobody sees the new tokens before they are on disk.
    async fn persist(&self, key: &str, acquired: &Connection, tokens: Tokens) -> Renewed {
        let give_up = self.clock.now() + LEASE;
        loop {
            match self.records.commit(key, acquired, &tokens, CONNECTION_TTL).await {
                Ok(Committed::Stored { generation }) => {
                    let connection = Connection { generation, ..acquired.clone() };
                    return self.outcome("success", Renewed::Tokens(Arc::new((connection, tokens))));
                }
                // Disconnected or connected anew meanwhile: what we got is not wanted any more.
                Ok(Committed::Stale) => {
                    return self.outcome(
                        "stale",
                        match self.records.connection(key).await {
                            Ok(Some(current)) => Renewed::Tokens(Arc::new(current)),
                            Ok(None) => Renewed::NeedsUser,
                            Err(_) => Renewed::Later { retry_after: BACKOFF },
                        },
                    );
                }
                Err(error) if self.clock.now() < give_up => {
                    tracing::warn!(target: "postern::refresh", %error, "new tokens not stored yet, trying again");
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => {
                    tracing::error!(target: "postern::refresh", %error, "new tokens could not be stored");
                    return self.outcome("store", Renewed::Later { retry_after: BACKOFF });
                }
            }
        }
    }

    fn read(&self, key: &str, connection: Connection) -> Renewed {
        match self.records.tokens(key, &connection) {
            Ok(tokens) => self.outcome("adopted", Renewed::Tokens(Arc::new((connection, tokens)))),
            Err(_) => self.outcome("unreadable", Renewed::NeedsUser),
        }
    }

    fn outcome(&self, outcome: &'static str, renewed: Renewed) -> Renewed {
        self.metrics.refreshes.with_label_values(&[outcome]).inc();
        tracing::info!(target: "postern::refresh", outcome, "upstream token refresh");
        renewed
    }
}

/// Takes the attempt off the board however it ends.
struct Landing<'a> {
    connector: &'a Connector,
    key: &'a str,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.connector.refreshing.remove(self.key);
    }
}

/// The tokens after a refresh: what the answer leaves out stays (RFC 6749 §6). An access token that cannot be sent
/// counts as long expired, so that the old one is not sent either, but the refresh token beside it is kept.
fn merged(old: Tokens, response: TokenResponse, now: std::time::SystemTime) -> Tokens {
    let expires_at = if response.usable {
        response.expires_in.map(|lifetime| now + lifetime)
    } else {
        Some(std::time::UNIX_EPOCH)
    };
    Tokens {
        access_token: if response.usable { response.access_token } else { old.access_token },
        refresh_token: response.refresh_token.or(old.refresh_token),
        expires_at,
        obtained_at: now,
        scopes: response.scope.unwrap_or(old.scopes),
        ..old
    }
}
