//! `kind: custom`: the name of a strategy, and what it wants to know → [`Custom`].

use serde_json::Value;

use super::super::checked::Checker;
use super::super::file;
use super::super::report::Key;
use super::Credential;

/// A strategy that somebody has built into this program.
#[derive(Clone)]
pub struct Custom {
    /// One of those that the program has.
    pub strategy: String,
    /// As written; an object.
    pub with: Value,
}

pub(super) fn check(check: &mut Checker<'_>, key: &Key, written: &file::Credential) -> Option<Credential> {
    let at = key.child("strategy");
    let known = check.strategies();
    let write = match known {
        [] => "this program has none: it takes one that is built with them (docs/library.md)".to_owned(),
        known => format!("write one of {}", known.join(", ")),
    };
    match &written.strategy {
        Some(name) if known.contains(name) => {
            let with = Value::Object(written.with.clone().unwrap_or_default().into_iter().collect());
            Some(Credential::Custom(Custom { strategy: name.clone(), with }))
        }
        Some(name) => {
            check.refuse(&at, format!("`{name}` is no strategy of this program"), write);
            None
        }
        None => {
            check.refuse(&at, "is missing", write);
            None
        }
    }
}
