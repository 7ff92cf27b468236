//! `kill -9` (F23): a process that dies at any moment has lost nothing that it had answered.
//!
//! One process lives a story and says after each step that it was answered; this one kills it, looks at a copy of what
//! it left, and has another go on with the original. `POSTERN_SOAK=1` kills two hundred times.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::model::{Content, living, seen};
use super::story::{Dice, Story};
use super::{Embedded, FILE_NAME, alone, soak};
use crate::store::suite::clock;

const SEED: u64 = 7;
/// Where the other process lives its story, and from which step on.
const DATA_DIR: &str = "POSTERN_TEST_LIFE_IN";
const FROM: &str = "POSTERN_TEST_LIFE_FROM";

/// Run by the test below in a process of its own.
#[tokio::test]
async fn lives_until_killed() {
    let Some(data_dir) = std::env::var_os(DATA_DIR) else {
        return;
    };
    let from: usize = std::env::var(FROM).unwrap().parse().unwrap();
    let mut story = Story::new(SEED);
    for _ in 0..from {
        story.next().await;
    }
    let clock = clock();
    let store = Embedded::open(Path::new(&data_dir), clock.clone()).unwrap();
    clock.advance(story.passed());
    for number in from + 1.. {
        let step = story.next().await;
        assert_eq!(step.op.run(&store, &clock).await.unwrap(), step.answer, "{:?}", step.op);
        println!("\nanswered {number}");
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing() {
    let rounds = if soak() { 200 } else { 10 };
    let mut dice = Dice::new(SEED);
    let mut story = Story::new(SEED);
    let mut contents = vec![Content::new()];
    let (mut data_dir, mut from, mut steps) = (tempfile::tempdir().unwrap(), 0, 0);
    for round in 0..rounds {
        if dice.below(8) == 0 {
            (data_dir, from) = (tempfile::tempdir().unwrap(), 0);
        }
        let answered = answered_until_killed(data_dir.path(), from, &mut dice);
        while contents.len() < answered + 2 {
            contents.push(story.next().await.after);
        }
        let copy = tempfile::tempdir().unwrap();
        if !data_dir.path().join(FILE_NAME).exists() {
            assert_eq!(answered, 0, "round {round}");
            continue;
        }
        fs::copy(data_dir.path().join(FILE_NAME), copy.path().join(FILE_NAME)).unwrap();
        let clock = clock();
        let store = Embedded::open(copy.path(), clock.clone()).unwrap();
        let rows = seen(&store).await.unwrap();
        // The last step may have been made and not been told.
        let is_after = |steps: &usize| rows == living(&contents[*steps], clock.now());
        let Some(after) = (answered..answered + 2).find(is_after) else {
            panic!("round {round}: the store is not as after {answered} steps or one more");
        };
        steps += after - from;
        from = after;
    }
    println!("killed {rounds} times in {steps} steps");
    assert!(steps > rounds);
}

/// Lets a process live from this step on and kills it at some moment. How many steps it has said were answered.
fn answered_until_killed(data_dir: &Path, from: usize, dice: &mut Dice) -> usize {
    let mut program = Command::new(std::env::current_exe().unwrap());
    alone(&mut program, "killed::lives_until_killed", DATA_DIR, data_dir);
    let mut child = program.env(FROM, from.to_string()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let number = |line: String| line.strip_prefix("answered ").map(|number| number.parse().unwrap());
    let mut answered = from;
    // Either while it starts, opens, and perhaps repairs, or some steps later.
    if dice.below(4) == 0 {
        std::thread::sleep(Duration::from_millis(dice.below(60) as u64));
    } else {
        let some = dice.below(40);
        answered = lines.by_ref().filter_map(number).nth(some).unwrap_or(from);
        std::thread::sleep(Duration::from_micros(dice.below(3000) as u64));
    }
    kill(&mut child);
    // What it said before it died and was still in the pipe.
    lines.filter_map(number).last().unwrap_or(answered)
}

/// Anything but this death is a failure of its own.
fn kill(child: &mut Child) {
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}
