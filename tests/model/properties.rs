//! What has to hold: I1 to I12 of the reference, that everybody is served in the end, and that the model gets anywhere.

use postern::store::row::Body;
use postern::store::{Phase, State};
use stateright::{Model, Property};

use super::protocol::{LAST, MOST_ATTEMPTS, Protocol};
use super::world::{Content, Entry, Event, Owner, Rule, Stage, Tokens, World};

pub fn all(protocol: &Protocol) -> Vec<Property<Protocol>> {
    let mut properties = vec![
        Property::always("i1_one_redeemer", i1_one_redeemer),
        Property::always("i2_intent_before_send", i2_intent_before_send),
        Property::always("i3_monotonic", i3_monotonic),
        Property::always("i4_fenced_write", |_, world: &World| world.notes.keeps(Rule::FencedWrite)),
        Property::always("i5_loser_is_harmless", |_, world: &World| world.notes.keeps(Rule::HarmlessLoser)),
        Property::always("i6_revocation_final", i6_revocation_final),
        Property::always("i7_quiescent_agreement", i7_quiescent_agreement),
        Property::always("i8_justified_loss", i8_justified_loss),
        Property::always("i9_isolation", i9_isolation),
        Property::always("i10_no_store_no_send", |_, world: &World| world.notes.keeps(Rule::NoStoreNoSend)),
        Property::always("i11_persist_first", |_, world: &World| world.notes.keeps(Rule::PersistFirst)),
        Property::always("i12_bounded_load", i12_bounded_load),
        Property::always("everybody_is_served", everybody_is_served),
    ];
    properties.extend(protocol.expects.iter().map(|event| reachable(*event)));
    properties
}

/// Without faults nobody else's request is under way with the same refresh token; each fault may add one.
fn i1_one_redeemer(protocol: &Protocol, world: &World) -> bool {
    let same =
        |one: &Owner, other: &Owner| (one.refresh, one.generation) == (other.refresh, other.generation);
    let alike = |owner| world.wire.iter().filter(|message| same(&message.owner, owner)).count();
    let (had, left) = (protocol.budget, world.left);
    let allowed = 1 + had.crashes + had.pauses + had.network + had.failovers
        - (left.crashes + left.pauses + left.network + left.failovers);
    world.wire.iter().all(|message| alike(&message.owner) <= usize::from(allowed))
}

/// What is on the wire is known to the store, which has forgotten it after a failover at most.
fn i2_intent_before_send(_: &Protocol, world: &World) -> bool {
    let mut requests = world.wire.iter().filter(|message| message.content == Content::Request);
    requests.all(|message| match &world.row.body {
        _ if message.mark.before_failover => true,
        Body::Connection(present) if present.fence == message.owner.fence => {
            present.attempt.as_ref().is_none_or(|attempt| attempt.phase == Phase::Sent)
        }
        _ => world.row.fence() > message.owner.fence,
    })
}

/// Fences and generations never go back, and what a failover took back is there again in the end.
fn i3_monotonic(_: &Protocol, world: &World) -> bool {
    let (family, generation) = world.acknowledged;
    let is_restored = world.connection().and_then(Tokens::of).is_none_or(|stored| {
        stored.refresh.family > family
            || stored.refresh.family == family && stored.generation >= generation
            || spare(world).is_some_and(|spare| spare.generation >= generation)
    });
    world.notes.keeps(Rule::Monotonic) && (!world.is_quiet() || is_restored)
}

/// What the user has disconnected does not come back, except with a failover and until it has been said again.
fn i6_revocation_final(_: &Protocol, world: &World) -> bool {
    let Some(tokens) = world.connection().and_then(Tokens::of) else {
        return true;
    };
    let family = tokens.refresh.family;
    let will_be_said_again = world.instances.iter().any(|instance| {
        let is_due = instance.reassert || matches!(instance.stage, Stage::Down | Stage::Starting);
        let buries =
            |entry: &Entry| matches!(entry, Entry::Tombstone { family: buried, .. } if *buried == family);
        is_due && instance.journal.iter().any(buries)
    });
    !world.disconnected.contains(family) || will_be_said_again
}

/// With nothing under way, the refresh token that is stored works.
fn i7_quiescent_agreement(protocol: &Protocol, world: &World) -> bool {
    let Some(tokens) = world.connection().and_then(Tokens::of).filter(|_| world.is_quiet()) else {
        return true;
    };
    let is_ended = world.connection().is_some_and(|connection| connection.state == State::NeedsReauth);
    let works = world.server.accepts(protocol.behaviour, tokens.refresh, world.now)
        || protocol.outlasts_grace(world, tokens.refresh);
    let spare_works = || {
        spare(world).is_some_and(|spare| world.server.accepts(protocol.behaviour, spare.refresh, world.now))
    };
    works || is_ended || protocol.excuses(world, tokens.refresh.family) || spare_works()
}

/// Tokens that came late and wait for somebody to need them.
fn spare(world: &World) -> Option<Tokens> {
    let connection = world.connection()?;
    let orphan = connection.orphan.as_ref()?;
    Tokens::open(&orphan.sealed, &connection.incarnation, orphan.generation)
}

/// Only what a fault explains has cost the user the connection.
fn i8_justified_loss(protocol: &Protocol, world: &World) -> bool {
    let Some(connection) = world.connection().filter(|_| world.is_quiet()) else {
        return true;
    };
    let family = Tokens::of(connection).map(|tokens| tokens.refresh.family);
    connection.state != State::NeedsReauth || family.is_none_or(|family| protocol.excuses(world, family))
}

/// Everything in the record opens for its incarnation and generation, and was opened for no other.
fn i9_isolation(_: &Protocol, world: &World) -> bool {
    let opens = world.connection().is_none_or(|connection| {
        Tokens::of(connection).is_some() && (connection.orphan.is_none() || spare(world).is_some())
    });
    opens && world.notes.keeps(Rule::Isolation)
}

/// Between two generations one request, and one more for each fault; each later than the one before by the backoff or
/// the lease, and none that the record had an answer to.
fn i12_bounded_load(protocol: &Protocol, world: &World) -> bool {
    world.sends <= 1 + protocol.used(world) && world.notes.keeps(Rule::BoundedLoad)
}

/// Where nothing can happen any more, every call has got tokens or been told to connect, in time.
fn everybody_is_served(protocol: &Protocol, world: &World) -> bool {
    if world.now == LAST || world.attempts == MOST_ATTEMPTS {
        return false;
    }
    if world.instances.iter().any(|instance| instance.stage.owner().is_some()) {
        return true;
    }
    let mut actions = Vec::new();
    protocol.actions(world, &mut actions);
    let is_served = |stage: &Stage| matches!(stage, Stage::Served | Stage::NeedsUser);
    let all_served = world.is_quiet() && world.instances.iter().all(|instance| is_served(&instance.stage));
    !actions.is_empty() || all_served
}

fn reachable(event: Event) -> Property<Protocol> {
    match event {
        Event::Takeover => {
            Property::sometimes("takeover", |_, world: &World| world.notes.has(Event::Takeover))
        }
        Event::ProbeSaved => Property::sometimes("probe saves the connection", |_, world: &World| {
            world.notes.has(Event::ProbeSaved)
        }),
        Event::OrphanRescued => {
            Property::sometimes("orphan rescued", |_, world: &World| world.notes.has(Event::OrphanRescued))
        }
        Event::LateCommitTaken => Property::sometimes("late commit taken", |_, world: &World| {
            world.notes.has(Event::LateCommitTaken)
        }),
        Event::AssertedAgain => Property::sometimes("commit asserted again", |_, world: &World| {
            world.notes.has(Event::AssertedAgain)
        }),
        Event::CommitMetTombstone => Property::sometimes("commit met tombstone", |_, world: &World| {
            world.notes.has(Event::CommitMetTombstone)
        }),
        Event::TombstoneMadeAgain => Property::sometimes("tombstone made again", |_, world: &World| {
            world.notes.has(Event::TombstoneMadeAgain)
        }),
        Event::WaitedForExpiry => Property::sometimes("probe waited for expiry", |_, world: &World| {
            world.notes.has(Event::WaitedForExpiry)
        }),
    }
}
