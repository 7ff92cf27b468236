//! The authorization endpoint of the demo's authorization server: the question to the user and the answer, with
//! PKCE (RFC 7636), `resource` (RFC 8707) and `iss` (RFC 9207).

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use url::Url;

use super::authorization_server::parameters;
use super::client::Client;
use super::{Code, Demo, Grant, Pending, SCOPE, digest_of, header_text, no_store, random_text};

const CODE_LIFETIME: Duration = Duration::from_secs(60);
const PENDING_LIFETIME: Duration = Duration::from_secs(10 * 60);
/// The account of a user who does not name one.
const DEFAULT_ACCOUNT: &str = "ada";
/// Without `form-action`: Chromium would apply it to the redirect back to the client.
const POLICY: &str = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'";

/// The page of the authorization endpoint: the question, or only a problem.
#[derive(Template)]
#[template(path = "demo_authorize.html")]
struct Page<'a> {
    question: Option<Question<'a>>,
    problem: Option<&'a str>,
}

struct Question<'a> {
    client: &'a str,
    scope: &'a str,
    redirect_host: &'a str,
    ticket: &'a str,
    account: &'a str,
}

fn page(status: StatusCode, page: &Page<'_>) -> Response {
    match page.render() {
        Ok(html) => no_store((
            status,
            [
                (header::CONTENT_TYPE, "text/html; charset=utf-8"),
                (header::CONTENT_SECURITY_POLICY, POLICY),
                (header::REFERRER_POLICY, "same-origin"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ],
            html,
        )),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn problem_page(status: StatusCode, problem: &str) -> Response {
    page(status, &Page { question: None, problem: Some(problem) })
}

fn question_page(ticket: &str, pending: &Pending, account: &str, problem: Option<&str>) -> Response {
    let url = Url::parse(&pending.redirect_uri).ok();
    let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
    // On one computer only the port tells the programs apart.
    let redirect_host = match url.as_ref().and_then(Url::port) {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let question = Question {
        client: pending.client.name.as_deref().unwrap_or("An application without a name"),
        scope: SCOPE,
        redirect_host: &redirect_host,
        ticket,
        account,
    };
    let status = if problem.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    page(status, &Page { question: Some(question), problem })
}

/// The authorization endpoint. A bad client or redirect URI is told to the user, all else to the client.
pub(super) async fn ask(State(demo): State<Arc<Demo>>, RawQuery(query): RawQuery) -> Response {
    let Some(asked) = parameters(query.unwrap_or_default().as_bytes()) else {
        return problem_page(StatusCode::BAD_REQUEST, "A parameter of the request came twice.");
    };
    let value = |name: &str| asked.get(name).map(String::as_str);
    let client_id = value("client_id").unwrap_or_default();
    let Some(client) = Client::of_id(client_id) else {
        return problem_page(StatusCode::BAD_REQUEST, "The application is not registered here.");
    };
    let Some(redirect_uri) =
        value("redirect_uri").filter(|uri| client.redirect_uris.iter().any(|own| own == uri))
    else {
        return problem_page(
            StatusCode::BAD_REQUEST,
            "The return address is not the one that was registered.",
        );
    };
    let refused = |error: &str, description: &str| {
        let fields = [("error", error), ("error_description", description)];
        back(&demo.issuer, redirect_uri, value("state"), &fields)
    };
    if value("response_type") != Some("code") {
        return refused("unsupported_response_type", "only code is supported");
    }
    // A S256 challenge is 32 bytes in base64url (RFC 7636 §4.2).
    let challenge = value("code_challenge").filter(|text| {
        text.len() == 43 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    });
    let Some(code_challenge) = challenge.filter(|_| value("code_challenge_method") == Some("S256")) else {
        return refused("invalid_request", "PKCE with S256 is required");
    };
    if value("scope").is_some_and(|scope| scope.split(' ').any(|name| name != SCOPE)) {
        return refused("invalid_scope", "the only scope is demo:tools");
    }
    if value("resource") != Some(demo.resource.as_str()) {
        return refused("invalid_target", "resource must name the MCP server");
    }
    let Ok(ticket) = random_text() else {
        return refused("server_error", "try again later");
    };
    let pending = Pending {
        redirect_uri: redirect_uri.to_owned(),
        code_challenge: code_challenge.to_owned(),
        state: value("state").map(str::to_owned),
        expires: demo.clock.now() + PENDING_LIFETIME,
        client,
    };
    let response = question_page(&ticket, &pending, DEFAULT_ACCOUNT, None);
    demo.tables().pending.insert(ticket, pending);
    response
}

/// The user's answer. The ticket stands for the checked request and counts once; a form of another site has
/// none.
pub(super) async fn answer(State(demo): State<Arc<Demo>>, headers: HeaderMap, body: Bytes) -> Response {
    if header_text(&headers, "sec-fetch-site").is_some_and(|site| site != "same-origin") {
        return problem_page(StatusCode::FORBIDDEN, "The answer came from another site.");
    }
    let given = parameters(&body).unwrap_or_default();
    let value = |name: &str| given.get(name).map(String::as_str);
    let ticket = value("ticket").unwrap_or_default();
    let now = demo.clock.now();
    let account = value("account").unwrap_or(DEFAULT_ACCOUNT).trim();
    let mut tables = demo.tables();
    let Some(pending) = tables.pending.find(ticket).filter(|pending| now < pending.expires).cloned() else {
        return problem_page(
            StatusCode::BAD_REQUEST,
            "This page was answered before or was open for too long. Go back to the application and start again.",
        );
    };
    if value("decision") == Some("allow") && !is_account(account) {
        let problem = "An account name has up to 32 letters, digits, dots, dashes or underscores.";
        return question_page(ticket, &pending, account, Some(problem));
    }
    tables.pending.remove(ticket);
    let state = pending.state.as_deref();
    if value("decision") != Some("allow") {
        let fields = [("error", "access_denied"), ("error_description", "the user said no")];
        return back(&demo.issuer, &pending.redirect_uri, state, &fields);
    }
    let (Ok(code), Ok(grant)) = (random_text(), random_text()) else {
        return back(&demo.issuer, &pending.redirect_uri, state, &[("error", "server_error")]);
    };
    tables
        .grants
        .insert(grant.clone(), Grant { client_id: pending.client.id(), account: account.to_owned() });
    tables.codes.insert(
        digest_of(&code),
        Code {
            grant,
            redirect_uri: pending.redirect_uri.clone(),
            code_challenge: pending.code_challenge.clone(),
            expires: now + CODE_LIFETIME,
            used: false,
        },
    );
    back(&demo.issuer, &pending.redirect_uri, state, &[("code", &code)])
}

fn is_account(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// 303 to the client with `fields`, `state` and `iss`. The URI is extended as text, so that it stays the
/// registered one byte for byte.
fn back(issuer: &str, redirect_uri: &str, state: Option<&str>, fields: &[(&str, &str)]) -> Response {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(fields);
    if let Some(state) = state {
        query.append_pair("state", state);
    }
    query.append_pair("iss", issuer);
    let separator = if redirect_uri.contains('?') { '&' } else { '?' };
    let location = format!("{redirect_uri}{separator}{}", query.finish());
    no_store((
        StatusCode::SEE_OTHER,
        [(header::LOCATION, location), (header::REFERRER_POLICY, "no-referrer".to_owned())],
    ))
}
