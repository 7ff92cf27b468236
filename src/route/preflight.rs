//! Where a browser's preflight goes (Fetch, §4.8) at a route that asks for tokens and lets preflights through: to the same server, as
//! if the route were a public one with nothing to hand out. By being a route of its own it has no credential that could be injected.
use std::collections::BTreeMap;

use crate::config::{self, Credential, Effect, Kind, Policy};
use crate::expression::{Name, Names};

/// What a preflight says nothing about.
const ABOUT_CALLS: Names = Names::of(&[
    Name::CallerSubject,
    Name::CallerIssuer,
    Name::CallerEmail,
    Name::CallerGroups,
    Name::CallerClaims,
    Name::CallerClient,
    Name::CallerMachine,
    Name::McpRevision,
    Name::McpMethod,
    Name::McpTool,
    Name::McpPrompt,
    Name::McpResource,
    Name::McpArguments,
]);

/// The route of the preflights of another.
pub fn of(route: &config::Route) -> config::Route {
    config::Route {
        name: route.name.clone(),
        kind: Kind::Http { public: true },
        host: route.host.clone(),
        path: route.path.clone(),
        upstream: route.upstream.clone(),
        credential: Credential::None,
        scopes: Vec::new(),
        tool_scopes: BTreeMap::new(),
        policy: route.policy.as_ref().map(of_requests),
        trusted_issuers: Vec::new(),
        limits: route.limits.clone(),
        preflights: false,
    }
}

/// What forbids requests whoever sends them. Whatever else there is has to be passed by the call that follows.
fn of_requests(policy: &Policy) -> Policy {
    let calls = policy
        .calls
        .iter()
        .filter(|rule| matches!(rule.effect, Effect::Deny) && !rule.when.uses().meets(ABOUT_CALLS));
    Policy { calls: calls.cloned().collect(), lists: None, allows_rest: true, ..policy.clone() }
}
