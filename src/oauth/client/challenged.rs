//! What an upstream asked for in the middle of things, remembered for ten minutes: which scopes the next
//! authorization has to ask for, and that a grant's next refresh should send its client back to the user.
//!
//! The latter is for clients that answer a 401 with a refresh and nothing else (TypeScript SDK 1.x): while the
//! upstream wants the user, the refresh at Postern fails, once per challenge and without using anything up.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Connector, connection_key};
use crate::store::Kind;
use crate::store::record::{RecordError, Take, Typed};

const REMEMBERED: Duration = Duration::from_secs(600);
/// More grants than that are forgotten together; their challenges then end by themselves.
const MET_MAX: usize = 10_000;

/// An upstream challenge (store record).
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Challenge {
    pub scopes: Vec<String>,
    /// The authorization it came in answer to, if there was one. Another one since then settles it.
    pub incarnation: Option<String>,
}

impl Typed for Challenge {
    const KIND: Kind = Kind::Challenge;
}

impl Connector {
    /// Remembers that a call of `grant` met a challenge.
    pub async fn challenged(&self, grant: &str, user: &str, route: &str, challenge: &Challenge) {
        if self.met.len() >= MET_MAX {
            self.met.clear();
        }
        self.met.insert(grant.into());
        for key in [of_grant(grant), of_connection(&connection_key(user, route))] {
            if let Err(error) = self.remember(&key, challenge).await {
                tracing::warn!(target: "postern::oauth", %error, "an upstream challenge could not be remembered");
            }
        }
    }

    /// One that says nothing new costs no write; scopes add up while nobody has answered.
    async fn remember(&self, key: &str, challenge: &Challenge) -> Result<(), RecordError> {
        let mut challenge = challenge.clone();
        let mut expected = 0;
        match self.records.get::<Challenge>(key).await? {
            Some(open) if !open.spent && open.value.incarnation == challenge.incarnation => {
                let mut scopes = open.value.scopes.clone();
                scopes
                    .extend(challenge.scopes.into_iter().filter(|scope| !open.value.scopes.contains(scope)));
                if scopes == open.value.scopes {
                    return Ok(());
                }
                challenge.scopes = scopes;
                expected = open.version;
            }
            Some(_) => self.records.remove::<Challenge>(key).await?,
            None => {}
        }
        // Who loses the race was told much the same by the same upstream.
        self.records.put(key, expected, &challenge, REMEMBERED).await?;
        Ok(())
    }

    /// Whether a call of this grant met a challenge here lately: spares every other call a look into the store.
    pub fn has_met_challenge(&self, grant: &str) -> bool {
        self.met.contains(grant)
    }

    /// The grant's calls go through again.
    pub async fn settled(&self, grant: &str) {
        self.met.remove(grant);
        if let Err(error) = self.records.remove::<Challenge>(&of_grant(grant)).await {
            tracing::debug!(target: "postern::oauth", %error, "a settled challenge stays until it expires");
        }
    }

    /// Whether a refresh of `grant` should fail so that its client brings the user: true once per challenge that
    /// nobody has settled since.
    pub async fn wants_user(&self, grant: &str, user: &str, route: &str) -> Result<bool, RecordError> {
        let key = of_grant(grant);
        let Some(challenge) = self.records.get::<Challenge>(&key).await? else {
            return Ok(false);
        };
        if challenge.spent {
            return Ok(false);
        }
        let connection = self.records.store().connection(&connection_key(user, route)).await?;
        if connection.map(|connection| connection.incarnation) != challenge.value.incarnation {
            self.records.remove::<Challenge>(&key).await?;
            return Ok(false);
        }
        Ok(matches!(self.records.take::<Challenge>(&key).await?, Take::Fresh(_)))
    }

    /// The challenge that a user's connection is still under.
    pub(super) async fn open_challenge(
        &self,
        connection: &str,
        incarnation: Option<&str>,
    ) -> Option<Challenge> {
        let challenge = self.records.get::<Challenge>(&of_connection(connection)).await.ok()??.value;
        (challenge.incarnation.as_deref() == incarnation).then_some(challenge)
    }
}

fn of_grant(grant: &str) -> String {
    format!("grant/{grant}")
}

fn of_connection(connection: &str) -> String {
    format!("connection/{connection}")
}
