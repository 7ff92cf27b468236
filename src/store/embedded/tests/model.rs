//! What a store ought to hold: the decisions of [`crate::store::change`] on a map, without any file; and what a store
//! shows through its reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::sync::broadcast;

use crate::clock::Clock;
use crate::store::backend::Backend;
use crate::store::change::{Decided, Decision, Found, Write};
use crate::store::row::{self, Body};
use crate::store::{Change, Kind, Row, Store, StoreError};

/// Everything in a store, expired rows too.
pub type Content = BTreeMap<(Kind, String), Arc<Row>>;

/// Those that have not expired.
pub fn living(rows: &Content, now: SystemTime) -> Content {
    let now = row::millis(now);
    rows.iter()
        .filter(|(_, row)| now < row.expires_millis)
        .map(|(key, row)| (key.clone(), Arc::clone(row)))
        .collect()
}

/// All rows that a store lists.
pub async fn seen(store: &dyn Store) -> Result<Content, StoreError> {
    let mut rows = Content::new();
    for kind in Kind::ALL {
        rows.extend(store.rows(kind).await?.into_iter().map(|(key, row)| ((kind, key), Arc::new(row))));
    }
    Ok(rows)
}

/// Whether every read says of these rows what they are.
pub async fn shown(store: &dyn Store, rows: &Content) -> Result<bool, StoreError> {
    for ((kind, key), row) in rows {
        let row = Row::clone(row);
        let connection = match &row.body {
            Body::Connection(connection) => Some(connection.clone()),
            _ => None,
        };
        if *kind == Kind::Connection && store.connection(key).await? != connection
            || store.get(*kind, key).await? != row.into_stored()
        {
            return Ok(false);
        }
    }
    for kind in Kind::ALL {
        let (mut records, mut tombstones) = (Vec::new(), Vec::new());
        for ((_, key), row) in rows.iter().filter(|((of, _), _)| *of == kind) {
            match Row::clone(row).into_stored() {
                Some(stored) => records.push((key.clone(), stored)),
                None => tombstones.push(key.clone()),
            }
        }
        if store.scan(kind).await? != records || store.tombstones(kind).await? != tombstones {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A store without a file.
pub struct Model {
    rows: Mutex<Content>,
    clock: Clock,
    opened: SystemTime,
    changes: broadcast::Sender<Change>,
}

impl Model {
    pub fn new(clock: Clock) -> Model {
        let opened = clock.now();
        Model { rows: Mutex::default(), clock, opened, changes: broadcast::Sender::new(1) }
    }

    /// What it holds.
    pub fn rows(&self) -> Content {
        self.rows.lock().unwrap().clone()
    }

    fn found(&self, kind: Kind, key: &str) -> Option<Row> {
        let now = row::millis(self.clock.now());
        let rows = self.rows.lock().unwrap();
        rows.get(&(kind, key.to_owned())).filter(|row| now < row.expires_millis).map(|row| Row::clone(row))
    }
}

impl Backend for Model {
    async fn load(&self, kind: Kind, key: &str) -> Found {
        Ok(self.found(kind, key))
    }

    async fn change<T: Send + 'static>(
        &self,
        kind: Kind,
        key: &str,
        decide: impl Fn(Found, SystemTime) -> Decided<T> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let Decision { answer, write, .. } = decide(Ok(self.found(kind, key)), self.clock.now())?;
        let mut rows = self.rows.lock().unwrap();
        match write {
            Write::Nothing => {}
            Write::Save(row) => {
                rows.insert((kind, key.to_owned()), Arc::from(row));
            }
            Write::Delete => {
                rows.remove(&(kind, key.to_owned()));
            }
        }
        Ok(answer)
    }

    async fn list(&self, kind: Kind) -> Result<Vec<(String, Row)>, StoreError> {
        let now = row::millis(self.clock.now());
        let rows = self.rows.lock().unwrap();
        let listed = rows.iter().filter(|((of, _), row)| *of == kind && now < row.expires_millis);
        Ok(listed.map(|((_, key), row)| (key.clone(), Row::clone(row))).collect())
    }

    fn alone_since(&self) -> Option<SystemTime> {
        Some(self.opened)
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        let now = row::millis(self.clock.now());
        let mut rows = self.rows.lock().unwrap();
        let before = rows.len();
        rows.retain(|_, row| now < row.expires_millis);
        Ok(before - rows.len())
    }
}
