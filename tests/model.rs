//! The refresh protocol, walked through in all its states: what crashes, stops, lost answers, failovers and a user who
//! changes their mind can make of it, at each kind of authorization server.
//!
//! The record is the store's own, and every change of it is one of the decisions that both stores carry out
//! (`store::change`); what an instance does around them is transcribed from `oauth::client::refresh` into
//! `model/steps.rs`, the world around it is `model/faults.rs`. `model/properties.rs` says what has to hold. Then each
//! guard of the protocol is taken away in turn, and something has to break: a guard that nothing misses is either not
//! needed or not checked.
//!
//! Each exploration is exhaustive within its budget. The budgets here take seconds; those of `POSTERN_SOAK=1` minutes.
//!
//! Not in the model: a store operation that is carried out long after its caller gave up (a decision older than two
//! seconds is refused), a request that arrives twice (nothing repeats a POST), and that a failover takes back what the
//! user has just authorized (that is not in any journal).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

mod model {
    pub mod authorization_server;
    pub mod faults;
    pub mod guards;
    pub mod properties;
    pub mod protocol;
    pub mod steps;
    pub mod story;
    pub mod world;
}

use std::time::Instant;

use model::authorization_server::Behaviour::{self, Keeps, Repeats, Replaces, Revokes, Rotates};
use model::guards::Guard;
use model::protocol::Protocol;
use model::story;
use model::world::{Budget, Event, Tick};
use stateright::{Checker, Expectation, HasDiscoveries, Model};

const ALL: [Behaviour; 5] = [Keeps, Rotates, Revokes, Repeats, Replaces];
/// When the access token ends at a server known to be strict.
const EXPIRY: Tick = 6;

const NOTHING: Budget = Budget {
    crashes: 0,
    pauses: 0,
    unacknowledged: 0,
    network: 0,
    failovers: 0,
    disconnects: 0,
    reconnects: 0,
    refusals: 0,
    transients: 0,
    expiries: 0,
    revocations: 0,
};

/// Instances of a gateway, and what happens to them.
struct Scenario {
    instances: usize,
    budget: Budget,
}

impl Scenario {
    fn at(&self, behaviour: Behaviour) -> Protocol {
        let (instances, budget) = (self.instances, self.budget);
        Protocol {
            behaviour,
            strict_until: None,
            instances,
            budget,
            spares: false,
            without: None,
            expects: &[],
        }
    }

    /// Explores it all at every kind of server; all that is expected has to be seen.
    fn holds(&self, expects: &'static [Event]) {
        for behaviour in ALL {
            holds(Protocol { expects, ..self.at(behaviour) });
        }
    }

    /// The same at a server that is known to be strict.
    fn holds_strictly(&self, expects: &'static [Event]) {
        holds(Protocol { expects, strict_until: Some(EXPIRY), ..self.at(Revokes) });
    }
}

fn three(budget: Budget) -> Scenario {
    Scenario { instances: 3, budget }
}

fn two(budget: Budget) -> Scenario {
    Scenario { instances: 2, budget }
}

fn holds(protocol: Protocol) {
    let (begun, name) = (Instant::now(), format!("{protocol:?}"));
    let checker = protocol.checker().spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{states} states, {depth} deep, {:.1} s: {name}", begun.elapsed().as_secs_f32());
    let mut discoveries = checker.discoveries();
    for property in checker.model().properties() {
        match (property.expectation, discoveries.remove(property.name)) {
            (Expectation::Sometimes, None) => panic!("{}: never seen in {name}", property.name),
            (Expectation::Always | Expectation::Eventually, Some(path)) => {
                panic!("{} does not hold in {name}:\n{}", property.name, story::tell(path));
            }
            _ => {}
        }
    }
}

/// With the guard everything holds; without it the property does not.
fn is_missed(guard: Guard, protocol: Protocol, property: &'static str) {
    holds(protocol.clone());
    let stop = HasDiscoveries::AnyOf([property].into());
    let without = Protocol { without: Some(guard), ..protocol };
    let checker = without.checker().finish_when(stop).spawn_bfs().join();
    assert!(checker.discovery(property).is_some(), "{property} holds without {guard:?} as well");
}

#[test]
fn without_faults_one_redeems_and_the_others_adopt() {
    three(NOTHING).holds(&[]);
    three(Budget { expiries: 2, ..NOTHING }).holds(&[]);
}

#[test]
fn owners_die() {
    let events = &[Event::Takeover, Event::ProbeSaved, Event::LateCommitTaken];
    three(Budget { crashes: 1, ..NOTHING }).holds(events);
    three(Budget { crashes: 2, ..NOTHING }).holds(events);
    three(Budget { crashes: 1, expiries: 1, ..NOTHING }).holds(events);
}

#[test]
fn owners_are_stopped_and_come_back() {
    let events = &[Event::Takeover, Event::OrphanRescued, Event::LateCommitTaken];
    three(Budget { pauses: 1, ..NOTHING }).holds(&[Event::Takeover, Event::LateCommitTaken]);
    three(Budget { pauses: 1, crashes: 1, ..NOTHING }).holds(events);
    three(Budget { pauses: 1, expiries: 1, ..NOTHING }).holds(&[Event::Takeover]);
}

#[test]
fn the_store_does_not_answer() {
    three(Budget { unacknowledged: 2, ..NOTHING }).holds(&[Event::Takeover, Event::LateCommitTaken]);
    three(Budget { unacknowledged: 1, crashes: 1, ..NOTHING }).holds(&[Event::AssertedAgain]);
    three(Budget { unacknowledged: 1, pauses: 1, ..NOTHING }).holds(&[Event::AssertedAgain]);
}

#[test]
fn answers_of_the_authorization_server_get_lost() {
    three(Budget { network: 2, ..NOTHING }).holds(&[Event::ProbeSaved]);
    three(Budget { network: 1, crashes: 1, ..NOTHING }).holds(&[Event::ProbeSaved]);
    three(Budget { network: 1, pauses: 1, ..NOTHING }).holds(&[Event::ProbeSaved]);
    three(Budget { network: 1, unacknowledged: 2, ..NOTHING }).holds(&[Event::ProbeSaved]);
    three(Budget { network: 1, transients: 1, ..NOTHING }).holds(&[Event::ProbeSaved]);
    three(Budget { transients: 1, crashes: 1, ..NOTHING }).holds(&[Event::ProbeSaved]);
}

#[test]
fn what_nobody_has_to_pay_for() {
    let spared = |behaviours: &[Behaviour], budget: Budget| {
        behaviours
            .iter()
            .for_each(|behaviour| holds(Protocol { spares: true, ..three(budget).at(*behaviour) }));
    };
    spared(&ALL, NOTHING);
    spared(&ALL, Budget { transients: 2, ..NOTHING });
    spared(&[Keeps, Repeats], Budget { crashes: 2, ..NOTHING });
    spared(&[Replaces], CRASH);
    spared(&[Keeps, Repeats], Budget { network: 2, ..NOTHING });
    spared(&[Keeps, Rotates, Repeats, Replaces], Budget { unacknowledged: 2, ..NOTHING });
    spared(&[Keeps, Repeats], Budget { pauses: 1, ..NOTHING });
    spared(&[Keeps, Rotates, Repeats], Budget { failovers: 1, ..NOTHING });
}

#[test]
fn a_strict_server_is_not_probed_too_early() {
    let events = &[Event::WaitedForExpiry, Event::LateCommitTaken];
    three(Budget { crashes: 2, ..NOTHING }).holds_strictly(events);
    three(Budget { crashes: 1, pauses: 1, ..NOTHING }).holds_strictly(events);
    three(Budget { crashes: 1, unacknowledged: 1, ..NOTHING }).holds_strictly(events);
    three(Budget { pauses: 1, network: 1, ..NOTHING }).holds_strictly(events);
}

#[test]
fn the_replica_takes_over() {
    let events = &[Event::AssertedAgain];
    three(Budget { failovers: 1, ..NOTHING }).holds(events);
    three(Budget { failovers: 1, crashes: 1, ..NOTHING }).holds(&[Event::AssertedAgain, Event::Takeover]);
    two(Budget { failovers: 1, unacknowledged: 1, ..NOTHING }).holds(events);
    two(Budget { failovers: 1, network: 1, ..NOTHING }).holds(events);
    two(Budget { failovers: 1, expiries: 1, ..NOTHING }).holds(events);
}

#[test]
fn the_user_disconnects_and_comes_back() {
    three(Budget { disconnects: 1, ..NOTHING }).holds(&[Event::CommitMetTombstone]);
    three(Budget { disconnects: 1, crashes: 1, ..NOTHING }).holds(&[Event::CommitMetTombstone]);
    two(Budget { disconnects: 1, failovers: 1, ..NOTHING })
        .holds(&[Event::CommitMetTombstone, Event::TombstoneMadeAgain]);
    three(Budget { disconnects: 1, reconnects: 1, ..NOTHING }).holds(&[Event::CommitMetTombstone]);
    two(Budget { disconnects: 1, reconnects: 1, pauses: 1, ..NOTHING }).holds(&[Event::Takeover]);
    two(Budget { disconnects: 1, reconnects: 1, crashes: 1, ..NOTHING }).holds(&[Event::Takeover]);
}

#[test]
fn tokens_are_refused_or_revoked() {
    three(Budget { refusals: 1, crashes: 1, ..NOTHING }).holds(&[Event::Takeover]);
    three(Budget { refusals: 1, pauses: 1, ..NOTHING }).holds(&[Event::Takeover]);
    three(Budget { refusals: 1, expiries: 1, ..NOTHING }).holds(&[]);
    three(Budget { revocations: 1, crashes: 1, ..NOTHING }).holds(&[Event::Takeover]);
}

#[test]
fn one_instance_alone_survives_as_much() {
    let one = |budget| Scenario { instances: 1, budget };
    one(Budget { crashes: 2, unacknowledged: 2, network: 1, ..NOTHING }).holds(&[Event::Takeover]);
    one(Budget { crashes: 2, unacknowledged: 1, failovers: 1, ..NOTHING }).holds(&[Event::AssertedAgain]);
}

/// Minutes, and a gigabyte.
#[test]
fn much_goes_wrong_at_once() {
    if std::env::var_os("POSTERN_SOAK").is_none() {
        return;
    }
    for budget in [
        Budget { crashes: 2, pauses: 1, ..NOTHING },
        Budget { crashes: 1, pauses: 1, unacknowledged: 1, ..NOTHING },
        Budget { crashes: 1, pauses: 1, network: 1, ..NOTHING },
        Budget { crashes: 1, unacknowledged: 2, network: 1, ..NOTHING },
        Budget { failovers: 1, pauses: 1, ..NOTHING },
        Budget { failovers: 1, unacknowledged: 2, ..NOTHING },
        Budget { disconnects: 1, reconnects: 1, crashes: 1, unacknowledged: 1, ..NOTHING },
    ] {
        three(budget).holds(&[Event::Takeover]);
    }
    for budget in [
        Budget { crashes: 2, pauses: 1, unacknowledged: 1, ..NOTHING },
        Budget { crashes: 2, pauses: 1, network: 1, ..NOTHING },
        Budget { failovers: 1, crashes: 2, ..NOTHING },
        Budget { failovers: 1, crashes: 1, unacknowledged: 1, ..NOTHING },
        Budget { failovers: 1, crashes: 1, network: 1, ..NOTHING },
        Budget { failovers: 1, crashes: 1, disconnects: 1, ..NOTHING },
        Budget { failovers: 1, crashes: 1, expiries: 1, ..NOTHING },
    ] {
        two(budget).holds(&[Event::Takeover]);
    }
    for budget in [
        Budget { crashes: 2, pauses: 1, ..NOTHING },
        Budget { crashes: 1, pauses: 1, unacknowledged: 1, ..NOTHING },
    ] {
        three(budget).holds_strictly(&[Event::WaitedForExpiry]);
    }
}

/// One test per guard: where it is missed, and which property misses it.
macro_rules! guards {
    ($($name:ident: $guard:ident, $protocol:expr => $property:literal)*) => {
        mod without {
            use super::*;
            $(#[test]
            fn $name() {
                is_missed(Guard::$guard, $protocol, $property);
            })*
        }
    };
}

const CRASH: Budget = Budget { crashes: 1, ..NOTHING };
const PAUSE: Budget = Budget { pauses: 1, ..NOTHING };
const UNACKNOWLEDGED: Budget = Budget { unacknowledged: 1, ..NOTHING };
const FAILOVER: Budget = Budget { failovers: 1, ..NOTHING };

fn strict(scenario: Scenario) -> Protocol {
    Protocol { strict_until: Some(EXPIRY), ..scenario.at(Revokes) }
}

guards! {
    the_exclusive_lease: LeaseExclusive, three(NOTHING).at(Rotates) => "i1_one_redeemer"
    the_end_of_the_lease: LeaseEnds, three(CRASH).at(Rotates) => "everybody_is_served"
    the_look_for_newer_tokens: Freshness, three(NOTHING).at(Keeps) => "i12_bounded_load"
    the_tokens_just_read: Reread, three(NOTHING).at(Revokes) => "i8_justified_loss"
    the_backoff: Backoff, three(Budget { transients: 1, ..NOTHING }).at(Rotates) => "i12_bounded_load"
    the_memory_of_what_was_sent: TakeoverKnowsSent, strict(three(CRASH)) => "i7_quiescent_agreement"
    the_intent: IntentBeforeSend, three(NOTHING).at(Rotates) => "i2_intent_before_send"
    the_owner_who_sends: OwnerOnSent, three(PAUSE).at(Revokes) => "i7_quiescent_agreement"
    the_acknowledgement: NoStoreNoSend, three(UNACKNOWLEDGED).at(Rotates) => "i10_no_store_no_send"
    the_end_of_the_work: BoundedWork, three(NOTHING).at(Rotates) => "i1_one_redeemer"
    the_wait_for_a_strict_server: StrictWaits, strict(three(CRASH)) => "i7_quiescent_agreement"
    the_journal: Journal, three(CRASH).at(Rotates) => "i8_justified_loss"
    the_journal_before_the_answer: PersistFirst, three(NOTHING).at(Rotates) => "i11_persist_first"
    the_fence: FenceOnCommit, three(UNACKNOWLEDGED).at(Rotates) => "i4_fenced_write"
    the_late_commit: LateCommitTaken, three(CRASH).at(Rotates) => "i8_justified_loss"
    the_orphan: OrphanKept, three(PAUSE).at(Rotates) => "i8_justified_loss"
    the_rescue: OrphanRescues, three(PAUSE).at(Rotates) => "i8_justified_loss"
    the_generation_of_an_orphan: OrphanGeneration,
        two(Budget { expiries: 1, ..FAILOVER }).at(Rotates) => "i9_isolation"
    the_later_answer: LaterAskedCounts,
        three(Budget { crashes: 2, ..NOTHING }).at(Replaces) => "i7_quiescent_agreement"
    the_moment_in_the_fence: FenceIsMoment,
        two(Budget { crashes: 1, ..FAILOVER }).at(Replaces) => "i7_quiescent_agreement"
    the_incarnation: IncarnationOnCommit,
        three(Budget { reconnects: 1, ..NOTHING }).at(Rotates) => "i9_isolation"
    the_tombstone: TombstoneFence,
        three(Budget { disconnects: 1, ..NOTHING }).at(Rotates) => "i6_revocation_final"
    the_name_on_the_tombstone: TombstoneNames,
        two(Budget { disconnects: 1, ..FAILOVER }).at(Rotates) => "i6_revocation_final"
    the_loser_s_silence: LoserHarmless, three(PAUSE).at(Rotates) => "i5_loser_is_harmless"
    the_generation_of_a_refusal: RefusalNamesGeneration,
        three(Budget { refusals: 1, expiries: 1, ..NOTHING }).at(Rotates) => "i5_loser_is_harmless"
    the_word_of_the_journal_at_the_start: ReassertOnStart, three(CRASH).at(Rotates) => "i8_justified_loss"
    the_word_of_the_journal_after_a_failover: ReassertOnFailover,
        three(FAILOVER).at(Rotates) => "i3_monotonic"
    the_offer: OfferedOn, three(UNACKNOWLEDGED).at(Rotates) => "i8_justified_loss"
    the_better_knowledge: KnowsBetter, two(Budget { expiries: 1, ..FAILOVER }).at(Rotates) => "i3_monotonic"
}
