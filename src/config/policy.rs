//! Who may call what: rules with their conditions compiled.
use std::sync::Arc;

use super::checked::Checker;
use super::file::{self, PolicyDefault};
use super::report::Key;
use crate::expression::{self, Name, Program};

/// The rules of one route, those for all routes before its own.
#[derive(Clone)]
pub struct Policy {
    pub calls: Vec<Arc<Rule>>,
    /// Of what lists show. `None`: what may be called is shown.
    pub lists: Option<Vec<Arc<Rule>>>,
    /// Whether calls are allowed that no rule speaks of.
    pub allows_rest: bool,
    /// Whether rules only say what they would do.
    pub dry_run: bool,
    /// Status of a denied call: 200 or 403.
    pub denied_status: u16,
}

pub struct Rule {
    /// `[a-z0-9_-]+`, unique among those of a route.
    pub name: String,
    pub effect: Effect,
    pub when: Program,
}

pub enum Effect {
    Allow,
    Deny,
    /// Of the scope `consent:` and the rule's name.
    RequireConsent {
        scope: String,
        /// What is agreed to, for people to read.
        words: String,
    },
    /// Never nothing.
    RequireScope(Vec<String>),
}

/// One `policy` as it is written, checked.
pub(super) struct Section {
    calls: Vec<Arc<Rule>>,
    lists: Option<Vec<Arc<Rule>>>,
    default: Option<PolicyDefault>,
    dry_run: Option<bool>,
    denied_status: Option<u16>,
}

impl Rule {
    /// The scopes it may ask for.
    pub fn scopes(&self) -> &[String] {
        match &self.effect {
            Effect::Allow | Effect::Deny => &[],
            Effect::RequireConsent { scope, .. } => std::slice::from_ref(scope),
            Effect::RequireScope(scopes) => scopes,
        }
    }
}

/// Checks one `policy`.
pub(super) fn section(check: &mut Checker<'_>, key: &Key, written: &file::Policy) -> Section {
    if !matches!(written.denied_status, None | Some(200 | 403)) {
        check.refuse(&key.child("denied_status"), "is no status of a denied call", "write 200 or 403");
    }
    let calls = rules(check, &key.child("call"), written.call.as_deref().unwrap_or_default());
    let lists = written.list.as_deref().map(|lists| {
        let key = key.child("list");
        let rules = rules(check, &key, lists);
        for (index, rule) in rules.iter().enumerate() {
            if !matches!(rule.effect, Effect::Allow | Effect::Deny) {
                let write = "write `allow` or `deny`; scopes and consent are for calls";
                check.refuse(&key.item(index), "asks for something before anything is called", write);
            } else if rule.when.uses().has(Name::McpArguments) {
                let write = "leave `mcp.arguments` to the rules under `call`";
                check.refuse(&key.item(index), "speaks of arguments, and a list has none", write);
            }
        }
        rules
    });
    let file::Policy { default, dry_run, denied_status, .. } = written;
    Section { calls, lists, default: *default, dry_run: *dry_run, denied_status: *denied_status }
}

/// The rules of a route. `is_ours`: whether its tokens are Postern's own.
pub(super) fn of_route(
    check: &mut Checker<'_>,
    key: &Key,
    written: Option<&file::Policy>,
    global: Option<&Section>,
    is_ours: bool,
) -> Option<Policy> {
    let own = written.map(|written| section(check, key, written));
    if own.is_none() && global.is_none() {
        return None;
    }
    for (at, mine, theirs) in [
        ("call", own.as_ref().map(|own| &own.calls), global.map(|global| &global.calls)),
        (
            "list",
            own.as_ref().and_then(|own| own.lists.as_ref()),
            global.and_then(|global| global.lists.as_ref()),
        ),
    ] {
        for (index, rule) in mine.into_iter().flatten().enumerate() {
            let key = key.child(at).item(index);
            if theirs.into_iter().flatten().any(|other| other.name == rule.name) {
                let what = format!("`{}` is a rule of the global policy too", rule.name);
                check.refuse(&key.child("name"), what, "give each rule a name of its own");
            }
            if matches!(rule.effect, Effect::RequireConsent { .. }) && !is_ours {
                let write = "use `deny`, or let the route take Postern's own tokens";
                check.refuse(&key, "asks for consent where another server asks users", write);
            }
        }
    }
    let either = [own.as_ref(), global];
    let sections = || either.iter().copied().flatten();
    let lists: Vec<_> = global.into_iter().chain(&own).filter_map(|section| section.lists.as_ref()).collect();
    Some(Policy {
        calls: global.into_iter().chain(&own).flat_map(|section| section.calls.iter().cloned()).collect(),
        lists: (!lists.is_empty()).then(|| lists.into_iter().flatten().cloned().collect()),
        allows_rest: sections().find_map(|section| section.default) == Some(PolicyDefault::Allow),
        dry_run: sections().find_map(|section| section.dry_run).unwrap_or(false),
        denied_status: sections().find_map(|section| section.denied_status).unwrap_or(200),
    })
}

fn rules(check: &mut Checker<'_>, key: &Key, written: &[file::PolicyRule]) -> Vec<Arc<Rule>> {
    let mut rules: Vec<Arc<Rule>> = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let key = key.item(index);
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if entry.name.is_empty() || entry.name.len() > 64 || !entry.name.chars().all(allowed) {
            let write = "write 1 to 64 lower-case letters, digits, `-` or `_`";
            check.refuse(&key.child("name"), "is no name of a rule", write);
        } else if written.iter().take(index).any(|other| other.name == entry.name) {
            check.refuse(&key.child("name"), "is the name of two rules", "give each rule a name of its own");
        }
        if let Some((effect, when)) = effect(check, &key, entry) {
            rules.push(Arc::new(Rule { name: entry.name.clone(), effect, when }));
        }
    }
    rules
}

fn effect(check: &mut Checker<'_>, key: &Key, written: &file::PolicyRule) -> Option<(Effect, Program)> {
    let file::PolicyRule { name, allow, deny, require_scope, require_consent, condition } = written;
    let needs_if = |check: &mut Checker<'_>| match condition {
        Some(condition) => compiled(check, &key.child("if"), condition),
        None => {
            check.refuse(key, "has no `if`", "write the condition, or `if: \"true\"`");
            None
        }
    };
    match (allow, deny, require_scope, require_consent) {
        (Some(condition), None, None, None) => {
            refuse_if(check, key, written);
            Some((Effect::Allow, compiled(check, &key.child("allow"), condition)?))
        }
        (None, Some(condition), None, None) => {
            refuse_if(check, key, written);
            Some((Effect::Deny, compiled(check, &key.child("deny"), condition)?))
        }
        (None, None, Some(scopes), None) => {
            let at = key.child("require_scope");
            if scopes.is_empty() {
                check.refuse(&at, "names no scope", "write the scopes that the call needs");
            }
            let scopes = check.scopes(&at, scopes);
            Some((Effect::RequireScope(scopes), needs_if(check)?))
        }
        (None, None, None, Some(words)) => {
            if words.trim().is_empty() {
                let write = "write what the user agrees to, in a few words";
                check.refuse(&key.child("require_consent"), "is empty", write);
            }
            let effect =
                Effect::RequireConsent { scope: format!("consent:{name}"), words: words.trim().to_owned() };
            Some((effect, needs_if(check)?))
        }
        _ => {
            let what = "has to do exactly one thing";
            check.refuse(key, what, "write one of `allow`, `deny`, `require_scope` and `require_consent`");
            None
        }
    }
}

fn refuse_if(check: &mut Checker<'_>, key: &Key, written: &file::PolicyRule) {
    if written.condition.is_some() {
        let write = "join the two conditions with `&&`";
        check.refuse(&key.child("if"), "stands beside a condition", write);
    }
}

fn compiled(check: &mut Checker<'_>, key: &Key, text: &str) -> Option<Program> {
    program(check, key, expression::compile(text))
}

/// An expression that was read; what is wrong with it is said with its place in it.
pub(super) fn program(
    check: &mut Checker<'_>,
    key: &Key,
    read: Result<Program, Vec<expression::Mistake>>,
) -> Option<Program> {
    let mistakes = match read {
        Ok(program) => return Some(program),
        Err(mistakes) => mistakes,
    };
    for expression::Mistake { line, column, what, write } in mistakes {
        check.refuse(key, format!("line {line}, column {column} of the expression: {what}"), write);
    }
    None
}
