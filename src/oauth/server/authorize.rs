//! `GET /oauth/authorize` (OAuth 2.1 §4.1.1): checks what the client asks and prepares what the user will be asked.
//!
//! Two kinds of error: before client and redirect URI are certain nothing is sent anywhere, the user sees a page;
//! after that the client hears of it through its redirect URI. What the user has to decide is stored as one flow,
//! bound to the browser session, good for one decision within ten minutes.
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::{Client, ClientError};
use super::code::issue_code;
use super::params::{Params, with_query};
use super::refusal::Refusal;
use super::remembered::is_remembered;
use super::{Authority, Snapshot, redirect};
use crate::config::ClientAuthMethod;
use crate::oauth::client::prospect::{Plan, Prospect};
use crate::route::{PROFILE_SCOPE, Route};
use crate::seal;
use crate::store::Kind;
use crate::store::record::Typed;

/// Added to the query of whoever comes back from signing in once more: it does not help twice.
pub const SIGNED_IN_AGAIN: &str = "signed_in_again";
pub const FLOW_TTL: Duration = Duration::from_secs(600);

/// A client's request, checked.
#[derive(Clone, Serialize, Deserialize)]
pub struct Request {
    pub client_id: String,
    /// How the client authenticates when it redeems the code.
    #[serde(default)]
    pub client_auth: ClientAuthMethod,
    /// What it calls itself, and the digest of what it is.
    #[serde(default)]
    pub client_name: Option<String>,
    #[serde(default)]
    pub client_digest: String,
    /// The client wants the user asked, whatever is remembered (`prompt=consent`, OpenID Connect Core §3.1.2.1).
    #[serde(default)]
    pub ask: bool,
    /// Its user comes back from signing in once more. Of this one visit, so it is not stored.
    #[serde(skip)]
    pub signed_in_again: bool,
    pub redirect_uri: String,
    pub state: Option<String>,
    /// PKCE S256 challenge (RFC 7636 §4.2).
    pub challenge: String,
    pub route: String,
    pub resource: String,
    /// As asked; empty when nothing was.
    pub scopes: Vec<String>,
}

/// Who is at the browser.
#[derive(Clone)]
pub struct Browser {
    pub user: String,
    /// Digest of the session cookie.
    pub session: String,
}

/// One decision a user has to make (store record).
#[derive(Serialize, Deserialize)]
pub struct Flow {
    pub request: Request,
    pub user: String,
    pub session: String,
    pub scopes: Vec<String>,
    pub plan: Option<Plan>,
}

impl Typed for Flow {
    const KIND: Kind = Kind::Flow;
}

/// What the consent page has to say.
pub struct Question {
    pub flow: String,
    pub client: Client,
    pub redirect_uri: String,
    pub route: Arc<Route>,
    pub scopes: Vec<String>,
    pub plan: Option<Plan>,
    /// What the user's connection may do, where there is one already.
    pub connected: Vec<String>,
    pub note: Option<&'static str>,
}

/// What becomes of a request that is in order.
pub enum Prepared {
    /// The user is asked.
    Ask(Box<Question>),
    /// The user has said yes to this before: the URL to send the browser to.
    Allowed(String),
    /// The user has to sign in again first, at the identity provider of this name.
    SignIn(String),
    /// The user has to hand over a secret first, on the page of this route.
    Key(String),
}

/// Why there will be no consent page.
#[derive(Debug)]
pub enum Refused {
    /// Client or redirect URI are not to be trusted: tell the user, redirect nowhere (RFC 6749 §4.1.2.1).
    Page(&'static str),
    /// As that: nobody here knows this client, and it had better register again.
    UnknownClient(&'static str),
    /// We could not find out; trying again may help.
    Later(&'static str),
    /// Tell the client: the URL to send the browser to, and what the client is told. `is_trusted`: the browser may go
    /// there by itself.
    Redirect { url: String, description: &'static str, is_trusted: bool },
}

/// Checks the request. Needs no user, so that a bad request is refused before anybody signs in.
pub async fn validate(
    authority: &Authority,
    snapshot: &Snapshot,
    query: &str,
) -> Result<(Request, Client), Refused> {
    let params = Params::read(query).map_err(|refusal| Refused::Page(refusal.description))?;
    if params.is_doubled("client_id") || params.is_doubled("redirect_uri") {
        return Err(Refused::Page(
            "The application said twice which one it is, or where the answer should go.",
        ));
    }
    let client_id = params
        .value("client_id")
        .ok_or(Refused::Page("The application did not say which one it is (client_id is missing)."))?;
    let client = authority.client(snapshot, client_id).await.map_err(|error| match error {
        ClientError::Unknown => Refused::UnknownClient(
            "This application is not registered here. Remove this server from it, add it again, and retry.",
        ),
        ClientError::Document(why) => {
            tracing::info!(target: "postern::oauth", why, "client document refused");
            Refused::Page("The application's metadata document cannot be used.")
        }
        ClientError::Unavailable => Refused::Later("The application could not be looked up just now."),
    })?;
    let redirect_uri = match (params.value("redirect_uri"), client.redirect_uris.as_slice()) {
        (Some(asked), _) if client.allows(asked) => asked.to_owned(),
        (Some(_), _) => {
            return Err(Refused::Page(
                "The application wants the answer sent to an address it has not registered.",
            ));
        }
        (None, [only]) => only.clone(),
        (None, _) => {
            return Err(Refused::Page(
                "The application did not say where the answer should go (redirect_uri is missing).",
            ));
        }
    };
    let state = params.value("state").filter(|_| !params.is_doubled("state")).map(str::to_owned);
    match check(&params, snapshot) {
        Ok((route, challenge, scopes)) => {
            let (resource, route) = (route.resource.clone(), route.name.clone());
            Ok((
                Request {
                    client_id: client.id.clone(),
                    client_auth: client.auth.method(),
                    client_name: client.name.clone(),
                    client_digest: client.digest(),
                    ask: params
                        .value("prompt")
                        .is_some_and(|prompt| prompt.split(' ').any(|word| word == "consent")),
                    signed_in_again: params.value(SIGNED_IN_AGAIN).is_some(),
                    redirect_uri,
                    state,
                    challenge,
                    route,
                    resource,
                    scopes,
                },
                client,
            ))
        }
        Err(refusal) => {
            let description = refusal.description;
            let url = error_redirect(snapshot, &redirect_uri, state.as_deref(), refusal);
            let is_trusted = client.is_listed || redirect::is_loopback(&redirect_uri);
            Err(Refused::Redirect { url, description, is_trusted })
        }
    }
}

fn check<'s>(
    params: &Params,
    snapshot: &'s Snapshot,
) -> Result<(&'s Arc<Route>, String, Vec<String>), Refusal> {
    params.each_once()?;
    if params.value("request").is_some() || params.value("request_uri").is_some() {
        return Err(Refusal::request_not_supported("request objects are not supported"));
    }
    if params.required("response_type", "response_type is required")? != "code" {
        return Err(Refusal::unsupported_response_type("only response_type=code is supported"));
    }
    if params.value("response_mode").is_some_and(|mode| mode != "query") {
        return Err(Refusal::invalid_request("only response_mode=query is supported"));
    }
    let challenge = params.required("code_challenge", "code_challenge is required")?;
    // Absent would mean `plain` (RFC 7636 §4.3), which is not offered.
    if params.value("code_challenge_method") != Some("S256") {
        return Err(Refusal::invalid_request("code_challenge_method must be S256"));
    }
    if challenge.len() != 43
        || !challenge.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    {
        return Err(Refusal::invalid_request("code_challenge is not a SHA-256 digest in base64url"));
    }
    let route = match params.value("resource") {
        Some(resource) => snapshot
            .routes
            .by_resource(resource)
            .ok_or(Refusal::invalid_target("resource is not one of this server"))?,
        None => only_route(snapshot)
            .ok_or(Refusal::invalid_target("resource is required: this server has several"))?,
    };
    let scopes = params
        .value("scope")
        .unwrap_or_default()
        .split(' ')
        .filter(|scope| !scope.is_empty())
        .map(str::to_owned);
    Ok((route, challenge.to_owned(), scopes.collect()))
}

fn only_route(snapshot: &Snapshot) -> Option<&Arc<Route>> {
    let mut routes = snapshot.routes.configured().filter(|route| route.is_ours());
    routes.next().filter(|_| routes.next().is_none())
}

/// Prepares the user's decision: probes the upstream, so that the page can name its authorization server, and stores
/// the flow.
pub async fn prepare(
    authority: &Authority,
    snapshot: &Snapshot,
    request: Request,
    client: Client,
    browser: &Browser,
) -> Result<Prepared, Refused> {
    let refuse = |refusal: Refusal| {
        let description = refusal.description;
        let url = error_redirect(snapshot, &request.redirect_uri, request.state.as_deref(), refusal);
        // Whoever is signed in has asked for something that is in order.
        Refused::Redirect { url, description, is_trusted: true }
    };
    let route = snapshot
        .routes
        .by_resource(&request.resource)
        .ok_or(Refused::Page("This MCP server is gone."))?
        .clone();
    if !route.admits(&browser.user) {
        tracing::info!(target: "audit", event = "route_refused", user = %browser.user, client = %request.client_id, route = %route.name);
        return Err(refuse(Refusal::access_denied("this MCP server is not open to the user")));
    }
    let prospect = authority.connector.prospect(&route, &browser.user).await.map_err(|error| {
        tracing::warn!(target: "postern::oauth", route = %route.name, %error, "upstream authorization cannot be prepared: `postern doctor` with this route says why and what to write");
        refuse(match error.is_transient() {
            true => Refusal::unavailable("the MCP server's authorization server does not answer, try again"),
            false => Refusal::server_error("the MCP server's authorization server cannot be used"),
        })
    })?;
    let (plan, connected, note) = match prospect {
        Prospect::NotNeeded => (None, Vec::new(), None),
        Prospect::Connected { scopes } => (None, scopes, None),
        Prospect::Needed(plan) => (Some(*plan), Vec::new(), None),
        Prospect::SignIn(provider) => {
            return match request.signed_in_again {
                false => Ok(Prepared::SignIn(provider)),
                true => Err(refuse(Refusal::server_error(
                    "the identity provider gave no token that the MCP server takes",
                ))),
            };
        }
        Prospect::Key => return Ok(Prepared::Key(route.name.clone())),
        Prospect::Unexplained => {
            let note = "The MCP server asks for a token and does not say who gives one, so it may refuse what the application asks. Whoever runs this gateway has to look.";
            (None, Vec::new(), Some(note))
        }
        Prospect::Unknown => {
            let note = "The MCP server does not answer just now. You may be asked to connect to it later.";
            (None, Vec::new(), Some(note))
        }
    };
    let lacked = authority.connector.lacked(&browser.user, &request.client_id, &route).await;
    let asked = request.scopes.iter().chain(&lacked);
    let upstream = plan.as_ref().map_or(connected.as_slice(), |plan| plan.scopes.as_slice());
    let scopes = granted(&route, asked, upstream);
    let unavailable = |_| Refused::Later("The store cannot be reached just now.");
    // Where the upstream has a question of its own, or nobody knows whether it has, the user is told; and what a rule asks
    // their consent for, they are asked each time.
    let agrees = scopes.iter().any(|scope| route.rules.consent(scope).is_some());
    if plan.is_none()
        && note.is_none()
        && !agrees
        && is_remembered(authority, &request, &browser.user, &scopes).await.map_err(unavailable)?
    {
        return Ok(Prepared::Allowed(issue(authority, snapshot, request, &browser.user, scopes).await));
    }
    let flow = seal::name().map_err(|_| refuse(Refusal::server_error("no randomness")))?;
    let record = Flow {
        request: request.clone(),
        user: browser.user.clone(),
        session: browser.session.clone(),
        scopes: scopes.clone(),
        plan: plan.clone(),
    };
    authority.records.put(&seal::digest(&flow), 0, &record, FLOW_TTL).await.map_err(unavailable)?;
    let redirect_uri = request.redirect_uri;
    Ok(Prepared::Ask(Box::new(Question { flow, client, redirect_uri, route, scopes, plan, connected, note })))
}

/// What is granted: the route's own scopes always, since nothing works without them; of what was asked, what single calls
/// need, and to know the user; and all that the connection may do at the upstream, since a client uses it whole or not at all. Unknown names are
/// dropped.
fn granted<'a>(
    route: &Route,
    asked: impl Iterator<Item = &'a String>,
    upstream: &'a [String],
) -> Vec<String> {
    let mut scopes = route.scopes.clone();
    let is_known = |scope: &str| scope == PROFILE_SCOPE || route.rules.scopes().any(|known| known == scope);
    let of_calls = asked.filter(|scope| is_known(scope));
    // What a tool needs is nothing that an upstream can hand out.
    let theirs = upstream.iter().filter(|scope| !route.rules.has_scope(scope));
    for scope in of_calls.chain(theirs) {
        if !scopes.contains(scope) {
            scopes.push(scope.clone());
        }
    }
    scopes
}

/// Gives the client its code; the URL to send the browser to.
pub(super) async fn issue(
    authority: &Authority,
    snapshot: &Snapshot,
    request: Request,
    user: &str,
    scopes: Vec<String>,
) -> String {
    match issue_code(authority, snapshot, &request, user, scopes).await {
        Ok(code) => {
            let mut pairs = vec![("code", code.as_str())];
            pairs.extend(request.state.as_deref().map(|state| ("state", state)));
            pairs.push(("iss", snapshot.issuer()));
            with_query(&request.redirect_uri, &pairs)
        }
        Err(refusal) => error_redirect(snapshot, &request.redirect_uri, request.state.as_deref(), refusal),
    }
}

/// Where the browser goes with an error (RFC 6749 §4.1.2.1, with `iss` of RFC 9207).
pub fn error_redirect(
    snapshot: &Snapshot,
    redirect_uri: &str,
    state: Option<&str>,
    refusal: Refusal,
) -> String {
    let mut pairs = vec![("error", refusal.code), ("error_description", refusal.description)];
    pairs.extend(state.map(|state| ("state", state)));
    pairs.push(("iss", snapshot.issuer()));
    with_query(redirect_uri, &pairs)
}

impl Question {
    /// Host of the redirect URI and whether it is this computer.
    pub fn destination(&self) -> (String, bool) {
        (redirect::host(&self.redirect_uri), redirect::is_loopback(&self.redirect_uri))
    }
}
