//! What only the file on disk can show. The promises of the trait are in [`crate::store::suite`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;

use redb::Database;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use std::time::Duration;

use super::*;
use crate::seal::{Sealer, SealingKey};
use crate::store::record::{RecordError, Records, Take, Tokens, Typed};
use crate::store::suite::{Bed, clock, store_suite};
use crate::store::{Acquired, Committed, Store};

mod damaged;
mod disk;
mod full;
mod killed;
mod life;
mod model;
mod passed;
mod power;
mod story;

use disk::Disk;

const HOUR: Duration = Duration::from_secs(3600);
/// Old kernels tell the times of files apart by some milliseconds.
const TICK: Duration = Duration::from_millis(20);

fn bed() -> Bed {
    let data_dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = Embedded::open(data_dir.path(), clock.clone()).unwrap();
    Bed { store: Arc::new(store), clock, _keep: Box::new(data_dir) }
}

store_suite!(bed);

/// A process that runs one of these tests. It finds `value` in the environment variable `name`, without which it has
/// nothing to do; so it does no harm among the others.
fn alone(program: &mut Command, test: &str, name: &str, value: &Path) {
    program.args(["--nocapture", "--exact", &format!("store::embedded::tests::{test}")]).env(name, value);
}

/// Whether tests take their time.
fn soak() -> bool {
    std::env::var_os("POSTERN_SOAK").is_some_and(|soak| soak == "1")
}

/// The store on a disk that has one.
fn on(disk: &Disk, clock: Clock) -> Result<Embedded, OpenError> {
    let reopen = reopen_on(disk);
    let database = reopen()?;
    start(database, reopen, clock)
}

/// A new disk with a new store.
fn on_new_disk(clock: Clock) -> (Disk, Embedded) {
    let disk = Disk::of(Vec::new());
    let reopen = reopen_on(&disk);
    let database = reopen().unwrap();
    file::begin(Path::new("disk"), &database).unwrap();
    disk.begins_here();
    (disk, start(database, reopen, clock).unwrap())
}

fn reopen_on(disk: &Disk) -> impl Fn() -> Result<Database, OpenError> + Send + Sync + 'static {
    let disk = disk.clone();
    move || file::opened(Path::new("disk"), |builder| builder.create_with_backend(disk.clone()))
}

fn start(
    database: Database,
    reopen: impl Fn() -> Result<Database, OpenError> + Send + Sync + 'static,
    clock: Clock,
) -> Result<Embedded, OpenError> {
    let opened = clock.now();
    let file = DatabaseFile::start("disk".into(), database, reopen, clock.clone())?;
    Ok(Embedded::on(file, clock, opened))
}

fn records(data_dir: &Path) -> Records {
    records_in(Embedded::open(data_dir, clock()).unwrap())
}

fn records_in(store: Embedded) -> Records {
    let sealer = Sealer::new(vec![SealingKey::new("k1", [7; 32]).unwrap()]).unwrap();
    Records::new(Arc::new(store), Arc::new(sealer))
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Note {
    text: String,
}

impl Typed for Note {
    const KIND: Kind = Kind::Flow;
}

fn note(text: &str) -> Note {
    Note { text: text.to_owned() }
}

fn tokens(access: &str) -> Tokens {
    Tokens {
        access_token: SecretString::from(access),
        refresh_token: Some(SecretString::from(format!("refresh-{access}"))),
        id_token: None,
        expires_at: Some(clock().now() + HOUR),
        obtained_at: clock().now(),
        connected_at: None,
        scopes: vec!["read".to_owned()],
        requested_scopes: vec!["read".to_owned(), "write".to_owned()],
        issuer: "https://as.example".to_owned(),
        resource: Some("https://mcp.example".to_owned()),
        token_endpoint: "https://as.example/token".to_owned(),
        revocation_endpoint: None,
        registration: "r".to_owned(),
        user: "alice".to_owned(),
        route: "demo".to_owned(),
        account: None,
        rotates: None,
    }
}

#[tokio::test]
async fn everything_survives_reopening() {
    let data_dir = tempfile::tempdir().unwrap();
    {
        let records = records(data_dir.path());
        records.put("a", 0, &note("one"), HOUR).await.unwrap();
        records.put("b", 0, &note("two"), HOUR).await.unwrap();
        records.take::<Note>("b").await.unwrap();
        records.tombstone::<Note>("c", HOUR).await.unwrap();
        records.connect("u", &tokens("t"), HOUR).await.unwrap();
        records.store().acquire("u", "attempt", 1, HOUR).await.unwrap();
    }
    let records = records(data_dir.path());
    let found = records.get::<Note>("a").await.unwrap().unwrap();
    assert_eq!((found.value, found.version), (note("one"), 1));
    assert!(matches!(records.take::<Note>("b").await.unwrap(), Take::Spent(_)));
    assert_eq!(records.store().tombstones(Kind::Flow).await.unwrap(), ["c"]);
    let (connection, tokens) = records.connection("u").await.unwrap().unwrap();
    assert_eq!(connection.attempt.unwrap().id, "attempt");
    assert_eq!(tokens.access_token.expose_secret(), "t");
    assert_eq!(tokens.refresh_token.unwrap().expose_secret(), "refresh-t");
    assert_eq!(tokens.expires_at, Some(clock().now() + HOUR));
}

#[tokio::test]
async fn tokens_follow_their_generation() {
    let data_dir = tempfile::tempdir().unwrap();
    let records = records(data_dir.path());
    let incarnation = records.connect("u", &tokens("one"), HOUR).await.unwrap();
    let acquired = records.store().acquire("u", "attempt", 1, HOUR).await.unwrap();
    let Acquired::Owner { connection, .. } = acquired else { panic!() };
    assert_eq!(connection.incarnation, incarnation);
    assert_eq!(records.tokens("u", &connection).unwrap().access_token.expose_secret(), "one");
    let attempt = connection.attempt.clone().unwrap();
    let prepared = records.prepare("u", &connection, &attempt, &tokens("two"), HOUR).await.unwrap();
    let committed = records.commit(&prepared).await.unwrap();
    assert_eq!(committed, Committed::Stored { generation: 2 });
    let (connection, tokens) = records.connection("u").await.unwrap().unwrap();
    assert_eq!((connection.generation, tokens.access_token.expose_secret()), (2, "two"));
}

#[tokio::test]
async fn the_file_is_private_and_shows_no_secret() {
    let parent = tempfile::tempdir().unwrap();
    let data_dir = parent.path().join("data");
    {
        let records = records(&data_dir);
        records.connect("u", &tokens("canary-in-the-token"), HOUR).await.unwrap();
        records.put("a", 0, &note("canary-in-the-note"), HOUR).await.unwrap();
        records.put("a", 1, &note("canary-in-the-note"), HOUR).await.unwrap();
    }
    let path = data_dir.join(FILE_NAME);
    let bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(6).any(|window| window == b"canary"));
    assert!(bytes.windows(5).any(|window| window == b"flow\0"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&data_dir), mode(&path)), (0o700, 0o600));
    assert_eq!(std::fs::read_dir(&data_dir).unwrap().count(), 2, "and the note that it is closed");
}

#[test]
fn a_file_is_trusted_only_as_it_was_closed() {
    let data_dir = tempfile::tempdir().unwrap();
    let path = data_dir.path().join(FILE_NAME);
    let closed = closed::Closed::of(&path);
    let store = Embedded::open(data_dir.path(), clock()).unwrap();
    assert!(!closed.holds(), "a crash leaves no note");
    drop(store);
    assert!(closed.holds());
    // Another file with the same content, as a restored backup is.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::rename(&path, data_dir.path().join("other")).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    assert!(!closed.holds());
    drop(Embedded::open(data_dir.path(), clock()).unwrap());
    assert!(closed.holds());
    // The same file, changed where only the check looks.
    std::thread::sleep(TICK);
    let mut changed = std::fs::read(&path).unwrap();
    let at = changed.windows(7).rposition(|window| window == b"records").unwrap();
    changed[at] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    let error = Embedded::open(data_dir.path(), clock()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_closed_store_does_nothing_more() {
    let data_dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(data_dir.path(), clock()).unwrap();
    store.put(Kind::Flow, "a", 0, vec![1], HOUR).await.unwrap();
    store.close();
    assert!(store.get(Kind::Flow, "a").await.is_err());
    assert!(store.put(Kind::Flow, "b", 0, vec![1], HOUR).await.is_err());
    let again = Embedded::open(data_dir.path(), clock()).unwrap();
    drop(store);
    assert!(!closed::Closed::of(&data_dir.path().join(FILE_NAME)).holds(), "it is open");
    assert!(again.get(Kind::Flow, "a").await.unwrap().is_some());
}

#[tokio::test]
async fn what_an_earlier_version_ended_stays_ended() {
    let data_dir = tempfile::tempdir().unwrap();
    {
        let store = Embedded::open(data_dir.path(), clock()).unwrap();
        store.put(Kind::Grant, "kept", 0, vec![1], HOUR).await.unwrap();
        store.tombstone(Kind::Grant, "ended", HOUR).await.unwrap();
    }
    std::thread::sleep(TICK);
    {
        let database = Database::open(data_dir.path().join(FILE_NAME)).unwrap();
        let transaction = database.begin_write().unwrap();
        let tombstones = redb::TableDefinition::<&[u8], u64>::new("tombstones");
        assert!(transaction.delete_table(tombstones).unwrap(), "it did not have that");
        transaction.commit().unwrap();
    }
    let store = Embedded::open(data_dir.path(), clock()).unwrap();
    assert_eq!(store.tombstones(Kind::Grant).await.unwrap(), ["ended"]);
}

#[test]
fn a_lost_sealing_key_is_not_replaced_beside_the_store() {
    let data_dir = tempfile::tempdir().unwrap();
    drop(Embedded::open(data_dir.path(), clock()).unwrap());
    assert!(crate::seal::load_or_generate(data_dir.path()).is_err());
}

#[test]
fn a_second_opening_is_refused_and_harms_nothing() {
    let data_dir = tempfile::tempdir().unwrap();
    let first = Embedded::open(data_dir.path(), clock()).unwrap();
    let error = Embedded::open(data_dir.path(), clock()).err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("in use by another process"));
    drop(first);
    Embedded::open(data_dir.path(), clock()).unwrap();
}

#[tokio::test]
async fn a_change_is_made_though_its_caller_has_gone() {
    let data_dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(data_dir.path(), clock()).unwrap();
    let mut changes = store.subscribe();
    {
        let mut put = store.put(Kind::Flow, "a", 0, vec![1], HOUR);
        let waker = std::task::Waker::noop();
        // Queued by the first poll, then dropped; the answer may even be there already.
        let _ = put.as_mut().poll(&mut std::task::Context::from_waker(waker));
    }
    assert_eq!(changes.recv().await.unwrap(), Change::Of { kind: Kind::Flow, key: "a".to_owned() });
    assert!(store.get(Kind::Flow, "a").await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_not_in_memory_is_read_beside_and_harms_nothing() {
    let (disk, store) = on_new_disk(clock());
    let records = records_in(store);
    for number in 0..200 {
        records.put(&format!("n{number}"), 0, &note("text"), HOUR).await.unwrap();
    }
    drop(records);
    let cold = file::opened(Path::new("disk"), |mut builder| {
        builder.set_check_integrity_on_open(false).create_with_backend(disk.clone())
    });
    let store = start(cold.unwrap(), reopen_on(&disk), clock()).unwrap();
    let is_seen = |key: &str| {
        let seen = store.file.glance(|view, now| view.load(Kind::Flow, key, now));
        seen.is_some_and(|row| row.is_some())
    };
    assert!(!is_seen("n100"));
    assert!(store.get(Kind::Flow, "n100").await.unwrap().is_some());
    assert!(is_seen("n100"));
    store.put(Kind::Flow, "new", 0, b"value".to_vec(), HOUR).await.unwrap();
    assert!(is_seen("new"), "what was written stays in memory");
    store.close();
    assert!(!is_seen("new"));
    assert!(store.get(Kind::Flow, "new").await.is_err());
}
