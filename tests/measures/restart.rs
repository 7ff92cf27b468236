//! A start costs what is configured. What users have in a shared store is not read before they call: not their connections,
//! not their grants. Counted in commands and bytes, so that no slow machine makes it fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::{ALONE, support};

use std::time::Duration;

use postern::clock::Clock;
use postern::config::{self, Process};
use postern::store::embedded::{Embedded, FILE_NAME};
use postern::store::redis::Redis as RedisStore;
use postern::store::{Kind, Store};
use support::cluster::{Shared, address_of, store_at};
use support::gateway::{Gateway, Route};
use support::redis::Redis;
use support::upstream::Upstream;
use support::{PATIENCE, within};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// About as long as sealed tokens.
const SEALED: [u8; 1000] = [7; 1000];
/// What a start may read more, bytes: far less than the store holds by then.
const SPARE: u64 = 200_000;
/// An instance that asks for nothing for so long has all that it wants.
const REST: Duration = Duration::from_millis(300);

/// As many connections, and as many grants, with `POSTERN_SOAK=1` those of a large company.
fn many() -> usize {
    if std::env::var_os("POSTERN_SOAK").is_some() { 100_000 } else { 2_000 }
}

async fn fill(store: &dyn Store) {
    let numbers: Vec<usize> = (0..many()).collect();
    for several in numbers.chunks(500) {
        let written = several.iter().map(async |number| {
            let key = format!("restart-{number}");
            store.connect(&key, "incarnation", SEALED.to_vec(), DAY).await.unwrap();
            store.put(Kind::Grant, &key, 0, SEALED.to_vec(), DAY).await.unwrap();
        });
        futures_util::future::join_all(written).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_redis_asks_for_nothing_that_users_have() {
    let _alone = ALONE.lock().await;
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::open("demo", &upstream)]);
    let mut gateway = shared.instance(0, None).start().await;
    // Records asked for and indexes read; and all that the server has said, in bytes.
    let asked = || (redis.calls("mget"), redis.calls("zscan"));
    let said = || {
        let stats = redis.cli(&["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    let mut starts = Vec::new();
    for is_filled in [false, true] {
        gateway.stop().await;
        if is_filled {
            let text = std::fs::read_to_string(gateway.config_file()).unwrap();
            let config = config::parse(&text, "postern.yaml", &Process);
            let config = config.unwrap_or_else(|report| panic!("{report}"));
            let config::Store::Redis(configured) = &config.store else { panic!("not on Redis") };
            fill(&RedisStore::open(configured, Clock::system()).unwrap()).await;
        }
        redis.cli(&["CONFIG", "RESETSTAT"]);
        gateway.restart().await;
        // Once ready, an instance reads some things again beside: what it asks for comes to rest.
        let mut last = None;
        let at_rest = within(PATIENCE, async {
            while last.replace(asked()) != Some(asked()) {
                tokio::time::sleep(REST).await;
            }
            asked()
        });
        starts.push((at_rest.await, said()));
    }
    println!(
        "{} connections and as many grants: {:?} at the start, {:?} with none",
        many(),
        starts[1],
        starts[0]
    );
    assert_eq!(starts[1].0, starts[0].0);
    assert!(starts[1].1 < starts[0].1 + SPARE, "{starts:?}");
}

/// What a crash has left is read as a whole once more, to check it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_file_that_was_closed_reads_nothing_that_users_have() {
    let _alone = ALONE.lock().await;
    let upstream = Upstream::open().await;
    let mut gateway = Gateway::before(&upstream).await;
    let mut starts = Vec::new();
    for is_filled in [false, true] {
        gateway.stop().await;
        if is_filled {
            fill(&Embedded::open(&gateway.data_dir(), Clock::system()).unwrap()).await;
        }
        gateway.restart().await;
        starts.push(bytes_read(&gateway));
    }
    gateway.kill9().await;
    gateway.restart().await;
    starts.push(bytes_read(&gateway));
    let size = std::fs::metadata(gateway.data_dir().join(FILE_NAME)).unwrap().len();
    println!("{} connections and as many grants, {size} bytes; read at starts: {starts:?}", many());
    assert!(starts[1] < starts[0] + SPARE, "{starts:?}");
    assert!(starts[2] > starts[0] + SEALED.len() as u64 * 2 * many() as u64, "{starts:?}");
}

fn bytes_read(gateway: &Gateway) -> u64 {
    let counters = std::fs::read_to_string(format!("/proc/{}/io", gateway.process_id())).unwrap();
    counters.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}
