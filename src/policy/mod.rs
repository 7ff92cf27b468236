//! `Caller` × `Route` × `Message` → [`Permit`] or [`Denied`]. The one place that says yes: everything after it asks for a
//! `Permit`, and only [`permit`] makes one.
//!
//! The rules come first, the scopes after them: nobody is sent for a scope that would not help. Of the rules a `deny` that
//! holds wins; what keeps the protocol going is allowed then; else an `allow` has to hold, or the default is to. A rule that
//! cannot be decided denies where it is a `deny` or asks for something, and allows nothing where it is an `allow`.
mod decision;
mod facts;
mod visible;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, Method};

use self::facts::{Known, Subject};
use crate::authn::Caller;
use crate::config::Attributes;
use crate::config::{Effect, Policy};
use crate::expression::{Fault, Name};
use crate::mcp::Message;
use crate::route::Route;

pub use self::decision::{By, Decision, Outcome};
pub use self::visible::visible;

/// A caller who may use a route. Proof by type: the fields are private, so this module alone can say so.
pub struct Permit<'a> {
    caller: &'a Caller,
    route: &'a Arc<Route>,
}

/// Who asks, where, and how: all that a rule may look at besides the message.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    pub caller: &'a Caller,
    pub attributes: &'a Attributes,
    pub route: &'a Arc<Route>,
    pub request: Request<'a>,
    /// Somebody else's say, after the rules.
    pub hook: Option<&'a dyn Hook>,
}

/// The request as HTTP has it.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a Method,
    /// Without query.
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    pub source: Option<IpAddr>,
    /// Of its arrival.
    pub time: SystemTime,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub enum Asked<'a> {
    /// Nothing: the request has no body, or no rule depends on it.
    Bodiless,
    Message(&'a Message),
    /// A message that has yet to arrive; no byte of it goes on before this was asked again.
    ToCome,
}

/// A say in who may call what, besides the rules: it can take away, and never give.
pub trait Hook: Send + Sync {
    /// `message`: what is asked for; `None` where there is none, or where [`Hook::needs_message`] says no and no rule needs it.
    fn decide(&self, question: &Question<'_>, message: Option<&Message>) -> Ruling;

    /// Whether it looks at messages. Then each is read ahead, at every route, as strictly as for a rule.
    fn needs_message(&self) -> bool {
        false
    }
}

/// What a hook says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    Deny,
    /// Nothing against it.
    Pass,
    /// Only with these scopes.
    Require(Vec<String>),
}

/// Why a proven caller may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The token was issued for another route (RFC 8707 §2, MCP Access Token Privilege Restriction).
    #[error("access token is for another resource")]
    Audience,
    /// By a rule, or because none allows it. `id`: of the request, as JSON; `None`: nothing waits for an answer. Which rule it
    /// is, the audit log says.
    #[error("the policy of this gateway does not allow this")]
    Policy { id: Option<String> },
    /// Names all scopes the operation needs and those the token has, so that one step-up is enough and takes nothing away
    /// (RFC 6750 §3.1; MCP, Step-Up Authorization Flow).
    #[error("access token lacks a scope")]
    Scope { needed: Vec<String> },
}

/// Decides whether the caller may use the route for what is asked, and says what that was decided by.
pub fn permit<'a>(question: &Question<'a>, asked: Asked<'_>) -> (Result<Permit<'a>, Denied>, Decision<'a>) {
    let Question { caller, route, .. } = *question;
    if !caller.is_for(route) {
        return (Err(Denied::Audience), Decision::of_token(Outcome::Denied));
    }
    let of_tool = match asked {
        Asked::Message(message) => route.rules.scopes_for(message),
        Asked::Bodiless | Asked::ToCome => &[],
    };
    let (mut decision, mut asks) = (Decision::of_token(Outcome::Allowed), Vec::new());
    if let Some(policy) = route.rules.policy() {
        decision = judge(question, policy, asked, &mut asks);
        match decision.outcome {
            _ if policy.dry_run => asks.clear(),
            Outcome::Denied => return (Err(refusal(asked)), decision),
            Outcome::Allowed | Outcome::StepUp => {}
        }
    }
    let ruling = match (question.hook, asked) {
        (None, _) | (_, Asked::ToCome) => Ruling::Pass,
        (Some(hook), Asked::Message(message)) => hook.decide(question, Some(message)),
        (Some(hook), Asked::Bodiless) => hook.decide(question, None),
    };
    let of_hook = match &ruling {
        Ruling::Pass => &[][..],
        Ruling::Deny => return (Err(refusal(asked)), Decision::of_hook(Outcome::Denied)),
        Ruling::Require(scopes) => scopes,
    };
    let needed = || route.scopes.iter().chain(of_tool).chain(asks.iter().copied()).chain(of_hook);
    if needed().all(|scope| caller.has_scope(scope)) {
        return (Ok(Permit { caller, route }), decision);
    }
    if route.kind.is_public() {
        // Nobody could get it.
        return (Err(refusal(asked)), Decision::of_token(Outcome::Denied));
    }
    let lacks = |scopes: &[String]| scopes.iter().any(|scope| !caller.has_scope(scope));
    if lacks(of_hook) {
        decision = Decision::of_hook(Outcome::StepUp);
    } else if decision.outcome != Outcome::StepUp || !decision.enforced {
        decision = Decision::of_token(Outcome::StepUp);
    }
    (Err(Denied::Scope { needed: caller.scopes_and(needed()) }), decision)
}

fn refusal(asked: Asked<'_>) -> Denied {
    let id = match asked {
        Asked::Message(message) if message.is_request() => Some(message.id.to_string()),
        _ => None,
    };
    Denied::Policy { id }
}

/// What the rules say. `asks`: the scopes that they ask for besides.
fn judge<'a>(
    question: &Question<'a>,
    policy: &'a Policy,
    asked: Asked<'_>,
    asks: &mut Vec<&'a String>,
) -> Decision<'a> {
    let subject = match asked {
        Asked::Bodiless if question.route.kind.is_mcp() => Subject::Nothing,
        Asked::Bodiless => Subject::Plain,
        Asked::Message(message) => Subject::Message(message),
        Asked::ToCome => Subject::ToCome,
    };
    let facts = Known::new(question, subject);
    let goes_on = subject.keeps_going();
    let decided = |outcome, by, fault| Decision { outcome, by, fault, enforced: !policy.dry_run };
    let rules = policy.calls.iter().filter(|rule| {
        // Where there are no arguments, a rule on them says nothing; it must not keep a client from listing tools.
        !(goes_on && rule.when.uses().has(Name::McpArguments))
    });
    for rule in rules.clone().filter(|rule| matches!(rule.effect, Effect::Deny)) {
        match rule.when.holds(&facts) {
            Ok(false) => {}
            Err(Fault::Unknown) if matches!(asked, Asked::ToCome) => {}
            held => return decided(Outcome::Denied, By::Rule(&rule.name), held.err()),
        }
    }
    if matches!(asked, Asked::ToCome) {
        return decided(Outcome::Allowed, By::ToCome, None);
    }
    let (mut allowed, mut fault) = (goes_on.then_some(By::Protocol), None);
    for rule in rules.clone().filter(|rule| allowed.is_none() && matches!(rule.effect, Effect::Allow)) {
        match rule.when.holds(&facts) {
            Ok(true) => {
                allowed = Some(By::Rule(&rule.name));
                break;
            }
            Ok(false) => {}
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    let by = match allowed {
        Some(by) => by,
        None if policy.allows_rest => By::Default,
        None => return decided(Outcome::Denied, By::Default, fault),
    };
    let mut asking = None;
    for rule in rules.filter(|rule| !rule.scopes().is_empty()) {
        match rule.when.holds(&facts) {
            Ok(true) => {
                let lacks = rule.scopes().iter().any(|scope| !question.caller.has_scope(scope));
                asking = asking.or(lacks.then_some(By::Rule(&rule.name)));
                asks.extend(rule.scopes());
            }
            Ok(false) => {}
            Err(fault) => return decided(Outcome::Denied, By::Rule(&rule.name), Some(fault)),
        }
    }
    match asking {
        Some(by) => decided(Outcome::StepUp, by, None),
        None => decided(Outcome::Allowed, by, fault),
    }
}

// === impl Permit ===

impl<'a> Permit<'a> {
    /// Who may.
    pub fn caller(&self) -> &'a Caller {
        self.caller
    }
    /// What for.
    pub fn route(&self) -> &'a Arc<Route> {
        self.route
    }
}

#[cfg(test)]
mod tests;
