//! The operations of the store, as both stores run them, and what each guard is worth: without it, the same operation
//! decides on a record or a claim that has been tampered with so that the guard sees nothing wrong.

use std::time::SystemTime;

use postern::store::change::{self, Decided, Decision, Write};
use postern::store::row::Body;
use postern::store::{
    Acquired, Claim, Committed, Connection, Phase, Refusal, Release, Released, Row, State, Tombstone,
};

use super::world::{LEASE, TTL, duration};

/// What the protocol rests on. Each can be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// While a lease lives, nobody else owns the refresh.
    LeaseExclusive,
    /// When it is over, somebody else may take over.
    LeaseEnds,
    /// Nothing is redeemed when the record has something newer already.
    Freshness,
    /// What is sent is what the acquisition returned, not what was in memory.
    Reread,
    /// No attempt before `not_before`.
    Backoff,
    /// Who takes over learns that the token was sent before.
    TakeoverKnowsSent,
    /// The store knows that the token leaves.
    IntentBeforeSend,
    /// Only the present owner may say so.
    OwnerOnSent,
    /// Not acknowledged, not sent.
    NoStoreNoSend,
    /// An attempt ends before its lease does.
    BoundedWork,
    /// A server known to be strict is not probed before the access token has ended.
    StrictWaits,
    /// The answer is on disk before the store is told.
    Journal,
    /// Nobody sees new tokens before they are on disk.
    PersistFirst,
    /// A commit does not replace what somebody else has under way.
    FenceOnCommit,
    /// A commit that comes late is taken while nobody else has sent.
    LateCommitTaken,
    /// A commit that meets somebody else's attempt is kept beside.
    OrphanKept,
    /// What was kept beside replaces what turns out dead.
    OrphanRescues,
    /// What was kept beside has a generation of its own.
    OrphanGeneration,
    /// A commit counts for the authorization it came from.
    IncarnationOnCommit,
    /// Disconnecting leaves nothing that a commit could fit.
    TombstoneFence,
    /// A tombstone knows what it ended.
    TombstoneNames,
    /// Only the present owner's `invalid_grant` ends the connection.
    LoserHarmless,
    /// A refused access token says nothing about a newer one.
    RefusalNamesGeneration,
    /// What is in the journal is said again after a start.
    ReassertOnStart,
    /// And after a failover.
    ReassertOnFailover,
    /// What the store would not take is offered to it again and again.
    OfferedOn,
    /// Who knows newer tokens than the store has does not send the old one.
    KnowsBetter,
    /// Of two answers to one token the one asked for later counts.
    LaterAskedCounts,
    /// A fence is at least the moment it was given.
    FenceIsMoment,
}

/// One operation on the record as it lies there.
pub struct Operation {
    pub row: Row,
    pub now: SystemTime,
    pub without: Option<Guard>,
}

impl Operation {
    pub fn acquire(mut self, id: &str, mut newer_than: u64) -> Decided<Acquired> {
        let (now, without) = (self.now, self.without);
        if let Some(connection) = self.connection() {
            match without {
                Some(Guard::LeaseExclusive) => set_lease(connection, now),
                Some(Guard::LeaseEnds) => set_lease(connection, now + duration(LEASE)),
                Some(Guard::Freshness | Guard::Reread) => newer_than = u64::MAX,
                Some(Guard::Backoff) => connection.not_before = None,
                Some(Guard::TakeoverKnowsSent) => forget_sent(connection),
                Some(Guard::OrphanRescues) => connection.orphan = None,
                Some(Guard::OrphanGeneration) => renumber(connection),
                _ => {}
            }
        }
        let before = self.row.fence();
        let mut decision = change::acquire(Ok(Some(self.row)), now, id, newer_than, duration(LEASE), None)?;
        if without == Some(Guard::FenceIsMoment)
            && let (Acquired::Owner { connection, .. }, Write::Save(row)) =
                (&mut decision.answer, &mut decision.write)
        {
            connection.fence = before + 1;
            if let Some(attempt) = &mut connection.attempt {
                attempt.fence = before + 1;
            }
            row.body = Body::Connection(connection.clone());
        }
        Ok(decision)
    }

    pub fn sent(mut self, id: &str, fence: u64) -> Decided<bool> {
        if self.without == Some(Guard::OwnerOnSent)
            && let Some(attempt) = self.connection().and_then(|connection| connection.attempt.clone())
        {
            return change::sent(Ok(Some(self.row)), self.now, &attempt.id, attempt.fence);
        }
        change::sent(Ok(Some(self.row)), self.now, id, fence)
    }

    pub fn commit(mut self, claim: &Claim, sealed: Vec<u8>) -> Decided<Committed> {
        let (mut claim, without) = (claim.clone(), self.without);
        if let Some(connection) = self.connection() {
            let owned = connection
                .attempt
                .as_ref()
                .is_some_and(|attempt| attempt.id == claim.attempt_id && attempt.fence == claim.fence);
            match without {
                Some(Guard::FenceOnCommit) if !owned => connection.attempt = None,
                Some(Guard::LateCommitTaken) if !owned => return nothing(Committed::Stale),
                Some(Guard::IncarnationOnCommit) => claim.incarnation.clone_from(&connection.incarnation),
                _ => {}
            }
        }
        if without == Some(Guard::LaterAskedCounts)
            && let Some(connection) = self.connection()
            && connection.generation > claim.generation
            && connection.committed_by.as_deref() != Some(&claim.attempt_id)
        {
            return nothing(Committed::Stale);
        }
        let decision = change::commit(Ok(Some(self.row)), self.now, &claim, sealed, TTL)?;
        if without == Some(Guard::OrphanKept) && decision.answer == Committed::Orphaned {
            return nothing(Committed::Stale);
        }
        Ok(decision)
    }

    pub fn release(mut self, id: &str, fence: u64, outcome: Release) -> Decided<Released> {
        let without = self.without;
        if let Some(connection) = self.connection() {
            match without {
                Some(Guard::OrphanRescues) => connection.orphan = None,
                Some(Guard::OrphanGeneration) => renumber(connection),
                Some(Guard::LoserHarmless) if outcome == Release::NeedsReauth => {
                    connection.state = State::NeedsReauth;
                    connection.attempt = None;
                    return Ok(Decision {
                        answer: Released::Done,
                        write: Write::Save(Box::new(self.row)),
                        tell: true,
                    });
                }
                _ => {}
            }
        }
        change::release(Ok(Some(self.row)), self.now, id, fence, outcome)
    }

    pub fn refuse(mut self, incarnation: &str, generation: u64, refusal: Refusal) -> Decided<bool> {
        if self.without == Some(Guard::RefusalNamesGeneration)
            && let Some(connection) = self.connection()
        {
            let (incarnation, generation) = (connection.incarnation.clone(), connection.generation);
            return change::refuse(Ok(Some(self.row)), &incarnation, generation, refusal);
        }
        change::refuse(Ok(Some(self.row)), incarnation, generation, refusal)
    }

    pub fn tombstone(mut self) -> Decided<Tombstone> {
        if self.without == Some(Guard::TombstoneFence)
            && let Some(connection) = self.connection()
        {
            connection.state = State::NeedsReauth;
            let answer = Tombstone { fence: connection.fence, incarnation: None };
            return Ok(Decision { answer, write: Write::Save(Box::new(self.row)), tell: true });
        }
        change::tombstone(Ok(Some(self.row)), self.now, TTL)
    }

    pub fn bury(self, fence: u64, incarnation: &str) -> Decided<bool> {
        let named = (self.without != Some(Guard::TombstoneNames)).then(|| incarnation.to_owned());
        change::bury(Ok(Some(self.row)), self.now, &Tombstone { fence, incarnation: named }, TTL)
    }

    pub fn connect(self, incarnation: &str, sealed: Vec<u8>) -> Decided<()> {
        change::connect(Ok(Some(self.row)), self.now, incarnation, sealed, TTL)
    }

    fn connection(&mut self) -> Option<&mut Connection> {
        match &mut self.row.body {
            Body::Connection(connection) => Some(connection),
            _ => None,
        }
    }
}

fn nothing<T>(answer: T) -> Decided<T> {
    Ok(Decision { answer, write: Write::Nothing, tell: false })
}

fn renumber(connection: &mut Connection) {
    if let Some(orphan) = &mut connection.orphan {
        orphan.generation = connection.generation + 1;
    }
}

fn set_lease(connection: &mut Connection, until: SystemTime) {
    if let Some(attempt) = &mut connection.attempt {
        attempt.lease_until = until;
    }
}

fn forget_sent(connection: &mut Connection) {
    if connection.state == State::Ambiguous {
        connection.state = State::Active;
    }
    if let Some(attempt) = &mut connection.attempt {
        attempt.phase = Phase::Intent;
        attempt.takeover = None;
    }
}
