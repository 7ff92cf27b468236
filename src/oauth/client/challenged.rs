//! What an upstream asked for in the middle of things, remembered for ten minutes: which scopes the next
//! authorization has to ask for, and that a grant's next refresh should send its client back to the user.
//!
//! The latter is for clients that answer a 401 with a refresh and nothing else (TypeScript SDK 1.x): while the
//! upstream wants the user, the refresh at Postern fails, once per challenge and without using anything up.
//!
//! A record is changed by the version that was read and never removed, so whoever looked a moment ago can undo nothing
//! that was said since.
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Connector, connection_key};
use crate::route::Route;
use crate::seal;
use crate::store::record::{RecordError, Typed, Versioned};
use crate::store::{Kind, Put};

const REMEMBERED: Duration = Duration::from_secs(600);
/// A client that answers a missing scope with a refresh does so at once; later ones are about something else.
const LACKING: Duration = Duration::from_secs(60);
/// More grants than that are forgotten together and looked up again.
const SETTLED_MAX: usize = 100_000;
/// How often a write is decided anew because somebody else was faster.
const TRIES: usize = 4;

/// An upstream challenge (store record).
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    pub scopes: Vec<String>,
    /// It refused a token for them, and none for itself (`insufficient_scope`).
    #[serde(default)]
    is_step_up: bool,
    /// Scopes of our own that a call lacked; empty: the upstream it was that asked.
    #[serde(default)]
    lacking: Vec<String>,
    /// What the identity provider wants to see the user about (OpenID Connect Core §5.5), a JSON object.
    #[serde(default)]
    pub claims: Option<String>,
    /// The authorization it came in answer to, if there was one. Another one since then settles it.
    pub incarnation: Option<String>,
    /// A refresh has failed for it, or the grant's calls go through again.
    #[serde(default)]
    settled: bool,
}

impl Typed for Challenge {
    const KIND: Kind = Kind::Challenge;
}

impl Challenge {
    pub fn new(scopes: Vec<String>, incarnation: Option<String>) -> Self {
        Self { scopes, incarnation, ..Self::default() }
    }

    /// As [`Challenge::new`], for a token that was good, but not for this.
    pub fn step_up(scopes: Vec<String>, incarnation: Option<String>) -> Self {
        Self { is_step_up: true, ..Self::new(scopes, incarnation) }
    }

    /// As [`Challenge::new`], of an identity provider that wants to see the user who has signed in there.
    pub fn claiming(claims: Option<String>, incarnation: String) -> Self {
        Self { claims, ..Self::new(Vec::new(), Some(incarnation)) }
    }

    /// What was asked for, if more than before was.
    pub(super) fn stepped_up(&self) -> Option<Vec<String>> {
        self.is_step_up.then(|| self.scopes.clone())
    }

    /// What is to be remembered now that `other` came as well. Scopes add up while nobody has answered.
    fn with(&self, mut other: Challenge) -> Challenge {
        if !self.settled && self.incarnation == other.incarnation {
            let new = std::mem::replace(&mut other.scopes, self.scopes.clone());
            other.scopes.extend(new.into_iter().filter(|scope| !self.scopes.contains(scope)));
            other.is_step_up |= self.is_step_up;
            other.claims = other.claims.or_else(|| self.claims.clone());
            // What the upstream has asked for stays its question.
            match self.lacking.is_empty() || other.lacking.is_empty() {
                true => other.lacking.clear(),
                false => other.lacking.extend(self.lacking.iter().cloned()),
            }
            other.lacking.sort();
            other.lacking.dedup();
        }
        other
    }
}

impl Connector {
    /// Remembers that a call of `grant` met a challenge.
    pub async fn challenged(&self, grant: &str, user: &str, route: &Route, challenge: &Challenge) {
        for key in [of_grant(grant), of_connection(&connection_key(user, route))] {
            if let Err(error) = self.remember(&key, challenge, REMEMBERED).await {
                tracing::warn!(target: "postern::oauth", %error, "an upstream challenge could not be remembered");
            }
        }
        // After the write: a call that goes through meanwhile must not take the grant for settled for good.
        self.settled.remove(grant);
    }

    /// Remembers that a call of `client` lacked some of our own scopes, which is no matter of the upstream's: for the
    /// refresh of this grant, and for the next authorization of this client.
    pub async fn lacked_scopes(
        &self,
        grant: &str,
        (user, client): (&str, &str),
        route: &Route,
        lacking: Vec<String>,
    ) {
        let remembered = async {
            let mut lacking = lacking;
            lacking.sort();
            let connection = self.records.store().connection(&connection_key(user, route)).await?;
            let incarnation = connection.map(|connection| connection.incarnation);
            let challenge = Challenge { lacking, ..Challenge::new(Vec::new(), incarnation) };
            self.remember(&of_grant(grant), &challenge, LACKING).await?;
            self.wish(&of_client(user, client, route), challenge.lacking).await
        };
        if let Err(error) = remembered.await {
            tracing::warn!(target: "postern::oauth", %error, "a missing scope could not be remembered");
        }
        self.settled.remove(grant);
    }

    /// What a client lacked adds up until the user has said yes to it; a no counts until it is forgotten.
    async fn wish(&self, key: &str, lacking: Vec<String>) -> Result<(), RecordError> {
        let known = self.records.readable::<Challenge>(key).await?;
        let (version, before) = match known {
            Some(known) if known.value.settled => return Ok(()),
            Some(known) => (known.version, known.value.lacking),
            None => (0, Vec::new()),
        };
        if lacking.iter().all(|scope| before.contains(scope)) {
            return Ok(());
        }
        let mut both = lacking;
        both.extend(before.into_iter().filter(|scope| !both.contains(scope)).collect::<Vec<_>>());
        let wish = Challenge { lacking: both, ..Challenge::default() };
        // Somebody who was faster wished much the same.
        self.records.put(key, version, &wish, REMEMBERED).await.map(|_| ())
    }

    /// One that says nothing new costs no write, unless what is there ends soon.
    async fn remember(
        &self,
        key: &str,
        challenge: &Challenge,
        lifetime: Duration,
    ) -> Result<(), RecordError> {
        for _ in 0..TRIES {
            let (version, challenge) = match self.records.get::<Challenge>(key).await? {
                Some(known) => {
                    let both = known.value.with(challenge.clone());
                    if both == known.value && known.expires_at > self.clock.now() + lifetime / 2 {
                        return Ok(());
                    }
                    (known.version, both)
                }
                None => (0, challenge.clone()),
            };
            if self.records.put(key, version, &challenge, lifetime).await? == Put::Stored {
                return Ok(());
            }
        }
        // Who always loses was told much the same by the same upstream.
        Ok(())
    }

    /// A challenge was met or settled, here or at another instance: it is looked at again.
    pub fn challenge_changed(&self, key: &str) {
        if let Some(grant) = key.strip_prefix(OF_GRANT) {
            self.settled.remove(grant);
        }
    }

    /// Whether this process knows that no challenge of the grant is open: spares all calls but the first a look into
    /// the store.
    pub fn is_settled(&self, grant: &str, incarnation: Option<&str>) -> bool {
        self.settled.get(grant).is_some_and(|settled| settled.as_deref() == incarnation)
    }

    /// Whether the grant's calls go through is to be looked at.
    pub fn unsettle(&self, grant: &str) {
        self.settled.remove(grant);
    }

    /// The grant's calls go through, whatever this process or another one has met before. About a call that lacks a scope
    /// others say nothing. `connection`: the one that serves them, by key and incarnation.
    pub async fn settle(&self, grant: &str, connection: Option<(&str, Arc<str>)>) {
        if self.settled.len() >= SETTLED_MAX {
            self.settled.clear();
        }
        // Before anything is looked at: what comes meanwhile takes it out again.
        self.settled
            .insert(grant.into(), connection.as_ref().map(|(_, incarnation)| Arc::clone(incarnation)));
        if let Some((key, _)) = connection
            && !self.passed_trial(key).await
        {
            self.settled.remove(grant);
        }
        let key = of_grant(grant);
        let settled = match self.records.get::<Challenge>(&key).await {
            // A conflict is a challenge that came since.
            Ok(Some(open)) if !open.value.settled && open.value.lacking.is_empty() => {
                self.close(&key, open).await.map(|_| ())
            }
            found => found.map(|_| ()),
        };
        if let Err(error) = settled {
            tracing::debug!(target: "postern::oauth", %error, "a settled challenge stays until it expires");
        }
    }

    /// The user of this grant is led to a page: its refresh need not bring them.
    pub async fn answered_by_page(&self, grant: &str) {
        let key = of_grant(grant);
        let closed = match self.records.get::<Challenge>(&key).await {
            Ok(Some(open)) if !open.value.settled => self.close(&key, open).await.map(|_| ()),
            found => found.map(|_| ()),
        };
        if let Err(error) = closed {
            tracing::debug!(target: "postern::oauth", %error, "a challenge that a page answers stays until it expires");
        }
    }

    /// Whether a refresh of `grant` should fail so that its client brings the user: true once per challenge that
    /// nobody has settled since. `granted`: the scopes that a refresh can bring; where that is all that was lacking, it does.
    pub async fn wants_user(
        &self,
        grant: &str,
        user: &str,
        route: &Route,
        granted: &[String],
    ) -> Result<bool, RecordError> {
        let key = of_grant(grant);
        for _ in 0..TRIES {
            let open = self.records.readable::<Challenge>(&key).await?.filter(|known| !known.value.settled);
            let Some(open) = open else {
                return Ok(false);
            };
            let lacking = &open.value.lacking;
            if !lacking.is_empty() && lacking.iter().all(|scope| granted.contains(scope)) {
                return Ok(false);
            }
            let connection = self.records.store().connection(&connection_key(user, route)).await?;
            if connection.map(|connection| connection.incarnation) != open.value.incarnation {
                return Ok(false);
            }
            if self.close(&key, open).await? == Put::Stored {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn close(&self, key: &str, open: Versioned<Challenge>) -> Result<Put, RecordError> {
        let settled = Challenge { settled: true, ..open.value };
        self.records.put(key, open.version, &settled, REMEMBERED).await
    }

    /// What calls of this client lacked of late. Some clients forget what they were asked for on the way to their user, who
    /// would then be sent here again and again; so the user is asked for it all the same.
    pub async fn lacked(&self, user: &str, client: &str, route: &Route) -> Vec<String> {
        if route.rules.scopes().next().is_none() {
            return Vec::new();
        }
        let known = self.records.readable::<Challenge>(&of_client(user, client, route)).await;
        let open = known.ok().flatten().filter(|known| !known.value.settled);
        open.map(|known| known.value.lacking).unwrap_or_default()
    }

    /// The user has answered this client: what it lacked is had, or it is asked for nothing but what it asks for itself.
    pub async fn answered(&self, user: &str, client: &str, route: &Route, is_allowed: bool) {
        let key = of_client(user, client, route);
        let Ok(Some(open)) = self.records.readable::<Challenge>(&key).await else { return };
        let answered = Challenge { settled: open.value.settled || !is_allowed, ..Challenge::default() };
        if let Err(error) = self.records.put(&key, open.version, &answered, REMEMBERED).await {
            tracing::debug!(target: "postern::oauth", %error, "what a client lacked is remembered until it expires");
        }
    }

    /// The challenge that a user's connection is still under.
    pub async fn open_challenge(&self, connection: &str, incarnation: Option<&str>) -> Option<Challenge> {
        let challenge = self.records.get::<Challenge>(&of_connection(connection)).await.ok()??.value;
        (challenge.incarnation.as_deref() == incarnation).then_some(challenge)
    }
}

const OF_GRANT: &str = "grant/";

fn of_grant(grant: &str) -> String {
    format!("{OF_GRANT}{grant}")
}

fn of_client(user: &str, client: &str, route: &Route) -> String {
    format!("client/{}", seal::digest(&format!("{user}\0{client}\0{}", route.name)))
}

fn of_connection(connection: &str) -> String {
    format!("connection/{connection}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::oauth::client::stub::Bench;

    fn wanting(scope: &str) -> Challenge {
        Challenge::new(vec![scope.to_owned()], None)
    }

    async fn open_scopes(connector: &Connector, route: &Route) -> Vec<String> {
        let challenge = connector.open_challenge(&connection_key("alice", route), None).await;
        let mut scopes = challenge.map(|challenge| challenge.scopes).unwrap_or_default();
        scopes.sort();
        scopes
    }

    #[tokio::test]
    async fn what_two_instances_meet_at_once_adds_up() {
        let bench = Bench::new();
        let route = &bench.route();
        let (one, other) = (bench.connector(), bench.connector());
        let (a, b) = (wanting("a"), wanting("b"));
        tokio::join!(one.challenged("g", "alice", route, &a), other.challenged("g", "alice", route, &b));
        assert_eq!(open_scopes(&one, route).await, ["a", "b"]);
    }

    #[tokio::test]
    async fn a_challenge_fails_one_refresh_and_the_next_one_fails_another() {
        let bench = Bench::new();
        let route = &bench.route();
        let (one, other) = (bench.connector(), bench.connector());
        for _ in 0..2 {
            one.challenged("g", "alice", route, &wanting("a")).await;
            let (first, second) = tokio::join!(
                one.wants_user("g", "alice", route, &[]),
                other.wants_user("g", "alice", route, &[])
            );
            assert_eq!(usize::from(first.unwrap()) + usize::from(second.unwrap()), 1);
        }
    }

    #[tokio::test]
    async fn a_call_that_goes_through_settles_what_another_process_met() {
        let bench = Bench::new();
        let route = &bench.route();
        bench.connector().challenged("g", "alice", route, &wanting("a")).await;
        let restarted = bench.connector();
        assert!(!restarted.is_settled("g", None));
        restarted.settle("g", None).await;
        assert!(restarted.is_settled("g", None), "and later calls do not look again");
        assert!(!restarted.is_settled("g", Some("i")), "of another connection nobody knows anything");
        assert!(!restarted.wants_user("g", "alice", route, &[]).await.unwrap());
        restarted.challenged("g", "alice", route, &wanting("a")).await;
        assert!(!restarted.is_settled("g", None));
        assert!(restarted.wants_user("g", "alice", route, &[]).await.unwrap());
    }

    #[tokio::test]
    async fn what_a_refresh_can_bring_needs_no_user() {
        let bench = Bench::new();
        let route = &bench.route();
        let connector = bench.connector();
        let granted = ["a".to_owned()];
        let lacks = async |scope: &str| {
            connector.lacked_scopes("g", ("alice", "c"), route, vec![scope.to_owned()]).await
        };
        let wants_user = async || connector.wants_user("g", "alice", route, &granted).await.unwrap();
        lacks("a").await;
        assert!(!wants_user().await);
        lacks("b").await;
        assert!(wants_user().await, "of the two one cannot be had");
        lacks("a").await;
        connector.challenged("g", "alice", route, &wanting("a")).await;
        assert!(wants_user().await, "the upstream means its own scope");
        connector.challenged("g", "alice", route, &wanting("a")).await;
        lacks("a").await;
        assert!(wants_user().await);
    }

    #[tokio::test]
    async fn who_looked_a_moment_ago_cannot_settle_what_came_since() {
        let bench = Bench::new();
        let route = &bench.route();
        let connector = bench.connector();
        connector.challenged("g", "alice", route, &wanting("a")).await;
        let seen = bench.records.get::<Challenge>(&of_grant("g")).await.unwrap().unwrap();
        connector.challenged("g", "alice", route, &wanting("b")).await;
        assert_eq!(connector.close(&of_grant("g"), seen).await.unwrap(), Put::Conflict);
        assert!(connector.wants_user("g", "alice", route, &[]).await.unwrap());
    }
}
