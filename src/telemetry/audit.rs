//! The audit log: which credential was asked for by whom, and what came of it. What happens once and changes something (a
//! sign-in, a consent, a revocation) is written where it happens, as events of the target `audit`.
//!
//! An event consists of words of ours and of names: there is no field that a token could get into.
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::output;
use crate::config::AuditLog;

/// Takes what happened. It is called on the path of a request: a sink that waits holds the request up.
pub trait Sink: Send + Sync {
    /// One for each time that a permitted call asked for its credential.
    fn resolution(&self, resolution: &Resolution<'_>);

    /// Whether it takes decisions of this outcome: nothing is put together for who does not.
    fn wants(&self, _outcome: &str) -> bool {
        true
    }

    /// One for each request at a route with rules.
    fn decision(&self, decision: &Decision<'_>);
}

/// What was done to give a permitted call its credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// It was there.
    Inject,
    /// It was fetched.
    Acquire,
    /// A newer one was fetched in place of one that is expired or refused.
    Refresh,
    /// The user has to do something first.
    Connect,
}

impl Act {
    pub fn word(self) -> &'static str {
        match self {
            Self::Inject => "inject",
            Self::Acquire => "acquire",
            Self::Refresh => "refresh",
            Self::Connect => "connect",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    /// The call does without, and is answered by us.
    Failed,
}

/// A permitted call, and what became of its credential.
#[derive(Debug, Clone, Serialize)]
pub struct Resolution<'a> {
    #[serde(skip)]
    pub at: SystemTime,
    pub act: Act,
    pub outcome: Outcome,
    /// What kind of credential it is, or why there is none.
    pub reason: &'static str,
    /// As in `credential.kind`.
    pub strategy: &'static str,
    pub route: &'a str,
    /// Whose credential it is. `None`: the caller is a program that acts for nobody.
    pub user: Option<&'a str>,
    pub client: &'a str,
    /// That of the access log's line.
    pub request_id: &'a str,
}

/// What the policy decided about a request, and by what.
#[derive(Debug, Clone, Serialize)]
pub struct Decision<'a> {
    #[serde(skip)]
    pub at: SystemTime,
    /// `allowed`, `denied` or `step_up`.
    pub outcome: &'static str,
    pub by: By<'a>,
    /// Whether it is more than an entry here.
    pub enforced: bool,
    /// Why a rule could not be decided, where that counted.
    pub fault: Option<String>,
    pub route: &'a str,
    pub user: &'a str,
    pub client: &'a str,
    /// Of the message, where it is a name and nothing else: what else stands there is the caller's own text.
    pub method: Option<&'a str>,
    /// Tool or prompt, the same.
    pub item: Option<&'a str>,
    pub request_id: &'a str,
}

/// What decided. In text and in JSON it is `rule NAME`, `default`, `protocol` or `hook`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By<'a> {
    Rule(&'a str),
    Other(&'static str),
}

/// Tells several what is told to it.
struct All(Vec<Arc<dyn Sink>>);

/// JSON lines on standard error, like the rest of the log.
pub struct Lines {
    log: AuditLog,
}

#[derive(Serialize)]
struct Line<'a, T> {
    timestamp: String,
    level: &'static str,
    event: &'static str,
    #[serde(flatten)]
    what: &'a T,
    target: &'static str,
}

/// The log, and whoever else wants to hear it.
pub fn all(lines: Lines, others: Vec<Arc<dyn Sink>>) -> Arc<dyn Sink> {
    let lines: Arc<dyn Sink> = Arc::new(lines);
    match others.is_empty() {
        true => lines,
        false => Arc::new(All(std::iter::once(lines).chain(others).collect())),
    }
}

impl Sink for All {
    fn wants(&self, outcome: &str) -> bool {
        self.0.iter().any(|sink| sink.wants(outcome))
    }

    fn resolution(&self, resolution: &Resolution<'_>) {
        self.0.iter().for_each(|sink| sink.resolution(resolution));
    }

    fn decision(&self, decision: &Decision<'_>) {
        self.0.iter().filter(|sink| sink.wants(decision.outcome)).for_each(|sink| sink.decision(decision));
    }
}

// === impl By ===

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(name) => write!(f, "rule {name}"),
            Self::Other(word) => f.write_str(word),
        }
    }
}

impl Serialize for By<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === impl Lines ===

impl Lines {
    pub fn new(log: AuditLog) -> Self {
        Self { log }
    }

    fn write(&self, at: SystemTime, event: &'static str, what: &impl Serialize) {
        let timestamp = humantime::format_rfc3339_micros(at).to_string();
        let line = Line { timestamp, level: "INFO", event, what, target: "audit" };
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        output::log().line(text);
    }
}

impl Sink for Lines {
    fn resolution(&self, resolution: &Resolution<'_>) {
        let is_usual = (resolution.act, resolution.outcome) == (Act::Inject, Outcome::Ok);
        if self.log == AuditLog::All || !is_usual {
            self.write(resolution.at, "credential", resolution);
        }
    }

    fn wants(&self, outcome: &str) -> bool {
        self.log == AuditLog::All || outcome != "allowed"
    }

    fn decision(&self, decision: &Decision<'_>) {
        self.write(decision.at, "policy_decided", decision);
    }
}
