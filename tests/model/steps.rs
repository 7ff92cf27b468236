//! What an instance does, in the order of `oauth::client::refresh`.

use std::time::Duration;

use postern::store::{Acquired, Committed, Connection, Phase, Refusal, Release, Released, State};

use super::authorization_server::Refresh;
use super::guards::Guard;
use super::protocol::{Ack, Protocol};
use super::world::{
    BACKOFF, Content, Ending, Entry, Event, LEASE, Mark, Message, Owner, Rule, Stage, Tokens, World,
    duration, incarnation,
};

impl Protocol {
    pub fn acquire(&self, world: &mut World, number: usize, ack: Ack) {
        let known = match world.instances[number].known {
            Some(known) => known,
            // Memory is filled from the store first.
            None => match world.connection().cloned() {
                Some(present) if present.state != State::NeedsReauth => {
                    let Some(tokens) = world.open(&present) else { return };
                    if !world.is_expired(tokens) {
                        return world.serve(number, tokens);
                    }
                    tokens
                }
                _ => return world.instances[number].stage = Stage::NeedsUser,
            },
        };
        let (before, id) = (world.row.clone(), format!("a{}", world.attempts + 1));
        let answer = self.operate(world, ack, |store| store.acquire(&id, known.generation));
        if world.row != before && world.row.fence() > before.fence() {
            world.attempts += 1;
        }
        match answer {
            // Not provably the owner: nothing is redeemed.
            None => world.instances[number].stage = Stage::Later,
            Some(Acquired::Owner { connection, takeover }) => {
                self.own(world, number, known, &connection, takeover);
            }
            Some(Acquired::Fresh(connection)) => {
                if world.row != before {
                    world.notes.shows(Event::OrphanRescued);
                }
                world.adopt(number, &connection);
            }
            Some(Acquired::NeedsReauth | Acquired::Absent) => {
                world.instances[number].stage = Stage::NeedsUser;
            }
            Some(Acquired::Wait { .. } | Acquired::Backoff { .. }) => panic!("asked while blocked"),
        }
    }

    fn own(
        &self,
        world: &mut World,
        number: usize,
        known: Tokens,
        connection: &Connection,
        takeover: Option<Phase>,
    ) {
        let Some(tokens) = world.open(connection) else { return };
        let refresh = if self.without == Some(Guard::Reread) { known.refresh } else { tokens.refresh };
        let owner = Owner {
            attempt: world.attempts,
            fence: connection.fence,
            generation: tokens.generation,
            refresh,
            until: world.now + LEASE,
            probe: takeover == Some(Phase::Sent),
        };
        if takeover.is_some() {
            world.notes.shows(Event::Takeover);
        }
        let is_rolled_back = world.instances[number].newest(tokens.refresh.family) > Some(tokens.generation);
        let covered = known.refresh.family == tokens.refresh.family && tokens.generation <= known.generation;
        let rereads = !matches!(self.without, Some(Guard::Freshness | Guard::Reread));
        let strict_until = self.strict_until.filter(|until| {
            let is_refused = connection.refused >= connection.generation;
            let waits = self.without != Some(Guard::StrictWaits);
            owner.probe && !is_refused && world.now < *until && waits
        });
        world.instances[number].known = Some(known);
        world.instances[number].stage = match strict_until {
            _ if !covered && rereads => Stage::Ending(owner, Ending::NotNeeded),
            _ if is_rolled_back && self.without != Some(Guard::KnowsBetter) => {
                world.instances[number].reassert = true;
                Stage::Ending(owner, Ending::RolledBack)
            }
            Some(until) => {
                world.notes.shows(Event::WaitedForExpiry);
                Stage::Ending(owner, Ending::Strict { until })
            }
            None if self.without == Some(Guard::IntentBeforeSend) => {
                Stage::Cleared { owner, mark: Mark::default() }
            }
            None => Stage::Acquired(owner),
        };
    }

    pub fn mark_sent(&self, world: &mut World, number: usize, ack: Ack) {
        let owner = world.owner(number);
        let mark = Mark { excused: self.excuses_probe(world, owner.refresh), ..Mark::default() };
        world.instances[number].stage =
            match self.operate(world, ack, |store| store.sent(&owner.id(), owner.fence)) {
                Some(true) => Stage::Cleared { owner, mark },
                Some(false) => return world.read_current(number),
                None if self.without == Some(Guard::NoStoreNoSend) => {
                    Stage::Cleared { owner, mark: Mark { unacknowledged: true, ..mark } }
                }
                None => Stage::Later,
            };
    }

    pub fn send(&self, world: &mut World, number: usize) {
        let Stage::Cleared { owner, mark } = world.instances[number].stage else { return };
        let late = world.now >= owner.until;
        if mark.unacknowledged {
            world.notes.breaks(Rule::NoStoreNoSend);
        }
        let known = world.instances[number].known;
        let is_needless = known.is_some_and(|known| {
            known.refresh.family == owner.refresh.family && known.generation < owner.generation
        });
        let is_too_soon = world.last_send == Some(world.now) && self.budget.failovers == world.left.failovers;
        if is_needless || is_too_soon && !late {
            world.notes.breaks(Rule::BoundedLoad);
        }
        if world.instances[number].newest(owner.refresh.family) > Some(owner.generation)
            && !mark.before_failover
        {
            world.notes.breaks(Rule::Monotonic);
        }
        world.sends += 1;
        if !late {
            world.last_send = Some(world.now);
        }
        world.wire.push(Message { owner, content: Content::Request, mark: Mark { late, ..mark } });
        world.instances[number].stage = Stage::Waiting(owner);
    }

    pub fn receive(&self, world: &mut World, number: usize) {
        let owner = world.owner(number);
        let place = world.wire.iter().position(|message| message.owner == owner).expect("an answer");
        world.instances[number].stage = match world.wire.remove(place).content {
            Content::Success(refresh) => {
                let tokens = Tokens { refresh, generation: owner.generation + 1, attempt: owner.attempt };
                if self.without == Some(Guard::PersistFirst) {
                    world.serve(number, tokens);
                }
                Stage::Holding(owner, tokens)
            }
            Content::Dead => Stage::Ending(owner, Ending::Dead),
            Content::Transient | Content::Request => Stage::Ending(owner, Ending::Transient),
        };
    }

    pub fn stop_waiting(&self, world: &mut World, number: usize) {
        let owner = world.owner(number);
        if let Some(place) = world.wire.iter().position(|message| message.owner == owner) {
            let message = &mut world.wire[place];
            if world.now < owner.until && !message.mark.delayed {
                message.mark.delayed = true;
                world.left.network -= 1;
            }
            // An answer that nobody waits for is gone; a request may still arrive.
            if world.wire[place].content != Content::Request {
                let message = world.wire.remove(place);
                self.lose_answer(world, &message.content);
            }
        }
        world.instances[number].stage = Stage::Ending(owner, Ending::Ambiguous);
    }

    pub fn journal(&self, world: &mut World, number: usize) {
        let instance = &mut world.instances[number];
        if let Stage::Holding(owner, tokens) = instance.stage {
            if self.without != Some(Guard::Journal) {
                instance.journal.push(Entry::Commit(owner, tokens));
            }
            instance.stage = Stage::Journalled { owner, tokens, failing: false };
        }
    }

    pub fn commit(&self, world: &mut World, number: usize, ack: Ack) {
        let Stage::Journalled { owner, tokens, .. } = world.instances[number].stage else { return };
        match self.store_tokens(world, ack, owner, tokens) {
            Some(Committed::Stored { generation }) => {
                if owner.probe {
                    world.notes.shows(Event::ProbeSaved);
                }
                world.serve(number, Tokens { generation, ..tokens });
            }
            Some(Committed::Orphaned) => world.instances[number].stage = Stage::Later,
            Some(Committed::Stale) => world.read_current(number),
            Some(Committed::Gone) => {
                world.notes.shows(Event::CommitMetTombstone);
                world.server.end(tokens.refresh.family);
                world.instances[number].stage = Stage::NeedsUser;
            }
            None => world.instances[number].stage = Stage::Journalled { owner, tokens, failing: true },
        }
    }

    fn store_tokens(&self, world: &mut World, ack: Ack, owner: Owner, tokens: Tokens) -> Option<Committed> {
        let before = world.row.clone();
        let attempt = world.connection().and_then(|present| present.attempt.clone());
        let is_owner =
            attempt.as_ref().is_some_and(|present| present.id == owner.id() && present.fence == owner.fence);
        let is_overtaken = before.fence() >= owner.fence
            && attempt.is_some_and(|present| present.phase == Phase::Sent)
            && !is_owner;
        let answer = self.operate(world, ack, |store| store.commit(&owner.claim(), tokens.seal()));
        let is_in_force =
            world.row != before && world.connection().and_then(Tokens::of).is_some_and(|now| now == tokens);
        if is_in_force && is_overtaken {
            world.notes.breaks(Rule::FencedWrite);
        }
        if is_in_force && !is_owner {
            world.notes.shows(Event::LateCommitTaken);
        }
        if let Some(Committed::Stored { generation }) = answer {
            world.acknowledged = world.acknowledged.max((tokens.refresh.family, generation));
        }
        answer
    }

    /// The call is not kept waiting any longer; the tokens, which are in the journal, are offered on.
    pub fn give_up(&self, world: &mut World, number: usize) {
        let instance = &mut world.instances[number];
        instance.stage = Stage::Later;
        instance.reassert = self.without != Some(Guard::OfferedOn);
    }

    pub fn release(&self, world: &mut World, number: usize, ack: Ack) {
        let Stage::Ending(owner, ending) = world.instances[number].stage else { return };
        let (soon, now) = (duration(BACKOFF), world.now);
        let outcome = match ending {
            Ending::Dead => Release::NeedsReauth,
            Ending::Transient | Ending::RolledBack => Release::Transient { wait: soon },
            Ending::NotNeeded => Release::Transient { wait: Duration::ZERO },
            Ending::Ambiguous => Release::Ambiguous { wait: soon },
            Ending::Strict { until } => Release::Ambiguous { wait: duration(until.saturating_sub(now)) },
        };
        let before = world.connection().cloned();
        let released = self.operate(world, ack, |store| store.release(&owner.id(), owner.fence, outcome));
        let ended = |connection: Option<&Connection>| {
            connection.is_some_and(|connection| connection.state == State::NeedsReauth)
        };
        if ended(world.connection()) && !ended(before.as_ref()) {
            let is_justified = before.is_some_and(|before| {
                let is_current = before
                    .attempt
                    .as_ref()
                    .is_some_and(|present| present.id == owner.id() && present.fence == owner.fence);
                let sent = Tokens::of(&before).is_some_and(|stored| stored.refresh == owner.refresh);
                is_current && sent && ending == Ending::Dead
            });
            if !is_justified {
                world.notes.breaks(Rule::HarmlessLoser);
            }
        }
        match released {
            _ if ending == Ending::NotNeeded => world.read_current(number),
            Some(Released::Done) if ending == Ending::Dead => {
                world.instances[number].stage = Stage::NeedsUser;
            }
            Some(Released::Done) | None => world.instances[number].stage = Stage::Later,
            Some(Released::Rescued) => {
                world.notes.shows(Event::OrphanRescued);
                world.read_current(number);
            }
            Some(Released::Stale) => world.read_current(number),
        }
    }

    /// Says the journal again, at the start and when something was missed.
    pub fn reassert(&self, world: &mut World, number: usize) {
        world.instances[number].reassert = false;
        for entry in world.instances[number].journal.clone() {
            let before = world.row.clone();
            match entry {
                Entry::Commit(owner, tokens) => {
                    let stored = self.store_tokens(world, Ack::Received, owner, tokens);
                    if world.row != before && matches!(stored, Some(Committed::Stored { .. })) {
                        world.notes.shows(Event::AssertedAgain);
                    }
                }
                Entry::Tombstone { fence, family } => {
                    let name = incarnation(family);
                    if self.operate(world, Ack::Received, |store| store.bury(fence, &name)) == Some(true) {
                        world.notes.shows(Event::TombstoneMadeAgain);
                    }
                }
            }
        }
        let instance = &mut world.instances[number];
        instance.known = None;
        if instance.stage == Stage::Starting {
            instance.stage = Stage::Wanting;
        }
    }

    /// A user disconnects, at this instance.
    pub fn disconnect(&self, world: &mut World, number: usize) {
        world.left.disconnects -= 1;
        let Some(family) = world.connection().and_then(Tokens::of).map(|tokens| tokens.refresh.family) else {
            return;
        };
        if let Some(tombstone) = self.operate(world, Ack::Received, |store| store.tombstone()) {
            let entry = Entry::Tombstone { fence: tombstone.fence, family };
            world.instances[number].journal.push(entry);
            world.disconnected.insert(family);
        }
    }

    /// The user authorizes anew.
    pub fn reconnect(&self, world: &mut World) {
        world.left.reconnects -= 1;
        let refresh = world.server.authorize();
        let tokens = Tokens { refresh, generation: 1, attempt: 0 };
        let name = incarnation(refresh.family);
        self.operate(world, Ack::Received, |store| store.connect(&name, tokens.seal()));
        world.acknowledged = (refresh.family, 1);
    }

    /// The upstream turns down the access token that this instance has in memory, and that is said to be the last.
    pub fn refuse(&self, world: &mut World, number: usize) {
        world.left.refusals -= 1;
        let Some(known) = world.instances[number].known else { return };
        let Refresh { family, .. } = known.refresh;
        let stored = world.connection().and_then(Tokens::of);
        let is_current =
            stored.is_some_and(|now| now.refresh.family == family && now.generation == known.generation);
        let before = world.row.clone();
        let name = incarnation(family);
        self.operate(world, Ack::Received, |store| store.refuse(&name, known.generation, Refusal::Final));
        if world.row != before {
            if !is_current {
                world.notes.breaks(Rule::HarmlessLoser);
            }
            world.excused.insert(family);
        }
        world.instances[number].stage = Stage::NeedsUser;
    }
}

impl World {
    fn owner(&self, number: usize) -> Owner {
        *self.instances[number].stage.owner().expect("an owner")
    }

    /// The tokens of a connection; that they do not open is nobody's right.
    fn open(&mut self, connection: &Connection) -> Option<Tokens> {
        let tokens = Tokens::of(connection);
        if tokens.is_none() {
            self.notes.breaks(Rule::Isolation);
        }
        tokens
    }

    /// What is in force, whoever put it there.
    fn read_current(&mut self, number: usize) {
        match self.connection().cloned() {
            Some(present) if present.state != State::NeedsReauth => self.adopt(number, &present),
            _ => self.instances[number].stage = Stage::NeedsUser,
        }
    }

    fn adopt(&mut self, number: usize, connection: &Connection) {
        if let Some(tokens) = self.open(connection) {
            self.serve(number, tokens);
        }
    }

    /// Gives the call its tokens, unless they are of no more use by now.
    fn serve(&mut self, number: usize, tokens: Tokens) {
        let is_stored = self.connection().and_then(Tokens::of) == Some(tokens);
        let journal = &self.instances[number].journal;
        let is_noted =
            journal.iter().any(|entry| matches!(entry, Entry::Commit(_, noted) if *noted == tokens));
        if !is_stored && !is_noted {
            self.notes.breaks(Rule::PersistFirst);
        }
        let stage = if self.is_expired(tokens) { Stage::Wanting } else { Stage::Served };
        let instance = &mut self.instances[number];
        (instance.known, instance.stage) = (Some(tokens), stage);
    }
}
