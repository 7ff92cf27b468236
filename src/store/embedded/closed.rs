//! The note that the file was closed whole, and what it looked like then.
//!
//! While it still looks so nobody has written it since, neither a crash nor a copy nor a restored backup, and opening it need
//! not read it all. A medium that alters what nobody wrote goes unnoticed as it does while a store is open.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Beside the database.
pub struct Closed {
    database: PathBuf,
    note: PathBuf,
}

impl Closed {
    /// Of this database.
    pub fn of(database: &Path) -> Closed {
        Closed { database: database.to_owned(), note: database.with_added_extension("closed") }
    }

    /// Whether the database is as it was closed.
    pub fn holds(&self) -> bool {
        let looks = fs::metadata(&self.database).map(|found| looks(&found));
        looks.is_ok_and(|looks| fs::read_to_string(&self.note).is_ok_and(|note| note == looks))
    }

    /// The database is closed, and whole.
    pub fn write(&self) -> io::Result<()> {
        fs::write(&self.note, looks(&fs::metadata(&self.database)?))
    }

    /// The database is open. Durable before anything is changed there.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.note) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => {
                removed?;
                let directory = self.database.parent().unwrap_or(Path::new("."));
                File::open(directory)?.sync_all()
            }
        }
    }
}

/// What no write leaves as it was.
fn looks(found: &Metadata) -> String {
    let (written, changed) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
    format!("{} {} {written:?} {changed:?}\n", found.ino(), found.len())
}
