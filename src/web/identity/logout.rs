//! Signing out, there and here: what a provider is asked when a session ends here, and what ends here when it says that
//! somebody has signed out there.
//!
//! A notice names an account of the provider. Sessions of its own people end with it; where `logout_ends_grants` says so,
//! what they have granted ends as well. Somebody who came in elsewhere and only went on there stays signed in, since the
//! session does not follow from that account: what ends, by the same key, is the connection that it gave.
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use axum::Form;
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::config::IdentityProvider;
use crate::oauth::client::connect::CONNECTION_TTL;
use crate::oauth::client::identity::{IdentityError, SignedOut};
use crate::oauth::server::remembered;
use crate::seal;
use crate::store::record::{RecordError, Typed};
use crate::store::{Kind, Put, StoreError};
use crate::web::session::{AtProvider, Session};
use crate::web::{About, Shared, Web, pages};

/// How long a notice of a sign-out is remembered, so that it counts once.
const NOTICE_TTL: Duration = Duration::from_secs(3600);
/// So often a record that others write as well is tried.
const TRIES: usize = 5;

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

/// The users who went on to an account of a provider, having come in elsewhere (store record).
#[derive(Default, Serialize, Deserialize)]
struct Legs {
    users: BTreeSet<String>,
}

impl Typed for Legs {
    const KIND: Kind = Kind::SignIn;
}

/// `GET /login/signed-out`: where the provider sends people after they signed out there as well.
pub async fn done() -> Response {
    Html(pages::signed_out()).into_response()
}

#[derive(Deserialize)]
pub struct Logout {
    #[serde(default)]
    logout_token: String,
}

/// `POST /login/backchannel-logout` (OpenID Connect Back-Channel Logout §2.5): every session that followed from the one
/// there ends.
pub async fn notice(
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

// === impl Web ===

impl Web {
    /// Where the browser signs out at the provider that its session came from.
    pub(in crate::web) async fn sign_out_url(
        &self,
        about: &About,
        at: Option<&AtProvider>,
    ) -> Option<String> {
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
                    let legs = records.readable::<Legs>(&legs_to(&user)).await?;
                    let legs = legs.map(|legs| legs.value.users).unwrap_or_default();
                    for whose in legs.iter().chain([&user]) {
                        self.authority.connector.end_provider_tokens(provider, whose, &user).await?;
                    }
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
    pub(super) async fn remember_session_there(
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

    /// Remembers who went on to this account, for as long as what came of it may live.
    pub(super) async fn remember_leg(&self, account: &str, user: &str) -> Result<(), RecordError> {
        let (records, key) = (&self.authority.records, legs_to(account));
        for _ in 0..TRIES {
            let version = match records.store().get(Kind::SignIn, &key).await? {
                Some(known) => known.version,
                None => 0,
            };
            let known = records.readable::<Legs>(&key).await?.filter(|known| known.version == version);
            let mut legs = known.map(|known| known.value).unwrap_or_default();
            legs.users.insert(user.to_owned());
            if records.put(&key, version, &legs, CONNECTION_TTL).await? == Put::Stored {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable("a record is written too often".to_owned()).into())
    }
}

fn session_there(provider: &str, session: &str) -> String {
    format!("there/{}", seal::digest(&format!("{provider}\0{session}")))
}

fn legs_to(account: &str) -> String {
    format!("legs/{}", seal::digest(account))
}
