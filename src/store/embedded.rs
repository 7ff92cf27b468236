//! The store for one instance: a transactional file in the data directory.
//!
//! It keeps the same promises as the shared one: every operation is one transaction, flushed to disk
//! before it is answered.

use std::path::Path;
use std::time::SystemTime;

use tokio::sync::broadcast;

use super::backend::Backend;
use super::change::{Decided, Decision, Found, Write};
use super::row::Row;
use super::{Change, Kind, StoreError};
use crate::clock::Clock;

mod closed;
mod file;
mod glance;
mod rows;

pub use file::{FILE_NAME, OpenError};

use file::DatabaseFile;
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
    /// Opens or creates the store in `data_dir`. Blocks, and reads the whole file to check it unless it is as it was closed.
    pub fn open(data_dir: &Path, clock: Clock) -> Result<Embedded, OpenError> {
        let file = DatabaseFile::open(data_dir, clock.clone())?;
        Ok(Embedded { file, opened: clock.now(), changes: broadcast::Sender::new(CHANGES) })
    }
}

impl Backend for Embedded {
    async fn load(&self, kind: Kind, key: &str) -> Found {
        if let Some(found) = self.file.glance(|view, now| view.load(kind, key, now)) {
            return Ok(found);
        }
        let key = key.to_owned();
        self.file.read(move |view, now| view.load(kind, &key, now)).await
    }

    async fn change<T: Send + 'static>(
        &self,
        kind: Kind,
        key: &str,
        decide: impl Fn(Found, SystemTime) -> Decided<T> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let changes = self.changes.clone();
        let key = key.to_owned();
        let told = key.clone();
        let change = move |rows: &mut Rows<'_>| {
            let found = rows.load(kind, &key);
            let Decision { answer, write, tell } = decide(found, rows.now)?;
            match write {
                Write::Nothing => {}
                Write::Save(row) => rows.save(kind, &key, &row)?,
                Write::Delete => rows.delete(kind, &key)?,
            }
            Ok((answer, tell))
        };
        let tell = move |(_, tell): &(T, bool)| {
            if *tell {
                // Nobody may be listening.
                let _ = changes.send(Change::Of { kind, key: told });
            }
        };
        Ok(self.file.write(change, tell).await?.0)
    }

    async fn list(&self, kind: Kind) -> Result<Vec<(String, Row)>, StoreError> {
        self.file.read(move |view, now| view.scan(kind, now)).await
    }

    async fn list_tombstones(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        self.file.read(move |view, now| view.tombstones(kind, now)).await
    }

    /// One process at a time has the file.
    fn alone_since(&self) -> Option<SystemTime> {
        Some(self.opened)
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.file.ready().await
    }

    fn end(&self) {
        self.file.close();
    }

    async fn expire(&self) -> Result<usize, StoreError> {
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
