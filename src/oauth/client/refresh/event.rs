//! What a refresh leaves in the log, step by step and without secrets: enough to check afterwards, over the logs of all
//! instances and the authorization server's, that every rule was kept (`tests/support/checker.rs`).
use secrecy::{ExposeSecret, SecretString};

use crate::oauth::client::token::Outcome;
use crate::seal;
use crate::store::Connection;

/// The steps, by the names in the log.
#[derive(Clone, Copy)]
pub enum Step {
    Acquire,
    Sent,
    Result,
    Journal,
    Commit,
    Stale,
    Tombstone,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Acquire => "refresh.acquire",
            Self::Sent => "refresh.sent",
            Self::Result => "refresh.result",
            Self::Journal => "refresh.journal",
            Self::Commit => "refresh.commit",
            Self::Stale => "refresh.stale",
            Self::Tombstone => "refresh.tombstone",
        }
    }
}

/// One step of an attempt at this connection.
pub fn step(step: Step, key: &str, connection: &Connection, note: Option<&str>) {
    log(step, key, connection, note, None);
}

/// A step with this refresh token, of which the log gets the first characters of its digest.
pub fn token(step: Step, key: &str, connection: &Connection, token: &SecretString) {
    let digest = seal::digest(token.expose_secret());
    log(step, key, connection, None, digest.get(..8));
}

/// What an answer comes to, in a word.
pub fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Success(_) => "success",
        Outcome::CleanTransient { .. } => "transient",
        Outcome::Ambiguous => "ambiguous",
        Outcome::Dead => "dead",
        Outcome::UnknownClient => "unknown_client",
        Outcome::Config(_) => "config",
    }
}

fn log(step: Step, key: &str, connection: &Connection, note: Option<&str>, token: Option<&str>) {
    let attempt = connection.attempt.as_ref();
    tracing::info!(
        target: "postern::refresh",
        event = step.name(),
        connection = key.get(..12),
        incarnation = connection.incarnation,
        generation = connection.generation,
        fence = connection.fence,
        attempt = attempt.map(|attempt| attempt.id.as_str()),
        token,
        note,
    );
}
