//! What others publish: fetched when first needed, kept for a while, and good for as long as its owner does not answer.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;
use tokio::sync::Mutex;

const FRESH: Duration = Duration::from_secs(600);
/// So long before it is old something is fetched again that somebody has wanted since it came.
const AHEAD: Duration = Duration::from_secs(60);
/// How often a failure, or the wish for something newer, leads to another request.
const AGAIN: Duration = Duration::from_secs(10);
/// How long something is good whose owner does not answer.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Documents of one kind, by name.
pub struct Kept<T>(Cache<String, Arc<Mutex<Entry<T>>>>);

struct Entry<T> {
    document: Option<Arc<T>>,
    fetched: Option<SystemTime>,
    is_wanted: bool,
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
        let new = || Entry { document: None, fetched: None, is_wanted: false, asked: None };
        let entry = self.0.get_or_insert_with(name, || Ok::<_, ()>(Arc::new(Mutex::new(new())))).ok()?;
        let mut entry = entry.lock().await;
        entry.is_wanted = true;
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

    /// Fetches again what is wanted and about to be old. Nobody waits for it meanwhile.
    pub async fn renew(&self, name: &str, now: SystemTime, fetch: impl Future<Output = Option<T>>) {
        let Some(entry) = self.0.get(name) else { return };
        {
            // Whoever has it locked is fetching it.
            let Ok(mut entry) = entry.try_lock() else { return };
            let is_due = entry.fetched.is_some_and(|fetched| now + AHEAD >= fetched + FRESH);
            let is_asked = entry.asked.is_some_and(|asked| now < asked + AGAIN);
            if !entry.is_wanted || !is_due || is_asked {
                return;
            }
            entry.asked = Some(now);
        }
        if let Some(document) = fetch.await {
            let mut entry = entry.lock().await;
            (entry.document, entry.fetched, entry.is_wanted) = (Some(Arc::new(document)), Some(now), false);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::cell::Cell;
    use std::time::UNIX_EPOCH;

    use super::*;

    #[tokio::test]
    async fn what_is_wanted_is_fetched_again_before_it_is_old() {
        let (kept, count) = (Kept::<u32>::new(8), Cell::new(0));
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let fetch = async || {
            count.set(count.get() + 1);
            Some(count.get())
        };
        kept.renew("a", at(0), fetch()).await;
        assert_eq!(count.get(), 0, "nobody has wanted it yet");
        assert_eq!(kept.get("a", false, at(0), fetch()).await.as_deref(), Some(&1));
        kept.renew("a", at(539), fetch()).await;
        assert_eq!(count.get(), 1, "it is young");
        kept.renew("a", at(540), fetch()).await;
        assert_eq!(count.get(), 2);
        assert_eq!(kept.get("a", false, at(1100), fetch()).await.as_deref(), Some(&2), "and nobody waits");
        kept.renew("a", at(1101), async { None }).await;
        kept.renew("a", at(1105), fetch()).await;
        assert_eq!(count.get(), 2, "a failure is not repeated at once");
        kept.renew("a", at(1111), fetch()).await;
        assert_eq!(count.get(), 3);
        kept.renew("a", at(2000), fetch()).await;
        assert_eq!(count.get(), 3, "nobody has wanted it since");
    }
}
