//! The user's own page: which servers they are connected to, which applications they have let in, where they are signed in;
//! and the buttons that end each of it. Works without JavaScript: one form per thing and action.
use std::sync::Arc;
use std::time::SystemTime;

use axum::Form;
use axum::extract::{Extension, FromRequest, FromRequestParts, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Deserialize;

use super::browser::{is_same, is_same_origin};
use super::identity::sign_in_at;
use super::session::{Session, SignedIn};
use super::{About, Shared, Web, moved, page, pages, see_other};
use crate::oauth::client::connect::ConnectError;
use crate::oauth::client::connection_key;
use crate::oauth::client::prospect::Prospect;
use crate::oauth::server::remembered;
use crate::seal;
use crate::store::State as Standing;
use crate::store::record::RecordError;

const ENDED: pages::Standing = pages::Standing::Unmet { notice: "The connection is over: connect again." };
const ASKED: pages::Standing = pages::Standing::Unmet {
    notice: "The server asks for you, or for more than you have allowed: connect again.",
};

/// What an authorization that was begun here comes back with.
pub const RESUME: &str = "/connections";

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
}

/// Who presses a button of this page, on this page: signed in, and the form came from here.
pub struct Acting {
    about: About,
    session: SignedIn,
    fields: Fields,
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

/// `POST /connections/{route}/connect`: to the upstream's authorization server, and back to this page.
pub async fn connect(
    State(web): Shared,
    Path(route): Path<String>,
    Acting { about, session, .. }: Acting,
) -> Response {
    let Some(route) = about.snapshot.routes.by_name(&route) else { return nothing() };
    let (connector, user) = (&web.authority.connector, &session.browser.user);
    match connector.prospect(route, user).await {
        Ok(Prospect::NotNeeded | Prospect::Connected { .. }) => moved("/connections"),
        Ok(Prospect::Needed(plan)) => {
            let begun = connector.begin(route, *plan, user, &session.browser.session, RESUME.into()).await;
            match begun {
                Ok(url) => moved(&url),
                Err(error) => connected(&Err(error)),
            }
        }
        Ok(Prospect::SignIn(provider)) => moved(&sign_in_at(&provider, RESUME)),
        Ok(Prospect::NotTheirs) => page(
            StatusCode::FORBIDDEN,
            "You cannot connect here",
            "This server takes people of another sign-in service. Please sign out and come in through that one.",
        ),
        Ok(Prospect::Unexplained) => connected(&Err(ConnectError::Unexplained)),
        Ok(Prospect::Unknown) => connected(&Err(ConnectError::Unavailable)),
        Err(error) => {
            tracing::warn!(target: "postern::oauth", route = %route.name, %error, "upstream authorization cannot be prepared");
            connected(&Err(ConnectError::Unavailable))
        }
    }
}

/// Back from the upstream's authorization server.
pub fn connected(outcome: &Result<Vec<String>, ConnectError>) -> Response {
    let Err(error) = outcome else { return see_other("/connections") };
    tracing::info!(target: "postern::oauth", %error, "not connected");
    let (status, message) = match error {
        ConnectError::Denied => {
            (StatusCode::FORBIDDEN, "Its authorization server did not allow it. You can try again any time.")
        }
        ConnectError::TooOften => (
            StatusCode::TOO_MANY_REQUESTS,
            "You were there three times in a few minutes, for the same. Please wait ten minutes, or disconnect first.",
        ),
        ConnectError::Unavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The server cannot be reached just now. Please try again in a moment.",
        ),
        _ => (
            StatusCode::BAD_GATEWAY,
            "The server's authorization server cannot be used. Please tell whoever runs this gateway.",
        ),
    };
    page(status, "You are not connected", message)
}

/// `POST /connections/{route}/disconnect`
pub async fn disconnect(
    State(web): Shared,
    Path(route): Path<String>,
    Acting { about, session, .. }: Acting,
) -> Response {
    let Some(route) = about.snapshot.routes.by_name(&route) else { return nothing() };
    match web.authority.connector.disconnect(&session.browser.user, route).await {
        Ok(_) => moved("/connections"),
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
pub async fn end_session(State(web): Shared, Acting { session, fields, .. }: Acting) -> Response {
    let records = &web.authority.records;
    let ended = async {
        for (key, found) in records.scan::<Session>().await? {
            // By another digest, since the key is what a cookie is found by.
            if found.value.user == session.browser.user && seal::digest(&key) == fields.session {
                records.remove::<Session>(&key).await?;
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

fn later() -> Response {
    page(
        StatusCode::SERVICE_UNAVAILABLE,
        "Not just now",
        "The store cannot be reached. Please try again in a moment.",
    )
}

fn too_many() -> Response {
    let mut response = page(
        StatusCode::TOO_MANY_REQUESTS,
        "Too many at once",
        "You have opened this page very often in a short time. Please wait a minute.",
    );
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
    response
}

fn nothing() -> Response {
    page(StatusCode::NOT_FOUND, "There is no such server", "It may have been taken away meanwhile.")
}

// === impl Web ===

impl Web {
    async fn account(&self, about: &About, session: &SignedIn) -> Result<String, RecordError> {
        let user = &session.browser.user;
        let mut servers = Vec::new();
        for route in about.snapshot.routes.iter() {
            let standing = match route.credential.is_of_user() {
                true => Some(self.standing(&connection_key(user, route)).await?),
                false => None,
            };
            servers.push(pages::AccountServer { name: &route.name, resource: &route.resource, standing });
        }
        servers.sort_by_key(|server| server.name);
        let now = self.authority.clock.now();
        let allowed = remembered::of_user(&self.authority, user).await?;
        let applications = allowed.into_iter().map(|allowed| pages::Application {
            name: allowed.client_name,
            since: date(allowed.since),
            client: allowed.client_id,
            route: allowed.route,
            scopes: allowed.scopes,
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
            servers,
            applications: applications.collect(),
            sessions: sessions.into_iter().map(|(_, session)| session).collect(),
        }))
    }

    async fn standing(&self, key: &str) -> Result<pages::Standing, RecordError> {
        let Some(found) = self.authority.records.store().connection(key).await? else {
            return Ok(pages::Standing::Absent);
        };
        let challenge = self.authority.connector.open_challenge(key, Some(&found.incarnation)).await;
        Ok(match found.state {
            Standing::NeedsReauth => ENDED,
            _ if challenge.is_some() => ASKED,
            // Sealed with a key that is gone, it is good for nothing.
            _ => match self.authority.records.connection(key).await {
                Err(RecordError::Unreadable) => ENDED,
                found => found.map(|_| pages::Standing::Connected)?,
            },
        })
    }
}

/// The day, for people to read.
fn date(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().chars().take("2026-01-01".len()).collect()
}
