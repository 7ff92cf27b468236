//! Who asks, proven: by the session of the browser, a service account, or a short token that somebody who is signed in has
//! made. It is decided here, before any operation is run, so that none can forget it.
use axum::http::{HeaderMap, header};

use super::ROOT;
use super::operation::{Access, Operation};
use super::problem::{Kind, Problem};
use crate::api::managed::Actor;
use crate::api::managed::scope::Scope;
use crate::authn::{self, AuthnError};
use crate::oauth::server::standing::Holder;
use crate::web::browser::{is_same, is_same_origin};
use crate::web::json::CSRF;
use crate::web::session::SignedIn;
use crate::web::{About, Web};

/// What a token for this API is made for.
pub fn audience(about: &About) -> String {
    format!("{}{ROOT}", about.snapshot.issuer())
}

/// Who may do this.
pub async fn prove(
    web: &Web,
    about: &About,
    headers: &HeaderMap,
    operation: &Operation,
) -> Result<Actor, Problem> {
    // A browser sends its cookie by itself, so whoever brings a token as well means the token.
    let (actor, scopes) = match headers.contains_key(header::AUTHORIZATION) {
        true => {
            let (actor, scopes) = by_token(web, about, headers)?;
            (actor, Some(scopes))
        }
        false => (by_session(web, about, headers, operation).await?, None),
    };
    if !web.limits.management(&actor.name) {
        return Err(Problem::new(Kind::TooManyRequests, "Wait a minute."));
    }
    match (operation.access, scopes) {
        (_, None) => Ok(actor),
        (Access::Scope(wanted), Some(scopes)) if scopes.contains(&wanted) => Ok(actor),
        (Access::Scope(wanted), Some(_)) => {
            let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{}\"", wanted.name());
            let detail = format!("The token lacks the scope {}.", wanted.name());
            Err(Problem::new(Kind::InsufficientScope, detail).challenged(&challenge))
        }
        (Access::Session, Some(_)) => {
            Err(Problem::new(Kind::Forbidden, "Only who is signed in with a browser may do this."))
        }
    }
}

async fn by_session(
    web: &Web,
    about: &About,
    headers: &HeaderMap,
    operation: &Operation,
) -> Result<Actor, Problem> {
    let session = web.session(about, headers).await.map_err(|_| Problem::unavailable())?;
    let session = session.ok_or_else(|| {
        let detail = "Sign in at /login in this browser, or send a token in Authorization: Bearer.";
        Problem::new(Kind::Unauthorized, detail).challenged("Bearer")
    })?;
    // First, so that nobody else can use up what is left to the user.
    if !is_theirs(about, headers, operation, &session) {
        tracing::warn!(target: "audit", event = "forged_form", user = %session.browser.user, client_ip = about.client.map(tracing::field::display));
        let detail =
            "Send it from a page of this origin, with the csrf of GET /api/v1/connections in X-CSRF-Token.";
        return Err(Problem::new(Kind::Forged, detail));
    }
    Ok(actor(about, session.browser.user, false))
}

/// Who reads comes from a page of this origin or no page at all; who changes something, from a page of ours with what only
/// that page knew.
fn is_theirs(about: &About, headers: &HeaderMap, operation: &Operation, session: &SignedIn) -> bool {
    if !operation.is_change() {
        return headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin" || site == "none");
    }
    let sent = headers.get(CSRF).and_then(|token| token.to_str().ok()).unwrap_or_default();
    is_same_origin(headers, about.snapshot.issuer()) && is_same(&session.csrf, sent)
}

fn by_token(web: &Web, about: &About, headers: &HeaderMap) -> Result<(Actor, Vec<Scope>), Problem> {
    let standing = web.authority.standing(&about.snapshot);
    let refused =
        |detail: &str| Problem::new(Kind::Unauthorized, detail).challenged("Bearer error=\"invalid_token\"");
    let holder = authn::holder(headers, &standing, web.authority.clock.now());
    let holder = holder.map_err(|error| match error {
        AuthnError::Missing => {
            Problem::new(Kind::Unauthorized, "Send a token in Authorization: Bearer.").challenged("Bearer")
        }
        AuthnError::Malformed => Problem::new(Kind::Malformed, "Send one token in one Authorization header."),
        AuthnError::Invalid => refused("The token is none of this gateway's."),
        AuthnError::Expired => refused("The token has expired."),
        AuthnError::Revoked => refused("The token was taken back."),
        AuthnError::NotReady => Problem::unavailable(),
    })?;
    let scopes = |names: &mut dyn Iterator<Item = &str>| names.filter_map(|name| name.parse().ok()).collect();
    match holder {
        Holder::User(token) if token.is_for(&audience(about)) => {
            let granted = scopes(&mut token.scope().split(' '));
            Ok((actor(about, token.subject().to_owned(), false), granted))
        }
        Holder::Service(account) => {
            let granted = scopes(&mut account.api.iter().map(String::as_str));
            let actor = match &account.acts_for {
                Some(user) => actor(about, user.clone(), false),
                // The operator has made it.
                None => actor(about, account.subject.clone(), true),
            };
            Ok((actor, granted))
        }
        Holder::User(_) | Holder::Client { .. } => Err(refused("The token is for something else.")),
    }
}

fn actor(about: &About, name: String, is_program: bool) -> Actor {
    let managed = about.snapshot.config.managed.as_ref();
    let is_listed = managed.is_some_and(|managed| managed.administrators.contains(&name));
    Actor { is_administrator: is_program || is_listed, request_id: about.request_id.clone(), name }
}
