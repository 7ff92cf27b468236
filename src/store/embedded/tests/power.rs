//! Power loss (F22): whatever the disk holds when the power fails, the store opens, every change that was answered is
//! there, and one that was not is there whole or not at all.
//!
//! The power fails at every point of a recorded [`Life`]: after each flush, between writes, in the middle of one, and with
//! what was not flushed yet only partly there or in another order. Then the story goes on; and after some of these
//! failures the power fails once more, during the repair or the next change. All flushes are tried and some of the rest;
//! with `POSTERN_SOAK=1` everything, in more and longer lives.
//!
//! One test turns it round: with a disk that lies about flushes, the same examination has to find losses.

use super::disk::{Call, Verdict, What};
use super::life::Life;
use super::story::Dice;
use super::{HOUR, on_new_disk, soak};
use crate::store::suite::clock;
use crate::store::{Kind, Store};

/// Of a life that has everything in it.
const SEED: u64 = 113;

#[tokio::test]
async fn power_loss_loses_nothing_answered_and_brings_nothing_back() {
    let (lives, length, wanted) = if soak() { (5, 120, usize::MAX) } else { (1, 80, 400) };
    for seed in SEED..SEED + lives {
        let life = Life::lived(seed, length, |_| Verdict::Do).await;
        if seed == SEED {
            let lengths = life.lengths();
            assert!(lengths.windows(2).any(|lengths| lengths[0] < lengths[1]), "the file grows");
            assert!(lengths.windows(2).any(|lengths| lengths[0] > lengths[1]), "the file shrinks");
            assert_eq!(life.operations().len(), 15, "every operation comes up");
        }
        let mut dice = Dice::new(seed);
        let all = life.failures(2);
        let of = all.len();
        let (boundaries, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|failure| life.is_boundary(*failure));
        let others = dice.some_of(others, wanted);
        let mut images = 0;
        for (number, failure) in boundaries.into_iter().chain(others).enumerate() {
            let again = if number % 8 == 0 { 3 } else { 0 };
            life.examine(failure, again, &mut dice).await.unwrap();
            images += 1;
        }
        println!("life {seed}: images {images}/{of}");
    }
}

/// Such a disk says on a flush that it is done, and has done nothing: always, or in one of the phases of a commit.
#[tokio::test]
async fn a_disk_that_does_not_flush_is_found_out() {
    let everything = |_| true;
    let first_phases = |flush| flush % 2 == 0;
    let second_phases = |flush| flush % 2 == 1;
    finds("lost", everything).await;
    finds("does not open", first_phases).await;
    finds("lost", second_phases).await;
}

/// Examines until this is found, on a disk that lies about these flushes.
async fn finds(found: &str, lies: fn(usize) -> bool) {
    let judge = move |call: Call| match call.what {
        What::Flush { number } if lies(number) => Verdict::Pretend,
        _ => Verdict::Do,
    };
    let life = Life::lived(SEED, 80, judge).await;
    let mut dice = Dice::new(SEED);
    for failure in dice.some_of(life.failures(2), 1000) {
        if life.examine(failure, 0, &mut dice).await.is_err_and(|what| what.contains(found)) {
            return;
        }
    }
    panic!("a store that {found} was not found");
}

/// So a torn commit is never judged by its checksum, which strangers could aim at through what they have us store.
#[tokio::test]
async fn every_commit_has_two_phases() {
    const IN_TWO_PHASES: u8 = 4;
    let (disk, store) = on_new_disk(clock());
    assert_ne!(disk.bytes()[9] & IN_TWO_PHASES, 0);
    store.tombstone(Kind::Grant, "a", HOUR).await.unwrap();
    assert_ne!(disk.bytes()[9] & IN_TWO_PHASES, 0);
    drop(store);
    assert_ne!(disk.bytes()[9] & IN_TWO_PHASES, 0);
}
