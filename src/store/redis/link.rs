//! A connection that is kept up: made anew in the background after a failure, never waited for by readers for long.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, watch};

use super::super::StoreError;
use super::check::{self, Refusal};
use super::connection::Connection;
use super::topology::Target;

/// How long the start waits for the first connection.
pub const FIRST: Duration = Duration::from_secs(2);
/// How long a command waits for a connection that is being made.
const PATIENCE: Duration = Duration::from_millis(250);
/// Between two tries, doubled each time up to the second.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(800);

/// A connection, or the reason why there is none.
#[derive(Clone)]
enum State {
    /// None has been made yet.
    Unknown,
    Up(u64, Connection),
    Down(Refusal),
}

/// Keeps one connection up.
pub struct Link {
    state: watch::Sender<State>,
    /// The connection in force is broken.
    broken: Notify,
    made: AtomicU64,
}

impl Link {
    /// Begins to connect on `runtime`, which the connections live on.
    pub fn start(runtime: &Handle, target: Arc<Target>) -> Arc<Self> {
        let link = Arc::new(Self {
            state: watch::Sender::new(State::Unknown),
            broken: Notify::new(),
            made: AtomicU64::new(0),
        });
        runtime.spawn(keep_up(Arc::clone(&link), target));
        link
    }

    /// Runs commands on the connection. A failure of it, or of the server behind it, has it made anew.
    pub async fn run<T, F>(&self, commands: impl FnOnce(Connection) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let (number, connection) = self.connection().await?;
        match commands(connection).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if needs_another_connection(&error) {
                    self.give_up(number);
                }
                Err(StoreError::Unavailable(check::text(&error)))
            }
        }
    }

    /// As [`Link::run`], for commands that change nothing: they are tried on another connection as well, since the
    /// first one may have ended while nobody used it.
    pub async fn read<T, F>(&self, commands: impl Fn(Connection) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        match self.run(&commands).await {
            Err(_) => self.run(&commands).await,
            answer => answer,
        }
    }

    /// How the first try to connect ended.
    pub async fn first_outcome(&self) -> Result<(), Refusal> {
        let mut state = self.state.subscribe();
        match state.wait_for(|state| !matches!(state, State::Unknown)).await.as_deref() {
            Ok(State::Down(refusal)) => Err(refusal.clone()),
            _ => Ok(()),
        }
    }

    /// Which connection is in force; another number after each new one. 0: there is none.
    pub fn number(&self) -> u64 {
        match &*self.state.borrow() {
            State::Up(number, _) => *number,
            _ => 0,
        }
    }

    async fn connection(&self) -> Result<(u64, Connection), StoreError> {
        if let State::Up(number, connection) = &*self.state.borrow() {
            return Ok((*number, connection.clone()));
        }
        let mut state = self.state.subscribe();
        let up = tokio::time::timeout(PATIENCE, state.wait_for(|state| matches!(state, State::Up(..)))).await;
        match up.as_ref().ok().and_then(|up| up.as_ref().ok()).map(|up| (**up).clone()) {
            Some(State::Up(number, connection)) => Ok((number, connection)),
            _ => Err(StoreError::Unavailable(self.why())),
        }
    }

    fn why(&self) -> String {
        match &*self.state.borrow() {
            State::Down(refusal) => refusal.to_string(),
            _ => "not connected".to_owned(),
        }
    }

    /// The connection of this number is of no use any more. Several callers may say so.
    fn give_up(&self, number: u64) {
        let was_up = self.state.send_if_modified(|state| {
            let current = matches!(state, State::Up(current, _) if *current == number);
            if current {
                *state = State::Down(Refusal::Unreachable("connection lost".to_owned()));
            }
            current
        });
        if was_up {
            self.broken.notify_one();
        }
    }
}

async fn keep_up(link: Arc<Link>, target: Arc<Target>) {
    let mut pause = BACKOFF;
    loop {
        let connected = tokio::time::timeout(FIRST, check::connect(&target)).await;
        match connected.unwrap_or_else(|_| Err(Refusal::Unreachable("no answer".to_owned()))) {
            Ok(connection) => {
                let number = link.made.fetch_add(1, Ordering::Relaxed) + 1;
                link.state.send_replace(State::Up(number, connection));
                link.broken.notified().await;
                pause = BACKOFF;
            }
            Err(refusal) => {
                let before = link.state.send_replace(State::Down(refusal.clone()));
                let is_news = !matches!(before, State::Down(before) if before == refusal);
                if refusal.is_final() && is_news {
                    tracing::error!(target: "postern::store", reason = %refusal, "redis is not used");
                }
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(BACKOFF_MAX);
            }
        }
    }
}

/// Whether the connection, or the server it leads to, is not the right one any more.
fn needs_another_connection(error: &RedisError) -> bool {
    let demoted = matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading
        )
    );
    demoted || error.is_io_error() || error.is_unrecoverable_error()
}

/// Links that are used by one at a time each.
pub struct Pool {
    links: Vec<Arc<Mutex<Arc<Link>>>>,
    next: AtomicU64,
}

/// A link that is ours until it is dropped.
pub struct Taken(OwnedMutexGuard<Arc<Link>>);

impl std::ops::Deref for Taken {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.0
    }
}

impl Pool {
    pub fn new(links: Vec<Arc<Link>>) -> Self {
        Self {
            links: links.into_iter().map(|link| Arc::new(Mutex::new(link))).collect(),
            next: AtomicU64::new(0),
        }
    }

    /// A free one, or the next to become free.
    pub async fn take(&self) -> Taken {
        for link in &self.links {
            if let Ok(free) = Arc::clone(link).try_lock_owned() {
                return Taken(free);
            }
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) as usize;
        let link = self.links.iter().cycle().nth(turn % self.links.len().max(1));
        match link {
            Some(link) => Taken(Arc::clone(link).lock_owned().await),
            None => std::future::pending().await,
        }
    }
}
