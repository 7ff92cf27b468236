//! Who may use a configuration.
use axum::http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::call::{Call, segment};
use super::operation::{Access, Operation, Reply, of};
use super::page::{Page, Part, Wanted};
use super::problem::Problem;
use super::time;
use crate::api::managed::scope::Scope;
use crate::managed::record;

pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: Method::GET,
        path: "/configurations/{configuration}/assignments",
        name: "listAssignments",
        summary: "Who may use a configuration that you may change, by name",
        access: Access::Scope(Scope::Read),
        query: Some(of::<Wanted>),
        body: None,
        status: StatusCode::OK,
        answer: Some(of::<Page<Assignment>>),
        versioned: false,
        run: |call| Box::pin(list(call)),
    },
    Operation {
        method: Method::PUT,
        path: "/configurations/{configuration}/assignments/{user}",
        name: "assign",
        summary: "Lets a member of the organisation use it",
        access: Access::Scope(Scope::Write),
        query: None,
        body: None,
        status: StatusCode::OK,
        answer: Some(of::<Assignment>),
        versioned: false,
        run: |call| Box::pin(assign(call)),
    },
    Operation {
        method: Method::DELETE,
        path: "/configurations/{configuration}/assignments/{user}",
        name: "unassign",
        summary: "Takes it from them, with their connection",
        access: Access::Scope(Scope::Write),
        query: None,
        body: None,
        status: StatusCode::NO_CONTENT,
        answer: None,
        versioned: false,
        run: |call| Box::pin(unassign(call)),
    },
];

#[derive(Serialize, JsonSchema)]
struct Assignment {
    configuration: String,
    user: String,
    /// The user as it is written in paths.
    segment: String,
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
}

async fn list(call: &Call<'_>) -> Result<Reply, Problem> {
    let Wanted { limit, cursor } = call.query()?;
    let part = Part::new(limit, cursor.as_deref())?;
    let all = call.desk()?.assignments(call.name(0)?).await?;
    let page = part.of(all, |assignment| &assignment.user);
    Reply::of(&page.map(|assignment| Assignment::of(&assignment)))
}

async fn assign(call: &Call<'_>) -> Result<Reply, Problem> {
    let assigned = call.desk()?.assign(call.name(0)?, &call.user(1)?).await?;
    Reply::of(&Assignment::of(&assigned))
}

async fn unassign(call: &Call<'_>) -> Result<Reply, Problem> {
    call.desk()?.unassign(call.name(0)?, &call.user(1)?).await?;
    Ok(Reply::nothing())
}

impl Assignment {
    fn of(record: &record::Assignment) -> Self {
        Self {
            configuration: record.configuration.clone(),
            user: record.user.clone(),
            segment: segment(&record.user),
            created_at: time(record.created_at),
        }
    }
}
