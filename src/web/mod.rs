//! HTTP around the decisions: our endpoints as an axum router. Handlers read the request, call a stage of `oauth`, and
//! print what it says; pages come from `pages`, who is at the browser from `session`.
//!
//! Three kinds of endpoints, three kinds of headers: documents and OAuth endpoints are open to every origin and carry
//! no cookies, pages and the JSON beside them are for this origin alone, and everything with a secret in it is `no-store`.
mod account;
mod authorize;
mod browser;
mod connections;
mod documents;
mod endpoints;
mod home;
mod identity;
mod json;
mod limits;
pub mod link;
mod login;
mod management;
pub mod pages;
mod session;
mod throttle;
mod way_back;

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use self::session::SignedIn;
use crate::oauth::client::exchanged::forget_exchanged;
use crate::oauth::client::identity::Providers;
use crate::oauth::server::{Authority, Snapshot};
use crate::store::record::RecordError;
use crate::telemetry::Metrics;

/// What the gateway tells the router about a request.
#[derive(Clone)]
pub struct About {
    /// What everything about this request is decided on.
    pub snapshot: Arc<Snapshot>,
    /// Host the request came to, in canonical form.
    pub authority: String,
    pub client: Option<IpAddr>,
    /// As in the log.
    pub request_id: String,
}

/// What all handlers share.
pub struct Web {
    authority: Arc<Authority>,
    metrics: Arc<Metrics>,
    /// Password hashing is slow on purpose; more at a time would starve everything else of memory and processor.
    hashing: Semaphore,
    throttle: throttle::Throttle,
    limits: limits::Limits,
    providers: Arc<Providers>,
    cookies: session::Cookies,
}

type Shared = axum::extract::State<Arc<Web>>;

const HASHES_AT_A_TIME: usize = 2;

impl Web {
    /// Who is at the browser, if anybody is signed in.
    async fn session(&self, about: &About, headers: &HeaderMap) -> Result<Option<SignedIn>, RecordError> {
        session::current(&self.authority, &about.snapshot, &self.cookies, headers).await
    }

    /// Somebody has signed out: what was exchanged for them is exchanged anew, if an application still calls for them.
    async fn forget_exchanged(&self, about: &About, user: &str) -> Result<(), RecordError> {
        match about.snapshot.routes.configured().any(|route| route.credential.exchanger().is_some()) {
            true => forget_exchanged(&self.authority.records, user).await,
            false => Ok(()),
        }
    }
}

/// Whether a canonical path on the public host is one of ours.
pub fn is_local(path: &str) -> bool {
    const OWN: [&str; 7] =
        ["/oauth", "/login", "/logout", "/connections", "/api", "/.well-known", "/favicon.ico"];
    path.is_empty()
        || OWN
            .iter()
            .any(|own| path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// The router of everything under `server.public_url` that is not an MCP route.
pub fn router(authority: Arc<Authority>, metrics: Arc<Metrics>, providers: Arc<Providers>) -> Router {
    let snapshot = authority.snapshot();
    let public_url = &snapshot.config.server.public_url;
    let cookies = session::Cookies::new(public_url);
    // Told of a loopback host, a browser would refuse every other program on this computer that speaks plain HTTP.
    let strict = public_url.is_https() && !public_url.is_loopback();
    let web = Arc::new(Web {
        providers,
        authority,
        metrics,
        hashing: Semaphore::new(HASHES_AT_A_TIME),
        throttle: throttle::Throttle::default(),
        limits: limits::Limits::default(),
        cookies,
    });
    let open = Router::new()
        .route(
            "/.well-known/oauth-protected-resource",
            get(documents::resource).options(endpoints::preflight),
        )
        .route(
            "/.well-known/oauth-protected-resource/{*path}",
            get(documents::resource).options(endpoints::preflight),
        )
        .route(
            "/.well-known/oauth-authorization-server",
            get(documents::server).options(endpoints::preflight),
        )
        .route("/.well-known/openid-configuration", get(documents::openid).options(endpoints::preflight))
        .route("/oauth/jwks.json", get(documents::keys).options(endpoints::preflight))
        .route("/oauth/client.json", get(documents::common_client).options(endpoints::preflight))
        .route("/oauth/client/{document}", get(documents::client).options(endpoints::preflight))
        .route("/oauth/client/{key}/jwks.json", get(documents::client_keys).options(endpoints::preflight))
        .route("/oauth/register", post(endpoints::register).options(endpoints::preflight))
        .route(
            "/oauth/register/{client_id}",
            get(endpoints::read_client)
                .put(endpoints::change_client)
                .delete(endpoints::delete_client)
                .options(endpoints::preflight),
        )
        .route(
            "/oauth/userinfo",
            get(endpoints::userinfo).post(endpoints::userinfo).options(endpoints::preflight),
        )
        .route("/oauth/token", post(endpoints::token).options(endpoints::preflight))
        .route("/oauth/revoke", post(endpoints::revoke).options(endpoints::preflight))
        .route("/login/backchannel-logout", post(identity::logout::notice))
        .route("/oauth/introspect", post(endpoints::introspect).options(endpoints::preflight))
        .layer(map_response(async |mut response: Response| {
            response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            response
        }));
    let pages = Router::new()
        .route("/", get(home::home))
        .route("/login", get(login::form).post(login::sign_in))
        .route("/login/start", get(identity::start))
        .route("/login/leg", post(identity::leg::set_out))
        .route("/login/callback", get(identity::callback))
        .route("/login/callback/{provider}", get(identity::callback_of))
        .route("/login/signed-out", get(identity::logout::done))
        .route("/logout", post(login::sign_out))
        .route("/connections", get(account::show))
        .route("/connections/{route}", get(connections::show).post(connections::act))
        .route("/connections/{route}/connect", post(connections::connect))
        .route("/connections/{route}/key", post(connections::hand_over))
        .route("/connections/{route}/disconnect", post(connections::disconnect))
        .route("/oauth/authorize", get(authorize::authorize))
        .route("/oauth/consent", post(authorize::consent))
        .route("/oauth/upstream/callback/{key}", get(authorize::callback))
        .route(pages::STYLE_PATH, get(style))
        .merge(json::routes())
        .merge(management::routes())
        .fallback(async || {
            page(StatusCode::NOT_FOUND, "There is nothing here", "The address may be misspelt.")
        })
        .layer(map_response(guarded));
    let all = open.merge(pages).with_state(web);
    match strict {
        true => all.layer(map_response(secured)),
        false => all,
    }
}

/// RFC 6797: for a year from now on this host is asked over HTTPS only. Nothing is said about hosts below it.
async fn secured(mut response: Response) -> Response {
    let policy = HeaderValue::from_static("max-age=31536000");
    response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, policy);
    response
}

/// What every page carries: not framed, not cached, no referrer, nothing loaded but our own stylesheet.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let policy =
        "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn style() -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, "max-age=3600")];
    (headers, pages::STYLE).into_response()
}

/// An error page.
fn page(status: StatusCode, title: &str, message: &str) -> Response {
    let problem = pages::Problem { status: status.as_u16(), title, message };
    (status, Html(pages::problem(&problem))).into_response()
}

/// 303, so that nothing that was posted is ever posted again (RFC 9700 §4.12).
fn see_other(url: &str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, url)]).into_response()
}

/// A page that moves the browser on. Chromium applies `form-action` to every redirect after a POST, so the answers to
/// our forms are pages and not redirects.
fn moved(url: &str) -> Response {
    Html(pages::moved(url)).into_response()
}
