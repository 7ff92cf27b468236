//! A story that a store lives through: operations as the gateway's parts make them, their answers, and what the store
//! holds after each.
//!
//! A story is made from a seed and is always the same, so another process can tell it from any point on.

use std::sync::Arc;
use std::time::Duration;

use super::model::{Content, Model};
use crate::clock::Clock;
use crate::store::row::{self, Body};
use crate::store::suite::clock;
use crate::store::{Claim, Connection, Kind, Phase, Refusal, Release, Row, Store, StoreError, Tombstone};

const HOUR: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_secs(12);
/// Kinds of the plain records in a story.
const KINDS: [Kind; 5] = [Kind::Session, Kind::Flow, Kind::Code, Kind::Grant, Kind::Client];
/// Keys under each kind.
const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
const CONNECTIONS: [&str; 4] = ["u1", "u2", "u3", "u4"];

/// Numbers that look random and are the same every time (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..sides`.
    pub fn below(&mut self, sides: usize) -> usize {
        (self.roll() % sides.max(1) as u64) as usize
    }

    /// So many of them, in any order.
    pub fn some_of<T>(&mut self, mut of: Vec<T>, wanted: usize) -> Vec<T> {
        while of.len() > wanted {
            of.swap_remove(self.below(of.len()));
        }
        of
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// One operation with its arguments.
#[derive(Clone, Debug)]
pub enum Op {
    Put {
        kind: Kind,
        key: String,
        expected: u64,
        value: Vec<u8>,
        ttl: Duration,
    },
    Take {
        kind: Kind,
        key: String,
    },
    Remove {
        kind: Kind,
        key: String,
    },
    Tombstone {
        kind: Kind,
        key: String,
        ttl: Duration,
    },
    Bury {
        kind: Kind,
        key: String,
        tombstone: Tombstone,
    },
    Reseal {
        kind: Kind,
        key: String,
        old: Vec<u8>,
        new: Vec<u8>,
    },
    Restore {
        kind: Kind,
        key: String,
        row: Row,
    },
    Connect {
        key: String,
        incarnation: String,
        sealed: Vec<u8>,
        ttl: Duration,
    },
    Acquire {
        key: String,
        attempt: String,
        newer_than: u64,
    },
    Sent {
        key: String,
        attempt: String,
        fence: u64,
    },
    Commit {
        key: String,
        claim: Claim,
        sealed: Vec<u8>,
    },
    Release {
        key: String,
        attempt: String,
        fence: u64,
        outcome: Release,
    },
    Refuse {
        key: String,
        incarnation: String,
        generation: u64,
        refusal: Refusal,
    },
    Sweep,
    /// Time passes.
    Wait(Duration),
}

impl Op {
    /// Does it; the answer as text. `clock` is the store's.
    pub async fn run(&self, store: &dyn Store, clock: &Clock) -> Result<String, StoreError> {
        Ok(match self.clone() {
            Op::Put { kind, key, expected, value, ttl } => {
                format!("{:?}", store.put(kind, &key, expected, value, ttl).await?)
            }
            Op::Take { kind, key } => format!("{:?}", store.take(kind, &key).await?),
            Op::Remove { kind, key } => format!("{:?}", store.remove(kind, &key).await?),
            Op::Tombstone { kind, key, ttl } => format!("{:?}", store.tombstone(kind, &key, ttl).await?),
            Op::Bury { kind, key, tombstone } => {
                format!("{:?}", store.bury(kind, &key, &tombstone, HOUR).await?)
            }
            Op::Reseal { kind, key, old, new } => {
                format!("{:?}", store.reseal(kind, &key, &old, new).await?)
            }
            Op::Restore { kind, key, row } => format!("{:?}", store.restore(kind, &key, row).await?),
            Op::Connect { key, incarnation, sealed, ttl } => {
                format!("{:?}", store.connect(&key, &incarnation, sealed, ttl).await?)
            }
            Op::Acquire { key, attempt, newer_than } => {
                format!("{:?}", store.acquire(&key, &attempt, newer_than, LEASE).await?)
            }
            Op::Sent { key, attempt, fence } => format!("{:?}", store.sent(&key, &attempt, fence).await?),
            Op::Commit { key, claim, sealed } => {
                format!("{:?}", store.commit(&key, &claim, sealed, HOUR).await?)
            }
            Op::Release { key, attempt, fence, outcome } => {
                format!("{:?}", store.release(&key, &attempt, fence, outcome).await?)
            }
            Op::Refuse { key, incarnation, generation, refusal } => {
                format!("{:?}", store.refuse(&key, &incarnation, generation, refusal).await?)
            }
            Op::Sweep => format!("{:?}", store.sweep().await?),
            Op::Wait(time) => {
                clock.advance(time);
                String::new()
            }
        })
    }
}

/// One operation of the story and what comes of it.
pub struct Step {
    pub op: Op,
    /// How much time has passed since the beginning before it.
    pub at: Duration,
    pub answer: String,
    /// What the store holds afterwards.
    pub after: Content,
}

/// The one who tells it.
pub struct Story {
    dice: Dice,
    clock: Clock,
    model: Model,
    told: usize,
    /// Of all attempts that there were: they may come late.
    claims: Vec<(String, Claim)>,
}

impl Story {
    pub fn new(seed: u64) -> Story {
        let clock = clock();
        let model = Model::new(clock.clone());
        Story { dice: Dice::new(seed), clock, model, told: 0, claims: Vec::new() }
    }

    /// What happens next.
    pub async fn next(&mut self) -> Step {
        let at = self.passed();
        let op = self.choose();
        let answer = op.run(&self.model, &self.clock).await.unwrap();
        self.told += 1;
        Step { op, at, answer, after: self.rows() }
    }

    /// Time since the beginning.
    pub fn passed(&self) -> Duration {
        self.clock.now().duration_since(clock().now()).unwrap()
    }

    /// What a store holds that has lived so far.
    pub fn rows(&self) -> Content {
        self.model.rows()
    }

    fn choose(&mut self) -> Op {
        let (kind, key) = (self.dice.one_of(&KINDS), self.dice.one_of(&KEYS).to_owned());
        let ttl = self.dice.one_of(&[HOUR, HOUR, HOUR / 60]);
        let (expected, present) = match self.live(kind, &key).map(|row| row.body.clone()) {
            Some(Body::Record { version, value, .. }) => (version, Some(value)),
            _ => (0, None),
        };
        match (self.dice.below(100), present) {
            // Now and then of what is not there.
            (0..24, None) if self.dice.below(4) > 0 => {
                Op::Put { kind, key, expected, value: self.value(), ttl }
            }
            (0..16, _) => Op::Take { kind, key },
            (16..24, _) => Op::Remove { kind, key },
            (24..32, _) => Op::Tombstone { kind, key, ttl },
            (32..35, _) => {
                // Long ago, or later than anything.
                let fence = if self.dice.below(2) == 0 { 1 } else { 1 << 50 };
                Op::Bury { kind, key, tombstone: Tombstone { fence, incarnation: None } }
            }
            (35..37, _) => {
                let body = Body::Record { version: 3, spent: false, value: self.value() };
                Op::Restore { kind, key, row: Row { expires_millis: row::end(self.clock.now(), ttl), body } }
            }
            (37..72, _) => self.choose_for_connection(),
            (72..75, _) => Op::Sweep,
            (75..79, _) => Op::Wait(Duration::from_millis(1 + self.dice.below(90_000) as u64)),
            (79..84, Some(old)) => Op::Reseal { kind, key, old, new: self.value() },
            _ => Op::Put { kind, key, expected, value: self.value(), ttl },
        }
    }

    fn choose_for_connection(&mut self) -> Op {
        let key = self.dice.one_of(&CONNECTIONS).to_owned();
        let Some(Body::Connection(connection)) =
            self.live(Kind::Connection, &key).map(|row| row.body.clone())
        else {
            return if self.dice.below(3) == 0 { self.late_commit() } else { self.connect(key) };
        };
        let (incarnation, generation) = (connection.incarnation.clone(), connection.generation);
        match self.dice.below(12) {
            0 => self.connect(key),
            1 => Op::Tombstone { kind: Kind::Connection, key, ttl: HOUR },
            2 => self.late_commit(),
            3 => {
                let refusal = self.dice.one_of(&[Refusal::Renewable, Refusal::Renewable, Refusal::Final]);
                Op::Refuse { key, incarnation, generation, refusal }
            }
            _ => self.refresh(key, connection),
        }
    }

    fn refresh(&mut self, key: String, connection: Connection) -> Op {
        let now = self.clock.now();
        match connection.attempt.filter(|attempt| now < attempt.lease_until) {
            None => {
                let (attempt, generation) = (format!("attempt-{}", self.told), connection.generation);
                let fence = connection.fence + 1;
                let claim = Claim {
                    incarnation: connection.incarnation,
                    generation,
                    attempt_id: attempt.clone(),
                    fence,
                };
                self.claims.push((key.clone(), claim));
                Op::Acquire { key, attempt, newer_than: generation }
            }
            Some(attempt) if attempt.phase == Phase::Intent => {
                Op::Sent { key, attempt: attempt.id, fence: attempt.fence }
            }
            Some(attempt) => match self.dice.below(8) {
                0 => {
                    self.release(key, attempt.id, attempt.fence, Release::Transient { wait: Duration::ZERO })
                }
                1 => {
                    self.release(key, attempt.id, attempt.fence, Release::Ambiguous { wait: Duration::ZERO })
                }
                2 => self.release(key, attempt.id, attempt.fence, Release::NeedsReauth),
                3 => Op::Acquire { key, attempt: attempt.id, newer_than: connection.generation },
                _ => {
                    let claim = Claim {
                        incarnation: connection.incarnation,
                        generation: connection.generation,
                        attempt_id: attempt.id,
                        fence: attempt.fence,
                    };
                    Op::Commit { key, claim, sealed: self.value() }
                }
            },
        }
    }

    fn connect(&mut self, key: String) -> Op {
        let incarnation = format!("incarnation-{}", self.told);
        Op::Connect { key, incarnation, sealed: self.value(), ttl: HOUR }
    }

    fn release(&mut self, key: String, attempt: String, fence: u64, outcome: Release) -> Op {
        Op::Release { key, attempt, fence, outcome }
    }

    fn late_commit(&mut self) -> Op {
        match self.claims.len() {
            0 => Op::Sweep,
            claims => {
                let (key, claim) = self.claims[self.dice.below(claims)].clone();
                Op::Commit { key, claim, sealed: self.value() }
            }
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let length = match self.dice.below(25) {
            0 => 100_000 + self.dice.below(150_000),
            1..=3 => 2_000 + self.dice.below(30_000),
            _ => 20 + self.dice.below(600),
        };
        let mark = self.dice.roll().to_le_bytes();
        mark.iter().copied().cycle().take(length).collect()
    }

    fn live(&self, kind: Kind, key: &str) -> Option<Arc<Row>> {
        let row = self.model.rows().get(&(kind, key.to_owned())).cloned()?;
        (row::millis(self.clock.now()) < row.expires_millis).then_some(row)
    }
}
