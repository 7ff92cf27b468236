//! Where a running process has its configuration from: a file that can be read again, and every file that it names.
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::{Config, Environment, Process, Report};

/// Can be read any number of times.
pub struct Source {
    origin: Origin,
    /// What the last reading looked at.
    files: Mutex<BTreeSet<PathBuf>>,
}

enum Origin {
    File { path: PathBuf, strategies: Vec<String> },
    Text { text: String, name: String },
}

impl Source {
    /// A file. `strategies`: those that the program has besides (`credential.kind: custom`).
    pub fn file(path: impl Into<PathBuf>, strategies: Vec<String>) -> Self {
        Self { origin: Origin::File { path: path.into(), strategies }, files: Mutex::default() }
    }

    /// A text that never changes; `name` stands in front of every problem.
    pub fn text(text: String, name: &str) -> Self {
        Self { origin: Origin::Text { text, name: name.to_owned() }, files: Mutex::default() }
    }

    /// Reads and checks it once more.
    ///
    /// # Errors
    /// Every problem, or that it cannot be read.
    pub fn read(&self) -> Result<Config, Report> {
        let seen = Noting(Mutex::default());
        let config = match &self.origin {
            Origin::File { path, strategies } => {
                seen.note(path);
                super::load_in(path, &seen, strategies)
            }
            Origin::Text { text, name } => super::parse(text, name, &seen),
        };
        let seen = seen.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        // What a wrong configuration did not come to is looked at as before.
        match config.is_ok() {
            true => *files = seen,
            false => files.extend(seen),
        }
        config
    }

    /// The file itself and those that it named when it was last read.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// The environment of this process, and which of its files were looked at.
struct Noting(Mutex<BTreeSet<PathBuf>>);

impl Noting {
    fn note(&self, path: &Path) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
    }
}

impl Environment for Noting {
    fn var(&self, name: &str) -> Option<String> {
        Process.var(name)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.note(path);
        Process.read(path)
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        Process.mode(path)
    }

    fn real(&self, path: &Path) -> io::Result<PathBuf> {
        Process.real(path)
    }

    fn run(&self, command: &[String]) -> io::Result<Vec<u8>> {
        Process.run(command)
    }

    fn now(&self) -> SystemTime {
        Process.now()
    }
}
