//! Looking at what is in memory, without waiting for a disk.
//!
//! To hand a look-up to a thread beside and to be woken by it costs several times the look-up itself, where the page is
//! in the database's cache or in the system's; and nearly always it is. But whoever serves requests must not wait for a
//! disk, which may be slow or hang. So a thread can be told that it only glances: the first page that is not in memory
//! ends its look. By unwinding, as the database never again reads a file of which one read has failed; it holds no lock
//! while it reads a page, and nobody hears of a panic.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSliceMut};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend, StorageError};
use rustix::io::{ReadWriteFlags, preadv2};

thread_local! {
    static IS_GLANCING: Cell<bool> = const { Cell::new(false) };
}

/// What a glance ends with at a page that it would have to wait for.
struct Waits;

/// Runs `look`; `None` if it came to a page that is not in memory, or panicked.
pub fn glance<T>(look: impl FnOnce() -> T) -> Option<T> {
    IS_GLANCING.set(true);
    let seen = catch_unwind(AssertUnwindSafe(look));
    IS_GLANCING.set(false);
    seen.ok()
}

/// To be called before the disk is waited for; a glance ends here.
pub fn about_to_wait() {
    if IS_GLANCING.get() {
        resume_unwind(Box::new(Waits));
    }
}

/// The database's file, at which a thread may glance.
#[derive(Debug)]
pub struct Pages {
    backend: FileBackend,
    file: File,
}

impl Pages {
    /// Of a file that has some: an empty one is no store that begins.
    pub fn at(path: &Path) -> Result<Pages, DatabaseError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        match file.metadata()?.len() {
            0 => Err(StorageError::Io(io::Error::new(ErrorKind::InvalidData, "the file is empty")).into()),
            _ => Pages::of(file),
        }
    }

    /// Of a file that is open for reading and writing.
    pub fn of(file: File) -> Result<Pages, DatabaseError> {
        Ok(Pages { file: file.try_clone()?, backend: FileBackend::new(file)? })
    }

    /// Fills `page` unless that takes the disk.
    fn is_read_from_memory(&self, offset: u64, page: &mut [u8]) -> bool {
        let length = page.len();
        // Where the file system cannot tell, it is an error.
        let read = preadv2(&self.file, &mut [IoSliceMut::new(page)], offset, ReadWriteFlags::NOWAIT);
        read == Ok(length)
    }
}

impl StorageBackend for Pages {
    fn read(&self, offset: u64, page: &mut [u8]) -> io::Result<()> {
        if IS_GLANCING.get() && self.is_read_from_memory(offset, page) {
            return Ok(());
        }
        about_to_wait();
        self.backend.read(offset, page)
    }

    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.backend.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn a_glance_sees_what_a_look_sees_or_nothing() {
        let pages = Pages::of(tempfile::tempfile().unwrap()).unwrap();
        pages.write(0, &[7; 8192]).unwrap();
        let read = |offset| {
            let mut page = [0; 4096];
            pages.read(offset, &mut page).map(|()| page)
        };
        assert_eq!(read(4096).unwrap(), [7; 4096]);
        // Not every file system can tell what is in memory.
        assert!(glance(|| read(4096)).is_none_or(|seen| seen.unwrap() == [7; 4096]));
        assert!(glance(|| read(8192)).is_none(), "there is no such page");
        assert!(glance(|| panic!("of the database")).is_none());
        assert!(read(8192).is_err(), "who looks again does not glance any more");
    }
}
