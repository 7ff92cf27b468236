//! What this instance has written of late, in a file of its own.
//!
//! New tokens are worth more than anything: the old refresh token is spent, and a crash between the authorization
//! server's answer and the store's would lose the connection. So they are flushed to the local disk first. And a shared
//! store may forget what it has acknowledged, when a replica takes over that lags: then every instance says once more
//! what it has committed and ended in the last ten minutes. Fences and generations keep that from undoing what came
//! after.
//!
//! One JSON object per line; a line that a crash has cut short is left out. Tokens are sealed already. The embedded
//! store needs no journal: its commit is a flush to the same disk.
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::lease::Claim;
use super::row::Tombstone;
use crate::clock::Clock;

/// The journal inside the data directory.
const FILE_NAME: &str = "journal.jsonl";
/// Older entries have long been replicated.
const KEPT: Duration = Duration::from_secs(600);
/// Entries after which the file is written anew without the old ones; more of them where so many are not old.
const REWRITE: usize = 2_000;

/// Tokens on their way into the store.
#[derive(Clone, Serialize, Deserialize)]
pub struct Prepared {
    /// Of the connection.
    pub key: String,
    /// By what right.
    pub claim: Claim,
    /// The tokens.
    #[serde(with = "super::sealed_text")]
    pub sealed: Vec<u8>,
    /// How long the connection is kept.
    pub ttl: Duration,
}

/// One thing that was written.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    Commit(Prepared),
    Tombstone { kind: String, key: String, tombstone: Tombstone, ttl: Duration },
}

#[derive(Clone, Serialize, Deserialize)]
struct Line {
    at: SystemTime,
    entry: Entry,
}

/// The journal; without a file it keeps nothing.
#[derive(Clone, Default)]
pub struct Journal(Option<Arc<Inner>>);

struct Inner {
    path: PathBuf,
    clock: Clock,
    written: Mutex<Written>,
}

struct Written {
    file: File,
    lines: Vec<Line>,
    in_file: usize,
    rewrite_at: usize,
}

impl Journal {
    /// Opens or creates the journal in `data_dir`, readable by its owner only.
    pub fn open(data_dir: &Path, clock: Clock) -> io::Result<Self> {
        let path = data_dir.join(FILE_NAME);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            text => text.map_err(named)?,
        };
        let lines = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let mut lines: Vec<Line> = lines.collect();
        forget(&mut lines, clock.now());
        let file = rewrite(&path, &lines).map_err(named)?;
        let (in_file, rewrite_at) = (lines.len(), rewrite_at(lines.len()));
        let written = Mutex::new(Written { file, lines, in_file, rewrite_at });
        Ok(Self(Some(Arc::new(Inner { path, clock, written }))))
    }

    /// Returns once the entry is on disk. A disk that fails is reported and stops nothing: the store is tried anyway.
    pub async fn note(&self, entry: Entry) {
        let Some(inner) = self.0.clone() else {
            return;
        };
        let noted = tokio::task::spawn_blocking(move || inner.note(entry)).await;
        if let Ok(Err(error)) = noted {
            tracing::error!(target: "postern::refresh", %error, "the journal cannot be written");
        }
    }

    /// What is not too old, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        let Some(inner) = &self.0 else {
            return Vec::new();
        };
        let mut written = inner.written.lock().unwrap_or_else(PoisonError::into_inner);
        forget(&mut written.lines, inner.clock.now());
        written.lines.iter().map(|line| line.entry.clone()).collect()
    }

    /// The newest generation of this authorization that this instance has got tokens for.
    pub fn newest(&self, key: &str, incarnation: &str) -> Option<u64> {
        let inner = self.0.as_ref()?;
        let written = inner.written.lock().unwrap_or_else(PoisonError::into_inner);
        let commits = written.lines.iter().filter_map(|line| match &line.entry {
            Entry::Commit(prepared) if prepared.key == key => Some(&prepared.claim),
            _ => None,
        });
        let ours = commits.filter(|claim| claim.incarnation == incarnation);
        ours.map(|claim| claim.generation.saturating_add(1)).max()
    }
}

impl Inner {
    fn note(&self, entry: Entry) -> io::Result<()> {
        let line = Line { at: self.clock.now(), entry };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.lines.push(line);
        if written.in_file >= written.rewrite_at {
            forget(&mut written.lines, self.clock.now());
            written.file = rewrite(&self.path, &written.lines)?;
            written.in_file = written.lines.len();
            written.rewrite_at = rewrite_at(written.in_file);
            return Ok(());
        }
        written.in_file += 1;
        // A successor has written it anew; while this process ends what it has begun, both add to that.
        let ours = written.file.metadata()?.ino();
        if std::fs::metadata(&self.path).is_ok_and(|there| there.ino() != ours) {
            written.file = OpenOptions::new().append(true).open(&self.path)?;
        }
        written.file.write_all(&text)?;
        written.file.sync_data()
    }
}

/// So that writing anew costs each entry no more than its own writing did, however many are kept.
fn rewrite_at(kept: usize) -> usize {
    REWRITE.max(2 * kept)
}

fn forget(lines: &mut Vec<Line>, now: SystemTime) {
    lines.retain(|line| line.at + KEPT > now);
}

/// Writes the file anew, whole or not at all; returns it, open for more.
fn rewrite(path: &Path, lines: &[Line]) -> io::Result<File> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    for line in lines {
        serde_json::to_writer(&mut file, line)?;
        file.write_all(b"\n")?;
    }
    file.sync_all()?;
    let file = OpenOptions::new().append(true).open(&beside)?;
    std::fs::rename(&beside, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::os::unix::fs::PermissionsExt;
    use std::time::UNIX_EPOCH;

    use super::*;

    fn clock() -> Clock {
        Clock::manual(UNIX_EPOCH + Duration::from_secs(1_790_000_000))
    }

    fn commit(key: &str) -> Entry {
        let claim = Claim { incarnation: "inc".into(), generation: 3, attempt_id: "a".into(), fence: 7 };
        Entry::Commit(Prepared { key: key.into(), claim, sealed: vec![0, 255, 10], ttl: KEPT })
    }

    fn keys(journal: &Journal) -> Vec<String> {
        let key = |entry: Entry| match entry {
            Entry::Commit(prepared) => prepared.key,
            Entry::Tombstone { key, .. } => key,
        };
        journal.entries().into_iter().map(key).collect()
    }

    #[tokio::test]
    async fn entries_survive_a_crash_that_cuts_the_last_line() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), clock()).unwrap();
        journal.note(commit("a")).await;
        let tombstone = Tombstone { fence: 2, incarnation: None };
        journal.note(Entry::Tombstone { kind: "grant".into(), key: "g".into(), tombstone, ttl: KEPT }).await;
        drop(journal);
        let path = directory.path().join(FILE_NAME);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(
            &serde_json::to_vec(&Line { at: UNIX_EPOCH, entry: commit("b") }).unwrap()[..40],
        );
        std::fs::write(&path, text).unwrap();
        let journal = Journal::open(directory.path(), clock()).unwrap();
        assert_eq!(keys(&journal), ["a", "g"]);
        let Entry::Commit(prepared) = &journal.entries()[0] else { panic!() };
        assert_eq!((prepared.claim.generation, prepared.claim.fence), (3, 7));
        assert_eq!((prepared.sealed.as_slice(), prepared.ttl), (&[0, 255, 10][..], KEPT));
        assert_eq!(journal.newest("a", "inc"), Some(4));
        assert_eq!((journal.newest("a", "other"), journal.newest("g", "inc")), (None, None));
        journal.note(commit("c")).await;
        drop(journal);
        assert_eq!(keys(&Journal::open(directory.path(), clock()).unwrap()), ["a", "g", "c"]);
    }

    #[tokio::test]
    async fn what_is_old_is_forgotten_and_the_file_stays_small() {
        let directory = tempfile::tempdir().unwrap();
        let clock = clock();
        let journal = Journal::open(directory.path(), clock.clone()).unwrap();
        for number in 0..REWRITE {
            journal.note(commit(&number.to_string())).await;
        }
        let size = || std::fs::metadata(directory.path().join(FILE_NAME)).unwrap().len();
        let full = size();
        clock.advance(KEPT);
        assert!(journal.entries().is_empty());
        journal.note(commit("new")).await;
        assert!(size() < full / 100);
        assert_eq!(keys(&journal), ["new"]);
        drop(journal);
        assert_eq!(keys(&Journal::open(directory.path(), clock).unwrap()), ["new"]);
    }

    #[tokio::test]
    async fn a_file_full_of_what_is_not_old_is_seldom_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), clock()).unwrap();
        let file = || std::fs::metadata(directory.path().join(FILE_NAME)).unwrap().ino();
        let (mut before, mut rewritten) = (file(), 0);
        for number in 0..2 * REWRITE {
            journal.note(commit(&number.to_string())).await;
            rewritten += usize::from(file() != before);
            before = file();
        }
        assert_eq!(rewritten, 1);
        assert_eq!(journal.entries().len(), 2 * REWRITE);
    }

    #[tokio::test]
    async fn without_a_file_nothing_is_kept() {
        let journal = Journal::default();
        journal.note(commit("a")).await;
        assert!(journal.entries().is_empty());
    }

    #[tokio::test]
    async fn a_process_and_its_successor_add_to_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let old = Journal::open(directory.path(), clock()).unwrap();
        old.note(commit("before")).await;
        let new = Journal::open(directory.path(), clock()).unwrap();
        for number in 0..3 {
            old.note(commit(&format!("old-{number}"))).await;
            new.note(commit(&format!("new-{number}"))).await;
        }
        let all = Journal::open(directory.path(), clock()).unwrap();
        assert_eq!(keys(&all), ["before", "old-0", "new-0", "old-1", "new-1", "old-2", "new-2"]);
    }
}
