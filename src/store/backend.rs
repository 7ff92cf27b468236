//! What a store has to be able to do; [`Store`] follows from it.
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::change::{self, Decided, Found};
use super::row::{Body, Row, Tombstone};
use super::{
    Acquired, Change, Claim, Committed, Connection, KEY_MAX, Kind, Put, Quota, Refusal, Release, Released,
    Store, StoreError, Stored, Taken, VALUE_MAX,
};

/// A place for rows.
pub trait Backend: Send + Sync {
    /// The row, unless it has expired.
    fn load(&self, kind: Kind, key: &str) -> impl Future<Output = Found> + Send;

    /// Shows `decide` the row and the store's time, and carries out what it says in one atomic and durable step.
    /// `decide` may be asked again when somebody else was faster.
    fn change<T: Send + 'static>(
        &self,
        kind: Kind,
        key: &str,
        decide: impl Fn(Found, SystemTime) -> Decided<T> + Send + Sync + 'static,
    ) -> impl Future<Output = Result<T, StoreError>> + Send;

    /// All rows of a kind, without the expired. Damaged ones are logged and left out.
    fn list(&self, kind: Kind) -> impl Future<Output = Result<Vec<(String, Row)>, StoreError>> + Send;

    /// The keys of a kind that are tombstones.
    fn list_tombstones(&self, kind: Kind) -> impl Future<Output = Result<Vec<String>, StoreError>> + Send {
        async move {
            let rows = self.list(kind).await?.into_iter();
            Ok(rows
                .filter(|(_, row)| matches!(row.body, Body::Tombstone { .. }))
                .map(|(key, _)| key)
                .collect())
        }
    }

    /// Since when no other process can have changed anything, where that is certain.
    fn alone_since(&self) -> Option<SystemTime>;

    /// See [`Store::subscribe`].
    fn changes(&self) -> broadcast::Receiver<Change>;

    /// See [`Store::ready`].
    fn check(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// See [`Store::sweep`].
    fn expire(&self) -> impl Future<Output = Result<usize, StoreError>> + Send;

    /// See [`Store::close`].
    fn end(&self) {}

    /// See [`Store::spend`].
    fn count(
        &self,
        _key: &str,
        _quota: Quota,
    ) -> impl Future<Output = Result<Option<Duration>, StoreError>> + Send {
        async { Ok(None) }
    }

    /// See [`Store::hold`].
    fn place(
        &self,
        _key: &str,
        _id: &str,
        _most: u32,
        _lease: Duration,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        async { Ok(true) }
    }

    /// See [`Store::let_go`].
    fn leave(&self, _key: &str, _id: &str) -> impl Future<Output = Result<(), StoreError>> + Send {
        async { Ok(()) }
    }
}

#[async_trait]
impl<B: Backend> Store for B {
    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Stored>, StoreError> {
        Ok(self.load(kind, key).await?.and_then(Row::into_stored))
    }

    async fn put(
        &self,
        kind: Kind,
        key: &str,
        expected: u64,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Put, StoreError> {
        fits(key, &value)?;
        let decide = move |found, now| change::put(found, now, kind, expected, value.clone(), ttl);
        self.change(kind, key, decide).await
    }

    async fn take(&self, kind: Kind, key: &str) -> Result<Taken, StoreError> {
        self.change(kind, key, |found, _| change::take(found)).await
    }

    async fn remove(&self, kind: Kind, key: &str) -> Result<(), StoreError> {
        self.change(kind, key, |found, _| change::remove(found)).await
    }

    async fn tombstone(&self, kind: Kind, key: &str, ttl: Duration) -> Result<Tombstone, StoreError> {
        fits(key, &[])?;
        self.change(kind, key, move |found, now| change::tombstone(found, now, ttl)).await
    }

    async fn bury(
        &self,
        kind: Kind,
        key: &str,
        tombstone: &Tombstone,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let tombstone = tombstone.clone();
        self.change(kind, key, move |found, now| change::bury(found, now, &tombstone, ttl)).await
    }

    async fn tombstones(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        self.list_tombstones(kind).await
    }

    async fn reseal(&self, kind: Kind, key: &str, old: &[u8], new: Vec<u8>) -> Result<bool, StoreError> {
        fits(key, &new)?;
        let old = old.to_vec();
        self.change(kind, key, move |found, _| change::reseal(found, &old, new.clone())).await
    }

    async fn restore(&self, kind: Kind, key: &str, row: Row) -> Result<bool, StoreError> {
        self.change(kind, key, move |found, _| change::restore(found, row.clone())).await
    }

    async fn rows(&self, kind: Kind) -> Result<Vec<(String, Row)>, StoreError> {
        self.list(kind).await
    }

    async fn scan(&self, kind: Kind) -> Result<Vec<(String, Stored)>, StoreError> {
        let rows = self.list(kind).await?.into_iter();
        Ok(rows.filter_map(|(key, row)| Some((key, row.into_stored()?))).collect())
    }

    async fn connection(&self, key: &str) -> Result<Option<Connection>, StoreError> {
        Ok(self.load(Kind::Connection, key).await?.and_then(|row| match row.body {
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
        fits(key, &sealed)?;
        let incarnation = incarnation.to_owned();
        let decide = move |found: Found, now| change::connect(found, now, &incarnation, sealed.clone(), ttl);
        self.change(Kind::Connection, key, decide).await
    }

    async fn acquire(
        &self,
        key: &str,
        attempt_id: &str,
        newer_than: u64,
        lease: Duration,
    ) -> Result<Acquired, StoreError> {
        let (attempt_id, alone_since) = (attempt_id.to_owned(), self.alone_since());
        let decide =
            move |found: Found, now| change::acquire(found, now, &attempt_id, newer_than, lease, alone_since);
        self.change(Kind::Connection, key, decide).await
    }

    async fn sent(&self, key: &str, attempt_id: &str, fence: u64) -> Result<bool, StoreError> {
        let attempt_id = attempt_id.to_owned();
        let decide = move |found: Found, now| change::sent(found, now, &attempt_id, fence);
        self.change(Kind::Connection, key, decide).await
    }

    async fn commit(
        &self,
        key: &str,
        claim: &Claim,
        sealed: Vec<u8>,
        ttl: Duration,
    ) -> Result<Committed, StoreError> {
        fits(key, &sealed)?;
        let claim = claim.clone();
        let decide = move |found: Found, now| change::commit(found, now, &claim, sealed.clone(), ttl);
        self.change(Kind::Connection, key, decide).await
    }

    async fn release(
        &self,
        key: &str,
        attempt_id: &str,
        fence: u64,
        outcome: Release,
    ) -> Result<Released, StoreError> {
        let attempt_id = attempt_id.to_owned();
        let decide = move |found: Found, now| change::release(found, now, &attempt_id, fence, outcome);
        self.change(Kind::Connection, key, decide).await
    }

    async fn refuse(
        &self,
        key: &str,
        incarnation: &str,
        generation: u64,
        refusal: Refusal,
    ) -> Result<bool, StoreError> {
        let incarnation = incarnation.to_owned();
        let decide = move |found: Found, _| change::refuse(found, &incarnation, generation, refusal);
        self.change(Kind::Connection, key, decide).await
    }

    async fn spend(&self, key: &str, quota: Quota) -> Result<Option<Duration>, StoreError> {
        self.count(key, quota).await
    }

    async fn hold(&self, key: &str, id: &str, most: u32, lease: Duration) -> Result<bool, StoreError> {
        self.place(key, id, most, lease).await
    }

    async fn let_go(&self, key: &str, id: &str) -> Result<(), StoreError> {
        self.leave(key, id).await
    }

    fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes()
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.check().await
    }

    async fn sweep(&self) -> Result<usize, StoreError> {
        self.expire().await
    }

    fn close(&self) {
        self.end();
    }
}

fn fits(key: &str, value: &[u8]) -> Result<(), StoreError> {
    if key.len() <= KEY_MAX && value.len() <= VALUE_MAX { Ok(()) } else { Err(StoreError::TooLarge) }
}
