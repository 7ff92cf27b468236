//! How often a user is sent to an upstream's authorization server: never without end, whatever the upstream says.
//!
//! An upstream may ask for more each time, so step-ups are counted per user and route. And it may refuse the very tokens that
//! its authorization server has just issued: so a connection is on trial until a call went through with it, and whoever is
//! refused on trial is not sent there again before the trial is over. Only finished visits count, since nobody loops by
//! closing a page.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Connector;
use super::prospect::Plan;
use crate::clock::unix_seconds;
use crate::store::record::{RecordError, Typed, Versioned};
use crate::store::{Kind, Put};

/// For so long a visit counts as a step-up.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// For so long a connection is on trial, and visits for the same scopes are counted together.
const WINDOW: Duration = Duration::from_secs(600);
/// Within that time the first call tells what a token is worth.
const FIRST_CALL: Duration = Duration::from_secs(120);
/// Step-ups per user and route, and those of them that asked for nothing new.
const STEP_UPS: usize = 3;
const STEP_UPS_FOR_THE_SAME: usize = 2;
/// Visits per user, route and set of scopes, and for whatever scopes.
const VISITS: usize = 3;
const VISITS_IN_ALL: usize = 6;
/// No rule above looks further back.
const KEPT: usize = 16;
/// How often a write is decided anew because somebody else was faster.
const TRIES: usize = 4;

/// The visits of one user for one connection (store record).
#[derive(Default, Serialize, Deserialize)]
struct Visits {
    visits: Vec<Visit>,
}

/// The connection that came of the last visit, until the upstream has taken its token (store record). Of its own: after
/// that the first call of every token looks for it, and what is not there need not be opened.
#[derive(Serialize, Deserialize)]
struct Trial {
    incarnation: String,
    /// Seconds since the epoch.
    began_at: u64,
    /// The upstream has refused it instead.
    refused: bool,
}

#[derive(Serialize, Deserialize)]
struct Visit {
    /// Seconds since the epoch.
    at: u64,
    /// What was asked for, sorted.
    scopes: Vec<String>,
    /// What the upstream had asked for in the middle of things, where it was a step-up.
    step_up: Option<Vec<String>>,
}

impl Typed for Visits {
    const KIND: Kind = Kind::Challenge;
}

impl Typed for Trial {
    const KIND: Kind = Kind::Challenge;
}

impl Visits {
    fn since(&self, now: SystemTime, window: Duration) -> impl Iterator<Item = &Visit> {
        self.visits.iter().filter(move |visit| UNIX_EPOCH + Duration::from_secs(visit.at) + window > now)
    }

    fn may_visit(&self, scopes: &[String], now: SystemTime) -> bool {
        let scopes = sorted(scopes);
        self.since(now, WINDOW).filter(|visit| visit.scopes == scopes).count() < VISITS
            && self.since(now, WINDOW).count() < VISITS_IN_ALL
    }

    fn may_step_up(&self, asked: &[String], now: SystemTime) -> bool {
        let step_ups: Vec<_> =
            self.since(now, REMEMBERED).filter_map(|visit| visit.step_up.as_ref()).collect();
        // Who names nothing means something else each time, for all we know, but not for ever.
        let is_old = |before: &&&Vec<String>| match asked {
            [] => before.is_empty(),
            asked => asked.iter().all(|scope| before.contains(scope)),
        };
        step_ups.len() < STEP_UPS && step_ups.iter().filter(is_old).count() < STEP_UPS_FOR_THE_SAME
    }
}

impl Trial {
    /// Later the token may just have come to its end.
    fn may_fail(&self, incarnation: &str, now: SystemTime) -> bool {
        self.is_of(incarnation, FIRST_CALL, now)
    }

    fn is_under_way(&self, incarnation: &str, now: SystemTime) -> bool {
        self.is_of(incarnation, WINDOW, now)
    }

    fn is_of(&self, incarnation: &str, window: Duration, now: SystemTime) -> bool {
        self.incarnation == incarnation && UNIX_EPOCH + Duration::from_secs(self.began_at) + window > now
    }
}

impl Connector {
    /// Whether the user may be sent there for these scopes once more.
    pub(super) async fn may_visit(&self, connection: &str, scopes: &[String]) -> bool {
        self.visits(connection).await.may_visit(scopes, self.clock.now())
    }

    /// Whether the user is to be asked for what the upstream wants, or has been asked often enough.
    pub async fn may_step_up(&self, connection: &str, asked: &[String]) -> bool {
        self.visits(connection).await.may_step_up(asked, self.clock.now())
    }

    /// The upstream refuses this connection's tokens, the last of them too. Says whether it never took one.
    pub async fn fails_trial(&self, connection: &str, incarnation: &str) -> bool {
        let Some(Versioned { value: trial, version, .. }) = self.trial(connection).await else {
            return false;
        };
        let is_on_trial = trial.may_fail(incarnation, self.clock.now());
        if is_on_trial && !trial.refused {
            let refused = Trial { refused: true, ..trial };
            // A conflict: it has passed, or another instance says the same.
            if let Err(error) = self.records.put(&of_trial(connection), version, &refused, WINDOW).await {
                not_remembered(&error);
            }
        }
        is_on_trial
    }

    /// Whether [`Connector::fails_trial`] has said so of late.
    pub async fn has_failed_trial(&self, connection: &str, incarnation: &str) -> bool {
        let trial = self.trial(connection).await;
        trial.is_some_and(|found| {
            found.value.refused && found.value.is_under_way(incarnation, self.clock.now())
        })
    }

    /// The user was there, and this connection came of it.
    pub(super) async fn visited(&self, connection: &str, incarnation: &str, plan: &Plan) {
        let at = unix_seconds(self.clock.now());
        let visited = self.change_visits(connection, |visits| {
            let visit = Visit { at, scopes: sorted(&plan.scopes), step_up: plan.step_up.clone() };
            visits.visits.push(visit);
            let surplus = visits.visits.len().saturating_sub(KEPT);
            visits.visits.drain(..surplus);
            true
        });
        let trial = Trial { incarnation: incarnation.to_owned(), began_at: at, refused: false };
        let (_, begun) = tokio::join!(visited, self.begin_trial(connection, &trial));
        begun.unwrap_or_else(|error| not_remembered(&error));
    }

    async fn begin_trial(&self, connection: &str, trial: &Trial) -> Result<(), RecordError> {
        let key = of_trial(connection);
        for _ in 0..TRIES {
            // Whatever was there, readable or not, is of an earlier connection.
            let before = self.records.store().get(Trial::KIND, &key).await?;
            let version = before.map_or(0, |before| before.version);
            if self.records.put(&key, version, trial, WINDOW).await? == Put::Stored {
                break;
            }
        }
        Ok(())
    }

    /// A call went through with it. `false`: that could not be noted.
    pub(super) async fn passed_trial(&self, connection: &str) -> bool {
        let ended = self.end_trial(connection).await;
        if let Err(error) = &ended {
            not_remembered(error);
        }
        ended.is_ok()
    }

    async fn end_trial(&self, connection: &str) -> Result<(), RecordError> {
        let key = of_trial(connection);
        match self.records.store().get(Trial::KIND, &key).await? {
            Some(_) => self.records.remove::<Trial>(&key).await,
            None => Ok(()),
        }
    }

    /// The user has ended the connection: whatever comes now is their own doing.
    pub(super) async fn forget_visits(&self, connection: &str) {
        let is_known = |visits: &mut Visits| !std::mem::take(visits).visits.is_empty();
        tokio::join!(self.change_visits(connection, is_known), self.passed_trial(connection));
    }

    /// As [`Connector::visits`].
    async fn trial(&self, connection: &str) -> Option<Versioned<Trial>> {
        self.records.readable::<Trial>(&of_trial(connection)).await.ok().flatten()
    }

    /// Without the store nobody is sent anywhere, so what it does not say stands in nobody's way.
    async fn visits(&self, connection: &str) -> Visits {
        let found = self.records.readable::<Visits>(&of_connection(connection)).await;
        found.ok().flatten().map(|found| found.value).unwrap_or_default()
    }

    /// `change` says whether there is something to be written.
    async fn change_visits(&self, connection: &str, change: impl Fn(&mut Visits) -> bool) {
        let key = of_connection(connection);
        let changed = async {
            for _ in 0..TRIES {
                let (mut visits, version) = match self.records.get::<Visits>(&key).await {
                    Ok(Some(found)) => (found.value, found.version),
                    Ok(None) => (Visits::default(), 0),
                    Err(RecordError::Unreadable) => return self.records.remove::<Visits>(&key).await,
                    Err(error) => return Err(error),
                };
                if !change(&mut visits)
                    || self.records.put(&key, version, &visits, REMEMBERED).await? == Put::Stored
                {
                    break;
                }
            }
            Ok(())
        };
        changed.await.unwrap_or_else(|error| not_remembered(&error));
    }
}

fn not_remembered(error: &RecordError) {
    tracing::warn!(target: "postern::oauth", %error, "how often a user was at an upstream is not remembered");
}

fn of_connection(connection: &str) -> String {
    format!("visits/{connection}")
}

fn of_trial(connection: &str) -> String {
    format!("trial/{connection}")
}

fn sorted(scopes: &[String]) -> Vec<String> {
    let mut scopes = scopes.to_vec();
    scopes.sort();
    scopes.dedup();
    scopes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn scopes(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    type Row<'a> = (u64, &'a [&'a str], Option<&'a [&'a str]>);

    fn visits(of: &[Row<'_>]) -> Visits {
        let visit = |(at, asked_for, step_up): &Row<'_>| Visit {
            at: *at,
            scopes: scopes(asked_for),
            step_up: step_up.map(scopes),
        };
        Visits { visits: of.iter().map(visit).collect() }
    }

    #[test]
    fn three_step_ups_an_hour_and_two_for_the_same() {
        let admin: Option<&[&str]> = Some(&["admin"]);
        let known = visits(&[(0, &["basic"], None), (10, &["admin", "basic"], admin)]);
        assert!(known.may_step_up(&scopes(&["admin"]), at(20)), "the user may have said no to it");
        let known = visits(&[(10, &["admin"], admin), (20, &["admin"], admin)]);
        assert!(!known.may_step_up(&scopes(&["admin"]), at(30)));
        assert!(known.may_step_up(&[], at(30)));
        let nameless: Option<&[&str]> = Some(&[]);
        assert!(!visits(&[(10, &[], nameless), (20, &[], nameless)]).may_step_up(&[], at(30)));
        assert!(known.may_step_up(&scopes(&["admin", "more"]), at(30)));
        assert!(known.may_step_up(&scopes(&["admin"]), at(3615)));
        let known =
            visits(&[(1, &["a"], Some(&["a"])), (2, &["b"], Some(&["b"])), (3, &["c"], Some(&["c"]))]);
        assert!(!known.may_step_up(&scopes(&["d"]), at(30)));
    }

    #[test]
    fn three_visits_for_the_same_scopes_in_ten_minutes() {
        let known = visits(&[(0, &["a", "b"], None), (1, &["a", "b"], None), (2, &["a", "b"], None)]);
        assert!(!known.may_visit(&scopes(&["b", "a"]), at(30)));
        assert!(known.may_visit(&scopes(&["a"]), at(30)));
        assert!(known.may_visit(&scopes(&["a", "b"]), at(600)));
        let each: Vec<[&str; 1]> = ["a", "b", "c", "d", "e", "f"].map(|scope| [scope]).to_vec();
        let each: Vec<Row<'_>> = each.iter().map(|scope| (0, scope.as_slice(), None)).collect();
        assert!(visits(&each[..5]).may_visit(&scopes(&["g"]), at(1)));
        assert!(!visits(&each).may_visit(&scopes(&["g"]), at(1)), "another set each time is no way out");
    }

    #[test]
    fn a_trial_is_of_one_connection_and_ends() {
        let trial = Trial { incarnation: "i".to_owned(), began_at: 0, refused: false };
        assert!(trial.may_fail("i", at(119)) && !trial.may_fail("i", at(120)));
        assert!(trial.is_under_way("i", at(599)));
        assert!(!trial.is_under_way("other", at(1)));
        assert!(!trial.is_under_way("i", at(600)));
    }
}
