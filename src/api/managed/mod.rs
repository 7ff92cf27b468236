//! What the management API and the commands do about managed connections: who may do what is decided here, on plain types,
//! and every change is noted with who asked for it. `web` puts HTTP around it.
//!
//! A change is one conditional write, taken in by this instance before it is answered and by all others from the store's
//! events. What nobody may know of is not found.
pub mod assignment;
mod check;
pub mod configuration;
pub mod discover;
pub mod event;
pub mod organization;
pub mod scope;
pub mod token;
pub mod wish;

use std::time::{Duration, SystemTime};

use self::event::{Event, Outcome};
use crate::clock::unix_seconds;
use crate::config::Managed as Settings;
use crate::managed::record::{Organization, Owner, Role};
use crate::oauth::server::{Authority, Snapshot};
use crate::store::record::{RecordError, Typed, Versioned};
use crate::store::{FOREVER, Put};

/// Who asks, proven.
#[derive(Clone)]
pub struct Actor {
    /// The user, or a service account that acts for nobody.
    pub name: String,
    /// Of the request, for the log.
    pub request_id: String,
    /// May make organisations and see all of them.
    pub is_administrator: bool,
}

/// What one request is decided on.
#[derive(Clone, Copy)]
pub struct Desk<'a> {
    pub authority: &'a Authority,
    pub snapshot: &'a Snapshot,
    pub settings: &'a Settings,
    pub actor: &'a Actor,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not there, or nobody may know that it is.
    #[error("there is nothing of that name")]
    NotFound,
    #[error("{0}")]
    Forbidden(&'static str),
    /// One member of what was sent, and what is wrong with it.
    #[error("{0}: {1}")]
    Invalid(&'static str, String),
    /// Something that is there stands against it.
    #[error("{0}")]
    Conflict(&'static str),
    /// It is another version by now than the one that was to be changed.
    #[error("it has changed meanwhile")]
    Stale,
    /// The MCP server that was to be added cannot be used as asked.
    #[error("{0}")]
    Unusable(String),
    #[error("the store cannot be reached")]
    Unavailable,
}

impl From<RecordError> for Refused {
    fn from(_: RecordError) -> Self {
        Self::Unavailable
    }
}

/// A record and its version, for whoever wants to change it.
pub struct Current<T> {
    pub value: T,
    pub version: u64,
}

/// Conditional writes that lose are decided anew on what the winner wrote.
const TRIES: usize = 4;
/// Of names, characters.
const LONGEST_NAME: usize = 200;

// === impl Desk ===

impl<'a> Desk<'a> {
    /// `None`: this gateway lets nobody add anything.
    pub fn new(authority: &'a Authority, snapshot: &'a Snapshot, actor: &'a Actor) -> Option<Self> {
        let settings = snapshot.config.managed.as_ref()?;
        Some(Self { authority, snapshot, settings, actor })
    }

    fn now(&self) -> SystemTime {
        self.authority.clock.now()
    }

    fn seconds(&self) -> u64 {
        unix_seconds(self.now())
    }

    /// What the actor is in an organisation that they may know of.
    fn role(&self, organization: &str) -> Result<(Organization, Option<Role>), Refused> {
        let found = self.authority.directory.organization(organization).ok_or(Refused::NotFound)?;
        let membership = self.authority.directory.membership(organization, &self.actor.name);
        match membership {
            Some(membership) => Ok((found, Some(membership.role))),
            None if self.actor.is_administrator => Ok((found, None)),
            None => Err(Refused::NotFound),
        }
    }

    /// The organisation, for somebody who may change what belongs to it.
    fn administered(&self, organization: &str) -> Result<Organization, Refused> {
        match self.role(organization)? {
            (found, Some(Role::Administrator)) => Ok(found),
            (found, _) if self.actor.is_administrator => Ok(found),
            _ => Err(Refused::Forbidden("an administrator of the organisation has to do this")),
        }
    }

    /// Whether the actor may change what belongs to this owner. Who may not know of it hears that it is not there.
    fn require_owner(&self, owner: &Owner) -> Result<(), Refused> {
        match owner {
            Owner::User(user) if *user == self.actor.name => Ok(()),
            Owner::User(_) => Err(Refused::NotFound),
            Owner::Organization(id) => self.administered(id).map(|_| ()),
        }
    }

    fn require_user(&self, user: &str) -> Result<(), Refused> {
        match self.snapshot.config.login.knows(user) {
            true => Ok(()),
            false => Err(Refused::Invalid("user", "nobody of that name can sign in here".to_owned())),
        }
    }

    async fn read<T: Typed>(&self, key: &str) -> Result<Versioned<T>, Refused> {
        self.authority.records.readable::<T>(key).await?.ok_or(Refused::NotFound)
    }

    /// Writes a record that is new, and takes it in.
    async fn create<T: Typed>(&self, key: &str, value: &T) -> Result<(), Refused> {
        match self.authority.records.put(key, 0, value, FOREVER).await? {
            Put::Stored => Ok(self.authority.managed_changed(T::KIND, key).await?),
            Put::Conflict => Err(Refused::Conflict("it is there already")),
        }
    }

    /// Changes a record, and takes it in. `expected`: the version that the actor has seen; any, where they do not say.
    async fn change<T: Typed>(
        &self,
        key: &str,
        expected: Option<u64>,
        lifetime: impl Fn(&T) -> Duration,
        change: impl Fn(T) -> Result<T, Refused>,
    ) -> Result<Current<T>, Refused> {
        for _ in 0..TRIES {
            let Versioned { value, version, .. } = self.read::<T>(key).await?;
            if expected.is_some_and(|expected| expected != version) {
                return Err(Refused::Stale);
            }
            let value = change(value)?;
            if self.authority.records.put(key, version, &value, lifetime(&value)).await? == Put::Stored {
                self.authority.managed_changed(T::KIND, key).await?;
                return Ok(Current { value, version: version + 1 });
            }
        }
        Err(Refused::Stale)
    }

    async fn remove<T: Typed>(&self, key: &str) -> Result<(), Refused> {
        self.authority.records.remove::<T>(key).await?;
        Ok(self.authority.managed_changed(T::KIND, key).await?)
    }

    /// Notes what became of something that was asked for.
    async fn noted<T>(&self, event: Event, outcome: Result<T, Refused>) -> Result<T, Refused> {
        let (kind, reason) = match &outcome {
            Ok(_) => (Outcome::Success, None),
            Err(refused @ (Refused::NotFound | Refused::Forbidden(_))) => {
                (Outcome::Blocked, Some(refused.to_string()))
            }
            Err(refused) => (Outcome::Failure, Some(refused.to_string())),
        };
        event::note(self, event, kind, reason).await;
        outcome
    }
}

/// A name for people.
fn name(written: &str) -> Result<String, Refused> {
    let name = written.trim();
    let is_fit = !name.is_empty()
        && name.chars().count() <= LONGEST_NAME
        && !name.chars().any(|character| character.is_control());
    match is_fit {
        true => Ok(name.to_owned()),
        false => Err(Refused::Invalid("name", format!("has to have 1 to {LONGEST_NAME} characters"))),
    }
}
