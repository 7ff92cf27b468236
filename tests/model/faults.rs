//! What the world does to the protocol, and which losses that explains.
//!
//! A loss is excused where no protocol could have prevented it (§4.7 of the reference: an answer that only a dead
//! process had seen, from a server that does not repeat it), and where a server that ends the family at a replay met
//! one that a fault had made. Everything else has to be survived.

use std::sync::Arc;

use super::authorization_server::{Behaviour, Refresh};
use super::guards::Guard;
use super::protocol::Protocol;
use super::world::{Content, Entry, Instance, Message, Owner, Stage, Tokens, World};

impl Protocol {
    /// The authorization server takes a request; the answer goes to whoever still waits for it.
    pub fn answer(&self, world: &mut World, number: usize) {
        let (message, now) = (world.wire[number].clone(), world.now);
        let (presented, awaited) = (message.owner.refresh, world.is_awaited(&message));
        let is_outlasted = self.outlasts_grace(world, presented);
        let redeemed = world.server.redeem(self.behaviour, presented, now);
        let is_late = message.mark.late || !awaited || now >= message.owner.until;
        let failed_over = self.budget.failovers > world.left.failovers;
        let is_excused = redeemed.ends_family && (message.mark.excused || is_late || failed_over)
            || redeemed.displaces && (is_late || message.mark.before_failover)
            || is_outlasted;
        if is_excused {
            world.excused.insert(presented.family);
        }
        let content = redeemed.successor.map_or(Content::Dead, Content::Success);
        if awaited {
            world.wire[number].content = content;
        } else {
            world.wire.remove(number);
            self.lose_answer(world, &content);
        }
    }

    /// Whether a fault keeps from everybody else what has come of this refresh token, and the protocol need not wait
    /// for it any longer.
    pub fn excuses_probe(&self, world: &World, spent: Refresh) -> bool {
        let has_waited = self.strict_until.is_none_or(|until| world.now >= until);
        has_waited && world.instances.iter().any(|holder| world.keeps_from_others(holder, spent))
    }

    /// Whether the grace of the server is over. One fault alone must not last that long.
    pub fn outlasts_grace(&self, world: &World, refresh: Refresh) -> bool {
        self.used(world) > 1 && world.server.is_only_too_late(self.behaviour, refresh, world.now)
    }

    /// An answer will never be read by anybody.
    pub fn lose_answer(&self, world: &mut World, content: &Content) {
        let Content::Success(refresh) = *content else { return };
        let is_lost = match self.behaviour {
            Behaviour::Keeps | Behaviour::Repeats => false,
            Behaviour::Rotates | Behaviour::Revokes => true,
            // Whoever has the successor that this one displaced has nothing.
            Behaviour::Replaces => world.server.displaced_another(refresh),
        };
        if is_lost {
            world.excused.insert(refresh.family);
        }
    }

    pub fn lose_message(&self, world: &mut World, number: usize) {
        world.left.network -= u8::from(world.is_awaited(&world.wire[number]));
        let message = world.wire.remove(number);
        self.lose_answer(world, &message.content);
    }

    pub fn crash(&self, world: &mut World, number: usize) {
        world.left.crashes -= 1;
        let instance = &mut world.instances[number];
        let stage = std::mem::replace(&mut instance.stage, Stage::Down);
        (instance.known, instance.reassert) = (None, false);
        if self.without == Some(Guard::ReassertOnStart) {
            instance.journal.clear();
        }
        match stage {
            Stage::Holding(_, Tokens { refresh, .. }) => self.lose_answer(world, &Content::Success(refresh)),
            Stage::Waiting(owner) => {
                let answer =
                    |message: &Message| message.owner == owner && message.content != Content::Request;
                if let Some(place) = world.wire.iter().position(answer) {
                    let message = world.wire.remove(place);
                    self.lose_answer(world, &message.content);
                }
            }
            _ => {}
        }
    }

    /// The replica takes over, which takes its time. Each instance notices, and says its journal again.
    pub fn failover(&self, world: &mut World) {
        world.left.failovers -= 1;
        world.now += 1;
        world.row = Arc::clone(&world.replica);
        for message in &mut world.wire {
            message.mark.before_failover = true;
        }
        for instance in &mut world.instances {
            if let Stage::Cleared { mark, .. } = &mut instance.stage {
                mark.before_failover = true;
            }
            instance.reassert =
                self.without != Some(Guard::ReassertOnFailover) && instance.stage != Stage::Down;
        }
    }

    pub fn expire(&self, world: &mut World) {
        world.left.expiries -= 1;
        if let Some(tokens) = world.connection().and_then(Tokens::of) {
            world.expired = (tokens.refresh.family, tokens.generation);
        }
    }

    pub fn revoke(&self, world: &mut World) {
        world.left.revocations -= 1;
        if let Some(tokens) = world.connection().and_then(Tokens::of) {
            world.server.end(tokens.refresh.family);
            world.excused.insert(tokens.refresh.family);
        }
    }

    /// Whether the loss of this family is explained.
    pub fn excuses(&self, world: &World, family: u8) -> bool {
        !self.spares && world.excused.contains(family)
    }

    /// How much has gone wrong so far.
    pub fn used(&self, world: &World) -> u8 {
        self.budget.faults() - world.left.faults()
    }
}

impl World {
    /// Whether somebody still waits for what comes of this message.
    pub fn is_awaited(&self, message: &Message) -> bool {
        self.instances.iter().any(|instance| instance.stage == Stage::Waiting(message.owner))
    }

    /// Whether a fault keeps this instance from sharing a successor that it has.
    fn keeps_from_others(&self, holder: &Instance, spent: Refresh) -> bool {
        let is_successor = |tokens: &Tokens| self.server.parent(tokens.refresh) == Some(spent);
        let has = |entry: &Entry| matches!(entry, Entry::Commit(_, tokens) if is_successor(tokens));
        let is_over = |owner: &Owner| holder.paused.is_some() || self.now >= owner.until;
        match &holder.stage {
            Stage::Down | Stage::Starting => holder.journal.iter().any(has),
            // What it sends or has sent may arrive before ours or after it.
            Stage::Cleared { owner, .. } | Stage::Waiting(owner) => owner.refresh == spent && is_over(owner),
            Stage::Holding(owner, tokens) => is_successor(tokens) && is_over(owner),
            Stage::Journalled { owner, tokens, failing } => {
                is_successor(tokens) && (*failing || is_over(owner))
            }
            _ => holder.reassert && holder.journal.iter().any(has),
        }
    }
}
