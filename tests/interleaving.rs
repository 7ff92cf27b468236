//! What the callers of one process share, in all interleavings of their steps: the refresh under way, and the copy of
//! a connection in memory.
//!
//! These are models of `flight` and `Landing` in `oauth::client::refresh` and of `Slot::replace` in
//! `credential::connection`, not the code itself: DashMap, tokio's watch channel and ArcSwap cannot run under loom, so
//! each call of theirs is one step here, as they promise. Each rule is then broken on purpose, and loom has to find
//! the interleaving that shows it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use loom::sync::{Condvar, Mutex};
use loom::thread;

/// A refresh under way, as those see it who wait for it.
struct Flight {
    outcome: Mutex<Outcome>,
    changed: Condvar,
}

#[derive(Clone, Copy)]
enum Outcome {
    Awaited,
    /// The generation that the store has now.
    Tokens(u64),
    /// The task has panicked.
    Dropped,
}

/// How the code is, and how it must not be.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// Off the board first, however the attempt ends, then the outcome.
    AsItIs,
    /// The outcome first.
    OutcomeFirst,
    /// A panic leaves the flight on the board.
    NoLanding,
}

/// One process with one connection, and the store.
struct Process {
    order: Order,
    tries: usize,
    under_way: Mutex<Option<Arc<Flight>>>,
    attempting: AtomicBool,
    /// The next attempt panics.
    fails: AtomicBool,
    stored: AtomicU64,
}

impl Process {
    fn new(order: Order, stored: u64) -> Self {
        Self {
            order,
            tries: 2,
            under_way: Mutex::new(None),
            attempting: AtomicBool::new(false),
            fails: AtomicBool::new(false),
            stored: AtomicU64::new(stored),
        }
    }

    /// `Connector::renew`; none stands for `Later`.
    fn renew(self: &Arc<Self>, outdated: u64) -> Option<u64> {
        for _ in 0..self.tries {
            match self.flight(outdated).outcome() {
                Outcome::Tokens(generation) if generation <= outdated => {}
                Outcome::Tokens(generation) => return Some(generation),
                Outcome::Awaited | Outcome::Dropped => break,
            }
        }
        None
    }

    fn flight(self: &Arc<Self>, outdated: u64) -> Arc<Flight> {
        let mut under_way = self.under_way.lock().unwrap();
        if let Some(flight) = &*under_way {
            return Arc::clone(flight);
        }
        let flight = Arc::new(Flight { outcome: Mutex::new(Outcome::Awaited), changed: Condvar::new() });
        *under_way = Some(Arc::clone(&flight));
        let (this, ours) = (Arc::clone(self), Arc::clone(&flight));
        thread::spawn(move || this.fly(&ours, outdated));
        flight
    }

    fn fly(&self, flight: &Flight, outdated: u64) {
        let outcome = self.attempt(outdated);
        if self.order == Order::OutcomeFirst {
            flight.land(outcome);
        }
        if self.order != Order::NoLanding || !matches!(outcome, Outcome::Dropped) {
            *self.under_way.lock().unwrap() = None;
        }
        flight.land(outcome);
    }

    fn attempt(&self, outdated: u64) -> Outcome {
        assert!(!self.attempting.swap(true, SeqCst), "two attempts at once");
        let outcome = if self.fails.swap(false, SeqCst) {
            Outcome::Dropped
        } else {
            let stored = self.stored.load(SeqCst);
            let newer = stored.max(outdated + 1);
            self.stored.store(newer, SeqCst);
            // What is newer than the outdated is adopted.
            Outcome::Tokens(newer)
        };
        self.attempting.store(false, SeqCst);
        outcome
    }
}

impl Flight {
    fn land(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap() = outcome;
        self.changed.notify_all();
    }

    fn outcome(&self) -> Outcome {
        let mut outcome = self.outcome.lock().unwrap();
        while matches!(*outcome, Outcome::Awaited) {
            outcome = self.changed.wait(outcome).unwrap();
        }
        *outcome
    }
}

#[test]
fn callers_share_one_attempt() {
    loom::model(|| {
        let process = Arc::new(Process::new(Order::AsItIs, 1));
        let other = Arc::clone(&process);
        let other = thread::spawn(move || other.renew(1));
        assert_eq!(process.renew(1), Some(2));
        assert_eq!(other.join().unwrap(), Some(2));
        assert_eq!(process.stored.load(SeqCst), 2, "redeemed once");
    });
}

/// The first caller's tokens are those that the second has found useless.
fn a_caller_with_newer_tokens_is_served(tries: usize) {
    loom::model(move || {
        let process = Arc::new(Process { tries, ..Process::new(Order::AsItIs, 2) });
        let first = Arc::clone(&process);
        let first = thread::spawn(move || first.renew(1));
        assert_eq!(process.renew(2), Some(3));
        assert!(first.join().unwrap().is_some_and(|generation| generation > 1));
    });
}

#[test]
fn a_caller_who_joined_an_older_attempt_gets_another() {
    a_caller_with_newer_tokens_is_served(2);
}

#[test]
#[should_panic(expected = "left: None")]
fn one_try_would_not_do() {
    a_caller_with_newer_tokens_is_served(1);
}

fn who_has_the_outcome_finds_the_board_free(order: Order) {
    loom::model(move || {
        let process = Arc::new(Process::new(order, 1));
        assert_eq!(process.renew(1), Some(2));
        let Outcome::Tokens(generation) = process.flight(2).outcome() else { panic!() };
        assert_eq!(generation, 3, "an attempt of its own");
    });
}

#[test]
fn a_flight_leaves_the_board_before_its_outcome_is_known() {
    who_has_the_outcome_finds_the_board_free(Order::AsItIs);
}

#[test]
#[should_panic(expected = "an attempt of its own")]
fn an_outcome_before_that_would_be_taken_twice() {
    who_has_the_outcome_finds_the_board_free(Order::OutcomeFirst);
}

fn after_a_panic_there_is_another_attempt(order: Order) {
    loom::model(move || {
        let process = Arc::new(Process::new(order, 1));
        process.fails.store(true, SeqCst);
        let other = Arc::clone(&process);
        let other = thread::spawn(move || other.renew(1));
        let first = process.renew(1);
        other.join().unwrap();
        assert!(first.is_none_or(|generation| generation == 2));
        assert_eq!(process.renew(1), Some(2), "the board is free");
    });
}

#[test]
fn a_panic_costs_its_own_callers_a_retry_and_nobody_else() {
    after_a_panic_there_is_another_attempt(Order::AsItIs);
}

#[test]
#[should_panic(expected = "the board is free")]
fn a_flight_left_on_the_board_would_block_all() {
    after_a_panic_there_is_another_attempt(Order::NoLanding);
}

/// The copy in memory, and the record that it is a copy of.
struct Slot {
    known: Mutex<Arc<Known>>,
    stored: AtomicU64,
}

#[derive(Debug, PartialEq)]
enum Known {
    Unknown,
    Token(u64),
}

/// How a reader fills the copy, and how it must not.
#[derive(Clone, Copy, PartialEq)]
enum Filling {
    AsItIs,
    /// Whatever came in meanwhile.
    Overwriting,
    /// Looks what is there only after it has read.
    LookingLate,
}

impl Slot {
    fn load(&self) -> Arc<Known> {
        Arc::clone(&self.known.lock().unwrap())
    }

    fn fill(&self, filling: Filling) {
        let early = self.load();
        let known = Arc::new(Known::Token(self.stored.load(SeqCst)));
        let before = if filling == Filling::LookingLate { self.load() } else { early };
        let mut present = self.known.lock().unwrap();
        if filling == Filling::Overwriting || Arc::ptr_eq(&present, &before) {
            *present = known;
        }
    }

    /// Another instance commits, and the store says so.
    fn change(&self) {
        self.stored.store(2, SeqCst);
        *self.known.lock().unwrap() = Arc::new(Known::Unknown);
    }
}

fn nothing_old_is_left(filling: Filling) {
    loom::model(move || {
        let slot = Arc::new(Slot { known: Mutex::new(Arc::new(Known::Unknown)), stored: AtomicU64::new(1) });
        let readers = [(); 2].map(|()| {
            let slot = Arc::clone(&slot);
            thread::spawn(move || slot.fill(filling))
        });
        slot.change();
        for reader in readers {
            reader.join().unwrap();
        }
        assert_ne!(*slot.load(), Known::Token(1), "read before the change");
    });
}

#[test]
fn what_was_read_before_a_change_does_not_outlive_it() {
    nothing_old_is_left(Filling::AsItIs);
}

#[test]
#[should_panic(expected = "read before the change")]
fn overwriting_would_leave_old_tokens() {
    nothing_old_is_left(Filling::Overwriting);
}

#[test]
#[should_panic(expected = "read before the change")]
fn looking_late_would_leave_old_tokens() {
    nothing_old_is_left(Filling::LookingLate);
}
