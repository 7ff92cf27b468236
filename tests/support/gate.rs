//! A gate that holds requests until the test lets them pass: a delay that is an event, not a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::eventually;

/// Shut when made. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    permits: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl Gate {
    pub fn shut() -> Self {
        Gate { permits: Arc::new(Semaphore::new(0)), waiting: Arc::default() }
    }

    /// Lets `count` requests pass, now or later.
    pub fn let_pass(&self, count: usize) {
        self.permits.add_permits(count);
    }

    /// Lets everybody pass from now on.
    pub fn open(&self) {
        self.permits.close();
    }

    /// How many requests stand before the gate.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Returns when at least `count` requests stand before the gate.
    #[track_caller]
    pub fn wait_for(&self, count: usize, deadline: Duration) -> impl Future<Output = ()> {
        let gate = self.clone();
        eventually(deadline, move || {
            let enough = gate.waiting() >= count;
            async move { enough }
        })
    }

    /// What the scripted server calls; returns once the gate lets it through.
    pub async fn pass(&self) {
        let _counted = Counted::new(&self.waiting);
        // An error means that the gate was opened for good.
        if let Ok(permit) = self.permits.acquire().await {
            permit.forget();
        }
    }
}

/// Counts while it lives, so that a caller who goes away is no longer counted.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Counted(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits at a gate, if there is one.
pub async fn pass(gate: &Option<Gate>) {
    if let Some(gate) = gate {
        gate.pass().await;
    }
}
