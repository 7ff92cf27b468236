//! A disk that is full or fails (F21): writes fail cleanly, reads go on, nothing is lost, and no refresh token leaves
//! whose leaving could not be noted; with space the store serves again.
//!
//! A life is lived on disks that fail at any one of its calls. The half-written and unflushed rest of a failed write is
//! no better than after a power cut, and a flush that failed once is not made up for later: so the power fails in these
//! lives, too. Once it is a real file that may not grow.

use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::disk::{Call, Verdict, What};
use super::life::Life;
use super::story::Dice;
use super::{Embedded, HOUR, alone, on_new_disk, soak};
use crate::store::suite::clock;
use crate::store::{Acquired, Kind, Put, Store, StoreError};

const SEED: u64 = 40;
/// Where the other process fills its disk.
const DATA_DIR: &str = "POSTERN_TEST_FULL_DISK_IN";

/// Lives on disks that are judged with the number of one of their calls, each with the power failing some times.
async fn lived_with(judge: fn(Call, usize) -> Verdict) {
    let length = 30;
    let calls = Life::lived(SEED, length, |_| Verdict::Do).await.calls;
    let (every, failures) = if soak() { (1, 20) } else { (9, 4) };
    let (mut lives, mut failed, mut dice) = (0, 0, Dice::new(SEED));
    for number in (0..calls).step_by(every) {
        let life = Life::lived(SEED, length, move |call| judge(call, number)).await;
        failed += usize::from(life.failed > 0);
        for failure in dice.some_of(life.failures(1), failures) {
            let examined = life.examine(failure, 0, &mut dice).await;
            assert_eq!(examined, Ok(()), "the disk failed at call {number} of {calls}");
        }
        lives += 1;
    }
    println!("{failed} of {lives} lives met the failure, with {failures} power failures each");
    assert!(failed > lives / 2);
}

#[tokio::test]
async fn a_disk_that_is_full_from_any_call_on_fails_cleanly() {
    lived_with(|call, number| match call.what {
        What::Write { takes_room: true } if call.number >= number => Verdict::Fail(ErrorKind::StorageFull),
        _ => Verdict::Do,
    })
    .await;
}

#[tokio::test]
async fn a_disk_that_fails_at_any_call_fails_cleanly() {
    lived_with(|call, number| match call.number == number {
        true => Verdict::Fail(ErrorKind::Other),
        false => Verdict::Do,
    })
    .await;
}

#[tokio::test]
async fn nothing_is_redeemed_that_could_not_be_noted() {
    let lease = Duration::from_secs(12);
    let (disk, store) = on_new_disk(clock());
    store.connect("u", "incarnation", vec![1], HOUR).await.unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    disk.judged_by(move |call| match call.what {
        What::Write { .. } | What::SetLen if is_full.load(Ordering::Relaxed) => {
            Verdict::Fail(ErrorKind::StorageFull)
        }
        _ => Verdict::Do,
    });
    for _ in 0..3 {
        let acquired = store.acquire("u", "one", 1, lease).await;
        assert!(matches!(acquired, Err(StoreError::Unavailable(_))), "{acquired:?}");
        assert!(store.ready().await.is_err());
    }
    full.store(false, Ordering::Relaxed);
    let Acquired::Owner { connection, takeover: None } = store.acquire("u", "one", 1, lease).await.unwrap()
    else {
        panic!("an attempt was left behind");
    };
    full.store(true, Ordering::Relaxed);
    let sent = store.sent("u", "one", connection.fence).await;
    assert!(matches!(sent, Err(StoreError::Unavailable(_))), "{sent:?}");
    full.store(false, Ordering::Relaxed);
    assert!(store.sent("u", "one", connection.fence).await.unwrap());
}

/// Run by the test below in a process of its own, which may not make its file larger than so much.
#[tokio::test]
async fn writes_until_the_disk_is_full() {
    let Some(data_dir) = std::env::var_os(DATA_DIR) else {
        return;
    };
    let store = Embedded::open(Path::new(&data_dir), clock()).unwrap();
    let put =
        async |number: u64| store.put(Kind::Flow, &format!("row{number}"), 0, vec![0; 50_000], HOUR).await;
    store.connect("u", "incarnation", vec![1], HOUR).await.unwrap();
    let mut number = 0;
    while let Ok(put) = put(number).await {
        assert_eq!(put, Put::Stored);
        number += 1;
    }
    assert!(number > 0);
    assert!(matches!(put(number).await, Err(StoreError::Unavailable(_))));
    // What is there can still be read.
    let all_there = async || {
        assert!(store.connection("u").await.unwrap().is_some());
        for number in 0..number {
            assert!(store.get(Kind::Flow, &format!("row{number}")).await.unwrap().is_some());
        }
    };
    all_there().await;
    println!("\nfull");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    store.ready().await.unwrap();
    all_there().await;
    assert_eq!(store.put(Kind::Flow, "afterwards", 0, vec![0; 500_000], HOUR).await.unwrap(), Put::Stored);
    println!("\nrecovered");
}

#[test]
fn a_full_disk_fails_cleanly_and_recovers() {
    let data_dir = tempfile::tempdir().unwrap();
    // A limit on the size of files stands in for the disk; the signal it sends is ignored.
    let mut program = Command::new("sh");
    program.args(["-c", "trap '' XFSZ; ulimit -S -f 8192; exec \"$0\" \"$@\""]);
    program.arg(std::env::current_exe().unwrap());
    alone(&mut program, "full::writes_until_the_disk_is_full", DATA_DIR, data_dir.path());
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line == "full"));
    let raised = Command::new("prlimit")
        .args(["--fsize=unlimited:unlimited", "--pid", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(raised.success());
    drop(child.stdin.take());
    assert!(lines.any(|line| line == "recovered"));
    assert!(child.wait().unwrap().success());
}
