//! The tokens that an identity provider gave when somebody signed in, kept as a connection of theirs for the routes that
//! name the provider (`credential.kind: upstream_inject`): refreshed, shared and ended as any other. Where there is none
//! the user signs in there again.
use std::sync::Arc;
use std::time::SystemTime;

use secrecy::SecretString;

use super::connect::{CONNECTION_TTL, ConnectError};
use super::prospect::Prospect;
use super::register::{RegisterError, Registration};
use super::registration::by_id;
use super::token::TokenResponse;
use super::{Connector, connection_key, issuer_key, key_at};
use crate::config::{Credential, IdentityProvider, InjectedToken};
use crate::route::{Route, provider_place, provider_policy};
use crate::store::State;
use crate::store::record::{IdToken, RecordError, Tokens};

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

impl ProviderTokens {
    /// `exp`: when it ends, in seconds since 1970.
    pub fn with_id_token(mut self, token: &SecretString, exp: u64, now: SystemTime) -> Self {
        self.id_token = Some(IdToken::new(token.clone(), exp, now));
        self
    }
}

impl Connector {
    /// Keeps them in place of what is there. Some providers give a refresh token the first time only: then it is kept
    /// beside the new access token.
    pub async fn keep_provider_tokens(
        &self,
        provider: &IdentityProvider,
        user: &str,
        tokens: ProviderTokens,
        now: SystemTime,
    ) -> Result<(), ConnectError> {
        let key = key_at(&provider_place(&provider.issuer), user);
        let ProviderTokens { response, scopes, id_token, client, token_endpoint, revocation_endpoint } =
            tokens;
        let registration = by_id(&issuer_key(&provider.issuer), &client.client_id);
        self.remember_client(&registration, &client).await?;
        let refresh_token = match response.refresh_token {
            Some(given) => Some(given),
            None => self.refresh_token_of(&key, &registration).await,
        };
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
            rotates: None,
        };
        self.records.connect(&key, &tokens, CONNECTION_TTL).await.map_err(|_| ConnectError::Unavailable)?;
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

    /// Ends what [`Connector::keep_provider_tokens`] has kept of this user.
    pub async fn end_provider_tokens(
        &self,
        provider: &IdentityProvider,
        user: &str,
    ) -> Result<bool, RecordError> {
        let key = key_at(&provider_place(&provider.issuer), user);
        let credential = Credential::UpstreamInject(Arc::new(provider.clone()), InjectedToken::Access);
        self.end(&key, user, &shown(provider), &provider_policy(provider), &credential).await
    }

    /// Whether the user has to sign in there again, for a route that injects its tokens; `anew`: they want to.
    pub(super) async fn prospect_at_provider(
        self: &Arc<Self>,
        provider: &IdentityProvider,
        route: &Arc<Route>,
        user: &str,
        anew: bool,
    ) -> Prospect {
        if !provider.knows(user) {
            return Prospect::NotTheirs;
        }
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

    /// The refresh token that there is already, if it was given to the same client and is not known to be dead.
    async fn refresh_token_of(&self, key: &str, registration: &str) -> Option<SecretString> {
        let (connection, known) = self.records.connection(key).await.ok()??;
        let is_good = connection.state != State::NeedsReauth && known.registration == registration;
        known.refresh_token.filter(|_| is_good)
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

/// How such a connection is listed; no route has this name.
fn shown(provider: &IdentityProvider) -> String {
    format!("login:{}", provider.name)
}
