//! A store whose operations are counted and timed, whichever it is. Requests with what they need in memory never get here, so
//! what it costs is nothing to them.
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::{
    Acquired, Change, Claim, Committed, Connection, Kind, Put, Quota, Refusal, Release, Released, Row, Store,
    StoreError, Stored, Taken, Tombstone,
};
use crate::telemetry::Metrics;

/// Counts what goes through to the store within.
pub struct Measured {
    inner: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Measured {
    pub fn new(inner: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }

    async fn measure<T>(
        &self,
        operation: &'static str,
        outcome: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let outcome = outcome.await;
        let took = begun.elapsed().as_secs_f64();
        self.metrics.store_duration.with_label_values(&[operation]).observe(took);
        let result = outcome.as_ref().err().map_or("ok", StoreError::word);
        self.metrics.store_operations.with_label_values(&[operation, result]).inc();
        outcome
    }
}

#[async_trait]
impl Store for Measured {
    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Stored>, StoreError> {
        self.measure("get", self.inner.get(kind, key)).await
    }

    async fn put(
        &self,
        kind: Kind,
        key: &str,
        expected: u64,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Put, StoreError> {
        self.measure("put", self.inner.put(kind, key, expected, value, ttl)).await
    }

    async fn take(&self, kind: Kind, key: &str) -> Result<Taken, StoreError> {
        self.measure("take", self.inner.take(kind, key)).await
    }

    async fn remove(&self, kind: Kind, key: &str) -> Result<(), StoreError> {
        self.measure("remove", self.inner.remove(kind, key)).await
    }

    async fn tombstone(&self, kind: Kind, key: &str, ttl: Duration) -> Result<Tombstone, StoreError> {
        self.measure("tombstone", self.inner.tombstone(kind, key, ttl)).await
    }

    async fn bury(
        &self,
        kind: Kind,
        key: &str,
        tombstone: &Tombstone,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        self.measure("bury", self.inner.bury(kind, key, tombstone, ttl)).await
    }

    async fn tombstones(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        self.measure("tombstones", self.inner.tombstones(kind)).await
    }

    async fn reseal(&self, kind: Kind, key: &str, old: &[u8], new: Vec<u8>) -> Result<bool, StoreError> {
        self.measure("reseal", self.inner.reseal(kind, key, old, new)).await
    }

    async fn restore(&self, kind: Kind, key: &str, row: Row) -> Result<bool, StoreError> {
        self.measure("restore", self.inner.restore(kind, key, row)).await
    }

    async fn rows(&self, kind: Kind) -> Result<Vec<(String, Row)>, StoreError> {
        self.measure("rows", self.inner.rows(kind)).await
    }

    async fn scan(&self, kind: Kind) -> Result<Vec<(String, Stored)>, StoreError> {
        self.measure("scan", self.inner.scan(kind)).await
    }

    async fn connection(&self, key: &str) -> Result<Option<Connection>, StoreError> {
        self.measure("connection", self.inner.connection(key)).await
    }

    async fn connect(
        &self,
        key: &str,
        incarnation: &str,
        sealed: Vec<u8>,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.measure("connect", self.inner.connect(key, incarnation, sealed, ttl)).await
    }

    async fn acquire(
        &self,
        key: &str,
        attempt_id: &str,
        newer_than: u64,
        lease: Duration,
    ) -> Result<Acquired, StoreError> {
        self.measure("acquire", self.inner.acquire(key, attempt_id, newer_than, lease)).await
    }

    async fn sent(&self, key: &str, attempt_id: &str, fence: u64) -> Result<bool, StoreError> {
        self.measure("sent", self.inner.sent(key, attempt_id, fence)).await
    }

    async fn commit(
        &self,
        key: &str,
        claim: &Claim,
        sealed: Vec<u8>,
        ttl: Duration,
    ) -> Result<Committed, StoreError> {
        self.measure("commit", self.inner.commit(key, claim, sealed, ttl)).await
    }

    async fn release(
        &self,
        key: &str,
        attempt_id: &str,
        fence: u64,
        outcome: Release,
    ) -> Result<Released, StoreError> {
        self.measure("release", self.inner.release(key, attempt_id, fence, outcome)).await
    }

    async fn refuse(
        &self,
        key: &str,
        incarnation: &str,
        generation: u64,
        refusal: Refusal,
    ) -> Result<bool, StoreError> {
        self.measure("refuse", self.inner.refuse(key, incarnation, generation, refusal)).await
    }

    async fn spend(&self, key: &str, quota: Quota) -> Result<Option<Duration>, StoreError> {
        self.measure("spend", self.inner.spend(key, quota)).await
    }

    async fn hold(&self, key: &str, id: &str, most: u32, lease: Duration) -> Result<bool, StoreError> {
        self.measure("hold", self.inner.hold(key, id, most, lease)).await
    }

    async fn let_go(&self, key: &str, id: &str) -> Result<(), StoreError> {
        self.measure("let_go", self.inner.let_go(key, id)).await
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.measure("ready", self.inner.ready()).await
    }

    async fn sweep(&self) -> Result<usize, StoreError> {
        self.measure("sweep", self.inner.sweep()).await
    }

    fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.inner.subscribe()
    }

    fn close(&self) {
        self.inner.close();
    }
}
