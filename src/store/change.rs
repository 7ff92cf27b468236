//! The named operations as decisions on one row, without any storage.
//!
//! Each says what to answer and what becomes of the row, from the row as it is and the store's time. A store finds
//! the row, lets it be decided on, and carries that out as one atomic step; so all stores decide alike.
use std::time::{Duration, SystemTime};

use super::lease::next_fence;
use super::row::{Body, Row, Tombstone, end};
use super::{
    Acquired, Claim, Committed, Connection, Kind, Put, Refusal, Release, Released, StoreError, Taken,
};

/// The row as a store has found it; a damaged one is an error that some operations get over.
pub type Found = Result<Option<Row>, StoreError>;

/// What an operation comes to.
pub struct Decision<T> {
    pub answer: T,
    pub write: Write,
    /// Whether subscribers hear of it.
    pub tell: bool,
}

/// What becomes of the row.
pub enum Write {
    Nothing,
    Save(Box<Row>),
    Delete,
}

impl<T> Decision<T> {
    fn nothing(answer: T) -> Result<Self, StoreError> {
        Ok(Self { answer, write: Write::Nothing, tell: false })
    }

    fn save(answer: T, row: Row, tell: bool) -> Result<Self, StoreError> {
        Ok(Self { answer, write: Write::Save(Box::new(row)), tell })
    }
}

/// See [`super::Store::put`].
pub fn put(
    found: Found,
    now: SystemTime,
    kind: Kind,
    expected: u64,
    value: Vec<u8>,
    ttl: Duration,
) -> Decided<Put> {
    let present = match found?.map(|row| row.body) {
        None => Some(0),
        Some(Body::Record { version, spent: false, .. }) => Some(version),
        Some(_) => None,
    };
    if present != Some(expected) {
        return Decision::nothing(Put::Conflict);
    }
    let body = Body::Record { version: expected.saturating_add(1), spent: false, value };
    // A grant changes with every refresh, and nobody has a copy of it: all that others need to hear of is its end.
    let tell = kind != Kind::Grant || expected == 0;
    Decision::save(Put::Stored, Row { expires_millis: end(now, ttl), body }, tell)
}

/// What every decision returns.
pub type Decided<T> = Result<Decision<T>, StoreError>;

/// See [`super::Store::take`].
pub fn take(found: Found) -> Decided<Taken> {
    let Some(mut row) = found? else {
        return Decision::nothing(Taken::Absent);
    };
    let Body::Record { spent, .. } = &mut row.body else {
        return Decision::nothing(Taken::Absent);
    };
    let replay = std::mem::replace(spent, true);
    let stored = row.clone().into_stored();
    match stored {
        None => Decision::nothing(Taken::Absent),
        Some(stored) if replay => Decision::nothing(Taken::Spent(stored)),
        Some(stored) => Decision::save(Taken::Fresh(stored), row, false),
    }
}

/// See [`super::Store::remove`].
pub fn remove(found: Found) -> Decided<()> {
    let (write, tell) = match replaceable(found)? {
        Some(Row { body: Body::Tombstone { .. }, .. }) => (Write::Nothing, false),
        Some(_) => (Write::Delete, true),
        None => (Write::Delete, false),
    };
    Ok(Decision { answer: (), write, tell })
}

/// See [`super::Store::tombstone`].
pub fn tombstone(found: Found, now: SystemTime, ttl: Duration) -> Decided<Tombstone> {
    let before = replaceable(found)?;
    let earlier_end = match &before {
        Some(Row { expires_millis, body: Body::Tombstone(_) }) => *expires_millis,
        _ => 0,
    };
    let tombstone = Tombstone {
        fence: next_fence(before.as_ref().map_or(0, Row::fence), now),
        incarnation: before.as_ref().and_then(Row::incarnation).map(str::to_owned),
    };
    let expires_millis = end(now, ttl).max(earlier_end);
    let row = Row { expires_millis, body: Body::Tombstone(tombstone.clone()) };
    Decision::save(tombstone, row, true)
}

/// See [`super::Store::bury`].
pub fn bury(found: Found, now: SystemTime, tombstone: &Tombstone, ttl: Duration) -> Decided<bool> {
    let mut tombstone = tombstone.clone();
    if let Some(row) = replaceable(found)? {
        let is_ended =
            matches!(row.body, Body::Connection(_)) && row.incarnation() == tombstone.incarnation.as_deref();
        if row.fence() >= tombstone.fence && !is_ended {
            return Decision::nothing(false);
        }
        tombstone.fence = tombstone.fence.max(row.fence().saturating_add(1));
    }
    let row = Row { expires_millis: end(now, ttl), body: Body::Tombstone(tombstone) };
    Decision::save(true, row, true)
}

/// See [`super::Store::reseal`].
pub fn reseal(found: Found, old: &[u8], new: Vec<u8>) -> Decided<bool> {
    let Some(mut row) = found? else {
        return Decision::nothing(false);
    };
    let value = match &mut row.body {
        Body::Record { value, .. } => value,
        Body::Connection(connection) => &mut connection.sealed,
        Body::Tombstone { .. } => return Decision::nothing(false),
    };
    if value != old {
        return Decision::nothing(false);
    }
    *value = new;
    Decision::save(true, row, false)
}

/// See [`super::Store::restore`].
pub fn restore(found: Found, row: Row) -> Decided<bool> {
    match found? {
        Some(present) if present == row || present.rank() > row.rank() => Decision::nothing(false),
        _ => Decision::save(true, row, true),
    }
}

/// See [`super::Store::connect`].
pub fn connect(
    found: Found,
    now: SystemTime,
    incarnation: &str,
    sealed: Vec<u8>,
    ttl: Duration,
) -> Decided<()> {
    let fence = next_fence(replaceable(found)?.map_or(0, |row| row.fence()), now);
    let body = Body::Connection(Connection::begin(incarnation, fence, sealed));
    Decision::save((), Row { expires_millis: end(now, ttl), body }, true)
}

/// See [`super::Store::acquire`]. `alone_since`: from then on no other process has had the store, so whoever held a
/// lease before is gone.
pub fn acquire(
    found: Found,
    now: SystemTime,
    attempt_id: &str,
    newer_than: u64,
    lease: Duration,
    alone_since: Option<SystemTime>,
) -> Decided<Acquired> {
    step(found, Acquired::Absent, None, false, |connection| {
        if let (Some(attempt), Some(since)) = (&mut connection.attempt, alone_since)
            && attempt.lease_until < since + lease
        {
            attempt.lease_until = attempt.lease_until.min(now);
        }
        connection.acquire(attempt_id, newer_than, lease, now)
    })
}

/// See [`super::Store::sent`].
pub fn sent(found: Found, now: SystemTime, attempt_id: &str, fence: u64) -> Decided<bool> {
    step(found, false, None, false, |connection| {
        let ours = connection.sent(attempt_id, fence, now);
        (ours, ours)
    })
}

/// See [`super::Store::commit`].
pub fn commit(
    found: Found,
    now: SystemTime,
    claim: &Claim,
    sealed: Vec<u8>,
    ttl: Duration,
) -> Decided<Committed> {
    step(found, Committed::Gone, Some(end(now, ttl)), true, |connection| connection.commit(claim, sealed))
}

/// See [`super::Store::release`].
pub fn release(
    found: Found,
    now: SystemTime,
    attempt_id: &str,
    fence: u64,
    outcome: Release,
) -> Decided<Released> {
    step(found, Released::Stale, None, true, |connection| {
        let released = connection.release(attempt_id, fence, outcome, now);
        (released, released != Released::Stale)
    })
}

/// See [`super::Store::refuse`].
pub fn refuse(found: Found, incarnation: &str, generation: u64, refusal: Refusal) -> Decided<bool> {
    step(found, false, None, true, |connection| {
        let current = connection.refuse(incarnation, generation, refusal);
        (current, current)
    })
}

/// One transition of the connection, which `transition` makes and says whether to keep. `expires` sets a new end;
/// without, the old one stays.
fn step<T>(
    found: Found,
    absent: T,
    expires: Option<u64>,
    tell: bool,
    transition: impl FnOnce(&mut Connection) -> (T, bool),
) -> Decided<T> {
    let Some(Row { expires_millis, body: Body::Connection(mut connection) }) = found? else {
        return Decision::nothing(absent);
    };
    match transition(&mut connection) {
        (answer, false) => Decision::nothing(answer),
        (answer, true) => {
            let expires_millis = expires.unwrap_or(expires_millis);
            Decision::save(answer, Row { expires_millis, body: Body::Connection(connection) }, tell)
        }
    }
}

/// The row, where a damaged one is as good as none because it will be replaced.
fn replaceable(found: Found) -> Found {
    match found {
        Err(StoreError::Corrupt) => Ok(None),
        found => found,
    }
}
