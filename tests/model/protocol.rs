//! The protocol as a Stateright model: what can happen in a state, and what becomes of it.
//!
//! Time passes only when nobody has anything to do at once: an owner is done before its lease ends unless it is
//! stopped, and who waits asks again long before another lease has passed. Every step uses something up, a stage, a
//! message or a part of the budget, so no path comes back to where it was: what holds where nothing can happen any
//! more holds in the end, whatever happened.

use std::sync::Arc;

use postern::store::change::{Decided, Decision, Write};
use postern::store::row::Body;
use postern::store::{Acquired, Row};
use stateright::{Model, Property};

use super::authorization_server::Behaviour;
use super::guards::{Guard, Operation};
use super::properties;
use super::world::{Budget, Content, Ending, Event, Instance, LEASE, Rule, Stage, Tick, Tokens, World, time};

/// Later than anything happens: who is not served by then is not served at all.
pub const LAST: Tick = 24;
/// More than are ever made: who tries that often will not stop.
pub const MOST_ATTEMPTS: u8 = 32;
/// How long an instance is stopped, at most.
const LONGEST_PAUSE: Tick = 2 * LEASE;

/// What is explored.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub behaviour: Behaviour,
    /// The server is known to be strict, and the access token ends then.
    pub strict_until: Option<Tick>,
    pub instances: usize,
    pub budget: Budget,
    /// No loss is admitted, whatever explains it.
    pub spares: bool,
    /// The guard that is missing.
    pub without: Option<Guard>,
    /// What has to be reachable, so that the model is not empty.
    pub expects: &'static [Event],
}

/// What becomes of a store operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    Received,
    /// Carried out, but nobody learns of it.
    Lost,
    /// Not carried out.
    Failed,
}

/// One step. Numbers are places in the world's sorted lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Call(usize),
    Acquire(usize, Ack),
    MarkSent(usize, Ack),
    Send(usize),
    /// Notices that it is too late to send.
    TurnBack(usize),
    Receive(usize),
    StopWaiting(usize),
    Journal(usize),
    Commit(usize, Ack),
    GiveUp(usize),
    Release(usize, Ack),
    Reassert(usize),
    /// The authorization server takes the request, and answers.
    Answer(usize),
    AnswerNotNow(usize),
    LoseMessage(usize),
    Crash(usize),
    Start(usize),
    Pause(usize),
    Resume(usize),
    Disconnect(usize),
    Reconnect,
    Refuse(usize),
    Expire,
    Replicate,
    Failover,
    Revoke,
    Tick,
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.instances, self.budget)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (number, instance) in world.instances.iter().enumerate() {
            // Those that are alike do alike.
            if number == 0 || world.instances[number - 1] != *instance {
                self.instance_actions(world, number, actions);
            }
        }
        for (number, message) in world.wire.iter().enumerate() {
            if number == 0 || world.wire[number - 1] != *message {
                self.message_actions(world, number, actions);
            }
        }
        self.other_actions(world, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.notes = Default::default();
        match action {
            Action::Call(number) => next.instances[number].stage = Stage::Wanting,
            Action::Acquire(number, ack) => self.acquire(&mut next, number, ack),
            Action::MarkSent(number, ack) => self.mark_sent(&mut next, number, ack),
            Action::Send(number) => self.send(&mut next, number),
            Action::TurnBack(number) => turn_back(&mut next, number),
            Action::Receive(number) => self.receive(&mut next, number),
            Action::StopWaiting(number) => self.stop_waiting(&mut next, number),
            Action::Journal(number) => self.journal(&mut next, number),
            Action::Commit(number, ack) => self.commit(&mut next, number, ack),
            Action::GiveUp(number) => self.give_up(&mut next, number),
            Action::Release(number, ack) => self.release(&mut next, number, ack),
            Action::Reassert(number) => self.reassert(&mut next, number),
            Action::Answer(message) => self.answer(&mut next, message),
            Action::AnswerNotNow(message) => {
                next.left.transients -= 1;
                next.wire[message].content = Content::Transient;
            }
            Action::LoseMessage(message) => self.lose_message(&mut next, message),
            Action::Crash(number) => self.crash(&mut next, number),
            Action::Start(number) => next.instances[number].stage = Stage::Starting,
            Action::Pause(number) => {
                next.left.pauses -= 1;
                next.instances[number].paused = Some(next.now);
            }
            Action::Resume(number) => next.instances[number].paused = None,
            Action::Disconnect(number) => self.disconnect(&mut next, number),
            Action::Reconnect => self.reconnect(&mut next),
            Action::Refuse(number) => self.refuse(&mut next, number),
            Action::Expire => self.expire(&mut next),
            Action::Replicate => next.replica = Arc::clone(&next.row),
            Action::Failover => self.failover(&mut next),
            Action::Revoke => self.revoke(&mut next),
            Action::Tick => tick(&mut next),
        }
        next.instances.sort_unstable();
        next.wire.sort_unstable();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self)
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.now <= LAST && world.attempts <= MOST_ATTEMPTS
    }
}

impl Protocol {
    fn instance_actions(&self, world: &World, number: usize, actions: &mut Vec<Action>) {
        let (instance, left) = (&world.instances[number], world.left);
        if let Some(since) = instance.paused {
            if world.now >= since + LEASE {
                actions.push(Action::Resume(number));
            }
            return;
        }
        let ways = |all: &[Ack]| if left.unacknowledged > 0 { all.to_vec() } else { vec![Ack::Received] };
        let any = || ways(&[Ack::Received, Ack::Lost, Ack::Failed]);
        match &instance.stage {
            Stage::Down => return actions.push(Action::Start(number)),
            Stage::Starting => return actions.push(Action::Reassert(number)),
            Stage::Wanting if self.is_blocked(world, instance) => {}
            Stage::Wanting => {
                let acks = ways(&[Ack::Received, Ack::Lost]);
                actions.extend(acks.into_iter().map(|ack| Action::Acquire(number, ack)));
            }
            Stage::Acquired(_) => actions.extend(any().into_iter().map(|ack| Action::MarkSent(number, ack))),
            Stage::Cleared { owner, .. } => {
                actions.push(Action::Send(number));
                if world.now >= owner.until {
                    actions.push(Action::TurnBack(number));
                }
            }
            Stage::Waiting(owner) => {
                let mut messages = world.wire.iter().filter(|message| message.owner == *owner);
                let message = messages.next();
                if message.is_some_and(|message| message.content != Content::Request) {
                    actions.push(Action::Receive(number));
                }
                if message.is_none() || left.network > 0 || world.now >= owner.until {
                    actions.push(Action::StopWaiting(number));
                }
            }
            Stage::Holding(..) => actions.push(Action::Journal(number)),
            Stage::Journalled { failing, .. } => {
                actions.extend(any().into_iter().map(|ack| Action::Commit(number, ack)));
                if *failing {
                    actions.push(Action::GiveUp(number));
                }
            }
            Stage::Ending(..) => actions.extend(any().into_iter().map(|ack| Action::Release(number, ack))),
            Stage::Served => {
                let held = instance.known.or_else(|| world.connection().and_then(Tokens::of));
                if held.is_some_and(|held| world.is_expired(held)) {
                    actions.push(Action::Call(number));
                }
            }
            Stage::Later | Stage::NeedsUser => {}
        }
        if instance.reassert {
            actions.push(Action::Reassert(number));
        }
        let at_work = instance.stage.owner().is_some();
        if left.crashes > 0 && (at_work || !instance.journal.is_empty()) {
            actions.push(Action::Crash(number));
        }
        if left.pauses > 0 && at_work {
            actions.push(Action::Pause(number));
        }
        if left.disconnects > 0 && world.connection().is_some() {
            actions.push(Action::Disconnect(number));
        }
        let holds = matches!(instance.stage, Stage::Wanting | Stage::Served) && instance.known.is_some();
        if left.refusals > 0 && holds {
            actions.push(Action::Refuse(number));
        }
    }

    fn message_actions(&self, world: &World, number: usize, actions: &mut Vec<Action>) {
        let message = &world.wire[number];
        let awaited = world.is_awaited(message);
        if message.content == Content::Request {
            actions.push(Action::Answer(number));
            if awaited && world.left.transients > 0 {
                actions.push(Action::AnswerNotNow(number));
            }
        }
        if !awaited || world.left.network > 0 {
            actions.push(Action::LoseMessage(number));
        }
    }

    fn other_actions(&self, world: &World, actions: &mut Vec<Action>) {
        let left = world.left;
        if left.reconnects > 0 {
            actions.push(Action::Reconnect);
        }
        if left.expiries > 0 && world.connection().is_some_and(|present| present.generation > world.expired.1)
        {
            actions.push(Action::Expire);
        }
        if left.failovers > 0 && world.replica != world.row {
            actions.extend([Action::Replicate, Action::Failover]);
        }
        if left.revocations > 0 {
            actions.push(Action::Revoke);
        }
        if self.may_tick(world) {
            actions.push(Action::Tick);
        }
    }

    /// Whether somebody waits for time to pass, and nobody has anything to do before.
    fn may_tick(&self, world: &World) -> bool {
        let waits = |instance: &Instance| {
            matches!(instance.stage, Stage::Wanting | Stage::Later | Stage::Journalled { failing: true, .. })
                || instance.paused.is_some()
        };
        let lets = |instance: &Instance| match (&instance.stage, instance.paused) {
            (_, Some(since)) => world.now < since + LONGEST_PAUSE,
            (Stage::Down, _) => true,
            _ if instance.reassert => false,
            (Stage::Wanting, _) => self.is_blocked(world, instance),
            (Stage::Journalled { owner, failing, .. }, _) => *failing && world.now < owner.until + LEASE,
            (Stage::Waiting(_), _) => self.without == Some(Guard::BoundedWork),
            (Stage::Starting, _) => false,
            (stage, _) => stage.owner().is_none(),
        };
        let may_delay = world.undelivered() <= world.left.network;
        may_delay && world.instances.iter().any(waits) && world.instances.iter().all(lets)
    }

    /// Whether the call can only wait.
    fn is_blocked(&self, world: &World, instance: &Instance) -> bool {
        let Some(present) = world.connection() else {
            return false;
        };
        let Some(known) = instance.known.or_else(|| Tokens::of(present)) else {
            return false;
        };
        if !world.is_expired(known) || present.attempt.is_none() && present.not_before.is_none() {
            return false;
        }
        let asked = self.operation(world).acquire("", known.generation).map(|decision| decision.answer);
        matches!(asked, Ok(Acquired::Wait { .. } | Acquired::Backoff { .. }))
    }

    pub fn operation(&self, world: &World) -> Operation {
        Operation { row: Row::clone(&world.row), now: time(world.now), without: self.without }
    }

    /// Carries out an operation of the store; none where its answer is not heard.
    pub fn operate<T>(
        &self,
        world: &mut World,
        ack: Ack,
        decide: impl FnOnce(Operation) -> Decided<T>,
    ) -> Option<T> {
        if ack != Ack::Received {
            world.left.unacknowledged -= 1;
        }
        if ack == Ack::Failed {
            return None;
        }
        let Decision { answer, write, .. } = decide(self.operation(world)).expect("a sound row");
        if let Write::Save(row) = write {
            world.put(*row);
        }
        (ack == Ack::Received).then_some(answer)
    }
}

impl World {
    fn put(&mut self, row: Row) {
        if row.fence() < self.row.fence() {
            self.notes.breaks(Rule::Monotonic);
        }
        if let (Body::Connection(before), Body::Connection(after)) = (&self.row.body, &row.body) {
            if before.incarnation == after.incarnation && before.generation > after.generation {
                self.notes.breaks(Rule::Monotonic);
            }
            if (&before.incarnation, before.generation) != (&after.incarnation, after.generation) {
                (self.sends, self.last_send) = (0, None);
            }
        }
        self.row = Arc::new(row);
    }
}

fn turn_back(world: &mut World, number: usize) {
    if let Stage::Cleared { owner, .. } = world.instances[number].stage {
        world.instances[number].stage = Stage::Ending(owner, Ending::Transient);
    }
}

fn tick(world: &mut World) {
    world.now += 1;
    world.left.network -= world.undelivered();
    for message in &mut world.wire {
        message.mark.delayed = true;
    }
    for instance in &mut world.instances {
        if instance.stage == Stage::Later && instance.is_running() {
            instance.stage = Stage::Wanting;
        }
    }
}
