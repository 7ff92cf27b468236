//! Service accounts: programs that call without people, with a token that an operator has made for them. It is good until
//! it is taken back or its time is over, at the routes it was made for and nowhere else.
//!
//! All accounts are in memory, by the digests of their tokens; a copy of the store that its events keep true.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::clock::unix_seconds;
use crate::seal;
use crate::store::record::{RecordError, Records, Typed};
use crate::store::{Kind, Put};

/// No account lives longer.
pub const LIFETIME_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);
/// What every token of a service account begins with.
pub const PREFIX: &str = "postern_st_";
/// What the subject of a service account begins with; no user's name does.
pub const SUBJECT: &str = "service:";

/// A service account (store record, found by its name).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAccount {
    pub name: String,
    /// [`SUBJECT`] and the name.
    pub subject: String,
    /// Digest of the token.
    pub digest: String,
    /// Names of the routes it may call.
    pub routes: Vec<String>,
    /// The user whose connections it uses. `None`: nobody's.
    pub acts_for: Option<String>,
    /// What it may do through the management API, as scopes.
    #[serde(default)]
    pub api: Vec<String>,
    /// Seconds since the epoch.
    pub created_at: u64,
    pub expires_at: u64,
}

impl Typed for ServiceAccount {
    const KIND: Kind = Kind::Service;
}

/// What an operator asks for.
pub struct Wanted {
    pub name: String,
    pub routes: Vec<String>,
    pub acts_for: Option<String>,
    pub api: Vec<String>,
    pub lifetime: Duration,
}

/// Makes an account; returns its token, which is not kept. `None`: there is one of that name.
pub async fn create(
    records: &Records,
    wanted: Wanted,
    now: SystemTime,
) -> Result<Option<String>, RecordError> {
    let token = format!("{PREFIX}{}", seal::token()?.expose_secret());
    let account = ServiceAccount {
        subject: format!("{SUBJECT}{}", wanted.name),
        name: wanted.name,
        digest: seal::digest(&token),
        routes: wanted.routes,
        acts_for: wanted.acts_for,
        api: wanted.api,
        created_at: unix_seconds(now),
        expires_at: unix_seconds(now + wanted.lifetime),
    };
    if records.put(&account.name, 0, &account, wanted.lifetime).await? == Put::Conflict {
        return Ok(None);
    }
    tracing::info!(target: "audit", event = "service_account_created", name = %account.name);
    Ok(Some(token))
}

/// Takes an account back; `false`: there was none of that name.
pub async fn revoke(records: &Records, name: &str) -> Result<bool, RecordError> {
    let there = records.store().get(Kind::Service, name).await?.is_some();
    if there {
        records.remove::<ServiceAccount>(name).await?;
        tracing::info!(target: "audit", event = "service_account_revoked", name);
    }
    Ok(there)
}

/// The accounts in memory. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Services(Arc<DashMap<String, Arc<ServiceAccount>>>);

impl Services {
    /// The account whose token this is.
    pub fn find(&self, token: &str) -> Option<Arc<ServiceAccount>> {
        self.0.get(&seal::digest(token)).map(|account| Arc::clone(&account))
    }

    /// Whether there still is this account.
    pub fn has(&self, account: &ServiceAccount) -> bool {
        self.0.contains_key(&account.digest)
    }

    /// Looks at one account again.
    pub async fn changed(&self, records: &Records, name: &str) -> Result<(), RecordError> {
        let account = records.readable::<ServiceAccount>(name).await?;
        self.0.retain(|_, known| known.name != name);
        if let Some(account) = account {
            self.insert(account.value);
        }
        Ok(())
    }

    /// Looks at all of them again.
    pub async fn read(&self, records: &Records) -> Result<(), RecordError> {
        let accounts = records.scan::<ServiceAccount>().await?;
        let there: HashSet<_> = accounts.iter().map(|(_, account)| account.value.digest.as_str()).collect();
        self.0.retain(|digest, _| there.contains(digest.as_str()));
        accounts.into_iter().for_each(|(_, account)| self.insert(account.value));
        Ok(())
    }

    fn insert(&self, account: ServiceAccount) {
        self.0.insert(account.digest.clone(), Arc::new(account));
    }
}
