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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A refresh as it should be.
    fn good(attempt: &str, token: &str, generation: u64, fence: u64, second: u64) -> Vec<Value> {
        let line = |step: &str, at: u64, generation: u64| {
            json!({
                "timestamp": format!("2026-11-26T10:00:{second:02}.{at:06}Z"), "event": format!("refresh.{step}"),
                "connection": "c", "incarnation": "i", "generation": generation, "fence": fence,
                "attempt": attempt, "token": (step == "sent").then_some(token),
            })
        };
        vec![
            line("acquire", 1, generation),
            line("sent", 2, generation),
            line("result", 3, generation),
            line("journal", 4, generation),
            line("commit", 5, generation + 1),
        ]
    }

    fn two() -> Vec<Value> {
        [good("a", "t1", 1, 2, 1), good("b", "t2", 2, 3, 2)].concat()
    }

    #[test]
    fn a_good_run_keeps_every_rule() {
        assert_eq!(violations(&two(), Faults::default()), Vec::<String>::new());
    }

    #[test]
    fn each_broken_rule_is_found() {
        let without = |step: &str| {
            let mut lines = two();
            let at = lines.iter().position(|line| line["event"] == format!("refresh.{step}")).unwrap();
            lines.remove(at);
            lines
        };
        let with = |change: &dyn Fn(&mut Vec<Value>)| {
            let mut lines = two();
            change(&mut lines);
            lines
        };
        let cases = [
            ("i2 i10", without("acquire")),
            ("i2 i10", without("sent")),
            ("i2 i10", without("journal")),
            ("i4", with(&|lines| lines[4]["fence"] = 9.into())),
            ("i3: c: fence", with(&|lines| (0..5).for_each(|at| lines[at]["fence"] = 7.into()))),
            ("i3: c: generation", with(&|lines| lines[9]["generation"] = 2.into())),
            ("i1 i12", with(&|lines| lines[6]["token"] = "t1".into())),
            ("i1: a: sent twice", with(&|lines| lines.push(lines[1].clone()))),
        ];
        for (expected, lines) in cases {
            let found = violations(&lines, Faults::default());
            assert!(found.iter().any(|text| text.starts_with(expected)), "{expected}: {found:?}");
        }
        // A fault that was put in excuses one repetition, and no more.
        let again = with(&|lines| lines[6]["token"] = "t1".into());
        assert_eq!(violations(&again, Faults { owners: 1, rollbacks: 0 }), Vec::<String>::new());
    }
}
