//! The store that many instances share: Redis or Valkey, alone, behind Sentinels or as a Cluster.
//!
//! A decision is carried out by optimistic exchange: read the row with the server's time, decide, and let one script
//! put the new row in place of exactly the bytes that were decided on. Whoever loses decides anew on what the winner
//! wrote. Nothing is ever decided by an instance's own clock.
//!
//! Reads and writes go to the primary alone, so that what one instance wrote, another reads. Whatever decides about a
//! refresh token or takes something away from somebody goes over connections of its own, one at a time on each, where
//! WAIT speaks of just that write. An answer that does not come in time says nothing about whether the write happened:
//! it is an error, and the operations may be repeated.
//!
//! The store has a thread of its own for its connections, so that they outlive whoever asked first.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::{Handle, Runtime};
use tokio::sync::broadcast;

use super::backend::Backend;
use super::change::{Decided, Decision, Found, Write};
use super::row::{self, Body, Row};
use super::{Change, Kind, Quota, StoreError};
use crate::clock::Clock;
use crate::config;

mod check;
mod connection;
mod counts;
mod link;
mod names;
mod news;
mod script;
mod topology;

use link::{Link, Pool};
use names::{Names, SHARDS};
use script::Exchange;
use topology::Target;

/// Changes that a subscriber may be behind before it has to look at everything again.
const CHANGES: usize = 4096;
/// How often a decision is made anew before the caller hears that too many want the same.
const TRIES: usize = 64;
/// Connections for what must not wait behind other commands.
const DEDICATED: usize = 4;
/// A decision older than that is made anew: its time has become another one.
const DECISION_MAX: Duration = Duration::from_secs(2);
/// How long WAIT waits for the replicas.
const REPLICATION: Duration = Duration::from_millis(50);
/// Rows that one listing asks for at once.
const PAGE: usize = 200;

/// Why the store cannot be used at all. The messages are for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The server is there but not fit for it.
    #[error("redis: {0}")]
    Unfit(String),
    /// The client could not be made.
    #[error("redis: {0}")]
    Client(String),
}

/// The shared store.
pub struct Redis {
    names: Names,
    clock: Clock,
    shared: Arc<Link>,
    dedicated: Pool,
    replicas: u32,
    changes: broadcast::Sender<Change>,
    runtime: Option<Runtime>,
}

impl Redis {
    /// Connects, if the server is there; else goes on trying beside. Blocks for up to two seconds.
    ///
    /// # Errors
    /// The server is there and must not be used as it is.
    pub fn open(config: &config::Redis, clock: Clock) -> Result<Redis, OpenError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|error| OpenError::Client(error.to_string()))?;
        let handle = runtime.handle().clone();
        let target = Arc::new(Target::new(config).map_err(|error| OpenError::Client(error.to_string()))?);
        let names = Names::new(&config.prefix);
        let changes = broadcast::Sender::new(CHANGES);
        let shared = Link::start(&handle, Arc::clone(&target));
        let dedicated =
            Pool::new((0..DEDICATED).map(|_| Link::start(&handle, Arc::clone(&target))).collect());
        let news = news::Follower::new(names.clone(), Arc::clone(&shared), target, changes.clone());
        let redis = Redis {
            names,
            clock,
            shared,
            dedicated,
            replicas: config.replicas,
            changes,
            runtime: Some(runtime),
        };
        let begun = redis.begin(&handle, news);
        begun.map(|()| redis)
    }

    fn begin(&self, handle: &Handle, news: news::Follower) -> Result<(), OpenError> {
        let shared = Arc::clone(&self.shared);
        let (sender, receiver) = std::sync::mpsc::channel();
        handle.spawn(async move {
            let first = shared.first_outcome().await;
            let mut news = news;
            if first.is_ok() {
                news.begin().await;
            }
            // Nobody waits any more when it took too long.
            let _ = sender.send(first);
            news.follow().await;
        });
        match receiver.recv_timeout(link::FIRST) {
            Ok(Err(refusal)) if refusal.is_final() => Err(OpenError::Unfit(refusal.to_string())),
            Ok(Ok(())) => Ok(()),
            _ => {
                tracing::error!(target: "postern::store", "redis cannot be reached; trying on");
                Ok(())
            }
        }
    }

    /// What the tests' clock says; in earnest the server's counts.
    fn frozen(&self) -> Option<u64> {
        self.clock.manual_now().map(row::millis)
    }

    /// Exchanges until nobody else was faster.
    async fn exchange<T>(
        &self,
        link: &Link,
        kind: Kind,
        key: &str,
        decide: impl Fn(Found, SystemTime) -> Decided<T>,
    ) -> Result<(T, bool), StoreError> {
        let names = self.names.of(kind, key);
        for attempt in 0..TRIES {
            let (now, old) =
                link.read(|connection| script::look(connection, &names.record, self.frozen())).await?;
            let Decision { answer, write, tell } = decide(found(&old, now), row::time(now))?;
            let (new, expires, tombstone) = match write {
                Write::Nothing => return Ok((answer, false)),
                Write::Delete if old.is_empty() => return Ok((answer, false)),
                Write::Delete => (Vec::new(), now, false),
                Write::Save(row) => {
                    (row.encode()?, row.expires_millis, matches!(row.body, Body::Tombstone { .. }))
                }
            };
            let exchange = Exchange {
                names: &names,
                old: &old,
                new: &new,
                ttl_millis: expires.saturating_sub(now).max(1),
                expires_millis: expires,
                key,
                tombstone,
                news: tell.then(|| news::entry(kind, key)),
                latest_millis: now.saturating_add(row::whole_millis(DECISION_MAX)),
                frozen: self.frozen(),
            };
            if link.run(|connection| exchange.run(connection)).await? {
                return Ok((answer, true));
            }
            // Several that race for the same row each let one through per round; the rest spread out.
            if attempt > 2 {
                tokio::time::sleep(Duration::from_millis(attempt as u64)).await;
            }
        }
        Err(StoreError::Unavailable("too many changes of one record at once".to_owned()))
    }

    /// The named rows, without the expired and the damaged.
    async fn rows_of(&self, kind: Kind, keys: Vec<String>) -> Result<Vec<(String, Row)>, StoreError> {
        let mut rows = Vec::with_capacity(keys.len());
        let frozen = self.frozen();
        let names: Vec<String> = keys.iter().map(|key| self.names.of(kind, key).record).collect();
        let values = self.shared.read(|connection| script::values(connection, &names)).await?;
        let now = match frozen {
            Some(now) => now,
            None => self.shared.read(script::time).await?,
        };
        for (key, value) in keys.into_iter().zip(values) {
            match found(&value, now) {
                Ok(Some(row)) => rows.push((key, row)),
                Ok(None) => {}
                Err(error) => tracing::error!(kind = kind.name(), %error, "record left out"),
            }
        }
        Ok(rows)
    }

    /// The keys in the indexes of a kind.
    async fn keys(&self, kind: Kind, tombstones: bool) -> Result<Vec<String>, StoreError> {
        let mut keys = Vec::new();
        for shard in 0..SHARDS {
            let index = self.names.index(shard, kind, tombstones);
            let members = self.shared.read(|connection| script::members(connection, &index)).await?;
            keys.extend(members.into_iter().filter_map(|member| String::from_utf8(member).ok()));
        }
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    async fn listed(&self, kind: Kind, tombstones: bool) -> Result<Vec<(String, Row)>, StoreError> {
        let mut rows = Vec::new();
        for page in self.keys(kind, tombstones).await?.chunks(PAGE) {
            rows.extend(self.rows_of(kind, page.to_vec()).await?);
        }
        Ok(rows)
    }
}

/// The row in these bytes: none where there are none, or it has ended.
fn found(bytes: &[u8], now: u64) -> Found {
    if bytes.is_empty() {
        return Ok(None);
    }
    Row::decode(bytes).map(|row| Some(row).filter(|row| now < row.expires_millis))
}

impl Backend for Redis {
    async fn load(&self, kind: Kind, key: &str) -> Found {
        let name = self.names.of(kind, key).record;
        let (now, bytes) =
            self.shared.read(|connection| script::look(connection, &name, self.frozen())).await?;
        found(&bytes, now)
    }

    async fn change<T: Send + 'static>(
        &self,
        kind: Kind,
        key: &str,
        decide: impl Fn(Found, SystemTime) -> Decided<T> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        if kind != Kind::Connection && kind != Kind::Grant {
            return Ok(self.exchange(&self.shared, kind, key, decide).await?.0);
        }
        let link = self.dedicated.take().await;
        let (answer, written) = self.exchange(&link, kind, key, decide).await?;
        if written && self.replicas > 0 {
            let name = self.names.of(kind, key).record;
            let confirmed = link
                .run(|connection| connection.wait(&name, self.replicas, REPLICATION))
                .await
                .unwrap_or_default();
            if confirmed < self.replicas {
                tracing::warn!(target: "postern::store", kind = kind.name(), confirmed, wanted = self.replicas, "not confirmed by the replicas yet");
            }
        }
        Ok(answer)
    }

    async fn list(&self, kind: Kind) -> Result<Vec<(String, Row)>, StoreError> {
        let mut rows = self.listed(kind, false).await?;
        rows.extend(self.listed(kind, true).await?);
        Ok(rows)
    }

    async fn list_tombstones(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        Ok(self.listed(kind, true).await?.into_iter().map(|(key, _)| key).collect())
    }

    /// Never: other instances come and go.
    fn alone_since(&self) -> Option<SystemTime> {
        None
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// A read and a write.
    async fn check(&self) -> Result<(), StoreError> {
        let name = self.names.probe();
        self.shared.run(|connection| script::probe(connection, &name)).await
    }

    async fn count(&self, key: &str, quota: Quota) -> Result<Option<Duration>, StoreError> {
        let name = self.names.spent(key);
        self.shared.run(|connection| counts::spend(connection, &name, quota, self.frozen())).await
    }

    async fn place(&self, key: &str, id: &str, most: u32, lease: Duration) -> Result<bool, StoreError> {
        let (name, lease) = (self.names.places(key), row::whole_millis(lease));
        self.shared.run(|connection| counts::hold(connection, &name, id, most, lease, self.frozen())).await
    }

    async fn leave(&self, key: &str, id: &str) -> Result<(), StoreError> {
        let name = self.names.places(key);
        self.shared.run(|connection| counts::let_go(connection, &name, id)).await
    }

    /// Redis forgets rows on its own; what is left of them is their place in the indexes.
    async fn expire(&self) -> Result<usize, StoreError> {
        let frozen = self.frozen();
        for kind in Kind::ALL {
            for index in
                (0..SHARDS).flat_map(|shard| [false, true].map(|dead| self.names.index(shard, kind, dead)))
            {
                self.shared.run(|connection| script::sweep(connection, &index, frozen)).await?;
            }
        }
        Ok(0)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Not from inside another runtime: that may not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests;
