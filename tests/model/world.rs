//! One state of the whole: the store's record and its replica, the instances, what is on the wire, the authorization
//! server, what may still go wrong, and what the properties have to remember.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern::store::row::Body;
use postern::store::{Claim, Connection, Row};

use super::authorization_server::{AuthorizationServer, Refresh};

/// Time passes in steps of six seconds.
pub type Tick = u8;
/// How long an owner has: twelve seconds.
pub const LEASE: Tick = 2;
/// How long nobody tries again after a failure; in earnest two seconds.
pub const BACKOFF: Tick = 1;
/// Rows never end here.
pub const TTL: Duration = Duration::MAX;

/// The store's time at a tick.
pub fn time(tick: Tick) -> SystemTime {
    SystemTime::UNIX_EPOCH + duration(tick)
}

pub fn duration(ticks: Tick) -> Duration {
    Duration::from_secs(6) * u32::from(ticks)
}

/// A set of small numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mask(u32);

impl Mask {
    pub fn insert(&mut self, number: u8) {
        self.0 |= 1 << number;
    }

    pub fn contains(self, number: u8) -> bool {
        self.0 & 1 << number != 0
    }
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub now: Tick,
    pub server: AuthorizationServer,
    /// Requests and answers under way, sorted.
    pub wire: Vec<Message>,
    /// The record in the store.
    pub row: Arc<Row>,
    /// The record as the replica has it that a failover would put in force.
    pub replica: Arc<Row>,
    /// Sorted: which is which makes no difference.
    pub instances: Vec<Instance>,
    /// What may still go wrong.
    pub left: Budget,
    /// Attempts so far; the number of the latest.
    pub attempts: u8,
    /// Access tokens of no more use: those of this family up to this generation.
    pub expired: (u8, u64),
    /// Families whose loss an admitted fault explains.
    pub excused: Mask,
    /// Families that the user has disconnected, and was told so.
    pub disconnected: Mask,
    /// The newest tokens whose commit was acknowledged: family and generation.
    pub acknowledged: (u8, u64),
    /// Requests sent since the record got its present tokens, and when the last one was.
    pub sends: u8,
    pub last_send: Option<Tick>,
    /// What the step that led here showed.
    pub notes: Notes,
}

/// One process of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance {
    pub stage: Stage,
    /// Stopped since then.
    pub paused: Option<Tick>,
    /// The copy in memory; none after a start, and after it learned that it missed something.
    pub known: Option<Tokens>,
    /// Survives a crash.
    pub journal: Vec<Entry>,
    /// Whether the journal has still to be said again.
    pub reassert: bool,
}

/// How far the instance is with the call that waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    Down,
    /// Reads its journal before the first call.
    Starting,
    /// A call waits for tokens newer than those known.
    Wanting,
    /// Owner of the refresh; nothing has left.
    Acquired(Owner),
    /// The store knows that the token leaves.
    Cleared {
        owner: Owner,
        mark: Mark,
    },
    /// The request is out.
    Waiting(Owner),
    /// The answer is in memory, and nowhere else.
    Holding(Owner, Tokens),
    /// The answer is in the journal; `failing` once the store did not acknowledge it.
    Journalled {
        owner: Owner,
        tokens: Tokens,
        failing: bool,
    },
    /// The attempt ends without tokens.
    Ending(Owner, Ending),
    /// The call got tokens.
    Served,
    /// The call was told to come again.
    Later,
    /// The user was told to connect.
    NeedsUser,
}

/// What goes with a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// The store has not acknowledged that the token leaves.
    pub unacknowledged: bool,
    /// It has, but a failover may have taken that back since.
    pub before_failover: bool,
    /// A fault keeps from the sender what has already come of the token.
    pub excused: bool,
    /// Sent after the owner's lease.
    pub late: bool,
    /// Under way for longer than anything should be.
    pub delayed: bool,
}

/// An owner's view of its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    pub attempt: u8,
    pub fence: u64,
    /// Of the connection that was acquired.
    pub generation: u64,
    pub refresh: Refresh,
    /// End of its lease.
    pub until: Tick,
    /// An earlier answer is missing.
    pub probe: bool,
}

/// Why an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ending {
    /// `invalid_grant`.
    Dead,
    /// The server said: not now.
    Transient,
    /// The answer never came.
    Ambiguous,
    /// Strict servers are not asked again before the access token has ended.
    Strict { until: Tick },
    /// What was acquired is already what the call wants.
    NotNeeded,
    /// What was acquired is older than what is known.
    RolledBack,
}

/// What is sealed in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tokens {
    pub refresh: Refresh,
    /// The generation they are sealed for.
    pub generation: u64,
    /// The attempt that got them; 0 from the user.
    pub attempt: u8,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    Commit(Owner, Tokens),
    Tombstone { fence: u64, family: u8 },
}

/// A request or its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    pub owner: Owner,
    pub content: Content,
    pub mark: Mark,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    Request,
    Success(Refresh),
    Dead,
    Transient,
}

/// How often each thing may happen.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// An instance dies.
    pub crashes: u8,
    /// An instance is stopped beyond its lease.
    pub pauses: u8,
    /// A store operation that is not acknowledged, whether or not it was carried out.
    pub unacknowledged: u8,
    /// A message is lost, or comes after its sender has given up.
    pub network: u8,
    /// The replica takes over, with what it has.
    pub failovers: u8,
    /// The user disconnects.
    pub disconnects: u8,
    /// The user authorizes anew.
    pub reconnects: u8,
    /// The upstream turns an access token down for good.
    pub refusals: u8,
    /// The authorization server answers: not now.
    pub transients: u8,
    /// The access tokens in force end.
    pub expiries: u8,
    /// An administrator ends the user's tokens at the authorization server.
    pub revocations: u8,
}

impl fmt::Debug for Budget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            ("crashes", self.crashes),
            ("pauses", self.pauses),
            ("unacknowledged", self.unacknowledged),
            ("network", self.network),
            ("failovers", self.failovers),
            ("disconnects", self.disconnects),
            ("reconnects", self.reconnects),
            ("refusals", self.refusals),
            ("transients", self.transients),
            ("expiries", self.expiries),
            ("revocations", self.revocations),
        ];
        formatter.debug_map().entries(all.into_iter().filter(|(_, times)| *times > 0)).finish()
    }
}

impl Budget {
    /// All that can go wrong with a refresh itself.
    pub fn faults(self) -> u8 {
        self.crashes
            + self.pauses
            + self.unacknowledged
            + self.network
            + self.failovers
            + self.refusals
            + self.transients
    }
}

/// Rules that a step can break, as bits in [`Notes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Monotonic,
    FencedWrite,
    HarmlessLoser,
    Isolation,
    NoStoreNoSend,
    PersistFirst,
    BoundedLoad,
}

/// What shows that the model gets anywhere, as bits in [`Notes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Takeover,
    ProbeSaved,
    OrphanRescued,
    LateCommitTaken,
    AssertedAgain,
    CommitMetTombstone,
    TombstoneMadeAgain,
    WaitedForExpiry,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Notes {
    broken: Mask,
    shown: Mask,
}

impl Notes {
    pub fn breaks(&mut self, rule: Rule) {
        self.broken.insert(rule as u8);
    }

    pub fn shows(&mut self, event: Event) {
        self.shown.insert(event as u8);
    }

    pub fn keeps(self, rule: Rule) -> bool {
        !self.broken.contains(rule as u8)
    }

    pub fn has(self, event: Event) -> bool {
        self.shown.contains(event as u8)
    }
}

impl World {
    /// A user has connected, and as many instances each have a call for newer tokens.
    pub fn new(instances: usize, left: Budget) -> Self {
        let server = AuthorizationServer::new();
        let tokens = Tokens { refresh: Refresh { family: 0, serial: 0 }, generation: 1, attempt: 0 };
        let connection = Connection::begin(&incarnation(0), 1, tokens.seal());
        let row = Arc::new(Row { expires_millis: u64::MAX, body: Body::Connection(connection) });
        let instance = Instance {
            stage: Stage::Wanting,
            paused: None,
            known: Some(tokens),
            journal: Vec::new(),
            reassert: false,
        };
        Self {
            now: 0,
            server,
            wire: Vec::new(),
            replica: Arc::clone(&row),
            row,
            instances: vec![instance; instances],
            left,
            attempts: 0,
            expired: (0, 1),
            excused: Mask::default(),
            disconnected: Mask::default(),
            acknowledged: (0, 1),
            sends: 0,
            last_send: None,
            notes: Notes::default(),
        }
    }

    /// The connection, unless there is a tombstone.
    pub fn connection(&self) -> Option<&Connection> {
        match &self.row.body {
            Body::Connection(connection) => Some(connection),
            _ => None,
        }
    }

    /// Whether tokens of this family and generation are of no more use.
    pub fn is_expired(&self, tokens: Tokens) -> bool {
        self.expired.0 == tokens.refresh.family && tokens.generation <= self.expired.1
    }

    /// How many requests would be delayed if time passed now.
    pub fn undelivered(&self) -> u8 {
        let requests = self.wire.iter().filter(|message| message.content == Content::Request);
        requests.filter(|message| !message.mark.delayed).count() as u8
    }

    /// Nothing is under way, whoever may still be told to come again.
    pub fn is_quiet(&self) -> bool {
        let quiet = |instance: &Instance| {
            let resting = matches!(instance.stage, Stage::Served | Stage::Later | Stage::NeedsUser);
            resting && instance.paused.is_none() && !instance.reassert
        };
        self.wire.is_empty() && self.instances.iter().all(quiet)
    }
}

/// The name of a family's authorization in the record.
pub fn incarnation(family: u8) -> String {
    format!("i{family}")
}

impl Instance {
    pub fn is_running(&self) -> bool {
        self.paused.is_none() && self.stage != Stage::Down
    }

    /// The newest generation of the family that it knows, from memory or from its journal.
    pub fn newest(&self, family: u8) -> Option<u64> {
        let noted = self.journal.iter().filter_map(|entry| match entry {
            Entry::Commit(_, tokens) => Some(*tokens),
            Entry::Tombstone { .. } => None,
        });
        let all = noted.chain(self.known).filter(|tokens| tokens.refresh.family == family);
        all.map(|tokens| tokens.generation).max()
    }
}

impl Stage {
    /// The attempt that the instance owns, or thinks it does.
    pub fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Acquired(owner)
            | Self::Cleared { owner, .. }
            | Self::Waiting(owner)
            | Self::Holding(owner, _)
            | Self::Journalled { owner, .. }
            | Self::Ending(owner, _) => Some(owner),
            _ => None,
        }
    }
}

impl Owner {
    /// The attempt's id in the record.
    pub fn id(&self) -> String {
        format!("a{}", self.attempt)
    }

    pub fn claim(&self) -> Claim {
        Claim {
            incarnation: incarnation(self.refresh.family),
            generation: self.generation,
            attempt_id: self.id(),
            fence: self.fence,
        }
    }
}

impl Tokens {
    pub fn seal(self) -> Vec<u8> {
        vec![self.refresh.family, self.refresh.serial, self.generation as u8, self.attempt]
    }

    /// Opens only what was sealed for this incarnation and generation, as the cipher's associated data has it.
    pub fn open(sealed: &[u8], bound_to: &str, generation: u64) -> Option<Self> {
        let &[family, serial, sealed_for, attempt] = sealed else {
            return None;
        };
        let fits = incarnation(family) == bound_to && u64::from(sealed_for) == generation;
        fits.then_some(Self { refresh: Refresh { family, serial }, generation, attempt })
    }

    /// The tokens in force.
    pub fn of(connection: &Connection) -> Option<Self> {
        Self::open(&connection.sealed, &connection.incarnation, connection.generation)
    }
}
