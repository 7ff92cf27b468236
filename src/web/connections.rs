//! The buttons that connect and disconnect, one by one and several at once, and the page of one server alone, which other
//! parts send people to.
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::account::{self, Acting, Fields, date, later, nothing, too_many};
use super::identity::sign_in_at;
use super::pages::connections::{
    Held, Mood, NotConnected, Offer, OneServer, Server, label, not_connected, one_server,
};
use super::pages::plain;
use super::session::SignedIn;
use super::{About, Shared, Web, link, moved, page, see_other};
use crate::api::connections::{Listed, list};
use crate::api::return_address::{self, ReturnAddress};
use crate::api::trail::{Onward, Trail, Why};
use crate::oauth::client::connect::ConnectError;
use crate::oauth::client::standing::{Outage, State as Stands};
use crate::oauth::client::user_key::{self, header_of};
use crate::oauth::server::params::with_query;
use crate::oauth::server::redirect;
use crate::route::Route;

#[derive(Deserialize)]
pub struct Wish {
    #[serde(default)]
    return_to: String,
    /// Whom the link was made for, sealed.
    #[serde(rename = "for", default)]
    link: String,
}

/// `GET /connections/{route}?return_to=…&for=…`: one server, and one button.
pub async fn show(
    State(web): Shared,
    Extension(about): Extension<About>,
    Path(name): Path<String>,
    Query(Wish { return_to, link }): Query<Wish>,
    headers: HeaderMap,
) -> Response {
    let Some(route) = about.snapshot.routes.by_name(&name) else { return nothing() };
    let Ok(asked) = return_address::asked(&about.snapshot, &return_to) else { return no_way_back() };
    let session = match web.session(&about, &headers).await {
        Ok(Some(session)) => session,
        Ok(None) => {
            let page = page_of(&name, asked.as_ref());
            let page = if link.is_empty() { page } else { with_query(&page, &[("for", &link)]) };
            return see_other(&with_query("/login", &[("next", &page)]));
        }
        Err(_) => return later(),
    };
    let user = &session.browser.user;
    if !route.admits(user) {
        return nothing();
    }
    let now = web.authority.clock.now();
    if !link.is_empty() && !link::is_for(&about.snapshot.keys, &link, user, &route.name, now) {
        tracing::warn!(target: "audit", event = "link_refused", %user, route = %name, client_ip = about.client.map(tracing::field::display));
        return page(
            StatusCode::FORBIDDEN,
            "This link is not for you, or not any more",
            "It was made for one person and for ten minutes. Whoever sent it to you may want you to connect for them: do not. If you need this server, open your connections from your own application.",
        );
    }
    if !web.limits.authorization(user) {
        return too_many();
    }
    one(&web, &session, route, asked.as_ref(), None).await
}

/// The page of one server. `error`: what is wrong with what was entered there.
async fn one(
    web: &Web,
    session: &SignedIn,
    route: &Route,
    asked: Option<&ReturnAddress>,
    error: Option<String>,
) -> Response {
    let standing = web.authority.connector.standing(route, &session.browser.user).await;
    let Ok(standing) = standing else { return later() };
    let listed = Listed { route, standing };
    let is_ready =
        matches!(listed.standing.state, Stands::Connected | Stands::Expires(_) | Stands::NotNeeded);
    let page = OneServer {
        csrf: &session.csrf,
        user: &session.name,
        server: shown(&listed),
        is_ready,
        return_to: asked.map(ReturnAddress::as_str),
        return_label: asked.map(way_back).unwrap_or_default(),
        hint: header_of(route).and_then(|header| header.hint.as_deref()),
        error: error.as_deref(),
    };
    let status = if error.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    (status, Html(one_server(&page))).into_response()
}

/// `POST /connections/{route}/key`: the user's own secret for this server.
pub async fn hand_over(
    State(web): Shared,
    Path(name): Path<String>,
    Acting { about, session, fields }: Acting,
) -> Response {
    let Some(route) = about.snapshot.routes.of_user(&name, &session.browser.user) else { return nothing() };
    let Some(header) = header_of(route) else { return nothing() };
    let Ok(asked) = return_address::asked(&about.snapshot, &fields.return_to) else { return no_way_back() };
    let key = match user_key::read(header, fields.key.expose_secret()) {
        Ok(key) => key,
        Err(error) => return one(&web, &session, route, asked.as_ref(), Some(error.to_string())).await,
    };
    let now = web.authority.clock.now();
    match web.authority.connector.keep_user_key(route, &session.browser.user, key, now).await {
        Ok(()) => moved(&asked.map_or_else(|| page_of(&name, None), |address| address.as_str().to_owned())),
        Err(_) => later(),
    }
}

/// `POST /connections/{what}`: what is about no server in particular. One may have such a name, so these are no
/// addresses of their own.
pub async fn act(state: Shared, Path(what): Path<String>, acting: Acting) -> Response {
    match what.as_str() {
        "connect" => connect_missing(state, acting).await,
        "withdraw" => account::withdraw(state, acting).await,
        "end-session" => account::end_session(state, acting).await,
        _ => nothing(),
    }
}

/// `POST /connections/connect`: to every authorization server that still wants the user.
async fn connect_missing(State(web): Shared, acting: Acting) -> Response {
    let Acting { about, session, fields } = &acting;
    let Ok(listed) = list(&web.authority, &about.snapshot, &session.browser.user).await else {
        return later();
    };
    let missing = listed.iter().filter(|listed| listed.standing.is_missing());
    let missing = missing.map(|listed| listed.route.name.clone());
    set_out(&web, about, session, fields, missing.collect(), "/connections".to_owned()).await
}

/// `POST /connections/{route}/connect`: to the upstream's authorization server, and back to the page.
pub async fn connect(State(web): Shared, Path(route): Path<String>, acting: Acting) -> Response {
    let Acting { about, session, fields } = &acting;
    if about.snapshot.routes.of_user(&route, &session.browser.user).is_none() {
        return nothing();
    }
    let home = match fields.alone.is_empty() {
        true => "/connections".to_owned(),
        false => page_of(&route, None),
    };
    set_out(&web, about, session, fields, vec![route], home).await
}

/// `POST /connections/{route}/disconnect`
pub async fn disconnect(
    State(web): Shared,
    Path(route): Path<String>,
    Acting { about, session, .. }: Acting,
) -> Response {
    let Some(route) = about.snapshot.routes.of_user(&route, &session.browser.user) else { return nothing() };
    match web.authority.connector.disconnect(&session.browser.user, route).await {
        Ok(_) => moved("/connections"),
        Err(_) => later(),
    }
}

async fn set_out(
    web: &Web,
    about: &About,
    session: &SignedIn,
    fields: &Fields,
    routes: Vec<String>,
    home: String,
) -> Response {
    let snapshot = &about.snapshot;
    let Ok(return_to) = return_address::asked(snapshot, &fields.return_to) else { return no_way_back() };
    let trail = Trail::new(routes, !fields.anew.is_empty(), home, return_to);
    match trail.set_out(&web.authority, snapshot, &session.browser).await {
        Onward::Away(url) => moved(&url),
        Onward::End(trail) => ended(about, &trail, moved),
    }
}

/// Back from an upstream's authorization server, and on to the next one.
pub async fn came_back(
    web: &Web,
    about: &About,
    session: &SignedIn,
    trail: Trail,
    outcome: Result<Vec<String>, ConnectError>,
) -> Response {
    match trail.back(&web.authority, &about.snapshot, &session.browser, outcome).await {
        Onward::Away(url) => see_other(&url),
        Onward::End(trail) => ended(about, &trail, see_other),
    }
}

/// There is nothing left to connect: where the user wanted to go, or what failed. `go` takes the browser there.
fn ended(about: &About, trail: &Trail, go: impl Fn(&str) -> Response) -> Response {
    let return_to = trail.return_to(&about.snapshot);
    let (onward, label) = match (last_step(trail, return_to.as_ref()), &return_to) {
        (Some((path, label)), _) => (path, label.to_owned()),
        (None, Some(address)) => (address.as_str().to_owned(), way_back(address)),
        (None, None) => (trail.home.clone(), "Your connections".to_owned()),
    };
    let Some(first) = trail.failed.first() else { return go(&onward) };
    if let (None, Some(ReturnAddress::Elsewhere(url))) = (last_step(trail, None), &return_to) {
        let words = trail.failures();
        return go(&with_query(url, &[("error", first.why.code()), ("error_description", &words)]));
    }
    let status = status(first.why);
    let page = NotConnected {
        status: status.as_u16(),
        failed: trail.failed.iter().map(|failed| (failed.route.as_str(), failed.why.words())).collect(),
        done: trail.done.iter().map(String::as_str).collect(),
        onward,
        label,
    };
    (status, Html(not_connected(&page))).into_response()
}

/// What is left to do here, and what that is called: to hand over a secret, or to sign in at the providers whose tokens are
/// wanted, each of which leads on to the next. The way on from there is a page of ours, which shows the way back.
pub fn last_step(trail: &Trail, return_to: Option<&ReturnAddress>) -> Option<(String, &'static str)> {
    if let Some(route) = trail.keys.first() {
        return Some((page_of(route, return_to), "Enter your key"));
    }
    let (_, last) = trail.sign_ins.last()?;
    let end = match return_to {
        Some(ReturnAddress::Page(path)) => path.clone(),
        Some(elsewhere) => page_of(last, Some(elsewhere)),
        None => trail.home.clone(),
    };
    let path = trail.sign_ins.iter().rev().fold(end, |next, (provider, _)| sign_in_at(provider, &next));
    Some((path, "Sign in there"))
}

pub fn status(why: Why) -> StatusCode {
    match why {
        Why::Denied => StatusCode::FORBIDDEN,
        Why::TooOften => StatusCode::TOO_MANY_REQUESTS,
        Why::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Why::Gone => StatusCode::NOT_FOUND,
        Why::Broken => StatusCode::BAD_GATEWAY,
    }
}

/// The page of one server.
pub fn page_of(route: &str, return_to: Option<&ReturnAddress>) -> String {
    let path = format!("/connections/{route}");
    match return_to {
        Some(address) => with_query(&path, &[("return_to", address.as_str())]),
        None => path,
    }
}

fn way_back(address: &ReturnAddress) -> String {
    match address {
        ReturnAddress::Page(_) => "Go on".to_owned(),
        ReturnAddress::Elsewhere(url) => label(&redirect::host(url)),
    }
}

fn no_way_back() -> Response {
    page(
        StatusCode::BAD_REQUEST,
        "There is no way back to that address",
        "The link that led you here names an address to return to that whoever runs this gateway has not allowed. Please go back to your application and start again.",
    )
}

/// A route and its state, as the pages show it.
pub fn shown<'a>(listed: &'a Listed<'a>) -> Server<'a> {
    let (route, standing) = (listed.route, &listed.standing);
    let held = standing.held.as_ref();
    let (mood, offer) = match standing.state {
        Stands::NotNeeded => (Mood::Dim, Offer::Nothing),
        Stands::NotConnected => (Mood::Plain, Offer::Connect),
        Stands::Connected | Stands::Expires(_) => (Mood::Plain, Offer::Reconnect),
        Stands::NeedsSignIn(_) => (Mood::Bad, Offer::Connect),
        Stands::Unavailable(Outage::Silence) if held.is_none() => (Mood::Warn, Offer::Connect),
        Stands::Unavailable(_) => (Mood::Warn, Offer::Reconnect),
    };
    Server {
        name: &route.name,
        title: plain(route.title()),
        resource: &route.resource,
        words: listed.words(),
        mood,
        held: held.map(|held| Held {
            since: date(held.since),
            issuer_host: redirect::host(&held.issuer),
            scopes: &held.scopes,
        }),
        offer,
        is_key: header_of(route).is_some(),
        // What cannot be read is there all the same.
        can_disconnect: held.is_some() || matches!(standing.state, Stands::NeedsSignIn(_)),
    }
}
