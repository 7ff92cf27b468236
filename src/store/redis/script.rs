//! The scripts, each on one slot, and their arguments and answers.
//!
//! Only commands of Redis 6.2 and of every Valkey. A script that the server does not know any more, after a restart or
//! a failover, is sent again in full.
use std::sync::LazyLock;

use ::redis::{FromRedisValue, RedisError, Script, Value, cmd};

use super::connection::Connection;
use super::names::RecordNames;

/// Changes that a log keeps: who is further behind has missed some.
const LOG: usize = 4096;

/// What scripts that decide by the time begin with: it is the server's, in milliseconds since the epoch, unless a test
/// stands in for it.
const NOW: &str = r"
local function now(instead)
  local time = redis.call('TIME')
  return tonumber(instead) or time[1] * 1000 + math.floor(time[2] / 1000)
end
";

pub(super) fn with_time(code: &str) -> Script {
    Script::new(&[NOW, code].concat())
}

/// KEYS: record. ARGV: the tests' time or nothing. Answers the time in milliseconds and the row.
static LOOK: LazyLock<Script> = LazyLock::new(|| {
    with_time(
        r"
local now = now(ARGV[1])
return {now, redis.call('GET', KEYS[1]) or ''}",
    )
});

/// KEYS: record, index it belongs into, index it does not, log. ARGV: old row, new row, time to live, end, key, news,
/// latest time, channel, shard, length of the log, the tests' time or nothing. Answers whether it was done. What cannot
/// be published is read from the log all the same.
static EXCHANGE: LazyLock<Script> = LazyLock::new(|| {
    with_time(
        r"
local now = now(ARGV[11])
if now > tonumber(ARGV[7]) or (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[5])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  redis.call('ZADD', KEYS[2], ARGV[4], ARGV[5])
end
redis.call('ZREM', KEYS[3], ARGV[5])
if ARGV[6] ~= '' then
  local newest = redis.call('LINDEX', KEYS[4], 0)
  local number = newest and tonumber(string.match(newest, '^%d+')) or 0
  redis.call('LPUSH', KEYS[4], string.format('%d ', number + 1) .. ARGV[6])
  redis.call('LTRIM', KEYS[4], 0, ARGV[10] - 1)
  redis.pcall('PUBLISH', ARGV[8], ARGV[9])
end
return 1",
    )
});

/// KEYS: log. ARGV: the newest entry known. Answers the newest entry, whether some were missed, and those after the
/// known one, oldest last.
///
/// Entries are numbered and each is unlike any other, so that a log that went back to an earlier state and grew again
/// is told from one that only grew.
static NEWS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local newest = redis.call('LINDEX', KEYS[1], 0) or ''
if newest == ARGV[1] then
  return {newest, 0, {}}
end
local last = tonumber(string.match(newest, '^%d+')) or 0
local known = tonumber(string.match(ARGV[1], '^%d+')) or 0
local count = last - known
local length = redis.call('LLEN', KEYS[1])
if count < 1 or count > length or (known > 0 and redis.call('LINDEX', KEYS[1], count) ~= ARGV[1]) then
  return {newest, 1, {}}
end
return {newest, 0, redis.call('LRANGE', KEYS[1], 0, count - 1)}",
    )
});

/// KEYS: index. ARGV: the tests' time or nothing. Takes out what has ended.
static SWEEP: LazyLock<Script> = LazyLock::new(|| {
    with_time(
        r"
local now = now(ARGV[1])
return redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)",
    )
});

/// The time, in milliseconds since the epoch, and the row; no bytes where there is none.
pub async fn look(
    mut connection: Connection,
    record: &str,
    frozen: Option<u64>,
) -> Result<(u64, Vec<u8>), RedisError> {
    LOOK.key(record).arg(or_nothing(frozen)).invoke_async(&mut connection).await
}

/// One exchange of a row.
pub struct Exchange<'a> {
    pub names: &'a RecordNames,
    /// Exactly what was decided on; no bytes where there was none.
    pub old: &'a [u8],
    /// No bytes: deleted.
    pub new: &'a [u8],
    pub ttl_millis: u64,
    pub expires_millis: u64,
    pub key: &'a str,
    pub tombstone: bool,
    /// What subscribers of all instances are told.
    pub news: Option<String>,
    /// Later than that the decision is out of date.
    pub latest_millis: u64,
    pub frozen: Option<u64>,
}

impl Exchange<'_> {
    /// Whether it was done: the row was still the old one.
    pub async fn run(&self, mut connection: Connection) -> Result<bool, RedisError> {
        let RecordNames { shard, record, living, tombstones, log, channel } = self.names;
        let (into, out_of) = if self.tombstone { (tombstones, living) } else { (living, tombstones) };
        EXCHANGE
            .key(record)
            .key(into)
            .key(out_of)
            .key(log)
            .arg(self.old)
            .arg(self.new)
            .arg(self.ttl_millis)
            .arg(self.expires_millis)
            .arg(self.key)
            .arg(self.news.as_deref().unwrap_or_default())
            .arg(self.latest_millis)
            .arg(channel)
            .arg(shard)
            .arg(LOG)
            .arg(or_nothing(self.frozen))
            .invoke_async(&mut connection)
            .await
    }
}

/// What a log has said since `known`.
pub struct News {
    pub newest: Vec<u8>,
    pub missed: bool,
    /// Newest first.
    pub entries: Vec<Vec<u8>>,
}

/// Reads a log from `known` on.
pub async fn news(mut connection: Connection, log: &str, known: &[u8]) -> Result<News, RedisError> {
    let (newest, missed, entries) = NEWS.key(log).arg(known).invoke_async(&mut connection).await?;
    Ok(News { newest, missed, entries })
}

/// The newest entry of a log.
pub async fn newest(mut connection: Connection, log: &str) -> Result<Vec<u8>, RedisError> {
    let newest: Option<Vec<u8>> = cmd("LINDEX").arg(log).arg(0).query_async(&mut connection).await?;
    Ok(newest.unwrap_or_default())
}

/// Takes what has ended out of an index.
pub async fn sweep(mut connection: Connection, index: &str, frozen: Option<u64>) -> Result<(), RedisError> {
    SWEEP.key(index).arg(or_nothing(frozen)).invoke_async(&mut connection).await
}

/// The members of an index. Those that are there all the while are all found.
pub async fn members(mut connection: Connection, index: &str) -> Result<Vec<Vec<u8>>, RedisError> {
    let mut members = Vec::new();
    let mut cursor = 0u64;
    loop {
        let page: (u64, Vec<Vec<u8>>) =
            cmd("ZSCAN").arg(index).arg(cursor).arg("COUNT").arg(1000).query_async(&mut connection).await?;
        // Each member is followed by its score.
        members.extend(page.1.into_iter().step_by(2));
        cursor = page.0;
        if cursor == 0 {
            return Ok(members);
        }
    }
}

/// The values of several keys, in order; no bytes where there is none.
pub async fn values(mut connection: Connection, names: &[String]) -> Result<Vec<Vec<u8>>, RedisError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let values: Vec<Option<Vec<u8>>> = cmd("MGET").arg(names).query_async(&mut connection).await?;
    Ok(values.into_iter().map(Option::unwrap_or_default).collect())
}

/// The server's time in milliseconds since the epoch.
pub async fn time(mut connection: Connection) -> Result<u64, RedisError> {
    let (seconds, micros): (u64, u64) = cmd("TIME").query_async(&mut connection).await?;
    Ok(seconds * 1000 + micros / 1000)
}

/// Whether it writes.
pub async fn probe(mut connection: Connection, name: &str) -> Result<(), RedisError> {
    let answer: Value = cmd("SET").arg(name).arg("1").arg("EX").arg(60).query_async(&mut connection).await?;
    <()>::from_redis_value(answer).map_err(RedisError::from)
}

pub(super) fn or_nothing(number: Option<u64>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}
