//! Asked twice, done once (draft-ietf-httpapi-idempotency-key-header): under a key of the caller's own choice an answer is
//! remembered, sealed like all records, and given again to who sends the same once more. What failed has changed nothing
//! and is tried again.
use std::time::Duration;

use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::operation::Reply;
use super::problem::{Kind, Problem};
use crate::seal;
use crate::store::record::{RecordError, Records, Typed, Versioned};
use crate::store::{self, Put};

const HEADER: &str = "idempotency-key";
/// Of a key, bytes.
const LONGEST: usize = 255;
/// An answer is remembered for so long.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Nothing that is under way takes longer: then its process is gone.
const UNDER_WAY: Duration = Duration::from_secs(120);

/// What was asked under a key (store record, found by a digest of the caller and the key).
#[derive(Serialize, Deserialize)]
struct Remembered {
    /// Digest of what was asked.
    asked: String,
    /// `None`: it is under way.
    reply: Option<Reply>,
}

impl Typed for Remembered {
    const KIND: store::Kind = store::Kind::Idempotency;
}

/// What is to be done about a request.
pub enum Turn {
    /// No key: it is done, whatever was done before.
    Once,
    /// It is done, and [`settle`] says what came of it.
    First(Key),
    Again(Reply),
}

/// A key in use.
pub struct Key {
    name: String,
    asked: String,
}

/// Whose turn it is. `asked`: all that makes a request the same one.
pub async fn begin(
    records: &Records,
    headers: &HeaderMap,
    actor: &str,
    asked: [&[u8]; 3],
) -> Result<Turn, Problem> {
    let Some(written) = headers.get(HEADER) else { return Ok(Turn::Once) };
    let is_fit = |key: &&str| (1..=LONGEST).contains(&key.len());
    let written = written.to_str().ok().map(str::trim).filter(is_fit);
    if headers.get_all(HEADER).iter().count() > 1 || written.is_none() {
        let detail = format!("Send one Idempotency-Key of 1 to {LONGEST} characters.");
        return Err(Problem::new(Kind::Malformed, detail));
    }
    let name = seal::digest(&format!("{actor}\0{}", written.unwrap_or_default()));
    // Lengths first, so that nothing can be moved from one part to another.
    let lengths = asked.map(|part| part.len());
    let whole = asked.map(String::from_utf8_lossy).concat();
    let key = Key { name, asked: seal::digest(&format!("{lengths:?}{whole}")) };
    let under_way = Remembered { asked: key.asked.clone(), reply: None };
    match records.put(&key.name, 0, &under_way, UNDER_WAY).await.map_err(unavailable)? {
        Put::Stored => Ok(Turn::First(key)),
        Put::Conflict => known(records, &key).await.map(Turn::Again),
    }
}

async fn known(records: &Records, key: &Key) -> Result<Reply, Problem> {
    let found = records.get::<Remembered>(&key.name).await.map_err(unavailable)?;
    let under_way =
        || Problem::new(Kind::Conflict, "The first request with this Idempotency-Key is under way.");
    // Gone meanwhile: the first one has just failed.
    let Some(Versioned { value: found, .. }) = found else { return Err(under_way()) };
    if found.asked != key.asked {
        let detail = "This Idempotency-Key was used for something else: take another one.";
        return Err(Problem::new(Kind::KeyReused, detail));
    }
    found.reply.ok_or_else(under_way)
}

/// Remembers what came of it.
pub async fn settle(records: &Records, key: Key, outcome: &Result<Reply, Problem>) {
    let settled = match outcome {
        Ok(reply) => {
            let done = Remembered { asked: key.asked, reply: Some(reply.clone()) };
            records.put(&key.name, 1, &done, REMEMBERED).await.map(|_| ())
        }
        Err(_) => records.remove::<Remembered>(&key.name).await,
    };
    // It is done all the same, and the key is free again before long.
    if let Err(error) = settled {
        tracing::warn!(%error, "what came of a request is not remembered under its idempotency key");
    }
}

fn unavailable(_: RecordError) -> Problem {
    Problem::unavailable()
}
