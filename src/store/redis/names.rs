//! What things are called in Redis.
//!
//! A record is spread over [`SHARDS`] hash tags by the digest of its kind and key, so that it, the index that lists it
//! and the log that tells of it lie on one slot, and one script can change all three. In a Cluster the tags spread over
//! the nodes.
use ring::digest::{SHA256, digest};

use super::super::Kind;

/// Hash tags in use. Part of every name: never changes.
pub const SHARDS: usize = 16;

/// Makes names.
#[derive(Clone)]
pub struct Names {
    prefix: String,
}

/// The names that one record's changes touch.
pub struct RecordNames {
    pub shard: usize,
    pub record: String,
    /// Lists the living of this kind and shard by their end.
    pub living: String,
    /// Lists the tombstones of this kind and shard by their end.
    pub tombstones: String,
    pub log: String,
    /// Where it is said that a log has grown.
    pub channel: String,
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub fn of(&self, kind: Kind, key: &str) -> RecordNames {
        let shard = shard(kind.name(), key);
        RecordNames {
            record: format!("{}{{{shard:x}}}:{}:{key}", self.prefix, kind.name()),
            living: self.index(shard, kind, false),
            tombstones: self.index(shard, kind, true),
            log: self.log(shard),
            channel: self.channel(),
            shard,
        }
    }

    pub fn index(&self, shard: usize, kind: Kind, tombstones: bool) -> String {
        let what = if tombstones { "tombstones" } else { "living" };
        format!("{}{{{shard:x}}}:{what}-{}", self.prefix, kind.name())
    }

    pub fn log(&self, shard: usize) -> String {
        format!("{}{{{shard:x}}}:log", self.prefix)
    }

    pub fn channel(&self) -> String {
        format!("{}news", self.prefix)
    }

    /// What was spent under a key.
    pub fn spent(&self, key: &str) -> String {
        self.passing("spent", key)
    }

    /// Who holds a place under a key.
    pub fn places(&self, key: &str) -> String {
        self.passing("places", key)
    }

    /// What is no record, and so in no index.
    fn passing(&self, what: &str, key: &str) -> String {
        format!("{}{{{:x}}}:{what}:{key}", self.prefix, shard(what, key))
    }

    pub fn probe(&self) -> String {
        format!("{}{{0}}:probe", self.prefix)
    }
}

fn shard(kind: &str, key: &str) -> usize {
    let mut text = kind.as_bytes().to_vec();
    text.push(0);
    text.extend_from_slice(key.as_bytes());
    let first = digest(&SHA256, &text).as_ref().first().copied().unwrap_or_default();
    usize::from(first) % SHARDS
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_changes_together_lies_together() {
        let names = Names::new("p:").of(Kind::Grant, "a:{x}b");
        let tag = format!("{{{:x}}}", names.shard);
        for name in [&names.record, &names.living, &names.tombstones, &names.log] {
            // Redis takes the first brace and the first one after it.
            assert!(name.starts_with(&format!("p:{tag}")), "{name}");
        }
        assert!(!names.record.starts_with(&names.living));
    }

    #[test]
    fn records_spread_over_all_shards() {
        let shards: HashSet<usize> =
            (0..500).map(|n| shard(Kind::Connection.name(), &n.to_string())).collect();
        assert_eq!(shards.len(), SHARDS);
    }
}
