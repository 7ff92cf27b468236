//! One at a time per name, and no memory of names that nobody works on: issuers come from outside, so their number has
//! no end.
use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::Mutex;

/// The names that are worked on now.
#[derive(Default)]
pub struct Turns(DashMap<String, Arc<Mutex<()>>>);

/// Somebody who works on a name or waits for it. Whoever leaves last takes the name along.
struct Place<'a> {
    turns: &'a Turns,
    name: &'a str,
    lock: Option<Arc<Mutex<()>>>,
}

impl Turns {
    /// Does `work` while nobody else works on `name`.
    pub async fn take<T>(&self, name: &str, work: impl Future<Output = T>) -> T {
        let lock = Arc::clone(&self.0.entry(name.to_owned()).or_default());
        // Declared before the turn, so that it is left after it.
        let _place = Place { turns: self, name, lock: Some(Arc::clone(&lock)) };
        let _turn = lock.lock_owned().await;
        work.await
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        drop(self.lock.take());
        // New places are made under the lock of the entry, so this count cannot grow meanwhile.
        self.turns.0.remove_if(self.name, |_, lock| Arc::strong_count(lock) == 1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn one_at_a_time_per_name_and_nothing_is_left() {
        let (turns, working) = (Turns::default(), AtomicUsize::new(0));
        let work = async |name: &str| {
            let alone = async {
                assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                working.fetch_sub(1, Ordering::SeqCst);
                turns.0.len()
            };
            turns.take(name, alone).await
        };
        let lengths = tokio::join!(work("a"), work("a"), work("a"));
        assert_eq!(lengths, (1, 1, 1));
        assert!(turns.0.is_empty());
    }

    #[tokio::test]
    async fn names_do_not_wait_for_each_other() {
        let turns = Turns::default();
        let met = Notify::new();
        tokio::join!(turns.take("a", met.notified()), turns.take("b", async { met.notify_one() }));
        assert!(turns.0.is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nothing_either() {
        let turns = Turns::default();
        let begun = Notify::new();
        let working = turns.take("a", async {
            begun.notify_one();
            std::future::pending::<()>().await;
        });
        let waiting = async {
            begun.notified().await;
            let waiting = turns.take("a", async {});
            tokio::select! {
                biased;
                () = waiting => panic!("not alone"),
                () = tokio::task::yield_now() => {}
            }
            assert_eq!(turns.0.len(), 1, "the one who works is still there");
        };
        tokio::select! {
            () = working => panic!("never ends"),
            () = waiting => {}
        }
        assert!(turns.0.is_empty());
    }
}
