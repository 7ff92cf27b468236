//! Work that several callers want at once is done once in this process: the first begins it, the others wait for what comes
//! of it. It runs in a task of its own, so that a caller who goes away takes nothing along.
use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::watch;

use crate::outbound;
use crate::telemetry::InFlight;

/// What is under way, by key. Clones share it.
pub struct Flights<T>(Arc<DashMap<String, watch::Receiver<Option<T>>>>);

impl<T> Clone for Flights<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// What comes of the work that is under way for `key`, or else of `begin`. `in_flight` counts it, so that the process does
    /// not end meanwhile. `None`: it ended without a word, which only a panic does.
    pub async fn join<W>(&self, key: &str, in_flight: &InFlight, begin: impl FnOnce() -> W) -> Option<T>
    where
        W: Future<Output = T> + Send + 'static,
    {
        let mut outcome = self.board(key, in_flight, begin);
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        }
    }

    fn board<W>(
        &self,
        key: &str,
        in_flight: &InFlight,
        begin: impl FnOnce() -> W,
    ) -> watch::Receiver<Option<T>>
    where
        W: Future<Output = T> + Send + 'static,
    {
        match self.0.entry(key.to_owned()) {
            dashmap::Entry::Occupied(flight) => flight.get().clone(),
            dashmap::Entry::Vacant(vacant) => {
                let (sender, receiver) = watch::channel(None);
                vacant.insert(receiver.clone());
                let landing = Landing { flights: self.clone(), key: key.to_owned() };
                let (work, under_way) = (outbound::carried(begin()), in_flight.start());
                tokio::spawn(async move {
                    let _under_way = under_way;
                    let outcome = work.await;
                    // Before it is told: whoever comes for something newer begins anew.
                    drop(landing);
                    let _ = sender.send(Some(outcome));
                });
                receiver
            }
        }
    }
}

/// Takes the work off the board however it ends.
struct Landing<T> {
    flights: Flights<T>,
    key: String,
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        self.flights.0.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn it_is_done_once_and_goes_on_without_whoever_began_it() {
        let (flights, in_flight) = (Flights::default(), InFlight::default());
        let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let join = |flights: Flights<usize>| {
            let (begun, go, in_flight) = (Arc::clone(&begun), Arc::clone(&go), in_flight.clone());
            async move {
                let work = || async move {
                    let number = begun.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    number
                };
                flights.join("key", &in_flight, work).await
            }
        };
        let first = tokio::spawn(join(flights.clone()));
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(in_flight.count(), 1, "it still counts");
        let others = [tokio::spawn(join(flights.clone())), tokio::spawn(join(flights.clone()))];
        tokio::task::yield_now().await;
        go.notify_one();
        for other in others {
            assert_eq!(other.await.unwrap(), Some(0));
        }
        go.notify_one();
        assert_eq!(join(flights.clone()).await, Some(1), "the next is another one");
        assert!(flights.0.is_empty());
    }

    #[tokio::test]
    async fn a_panic_leaves_nothing_under_way() {
        let (flights, in_flight) = (Flights::<()>::default(), InFlight::default());
        assert_eq!(flights.join("key", &in_flight, || async { panic!("as a test wants it") }).await, None);
        assert!(flights.0.is_empty() && in_flight.count() == 0);
    }
}
