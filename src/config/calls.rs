//! How often somebody may call, and how many calls of theirs may be under way at once.

use std::sync::Arc;
use std::time::Duration;

use super::checked::Checker;
use super::file;
use super::report::Key;

/// What a call is counted by.
pub use super::file::Per;

/// A bound on calls. It has a rate, a number of calls at once, or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CallLimit {
    /// The route whose calls it counts; `None`: those of all routes together.
    pub route: Option<String>,
    /// Calls that differ in one of these count apart. In the order of declaration, each once.
    pub per: Vec<Per>,
    pub rate: Option<Rate>,
    /// Calls under way at once; at least one.
    pub concurrent: Option<u32>,
    /// Whether all instances count together.
    pub shared: bool,
}

/// One call each `interval` in the long run, and `burst` of them at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    /// At least a microsecond.
    pub interval: Duration,
    /// At least one. `burst` intervals are a year at the most.
    pub burst: u32,
}

impl CallLimit {
    #[must_use]
    pub fn is_per(&self, what: Per) -> bool {
        self.per.contains(&what)
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const RATE_EXAMPLE: &str = "write how many in which time, like 10/s, 600/m, 5000/h or 20000/d";

/// Checks a list of limits. `route`: whose they are; `None`: of all routes together.
pub(super) fn check(
    check: &mut Checker<'_>,
    list: &Key,
    written: &[file::CallLimit],
    route: Option<&str>,
) -> Vec<Arc<CallLimit>> {
    let mut limits: Vec<Arc<CallLimit>> = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let key = list.item(index);
        let per = per(check, &key.child("per"), entry.per.as_deref().unwrap_or_default(), route.is_some());
        let rate = rate(check, &key, entry);
        if entry.rate.is_none() && entry.concurrent.is_none() {
            check.refuse(&key, "limits nothing", "write `rate`, `concurrent` or both");
        }
        let (route, concurrent) = (route.map(str::to_owned), entry.concurrent);
        let limit = CallLimit { route, per, rate, concurrent, shared: entry.shared.unwrap_or(false) };
        if let Some(earlier) = limits.iter().position(|earlier| **earlier == limit) {
            check.refuse(&key, format!("is the same as number {earlier} of this list"), "leave one out");
        }
        limits.push(Arc::new(limit));
    }
    limits
}

/// In the order of declaration, so that the order in the file makes no other limit.
fn per(check: &mut Checker<'_>, key: &Key, written: &[Per], of_route: bool) -> Vec<Per> {
    if of_route && let Some(index) = written.iter().position(|what| *what == Per::Route) {
        let write = "leave `route` out, or write the limit into `limits.calls`";
        check.refuse(&key.item(index), "is needless: a route's limits count its calls alone", write);
    }
    Per::ALL.into_iter().filter(|what| written.contains(what)).collect()
}

fn rate(check: &mut Checker<'_>, key: &Key, entry: &file::CallLimit) -> Option<Rate> {
    let Some(text) = &entry.rate else {
        if entry.burst.is_some() {
            check.refuse(&key.child("burst"), "belongs to a rate", "write `rate`, or leave `burst` out");
        }
        return None;
    };
    let Some((count, interval)) = read(text) else {
        check.refuse(&key.child("rate"), "is not a rate", RATE_EXAMPLE);
        return None;
    };
    let burst = entry.burst.unwrap_or(count);
    match interval.checked_mul(burst) {
        Some(whole) if whole <= YEAR => Some(Rate { interval, burst }),
        _ => {
            let write = "write a smaller number, or a higher rate";
            check.refuse(&key.child("burst"), "takes more than a year to come back", write);
            None
        }
    }
}

/// How many, and the time that one of them stands for. More than a million each second are no rate.
fn read(text: &str) -> Option<(u32, Duration)> {
    let (count, unit) = text.split_once('/')?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    // The parser would take a sign.
    let count: u32 = count.bytes().all(|byte| byte.is_ascii_digit()).then(|| count.parse().ok())??;
    let micros = (seconds * 1_000_000_u64).checked_div(count.into())?;
    (micros > 0).then_some((count, Duration::from_micros(micros)))
}
