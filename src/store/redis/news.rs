//! Hearing what other instances have changed.
//!
//! Every change is written into the log of its shard, in the same script as the change itself; the log is the truth.
//! That a log has grown is said over pub/sub, and each log is read again every half second whatever was said, so that a
//! message that got lost costs half a second and nothing else. Entries are numbered: who was away reads on from where
//! they stopped, and who was away for too long, or comes back to a server that has lost its latest writes, learns that
//! something was missed and looks at everything again.
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::broadcast;
use tokio::time::MissedTickBehavior;

use super::super::{Change, Kind, StoreError};
use super::link::Link;
use super::names::{Names, SHARDS};
use super::script::{self, News};
use super::topology::Target;
use crate::seal;

/// How often the logs are read without being asked to.
const POLL: Duration = Duration::from_millis(500);
/// Before the next try to subscribe.
const PAUSE: Duration = Duration::from_millis(500);

/// Follows all logs.
pub struct Follower {
    names: Names,
    link: Arc<Link>,
    target: Arc<Target>,
    changes: broadcast::Sender<Change>,
    /// The connection that was in force at the last reading.
    connection: u64,
    /// The newest entry read, by shard; `None` before the log was read for the first time.
    known: Vec<Option<Vec<u8>>>,
}

impl Follower {
    pub fn new(
        names: Names,
        link: Arc<Link>,
        target: Arc<Target>,
        changes: broadcast::Sender<Change>,
    ) -> Self {
        Self { names, link, target, changes, connection: 0, known: vec![None; SHARDS] }
    }

    /// Takes the present state as known: nobody has read anything before it.
    pub async fn begin(&mut self) {
        self.connection = self.link.number();
        for (shard, known) in self.known.iter_mut().enumerate() {
            let log = self.names.log(shard);
            if let Ok(newest) = self.link.run(|connection| script::newest(connection, &log)).await {
                *known = Some(newest);
            }
        }
    }

    /// Reads on until the store is dropped.
    pub async fn follow(mut self) {
        let (grown, mut heard) = tokio::sync::mpsc::channel(SHARDS * 4);
        tokio::spawn(listen(Arc::clone(&self.target), self.names.channel(), grown));
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                shard = heard.recv() => match shard {
                    Some(shard) => {
                        let news = self.ask(shard).await;
                        self.take_in(shard, news);
                    }
                    None => return,
                },
                _ = poll.tick() => {
                    self.notice_another_server();
                    // Side by side: the way to the server may be long.
                    let read = futures_util::future::join_all((0..SHARDS).map(|shard| self.ask(shard))).await;
                    for (shard, news) in read.into_iter().enumerate() {
                        self.take_in(shard, news);
                    }
                }
            }
        }
    }

    /// Behind a new connection may be another server, which lacks what the old one had acknowledged last.
    fn notice_another_server(&mut self) {
        let connection = self.link.number();
        if connection != 0 && std::mem::replace(&mut self.connection, connection) != connection {
            self.tell(Change::Missed);
        }
    }

    /// What the log of a shard has said since it was read last.
    async fn ask(&self, shard: usize) -> Result<News, StoreError> {
        let log = self.names.log(shard);
        match self.known.get(shard).and_then(Option::as_deref) {
            Some(known) => self.link.run(|connection| script::news(connection, &log, known)).await,
            // Nothing was heard until now.
            None => {
                let newest = self.link.run(|connection| script::newest(connection, &log)).await?;
                Ok(News { newest, missed: true, entries: Vec::new() })
            }
        }
    }

    fn take_in(&mut self, shard: usize, news: Result<News, StoreError>) {
        // A log that cannot be read now is read on from the same place later.
        let Ok(news) = news else {
            return;
        };
        if news.missed {
            tracing::warn!(target: "postern::store", shard, "changes were missed: reading everything again");
            self.tell(Change::Missed);
        }
        for entry in news.entries.iter().rev() {
            match change(entry) {
                Entry::Of(change) => self.tell(change),
                Entry::Unknown => {}
                Entry::Damaged => self.tell(Change::Missed),
            }
        }
        self.move_to(shard, news.newest);
    }

    fn move_to(&mut self, shard: usize, newest: Vec<u8>) {
        if let Some(known) = self.known.get_mut(shard) {
            *known = Some(newest);
        }
    }

    fn tell(&self, change: Change) {
        // Nobody may be listening.
        let _ = self.changes.send(change);
    }
}

/// Passes on which logs are said to have grown.
async fn listen(target: Arc<Target>, channel: String, grown: tokio::sync::mpsc::Sender<usize>) {
    loop {
        if let Ok(mut listening) = target.listen().await
            && listening.subscribe(&channel).await.is_ok()
        {
            let mut messages = listening.into_on_message();
            while let Some(message) = messages.next().await {
                let shard =
                    std::str::from_utf8(message.get_payload_bytes()).ok().and_then(|text| text.parse().ok());
                // A full queue means that the logs are being read anyway.
                if let Some(shard) = shard
                    && let Err(tokio::sync::mpsc::error::TrySendError::Closed(_)) = grown.try_send(shard)
                {
                    return;
                }
            }
        }
        if grown.is_closed() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// An entry without its number: something that no other entry has, the kind, the key.
pub fn entry(kind: Kind, key: &str) -> String {
    format!("{} {} {key}", seal::name().unwrap_or_default(), kind.name())
}

/// What an entry says.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Of(Change),
    /// Of a kind that only a later version has: nobody here has a copy of such a record.
    Unknown,
    Damaged,
}

fn change(entry: &[u8]) -> Entry {
    let text = std::str::from_utf8(entry).unwrap_or_default();
    let mut parts = text.splitn(4, ' ').skip(2);
    let (Some(name), Some(key)) = (parts.next(), parts.next()) else {
        return Entry::Damaged;
    };
    match Kind::ALL.into_iter().find(|kind| kind.name() == name) {
        Some(kind) => Entry::Of(Change::Of { kind, key: key.to_owned() }),
        None if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase()) => Entry::Unknown,
        None => Entry::Damaged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_written() {
        for key in ["a", "", "with spaces  in it", "ü\0{}"] {
            let entry = format!("17 {}", entry(Kind::Grant, key));
            let expected = Entry::Of(Change::Of { kind: Kind::Grant, key: key.to_owned() });
            assert_eq!(change(entry.as_bytes()), expected);
        }
        for damaged in ["", "17", "17 x", "17 x grant", "17 x  a", "17 x Grant a"] {
            assert_eq!(change(damaged.as_bytes()), Entry::Damaged, "{damaged}");
        }
        assert_eq!(change(b"17 x somethingnew a"), Entry::Unknown);
    }
}
