//! The new process: it is given the sockets, waits for the store if that is a file, and says when it serves. Until the old
//! one has said that it is the one, nobody relies on it, and it ends when the old one does.
use std::fs::File;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::net::sockopt::socket_type;

use super::StartError;
use super::between;
use super::handover::{BY_WAY_OF, FromNew, FromOld, Inheritance, Line, SUCCEEDS};
use crate::config::{self, Config};
use crate::failpoint;

const POLL: Duration = Duration::from_millis(10);

/// What listens, each under the address that the configuration had for it.
pub type Handed = Vec<(String, TcpListener)>;

/// The process that this one succeeds.
pub struct Predecessor {
    /// Who stands between, and ends when it does.
    between: u32,
    line: Line,
    inheritance: Inheritance,
    /// Where it reaches the store that we open.
    store: Mutex<Option<UnixStream>>,
}

impl Predecessor {
    /// `None` for a process that is started by anybody else. Does not return in the one that stands between.
    pub fn meet() -> Result<Option<(Self, Handed)>, StartError> {
        let between = std::os::unix::process::parent_id();
        let is_named = |name| std::env::var(name).ok() == Some(between.to_string());
        if is_named(SUCCEEDS) {
            return Err(StartError::HandOver(between::stand().to_string()));
        }
        if !is_named(BY_WAY_OF) {
            let is_meant = [SUCCEEDS, BY_WAY_OF].into_iter().any(|name| std::env::var_os(name).is_some());
            return match is_meant && socket_type(std::io::stdin()).is_ok() {
                true => Err(StartError::HandOver("whoever started it has gone".to_owned())),
                false => Ok(None),
            };
        }
        let failed = |error: std::io::Error| StartError::HandOver(error.to_string());
        let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        // Nobody who is started by us speaks on it.
        let nothing = File::open("/dev/null").map_err(failed)?;
        rustix::stdio::dup2_stdin(nothing.as_fd()).map_err(|error| failed(error.into()))?;
        let line = Line::over(UnixStream::from(input));
        let (inheritance, descriptors) = line.take().map_err(failed)?;
        let mut descriptors = descriptors.into_iter();
        let listening = descriptors.by_ref().take(inheritance.addresses.len()).map(TcpListener::from);
        let sockets: Vec<_> = inheritance.addresses.iter().cloned().zip(listening).collect();
        if sockets.len() < inheritance.addresses.len() {
            return Err(StartError::HandOver("sockets are missing".to_owned()));
        }
        let store = Mutex::new(descriptors.next().map(UnixStream::from));
        Ok(Some((Self { between, line, inheritance, store }, sockets)))
    }

    /// Waits until the store can be opened. Returns since when it has been ours or our predecessors', if it is the same
    /// file.
    pub fn wait_for_store(&self, config: &Config) -> Result<Option<SystemTime>, StartError> {
        let failed = |error: std::io::Error| StartError::HandOver(error.to_string());
        let same = |there: &Path| {
            let here = std::fs::canonicalize(&config.server.data_dir);
            here.is_ok_and(|here| here == there) && matches!(config.store, config::Store::Embedded)
        };
        let Some((_, since)) = self.inheritance.embedded.as_ref().filter(|(there, _)| same(there)) else {
            self.line.say(&FromNew::NeedsNoStore).map_err(failed)?;
            return Ok(None);
        };
        self.line.say(&FromNew::NeedsStore).map_err(failed)?;
        match self.line.hear().map_err(failed)? {
            FromOld::StoreIsClosed => Ok(Some(*since)),
            other => Err(StartError::HandOver(format!("{other:?} instead of the store"))),
        }
    }

    /// Where the predecessor asks for what it still needs of the store.
    pub fn take_store_channel(&self) -> Option<UnixStream> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// We serve, as soon as we are ready. Returns once the predecessor leaves everything to us.
    pub fn relieve(&self, is_ready: impl Fn() -> bool) -> std::io::Result<()> {
        failpoint::halted("U1");
        // Whoever starts without the shared store has no keys yet.
        while !is_ready() {
            if std::os::unix::process::parent_id() != self.between {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            std::thread::sleep(POLL);
        }
        self.line.say(&FromNew::Serves(std::process::id()))?;
        match self.line.hear()? {
            FromOld::YouAreTheOne => Ok(()),
            other => Err(std::io::Error::other(format!("{other:?} instead of the place"))),
        }
    }

    pub fn failed(&self, error: &StartError) {
        // It may have gone.
        let _ = self.line.say(&FromNew::Failed(error.to_string()));
    }
}
