//! Signing in through an identity provider: the way there and the way back.
pub mod leg;
pub mod logout;

use std::time::Duration;

use axum::extract::{Extension, Path, Query, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use self::leg::Leg;
use super::browser::{is_same, local_path};
use super::session::{AtProvider, Who};
use super::{About, Shared, Web, page, see_other};
use crate::config::IdentityProvider;
use crate::oauth::client::identity::{Begun, IdentityError, Person, Returning};
use crate::oauth::client::provider::NotKept;
use crate::oauth::server::params::{Params, with_query};
use crate::seal;
use crate::store::Kind;
use crate::store::record::{Take, Typed};

const SIGN_IN_TTL: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
pub struct Start {
    #[serde(default)]
    provider: String,
    #[serde(default)]
    next: String,
    /// Whether it is for somebody who is signed in, and stays so.
    #[serde(default)]
    further: String,
}

/// A sign-in under way (store record, found by the digest of its `state`).
#[derive(Serialize, Deserialize)]
struct SignIn {
    begun: Begun,
    next: String,
    /// Digest of the cookie of the browser that began it.
    browser: String,
    /// Whose leg it is. `None`: whoever comes back is signed in.
    #[serde(default)]
    leg: Option<Leg>,
}

impl Typed for SignIn {
    const KIND: Kind = Kind::SignIn;
}

/// `GET /login/start?provider=…&next=…`. Whoever is signed in through another provider, or by password, stays who they are
/// where a route wants the tokens of this one, or `further` says so.
pub async fn start(
    State(web): Shared,
    Extension(about): Extension<About>,
    Query(Start { provider, next, further }): Query<Start>,
    headers: HeaderMap,
) -> Response {
    let Some(provider) = about.snapshot.config.login.provider(&provider) else { return nobody() };
    let is_further = !further.is_empty();
    let next = local_path(&next);
    let user = match web.session(&about, &headers).await {
        Ok(Some(session)) if provider.knows(&session.browser.user) => Some(session.browser.user),
        Ok(Some(session)) if is_further || about.snapshot.routes.injects(provider) => {
            return leg::ask(&session, provider, next);
        }
        Ok(Some(_)) => None,
        // Nobody is there whose leg it could be: a session has ended meanwhile.
        Ok(None) if is_further => {
            return see_other(&with_query("/login", &[("next", &sign_in_at(&provider.name, next))]));
        }
        Ok(None) => None,
        Err(_) => return refuse(&provider.name, &IdentityError::Unavailable),
    };
    if !web.limits.sign_in(about.client) {
        return too_many();
    }
    match web.lead_to(&about, &headers, provider, next, user.as_deref(), None).await {
        Ok(away) => away.taking(see_other),
        Err(error) => refuse(&provider.name, &error),
    }
}

/// On the way to a provider.
struct Away {
    url: String,
    /// The cookie to set, where the browser has none yet.
    cookie: Option<HeaderValue>,
}

impl Away {
    /// `go` takes the browser there.
    fn taking(self, go: impl Fn(&str) -> Response) -> Response {
        let mut response = go(&self.url);
        response.headers_mut().extend(self.cookie.map(|cookie| (header::SET_COOKIE, cookie)));
        response
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
    // Whoever is at the browser now is not the one who set out, or nobody is: the code goes nowhere.
    if let Some(leg) = &sign_in.leg {
        match web.session(about, headers).await {
            Ok(Some(session)) if leg.is_of(&session) => {}
            Ok(_) => {
                leg.lost(provider);
                return gone();
            }
            Err(_) => return refuse(&provider.name, &IdentityError::Unavailable),
        }
    }
    let returning =
        Returning { code: params.value("code"), iss: params.value("iss"), error: params.value("error") };
    let now = web.authority.clock.now();
    let redirect_uri = callback_uri(about, provider);
    let person = web.providers.complete(provider, &sign_in.begun, &returning, &redirect_uri, now).await;
    if let Some(leg) = &sign_in.leg {
        return leg.end(web, about, provider, local_path(&sign_in.next), person).await;
    }
    let person = match person {
        Ok(person) => person,
        Err(error) => return refuse(&provider.name, &error),
    };
    if !web.authority.admits(&about.snapshot, &person.user) {
        tracing::warn!(target: "audit", event = "sign_in_blocked", user = %person.user, client_ip = about.client.map(tracing::field::display));
        return page(
            StatusCode::FORBIDDEN,
            "This account is blocked",
            "Please ask whoever runs this gateway.",
        );
    }
    if web.authority.keep_attributes(&about.snapshot, &person.user, &person.attributes).await.is_err() {
        return refuse(&provider.name, &IdentityError::Unavailable);
    }
    let user = person.user.clone();
    let Person { name, session, id_token, .. } = match web.keep(about, provider, &user, person).await {
        Ok(person) => person,
        Err(error) => return refuse(&provider.name, &error),
    };
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

/// Where somebody who is signed in goes to this provider, first or again, and then on to `next`.
pub fn sign_in_at(provider: &str, next: &str) -> String {
    with_query("/login/start", &[("provider", provider), ("further", "1"), ("next", next)])
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
            let retry = HeaderValue::from_static("5");
            response.headers_mut().insert(header::RETRY_AFTER, retry);
            response
        }
        IdentityError::Denied => page(
            StatusCode::FORBIDDEN,
            "You are not signed in",
            "The sign-in service did not sign you in. Please start again.",
        ),
        IdentityError::SomebodyElse => page(
            StatusCode::FORBIDDEN,
            "This is another account",
            "You have been there as somebody else before. Please disconnect that first.",
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

fn nobody() -> Response {
    page(
        StatusCode::NOT_FOUND,
        "There is nothing here",
        "Nobody signs in this way. Please start again from the front page.",
    )
}

fn too_many() -> Response {
    page(
        StatusCode::TOO_MANY_REQUESTS,
        "Too many at once",
        "Too many sign-ins begin from your network just now. Please try again in a minute.",
    )
}

// === impl Web ===

impl Web {
    /// Begins a sign-in, with a state, a nonce and a verifier of its own. `user`: whom the provider may have asked for.
    async fn lead_to(
        &self,
        about: &About,
        headers: &HeaderMap,
        provider: &IdentityProvider,
        next: &str,
        user: Option<&str>,
        leg: Option<Leg>,
    ) -> Result<Away, IdentityError> {
        let state = seal::token().map_err(|_| IdentityError::Unavailable)?;
        // The one that is there already, so that two tabs both come back.
        let (cookie, fresh) = match self.cookies.sign_in(headers) {
            Some(cookie) => (cookie.to_owned(), false),
            None => {
                let cookie = seal::token().map_err(|_| IdentityError::Unavailable)?;
                (cookie.expose_secret().to_owned(), true)
            }
        };
        let now = self.authority.clock.now();
        let redirect_uri = callback_uri(about, provider);
        let claims = match user {
            Some(user) => self.authority.connector.claims_wanted(provider, user).await,
            None => None,
        };
        let state = state.expose_secret();
        let begun = self.providers.begin(provider, &redirect_uri, state, claims.as_deref(), now).await;
        let (url, begun) = begun?;
        let sign_in = SignIn { begun, next: next.to_owned(), browser: seal::digest(&cookie), leg };
        let put = self.authority.records.put(&seal::digest(state), 0, &sign_in, SIGN_IN_TTL).await;
        put.map_err(|_| IdentityError::Unavailable)?;
        Ok(Away { url, cookie: fresh.then(|| self.cookies.set_sign_in(&cookie)) })
    }

    /// Keeps what came with a sign-in, as far as a route wants it, for `user`, and remembers what a sign-out there is to end.
    async fn keep(
        &self,
        about: &About,
        provider: &IdentityProvider,
        user: &str,
        mut person: Person,
    ) -> Result<Person, IdentityError> {
        let tokens = person.tokens.take().filter(|_| about.snapshot.routes.injects(provider));
        if provider.logout_ends_grants {
            let unavailable = |_| IdentityError::Unavailable;
            if let Some(there) = &person.session {
                self.remember_session_there(about, provider, there, &person.user)
                    .await
                    .map_err(unavailable)?;
            }
            if tokens.is_some() && person.user != user {
                self.remember_leg(&person.user, user).await.map_err(unavailable)?;
            }
        }
        if let Some(tokens) = tokens {
            let (connector, now) = (&self.authority.connector, self.authority.clock.now());
            let kept = connector.keep_provider_tokens(provider, user, &person.user, tokens, now).await;
            kept.map_err(|error| match error {
                NotKept::SomebodyElse => IdentityError::SomebodyElse,
                NotKept::Unavailable => IdentityError::Unavailable,
            })?;
        }
        Ok(person)
    }
}
