//! Keeping a connection's tokens fresh.
//!
//! A refresh token that rotates can be redeemed once, so: one redeemer at a time in the whole cluster, its intent
//! durable before the token leaves, the answer durable before anybody uses it, losers harmless, and a passing failure
//! never costs the connection. The order is that of `Store::acquire`, `sent`, `commit`; this file is the way there,
//! [`redeem`] what an owner does. The work runs in a task of its own: a client that hangs up cannot lose an answer.
mod event;
mod profile;
mod redeem;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::event::Step;
use super::Connector;
use crate::route::Route;
use crate::store::record::{RecordError, Tokens};
use crate::store::{Acquired, Connection, Release, Released, State};
use crate::{failpoint, seal};

/// Longer than what an owner may take ([`redeem::SEND_BY`] and the eight seconds of a request), shorter than the grace that authorization servers give
/// (30 s).
const LEASE: Duration = Duration::from_secs(12);
/// How long a caller waits for another instance, or for its turn.
const PATIENCE: Duration = Duration::from_secs(13);
/// How often a waiting instance looks: more and more seldom.
const POLL: Duration = Duration::from_millis(25);
const POLL_MAX: Duration = Duration::from_millis(250);
const BACKOFF: Duration = Duration::from_secs(2);
/// Refreshes that one authorization server gets from this instance at once; the rest waits in line.
const PER_ISSUER: usize = 32;
/// So many issuers, and those where nobody waits are forgotten: upstreams may name new ones without end.
const ISSUERS: usize = 10_000;

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

    /// Whether these tokens, useless as they are, are newer than those of the connection.
    fn is_newer_than(&self, connection: &Connection) -> bool {
        connection.incarnation == *self.incarnation && connection.generation < self.generation
    }
}

impl Connector {
    /// Tokens newer than the outdated ones. Concurrent callers share one attempt.
    pub async fn renew(self: &Arc<Self>, route: &Arc<Route>, key: &str, outdated: &Outdated) -> Renewed {
        // A shared attempt may have begun for older tokens than ours; then there is one more.
        for _ in 0..2 {
            let attempt = || {
                let this = Arc::clone(self);
                let (route, key, outdated) = (Arc::clone(route), key.to_owned(), outdated.clone());
                async move { this.attempt(&route, &key, &outdated).await }
            };
            match self.refreshing.join(key, &self.in_flight, attempt).await {
                Some(Renewed::Tokens(tokens)) if outdated.covers(&tokens.0) => {}
                Some(renewed) => return renewed,
                None => break,
            }
        }
        Renewed::Later { retry_after: BACKOFF }
    }

    async fn attempt(&self, route: &Route, key: &str, outdated: &Outdated) -> Renewed {
        let Ok(id) = seal::name() else {
            return Renewed::Later { retry_after: BACKOFF };
        };
        let issuer = match self.records.connection(key).await {
            Ok(Some(found)) if found.0.state != State::NeedsReauth && !outdated.covers(&found.0) => {
                return self.outcome("adopted", Renewed::Tokens(Arc::new(found)));
            }
            Ok(Some((_, tokens))) => tokens.issuer,
            Ok(None) => return Renewed::NeedsUser,
            // Left as it is: with the right key it is good again.
            Err(RecordError::Unreadable) => return self.outcome("unreadable", Renewed::NeedsUser),
            Err(error) => return self.without_store(&error),
        };
        let begun = Instant::now();
        // Before the lease begins: waiting in line must not use it up.
        let Some(_turn) = self.turn(&issuer).await else {
            return self.outcome("busy", Renewed::Later { retry_after: BACKOFF });
        };
        failpoint::reached("P1").await;
        let mut poll = POLL;
        loop {
            let asked = Instant::now();
            match self.records.store().acquire(key, &id, outdated.generation, LEASE).await {
                Ok(Acquired::Owner { connection, .. }) if !outdated.covers(&connection) => {
                    // The user has authorized anew meanwhile: what is there has not been tried yet.
                    let at_once = Release::Transient { wait: Duration::ZERO };
                    self.release(key, &id, connection.fence, at_once).await;
                    return self.read(key, connection);
                }
                Ok(Acquired::Owner { connection, .. })
                    if outdated.is_newer_than(&connection)
                        || self.records.is_rolled_back(key, &connection) =>
                {
                    return self.rolled_back(key, &id, &connection).await;
                }
                Ok(Acquired::Owner { connection, takeover }) => {
                    event::step(Step::Acquire, key, &connection, takeover.map(|_| "takeover"));
                    failpoint::reached("P2").await;
                    return self.redeem_refresh_token(route, key, connection, takeover, asked).await;
                }
                Ok(Acquired::Fresh(connection)) => return self.read(key, connection),
                Ok(Acquired::Wait { .. }) if begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(poll).await;
                    poll = (2 * poll).min(POLL_MAX);
                }
                Ok(Acquired::Wait { .. }) => {
                    return Renewed::Later { retry_after: Duration::from_secs(1) };
                }
                Ok(Acquired::Backoff { left }) => return Renewed::Later { retry_after: left },
                Ok(Acquired::NeedsReauth | Acquired::Absent) => return Renewed::NeedsUser,
                // No store, no redemption. The acquisition may have been written; then its lease ends.
                Err(error) => return self.without_store(&error.into()),
            }
        }
    }

    /// The store has lost newer tokens in a failover, so the refresh token that it has is spent: it is not sent. Whoever
    /// has the newer ones says so again, and this instance at once.
    async fn rolled_back(&self, key: &str, id: &str, connection: &Connection) -> Renewed {
        if let Err(error) = self.records.reassert().await {
            return self.without_store(&error);
        }
        match self.release(key, id, connection.fence, Release::Transient { wait: BACKOFF }).await {
            Some(Released::Stale) => self.current(key).await,
            _ => self.outcome("rolled_back", Renewed::Later { retry_after: BACKOFF }),
        }
    }

    /// A place among those that ask this authorization server, first come, first served.
    pub(super) async fn turn(&self, issuer: &str) -> Option<OwnedSemaphorePermit> {
        if self.turns.len() >= ISSUERS {
            self.turns.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        let turns = {
            let entry = self.turns.entry(issuer.to_owned());
            Arc::clone(&entry.or_insert_with(|| Arc::new(Semaphore::new(PER_ISSUER))))
        };
        tokio::time::timeout(PATIENCE, turns.acquire_owned()).await.ok()?.ok()
    }

    fn without_store(&self, error: &RecordError) -> Renewed {
        tracing::warn!(target: "postern::refresh", %error, "store unavailable, not refreshing");
        Renewed::Later { retry_after: BACKOFF }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::oauth::client::stub::Bench;

    #[tokio::test]
    async fn issuers_that_nobody_waits_for_are_forgotten() {
        let connector = Bench::new().connector();
        let kept = connector.turn("https://busy.example").await.unwrap();
        for number in 0..3 * ISSUERS {
            drop(connector.turn(&format!("https://{number}.example")).await.unwrap());
            assert!(connector.turns.len() <= ISSUERS);
        }
        let busy = connector.turns.get("https://busy.example").unwrap();
        assert_eq!(busy.available_permits(), PER_ISSUER - 1);
        drop(kept);
    }
}
