//! A further leg: somebody who is signed in goes to another identity provider as well, for the routes that want its tokens.
//!
//! Who they are stays as it is: what comes back is kept as a connection of theirs and signs nobody in. They are asked
//! before they go, since any site can send a browser to the address where a leg begins, and their own account there would
//! be tied to the one here unseen. The session that set out has to be the one that comes back. What fails ends that leg
//! alone: what is connected stays so, and the way goes on from the page that says what failed.
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{nobody, too_many};
use crate::config::IdentityProvider;
use crate::oauth::client::identity::{IdentityError, Person};
use crate::web::account::Acting;
use crate::web::browser::{is_same, local_path};
use crate::web::pages::connections::{NotConnected, not_connected};
use crate::web::session::SignedIn;
use crate::web::{About, Shared, Web, moved, pages, see_other};

/// Whose it is, and the session that it belongs to.
#[derive(Serialize, Deserialize)]
pub(super) struct Leg {
    user: String,
    session: String,
}

/// Asks whether they want to go there.
pub(super) fn ask(session: &SignedIn, provider: &IdentityProvider, next: &str) -> Response {
    let page = pages::Leg {
        csrf: &session.csrf,
        user: &session.name,
        label: &provider.label,
        provider: &provider.name,
        next,
    };
    Html(pages::leg(&page)).into_response()
}

/// `POST /login/leg`: to the provider.
pub async fn set_out(
    State(web): Shared,
    headers: HeaderMap,
    Acting { about, session, fields }: Acting,
) -> Response {
    let Some(provider) = about.snapshot.config.login.provider(&fields.provider) else { return nobody() };
    let user = session.browser.user;
    let next = local_path(&fields.next);
    // Their own provider says who they are; it is no further one.
    if provider.knows(&user) {
        return moved(next);
    }
    if !web.limits.sign_in(about.client) {
        return too_many();
    }
    let leg = Leg { user: user.clone(), session: session.browser.session };
    match web.lead_to(&about, &headers, provider, next, Some(&user), Some(leg)).await {
        Ok(away) => away.taking(moved),
        Err(error) => failed(&user, provider, next, &error),
    }
}

impl Leg {
    pub(super) fn is_of(&self, session: &SignedIn) -> bool {
        is_same(&self.session, &session.browser.session) && self.user == session.browser.user
    }

    /// For the log: it has come back to another session, or to none.
    pub(super) fn lost(&self, provider: &IdentityProvider) {
        tracing::warn!(target: "audit", event = "leg_refused", user = %self.user, provider = %provider.name, reason = "it was begun in another session");
    }

    /// Keeps what the provider gave, and goes on.
    pub(super) async fn end(
        &self,
        web: &Web,
        about: &About,
        provider: &IdentityProvider,
        next: &str,
        person: Result<Person, IdentityError>,
    ) -> Response {
        let kept = match person {
            Ok(person) if !web.authority.admits(&about.snapshot, &person.user) => {
                Err(IdentityError::NotAdmitted)
            }
            Ok(person) => web.keep(about, provider, &self.user, person).await,
            Err(error) => Err(error),
        };
        match kept {
            Ok(person) => {
                tracing::info!(target: "audit", event = "leg", user = %self.user, provider = %provider.name, account = %person.user);
                see_other(next)
            }
            Err(error) => failed(&self.user, provider, next, &error),
        }
    }
}

/// They stay signed in, and may go on without it.
fn failed(user: &str, provider: &IdentityProvider, next: &str, error: &IdentityError) -> Response {
    tracing::warn!(target: "audit", event = "leg_refused", %user, provider = %provider.name, reason = %error);
    let (status, words) = match error {
        IdentityError::Unavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The sign-in service cannot be reached just now. Please try again in a moment.",
        ),
        IdentityError::Denied => {
            (StatusCode::FORBIDDEN, "The sign-in service did not sign you in. You can try again any time.")
        }
        IdentityError::NotAdmitted => (
            StatusCode::FORBIDDEN,
            "Your account there may not be used here. Please ask whoever runs this gateway.",
        ),
        IdentityError::SomebodyElse => (
            StatusCode::FORBIDDEN,
            "You are connected there with another account. Sign in there with that one, or disconnect it first.",
        ),
        IdentityError::Refused(_) => (
            StatusCode::BAD_GATEWAY,
            "The sign-in service answered nonsense. If it stays so, whoever runs this gateway finds the reason in its log.",
        ),
    };
    let page = NotConnected {
        status: status.as_u16(),
        failed: vec![(&provider.label, words)],
        done: Vec::new(),
        onward: next.to_owned(),
        label: "Go on without it".to_owned(),
    };
    let mut response = (status, Html(not_connected(&page))).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}
