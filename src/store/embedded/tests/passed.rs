//! The store of a process that has handed its file over keeps the same promises, and one that nobody has taken is as before.
use std::os::unix::net::UnixStream;

use tokio::sync::broadcast::error::RecvError;

use super::*;
use crate::store::{Kind, Put};

/// Two processes' stores: the one that had the file, and the one that has it.
fn passed(data_dir: &Path, clock: &Clock) -> (Arc<Embedded>, Arc<Embedded>) {
    let old = Arc::new(Embedded::open(data_dir, clock.clone()).unwrap());
    let away = away(&old);
    let new = Arc::new(Embedded::open_after(data_dir, clock.clone(), old.opened()).unwrap());
    let (here, there) = UnixStream::pair().unwrap();
    serve(Arc::clone(&new), there).unwrap();
    away.follow(here).unwrap();
    (old, new)
}

/// As the process does it: not on a thread that serves.
fn away(store: &Arc<Embedded>) -> Away {
    let store = Arc::clone(store);
    let stepping = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(store.step_back()).unwrap()
    });
    stepping.join().unwrap()
}

fn bed() -> Bed {
    let data_dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (old, new) = passed(data_dir.path(), &clock);
    Bed { store: old, clock, _keep: Box::new((data_dir, new)) }
}

store_suite!(bed);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_see_what_either_does() {
    let data_dir = tempfile::tempdir().unwrap();
    let (old, new) = passed(data_dir.path(), &clock());
    let (mut at_old, mut at_new) = (old.subscribe(), new.subscribe());
    let changed = Ok::<_, RecvError>(Change::Of { kind: Kind::Session, key: "k".into() });
    assert_eq!(old.put(Kind::Session, "k", 0, vec![1], HOUR).await.unwrap(), Put::Stored);
    assert_eq!(new.get(Kind::Session, "k").await.unwrap().unwrap().value, [1]);
    assert_eq!((at_old.recv().await, at_new.recv().await), (changed.clone(), changed.clone()));
    new.remove(Kind::Session, "k").await.unwrap();
    assert_eq!(at_old.recv().await, changed);
    assert_eq!(old.get(Kind::Session, "k").await.unwrap(), None);
    // And once more, to a third.
    let away = away(&new);
    let third = Arc::new(Embedded::open_after(data_dir.path(), clock(), new.opened()).unwrap());
    let (here, there) = UnixStream::pair().unwrap();
    serve(Arc::clone(&third), there).unwrap();
    let waiting = tokio::spawn({
        let old = Arc::clone(&old);
        async move { old.put(Kind::Session, "k", 0, vec![2], HOUR).await }
    });
    away.follow(here).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), Put::Stored);
    assert_eq!(third.get(Kind::Session, "k").await.unwrap().unwrap().value, [2]);
    // A process that has gone is an outage, not a loss.
    drop((new, third));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_takes_is_open_again_and_nothing_was_missed() {
    let data_dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(data_dir.path(), clock()).unwrap());
    let mut changes = store.subscribe();
    for version in 0..3 {
        let away = away(&store);
        assert!(data_dir.path().join("postern.redb.closed").exists(), "as it was closed");
        let waiting = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.put(Kind::Session, "k", version, vec![1], HOUR).await }
        });
        // Somebody else had it for a while.
        drop(Embedded::open(data_dir.path(), clock()).unwrap());
        drop(away);
        assert_eq!(waiting.await.unwrap().unwrap(), Put::Stored);
        assert_eq!(changes.recv().await, Ok(Change::Missed));
        changes.recv().await.unwrap();
        assert!(!data_dir.path().join("postern.redb.closed").exists(), "it is written again");
    }
}
