//! The tokens that an identity provider gave when somebody signed in, kept as a connection of theirs for the routes that
//! name the provider (`credential.kind: upstream_inject`): refreshed, shared and ended as any other. Where there is none
//! the user signs in there again, or, having come in elsewhere, goes there as well.
use std::sync::Arc;
use std::time::SystemTime;

use secrecy::SecretString;

use super::connect::CONNECTION_TTL;
use super::prospect::Prospect;
use super::register::{RegisterError, Registration};
use super::registration::by_id;
use super::token::TokenResponse;
use super::{Connector, connection_key, issuer_key, key_at};
use crate::config::{Credential, IdentityProvider, InjectedToken};
use crate::route::{Route, provider_place, provider_policy};
use crate::store::record::{IdToken, RecordError, Tokens};
use crate::store::{Connection, State};

/// What came with an ID token.
pub struct ProviderTokens {
    /// Always usable.
    pub response: TokenResponse,
    pub scopes: Vec<String>,
    /// Verified.
    pub id_token: Option<IdToken>,
    /// Us, as the provider knows us.
    pub client: Registration,
    pub token_endpoint: String,
    pub revocation_endpoint: Option<String>,
}

/// Why they are not kept.
pub enum NotKept {
    /// The user has been there as somebody else, and has not ended that.
    SomebodyElse,
    Unavailable,
}

impl ProviderTokens {
    /// `exp`: when it ends, in seconds since 1970.
    pub fn with_id_token(mut self, token: &SecretString, exp: u64, now: SystemTime) -> Self {
        self.id_token = Some(IdToken::new(token.clone(), exp, now));
        self
    }
}

impl Connector {
    /// Keeps them in place of what is there. Some providers give a refresh token the first time only: then it is kept
    /// beside the new access token. `account`: who the user is there, [`Person::user`]; it stays the same until the user
    /// disconnects.
    ///
    /// [`Person::user`]: super::identity::Person::user
    pub async fn keep_provider_tokens(
        &self,
        provider: &IdentityProvider,
        user: &str,
        account: &str,
        tokens: ProviderTokens,
        now: SystemTime,
    ) -> Result<(), NotKept> {
        let key = key_at(&provider_place(&provider.issuer), user);
        let existing = match self.records.connection(&key).await {
            Ok(existing) => existing,
            Err(RecordError::Unreadable) => None,
            Err(_) => return Err(NotKept::Unavailable),
        };
        let known = existing.as_ref().and_then(|(_, known)| known.account.as_deref());
        if known.is_some_and(|known| known != account) {
            return Err(NotKept::SomebodyElse);
        }
        let ProviderTokens { response, scopes, id_token, client, token_endpoint, revocation_endpoint } =
            tokens;
        let registration = by_id(&issuer_key(&provider.issuer), &client.client_id);
        self.remember_client(&registration, &client).await.map_err(|_| NotKept::Unavailable)?;
        let refresh_token = response.refresh_token.or_else(|| refresh_token_of(existing, &registration));
        let tokens = Tokens {
            access_token: response.access_token,
            refresh_token,
            id_token,
            expires_at: response.expires_in.map(|lifetime| now + lifetime),
            obtained_at: now,
            connected_at: Some(now),
            scopes: response.scope.unwrap_or_else(|| scopes.clone()),
            requested_scopes: scopes,
            issuer: provider.issuer.clone(),
            resource: None,
            token_endpoint,
            revocation_endpoint,
            registration,
            user: user.to_owned(),
            route: shown(provider),
            account: Some(account.to_owned()),
            rotates: None,
        };
        self.records.connect(&key, &tokens, CONNECTION_TTL).await.map_err(|_| NotKept::Unavailable)?;
        tracing::info!(target: "audit", event = "connect", user, route = %tokens.route, issuer = %provider.issuer, ok = true);
        Ok(())
    }

    /// What this provider wants to see the user about, who has signed in there before: a JSON object for the `claims` of the
    /// next sign-in.
    pub async fn claims_wanted(&self, provider: &IdentityProvider, user: &str) -> Option<String> {
        let key = key_at(&provider_place(&provider.issuer), user);
        let connection = self.records.store().connection(&key).await.ok()??;
        self.open_challenge(&key, Some(&connection.incarnation)).await?.claims
    }

    /// Ends what [`Connector::keep_provider_tokens`] has kept of this user, unless they are somebody else there by now.
    pub async fn end_provider_tokens(
        &self,
        provider: &IdentityProvider,
        user: &str,
        account: &str,
    ) -> Result<bool, RecordError> {
        let key = key_at(&provider_place(&provider.issuer), user);
        let known = match self.records.connection(&key).await {
            Err(RecordError::Unreadable) => None,
            found => found?.and_then(|(_, tokens)| tokens.account),
        };
        if known.is_some_and(|known| known != account) {
            return Ok(false);
        }
        let credential = Credential::UpstreamInject(Arc::new(provider.clone()), InjectedToken::Access);
        self.end(&key, user, &shown(provider), &provider_policy(provider), &credential).await
    }

    /// Whether the user has to sign in there, first or again, for a route that injects its tokens; `anew`: they want to.
    pub(super) async fn prospect_at_provider(
        self: &Arc<Self>,
        provider: &IdentityProvider,
        route: &Arc<Route>,
        user: &str,
        anew: bool,
    ) -> Prospect {
        if anew {
            return Prospect::SignIn(provider.name.clone());
        }
        let key = connection_key(user, route);
        let (connection, tokens) = match self.records.connection(&key).await {
            Ok(Some(found)) => found,
            Ok(None) | Err(RecordError::Unreadable) => return Prospect::SignIn(provider.name.clone()),
            Err(_) => return Prospect::Unknown,
        };
        let is_asked = self.open_challenge(&key, Some(&connection.incarnation)).await.is_some();
        match !is_asked && self.is_usable(route, &key, &connection, &tokens).await {
            // What its tokens may do is nobody's to consent to here.
            true => Prospect::Connected { scopes: Vec::new() },
            false => Prospect::SignIn(provider.name.clone()),
        }
    }

    /// One write, and that only when something has changed: everybody who signs in comes by here.
    async fn remember_client(&self, key: &str, client: &Registration) -> Result<(), RegisterError> {
        match self.records.readable::<Registration>(key).await {
            Ok(Some(known)) if known.value.is_same_client(client) => Ok(()),
            Ok(_) => self.keep(key, client).await,
            Err(_) => Err(RegisterError::Unavailable),
        }
    }
}

/// The refresh token that there is already, if it was given to the same client and is not known to be dead.
fn refresh_token_of(existing: Option<(Connection, Tokens)>, registration: &str) -> Option<SecretString> {
    let (connection, known) = existing?;
    let is_good = connection.state != State::NeedsReauth && known.registration == registration;
    known.refresh_token.filter(|_| is_good)
}

/// How such a connection is listed; no route has this name.
fn shown(provider: &IdentityProvider) -> String {
    format!("login:{}", provider.name)
}
