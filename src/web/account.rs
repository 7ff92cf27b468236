//! The user's own page: which servers they are connected to, which applications they have let in, where they are signed in;
//! and the buttons that end each of it. Works without JavaScript: one form per thing and action.
use std::sync::Arc;
use std::time::SystemTime;

use axum::Form;
use axum::extract::{Extension, FromRequest, FromRequestParts, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use secrecy::SecretString;
use serde::Deserialize;

use super::browser::{is_same, is_same_origin};
use super::connections::shown;
use super::session::{Session, SignedIn};
use super::{About, Shared, Web, moved, page, pages, see_other};
use crate::api;
use crate::oauth::server::remembered;
use crate::seal;
use crate::store::record::RecordError;

#[derive(Deserialize)]
pub struct Fields {
    #[serde(default)]
    csrf: String,
    /// Which application, where one is meant.
    #[serde(default)]
    client: String,
    #[serde(default)]
    route: String,
    /// Which session, where one is meant.
    #[serde(default)]
    session: String,
    /// The user's own secret for a server.
    #[serde(default)]
    pub key: SecretString,
    /// Whether to connect although that is the case already.
    #[serde(default)]
    pub anew: String,
    /// Whether the form stood on the page of one server.
    #[serde(default)]
    pub alone: String,
    /// Where to go afterwards.
    #[serde(default)]
    pub return_to: String,
    /// Which identity provider, where one is meant, and the page of ours to go to from there.
    #[serde(default)]
    pub provider: String,
    #[serde(default)]
    pub next: String,
}

/// Who presses a button of this page, on this page: signed in, and the form came from here.
pub struct Acting {
    pub about: About,
    pub session: SignedIn,
    pub fields: Fields,
}

impl FromRequest<Arc<Web>> for Acting {
    type Rejection = Response;

    async fn from_request(request: Request, web: &Arc<Web>) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let about = Extension::<About>::from_request_parts(&mut parts, web).await;
        let Extension(about) = about.map_err(IntoResponse::into_response)?;
        let headers = parts.headers.clone();
        let fields = Form::<Fields>::from_request(Request::from_parts(parts, body), web).await;
        let Form(fields) = fields.map_err(IntoResponse::into_response)?;
        let session = web.signed_in(&about, &headers).await.map_err(|response| *response)?;
        let user = &session.browser.user;
        if !is_same_origin(&headers, about.snapshot.issuer()) || !is_same(&session.csrf, &fields.csrf) {
            tracing::warn!(target: "audit", event = "forged_form", %user, client_ip = about.client.map(tracing::field::display));
            return Err(page(
                StatusCode::FORBIDDEN,
                "That did not come from here",
                "Please open your page again and use the buttons there.",
            ));
        }
        match web.limits.authorization(user) {
            true => Ok(Self { about, session, fields }),
            false => Err(too_many()),
        }
    }
}

/// `GET /connections`
pub async fn show(State(web): Shared, Extension(about): Extension<About>, headers: HeaderMap) -> Response {
    match web.session(&about, &headers).await {
        Ok(Some(session)) if !web.limits.authorization(&session.browser.user) => too_many(),
        Ok(Some(session)) => match web.account(&about, &session).await {
            Ok(html) => Html(html).into_response(),
            Err(_) => later(),
        },
        Ok(None) => see_other("/login?next=/connections"),
        Err(_) => later(),
    }
}

/// `POST /connections/withdraw`: an application that was let in is let in no more.
pub async fn withdraw(State(web): Shared, Acting { session, fields, .. }: Acting) -> Response {
    let user = &session.browser.user;
    match remembered::withdraw(&web.authority, user, &fields.client, &fields.route).await {
        Ok(()) => moved("/connections"),
        Err(_) => later(),
    }
}

/// `POST /connections/end-session`: signs a browser out.
pub async fn end_session(State(web): Shared, Acting { session, fields, about }: Acting) -> Response {
    let records = &web.authority.records;
    let ended = async {
        for (key, found) in records.scan::<Session>().await? {
            // By another digest, since the key is what a cookie is found by.
            if found.value.user == session.browser.user && seal::digest(&key) == fields.session {
                records.remove::<Session>(&key).await?;
                web.forget_exchanged(&about, &session.browser.user).await?;
                tracing::info!(target: "audit", event = "session_ended", user = %session.browser.user);
            }
        }
        Ok::<_, RecordError>(())
    };
    match ended.await {
        Ok(()) => moved("/connections"),
        Err(_) => later(),
    }
}

pub fn later() -> Response {
    page(
        StatusCode::SERVICE_UNAVAILABLE,
        "Not just now",
        "The store cannot be reached. Please try again in a moment.",
    )
}

pub fn too_many() -> Response {
    let mut response = page(
        StatusCode::TOO_MANY_REQUESTS,
        "Too many at once",
        "You have opened this page very often in a short time. Please wait a minute.",
    );
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
    response
}

pub fn nothing() -> Response {
    page(StatusCode::NOT_FOUND, "There is no such server", "It may have been taken away meanwhile.")
}

// === impl Web ===

impl Web {
    async fn account(&self, about: &About, session: &SignedIn) -> Result<String, RecordError> {
        let user = &session.browser.user;
        let listed = api::connections::list(&self.authority, &about.snapshot, user).await?;
        let missing = listed.iter().filter(|listed| listed.standing.is_missing()).count();
        let now = self.authority.clock.now();
        let allowed = remembered::of_user(&self.authority, user).await?;
        let applications = allowed.into_iter().map(|allowed| pages::Application {
            name: allowed.client_name,
            since: date(allowed.since),
            client: allowed.client_id,
            route: allowed.route,
            scopes: allowed.scopes,
            decided_by: allowed.decided_by.map(|name| label(about, name)),
        });
        let mut sessions: Vec<(u64, pages::Browser)> = Vec::new();
        for (key, found) in self.authority.records.scan::<Session>().await? {
            let Session { user: of, agent, begun_at, .. } = found.value;
            if of == *user && found.expires_at > now {
                let since = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(begun_at);
                let is_this = key == session.browser.session;
                let browser = pages::Browser { id: seal::digest(&key), agent, since: date(since), is_this };
                sessions.push((begun_at, browser));
            }
        }
        sessions.sort_by_key(|(begun_at, _)| std::cmp::Reverse(*begun_at));
        Ok(pages::account(&pages::Account {
            csrf: &session.csrf,
            user: &session.name,
            servers: listed.iter().map(shown).collect(),
            missing,
            applications: applications.collect(),
            sessions: sessions.into_iter().map(|(_, session)| session).collect(),
        }))
    }
}

/// What people read of an identity provider; its short name where it is gone.
fn label(about: &About, name: String) -> String {
    about.snapshot.config.login.provider(&name).map_or(name, |provider| provider.label.clone())
}

/// The day, for people to read.
pub fn date(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().chars().take("2026-01-01".len()).collect()
}
