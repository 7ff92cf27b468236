//! What was decided, and by what: for the audit log, and for whoever tests rules.
use std::fmt;

use crate::expression::Fault;
use crate::telemetry::audit;

/// One decision. Holds names of rules and nothing of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    pub outcome: Outcome,
    pub by: By<'a>,
    /// Why a rule could not be decided, where that counted.
    pub fault: Option<Fault>,
    /// Whether it is more than an entry in the log.
    pub enforced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Allowed,
    Denied,
    /// Allowed as soon as the token has the scopes for it.
    StepUp,
}

/// What decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By<'a> {
    /// No rule did.
    Default,
    Hook,
    /// It keeps the protocol going, and no rule is against it.
    Protocol,
    Rule(&'a str),
    /// Nothing yet.
    ToCome,
    /// Its audience and scopes alone: there are no rules.
    Token,
}

impl<'a> Decision<'a> {
    pub(super) fn of_token(outcome: Outcome) -> Self {
        Self { outcome, by: By::Token, fault: None, enforced: true }
    }

    pub(super) fn of_hook(outcome: Outcome) -> Self {
        Self { outcome, by: By::Hook, fault: None, enforced: true }
    }

    /// Whether there is something to say of it: it is final, and more than the token's own.
    pub fn is_of_policy(&self) -> bool {
        match self.by {
            By::Token => false,
            By::ToCome => self.outcome != Outcome::Allowed,
            By::Default | By::Hook | By::Protocol | By::Rule(_) => true,
        }
    }
}

impl Outcome {
    /// For logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::StepUp => "step_up",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        audit::By::from(*self).fmt(f)
    }
}

impl<'a> From<By<'a>> for audit::By<'a> {
    fn from(by: By<'a>) -> Self {
        match by {
            By::Default => Self::Other("default"),
            By::Hook => Self::Other("hook"),
            By::Protocol => Self::Other("protocol"),
            By::Rule(name) => Self::Rule(name),
            By::ToCome => Self::Other("to come"),
            By::Token => Self::Other("token"),
        }
    }
}
