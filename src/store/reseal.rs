//! Moving records under a new sealing key: one by one as they are read, and all that are left in one go.
use std::collections::BTreeMap;

use super::record::{RecordError, Records, bound_key};
use super::row::Body;
use super::{Kind, Row, StoreError};
use crate::seal;

/// What a pass over all records has found and done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Moved under the first key.
    pub moved: usize,
    /// Sealed with a key that is not there any more, or damaged: their owners have to sign in again.
    pub unreadable: usize,
    /// Records by the id of the key that they are sealed with now.
    pub by_key: BTreeMap<String, usize>,
}

impl Records {
    /// Seals a record that was just read anew, if it is under an older key. What cannot be done now is done the next
    /// time.
    pub(super) async fn reseal_outdated(&self, kind: Kind, key: &str, bound: &str, version: u64, old: &[u8]) {
        if !self.sealer().is_outdated(old) {
            return;
        }
        if let Err(error) = self.reseal(kind, key, bound, version, old).await {
            tracing::debug!(target: "postern::store", kind = kind.name(), %error, "record stays under its older key");
        }
    }

    /// Moves every record under the first key.
    pub async fn reseal_all(&self) -> Result<Resealed, RecordError> {
        let mut resealed = Resealed::default();
        for kind in Kind::ALL {
            for (key, row) in self.store().rows(kind).await? {
                let Some((bound, version, old)) = sealed(&key, &row) else {
                    continue;
                };
                if self.sealer().is_outdated(old) {
                    match self.reseal(kind, &key, &bound, version, old).await {
                        Ok(()) => resealed.moved += 1,
                        Err(RecordError::Store(error)) if !is_of_the_record(&error) => {
                            return Err(error.into());
                        }
                        Err(_) => resealed.unreadable += 1,
                    }
                }
            }
        }
        resealed.by_key = self.count_by_key().await?;
        Ok(resealed)
    }

    /// How many records are sealed with which key.
    pub async fn count_by_key(&self) -> Result<BTreeMap<String, usize>, RecordError> {
        let mut by_key = BTreeMap::new();
        for kind in Kind::ALL {
            for (key, row) in self.store().rows(kind).await? {
                if let Some((_, _, sealed)) = sealed(&key, &row) {
                    let id = seal::key_id(sealed).unwrap_or("(damaged)");
                    *by_key.entry(id.to_owned()).or_insert(0) += 1;
                }
            }
        }
        Ok(by_key)
    }

    async fn reseal(
        &self,
        kind: Kind,
        key: &str,
        bound: &str,
        version: u64,
        old: &[u8],
    ) -> Result<(), RecordError> {
        let plain =
            self.sealer().open(kind.name(), bound, version, old).map_err(|_| RecordError::Unreadable)?;
        let new = self.sealer().seal(kind.name(), bound, version, &plain)?;
        // Changed meanwhile: then it was sealed anew anyway.
        self.store().reseal(kind, key, old, new).await?;
        Ok(())
    }
}

/// What a row's value was sealed for, and the value.
fn sealed<'a>(key: &str, row: &'a Row) -> Option<(String, u64, &'a [u8])> {
    match &row.body {
        Body::Record { version, value, .. } => Some((key.to_owned(), *version, value)),
        Body::Connection(connection) => {
            let bound = bound_key(key, &connection.incarnation);
            Some((bound, connection.generation, &connection.sealed))
        }
        Body::Tombstone { .. } => None,
    }
}

fn is_of_the_record(error: &StoreError) -> bool {
    matches!(error, StoreError::Corrupt | StoreError::Newer | StoreError::TooLarge)
}
