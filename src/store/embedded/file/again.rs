//! Opening a file that was closed for another process, which has not taken it.
use std::sync::atomic::Ordering;

use super::super::closed::Closed;
use super::DatabaseFile;

impl DatabaseFile {
    /// Waits for nobody: what cannot be opened yet is tried with the next change.
    pub fn open_once_more(&self) {
        self.shared.closed.store(false, Ordering::Relaxed);
        let removed = self.note.as_ref().map_or(Ok(()), Closed::remove).map_err(|error| error.to_string());
        if let Err(reason) = removed.and_then(|()| self.shared.open_again()) {
            tracing::error!(path = %self.shared.path.display(), reason, "store cannot be opened again yet");
        }
    }
}
