//! One body of tests for every implementation of [`Store`].
//!
//! An implementation says how to make an empty store and calls `store_suite!`, which makes one test
//! of each function here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::clock::Clock;

/// An empty store with a clock that the test moves.
pub(crate) struct Bed {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Clock,
    /// What has to live as long as the store, such as its directory.
    pub(crate) _keep: Box<dyn Any + Send + Sync>,
}

/// A manual clock at a time in 2026.
pub(crate) fn clock() -> Clock {
    Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000))
}

macro_rules! store_suite {
    ($make:path: $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                $crate::store::suite::$name($make()).await;
            }
        )*
    };
    ($make:path) => {
        $crate::store::suite::store_suite!($make:
            put_goes_by_versions
            values_are_kept_byte_for_byte
            kinds_and_keys_are_apart
            one_of_many_puts_wins
            take_hands_out_once
            one_of_many_takes_is_fresh
            records_end_with_their_time
            a_new_value_has_a_new_end
            remove_starts_over
            tombstones_refuse_until_they_end
            tombstones_only_get_longer
            scan_lists_what_lives
            sweep_deletes_what_has_ended
            changes_are_told
            values_and_keys_have_a_limit
            reseal_keeps_version_and_end
            rows_move_to_another_store
            connect_begins_and_replaces
            connections_change_by_leases_only
            acquire_has_one_owner
            one_of_many_acquires_owns
            a_lost_answer_is_repeated
            newer_generations_are_adopted
            a_dead_lease_is_taken_over
            a_sent_token_stays_sent_over_takeovers
            sent_needs_a_living_lease
            commit_makes_a_generation
            commit_may_be_repeated
            stale_commits_change_nothing
            a_late_commit_is_taken_while_nobody_has_sent
            an_orphan_replaces_what_turns_out_dead
            of_two_orphans_the_one_that_asked_last_counts
            of_two_answers_the_one_that_was_asked_for_later_counts
            what_a_failover_took_back_is_asserted_again
            what_a_failover_took_back_keeps_its_generation_beside
            a_lost_tombstone_is_made_again_and_spares_what_came_after
            a_lost_tombstone_ends_its_connection_however_far_it_has_got
            a_refused_token_is_remembered_and_may_be_renewed
            disconnecting_refuses_the_commit_under_way
            reconnecting_refuses_the_commit_under_way
            transient_release_backs_off
            ambiguous_release_is_remembered
            a_dead_grant_needs_the_user
            refusal_names_a_generation
            refusal_lets_a_refresh_under_way_finish
            fences_never_go_back
            connections_end_with_their_time
        );
    };
}
pub(crate) use store_suite;

const HOUR: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_secs(12);
const SOON: Duration = Duration::from_secs(30);

fn value(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

impl Bed {
    async fn put(&self, key: &str, expected: u64, text: &str) -> Put {
        self.store.put(Kind::Session, key, expected, value(text), HOUR).await.unwrap()
    }

    async fn get(&self, key: &str) -> Option<(u64, String)> {
        let stored = self.store.get(Kind::Session, key).await.unwrap()?;
        Some((stored.version, String::from_utf8(stored.value).unwrap()))
    }

    async fn connect(&self, incarnation: &str) {
        self.store.connect("c", incarnation, value("first"), HOUR).await.unwrap();
    }

    async fn acquire(&self, id: &str, newer_than: u64) -> Acquired {
        self.store.acquire("c", id, newer_than, LEASE).await.unwrap()
    }

    /// Acquires and returns the fence.
    async fn own(&self, id: &str, newer_than: u64) -> u64 {
        match self.acquire(id, newer_than).await {
            Acquired::Owner { connection, .. } => connection.fence,
            other => panic!("not the owner: {other:?}"),
        }
    }

    /// Commits what was acquired at `generation`.
    async fn commit(
        &self,
        incarnation: &str,
        generation: u64,
        id: &str,
        fence: u64,
        text: &str,
    ) -> Committed {
        let claim =
            Claim { incarnation: incarnation.to_owned(), generation, attempt_id: id.to_owned(), fence };
        self.store.commit("c", &claim, value(text), HOUR).await.unwrap()
    }

    async fn release(&self, id: &str, fence: u64, outcome: Release) -> Released {
        self.store.release("c", id, fence, outcome).await.unwrap()
    }

    async fn refuse(&self, incarnation: &str, generation: u64) -> bool {
        self.store.refuse("c", incarnation, generation, Refusal::Final).await.unwrap()
    }

    async fn connection(&self) -> Connection {
        self.store.connection("c").await.unwrap().unwrap()
    }
}

pub(crate) async fn put_goes_by_versions(bed: Bed) {
    assert_eq!(bed.get("a").await, None);
    assert_eq!(bed.put("a", 1, "too early").await, Put::Conflict);
    assert_eq!(bed.put("a", 0, "one").await, Put::Stored);
    assert_eq!(bed.get("a").await, Some((1, "one".to_owned())));
    assert_eq!(bed.put("a", 0, "again").await, Put::Conflict);
    assert_eq!(bed.put("a", 1, "two").await, Put::Stored);
    assert_eq!(bed.put("a", 1, "late").await, Put::Conflict);
    assert_eq!(bed.get("a").await, Some((2, "two".to_owned())));
    bed.store.ready().await.unwrap();
}

pub(crate) async fn values_are_kept_byte_for_byte(bed: Bed) {
    let all_bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for (key, value) in [("empty", Vec::new()), ("large", all_bytes)] {
        bed.store.put(Kind::Grant, key, 0, value.clone(), HOUR).await.unwrap();
        let stored = bed.store.get(Kind::Grant, key).await.unwrap().unwrap();
        assert_eq!(stored.value, value);
        assert_eq!(stored.expires_at, bed.clock.now() + HOUR);
    }
}

pub(crate) async fn kinds_and_keys_are_apart(bed: Bed) {
    for kind in Kind::ALL {
        for key in ["", "a", "ab", "a\0b", "a/b:{c}", "ü"] {
            let text = format!("{}-{key}", kind.name());
            assert_eq!(bed.store.put(kind, key, 0, value(&text), HOUR).await.unwrap(), Put::Stored);
        }
    }
    for kind in Kind::ALL {
        for key in ["", "a", "ab", "a\0b", "a/b:{c}", "ü"] {
            let stored = bed.store.get(kind, key).await.unwrap().unwrap();
            assert_eq!(stored.value, value(&format!("{}-{key}", kind.name())));
        }
        assert_eq!(bed.store.scan(kind).await.unwrap().len(), 6);
    }
}

pub(crate) async fn one_of_many_puts_wins(bed: Bed) {
    bed.put("a", 0, "start").await;
    let puts = (0..50).map(|number| {
        let store = Arc::clone(&bed.store);
        tokio::spawn(async move { store.put(Kind::Session, "a", 1, vec![number], HOUR).await.unwrap() })
    });
    let mut stored = 0;
    for put in puts.collect::<Vec<_>>() {
        stored += usize::from(put.await.unwrap() == Put::Stored);
    }
    assert_eq!(stored, 1);
    assert_eq!(bed.get("a").await.unwrap().0, 2);
}

pub(crate) async fn take_hands_out_once(bed: Bed) {
    assert_eq!(bed.store.take(Kind::Session, "a").await.unwrap(), Taken::Absent);
    bed.put("a", 0, "once").await;
    let Taken::Fresh(fresh) = bed.store.take(Kind::Session, "a").await.unwrap() else { panic!() };
    assert_eq!((fresh.version, fresh.spent, fresh.value), (1, true, value("once")));
    let Taken::Spent(spent) = bed.store.take(Kind::Session, "a").await.unwrap() else { panic!() };
    assert_eq!(spent.value, value("once"));
    assert!(bed.store.get(Kind::Session, "a").await.unwrap().unwrap().spent);
    assert_eq!(bed.put("a", 1, "revived").await, Put::Conflict);
    assert_eq!(bed.put("a", 0, "revived").await, Put::Conflict);
    bed.clock.advance(HOUR);
    assert_eq!(bed.store.take(Kind::Session, "a").await.unwrap(), Taken::Absent);
}

pub(crate) async fn one_of_many_takes_is_fresh(bed: Bed) {
    bed.put("a", 0, "once").await;
    let takes = (0..50).map(|_| {
        let store = Arc::clone(&bed.store);
        tokio::spawn(async move { store.take(Kind::Session, "a").await.unwrap() })
    });
    let (mut fresh, mut spent) = (0, 0);
    for take in takes.collect::<Vec<_>>() {
        match take.await.unwrap() {
            Taken::Fresh(_) => fresh += 1,
            Taken::Spent(_) => spent += 1,
            Taken::Absent => {}
        }
    }
    assert_eq!((fresh, spent), (1, 49));
}

pub(crate) async fn records_end_with_their_time(bed: Bed) {
    bed.put("a", 0, "one").await;
    bed.clock.advance(HOUR - Duration::from_millis(1));
    assert!(bed.get("a").await.is_some());
    bed.clock.advance(Duration::from_millis(1));
    assert_eq!(bed.get("a").await, None);
    assert_eq!(bed.store.scan(Kind::Session).await.unwrap(), Vec::new());
    assert_eq!(bed.put("a", 1, "late").await, Put::Conflict);
    assert_eq!(bed.put("a", 0, "new").await, Put::Stored);
    assert_eq!(bed.get("a").await, Some((1, "new".to_owned())));
}

pub(crate) async fn a_new_value_has_a_new_end(bed: Bed) {
    bed.put("a", 0, "one").await;
    bed.clock.advance(HOUR / 2);
    bed.put("a", 1, "two").await;
    bed.clock.advance(HOUR / 2);
    bed.store.sweep().await.unwrap();
    assert_eq!(bed.get("a").await, Some((2, "two".to_owned())));
    bed.clock.advance(HOUR / 2);
    assert_eq!(bed.get("a").await, None);
}

pub(crate) async fn remove_starts_over(bed: Bed) {
    bed.store.remove(Kind::Session, "a").await.unwrap();
    bed.put("a", 0, "one").await;
    bed.put("a", 1, "two").await;
    bed.store.remove(Kind::Session, "a").await.unwrap();
    assert_eq!(bed.get("a").await, None);
    assert_eq!(bed.put("a", 0, "anew").await, Put::Stored);
    assert_eq!(bed.get("a").await, Some((1, "anew".to_owned())));
}

pub(crate) async fn tombstones_refuse_until_they_end(bed: Bed) {
    bed.put("a", 0, "one").await;
    bed.store.tombstone(Kind::Session, "a", HOUR).await.unwrap();
    bed.store.tombstone(Kind::Session, "never", HOUR).await.unwrap();
    bed.store.tombstone(Kind::Grant, "other", HOUR).await.unwrap();
    for expected in 0..3 {
        assert_eq!(bed.put("a", expected, "back").await, Put::Conflict);
    }
    bed.store.remove(Kind::Session, "a").await.unwrap();
    assert_eq!(bed.put("a", 0, "back").await, Put::Conflict);
    assert_eq!(bed.get("a").await, None);
    assert_eq!(bed.store.take(Kind::Session, "a").await.unwrap(), Taken::Absent);
    assert_eq!(bed.store.scan(Kind::Session).await.unwrap(), Vec::new());
    let mut keys = bed.store.tombstones(Kind::Session).await.unwrap();
    keys.sort();
    assert_eq!(keys, ["a", "never"]);
    bed.clock.advance(HOUR);
    assert!(bed.store.tombstones(Kind::Session).await.unwrap().is_empty());
    assert_eq!(bed.put("a", 0, "back").await, Put::Stored);
}

pub(crate) async fn tombstones_only_get_longer(bed: Bed) {
    bed.store.tombstone(Kind::Session, "a", HOUR).await.unwrap();
    bed.store.tombstone(Kind::Session, "a", HOUR / 60).await.unwrap();
    bed.clock.advance(HOUR / 2);
    assert_eq!(bed.put("a", 0, "back").await, Put::Conflict);
    bed.store.tombstone(Kind::Session, "a", HOUR).await.unwrap();
    bed.clock.advance(HOUR - Duration::from_millis(1));
    assert_eq!(bed.put("a", 0, "back").await, Put::Conflict);
}

pub(crate) async fn scan_lists_what_lives(bed: Bed) {
    for key in ["a", "b", "c"] {
        bed.put(key, 0, key).await;
    }
    bed.store.take(Kind::Session, "b").await.unwrap();
    bed.store.remove(Kind::Session, "c").await.unwrap();
    let mut rows = bed.store.scan(Kind::Session).await.unwrap();
    rows.sort_by(|one, other| one.0.cmp(&other.0));
    let rows: Vec<_> = rows.iter().map(|(key, stored)| (key.as_str(), stored.spent)).collect();
    assert_eq!(rows, [("a", false), ("b", true)]);
}

pub(crate) async fn sweep_deletes_what_has_ended(bed: Bed) {
    for number in 0..60 {
        bed.put(&number.to_string(), 0, "short").await;
    }
    bed.store.tombstone(Kind::Session, "grave", HOUR).await.unwrap();
    bed.store.connect("c", "inc", value("x"), HOUR).await.unwrap();
    bed.store.put(Kind::Session, "long", 0, value("long"), 2 * HOUR).await.unwrap();
    assert_eq!(bed.store.sweep().await.unwrap(), 0);
    bed.clock.advance(HOUR);
    bed.store.sweep().await.unwrap();
    assert_eq!(bed.store.sweep().await.unwrap(), 0);
    assert_eq!(bed.get("long").await, Some((1, "long".to_owned())));
    assert_eq!(bed.put("5", 0, "anew").await, Put::Stored);
}

pub(crate) async fn changes_are_told(bed: Bed) {
    let mut changes = bed.store.subscribe();
    bed.put("a", 0, "one").await;
    bed.put("a", 0, "conflict").await;
    bed.store.remove(Kind::Session, "a").await.unwrap();
    // Refreshed twice, which is no news, and ended.
    for version in 0..3 {
        bed.store.put(Kind::Grant, "g", version, b"grant".to_vec(), HOUR).await.unwrap();
    }
    bed.store.tombstone(Kind::Grant, "g", HOUR).await.unwrap();
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    bed.commit("inc", 1, "one", fence, "second").await;
    bed.commit("inc", 1, "stale", fence, "third").await;
    bed.refuse("inc", 2).await;
    bed.connect("inc2").await;
    let fence = bed.own("two", 1).await;
    bed.store.release("c", "two", fence, Release::NeedsReauth).await.unwrap();
    bed.put("end", 0, "end").await;

    // Those of one key come in order, those of different keys in any.
    let mut heard = Vec::new();
    while heard.len() < 10 {
        match changes.recv().await.unwrap() {
            Change::Of { kind, key } => heard.push((kind, key)),
            Change::Missed => panic!("nothing was missed"),
        }
    }
    // Connect, commit, refuse, connect, release.
    let mut expected = vec![(Kind::Connection, "c".to_owned()); 5];
    expected.extend([(Kind::Session, "a"), (Kind::Session, "a")].map(|(kind, key)| (kind, key.to_owned())));
    expected.extend(
        [(Kind::Grant, "g"), (Kind::Grant, "g"), (Kind::Session, "end")]
            .map(|(kind, key)| (kind, key.to_owned())),
    );
    heard.sort();
    expected.sort();
    assert_eq!(heard, expected);
    assert!(changes.is_empty(), "nothing is told twice");
}

pub(crate) async fn values_and_keys_have_a_limit(bed: Bed) {
    let put = async |key: &str, length: usize| {
        bed.store.put(Kind::Grant, key, 0, vec![7; length], HOUR).await.map(|_| ())
    };
    assert!(put("largest", VALUE_MAX).await.is_ok());
    assert!(matches!(put("larger", VALUE_MAX + 1).await, Err(StoreError::TooLarge)));
    assert!(put(&"k".repeat(KEY_MAX), 1).await.is_ok());
    assert!(matches!(put(&"k".repeat(KEY_MAX + 1), 1).await, Err(StoreError::TooLarge)));
    let connected = bed.store.connect("c", "inc", vec![7; VALUE_MAX + 1], HOUR).await;
    assert!(matches!(connected, Err(StoreError::TooLarge)));
}

pub(crate) async fn reseal_keeps_version_and_end(bed: Bed) {
    bed.put("a", 0, "old").await;
    bed.clock.advance(HOUR / 2);
    let reseal = async |kind: Kind, key: &str, old: &str, new: &str| {
        bed.store.reseal(kind, key, old.as_bytes(), value(new)).await.unwrap()
    };
    assert!(!reseal(Kind::Session, "a", "other", "new").await);
    assert!(!reseal(Kind::Session, "absent", "", "new").await);
    assert!(reseal(Kind::Session, "a", "old", "new").await);
    assert!(!reseal(Kind::Session, "a", "old", "again").await);
    let stored = bed.store.get(Kind::Session, "a").await.unwrap().unwrap();
    assert_eq!((stored.version, stored.value, stored.spent), (1, value("new"), false));
    assert_eq!(stored.expires_at, bed.clock.now() + HOUR / 2);
    // A connection keeps its lease.
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    assert!(reseal(Kind::Connection, "c", "first", "first again").await);
    assert_eq!(bed.connection().await.sealed, value("first again"));
    assert_eq!(bed.commit("inc", 1, "one", fence, "second").await, Committed::Stored { generation: 2 });
    bed.store.tombstone(Kind::Session, "a", HOUR).await.unwrap();
    assert!(!reseal(Kind::Session, "a", "new", "back").await);
}

pub(crate) async fn rows_move_to_another_store(bed: Bed) {
    bed.put("a", 0, "one").await;
    bed.put("a", 1, "two").await;
    bed.put("spent", 0, "once").await;
    bed.store.take(Kind::Session, "spent").await.unwrap();
    bed.store.tombstone(Kind::Session, "grave", HOUR).await.unwrap();
    let mut rows = bed.store.rows(Kind::Session).await.unwrap();
    rows.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(rows.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["a", "grave", "spent"]);
    // Under other keys of the same store, which is as good as another.
    for (key, row) in rows {
        let key = format!("moved-{key}");
        assert!(bed.store.restore(Kind::Session, &key, row.clone()).await.unwrap());
        assert!(!bed.store.restore(Kind::Session, &key, row).await.unwrap(), "it is there");
    }
    assert_eq!(bed.get("moved-a").await, Some((2, "two".to_owned())));
    // What came later on either side counts.
    let of = async |key: &str| {
        let rows = bed.store.rows(Kind::Session).await.unwrap();
        rows.into_iter().find(|(found, _)| found == key).unwrap().1
    };
    let older = of("a").await;
    bed.put("a", 2, "three").await;
    assert!(bed.store.restore(Kind::Session, "moved-a", of("a").await).await.unwrap());
    assert_eq!(bed.get("moved-a").await, Some((3, "three".to_owned())));
    assert!(!bed.store.restore(Kind::Session, "moved-a", older.clone()).await.unwrap());
    bed.store.tombstone(Kind::Session, "moved-a", HOUR).await.unwrap();
    assert!(!bed.store.restore(Kind::Session, "moved-a", older).await.unwrap(), "revoked stays revoked");
    assert!(matches!(bed.store.take(Kind::Session, "moved-spent").await.unwrap(), Taken::Spent(_)));
    assert_eq!(bed.put("moved-grave", 0, "back").await, Put::Conflict);
    let tombstones = bed.store.tombstones(Kind::Session).await.unwrap();
    assert!(tombstones.contains(&"moved-grave".to_owned()) && tombstones.contains(&"moved-a".to_owned()));
}

pub(crate) async fn connect_begins_and_replaces(bed: Bed) {
    assert_eq!(bed.store.connection("c").await.unwrap(), None);
    bed.connect("inc").await;
    let first = bed.connection().await;
    assert_eq!((first.generation, first.state), (1, State::Active));
    assert!(first.fence > 0);
    assert_eq!((first.incarnation.as_str(), first.sealed.as_slice()), ("inc", &b"first"[..]));
    assert_eq!((&first.attempt, first.not_before), (&None, None));

    bed.refuse("inc", 1).await;
    bed.connect("inc2").await;
    let second = bed.connection().await;
    assert_eq!((second.generation, second.state), (1, State::Active));
    assert!(second.fence > first.fence);

    bed.store.tombstone(Kind::Connection, "c", HOUR).await.unwrap();
    assert_eq!(bed.store.connection("c").await.unwrap(), None);
    assert_eq!(bed.acquire("x", 1).await, Acquired::Absent);
    bed.connect("inc3").await;
    let third = bed.connection().await;
    assert_eq!((third.incarnation.as_str(), third.state), ("inc3", State::Active));
    assert!(third.fence > second.fence);
    assert!(bed.store.tombstones(Kind::Connection).await.unwrap().is_empty());
}

pub(crate) async fn connections_change_by_leases_only(bed: Bed) {
    bed.connect("inc").await;
    for expected in 0..3 {
        let put = bed.store.put(Kind::Connection, "c", expected, value("x"), HOUR).await.unwrap();
        assert_eq!(put, Put::Conflict);
    }
    assert_eq!(bed.store.take(Kind::Connection, "c").await.unwrap(), Taken::Absent);
    let view = bed.store.get(Kind::Connection, "c").await.unwrap().unwrap();
    assert_eq!((view.version, view.value, view.spent), (1, value("first"), false));
    bed.store.remove(Kind::Connection, "c").await.unwrap();
    assert_eq!(bed.store.connection("c").await.unwrap(), None);
}

pub(crate) async fn acquire_has_one_owner(bed: Bed) {
    assert_eq!(bed.acquire("one", 0).await, Acquired::Absent);
    bed.connect("inc").await;
    let before = bed.connection().await.fence;
    let Acquired::Owner { connection, takeover } = bed.acquire("one", 1).await else { panic!() };
    assert_eq!((takeover, connection.state), (None, State::Refreshing));
    assert!(connection.fence > before);
    let attempt = connection.attempt.clone().unwrap();
    assert_eq!((attempt.id.as_str(), attempt.fence), ("one", connection.fence));
    assert_eq!(attempt.phase, Phase::Intent);
    assert_eq!(attempt.lease_until, bed.clock.now() + LEASE);
    // The intent is durable, not only answered.
    assert_eq!(bed.connection().await, connection);
    assert_eq!(bed.acquire("two", 1).await, Acquired::Wait { left: LEASE });
}

pub(crate) async fn one_of_many_acquires_owns(bed: Bed) {
    bed.connect("inc").await;
    let acquires = (0..50).map(|number: u32| {
        let store = Arc::clone(&bed.store);
        tokio::spawn(async move { store.acquire("c", &number.to_string(), 1, LEASE).await.unwrap() })
    });
    let (mut owners, mut waiting) = (0, 0);
    for acquire in acquires.collect::<Vec<_>>() {
        match acquire.await.unwrap() {
            Acquired::Owner { .. } => owners += 1,
            Acquired::Wait { .. } => waiting += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((owners, waiting), (1, 49));
}

pub(crate) async fn a_lost_answer_is_repeated(bed: Bed) {
    bed.connect("inc").await;
    let first = bed.acquire("one", 1).await;
    assert_eq!(bed.acquire("one", 1).await, first);
    let before = bed.connection().await.fence;
    bed.clock.advance(LEASE);
    // Its own lease is over: a new acquisition like anybody's.
    let Acquired::Owner { connection, takeover } = bed.acquire("one", 1).await else { panic!() };
    assert_eq!(takeover, Some(Phase::Intent));
    assert!(connection.fence > before);
}

pub(crate) async fn newer_generations_are_adopted(bed: Bed) {
    bed.connect("inc").await;
    assert!(matches!(bed.acquire("one", 0).await, Acquired::Fresh(found) if found.generation == 1));
    let fence = bed.own("one", 1).await;
    // Under way or not, what is newer than the unwanted one is good.
    assert!(matches!(bed.acquire("two", 0).await, Acquired::Fresh(_)));
    bed.commit("inc", 1, "one", fence, "second").await;
    let Acquired::Fresh(found) = bed.acquire("two", 1).await else { panic!() };
    assert_eq!((found.generation, found.sealed), (2, value("second")));
    bed.own("two", 2).await;
}

pub(crate) async fn a_dead_lease_is_taken_over(bed: Bed) {
    bed.connect("inc").await;
    let dead = bed.own("dead", 1).await;
    bed.clock.advance(LEASE - Duration::from_millis(1));
    assert!(matches!(bed.acquire("heir", 1).await, Acquired::Wait { .. }));
    bed.clock.advance(Duration::from_millis(1));
    let Acquired::Owner { connection, takeover } = bed.acquire("heir", 1).await else { panic!() };
    assert_eq!(takeover, Some(Phase::Intent));
    assert!(connection.fence > dead);
    assert!(!bed.store.sent("c", "dead", dead).await.unwrap());
    assert_eq!(bed.release("dead", dead, Release::NeedsReauth).await, Released::Stale);
    assert_eq!(bed.connection().await, connection);
}

pub(crate) async fn a_sent_token_stays_sent_over_takeovers(bed: Bed) {
    bed.connect("inc").await;
    let first = bed.own("first", 1).await;
    assert!(bed.store.sent("c", "first", first).await.unwrap());
    bed.clock.advance(LEASE);
    let Acquired::Owner { takeover, .. } = bed.acquire("second", 1).await else { panic!() };
    assert_eq!(takeover, Some(Phase::Sent));
    // The second dies before it sends; the first one's answer is still missing.
    bed.clock.advance(LEASE);
    let Acquired::Owner { connection, takeover } = bed.acquire("third", 1).await else { panic!() };
    assert_eq!(takeover, Some(Phase::Sent));
    // A clean failure of the third does not clear it either.
    let wait = Duration::ZERO;
    let released = bed.release("third", connection.fence, Release::Transient { wait }).await;
    assert_eq!(released, Released::Done);
    assert_eq!(bed.connection().await.state, State::Ambiguous);
    let Acquired::Owner { takeover, .. } = bed.acquire("fourth", 1).await else { panic!() };
    assert_eq!(takeover, Some(Phase::Sent));
}

pub(crate) async fn sent_needs_a_living_lease(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    assert!(!bed.store.sent("c", "one", fence + 1).await.unwrap());
    assert!(!bed.store.sent("c", "two", fence).await.unwrap());
    assert!(bed.store.sent("c", "one", fence).await.unwrap());
    assert!(bed.store.sent("c", "one", fence).await.unwrap());
    assert_eq!(bed.connection().await.attempt.unwrap().phase, Phase::Sent);
    bed.clock.advance(LEASE);
    assert!(!bed.store.sent("c", "one", fence).await.unwrap());
    assert!(!bed.store.sent("absent", "one", fence).await.unwrap());
}

pub(crate) async fn commit_makes_a_generation(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    bed.store.sent("c", "one", fence).await.unwrap();
    // Late, but nobody took over: the tokens are saved.
    bed.clock.advance(LEASE + LEASE);
    assert_eq!(bed.commit("inc", 1, "one", fence, "second").await, Committed::Stored { generation: 2 });
    let connection = bed.connection().await;
    assert_eq!((connection.generation, connection.state), (2, State::Active));
    assert_eq!((connection.sealed, connection.attempt), (value("second"), None));
    bed.clock.advance(HOUR - Duration::from_millis(1));
    assert!(bed.store.connection("c").await.unwrap().is_some());
}

pub(crate) async fn commit_may_be_repeated(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    for _ in 0..3 {
        assert_eq!(bed.commit("inc", 1, "one", fence, "second").await, Committed::Stored { generation: 2 });
    }
    assert_eq!(bed.connection().await.generation, 2);
    let next = bed.own("two", 2).await;
    assert_eq!(bed.commit("inc", 1, "one", fence, "second").await, Committed::Stale);
    assert_eq!(bed.commit("inc", 2, "two", next, "third").await, Committed::Stored { generation: 3 });
}

pub(crate) async fn stale_commits_change_nothing(bed: Bed) {
    assert_eq!(bed.commit("inc", 1, "one", 1, "x").await, Committed::Gone);
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    bed.commit("inc", 1, "one", fence, "second").await;
    let fence = bed.own("two", 2).await;
    let before = bed.connection().await;
    for (incarnation, generation) in [("other", 2), ("inc", 0)] {
        assert_eq!(bed.commit(incarnation, generation, "two", fence, "x").await, Committed::Stale);
    }
    assert_eq!(bed.connection().await, before);
}

pub(crate) async fn a_late_commit_is_taken_while_nobody_has_sent(bed: Bed) {
    for (round, heir) in ["nobody", "intent", "released", "dead"].into_iter().enumerate() {
        let incarnation = format!("inc{round}");
        bed.connect(&incarnation).await;
        let late = bed.own("late", 1).await;
        assert!(bed.store.sent("c", "late", late).await.unwrap());
        bed.clock.advance(LEASE);
        if heir != "nobody" {
            let fence = bed.own("heir", 1).await;
            let wait = SOON;
            match heir {
                "released" => {
                    bed.release("heir", fence, Release::Transient { wait }).await;
                }
                "dead" => {
                    bed.store.sent("c", "heir", fence).await.unwrap();
                    bed.release("heir", fence, Release::NeedsReauth).await;
                    assert_eq!(bed.connection().await.state, State::NeedsReauth);
                }
                _ => {}
            }
        }
        let before = bed.connection().await.fence;
        assert_eq!(
            bed.commit(&incarnation, 1, "late", late, "new").await,
            Committed::Stored { generation: 2 }
        );
        assert_eq!(
            bed.commit(&incarnation, 1, "late", late, "new").await,
            Committed::Stored { generation: 2 }
        );
        let connection = bed.connection().await;
        assert_eq!(
            (connection.state, connection.sealed, connection.fence),
            (State::Active, value("new"), before)
        );
        // Whoever was about to send the old token must not.
        assert!(!bed.store.sent("c", "heir", before).await.unwrap(), "{heir}");
    }
}

pub(crate) async fn an_orphan_replaces_what_turns_out_dead(bed: Bed) {
    for (round, end) in ["dead", "ambiguous", "gone", "commits"].into_iter().enumerate() {
        let incarnation = format!("inc{round}");
        bed.connect(&incarnation).await;
        let late = bed.own("late", 1).await;
        bed.store.sent("c", "late", late).await.unwrap();
        bed.clock.advance(LEASE);
        let heir = bed.own("heir", 1).await;
        assert!(bed.store.sent("c", "heir", heir).await.unwrap());
        assert_eq!(bed.commit(&incarnation, 1, "late", late, "orphan").await, Committed::Orphaned);
        assert_eq!(bed.connection().await.sealed, value("first"), "not in force yet");
        let (wait, expected) = (SOON, if end == "commits" { "heir's" } else { "orphan" });
        match end {
            "dead" => {
                assert_eq!(bed.release("heir", heir, Release::NeedsReauth).await, Released::Rescued);
            }
            "ambiguous" => {
                let released = bed.release("heir", heir, Release::Ambiguous { wait }).await;
                assert_eq!(released, Released::Rescued);
            }
            "gone" => {
                bed.clock.advance(LEASE);
                assert!(
                    matches!(bed.acquire("third", 1).await, Acquired::Fresh(found) if found.generation == 2)
                );
            }
            _ => {
                let committed = bed.commit(&incarnation, 1, "heir", heir, "heir's").await;
                assert_eq!(committed, Committed::Stored { generation: 2 });
            }
        }
        let connection = bed.connection().await;
        assert_eq!((connection.generation, connection.state), (2, State::Active), "{end}");
        assert_eq!((connection.sealed, connection.orphan), (value(expected), None), "{end}");
    }
}

pub(crate) async fn of_two_orphans_the_one_that_asked_last_counts(bed: Bed) {
    bed.connect("inc").await;
    let mut fences = Vec::new();
    for id in ["first", "second", "third"] {
        let fence = bed.own(id, 1).await;
        bed.store.sent("c", id, fence).await.unwrap();
        fences.push(fence);
        bed.clock.advance(LEASE);
    }
    let heir = bed.own("heir", 1).await;
    bed.store.sent("c", "heir", heir).await.unwrap();
    assert_eq!(bed.commit("inc", 1, "second", fences[1], "second's").await, Committed::Orphaned);
    assert_eq!(bed.commit("inc", 1, "third", fences[2], "third's").await, Committed::Orphaned);
    assert_eq!(bed.commit("inc", 1, "first", fences[0], "first's").await, Committed::Orphaned);
    assert_eq!(bed.release("heir", heir, Release::NeedsReauth).await, Released::Rescued);
    assert_eq!(bed.connection().await.sealed, value("third's"));
}

pub(crate) async fn of_two_answers_the_one_that_was_asked_for_later_counts(bed: Bed) {
    for end in ["in force", "underway", "asked first"] {
        bed.connect(end).await;
        let mut fences = Vec::new();
        for id in ["first", "second"] {
            let fence = bed.own(id, 1).await;
            assert!(bed.store.sent("c", id, fence).await.unwrap());
            fences.push(fence);
            bed.clock.advance(LEASE);
        }
        bed.own("third", 1).await;
        let (early, late) = if end == "asked first" { (1, 0) } else { (0, 1) };
        let ids = ["first", "second"];
        let stored = Committed::Stored { generation: 2 };
        assert_eq!(bed.commit(end, 1, ids[early], fences[early], ids[early]).await, stored);
        bed.store.refuse("c", end, 2, Refusal::Renewable).await.unwrap();
        if end == "underway" {
            let fence = bed.own("fourth", 2).await;
            bed.store.sent("c", "fourth", fence).await.unwrap();
            assert_eq!(bed.commit(end, 1, "second", fences[1], "second").await, Committed::Orphaned);
            assert_eq!(bed.release("fourth", fence, Release::NeedsReauth).await, Released::Rescued);
        } else {
            let committed = bed.commit(end, 1, ids[late], fences[late], ids[late]).await;
            assert_eq!(committed, if late == 1 { stored } else { Committed::Stale });
        }
        let connection = bed.connection().await;
        assert_eq!((connection.generation, connection.state), (2, State::Active), "{end}");
        assert_eq!(connection.sealed, value("second"), "{end}");
        assert_eq!(connection.refused, if end == "asked first" { 2 } else { 1 }, "{end}");
    }
}

pub(crate) async fn what_a_failover_took_back_is_asserted_again(bed: Bed) {
    // The record as an older replica has it; the acquisitions and commits since are lost.
    bed.connect("inc").await;
    let fence = bed.connection().await.fence + 4;
    assert_eq!(bed.commit("inc", 3, "five", fence, "fourth").await, Committed::Stored { generation: 4 });
    let connection = bed.connection().await;
    assert_eq!((connection.generation, connection.fence, connection.sealed), (4, fence, value("fourth")));
    // An earlier one, asserted by another instance, comes too late.
    assert_eq!(bed.commit("inc", 2, "four", fence - 1, "third").await, Committed::Stale);
    assert_eq!(bed.connection().await.sealed, value("fourth"));
}

pub(crate) async fn what_a_failover_took_back_keeps_its_generation_beside(bed: Bed) {
    for end in ["dead", "takeover", "owner commits"] {
        bed.connect(end).await;
        let lost = bed.connection().await.fence + 4;
        bed.clock.advance(Duration::from_secs(1));
        let fence = bed.own("heir", 1).await;
        assert!(fence > lost, "given after the failover");
        assert!(bed.store.sent("c", "heir", fence).await.unwrap());
        assert_eq!(bed.commit(end, 2, "three", lost, "third").await, Committed::Orphaned);
        assert_eq!(bed.commit(end, 1, "two", lost - 1, "second").await, Committed::Orphaned);
        match end {
            "dead" => {
                assert_eq!(bed.release("heir", fence, Release::NeedsReauth).await, Released::Rescued);
            }
            "takeover" => {
                bed.clock.advance(LEASE);
                assert!(
                    matches!(bed.acquire("next", 2).await, Acquired::Fresh(found) if found.generation == 3)
                );
            }
            _ => assert_eq!(bed.commit(end, 1, "heir", fence, "again").await, Committed::Stale),
        }
        let connection = bed.connection().await;
        assert_eq!((connection.generation, connection.state), (3, State::Active), "{end}");
        assert_eq!((connection.sealed, connection.orphan), (value("third"), None), "{end}");
    }
}

pub(crate) async fn a_lost_tombstone_is_made_again_and_spares_what_came_after(bed: Bed) {
    let bury = async |kind: Kind, key: &str, tombstone: &Tombstone| {
        bed.store.bury(kind, key, tombstone, HOUR).await.unwrap()
    };
    bed.connect("inc").await;
    let before = bed.connection().await.fence;
    let tombstone = bed.store.tombstone(Kind::Connection, "c", HOUR).await.unwrap();
    assert!(tombstone.fence > before);
    assert_eq!(tombstone.incarnation.as_deref(), Some("inc"));
    assert!(!bury(Kind::Connection, "c", &tombstone).await, "it is there");
    let again = bed.store.tombstone(Kind::Connection, "c", HOUR).await.unwrap();
    assert_eq!(again.incarnation.as_deref(), Some("inc"));
    bed.connect("inc2").await;
    assert!(!bury(Kind::Connection, "c", &again).await, "the user came back");
    assert_eq!(bed.connection().await.incarnation, "inc2");
    let lost = Tombstone { fence: bed.connection().await.fence + 3, incarnation: None };
    assert!(bury(Kind::Connection, "c", &lost).await);
    assert_eq!(bed.store.connection("c").await.unwrap(), None);
    assert!(bury(Kind::Grant, "forgotten", &Tombstone { fence: 1, incarnation: None }).await);
    assert_eq!(bed.store.tombstones(Kind::Grant).await.unwrap(), ["forgotten"]);
    bed.connect("inc3").await;
    assert!(bed.connection().await.fence > lost.fence);
}

pub(crate) async fn a_lost_tombstone_ends_its_connection_however_far_it_has_got(bed: Bed) {
    bed.connect("inc").await;
    // As after a failover that lost the tombstone: refreshed since, with a higher fence.
    let lost = Tombstone { fence: bed.connection().await.fence + 1, incarnation: Some("inc".to_owned()) };
    bed.clock.advance(LEASE);
    let fence = bed.own("one", 1).await;
    assert!(fence > lost.fence);
    bed.commit("inc", 1, "one", fence, "second").await;
    let next = bed.own("two", 2).await;
    bed.store.sent("c", "two", next).await.unwrap();
    assert!(bed.store.bury(Kind::Connection, "c", &lost, HOUR).await.unwrap());
    assert_eq!(bed.store.connection("c").await.unwrap(), None);
    assert_eq!(bed.commit("inc", 2, "two", next, "third").await, Committed::Gone);
    bed.connect("inc2").await;
    assert!(bed.connection().await.fence > next);
    assert!(!bed.store.bury(Kind::Connection, "c", &lost, HOUR).await.unwrap(), "that is another one");
}

pub(crate) async fn a_refused_token_is_remembered_and_may_be_renewed(bed: Bed) {
    bed.connect("inc").await;
    assert!(bed.store.refuse("c", "inc", 1, Refusal::Renewable).await.unwrap());
    let connection = bed.connection().await;
    assert_eq!((connection.state, connection.refused), (State::Active, 1));
    let fence = bed.own("one", 1).await;
    bed.commit("inc", 1, "one", fence, "second").await;
    assert!(!bed.store.refuse("c", "inc", 1, Refusal::Renewable).await.unwrap());
    assert_eq!(bed.connection().await.refused, 1);
}

pub(crate) async fn disconnecting_refuses_the_commit_under_way(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    bed.store.sent("c", "one", fence).await.unwrap();
    bed.store.tombstone(Kind::Connection, "c", HOUR).await.unwrap();
    assert_eq!(bed.commit("inc", 1, "one", fence, "late").await, Committed::Gone);
    assert!(!bed.store.sent("c", "one", fence).await.unwrap());
    assert_eq!(bed.store.connection("c").await.unwrap(), None);
    assert_eq!(bed.store.tombstones(Kind::Connection).await.unwrap(), ["c"]);
}

pub(crate) async fn reconnecting_refuses_the_commit_under_way(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    bed.connect("inc2").await;
    assert_eq!(bed.commit("inc", 1, "one", fence, "late").await, Committed::Stale);
    assert_eq!(bed.release("one", fence, Release::NeedsReauth).await, Released::Stale);
    assert!(!bed.refuse("inc", 1).await);
    assert_eq!(bed.connection().await.state, State::Active);
}

pub(crate) async fn transient_release_backs_off(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    assert_eq!(bed.release("one", fence, Release::Transient { wait: SOON }).await, Released::Done);
    assert_eq!(bed.release("one", fence, Release::NeedsReauth).await, Released::Stale);
    let connection = bed.connection().await;
    assert_eq!((connection.state, connection.generation), (State::Active, 1));
    assert_eq!(bed.acquire("two", 1).await, Acquired::Backoff { left: SOON });
    assert!(matches!(bed.acquire("two", 0).await, Acquired::Fresh(_)));
    bed.clock.advance(Duration::from_secs(30));
    let Acquired::Owner { takeover, .. } = bed.acquire("two", 1).await else { panic!() };
    assert_eq!(takeover, None);
}

pub(crate) async fn ambiguous_release_is_remembered(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    bed.store.sent("c", "one", fence).await.unwrap();
    assert_eq!(bed.release("one", fence, Release::Ambiguous { wait: SOON }).await, Released::Done);
    assert_eq!(bed.connection().await.state, State::Ambiguous);
    assert_eq!(bed.acquire("two", 1).await, Acquired::Backoff { left: SOON });
    bed.clock.advance(Duration::from_secs(30));
    let Acquired::Owner { connection, takeover } = bed.acquire("two", 1).await else { panic!() };
    assert_eq!(takeover, Some(Phase::Sent));
    bed.commit("inc", 1, "two", connection.fence, "saved").await;
    assert_eq!(bed.connection().await.state, State::Active);
}

pub(crate) async fn a_dead_grant_needs_the_user(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    assert_eq!(bed.release("one", fence, Release::NeedsReauth).await, Released::Done);
    assert_eq!(bed.connection().await.state, State::NeedsReauth);
    for newer_than in [0, 1, 2] {
        assert_eq!(bed.acquire("two", newer_than).await, Acquired::NeedsReauth);
    }
}

pub(crate) async fn refusal_names_a_generation(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    bed.commit("inc", 1, "one", fence, "second").await;
    assert!(!bed.refuse("inc", 1).await);
    assert!(!bed.refuse("other", 2).await);
    assert!(!bed.store.refuse("absent", "inc", 2, Refusal::Final).await.unwrap());
    assert_eq!(bed.connection().await.state, State::Active);
    assert!(bed.refuse("inc", 2).await);
    assert_eq!(bed.acquire("two", 2).await, Acquired::NeedsReauth);
}

pub(crate) async fn refusal_lets_a_refresh_under_way_finish(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    assert!(bed.refuse("inc", 1).await);
    assert!(bed.store.sent("c", "one", fence).await.unwrap());
    assert_eq!(bed.commit("inc", 1, "one", fence, "second").await, Committed::Stored { generation: 2 });
    assert_eq!(bed.connection().await.state, State::Active);

    // Without a new token the refused one stays refused.
    let fence = bed.own("two", 2).await;
    assert!(bed.refuse("inc", 2).await);
    let wait = Duration::ZERO;
    assert_eq!(bed.release("two", fence, Release::Transient { wait }).await, Released::Done);
    assert_eq!(bed.connection().await.state, State::NeedsReauth);

    // Nor does it hide what has been kept beside.
    bed.connect("inc2").await;
    let late = bed.own("late", 1).await;
    bed.store.sent("c", "late", late).await.unwrap();
    bed.clock.advance(LEASE);
    let heir = bed.own("heir", 1).await;
    bed.store.sent("c", "heir", heir).await.unwrap();
    assert_eq!(bed.commit("inc2", 1, "late", late, "orphan").await, Committed::Orphaned);
    assert!(bed.refuse("inc2", 1).await);
    bed.clock.advance(LEASE);
    assert!(matches!(bed.acquire("third", 1).await, Acquired::Fresh(found) if found.generation == 2));
}

pub(crate) async fn fences_never_go_back(bed: Bed) {
    let mut seen = HashSet::new();
    let mut last = 0;
    for round in 0..10 {
        let incarnation = format!("inc{round}");
        bed.connect(&incarnation).await;
        for (number, end) in ["commit", "release", "die"].into_iter().enumerate() {
            let generation = bed.connection().await.generation;
            let id = format!("{round}-{number}");
            let fence = bed.own(&id, generation).await;
            assert!(fence > last && seen.insert(fence));
            last = fence;
            match end {
                "commit" => {
                    bed.commit(&incarnation, generation, &id, fence, "x").await;
                }
                "release" => {
                    let wait = Duration::ZERO;
                    bed.store.release("c", &id, fence, Release::Transient { wait }).await.unwrap();
                }
                _ => bed.clock.advance(LEASE),
            }
        }
        if round % 2 == 0 {
            bed.store.tombstone(Kind::Connection, "c", HOUR).await.unwrap();
        }
    }
}

pub(crate) async fn connections_end_with_their_time(bed: Bed) {
    bed.connect("inc").await;
    let fence = bed.own("one", 1).await;
    bed.clock.advance(HOUR);
    assert_eq!(bed.store.connection("c").await.unwrap(), None);
    assert_eq!(bed.acquire("two", 1).await, Acquired::Absent);
    assert_eq!(bed.commit("inc", 1, "one", fence, "late").await, Committed::Gone);
}
