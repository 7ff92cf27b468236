//! The database file and the one thread that writes it.
//!
//! Changes queue up for the writer, which puts what is waiting into one transaction: one flush to
//! disk serves them all, and no change is answered before it is durable. Then there is a new view of the
//! records; whoever reads has the last one, and waits for no change. What is in memory is read at once, anything else
//! on the runtime's blocking threads. After a failed write the file is opened again, because the database
//! answers nothing more once its disk has failed it, and a full disk gets space again.

mod again;

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use redb::{Builder, Database, DatabaseError, Durability, ReadableDatabase, StorageError};
use tokio::sync::{mpsc, oneshot};

use super::super::StoreError;
use super::closed::Closed;
use super::glance::{self, Pages};
use super::rows::{self, Rows, View, unavailable};
use crate::clock::Clock;
use crate::seal;

/// The database inside the data directory.
pub const FILE_NAME: &str = "postern.redb";

/// Pages held in memory. Records are small and few; the operating system caches the rest.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// Changes that wait for the writer before callers have to.
const QUEUE: usize = 1024;
/// Changes that share one flush.
const BATCH: usize = 128;

/// Why the store cannot be opened. The messages are for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the file open.
    #[error("{path} is in use by another process; the embedded store serves one Postern at a time")]
    InUse { path: PathBuf },
    /// The file is not a store, or its content does not add up.
    #[error("{path} is damaged or no Postern store: {reason}")]
    Damaged { path: PathBuf, reason: String },
    /// The file system refused.
    #[error("{path}: {reason}")]
    Io { path: PathBuf, reason: String },
}

/// A change, run inside a transaction; what it returns is called once the transaction is durable.
type Job = Box<dyn FnOnce(&mut Rows<'_>) -> Answer + Send>;
/// Answers the caller. Dropped instead, it tells the caller that the change failed.
type Answer = Box<dyn FnOnce() + Send>;

/// Opens the database again after a failure.
type Reopen = dyn Fn() -> Result<Database, OpenError> + Send + Sync;

/// The open file. Closes it when dropped, after all queued changes.
pub struct DatabaseFile {
    shared: Arc<Shared>,
    queue: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    /// Where the file is one.
    note: Option<Closed>,
}

struct Shared {
    path: PathBuf,
    clock: Clock,
    reopen: Box<Reopen>,
    /// Empty between a failure and the next successful opening.
    database: RwLock<Option<Database>>,
    /// The records after the last change that is durable. There where the database is.
    view: ArcSwapOption<View>,
    /// Set by a failed write until one succeeds.
    failing: AtomicBool,
    /// For good, or until it is opened once more.
    closed: AtomicBool,
}

impl DatabaseFile {
    /// Opens or creates `postern.redb` in `data_dir`, both readable by their owner only. Blocks.
    pub fn open(data_dir: &Path, clock: Clock) -> Result<DatabaseFile, OpenError> {
        let path = data_dir.join(FILE_NAME);
        let io_error = |error: io::Error| OpenError::Io { path: path.clone(), reason: error.to_string() };
        DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(io_error)?;
        let note = Closed::of(&path);
        let database = match fs::exists(&path).map_err(io_error)? {
            true if note.holds() => trusted(&path).or_else(|_| examined(&path))?,
            true => examined(&path)?,
            false => create(data_dir, &path)?,
        };
        note.remove().map_err(io_error)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(io_error)?;
        let reopen = {
            let path = path.clone();
            move || reopen(&path)
        };
        let mut file = DatabaseFile::start(path, database, reopen, clock)?;
        file.note = Some(note);
        Ok(file)
    }

    /// Serves an open database, wherever it lies. `path` is its name in messages.
    pub fn start(
        path: PathBuf,
        database: Database,
        reopen: impl Fn() -> Result<Database, OpenError> + Send + Sync + 'static,
        clock: Clock,
    ) -> Result<DatabaseFile, OpenError> {
        let io_error = |error: io::Error| OpenError::Io { path: path.clone(), reason: error.to_string() };
        let shared = Arc::new(Shared {
            path: path.clone(),
            clock,
            reopen: Box::new(reopen),
            view: ArcSwapOption::new(Some(seen(&database).map_err(|error| damaged(&path, error))?)),
            database: RwLock::new(Some(database)),
            failing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let (queue, jobs) = mpsc::channel(QUEUE);
        let writer = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("store".to_owned())
                .spawn(move || shared.write_all(jobs))
                .map_err(io_error)?
        };
        Ok(DatabaseFile { shared, queue: Some(queue), writer: Some(writer), note: None })
    }

    /// Runs `change` in a transaction and returns once that is durable. `then` runs right before, and
    /// also when the caller has gone away meanwhile: a change, once queued, is made and told.
    pub async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Rows<'_>) -> Result<T, StoreError> + Send + 'static,
        then: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |rows| {
            let result = change(rows);
            Box::new(move || {
                if let Ok(value) = &result {
                    then(value);
                }
                // The caller may have gone away.
                let _ = answer.send(result);
            })
        });
        let queue = self.queue.as_ref().ok_or_else(|| unavailable("closed"))?;
        queue.send(job).await.map_err(|_| unavailable("the writer has stopped"))?;
        answered.await.map_err(|_| unavailable("writing to the database file failed"))?
    }

    /// Runs `look` on the state after all answered changes.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View, SystemTime) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let look = move || look(&*shared.view()?, shared.clock.now());
        let failed = |_| Err(unavailable("reading the database file failed"));
        tokio::task::spawn_blocking(look).await.unwrap_or_else(failed)
    }

    /// As [`DatabaseFile::read`], at once. `None` where it takes more than a look into memory, or fails.
    pub fn glance<T>(&self, look: impl FnOnce(&View, SystemTime) -> Result<T, StoreError>) -> Option<T> {
        let view = self.shared.view.load();
        let view = view.as_ref()?;
        glance::glance(|| look(view, self.shared.clock.now()))?.ok()
    }

    /// Closes the file for good, after the transaction under way, and notes that it is whole.
    pub fn close(&self) {
        let is_whole = !self.shared.closed.swap(true, Ordering::Relaxed) && self.shared.close();
        if let Some(note) = self.note.as_ref().filter(|_| is_whole)
            && let Err(error) = note.write()
        {
            tracing::warn!(%error, "the next start will check the whole store");
        }
    }

    /// Whether changes can be made; after a failure, by making one.
    pub async fn ready(&self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let probe = move |rows: &mut Rows<'_>| {
            if shared.failing.load(Ordering::Relaxed) { rows.probe() } else { Ok(()) }
        };
        self.write(probe, |()| {}).await?;
        self.read(|_, _| Ok(())).await
    }
}

impl Drop for DatabaseFile {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing more to say.
            let _ = writer.join();
        }
        self.close();
    }
}

impl Shared {
    fn write_all(&self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut batch = VecDeque::from([first]);
            while batch.len() < BATCH
                && let Ok(job) = jobs.try_recv()
            {
                batch.push_back(job);
            }
            let mut answers = Vec::with_capacity(batch.len());
            // The database may panic on a file that was changed beneath it.
            let failure = match catch_unwind(AssertUnwindSafe(|| self.write_batch(&mut batch, &mut answers)))
            {
                Ok(Ok(())) => {
                    answers.into_iter().for_each(|answer| answer());
                    continue;
                }
                Ok(Err(failure)) => failure,
                Err(_) => "the database gave up".to_owned(),
            };
            if self.closed.load(Ordering::Relaxed) {
                return;
            }
            tracing::error!(path = %self.path.display(), reason = %failure, "writing to the store failed");
            self.failing.store(true, Ordering::Relaxed);
            self.close();
            if let Err(reason) = self.open_again() {
                tracing::error!(path = %self.path.display(), reason, "store cannot be opened again yet");
            }
            // Jobs and answers that are dropped here tell their callers that they failed. By now reads
            // work again, if they can.
        }
    }

    fn write_batch(&self, batch: &mut VecDeque<Job>, answers: &mut Vec<Answer>) -> Result<(), String> {
        self.open_again()?;
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = guard.as_ref().ok_or("closed")?;
        let mut transaction = database.begin_write().map_err(|error| error.to_string())?;
        transaction.set_durability(Durability::Immediate).map_err(|error| error.to_string())?;
        // Values derive from what strangers send, and the page checksum is no cryptographic one: the
        // second phase keeps a torn commit from being taken for a whole one.
        transaction.set_two_phase_commit(true);
        let changed = {
            let now = self.clock.now();
            let mut rows = Rows::open(&transaction, now).map_err(|error| error.to_string())?;
            while let Some(job) = batch.pop_front() {
                answers.push(job(&mut rows));
                if let Some(failure) = rows.failure() {
                    return Err(failure.to_string());
                }
            }
            rows.changed()
        };
        if changed {
            transaction.commit().map_err(|error| error.to_string())?;
            self.view.store(Some(seen(database)?));
            self.failing.store(false, Ordering::Relaxed);
            Ok(())
        } else {
            transaction.abort().map_err(|error| error.to_string())
        }
    }

    fn open_again(&self) -> Result<(), String> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Relaxed) {
            return Err("closed".to_owned());
        }
        if database.is_none() {
            let opened = (self.reopen)().map_err(|error| error.to_string())?;
            self.view.store(Some(seen(&opened)?));
            *database = Some(opened);
            tracing::info!(path = %self.path.display(), "store opened again");
        }
        Ok(())
    }

    /// Says whether the file is whole on disk.
    fn close(&self) -> bool {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        self.view.store(None);
        database.take().is_some_and(|database| database.close().is_ok())
    }

    fn view(&self) -> Result<Arc<View>, StoreError> {
        if self.view.load().is_none() {
            self.open_again().map_err(unavailable)?;
        }
        self.view.load_full().ok_or_else(|| unavailable("the database file is closed"))
    }
}

/// The records as they are now.
fn seen(database: &Database) -> Result<Arc<View>, String> {
    let transaction = database.begin_read().map_err(|error| error.to_string())?;
    View::open(transaction).map(Arc::new).map_err(|error| error.to_string())
}

fn create(data_dir: &Path, path: &Path) -> Result<Database, OpenError> {
    let io_error = |error: io::Error| OpenError::Io { path: path.to_owned(), reason: error.to_string() };
    let unique = seal::name().map_err(|error| io_error(io::Error::other(error)))?;
    // The database cannot open a file whose first initialisation was cut short, so it is made beside
    // and linked into place whole. The lock belongs to the file, under whichever name.
    let beside = data_dir.join(format!("{FILE_NAME}.{unique}"));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(&beside).map_err(io_error)?;
    let made = Pages::of(file)
        .and_then(|pages| builder().create_with_backend(pages))
        .map_err(|error| named(path, error))
        .and_then(|database| {
            begin(path, &database)?;
            match fs::hard_link(&beside, path) {
                Ok(()) => File::open(data_dir).and_then(|dir| dir.sync_all()).map(|()| Some(database)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
                Err(error) => Err(error),
            }
            .map_err(io_error)
        });
    let removed = fs::remove_file(&beside);
    match made? {
        Some(database) => removed.map(|()| database).map_err(io_error),
        None => reopen(path),
    }
}

/// Makes the tables of a new database.
pub fn begin(path: &Path, database: &Database) -> Result<(), OpenError> {
    let mut transaction = database.begin_write().map_err(|error| damaged(path, error))?;
    // As every later one: what the first change finds is judged by its checksum alone otherwise.
    transaction.set_two_phase_commit(true);
    rows::create_tables(&transaction).map_err(|error| damaged(path, error))?;
    transaction.commit().map_err(|error| damaged(path, error))
}

/// Opens what somebody else may have written, an earlier version perhaps.
fn examined(path: &Path) -> Result<Database, OpenError> {
    let database = reopen(path)?;
    let mut transaction = database.begin_write().map_err(|error| damaged(path, error))?;
    transaction.set_two_phase_commit(true);
    rows::list_tombstones(&transaction).map_err(|error| damaged(path, error))?;
    transaction.commit().map_err(|error| damaged(path, error))?;
    Ok(database)
}

fn reopen(path: &Path) -> Result<Database, OpenError> {
    opened(path, |builder| builder.create_with_backend(Pages::at(path)?))
}

/// Opens it without a look at every page.
fn trusted(path: &Path) -> Result<Database, OpenError> {
    opened(path, |mut builder| {
        builder.set_check_integrity_on_open(false).create_with_backend(Pages::at(path)?)
    })
}

/// Opens a database as this store sets it up. `path` is its name in messages.
pub fn opened(
    path: &Path,
    open: impl FnOnce(Builder) -> Result<Database, DatabaseError>,
) -> Result<Database, OpenError> {
    // The database may panic on a file that was changed beneath it.
    let opened = catch_unwind(AssertUnwindSafe(|| open(builder())));
    opened.map_err(|_| damaged(path, "its structure is broken"))?.map_err(|error| named(path, error))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn named(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
        // Content that does not add up, or a file that ends too early.
        DatabaseError::Storage(StorageError::Io(error))
            if !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            OpenError::Io { path: path.to_owned(), reason: error.to_string() }
        }
        error => damaged(path, error),
    }
}

fn damaged(path: &Path, reason: impl ToString) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), reason: reason.to_string() }
}
