//! Token introspection (RFC 7662), for clients that are listed for it and nobody else.
use std::sync::Arc;

use serde::Serialize;

use super::access_token::Opened;
use super::authenticate::Authenticated;
use super::grant;
use super::refusal::Refusal;
use super::standing::{Holder, NoStanding};
use super::{Authority, Snapshot};
use crate::clock::unix_seconds;
use crate::route::Route;

/// RFC 7662 §2.2. Of a token that is good for nothing, nothing is said.
#[derive(Serialize, Default)]
pub struct Answer {
    active: bool,
    #[serde(flatten)]
    about: Option<About>,
}

#[derive(Serialize)]
struct About {
    token_type: &'static str,
    iss: String,
    sub: String,
    client_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    aud: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    exp: u64,
}

/// What the token is good for. `token` may be of any kind that we issue.
pub async fn introspect(
    authority: &Authority,
    snapshot: &Snapshot,
    client: &Authenticated,
    token: &str,
) -> Result<Answer, Refusal> {
    let listed = snapshot.config.oauth_server.listed.get(&client.id);
    if !listed.is_some_and(|listed| listed.may_introspect) {
        return Err(Refusal::unauthorized_client("this client is not listed for introspection"));
    }
    let iss = snapshot.issuer().to_owned();
    if let Some(found) = grant::of_refresh_token(authority, snapshot, token).await? {
        let about = About {
            token_type: "refresh_token",
            iss,
            sub: found.value.user.clone(),
            client_id: found.value.client_id,
            username: Some(found.value.user),
            aud: vec![found.value.resource],
            scope: Some(found.value.scopes.join(" ")),
            exp: unix_seconds(found.expires_at),
        };
        return Ok(Answer { active: true, about: Some(about) });
    }
    let about = match authority.standing(snapshot).holder(token, authority.clock.now()) {
        Ok(Holder::Service(account)) => About {
            token_type: "Bearer",
            iss,
            sub: account.subject.clone(),
            client_id: account.subject.clone(),
            username: account.acts_for.clone(),
            aud: resources(snapshot, &account.routes),
            scope: None,
            exp: account.expires_at,
        },
        Ok(holder) if !is_published(snapshot, &holder) => return Ok(Answer::default()),
        Ok(Holder::User(token)) => About::token(iss, &token, Some(token.subject())),
        Ok(Holder::Client { token, machine }) => About::token(iss, &token, machine.acts_for.as_deref()),
        Err(NoStanding::NotReady) => return Err(Refusal::unavailable("the gateway is not ready yet")),
        Err(_) => return Ok(Answer::default()),
    };
    Ok(Answer { active: true, about: Some(about) })
}

impl About {
    fn token(iss: String, token: &Opened, username: Option<&str>) -> Self {
        Self {
            token_type: "Bearer",
            iss,
            sub: token.subject().to_owned(),
            client_id: token.client().to_owned(),
            username: username.map(str::to_owned),
            aud: token.audiences().map(str::to_owned).collect(),
            scope: Some(token.scope().to_owned()),
            exp: unix_seconds(token.expires_at()),
        }
    }
}

/// Whether there is a route where it works: as requests find out at the route itself.
fn is_published(snapshot: &Snapshot, holder: &Holder) -> bool {
    match holder {
        Holder::User(token) => routes_of(snapshot, token).next().is_some(),
        Holder::Client { token, machine } => {
            routes_of(snapshot, token).any(|route| machine.routes.contains(&route.name))
        }
        Holder::Service(account) => !resources(snapshot, &account.routes).is_empty(),
    }
}

fn routes_of<'a>(snapshot: &'a Snapshot, token: &'a Opened) -> impl Iterator<Item = &'a Arc<Route>> {
    token.audiences().filter_map(|resource| snapshot.routes.by_resource(resource))
}

fn resources(snapshot: &Snapshot, routes: &[String]) -> Vec<String> {
    let routes = routes.iter().filter_map(|name| snapshot.routes.by_name(name));
    routes.filter(|route| route.is_ours()).map(|route| route.resource.clone()).collect()
}
