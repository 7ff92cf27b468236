//! A look at an MCP server before it is added, and what one may use of those that are.
use axum::http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::call::Call;
use super::operation::{Access, Operation, Reply, of};
use super::page::{Page, Part, Wanted};
use super::problem::Problem;
use crate::api::managed::scope::Scope;
use crate::web::connections::page_of;

pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: Method::POST,
        path: "/discover",
        name: "discover",
        summary: "Looks at an MCP server: whether it answers, and how it wants to be authorized",
        access: Access::Scope(Scope::Write),
        query: None,
        body: Some(of::<Server>),
        status: StatusCode::OK,
        answer: Some(of::<Seen>),
        versioned: false,
        run: |call| Box::pin(discover(call)),
    },
    Operation {
        method: Method::GET,
        path: "/available",
        name: "listAvailable",
        summary: "What you may use, where it is, and how your connection stands",
        access: Access::Scope(Scope::Read),
        query: Some(of::<Wanted>),
        body: None,
        status: StatusCode::OK,
        answer: Some(of::<Page<Available>>),
        versioned: false,
        run: |call| Box::pin(available(call)),
    },
];

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Server {
    #[schemars(extend("format" = "uri"))]
    url: String,
}

#[derive(Serialize, JsonSchema)]
struct Seen {
    /// The mode of `auth` that fits.
    mode: &'static str,
    /// Its authorization server.
    issuer: Option<String>,
    resource: Option<String>,
    scopes: Vec<String>,
    /// How a client is come by there: `client_id_metadata_document`, `dynamic` or `none`.
    registration: String,
    /// Why nobody gets tokens for it, although it wants one.
    obstacle: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Available {
    configuration: String,
    name: String,
    organization: Option<String>,
    /// What MCP clients are given.
    url: String,
    /// `not_needed`, `not_connected`, `connected`, `expires`, `needs_sign_in` or `unavailable`.
    state: &'static str,
    /// Where the user connects.
    page: String,
}

async fn discover(call: &Call<'_>) -> Result<Reply, Problem> {
    let wanted: Server = call.body()?;
    call.may_reach_out()?;
    let seen = call.desk()?.look(&wanted.url).await?;
    Reply::of(&Seen {
        mode: seen.auth,
        issuer: seen.discovered.issuer,
        resource: seen.discovered.resource,
        scopes: seen.discovered.scopes,
        registration: seen.discovered.registration,
        obstacle: seen.obstacle.map(|why| why.to_string()),
    })
}

async fn available(call: &Call<'_>) -> Result<Reply, Problem> {
    let Wanted { limit, cursor } = call.query()?;
    let part = Part::new(limit, cursor.as_deref())?;
    let (snapshot, user) = (&call.about.snapshot, &call.actor.name);
    let all = call.desk()?.available();
    let page = part.of(all, |(configuration, _)| &configuration.id);
    let mut items = Vec::with_capacity(page.items.len());
    for (configuration, _) in &page.items {
        // The rules of the gateway may be others than when it was added.
        let Some(route) = snapshot.routes.of_user(&configuration.id, user) else { continue };
        let standing = call.web.authority.connector.standing(route, user).await;
        items.push(Available {
            configuration: configuration.id.clone(),
            name: configuration.name.clone(),
            organization: configuration.owner.organization().map(str::to_owned),
            url: route.resource.clone(),
            state: standing.map_err(|_| Problem::unavailable())?.state.name(),
            page: format!("{}{}", snapshot.issuer(), page_of(&route.name, None)),
        });
    }
    Reply::of(&Page { items, next: page.next })
}
