//! Signing in through an identity provider: the way there, the way back, and being told that somebody signed out there.
use std::collections::HashSet;
use std::time::Duration;

use axum::Form;
use axum::extract::{Extension, Path, Query, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::browser::{is_same, local_path};
use super::session::{AtProvider, Session, Who};
use super::{About, Shared, Web, page, pages, see_other};
use crate::config::IdentityProvider;
use crate::oauth::client::identity::{Begun, IdentityError, Person, Returning, SignedOut};
use crate::oauth::server::params::{Params, with_query};
use crate::oauth::server::remembered;
use crate::seal;
use crate::store::Kind;
use crate::store::record::{RecordError, Take, Typed};

const SIGN_IN_TTL: Duration = Duration::from_secs(600);
/// How long a notice of a sign-out is remembered, so that it counts once.
const NOTICE_TTL: Duration = Duration::from_secs(3600);

#[derive(Deserialize)]
pub struct Start {
    #[serde(default)]
    provider: String,
    #[serde(default)]
    next: String,
}

/// A sign-in under way (store record, found by the digest of its `state`).
#[derive(Serialize, Deserialize)]
struct SignIn {
    begun: Begun,
    next: String,
    /// Digest of the cookie of the browser that began it.
    browser: String,
}

impl Typed for SignIn {
    const KIND: Kind = Kind::SignIn;
}

/// Whose a session at a provider is (store record).
#[derive(Serialize, Deserialize)]
struct SessionThere {
    user: String,
}

impl Typed for SessionThere {
    const KIND: Kind = Kind::SignIn;
}

/// A notice that was taken (store record).
#[derive(Serialize, Deserialize)]
struct Notice {}

impl Typed for Notice {
    const KIND: Kind = Kind::Assertion;
}

/// `GET /login/start?provider=…&next=…`
pub async fn start(
    State(web): Shared,
    Extension(about): Extension<About>,
    Query(Start { provider, next }): Query<Start>,
    headers: HeaderMap,
) -> Response {
    let Some(provider) = about.snapshot.config.login.provider(&provider) else {
        return page(
            StatusCode::NOT_FOUND,
            "There is nothing here",
            "Nobody signs in this way. Please start again from the front page.",
        );
    };
    if !web.limits.sign_in(about.client) {
        return page(
            StatusCode::TOO_MANY_REQUESTS,
            "Too many at once",
            "Too many sign-ins begin from your network just now. Please try again in a minute.",
        );
    }
    let begin = async {
        let state = seal::token().map_err(|_| IdentityError::Unavailable)?;
        // The one that is there already, so that two tabs both come back.
        let (cookie, fresh) = match web.cookies.sign_in(&headers) {
            Some(cookie) => (cookie.to_owned(), false),
            None => {
                let cookie = seal::token().map_err(|_| IdentityError::Unavailable)?;
                (cookie.expose_secret().to_owned(), true)
            }
        };
        let now = web.authority.clock.now();
        let redirect_uri = callback_uri(&about, provider);
        let claims = match web.session(&about, &headers).await {
            Ok(Some(session)) => web.authority.connector.claims_wanted(provider, &session.browser.user).await,
            _ => None,
        };
        let state_text = state.expose_secret();
        let (url, begun) =
            web.providers.begin(provider, &redirect_uri, state_text, claims.as_deref(), now).await?;
        let sign_in = SignIn { begun, next: local_path(&next).to_owned(), browser: seal::digest(&cookie) };
        let key = seal::digest(state.expose_secret());
        let put = web.authority.records.put(&key, 0, &sign_in, SIGN_IN_TTL).await;
        put.map_err(|_| IdentityError::Unavailable)?;
        Ok((url, fresh.then_some(cookie)))
    };
    match begin.await {
        Ok((url, cookie)) => {
            let mut response = see_other(&url);
            let cookie = cookie.map(|cookie| (header::SET_COOKIE, web.cookies.set_sign_in(&cookie)));
            response.headers_mut().extend(cookie);
            response
        }
        Err(error) => refuse(&provider.name, &error),
    }
}

/// `GET /login/callback`
pub async fn callback(
    State(web): Shared,
    Extension(about): Extension<About>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    come_back(&web, &about, None, query, &headers).await
}

/// `GET /login/callback/{provider}`
pub async fn callback_of(
    State(web): Shared,
    Extension(about): Extension<About>,
    Path(provider): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    come_back(&web, &about, Some(&provider), query, &headers).await
}

/// `at`: the provider whose own address it is.
async fn come_back(
    web: &Web,
    about: &About,
    at: Option<&str>,
    query: Option<String>,
    headers: &HeaderMap,
) -> Response {
    let gone = || {
        page(
            StatusCode::BAD_REQUEST,
            "This sign-in is over",
            "It was finished already, has expired, or was begun in another browser. Please start again.",
        )
    };
    let Ok(params) = Params::parse(&query.unwrap_or_default()) else { return gone() };
    let (Some(state), Some(cookie)) = (params.value("state"), web.cookies.sign_in(headers)) else {
        return gone();
    };
    let (key, records) = (seal::digest(state), &web.authority.records);
    let login = &about.snapshot.config.login;
    let is_its = |name: &str| login.provider(name).is_some_and(|provider| own_address(provider) == at);
    // Only the browser that began it uses it up, and only where its provider sends people.
    match records.readable::<SignIn>(&key).await {
        Ok(Some(seen))
            if is_same(&seen.value.browser, &seal::digest(cookie)) && is_its(&seen.value.begun.provider) => {}
        Ok(_) => return gone(),
        Err(_) => return refuse("", &IdentityError::Unavailable),
    }
    let sign_in = match records.take::<SignIn>(&key).await {
        Ok(Take::Fresh(taken)) => taken.value,
        Ok(_) => return gone(),
        Err(_) => return refuse("", &IdentityError::Unavailable),
    };
    let Some(provider) = login.provider(&sign_in.begun.provider) else { return gone() };
    let returning =
        Returning { code: params.value("code"), iss: params.value("iss"), error: params.value("error") };
    let now = web.authority.clock.now();
    let redirect_uri = callback_uri(about, provider);
    let person = web.providers.complete(provider, &sign_in.begun, &returning, &redirect_uri, now).await;
    let Person { user, name, session, id_token, tokens, attributes } = match person {
        Ok(person) => person,
        Err(error) => return refuse(&provider.name, &error),
    };
    if !web.authority.admits(&about.snapshot, &user) {
        tracing::warn!(target: "audit", event = "sign_in_blocked", user = %user, client_ip = about.client.map(tracing::field::display));
        return page(
            StatusCode::FORBIDDEN,
            "This account is blocked",
            "Please ask whoever runs this gateway.",
        );
    }
    if web.authority.keep_attributes(&about.snapshot, &user, &attributes).await.is_err() {
        return refuse(&provider.name, &IdentityError::Unavailable);
    }
    if let Some(tokens) = tokens.filter(|_| about.snapshot.routes.injects(provider)) {
        let kept = web.authority.connector.keep_provider_tokens(provider, &user, tokens, now).await;
        if kept.is_err() {
            return refuse(&provider.name, &IdentityError::Unavailable);
        }
    }
    if let Some(there) = session.as_ref().filter(|_| provider.logout_ends_grants) {
        let remembered = web.remember_session_there(about, provider, there, &user).await;
        if remembered.is_err() {
            return refuse(&provider.name, &IdentityError::Unavailable);
        }
    }
    let at = AtProvider { name: provider.name.clone(), session, id_token };
    match web.begin(about, headers, Who { user, name, provider: Some(at) }).await {
        Ok(cookie) => {
            let mut response = see_other(local_path(&sign_in.next));
            response.headers_mut().extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
            response
        }
        Err(_) => refuse(&provider.name, &IdentityError::Unavailable),
    }
}

/// `GET /login/signed-out`: where the provider sends people after they signed out there as well.
pub async fn signed_out() -> Response {
    Html(pages::signed_out()).into_response()
}

#[derive(Deserialize)]
pub struct Logout {
    #[serde(default)]
    logout_token: String,
}

/// `POST /login/backchannel-logout` (OpenID Connect Back-Channel Logout §2.5): every session that followed from the one
/// there ends.
pub async fn backchannel_logout(
    State(web): Shared,
    Extension(about): Extension<About>,
    Form(Logout { logout_token }): Form<Logout>,
) -> Response {
    let now = web.authority.clock.now();
    let providers = &about.snapshot.config.login.providers;
    let status = match web.providers.signed_out(providers, &logout_token, now).await {
        Ok(notice) => match web.end_sessions(&about, &notice).await {
            Ok(()) => StatusCode::OK,
            Err(error) => {
                tracing::warn!(%error, "sessions are not ended");
                StatusCode::SERVICE_UNAVAILABLE
            }
        },
        Err(IdentityError::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
        Err(error) => {
            tracing::warn!(target: "audit", event = "logout_refused", reason = %error);
            StatusCode::BAD_REQUEST
        }
    };
    (status, [(header::CACHE_CONTROL, "no-store")]).into_response()
}

/// Where somebody signs in at this provider, and then goes on to `next`.
pub fn sign_in_at(provider: &str, next: &str) -> String {
    with_query("/login/start", &[("provider", provider), ("next", next)])
}

/// What the way back from this provider ends with, where it has one of its own.
fn own_address(provider: &IdentityProvider) -> Option<&str> {
    provider.own_redirect_uri.then_some(provider.name.as_str())
}

fn callback_uri(about: &About, provider: &IdentityProvider) -> String {
    let uri = format!("{}/login/callback", about.snapshot.issuer());
    match own_address(provider) {
        Some(name) => format!("{uri}/{name}"),
        None => uri,
    }
}

fn refuse(provider: &str, error: &IdentityError) -> Response {
    tracing::warn!(target: "audit", event = "sign_in_failed", provider, reason = %error);
    match error {
        IdentityError::Unavailable => {
            let mut response = page(
                StatusCode::SERVICE_UNAVAILABLE,
                "Not just now",
                "The sign-in service cannot be reached. Please try again in a moment.",
            );
            let retry = axum::http::HeaderValue::from_static("5");
            response.headers_mut().insert(header::RETRY_AFTER, retry);
            response
        }
        IdentityError::Denied => page(
            StatusCode::FORBIDDEN,
            "You are not signed in",
            "The sign-in service did not sign you in. Please start again.",
        ),
        IdentityError::NotAdmitted => page(
            StatusCode::FORBIDDEN,
            "This account may not come in",
            "It is in no domain or group that is let in here. Please ask whoever runs this gateway.",
        ),
        IdentityError::Refused(_) => page(
            StatusCode::BAD_GATEWAY,
            "The sign-in service answered nonsense",
            "Please start again. If it stays so, whoever runs this gateway finds the reason in its log.",
        ),
    }
}

// === impl Web ===

impl Web {
    /// Where the browser signs out at the provider that its session came from.
    pub(super) async fn sign_out_url(&self, about: &About, at: Option<&AtProvider>) -> Option<String> {
        let at = at?;
        let provider = about.snapshot.config.login.provider(&at.name)?;
        let back = format!("{}/login/signed-out", about.snapshot.issuer());
        let now = self.authority.clock.now();
        self.providers.sign_out_url(provider, Some(&at.id_token), &back, now).await
    }

    /// What the person has granted ends first, where it does at all: while a session is left, the notice can come again.
    async fn end_sessions(&self, about: &About, notice: &SignedOut) -> Result<(), RecordError> {
        let records = &self.authority.records;
        // Shown again it would end what was begun since.
        let key = seal::digest(&format!("{}\0{}", notice.provider, notice.id));
        if records.readable::<Notice>(&key).await?.is_some() {
            return Ok(());
        }
        let fits = |session: &Session| match (&notice.session, &session.provider) {
            (_, None) => false,
            (_, Some(at)) if at.name != notice.provider => false,
            (Some(there), Some(AtProvider { session: Some(here), .. })) => there == here,
            // Where one of the two names no session, all of the person's are meant.
            _ => notice.user.as_ref() == Some(&session.user),
        };
        let sessions = records.scan::<Session>().await?;
        let sessions: Vec<_> = sessions.into_iter().filter(|(_, session)| fits(&session.value)).collect();
        let provider = about.snapshot.config.login.provider(&notice.provider);
        if let Some(provider) = provider.filter(|provider| provider.logout_ends_grants) {
            let mut users: HashSet<String> = notice.user.iter().cloned().collect();
            users.extend(sessions.iter().map(|(_, session)| session.value.user.clone()));
            if let Some(session) = &notice.session {
                let known =
                    records.readable::<SessionThere>(&session_there(&notice.provider, session)).await?;
                users.extend(known.map(|known| known.value.user));
            }
            for user in users {
                remembered::end_grants(&self.authority, |allowed| allowed.user == user).await?;
                if about.snapshot.routes.injects(provider) {
                    self.authority.connector.end_provider_tokens(provider, &user).await?;
                }
            }
        }
        for (key, session) in sessions {
            records.remove::<Session>(&key).await?;
            self.forget_exchanged(about, &session.value.user).await?;
            tracing::info!(target: "audit", event = "signed_out_at_provider", user = %session.value.user);
        }
        records.put(&key, 0, &Notice {}, NOTICE_TTL).await?;
        Ok(())
    }

    /// Remembers whose session there it is for as long as grants that follow from it may live: a notice may name nothing
    /// else, and come when the session here has long ended.
    async fn remember_session_there(
        &self,
        about: &About,
        provider: &IdentityProvider,
        session: &str,
        user: &str,
    ) -> Result<(), RecordError> {
        let (records, key) = (&self.authority.records, session_there(&provider.name, session));
        let there = SessionThere { user: user.to_owned() };
        let version = match records.store().get(Kind::SignIn, &key).await? {
            Some(known) => known.version,
            None => 0,
        };
        // A conflict is another tab that did the same.
        records.put(&key, version, &there, about.snapshot.config.oauth_server.grant_ttl).await?;
        Ok(())
    }
}

fn session_there(provider: &str, session: &str) -> String {
    format!("there/{}", seal::digest(&format!("{provider}\0{session}")))
}
