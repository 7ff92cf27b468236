//! `policy`, of everything and of single routes.
use schemars::JsonSchema;
use serde::Deserialize;

/// Who may call what. Rules are written in CEL over `caller`, `request`, `mcp` and `route`; see `docs/policy.md`. A `deny` that holds wins;
/// else an `allow` has to hold, or `default` decides. Without any `policy`, everybody with a token may call everything.
#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Policy {
    /// What becomes of calls that no rule allows or denies. Signing on to a server, pings, notifications and lists are let through. Default:
    /// `deny`; of a route, what the global `policy` says.
    pub(in crate::config) default: Option<PolicyDefault>,
    /// Whether rules only write into the audit log what they would do. Default: `false`; of a route, what the global `policy` says.
    pub(in crate::config) dry_run: Option<bool>,
    /// Status of a denied call: 200, as most clients expect of a JSON-RPC error, or 403. Default: 200; of a route, what the global `policy`
    /// says.
    pub(in crate::config) denied_status: Option<u16>,
    /// Rules on calls. Those of the global `policy` stand before those of a route.
    pub(in crate::config) call: Option<Vec<PolicyRule>>,
    /// Rules on what `tools/list`, `prompts/list` and `resources/list` show, `allow` and `deny` alone. Default: what may be called is shown.
    pub(in crate::config) list: Option<Vec<PolicyRule>>,
}

/// What becomes of calls that no rule speaks of.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum PolicyDefault {
    Allow,
    Deny,
}

/// One rule: `allow` or `deny` with a condition, or `require_scope` or `require_consent` with a condition in `if`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct PolicyRule {
    /// Name of the rule, unique: lower-case letters, digits, `-` and `_`. It stands in the audit log.
    pub(in crate::config) name: String,
    /// Condition under which a call is allowed, like `'dev' in caller.groups`.
    pub(in crate::config) allow: Option<String>,
    /// Condition under which a call is denied, whatever else allows it.
    pub(in crate::config) deny: Option<String>,
    /// Scopes that a call needs where `if` holds. A client is told when it lacks one, and then asks the user.
    pub(in crate::config) require_scope: Option<Vec<String>>,
    /// What the user has to agree to where `if` holds, in words: they stand on the consent page.
    pub(in crate::config) require_consent: Option<String>,
    /// `require_scope` and `require_consent`: the condition.
    #[serde(rename = "if")]
    pub(in crate::config) condition: Option<String>,
}
