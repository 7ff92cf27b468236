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
//! for the case that this one finds the old refresh token dead.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// One user's authorization at one upstream, as the store sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Random name of the authorization by the user that began this connection.
    pub incarnation: String,
    /// 1 after the user connected, one more for each committed refresh.
    pub generation: u64,
    /// Grows with every acquisition, reconnection and disconnection; never 0.
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
    /// Tokens that an owner got after another had taken over.
    #[serde(default)]
    pub orphan: Option<Orphan>,
    /// The upstream has turned down the access tokens up to this generation.
    #[serde(default)]
    pub refused: u64,
}

/// Tokens that came too late. Sealed as the generation after the present one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// Of the attempt that got them; of several the highest counts, which asked last.
    pub fence: u64,
    /// The tokens.
    #[serde(with = "sealed_text")]
    pub sealed: Vec<u8>,
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Somebody else is at it, at most until then.
    Wait {
        /// End of the owner's lease.
        until: SystemTime,
    },
    /// The last attempt failed for a passing reason; none is made before then.
    Backoff {
        /// Earliest next attempt.
        until: SystemTime,
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
    /// The connection is another or a newer one. Nothing was written.
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
        /// Earliest next attempt.
        not_before: SystemTime,
    },
    /// Nobody can tell whether it was redeemed.
    Ambiguous {
        /// Earliest next attempt.
        not_before: SystemTime,
    },
    /// The authorization server says that the refresh token is dead.
    NeedsReauth,
}

impl Connection {
    /// A connection that a user has just made. `previous_fence` is 0 where nothing was before.
    pub fn begin(incarnation: &str, previous_fence: u64, sealed: Vec<u8>) -> Connection {
        Connection {
            incarnation: incarnation.to_owned(),
            generation: 1,
            fence: previous_fence.saturating_add(1),
            state: State::Active,
            attempt: None,
            not_before: None,
            sealed,
            committed_by: None,
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
        if self.state == State::NeedsReauth {
            return (Acquired::NeedsReauth, false);
        }
        if self.generation > newer_than {
            return (Acquired::Fresh(self.clone()), false);
        }
        let takeover = match &self.attempt {
            Some(attempt) if attempt.id == attempt_id && now < attempt.lease_until => {
                let takeover = attempt.takeover;
                return (Acquired::Owner { connection: self.clone(), takeover }, false);
            }
            Some(attempt) if now < attempt.lease_until => {
                return (Acquired::Wait { until: attempt.lease_until }, false);
            }
            Some(_) if self.orphan.is_some() => {
                let sealed = self.orphan.take().map(|orphan| orphan.sealed).unwrap_or_default();
                self.begin_generation(self.generation.saturating_add(1), sealed);
                return (Acquired::Fresh(self.clone()), true);
            }
            Some(attempt) => Some(attempt.reach()),
            None => {
                if let Some(until) = self.not_before
                    && now < until
                {
                    return (Acquired::Backoff { until }, false);
                }
                (self.state == State::Ambiguous).then_some(Phase::Sent)
            }
        };
        self.fence = self.fence.saturating_add(1);
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
        if self.generation > claim.generation {
            return (Committed::Stale, false);
        }
        // A fence that the record does not know: a failover has taken back the acquisition, and perhaps commits.
        let is_owner = self.owned_by(&claim.attempt_id, claim.fence) || claim.fence > self.fence;
        let is_underway = self.attempt.as_ref().is_some_and(|attempt| attempt.phase == Phase::Sent);
        if !is_owner && is_underway {
            if self.orphan.as_ref().is_none_or(|orphan| orphan.fence < claim.fence) {
                self.orphan = Some(Orphan { fence: claim.fence, sealed });
            }
            return (Committed::Orphaned, true);
        }
        self.fence = self.fence.max(claim.fence);
        self.begin_generation(claim.generation.saturating_add(1), sealed);
        self.committed_by = Some(claim.attempt_id.clone());
        (Committed::Stored { generation: self.generation }, true)
    }

    fn begin_generation(&mut self, generation: u64, sealed: Vec<u8>) {
        self.generation = generation;
        self.state = State::Active;
        self.attempt = None;
        self.not_before = None;
        self.sealed = sealed;
        self.committed_by = None;
        self.orphan = None;
    }

    /// See [`super::Store::release`].
    pub fn release(&mut self, attempt_id: &str, fence: u64, outcome: Release) -> Released {
        let Some(attempt) = self.attempt.take_if(|attempt| attempt.is(attempt_id, fence)) else {
            return Released::Stale;
        };
        if let Some(orphan) = self.orphan.take() {
            self.begin_generation(self.generation.saturating_add(1), orphan.sealed);
            return Released::Rescued;
        }
        let (state, not_before) = match outcome {
            // An answer that an earlier owner missed is still missing.
            Release::Transient { not_before } if attempt.takeover == Some(Phase::Sent) => {
                (State::Ambiguous, Some(not_before))
            }
            Release::Transient { not_before } => (State::Active, Some(not_before)),
            Release::Ambiguous { not_before } => (State::Ambiguous, Some(not_before)),
            Release::NeedsReauth => (State::NeedsReauth, None),
        };
        // What the upstream refused meanwhile stays refused.
        if self.state != State::NeedsReauth {
            self.state = state;
        }
        self.not_before = not_before;
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

/// Bytes as base64 in the JSON of a record's head.
pub(super) mod sealed_text {
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
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
