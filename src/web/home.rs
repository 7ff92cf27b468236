//! The front page.
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::{Html, IntoResponse, Response};

use super::{About, Shared, pages};

/// `GET /`: what this is, and whether you are signed in. A store out of reach looks like being signed out.
pub async fn home(State(web): Shared, Extension(about): Extension<About>, headers: HeaderMap) -> Response {
    let session = web.session(&about, &headers).await.ok().flatten();
    let mut servers: Vec<pages::Server<'_>> = Vec::new();
    if let Some(session) = &session {
        let routes = about
            .snapshot
            .routes
            .iter()
            .filter(|route| route.kind.is_mcp() && route.admits(&session.browser.user));
        servers.extend(routes.map(|route| pages::Server { name: route.title(), resource: &route.resource }));
        servers.sort_by_key(|server| server.name);
    }
    let (csrf, user) =
        session.as_ref().map_or(("", None), |session| (session.csrf.as_str(), Some(session.name.as_str())));
    Html(pages::home(&pages::Home { csrf, user, servers: &servers })).into_response()
}
