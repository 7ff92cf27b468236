//! Holds the event logs of all instances against the rules of the refresh protocol, after any run whatever went wrong in
//! it: the same rules that the model is checked for (`tests/model.rs`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::authorization_server::AuthorizationServer;

/// Faults that a run put in, which excuse so many repetitions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Owners that were killed or stopped, and answers that were lost.
    pub owners: usize,
    /// Failovers that may have taken back what was written.
    pub rollbacks: usize,
}

/// One `refresh.…` event.
#[derive(Clone, Debug)]
struct Event {
    time: String,
    step: String,
    connection: String,
    incarnation: String,
    generation: u64,
    fence: u64,
    attempt: String,
    token: Option<String>,
}

/// The events in the order of their time.
fn events(logs: &[Value]) -> Vec<Event> {
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let mut events: Vec<Event> = logs
        .iter()
        .filter_map(|line| {
            let step = line["event"].as_str()?.strip_prefix("refresh.")?.to_owned();
            Some(Event {
                time: text(line, "timestamp"),
                step,
                connection: text(line, "connection"),
                incarnation: text(line, "incarnation"),
                generation: line["generation"].as_u64()?,
                fence: line["fence"].as_u64()?,
                attempt: text(line, "attempt"),
                token: line["token"].as_str().map(str::to_owned),
            })
        })
        .collect();
    events.sort_by(|one, other| one.time.cmp(&other.time));
    events
}

/// What the logs show that must not be. Empty: all is well.
pub fn violations(logs: &[Value], faults: Faults) -> Vec<String> {
    let events = events(logs);
    let mut found = Vec::new();
    let allowed = 1 + faults.owners;
    // Steps of an attempt, in order.
    let mut attempts: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in &events {
        attempts.entry(&event.attempt).or_default().push(event);
    }
    for (attempt, steps) in &attempts {
        let position = |step: &str| steps.iter().position(|event| event.step == step);
        let fence = steps.first().map(|event| event.fence);
        for event in steps {
            let needs = match event.step.as_str() {
                "sent" => "acquire",
                "result" => "sent",
                "journal" => "result",
                "commit" => "journal",
                _ => continue,
            };
            if position(needs).is_none_or(|before| before >= position(&event.step).unwrap_or_default()) {
                found.push(format!("i2 i10 i11: {attempt}: {} without {needs}", event.step));
            }
            if Some(event.fence) != fence {
                found.push(format!("i4: {attempt}: {} under another fence", event.step));
            }
        }
        for once in ["sent", "result", "commit"] {
            if steps.iter().filter(|event| event.step == once).count() > 1 {
                found.push(format!("i1: {attempt}: {once} twice"));
            }
        }
    }
    // Fences and generations of a connection.
    let mut fences: BTreeMap<&str, BTreeMap<u64, &str>> = BTreeMap::new();
    let mut generations: BTreeMap<(&str, &str), BTreeSet<u64>> = BTreeMap::new();
    let mut sent: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in &events {
        match event.step.as_str() {
            "acquire" => {
                let known = fences.entry(&event.connection).or_default();
                let newest = known.keys().next_back().copied().unwrap_or_default();
                if faults.rollbacks == 0 && event.fence <= newest {
                    found.push(format!("i3: {}: fence {} after {newest}", event.connection, event.fence));
                }
                if known.insert(event.fence, &event.attempt).is_some() && faults.rollbacks == 0 {
                    found.push(format!("i3: {}: fence {} twice", event.connection, event.fence));
                }
            }
            "commit" => {
                let known = generations.entry((&event.connection, &event.incarnation)).or_default();
                if !known.insert(event.generation) && faults.rollbacks == 0 {
                    found.push(format!("i3: {}: generation {} twice", event.connection, event.generation));
                }
            }
            "sent" => {
                if let Some(token) = &event.token {
                    sent.entry(token).or_default().push(event);
                }
            }
            _ => {}
        }
    }
    for (token, events) in sent {
        if events.len() > allowed {
            found.push(format!("i1 i12: token {token} sent {} times, {allowed} are allowed", events.len()));
        }
    }
    found
}

/// Panics with what the logs and the authorization server's books show that must not be.
#[track_caller]
pub fn assert_kept(logs: &[Value], server: &AuthorizationServer, faults: Faults) {
    let mut found = violations(logs, faults);
    let allowed = u32::try_from(1 + faults.owners).expect("few");
    server.ledger(|ledger| {
        let uses = ledger.refresh.values().map(|token| token.uses).max().unwrap_or_default();
        if uses > allowed {
            found.push(format!("i1: a refresh token was presented {uses} times, {allowed} are allowed"));
        }
    });
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}
