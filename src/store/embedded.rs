//! The store for one instance: a transactional file in the data directory.
//!
//! It keeps the same promises as a shared store would: every operation is one transaction, flushed
//! to disk before it is answered, and leases run through the same state machine. So what works with
//! it works with several instances too.

use std::path::Path;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::{Acquired, Change, Committed, Connection, Kind, Put, Release, Store, StoreError, Stored, Taken};
use crate::clock::Clock;

mod file;
mod row;
mod rows;

pub use file::{FILE_NAME, OpenError};

use file::DatabaseFile;
use row::{Body, Row, millis, whole_millis};
use rows::Rows;

/// Changes that a subscriber may be behind before it has to look at everything again.
const CHANGES: usize = 1024;
/// Records that one transaction of a sweep deletes, so that other changes get their turn.
const SWEEP: usize = 500;

/// The embedded store. Dropping it closes the file.
pub struct Embedded {
    file: DatabaseFile,
    opened: SystemTime,
    changes: broadcast::Sender<Change>,
}

impl Embedded {
    /// Opens or creates the store in `data_dir`. Blocks, and reads the whole file to check it.
    pub fn open(data_dir: &Path, clock: Clock) -> Result<Embedded, OpenError> {
        let file = DatabaseFile::open(data_dir, clock.clone())?;
        Ok(Embedded { file, opened: clock.now(), changes: broadcast::Sender::new(CHANGES) })
    }

    /// One transaction on one key. `change` says what to answer and whether subscribers hear of it.
    async fn change<T: Send + 'static>(
        &self,
        kind: Kind,
        key: &str,
        change: impl FnOnce(&mut Rows<'_>, &str) -> Result<(T, bool), StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let changes = self.changes.clone();
        let key = key.to_owned();
        let told = key.clone();
        let tell = move |(_, tell): &(T, bool)| {
            if *tell {
                // Nobody may be listening.
                let _ = changes.send(Change { kind, key: told });
            }
        };
        let (answer, _) = self.file.write(move |rows| change(rows, &key), tell).await?;
        Ok(answer)
    }

    /// One transition of the connection under `key`, which `step` makes and says whether to keep.
    /// `ttl` sets a new end; without, the old one stays. Subscribers hear of it if `tell`.
    async fn step<T: Send + 'static>(
        &self,
        key: &str,
        absent: T,
        ttl: Option<Duration>,
        tell: bool,
        step: impl FnOnce(&mut Connection, SystemTime) -> (T, bool) + Send + 'static,
    ) -> Result<T, StoreError> {
        let change = move |rows: &mut Rows<'_>, key: &str| {
            let row = rows.load(Kind::Connection, key)?;
            let Some(Row { expires_millis, body: Body::Connection(mut connection) }) = row else {
                return Ok((absent, false));
            };
            let now = rows.now;
            let (answer, keep) = step(&mut connection, now);
            if keep {
                let expires_millis = ttl.map_or(expires_millis, |ttl| end(now, ttl));
                let row = Row { expires_millis, body: Body::Connection(connection) };
                rows.save(Kind::Connection, key, &row)?;
            }
            Ok((answer, keep && tell))
        };
        self.change(Kind::Connection, key, change).await
    }
}

fn end(now: SystemTime, ttl: Duration) -> u64 {
    millis(now).saturating_add(whole_millis(ttl))
}

/// The row, where a damaged one is as good as none because it will be replaced.
fn replaceable(row: Result<Option<Row>, StoreError>) -> Result<Option<Row>, StoreError> {
    match row {
        Err(StoreError::Corrupt) => Ok(None),
        row => row,
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Stored>, StoreError> {
        let key = key.to_owned();
        self.file.read(move |view| Ok(view.load(kind, &key)?.and_then(Row::into_stored))).await
    }

    async fn put(
        &self,
        kind: Kind,
        key: &str,
        expected: u64,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Put, StoreError> {
        let change = move |rows: &mut Rows<'_>, key: &str| {
            let present = match rows.load(kind, key)?.map(|row| row.body) {
                None => Some(0),
                Some(Body::Record { version, spent: false, .. }) => Some(version),
                Some(_) => None,
            };
            if present != Some(expected) {
                return Ok((Put::Conflict, false));
            }
            let body = Body::Record { version: expected.saturating_add(1), spent: false, value };
            rows.save(kind, key, &Row { expires_millis: end(rows.now, ttl), body })?;
            Ok((Put::Stored, true))
        };
        self.change(kind, key, change).await
    }

    async fn take(&self, kind: Kind, key: &str) -> Result<Taken, StoreError> {
        let change = move |rows: &mut Rows<'_>, key: &str| {
            let Some(mut row) = rows.load(kind, key)? else {
                return Ok((Taken::Absent, false));
            };
            let Body::Record { spent, .. } = &mut row.body else {
                return Ok((Taken::Absent, false));
            };
            let replay = std::mem::replace(spent, true);
            if !replay {
                rows.save(kind, key, &row)?;
            }
            let taken = row.into_stored().map_or(Taken::Absent, |stored| match replay {
                true => Taken::Spent(stored),
                false => Taken::Fresh(stored),
            });
            Ok((taken, false))
        };
        self.change(kind, key, change).await
    }

    async fn remove(&self, kind: Kind, key: &str) -> Result<(), StoreError> {
        let change = move |rows: &mut Rows<'_>, key: &str| {
            let row = replaceable(rows.load(kind, key))?;
            if row.is_some_and(|row| matches!(row.body, Body::Tombstone { .. })) {
                return Ok(((), false));
            }
            let existed = rows.delete(kind, key)?;
            Ok(((), existed))
        };
        self.change(kind, key, change).await
    }

    async fn tombstone(&self, kind: Kind, key: &str, ttl: Duration) -> Result<(), StoreError> {
        let change = move |rows: &mut Rows<'_>, key: &str| {
            let before = replaceable(rows.load(kind, key))?;
            let earlier_end = match &before {
                Some(Row { expires_millis, body: Body::Tombstone { .. } }) => *expires_millis,
                _ => 0,
            };
            let fence = before.map_or(0, |row| row.fence()).saturating_add(1);
            let expires_millis = end(rows.now, ttl).max(earlier_end);
            rows.save(kind, key, &Row { expires_millis, body: Body::Tombstone { fence } })?;
            Ok(((), true))
        };
        self.change(kind, key, change).await
    }

    async fn tombstones(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        let tombstone = |(key, row): (String, Row)| matches!(row.body, Body::Tombstone { .. }).then_some(key);
        self.file.read(move |view| Ok(view.scan(kind)?.into_iter().filter_map(tombstone).collect())).await
    }

    async fn scan(&self, kind: Kind) -> Result<Vec<(String, Stored)>, StoreError> {
        let record = |(key, row): (String, Row)| Some((key, row.into_stored()?));
        self.file.read(move |view| Ok(view.scan(kind)?.into_iter().filter_map(record).collect())).await
    }

    async fn connection(&self, key: &str) -> Result<Option<Connection>, StoreError> {
        let key = key.to_owned();
        let row = self.file.read(move |view| view.load(Kind::Connection, &key)).await?;
        Ok(row.and_then(|row| match row.body {
            Body::Connection(connection) => Some(connection),
            _ => None,
        }))
    }

    async fn connect(
        &self,
        key: &str,
        incarnation: &str,
        sealed: Vec<u8>,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let incarnation = incarnation.to_owned();
        let change = move |rows: &mut Rows<'_>, key: &str| {
            let before = replaceable(rows.load(Kind::Connection, key))?;
            let fence = before.map_or(0, |row| row.fence());
            let body = Body::Connection(Connection::begin(&incarnation, fence, sealed));
            rows.save(Kind::Connection, key, &Row { expires_millis: end(rows.now, ttl), body })?;
            Ok(((), true))
        };
        self.change(Kind::Connection, key, change).await
    }

    async fn acquire(
        &self,
        key: &str,
        attempt_id: &str,
        newer_than: u64,
        lease: Duration,
    ) -> Result<Acquired, StoreError> {
        let (attempt_id, opened) = (attempt_id.to_owned(), self.opened);
        let step = move |connection: &mut Connection, now| {
            // One process at a time has the file, so whoever held a lease before this one opened it is gone.
            if let Some(attempt) = &mut connection.attempt
                && attempt.lease_until < opened + lease
            {
                attempt.lease_until = attempt.lease_until.min(now);
            }
            connection.acquire(&attempt_id, newer_than, lease, now)
        };
        self.step(key, Acquired::Absent, None, false, step).await
    }

    async fn sent(&self, key: &str, attempt_id: &str, fence: u64) -> Result<bool, StoreError> {
        let attempt_id = attempt_id.to_owned();
        let step = move |connection: &mut Connection, now| {
            let ours = connection.sent(&attempt_id, fence, now);
            (ours, ours)
        };
        self.step(key, false, None, false, step).await
    }

    async fn commit(
        &self,
        key: &str,
        incarnation: &str,
        attempt_id: &str,
        fence: u64,
        sealed: Vec<u8>,
        ttl: Duration,
    ) -> Result<Committed, StoreError> {
        let (incarnation, attempt_id) = (incarnation.to_owned(), attempt_id.to_owned());
        let step =
            move |connection: &mut Connection, _| connection.commit(&incarnation, &attempt_id, fence, sealed);
        self.step(key, Committed::Stale, Some(ttl), true, step).await
    }

    async fn release(
        &self,
        key: &str,
        attempt_id: &str,
        fence: u64,
        outcome: Release,
    ) -> Result<bool, StoreError> {
        let attempt_id = attempt_id.to_owned();
        let step = move |connection: &mut Connection, _| {
            let ours = connection.release(&attempt_id, fence, outcome);
            (ours, ours)
        };
        self.step(key, false, None, true, step).await
    }

    async fn refuse(&self, key: &str, incarnation: &str, generation: u64) -> Result<bool, StoreError> {
        let incarnation = incarnation.to_owned();
        let step = move |connection: &mut Connection, _| {
            let current = connection.refuse(&incarnation, generation);
            (current, current)
        };
        self.step(key, false, None, true, step).await
    }

    fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.file.ready().await
    }

    async fn sweep(&self) -> Result<usize, StoreError> {
        let mut total = 0;
        loop {
            let deleted = self.file.write(|rows| rows.delete_expired(SWEEP), |_| {}).await?;
            total += deleted;
            if deleted < SWEEP {
                return Ok(total);
            }
        }
    }
}

#[cfg(test)]
mod tests;
