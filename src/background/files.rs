//! Reading the configuration again when its files have changed. They are looked at every second rather than watched: that sees
//! whatever an editor, a renamed file or a swapped link does, on every file system, and costs nothing that could be measured.
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

const LOOK: Duration = Duration::from_secs(1);

/// Looks at files, and calls when they have changed and are left alone again: a certificate and its key are two.
pub struct Watch {
    files: Arc<dyn Fn() -> Vec<PathBuf> + Send + Sync>,
    changed: Arc<dyn Fn() + Send + Sync>,
}

/// What no change leaves as it was.
type Look = (u64, u64, u64, (i64, i64), (i64, i64));
/// `None` where there is no file.
type Looks = Vec<(Option<Look>, PathBuf)>;

impl Watch {
    /// `files` is asked anew after each call of `changed`.
    pub fn new(
        files: impl Fn() -> Vec<PathBuf> + Send + Sync + 'static,
        changed: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { files: Arc::new(files), changed: Arc::new(changed) }
    }
}

#[async_trait]
impl BackgroundService for Watch {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = self.look().await;
        let mut last = known.clone();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = shutdown.changed() => return,
            }
            let now = self.look().await;
            if now != known && now == last {
                let changed = Arc::clone(&self.changed);
                if tokio::task::spawn_blocking(move || changed()).await.is_err() {
                    tracing::error!("reading the configuration again was cut off");
                }
                let again = self.look().await;
                // It may name other files by now. Of those it named before, what has changed meanwhile is a change.
                known = if again.iter().map(path).eq(now.iter().map(path)) { now.clone() } else { again };
            }
            last = now;
        }
    }
}

impl Watch {
    async fn look(&self) -> Looks {
        let files = Arc::clone(&self.files);
        let look = move || files().into_iter().map(|file| (looks(&file), file)).collect();
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }
}

fn path(looked: &(Option<Look>, PathBuf)) -> &PathBuf {
    &looked.1
}

/// Of the file that the path leads to.
fn looks(path: &Path) -> Option<Look> {
    let found = std::fs::metadata(path).ok()?;
    let (written, changed) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
    Some((found.dev(), found.ino(), found.len(), written, changed))
}
