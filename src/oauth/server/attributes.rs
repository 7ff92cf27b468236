//! What identity providers say of users, as it was at their last sign-in: kept in the store, and in memory of those who call.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;

use super::{Authority, Snapshot};
use crate::config::Attributes;
use crate::store::Kind;
use crate::store::record::{RecordError, Typed};

/// So many users are remembered.
const USERS: usize = 50_000;
/// A change that nobody was told of counts after that.
const REREAD: Duration = Duration::from_secs(60);

impl Typed for Attributes {
    const KIND: Kind = Kind::Attributes;
}

/// Copies in memory.
pub struct Remembered {
    users: Cache<String, (SystemTime, Arc<Attributes>)>,
    /// Counts what was forgotten: what was read before that is not remembered.
    changes: AtomicU64,
}

impl Default for Remembered {
    fn default() -> Self {
        Self { users: Cache::new(USERS), changes: AtomicU64::new(0) }
    }
}

impl Remembered {
    /// One user's have changed.
    pub fn changed(&self, user: &str) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.users.remove(user);
    }

    /// Anybody's may have.
    pub fn forget_all(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.users.clear();
    }
}

impl Authority {
    /// What is known of a user of ours. While the store does not answer, what was known before counts.
    pub async fn attributes_of(
        &self,
        snapshot: &Snapshot,
        user: &str,
        now: SystemTime,
    ) -> Result<Arc<Attributes>, RecordError> {
        if let Some(local) = snapshot.config.login.users.get(user) {
            return Ok(Arc::clone(&local.attributes));
        }
        let known = self.attributes.users.get(user);
        let fresh = known.as_ref().filter(|(read_at, _)| now < *read_at + REREAD);
        self.connector.metrics().caches.attributes.count(fresh.is_some());
        if let Some((_, known)) = fresh {
            return Ok(Arc::clone(known));
        }
        let changes = self.attributes.changes.load(Ordering::SeqCst);
        let read = match (self.records.readable::<Attributes>(user).await, known) {
            (Ok(found), _) => Arc::new(found.map(|found| found.value).unwrap_or_default()),
            (Err(_), Some((_, known))) => return Ok(known),
            (Err(error), None) => return Err(error),
        };
        if self.attributes.changes.load(Ordering::SeqCst) == changes {
            self.attributes.users.insert(user.to_owned(), (now, Arc::clone(&read)));
        }
        Ok(read)
    }

    /// Keeps what a provider has said at a sign-in, as long as anything lives that may follow from it.
    pub async fn keep_attributes(
        &self,
        snapshot: &Snapshot,
        user: &str,
        attributes: &Attributes,
    ) -> Result<(), RecordError> {
        let ttl = snapshot.config.oauth_server.grant_ttl.max(snapshot.config.login.session_ttl);
        let known = self.records.get::<Attributes>(user).await?;
        // A conflict is another tab that did the same.
        self.records.put(user, known.map_or(0, |known| known.version), attributes, ttl).await?;
        self.attributes.changed(user);
        Ok(())
    }
}
