//! Organisations and their members.
use axum::http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::call::{Call, segment};
use super::operation::{Access, Operation, Reply, of};
use super::page::{Page, Part, Wanted};
use super::problem::Problem;
use super::{path, time};
use crate::api::managed::scope::Scope;
use crate::managed::record::{self, Role};

pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: Method::GET,
        path: "/organizations",
        name: "listOrganizations",
        summary: "Organisations of which you are a member; as an administrator of the gateway, all of them",
        access: Access::Scope(Scope::Read),
        query: Some(of::<Wanted>),
        body: None,
        status: StatusCode::OK,
        answer: Some(of::<Page<Organization>>),
        versioned: false,
        run: |call| Box::pin(list(call)),
    },
    Operation {
        method: Method::POST,
        path: "/organizations",
        name: "createOrganization",
        summary: "Makes an organisation, which you administer",
        access: Access::Scope(Scope::Write),
        query: None,
        body: Some(of::<NamedOrganization>),
        status: StatusCode::CREATED,
        answer: Some(of::<Organization>),
        versioned: true,
        run: |call| Box::pin(create(call)),
    },
    Operation {
        method: Method::GET,
        path: "/organizations/{organization}",
        name: "getOrganization",
        summary: "One organisation",
        access: Access::Scope(Scope::Read),
        query: None,
        body: None,
        status: StatusCode::OK,
        answer: Some(of::<Organization>),
        versioned: true,
        run: |call| Box::pin(get(call)),
    },
    Operation {
        method: Method::PATCH,
        path: "/organizations/{organization}",
        name: "renameOrganization",
        summary: "Gives an organisation another name",
        access: Access::Scope(Scope::Write),
        query: None,
        body: Some(of::<NamedOrganization>),
        status: StatusCode::OK,
        answer: Some(of::<Organization>),
        versioned: true,
        run: |call| Box::pin(rename(call)),
    },
    Operation {
        method: Method::DELETE,
        path: "/organizations/{organization}",
        name: "deleteOrganization",
        summary: "Takes an organisation away, with its configurations and members",
        access: Access::Scope(Scope::Write),
        query: None,
        body: None,
        status: StatusCode::NO_CONTENT,
        answer: None,
        versioned: true,
        run: |call| Box::pin(delete(call)),
    },
    Operation {
        method: Method::GET,
        path: "/organizations/{organization}/members",
        name: "listMembers",
        summary: "Members of an organisation, by name",
        access: Access::Scope(Scope::Read),
        query: Some(of::<Wanted>),
        body: None,
        status: StatusCode::OK,
        answer: Some(of::<Page<Member>>),
        versioned: false,
        run: |call| Box::pin(members(call)),
    },
    Operation {
        method: Method::PUT,
        path: "/organizations/{organization}/members/{user}",
        name: "putMember",
        summary: "Makes somebody a member, or gives them another role",
        access: Access::Scope(Scope::Write),
        query: None,
        body: Some(of::<Membership>),
        status: StatusCode::OK,
        answer: Some(of::<Member>),
        versioned: false,
        run: |call| Box::pin(put_member(call)),
    },
    Operation {
        method: Method::DELETE,
        path: "/organizations/{organization}/members/{user}",
        name: "removeMember",
        summary: "Takes somebody out, with all that was assigned to them there; you may leave by yourself",
        access: Access::Scope(Scope::Write),
        query: None,
        body: None,
        status: StatusCode::NO_CONTENT,
        answer: None,
        versioned: false,
        run: |call| Box::pin(remove_member(call)),
    },
];

#[derive(Serialize, JsonSchema)]
struct Organization {
    id: String,
    name: String,
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NamedOrganization {
    #[schemars(length(min = 1, max = 200))]
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct Member {
    user: String,
    /// The user as it is written in paths.
    segment: String,
    role: Role,
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Membership {
    role: Role,
}

async fn list(call: &Call<'_>) -> Result<Reply, Problem> {
    let Wanted { limit, cursor } = call.query()?;
    let part = Part::new(limit, cursor.as_deref())?;
    let page = part.of(call.desk()?.organizations(), |organization| &organization.id);
    Reply::of(&page.map(|organization| Organization::of(&organization)))
}

async fn create(call: &Call<'_>) -> Result<Reply, Problem> {
    let wanted: NamedOrganization = call.body()?;
    let made = call.desk()?.create_organization(&wanted.name).await?;
    let location = path(&format!("/organizations/{}", made.value.id));
    Ok(Reply::of(&Organization::of(&made.value))?.version(made.version).at(location))
}

async fn get(call: &Call<'_>) -> Result<Reply, Problem> {
    let found = call.desk()?.organization(call.name(0)?).await?;
    Ok(Reply::of(&Organization::of(&found.value))?.version(found.version))
}

async fn rename(call: &Call<'_>) -> Result<Reply, Problem> {
    let wanted: NamedOrganization = call.body()?;
    let desk = call.desk()?;
    let renamed = desk.rename_organization(call.name(0)?, &wanted.name, call.expected()).await?;
    Ok(Reply::of(&Organization::of(&renamed.value))?.version(renamed.version))
}

async fn delete(call: &Call<'_>) -> Result<Reply, Problem> {
    call.desk()?.delete_organization(call.name(0)?, call.expected()).await?;
    Ok(Reply::nothing())
}

async fn members(call: &Call<'_>) -> Result<Reply, Problem> {
    let Wanted { limit, cursor } = call.query()?;
    let part = Part::new(limit, cursor.as_deref())?;
    let page = part.of(call.desk()?.members(call.name(0)?)?, |member| &member.user);
    Reply::of(&page.map(|member| Member::of(&member)))
}

async fn put_member(call: &Call<'_>) -> Result<Reply, Problem> {
    let wanted: Membership = call.body()?;
    let member = call.desk()?.put_member(call.name(0)?, &call.user(1)?, wanted.role).await?;
    Reply::of(&Member::of(&member))
}

async fn remove_member(call: &Call<'_>) -> Result<Reply, Problem> {
    call.desk()?.remove_member(call.name(0)?, &call.user(1)?).await?;
    Ok(Reply::nothing())
}

impl Organization {
    fn of(record: &record::Organization) -> Self {
        Self { id: record.id.clone(), name: record.name.clone(), created_at: time(record.created_at) }
    }
}

impl Member {
    fn of(record: &record::Membership) -> Self {
        Self {
            user: record.user.clone(),
            segment: segment(&record.user),
            role: record.role,
            created_at: time(record.created_at),
        }
    }
}
