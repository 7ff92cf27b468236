//! Who may redeem a connection's refresh token: the state machine, without any storage.
//!
//! A rotating refresh token can be redeemed once, by one party, and the answer can get lost. So an
//! owner is chosen for a bounded time, its intent is durable before the token leaves, and every
//! write names the fence of its acquisition, which only ever grows. These are pure transitions on one
//! record; a store wraps each of them into one atomic operation, and `tests/model.rs` walks through
//! what crashes, pauses, lost answers and failovers can make of them.
//!
//! Who comes late is not turned away empty-handed: new tokens are never thrown away while the record
//! has nothing newer. With nobody at it they are taken; with somebody at it they wait as an *orphan*
//! for the case that this one finds the old refresh token dead. Of two answers to one refresh token the
//! one that was asked for later counts, since there are servers where it ends the other.
//!
//! A failover may take back what was acknowledged, fences too. So a fence is at least the moment it was
//! given, by the store's clock: what was given after a failover is higher than what was lost with it.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::row::millis;

/// One user's authorization at one upstream, as the store sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Connection {
    /// Random name of the authorization by the user that began this connection.
    pub incarnation: String,
    /// 1 after the user connected, one more for each committed refresh.
    pub generation: u64,
    /// Grows with every acquisition, reconnection and disconnection ([`next_fence`]); never 0.
    pub fence: u64,
    /// Where it stands.
    pub state: State,
    /// The attempt under way, or one whose owner has died.
    pub attempt: Option<Attempt>,
    /// No new attempt before this moment.
    pub not_before: Option<SystemTime>,
    /// The tokens, sealed with version = generation and key = `{key}/{incarnation}`.
    #[serde(skip)]
    pub sealed: Vec<u8>,
    /// The attempt that made this generation, so that its owner can repeat a commit.
    pub committed_by: Option<String>,
    /// The fence of the attempt that got these tokens; of the connection itself where the user brought them.
    #[serde(default)]
    pub committed_fence: u64,
    /// Tokens that an owner got after another had taken over.
    #[serde(default)]
    pub orphan: Option<Orphan>,
    /// The upstream has turned down the access tokens up to this generation.
    #[serde(default)]
    pub refused: u64,
}

/// Tokens that came too late.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Orphan {
    /// What they are sealed as: the present generation or a later one, where a failover has taken back some.
    pub generation: u64,
    /// Of the attempt that got them; of several the highest counts, which asked last.
    pub fence: u64,
    /// The tokens.
    #[serde(with = "super::sealed_text")]
    pub sealed: Vec<u8>,
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The stored tokens are as good as their expiry says.
    Active,
    /// An attempt is under way; the stored access token may still be used.
    Refreshing,
    /// A refresh token was sent and its answer never came; it may have been redeemed.
    Ambiguous,
    /// The upstream accepts nothing of this any more; the user has to connect again.
    NeedsReauth,
}

/// One try to redeem the refresh token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// Random name given by its owner.
    pub id: String,
    /// The fence that its writes must name.
    pub fence: u64,
    /// How far it got.
    pub phase: Phase,
    /// From this moment on somebody else may take over.
    pub lease_until: SystemTime,
    /// How far the attempt got that this one took over from, if that never ended properly.
    pub takeover: Option<Phase>,
}

/// How far an attempt got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing has left yet.
    Intent,
    /// The refresh token may have reached the authorization server.
    Sent,
}

/// What an acquisition got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The caller owns the refresh; its fence is `connection.fence`. With `takeover` at
    /// [`Phase::Sent`] an earlier answer is missing and the stored refresh token may be used up.
    Owner {
        /// The connection, with the caller's attempt in it.
        connection: Connection,
        /// How far an unfinished attempt before this one got.
        takeover: Option<Phase>,
    },
    /// There already is a newer generation than the one not wanted.
    Fresh(Connection),
    /// Somebody else is at it, for so long at most.
    Wait {
        /// Until the owner's lease ends.
        left: Duration,
    },
    /// The last attempt failed for a passing reason; none is made so soon.
    Backoff {
        /// Until the earliest next attempt.
        left: Duration,
    },
    /// Only the user can help.
    NeedsReauth,
    /// Not connected.
    Absent,
}

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Stored; this is its generation.
    Stored {
        /// The generation the new tokens have.
        generation: u64,
    },
    /// Somebody else is at it: kept beside, for the case that they find the old refresh token dead.
    Orphaned,
    /// The connection is another or a newer one. These tokens were not written.
    Stale,
    /// Disconnected, or gone. Nothing was written, and nobody wants these tokens any more.
    Gone,
}

/// How a release ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// As asked for.
    Done,
    /// The refresh token was dead, but a late answer had brought newer tokens: they are in force now.
    Rescued,
    /// The attempt was not ours any more. Nothing was written.
    Stale,
}

/// What a refused access token means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not used any more, a newer one may be.
    Renewable,
    /// Only the user can help.
    Final,
}

/// By what right an owner writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Of the connection that was acquired.
    pub incarnation: String,
    /// Of the connection that was acquired; the new tokens are sealed as the next one.
    pub generation: u64,
    /// The attempt's id.
    pub attempt_id: String,
    /// The attempt's fence.
    pub fence: u64,
}

/// Why an attempt ends without a new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The refresh token was certainly not redeemed.
    Transient {
        /// Until the earliest next attempt: instances have clocks of their own, so the store counts.
        wait: Duration,
    },
    /// Nobody can tell whether it was redeemed.
    Ambiguous {
        /// Until the earliest next attempt: instances have clocks of their own, so the store counts.
        wait: Duration,
    },
    /// The authorization server says that the refresh token is dead.
    NeedsReauth,
}

impl Connection {
    /// A connection that a user has just made.
    pub fn begin(incarnation: &str, fence: u64, sealed: Vec<u8>) -> Connection {
        Connection {
            incarnation: incarnation.to_owned(),
            generation: 1,
            fence,
            state: State::Active,
            attempt: None,
            not_before: None,
            sealed,
            committed_by: None,
            committed_fence: fence,
            orphan: None,
            refused: 0,
        }
    }

    /// See [`super::Store::acquire`]. The second value says whether the connection changed.
    pub fn acquire(
        &mut self,
        attempt_id: &str,
        newer_than: u64,
        lease: Duration,
        now: SystemTime,
    ) -> (Acquired, bool) {
        let is_over = self.attempt.as_ref().is_some_and(|attempt| now >= attempt.lease_until);
        let rescued = is_over && self.take_orphan();
        if self.state == State::NeedsReauth {
            return (Acquired::NeedsReauth, rescued);
        }
        if self.generation > newer_than {
            return (Acquired::Fresh(self.clone()), rescued);
        }
        let takeover = match &self.attempt {
            Some(attempt) if attempt.id == attempt_id && now < attempt.lease_until => {
                let takeover = attempt.takeover;
                return (Acquired::Owner { connection: self.clone(), takeover }, false);
            }
            Some(attempt) if now < attempt.lease_until => {
                return (Acquired::Wait { left: left(attempt.lease_until, now) }, false);
            }
            Some(attempt) => Some(attempt.reach()),
            None => {
                if let Some(until) = self.not_before
                    && now < until
                {
                    return (Acquired::Backoff { left: left(until, now) }, false);
                }
                (self.state == State::Ambiguous).then_some(Phase::Sent)
            }
        };
        self.fence = next_fence(self.fence, now);
        self.state = State::Refreshing;
        self.not_before = None;
        self.attempt = Some(Attempt {
            id: attempt_id.to_owned(),
            fence: self.fence,
            phase: Phase::Intent,
            lease_until: now.checked_add(lease).unwrap_or(now),
            takeover,
        });
        (Acquired::Owner { connection: self.clone(), takeover }, true)
    }

    /// See [`super::Store::sent`].
    pub fn sent(&mut self, attempt_id: &str, fence: u64, now: SystemTime) -> bool {
        match self.attempt.as_mut().filter(|attempt| attempt.is(attempt_id, fence)) {
            Some(attempt) if now < attempt.lease_until => {
                attempt.phase = Phase::Sent;
                true
            }
            _ => false,
        }
    }

    /// See [`super::Store::commit`]. The second value says whether the connection changed.
    pub fn commit(&mut self, claim: &Claim, sealed: Vec<u8>) -> (Committed, bool) {
        if self.incarnation != claim.incarnation {
            return (Committed::Stale, false);
        }
        if self.attempt.is_none() && self.committed_by.as_deref() == Some(&claim.attempt_id) {
            return (Committed::Stored { generation: self.generation }, false);
        }
        let tokens = Orphan { generation: claim.generation.saturating_add(1), fence: claim.fence, sealed };
        if tokens.age() <= (self.generation, self.committed_fence) {
            return (Committed::Stale, false);
        }
        let waits_later = self.orphan.as_ref().is_some_and(|orphan| orphan.age() > tokens.age());
        let is_underway = self.attempt.as_ref().is_some_and(|attempt| attempt.phase == Phase::Sent);
        if is_underway && !self.owned_by(&claim.attempt_id, claim.fence) {
            if !waits_later {
                self.orphan = Some(tokens);
            }
            return (Committed::Orphaned, true);
        }
        self.fence = self.fence.max(claim.fence);
        if waits_later {
            return (Committed::Stale, self.take_orphan());
        }
        self.begin_generation(tokens);
        self.committed_by = Some(claim.attempt_id.clone());
        (Committed::Stored { generation: self.generation }, true)
    }

    fn begin_generation(&mut self, tokens: Orphan) {
        self.generation = tokens.generation;
        self.state = State::Active;
        self.attempt = None;
        self.not_before = None;
        self.sealed = tokens.sealed;
        self.committed_by = None;
        self.committed_fence = tokens.fence;
        self.orphan = None;
        // These have not been refused, even where others had their number.
        self.refused = self.refused.min(self.generation.saturating_sub(1));
    }

    /// Puts in force what has been kept beside, if anything.
    fn take_orphan(&mut self) -> bool {
        let orphan = self.orphan.take();
        orphan.map(|orphan| self.begin_generation(orphan)).is_some()
    }

    /// See [`super::Store::release`].
    pub fn release(&mut self, attempt_id: &str, fence: u64, outcome: Release, now: SystemTime) -> Released {
        let Some(attempt) = self.attempt.take_if(|attempt| attempt.is(attempt_id, fence)) else {
            return Released::Stale;
        };
        if self.take_orphan() {
            return Released::Rescued;
        }
        let (state, wait) = match outcome {
            // An answer that an earlier owner missed is still missing.
            Release::Transient { wait } if attempt.takeover == Some(Phase::Sent) => {
                (State::Ambiguous, Some(wait))
            }
            Release::Transient { wait } => (State::Active, Some(wait)),
            Release::Ambiguous { wait } => (State::Ambiguous, Some(wait)),
            Release::NeedsReauth => (State::NeedsReauth, None),
        };
        // What the upstream refused meanwhile stays refused.
        if self.state != State::NeedsReauth {
            self.state = state;
        }
        self.not_before = wait.and_then(|wait| now.checked_add(wait));
        Released::Done
    }

    /// See [`super::Store::refuse`].
    pub fn refuse(&mut self, incarnation: &str, generation: u64, refusal: Refusal) -> bool {
        if self.incarnation != incarnation || self.generation != generation {
            return false;
        }
        self.refused = generation;
        if refusal == Refusal::Final {
            self.state = State::NeedsReauth;
        }
        true
    }

    fn owned_by(&self, attempt_id: &str, fence: u64) -> bool {
        self.attempt.as_ref().is_some_and(|attempt| attempt.is(attempt_id, fence))
    }
}

/// The fence after this one. Those that a failover has taken back were given earlier, so they are lower.
pub fn next_fence(previous: u64, now: SystemTime) -> u64 {
    previous.saturating_add(1).max(millis(now))
}

fn left(until: SystemTime, now: SystemTime) -> Duration {
    until.duration_since(now).unwrap_or_default()
}

impl Orphan {
    /// The higher, the later it was asked for.
    fn age(&self) -> (u64, u64) {
        (self.generation, self.fence)
    }
}

impl Attempt {
    fn is(&self, attempt_id: &str, fence: u64) -> bool {
        self.id == attempt_id && self.fence == fence
    }

    /// The furthest that the refresh token got in this attempt and those it took over from.
    fn reach(&self) -> Phase {
        if self.takeover == Some(Phase::Sent) { Phase::Sent } else { self.phase }
    }
}
