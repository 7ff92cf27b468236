//! What no longer counts, whatever unexpired access tokens still say: grants that were revoked, clients that were deleted,
//! users who are blocked.
//! A copy in memory of what the store says, fed by its events, so that a request asks nobody.
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use dashmap::{DashMap, DashSet};

/// Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Revoked(Arc<Sets>);

#[derive(Default)]
struct Sets {
    /// Until when: the last access token of the grant has expired then.
    grants: DashMap<String, SystemTime>,
    /// As grants.
    clients: DashMap<String, SystemTime>,
    users: DashSet<String>,
    /// Hardly ever anything is revoked; then asking is one load. Once true it stays.
    any: AtomicBool,
    /// Grows with everything that is taken back, so that whoever goes on for long knows when to ask again.
    count: AtomicU64,
}

impl Revoked {
    /// `until`: when the last access token of the grant has expired at the latest.
    pub fn revoke(&self, grant: String, until: SystemTime) {
        self.0.grants.insert(grant, until);
        self.taken_back();
    }

    /// `until`: as for a grant.
    pub fn revoke_client(&self, client: String, until: SystemTime) {
        self.0.clients.insert(client, until);
        self.taken_back();
    }

    pub fn block(&self, user: String) {
        self.0.users.insert(user);
        self.taken_back();
    }

    /// Something was taken back, here or elsewhere.
    pub fn taken_back(&self) {
        self.0.any.store(true, Ordering::Release);
        self.0.count.fetch_add(1, Ordering::Release);
    }

    /// Another number than before: something was taken back since.
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Acquire)
    }

    pub fn unblock(&self, user: &str) {
        self.0.users.remove(user);
    }

    /// These users are blocked, and nobody else.
    pub fn block_only(&self, users: HashSet<String>) {
        self.0.users.retain(|user| users.contains(user));
        users.into_iter().for_each(|user| self.block(user));
    }

    pub fn has_grant(&self, grant: &str) -> bool {
        self.0.any.load(Ordering::Acquire) && self.0.grants.contains_key(grant)
    }

    pub fn has_client(&self, client: &str) -> bool {
        self.0.any.load(Ordering::Acquire) && self.0.clients.contains_key(client)
    }

    pub fn has_user(&self, user: &str) -> bool {
        self.0.any.load(Ordering::Acquire) && self.0.users.contains(user)
    }

    /// Forgets what can no longer matter.
    pub fn sweep(&self, now: SystemTime) {
        self.0.grants.retain(|_, until| *until > now);
        self.0.clients.retain(|_, until| *until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_and_go_while_others_stay() {
        let revoked = Revoked::default();
        assert!(!revoked.has_user("alice"));
        revoked.block("alice".into());
        revoked.block("bob".into());
        revoked.block_only(["bob".to_owned(), "carol".to_owned()].into());
        assert!(!revoked.has_user("alice") && revoked.has_user("bob") && revoked.has_user("carol"));
        revoked.unblock("bob");
        assert!(!revoked.has_user("bob"));
    }
}
