//! What a route demands of single calls, compiled from its configuration. `policy` decides by it.
use std::collections::HashMap;

use crate::config::{Effect, Kind, Policy};
use crate::expression::{Name, Names, Wanted};
use crate::mcp::{ItemKind, Message};

/// The demands of one route.
#[derive(Default)]
pub struct Rules {
    /// What a call of a tool needs besides the scopes of the route.
    tool_scopes: HashMap<String, Vec<String>>,
    /// `None`: there is no rule that could say anything.
    policy: Option<Policy>,
    /// The arguments that rules look at.
    arguments: Wanted,
    /// The facts that rules look at.
    uses: Names,
    /// Requests carry no messages of MCP.
    is_plain: bool,
}

impl Rules {
    pub fn new<'c>(
        kind: Kind,
        tool_scopes: impl IntoIterator<Item = (&'c String, &'c Vec<String>)>,
        policy: Option<&Policy>,
    ) -> Self {
        let tool_scopes = tool_scopes.into_iter().map(|(tool, scopes)| (tool.clone(), scopes.clone()));
        let policy =
            policy.filter(|policy| !policy.calls.is_empty() || policy.lists.is_some() || !policy.allows_rest);
        let (mut arguments, mut uses) = (Wanted::default(), Names::default());
        for rule in policy.iter().flat_map(|policy| policy.calls.iter().chain(policy.lists.iter().flatten()))
        {
            arguments.merge(rule.when.arguments());
            uses = uses.and(rule.when.uses());
        }
        Self {
            tool_scopes: tool_scopes.collect(),
            policy: policy.cloned(),
            arguments,
            uses,
            is_plain: !kind.is_mcp(),
        }
    }

    /// The rules on who may call what, where there are some.
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// Whether it takes the body of a request to decide on it.
    pub fn need_message(&self) -> bool {
        !self.is_plain && (!self.tool_scopes.is_empty() || self.policy.is_some())
    }

    /// Whether it takes more of a user than who they are.
    pub fn need_attributes(&self) -> bool {
        self.uses.meets(Names::of(&[Name::CallerEmail, Name::CallerGroups, Name::CallerClaims]))
    }

    /// The arguments it takes to decide.
    pub fn arguments(&self) -> &Wanted {
        &self.arguments
    }

    /// Whether lists leave out what the caller may not use.
    pub fn filter_lists(&self) -> bool {
        !self.is_plain && self.policy.as_ref().is_some_and(|policy| !policy.dry_run)
    }

    /// Scopes that are needed for what is asked, besides those of the route.
    pub fn scopes_for(&self, message: &Message) -> &[String] {
        let tool = message.item.as_ref().filter(|item| item.kind == ItemKind::Tool);
        tool.and_then(|tool| self.tool_scopes.get(tool.name.as_str())).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether something here needs it.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes().any(|own| own == scope)
    }

    /// Every scope that something here needs.
    pub fn scopes(&self) -> impl Iterator<Item = &String> {
        let enforced = self.policy.as_ref().filter(|policy| !policy.dry_run);
        let of_rules = enforced.into_iter().flat_map(|policy| &policy.calls).flat_map(|rule| rule.scopes());
        self.tool_scopes.values().flatten().chain(of_rules)
    }

    /// What a user agrees to with this scope, where a rule asks for their consent.
    pub fn consent(&self, scope: &str) -> Option<&str> {
        let rules = self.policy.iter().flat_map(|policy| &policy.calls);
        rules.into_iter().find_map(|rule| match &rule.effect {
            Effect::RequireConsent { scope: own, words } if own == scope => Some(words.as_str()),
            _ => None,
        })
    }
}
