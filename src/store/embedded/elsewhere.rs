//! The store of a process that has handed its file over to its successor, and still ends what it had begun: it asks the
//! successor, over the socket that both have between them.
//!
//! One JSON object a line. A change is decided here, as everywhere, and carried out there if the row is still what the
//! decision was made on.
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::sync::{broadcast, oneshot};

use super::super::backend::Backend;
use super::super::change::{Decided, Decision, Found, Write};
use super::super::row::Row;
use super::super::{Change, Kind, StoreError};

/// How often a change is decided anew because somebody else was faster.
const TRIES: usize = 100;

#[derive(Serialize, Deserialize)]
struct Asked {
    id: u64,
    ask: Ask,
}

#[derive(Serialize, Deserialize)]
enum Ask {
    Load { kind: String, key: String },
    Replace { kind: String, key: String, old: Seen, new: Seen, tell: bool },
    List { kind: String },
    Tombstones { kind: String },
    Check,
    Expire,
}

#[derive(Serialize, Deserialize)]
enum Said {
    Changed { kind: String, key: String },
    Missed,
    Answered { id: u64, answer: Result<Answer, Failure> },
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Row(Seen),
    Replaced(bool),
    Rows(Vec<(String, Seen)>),
    Keys(Vec<String>),
    Count(usize),
    Fine,
}

/// A row as it was found.
#[derive(Serialize, Deserialize)]
enum Seen {
    Absent,
    There(String),
    Damaged,
    Newer,
}

#[derive(Serialize, Deserialize)]
enum Failure {
    Unavailable(String),
    Corrupt,
    Newer,
    TooLarge,
}

/// The store, at the successor.
pub struct Elsewhere {
    writing: Mutex<UnixStream>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
}

/// `None` once the successor has gone.
type Waiting = Mutex<Option<HashMap<u64, oneshot::Sender<Result<Answer, Failure>>>>>;

impl Elsewhere {
    /// `told` hears of the changes there.
    pub fn at(stream: UnixStream, told: broadcast::Sender<Change>) -> io::Result<Self> {
        let waiting: Arc<Waiting> = Arc::new(Mutex::new(Some(HashMap::new())));
        let (reading, asked) = (stream.try_clone()?, Arc::clone(&waiting));
        std::thread::Builder::new().name("store-elsewhere".to_owned()).spawn(move || {
            hear(reading, &asked, &told);
            // Whoever waits is told by the end of their channel.
            lock(&asked).take();
            let _ = told.send(Change::Missed);
        })?;
        Ok(Self { writing: Mutex::new(stream), waiting, next: AtomicU64::new(0) })
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, StoreError> {
        let gone = || StoreError::Unavailable("the process that has the store now has gone".to_owned());
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).as_mut().ok_or_else(gone)?.insert(id, answer);
        let mut line = serde_json::to_vec(&Asked { id, ask }).map_err(|_| StoreError::Corrupt)?;
        line.push(b'\n');
        lock(&self.writing).write_all(&line).map_err(|_| gone())?;
        Ok(answered.await.map_err(|_| gone())??)
    }

    pub async fn load(&self, kind: Kind, key: &str) -> Found {
        match self.ask(Ask::Load { kind: kind.name().to_owned(), key: key.to_owned() }).await? {
            Answer::Row(seen) => seen.found(),
            _ => Err(StoreError::Corrupt),
        }
    }

    pub async fn change<T>(
        &self,
        kind: Kind,
        key: &str,
        now: impl Fn() -> SystemTime,
        decide: impl Fn(Found, SystemTime) -> Decided<T>,
    ) -> Result<T, StoreError> {
        for _ in 0..TRIES {
            let found = self.load(kind, key).await;
            if let Err(StoreError::Unavailable(_)) = &found {
                found?;
                continue;
            }
            let old = Seen::of(&found)?;
            let Decision { answer, write, tell } = decide(found, now())?;
            let new = match write {
                Write::Nothing => return Ok(answer),
                Write::Save(row) => Seen::of(&Ok(Some(*row)))?,
                Write::Delete => Seen::Absent,
            };
            let (kind, key) = (kind.name().to_owned(), key.to_owned());
            if let Answer::Replaced(true) = self.ask(Ask::Replace { kind, key, old, new, tell }).await? {
                return Ok(answer);
            }
        }
        Err(StoreError::Unavailable("others were always faster".to_owned()))
    }

    pub async fn list(&self, kind: Kind) -> Result<Vec<(String, Row)>, StoreError> {
        let Answer::Rows(rows) = self.ask(Ask::List { kind: kind.name().to_owned() }).await? else {
            return Err(StoreError::Corrupt);
        };
        let rows = rows.into_iter().map(|(key, seen)| Ok(seen.found()?.map(|row| (key, row))));
        rows.filter_map(Result::transpose).collect()
    }

    pub async fn list_tombstones(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        match self.ask(Ask::Tombstones { kind: kind.name().to_owned() }).await? {
            Answer::Keys(keys) => Ok(keys),
            _ => Err(StoreError::Corrupt),
        }
    }

    pub async fn check(&self) -> Result<(), StoreError> {
        self.ask(Ask::Check).await.map(|_| ())
    }

    pub async fn expire(&self) -> Result<usize, StoreError> {
        match self.ask(Ask::Expire).await? {
            Answer::Count(count) => Ok(count),
            _ => Err(StoreError::Corrupt),
        }
    }
}

fn hear(stream: UnixStream, waiting: &Waiting, told: &broadcast::Sender<Change>) {
    for line in BufReader::new(stream).lines() {
        let Some(said) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else { return };
        let change = match said {
            Said::Answered { id, answer } => {
                if let Some(waits) = lock(waiting).as_mut().and_then(|waiting| waiting.remove(&id)) {
                    let _ = waits.send(answer);
                }
                continue;
            }
            Said::Changed { kind, key } => named(&kind).map(|kind| Change::Of { kind, key }),
            Said::Missed => Some(Change::Missed),
        };
        let _ = told.send(change.unwrap_or(Change::Missed));
    }
}

/// Answers the process before this one, until it has ended.
pub fn serve<S: Backend + 'static>(store: Arc<S>, stream: UnixStream) -> io::Result<()> {
    // From here on nothing is missed: nobody else changes anything yet.
    let changes = store.changes();
    stream.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("store-for-the-old".to_owned()).spawn(move || {
        runtime.block_on(async {
            let Ok(stream) = tokio::net::UnixStream::from_std(stream) else { return };
            let (read, write) = stream.into_split();
            let write = tokio::sync::Mutex::new(write);
            let say = async |said: Said| {
                let mut line = serde_json::to_vec(&said)?;
                line.push(b'\n');
                write.lock().await.write_all(&line).await
            };
            tokio::select! {
                _ = answer(store.as_ref(), tokio::io::BufReader::new(read).lines(), &say) => {}
                _ = tell(changes, &say) => {}
            }
        });
    })?;
    Ok(())
}

async fn tell(
    mut changes: broadcast::Receiver<Change>,
    say: &impl AsyncFn(Said) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        say(match changes.recv().await {
            Ok(Change::Of { kind, key }) => Said::Changed { kind: kind.name().to_owned(), key },
            Ok(Change::Missed) | Err(broadcast::error::RecvError::Lagged(_)) => Said::Missed,
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        })
        .await?;
    }
}

async fn answer(
    store: &impl Backend,
    mut lines: tokio::io::Lines<impl tokio::io::AsyncBufRead + Unpin>,
    say: &impl AsyncFn(Said) -> io::Result<()>,
) -> io::Result<()> {
    while let Some(line) = lines.next_line().await? {
        let Asked { id, ask } = serde_json::from_str(&line)?;
        let answer = carry_out(store, ask).await.map_err(Failure::from);
        say(Said::Answered { id, answer }).await?;
    }
    Ok(())
}

async fn carry_out(store: &impl Backend, ask: Ask) -> Result<Answer, StoreError> {
    let known = |kind: &str| named(kind).ok_or(StoreError::Newer);
    Ok(match ask {
        Ask::Load { kind, key } => Answer::Row(Seen::of(&store.load(known(&kind)?, &key).await)?),
        Ask::Replace { kind, key, old, new, tell } => {
            let (old, new) = (old.found(), new.found()?);
            let decide = move |found: Found, _: SystemTime| {
                let is_same = match (&found, &old) {
                    (Ok(found), Ok(old)) => found == old,
                    (Err(found), Err(old)) => same_damage(found, old),
                    _ => false,
                };
                Ok(match (is_same, &new) {
                    (false, _) => Decision { answer: false, write: Write::Nothing, tell: false },
                    (true, None) => Decision { answer: true, write: Write::Delete, tell },
                    (true, Some(row)) => {
                        Decision { answer: true, write: Write::Save(Box::new(row.clone())), tell }
                    }
                })
            };
            Answer::Replaced(store.change(known(&kind)?, &key, decide).await?)
        }
        Ask::List { kind } => {
            let rows = store.list(known(&kind)?).await?.into_iter();
            let rows = rows.map(|(key, row)| Ok((key, Seen::of(&Ok(Some(row)))?)));
            Answer::Rows(rows.collect::<Result<_, StoreError>>()?)
        }
        Ask::Tombstones { kind } => Answer::Keys(store.list_tombstones(known(&kind)?).await?),
        Ask::Expire => Answer::Count(store.expire().await?),
        Ask::Check => store.check().await.map(|()| Answer::Fine)?,
    })
}

impl Seen {
    /// The store that does not answer has seen nothing.
    fn of(found: &Found) -> Result<Self, StoreError> {
        Ok(match found {
            Ok(None) => Seen::Absent,
            Ok(Some(row)) => Seen::There(BASE64.encode(&row.encode()?)),
            Err(StoreError::Corrupt) => Seen::Damaged,
            Err(StoreError::Newer) => Seen::Newer,
            Err(error) => return Err(error.clone()),
        })
    }

    fn found(self) -> Found {
        match self {
            Seen::Absent => Ok(None),
            Seen::There(row) => {
                let row = BASE64.decode(row.as_bytes()).map_err(|_| StoreError::Corrupt)?;
                Row::decode(&row).map(Some)
            }
            Seen::Damaged => Err(StoreError::Corrupt),
            Seen::Newer => Err(StoreError::Newer),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(reason) => Failure::Unavailable(reason),
            StoreError::Corrupt => Failure::Corrupt,
            StoreError::Newer => Failure::Newer,
            StoreError::TooLarge => Failure::TooLarge,
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unavailable(reason) => StoreError::Unavailable(reason),
            Failure::Corrupt => StoreError::Corrupt,
            Failure::Newer => StoreError::Newer,
            Failure::TooLarge => StoreError::TooLarge,
        }
    }
}

fn same_damage(one: &StoreError, other: &StoreError) -> bool {
    matches!(
        (one, other),
        (StoreError::Corrupt, StoreError::Corrupt) | (StoreError::Newer, StoreError::Newer)
    )
}

fn named(kind: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|known| known.name() == kind)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
