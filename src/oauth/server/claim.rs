//! The one use of an authorization code: its grant is written, then the code is spent. Two writes, so that a failure in
//! between is told from a replay.
//!
//! The grant comes first: of many who redeem at once just one writes it, and only who has written may spend, so no
//! code is ever spent for nothing. Who finds a grant that is not its own waits until the code is spent, and is a
//! replay then. It may stay unspent, because the store or the process failed between the two writes: nobody has had
//! an answer, so that use is replaced, its grant by the version read, and the client that tries again gets its tokens.
//! Once the code is spent a lost answer is lost, whoever lost it: that cannot be told from a replay.
use std::time::Duration;

use super::Authority;
use super::code::Code;
use super::grant::Grant;
use super::refusal::Refusal;
use crate::clock::unix_seconds;
use crate::store::Put;
use crate::store::record::{Take, Versioned};

/// A grant this old whose code is not spent was left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(3);
/// How often, and how long in all, one redemption looks whether the one before it ends.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: usize = 70;

/// Writes the grant under `id` and spends the code under `code`; says whether this is the code's one use.
pub(super) async fn claim(
    authority: &Authority,
    code: &str,
    id: &str,
    grant: &mut Grant,
    ttl: Duration,
) -> Result<bool, Refusal> {
    let mut replaced = 0;
    loop {
        grant.created_at = unix_seconds(authority.clock.now());
        if authority.records.put(id, replaced, grant, ttl).await? == Put::Stored {
            return Ok(matches!(authority.records.take::<Code>(code).await?, Take::Fresh(_)));
        }
        match left_behind(authority, code, id).await? {
            Some(version) => replaced = version,
            None => return Ok(false),
        }
    }
}

/// The version of the grant that a redemption has left behind. `None` when it has ended, one way or the other.
async fn left_behind(authority: &Authority, code: &str, id: &str) -> Result<Option<u64>, Refusal> {
    for _ in 0..LOOKS {
        if authority.records.get::<Code>(code).await?.is_none_or(|code| code.spent) {
            return Ok(None);
        }
        let Some(Versioned { value: grant, version, .. }) = authority.records.get::<Grant>(id).await? else {
            return Ok(None);
        };
        if unix_seconds(authority.clock.now()) >= grant.created_at + LEFT_BEHIND.as_secs() {
            return Ok(Some(version));
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(Refusal::unavailable("the code is being redeemed elsewhere, try again"))
}
