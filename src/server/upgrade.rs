//! Replacing the running program without a connection refused or a request lost: SIGUSR2, or `postern upgrade`.
//!
//! The running process starts the program anew, from the path that it was started from, and hands it everything that
//! listens. Only when the new one has read its configuration, opened the store and serves does the old one stop to accept,
//! end what it has begun and go. Whatever the new one does instead (it ends, it hangs, its configuration is wrong), the old
//! one goes on, and says why.
//!
//! The sockets are the same ones, so whoever is waiting to be accepted is accepted by either. Not Pingora's own way, by
//! SIGQUIT: there the old process ends whether anybody has taken over or not.
//!
//! What was started by systemd stays its main process for as long as it is the one that serves: it names its successor
//! (`MAINPID=`), which by then is systemd's own child ([`super::between`]) and says for itself that it is ready. That needs no
//! more than `NotifyAccess=main`.
use std::ffi::OsString;
use std::fs::Metadata;
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::Notify;

use super::handover::{FromNew, FromOld, Inheritance, Line, SUCCEEDS};
use super::shutdown::tell;
use crate::failpoint;
use crate::store::embedded::{Away, Embedded};
use crate::telemetry::Metrics;

/// Connections that nothing is under way on stay open for that long after a hand-over: whoever was about to send a request is
/// answered, and told that the connection closes.
pub const LINGER: Duration = Duration::from_secs(3);

/// When the successor took over; not yet, for nearly all of the time.
pub type Succeeded = Arc<OnceLock<Instant>>;

/// How the running process is replaced.
pub struct Upgrade {
    /// All that listen, by their configured addresses, for as long as they may be handed over.
    pub sockets: Mutex<Vec<(String, TcpListener)>>,
    /// Where the store is a file.
    pub embedded: Option<(PathBuf, Arc<Embedded>)>,
    /// How long the new process may take to serve.
    pub within: Duration,
    pub metrics: Arc<Metrics>,
    pub succeeded: Succeeded,
    /// Told when it is time to go.
    pub leave: Vec<Arc<Notify>>,
    /// One at a time.
    pub turn: Mutex<()>,
    pub program: Program,
}

/// What was started, as it was started.
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Upgrade {
    /// Puts the program that is on disk now in this one's place. Blocks until it serves, and returns its process number;
    /// or why everything is as before.
    pub fn now(&self) -> Result<u32, String> {
        let _turn = lock(&self.turn);
        if self.succeeded.get().is_some() {
            return Err("another process has taken over already".to_owned());
        }
        tracing::info!(program = %self.program.path.display(), "handing over to a new process");
        let outcome = self.attempt();
        match &outcome {
            Ok(successor) => {
                tracing::info!(successor, "the new process serves; this one ends what it has begun");
                self.metrics.upgrades.with_label_values(&["ok"]).inc();
            }
            Err(reason) => {
                tracing::error!(%reason, "no hand-over: this process goes on as before");
                self.metrics.upgrades.with_label_values(&["failed"]).inc();
            }
        }
        outcome
    }

    /// Whether the path has another program by now.
    pub fn is_due(&self) -> bool {
        let same = |one: Metadata, other: Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
        match (std::fs::metadata("/proc/self/exe"), std::fs::metadata(&self.program.path)) {
            (Ok(running), Ok(there)) => !same(running, there),
            _ => true,
        }
    }

    /// The sockets are nobody's but the listeners' from now on: when these close them, they are closed.
    pub fn forget(&self) {
        lock(&self.sockets).clear();
    }

    fn attempt(&self) -> Result<u32, String> {
        let said = |error: std::io::Error| error.to_string();
        let (ours, theirs) = UnixStream::pair().map_err(said)?;
        let (store, their_store) = UnixStream::pair().map_err(said)?;
        let line = Line::over(ours);
        {
            let sockets = lock(&self.sockets);
            let addresses = sockets.iter().map(|(address, _)| address.clone()).collect();
            let embedded = self.embedded.as_ref().map(|(data_dir, store)| (data_dir.clone(), store.opened()));
            let listening = sockets.iter().map(|(_, socket)| socket.as_fd());
            let descriptors: Vec<_> = listening.chain([their_store.as_fd()]).collect();
            line.give(&Inheritance { addresses, embedded }, &descriptors).map_err(said)?;
        }
        drop(their_store);
        let mut command = Command::new(&self.program.path);
        command.args(&self.program.arguments).stdin(Stdio::from(OwnedFd::from(theirs)));
        command.env(SUCCEEDS, std::process::id().to_string());
        // They name this process.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let mut child =
            command.spawn().map_err(|error| format!("{}: {error}", self.program.path.display()))?;
        drop(command);
        let mut away = None;
        let served = self.introduce(&line, &mut away, store, &mut child);
        // It has to have let go of the store before that is opened again, which dropping `away` does.
        served.map_err(|reason| format!("{reason}{}", end(&mut child, &line)))
    }

    fn introduce(
        &self,
        line: &Line,
        away: &mut Option<Away>,
        store: UnixStream,
        between: &mut Child,
    ) -> Result<u32, String> {
        let deadline = now() + self.within;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        match (hear(line, deadline)?, &self.embedded) {
            (FromNew::NeedsNoStore, _) => {}
            (FromNew::NeedsStore, Some((_, embedded))) => {
                let closed = runtime.block_on(Arc::clone(embedded).step_back());
                *away = Some(closed.map_err(|error| format!("the store cannot be handed over: {error}"))?);
                line.say(&FromOld::StoreIsClosed).map_err(|_| GONE.to_owned())?;
            }
            (FromNew::Failed(reason), _) => return Err(reason),
            (other, _) => return Err(format!("the new process says {other:?} at first")),
        }
        let successor = match hear(line, deadline)? {
            FromNew::Serves(successor) => successor,
            FromNew::Failed(reason) => return Err(reason),
            other => return Err(format!("the new process says {other:?} at last")),
        };
        failpoint::halted("U2");
        // Without it, the successor is systemd's.
        between.kill().and_then(|()| between.wait()).map_err(|error| error.to_string())?;
        // From here on there is no way back: it is told, and then it is so.
        line.say(&FromOld::YouAreTheOne).map_err(|_| GONE.to_owned())?;
        if let Some(away) = away.take()
            && let Err(error) = away.follow(store)
        {
            tracing::error!(%error, "what is still under way cannot reach the store any more");
        }
        tell(&[NotifyState::MainPid(successor)]);
        let _ = self.succeeded.set(now());
        self.forget();
        self.leave.iter().for_each(|who| who.notify_one());
        Ok(successor)
    }
}

/// How long another process takes is nothing that a test moves.
#[expect(clippy::disallowed_methods, reason = "a process is waited for")]
pub fn now() -> Instant {
    Instant::now()
}

const GONE: &str = "the new process has gone";

fn hear(line: &Line, deadline: Instant) -> Result<FromNew, String> {
    let left = deadline.saturating_duration_since(now()).max(Duration::from_millis(1));
    line.stream().set_read_timeout(Some(left)).map_err(|error| error.to_string())?;
    line.hear().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            "the new process did not serve in time (server.upgrade_timeout)".to_owned()
        }
        _ => GONE.to_owned(),
    })
}

/// Ends a process that has not taken over; how it ended, if it did by itself.
fn end(child: &mut Child, line: &Line) -> String {
    // One that has closed its end is about to.
    if let Some(status) = has_ended(child, Duration::from_millis(500)) {
        return format!(" ({status})");
    }
    // It ends what it has started, where it has come that far.
    let _ = line.stream().shutdown(Shutdown::Both);
    if has_ended(child, LINGER).is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    String::new()
}

fn has_ended(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let patience = now() + within;
    loop {
        match child.try_wait() {
            Ok(None) if now() < patience => std::thread::sleep(Duration::from_millis(10)),
            ended => return ended.ok().flatten(),
        }
    }
}

impl Program {
    /// The one that runs. What stands in its path is looked up anew for each successor: a name in `PATH` only once.
    pub fn running() -> std::io::Result<Self> {
        let mut arguments = std::env::args_os();
        let name = arguments.next().map(PathBuf::from).unwrap_or_default();
        let path = match name.components().count() {
            0 | 1 => std::env::current_exe()?,
            // Without a look at where links lead: that is what changes.
            _ => std::path::absolute(&name)?,
        };
        Ok(Self { path, arguments: arguments.collect() })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
