//! Short tokens: for the route of a configuration, and for this API.
use std::time::Duration;

use axum::http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::call::Call;
use super::caller::audience;
use super::operation::{Access, Operation, Reply, of};
use super::problem::Problem;
use crate::api::managed::scope::Scope;

pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: Method::POST,
        path: "/configurations/{configuration}/token",
        name: "createConnectToken",
        summary: "A token of yours for the address of a configuration that is assigned to you, good for five minutes",
        access: Access::Scope(Scope::Token),
        query: None,
        body: None,
        status: StatusCode::OK,
        answer: Some(of::<ConnectToken>),
        versioned: false,
        run: |call| Box::pin(connect(call)),
    },
    Operation {
        method: Method::POST,
        path: "/tokens",
        name: "createToken",
        summary: "A token of yours for this API, good for a quarter of an hour at the most",
        access: Access::Session,
        query: None,
        body: Some(of::<NewToken>),
        status: StatusCode::OK,
        answer: Some(of::<Token>),
        versioned: false,
        run: |call| Box::pin(create(call)),
    },
];

const DEFAULT_LIFETIME: u64 = 300;
const LONGEST_LIFETIME: u64 = 900;

#[derive(Serialize, JsonSchema)]
struct ConnectToken {
    access_token: String,
    token_type: &'static str,
    /// Where it is good.
    resource: String,
    /// Seconds.
    expires_in: u64,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewToken {
    #[schemars(length(min = 1, max = 4))]
    scopes: Vec<Scope>,
    #[serde(default = "default_lifetime")]
    #[schemars(range(min = 1, max = 900))]
    lifetime_seconds: u64,
}

#[derive(Serialize, JsonSchema)]
struct Token {
    access_token: String,
    token_type: &'static str,
    scope: String,
    /// Seconds.
    expires_in: u64,
}

fn default_lifetime() -> u64 {
    DEFAULT_LIFETIME
}

async fn connect(call: &Call<'_>) -> Result<Reply, Problem> {
    let minted = call.desk()?.mint(call.name(0)?).await?;
    Reply::of(&ConnectToken {
        access_token: minted.token,
        token_type: "Bearer",
        resource: minted.resource,
        expires_in: minted.expires_in,
    })
}

async fn create(call: &Call<'_>) -> Result<Reply, Problem> {
    let NewToken { scopes, lifetime_seconds } = call.body()?;
    let scopes: Vec<Scope> = Scope::ALL.into_iter().filter(|scope| scopes.contains(scope)).collect();
    if scopes.is_empty() {
        return Err(Problem::of_member("scopes", "have to be one at least".to_owned()));
    }
    if !(1..=LONGEST_LIFETIME).contains(&lifetime_seconds) {
        let why = format!("has to be 1 to {LONGEST_LIFETIME}");
        return Err(Problem::of_member("lifetime_seconds", why));
    }
    let lifetime = Duration::from_secs(lifetime_seconds);
    let token = call.desk()?.mint_for_api(&audience(call.about), &scopes, lifetime).await?;
    let scope = scopes.iter().map(|scope| scope.name()).collect::<Vec<_>>().join(" ");
    Reply::of(&Token { access_token: token, token_type: "Bearer", scope, expires_in: lifetime_seconds })
}
