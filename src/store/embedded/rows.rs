//! The tables of the database: records by key, an index of when they end, and one of those that are tombstones, which are
//! read at every start.
//!
//! All change in one transaction, so no index ever points at what is not there.

use std::time::SystemTime;

use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, StorageError, Table, TableDefinition, TableError,
    WriteTransaction,
};

use super::super::row::{self, Body, Row};
use super::super::{Kind, StoreError};

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
const EXPIRY: TableDefinition<'static, &[u8], ()> = TableDefinition::new("expiry");
/// With the end of each.
const TOMBSTONES: TableDefinition<'static, &[u8], u64> = TableDefinition::new("tombstones");
/// Written when readiness is asked for after a failure. No kind's prefix matches it.
const PROBE_KEY: &[u8] = b"\0probe";

/// The tables inside one write transaction.
pub struct Rows<'txn> {
    records: Table<'txn, &'static [u8], &'static [u8]>,
    expiry: Table<'txn, &'static [u8], ()>,
    tombstones: Table<'txn, &'static [u8], u64>,
    /// The time of this transaction.
    pub now: SystemTime,
    now_millis: u64,
    changed: bool,
    failure: Option<StorageError>,
}

impl<'txn> Rows<'txn> {
    /// The tables of a transaction that runs at `now`.
    pub fn open(transaction: &'txn WriteTransaction, now: SystemTime) -> Result<Rows<'txn>, TableError> {
        Ok(Rows {
            records: transaction.open_table(RECORDS)?,
            expiry: transaction.open_table(EXPIRY)?,
            tombstones: transaction.open_table(TOMBSTONES)?,
            now,
            now_millis: row::millis(now),
            changed: false,
            failure: None,
        })
    }

    /// What the database failed with; nothing of this transaction may be kept then.
    pub fn failure(&self) -> Option<&StorageError> {
        self.failure.as_ref()
    }

    /// Whether there is anything to commit.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// The row under this key, unless it has expired.
    pub fn load(&mut self, kind: Kind, key: &str) -> Result<Option<Row>, StoreError> {
        let result = match self.records.get(row::row_key(kind, key).as_slice()) {
            Ok(Some(found)) => Row::decode(found.value()).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(note(&mut self.failure, error)),
        };
        Ok(result?.filter(|row| self.now_millis < row.expires_millis))
    }

    /// Writes the row, whatever was there.
    pub fn save(&mut self, kind: Kind, key: &str, row: &Row) -> Result<(), StoreError> {
        let row_key = row::row_key(kind, key);
        let bytes = row.encode()?;
        self.changed = true;
        let before = match self.records.insert(row_key.as_slice(), bytes.as_slice()) {
            Ok(before) => before.and_then(|before| row::expires_millis(before.value())),
            Err(error) => return Err(note(&mut self.failure, error)),
        };
        self.forget_expiry(before.filter(|before| *before != row.expires_millis), &row_key)?;
        let listed = match row.body {
            Body::Tombstone(_) => self.tombstones.insert(row_key.as_slice(), row.expires_millis),
            _ => self.tombstones.remove(row_key.as_slice()),
        };
        if let Err(error) = listed {
            return Err(note(&mut self.failure, error));
        }
        let expiry_key = row::expiry_key(row.expires_millis, &row_key);
        match self.expiry.insert(expiry_key.as_slice(), ()) {
            Ok(_) => Ok(()),
            Err(error) => Err(note(&mut self.failure, error)),
        }
    }

    /// Deletes the row, if there is one.
    pub fn delete(&mut self, kind: Kind, key: &str) -> Result<(), StoreError> {
        self.delete_row(&row::row_key(kind, key))
    }

    /// Deletes up to `limit` expired rows, the oldest first; says how many.
    pub fn delete_expired(&mut self, limit: usize) -> Result<usize, StoreError> {
        let end = self.now_millis.saturating_add(1).to_be_bytes();
        let found = self.expiry.range::<&[u8]>(..end.as_slice()).and_then(|range| {
            range.take(limit).map(|entry| Ok(entry?.0.value().to_vec())).collect::<Result<Vec<_>, _>>()
        });
        let expired = found.map_err(|error| note(&mut self.failure, error))?;
        for expiry_key in &expired {
            if let Some((_, row_key)) = expiry_key.split_at_checked(8) {
                self.delete_row(row_key)?;
            }
            self.changed = true;
            if let Err(error) = self.expiry.remove(expiry_key.as_slice()) {
                return Err(note(&mut self.failure, error));
            }
        }
        Ok(expired.len())
    }

    fn delete_row(&mut self, row_key: &[u8]) -> Result<(), StoreError> {
        let (existed, expires) = match self.records.remove(row_key) {
            Ok(before) => (before.is_some(), before.and_then(|before| row::expires_millis(before.value()))),
            Err(error) => return Err(note(&mut self.failure, error)),
        };
        self.changed |= existed;
        if let Err(error) = self.tombstones.remove(row_key) {
            return Err(note(&mut self.failure, error));
        }
        self.forget_expiry(expires, row_key)
    }

    fn forget_expiry(&mut self, expires_millis: Option<u64>, row_key: &[u8]) -> Result<(), StoreError> {
        let Some(expires_millis) = expires_millis else {
            return Ok(());
        };
        match self.expiry.remove(row::expiry_key(expires_millis, row_key).as_slice()) {
            Ok(_) => Ok(()),
            Err(error) => Err(note(&mut self.failure, error)),
        }
    }

    /// Changes something that nobody reads.
    pub fn probe(&mut self) -> Result<(), StoreError> {
        self.changed = true;
        match self.records.insert(PROBE_KEY, self.now_millis.to_be_bytes().as_slice()) {
            Ok(_) => Ok(()),
            Err(error) => Err(note(&mut self.failure, error)),
        }
    }
}

/// The records after one transaction.
pub struct View {
    transaction: ReadTransaction,
    records: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl View {
    /// The records as the transaction sees them.
    pub fn open(transaction: ReadTransaction) -> Result<View, TableError> {
        let records = transaction.open_table(RECORDS)?;
        Ok(View { transaction, records })
    }

    /// The row under this key, unless it has expired by `now`.
    pub fn load(&self, kind: Kind, key: &str, now: SystemTime) -> Result<Option<Row>, StoreError> {
        let found =
            ReadableTable::get(&self.records, row::row_key(kind, key).as_slice()).map_err(unavailable)?;
        let row = found.map(|found| Row::decode(found.value())).transpose()?;
        Ok(row.filter(|row| row::millis(now) < row.expires_millis))
    }

    /// All rows of a kind with their keys, without the expired. A damaged row is logged and left out.
    pub fn scan(&self, kind: Kind, now: SystemTime) -> Result<Vec<(String, Row)>, StoreError> {
        let (prefix, now_millis) = (row::prefix(kind), row::millis(now));
        let mut rows = Vec::new();
        for entry in ReadableTable::range(&self.records, prefix.as_slice()..).map_err(unavailable)? {
            let (row_key, bytes) = entry.map_err(unavailable)?;
            let Some(key) = row_key.value().strip_prefix(prefix.as_slice()) else {
                break;
            };
            match (std::str::from_utf8(key), Row::decode(bytes.value())) {
                (Ok(key), Ok(row)) if now_millis < row.expires_millis => rows.push((key.to_owned(), row)),
                (Ok(_), Ok(_)) => {}
                _ => tracing::error!(kind = kind.name(), "damaged record left out"),
            }
        }
        Ok(rows)
    }

    /// The keys of a kind that are tombstones.
    pub fn tombstones(&self, kind: Kind, now: SystemTime) -> Result<Vec<String>, StoreError> {
        let (prefix, now_millis) = (row::prefix(kind), row::millis(now));
        let tombstones = self.transaction.open_table(TOMBSTONES).map_err(unavailable)?;
        let mut keys = Vec::new();
        for entry in ReadableTable::range(&tombstones, prefix.as_slice()..).map_err(unavailable)? {
            let (row_key, expires_millis) = entry.map_err(unavailable)?;
            let Some(key) = row_key.value().strip_prefix(prefix.as_slice()) else {
                break;
            };
            if now_millis < expires_millis.value() {
                keys.push(String::from_utf8_lossy(key).into_owned());
            }
        }
        Ok(keys)
    }
}

/// Makes the tables in a new database.
pub fn create_tables(transaction: &WriteTransaction) -> Result<(), TableError> {
    transaction.open_table(RECORDS)?;
    transaction.open_table(EXPIRY)?;
    transaction.open_table(TOMBSTONES)?;
    Ok(())
}

/// Makes the index of tombstones anew: earlier versions know nothing of it.
pub fn list_tombstones(transaction: &WriteTransaction) -> Result<(), TableError> {
    transaction.delete_table(TOMBSTONES)?;
    let records = transaction.open_table(RECORDS)?;
    let mut tombstones = transaction.open_table(TOMBSTONES)?;
    for entry in records.iter()? {
        let (row_key, bytes) = entry?;
        if let Ok(Row { expires_millis, body: Body::Tombstone(_) }) = Row::decode(bytes.value()) {
            tombstones.insert(row_key.value(), expires_millis)?;
        }
    }
    Ok(())
}

/// The database's trouble in one line.
pub fn unavailable(reason: impl ToString) -> StoreError {
    StoreError::Unavailable(reason.to_string())
}

/// Keeps a failure of the database for the whole batch and makes it the answer of this change.
fn note(failure: &mut Option<StorageError>, error: StorageError) -> StoreError {
    let answer = unavailable(&error);
    failure.get_or_insert(error);
    answer
}
