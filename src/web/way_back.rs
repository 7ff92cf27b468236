//! An error that would lead to an address which only the application itself has named: nobody here trusts it, so the
//! browser goes there when its user says so, and not by itself (OAuth 2.1 §7.12.2). Otherwise anybody could register an
//! address here and make our links lead to it.
use askama::Template;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};

use super::pages::{address, render};
use crate::oauth::server::redirect;

#[derive(Template)]
#[template(path = "way_back.html")]
struct WayBack<'a> {
    host: String,
    url: &'a str,
    description: &'a str,
}

/// The page, where the browser is not to go on by itself.
pub fn page(url: &str, description: &str) -> Response {
    let page = WayBack { host: address(&redirect::host(url)), url, description };
    (StatusCode::BAD_REQUEST, Html(render(&page))).into_response()
}
