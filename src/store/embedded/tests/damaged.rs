//! A damaged file (F24): it is refused, or what it shows is right; and a damaged row is never somebody else's.
//!
//! On opening a file that is not as it was closed, the database checks every page that it uses. What it cannot notice, a
//! row that was changed and has a right checksum, the sealing of values does. One bit nobody checks, see [`UNDOES`].

use redb::{Builder, Database, TableDefinition};

use super::model::{Content, seen};
use super::story::Dice;
use super::*;

/// As [`super::super::rows`] has it.
const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
/// It says which of the last two commits counts and has no checksum; a power cut between the two phases of a commit
/// leaves it the other way, too. Flipped, it undoes the last transaction.
const UNDOES: &str = "bit 0 of byte 9,";
const USERS: [&str; 3] = ["alice", "bob", "carol"];

/// A disk with records of several users, closed or as a crash leaves it.
struct Furnished {
    bytes: Vec<u8>,
    is_closed: bool,
    content: Content,
    /// Before the last transaction.
    before: Content,
}

async fn furnished(is_closed: bool) -> Furnished {
    let (disk, store) = on_new_disk(clock());
    let records = records_in(store);
    for user in USERS {
        records.put(user, 0, &note(user), HOUR).await.unwrap();
        records.connect(user, &tokens(user), HOUR).await.unwrap();
        records.store().put(Kind::Grant, user, 0, user.repeat(2000).into_bytes(), HOUR).await.unwrap();
    }
    let before = seen(records.store().as_ref()).await.unwrap();
    records.tombstone::<Note>("dave", HOUR).await.unwrap();
    let content = seen(records.store().as_ref()).await.unwrap();
    let left = disk.bytes();
    drop(records);
    Furnished { bytes: if is_closed { disk.bytes() } else { left }, is_closed, content, before }
}

impl Furnished {
    /// Whether a store on these bytes instead is refused; if not, it has to be right.
    async fn refuses(&self, bytes: Vec<u8>, damage: &str) -> bool {
        let damage = format!("{damage}, closed: {}", self.is_closed);
        let store = match on(&Disk::of(bytes), clock()) {
            Ok(store) => store,
            Err(error) => {
                assert!(matches!(error, OpenError::Damaged { .. }), "{damage}: {error}");
                return true;
            }
        };
        let rows = seen(&store).await.unwrap();
        assert!(rows == self.content || damage.starts_with(UNDOES) && rows == self.before, "{damage}");
        false
    }
}

#[tokio::test]
async fn a_flipped_byte_is_noticed_or_does_no_harm() {
    let mut dice = Dice::new(1);
    for is_closed in [false, true] {
        let furnished = furnished(is_closed).await;
        let bytes = &furnished.bytes;
        let used: Vec<usize> = (0..bytes.len()).filter(|offset| bytes[*offset] != 0).collect();
        let header =
            (0..if soak() { 320 } else { 24 }).flat_map(|offset| (0..8).map(move |bit| (offset, bit)));
        let some = (0..if soak() { 5000 } else { 120 }).map(|number| match number % 8 {
            0 => (dice.below(bytes.len()), dice.below(8)),
            _ => (used[dice.below(used.len())], dice.below(8)),
        });
        let (mut refused, mut of) = (0, 0);
        for (offset, bit) in header.chain(some.collect::<Vec<_>>()) {
            let mut changed = bytes.clone();
            changed[offset] ^= 1 << bit;
            refused += usize::from(furnished.refuses(changed, &format!("bit {bit} of byte {offset}")).await);
            of += 1;
        }
        println!("{refused} of {of} refused");
        assert!(refused > of / 4);
    }
}

#[tokio::test]
async fn a_file_of_another_length_is_refused_or_right() {
    let mut dice = Dice::new(2);
    for is_closed in [false, true] {
        let furnished = furnished(is_closed).await;
        let bytes = &furnished.bytes;
        let pages = bytes.len() / 4096;
        let every = if soak() { 1 } else { 16 };
        // An empty one is not opened but made; on a real file that is refused too, see below.
        let mut lengths: Vec<usize> = (1..pages + 40).step_by(every).map(|pages| pages * 4096).collect();
        lengths.extend((0..if soak() { 400 } else { 30 }).map(|_| 1 + dice.below(2 * bytes.len())));
        for length in lengths {
            for filling in [0, 0xa5] {
                let mut changed = bytes.clone();
                changed.resize(length, filling);
                furnished.refuses(changed, &format!("{length} bytes of {}", bytes.len())).await;
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_row_is_nobody_elses() {
    let Furnished { bytes, content, .. } = furnished(true).await;
    for prefix in ["flow", "connection"] {
        let key = [prefix.as_bytes(), b"\0bob"].concat();
        let raw = |disk: &Disk| Builder::new().create_with_backend(disk.clone()).unwrap();
        let row = {
            let database = raw(&Disk::of(bytes.clone()));
            let transaction = redb::ReadableDatabase::begin_read(&database).unwrap();
            let table = transaction.open_table(RECORDS).unwrap();
            redb::ReadableTable::get(&table, key.as_slice()).unwrap().unwrap().value().to_vec()
        };
        for offset in (0..row.len()).step_by(if soak() { 1 } else { 11 }) {
            let disk = Disk::of(bytes.clone());
            {
                let mut row = row.clone();
                row[offset] ^= 1 << (offset % 8);
                let database = raw(&disk);
                let transaction = database.begin_write().unwrap();
                transaction.open_table(RECORDS).unwrap().insert(key.as_slice(), row.as_slice()).unwrap();
                transaction.commit().unwrap();
            }
            let records = records_in(on(&disk, clock()).unwrap());
            if let Ok(Some(found)) = records.get::<Note>("bob").await {
                assert_eq!(found.value, note("bob"));
            }
            if let Ok(Some((_, tokens))) = records.connection("bob").await {
                assert_eq!(tokens.access_token.expose_secret(), "bob");
            }
            let others = |rows: Content| -> Content {
                rows.into_iter().filter(|((_, key), _)| key != "bob").collect()
            };
            let rows = seen(records.store().as_ref()).await.unwrap();
            assert_eq!(others(rows), others(content.clone()));
            // Whatever it is now, an operator can end it.
            records.tombstone::<Note>("bob", HOUR).await.unwrap();
            records.disconnect("bob", HOUR).await.unwrap();
            assert!(records.get::<Note>("bob").await.unwrap().is_none());
            assert!(records.connection("bob").await.unwrap().is_none());
        }
    }
}

#[tokio::test]
async fn sr_t33_swapped_and_rolled_back_rows_are_unreadable() {
    let data_dir = tempfile::tempdir().unwrap();
    let path = data_dir.path().join(FILE_NAME);
    let raw = |key: &[u8]| {
        let transaction = Database::open(&path).unwrap();
        let transaction = redb::ReadableDatabase::begin_read(&transaction).unwrap();
        let table = transaction.open_table(RECORDS).unwrap();
        redb::ReadableTable::get(&table, key).unwrap().unwrap().value().to_vec()
    };
    let overwrite = |key: &[u8], value: &[u8]| {
        let database = Database::open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(RECORDS).unwrap().insert(key, value).unwrap();
        transaction.commit().unwrap();
    };
    {
        let records = records(data_dir.path());
        records.put("alice", 0, &note("alice"), HOUR).await.unwrap();
        records.put("bob", 0, &note("bob"), HOUR).await.unwrap();
        records.connect("alice", &tokens("alice"), HOUR).await.unwrap();
        records.connect("bob", &tokens("bob"), HOUR).await.unwrap();
    }
    let bob = raw(b"flow\0bob");
    overwrite(b"flow\0alice", &bob);
    let bob = raw(b"connection\0bob");
    overwrite(b"connection\0alice", &bob);
    {
        let records = records(data_dir.path());
        assert!(matches!(records.get::<Note>("alice").await, Err(RecordError::Unreadable)));
        assert!(matches!(records.take::<Note>("alice").await, Err(RecordError::Unreadable)));
        assert!(matches!(records.connection("alice").await, Err(RecordError::Unreadable)));
        assert_eq!(records.get::<Note>("bob").await.unwrap().unwrap().value, note("bob"));
        let listed: Vec<_> = records.scan::<Note>().await.unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(listed, ["bob"]);
    }
    // An old value under a newer version, and a row that is not even one.
    let mut old = raw(b"flow\0bob");
    let at = old.windows(11).position(|window| window == b"\"version\":1").unwrap();
    old[at + 10] = b'2';
    overwrite(b"flow\0bob", &old);
    overwrite(b"flow\0garbage", b"\xff\x00garbage");
    let records = records(data_dir.path());
    assert!(matches!(records.get::<Note>("bob").await, Err(RecordError::Unreadable)));
    let garbage = records.get::<Note>("garbage").await;
    assert!(matches!(garbage, Err(RecordError::Store(StoreError::Corrupt))));
    assert!(records.scan::<Note>().await.unwrap().is_empty());
    // Damage does not keep an operator from revoking.
    records.tombstone::<Note>("garbage", HOUR).await.unwrap();
    assert!(records.get::<Note>("garbage").await.unwrap().is_none());
}

#[test]
fn what_is_no_store_is_refused_and_kept() {
    for content in [&b""[..], b"not a database", &[0; 8192]] {
        let data_dir = tempfile::tempdir().unwrap();
        let path = data_dir.path().join(FILE_NAME);
        std::fs::write(&path, content).unwrap();
        let error = Embedded::open(data_dir.path(), clock()).err().unwrap();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

#[tokio::test]
async fn a_damaged_or_shortened_file_is_refused_or_right() {
    let whole = tempfile::tempdir().unwrap();
    {
        let records = records(whole.path());
        for number in 0..50 {
            records.put(&number.to_string(), 0, &note(&"x".repeat(200)), HOUR).await.unwrap();
        }
    }
    let bytes = std::fs::read(whole.path().join(FILE_NAME)).unwrap();
    let pages = (0..(bytes.len() / 4096).min(40)).map(|page| {
        let mut changed = bytes.clone();
        for offset in (0..4096).step_by(64) {
            changed[page * 4096 + offset] ^= 0xff;
        }
        changed
    });
    let ends = [1, 4095, 4096, bytes.len() / 2, bytes.len() - 1].map(|length| bytes[..length].to_vec());
    for changed in pages.chain(ends) {
        let data_dir = tempfile::tempdir().unwrap();
        std::fs::write(data_dir.path().join(FILE_NAME), &changed).unwrap();
        match Embedded::open(data_dir.path(), clock()) {
            Err(error) => assert!(matches!(error, OpenError::Damaged { .. }), "{error}"),
            // A page that holds nothing.
            Ok(store) => assert_eq!(store.scan(Kind::Flow).await.unwrap().len(), 50),
        }
    }
}
