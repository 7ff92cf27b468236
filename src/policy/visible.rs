//! What a list shows to whom.
use super::Question;
use super::facts::{Known, Subject};
use crate::config::Effect;
use crate::expression::Fault;
use crate::mcp::ItemKind;

/// Whether the caller may see an item: by the rules on lists where there are some, else if there is a call of it that they may
/// make. What depends on arguments is not known then: an `allow` may hold, a `deny` need not, and what is asked for besides
/// can be given.
pub fn visible(question: &Question<'_>, kind: ItemKind, name: &str) -> bool {
    let Some(policy) = question.route.rules.policy().filter(|policy| !policy.dry_run) else {
        return true;
    };
    let (rules, method) = match (&policy.lists, kind) {
        (Some(lists), ItemKind::Prompt) => (lists, "prompts/list"),
        (Some(lists), ItemKind::Resource) => (lists, "resources/list"),
        (Some(lists), ItemKind::Tool) => (lists, "tools/list"),
        (None, ItemKind::Prompt) => (&policy.calls, "prompts/get"),
        (None, ItemKind::Resource) => (&policy.calls, "resources/read"),
        (None, ItemKind::Tool) => (&policy.calls, "tools/call"),
    };
    let facts = Known::new(question, Subject::Item { method, kind, name });
    let is_denied = rules.iter().any(|rule| match rule.effect {
        Effect::Deny => !matches!(rule.when.holds(&facts), Ok(false) | Err(Fault::Unknown)),
        _ => false,
    });
    let may_be_allowed = || {
        rules.iter().any(|rule| match rule.effect {
            Effect::Allow => matches!(rule.when.holds(&facts), Ok(true) | Err(Fault::Unknown)),
            _ => false,
        })
    };
    !is_denied && (policy.allows_rest || may_be_allowed())
}
