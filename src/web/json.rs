//! The connections as JSON: the same as the page, for programs that run in the user's browser on this origin. By the
//! session's cookie alone, so the same rules as for the forms: from this origin, and with the session's token, here as
//! a header. No other origin may read or send anything.
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::browser::{is_same, is_same_origin};
use super::connections::{last_step, page_of, status};
use super::endpoints::is_type;
use super::session::SignedIn;
use super::{About, Shared, Web};
use crate::api::connections::{Listed, list};
use crate::api::return_address;
use crate::api::trail::{Onward, Trail};
use crate::oauth::client::standing::State as Stands;
use crate::route::Route;

pub(super) const CSRF: HeaderName = HeaderName::from_static("x-csrf-token");
pub(super) const SAME_ORIGIN: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// What a connection is asked for with.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    #[serde(default)]
    routes: Vec<String>,
    #[serde(default)]
    return_to: Option<String>,
    /// Whether to go there although there is a connection that works.
    #[serde(default)]
    reconnect: bool,
}

/// What is wrong with a request.
struct Refusal {
    status: StatusCode,
    error: &'static str,
    description: String,
    retry_after: Option<&'static str>,
    /// Routes that are not connected, and why.
    failed: Value,
}

pub fn routes() -> Router<Arc<Web>> {
    Router::new()
        .route("/api/v1/connections", get(all))
        .route("/api/v1/connections/{route}", get(one).delete(end).post(several))
        .route("/api/v1/connections/{route}/connect", post(connect))
        .route("/api/v1/connections/{route}/disconnect", post(end).delete(end))
        .route("/api/{*rest}", any(nothing))
        .route("/api", any(nothing))
}

/// `GET /api/v1/connections`
async fn all(State(web): Shared, Extension(about): Extension<About>, headers: HeaderMap) -> Response {
    answer(async {
        let session = web.reads(&about, &headers).await?;
        let user = &session.browser.user;
        let listed = list(&web.authority, &about.snapshot, user).await.map_err(|_| later())?;
        let connections: Vec<Value> = listed.iter().map(|listed| document(&about, listed)).collect();
        Ok(json!({"user": user, "name": session.name, "csrf": session.csrf, "connections": connections}))
    })
    .await
}

/// `GET /api/v1/connections/{route}`
async fn one(
    State(web): Shared,
    Extension(about): Extension<About>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    answer(async {
        let session = web.reads(&about, &headers).await?;
        let route = known(&about, &name, &session.browser.user)?;
        let standing = web.authority.connector.standing(route, &session.browser.user).await;
        Ok(document(&about, &Listed { route, standing: standing.map_err(|_| later())? }))
    })
    .await
}

/// `POST /api/v1/connections/connect`: several, one after the other.
async fn several(
    web: Shared,
    about: Extension<About>,
    Path(what): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match what.as_str() {
        "connect" => begin(web, about, None, &headers, &body).await,
        _ => nothing().await,
    }
}

/// `POST /api/v1/connections/{route}/connect`
async fn connect(
    web: Shared,
    about: Extension<About>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    begin(web, about, Some(name), &headers, &body).await
}

/// `route`: the one in the address, if it is about one.
async fn begin(
    State(web): Shared,
    Extension(about): Extension<About>,
    route: Option<String>,
    headers: &HeaderMap,
    body: &[u8],
) -> Response {
    answer(async {
        let session = web.acts(&about, headers).await?;
        let wish = wish(headers, body)?;
        let (routes, home) = match (route, wish.routes.is_empty()) {
            (Some(name), true) => (vec![name.clone()], page_of(&name, None)),
            (None, false) => (wish.routes.clone(), "/connections".to_owned()),
            (Some(_), false) => return Err(invalid("the route is in the address already")),
            (None, true) => return Err(invalid("routes has to name at least one route")),
        };
        for name in &routes {
            known(&about, name, &session.browser.user)?;
        }
        web.set_out(&about, &session, Wish { routes, ..wish }, home).await
    })
    .await
}

/// `POST /api/v1/connections/{route}/disconnect`, `DELETE /api/v1/connections/{route}`
async fn end(
    State(web): Shared,
    Extension(about): Extension<About>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    answer(async {
        let session = web.acts(&about, &headers).await?;
        let user = &session.browser.user;
        let route = known(&about, &name, user)?;
        let connector = &web.authority.connector;
        if route.credential.is_of_user() {
            connector.disconnect(user, route).await.map_err(|_| later())?;
        }
        let standing = connector.standing(route, user).await.map_err(|_| later())?;
        Ok(json!({"state": standing.state.name()}))
    })
    .await
}

async fn nothing() -> Response {
    Refusal::new(StatusCode::NOT_FOUND, "not_found", "There is nothing here.").into_response()
}

async fn answer(work: impl Future<Output = Result<Value, Refusal>>) -> Response {
    match work.await {
        Ok(document) => ([(SAME_ORIGIN, "same-origin")], axum::Json(document)).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

fn known<'a>(about: &'a About, name: &str, user: &str) -> Result<&'a Arc<Route>, Refusal> {
    let gone = || Refusal::new(StatusCode::NOT_FOUND, "not_found", "There is no route of that name.");
    about.snapshot.routes.of_user(name, user).ok_or_else(gone)
}

/// A body is optional, but one that is there is JSON and says so: no form of a foreign page can.
fn wish(headers: &HeaderMap, body: &[u8]) -> Result<Wish, Refusal> {
    if body.is_empty() {
        return Ok(Wish::default());
    }
    if !is_type(headers, "application/json") {
        let words = "The body has to be JSON, with the content type application/json.";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request", words));
    }
    serde_json::from_slice(body)
        .map_err(|error| invalid(&format!("the body is not what is asked for: {error}")))
}

fn document(about: &About, listed: &Listed<'_>) -> Value {
    let (route, standing) = (listed.route, &listed.standing);
    let time = |time| humantime::format_rfc3339_seconds(time).to_string();
    let held = standing.held.as_ref();
    let expires_at = match standing.state {
        Stands::Expires(end) => Some(time(end)),
        _ => None,
    };
    json!({
        "route": route.name,
        "resource": route.resource,
        "state": standing.state.name(),
        "description": listed.words(),
        "scopes": held.map(|held| held.scopes.as_slice()).unwrap_or_default(),
        "issuer": held.map(|held| held.issuer.as_str()),
        "since": held.map(|held| time(held.since)),
        "expires_at": expires_at,
        "page": format!("{}{}", about.snapshot.issuer(), page_of(&route.name, None)),
    })
}

fn invalid(description: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_request", description)
}

fn later() -> Refusal {
    let words = "The store cannot be reached. Please try again in a moment.";
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", words);
    Refusal { retry_after: Some("2"), ..refusal }
}

// === impl Refusal ===

impl Refusal {
    fn new(status: StatusCode, error: &'static str, description: &str) -> Self {
        let description = description.to_owned();
        Self { status, error, description, retry_after: None, failed: Value::Null }
    }

    fn into_response(self) -> Response {
        let mut document = json!({"error": self.error, "error_description": self.description});
        if let (Some(object), false) = (document.as_object_mut(), self.failed.is_null()) {
            object.insert("failed".to_owned(), self.failed);
        }
        let mut response = (self.status, axum::Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(SAME_ORIGIN, HeaderValue::from_static("same-origin"));
        headers
            .extend(self.retry_after.map(|seconds| (header::RETRY_AFTER, HeaderValue::from_static(seconds))));
        response
    }
}

// === impl Web ===

impl Web {
    /// Who may read: whoever is signed in, from a page of this origin or no page at all.
    async fn reads(&self, about: &About, headers: &HeaderMap) -> Result<SignedIn, Refusal> {
        let from_here =
            headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin" || site == "none");
        self.admit(about, headers, |_| from_here).await
    }

    /// Who may change something: what is asked of the forms is asked here.
    async fn acts(&self, about: &About, headers: &HeaderMap) -> Result<SignedIn, Refusal> {
        let sent = headers.get(CSRF).and_then(|token| token.to_str().ok()).unwrap_or_default();
        let from_here = is_same_origin(headers, about.snapshot.issuer());
        self.admit(about, headers, |session| from_here && is_same(&session.csrf, sent)).await
    }

    async fn admit(
        &self,
        about: &About,
        headers: &HeaderMap,
        is_theirs: impl FnOnce(&SignedIn) -> bool,
    ) -> Result<SignedIn, Refusal> {
        let session = match self.session(about, headers).await {
            Ok(Some(session)) => session,
            Ok(None) => {
                let words = "Nobody is signed in. Open /login in this browser.";
                return Err(Refusal::new(StatusCode::UNAUTHORIZED, "login_required", words));
            }
            Err(_) => return Err(later()),
        };
        // First, so that nobody else can use up what is left to the user.
        if !is_theirs(&session) {
            return Err(forged(about, &session));
        }
        if !self.limits.authorization(&session.browser.user) {
            let words = "You have asked very often in a short time. Please wait a minute.";
            let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", words);
            return Err(Refusal { retry_after: Some("60"), ..refusal });
        }
        Ok(session)
    }

    async fn set_out(
        &self,
        about: &About,
        session: &SignedIn,
        wish: Wish,
        home: String,
    ) -> Result<Value, Refusal> {
        let snapshot = &about.snapshot;
        let return_to = return_address::asked(snapshot, wish.return_to.as_deref().unwrap_or_default());
        let return_to = return_to.map_err(|error| invalid(&error.to_string()))?;
        let trail = Trail::new(wish.routes, wish.reconnect, home, return_to);
        let trail = match trail.set_out(&self.authority, snapshot, &session.browser).await {
            Onward::Away(url) => return Ok(json!({"authorization_url": url})),
            Onward::End(trail) => trail,
        };
        let Some(first) = trail.failed.first() else {
            return Ok(match last_step(&trail, trail.return_to(snapshot).as_ref()) {
                Some((path, _)) => json!({"authorization_url": format!("{}{path}", snapshot.issuer())}),
                None => json!({"state": "connected", "connected": trail.done}),
            });
        };
        let failed = trail.failed.iter().map(|failed| {
            json!({"route": failed.route, "error": failed.why.code(), "error_description": failed.why.words()})
        });
        let failed = failed.collect::<Vec<_>>().into();
        Err(Refusal { failed, ..Refusal::new(status(first.why), first.why.code(), &trail.failures()) })
    }
}

fn forged(about: &About, session: &SignedIn) -> Refusal {
    tracing::warn!(target: "audit", event = "forged_form", user = %session.browser.user, client_ip = about.client.map(tracing::field::display));
    let words = "This has to come from a page of this origin, with the csrf of GET /api/v1/connections in X-CSRF-Token.";
    Refusal::new(StatusCode::FORBIDDEN, "forbidden", words)
}
