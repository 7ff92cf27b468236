//! The store for one instance: a transactional file in the data directory.
//!
//! It keeps the same promises as the shared one: every operation is one transaction, flushed to disk
//! before it is answered.
//!
//! The file serves one process at a time. One that is replaced while it runs closes it, its successor opens it, and what
//! the first still has to read and write goes through the second ([`elsewhere`]).

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tokio::sync::{OwnedRwLockWriteGuard, RwLock, broadcast};

use super::backend::Backend;
use super::change::{Decided, Decision, Found, Write};
use super::row::Row;
use super::{Change, Kind, StoreError};
use crate::clock::Clock;

mod closed;
mod elsewhere;
mod file;
mod glance;
mod rows;

pub use elsewhere::serve;
pub use file::{FILE_NAME, OpenError};

use elsewhere::Elsewhere;
use file::DatabaseFile;
use rows::Rows;

/// Changes that a subscriber may be behind before it has to look at everything again.
const CHANGES: usize = 1024;
/// Records that one transaction of a sweep deletes, so that other changes get their turn.
const SWEEP: usize = 500;

/// The embedded store. Dropping it closes the file.
pub struct Embedded {
    file: DatabaseFile,
    clock: Clock,
    opened: SystemTime,
    changes: broadcast::Sender<Change>,
    /// Held by every operation, and alone by whoever hands the file over.
    passage: Arc<RwLock<()>>,
    /// Where the store is once it is handed over.
    elsewhere: OnceLock<Elsewhere>,
}

/// The file is closed, and every operation waits. Dropped, it is opened again.
pub struct Away {
    store: Arc<Embedded>,
    _alone: OwnedRwLockWriteGuard<()>,
}

impl Embedded {
    /// Opens or creates the store in `data_dir`. Blocks, and reads the whole file to check it unless it is as it was closed.
    pub fn open(data_dir: &Path, clock: Clock) -> Result<Embedded, OpenError> {
        let opened = clock.now();
        Self::open_after(data_dir, clock, opened)
    }

    /// As [`Embedded::open`], after a process that still works with it by way of this one. `since`: when the first of
    /// those opened it. What has been begun since then is not given up, whoever began it.
    pub fn open_after(data_dir: &Path, clock: Clock, since: SystemTime) -> Result<Embedded, OpenError> {
        Ok(Self::on(DatabaseFile::open(data_dir, clock.clone())?, clock, since))
    }

    fn on(file: DatabaseFile, clock: Clock, opened: SystemTime) -> Embedded {
        let (changes, passage) = (broadcast::Sender::new(CHANGES), Arc::default());
        Embedded { file, clock, opened, changes, passage, elsewhere: OnceLock::new() }
    }

    /// Since when no process but this one and those it follows has had the store.
    pub fn opened(&self) -> SystemTime {
        self.opened
    }

    /// Closes the file, for another process to open it. What is under way ends before.
    pub async fn step_back(self: Arc<Self>) -> Result<Away, StoreError> {
        let alone = Arc::clone(&self.passage).write_owned().await;
        // Changes whose callers have gone away are made too.
        self.file.write(|_| Ok(()), |()| {}).await?;
        self.file.close();
        Ok(Away { store: self, _alone: alone })
    }
}

impl Away {
    /// The process at the other end has the store from now on.
    pub fn follow(self, stream: UnixStream) -> io::Result<()> {
        let there = Elsewhere::at(stream, self.store.changes.clone())?;
        let _ = self.store.elsewhere.set(there);
        Ok(())
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if self.store.elsewhere.get().is_none() {
            self.store.file.open_once_more();
            // The other may have changed something.
            let _ = self.store.changes.send(Change::Missed);
        }
    }
}

impl Backend for Embedded {
    async fn load(&self, kind: Kind, key: &str) -> Found {
        let _passage = self.passage.read().await;
        if let Some(there) = self.elsewhere.get() {
            return there.load(kind, key).await;
        }
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
        let _passage = self.passage.read().await;
        if let Some(there) = self.elsewhere.get() {
            return there.change(kind, key, || self.clock.now(), decide).await;
        }
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
        let _passage = self.passage.read().await;
        if let Some(there) = self.elsewhere.get() {
            return there.list(kind).await;
        }
        self.file.read(move |view, now| view.scan(kind, now)).await
    }

    async fn list_tombstones(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        let _passage = self.passage.read().await;
        if let Some(there) = self.elsewhere.get() {
            return there.list_tombstones(kind).await;
        }
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
        let _passage = self.passage.read().await;
        match self.elsewhere.get() {
            Some(there) => there.check().await,
            None => self.file.ready().await,
        }
    }

    fn end(&self) {
        // Away, it is closed already.
        self.file.close();
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        let _passage = self.passage.read().await;
        if let Some(there) = self.elsewhere.get() {
            return there.expire().await;
        }
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
