//! Blocked users: nothing of theirs counts, neither sign-in nor session, neither refresh nor access token, until they are
//! unblocked. What they are connected to stays, so that nobody has to consent anew after a mistake.
//!
//! The record's key is the user's name, so that a lost sealing key lets nobody back in.
use std::collections::HashSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::clock::unix_seconds;
use crate::oauth::client::exchanged::forget_exchanged;
use crate::store::record::{RecordError, Records, Typed};
use crate::store::{FOREVER, Kind, Put, StoreError};

/// A block (store record).
#[derive(Serialize, Deserialize)]
pub struct Block {
    /// Seconds since the epoch.
    pub since: u64,
}

impl Typed for Block {
    const KIND: Kind = Kind::Block;
}

/// Blocks a user; `false`: they were blocked already.
pub async fn block(records: &Records, user: &str, now: SystemTime) -> Result<bool, RecordError> {
    let put = records.put(user, 0, &Block { since: unix_seconds(now) }, FOREVER).await?;
    if put == Put::Stored {
        tracing::info!(target: "audit", event = "user_blocked", user);
        forget_exchanged(records, user).await?;
    }
    Ok(put == Put::Stored)
}

/// Lifts a block; `false`: there was none.
pub async fn unblock(records: &Records, user: &str) -> Result<bool, RecordError> {
    let blocked = records.store().get(Kind::Block, user).await?.is_some();
    if blocked {
        records.remove::<Block>(user).await?;
        tracing::info!(target: "audit", event = "user_unblocked", user);
    }
    Ok(blocked)
}

/// Everybody who is blocked.
pub async fn blocked(records: &Records) -> Result<HashSet<String>, StoreError> {
    Ok(records.store().scan(Kind::Block).await?.into_iter().map(|(user, _)| user).collect())
}
