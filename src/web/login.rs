//! Signing in and out. Local users with argon2 password hashes, and in the demo one button.
use std::time::Duration;

use argon2::{Argon2, PasswordHash, PasswordVerifier};
use axum::Form;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::browser::{is_same, is_same_origin, local_path};
use super::session::{AtProvider, Session, Who, begin};
use super::{About, Shared, Web, moved, page, pages, see_other};
use crate::config::Config;
use crate::oauth::server::params::with_query;
use crate::seal;
use crate::store::record::RecordError;

#[derive(Deserialize)]
pub struct Next {
    #[serde(default)]
    next: String,
}

/// The fields of both forms on the page.
#[derive(Deserialize)]
pub struct Fields {
    #[serde(default)]
    csrf: String,
    #[serde(default)]
    next: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: SecretString,
    one_click: Option<String>,
}

#[derive(Deserialize)]
pub struct SignOut {
    #[serde(default)]
    csrf: String,
}

/// Too many passwords are waiting to be checked.
struct Busy;

/// How long a sign-in waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);
/// A hash to verify against when there is no such user, so that the answer takes as long.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8";

/// `GET /login?next=…`
pub async fn form(
    State(web): Shared,
    Extension(about): Extension<About>,
    headers: HeaderMap,
    Query(Next { next }): Query<Next>,
) -> Response {
    let next = local_path(&next);
    // In the middle of something and with one way in only, there is nothing to choose.
    let login = &about.snapshot.config.login;
    if let ([only], true, true) = (login.providers.as_slice(), login.users.is_empty(), next != "/") {
        return see_other(&with_query("/login/start", &[("provider", &only.name), ("next", next)]));
    }
    render(&web, &about, &headers, StatusCode::OK, next, "", None)
}

/// `POST /login`
pub async fn sign_in(
    State(web): Shared,
    Extension(about): Extension<About>,
    headers: HeaderMap,
    Form(fields): Form<Fields>,
) -> Response {
    let snapshot = &about.snapshot;
    let next = local_path(&fields.next);
    let again =
        |status, problem| render(&web, &about, &headers, status, next, &fields.username, Some(problem));
    // The form was made for this browser: its token is the digest of a cookie that only this browser has.
    let made_here =
        web.cookies.sign_in(&headers).is_some_and(|cookie| is_same(&seal::digest(cookie), &fields.csrf));
    if !is_same_origin(&headers, snapshot.issuer()) || !made_here {
        return again(StatusCode::FORBIDDEN, "This form had expired. Please try again.");
    }
    let now = web.authority.clock.now();
    if web.throttle.left(&fields.username, about.client, now).is_some() {
        return again(StatusCode::TOO_MANY_REQUESTS, "That was wrong too often. Please wait a few minutes.");
    }
    let user = match &fields.one_click {
        Some(_) => one_click(&about).map(str::to_owned),
        None => match web.verify(&snapshot.config, &fields.username, fields.password.clone()).await {
            Ok(user) => user,
            Err(Busy) => {
                return again(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "Too many people are signing in just now. Please try again.",
                );
            }
        },
    };
    let Some(user) = user else {
        tracing::warn!(target: "audit", event = "sign_in_failed", user = %pages::plain(&fields.username), client_ip = about.client.map(tracing::field::display));
        web.throttle.failed(&fields.username, about.client, now);
        return again(StatusCode::UNAUTHORIZED, "The username or the password is not right.");
    };
    web.throttle.succeeded(&fields.username, about.client);
    if !web.authority.admits(snapshot, &user) {
        tracing::warn!(target: "audit", event = "sign_in_blocked", user = %user, client_ip = about.client.map(tracing::field::display));
        return again(
            StatusCode::FORBIDDEN,
            "This account is blocked. Please ask whoever runs this gateway.",
        );
    }
    let who = Who { user, name: None, provider: None };
    match web.begin(&about, &headers, who).await {
        Ok(cookie) => {
            let mut response = moved(next);
            response.headers_mut().extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
            response
        }
        Err(_) => {
            again(StatusCode::SERVICE_UNAVAILABLE, "Signing in is not possible just now. Please try again.")
        }
    }
}

/// `POST /logout`
pub async fn sign_out(
    State(web): Shared,
    Extension(about): Extension<About>,
    headers: HeaderMap,
    Form(SignOut { csrf }): Form<SignOut>,
) -> Response {
    let records = &web.authority.records;
    let session = match web.session(&about, &headers).await {
        Ok(Some(session)) => session,
        // Nobody who counts just now; a session of somebody who is blocked ends all the same.
        Ok(None) => {
            let mut response = Html(pages::signed_out()).into_response();
            if is_same_origin(&headers, about.snapshot.issuer())
                && let Some(cookie) = web.cookies.session(&headers)
                && records.remove::<Session>(&seal::digest(cookie)).await.is_ok()
            {
                response.headers_mut().append(header::SET_COOKIE, web.cookies.clear_session());
            }
            return response;
        }
        Err(_) => {
            return page(
                StatusCode::SERVICE_UNAVAILABLE,
                "Not now",
                "Signing out is not possible just now. Please try again.",
            );
        }
    };
    if !is_same_origin(&headers, about.snapshot.issuer()) || !is_same(&session.csrf, &csrf) {
        return page(
            StatusCode::FORBIDDEN,
            "That did not come from here",
            "Please use the button on the front page.",
        );
    }
    let ended = async {
        records.remove::<Session>(&session.browser.session).await?;
        web.forget_exchanged(&about, &session.browser.user).await
    };
    if ended.await.is_err() {
        return page(
            StatusCode::SERVICE_UNAVAILABLE,
            "Not now",
            "Signing out is not possible just now. Please try again.",
        );
    }
    tracing::info!(target: "audit", event = "sign_out", user = %session.browser.user);
    // Signed out there as well, or the next sign-in would ask nothing.
    let mut response = match web.sign_out_url(&about, session.provider.as_ref()).await {
        Some(url) => moved(&url),
        None => Html(pages::signed_out()).into_response(),
    };
    response.headers_mut().append(header::SET_COOKIE, web.cookies.clear_session());
    response
}

pub(super) fn render(
    web: &Web,
    about: &About,
    headers: &HeaderMap,
    status: StatusCode,
    next: &str,
    username: &str,
    error: Option<&str>,
) -> Response {
    // A cookie that is there already is kept, so that two open sign-in pages both work.
    let (value, fresh) = match (web.cookies.sign_in(headers), seal::token()) {
        (Some(value), _) => (value.to_owned(), false),
        (None, Ok(token)) => (token.expose_secret().to_owned(), true),
        (None, Err(_)) => {
            return page(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Not now",
                "Signing in is not possible just now.",
            );
        }
    };
    let login = &about.snapshot.config.login;
    let providers = login.providers.iter().map(|provider| pages::Provider {
        label: &provider.label,
        url: with_query("/login/start", &[("provider", &provider.name), ("next", next)]),
    });
    let login = pages::Login {
        csrf: &seal::digest(&value),
        next,
        username,
        error,
        one_click: one_click(about),
        providers: providers.collect(),
        has_passwords: !login.users.is_empty(),
    };
    let mut response = (status, Html(pages::login(&login))).into_response();
    if fresh {
        response.headers_mut().append(header::SET_COOKIE, web.cookies.set_sign_in(&value));
    }
    response
}

/// The user of the one-click button: only where `public_url`, every listener and the request's own host are loopback.
fn one_click(about: &About) -> Option<&str> {
    let config = &about.snapshot.config;
    let server = &config.server;
    let local_host = about.authority == server.public_url.authority();
    let local = server.public_url.is_loopback()
        && server.listen.iter().all(crate::config::Listen::is_loopback)
        && local_host;
    let from_here = about.client.is_some_and(|client| client.to_canonical().is_loopback());
    config.login.one_click.as_deref().filter(|_| local && from_here)
}

/// Whether two sign-ins follow from one session at a provider, which ends both.
fn same_session(one: Option<&AtProvider>, other: Option<&AtProvider>) -> bool {
    one.map(|at| (&at.name, &at.session)) == other.map(|at| (&at.name, &at.session))
}

// === impl Web ===

impl Web {
    /// Signs somebody in at this browser; the cookie to set, unless it has theirs already.
    pub(super) async fn begin(
        &self,
        about: &About,
        headers: &HeaderMap,
        who: Who,
    ) -> Result<Option<HeaderValue>, RecordError> {
        // Two tabs may both have shown the form. The second keeps the session of the first, or what the first tab asks
        // meanwhile would be somebody else's. A session of another user, or none of ours, is always replaced.
        if let Ok(Some(session)) = self.session(about, headers).await
            && session.browser.user == who.user
            && same_session(session.provider.as_ref(), who.provider.as_ref())
        {
            return Ok(None);
        }
        if let Some(old) = self.cookies.session(headers)
            && let Err(error) = self.authority.records.remove::<Session>(&seal::digest(old)).await
        {
            tracing::warn!(%error, "the session before this one stays until it expires");
        }
        let user = who.user.clone();
        let cookie = begin(&self.authority, &about.snapshot, &self.cookies, who, headers).await?;
        tracing::info!(target: "audit", event = "sign_in", user = %user, client_ip = about.client.map(tracing::field::display));
        Ok(Some(cookie))
    }

    /// The user of that name, if the password is theirs. Takes the same time whether or not there is such a user.
    async fn verify(
        &self,
        config: &Config,
        username: &str,
        password: SecretString,
    ) -> Result<Option<String>, Busy> {
        let known = config.login.users.get(username);
        let hash =
            known.map_or_else(|| NOBODY.to_owned(), |user| user.password_hash.expose_secret().to_owned());
        let turn = tokio::time::timeout(PATIENCE, self.hashing.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(Busy) };
        let verified = tokio::task::spawn_blocking(move || {
            let hash = PasswordHash::new(&hash).ok()?;
            Argon2::default().verify_password(password.expose_secret().as_bytes(), &hash).ok()
        });
        let right = verified.await.ok().flatten().is_some();
        Ok(known.filter(|_| right).map(|_| username.to_owned()))
    }
}
