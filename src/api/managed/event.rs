//! Who did what to managed connections, and what came of it. Events have no place for a secret: they name things and say no
//! value. They are kept for a time that the configuration says.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Desk, Refused};
use crate::managed::record::Owner;
use crate::oauth::server::Authority;
use crate::seal;
use crate::store::Kind;
use crate::store::record::Typed;

/// An event (store record, found by its id).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Its milliseconds since the epoch in hexadecimal and random characters: ids are in the order of time.
    pub id: String,
    /// Milliseconds since the epoch.
    pub at: u64,
    /// Who asked for it.
    pub actor: String,
    /// What was asked for, like `configuration.create`.
    pub action: String,
    pub organization: Option<String>,
    pub configuration: Option<String>,
    /// Whom it was done to.
    pub user: Option<String>,
    pub outcome: Outcome,
    /// Why it was not done.
    pub reason: Option<String>,
    pub request_id: String,
}

impl Typed for Event {
    const KIND: Kind = Kind::Event;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Success,
    /// It could not be done.
    Failure,
    /// Whoever asked may not.
    Blocked,
}

/// Which events are asked for.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    pub organization: Option<&'a str>,
    pub configuration: Option<&'a str>,
    pub actor: Option<&'a str>,
    pub action: Option<&'a str>,
    pub outcome: Option<Outcome>,
    /// Older than the one of this id.
    pub before: Option<&'a str>,
    pub limit: usize,
}

impl Event {
    /// Something that is asked for now.
    pub fn new(action: &str) -> Self {
        Self {
            id: String::new(),
            at: 0,
            actor: String::new(),
            action: action.to_owned(),
            organization: None,
            configuration: None,
            user: None,
            outcome: Outcome::Success,
            reason: None,
            request_id: String::new(),
        }
    }

    pub fn of(mut self, owner: &Owner) -> Self {
        match owner {
            Owner::User(user) => self.user = self.user.or_else(|| Some(user.clone())),
            Owner::Organization(id) => self.organization = Some(id.clone()),
        }
        self
    }

    pub fn about(self, configuration: &str) -> Self {
        Self { configuration: Some(configuration.to_owned()), ..self }
    }

    pub fn to(self, user: &str) -> Self {
        Self { user: Some(user.to_owned()), ..self }
    }
}

/// Keeps an event, and logs it. What cannot be kept is in the log all the same.
pub(super) async fn note(desk: &Desk<'_>, event: Event, outcome: Outcome, reason: Option<String>) {
    let at = desk.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    let (actor, request_id) = (desk.actor.name.clone(), desk.actor.request_id.clone());
    let id = format!("{at:012x}{}", seal::name().unwrap_or_default());
    let event = Event { id, at, actor, outcome, reason, request_id, ..event };
    tracing::info!(
        target: "audit",
        event = event.action,
        actor = event.actor,
        organization = event.organization,
        configuration = event.configuration,
        user = event.user,
        outcome = ?event.outcome,
        reason = event.reason,
        request_id = event.request_id,
    );
    let lifetime = desk.settings.event_retention;
    if let Err(error) = desk.authority.records.put(&event.id, 0, &event, lifetime).await {
        tracing::error!(target: "audit", %error, "an event was not kept");
    }
}

/// The newest first, `limit` at most.
pub async fn list(authority: &Authority, wanted: &Wanted<'_>) -> Result<Vec<Event>, Refused> {
    let all = authority.records.scan::<Event>().await?;
    let is = |asked: Option<&str>, said: Option<&str>| asked.is_none_or(|asked| said == Some(asked));
    let is_wanted = |event: &Event| {
        is(wanted.organization, event.organization.as_deref())
            && is(wanted.configuration, event.configuration.as_deref())
            && is(wanted.actor, Some(&event.actor))
            && is(wanted.action, Some(&event.action))
            && wanted.outcome.is_none_or(|outcome| outcome == event.outcome)
            && wanted.before.is_none_or(|before| event.id.as_str() < before)
    };
    let mut events: Vec<_> = all.into_iter().map(|(_, found)| found.value).filter(is_wanted).collect();
    events.sort_by(|one, other| other.id.cmp(&one.id));
    events.truncate(wanted.limit);
    Ok(events)
}

impl Desk<'_> {
    /// What the actor may see: of an organisation its administrators see everything, of what is their own its owner, and the
    /// administrators of the gateway everything there is.
    pub async fn events(&self, wanted: &Wanted<'_>) -> Result<Vec<Event>, Refused> {
        match (wanted.organization, wanted.configuration) {
            (Some(organization), _) => {
                self.administered(organization)?;
            }
            (None, _) if self.actor.is_administrator => {}
            (None, Some(configuration)) => {
                self.configuration_to_change(configuration).await?;
            }
            (None, None) => {
                let own = Wanted { actor: Some(&self.actor.name), ..*wanted };
                let mut events = list(self.authority, &own).await?;
                // Whoever was refused is not told whose it is.
                let is_hidden = |id: &mut String| self.role(id).is_err();
                for event in events.iter_mut().filter(|event| event.outcome == Outcome::Blocked) {
                    event.organization.take_if(is_hidden);
                }
                return Ok(events);
            }
        }
        list(self.authority, wanted).await
    }
}
