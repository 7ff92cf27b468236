//! Who did what.
use std::time::{Duration, UNIX_EPOCH};

use axum::http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::call::Call;
use super::operation::{Access, Operation, Reply, of};
use super::page::{Page, Part};
use super::problem::Problem;
use crate::api::managed::event::{self, Outcome, Wanted};
use crate::api::managed::scope::Scope;

pub const OPERATIONS: &[Operation] = &[Operation {
    method: Method::GET,
    path: "/events",
    name: "listEvents",
    summary: "Who did what, the newest first: your own doings, those in what you administer",
    access: Access::Scope(Scope::Audit),
    query: Some(of::<Listed>),
    body: None,
    status: StatusCode::OK,
    answer: Some(of::<Page<Event>>),
    versioned: false,
    run: |call| Box::pin(list(call)),
}];

/// Which events are asked for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Listed {
    #[serde(default)]
    #[schemars(with = "String")]
    organization: Option<String>,
    #[serde(default)]
    #[schemars(with = "String")]
    configuration: Option<String>,
    /// Who asked for it.
    #[serde(default)]
    #[schemars(with = "String")]
    actor: Option<String>,
    /// Like `configuration.create`.
    #[serde(default)]
    #[schemars(with = "String")]
    action: Option<String>,
    #[serde(default)]
    #[schemars(with = "Outcome")]
    outcome: Option<Outcome>,
    /// How many at the most.
    #[serde(default)]
    #[schemars(with = "u8", range(min = 1, max = 200))]
    limit: Option<usize>,
    /// `next` of the part before.
    #[serde(default)]
    #[schemars(with = "String")]
    cursor: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Event {
    id: String,
    #[schemars(extend("format" = "date-time"))]
    at: String,
    /// Who asked for it.
    actor: String,
    /// Like `configuration.create`.
    action: String,
    organization: Option<String>,
    configuration: Option<String>,
    /// Whom it was done to.
    user: Option<String>,
    outcome: Outcome,
    /// Why it was not done.
    reason: Option<String>,
    /// As in the log of the gateway.
    request_id: String,
}

async fn list(call: &Call<'_>) -> Result<Reply, Problem> {
    let asked: Listed = call.query()?;
    let part = Part::new(asked.limit, asked.cursor.as_deref())?;
    let wanted = Wanted {
        organization: asked.organization.as_deref(),
        configuration: asked.configuration.as_deref(),
        actor: asked.actor.as_deref(),
        action: asked.action.as_deref(),
        outcome: asked.outcome,
        before: part.after.as_deref(),
        // One more, which says whether there are more.
        limit: part.limit + 1,
    };
    let found = call.desk()?.events(&wanted).await?;
    Reply::of(&part.first(found, |event| &event.id).map(Event::of))
}

impl Event {
    fn of(record: event::Event) -> Self {
        let at = UNIX_EPOCH + Duration::from_millis(record.at);
        Self {
            id: record.id,
            at: humantime::format_rfc3339_millis(at).to_string(),
            actor: record.actor,
            action: record.action,
            organization: record.organization,
            configuration: record.configuration,
            user: record.user,
            outcome: record.outcome,
            reason: record.reason,
            request_id: record.request_id,
        }
    }
}
