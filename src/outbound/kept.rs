//! What others publish: fetched when first needed, kept for a while, and good for as long as its owner does not answer.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;
use tokio::sync::Mutex;

const FRESH: Duration = Duration::from_secs(600);
/// How often a failure, or the wish for something newer, leads to another request.
const AGAIN: Duration = Duration::from_secs(10);
/// How long something is good whose owner does not answer.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Documents of one kind, by name.
pub struct Kept<T>(Cache<String, Arc<Mutex<Entry<T>>>>);

struct Entry<T> {
    document: Option<Arc<T>>,
    fetched: Option<SystemTime>,
    asked: Option<SystemTime>,
}

impl<T> Kept<T> {
    /// `most`: so many are kept.
    pub fn new(most: usize) -> Self {
        Self(Cache::new(most))
    }

    /// The document. `newer`: the one that is here is not enough; then `None` also says that nobody knows whether there is
    /// another one. `fetch` is asked once, however many wait for it.
    pub async fn get(
        &self,
        name: &str,
        newer: bool,
        now: SystemTime,
        fetch: impl Future<Output = Option<T>>,
    ) -> Option<Arc<T>> {
        let new = || Entry { document: None, fetched: None, asked: None };
        let entry = self.0.get_or_insert_with(name, || Ok::<_, ()>(Arc::new(Mutex::new(new())))).ok()?;
        let mut entry = entry.lock().await;
        let younger = |time: Option<SystemTime>, than: Duration| time.is_some_and(|time| now < time + than);
        let good = entry.document.is_some() && younger(entry.fetched, FRESH) && !newer;
        if !good && !younger(entry.asked, AGAIN) {
            entry.asked = Some(now);
            match fetch.await {
                Some(document) => (entry.document, entry.fetched) = (Some(Arc::new(document)), Some(now)),
                None if newer => return None,
                None => {}
            }
        }
        entry.document.clone().filter(|_| younger(entry.fetched, STALE))
    }
}
