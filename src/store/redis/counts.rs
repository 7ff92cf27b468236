//! What instances count together: what was spent of a rate, and who holds a place. Both end by themselves.
use std::sync::LazyLock;
use std::time::Duration;

use ::redis::{RedisError, Script, cmd};

use super::super::Quota;
use super::connection::Connection;
use super::script::{or_nothing, with_time};

/// KEYS: when what was spent is forgotten, in microseconds. ARGV: what one use costs, what may be spent ahead, the tests'
/// time or nothing. Answers how long to wait, 0 when it was spent. Decides as [`Quota::spend`].
///
/// Numbers of this size are written out by `format`: otherwise Lua rounds them.
static SPEND: LazyLock<Script> = LazyLock::new(|| {
    with_time(
        r"
local now = now(ARGV[3]) * 1000
local interval, whole = tonumber(ARGV[1]), tonumber(ARGV[2])
local before = tonumber(redis.call('GET', KEYS[1]) or 0)
local after = math.min(math.max(before, now), now + whole) + interval
local wait = after - now - whole
if wait > 0 then
  return wait
end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
return 0",
    )
});

/// KEYS: holders of places by the end of their lease. ARGV: holder, places, lease, the tests' time or nothing. Answers
/// whether the holder has one.
static HOLD: LazyLock<Script> = LazyLock::new(|| {
    with_time(
        r"
local now = now(ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not held and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1",
    )
});

/// How long to wait; `None`: it was spent.
pub async fn spend(
    mut connection: Connection,
    name: &str,
    quota: Quota,
    frozen: Option<u64>,
) -> Result<Option<Duration>, RedisError> {
    let mut call = SPEND.key(name);
    call.arg(quota.interval).arg(quota.whole).arg(or_nothing(frozen));
    let wait: u64 = call.invoke_async(&mut connection).await?;
    Ok((wait > 0).then(|| Duration::from_micros(wait)))
}

/// Whether `id` has one of `most` places, until its lease ends.
pub async fn hold(
    mut connection: Connection,
    name: &str,
    id: &str,
    most: u32,
    lease_millis: u64,
    frozen: Option<u64>,
) -> Result<bool, RedisError> {
    let mut call = HOLD.key(name);
    call.arg(id).arg(most).arg(lease_millis).arg(or_nothing(frozen));
    call.invoke_async(&mut connection).await
}

pub async fn let_go(mut connection: Connection, name: &str, id: &str) -> Result<(), RedisError> {
    cmd("ZREM").arg(name).arg(id).query_async(&mut connection).await
}
