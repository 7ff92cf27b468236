//! MCP servers that people and organisations have added.
use axum::http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use super::call::Call;
use super::operation::{Access, Operation, Reply, of};
use super::page::{Page, Part};
use super::path;
use super::problem::Problem;
use super::written::{ChangedConfiguration, Configuration, NewConfiguration};
use crate::api::managed::Current;
use crate::api::managed::scope::Scope;
use crate::managed::record;

pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: Method::GET,
        path: "/configurations",
        name: "listConfigurations",
        summary: "Your own configurations, or those of an organisation that you administer",
        access: Access::Scope(Scope::Read),
        query: Some(of::<Listed>),
        body: None,
        status: StatusCode::OK,
        answer: Some(of::<Page<Configuration>>),
        versioned: false,
        run: |call| Box::pin(list(call)),
    },
    Operation {
        method: Method::POST,
        path: "/configurations",
        name: "createConfiguration",
        summary: "Adds an MCP server, for an organisation or for yourself",
        access: Access::Scope(Scope::Write),
        query: None,
        body: Some(of::<NewConfiguration>),
        status: StatusCode::CREATED,
        answer: Some(of::<Configuration>),
        versioned: true,
        run: |call| Box::pin(create(call)),
    },
    Operation {
        method: Method::GET,
        path: "/configurations/{configuration}",
        name: "getConfiguration",
        summary: "One configuration that you may change",
        access: Access::Scope(Scope::Read),
        query: None,
        body: None,
        status: StatusCode::OK,
        answer: Some(of::<Configuration>),
        versioned: true,
        run: |call| Box::pin(get(call)),
    },
    Operation {
        method: Method::PATCH,
        path: "/configurations/{configuration}",
        name: "changeConfiguration",
        summary: "Changes what is given. Another url, mode, client or scopes end all tokens and connections",
        access: Access::Scope(Scope::Write),
        query: None,
        body: Some(of::<ChangedConfiguration>),
        status: StatusCode::OK,
        answer: Some(of::<Configuration>),
        versioned: true,
        run: |call| Box::pin(change(call)),
    },
    Operation {
        method: Method::DELETE,
        path: "/configurations/{configuration}",
        name: "deleteConfiguration",
        summary: "Takes a configuration away, with its secrets, its address and all connections",
        access: Access::Scope(Scope::Write),
        query: None,
        body: None,
        status: StatusCode::NO_CONTENT,
        answer: None,
        versioned: true,
        run: |call| Box::pin(delete(call)),
    },
    Operation {
        method: Method::POST,
        path: "/configurations/{configuration}/rotate",
        name: "rotateRoute",
        summary: "Gives it another address: the old one and all tokens for it are no good from now on",
        access: Access::Scope(Scope::Write),
        query: None,
        body: None,
        status: StatusCode::OK,
        answer: Some(of::<Configuration>),
        versioned: true,
        run: |call| Box::pin(rotate(call)),
    },
];

/// Which configurations are asked for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Listed {
    /// Those of this organisation; without, your own.
    #[serde(default)]
    #[schemars(with = "String")]
    organization: Option<String>,
    /// How many at the most.
    #[serde(default)]
    #[schemars(with = "u8", range(min = 1, max = 200))]
    limit: Option<usize>,
    /// `next` of the part before.
    #[serde(default)]
    #[schemars(with = "String")]
    cursor: Option<String>,
}

async fn list(call: &Call<'_>) -> Result<Reply, Problem> {
    let Listed { organization, limit, cursor } = call.query()?;
    let part = Part::new(limit, cursor.as_deref())?;
    let all = call.desk()?.configurations(organization.as_deref())?;
    let page = part.of(all, |configuration| &configuration.id);
    Reply::of(&page.map(|configuration| Configuration::of(&configuration, call.about)))
}

async fn create(call: &Call<'_>) -> Result<Reply, Problem> {
    let wanted: NewConfiguration = call.body()?;
    call.may_reach_out()?;
    let made = call.desk()?.create_configuration(wanted.draft(&call.actor.name)).await?;
    let location = path(&format!("/configurations/{}", made.value.id));
    Ok(shown(call, &made)?.at(location))
}

async fn get(call: &Call<'_>) -> Result<Reply, Problem> {
    shown(call, &call.desk()?.configuration_to_change(call.name(0)?).await?)
}

async fn change(call: &Call<'_>) -> Result<Reply, Problem> {
    let wanted: ChangedConfiguration = call.body()?;
    call.may_reach_out()?;
    let desk = call.desk()?;
    shown(call, &desk.change_configuration(call.name(0)?, wanted.wish(), call.expected()).await?)
}

async fn delete(call: &Call<'_>) -> Result<Reply, Problem> {
    call.desk()?.delete_configuration(call.name(0)?, call.expected()).await?;
    Ok(Reply::nothing())
}

async fn rotate(call: &Call<'_>) -> Result<Reply, Problem> {
    shown(call, &call.desk()?.rotate(call.name(0)?, call.expected()).await?)
}

fn shown(call: &Call<'_>, found: &Current<record::Configuration>) -> Result<Reply, Problem> {
    Ok(Reply::of(&Configuration::of(&found.value, call.about))?.version(found.version))
}
