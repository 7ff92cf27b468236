//! The browser's trip: authorize, consent, and back from the upstream's authorization server.
use axum::Form;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Deserialize;

use super::browser::{is_same, is_same_origin};
use super::connections;
use super::identity::sign_in_at;
use super::session::SignedIn;
use super::{About, Shared, Web, moved, page, pages, see_other, way_back};
use crate::api::return_address::ReturnAddress;
use crate::api::trail::Trail;
use crate::oauth::client::connect::{CallbackError, Returning};
use crate::oauth::server::authorize::{Prepared, Question, Refused, SIGNED_IN_AGAIN, prepare, validate};
use crate::oauth::server::consent::{ConsentError, Decision, decide, resume};
use crate::oauth::server::params::{Params, with_query};
use crate::oauth::server::redirect;

#[derive(Deserialize)]
pub struct Answer {
    #[serde(default)]
    csrf: String,
    #[serde(default)]
    flow: String,
    #[serde(default)]
    decision: String,
}

/// `GET /oauth/authorize`
pub async fn authorize(
    State(web): Shared,
    Extension(about): Extension<About>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let query = query.unwrap_or_default();
    let snapshot = &about.snapshot;
    let outcome = async {
        let (request, client) = validate(&web.authority, snapshot, &query).await?;
        let unavailable = |_| Refused::Later("The store cannot be reached just now.");
        let Some(session) = web.session(&about, &headers).await.map_err(unavailable)? else {
            return Ok(to_sign_in(&query));
        };
        if !web.limits.authorization(&session.browser.user) {
            return Err(Refused::Later(
                "You have begun too many sign-ins in a short time. Please wait a minute.",
            ));
        }
        Ok(match prepare(&web.authority, snapshot, request, client, &session.browser).await? {
            Prepared::Ask(question) => ask(&session, &question),
            Prepared::Allowed(url) => see_other(&url),
            Prepared::SignIn(provider) => {
                let back = format!("/oauth/authorize?{query}&{SIGNED_IN_AGAIN}=1");
                see_other(&sign_in_at(&provider, &back))
            }
            Prepared::Key(route) => {
                let back = ReturnAddress::Page(format!("/oauth/authorize?{query}"));
                see_other(&connections::page_of(&route, Some(&back)))
            }
        })
    };
    match outcome.await {
        Ok(response) => response,
        // Some clients look here first, before they open a browser (mcp-remote).
        Err(Refused::UnknownClient(message)) if wants_json(&headers) => {
            let error = serde_json::json!({"error": "invalid_client", "error_description": message});
            (StatusCode::BAD_REQUEST, axum::Json(error)).into_response()
        }
        Err(Refused::Page(message) | Refused::UnknownClient(message)) => {
            page(StatusCode::BAD_REQUEST, "This request cannot be answered", message)
        }
        Err(Refused::Later(message)) => {
            let mut response = page(StatusCode::SERVICE_UNAVAILABLE, "Not just now", message);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
            response
        }
        Err(Refused::Redirect { url, is_trusted: true, .. }) => see_other(&url),
        Err(Refused::Redirect { url, description, is_trusted: false }) => way_back::page(&url, description),
    }
}

/// `POST /oauth/consent`
pub async fn consent(
    State(web): Shared,
    Extension(about): Extension<About>,
    headers: HeaderMap,
    Form(answer): Form<Answer>,
) -> Response {
    let session = match web.signed_in(&about, &headers).await {
        Ok(session) => session,
        Err(response) => return *response,
    };
    let snapshot = &about.snapshot;
    if !is_same_origin(&headers, snapshot.issuer()) || !is_same(&session.csrf, &answer.csrf) {
        tracing::warn!(target: "audit", event = "forged_form", user = %session.browser.user, client_ip = about.client.map(tracing::field::display));
        return page(
            StatusCode::FORBIDDEN,
            "That did not come from here",
            "Please go back to your application and start again.",
        );
    }
    let decision = match answer.decision.as_str() {
        "allow" => Decision::Allow,
        "deny" => Decision::Deny,
        _ => {
            return page(
                StatusCode::BAD_REQUEST,
                "Neither yes nor no",
                "Please go back and press one of the two buttons.",
            );
        }
    };
    match decide(&web.authority, snapshot, &session.browser, &answer.flow, decision).await {
        Ok(url) => moved(&url),
        Err(error) => refuse(error),
    }
}

/// `GET /oauth/upstream/callback/{key}`
pub async fn callback(
    State(web): Shared,
    Extension(about): Extension<About>,
    Path(key): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let session = match web.signed_in(&about, &headers).await {
        Ok(session) => session,
        Err(response) => return *response,
    };
    let malformed = || {
        page(
            StatusCode::BAD_REQUEST,
            "This answer makes no sense",
            "The MCP server's authorization server sent you back without the necessary.",
        )
    };
    let Ok(params) = Params::parse(&query.unwrap_or_default()) else {
        return malformed();
    };
    let Some(state) = params.value("state") else {
        return malformed();
    };
    let returning = Returning {
        state,
        code: params.value("code"),
        iss: params.value("iss"),
        error: params.value("error"),
    };
    let snapshot = &about.snapshot;
    let (user, browser_session) = (&session.browser.user, &session.browser.session);
    let completed = match web
        .authority
        .connector
        .complete(&snapshot.routes, &key, &returning, user, browser_session)
        .await
    {
        Ok(completed) => completed,
        Err(error) => {
            tracing::warn!(target: "audit", event = "callback_refused", user = %user, reason = %error);
            return refuse(match error {
                CallbackError::Unknown => ConsentError::Gone,
                CallbackError::NotYours => ConsentError::NotYours,
                CallbackError::Unavailable => ConsentError::Unavailable,
            });
        }
    };
    if let Some(trail) = Trail::of(&completed.resume) {
        return connections::came_back(&web, &about, &session, trail, completed.outcome).await;
    }
    match resume(&web.authority, snapshot, completed.resume, user, completed.outcome).await {
        Ok(url) => see_other(&url),
        Err(error) => refuse(error),
    }
}

fn wants_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.contains("application/json") && !accept.contains("text/html")
}

fn to_sign_in(query: &str) -> Response {
    see_other(&with_query("/login", &[("next", &format!("/oauth/authorize?{query}"))]))
}

fn ask(session: &SignedIn, question: &Question) -> Response {
    let (redirect_host, redirect_loopback) = question.destination();
    let server_host = redirect::host(&question.route.upstream.url);
    let issuer_host =
        question.plan.as_ref().map(|plan| redirect::host(&plan.discovered.server.authorization_endpoint));
    let upstream = question.plan.as_ref().zip(issuer_host.as_ref());
    // Those of the upstream are shown with it.
    let theirs = question.plan.as_ref().map_or(&question.connected, |plan| &plan.scopes);
    let own: Vec<String> = question
        .scopes
        .iter()
        .filter(|scope| question.route.scopes.contains(scope) || !theirs.contains(scope))
        .filter(|scope| question.route.rules.consent(scope).is_none())
        .cloned()
        .collect();
    let words = question.scopes.iter().filter_map(|scope| question.route.rules.consent(scope));
    let agreements: Vec<String> = words.map(str::to_owned).collect();
    let consent = pages::Consent {
        csrf: &session.csrf,
        flow: &question.flow,
        user: &session.name,
        client_name: question.client.name.as_deref(),
        client_host: question.client.host.as_deref(),
        client_listed: question.client.is_listed,
        redirect_host: &redirect_host,
        redirect_uri: &question.redirect_uri,
        redirect_loopback,
        server_name: question.route.title(),
        added: question.route.managed.as_ref().map(|managed| pages::Added {
            organization: managed.organization.as_deref(),
            host: &question.route.upstream.authority,
        }),
        resource: &question.route.resource,
        scopes: &own,
        agreements: &agreements,
        connected: &question.connected,
        upstream: upstream.map(|(plan, issuer_host)| pages::ConsentUpstream {
            server_host: &server_host,
            issuer_host,
            scopes: &plan.scopes,
        }),
        upstream_note: question.note,
    };
    Html(pages::consent(&consent)).into_response()
}

fn refuse(error: ConsentError) -> Response {
    let again = "Please go back to your application and start again.";
    match error {
        ConsentError::Gone => page(
            StatusCode::BAD_REQUEST,
            "This request is over",
            &format!("It has been answered already, or has expired. {again}"),
        ),
        ConsentError::NotYours => page(
            StatusCode::FORBIDDEN,
            "This request is not yours",
            &format!("It was begun in another browser or by another user. {again}"),
        ),
        ConsentError::Unavailable => page(
            StatusCode::SERVICE_UNAVAILABLE,
            "Not just now",
            "The store cannot be reached. Please try again in a moment.",
        ),
    }
}

// === impl Web ===

impl Web {
    pub(super) async fn signed_in(
        &self,
        about: &About,
        headers: &HeaderMap,
    ) -> Result<SignedIn, Box<Response>> {
        match self.session(about, headers).await {
            Ok(Some(session)) => Ok(session),
            Ok(None) => Err(Box::new(page(
                StatusCode::FORBIDDEN,
                "You are not signed in",
                "Please go back to your application and start again, in the browser you signed in with.",
            ))),
            Err(_) => Err(Box::new(refuse(ConsentError::Unavailable))),
        }
    }
}
