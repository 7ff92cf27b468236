//! Routes that lead to something else than an MCP server: what they have in common with the others, and what they cannot have.
use std::sync::Arc;

use super::checked::Checker;
use super::credential::Credential;
use super::file::{self, BalanceOn, CredentialKind, HealthKind, Per, RouteKind};
use super::policy::{Effect, Policy};
use super::report::Key;
use super::server::PublicUrl;
use super::trusted::{self, TrustedIssuer};
use crate::expression::Name;

/// What a route leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An MCP server.
    Mcp,
    /// Anything that speaks HTTP. `public`: nobody is asked who they are.
    Http { public: bool },
    /// Whoever answers the challenges of a certificate authority for us (`server.acme_challenge`).
    Challenge,
}

impl Kind {
    #[must_use]
    pub fn is_mcp(self) -> bool {
        self == Self::Mcp
    }

    /// Whether it has its host for itself.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http { .. })
    }

    /// Whether nobody is asked who they are.
    #[must_use]
    pub fn is_public(self) -> bool {
        matches!(self, Self::Http { public: true } | Self::Challenge)
    }
}

/// As written. `None`: it has no requests.
fn of(entry: &file::Route) -> Option<Kind> {
    match entry.kind.unwrap_or_default() {
        RouteKind::Mcp => Some(Kind::Mcp),
        RouteKind::Http => Some(Kind::Http { public: entry.public.unwrap_or(false) }),
        RouteKind::Tcp => None,
    }
}

/// Whether a route takes tokens of Postern's own.
pub(super) fn takes_ours(entry: &file::Route, issuers: &[Arc<TrustedIssuer>]) -> bool {
    of(entry).is_some_and(|kind| !kind.is_public()) && !trusted::has_issuers(entry, issuers)
}

/// Refuses at `key` what does not go together with the kind of the route.
pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    entry: &file::Route,
    public_url: Option<&PublicUrl>,
) -> Option<Kind> {
    let kind = of(entry)?;
    for (name, is_written) in [("listen", entry.listen.is_some()), ("tcp", entry.tcp.is_some())] {
        if is_written {
            let write = "leave it out; whatever is asked for by HTTP comes in at `server.listen`";
            check.refuse(&key.child(name), "belongs to `kind: tcp`", write);
        }
    }
    let Kind::Http { public } = kind else {
        if entry.public == Some(true) {
            let write = "leave it out: an MCP server has callers, whom Postern knows";
            check.refuse(&key.child("public"), "belongs to `kind: http`", write);
        }
        if entry.cors_allow_preflight.is_some() {
            let write = "leave it out: Postern answers preflights itself, for the origins in `server.allowed_origins`";
            check.refuse(&key.child("cors_allow_preflight"), "belongs to `kind: http`", write);
        }
        return Some(kind);
    };
    own_host(check, key, entry, public_url);
    if entry.tool_scopes.as_ref().is_some_and(|scopes| !scopes.is_empty()) {
        let write = "leave it out; `scopes` are for the whole route";
        check.refuse(&key.child("tool_scopes"), "belongs to MCP servers, which have tools", write);
    }
    if entry.policy.as_ref().is_some_and(|policy| policy.list.is_some()) {
        let write = "leave it out";
        check.refuse(&key.child("policy").child("list"), "belongs to MCP servers, which have lists", write);
    }
    for (index, limit) in entry.limits.iter().flatten().enumerate() {
        if limit.per.iter().flatten().any(|per| *per == Per::Tool) {
            let key = key.child("limits").item(index).child("per");
            check.refuse(&key, "counts by tool, and there are none", "leave `tool` out");
        }
    }
    let upstream = key.child("upstream");
    if entry.upstream.health.as_ref().is_some_and(|health| health.kind == HealthKind::Mcp) {
        let write = "write `http` with a `path`, or `tcp`";
        check.refuse(&upstream.child("health").child("kind"), "is a question for MCP servers", write);
    }
    match entry.upstream.balance_on {
        Some(BalanceOn::McpName | BalanceOn::McpMethod) => {
            let write = "write `caller` or `source`";
            check.refuse(&upstream.child("balance_on"), "is a header of MCP", write);
        }
        Some(BalanceOn::Caller) if public => {
            let write = "write `source`: the address that a request comes from";
            check.refuse(&upstream.child("balance_on"), "is known to nobody at a public route", write);
        }
        _ => {}
    }
    if public {
        nobody(check, key, entry);
    }
    Some(kind)
}

/// Whatever it answers acts on its host, and ports are no wall: cookies go to all of them (RFC 6265 §8.5). The pages' is taken.
fn own_host(check: &mut Checker<'_>, key: &Key, entry: &file::Route, public_url: Option<&PublicUrl>) {
    let Some(host) = &entry.host else {
        let write = "write a `host` of its own, other than that of `server.public_url`";
        check.refuse(key, "is `kind: http` and has no host", write);
        return;
    };
    let lower = host.to_ascii_lowercase();
    let bare = match lower.rsplit_once(':') {
        Some((bare, port)) if !port.ends_with(']') => bare,
        _ => lower.as_str(),
    };
    if public_url.is_some_and(|public| public.host() == bare) {
        let what =
            "is the host of `server.public_url`, where people sign in: whatever it answers could act there";
        check.refuse(
            &key.child("host"),
            what,
            "give the route another host name; another port is not enough",
        );
    }
}

/// Where nobody is asked who they are, nothing can go by it.
fn nobody(check: &mut Checker<'_>, key: &Key, entry: &file::Route) {
    let credential = entry.credential.as_ref().map(|credential| credential.kind.unwrap_or_default());
    let is_per_user = entry.credential.as_ref().is_some_and(|credential| credential.per_user == Some(true));
    let is_for_all = matches!(
        credential,
        None | Some(CredentialKind::None | CredentialKind::Header | CredentialKind::ClientCredentials)
    );
    if !is_for_all || is_per_user {
        let write = "write `none`, `header` or `client_credentials`, or leave `public` out";
        check.refuse(
            &key.child("credential"),
            "depends on who calls, and a public route does not ask",
            write,
        );
    }
    for (name, is_written) in [
        ("scopes", entry.scopes.as_ref().is_some_and(|scopes| !scopes.is_empty())),
        ("trusted_issuers", entry.trusted_issuers.as_ref().is_some_and(|issuers| !issuers.is_empty())),
        ("cors_allow_preflight", entry.cors_allow_preflight.is_some()),
    ] {
        if is_written {
            let write = "leave it out, or leave `public` out";
            check.refuse(&key.child(name), "is about tokens, and a public route takes none", write);
        }
    }
}

/// The credential that stands for none written.
pub(super) fn default_credential(kind: Kind) -> Option<Credential> {
    (!kind.is_mcp()).then_some(Credential::None)
}

const MCP: [Name; 5] =
    [Name::McpRevision, Name::McpMethod, Name::McpTool, Name::McpPrompt, Name::McpResource];

/// Refuses rules of the route's own that could never be decided there, and tells of those for all routes.
pub(super) fn check_policy(
    check: &mut Checker<'_>,
    key: &Key,
    kind: Kind,
    own: usize,
    policy: Option<&Policy>,
) {
    let Some(policy) = policy.filter(|_| !kind.is_mcp()) else { return };
    let first_own = policy.calls.len().saturating_sub(own);
    for (index, rule) in policy.calls.iter().enumerate() {
        let own = index.checked_sub(first_own).map(|index| key.child("call").item(index));
        let uses = rule.when.uses();
        let speaks_of_mcp = uses.has(Name::McpArguments) || MCP.into_iter().any(|name| uses.has(name));
        let asks = matches!(rule.effect, Effect::RequireConsent { .. } | Effect::RequireScope(_));
        match own {
            Some(key) if speaks_of_mcp => {
                let write = "write it with `caller`, `request` and `route`";
                check.refuse(&key, "speaks of `mcp`, and there is none at a route of `kind: http`", write);
            }
            Some(key) if asks && kind.is_public() => {
                let write = "write `deny`, or leave `public` out";
                check.refuse(&key, "asks for a scope, and a public route takes no tokens", write);
            }
            None if speaks_of_mcp && !matches!(rule.effect, Effect::Allow) => {
                let what = format!(
                    "is `kind: http`, where the rule `{}` of `policy` cannot be decided and so denies everything",
                    rule.name
                );
                let write = "put a look at `route.name` before what it says of `mcp`, or write the rule at the routes that it is meant for";
                check.warn(key, what, write);
            }
            _ => {}
        }
    }
}
