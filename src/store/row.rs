//! How one record lies in a store, whichever that is.
//!
//! Layout: format byte `1`, expiry in milliseconds since the epoch (64 bits), length of the head
//! (32 bits, both big-endian), head in JSON, sealed value. The head holds only what the operations
//! decide on. Everything is checked on the way in: what does not parse is damage, never a panic. A
//! higher format byte comes from a newer Postern beside this one: such a record is neither used nor
//! replaced.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Connection, Kind, StoreError, Stored};

const FORMAT: u8 = 1;
/// Format bytes that later versions may use; any other is damage.
const LATER: std::ops::RangeInclusive<u8> = 2..=31;

/// A record with its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// Milliseconds since the epoch; from then on the row does not exist.
    pub expires_millis: u64,
    /// What it is.
    pub body: Body,
}

/// What a row is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// An ordinary record.
    Record { version: u64, spent: bool, value: Vec<u8> },
    /// A connection with its lease.
    Connection(Connection),
    /// A key that is refused.
    Tombstone(Tombstone),
}

/// What is left where something was ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tombstone {
    /// Goes on counting where a connection was.
    pub fence: u64,
    /// The connection that was ended, if it was one: it stays ended, whatever fence a failover may give it.
    #[serde(default)]
    pub incarnation: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Head {
    Record { version: u64, spent: bool },
    Connection(Connection),
    Tombstone(Tombstone),
}

impl Row {
    /// The bytes to store.
    pub fn encode(&self) -> Result<Vec<u8>, StoreError> {
        let (head, value): (Head, &[u8]) = match &self.body {
            Body::Record { version, spent, value } => {
                (Head::Record { version: *version, spent: *spent }, value)
            }
            Body::Connection(connection) => {
                let head = Connection { sealed: Vec::new(), ..connection.clone() };
                (Head::Connection(head), &connection.sealed)
            }
            Body::Tombstone(tombstone) => (Head::Tombstone(tombstone.clone()), &[]),
        };
        let head = serde_json::to_vec(&head).map_err(|_| StoreError::Corrupt)?;
        let head_len = u32::try_from(head.len()).map_err(|_| StoreError::Corrupt)?;
        let mut bytes = Vec::with_capacity(13 + head.len() + value.len());
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.expires_millis.to_be_bytes());
        bytes.extend_from_slice(&head_len.to_be_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(value);
        Ok(bytes)
    }

    /// Reads stored bytes.
    pub fn decode(bytes: &[u8]) -> Result<Row, StoreError> {
        match bytes.first() {
            Some(format) if LATER.contains(format) => Err(StoreError::Newer),
            _ => Row::parse(bytes).ok_or(StoreError::Corrupt),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Row> {
        let expires_millis = expires_millis(bytes)?;
        let (head_len, rest) = bytes.split_at_checked(9)?.1.split_first_chunk::<4>()?;
        let head_len = usize::try_from(u32::from_be_bytes(*head_len)).ok()?;
        let (head, value) = rest.split_at_checked(head_len)?;
        let body = match serde_json::from_slice(head).ok()? {
            Head::Record { version, spent } => Body::Record { version, spent, value: value.to_vec() },
            Head::Connection(connection) => {
                Body::Connection(Connection { sealed: value.to_vec(), ..connection })
            }
            Head::Tombstone(tombstone) => Body::Tombstone(tombstone),
        };
        Some(Row { expires_millis, body })
    }

    /// The plain view of it; `None` for a tombstone.
    pub fn into_stored(self) -> Option<Stored> {
        let expires_at = time(self.expires_millis);
        match self.body {
            Body::Record { version, spent, value } => Some(Stored { version, value, spent, expires_at }),
            Body::Connection(Connection { generation, sealed, .. }) => {
                Some(Stored { version: generation, value: sealed, spent: false, expires_at })
            }
            Body::Tombstone(_) => None,
        }
    }

    /// Which of two rows under one key came later: fence, version or generation, whether it is spent.
    pub fn rank(&self) -> (u64, u64, bool) {
        match &self.body {
            Body::Record { version, spent, .. } => (0, *version, *spent),
            Body::Connection(connection) => (connection.fence, connection.generation, false),
            Body::Tombstone(tombstone) => (tombstone.fence, 0, false),
        }
    }

    /// The fence that a connection under this key has reached.
    pub fn fence(&self) -> u64 {
        match &self.body {
            Body::Connection(connection) => connection.fence,
            Body::Tombstone(tombstone) => tombstone.fence,
            Body::Record { .. } => 0,
        }
    }

    /// The connection that is under this key, or was ended there.
    pub fn incarnation(&self) -> Option<&str> {
        match &self.body {
            Body::Connection(connection) => Some(&connection.incarnation),
            Body::Tombstone(tombstone) => tombstone.incarnation.as_deref(),
            Body::Record { .. } => None,
        }
    }
}

/// The expiry alone, without reading the rest.
pub fn expires_millis(bytes: &[u8]) -> Option<u64> {
    let (&format, rest) = bytes.split_first()?;
    if format != FORMAT {
        return None;
    }
    rest.first_chunk::<8>().map(|millis| u64::from_be_bytes(*millis))
}

/// The key of a row: the kind's name, a zero byte, the key.
pub fn row_key(kind: Kind, key: &str) -> Vec<u8> {
    let mut bytes = prefix(kind);
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

/// What the keys of all rows of a kind begin with. Names hold no zero byte, so none begins another.
pub fn prefix(kind: Kind) -> Vec<u8> {
    let mut bytes = kind.name().as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// The key in the expiry index: sorted by time, then by row.
pub fn expiry_key(expires_millis: u64, row_key: &[u8]) -> Vec<u8> {
    let mut bytes = expires_millis.to_be_bytes().to_vec();
    bytes.extend_from_slice(row_key);
    bytes
}

/// When a row that is written now ends.
pub fn end(now: SystemTime, ttl: Duration) -> u64 {
    millis(now).saturating_add(whole_millis(ttl))
}

/// Milliseconds since the epoch; 0 before it.
pub fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    whole_millis(since)
}

/// A duration in milliseconds, capped.
pub fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The moment that so many milliseconds since the epoch are.
pub fn time(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn rows() -> Vec<Row> {
        let mut connection = Connection::begin("inc", 6, b"sealed".to_vec());
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567);
        connection.acquire("attempt", 1, Duration::from_secs(12), now);
        [
            Body::Record { version: 7, spent: true, value: b"value".to_vec() },
            Body::Record { version: 1, spent: false, value: Vec::new() },
            Body::Connection(connection),
            Body::Tombstone(Tombstone { fence: 9, incarnation: Some("inc".to_owned()) }),
        ]
        .into_iter()
        .map(|body| Row { expires_millis: 1_700_000_000_123, body })
        .collect()
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        for row in rows() {
            let bytes = row.encode().unwrap();
            assert_eq!(expires_millis(&bytes), Some(row.expires_millis));
            assert_eq!(Row::decode(&bytes).unwrap(), row);
        }
    }

    /// As it lies in stores that are there: whoever changes this needs another format byte, and still reads this one.
    #[test]
    fn sr_f34_what_earlier_versions_wrote_is_read_and_records_are_written_so() {
        let written = |head: &str, value: &[u8]| {
            let expires = [0, 0, 1, 0x8b, 0xcf, 0xe5, 0x68, 0x7b];
            [&[1], &expires[..], &u32::try_from(head.len()).unwrap().to_be_bytes(), head.as_bytes(), value]
                .concat()
        };
        let row = |body| Row { expires_millis: 1_700_000_000_123, body };
        let record = row(Body::Record { version: 7, spent: true, value: b"value".to_vec() });
        let bytes = written(r#"{"record":{"version":7,"spent":true}}"#, b"value");
        assert_eq!((Row::decode(&bytes).unwrap(), record.encode().unwrap()), (record, bytes));
        // Before it was remembered what made a connection's tokens, and which connection had been ended.
        let head = r#"{"connection":{"incarnation":"inc","generation":1,"fence":7,"state":"active","attempt":null,"not_before":null,"committed_by":null}}"#;
        let connection = Row::decode(&written(head, b"sealed")).unwrap();
        let Body::Connection(read) = connection.body else { panic!("a connection") };
        assert_eq!((read.generation, read.fence, read.sealed.as_slice()), (1, 7, &b"sealed"[..]));
        assert_eq!((read.committed_fence, read.orphan, read.refused), (0, None, 0));
        let ended = row(Body::Tombstone(Tombstone { fence: 9, incarnation: None }));
        assert_eq!(Row::decode(&written(r#"{"tombstone":{"fence":9}}"#, b"")).unwrap(), ended);
        // What a newer one has added to a head is passed over.
        let newer = written(r#"{"tombstone":{"fence":9,"by":"whom"}}"#, b"");
        assert_eq!(Row::decode(&newer).unwrap(), ended);
    }

    #[test]
    fn damaged_rows_are_damage_and_nothing_worse() {
        for row in rows() {
            let bytes = row.encode().unwrap();
            let head_end = bytes.len() - row.into_stored().map_or(0, |stored| stored.value.len());
            for end in 0..head_end {
                assert!(Row::decode(&bytes[..end]).is_err());
            }
            for position in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[position] ^= 0xff;
                let _ = Row::decode(&changed);
            }
        }
    }

    #[test]
    fn no_kind_is_a_prefix_of_another() {
        for one in Kind::ALL {
            for other in Kind::ALL {
                assert_eq!(one == other, row_key(one, "x").starts_with(&prefix(other)));
            }
        }
    }
}
