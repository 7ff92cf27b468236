//! Copying one store into another: every row as it is, tombstones and leases too, so that nothing revoked comes back.
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::row::Row;
use super::{Kind, Store, StoreError};

/// Passes over the source: what is written while one pass runs is found by the next.
const PASSES: usize = 3;

/// What is copied from.
#[async_trait]
pub trait Source: Send + Sync {
    /// All rows of a kind as they are, tombstones too.
    async fn rows(&self, kind: Kind) -> Result<Vec<(String, Row)>, StoreError>;
}

#[async_trait]
impl Source for Arc<dyn Store> {
    async fn rows(&self, kind: Kind) -> Result<Vec<(String, Row)>, StoreError> {
        Store::rows(self.as_ref(), kind).await
    }
}

/// What was copied.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Written into the target by this run.
    pub copied: usize,
    /// By kind, rows of the source and how many of them the target has.
    pub counts: BTreeMap<&'static str, (usize, usize)>,
}

impl Migrated {
    /// Whether the target has everything that the source had.
    pub fn is_complete(&self) -> bool {
        self.counts.values().all(|(source, target)| source == target)
    }
}

/// Copies what the target lacks or has in an older state, and counts. May be run again, also once the target is in use:
/// what came later there is left alone. The source is only read, and may be in use as well.
pub async fn migrate(source: &dyn Source, target: &dyn Store) -> Result<Migrated, StoreError> {
    let mut migrated = Migrated::default();
    for _ in 0..PASSES {
        let mut copied = 0;
        for kind in Kind::ALL {
            for (key, row) in source.rows(kind).await? {
                copied += usize::from(target.restore(kind, &key, row).await?);
            }
        }
        migrated.copied += copied;
        if copied == 0 {
            break;
        }
    }
    for kind in Kind::ALL {
        let found: BTreeMap<String, Row> = target.rows(kind).await?.into_iter().collect();
        let rows = source.rows(kind).await?;
        let there = rows.iter().filter(|(key, _)| found.contains_key(key)).count();
        migrated.counts.insert(kind.name(), (rows.len(), there));
    }
    Ok(migrated)
}
