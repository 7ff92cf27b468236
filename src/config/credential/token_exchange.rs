//! `kind: token_exchange`: a token for each user, got for one that says who they are (RFC 8693, or RFC 7523 §2.1).

use std::sync::Arc;

use secrecy::SecretString;

use super::super::checked::Checker;
use super::super::file::{self, ActorToken, ExchangeForm, InjectedToken, SubjectOf};
use super::super::oidc::IdentityProvider;
use super::super::report::Key;
use super::super::secret;
use super::exchange::{self, Exchanger};
use super::{Around, Credential, provider};

/// What is exchanged, and for what.
#[derive(Clone)]
pub struct TokenExchange {
    pub at: Exchanger,
    pub form: ExchangeForm,
    pub subject: Subject,
    /// `None`: what the subject's token is.
    pub subject_token_type: Option<String>,
    /// `None`: the server's choice among those that can be sent.
    pub requested_token_type: Option<String>,
    /// Only in the form of RFC 8693.
    pub actor: Option<Actor>,
}

/// Whose token is shown.
#[derive(Clone)]
pub enum Subject {
    /// The caller's: one that Postern signs about them, or where the route trusts others, the one they came with.
    Caller,
    /// A token that this provider gave when they signed in.
    Provider(Arc<IdentityProvider>, InjectedToken),
}

/// Who acts for the subject.
#[derive(Clone)]
pub enum Actor {
    /// Postern, by a token that it signs.
    Ourselves,
    /// Whoever this token is about; with its type.
    Token(SecretString, String),
}

const ABSOLUTE: &str = "write a URI, like urn:ietf:params:oauth:token-type:access_token";

pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    around: &Around<'_>,
) -> Option<Credential> {
    let form = written.form.unwrap_or_default();
    let subject = match (written.subject, &written.subject_provider) {
        (Some(SubjectOf::Caller), Some(_)) => {
            let what = "is the caller, and `subject_provider` is there as well";
            check.refuse(&key.child("subject"), what, "leave one of the two out");
            None
        }
        (_, Some(name)) => {
            let token = written.subject_token.unwrap_or(InjectedToken::Access);
            let provider = provider(check, &key.child("subject_provider"), Some(name), around.login);
            provider.map(|provider| Subject::Provider(provider, token))
        }
        (_, None) => {
            if written.subject_token.is_some() {
                let write = "write whose token it is as `subject_provider`, or leave it out";
                check.refuse(&key.child("subject_token"), "has no `subject_provider` beside it", write);
            }
            Some(Subject::Caller)
        }
    };
    for (name, value) in [
        ("subject_token_type", &written.subject_token_type),
        ("requested_token_type", &written.requested_token_type),
        ("actor_token_type", &written.actor_token_type),
    ] {
        let Some(text) = value else { continue };
        if form == ExchangeForm::Assertion {
            check.refuse(&key.child(name), "belongs to `form: exchange`", "leave it out");
        } else if url::Url::parse(text).is_err() || text.chars().any(char::is_whitespace) {
            check.refuse(&key.child(name), "is not a type of token", ABSOLUTE);
        }
    }
    let actor = actor(check, key, written, form);
    let at = exchange::check(check, key, written, around);
    Some(Credential::TokenExchange(Arc::new(TokenExchange {
        at: at?,
        form,
        subject: subject?,
        subject_token_type: written.subject_token_type.clone(),
        requested_token_type: written.requested_token_type.clone(),
        actor,
    })))
}

fn actor(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    form: ExchangeForm,
) -> Option<Actor> {
    let at = key.child(if written.actor.is_some() { "actor" } else { "actor_token" });
    let is_there = written.actor.is_some() || written.actor_token.is_some();
    if is_there && form == ExchangeForm::Assertion {
        check.refuse(&at, "belongs to `form: exchange`", "leave it out");
    }
    if written.actor_token_type.is_some() && written.actor_token.is_none() {
        check.refuse(&key.child("actor_token_type"), "has no `actor_token` beside it", "leave it out");
    }
    match (written.actor, &written.actor_token) {
        (Some(_), Some(_)) => {
            check.refuse(&at, "is there beside `actor_token`", "leave one of the two out");
            None
        }
        (Some(ActorToken::Ourselves), None) => Some(Actor::Ourselves),
        (None, Some(secret)) => {
            let token = secret::resolve(check, &at, secret)?;
            let kind = written.actor_token_type.clone();
            Some(Actor::Token(token, kind.unwrap_or_else(|| "urn:ietf:params:oauth:token-type:jwt".into())))
        }
        (None, None) => None,
    }
}
