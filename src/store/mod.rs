//! Durable state, shared by all parts of the gateway.
//!
//! Every record has a kind, a key, a version and a time to live, and every change is one named atomic
//! operation on one key. No caller reads, changes and writes on its own: it says which version it
//! changes, or it uses an operation that decides inside the store.
//!
//! The operations are written once, as decisions on one row ([`change`]); a store is a [`backend`]: it finds the
//! row and carries a decision out as one atomic step. So the two stores cannot come to differ in what they
//! promise, the state machine that the model checker walks is the one that runs on both, and one body of tests
//! fits them all.
//!
//! Values are opaque and already sealed; [`record`] is the typed layer that seals and opens them.
//! Expired records are never returned, whether a sweep has met them or not.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::broadcast;

mod backend;
pub mod change;
pub mod embedded;
pub mod export;
pub mod journal;
pub mod lease;
pub mod measured;
pub mod migrate;
pub mod quota;
pub mod record;
pub mod redis;
mod reseal;
pub mod row;
mod sealed_text;
#[cfg(test)]
pub(crate) mod suite;

pub use quota::Quota;
pub use reseal::Resealed;
pub use row::{Row, Tombstone};

pub use lease::{
    Acquired, Attempt, Claim, Committed, Connection, Orphan, Phase, Refusal, Release, Released, State,
};

/// What a record is. The name is part of the stored key and of the sealed data: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A signed-in browser.
    Session,
    /// A client's authorization under way, from `authorize` to the consent decision.
    Flow,
    /// An authorization code that we issued, by its digest.
    Code,
    /// What a user allowed a client.
    Grant,
    /// A registered MCP client.
    Client,
    /// An upstream authorization under way, by its `state`.
    Pending,
    /// One user's authorization at one upstream. Changed by the lease operations only.
    Connection,
    /// Our client identity at one upstream authorization server.
    Registration,
    /// An upstream challenge that a grant has met and not answered yet.
    Challenge,
    /// Key material made by the gateway itself.
    Key,
    /// A user who is kept out, by name.
    Block,
    /// What was seen of an upstream authorization server.
    Issuer,
    /// A client's assertion that was used, so that it is used once.
    Assertion,
    /// A program's account, by name.
    Service,
    /// A sign-in at an identity provider under way, by its `state`.
    SignIn,
    /// A consent that is remembered.
    Consent,
    /// The wish that all instances read their configuration again.
    Reload,
    /// Which routes use a registration of ours.
    Uses,
    /// A token that was got for another one, or is being got.
    Exchange,
    /// What an identity provider says of a user, by name.
    Attributes,
    /// An organisation that has managed connections.
    Organization,
    /// Somebody's place in an organisation.
    Membership,
    /// An MCP server that somebody has added.
    Configuration,
    /// Somebody's use of a configuration.
    Assignment,
    /// Who did what to managed connections.
    Event,
    /// A change that was asked for under a key, and what it was answered.
    Idempotency,
}

impl Kind {
    /// Every kind, in the order of declaration.
    pub const ALL: [Kind; 26] = [
        Kind::Session,
        Kind::Flow,
        Kind::Code,
        Kind::Grant,
        Kind::Client,
        Kind::Pending,
        Kind::Connection,
        Kind::Registration,
        Kind::Challenge,
        Kind::Key,
        Kind::Block,
        Kind::Issuer,
        Kind::Assertion,
        Kind::Service,
        Kind::SignIn,
        Kind::Consent,
        Kind::Reload,
        Kind::Uses,
        Kind::Exchange,
        Kind::Attributes,
        Kind::Organization,
        Kind::Membership,
        Kind::Configuration,
        Kind::Assignment,
        Kind::Event,
        Kind::Idempotency,
    ];

    /// The stable name, lower case ASCII letters.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Session => "session",
            Kind::Flow => "flow",
            Kind::Code => "code",
            Kind::Grant => "grant",
            Kind::Client => "client",
            Kind::Pending => "pending",
            Kind::Connection => "connection",
            Kind::Registration => "registration",
            Kind::Challenge => "challenge",
            Kind::Key => "key",
            Kind::Block => "block",
            Kind::Issuer => "issuer",
            Kind::Assertion => "assertion",
            Kind::Service => "service",
            Kind::SignIn => "signin",
            Kind::Consent => "consent",
            Kind::Reload => "reload",
            Kind::Uses => "uses",
            Kind::Exchange => "exchange",
            Kind::Attributes => "attributes",
            Kind::Organization => "organization",
            Kind::Membership => "membership",
            Kind::Configuration => "configuration",
            Kind::Assignment => "assignment",
            Kind::Event => "event",
            Kind::Idempotency => "idempotency",
        }
    }
}

/// A record as it lies in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// 1 for the first value under this key, one more for each that replaced it. For a connection
    /// this is its generation.
    pub version: u64,
    /// The sealed value.
    pub value: Vec<u8>,
    /// Whether [`Store::take`] has handed it out.
    pub spent: bool,
    /// From this moment on the record does not exist.
    pub expires_at: SystemTime,
}

/// How a [`Store::put`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Written durably, with the expected version plus one.
    Stored,
    /// Somebody else was faster, or the key is spent or a tombstone. Nothing was written.
    Conflict,
}

/// How a [`Store::take`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The one time it is handed out.
    Fresh(Stored),
    /// It was taken before: a replay.
    Spent(Stored),
    /// Never there, expired, removed or a tombstone.
    Absent,
}

/// What subscribers hear, so that copies in memory are looked at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This record may have changed.
    Of {
        /// What kind of record.
        kind: Kind,
        /// Its key.
        key: String,
    },
    /// Changes were missed, nobody knows which: everything has to be looked at again.
    Missed,
}

/// Why the store could not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached or cannot write. A write may or may not have happened.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The record is there but is not what was written.
    #[error("store record is damaged")]
    Corrupt,
    /// A newer Postern wrote the record; it is left alone.
    #[error("store record was written by a newer version of Postern")]
    Newer,
    /// More than a record may hold ([`VALUE_MAX`], [`KEY_MAX`]).
    #[error("record is too large for the store")]
    TooLarge,
}

impl StoreError {
    /// For metrics.
    fn word(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Newer => "newer",
            Self::TooLarge => "too_large",
        }
    }
}

/// The time to live of what has no end: a hundred years.
pub const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Bytes of a record's value, sealed.
pub const VALUE_MAX: usize = 1024 * 1024;
/// Bytes of a record's key.
pub const KEY_MAX: usize = 1024;

/// The named atomic operations. Each call is durable when it returns `Ok`.
///
/// Times to live count from the store's clock. A time to live of zero stores nothing that can be read.
#[async_trait]
pub trait Store: Send + Sync {
    /// The record, spent or not; `None` for absent, expired and tombstones.
    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Stored>, StoreError>;

    /// Writes `value` when the present version is `expected`; 0 means that the key must be absent.
    ///
    /// The new version is `expected + 1`, so the caller can seal with it beforehand. After a record
    /// expired or was removed its version starts at 0 again: values that must not be swapped for an
    /// older one need random keys, or an incarnation inside. Connections, spent records and tombstones
    /// are not overwritten.
    async fn put(
        &self,
        kind: Kind,
        key: &str,
        expected: u64,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Put, StoreError>;

    /// Hands the record out once. It stays, marked spent, until its time to live ends, so that a
    /// replay can be told from a key that never was.
    async fn take(&self, kind: Kind, key: &str) -> Result<Taken, StoreError>;

    /// Deletes the record. A tombstone stays.
    async fn remove(&self, kind: Kind, key: &str) -> Result<(), StoreError>;

    /// Deletes the value and refuses every `put` and `commit` under the key for `ttl`. On a tombstone
    /// the later end counts. Only [`Store::connect`] lifts it.
    async fn tombstone(&self, kind: Kind, key: &str, ttl: Duration) -> Result<Tombstone, StoreError>;

    /// Makes the tombstone again, after a failover that may have lost it. The connection that it ended
    /// is ended again, however far it has got meanwhile; anything else with a higher fence came after it
    /// and is left alone.
    async fn bury(
        &self,
        kind: Kind,
        key: &str,
        tombstone: &Tombstone,
        ttl: Duration,
    ) -> Result<bool, StoreError>;

    /// The keys that are tombstones now: what is revoked, read at start.
    async fn tombstones(&self, kind: Kind) -> Result<Vec<String>, StoreError>;

    /// Replaces the sealed value by another sealing of the same plain value, if it is still exactly `old`.
    /// Version and end stay.
    async fn reseal(&self, kind: Kind, key: &str, old: &[u8], new: Vec<u8>) -> Result<bool, StoreError>;

    /// Writes a row of another store unless the same or a later one is there: for migration.
    async fn restore(&self, kind: Kind, key: &str, row: Row) -> Result<bool, StoreError>;

    /// All rows of a kind as they are, tombstones too: for migration.
    async fn rows(&self, kind: Kind) -> Result<Vec<(String, Row)>, StoreError>;

    /// All records of a kind, spent ones too. For start-up, pages of one user and the command line;
    /// its cost grows with the number of records.
    async fn scan(&self, kind: Kind) -> Result<Vec<(String, Stored)>, StoreError>;

    /// The connection under this key; `None` for absent, expired and tombstones.
    async fn connection(&self, key: &str) -> Result<Option<Connection>, StoreError>;

    /// A user has authorized anew: replaces whatever is there, tombstones too. The connection starts
    /// active at generation 1 with a higher fence than before, so a commit still under way is stale.
    /// `sealed` is bound to generation 1 of `incarnation`, a random name made for this authorization.
    async fn connect(
        &self,
        key: &str,
        incarnation: &str,
        sealed: Vec<u8>,
        ttl: Duration,
    ) -> Result<(), StoreError>;

    /// Asks to be the one who refreshes. `newer_than` is the generation that the caller does not want:
    /// what it found expired, or what the upstream has refused. An owner has its intent on disk when
    /// this returns and must finish within `lease`. The same `attempt_id` again, after a lost answer,
    /// is the same owner with the same fence.
    async fn acquire(
        &self,
        key: &str,
        attempt_id: &str,
        newer_than: u64,
        lease: Duration,
    ) -> Result<Acquired, StoreError>;

    /// Notes that the refresh token is about to leave. Only on `true` may it be sent: `false` means
    /// that the attempt is not ours any more or its lease is over.
    async fn sent(&self, key: &str, attempt_id: &str, fence: u64) -> Result<bool, StoreError>;

    /// Stores the outcome of an attempt, sealed with the generation after the acquired one. May be
    /// repeated, after a lost answer, a restart or a failover. Tokens that are newer than what is there
    /// are never turned away: a late commit is taken, or kept as an orphan while somebody else is at it.
    async fn commit(
        &self,
        key: &str,
        claim: &Claim,
        sealed: Vec<u8>,
        ttl: Duration,
    ) -> Result<Committed, StoreError>;

    /// Ends an attempt without a new token.
    async fn release(
        &self,
        key: &str,
        attempt_id: &str,
        fence: u64,
        outcome: Release,
    ) -> Result<Released, StoreError>;

    /// The upstream has refused the access token of this generation: no instance sends it again. `false`
    /// when the connection is another one or newer by now. A refresh under way may still commit a newer
    /// token, which makes the connection active again.
    async fn refuse(
        &self,
        key: &str,
        incarnation: &str,
        generation: u64,
        refusal: Refusal,
    ) -> Result<bool, StoreError>;

    /// Spends one of `quota` under `key`, together with all instances. `Some`: nothing is left for so long. A store that
    /// nobody shares leaves the counting to who asks.
    async fn spend(&self, key: &str, quota: Quota) -> Result<Option<Duration>, StoreError>;

    /// Takes one of `most` places under `key`, for `lease`, or keeps the one that `id` has. `false`: all are taken. As
    /// with [`Store::spend`], a store that nobody shares has room.
    async fn hold(&self, key: &str, id: &str, most: u32, lease: Duration) -> Result<bool, StoreError>;

    /// Gives the place of `id` back.
    async fn let_go(&self, key: &str, id: &str) -> Result<(), StoreError>;

    /// Hears of every change from now on, of all instances, unless it is a grant's that goes on. A receiver that lags
    /// has to look at everything again.
    fn subscribe(&self) -> broadcast::Receiver<Change>;

    /// Whether the store reads and writes now.
    async fn ready(&self) -> Result<(), StoreError>;

    /// Deletes what has expired; says how many records. Where the store expires on its own: 0.
    async fn sweep(&self) -> Result<usize, StoreError>;

    /// The process ends: nothing more is read or written. Blocks. What is not closed is found as after a crash.
    fn close(&self);
}
